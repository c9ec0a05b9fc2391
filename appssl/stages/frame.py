"""What every stage does around its work: one process at a time, a journal, a record of the run and of a failure."""

import fcntl
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from appssl.addresses import masked
from appssl.artifact import Artifact, ArtifactWriter, write_json
from appssl.errors import NOT_JSON, AppsslError, ArtifactError
from appssl.ops.journal import Journal
from appssl.plan import StageConfig
from appssl.staging import is_wanted, staged

KINDS = {
    "prepare": "data",
    "pretrain": "encoder",
    "pseudolabel": "labels",
    "finetune": "model",
    "evaluate": "evaluation",
    "report": "report",
}
INPUT_KINDS = {
    "data": "data",
    "encoder": "encoder",
    "start": "encoder",
    "labels": "labels",
    "model": "model",
    "compare": "evaluation",
    **KINDS,
}
STAGED = ("pretrain", "pseudolabel", "finetune", "evaluate")  # read prepared data many times
FAILED = "failed.json"
Inputs = Mapping[str, Artifact]
PACKAGES = (
    "torch",
    "numpy",
    "polars",
    "albumentations",
    "timm",
    "openslide-python",
    "openslide-bin",
    "imagecodecs",
    "scikit-learn",
    "mlflow",
    "snakemake",
)


def run_stage(
    config: StageConfig,
    out: Path,
    folders: Mapping[str, Path | None],
    work: Callable[[Inputs, ArtifactWriter, Journal], dict[str, Any]],
    *,
    method: str,
) -> Artifact:
    """Does the work of a stage once and completely.

    Waits for another process that does the same stage; returns its result when it is the wanted one. On failure leaves
    `failed.json` (message, exit code) for `appssl status`, and keeps `state/` for the next attempt.

    Args:
        folders: of what the stage reads, by the names of `INPUT_KINDS` (`compare:NAME` for other evaluations).
        work: gets the opened inputs, writer and journal, writes the files and returns facts for `run.json`.
    """
    if not is_first_process():
        return _help(config, out, folders, work)
    with locked(out), failure_noted(out, config.stage):
        inputs = _opened(folders, config.stage)
        digests = {name: artifact.digest for name, artifact in inputs.items()}
        done = _already_done(out, config, digests)
        if done is not None:
            _close(out, done)
            return done
        read = _staged(inputs, config.stage)
        _fresh_state(out, config, digests)
        journal = Journal(out)
        journal.start(
            domain=config.domain,
            recipe=config.recipe,
            seed=config.seed,
            stage=config.stage,
            method=method,
            settings=config.settings.plain(),
            settings_digest=config.digest,
            upstream={name: str(artifact.folder) for name, artifact in inputs.items()},
            datasets=_datasets(config.stage, inputs),
            description=f"{config.stage} of {config.domain}/{config.recipe}, seed {config.seed}, with {method}",
        )
        started = time.monotonic()
        try:
            writer = ArtifactWriter(out, KINDS[config.stage], settings_digest=config.digest, inputs=digests)
            facts = work(read, writer, journal)
            artifact = writer.finish()
        except BaseException as error:
            journal.finish("FAILED", artifact_digest=None, error=str(error) or type(error).__name__)
            raise
        write_json(out / "run.json", {"seconds": time.monotonic() - started, **facts, **surroundings()})
        _close(out, artifact)
        return artifact


