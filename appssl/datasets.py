"""Public data sets: where they are, under which terms, and their checksums; downloads that resume and are verified.

Only sets whose checksum was verified are listed. Nothing is unpacked, and nothing is fetched unless asked.
"""

import hashlib
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from appssl.errors import DataError, SettingsError
from appssl.settings import nearest

_BLOCK = 1 << 16
_ATTEMPTS = 4


@dataclass(frozen=True)
class PublicData:
    """One file to fetch. `hosts`: where redirects may lead beside the host of `url`."""

    name: str
    domain: str
    about: str
    licence: str
    url: str
    size: int
    sha256: str
    hosts: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return Path(urlsplit(self.url).path).name


PUBLIC = (
    PublicData(
        name="cmu-1-small-region",
        domain="wsi",
        about="2220 x 2967 px region of an H&E slide, Aperio SVS, 0.499 um/px (OpenSlide test data)",
        licence="CC0 1.0",
        url="https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/CMU-1-Small-Region.svs",
        size=1_938_955,
        sha256="ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7",
    ),
)


def find(name: str) -> PublicData:
    """
    Raises:
        SettingsError: with the nearest name.
    """
    known = {entry.name: entry for entry in PUBLIC}
    if name not in known:
        raise SettingsError(f"{name!r} is not a public data set known here.{nearest(name, known)} 'appssl data list'.")
    return known[name]


def get(entry: PublicData, folder: Path, *, timeout_seconds: float = 30.0) -> Path:
    """Fetches a file into `folder`; goes on where an earlier attempt stopped; checks size and SHA-256.

    Raises:
        DataError: if the server cannot be reached, redirects elsewhere, or sends other bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, part = folder / entry.file, folder / f".{entry.file}.part"
    if final.exists() and _sha256(final) == entry.sha256:
        return final
    problem = ""
    for attempt in range(_ATTEMPTS):
        try:
            _fetch(entry, part, timeout_seconds)
            break
        except (OSError, HTTPException) as error:
            problem = str(error) or type(error).__name__
            time.sleep(0.2 * 2**attempt)
    else:
        raise DataError(f"{entry.url}: {problem} ({_ATTEMPTS} attempts). What came is kept; the same command goes on.")
    if _sha256(part) != entry.sha256:
        part.unlink()
        raise DataError(f"{entry.url}: the bytes differ from the known SHA-256 {entry.sha256[:12]}. Nothing was kept.")
    os.replace(part, final)
    return final


def _fetch(entry: PublicData, part: Path, timeout: float) -> None:
    done = part.stat().st_size if part.exists() else 0
    if done >= entry.size:
        return
    request = urllib.request.Request(entry.url, headers={"Range": f"bytes={done}-"} if done else {})
    with _opener(entry).open(request, timeout=timeout) as answer:
        resumed = answer.status == 206 and done > 0
        with part.open("ab" if resumed else "wb") as file:
            size = done if resumed else 0
            while block := answer.read(_BLOCK):
                size += len(block)
                if size > entry.size:
                    raise DataError(f"{entry.url}: sends more than the known {entry.size} bytes. Nothing was kept.")
                file.write(block)
    if size < entry.size:
        raise OSError(f"the connection ended after {size} of {entry.size} bytes")


def _opener(entry: PublicData) -> urllib.request.OpenerDirector:
    allowed = {urlsplit(entry.url).netloc, *entry.hosts}

    class SameHost(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            parts = urlsplit(newurl)
            if parts.netloc not in allowed or parts.scheme not in ("http", "https"):
                raise DataError(
                    f"{entry.url}: redirects to {parts.netloc or newurl}, no known mirror. Nothing was kept."
                )
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    return urllib.request.build_opener(SameHost)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
