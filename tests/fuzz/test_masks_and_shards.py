"""GeoJSON masks and tar shards."""

import io
import json
import tarfile
import time

import numpy as np
import pytest

from appssl.ops.images.index import Columns
from appssl.ops.images.shards import list_shards
from appssl.ops.slides import masks as slide_masks
from appssl.ops.slides.masks import BadMask, read_mask, to_geojson
from tests.fuzz.damage import fuzz, survives

SIZE, SHAPE = (1000, 800), (80, 100)
_MASK = np.zeros(SHAPE, bool)
_MASK[10:40, 20:60] = True
_MASK[20:30, 30:40] = False
GEOJSON = json.dumps(to_geojson(_MASK, SIZE)).encode()


def member(name: str, content: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    about = tarfile.TarInfo(name)
    about.size = len(content)
    return about, io.BytesIO(content)


def shard() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in (("a.jpg", b"x" * 600), ("a.cls", b"cat"), ("b.jpg", b"y"), ("b.json", b'{"label": 3}')):
            tar.addfile(*member(name, content))
        tar.addfile(*member("c" * 200 + ".jpg", b"z"))  # a name that needs a header of its own
    return buffer.getvalue()


SHARD = shard()


@fuzz(GEOJSON, examples=200)
def test_masks(content):
    found = survives(lambda folder, name: read_mask(folder / name, SIZE, SHAPE), content, "m.geojson", BadMask)
    assert found is None or (found.shape == SHAPE and found.dtype == bool)


def read_shard(content):
    found = survives(lambda folder, name: list_shards(folder, [name], Columns()), content, "s.tar")
    if found is not None:
        assert (found.frame["length"] >= 0).all()
        assert (found.frame["offset"] + found.frame["length"] <= len(content)).all()


test_shards = fuzz(SHARD, examples=300)(read_shard)


def header(name: bytes = b"a.jpg", size: bytes | int = 0, kind: bytes = b"0") -> bytes:
    """A tar header with any size field and a right checksum."""
    block = bytearray(512)
    block[: len(name)], block[100:107], block[156:157], block[257:265] = name, b"0000644", kind, b"ustar\x0000"
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[136:147], block[148:156] = b"0" * 11, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 512)


NEGATIVE, HUGE = b"\xff" + (2**88 - 512).to_bytes(11, "big"), b"\x80" + (2**80).to_bytes(11, "big")
EMPTY = b"\0" * 1024
HOSTILE = {
    "negative size": header(size=NEGATIVE) + EMPTY,
    "negative extended header": header(kind=b"x", size=NEGATIVE) + header() + EMPTY,
    "huge size": header(size=HUGE) + EMPTY,
    "huge extended header": header(kind=b"x", size=HUGE) + header() + EMPTY,
    "names of names": (header(kind=b"L", size=4) + padded(b"abc\0")) * 3000,
    "negative size in the extended header": header(kind=b"x", size=15) + padded(b"15 size=-10000\n") + header() + EMPTY,
    "huge record": header(kind=b"x", size=27) + padded(b"99999999999999999999 a=b\n") + header() + EMPTY,
    "a name that is no UTF-8": header(b"a\xe3.jpg") + header(b"b.jpg") + EMPTY,
    "a label that is no UTF-8": header(b"a\xe3.cls") + header(b"b.jpg") + EMPTY,
    "sparse": header(kind=b"S") + EMPTY,
    "deep label": header(b"a.json", 10**5) + padded(b"[" * 10**5) + header(b"a.jpg") + EMPTY,
    "huge number": header(b"a.json", 10**5) + padded(b"9" * 10**5) + header(b"a.jpg") + EMPTY,
}


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_shards(how):
    start = time.process_time()
    read_shard(HOSTILE[how])
    assert time.process_time() - start < 2


def test_a_name_that_is_no_utf_8_is_said_and_the_rest_is_read(tmp_path):
    (tmp_path / "s.tar").write_bytes(HOSTILE["a name that is no UTF-8"])
    found = list_shards(tmp_path, ["s.tar"], Columns())
    assert found.frame["id"].to_list() == ["s/b"]
    (left_out,) = found.skipped
    assert (left_out.reason, left_out.detail) == ("unsafe_member", "its name is not UTF-8")
    assert left_out.item.encode() == b"s/a\\udce3.jpg"


def comb(teeth: int) -> dict:
    """A valid polygon whose every edge crosses all rows."""
    width, height = SIZE
    x = np.linspace(0, width, 2 * teeth + 1)
    y = np.where(np.arange(len(x)) % 2 == 0, height - 1.0, 1.0)
    ring = [[0.0, float(height)], *np.stack([x, y], 1).tolist(), [float(width), float(height)], [0.0, float(height)]]
    return {"type": "Polygon", "coordinates": [ring]}


def test_edges_worked_on_in_blocks_give_the_same_mask(tmp_path, monkeypatch):
    (tmp_path / "m.geojson").write_text(json.dumps(comb(37)))
    whole = read_mask(tmp_path / "m.geojson", SIZE, (300, 500))
    monkeypatch.setattr(slide_masks, "_CROSSINGS", 1000)
    assert np.array_equal(read_mask(tmp_path / "m.geojson", SIZE, (300, 500)), whole)
    assert 0.4 < whole.mean() < 0.6


def test_a_polygon_of_a_million_points_takes_bounded_time(tmp_path):
    angle = np.linspace(0, 2 * np.pi, 1_000_000)
    ring = np.stack([500 + 400 * np.cos(angle), 400 + 300 * np.sin(angle)], 1)
    ring[-1] = ring[0]
    (tmp_path / "m.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring.tolist()]}))
    start = time.process_time()
    mask = read_mask(tmp_path / "m.geojson", SIZE, (1600, 2000))
    assert mask.mean() == pytest.approx(np.pi * 400 * 300 / (1000 * 800), abs=1e-3)
    assert time.process_time() - start < 30


def test_an_outline_that_crosses_too_many_rows_is_refused(tmp_path):
    """2.4 x 10^8 crossings: 15 GB at once, and minutes in blocks."""
    (tmp_path / "m.geojson").write_text(json.dumps(comb(60_000)))
    with pytest.raises(BadMask, match=r"edges cross .* rows; draw it with fewer points"):
        read_mask(tmp_path / "m.geojson", SIZE, (2000, 100))


@pytest.mark.parametrize("text", ["[" * 10**6, '{"type":' * 10**5, "9" * 10**5], ids=["lists", "objects", "number"])
def test_deep_and_huge_geojson_is_refused(tmp_path, text):
    (tmp_path / "m.geojson").write_text(text)
    with pytest.raises(BadMask):
        read_mask(tmp_path / "m.geojson", SIZE, SHAPE)


def test_many_small_shapes_take_time_by_their_size(tmp_path):
    squares = [
        {"type": "Polygon", "coordinates": [[[x, y], [x + 8, y], [x + 8, y + 8], [x, y + 8], [x, y]]]}
        for x in range(0, 1000, 10) for y in range(0, 800, 10)
    ]  # fmt: skip
    (tmp_path / "m.geojson").write_text(json.dumps(squares))
    start = time.process_time()
    mask = read_mask(tmp_path / "m.geojson", SIZE, (1600, 2000))
    assert mask.mean() == pytest.approx(0.64, abs=0.01)
    assert time.process_time() - start < 10  # 8,000 whole masks of 3.2 million pixels would take minutes
