"""Sweeps: the same recipe at every point of a grid of settings, each a run of its own named `<recipe>@<point>`."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from appssl.errors import Problem, SettingsError
from appssl.settings import Settings, read_yaml, shown, validate

_MOST_POINTS = 1000
_LONGEST_NAME = 120  # of a folder, and of everything that is named after it


class Grid(Settings):
    """A sweep's file."""

    description: str = Field("", description="one sentence")
    grid: dict[str, tuple[Any, ...]] = Field(description="dotted setting -> the values it takes")

    @field_validator("grid")
    @classmethod
    def _several(cls, grid: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        if not grid:
            raise ValueError("names no setting; give such as `pretrain.fit.lr: [1e-3, 3e-3]`")
        for key, values in grid.items():
            if not values or len({shown(value) for value in values}) < len(values):
                raise ValueError(f"{key} needs values, each once")
        return grid


@dataclass(frozen=True)
class Point:
    """Values of the grid's settings, and what the runs of this point are called behind the `@`."""

    name: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    name: str
    description: str
    points: tuple[Point, ...]

    def plain(self) -> dict[str, Any]:
        """As the plan has it: name, description, and the settings of every point by its name."""
        points = {point.name: dict(point.overrides) for point in self.points}
        return {"name": self.name, "description": self.description, "points": points}


def read_sweep(path: Path) -> Sweep:
    """
    Raises:
        SettingsError: if the file is wrong, has too many points, or two of them would have one name.
    """
    given = read_yaml(path)
    found = validate(Grid, given, file=str(path), owner="sweep")
    keys = list(given["grid"])  # in the order of the file
    short = _short_names(keys)
    points = []
    for values in itertools.product(*(found.grid[key] for key in keys)):
        overrides = dict(zip(keys, values, strict=True))
        points.append(Point("+".join(f"{short[key]}-{_word(value)}" for key, value in overrides.items()), overrides))
        if len(points) > _MOST_POINTS:
            raise _wrong(path, f"has more than {_MOST_POINTS} points. Take fewer values, or several sweeps.")
    longest, most = max((p.name for p in points), key=len), Counter(p.name for p in points).most_common(1)[0]
    if len(longest) > _LONGEST_NAME:
        raise _wrong(
            path,
            f"gives a run the name {longest[:_LONGEST_NAME]}..., too long for a folder. Name whole methods less.",
        )
    if most[1] > 1:
        raise _wrong(
            path, f"gives {most[1]} points the name {most[0][:_LONGEST_NAME]}. Their values differ in signs only."
        )
    return Sweep(path.stem, found.description, tuple(points))


def _wrong(path: Path, message: str) -> SettingsError:
    return SettingsError([Problem(str(path), "grid", message)])


def _short_names(keys: list[str]) -> dict[str, str]:
    """The last words of dotted keys, as many as tell them apart."""
    for length in range(1, max(key.count(".") for key in keys) + 2):
        short = {key: ".".join(key.split(".")[-length:]) for key in keys}
        if len(set(short.values())) == len(keys):
            break
    return short


def _word(value: Any) -> str:
    """A value as part of a folder's name."""
    text = value.get("name", shown(value)) if isinstance(value, dict) else str(value)
    return re.sub(r"[^\w.-]+", "_", str(text)).strip("_")
