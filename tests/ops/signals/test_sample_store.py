"""Columns in memory and in a file read like arrays, and leave nothing behind."""

import errno
import os

import numpy as np
import pytest

from appssl.errors import AppsslError
from appssl.ops.signals import sample_store
from appssl.ops.signals.sample_store import Column, Scratch, View, slices


def filled(scratch, rows, sizes):
    """A column of the rows in chunks of these sizes."""
    column = Column(scratch)
    for a, b in zip(np.cumsum([0, *sizes]), np.cumsum(sizes), strict=False):
        column.append(rows[a:b])
    return column


@pytest.mark.parametrize("rows_of_a_chunk", [1, 16, 1000])
@pytest.mark.parametrize("limit", [0, 700, 1 << 20])  # all in a file, some, none
@pytest.mark.parametrize("shape", [(), (1,), (3,)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_a_column_reads_like_its_array(tmp_path, monkeypatch, rows_of_a_chunk, limit, shape, dtype):
    monkeypatch.setattr(sample_store, "CHUNK_ROWS", rows_of_a_chunk)
    rows = np.random.default_rng(0).integers(-99, 99, (100, *shape)).astype(dtype)
    with Scratch(tmp_path, limit) as scratch:
        column = filled(scratch, rows, [1, 40, 0, 9, 50])
        assert len(column) == 100
        for a in range(0, 101, 7):
            for b in (*range(0, 100, 9), None, 100, 200):
                np.testing.assert_array_equal(column[a:b], rows[a:b], strict=True)
        assert column[-1].tolist() == rows[-1].tolist()
        assert column[40].tolist() == rows[40].tolist()
        for channels in ([0], [2, 0], [0, 1, 2])[: 3 * (shape == (3,))]:
            np.testing.assert_array_equal(column[30:70, channels], rows[30:70, channels])
        with pytest.raises(IndexError):
            column[100]


def test_chunks_of_several_types_are_read_as_the_larger_one(tmp_path):
    with Scratch(tmp_path, 0) as scratch:
        column = Column(scratch)
        column.append(np.ones((2, 2), np.float32))
        column.append(np.full((2, 2), 0.1))
        np.testing.assert_array_equal(column[:], [[1, 1], [1, 1], [0.1, 0.1], [0.1, 0.1]])
        assert (column[:1].dtype, column[:].dtype) == (np.float32, np.float64)


def test_a_column_may_grow_after_it_was_read(tmp_path):
    with Scratch(tmp_path, 0) as scratch:
        column = Column(scratch)
        for k in range(5):
            column.append(np.arange(k))
            assert len(column[:]) == len(column) == k * (k + 1) / 2
        assert column[:].tolist() == [0, 0, 1, 0, 1, 2, 0, 1, 2, 3]


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_a_view_reads_its_part_changed(tmp_path, limit):
    rows = np.arange(60.0).reshape(20, 3)
    with Scratch(tmp_path, limit) as scratch:
        for source in (rows, filled(scratch, rows, [7, 13])):
            view = View(source, 5, 15, lambda own: own + 100)
            assert len(view) == 10
            np.testing.assert_array_equal(view[:], rows[5:15] + 100)
            np.testing.assert_array_equal(view[2:99, [1]], rows[7:15, [1]] + 100)
            np.testing.assert_array_equal(view[-1], rows[14] + 100)
            np.testing.assert_array_equal(View(view, 2, 4)[:], rows[7:9] + 100)
            with pytest.raises(IndexError):
                view[10]


def test_slices_cover_everything_once():
    assert list(slices(10, 4)) == [(0, 4), (4, 8), (8, 10)]
    assert list(slices(0, 4)) == []
    assert next(slices(10**9)) == (0, sample_store.CHUNK_ROWS)


def test_nothing_is_left_also_after_an_error(tmp_path):
    def failing():
        with Scratch(tmp_path, 0) as scratch:
            assert filled(scratch, np.arange(1000), [1000])[999] == 999
            assert list(tmp_path.iterdir()) == []  # the file has no name from the beginning
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert list(tmp_path.iterdir()) == []


def test_small_things_need_no_file(tmp_path):
    with Scratch(tmp_path / "missing", 8000) as scratch:
        assert filled(scratch, np.arange(1000.0), [1000])[7] == 7
        with pytest.raises(AppsslError, match="no space for long recordings"):
            filled(scratch, np.arange(1000.0), [1000])[0]


def test_a_full_disk_says_what_to_do(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with Scratch(tmp_path, 0) as scratch, pytest.raises(AppsslError, match=r"No space left on device\. Free space or"):
        filled(scratch, np.arange(10), [10])[0]


def test_where_room_cannot_be_reserved_the_file_is_just_written(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    with Scratch(tmp_path, 0) as scratch:
        assert filled(scratch, np.arange(10), [10])[3] == 3
