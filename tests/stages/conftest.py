"""What is on disk when training has ended: a tiny crawl with an untrained encoder and model, a tiny trained shop."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from appssl import registry
from appssl.artifact import Artifact, ArtifactWriter
from appssl.contracts import Context
from appssl.plan import MODELS, StageConfig
from appssl.settings import validate
from appssl.stages.finetune import finetune
from appssl.stages.models import describe, save_model, save_state
from appssl.synthetic.recsys import make

CLASSES = ("blue", "red")


@dataclass(frozen=True)
class Crawl:
    root: Path  # images and table.csv
    run: Path  # pretrain/ and finetune/
    data: Artifact


@dataclass(frozen=True)
class Shop:
    run: Path  # finetune/
    data: Artifact


def config(kind, name, **values):
    return validate(registry.load(kind, name).Config, {"name": name, **values}, file="r.yaml", owner=f"{kind}/{name}")


def draw(folder: Path, count: int, seed: int = 0) -> None:
    """Noisy squares, red for even numbers, blue for odd ones, and `table.csv`."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
        pixels[..., 0 if number % 2 == 0 else 2] += 150
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
        split = "test" if number % 4 > 1 else "train"
        rows.append(
            {"id": f"i{number:02}", "path": f"{number:02}.png", "label": CLASSES[1 - number % 2], "split": split}
        )
    pl.DataFrame(rows).write_csv(folder / "table.csv")


@pytest.fixture(scope="session")
def crawl(tmp_path_factory) -> Crawl:
    root = tmp_path_factory.mktemp("crawl")
    draw(root, 16)
    settings = config("sources", "webnoisy", table="table.csv", columns={"split": "split"}, size=16)
    source = registry.build("sources", settings)
    shard = ArtifactWriter(root / "shard", "shard", settings_digest="", inputs={})
    source.prepare(root, 0, 1, shard)
    writer = ArtifactWriter(root / "data", "data", settings_digest="", inputs={})
    source.merge(root, [shard.finish()], writer)
    writer.json("source.json", settings.plain())
    data = writer.finish()
    return Crawl(root, trained(root / "run", data, source.open(data)), data)


def trained(run: Path, artifact: Artifact, data) -> Path:
    torch.manual_seed(0)
    backbone = config("backbones", "small_cnn", widths=[4, 6])
    views = config("views", "image_two_crop", size=16)
    shape = registry.build("views", views, data.meta).input_shape
    network = registry.build("backbones", backbone, shape, data.meta)
    about = describe(
        meta=data.meta, backbone=backbone, views=views, input_shape=shape, source=artifact.json("source.json")
    )
    encoder = ArtifactWriter(run / "pretrain", "encoder", settings_digest="", inputs={"data": artifact.digest})
    encoder.json("encoder.json", about)
    save_state(encoder, "encoder.safetensors", network.state_dict())
    made = encoder.finish()
    finetuner = config("finetuners", "linear_probe")
    context = Context(data.meta, network, shape, num_samples=8, facts={"class_counts": [4.0, 4.0]})
    learner = registry.build("finetuners", finetuner, context)
    inputs = {"data": artifact.digest, "encoder": made.digest}
    model = ArtifactWriter(run / "finetune", "model", settings_digest="", inputs=inputs)
    save_model(model, learner, about=about, finetuner=finetuner, context=context)
    model.finish()
    return run


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Shop:
    """A prepared log of 60 users and a two-tower model that was trained on it for an epoch."""
    root = tmp_path_factory.mktemp("shop")
    make(root, size="tiny", seed=0)
    settings = config("sources", "recsys", categorical=["category"], multi=[{"column": "tags"}])
    source = registry.build("sources", settings)
    shard = ArtifactWriter(root / "shard", "shard", settings_digest="", inputs={})
    source.prepare(root, 0, 1, shard)
    writer = ArtifactWriter(root / "data", "data", settings_digest="", inputs={})
    source.merge(root, [shard.finish()], writer)
    writer.json("source.json", settings.plain())
    data = writer.finish()
    given = {
        "finetuner": {"name": "retrieval", "dim": 16},
        "backbone": {"name": "two_tower", "token_dim": 8, "hidden": [16], "out": 16},
        "views": {"name": "item_features"},
        "fit": {"epochs": 1, "batch_size": 64, "threads": 1},
    }
    tuned = validate(MODELS["finetune"], given, file="r.yaml", owner="finetune")
    finetune(StageConfig("finetune", "recsys", "tiny", 0, tuned), data.folder, root / "run/finetune", accelerator="cpu")
    return Shop(root / "run", data)
