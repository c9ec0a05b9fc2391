"""Copies of prepared data on a node's own disk: whole or not there, shared, within limits, in no result."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appssl import staging
from appssl.artifact import Artifact, ArtifactWriter
from appssl.errors import ArtifactError, SettingsError
from appssl.plan import StageConfig
from appssl.recipe import Evaluate
from appssl.stages.frame import run_stage
from appssl.staging import staged
from tests.commands import REPOSITORY, environment

# Says where it reads, and then waits until its input is closed.
READER = """
import sys
from pathlib import Path
from appssl.artifact import Artifact
from appssl.staging import staged
found = staged(Artifact.open(Path(sys.argv[1]), check=False))
print(found.folder, flush=True)
sys.stdin.read()
"""


def data(folder: Path, size: int = 1000, text: bytes = b"a") -> Artifact:
    writer = ArtifactWriter(folder, "data", settings_digest="s", inputs={})
    writer.bytes("signal.npy", text * size)
    writer.bytes("deep/table.bin", b"")
    return writer.finish()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The node's own disk; locks that this process holds are given back afterwards."""
    monkeypatch.setenv("APPSSL_STAGING", str(tmp_path / "disk"))
    yield tmp_path / "disk"
    release()


def release():
    for handle in staging._held.values():
        os.close(handle)
    staging._held.clear()


def reader(artifact: Artifact, *prefix: str, **extra: str) -> "subprocess.Popen[str]":
    command = [*prefix, sys.executable, "-c", READER, str(artifact.folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment(**extra), text=True, **pipes)


def copies(place: Path) -> set[str]:
    return {path.name for path in place.iterdir() if path.is_dir()}


def test_the_copy_has_the_bytes_and_the_digest_and_is_made_once(tmp_path, place, capsys):
    shared = data(tmp_path / "shared")
    copy = staged(shared)
    assert copy.folder == place / shared.digest
    assert copy.digest == shared.digest
    copy.check()
    made = (copy.folder / "signal.npy").stat()
    release()
    assert staged(shared).folder == copy.folder
    assert (copy.folder / "signal.npy").stat().st_ino == made.st_ino
    assert capsys.readouterr().err.count("copied to the node's own disk") == 1


def test_the_shared_files_are_read_once_and_then_not_at_all(tmp_path, place):
    """As the kernel counts it: opens of the shared file by a process that stages, and by the next one."""
    if shutil.which("strace") is None:
        pytest.skip("NOT TESTED: strace is not installed")
    shared = data(tmp_path / "shared")
    opened = []
    for _ in range(2):
        log = tmp_path / "calls"
        process = reader(shared, "strace", "-f", "-e", "trace=openat", "-o", str(log))
        process.communicate()
        opened.append(log.read_text().count(f"{shared.folder}/signal.npy"))
    assert opened == [1, 0]


def test_a_kill_in_mid_copy_leaves_nothing_that_is_taken_for_whole(tmp_path, place):
    shared = data(tmp_path / "shared", 300_000_000)
    process = reader(shared)
    part = place / f".{shared.digest}.part" / "signal.npy"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert part.exists()  # it was killed in the middle of it
    assert copies(place) == {f".{shared.digest}.part"}
    copy = staged(shared)
    copy.check()
    assert copies(place) == {shared.digest}


def test_processes_that_begin_together_copy_once_and_all_read_the_copy(tmp_path, place):
    shared = data(tmp_path / "shared", 30_000_000)
    running = [reader(shared) for _ in range(3)]
    said = [process.communicate() for process in running]
    assert [out.strip() for out, _ in said] == [str(place / shared.digest)] * 3, said
    assert sum("copied to the node's own disk" in err for _, err in said) == 1


def test_more_than_the_limit_or_the_free_space_is_read_in_place_and_said(tmp_path, place, monkeypatch, capsys):
    shared = data(tmp_path / "shared", 2000)
    monkeypatch.setenv("APPSSL_STAGING_GB", "0.0000019")
    assert staged(shared).folder == shared.folder
    monkeypatch.setenv("APPSSL_STAGING_GB", "1")
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda folder: Free())
    assert staged(shared).folder == shared.folder
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all("read in place, not staged" in line for line in said)
    assert "more than APPSSL_STAGING_GB" in said[0]
    assert "room are missing" in said[1]
    assert copies(place) == set()


class Free:
    free = 1999


@pytest.mark.parametrize("limit", ["many", "0", "-1", "nan"])
def test_a_limit_that_is_no_number_is_refused(tmp_path, monkeypatch, limit):
    monkeypatch.setenv("APPSSL_STAGING_GB", limit)
    with pytest.raises(SettingsError, match="APPSSL_STAGING_GB is"):
        staged(data(tmp_path / "shared"))


def test_the_least_recently_taken_copies_that_nobody_reads_make_room(tmp_path, place, monkeypatch):
    monkeypatch.setenv("APPSSL_STAGING_GB", "0.00035")  # three of them
    first, second, third, fourth = (data(tmp_path / name, 100_000, name.encode()) for name in "abcd")
    for artifact in (first, second, third):
        staged(artifact)
        release()
        time.sleep(0.02)
    staged(first)  # now the second is the oldest
    release()
    staged(fourth)
    assert copies(place) == {artifact.digest for artifact in (first, third, fourth)}


