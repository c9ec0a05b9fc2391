"""Which files make up a log: a file, a folder, a pattern, or several of these."""

from collections.abc import Sequence
from pathlib import Path, PurePath

from appssl.errors import DataError
from appssl.ops.paths import inside

_TABLES = (".csv", ".tsv", ".parquet")


def log_files(root: Path, given: str | Sequence[str]) -> list[Path]:
    """Files of a log below `root`, sorted by path, each once; one that is named is there even if it does not exist.

    Raises:
        DataError: if a path leaves `root`, or a folder or pattern has no table.
    """
    found: dict[str, Path] = {}
    for name in [given] if isinstance(given, str) else given:
        for path in _of(root, name):
            found[path.relative_to(root.resolve()).as_posix()] = path
    return [found[name] for name in sorted(found)]


def file_names(root: Path, files: Sequence[Path]) -> list[str]:
    """Paths below `root`, as they are told."""
    return [path.relative_to(root.resolve()).as_posix() for path in files]


def _of(root: Path, name: str) -> list[Path]:
    if any(letter in name for letter in "*?["):
        if PurePath(name).is_absolute():
            raise DataError(f"{name!r} leaves the data root {root}. Use patterns below it.")
        paths = [inside(root, path.relative_to(root)) for path in root.glob(name) if path.is_file()]
    else:
        path = inside(root, name)
        if not path.is_dir():
            return [path]
        paths = [inside(root, inner.relative_to(root.resolve())) for inner in path.rglob("*") if inner.is_file()]
    tables = [p for p in paths if not p.name.startswith((".", "_")) and p.suffix in _TABLES]  # _SUCCESS, .crc
    if not tables:
        raise DataError(f"{root / name}: holds no table (.csv, .tsv, .parquet). Is data.root right?")
    return tables
