"""`index.html` of a results folder: every run with its main metric, and recipes over their seeds."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from appssl.artifact import MANIFEST, write_bytes
from appssl.outcome import read_json
from appssl.reports.markup import Html, Number, bar, document, paragraph, section, table, tag
from appssl.reports.reading import STAGES, is_number
from appssl.reports.wording import count, interval, main_name, number, readable

NO_DOMAINS = ("data", "synthetic", "quick", "logs", "benchmarks")  # folders beside the domains


@dataclass(frozen=True)
class Row:
    """A run found in the results folder; `value` is {} if nothing was evaluated."""

    domain: str
    recipe: str
    seed: int
    state: str
    metric: str
    value: dict[str, Any]
    report: str | None  # relative URL


def write_index(results: Path) -> Path:
    """Writes `<results>/index.html` over all runs found there, unfinished ones too, and returns its path."""
    rows = find_runs(results)
    domains = sorted({row.domain for row in rows})
    body = [_domain(domain, [row for row in rows if row.domain == domain]) for domain in domains]
    summary = f"{count(len(rows), 'run')} of {count(len({(r.domain, r.recipe) for r in rows}), 'recipe')}."
    head = [paragraph("appssl", class_="over"), tag("h1", "Results"), paragraph(summary if rows else "No runs yet.")]
    path = results / "index.html"
    write_bytes(path, document("Results", *head, *body))
    return path


def find_runs(results: Path) -> list[Row]:
    """Runs below `<results>/<domain>/<recipe>/s<seed>`, by domain, recipe and seed."""
    found = []
    for folder in results.glob("*/*/s*"):
        domain, recipe, name = folder.relative_to(results).parts
        if folder.is_dir() and re.fullmatch(r"s\d+", name) and domain not in NO_DOMAINS and domain[0] != ".":
            found.append(_row(folder, domain, recipe, int(name[1:])))
    return sorted(found, key=lambda row: (row.domain, row.recipe, row.seed))


def _row(folder: Path, domain: str, recipe: str, seed: int) -> Row:
    metrics = (read_json(folder / "evaluate" / "metrics.json") or {}) if _is_done(folder / "evaluate") else {}
    main = main_name(metrics)
    page = folder / "report" / "report.html"
    return Row(
        domain=domain,
        recipe=recipe,
        seed=seed,
        state=_state(folder),
        metric=main[1] if main else "",
        value=metrics[main[0]][main[1]] if main else {},
        report=quote(f"{domain}/{recipe}/s{seed}/report/report.html") if page.is_file() else None,
    )


def _is_done(stage: Path) -> bool:
    return (stage / MANIFEST).is_file()


def _state(folder: Path) -> str:
    """`done`, `failed in <stage>: message`, or which stage was finished last."""
    for stage in (*STAGES, "report"):
        failed = read_json(folder / stage / "failed.json")
        if isinstance(failed, dict) and not _is_done(folder / stage):
            first_line = str(failed.get("message") or "").partition("\n")[0]
            return f"failed in {stage}: {first_line[:200]}"
    if _is_done(folder / "report"):
        return "done"
    done = [stage for stage in STAGES if _is_done(folder / stage)]
    return f"not finished, after {done[-1]}" if done else "not finished"


def _domain(domain: str, rows: list[Row]) -> Html:
    values = [row.value[key] for row in rows for key in ("value", "high") if is_number(row.value.get(key))]
    is_unit = bool(values) and min(values) >= 0 and max(values) <= 1
    body = []
    for row in rows:
        name = tag("a", row.recipe, href=row.report) if row.report else row.recipe
        shown = (
            bar(row.value["value"], row.value.get("low"), row.value.get("high"), start=0, end=1)
            if row.value and is_unit
            else ""
        )
        state = tag("span", row.state, class_="bad" if row.state.startswith("failed") else "soft")
        value = [Number(number(row.value.get("value"))), Number(interval(row.value))]
        body.append([name, row.seed, readable(row.metric) or "–", *value, shown, state])
    head = ["recipe", "seed", "metric", "value", "95 % interval", "0 to 1" if is_unit else "", "state"]
    return section(domain, domain, table(head, body), _over_seeds(rows))


def _over_seeds(rows: list[Row]) -> Html:
    """Mean and range of the main metric of every recipe with more than one evaluated seed."""
    body = []
    for recipe in sorted({row.recipe for row in rows}):
        for metric in sorted({row.metric for row in rows if row.recipe == recipe}):
            values = [r.value["value"] for r in rows if r.recipe == recipe and r.metric == metric and r.value]
            if len(values) > 1:
                spread = Number(f"{number(min(values))} to {number(max(values))}")
                body.append([recipe, readable(metric), len(values), Number(number(sum(values) / len(values))), spread])
    head = ["recipe", "metric", "seeds", "mean", "range over seeds"]
    return table(head, body, caption="Over seeds") if body else Html("")
