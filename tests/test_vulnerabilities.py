import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.version import Version

from appssl.cli import doctor
from appssl.vulnerabilities import REPAIRED, installed_with_vulnerabilities
from tests.commands import REPOSITORY


def test_nothing_installed_here_has_a_known_vulnerability():
    assert list(installed_with_vulnerabilities()) == []


@pytest.mark.slow
def test_no_package_here_is_known_to_a_database_to_be_vulnerable_and_repaired():
    """pip-audit asks PyPI for every package; a weakness that no version repairs is not ours to mend."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--skip-editable"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if not done.stdout:
        pytest.skip(f"NOT CHECKED AGAINST A DATABASE OF VULNERABILITIES: {done.stderr.strip()[-200:]}")
    answered = [about for about in json.loads(done.stdout)["dependencies"] if "vulns" in about]
    if not answered:
        pytest.skip("NOT CHECKED AGAINST A DATABASE OF VULNERABILITIES: pypi.org does not answer as PyPI does")
    assert len(answered) > 50  # of about two hundred
    repaired = [
        f"{about['name']} {about['version']}: {found['id']}, repaired in {', '.join(found['fix_versions'])}"
        for about in answered
        for found in about["vulns"]
        if found["fix_versions"]
    ]
    assert repaired == []


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
