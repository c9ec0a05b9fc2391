"""What becomes of every real slide is compared with a stored account.

`prepared_slides.csv` was looked over when it was stored: squares of 250 um hold 2 x 2 tiles of 96 um, all of tissue;
large sections hold about as many tiles as their area of tissue divided by that of a tile, which is compared here too.
"""

import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from tests.commands import appssl
from tests.real_data import DATA, real_data

pytestmark = [*real_data, pytest.mark.slow]


def test_every_slide_of_the_table_becomes_what_it_became_before(tmp_path):
    done = appssl("run", "wsi/prepare_all", "--set", f"data.root={DATA}", cwd=tmp_path)
    assert done.code == 5, done.err  # done, and the slide that failed is listed
    assert "tcga-cr-7395-01a-01-ts1.svs): no_spacing" in done.err
    (data,) = (tmp_path / "results" / "data").iterdir()
    slides, account = pl.read_parquet(data / "slides.parquet"), json.loads((data / "account.json").read_text())
    stored = pl.read_csv(Path(__file__).with_name("prepared_slides.csv")).with_columns(pl.col("reason").fill_null(""))
    assert slides.select("slide_id", "outcome", "reason", tiles="num_tiles").rows() == stored.rows()
    for about in account.values():
        assert about["total"] == about["kept"] + sum([*about["left_out"].values(), *about["failed"].values()])
    assert account["slides"]["total"] == len(pl.read_csv(DATA / "wsi" / "slides.csv"))
    assert account["tiles"]["kept"] == stored["tiles"].sum()
    large = slides.filter(pl.col("num_tiles") > 50)
    tile_mm2 = 0.096**2
    assert (large["tissue_mm2"] / tile_mm2).to_list() == pytest.approx(large["num_tiles"].to_list(), rel=0.1)


def test_a_folder_of_bad_slides_says_why_none_is_left(tmp_path):
    recipe = {
        "description": "Slides that are none.",
        "domain": "wsi",
        "data": {"source": {"name": "wsi", "folder": "wsi/bad-inputs", "group_by": "slide", "split": {"test": 0}}},
    }
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(recipe))
    done = appssl("run", "bad.yaml", "--set", f"data.root={DATA}", cwd=tmp_path)
    assert done.code == 3
    assert "broken (broken.svs): not_a_slide: OpenSlide does not know this as a slide" in done.err
    assert "unreadable (unreadable.svs): unreadable: its overview cannot be decoded" in done.err
