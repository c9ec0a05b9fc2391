"""Faults of what changes between attempts: the tables that are read, and the version of the package."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import appssl
from appssl import bundle
from appssl.artifact import Artifact
from appssl.drill.expecting import Case, Wanted, expect, expect_done, expect_failure, until_stage
from appssl.drill.project import STAGES, Project

_NEW_VERSION = "99.0.0"
_OWN = """\
description: the user's own table, which changes while it is used
domain: wearable
data:
  root: raw
  source: {name: wearable, table: recordings.csv, labels: labels.csv, split: {test: 0.5}}
pretrain:
  backbone: {name: cnn1d, widths: [8]}
  views: signal
  fit: {steps: 2, batch_size: 8}
"""


def _inputs_changed(project: Project, wanted: Wanted) -> None:
    raw = next((project.results / "synthetic").iterdir())
    table = raw / "labels.csv"
    shutil.copytree(raw, project.folder / "raw")
    (project.folder / "own.yaml").write_text(_OWN)
    table.write_text(_without_last_line(table))
    verified = project.appssl("verify", "results")
    expect_failure(verified, 3)
    expect("labels.csv" in verified.out, f"'appssl verify' does not name the table: {verified.out}")
    run = [sys.executable, "-m", "appssl", "run", "own.yaml", "--out", "own"]
    process = project.start(run)
    until_stage(project, process, "pretrain")
    own = project.folder / "raw/labels.csv"
    own.write_text(_without_last_line(own))
    expect_done(project.ended(process))
    first = _data_of_pretraining(project.folder / "own")
    expect_done(project.ended(project.start(run)))
    second = _data_of_pretraining(project.folder / "own")
    expect(first != second, "data was not prepared again, or pretraining not done again")


def _without_last_line(table: Path) -> str:
    return "\n".join(table.read_text(encoding="utf-8").splitlines()[:-1]) + "\n"


def _data_of_pretraining(results: Path) -> str:
    """Digest of the data that pretraining used, which has to be that of the data that lie there."""
    used: str = Artifact.open(results / "wearable/own/s0/pretrain", "encoder").manifest["inputs"]["data"]
    (data,) = (results / "data").iterdir()
    expect(used == Artifact.open(data, "data").digest, "pretraining is not of the data beside it")
    return used


def _upgraded(folder: Path) -> Path:
    """This package once more, with another version: links to everything but the file that says it."""
    package, source = folder / "appssl", Path(appssl.__file__).parent
    package.mkdir(parents=True)
    for path in source.iterdir():
        if path.name not in ("version.py", "__pycache__"):
            (package / path.name).symlink_to(path)
    text = (source / "version.py").read_text(encoding="utf-8")
    (package / "version.py").write_text(re.sub(r'"[^"]*"\s*$', f'"{_NEW_VERSION}"\n', text), encoding="utf-8")
    if bundle.root() == source.parent:  # a checkout: the workflow lies beside the package
        for name in ("Snakefile", "workflows", "pipelines"):
            (folder / name).symlink_to(source.parent / name)
    return folder


def _version_changed(project: Project, wanted: Wanted) -> None:
    files = _files(project)
    project.forget("evaluate")
    expect_done(project.run(PYTHONPATH=str(_upgraded(project.folder / "upgraded"))))
    versions = {stage: _manifest(project, stage)["version"] for stage in STAGES}
    old = {stage for stage, version in versions.items() if version != _NEW_VERSION}
    expect(old == set(STAGES[:4]), f"of the version before are: {', '.join(sorted(old))}")
    changed = sorted(name for name, digest in _files(project).items() if files[name] != digest)
    expect(not changed, f"other bytes of: {', '.join(changed)}")


def _manifest(project: Project, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project.stage(stage) / "manifest.json").read_text(encoding="utf-8"))
    return found


def _files(project: Project) -> dict[str, str]:
    """Digests of the files of all stages but the report, which shows versions."""
    found: dict[str, str] = {}
    for stage in STAGES[:-1]:
        listed = _manifest(project, stage)["files"]
        found |= {f"{stage}/{name}": noted["sha256"] for name, noted in listed.items()}
    return found


CASES = [
    Case(
        "inputs changed between stages",
        "'appssl verify' names a changed table; of the user's own the next run prepares again, and pretrains again",
        _inputs_changed,
    ),
    Case(
        "package version changed between attempts",
        "finished stages stay, later ones note the new version; all files have equal bytes",
        _version_changed,
    ),
]
