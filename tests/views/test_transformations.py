import numpy as np
import pytest
import torch

from appssl.errors import DataError
from appssl.ops.random import rng_for
from appssl.views.transformations import CHANGES, Config, build
from tests.views.test_signal import CHANNELS, meta, window


def views(seed=0, **values):
    built = build(Config(**values), meta())
    return dict(zip(("plain", *CHANGES), built.views(window(), rng_for(0, 0, seed)), strict=True))


def test_each_view_is_one_change_of_the_window():
    found = {name: view.numpy() for name, view in views(divisor=30.0).items()}
    plain = found["plain"]
    np.testing.assert_allclose(plain, window().reshape(45, 125) / 30, rtol=1e-5)
    np.testing.assert_allclose(found["negated"], -plain, rtol=1e-5)
    np.testing.assert_allclose(found["time_flipped"], plain[:, ::-1], rtol=1e-5)
    assert 0.03 < (found["noise"] - plain).std() < 0.07
    factors = found["scaled"] / plain
    assert np.ptp(factors, axis=1).max() < 1e-3  # one factor a channel
    assert 0.03 < factors[:, 0].std() < 0.2
    assert sorted(map(tuple, found["permuted"].T)) == sorted(map(tuple, plain.T))
    assert not np.array_equal(found["permuted"], plain)
    shuffled = found["channel_shuffled"].reshape(5, 9, 125)
    for device, own in enumerate(plain.reshape(5, 9, 125)):
        assert sorted(map(tuple, shuffled[device])) == sorted(map(tuple, own))
    assert found["time_warped"][:, 0] == pytest.approx(plain[:, 0], abs=1e-5)
    assert not np.allclose(found["time_warped"], plain)


def test_a_rotation_keeps_the_length_of_vectors():
    found = views(divisor=30.0)
    names = [CHANNELS.index(f"acc_{axis}") for axis in "xyz"]
    before, after = (found[name].reshape(5, 9, 125)[:, names].norm(dim=1) for name in ("plain", "rotated"))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found["plain"], found["rotated"], atol=1e-3)


def test_one_device_or_all():
    built = build(Config(device="d2"), meta())
    assert built.input_shape == (9, 125)
    assert built.num_views == 9
    assert built.plain(window()).shape == built.augment(window(), rng_for(0, 0, 0)).shape == (9, 125)
    assert all(view.shape == (9, 125) for view in built.views(window(), rng_for(0, 0, 0)))
    with pytest.raises(DataError, match=r"device 'd9' is not in the data"):
        build(Config(device="d9"), meta())


def test_a_missing_device_is_zero_in_every_view():
    lacking = window().copy()
    lacking[2] = np.nan
    for view in build(Config(divisor=30.0), meta()).views(lacking, rng_for(0, 0, 0)):
        parts = view.reshape(5, 9, 125)
        assert not parts[2].any()
        assert all(parts[device].any() for device in (0, 1, 3, 4))


def test_views_are_a_function_of_their_numbers_and_random_changes_differ():
    one, same, other = views(seed=1), views(seed=1), views(seed=2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    fixed = ("plain", "negated", "time_flipped")
    assert {name for name in one if not torch.equal(one[name], other[name])} == set(CHANGES) - set(fixed)
