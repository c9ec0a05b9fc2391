"""Two real processes (gloo) that do the same with different rows."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from tests.commands import REPOSITORY, environment

_SCRIPT = """
import sys
from importlib import import_module
import torch.distributed as dist
from safetensors.torch import save_file
module, function, number, each, port, folder = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(number), world_size=2)
first = int(number) * int(each)
save_file(getattr(import_module(module), function)(slice(first, first + int(each))), f"{folder}/{number}.safetensors")
dist.destroy_process_group()
"""


def on_two(function: Callable[[slice], dict[str, Tensor]], folder: Path, *, each: int) -> list[dict[str, Tensor]]:
    """What a function of a test module returns in each of two processes, for rows 0..each-1 and each..2 each - 1."""
    port = str(free_port())
    name = [function.__module__, function.__qualname__]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, *name, str(number), str(each), port, str(folder)],
            cwd=REPOSITORY, env=environment(OMP_NUM_THREADS="1"), stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    return [load_file(folder / f"{number}.safetensors") for number in range(2)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
