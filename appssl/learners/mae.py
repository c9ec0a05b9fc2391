"""MAE: most patches of an image are left out, a transformer encodes the others, a small one predicts what is missing.

With m_i = 1 for hidden patches, rec_i the prediction of patch i and n(x_i) its pixels normalized by their own mean and
unbiased variance + 1e-6 (or the pixels as they are):

    loss = sum_i m_i mean_pixels (rec_i - n(x_i))^2  /  sum_i m_i        over all images

Hidden patches do not pass the encoder; the decoder sees a learned mask token and a position in their place. Every
view is an image of its own.

Source: He et al., Masked autoencoders are scalable vision learners, CVPR 2022, arXiv 2111.06377, section 3 and appendix
A.1. Deviations: the decoder's prefix tokens have no position; blocks keep timm's initialization; a smaller momentum of
AdamW (betas 0.9, 0.95) cannot be set.
"""

from typing import Literal

import torch
from pydantic import Field
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from appssl.contracts import Batch, Context, Progress, Step
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
    shown_first,
    sine_positions,
    vision_transformer,
)
from appssl.settings import Settings

_EPSILON = 1e-6  # added to the variance of a patch's pixels


class Config(Settings):
    name: Literal["mae"] = "mae"
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of the patches that is hidden")
    normalize_pixels: bool = Field(
        True, description="predict the pixels of a patch normalized by its mean and variance"
    )
    fixed_positions: bool = Field(True, description="sine positions that are not trained; else those of the backbone")
    decoder_width: int = Field(512, ge=4, description="width of the decoder, divides by 4 and by its heads")
    decoder_blocks: int = Field(8, ge=1, description="transformer blocks of the decoder")
    decoder_heads: int = Field(16, ge=1, description="attention heads of the decoder")


class MAE(nn.Module):
    is_mean_over_samples = True
    positions: Tensor

    def __init__(self, config: Config, backbone: VisionTransformer, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.grid, self.sides = patch_grid(backbone, input_shape), patch_sides(backbone)
        num_patches = self.grid[0] * self.grid[1]
        self.num_hidden = num_patches - int(num_patches * (1 - config.mask_ratio))
        width = config.decoder_width
        if config.fixed_positions:
            fix_positions(backbone, self.grid)
        self.embed = nn.Linear(backbone.embed_dim, width)
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.register_buffer("positions", sine_positions(self.grid, width))
        blocks = [Block(width, config.decoder_heads, qkv_bias=True) for _ in range(config.decoder_blocks)]
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.predict = nn.Linear(width, input_shape[0] * self.sides[0] * self.sides[1])

    def forward(self, batch: Batch) -> Step:
        """Loss of `views`, each (B, *input_shape)."""
        images = torch.cat(batch["views"])
        mask = random_mask(len(images), self.grid[0] * self.grid[1], self.num_hidden, images.device)
        prediction = self.reconstruct(images, mask)
        target = pixels_of_patches(images, self.sides).float()
        if self.config.normalize_pixels:
            target = normalized_patches(target)
        return Step(masked_mean_square(prediction.float(), target, mask))

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predicted pixels (B, N, C * height * width) of all patches, from those that `mask` (B, N) does not hide.

        Every row of the mask hides `num_hidden` patches.
        """
        vit = self.backbone
        tokens = add_positions(vit, embed_patches(vit, images), self.grid)
        num_prefix = tokens.shape[1] - mask.shape[1]
        prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
        order = shown_first(mask)
        shown = at_places(patches, order[:, : mask.shape[1] - self.num_hidden])
        encoded = self.embed(encode(vit, torch.cat([prefix, shown], dim=1)))  # (B, P + shown, decoder width)
        hidden = self.mask_token.to(encoded.dtype).expand(len(images), self.num_hidden, -1)
        full = at_places(torch.cat([encoded[:, num_prefix:], hidden], dim=1), order.argsort(dim=1)) + self.positions
        decoded = self.decoder(torch.cat([encoded[:, :num_prefix].to(full.dtype), full], dim=1))
        prediction: Tensor = self.predict(decoded[:, num_prefix:])
        return prediction

    def after_update(self, progress: Progress) -> None:
        pass

    def export(self) -> nn.Module:
        return self.backbone


def fix_positions(vit: VisionTransformer, grid: tuple[int, int]) -> None:
    """Sine positions in place of learned ones; prefix tokens get zero."""
    assert vit.pos_embed is not None
    positions = sine_positions(grid, vit.embed_dim)
    with torch.no_grad():
        vit.pos_embed.zero_()
        vit.pos_embed[0, -len(positions) :] = positions
    vit.pos_embed.requires_grad_(False)


def normalized_patches(pixels: Tensor) -> Tensor:
    """(B, N, pixels) with mean 0 and unbiased variance 1 in every patch."""
    centered = pixels - pixels.mean(dim=2, keepdim=True)
    return centered / (pixels.var(dim=2, keepdim=True) + _EPSILON).sqrt()


def masked_mean_square(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over hidden patches of the mean squared error of their pixels, a scalar.

    Args:
        prediction, target: (B, N, pixels). mask: (B, N) bool, True for hidden, at least one.
    """
    of_patches = (prediction - target).square().mean(dim=2)
    return (of_patches * mask).sum() / mask.sum()


def build(config: Config, context: Context) -> MAE:
    """
    Raises:
        SettingsError: if the backbone is no vision transformer, the decoder's heads do not divide its width, or no
            patch would be shown or hidden.
    """
    vit = vision_transformer("learners/mae", context.backbone)
    if config.decoder_width % config.decoder_heads:
        raise SettingsError(
            f"learner.decoder_heads {config.decoder_heads} does not divide learner.decoder_width "
            f"{config.decoder_width}."
        )
    learner = MAE(config, vit, context.input_shape)
    num_patches = learner.grid[0] * learner.grid[1]
    if not 0 < learner.num_hidden < num_patches:
        raise SettingsError(
            f"learner.mask_ratio {config.mask_ratio} hides {learner.num_hidden} of {num_patches} patches; some must be "
            "hidden and some shown. Use smaller patches (backbone.options: {patch_size: 4}) or another ratio."
        )
    return learner
