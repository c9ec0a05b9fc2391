"""Small finished runs, written as the stages write them: one of classification, one of ranking."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from appssl.artifact import Artifact, ArtifactWriter, write_json
from appssl.contracts import Quarantined, Scored
from appssl.evaluators import classification

EVIL = '<script>document.title="taken"</script>'
CLASSES = ("walking", "running", "cycling $x$", "sitting & lying")


def beside(folder: Path, stage: str, settings: dict, seconds: float, **facts) -> None:
    """config.yaml, run.json: what lies beside an artifact."""
    about = {"stage": stage, "domain": "wearable", "recipe": "tiny", "seed": 0}
    write_json(folder.parent / "about.json", {"description": "A tiny run <for tests>."})
    write_json(folder / "config.yaml", {**about, "settings": settings})
    machine = {"hardware": {"machine": "x86_64", "cpus": 2}, "packages": {"torch": "2.9.0"}, "python": "3.11.2"}
    write_json(folder / "run.json", {"seconds": seconds, **facts, **machine})


def journal(folder: Path, steps: int, *, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    lines = [{"event": "start", "run": "x"}]
    for step in range(10, steps + 1, 10):
        loss = 2 * np.exp(-step / 80) + 0.05 * rng.random()
        values = {
            "train/loss": loss,
            "train/loss_align": loss / 2,
            "train/lr": 1e-3 * (1 + np.cos(np.pi * step / steps)) / 2,
        }
        lines.append(
            {
                "event": "metrics",
                "step": step,
                "time_ms": 1234567 + step,
                "values": {**values, "time/step_seconds": 0.1},
            }
        )
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"event": "metrics", "st'  # torn by a kill
    (folder / "metrics.jsonl").write_text(text)


def png(width: int, height: int, seed: int = 0) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def write_data(folder: Path, *, task: str = "classification") -> Artifact:
    out = ArtifactWriter(folder, "data", settings_digest="d" * 64, inputs={"table:recordings.csv": "a" * 64})
    windows = out.account("windows")
    windows.keep(940)
    windows.leave_out("too_short", 45)
    windows.leave_out("blank", 10)
    windows.fail("truncated", 5)
    out.account("recordings").keep(12)
    for i in range(60):
        failed = i < 5
        out.quarantine.append(
            Quarantined(
                what="window",
                item=EVIL if i == 0 else f"w{i:03}",
                where=f"recordings.csv row {i}",
                outcome="failed" if failed else "left_out",
                reason="truncated" if failed else "too_short",
                detail="1.2 s, needed are 2.0 s",
            )
        )
    classes = CLASSES if task == "classification" else ()
    meta = {"source": "wearable", "domain": "wearable", "task": task, "classes": classes, "facts": {}}
    meta |= {"group": "subject" if classes else "user"}
    meta["facts"] = {"sampling_hz": 25.0, "caution": "Two subjects wore the device on the other wrist."}
    out.json("meta.json", meta)
    out.bytes("figures/windows.png", png(320, 120))
    out.json("figures.json", [{"file": "figures/windows.png", "title": "Windows", "caption": f"One per class {EVIL}"}])
    part = ["train"] * 6 + ["test"] * 4
    samples = {"id": [f"w{i}" for i in range(10)], "group": [f"p{i // 2}" for i in range(10)], "split": part}
    rows = [("device", "wrist", "kept", 7), ("device", "wrist", "gap", 2), ("device", "hip", "kept", 9)]
    rows += [("activity", None, "kept", 4), ("activity", "walking", "gap", 5)]
    out.table("accounts.parquet", pl.DataFrame(rows, schema=["by", "name", "reason", "windows"], orient="row"))
    out.table("samples.parquet", pl.DataFrame({**samples, "label": ["walking", None] * 5}))
    beside(folder, "prepare", {"root": "/somewhere/on/this/machine", "shards": 3, "budget": 0.005}, 3.25)
    return out.finish()


def scored(seed: int, skill: float, num: int = 240) -> Scored:
    target = np.random.default_rng(0).integers(0, 4, num)
    values = np.random.default_rng([seed, 2]).random((num, 4)) + skill * np.eye(4)[target]
    return Scored(
        ids=np.array([EVIL if i == 7 else f"w{i:04}" for i in range(num)]),
        groups=np.array([f"p{i % 12}" for i in range(num)]),
        target=target,
        classes=CLASSES,
        probabilities=values / values.sum(1, keepdims=True),
    )


def plain(found: dict) -> dict:
    return {name: vars(metric) for name, metric in found.items()}


def write_evaluation(folder: Path, data: Artifact, seed: int) -> None:
    ours, same, bad = scored(seed, 0.9), scored(seed + 50, 0.9), scored(seed + 90, 0.1)
    inputs = {"data": data.digest, "model": "e" * 64, "compare:scratch": "f" * 64}
    out = ArtifactWriter(folder, "evaluation", settings_digest="c" * 64, inputs=inputs)
    measured = classification.build(classification.Config()).evaluate(ours, num_bootstrap=100, seed=seed)
    out.json("metrics.json", {"classification": plain(measured)})
    comparison = []
    for against, other in (("scratch", bad), ("twin", same)):
        found = plain(classification.paired(ours, other, num_bootstrap=100, seed=seed))
        comparison += [{"against": against, "metric": name, **values} for name, values in found.items()]
    out.json("comparison.json", comparison)
    names = np.array(CLASSES)
    table = {"id": ours.ids, "group": ours.groups, "target": names[ours.target]}
    table |= {"prediction": names[ours.probabilities.argmax(1)], "confidence": ours.probabilities.max(1)}
    table |= {"probabilities": ours.probabilities}
    out.table("predictions.parquet", pl.DataFrame(table))
    points = np.random.default_rng(seed).standard_normal((len(ours.ids), 2)) + np.eye(4)[ours.target][:, :2] * 4
    points[:, 1] += 3 * ours.target
    out.table(
        "map.parquet", pl.DataFrame({"id": ours.ids, "x": points[:, 0], "y": points[:, 1], "label": names[ours.target]})
    )
    settings = {
        "evaluators": [{"name": "classification"}],
        "num_bootstrap": 100,
        "compare": ["scratch", "twin"],
        "threads": 2,
    }
    beside(folder, "evaluate", settings, 2.5)
    out.finish()


def write_labels(folder: Path, data: Artifact) -> None:
    out = ArtifactWriter(folder, "labels", settings_digest="b" * 64, inputs={"data": data.digest})
    kinds = ["clean"] * 70 + ["id_noise"] * 20 + ["ood_noise"] * 10
    labels = {
        "id": [EVIL if i == 0 else f"w{i:04}" for i in range(100)],
        "label": ["walking"] * 90 + [None] * 10,
        "confidence": [0.99 - 0.005 * i for i in range(100)],
        "weight": [1.0] * 90 + [0.0] * 10,
        "kind": kinds,
        "reason": [f"loss {0.1 * (i % 7):.1f} below threshold {EVIL}" for i in range(100)],
    }
    out.table("labels.parquet", pl.DataFrame(labels))
    out.json(
        "ledger.json", [{"round": r, "threshold": 0.9 - 0.05 * r, "taken": 40 + r, "model": "9" * 64} for r in range(3)]
    )
    out.json(
        "metrics.json",
        {"noise_auroc": {"value": 0.91, "low": 0.88, "high": 0.94, "num_groups": 8}, "share_clean": {"value": 0.7}},
    )
    beside(folder, "pseudolabel", {"labeler": {"name": "elsewhere.labels"}}, 1.0)
    out.finish()


def write_trained(folder: Path, kind: str, stage: str, data: Artifact) -> None:
    out = ArtifactWriter(folder, kind, settings_digest="a" * 64, inputs={"data": data.digest})
    out.bytes("weights.bin", b"weights")
    settings = {"learner": {"name": "elsewhere.learner", "objective": {"name": "elsewhere.loss", "temperature": 0.1}}}
    beside(folder, stage, settings, 60.5, samples_per_second=1234.5, data_wait_share=0.031, probe_share=0.012)
    journal(folder, 300)
    out.finish()


def write_ranking(folder: Path, data: Artifact) -> None:
    out = ArtifactWriter(folder, "evaluation", settings_digest="c" * 64, inputs={"data": data.digest})
    found = {}
    for base, level in (("recall@20", 0.3), ("ndcg@20", 0.2)):
        for name, share in (("", 1.0), ("_head", 1.5), ("_middle", 0.6), ("_tail", 0.1)):
            value = level * share
            found[f"{base}{name}"] = {"value": value, "low": value * 0.9, "high": value * 1.1, "num_groups": 610}
    for number in (1, 2, 10):  # the items between were not asked for
        found[f"recall@20_decile_{number:02}"] = {"value": 0.5 / number, "low": 0.0, "high": 0.6, "num_groups": 7}
    found["coverage@20"] = {"value": 0.4, "low": None, "high": None, "num_groups": None}
    out.json("metrics.json", {"ranking": found})
    out.json(
        "comparison.json",
        [
            {
                "against": "popularity",
                "metric": "recall@20",
                "value": 0.02,
                "low": -0.01,
                "high": 0.05,
                "num_groups": 610,
            },
            {
                "against": "popularity",
                "metric": "recall@20_decile_02",
                "value": 0.03,
                "low": -0.01,
                "high": 0.06,
                "num_groups": 7,
            },
        ],
    )
    out.table("predictions.parquet", pl.DataFrame({"user": [EVIL, "u2"], "recall@20": [0.5, 0.1]}))
    out.finish()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results folder with wearable/tiny (seeds 0 and 1, all stages) and recsys/tiny_rank (seed 0, evaluation only)."""
    root = tmp_path_factory.mktemp("built") / "results"
    data = write_data(root / "data" / "wearable-1")
    for seed in (0, 1):
        run = root / "wearable" / "tiny" / f"s{seed}"
        write_trained(run / "pretrain", "encoder", "pretrain", data)
        write_labels(run / "pseudolabel", data)
        write_trained(run / "finetune", "model", "finetune", data)
        write_evaluation(run / "evaluate", data, seed)
    ranked = write_data(root / "data" / "recsys-1", task="ranking")
    write_ranking(root / "recsys" / "tiny_rank" / "s0" / "evaluate", ranked)
    report(root, "wearable/tiny/s0", "wearable-1")
    report(root, "recsys/tiny_rank/s0", "recsys-1")
    return root


@pytest.fixture
def results(built: Path, tmp_path: Path) -> Path:
    """A copy of `built` that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "results"))


def report(results: Path, run: str, data: str) -> Artifact:
    from appssl.reports.page import write_page

    out = ArtifactWriter(results / run / "report", "report", settings_digest="0" * 64, inputs={})
    write_page(results / run, results / "data" / data, out)
    return out.finish()


@pytest.fixture
def browser(tmp_path: Path):
    """Headless Chromium in a fresh profile; skips, and says so, where Debian's packages are not installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip(
            "NOT TESTED IN A BROWSER: chromium or chromedriver is missing; apt install chromium chromium-driver"
        )
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={tmp_path / 'profile'}", "window-size=1200,900",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield opened
    finally:
        opened.quit()
