"""A run end to end, and what can be done with its result."""

import json
import shutil

import polars as pl
import pytest

from tests.commands import appssl

pytestmark = pytest.mark.slow  # every test runs whole commands

RUN = "results/wearable/chain/s0"


def test_all_stages_are_there_and_verified(finished):
    done = appssl("verify", "results", "--json", cwd=finished)
    assert done.code == 0
    rows = json.loads(done.out)
    assert {row["result"].split("/")[-1] for row in rows} >= {
        "pretrain",
        "pseudolabel",
        "finetune",
        "evaluate",
        "report",
    }


def test_the_second_run_does_nothing_and_says_the_same(finished):
    done = appssl("run", "chain.yaml", "--json", cwd=finished)
    assert done.code in (0, 5)
    row = json.loads(done.out)["runs"][0]
    assert row["metric"] == "macro_f1"
    assert row["low"] <= row["value"] <= row["high"]


def test_trace_leads_back_to_the_raw_tables(finished):
    tree = json.loads(appssl("trace", RUN, "--json", cwd=finished).out)
    names, nodes = set(), [tree]
    while nodes:
        node = nodes.pop()
        names.add(node["name"])
        nodes += node.get("inputs", [])
    assert {"evaluate", "model", "encoder", "data"} <= names
    assert any(name.startswith("table:") for name in names)


def test_reproduce_gives_equal_bytes(finished):
    done = appssl("reproduce", RUN, "--json", cwd=finished)
    assert done.code == 0, done.out + done.err
    assert {row["stage"]: row["equal"] for row in json.loads(done.out)} == dict.fromkeys(
        ["prepare", "pretrain", "pseudolabel", "finetune", "evaluate"], True
    )


def test_predict_and_embed_take_new_recordings(finished, tmp_path):
    made = next(finished.glob("results/synthetic/*"))
    shutil.copytree(made, tmp_path / "new")
    table = tmp_path / "new" / "recordings.csv"
    for name in ("labels.csv", "manifest.json"):
        (tmp_path / "new" / name).unlink()
    done = appssl("predict", RUN, table, "--out", tmp_path / "p.csv", cwd=finished)
    assert done.code in (0, 5), done.err
    predictions = pl.read_csv(tmp_path / "p.csv")
    columns = [c for c in predictions.columns if c.startswith("p_")]
    intervals = pl.read_csv(tmp_path / "p.intervals.csv")
    assert (intervals["start_seconds"] < intervals["end_seconds"]).all()
    assert set(intervals["session"]) == set(predictions["session"])
    assert predictions.select(pl.sum_horizontal(columns)).to_series().to_list() == pytest.approx(
        [1.0] * len(predictions), abs=1e-4
    )
    done = appssl("embed", RUN, table, "--out", tmp_path / "f.parquet", cwd=finished)
    assert done.code in (0, 5), done.err
    assert len(pl.read_parquet(tmp_path / "f.parquet")) == len(predictions)


def test_predict_refuses_a_missing_model_table_or_format(finished, tmp_path):
    assert appssl("predict", tmp_path, "x.csv", "--out", tmp_path / "p.csv", cwd=finished).code == 3
    done = appssl("predict", RUN, "nothing.csv", "--out", tmp_path / "p.csv", cwd=finished)
    assert (done.code, "nothing.csv: no such table" in done.err) == (3, True)
    done = appssl("predict", RUN, "nothing.csv", "--out", tmp_path / "p.xls", cwd=finished)
    assert (done.code, ".parquet or .csv" in done.err) == (3, True)


def test_a_second_seed_shares_the_data(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "p", copy_function=shutil.copy2)
    done = appssl("run", "chain.yaml", "--seed", "1", "--dry-run", cwd=tmp_path / "p")
    assert done.code == 0
    assert "rule pretrain:" in done.out + done.err
    assert "rule prepare:" not in done.out + done.err


def test_the_registered_model_is_in_mlflow_and_predicts(finished):
    import mlflow
    import numpy as np

    uri = f"sqlite:///{finished / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    version = client.get_model_version("appssl-wearable-chain", "1")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    model = mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}")
    shape = model.metadata.signature.inputs.inputs[0].shape
    output = model.predict(np.zeros((2, *shape[1:]), dtype=np.float32))
    assert output.sum(axis=1) == pytest.approx([1.0, 1.0], abs=1e-4)
