import math

import numpy as np
import pytest
import torch
from scipy import stats

from appssl.ops.counter_noise import gaussian


def literal(key, size):
    """The numbers of one key, one by one, in Python's integers and floats."""

    def mixed(x):
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ x >> 16

    pairs = -(-size // 2)
    uniform = [(mixed(mixed(mixed(i) ^ key % 2**31) ^ key // 2**31) + 0.5) / 2**32 for i in range(2 * pairs)]
    radius = [math.sqrt(-2 * math.log(u)) for u in uniform[:pairs]]
    angle = [2 * math.pi * u for u in uniform[pairs:]]
    return [
        *(r * math.cos(a) for r, a in zip(radius, angle, strict=True)),
        *(r * math.sin(a) for r, a in zip(radius, angle, strict=True)),
    ][:size]


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_equals_the_definition_number_by_number(size):
    keys = [0, 1, 2**31 - 1, 2**31, 2**62 - 1, 123_456_789_012_345_678]
    found = gaussian(torch.tensor(keys), size)
    expected = [literal(key, size) for key in keys]
    np.testing.assert_allclose(found, expected, atol=5e-4)  # float32 near 1 has steps of 6e-8, whose root this is
    assert found.dtype == torch.float32


def test_a_key_has_the_same_noise_in_any_batch():
    keys = torch.from_numpy(np.random.default_rng(0).integers(2**62, size=50))
    assert torch.equal(gaussian(keys, 33)[20:30], gaussian(keys[20:30], 33))


@pytest.mark.parametrize("keys", [np.random.default_rng(1).integers(2**62, size=64), np.arange(64)])
def test_is_standard_normal_and_independent(keys):
    noise = gaussian(torch.from_numpy(keys), 8192).double().numpy()
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    number = noise.size**-0.5
    assert abs(noise.mean()) < 4 * number
    assert abs(noise.var() - 1) < 4 * 2**0.5 * number
    for lag in (1, 2, 3, 64, 125, 4096):  # of neighbours, of channels, of the two halves
        assert abs((noise[:, lag:] * noise[:, :-lag]).mean()) < 5 * (64 * (8192 - lag)) ** -0.5
    assert abs((noise[1:] * noise[:-1]).mean()) < 5 * number  # of neighbouring keys
    assert np.abs(np.corrcoef(noise) - np.eye(64)).max() < 6 * 8192**-0.5


def test_there_is_no_infinite_number():
    keys = torch.from_numpy(np.random.default_rng(2).integers(2**62, size=200))
    assert torch.isfinite(gaussian(keys, 20_000)).all()
