import pytest
import torch
from torch.nn import functional

from appssl.backbones.cnn1d import Config, build
from appssl.contracts import Meta
from appssl.errors import DataError, SettingsError
from appssl.settings import validate

META = Meta(source="x", domain="wearable", task="classification")


def network(shape=(6, 50), **values):
    torch.manual_seed(0)
    return build(Config(**values), shape, META)


def norm(x, layer):
    view = (1, -1, 1)
    return (x - layer.running_mean.view(view)) / torch.sqrt(layer.running_var.view(view) + layer.eps)


def test_features_equal_residual_blocks_written_out():
    net = network(widths=(4, 5), kernel=3, stride=2).eval()
    signals = torch.randn(2, 6, 50)
    x = signals
    for block in net.blocks:
        hidden = functional.gelu(norm(functional.conv1d(x, block.first.weight, stride=2, padding=1), block.first_norm))
        hidden = norm(functional.conv1d(hidden, block.second.weight, padding=1), block.second_norm)
        x = functional.gelu(hidden + functional.conv1d(x, block.skip.weight, stride=2))
    torch.testing.assert_close(net(signals), x.mean(2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 7, 50, 501])
@pytest.mark.parametrize("stride", [1, 2, 8])
def test_any_length_gives_the_last_width(length, stride):
    net = network((6, length), stride=stride).eval()
    features = net(torch.randn(3, 6, length))
    assert features.shape == (3, net.num_features) == (3, 128)
    assert torch.isfinite(features).all()


def test_a_constant_shift_in_time_changes_little_by_the_global_average():
    net = network((1, 256), widths=(8,), stride=1).eval()
    signal = torch.sin(torch.arange(256) * 2 * torch.pi / 16).view(1, 1, -1)  # 16 whole periods
    torch.testing.assert_close(net(signal), net(signal.roll(5, dims=2)), rtol=0.1, atol=0.02)  # the borders differ


@pytest.mark.parametrize("shape", [(3, 32, 32), (64,)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(DataError, match=r"needs signals \(C, T\); these views have shape"):
        network(shape)


def test_an_even_kernel_and_a_width_of_zero_are_found_when_the_recipe_is_checked():
    with pytest.raises(SettingsError) as caught:
        validate(Config, {"kernel": 4, "widths": [0]}, file="r.yaml", owner="backbones/cnn1d")
    assert "kernel is not valid: must be odd" in str(caught.value)
    assert "widths.0 is not valid: Input should be greater than 0 (got 0)" in str(caught.value)
