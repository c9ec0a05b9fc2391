"""Markdown summary of a recipe over its seeds, for `docs/results/<recipe>.md`."""

from collections.abc import Mapping, Sequence
from itertools import filterfalse
from pathlib import Path
from typing import Any

from appssl.artifact import MANIFEST, Artifact, sha256_file
from appssl.errors import ArtifactError, DataError, SettingsError
from appssl.plan import read_config
from appssl.reports.folds import over_folds
from appssl.reports.reading import JUDGES, PLACES, Run, Stage, is_number, read_run
from appssl.reports.wording import (
    direction_of,
    directions,
    in_order,
    interval,
    is_decile,
    number,
    readable,
    remark,
    verdict,
)
from appssl.settings import Settings, flatten

PACKAGES = ("torch", "numpy", "polars", "timm", "albumentations", "openslide-bin", "scikit-learn")


def summarize(run_dirs: list[Path], *, command: str, data_dir: Path | None = None) -> str:
    """Description, settings that differ from the defaults, accounts, metrics, comparisons, versions, how to repeat.

    Args:
        run_dirs: evaluated runs `<results>/<domain>/<recipe>/s<seed>` of one recipe. command: what made them.
        data_dir: their prepared data; found in `<results>/data` by its digest if not given.
    Raises:
        DataError: if the runs are of several recipes. ArtifactError: if one is not evaluated or its data is not found.
    """
    if not run_dirs:
        raise DataError("there is no run to summarize; give folders such as results/wearable/demo/s0.")
    runs = [read_run(folder, data_dir or find_data(folder)) for folder in run_dirs]
    runs.sort(key=lambda run: int(run.seed))
    if len({(run.domain, run.recipe) for run in runs}) > 1:
        names = ", ".join(sorted({f"{run.domain}/{run.recipe}" for run in runs}))
        raise DataError(f"a summary is of one recipe, these are several: {names}. Summarize them one by one.")
    if missing := [str(run.folder) for run in runs if not run.metrics()]:
        raise ArtifactError(f"not evaluated: {', '.join(missing)}. Run the recipe to its end first.")
    first = runs[0]
    parts = [
        f"# {markdown(first.domain)}/{markdown(first.recipe)}",
        markdown(first.description),
        f"```\n{command.strip()}\n```",
        *_caution(first),
        "## Metrics",
        *_metrics(runs),
        *_over_folds(runs),
        *_comparisons(runs),
        *_labels(runs),
        "## Data",
        *_accounts(first),
        "## Settings that differ from the defaults",
        _settings(first),
        "## Versions",
        _versions(runs),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def find_data(run_dir: Path) -> Path:
    """The data artifact in the results folder that the run's stages were made from, by its digest.

    Raises:
        ArtifactError: if no finished stage names its data, or no data folder has that digest.
    """
    folder = run_dir.resolve()
    wanted = _data_digest(folder)
    for manifest in sorted((folder.parents[2] / "data").glob(f"*/{MANIFEST}")):
        if sha256_file(manifest) == wanted:
            return manifest.parent
    raise ArtifactError(
        f"{run_dir}: the prepared data it was made from is not in {folder.parents[2] / 'data'}. Run prepare again."
    )


def _data_digest(folder: Path) -> str:
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
        inputs = Artifact.open(manifest.parent, check=False).manifest["inputs"]
        if "data" in inputs:
            return str(inputs["data"])
    raise ArtifactError(f"{folder}: no finished stage here. Give a folder such as results/wearable/demo/s0.")


def markdown(value: Any) -> str:
    """Text as Markdown shows it, inside and outside of tables."""
    text = " ".join(str(value).split())
    for character in "\\`*[]<>|":
        text = text.replace(character, f"\\{character}")
    return text


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    numeric = [i > 0 and all(row[i][:1] in "+−–0123456789" for row in rows) for i in range(len(head))]
    lines = [" | ".join(head), " | ".join("--:" if n else "---" for n in numeric), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _caution(run: Run) -> list[str]:
    given = run.meta.get("facts", {}).get("caution")
    texts = [given] if isinstance(given, str) else list(given or [])
    return [f"> {markdown(text)}" for text in texts]


def _metrics(runs: list[Run]) -> list[str]:
    """A table for each evaluator: a column per seed with the interval, then mean and range over seeds.

    Deciles of items are left to the report of a run.
    """
    parts = []
    for evaluator, found in runs[0].metrics().items():
        head = ["metric", *(f"seed {run.seed}" for run in runs), "groups"]
        head += ["mean over seeds", "range"] if len(runs) > 1 else []
        rows = []
        for name in in_order(filterfalse(is_decile, found), directions([evaluator])):
            each = [run.metrics().get(evaluator, {}).get(name, {}) for run in runs]
            row = [markdown(readable(name)), *map(_with_interval, each), str(each[0].get("num_groups") or "–")]
            rows.append(row + (_spread(each) if len(runs) > 1 else []))
        parts += [f"### {markdown(evaluator)}", markdown_table(head, rows), markdown(remark(evaluator))]
    group = markdown(runs[0].meta.get("group", "group"))
    return [*parts, f"In brackets: 95 % percentile bootstrap interval over groups ({group})."]


def _labels(runs: list[Run]) -> list[str]:
    """What was said of the training labels, and how right it was where the truth is known."""
    parts = [part for stage, when in JUDGES.items() for part in _judged(runs, stage, when)]
    explained = "Over the training samples, without intervals; where the truth is known it was for measuring only."
    return ["## Labels", explained, *parts] if parts else []


def _judged(runs: list[Run], stage: str, when: str) -> list[str]:
    each = [run.stages[stage].json("metrics.json", {}) for run in runs if stage in run.stages]
    if not each or not each[0]:
        return []
    rows = [
        [markdown(readable(name)), *(number(found.get(name, {}).get("value")) for found in each)]
        + (_spread([found.get(name, {}) for found in each]) if len(each) > 1 else [])
        for name in each[0]
    ]
    head = ["metric", *(f"seed {run.seed}" for run in runs)] + (["mean over seeds", "range"] if len(each) > 1 else [])
    return [f"### Judged {when}", markdown_table(head, rows)]


def _with_interval(values: Mapping[str, Any], *, signed: bool = False) -> str:
    text = number(values.get("value"), signed=signed)
    return text if values.get("low") is None else f"{text} ({interval(values, signed=signed)})"


def _spread(each: list[dict[str, Any]], *, signed: bool = False) -> list[str]:
    values = [m["value"] for m in each if is_number(m.get("value"))]
    if not values:
        return ["–", "–"]
    ends = f"{number(min(values), signed=signed)} to {number(max(values), signed=signed)}"
    return [number(sum(values) / len(values), signed=signed), ends]


def _comparisons(runs: list[Run]) -> list[str]:
    """Paired differences, a row per seed, with the verdict in plain words."""
    known = directions(runs[0].metrics())
    measured = {row["metric"] for run in runs for row in run.comparisons() if not is_decile(row["metric"])}
    order = [markdown(readable(name)) for name in in_order(measured, known)]
    rows = [
        [
            markdown(row["against"]),
            markdown(readable(row["metric"])),
            run.seed,
            _with_interval(row, signed=True),
            str(row.get("num_groups") or "–"),
            verdict(row, direction_of(row["metric"], known)),
        ]
        for run in runs
        for row in run.comparisons()
        if not is_decile(row["metric"])
    ]
    if not rows:
        return []
    rows.sort(key=lambda row: (row[0], order.index(row[1]), int(row[2])))
    explained = (
        "This recipe minus the other on the same test samples, paired; no correction for the number of comparisons."
    )
    return [
        "## Comparisons",
        explained,
        markdown_table(["against", "metric", "seed", "difference", "groups", "verdict"], rows),
    ]


def _over_folds(runs: list[Run]) -> list[str]:
    """Metrics and paired differences of all folds of a cross-validation together."""
    found = over_folds(runs)
    if found is None:
        return []
    explained = (
        f"The predictions of {found.num_folds} folds together, each of a model that was not trained on that fold. "
        "An AUROC ranks probabilities of different models."
    )
    known = directions(found.metrics)
    rows = [
        [markdown(readable(name)), _with_interval(vars(measured[name])), str(measured[name].num_groups)]
        for measured in found.metrics.values()
        for name in in_order(measured, known)
    ]
    differences = [
        [
            markdown(against),
            markdown(readable(name)),
            _with_interval(vars(metric), signed=True),
            str(metric.num_groups),
            verdict(vars(metric), direction_of(name, known)),
        ]
        for against, name, metric in found.comparisons
    ]
    tables = [
        markdown_table(["metric", "all folds", "groups"], rows),
        markdown_table(["against", "metric", "difference", "groups", "verdict"], differences),
    ]
    return ["## Over all folds", explained, *tables]


def _accounts(run: Run) -> list[str]:
    rows = []
    for what, values in run.data.json("account.json", {}).items():
        left_out, failed = (_reasons(values[key]) for key in ("left_out", "failed"))
        rows.append([markdown(what), f"{values['total']:,}", f"{values['kept']:,}", left_out, failed])
    return [
        markdown_table(["inputs", "in", "kept", "left out", "failed"], rows),
        f"Digest of the prepared data: `{run.data.artifact.digest}`",
    ]


def _reasons(found: Mapping[str, int]) -> str:
    total = sum(found.values())
    detail = ", ".join(
        f"{markdown(readable(reason))} {n:,}" for reason, n in sorted(found.items(), key=lambda i: (-i[1], i[0]))
    )
    return f"{total:,} ({detail})" if detail else "0"


def _settings(run: Run) -> str:
    rows = []
    for stage in run.all:
        if stage.config():
            title, stated = _stated(stage)
            stated = {key: value for key, value in stated.items() if not (stage.name == "prepare" and key in PLACES)}
            rows += [[title, f"`{key}`", markdown(_plain(value))] for key, value in flatten(stated).items()]
    return markdown_table(["stage", "setting", "value"], rows) or "None: every setting is a default."


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else "none" if value is None else str(value)


def _stated(stage: Stage) -> tuple[str, dict[str, Any]]:
    """Stage and its differing settings; all of them, and said so, if this version does not know the defaults."""
    try:
        return stage.name, differing(read_config(stage.folder / "config.yaml", stage.name).settings)
    except SettingsError:
        return f"{stage.name} (all settings)", dict(stage.config().get("settings") or {})


def differing(settings: Settings) -> dict[str, Any]:
    """The settings that are required or differ from their defaults, as plain values; methods with their names."""
    found: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(value, Settings):
            inner = differing(value)
            method = getattr(value, "name", None)
            usual = default if isinstance(default, str) else getattr(default, "name", None)
            if method != usual or (method and inner):
                inner = {"name": method, **inner}
            if inner:
                found[field.alias or name] = inner
        elif isinstance(value, tuple) and any(isinstance(item, Settings) for item in value):
            if tuple(map(_as_default, value)) == default:
                continue
            found |= {f"{name}.{i}": _item(item) for i, item in enumerate(value)}
        elif field.is_required() or value != default:
            found[field.alias or name] = value
    return found


def _item(item: Settings) -> dict[str, Any]:
    """A member of a list of settings; methods have a name even where it is all that is given."""
    method = getattr(item, "name", None)
    return differing(item) if method is None else {"name": method, **differing(item)}


def _as_default(item: Any) -> Any:
    """A method of which only the name is given, as defaults are written."""
    return item if differing(item) or not hasattr(item, "name") else item.name


def _versions(runs: list[Run]) -> str:
    times = runs[0].stages["evaluate"].times()
    packages = times.get("packages", {})
    machine = times.get("hardware", {})
    seconds = [s.times()["seconds"] for s in runs[0].all if is_number(s.times().get("seconds"))]
    lines = [
        f"appssl {runs[0].stages['evaluate'].artifact.manifest['version']}",
        *(f"{name} {packages[name]}" for name in PACKAGES if name in packages),
        *([f"python {times['python']}"] if "python" in times else []),
        *([f"{machine['cpus']} CPUs, {machine.get('machine', '')}"] if "cpus" in machine else []),
    ]
    took = f" All stages of seed {runs[0].seed} took {sum(seconds):,.0f} s." if seconds else ""
    return f"{markdown(', '.join(lines))}.{took}"
