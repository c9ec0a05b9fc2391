import math
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from appssl.contracts import Context, Meta, Progress
from appssl.errors import DataError, SettingsError
from appssl.learners.isogclr import Config, build
from appssl.objectives.dcl import dcl
from appssl.ops.individual_temperatures import of_samples, robust_contrast
from appssl.settings import validate
from tests.commands import REPOSITORY, environment
from tests.objectives.views import FIRST, SECOND, at
from tests.processes import free_port

META = Meta(source="test", domain="webnoisy", task="classification")
CARD = {"radius": 0.4, "temperature": 0.2, "normalizer_rate": 0.8}  # beta, eta and the bounds are the defaults


def learner(num_rows=6, width=2, **values):
    """A learner whose embeddings are its inputs."""
    torch.manual_seed(0)
    backbone = nn.Linear(width, width)
    backbone.num_features = width
    config = validate(Config, {**CARD, **values}, file="r.yaml", owner="learners/isogclr")
    made = build(config, Context(META, backbone, (width,), num_samples=num_rows, num_views=2))
    return made.train()


def of_inputs(**values):
    made = learner(**values).double()
    made.backbone = made.projector = nn.Identity()
    return made


def batch(index, *views):
    return {"index": torch.tensor(index), "views": list(views)}


def literal(one, two, index, state, *, gamma, rho, eta, beta):
    """Loss and gradients G, written out; `state` is (temperature, normalizer, momentum), lists that are changed."""
    tau, s, u = state
    unit = [[row / row.norm() for row in view] for view in (one, two)]
    size, loss, gradients = len(one), 0.0, []
    for i, n in enumerate(index):
        pair = float(unit[0][i] @ unit[1][i])
        new, slopes = [], []
        for k in range(2):
            similar = [float(unit[k][i] @ unit[view][j]) for view in range(2) for j in range(size) if j != i]
            g = sum(math.exp(value / tau[n]) for value in similar) / len(similar)
            new.append(g if s[n] == 0 else (1 - gamma) * s[n] + gamma * g)
            pushed = sum(math.exp(value / tau[n]) / new[k] * value for value in similar) / len(similar)
            loss += (pushed - pair) / size
            slopes.append(math.log(new[k]) + rho - pushed / tau[n])
        gradients.append(max(-3, min(3, sum(slopes) / 2)))
        s[n] = sum(new) / 2
    for n, gradient in zip(index, gradients, strict=True):
        u[n] = (1 - beta) * u[n] + beta * gradient
        tau[n] = max(0.05, min(1.0, tau[n] - eta * u[n]))
    return loss, gradients


@pytest.mark.parametrize("beta", [0.5, 0.9])
@pytest.mark.parametrize("tau", [0.06, 0.3])
def test_steps_equal_the_equations_written_out_in_float64(tau, beta):
    made = of_inputs(num_rows=7, temperature=tau, gradient_rate=beta)
    state = ([tau] * 7, [0.0] * 7, [0.0] * 7)
    generator = torch.Generator().manual_seed(0)
    made.temperature.fill_(tau)
    for index in ([0, 5, 2, 3], [5, 6, 0, 1], [2, 0, 5, 6]):  # seen before and new, together
        one, two = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
        step = made(batch(index, one, two))
        loss, _ = literal(one, two, index, state, gamma=0.8, rho=0.4, eta=0.03, beta=beta)
        assert float(step.metrics["surrogate"]) == pytest.approx(loss, rel=1e-10)
        for found, expected in zip((made.temperature, made.normalizer, made.momentum), state, strict=True):
            assert found.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-14)


