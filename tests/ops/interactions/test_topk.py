import numpy as np
import pytest
import torch

from appssl.errors import DataError
from appssl.ops.interactions.topk import best_items, largest, product_scores, seen_matrix


def literal(values, k):
    rows = []
    for row in values:
        order = sorted((c for c in range(len(row)) if row[c] > -np.inf), key=lambda c: (-row[c], c))[:k]
        rows.append(order + [-1] * (k - len(order)))
    return rows


def columns(values, k):
    return largest(torch.from_numpy(values), k)[0].tolist()


@pytest.mark.parametrize("k", [1, 3, 7, 12])
def test_equals_a_sort_with_ties_to_the_smaller_number(k):
    values = np.random.default_rng(0).integers(0, 4, (20, 9)).astype(np.float32)
    values[3] = -np.inf
    values[4, 2:] = -np.inf
    assert columns(values, k) == literal(values, k)


@pytest.mark.parametrize("num_columns", [640, 1000, 20_011])  # in one step, by chunks, by chunks of chunks
@pytest.mark.parametrize("distinct", [2, 7, 10**6])
def test_long_rows_are_searched_by_chunks_with_the_same_result(num_columns, distinct):
    rng = np.random.default_rng(1)
    values = (rng.integers(0, distinct, (12, num_columns)) - distinct // 2).astype(np.float32)
    values[0] = -np.inf
    values[1, 5:] = -np.inf
    values[2, :-5] = -np.inf
    values[3] = np.arange(num_columns)
    values[4] = 1
    values[5, :-1] = np.inf
    for k in (1, 5):
        assert columns(values, k) == literal(values, k)


def test_values_come_with_their_columns_and_every_float_has_its_place():
    row = np.array([[0.0, -0.0, np.inf, -1e-45, 1e-45, -3.4e38, 3.4e38, -np.inf, 5.0]], dtype=np.float32)
    places, found = largest(torch.from_numpy(row), 10)
    assert places.tolist() == [[2, 6, 8, 4, 0, 1, 3, 5, -1, -1]]
    assert found[0, :8].tolist() == row[0, places[0, :8]].tolist()
    assert found[0, 8:].isneginf().all()


@pytest.mark.parametrize("block", [None, 1, 4, 100])
def test_seen_items_are_left_out_whatever_the_block(block):
    rng = np.random.default_rng(1)
    scores = rng.random((10, 15)).astype(np.float32)
    users, items = rng.integers(0, 10, 40), rng.integers(0, 15, 40)
    seen = seen_matrix(users, items, 10, 15)
    masked = scores.copy()
    masked[users, items] = -np.inf
    blocks = list(best_items(lambda u: scores[u], np.arange(10), seen, 5, block=block))
    found, of_items = (np.concatenate([part[column] for part in blocks]) for column in (1, 2))
    assert found.tolist() == literal(masked, 5)
    expected = np.where(found >= 0, np.take_along_axis(masked, np.maximum(found, 0), axis=1), -np.inf)
    assert of_items.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["array", "read only", "columns first", "float64", "tensor", "half"])
def test_any_kind_of_scores_will_do_and_none_is_changed(kind):
    kept = np.random.default_rng(2).integers(0, 100, (6, 700)).astype(np.float32)
    given = {
        "array": kept,
        "read only": kept.copy(),
        "columns first": np.asfortranarray(kept),
        "float64": kept.astype(np.float64),
        "tensor": torch.from_numpy(kept),
        "half": torch.from_numpy(kept).half(),
    }[kind]
    if kind == "read only":
        given.setflags(write=False)
    before = given.clone() if isinstance(given, torch.Tensor) else given.copy()
    seen = seen_matrix(np.array([1, 1, 4]), np.array([3, 699, 0]), 6, 700)
    (_, items, _), *rest = best_items(lambda users: given, np.arange(6), seen, 4)
    masked = kept.copy()
    masked[[1, 1, 4], [3, 699, 0]] = -np.inf
    assert not rest
    assert items.tolist() == literal(masked, 4)
    assert bool((given == before).all())


def test_scores_of_vectors_are_their_products_for_blocks_of_any_size():
    rng = np.random.default_rng(4)
    users, items = (torch.from_numpy(rng.standard_normal((n, 3)).astype(np.float32)) for n in (11, 40))
    scores = product_scores(users, items)
    for chosen in ([3, 1], [0, 5, 10, 2], [7]):
        np.testing.assert_allclose(scores(np.array(chosen)), users.numpy()[chosen] @ items.numpy().T, rtol=1e-5)
    seen = seen_matrix(np.array([2]), np.array([5]), 11, 40)
    found = np.concatenate([best for _, best, _ in best_items(scores, np.arange(11), seen, 6, block=4)])
    expected = users.numpy() @ items.numpy().T
    expected[2, 5] = -np.inf
    assert found.tolist() == literal(expected, 6)


@pytest.mark.parametrize("place", [0, 100, 999])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_score_that_is_no_number_is_refused_wherever_it_is(place, sign):
    values = torch.arange(2000.0).reshape(2, 1000)
    values[1, place] = sign * torch.nan
    with pytest.raises(DataError, match="not a number"):
        largest(values, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: there is no CUDA device")
def test_a_cuda_device_gives_the_same_order():
    values = torch.from_numpy(np.random.default_rng(3).integers(0, 50, (30, 9000)).astype(np.float32))
    seen = seen_matrix(np.arange(30), np.arange(30) * 7, 30, 9000)
    on = {name: values.to(name) for name in ("cpu", "cuda")}
    here, there = (next(best_items(lambda u, v=v: v, np.arange(30), seen, 20)) for v in on.values())
    assert here[1].tolist() == there[1].tolist()
    assert here[2].tolist() == there[2].tolist()
