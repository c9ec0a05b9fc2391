"""Self-training on logs: what is held back and accepted, the loss, when the rounds end, the ledger."""

import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from scipy import sparse

from appssl.backbones import two_tower
from appssl.contracts import Context, Progress
from appssl.errors import DataError, SettingsError
from appssl.finetuners import retrieval
from appssl.finetuners.pair_self_training import Config, HoldingBack, PairSelfTraining, examples, held_back, recall
from appssl.ops.random import rng_for
from appssl.settings import validate
from appssl.stages.models import load_model, open_data
from tests.finetuners.logs import COLD, ITEMS, META, USERS, Log, prepared, staged
from tests.finetuners.noisy import Stop, Stopping, trained

LOG = Log()
SHORT = {"teacher_epochs": 1, "rounds": 3, "round_epochs": 1}  # 4 epochs, 12 steps of 18 of 54 events


def settings(**values):
    few = {"dim": 8, "history": 4, "holdout": 0.15, "quantile": 0.5, "per_user": 3, "pseudo_batch": 6, "k": 3, **SHORT}
    return validate(Config, {**few, **values}, file="r.yaml", owner="pair_self_training")


def given(log=LOG, seed=0, **values):
    return examples(settings(**values), log, None, seed)


def learner(kind=PairSelfTraining, **values):
    torch.manual_seed(0)
    backbone = two_tower.build(two_tower.Config(), (2,), META)
    source = given(**values)
    made = kind(settings(**values), Context(META, backbone, (2,), num_samples=len(source), facts=source.facts))
    for table in (made.item_ids, made.user_ids):
        torch.nn.init.normal_(table.weight)
    return made.train()


def batch(indices=range(10), **values):
    return given(**values).batch(np.array(indices), seed=1, epoch=0)


def whole(**values):
    source = given(**values)
    return [source.plain(np.arange(len(source)))]


def track(own, epoch, **values):
    own.eval()
    with torch.no_grad():
        own.track(whole(**values), epoch)
    return own.train()


def pairs_of(tensor):
    return set(map(tuple, tensor.T.tolist()))


def literal_loss_of_accepted(own, number, drawn):
    """Weighted in-batch softmax, written out; drawn: positions among the accepted pairs in order of users."""
    accepted = [
        (user, int(item), float(own.confidences[number, user, place]))
        for user in range(USERS)
        for place, item in enumerate(own.accepted[number, user])
        if item >= 0
    ]
    share = {item: sum(i == item for _, i, _ in accepted) / len(accepted) for _, item, _ in accepted}
    chosen = [accepted[n] for n in drawn]
    users = own.users(torch.tensor([u for u, _, _ in chosen]), torch.tensor([i for _, i, _ in chosen]))
    items = own.items(torch.tensor([i for _, i, _ in chosen]))
    total = 0.0
    for n, (_, _, weight) in enumerate(chosen):
        scores = [
            float((users[n] @ items[m]).detach()) / own.temperature - math.log(share[chosen[m][1]])
            for m in range(len(chosen))
        ]
        total -= weight * math.log(math.exp(scores[n]) / sum(map(math.exp, scores)))
    return total / len(chosen), len(accepted)


def test_the_loss_is_that_of_retrieval_and_of_the_accepted_pairs_written_out():
    own, data = track(learner(weight=0.7, temperature=0.5).double(), 0), batch()
    assert int(own.done) == 1
    observed = float(retrieval.Retrieval.forward(own, data).loss.detach())
    torch.manual_seed(5)
    step = own(data)
    torch.manual_seed(5)
    count = int((own.accepted[0] >= 0).sum())
    expected, found = literal_loss_of_accepted(own, 0, torch.randint(count, (6,)).tolist())
    assert found == count
    assert float(step.metrics["loss_observed"]) == observed
    assert float(step.metrics["loss_accepted"]) == pytest.approx(expected, rel=1e-6)
    assert float(step.loss.detach()) == pytest.approx(observed + 0.7 * expected, rel=1e-6)


