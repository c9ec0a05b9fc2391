import math

import pytest
import torch
from torch import nn

from appssl.contracts import Context, Meta, Progress
from appssl.errors import DataError, SettingsError
from appssl.learners.msbreg import (
    Config,
    brownian_force,
    build,
    centroid_distance,
    cosine_of_images,
    directions,
    singular_values,
    unit,
)
from appssl.settings import validate
from tests.objectives.views import FIRST, SECOND, at

META = Meta(source="test", domain="webnoisy", task="classification")
ONLINE = torch.stack([FIRST, SECOND])
TARGET = torch.stack([at(10, 110, 230), at(5, 95, 215)])
NOISE = torch.stack([at(90, 0, 45), at(180, 270, 300)])


def learner(width=4, **values):
    torch.manual_seed(0)
    backbone = nn.Linear(width, 6)
    backbone.num_features = 6
    small = {"projector_hidden": 8, "projector_out": 5, "predictor_hidden": 7}
    config = validate(Config, small | values, file="r.yaml", owner="learners/msbreg")
    return build(config, Context(META, backbone, (width,), num_samples=8, num_views=2)).train()


def drawn(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cloud(seed, *shape):
    return nn.functional.normalize(drawn(seed, *shape), dim=-1)


def literal(online, target, noise):
    """The three terms by loops over images, views and dimensions."""
    views, size, width = online.shape
    centroid = brownian = 0.0
    c = [[0.0] * width for _ in range(width)]
    for i in range(size):
        for k in range(width):
            difference = sum(float(online[m, i, k] - target[m, i, k]) for m in range(views)) / views
            centroid += difference**2 / size
        for m in range(views):
            brownian -= sum(float(online[m, i, k] * noise[m, i, k]) for k in range(width)) / (views * size)
            for k in range(width):
                for other in range(width):
                    c[k][other] += float(online[m, i, k] * online[m, i, other]) / (views * size)
    singular = width * sum((c[k][n] - (k == n) / width) ** 2 for k in range(width) for n in range(width))
    return centroid, singular, brownian


@pytest.mark.parametrize("shape", [(2, 5, 3), (3, 2, 9), (4, 6, 24)])
def test_terms_equal_the_equations_written_out_in_float64(shape):
    online, target, noise = cloud(0, *shape), cloud(1, *shape), cloud(2, *shape)
    found = (
        centroid_distance(online, target),
        singular_values(online.flatten(0, 1), "frobenius"),
        brownian_force(online, noise),
    )
    assert [float(term) for term in found] == pytest.approx(literal(online, target, noise), rel=1e-11)


def test_the_worked_numbers_of_the_card():
    centroid = centroid_distance(ONLINE, TARGET)
    singular = singular_values(ONLINE.flatten(0, 1), "frobenius")
    brownian = brownian_force(ONLINE, NOISE)
    assert float(centroid) == pytest.approx(0.031487, abs=1e-6)
    assert float(singular) == pytest.approx(0.095167, abs=1e-6)
    assert float(brownian) == pytest.approx(0.508205, abs=1e-6)
    assert float(centroid + 0.1 * singular + 0.1 * brownian) == pytest.approx(0.091824, abs=1e-6)
    sigma = torch.linalg.svdvals(ONLINE.flatten(0, 1) / math.sqrt(6))
    assert sigma.tolist() == pytest.approx([0.808855, 0.588009], abs=1e-6)


def test_the_centroid_term_is_the_distance_of_all_pairs_less_both_spreads():
    pairs = (ONLINE[:, None] - TARGET[None]).square().sum(-1).mean()
    spreads = sum((side - side.mean(0)).square().sum(-1).mean() for side in (ONLINE, TARGET))
    assert float(pairs) == pytest.approx(0.085911, abs=1e-6)
    assert float(spreads) == pytest.approx(0.054424, abs=1e-6)
    assert float(centroid_distance(ONLINE, TARGET)) == pytest.approx(float(pairs - spreads), rel=1e-12)


def test_with_one_view_the_centroid_term_is_that_of_byol():
    online, target = cloud(3, 1, 6, 4), cloud(4, 1, 6, 4)
    expected = (2 - 2 * (online * target).sum(-1)).mean()
    torch.testing.assert_close(centroid_distance(online, target), expected)


def by_svd(embeddings, kind):
    """The same from all d singular values, zeros among them."""
    size, width = embeddings.shape
    if kind == "whiten":
        embeddings = embeddings - embeddings.mean(0)
    sigma = torch.zeros(width, dtype=torch.float64)
    found = torch.linalg.svdvals(embeddings / math.sqrt(size))
    sigma[: len(found)] = found
    if kind == "variance":
        return (sigma - sigma.mean()).square().mean()
    if kind == "logdet":
        return -(width * sigma.square() + 1e-4).log().mean()
    return width * (sigma.square() - 1 / width).square().sum()


@pytest.mark.parametrize("kind", ["frobenius", "variance", "logdet", "whiten"])
@pytest.mark.parametrize("size", [5, 40])
def test_every_form_equals_its_singular_values_and_ignores_rotations_and_order(kind, size):
    embeddings = cloud(5, size, 8)
    value = singular_values(embeddings, kind)
    assert float(value) == pytest.approx(float(by_svd(embeddings, kind)), rel=1e-12, abs=1e-12)
    rotation = torch.linalg.qr(drawn(6, 8, 8)).Q
    mixed = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(singular_values(embeddings[mixed] @ rotation, kind), value)


def test_bounds_an_even_cloud_and_a_single_point():
    frame = torch.eye(4, dtype=torch.float64)
    even, point = torch.cat([frame, -frame]), frame[:1].expand(8, -1)
    for kind, least, most in (
        ("frobenius", 0, 3),
        ("variance", 0, 3 / 16),
        ("whiten", 0, 1),
        ("logdet", -math.log(1 + 1e-4), -(math.log(4 + 1e-4) + 3 * math.log(1e-4)) / 4),
    ):
        assert float(singular_values(even, kind)) == pytest.approx(least, abs=1e-12)
        assert float(singular_values(point, kind)) == pytest.approx(most, abs=1e-9)
        assert least < float(singular_values(cloud(7, 8, 4), kind)) < most
    assert float(singular_values(frame[:2], "frobenius")) == pytest.approx(1)  # N < d: 0 is out of reach


def test_directions_are_isotropic_unit_vectors_new_in_every_draw():
    torch.manual_seed(0)
    noise = directions(torch.empty(2, 100_000, 3, dtype=torch.float64), "per_view").flatten(0, 1)
    torch.testing.assert_close(noise.norm(dim=1), torch.ones(200_000, dtype=torch.float64))
    # 2e5 draws: the standard deviations of these means are below 7e-4 and 1.3e-3.
    torch.testing.assert_close(noise.T @ noise / 200_000, torch.eye(3).double() / 3, rtol=0, atol=2e-3)
    torch.testing.assert_close(noise.mean(0), torch.zeros(3).double(), rtol=0, atol=5e-3)
    assert not torch.equal(directions(ONLINE, "per_view"), directions(ONLINE, "per_view"))
    assert directions(ONLINE, "per_view").shape == (2, 3, 2)
    assert directions(ONLINE, "per_image").shape == (1, 3, 2)


def test_the_gradient_of_the_brownian_term_is_the_direction_over_the_count():
    online, noise = ONLINE.clone().requires_grad_(), NOISE.clone().requires_grad_()
    (found,) = torch.autograd.grad(brownian_force(online, noise.detach()), online)
    torch.testing.assert_close(found, -NOISE / 6)
    assert not directions(online, "per_view").requires_grad


def test_a_point_is_the_worst_spread_but_only_the_brownian_term_leaves_it():
    raw = drawn(8, 1, 1, 4).expand(2, 5, 4).clone().requires_grad_()
    singular = singular_values(unit(list(raw)).flatten(0, 1), "frobenius")
    assert float(singular.detach()) == pytest.approx(3)
    (found,) = torch.autograd.grad(singular, raw)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)
    torch.manual_seed(0)
    online = unit(list(raw))
    (moved,) = torch.autograd.grad(brownian_force(online, directions(online.detach(), "per_view")), raw)
    assert (moved.norm(dim=2) > 1e-3).all()
    target = online.detach()  # target = online: nothing moves
    (still,) = torch.autograd.grad(centroid_distance(unit(list(raw)), target), raw)
    torch.testing.assert_close(still, torch.zeros_like(still), rtol=0, atol=1e-12)


