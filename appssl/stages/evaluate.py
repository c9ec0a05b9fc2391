"""Stage evaluate: metrics on the test part with intervals, predictions of every sample, paired comparisons."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from appssl import registry
from appssl.artifact import Artifact, ArtifactWriter
from appssl.contracts import BagScores, Metric, PreparedData, Ranked, Scored, TrainedStage, Views
from appssl.engine.features import Features
from appssl.engine.loading import embed
from appssl.errors import ArtifactError, DataError
from appssl.ops.bags import index_bags
from appssl.ops.bootstrap import bootstrap_means
from appssl.ops.journal import Journal
from appssl.ops.per_sample import from_columns, to_columns
from appssl.plan import StageConfig
from appssl.stages.adapt import adapt_to
from appssl.stages.bag_scores import bag_probabilities, class_logits
from appssl.stages.continual import trained_stages
from appssl.stages.frame import Inputs, run_stage
from appssl.stages.models import load_encoder, load_model, open_data
from appssl.stages.rows import class_numbers, evaluation_table

_MAX_TRAIN_FEATURES = 20_000  # rows of the training part that neighbors are searched in
_MAX_MAP_POINTS = 2_000


def evaluate(
    config: StageConfig,
    data_dir: Path,
    out: Path,
    *,
    encoder_dir: Path | None = None,
    model_dir: Path | None = None,
    compare: Mapping[str, Path] | None = None,
    accelerator: str = "auto",
    workers: int = 0,
) -> Artifact:
    """Measures a model, or an encoder alone by its neighbors.

    Args:
        compare: recipe name -> its evaluation artifact, compared sample by sample.
        out: gets `metrics.json` {evaluator: {metric: {value, low, high, num_groups}}}, `predictions.parquet`,
            `comparison.json` and, for classification, `map.parquet`; `bags.parquet` for models of bags; `adapted.json`
            where the model was adapted to the test inputs.
    """

    def work(inputs: Inputs, writer: ArtifactWriter, journal: Journal) -> dict[str, Any]:
        torch.set_num_threads(config.settings.threads)
        how = {"threads": config.settings.threads, "accelerator": accelerator, "workers": workers}
        others = {name: inputs[f"compare:{name}"] for name in compare or {}}
        data = open_data(inputs["data"])
        measure = _ranking if data.meta.task == "ranking" else _classification
        metrics, comparison = measure(config, data, inputs, others, writer, how)
        writer.json("metrics.json", {name: {k: vars(m) for k, m in found.items()} for name, found in metrics.items()})
        writer.json("comparison.json", comparison)
        journal.metrics(1, _flat(metrics))
        return {"num_evaluators": len(metrics)}

    names = ", ".join(evaluator.name for evaluator in config.settings.evaluators)
    folders = {"data": data_dir, "encoder": encoder_dir, "model": model_dir}
    folders |= {f"compare:{name}": folder for name, folder in (compare or {}).items()}
    return run_stage(config, out, folders, work, method=names)


def _flat(metrics: dict[str, dict[str, Metric]]) -> dict[str, float]:
    flat = {}
    for name, found in metrics.items():
        for key, metric in found.items():
            flat[f"eval/{name}/{key}"] = metric.value
            if metric.low is not None and metric.high is not None:
                flat[f"eval_low/{name}/{key}"], flat[f"eval_high/{name}/{key}"] = metric.low, metric.high
    return flat


def _classification(
    config: StageConfig,
    data: PreparedData,
    inputs: Inputs,
    others: dict[str, Artifact],
    writer: ArtifactWriter,
    how: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Metric]], list[dict[str, Any]]]:
    settings = config.settings
    scored, adapted = _score(config, data, inputs, how)
    if adapted is not None:
        writer.json("adapted.json", adapted)
    if any(hasattr(registry.load("evaluators", each.name), "NEEDS_STAGES") for each in settings.evaluators):
        scored = replace(scored, stages=_stages(scored, inputs, others))
    built = {evaluator.name: registry.build("evaluators", evaluator) for evaluator in settings.evaluators}
    kept = [each.per_sample(scored) for each in built.values() if hasattr(each, "per_sample")]
    scored = replace(scored, per_sample=dict(pair for found in kept for pair in found.items()))
    metrics = {
        name: each.evaluate(scored, num_bootstrap=settings.num_bootstrap, seed=config.seed)
        for name, each in built.items()
    }
    if scored.probabilities is not None:
        writer.table("predictions.parquet", _predictions(scored))
    if scored.bags is not None:
        writer.table("bags.parquet", _bag_predictions(scored.bags, scored.classes))
    if scored.features is not None:
        writer.table("map.parquet", _map(scored))
    comparison = [
        {"against": name, "metric": key, **vars(metric)}
        for name, other in others.items()
        for key, metric in _paired(config, scored, other).items()
    ]
    return metrics, comparison


def _score(
    config: StageConfig, data: PreparedData, inputs: Inputs, how: Mapping[str, Any]
) -> tuple[Scored, dict[str, Any] | None]:
    """What evaluators see, and what was found where the model was adapted to the test inputs."""
    table = evaluation_table(data)
    rows = table["index"].to_numpy().astype(np.int64)
    adapted = rescored = probabilities = bags = train_features = train_target = encoded = None
    if "model" in inputs:
        model, views, about = load_model(inputs["model"])
        if config.settings.adapt:
            adapted = adapt_to(model, data, rows, views, seed=config.seed, accelerator=how["accelerator"])
        encoded = Features(model.backbone, data, views, how)
        probabilities = _probabilities(class_logits(model, encoded.of(rows)))
        bags = _score_bags(model, data, encoded) if "bag" in data.meta.facts else None
        rescored = _rescoring(model, data, rows, views, how)
    if "encoder" in inputs:
        encoder, views, of_encoder = load_encoder(inputs["encoder"])
        if encoded is None or not _is_same(encoder, of_encoder, encoded.network, about):
            encoded = Features(encoder, data, views, how)
    assert encoded is not None
    features = encoded.of(rows)
    train = data.samples.filter((pl.col("split") == "train") & pl.col("label").is_not_null())
    if len(train) > _MAX_TRAIN_FEATURES:
        train = train.gather_every(-(-len(train) // _MAX_TRAIN_FEATURES))
    if not train.is_empty():
        train_rows = train["index"].to_numpy().astype(np.int64)
        train_features = encoded.of(train_rows)
        train_target = class_numbers(train["label"], data.meta.classes)
    scored = Scored(
        ids=table["id"].to_numpy(),
        groups=table["group"].to_numpy(),
        target=class_numbers(table["target_label"], data.meta.classes),
        classes=data.meta.classes,
        probabilities=probabilities,
        features=features,
        train_features=train_features,
        train_target=train_target,
        columns=table,
        bags=bags,
        facts=data.meta.facts,
        rescored=rescored,
    )
    return scored, adapted


def _stages(scored: Scored, inputs: Inputs, others: dict[str, Artifact]) -> tuple[TrainedStage, ...]:
    """Stages of continual pretraining whose models `others` hold, if the encoder is the last of them."""
    if "encoder" not in inputs or scored.probabilities is None or scored.columns is None:
        return ()
    known = {
        name: _stored(other, "predictions.parquet", "id", scored.ids)["probabilities"].to_numpy()
        for name, other in others.items()
        if other.has("predictions.parquet")
    }
    return trained_stages(inputs["encoder"], scored.columns, scored.probabilities, known)


class _Changed:
    """Prepared data whose raw samples are changed when they are read."""

    def __init__(self, data: PreparedData, change: Callable[[Any], Any]) -> None:
        self.meta, self.samples = data.meta, data.samples
        self._data, self._change = data, change

    def read(self, row: int) -> Any:
        return self._change(self._data.read(row))


def _is_same(first: nn.Module, about: Mapping[str, Any], second: nn.Module, about_second: Mapping[str, Any]) -> bool:
    """Whether two encoders give the same features: a model may have left its encoder as it was."""
    seen = {"backbone": about["backbone"], "views": about["views"], "meta": about["meta"]}
    other = {**about_second, "meta": about_second.get("views_meta", about_second["meta"])}
    if any(other[key] != value for key, value in seen.items()):
        return False
    weights, others = first.state_dict(), second.state_dict()
    return weights.keys() == others.keys() and all(torch.equal(weights[k], others[k].cpu()) for k in weights)


def _rescoring(
    model: Any, data: PreparedData, rows: np.ndarray, views: Views, how: Mapping[str, Any]
) -> Callable[[Callable[[Any], Any]], np.ndarray]:
    """Maps a change of raw samples to the probabilities (N, K) float64 of a classifier for the changed rows."""

    def rescored(change: Callable[[Any], Any]) -> np.ndarray:
        changed = _Changed(data, change)
        return _probabilities(embed(model, changed, rows, views, **how))

    return rescored


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax (N, K) float64."""
    logits = logits.astype(np.float64)
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = exponent / exponent.sum(axis=1, keepdims=True)
    return probabilities


