"""`appssl doctor` in a real environment, and what it says when something is missing."""

import json
import socket
import tomllib
from importlib import metadata

import pytest

from appssl.cli import doctor
from appssl.drill import harness
from appssl.drill.kills import DIFFERENT, EQUAL, Kill
from appssl.errors import AppsslError, SettingsError
from tests.commands import REPOSITORY, appssl


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return appssl("doctor", "--json", cwd=tmp_path_factory.mktemp("doctor"))


def states(done):
    return {row["what"]: row["state"] for row in json.loads(done.out)}


def test_a_complete_installation_is_well(here):
    assert here.code == 0, here.out
    found = states(here)
    for what in ("python", "torch", "openslide", "snakemake", "mlflow", "folder", "disk", "mlflow store"):
        assert found[what] == "ok"
    assert "MISSING" not in found.values()


def test_nothing_phones_home(here):
    assert states(here)["phoning home"] == "ok"


def test_an_unreachable_store_is_told_without_its_password_and_is_no_failure(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{port}")
    row = doctor._store()
    assert row["state"] == "none"
    assert "refused" in row["detail"]
    assert "unset MLFLOW_TRACKING_URI" in row["detail"]
    assert "hunter2" not in row["detail"]


def test_every_line_that_is_missing_says_what_to_do(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    rows = doctor._packages()
    assert {row["state"] for row in rows} == {"MISSING"}
    assert all("pip install" in row["detail"] for row in rows)


def test_an_old_package_and_an_old_openslide_are_missing(monkeypatch):
    import openslide

    monkeypatch.setattr(metadata, "version", lambda name: "0.1")
    assert {row["state"] for row in doctor._packages()} == {"MISSING"}
    monkeypatch.setattr(openslide, "__library_version__", "4.0.0")
    row = doctor._openslide()
    assert row["state"] == "MISSING"
    assert "openslide-bin>=4.0.1" in row["detail"]


def test_something_missing_is_exit_code_1_and_still_prints_every_line(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_openslide", lambda: {"what": "openslide", "state": "MISSING", "detail": "pip"})
    monkeypatch.setattr(doctor, "_devices", lambda: {"what": "cuda", "state": "none", "detail": "not asked here"})
    with pytest.raises(AppsslError) as caught:
        doctor.command()
    assert caught.value.exit_code == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("MISSING  openslide") for line in lines)
    assert len(lines) > 10


def test_the_least_versions_are_those_of_the_package():
    wanted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    for name, least in doctor._PACKAGES.items():
        (line,) = [text for text in wanted if text.split(">")[0].split("=")[0] == name]
        assert doctor._parts(line)[: len(least)] == least


@pytest.fixture
def drilled(monkeypatch):
    """Stands for the drill, which takes minutes; `tests/faults` runs the real one."""
    asked = []

    def drill(outcome):
        def instead(folder, *, domains, kills, jobs, seed, profile, say):
            asked.append(
                {"folder": folder, "domains": domains, "kills": kills, "seed": seed, "profile": profile, "jobs": jobs}
            )
            rows = [Kill(domains[0], "stage", "SIGKILL", 1.0, "pretrain", 2, outcome, trial=1)]
            return harness.Drill(seed, profile, rows)

        monkeypatch.setattr(harness, "drill", instead)
        return asked

    return drill


def test_a_drill_prints_its_rows_and_writes_its_page(drilled, tmp_path, capsys):
    asked = drilled(EQUAL)
    page = tmp_path / "drill.md"
    doctor.command(drill=True, kills=3, jobs=2, seed=5, domain=["wsi"], out=tmp_path / "o", write=page)
    given = {"domains": ["wsi"], "kills": 3, "seed": 5, "profile": "local", "jobs": 2}
    assert asked == [{"folder": tmp_path / "o", **given}]
    said = capsys.readouterr()
    assert "1 of 1 kills ended with equal digests (seed 5)" in said.out
    assert said.err == "seed 5\n"
    assert page.read_text().startswith("# Drill\n")
    assert "| wsi | 1 | 1 |" in page.read_text()


def test_a_drill_with_another_outcome_is_exit_code_1_and_says_what_to_report(drilled, capsys):
    drilled(DIFFERENT)
    with pytest.raises(
        AppsslError, match="Report the rows above with the seed 5, and 'appssl doctor --json'"
    ) as caught:
        doctor.command(drill=True, seed=5, as_json=True)
    assert caught.value.exit_code == 1
    assert json.loads(capsys.readouterr().out)["kills"][0]["outcome"] == DIFFERENT


def test_every_drill_has_another_seed_and_all_domains_unless_told(drilled):
    asked = drilled(EQUAL)
    for _ in range(2):
        doctor.command(drill=True)
    assert asked[0]["seed"] != asked[1]["seed"]
    assert asked[0]["domains"] == ["wsi", "wearable", "webnoisy", "recsys"]


def test_an_unknown_profile_of_a_drill_is_refused_and_a_folder_is_found_from_everywhere(drilled, tmp_path, monkeypatch):
    asked = drilled(EQUAL)
    with pytest.raises(SettingsError, match="no such profile"):
        doctor.command(drill=True, profile="slrum")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.yaml").write_text("jobs: 2\n")
    monkeypatch.chdir(tmp_path)
    doctor.command(drill=True, profile="mine")
    assert asked[0]["profile"] == str(tmp_path / "mine")
