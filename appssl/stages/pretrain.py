"""Stage pretrain: an encoder from the training part of the data, without labels."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from appssl import registry
from appssl.artifact import Artifact, ArtifactWriter
from appssl.contracts import Context
from appssl.engine.fit import fit
from appssl.engine.probe import Probe
from appssl.errors import SettingsError
from appssl.ops.journal import Journal
from appssl.ops.part import limited
from appssl.plan import StageConfig
from appssl.stages.continual import read_start, write_onward, write_stages
from appssl.stages.frame import Inputs, run_stage
from appssl.stages.models import describe, open_data, save_state


def pretrain(
    config: StageConfig,
    data_dir: Path,
    out: Path,
    *,
    start_dir: Path | None = None,
    accelerator: str = "auto",
    devices: int = 1,
    strategy: str = "auto",
    workers: int = 0,
) -> Artifact:
    """Trains the encoder of a recipe.

    Args:
        data_dir: a data artifact. start_dir: the encoder artifact of the training that this one goes on from, if any.
        out: gets `encoder.safetensors`, `encoder.json`, and `probe.json`: what the encoder was worth at the end; with
            `onward` or after another training what `stages/continual` writes.
    """
    settings = config.settings

    def work(inputs: Inputs, writer: ArtifactWriter, journal: Journal) -> dict[str, Any]:
        whole = open_data(inputs["data"])
        data = limited(whole, settings.where, field="pretrain.where")
        torch.manual_seed(config.seed)
        views = registry.build("views", settings.views, data.meta)
        examples = registry.build("samplers", settings.sampler, data, views)
        if "views" not in examples.batch(np.arange(1), seed=config.seed, epoch=0):
            name = settings.sampler.name
            raise SettingsError(f"pretrain.sampler {name} makes no views to pretrain on; use uniform or balanced.")
        backbone = registry.build("backbones", settings.backbone, views.input_shape, data.meta)
        context = Context(
            meta=data.meta,
            backbone=backbone,
            input_shape=views.input_shape,
            num_samples=len(examples),
            num_views=views.num_views,
            facts={"num_rows": len(data.samples), **examples.facts},
        )
        learner = registry.build("learners", settings.learner, context)
        probe = Probe(
            learner,
            data,
            views,
            settings.probe,
            seed=config.seed,
            threads=settings.fit.threads,
            accelerator=accelerator,
        )
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
            probe=probe,
            start=read_start(inputs["start"], settings) if "start" in inputs else None,
            onward=out / "state/onward" if settings.onward else None,
        )
        if settings.probe.times and not probe.last:
            probe.measure()  # all steps were done by a process that was stopped before it came here
        if probe.last:
            writer.json("probe.json", probe.last)
        about = describe(
            meta=data.meta,
            backbone=settings.backbone,
            views=settings.views,
            input_shape=views.input_shape,
            source=inputs["data"].json("source.json"),
        )
        writer.json("encoder.json", about)
        save_state(writer, "encoder.safetensors", learner.export().state_dict())
        if settings.onward:
            write_onward(writer, out / "state/onward")
        if settings.onward or "start" in inputs:
            earlier = inputs.get("start")
            losses = write_stages(writer, config, learner, whole, views, digest=inputs["data"].digest, earlier=earlier)
            journal.metrics(result.num_steps + 1, losses)
        return {
            "num_examples": len(examples),
            "num_steps": result.num_steps,
            "micro_batches": result.micro_batches,
            "samples_per_second": result.samples_per_second,
            "data_wait_share": result.data_wait_share,
            "probe_share": result.probe_share,
        }

    folders = {"data": data_dir, "start": start_dir}
    return run_stage(config, out, folders, work, method=settings.learner.name)
