"""Accounts of windows: against counting them one by one."""

import numpy as np
import polars as pl

from appssl.ops.signals.resample import GAP, MISSING, NON_WEAR, OK
from appssl.ops.signals.window_accounts import ACCOUNTS, accounts, of_devices
from appssl.ops.signals.windows import REASONS

DEVICES = ["hip", "wrist", "ankle"]


def test_the_account_of_devices_equals_counting():
    rng = np.random.default_rng(0)
    worst = rng.choice([OK, NON_WEAR, GAP, MISSING], p=[0.7, 0.1, 0.1, 0.1], size=(200, 3))
    for least in (1, 3):
        kept = (worst == OK).sum(axis=1) >= least
        expected: dict[tuple[str, str], int] = {}
        for w in range(200):
            for d, device in enumerate(DEVICES):
                own = REASONS[worst[w, d]] if worst[w, d] != OK else "kept" if kept[w] else "another_device"
                expected[device, own] = expected.get((device, own), 0) + 1
        table = of_devices(worst, kept, DEVICES)
        assert {(name, reason): n for _, name, reason, n in table.rows()} == expected
        assert table.group_by("name").agg(pl.col("windows").sum())["windows"].to_list() == [200] * 3


def test_parts_are_joined_and_every_window_is_counted_once():
    windows = pl.DataFrame(
        {"subject": ["a", "a", "b"], "label": ["walk", None, "walk"], "reason": ["", "gap", ""]},
        schema_overrides={"label": pl.String},
    )
    part = pl.DataFrame([("device", "hip", "kept", 1)], schema=ACCOUNTS, orient="row")
    found = accounts(windows, [part, part])
    assert found.rows() == [
        ("activity", None, "gap", 1),
        ("activity", "walk", "kept", 2),
        ("device", "hip", "kept", 2),
        ("subject", "a", "gap", 1),
        ("subject", "a", "kept", 1),
        ("subject", "b", "kept", 1),
    ]
    assert dict(found.schema) == ACCOUNTS


def test_without_windows_the_account_is_empty():
    nothing = pl.DataFrame(schema={"subject": pl.String, "label": pl.String, "reason": pl.String})
    assert accounts(nothing, []).is_empty()
    assert of_devices(np.zeros((0, 3), int), np.zeros(0, bool), DEVICES).is_empty()
