"""Copies of prepared data on a node's own disk, for stages that read them many times from a disk that all nodes share.

    <APPSSL_STAGING>/<digest of the manifest>/       a whole copy, named so only when it is one
    <APPSSL_STAGING>/<digest of the manifest>.lock   held by all who read the copy; dated when it was last taken
    <APPSSL_STAGING>/.lock                           held while something is made or removed

While a file is copied its SHA-256 is compared with the manifest, so the shared file is read once. A copy that is there
is looked at for missing files and other sizes. What cannot be staged is read in place, and one line says why.
"""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appssl.artifact import MANIFEST, Artifact, sha256_file
from appssl.errors import ArtifactError
from appssl.ops.file_lock import take
from appssl.ops.gigabytes import allowed

PLACE, LIMIT = "APPSSL_STAGING", "APPSSL_STAGING_GB"
_ELSEWHERE = "root.json"  # beside data that are read from slides below data.root: only tables could be staged
_PART = ".part"
_BLOCK = 8 << 20
_PATIENCE_SECONDS = 5.0  # for others who only look whether there is a copy
_held: dict[Path, int] = {}  # locks of the copies that this process reads, until it ends


class _InPlaceError(Exception):
    """Why data are not staged."""


def is_wanted() -> bool:
    return bool(os.environ.get(PLACE))


def staged(artifact: Artifact) -> Artifact:
    """The artifact as it is best read: a copy on the node's own disk, or itself, checked, if that cannot be.

    Raises:
        ArtifactError: if a file of the artifact is not what its manifest says.
        SettingsError: if APPSSL_STAGING_GB is no number of GB.
    """
    limit = 1e9 * allowed(LIMIT, "100")
    try:
        if (artifact.folder / _ELSEWHERE).exists():
            raise _InPlaceError("its slides are read from data.root and are not staged")
        return Artifact(_copy_of(artifact, _place(), limit), artifact.manifest)
    except OSError as error:
        why = f"{error.strerror or error}"
    except _InPlaceError as error:
        why = str(error)
    print(f"{artifact.folder}: read in place, not staged: {why}", file=sys.stderr)
    artifact.check()
    return artifact


def _place() -> Path:
    """The folder; variables in it are those of the node, as a job's own temporary folder often is one."""
    text = os.path.expandvars(os.environ[PLACE])
    if "$" in text:
        raise _InPlaceError(f"{PLACE} is {text}, and there is no such variable on this node")
    place = Path(text).absolute()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def _copy_of(artifact: Artifact, place: Path, limit: float) -> Path:
    """A whole copy, which this process holds until it ends; made if there is none."""
    copy, lock = place / artifact.digest, place / f"{artifact.digest}.lock"
    size = sum(noted["size"] for noted in artifact.manifest["files"].values())
    if _hold_whole(copy, lock, artifact):
        return copy
    with _locked(place / ".lock"):
        if not _hold_whole(copy, lock, artifact):
            with _alone(lock):
                _remove_parts(place)
                if copy.exists():
                    _remove(copy)
                _make_room(place, size, limit)
                print(f"{artifact.folder}: copied to the node's own disk first, {size / 1e9:.2f} GB", file=sys.stderr)
                _copy(artifact, copy)
            if not _hold_whole(copy, lock, artifact):  # nobody else removes: that needs the lock of the folder
                raise _InPlaceError(f"{copy} was changed while it was made")
    return copy


def _hold_whole(copy: Path, lock: Path, artifact: Artifact) -> bool:
    """Takes the lock of readers and keeps it if the copy is whole; waits while it is being made."""
    handle, whole = take(lock, shared=True), False
    assert handle is not None
    try:
        whole = _is_whole(copy, artifact)
    finally:
        if not whole or copy in _held:
            os.close(handle)
        else:
            _held[copy] = handle
    if whole:
        os.utime(lock)
    return whole