def test_a_weight_multiplies_the_loss_of_its_row():
    torch.manual_seed(1)
    logits, items = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    rows = [-float(logits[n].log_softmax(0)[n]) for n in range(4)]
    weight = torch.tensor([1.0, 0.5, 0.0, 2.0], dtype=torch.float64)
    found = retrieval.in_batch_softmax(logits, items, torch.zeros(4, dtype=torch.float64), weight)
    assert float(found) == pytest.approx((rows[0] + 0.5 * rows[1] + 2 * rows[3]) / 4, rel=1e-12)


def literal_accepted(own, config):
    """Threshold, and {(user, item): (score, confidence)}, pair by pair in float64."""
    model = own.export()
    scores = (model.user_vectors.double() @ model.item_vectors.double().T).tolist()
    train = set(map(tuple, LOG.parts["train"].tolist()))
    held = sorted(scores[user][item] for user, item in pairs_of(own.held_back))
    place = config.quantile * (len(held) - 1)
    low = math.floor(place)
    threshold = held[low] + (place - low) * (held[min(low + 1, len(held) - 1)] - held[low])
    found = {}
    for user in {user for user, _ in train}:
        free = [item for item in {item for _, item in train} if (user, item) not in train]
        best = sorted(free, key=lambda item: -scores[user][item])[: config.per_user]
        for item in best:
            score = scores[user][item]
            if score > threshold:
                found[user, item] = score, sum(h <= score for h in held) / len(held)
    return threshold, found


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("per_user", [1, 3, 50])
def test_the_accepted_pairs_are_those_of_a_search_pair_by_pair(quantile, per_user):
    values = {"quantile": quantile, "per_user": per_user}
    own = track(learner(**values), 0, **values)
    threshold, expected = literal_accepted(own, settings(**values))
    assert float(own.thresholds[0]) == pytest.approx(threshold, abs=1e-6)
    rows = own.findings()
    if not expected:
        assert rows is None
        return
    assert set(rows.select("user", "item").rows()) == set(expected)
    for user, item, score, confidence, weight in rows.select(
        "user", "item", "score", "confidence", "weight"
    ).iter_rows():
        assert score == pytest.approx(expected[user, item][0], abs=1e-6)
        assert confidence == pytest.approx(expected[user, item][1], abs=1e-6)
        assert weight == pytest.approx(0.5 * confidence)
    observed = set(map(tuple, LOG.parts["train"].tolist()))
    assert not observed & set(expected)
    assert rows["item"].max() < ITEMS - COLD
    assert rows["user"].max() < USERS - 1


def test_recall_is_the_mean_over_users_of_what_is_found_among_unseen_items():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((5, 9)).astype(np.float32)
    seen, wanted = rng.random((5, 9)) < 0.3, np.zeros((5, 9), bool)
    for user in range(4):  # the last user wants nothing
        wanted[user, rng.permutation(np.flatnonzero(~seen[user]))[: user + 1]] = True
    shares = []
    for user in range(4):
        order = sorted(np.flatnonzero(~seen[user]), key=lambda item: -values[user, item])[:3]
        shares.append(sum(wanted[user, item] for item in order) / wanted[user].sum())
    assert 0 < sum(shares) < 4
    found = recall(lambda users: values[users], sparse.csr_matrix(wanted * 1.0), sparse.csr_matrix(seen * 1.0), 3)
    assert found == pytest.approx(sum(shares) / 4)


def test_the_first_epochs_are_retrieval_bit_for_bit(tmp_path):
    own = learner()
    plain = retrieval.build(
        retrieval.Config(dim=8, history=4),
        Context(META, two_tower.build(two_tower.Config(), (2,), META), (2,), num_samples=9, facts=given().facts),
    )
    plain.load_state_dict({name: value for name, value in own.state_dict().items() if name in plain.state_dict()})
    losses = []
    for model in (own, plain.train()):
        loss = model(batch()).loss
        loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, dict(own.named_parameters())[name].grad), name
    assert all(kept.grad is None for kept in own.kept)


