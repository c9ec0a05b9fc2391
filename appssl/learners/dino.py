"""DINO: a student predicts, from every crop, the prototype distribution that a following teacher has of a large crop.

With student and teacher logits s, t (B, K) of prototypes, the center c of the teacher's logits, and H(p, q) the
cross-entropy, over the two large crops a and all crops v:

    loss = mean over (a, v != a) and images of  H( softmax((t_a - c) / tau_t), softmax(s_v / tau_s) )
    c <- 0.9 c + 0.1 mean(t)        teacher <- m teacher + (1 - m) student after each step

The head is a perceptron with a bottleneck, a unit vector times unit prototypes. tau_t rises linearly over the first
steps, m along a cosine to 1, and prototypes are not trained during the first epoch. The teacher's backbone is exported.

Source: Caron et al., DINO, ICCV 2021, arXiv 2104.14294, equations 1 to 3 and section 3.1 (head: appendix C).
Deviations: fewer prototypes by default (65536 in the paper); tau_t rises by step, over a share of the training; no
schedule of the weight decay; gradients are clipped over the whole network (`fit.clip_norm: 3`), not per layer; the
first two views are the large crops. The center is over the batches of all processes.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from appssl.contracts import Batch, Context, Progress, Step
from appssl.errors import SettingsError
from appssl.ops.distillation import cross_entropy_of_crops, moved_center, risen
from appssl.ops.ema import cosine_momentum, follow, teacher_of
from appssl.ops.prototypes import PrototypeHead
from appssl.ops.view_batches import of_each_view
from appssl.settings import Settings


class Config(Settings):
    name: Literal["dino"] = "dino"
    num_prototypes: int = Field(4096, ge=2, description="K in the paper, which has 65536; 1024 to 4096 for small data")
    hidden: int = Field(2048, ge=1, description="width of the two hidden layers of the head")
    bottleneck: int = Field(256, ge=1, description="width of the unit vector before the prototypes")
    student_temperature: float = Field(0.1, gt=0, description="tau_s in the paper")
    teacher_temperature: float = Field(0.07, gt=0, description="tau_t in the paper, after its warm-up")
    warmup_teacher_temperature: float = Field(0.04, gt=0, description="tau_t at the first step")
    teacher_warmup: float = Field(0.3, ge=0, le=1, description="share of the steps over which tau_t rises")
    center_momentum: float = Field(0.9, ge=0, lt=1, description="of the center c; larger ones follow more slowly")
    momentum: float = Field(0.996, ge=0, le=1, description="of the teacher at the first step, rising to 1")
    frozen_epochs: int = Field(1, ge=0, description="first epochs in which prototypes are not trained")


class DINO(nn.Module):
    teacher_temperature: Tensor
    center: Tensor
    epoch: Tensor

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.head = PrototypeHead(width, config.hidden, config.bottleneck, config.num_prototypes)
        self.teacher_backbone = teacher_of(backbone)
        self.teacher_head = teacher_of(self.head)
        self.register_buffer("center", torch.zeros(config.num_prototypes))
        self.register_buffer("teacher_temperature", torch.tensor(temperature_at(config, 0, 1)))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> Step:
        """Loss of `views`: two large crops (B, *input_shape), then any number of others of any size."""
        views = batch["views"]
        is_frozen = self.epoch < self.config.frozen_epochs
        student = of_each_view(lambda images: self.head(self.backbone(images), is_frozen=is_frozen), views)
        with torch.no_grad():
            teacher = of_each_view(lambda images: self.teacher_head(self.teacher_backbone(images)), views[:2])
            targets = [((t - self.center) / self.teacher_temperature).softmax(dim=1) for t in teacher]
            if self.training:
                self.center.copy_(moved_center(self.center, torch.stack(teacher), self.config.center_momentum))
        loss = cross_entropy_of_crops(student, targets, temperature=self.config.student_temperature)
        entropy = torch.special.entr(torch.stack(targets)).sum(dim=-1).mean()
        return Step(loss, {"teacher_entropy": entropy})

    @torch.no_grad()
    def after_update(self, progress: Progress) -> None:
        self.head.normalize_prototypes()
        momentum = cosine_momentum(self.config.momentum, progress.step - 1, progress.num_steps)
        follow(self.teacher_backbone, self.backbone, momentum)
        follow(self.teacher_head, self.head, momentum)
        self.teacher_temperature.fill_(temperature_at(self.config, progress.step, progress.num_steps))
        self.epoch.fill_(progress.next_epoch)

    def export(self) -> nn.Module:
        return self.teacher_backbone


def temperature_at(config: Config, step: int, num_steps: int) -> float:
    """tau_t for the step after `step` are done."""
    first, last = config.warmup_teacher_temperature, config.teacher_temperature
    return risen(first, last, step, config.teacher_warmup * num_steps)


def build(config: Config, context: Context) -> DINO:
    """
    Raises:
        SettingsError: if there is only one view.
    """
    if context.num_views < 2:
        raise SettingsError("learners/dino needs two or more views: set views: multi_crop, or num_views: 2.")
    return DINO(config, context.backbone)
