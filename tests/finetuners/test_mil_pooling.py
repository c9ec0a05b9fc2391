import pytest
import torch
from torch import nn

from appssl.contracts import Context, Meta
from appssl.finetuners.mil_pooling import Config, build, examples
from tests.bags import CLASSES, BagData, PlainViews

META = Meta(source="test", domain="wsi", task="classification", classes=CLASSES, facts={"bag": "bag"})


class Encoder(nn.Module):
    num_features = 6

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, inputs):
        return self.layer(inputs).tanh()


def context(counts=(3, 3)):
    torch.manual_seed(0)
    return Context(META, Encoder(), (4,), num_samples=6, facts={"class_counts": list(counts)})


def batch():
    torch.manual_seed(1)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    return {"input": torch.randn(2, 5, 4), "mask": mask, "target": torch.tensor([1, 0])}


def looped_logits(tuned, data, how):
    """One bag and one tile at a time."""
    logits = []
    for tiles, mask in zip(data["input"], data["mask"], strict=True):
        features = [tuned.backbone(tile) for tile, present in zip(tiles, mask, strict=True) if present]
        if how == "mean":
            logits.append(tuned.head(sum(features) / len(features)))
        else:
            scores = [tuned.head(feature) for feature in features]
            logits.append(torch.stack([max(score[c] for score in scores) for c in range(2)]))
    return torch.stack(logits)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_equals_the_loop_over_its_equation(how):
    tuned, data = build(Config(pooling=how), context()).double(), batch()
    data["input"] = data["input"].double()
    expected = nn.functional.cross_entropy(looped_logits(tuned, data, how), data["target"])
    torch.testing.assert_close(tuned.train()(data).loss.double(), expected, rtol=1e-6, atol=1e-6)


def test_worked_numbers_of_the_mean_and_the_maximum():
    """Tiles (0, 2) and (4, -2) under the identity: the mean is (2, 0), the maximum (4, 2)."""
    for how, expected in (("mean", [2.0, 0.0]), ("max", [4.0, 2.0])):
        model = build(Config(pooling=how), context()).export()
        model.head = nn.Identity()
        found = model.bag_probabilities(torch.tensor([[0.0, 2.0], [4.0, -2.0]]))
        torch.testing.assert_close(found, torch.tensor(expected).softmax(0))


@pytest.mark.parametrize("how", ["mean", "max"])
def test_tiles_that_fill_a_bag_up_change_nothing(how):
    tuned, data = build(Config(pooling=how), context()), batch()
    before = tuned.train()(data).loss
    data["input"][1, 2:] = 1e6
    assert torch.equal(tuned(data).loss, before)


def test_a_bag_of_one_tile_is_the_tile():
    model = build(Config(), context()).export().eval()
    tile = torch.randn(1, 4)
    torch.testing.assert_close(model.bag_probabilities(model.backbone(tile)), model(tile)[0].softmax(0))


def test_a_frozen_encoder_gets_no_gradient():
    tuned = build(Config(freeze=True), context())
    tuned.train()(batch()).loss.backward()
    assert all(p.grad is None for p in tuned.backbone.parameters())
    assert tuned.head.weight.grad.abs().sum() > 0
    assert not tuned.backbone.training


def test_balanced_weights_count_bags_and_not_tiles():
    data = BagData(num_bags=4, length=4, positive=lambda bag: bag == 0)
    found = examples(Config(), data, PlainViews(), 0)
    assert found.facts["class_counts"] == [3, 1]
    tuned = build(Config(class_weight="balanced"), context(counts=(3, 1)))
    torch.testing.assert_close(tuned.class_weight, torch.tensor([4 / 6, 2.0]))