def test_pairs_held_back_are_nowhere_in_training():
    source = given()
    held = pairs_of(source.facts["held_back"])
    left = set(zip(source.users.tolist(), source.items.tolist(), strict=True))
    assert held
    assert not held & left
    assert held | left == set(map(tuple, LOG.parts["train"].tolist()))
    histories = source.facts["histories"]
    assert not any(item in histories[user].tolist() for user, item in held)
    counts = np.bincount(source.items, minlength=ITEMS)
    shares = source.facts["log_share"].exp().numpy()
    np.testing.assert_allclose(shares[counts > 0], counts[counts > 0] / len(source), rtol=1e-6)
    assert pairs_of(given(seed=0).facts["held_back"]) == held
    assert pairs_of(given(seed=1).facts["held_back"]) != held


def test_events_are_held_back_only_where_user_and_item_stay_known_and_the_pair_does_not():
    rng = np.random.default_rng(3)
    users, items = rng.integers(0, 400, 3000), rng.integers(0, 300, 3000)
    users, items = np.append(users, [900, 7, 7]), np.append(items, [5, 900, 5])
    found = held_back(users, items, 0.3, rng_for(0, 0, 1))
    left = list(zip(users[~found], items[~found], strict=True))
    assert 0.2 < found.mean() < 0.3
    for user, item in zip(users[found], items[found], strict=True):
        assert user in users[~found]
        assert item in items[~found]
        assert (user, item) not in left
    assert not found[3000]  # the only event of its user
    assert not found[3001]  # the only event of its item


def test_the_wanted_pairs_are_new_tail_items_of_the_validation_part():
    log = Log()
    known = log.parts["train"][0]
    log.parts["val"] = np.concatenate([log.parts["val"], log.parts["val"][:2], [known]])
    log.slices = np.where(np.arange(ITEMS) % 3 == known[1] % 3, "tail", "head")
    found = given(log).facts["wanted"]
    expected = {(u, i) for u, i in LOG.parts["val"].tolist() if i % 3 == known[1] % 3}
    assert pairs_of(found) == expected
    assert found.shape[1] == len(expected)


def test_a_round_begins_at_the_ends_of_its_epochs_only():
    values = {"teacher_epochs": 2, "round_epochs": 3, "rounds": 2}
    own = learner(**values)
    done = []
    for epoch in range(8):
        track(own, epoch, **values)
        done.append(int(own.done))
        own.recalls[:] = 0.0  # nothing falls
    assert done == [0, 1, 1, 1, 2, 2, 2, 3]


def moved(own):
    with torch.no_grad():
        for parameter in own._trained():
            parameter.add_(torch.randn_like(parameter))
    return own


def parameters(own):
    return [p.detach().clone() for p in own._trained()]


def test_when_the_recall_falls_the_model_before_is_kept_and_nothing_moves_it():
    own = track(learner(), 0)
    before = parameters(own)
    own.recalls[0] = 2.0
    track(moved(own), 1)
    assert int(own.has_ended) == 1
    assert all(map(torch.equal, own._trained(), before))
    optimizer = torch.optim.AdamW(own._trained(), lr=0.1, weight_decay=0.1)
    step = own(batch())
    step.loss.backward()
    optimizer.step()
    assert float(step.loss.detach()) == 0
    assert not all(map(torch.equal, own._trained(), before))  # weight decay
    own.after_update(Progress(7, 12, 3))
    assert all(map(torch.equal, own._trained(), before))
    recalls, accepted = own.recalls.clone(), own.accepted.clone()
    track(own, 2)
    torch.testing.assert_close(own.recalls, recalls, equal_nan=True)
    assert torch.equal(own.accepted, accepted)
    rows = own.findings()
    assert rows["round"].unique().to_list() == [1]
    assert not rows["kept"].any()
    assert rows["recall_before"][0] == 2.0
    assert rows["recall"][0] == pytest.approx(float(recalls[1]))


