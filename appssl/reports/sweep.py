"""A sweep as a table: every point with its RankMe and its metrics, and how far RankMe chooses without labels.

Source of the rule: Garrido et al., RankMe, ICML 2023, arXiv 2210.02885: of the runs of one method that differ in
hyper-parameters, the one whose embeddings of training data have the largest effective rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy import stats

from appssl.artifact import MANIFEST, write_bytes
from appssl.outcome import read_json
from appssl.reports.effects import effects
from appssl.reports.folds import over_folds
from appssl.reports.markup import Number, document, join, note, paragraph, section, table, tag
from appssl.reports.reading import Run, is_number, read_run
from appssl.reports.summary import find_data, markdown, markdown_table
from appssl.reports.wording import direction_of, directions, interval, main_name, number, readable, verdict
from appssl.settings import flatten, read_yaml

_LEAST_POINTS = 3  # of which a correlation says anything


@dataclass(frozen=True)
class Row:
    """A point of a sweep.

    Attributes:
        overrides: its settings. rank_me: mean over seeds, None without pretraining. value: the main metric, of all
            folds together or the mean over seeds. spread: its interval, or the range over seeds. differences: name of a
            recipe -> {value, low, high} of the main metric, over all folds or seeds, if there are two or more.
        method: names of backbone, learner and objective, and what RankMe was measured on.
        by_seed: seed -> RankMe and main metric, of the seeds that have both.
    """

    name: str
    overrides: Mapping[str, Any]
    num_seeds: int
    rank_me: float | None
    metric: str | None
    value: float | None
    spread: str
    differences: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)
    by_seed: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def write_sweep(plan: Mapping[str, Any], *, summary: Path | None, command: str) -> list[Path]:
    """Writes `<results>/<domain>/<recipe>/sweep-<name>.html` for each recipe of a sweep, and `summary/*.md` if given.

    Args:
        plan: as of `plan.make_plan`, its runs done; those that are not finished are left out and counted.
    """
    sweep, results = plan["sweep"], Path(plan["results"])
    recipes = dict.fromkeys((domain, name.partition("@")[0]) for domain, name, _ in plan["targets"])
    pages = []
    for domain, recipe in recipes:
        rows = [_row(plan, results, domain, f"{recipe}@{name}", values) for name, values in sweep["points"].items()]
        title = f"{domain}/{recipe}: {sweep['name']}"
        page = results / domain / recipe / f"sweep-{sweep['name']}.html"
        write_bytes(page, _page(title, sweep["description"], rows))
        pages.append(page)
        if summary is not None:
            text = _text(title, sweep["description"], rows, command)
            write_bytes(summary / f"{domain}-{recipe}-{sweep['name']}.md", text.encode())
    return pages


def _row(plan: Mapping[str, Any], results: Path, domain: str, recipe: str, overrides: Mapping[str, Any]) -> Row:
    planned = plan["runs"][domain][recipe]
    seeds = [seed for d, name, seed in plan["targets"] if (d, name) == (domain, recipe)]
    folders = [results / domain / recipe / f"s{seed}" for seed in seeds]
    runs = [read_run(f, find_data(f)) for f in folders if (f / "evaluate" / MANIFEST).is_file()]
    encoders = [results / e for seed in seeds if (e := _encoder(planned[f"s{seed}"], f"{domain}/{recipe}/s{seed}"))]
    probes = [found for encoder in encoders if (found := read_json(encoder / "probe.json"))]
    ranks = [found["rank_me"] for found in probes]
    rank = sum(ranks) / len(ranks) if ranks else None
    method = _method(encoders[0], probes[0]) if probes else {}
    main = main_name(runs[0].metrics()) if runs else None
    if main is None:
        return Row(recipe, overrides, len(runs), rank, None, None, "–", method=method)
    joined = over_folds(runs)
    if joined is not None and main[1] in joined.metrics.get(main[0], {}):
        whole = vars(joined.metrics[main[0]][main[1]])
        paired = {against: vars(found) for against, name, found in joined.comparisons if name == main[1]}
        return Row(recipe, overrides, len(runs), rank, main[1], whole["value"], interval(whole), paired, method)
    values = [run.metrics()[main[0]][main[1]]["value"] for run in runs]
    spread = f"{number(min(values))} to {number(max(values))}"
    differences = _over_seeds(runs, results / domain, main[1])
    by_seed: dict[str, tuple[float, float]] = {}
    if len(ranks) == len(runs) == len(seeds):
        by_seed = {run.folder.name: (r, v) for run, r, v in zip(runs, ranks, values, strict=True)}
    mean = sum(values) / len(values)
    return Row(recipe, overrides, len(runs), rank, main[1], mean, spread, differences, method, by_seed)


def _over_seeds(runs: Sequence[Run], domain: Path, metric: str) -> dict[str, Mapping[str, Any]]:
    """Differences to every recipe that all seeds were compared with."""
    if len(runs) < 2:
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    for against in dict.fromkeys(row["against"] for row in runs[0].comparisons() if row["metric"] == metric):
        folders = [domain / against / run.folder.name for run in runs]
        if all((folder / "evaluate" / MANIFEST).is_file() for folder in folders):
            others = [read_run(folder, find_data(folder)) for folder in folders]
            found[against] = vars(effects(runs, others, [metric])[metric])
    return found


def _encoder(run: Mapping[str, Any], folder: str) -> str | None:
    """Folder of the encoder that a run made or used."""
    if "pretrain" in run["stages"]:
        return f"{folder}/pretrain"
    found = [stage["inputs"]["encoder"] for stage in run["stages"].values() if "encoder" in stage["inputs"]]
    return found[0] if found else None


def _method(encoder: Path, probe: Mapping[str, Any]) -> dict[str, Any]:
    settings = read_yaml(encoder / "config.yaml")["settings"]
    named = {key: value for key, value in flatten(settings).items() if key.endswith(".name")}
    kept = {key: value for key, value in named.items() if key.split(".")[0] in ("backbone", "learner")}
    return {**kept, **{key: probe[key] for key in ("layer", "width", "num_rows")}}


def agreement(rows: Sequence[Row]) -> list[str]:
    """Sentences: which point RankMe chooses, what labels say of it, and both correlations; with their cautions."""
    ranked = [row for row in rows if row.rank_me is not None]
    if len({row.rank_me for row in ranked}) < 2:
        return []
    chosen = max(ranked, key=lambda row: row.rank_me or 0.0)
    said = [f"The largest RankMe, which needs no labels, has {chosen.name} ({number(chosen.rank_me)})."]
    known = [row for row in ranked if is_number(row.value)]
    if len(known) == len(ranked) and len({row.metric for row in known}) == 1:
        metric, values = str(known[0].metric), [float(row.value or 0) for row in known]
        best = known[values.index(max(values))]
        less = max(values) - float(chosen.value or 0)
        said.append(
            f"With labels it would be {best.name}: {readable(metric)} {number(best.value)}, {number(less)} above."
            if less
            else f"Labels choose the same: {readable(metric)} {number(best.value)}."
        )
        if len(known) >= _LEAST_POINTS and len(set(values)) > 1:
            ranks = [row.rank_me for row in known]
            spearman, kendall = stats.spearmanr(ranks, values)[0], stats.kendalltau(ranks, values)[0]
            said.append(
                f"RankMe and {readable(metric)} over {len(known)} points: Spearman {number(spearman, signed=True)}, "
                f"Kendall {number(kendall, signed=True)}."
            )
            said += _in_each_seed(known, readable(metric))
    if any(row.method != ranked[0].method for row in ranked):
        said.append(
            "RankMe can be compared within one method only, at equal width and number of rows: points of this sweep "
            "differ in these."
        )
    return said


def _in_each_seed(rows: Sequence[Row], metric: str) -> list[str]:
    """How RankMe agrees with labels if there were one seed only; nothing if there is one, or a value is not there."""
    seeds = [seed for seed in rows[0].by_seed if all(seed in row.by_seed for row in rows)]
    if len(seeds) < 2:
        return []
    correlations, below = [], []
    for seed in seeds:
        ranks, values = zip(*(row.by_seed[seed] for row in rows), strict=True)
        correlations.append(stats.spearmanr(ranks, values)[0] if min(len(set(ranks)), len(set(values))) > 1 else None)
        below.append(max(values) - values[ranks.index(max(ranks))])
    spearman = ", ".join("–" if c is None else number(c, signed=True) for c in correlations)
    less = ", ".join(map(number, below))
    return [f"In each seed alone: Spearman {spearman}; what RankMe chooses is {less} below the best {metric}."]


def _columns(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and cells, all of them text."""
    keys = list(rows[0].overrides)
    metric = next((row.metric for row in rows if row.metric), None)
    against = list(dict.fromkeys(name for row in rows for name in map(_base, row.differences)))
    has_rank = any(row.rank_me is not None for row in rows)
    head = [*keys, "seeds", *(["RankMe"] if has_rank else []), readable(metric) if metric else "metric"]
    head += ["interval or range", *(f"difference to {name}" for name in against)]
    cells = []
    for row in rows:
        own = {_base(name): found for name, found in row.differences.items()}
        cells.append(
            [
                *(str(row.overrides[key]) for key in keys),
                str(row.num_seeds),
                *([number(row.rank_me)] if has_rank else []),
                number(row.value),
                row.spread,
                *(_difference(own.get(name), row.metric) for name in against),
            ]
        )
    return head, cells


