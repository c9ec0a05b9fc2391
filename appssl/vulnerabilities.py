"""Packages beneath appssl, and from which version on their published vulnerabilities are repaired.

Only some that matter for what appssl does with them: files and addresses of others, and the MLflow server. The list is
kept by hand; a database of vulnerabilities knows more.
"""

from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

from packaging.version import Version


class Repaired(NamedTuple):
    """`since` is the first version without it."""

    package: str
    since: str
    advisory: str
    what: str


REPAIRED = (
    Repaired("aiohttp", "3.12.14", "CVE-2025-53643", "requests can be smuggled"),
    Repaired("cryptography", "44.0.1", "CVE-2024-12797", "its OpenSSL accepts wrong peers"),
    Repaired("flask-cors", "6.0.0", "CVE-2024-6866", "paths are compared without case"),
    Repaired("fonttools", "4.60.2", "CVE-2025-66034", "files are written anywhere"),
    Repaired("gunicorn", "22.0.0", "CVE-2024-6827", "requests can be smuggled"),
    Repaired("h11", "0.16.0", "CVE-2025-43859", "requests can be smuggled"),
    Repaired("jinja2", "3.1.6", "CVE-2025-27516", "templates escape their sandbox"),
    Repaired("mlflow", "3.1.0", "CVE-2025-52967", "the server can be made to ask other servers"),
    Repaired("opencv-python-headless", "4.8.1.78", "CVE-2023-4863", "WebP images overflow the heap"),
    Repaired("pillow", "11.3.0", "CVE-2025-48379", "images overflow the heap"),
    Repaired("pyarrow", "14.0.1", "CVE-2023-47248", "data files run programs"),
    Repaired("requests", "2.32.4", "CVE-2024-47081", "passwords of .netrc go to other hosts"),
    Repaired("scikit-learn", "1.5.0", "CVE-2024-5206", "training text is stored in models"),
    Repaired("starlette", "0.47.2", "CVE-2025-54121", "large forms block the server"),
    Repaired("torch", "2.6.0", "CVE-2025-32434", "weights run programs in spite of weights_only"),
    Repaired("urllib3", "2.5.0", "CVE-2025-50181", "redirects cannot be switched off"),
    Repaired("werkzeug", "3.0.6", "CVE-2024-49767", "forms use up the memory"),
)


def installed_with_vulnerabilities() -> Iterator[tuple[Repaired, str]]:
    """What is installed in a version before the repair, and that version; what is not installed is left out."""
    for repaired in REPAIRED:
        try:
            version = metadata.version(repaired.package)
        except metadata.PackageNotFoundError:
            continue
        if Version(version) < Version(repaired.since):
            yield repaired, version
