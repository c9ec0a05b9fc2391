"""Bags of images: what is listed is accounted for, labels are those of bags, truth stays aside."""

import polars as pl
import pytest

from appssl.errors import DataError
from appssl.settings import validate
from appssl.sources.image_bags import Config, build
from tests.sources.test_webnoisy import prepared, write_table

TABLE = {"table": "table.csv", "columns": {"split": "split"}, "size": 16}


def config(**values):
    bags = {"positive": ["rose"], "length": 4, "positive_ratio": 0.25, **values}
    return validate(Config, {**TABLE, "bags": bags}, file="recipe", owner="sources/image_bags")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rows = [
        (f"{split}{n:03}", "rose" if n % 5 == 0 else "leaf", split) for split in ("train", "test") for n in range(30)
    ]
    write_table(folder, rows)
    return folder


def test_samples_have_labels_of_bags_and_truth_of_their_own(root, tmp_path):
    artifact, data = _prepared(config(), root, tmp_path)
    assert data.meta.classes == ("negative", "positive")
    assert (data.meta.domain, data.meta.facts["bag"], data.meta.source) == ("wsi", "bag", "image_bags")
    samples = data.samples
    assert samples["bag"].null_count() == 0
    sizes = samples.group_by("bag", "label", "group").agg(
        pl.len(), (pl.col("true_label") == "positive").sum().alias("own")
    )
    assert (sizes["len"] == 4).all()
    assert set(sizes.select("label", "own").rows()) == {("positive", 1), ("negative", 0)}
    assert (sizes["bag"] == sizes["group"]).all()
    account = artifact.accounts()["images"]
    assert account.total == 60 == account.kept + sum(account.left_out.values())
    assert account.left_out == {"not_in_a_bag": 60 - len(samples)}


def test_any_number_of_shards_gives_the_same_bytes(root, tmp_path):
    one, _ = _prepared(config(), root, tmp_path / "one")
    three, _ = _prepared(config(), root, tmp_path / "three", num_shards=3)
    assert one.digest == three.digest


def test_a_positive_class_that_no_image_has_is_refused(root, tmp_path):
    with pytest.raises(DataError, match="no image has the class lily"):
        _prepared(config(positive=["lily"]), root, tmp_path)


def test_bags_longer_than_the_images_allow_are_refused(root, tmp_path):
    with pytest.raises(DataError, match="no bag of 40 images"):
        _prepared(config(length=40), root, tmp_path)


def _prepared(settings, root, out, num_shards=1):
    return prepared(settings, root, out, num_shards, build=build)
