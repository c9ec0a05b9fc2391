"""Core-tuning: fine-tuning with mixed hard pairs and a focal supervised contrastive loss.

With features z of the encoder, cosine similarity, and one-hot labels y, of each sample i are made

    a hard positive  z_i^+ = lam z_hp + (1 - lam) z_hn,  hp least similar of its class, hn most similar of others
    a hard negative  z_i^- = (1 - lam) z_i + lam z_k,    k a random other sample, lam at least 0.8

with labels mixed in the same way, lam ~ Beta(alpha, alpha) for each. Over all originals, negatives and positives,
with unit projections r, P_i the positives of i, and n the number of anchors that have any:

    p_ij  = exp(<r_i, r_j> / t) / sum_{a != i} exp(<r_i, r_a> / t)
    L_con = -1/n sum_i 1/|P_i| sum_{j in P_i} (1 - p_ij) log p_ij
    L_ce  = cross-entropy of the classifier with the (mixed) labels, mean over all
    L     = L_ce + eta L_con

Positives of each other are items with one and the same class, and z_i and z_i^+; an item with labels of two classes has
no others.

Source: Zhang et al., Core-tuning, NeurIPS 2021, arXiv 2102.06605. Official code: Vanint/Core-tuning, no licence; none
of it is used.
Deviations from that code, which are the paper's equations: the hard positive is a sample of the class (the code's
minimum over similarity x mask finds the anchor itself), z_i and z_i^+ attract each other, gradient flows through the
unmixed features too, and each anchor is divided by |P_i| where the code divides by the size of the pool, so that its
eta = 0.1 is here about 0.003 for ten classes. z_i^- whose partner is of its class counts as a sample of it. A sample
without another of its class, or of any other class, takes itself. Sample weights multiply labels in L_ce. In several
processes pairs are searched and contrasted in the whole batch.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn import functional

from appssl.contracts import Batch, Context, Step
from appssl.ops.classify import Classifier, slower_encoder
from appssl.ops.distributed import gather, rank
from appssl.settings import Settings

_EPSILON = 1e-8  # smallest norm of features and projections
_PURE = (
    1 - 1e-6
)  # share of a class from which a mixed label is that of the class; (1 - lam) + lam is 1 but for rounding
_MIXED = -1


class Config(Settings):
    name: Literal["core_tuning"] = "core_tuning"
    contrast_weight: float = Field(0.1, ge=0, description="weight of the contrastive loss, eta")
    temperature: float = Field(0.07, gt=0, description="divides similarities, t")
    mixing: bool = Field(True, description="add mixed hard pairs to the pool")
    mix_alpha: float = Field(1.0, gt=0, description="both parameters of the Beta distribution of lam, alpha")
    partner_share: float = Field(0.8, ge=0, le=1, description="smallest share of the partner in a hard negative")
    focal: bool = Field(True, description="weight positives by 1 - p; false: supervised contrastive loss")
    projector_out: int = Field(256, ge=1, description="width of the projections")
    backbone_lr_scale: float = Field(1.0, ge=0, description="learning rate of the encoder / that of the rest")


class CoreTuning(nn.Module):
    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.num_classes = len(context.meta.classes)
        width = int(context.backbone.num_features)  # type: ignore[arg-type]
        self.backbone = context.backbone.requires_grad_(True)
        self.head = nn.Linear(width, self.num_classes, bias=False)
        self.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.projector_out))

    def param_groups(self) -> list[dict[str, Any]]:
        return slower_encoder([self.backbone], [self.head, self.projector], self.config.backbone_lr_scale)

    def forward(self, batch: Batch) -> Step:
        config, target = self.config, batch["target"]
        features = self.backbone(batch["input"]).float()
        logits = self.head(features)
        labels = functional.one_hot(target, self.num_classes).float()
        pool, mixed, weighted = features, labels, labels * batch["weight"][:, None]
        if config.mixing:
            everything, all_labels, all_weighted = gather(features), gather(labels), gather(weighted)
            mixes = self._mixes(everything.detach(), gather(target), len(features))
            pool = torch.cat([features, *(mix(everything, *how) for how in mixes)])
            mixed = torch.cat([labels, *(mix(all_labels, *how) for how in mixes)])
            weighted = torch.cat([weighted, *(mix(all_weighted, *how) for how in mixes)])
        classification = soft_cross_entropy(self.head(pool), weighted)
        contrastive = self._contrast(pool, mixed, len(features))
        metrics = {
            "loss_classification": classification.detach(),
            "loss_contrastive": contrastive.detach(),
            "accuracy": (logits.detach().argmax(1) == target).float().mean(),
        }
        return Step(classification + config.contrast_weight * contrastive, metrics)

    def _mixes(self, features: Tensor, target: Tensor, size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(first, second, share of the first) of hard negatives and of hard positives of the `size` samples here."""
        own = torch.arange(rank() * size, (rank() + 1) * size, device=features.device)
        hard_positive, hard_negative = hard_pairs(features, target, own)
        partner = other_samples(own, len(features))
        alpha = torch.full((2, size), self.config.mix_alpha, device=features.device)
        share = Beta(alpha, alpha).sample()
        return [
            (partner, own, share[0].clamp(min=self.config.partner_share)),
            (hard_positive, hard_negative, share[1]),
        ]

    def _contrast(self, pool: Tensor, labels: Tensor, size: int) -> Tensor:
        keys = functional.normalize(self.projector(pool).float(), dim=1, eps=_EPSILON)
        everything, classes = gather(keys), gather(pure_classes(labels))
        own = torch.arange(rank() * len(keys), (rank() + 1) * len(keys), device=keys.device)
        positives = positive_pairs(classes, own, size if len(pool) > size else None)
        losses = focal_contrast(keys, everything, positives, own, self.config.temperature, focal=self.config.focal)
        # of all processes, so that the mean over processes is the loss of the whole batch
        num_anchors = gather(positives.any(1).float()).sum() * len(keys) / len(everything)
        return losses.sum() / num_anchors.clamp(min=_EPSILON)

    def export(self) -> nn.Module:
        return Classifier(self.backbone, self.head)


