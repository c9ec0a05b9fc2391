import re
import tomllib
from importlib import metadata

import pytest
from packaging.version import Version

from appssl.cli import doctor
from appssl.vulnerabilities import REPAIRED, installed_with_vulnerabilities
from tests.commands import REPOSITORY


def test_nothing_installed_here_has_a_known_vulnerability():
    assert list(installed_with_vulnerabilities()) == []


def test_most_of_the_packages_are_installed_here_so_that_the_test_above_says_something():
    there = {name for found in metadata.packages_distributions().values() for name in map(str.lower, found)}
    assert len({row.package for row in REPAIRED} & there) > 12


@pytest.mark.parametrize(
    ("version", "is_told"),
    [("2.5.1", True), ("2.6.0a1", True), ("2.6.0+cu130", False), ("2.6", False), ("10.0", False)],
)
def test_versions_are_compared_as_versions(monkeypatch, version, is_told):
    def installed(name):
        if name == "torch":
            return version
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", installed)
    assert [old.package for old, _ in installed_with_vulnerabilities()] == ["torch"] * is_told


def test_the_doctor_names_package_weakness_advisory_and_what_to_do(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "2.5.1" if name == "torch" else "999")
    (row,) = doctor._vulnerabilities()
    assert (row["what"], row["state"]) == ("safety of torch", "MISSING")
    assert row["detail"] == (
        "2.5.1: weights run programs in spite of weights_only (CVE-2025-32434); pip install -U 'torch>=2.6.0'"
    )


def test_the_least_versions_of_the_project_are_not_below_the_repairs():
    wanted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    least = dict(re.fullmatch(r"([\w-]+)[>=]=([\d.]+)", line).groups() for line in wanted)
    for row in REPAIRED:
        if row.package in least:
            assert Version(least[row.package]) >= Version(row.since), (
                f"{row.package}>={least[row.package]} allows {row.advisory}"
            )
