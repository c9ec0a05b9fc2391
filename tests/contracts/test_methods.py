"""What every method of a kind promises, over all names."""

import copy

import pytest
import torch

from appssl import registry
from appssl.contracts import Context, Meta

META = Meta(source="test", domain="webnoisy", task="classification", classes=("a", "b", "c"), facts={"size_px": 32})
IMAGE, SIGNAL = (3, 32, 32), (9, 64)
SHAPES = {"cnn1d": SIGNAL, "collossl_cnn": SIGNAL}  # backbones of other inputs than images
CLASSIFIERS = [  # without those that are trained on interactions or bags
    name for name in registry.names("finetuners") if not hasattr(registry.load("finetuners", name), "examples")
]
OF_SIGNALS = ("collossl", "masked_reconstruction")  # learners that see no images: tests/learners
OF_PATCHES = ("ibot", "mae", "mugs", "simmim")  # learners that need the patches of a vision transformer
OF_BACKBONES = {"cmim": ("encoder_decoder",)}  # learners of one backbone
VIT = {"name": "timm", "model": "vit_tiny_patch16_224"}
VIT_OPTIONS = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
LEARNERS = [name for name in registry.names("learners") if name not in OF_SIGNALS]
BACKBONES = [name for name in registry.names("backbones") if name != "two_tower"]  # sees items: tests/backbones


def config(kind, name):
    return registry.load(kind, name).Config()


def backbone(name="small_cnn"):
    torch.manual_seed(0)
    shape = SHAPES.get(name, IMAGE)
    return registry.build("backbones", config("backbones", name), shape, META), shape


def vision_transformer():
    torch.manual_seed(0)
    settings = registry.load("backbones", "timm").Config(**VIT, options=VIT_OPTIONS)
    return registry.build("backbones", settings, IMAGE, META), IMAGE


def context(name=""):
    network, shape = vision_transformer() if name in OF_PATCHES else backbone(*OF_BACKBONES.get(name, ()))
    facts = {"class_counts": [2, 2, 4]}
    return Context(meta=META, backbone=network, input_shape=shape, num_samples=8, num_views=2, facts=facts)


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_file_offers_config_and_build_and_its_own_name(kind):
    for name in registry.names(kind):
        module = registry.load(kind, name)
        assert module.__doc__, f"{kind}/{name} has no docstring"
        assert callable(module.build)
        assert module.Config.model_fields["name"].default == name
        undescribed = [f for f, info in module.Config.model_fields.items() if f != "name" and not info.description]
        assert undescribed == [], f"{kind}/{name}"


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_map_inputs_to_features(name):
    network, shape = backbone(name)
    features = network.eval()(torch.randn(4, *shape))
    assert features.shape == (4, network.num_features)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_are_the_same_for_a_seed_and_survive_a_state_round_trip(name):
    one, shape = backbone(name)
    two, _ = backbone(name)
    inputs = torch.randn(2, *shape)
    assert torch.equal(one.eval()(inputs), two.eval()(inputs))
    torch.manual_seed(5)
    other = registry.build("backbones", config("backbones", name), shape, META)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(inputs), other.eval()(inputs))


@pytest.mark.parametrize("name", registry.names("objectives"))
def test_objectives_give_a_finite_scalar_with_gradient(name):
    objective = registry.build("objectives", config("objectives", name))
    views = [torch.randn(8, 16, requires_grad=True) for _ in range(2)]
    loss = objective(*views)
    loss.total.backward()
    assert loss.total.shape == ()
    assert all(torch.isfinite(view.grad).all() for view in views)
    assert not any(term.requires_grad for term in loss.terms.values())


def batch():
    torch.manual_seed(1)
    return {
        "index": torch.arange(8),
        "views": [torch.randn(8, *IMAGE) for _ in range(2)],
        "input": torch.randn(8, *IMAGE),
        "target": torch.tensor([0, 0, 1, 1, 2, 2, 2, 2]),
        "weight": torch.ones(8),
    }


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("learners", n) for n in LEARNERS), *(("finetuners", n) for n in CLASSIFIERS)],
)
def test_learners_learn_export_and_survive_a_state_round_trip(kind, name):
    learner = registry.build(kind, config(kind, name), context(name))
    before = copy.deepcopy(learner.state_dict())
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.01)
    first = learner.train()(batch())
    first.loss.backward()
    optimizer.step()
    assert torch.isfinite(first.loss)
    assert not any(value.requires_grad for value in first.metrics.values())
    again = registry.build(kind, config(kind, name), context(name))
    again.load_state_dict(before)
    assert torch.equal(again.train()(batch()).loss, first.loss)
    output = learner.export().eval()(batch()["input"])
    assert len(output) == 8
    if kind == "finetuners":
        assert output.shape == (8, 3)


@pytest.mark.parametrize("name", registry.names("schedules"))
def test_schedules_stay_in_their_range(name):
    factor = registry.build("schedules", config("schedules", name))
    values = [factor(step, 100) for step in range(100)]
    assert all(0 <= value <= 1 for value in values)
    assert max(values) == pytest.approx(1)
    assert factor(0, 1) >= 0
