import pytest
import torch
from torch import nn

from appssl.ops.prototypes import PrototypeHead


def head():
    torch.manual_seed(0)
    made = PrototypeHead(5, 7, 4, 6)
    for layer in made.layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return made.double()


def test_logits_are_cosines_of_the_perceptron_with_prototypes():
    made, x = head().requires_grad_(False), torch.randn(3, 5, dtype=torch.float64)
    first, _, second, _, third = made.layers
    gelu = lambda h: h * (1 + torch.erf(h / 2**0.5)) / 2  # noqa: E731
    h = gelu(gelu(x @ first.weight.T + first.bias) @ second.weight.T + second.bias) @ third.weight.T + third.bias
    for i in range(3):
        for k in range(6):
            p = made.prototypes[k]
            assert float(made(x)[i, k]) == pytest.approx(float(h[i] @ p / h[i].norm() / p.norm()), rel=1e-9)


def test_the_length_of_prototypes_does_not_matter_and_is_made_one():
    made, x = head(), torch.randn(3, 5, dtype=torch.float64)
    before = made(x)
    with torch.no_grad():
        made.prototypes *= 7
    torch.testing.assert_close(made(x), before)
    made.normalize_prototypes()
    torch.testing.assert_close(made.prototypes.norm(dim=1), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("is_frozen", [True, False])
def test_frozen_prototypes_have_the_gradient_zero_and_the_rest_has_its_own(is_frozen):
    made = head()
    made(torch.randn(3, 5, dtype=torch.float64), is_frozen=torch.tensor(is_frozen)).square().sum().backward()
    assert (made.prototypes.grad.abs().sum() == 0) == is_frozen
    assert made.layers[0].weight.grad.abs().sum() > 0


def test_tokens_and_half_precision():
    made = head().float()
    x = torch.randn(2, 9, 5)
    torch.testing.assert_close(made(x)[1], made(x[1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made(x).dtype == torch.float32
