"""What is kept of samples, how losses judge them, and what is said of them in the end."""

import json
import math

import numpy as np
import pytest
import torch

from appssl.ops.tracked_labels import LabelMemory, Tracked, pseudo_label_weights, small_loss_posterior

WORKED = np.array([0, 0.02, 0.05, 0.08, 0.1, 0.7, 0.8, 0.9, 1])
CLASSES = ("cat", "dog", "eel")


def two_heaps(seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.gamma(2, 0.2, 80), rng.normal(3, 0.5, 40)])


def normal(x, mean, variance):
    return math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def literal_posterior(losses, num_steps=10, tolerance=1e-2, floor=5e-4):
    """Expectation maximization on losses scaled to 0..1 from the best two clusters, until it gains too little."""
    u = [(loss - min(losses)) / (max(losses) - min(losses)) for loss in losses]

    def distances(threshold):
        parts = [[x for x in u if x <= threshold], [x for x in u if x > threshold]]
        return sum((x - sum(part) / len(part)) ** 2 for part in parts for x in part)

    middle = min((x for x in u if x < max(u)), key=distances)
    parts = [[x for x in u if x <= middle], [x for x in u if x > middle]]
    share = [len(part) / len(u) for part in parts]
    mean = [sum(part) / len(part) for part in parts]
    variance = [sum((x - m) ** 2 for x in part) / len(part) + floor for part, m in zip(parts, mean, strict=True)]
    before = -math.inf
    for _ in range(num_steps):
        density = [[share[k] * normal(x, mean[k], variance[k]) for k in range(2)] for x in u]
        likelihood = sum(math.log(sum(pair)) for pair in density) / len(u)
        duty = [[d / sum(pair) for d in pair] for pair in density]
        for k in range(2):
            mass = sum(pair[k] for pair in duty)
            share[k] = mass / len(u)
            mean[k] = sum(pair[k] * x for pair, x in zip(duty, u, strict=True)) / mass
            variance[k] = sum(pair[k] * (x - mean[k]) ** 2 for pair, x in zip(duty, u, strict=True)) / mass + floor
        if abs(likelihood - before) < tolerance:
            break
        before = likelihood
    return u, share, mean, variance


@pytest.mark.parametrize("seed", range(3))
def test_the_posterior_is_bayes_rule_for_the_mixture_written_out(seed):
    losses = two_heaps(seed)
    u, share, mean, variance = literal_posterior(losses.tolist())
    found = small_loss_posterior(losses)
    inner = [i for i, x in enumerate(u) if mean[0] <= x <= mean[1]]  # beyond the means it is kept from turning round
    assert len(inner) > 20
    for i in inner:
        low, high = (share[k] * normal(u[i], mean[k], variance[k]) for k in range(2))
        assert found[i] == pytest.approx(low / (low + high), rel=1e-6, abs=1e-12)


def test_worked_split():
    found = small_loss_posterior(WORKED)
    assert found[:5] == pytest.approx(1)
    assert found[5:] == pytest.approx(0)


