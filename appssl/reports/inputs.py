"""Sections of the report about inputs and labels. Each is `Html`, empty if there is nothing."""

from typing import Any

import polars as pl

from appssl.contracts import SPLITS
from appssl.reports import figures
from appssl.reports.markup import Html, Number, details, figure, join, note, paragraph, section, table, tag
from appssl.reports.reading import JUDGES, Run, Stage, is_number
from appssl.reports.wording import interval, number, readable

MAX_FIGURE_BYTES = 2_600_000  # all domain figures together; base64 makes a third more of it, the page stays below 5 MB
MAX_REASONS = 3  # examples of each kind of label
MAX_LEDGER_ROWS = 100


def labels(run: Run) -> Html:
    """What was decided of labels, with examples of reasons, rounds, and how right it was where that is known."""
    judged = {name: stage for name, stage in run.stages.items() if stage.artifact.has("labels.parquet")}
    parts = [part for name, stage in judged.items() for part in _judged(stage, JUDGES[name])]
    return section("labels", "Labels", *parts)


def _judged(stage: Stage, judge: str) -> list[Html]:
    made = stage.table("labels.parquet")
    parts = [paragraph(f"Judged {judge}.", class_="soft small")]
    parts += [] if made.is_empty() else [_kinds(made), _reasons(made)]
    truth = {name: m for name, m in stage.json("metrics.json", {}).items() if not name.startswith("share_")}
    if truth:
        rows = [[readable(name), Number(number(m["value"])), Number(interval(m))] for name, m in truth.items()]
        parts += [tag("h3", "Against the known truth"), table(["metric", "value", "95 % interval"], rows)]
    return [*parts, _ledger(stage.json("ledger.json", []))]


def _kinds(made: pl.DataFrame) -> Html:
    by_kind = made.group_by("kind").agg(
        pl.len(), pl.col("confidence").mean(), pl.col("weight").mean(), used=(pl.col("weight") > 0).sum()
    )
    rows = [
        [
            readable(row["kind"]),
            row["len"],
            Number(f"{row['len'] / len(made):.1%}"),
            row["used"],
            Number(number(row["confidence"])),
            Number(number(row["weight"])),
        ]
        for row in by_kind.sort("len", "kind", descending=[True, False]).iter_rows(named=True)
    ]
    rows.append(["all", len(made), Number("100.0%"), int((made["weight"] > 0).sum()), Number(""), Number("")])
    return table(["kind", "samples", "share", "used", "mean confidence", "mean weight"], rows)


def _reasons(made: pl.DataFrame) -> Html:
    rows = []
    for kind in made["kind"].unique().sort():
        chosen = made.filter(pl.col("kind") == kind).unique("reason", keep="first", maintain_order=True)
        for row in chosen.head(MAX_REASONS).iter_rows(named=True):
            values = [Number(number(row["confidence"])), Number(number(row["weight"]))]
            rows.append([readable(kind), row["id"], row["label"] or "–", *values, row["reason"]])
    head = ["kind", "id", "label", "confidence", "weight", "reason"]
    return details("Examples of reasons", table(head, rows))


def _ledger(entries: list[dict[str, Any]]) -> Html:
    if not entries:
        return Html("")
    keys = dict.fromkeys(key for entry in entries for key in entry)
    head = sorted(keys, key=lambda key: key != "round")  # the round first, the rest in the order of the file
    rows = [[_ledger_cell(entry.get(key)) for key in head] for entry in entries[:MAX_LEDGER_ROWS]]
    more = len(entries) - len(rows)
    left = [paragraph(f"{more} more in ledger.json.", class_="soft small")] if more > 0 else []
    return join([tag("h3", "Ledger"), table([readable(key) for key in head], rows), *left])


def _ledger_cell(value: Any) -> Any:
    if is_number(value):
        return value
    if isinstance(value, str) and len(value) == 64:  # a digest
        return tag("code", value[:12], title=value)
    return "" if value is None else str(value)


def accounts(run: Run) -> Html:
    """What became of every input, in tables that sum, and a warning where they do not."""
    parts: list[str] = []
    for stage in run.all:
        found = stage.json("account.json", {})
        wrong = [
            f"The account of {what} does not sum: {values['total']:,} came in, {_explained(values):,} are explained. "
            "Do not trust these data; report this."
            for what, values in found.items()
            if _explained(values) != values["total"]
        ]
        parts += [note(*wrong), _account_table(found, stage.name), *_finer_accounts(stage)]
    return section("account", "What became of the inputs", *parts)


