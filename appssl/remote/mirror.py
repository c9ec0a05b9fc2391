"""Copies of remote data: what lies below an address of a store is mirrored into a folder, checked, and gone on with.

The files lie in `files`, and nothing else does: a source may read a folder whole. `fetched.json` beside it says of
every file what the store said of it and the SHA-256 of what came. Stages read the copy as they read any folder;
nothing of a store is in a plan or result.
"""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Event
from typing import Any

from appssl.artifact import written_aside
from appssl.errors import AppsslError, DataError
from appssl.ops.file_lock import take
from appssl.ops.paths import inside
from appssl.remote.notes import FILES, LOCK, Notes, is_kept, known, refuse_lost
from appssl.remote.store import Listed, Store, some

_BLOCK = 8 << 20
_SAVE_SECONDS = 5.0  # what a killed process fetched since its last note is fetched once more
_LONGEST = 230  # bytes of a part of a path; file systems take 255, and a file in the making has a longer name
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Mirrored:
    """A complete copy. `root`: the folder to give as data.root."""

    root: Path
    files: int
    bytes: int
    fetched: int
    kept: int


class _ChangedError(Exception):
    """What came is not what was listed."""


class _StoppedError(Exception):
    """Another file failed."""


def mirror(
    address: str,
    folder: Path,
    *,
    match: Sequence[str] = (),
    max_gb: float | None = None,
    jobs: int = 4,
    told: Told = lambda done, size: None,
) -> Mirrored:
    """Makes `folder/files` hold what lies below an address; fetches what is missing, or changed here or in the store.

    Args:
        match: patterns of paths below the address, such as `*.svs`; a file is taken if one fits. None: all.
        max_gb: 10^9 bytes; more is refused before anything is fetched.
        told: is told bytes done and bytes to fetch.

    Raises:
        DataError: if the store does not answer, denies access, holds names that leave the folder, has lost a file that
            was fetched before, or sends other bytes than it lists.
        AppsslError: if the folder cannot be written, has too little space, or holds something else.
    """
    store, root = Store(address), folder / FILES
    with _held(folder):
        notes = known(store.address, folder)
        listed = _selected(store, match)
        _refuse_names(listed, root, store.address)
        refuse_lost(notes, {file.name for file in listed}, lambda name: _fits(name, match), root)
        total = sum(file.size for file in listed)
        if max_gb is not None and total > max_gb * 1e9:
            raise DataError(f"{address}: {len(listed)} files of {total / 1e9:.2f} GB are more than {max_gb:g} GB.")
        with ThreadPoolExecutor(jobs) as pool:
            kept = list(pool.map(lambda file: is_kept(root / file.name, notes.files.get(file.name), file), listed))
        wanted = [file for file, is_there in zip(listed, kept, strict=True) if not is_there]
        _refuse_full_disk(sum(file.size for file in wanted), folder)
        notes.complete = notes.complete and not wanted
        notes.save()
        root.mkdir(exist_ok=True)
        _remove_parts(root, {file.name for file in listed})
        _fetch_all(store, root, wanted, notes, jobs, told)
        notes.complete = True
        notes.save()
    return Mirrored(root, len(listed), total, len(wanted), len(listed) - len(wanted))


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """One process at a time; what the disk says becomes an error of one sentence."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = take(folder / LOCK, wait=False)
        if handle is None:
            print(f"{folder}: another process fetches into it; waiting", file=sys.stderr)
            handle = take(folder / LOCK)
        assert handle is not None
        try:
            yield
        finally:
            os.close(handle)
    except OSError as error:
        raise AppsslError(f"{folder}: cannot be written: {error.strerror or error}. Choose another folder.") from None


def _selected(store: Store, match: Sequence[str]) -> list[Listed]:
    files = [file for file in store.files() if _fits(file.name, match)]
    if not files:
        raise DataError(f"{store.address}: no file below it fits {' or '.join(match)}. '*' stands for any characters.")
    return files


def _fits(name: str, match: Sequence[str]) -> bool:
    return not match or any(fnmatchcase(name, pattern) for pattern in match)


def _refuse_names(listed: Sequence[Listed], folder: Path, address: str) -> None:
    """Names from a store are data: none may leave the folder, and each must be a file of its own."""
    names = {file.name for file in listed}
    wrong = [name for name in names if not _is_plain(name) or _above(name) & names]
    if not wrong:
        for name in names:
            inside(folder, name)  # also where a link was put into the folder
        return
    raise DataError(f"{address}: holds names that cannot be files of a folder: {some(wrong)}. Nothing was fetched.")


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    try:
        short = all(len(part.encode()) <= _LONGEST for part in parts)
    except UnicodeEncodeError:
        return False
    return short and name.isprintable() and not any(part in ("", ".", "..") for part in parts)


def _above(name: str) -> set[str]:
    """Folders that a file lies in: a store may have a file of that name too."""
    parts = name.split("/")
    return {"/".join(parts[:length]) for length in range(1, len(parts))}


def _refuse_full_disk(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise AppsslError(
            f"{folder}: {needed / 1e9:.2f} GB are to be fetched, {free / 1e9:.2f} GB are free. Give another folder."
        )


def _remove_parts(folder: Path, names: set[str]) -> None:
    """Left by a process that was killed."""
    for part in folder.rglob(".*.part"):
        if part.relative_to(folder).as_posix() not in names:
            part.unlink(missing_ok=True)


def _fetch_all(store: Store, folder: Path, wanted: Sequence[Listed], notes: Notes, jobs: int, told: Told) -> None:
    """Files that came whole stay noted when another one fails."""
    size, done, stop = sum(file.size for file in wanted), 0, Event()

    def note(name: str, future: Future[dict[str, Any]]) -> None:
        notes.files[name] = future.result()

    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(_fetch, store, file, folder, stop): file for file in wanted}
        try:
            for future in as_completed(running):
                note(running[future].name, future)
                done += running[future].size
                told(done, size)
                if time.monotonic() - notes.saved > _SAVE_SECONDS:
                    notes.save()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for future, file in running.items():
                if not future.cancelled() and future.exception() is None:
                    note(file.name, future)
            with suppress(AppsslError):  # a full disk must not hide the error that is being reported
                notes.save()
            raise


def _fetch(store: Store, file: Listed, folder: Path, stop: Event) -> dict[str, Any]:
    """Fetches a file, a second time if it changed meanwhile; its note."""
    inside(folder, file.name)
    for wanted in (file, None):
        now = wanted or store.now(file.name)
        try:
            return {
                "size": now.size,
                "store": now.identity,
                "sha256": _fetch_once(store, now, folder / file.name, stop),
            }
        except _ChangedError as error:
            problem = error
    raise DataError(f"{store.address}/{file.name}: {problem}, twice. Is it being written? Nothing of it was kept.")


def _fetch_once(store: Store, file: Listed, path: Path, stop: Event) -> str:
    """Writes a file and returns its SHA-256.

    Raises:
        _ChangedError: if the bytes are not those of the ETag, or the store describes the file otherwise at the end.
    """
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with written_aside(path) as out:
        for start in range(0, file.size, _BLOCK):
            if stop.is_set():
                raise _StoppedError
            block = store.read(file.name, start, min(start + _BLOCK, file.size))
            out.write(block)
            sha256.update(block)
            md5.update(block)
        if file.md5 is not None and file.md5 != md5.hexdigest() and not store.has_other_etag(file.name):
            raise _ChangedError("the bytes differ from their MD5 in the store")
        if file.size > _BLOCK and store.now(file.name) != file:
            raise _ChangedError("it changed in the store while it was fetched")
    return sha256.hexdigest()
