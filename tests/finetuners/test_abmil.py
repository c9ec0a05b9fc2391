import math

import pytest
import torch
from torch import nn

from appssl.finetuners.abmil import Config, GatedAttention, build
from tests.finetuners.test_mil_pooling import batch, context


def looped(tuned, data, *, gated):
    """Equations 7 to 9, one bag and one tile at a time."""
    attention, logits = tuned.attention, []
    for tiles, mask in zip(data["input"], data["mask"], strict=True):
        features = [tuned.backbone(tile) for tile, present in zip(tiles, mask, strict=True) if present]
        scores = []
        for feature in features:
            hidden = [math.tanh(float(row @ feature)) for row in attention.content.weight]
            if gated:
                gates = [1 / (1 + math.exp(-float(row @ feature))) for row in attention.gate.weight]
                hidden = [h * g for h, g in zip(hidden, gates, strict=True)]
            scores.append(sum(float(w) * h for w, h in zip(attention.score.weight[0], hidden, strict=True)))
        total = sum(math.exp(score) for score in scores)
        mean = sum(math.exp(score) / total * feature for score, feature in zip(scores, features, strict=True))
        logits.append(tuned.head(mean))
    return torch.stack(logits)


@pytest.mark.parametrize("gated", [True, False])
def test_equals_the_loop_over_its_equations(gated):
    tuned, data = build(Config(gated=gated, attention_dim=3), context()).double(), batch()
    data["input"] = data["input"].double()
    with torch.no_grad():
        expected = nn.functional.cross_entropy(looped(tuned, data, gated=gated), data["target"])
        torch.testing.assert_close(tuned.train()(data).loss.double(), expected, rtol=1e-5, atol=1e-5)


def test_weights_worked_by_hand():
    """V = U = w = 1, features 0 and 1: scores 0 and s = tanh(1) sigmoid(1) = 0.556770, weights 1 / (1 + e^s), rest."""
    attention = GatedAttention(1, 1, gated=True)
    for layer in (attention.content, attention.gate, attention.score):
        nn.init.ones_(layer.weight)
    found = attention(torch.tensor([[[0.0], [1.0]]]), torch.ones(1, 2, dtype=torch.bool))
    assert found[0].tolist() == pytest.approx([0.364295, 0.635705], abs=1e-6)


def test_weights_sum_to_one_and_are_zero_where_there_is_no_tile():
    tuned, data = build(Config(), context()), batch()
    weights = tuned.attention(torch.randn(2, 5, 6), data["mask"])
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert (weights[~data["mask"]] == 0).all()


def test_with_equal_scores_it_is_the_mean():
    model = build(Config(), context()).export().eval()
    nn.init.zeros_(model.attention.score.weight)
    features = torch.randn(7, 6)
    torch.testing.assert_close(model.bag_probabilities(features), model.head(features.mean(0)).softmax(0))


def test_the_order_of_tiles_does_not_matter():
    model = build(Config(), context()).export().eval()
    features = torch.randn(7, 6)
    torch.testing.assert_close(model.bag_probabilities(features), model.bag_probabilities(features.flip(0)))


def test_gradients_reach_every_part():
    tuned = build(Config(), context())
    tuned.train()(batch()).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tuned.parameters())
    grouped = [id(p) for group in tuned.param_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in tuned.parameters())
