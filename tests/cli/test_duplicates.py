"""`appssl duplicates`: a table of near-duplicates, and exit code 3 for those across parts where asked."""

import json

import polars as pl

from tests.bad_input.conftest import cli
from tests.stages.conftest import crawl

__all__ = ["cli", "crawl"]


def words(crawl, folder, threshold):
    return (
        "duplicates", crawl.run, "--data", crawl.data.folder, "--out", folder, "--threshold", str(threshold),
        "--accelerator", "cpu",
    )  # fmt: skip


def test_leaks_are_a_warning_or_refused_with_a_group(cli, crawl, tmp_path):
    said = cli(*words(crawl, tmp_path, 0.9))
    assert said.code == 0, said.err
    table = pl.read_csv(tmp_path / "semantic_duplicates.csv")
    first = table.filter(group=1)
    assert f"{len(table)} of 16 images in {table['group'].n_unique()} groups" in said.out
    assert f"LEAK: {table['leak'].sum()} image(s)" in said.err
    (tmp_path / "semantic_duplicates.csv").unlink()
    refused = cli(*words(crawl, tmp_path, 0.9), "--refuse-leak")
    assert refused.code == 3
    for part in ("train", "test"):
        assert f"{first.filter(split=part)['id'][0]} ({part})" in refused.err
    assert pl.read_csv(tmp_path / "semantic_duplicates.csv").equals(table)  # written also when refused


def test_without_leaks_nothing_is_refused(cli, crawl, tmp_path):
    said = cli(*words(crawl, tmp_path, 1.0), "--refuse-leak", "--json")
    assert said.code == 0, said.err
    counts = {"images": 16, "near_duplicates": 0, "groups": 0, "leaks": 0}
    assert json.loads(said.out) == {"table": str(tmp_path / "semantic_duplicates.parquet"), **counts}


def test_a_threshold_that_is_no_cosine_is_refused(cli, crawl, tmp_path):
    assert cli(*words(crawl, tmp_path, 1.1)).code == 2
    assert cli(*words(crawl, tmp_path, 0.0)).code == 3
