"""Paths that come from a table or recipe stay inside the folder they were declared for."""

from pathlib import Path

from appssl.errors import DataError


def inside(root: Path, path: str | Path) -> Path:
    """`root / path`, resolved.

    Raises:
        DataError: if the result, links followed, lies outside `root`.
    """
    base, shown = root.resolve(), str(path)[:500]
    try:
        full = (base / path).resolve()
    except (ValueError, OSError, RuntimeError) as error:
        raise DataError(f"{shown!r} is not a usable path: {error}.") from None
    if not full.is_relative_to(base):
        raise DataError(f"{shown!r} leaves the data root {base}. Use paths below it, or set data.root higher up.")
    return full
