import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from appssl.contracts import Context, Meta, Progress
from appssl.errors import DataError, SettingsError
from appssl.learners.scatsimclr import Config, build
from appssl.objectives.ntxent import nt_xent
from appssl.ops.jigsaw import cells, far_orders
from appssl.settings import validate
from tests.objectives.views import FIRST, SECOND

META = Meta(source="test", domain="webnoisy", task="classification")
SMALL = {"projector_hidden": 7, "projector_out": 5, "rotation_hidden": [6, 4], "cell_hidden": 4, "jigsaw_hidden": 8}
SIDE, FEATURES = 6, 10


def learner(num_views=2, shape=(2, SIDE, SIDE), **values):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), FEATURES), nn.Tanh())
    backbone.num_features = FEATURES
    config = validate(Config, {**SMALL, "pretext_start": 0.0, **values}, file="r.yaml", owner="learners/scatsimclr")
    return build(config, Context(META, backbone, shape, num_samples=8, num_views=num_views))


def views(count=2, size=4):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 2, SIDE, SIDE, generator=generator, dtype=torch.float64) for _ in range(count)]


def literal_nt_xent(one, other, tau):
    rows = [z / z.norm() for z in [*one, *other]]
    total = 0.0
    for i, anchor in enumerate(rows):
        partner = (i + len(one)) % len(rows)
        bottom = sum(math.exp(float(anchor @ z) / tau) for k, z in enumerate(rows) if k != i)
        total -= math.log(math.exp(float(anchor @ rows[partner]) / tau) / bottom)
    return total / len(rows)


def dense(x, layer):
    return x @ layer.weight.T + layer.bias


def literal_projection(model, view):
    first, _, last = model.projector
    return [dense(dense(model.backbone(image[None])[0], first).clamp(min=0), last) for image in view]


def quarter_turn(image):
    """Counter-clockwise, pixel by pixel: what was at the right end of the first row comes to its left end."""
    out = torch.empty_like(image)
    for row in range(SIDE):
        for column in range(SIDE):
            out[:, row, column] = image[:, column, SIDE - 1 - row]
    return out


def cross_entropy(logits, label):
    return math.log(sum(math.exp(float(x)) for x in logits)) - float(logits[label])


@pytest.mark.parametrize("num_views", [2, 3])
def test_loss_with_rotations_equals_the_equation_written_out_in_float64(num_views):
    model, given = (
        learner(num_views, temperature=0.4, pretext_weight=0.7).double().eval().requires_grad_(False),
        views(num_views),
    )
    hidden_1, _, _, hidden_2, _, _, last = model.task.head
    total, right = 0.0, 0
    for image in given[-1]:
        for turns in range(4):
            hidden = dense(model.backbone(image[None])[0], hidden_1).clamp(min=0)
            logits = dense(dense(hidden, hidden_2).clamp(min=0), last)
            total += cross_entropy(logits, turns) / 16
            right += int(logits.argmax()) == turns
            image = quarter_turn(image)
    contrastive = literal_nt_xent(*(literal_projection(model, view) for view in given[:2]), 0.4)
    step = model({"views": given})
    assert float(step.loss) == pytest.approx(contrastive + 0.7 * total, rel=1e-6)  # the head's loss is in float32
    assert float(step.metrics["loss_contrastive"]) == pytest.approx(contrastive, rel=1e-12)
    assert float(step.metrics["pretext_accuracy"]) == pytest.approx(right / 16)


def test_loss_with_jigsaws_equals_the_equation_written_out_in_float64():
    model, given = learner(3, pretext="jigsaw", num_orders=6).double().eval().requires_grad_(False), views(3)
    torch.manual_seed(5)
    labels = torch.randint(6, (4,))
    total = 0.0
    for image, label in zip(given[2], labels, strict=True):
        pieces = cells(image[None])[0]
        order = far_orders(6)[label]
        seen = [dense(model.backbone(pieces[k][None])[0], model.task.of_cell[0]).clamp(min=0) for k in order]
        hidden = dense(torch.cat(seen), model.task.head[0]).clamp(min=0)
        total += cross_entropy(dense(hidden, model.task.head[3]), label) / 4
    torch.manual_seed(5)
    step = model({"views": given})
    contrastive = literal_nt_xent(*(literal_projection(model, view) for view in given[:2]), 0.5)
    assert float(step.loss) == pytest.approx(contrastive + 0.3 * total, rel=1e-6)


class Given(nn.Module):
    """A task whose logits are known."""

    def __init__(self, logits, labels):
        super().__init__()
        self.logits, self.labels = logits, labels

    def ask(self, images):
        return self.logits, self.labels

    def forward(self, features):
        return features


