"""Gaussian noise as a pure function of a key and a place, in batches on any device.

A 32-bit mixing function (Wellons, Prospecting for hash functions, 2018: the constants of "lowbias32") is applied to the
place, to the result xor one half of the key, and to that result xor the other half; Box and Muller (1958) make two
Gaussian numbers of two such uniform ones. Equal keys give equal noise, whatever else is in the batch.
"""

import math

import torch
from torch import Tensor

_MASK = 2**32 - 1


def gaussian(keys: Tensor, size: int) -> Tensor:
    """(N, size) float32, standard normal and independent.

    Args:
        keys: (N,) int64, 0 to 2^62 - 1.
    """
    pairs = -(-size // 2)
    places = torch.arange(2 * pairs, device=keys.device)
    low, high = (keys & (2**31 - 1))[:, None], (keys >> 31)[:, None]
    uniform = _mixed(_mixed(_mixed(places) ^ low) ^ high).float().add_(0.5).div_(2**32)  # in (0, 1]
    radius = uniform[:, :pairs].log_().mul_(-2).sqrt_()
    angle = uniform[:, pairs:].mul_(2 * math.pi)
    noise = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return noise[:, :size]


def _mixed(values: Tensor) -> Tensor:
    """A permutation of the 32-bit numbers that leaves no pattern; int64 in and, at the end, out."""
    values = values ^ (values >> 16)
    values = (values * 0x7FEB352D) & _MASK
    values = values ^ (values >> 15)
    values = (values * 0x846CA68B) & _MASK
    return values ^ (values >> 16)
