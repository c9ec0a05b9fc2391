"""Two random views of 224 px from photos in memory, stacked into a batch, beside the same recipe in albumentations.

    python benchmarks/webnoisy_views.py [FOLDER with .jpg files]

One thread, CPU time, the ways in turn; without a folder, made photos of 320 x 240. Resized crop, flip, colour jitter,
grey, blur of half of the views, standardized to float32 (3, 224, 224). To the device go bytes, which become numbers
there; `all` does that too.
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2

from appssl.ops.images.level_views import LevelViews, level_views
from appssl.views.image_two_crop import Config, ImageTwoCrop

SIZE, ROUNDS, BATCH = 224, 12, 30
MEAN, STD = np.array([0.45, 0.43, 0.35]), np.array([0.27, 0.25, 0.26])


def photos() -> list[np.ndarray]:
    files = sorted(Path(sys.argv[1]).rglob("*.jpg"))[:BATCH] if len(sys.argv) > 1 else []
    if files:
        return [cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in files]
    rng = np.random.default_rng(0)
    return [
        cv2.resize(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
        for _ in range(BATCH)
    ]


def peer(config: Config) -> A.Compose:
    around, turn = (1 - 0.8 * config.strength, 1 + 0.8 * config.strength), 0.2 * config.strength
    return A.Compose(
        [
            A.RandomResizedCrop((SIZE, SIZE), scale=config.scale, ratio=config.ratio),
            A.HorizontalFlip(p=config.flip),
            A.ColorJitter(around, around, around, (-turn, turn), p=config.jitter),
            A.ToGray(p=config.grey),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=config.blur),
            A.Normalize(tuple(MEAN), tuple(STD)),
            ToTensorV2(),
        ]
    )


def main() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    config, images = Config(size=SIZE, blur=0.5), photos()
    ours, theirs = ImageTwoCrop(config, size=SIZE, mean=MEAN, std=STD), peer(config)

    def levels(round_: int) -> LevelViews:
        made = [ours.levels(image, np.random.default_rng([round_, n])) for n, image in enumerate(images)]
        return level_views(made, ours.standardize)

    def with_ours(round_: int) -> list[torch.Tensor]:
        return levels(round_).render()

    def with_theirs(round_: int) -> list[torch.Tensor]:
        made = [[theirs(image=image)["image"] for _ in range(2)] for image in images]
        return [torch.stack(views) for views in zip(*made, strict=True)]

    assert [v.shape for v in with_ours(0)] == [v.shape for v in with_theirs(0)]
    ways = {"appssl, to the device": levels, "appssl, all": with_ours, "albumentations": with_theirs}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(ROUNDS):
        for name, make in ways.items():
            begun = time.process_time()
            make(round_)
            seconds[name].append(time.process_time() - begun)
    for name, found in seconds.items():
        ratios = np.array(seconds["albumentations"]) / np.array(found)
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        print(f"{name}: {1e3 * np.median(found) / (2 * len(images)):.3f} ms a view; ", end="")
        print(f"{middle:.2f} times as fast as albumentations (quartiles {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