def _score_bags(model: Any, data: PreparedData, encoded: Features) -> BagScores:
    """Probabilities of every labelled bag of the test part, from all of its tiles."""
    bags = index_bags(data.samples.filter(pl.col("split") == "test"), data.meta.facts, data.meta.classes)
    features = encoded.of(bags.rows)
    return BagScores(bags.names, bags.groups, bags.targets, bag_probabilities(model, features, bags.offsets))


def _predictions(scored: Scored) -> pl.DataFrame:
    assert scored.probabilities is not None
    found = _judged({"id": scored.ids}, scored.groups, scored.target, scored.probabilities, scored.classes)
    return found.with_columns(to_columns(scored.per_sample, scored.classes))


def _bag_predictions(bags: BagScores, classes: tuple[str, ...]) -> pl.DataFrame:
    return _judged({"bag": bags.names}, bags.groups, bags.target, bags.probabilities, classes)


def _judged(
    names: dict[str, np.ndarray],
    groups: np.ndarray,
    target: np.ndarray,
    probabilities: np.ndarray,
    classes: tuple[str, ...],
) -> pl.DataFrame:
    known = np.array(classes)
    return pl.DataFrame(
        {
            **{column: values.astype(str) for column, values in names.items()},
            "group": groups.astype(str),
            "target": known[target],
            "prediction": known[probabilities.argmax(axis=1)],
            "confidence": probabilities.max(axis=1),
            "probabilities": pl.Series(probabilities, dtype=pl.Array(pl.Float64, len(classes))),
        }
    )


