"""Mugs: instances, groups of neighbors and clusters are told apart at once, by a student that follows its own teacher.

Three losses, over the two large crops t of the teacher and all crops s != t of the student. With unit vectors p_s
(student, behind a predictor) and y_t (teacher), and earlier y in a queue Q:

    contrast(t, s) = -log  exp(p_s y_t / tau) / ( exp(p_s y_t / tau) + sum_{n in Q} exp(p_s n / tau) )

    instance     contrast of the class tokens
    local group  contrast of r, with q the mean of all tokens before the last normalization, N_1 .. N_k the rows nearest
                 to q in a memory, and r = norm( block([q, N_1 .. N_k])[0] ), where the block has no positions
    group        H( softmax((g_t - c) / tau_t), softmax(g_s / tau_s) ), the cosines g of class tokens with prototypes

Each loss is half its mean over pairs of large crops, half that over pairs with a small one; their weighted mean is
minimized. The memory holds the mean normalized patch of the first crop of earlier images; student and teacher have one
each. c and tau_t are those of learners/dino. Teacher: m teacher + (1 - m) student after each step, m rising to 1; its
backbone is exported.

Source: Zhou et al., Mugs, 2022, arXiv 2203.14415, section 3. Official code: sail-sg/mugs, Apache-2.0. Deviations: the
student's large crops are those of the teacher, as with that code's option `vanilla_weak_augmentation`; a place of a
queue or memory that nothing has been stored in takes no part (there it holds a random vector), and memories fill
without gaps (there every batch leaves one of its size); weights of losses multiply (there only 0 matters); fewer
prototypes by default (65536 in the paper); the patch embedding learns as fast as the rest; what learners/dino deviates
in. Queues, memories and center are those of all processes.
"""

from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from timm.models.vision_transformer import Block, VisionTransformer, init_weights_vit_timm
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Batch, Context, Progress, Step
from appssl.errors import SettingsError
from appssl.ops.crop_pairs import cross_entropies, mean_over_crops, queue_contrast
from appssl.ops.distillation import moved_center, risen
from appssl.ops.ema import cosine_momentum, follow, teacher_of
from appssl.ops.masked_patches import add_positions, embed_patches, patch_grid, vision_transformer
from appssl.ops.memory import Memory
from appssl.ops.prototypes import PrototypeHead
from appssl.ops.view_batches import of_each_view
from appssl.settings import Settings


class Config(Settings):
    name: Literal["mugs"] = "mugs"
    instance_weight: float = Field(1.0, ge=0, description="of the loss on instances")
    local_weight: float = Field(1.0, ge=0, description="of the loss on local groups")
    group_weight: float = Field(1.0, ge=0, description="of the loss on prototypes")
    temperature: float = Field(0.2, gt=0, description="of both contrasts, tau in the paper")
    queue: int = Field(
        65536, ge=1, description="earlier embeddings of the teacher that are negatives, in each contrast"
    )
    memory: int = Field(65536, ge=1, description="earlier images among which neighbors are looked for")
    num_neighbors: int = Field(8, ge=0, description="neighbors in a local group, k in the paper; 0: the image alone")
    num_prototypes: int = Field(4096, ge=2, description="K in the paper, which has 65536; 512 to 4096 for small data")
    hidden: int = Field(2048, ge=1, description="width of the two hidden layers of all heads")
    bottleneck: int = Field(256, ge=1, description="width of the embeddings, and of the vector before the prototypes")
    predictor_hidden: int = Field(4096, ge=1, description="width of the hidden layer of both predictors")
    student_temperature: float = Field(0.1, gt=0, description="tau_s, of the loss on prototypes")
    teacher_temperature: float = Field(0.07, gt=0, description="tau_t after its warm-up")
    warmup_teacher_temperature: float = Field(0.04, gt=0, description="tau_t at the first step")
    teacher_warmup: float = Field(0.1, ge=0, le=1, description="share of the steps over which tau_t rises")
    center_momentum: float = Field(0.9, ge=0, lt=1, description="of the center c; larger ones follow more slowly")
    momentum: float = Field(0.996, ge=0, le=1, description="of the teacher at the first step, rising to 1")
    frozen_epochs: int = Field(1, ge=0, description="first epochs in which prototypes are not trained")

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if not self.instance_weight + self.local_weight + self.group_weight > 0:
            raise ValueError("one of instance_weight, local_weight and group_weight must be above 0")
        if self.num_neighbors > self.memory:
            raise ValueError("memory must have room for num_neighbors")
        return self


