import pytest

from appssl.artifact import ArtifactWriter, write_json
from appssl.forecast.foreseen import forecast

NEED = {"cpus": 2, "gpus": 1, "mem_gb": 4.5, "minutes": 20}


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"x" * 2_500_000)
    (tmp_path / "b.csv").write_bytes(b"x" * 500_000)
    real = {"synthetic": None, "tables": [str(tmp_path / name) for name in ("a.csv", "b.csv", "gone.csv")]}
    made = {"synthetic": "synthetic/wsi-tiny-0", "tables": [], "settings": {"make": {"size": "tiny", "seed": 0}}}
    runs = {"wsi": {"mine": {"s3": {"stages": {"pretrain": {"needs": NEED}}}}}}
    return {"data": {"wsi-1": real, "wsi-2": made}, "runs": runs}


@pytest.mark.parametrize("name", ["data/wsi-1", "data/wsi-1 shard 0"])
def test_preparation_is_foreseen_from_the_size_of_the_tables(plan, tmp_path, name):
    found = forecast(plan, name, tmp_path / "never")
    assert found == {"foreseen": "from 3 table(s), 3.0 MB", "seconds": None, "bytes": None}


def test_synthetic_data_says_its_size(plan, tmp_path):
    assert forecast(plan, "data/wsi-2", tmp_path)["foreseen"] == "from synthetic data (tiny)"


def test_a_stage_that_never_ran_shows_what_it_may_take(plan, tmp_path):
    found = forecast(plan, "wsi/mine s3 pretrain", tmp_path / "never")
    assert found["foreseen"] == "allowed 20 minutes, 4.5 GiB, 2 CPU cores, 1 GPUs"


@pytest.mark.parametrize("name", ["wsi/mine s3 pretrain", "data/wsi-1"])
def test_a_stage_that_ran_shows_what_it_took(plan, tmp_path, name):
    writer = ArtifactWriter(tmp_path / "out", "encoder", settings_digest="", inputs={})
    writer.bytes("w", b"x" * 1_200_000)
    writer.finish()
    write_json(tmp_path / "out" / "run.json", {"seconds": 61.7})
    assert forecast(plan, name, tmp_path / "out") == {
        "foreseen": "took 62 s last time, 1.2 MB on disk",
        "seconds": 61.7,
        "bytes": 1_200_000,
    }


def test_damaged_records_are_no_reason_to_fail(plan, tmp_path):
    (tmp_path / "run.json").write_text("{")
    (tmp_path / "manifest.json").write_text("")
    assert forecast(plan, "data/wsi-2", tmp_path)["foreseen"] == "from synthetic data (tiny)"
