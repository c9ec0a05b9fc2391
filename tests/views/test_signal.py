"""Views of signals: pure functions of window and generator, with the operations they say."""

import time

import numpy as np
import pytest
import torch

from appssl.contracts import Meta
from appssl.errors import DataError, SettingsError
from appssl.ops.random import rng_for
from appssl.ops.signals.changes import (
    dropped,
    jitter,
    permuted,
    remaining,
    rotated,
    rotations,
    scaling,
    time_warped,
)
from appssl.ops.signals.channels import vectors
from appssl.settings import validate
from appssl.views.signal import Config, build

CHANNELS = [f"{sensor}_{axis}" for sensor in ("acc", "gyro", "mag") for axis in "xyz"]
OFF = dict.fromkeys(("jitter", "scaling", "rotation", "permutation", "time_warp", "dropout"), 0.0)
ON = dict.fromkeys(OFF, 1.0)


def meta(devices=5, size=125, **facts):
    rng = np.random.default_rng(7)
    values = {
        "devices": [f"d{k}" for k in range(devices)],
        "channels": CHANNELS,
        "window_samples": size,
        "channel_mean": rng.standard_normal((devices, 9)).tolist(),
        "channel_std": rng.uniform(0.5, 2, (devices, 9)).tolist(),
    }
    return Meta("wearable", "wearable", "classification", facts={**values, **facts})


def views(about=None, **values):
    return build(validate(Config, values, file="recipe", owner="views/signal"), about or meta())


def window(devices=5, size=125, seed=0):
    return np.random.default_rng(seed).standard_normal((devices, 9, size)).astype(np.float32)


def test_plain_is_the_normalized_window():
    facts = meta().facts
    mean, std = (np.array(facts[f"channel_{name}"])[:, :, None] for name in ("mean", "std"))
    expected = (window() - mean) / std
    np.testing.assert_allclose(views().plain(window()).numpy(), expected.reshape(45, 125), atol=1e-5)
    third = views(mode="devices", device="d2").plain(window())
    np.testing.assert_allclose(third.numpy(), expected[2], atol=1e-5)
    np.testing.assert_allclose(views(mode="devices").plain(window()).numpy(), expected[0], atol=1e-5)


def test_a_divisor_replaces_the_statistics_of_channels():
    third = views(mode="devices", device="d2", divisor=30.0).plain(window())
    np.testing.assert_allclose(third.numpy(), window()[2] / 30, rtol=1e-5)


@pytest.mark.parametrize(("mode", "number", "shape"), [("concat", 3, (45, 125)), ("devices", 5, (9, 125))])
def test_shapes_types_and_number(mode, number, shape):
    built = views(mode=mode, num_views=3, **ON)
    assert (built.num_views, built.input_shape) == (number, shape)
    made = built.views(window(), rng_for(0, 0, 0))
    assert len(made) == number
    for view in [*made, built.augment(window(), rng_for(0, 0, 0)), built.plain(window())]:
        assert view.shape == shape
        assert view.dtype == torch.float32
        assert view.is_contiguous()
        assert torch.isfinite(view).all()


def test_without_augmentation_views_are_plain_and_those_of_devices_are_theirs():
    for view in views(**OFF).views(window(), rng_for(0, 0, 0)):
        assert torch.equal(view, views().plain(window()))
    for k, view in enumerate(views(mode="devices", **OFF).views(window(), rng_for(0, 0, 0))):
        assert torch.equal(view, views(mode="devices", device=f"d{k}").plain(window()))


def test_the_same_generator_gives_the_same_views_and_another_others():
    built, source = views(**ON), window()
    first, again, other = (built.views(source, rng_for(1, 2, k)) for k in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])
    np.testing.assert_array_equal(source, window())  # the sample itself is not touched


def test_augment_is_near_the_plain_view():
    light, plain = views().augment(window(), rng_for(0, 0, 1)), views().plain(window())
    assert not torch.equal(light, plain)
    assert (light - plain).abs().mean() < 0.15


def test_jitter_and_scaling_have_the_stated_size():
    zeros, ones = np.zeros((20, 9, 500), np.float32), np.ones((500, 9, 3), np.float32)
    assert jitter(zeros, 0.05, rng_for(0, 0, 0)).std() == pytest.approx(0.05, rel=0.02)
    factors = scaling(ones, 0.1, rng_for(0, 0, 0))
    assert factors.std() == pytest.approx(0.1, rel=0.05)
    assert (factors == factors[:, :, :1]).all()


