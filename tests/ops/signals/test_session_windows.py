"""The table of windows, against a loop over them."""

import numpy as np
import polars as pl
import pytest

from appssl.ops.signals.resample import GAP, MISSING, OK
from appssl.ops.signals.session_windows import WINDOWS, window_table
from appssl.ops.signals.windows import gravest, starts


@pytest.mark.parametrize("least", [None, 1])
def test_equals_a_loop_over_windows(least):
    rng = np.random.default_rng(0)
    codes = np.repeat(rng.choice([OK, OK, OK, GAP, MISSING], size=(40, 2)), 5, axis=0).astype(np.uint8)
    labels = np.repeat(rng.integers(-1, 2, 20), 10)
    first = starts(200, 10, 5)
    found = window_table(
        "s/0001", "s", 7 + first / 10, codes=codes, first=first, worst=gravest(codes, first, 10), size=10,
        labels=labels, names=["run", "walk"], purity=0.6, devices=["hip", "wrist"], min_devices=least,
    )  # fmt: skip
    assert dict(found.schema) == WINDOWS
    names = {GAP: "gap", MISSING: "missing_device"}
    for k, row in enumerate(found.iter_rows(named=True)):
        own, label = codes[first[k] : first[k] + 10], labels[first[k] : first[k] + 10]
        usable = [bool((own[:, d] == OK).all()) for d in range(2)]
        assert row["id"] == f"s/0001/{k:06d}"
        assert (row["session"], row["subject"], row["offset"]) == ("s/0001", "s", first[k])
        assert row["start_seconds"] == pytest.approx(7 + first[k] / 10)
        shares = [(label == n).mean() for n in (0, 1)]
        assert row["label_share"] == max(shares)
        assert row["label"] == (["run", "walk"][int(np.argmax(shares))] if max(shares) >= 0.6 else None)
        assert row["devices"] == (None if least is None else usable[0] + 2 * usable[1])
        if sum(usable) >= (2 if least is None else least):
            assert (row["reason"], row["detail"]) == ("", "")
        else:
            worst = own.max()
            told = [f"{n} {(own[:, d] == worst).sum()} of 10 samples" for d, n in enumerate(("hip", "wrist"))]
            assert row["reason"] == names[worst]
            assert row["detail"] == ", ".join(text for text in told if " 0 of" not in text)
    assert 0 < found.filter(pl.col("reason") == "").height < len(found)


def test_a_session_shorter_than_a_window_has_none():
    none = np.zeros(0, np.int64)
    found = window_table(
        "s/0001", "s", none / 10, codes=np.zeros((5, 1), np.uint8), first=none, worst=np.zeros((0, 1), np.uint8),
        size=10, labels=np.zeros(5, np.int8), names=["run"], purity=0.5, devices=["hip"], min_devices=None,
    )  # fmt: skip
    assert found.is_empty()
    assert dict(found.schema) == WINDOWS
