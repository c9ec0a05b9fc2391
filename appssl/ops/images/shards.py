"""Tar shards in the WebDataset layout, read in place and never unpacked: key.jpg beside key.cls or key.json.

A key is the member's path up to the first dot of its last part. `key.cls` holds a class name or its position,
`key.json` the values that `Columns` names. Members that are links or devices, or whose name is absolute or goes
upwards, are refused.
"""

import glob
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from appssl.errors import NOT_JSON, DataError
from appssl.ops.images.decoding import SUFFIXES
from appssl.ops.images.index import SCHEMA, Columns, Listing, Skipped, row_problems, unit
from appssl.ops.paths import inside
from appssl.ops.table_limits import SHOWN

LABEL_FILE_BYTES = 1 << 20  # a label beside an image is small; more is not read


def list_shards(root: Path, patterns: Sequence[str], columns: Columns) -> Listing:
    """Units of tar files; the id is `<tar name>/<key>`.

    Args:
        patterns: paths or globs (`shards/*.tar`) relative to root.
    Raises:
        DataError: if a pattern matches nothing or leaves the root, or there is no image.
    """
    tars = [_Tar(root, path, columns) for path in shard_paths(root, patterns)]
    for tar in tars:
        tar.read()
    skipped = [item for tar in tars for item in tar.skipped]
    units = [found for tar in tars for found in tar.units()]
    if not units:
        why = "; ".join(f"{s.where}: {s.reason}: {s.detail}" for s in skipped[:SHOWN])
        raise DataError(
            f"no images in the tar shards {', '.join(patterns)}. {why or 'Expected is key.jpg beside key.cls.'}"
        )
    frame = pl.DataFrame(units, schema=SCHEMA)
    return Listing(frame, skipped, row_problems(frame, columns))


def shard_paths(root: Path, patterns: Sequence[str]) -> list[str]:
    """Files that the patterns match, relative to root, sorted.

    Raises:
        DataError: if one matches nothing or leaves the root.
    """
    paths: set[str] = set()
    for pattern in patterns:
        inside(root, pattern)
        found = {Path(name).as_posix() for name in glob.glob(pattern, root_dir=root, recursive=True)}
        paths |= {path for path in found if inside(root, path).is_file()}
        if not found:
            raise DataError(f"{pattern}: no tar file in {root} matches. Correct data.source.shards, or data.root.")
    return sorted(paths)


class _Tar:
    """Listing of one tar file."""

    def __init__(self, root: Path, path: str, columns: Columns) -> None:
        self.path, self.columns = path, columns
        self.full = inside(root, path)
        self.stem = PurePosixPath(path).stem
        self.skipped: list[Skipped] = []
        self._images: dict[str, dict[str, Any]] = {}
        self._notes: dict[str, dict[str, Any]] = {}
        self._bad: set[str] = set()  # keys whose label cannot be read

    def read(self) -> None:
        """Walks over the headers; a damaged tar gives what came before the damage."""
        size = self.full.stat().st_size
        try:
            with tarfile.open(self.full, "r:") as tar:
                for member in tar:
                    if member.size < 0:
                        raise tarfile.HeaderError(f"{member.name}: its size is negative")
                    if problem := unsafe(member):
                        self._skip(member.name, "unsafe_member", problem)
                    elif member.isreg() and member.offset_data + member.size > size:
                        self._skip(member.name, "truncated", "the tar file ends before this member does")
                    elif member.isreg():
                        self._member(tar, member)
        except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
            self._skip("", "damaged_shard", f"{error}; {len(self._images)} images before that were read")
        for key in sorted(self._notes.keys() - self._images.keys() - self._bad):
            self._skip(key, "no_image", "a label without an image")

    def units(self) -> list[dict[str, Any]]:
        """Images in the order of their keys."""
        return [{**self._images[key], **self._notes.get(key, {})} for key in sorted(self._images.keys() - self._bad)]

    def _skip(self, name: str, reason: str, detail: str) -> None:
        name, detail = shown(name), shown(detail)
        item = f"{self.stem}/{name}" if name else self.path
        self.skipped.append(Skipped(item, f"{self.path}: {name}" if name else self.path, reason, detail, failed=True))

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        folder, _, last = member.name.removeprefix("./").rpartition("/")
        name, _, kind = last.partition(".")
        key, kind = f"{folder}/{name}" if folder else name, kind.lower()
        if kind in ("cls", "json"):
            self._label(tar, member, key, kind)
        elif f".{kind.rpartition('.')[2]}" in SUFFIXES:
            if key in self._images:
                self._skip(member.name, "second_image", f"the key {key} has one already: {self._images[key]['where']}")
                return
            where = f"{self.path}: {member.name}"
            place = {"file": self.path, "offset": member.offset_data, "length": member.size}
            self._images[key] = unit(id=f"{self.stem}/{key}", origin="input", where=where, **place)

    def _label(self, tar: tarfile.TarFile, member: tarfile.TarInfo, key: str, kind: str) -> None:
        stream = tar.extractfile(member)
        try:
            text = stream.read(LABEL_FILE_BYTES).decode().strip() if stream else ""
            note = self._notes.setdefault(key, {})
            if kind == "cls":
                note["label"] = text or None
            else:
                note.update(_values(json.loads(text), self.columns))
        except (*NOT_JSON, AttributeError) as error:
            if key not in self._bad:
                self._skip(member.name, "bad_label_file", f"{type(error).__name__}: {error}; its image is not used")
            self._bad.add(key)


def _values(values: dict[str, Any], columns: Columns) -> dict[str, str]:
    named = {key: getattr(columns, key) for key in ("label", "true_label", "split", "group", "url")}
    return {key: str(values[name]) for key, name in named.items() if name and values.get(name) is not None}


def shown(text: str) -> str:
    """The text with an escape in place of every byte that was no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def unsafe(member: tarfile.TarInfo) -> str:
    """Why a member is refused, "" if it is not."""
    name = member.name.replace("\\", "/")
    if shown(name) != name:
        return "its name is not UTF-8"
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        return "its name leaves the folder"
    if member.issym() or member.islnk():
        return f"a link to {member.linkname}"
    if not (member.isreg() or member.isdir()) or member.issparse():
        return "neither a plain file nor a folder"
    return ""
