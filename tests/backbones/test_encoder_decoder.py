import pytest
import torch

from appssl import registry
from appssl.backbones.encoder_decoder import Config, build
from appssl.contracts import Meta
from appssl.errors import DataError

META = Meta("test", "webnoisy", "classification", facts={"size_px": 16})
IMAGE, SIGNAL = (3, 16, 16), (6, 64)


def network(shape=IMAGE, **values):
    torch.manual_seed(0)
    encoder = "cnn1d" if shape is SIGNAL else {"name": "small_cnn", "widths": [4, 6]}
    settings = Config(**{"encoder": encoder, "width": 5, "hidden": 7, **values})
    model = build(settings, shape, META).eval()
    with torch.no_grad():  # at the start codes are nearly the same for everything
        for p in [*model.moments.parameters(), *model.hidden.parameters()]:
            p.normal_()
    return model


@pytest.mark.parametrize("shape", [IMAGE, SIGNAL])
def test_features_are_the_code_or_the_last_hidden_layer_of_its_decoder(shape):
    inputs = torch.randn(4, *shape)
    of_code, of_decoder = network(shape, features="code"), network(shape)
    of_decoder.load_state_dict(of_code.state_dict())
    mean = of_code.moments(of_code.encoder(inputs))[:, :5]
    torch.testing.assert_close(of_code(inputs), mean)
    first, _, second, _ = of_code.hidden
    hidden = second(first(mean).clamp(min=0)).clamp(min=0)
    torch.testing.assert_close(of_decoder(inputs), hidden)
    assert (hidden > 0).any(dim=1).all()
    assert (of_code.num_features, of_decoder.num_features) == (5, 7)
    torch.testing.assert_close(of_code.decode(mean), of_code.output(hidden).reshape(4, *shape))


def test_log_variances_have_a_floor_and_no_gradient_below_it():
    model, inputs = network(), torch.randn(4, *IMAGE)
    with torch.no_grad():
        model.moments.bias[5] = -100.0
        model.moments.bias[6] = 3.0
    log_variance = model.encode(inputs)[1]
    assert (log_variance[:, 0] == -6).all()
    torch.testing.assert_close(log_variance[:, 1], model.moments(model.encoder(inputs))[:, 6])
    log_variance.sum().backward()
    assert model.moments.bias.grad.tolist() == [0, 0, 0, 0, 0, 0, 4, 4, 4, 4]


def test_features_are_the_same_every_time_and_need_no_gradient():
    model, inputs = network(), torch.randn(4, *IMAGE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        first = model(inputs)
    assert torch.equal(model(inputs), first)
    assert not first.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(model(inputs[:1]), first[:1])
    assert not torch.allclose(first[0], first[1])


def test_the_encoder_is_any_backbone_and_settings_survive_being_written():
    settings = Config(encoder={"name": "small_cnn", "widths": (4,)}, num_hidden=3)
    again = Config(**settings.plain())
    assert again == settings
    built = registry.build("backbones", again, IMAGE, META)
    assert built.encoder.num_features == 4
    assert len([layer for layer in built.hidden if isinstance(layer, torch.nn.Linear)]) == 3


def test_tokens_are_refused():
    with pytest.raises(DataError, match=r"decodes images \(C, H, W\) and signals .*have shape \(9,\)"):
        build(Config(), (9,), META)