def test_the_worked_numbers_of_the_card():
    made = of_inputs()
    made.temperature.fill_(0.2)
    third, fourth = at(30, 140, 210), at(20, 130, 200)
    first = made(batch([0, 1, 2], FIRST, SECOND))
    assert float(first.metrics["surrogate"]) == pytest.approx(-1.678074, abs=1e-6)
    assert float(first.loss) == pytest.approx(-1.875902, abs=1e-6)  # the robust loss, s = g in the first step
    assert made.normalizer.tolist() == pytest.approx([0.383764, 1.256843, 0.884744, 0, 0, 0], abs=1e-6)
    assert (made.momentum * 2).tolist() == pytest.approx([-0.563455, -0.273518, -0.646739, 0, 0, 0], abs=1e-6)
    assert made.temperature.tolist() == pytest.approx([0.208452, 0.204103, 0.209701, 0.2, 0.2, 0.2], abs=1e-6)
    second = made(batch([0, 1, 2], fourth, third))
    assert float(second.metrics["surrogate"]) == pytest.approx(-1.567528, abs=1e-6)
    assert made.temperature[:3].tolist() == pytest.approx([0.218053, 0.214271, 0.226062], abs=1e-6)


def robust(views, tau, rho):
    """tau_i log mean exp(h_ij / tau_i) + tau_i rho, summed over both views, for each sample (B,)."""
    total = 0
    for k in range(2):
        similarity = torch.cat([views[k] @ views[0].T, views[k] @ views[1].T], dim=1)
        own = torch.eye(len(tau), dtype=torch.bool).repeat(1, 2)
        h = (similarity - (views[0] * views[1]).sum(1)[:, None])[~own].reshape(len(tau), -1)
        total = total + tau * ((h / tau[:, None]).exp().mean(1).log() + rho)
    return total


def unit_batch(seed, size=6, width=4):
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(2, size, width, generator=generator, dtype=torch.float64)
    return nn.functional.normalize(views, dim=2).requires_grad_()


def test_with_the_exact_normalizer_both_gradients_are_those_of_the_robust_loss():
    views, tau = unit_batch(1), torch.linspace(0.06, 0.9, 6, dtype=torch.float64).requires_grad_()
    found = robust_contrast(views, tau.detach(), torch.zeros(6).double(), gamma=0.8, rho=0.3)
    expected = robust(views, tau, 0.3)
    torch.testing.assert_close(found.objective.sum(0), expected.detach())
    of_views, of_tau = torch.autograd.grad(expected.sum(), (views, tau))
    torch.testing.assert_close(torch.autograd.grad(found.surrogate.sum(), views)[0], of_views)
    torch.testing.assert_close(found.temperature_gradient.sum(0), of_tau)


def test_the_gradient_of_a_temperature_is_rho_minus_the_divergence_of_the_weights():
    views = unit_batch(2).detach()
    for tau in (0.05, 0.2, 1e6):
        found = robust_contrast(views, torch.full((6,), tau).double(), torch.zeros(6).double(), gamma=1, rho=0.4)
        similarity = torch.cat([views[0] @ views[0].T, views[0] @ views[1].T], dim=1)
        own = torch.eye(6, dtype=torch.bool).repeat(1, 2)
        p = (similarity[~own].reshape(6, 10) / tau).softmax(1)
        divergence = (p * (p * 10).log()).sum(1)
        torch.testing.assert_close(found.temperature_gradient[0], 0.4 - divergence, rtol=1e-6, atol=1e-9)
        if tau == 1e6:
            assert found.temperature_gradient.numpy() == pytest.approx(0.4, abs=1e-9)


def test_a_radius_beyond_the_largest_divergence_lets_temperatures_sink_to_the_smallest():
    made = of_inputs(radius=math.log(10), temperature_lr=1.0, normalizer_rate=1)
    one, two = unit_batch(3).detach()
    for _ in range(30):
        made(batch([0, 1, 2, 3, 4, 5], one, two))
        assert (made.momentum >= 0).all()
    assert made.temperature.tolist() == pytest.approx([0.05] * 6)


def test_sogclr_keeps_its_temperature_and_with_full_rate_has_the_gradient_of_dcl():
    made = of_inputs(temperature_lr=0, normalizer_rate=1, temperature=0.3)
    made.temperature.fill_(0.3)
    views = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    for _ in range(2):  # also with normalizers of an earlier step
        loss = made(batch([0, 1, 2, 3, 4, 5], *views)).loss
        (found,) = torch.autograd.grad(loss, views)
        (of_dcl,) = torch.autograd.grad(dcl(*views, temperature=0.3)[0], views)
        torch.testing.assert_close(found, 2 * 0.3 * of_dcl)
    assert set(made.temperature.tolist()) == {0.3}


