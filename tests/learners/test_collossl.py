"""ColloSSL equals a slow transcription window by window, the worked numbers, and its limits."""

import math

import pytest
import torch
from torch import nn

from appssl.contracts import Context, Meta
from appssl.errors import DataError, SettingsError
from appssl.learners.collossl import Config, build, chosen, weighted_contrast
from appssl.ops.mmd import mmd2

DEVICES = ["wrist", "hip", "chest", "shin", "head"]
FACTS = {"devices": DEVICES, "channels": ["acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z"]}


class Mean(nn.Module):
    """(B, 6, T) -> (B, 6): an encoder that can be followed by hand."""

    num_features = 6

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x.mean(2) * self.gain


def context(count=5, facts=None, **given):
    about = {**FACTS, "devices": DEVICES[:count], **(facts or {})}
    meta = Meta("test", "wearable", "classification", facts=about)
    return Context(meta, Mean(), (6, 20), num_samples=8, num_views=count, **given)


def batch(count=5, size=7, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.arange(count)[:, None, None, None] * 0.3
    return {"views": list(spread * torch.randn(count, size, 6, 20, generator=generator) + shifts)}


def cosine(a, b):
    return float((a @ b) / (a.norm() * b.norm()))


def literal(views, anchor, positive, negative, weights, orders, tau):
    """Window by window in float64; orders: of each negative device."""
    z = [view.double().mean(2) for view in views]
    losses = []
    for b in range(len(z[0])):
        near = sum(math.exp(cosine(z[anchor][b], z[i][b]) / tau) for i in positive)
        far = sum(
            weights[j] * math.exp(cosine(z[anchor][b], z[j][order[b]]) / tau)
            for j, order in zip(negative, orders, strict=True)
        )
        losses.append(-math.log(near / (near + far)))
    return sum(losses) / len(losses)


def test_the_worked_numbers():
    anchor, positive = torch.tensor([1.0, 2, 2]), torch.tensor([2.0, 1, 2])
    negatives = torch.tensor([[2.0, 1, -2], [-1, 0, 1]])
    near = torch.tensor([[cosine(anchor, positive)]])
    far = torch.tensor([[cosine(anchor, n)] for n in negatives])
    assert weighted_contrast(near, far, torch.ones(2), temperature=0.5).item() == pytest.approx(0.364514, abs=1e-6)
    weights = torch.tensor([2.0, 0.5])
    assert weighted_contrast(near, far, weights, temperature=0.5).item() == pytest.approx(0.387591, abs=1e-6)


@pytest.mark.parametrize("anchor", [0, 3])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_loss_equals_the_transcription(anchor, weighted):
    learner = build(Config(anchor=DEVICES[anchor], weighted=weighted, temperature=0.5), context())
    given = batch()
    others = [d for d in range(5) if d != anchor]
    norms = [view[:, :3].norm(dim=1) for view in given["views"]]
    distance = {d: float(mmd2(norms[anchor], norms[d][None])) for d in others}
    order = sorted(others, key=distance.get)
    torch.manual_seed(4)
    orders = [torch.randperm(7).tolist() for _ in order]
    torch.manual_seed(4)
    found = learner(given)
    weights = {d: 1 / distance[d] if weighted else 1.0 for d in order}
    expected = literal(given["views"], anchor, order[:1], order, weights, orders, 0.5)
    assert found.loss.item() == pytest.approx(expected, rel=1e-5)
    assert found.metrics["mmd_of_positive"].item() == pytest.approx(distance[order[0]], rel=1e-5)


def test_more_orders_of_each_negative_are_more_terms():
    learner = build(Config(anchor="wrist", weighted=False, negatives_per_device=3, temperature=0.5), context(2))
    given = batch(2)
    torch.manual_seed(4)
    orders = [torch.randperm(7).tolist() for _ in range(3)]
    torch.manual_seed(4)
    expected = literal(given["views"], 0, [1], [1, 1, 1], {1: 1.0}, orders, 0.5)
    assert learner(given).loss.item() == pytest.approx(expected, rel=1e-5)


def test_policies_take_devices_from_the_order():
    order = [4, 2, 0, 1]
    assert chosen(order, "closest_pos_all_neg") == ([4], [4, 2, 0, 1])
    assert chosen(order, "closest_pos_rest_neg") == ([4], [2, 0, 1])
    assert chosen(order, "closest_only") == ([4], [4])
    assert chosen(order, "closest_two") == ([4], [2])
    assert chosen(order, "closest_two_reverse") == ([2], [4])
    assert chosen(order, "hard_negative") == ([4], [2, 0])
    assert chosen(order, "harder_negative") == ([1], [4, 2])
    assert chosen(order, "mid_selection") == ([2, 0], [1])
    seen = {(tuple(p), tuple(n)) for p, n in (chosen(order, "random_selection") for _ in range(300))}
    assert len(seen) == 16
    assert {tuple(p) for p, _ in (chosen(order, "closest_pos_random_neg") for _ in range(50))} == {(4,)}


def test_one_positive_and_one_negative_is_a_softplus_and_scales_of_weights_and_embeddings_do_not_matter():
    near, far = torch.randn(1, 6), torch.randn(1, 6)
    loss = weighted_contrast(near, far, torch.ones(1), temperature=0.3)
    torch.testing.assert_close(loss, nn.functional.softplus((far[0] - near[0]) / 0.3))
    three = torch.tensor([1.0, 3.0, 0.2])
    far = torch.randn(3, 6)
    one = weighted_contrast(torch.zeros(1, 6) - 30, far, three, temperature=1.0)
    assert (one > 0).all()
    orthogonal = weighted_contrast(torch.ones(1, 2), torch.zeros(4, 2), torch.ones(4), temperature=0.5)
    torch.testing.assert_close(orthogonal, torch.full((2,), math.log(1 + 4 * math.exp(-2))))
    learner = build(Config(anchor="hip", policy="closest_only"), context())
    torch.manual_seed(0)
    small = learner(batch()).loss
    with torch.no_grad():
        learner.backbone.gain *= 17
    torch.manual_seed(0)
    torch.testing.assert_close(learner(batch()).loss, small)


def test_synchronous_negatives_have_a_floor_and_asynchronous_ones_have_none():
    """With all devices alike the positive is also a negative: log 2 for equal weights, unless the time is another."""
    view = torch.randn(9, 6, 20, generator=torch.Generator().manual_seed(1)) * 5
    same = {"views": [view, view.clone()]}
    settings = {"anchor": "wrist", "policy": "closest_only", "weighted": False}
    floor = build(Config(**settings, negatives="synchronous"), context(2))(same).loss.item()
    assert floor == pytest.approx(math.log(2), rel=1e-5)
    assert build(Config(**settings), context(2))(same).loss.item() < 0.3


def test_blocks_are_separate():
    learner = build(Config(anchor="wrist", negatives="synchronous"), context())
    one, two = batch(size=4, seed=1), batch(size=6, seed=2, spread=3.0)
    joined = {"views": [torch.cat(pair) for pair in zip(one["views"], two["views"], strict=True)]}
    joined["block"] = torch.tensor([0] * 4 + [1] * 6)
    expected = (4 * learner(one).loss + 6 * learner(two).loss) / 10
    torch.testing.assert_close(learner(joined).loss, expected)


def test_static_selection_takes_given_discrepancies():
    table = torch.full((5, 5), 9.0)
    table[1] = torch.tensor([4.0, 1.0, 0.5, 8.0, 7.0])
    facts = {"device_distances": table.tolist()}
    config = Config(anchor="hip", selection="static", policy="closest_two", negatives="synchronous")
    learner = build(config, Context(context().meta, Mean(), (6, 20), 8, 5, facts))
    found = learner(batch())
    assert found.metrics["mmd_of_positive"].item() == pytest.approx(0.5)
    expected = literal(batch()["views"], 1, [2], [0], {0: 1 / 4.0}, [list(range(7))], 0.05)
    assert found.loss.item() == pytest.approx(expected, rel=1e-4)


def test_a_random_anchor_visits_every_device_and_gradients_reach_the_encoder():
    learner = build(Config(), context())
    seen = {round(learner(batch()).metrics["mmd_of_positive"].item(), 6) for _ in range(60)}
    assert len(seen) > 1
    learner(batch()).loss.backward()
    assert learner.backbone.gain.grad.abs().sum() > 0
    assert learner.export() is learner.backbone


def test_what_it_cannot_be_is_refused():
    with pytest.raises(DataError, match="needs windows of several devices; the data of source test have none"):
        build(Config(), Context(Meta("test", "wsi", "classification"), Mean(), (6, 20), 8, 2))
    with pytest.raises(SettingsError, match="mode: devices"):
        build(Config(), Context(context().meta, Mean(), (6, 20), 8, 2))
    with pytest.raises(SettingsError, match=r"no device 'hipp'\. Did you mean hip"):
        build(Config(anchor="hipp"), context())
    with pytest.raises(DataError, match="policy mid_selection needs 5 devices, there are 4"):
        build(Config(policy="mid_selection"), context(4))
    with pytest.raises(SettingsError, match="device_distances: true"):
        build(Config(selection="static"), context())
    with pytest.raises(DataError, match="no x, y, z"):
        build(Config(), context(facts={"channels": ["a", "b"]}))
