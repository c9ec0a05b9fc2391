import copy

import pytest
import torch
from torch import nn

from appssl.contracts import Context, Meta
from appssl.errors import SettingsError
from appssl.finetuners.linear_probe import Config, build
from appssl.settings import validate

META = Meta(source="test", domain="wsi", task="classification", classes=("a", "b", "c"))


class Encoder(nn.Module):
    """Dropout and batch normalization: what evaluation mode turns off."""

    num_features = 5

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))

    def forward(self, x):
        return self.net(x)


def probe(**values):
    torch.manual_seed(1)
    facts = {"class_counts": [1.0, 2.0, 5.0]}
    return build(Config(**values), Context(META, Encoder(), (4,), num_samples=8, facts=facts))


def batch():
    generator = torch.Generator().manual_seed(2)
    target = torch.tensor([0, 1, 1, 2, 2, 2, 2, 2])
    return {"input": torch.randn(8, 4, generator=generator) * 3 + 1, "target": target, "weight": torch.rand(8)}


def test_loss_equals_a_linear_layer_on_standardized_features_written_out():
    learner, data = probe(), batch()
    features = Encoder().eval()(data["input"])
    standardized = (features - features.mean(0)) / torch.sqrt(features.var(0, unbiased=False) + 1e-5)
    logits = standardized @ learner.head[1].weight.T + learner.head[1].bias
    own = -logits.log_softmax(1)[range(8), data["target"]]
    step = learner.train()(data)
    torch.testing.assert_close(step.loss, (own * data["weight"]).sum() / 8)
    assert float(step.metrics["accuracy"]) == float((logits.argmax(1) == data["target"]).float().mean())


def test_the_encoder_never_changes_not_even_its_running_statistics():
    learner = probe().train()
    before = copy.deepcopy(learner.backbone.state_dict())
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        learner(batch()).loss.backward()
        optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in learner.backbone.state_dict().items())
    assert not any(p.requires_grad for p in learner.backbone.parameters())
    assert not learner.backbone.training
    assert learner.head.training


def test_at_test_time_features_are_standardized_by_running_statistics_so_a_sample_stands_alone():
    learner = probe().train()
    for _ in range(5):
        learner(batch())
    model = learner.export().eval()
    inputs = batch()["input"]
    torch.testing.assert_close(model(inputs)[:1], model(inputs[:1]))


def test_without_standardization_the_head_is_one_linear_layer():
    learner, inputs = probe(standardize=False), batch()["input"]
    features = Encoder().eval()(inputs)
    torch.testing.assert_close(
        learner.export().eval()(inputs), features @ learner.head[1].weight.T + learner.head[1].bias
    )


def test_balanced_classes_are_weighted_by_the_training_counts():
    assert probe(class_weight="balanced").class_weight.tolist() == pytest.approx([8 / 3, 8 / 6, 8 / 15])
    assert probe().class_weight.tolist() == [1, 1, 1]


def test_it_learns_what_a_linear_layer_can():
    torch.manual_seed(0)
    learner = probe(standardize=False).train()
    inputs = torch.randn(256, 4)
    with torch.no_grad():
        target = (learner.backbone(inputs) @ torch.randn(5, 3)).argmax(1)
    data = {"input": inputs, "target": target, "weight": torch.ones(256)}
    optimizer = torch.optim.Adam(learner.head.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        learner(data).loss.backward()
        optimizer.step()
    assert float(learner(data).metrics["accuracy"]) > 0.95


def test_wrong_settings_are_named():
    wrong = {"label_smoothing": 1, "class_weight": "balance"}
    with pytest.raises(SettingsError) as caught:
        validate(Config, wrong, file="r.yaml", owner="finetuners/linear_probe")
    assert "label_smoothing is not valid: Input should be less than 1 (got 1)" in str(caught.value)
    assert "Input should be 'none' or 'balanced' (got 'balance'). Did you mean balanced?" in str(caught.value)