def test_the_loss_has_the_value_of_the_robust_loss_and_no_gradient_reaches_the_state():
    made = learner(num_rows=6, width=4)
    step = made(batch([0, 1, 2, 3, 4, 5], *unit_batch(5).detach().float()))
    step.loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in made.parameters() if p.ndim > 1)
    assert not any(buffer.requires_grad for buffer in made.buffers())
    assert not any(value.requires_grad for value in step.metrics.values())
    assert float(step.loss.detach()) != pytest.approx(float(step.metrics["surrogate"]), abs=1e-3)


def test_only_the_samples_of_a_batch_change_and_only_in_training():
    made = learner(num_rows=9, width=4)
    one, two = unit_batch(6, size=3).detach().float()
    made.eval()(batch([7, 0, 4], one, two))
    assert made.normalizer.abs().sum() == 0
    made.train()(batch([7, 0, 4], one, two))
    for state, start in ((made.normalizer, 0), (made.momentum, 0), (made.temperature, 0.2)):
        changed = (state != torch.full((9,), float(start))).nonzero().flatten()
        assert changed.tolist() == [0, 4, 7]


def test_views_may_be_swapped_and_rows_permuted():
    views, tau = unit_batch(7).detach(), torch.linspace(0.1, 0.5, 6).double()
    before, mixed = torch.rand(6, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([3, 1, 5, 0, 2, 4])
    plain = robust_contrast(views, tau, before, gamma=0.8, rho=0.4)
    swapped = robust_contrast(views.flip(0), tau, before, gamma=0.8, rho=0.4)
    permuted = robust_contrast(views[:, mixed], tau[mixed], before[mixed], gamma=0.8, rho=0.4)
    for a, b, c in zip(plain, swapped, permuted, strict=True):
        torch.testing.assert_close(b, a.flip(0))
        torch.testing.assert_close(c, a[:, mixed])


def test_a_sample_that_comes_twice_is_updated_with_the_mean():
    rows = torch.tensor([4, 1, 4, 4])
    (mean,) = of_samples(rows, torch.tensor([1.0, 9.0, 2.0, 6.0]))
    assert mean.tolist() == [3, 9, 3, 3]
    made = of_inputs(num_rows=6)
    one, two = unit_batch(8, size=3).detach()
    made(batch([4, 1, 4], one, two))
    separate = robust_contrast(torch.stack([one, two]), torch.full((3,), 0.2).double(), torch.zeros(3).double(),
                               gamma=0.8, rho=0.4)  # fmt: skip
    assert float(made.normalizer[4]) == pytest.approx(float(separate.normalizer[:, [0, 2]].mean()), rel=1e-6)
    gradient = float(separate.temperature_gradient[:, [0, 2]].mean())
    assert float(made.momentum[4]) == pytest.approx(0.5 * gradient, rel=1e-6)


def test_a_resume_goes_on_as_if_not_interrupted():
    one, two = learner(width=4), learner(width=4)
    views = unit_batch(9).detach().float()
    one(batch([0, 1, 2, 3, 4, 5], *views))
    two.load_state_dict(one.state_dict())
    again = batch([5, 4, 3, 2, 1, 0], *views.flip(0))
    assert torch.equal(one(again).loss, two(again).loss)
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), two.buffers(), strict=True))


