from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sk

from appssl.contracts import Meta, Scored
from appssl.errors import DataError
from appssl.evaluators.device_subsets import Config, Without, build, named_subsets
from appssl.views.signal import Config as SignalConfig
from appssl.views.signal import build as build_signal

DEVICES = ["wrist", "chest", "ankle"]


def scored(num=40):
    """Windows of 3 devices, 2 channels, 5 samples; a model that adds up the first channels, wrist counting double."""
    rng = np.random.default_rng(0)
    signs = 0.3 * rng.choice([-1, 1], (num, 1, 1, 1))
    windows = (rng.standard_normal((num, 3, 2, 5)) + signs).astype(np.float32)
    facts = {
        "devices": DEVICES,
        "channels": ["a", "b"],
        "window_samples": 5,
        "channel_mean": np.zeros((3, 2)).tolist(),
        "channel_std": np.ones((3, 2)).tolist(),
    }
    views = build_signal(SignalConfig(), Meta("test", "wearable", "classification", facts=facts))

    def rescored(change):
        seen = np.stack([views.plain(change(window)).numpy().reshape(3, 2, 5) for window in windows])
        score = (seen[:, :, 0].mean(2) * [2, 1, 1]).sum(1)
        yes = 1 / (1 + np.exp(-score))
        return np.stack([1 - yes, yes], 1)

    noisy = windows.mean((1, 2, 3)) + 0.5 * rng.standard_normal(num) > 0
    one = Scored(
        ids=np.array([f"s{i}" for i in range(num)]),
        groups=np.array([f"p{i % 5}" for i in range(num)]),
        target=noisy.astype(np.int64),
        classes=("no", "yes"),
        facts=facts,
        rescored=rescored,
    )
    return one, windows


def literal(windows, kept):
    """The same model by hand: a device that is not kept adds nothing."""
    weight = [2, 1, 1]
    total = sum(weight[d] * windows[:, d, 0].mean(1) for d in kept)
    return (total > 0).astype(np.int64)


def test_every_subset_has_the_macro_f1_of_a_model_that_sees_only_its_devices():
    one, windows = scored()
    found = build(Config(subsets="all")).evaluate(one, num_bootstrap=100, seed=0)
    subsets = named_subsets(DEVICES, "all")
    assert list(found) == list(subsets)
    for name, kept in subsets.items():
        expected = sk.f1_score(one.target, literal(windows, kept), average="macro")
        assert found[name].value == pytest.approx(expected), name
        assert found[name].num_groups == 5
    assert len({metric.value for metric in found.values()}) > 3


def test_names_of_three_devices():
    assert named_subsets(DEVICES, "each") == {
        "macro_f1_of_all_devices": (0, 1, 2),
        "macro_f1_without_ankle": (0, 1),
        "macro_f1_without_chest": (0, 2),
        "macro_f1_without_wrist": (1, 2),
        "macro_f1_only_wrist": (0,),
        "macro_f1_only_chest": (1,),
        "macro_f1_only_ankle": (2,),
    }


@pytest.mark.parametrize(("count", "each", "every"), [(2, 3, 3), (4, 9, 15), (5, 11, 31), (7, 15, 127)])
def test_all_sets_are_there_once(count, each, every):
    names = [f"d{n}" for n in range(count)]
    assert len(set(named_subsets(names, "each").values())) == each
    found = named_subsets(names, "all")
    assert len(set(found.values())) == len(found) == every
    assert () not in found.values()


def test_nothing_is_taken_from_the_whole_set_and_the_window_stays_as_it_is():
    window = np.ones((3, 2, 5), np.float32)
    assert np.array_equal(Without(np.array([True] * 3))(window), window)
    left = Without(np.array([True, False, True]))(window)
    assert np.isnan(left[1]).all()
    assert (left[[0, 2]] == 1).all()
    assert left.dtype == np.float32
    assert (window == 1).all()


def test_without_classifier_or_devices_is_an_error_that_says_what_to_do():
    one, _ = scored()
    for changed, message in (
        (replace(one, rescored=None), "add a finetune block"),
        (replace(one, facts={}), "these data have 0"),
        (replace(one, facts={"devices": ["wrist"]}), "these data have 1"),
    ):
        with pytest.raises(DataError, match=message):
            build(Config()).evaluate(changed, num_bootstrap=100, seed=0)
    with pytest.raises(DataError, match=r"8 devices have 254 subsets.*subsets: each"):
        named_subsets([f"d{n}" for n in range(8)], "all")
