import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from appssl.contracts import Context, Meta
from appssl.errors import DataError, SettingsError
from appssl.finetuners import mixup
from appssl.finetuners.mixup import Config, build, mixed, mixed_cross_entropy
from appssl.settings import validate

META = Meta(source="test", domain="webnoisy", task="classification", classes=("a", "b", "c"))


def learner(**values):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
    encoder.num_features = 5
    return build(Config(**values), Context(META, encoder, (4,), num_samples=8))


def batch(num=8):
    generator = torch.Generator().manual_seed(2)
    return {
        "input": torch.randn(num, 4, generator=generator),
        "target": torch.tensor([0, 1, 1, 2, 2, 2, 2, 0])[:num],
        "weight": torch.rand(num, generator=generator),
    }


@pytest.fixture
def fixed(monkeypatch):
    """share 0.3, and the order of the batch reversed."""
    monkeypatch.setattr(mixup.Mixup, "_share", lambda self, device: torch.tensor(0.3))
    monkeypatch.setattr(torch, "randperm", lambda size, device=None: torch.arange(size).flip(0))


@pytest.mark.parametrize("num", [8, 1])
def test_the_step_equals_the_equation_written_out(num, fixed):
    tuned, data = learner(), batch(num)
    model, total, right = learner().double(), 0.0, 0.0
    for i in range(num):
        j = num - 1 - i
        x = 0.3 * data["input"][i].double() + 0.7 * data["input"][j].double()
        shares = model.head(model.backbone(x)).softmax(0).tolist()
        for part, k in ((0.3, i), (0.7, j)):
            y = int(data["target"][k])
            total -= part * float(data["weight"][k]) * math.log(shares[y])
            right += part * (shares.index(max(shares)) == y)
    step = tuned.train()(data)
    assert float(step.loss.detach()) == pytest.approx(total / num, rel=1e-5)
    assert float(step.metrics["accuracy"]) == pytest.approx(right / num, rel=1e-5)


def test_worked_number():
    """Logits log(0.5, 0.25, 0.25): 0.25 log 2 + 0.75 log 4 = 1.75 log 2 for classes 0 and 1."""
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log().expand(2, 3)
    loss = mixed_cross_entropy(
        logits, torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor(0.25), sample_weight=torch.tensor([1.0, 1.0])
    )
    assert float(loss) == pytest.approx((1.75 + 2) / 2 * math.log(2), abs=1e-6)
    two = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(
        mixed(two, torch.tensor([1, 0]), torch.tensor(0.25)), torch.tensor([[0.25, 1.5], [0.75, 0.5]])
    )


def test_a_mixed_loss_is_cross_entropy_with_mixed_labels():
    torch.manual_seed(0)
    logits, target, other = torch.randn(8, 3), batch()["target"], torch.randperm(8)
    labels = functional.one_hot(target, 3).float()
    expected = functional.cross_entropy(logits, 0.6 * labels + 0.4 * labels[other])
    found = mixed_cross_entropy(logits, target, other, torch.tensor(0.6), sample_weight=torch.ones(8))
    torch.testing.assert_close(found, expected)


def test_without_mixing_it_is_cross_entropy():
    tuned, data = learner(alpha=0), {**batch(), "weight": torch.ones(8)}
    expected = functional.cross_entropy(tuned.head(tuned.backbone(data["input"])), data["target"])
    torch.testing.assert_close(tuned.train()(data).loss, expected)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_have_mean_and_variance_of_the_beta_distribution(alpha):
    torch.manual_seed(0)
    tuned = learner(alpha=alpha)
    shares = torch.stack([tuned._share(torch.device("cpu")) for _ in range(4000)])
    assert ((shares >= 0) & (shares <= 1)).all()
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_gradients_reach_every_parameter_and_partners_are_new_in_every_step():
    tuned, data = learner().train(), batch()
    first = tuned(data)
    first.loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in tuned.parameters())
    assert not torch.equal(tuned(data).loss, first.loss)
    assert not first.metrics["accuracy"].requires_grad


def test_the_exported_classifier_sees_inputs_as_they_are():
    tuned, inputs = learner(), batch()["input"]
    model = tuned.export().eval()
    assert torch.equal(model(inputs), model(inputs))
    torch.testing.assert_close(model(inputs), tuned.head(tuned.backbone(inputs)))


def test_every_parameter_is_in_one_group_and_the_encoder_has_its_own_rate():
    tuned = learner(backbone_lr_scale=0.1)
    groups = tuned.param_groups()
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in tuned.parameters())
    assert [group["lr_scale"] for group in groups] == [0.1, 1.0]


def test_half_precision_inputs_keep_their_type_and_the_loss_is_in_full():
    assert mixed(torch.ones(2, 3).half(), torch.tensor([1, 0]), torch.tensor(0.3)).dtype == torch.float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = learner()(batch())
    assert step.loss.dtype == torch.float32
    assert torch.isfinite(step.loss)


def test_tokens_and_wrong_settings_are_refused():
    data = {**batch(), "input": torch.zeros(8, 4, dtype=torch.int64)}
    with pytest.raises(DataError, match=r"these are torch\.int64\. Use finetuner: full"):
        learner()(data)
    with pytest.raises(SettingsError, match="alpha is not valid: Input should be greater than or equal to 0"):
        validate(Config, {"alpha": -1.0}, file="r.yaml", owner="finetuners/mixup")
