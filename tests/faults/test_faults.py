"""What can happen to a run, and its one expected outcome: the drill of `appssl doctor --drill`, case by case."""

import os
import random

import pytest

from appssl.drill.expecting import NOT_TRIED, attempt
from appssl.drill.harness import CASES
from appssl.drill.kills import random_shots, trial, undisturbed
from appssl.drill.project import Project

pytestmark = pytest.mark.slow  # every test runs whole commands

KILLS = int(os.environ.get("APPSSL_KILLS", "5"))
SEED = int(os.environ.get("APPSSL_KILL_SEED") or int.from_bytes(os.urandom(4), "big"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which the chain was run to the end, and what it looked like then."""
    project = Project(tmp_path_factory.mktemp("drill") / "finished", "wearable")
    return project, undisturbed(project)


def test_killed_at_random_moments_the_same_command_ends_with_the_same_digests(finished, tmp_path):
    _, reference = finished
    shots = random_shots(reference, random.Random(SEED), KILLS)
    rows = trial(Project(tmp_path / "p", "wearable"), reference, shots)
    assert all(row.as_expected for row in rows), f"APPSSL_KILL_SEED={SEED}: {rows}"
    assert rows[0].moment is not None, f"APPSSL_KILL_SEED={SEED}: nothing was killed: {shots}"


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_fault_has_its_one_expected_outcome(case, finished, tmp_path):
    project, reference = finished
    found = attempt(case, project, reference.digests, tmp_path / "p")
    if found.outcome == NOT_TRIED:
        pytest.skip(f"NOT TESTED: {found.detail}")
    assert found.as_expected, f"expected: {case.expected}; but: {found.detail}"
