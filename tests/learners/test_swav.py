"""SwAV equals a literal transcription, the worked numbers, its limits, and itself across two processes."""

import math

import pytest
import torch
from torch import nn

from appssl.contracts import Context, Meta, Progress
from appssl.errors import SettingsError
from appssl.learners.swav import Config, build, sinkhorn
from appssl.ops.distillation import cross_entropy_of_crops
from tests.processes import on_two

META = Meta("test", "webnoisy", "classification")
S1 = torch.tensor([[0.9, 0.1, -0.2], [0.3, 0.8, 0], [0.2, 0.1, 0.7], [0.8, 0.2, 0.1]], dtype=torch.float64)
S2 = torch.tensor([[0.7, 0.2, -0.1], [0.2, 0.9, 0.1], [0.1, 0.3, 0.6], [0.6, 0.4, 0]], dtype=torch.float64)
Z1 = torch.tensor([[1, 0, 0.5], [0, 1, -0.5], [-1, 0.5, 0], [0.5, -1, 1]], dtype=torch.float64)
Z2 = torch.tensor([[0.8, 0.2, 0.4], [0.1, 0.9, -0.3], [-0.7, 0.6, 0.2], [0.3, -1.1, 0.6]], dtype=torch.float64)


def literal_sinkhorn(scores, eps, iterations):
    """With loops over a matrix (K, B), as the paper's appendix has it."""
    count, k = scores.shape
    largest = float(scores.max())
    m = [[math.exp((float(scores[i, j]) - largest) / eps) for i in range(count)] for j in range(k)]
    total = sum(map(sum, m))
    m = [[x / total for x in row] for row in m]
    for _ in range(iterations):
        m = [[x / sum(row) / k for x in row] for row in m]
        sums = [sum(m[j][i] for j in range(k)) for i in range(count)]
        m = [[m[j][i] / sums[i] / count for i in range(count)] for j in range(k)]
    sums = [sum(m[j][i] for j in range(k)) for i in range(count)]
    return torch.tensor([[m[j][i] / sums[i] for j in range(k)] for i in range(count)], dtype=torch.float64)


def literal_loss(scores, eps, iterations, tau):
    total = 0.0
    for a in range(2):
        q = literal_sinkhorn(scores[a], eps, iterations)
        for v in range(len(scores)):
            if v == a:
                continue
            for i in range(len(q)):
                normalizer = math.log(sum(math.exp(float(s) / tau) for s in scores[v][i]))
                for k in range(q.shape[1]):
                    share = float(q[i, k]) / len(q) / (len(scores) - 1) / 2
                    total -= share * (float(scores[v][i, k]) / tau - normalizer)
    return total


def ours(scores, eps, iterations, tau):
    codes = [sinkhorn(s / eps, iterations) for s in scores[:2]]
    return float(cross_entropy_of_crops(scores, codes, temperature=tau))


@pytest.mark.parametrize(("eps", "iterations"), [(0.5, 3), (0.05, 1), (0.05, 10), (1.0, 3)])
def test_codes_and_loss_equal_the_transcription(eps, iterations):
    torch.manual_seed(0)
    scores = [torch.rand(7, 4, dtype=torch.float64) * 2 - 1 for _ in range(4)]
    torch.testing.assert_close(sinkhorn(scores[0] / eps, iterations), literal_sinkhorn(scores[0], eps, iterations))
    assert ours(scores, eps, iterations, 0.1) == pytest.approx(literal_loss(scores, eps, iterations, 0.1), rel=1e-9)


def test_the_worked_numbers():
    q = sinkhorn(S1 / 0.5, 3)
    assert q[0].tolist() == pytest.approx([0.615125, 0.225034, 0.159840], abs=1e-6)
    assert q[3].tolist() == pytest.approx([0.470795, 0.256941, 0.272264], abs=1e-6)
    assert q.sum(0).tolist() == pytest.approx([1.337455, 1.332357, 1.330188], abs=1e-6)
    assert ours([S1, S2], 0.5, 3, 0.1) == pytest.approx(2.519293, abs=1e-6)
    assert sinkhorn(S1 / 0.05, 3).sum(0).tolist() == pytest.approx([1.999586, 1.000208, 1.000206], abs=1e-6)
    assert ours([S1, S2], 0.05, 3, 0.1) == pytest.approx(0.028139, abs=1e-6)
    small = [0.05 * Z1[:, :2], 0.05 * Z2[:, :2]]
    code = sinkhorn(small[0] / 0.05, 3)
    assert code[0].tolist() == pytest.approx([0.731059, 0.268941], abs=1e-6)
    assert code.sum(0).tolist() == pytest.approx([2, 2], abs=1e-6)
    assert ours(small, 0.05, 3, 0.1) == pytest.approx(0.586048, abs=1e-6)


