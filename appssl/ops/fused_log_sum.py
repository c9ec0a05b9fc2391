"""`contrastive.log_sum_of_others` and its gradient on a GPU, in kernels that write no similarity to memory.

A kernel holds a block of rows and goes through the other side block by block: matrix product, log-sum-exp with a
running maximum, next block. Backward computes the products again, once for anchors and once for keys, so every sum has
one order and the result is the same in every run. Sums are float32; products are of float32 as three of tf32, or of
bf16. Block sizes are fixed, not tuned on the spot, for the same reason.

Source: Milakov and Gimelshein, Online normalizer calculation for softmax, 2018, arXiv 1805.02867 (running maximum);
Dao et al., FlashAttention, NeurIPS 2022, arXiv 2205.14135 (computing again instead of storing).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = 1.4426950408889634


def log_sum(anchors: Tensor, keys: Tensor, excluded: Tensor, *, scale: float, bf16: bool) -> Tensor:
    """(N,) float32: log of the summed exponentials of `scale` times similarities, over keys that are not excluded.

    Args:
        anchors: (N, D) float32, D <= 256. keys: (M, D) float32. excluded: (N, E) int64. scale: > 0.
        bf16: whether products are of bf16; sums are of float32 in any case.
    """
    out = anchors.new_empty(len(anchors))
    _launch(_forward, len(anchors), anchors, keys, excluded, None, None, out, scale=scale, bf16=bf16)
    return out


def gradients(
    anchors: Tensor, keys: Tensor, excluded: Tensor, result: Tensor, gradient: Tensor, *, scale: float, bf16: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of anchors (N, D) and of keys (M, D), float32, from `result` (N,) and the gradient (N,) of it."""
    base = result.masked_fill(result == -torch.inf, 0.0) * _LOG2_E
    weight = gradient.float().contiguous() * scale
    of_anchors, of_keys = torch.empty_like(anchors), torch.empty_like(keys)
    for kernel, out in ((_of_anchors, of_anchors), (_of_keys, of_keys)):
        _launch(kernel, len(out), anchors, keys, excluded, base, weight, out, scale=scale, bf16=bf16)
    return of_anchors, of_keys


