"""A small crawl whose labels were judged, as it lies in a results folder: prepared data and a label table."""

import json
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from appssl import registry
from appssl.artifact import Artifact, ArtifactWriter, write_json
from appssl.settings import validate

EVIL = '</script><script>document.title="taken"</script>'
AWKWARD = 'a, "b".png'  # an id that a CSV must quote
CLASSES = (EVIL, "blue", "red")
RUN, DATA = "webnoisy/tiny/s0", "data/webnoisy-1"
# id, given label, part, what the labeler says: label, kind, p_clean
ROWS = (
    ("i0", "red", "train", "red", "clean", 0.9),
    ("i1", "red", "train", "blue", "id_noise", 0.05),
    ("i2", "blue", "train", "blue", "ood_noise", 0.2),
    (AWKWARD, "blue", "train", "red", "id_noise", 0.1),
    ("i4", EVIL, "train", EVIL, "clean", 0.6),
    ("i5", "blue", "train", "blue", "clean", 0.95),
    ("t0", "red", "test", None, None, None),
    ("t1", "blue", "test", None, None, None),
)


def pixels(number: int, side: int = 16) -> np.ndarray:
    """Noise with a coloured corner, different for every number."""
    made = np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)
    made[: side // 2, : side // 2] = np.random.default_rng(number + 1000).integers(0, 255, 3)
    return made


def write_crawl(root: Path, rows=ROWS) -> None:
    """`table.csv` (id, path, label, split, url) and a picture for each row."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(len(rows)):
        Image.fromarray(pixels(number)).save(root / f"{number}.png")
    table = [
        {"id": name, "path": f"{number}.png", "label": label, "split": part, "url": _url(number)}
        for number, (name, label, part, *_) in enumerate(rows)
    ]
    pl.DataFrame(table).write_csv(root / "table.csv")


def _url(number: int) -> str | None:
    return ["https://example.org/0?a=1&b=2", "javascript:document.title='taken'", None][number % 3]


def settings(**values):
    stated = {"table": "table.csv", "columns": {"split": "split", "url": "url"}, "size": 16, **values}
    module = registry.load("sources", "webnoisy")
    return validate(module.Config, {"name": "webnoisy", **stated}, file="r.yaml", owner="sources/webnoisy")


def prepare(root: Path, out: Path, config) -> Artifact:
    source = registry.build("sources", config)
    shard = ArtifactWriter(out / "shards" / "0", "shard", settings_digest="", inputs={})
    source.prepare(root, 0, 1, shard)
    writer = ArtifactWriter(out, "data", settings_digest="", inputs={})
    source.merge(root, [shard.finish()], writer)
    writer.json("source.json", config.plain())
    write_json(out / "config.yaml", {"stage": "prepare", "settings": {"root": str(root)}})
    return writer.finish()


def write_labels(folder: Path, data: Artifact, rows=ROWS) -> Artifact:
    judged = [row for row in rows if row[2] == "train"]
    labels = {
        "id": [name for name, *_ in judged],
        "label": [label for *_, label, _, _ in judged],
        "confidence": [0.5 + p / 2 for *_, p in judged],
        "weight": [0.0 if kind == "ood_noise" else 1.0 for *_, kind, _ in judged],
        "kind": [kind for *_, kind, _ in judged],
        "reason": [json.dumps({"why": f"told {EVIL}", "loss": 1.5, "p_clean": p}) for *_, p in judged],
        "p_clean": [p for *_, p in judged],
    }
    writer = ArtifactWriter(folder, "labels", settings_digest="", inputs={"data": data.digest})
    writer.table("labels.parquet", pl.DataFrame(labels).sort("id"))
    about = {"stage": "pseudolabel", "domain": "webnoisy", "recipe": "tiny", "seed": 0, "settings": {}}
    write_json(folder / "config.yaml", about)
    return writer.finish()


def write_results(folder: Path) -> Path:
    """`folder/results` with `DATA` and `RUN`/pseudolabel; the raw crawl is `folder/crawl`. Returns the results."""
    write_crawl(folder / "crawl")
    results = folder / "results"
    data = prepare(folder / "crawl", results / DATA, settings())
    write_labels(results / RUN / "pseudolabel", data)
    return results
