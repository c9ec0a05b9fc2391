"""How well a classifier does on domains it was not trained on, and how much an encoder's features tell of the domain.

unseen_accuracy over the test rows of domains without a training sample, seen_accuracy over the others. domain_purity is
the mean, over test rows, of the share of their nearest other test rows (cosine of features) that are of the same
domain: 1 if domains lie apart, the mean share of a row's domain if features say nothing of it. With 95 % bootstrap
intervals over groups; neighbors are not found again in a resample.

The facts of the data tell of domains (styles, sites, scanners): `domain` is the column of the samples that names them,
`unseen_domains` are those without a training sample. Source: accuracy on held-out domains as in domain generalization;
purity of neighbors as in Scalbert et al., ICLR 2024, arXiv 2303.06088. Deviations: none.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from appssl.contracts import Metric, Scored
from appssl.errors import DataError
from appssl.evaluators.classification import as_metrics, check_probabilities, same_samples
from appssl.ops.bootstrap import bootstrap_means, group_codes
from appssl.settings import Settings

DESCRIPTIONS = {"unseen_accuracy": (0.0, 1.0, +1), "seen_accuracy": (0.0, 1.0, +1), "domain_purity": (0.0, 1.0, -1)}
PER_SAMPLE = ("domain_purity",)
EPSILON = 1e-12
BLOCK_ELEMENTS = 4_000_000  # similarities computed at once: 16 MB of float32


class Config(Settings):
    name: Literal["domains"] = "domains"
    k: int = Field(10, ge=1, description="neighbors that purity is measured on; all other rows if there are fewer")


class Domains:
    def __init__(self, config: Config) -> None:
        self.config = config

    def evaluate(self, scored: Scored, *, num_bootstrap: int, seed: int) -> dict[str, Metric]:
        """Accuracies with a classifier, purity with features; what no row defines is left out.

        Raises:
            DataError: if the data tell of no domains, or a row has none.
        """
        values = {} if scored.probabilities is None else _correct(scored)
        values |= scored.per_sample if "domain_purity" in scored.per_sample else self.per_sample(scored)
        return _measured({name: values[name] for name in DESCRIPTIONS if name in values}, scored, num_bootstrap, seed)

    def per_sample(self, scored: Scored) -> dict[str, np.ndarray]:
        """domain_purity (N,) float64 of each row; nothing without features; see `evaluate` for errors."""
        if scored.features is None or len(scored.features) < 2:
            return {}
        return {"domain_purity": purity(scored.features, _domains(scored), self.config.k)}


def build(config: Config) -> Domains:
    return Domains(config)


def paired(first: Scored, second: Scored, *, num_bootstrap: int, seed: int) -> dict[str, Metric]:
    """first - second of all that both have, on the same resamples of the same samples; see `evaluate` for errors."""
    same_samples(first, second)
    ours, theirs = ({**_correct(each), **each.per_sample} for each in (first, second))
    both = [name for name in DESCRIPTIONS if name in ours and name in theirs]
    return _measured({name: ours[name] - theirs[name] for name in both}, first, num_bootstrap, seed)


def purity(features: np.ndarray, domains: np.ndarray, k: int) -> np.ndarray:
    """Share (N,) float64 in [0, 1] of the k nearest other rows that are of a row's domain.

    Args:
        features: (N, F) float, any scale, N > 1. domains: (N,). k: at most N - 1 are used.
    """
    unit = np.asarray(features, dtype=np.float32)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), EPSILON)
    k, size = min(k, len(unit) - 1), max(1, BLOCK_ELEMENTS // len(unit))
    shares = []
    for start in range(0, len(unit), size):
        similarity = unit[start : start + size] @ unit.T
        own = np.arange(len(similarity))
        similarity[own, start + own] = -np.inf
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        shares.append((domains[nearest] == domains[start + own][:, None]).mean(axis=1))
    return np.concatenate(shares)


def _correct(scored: Scored) -> dict[str, np.ndarray]:
    """1 or 0 for right and wrong predictions, NaN for rows of the other domains, (N,) float64 each."""
    is_unseen = np.isin(_domains(scored), scored.facts["unseen_domains"])
    correct = (check_probabilities(scored).argmax(1) == scored.target).astype(np.float64)
    return {
        "unseen_accuracy": np.where(is_unseen, correct, np.nan),
        "seen_accuracy": np.where(is_unseen, np.nan, correct),
    }


def _measured(values: dict[str, np.ndarray], scored: Scored, num_bootstrap: int, seed: int) -> dict[str, Metric]:
    found = bootstrap_means(values, scored.groups, num=num_bootstrap, seed=seed)
    return as_metrics(found, group_codes(scored.groups)[1])


def _domains(scored: Scored) -> np.ndarray:
    column = scored.facts.get("domain")
    if column is None or "unseen_domains" not in scored.facts or scored.columns is None:
        raise DataError(
            "the evaluator domains needs data that tell of domains (facts domain and unseen_domains), such as those of "
            "the source image_styles."
        )
    if column not in scored.columns.columns or scored.columns[column].null_count():
        raise DataError(f"the evaluator domains: not every test sample has a {column}. Prepare the data again.")
    return scored.columns[column].to_numpy()
