"""What a learner that judges its own labels keeps of every sample, and how it judges by losses.

With values x_i scaled to 0..1 by their smallest and largest, the posterior of the lower one of two Gaussians is

    of losses -log p(y_i | x_i):              the probability that the label y_i is right (small loss)
    of pseudo-losses -sum_c g_ic log p_ic     the weight w_i of a noisy sample, whose pseudo-label g_i may be wrong too

Source: Albert et al., PLS, WACV 2023, arXiv 2210.04578, and LSA, ECCV 2024, arXiv 2407.05528. Deviations: the mixture
begins with the best two clusters, which k-means from random starts mostly finds, and its posterior never rises with the
loss (`ops/mixture.py`). With two noisy samples or fewer, or pseudo-losses that are all equal, the weights are 1.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from appssl.ops.distributed import gather
from appssl.ops.mixture import fit_two_gaussians
from appssl.ops.noisy_targets import sharpened, soft_cross_entropies

RELIABLE = 0.5  # weight from which a pseudo-label is taken for right rather than wrong
WHY = {
    "clean": "taken for clean",
    "hard_clean": "one detector takes it for clean, the other for noisy",
    "id_noise": "taken for noisy, its pseudo-label is reliable",
    "ood_noise": "taken for noisy, its pseudo-label is not reliable",
}
_MOST_STEPS, _TOLERANCE, _FLOOR = 10, 1e-2, 5e-4  # of the mixture, as in the official code
_ROUNDING = 1e-6  # losses that differ by less than this share of the largest are equal
_FEWEST = 3  # noisy samples whose pseudo-losses can be told apart


@dataclass(frozen=True)
class Tracked:
    """All samples after an epoch.

    Attributes:
        index: (N,) int64 rows. target: (N,) int64. losses, pseudo_losses: (N,) float32. features: (N, F) float32.
    """

    index: np.ndarray
    target: np.ndarray
    losses: np.ndarray
    pseudo_losses: np.ndarray
    features: np.ndarray


def joined(parts: Sequence[Tracked]) -> Tracked:
    """Samples that were seen part by part."""
    return Tracked(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Tracked)))


class LabelMemory(nn.Module):
    """State of all rows of the prepared table, in buffers.

    Attributes:
        given: (R,) int64 label that was judged, -1 of rows that are not trained on. guess: (R, K) pseudo-labels g of
            the last epoch, 0 before the first. noisy: (R,) bool. weight: (R,) w, 1 where the label is right.
        p_clean: (R,) score that the label is right.
    """

    given: Tensor
    guess: Tensor
    noisy: Tensor
    weight: Tensor
    p_clean: Tensor

    def __init__(self, num_rows: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.register_buffer("given", torch.full((num_rows,), -1))
        self.register_buffer("guess", torch.zeros(num_rows, len(classes)))
        self.register_buffer("noisy", torch.zeros(num_rows, dtype=torch.bool))
        self.register_buffer("weight", torch.ones(num_rows))
        self.register_buffer("p_clean", torch.ones(num_rows, dtype=torch.float64))  # near 1 they differ by little

    def remember(self, index: Tensor, guess: Tensor) -> None:
        """Keeps the pseudo-labels (B, K) of the rows (B,) of all processes."""
        self.guess[gather(index)] = gather(guess)

    def targets(self, index: Tensor, target: Tensor, guess: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Targets (B, K), the given label or the pseudo-label of a noisy sample; weights (B,); noisy (B,) bool."""
        noisy = self.noisy[index]
        given = nn.functional.one_hot(target, guess.shape[1]).to(guess.dtype)
        return torch.where(noisy[:, None], guess, given), self.weight[index], noisy

    @torch.no_grad()
    def observe(
        self, batches: Iterable[dict[str, Any]], network: Callable[[Tensor], tuple[Tensor, Tensor]], *, exponent: float
    ) -> Tracked:
        """Passes all samples through a network.

        Args:
            batches: {index, input, target}. network: inputs -> logits (B, K) and features (B, F), F >= 0. exponent: of
                the pseudo-labels that are made for samples that no batch has had yet.
        """
        parts: list[tuple[Tensor, ...]] = []
        for batch in batches:
            index, target = batch["index"], batch["target"]
            logits, features = network(batch["input"])
            guess = self.guess[index]
            unseen = guess.sum(1, keepdim=True) == 0
            guess = torch.where(unseen, sharpened(logits.float().softmax(1), exponent), guess)
            self.guess[index] = guess
            losses = nn.functional.cross_entropy(logits.float(), target, reduction="none")
            found = (index, target, losses, soft_cross_entropies(logits, guess), features.float())
            parts.append(tuple(values.cpu() for values in found))
        return Tracked(*(torch.cat(values).numpy() for values in zip(*parts, strict=True)))

    def decide(
        self, tracked: Tracked, p_clean: np.ndarray, noisy: np.ndarray, weights: np.ndarray | None = None
    ) -> None:
        """Takes samples (N,) bool for noisy. `weights` (N,) of their pseudo-labels: by their pseudo-losses if None."""
        weights = pseudo_label_weights(tracked.pseudo_losses, noisy) if weights is None else weights
        self._put(self.given, tracked.index, tracked.target)
        self._put(self.p_clean, tracked.index, p_clean)
        self._put(self.noisy, tracked.index, noisy)
        self._put(self.weight, tracked.index, weights)

    def _put(self, buffer: Tensor, index: np.ndarray, values: np.ndarray) -> None:
        rows = torch.from_numpy(index).to(buffer.device)
        buffer[rows] = torch.from_numpy(np.ascontiguousarray(values)).to(buffer)

    def findings(self, hard: Tensor | None = None, p_ood: Tensor | None = None) -> pl.DataFrame | None:
        """What `contracts.Learner.findings` asks for; None if nothing was judged.

        A sample on which two detectors disagree is `hard_clean`, else it is `clean` unless it is taken for noisy; then
        it is `id_noise` if its pseudo-label has a weight above `RELIABLE`, or `ood_noise`. Labels and weights: clean
        and hard_clean the given label and 1, id_noise the pseudo-label and its weight, ood_noise the given label and 0.

        Args:
            hard: (R,) bool, the detectors disagree; None: there is one. p_ood: (R,) in 0..1, or None.
        """
        rows = (self.given >= 0).nonzero()[:, 0]
        if len(rows) == 0:
            return None
        given, guess, noisy = (_array(buffer[rows]) for buffer in (self.given, self.guess, self.noisy))
        weight, p_clean = (_array(buffer[rows].double()) for buffer in (self.weight, self.p_clean))
        disputed = np.zeros(len(rows), bool) if hard is None else _array(hard[rows])
        kind = np.select([disputed, ~noisy, weight > RELIABLE], ["hard_clean", "clean", "id_noise"], "ood_noise")
        best, sure = guess.argmax(1), guess.max(1).astype(np.float64)
        is_new, is_lost = kind == "id_noise", kind == "ood_noise"
        table = {
            "index": _array(rows),
            "label": np.where(is_new, best, given),
            "confidence": np.where(is_new, sure, p_clean),
            "weight": np.where(is_new, weight, np.where(is_lost, 0.0, 1.0)),
            "kind": kind,
            "reason": [self._reason(*row) for row in zip(kind, p_clean, best, sure, weight, strict=True)],
            "p_clean": p_clean,
        }
        return pl.DataFrame(table if p_ood is None else {**table, "p_ood": _array(p_ood[rows].double())})

    def _reason(self, kind: str, p_clean: float, best: int, sure: float, weight: float) -> str:
        pseudo = {"pseudo_label": self.classes[best], "probability": round(sure, 4), "pseudo_weight": round(weight, 4)}
        return json.dumps({"why": WHY[kind], "p_clean": round(p_clean, 4), **pseudo})


def small_loss_posterior(losses: np.ndarray) -> np.ndarray:
    """Posterior (N,) float64 of the lower one of two Gaussians on losses (N,); 1 where all losses are equal.

    Does not change when losses are shifted or scaled. Losses that are not finite count as the largest that is.
    """
    losses = np.asarray(losses, np.float64)
    finite = np.isfinite(losses)
    if not finite.any():
        return np.ones(len(losses))
    losses = np.where(finite, losses, losses[finite].max())
    spread = np.ptp(losses)
    if spread <= _ROUNDING * np.abs(losses).max():
        return np.ones(len(losses))
    scaled = (losses - losses.min()) / spread
    mixture = fit_two_gaussians(scaled, max_steps=_MOST_STEPS, tolerance=_TOLERANCE, floor=_FLOOR, start="two_means")
    return np.ones(len(losses)) if mixture is None else mixture.posterior_low(scaled)


def pseudo_label_weights(pseudo_losses: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """w (N,) float64 of samples with pseudo-losses (N,): the posterior among the noisy ones (N,) bool, 1 for others."""
    weights = np.ones(len(noisy))
    if noisy.sum() >= _FEWEST:
        weights[noisy] = small_loss_posterior(pseudo_losses[noisy])
    return weights


def _array(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()
