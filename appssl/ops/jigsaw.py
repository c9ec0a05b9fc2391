"""Jigsaw puzzles: the nine cells of an image, and orders of them that are far apart.

Source: Noroozi and Favaro, Unsupervised learning of visual representations by solving jigsaw puzzles, ECCV 2016, arXiv
1603.09246. Deviations: cells have no gaps and are enlarged to the whole image's size, as in ScatSimCLR; of orders the
smallest distance to those that are there counts, then the sum of distances.
"""

from functools import cache
from itertools import chain, permutations
from math import factorial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SIDE = 3
NUM_CELLS = SIDE**2


def cells(images: Tensor) -> Tensor:
    """Cells (B, 9, C, H, W), row by row, of images (B, C, H, W), enlarged bilinearly.

    A cell has floor(H / 3) x floor(W / 3) pixels; what is left of the sides is cut off evenly.
    """
    height, width = (side // SIDE for side in images.shape[2:])
    top, left = ((side % SIDE) // 2 for side in images.shape[2:])
    inner = images[:, :, top : top + SIDE * height, left : left + SIDE * width]
    grid = inner.unflatten(3, (SIDE, width)).unflatten(2, (SIDE, height))  # (B, C, 3, h, 3, w)
    parts = grid.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    enlarged = functional.interpolate(parts, size=images.shape[2:], mode="bilinear", align_corners=False)
    return enlarged.unflatten(0, (len(images), NUM_CELLS))


@cache
def far_orders(count: int) -> np.ndarray:
    """Orders (count, 9) int64 of nine cells, the first as they are; read only.

    Every further one is the order whose smallest Hamming distance to those before is largest, then the one with the
    largest sum of distances, then the first of the alphabet. The same orders whatever `count` is.
    """
    every = np.fromiter(chain.from_iterable(permutations(range(NUM_CELLS))), np.int8).reshape(-1, NUM_CELLS)
    smallest = np.full(factorial(NUM_CELLS), NUM_CELLS)
    total = np.zeros(len(every), np.int64)
    chosen = [0]
    while len(chosen) < count:
        distance = (every != every[chosen[-1]]).sum(axis=1)
        smallest, total = np.minimum(smallest, distance), total + distance
        chosen.append(int((smallest * NUM_CELLS * count + total).argmax()))
    orders = every[chosen].astype(np.int64)
    orders.flags.writeable = False
    return orders


def shuffled(pieces: Tensor, orders: Tensor) -> Tensor:
    """Place p of image i gets piece orders[i, p]: pieces (B, 9, ...), orders (B, 9) int64."""
    return pieces[torch.arange(len(pieces), device=pieces.device)[:, None], orders]
