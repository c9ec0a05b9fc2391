"""Copies of remote data in the results folder, which `appssl run` plans with where data.root is an address."""

import hashlib
import sys
from pathlib import Path

from appssl.errors import DataError
from appssl.ops.gigabytes import allowed
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
    folder, limit = copy_folder(results, address), allowed(LIMIT, "50")
    print(f"{address}: mirrored into {folder} before the run", file=sys.stderr)
    try:
        mirror(address, folder, max_gb=limit)
    except DataError as error:
        raise DataError(
            f"{error} For data of more than {limit:g} GB ({LIMIT}), or to work without the store: 'appssl data mirror "
            f"{address} FOLDER' (as a job of its own), then --set data.root=FOLDER/files."
        ) from None
    return folder
