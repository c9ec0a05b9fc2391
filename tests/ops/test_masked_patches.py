import math

import pytest
import timm
import torch
from torch import nn

from appssl.errors import SettingsError
from appssl.ops.masked_patches import (
    add_positions,
    at_places,
    embed_patches,
    encode,
    patch_grid,
    patch_sides,
    pixels_of_patches,
    random_mask,
    random_rectangles,
    shown_first,
    sine_positions,
    vision_transformer,
)

TINY = {"patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 0, "img_size": (16, 8)}


def vit(model="vit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    return timm.create_model(model, **{**TINY, **options}).eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_pool": "avg"},
        {"dynamic_img_size": True},
        {"reg_tokens": 2, "no_embed_class": True},
        {"class_token": False, "global_pool": "avg"},
        {"pre_norm": True},
    ],
)
def test_the_parts_together_are_the_network(options):
    net, images = vit(**options), torch.randn(3, 3, 16, 8)
    grid = patch_grid(net, (3, 16, 8))
    assert grid == (4, 2)
    tokens = encode(net, add_positions(net, embed_patches(net, images), grid))
    assert tokens.shape == (3, net.num_prefix_tokens + 8, 8)
    averaged = options.get("global_pool") == "avg"
    if not averaged:
        torch.testing.assert_close(tokens[:, 0], net(images))
    else:  # timm averages before its last normalization
        plain = net.blocks(add_positions(net, embed_patches(net, images), grid))[:, net.num_prefix_tokens :]
        torch.testing.assert_close(net.fc_norm(plain.mean(1)), net(images))


def test_pixels_of_a_patch_are_its_part_of_the_image_in_the_order_of_the_tokens():
    images = torch.randn(2, 3, 16, 8)
    found = pixels_of_patches(images, (4, 2))
    assert found.shape == (2, 16, 24)
    for row in range(4):
        for column in range(4):
            part = images[1, :, 4 * row : 4 * row + 4, 2 * column : 2 * column + 2]
            assert torch.equal(found[1, 4 * row + column], part.flatten())
    net = vit()
    weight = net.patch_embed.proj.weight.flatten(1)
    tokens = pixels_of_patches(images, patch_sides(net)) @ weight.T + net.patch_embed.proj.bias
    torch.testing.assert_close(tokens, embed_patches(net, images))


def test_a_random_mask_hides_the_same_number_everywhere_and_every_place_alike():
    torch.manual_seed(0)
    mask = random_mask(4000, 10, 3, torch.device("cpu"))
    assert mask.dtype == torch.bool
    assert (mask.sum(1) == 3).all()
    assert mask.float().mean(0).tolist() == pytest.approx([0.3] * 10, abs=0.04)
    order = shown_first(mask)
    assert not mask.gather(1, order)[:, :7].any()
    assert (order[:, :7].diff(dim=1) > 0).all()
    tokens = torch.arange(20.0).reshape(2, 5, 2)
    assert at_places(tokens, torch.tensor([[4, 0], [1, 1]])).tolist() == [[[8, 9], [0, 1]], [[12, 13], [12, 13]]]


@pytest.mark.parametrize("ratio", [0.3, 0.02, 0.9])
def test_rectangles_are_whole_of_about_the_area_and_anywhere(ratio):
    torch.manual_seed(0)
    mask = random_rectangles(3000, (10, 14), ratio, torch.device("cpu")).reshape(-1, 10, 14)
    rows, columns = mask.any(2), mask.any(1)
    assert torch.equal(mask, rows[:, :, None] & columns[:, None, :])
    for along in (rows, columns):  # no gaps: the value changes at most twice
        assert (along.int().diff(dim=1).abs().sum(1) <= 2).all()
    assert (mask.sum((1, 2)) > 0).all()
    if ratio == 0.3:
        assert mask.float().mean().item() == pytest.approx(0.3, abs=0.03)
        assert mask.any(0).all()
        assert not mask.all(0).any()


def test_sine_positions_written_out():
    found = sine_positions((2, 3), 8)
    for row in range(2):
        for column in range(3):
            expected = []
            for place in (row, column):
                for wave in (math.sin, math.cos):
                    expected += [wave(place * 10000 ** (-i / 2)) for i in range(2)]
            assert found[3 * row + column].tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(SettingsError, match="divides by 4, it is 6"):
        sine_positions((2, 2), 6)


def test_other_networks_are_refused():
    assert isinstance(vision_transformer("x", vit()), nn.Module)
    for other in (nn.Linear(2, 2), vit(pos_embed="none"), vit(global_pool="map")):
        with pytest.raises(SettingsError, match=r"learners/mae needs the patches .* model: vit_tiny_patch16_224"):
            vision_transformer("learners/mae", other)
