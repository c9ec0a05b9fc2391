"""SimMIM: squares of an image are replaced by a mask token, and a linear head predicts their pixels.

With M = 1 for every hidden pixel of C channels, over all images:

    loss = sum M |rec - x|  /  (sum M + 1e-5)  /  C

Hidden patches pass the encoder as mask tokens, with their positions. Every view is an image of its own.

Source: Xie et al., SimMIM, CVPR 2022, arXiv 2111.09886, section 3. Deviations: the constant 1e-5 is that of the
official code; the unit of hiding is given in patches, not in pixels (32 in the paper); positions are those of the
backbone, there is no relative position bias.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from appssl.contracts import Batch, Context, Progress, Step
from appssl.errors import SettingsError
from appssl.ops.masked_patches import (
    add_positions,
    embed_patches,
    encode,
    patch_grid,
    patch_sides,
    pixels_of_patches,
    random_mask,
    vision_transformer,
)
from appssl.settings import Settings

_EPSILON = 1e-5  # added to the number of hidden pixels of one channel


class Config(Settings):
    name: Literal["simmim"] = "simmim"
    mask_ratio: float = Field(0.6, gt=0, lt=1, description="share of the squares that is hidden")
    mask_unit: int = Field(2, ge=1, description="side of a hidden square, patches (32 pixels in the paper)")


class SimMIM(nn.Module):
    is_mean_over_samples = True

    def __init__(self, config: Config, backbone: VisionTransformer, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.channels = input_shape[0]
        self.grid, self.sides = patch_grid(backbone, input_shape), patch_sides(backbone)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(backbone.embed_dim), std=0.02))
        self.predict = nn.Linear(backbone.embed_dim, self.channels * self.sides[0] * self.sides[1])

    def forward(self, batch: Batch) -> Step:
        """Loss of `views`, each (B, *input_shape)."""
        images = torch.cat(batch["views"])
        mask = random_squares(len(images), self.grid, self.config.mask_unit, self.config.mask_ratio, images.device)
        prediction = self.reconstruct(images, mask)
        target = pixels_of_patches(images, self.sides)
        return Step(masked_mean_absolute(prediction.float(), target.float(), mask, channels=self.channels))

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predicted pixels (B, N, C * height * width) of all patches; those in `mask` (B, N) are not seen."""
        vit = self.backbone
        patches = embed_patches(vit, images)
        seen = torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches)
        tokens = encode(vit, add_positions(vit, seen, self.grid))
        prediction: Tensor = self.predict(tokens[:, tokens.shape[1] - mask.shape[1] :])
        return prediction

    def after_update(self, progress: Progress) -> None:
        pass

    def export(self) -> nn.Module:
        return self.backbone


def random_squares(batch: int, grid: tuple[int, int], unit: int, ratio: float, device: torch.device) -> Tensor:
    """(batch, rows * columns) bool, True for hidden: squares of unit x unit patches, the share rounded up."""
    rows, columns = grid[0] // unit, grid[1] // unit
    squares = random_mask(batch, rows * columns, math.ceil(rows * columns * ratio), device)
    wide = squares.unflatten(1, (rows, columns)).repeat_interleave(unit, dim=1).repeat_interleave(unit, dim=2)
    return wide.flatten(1)


def masked_mean_absolute(prediction: Tensor, target: Tensor, mask: Tensor, *, channels: int) -> Tensor:
    """Mean absolute error of the values of hidden patches, a scalar.

    Args:
        prediction, target: (B, N, channels * pixels). mask: (B, N) bool, True for hidden.
    """
    num_pixels = mask.sum() * (target.shape[2] // channels)
    return ((prediction - target).abs() * mask[..., None]).sum() / (num_pixels + _EPSILON) / channels


def build(config: Config, context: Context) -> SimMIM:
    """
    Raises:
        SettingsError: if the backbone is no vision transformer, or its patches do not divide into squares of which some
            stay visible.
    """
    vit = vision_transformer("learners/simmim", context.backbone)
    learner = SimMIM(config, vit, context.input_shape)
    rows, columns = learner.grid
    unit = config.mask_unit
    if rows % unit or columns % unit:
        raise SettingsError(
            f"learner.mask_unit {unit} does not divide the {rows} x {columns} patches of an image. Set it to 1, or use "
            "smaller patches (backbone.options: {patch_size: 4})."
        )
    num_squares = rows * columns // unit**2
    if math.ceil(num_squares * config.mask_ratio) >= num_squares:
        raise SettingsError(
            f"learner.mask_ratio {config.mask_ratio} hides all {num_squares} squares of an image. Set a smaller "
            "mask_unit, or use smaller patches."
        )
    return learner
