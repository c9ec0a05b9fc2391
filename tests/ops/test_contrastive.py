import pytest
import torch

from appssl.ops import contrastive
from appssl.ops.contrastive import log_sum_of_others, other_views, pair_similarities


def literal(anchors, keys, excluded, tau):
    """One anchor and one key after the other, in float64."""
    rows = []
    for a, out in zip(anchors, excluded.tolist(), strict=True):
        rows.append(
            torch.logsumexp(torch.stack([torch.dot(a, k) / tau for j, k in enumerate(keys) if j not in out]), 0)
        )
    return torch.stack(rows)


def drawn(rows, columns, dtype=torch.float64, left_out=2):
    torch.manual_seed(0)
    a, k = torch.randn(rows, 6, dtype=dtype), torch.randn(columns, 6, dtype=dtype)
    return a, k, torch.stack([torch.randperm(columns)[:left_out] for _ in range(rows)])


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_value_and_gradient_are_those_of_the_sums_written_out_for_any_size_of_block(monkeypatch, block):
    monkeypatch.setattr(contrastive, "_BLOCK_ELEMENTS", block)
    a, k, out = drawn(9, 13)
    a.requires_grad_(), k.requires_grad_()
    weight = torch.linspace(0.1, 2, 9, dtype=torch.float64)
    found = log_sum_of_others(a, k, out, temperature=0.3)
    expected = literal(a, k, out, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad((found * weight).sum(), (a, k))
    theirs = torch.autograd.grad((expected * weight).sum(), (a, k))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_keys_that_are_the_anchors_get_both_gradients():
    a, _, _ = drawn(6, 6)
    itself = torch.arange(6)[:, None]
    assert torch.autograd.gradcheck(
        lambda x: log_sum_of_others(x, x, itself, temperature=0.5), a.clone().requires_grad_()
    )


def test_a_small_temperature_stays_finite_and_right_in_float32():
    a, k, out = drawn(32, 64, torch.float32)
    a, k = torch.nn.functional.normalize(a, dim=1), torch.nn.functional.normalize(k, dim=1)
    single = a.clone().requires_grad_()
    found = log_sum_of_others(single, k, out, temperature=0.01)
    found.sum().backward()
    double = a.double().requires_grad_()
    expected = log_sum_of_others(double, k.double(), out, temperature=0.01)
    expected.sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    scale = double.grad.abs().max()
    assert ((single.grad.double() - double.grad).abs().max() / scale) < 1e-4


def test_mixed_precision_does_not_reach_it():
    a, k, out = drawn(8, 16, torch.float32)
    plain = log_sum_of_others(a, k, out, temperature=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = log_sum_of_others(a, k, out, temperature=0.01)
    assert torch.equal(plain, mixed)


def test_an_anchor_without_others_is_minus_infinity_and_gets_no_gradient():
    a = torch.ones(1, 3, requires_grad=True)
    found = log_sum_of_others(a, torch.ones(2, 3), torch.tensor([[0, 1]]), temperature=1.0)
    assert found.tolist() == [-torch.inf]
    found.backward(torch.zeros(1))
    assert torch.equal(a.grad, torch.zeros(1, 3))


def test_memory_grows_with_the_rows_and_not_with_their_square():
    """What is kept for backward: inputs and one number a row."""
    a, k, out = drawn(64, 64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        log_sum_of_others(a.requires_grad_(), k, out, temperature=1.0)
    assert max(kept) <= 64 * 6


def test_pairs_of_views_without_themselves():
    views = torch.randn(3, 4, 5)
    pairs = other_views(pair_similarities(views))
    assert pairs.shape == (3, 2, 4)
    torch.testing.assert_close(pairs[1, 1], (views[1] * views[2]).sum(-1))
    torch.testing.assert_close(pairs[2, 0], (views[2] * views[0]).sum(-1))
