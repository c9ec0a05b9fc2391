"""INS: each term against a loop over its equation, the worked example of its specification, and the training phases."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from appssl.contracts import Context, Meta, Progress
from appssl.errors import DataError, SettingsError
from appssl.finetuners.ins import (
    Config,
    build,
    examples,
    family_losses,
    moco_loss,
    moved_prototypes,
    nearest_candidate,
)
from tests.bags import CLASSES, BagData, PlainViews

META = Meta(source="test", domain="wsi", task="classification", classes=CLASSES, facts={"bag": "bag"})
QUERY = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
KEY = torch.tensor([[0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)
QUEUE = torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)], [-0.6, 0.8]], dtype=torch.float64)


class Encoder(nn.Module):
    num_features = 6

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, inputs):
        return self.layer(inputs)


def learner(num_rows=40, num_bags=4, **values):
    torch.manual_seed(0)
    values = {"queue": 12, "projector_hidden": 8, "projector_out": 5, **values}
    facts = {"num_rows": num_rows, "bag_targets": torch.arange(num_bags) % 2}
    return build(Config(**values), Context(META, Encoder(), (4,), num_samples=num_rows, facts=facts))


def batch(targets=(0, 1, 1, 0, 1, 0), seed=0):
    torch.manual_seed(seed)
    size = len(targets)
    return {
        "index": torch.arange(size),
        "views": [torch.randn(size, 4), torch.randn(size, 4)],
        "target": torch.tensor(targets),
        "bag": torch.tensor(targets),
        "input": torch.randn(7, 4),
        "group": torch.ones(7, dtype=torch.int64),
    }


def at_epoch(tuned, epoch):
    tuned.after_update(Progress(step=2 * epoch, num_steps=200, steps_per_epoch=2))
    return tuned


def looped_family_losses(query, pool, classes, pool_class, tau):
    """Equation of L_IWSCL, one anchor and one member at a time."""
    losses = []
    for i in range(len(query)):
        below = sum(math.exp(float(query[i] @ pool[a]) / tau) for a in range(len(pool)) if a != i)
        family = [j for j in range(len(pool)) if j != i and pool_class[j] == classes[i]]
        terms = [math.log(math.exp(float(query[i] @ pool[j]) / tau) / below) for j in family]
        losses.append(-sum(terms) / len(family))
    return torch.tensor(losses, dtype=torch.float64)


def test_contrast_equals_the_loop_over_its_equation():
    rng = torch.Generator().manual_seed(3)
    query = nn.functional.normalize(torch.randn(5, 6, dtype=torch.float64, generator=rng), dim=1)
    rest = nn.functional.normalize(torch.randn(11, 6, dtype=torch.float64, generator=rng), dim=1)
    pool, classes = torch.cat([query, rest]), torch.tensor([0, 1, 1, 0, 1])
    pool_class = torch.cat([classes, torch.tensor([0, 1] * 5 + [0])])
    expected = looped_family_losses(query, pool, classes, pool_class, 0.07)
    found = family_losses(query, pool, classes, pool_class, temperature=0.07)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_worked_example():
    pool = torch.cat([QUERY, KEY, QUEUE])
    classes, pool_class = torch.tensor([0, 1]), torch.tensor([0, 1, 0, 1, 0, 1])
    found = family_losses(QUERY, pool, classes, pool_class, temperature=0.5)
    assert found.tolist() == pytest.approx([1.109383, 2.101664], abs=1e-6)
    assert float(found.mean()) == pytest.approx(1.605523, abs=1e-6)
    assert float(moco_loss(QUERY, KEY, QUEUE, temperature=0.5)) == pytest.approx(0.836208, abs=1e-6)
    prototypes = torch.eye(2, dtype=torch.float64)
    assert (QUERY @ prototypes.T).softmax(1).flatten().tolist() == pytest.approx(
        [0.731059, 0.268941, 0.450166, 0.549834], abs=1e-6
    )
    moved = moved_prototypes(prototypes, QUERY, torch.tensor([0, 1]), beta=0.9)
    assert moved[1].tolist() == pytest.approx([0.061110, 0.998131], abs=1e-6)


def test_the_worked_example_of_pseudo_labels():
    """s = [.5, .5], z = [0, 1], phi = .95 gives [.475, .525]; with logits (.2, -.3) the loss is 0.736577."""
    tuned = at_epoch(learner(), 20)
    tuned.done.zero_()
    tuned._move_labels(torch.tensor([3]), torch.tensor([1]), torch.tensor([1]))
    assert tuned.pseudo_labels[3].tolist() == pytest.approx([0.475, 0.525])
    logits = torch.tensor([0.2, -0.3])
    assert float(-(tuned.pseudo_labels[3] * logits.log_softmax(0)).sum()) == pytest.approx(0.736577, abs=1e-6)


def test_prototypes_move_as_if_one_row_came_after_the_other():
    torch.manual_seed(1)
    start = nn.functional.normalize(torch.randn(2, 4, dtype=torch.float64), dim=1)
    query = nn.functional.normalize(torch.randn(9, 4, dtype=torch.float64), dim=1)
    classes = torch.tensor([0, 1, 1, 0, 1, 1, 1, 0, 1])
    expected = start.clone()
    for row, which in zip(query, classes, strict=True):
        expected[which] = 0.9 * expected[which] + 0.1 * row
    expected = nn.functional.normalize(expected, dim=1)
    torch.testing.assert_close(moved_prototypes(start, query, classes, beta=0.9), expected)


def test_contrast_with_its_own_key_as_only_relative_is_the_loss_of_moco():
    query, key, queue = QUERY[:1], KEY[:1], QUEUE
    pool, pool_class = torch.cat([query, key, queue]), torch.tensor([0, 0, 1, 1])
    found = family_losses(query, pool, torch.tensor([0]), pool_class, temperature=0.5)
    torch.testing.assert_close(found[0], moco_loss(query, key, queue, temperature=0.5))


def test_contrast_is_not_negative_and_does_not_depend_on_the_order_of_the_pool():
    torch.manual_seed(5)
    query = nn.functional.normalize(torch.randn(4, 3), dim=1)
    rest = nn.functional.normalize(torch.randn(8, 3), dim=1)
    classes, rest_class = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1] * 4)
    order = torch.randperm(8)
    one = family_losses(query, torch.cat([query, rest]), classes, torch.cat([classes, rest_class]), temperature=0.1)
    pool, pool_class = torch.cat([query, rest[order]]), torch.cat([classes, rest_class[order]])
    two = family_losses(query, pool, classes, pool_class, temperature=0.1)
    assert (one >= 0).all()
    torch.testing.assert_close(one, two)


def test_without_a_relative_an_anchor_counts_nothing():
    found = family_losses(
        QUERY, torch.cat([QUERY, QUEUE]), torch.tensor([0, 1]), torch.tensor([0, 1, 1, 1]), temperature=1
    )
    assert found[0] == 0
    assert found[1] > 0


def test_a_candidate_that_is_closed_is_never_chosen():
    scores = torch.tensor([[0.1, 5.0], [0.1, 5.0]])
    assert nearest_candidate(scores, torch.tensor([[1, 0], [1, 1]])).tolist() == [0, 1]


def test_tiles_of_negative_bags_stay_certain_and_rows_stay_distributions():
    tuned = at_epoch(learner(), 20)
    for seed in range(3):
        tuned.train()(batch(seed=seed))
    labels = tuned.pseudo_labels[:6]
    torch.testing.assert_close(labels.sum(1), torch.ones(6))
    assert torch.equal(labels[torch.tensor([0, 3, 5])], torch.tensor([[1.0, 0.0]] * 3))
    assert torch.equal(tuned.pseudo_labels[6:], torch.full((34, 2), 0.5))  # rows that no batch had


def test_with_negative_bags_only_the_loss_is_plain_cross_entropy():
    tuned = at_epoch(learner(contrastive_weight=0.0, bag_weight=0.0), 20)
    data = batch(targets=(0, 0, 0, 0))
    step = tuned.train()(data)
    logits = tuned.head(tuned.backbone(data["views"][0]))
    torch.testing.assert_close(step.loss, nn.functional.cross_entropy(logits, torch.zeros(4, dtype=torch.int64)))


def test_the_first_phase_takes_the_label_of_the_bag_for_that_of_its_tiles():
    tuned, data = learner(), batch()
    logits = tuned.head(tuned.backbone(data["views"][0]))
    torch.testing.assert_close(tuned.train()(data).loss, nn.functional.cross_entropy(logits, data["target"]))


def test_the_warm_up_has_even_targets_and_the_loss_of_moco():
    tuned = at_epoch(learner(bag_weight=0.0, temperature=0.5), 3)
    tuned.train()(batch(targets=(1, 1, 1, 1), seed=1))  # fills the queue
    before, data = copy.deepcopy(tuned), batch(targets=(1, 1, 1, 1))
    query = nn.functional.normalize(before.projector(before.backbone(data["views"][0])), dim=1)
    key = nn.functional.normalize(before.key_projector(before.key_backbone(data["views"][1])), dim=1)
    even = -0.5 * before.head(before.backbone(data["views"][0])).log_softmax(1).sum(1).mean()
    moco = moco_loss(query, key, before.queue[:4], temperature=0.5)
    torch.testing.assert_close(tuned(data).loss, even + 0.5 * moco)
    assert torch.equal(tuned.pseudo_labels, torch.full((40, 2), 0.5))


def test_the_whole_loss_is_the_sum_of_its_terms_with_their_weights():
    one, two = (at_epoch(learner(contrastive_weight=a, bag_weight=b), 20) for a, b in ((0.5, 2.0), (0.0, 0.0)))
    step, plain = one.train()(batch()), two.train()(batch())
    expected = plain.loss + 0.5 * step.metrics["loss_contrastive"] + 2 * step.metrics["loss_bag"]
    torch.testing.assert_close(step.loss, expected)


def test_the_bag_term_is_a_classifier_of_the_mean_over_the_tiles():
    tuned, data = at_epoch(learner(), 20), batch()
    logits = tuned.bag_head(tuned.backbone(data["input"]).mean(0, keepdim=True))
    expected = nn.functional.cross_entropy(logits, torch.tensor([1]))  # bag 1 is positive
    torch.testing.assert_close(tuned.train()(data).metrics["loss_bag"], expected.detach())


@pytest.mark.parametrize("target", [0, 1])
def test_the_other_bag_term_is_the_cross_entropy_of_the_highest_tile(target):
    tuned, features = learner(bag_term="max"), torch.randn(7, 6)
    highest = max(float(p) for p in tuned.head(features).detach().softmax(1)[:, 1])
    expected = -math.log(highest if target else 1 - highest)
    assert tuned._bag_loss(features, torch.tensor([target])).item() == pytest.approx(expected, rel=1e-5)


def test_nothing_flows_into_keys_prototypes_and_pseudo_labels():
    tuned = at_epoch(learner(), 20)
    tuned.train()(batch()).loss.backward()
    assert all(p.grad is None for m in (tuned.key_backbone, tuned.key_projector) for p in m.parameters())
    for own in (tuned.backbone, tuned.head, tuned.projector, tuned.bag_head):
        assert all(p.grad.abs().sum() > 0 for p in own.parameters())
    assert not tuned.prototypes.requires_grad
    assert not tuned.pseudo_labels.requires_grad


def test_the_queue_is_a_ring_and_empty_places_take_part_in_nothing():
    tuned = at_epoch(learner(queue=8), 20)
    tuned.train()(batch())
    assert (tuned.queue_class[:6] >= 0).all()
    assert (tuned.queue_class[6:] == -1).all()
    first = tuned.queue[0].clone()
    tuned(batch(seed=4))
    assert int(tuned.queue_next) == 4
    assert not torch.equal(tuned.queue[0], first)
    assert (tuned.queue_class >= 0).all()
    torch.testing.assert_close(tuned.queue.norm(dim=1), torch.ones(8))


def test_the_momentum_encoder_is_a_copy_at_first_and_then_follows_slowly():
    tuned = learner()
    with torch.no_grad():
        tuned.backbone.layer.weight.add_(1.0)
    tuned.after_update(Progress(step=1, num_steps=200, steps_per_epoch=2))
    assert torch.equal(tuned.key_backbone.layer.weight, tuned.backbone.layer.weight)
    before = tuned.key_backbone.layer.weight.clone()
    with torch.no_grad():
        tuned.backbone.layer.weight.add_(1.0)
    tuned.after_update(Progress(step=5, num_steps=200, steps_per_epoch=2))
    torch.testing.assert_close(tuned.key_backbone.layer.weight, before + 0.001)


@pytest.mark.parametrize(("warmup", "last"), [(15, 15), (0, 0)])
def test_the_positive_prototype_starts_at_the_most_positive_tile_of_each_positive_bag(warmup, last):
    tuned = learner(warmup_epochs=warmup).eval()
    tuned.epoch.fill_(last)  # the last epoch without pseudo-labels
    data = batch((1, 1, 0, 1, 1, 0))
    data["bag"] = torch.tensor([1, 3, 0, 1, 3, 2])
    with torch.no_grad():
        features = tuned.backbone(data["views"][0])
        scores, queries = (
            tuned.head(features).softmax(1)[:, 1],
            torch.nn.functional.normalize(tuned.projector(features)),
        )
        tuned(data)
    best = [max(rows, key=lambda row: scores[row]) for rows in ((0, 3), (1, 4))]
    tuned.after_update(Progress(step=2 * last + 2, num_steps=200, steps_per_epoch=2))
    expected = torch.nn.functional.normalize(queries[best].sum(0), dim=0)
    torch.testing.assert_close(tuned.prototypes[1], expected)


def test_a_later_batch_replaces_the_best_tile_only_by_a_better_one():
    tuned, queries = learner(), torch.eye(5)
    logits = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]])
    tuned._note_best(queries[:2], logits[:2], torch.tensor([1, 1]))
    tuned._note_best(queries[2:3], logits[2:3], torch.tensor([1]))
    assert torch.equal(tuned.best_query[1], queries[1])
    tuned._note_best(queries[3:4], torch.tensor([[0.0, 4.0]]), torch.tensor([1]))
    assert torch.equal(tuned.best_query[1], queries[3])
    assert tuned.best_score[0] == -1


def test_training_goes_on_in_its_phase_after_a_resume():
    tuned = at_epoch(learner(), 20)
    again = learner()
    again.load_state_dict(tuned.state_dict())
    torch.testing.assert_close(again.train()(batch()).loss, tuned.train()(batch()).loss)
    assert "loss_contrastive" in again(batch()).metrics


def test_a_training_that_ends_before_the_last_phase_is_refused():
    with pytest.raises(SettingsError, match=r"fit.epochs must be more than .* = 16"):
        learner().after_update(Progress(step=1, num_steps=32, steps_per_epoch=2))


def test_other_numbers_of_classes_and_unknown_positives_are_refused():
    three = Meta(source="test", domain="wsi", task="classification", classes=("a", "b", "c"))
    facts = {"num_rows": 4, "bag_targets": torch.zeros(2)}
    with pytest.raises(DataError, match="two classes of bags"):
        build(Config(), Context(three, Encoder(), (4,), num_samples=4, facts=facts))
    with pytest.raises(SettingsError, match="positive is tumour, the classes are"):
        learner(positive="tumour")


def test_the_first_class_can_be_the_positive_one():
    tuned = learner(positive=CLASSES[0])
    data = batch(targets=(0, 1))
    logits = tuned.head(tuned.backbone(data["views"][0]))
    torch.testing.assert_close(tuned.train()(data).loss, nn.functional.cross_entropy(logits, torch.tensor([1, 0])))
    model = tuned.export().eval()
    torch.testing.assert_close(model(data["input"]), tuned.head(tuned.backbone(data["input"])).flip(1))
    of_bag = model.bag_probabilities(tuned.backbone(data["input"]))
    torch.testing.assert_close(of_bag[0], model(data["input"]).softmax(1)[:, 0].mean())


@pytest.mark.parametrize("pooling", ["mean", "max", "logsumexp"])
def test_a_bag_lies_between_its_tiles(pooling):
    model = learner(pooling=pooling).export().eval()
    features = torch.randn(9, 6)
    tiles, bag = model.head(features).softmax(1)[:, 1], model.bag_probabilities(features)
    torch.testing.assert_close(bag.sum(), torch.tensor(1.0))
    assert tiles.min() <= bag[1] <= tiles.max()
    assert pooling != "max" or bag[1] == tiles.max()


def test_examples_show_positive_bags_only_in_the_warm_up_and_whole_bags_in_the_bag_term():
    data = BagData(num_bags=6, length=5)
    found = examples(Config(bag_label_epochs=1, warmup_epochs=2, tiles_per_bag=4), data, PlainViews(), 0)
    every = np.arange(len(found))
    for epoch, expected in ((0, {0, 1}), (1, {1}), (2, {1}), (3, {0, 1})):
        made = found.batch(every, seed=0, epoch=epoch)
        assert set(made["target"].tolist()) == expected
        assert len(made["input"]) == 4
        bag = made["group"].unique()
        assert len(bag) == 1
        assert data.samples["bag"][int(every[0])] == f"bag{int(bag)}"
    assert found.facts["bag_targets"].tolist() == [0, 1, 0, 1, 0, 1]


def test_one_kind_of_bags_is_refused():
    data = BagData(num_bags=3, length=4, positive=lambda bag: False)
    with pytest.raises(DataError, match="positive and negative bags"):
        examples(Config(), data, PlainViews(), 0)
