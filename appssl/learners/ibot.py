"""iBOT: DINO on the class token, and the same for hidden patches, whose teacher sees the whole crop.

With DINO's loss on class tokens (learners/dino), and for the two large crops u, hidden patches i of each image, student
logits s_i of the crop with hidden patches and teacher logits t_i of the whole crop:

    h_i = H( softmax((t_i - c_p) / tau_p), softmax(s_i / tau_s) )
    loss = w_1 DINO + w_2 1/2 sum_u  mean over images of  (mean over its hidden patches of h_i)

An image without hidden patches counts 0 in the mean. Class tokens and patches share one head, and each has a center.
The teacher's backbone is exported.

Source: Zhou et al., iBOT, ICLR 2022, arXiv 2111.07832, equations 2 and 3 and section 4.1. Deviations: one rectangle is
hidden in a crop, in place of several up to the same area; fewer prototypes by default (8192 in the paper); what
learners/dino deviates in. The centers are over the batches of all processes.
"""

from typing import Literal

import torch
from pydantic import Field
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from appssl.contracts import Batch, Context, Progress, Step
from appssl.errors import SettingsError
from appssl.ops.distillation import cross_entropy_of_crops, moved_center, risen
from appssl.ops.ema import cosine_momentum, follow, teacher_of
from appssl.ops.masked_patches import (
    add_positions,
    embed_patches,
    encode,
    patch_grid,
    random_rectangles,
    vision_transformer,
)
from appssl.ops.prototypes import PrototypeHead
from appssl.ops.view_batches import of_each_view
from appssl.settings import Settings


class Config(Settings):
    name: Literal["ibot"] = "ibot"
    num_prototypes: int = Field(4096, ge=2, description="K in the paper, which has 8192")
    hidden: int = Field(2048, ge=1, description="width of the two hidden layers of the head")
    bottleneck: int = Field(256, ge=1, description="width of the unit vector before the prototypes")
    student_temperature: float = Field(0.1, gt=0, description="tau_s in the paper")
    teacher_temperature: float = Field(0.04, gt=0, description="of class tokens")
    patch_temperature: float = Field(0.07, gt=0, description="of the teacher's patches after warm-up, tau_p")
    warmup_patch_temperature: float = Field(0.04, gt=0, description="of the teacher's patches at the first step")
    teacher_warmup: float = Field(0.3, ge=0, le=1, description="share of the steps over which tau_p rises")
    mask_ratio: float = Field(0.3, gt=0, lt=1, description="share of a crop's patches that is hidden, where any is")
    mask_probability: float = Field(0.5, gt=0, le=1, description="share of the large crops with hidden patches")
    center_momentum: float = Field(0.9, ge=0, lt=1, description="of both centers; larger ones follow more slowly")
    momentum: float = Field(0.996, ge=0, le=1, description="of the teacher at the first step, rising to 1")
    class_weight: float = Field(1.0, ge=0, description="of the loss on class tokens, w_1")
    patch_weight: float = Field(1.0, ge=0, description="of the loss on hidden patches, w_2")
    frozen_epochs: int = Field(1, ge=0, description="first epochs in which prototypes are not trained")


