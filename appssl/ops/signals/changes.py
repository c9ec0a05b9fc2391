"""Random changes of a signal (devices, channels, T) float32; the argument stays as it is. Which devices are there.

What is drawn for a change is a function of its own, so that signals can also be changed in batches
(`ops/signals/drawn_signals.py`). Sources: `views/signal.py`.
"""

import numpy as np


def jitter(signal: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Adds independent Gaussian noise."""
    noise = rng.standard_normal(signal.shape, np.float32)
    noise *= np.float32(std)
    noise += signal
    return noise


def scaling(signal: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Multiplies every channel by its own factor, Gaussian around 1."""
    devices, channels, _ = signal.shape
    return signal * drawn_factors(devices, channels, std, rng)


def drawn_factors(devices: int, channels: int, std: float, rng: np.random.Generator) -> np.ndarray:
    """(devices, channels, 1) float32."""
    return 1 + np.float32(std) * rng.standard_normal((devices, channels, 1), np.float32)


def rotated(signal: np.ndarray, triples: np.ndarray, degrees: float, rng: np.random.Generator) -> np.ndarray:
    """Turns all vectors (n, 3) of a device by one rotation: axis uniform on the sphere, angle uniform in +- degrees."""
    turns = drawn_turns(len(signal), degrees, rng)
    result = signal.copy()
    result[:, triples] = turns[:, None] @ signal[:, triples]  # (D, 1, 3, 3) @ (D, n, 3, T)
    return result


def drawn_turns(devices: int, degrees: float, rng: np.random.Generator) -> np.ndarray:
    """(devices, 3, 3) float32."""
    axes = rng.standard_normal((devices, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    return rotations(axes, np.deg2rad(degrees) * (2 * rng.random(devices) - 1)).astype(np.float32)


def rotations(axes: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """(n, 3, 3) rotation matrices about unit vectors (n, 3) by angles (n,) in radians; Rodrigues' formula."""
    x, y, z = axes.T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    sine, cosine = np.sin(angles)[:, None, None], np.cos(angles)[:, None, None]
    return np.eye(3) + sine * cross + (1 - cosine) * (cross @ cross)


def permuted(signal: np.ndarray, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Cuts time at random places into `segments` parts and joins them in random order, all channels alike."""
    return np.take(signal, segment_order(signal.shape[2], segments, rng), axis=2)


def segment_order(size: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """(size,) int64: the samples in their new order."""
    count = min(segments, size)
    cuts = np.sort(rng.choice(size - 1, count - 1, replace=False)) + 1
    edges = np.concatenate([[0], cuts, [size]])
    return np.concatenate([np.arange(edges[k], edges[k + 1]) for k in rng.permutation(count)])


def time_warped(signal: np.ndarray, warp: float, rng: np.random.Generator) -> np.ndarray:
    """Faster in one part, slower in another, by up to `warp`; first and last sample stay. Linear interpolation."""
    if signal.shape[2] < 2:
        return signal
    left, share = warped_places(signal.shape[2], warp, rng)
    low, high = np.take(signal, left, axis=2), np.take(signal, left + 1, axis=2)
    high -= low
    high *= share
    high += low
    return high


def warped_places(size: int, warp: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(size,) int64 of the sample before each place, at most size - 2, and (size,) float32 of the way to the next."""
    phase = np.linspace(0, np.pi, size) * int(rng.integers(1, 3))  # one or two half waves: ends do not move
    change = warp * (2 * rng.random() - 1) * (size - 1) / phase[-1]
    place = np.clip(np.arange(size) + change * np.sin(phase), 0, size - 1)
    left = np.minimum(place.astype(np.int64), size - 2)
    return left, (place - left).astype(np.float32)


def dropped(signal: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Sets each channel to zero, its mean over the training data, with probability `share`."""
    devices, channels, _ = signal.shape
    return signal * drawn_channels(devices, channels, share, rng).astype(np.float32)


def drawn_channels(devices: int, channels: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """(devices, channels, 1) bool: True for channels that stay."""
    return rng.random((devices, channels, 1)) >= share


def present(sample: np.ndarray) -> np.ndarray:
    """(devices,) bool of a window (devices, channels, T): those without NaN."""
    return ~np.isnan(sample).any(axis=(1, 2))


def remaining(there: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Flags (devices,) bool of which each is taken away with `probability`; one of those that are there always stays.

    Which one stays if all would go is drawn uniformly.
    """
    drawn = rng.random(len(there))
    kept = there & (drawn >= probability)
    if not kept.any() and there.any():
        kept[np.where(there, drawn, -1.0).argmax()] = True
    return kept


def zeroed(signal: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The signal with zeros for the devices (devices,) bool that are not there."""
    return signal if there.all() else np.where(there[:, None, None], signal, np.float32(0))
