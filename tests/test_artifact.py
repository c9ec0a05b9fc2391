import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import polars as pl
import pytest

from appssl.artifact import Artifact, ArtifactWriter, written_aside
from appssl.contracts import Quarantined
from appssl.errors import AppsslError, ArtifactError, DataError


def write(folder, text="hello"):
    writer = ArtifactWriter(folder, "data", settings_digest="s", inputs={"raw": "d"})
    writer.bytes("a.txt", text.encode())
    writer.table("t.parquet", pl.DataFrame({"x": [1, 2]}))
    writer.array("sub/v.npy", np.arange(5))
    return writer.finish()


def test_equal_content_is_equal_bytes_wherever_it_lies(tmp_path):
    assert write(tmp_path / "one").digest == write(tmp_path / "two").digest
    assert write(tmp_path / "three", "other").digest != write(tmp_path / "one").digest


@pytest.mark.parametrize("name", ["a.txt", "t.parquet", "sub/v.npy"])
def test_a_flipped_bit_is_found(tmp_path, name):
    write(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} has changed"):
        Artifact.open(tmp_path)


def test_every_damaged_file_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "t.parquet").write_bytes(b"cut")
    with pytest.raises(ArtifactError, match=r"a\.txt is missing; t\.parquet has 3 bytes instead of"):
        Artifact.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is damaged"),
        (b"[]", "is not a manifest"),
        (b"\xff\xfe", "is damaged"),
        (b'{"format": 1}', "is not a manifest"),
    ],
)
def test_a_damaged_manifest_is_explained(tmp_path, content, message):
    write(tmp_path)
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(tmp_path)


def test_a_manifest_of_another_format_is_refused(tmp_path):
    write(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ArtifactError, match="format 99, this version reads 1"):
        Artifact.open(tmp_path)


def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path):
    write(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"size": 1, "sha256": "x"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="is not a manifest"):
        Artifact.open(tmp_path)


def test_the_wrong_kind_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(ArtifactError, match="kind data, needed is encoder"):
        Artifact.open(tmp_path, "encoder")


def test_a_writer_refuses_names_outside_its_folder(tmp_path):
    writer = ArtifactWriter(tmp_path / "a", "data", settings_digest="s", inputs={})
    with pytest.raises(ArtifactError, match="cannot be a file"):
        writer.bytes("../x", b"")


def test_nothing_appears_under_its_final_name_when_writing_fails(tmp_path):
    def fail_half_way():
        with written_aside(tmp_path / "x") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_a_kill_in_mid_write_leaves_no_file_under_its_final_name(tmp_path):
    script = f"""
        import os, signal
        from pathlib import Path
        from appssl.artifact import written_aside
        with written_aside(Path({str(tmp_path)!r}) / "x") as file:
            file.write(b"half"); file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "x").exists()
    ArtifactWriter(tmp_path, "data", settings_digest="s", inputs={})
    assert list(tmp_path.iterdir()) == []  # what the killed process left is cleaned


def test_a_half_written_checkpoint_is_cleaned_too(tmp_path):
    half = tmp_path / "state/checkpoints/.step-0000000005.part"
    half.mkdir(parents=True)
    (half / ".model.safetensors.1.part").write_bytes(b"half")
    ArtifactWriter(tmp_path, "data", settings_digest="s", inputs={})
    assert list(half.parent.iterdir()) == []


def test_a_new_writer_takes_the_old_manifest_away_first(tmp_path):
    write(tmp_path)
    ArtifactWriter(tmp_path, "data", settings_digest="s", inputs={})
    assert not (tmp_path / "manifest.json").exists()


def test_an_account_that_does_not_sum_is_refused(tmp_path):
    writer = ArtifactWriter(tmp_path, "data", settings_digest="s", inputs={})
    writer.account("tiles").keep(3)
    writer.account("tiles").total += 1
    with pytest.raises(DataError, match="account of tiles does not sum: 4 came in, 3 are explained"):
        writer.finish()


def test_quarantine_and_account_are_files_of_the_artifact(tmp_path):
    writer = ArtifactWriter(tmp_path, "data", settings_digest="s", inputs={})
    writer.account("images").keep(2)
    writer.account("images").fail("truncated")
    writer.quarantine.append(Quarantined("image", "i3", "c.jpg", "failed", "truncated", "ended early"))
    artifact = writer.finish()
    assert artifact.accounts()["images"].plain() == {"total": 3, "kept": 2, "left_out": {}, "failed": {"truncated": 1}}
    assert artifact.table("quarantine.parquet").row(0, named=True)["reason"] == "truncated"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_full_disk_is_a_clear_error_and_leaves_nothing_final(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False).returncode != 0:
        pytest.skip("this container may not mount a tmpfs, so a full disk cannot be made here")
    try:
        writer = ArtifactWriter(tmp_path / "a", "data", settings_digest="s", inputs={})
        with pytest.raises(AppsslError, match=r"big\.npy: cannot be written: No space left on device"):
            writer.array("big.npy", np.zeros(100_000))
        with pytest.raises(AppsslError, match=r"big\.parquet: cannot be written: No space left on device"):
            writer.table("big.parquet", pl.DataFrame({"value": np.random.default_rng(0).random(100_000)}))
        assert not (tmp_path / "a" / "big.npy").exists()
        assert not (tmp_path / "a" / "manifest.json").exists()
    finally:
        subprocess.run(["umount", tmp_path], check=True)
