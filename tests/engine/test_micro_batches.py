"""Attempts that run out of memory for real: under a limit of the address space, or killed by the kernel in a cgroup."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import nn

from appssl import registry
from appssl.contracts import Step
from appssl.engine.micro_batches import FILE, Attempt, OutOfMemory, obstacle_of
from appssl.errors import DataError
from tests.commands import REPOSITORY, environment
from tests.contracts.test_methods import IMAGE, OF_SIGNALS, batch, config, context
from tests.engine.training import Noisy, small

MIB = 1 << 20


class Wide(nn.Module):
    """A mean over samples, each of which needs three times 6 MiB of activations: the wave and its gradients."""

    is_mean_over_samples = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 2)

    def forward(self, batch):
        logits = self.layer(batch["input"])
        wave = torch.tanh(logits[:, :, None] * torch.linspace(0.5, 1.5, 3 * MIB // 4, device=logits.device))
        return Step(nn.functional.cross_entropy(wave.mean(2), batch["target"]))


class Contrasting(Wide):
    """The same, but it says nothing of its loss."""

    is_mean_over_samples = False


class Limited(Noisy):
    """Examples that bound what their process may take from a batch on: its address space, its cgroup, or of a GPU."""

    def __init__(self, after, mib, cgroup=None, accelerator="cpu"):
        super().__init__()
        self.after, self.mib, self.cgroup, self.accelerator = after, mib, cgroup, accelerator

    def batch(self, indices, *, seed, epoch):
        if len(self.asked) == self.after and self.cgroup:
            Cgroup(Path(self.cgroup)).bound(self.mib)
        elif len(self.asked) == self.after and self.accelerator == "gpu":
            torch.cuda.empty_cache()
            allowed = torch.cuda.memory_reserved() + self.mib * MIB
            torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / torch.cuda.mem_get_info()[1]))
        elif len(self.asked) == self.after:
            now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + self.mib * MIB, resource.RLIM_INFINITY))
        return super().batch(indices, seed=seed, epoch=epoch)


SCRIPT = """
    import sys
    from pathlib import Path
    from appssl.artifact import write_bytes
    from appssl.engine.fit import fit
    from appssl.errors import AppsslError
    from appssl.ops.journal import Journal
    from safetensors.torch import save
    from tests.engine import test_micro_batches as tests
    from tests.engine.training import settings
    folder, learner, cgroup, accelerator = Path(sys.argv[1]), *sys.argv[2:5]
    after, mib, accumulate = map(int, sys.argv[5:])
    folder.mkdir(exist_ok=True)
    journal = Journal(folder)
    learner, given = getattr(tests, learner)(), settings(accumulate=accumulate)
    try:
        found = fit(learner, tests.Limited(after, mib, cgroup, accelerator), given, state_dir=folder / "state",
                    journal=journal, seed=0, accelerator=accelerator, name="pretrain")
    except AppsslError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    write_bytes(folder / "final", save(learner.state_dict()))
    print(found.micro_batches, found.resumed_from)
