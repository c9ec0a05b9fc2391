"""What a reviewer decided about images: a table (id, decision, label) that is taken as truth.

| decision | label | what becomes of the image |
|---|---|---|
| `keep` | the label that was seen; empty: the given one | it has this label, and this is the truth |
| `relabel` | the right class | it has this label, and this is the truth |
| `irrelevant` | not read | left out as `reviewed_irrelevant` |
| `duplicate` | not read | left out as `reviewed_duplicate` |

The table has one row per image and no time: equal decisions are equal bytes, whenever and in whatever order they were
made, so that preparing again with them changes nothing.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import polars as pl

from appssl.ops.images.index import text_table
from appssl.ops.table_limits import SHOWN, refuse
from appssl.settings import nearest

DECISIONS = ("keep", "relabel", "irrelevant", "duplicate")
COLUMNS = ("id", "decision", "label")
REASONS = {"irrelevant": "reviewed_irrelevant", "duplicate": "reviewed_duplicate"}
# Which of equal pictures in one part stays: one that a reviewer spoke of, but not one found to be a duplicate.
RANK = {"keep": 0, "relabel": 0, "irrelevant": 0, "duplicate": 2}
_UNDECIDED = 1


def read_decisions(
    full: Path,
    path: str,
    *,
    classes: Sequence[str],
    given: Mapping[str, str | None],
    known: Collection[str] | None = None,
) -> pl.DataFrame:
    """Decisions (`COLUMNS`, all text) with the label that each `keep` stands for; null for `irrelevant`, `duplicate`.

    Args:
        path: as messages name it. classes: the labels there are. given: labels of the images in use. known: ids of all
            images there are; None: ids are not checked.
    Raises:
        DataError: if the table cannot be read, or with the row of every decision that is wrong: unknown id, decision
            or label, an id twice, a `relabel` without label, a `keep` of an image without label.
    """
    table = text_table(full, path, COLUMNS)
    rows, problems, seen = [], list[str](), dict[str, int]()
    for number, (name, decision, label) in enumerate(table.iter_rows(), start=1):
        if decision == "keep" and label is None:
            label = given.get(name)
        problem = _problem(name, decision, label, classes, is_used=name in given, with_hint=len(problems) < SHOWN)
        if known is not None and name is not None and name not in known:
            problem = f"id {name!r} is none of the images."
        if name in seen:
            problem = f"id {name!r} is decided in row {seen[name]} already. Keep one of the two rows."
        if problem:
            problems.append(f"{path} row {number}: {problem}")
        elif name not in seen:
            seen[name] = number
        rows.append((name, decision, None if decision in REASONS else label))
    refuse(problems)
    return pl.DataFrame(rows, schema=dict.fromkeys(COLUMNS, pl.String), orient="row")


def _problem(
    name: str | None, decision: str | None, label: str | None, classes: Sequence[str], *, is_used: bool, with_hint: bool
) -> str:
    """What is wrong with one decision, "" if nothing is. with_hint: name the nearest label, which takes long."""
    if name is None:
        return "the id is empty."
    if decision not in DECISIONS:
        return f"decision {decision or ''!r} is not one of {', '.join(DECISIONS)}.{nearest(decision or '', DECISIONS)}"
    if decision in REASONS:
        return ""
    if label is None:
        no_label = "keep needs a label: the image has none." if is_used else ""  # of others nothing depends on it
        return "relabel needs a label." if decision == "relabel" else no_label
    if label not in classes:
        return f"label {label!r} is in no class list.{nearest(label, classes) if with_hint else ''}"
    return ""


def decided(units: pl.DataFrame, decisions: pl.DataFrame) -> pl.DataFrame:
    """Units with the column `decision`, and the reviewed label as label and truth where there is one."""
    reviewed = decisions.select("id", "decision", reviewed_label="label")
    joined = units.join(reviewed, on="id", how="left", maintain_order="left")
    return joined.with_columns(
        label=pl.coalesce("reviewed_label", "label"), true_label=pl.coalesce("reviewed_label", "true_label")
    ).drop("reviewed_label")


def review_rank() -> pl.Expr:
    """`RANK` of the column `decision`; smaller stays."""
    return pl.col("decision").replace_strict(RANK, default=_UNDECIDED, return_dtype=pl.Int64).fill_null(_UNDECIDED)


def leave_out_decided(units: pl.DataFrame, path: str) -> pl.DataFrame:
    """Marks kept images that were decided to be irrelevant or a duplicate as left out. path: of the decisions."""
    gone = (pl.col("outcome") == "kept") & pl.col("decision").is_in(list(REASONS))
    reason = pl.col("decision").replace_strict(REASONS, default=None, return_dtype=pl.String)
    return units.with_columns(
        outcome=pl.when(gone).then(pl.lit("left_out")).otherwise("outcome"),
        reason=pl.when(gone).then(reason).otherwise("reason"),
        detail=pl.when(gone).then(pl.lit(f"decided in {path}")).otherwise("detail"),
    )


def settled(labels: pl.DataFrame, samples: pl.DataFrame) -> pl.DataFrame:
    """A label table in which no labeler overrules a reviewer: reviewed rows are clean, certain and of full weight.

    Args:
        labels: LABEL_COLUMNS, and `p_clean` and `p_ood` where they are given. samples: rows with id and label, and
            `reviewed` where decisions were taken in; one whose label is hidden (null) is left to the labeler.
    """
    if "reviewed" not in samples.columns:
        return labels
    of = samples.filter(pl.col("reviewed") & pl.col("label").is_not_null()).select("id", reviewed_label="label")
    joined = labels.join(of, on="id", how="left", maintain_order="left")
    certain = {
        "label": pl.col("reviewed_label"),
        "confidence": pl.lit(1.0),
        "weight": pl.lit(1.0),
        "kind": pl.lit("clean"),
        "reason": pl.lit(json.dumps({"why": "reviewed"})),
        "p_clean": pl.lit(1.0),
        "p_ood": pl.lit(0.0),
    }
    is_reviewed = pl.col("reviewed_label").is_not_null()
    return joined.with_columns(
        **{
            name: pl.when(is_reviewed).then(value).otherwise(name)
            for name, value in certain.items()
            if name in labels.columns
        }
    ).drop("reviewed_label")
