import pytest
import torch
from torch import nn

from appssl.ops.heads import mlp


def normalized(x):
    return (x - x.mean(0)) / torch.sqrt(x.var(0, unbiased=False) + 1e-5)


def test_two_layers_written_out():
    torch.manual_seed(0)
    head, x = mlp(4, 6, 3).double().train(), torch.randn(5, 4, dtype=torch.float64)
    hidden = normalized(x @ head[0].weight.T).clamp(min=0)
    torch.testing.assert_close(head(x), hidden @ head[3].weight.T + head[3].bias)


@pytest.mark.parametrize(("num_layers", "norm"), [(1, True), (3, True), (3, False)])
def test_number_of_layers_and_of_normalizations(num_layers, norm):
    head = mlp(4, 6, 3, num_layers=num_layers, norm=norm)
    kinds = [type(layer) for layer in head]
    assert kinds.count(nn.Linear) == num_layers
    assert kinds.count(nn.ReLU) == num_layers - 1
    assert kinds.count(nn.BatchNorm1d) == (num_layers - 1 if norm else 0)
    assert all((layer.bias is None) == norm for layer in list(head)[:-1] if isinstance(layer, nn.Linear))
    assert head(torch.randn(5, 4)).shape == (5, 3)


def test_a_normalized_output_has_mean_zero_and_variance_one():
    torch.manual_seed(1)
    found = mlp(4, 6, 3, last_norm=True).double().train()(100 * torch.randn(8, 4, dtype=torch.float64))
    torch.testing.assert_close(found.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.var(0, unbiased=False), torch.ones(3, dtype=torch.float64), atol=1e-3, rtol=0)
