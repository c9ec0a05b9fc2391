"""Views of photos rendered in batches on the training's device, beside one core and OpenCV, and beside albumentations.

    python benchmarks/device_views.py [--size 224] [--batch 256]

SimCLR's recipe with blur of half of the views, from made photos of 10/7 of the view's side, all in one run: drawing,
rendering of whole batches on the device (images and draws are copied to it first, which is counted), the same draws
rendered by one core, and albumentations' recipe where it is installed. Needs PyTorch, NumPy and OpenCV.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import cv2
import numpy as np
import torch

from appssl.ops.images.drawn_views import DrawnViews, drawn_views
from appssl.ops.images.draws import Recipe, draw, rendered
from appssl.ops.images.pixels import Standardize

ROUNDS, WARM_UP, ON_CPU = 10, 3, 32
MEAN, STD = (0.45, 0.43, 0.35), (0.27, 0.25, 0.26)


RECIPE = Recipe(
    scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, jitter=0.8, strength=0.5, grey=0.2, blur=0.5, solarize=0.0
)


def photos(count: int, side: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    size = (round(side * 10 / 7), round(side * 15 / 14))  # 320 x 240 for 224
    coarse = rng.integers(0, 256, (count, 24, 32, 3), dtype=np.uint8)
    return [cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) for image in coarse]


def seconds(work: Callable[[], object], rounds: int, clock: Callable[[], float]) -> float:
    found = []
    for _ in range(rounds):
        begun = clock()
        work()
        found.append(clock() - begun)
    return statistics.median(found)


def moved(views: DrawnViews, device: torch.device) -> DrawnViews:
    names = ("images", "drawn", "scale", "shift")
    return replace(views, **{name: getattr(views, name).to(device, non_blocking=True) for name in names})


def albumentations_recipe(side: int) -> Callable[..., object] | None:
    try:
        import albumentations as A
        from albumentations.pytorch import ToTensorV2
    except ImportError:
        return None
    around, turn = (1 - 0.8 * RECIPE.strength, 1 + 0.8 * RECIPE.strength), 0.2 * RECIPE.strength
    return A.Compose(
        [
            A.RandomResizedCrop((side, side), scale=RECIPE.scale, ratio=RECIPE.ratio),
            A.HorizontalFlip(p=RECIPE.flip),
            A.ColorJitter(around, around, around, (-turn, turn), p=RECIPE.jitter),
            A.ToGray(p=RECIPE.grey),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=RECIPE.blur),
            A.Normalize(MEAN, STD),
            ToTensorV2(),
        ]
    )


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--size", type=int, default=224)
    options.add_argument("--batch", type=int, default=256)
    given = options.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu, one core"
    side, standardize = given.size, Standardize(MEAN, STD)
    images = photos(given.batch, side)
    rng = np.random.default_rng(1)
    draws = [draw(*image.shape[:2], RECIPE, rng) for image in images]
    views = drawn_views(images, [[view] for view in draws], [side], standardize)
    views = views.pin_memory() if device.type == "cuda" else views
    few = list(zip(images, draws, strict=True))[:ON_CPU]

    def on_device() -> torch.Tensor:
        made = moved(views, device).render()[0]
        if device.type == "cuda":
            torch.cuda.synchronize()
        return made

    def drawing() -> None:
        drawn_views(images[:ON_CPU], [[draw(*i.shape[:2], RECIPE, rng)] for i in images[:ON_CPU]], [side], standardize)

    def on_one_core() -> torch.Tensor:
        return torch.stack([standardize(rendered(image, view, side)) for image, view in few])

    apart = (on_device()[: len(few)].cpu() - on_one_core()).abs() / torch.from_numpy(standardize.scale)[:, None, None]
    seconds(on_device, WARM_UP, time.perf_counter)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = {
        f"device ({name})": seconds(on_device, ROUNDS, time.perf_counter) / given.batch,
        "drawing, one core": seconds(drawing, ROUNDS, time.process_time) / len(few),
        "appssl, one core": seconds(on_one_core, ROUNDS, time.process_time) / len(few),
    }
    if (peer := albumentations_recipe(side)) is not None:
        made_by_peer = lambda: torch.stack([peer(image=image)["image"] for image, _ in few])  # noqa: E731
        found["albumentations, one core"] = seconds(made_by_peer, ROUNDS, time.process_time) / len(few)
    rendering = next(iter(found.values()))
    print(f"{side} px, {given.batch} views a batch, images {images[0].shape[1]} x {images[0].shape[0]}")
    for what, time_ in found.items():
        print(f"{what}: {1e3 * time_:.4f} ms a view, {time_ / rendering:.1f} times the device's")
    most = apart.flatten().kthvalue(round(0.999 * apart.numel())).values
    print(f"levels apart: mean {apart.mean():.3f}, 99.9 % within {most:.1f}")
    if device.type == "cuda":
        print(f"peak device memory: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
