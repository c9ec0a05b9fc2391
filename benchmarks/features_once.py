"""A classifier on a frozen encoder: `features: once` beside features of augmented views in every epoch.

python benchmarks/features_once.py DATA [--epochs 20] [--images 1000]

DATA holds images/cifar10n. Runs the stage finetune with both settings, a linear probe on a ResNet-18 of random weights
at 32 pixels, and prints the time of the whole stage beside the least it can take: every image through the encoder once.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

RECIPE = """
description: A linear probe on a frozen encoder of random weights.
domain: webnoisy
data:
  source:
    name: webnoisy
    table: images/cifar10n/train_00000_29999.parquet
    columns: {id: index, label: clean_label}
    class_names: [airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck]
    size: 32
finetune:
  backbone: {name: timm, model: resnet18}
  views: image_two_crop
  finetuner: linear_probe
  fit: {batch_size: 100, lr: 1e-2}
evaluate: {evaluators: [classification]}
"""


def seconds(folder: Path, data: Path, how: str, *, epochs: int, images: int) -> dict[str, float]:
    recipe = folder / "probe.yaml"
    recipe.write_text(RECIPE)
    values = {
        "data.root": data,
        "data.source.limit": images,
        "finetune.fit.epochs": epochs,
        "finetune.finetuner.features": how,
    }
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    subprocess.run(
        ["appssl", "run", str(recipe), "--out", str(folder / how), *words], check=True, stdout=subprocess.DEVNULL
    )
    run: dict[str, float] = json.loads((folder / how / "webnoisy/probe/s0/finetune/run.json").read_text())
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = {"epochs": args.epochs, "images": args.images}
        anew = seconds(Path(folder), args.data, "every_epoch", **size)
        once = seconds(Path(folder), args.data, "once", **size)
    first, second, least = anew["seconds"], once["seconds"], once["feature_seconds"]
    print(f"{args.images:,} images, {args.epochs} epochs: every epoch {first:.1f} s, once {second:.1f} s")
    print(f"once / every epoch {second / first:.3f}; one pass of the encoder takes {least:.1f} s,")
    print(f"once / one pass {second / least:.2f}, every epoch / one pass {first / least:.1f}")


if __name__ == "__main__":
    main()
