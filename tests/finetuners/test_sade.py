import copy
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from appssl.contracts import Context, Meta
from appssl.errors import DataError
from appssl.finetuners.sade import Config, build, expert_losses, inverse_prior, logit_adjustments
from appssl.ops.expert_aggregation import aggregate_experts, mix_experts

META = Meta(source="test", domain="webnoisy", task="classification", classes=("a", "b", "c"))
COUNTS = (70.0, 20.0, 10.0)


def learner(counts=COUNTS, **values):
    torch.manual_seed(0)
    encoder = nn.Linear(4, 5)
    encoder.num_features = 5
    return build(Config(**values), Context(META, encoder, (4,), num_samples=8, facts={"class_counts": list(counts)}))


def batch(num=8):
    generator = torch.Generator().manual_seed(2)
    return {
        "input": torch.randn(num, 4, generator=generator),
        "target": torch.tensor([0, 1, 1, 2, 2, 2, 2, 0])[:num],
        "weight": torch.rand(num, generator=generator),
    }


def literal_losses(logits, target, counts, strength, weight):
    """The three losses written out, with ranks found by counting."""
    total = sum(counts)
    prior = [count / total for count in counts]
    rank = [sum((q, d) < (p, c) for d, q in enumerate(prior)) for c, p in enumerate(prior)]
    inverse = [prior[rank.index(len(prior) - 1 - r)] for r in rank]
    shifts = [
        [0.0] * len(prior),
        [math.log(p + 1e-9) for p in prior],
        [math.log(p + 1e-9) - strength * math.log(q + 1e-9) for p, q in zip(prior, inverse, strict=True)],
    ]
    losses = []
    for expert, shift in zip(logits, shifts, strict=True):
        loss = 0.0
        for row, y, w in zip(expert.tolist(), target.tolist(), weight.tolist(), strict=True):
            moved = [value + s for value, s in zip(row, shift, strict=True)]
            loss += w * (math.log(sum(math.exp(value) for value in moved)) - moved[y])
        losses.append(loss / len(target))
    return losses


@pytest.mark.parametrize("counts", [(70.0, 20.0, 10.0), (3.0, 50.0, 7.0), (5.0, 5.0, 5.0), (2.0, 9.0, 2.0)])
def test_losses_equal_the_equations_written_out(counts):
    torch.manual_seed(0)
    logits, data = 3 * torch.randn(3, 8, 3, dtype=torch.float64), batch()
    shifts = logit_adjustments(torch.tensor(counts, dtype=torch.float64), 2.0)
    found = expert_losses(logits, data["target"], shifts, sample_weight=data["weight"].double())
    assert found.tolist() == pytest.approx(literal_losses(logits, data["target"], counts, 2.0, data["weight"]))


def test_the_step_is_the_sum_over_experts_with_cosine_classifiers():
    tuned, data = learner(tail_strength=1.5, cosine_scale=7.0), batch()
    features = tuned.backbone(data["input"])
    logits = []
    for expert in tuned.experts:
        own = torch.relu(features @ expert.own.weight.T + expert.own.bias)
        cosines = [[functional.cosine_similarity(row, w, dim=0) for w in expert.weight] for row in own]
        logits.append([[7.0 * float(value.detach()) for value in row] for row in cosines])
    step = tuned.train()(data)
    expected = literal_losses(torch.tensor(logits), data["target"], COUNTS, 1.5, data["weight"])
    assert [float(step.metrics[f"loss_{name}"]) for name in ("head", "uniform", "tail")] == pytest.approx(
        expected, rel=1e-5
    )
    assert float(step.loss.detach()) == pytest.approx(sum(expected), rel=1e-5)
    right = torch.tensor(logits).mean(0).argmax(1) == data["target"]
    assert float(step.metrics["accuracy"]) == pytest.approx(float(right.float().mean()))


def test_worked_number():
    logits = torch.tensor([1.0, 0.5, -0.2], dtype=torch.float64).expand(3, 1, 3)
    shifts = logit_adjustments(torch.tensor([7.0, 2.0, 1.0], dtype=torch.float64), 2.0)
    losses = expert_losses(logits, torch.tensor([1]), shifts, sample_weight=torch.ones(1))
    assert losses.tolist() == pytest.approx([1.145911, 1.948595, 3.182310], abs=1e-6)
    assert float(losses.sum()) == pytest.approx(6.276816, abs=1e-6)


