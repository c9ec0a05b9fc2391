"""PLS-LSA: PLS in which noisy samples are also found by a plane between them and clean ones in mid-level features.

In features of contrastive pretraining, images of none of the classes can nearly be divided from others by a plane. With
Z the guess of the small loss, W is the side of the plane that a logistic regression on the features of a stage finds
for Z (`ops/linear_separation.py`). W finds noise much better, but takes some simple clean images for it that Z keeps
and that are needed. So noisy is W after epochs 0, 2, 4 ... and Z after epochs 1, 3, 5 ...

What differs from finetuners/pls: the pseudo-label comes from the second weak view only; noisy samples are mixed as
strong views; L_u draws to the class of the target whatever its weight, and each of the two mixed rows is divided by its
own sum; R is left out unless asked for.

Of a training sample is said: `clean` if both detectors call it clean; `hard_clean` if one does; else `id_noise` if the
weight of its pseudo-label is above 0.5, and `ood_noise` if not. Z and W are those of the last epochs in which they were
made. p_clean is the posterior of the small loss, p_ood the sigmoid of the value of the plane. With `detector: loss`
there is Z alone, and no p_ood.

Source: Albert et al., An accurate detection is not all you need to combat label noise in web-noisy datasets, ECCV 2024,
arXiv 2407.05528. Official code: PaulAlbert31/LSA, no licence; none of it is used.
Deviations: those of PLS; a backbone that does not offer features of its stages is divided by its last ones, which are
shaped by the labels; where there is nothing to separate (no sample, or every one, has a large loss, or all features are
equal) W is Z; the contrast is always with the B x B matrix of same classes, which that code has with mixup only. The
version of two networks is finetuners/pls_lsa_plus.
"""

from typing import Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor

from appssl.contracts import Batch, Context, Examples, Labelled
from appssl.errors import SettingsError
from appssl.finetuners import pls
from appssl.ops.distributed import gather
from appssl.ops.linear_separation import separate
from appssl.ops.noisy_targets import mixed_after_sums, same_class
from appssl.ops.tracked_labels import Tracked


class Config(pls.Config):
    name: Literal["pls_lsa"] = "pls_lsa"  # type: ignore[assignment]
    warmup_epochs: int = Field(
        1, ge=1, description="first epochs, on given labels; one more than the warm-up of the official code"
    )
    detector: Literal["alternate", "linear", "loss"] = Field(
        "alternate", description="what finds noise: the plane, the small loss, or the two by turns"
    )
    feature_stage: int = Field(
        1,
        ge=0,
        description="stage of the backbone whose features are separated, from 0; timm counts the stem of a ResNet",
    )
    prior_penalty: bool = Field(False, description="penalize predictions whose mean is not uniform, R")


class PLSLSA(pls.PLS):
    config: Config
    by_loss: Tensor
    plane: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        rows = len(self.memory.noisy)
        self.register_buffer("by_loss", torch.zeros(rows, dtype=torch.bool))  # Z
        self.register_buffer("plane", torch.full((rows,), torch.nan, dtype=torch.float64))  # W where > 0
        self._refuse_missing_stage(context)

    def _refuse_missing_stage(self, context: Context) -> None:
        if not hasattr(self.backbone, "stage_features"):
            return
        was_training = self.backbone.training
        with torch.no_grad():
            stages = self.backbone.eval().stage_features(torch.zeros(1, *context.input_shape))  # type: ignore[operator]
        self.backbone.train(was_training)
        if self.config.feature_stage >= len(stages):
            raise SettingsError(
                f"finetuner pls_lsa: feature_stage is {self.config.feature_stage}, the backbone has stages 0 to "
                f"{len(stages) - 1}."
            )

    def _prediction(self, batch: Batch) -> Tensor:
        return self._probabilities(batch["views"][0])

    def _images(self, batch: Batch, noisy: Tensor) -> Tensor:
        """Noisy ones as strong views, which are the contrastive ones where there are no others."""
        weak, strong = batch["input"], batch["views"][-1]
        return torch.where(noisy.reshape(-1, *[1] * (weak.ndim - 1)), strong, weak)

    def _attraction(self, classes: Tensor, weight: Tensor, other: Tensor, share: Tensor) -> Tensor:
        return mixed_after_sums(same_class(classes, gather(classes)), other, share)

    def _see(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if not hasattr(self.backbone, "stage_features"):
            features = self.backbone(inputs)
            return self.head(features), features
        stages = self.backbone.stage_features(inputs)  # type: ignore[operator]
        return self.head(stages[-1]), stages[self.config.feature_stage]

    def _detect(self, found: Tracked, by_loss: np.ndarray, epoch: int) -> np.ndarray:
        rows = torch.from_numpy(found.index).to(self.plane.device)
        self.by_loss[rows] = torch.from_numpy(by_loss).to(self.plane.device)
        detector = self.config.detector
        if detector == "loss" or (detector == "alternate" and epoch % 2 == 1):
            return by_loss
        plane = separate(found.features, by_loss)
        plane = np.where(by_loss, 1.0, -1.0) if plane is None else plane
        self.plane[rows] = torch.from_numpy(plane).to(self.plane.device)
        return plane > 0

    def findings(self) -> pl.DataFrame | None:
        if not torch.isfinite(self.plane).any():  # no plane was made
            return self.memory.findings()
        return self.memory.findings(hard=self.by_loss != (self.plane > 0), p_ood=self.plane.sigmoid())


def labelled_examples(config: Config, labelled: Labelled) -> Examples:
    return pls.LabelledViews(labelled)


def build(config: Config, context: Context) -> PLSLSA:
    return PLSLSA(config, context)
