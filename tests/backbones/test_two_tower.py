import pytest
import torch

from appssl.backbones.two_tower import Config, build
from appssl.contracts import Meta
from appssl.errors import DataError

FIELDS = [{"name": "a", "start": 0, "length": 1}, {"name": "b", "start": 1, "length": 3}]
META = Meta(source="recsys", domain="recsys", task="ranking", facts={"fields": FIELDS, "vocab_size": 9})


def test_features_equal_means_per_field_and_layers_written_out():
    torch.manual_seed(0)
    tower = build(Config(token_dim=4, hidden=(5,), out=3), (4,), META).double()
    items = torch.tensor([[1, 4, 5, 0], [2, 0, 0, 0]])
    table = tower.tokens.weight
    zeros = torch.zeros(4, dtype=torch.float64)
    rows = [torch.cat([table[1], (table[4] + table[5]) / 2]), torch.cat([table[2], zeros])]
    torch.testing.assert_close(tower(items), tower.layers(torch.stack(rows)))


def test_fields_of_one_token_give_the_same_bytes_as_means_of_one():
    fields = [{"name": "a", "start": 0, "length": 1}, {"name": "b", "start": 1, "length": 1}]
    meta = Meta(source="recsys", domain="recsys", task="ranking", facts={"fields": fields, "vocab_size": 9})
    tower = build(Config(), (2,), meta)
    single, padded = torch.tensor([[1, 4], [0, 5], [3, 0]]), torch.tensor([[1, 4, 0, 0], [0, 5, 0, 0], [3, 0, 0, 0]])
    means = build(Config(), (4,), META)
    means.load_state_dict(tower.state_dict())
    gradients = []
    for found in (tower, means):
        features = found(single if found is tower else padded)
        features.square().sum().backward()
        gradients.append([features.detach(), *(p.grad for p in found.parameters())])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_missing_tokens_count_for_nothing_and_order_within_a_field_does_not_matter():
    tower = build(Config(), (4,), META)
    torch.testing.assert_close(tower(torch.tensor([[1, 4, 5, 0]])), tower(torch.tensor([[1, 0, 5, 4]])))


def test_the_missing_token_gets_no_gradient():
    tower = build(Config(), (4,), META)
    tower(torch.tensor([[1, 4, 0, 0]])).sum().backward()
    assert tower.tokens.weight.grad[0].abs().sum() == 0
    assert tower.tokens.weight.grad[4].abs().sum() > 0


def test_other_inputs_are_refused():
    with pytest.raises(DataError, match="needs item tokens"):
        build(Config(), (3, 32, 32), Meta(source="x", domain="wsi", task="classification"))
