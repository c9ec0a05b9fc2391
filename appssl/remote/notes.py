"""`fetched.json` beside the `files` of remote data: what the store said of each, and the SHA-256 of what came."""

import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appssl.artifact import sha256_file, write_json
from appssl.errors import NOT_JSON, AppsslError, DataError
from appssl.remote.store import Listed, some

FETCHED, FILES, LOCK = "fetched.json", "files", ".fetched.lock"


@dataclass
class Notes:
    """`fetched.json`."""

    file: Path
    address: str
    complete: bool = False
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    saved: float = 0.0

    def save(self) -> None:
        values = {"format": 1, "address": self.address, "complete": self.complete, "files": self.files}
        write_json(self.file, values)
        self.saved = time.monotonic()


def known(address: str, folder: Path) -> Notes:
    """What was fetched into the folder before; a folder that holds anything else is refused."""
    file = folder / FETCHED
    if not file.exists():
        if any(path.name != LOCK and not path.name.endswith(".part") for path in folder.iterdir()):
            raise AppsslError(f"{folder}: is not empty, and was not fetched from a store. Give a new folder.")
        return Notes(file, address)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        notes = Notes(file, values["address"], bool(values["complete"]), dict(values["files"]))
        sound = all({"size", "store", "sha256"} <= note.keys() for note in notes.files.values())
    except (OSError, *NOT_JSON, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise AppsslError(f"{file}: is damaged. Delete it and all beside it, or give a new folder.")
    if notes.address != address:
        raise AppsslError(f"{folder}: was fetched from {notes.address}, not from {address}. Give another folder.")
    return notes


def in_a_copy(path: Path) -> bool:
    """Whether a file is one of those that were fetched from a store."""
    return any(folder.name == FILES and (folder.parent / FETCHED).exists() for folder in path.parents)


def refuse_lost(notes: Notes, there: Collection[str], selected: Callable[[str], bool], folder: Path) -> None:
    """Files that were fetched before and are not in the store any more: nothing is deleted, nor kept unsaid."""
    gone = [name for name in notes.files if name not in there and selected(name)]
    lost = sorted(name for name in gone if (folder / name).exists())
    if lost:
        raise DataError(
            f"{notes.address}: was fetched before and is not in the store any more: {some(lost)}. "
            f"Nothing was changed. If that is meant, delete the copy in {folder} and run again."
        )
    for name in gone:
        del notes.files[name]


def is_kept(path: Path, note: dict[str, Any] | None, file: Listed) -> bool:
    """Whether the copy is what the store has, and what was fetched."""
    if note is None or (note["size"], note["store"]) != (file.size, file.identity):
        return False
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
        return False
    return sha256_file(path) == note["sha256"]


def is_whole(folder: Path) -> bool:
    """Whether the last mirroring into a folder came to its end."""
    try:
        return json.loads((folder / FETCHED).read_text(encoding="utf-8"))["complete"] is True
    except (OSError, *NOT_JSON, KeyError, TypeError):
        return False
