"""Views rendered in batches: the same draws as one by one, the same distribution, the same on every device."""

import pickle
import subprocess
import sys
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
import torch

from appssl.errors import DataError
from appssl.ops.images import drawn_views as module
from appssl.ops.images.drawn_views import drawn_views
from appssl.ops.images.draws import Drawn, Jitter, Recipe, draw, rendered
from appssl.ops.images.pixels import Standardize

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: there is no CUDA device"),
        ],
    ),
]
LEVELS = Standardize([0.0] * 3, [1 / 255] * 3)  # views stay levels


RECIPE = Recipe(
    scale=(0.08, 1.0),
    ratio=(3 / 4, 4 / 3),
    flip=0.5,
    jitter=0.8,
    strength=1.0,
    grey=0.2,
    blur=0.5,
    solarize=0.2,
)


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def drawn(height, width, recipe=RECIPE, count=24, views=1, seed=0):
    rng = np.random.default_rng(seed)
    images = [picture(height, width, number) for number in range(count)]
    return images, [[draw(height, width, recipe, rng) for _ in range(views)] for _ in images]


def on(device, views):
    tensors = {f.name: getattr(views, f.name) for f in fields(views)}
    return replace(views, **{k: v.to(device) for k, v in tensors.items() if isinstance(v, torch.Tensor)})


def render(images, draws, sides, device="cpu"):
    return on(device, drawn_views(images, draws, sides, LEVELS)).render()


def apart(images, draws, side, device):
    """Levels between each view rendered in the batch and the same draws rendered by OpenCV."""
    found = render(images, draws, [side], device)[0]
    assert found.device.type == device
    expected = np.stack([rendered(image, view, side) for image, (view,) in zip(images, draws, strict=True)])
    return np.abs(found.permute(0, 2, 3, 1).cpu().numpy() - expected)


SIZES = [(64, 64, 64), (64, 64, 24), (40, 48, 64), (150, 200, 32)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("height", "width", "side"), SIZES)
@pytest.mark.parametrize("steps", [{}, {"grey": 1.0}, {"solarize": 0.0, "flip": 1.0}])
def test_crops_without_jitter_are_within_a_level_of_opencv(height, width, side, steps, device):
    still = replace(RECIPE, **{"jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarize": 0.0, **steps})
    assert apart(*drawn(height, width, still), side, device).max() <= 1 + 1e-3  # to this or that side of a half


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("height", "width", "side"), SIZES)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_all_steps_together_are_within_a_few_levels_of_opencv(height, width, side, strength, device):
    """The level of a crop on this or that side of a half is carried on. A factor of the jitter makes at most 1.8 levels
    of it; it can also be the next of the hues, which lie two degrees apart: up to 255 / 30 = 8.5 levels for the purest
    of colours, two of them when that happens to two of the three channels. Few pixels are so pure and so near a border.
    """
    found = apart(*drawn(height, width, replace(RECIPE, strength=strength)), side, device)
    assert found.mean() <= 0.5
    assert np.quantile(found, 0.99) <= 4
    assert np.quantile(found, 0.999) <= 1.8 * 8.5
    assert found.max() <= 1.8**2 * 2 * 8.5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("place", range(4))
def test_the_order_of_the_jitter_is_that_of_each_view(place, device):
    """Strong factors, where another order of the steps makes tens of levels, and a hue that turns at any place."""
    order = [0, 2, 1]
    order.insert(place, 3)
    images = [picture(32, 32, number) for number in range(2)]
    jitters = [Jitter(1.7, 0.4, 1.6, 0.13, tuple(order)), Jitter(1.7, 0.4, 1.6, 0.13, tuple(reversed(order)))]
    draws = [[Drawn(0, 0, 32, 32, jitter=jitter)] for jitter in jitters]
    found = apart(images, draws, 32, device)
    assert found.mean() <= 1
    swapped = render(images, draws[::-1], [32], device)[0] - render(images, draws, [32], device)[0]
    assert swapped.abs().mean() > 5


def test_steps_that_no_view_takes_are_left_out_and_change_nothing():
    images, draws = drawn(32, 32, replace(RECIPE, jitter=0.0, grey=0.0, blur=0.0, solarize=0.0))
    views = drawn_views(images, draws, [32], LEVELS)
    assert views.steps == ()
    forced = replace(views, steps=("jitter", "grey", "blur", "solarize"))
    assert torch.equal(forced.render()[0], views.render()[0])


