import math

import numpy as np
import pytest
import torch

from appssl.backbones import two_tower
from appssl.contracts import Context, Meta
from appssl.errors import DataError
from appssl.finetuners.retrieval import Config, Interactions, build, in_batch_softmax
from appssl.ops.individual_temperatures import Temperatures

FIELDS = [{"name": "a", "start": 0, "length": 2}]
META = Meta(source="recsys", domain="recsys", task="ranking", facts={"fields": FIELDS, "vocab_size": 6})


class Log:
    """Three users, four items; user 2 and item 3 never occur in training."""

    meta, num_users, num_items = META, 3, 4
    tokens = np.array([[1, 2], [3, 0], [4, 5], [6, 0]])

    def interactions(self, split):
        return np.array([0, 1, 0, 1]), np.array([0, 1, 2, 0]), np.arange(4)


def model_config(**values):
    return Config(**values)


def learner(**values):
    config = model_config(**values)
    torch.manual_seed(0)
    backbone = two_tower.build(two_tower.Config(), (2,), META)
    facts = Interactions(config, Log()).facts
    return build(config, Context(meta=META, backbone=backbone, input_shape=(2,), num_samples=4, facts=facts))


def literal(logits, items, share):
    losses = []
    for i in range(len(items)):
        scores = [logits[i][j] - math.log(share[items[j]]) for j in range(len(items))]
        losses.append(-math.log(math.exp(scores[i]) / sum(math.exp(s) for s in scores)))
    return sum(losses) / len(losses)


def test_loss_equals_the_equation_written_out_with_a_repeated_item():
    torch.manual_seed(1)
    logits = torch.randn(5, 5, dtype=torch.float64)
    items = torch.tensor([0, 2, 0, 1, 3])
    share = [0.4, 0.3, 0.2, 0.1]
    log_share = torch.tensor(share, dtype=torch.float64).log()[items]
    value = in_batch_softmax(logits, items, log_share)
    assert float(value) == pytest.approx(literal(logits.tolist(), items.tolist(), share), rel=1e-12)


def gradients(size, corrected):
    """Gradients (4,) in four items' scores: of the loss in a batch drawn by frequency, and of the full softmax."""
    share = np.array([0.5, 0.25, 0.15, 0.1])
    items = torch.from_numpy(np.random.default_rng(0).choice(4, size, p=share))
    scores = torch.tensor([0.3, -0.2, 0.9, 0.1], dtype=torch.float64, requires_grad=True)
    log_share = torch.from_numpy(np.log(share))[items] if corrected else None
    loss = in_batch_softmax(scores[items].expand(size, size), items, log_share)
    full = torch.nn.functional.cross_entropy(scores.expand(size, 4), items)
    return torch.autograd.grad(loss, scores)[0], torch.autograd.grad(full, scores)[0]


def test_with_the_correction_a_large_batch_gives_the_gradient_of_the_full_softmax():
    found, full = gradients(2000, corrected=True)
    torch.testing.assert_close(found, full, atol=0.02, rtol=0)  # a share of 0.5 varies by 0.011 over 2000 draws


def test_without_the_correction_it_does_not():
    found, full = gradients(2000, corrected=False)
    assert (found - full).abs().max() > 0.05  # stays near 0.07 however large the batch


