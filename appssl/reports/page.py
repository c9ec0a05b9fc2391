"""One self-contained page for a run: result, evidence, settings and lineage.

`report.html` belongs to the artifact, so it holds no clock, host or path: the same content is the same bytes. Seconds,
samples/s, hardware and the data root are in `times.html` beside it, which is not in the manifest.
"""

from pathlib import Path
from typing import Any

from appssl.artifact import ArtifactWriter, write_bytes
from appssl.reports import figures, inputs, measured
from appssl.reports.markup import Html, Number, details, document, figure, join, paragraph, section, table, tag
from appssl.reports.reading import PLACES, Run, Stage, is_number, read_run
from appssl.reports.wording import number, readable
from appssl.settings import flatten


def write_page(run_dir: Path, data_dir: Path, out: ArtifactWriter, *, max_quarantine_rows: int = 50) -> None:
    """Writes `report.html` into the artifact and `times.html` beside it.

    Args:
        run_dir: `<results>/<domain>/<recipe>/s<seed>`, with the folders of the stages that are finished.
        data_dir: the data artifact. max_quarantine_rows: rows of the quarantine table shown.
    Raises:
        ArtifactError: if the data artifact or a manifest is missing or damaged.
    """
    run = read_run(run_dir, data_dir)
    out.bytes("report.html", _report(run, max_quarantine_rows))
    write_bytes(out.folder / "times.html", _times(run))


def _report(run: Run, max_quarantine_rows: int) -> bytes:
    body = [
        measured.metrics(run),
        measured.comparisons(run),
        measured.evaluation_figures(run),
        inputs.labels(run),
        inputs.accounts(run),
        inputs.data_figures(run),
        inputs.quarantine(run, max_quarantine_rows),
        _training(run),
        _settings(run),
        _lineage(run),
    ]
    head = [_head(run), measured.result(run), measured.cautions(run), _contents(body)]
    links = [tag("a", "Times and machine", href="times.html")]
    return document(_title(run), *head, *body, tag("footer", *links, _version(run)))


def _title(run: Run) -> str:
    return f"{run.domain}/{run.recipe}, seed {run.seed}"


def _head(run: Run) -> Html:
    over = paragraph(f"{run.domain} · seed {run.seed} · {run.meta.get('task', '')}", class_="over")
    return join([over, tag("h1", run.recipe), paragraph(run.description, class_="soft")])


def _version(run: Run) -> str:
    return f" · appssl {run.data.artifact.manifest['version']} · data {run.data.artifact.digest[:12]}"


def _contents(body: list[Html]) -> Html:
    """Links to the sections that are there, from their headings."""
    links = []
    for part in body:
        if part.startswith('<h2 id="'):
            anchor, _, rest = part.removeprefix('<h2 id="').partition('">')
            links.append(tag("a", Html(rest.partition("</h2>")[0]), href=f"#{anchor}"))
    return tag("nav", join(links, " "))


def _training(run: Run) -> Html:
    parts: list[str] = []
    for name, stage in run.stages.items():
        curves = {key: points for key, points in stage.curves().items() if key.startswith("train/")}
        if curves:
            drawn = figures.training_curves(curves)
            parts.append(figure(drawn, kind="svg+xml", title=f"{name.capitalize()}.", caption=_last_values(curves)))
        parts.append(_probed(stage))
    return section("training", "Training", *parts)


def _probed(stage: Stage) -> Html:
    """What the encoder was worth on the way, as `engine/probe.py` measured it."""
    found = {key.removeprefix("probe/"): dict(v) for key, v in stage.curves().items() if key.startswith("probe/")}
    steps = sorted({step for values in found.values() for step in values})
    about = stage.json("probe.json", {})
    rows = [[step, *(Number(number(values.get(step))) for values in found.values())] for step in steps]
    caption = (
        f"Measured on {about.get('num_rows', 0):,} training samples. RankMe, the effective rank, of the "
        f"{about.get('layer', 'features')} ({about.get('width', 0):,} wide) and of the features; it compares settings "
        "of one method. Accuracies are for groups of training samples that did not teach the classifier."
    )
    return table(["step", *map(readable, found)], rows, caption=caption)


