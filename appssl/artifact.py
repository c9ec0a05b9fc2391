"""A stage's result directory: complete or absent, digested, checked on reading.

`ArtifactWriter` writes every file under a temporary name, fsyncs, renames, and writes `manifest.json` last. The
manifest holds kind, files with size and sha256, digests of inputs and settings, and the code version: no clock, no
host, so equal content is equal bytes. Files that are not in the manifest (`config.yaml`, `run.json`, `metrics.jsonl`,
`state/`) may lie beside it.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from appssl.contracts import Account, Quarantined
from appssl.errors import NOT_JSON, AppsslError, ArtifactError
from appssl.version import __version__

MANIFEST = "manifest.json"
FORMAT = 1
_BLOCK = 1 << 20
T = TypeVar("T")


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` only when the block ends well: written aside, fsynced, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise AppsslError(
            f"{path}: cannot be written: {error.strerror or error}. Free space or choose another --out."
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    with written_aside(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Plain(io.RawIOBase):
    """A file reduced to `write`, which remembers why it failed: libraries that write themselves hide that."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.failure = error
            raise


def write_table(file: BinaryIO, frame: Any, suffix: str = ".parquet") -> None:
    """A polars frame as Parquet or CSV into an open file; a full disk is an OSError, as for every other file."""
    plain = _Plain(file)
    try:
        if suffix == ".parquet":
            frame.write_parquet(plain, compression="zstd", statistics=True)
        else:
            frame.write_csv(plain)
    except Exception:
        if plain.failure is not None:
            raise plain.failure from None
        raise


