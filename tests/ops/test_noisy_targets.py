"""Each term against a loop over its equation in float64, and the worked example of its specification."""

import math

import pytest
import torch

from appssl.ops.noisy_targets import (
    contrast,
    mixed_after_sums,
    mixed_before_sums,
    mixed_loss,
    prior_penalty,
    same_class,
    sharpened,
    soft_cross_entropies,
    weighted_pairs,
)

DOUBLE = torch.float64
LOGITS = torch.tensor([[2, 0, -1], [0, 1, 0.5], [0.3, -0.2, 0.1]], dtype=DOUBLE)
GUESS = torch.tensor([[0.6, 0.3, 0.1]], dtype=DOUBLE)
WEIGHTS, OTHER, SHARE = (
    torch.tensor([1, 1, 0.4], dtype=DOUBLE),
    torch.tensor([2, 0, 1]),
    torch.tensor(0.7, dtype=DOUBLE),
)
IMAGES = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=DOUBLE)
KEYS = torch.tensor([[0.8, 0.6], [0, 1], [0.6, -0.8]], dtype=DOUBLE)
CLASSES = torch.tensor([0, 1, 0])


def targets():
    return torch.cat([torch.eye(3, dtype=DOUBLE)[:2], sharpened(GUESS, 2.0)])


def random_case(seed=0, size=7, num_classes=4):
    rng = torch.Generator().manual_seed(seed)
    return {
        "logits": 3 * torch.randn(size, num_classes, dtype=DOUBLE, generator=rng),
        "targets": torch.randn(size, num_classes, dtype=DOUBLE, generator=rng).softmax(1),
        "weights": torch.rand(size, dtype=DOUBLE, generator=rng),
        "other": torch.randperm(size, generator=rng),
        "share": torch.rand((), dtype=DOUBLE, generator=rng),
    }


def log_softmax(row):
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


def looped_mixed_loss(logits, targets, weights, other, share):
    total = sum(weights.tolist())
    loss = 0.0
    for i in range(len(logits)):
        j, log_p = int(other[i]), log_softmax(logits[i].tolist())
        for part, k in ((share, i), (1 - share, j)):
            loss -= (
                float(part)
                * float(weights[k])
                / total
                * sum(float(t) * q for t, q in zip(targets[k], log_p, strict=True))
            )
    return loss


def looped_contrast(images, keys, attraction, temperature):
    unit = [[value / math.hypot(*row) for value in row] for row in (*images.tolist(), *keys.tolist())]
    a, b = unit[: len(images)], unit[len(images) :]
    loss = 0.0
    for i, row in enumerate(a):
        log_share = log_softmax([sum(x * y for x, y in zip(row, key, strict=True)) / temperature for key in b])
        loss -= sum(float(attraction[i, j]) * log_share[j] for j in range(len(b))) / len(a)
    return loss


@pytest.mark.parametrize("seed", range(3))
def test_the_mixed_loss_equals_the_loop_over_its_equation(seed):
    case = random_case(seed)
    assert float(mixed_loss(**case)) == pytest.approx(looped_mixed_loss(**case), rel=1e-12)


def test_the_penalty_equals_its_equation():
    logits = random_case()["logits"]
    mean = logits.softmax(1).mean(0).tolist()
    assert float(prior_penalty(logits)) == pytest.approx(sum(0.25 * math.log(0.25 / p) for p in mean), rel=1e-12)


def test_pairs_and_contrast_equal_the_loops_over_their_equations():
    rng = torch.Generator().manual_seed(1)
    images, keys = (torch.randn(6, 3, dtype=DOUBLE, generator=rng) for _ in range(2))
    classes, weights = torch.tensor([0, 1, 1, 2, 0, 1]), torch.rand(6, dtype=DOUBLE, generator=rng)
    other, share = torch.randperm(6, generator=rng), torch.tensor(0.6, dtype=DOUBLE)
    hard, soft = torch.zeros(6, 6, dtype=DOUBLE), torch.zeros(6, 6, dtype=DOUBLE)
    for i in range(6):
        for j in range(6):
            same = float(classes[i] == classes[j])
            hard[i, j] = same
            soft[i, j] = weights[i] * weights[j] * same + (1 - weights[i]) * (1 - weights[j]) * (i == j)
    after, before = torch.zeros(6, 6, dtype=DOUBLE), torch.zeros(6, 6, dtype=DOUBLE)
    for i in range(6):
        k = int(other[i])
        after[i] = share * hard[i] / sum(hard[i]) + (1 - share) * hard[k] / sum(hard[k])
        mixed = share * soft[i] + (1 - share) * soft[k]
        before[i] = mixed / sum(mixed)
    found = mixed_after_sums(same_class(classes, classes).double(), other, share)
    torch.testing.assert_close(found, after)
    found = mixed_before_sums(weighted_pairs(classes, weights, classes, weights, torch.arange(6)), other, share)
    torch.testing.assert_close(found, before)
    for attraction in (after, before):
        expected = looped_contrast(images, keys, attraction, 0.3)
        assert float(contrast(images, keys, attraction, temperature=0.3)) == pytest.approx(expected, rel=1e-12)


