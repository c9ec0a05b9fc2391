"""PLS-LSA: what differs from PLS, against the equations, and the small claim about its detector."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_images
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional

from appssl import registry
from appssl.contracts import Context
from appssl.errors import DataError, SettingsError
from appssl.finetuners.pls import PLS
from appssl.finetuners.pls_lsa import Config, build, labelled_examples
from appssl.ops.linear_separation import separate
from appssl.ops.tracked_labels import Tracked, small_loss_posterior
from appssl.settings import validate
from tests.finetuners.noisy import (
    META,
    Encoder,
    Stop,
    Stopping,
    Views,
    batch,
    labelled,
    learner,
    plain_batches,
    trained,
)
from tests.finetuners.test_pls import ORDER, SHARE, begun, literal_guess
from tests.ops.test_noisy_targets import looped_contrast, looped_mixed_loss


def tuned(**values):
    return learner(build, Config(projector_out=6, **values))


@pytest.fixture
def fixed(monkeypatch):
    """lam 0.7 and a known order of the batch."""
    monkeypatch.setattr(PLS, "_mix", lambda self, size, device: (torch.tensor(SHARE), ORDER))


def literal_terms(own, data, guess=None):
    model = copy.deepcopy(own).double().train()
    guess = literal_guess(model, data["views"][:1], own.config.sharpening) if guess is None else guess
    noisy, w = model.memory.noisy[data["index"]], model.memory.weight[data["index"]].double()
    eye = torch.eye(3, dtype=torch.float64)
    targets = torch.stack([guess[i] if noisy[i] else eye[data["target"][i]] for i in range(8)])
    x = [(data["views"][2] if noisy[i] else data["input"])[i].double() for i in range(8)]
    features = model.backbone(torch.stack([SHARE * x[i] + (1 - SHARE) * x[ORDER[i]] for i in range(8)]))
    logits = model.head(features).detach()
    classification = looped_mixed_loss(logits, targets, w * data["weight"].double(), ORDER, torch.tensor(SHARE))
    classes = targets.argmax(1).tolist()
    rows = [torch.tensor([float(c == d) for d in classes], dtype=torch.float64) for c in classes]
    rows = [row / row.sum() for row in rows]
    attraction = torch.stack([SHARE * rows[i] + (1 - SHARE) * rows[ORDER[i]] for i in range(8)])
    keys = model.projector(model.backbone(data["views"][1].double())).detach()
    images = model.projector(features).detach()
    return classification, looped_contrast(images, keys, attraction, own.config.temperature), guess


def test_the_step_equals_the_equations_written_out(fixed):
    own, data = begun(tuned()).train(), batch()
    classification, contrastive, guess = literal_terms(own, data)
    step = own(data)
    assert float(step.metrics["loss_classification"]) == pytest.approx(classification, rel=1e-5)
    assert float(step.metrics["loss_contrastive"]) == pytest.approx(contrastive, rel=1e-5)
    assert float(step.loss.detach()) == pytest.approx(classification + contrastive, rel=1e-5)
    torch.testing.assert_close(own.memory.guess[data["index"]].double(), guess, rtol=1e-5, atol=1e-6)


def test_the_penalty_is_added_where_asked_for(fixed):
    without, with_it = (begun(tuned(prior_penalty=on)).train()(batch()) for on in (False, True))
    torch.testing.assert_close(with_it.loss - without.loss, with_it.metrics["loss_prior"])


def test_without_noisy_samples_the_strong_view_is_not_seen(fixed):
    data = batch()
    other = {**data, "views": [*data["views"][:2], torch.full((8, 4), 9.0)]}
    one, two = (tuned().train()(d) for d in (data, other))
    assert torch.equal(one.loss, two.loss)
    one, two = (begun(tuned()).train()(d) for d in (data, other))
    assert not torch.equal(one.loss, two.loss)


def test_where_there_is_no_strong_view_it_is_the_contrastive_one():
    class One(Views):
        num_views = 1

    found = labelled_examples(Config(), labelled(views=One())).batch(np.arange(8), seed=0, epoch=0)
    assert len(found["views"]) == 2
    noisy = torch.arange(8) % 2 == 0
    images = tuned()._images(found, noisy)
    assert torch.equal(images[noisy], found["views"][1][noisy])
    assert torch.equal(images[~noisy], found["input"][~noisy])


def tracked(own, epoch):
    """One tracking pass; what it must have found, from the network and its features."""
    examples = labelled_examples(Config(), labelled())
    own.eval()
    with torch.no_grad():
        own.track(iter(plain_batches(examples)), epoch)
        inputs = examples.plain(np.arange(60))["input"]
        stages = own.backbone.stage_features(inputs)
        losses = functional.cross_entropy(own.head(stages[-1]), torch.from_numpy(labelled().targets), reduction="none")
    by_loss = 1 - small_loss_posterior(losses.numpy()) > own.config.threshold
    return by_loss, separate(stages[own.config.feature_stage].numpy(), by_loss)


DETECTORS = {"loss": "zzzz", "linear": "wwww", "alternate": "wzwz"}


@pytest.mark.parametrize("detector", DETECTORS)
def test_noise_is_what_the_detector_of_the_epoch_says(detector):
    own = tuned(detector=detector, threshold=0.6, feature_stage=0)
    for epoch, turn in enumerate(DETECTORS[detector]):
        torch.manual_seed(epoch)
        nn.init.normal_(own.head.weight)  # other losses in every epoch
        by_loss, plane = tracked(own, epoch)
        assert not np.array_equal(by_loss, plane > 0)
        assert own.memory.noisy.tolist() == (by_loss if turn == "z" else plane > 0).tolist()
        assert own.by_loss.tolist() == by_loss.tolist()


@pytest.mark.parametrize("stage", [0, 1])
def test_the_plane_lies_in_the_features_of_the_chosen_stage(stage):
    own = tuned(threshold=0.6, feature_stage=stage)
    _, plane = tracked(own, 0)
    np.testing.assert_allclose(own.plane, plane, rtol=1e-3, atol=1e-3)  # of batches of another size


def test_kinds_follow_both_detectors():
    own = tuned(threshold=0.6, feature_stage=0)
    by_loss, plane = tracked(own, 0)
    found, by_plane = own.findings(), own.plane.numpy() > 0
    weight = own.memory.weight.numpy()
    assert np.array_equal(by_plane, plane > 0)
    both, one = by_loss & by_plane, by_loss ^ by_plane
    expected = np.select([one, ~both, weight > 0.5], ["hard_clean", "clean", "id_noise"], "ood_noise")
    assert found["kind"].to_list() == expected.tolist()
    assert {"hard_clean", "clean"} < set(expected.tolist())
    np.testing.assert_allclose(found["p_ood"], 1 / (1 + np.exp(-plane)), atol=1e-3)
    np.testing.assert_allclose(found["p_clean"], own.memory.p_clean)


def test_with_turns_the_plane_is_that_of_the_last_even_epoch():
    own = tuned(threshold=0.6, feature_stage=0)
    tracked(own, 0)
    plane = own.plane.clone()
    nn.init.normal_(own.head.weight)
    by_loss, _ = tracked(own, 1)
    assert torch.equal(own.plane, plane)
    disputed = (own.findings()["kind"] == "hard_clean").to_numpy()
    assert np.array_equal(disputed, by_loss ^ (plane.numpy() > 0))


def test_the_small_loss_alone_disputes_nothing():
    own = tuned(detector="loss", threshold=0.6)
    tracked(own, 0)
    found = own.findings()
    assert "p_ood" not in found.columns
    assert "hard_clean" not in found["kind"].to_list()


def track_as(own, losses, features):
    """Decides on samples with given losses and features."""
    count = len(losses)
    found = Tracked(np.arange(count), np.zeros(count, np.int64), losses, np.linspace(0, 1, count), features)
    by_loss = 1 - small_loss_posterior(losses) > own.config.threshold
    own.memory.decide(found, small_loss_posterior(losses), own._detect(found, by_loss, 0))
    return by_loss


@pytest.mark.parametrize(
    ("losses", "features"),
    [
        (np.ones(60), np.random.default_rng(0).normal(size=(60, 4))),  # no loss stands out
        (np.full(60, np.inf), np.random.default_rng(0).normal(size=(60, 4))),
        (np.arange(60) % 4 * 1.0, np.ones((60, 4))),  # collapsed
        (np.arange(60) % 4 * 1.0, np.full((60, 4), np.nan)),
    ],
)
def test_where_nothing_can_be_separated_the_plane_says_what_the_loss_says(losses, features):
    own = tuned(threshold=0.5)
    by_loss = track_as(own, losses, features)
    assert own.memory.noisy.tolist() == by_loss.tolist()
    assert "hard_clean" not in own.findings()["kind"].to_list()
    assert torch.isfinite(own.memory.weight).all()


def test_one_or_two_noisy_samples_keep_their_whole_weight():
    own = tuned(detector="loss", threshold=0.5)
    track_as(own, np.where(np.arange(60) < 2, 5.0, 0.1 + 0.001 * np.arange(60)), np.ones((60, 4)))
    assert own.memory.noisy.sum() == 2
    assert (own.memory.weight == 1).all()


def test_a_backbone_without_stages_is_separated_in_its_own_features():
    class Plain(nn.Module):
        num_features = 5

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 5)

        def forward(self, inputs):
            return self.layer(inputs)

    own = learner(build, Config(feature_stage=7, threshold=0.6), encoder=Plain())
    inputs = torch.randn(9, 4)
    logits, features = own._see(inputs)
    assert torch.equal(features, own.backbone(inputs))
    assert torch.equal(logits, own.head(features))


@pytest.mark.parametrize("name", ["small_cnn", "timm"])
def test_stages_of_image_networks_are_seen_in_one_pass(name):
    torch.manual_seed(0)
    values = {"small_cnn": {"widths": [16, 24]}, "timm": {"model": "resnet10t"}}[name]
    settings = registry.load("backbones", name).Config(**values)
    network = registry.build("backbones", settings, (3, 32, 32), META)
    own = build(Config(), Context(META, network, (3, 32, 32), num_samples=8)).eval()
    assert network.training is False
    inputs = torch.randn(2, 3, 32, 32)
    logits, features = own._see(inputs)
    torch.testing.assert_close(logits, own.head(network(inputs)))
    torch.testing.assert_close(features, network.stage_features(inputs)[1])


def test_looking_at_the_stages_leaves_no_trace():
    encoder = Encoder()
    before = copy.deepcopy(encoder.state_dict())
    learner(build, Config(), encoder=encoder)
    assert encoder.training
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("batches", [4, 8])
def test_resumed_training_equals_uninterrupted_training(tmp_path, batches):
    def make():
        return tuned(threshold=0.5, feature_stage=0)

    examples = labelled_examples(Config(), labelled())
    whole = trained(tmp_path / "whole", make(), examples)
    with pytest.raises(Stop):
        trained(tmp_path / "cut", make(), Stopping(examples, batches))
    resumed = trained(tmp_path / "cut", make(), examples)
    assert torch.isfinite(whole.plane).all()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_half_precision_is_enough_for_tracking():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = begun(tuned(threshold=0.6)).train()
        step = own(batch())
        own.eval()
        with torch.no_grad():
            own.track(iter(plain_batches(labelled_examples(Config(), labelled()))), 0)
    assert step.loss.dtype == torch.float32
    assert torch.isfinite(own.plane).all()


def test_what_cannot_work_is_refused():
    with pytest.raises(SettingsError, match="feature_stage is 2, the backbone has stages 0 to 1"):
        tuned(feature_stage=2)
    with pytest.raises(DataError, match="pls_lsa mixes values of inputs"):
        tuned()({**batch(), "input": torch.zeros(8, 4, dtype=torch.int64)})
    with pytest.raises(SettingsError, match="Did you mean linear"):
        validate(Config, {"detector": "liner"}, file="r.yaml", owner="finetuners/pls_lsa")


def digits_and_textures(seed):
    """1,000 digits of 8 x 8 pixels with their labels, 660 patches of photographs with random ones, both in 0..1."""
    rng = np.random.default_rng(seed)
    digits, labels = load_digits(return_X_y=True)
    chosen = rng.choice(len(digits), 1000, replace=False)
    patches = []
    for photo in load_sample_images().images:
        grey = photo.mean(2) / 255
        tops, lefts = rng.integers(0, grey.shape[0] - 8, 330), rng.integers(0, grey.shape[1] - 8, 330)
        patches += [grey[t : t + 8, k : k + 8].ravel() for t, k in zip(tops, lefts, strict=True)]
    pixels = np.concatenate([digits[chosen] / 16, np.array(patches)])
    return pixels, np.concatenate([labels[chosen], rng.integers(0, 10, 660)]), np.arange(1660) >= 1000


def losses_of_random_features(pixels, labels, seed, lr):
    """Cross-entropies (N,) of a softmax classifier on 256 random features after 60 steps with all samples."""
    torch.manual_seed(seed)
    x, y = torch.from_numpy(pixels).float(), torch.from_numpy(labels)
    features = torch.relu((x - x.mean(0)) @ torch.randn(64, 256) / 8)
    head = nn.Linear(256, 10)
    optimizer = torch.optim.SGD(head.parameters(), lr=lr)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(head(features), y).backward()
        optimizer.step()
    return functional.cross_entropy(head(features), y, reduction="none").detach().numpy()


@pytest.mark.parametrize(("lr", "margin"), [(0.5, 0.0), (0.05, 0.05)])
def test_the_plane_finds_images_of_no_class_better_than_the_loss_it_is_fitted_on(lr, margin):
    """In every seed. How much better depends on the loss: 0.01 where that finds nearly all, 0.10 where it was little
    trained; these images are easy to tell apart.
    """
    for seed in range(5):
        pixels, labels, outside = digits_and_textures(seed)
        by_loss = 1 - small_loss_posterior(losses_of_random_features(pixels, labels, seed, lr)) > 0.95
        by_plane = separate(pixels, by_loss) > 0
        assert roc_auc_score(outside, by_plane) > roc_auc_score(outside, by_loss) + margin
