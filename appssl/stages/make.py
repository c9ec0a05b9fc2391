"""Synthetic data of a domain, as an artifact: the same bytes for the same size and seed."""

import importlib
from pathlib import Path

from appssl.artifact import Artifact, ArtifactWriter
from appssl.errors import SettingsError
from appssl.settings import digest_of, nearest
from appssl.stages.frame import locked

DOMAINS = ("wsi", "wearable", "webnoisy", "recsys")


def make(domain: str, size: str, seed: int, out: Path) -> Artifact:
    """Writes synthetic data of `domain` into `out`; does nothing if it is there already."""
    if domain not in DOMAINS:
        raise SettingsError(f"{domain} is not a domain.{nearest(domain, DOMAINS)}")
    with locked(out):
        digest = digest_of({"domain": domain, "size": size, "seed": seed})
        writer = ArtifactWriter(out, "synthetic", settings_digest=digest, inputs={})
        importlib.import_module(f"appssl.synthetic.{domain}").make(out, size=size, seed=seed)
        for path in sorted(p for p in out.rglob("*") if p.is_file() and not p.name.startswith(".")):
            writer.adopt(path.relative_to(out).as_posix())
        return writer.finish()
