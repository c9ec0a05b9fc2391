import pytest
import torch
from torch import nn

from appssl.contracts import Context, Loss, Meta, Progress
from appssl.errors import DataError, SettingsError
from appssl.learners.joint_embedding import Config, JointEmbedding, build
from appssl.objectives.ntxent import nt_xent
from appssl.settings import validate

META = Meta(source="test", domain="wsi", task="classification")


def learner(**values):
    torch.manual_seed(0)
    backbone = nn.Linear(4, 6)
    backbone.num_features = 6
    config = validate(Config, values, file="r.yaml", owner="learners/joint_embedding")
    return build(config, Context(META, backbone, (4,), num_samples=8, num_views=2))


def views(count=2, size=8):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 4, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("count", [2, 3])
def test_loss_equals_the_objective_on_projections_of_one_joint_batch(count):
    joint = learner(objective={"name": "ntxent", "temperature": 0.4}).train()
    given = views(count)
    hidden = joint.backbone(torch.cat(given)) @ joint.projector[0].weight.T
    normalized = (hidden - hidden.mean(0)) / torch.sqrt(hidden.var(0, unbiased=False) + 1e-5)
    last = joint.projector[3]
    projected = normalized.clamp(min=0) @ last.weight.T + last.bias
    expected = nt_xent(*projected.split(8), temperature=0.4)
    torch.testing.assert_close(joint({"views": given}).loss, expected)


def test_row_i_of_all_views_is_one_sample():
    """Views equal to each other are the easiest case; views of other samples in the same row are not."""
    joint, (one, _) = learner().eval(), views()
    same = joint({"views": [one, one]}).loss
    mixed = joint({"views": [one, one.roll(1, 0)]}).loss
    assert float(same.detach()) < float(mixed.detach())


def test_gradients_reach_backbone_and_projector():
    joint = learner().train()
    joint({"views": views()}).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in joint.parameters() if p.ndim > 1)


def test_export_is_the_backbone_without_the_projector():
    joint = learner()
    assert joint.export() is joint.backbone
    assert learner(projector_hidden=9, projector_out=3).projector[3].weight.shape == (3, 9)


class Counting(nn.Module):
    """An objective with named terms that wants to know of updates."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, *embeddings):
        value = embeddings[0].square().mean()
        return Loss(value, {"spread": value.detach()})

    def after_update(self, progress):
        self.seen.append(progress)


def test_terms_become_metrics_and_updates_reach_the_objective():
    objective = Counting()
    joint = JointEmbedding(nn.Linear(4, 6), nn.Linear(6, 2), objective)
    step = joint({"views": views()})
    assert set(step.metrics) == {"loss_spread"}
    joint.after_update(Progress(3, 10, 1))
    assert objective.seen == [Progress(3, 10, 1)]
    learner().after_update(Progress(1, 2, 1))  # an objective without state needs nothing


def test_a_batch_of_one_says_what_is_wrong():
    with pytest.raises(DataError, match="two or more samples in a batch, got 1"):
        learner().eval()({"views": views(size=1)})


def test_settings_of_the_objective_need_no_name_and_a_misspelt_one_is_found():
    config = validate(Config, {"objective": {"temperature": 0.7}}, file="r.yaml", owner="learners/joint_embedding")
    assert (config.objective.name, config.objective.temperature) == ("ntxent", 0.7)
    with pytest.raises(SettingsError, match=r"r.yaml: objective\.temprature is not a setting of objectives/ntxent"):
        learner(objective={"temprature": 0.7})
