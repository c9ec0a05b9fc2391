"""What `--profile slurm` says where there is no SLURM; with one, see tests/cluster."""

import pytest

from appssl import bundle, slurm
from appssl.errors import AppsslError
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


def test_a_script_is_for_a_cluster(tmp_path):
    done = appssl("run", "wearable/demo", "--script", "jobs", cwd=tmp_path)
    assert done.code == 2
    assert "--script writes jobs for SLURM or Kubernetes: give --profile slurm or kubernetes with it" in done.err