def test_when_it_does_not_fall_the_later_model_is_kept_and_pairs_are_made_anew():
    own = track(learner(), 0)
    own.recalls[0] = 0.0
    track(moved(own), 1)
    assert int(own.has_ended) == 0
    assert all(map(torch.equal, own.kept, own._trained()))
    rows = own.findings()
    assert rows.filter(pl.col("round") == 1)["kept"].all()
    assert not rows.filter(pl.col("round") == 2)["kept"].any()  # not trained on yet
    first, second = (set(rows.filter(pl.col("round") == n).select("user", "item").rows()) for n in (1, 2))
    assert first != second
    now = own._read()
    assert set(zip(now.users.tolist(), now.items.tolist(), strict=True)) == second


def test_an_equal_recall_is_no_fall():
    own = track(learner(), 0)
    track(own, 1)  # nothing was trained in between
    assert own.recalls[0] == own.recalls[1]
    assert int(own.has_ended) == 0
    assert int(own.done) == 2


def test_after_the_last_round_nothing_is_accepted():
    values = {"rounds": 1}
    own = track(learner(**values), 0, **values)
    own.recalls[0] = 0.0
    track(moved(own), 1, **values)
    assert own.findings()["round"].unique().to_list() == [1]
    assert own.findings()["kept"].all()
    assert len(own._read().users) == 0


def test_the_metrics_of_a_step_tell_the_round_and_the_recall_of_the_one_before():
    own = learner()
    assert {"round": 0.0, "accepted_pairs": 0.0}.items() == {
        k: float(v) for k, v in own(batch()).metrics.items() if k in ("round", "accepted_pairs", "tail_recall")
    }.items()
    track(own, 0)
    metrics = own(batch()).metrics
    assert float(metrics["round"]) == 1
    assert float(metrics["accepted_pairs"]) == len(own.findings())
    assert float(metrics["tail_recall"]) == float(own.recalls[0])
    assert not any(value.requires_grad for value in metrics.values())


def test_accepted_pairs_train_their_users_and_items_and_weight_0_none_of_it():
    own = track(learner(), 0)
    now = own._read()
    loss = own._loss_of_accepted(now)
    loss.backward()
    touched = set((own.user_ids.weight.grad.abs().sum(1) > 0).nonzero().flatten().tolist())
    assert touched
    assert touched <= set(now.users.tolist())
    without = track(learner(weight=0.0), 0)
    state = torch.get_rng_state()
    assert torch.equal(without(batch()).loss, retrieval.Retrieval.forward(without, batch()).loss)
    assert torch.equal(state, torch.get_rng_state())
    assert without.findings()["weight"].max() == 0


def test_the_ledger_is_sorted_complete_and_says_why():
    own = track(learner(), 0)
    own.recalls[0] = 0.0
    rows = track(moved(own), 1).findings()
    assert len(rows) == int((own.accepted >= 0).sum())
    assert rows.select("item", "round", "user").rows() == sorted(rows.select("item", "round", "user").rows())
    assert rows["index"].equals(rows["item"].rename("index"))
    for row in rows.iter_rows(named=True):
        place = own.accepted[row["round"] - 1, row["user"]].tolist().index(row["item"])
        assert row["score"] == float(own.scores[row["round"] - 1, row["user"], place])
        assert row["score"] > row["threshold"] == float(own.thresholds[row["round"] - 1])
        why = json.loads(row["reason"])
        assert why["round"] == row["round"]
        assert why["threshold"] == round(row["threshold"], 4)
    # The second round has begun and is not measured: its ledger knows the recall before it only.
    assert "tail_recall_after" not in json.loads(rows.filter(pl.col("round") == 2)["reason"][0])
    assert learner().findings() is None


class Falling(PairSelfTraining):
    """The recall of the teacher is taken for perfect, so that it falls in the first round."""

    def track(self, batches, epoch):
        super().track(batches, epoch)
        if int(self.done) == 1:
            self.recalls[0] = 2.0


