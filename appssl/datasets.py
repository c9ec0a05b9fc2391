"""Public data sets: where they are, under which terms, and their checksums; downloads that resume and are verified.

A set is listed only if its checksum is known for certain: computed from a copy of the file, or published alike by
several that fetched it. Nothing is unpacked, and nothing is fetched unless asked.
"""

import hashlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from appssl.errors import AppsslError, DataError, SettingsError
from appssl.settings import nearest

_BLOCK = 1 << 16
_ATTEMPTS = 4
_SLOWEST = 1024  # bytes per second; below it a server is as good as silent
_AGAIN = (408, 416, 425, 429)  # answers below 500 that another attempt can change


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
    PublicData(
        name="flower-photos",
        domain="webnoisy",
        about="3670 photos found by five search words, a folder per word, real web noise (tar archive)",
        licence="CC BY 2.0 per photo; LICENSE.txt inside names the photographers",
        url="https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
        size=228_813_984,
        sha256="4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
    ),
    PublicData(
        name="ml-latest-small",
        domain="recsys",
        about="MovieLens, 100836 ratings of 9724 films by 610 users, 1996 to 2018, with tags (zip archive of CSV)",
        licence="GroupLens terms: research, no commercial use without permission",
        url="https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
        size=978_202,
        sha256="696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
    ),
    PublicData(
        name="ml-1m",
        domain="recsys",
        about="MovieLens, 1000209 ratings of 3706 films by 6040 users, 2000 to 2003 (zip archive)",
        licence="GroupLens terms: research, no commercial use without permission, no redistribution",
        url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        size=5_917_549,
        sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
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


def get(
    entry: PublicData,
    folder: Path,
    *,
    timeout_seconds: float = 30.0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Fetches a file into `folder`; goes on where an earlier attempt stopped; checks size and SHA-256.

    Args:
        timeout_seconds: without an answer, or with less than a kilobyte a second, after which an attempt is given up.
        progress: is told bytes done and bytes in all.

    Raises:
        DataError: if the server cannot be reached, redirects elsewhere, or sends other bytes.
        AppsslError: if the folder cannot be written.
    """
    final, part = folder / entry.file, folder / f".{entry.file}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.open("ab").close()
    except OSError as error:
        raise AppsslError(f"{folder}: cannot be written: {error.strerror}. Choose another --out.") from error
    if final.exists() and _sha256(final) == entry.sha256:
        part.unlink()
        return final
    _attempts(entry, part, timeout_seconds, progress or (lambda done, size: None))
    if _sha256(part) != entry.sha256:
        part.unlink()
        raise DataError(f"{entry.url}: the bytes differ from the known SHA-256 {entry.sha256[:12]}. Nothing was kept.")
    os.replace(part, final)
    return final


def _attempts(entry: PublicData, part: Path, timeout: float, progress: Callable[[int, int], None]) -> None:
    problem = ""
    for attempt in range(_ATTEMPTS):
        try:
            _fetch(entry, part, timeout, progress)
            return
        except (OSError, HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in _AGAIN:
                raise DataError(f"{entry.url}: the server answers {error.code} {error.reason}.") from None
            problem = str(error) or type(error).__name__
            time.sleep(0.2 * 2**attempt)
    raise DataError(f"{entry.url}: {problem} ({_ATTEMPTS} attempts). What came is kept; the same command goes on.")


def _fetch(entry: PublicData, part: Path, timeout: float, progress: Callable[[int, int], None]) -> None:
    done = part.stat().st_size
    if done >= entry.size:
        return
    request = urllib.request.Request(entry.url, headers={"Range": f"bytes={done}-"} if done else {})
    with _opener(entry).open(request, timeout=timeout) as answer:
        resumed = answer.status == 206 and done > 0
        size = done if resumed else 0
        with part.open("ab" if resumed else "wb") as file:
            since, came = time.monotonic(), 0
            while block := answer.read1(_BLOCK):
                size += len(block)
                if size > entry.size:
                    part.unlink()
                    raise DataError(f"{entry.url}: sends more than the known {entry.size} bytes. Nothing was kept.")
                file.write(block)
                progress(size, entry.size)
                came += len(block)
                if time.monotonic() - since > timeout:
                    if came < _SLOWEST * timeout:
                        raise OSError(f"only {came} bytes in {timeout:g} seconds")
                    since, came = time.monotonic(), 0
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
