"""The training loop: one function for every learner.

A method changes the learner, never the loop. Device, precision and number of processes come from Lightning Fabric; the
order of samples is a pure function of (seed, epoch, index), so resuming needs no state of a loader.
"""

import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import ModelParallelStrategy
from safetensors.torch import save
from torch import Tensor, nn

from appssl import registry
from appssl.artifact import write_bytes, write_json
from appssl.contracts import BATCH_KEYS, Batch, Examples, Progress
from appssl.engine import sharding
from appssl.engine.checkpoint import (
    Checkpoint,
    Writing,
    flatten_optimizer,
    newest_checkpoint,
    random_state,
    set_random_state,
    unflatten_optimizer,
)
from appssl.engine.loading import Order, batches, make_batch, plain_batches
from appssl.engine.meter import Clock, Meter
from appssl.engine.micro_batches import Attempt, obstacle_of
from appssl.engine.parts import backbone_in_parts, refuse_unused
from appssl.errors import AppsslError, DivergedError, SettingsError
from appssl.ops.batch_norm import make_global
from appssl.ops.lars import LARS
from appssl.ops.rows import rendered
from appssl.ops.rowwise_adagrad import RowwiseAdagrad, Together, divided

STRATEGIES = ("auto", "ddp", "fsdp")
_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


class FitSettings(Protocol):
    """What the loop reads of `recipe.Fit`."""

    epochs: float | None
    steps: int | None
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    momentum: float
    beta1: float
    beta2: float
    schedule: Any
    precision: str
    accumulate: int
    clip_norm: float | None
    compile: bool
    backbone_batch: int | None
    log_every: int
    checkpoint_steps: int
    keep_checkpoints: int
    threads: int


class Probing(Protocol):
    """Measures a learner on the way; `engine.probe.Probe`."""

    def is_due(self, step: int, num_steps: int) -> bool: ...

    def measure(self) -> dict[str, float]: ...


