"""PLS: labels that look wrong are replaced by guesses of the network, and each guess is weighed by how right it looks.

After every epoch all samples are seen once as they are. Those whose loss belongs to the higher one of two Gaussians are
noisy; their pseudo-label of that epoch gets a weight w from its own loss (`ops/tracked_labels.py`), others have w = 1.
With p the mean prediction for two weak views, and lam ~ Beta(alpha, alpha), lam at least 0.5,

    g_i = p_i^gamma / sum p_i^gamma           t_i = g_i if i is noisy, else its given label
    x~_i = lam x_i + (1 - lam) x_o(i)         o a random order of the batch
    L = L_c + R + L_u

L_c is the cross-entropy of x~ with the targets of both images, weighted by w. R is the penalty on predictions whose
mean is not uniform. L_u is the contrast of x~ with unmixed views x_c: towards those of its class as far as w trusts the
labels, otherwise towards its own (`ops/noisy_targets.py`). In the first epochs L is mixup with the given labels.

Source: Albert et al., Is your noise correction noisy? PLS: Robustness to label noise with two stage detection, WACV
2023, arXiv 2210.04578. Official code: PaulAlbert31/PLS, no licence; none of it is used.
Deviations: detection and weights both begin at the end of the first epochs (in that code the one an epoch earlier, the
other an epoch later). Sample weights multiply w in L_c. With several devices images are mixed, and L_c and R are taken,
within the part of the batch on each; L_u sees the views of all.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Beta

from appssl.contracts import Batch, Context, Examples, Labelled, Progress, Step
from appssl.errors import DataError, SettingsError
from appssl.finetuners.mixup import mixed
from appssl.ops.classify import Classifier, slower_encoder
from appssl.ops.distributed import gather, rank
from appssl.ops.noisy_targets import (
    contrast,
    mixed_before_sums,
    mixed_loss,
    prior_penalty,
    sharpened,
    weighted_pairs,
)
from appssl.ops.random import rng_for
from appssl.ops.tracked_labels import LabelMemory, Tracked, small_loss_posterior
from appssl.settings import Settings


class Config(Settings):
    name: Literal["pls"] = "pls"
    warmup_epochs: int = Field(
        2, ge=1, description="first epochs, on given labels; one more than the warm-up of the official code"
    )
    threshold: float = Field(0.95, ge=0, lt=1, description="posterior of the large losses above which a label is noisy")
    sharpening: float = Field(2.0, gt=0, description="exponent of pseudo-labels, gamma; 1: as they are")
    temperature: float = Field(0.2, gt=0, description="divides similarities, mu in the paper")
    mix_alpha: float = Field(1.0, gt=0, description="both parameters of the Beta distribution of lam")
    prior_penalty: bool = Field(True, description="penalize predictions whose mean is not uniform, R")
    projector_out: int = Field(128, ge=1, description="width of the projections")
    backbone_lr_scale: float = Field(1.0, ge=0, description="learning rate of the encoder / that of the rest")


class LabelledViews:
    """Labelled samples: {index, input: x, views: [second weak view, contrastive view, strong view], target, weight}.

    The contrastive view is the first one of `views.views`; the strong one is that of `views.strong`, where views have
    it, else the second one of `views.views`, and missing if there is none of that shape.
    """

    def __init__(self, labelled: Labelled) -> None:
        self.labelled = labelled
        self.facts: Mapping[str, Any] = {**labelled.facts, "num_rows": len(labelled.data.samples)}

    def __len__(self) -> int:
        return len(self.labelled)

    def batch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Batch:
        rows = self.labelled.rows[indices]
        made = [self._views(int(row), rng_for(seed, epoch, int(row))) for row in rows]
        weak, *others = (torch.stack(view) for view in zip(*made, strict=True))
        return {
            "index": torch.from_numpy(rows),
            "input": weak,
            "views": others,
            "target": torch.from_numpy(self.labelled.targets[indices]),
            "weight": torch.from_numpy(self.labelled.weights[indices]),
        }

    def _views(self, row: int, rng: np.random.Generator) -> list[Tensor]:
        views: Any = self.labelled.views
        sample = self.labelled.data.read(row)
        weak = [views.augment(sample, rng), views.augment(sample, rng)]
        contrastive, *more = views.views(sample, rng)
        strong = [views.strong(sample, rng)] if hasattr(views, "strong") else more[:1]
        return [*weak, contrastive, *(view for view in strong if view.shape == weak[0].shape)]

    def plain(self, indices: np.ndarray) -> Batch:
        return self.labelled.plain(indices)


class PLS(nn.Module):
    started: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        classes = context.meta.classes
        if len(classes) < 2:
            raise DataError(
                f"{config.name} needs two classes or more to tell right labels from wrong ones, found {len(classes)}."
            )
        self.config = config
        width = int(context.backbone.num_features)  # type: ignore[arg-type]
        self.backbone = context.backbone.requires_grad_(True)
        self.head = nn.Linear(width, len(classes))
        self.projector = nn.Linear(width, config.projector_out)
        self.memory = LabelMemory(int(context.facts.get("num_rows", context.num_samples)), classes)
        self.register_buffer("started", torch.zeros(()))  # 1 after the first epochs

    def param_groups(self) -> list[dict[str, Any]]:
        return slower_encoder([self.backbone], [self.head, self.projector], self.config.backbone_lr_scale)

    def forward(self, batch: Batch) -> Step:
        refuse_whole_numbers(batch["input"], self.config.name)
        with torch.no_grad():
            guess = sharpened(self._prediction(batch), self.config.sharpening)
        return self.learn(batch, guess)

    def learn(self, batch: Batch, guess: Tensor) -> Step:
        """Loss of a batch with the pseudo-labels (B, K) of its samples, which are remembered."""
        index, inputs = batch["index"], batch["input"]
        with torch.no_grad():
            self.memory.remember(index, guess)
            targets, weight, noisy = self.memory.targets(index, batch["target"], guess)
        share, other = self._mix(len(inputs), inputs.device)
        features = self.backbone(mixed(self._images(batch, noisy), other, share))
        logits = self.head(features)
        classification = mixed_loss(logits, targets, weight * batch["weight"], other, share)
        penalty = prior_penalty(logits)
        attraction = self._attraction(targets.argmax(1), weight, other, share)
        keys = gather(self.projector(self.backbone(batch["views"][1])))
        contrastive = contrast(self.projector(features), keys, attraction, temperature=self.config.temperature)
        # In the first epochs these count 0 instead of being left out: DDP wants a gradient of every parameter.
        rest = contrastive + (penalty if self.config.prior_penalty else 0.0)
        metrics = {
            "loss_classification": classification.detach(),
            "loss_contrastive": contrastive.detach(),
            "loss_prior": penalty.detach(),
            "noisy_share": noisy.float().mean(),
            "pseudo_weight": (weight * noisy).sum() / noisy.sum().clamp(min=1),  # mean of noisy samples
        }
        return Step(classification + self.started * rest, metrics)

    def _prediction(self, batch: Batch) -> Tensor:
        """Probabilities (B, K) that pseudo-labels are made of."""
        of_views = [self._probabilities(view) for view in (batch["input"], batch["views"][0])]
        return torch.stack(of_views).mean(0)

    def _probabilities(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(inputs)).float().softmax(1)

    def _images(self, batch: Batch, noisy: Tensor) -> Tensor:
        """What is mixed, (B, ...)."""
        return batch["input"]

    def _attraction(self, classes: Tensor, weight: Tensor, other: Tensor, share: Tensor) -> Tensor:
        """How much each mixed image is drawn to the contrastive views of all processes, (B, M), rows sum to 1."""
        own = torch.arange(len(classes), device=classes.device) + rank() * len(classes)
        pairs = weighted_pairs(classes, weight, gather(classes), gather(weight), own)
        return mixed_before_sums(pairs, other, share)

    def _mix(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        alpha = torch.tensor(self.config.mix_alpha, device=device)
        share = Beta(alpha, alpha).sample()
        return torch.maximum(share, 1 - share), torch.randperm(size, device=device)

    def after_update(self, progress: Progress) -> None:
        before = self.config.warmup_epochs
        if progress.step == 1 and progress.num_steps <= before * progress.steps_per_epoch:
            raise SettingsError(
                f"finetune.fit.epochs must be more than warmup_epochs = {before}: labels are replaced only after them."
            )

    def track(self, batches: Iterable[Batch], epoch: int) -> None:
        if epoch + 1 >= self.config.warmup_epochs:
            found = self.memory.observe(batches, self._see, exponent=self.config.sharpening)
            p_clean = small_loss_posterior(found.losses)
            self.memory.decide(found, p_clean, self._detect(found, 1 - p_clean > self.config.threshold, epoch))
            self.started.fill_(1.0)

    def _see(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K), and features (B, F) that samples are told apart by; none here."""
        features = self.backbone(inputs)
        return self.head(features), features[:, :0]

    def _detect(self, found: Tracked, by_loss: np.ndarray, epoch: int) -> np.ndarray:
        """Which samples (N,) bool are noisy in the next epoch."""
        return by_loss

    def findings(self) -> pl.DataFrame | None:
        return self.memory.findings()

    def export(self) -> nn.Module:
        return Classifier(self.backbone, self.head)


def refuse_whole_numbers(inputs: Tensor, finetuner: str) -> None:
    if not inputs.is_floating_point():
        raise DataError(f"finetuner {finetuner} mixes values of inputs; these are {inputs.dtype}.")


def labelled_examples(config: Config, labelled: Labelled) -> Examples:
    return LabelledViews(labelled)


def build(config: Config, context: Context) -> PLS:
    return PLS(config, context)
