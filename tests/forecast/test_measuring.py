import sys

import pytest

from appssl.artifact import write_json
from appssl.forecast.measuring import ChildFailed, measured, size_of

MB = 2**20


def python(code):
    return [sys.executable, "-c", code]


def test_time_memory_and_bytes_of_a_process_are_measured(tmp_path):
    (tmp_path / "out").mkdir()
    code = f"""
import time
held = bytearray({200 * MB})
begun = time.process_time()
while time.process_time() - begun < 0.5: pass
time.sleep(0.5)
open({str(tmp_path / "out" / "x")!r}, "wb").write(b"x" * 1000)
"""
    found = measured(python(code), tmp_path / "out", log=tmp_path / "log", limit=60)
    assert 0.5 <= found.cpu_seconds < found.seconds
    assert found.seconds >= 1.0
    assert 200 * MB <= found.own_memory <= found.memory < 400 * MB
    assert found.size == 1000
    assert found.start == found.seconds  # no run.json says when its work began


def test_memory_of_children_counts(tmp_path):
    child = f"import time; held = bytearray({100 * MB}); time.sleep(1)"
    code = f"""
import subprocess, sys
for each in [subprocess.Popen([sys.executable, "-c", {child!r}]) for _ in range(2)]: each.wait()
"""
    found = measured(python(code), tmp_path / "out", log=tmp_path / "log", limit=60)
    assert 200 * MB <= found.own_memory < 400 * MB


def test_memory_of_the_caller_does_not_count(tmp_path):
    held = bytearray(300 * MB)
    found = measured(python("import time; time.sleep(0.3)"), tmp_path / "out", log=tmp_path / "log", limit=60)
    assert found.memory < len(held) / 2


def test_the_start_is_what_the_work_does_not_explain(tmp_path):
    write_json(tmp_path / "out" / "run.json", {"seconds": 0.2})
    found = measured(python("import time; time.sleep(0.5)"), tmp_path / "out", log=tmp_path / "log", limit=60)
    assert found.start == pytest.approx(found.seconds - 0.2)


def test_a_failure_has_the_code_and_the_last_words(tmp_path):
    code = "import sys; print('appssl: no slides', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ChildFailed, match=r"^no slides$") as failed:
        measured(python(code), tmp_path / "out", log=tmp_path / "log", limit=60)
    assert failed.value.exit_code == 3


def test_what_takes_too_long_is_stopped(tmp_path):
    with pytest.raises(ChildFailed, match="longer than 1 s"):
        measured(python("import time; time.sleep(60)"), tmp_path / "out", log=tmp_path / "log", limit=1)


def test_shards_do_not_count_to_the_size_of_a_result(tmp_path):
    for name, size in (("a/shards/x", 10), ("shards/0/x", 1000), ("b", 5)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    assert size_of(tmp_path) == 15