def _is_whole(copy: Path, artifact: Artifact) -> bool:
    if not copy.is_dir():
        return False
    if copy.is_symlink() or copy.stat().st_uid != os.getuid():
        raise _InPlaceError(f"{copy} is somebody else's")
    manifest = copy / MANIFEST
    sizes = {name: noted["size"] for name, noted in artifact.manifest["files"].items()}
    return (
        manifest.is_file()
        and sha256_file(manifest) == copy.name
        and all((copy / name).is_file() and (copy / name).stat().st_size == size for name, size in sizes.items())
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = take(path)
    assert handle is not None
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Holds the lock of a copy that nobody reads."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while (handle := take(lock, wait=False)) is None:
        if time.monotonic() > until:
            raise _InPlaceError(f"{lock.with_suffix('')} is damaged, and another process reads it")
        time.sleep(0.05)
    try:
        yield
    finally:
        os.close(handle)


def _remove_parts(place: Path) -> None:
    """Left by processes that were killed: whoever makes or removes holds the lock of the folder, which is ours now."""
    for part in place.glob(f".*{_PART}"):
        shutil.rmtree(part)


def _remove(copy: Path) -> None:
    part = copy.with_name(f".{copy.name}{_PART}")
    copy.rename(part)  # so that half of it is never taken for a copy
    shutil.rmtree(part)


def _make_room(place: Path, needed: int, limit: float) -> None:
    """Removes copies that nobody reads, least recently taken ones first, if that makes room enough."""
    if needed > limit:
        raise _InPlaceError(f"{needed / 1e9:.2f} GB are more than {LIMIT}, {limit / 1e9:g}")
    copies = {copy: _bytes_in(copy) for copy in place.iterdir() if len(copy.name) == 64 and copy.is_dir()}
    missing = max(sum(copies.values()) + needed - limit, needed - shutil.disk_usage(place).free)
    locks: dict[Path, int] = {}
    try:
        for copy in sorted(copies, key=_last_taken):
            if missing <= 0:
                break
            handle = take(copy.with_name(f"{copy.name}.lock"), wait=False)
            if handle is not None:
                locks[copy] = handle
                missing -= copies[copy]
        if missing > 0:
            raise _InPlaceError(
                f"{missing / 1e9:.2f} GB of room are missing in {place} ({LIMIT} is {limit / 1e9:g}); what else lies "
                "there is being read"
            )
        for copy in locks:
            _remove(copy)
    finally:
        for handle in locks.values():
            os.close(handle)


def _bytes_in(copy: Path) -> int:
    return sum(path.stat().st_size for path in copy.rglob("*") if path.is_file())


def _last_taken(copy: Path) -> float:
    lock = copy.with_name(f"{copy.name}.lock")
    return lock.stat().st_mtime if lock.exists() else 0.0


def _copy(artifact: Artifact, copy: Path) -> None:
    """Copies every file, and compares what was read with the manifest.

    Raises:
        ArtifactError: if a file is missing or has other bytes.
    """
    part = copy.with_name(f".{copy.name}{_PART}")
    part.mkdir(mode=0o700)
    try:
        for name, noted in artifact.manifest["files"].items():
            if not (artifact.folder / name).is_file():
                raise _damaged(artifact, f"{name} is missing")
            if _copy_file(artifact.folder / name, part / name) != noted["sha256"]:
                raise _damaged(artifact, f"{name} has changed")
        _copy_file(artifact.folder / MANIFEST, part / MANIFEST)
        part.rename(copy)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _copy_file(path: Path, to: Path) -> str:
    """Copies a file so that it survives a loss of power, and returns the SHA-256 of its bytes."""
    digest = hashlib.sha256()
    to.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as file, to.open("wb") as out:
        while block := file.read(_BLOCK):
            out.write(block)
            digest.update(block)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _damaged(artifact: Artifact, what: str) -> ArtifactError:
    return ArtifactError(f"{artifact.folder}: damaged: {what}. Delete {MANIFEST} there and run again.")
