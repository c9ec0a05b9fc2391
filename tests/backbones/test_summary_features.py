import numpy as np
import pytest
import torch

from appssl.backbones.summary_features import Config, build
from appssl.contracts import Meta
from appssl.errors import DataError

META = Meta("test", "wearable", "classification")


def features(signals):
    return build(Config(), tuple(signals.shape[1:]), META)(signals)


def literal(signal):
    """Channel by channel, value by value, in float64."""
    rows = []
    for channel in signal.double().tolist():
        mean = sum(channel) / len(channel)
        variance = sum((x - mean) ** 2 for x in channel) / len(channel)
        rows.append([mean, variance**0.5, min(channel), max(channel), sum(x * x for x in channel) / len(channel)])
    return [row[k] for k in range(5) for row in rows]


def test_equals_the_statistics_written_out():
    torch.manual_seed(0)
    signals = 3 * torch.randn(4, 6, 50) + 2
    expected = torch.tensor([literal(signal) for signal in signals])
    torch.testing.assert_close(features(signals), expected, rtol=1e-5, atol=1e-6, check_dtype=False)


def test_worked_numbers():
    """1, 3, 5, 7: mean 4, variance 5, mean of squares 21."""
    found = features(torch.tensor([[[1.0, 3, 5, 7], [2.0, 2, 2, 2]]]))[0]
    assert found.tolist() == pytest.approx([4, 2, 5**0.5, 0, 1, 2, 7, 2, 21, 4], abs=1e-6)


def test_the_order_of_time_does_not_matter_and_that_of_channels_moves_them():
    torch.manual_seed(1)
    signals = torch.randn(3, 4, 20)
    torch.testing.assert_close(features(signals[:, :, torch.randperm(20)]), features(signals))
    swapped = features(signals.flip(1)).reshape(3, 5, 4).flip(2).flatten(1)
    torch.testing.assert_close(swapped, features(signals))


def test_an_offset_moves_mean_and_extremes_and_leaves_the_deviation():
    torch.manual_seed(2)
    signals = torch.randn(2, 3, 30)
    before, after = features(signals).reshape(2, 5, 3), features(signals + 10).reshape(2, 5, 3)
    torch.testing.assert_close(after[:, [0, 2, 3]], before[:, [0, 2, 3]] + 10)
    torch.testing.assert_close(after[:, 1], before[:, 1], rtol=1e-4, atol=1e-5)


def test_a_large_offset_does_not_cost_the_deviation():
    """The mean of squares minus the square of the mean would lose it in float32."""
    signal = torch.tensor([[[1e4 - 0.5, 1e4 + 0.5] * 20]])
    assert features(signal)[0, 1].item() == pytest.approx(0.5, rel=1e-3)


def test_images_have_channels_too():
    torch.manual_seed(3)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(features(images), features(images.flatten(2)))


def test_nothing_is_trained_or_stored_and_half_precision_is_summed_in_float32():
    net = build(Config(), (3, 20), META)
    assert list(net.parameters()) == []
    assert net.state_dict() == {}
    assert net.num_features == 15
    found = net(torch.full((2, 3, 20), 300.0, dtype=torch.float16))  # its square is beyond float16
    assert found.dtype == torch.float32
    assert np.isfinite(found.numpy()).all()
    assert found[0, -1].item() == pytest.approx(90_000)


def test_views_without_channels_are_refused():
    with pytest.raises(DataError, match=r"needs views of channels.*\(7,\)"):
        build(Config(), (7,), META)