class JournalLike(Protocol):
    def metrics(self, step: int, values: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class FitResult:
    num_steps: int
    resumed_from: int
    samples_per_second: float
    data_wait_share: float
    probe_share: float
    micro_batches: int


class InterruptedTraining(AppsslError):
    """A signal asked to stop; a checkpoint was written."""


class _Trained(nn.Module):
    """The learner with plain outputs: Fabric and DDP look for tensors in tuples and dicts.

    Tracking is a forward pass too, or it would have neither the precision nor the whole parameters of one.
    """

    def __init__(self, learner: Any) -> None:
        super().__init__()
        self.learner = learner

    def forward(
        self, seen: Batch | Iterable[Batch], epoch: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        if epoch is not None:
            self.learner.track(seen, epoch)
            return None
        step = self.learner(seen)
        return step.loss, step.metrics


def fit(
    learner: Any,
    examples: Examples,
    config: FitSettings,
    *,
    state_dir: Path,
    journal: JournalLike,
    seed: int,
    accelerator: str = "auto",
    devices: int = 1,
    strategy: str = "auto",
    workers: int = 0,
    probe: Probing | None = None,
    start: Checkpoint | None = None,
    onward: Path | None = None,
    name: str = "training",
) -> FitResult:
    """Trains a learner in place; goes on from the newest checkpoint in `state_dir`.

    Args:
        learner: an nn.Module that keeps contracts.Learner. config: `recipe.Fit`.
        state_dir: gets `checkpoints/`, `micro_batches.json`, and `diverged/` when the loss is not finite.
        workers: processes that make batches; never changes the result. probe: is asked on the first process; what it
            measures goes into the journal and nowhere else.
        start: state of a learner like this one that the training begins with, with or without moments.
        onward: folder that gets a checkpoint which another training can start from: that before the annealing where
            the schedule has a `branch`, else the last.
        strategy: auto (ddp on several devices), ddp, or fsdp, which divides the model among the devices. Every process
            calls this function.
    Raises:
        DivergedError: if the loss is not finite; the batch is saved for replay.
        OutOfMemory: if memory ran out; the next attempt takes smaller micro-batches where that changes no result.
        DataError: if there are fewer examples than a batch. InterruptedTraining: after SIGTERM or SIGUSR1.
    """
    if strategy not in STRATEGIES:
        raise SettingsError(f"strategy {strategy!r}: must be one of {', '.join(STRATEGIES)}.")
    if hasattr(learner, "track") and not hasattr(examples, "plain"):
        raise SettingsError(
            f"{name}: this method sees all samples after each epoch; its examples give no plain batches."
        )
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a pass over each tensor
    warnings.filterwarnings("ignore", "The `srun` command is available")  # whoever starts this has chosen how
    fabric = Fabric(
        accelerator="cuda" if accelerator == "gpu" else accelerator,
        devices=devices,
        num_nodes=_nodes(),
        strategy=sharding.strategy(devices * _nodes()) if strategy == "fsdp" else strategy,
        precision=_PRECISION[config.precision],
        plugins=_process_starter(devices),
    )
    fabric.launch()
    schedule = registry.build("schedules", config.schedule)
    if fabric.world_size > 1:
        make_global(learner)
    learner.train()
    attempt = Attempt(
        fabric,
        state_dir,
        name=name,
        batch_size=config.batch_size,
        asked=config.accumulate,
        obstacle=obstacle_of(learner, examples),
    )
    order = Order(len(examples), config.batch_size, seed, attempt.number, fabric.global_rank, fabric.world_size)
    num_steps = config.steps or max(1, round((config.epochs or 1) * order.steps_per_epoch))
    if config.compile:
        _compile(learner, fabric.device)
    trained, optimizer = _set_up(fabric, learner, config)
    torch.manual_seed(seed + 1000 * fabric.global_rank)
    first = _resume(learner, optimizer, state_dir, num_steps)
    if start is not None and first == 0:
        _begin(learner, optimizer, start)
    branch = _branch(config.schedule, num_steps) if onward is not None else None

    clock = Clock(name, first, num_steps, config.batch_size, shown=fabric.is_global_zero)
    meter = Meter(fabric.device)
    loader = batches(examples, order, start=first, stop=num_steps, workers=workers, pin=fabric.device.type == "cuda")
    in_parts = backbone_in_parts(learner, config.backbone_batch)
    writing = Writing()
    with attempt.watched(), closing(loader), closing(writing), _signals() as asked_to_stop, in_parts as parts:
        logged = saved = first
        for step in range(first, num_steps):
            lr = config.lr * schedule(step, num_steps)
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            mean_loss = torch.zeros((), device=fabric.device)
            metrics: dict[str, Tensor] = {}
            for micro in range(order.accumulate):
                waiting = time.perf_counter()
                batch = fabric.to_device(next(loader))
                clock.waited(time.perf_counter() - waiting)
                batch = rendered(batch)
                last = micro == order.accumulate - 1
                with nullcontext() if last else fabric.no_backward_sync(trained):
                    loss, found = trained(batch)
                    refuse_unused(parts)
                    fabric.backward(loss / order.accumulate)
                mean_loss = mean_loss + loss.detach() / order.accumulate
                for key, value in found.items():
                    metrics[key] = metrics.get(key, 0.0) + value.detach() / order.accumulate
            if config.clip_norm is not None:
                # A gradient that is not finite shows in the next loss, and is reported there with its batch.
                norm = fabric.clip_gradients(trained, optimizer, max_norm=config.clip_norm, error_if_nonfinite=False)
                metrics["grad_norm"] = sharding.whole({"norm": torch.as_tensor(norm)})["norm"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress = Progress(step + 1, num_steps, order.steps_per_epoch)
            if hasattr(learner, "after_update"):
                learner.after_update(progress)
            if hasattr(learner, "track") and progress.next_epoch > progress.epoch:
                _track(fabric, trained, learner, examples, order, progress.epoch, workers=workers)
            if probe is not None and probe.is_due(step + 1, num_steps):
                clock.probed(_probe(fabric, probe, journal, step + 1))
            meter.add(step, mean_loss, metrics)
            done = step + 1
            if onward is not None and done == branch:
                _save(fabric, writing, learner, optimizer, done, onward, keep=1)

            # The one place where the host waits for the device. Checkpoints are written here only, so that an interval
            # never spans a resume and the logged means do not depend on when a process was killed.
            if done % config.log_every and done < num_steps:
                continue
            means, bad_step = meter.read()
            if bad_step is None and done == num_steps and not _is_finite(learner):
                bad_step = step  # by its gradient, after the last loss
            if _any(fabric, bad_step is not None):
                _stop_diverged(fabric, examples, order, step if bad_step is None else bad_step, lr, state_dir)
            if fabric.is_global_zero:
                times = clock.interval(done - logged)
                values = {**{f"train/{k}": v for k, v in means.items()}, "train/lr": lr, **times}
                if order.accumulate != config.accumulate:
                    values["train/micro_batches"] = order.accumulate
                journal.metrics(done, values)
                clock.say(done, means["loss"])
            logged = done
            stopping = _any(fabric, asked_to_stop()) and done < num_steps
            if done - saved >= config.checkpoint_steps or done == num_steps or stopping:
                folder, keep = state_dir / "checkpoints", config.keep_checkpoints
                _save(fabric, writing, learner, optimizer, done, folder, keep=keep)
                saved = done
            if stopping or done == num_steps:
                writing.wait()
                fabric.barrier()
            if stopping:
                raise InterruptedTraining(
                    f"stopped on request after step {done} of {num_steps}; the same command goes on from here."
                )
    sharding.make_whole(learner)
    return FitResult(num_steps, first, *clock.total(num_steps), order.accumulate)


def _is_one_of_several_tasks() -> bool:
    """Whether srun started this process and others, and not a batch job one that is to start the others."""
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NUM_NODES" in os.environ


def _nodes() -> int:
    """Nodes that srun started this process and others on, `devices` on each; 1 in any other case."""
    return int(os.environ["SLURM_STEP_NUM_NODES"]) if _is_one_of_several_tasks() else 1


def _process_starter(devices: int) -> list[Any]:
    """Fabric takes a job that asked SLURM for one task for a training of one process, however many devices it has."""
    alone = "SLURM_NTASKS" in os.environ and not _is_one_of_several_tasks() and not TorchElasticEnvironment.detect()
    return [LightningEnvironment()] if alone and devices > 1 else []


def _set_up(fabric: Fabric, learner: Any, config: FitSettings) -> tuple[Any, Any]:
    """What is trained and its optimizer; a sharded model has other parameters than before, and must come first."""
    if isinstance(fabric.strategy, ModelParallelStrategy):
        trained = fabric.setup_module(_Trained(learner))
        return trained, fabric.setup_optimizers(make_optimizer(learner, config))
    return fabric.setup(_Trained(learner), make_optimizer(learner, config))


def _compile(learner: Any, device: torch.device) -> None:
    """The backbone's forward pass, in place, so that its parameters keep their names.

    Raises:
        SettingsError: if there is no backbone, or nothing to compile with.
    """
    backbone = getattr(learner, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise SettingsError("fit.compile: this method has no backbone to compile. Leave it out.")
    compilers = (os.environ.get("CXX", "g++"), "clang++")
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise SettingsError(f"fit.compile: a C++ compiler is needed on CPU ({' or '.join(compilers)}). Install one.")
    backbone.compile()


def make_optimizer(learner: Any, config: FitSettings) -> torch.optim.Optimizer:
    """The update rule over the parameters that are trained; a learner may give `param_groups()` with `lr_scale`."""
    if hasattr(learner, "param_groups"):
        groups = learner.param_groups()
    else:
        groups = [{"params": [p for p in learner.parameters() if p.requires_grad]}]
    if not any(len(group["params"]) for group in groups):
        raise SettingsError("this learner has nothing to train: all its parameters are frozen.")
    betas = (config.beta1, config.beta2)
    if config.optimizer == "rowwise_adagrad":
        of_tables, others = divided(learner, groups)
        adamw = torch.optim.AdamW(others, lr=config.lr, betas=betas, weight_decay=config.weight_decay)
        return Together([RowwiseAdagrad(of_tables, lr=config.lr), adamw])
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, weight_decay=config.weight_decay)
    kind = LARS if config.optimizer == "lars" else torch.optim.SGD
    return kind(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _track(
    fabric: Fabric, trained: Any, learner: nn.Module, examples: Examples, order: Order, epoch: int, *, workers: int
) -> None:
    """Shows the learner all examples as they are. Every process sees all, from the first one's running statistics."""
    if fabric.world_size > 1:
        for buffer in learner.buffers():
            torch.distributed.broadcast(buffer, src=0)
    size = order.batch_size // (order.world_size * order.accumulate)
    found = plain_batches(examples, size, workers=workers, pin=fabric.device.type == "cuda")
    learner.eval()
    with torch.no_grad():
        trained(map(fabric.to_device, found), epoch)
    learner.train()


def _probe(fabric: Fabric, probe: Probing, journal: JournalLike, step: int) -> float:
    """The first process measures, the others wait. A model divided among devices cannot be measured on one.

    Returns:
        Seconds that it took.
    """
    begun = time.perf_counter()
    if fabric.is_global_zero and not isinstance(fabric.strategy, ModelParallelStrategy):
        found = {f"probe/{key}": value for key, value in probe.measure().items()}
        journal.metrics(step, {**found, "time/probe_seconds": time.perf_counter() - begun})
    fabric.barrier()
    return time.perf_counter() - begun


def _any(fabric: Fabric, flag: bool) -> bool:
    """Whether any process says so: all must stop together, or the others wait for ever."""
    if fabric.world_size == 1:
        return flag
    count = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    return bool(torch.as_tensor(count) > 0)


def _is_finite(learner: nn.Module) -> bool:
    return bool(torch.stack([torch.isfinite(sharding.local(p)).all() for p in learner.parameters()]).all())


def _resume(learner: nn.Module, optimizer: Any, state_dir: Path, num_steps: int) -> int:
    """Loads the newest checkpoint; returns the number of steps that are done."""
    checkpoint = newest_checkpoint(state_dir / "checkpoints")
    if checkpoint is None or checkpoint.step > num_steps:
        return 0
    sharding.load_model(learner, {k: v for k, v in checkpoint.model.items() if not k.startswith("random.")})
    state = unflatten_optimizer(checkpoint.optimizer, checkpoint.values["optimizer"])
    sharding.load_optimizer(optimizer.optimizer, state)
    set_random_state({k: v for k, v in checkpoint.model.items() if k.startswith("random.")})
    print(f"going on after step {checkpoint.step} of {num_steps}", file=sys.stderr)
    return checkpoint.step


def _branch(schedule: Any, num_steps: int) -> int:
    """The number of steps after which a later training goes on."""
    module = registry.load("schedules", schedule.name)
    return module.branch(schedule, num_steps) if hasattr(module, "branch") else num_steps


def _begin(learner: nn.Module, optimizer: Any, start: Checkpoint) -> None:
    """Loads what an earlier training left; rates and the like stay those of this one.

    Raises:
        SettingsError: if this learner is another one.
    """
    tensors = {name: tensor for name, tensor in start.model.items() if not name.startswith("random.")}
    own = learner.state_dict()
    other = sorted(own.keys() ^ tensors.keys())
    other += [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if other:
        raise SettingsError(
            f"pretrain.after: the training to go on from has other weights, or another size of data: "
            f"{', '.join(other[:5])}. Use its backbone, views and learner; methods that keep something of each sample "
            "need the same data."
        )
    sharding.load_model(learner, tensors)
    if start.optimizer:
        own_moments = {name: tensor.clone() for name, tensor in start.optimizer.items()}  # updated in place
        state = unflatten_optimizer(own_moments, start.values["optimizer"])
        groups = optimizer.optimizer.state_dict()["param_groups"]
        sharding.load_optimizer(optimizer.optimizer, {**state, "param_groups": groups})


def _save(
    fabric: Fabric, writing: Writing, learner: nn.Module, optimizer: Any, step: int, folder: Path, *, keep: int
) -> None:
    model = {**sharding.whole(learner.state_dict()), **random_state()}
    state = sharding.whole_state(optimizer.optimizer)
    if fabric.is_global_zero:
        tensors, plain = flatten_optimizer(state)
        writing.start(folder, Checkpoint(step, model, tensors, {"optimizer": plain}), keep=keep)


def _stop_diverged(fabric: Fabric, examples: Examples, order: Order, step: int, lr: float, state_dir: Path) -> None:
    """Saves the batch again, which is a pure function of the step, and raises."""
    folder = state_dir / "diverged"
    for micro in range(order.accumulate):
        batch = rendered(fabric.to_device(make_batch(examples, order, step, micro)))
        tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor) and key in BATCH_KEYS}
        tensors |= {f"views.{number}": view for number, view in enumerate(batch.get("views", []))}
        contiguous = {key: value.contiguous() for key, value in tensors.items()}
        write_bytes(folder / f"batch-{fabric.global_rank}-{micro}.safetensors", save(contiguous))
    write_json(folder / "info.json", {"step": step + 1, "epoch": order.epoch(step), "seed": order.seed, "lr": lr})
    raise DivergedError(
        f"the loss is not finite at step {step + 1} (learning rate {lr:.3g}). The batch is saved in {folder}. "
        "Try a lower fit.lr, fit.clip_norm: 1.0, or precision fp32."
    )


@contextmanager
def _signals() -> Iterator[Any]:
    """Notes SIGTERM and SIGUSR1 (a cluster's notice) instead of dying at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
    except ValueError:  # not in the main thread: signals stay with whoever handles them
        previous = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
