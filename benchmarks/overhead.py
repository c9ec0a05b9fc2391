"""What the workflow, tracking and command line cost over calling the stage functions in one process.

python benchmarks/overhead.py [epochs]      (pretrain and fine-tune recsys/demo's data; more epochs: longer jobs)
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def bare(folder: Path, plan: dict) -> float:
    """The stages of a plan, called one after another; returns seconds without imports."""
    from appssl.plan import read_config
    from appssl.stages import evaluate, finetune, make, prepare, pretrain, report

    begun = time.perf_counter()
    root = folder / "bare"
    ((key, data),) = plan["data"].items()
    make.make(
        "recsys", data["settings"]["make"]["size"], data["settings"]["make"]["seed"], Path(data["settings"]["root"])
    )
    configs = {
        name: _write(root / "configs" / f"{n}.yaml", text) for n, (name, text) in enumerate(plan["configs"].items())
    }
    config = read_config(configs[f"data/{key}"], "prepare")
    shards = [root / "shards" / str(n) for n in range(config.settings.shards)]
    for number, shard in enumerate(shards):
        prepare.prepare_shard(config, number, shard)
    prepare.prepare(config, root / "data", shards)
    run = "recsys/demo/s0"
    read = lambda stage: read_config(configs[f"{run}/{stage}"], stage)  # noqa: E731
    pretrain.pretrain(read("pretrain"), root / "data", root / "r/pretrain")
    finetune.finetune(read("finetune"), root / "data", root / "r/finetune", encoder_dir=root / "r/pretrain")
    folders = {"encoder_dir": root / "r/pretrain", "model_dir": root / "r/finetune"}
    evaluate.evaluate(read("evaluate"), root / "data", root / "r/evaluate", **folders)
    stages = {name: root / "r" / name for name in ("pretrain", "finetune", "evaluate")}
    report.report(read("report"), root / "data", stages, root / "r/report")
    return time.perf_counter() - begun


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(json.loads(text)))
    return path


def main() -> None:
    from appssl.plan import complete, make_plan

    epochs = float(sys.argv[1]) if len(sys.argv) > 1 else 40.0
    settings = {"pretrain.fit.epochs": epochs, "finetune.fit.epochs": epochs / 4}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = complete(
            make_plan(["recsys/demo"], seeds=[0], overrides=settings, results=folder / "alone", quick=False)
        )
        alone = bare(folder, plan)
        sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "appssl", "run", "recsys/demo", *sets], cwd=folder, check=False, capture_output=True
        )
        whole = time.perf_counter() - begun
    print(f"stage functions in one process {alone:.1f} s, appssl run {whole:.1f} s")
    print(f"ratio {whole / alone:.2f}, {whole - alone:.1f} s more")


if __name__ == "__main__":
    main()
