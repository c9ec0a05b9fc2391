"""Fully sharded data parallel training (FSDP2): parameters, gradients, optimizer states divided among the processes.

What leaves the loop is whole again: checkpoints and results have the same names and shapes as from one process, so a
run can go on with another number of devices.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

_SMALLEST_BLOCK = 1_000_000  # parameters; smaller blocks are sharded together with their parent


def strategy(devices: int) -> ModelParallelStrategy:
    """For Fabric: all devices share the data, and each holds a part of every block."""
    return ModelParallelStrategy(_shard, data_parallel_size=devices, tensor_parallel_size=1)


def _shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    data_parallel = mesh["data_parallel"]
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP refuses others, such as filters with channels last
    for parent in list(module.modules()):
        if isinstance(parent, nn.ModuleList | nn.Sequential):
            for block in parent:
                if sum(p.numel() for p in block.parameters()) >= _SMALLEST_BLOCK:
                    fully_shard(block, mesh=data_parallel)
    fully_shard(module, mesh=data_parallel)
    return module


def whole(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Full tensors from shards; everything else as it is. All processes must call this together."""
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def like(value: Tensor, target: Tensor) -> Tensor:
    """A full tensor divided as `target` is."""
    if not isinstance(target, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)


def load_model(learner: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of full tensors into a learner that may be divided."""
    own = learner.state_dict()
    learner.load_state_dict({name: like(t, own[name]) if name in own else t for name, t in tensors.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`load_state_dict` of full tensors; entries of a parameter's shape are divided as it is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, entries in state["state"].items():
        target = parameters[number]
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == target.shape:
                entries[name] = like(value, target)
    optimizer.load_state_dict(state)


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`state_dict` of an optimizer with full tensors. All processes must call this together."""
    state = optimizer.state_dict()
    return {**state, "state": {number: whole(entries) for number, entries in state["state"].items()}}


def local(tensor: Tensor) -> Tensor:
    """This process's part."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def make_whole(learner: nn.Module) -> None:
    """Gives a divided learner whole parameters again, on every process; it is not for further training."""
    for module in learner.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                full = nn.Parameter(parameter.full_tensor().detach(), requires_grad=parameter.requires_grad)
                module.register_parameter(name, full)