def _explained(values: dict[str, Any]) -> int:
    return int(values["kept"] + sum(values["left_out"].values()) + sum(values["failed"].values()))


def _account_table(found: dict[str, Any], stage: str) -> Html:
    rows: list[list[Any]] = []
    sub = set()
    for what, values in found.items():
        left_out, failed = sum(values["left_out"].values()), sum(values["failed"].values())
        rows.append([what, values["total"], values["kept"], left_out, failed])
        for outcome, column in (("left_out", 3), ("failed", 4)):
            for reason, number_of in sorted(values[outcome].items(), key=lambda item: (-item[1], item[0])):
                line: list[Any] = [readable(reason), "", "", "", ""]
                line[column] = number_of
                sub.add(len(rows))
                rows.append(line)
    head = [stage, "in", "= kept", "+ left out", "+ failed"]
    return table(head, rows, sub=frozenset(sub))


def _finer_accounts(stage: Stage) -> list[Html]:
    """Accounts by subject, device or activity, where the source keeps them (`accounts.parquet`)."""
    found = stage.table("accounts.parquet")
    if found is None:
        return []
    parts = []
    for (by,), own in found.partition_by("by", as_dict=True, maintain_order=True).items():
        rows = []
        for (name,), counts in own.partition_by("name", as_dict=True, maintain_order=True).items():
            by_reason = dict(counts.select("reason", "windows").iter_rows())
            total, kept = sum(by_reason.values()), by_reason.pop("kept", 0)
            why = ", ".join(f"{readable(reason)} {count:,}" for reason, count in sorted(by_reason.items()))
            rows.append(["without" if name is None else name, total, kept, total - kept, why])
        head = [by, "windows in", "= kept", "+ left out", "reasons"]
        parts.append(details(f"Windows by {by} ({len(rows)})", table(head, rows)))
    return parts


def data_figures(run: Run) -> Html:
    """Figures that the data artifact brings along: slides, windows, rejected images, popularity curve."""
    parts: list[str] = []
    room = MAX_FIGURE_BYTES
    for entry in run.data.json("figures.json", []):
        content, kind = figures.compact(run.data.artifact.path(entry["file"]).read_bytes())
        room -= len(content)
        if room < 0:
            parts.append(note(f"{entry['title']}: too large for this page, see {entry['file']} in the data folder."))
            room += len(content)
            continue
        parts.append(figure(content, kind=kind, title=f"{entry['title']}.", caption=entry.get("caption", "")))
    return section("data", "The data", _parts_of_data(run.data), *parts)


def _parts_of_data(stage: Stage) -> Html:
    """Samples, groups and labels in each part."""
    samples = stage.table("samples.parquet")
    if samples is None or not {"split", "group", "label"} <= set(samples.columns):
        return Html("")
    counted = samples.group_by("split").agg(
        pl.len(), groups=pl.col("group").n_unique(), labelled=pl.col("label").is_not_null().sum()
    )
    rows = sorted(counted.iter_rows(named=True), key=lambda row: SPLITS.index(row["split"]))
    head = ["part", "samples", "groups", "with label"]
    return table(head, [[row["split"], row["len"], row["groups"], row["labelled"]] for row in rows])


def quarantine(run: Run, max_rows: int) -> Html:
    """The first rows of the inputs that were not kept."""
    rows = run.data.table("quarantine.parquet")
    if rows is None or rows.is_empty() or max_rows == 0:
        return Html("")
    head = ["what", "item", "where", "outcome", "reason", "detail"]
    shown = [
        [readable(str(row["outcome"])) if key == "outcome" else row[key] for key in head]
        for row in rows.head(max_rows).iter_rows(named=True)
    ]
    failed_first = paragraph(
        f"{min(max_rows, len(rows)):,} of {len(rows):,} inputs that were not kept. All of them are in ",
        tag("code", "quarantine.parquet"),
        " in the folder of the prepared data.",
        class_="soft small",
    )
    return section("quarantine", "Quarantine", failed_first, details("Show rows", table(head, shown)))
