"""Statistics of all processes: with two that hold halves of a batch everything is as with one that holds all of it."""

import copy

import pytest
import torch
from torch import nn

from appssl.ops.batch_norm import GlobalBatchNorm, make_global
from appssl.ops.distributed import mean_of_processes
from tests.processes import on_two


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.BatchNorm1d(5, momentum=None),
    )


def batch():
    return 3 + 2 * torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def passed(net, images, weights):
    """Output, and the gradients of a loss that weighs every output differently."""
    output = net(images)
    (output * weights).sum().div(len(images)).backward()
    gradients = {f"grad.{name}": p.grad for name, p in net.named_parameters()}
    return {"output": output.detach(), **gradients, **{f"state.{k}": v.float() for k, v in net.state_dict().items()}}


WEIGHTS = torch.linspace(-1, 2, 40).reshape(8, 5)


def half(mine):
    """What a process finds that has these rows, with gradients as DDP averages them."""
    net = network()
    make_global(net)
    found = passed(net, batch()[mine], WEIGHTS[mine])
    gradients = {name: mean_of_processes(value) for name, value in found.items() if name.startswith("grad.")}
    net.eval()
    return {**found, **gradients, "evaluated": net(batch()[mine]).detach(), **far(mine), **low(mine)}


def far(mine):
    """Numbers far from 0, without affine parameters; in double precision what it should be."""
    values = 1000 + torch.randn(8, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    inputs = values.float()[mine].requires_grad_()
    layer = GlobalBatchNorm(6, affine=False, track_running_stats=False)
    output = layer(inputs)
    (gradient,) = torch.autograd.grad((output * FAR[mine]).sum(), inputs)
    exact = values.requires_grad_()
    whole = (exact - exact.mean(0)) / (exact.var(0, correction=0) + layer.eps).sqrt()
    (of_whole,) = torch.autograd.grad((whole * FAR).sum(), exact)
    return {"far": output.detach(), "far.gradient": gradient, "far.exact": whole.detach()[mine].float(),
            "far.gradient.exact": of_whole[mine].float()}  # fmt: skip


FAR = torch.linspace(-1, 3, 48).reshape(8, 6)


def low(mine):
    """Maps of bfloat16 with channels last, as mixed precision has them on the way, beside the same in float32."""

    def passed_once(maps):
        maps.requires_grad_()
        layer = GlobalBatchNorm(3)
        output = layer(maps)
        output.square().mul(batch()[mine]).sum().backward()
        assert output.dtype == maps.grad.dtype == maps.dtype
        assert output.is_contiguous(memory_format=torch.channels_last)
        return [part.detach().float().contiguous() for part in (output, maps.grad, layer.weight.grad)]

    maps = batch()[mine].to(torch.bfloat16, memory_format=torch.channels_last)
    names = ["low", "low.gradient", "low.weight"]
    exact = dict(zip((f"{name}.exact" for name in names), passed_once(maps.float()), strict=True))
    return {**exact, **dict(zip(names, passed_once(maps), strict=True))}


@pytest.mark.slow
def test_two_processes_normalize_as_one(tmp_path):
    halves = on_two(half, tmp_path, each=4)
    net = network()
    alone = passed(net, batch(), WEIGHTS)
    net.eval()
    with torch.no_grad():
        alone["evaluated"] = net(batch())
    for name in ("output", "evaluated"):
        together = torch.cat([found[name] for found in halves])
        torch.testing.assert_close(together, alone[name], atol=1e-5, rtol=1e-5)
    for name in alone.keys() - {"output", "evaluated"}:
        for found in halves:
            torch.testing.assert_close(found[name], alone[name], atol=1e-5, rtol=1e-4)
    for found in halves:  # float32 has 1e-4 of 1000, against a spread of 1; bfloat16 has 8 bits
        for name, error in {
            "far": 1e-3,
            "far.gradient": 1e-3,
            "low": 2e-2,
            "low.gradient": 5e-2,
            "low.weight": 2e-2,
        }.items():
            torch.testing.assert_close(found[name], found[f"{name}.exact"], atol=error, rtol=error)


def test_with_one_process_it_is_that_of_torch():
    ours, theirs = network(), network()
    make_global(ours)
    one, two = passed(ours, batch(), WEIGHTS), passed(theirs, batch(), WEIGHTS)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_it_takes_the_place_of_all_and_keeps_their_tensors():
    net = network().eval()
    before = dict(net.named_parameters()) | dict(net.named_buffers())
    make_global(net)
    after = dict(net.named_parameters()) | dict(net.named_buffers())
    assert [type(layer) for layer in net if isinstance(layer, nn.modules.batchnorm._BatchNorm)] == [GlobalBatchNorm] * 2
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert not net[1].training
    assert (net[1].momentum, net[5].momentum, net[1].eps) == (0.1, None, 1e-5)


def test_subclasses_and_plain_layers_stay():
    class WithActivation(nn.BatchNorm2d):
        pass

    net = nn.Sequential(WithActivation(2), nn.LayerNorm(3), nn.BatchNorm1d(4, affine=False, track_running_stats=False))
    copied = copy.deepcopy(net)
    make_global(net)
    assert [type(layer) for layer in net] == [WithActivation, nn.LayerNorm, GlobalBatchNorm]
    values = torch.randn(6, 4)
    assert torch.equal(net[2](values), copied[2](values))
