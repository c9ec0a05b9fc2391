"""Several drifting IMU streams per person, with known clocks: what devices of different makers really deliver.

Every person does a sequence of activities. A device measures acceleration (m/s^2, with gravity) and rotation (rad/s)
at its place on the body, in its own orientation, at its own rate, with a clock that is a little early or late and runs
a little fast or slow. Samples jitter; some are lost (gaps) or empty (NaN); once a device is missing for a session, and
once it is taken off. The device tells its clock only; labels are on the true one.

An activity has a tempo, a strength and a posture; every person has a way of doing it, so that activities overlap
between persons: a small network learns them, but not perfectly.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

CHANNELS = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")
DEVICES = ("wrist", "hip", "ankle")
RATES_HZ = {"wrist": 50.0, "hip": 40.0, "ankle": 64.0}
# activity: steps per second, strength (m/s^2) at wrist, hip, ankle, tilt of the body (degrees), share of the overtone
ACTIVITIES = {
    "walking": (1.8, (2.0, 1.6, 4.0), 5.0, 0.4),
    "running": (2.7, (6.0, 5.0, 9.0), 10.0, 0.5),
    "sitting": (0.25, (0.15, 0.05, 0.05), 60.0, 0.1),
    "stairs": (1.5, (1.8, 2.2, 4.4), 12.0, 0.7),
    "cycling": (1.3, (0.6, 0.7, 3.5), 35.0, 0.2),
    "lying": (0.25, (0.1, 0.05, 0.05), 90.0, 0.1),
}
_GRAVITY = 9.81
# persons, devices, activities, seconds of an activity, sessions of a person (every activity once in each)
_SIZES = {"tiny": (4, 2, 3, 20.0, 1), "small": (8, 3, 5, 60.0, 2), "large": (20, 3, 6, 300.0, 4)}
_OFFSET_SECONDS, _DRIFT_PPM = 0.04, 60.0  # standard deviations of the clocks' errors
_PAUSE_SECONDS = 60.0  # between two sessions


@dataclass(frozen=True)
class Style:
    """How a person does an activity: tempo (Hz), strength and phase per device, direction of gravity per device."""

    tempo: float
    strength: np.ndarray
    phase: np.ndarray
    down: np.ndarray
    swing: np.ndarray
    overtone: float


def make(folder: Path, *, size: Literal["tiny", "small", "large"], seed: int) -> None:
    """Writes `recordings.csv`, `labels.csv` (intervals on the true clock) and `recordings/*.parquet|csv`.

    `truth/clocks.csv` has a row per recording: recording_id, rate_hz, offset_s, drift_ppm (time told = true time *
    (1 + drift) + offset); `truth/events.csv` what was done to it (gap, nan, off_body, missing) and when.
    """
    persons, num_devices, num_activities, seconds, sessions = _SIZES[size]
    rng = np.random.default_rng([seed, persons])
    made = Made(folder, [], [], [], [])
    for person in range(persons):
        styles = [_style(name, num_devices, rng) for name in list(ACTIVITIES)[:num_activities]]
        for session in range(sessions):
            begin = session * (seconds * num_activities + _PAUSE_SECONDS)
            order = rng.permutation(num_activities)
            for k, activity in enumerate(order):
                made.label(f"p{person + 1:02}", begin + k * seconds, begin + (k + 1) * seconds, int(activity))
            for d in range(num_devices):
                if sessions > 1 and person == 1 and session == sessions - 1 and d == num_devices - 1:
                    made.missing(f"p{person + 1:02}", session, DEVICES[d], begin)
                    continue
                _recording(made, person, session, d, styles, order, begin, seconds, rng)
    made.write()


@dataclass
class Made:
    folder: Path
    recordings: list[dict[str, object]]
    labels: list[dict[str, object]]
    clocks: list[dict[str, object]]
    events: list[dict[str, object]]

    def label(self, subject: str, start: float, end: float, activity: int) -> None:
        name = list(ACTIVITIES)[activity]
        self.labels.append({"subject_id": subject, "start": start, "end": end, "activity": name})

    def missing(self, subject: str, session: int, device: str, begin: float) -> None:
        self.event(f"{subject}_{session + 1}_{device}", "missing", begin, begin)

    def event(self, recording: str, event: str, start: float, end: float) -> None:
        self.events.append({"recording_id": recording, "event": event, "start": start, "end": end})

    def write(self) -> None:
        (self.folder / "truth").mkdir(parents=True, exist_ok=True)
        tables = {
            "recordings.csv": self.recordings,
            "labels.csv": self.labels,
            "truth/clocks.csv": self.clocks,
            "truth/events.csv": self.events,
        }
        for name, rows in tables.items():
            pl.DataFrame(rows).write_csv(self.folder / name)


def _style(activity: str, num_devices: int, rng: np.random.Generator) -> Style:
    """A person's own way: tempo +- 12 %, strength +- 25 %, posture and the wearing of each device +- 15 degrees."""
    tempo, strength, tilt, overtone = ACTIVITIES[activity]
    tilts = np.deg2rad(tilt + 15 * rng.standard_normal(num_devices))
    turns = np.deg2rad(40 * np.arange(num_devices) + 15 * rng.standard_normal(num_devices))
    down = np.stack([np.sin(tilts) * np.cos(turns), np.sin(tilts) * np.sin(turns), np.cos(tilts)], axis=1)
    swing = rng.standard_normal((num_devices, 3)) * 0.35 + [0.5, 0.3, 0.9]
    return Style(
        tempo * (1 + 0.12 * rng.standard_normal()),
        np.array(strength[:num_devices]) * np.exp(0.25 * rng.standard_normal(num_devices)),
        rng.uniform(0, 2 * np.pi, num_devices),
        down,
        swing / np.linalg.norm(swing, axis=1, keepdims=True),
        overtone * np.exp(0.3 * rng.standard_normal()),
    )


