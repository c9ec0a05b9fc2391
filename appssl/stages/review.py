"""A work list of suspicious labels for people: the triage table, and the page on which they decide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from appssl.artifact import MANIFEST, Artifact, sha256_file, write_bytes, write_table, written_aside
from appssl.contracts import PreparedData
from appssl.errors import ArtifactError, DataError
from appssl.ops.triage import triage
from appssl.reports.reading import Stage
from appssl.reports.review_decisions import Decisions
from appssl.reports.review_page import item, review_page
from appssl.stages.duplicates import TABLE as DUPLICATES
from appssl.stages.lineage import results_root
from appssl.stages.models import open_data

LABELS = "labels.parquet"


@dataclass(frozen=True)
class Review:
    """What was written to a folder: the triage table, the page, and the decisions so far."""

    triage: Path
    page: Path
    decisions: Decisions
    num_rows: int
    num_shown: int
    root: str  # folder of the raw inputs, which `decisions` of the source is relative to; "" if unknown


def review(result: Path, out: Path, *, data_dir: Path | None = None, limit: int = 1000) -> Review:
    """Writes `triage.parquet`, `triage.csv` and `review.html`; reads `decisions.csv` and near-duplicates found there.

    The page shows the `limit` most suspicious images that are not decided, and those that are. The caller holds `out`.

    Args:
        result: an artifact with `labels.parquet` that was made from data, or a run that holds one. data_dir: that data;
            None: searched for in the results folder.
    Raises:
        ArtifactError: if there are no such labels, or their data are not found.
        DataError: if the data are no images, or decisions or near-duplicates are not of these data.
    """
    artifact = labels_of(result)
    data_artifact = data_of(artifact, data_dir)
    domain = data_artifact.json("meta.json")["domain"]
    if domain != "webnoisy":
        raise DataError(f"{result}: holds labels of the domain {domain}; images of webnoisy are reviewed.")
    data = open_data(data_artifact)
    made = triage(artifact.table(LABELS), data.samples)
    for name in ("triage.parquet", "triage.csv"):
        with written_aside(out / name) as file:
            write_table(file, made, Path(name).suffix)
    given = dict(data.samples.select("id", "label").iter_rows())
    decisions = Decisions(out / "decisions.csv", given=given, classes=data.meta.classes)
    shown = _shown(made, decisions, limit)
    near = _near_duplicates(out / DUPLICATES, data.samples)
    groups = _groups(near, limit)
    page = review_page(
        _title(artifact),
        about=_about(made, shown, decisions),
        classes=data.meta.classes,
        items=_items(data, made, [*shown, *(name for group in groups for name in group["ids"])], near),
        labels=shown,
        groups=groups,
        decisions=decisions.rows(),
    )
    write_bytes(out / "review.html", page)
    root = Stage("prepare", data_artifact).config().get("settings", {}).get("root", "")
    return Review(out / "triage.csv", out / "review.html", decisions, len(made), len(shown), root)


def labels_of(result: Path) -> Artifact:
    """The artifact with labels: `result` itself, or of a run the last stage that wrote some."""
    for folder in (result, result / "finetune", result / "pseudolabel"):
        if (folder / MANIFEST).is_file():
            artifact = Artifact.open(folder)
            if artifact.has(LABELS):
                return artifact
    raise ArtifactError(
        f"{result}: no judged labels here. Give a run whose recipe has a pseudolabel block, such as "
        "results/webnoisy/demo/s0, or a folder with labels.parquet."
    )


def data_of(artifact: Artifact, folder: Path | None = None) -> Artifact:
    """The data that an artifact was made from.

    Args:
        folder: where they are; None: searched for among the prepared data of the same results folder.
    Raises:
        ArtifactError: if they are not found, or are others than its manifest names.
    """
    wanted = artifact.manifest["inputs"].get("data")
    if folder is not None:
        found = Artifact.open(folder, "data")
        if wanted != found.digest:
            raise ArtifactError(f"{folder}: is not the data that {artifact.folder} was made from.")
        return found
    if wanted is not None:
        for manifest in sorted((results_root(artifact.folder) / "data").glob(f"*/{MANIFEST}")):
            if sha256_file(manifest) == wanted:
                return Artifact.open(manifest.parent, "data")
    raise ArtifactError(f"{artifact.folder}: the data it was made from are not in its results folder. Give --data.")


def _title(artifact: Artifact) -> str:
    config = Stage("labels", artifact).config()
    names = [str(config[key]) for key in ("domain", "recipe") if config.get(key)]
    return f"{'/'.join(names)}, seed {config.get('seed', 0)}" if names else artifact.folder.name


def _shown(made: pl.DataFrame, decisions: Decisions, limit: int) -> list[str]:
    """Ids in the order of suspicion: the first `limit` that are not decided, and all that are."""
    is_decided = pl.col("id").is_in([name for name, _, _ in decisions.rows()])
    rank = (~is_decided).cum_sum()
    return made.filter(is_decided | (rank <= limit))["id"].to_list()


def _about(made: pl.DataFrame, shown: Sequence[str], decisions: Decisions) -> str:
    if len(shown) == len(made):
        return f"All {len(made):,} judged images, the most suspicious label first."
    num_decided = len({name for name, _, _ in decisions.rows()} & set(shown))
    earlier = f" and the {num_decided:,} that are decided" if num_decided else ""
    return (
        f"The {len(shown) - num_decided:,} most suspicious of {len(made):,} judged images{earlier}. "
        "The same command shows the next ones when these are decided; --limit shows more at once."
    )


def _near_duplicates(path: Path, samples: pl.DataFrame) -> pl.DataFrame | None:
    """The table that `appssl duplicates` wrote here, with `nearest_split`; None if it did not."""
    if not path.is_file():
        return None
    found = pl.read_parquet(path, memory_map=False)
    if not set(found["id"]) <= set(samples["id"]):
        raise DataError(
            f"{path}: names images that are not in these data. Run 'appssl duplicates' again, or remove it."
        )
    return found.join(samples.select(nearest="id", nearest_split="split"), on="nearest", how="left")


def _groups(near: pl.DataFrame | None, limit: int) -> list[dict[str, Any]]:
    """Groups of near-duplicates in the order of the table, up to about `limit` images."""
    groups: list[dict[str, Any]] = []
    if near is None:
        return groups
    count = 0
    for (number,), part in near.partition_by("group", as_dict=True, maintain_order=True).items():
        count += len(part)
        if count > limit and groups:
            break
        facts = {"similarity": part["similarity"].max(), "leak": part["leak"].any(), "ids": part["id"].to_list()}
        groups.append({"number": number, "splits": sorted(set(part["split"]), reverse=True), **facts})
    return groups


def _items(
    data: PreparedData, made: pl.DataFrame, names: Sequence[str], near: pl.DataFrame | None
) -> list[dict[str, Any]]:
    """Every named image once; those that were not judged (of the test part) with their label only."""
    wanted = list(dict.fromkeys(names))
    judged = _by_id(made.filter(pl.col("id").is_in(wanted)))
    nearest = {} if near is None else _by_id(near)
    samples = data.samples.filter(pl.col("id").is_in(wanted)).select("id", "index", "label", "split")
    return [
        item(
            judged.get(row["id"], {"id": row["id"], "label": row["label"]}),
            data.read(row["index"]),
            split=row["split"],
            near=nearest.get(row["id"]),
        )
        for row in samples.iter_rows(named=True)
    ]


def _by_id(table: pl.DataFrame) -> Mapping[str, dict[str, Any]]:
    return {row["id"]: row for row in table.iter_rows(named=True)}
