"""A judged label table as a work list for people: the most suspicious given label first.

    suspicion = 1 - p_clean                    where the labeler gives p_clean
    suspicion = (1 - b) / 2                    else, of kinds clean and hard_clean
    suspicion = 1/2 + (1 - b) / 2              else, of kinds id_noise and ood_noise
    suspicion = 1 - confidence                 else, of kinds pseudo and novel, which contradict no label

All are in 0..1. b is how far the labeler believes in the given label: its confidence where it keeps that label,
1 - confidence where it proposes another one or none.
"""

import polars as pl

from appssl.ops.images.decisions import settled

SCHEMA = {
    "id": pl.String, "label": pl.String, "suggested_label": pl.String, "kind": pl.String, "confidence": pl.Float64,
    "weight": pl.Float64, "p_clean": pl.Float64, "suspicion": pl.Float64, "reason": pl.String, "source_url": pl.String,
}  # fmt: skip
_DOUBTED, _OPEN = ("id_noise", "ood_noise"), ("pseudo", "novel")


def triage(labels: pl.DataFrame, samples: pl.DataFrame) -> pl.DataFrame:
    """Rows of `SCHEMA` (without `p_clean` where the labeler gives none), by falling suspicion, then by id.

    `label` is the given one, `suggested_label` what the labeler would use: null for out-of-distribution noise and where
    no class is sure. What was reviewed already is certain.

    Args:
        labels: LABEL_COLUMNS, and `p_clean` where the labeler gives it. samples: rows with id, label, and `url` and
            `reviewed` where they are known; those that were not judged are not in the result.
    """
    judged = settled(labels, samples).rename({"label": "suggested_label"})
    urls = pl.col("url") if "url" in samples.columns else pl.lit(None, pl.String)
    joined = judged.join(samples.select("id", "label", source_url=urls), on="id", how="inner")
    outside = pl.col("kind") == "ood_noise"
    made = joined.with_columns(suspicion=suspicion("p_clean" in labels.columns)).with_columns(
        suggested_label=pl.when(~outside).then("suggested_label")
    )
    ordered = made.sort("suspicion", "id", descending=[True, False])
    return ordered.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items() if name in ordered.columns)


def suspicion(has_p_clean: bool) -> pl.Expr:
    """As at the top of this file, of the columns label, suggested_label, kind, confidence and p_clean."""
    confidence = pl.col("confidence").cast(pl.Float64)
    keeps = pl.col("suggested_label").eq_missing(pl.col("label"))
    belief = pl.when(keeps).then(confidence).otherwise(1 - confidence)
    by_kind = (
        pl.when(pl.col("kind").is_in(_OPEN))
        .then(1 - confidence)
        .when(pl.col("kind").is_in(_DOUBTED))
        .then(0.5 + (1 - belief) / 2)
        .otherwise((1 - belief) / 2)
    )
    return pl.coalesce(1 - pl.col("p_clean"), by_kind) if has_p_clean else by_kind