class ArtifactWriter:
    """Collects files of an artifact; `finish` writes the manifest. An old manifest is removed at the start."""

    def __init__(self, folder: Path, kind: str, *, settings_digest: str, inputs: Mapping[str, str]) -> None:
        """
        Args:
            kind: `shard`, `data`, `encoder`, `labels`, `model`, `evaluation`, `report`.
            inputs: name -> digest of every artifact (or raw table) this one was made from.
        """
        self.folder = folder
        self.kind = kind
        self.accounts: dict[str, Account] = {}
        self.quarantine: list[Quarantined] = []
        self._settings_digest = settings_digest
        self._inputs = dict(inputs)
        self._names: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AppsslError(f"{folder}: cannot be made: {error.strerror}. Choose another --out.") from error
        (folder / MANIFEST).unlink(missing_ok=True)
        # Left by a process that was killed; the caller holds the folder's lock.
        for part in list(folder.rglob(".*.part")):
            if part.is_dir():  # of a checkpoint
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)

    def account(self, what: str) -> Account:
        """The account of one kind of thing, made on first use."""
        return self.accounts.setdefault(what, Account())

    def input(self, name: str, digest: str) -> None:
        """Notes the digest of something this artifact was made from."""
        self._inputs[name] = digest

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A file of the artifact, by its path inside the folder."""
        with written_aside(self._claim(name)) as file:
            yield file

    def json(self, name: str, value: Any) -> None:
        write_json(self._claim(name), value)

    def bytes(self, name: str, content: bytes) -> None:
        write_bytes(self._claim(name), content)

    def table(self, name: str, frame: Any) -> None:
        """A polars frame as Parquet."""
        with self.open(name) as file:
            write_table(file, frame)

    def array(self, name: str, values: Any) -> None:
        """A numpy array as .npy, to be memory-mapped."""
        import numpy as np

        with self.open(name) as file:
            np.lib.format.write_array(_Plain(file), np.asanyarray(values), allow_pickle=False)

    def adopt(self, name: str) -> Path:
        """Path for a library that writes files itself; the caller writes it before `finish`."""
        return self._claim(name)

    def _claim(self, name: str) -> Path:
        path = self.folder / name
        if name == MANIFEST or not path.resolve().is_relative_to(self.folder.resolve()):
            raise ArtifactError(f"{name!r} cannot be a file of the artifact in {self.folder}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._names.add(name)
        return path

    def finish(self) -> "Artifact":
        """Writes accounts, quarantine and manifest, and opens the result."""
        if self.accounts:
            for what, account in self.accounts.items():
                account.check(what)
            self.json("account.json", {what: account.plain() for what, account in self.accounts.items()})
            self._write_quarantine()
        files = {
            name: {"size": (self.folder / name).stat().st_size, "sha256": sha256_file(self.folder / name)}
            for name in sorted(self._names)
        }
        manifest = {
            "format": FORMAT,
            "kind": self.kind,
            "version": __version__,
            "settings": self._settings_digest,
            "inputs": self._inputs,
            "files": files,
        }
        write_json(self.folder / MANIFEST, manifest)
        return Artifact.open(self.folder, self.kind, check=False)

    def _write_quarantine(self) -> None:
        import polars as pl

        schema = dict.fromkeys(Quarantined.__dataclass_fields__, pl.String)
        self.table("quarantine.parquet", pl.DataFrame([q.plain() for q in self.quarantine], schema=schema))


@dataclass(frozen=True)
class Artifact:
    """A complete result, opened for reading."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, kind: str | None = None, *, check: bool = True) -> "Artifact":
        """Reads the manifest and, with `check`, compares every file's size and digest.

        Raises:
            ArtifactError: if it is missing, incomplete, damaged, or of another kind.
        """
        path = folder / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactError(
                f"{folder}: no finished result here ({MANIFEST} is missing). Run the stage first."
            ) from None
        except (OSError, *NOT_JSON) as error:
            raise ArtifactError(f"{path}: is damaged ({error}). Delete it and run the same command again.") from None
        if not isinstance(manifest, dict) or not _well_formed(manifest):
            raise ArtifactError(f"{path}: is not a manifest of appssl. Delete it and run the same command again.")
        if manifest["format"] != FORMAT:
            raise ArtifactError(
                f"{path}: format {manifest['format']}, this version reads {FORMAT}. Run the stage again."
            )
        if kind is not None and manifest["kind"] != kind:
            raise ArtifactError(f"{folder}: holds a result of kind {manifest['kind']}, needed is {kind}.")
        artifact = cls(folder, manifest)
        if check:
            artifact.check()
        return artifact

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest: equal for equal content."""
        return sha256_file(self.folder / MANIFEST)

    def check(self) -> None:
        """Raises ArtifactError naming every file that is missing or differs from the manifest."""
        wrong = []
        for name, noted in self.manifest["files"].items():
            path = self.folder / name
            if not path.is_file():
                wrong.append(f"{name} is missing")
            elif path.stat().st_size != noted["size"]:
                wrong.append(f"{name} has {path.stat().st_size} bytes instead of {noted['size']}")
            elif sha256_file(path) != noted["sha256"]:
                wrong.append(f"{name} has changed")
        if wrong:
            raise ArtifactError(f"{self.folder}: damaged: {'; '.join(wrong)}. Delete {MANIFEST} there and run again.")

    def path(self, name: str) -> Path:
        """Path of a file that the manifest lists."""
        if name not in self.manifest["files"]:
            raise ArtifactError(f"{self.folder}: has no file {name}. It holds: {', '.join(self.manifest['files'])}.")
        return self.folder / name

    def has(self, name: str) -> bool:
        return name in self.manifest["files"]

    def json(self, name: str) -> Any:
        return json.loads(self.path(name).read_text(encoding="utf-8"))

    def table(self, name: str) -> Any:
        """A Parquet file as a polars frame."""
        import polars as pl

        return pl.read_parquet(self.path(name), memory_map=False)

    def accounts(self) -> dict[str, Account]:
        return {what: Account(**values) for what, values in self.json("account.json").items()}


def _well_formed(manifest: dict[str, Any]) -> bool:
    files, inputs = manifest.get("files"), manifest.get("inputs")
    return (
        "format" in manifest
        and all(isinstance(manifest.get(key), str) for key in ("kind", "version", "settings"))
        and isinstance(inputs, dict)
        and all(isinstance(digest, str) for digest in inputs.values())
        and isinstance(files, dict)
        and all(isinstance(f, dict) and {"size", "sha256"} <= f.keys() and _is_inside(n) for n, f in files.items())
    )


def _is_inside(name: str) -> bool:
    path = Path(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts
