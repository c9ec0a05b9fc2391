"""What is written of judged labels, by any stage that judges: the table, and how right it is where that is known."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from appssl.artifact import ArtifactWriter
from appssl.contracts import LABEL_COLUMNS, LABEL_KINDS
from appssl.errors import AppsslError
from appssl.evaluators.classification import binary_auroc
from appssl.ops.images.decisions import settled
from appssl.ops.journal import Journal


def write_labels(
    labels: pl.DataFrame,
    known: pl.DataFrame,
    classes: tuple[str, ...],
    writer: ArtifactWriter,
    journal: Journal,
    *,
    step: int,
) -> None:
    """Writes `labels.parquet` and `metrics.json`, and the metrics to the journal as of `step`.

    Args:
        labels: LABEL_COLUMNS, and p_clean and p_ood if there are any. known: the same samples in the same order with
            columns id, label (the one that was judged) and true_label, and `reviewed` where people decided: those
            labels are written as certain, whatever the method made of them, and not counted as its merit.
    Raises:
        AppsslError: if the labels are not what `contracts.py` says.
    """
    check_labels(labels, known)
    labels = settled(labels, known)
    writer.table("labels.parquet", labels)
    metrics = label_metrics(labels, known, classes)
    writer.json("metrics.json", {name: {"value": value} for name, value in metrics.items()})
    journal.metrics(step, {f"labels/{name}": value for name, value in metrics.items()})


def check_labels(labels: pl.DataFrame, known: pl.DataFrame) -> None:
    missing = [c for c in LABEL_COLUMNS if c not in labels.columns]
    if missing or labels["id"].to_list() != known["id"].to_list():
        what = missing or "its labels are of other rows than it was given"
        raise AppsslError(f"the method broke its contract: {what}. Report this.")
    strange = set(labels["kind"].unique().to_list()) - set(LABEL_KINDS)
    if strange:
        raise AppsslError(f"the method made unknown kinds {sorted(strange)}; allowed: {', '.join(LABEL_KINDS)}.")


def label_metrics(labels: pl.DataFrame, known: pl.DataFrame, classes: tuple[str, ...]) -> dict[str, float]:
    """Shares of the kinds, all in [0, 1]; where the truth is known also noise detection and label accuracy.

    Detection is that of wrong labels by 1 - p_clean (`noise_`) and by p_ood (`ood_score_`), as AUROC and as average
    precision, each for all wrong labels, for samples of none of the classes (`_ood`) and for others (`_id`), against
    samples with the right label. A metric is left out where one side of it is empty.
    """
    counts = dict(labels.group_by("kind").len().iter_rows())
    shares = {f"share_{kind}": counts.get(kind, 0) / len(labels) for kind in LABEL_KINDS}
    return {**shares, **_against_truth(labels, known, classes)}


def _against_truth(labels: pl.DataFrame, known: pl.DataFrame, classes: tuple[str, ...]) -> dict[str, float]:
    reviewed = known["reviewed"] if "reviewed" in known.columns else pl.lit(False)
    joined = labels.with_columns(given=known["label"], truth=known["true_label"], reviewed=reviewed)
    joined = joined.filter(pl.col("truth").is_not_null() & ~pl.col("reviewed"))
    if joined.is_empty():
        return {}
    metrics = {}
    given = joined.filter(pl.col("given").is_not_null())
    if "p_clean" in joined.columns and not given.is_empty():
        noisy = (given["given"] != given["truth"]).to_numpy()
        outside = (~given["truth"].is_in(list(classes))).to_numpy()
        metrics["given_label_accuracy"] = float(1 - noisy.mean())
        metrics |= _detection("noise", 1 - given["p_clean"].to_numpy(), noisy, outside)
        if "p_ood" in joined.columns:
            metrics |= _detection("ood_score", given["p_ood"].to_numpy(), noisy, outside)
    used = joined.filter((pl.col("weight") > 0) & pl.col("label").is_not_null())
    metrics["used_share"] = len(used) / len(joined)
    if not used.is_empty():
        metrics["used_label_accuracy"] = float(np.mean((used["label"] == used["truth"]).to_numpy()))
    return metrics


def _detection(name: str, score: np.ndarray, noisy: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import average_precision_score  # a second; without true labels it is not needed

    found = {}
    for kind, positive in _kinds_of_noise(noisy, outside):
        chosen = positive | ~noisy
        if 0 < positive.sum() < chosen.sum():
            found[f"{name}_auroc{kind}"] = binary_auroc(positive[chosen], score[chosen])
            found[f"{name}_average_precision{kind}"] = float(average_precision_score(positive[chosen], score[chosen]))
    return found


def _kinds_of_noise(noisy: np.ndarray, outside: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "", noisy
    yield "_ood", outside
    yield "_id", noisy & ~outside