def test_rotations_equal_scipy():
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(0)
    axes = rng.standard_normal((6, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = rng.uniform(-3, 3, 6)
    np.testing.assert_allclose(
        rotations(axes, angles), Rotation.from_rotvec(axes * angles[:, None]).as_matrix(), atol=1e-12
    )


def test_rotation_turns_all_vectors_of_a_device_alike_and_keeps_their_length():
    source = window()
    source[:, 3:6] = source[:, 0:3]
    turned = rotated(source, vectors(CHANNELS), 180.0, rng_for(0, 0, 0))
    np.testing.assert_allclose(turned[:, 3:6], turned[:, 0:3], atol=1e-5)
    for low in (0, 6):
        lengths = [np.linalg.norm(s[:, low : low + 3], axis=1) for s in (source, turned)]
        np.testing.assert_allclose(*lengths, atol=1e-5)
    one, two = (np.linalg.lstsq(source[d, :3].T, turned[d, :3].T, rcond=None)[0] for d in (0, 1))
    assert not np.allclose(one, two, atol=0.01)  # devices turn on their own
    limited = rotated(source, vectors(CHANNELS), 20.0, rng_for(0, 0, 0))
    cosine = (source[:, :3] * limited[:, :3]).sum(axis=1) / np.linalg.norm(source[:, :3], axis=1) ** 2
    assert cosine.min() >= np.cos(np.deg2rad(20)) - 1e-4


def test_vectors_are_found_by_name():
    assert vectors(CHANNELS).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert vectors(["z_acc", "x_acc", "y_acc", "temp"]).tolist() == [[1, 2, 0]]
    assert vectors(["x", "y", "z"]).tolist() == [[0, 1, 2]]
    assert vectors(["acc_x", "acc_y", "max"]).shape == (0, 3)


def test_without_vectors_nothing_is_turned():
    about = meta(channels=[f"c{k}" for k in range(9)])
    built = views(about, **{**OFF, "rotation": 1.0})
    assert torch.equal(built.views(window(), rng_for(0, 0, 0))[0], built.plain(window()))


def test_permutation_keeps_every_moment_once_and_channels_together():
    source = np.broadcast_to(np.arange(50, dtype=np.float32), (2, 3, 50)).copy()
    found = permuted(source, 4, rng_for(0, 0, 0))
    assert sorted(found[0, 0]) == list(range(50))
    assert (found == found[:1, :1]).all()
    assert (np.diff(found[0, 0]) != 1).sum() <= 3
    assert sorted(permuted(source[:, :, :3], 8, rng_for(0, 0, 0))[0, 0]) == [0, 1, 2]


def test_time_warp_keeps_order_ends_and_changes_speed_by_no_more_than_stated():
    source = np.broadcast_to(np.arange(200, dtype=np.float32), (1, 2, 200)).copy()
    for seed in range(30):
        found = time_warped(source, 0.3, rng_for(0, 0, seed))[0, 0]
        assert found[0] == 0
        assert found[-1] == pytest.approx(199, abs=1e-3)
        speed = np.diff(found)
        assert speed.min() >= 0.69
        assert speed.max() <= 1.31
    assert np.abs(found - np.arange(200)).max() > 1
    assert (time_warped(source[:, :, :1], 0.3, rng_for(0, 0, 0)) == 0).all()


def test_dropout_loses_the_stated_share_of_channels_wholly():
    found = dropped(np.ones((200, 9, 4), np.float32), 0.1, rng_for(0, 0, 0))
    assert (found == found[:, :, :1]).all()
    assert 1 - found.mean() == pytest.approx(0.1, abs=0.03)


def test_a_constant_channel_stays_finite():
    about = meta(channel_std=np.zeros((5, 9)).tolist(), channel_mean=np.zeros((5, 9)).tolist())
    assert torch.isfinite(views(about, **ON).views(np.zeros((5, 9, 125), np.float32), rng_for(0, 0, 0))[0]).all()


def test_a_view_is_fast():
    """0.2 ms of CPU time when alone; a limit that only a loop over samples would miss."""
    built, source = views(), window()
    begin = time.process_time()
    for k in range(100):
        built.views(source, rng_for(0, 0, k))
    assert (time.process_time() - begin) / 200 < 2e-3


def test_other_data_and_unknown_devices_are_refused():
    with pytest.raises(DataError, match=r"needs windows of signals.*source webnoisy.*channel_mean"):
        build(Config(), Meta("webnoisy", "webnoisy", "classification"))
    with pytest.raises(DataError, match=r"device 'd9' is not in the data"):
        views(mode="devices", device="d9")


def test_wrong_settings_are_refused():
    with pytest.raises(SettingsError, match=r"jiter is not a setting of views/signal. Did you mean jitter"):
        views(jiter=1)
    with pytest.raises(SettingsError, match="rotation_degrees"):
        views(rotation_degrees=200)


def test_other_devices_or_channels_than_in_training_are_refused():
    facts = {
        "devices": ["wrist", "hip"],
        "channels": ["acc_x", "acc_y", "acc_z"],
        "window_samples": 20,
        "channel_mean": [[0.0] * 3] * 2,
        "channel_std": [[1.0] * 3] * 2,
    }
    views = build(Config(), Meta(source="wearable", domain="wearable", task="classification", facts=facts))
    for shape in ((1, 3, 20), (2, 6, 20), (5, 3, 20)):
        with pytest.raises(DataError, match=r"the model was made for 2 of 3\."):
            views.plain(np.zeros(shape, np.float32))


# Missing and lost devices


def lacking(*devices, about=None):
    sample = window() if about is None else about
    sample[list(devices)] = np.nan
    return sample


def test_missing_devices_are_zero_in_every_view_and_masked():
    built = views(**ON)
    sample = lacking(1, 4)
    made = [*built.views(sample, rng_for(0, 0, 0)), built.augment(sample, rng_for(0, 0, 0)), built.plain(sample)]
    for view in made:
        devices = view.reshape(5, 9, 125)
        assert (devices[[1, 4]] == 0).all()
        assert torch.isfinite(view).all()
    assert built.mask(sample).tolist() == [True, False, True, True, False]
    whole = built.plain(window()).reshape(5, 9, 125)
    assert torch.equal(made[-1].reshape(5, 9, 125)[[0, 2, 3]], whole[[0, 2, 3]])
    assert np.isnan(sample[1]).all()  # the sample itself is not touched


def test_other_devices_are_seen_as_if_none_were_missing():
    """The same random numbers whether or not a device is there."""
    built = views(**ON)
    for whole, part in zip(
        built.views(window(), rng_for(0, 0, 3)), built.views(lacking(2), rng_for(0, 0, 3)), strict=True
    ):
        a, b = whole.reshape(5, 9, 125), part.reshape(5, 9, 125)
        assert torch.equal(a[[0, 1, 3, 4]], b[[0, 1, 3, 4]])


def test_lost_devices_have_the_stated_share_are_zero_and_one_stays():
    built = views(**{**OFF, "device_dropout": 0.6})
    there = np.stack(
        [(v.reshape(5, -1) != 0).any(1) for k in range(500) for v in built.views(window(), rng_for(0, 0, k))]
    )
    expected = 0.4 + 0.6**5 / 5  # the draw, or the one that stays when all would go
    np.testing.assert_allclose(there.mean(axis=0), expected, atol=0.05)
    assert there.any(axis=1).all()
    plain = views().plain(window()).reshape(5, 9, 125)
    for k in range(20):
        view = built.views(window(), rng_for(0, 0, k))[0].reshape(5, 9, 125)
        kept = (view != 0).flatten(1).any(1)
        assert torch.equal(view[kept], plain[kept])
        assert (view[~kept] == 0).all()


def test_the_device_that_stays_is_one_that_is_there():
    for k in range(50):
        assert remaining(np.array([False, True, False]), 0.99, rng_for(0, 0, k)).tolist() == [False, True, False]
        assert remaining(np.ones(4, bool), 0.999, rng_for(0, 0, k)).sum() >= 1
    assert not remaining(np.zeros(2, bool), 0.5, rng_for(0, 0, 0)).any()


def test_devices_are_lost_when_training_with_labels_too_and_never_in_plain_views():
    built = views(device_dropout=0.9)
    there = [(built.augment(window(), rng_for(0, 0, k)).reshape(5, -1) != 0).any(1).sum() for k in range(30)]
    assert min(there) == 1
    assert torch.equal(built.plain(window()), views().plain(window()))


def test_the_default_draws_no_further_random_numbers():
    """Views as they were before devices could be lost: the generator stands where the operations leave it."""
    generator, by_hand = rng_for(0, 0, 0), rng_for(0, 0, 0)
    (view,) = views(**{**OFF, "jitter": 1.0}, num_views=1).views(window(), generator)
    by_hand.random(6)
    plain = views().plain(window()).numpy().reshape(5, 9, 125)
    np.testing.assert_array_equal(view.numpy(), jitter(plain, 0.05, by_hand).reshape(45, 125))
    assert generator.random() == by_hand.random()


def test_one_device_per_view_needs_all_devices():
    with pytest.raises(DataError, match=r"mode devices needs every device.*missing_devices: refuse"):
        views(meta(missing_devices="mask"), mode="devices")
    with pytest.raises(SettingsError, match="device_dropout is for mode concat"):
        views(mode="devices", device_dropout=0.1)
