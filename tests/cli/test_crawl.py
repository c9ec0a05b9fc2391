"""`appssl data crawl`: from a list of addresses to prepared data, and on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import polars as pl
import yaml

from appssl.artifact import Artifact
from tests.bad_input.conftest import cli, prepare
from tests.commands import appssl, environment
from tests.crawl_server import picture, sends, serving, slowly, status

__all__ = ["cli", "prepare"]

LOCAL = ("--allow-private", "--retries", "0")


def write(folder, site, paths):
    rows = [{"image_id": f"i{n}", "url": site.url(path), "label": "ab"[n % 2]} for n, path in enumerate(paths)]
    pl.DataFrame(rows).write_csv(folder / "addresses.csv")
    return folder / "addresses.csv"


def test_from_addresses_to_prepared_data(cli, prepare, tmp_path):
    routes = {f"/{n}.png": sends(picture(n, side=40)) for n in range(12)}
    routes |= {"/page.jpg": sends(b"<!doctype html>"), "/copy.png": sends(picture(3, side=40))}
    with serving(routes) as site:
        said = cli("data", "crawl", write(tmp_path, site, routes), "--out", tmp_path / "crawl", *LOCAL)
    assert said.code == 5
    assert "13 images of 14 addresses" in said.out
    assert "1 address(es) gave no image (not_an_image 1)" in said.err
    assert cli("new", "webnoisy", tmp_path / "my.yaml", "--table", tmp_path / "crawl" / "images.csv").code == 0
    data = yaml.safe_load((tmp_path / "my.yaml").read_text())["data"]
    assert data["source"]["columns"] == {"id": "image_id", "url": "source_url"}
    done = prepare(
        tmp_path / "crawl", **{"domain": "webnoisy", **{k: v for k, v in data["source"].items() if k != "name"}}
    )
    assert done.code == 0, done.err
    artifact = Artifact.open(tmp_path / "data")
    account = artifact.accounts()["images"]
    assert (account.total, account.kept, sum(account.left_out.values()), account.failed) == (13, 12, 1, {})  # the copy
    samples = artifact.table("samples.parquet")
    assert set(samples["label"]) == {"a", "b"}
    assert samples["url"].str.starts_with(site.url("/")).all()


def test_counts_for_machines_and_exit_code_0_when_all_came(cli, tmp_path):
    with serving({"/a": sends(picture(1))}) as site:
        words = ("data", "crawl", write(tmp_path, site, ["/a"]), "--out", tmp_path / "crawl", *LOCAL, "--json")
        said, again = cli(*words), cli(*words)
    assert (said.code, again.code) == (0, 0)
    paths = {"images": str(tmp_path / "crawl/images.csv"), "outcomes": str(tmp_path / "crawl/outcomes.parquet")}
    counts = {"total": 1, "kept": 1, "left_out": {}, "failed": {}}
    assert json.loads(said.out) == {**paths, "asked": 1, **counts}
    assert json.loads(again.out) == {**paths, "asked": 0, **counts}


def test_options_reach_the_crawl(cli, tmp_path):
    routes = {
        "/robots.txt": sends(b"User-agent: *\nDisallow: /"),
        "/a": sends(picture(1)),
        "/slow": slowly(2, status(404)),
    }
    with serving(routes) as site:
        words = ("data", "crawl", write(tmp_path, site, ["/a", "/slow"]), "--out", tmp_path / "crawl", "--json")
        assert json.loads(cli(*words).out)["left_out"] == {"private_address": 2}
        assert json.loads(cli(*words, *LOCAL).out)["left_out"] == {"robots_disallowed": 2}
        words = (*words, *LOCAL, "--ignore-robots", "--timeout", "0.3", "--contact", "me@lab.example")
        said = json.loads(cli(*words, "--max-mb", "0.001").out)
        assert (said["left_out"], said["failed"]) == ({"too_large": 1}, {"timeout": 1})
        assert json.loads(cli(*words).out)["kept"] == 1
        assert any("(+me@lab.example)" in agent for agent in site.agents)


def test_wrong_input_is_exit_code_2_or_3_and_one_message(cli, tmp_path):
    (tmp_path / "a.csv").write_text("link\nhttp://a/b\n")
    said = cli("data", "crawl", tmp_path / "a.csv", "--out", tmp_path / "crawl")
    assert (said.code, "has no column 'url'" in said.err) == (3, True)
    assert cli("data", "crawl", tmp_path / "a.csv", "--out", tmp_path / "crawl", "--per-host", "0").code == 2
    (tmp_path / "a.csv").write_text("url\nhttp://a/b\n")
    assert cli("data", "crawl", tmp_path / "a.csv", "--out", tmp_path / "crawl", "--contact", "a\nb").code == 2
    assert not (tmp_path / "crawl").exists()


def test_after_kill_9_nothing_is_lost_and_only_what_was_under_way_is_asked_again(tmp_path):
    routes = {f"/{n}": slowly(0.05, sends(picture(n))) for n in range(60)}
    with serving(routes) as site:
        table = write(tmp_path, site, routes)
        words = ["data", "crawl", str(table), "--out", "crawl", "--allow-private", "--parallel", "4", "--per-host", "4"]
        process = subprocess.Popen(
            [sys.executable, "-m", "appssl", *words], cwd=tmp_path, env=environment(), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while len(site.asked) < 25 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.2)  # answers under way end
        begun = sum(site.counts().values())
        assert 20 < begun < 60
        assert not (tmp_path / "crawl/images.csv").exists()
        done = appssl(*words, "--json", cwd=tmp_path)
        assert done.code == 0, done.err
        counts = site.counts()
    assert json.loads(done.out)["kept"] == len(counts) == 60
    assert sum(counts.values()) - 60 <= 4  # of those that were under way
    table = pl.read_csv(tmp_path / "crawl/images.csv")
    assert table["image_id"].to_list() == [f"i{n}" for n in range(60)]
    for n, path in enumerate(table["path"]):
        assert (tmp_path / "crawl" / path).read_bytes() == picture(n)
    assert len(list((tmp_path / "crawl").glob("images/*/*"))) == 60
