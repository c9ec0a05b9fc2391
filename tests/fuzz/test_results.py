"""Manifests, journals, cursors and run records: what lies in a results folder may be damaged in any way."""

import json
import time

import pytest

from appssl.artifact import MANIFEST, Artifact, ArtifactWriter
from appssl.errors import ArtifactError
from appssl.ops.journal import Journal, ended_without_a_word, is_pending, journals, read_cursor, read_events
from appssl.stages.frame import read_run
from tests.fuzz.damage import fuzz, survives
from tests.test_tracking import ABOUT

MANIFEST_BYTES = json.dumps(
    {
        "format": 1, "kind": "data", "version": "0.1", "settings": "ab" * 32, "inputs": {"table:x": "cd" * 32},
        "files": {"a.json": {"size": 2, "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}},
    },
    indent=1,
).encode()  # fmt: skip


def journal_bytes(folder):
    found = Journal(folder)
    found.start(**ABOUT)
    found.metrics(1, {"train/loss": 0.5, "train/lr": float("nan")})
    found.finish("FINISHED", artifact_digest="e" * 64)
    return (folder / "metrics.jsonl").read_bytes()


def open_artifact(folder, name):
    (folder / "a.json").write_text("{}")
    artifact = Artifact.open(folder)
    return artifact.kind, artifact.digest, artifact.json("a.json"), dict(artifact.manifest["inputs"])


@fuzz(MANIFEST_BYTES, examples=200)
def test_manifests(content):
    survives(open_artifact, content, MANIFEST)


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.json", "a/../../b", ""])
def test_a_manifest_names_only_files_of_its_folder(tmp_path, name):
    values = json.loads(MANIFEST_BYTES)
    (tmp_path / MANIFEST).write_text(json.dumps({**values, "files": {name: {"size": 1, "sha256": ""}}}))
    with pytest.raises(ArtifactError, match="is not a manifest"):
        Artifact.open(tmp_path)


def test_a_deep_manifest_is_damaged_and_said_so(tmp_path):
    (tmp_path / MANIFEST).write_text("[" * 10**6)
    start = time.process_time()
    with pytest.raises(ArtifactError, match="is damaged"):
        Artifact.open(tmp_path)
    assert time.process_time() - start < 2


def test_the_valid_manifest_is_read(tmp_path):
    writer = ArtifactWriter(tmp_path, "data", settings_digest="x", inputs={})
    writer.json("a.json", {})
    assert writer.finish().json("a.json") == {}
    (tmp_path / MANIFEST).write_bytes(MANIFEST_BYTES)
    with pytest.raises(ArtifactError, match="has 3 bytes instead of 2"):
        Artifact.open(tmp_path)


def test_journals_cursors_and_run_records(tmp_path):
    valid = journal_bytes(tmp_path)

    @fuzz(valid, b'{"key": "a", "run_id": "b", "offset": 3, "store": "c"}')
    def damaged(content):
        survives(_all_of, content, "metrics.jsonl")
        survives(lambda folder, name: read_cursor(folder), content, ".upload.json")
        survives(lambda folder, name: read_run(folder), content, "run.json")

    damaged()


def _all_of(folder, name):
    path = folder / name
    events = list(read_events(path))
    assert all(isinstance(event["event"], str) for event in events)
    is_pending(path, {}), ended_without_a_word(path), journals(folder)
    Journal(folder).metrics(7, {"a": 1.0})
