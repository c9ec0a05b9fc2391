"""The drawn crawl: same bytes for the same seed, and the faults it says it has."""

import hashlib
import time

import polars as pl
import pytest

from appssl.ops.images.index import OOD
from appssl.synthetic.webnoisy import CLASSES, make


def digest(folder):
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return total.hexdigest()


def test_same_seed_same_bytes_other_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make(tmp_path / name, size="tiny", seed=seed)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_tiny_takes_less_than_two_seconds(tmp_path):
    start = time.process_time()
    make(tmp_path, size="tiny", seed=0)
    assert time.process_time() - start < 2


def test_shares_are_as_stated(tmp_path):
    make(tmp_path, size="small", seed=3)
    table = pl.read_csv(tmp_path / "table.csv")
    truth = pl.read_csv(tmp_path / "truth/truth.csv")
    drawn = table.join(truth, on="id").filter(pl.col("fault").fill_null("") == "")
    train = drawn.filter(split="train")
    assert len(drawn) == 1500
    # Four standard deviations of a binomial with about 1100 draws are 0.05.
    assert (train["kind"] == "ood_noise").mean() == pytest.approx(0.15, abs=0.05)
    assert (train["kind"] == "id_noise").mean() == pytest.approx(0.20, abs=0.05)
    assert (drawn["split"] == "test").mean() == pytest.approx(0.25, abs=0.05)
    assert OOD not in set(table.filter(split="test")["true_label"])
    assert set(table["label"]) == set(CLASSES)
    faults = set(truth["fault"].drop_nulls()) - {""}
    assert faults == {"copy", "copy_across", "truncated", "html", "empty", "bomb", "uniform"}


def test_every_row_has_its_file(tmp_path):
    make(tmp_path, size="tiny", seed=0)
    paths = pl.read_csv(tmp_path / "table.csv")["path"].to_list()
    assert sorted(paths) == sorted(p.relative_to(tmp_path).as_posix() for p in (tmp_path / "images").rglob("*.jpg"))
