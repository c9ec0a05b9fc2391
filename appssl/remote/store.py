"""A remote store behind an address, through fsspec: what lies below it, and reading that in blocks.

Keys come from the environment or the files of the store's own package, never from an address. Failures that another
attempt can change are tried again; every other answer becomes an error that says what to do.
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from appssl.addresses import masked
from appssl.errors import DataError, SettingsError

_ATTEMPTS, _WAIT_SECONDS = 4, 0.8  # before the second attempt; four times longer before each one more
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://.", re.IGNORECASE)
_IDENTITIES = (
    "ETag",
    "etag",
    "md5Hash",
    "checksum",
    "generation",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)
_MD5 = re.compile(r"[0-9a-f]{32}")
_NO_KEYS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "TokenRetrievalError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
)
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL|CONNECTION_STRING|SAS")
_OURS = (TypeError, AttributeError, NameError, MemoryError)  # faults of this program or machine, not of the store
T = TypeVar("T")


@dataclass(frozen=True)
class Listed:
    """A file of the store: path below the address, bytes, and what the store says of its content ("" if nothing)."""

    name: str
    size: int
    identity: str
    md5: str | None = None


def is_address(text: str) -> bool:
    return _ADDRESS.match(text) is not None


class Store:
    """What lies below an address.

    Raises:
        SettingsError: if it is no address, holds a password, or needs a package that is not installed.
    """

    def __init__(self, address: str) -> None:
        if masked(address) != address:
            message = "holds a user name, password or token. Give keys in the environment, where the store's package"
            raise SettingsError(f"{masked(address)}: {message} looks for them.")
        if not is_address(address) or "::" in address:
            raise SettingsError(f"{address}: is not the address of a store, such as s3://bucket/folder.")
        self.address = address.rstrip("/")
        self._is_s3 = address.partition("://")[0].lower() in ("s3", "s3a")
        self._fs, self._base = self._opened()

    def _opened(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if self._is_s3:  # three layers of attempts would multiply to minutes
            options["config_kwargs"] = {"retries": {"max_attempts": 0}}
        try:
            fs, base = url_to_fs(self.address, **options)
            if self._is_s3:
                fs.retries = 1
        except ImportError as error:
            hint = "pip install 'appssl[remote]'." if self._is_s3 else "Install that package."
            raise SettingsError(f"{self.address}: needs a package that is missing: {error}. {hint}") from None
        except ValueError as error:
            raise SettingsError(f"{self.address}: {shown(error)}. Is it written right?") from None
        except _OURS:
            raise
        except Exception as error:
            raise self._explained(error, self.address) or self._no_answer(error, "opening it") from None
        return fs, str(base).rstrip("/")

    def files(self) -> list[Listed]:
        """Every file below the address, by name.

        Raises:
            DataError: if there is none, if one is a link, or if the store does not say how large it is.
        """
        has_links = "file" in self._fs.protocol  # object stores would list a folder over a file of its name
        self._asked("listing it", self.address, self._fs.invalidate_cache)
        found = self._asked(
            "listing it", self.address, lambda: self._fs.find(self._base, detail=True, withdirs=has_links)
        )
        links = [info["name"] for info in found.values() if info.get("islink")]
        if links:
            raise DataError(f"{self.address}: holds links, which are not followed: {some(links)}.")
        files = [self._listed(info) for info in found.values() if _is_file(info)]
        if not files:
            raise DataError(f"{self.address}: nothing lies below this address. Correct it.")
        return sorted(files, key=lambda file: file.name)

    def _listed(self, info: Mapping[str, Any]) -> Listed:
        full, size = str(info["name"]), info.get("size")
        if not full.startswith(f"{self._base}/"):
            raise DataError(f"{self.address}: is a file. Give the address of the folder that it lies in.")
        if not isinstance(size, int):
            raise DataError(f"{full}: the store does not say how large it is; fetch it another way.")
        known = next((key for key in _IDENTITIES if info.get(key)), None)
        identity = str(info[known]).strip('"') if known else ""
        is_md5 = self._is_s3 and known == "ETag" and _MD5.fullmatch(identity) is not None
        return Listed(full[len(self._base) + 1 :], size, identity, identity if is_md5 else None)

    def now(self, name: str) -> Listed:
        """A file as the store describes it at this moment."""
        full = f"{self._base}/{name}"
        return self._listed(self._asked(f"asking for {name}", full, lambda: self._fs.info(full)))

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file."""
        full = f"{self._base}/{name}"

        def block() -> bytes:
            content: bytes = self._fs.cat_file(full, start=start, end=stop)
            if len(content) != stop - start:
                raise OSError(f"{len(content)} bytes came instead of {stop - start}")
            return content

        return self._asked(f"reading {name}", full, block)

    def has_other_etag(self, name: str) -> bool:
        """Whether S3 says that the ETag of an object is not its MD5: it is encrypted with a key of KMS or the user."""
        bucket, _, key = f"{self._base}/{name}".partition("/")
        call = self._fs.call_s3
        answer = self._asked(f"asking for {name}", name, lambda: call("head_object", Bucket=bucket, Key=key))
        return str(answer.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in answer

    def _asked(self, doing: str, what: str, call: Callable[[], T]) -> T:
        problem: Exception | None = None
        for attempt in range(_ATTEMPTS):
            time.sleep(_WAIT_SECONDS * 4 ** (attempt - 1) if attempt else 0)
            try:
                return call()
            except _OURS:
                raise
            except Exception as error:  # the package of each store has its own kinds
                if explained := self._explained(error, what):
                    raise explained from None
                problem = error
        assert problem is not None
        raise self._no_answer(problem, doing)

    def _explained(self, error: Exception, what: str) -> DataError | None:
        """An answer that another attempt does not change."""
        if isinstance(error, FileNotFoundError):
            return DataError(f"{what}: the store has no such bucket, folder or file ({shown(error)}).")
        if type(error).__name__ in _NO_KEYS:
            keys = "for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            return DataError(
                f"{self.address}: no credentials were found. Put them in the environment ({keys}), or where the "
                "store's package looks for them; for a public bucket of S3 set FSSPEC_S3_ANON=true."
            )
        if isinstance(error, PermissionError):
            return DataError(f"{what}: access is denied ({shown(error)}). Check the keys, and what they may read.")
        return None

    def _no_answer(self, error: Exception, doing: str) -> DataError:
        return DataError(
            f"{self.address}: {doing}: no usable answer in {_ATTEMPTS} attempts ({shown(error)}). What was fetched is "
            "kept; the same command goes on."
        )


def shown(error: Exception) -> str:
    """An error of a store as a message may show it: one line, no secret of an address or of the environment."""
    text = masked(" ".join((str(error) or type(error).__name__).split()))
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name.upper()) and len(value) > 5:
            text = text.replace(value, "***")
    return text[:300].rstrip(".")


def _is_file(info: Mapping[str, Any]) -> bool:
    """Names that end in / are folders that a console made in a store that knows none."""
    return info.get("type") == "file" and not (str(info["name"]).endswith("/") and not info.get("size"))


def some(names: list[str]) -> str:
    """The first names of many, as a message shows them."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(name)[:300] for name in sorted(names)[:5]) + more
