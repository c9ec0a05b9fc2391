"""The table of claims: a row for every claim that was ever run, shown or not.

`claims.json` holds the rows, as `claims.measure` makes them; `claims.md` beside it is a pure function of these.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from appssl.artifact import write_bytes, write_json
from appssl.errors import DataError, SettingsError
from appssl.outcome import read_json
from appssl.reports.summary import markdown, markdown_table
from appssl.reports.wording import count, interval, number, readable

FORMAT = 1
VERDICTS = ("shown", "not shown", "opposite")
_HEAD = """\
# Claims

What methods are said to do, measured on small data. Made by `appssl bench run METHOD --set data.root=DATA --write
docs/claims.md` from the `claims` of recipes (`pipelines/`), which state sentence, metric, direction and margin before
anything is run. Rows of methods that are not run again stay as they are; so do claims that are not shown.

**Effect**: the recipe minus the one it is held against, on the same test samples, mean over seeds; in brackets the
95 % bootstrap interval over test groups and seeds (`appssl/reports/effects.py`), "unpaired" where no predictions are
kept and the two are taken as independent, which is wider. Seeds that are folds of a cross-validation are measured as
one. **Verdict**: *shown* if the whole interval lies beyond the margin, *opposite* if it lies wholly on the other side
of zero (and of the margin), else *not shown*. Intervals are not corrected for the number of claims. **Cost**: time of
all stages behind a row, one after the other; rows share stages. **Date** and **version**: of the last evaluation.
"""


def read_claims(page: Path) -> list[dict[str, Any]]:
    """Rows that `page`.md is made of, [] if it is not there yet.

    Raises:
        SettingsError: if the page is no Markdown file, or another one. DataError: if `page`.json is damaged.
    """
    if page.suffix != ".md":
        raise SettingsError(
            f"{page}: the table of claims is Markdown, with its rows in .json beside it. Name a .md file."
        )
    rows = page.with_suffix(".json")
    if not rows.exists():
        if page.exists():
            raise SettingsError(
                f"{page}: exists without {rows.name} beside it, so it is no table of claims. Name another."
            )
        return []
    found = read_json(rows)
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("claims"), list):
        raise DataError(
            f"{rows}: is damaged, or of another version. Take it from the repository, or delete it and {page}."
        )
    return list(found["claims"])


def write_claims(page: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Puts rows into a table on disk, in place of all that their methods had, and returns all rows."""
    new = {row["method"] for row in rows}
    kept = [row for row in read_claims(page) if row["method"] not in new]
    merged = sorted([*kept, *map(dict, rows)], key=lambda row: row["method"])  # stable: claims keep their order
    merged = json.loads(json.dumps(merged))
    write_json(page.with_suffix(".json"), {"format": FORMAT, "claims": merged})
    write_bytes(page, page_of(merged).encode())
    return merged


def page_of(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"{_HEAD}\n{counted(rows)}.\n\n{table(rows)}\n"


def counted(rows: Sequence[Mapping[str, Any]]) -> str:
    """`3 claims of 2 methods: 1 shown, 2 not shown, 0 opposite`"""
    counts = ", ".join(f"{sum(row['verdict'] == name for row in rows)} {name}" for name in VERDICTS)
    return f"{count(len(rows), 'claim')} of {count(len({row['method'] for row in rows}), 'method')}: {counts}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; a column for what was tried if any row says so."""
    head = ["method", "claim", "against", "metric", "direction", "effect (95 % interval)", "verdict"]
    head += ["seeds", "range over seeds", "cost", "date", "version", "tried"]
    cells = [[*map(markdown, _cells(row))] for row in rows]
    if not any(row["note"] for row in rows):
        head, cells = head[:-1], [line[:-1] for line in cells]
    return markdown_table(head, cells)


def _cells(row: Mapping[str, Any]) -> list[str]:
    each = list(row["by_seed"].values())
    unpaired = "" if row["paired"] else ", unpaired"
    return [
        row["method"].removeprefix("bench/"),
        row["says"],
        row["against"],
        readable(row["metric"]),
        direction(row),
        f"{number(row['value'], signed=True)} ({interval(row, signed=True)}{unpaired})",
        row["verdict"],
        str(len(each)),
        f"{number(min(each), signed=True)} to {number(max(each), signed=True)}",
        minutes(row["seconds"]),
        row["date"],
        row["version"],
        row["note"],
    ]


def direction(claim: Mapping[str, Any]) -> str:
    """`higher by 0.02`, `lower`, `at most 0.01 lower`: where the difference is said to lie."""
    words = ("higher", "lower") if claim["more"] else ("lower", "higher")
    if claim["by"] < 0:
        return f"at most {-claim['by']:g} {words[1]}"
    return f"{words[0]} by {claim['by']:g}" if claim["by"] else words[0]


def minutes(value: float) -> str:
    return f"{value / 60:,.1f} min"
