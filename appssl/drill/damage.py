"""Faults of files: shards, manifests, checkpoints, tables that were cut, changed by a bit, or of another version."""

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from appssl.drill.expecting import Case, Wanted, expect, expect_done, expect_equal, expect_failure, expect_healed, until
from appssl.drill.project import Project


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _of_another_version(content: bytes) -> bytes:
    return json.dumps({**json.loads(content), "format": 99}).encode()


_HARMS: dict[str, Callable[[bytes], bytes]] = {
    "cut": _cut, "flipped by one bit": _flipped, "of another version": _of_another_version
}  # fmt: skip


def harm(path: Path, how: str) -> None:
    """Changes a file without changing its time: nothing but its content can tell."""
    times = path.stat()
    path.write_bytes(_HARMS[how](path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _damaged_input(project: Project, wanted: Wanted, *, file: tuple[str, str], how: str, reader: str) -> None:
    """Damages a file of a finished stage, and lets the stage that reads it be done again."""
    path = project.stage(file[0]) / file[1]
    project.forget(reader)
    harm(path, how)
    said = "format 99" if how == "of another version" else "damaged"
    expect_failure(project.ended(project.start(project.stage_command(reader))), 3, path.name, said)
    expect(not (project.stage(reader) / "manifest.json").exists(), f"{reader} made a result of a damaged input")
    verified = project.appssl("verify", "results")
    expect_failure(verified, 3)
    expect(path.name in verified.out, f"'appssl verify' does not name it: {verified.out}")


def _followed_advice(project: Project, wanted: Wanted) -> None:
    project.forget("evaluate")
    damaged = project.stage("finetune") / "model.safetensors"
    harm(damaged, "flipped by one bit")
    expect_failure(project.run(), 3, "Delete manifest.json there and run again", "model.safetensors")
    project.forget("finetune")
    expect_healed(project, wanted)


def _interrupted(project: Project) -> list[Path]:
    """Kills pretraining when it has two checkpoints; returns these, the newest first."""
    project.forget("pretrain")
    folder = project.stage("pretrain") / "state/checkpoints"
    process = project.start(project.stage_command("pretrain"))
    until(lambda: len(list(folder.glob("step-*"))) > 1, process, "two checkpoints")
    os.killpg(process.pid, signal.SIGKILL)
    project.ended(process)
    expect(not (project.stage("pretrain") / "manifest.json").exists(), "pretraining was too quick to be interrupted")
    return sorted(folder.glob("step-*"), reverse=True)


def _damaged_checkpoint(project: Project, wanted: Wanted, *, how: str) -> None:
    newest, before = _interrupted(project)[:2]
    if how == "of another version":
        harm(newest / "state.json", how)
    else:
        harm(newest / "model.safetensors", how)
    done = project.ended(project.start(project.stage_command("pretrain")))
    expect_done(done)
    expect("Taking the one before" in done.err, f"the damaged checkpoint was not told: {done.err[-600:]}")
    expect(f"going on after step {int(before.name[5:])} of" in done.err, f"not resumed: {done.err[-600:]}")
    expect_equal(project, wanted)


def _half_written_checkpoint(project: Project, wanted: Wanted) -> None:
    newest = _interrupted(project)[0]
    half = newest.with_name(f".step-{int(newest.name[5:]) + 1:010d}.part")
    half.mkdir(exist_ok=True)
    (half / ".model.safetensors.1.part").write_bytes(_cut((newest / "model.safetensors").read_bytes()))
    done = project.ended(project.start(project.stage_command("pretrain")))
    expect_done(done)
    expect(f"going on after step {int(newest.name[5:])} of" in done.err, f"not resumed: {done.err[-600:]}")
    expect(not half.exists(), "what was half written is still there")
    expect_equal(project, wanted)


def _checkpoint_of_another_run(project: Project, wanted: Wanted) -> None:
    _interrupted(project)
    known = project.stage("pretrain") / "state/of.json"
    known.write_text(json.dumps({**json.loads(known.read_text()), "settings": "0" * 64}))
    done = project.ended(project.start(project.stage_command("pretrain")))
    expect_done(done)
    expect("going on after step" not in done.err, "the checkpoint of another run was resumed")
    expect_equal(project, wanted)


def _input_case(what: str, file: tuple[str, str], how: str, reader: str) -> Case:
    return Case(
        f"{what} {how}",
        f"{reader} stops with exit code 3 and the file's name, and leaves no result; 'appssl verify' too",
        partial(_damaged_input, file=file, how=how, reader=reader),
    )


def _checkpoint_case(how: str) -> Case:
    return Case(
        f"checkpoint {how}",
        "a warning names it, training goes on from the one before; equal digests",
        partial(_damaged_checkpoint, how=how),
    )


CASES = [
    _input_case("shard", ("prepare", "shards/0/windows.parquet"), "flipped by one bit", "prepare"),
    _input_case("shard", ("prepare", "shards/1/signal.f32"), "cut", "prepare"),
    _input_case("shard", ("prepare", "shards/0/manifest.json"), "of another version", "prepare"),
    _input_case("manifest", ("pretrain", "manifest.json"), "cut", "pseudolabel"),
    _input_case("manifest", ("pretrain", "manifest.json"), "of another version", "pseudolabel"),
    _input_case("encoder", ("pretrain", "encoder.safetensors"), "flipped by one bit", "pseudolabel"),
    _input_case("Parquet table", ("pseudolabel", "labels.parquet"), "cut", "finetune"),
    _input_case("Parquet table", ("pseudolabel", "labels.parquet"), "flipped by one bit", "finetune"),
    Case(
        "model flipped by one bit, its manifest deleted as the message says",
        "the run stops with exit code 3, file and advice; after the advice the same command ends with equal digests",
        _followed_advice,
    ),
    _checkpoint_case("cut"),
    _checkpoint_case("flipped by one bit"),
    _checkpoint_case("of another version"),
    Case(
        "killed while a checkpoint is written",
        "what was half written is removed, training goes on from the one before; equal digests",
        _half_written_checkpoint,
    ),
    Case(
        "checkpoint of other settings",
        "it is not resumed; training starts anew and ends with equal digests",
        _checkpoint_of_another_run,
    ),
]
