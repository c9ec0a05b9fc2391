import numpy as np
import pytest
import torch

from appssl import registry
from appssl.artifact import Artifact
from appssl.contracts import Context
from appssl.errors import DataError
from appssl.ops.expert_aggregation import aggregate_experts
from appssl.ops.random import rng_for
from appssl.stages.adapt import _PASSES, adapt_to
from appssl.stages.models import load_model, open_data
from tests.stages.conftest import config


@pytest.fixture
def parts(crawl):
    data = open_data(crawl.data)
    _, views, _ = load_model(Artifact.open(crawl.run / "finetune"))
    torch.manual_seed(0)
    backbone = registry.build(
        "backbones", config("backbones", "small_cnn", widths=[4, 6]), views.input_shape, data.meta
    )
    context = Context(data.meta, backbone, views.input_shape, num_samples=8, facts={"class_counts": [4.0, 4.0]})
    model = registry.build("finetuners", config("finetuners", "sade", hidden=8), context).export().eval()
    return model, data, views


def test_the_experts_are_weighed_by_the_views_of_the_rows_in_every_pass(parts):
    model, data, views = parts
    rows = np.array([3, 0, 5, 7], np.int64)
    passes = []
    for number in range(_PASSES):
        made = [views.views(data.read(int(row)), rng_for(7, number, int(row)))[:2] for row in rows]
        one, two = (torch.stack([pair[k] for pair in made]) for k in (0, 1))
        passes.append(tuple(model.expert_logits(model.backbone(view)).detach() for view in (one, two)))
    expected = aggregate_experts(passes)
    found = adapt_to(model, data, rows, views, seed=7, accelerator="cpu")
    assert list(found["weights"].values()) == pytest.approx(expected.weights.tolist(), abs=1e-6)
    torch.testing.assert_close(model.omega, expected.omega)
    assert model.omega.abs().sum() > 0
    assert found["stability"] == pytest.approx(list(expected.stability), abs=1e-6)


def test_nothing_but_the_weights_of_the_experts_moves(parts):
    model, data, views = parts
    before = {name: value.clone() for name, value in model.state_dict().items() if name != "omega"}
    adapt_to(model, data, np.arange(6), views, seed=0, accelerator="cpu")
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_model_that_cannot_adapt_is_refused(crawl, parts):
    model, views, _ = load_model(Artifact.open(crawl.run / "finetune"))
    with pytest.raises(DataError, match=r"evaluate\.adapt is for models that adapt .*sade.* Set it to false"):
        adapt_to(model, parts[1], np.arange(4), views, seed=0, accelerator="cpu")


def test_a_single_view_is_refused(parts):
    model, data, _ = parts
    single = registry.build("views", config("views", "image_two_crop", size=16, num_views=1), data.meta)
    with pytest.raises(DataError, match="needs two views"):
        adapt_to(model, data, np.arange(4), single, seed=0, accelerator="cpu")