def test_the_inverse_prior_reverses_ranks_and_not_values():
    assert inverse_prior(torch.tensor([0.7, 0.2, 0.1])).tolist() == pytest.approx([0.1, 0.2, 0.7])
    assert inverse_prior(torch.tensor([0.2, 0.7, 0.1])).tolist() == pytest.approx([0.2, 0.1, 0.7])
    prior = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inverse = inverse_prior(prior)
    assert torch.equal(inverse.sort().values, prior.sort().values)
    assert torch.equal(inverse_prior(inverse), prior)
    assert sorted(inverse_prior(torch.tensor([0.25, 0.5, 0.25])).tolist()) == [0.25, 0.25, 0.5]


def test_with_a_balanced_prior_all_experts_have_cross_entropy():
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target, ones = batch()["target"], torch.ones(8)
    shifts = logit_adjustments(torch.full((3,), 6.0, dtype=torch.float64), 2.0)
    losses = expert_losses(logits.expand(3, 8, 3), target, shifts, sample_weight=ones)
    torch.testing.assert_close(losses, functional.cross_entropy(logits, target).expand(3))


def test_without_strength_the_tail_expert_is_the_uniform_one_and_constants_do_not_matter():
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target, ones = batch()["target"], torch.ones(8)
    shifts = logit_adjustments(torch.tensor(COUNTS, dtype=torch.float64), 0.0)
    losses = expert_losses(logits.expand(3, 8, 3), target, shifts, sample_weight=ones)
    torch.testing.assert_close(losses[1], losses[2])
    prior = torch.tensor(COUNTS, dtype=torch.float64) / 100
    shares = prior * logits.exp() / (prior * logits.exp()).sum(1, keepdim=True)  # balanced softmax
    # the 1e-9 inside the logs of the prior leaves 1e-8
    torch.testing.assert_close(losses[1], -shares[range(8), target].log().mean(), rtol=1e-6, atol=0)
    shifted = expert_losses((logits + 3).expand(3, 8, 3), target, shifts, sample_weight=ones)
    torch.testing.assert_close(shifted, losses)


def test_at_the_minimum_the_experts_model_the_prior_equal_classes_and_rare_classes():
    """Logits without an input, fitted to the training frequencies."""
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    logits = torch.zeros(3, 1, 3, dtype=torch.float64, requires_grad=True)
    target, shifts = torch.tensor([0, 1, 2]), logit_adjustments(counts, 2.0)
    solver = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = expert_losses(logits.expand(3, 3, 3), target, shifts, sample_weight=counts).sum()
        loss.backward()
        return loss

    solver.step(closure)
    found = logits.detach()[:, 0].softmax(1)
    rare = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64) ** 2
    expected = torch.stack([counts / 100, torch.full((3,), 1 / 3).double(), rare / rare.sum()])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter_and_each_expert_only_its_own():
    tuned, data = learner(), batch()
    tuned.train()(data).loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in tuned.parameters())
    alone = learner()
    features = alone.backbone(data["input"])
    logits = torch.stack([expert(features) for expert in alone.experts])
    expert_losses(logits, data["target"], alone.adjustments, sample_weight=data["weight"])[2].backward()
    assert alone.experts[2].weight.grad.abs().sum() > 0
    assert alone.experts[0].weight.grad is None or alone.experts[0].weight.grad.abs().sum() == 0
    assert alone.backbone.weight.grad.abs().sum() > 0


def test_every_parameter_is_in_one_group_and_the_encoder_has_its_own_rate():
    tuned = learner(backbone_lr_scale=0.1)
    groups = tuned.param_groups()
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in tuned.parameters())
    assert [group["lr_scale"] for group in groups] == [0.1, 1.0]


def test_experts_start_apart():
    weights = [expert.weight for expert in learner().experts]
    assert not torch.equal(weights[0], weights[1])


def test_the_exported_classifier_mixes_logits_without_adjustments():
    tuned, inputs = learner(), batch()["input"]
    model = tuned.export().eval()
    features = model.backbone(inputs)
    each = torch.stack([expert(features) for expert in tuned.experts])
    torch.testing.assert_close(model(inputs), each.mean(0))
    torch.testing.assert_close(model.expert_logits(features), each)
    torch.testing.assert_close(model.bag_probabilities(features), each.mean(0).softmax(1).mean(0))


