import math

import numpy as np
import pytest
import torch

from appssl.backbones import two_tower
from appssl.contracts import Context, Meta
from appssl.finetuners.retrieval import Config, Interactions, build, in_batch_softmax

FIELDS = [{"name": "a", "start": 0, "length": 2}]
META = Meta(source="recsys", domain="recsys", task="ranking", facts={"fields": FIELDS, "vocab_size": 6})


class Log:
    """Three users, four items; user 2 and item 3 never occur in training."""

    meta, num_users, num_items = META, 3, 4
    tokens = np.array([[1, 2], [3, 0], [4, 5], [6, 0]])

    def interactions(self, split):
        return np.array([0, 1, 0, 1]), np.array([0, 1, 2, 0]), np.arange(4)


def learner(**values):
    config = Config(**values)
    torch.manual_seed(0)
    backbone = two_tower.build(two_tower.Config(), (2,), META)
    facts = Interactions(config, Log()).facts
    return build(config, Context(meta=META, backbone=backbone, input_shape=(2,), num_samples=4, facts=facts))


def literal(logits, items, share):
    losses = []
    for i in range(len(items)):
        scores = [logits[i][j] - math.log(share[items[j]]) for j in range(len(items))]
        others = [math.exp(s) for j, s in enumerate(scores) if j == i or items[j] != items[i]]
        losses.append(-math.log(math.exp(scores[i]) / sum(others)))
    return sum(losses) / len(losses)


def test_loss_equals_the_equation_written_out_with_a_repeated_item():
    torch.manual_seed(1)
    logits = torch.randn(5, 5, dtype=torch.float64)
    items = torch.tensor([0, 2, 0, 1, 3])
    share = [0.4, 0.3, 0.2, 0.1]
    log_share = torch.tensor(share, dtype=torch.float64).log()[items]
    value = in_batch_softmax(logits, items, log_share)
    assert float(value) == pytest.approx(literal(logits.tolist(), items.tolist(), share), rel=1e-12)


def test_with_the_correction_batches_drawn_by_frequency_estimate_the_full_softmax():
    rng = np.random.default_rng(0)
    share = np.array([0.7, 0.2, 0.07, 0.03])
    logits = np.array([0.3, -0.2, 0.9, 0.1])
    items = torch.from_numpy(np.concatenate([[2], rng.choice(4, 40_000, p=share)]))
    drawn = torch.from_numpy(logits)[items]
    corrected = drawn - torch.from_numpy(np.log(share))[items]
    keep = items != 2
    estimate = torch.exp(corrected[keep]).sum() / 40_000
    assert float(estimate) == pytest.approx(np.exp(np.delete(logits, 2)).sum(), rel=0.03)  # 40,000 draws


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
