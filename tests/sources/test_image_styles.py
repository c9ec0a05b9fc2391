"""Images in several styles: which one by hash, the formula, and everything else as of sources/webnoisy."""

import math

import numpy as np
import polars as pl
import pytest

from appssl.errors import SettingsError
from appssl.settings import validate
from appssl.sources import webnoisy
from appssl.sources.image_styles import STYLES, Config, Style, build, rendered
from tests.sources.test_webnoisy import prepared, write_table

TABLE = {"table": "table.csv", "columns": {"split": "split"}, "size": 16}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_table(folder, [(f"{split}{n:03}", "ab"[n % 2], split) for split in ("train", "test") for n in range(60)])
    return folder


def config(model=Config, **values):
    return validate(model, {**TABLE, **values}, file="recipe", owner="sources/image_styles")


def picture():
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)


def test_a_style_is_its_formula_pixel_by_pixel():
    style = Style(grey=0.4, tint=(1.1, 0.8, 0.6), contrast=0.7, brightness=0.1, stripes=(0.06, 5, 30))
    found, image = rendered(picture(), style), picture()
    for row in range(6):
        for column in range(8):
            red, green, blue = (int(value) / 255 for value in image[row, column])
            luma = 0.299 * red + 0.587 * green + 0.114 * blue
            place = column * math.cos(math.pi / 6) + row * math.sin(math.pi / 6)
            for channel, value in enumerate((red, green, blue)):
                tinted = style.tint[channel] * (0.6 * value + 0.4 * luma)
                shown = 0.5 + 0.7 * (tinted - 0.5) + 0.1 + 0.06 * math.sin(2 * math.pi / 5 * place)
                assert abs(int(found[row, column, channel]) - 255 * min(max(shown, 0), 1)) <= 0.501


def test_a_plain_image_stays_and_all_styles_differ():
    assert np.array_equal(rendered(picture(), STYLES["plain"]), picture())
    shown = [rendered(picture(), style).astype(int) for style in STYLES.values()]
    assert min(np.abs(a - b).mean() for n, a in enumerate(shown) for b in shown[:n]) > 5
    blurred = rendered(picture(), Style(blur=1.0))
    assert blurred.std() < 0.8 * picture().std()


def test_parts_have_their_styles_about_equally_often(root, tmp_path):
    _, data = prepared(config(), root, tmp_path, build=build)
    for split, styles in (("train", ("sepia", "night", "faded")), ("test", ("sepia", "night", "faded", "print"))):
        found = dict(data.samples.filter(split=split).group_by("domain").len().iter_rows())
        assert set(found) == set(styles)
        assert min(found.values()) > 5
    assert data.meta.facts["domain"] == "domain"
    assert data.meta.facts["unseen_domains"] == ["print"]


def test_images_are_those_of_webnoisy_in_their_style_and_so_are_their_statistics(root, tmp_path):
    _, plain = prepared(config(webnoisy.Config), root, tmp_path / "plain")
    _, data = prepared(config(), root, tmp_path / "styles", num_shards=3, build=build)
    assert data.samples["id"].equals(plain.samples["id"])
    for row, domain in enumerate(data.samples["domain"]):
        assert np.array_equal(data.read(row), rendered(plain.read(row), STYLES[domain]))
    train = np.stack([data.read(row) for row in data.samples.filter(split="train")["index"]]) / 255
    np.testing.assert_allclose(data.meta.facts["rgb_mean"], train.mean((0, 1, 2)))
    np.testing.assert_allclose(data.meta.facts["rgb_std"], train.std((0, 1, 2)))


def test_a_style_depends_on_the_id_alone(root, tmp_path):
    styles = {}
    for number, shards in enumerate((1, 2)):
        _, data = prepared(config(limit=80), root, tmp_path / str(number), shards, build=build)
        styles[number] = dict(data.samples.select("id", "domain").iter_rows())
    assert styles[0] == styles[1]
    whole = prepared(config(), root, tmp_path / "whole", build=build)[1].samples
    assert styles[0].items() <= dict(whole.select("id", "domain").iter_rows()).items()
    assert whole.filter(pl.col("domain").is_null()).is_empty()


def test_an_unknown_style_is_refused():
    with pytest.raises(SettingsError, match=r"train_styles\.0 is not valid: .*Did you mean sepia\?"):
        config(train_styles=["sepai"])