class IBOT(nn.Module):
    center: Tensor
    patch_center: Tensor
    patch_temperature: Tensor
    epoch: Tensor

    def __init__(self, config: Config, backbone: VisionTransformer, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.grid = patch_grid(backbone, input_shape)
        self.mask_token = nn.Parameter(torch.zeros(backbone.embed_dim))
        self.head = PrototypeHead(backbone.embed_dim, config.hidden, config.bottleneck, config.num_prototypes)
        self.teacher_backbone = teacher_of(backbone)
        self.teacher_head = teacher_of(self.head)
        self.register_buffer("center", torch.zeros(config.num_prototypes))
        self.register_buffer("patch_center", torch.zeros(config.num_prototypes))
        self.register_buffer("patch_temperature", torch.tensor(self._patch_temperature_at(0, 1)))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> Step:
        """Loss of `views`: two large crops (B, *input_shape), then any number of others of any size."""
        views = batch["views"]
        mask = random_rectangles(2 * len(views[0]), self.grid, self.config.mask_ratio, views[0].device)
        mask &= torch.rand(len(mask), 1, device=mask.device) < self.config.mask_probability
        return self.step(views, mask)

    def step(self, views: list[Tensor], mask: Tensor) -> Step:
        """
        Args:
            mask: (2 B, N) bool, True for hidden patches of the two large crops.
        """
        c, is_frozen = self.config, self.epoch < self.config.frozen_epochs
        large = torch.cat(views[:2])
        seen = self.head(self._tokens(large, mask), is_frozen=is_frozen)  # (2 B, 1 + N, K)
        small = of_each_view(lambda images: self.head(self._class_token(images), is_frozen=is_frozen), views[2:])
        with torch.no_grad():
            whole = self.teacher_head(class_and_patches(self.teacher_backbone, large, None, self.mask_token))
            targets = ((whole[:, 0] - self.center) / c.teacher_temperature).softmax(dim=1)
            patch_targets = ((whole[:, 1:] - self.patch_center) / self.patch_temperature).softmax(dim=2)
            if self.training:
                self.center.copy_(moved_center(self.center, whole[:, 0], c.center_momentum))
                self.patch_center.copy_(moved_center(self.patch_center, whole[:, 1:], c.center_momentum))
        of_class = cross_entropy_of_crops(
            [*seen[:, 0].chunk(2), *small], list(targets.chunk(2)), temperature=c.student_temperature
        )
        of_patches = hidden_cross_entropy(seen[:, 1:], patch_targets, mask, temperature=c.student_temperature)
        loss = c.class_weight * of_class + c.patch_weight * of_patches
        return Step(loss, {"loss_class": of_class.detach(), "loss_patches": of_patches.detach()})

    def _tokens(self, images: Tensor, mask: Tensor) -> Tensor:
        return class_and_patches(self.backbone, images, mask, self.mask_token)

    def _class_token(self, images: Tensor) -> Tensor:
        return class_and_patches(self.backbone, images, None, self.mask_token)[:, 0]

    @torch.no_grad()
    def after_update(self, progress: Progress) -> None:
        self.head.normalize_prototypes()
        momentum = cosine_momentum(self.config.momentum, progress.step - 1, progress.num_steps)
        follow(self.teacher_backbone, self.backbone, momentum)
        follow(self.teacher_head, self.head, momentum)
        self.patch_temperature.fill_(self._patch_temperature_at(progress.step, progress.num_steps))
        self.epoch.fill_(progress.next_epoch)

    def _patch_temperature_at(self, step: int, num_steps: int) -> float:
        c = self.config
        return risen(c.warmup_patch_temperature, c.patch_temperature, step, c.teacher_warmup * num_steps)

    def export(self) -> nn.Module:
        return self.teacher_backbone


def class_and_patches(vit: VisionTransformer, images: Tensor, mask: Tensor | None, mask_token: Tensor) -> Tensor:
    """Encoded class token and patches (B, 1 + N, D) of images of any size; patches in `mask` (B, N) are not seen."""
    patches = embed_patches(vit, images)
    if mask is not None:
        patches = torch.where(mask[..., None], mask_token.to(patches.dtype), patches)
    tokens = encode(vit, add_positions(vit, patches, patch_grid(vit, tuple(images.shape[1:]))))
    return torch.cat([tokens[:, :1], tokens[:, vit.num_prefix_tokens :]], dim=1)


def hidden_cross_entropy(predicted: Tensor, targets: Tensor, mask: Tensor, *, temperature: float) -> Tensor:
    """Mean over images of the mean cross-entropy of their hidden patches, 0 for images without.

    Args:
        predicted: logits (B, N, K) float32 or better. targets: distributions (B, N, K). mask: (B, N) bool.
    """
    of_patches = -(targets.detach() * (predicted / temperature).log_softmax(dim=2)).sum(dim=2)
    return ((of_patches * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()


def build(config: Config, context: Context) -> IBOT:
    """
    Raises:
        SettingsError: if there is only one view, or the backbone is no vision transformer with a class token.
    """
    if context.num_views < 2:
        raise SettingsError("learners/ibot needs two or more views: set views: multi_crop, or num_views: 2.")
    vit = vision_transformer("learners/ibot", context.backbone)
    if vit.cls_token is None:
        raise SettingsError("learners/ibot needs a class token, and this backbone has none. Choose another model.")
    return IBOT(config, vit, context.input_shape)
