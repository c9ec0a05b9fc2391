"""Sections of the report about what was measured. Each is `Html`, empty if there is nothing."""

from typing import Any

import numpy as np
import polars as pl

from appssl.ops.metrics import confusion_metrics, confusion_per_group
from appssl.reports import figures
from appssl.reports.markup import Html, Number, bar, details, figure, note, paragraph, section, table, tag
from appssl.reports.reading import Run, is_number
from appssl.reports.wording import (
    count,
    direction_of,
    directions,
    in_order,
    interval,
    is_decile,
    main_name,
    number,
    plural,
    readable,
    remark,
    slice_of,
    verdict,
)

_MOST_GROUPS = 500  # rows of a table that anyone reads


def result(run: Run) -> Html:
    """What came out, in words: the main metric with its interval, and the verdict of every comparison."""
    metrics = run.metrics()
    main = main_name(metrics)
    if main is None:
        done = ", ".join(run.stages) or "data preparation only"
        return paragraph(f"Nothing was evaluated in this run. Finished stages: {done}.", class_="lead")
    evaluator, name = main
    found = metrics[evaluator][name]
    parts: list[Any] = [_where(run), tag("strong", f"{readable(name)} is {number(found['value'])}")]
    if found.get("low") is not None:
        parts.append(f" (95 % interval {interval(found)}, over {count(found['num_groups'], _group(run))})")
    else:
        parts.append(" (no interval: fewer than two groups)")
    return paragraph(*parts, ". ", *_in_words(run, name), class_="lead")


def _where(run: Run) -> str:
    predictions = run.stages["evaluate"].table("predictions.parquet")
    if predictions is None:
        return "On the test part, "
    return f"On {count(len(predictions), 'test sample' if 'target' in predictions.columns else 'test user')}, "


def _group(run: Run) -> str:
    return str(run.meta.get("group", "group"))


def _in_words(run: Run, main: str) -> list[Any]:
    """One sentence for each recipe that was compared with, about the main metric or else the first one."""
    known = directions(run.metrics())
    sentences: list[Any] = []
    for against in dict.fromkeys(row["against"] for row in run.comparisons()):
        rows = [row for row in run.comparisons() if row["against"] == against]
        row = next((r for r in rows if r["metric"] == main), rows[0])
        found = verdict(row, direction_of(row["metric"], known))
        by = f"{number(row['value'], signed=True)} ({interval(row, signed=True)}) {readable(row['metric'])}"
        name = tag("strong", against)
        if found == "no difference shown":
            sentences += ["No difference shown against ", name, f": {by}, the interval includes 0. "]
        elif found.startswith("no interval"):
            sentences += [
                "Against ",
                name,
                f": {number(row['value'], signed=True)} {readable(row['metric'])}, {found}. ",
            ]
        else:
            sentences += [tag("span", found.capitalize(), class_=found), " than ", name, f": {by}. "]
    return sentences


def cautions(run: Run) -> Html:
    """What must be known before the numbers are used."""
    given = run.meta.get("facts", {}).get("caution")
    texts = [given] if isinstance(given, str) else list(given or [])
    evaluated = [m for found in run.metrics().values() for name, m in found.items() if not is_decile(name)]
    fewest = min((m["num_groups"] for m in evaluated if m.get("num_groups")), default=None)
    if fewest is not None and fewest < 10:
        texts.append(
            f"The intervals rest on {count(fewest, _group(run))} only; with so few, they tend to be too narrow and say "
            "little about others."
        )
    return note(*map(str, texts))