@pytest.mark.parametrize("kind", [PairSelfTraining, Falling])
@pytest.mark.parametrize("batches", [2, 5, 7, 10])  # with the teacher, in rounds and just after their beginning
def test_resumed_training_equals_uninterrupted_training(tmp_path, kind, batches):
    assert len(given()) // 18 == 3
    whole = trained(tmp_path / "whole", learner(kind), given(), batch_size=18)
    with pytest.raises(Stop):
        trained(tmp_path / "cut", learner(kind), Stopping(given(), batches), batch_size=18)
    resumed = trained(tmp_path / "cut", learner(kind), given(), batch_size=18)
    assert int(whole.has_ended) == 1 or kind is PairSelfTraining
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, equal_nan=True, msg=name)
    assert whole.findings().equals(resumed.findings())


def test_a_state_that_is_loaded_changes_what_the_next_step_draws_from():
    own, other = learner(), track(moved(learner()), 0)
    own(batch())
    own.load_state_dict(other.state_dict())
    assert float(own(batch()).metrics["round"]) == 1
    assert torch.equal(own._read().items, other._read().items)


def test_errors_say_what_is_missing():
    few, no_tail, no_validation = Log(), Log(), Log()
    few.parts["train"] = np.array([[0, 1], [1, 2]])
    no_tail.slices = np.full(ITEMS, "head")
    no_validation.parts["val"] = np.empty((0, 2), np.int64)
    with pytest.raises(DataError, match=r"none of 2 training events can be held back.*Set finetune.finetuner.holdout"):
        given(few)
    with pytest.raises(DataError, match=r"no new tail item.*Make data.source.val_share larger"):
        given(no_tail)
    with pytest.raises(DataError, match=r"validation part \(0 events\) has no new tail item"):
        given(no_validation)
    with pytest.raises(SettingsError, match=r"fit.epochs must be 4: teacher_epochs 1 \+ rounds 3 \* round_epochs 1"):
        learner().after_update(Progress(1, 9, 3))
    learner().after_update(Progress(1, 12, 3))
    with pytest.raises(SettingsError, match="cannot be used with accepted pairs"):
        settings(user_temperatures={}, logq=False)


def test_the_test_part_is_not_read():
    class Untested(Log):
        def interactions(self, split):
            assert split != "test"
            return super().interactions(split)

    assert isinstance(given(Untested()), HoldingBack)


def test_the_stage_writes_the_ledger_beside_the_model_the_same_for_a_seed(tmp_path):
    data = prepared(tmp_path)
    values = {"name": "pair_self_training", "teacher_epochs": 2, "rounds": 2, "round_epochs": 1, "quantile": 0.3}
    fit = {"epochs": 4, "batch_size": 64, "lr": 2e-3, "threads": 1, "log_every": 1}
    model, again = (staged(data, tmp_path / name, finetuner=values, fit=fit) for name in ("one", "two"))
    assert model.digest == again.digest
    ledger, opened = model.table("labels.parquet"), open_data(data)
    assert set(ledger.columns) >= {"round", "user", "item", "score", "threshold", "weight", "recall", "kept", "id"}
    assert (ledger["score"] > ledger["threshold"]).all()
    assert ledger["id"].to_list() == opened.samples["id"].gather(ledger["item"]).to_list()
    assert ledger["kind"].unique().to_list() == ["pseudo"]
    observed = set(zip(*(part.tolist() for part in opened.interactions("train")[:2]), strict=True))
    assert not observed & set(ledger.select("user", "item").rows())
    assert load_model(model)[0].score_users(torch.arange(3)).isfinite().all()
    lines = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    told = [line["values"] for line in lines if line["event"] == "metrics" and "train/round" in line["values"]]
    assert {0.0, 1.0} <= {values["train/round"] for values in told}
    assert ledger.filter(pl.col("round") == 1)["recall_before"][0] == pytest.approx(
        next(values["train/tail_recall"] for values in told if values["train/round"] == 1)
    )