"""
NO_LIMIT = 1 << 20  # MiB


def start(folder, learner="Wide", *, cgroup=None, accelerator="cpu", after=0, mib=NO_LIMIT, accumulate=1):
    given = (folder, learner, cgroup.folder if cgroup else "", accelerator, after, mib, accumulate)
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), *map(str, given)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(OMP_NUM_THREADS="1", MALLOC_ARENA_MAX="1"), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=cgroup and cgroup.join,
    )  # fmt: skip


def run(folder, learner="Wide", **values):
    process = start(folder, learner, **values)
    out, err = process.communicate(timeout=120)
    return process.returncode, out.strip(), err


def note(folder):
    return json.loads((folder / FILE).read_text())


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: there is no CUDA device")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accelerator", "said"),
    [
        ("cpu", "DefaultCPUAllocator: can't allocate memory"),
        pytest.param("gpu", "CUDA out of memory. Tried to allocate", marks=[pytest.mark.gpu, NO_GPU]),
    ],
)
def test_after_memory_ran_out_the_next_attempt_ends_with_half_the_micro_batch_and_the_same_weights(
    tmp_path, accelerator, said
):
    """16 samples need 300 MiB in the whole, 8 need 150."""
    code, _, err = run(tmp_path / "cut", after=7, mib=220, accelerator=accelerator)
    assert code == 1
    assert "OutOfMemory: pretrain: memory ran out with micro-batches of 16 samples" in err
    assert said in err
    assert "The same command goes on from the last checkpoint with 8 samples in each" in err
    left = note(tmp_path / "cut/state")
    assert (left["micro_batches"], left["ended"]) == (1, "memory")
    assert said in left["reason"]

    code, out, err = run(tmp_path / "cut", after=0, mib=220, accelerator=accelerator)
    assert (code, out) == (0, "2 6"), err
    said = [line for line in err.splitlines() if "ran out of memory" in line]
    assert len(said) == 1
    assert "Micro-batches have 8 samples now instead of 16" in said[0]
    rows = [json.loads(line) for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    parts = [(row["step"], row["values"].get("train/micro_batches")) for row in rows]
    assert parts == [(3, None), (6, None), (9, 2.0), (12, 2.0)]
    assert note(tmp_path / "cut/state")["ended"] == "orderly"

    assert run(tmp_path / "whole", accumulate=2, accelerator=accelerator)[:2] == (0, "2 0")
    one, other = (load_file(tmp_path / name / "final") for name in ("cut", "whole"))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)  # six steps summed otherwise


@pytest.mark.slow
def test_a_loss_that_compares_samples_is_not_divided_by_itself(tmp_path):
    code, _, err = run(tmp_path, "Contrasting", mib=220)
    assert code == 1
    assert "memory ran out with micro-batches of 16 samples" in err
    assert "no mean over samples that do not see each other (fit.backbone_batch saves memory" in err
    assert "Set fit.accumulate to 2 if you want that, lower fit.batch_size, or give more memory" in err
    assert attempt(tmp_path / "state", obstacle="as before").number == 1  # it may be tried with more memory


class Cgroup:
    """A memory cgroup, of whichever version the machine has."""

    def __init__(self, folder):
        self.folder = folder
        names = ("memory.max", "memory.current", "memory.swap.max")
        if not (folder / names[0]).exists():  # version 1
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.swappiness")
        self.limit, self.usage, self.swap = (folder / name for name in names)

    def bound(self, mib):
        """Memory that may be taken beyond what is."""
        if self.swap.exists():
            self.swap.write_text("0")
        self.limit.write_text(str(int(self.usage.read_text()) + mib * MIB))

    def join(self):
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))


def own_place():
    """Folder of this process's memory cgroup."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for _, names, place in lines:
        if names == "memory":
            return Path("/sys/fs/cgroup/memory") / place.lstrip("/")
    return next(Path("/sys/fs/cgroup") / place.lstrip("/") for number, _, place in lines if number == "0")


@pytest.fixture
def cgroup():
    try:
        folder = own_place() / f"appssl-test-{os.getpid()}"
        folder.mkdir()
    except (OSError, StopIteration) as error:
        pytest.skip(f"KILLS FOR WANT OF MEMORY NOT TESTED: no cgroup can be made here ({error})")
    try:
        found = Cgroup(folder)
        if not found.limit.exists():
            pytest.skip("KILLS FOR WANT OF MEMORY NOT TESTED: memory is not counted in cgroups made here")
        yield found
    finally:
        folder.rmdir()


@pytest.mark.slow
def test_a_kill_by_the_kernel_for_want_of_memory_divides_and_a_plain_kill_does_not(tmp_path, cgroup):
    process = start(tmp_path, cgroup=cgroup)
    while not (tmp_path / "state/checkpoints/step-0000000003").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert note(tmp_path / "state")["ended"] is None

    code, _, err = run(tmp_path, cgroup=cgroup, mib=220)
    assert code == -signal.SIGKILL
    assert "ran out of memory" not in err  # the plain kill was no reason
    left = note(tmp_path / "state")
    assert (left["micro_batches"], left["ended"], left["reason"]) == (1, None, None)

    code, out, err = run(tmp_path, cgroup=cgroup)
    assert (code, out.split()[0]) == (0, "2"), err
    assert "the kernel killed a process of the same cgroup for want of memory" in err
    assert "Micro-batches have 8 samples now instead of 16" in err


def attempt(folder, obstacle=None, batch_size=16, asked=1):
    fabric = Fabric(accelerator="cpu", devices=1)
    return Attempt(fabric, folder, name="pretrain", batch_size=batch_size, asked=asked, obstacle=obstacle)


def no_memory():
    np.empty(1 << 60, np.uint8)


def test_each_attempt_without_memory_divides_further_until_one_sample_is_left(tmp_path):
    numbers = []
    for _ in range(5):
        tried = attempt(tmp_path, batch_size=12)
        numbers.append(tried.number)
        with pytest.raises(OutOfMemory) as raised, tried.watched():
            no_memory()
    assert numbers == [1, 2, 4, 12, 12]
    assert "There are no smaller ones, they hold one sample already: lower fit.batch_size" in str(raised.value)
    assert attempt(tmp_path, batch_size=12, asked=3).number == 12


