"""The contrastive log-sum-exp on a GPU: time, memory and rate beside matrix products and the whole matrix, in one run.

    python benchmarks/contrastive_gpu.py [views] [width]

NT-Xent of `views` embeddings (131,072 x 128), forward and backward, float32 and under bf16 autocast: the kernels, the
blocks of plain PyTorch, and the whole matrix for as many views as it can hold (32,768). The rate counts what a kernel
multiplies: 2 N N D forward, and 8 N N D backward, because similarities are computed again for anchors and for keys; the
whole matrix needs 6 N N D in all. It stands beside square products of 8,192 in the same precision.
"""

import sys

import torch
from torch import Tensor
from torch.nn import functional

from appssl.objectives.ntxent import nt_xent
from appssl.ops import contrastive

TAU = 0.1


def milliseconds(job, repeats=5) -> float:  # type: ignore[no-untyped-def]
    """Median of some calls, measured by events of the device."""
    job()
    times = []
    for _ in range(repeats):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        job()
        ended.record()
        torch.cuda.synchronize()
        times.append(begun.elapsed_time(ended))
    return sorted(times)[len(times) // 2]


def product_rate(dtype: torch.dtype, tf32: bool) -> float:
    """Operations a second of a square matrix product."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    rate = 2 * 8192**3 / milliseconds(lambda: a @ b, 10) * 1e3
    torch.backends.cuda.matmul.allow_tf32 = False
    return rate


def whole(one: Tensor, two: Tensor) -> Tensor:
    z = functional.normalize(torch.cat([one, two]), dim=1)
    logits = z @ z.T / TAU
    logits.fill_diagonal_(-torch.inf)
    target = torch.arange(len(z), device=z.device).roll(len(one))
    return functional.cross_entropy(logits.float(), target)


def measure(name: str, loss, views: int, width: int, autocast: bool, ceiling: float | None) -> float:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    one, two = (torch.randn(views // 2, width, device="cuda", requires_grad=True) for _ in range(2))

    def step() -> None:
        one.grad = two.grad = None
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            value = loss(one, two)
        value.backward()

    def forward() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast), torch.no_grad():
            loss(one, two)

    step()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    both, ahead = milliseconds(step), milliseconds(forward)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    said = ""
    if ceiling:
        rates = {what: count * views**2 * width * 1e3 / ms for what, count, ms in (("f", 2, ahead), ("b", 10, both))}
        shares = (rates["f"] / ceiling, rates["b"] / ceiling, 0.6 * rates["b"] / ceiling)
        said = f"forward {rates['f'] / 1e12:.0f}, both {rates['b'] / 1e12:.0f} TFLOP/s: "
        said += "{:.2f} and {:.2f} of a product's ({:.2f} as the whole matrix counts)".format(*shares)
    print(f"{name:34s} forward {ahead:7.2f} ms, both {both:7.2f} ms, peak {peak:.3f} GiB  {said}")
    return both


def main() -> None:
    views, width = (int(given) for given in (*sys.argv[1:], *("131072", "128")[len(sys.argv) - 1 :]))
    print(torch.cuda.get_device_name(), torch.__version__)
    rates = {"bf16": product_rate(torch.bfloat16, False), "tf32": product_rate(torch.float32, True)}
    rates["float32"] = product_rate(torch.float32, False)
    print("products:", {name: f"{rate / 1e12:.0f} TFLOP/s" for name, rate in rates.items()})

    def ours(one: Tensor, two: Tensor) -> Tensor:
        return nt_xent(one, two, temperature=TAU)

    for size in (views, 32768):
        print(f"{size} x {width}")
        measure("kernels, bf16", ours, size, width, True, rates["bf16"])
        measure("kernels, float32 (3 x tf32)", ours, size, width, False, rates["tf32"] / 3)
        contrastive._has_triton = lambda: False  # type: ignore[assignment]
        measure("blocks of PyTorch, float32", ours, size, width, False, rates["float32"])
        contrastive._has_triton = lambda: True  # type: ignore[assignment]
    measure("whole matrix, bf16", whole, 32768, width, True, None)
    measure("whole matrix, float32", whole, 32768, width, False, None)
    torch.backends.cuda.matmul.allow_tf32 = True
    measure("whole matrix, tf32", whole, 32768, width, False, None)


if __name__ == "__main__":
    main()
