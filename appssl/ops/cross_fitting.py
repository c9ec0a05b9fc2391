"""Judging rows by classifiers that have not seen them, nor others of their group.

Source: cross-validated predictions as in Northcutt et al., Confident learning, JAIR 2021, arXiv 1911.00068, section 4.
"""

import hashlib

import numpy as np

from appssl.ops.linear import LinearSoftmax, fit_linear


def folds(groups: list[str], labels: list[str | None], num_folds: int, seed: int) -> dict[str, int]:
    """Fold of each group: classes are spread evenly, by hash of (seed, group) within a class; for any order of rows."""
    label_of: dict[str, str] = {}
    for group, label in zip(groups, labels, strict=True):
        label_of[group] = min(label_of.get(group, label or ""), label or "")
    ordered = sorted(label_of, key=lambda g: (label_of[g], hashlib.sha256(f"{seed}/{g}".encode()).digest()))
    return {group: rank % num_folds for rank, group in enumerate(ordered)}


def fit_each(
    features: np.ndarray,
    target: np.ndarray,
    fold: np.ndarray,
    num_classes: int,
    num_folds: int,
    weight: np.ndarray,
    l2: float,
) -> list[LinearSoftmax]:
    """A classifier for each fold, fitted on the labelled rows of the others.

    Args:
        features: (N, F). target: (N,) int64, below 0 without label. fold: (N,) int64. weight: (N,) float >= 0.
    """
    models = []
    for part in range(num_folds):
        rows = (target >= 0) & (fold != part)
        if not (weight[rows] > 0).any():  # all of it found noisy: judge by everything rather than by nothing
            weight = np.ones_like(weight)
        models.append(fit_linear(features[rows], target[rows], num_classes, weight=weight[rows], l2=l2))
    return models


def out_of_fold(models: list[LinearSoftmax], features: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(N, K) probabilities, each row by the model that has not seen it; the mean of all models for fold -1."""
    result = np.zeros((len(features), models[0].weight.shape[1]))
    for part, model in enumerate(models):
        result[fold == part] = model.probabilities(features[fold == part])
        result[fold < 0] += model.probabilities(features[fold < 0]) / len(models)
    return result