def _map(scored: Scored) -> pl.DataFrame:
    """First two principal components of the test features, at most a fixed number of points."""
    assert scored.features is not None
    step = -(-len(scored.ids) // _MAX_MAP_POINTS)
    chosen = scored.features[::step].astype(np.float64)
    centered = chosen - chosen.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    axes = (
        axes[:2] * np.sign(axes[:2, np.abs(axes[:2]).argmax(axis=1)].diagonal())[:, None]
    )  # a sign of its own choosing
    points = np.zeros((len(chosen), 2))
    points[:, : len(axes)] = centered @ axes.T
    labels = np.array(scored.classes)[scored.target[::step]]
    return pl.DataFrame({"id": scored.ids[::step].astype(str), "x": points[:, 0], "y": points[:, 1], "label": labels})


def _paired(config: StageConfig, scored: Scored, other: Artifact) -> dict[str, Metric]:
    """Differences (ours - theirs) of every evaluator that compares, on the same samples."""
    if scored.probabilities is None or not other.has("predictions.parquet"):
        raise ArtifactError(f"{other.folder}: a comparison needs a fine-tuned model on both sides.")
    rows = _stored(other, "predictions.parquet", "id", scored.ids)
    kept = from_columns(rows, scored.per_sample, scored.classes)
    theirs = replace(scored, probabilities=rows["probabilities"].to_numpy(), per_sample=kept, bags=None)
    if scored.bags is not None and other.has("bags.parquet"):
        found = _stored(other, "bags.parquet", "bag", scored.bags.names)["probabilities"].to_numpy()
        theirs = replace(theirs, bags=replace(scored.bags, probabilities=found))
    differences: dict[str, Metric] = {}
    for evaluator in config.settings.evaluators:
        module = registry.load("evaluators", evaluator.name)
        if hasattr(module, "paired"):
            differences |= module.paired(scored, theirs, num_bootstrap=config.settings.num_bootstrap, seed=config.seed)
    return differences


def _stored(other: Artifact, file: str, column: str, names: np.ndarray) -> pl.DataFrame:
    """Rows of another evaluation in the order of these samples or bags."""
    table = other.table(file)
    known = pl.DataFrame({column: names.astype(str)})
    joined = known.join(table, on=column, how="left", maintain_order="left")
    if len(table) != len(known) or joined["prediction"].null_count():
        raise DataError(f"{other.folder}: was measured on other samples; compare recipes over the same data and split.")
    return joined


def _ranking(
    config: StageConfig,
    data: PreparedData,
    inputs: Inputs,
    others: dict[str, Artifact],
    writer: ArtifactWriter,
    how: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Metric]], list[dict[str, Any]]]:
    settings = config.settings
    if "model" not in inputs:
        raise DataError("ranking needs a finetune block: there is no model that scores items.")
    model, _, _ = load_model(inputs["model"])
    with torch.no_grad():
        result = Ranked(data=data, scores=lambda users: model.score_users(torch.as_tensor(users)))
        metrics = {}
        comparison: list[dict[str, Any]] = []
        for evaluator in settings.evaluators:
            built = registry.build("evaluators", evaluator)
            metrics[evaluator.name] = built.evaluate(result, num_bootstrap=settings.num_bootstrap, seed=config.seed)
            table = built.per_user(result)
            writer.table("predictions.parquet", table)
            for name, other in others.items():
                found = _paired_users(table, other, settings.num_bootstrap, config.seed)
                comparison += [{"against": name, "metric": key, **vars(metric)} for key, metric in found.items()]
    return metrics, comparison


def _paired_users(table: pl.DataFrame, other: Artifact, num_bootstrap: int, seed: int) -> dict[str, Metric]:
    """Difference (ours - theirs) of every per-user metric, over users that both measured."""
    theirs = other.table("predictions.parquet")
    joined = table.join(theirs, on="user", how="inner", suffix="_theirs").sort("user")
    if len(joined) != len(table) or len(joined) != len(theirs):
        raise DataError(f"{other.folder}: was measured on other users; compare recipes over the same data and split.")
    differences = {
        column: (joined[column] - joined[f"{column}_theirs"]).cast(pl.Float64).fill_null(float("nan")).to_numpy()
        for column in table.columns
        if "@" in column and column in theirs.columns  # an evaluation by an older version has fewer
    }
    found = bootstrap_means(differences, joined["user"].cast(pl.String).to_numpy(), num=num_bootstrap, seed=seed)
    return {
        name: Metric(*interval, len(joined)) for name, interval in found.items() if interval.value == interval.value
    }
