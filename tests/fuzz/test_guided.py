"""Fuzzing guided by what is reached, for a few seconds a reader; `python -m tests.fuzz.guided` does it for longer."""

import os
import subprocess
import sys

import pytest

from tests.commands import environment

SECONDS = os.environ.get("APPSSL_FUZZ_SECONDS", "4")  # for each reader
READERS = ("recipes", "manifests", "masks", "shards", "images csv")
BROKEN = """
from tests.fuzz import guided
guided.READERS["broken"] = (lambda content: 1 / (content[:1] != b"x"), b"abcd")
guided.main()
"""


@pytest.fixture(autouse=True)
def _tool():
    pytest.importorskip("atheris", reason="NOT FUZZED BY WHAT IS REACHED: atheris is not installed")


def fuzz(folder, reader, *program):
    words = [sys.executable, *(program or ("-m", "tests.fuzz.guided")), reader, "corpus", "--seconds", SECONDS]
    return subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_survives(tmp_path, reader):
    done = fuzz(tmp_path, reader)
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(list((tmp_path / "corpus").iterdir())) > 1  # something new was reached


@pytest.mark.slow
def test_what_is_not_survived_is_found(tmp_path):
    done = fuzz(tmp_path, "broken", "-c", BROKEN)
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stdout + done.stderr
    assert [path.read_bytes()[:1] for path in tmp_path.glob("crash-*")] == [b"x"]
