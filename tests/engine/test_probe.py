"""The encoder measured on the way: what is measured equals its definition, and training does not notice."""

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from appssl.contracts import Meta, Step
from appssl.engine.fit import fit
from appssl.engine.probe import Probe
from appssl.ops.spectrum import rank_me
from appssl.recipe import Probe as ProbeSettings
from tests.engine.training import Kept, settings

CLASSES = ("a", "b", "c")


class Points:
    """Points around the centre of their class; a group is of one class, every eighth row is for testing."""

    def __init__(self, size=240, labelled=True):
        rng = np.random.default_rng(0)
        target = np.arange(size) % 3
        self.values = (rng.normal(0, 0.3, (size, 6)) + 2 * np.eye(6)[target]).astype(np.float32)
        self.meta = Meta("made", "webnoisy", "classification", CLASSES)
        self.samples = pl.DataFrame(
            {
                "index": np.arange(size),
                "id": [f"p{i}" for i in range(size)],
                "group": [f"g{i % 24}" for i in range(size)],
                "split": ["test" if i % 8 == 7 else "train" for i in range(size)],
                "label": [CLASSES[k] if labelled else None for k in target],
            },
            schema_overrides={"label": pl.String},
        )

    def read(self, row):
        return self.values[row]


class Views:
    num_views, input_shape = 2, (6,)

    def plain(self, sample):
        return torch.from_numpy(sample)


class Learner(nn.Module):
    def __init__(self, projected=True):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        if projected:
            self.projector = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5))

    def forward(self, batch):
        return Step(self.projector(self.backbone(batch["input"])).square().mean())

    def export(self):
        return self.backbone


def learner(**given):
    torch.manual_seed(0)
    return Learner(**given)


def probe(of, data=None, **given):
    how = {"seed": 0, "threads": 1, "accelerator": "cpu"}
    return Probe(of, data or Points(), Views(), ProbeSettings(**given), **how)


@pytest.mark.parametrize(("times", "num_steps"), [(3, 100), (1, 7), (5, 5), (7, 5), (0, 10)])
def test_measured_as_often_as_asked_evenly_and_at_the_end(times, num_steps):
    found = [step for step in range(1, num_steps + 1) if probe(learner(), times=times).is_due(step, num_steps)]
    assert len(found) == min(times, num_steps)
    if times:
        assert found[-1] == num_steps
        assert np.ptp(np.diff([0, *found])) <= 1


def test_ranks_are_those_of_features_and_projections_of_training_rows_in_evaluation_mode():
    own, data = learner(), Points()
    measured = probe(own, data, rows=10_000)
    found = measured.measure()
    train = torch.from_numpy(data.values[data.samples["split"].to_numpy() == "train"])
    own.eval()
    with torch.no_grad():
        features = own.backbone(train)
        expected = rank_me(own.projector(features).numpy())
    assert found["rank_me"] == pytest.approx(expected, rel=1e-6)
    assert found["rank_me_features"] == pytest.approx(rank_me(features.numpy()), rel=1e-6)
    assert measured.last == {**found, "layer": "projector", "width": 5, "num_rows": 210}


def test_without_a_projector_the_features_are_measured():
    measured = probe(learner(projected=False), rows=64)
    found = measured.measure()
    assert found["rank_me"] == found["rank_me_features"]
    assert (measured.last["layer"], measured.last["width"], measured.last["num_rows"]) == ("features", 8, 64)


def test_classes_are_told_from_groups_that_did_not_teach():
    measured = probe(learner())
    groups = measured.data.samples[measured.rows]["group"].to_numpy()
    assert set(groups[measured.teaches]).isdisjoint(groups[~measured.teaches])
    found = measured.measure()
    assert found["knn_accuracy"] > 0.9
    assert found["linear_accuracy"] > 0.9


def test_labels_are_not_needed():
    assert set(probe(learner(), Points(labelled=False)).measure()) == {"rank_me", "rank_me_features"}


def test_a_collapsed_encoder_is_said(capsys):
    own = learner()
    with torch.no_grad():
        own.backbone[1].weight.zero_()
        own.backbone[1].bias.fill_(1.0)  # the same features for every sample
    assert probe(own).measure()["rank_me_features"] == pytest.approx(1.0, abs=1e-4)
    assert "the encoder collapsed" in capsys.readouterr().err
    with torch.no_grad():
        own.backbone[1].bias.zero_()
    assert probe(own).measure()["rank_me_features"] == 1.0
    capsys.readouterr()
    probe(learner()).measure()
    assert capsys.readouterr().err == ""


def test_features_that_are_not_finite_are_left_to_the_training():
    own = learner()
    with torch.no_grad():
        own.backbone[0].weight.fill_(torch.nan)
    measured = probe(own)
    assert measured.measure() == {}
    assert measured.last == {}


class Rows:
    def __init__(self, data):
        self.data, self.facts = data, {}

    def __len__(self):
        return len(self.data.values)

    def batch(self, indices, *, seed, epoch):
        return {"index": torch.from_numpy(indices), "input": torch.from_numpy(self.data.values[indices])}


def test_training_does_not_change_and_the_journal_has_what_was_measured(tmp_path):
    data, states, kept = Points(), [], Kept()
    for number, times in enumerate((0, 4)):
        own = learner()
        fit(
            own,
            Rows(data),
            settings(steps=12),
            state_dir=tmp_path / str(number),
            journal=kept,
            seed=0,
            accelerator="cpu",
            probe=probe(own, data, times=times),
        )
        states.append(own.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    measured = [step for step, values in kept.rows if "probe/rank_me" in values]
    assert measured == [3, 6, 9, 12]