def test_the_worked_numbers():
    logits = torch.tensor([[2, 0, 0, 0], [0, 1, 0, 0], [0.5, 0, 1.5, 0], [0, 0, 0, 1]], dtype=torch.float64)
    model = learner()
    model.backbone, model.projector, model.task = nn.Identity(), nn.Identity(), Given(logits, torch.arange(4))
    step = model({"views": [FIRST, SECOND]})
    assert float(step.metrics["loss_contrastive"]) == pytest.approx(0.341076, abs=1e-6)
    assert float(step.metrics["loss_pretext"]) == pytest.approx(0.605925, abs=1e-6)
    assert float(step.loss) == pytest.approx(0.522853, abs=1e-6)


def test_networks_have_the_sizes_of_the_paper():
    backbone = nn.Identity()
    backbone.num_features = 2048
    context = Context(META, backbone, (3, 8, 8), num_samples=8, num_views=2)

    def sizes(module):
        return [tuple(layer.weight.shape) for layer in module.modules() if isinstance(layer, nn.Linear)]

    rotation, jigsaw = (build(Config(pretext=pretext), context) for pretext in ("rotation", "jigsaw"))
    assert sum(p.numel() for p in rotation.projector.parameters()) == 4_458_624
    assert sizes(rotation.task) == [(512, 2048), (128, 512), (4, 128)]
    assert sizes(jigsaw.task) == [(512, 2048), (4096, 9 * 512), (35, 4096)]
    assert [layer.p for layer in rotation.task.modules() if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


def test_weight_zero_is_simclr_and_its_gradient():
    model, given = learner(pretext_weight=0.0), [view.float() for view in views()]
    step = model({"views": given})
    step.loss.backward()
    again = learner()
    plain = nt_xent(*again.projector(again.backbone(torch.cat(given))).chunk(2), temperature=0.5)
    plain.backward()
    assert torch.equal(step.loss, plain)
    assert set(step.metrics) == {"loss_contrastive"}
    for one, other in zip(model.backbone.parameters(), again.backbone.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert all((p.grad == 0).all() for p in model.task.parameters())  # not None: processes exchange them


def test_the_task_begins_after_its_share_of_the_steps_and_a_checkpoint_knows():
    model, given = learner(pretext_start=0.4), {"views": [view.float() for view in views()]}
    weights = [float(model.pretext_weight)]
    for step in range(1, 11):
        assert ("loss_pretext" in model(given).metrics) == (weights[-1] > 0)
        model.after_update(Progress(step, 10, 5))
        weights.append(float(model.pretext_weight))
    assert weights == pytest.approx([0, 0, 0, 0] + [0.3] * 7)
    resumed = learner(pretext_start=0.4)
    resumed.load_state_dict(model.state_dict())
    assert "loss_pretext" in resumed(given).metrics


@pytest.mark.parametrize("pretext", ["rotation", "jigsaw"])
def test_gradients_reach_every_part_and_the_backbone_is_kept(pretext):
    model = learner(pretext=pretext, dropout=0.0)
    model({"views": [view.float() for view in views()]}).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert model.export() is model.backbone


def test_the_task_alone_trains_the_backbone_but_not_the_projector():
    model = learner(dropout=0.0)
    inputs, labels = model.task.ask(views()[0].float())
    functional.cross_entropy(model.task(model.backbone(inputs)), labels).backward()
    assert model.backbone[1].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.projector.parameters())


def test_jigsaws_come_in_all_orders_and_are_the_same_for_a_seed():
    task = learner(pretext="jigsaw", num_orders=5).task
    images = torch.randn(200, 2, SIDE, SIDE)
    torch.manual_seed(1)
    inputs, labels = task.ask(images)
    assert inputs.shape == (1800, 2, SIDE, SIDE)
    assert sorted(set(labels.tolist())) == [0, 1, 2, 3, 4]
    torch.manual_seed(1)
    again, _ = task.ask(images)
    assert torch.equal(inputs, again)


def test_half_precision_gives_a_loss_in_float32():
    model, given = learner(), [view.float() for view in views()]
    with torch.autocast("cpu", torch.bfloat16):
        step = model({"views": given})
    assert step.loss.dtype == torch.float32
    torch.testing.assert_close(step.loss, learner()({"views": given}).loss, rtol=0.2, atol=0.1)  # dropout differs


def test_what_it_cannot_use_is_refused():
    with pytest.raises(SettingsError, match=r"the views make 4\. Set num_views of the views to 2 or 3"):
        learner(4)
    with pytest.raises(SettingsError, match=r"pretext rotation needs square images; .* \(2, 6, 9\)"):
        learner(shape=(2, 6, 9))
    learner(shape=(2, 6, 9), pretext="jigsaw")
    with pytest.raises(SettingsError, match=r"pretext jigsaw needs images; .* \(64,\)"):
        learner(shape=(64,), pretext="jigsaw")
    with pytest.raises(DataError, match="two or more samples in a batch, got 1"):
        learner()({"views": [view.float() for view in views(size=1)]})