def test_a_copy_that_is_read_is_never_removed(tmp_path, place, monkeypatch, capsys):
    monkeypatch.setenv("APPSSL_STAGING_GB", "0.00015")
    first, second = (data(tmp_path / name, 100_000, name.encode()) for name in "ab")
    reading = reader(first)
    assert reading.stdout.readline().strip() == str(place / first.digest)
    assert staged(second).folder == second.folder
    assert "what else lies there is being read" in capsys.readouterr().err
    assert copies(place) == {first.digest}
    Artifact.open(place / first.digest)
    reading.communicate()
    assert staged(second).folder == place / second.digest
    assert copies(place) == {second.digest}


@pytest.mark.parametrize("damage", ["size", "missing", "manifest"])
def test_a_damaged_copy_is_made_again(tmp_path, place, damage):
    shared = data(tmp_path / "shared")
    copy = staged(shared).folder
    release()
    if damage == "size":
        (copy / "signal.npy").write_bytes(b"a")
    else:
        (copy / ("manifest.json" if damage == "manifest" else "deep/table.bin")).unlink()
    staged(shared).check()
    assert copies(place) == {shared.digest}


def test_a_damaged_copy_that_somebody_reads_is_left_and_the_data_are_read_in_place(
    tmp_path, place, monkeypatch, capsys
):
    monkeypatch.setattr(staging, "_PATIENCE_SECONDS", 0.2)
    shared = data(tmp_path / "shared")
    reading = reader(shared)
    copy = Path(reading.stdout.readline().strip())
    (copy / "signal.npy").write_bytes(b"a")
    assert staged(shared).folder == shared.folder
    assert "is damaged, and another process reads it" in capsys.readouterr().err
    reading.communicate()


@pytest.mark.parametrize("damage", ["byte", "size", "missing"])
def test_a_wrong_byte_in_the_shared_file_is_an_error_and_no_copy(tmp_path, place, damage):
    shared = data(tmp_path / "shared")
    file = shared.folder / "signal.npy"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"a" * 999 + (b"b" if damage == "byte" else b""))
    with pytest.raises(ArtifactError, match=r"damaged: signal\.npy"):
        staged(shared)
    assert copies(place) == set()


def test_data_that_are_read_in_place_are_checked(tmp_path, monkeypatch):
    shared = data(tmp_path / "shared")
    (shared.folder / "signal.npy").write_bytes(b"b" * 1000)
    monkeypatch.setenv("APPSSL_STAGING_GB", "0.0000001")
    with pytest.raises(ArtifactError, match=r"signal\.npy has changed"):
        staged(shared)


def test_data_whose_slides_lie_elsewhere_are_read_in_place(tmp_path, place, capsys):
    shared = data(tmp_path / "shared")
    (shared.folder / "root.json").write_text('{"slides_root": "/slides"}')
    assert staged(shared).folder == shared.folder
    assert "slides are read from data.root" in capsys.readouterr().err


def test_variables_of_the_node_are_put_in_and_unknown_ones_or_a_place_that_cannot_be_are_said(
    tmp_path, monkeypatch, capsys
):
    shared = data(tmp_path / "shared")
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "nvme"))
    monkeypatch.setenv("APPSSL_STAGING", "$NODE_DISK/staged")
    assert staged(shared).folder == tmp_path / "nvme/staged" / shared.digest
    monkeypatch.setenv("APPSSL_STAGING", "$NOT_THERE/staged")
    assert staged(shared).folder == shared.folder
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("APPSSL_STAGING", str(tmp_path / "file/staged"))
    assert staged(shared).folder == shared.folder
    said = capsys.readouterr().err.splitlines()
    assert "no such variable on this node" in said[1]
    assert "read in place" in said[2]


def test_only_stages_that_read_data_many_times_stage_them_and_their_results_are_the_same(tmp_path, place, monkeypatch):
    shared = data(tmp_path / "shared")

    def work(inputs, writer, journal):
        writer.bytes("sum", hashlib.sha256(inputs["data"].path("signal.npy").read_bytes()).digest())
        return {"read": inputs["data"].folder.is_relative_to(place)}

    def run(out):
        config = StageConfig("evaluate", "wsi", "tiny", 0, Evaluate())
        return run_stage(config, out, {"data": shared.folder}, work, method="classification")

    with_copy = run(tmp_path / "with")
    assert '"read": true' in (tmp_path / "with/run.json").read_text()
    monkeypatch.delenv("APPSSL_STAGING")
    assert run(tmp_path / "without").digest == with_copy.digest
    assert '"read": false' in (tmp_path / "without/run.json").read_text()
    said = [
        path for path in (tmp_path / "with").rglob("*") if path.is_file() and str(place).encode() in path.read_bytes()
    ]
    assert said == []
    assert staging.is_wanted() is False


def test_a_finished_stage_neither_stages_nor_runs(tmp_path, place, monkeypatch):
    shared = data(tmp_path / "shared")
    calls = []

    def work(inputs, writer, journal):
        calls.append(1)
        writer.json("x", 1)
        return {}

    config = StageConfig("evaluate", "wsi", "tiny", 0, Evaluate())
    monkeypatch.delenv("APPSSL_STAGING")
    run_stage(config, tmp_path / "out", {"data": shared.folder}, work, method="m")
    monkeypatch.setenv("APPSSL_STAGING", str(place))
    run_stage(config, tmp_path / "out", {"data": shared.folder}, work, method="m")
    assert calls == [1]
    assert not place.exists()
