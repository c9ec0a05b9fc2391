import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from appssl.contracts import Context, Meta, Progress
from appssl.errors import SettingsError
from appssl.finetuners.co_teaching import Config, build, initialize_anew, mean_of, small_losses
from appssl.settings import validate

META = Meta(source="test", domain="webnoisy", task="classification", classes=("a", "b", "c"))


def learner(**values):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
    encoder.num_features = 5
    return build(Config(**values), Context(META, encoder, (4,), num_samples=8))


def batch(num=8):
    generator = torch.Generator().manual_seed(2)
    return {
        "input": torch.randn(num, 4, generator=generator),
        "target": torch.tensor([0, 1, 1, 2, 2, 2, 2, 0])[:num],
        "weight": torch.rand(num, generator=generator),
    }


def share(value):
    return torch.tensor(value, dtype=torch.float64)


def literal_losses(backbone, head, data):
    """Losses of one network by hand, batch statistics included."""
    logits = head.double()(backbone.double().train()(data["input"].double())).tolist()
    found = []
    for row, y in zip(logits, data["target"].tolist(), strict=True):
        found.append(math.log(sum(math.exp(value) for value in row)) - row[y])
    return found


@pytest.mark.parametrize("kept", [1.0, 0.8, 0.5, 0.05])
def test_the_step_equals_the_algorithm_written_out(kept):
    tuned, data, weight = learner(second="fresh"), batch(), batch()["weight"].double().tolist()
    tuned.kept.fill_(kept)
    model = copy.deepcopy(tuned)
    a = literal_losses(model.backbone, model.head, data)
    b = literal_losses(model.second_backbone, model.second_head, data)
    count = max(1, math.floor(kept * 8))
    by_a, by_b = (sorted(range(8), key=lambda i, own=own: own[i])[:count] for own in (a, b))
    step = tuned.train()(data)
    first = sum(weight[i] * a[i] for i in by_b) / count
    second = sum(weight[i] * b[i] for i in by_a) / count
    assert float(step.metrics["loss_first"]) == pytest.approx(first, rel=1e-5)
    assert float(step.metrics["loss_second"]) == pytest.approx(second, rel=1e-5)
    assert float(step.loss.detach()) == pytest.approx(first + second, rel=1e-5)
    assert float(step.metrics["chosen_by_both"]) == pytest.approx(len(set(by_a) & set(by_b)) / count)


def test_worked_number():
    """Two of four: the first network would choose 0 and 1, the second 2 and 3; each learns what the other chose."""
    first, second = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.8, 0.7, 0.5, 0.6])
    chosen, others = small_losses(first, share(0.5)), small_losses(second, share(0.5))
    assert (chosen.tolist(), others.tolist()) == ([True, True, False, False], [False, False, True, True])
    assert float(mean_of(first, others)) == pytest.approx(0.35)
    assert float(mean_of(second, chosen)) == pytest.approx(0.75)


def test_the_share_kept_falls_in_equal_steps_and_stays():
    tuned = learner(noise_rate=0.4, ramp_epochs=4)
    assert float(tuned.kept) == 1
    found = []
    for step in range(1, 19):  # three steps an epoch
        tuned.after_update(Progress(step, 18, 3))
        found.append(float(tuned.kept))
    expected = (
        [1, 1] + [0.9] * 3 + [0.8] * 3 + [0.7] * 3 + [0.6] * 7
    )  # after the last step of an epoch, that of the next
    assert found == pytest.approx(expected)
    again = learner(noise_rate=0.4, ramp_epochs=4)
    again.load_state_dict(tuned.state_dict())
    assert float(again.kept) == pytest.approx(0.6)


@pytest.mark.parametrize(("kept", "count"), [(1.0, 10), (1 - 0.7, 3), (0.39, 3), (0.0, 1), (1 - 0.1, 9)])
def test_counts_are_rounded_down_but_not_by_rounding_errors(kept, count):
    losses = torch.rand(10, generator=torch.Generator().manual_seed(0))
    chosen = small_losses(losses, share(kept))
    assert int(chosen.sum()) == count
    assert float(losses[chosen].max()) <= float(losses[~chosen].min() if count < 10 else 1.0)
    assert int(small_losses(torch.zeros(10), share(kept)).sum()) == count  # also of equal losses