def test_the_mean_cosine_of_different_images_is_that_of_a_loop():
    online = cloud(9, 3, 4, 5)
    pairs = [float(online[m, i] @ online[n, j]) for m in range(3) for n in range(3) for i in range(4) for j in range(4)
             if i != j]  # fmt: skip
    assert float(cosine_of_images(online)) == pytest.approx(sum(pairs) / len(pairs), rel=1e-11)


def test_the_loss_is_the_weighted_sum_of_the_terms_of_both_networks():
    made = learner(singular_weight=0.7, brownian_weight=0.3)
    views = list(drawn(10, 2, 6, 4).float())
    torch.manual_seed(5)
    step = made({"views": views})
    online = unit([made.predictor(made.projector(made.backbone(view))) for view in views])
    target = unit([made.target_projector(made.target_backbone(view)) for view in views])
    torch.manual_seed(5)
    noise = directions(online, "per_view")
    parts = literal(online.detach().double(), target.double(), noise.double())
    assert [float(step.metrics[name]) for name in ("centroid", "singular", "brownian")] == pytest.approx(
        parts, rel=1e-5
    )
    assert float(step.loss.detach()) == pytest.approx(parts[0] + 0.7 * parts[1] + 0.3 * parts[2], rel=1e-5)
    torch.manual_seed(5)
    assert torch.equal(made({"views": views}).loss, step.loss)  # the same seed, the same directions
    assert not torch.equal(made({"views": views}).loss, step.loss)


