"""Signals joined from shards, and statistics without what is left out."""

import io

import numpy as np
import polars as pl
import pytest

from appssl.errors import DataError
from appssl.ops.signals import shards as signal_shards
from appssl.ops.signals.resample import GAP, NAN, NON_WEAR, OK, SATURATED
from appssl.ops.signals.shards import Sums, placed, refuse_mismatch, statistics, write_signal


def sums(values, codes, step=10**9):
    found = Sums(*values.shape[1:])
    for a in range(0, len(values), step):
        found.add(values[a : a + step], codes[a : a + step])
    return found.row()


@pytest.mark.parametrize("step", [10**9, 7])
def test_statistics_equal_those_of_all_samples_that_count(step):
    rng = np.random.default_rng(0)
    rows, counted = [], []
    for length in (50, 7, 300):
        values = rng.normal(3, 2, (length, 2, 3)).astype(np.float32)
        codes = rng.choice([OK, NAN, GAP, NON_WEAR, SATURATED], size=(length, 2)).astype(np.uint8)
        values[np.isin(codes, (NAN, GAP))] = np.nan
        rows.append(sums(values, codes, step))
        counted.append(np.where(np.isin(codes, (NON_WEAR, SATURATED))[:, :, None], np.nan, values))
    mean, std = statistics(pl.DataFrame(rows), (2, 3))
    together = np.concatenate(counted).astype(np.float64)
    np.testing.assert_allclose(mean, np.nanmean(together, axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, np.nanstd(together, axis=0), rtol=1e-9)


def test_without_samples_statistics_are_zero():
    empty = pl.DataFrame([sums(np.full((4, 1, 2), np.nan, np.float32), np.full((4, 1), GAP, np.uint8))])
    for table in (empty, empty.head(0)):
        mean, std = statistics(table, (1, 2))
        assert (mean == 0).all()
        assert (std == 0).all()


@pytest.mark.parametrize("copied", [1 << 22, 12])
def test_sessions_of_shards_are_written_in_the_order_of_their_names(tmp_path, monkeypatch, copied):
    monkeypatch.setattr(signal_shards, "_COPIED", copied)
    files, tables = [], []
    for shard, sessions in enumerate(({"d": 3, "a": 2}, {"c": 4, "b": 1})):
        tables.append(pl.DataFrame({"session": list(sessions), "num_samples": list(sessions.values())}))
        values = np.concatenate([np.full((n, 2), ord(name), np.float32) for name, n in sessions.items()])
        files.append(tmp_path / f"{shard}.f32")
        files[-1].write_bytes(values.tobytes())
    stored = placed(tables)
    stream = io.BytesIO()
    write_signal(stored, files, 2, stream)
    stream.seek(0)
    signal = np.load(stream)
    assert signal.shape == (10, 2)
    assert bytes(signal[:, 0].astype(np.uint8)).decode() == "aabccccddd"


def test_shards_that_do_not_belong_together_are_refused():
    about = {"devices": ["a"], "channels": [], "order": [], "splits": {}, "not_chosen": 0, "num_shards": 2}
    refuse_mismatch([{**about, "shard": 1}, {**about, "shard": 0}])
    with pytest.raises(DataError, match="input changed"):
        refuse_mismatch([{**about, "shard": 0}, {**about, "shard": 1, "devices": ["b"]}])
    with pytest.raises(DataError, match=r"shards \[0, 0\] given, 2 are needed"):
        refuse_mismatch([{**about, "shard": 0}, {**about, "shard": 0}])
