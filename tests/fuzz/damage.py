"""Bytes that a reader must survive: any, and valid files that were damaged. The same seed gives the same bytes.

`APPSSL_FUZZ_SEED=7 pytest tests/fuzz` tries others than those of seed 0; `APPSSL_FUZZ_EXAMPLES=5000` tries more.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, given, note
from hypothesis import strategies as st

from appssl.errors import AppsslError

SEED = int(os.environ.get("APPSSL_FUZZ_SEED", "0"))
_SECONDS = 5  # of one example
EXAMPLES = int(os.environ.get("APPSSL_FUZZ_EXAMPLES", "0"))
_WORDS = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b",", b'"', b"'", b":", b"- ", b"[" * 3000, b"{" * 3000,
    b'{"a":' * 2000, b"9" * 5000, b"-1", b"1e400", b"-1e308", b"NaN", b"Infinity", b"null", b"true", b"/etc/passwd",
    b"../../etc/passwd", b"\xed\xa0\x80", b"\\ud800", b"&a [*a, *a]", b"*a", b"<<: *a", b"!!python/object:os.system",
    b"!!timestamp x", b"2001-99-99", b"1:60:60", b"0x", b"~", b"%", b"x" * 70000,
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid file of which bits were turned, bytes cut out, repeated, put in, or the end is missing."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        end = min(len(content), at + draw(st.integers(1, 40)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "remove", "repeat", "replace"]))
        if kind == "flip" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = draw(st.one_of(st.sampled_from(_WORDS), st.binary(max_size=20)))
        elif kind == "remove":
            del content[at:end]
        elif kind == "repeat":
            content[at:at] = content[at:end] * draw(st.integers(1, 50))
        elif kind == "replace":
            content[at:end] = draw(st.sampled_from(_WORDS))
    return bytes(content)


def fuzz(*valid: bytes, examples: int = 120) -> Callable[[Callable[[bytes], None]], Any]:
    """A test of one argument, bytes: damaged copies of the valid files, and any bytes."""
    contents = st.one_of(*(damaged(content) for content in valid), st.binary(max_size=300))

    def decorate(test: Callable[[bytes], None]) -> Any:
        settings = hypothesis.settings(
            max_examples=EXAMPLES or examples, deadline=None, database=None, print_blob=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip

        def seeded(content: bytes) -> None:
            note(f"APPSSL_FUZZ_SEED={SEED} repeats this")
            start = time.process_time()  # not hypothesis' own deadline: others may work on this machine
            test(content)
            assert time.process_time() - start < _SECONDS

        return hypothesis.seed(SEED)(settings(given(content=contents)(seeded)))

    return decorate


def survives(read: Callable[[Path, str], Any], content: bytes, name: str, *refusals: type[Exception]) -> Any:
    """What `read(folder, name)` makes of a file; None if an error of appssl, or one of `refusals`, refuses it."""
    with tempfile.TemporaryDirectory(prefix="appssl-") as scratch:
        folder = Path(scratch)
        (folder / name).write_bytes(content)
        try:
            return read(folder, name)
        except (AppsslError, *refusals) as error:
            said = str(error)
    assert len(said) < 20_000, "a message of that length helps nobody"
    return None


def parquet(frame: Any) -> bytes:
    """A small Parquet file of a polars frame."""
    import io

    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="uncompressed")
    return buffer.getvalue()
