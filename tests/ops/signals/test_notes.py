"""What the recordings say together: units that differ, and notes."""

import polars as pl

from appssl.ops.signals.notes import noted, units_differ
from appssl.ops.signals.quality import QUALITY


def recordings(rows):
    empty = dict.fromkeys(QUALITY)
    table = [{**empty, "outcome": "kept", "device": "hip", **row} for row in rows]
    return pl.DataFrame(table, schema={"subject": pl.String, "device": pl.String, "outcome": pl.String, **QUALITY})


def test_units_that_differ_between_subjects_are_named_with_them():
    rows = [{"subject": f"s{k}", "gravity": 9.8, "acc_unit": "m/s2"} for k in range(7)]
    assert units_differ(recordings(rows)) == []
    rows += [{"subject": "t1", "gravity": 1.01, "acc_unit": "g"}, {"subject": "t2"}]
    (text,) = units_differ(recordings(rows))
    assert (
        "device hip: at rest its length is 9.8 (m/s2) in 7 subject(s): s0, s1, s2, s3, s4 and 2 more; 1.01 (g) in 1 "
        in text
    )
    assert "subject(s): t1." in text
    assert "Bring all recordings to one unit" in text
    other = [{**row, "device": "wrist"} if row["subject"] == "t1" else row for row in rows]
    assert units_differ(recordings(other)) == []  # every device is in one unit
    assert units_differ(recordings([{**row, "outcome": "failed"} for row in rows])) == []


def test_degrees_beside_radians_are_named():
    rows = [{"subject": "a", "gyro_p99": 250.0}, {"subject": "b", "gyro_p99": 300.0}, {"subject": "c", "gyro_p99": 4.0}]
    (text,) = units_differ(recordings(rows))
    assert "275 in 2 subject(s): a, b, as in degrees/s, and 4 in 1 subject(s): c, as in rad/s" in text
    assert units_differ(recordings(rows[:2])) == units_differ(recordings(rows[2:])) == []


def test_notes_are_counted():
    rows = [
        {"subject": "a", "saturated": "acc_x 3"},
        {"subject": "b", "saturated": ""},
        {"subject": "c", "acc_unit": "unclear"},
    ]
    assert noted(recordings(rows)) == (
        "Recordings with notes, of 3: 1 saturated, 1 unit of acceleration unclear; see recordings.parquet."
    )
    assert noted(recordings(rows[1:2])) == ""