def _base(name: str) -> str:
    return name.partition("@")[0]


def _difference(found: Mapping[str, Any] | None, metric: str | None) -> str:
    if found is None:
        return "–"
    known = direction_of(str(metric), directions(["classification", "mil"]))
    text = f"{number(found['value'], signed=True)} ({interval(found, signed=True)})"
    return f"{text}, {verdict(found, known)}"


def _page(title: str, description: str, rows: Sequence[Row]) -> bytes:
    head, cells = _columns(rows)
    shown = [[Number(cell) if cell[:1] in "+−–0123456789" else cell for cell in line] for line in cells]
    return document(
        title,
        paragraph("appssl sweep", class_="over"),
        tag("h1", title),
        paragraph(description, class_="lead") if description else "",
        section("points", "Points", table(head, shown)),
        section("rank", "Chosen without labels", join([note(*said)]) if (said := agreement(rows)) else ""),
    )


def _text(title: str, description: str, rows: Sequence[Row], command: str) -> str:
    head, cells = _columns(rows)
    parts = [f"# {markdown(title)}", markdown(description), f"```\n{command}\n```"]
    parts += [markdown_table(head, [[markdown(cell) for cell in line] for line in cells])]
    return "\n\n".join(part for part in [*parts, *map(markdown, agreement(rows))] if part) + "\n"