def test_gradients_reach_the_online_networks_only_and_the_target_follows():
    made = learner(momentum=0.9)
    step = made({"views": list(drawn(11, 2, 6, 4).float())})
    step.loss.backward()
    online = [*made.backbone.parameters(), *made.projector.parameters(), *made.predictor.parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in online if p.ndim > 1)
    targets = [*made.target_backbone.parameters(), *made.target_projector.parameters()]
    assert not any(p.requires_grad for p in targets)
    assert not any(value.requires_grad for value in step.metrics.values())
    before = made.target_backbone.weight.clone()
    with torch.no_grad():
        made.backbone.weight += 1
    made.after_update(Progress(1, 10, 1))
    torch.testing.assert_close(made.target_backbone.weight, 0.9 * before + 0.1 * made.backbone.weight.detach())
    before = made.target_backbone.weight.clone()
    made.after_update(Progress(6, 10, 1))  # half way: m = 0.95
    torch.testing.assert_close(made.target_backbone.weight, 0.95 * before + 0.05 * made.backbone.weight.detach())


def test_export_is_the_online_backbone_and_heads_can_be_without_normalization():
    made = learner()
    assert made.export() is made.backbone
    assert any(isinstance(layer, nn.BatchNorm1d) for layer in made.projector)
    plain = learner(head_norm=False)
    heads = [*plain.projector, *plain.predictor, *plain.target_projector]
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in heads)


@pytest.mark.parametrize("spread", ["frobenius", "variance", "logdet", "whiten"])
def test_half_precision_and_equal_or_zero_embeddings_are_finite(spread):
    made = learner(spread=spread, noise="per_image", head_norm=False)
    for views in (drawn(12, 2, 6, 4).float(), torch.zeros(2, 6, 4), torch.ones(2, 6, 4)):
        made.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            step = made({"views": list(views)})
        step.loss.backward()
        assert step.loss.dtype == torch.float32
        assert torch.isfinite(step.loss)
        assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)
    zero = torch.zeros(12, 5)
    assert torch.isfinite(singular_values(zero, spread))


def test_errors_of_one_sample_one_view_and_an_unknown_form():
    with pytest.raises(DataError, match="needs two or more samples in a batch, got 1"):
        learner()({"views": list(torch.zeros(2, 1, 4))})
    backbone = nn.Linear(2, 2)
    backbone.num_features = 2
    with pytest.raises(SettingsError, match="needs two or more views: set num_views"):
        build(Config(), Context(META, backbone, (2,), num_samples=5, num_views=1))
    with pytest.raises(SettingsError, match=r"spread is not valid: Input should be 'frobenius'"):
        learner(spread="svd")
