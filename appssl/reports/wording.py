"""Numbers, names and verdicts as the reports write them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from appssl import registry
from appssl.errors import SettingsError
from appssl.outcome import MAIN_METRICS

_SPELLING = {"f1": "F1", "auroc": "AUROC", "knn": "k-NN", "ndcg": "NDCG", "mrr": "MRR", "map": "MAP", "ood": "OOD"}
_WORDS = {
    "id_noise": "in-distribution noise",
    "ood_noise": "out-of-distribution noise",
    "hard_clean": "hard but clean",
    "rank_me": "RankMe",
    "rank_me_features": "RankMe of features",
}


def readable(name: str) -> str:
    """`knn_macro_f1` -> `k-NN macro F1`, `id_noise` -> `in-distribution noise`."""
    if name in _WORDS:
        return _WORDS[name]
    return re.sub(r"[A-Za-z0-9]+", lambda m: _SPELLING.get(m[0], m[0]), name.replace("_", " "))


def number(value: Any, *, signed: bool = False) -> str:
    """A measured value with four decimals; a dash where there is none."""
    if value is None or value != value:
        return "–"
    text = f"{abs(value):.4f}" if abs(value) < 1000 else f"{abs(value):,.1f}"
    return ("−" if value < 0 and float(text.replace(",", "")) else "+" if signed else "") + text


def interval(values: Mapping[str, Any], *, signed: bool = False) -> str:
    """`0.79 to 0.83`, or a dash."""
    if values.get("low") is None or values.get("high") is None:
        return "–"
    return f"{number(values['low'], signed=signed)} to {number(values['high'], signed=signed)}"


def plural(thing: str) -> str:
    return f"{thing[:-1]}ies" if thing.endswith("y") else f"{thing}s"


def count(value: int, thing: str) -> str:
    """`1,200 subjects`, `1 subject`, `2 queries`."""
    return f"{value:,} {thing if value == 1 else plural(thing)}"


def directions(evaluators: Iterable[str]) -> dict[str, int]:
    """Metric -> +1 if larger is better, -1 if smaller is; of the evaluators that are installed."""
    found: dict[str, int] = {}
    for name in evaluators:
        try:
            described = getattr(registry.load("evaluators", name), "DESCRIPTIONS", {})
        except SettingsError:  # a plug-in of another environment: its differences are called higher and lower
            continue
        found |= {metric: described[metric][2] for metric in described}
    return found


def remark(evaluator: str) -> str:
    """What an evaluator says of its numbers; empty if nothing."""
    try:
        return str(getattr(registry.load("evaluators", evaluator), "REMARK", ""))
    except SettingsError:
        return ""


def verdict(difference: Mapping[str, Any], direction: int | None) -> str:
    """better, worse or `no difference shown` (the interval includes 0); higher or lower if no direction is known."""
    low, high = difference.get("low"), difference.get("high")
    if low is None or high is None:
        return "no interval: fewer than two groups"
    if low <= 0 <= high:
        return "no difference shown"
    if direction is None:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) == (direction > 0) else "worse"


def in_order(found: Iterable[str], known: Mapping[str, int]) -> list[str]:
    """Metrics in the order in which their evaluators describe them, the others behind."""
    place = {name: i for i, name in enumerate(known)}
    return sorted(found, key=lambda name: (place.get(name, len(place)), name))


def direction_of(metric: str, known: Mapping[str, int]) -> int | None:
    """Direction of a metric, of that of a baseline (`popularity_mrr@20`), or of a slice (`recall@20_tail`) of it."""
    words = metric.split("_")
    for start in range(len(words)):
        if (of_baseline := "_".join(words[start:])) in known:
            return known[of_baseline]
    own = re.split("@" if "@" in metric else r"[_/ ]", metric)[0]
    family = [d for name, d in known.items() if name.split("@")[0] == own]
    return family[0] if family and len(set(family)) == 1 else None


def main_name(metrics: Mapping[str, Mapping[str, Any]]) -> tuple[str, str] | None:
    """Evaluator and metric that stand for a run; the first there is if none of the usual ones was measured."""
    for evaluator, name in MAIN_METRICS.items():
        if name in metrics.get(evaluator, {}):
            return evaluator, name
    return next(((evaluator, name) for evaluator, found in metrics.items() for name in found), None)


_SLICE = re.compile(r"(?:^|[_/ .@-])(head|middle|tail|cold|decile_\d\d)(?=$|[_/ .@-])")


def slice_of(metric: str) -> tuple[str, str] | None:
    """`recall@20_tail` or `tail_recall@20` -> (recall@20, tail); None for a metric over everything.

    Slices are head, middle, tail, cold, and decile_01 to decile_10.
    """
    found = _SLICE.search(metric)
    if not found:
        return None
    rest = (metric[: found.start()] + metric[found.end() :]).strip("_/ .-")
    return (rest, found[1]) if rest else None


def is_decile(metric: str) -> bool:
    """Whether a metric is that of a decile of items."""
    found = slice_of(metric)
    return found is not None and found[1].startswith("decile")