def test_without_the_correction_repetitions_of_the_positive_are_no_negatives():
    logits = torch.tensor([[1.0, 5.0, 0.0], [5.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    value = in_batch_softmax(logits, torch.tensor([7, 7, 8]), None)
    pair, triple = math.log(1 + math.exp(-1)), math.log(1 + 2 * math.exp(-1))
    assert float(value) == pytest.approx((2 * pair + triple) / 3, rel=1e-12)


def test_settings_that_make_all_users_equal_are_refused():
    with pytest.raises(ValueError, match="all users are the same"):
        Config(user_ids=False, history=0)


@pytest.mark.parametrize("values", [{"history": 0}, {"user_ids": False}, {"item_ids": False}, {"logq": False}])
def test_each_part_can_be_turned_off(values):
    model = learner(**values)
    step = model(Interactions(model_config(**values), Log()).batch(np.arange(4), seed=0, epoch=0))
    step.loss.backward()
    assert torch.isfinite(step.loss)
    assert model.export().score_users(torch.arange(3)).isfinite().all()


def test_cold_items_are_scored_by_content_only():
    model = learner()
    with torch.no_grad():
        model.item_ids.weight[:3].add_(1.0)
    content = torch.nn.functional.normalize(model.content(model.backbone(model.tokens[3:])), dim=1)
    torch.testing.assert_close(model.export().item_vectors[3:], content)


def test_the_positive_item_is_left_out_of_the_history():
    model = learner(user_ids=False).eval()
    users = torch.tensor([0])
    only_other = model.users(users, torch.tensor([0]))
    model.histories = torch.full_like(model.histories, -1)
    model.histories[0, 0] = 2
    torch.testing.assert_close(model.users(users), only_other)


def test_users_without_history_get_the_mean_user():
    exported = learner().export()
    scores = exported.score_users(torch.arange(3))
    known = exported.user_vectors[:2].mean(0)
    assert scores.shape == (3, 4)
    torch.testing.assert_close(scores[2], known / known.norm() @ exported.item_vectors.T)


def test_an_untrained_item_number_adds_nothing_to_the_content():
    model = learner().eval()
    content = torch.nn.functional.normalize(model.content(model.backbone(model.tokens)), dim=1)
    torch.testing.assert_close(model.items(torch.arange(4)), content)


def test_state_restores_the_same_scores():
    one, two = learner(), learner()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.1)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.export().score_users(torch.arange(3)), two.export().score_users(torch.arange(3)))


def test_batches_hold_users_and_items_of_the_log():
    batch = Interactions(Config(), Log()).batch(np.array([3, 1]), seed=0, epoch=0)
    assert batch["input"].tolist() == [1, 1]
    assert batch["target"].tolist() == [0, 1]
    assert torch.isfinite(learner()(batch).loss)


class LongLog(Log):
    """1,000 events of one user for each of two items."""

    def interactions(self, part):
        items = np.arange(1000) % 2
        return np.zeros(1000, dtype=np.int64), items, np.arange(1000)


def test_a_share_of_the_events_is_the_same_for_every_training_and_keeps_their_order():
    tenth, third = (Interactions(Config(event_share=share), LongLog()) for share in (0.1, 0.3))
    assert 70 < len(tenth) < 130
    assert 250 < len(third) < 350
    again = Interactions(Config(event_share=0.1), LongLog())
    assert np.array_equal(tenth.items, again.items)
    assert 0.3 < tenth.items.mean() < 0.7
    assert len(Interactions(Config(), LongLog())) == 1000


def test_a_share_that_leaves_nothing_says_so():
    with pytest.raises(DataError, match=r"event_share 1e-09 leaves none of 1000 training events"):
        Interactions(Config(event_share=1e-9), LongLog())


def literal_robust(users, vectors, items, tau, rho):
    """tau_i log mean exp(h_ij / tau_i) + tau_i rho over items other than the own one, for each row."""
    losses = []
    for i, user in enumerate(users):
        positive = float((user @ vectors[i]).detach())
        h = [float((user @ vectors[j]).detach()) - positive for j in range(len(items)) if items[j] != items[i]]
        mean = sum(math.exp(value / tau) for value in h) / len(h)
        losses.append(tau * (math.log(mean) + rho))
    return sum(losses) / len(losses)


def individual(**values):
    return learner(logq=False, user_temperatures=Temperatures(temperature=0.3, radius=0.2, **values)).double()


def test_with_temperatures_of_users_the_loss_is_the_robust_one_written_out():
    own, batch = individual(), Interactions(model_config(), Log()).batch(np.arange(4), seed=0, epoch=0)
    users, vectors = own.users(batch["input"], batch["target"]), own.items(batch["target"])
    expected = literal_robust(users, vectors, batch["target"].tolist(), 0.3, 0.2)
    assert float(own(batch).loss.detach()) == pytest.approx(expected, rel=1e-6)


def test_its_gradient_is_that_of_the_robust_loss_and_only_users_of_the_batch_learn_a_temperature():
    own, batch = individual(), Interactions(model_config(), Log()).batch(np.array([0, 1]), seed=0, epoch=0)
    users, vectors = own.users(batch["input"], batch["target"]), own.items(batch["target"])
    similarity = users @ vectors.T
    h = similarity - similarity.diagonal()[:, None]
    expected = (0.3 * (h[~torch.eye(2, dtype=torch.bool)] / 0.3)).mean()  # one negative each
    parameters = [p for p in own.parameters() if p.requires_grad]
    found = torch.autograd.grad(own(batch).loss, parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    for one, two in zip(found, wanted, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)
    state = own.user_temperatures
    assert ((state.temperature - 0.3).abs() > 1e-3).tolist() == [True, True, False]
    assert (state.normalizer > 0).tolist() == [True, True, False]


def test_a_batch_of_one_item_has_no_negatives_and_stays_finite():
    own = individual()
    batch = {"input": torch.tensor([0, 1]), "target": torch.tensor([2, 2])}
    step = own(batch)
    step.loss.backward()
    assert torch.isfinite(step.loss)
    assert all(torch.isfinite(p.grad).all() for p in own.parameters() if p.grad is not None)


def test_temperatures_of_users_have_no_correction_for_frequencies():
    with pytest.raises(ValueError, match="set logq to false"):
        Config(user_temperatures=Temperatures())


def test_a_hidden_number_leaves_the_vector_of_the_content():
    own = learner()
    with torch.no_grad():
        own.item_ids.weight.add_(1.0)
    numbers = torch.arange(4)
    vectors = own.item_vectors(own.tokens, numbers, torch.tensor([True, False, True, False]))
    content = torch.nn.functional.normalize(own.content(own.backbone(own.tokens)), dim=1)
    torch.testing.assert_close(vectors[[1, 3]], content[[1, 3]])
    torch.testing.assert_close(vectors[[0, 2]], own.items(numbers)[[0, 2]])


def shared(**values):
    return learner(negatives="shared", num_negatives=6, **values).double()


def literal_shared(own, batch, draws, corrected):
    """Items 0, 1, 2 have 2, 1, 1 training events; 3 has none and is never drawn."""
    q = {item: (math.log(rank + 2) - math.log(rank + 1)) / math.log(4) for rank, item in enumerate([0, 1, 2])}
    users, vectors = own.users(batch["input"], batch["target"]), own.items(torch.arange(4))
    total = 0.0
    for user, item in zip(users, batch["target"].tolist(), strict=True):
        score = [float((user @ vector).detach()) / own.temperature for vector in vectors]
        weight = {n: 1 / (len(draws) * q[n]) if corrected else 1.0 for n in q}
        others = sum(weight[n] * math.exp(score[n]) for n in draws if n != item)
        total -= math.log(math.exp(score[item]) / (math.exp(score[item]) + others))
    return total / len(users)


@pytest.mark.parametrize("logq", [True, False])
def test_with_shared_negatives_the_loss_is_the_equation_for_the_draws(logq):
    own, batch = shared(logq=logq), Interactions(model_config(), Log()).batch(np.arange(4), seed=0, epoch=0)
    torch.manual_seed(5)
    found = own.negatives()
    draws = [int(item) for item, count in zip(found.items, found.counts, strict=True) for _ in range(count)]
    assert len(draws) == 6
    torch.manual_seed(5)
    value = float(own(batch).loss.detach())
    assert value == pytest.approx(literal_shared(own, batch, draws, logq), rel=1e-9)
    torch.manual_seed(5)
    assert float(own.match(batch, own.items(batch["target"])).loss.detach()) == pytest.approx(value, rel=1e-12)


def test_items_are_drawn_by_falling_training_events_and_cold_ones_never():
    assert Interactions(Config(negatives="shared"), Log()).facts["ranked"].tolist() == [0, 1, 2]
    assert "ranked" not in Interactions(Config(), Log()).facts


def test_shared_negatives_are_trained_too():
    own = shared(history=0)
    with torch.no_grad():
        own.user_ids.weight.normal_()
    own({"input": torch.tensor([0]), "target": torch.tensor([1])}).loss.backward()
    moved = own.item_ids.weight.grad.abs().sum(1) > 0
    assert moved[0]
    assert not moved[3]


def test_streaming_frequencies_take_the_place_of_shares_and_learn_in_training_only():
    own, batch = learner(frequencies="streaming"), Interactions(Config(), Log()).batch(np.arange(4), seed=0, epoch=0)
    own.eval()(batch)
    assert int(own.frequencies.steps) == 0
    own.train()(batch)
    own({"input": batch["input"][1:2], "target": batch["target"][1:2]})
    value = float(own(batch).loss.detach())
    logits = own.users(batch["input"], batch["target"]) @ own.items(batch["target"]).T / own.temperature
    gap = 0.99 * 1 + 0.01 * 2  # of items 0 and 2, which the second of three batches did not have; of item 1 it is 1
    share = {0: 1 / gap, 1: 1.0, 2: 1 / gap}
    assert value == pytest.approx(literal(logits.tolist(), batch["target"].tolist(), share), rel=1e-5)
    assert {"frequencies.gaps", "frequencies.last", "frequencies.steps"} <= own.state_dict().keys()


def test_tables_may_have_a_learning_rate_of_their_own():
    others, tables = learner(table_lr=30.0).param_groups()
    assert (tables["lr_scale"], len(tables["params"])) == (30.0, 3)
    assert "lr_scale" not in others
    assert len(others["params"]) + 3 == len(list(learner().parameters()))
    (every,) = learner().param_groups()
    assert "lr_scale" not in every


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"negatives": "shared", "logq": False, "user_temperatures": Temperatures()}, "set negatives to in_batch"),
        ({"frequencies": "streaming", "logq": False}, "frequencies streaming needs logq true"),
        ({"frequencies": "streaming", "negatives": "shared"}, "frequencies streaming needs logq true"),
    ],
)
def test_settings_that_nothing_would_use_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Config(**values)
