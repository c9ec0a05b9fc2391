import io

import numpy as np
from PIL import Image

from appssl.reports import figures
from tests.reports.conftest import png


def test_figures_are_svg_and_the_same_bytes_twice():
    rng = np.random.default_rng(0)
    x, labels = rng.random(50), ["a", "b"] * 25
    values = {"value": 0.2, "low": 0.1, "high": 0.3}

    def all_figures() -> list[bytes]:
        return [
            figures.training_curves({"train/loss": [(1, 2.0), (2, 1.0)], "train/lr": [(1, 0.1), (2, 0.0)]}),
            figures.embedding_map(x, x[::-1], labels, ["a", "b"]),
            figures.confusion(np.array([[3, 1], [0, 4]]), ["a", "b"]),
            figures.reliability(x, (x > 0.5).astype(float)),
            figures.slice_bars({"recall@20": {"head": values, "tail": values, "all": values}}),
        ]

    first = all_figures()
    assert all(b"<svg" in content for content in first)
    assert first == all_figures()
    assert not any(b"<dc:date>" in content for content in first)


def test_edges_do_not_fail():
    figures.training_curves({"train/loss": [(1, float("nan"))]})
    figures.training_curves({"train/accuracy": [(1, 0.5)]})
    figures.embedding_map(np.zeros(1), np.zeros(1), ["a"], ["a"])
    figures.confusion(np.zeros((40, 40)), [f"class number {i}" for i in range(40)])
    figures.reliability(np.ones(3), np.zeros(3))
    figures.slice_bars({f"m{i}": {"cold": {"value": 0.1}} for i in range(5)})
    assert len(set(map(figures.slice_bars, ({"m": {d: {"value": 0.1}}} for d in ("decile_01", "decile_10"))))) == 2
    figures.confusion(np.eye(2), ["$broken_{math", "naïve"])


def test_small_images_stay_as_they_are_and_large_ones_shrink():
    small, large = png(20, 20), png(2000, 500)
    assert figures.compact(small) == (small, "png")
    content, kind = figures.compact(large)
    assert kind == "jpeg"
    assert len(content) < len(large)
    assert Image.open(io.BytesIO(content)).size == (1800, 450)
