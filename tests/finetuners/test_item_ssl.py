"""Item SSL: the two losses, what is drawn for a batch, and where it is retrieval or a baseline."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from appssl.backbones import two_tower
from appssl.contracts import Context, Meta
from appssl.errors import DataError, SettingsError
from appssl.finetuners import retrieval
from appssl.finetuners.item_ssl import Config, build, examples
from appssl.objectives.dcl import dcl
from appssl.ops.individual_temperatures import robust_contrast
from appssl.ops.random import rng_for
from appssl.settings import validate
from tests.finetuners.noisy import Stop, Stopping, trained

FIELDS = [
    {"name": "a", "start": 0, "length": 1},
    {"name": "b", "start": 1, "length": 3},
    {"name": "c", "start": 4, "length": 1},
]
META = Meta(source="recsys", domain="recsys", task="ranking", facts={"fields": FIELDS, "vocab_size": 60})
USERS, ITEMS, COLD = 6, 12, 3


class Log:
    """Popular and rare items; the last three never occur in training."""

    meta, num_users, num_items = META, USERS, ITEMS

    def __init__(self):
        rng = np.random.default_rng(0)
        weight = 1 / np.arange(1, ITEMS - COLD + 1) ** 1.5
        self.items = np.concatenate([np.arange(ITEMS - COLD), rng.choice(ITEMS - COLD, 91, p=weight / weight.sum())])
        self.who = rng.integers(0, USERS, 100)
        self.popularity = np.bincount(self.items, minlength=ITEMS)
        a, c = rng.integers(1, 6, ITEMS), rng.integers(30, 40, ITEMS)
        self.tokens = np.column_stack([a, rng.integers(10, 25, (ITEMS, 3)), c])

    def interactions(self, split):
        return self.who, self.items, np.arange(100)


LOG = Log()


def settings(**values):
    return validate(Config, {"ssl_batch": 6, "dim": 8, "history": 4, **values}, file="r.yaml", owner="item_ssl")


def given(log=LOG, **values):
    return examples(settings(**values), log, None, 0)


def learner(**values):
    config = settings(**values)
    torch.manual_seed(0)
    backbone = two_tower.build(two_tower.Config(), (5,), META)
    facts = given(**values).facts
    made = build(config, Context(meta=META, backbone=backbone, input_shape=(5,), num_samples=100, facts=facts))
    if made.item_ids is not None:
        torch.nn.init.normal_(made.item_ids.weight)
    return made.train()


def batch(indices=range(10), epoch=0, **values):
    return given(**values).batch(np.array(indices), seed=1, epoch=epoch)


def literal_vectors(model, view):
    """Item tower by hand: mean token embedding of each field, layers, and the number's embedding where it is shown."""
    table, found = model.backbone.tokens.weight, []
    for *tokens, number in view.tolist():
        parts = []
        for field in FIELDS:
            present = [t for t in tokens[field["start"] : field["start"] + field["length"]] if t]
            parts.append(sum((table[t] for t in present), torch.zeros(table.shape[1]).double()) / max(1, len(present)))
        vector = model.content(model.backbone.layers(torch.cat(parts)))
        if number and model.item_ids is not None:
            vector = vector + model.item_ids.weight[number - 1]
        found.append(vector / vector.norm())
    return found


