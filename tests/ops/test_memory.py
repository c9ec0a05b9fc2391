"""A memory is the newest rows, its neighbors are those of a search by hand, and two processes hold the same."""

import pytest
import torch
from torch import nn

from appssl.ops.memory import Memory
from tests.processes import on_two


def rows(count, seed=0, width=3):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sizes", [[1], [4], [7], [4, 4, 4], [2, 7, 3, 1], [9, 2], [20], [3, 15]])
def test_it_holds_the_newest_rows_and_counts_all(sizes):
    memory, stream = Memory(7, 3), torch.zeros(0, 3)
    for seed, size in enumerate(sizes):
        before = memory.rows
        kept = before.clone()
        memory.add(rows(size, seed))
        stream = torch.cat([stream, rows(size, seed)])
        assert torch.equal(before, kept)  # what a backward pass may still need
        assert int((memory.rows != kept).any(1).sum()) == min(size, 7)
    assert int(memory.num_added) == len(stream)
    for place in range(7):
        there = [n for n in range(len(stream)) if n % 7 == place]
        assert bool(memory.is_filled()[place]) == bool(there)
        assert torch.equal(memory.rows[place], stream[there[-1]] if there else torch.zeros(3))


@pytest.mark.parametrize("k", [1, 3, 6])
def test_neighbors_are_those_of_largest_cosine_and_come_as_stored(k):
    memory, queries = Memory(6, 3), 7 * rows(4, 1)
    memory.add(rows(6) * torch.tensor([[1.0], [20], [0.1], [1], [5], [1]]))
    found, is_there = memory.nearest(queries, k)
    assert found.shape == (4, k, 3)
    assert is_there.all()
    for query, neighbors in zip(queries, found, strict=True):
        cosines = [float(query @ row / query.norm() / row.norm()) for row in memory.rows]
        order = sorted(range(6), key=lambda n: -cosines[n])[:k]
        assert torch.equal(neighbors, memory.rows[order])


def test_what_is_not_stored_is_no_neighbor():
    """Also where all stored rows point away: a place that is empty has cosine 0 to everything."""
    memory = Memory(5, 2)
    memory.add(torch.tensor([[-1.0, 0.0], [-1.0, 1.0]]))
    found, is_there = memory.nearest(torch.tensor([[1.0, 0.0]]), 3)
    assert is_there.tolist() == [[True, True, False]]
    assert found[0, :2].tolist() == [[-1, 1], [-1, 0]]
    assert (found[0, 2] == 0).all()
    assert not Memory(5, 2).nearest(torch.ones(4, 2), 3)[1].any()
    assert memory.nearest(torch.ones(4, 2), 0)[0].shape == (4, 0, 2)


def test_no_gradient_enters_or_leaves_and_a_checkpoint_holds_it():
    memory, given = Memory(4, 3), rows(2).requires_grad_(True)
    memory.add(given)
    assert not memory.rows.requires_grad
    assert not memory.nearest(given, 2)[0].requires_grad
    assert [*memory.parameters()] == []
    again = Memory(4, 3)
    again.load_state_dict(memory.state_dict())
    again.add(rows(3, 1))
    memory.add(rows(3, 1))
    assert torch.equal(again.rows, memory.rows)
    assert int(again.num_added) == 5


def test_half_precision_is_stored_and_compared_in_float32():
    memory = Memory(3, 2)
    memory.add(torch.tensor([[1.0, 0.0], [1.0, 1e-3], [1.0, 2e-3]]).bfloat16())
    assert memory.rows.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):  # in which the three cosines are equal
        found, _ = memory.nearest(torch.tensor([[0.0, 1.0]]).bfloat16(), 3)
    assert found[0, :, 1].tolist() == sorted(memory.rows[:, 1].tolist(), reverse=True)


def filled(mine):
    memory = Memory(6, 3)
    for seed in range(4):
        memory.add(rows(4, seed)[mine])
    return memory.state_dict()


def test_two_processes_hold_what_one_does(tmp_path):
    for number, found in enumerate(on_two(filled, tmp_path, each=2)):
        for key, value in filled(slice(0, 4)).items():
            assert torch.equal(found[key], value), (number, key)


def test_it_moves_with_the_module_it_is_part_of():
    inside = nn.ModuleDict({"queue": Memory(4, 3)}).double()
    inside["queue"].add(rows(2))
    assert inside["queue"].rows.dtype == torch.float64
    assert inside["queue"].num_added.dtype == torch.int64
