import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from appssl.backbones.small_cnn import Config, build
from appssl.contracts import Meta
from appssl.errors import DataError, SettingsError
from appssl.settings import validate
from tests.commands import environment

META = Meta(source="x", domain="webnoisy", task="classification")


def network(shape=(3, 32, 32), **values):
    torch.manual_seed(0)
    return build(Config(**values), shape, META)


def norm(x, layer):
    view = (1, -1, 1, 1)
    scaled = (x - layer.running_mean.view(view)) / torch.sqrt(layer.running_var.view(view) + layer.eps)
    return scaled * layer.weight.view(view) + layer.bias.view(view)


def conv(x, pair, stride):
    weight = pair[0].weight
    return norm(functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2), pair[1])


@pytest.mark.parametrize("widths", [(4, 6), (16, 20)])  # narrow networks take every other pixel in another way
def test_features_equal_residual_blocks_written_out(widths):
    net = network(widths=widths).eval()
    images = torch.randn(2, 3, 32, 32)
    x = conv(images, net.stem, 2).clamp(min=0)
    for block, stride in zip(net.stages, (1, 2), strict=True):
        inner = conv(conv(x, block.first, stride).clamp(min=0), block.second, 1)
        skip = x if stride == 1 else conv(x, block.skip if widths[0] == 16 else block.skip[1], stride)
        x = (inner + skip).clamp(min=0)
    torch.testing.assert_close(net(images), x.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)


def test_features_of_stages_are_the_means_of_their_maps():
    net, images = network().eval(), torch.randn(2, 3, 32, 32)
    maps = []
    for block in net.stages:
        block.register_forward_hook(lambda module, inputs, output: maps.append(output))
    found = net.stage_features(images)
    assert [tuple(stage.shape) for stage in found] == [(2, 32), (2, 64), (2, 128)]
    for stage, own in zip(found, maps, strict=True):
        torch.testing.assert_close(stage, own.sum(dim=(2, 3)) / own[0, 0].numel())
    assert torch.equal(found[-1], net(images))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 32, 48), (4, 33, 33), (3, 96, 96)])
def test_any_image_of_eight_pixels_or_more_gives_the_last_width(shape):
    net = network(shape)
    features = net(torch.randn(2, *shape))
    assert features.shape == (2, net.num_features) == (2, 128)
    assert torch.isfinite(features).all()


def test_memory_format_of_the_input_does_not_matter():
    net = network().eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(images), net(images.contiguous(memory_format=torch.channels_last)))


def test_it_has_the_size_that_is_stated():
    assert 0.2e6 < sum(p.numel() for p in network().parameters()) < 0.4e6


@pytest.mark.parametrize("shape", [(3, 7, 32), (9, 128), (64,)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(DataError, match=r"needs images .* of 8 pixels or more; these views have shape"):
        network(shape)


def test_widths_are_positive_and_at_least_one():
    with pytest.raises(SettingsError, match=r"widths\.1 is not valid: Input should be greater than 0 \(got 0\)"):
        validate(Config, {"widths": [8, 0]}, file="r.yaml", owner="backbones/small_cnn")
    with pytest.raises(SettingsError, match="widths is not valid: Tuple should have at least 1 item"):
        validate(Config, {"widths": []}, file="r.yaml", owner="backbones/small_cnn")


@pytest.mark.parametrize("widths", [(4, 8), (8, 16), (12, 24), (16, 32)])
def test_narrow_networks_and_odd_batches_do_not_damage_memory(widths):
    """In a process of its own: the library's fault that this is about ends the process."""
    script = f"""
import torch
from appssl.backbones.small_cnn import SmallCNN
torch.set_num_threads(2)
net = SmallCNN(3, {widths}).to(memory_format=torch.channels_last)
for count in (41, 57, 75, 83, 41, 57, 75, 83):
    net(torch.randn(count, 3, 32, 32)).sum().backward()
"""
    assert subprocess.run([sys.executable, "-c", script], env=environment(), check=False).returncode == 0
