import math

import pytest
import torch
from torch import nn

from appssl.ops.classify import Classifier, class_weights, slower_encoder, weighted_cross_entropy


def literal(logits, target, sample_weight, class_weight, smoothing):
    """sum_i w_i c_{y_i} H(q_i, softmax(x_i)) / B with the smoothed target q, written out."""
    total = 0.0
    for x, y, w in zip(logits.tolist(), target.tolist(), sample_weight.tolist(), strict=True):
        norm = math.log(sum(math.exp(v) for v in x))
        share = [smoothing / len(x) + (1 - smoothing) * (k == y) for k in range(len(x))]
        total += w * float(class_weight[y]) * -sum(q * (v - norm) for q, v in zip(share, x, strict=True))
    return total / len(target)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_equals_the_sum_written_out(smoothing):
    torch.manual_seed(0)
    logits, target = torch.randn(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    sample, of_class = torch.rand(6), torch.tensor([0.5, 2.0, 1.0, 0.1])
    value = weighted_cross_entropy(logits, target, sample_weight=sample, class_weight=of_class, smoothing=smoothing)
    assert float(value) == pytest.approx(literal(logits, target, sample, of_class, smoothing), rel=1e-5)


def test_worked_number():
    logits, target = torch.zeros(2, 2), torch.tensor([0, 1])
    ones = torch.ones(2)
    value = weighted_cross_entropy(logits, target, sample_weight=ones, class_weight=ones, smoothing=0.0)
    assert float(value) == pytest.approx(math.log(2))


def test_a_sample_of_weight_zero_has_no_gradient():
    logits = torch.randn(3, 2, requires_grad=True)
    weight = torch.tensor([1.0, 0.0, 1.0])
    target = torch.tensor([0, 1, 1])
    weighted_cross_entropy(logits, target, sample_weight=weight, class_weight=torch.ones(2), smoothing=0.0).backward()
    assert logits.grad[1].abs().sum() == 0
    assert logits.grad[0].abs().sum() > 0


def test_half_precision_is_computed_in_float32():
    logits = torch.tensor([[30000.0, -30000.0]], dtype=torch.float16)
    one = torch.ones(1)
    value = weighted_cross_entropy(
        logits, torch.tensor([1]), sample_weight=one, class_weight=torch.ones(2), smoothing=0.0
    )
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(60000, rel=1e-3)


def test_balanced_weights_are_inverse_to_counts_and_one_on_average():
    counts = torch.tensor([10.0, 30.0, 60.0])
    weights = class_weights({"class_counts": counts.tolist()}, "balanced", 3)
    assert (weights * counts).tolist() == pytest.approx([100 / 3] * 3)  # every class has the same total weight
    assert float((weights * counts).sum() / counts.sum()) == pytest.approx(1)


def test_an_absent_class_has_weight_zero_and_does_not_count():
    assert class_weights({"class_counts": [4, 0, 4]}, "balanced", 3).tolist() == [1, 0, 1]


def test_without_balancing_all_weights_are_one_and_no_counts_are_needed():
    assert class_weights({}, "none", 3).tolist() == [1, 1, 1]


def test_the_classifier_is_head_after_backbone():
    backbone, head = nn.Linear(3, 4), nn.Linear(4, 2)
    inputs = torch.randn(5, 3)
    assert torch.equal(Classifier(backbone, head)(inputs), head(backbone(inputs)))


def test_encoders_have_their_own_rate_and_what_is_frozen_is_in_no_group():
    encoder, head, other = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), nn.Linear(2, 4), nn.Linear(2, 1)
    encoder[0].requires_grad_(False)
    groups = slower_encoder([encoder], [head, other], 0.1)
    assert [group["lr_scale"] for group in groups] == [0.1, 1.0]
    assert [list(map(id, group["params"])) for group in groups] == [
        list(map(id, encoder[1].parameters())), list(map(id, [*head.parameters(), *other.parameters()]))
    ]  # fmt: skip