def literal_self(model, views, tau):
    one, two = (literal_vectors(model, view) for view in views)
    losses = []
    for i, z in enumerate(one):
        scores = [math.exp(float((z @ w).detach()) / tau) for w in two]
        losses.append(-math.log(scores[i] / sum(scores)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("masking", ["correlated", "random", "none"])
@pytest.mark.parametrize("item_ids", [True, False])
def test_the_step_is_retrieval_and_alpha_times_the_loss_written_out(masking, item_ids):
    values = {"masking": masking, "item_ids": item_ids, "alpha": 0.3, "ssl_temperature": 0.2}
    own, data = learner(**values).double(), batch(**values)
    step = own(data)
    main = float(retrieval.Retrieval.forward(own, data).loss.detach())
    expected = literal_self(own, data["views"], 0.2)
    assert float(step.metrics["loss_main"]) == pytest.approx(main, rel=1e-12)
    assert float(step.metrics["loss_self"]) == pytest.approx(expected, rel=1e-9)
    assert float(step.loss.detach()) == pytest.approx(main + 0.3 * expected, rel=1e-9)


def of_vectors(one, two, **values):
    """L_self of given vectors, one for each item."""
    own = learner(masking="none", **values).double()
    own.item_vectors = lambda tokens, numbers, known: tokens.double()
    views = [torch.column_stack([z, torch.arange(len(z)) + 1]) for z in (one, two)]
    return float(own._contrast(views)[0])


def test_the_worked_numbers():
    one = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)
    two = torch.tensor([[0.8, 0.6], [0, 1], [-0.6, 0.8]], dtype=torch.float64)
    assert of_vectors(one, two, ssl_temperature=0.1) == pytest.approx(1.309365, abs=1e-6)
    assert of_vectors(one, one, ssl_temperature=0.1) == pytest.approx(0.096031, abs=1e-6)


def test_with_alpha_zero_it_is_retrieval_bit_for_bit():
    own, data = learner(alpha=0), batch(alpha=0)
    plain = retrieval.build(
        retrieval.Config(dim=8, history=4),
        Context(META, copy.deepcopy(own.backbone), (5,), num_samples=100, facts=given(alpha=0).facts),
    )
    plain.load_state_dict(own.state_dict())  # no further state
    usual = retrieval.Interactions(retrieval.Config(history=4), LOG).batch(np.arange(10), seed=1, epoch=0)
    assert sorted(data) == sorted(usual)
    losses = [own(data).loss, plain(usual).loss]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for one, two in zip(own.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_without_masks_and_dropout_it_is_spread_out_regularization():
    values = {"masking": "none", "dropout": 0.0, "alpha": 1.0, "ssl_temperature": 0.3}
    own, data = learner(**values).double(), batch(**values)
    assert torch.equal(*data["views"])
    z = torch.stack(literal_vectors(own, data["views"][0])).detach()
    losses = []
    for i in range(6):
        others = sum(math.exp(float(z[i] @ z[j]) / 0.3) for j in range(6) if j != i)
        losses.append(-math.log(math.exp(1 / 0.3) / (math.exp(1 / 0.3) + others)))
    assert float(own(data).metrics["loss_self"]) == pytest.approx(sum(losses) / 6, rel=1e-9)


def test_every_feature_and_the_number_are_shown_in_exactly_one_view():
    for masking in ("correlated", "random"):
        for epoch in range(10):
            one, two = batch(epoch=epoch, masking=masking, dropout=0.0)["views"]
            assert ((one == 0) ^ (two == 0)).all()
            shown = torch.maximum(one, two)
            numbers = shown[:, -1] - 1
            assert (shown[:, :-1].numpy() == LOG.tokens[numbers]).all()


def test_correlated_masks_hide_the_number_in_the_first_view():
    """It determines the other features; k = 4, so that two more are hidden beside the seed."""
    for epoch in range(30):
        one, two = batch(epoch=epoch)["views"]
        assert (one[:, -1] == 0).all()
        assert (two[:, -1] > 0).all()
        assert int((one[0] != 0).sum()) in (1, 2, 3)  # one field of content


def test_without_numbers_they_are_no_feature_and_stay_in_both_views():
    one, two = batch(item_ids=False, dropout=0.0)["views"]
    assert torch.equal(one[:, -1], two[:, -1])
    assert (one[:, -1] > 0).all()
    assert ((one == 0) ^ (two == 0))[:, :-1].all()


def test_items_are_of_training_none_twice_and_uniform_or_as_in_the_log():
    for kind in ("uniform", "log"):
        source = given(ssl_items=kind, ssl_batch=3)
        counts = np.zeros(ITEMS)
        for first in range(100):
            for epoch in range(12):
                one, two = source.batch(np.array([first, 5]), seed=0, epoch=epoch)["views"]
                numbers = (torch.maximum(one, two)[:, -1] - 1).numpy()
                assert len(set(numbers.tolist())) == 3
                counts[numbers] += 1
        assert counts[-COLD:].sum() == 0
        share = counts[:-COLD] / counts.sum()
        if kind == "uniform":
            assert share == pytest.approx(1 / (ITEMS - COLD), abs=0.02)
        else:
            assert share[LOG.popularity[:-COLD].argmax()] > 0.2
            assert np.corrcoef(share, LOG.popularity[:-COLD])[0, 1] > 0.9


def test_a_catalogue_smaller_than_the_batch_is_taken_whole():
    one, two = batch(ssl_batch=500)["views"]
    assert sorted((torch.maximum(one, two)[:, -1] - 1).tolist()) == list(range(ITEMS - COLD))


def test_a_batch_is_a_function_of_seed_epoch_and_its_first_event():
    source = given(feature_dropout=0.3)
    again = pickle.loads(pickle.dumps(source))
    indices = np.array([42, 3, 17])
    one, two = (s.batch(indices, seed=5, epoch=2) for s in (source, again))
    for key in ("mask", "input", "target"):
        assert torch.equal(one[key], two[key])
    assert all(torch.equal(a, b) for a, b in zip(one["views"], two["views"], strict=True))
    rng = rng_for(5, 2, 2**62 + 42)
    dropped = rng.random((3, 4)) < 0.3
    assert (one["mask"].numpy() == ~source.masks.columns(dropped)).all()
    other = source.batch(indices, seed=5, epoch=3)
    assert not all(torch.equal(a, b) for a, b in zip(one["views"], other["views"], strict=True))


def test_feature_dropout_hides_whole_features_of_labelled_items_and_changes_nothing_else():
    values = {"alpha": 0, "feature_dropout": 0.5}
    own, data = learner(**values), batch(**values)
    assert "views" not in data
    mask = data["mask"]
    assert torch.equal(mask[:, 1], mask[:, 2])
    assert torch.equal(mask[:, 2], mask[:, 3])
    assert 0 < mask.float().mean() < 1
    tokens, items = own.tokens[data["target"]], data["target"]
    vectors = own.item_vectors(tokens.where(mask[:, :-1], 0), items, mask[:, -1])
    torch.testing.assert_close(own(data).loss, own.match(data, vectors).loss)
    whole = {**data, "mask": torch.ones_like(mask)}
    assert torch.equal(own(whole).loss, retrieval.Retrieval.forward(own, data).loss)
    drawn = given(**values).batch(np.arange(100), seed=0, epoch=0)["mask"]
    assert float(drawn.float().mean()) == pytest.approx(0.5, abs=0.1)


def test_dcl_and_isogclr_are_the_losses_of_their_files():
    for contrast in ("dcl", "isogclr"):
        own, data = learner(contrast=contrast, alpha=0.7), batch(contrast=contrast)
        z = torch.stack([own.item_vectors(v[:, :-1], (v[:, -1] - 1).clamp(min=0), v[:, -1] > 0) for v in data["views"]])
        loss = own(data).metrics["loss_self"]
        if contrast == "dcl":
            torch.testing.assert_close(loss, dcl(*z, temperature=0.07)[0].detach())
            continue
        found = robust_contrast(z, torch.full((6,), 0.1), torch.zeros(6), gamma=0.8, rho=0.4)
        torch.testing.assert_close(loss, found.objective.sum(0).mean().detach())
        numbers = torch.maximum(*(v[:, -1] for v in data["views"])) - 1
        state = own.item_temperatures
        torch.testing.assert_close(state.normalizer[numbers], found.normalizer.mean(0).detach())
        others = [n for n in range(ITEMS) if n not in numbers.tolist()]
        assert state.normalizer[others].abs().sum() == 0
        assert len(state.temperature) == ITEMS
        assert (state.temperature[numbers] != 0.1).all()


def test_the_state_of_items_is_of_isogclr_only():
    assert learner(contrast="isogclr", alpha=0).item_temperatures is None
    assert learner(contrast="dcl").item_temperatures is None


def test_a_fixed_temperature_is_a_rate_of_zero():
    values = {"contrast": "isogclr", "item_temperatures": {"temperature": 0.2, "temperature_lr": 0}}
    own = learner(**values)
    own(batch(**values))
    assert own.item_temperatures.temperature.tolist() == pytest.approx([0.2] * ITEMS)
    assert (own.item_temperatures.normalizer > 0).sum() == 6


def test_gradients_of_the_task_without_labels_reach_the_item_tower_and_no_user():
    own, data = learner(alpha=0.5), batch(dropout=0.0)
    own._contrast(data["views"])[0].backward()
    assert all(p.grad is None for p in (own.user_ids.weight, own.bias, own.history.weight))
    tower = [own.backbone.tokens.weight, own.content.weight, own.item_ids.weight, *own.backbone.layers.parameters()]
    assert all(float(p.grad.abs().sum()) > 0 for p in tower)
    numbers = torch.maximum(*(v[:, -1] for v in data["views"])) - 1
    touched = own.item_ids.weight.grad.abs().sum(1) > 0
    assert sorted(touched.nonzero().flatten().tolist()) == sorted(numbers.tolist())
    assert float(own.backbone.tokens.weight.grad[0].abs().sum()) == 0  # what is hidden is not trained


def test_all_metrics_are_without_gradient_and_finite_in_half_precision():
    for contrast in ("ntxent", "dcl", "isogclr"):
        values = {"contrast": contrast, "feature_dropout": 0.2}
        own, data = learner(**values), batch(**values)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            step = own(data)
        step.loss.backward()
        assert torch.isfinite(step.loss)
        assert all(torch.isfinite(p.grad).all() for p in own.parameters() if p.grad is not None)
        assert not any(value.requires_grad for value in step.metrics.values())


def test_temperatures_of_users_and_of_items_go_together():
    values = {"contrast": "isogclr", "logq": False, "user_temperatures": {}}
    own, data = learner(**values), batch(**values)
    step = own(data)
    assert {"temperature", "item_temperature", "surrogate", "item_surrogate"} <= set(step.metrics)
    users = data["input"].unique().tolist()
    assert all(own.user_temperatures.normalizer[users] > 0)


def test_state_and_facts_restore_the_model(tmp_path):
    values = {"contrast": "isogclr"}
    own = learner(**values)
    own(batch(**values)).loss.backward()
    facts = {key: value for key, value in given(**values).facts.items() if isinstance(value, torch.Tensor)}
    save_file({key: value.contiguous() for key, value in own.state_dict().items()}, tmp_path / "m.safetensors")
    again = learner(**values)
    with torch.no_grad():
        again.bias.add_(1)
    again.load_state_dict(load_file(tmp_path / "m.safetensors"))
    assert {"tokens", "log_share", "histories", "known_users"} == set(facts)
    assert torch.equal(own.export().score_users(torch.arange(3)), again.export().score_users(torch.arange(3)))


@pytest.mark.parametrize("batches", [5, 7])  # within an epoch, and just after its end
@pytest.mark.parametrize("contrast", ["ntxent", "isogclr"])
def test_resumed_training_equals_uninterrupted_training(tmp_path, batches, contrast):
    values = {"contrast": contrast}
    whole = trained(tmp_path / "whole", learner(**values), given(**values))
    with pytest.raises(Stop):
        trained(tmp_path / "cut", learner(**values), Stopping(given(**values), batches))
    resumed = trained(tmp_path / "cut", learner(**values), given(**values))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_errors_one_item_and_one_feature():
    lonely = Log()
    lonely.popularity = np.bincount([4], minlength=ITEMS)
    with pytest.raises(DataError, match="compares items; training has 1"):
        given(lonely)
    single = Log()
    single.meta = Meta("recsys", "recsys", "ranking", facts={"fields": FIELDS[:1]})
    with pytest.raises(DataError, match=r"needs two or more features.*set item_ids to true, or masking to none"):
        given(single, item_ids=False)
    assert len(given(single).masks.fields) == 2  # the number is the other
    assert given(single, item_ids=False, masking="none").masks.nearest is None
    assert given(single, item_ids=False, alpha=0).masks.nearest is None
    with pytest.raises(SettingsError, match="set logq to false"):
        settings(user_temperatures={})
