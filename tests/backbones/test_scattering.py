import pytest
import torch
from torch.nn import functional

from appssl.backbones.scattering import Config, build
from appssl.contracts import Meta
from appssl.errors import DataError, SettingsError
from appssl.ops.scattering import filter_bank, scatter
from appssl.settings import validate

META = Meta(source="x", domain="webnoisy", task="classification")
SMALL = {"scales": 2, "angles": 2, "stem": 5, "widths": (6, 8), "blocks": (2, 1), "pool": 2}


def network(shape=(3, 16, 16), **values):
    torch.manual_seed(0)
    return build(validate(Config, values, file="r.yaml", owner="backbones/scattering"), shape, META)


def images(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def size(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def conv(x, pair):
    weight, layer = pair[0].weight, pair[1]
    x = functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
    mean, var, scale, shift = (
        v.view(1, -1, 1, 1) for v in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    )
    return (x - mean) / torch.sqrt(var + layer.eps) * scale + shift


def test_maps_are_those_of_each_channel_with_mirrored_borders():
    net, given = network((3, 16, 24), **SMALL), images(2, 3, 16, 24)
    assert net.maps(given).shape == (2, 3 * 9, 4, 6)
    rows = [*range(4, 0, -1), *range(16), *range(14, 10, -1)]
    columns = [*range(4, 0, -1), *range(24), *range(22, 18, -1)]
    bank = filter_bank(24, 32, scales=2, angles=2)
    for image, found in zip(given, net.maps(given), strict=True):
        expected = [scatter(channel[rows][:, columns].double()[None], bank)[0, :, 1:-1, 1:-1] for channel in image]
        torch.testing.assert_close(found, torch.cat(expected).float(), rtol=1e-4, atol=1e-6)


def test_features_equal_the_adapter_written_out():
    net, given = network(**SMALL).eval(), images(2, 3, 16, 16)
    x = conv(net.maps(given), net.adapter[0]).clamp(min=0)
    for block, changes in zip(net.adapter[2:], (True, False, True), strict=True):
        inner = conv(conv(x, block.first).clamp(min=0), block.second)
        x = (inner + (conv(x, block.skip) if changes else x)).clamp(min=0)
    pooled = torch.stack(
        [torch.stack([x[:, :, r : r + 2, c : c + 2].mean((2, 3)) for c in (0, 2)], 2) for r in (0, 2)], 2
    )
    assert net.num_features == 8 * 4
    torch.testing.assert_close(net(given), pooled.flatten(1), rtol=1e-4, atol=1e-5)


def test_the_adapters_of_the_paper_have_their_number_of_parameters():
    eight = network((3, 32, 32))
    assert eight.num_features == 2048
    assert size(eight) == 1_645_856
    sixteen = network((3, 32, 32), stem=256, widths=[128, 64, 128], blocks=[6, 4, 6])
    projector = 4_458_624
    assert size(sixteen) + projector == 10_458_112
    assert sixteen.num_features == 2048


def test_nothing_of_the_front_end_is_trained_or_stored_or_passes_a_gradient():
    net, given = network(**SMALL), images(4, 3, 16, 16).requires_grad_(True)
    net(given).square().sum().backward()
    assert given.grad is None
    assert not net.psi.requires_grad
    assert not {"psi", "rows", "columns"} & set(net.state_dict())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_maps_can_be_standardized_without_new_parameters():
    plain, standardized = network(**SMALL), network(**SMALL, standardize=True)
    assert size(plain) == size(standardized)
    maps = standardized.norm(plain.maps(images(8, 3, 16, 16)))
    torch.testing.assert_close(maps.mean((0, 2, 3)), torch.zeros(27), rtol=0, atol=1e-5)
    raw = plain.maps(images(8, 3, 16, 16)).var((0, 2, 3), correction=0)
    torch.testing.assert_close(maps.var((0, 2, 3), correction=0), raw / (raw + 1e-5), rtol=1e-4, atol=1e-5)


def test_half_precision_does_not_reach_the_filters():
    net, given = network(**SMALL).eval(), images(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.maps(given), network(**SMALL).maps(given))
        features = net(given)
    torch.testing.assert_close(features.float(), net(given), rtol=0.05, atol=0.05)
    assert net.maps(given.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(3, 18, 16), (3, 4, 16), (9, 128)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(DataError, match=r"multiples of 2\^scales = 4, 8 or more; these views have shape"):
        network(shape, **SMALL)


def test_every_stage_needs_a_width_and_a_number_of_blocks():
    with pytest.raises(SettingsError, match="widths names 1 stages and blocks 2"):
        network(widths=[8], blocks=[1, 1])
