"""PLS: the step against its equations written out, what is found of samples, and when."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from appssl.contracts import Meta, Progress
from appssl.errors import DataError, SettingsError
from appssl.finetuners.pls import PLS, Config, build, labelled_examples
from appssl.ops.random import rng_for
from appssl.ops.tracked_labels import pseudo_label_weights, small_loss_posterior
from appssl.settings import validate
from tests.finetuners.noisy import (
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
from tests.ops.test_noisy_targets import looped_contrast, looped_mixed_loss

ORDER = torch.tensor([4, 0, 1, 2, 3, 7, 5, 6])
SHARE = 0.7


def tuned(**values):
    return learner(build, Config(projector_out=6, **values))


def begun(own):
    """As after the first epochs, with the samples 4, 7 and 9 found noisy."""
    own.started.fill_(1.0)
    own.memory.noisy[torch.tensor([4, 7, 9])] = True
    own.memory.weight[torch.tensor([4, 7, 9])] = torch.tensor([0.3, 0.9, 0.0])
    return own


@pytest.fixture
def fixed(monkeypatch):
    """lam 0.7 and a known order of the batch."""
    monkeypatch.setattr(PLS, "_mix", lambda self, size, device: (torch.tensor(SHARE), ORDER))


def literal_guess(model, views, exponent):
    """Pseudo-labels by hand; `model` is in training mode and of double precision."""
    of_views = [model.head(model.backbone(view.double())).softmax(1).detach() for view in views]
    guess = []
    for i in range(len(views[0])):
        p = [sum(float(view[i, c]) for view in of_views) / len(of_views) for c in range(3)]
        guess.append([q**exponent / sum(r**exponent for r in p) for q in p])
    return torch.tensor(guess, dtype=torch.float64)


def literal_terms(own, data):
    model = copy.deepcopy(own).double().train()
    guess = literal_guess(model, [data["input"], data["views"][0]], own.config.sharpening)
    noisy, w = model.memory.noisy[data["index"]], model.memory.weight[data["index"]].double()
    targets = torch.stack(
        [guess[i] if noisy[i] else torch.eye(3, dtype=torch.float64)[data["target"][i]] for i in range(8)]
    )
    x = data["input"].double()
    features = model.backbone(torch.stack([SHARE * x[i] + (1 - SHARE) * x[ORDER[i]] for i in range(8)]))
    logits = model.head(features)
    classification = looped_mixed_loss(
        logits.detach(), targets, w * data["weight"].double(), ORDER, torch.tensor(SHARE)
    )
    mean = logits.softmax(1).mean(0).tolist()
    penalty = sum(np.log(1 / 3 / p) / 3 for p in mean)
    pairs = torch.zeros(8, 8, dtype=torch.float64)
    classes = targets.argmax(1)
    for i in range(8):
        for j in range(8):
            pairs[i, j] = w[i] * w[j] * (classes[i] == classes[j]) + (1 - w[i]) * (1 - w[j]) * (i == j)
    mixed = torch.stack([SHARE * pairs[i] + (1 - SHARE) * pairs[ORDER[i]] for i in range(8)])
    keys = model.projector(model.backbone(data["views"][1].double()))
    attraction = mixed / mixed.sum(1, keepdim=True)
    contrastive = looped_contrast(model.projector(features).detach(), keys.detach(), attraction, own.config.temperature)
    return classification, penalty, contrastive, guess


@pytest.mark.parametrize("sharpening", [2.0, 1.0])
def test_the_step_equals_the_equations_written_out(sharpening, fixed):
    own, data = begun(tuned(sharpening=sharpening)).train(), batch()
    classification, penalty, contrastive, guess = literal_terms(own, data)
    step = own(data)
    assert float(step.metrics["loss_classification"]) == pytest.approx(classification, rel=1e-5)
    assert float(step.metrics["loss_prior"]) == pytest.approx(penalty, rel=1e-4, abs=1e-6)
    assert float(step.metrics["loss_contrastive"]) == pytest.approx(contrastive, rel=1e-5)
    assert float(step.loss.detach()) == pytest.approx(classification + penalty + contrastive, rel=1e-5)
    torch.testing.assert_close(own.memory.guess[data["index"]].double(), guess, rtol=1e-5, atol=1e-6)


def test_the_penalty_can_be_left_out(fixed):
    with_it, without = (begun(tuned(prior_penalty=on)).train()(batch()) for on in (True, False))
    torch.testing.assert_close(with_it.loss - without.loss, with_it.metrics["loss_prior"])


def test_in_the_first_epochs_it_is_mixup_with_given_labels(fixed):
    own, data = tuned().train(), {**batch(), "weight": torch.ones(8)}
    model = copy.deepcopy(own)
    with torch.no_grad():
        logits = model.head(model.backbone(SHARE * data["input"] + (1 - SHARE) * data["input"][ORDER]))
    labels = functional.one_hot(data["target"], 3).float()
    expected = functional.cross_entropy(logits, SHARE * labels + (1 - SHARE) * labels[ORDER])
    torch.testing.assert_close(own(data).loss.detach(), expected)


def test_a_sample_of_weight_zero_moves_nothing_by_its_label(fixed):
    data = batch()
    other = {**data, "target": data["target"].clone()}
    other["target"][6] = 0  # row 9, which is noisy and of weight 0
    one, two = (begun(tuned()).train()(d) for d in (data, other))
    torch.testing.assert_close(one.loss, two.loss)


def test_gradients_reach_every_parameter_and_do_not_pass_through_pseudo_labels(fixed):
    own, data = begun(tuned()).train(), batch()
    step = own(data)
    step.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in own.parameters())
    assert all(p.grad.abs().sum() > 0 for p in (own.head.weight, own.projector.weight, own.backbone.first[0].weight))
    # with the pseudo-labels given as constants the gradient is the same
    constant = begun(tuned()).train()
    guess = own.memory.guess[data["index"]].clone()
    constant._prediction = lambda batch: guess.pow(1 / constant.config.sharpening)
    constant(data).loss.backward()
    torch.testing.assert_close(own.head.weight.grad, constant.head.weight.grad)
    assert not any(value.requires_grad for value in step.metrics.values())
    assert not own.memory.guess.requires_grad


def test_all_parameters_have_a_gradient_in_the_first_epochs_too():
    own = tuned().train()
    own(batch()).loss.backward()
    assert all(p.grad is not None for p in own.parameters())
    assert float(own.projector.weight.grad.abs().sum()) == 0


def test_shares_are_at_least_half_and_of_the_beta_distribution():
    torch.manual_seed(0)
    own = tuned(mix_alpha=1.0)
    shares = torch.stack([own._mix(8, torch.device("cpu"))[0] for _ in range(3000)])
    assert (shares >= 0.5).all()
    assert float(shares.mean()) == pytest.approx(0.75, abs=0.02)  # uniform in 0.5..1
    assert sorted(own._mix(8, torch.device("cpu"))[1].tolist()) == list(range(8))


def tracked(own, examples, epoch):
    own.eval()
    with torch.no_grad():
        own.track(iter(plain_batches(examples)), epoch)


def test_tracking_takes_large_losses_for_noisy_and_weighs_them_by_their_pseudo_losses():
    own, examples = tuned(warmup_epochs=1, threshold=0.6), labelled_examples(Config(), labelled())
    torch.manual_seed(3)
    own.memory.guess.copy_(torch.rand(60, 3).softmax(1))
    logits = own.eval().head(own.backbone(examples.plain(np.arange(60))["input"])).detach()
    given = torch.from_numpy(labelled().targets)
    losses = functional.cross_entropy(logits, given, reduction="none").numpy()
    pseudo = -(own.memory.guess * logits.log_softmax(1)).sum(1).numpy()
    tracked(own, examples, 0)
    noisy = 1 - small_loss_posterior(losses) > 0.6
    assert 3 < noisy.sum() < 57
    assert own.memory.noisy.tolist() == noisy.tolist()
    np.testing.assert_allclose(own.memory.p_clean, small_loss_posterior(losses), atol=1e-5)
    np.testing.assert_allclose(own.memory.weight, pseudo_label_weights(pseudo, noisy), atol=1e-4)
    assert torch.equal(own.memory.given, given)


def test_nothing_is_judged_before_the_first_epochs_are_over():
    own, examples = tuned(warmup_epochs=3), labelled_examples(Config(), labelled())
    for epoch, started in ((0, 0), (1, 0), (2, 1), (3, 1)):
        tracked(own, examples, epoch)
        assert float(own.started) == started
        assert (own.findings() is None) == (not started)


def test_findings_are_of_the_samples_that_were_trained_on():
    own = learner(build, Config(warmup_epochs=1))
    rows = [3, 50, 7, 20, 21, 22, 23, 24]
    tracked(own, labelled_examples(Config(), labelled(rows=rows)), 0)
    found = own.findings()
    assert found["index"].to_list() == sorted(rows)
    clean = ~own.memory.noisy[sorted(rows)].numpy()
    assert (found["kind"] == "clean").to_list() == clean.tolist()
    assert (found["label"].to_numpy()[clean] == labelled().targets[sorted(rows)][clean]).all()


def test_views_are_drawn_one_after_the_other_and_the_first_is_that_of_other_finetuners():
    source = labelled(rows=[5, 9, 2])
    examples = labelled_examples(Config(), source)
    found = examples.batch(np.array([1, 2]), seed=4, epoch=6)
    rng, sample, views = rng_for(4, 6, 9), source.data.read(9), Views()
    expected = [views.augment(sample, rng), views.augment(sample, rng), *views.views(sample, rng)]
    assert all(torch.equal(view[0], own) for view, own in zip([found["input"], *found["views"]], expected, strict=True))
    usual = source.batch(np.array([1, 2]), seed=4, epoch=6)
    assert all(torch.equal(found[key], usual[key]) for key in usual)
    assert not torch.equal(found["views"][0], found["input"])
    assert examples.facts["num_rows"] == 60
    assert len(examples) == 3


def test_a_strong_view_is_that_of_the_views_where_they_have_it():
    class Strong(Views):
        def strong(self, sample, rng):
            return torch.full((4,), 7.0)

    found = labelled_examples(Config(), labelled(views=Strong())).batch(np.array([0]), seed=0, epoch=0)
    assert [tuple(view.shape) for view in found["views"]] == [(1, 4)] * 3
    assert found["views"][2].tolist() == [[7.0] * 4]


def test_views_of_another_size_are_no_strong_views():
    class Crops(Views):
        def views(self, sample, rng):
            return [torch.zeros(4), torch.zeros(2)]

    found = labelled_examples(Config(), labelled(views=Crops())).batch(np.array([0]), seed=0, epoch=0)
    assert len(found["views"]) == 2


@pytest.mark.parametrize("batches", [5, 7])  # within an epoch, and just after its end
def test_resumed_training_equals_uninterrupted_training(tmp_path, batches):
    def make():
        return tuned(warmup_epochs=1, threshold=0.5)

    examples = labelled_examples(Config(), labelled())
    whole = trained(tmp_path / "whole", make(), examples)
    with pytest.raises(Stop):
        trained(tmp_path / "cut", make(), Stopping(examples, batches))
    resumed = trained(tmp_path / "cut", learner(build, make().config, encoder=Encoder()), examples)
    assert whole.memory.noisy.any()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_wrong_labels_are_found_where_classes_lie_apart(tmp_path):
    """Three corners, and labels that are wrong: no evidence of the method, but of how its parts are joined."""
    source = labelled()
    own = trained(
        tmp_path, tuned(warmup_epochs=5, threshold=0.5), labelled_examples(Config(), source), steps=60, lr=0.02
    )
    found, truth = own.findings(), source.data.truth
    inside = np.arange(60) % 5 != 4
    wrong = (source.targets != truth) & inside
    p_clean = found["p_clean"].to_numpy()
    assert p_clean[wrong].mean() < p_clean[inside & ~wrong].mean() - 0.3


def test_every_parameter_is_in_one_group_and_the_encoder_has_its_own_rate():
    own = tuned(backbone_lr_scale=0.1)
    groups = own.param_groups()
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in own.parameters())
    assert [group["lr_scale"] for group in groups] == [0.1, 1.0]


def test_two_samples_and_half_precision():
    assert torch.isfinite(begun(tuned()).train()(batch(2)).loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = begun(tuned()).train()
        step = own(batch())
        tracked(own, labelled_examples(Config(), labelled()), 5)
    assert step.loss.dtype == torch.float32
    assert torch.isfinite(step.loss)
    assert torch.isfinite(own.memory.weight).all()


def test_equal_embeddings_and_no_weight_at_all_are_finite():
    data = batch()
    own = begun(tuned()).train()
    for network in (own.head, own.projector):
        torch.nn.init.zeros_(network.weight)
    step = own({**data, "input": torch.ones(8, 4), "weight": torch.zeros(8)})
    step.loss.backward()
    assert float(step.metrics["loss_classification"]) == 0
    assert all(torch.isfinite(p.grad).all() for p in own.parameters())


@pytest.mark.parametrize("noisy", [False, True])
def test_all_samples_noisy_or_none_is_no_special_case(noisy, fixed):
    own = begun(tuned()).train()
    own.memory.noisy.fill_(noisy)
    own.memory.weight.fill_(0.0 if noisy else 1.0)
    step = own(batch())
    step.loss.backward()
    assert float(step.metrics["noisy_share"]) == noisy
    assert all(torch.isfinite(p.grad).all() for p in own.parameters())


def test_the_exported_classifier_sees_inputs_as_they_are():
    own, inputs = tuned().eval(), batch()["input"]
    torch.testing.assert_close(own.export()(inputs), own.head(own.backbone(inputs)))


def test_what_cannot_work_is_refused():
    one = Meta(source="test", domain="webnoisy", task="classification", classes=("a",))
    with pytest.raises(DataError, match="pls needs two classes or more to tell right labels from wrong ones, found 1"):
        learner(build, Config(), meta=one)
    with pytest.raises(DataError, match=r"pls mixes values of inputs; these are torch\.int64"):
        tuned()({**batch(), "input": torch.zeros(8, 4, dtype=torch.int64)})
    with pytest.raises(SettingsError, match=r"fit\.epochs must be more than warmup_epochs = 2"):
        tuned().after_update(Progress(step=1, num_steps=6, steps_per_epoch=3))
    tuned().after_update(Progress(step=1, num_steps=7, steps_per_epoch=3))
    with pytest.raises(SettingsError, match="threshold is not valid: Input should be less than 1"):
        validate(Config, {"threshold": 1.0}, file="r.yaml", owner="finetuners/pls")