def test_weights_of_experts_are_kept_with_the_model():
    tuned, inputs = learner(), batch()["input"]
    omega = torch.tensor([1.0, 0.0, -1.0])
    tuned.export().mix(omega)
    again = learner()
    again.load_state_dict(copy.deepcopy(tuned.state_dict()))
    model = again.export().eval()
    each = model.expert_logits(model.backbone(inputs))
    torch.testing.assert_close(model(inputs), torch.einsum("e,ebk->bk", omega.softmax(0), each))
    assert not torch.allclose(model(inputs), learner().export()(inputs))


def test_one_sample_zero_features_and_half_precision():
    tuned = learner()
    single = tuned.train()(batch(1))
    single.loss.backward()
    assert torch.isfinite(single.loss)
    nothing = tuned.experts[0](torch.zeros(2, 5))
    assert torch.isfinite(nothing).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = tuned(batch())
    assert step.loss.dtype == torch.float32
    assert torch.isfinite(step.loss)
    half = torch.randn(3, 8, 3).half()
    losses = expert_losses(half, batch()["target"], torch.zeros(3, 3), sample_weight=torch.ones(8))
    torch.testing.assert_close(losses[0], functional.cross_entropy(half[0].float(), batch()["target"]))


def test_a_class_without_samples_is_refused_by_name():
    with pytest.raises(DataError, match="there are none of b") as caught:
        learner(counts=(5.0, 0.0, 2.0))
    assert "Leave these classes out of the data" in str(caught.value)


def shifted(images, rng):
    return np.stack([np.roll(image, tuple(rng.integers(-1, 2, 2)), (0, 1)) for image in images])


def long_tailed_digits(seed):
    """Linear experts on random features of digits, 100 images of the first class to 2 of the last.

    Returns:
        For the test part as frequent as training, equally, and reversed: accuracy of the single experts, that of their
        mixture after aggregation, and its weights.
    """
    rng = np.random.default_rng(seed)
    images, own = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    frequency = 0.02 ** (np.arange(10) / 9)
    members = [rng.permutation(np.flatnonzero(own == c)) for c in rng.permutation(10)]
    train = np.concatenate([rows[70 : 70 + int(100 * f)] for rows, f in zip(members, frequency, strict=True)])
    matrix = 0.5 * rng.normal(size=(64, 300)).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, 300).astype(np.float32)

    def features(pictures):
        return torch.from_numpy(np.cos(pictures.reshape(len(pictures), -1) @ matrix + phase))

    inputs = features(np.concatenate([images[train], *(shifted(images[train], rng) for _ in range(4))]))
    target = torch.from_numpy(np.tile(own[train], 5))
    shifts = logit_adjustments(torch.from_numpy(np.bincount(own[train], minlength=10)).double(), 2.0)
    weight = torch.zeros(3, 300, 10, requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        losses = expert_losses(inputs @ weight, target, shifts, sample_weight=torch.ones(len(target)))
        loss = losses.sum() + 1e-4 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    found = []
    with torch.no_grad():
        for shares in (frequency, np.ones(10), frequency[::-1]):
            rows = np.concatenate([rows[: max(1, int(70 * f))] for rows, f in zip(members, shares, strict=True)])
            passes = [[features(shifted(images[rows], rng)) @ weight for _ in range(2)] for _ in range(5)]
            fitted = aggregate_experts(passes, lr=2.0, batch_size=64, weight_decay=0.0)
            logits, truth = features(images[rows]) @ weight, torch.from_numpy(own[rows])
            accuracy = [
                float((z.argmax(1) == truth).float().mean()) for z in (*logits, mix_experts(logits, fitted.omega))
            ]
            found.append((accuracy[:3], accuracy[3], fitted.weights.tolist()))
    return found


@pytest.mark.slow
def test_experts_are_good_at_different_test_parts_and_aggregation_finds_which():
    """Margins of the published protocol in small, means over three seeds: one alone may choose wrongly."""
    runs = [long_tailed_digits(seed) for seed in range(3)]
    single, adapted, weights = (np.mean([[part[n] for part in run] for run in runs], axis=0) for n in range(3))
    forward, uniform, backward = range(3)
    head, equal, tail = range(3)
    assert single[forward, head] > single[forward, tail]
    assert single[uniform, equal] > max(single[uniform, head], single[uniform, tail])
    assert single[backward, tail] > single[backward, equal] > single[backward, head]
    assert adapted[backward] >= single[backward, head] + 0.10
    assert adapted[uniform] >= single[uniform, head] + 0.04
    assert adapted[forward] >= single[forward, head] - 0.05
    assert weights[backward, tail] > weights[uniform, tail] > weights[forward, tail]
