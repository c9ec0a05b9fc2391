"""Time and memory of the blocked log-sum-exp of contrastive losses against the whole matrix of similarities.

python benchmarks/contrastive.py [views] [width] [repeats]

NT-Xent forward and backward, float32, both forms in turn in processes of their own; the naive form is the usual one in
PyTorch: the whole matrix, cross entropy on it. Memory is the peak of the process above what it held before the loss.
"""

import resource
import statistics
import subprocess
import sys
import time

GOALS = {"memory": 0.1, "time": 1.0}


def naive(a, b, temperature):  # type: ignore[no-untyped-def]
    import torch
    from torch.nn import functional

    z = functional.normalize(torch.cat([a, b]), dim=1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(-torch.inf)
    half = len(a)
    target = torch.cat([torch.arange(half, 2 * half), torch.arange(half)])
    return functional.cross_entropy(logits, target)


def measure(form: str, views: int, width: int, repeats: int) -> None:
    """Prints median seconds, peak bytes above the start, and the loss."""
    import torch

    from appssl.objectives.ntxent import nt_xent

    torch.manual_seed(0)
    a, b = (torch.randn(views // 2, width, requires_grad=True) for _ in range(2))
    loss = naive if form == "naive" else lambda x, y, temperature: nt_xent(x, y, temperature=temperature)
    loss(a[:64], b[:64], 0.1).backward()  # what is loaded on first use is not measured
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(repeats):
        a.grad = b.grad = None
        begun = time.perf_counter()
        value = loss(a, b, 0.1)
        value.backward()
        times.append(time.perf_counter() - begun)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(statistics.median(times), peak, float(value))


def main() -> None:
    views, width, repeats = (int(given) for given in (*sys.argv[1:], *("16384", "128", "5")[len(sys.argv) - 1 :]))
    found = {}
    for form in ("naive", "blocked"):
        command = [sys.executable, __file__, "measure", form, str(views), str(width), str(repeats)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        found[form] = [float(word) for word in said]
        seconds, peak, loss = found[form]
        print(f"{form:8s} {seconds:.2f} s, {peak / 2**20:,.0f} MiB, loss {loss:.5f}")
    ratios = {"time": found["blocked"][0] / found["naive"][0], "memory": found["blocked"][1] / found["naive"][1]}
    for what, ratio in ratios.items():
        print(f"{what} blocked / naive: {ratio:.3f} (goal at most {GOALS[what]})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], *(int(word) for word in sys.argv[3:]))
    else:
        main()
