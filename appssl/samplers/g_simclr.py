"""G-SimCLR: batches with as few images as possible that look alike, so that negatives are not of the same kind.

Before training, a denoising autoencoder is trained on the training images (`ops/denoising_autoencoder.py`), and its
pooled codes are clustered by k-means into as many clusters as a batch has images. With r_i the rank of image i among
those of its cluster c_i, images are sorted by (r_i, c_i) and cut into batches: {index, views, block}.

An example is a whole batch of `images` images, so set `fit.batch_size: 1`; the last incomplete one is left out. Images
of one cluster meet only once the smallest clusters are used up; `collisions` counts their pairs in a batch:

    V = sum_k n_k (n_k - 1) / 2

Source: Chakraborty et al., G-SimCLR, ICDM workshops 2020, arXiv 2009.12007. Official code: ariG23498/G-SimCLR,
Apache-2.0. Deviations: ranks are new in every epoch (`reshuffle: false` keeps those of the data's order for ever, as
published), and batches come in random order. `compose: deal` is not of the paper: the images of all full batches are
sorted by cluster and dealt out to the batches in turn, so that pairs are spread evenly, and there are none if no
cluster is larger than the number of batches. Inputs of the autoencoder are scaled to 0..1 by the smallest and largest
value of each channel. On several devices each has batches of its own, and negatives of other devices are not chosen.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from appssl.contracts import Batch, PreparedData, Views
from appssl.errors import DataError
from appssl.ops.denoising_autoencoder import encode_all, fit_autoencoder
from appssl.ops.k_means import k_means
from appssl.ops.random import rng_for
from appssl.ops.rows import batch_of_views, training_rows
from appssl.settings import Settings

_ORDER = 2**63  # stream of the order of images; above the numbers of rows, below that of an epoch's order
_SMALLEST_RANGE = 1e-6  # of the values of a channel: one that never varies becomes 0
_BLOCK = 1024  # samples read at once


class Config(Settings):
    name: Literal["g_simclr"] = "g_simclr"
    images: int = Field(64, ge=2, description="images of a batch, B")
    num_clusters: int | None = Field(None, ge=2, description="clusters, K; null: as many as images of a batch")
    compose: Literal["ranks", "deal"] = Field("ranks", description="ranks: as published; deal: pairs spread evenly")
    reshuffle: bool = Field(True, description="new ranks in every epoch; false: the same batches in all epochs")
    widths: tuple[PositiveInt, ...] = Field(
        (32, 64, 128), min_length=1, description="channels of the autoencoder's blocks; the last is the code's width"
    )
    noise_std: float = Field(0.01, ge=0, description="of the noise that is removed, sigma, for values in 0..1")
    epochs: int = Field(20, ge=1, description="most passes of the autoencoder over the images")
    patience: int = Field(2, ge=1, description="passes without a lower held-out loss after which it ends")
    holdout: float = Field(0.1, gt=0, lt=1, description="share of images held out for that")
    autoencoder_batch: int = Field(64, ge=2, description="images of a step of the autoencoder")
    lr: float = Field(1e-3, gt=0, description="learning rate of the autoencoder (Adam)")
    threads: int = Field(2, ge=1, le=256, description="CPU threads of the autoencoder")
    seed: int = Field(0, ge=0, description="of autoencoder and clusters; not the seed of the run")


class GuidedBatches:
    """Batches over rows (N,) int64 with clusters (N,) int64; an example is a batch.

    Attributes:
        clusters: the pseudo-labels, in the order of `rows`.
    """

    def __init__(
        self, config: Config, data: PreparedData, views: Views, rows: np.ndarray, clusters: np.ndarray
    ) -> None:
        self.config, self.data, self.views, self.rows, self.clusters = config, data, views, rows, clusters
        self.facts: Mapping[str, Any] = {}
        self._batches = lru_cache(maxsize=2)(self._batches_of_epoch)

    def __len__(self) -> int:
        return len(self.rows) // self.config.images

    def batch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Batch:
        places = self._batches(seed, epoch if self.config.reshuffle else None)[indices]
        made = batch_of_views(self.data, self.rows[places.reshape(-1)], self.views, seed=seed, epoch=epoch)
        return {**made, "block": torch.arange(len(indices)).repeat_interleave(self.config.images)}

    def collisions(self, *, seed: int, epoch: int) -> np.ndarray:
        """V (len,) int64 of every batch of an epoch."""
        places = self._batches(seed, epoch if self.config.reshuffle else None)
        return np.array([collisions(self.clusters[batch]) for batch in places], dtype=np.int64)

    def _batches_of_epoch(self, seed: int, epoch: int | None) -> np.ndarray:
        """(len, images) int64 positions in `rows`."""
        order = np.arange(len(self.rows))
        if epoch is not None:
            order = rng_for(seed, epoch, _ORDER).permutation(order)
        compose = guided_batches if self.config.compose == "ranks" else dealt_batches
        return order[compose(self.clusters[order], self.config.images)]

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("config", "data", "views", "rows", "clusters")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # caches do not travel to workers


def build(config: Config, data: PreparedData, views: Views) -> GuidedBatches:
    """
    Raises:
        DataError: if there are fewer training samples than a batch or the clusters need, or they are no images.
    """
    rows = training_rows(data.samples)
    count = config.num_clusters or config.images
    if len(rows) < max(count, config.images):
        raise DataError(
            f"sampler g_simclr: {len(rows)} training samples for batches of {config.images} and {count} clusters. Set "
            "sampler.images and sampler.num_clusters lower, or give more data."
        )
    inputs = _Scaled(data, views, rows)
    fitted = fit_autoencoder(
        inputs,
        len(rows),
        widths=config.widths,
        sigma=config.noise_std,
        epochs=config.epochs,
        patience=config.patience,
        batch_size=config.autoencoder_batch,
        lr=config.lr,
        holdout=config.holdout,
        threads=config.threads,
        seed=config.seed,
    )
    codes = encode_all(fitted.model, inputs, len(rows), threads=config.threads)
    return GuidedBatches(config, data, views, rows, k_means(codes, count, seed=config.seed).labels)


def guided_batches(clusters: np.ndarray, size: int) -> np.ndarray:
    """Positions (N // size, size) int64 in order of (rank within the cluster, cluster), cut into batches."""
    by_cluster = np.argsort(clusters, kind="stable")
    starts = np.searchsorted(clusters[by_cluster], clusters[by_cluster])
    rank = np.empty(len(clusters), np.int64)
    rank[by_cluster] = np.arange(len(clusters)) - starts
    order = np.lexsort((clusters, rank))
    return order[: len(order) // size * size].reshape(-1, size)


def dealt_batches(clusters: np.ndarray, size: int) -> np.ndarray:
    """Positions (M, size) int64, M = N // size: the first M * size, sorted by cluster, item t in batch t mod M."""
    num_batches = len(clusters) // size
    order = np.argsort(clusters[: num_batches * size], kind="stable")
    return order.reshape(size, num_batches).T


def collisions(clusters: np.ndarray) -> int:
    """V of one batch: pairs of images of one cluster; clusters (B,) int64."""
    counts = np.bincount(clusters)
    return int((counts * (counts - 1) // 2).sum())


class _Scaled:
    """Plain views of rows, each channel scaled to 0..1 by its smallest and largest value."""

    def __init__(self, data: PreparedData, views: Views, rows: np.ndarray) -> None:
        self.data, self.views, self.rows = data, views, rows
        ends = [self._ends(self._plain(rows[start : start + _BLOCK])) for start in range(0, len(rows), _BLOCK)]
        self.low = torch.stack([low for low, _ in ends]).amin(0)
        high = torch.stack([high for _, high in ends]).amax(0)
        self.range = (high - self.low).clamp(min=_SMALLEST_RANGE)

    def __call__(self, positions: np.ndarray) -> Tensor:
        return (self._plain(self.rows[positions]) - self.low) / self.range

    def _plain(self, rows: np.ndarray) -> Tensor:
        made = torch.stack([self.views.plain(self.data.read(int(row))) for row in rows]).float()
        if made.ndim != 4:
            raise DataError(f"sampler g_simclr needs images (C, H, W); these views have shape {tuple(made.shape[1:])}.")
        return made

    @staticmethod
    def _ends(images: Tensor) -> tuple[Tensor, Tensor]:
        return images.amin((0, 2, 3))[:, None, None], images.amax((0, 2, 3))[:, None, None]