def test_edges_half_precision_zero_vectors_and_the_smallest_temperature_are_finite():
    made = learner(width=4, temperature=0.02, temperature_min=0.02)
    made.backbone = made.projector = nn.Identity()
    for views in (torch.randn(2, 6, 4).bfloat16(), torch.zeros(2, 6, 4), torch.ones(2, 6, 4)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            step = made(batch([0, 1, 2, 3, 4, 5], *views.requires_grad_()))
        step.loss.backward()
        assert step.loss.dtype == torch.float32
        assert torch.isfinite(step.loss)
        assert torch.isfinite(views.grad).all()
        assert all(torch.isfinite(state).all() and state.dtype == torch.float32 for state in (made.normalizer,
                   made.temperature, made.momentum))  # fmt: skip


def test_as_many_rows_as_the_prepared_table_has_or_as_are_trained_on():
    backbone = nn.Linear(2, 2)
    backbone.num_features = 2
    context = Context(META, backbone, (2,), num_samples=5, num_views=2, facts={"num_rows": 12})
    assert len(build(Config(), context).temperature) == 12
    assert len(learner(num_rows=5).temperature) == 5


def test_an_index_without_state_is_reported_after_the_first_step_or_epoch():
    made = learner(num_rows=4, width=4)
    one, two = unit_batch(10, size=3).detach().float()
    made(batch([0, 1, 3], one, two))
    made.after_update(Progress(1, 100, 10))
    made(batch([0, 9, 3], one, two))
    made.after_update(Progress(2, 100, 10))  # no host read here
    with pytest.raises(DataError, match=r"a temperature for each of 4 rows, but a batch had index 9\. .*num_rows"):
        made.after_update(Progress(10, 100, 10))


def test_errors_one_sample_other_numbers_of_views_and_bounds_in_the_wrong_order():
    with pytest.raises(DataError, match="learners/isogclr needs two or more samples in a batch, got 1"):
        learner().eval()(batch([0], FIRST[:1].float(), SECOND[:1].float()))
    backbone = nn.Linear(2, 2)
    backbone.num_features = 2
    with pytest.raises(SettingsError, match=r"the views make 3\. Set num_views of the views to 2"):
        build(Config(), Context(META, backbone, (2,), num_samples=5, num_views=3))
    with pytest.raises(SettingsError, match="temperature_min <= temperature <= temperature_max"):
        learner(temperature=0.01)
    with pytest.raises(SettingsError, match="temperature_min is not valid"):
        learner(temperature_min=0.01)


SCRIPT = """
    import sys
    import torch
    import torch.distributed as dist
    from safetensors.torch import save_file
    from torch.nn.parallel import DistributedDataParallel
    from tests.learners.test_isogclr import batch, shared_learner, shared_views
    number, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2)
    made = shared_learner()
    trained = DistributedDataParallel(made)
    for index in ([0, 5, 2, 3], [5, 0, 5, 1]):
        made.zero_grad()
        mine = slice(2 * number, 2 * number + 2)
        step = trained(batch(index[mine], *(view[mine] for view in shared_views())))
        step.loss.backward()
    found = {f"grad.{k}": p.grad for k, p in made.named_parameters()}
    save_file({**found, **dict(made.named_buffers()), "loss": step.loss.detach()}, f"{folder}/{number}.safetensors")
    dist.destroy_process_group()
"""


def shared_learner():
    made = learner(width=4).double()
    made.projector = nn.Linear(4, 3).double()  # without normalization over the batch, which is that of a process
    return made


def shared_views():
    return unit_batch(11, size=4).detach()


@pytest.mark.slow
def test_two_processes_have_the_state_and_gradient_of_one(tmp_path):
    port = str(free_port())
    options = {"cwd": REPOSITORY, "env": environment(OMP_NUM_THREADS="1"), "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    processes = [subprocess.Popen([*command, str(n), port, str(tmp_path)], **options) for n in range(2)]
    for process in processes:
        _, text = process.communicate(timeout=120)
        assert process.returncode == 0, text
    alone = shared_learner()
    for index in ([0, 5, 2, 3], [5, 0, 5, 1]):  # a sample twice, in both processes
        alone.zero_grad()
        loss = alone(batch(index, *shared_views())).loss
        loss.backward()
    two = [load_file(tmp_path / f"{n}.safetensors") for n in range(2)]
    assert float(sum(found["loss"] for found in two)) / 2 == pytest.approx(float(loss.detach()), rel=1e-10)
    for found in two:
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(found[f"grad.{name}"], parameter.grad, rtol=1e-9, atol=1e-13)
        for name, buffer in alone.named_buffers():
            torch.testing.assert_close(found[name], buffer)
