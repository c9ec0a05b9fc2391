"""Faults of places: a full disk, a folder that cannot be written or goes away, a clock that was set back."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appssl.drill.expecting import (
    Case,
    NotTried,
    Wanted,
    expect,
    expect_done,
    expect_equal,
    expect_failure,
    expect_healed,
    until_stage,
)
from appssl.drill.project import Project
from appssl.drill.targets import end_leftovers

_SMALL = 256 * 1024  # bytes; the tiny encoder has 685 kB
_A_DAY = 86_400 * 10**9  # nanoseconds
_LIMIT = (  # the disk of those who may not mount one: no file grows beyond this
    "import os, resource, sys; size = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


def _mounted(*words: str | Path) -> bool:
    return os.geteuid() == 0 and subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


@contextmanager
def _full_disk(folder: Path) -> Iterator[list[str]]:
    """Lets writing into `folder` fail after some bytes, until `_free_space`; gives words to put before a command."""
    if not _mounted("-t", "tmpfs", "-o", f"size={_SMALL}", "tmpfs", folder):
        yield [sys.executable, "-c", _LIMIT, str(_SMALL)]
        return
    try:
        yield []
    finally:
        subprocess.run(["umount", folder], check=True)


def _free_space(folder: Path) -> None:
    if folder.is_mount():
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)


def _disk_full(project: Project, wanted: Wanted) -> None:
    project.forget("pretrain")
    out = project.stage("pretrain")
    shutil.copy(out / "config.yaml", project.folder / "pretrain.yaml")  # the small disk lies over the folder
    with _full_disk(out) as limited:
        done = project.ended(project.start([*limited, *project.stage_command("pretrain", "pretrain.yaml")]))
        expect_failure(done, 1, "cannot be written", "Free space")
        expect(not (out / "manifest.json").exists(), "a manifest was written although the disk was full")
        _free_space(out)
        expect_done(project.ended(project.start(project.stage_command("pretrain", "pretrain.yaml"))))
        expect_equal(project, wanted)


@contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """No file below `folder` can be written or made: by a mount for root, to whom permissions mean nothing."""
    if os.geteuid() != 0:
        modes = {path: path.stat().st_mode for path in [folder, *folder.rglob("*")]}
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        try:
            yield
        finally:
            for path, mode in modes.items():
                path.chmod(mode)
        return
    if not _mounted("--bind", folder, folder):
        raise NotTried("this container may mount nothing, and root can write everywhere")
    try:
        if not _mounted("-o", "remount,bind,ro", folder):
            raise NotTried("this container may mount nothing read-only")
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def _read_only_results(project: Project, wanted: Wanted) -> None:
    project.forget("report")
    before = project.digests()
    with _read_only(project.folder / "results"):
        expect_failure(project.run(), 1, "cannot be written", "Choose another --out")
        expect_equal(project, before)
    expect_healed(project, wanted)


def _vanishing_results(project: Project, wanted: Wanted) -> None:
    results, away = project.folder / "results", project.folder / "away"
    project.forget("finetune")
    process = project.start(project.command())
    until_stage(project, process, "finetune")
    results.rename(away)
    done = project.ended(process)
    expect(not done.is_done, "a run without its results said that it was done")
    expect("Traceback" not in done.err, f"a traceback: {done.err[-600:]}")
    end_leftovers(project.folder, project.is_slurm)
    shutil.rmtree(results, ignore_errors=True)
    away.rename(results)
    expect_healed(project, wanted)


def _clock_set_back(project: Project, wanted: Wanted) -> None:
    project.forget("evaluate")
    for path in project.folder.rglob("*"):
        times = path.lstat()
        os.utime(path, ns=(times.st_atime_ns + _A_DAY, times.st_mtime_ns + _A_DAY), follow_symlinks=False)
    expect_healed(project, wanted)
    before = project.stage("finetune").joinpath("manifest.json").stat().st_mtime_ns
    expect_done(project.run())
    expect_equal(project, wanted)
    after = project.stage("finetune").joinpath("manifest.json").stat().st_mtime_ns
    expect(before == after, "what had been done was done again")


CASES = [
    Case(
        "disk full while a checkpoint is written",
        "exit code 1, the file and 'Free space'; no manifest; with space again the stage ends with equal digests",
        _disk_full,
    ),
    Case(
        "results folder read-only",
        "exit code 1, 'cannot be written' and 'Choose another --out'; nothing changed; writable again: equal digests",
        _read_only_results,
    ),
    Case(
        "results folder vanishes during finetune",
        "the run fails without a traceback; with the folder back the same command ends with equal digests",
        _vanishing_results,
    ),
    Case(
        "clock set back by a day",
        "results dated in the future are taken as they are; what is missing is made; equal digests",
        _clock_set_back,
    ),
]
