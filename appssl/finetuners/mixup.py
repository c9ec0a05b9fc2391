"""Mixup: cross-entropy on mixed images with mixed labels, a simple protection against wrong labels.

With a random order j of the batch and one lam ~ Beta(alpha, alpha) for all of it:

    x~_i = lam x_i + (1 - lam) x_j,    L = mean_i( lam CE(f(x~_i), y_i) + (1 - lam) CE(f(x~_i), y_j) )

Source: Zhang et al., mixup, ICLR 2018, arXiv 1710.09412, section 2. Deviations: weights of samples multiply their parts
of the loss. With several devices each draws its own lam.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn import functional

from appssl.contracts import Batch, Context, Step
from appssl.errors import DataError
from appssl.ops.classify import Classifier, slower_encoder
from appssl.settings import Settings


class Config(Settings):
    name: Literal["mixup"] = "mixup"
    alpha: float = Field(1.0, ge=0, description="both parameters of the Beta distribution; 0: no mixing")
    backbone_lr_scale: float = Field(1.0, ge=0, description="learning rate of the encoder / that of the classifier")


class Mixup(nn.Module):
    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.backbone = context.backbone.requires_grad_(True)
        self.head = nn.Linear(int(context.backbone.num_features), len(context.meta.classes))  # type: ignore[arg-type]

    def param_groups(self) -> list[dict[str, Any]]:
        return slower_encoder([self.backbone], [self.head], self.config.backbone_lr_scale)

    def forward(self, batch: Batch) -> Step:
        inputs, target, weight = batch["input"], batch["target"], batch["weight"]
        if not inputs.is_floating_point():
            raise DataError(f"finetuner mixup mixes values of inputs; these are {inputs.dtype}. Use finetuner: full.")
        share = self._share(inputs.device)
        other = torch.randperm(len(inputs), device=inputs.device)
        logits = self.head(self.backbone(mixed(inputs, other, share)))
        loss = mixed_cross_entropy(logits, target, other, share, sample_weight=weight)
        guess = logits.detach().argmax(1)
        right = share * (guess == target).float() + (1 - share) * (guess == target[other]).float()
        return Step(loss, {"accuracy": right.mean()})

    def _share(self, device: torch.device) -> Tensor:
        if self.config.alpha == 0:
            return torch.ones((), device=device)
        alpha = torch.tensor(self.config.alpha, device=device)
        return Beta(alpha, alpha).sample()

    def export(self) -> nn.Module:
        return Classifier(self.backbone, self.head)


def mixed(inputs: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """share * x_i + (1 - share) * x_j, (B, ...); other: (B,) int64, j of each i. share: scalar in 0..1."""
    return (share * inputs + (1 - share) * inputs[other]).to(inputs.dtype)


def mixed_cross_entropy(
    logits: Tensor, target: Tensor, other: Tensor, share: Tensor, *, sample_weight: Tensor
) -> Tensor:
    """Scalar mean_i( share w_i CE(f_i, y_i) + (1 - share) w_j CE(f_i, y_j) ).

    Args:
        logits: (B, K) for the mixed inputs. target, other: (B,) int64. share: scalar. sample_weight: (B,).
    """
    own, of_other = (
        functional.cross_entropy(logits.float(), labels, reduction="none") * weight
        for labels, weight in ((target, sample_weight), (target[other], sample_weight[other]))
    )
    return (share * own + (1 - share) * of_other).mean()


def build(config: Config, context: Context) -> Mixup:
    return Mixup(config, context)