class Granules(NamedTuple):
    """What a branch makes of V crops of B images.

    Attributes:
        instance, local: unit embeddings (V, B, bottleneck). group: cosines with prototypes (V, B, K). patch: mean
        normalized patch of the first crop, (B, width).
    """

    instance: Tensor
    local: Tensor
    group: Tensor
    patch: Tensor


class Branch(nn.Module):
    """Student without predictors, or teacher."""

    def __init__(self, config: Config, backbone: VisionTransformer) -> None:
        super().__init__()
        c, width = config, backbone.embed_dim
        self.num_neighbors = c.num_neighbors
        self.backbone = backbone
        attention: Any = backbone.blocks[-1].attn
        self.relation = Block(width, attention.num_heads, qkv_bias=True)
        self.instance = perceptron(width, c.hidden, c.hidden, c.bottleneck)
        self.local = perceptron(width, c.hidden, c.hidden, c.bottleneck)
        for part in (self.relation, self.instance, self.local):
            part.apply(init_weights_vit_timm)
        self.group = PrototypeHead(width, c.hidden, c.bottleneck, c.num_prototypes)
        self.memory = Memory(c.memory, width)

    def forward(self, views: list[Tensor], is_frozen: Tensor | None = None) -> Granules:
        """Of crops (B, C, H, W) of any size; `is_frozen` as for PrototypeHead."""
        token, mean, patch = torch.stack(of_each_view(self.features, views)).unbind(2)  # each (V, B, D)
        local = self.local_group(mean.flatten(0, 1)).unflatten(0, mean.shape[:2])
        group = self.group(token, is_frozen=is_frozen)
        return Granules(unit(self.instance(token)), unit(self.local(local)), group, patch[0])

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, D): normalized class token, mean of all tokens before normalization, mean of normalized patches."""
        vit = self.backbone
        patches = embed_patches(vit, images)
        tokens = vit.blocks(vit.norm_pre(add_positions(vit, patches, patch_grid(vit, tuple(images.shape[1:])))))
        normalized = vit.norm(tokens)
        of_patches = normalized[:, vit.num_prefix_tokens :].mean(dim=1)
        return torch.stack([normalized[:, 0], tokens.mean(dim=1), of_patches], dim=1)

    def local_group(self, queries: Tensor) -> Tensor:
        """r (N, D) of queries q (N, D); no gradient flows into the neighbors."""
        neighbors, is_there = self.memory.nearest(queries.detach(), self.num_neighbors)
        sequence = torch.cat([queries[:, None], neighbors.to(queries.dtype)], dim=1)
        is_seen = functional.pad(is_there, (1, 0), value=True)[:, None, None]  # (N, heads, from, to)
        group: Tensor = self.backbone.norm(self.relation(sequence, attn_mask=is_seen)[:, 0])
        return group


class Mugs(nn.Module):
    teacher_temperature: Tensor
    center: Tensor
    epoch: Tensor

    def __init__(self, config: Config, backbone: VisionTransformer) -> None:
        super().__init__()
        c = self.config = config
        self.student = Branch(c, backbone)
        self.teacher = teacher_of(self.student)
        self.instance_predictor = perceptron(c.bottleneck, c.predictor_hidden, c.bottleneck)
        self.local_predictor = perceptron(c.bottleneck, c.predictor_hidden, c.bottleneck)
        self.instance_queue = Memory(c.queue, c.bottleneck)
        self.local_queue = Memory(c.queue, c.bottleneck)
        self.register_buffer("center", torch.zeros(c.num_prototypes))
        self.register_buffer("teacher_temperature", torch.tensor(temperature_at(c, 0, 1)))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> "Mugs":
        """The teacher has no stochastic depth."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> Step:
        """Loss of `views`: two large crops (B, *input_shape), then any number of others of any size."""
        c, views = self.config, batch["views"]
        student = self.student(views, is_frozen=self.epoch < c.frozen_epochs)
        instance, local = unit(self.instance_predictor(student.instance)), unit(self.local_predictor(student.local))
        with torch.no_grad():
            teacher = self.teacher(views[:2])
            targets = ((teacher.group - self.center) / self.teacher_temperature).softmax(dim=2)
        with torch.autocast(device_type=instance.device.type, enabled=False):
            of_instances = queue_contrast(instance, teacher.instance, self.instance_queue, temperature=c.temperature)
            of_locals = queue_contrast(local, teacher.local, self.local_queue, temperature=c.temperature)
            of_groups = cross_entropies(student.group, targets, temperature=c.student_temperature)
        if self.training:
            self._remember(student, teacher)
        losses = [mean_over_crops(pairs) for pairs in (of_instances, of_locals, of_groups)]
        weights = (c.instance_weight, c.local_weight, c.group_weight)
        total = torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum() / sum(weights)
        names = ("loss_instance", "loss_local", "loss_group")
        metrics = {name: loss.detach() for name, loss in zip(names, losses, strict=True)}
        return Step(total, {**metrics, "teacher_entropy": torch.special.entr(targets).sum(dim=2).mean()})

    @torch.no_grad()
    def _remember(self, student: Granules, teacher: Granules) -> None:
        """Both crops of the teacher become negatives, image by image; the first crop of each a candidate neighbor."""
        self.instance_queue.add(teacher.instance.transpose(0, 1).flatten(0, 1))
        self.local_queue.add(teacher.local.transpose(0, 1).flatten(0, 1))
        self.student.memory.add(student.patch)
        self.teacher.memory.add(teacher.patch)
        self.center.copy_(moved_center(self.center, teacher.group, self.config.center_momentum))

    @torch.no_grad()
    def after_update(self, progress: Progress) -> None:
        self.student.group.normalize_prototypes()
        follow(self.teacher, self.student, cosine_momentum(self.config.momentum, progress.step - 1, progress.num_steps))
        self.teacher_temperature.fill_(temperature_at(self.config, progress.step, progress.num_steps))
        self.epoch.fill_(progress.next_epoch)

    def export(self) -> nn.Module:
        return self.teacher.backbone


def unit(embeddings: Tensor) -> Tensor:
    """Unit vectors along the last dimension, in float32 or better."""
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    return functional.normalize(embeddings.to(dtype), dim=-1)


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers without biases, and GELU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=False), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def temperature_at(config: Config, step: int, num_steps: int) -> float:
    """tau_t for the step after `step` are done."""
    first, last = config.warmup_teacher_temperature, config.teacher_temperature
    return risen(first, last, step, config.teacher_warmup * num_steps)


def build(config: Config, context: Context) -> Mugs:
    """
    Raises:
        SettingsError: if there is only one view, or the backbone is no vision transformer whose features are those of
            its class token.
    """
    if context.num_views < 2:
        raise SettingsError("learners/mugs needs two or more views: set views: multi_crop, or num_views: 2.")
    vit = vision_transformer("learners/mugs", context.backbone)
    if vit.cls_token is None or vit.global_pool != "token":
        raise SettingsError(
            f"learners/mugs trains the class token, and the features of this backbone are others (global_pool: "
            f"{vit.global_pool}). Set backbone.options: {{class_token: true, global_pool: token}}."
        )
    return Mugs(config, vit)
