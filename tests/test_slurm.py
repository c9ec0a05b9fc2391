"""What `--profile slurm` says where there is no SLURM; with one, see tests/cluster."""

import time

import pytest

from appssl import bundle, slurm
from appssl.errors import AppsslError
from appssl.slurm_checks import Changes, wait
from tests.commands import appssl


def test_other_profiles_need_nothing(tmp_path):
    assert slurm.options(bundle.profile("local")) == []
    assert slurm.options(tmp_path) == []  # a profile of another version's file name


def test_without_slurm_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AppsslError, match=r"no SLURM on this machine .* leave --profile slurm out"):
        slurm.options(bundle.profile("slurm"))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("accounting_storage/slurmdbd", True), ("accounting_storage/none", False), ("(null)", False), ("", False)],
)
def test_accounting_is_what_the_controller_says(kind, expected):
    assert slurm._is_accounted({"AccountingStorageType  ": f" {kind}"}) is expected
    assert not slurm._is_accounted({})


def test_the_wait_between_looks_is_a_share_of_the_time_in_which_nothing_changed():
    assert [wait(quiet, 2.0) for quiet in (0, 39, 200, 1200, 1e6)] == [2, 2, 10, 60, 60]
    assert wait(10, 90.0) == 90  # a profile that asks seldom is not overruled


def test_a_change_is_a_job_that_was_submitted_or_has_ended(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    changes = Changes()
    assert changes.seconds({"1"}, {"1"}) == 0
    now += 30
    assert changes.seconds({"1"}, {"1"}) == 30
    assert changes.seconds({"1", "2"}, {"1", "2"}) == 0
    now += 5
    assert changes.seconds({"1", "2"}, {"2"}) == 0
    now += 7
    assert changes.seconds({"2"}, {"2"}) == 7


def test_a_script_is_for_a_cluster(tmp_path):
    done = appssl("run", "wearable/demo", "--script", "jobs", cwd=tmp_path)
    assert done.code == 2
    assert "--script writes jobs for SLURM or Kubernetes: give --profile slurm or kubernetes with it" in done.err
