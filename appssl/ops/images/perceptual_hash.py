"""64 bits per image that stay the same when it is scaled, compressed again or recoloured a little, and their search.

The image is shrunk to 32 x 32 grey values by area averaging; bit 8 u + v of the hash says whether coefficient (u, v),
both from 1 to 8, of its two-dimensional cosine transform is above the median of these 64. The means of rows and columns
(u or v = 0) are left out, so that light and gradual shade do not count. Two images are near-duplicates when few bits
differ.

The search is exact: hashes that differ in at most d bits agree in one of d + 1 parts of them, so only hashes that agree
in a part are compared.

Source: Zauner, Implementation and benchmarking of perceptual image hash functions, 2010, section 3.2 (DCT hash).
Deviations: area averaging in place of a mean filter.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import cv2
import numpy as np

BITS = 64
_SIDE, _KEPT = 32, 8
_FLAT = 1e-3  # grey levels: coefficients below are rounding, and an image that has no others shows nothing


def perceptual_hash(image: np.ndarray) -> int | None:
    """Hash in 0..2^64-1 of an (H, W, 3) uint8 image; None for one that shows nothing but gradual shade."""
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    coefficients = cv2.dct(small)[1 : _KEPT + 1, 1 : _KEPT + 1].ravel()
    if np.abs(coefficients).max() < _FLAT * _SIDE:
        return None
    bits = coefficients > np.median(coefficients)
    return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")


def near_pairs(hashes: np.ndarray, *, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs i < j of hashes that differ in at most `distance` bits: i, j, each (K,) int64, sorted.

    Args:
        hashes: (N,) uint64, all different: many images with one hash would make as many pairs as their square.
        distance: bits, 0 to 31.
    """
    parts = distance + 1
    edges = np.linspace(0, BITS, parts + 1).astype(int)
    masks = [np.uint64((1 << int(end)) - (1 << int(begin))) for begin, end in pairwise(edges)]
    found = [np.zeros((0, 2), np.int64)]
    for number, mask in enumerate(masks):
        found += _agreeing(hashes, mask, masks[:number], distance)
    pairs = np.sort(np.concatenate(found), axis=1)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return pairs[:, 0], pairs[:, 1]


def _agreeing(hashes: np.ndarray, mask: np.uint64, before: Sequence[np.uint64], distance: int) -> Iterator[np.ndarray]:
    """Near pairs (K, 2) that agree in the bits of `mask`, and in none of the parts `before`, where they were found."""
    order = np.argsort(hashes & mask, kind="stable")
    ordered = hashes[order]
    part = ordered & mask
    first = np.arange(len(ordered))
    for shift in range(1, len(ordered)):
        first = first[: np.searchsorted(first, len(ordered) - shift)]
        first = first[part[first] == part[first + shift]]
        if not len(first):
            return
        difference = ordered[first] ^ ordered[first + shift]
        near = np.bitwise_count(difference) <= distance
        for other in before:
            near &= (difference & other) != 0
        yield np.stack([order[first[near]], order[first[near] + shift]], axis=1)
