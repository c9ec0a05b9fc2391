"""Copies of remote data in the results folder, which `appssl run` plans with where data.root is an address."""

import hashlib
import os
import sys
from pathlib import Path

from appssl.errors import DataError, SettingsError
from appssl.remote.mirror import mirror

LIMIT = "APPSSL_REMOTE_MAX_GB"


def copy_folder(results: Path, address: str) -> Path:
    """Where `appssl run` keeps its copy of an address, in `files`."""
    return results / "remote" / hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:12]


def mirror_for_run(address: str, results: Path) -> Path:
    """The copy that `appssl run` plans with, brought up to date.

    Raises:
        DataError: also if it is larger than APPSSL_REMOTE_MAX_GB.
    """
    folder, limit = copy_folder(results, address), _limit()
    print(f"{address}: mirrored into {folder} before the run", file=sys.stderr)
    try:
        mirror(address, folder, max_gb=limit)
    except DataError as error:
        raise DataError(
            f"{error} For data of more than {limit:g} GB ({LIMIT}), or to work without the store: 'appssl data mirror "
            f"{address} FOLDER' (as a job of its own), then --set data.root=FOLDER/files."
        ) from None
    return folder


def _limit() -> float:
    text = os.environ.get(LIMIT, "50")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0:
        raise SettingsError(f"{LIMIT} is {text!r}; give a number of GB above 0, such as 200.")
    return value