def test_shift_and_scale_do_not_matter_and_the_order_of_samples_neither():
    losses, order = two_heaps(), np.random.default_rng(1).permutation(120)
    expected = small_loss_posterior(losses)
    np.testing.assert_allclose(small_loss_posterior(5 + 0.01 * losses), expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(small_loss_posterior(losses[order]), expected[order], rtol=1e-6, atol=1e-12)


def test_the_smaller_losses_are_the_probable_ones_whichever_heap_is_larger():
    rng = np.random.default_rng(0)
    for low, high in ((20, 200), (200, 20)):
        losses = np.concatenate([rng.normal(0.2, 0.05, low), rng.normal(2.0, 0.3, high)])
        found = small_loss_posterior(losses)
        assert found[:low].min() > 0.5 > found[low:].max()


@pytest.mark.parametrize("losses", [[1.0] * 6, [0.0] * 6, [0.7], [2.0, 2.0 + 1e-9, 2.0], [np.inf] * 3, [np.nan] * 3])
def test_losses_that_say_nothing_leave_every_label_right(losses):
    assert small_loss_posterior(np.array(losses)).tolist() == [1.0] * len(losses)


def test_losses_that_are_not_finite_count_as_the_largest():
    losses = two_heaps()
    top = losses.argmax()
    for bad in (np.inf, np.nan):
        spoilt = np.concatenate([losses, [bad]])
        expected = small_loss_posterior(np.concatenate([losses, losses[top : top + 1]]))
        assert np.array_equal(small_loss_posterior(spoilt), expected)


def test_weights_are_posteriors_among_the_noisy_alone():
    losses = np.concatenate([WORKED, np.full(20, 55.0)])
    noisy = np.arange(29) < 9
    found = pseudo_label_weights(losses, noisy)
    np.testing.assert_allclose(found[:9], small_loss_posterior(WORKED))
    assert (found[9:] == 1).all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_two_noisy_samples_or_fewer_are_not_weighed(count):
    assert (pseudo_label_weights(WORKED, np.arange(9) < count) == 1).all()


def memory(num_rows=8):
    return LabelMemory(num_rows, CLASSES)


def observed(own, inputs, index, target, exponent=2.0, size=2):
    batches = [
        {
            "index": torch.tensor(index[k : k + size]),
            "input": inputs[k : k + size],
            "target": torch.tensor(target[k : k + size]),
        }
        for k in range(0, len(index), size)
    ]
    return own.observe(batches, lambda x: (x, x[:, :2]), exponent=exponent)


def test_observed_losses_are_those_of_label_and_pseudo_label():
    own, logits = memory(), torch.tensor([[1, 0.2, -0.5], [0.0, 2.0, 1.0], [0.3, 0.3, 0.3]])
    own.remember(torch.tensor([6, 2]), torch.tensor([[0.782609, 0.195652, 0.021739], [0.0, 0.5, 0.5]]))
    found = observed(own, logits, [6, 2, 5], [0, 2, 1])
    log_p = logits.double().log_softmax(1)
    assert found.index.tolist() == [6, 2, 5]
    assert found.target.tolist() == [0, 2, 1]
    assert found.losses.tolist() == pytest.approx([-float(log_p[0, 0]), -float(log_p[1, 2]), math.log(3)], rel=1e-5)
    half = float(-(log_p[1, 1] + log_p[1, 2]) / 2)
    assert found.pseudo_losses.tolist() == pytest.approx([0.703426, half, math.log(3)], rel=1e-5)
    assert torch.equal(torch.from_numpy(found.features), logits[:, :2])


def test_a_sample_that_no_batch_had_gets_its_own_prediction():
    own, logits = memory(), torch.tensor([[1.0, 0.2, -0.5]])
    found = observed(own, logits, [3], [0])
    p = logits[0].double().softmax(0)
    guess = p**2 / (p**2).sum()
    assert own.guess[3].tolist() == pytest.approx(guess.tolist(), rel=1e-5)
    assert found.pseudo_losses.tolist() == pytest.approx([float(-(guess * p.log()).sum())], rel=1e-5)


def tracked(losses, pseudo=None, index=None, target=None):
    count = len(losses)
    index = np.arange(count) if index is None else np.array(index)
    target = np.zeros(count, np.int64) if target is None else np.array(target)
    pseudo = np.zeros(count) if pseudo is None else np.array(pseudo)
    return Tracked(index, target, np.array(losses), pseudo, np.zeros((count, 0)))


def test_targets_are_given_labels_until_a_sample_is_found_noisy():
    own, guess = memory(), torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])
    index, target = torch.tensor([5, 2]), torch.tensor([0, 2])
    targets, weight, noisy = own.targets(index, target, guess)
    assert targets.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert (weight.tolist(), noisy.tolist()) == ([1, 1], [False, False])
    own.decide(
        tracked([1.0, 2.0, 3.0, 9.0], [0.1, 0.2, 8.0, 0.1], [1, 4, 5, 7]), np.ones(4), np.array([1, 1, 1, 0], bool)
    )
    targets, weight, noisy = own.targets(index, target, guess)
    assert torch.equal(targets, torch.stack([guess[0], torch.tensor([0.0, 0.0, 1.0])]))
    assert noisy.tolist() == [True, False]
    assert weight.tolist() == pytest.approx([0, 1], abs=1e-6)


def test_nothing_was_found_before_the_first_decision():
    assert memory().findings() is None


def decided():
    """Rows 1..6: clean; noisy and reliable; noisy and not; the rest disputed, of which one is noisy and reliable."""
    own = memory()
    own.guess[1:7] = torch.tensor(
        [[0.9, 0.1, 0], [0.2, 0.8, 0], [0.3, 0.3, 0.4], [0.6, 0.4, 0], [0, 0.1, 0.9], [0, 1, 0]]
    )
    own.given[1:7] = torch.tensor([0, 0, 1, 2, 2, 0])
    own.noisy[1:7] = torch.tensor([0, 1, 1, 0, 1, 1], dtype=torch.bool)
    own.weight[1:7] = torch.tensor([1, 0.75, 0.25, 1, 0.9, 0.6])
    own.p_clean[1:7] = torch.tensor([0.99, 0.02, 0.01, 0.6, 0.3, 0.04], dtype=torch.float64)
    return own


def test_each_kind_has_its_label_confidence_and_weight():
    found = decided().findings(hard=torch.tensor([1, 0, 0, 0, 1, 1, 0, 1], dtype=torch.bool))
    rows = found.select("index", "kind", "label", "confidence", "weight").rows()
    expected = [
        (1, "clean", 0, 0.99, 1.0),
        (2, "id_noise", 1, 0.8, 0.75),
        (3, "ood_noise", 1, 0.01, 0.0),
        (4, "hard_clean", 2, 0.6, 1.0),
        (5, "hard_clean", 2, 0.3, 1.0),
        (6, "id_noise", 1, 1.0, 0.6),
    ]
    assert [row[:3] for row in rows] == [row[:3] for row in expected]
    assert [row[3:] for row in rows] == [pytest.approx(row[3:]) for row in expected]
    assert "p_ood" not in found.columns


def test_with_one_detector_nothing_is_disputed():
    assert decided().findings()["kind"].to_list() == ["clean", "id_noise", "ood_noise", "clean", "id_noise", "id_noise"]


def test_scores_are_those_of_the_rows_and_reasons_name_the_pseudo_label():
    found = decided().findings(p_ood=torch.arange(8.0) / 8)
    assert found["p_ood"].to_list() == [n / 8 for n in range(1, 7)]
    assert found["p_clean"].to_list() == pytest.approx([0.99, 0.02, 0.01, 0.6, 0.3, 0.04])
    reason = json.loads(found["reason"][1])
    assert reason["why"] == "taken for noisy, its pseudo-label is reliable"
    assert (reason["pseudo_label"], reason["probability"], reason["pseudo_weight"]) == ("dog", 0.8, 0.75)


def test_state_survives_a_round_trip():
    own, again = decided(), memory()
    again.load_state_dict(own.state_dict())
    assert again.findings().equals(own.findings())
