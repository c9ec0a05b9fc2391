"""Stage finetune: a model for the task, from an encoder (or from scratch) and labels."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from appssl import registry
from appssl.artifact import Artifact, ArtifactWriter
from appssl.contracts import Context, Examples, PreparedData, Views
from appssl.engine.features import in_place_of
from appssl.engine.fit import fit
from appssl.engine.loading import LabelledExamples
from appssl.errors import DataError
from appssl.ops.journal import Journal
from appssl.ops.part import limited
from appssl.plan import StageConfig
from appssl.stages.frame import Inputs, run_stage
from appssl.stages.labels import write_labels
from appssl.stages.models import describe, load_encoder, open_data, save_model
from appssl.stages.rows import class_numbers, take_fraction


def finetune(
    config: StageConfig,
    data_dir: Path,
    out: Path,
    *,
    encoder_dir: Path | None = None,
    labels_dir: Path | None = None,
    accelerator: str = "auto",
    devices: int = 1,
    strategy: str = "auto",
    workers: int = 0,
) -> Artifact:
    """Trains the model of a recipe.

    Args:
        data_dir: a data artifact. encoder_dir: an encoder artifact; without it the backbone of the settings is trained
            from scratch. labels_dir: a labels artifact, needed when `labels` is pseudo. out: gets `model.safetensors`
            and `model.json`, and what the method found of its samples: `labels.parquet`, `metrics.json`.
    """
    settings = config.settings

    def work(inputs: Inputs, writer: ArtifactWriter, journal: Journal) -> dict[str, Any]:
        data = limited(open_data(inputs["data"]), settings.where, field="finetune.where")
        torch.manual_seed(config.seed)
        encoder, views, about = _backbone(settings, inputs, data)
        module = registry.load("finetuners", settings.finetuner.name)
        once = getattr(settings.finetuner, "features", None) == "once"
        read, seen, backbone = in_place_of(data, views, encoder) if once else (data, views, encoder)
        labelled = None
        if hasattr(module, "examples"):
            examples: Examples = module.examples(settings.finetuner, read, seen, config.seed)
        else:
            examples = labelled = _labelled(config, read, seen, inputs.get("labels"))
            if hasattr(module, "labelled_examples"):
                examples = module.labelled_examples(settings.finetuner, labelled)
        facts: dict[str, Any] = {}
        if once:
            how = {"threads": settings.fit.threads, "accelerator": accelerator, "workers": workers}
            rows, file = examples.rows, out / "state" / "features.f32"  # type: ignore[attr-defined]
            facts["feature_seconds"] = read.compute(encoder, rows, views, file, how=how)
        context = Context(
            meta=data.meta,
            backbone=backbone,
            input_shape=seen.input_shape,
            num_samples=len(examples),
            facts=examples.facts,
        )
        learner = module.build(settings.finetuner, context)
        result = fit(
            learner,
            examples,
            settings.fit,
            state_dir=out / "state",
            journal=journal,
            seed=config.seed,
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            workers=workers,
        )
        if once:
            learner.backbone = encoder.requires_grad_(False)
        # The encoder may come from other data: views are scaled as there, classes and bags are those of this data.
        own = {"meta": asdict(data.meta), "source": inputs["data"].json("source.json")}
        about = {**about, "views_meta": about["meta"], **own}
        save_model(writer, learner, about=about, finetuner=settings.finetuner, context=context)
        if data.meta.task == "ranking":
            _save_catalog(writer, data)
        findings = learner.findings() if hasattr(learner, "findings") else None
        if findings is not None:
            labels, known = _joined(findings, data, labelled)
            after = result.num_steps + 1  # the journal has the last step of training already
            write_labels(labels, known, data.meta.classes, writer, journal, step=after)
        journal.model("model.json")
        return {
            **facts,
            "num_examples": len(examples),
            "num_steps": result.num_steps,
            "micro_batches": result.micro_batches,
            "samples_per_second": result.samples_per_second,
            "data_wait_share": result.data_wait_share,
        }

    folders = {"data": data_dir, "encoder": encoder_dir, "labels": labels_dir}
    return run_stage(config, out, folders, work, method=settings.finetuner.name)


def _joined(
    findings: pl.DataFrame, data: PreparedData, labelled: LabelledExamples | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Findings with ids and class names, and the same samples with the labels that were trained on and the truth."""
    classes = dict(enumerate(data.meta.classes))
    named = findings.with_columns(
        label=pl.col("label").replace_strict(classes, default=None, return_dtype=pl.String)
    ).sort("index")
    reviewed = [name for name in ("reviewed",) if name in data.samples.columns]
    known = data.samples[named["index"]].select("index", "id", "label", "true_label", *reviewed)
    if labelled is not None:
        trained_on = pl.DataFrame({"index": labelled.rows, "label": [classes[t] for t in labelled.targets.tolist()]})
        known = known.drop("label").join(trained_on, on="index", how="left", maintain_order="left")
    return named.select(known["id"], pl.exclude("index")), known


def _save_catalog(writer: ArtifactWriter, data: PreparedData) -> None:
    """Ids of users and items, and what each user has seen: needed to recommend without the data."""
    users, items, _ = data.interactions("train")  # type: ignore[attr-defined]
    writer.table("users.parquet", data.users.select("number", "id"))  # type: ignore[attr-defined]
    writer.table("items.parquet", data.samples.select(number="index", id="id"))
    writer.table("seen.parquet", pl.DataFrame({"user": users, "item": items}).unique().sort("user", "item"))


def _backbone(settings: Any, inputs: Inputs, data: PreparedData) -> tuple[torch.nn.Module, Views, dict[str, Any]]:
    if "encoder" in inputs:
        return load_encoder(inputs["encoder"])
    views = registry.build("views", settings.views, data.meta)
    backbone = registry.build("backbones", settings.backbone, views.input_shape, data.meta)
    about = describe(
        meta=data.meta,
        backbone=settings.backbone,
        views=settings.views,
        input_shape=views.input_shape,
        source=inputs["data"].json("source.json"),
    )
    return backbone, views, about


def _labelled(config: StageConfig, data: PreparedData, views: Views, labels: Artifact | None) -> LabelledExamples:
    """Training samples with given labels, or with those of the labeler, which saw the same share of the given ones."""
    settings = config.settings
    train = data.samples.filter(pl.col("split") == "train").with_columns(weight=pl.lit(1.0, pl.Float32))
    if settings.labels == "given":
        chosen = take_fraction(train.filter(pl.col("label").is_not_null()), settings.label_fraction, config.seed)
    else:
        if labels is None:
            raise DataError("finetune.labels is pseudo, but no labels were given (--labels).")
        made = labels.table("labels.parquet").filter((pl.col("weight") > 0) & pl.col("label").is_not_null())
        chosen = train.drop("label", "weight").join(made.select("id", "label", "weight"), on="id").sort("index")
    if chosen.is_empty():
        raise DataError("no labelled training samples to fine-tune on. Give labels, or loosen the labeler's threshold.")
    target = class_numbers(chosen["label"], data.meta.classes)
    weights = chosen["weight"].to_numpy().astype(np.float32)
    rows = chosen["index"].to_numpy().astype(np.int64)
    return LabelledExamples(data, rows, views, targets=target, weights=weights)