def _launch(
    kernel: triton.JITFunction,
    num_rows: int,
    anchors: Tensor,
    keys: Tensor,
    excluded: Tensor,
    base: Tensor | None,
    weight: Tensor | None,
    out: Tensor,
    *,
    scale: float,
    bf16: bool,
) -> None:
    dtype, precision = (torch.bfloat16, "tf32") if bf16 else (torch.float32, "tf32x3")
    width = max(16, triton.next_power_of_2(anchors.shape[1]))
    rows, columns, warps, stages = _blocks(kernel, width, bf16)
    with torch.cuda.device_of(anchors):
        kernel[(triton.cdiv(num_rows, rows),)](
            anchors.to(dtype).contiguous(), keys.to(dtype).contiguous(), excluded.int().contiguous(), base, weight, out,
            len(anchors), len(keys), scale * _LOG2_E, anchors.shape[1],
            NUM_EXCLUDED=excluded.shape[1], ROWS=rows, COLUMNS=columns, WIDTH=width, PRECISION=precision,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip


def _blocks(kernel: triton.JITFunction, width: int, bf16: bool) -> tuple[int, int, int, int]:
    """Rows of the side a kernel holds, rows of the other side, warps, and blocks that are loaded ahead."""
    if bf16 and width <= 128:
        return (128, 64, 4, 4) if kernel is _of_keys else (128, 64, 8, 3)
    if bf16:
        return (128, 64, 8, 2)
    return (128, 64, 8, 2) if width <= 128 else (64, 32, 8, 2)


@triton.jit
def _block(pointer, rows, num_rows, num_columns, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of a matrix (num_rows, num_columns), zeros beyond its ends: (rows, WIDTH)."""
    columns = tl.arange(0, WIDTH)
    inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    return tl.load(pointer + rows.to(tl.int64)[:, None] * num_columns + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    anchors, keys, excluded, base, weight, out, num_anchors, num_keys, scale, size,
    NUM_EXCLUDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Holds anchors, goes through keys. `scale` is to the base of two."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = row < num_anchors
    anchor = _block(anchors, row, num_anchors, size, WIDTH)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, num_keys, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        key = _block(keys, column, num_keys, size, WIDTH)
        similarity = tl.dot(anchor, tl.trans(key), input_precision=PRECISION)
        allowed = (column < num_keys)[None, :]
        for number in tl.static_range(NUM_EXCLUDED):
            not_this = tl.load(excluded + row.to(tl.int64) * NUM_EXCLUDED + number, mask=here, other=-1)
            allowed = allowed & (column[None, :] != not_this[:, None])
        similarity = tl.where(allowed, similarity, float("-inf"))
        new = tl.maximum(largest, tl.max(similarity, 1))
        finite = tl.where(new == float("-inf"), 0.0, new)  # of excluded keys alone: exp(-inf), not exp(-inf + inf)
        total = total * tl.exp2((largest - finite) * scale)
        total += tl.sum(tl.exp2(similarity * scale - (finite * scale)[:, None]), 1)
        largest = new
    result = (largest * scale + tl.log2(total)) * 0.6931471805599453
    tl.store(out + row, result, mask=here)


@triton.jit
def _of_anchors(  # type: ignore[no-untyped-def]
    anchors, keys, excluded, base, weight, out, num_anchors, num_keys, scale, size,
    NUM_EXCLUDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Holds anchors, goes through keys: the mean of the keys by their softmax, times the weight of the anchor."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = row < num_anchors
    anchor = _block(anchors, row, num_anchors, size, WIDTH)
    of_row = tl.load(base + row, mask=here, other=0.0)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, num_keys, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        key = _block(keys, column, num_keys, size, WIDTH)
        similarity = tl.dot(anchor, tl.trans(key), input_precision=PRECISION)
        share = tl.exp2(similarity * scale - of_row[:, None])
        allowed = (column < num_keys)[None, :]
        for number in tl.static_range(NUM_EXCLUDED):
            not_this = tl.load(excluded + row.to(tl.int64) * NUM_EXCLUDED + number, mask=here, other=-1)
            allowed = allowed & (column[None, :] != not_this[:, None])
        share = tl.where(allowed, share, 0.0)
        total = tl.dot(share.to(key.dtype), key, total, input_precision=PRECISION)
    total *= tl.load(weight + row, mask=here, other=0.0)[:, None]
    _store(out, row, total, num_anchors, size, WIDTH)


@triton.jit
def _of_keys(  # type: ignore[no-untyped-def]
    anchors, keys, excluded, base, weight, out, num_anchors, num_keys, scale, size,
    NUM_EXCLUDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Holds keys, goes through anchors: each gives its weight times its softmax at the key."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    key = _block(keys, row, num_keys, size, WIDTH)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, num_anchors, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        here = column < num_anchors
        anchor = _block(anchors, column, num_anchors, size, WIDTH)
        similarity = tl.dot(key, tl.trans(anchor), input_precision=PRECISION)
        of_column = tl.load(base + column, mask=here, other=0.0)
        share = tl.exp2(similarity * scale - of_column[None, :])
        share *= tl.load(weight + column, mask=here, other=0.0)[None, :]
        allowed = here[None, :]
        for number in tl.static_range(NUM_EXCLUDED):
            not_this = tl.load(excluded + column.to(tl.int64) * NUM_EXCLUDED + number, mask=here, other=-1)
            allowed = allowed & (row[:, None] != not_this[None, :])
        share = tl.where(allowed, share, 0.0)
        total = tl.dot(share.to(anchor.dtype), anchor, total, input_precision=PRECISION)
    _store(out, row, total, num_keys, size, WIDTH)


@triton.jit
def _store(pointer, rows, values, num_rows, num_columns, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    columns = tl.arange(0, WIDTH)
    inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    tl.store(pointer + rows.to(tl.int64)[:, None] * num_columns + columns[None, :], values, mask=inside)
