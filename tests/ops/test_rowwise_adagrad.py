"""The update equals the equation written out in float64, row by row."""

import math

import pytest
import torch
from torch import nn

from appssl.engine.checkpoint import flatten_optimizer, unflatten_optimizer
from appssl.errors import SettingsError
from appssl.ops.rowwise_adagrad import RowwiseAdagrad, Together, divided

ROWS = [[0, 2, 2], [2, 4], [0, 0, 0, 1]]  # of three steps; some come more than once


def gradients(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(len(rows), 3, dtype=torch.float64, generator=generator) for rows in ROWS]


def sparse(rows, values):
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, (6, 3), check_invariants=True)


def literal(table, lr):
    """Rows of a table after the three steps, number by number."""
    table, sums = [list(row) for row in table.tolist()], [0.0] * len(table)
    for rows, values in zip(ROWS, gradients(), strict=True):
        for row in sorted(set(rows)):
            own = [sum(float(values[i][d]) for i in range(len(rows)) if rows[i] == row) for d in range(3)]
            sums[row] += sum(g * g for g in own) / 3
            for d in range(3):
                table[row][d] -= lr * own[d] / (math.sqrt(sums[row]) + 1e-10)
    return torch.tensor(table, dtype=torch.float64)


def moved(is_sparse):
    start = torch.arange(18, dtype=torch.float64).reshape(6, 3)
    table = nn.Parameter(start.clone())
    optimizer = RowwiseAdagrad([table], lr=0.3)
    for rows, values in zip(ROWS, gradients(), strict=True):
        gradient = sparse(rows, values)
        table.grad = gradient if is_sparse else gradient.to_dense()
        optimizer.step()
    return start, table.detach(), optimizer.state[table]["sum"]


@pytest.mark.parametrize("is_sparse", [True, False])
def test_equals_the_equation_with_rows_that_come_more_than_once(is_sparse):
    start, table, _ = moved(is_sparse)
    torch.testing.assert_close(table, literal(start, 0.3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_sparse", [True, False])
def test_rows_without_gradient_keep_their_bytes(is_sparse):
    start, table, sums = moved(is_sparse)
    assert torch.equal(table[[3, 5]], start[[3, 5]])
    assert sums.tolist()[3] == sums.tolist()[5] == 0.0
    assert (sums[[0, 1, 2, 4]] > 0).all()


def test_the_first_step_of_a_row_moves_it_by_the_learning_rate_whatever_its_gradient():
    for scale in (1e-4, 1.0, 1e4):
        table = nn.Parameter(torch.zeros(2, 3))
        table.grad = torch.tensor([[scale, -scale, scale], [0.0, 0.0, 0.0]])
        RowwiseAdagrad([table], lr=0.1).step()
        torch.testing.assert_close(table.detach(), torch.tensor([[-0.1, 0.1, -0.1], [0.0, 0.0, 0.0]]))


class Tables(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.net = nn.Embedding(8, 3), nn.Linear(3, 2)

    def forward(self, rows):
        return self.net(self.table(rows)).square().sum()


def both(model):
    tables, others = divided(model, [{"params": list(model.parameters())}])
    return Together([RowwiseAdagrad(tables, lr=0.1), torch.optim.AdamW(others, lr=0.01)])


def steps(model, optimizer, batches):
    for rows in batches:
        model(torch.tensor(rows)).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_together_each_part_does_what_it_does_alone():
    one, two = Tables(), Tables()
    steps(one, both(one), ROWS)
    divided(two, [{"params": list(two.parameters())}])
    rules = RowwiseAdagrad([two.table.weight], lr=0.1), torch.optim.AdamW(two.net.parameters(), lr=0.01)
    for rows in ROWS:
        two(torch.tensor(rows)).backward()
        assert two.table.weight.grad.is_sparse
        for rule in rules:
            rule.step()
            rule.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_a_state_that_was_saved_and_loaded_goes_on_to_the_same_bytes():
    whole, first, second = Tables(), Tables(), Tables()
    steps(whole, both(whole), ROWS)
    optimizer = both(first)
    steps(first, optimizer, ROWS[:2])
    saved = flatten_optimizer(optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    again = both(second)
    again.load_state_dict(unflatten_optimizer(*saved))
    steps(second, again, ROWS[2:])
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), second.parameters(), strict=True))


def test_a_learning_rate_that_is_set_from_outside_reaches_both_parts_also_after_loading():
    model = Tables()
    optimizer = both(model)
    steps(model, optimizer, ROWS[:1])
    optimizer.load_state_dict(optimizer.state_dict())
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    steps(model, optimizer, ROWS[:1])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_groups_keep_what_is_said_of_them():
    model = Tables()
    groups = [{"params": [model.net.bias]}, {"params": [model.net.weight, model.table.weight], "lr_scale": 5.0}]
    tables, others = divided(model, groups)
    assert [(len(group["params"]), group.get("lr_scale")) for group in tables] == [(1, 5.0)]
    assert tables[0]["params"][0] is model.table.weight
    assert [(len(group["params"]), group.get("lr_scale")) for group in others] == [(1, None), (1, 5.0)]


def test_frozen_tables_are_none():
    model = Tables()
    model.table.weight.requires_grad_(False)
    with pytest.raises(SettingsError, match="this method has no embedding tables"):
        divided(model, [{"params": list(model.net.parameters())}])


def test_several_gpus_are_refused(monkeypatch):
    model = Tables()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    with pytest.raises(SettingsError, match="cannot exchange sparse gradients"):
        both(model)
