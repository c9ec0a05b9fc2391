"""The kernels as Triton's interpreter runs them on any machine, and, where there is a GPU, as they are."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from appssl.objectives.ntxent import nt_xent
from appssl.ops import contrastive
from appssl.ops.contrastive import log_sum_of_others

pytest.importorskip("triton", reason="Triton is not installed: the kernels of a GPU are not tested here")
on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="KERNELS NOT TESTED ON A GPU: no CUDA device, they are only interpreted here"
)


# Whether kernels are interpreted is decided when Triton is loaded: in a process of its own.
IN_THE_INTERPRETER = """
import sys
from safetensors.torch import load_file, save_file
from appssl.ops import fused_log_sum

given = load_file(sys.argv[1])
a, k, out, weight = (given[name] for name in ("anchors", "keys", "excluded", "weight"))
how = {"scale": float(sys.argv[3]), "bf16": False}
value = fused_log_sum.log_sum(a, k, out, **how)
of_anchors, of_keys = fused_log_sum.gradients(a, k, out, value, weight, **how)
save_file({"value": value, "of_anchors": of_anchors, "of_keys": of_keys}, sys.argv[2])
"""


def interpreted(folder, a, k, out, weight, *, scale):
    """Value (N,) and gradients of anchors and keys."""
    given, found = folder / "given.safetensors", folder / "found.safetensors"
    save_file({"anchors": a, "keys": k, "excluded": out, "weight": weight}, given)
    command = [sys.executable, "-c", IN_THE_INTERPRETER, str(given), str(found), str(scale)]
    subprocess.run(command, check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    return [load_file(found)[name] for name in ("value", "of_anchors", "of_keys")]


def drawn(rows, columns, width, left_out, device="cpu"):
    torch.manual_seed(0)
    a, k = (torch.nn.functional.normalize(torch.randn(n, width), dim=1).to(device) for n in (rows, columns))
    out = torch.stack([torch.randperm(columns)[:left_out] for _ in range(rows)]).long().to(device)
    return a, k, out, torch.randn(rows).to(device)


def in_double(a, k, out, weight, tau):
    """Value and gradients from the whole matrix in float64."""
    a, k = a.double().requires_grad_(), k.double().requires_grad_()
    value = (a @ k.T / tau).scatter(1, out, -torch.inf).logsumexp(1)
    of_a, of_k = torch.autograd.grad((value * weight.double()).sum(), (a, k))
    return value.detach(), of_a, of_k


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


# Rows and columns that fill blocks and that do not; widths that are padded; none, one and more keys left out.


@pytest.mark.parametrize(("rows", "columns", "width", "left_out", "tau"), [
    (128, 128, 16, 1, 0.5), (130, 200, 20, 2, 0.01), (5, 9, 3, 0, 0.01), (40, 70, 130, 3, 0.5),
])  # fmt: skip
def test_value_and_gradients_are_those_of_the_whole_matrix(tmp_path, rows, columns, width, left_out, tau):
    given = drawn(rows, columns, width, left_out)
    expected = in_double(*given, tau)
    for ours, theirs in zip(interpreted(tmp_path, *given, scale=1 / tau), expected, strict=True):
        assert relative(ours, theirs) < 1e-5


def test_an_anchor_without_keys_is_minus_infinity_and_has_no_gradient(tmp_path):
    a, k, _, weight = drawn(4, 3, 8, 0)
    out = torch.tensor([[0, 1, 2], [0, 0, 0], [0, 1, 2], [1, 2, 1]])
    value, of_anchors, of_keys = interpreted(tmp_path, a, k, out, weight, scale=2.0)
    assert value[[0, 2]].tolist() == [-torch.inf] * 2
    torch.testing.assert_close(value[3].double(), 2 * a[3].double() @ k[0].double(), rtol=1e-6, atol=1e-6)
    assert torch.isfinite(of_keys).all()
    assert (of_anchors != 0).any(1).tolist() == [False, True, False, True]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("tau", [0.5, 0.01])
@pytest.mark.parametrize(
    ("rows", "columns", "width", "left_out"),
    [(128, 128, 16, 1), (130, 200, 20, 2), (5, 9, 3, 0), (40, 70, 130, 3), (1000, 3000, 256, 1)],
)
@pytest.mark.gpu
@on_gpu
def test_a_gpu_gives_the_same_within_its_precision(rows, columns, width, left_out, tau, bf16):
    a, k, out, weight = drawn(rows, columns, width, left_out, "cuda")
    expected = in_double(a, k, out, weight, tau)
    a.requires_grad_(), k.requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16):
        value = log_sum_of_others(a, k, out, temperature=tau)
    assert type(value.grad_fn).__name__ == "_FusedLogSumOfOthersBackward"
    found = value.detach(), *torch.autograd.grad((value * weight).sum(), (a, k))
    assert all(part.dtype == torch.float32 for part in found)
    # bf16 has 8 bits: a similarity is off by up to 2**-9, and its exponential by that over the temperature.
    largest = 1e-5 if not bf16 else 1e-2 if tau == 0.5 else 0.1
    assert [relative(ours, theirs) < largest for ours, theirs in zip(found, expected, strict=True)] == [True] * 3


@pytest.mark.gpu
@on_gpu
def test_a_gpu_gives_the_same_bytes_twice_and_needs_no_matrix():
    one, two = (torch.randn(16384, 128, device="cuda", requires_grad=True) for _ in range(2))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    again = [torch.autograd.grad(nt_xent(one, two, temperature=0.1), (one, two)) for _ in range(2)]
    assert torch.cuda.max_memory_allocated() - before < 32768 * 32768 * 4 / 10
    assert all(torch.equal(x, y) for x, y in zip(*again, strict=True))


@pytest.mark.gpu
@on_gpu
def test_what_the_kernels_do_not_take_goes_the_other_way(monkeypatch):
    a, k, out, _ = drawn(20, 30, 300, 1, "cuda")
    wide = log_sum_of_others(a, k, out, temperature=0.1)
    double = log_sum_of_others(a[:, :9].double(), k[:, :9].double(), out, temperature=0.1)
    assert (wide.dtype, double.dtype) == (torch.float32, torch.float64)
    monkeypatch.setattr(contrastive, "_has_triton", lambda: False)
    torch.testing.assert_close(log_sum_of_others(a, k, out, temperature=0.1), wide, rtol=0, atol=0)