def test_worked_numbers():
    guess = sharpened(GUESS, 2.0)
    assert guess[0].tolist() == pytest.approx([0.782609, 0.195652, 0.021739], abs=1e-6)
    assert float(soft_cross_entropies(torch.tensor([[1, 0.2, -0.5]], dtype=DOUBLE), guess)) == pytest.approx(
        0.703426, abs=1e-6
    )
    assert float(mixed_loss(LOGITS, targets(), WEIGHTS, OTHER, SHARE)) == pytest.approx(0.777825, abs=1e-6)
    assert float(prior_penalty(LOGITS)) == pytest.approx(0.049257, abs=1e-6)


def test_worked_numbers_of_the_contrast():
    attraction = mixed_after_sums(same_class(CLASSES, CLASSES), OTHER, SHARE)
    assert float(contrast(IMAGES, KEYS, attraction, temperature=0.2)) == pytest.approx(2.222033, abs=1e-6)
    pairs = weighted_pairs(CLASSES, WEIGHTS, CLASSES, WEIGHTS, torch.arange(3))
    assert pairs.tolist() == [pytest.approx(row) for row in ([1, 0, 0.4], [0, 1, 0], [0.4, 0, 0.52])]
    attraction = mixed_before_sums(pairs, OTHER, SHARE)
    assert float(contrast(IMAGES, KEYS, attraction, temperature=0.2)) == pytest.approx(2.133693, abs=1e-6)


def test_sharpening_keeps_the_order_and_does_nothing_with_exponent_one():
    p = random_case()["logits"].softmax(1)
    torch.testing.assert_close(sharpened(p, 1.0), p)
    torch.testing.assert_close(sharpened(p, 3.0), p**3 / (p**3).sum(1, keepdim=True))
    assert torch.equal(sharpened(p, 7.0).argsort(1), p.argsort(1))
    torch.testing.assert_close(sharpened(p, 500.0), torch.nn.functional.one_hot(p.argmax(1), 4).to(DOUBLE))
    assert sharpened(torch.tensor([[1.0, 0.0]]), 2.0).tolist() == [[1.0, 0.0]]


def test_with_equal_weights_it_is_mixup_and_without_mixing_weighted_cross_entropy():
    case = random_case()
    logits, hard = case["logits"], case["targets"].argmax(1)
    labels = torch.nn.functional.one_hot(hard, 4).to(DOUBLE)
    mixed = case["share"] * labels + (1 - case["share"]) * labels[case["other"]]
    expected = torch.nn.functional.cross_entropy(logits, mixed)
    found = mixed_loss(logits, labels, torch.full((7,), 0.3, dtype=DOUBLE), case["other"], case["share"])
    torch.testing.assert_close(found, expected)
    own = torch.nn.functional.cross_entropy(logits, hard, reduction="none")
    alone = mixed_loss(logits, labels, case["weights"], case["other"], torch.ones((), dtype=DOUBLE))
    torch.testing.assert_close(alone, (case["weights"] * own).sum() / case["weights"].sum())


def test_a_sample_of_weight_zero_counts_nothing_and_nothing_at_all_is_zero():
    case = random_case()
    case["weights"][2] = 0
    changed = case["targets"].clone()
    changed[2] = torch.tensor([1.0, 0, 0, 0])
    torch.testing.assert_close(mixed_loss(**case), mixed_loss(**{**case, "targets": changed}))
    assert float(mixed_loss(**{**case, "weights": torch.zeros(7, dtype=DOUBLE)})) == 0