def test_an_orderly_end_keeps_the_number(tmp_path):
    with pytest.raises(OutOfMemory), attempt(tmp_path).watched():
        no_memory()
    for error in (KeyboardInterrupt, DataError("a file went away"), OSError(28, "No space left on device")):
        tried = attempt(tmp_path)
        with pytest.raises(type(error) if isinstance(error, Exception) else error), tried.watched():
            raise error
        assert (tried.number, note(tmp_path)["ended"]) == (2, "orderly")
    with attempt(tmp_path).watched():
        assert note(tmp_path)["ended"] is None
    assert note(tmp_path)["ended"] == "orderly"


def test_what_slurm_says_of_the_job_before_is_evidence(tmp_path, monkeypatch):
    """The accounts are a program that answers as sacct does; there is no SLURM here that keeps any."""
    sacct = tmp_path / "sacct"
    sacct.write_text('#!/bin/sh\ncase "$*" in *--jobs=41) echo FAILED; echo OUT_OF_MEMORY;; *) echo CANCELLED;; esac\n')
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for job, number in (("40", 1), ("41", 2)):
        (tmp_path / FILE).write_text(json.dumps({"micro_batches": 1, "ended": None, "reason": None, "slurm_job": job}))
        assert attempt(tmp_path).number == number
    with pytest.raises(OutOfMemory, match=r"SLURM ended job 41 as OUT_OF_MEMORY.*Set fit\.accumulate to 2"):
        attempt(tmp_path, obstacle="samples see each other")
    assert attempt(tmp_path, obstacle="samples see each other").number == 1  # said once; then it is the user's choice


@pytest.mark.parametrize("content", ["{", "[]", '{"micro_batches": "2", "ended": "memory", "reason": "x"}'])
def test_a_damaged_note_is_none(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    assert attempt(tmp_path).number == 1


def test_an_error_of_another_kind_is_not_taken_for_memory(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), attempt(tmp_path).watched():
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert attempt(tmp_path).number == 1


def test_batch_normalization_and_samplers_that_draw_by_batch_are_obstacles():
    learner = small()
    assert "no mean over samples" in obstacle_of(learner, Noisy())
    learner.is_mean_over_samples = True
    assert "batch normalization" in obstacle_of(learner, Noisy())
    assert obstacle_of(learner.eval(), Noisy()) is None
    examples = Noisy()
    examples.is_drawn_by_batch = True
    assert "the sampler draws once" in obstacle_of(learner, examples)


def means() -> list[tuple[str, str]]:
    """Methods that say their loss is a mean over samples, and see images."""
    found = []
    for kind in ("learners", "finetuners"):
        for name in registry.names(kind):
            module = registry.load(kind, name)
            says = any(getattr(value, "is_mean_over_samples", False) for value in vars(module).values())
            if says and name not in OF_SIGNALS:
                found.append((kind, name))
    return found


def doubled(value):
    if isinstance(value, list):
        return [view.double() for view in value]
    return value.double() if value.is_floating_point() else value


def gradients(kind, name, given, count):
    """Of the mean over `count` parts; without batch normalization and dropout."""
    learner = registry.build(kind, config(kind, name), context(name)).double().eval()
    torch.manual_seed(3)
    for part in range(count):
        chosen = slice(part * 8 // count, (part + 1) * 8 // count)
        cut = {key: [v[chosen] for v in value] if key == "views" else value[chosen] for key, value in given.items()}
        (learner(cut).loss / count).backward()
    return torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])


@pytest.mark.parametrize(("kind", "name"), means())
def test_methods_that_say_so_have_the_gradient_of_the_whole_batch_in_parts(kind, name):
    """Masks are drawn for one view, so that parts draw the same numbers."""
    given = {key: doubled(value) for key, value in batch().items()}
    if name in ("mae", "simmim"):
        given["views"] = given["views"][:1]
    if name in ("abmil", "mil_pooling"):  # bags of one to three tiles
        given["mask"] = torch.arange(3) < torch.tensor([1, 2, 3, 1, 2, 3, 1, 2])[:, None]
        given["input"] = torch.randn(8, 3, *IMAGE, dtype=torch.float64)
    whole, parts = (gradients(kind, name, given, count) for count in (1, 4))
    assert (parts - whole).norm() <= 1e-5 * whole.norm()  # some losses are computed in float32


def test_a_contrastive_method_has_another_gradient_in_parts():
    given = {key: doubled(value) for key, value in batch().items()}
    whole, parts = (gradients("learners", "joint_embedding", given, count) for count in (1, 4))
    assert (parts - whole).norm() > 0.1 * whole.norm()
