"""Runs the stages of a result again from their recorded settings and compares the bytes."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appssl.artifact import Artifact, sha256_file
from appssl.errors import ArtifactError
from appssl.plan import StageConfig, read_config
from appssl.stages.evaluate import evaluate
from appssl.stages.finetune import finetune
from appssl.stages.frame import KINDS, read_run, surroundings
from appssl.stages.lineage import results_root
from appssl.stages.prepare import prepare, prepare_shard
from appssl.stages.pretrain import pretrain
from appssl.stages.pseudolabel import pseudolabel

STAGES = ("pretrain", "pseudolabel", "finetune", "evaluate")


def reproduce(result: Path, *, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Repeats every stage of a run (or the one stage given), each from the recorded inputs.

    Returns:
        One row per stage: stage, equal (bool), differing files, versions that differ from the recorded ones.
    """
    folders = (
        [result]
        if (result / "manifest.json").is_file()
        else [result / s for s in STAGES if (result / s / "manifest.json").is_file()]
    )
    if not folders:
        raise ArtifactError(f"{result}: no finished stage here. Give a folder such as results/wearable/demo/s0.")
    root = results_root(folders[0])
    known = {sha256_file(path): path.parent for path in sorted(root.rglob("manifest.json"))}
    rows = []
    if len(folders) > 1:
        data = known.get(Artifact.open(folders[0]).manifest["inputs"]["data"])
        folders = [data, *folders] if data else folders
    for folder in folders:
        say(f"repeating {folder}")
        rows.append(_repeat(folder, known))
    return rows


def _repeat(folder: Path, known: dict[str, Path]) -> dict[str, Any]:
    before = Artifact.open(folder)
    stage = next(name for name, kind in KINDS.items() if kind == before.kind)
    config = read_config(folder / "config.yaml", stage)
    with tempfile.TemporaryDirectory(prefix="appssl-") as scratch:
        after = _run(stage, config, _inputs(before, known), Path(scratch) / folder.name)
        return {
            "stage": stage,
            "folder": str(folder),
            "equal": after.digest == before.digest,
            "differing": _differing(before, after),
            "versions": _versions(folder),
        }


def _inputs(artifact: Artifact, known: dict[str, Path]) -> dict[str, Path]:
    found = {}
    for name, digest in artifact.manifest["inputs"].items():
        if name.startswith("table:"):
            continue
        if digest not in known:
            raise ArtifactError(
                f"{artifact.folder}: its input {name} ({digest[:12]}) is not among the results any more."
            )
        found[name] = known[digest]
    return found


def _run(stage: str, config: StageConfig, inputs: dict[str, Path], out: Path) -> Artifact:
    if stage == "prepare":
        shards = [out / "shards" / str(number) for number in range(config.settings.shards)]
        for number, shard in enumerate(shards):
            prepare_shard(config, number, shard)
        return prepare(config, out, shards)
    if stage == "pretrain":
        return pretrain(config, inputs["data"], out, start_dir=inputs.get("start"))
    if stage == "pseudolabel":
        return pseudolabel(config, inputs["data"], inputs["encoder"], out)
    if stage == "finetune":
        return finetune(config, inputs["data"], out, encoder_dir=inputs.get("encoder"), labels_dir=inputs.get("labels"))
    if stage == "evaluate":
        compare = {name.partition(":")[2]: path for name, path in inputs.items() if name.startswith("compare:")}
        return evaluate(
            config,
            inputs["data"],
            out,
            encoder_dir=inputs.get("encoder"),
            model_dir=inputs.get("model"),
            compare=compare,
        )
    raise ArtifactError(f"a {stage} is not repeated by itself: give the run or an earlier stage.")


def _differing(before: Artifact, after: Artifact) -> list[str]:
    ours, theirs = before.manifest["files"], after.manifest["files"]
    names = sorted(ours.keys() | theirs.keys())
    return [name for name in names if ours.get(name, {}).get("sha256") != theirs.get(name, {}).get("sha256")]


def _versions(folder: Path) -> dict[str, str]:
    recorded, now = read_run(folder).get("packages", {}), surroundings()["packages"]
    return {
        name: f"{recorded.get(name)} then, {now.get(name)} now" for name in recorded if recorded[name] != now.get(name)
    }
