"""Vision transformers seen as patch embedding, positions and blocks, for methods that hide patches.

A network is one of timm's VisionTransformer; N is its number of patches, in rows from the top left, D its width, P the
number of its prefix tokens (class token and registers).
"""

import math
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from appssl.errors import SettingsError

_LONGEST_RECTANGLE = math.log(3)  # of hidden rectangles: log of the longer side / the shorter one


def vision_transformer(name: str, backbone: nn.Module) -> VisionTransformer:
    """
    Args:
        name: of the method, for messages.
    Raises:
        SettingsError: if the backbone has no patch tokens that can be hidden.
    """
    if not isinstance(backbone, VisionTransformer) or backbone.attn_pool is not None or backbone.pos_embed is None:
        raise SettingsError(
            f"{name} needs the patches of a vision transformer; this backbone ({type(backbone).__name__}) has no patch "
            "tokens with positions. Set backbone: {name: timm, model: vit_tiny_patch16_224, options: {patch_size: 4}}."
        )
    return backbone


def patch_grid(vit: VisionTransformer, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of patches of an image (C, H, W)."""
    height, width = patch_sides(vit)
    return input_shape[1] // height, input_shape[2] // width


def patch_sides(vit: VisionTransformer) -> tuple[int, int]:
    sides: Any = vit.patch_embed.patch_size
    return int(sides[0]), int(sides[1])


def embed_patches(vit: VisionTransformer, images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, N, D), without positions."""
    patches: Tensor = vit.patch_embed(images)
    return patches.flatten(1, 2) if patches.ndim == 4 else patches  # (B, rows, columns, D) with dynamic_img_size


def add_positions(vit: VisionTransformer, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches (B, N, D) with positions, behind the prefix tokens: (B, P + N, D)."""
    shaped = patches.unflatten(1, grid) if vit.dynamic_img_size else patches
    tokens: Tensor = vit._pos_embed(shaped)  # the one place that knows all of timm's ways to place prefix tokens
    return tokens


def encode(vit: VisionTransformer, tokens: Tensor) -> Tensor:
    """Blocks and final normalization, which for averaged features is behind the pooling, on any number of tokens."""
    encoded: Tensor = vit.fc_norm(vit.norm(vit.blocks(vit.norm_pre(tokens))))
    return encoded


def pixels_of_patches(images: Tensor, sides: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, N, C * height * width): the values of each patch, channel after channel."""
    batch, channels = images.shape[:2]
    patches = images.unflatten(3, (-1, sides[1])).unflatten(2, (-1, sides[0]))  # (B, C, rows, height, columns, width)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * sides[0] * sides[1])


def shown_first(mask: Tensor) -> Tensor:
    """Places of every row, (B, N) int64: those that are not hidden, then the hidden ones, both in their order."""
    return mask.to(torch.uint8).argsort(dim=1, stable=True)


def at_places(tokens: Tensor, places: Tensor) -> Tensor:
    """Tokens (B, N, D) at places (B, M) int64 of their own row, (B, M, D)."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))


def random_mask(batch: int, num_places: int, num_hidden: int, device: torch.device) -> Tensor:
    """(batch, num_places) bool, True for hidden: `num_hidden` random places of every row."""
    order = torch.rand(batch, num_places, device=device).argsort(dim=1)
    mask = torch.zeros(batch, num_places, dtype=torch.bool, device=device)
    return mask.scatter(1, order[:, :num_hidden], True)


def random_rectangles(batch: int, grid: tuple[int, int], ratio: float, device: torch.device) -> Tensor:
    """(batch, N) bool, True for hidden: one rectangle of about `ratio` of the patches, sides up to 1 to 3, anywhere."""
    area = ratio * grid[0] * grid[1]
    aspect = torch.exp((2 * torch.rand(batch, device=device) - 1) * _LONGEST_RECTANGLE)
    inside = torch.ones(batch, 1, 1, dtype=torch.bool, device=device)
    for axis, (places, side) in enumerate(zip(grid, ((area * aspect).sqrt(), (area / aspect).sqrt()), strict=True)):
        length = side.round().clamp(1, places)
        start = (torch.rand(batch, device=device) * (places - length + 1)).floor()
        place = torch.arange(places, device=device)
        along = (place >= start[:, None]) & (place < (start + length)[:, None])
        inside = inside & (along[:, :, None] if axis == 0 else along[:, None, :])
    return inside.flatten(1)


def sine_positions(grid: tuple[int, int], width: int) -> Tensor:
    """(N, width): sines and cosines of row and column, each with width / 4 frequencies from 1 down to 1 / 10000.

    Source: He et al., MAE, arXiv 2111.06377, appendix A.1, after Vaswani et al., arXiv 1706.03762, section 3.5.
    Raises:
        SettingsError: if the width does not divide by 4.
    """
    if width % 4:
        raise SettingsError(f"sine positions need a width that divides by 4, it is {width}.")
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (rows, columns)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).float()
