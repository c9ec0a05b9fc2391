"""Two Gaussians on losses."""

import numpy as np
import pytest

from appssl.ops.mixture import Range, TwoGaussians, fit_two_gaussians, two_means_threshold


def two_heaps(seed=0, low=600, high=400):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(0.2, 0.05, low), rng.normal(0.7, 0.1, high)])


def literal_em(values, num_steps, floor=1e-6):
    """Textbook expectation maximization from the halves below and above the mean."""
    low = values <= values.mean()
    share = np.array([low.mean(), 1 - low.mean()])
    mean = np.array([values[low].mean(), values[~low].mean()])
    variance = np.array([values[low].var(), values[~low].var()]) + floor
    for _ in range(num_steps):
        density = share / np.sqrt(2 * np.pi * variance) * np.exp(-((values[:, None] - mean) ** 2) / (2 * variance))
        duty = density / density.sum(axis=1, keepdims=True)
        mass = duty.sum(axis=0)
        mean = (duty * values[:, None]).sum(axis=0) / mass
        variance = (duty * (values[:, None] - mean) ** 2).sum(axis=0) / mass + floor
        share = mass / len(values)
    return mean, variance, share


def test_equals_textbook_expectation_maximization():
    values = two_heaps()
    found = fit_two_gaussians(values)
    mean, variance, share = literal_em(values, 300)
    # Both stop at the same optimum; scikit-learn ends when the likelihood gains less than 1e-6.
    np.testing.assert_allclose(found.mean, mean, atol=1e-4)
    np.testing.assert_allclose(found.variance, variance, atol=1e-4)
    np.testing.assert_allclose(found.share, share, atol=1e-3)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_steps_and_floor_can_be_chosen(num_steps):
    """With a tolerance that is never reached it does just so many steps."""
    values = two_heaps()
    found = fit_two_gaussians(values, max_steps=num_steps, tolerance=0.0, floor=5e-4)
    mean, variance, share = literal_em(values, num_steps, floor=5e-4)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-10)
    np.testing.assert_allclose(found.share, share, rtol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_the_two_means_are_the_best_of_all_thresholds(seed):
    values = np.random.default_rng(seed).gamma(1.5, 1.0, 60).round(1)  # some are equal

    def distances(threshold):
        return sum(
            ((part - part.mean()) ** 2).sum() for part in (values[values <= threshold], values[values > threshold])
        )

    best = min(np.unique(values)[:-1], key=distances)
    assert distances(two_means_threshold(values)) == pytest.approx(distances(best), rel=1e-12)


def test_two_means_of_a_few_numbers():
    assert two_means_threshold(np.array([9.0, 0.0, 1.0, 10.0])) == 1.0
    assert two_means_threshold(np.array([3.0, 3.0, 3.0, 5.0])) == 3.0
    assert two_means_threshold(np.array([1.0, 2.0])) == 1.0


def test_few_steps_from_two_means_find_heaps_of_very_different_size():
    """The mean lies within the large heap, and a start from there does not leave it in so few steps."""
    values = np.concatenate(
        [np.random.default_rng(0).normal(m, s, n) for m, s, n in ((0.05, 0.02, 20), (0.7, 0.12, 200))]
    )
    few = {"max_steps": 10, "tolerance": 1e-2, "floor": 5e-4}
    assert fit_two_gaussians(values, **few, start="two_means").mean == pytest.approx((0.05, 0.7), abs=0.02)
    assert fit_two_gaussians(values, **few).mean[0] > 0.3


def test_a_large_tolerance_ends_early():
    values = two_heaps()
    assert fit_two_gaussians(values, tolerance=10.0) == fit_two_gaussians(values, max_steps=2, tolerance=0.0)


def test_finds_the_heaps_it_was_made_of():
    found = fit_two_gaussians(two_heaps())
    assert found.mean == pytest.approx((0.2, 0.7), abs=0.02)
    assert found.share == pytest.approx((0.6, 0.4), abs=0.02)


def test_posterior_is_bayes_rule_between_the_means():
    mixture = TwoGaussians((0.2, 0.8), (0.01, 0.04), (0.5, 0.5))
    values = np.linspace(0.2, 0.8, 7)
    density = [
        np.exp(-((values - m) ** 2) / (2 * v)) / np.sqrt(v) for m, v in zip((0.2, 0.8), (0.01, 0.04), strict=True)
    ]
    np.testing.assert_allclose(mixture.posterior_low(values), density[0] / sum(density), rtol=1e-12)


@pytest.mark.parametrize("variance", [(0.001, 0.1), (0.1, 0.001), (0.02, 0.02)])
def test_posterior_never_rises_with_the_loss(variance):
    mixture = TwoGaussians((0.3, 0.6), variance, (0.5, 0.5))
    posterior = mixture.posterior_low(np.linspace(-2, 3, 1001))
    assert (np.diff(posterior) <= 0).all()
    assert posterior[0] > 0.5 > posterior[-1]


def test_extreme_values_give_no_warning_and_no_nan():
    mixture = TwoGaussians((0.0, 1.0), (1e-6, 1e-6), (0.5, 0.5))
    with np.errstate(all="raise", under="ignore"):
        assert mixture.posterior_low(np.array([-1e9, 0.0, 1.0, 1e9])) == pytest.approx([1, 1, 0, 0])


def test_same_values_give_the_same_bits():
    assert fit_two_gaussians(two_heaps()) == fit_two_gaussians(two_heaps())


@pytest.mark.parametrize("values", [[], [0.5], [0.5] * 10])
def test_not_defined_without_two_different_values(values):
    assert fit_two_gaussians(np.array(values)) is None


def test_two_different_values_are_enough():
    found = fit_two_gaussians(np.array([0.0, 0.0, 1.0]))
    assert found.mean == pytest.approx((0, 1))


def test_range_ignores_a_few_extremes():
    losses = np.concatenate([np.linspace(0, 1, 1000), [1e6]])
    scale = Range.of(losses)
    assert scale.high < 1.1
    assert scale.normalize(np.array([scale.low, scale.high])).tolist() == [0, 1]


def test_range_of_equal_losses_normalizes_to_zero():
    assert Range.of(np.full(5, 2.0)).normalize(np.full(5, 2.0)).tolist() == [0] * 5
