import warnings

import numpy as np

from appssl.ops.random import permutation, rng_for


def test_streams_depend_on_every_argument():
    draws = {rng_for(*key).integers(2**60) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2**63)]}
    assert len(draws) == 5


def test_the_same_arguments_give_the_same_stream():
    assert (rng_for(3, 4, 5).random(8) == rng_for(3, 4, 5).random(8)).all()


def test_an_epoch_is_a_permutation_and_another_epoch_another_one():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = permutation(7, 0, 100), permutation(7, 1, 100)
    assert sorted(first) == sorted(second) == list(range(100))
    assert (first != second).any()
    assert first.dtype == np.int64