def hard_pairs(features: Tensor, target: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B,) of the least similar other sample of each anchor's class and of the most similar of other classes.

    Args:
        features: (M, D) float. target: (M,) int64. anchors: (B,) int64 positions in them. Without such a sample the
            position is that of the anchor.
    """
    unit = functional.normalize(features, dim=1, eps=_EPSILON)
    similarity = unit[anchors] @ unit.T  # (B, M)
    same = target[anchors][:, None] == target[None, :]
    itself = torch.arange(len(features), device=features.device)[None, :] == anchors[:, None]
    family, others = same & ~itself, ~same
    positive = similarity.masked_fill(~family, torch.inf).argmin(1)
    negative = similarity.masked_fill(~others, -torch.inf).argmax(1)
    return torch.where(family.any(1), positive, anchors), torch.where(others.any(1), negative, anchors)


def other_samples(anchors: Tensor, size: int) -> Tensor:
    """A random position in 0..size-1 other than its own for each anchor (B,); its own if there is no other."""
    if size == 1:
        return anchors
    return (anchors + torch.randint(1, size, anchors.shape, device=anchors.device)) % size


def mix(values: Tensor, first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """share * values[first] + (1 - share) * values[second] by rows, (B, D); first, second: (B,) int64, share: (B,)."""
    return share[:, None] * values[first] + (1 - share[:, None]) * values[second]


def pure_classes(labels: Tensor) -> Tensor:
    """Class (M,) int64 of items with labels (M, K) that sum to 1, -1 for those of two classes."""
    largest, classes = labels.max(1)
    return torch.where(largest >= _PURE, classes, _MIXED)


def positive_pairs(classes: Tensor, own: Tensor, size: int | None) -> Tensor:
    """Which items of the pool are positives of which anchor, (A, M) bool.

    Args:
        classes: (M,) int64, -1 of mixed items. own: (A,) int64 positions of the anchors in the pool, which is made of
            parts of `size` originals, `size` negatives and `size` positives each; null: of originals only.
    """
    place = torch.arange(len(classes), device=classes.device)
    found = (classes[own][:, None] == classes[None, :]) & (classes != _MIXED)[None, :]
    if size is not None:
        kind = place % (3 * size) // size
        partner = torch.where(kind == 0, place + 2 * size, torch.where(kind == 2, place - 2 * size, _MIXED))
        found |= partner[own][:, None] == place[None, :]
    return found & (place[None, :] != own[:, None])


def focal_contrast(
    anchors: Tensor, pool: Tensor, positives: Tensor, own: Tensor, temperature: float, *, focal: bool
) -> Tensor:
    """Losses (A,) >= 0 of the anchors, 0 without positives.

    Args:
        anchors: (A, D) unit rows. pool: (M, D) unit rows. positives: (A, M) bool. own: (A,) int64, where the anchors
            stand in the pool. focal: weight positives by 1 - p; p is not detached.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        logits = anchors @ pool.T / temperature
    lowest = torch.finfo(logits.dtype).min  # not -inf: an anchor that is alone in the pool has a gradient of 0, not NaN
    log_share = logits.scatter(1, own[:, None], lowest).log_softmax(1).masked_fill(~positives, 0.0)
    weight = -torch.expm1(log_share) if focal else torch.ones_like(log_share)
    return -(weight * log_share).sum(1) / positives.sum(1).clamp(min=1)


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Scalar -sum_mc labels_mc log softmax(logits_m)_c / M, labels (M, K) of any sum."""
    return -(labels * logits.float().log_softmax(1)).sum(1).mean()


def build(config: Config, context: Context) -> CoreTuning:
    return CoreTuning(config, context)