def test_with_all_kept_both_have_cross_entropy():
    tuned, data = learner(second="fresh"), {**batch(), "weight": torch.ones(8)}
    model = copy.deepcopy(tuned).train()
    first = functional.cross_entropy(model.head(model.backbone(data["input"])), data["target"])
    second = functional.cross_entropy(model.second_head(model.second_backbone(data["input"])), data["target"])
    torch.testing.assert_close(tuned.train()(data).loss, first + second)


def test_a_sample_that_the_other_leaves_out_gives_no_gradient():
    losses = torch.rand(8, requires_grad=True)
    others = torch.rand(8, generator=torch.Generator().manual_seed(0))
    mean_of(losses, small_losses(others, share(0.5))).backward()
    assert (losses.grad != 0).tolist() == (others.argsort().argsort() < 4).tolist()


def test_each_loss_reaches_its_own_network_only():
    tuned = learner()
    tuned.kept.fill_(0.5)
    tuned.train()(batch()).loss.backward()
    assert all(
        p.grad.abs().sum() > 0 for p in (*tuned.backbone[0].parameters(), *tuned.head.parameters()) if p.dim() > 1
    )
    alone, data = learner().train(), batch()
    losses = functional.cross_entropy(alone.head(alone.backbone(data["input"])), data["target"], reduction="none")
    others = functional.cross_entropy(
        alone.second_head(alone.second_backbone(data["input"])), data["target"], reduction="none"
    )
    mean_of(losses, small_losses(others.detach(), share(0.5))).backward()
    assert all(p.grad is None for p in (*alone.second_backbone.parameters(), *alone.second_head.parameters()))


def test_the_networks_differ_and_a_copy_keeps_what_was_pretrained():
    copied, fresh = learner(), learner(second="fresh")
    assert torch.equal(copied.backbone[0].weight, copied.second_backbone[0].weight)
    assert not torch.equal(copied.head.weight, copied.second_head.weight)
    assert not torch.equal(fresh.backbone[0].weight, fresh.second_backbone[0].weight)
    assert torch.equal(copied.backbone[0].weight, fresh.backbone[0].weight)


def test_running_statistics_begin_again():
    norm = nn.Sequential(nn.BatchNorm1d(3))
    norm(torch.randn(9, 3) + 5)
    initialize_anew(norm)
    assert norm[0].running_mean.tolist() == [0, 0, 0]


def test_the_first_network_is_exported():
    tuned, inputs = learner(second="fresh").eval(), batch()["input"]
    torch.testing.assert_close(tuned.export()(inputs), tuned.head(tuned.backbone(inputs)))


def test_every_parameter_is_in_one_group_and_the_encoders_have_their_own_rate():
    tuned = learner(backbone_lr_scale=0.1)
    groups = tuned.param_groups()
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in tuned.parameters())
    assert [group["lr_scale"] for group in groups] == [0.1, 1.0]


def test_two_samples_and_half_precision():
    tuned = learner(noise_rate=0.9)
    tuned.kept.fill_(0.1)
    assert torch.isfinite(tuned.train()(batch(2)).loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = tuned(batch())
    assert step.loss.dtype == torch.float32
    assert torch.isfinite(step.loss)
    assert small_losses(torch.tensor([0.5]), share(0.2)).tolist() == [True]


def test_wrong_settings_are_named():
    with pytest.raises(SettingsError, match="noise_rate is not valid: Input should be less than 1"):
        validate(Config, {"noise_rate": 1.0}, file="r.yaml", owner="finetuners/co_teaching")
    with pytest.raises(SettingsError, match="Did you mean fresh"):
        validate(Config, {"second": "frsh"}, file="r.yaml", owner="finetuners/co_teaching")
