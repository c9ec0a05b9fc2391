"""PLS-LSA+: what two networks add to PLS-LSA, against the equations."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from appssl.errors import DataError, SettingsError
from appssl.finetuners.pls import PLS
from appssl.finetuners.pls_lsa_plus import Config, build, labelled_examples
from appssl.ops.linear_separation import separate
from appssl.ops.tracked_labels import pseudo_label_weights, small_loss_posterior
from tests.finetuners.noisy import Stop, Stopping, batch, labelled, learner, plain_batches, trained
from tests.finetuners.test_pls import ORDER, SHARE, begun
from tests.finetuners.test_pls_lsa import literal_terms


def tuned(**values):
    return learner(build, Config(projector_out=6, **values))


def apart(own):
    """The two encoders begin equal; here they are not."""
    torch.manual_seed(5)
    for parameter in own.two.parameters():
        nn.init.normal_(parameter, std=0.5)
    return own


@pytest.fixture
def fixed(monkeypatch):
    monkeypatch.setattr(PLS, "_mix", lambda self, size, device: (torch.tensor(SHARE), ORDER))


def predictions(own, data):
    """Of the second weak view, by each network, in double precision."""
    nets = [copy.deepcopy(network).double().train() for network in own.networks]
    return [net.head(net.backbone(data["views"][0].double())).softmax(1).detach() for net in nets]


def test_both_learn_with_the_pseudo_labels_of_their_mean_prediction(fixed):
    own, data = apart(tuned()).train(), batch()
    for network in own.networks:
        begun(network)
    one, two = predictions(own, data)
    guess = torch.tensor(
        [[((a + b) / 2) ** 2 for a, b in zip(*rows, strict=True)] for rows in zip(one, two, strict=True)]
    )
    guess = guess / guess.sum(1, keepdim=True)
    expected = [literal_terms(network, data, guess)[:2] for network in own.networks]
    step = own(data)
    assert float(step.loss.detach()) == pytest.approx(sum(map(sum, expected)), rel=1e-5)
    assert float(step.metrics["loss_contrastive"]) == pytest.approx((expected[0][1] + expected[1][1]) / 2, rel=1e-5)
    for network in own.networks:
        torch.testing.assert_close(network.memory.guess[data["index"]].double(), guess, rtol=1e-5, atol=1e-6)


def test_in_the_first_epochs_each_guesses_by_itself(fixed):
    own, data = apart(tuned()).train(), batch()
    expected = [p.square() / p.square().sum(1, keepdim=True) for p in predictions(own, data)]
    own(data)
    for network, guess in zip(own.networks, expected, strict=True):
        torch.testing.assert_close(network.memory.guess[data["index"]].double(), guess, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(*expected)


def test_each_mixes_by_itself_and_no_gradient_goes_from_one_to_the_other():
    own = apart(tuned()).train()
    for network in own.networks:
        begun(network)
    drawn = []
    mix = PLS._mix
    for network in own.networks:
        network._mix = lambda size, device, net=network: drawn.append(mix(net, size, device)) or drawn[-1]
    own(batch()).loss.backward()
    assert not torch.equal(drawn[0][0], drawn[1][0])
    alone = {name: p.grad.clone() for name, p in own.one.named_parameters()}
    own.zero_grad()
    own.one._mix = lambda size, device: drawn[0]
    with torch.no_grad():
        guess = own._guesses(batch())[0]
    own.one.learn(batch(), guess).loss.backward()
    for name, gradient in alone.items():
        torch.testing.assert_close(own.one.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6)


def seen_by(network, other):
    """Losses, features of a stage, and pseudo-losses with what is remembered for the other network."""
    inputs = labelled_examples(Config(), labelled()).plain(np.arange(60))["input"]
    with torch.no_grad():
        stages = network.backbone.stage_features(inputs)
        logits = network.head(stages[-1])
    losses = functional.cross_entropy(logits, torch.from_numpy(labelled().targets), reduction="none").numpy()
    pseudo = -(other.memory.guess * logits.log_softmax(1)).sum(1).numpy()
    return losses, stages[network.config.feature_stage].numpy(), pseudo


@pytest.mark.parametrize("epoch", [0, 1])
def test_noisy_is_what_both_networks_find_and_weights_are_means(epoch):
    own = apart(tuned(threshold=0.6, feature_stage=0)).eval()
    for number, network in enumerate(own.networks):
        torch.manual_seed(number)
        network.memory.guess.copy_(torch.rand(60, 3).softmax(1))
    found = [seen_by(*pair) for pair in (own.networks, own.networks[::-1])]
    with torch.no_grad():
        own.track(iter(plain_batches(labelled_examples(Config(), labelled()))), epoch)
    noisy, weights = [], []
    for losses, features, pseudo in found:
        by_loss = 1 - small_loss_posterior(losses) > 0.6
        noisy.append(by_loss if epoch == 1 else separate(features, by_loss) > 0)
        weights.append(pseudo_label_weights(pseudo, noisy[-1]))
    both = noisy[0] & noisy[1]
    assert 3 < both.sum() < max(noisy[0].sum(), noisy[1].sum())  # they do not find the same
    expected = [(a + b) / 2 if together else 1.0 for a, b, together in zip(*weights, both, strict=True)]
    for network in own.networks:
        assert network.memory.noisy.tolist() == both.tolist()
        np.testing.assert_allclose(network.memory.weight, expected, atol=1e-3)
    table = own.findings()
    assert (table["kind"] == "hard_clean").to_list() == (noisy[0] ^ noisy[1]).tolist()
    mean = np.mean([small_loss_posterior(losses) for losses, *_ in found], axis=0)
    np.testing.assert_allclose(table["p_clean"], mean, atol=1e-3)
    assert ("p_ood" in table.columns) == (epoch == 0)


def test_nothing_is_judged_before_the_first_epochs_are_over():
    own = tuned(warmup_epochs=2).eval()
    own.track(iter(()), 0)
    assert own.findings() is None


def test_the_exported_classifier_has_the_mean_of_the_logits():
    own = apart(tuned()).eval()
    inputs = batch()["input"]
    with torch.no_grad():
        expected = sum(network.head(network.backbone(inputs)) for network in own.networks) / 2
        model = own.export()
        torch.testing.assert_close(model(inputs), expected)
        assert model.backbone.num_features == model.backbone(inputs).shape[1] == 10


@pytest.mark.parametrize("batches", [4, 8])
def test_resumed_training_equals_uninterrupted_training(tmp_path, batches):
    examples = labelled_examples(Config(), labelled())
    whole = trained(tmp_path / "whole", tuned(threshold=0.5, feature_stage=0), examples)
    with pytest.raises(Stop):
        trained(tmp_path / "cut", tuned(threshold=0.5, feature_stage=0), Stopping(examples, batches))
    resumed = trained(tmp_path / "cut", tuned(threshold=0.5, feature_stage=0), examples)
    assert torch.isfinite(whole.one.plane).all()
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert not torch.equal(whole.one.head.weight, whole.two.head.weight)


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(DataError, match="pls_lsa_plus mixes values of inputs"):
        tuned()({**batch(), "input": torch.zeros(8, 4, dtype=torch.int64)})
    with pytest.raises(SettingsError, match="epochs must be more than warmup_epochs = 4"):
        trained(tmp_path, tuned(warmup_epochs=4), labelled_examples(Config(), labelled()))


def test_every_parameter_is_in_one_group():
    own = tuned(backbone_lr_scale=0.1)
    grouped = [id(p) for group in own.param_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in own.parameters())
    assert {group["lr_scale"] for group in own.param_groups()} == {0.1, 1.0}
