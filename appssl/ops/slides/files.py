"""Which files a slide consists of, its identity over all of them, and the slides among the files of a folder.

Most slides are one file. DICOM has a file for each level (one series in one folder), MIRAX a folder beside the named
file, and Hamamatsu's VMS and VMU files beside it whose names begin with its own.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from appssl.errors import DataError

SUFFIXES = (".bif", ".czi", ".dcm", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif", ".tiff", ".vms", ".vmu")


def files_of(path: Path) -> list[Path]:
    """The files of a slide, the named one first, the others sorted."""
    suffix = path.suffix.lower()
    if suffix == ".dcm":
        others = _of_series(path)
    elif suffix == ".mrxs":
        others = [file for file in path.with_suffix("").rglob("*") if file.is_file()]
    elif suffix in (".vms", ".vmu"):
        others = [file for file in _beside(path) if file.name.startswith(path.stem)]
    else:
        others = []
    return [path, *sorted(others)]


def slides_among(base: Path, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """
    Args:
        names: of files, relative to `base`.
    Returns:
        Names of slides, one for each, and of the files that belong to none; both sorted.
    """
    by_suffix: dict[bool, list[str]] = {True: [], False: []}
    for name in sorted(names):
        by_suffix[name.lower().endswith(SUFFIXES)].append(name)
    slides: list[str] = []
    taken: set[str] = set()
    for name in by_suffix[True]:
        if name not in taken:
            slides.append(name)
            taken.update(file.relative_to(base).as_posix() for file in files_of(base / name)[1:])
    return slides, [name for name in by_suffix[False] if name not in taken]


def slide_sha256(path: Path) -> str:
    """SHA-256 (hex) of a slide: of its file, or where it has several, of their names and digests.

    Raises:
        OSError: if a file cannot be read to its end.
    """
    files = sorted(files_of(path))
    if len(files) == 1:
        return _sha256(path)
    lines = [f"{_sha256(file)}  {file.relative_to(path.parent).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


_verified: set[tuple[Any, ...]] = set()  # slides whose digest was compared; inherited by worker processes


def verify(path: Path, sha256: str) -> None:
    """Compares a slide with its digest, once for as long as its files are not touched.

    Raises:
        DataError: if it is missing or has changed since it was prepared.
    """
    try:
        states = [(str(file), file.stat()) for file in files_of(path)]
    except OSError:
        raise DataError(f"{path}: the slide is gone. Put it back, or prepare the data again.") from None
    key = (sha256, *((name, state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states))
    if key not in _verified:
        if slide_sha256(path) != sha256:
            raise DataError(f"{path}: the slide has changed since it was prepared. Prepare the data again.")
        _verified.add(key)


def _beside(path: Path) -> list[Path]:
    return [file for file in path.parent.iterdir() if file.is_file() and file != path]


def _of_series(path: Path) -> list[Path]:
    series = _series(path, path.stat().st_mtime_ns)
    files = [file for file in _beside(path) if file.suffix.lower() == ".dcm"] if series else []
    return [file for file in files if _series(file, file.stat().st_mtime_ns) == series]


@lru_cache(maxsize=100_000)  # in a folder with many slides each file is asked for each slide
def _series(path: Path, mtime_ns: int) -> str | None:
    """SeriesInstanceUID of a DICOM file; None if it is none."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        return str(dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID)
    except (InvalidDicomError, AttributeError, OSError, ValueError):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