def test_the_penalty_is_zero_for_uniform_means_and_else_positive():
    assert float(prior_penalty(torch.zeros(5, 3))) == pytest.approx(0, abs=1e-7)
    opposite = torch.tensor([[4.0, -4.0], [-4.0, 4.0]])  # sure of each image, and of both classes as often
    assert float(prior_penalty(opposite)) == pytest.approx(0, abs=1e-6)
    values = [float(prior_penalty(torch.tensor([[z, 0.0, 0.0]]))) for z in (0.5, 1.0, 2.0, 300.0)]
    assert values == sorted(values)
    assert values[0] > 0
    assert math.isfinite(values[-1])


def test_trusted_labels_give_supervised_contrast_and_distrusted_ones_instance_discrimination():
    ones, zeros, own = torch.ones(3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE), torch.arange(3)
    assert torch.equal(weighted_pairs(CLASSES, ones, CLASSES, ones, own), same_class(CLASSES, CLASSES).to(DOUBLE))
    alone = weighted_pairs(CLASSES, zeros, CLASSES, zeros, own)
    assert torch.equal(alone, torch.eye(3, dtype=DOUBLE))
    found = contrast(IMAGES, KEYS, mixed_before_sums(alone, OTHER, torch.ones((), dtype=DOUBLE)), temperature=0.2)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(IMAGES @ KEYS.T / 0.2, own))


@pytest.mark.parametrize("seed", range(5))
def test_every_row_attracts_something_and_sums_to_one(seed):
    rng = torch.Generator().manual_seed(seed)
    classes, weights = torch.randint(0, 3, (9,), generator=rng), torch.rand(9, generator=rng)
    other, share = torch.randperm(9, generator=rng), torch.rand((), generator=rng)
    pairs = weighted_pairs(classes, weights, classes, weights, torch.arange(9))
    assert (pairs.sum(1) >= 0.5 - 1e-6).all()  # w^2 + (1 - w)^2 of the own view
    for rows in (mixed_before_sums(pairs, other, share), mixed_after_sums(same_class(classes, classes), other, share)):
        torch.testing.assert_close(rows.sum(1), torch.ones(9))


def test_the_own_view_is_found_among_those_of_other_processes():
    classes, keys = torch.tensor([0, 1]), torch.tensor([0, 0, 0, 1])
    pairs = weighted_pairs(classes, torch.zeros(2), keys, torch.zeros(4), torch.tensor([2, 3]))
    assert pairs.tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]


def test_the_scale_of_projections_does_not_matter():
    attraction = mixed_after_sums(same_class(CLASSES, CLASSES), OTHER, SHARE)
    one = contrast(IMAGES, KEYS, attraction, temperature=0.2)
    torch.testing.assert_close(contrast(7 * IMAGES, 0.01 * KEYS, attraction, temperature=0.2), one)


def test_gradients_reach_logits_images_and_keys_and_are_right():
    case = random_case()
    case["logits"].requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: mixed_loss(**{**case, "logits": z}), case["logits"])
    assert torch.autograd.gradcheck(prior_penalty, case["logits"])
    attraction = mixed_after_sums(same_class(CLASSES, CLASSES), OTHER, SHARE)
    a, b = IMAGES.clone().requires_grad_(True), KEYS.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x, y: contrast(x, y, attraction, temperature=0.2), (a, b))


def test_one_image_equal_embeddings_and_zero_vectors_are_finite():
    one = torch.zeros(1, dtype=torch.int64)
    zero = torch.zeros(1, 4, requires_grad=True)
    found = contrast(
        zero, torch.zeros(1, 4), mixed_after_sums(same_class(one, one), one, torch.tensor(0.5)), temperature=0.2
    )
    found.backward()
    assert float(found.detach()) == 0
    assert torch.isfinite(zero.grad).all()
    equal = contrast(torch.ones(3, 2), torch.ones(3, 2), torch.eye(3), temperature=0.2)
    assert float(equal) == pytest.approx(math.log(3))


def test_half_precision_is_summed_in_full():
    case = random_case()
    full = mixed_loss(**case)
    half = mixed_loss(**{**case, "logits": case["logits"].bfloat16()})
    assert float(half) == pytest.approx(float(full), rel=0.02)  # three digits of bfloat16
    assert prior_penalty(case["logits"].half()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = contrast(IMAGES.float(), KEYS.float(), torch.eye(3), temperature=0.2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, contrast(IMAGES.float(), KEYS.float(), torch.eye(3), temperature=0.2))
