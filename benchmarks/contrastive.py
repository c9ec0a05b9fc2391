"""Time and memory of the blocked log-sum-exp of contrastive losses, beside the whole matrix and other libraries.

python benchmarks/contrastive.py [views] [width] [repeats]

NT-Xent forward and backward, float32, each form in a process of its own: the usual one in PyTorch, the whole matrix and
cross entropy on it; lightly's loss; that of pytorch-metric-learning which is equal to NT-Xent and takes N^2 memory
(SupConLoss of pairs; its NTXentLoss takes N^3). Memory is the peak of the process above what it held before the loss.
The two libraries come with the extra `bench`; one that is missing is said and left out.
"""

import importlib.util
import resource
import statistics
import subprocess
import sys
import time

GOALS = {"memory": 0.1, "time": 1.0}
LIBRARIES = {"lightly": "lightly", "pytorch-metric-learning": "pytorch_metric_learning"}
FORMS = ("naive", *LIBRARIES, "appssl")


def loss_of(form: str, temperature: float):  # type: ignore[no-untyped-def]
    """A function of two (n, width) tensors of views."""
    if form == "lightly":
        from lightly.loss import NTXentLoss

        return NTXentLoss(temperature)
    if form == "pytorch-metric-learning":
        from pytorch_metric_learning.losses import SelfSupervisedLoss, SupConLoss

        return SelfSupervisedLoss(SupConLoss(temperature))
    if form == "appssl":
        from appssl.objectives.ntxent import nt_xent

        return lambda a, b: nt_xent(a, b, temperature=temperature)
    return lambda a, b: naive(a, b, temperature)


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

    torch.manual_seed(0)
    a, b = (torch.randn(views // 2, width, requires_grad=True) for _ in range(2))
    loss = loss_of(form, 0.1)
    loss(a[:64], b[:64]).backward()  # what is loaded on first use is not measured
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(repeats):
        a.grad = b.grad = None
        begun = time.perf_counter()
        value = loss(a, b)
        value.backward()
        times.append(time.perf_counter() - begun)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(statistics.median(times), peak, float(value))


def main() -> None:
    views, width, repeats = (int(given) for given in (*sys.argv[1:], *("16384", "128", "5")[len(sys.argv) - 1 :]))
    found = {}
    for form in FORMS:
        if form in LIBRARIES and importlib.util.find_spec(LIBRARIES[form]) is None:
            print(f"{form}: NOT MEASURED, it is not installed")
            continue
        command = [sys.executable, __file__, "measure", form, str(views), str(width), str(repeats)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        found[form] = [float(word) for word in said]
        seconds, peak, loss = found[form]
        print(f"{form:24s} {seconds:.2f} s, {peak / 2**20:,.0f} MiB, loss {loss:.5f}")
    seconds, peak, loss = found.pop("appssl")
    for form, (other_seconds, other_peak, other_loss) in found.items():
        assert abs(loss - other_loss) < 1e-4 * abs(loss), f"{form} computes another loss"
        goals = f" (goals at most {GOALS['time']}, {GOALS['memory']})" if form == "naive" else ""
        print(f"appssl / {form}: time {seconds / other_seconds:.3f}, memory {peak / other_peak:.3f}{goals}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], *(int(word) for word in sys.argv[3:]))
    else:
        main()