def metrics(run: Run) -> Html:
    """Every metric of every evaluator with its interval and number of groups; those of deciles folded away."""
    known = directions(run.metrics())
    parts = []
    for evaluator, found in run.metrics().items():
        rows = {
            name: [
                readable(name),
                Number(number(m["value"])),
                Number(interval(m)),
                _unit_bar(m),
                m.get("num_groups") if m.get("num_groups") is not None else "–",
                {1: "higher", -1: "lower"}.get(direction_of(name, known) or 0, ""),
            ]
            for name, m in ((name, found[name]) for name in in_order(found, known))
        }
        head = ["metric", "value", "95 % interval", "0 to 1", plural(_group(run)), "better is"]
        parts += [tag("h3", evaluator), table(head, [row for name, row in rows.items() if not is_decile(name)])]
        if of_deciles := [row for name, row in rows.items() if is_decile(name)]:
            parts.append(details(f"By decile of items ({len(of_deciles)})", table(head, of_deciles)))
        parts += [paragraph(remark(evaluator), class_="soft small")] if remark(evaluator) else []
    if parts:
        parts.append(paragraph(f"Percentile bootstrap over whole {plural(_group(run))}.", class_="soft small"))
    return section("metrics", "Metrics", *parts)


def _unit_bar(m: dict[str, Any]) -> Html:
    if not is_number(m["value"]) or not 0 <= m["value"] <= 1:
        return Html("")
    return bar(m["value"], m.get("low"), m.get("high"), start=0, end=1)


def comparisons(run: Run) -> Html:
    """Paired differences, this recipe minus the other; those of deciles folded away."""
    rows = run.comparisons()
    if not rows:
        return Html("")
    known = directions(run.metrics())
    ends = [abs(row[key]) for row in rows for key in ("value", "low", "high") if is_number(row.get(key))]
    reach = max([*ends, 1e-9])
    order = {metric: i for i, metric in enumerate(in_order({row["metric"] for row in rows}, known))}
    body: dict[bool, list[Any]] = {False: [], True: []}  # of deciles or not
    others = list(dict.fromkeys(row["against"] for row in rows))
    for row in sorted(rows, key=lambda row: (others.index(row["against"]), order[row["metric"]])):
        found = verdict(row, direction_of(row["metric"], known))
        shown = bar(row["value"], row.get("low"), row.get("high"), start=-reach, end=reach, zero=True)
        body[is_decile(row["metric"])].append(
            [
                row["against"],
                readable(row["metric"]),
                Number(number(row["value"], signed=True)),
                Number(interval(row, signed=True)),
                shown if is_number(row["value"]) else "",
                tag("span", found, class_=found if found in ("better", "worse") else "soft"),
            ]
        )
    head = ["against", "metric", "difference", "95 % interval", f"±{reach:.3g}", "verdict"]
    explained = (
        "This recipe minus the other, on the same test samples and the same bootstrap resamples. "
        "An interval that includes 0 shows no difference. The intervals are not corrected for their number."
    )
    of_deciles = [details(f"By decile of items ({len(body[True])})", table(head, body[True]))] if body[True] else []
    parts = [paragraph(explained, class_="soft small"), table(head, body[False]), *of_deciles]
    return section("comparisons", "Comparisons", *parts)


def evaluation_figures(run: Run) -> Html:
    """Confusion matrix, reliability and map of embeddings for classes; bars of slices for ranking."""
    if "evaluate" not in run.stages:
        return Html("")
    stage = run.stages["evaluate"]
    predictions = stage.table("predictions.parquet")
    parts: list[str] = []
    if predictions is not None and {"target", "prediction", "confidence"} <= set(predictions.columns):
        parts += _classes(run, predictions)
    parts += _slices(run)
    points = stage.table("map.parquet")
    if points is not None and len(points):
        parts.append(_map(run, points))
    return section("evaluation", "On the test part", *parts)


