"""Long tails: counts by the rule, the rest accounted for."""

import polars as pl
import pytest

from appssl.errors import SettingsError
from appssl.settings import validate
from appssl.sources.long_tail import Config, build, tail_counts
from tests.sources.test_webnoisy import prepared, write_table

NAMES = ("rose", "leaf", "stone")
TABLE = {"table": "table.csv", "columns": {"split": "split"}, "size": 16, "class_names": list(NAMES)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rows = [(f"{split}{n:03}", NAMES[n % 3], split) for split in ("train", "test") for n in range(48)]
    write_table(folder, rows)
    return folder


def config(**values):
    return validate(Config, {**TABLE, **values}, file="recipe", owner="sources/long_tail")


def counts(data, split):
    found = dict(data.samples.filter(pl.col("split") == split).group_by("label").len().iter_rows())
    return [found[name] for name in NAMES]


def test_counts_follow_the_rule():
    assert sum(tail_counts(100, 500, 100)) == 10_847
    assert (tail_counts(100, 500, 100)[0], tail_counts(100, 500, 100)[-1]) == (500, 5)
    assert sum(tail_counts(100, 100, 50)) == 2486
    assert tail_counts(3, 16, 16) == [16, 4, 1]
    assert tail_counts(1, 7, 10) == [7]


def test_training_images_are_a_tail_and_test_images_as_they_are(root, tmp_path):
    artifact, data = _prepared(config(train={"ratio": 16}), root, tmp_path)
    assert counts(data, "train") == [16, 4, 1]
    assert counts(data, "test") == [16, 16, 16]
    account = artifact.json("account.json")["images"]
    assert account["left_out"] == {"long_tail": 12 + 15}
    assert account["total"] == account["kept"] + 27


def test_the_test_part_can_have_a_tail_of_its_own_in_either_direction(root, tmp_path):
    how = {"train": {"ratio": 1.0}, "test": {"ratio": 4.0, "most": 12}}
    assert counts(_prepared(config(**how), root, tmp_path / "f")[1], "test") == [12, 6, 3]
    _, data = _prepared(config(**how, backward=True), root, tmp_path / "b")
    assert counts(data, "test") == [3, 6, 12]
    assert counts(data, "train") == [16, 16, 16]


def test_a_smaller_tail_is_part_of_a_larger_one(root, tmp_path):
    steep, flat = (
        set(_prepared(config(train={"ratio": ratio}), root, tmp_path / str(ratio))[1].samples["id"])
        for ratio in (16.0, 4.0)
    )
    assert steep < flat


def test_the_order_of_classes_must_be_given():
    with pytest.raises(SettingsError, match="class_names are needed"):
        config(class_names=[])


def _prepared(settings, root, out):
    return prepared(settings, root, out, build=build)
