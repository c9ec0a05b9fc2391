"""What the web-noisy domain does with many images, beside the limit of each: CPU time, one thread, one run.

    OMP_NUM_THREADS=1 python benchmarks/webnoisy.py [mixture|hashes|preparation|searches]

- near-duplicates by cosine and a coreset of 100,000 x 512 features, beside the matrix products they cannot do without
- near-duplicates by perceptual hash of 1,000,000 images
- a mixture of two Gaussians over 1,000,000 losses
- preparing small JPEG files, beside decoding alone (OpenCV, and simplejpeg where it is installed)
"""

import io
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import polars as pl
from PIL import Image

from appssl.artifact import ArtifactWriter
from appssl.ops.coreset import centroids, search, unit
from appssl.ops.images.decoding import decode
from appssl.ops.images.perceptual_hash import near_pairs
from appssl.ops.images.semantic_duplicates import BLOCK, near_duplicates
from appssl.ops.mixture import fit_two_gaussians
from appssl.sources import webnoisy

ROWS, WIDTH, CENTERS = 100_000, 512, 100


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def searches() -> None:
    features = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)

    def products() -> None:  # each pair once, in blocks, nothing kept
        for start in range(0, ROWS, BLOCK):
            for other in range(start, ROWS, BLOCK):
                features[start : start + BLOCK] @ features[other : other + BLOCK].T

    limit = seconds(products)
    found = seconds(lambda: near_duplicates(features, np.zeros(ROWS, int), threshold=0.97))
    print(f"near-duplicates by cosine: {found:.1f} s, {limit / found:.2f} of the matrix product's rate")
    open_set, targets = unit(features), centroids(features[:2000], CENTERS)
    limit = seconds(lambda: targets @ open_set.T)
    found = seconds(lambda: search(targets, open_set, budget=5000, stop_ratio=0.0))
    print(f"coreset of 5,000: {found:.2f} s; one product of {CENTERS} centroids with all features {limit:.2f} s")
    print(f"peak memory of this process: {peak_gib():.2f} GiB, {features.nbytes / 2**30:.2f} of it the features")


def hashes() -> None:
    rng = np.random.default_rng(0)
    values = np.unique(rng.integers(0, 2**64, 1_000_000, dtype=np.uint64))
    print(f"near-duplicates by hash, 1,000,000, up to 4 bits: {seconds(lambda: near_pairs(values, distance=4)):.1f} s")


def mixture() -> None:
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.gamma(2.0, 0.05, 700_000), rng.normal(0.7, 0.12, 300_000).clip(0)])
    print(f"mixture of 1,000,000 losses: {seconds(lambda: fit_two_gaussians(losses / losses.max())):.2f} s")


def preparation(count: int = 100_000) -> None:
    encoded = []
    for number in range(256):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=88)
        encoded.append(stream.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        image = [encoded[n % 256] for n in range(count)]
        label = [f"class {n % 10}" for n in range(count)]
        pl.DataFrame({"id": range(count), "image": image, "label": label}).write_parquet(root / "crawl.parquet")
        source = webnoisy.build(
            webnoisy.Config(table="crawl.parquet", size=32, keep_duplicates=True, split={"test": 0})
        )

        def prepare() -> None:
            shard = ArtifactWriter(root / "shard", "shard", settings_digest="", inputs={})
            source.prepare(root, 0, 1, shard)
            out = ArtifactWriter(root / "data", "data", settings_digest="", inputs={})
            source.merge(root, [shard.finish()], out)
            out.finish()

        taken = seconds(prepare)
    some = [encoded[n % 256] for n in range(20_000)]
    rates = {
        "appssl's decode (checked, RGB)": lambda: [decode(content, max_pixels=10**8) for content in some],
        "OpenCV": lambda: [cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) for content in some],
    }
    if find_spec("simplejpeg"):
        import simplejpeg

        rates["simplejpeg"] = lambda: [simplejpeg.decode_jpeg(content) for content in some]
    decoded = ", ".join(f"{name} {len(some) / seconds(work):,.0f}" for name, work in rates.items())
    print(f"preparing {count:,} images of 64 px: {count / taken:,.0f} images/s a core; decoding, images/s: {decoded}")


if __name__ == "__main__":
    cv2.setNumThreads(1)
    parts = {"mixture": mixture, "hashes": hashes, "preparation": preparation, "searches": searches}
    for name in sys.argv[1:] or parts:
        parts[name]()
