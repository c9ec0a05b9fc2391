"""Runs on data of a real S3-compatible server, with prepared data staged, end with the bytes of a run on one disk."""

import json

import pytest

from tests.commands import appssl
from tests.object_store import KEYS, object_store
from tests.workflows.conftest import CHAIN

pytestmark = pytest.mark.slow  # whole runs

RECIPE = CHAIN.replace("  make: {size: tiny}\n", "")
STAGES = ("pretrain", "pseudolabel", "finetune", "evaluate")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Raw recordings in a folder and on a server, and the environment that leads to the server."""
    folder = tmp_path_factory.mktemp("project")
    assert appssl("data", "make", "wearable", "--size", "tiny", "--out", "raw", cwd=folder).code == 0
    (folder / "chain.yaml").write_text(RECIPE)
    with object_store() as (store, endpoint):
        files = [path for path in (folder / "raw").rglob("*") if path.is_file()]
        store.put("lab", **{f"raw/{p.relative_to(folder / 'raw').as_posix()}": p.read_bytes() for p in files})
        yield folder, store, {**KEYS, "AWS_ENDPOINT_URL": endpoint}


@pytest.fixture(scope="module")
def both(project):
    """The run on the folder, and that on the address with prepared data staged."""
    folder, _, keys = project
    local = appssl("run", "chain.yaml", "--set", "data.root=raw", "--out", "local", cwd=folder)
    assert local.code in (0, 5), local.err
    staging = {"APPSSL_STAGING": str(folder / "node-disk")}
    far = appssl("run", "chain.yaml", "--set", "data.root=s3://lab/raw", "--out", "far", cwd=folder, **keys, **staging)
    assert far.code == local.code, far.err
    return far


def manifests(results):
    (data,) = results.glob("data/*/manifest.json")
    found = {stage: results / "wearable/chain/s0" / stage / "manifest.json" for stage in STAGES}
    return {name: path.read_bytes() for name, path in {"data": data, **found}.items()}


def test_every_manifest_is_the_same(project, both):
    folder = project[0]
    assert manifests(folder / "far") == manifests(folder / "local")


def test_the_stages_read_one_staged_copy_and_no_result_names_its_place(project, both):
    folder = project[0]
    (data,) = (folder / "far").glob("data/*/manifest.json")
    (copy,) = (path for path in (folder / "node-disk").iterdir() if path.is_dir())
    assert (copy / "manifest.json").read_bytes() == data.read_bytes()
    logs = [path.read_text() for path in (folder / "far/logs").rglob("*.log")]
    assert sum("copied to the node's own disk" in log for log in logs) == 1
    everything = [path for path in (folder / "far").rglob("*") if path.is_file()]
    assert [path for path in everything if b"node-disk" in path.read_bytes()] == []
    assert [path for path in everything if b"planted" in path.read_bytes()] == []


def test_plan_and_results_hold_the_copy_and_not_the_address(project, both):
    folder = project[0]
    plan = json.loads((folder / "far/.appssl/plan.json").read_text())
    (data,) = plan["data"].values()
    assert data["settings"]["root"].startswith("far/remote/")
    assert all(table.startswith("far/remote/") for table in data["tables"])


def test_check_and_dry_run_use_the_copy_and_without_one_say_what_to_do(project, both):
    folder, store, keys = project
    store.gets.clear()
    arguments = ("chain.yaml", "--set", "data.root=s3://lab/raw", "--out")
    checked = appssl("check", *arguments, "far", cwd=folder)  # without keys: nothing is asked of the store
    assert (checked.code, "0 of" in checked.out) == (0, True), checked.err
    for command in (("check",), ("run", "--dry-run")):
        done = appssl(*command, *arguments, "other", cwd=folder, **keys)
        assert done.code == 2
        assert "no complete copy" in done.err
        assert "appssl data mirror s3://lab/raw FOLDER" in done.err
    assert store.gets == []


def test_a_second_run_fetches_nothing_and_does_nothing(project, both):
    folder, store, keys = project
    store.gets.clear()
    before = {path: path.stat().st_mtime_ns for path in (folder / "far").rglob("manifest.json")}
    done = appssl("run", "chain.yaml", "--set", "data.root=s3://lab/raw", "--out", "far", cwd=folder, **keys)
    assert done.code == both.code, done.err
    assert store.gets == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_wrong_recipes_and_too_large_data_are_refused_before_anything_is_fetched(project):
    folder, store, keys = project
    store.gets.clear()
    arguments = ("run", "chain.yaml", "--set", "data.root=s3://lab/raw", "--out", "refused")
    done = appssl(*arguments, "--set", "pretrain.fit.batch_size=no", cwd=folder, **keys)
    assert (done.code, "pretrain.fit.batch_size" in done.err) == (2, True)
    assert not (folder / "refused").exists()
    done = appssl(*arguments, cwd=folder, **keys, APPSSL_REMOTE_MAX_GB="0.000001")
    assert (done.code, "more than 1e-06 GB" in done.err) == (3, True)
    assert "'appssl data mirror s3://lab/raw FOLDER'" in done.err
    done = appssl(*arguments, cwd=folder, **keys, APPSSL_REMOTE_MAX_GB="much")
    assert (done.code, "APPSSL_REMOTE_MAX_GB is 'much'" in done.err) == (2, True)
    assert store.gets == []