@pytest.mark.parametrize("device", DEVICES)
def test_views_of_several_sizes_come_in_their_order(device):
    images, draws = drawn(48, 40, count=5, views=3)
    found = render(images, draws, [32, 32, 16], device)
    assert [tuple(view.shape) for view in found] == [(5, 3, 32, 32)] * 2 + [(5, 3, 16, 16)]
    for number, side in enumerate((32, 32, 16)):
        alone = render(images, [[of_image[number]] for of_image in draws], [side], device)[0]
        assert torch.equal(found[number], alone)


@pytest.mark.parametrize("device", DEVICES)
def test_an_image_is_rendered_alike_in_any_batch_and_in_parts(device, monkeypatch):
    images, draws = drawn(40, 40, count=9)
    whole = render(images, draws, [32], device)[0]
    alone = torch.cat([render([i], [d], [32], device)[0] for i, d in zip(images, draws, strict=True)])
    monkeypatch.setattr(module, "_PIXELS", 4 * 40 * 40)
    parts = render(images, draws, [32], device)[0]
    for other in (alone, parts):  # products of another shape may add in another order: a rare level to the other side
        assert (whole != other).float().mean() <= 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_values_are_standardized(device):
    images, draws = drawn(32, 32)
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.3])
    levels = render(images, draws, [32], device)[0].double().cpu()
    found = on(device, drawn_views(images, draws, [32], Standardize(mean, std))).render()[0]
    assert found.dtype == torch.float32
    expected = (levels / 255 - torch.from_numpy(mean)[:, None, None]) / torch.from_numpy(std)[:, None, None]
    np.testing.assert_allclose(found.cpu().numpy(), expected.numpy(), atol=1e-5)


