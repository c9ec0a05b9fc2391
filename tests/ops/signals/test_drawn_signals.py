"""Views of signals that are rendered in batches equal those that are made one by one, but for the draw of the noise."""

import pickle
from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from appssl.ops.random import rng_for
from appssl.ops.rows import batch_of_views, rendered
from tests.views.test_signal import OFF, ON, meta, views, window

QUIET = {"jitter": 0.0}
WINDOWS = [window(seed=seed) for seed in range(8)]


def rngs(count=8):
    return [rng_for(3, 1, index) for index in range(count)]


def made_one_by_one(build, windows=None):
    return torch.stack([build.views(w, rng)[0] for w, rng in zip(windows or WINDOWS, rngs(), strict=True)])


STEPS = [*(name for name in OFF if name != "jitter"), "all"]


@pytest.mark.parametrize(("mode", "step"), [*product(("concat", "devices"), STEPS), ("concat", "device_dropout")])
def test_the_first_view_of_the_same_generator_is_the_same(mode, step):
    chosen = {**ON, **QUIET} if step == "all" else {**OFF, step: 0.5}
    build = views(mode=mode, num_views=1, render="device", dropout_share=0.4, rotation_degrees=90, **chosen)
    found = build.drawn(WINDOWS, rngs()).render()
    assert len(found) == build.num_views
    torch.testing.assert_close(found[0], made_one_by_one(build), rtol=1e-5, atol=1e-5)


def test_a_view_without_any_change_is_the_plain_one():
    build = views(render="device", **OFF)
    drawn = build.drawn(WINDOWS, rngs())
    assert drawn.steps == ()
    for view in drawn.render():
        torch.testing.assert_close(view, torch.stack([build.plain(w) for w in WINDOWS]), rtol=0, atol=0)


def test_noise_is_gaussian_of_its_standard_deviation_and_other_in_every_view_and_window():
    build = views(render="device", **{**OFF, "jitter": 1.0}, jitter_std=0.25)
    plain = torch.stack([build.plain(w) for w in WINDOWS])
    one, two = ((view - plain).double().numpy() / 0.25 for view in build.drawn(WINDOWS, rngs()).render())
    assert stats.kstest(one.ravel(), "norm").pvalue > 1e-3
    assert stats.kstest(two.ravel(), "norm").pvalue > 1e-3
    everything = np.concatenate([one, two]).reshape(16, -1)
    assert np.abs(np.corrcoef(everything) - np.eye(16)).max() < 6 * everything.shape[1] ** -0.5


def test_whole_views_have_the_distribution_of_those_made_one_by_one():
    """Of one window 2,000 views each way: mean, spread and largest change of a few channels, two-sample tests."""
    one = window(devices=2, size=64)
    build = views(meta(devices=2, size=64), num_views=1, render="device", dropout_share=0.3, device_dropout=0.3, **ON)
    count = 2000
    single = torch.stack([build.views(one, rng_for(0, 0, i))[0] for i in range(count)])
    batch = build.drawn([one] * count, [rng_for(1, 0, i) for i in range(count)]).render()[0]
    for statistic in (lambda v: v.mean(2), lambda v: v.std(2), lambda v: v.diff(dim=2).abs().amax(2)):
        for channel in (0, 4, 17):
            first, second = statistic(single)[:, channel].numpy(), statistic(batch)[:, channel].numpy()
            assert stats.ks_2samp(first, second).pvalue > 1e-4


@pytest.mark.parametrize("changes", [OFF, ON])
def test_a_missing_device_is_zero(changes):
    missing = window()
    missing[2] = np.nan
    found = views(render="device", **changes).drawn([missing, window()], rngs(2)).render()[0].view(2, 5, 9, 125)
    assert (found[0, 2] == 0).all()
    assert torch.isfinite(found).all()
    assert (found[0, 0] != 0).any()


def test_a_window_has_the_same_views_in_any_batch():
    build = views(render="device", **ON)
    whole = build.drawn(WINDOWS, rngs()).render()
    part = build.drawn(WINDOWS[2:5], rngs()[2:5]).render()
    for view, of_part in zip(whole, part, strict=True):
        torch.testing.assert_close(of_part, view[2:5], rtol=1e-5, atol=1e-6)


def test_large_batches_are_rendered_in_parts(monkeypatch):
    drawn = views(render="device", **ON).drawn(WINDOWS, rngs())
    whole = drawn.render()
    monkeypatch.setattr("appssl.ops.signals.drawn_signals._NUMBERS", 3 * WINDOWS[0].size)
    for one, two in zip(whole, drawn.render(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_batches_of_prepared_windows_are_rendered_where_they_are():
    class Data:
        def read(self, row):
            return WINDOWS[row]

    build = views(render="device", **ON)
    rows = np.array([5, 1, 3])
    batch = pickle.loads(pickle.dumps(batch_of_views(Data(), rows, build, seed=4, epoch=2)))  # as from a worker
    expected = build.drawn([WINDOWS[row] for row in rows], [rng_for(4, 2, int(row)) for row in rows]).render()
    for one, two in zip(rendered(batch)["views"], expected, strict=True):
        assert torch.equal(one, two)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: there is no GPU here")
def test_a_gpu_renders_the_same():
    drawn = views(render="device", **ON).drawn(WINDOWS, rngs()).pin_memory()
    tensors = {each.name: getattr(drawn, each.name).cuda() for each in fields(drawn) if each.name != "steps"}
    for one, two in zip(drawn.render(), replace(drawn, **tensors).render(), strict=True):
        torch.testing.assert_close(two.cpu(), one, rtol=1e-4, atol=1e-4)