def _last_values(curves: dict[str, list[tuple[int, float]]]) -> str:
    steps = max(points[-1][0] for points in curves.values())
    last = ", ".join(
        f"{name.removeprefix('train/').replace('_', ' ')} {points[-1][1]:.4g}" for name, points in curves.items()
    )
    return f"{steps:,} steps. Last values: {last}."


def _settings(run: Run) -> Html:
    parts = []
    for stage in run.all:
        settings = {
            key: value for key, value in stage.config().get("settings", {}).items() if not _is_place(stage, key)
        }
        if settings:
            rows = [[tag("code", key), tag("code", _value(value))] for key, value in flatten(settings).items()]
            parts.append(details(f"{stage.name} ({len(rows)} settings)", table(["setting", "value"], rows)))
    return section("settings", "Settings", *parts)


def _is_place(stage: Stage, key: str) -> bool:
    return stage.name == "prepare" and key in PLACES


def _value(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _lineage(run: Run) -> Html:
    """Every stage with its digest and what it was made from."""
    known = {stage.artifact.digest: stage.name for stage in run.all}
    rows = []
    for stage in run.all:
        manifest = stage.artifact.manifest
        sources = [
            join([f"{name} ", _digest(digest), f" ({known[digest]})" if known.get(digest, name) != name else ""])
            for name, digest in sorted(manifest["inputs"].items())
        ]
        made_from = join(sources, Html("<br>")) if sources else "–"
        rows.append(
            [stage.name, _digest(stage.artifact.digest), _digest(manifest["settings"]), manifest["version"], made_from]
        )
    head = ["stage", "result", "settings", "code version", "made from"]
    explained = "First 12 digits of SHA-256; the whole digest shows on hovering and in manifest.json."
    return section("lineage", "Lineage", paragraph(explained, class_="soft small"), table(head, rows))


def _digest(value: str) -> Html:
    return tag("code", value[:12], title=value)


def _times(run: Run) -> bytes:
    """What differs from run to run: time, speed, machine, versions of libraries, and where the data lay."""
    rows, machines = [], []
    for stage in run.all:
        times = stage.times()
        if times:
            rows.append(
                [
                    stage.name,
                    _float(times, "seconds", ".1f"),
                    _float(times, "samples_per_second", ",.0f"),
                    _float(times, "data_wait_share", ".1%"),
                    _float(times, "probe_share", ".1%"),
                ]
            )
            about = {**_flat(times, "hardware"), **_flat(times, "packages"), "python": times.get("python", "")}
            machines.append(
                details(stage.name, table(["", ""], [[key, _value(value)] for key, value in about.items()]))
            )
    total = sum(s.times()["seconds"] for s in run.all if is_number(s.times().get("seconds")))
    rows.append(["all", Number(f"{total:,.1f}"), *[Number("")] * 3])
    root = run.data.config().get("settings", {}).get("root")
    place = [section("root", "Data root", paragraph(tag("code", root)))] if root else []
    return document(
        f"Times of {_title(run)}",
        paragraph(f"{run.domain} · seed {run.seed}", class_="over"),
        tag("h1", f"{run.recipe}: times and machine"),
        paragraph(tag("a", "Back to the report", href="report.html")),
        section("times", "Times", table(["stage", "seconds", "samples/s", "waiting for data", "probe"], rows)),
        section("machine", "Machine and versions", *machines),
        *place,
    )


def _float(values: dict[str, Any], key: str, form: str) -> Number:
    return Number(format(values[key], form) if is_number(values.get(key)) else "–")


def _flat(values: dict[str, Any], key: str) -> dict[str, Any]:
    inner = values.get(key)
    return flatten(inner) if isinstance(inner, dict) else {} if inner is None else {key: inner}
