"""Co-teaching: two networks, each trained on the samples whose loss the other finds small.

With losses a_i and b_i of the two networks for a batch of B samples and the share R kept in epoch T = 0, 1, ...:

    R = 1 - tau min(T / T_k, 1)
    A = the floor(R B) samples of smallest a_i (at least one),    B' = those of smallest b_i
    L = mean_{i in B'} a_i + mean_{i in A} b_i

Deep networks learn right labels before wrong ones, and the two make different mistakes, so that what one takes for
right by mistake is not confirmed by itself. The first network is exported.

Source: Han et al., Co-teaching, NeurIPS 2018, arXiv 1804.06872, algorithm 1. Official code: bhanML/Co-teaching, no
licence; none of it is used. Deviations: from a pretrained encoder both networks start with it and differ in their
classifiers only (`second: copy`); weights of samples multiply losses, not the choice. With several devices each chooses
from its own part of the batch.
"""

import copy
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Batch, Context, Progress, Step
from appssl.ops.classify import Classifier, slower_encoder
from appssl.settings import Settings

_ROUNDING = 1e-6  # 0.3 * 10 is 3 samples also where 0.3 is 1 - 0.7


class Config(Settings):
    name: Literal["co_teaching"] = "co_teaching"
    noise_rate: float = Field(0.2, ge=0, lt=1, description="share of samples left out in the end, tau: of wrong labels")
    ramp_epochs: float = Field(10.0, gt=0, description="epochs until that share is reached, T_k")
    second: Literal["copy", "fresh"] = Field(
        "copy",
        description="second encoder: a copy of the given one, or initialized anew; fresh without a pretrained one",
    )
    backbone_lr_scale: float = Field(1.0, ge=0, description="learning rate of the encoders / that of the classifiers")


class CoTeaching(nn.Module):
    kept: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        width, num_classes = int(context.backbone.num_features), len(context.meta.classes)  # type: ignore[arg-type]
        self.backbone = context.backbone.requires_grad_(True)
        self.second_backbone = copy.deepcopy(self.backbone)
        if config.second == "fresh":
            initialize_anew(self.second_backbone)
        self.head, self.second_head = nn.Linear(width, num_classes), nn.Linear(width, num_classes)
        self.register_buffer("kept", torch.ones((), dtype=torch.float64))  # R

    def param_groups(self) -> list[dict[str, Any]]:
        return slower_encoder(
            [self.backbone, self.second_backbone], [self.head, self.second_head], self.config.backbone_lr_scale
        )

    def forward(self, batch: Batch) -> Step:
        inputs, target = batch["input"], batch["target"]
        logits = self.head(self.backbone(inputs))
        others = self.second_head(self.second_backbone(inputs))
        losses, other_losses = (functional.cross_entropy(z.float(), target, reduction="none") for z in (logits, others))
        chosen, other_chosen = (small_losses(found.detach(), self.kept) for found in (losses, other_losses))
        first = mean_of(losses * batch["weight"], other_chosen)
        second = mean_of(other_losses * batch["weight"], chosen)
        metrics = {
            "loss_first": first.detach(),
            "loss_second": second.detach(),
            "chosen_by_both": (chosen & other_chosen).sum() / chosen.sum(),
            "accuracy": (logits.detach().argmax(1) == target).float().mean(),
        }
        return Step(first + second, metrics)

    def after_update(self, progress: Progress) -> None:
        done = min(progress.next_epoch / self.config.ramp_epochs, 1.0)
        self.kept.fill_(1 - self.config.noise_rate * done)

    def export(self) -> nn.Module:
        return Classifier(self.backbone, self.head)


def small_losses(losses: Tensor, kept: Tensor) -> Tensor:
    """(B,) bool: the floor(kept * B) samples of smallest loss, at least one; of equal ones the first.

    Args:
        losses: (B,). kept: scalar in 0..1, float64.
    """
    rank = losses.argsort(stable=True).argsort()
    count = (kept * len(losses) + _ROUNDING).floor().clamp(min=1)
    return rank < count


def mean_of(losses: Tensor, chosen: Tensor) -> Tensor:
    """Scalar mean of the losses (B,) of chosen samples (B,) bool."""
    return losses.masked_fill(~chosen, 0.0).sum() / chosen.sum()


def initialize_anew(network: nn.Module) -> None:
    """Draws new weights for every layer that has `reset_parameters`; running statistics begin again."""
    for module in network.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


def build(config: Config, context: Context) -> CoTeaching:
    return CoTeaching(config, context)