def test_rows_sum_to_one_and_many_iterations_use_all_prototypes_equally():
    torch.manual_seed(1)
    q = sinkhorn(torch.randn(12, 5, dtype=torch.float64) * 3, 500)
    torch.testing.assert_close(q.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(q.sum(0), torch.full((5,), 12 / 5, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_constants_of_a_prototype_cancel_and_orders_do_not_matter():
    torch.manual_seed(2)
    logits = torch.randn(6, 4, dtype=torch.float64)
    q = sinkhorn(logits, 3)
    shifted = logits + 7
    shifted[:, 2] += 3
    torch.testing.assert_close(sinkhorn(shifted, 3), q)
    images, prototypes = torch.randperm(6), torch.randperm(4)
    torch.testing.assert_close(sinkhorn(logits[images][:, prototypes], 3), q[images][:, prototypes])
    of_one_image = logits.clone()
    of_one_image[1] += 3
    assert not torch.allclose(sinkhorn(of_one_image, 1), sinkhorn(logits, 1), atol=1e-3)
    torch.testing.assert_close(sinkhorn(of_one_image, 400), sinkhorn(logits, 400), atol=1e-7, rtol=1e-6)


def test_large_epsilon_is_uniform_small_is_one_prototype_and_nothing_overflows():
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(sinkhorn(scores / 1e6, 3), torch.full((6, 3), 1 / 3), atol=1e-4, rtol=0)
    balanced = torch.eye(3).repeat(2, 1)
    torch.testing.assert_close(sinkhorn(balanced / 1e-4, 3), balanced, atol=1e-6, rtol=0)
    assert torch.isfinite(sinkhorn(scores / 1e-6, 3)).all()


def test_equal_scores_cost_log_k_and_no_loss_is_below_the_entropy_of_its_codes():
    equal = [torch.zeros(5, 7, dtype=torch.float64) for _ in range(3)]
    assert ours(equal, 0.05, 3, 0.1) == pytest.approx(math.log(7))
    torch.manual_seed(4)
    scores = [torch.randn(6, 4, dtype=torch.float64) for _ in range(3)]
    codes = [sinkhorn(s / 0.5, 3) for s in scores[:2]]
    entropy = float(-(torch.stack(codes) * torch.stack(codes).log()).sum(-1).mean())
    assert float(cross_entropy_of_crops(scores, codes, temperature=0.1)) > entropy
    own = [code.log() * 0.1 for code in codes]  # predictions that are the codes of the other crop
    assert float(cross_entropy_of_crops(own[::-1], codes, temperature=0.1)) == pytest.approx(entropy)


def test_images_that_take_no_part_change_nothing():
    torch.manual_seed(5)
    logits, others = torch.randn(6, 4), torch.randn(3, 4) * 100
    used = torch.arange(9) < 6
    found = sinkhorn(torch.cat([logits, others]), 3, used)
    torch.testing.assert_close(found[:6], sinkhorn(logits, 3))
    assert (found[6:] == 0).all()


def learner(views=3, backbone=None, **values):
    torch.manual_seed(0)
    backbone = backbone or nn.Sequential(nn.Flatten(), nn.LazyLinear(6))
    backbone(torch.zeros(1, 3, 2))
    backbone.num_features = 6
    given = {"num_prototypes": 5, "projector_hidden": 8, "projector_out": 4, "frozen_steps": 0, **values}
    return build(Config(**given), Context(META, backbone, (3, 2), 8, views))


def crops(count=3, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 2, generator=generator) for _ in range(count)]


def embedded(model, views):
    """Unit embeddings of all views, as one batch."""
    projected = model.projector(model.backbone(torch.cat(views)))
    return (projected / projected.norm(dim=1, keepdim=True)).chunk(len(views))


def test_the_step_is_the_loss_of_the_scores_of_unit_vectors():
    model, views = learner(), crops()
    z = embedded(model, views)
    torch.testing.assert_close(model.prototypes.norm(dim=1), torch.ones(5))
    expected = literal_loss([(v @ model.prototypes.T).double().detach() for v in z], 0.05, 3, 0.1)
    assert float(model({"views": views}).loss.detach()) == pytest.approx(expected, rel=1e-4)


class AnySize(nn.Module):
    num_features = 6

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 6)

    def forward(self, x):
        return self.linear(x.mean(2))


def test_small_crops_are_predicted_and_need_another_size_only():
    model = learner(backbone=AnySize())
    views = [*crops(2), *(view[:, :, :1] for view in crops(2, seed=1))]
    z = [*embedded(model, views[:2]), *embedded(model, views[2:])]
    scores = [(v @ model.prototypes.T).detach().double() for v in z]
    assert float(model({"views": views}).loss.detach()) == pytest.approx(literal_loss(scores, 0.05, 3, 0.1), rel=1e-4)


def test_gradients_reach_encoder_and_prototypes_but_not_through_codes():
    model, views = learner(views=2), crops(2)
    model({"views": views}).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)
    scores = [torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    codes = [sinkhorn(s.detach() / 0.05, 3) for s in scores]
    cross_entropy_of_crops(scores, codes, temperature=0.1).backward()
    for s, other in zip(scores, codes[::-1], strict=True):  # the gradient of a cross-entropy with a constant target
        torch.testing.assert_close(s.grad, ((s / 0.1).softmax(1) - other) / 0.1 / 6 / 2)


def test_prototypes_are_frozen_first_and_unit_vectors_after_every_step():
    model = learner(frozen_steps=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    moved = []
    for step in range(1, 5):
        before = model.prototypes.detach().clone()
        optimizer.zero_grad()
        model({"views": crops(seed=step)}).loss.backward()
        optimizer.step()
        model.after_update(Progress(step, 10, 2))
        torch.testing.assert_close(model.prototypes.detach().norm(dim=1), torch.ones(5))
        moved.append(not torch.allclose(model.prototypes, before, atol=1e-6))
    assert moved == [False, False, True, True]


def test_a_full_queue_takes_part_in_the_assignment():
    model = learner(views=2, queue=16, queue_start_epoch=1)
    frozen = [p.requires_grad_(False) for p in model.parameters()]
    assert frozen
    passed = []
    for step, epoch in enumerate([0, 0, 1, 1, 1, 1]):
        model.epoch.fill_(epoch)
        views = crops(2, seed=step)
        z = embedded(model, views)
        step_loss = float(model({"views": views}).loss)
        scores = [(v @ model.prototypes.T).double() for v in z]
        if step < 4:  # not started, or not full: two batches of 8 are needed
            assert step_loss == pytest.approx(literal_loss(scores, 0.05, 3, 0.1), rel=1e-4)
        else:
            codes = []
            for a in range(2):
                stored = torch.cat([earlier[a] for earlier in passed[-2:]]) @ model.prototypes.T
                codes.append(literal_sinkhorn(torch.cat([scores[a], stored.double()]), 0.05, 3)[:8])
            expected = float(cross_entropy_of_crops(scores, codes, temperature=0.1))
            assert step_loss == pytest.approx(expected, rel=1e-4)
            assert step_loss != pytest.approx(literal_loss(scores, 0.05, 3, 0.1), rel=1e-3)
        passed.append(z)


def test_evaluation_leaves_the_queue_alone_and_its_state_survives():
    model = learner(queue=8, queue_start_epoch=0)
    model.eval()({"views": crops()})
    assert int(model.num_queued) == 0
    model.train()({"views": crops()})
    model.after_update(Progress(7, 20, 3))
    again = learner(queue=8, queue_start_epoch=0)
    again.load_state_dict(model.state_dict())
    assert (int(again.num_queued), int(again.num_updates), int(again.epoch)) == (8, 7, 2)
    assert torch.equal(again({"views": crops(seed=9)}).loss, model({"views": crops(seed=9)}).loss)


def test_half_precision_assigns_in_float32():
    model, views = learner(), crops()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = model({"views": views})
    assert step.loss.dtype == step.metrics["code_entropy"].dtype == torch.float32
    assert float(step.loss.detach()) == pytest.approx(float(model({"views": views}).loss.detach()), abs=0.15)
    assert model.export() is model.backbone


def test_what_it_cannot_be_is_refused():
    with pytest.raises(SettingsError, match="needs two or more views: set views: multi_crop"):
        learner(views=1)
    with pytest.raises(SettingsError, match=r"learner\.queue is 4, but a batch has 8 images"):
        learner(queue=4)({"views": crops()})


def three_steps(mine):
    """Losses and gradients of a model without batch normalization, of these rows of each batch."""
    model = learner(views=2, queue=11, queue_start_epoch=0)
    model.projector = nn.Linear(6, 4, bias=False)
    nn.init.orthogonal_(model.projector.weight)
    found = {}
    for step in range(3):
        loss = model({"views": [view[mine] for view in crops(2, seed=step)]}).loss
        loss.backward()
        found[f"loss{step}"] = loss.detach()
    return {**found, "gradient": model.prototypes.grad.clone(), "queue": model.queue.clone()}


def test_two_processes_assign_as_one(tmp_path):
    parts = on_two(three_steps, tmp_path, each=4)
    whole = three_steps(slice(0, 8))
    for key, value in whole.items():
        together = parts[0][key] if key == "queue" else (parts[0][key] + parts[1][key]) / 2
        torch.testing.assert_close(together, value, rtol=1e-4, atol=1e-5)
    assert torch.equal(parts[0]["queue"], parts[1]["queue"])
