"""Two real processes (gloo) against one: the same loss and the same gradients."""

import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from appssl.objectives.ntxent import nt_xent
from appssl.ops.distributed import gather, rank, world_size
from tests.commands import REPOSITORY, environment
from tests.processes import free_port

VIEWS, PER_PROCESS, WIDTH = 3, 4, 5

SCRIPT = """
    import sys
    import torch
    import torch.distributed as dist
    from safetensors.torch import save_file
    from torch.nn.parallel import DistributedDataParallel
    from appssl.objectives.ntxent import nt_xent
    from appssl.ops.distributed import gather, rank, world_size
    from tests.ops.test_distributed import PER_PROCESS, network, views
    number, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2)
    assert (rank(), world_size()) == (number, 2)
    mine = slice(number * PER_PROCESS, (number + 1) * PER_PROCESS)
    local = torch.arange(6.0).reshape(3, 2) + 100 * number
    local.requires_grad_(True)
    rows = gather(local.T.contiguous().T)  # not contiguous
    ((number + 1) * rows.square()).sum().backward()
    trained = DistributedDataParallel(network())
    loss = nt_xent(*(trained(view[mine]) for view in views()), temperature=0.3)
    loss.backward()
    embedded = [view[mine].clone().requires_grad_(True) for view in views()]
    nt_xent(*embedded, temperature=0.3).backward()
    found = {"rows": rows.detach(), "rows_grad": local.grad, "loss": loss.detach()}
    found |= {f"grad.{k}": p.grad for k, p in trained.module.named_parameters()}
    found |= {f"view.{k}": view.grad for k, view in enumerate(embedded)}
    save_file(found, f"{folder}/{number}.safetensors")
    dist.destroy_process_group()
"""


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def views():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2 * PER_PROCESS, WIDTH, generator=generator, dtype=torch.float64) for _ in range(VIEWS)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    port = str(free_port())
    options = {"cwd": REPOSITORY, "env": environment(OMP_NUM_THREADS="1"), "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(n), port, str(folder)], **options) for n in range(2)]
    for process in processes:
        _, text = process.communicate(timeout=120)
        assert process.returncode == 0, text
    return [load_file(folder / f"{n}.safetensors") for n in range(2)]


def test_one_process_gathers_its_own_rows():
    rows = torch.randn(3, 2)
    assert gather(rows) is rows
    assert (rank(), world_size()) == (0, 1)


def test_rows_of_all_processes_are_in_order_of_rank(two):
    expected = torch.cat([torch.arange(6.0).reshape(3, 2) + 100 * n for n in range(2)])
    for found in two:
        assert torch.equal(found["rows"], expected)


def test_gradients_of_all_losses_return_to_the_process_that_made_the_rows(two):
    for number, found in enumerate(two):
        local = torch.arange(6.0).reshape(3, 2) + 100 * number
        assert torch.equal(found["rows_grad"], (1 + 2) * 2 * local)  # losses 1 * x^2 and 2 * x^2


def test_the_mean_loss_of_two_processes_is_the_loss_of_one(two):
    model = network()
    alone = nt_xent(*(model(view) for view in views()), temperature=0.3)
    assert float(two[0]["loss"] + two[1]["loss"]) / 2 == pytest.approx(float(alone.detach()), rel=1e-12)
    assert float(two[0]["loss"]) != pytest.approx(float(alone.detach()), rel=1e-3)  # each has its own anchors


def test_gradients_of_ddp_are_those_of_the_global_loss_in_one_process(two):
    model = network()
    nt_xent(*(model(view) for view in views()), temperature=0.3).backward()
    for name, parameter in model.named_parameters():
        for found in two:
            torch.testing.assert_close(found[f"grad.{name}"], parameter.grad, rtol=1e-10, atol=1e-14)


def test_gradients_of_embeddings_are_those_of_the_sum_of_both_losses(two):
    whole = [view.clone().requires_grad_(True) for view in views()]
    nt_xent(*whole, temperature=0.3).backward()
    for number, view in enumerate(whole):
        found = torch.cat([part[f"view.{number}"] for part in two])
        torch.testing.assert_close(found / 2, view.grad, rtol=1e-10, atol=1e-14)