def is_first_process() -> bool:
    """Whether this process of a distributed training is the one that writes; known before the processes meet.

    torchrun sets RANK, Fabric NODE_RANK and LOCAL_RANK for the processes it starts, srun SLURM_PROCID.
    """
    names = ("RANK",) if "RANK" in os.environ else ("NODE_RANK", "LOCAL_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


def _help(
    config: StageConfig,
    out: Path,
    folders: Mapping[str, Path | None],
    work: Callable[[Inputs, ArtifactWriter, Journal], dict[str, Any]],
) -> Artifact:
    """The same work in the other processes of a distributed training; what they would write is thrown away."""
    inputs = _opened(folders, config.stage)
    digests = {name: artifact.digest for name, artifact in inputs.items()}
    done = _already_done(out, config, digests)
    if done is not None:
        return done
    read = _staged(inputs, config.stage)
    with tempfile.TemporaryDirectory(prefix="appssl-") as scratch:
        writer = ArtifactWriter(Path(scratch), KINDS[config.stage], settings_digest=config.digest, inputs=digests)
        work(read, writer, Journal(Path(scratch)))
        return writer.finish()


def _opened(folders: Mapping[str, Path | None], stage: str) -> Inputs:
    """Opens and checks inputs; data that are to be staged are checked when they are copied."""
    given = {name: folder for name, folder in folders.items() if folder is not None}
    later = {"data"} if is_wanted() and stage in STAGED else set()
    return {
        name: Artifact.open(folder, INPUT_KINDS[name.partition(":")[0]], check=name not in later)
        for name, folder in given.items()
    }


def _staged(inputs: Inputs, stage: str) -> Inputs:
    """Inputs as the work reads them: the data from the node's own disk, where that is wanted."""
    if "data" not in inputs or stage not in STAGED or not is_wanted():
        return inputs
    return {**inputs, "data": staged(inputs["data"])}


def _close(out: Path, artifact: Artifact) -> None:
    """What follows the manifest; made up for when a process was killed just after writing that."""
    shutil.rmtree(out / "state", ignore_errors=True)
    journal = Journal(out)
    if journal.is_open:
        journal.finish("FINISHED", artifact_digest=artifact.digest)


def _fresh_state(out: Path, config: StageConfig, inputs: dict[str, str]) -> None:
    """Keeps `state/` only if it is of the same settings and inputs: another run's checkpoints are not resumed."""
    wanted = {"settings": config.digest, "inputs": inputs}
    known = out / "state" / "of.json"
    try:
        same = json.loads(known.read_text()) == wanted
    except (OSError, *NOT_JSON):
        same = False
    if not same:
        shutil.rmtree(out / "state", ignore_errors=True)
        write_json(known, wanted)


@contextmanager
def failure_noted(out: Path, stage: str) -> Iterator[None]:
    """Leaves `failed.json` (stage, message, exit code) in `out` when the block fails; removes an old one first."""
    (out / FAILED).unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        code = error.exit_code if isinstance(error, AppsslError) else 1
        try:
            message = masked(str(error)) or type(error).__name__
            write_json(out / FAILED, {"stage": stage, "message": message, "exit_code": code})
        except AppsslError:  # a full disk must not hide the error that is being reported
            print(f"could not note the failure in {out / FAILED}", file=sys.stderr)
        raise


def _already_done(out: Path, config: StageConfig, digests: dict[str, str]) -> Artifact | None:
    try:
        artifact = Artifact.open(out, KINDS[config.stage])
    except ArtifactError:
        return None
    same = artifact.manifest["settings"] == config.digest and artifact.manifest["inputs"] == digests
    return artifact if same else None


def _datasets(stage: str, inputs: Inputs) -> list[dict[str, str]]:
    contexts = {
        "pretrain": "pretraining",
        "pseudolabel": "pseudo-labelling",
        "finetune": "finetuning",
        "evaluate": "testing",
    }
    if "data" not in inputs or stage not in contexts:
        return []
    data = inputs["data"]
    return [{"name": data.folder.name, "digest": data.digest, "context": contexts[stage]}]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; waits while another one works in it. The kernel frees it when a process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise AppsslError(f"{folder}: cannot be written: {error.strerror}. Choose another --out.") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process works here; waiting for it", file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def surroundings() -> dict[str, Any]:
    """Hardware and versions, for `run.json`."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "packages": packages,
        "python": platform.python_version(),
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "system": platform.platform()},
    }


def read_run(folder: Path) -> dict[str, Any]:
    """`run.json` of a stage, {} if there is none."""
    try:
        values = json.loads((folder / "run.json").read_text())
    except (OSError, *NOT_JSON):
        return {}
    return values if isinstance(values, dict) else {}