def _recording(
    made: Made, person: int, session: int, d: int, styles: list[Style], order: np.ndarray, begin: float, seconds: float,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    device, rate = DEVICES[d], RATES_HZ[DEVICES[d]]
    name = f"p{person + 1:02}_{session + 1}_{device}"
    offset, drift = _OFFSET_SECONDS * rng.standard_normal(), 1e-6 * _DRIFT_PPM * rng.standard_normal()
    length = seconds * len(order)
    ticks = np.arange(int(length * rate)) / rate
    true = begin + ticks + rng.uniform(-0.15, 0.15, len(ticks)) / rate  # jitter that never turns two samples round
    values = _motion(true - begin, d, styles, order, seconds, rng)
    kept = np.ones(len(true), bool)
    for event in ("gap", "nan", "off_body"):
        if (person + session + d) % 3 != ("gap", "nan", "off_body").index(event):
            continue
        low = rng.uniform(0.1, 0.8) * length
        high = low + {"gap": 2.0, "nan": 0.3, "off_body": 5.0}[event]
        inside = (true - begin >= low) & (true - begin < high)
        if event == "gap":
            kept[inside] = False
        elif event == "nan":
            values[inside] = np.nan
        else:  # lies on a table
            values[inside] = [0, 0, _GRAVITY, 0, 0, 0]
        made.event(name, event, begin + low, begin + high)
    told = true * (1 + drift) + offset
    columns = {"time": told[kept].round(4)} | {
        channel: values[kept, k].astype(np.float32) for k, channel in enumerate(CHANNELS)
    }
    path = f"recordings/{name}.{'csv' if d == 0 else 'parquet'}"
    _write(made.folder / path, pl.DataFrame(columns, nan_to_null=True))
    made.recordings.append(
        {"recording_id": name, "subject_id": f"p{person + 1:02}", "device": device, "path": path, "sampling_hz": rate}
    )
    made.clocks.append({"recording_id": name, "rate_hz": rate, "offset_s": offset, "drift_ppm": drift * 1e6})


def _motion(
    times: np.ndarray, d: int, styles: list[Style], order: np.ndarray, seconds: float, rng: np.random.Generator
) -> np.ndarray:
    """(n, 6) float64: gravity and the periodic motion of the activity of each time, with noise."""
    values = 0.25 * rng.standard_normal((len(times), 6)) * [1, 1, 1, 0.2, 0.2, 0.2]
    number = np.clip((times / seconds).astype(int), 0, len(order) - 1)
    for k, activity in enumerate(order):
        own, style = number == k, styles[int(activity)]
        phase = 2 * np.pi * style.tempo * times[own] + style.phase[d]
        wave = np.sin(phase) + style.overtone * np.sin(2 * phase + 0.7)
        motion = style.strength[d] * wave[:, None] * style.swing[d]
        values[own, :3] += _GRAVITY * style.down[d] + motion
        axis = np.cross(style.swing[d], style.down[d])
        values[own, 3:] += 0.3 * style.strength[d] * np.cos(phase)[:, None] * axis
    return values


def _write(path: Path, frame: pl.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        frame.write_csv(path, float_precision=4)
    else:
        frame.write_parquet(path)