def test_rendering_is_float32_under_autocast_and_has_no_gradient():
    images, draws = drawn(32, 32, count=4)
    expected = render(images, draws, [32])[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = render(images, draws, [32])[0]
    assert torch.equal(found, expected)
    assert not found.requires_grad


def test_fabric_moves_the_tensors_and_nothing_else():
    apply = pytest.importorskip("lightning_fabric.utilities.apply_func")
    images, draws = drawn(32, 32, count=2)
    views = drawn_views(images, draws, [16], LEVELS)
    moved = apply.move_data_to_device({"index": torch.zeros(2), "views": views}, torch.device("meta"))["views"]
    assert isinstance(moved, module.DrawnViews)
    assert {t.device.type for t in (moved.images, moved.drawn, moved.scale, moved.shift)} == {"meta"}
    assert (moved.sides, moved.steps) == (views.sides, views.steps)
    assert views.images.device.type == "cpu"


def test_views_travel_from_worker_processes():
    images, draws = drawn(32, 32, count=2)
    views = drawn_views(images, draws, [16], LEVELS)
    assert torch.equal(pickle.loads(pickle.dumps(views)).render()[0], views.render()[0])


def test_images_of_several_sizes_say_what_to_do():
    images, draws = drawn(32, 32, count=2)
    with pytest.raises(DataError, match=r"images of 32 x 32, 32 x 40 pixels.* Set views.render to loader"):
        drawn_views([*images, picture(40, 32)], [*draws, draws[0]], [16], LEVELS)


def test_images_are_not_changed_and_may_be_read_only():
    images, draws = drawn(32, 32, count=3)
    for image in images:
        image.setflags(write=False)  # as a memory map is
    views = drawn_views(images, draws, [32], LEVELS)
    before = views.images.clone()
    views.render()
    assert torch.equal(views.images, before)


def test_a_view_costs_few_imports():
    """Where views are rendered, there may be nothing but PyTorch, NumPy and OpenCV."""
    code = "import sys, appssl.ops.images.drawn_views; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "cv2"} <= set(loaded)
    assert not {"polars", "pydantic", "yaml", "lightning_fabric", "sklearn", "mlflow"} & set(loaded)


STATISTICS = ("mean", "contrast", "red against blue", "saturation", "sharpness")


def statistics(views):
    """(len(STATISTICS), N) of views (N, S, S, 3) of levels."""
    grey = views.mean(3)
    sharp = np.abs(np.diff(grey, axis=1)).mean((1, 2)) + np.abs(np.diff(grey, axis=2)).mean((1, 2))
    spread = (views.max(3) - views.min(3)).mean((1, 2))
    return np.stack([grey.mean((1, 2)), grey.std((1, 2)), (views[..., 0] - views[..., 2]).mean((1, 2)), spread, sharp])


def farthest(one, two):
    """Kolmogorov and Smirnov's distance of two samples for each statistic."""
    stats = pytest.importorskip("scipy.stats")
    pairs = zip(STATISTICS, statistics(one), statistics(two), strict=True)
    return {name: float(stats.ks_2samp(a, b).statistic) for name, a, b in pairs}


NUM = 2500
# Two samples of NUM from one distribution are farther apart in 1 of 10,000 comparisons; there are 10.
LIMIT = np.sqrt(-np.log(1e-4 / 2) / 2) * np.sqrt(2 / NUM)
SIMCLR = replace(RECIPE, scale=(0.2, 1.0), strength=0.5, solarize=0.0)


def in_batches(recipe, seed):
    image = picture(64, 64, 3)
    rng = np.random.default_rng(seed)
    made = render([image] * NUM, [[draw(64, 64, recipe, rng)] for _ in range(NUM)], [32])[0]
    return made.permute(0, 2, 3, 1).numpy()


def test_views_in_batches_are_distributed_as_those_of_opencv():
    image, rng = picture(64, 64, 3), np.random.default_rng(1)
    one_by_one = np.stack([rendered(image, draw(64, 64, SIMCLR, rng), 32) for _ in range(NUM)]).astype(np.float64)
    assert max(farthest(in_batches(SIMCLR, 2), one_by_one).values()) <= LIMIT


def test_views_in_batches_are_distributed_as_those_of_albumentations():
    A = pytest.importorskip("albumentations")
    peer = A.Compose(
        [
            A.RandomResizedCrop((32, 32), scale=SIMCLR.scale, ratio=SIMCLR.ratio),
            A.HorizontalFlip(p=SIMCLR.flip),
            A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1), p=SIMCLR.jitter),
            A.ToGray(p=SIMCLR.grey),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=SIMCLR.blur),
        ],
        seed=0,
    )
    image = picture(64, 64, 3)
    theirs = np.stack([peer(image=image)["image"] for _ in range(NUM)]).astype(np.float64)
    assert max(farthest(in_batches(SIMCLR, 2), theirs).values()) <= LIMIT


@pytest.mark.parametrize(
    ("other", "noticed"),
    [
        ({"blur": 0.3}, "sharpness"),
        ({"grey": 0.1}, "saturation"),
        ({"strength": 0.3}, "mean"),
        ({"scale": (0.5, 1.0)}, "sharpness"),
    ],
)
def test_another_recipe_would_be_noticed(other, noticed):
    assert farthest(in_batches(SIMCLR, 2), in_batches(replace(SIMCLR, **other), 3))[noticed] > LIMIT


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: there is no CUDA device")
class TestCuda:
    def views(self):
        return drawn_views(*drawn(60, 80, count=64, views=2), [48, 32], LEVELS)

    def test_equals_the_cpu(self):
        """Within a level of the crop, carried on as above: products are added in another order."""
        for one, two in zip(self.views().render(), on("cuda", self.views()).render(), strict=True):
            assert (one - two.cpu()).abs().mean() <= 0.05

    def test_is_the_same_every_time(self):
        views = on("cuda", self.views())
        first = views.render()
        assert all(torch.equal(a, b) for _ in range(3) for a, b in zip(first, views.render(), strict=True))

    def test_does_not_wait_for_the_device(self):
        views = on("cuda", self.views())
        views.render()
        torch.cuda.set_sync_debug_mode("error")
        try:
            views.render()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_is_pinned(self):
        pinned = self.views().pin_memory()
        assert pinned.images.is_pinned()
        assert pinned.drawn.is_pinned()

    def test_a_large_batch_needs_few_gib(self):
        draws = drawn(240, 320, count=1, views=512)[1][0]
        views = on("cuda", drawn_views([picture(240, 320)] * 512, [[view] for view in draws], [224], LEVELS))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        views.render()
        assert torch.cuda.max_memory_allocated() - before < 3 * 2**30
