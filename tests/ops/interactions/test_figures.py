import numpy as np

from appssl.ops.interactions import partitions
from appssl.ops.interactions.duplicates import SetHashes
from appssl.ops.interactions.figures import events_in_time
from appssl.ops.interactions.store import Stored


def test_events_counted_block_by_block_are_the_histogram_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(partitions, "RECORDS_READ", 7)
    times = np.sort(np.random.default_rng(0).integers(1_500_000_000, 1_600_000_000, 100))
    np.save(tmp_path / "timestamp.npy", times)
    nothing = np.zeros((0, 3), dtype=np.int64)
    columns = {"timestamp": tmp_path / "timestamp.npy"}
    stored = Stored(
        (60, 0, 40), None, nothing, nothing, nothing[:, 0] > 0, nothing[:, 0] > 0, SetHashes(0, 0), None, columns
    )
    edges, counts = events_in_time(stored)
    years = times / (365.25 * 86400) + 1970
    np.testing.assert_allclose(edges, np.linspace(years.min(), years.max(), 61))
    for part, rows in enumerate((slice(0, 60), slice(60, 60), slice(60, 100))):
        np.testing.assert_array_equal(counts[part], np.histogram(years[rows], edges)[0])