def _classes(run: Run, predictions: pl.DataFrame) -> list[str]:
    classes = _class_names(run, [*predictions["target"], *predictions["prediction"]])
    number_of = {name: i for i, name in enumerate(classes)}
    target = np.array([number_of[str(name)] for name in predictions["target"]])
    prediction = np.array([number_of[str(name)] for name in predictions["prediction"]])
    matrix = np.bincount(target * len(classes) + prediction, minlength=len(classes) ** 2).reshape(len(classes), -1)
    confidence = predictions["confidence"].to_numpy().astype(np.float64)
    caption = "Rows are true classes, shaded by the share of the row."
    calibration = "Where confidence is right, bars end on the dashed line."
    pair = [
        figure(figures.confusion(matrix, classes), kind="svg+xml", title="Confusion matrix.", caption=caption),
        figure(
            figures.reliability(confidence, (target == prediction).astype(float)),
            kind="svg+xml",
            title="Reliability.",
            caption=calibration,
        ),
    ]
    actual, predicted, right = matrix.sum(1), matrix.sum(0), matrix.diagonal()
    rows = [
        [name, int(actual[k]), int(predicted[k]), _share(right[k], actual[k]), _share(right[k], predicted[k])]
        for k, name in enumerate(classes)
    ]
    by_class = table(["class", "test samples", "predicted", "recall", "precision"], rows)
    groups = predictions["group"].to_numpy() if "group" in predictions.columns else None
    by_group = "" if groups is None else _by_group(_group(run), groups, target, prediction, len(classes))
    return [tag("div", *pair, class_="pair"), details(f"By class ({len(classes)})", by_class), by_group]


def _by_group(named: str, groups: np.ndarray, target: np.ndarray, prediction: np.ndarray, num_classes: int) -> Html:
    """A row for each patient, subject or the like; nothing where these are as many as samples, or beyond counting."""
    names, codes = np.unique(groups, return_inverse=True)
    if len(names) == len(groups) or not 1 < len(names) <= _MOST_GROUPS:
        return Html("")
    summed = confusion_per_group(target, prediction, codes, len(names), num_classes).toarray()
    found = confusion_metrics(summed.reshape(-1, num_classes, num_classes))
    rows = [
        [name, int(count), *(Number(number(values[k])) for values in found.values())]
        for k, (name, count) in enumerate(zip(names.tolist(), np.bincount(codes), strict=True))
    ]
    head = [named, "test samples", *map(readable, found)]
    return details(f"By {named} ({len(names)})", table(head, rows))


def _class_names(run: Run, seen: list[Any]) -> list[str]:
    """Classes in the order of the data, with any others that occur behind them."""
    named = [str(name) for name in run.meta.get("classes", [])]
    return [*named, *sorted({str(name) for name in seen} - set(named))]


def _share(part: int, whole: int) -> Number:
    return Number(f"{part / whole:.3f}" if whole else "–")


def _map(run: Run, points: pl.DataFrame) -> Html:
    labels = [str(label) for label in points["label"]]
    present = [name for name in _class_names(run, labels) if name in set(labels)]
    drawn = figures.embedding_map(points["x"].to_numpy(), points["y"].to_numpy(), labels, present)
    caption = (
        f"{len(points):,} test samples in two dimensions, coloured by true class. Distances are a rough guide only."
    )
    return figure(drawn, kind="svg+xml", title="Embedding map.", caption=caption)


def _slices(run: Run) -> list[str]:
    """Bars of head, middle, tail and cold items, and of deciles of items."""
    found: dict[str, dict[str, Any]] = {}
    deciles: dict[str, dict[str, Any]] = {}
    for values in run.metrics().values():
        for name, m in values.items():
            if (split := slice_of(name)) and is_number(m["value"]):
                (deciles if is_decile(name) else found).setdefault(split[0], {})[split[1]] = m
        for base in found:
            if base in values and is_number(values[base]["value"]):
                found[base]["all"] = values[base]
    lines = "Lines are 95 % intervals."
    by_events = (
        "1 are the most popular items; each decile has a tenth of the training events, where no item has more than "
        "that. Items without training events are in none."
    )
    return [
        *_bars(found, "By popularity of the item.", f"Items by how often they occur in training. {lines}"),
        *_bars(deciles, "By decile of training events.", f"{by_events} {lines}"),
    ]


def _bars(found: dict[str, dict[str, Any]], title: str, caption: str) -> list[str]:
    if not found:
        return []
    drawn = figures.slice_bars({readable(base): slices for base, slices in sorted(found.items())})
    return [figure(drawn, kind="svg+xml", title=title, caption=caption)]
