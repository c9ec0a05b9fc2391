import pytest
import torch
from pydantic import ValidationError

from appssl.backbones.collossl_cnn import Config, build
from appssl.contracts import Meta
from appssl.errors import DataError

META = Meta("test", "wearable", "classification")


def literal(net, signal):
    """Convolutions without padding, one output value after the other."""
    for block in net.blocks:
        weight, bias = block[0].weight.detach().double(), block[0].bias.detach().double()
        outputs, _, size = weight.shape
        steps = signal.shape[1] - size + 1
        signal = torch.stack(
            [
                torch.stack([(weight[o] * signal[:, t : t + size]).sum() + bias[o] for t in range(steps)])
                for o in range(outputs)
            ]
        ).clamp(min=0)
    return signal.max(dim=1).values


def test_equals_the_literal_transcription():
    torch.manual_seed(0)
    net = build(Config(widths=(3, 4), kernels=(5, 3)), (2, 20), META).eval()
    signals = torch.randn(3, 2, 20)
    expected = torch.stack([literal(net, signal.double()) for signal in signals])
    torch.testing.assert_close(net(signals).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_published_sizes():
    net = build(Config(), (6, 150), META)
    sizes = [tuple(p.shape) for p in net.parameters() if p.ndim == 3]
    assert sizes == [(32, 6, 24), (64, 32, 16), (96, 64, 8)]
    assert net.num_features == 96
    assert net.eval()(torch.randn(2, 6, 46)).shape == (2, 96)


def test_dropout_acts_in_training_only():
    net = build(Config(dropout=0.5), (6, 60), META)
    signals = torch.randn(2, 6, 60)
    assert not torch.equal(net.train()(signals), net(signals))
    assert torch.equal(net.eval()(signals), net(signals))


def test_the_feature_map_is_what_is_pooled():
    net = build(Config(), (6, 60), META).eval()
    signals = torch.randn(2, 6, 60)
    assert net.feature_map(signals).shape == (2, 96, 15)
    assert torch.equal(net.feature_map(signals).amax(2), net(signals))


def test_what_it_cannot_take_is_refused():
    with pytest.raises(DataError, match="needs signals"):
        build(Config(), (3, 32, 32), META)
    with pytest.raises(DataError, match=r"have 45 samples, kernels \(24, 16, 8\) need 46"):
        build(Config(), (6, 45), META)
    with pytest.raises(ValidationError, match="equally many"):
        Config(kernels=(3,))
