import math
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from appssl.contracts import Context, Meta
from appssl.errors import SettingsError
from appssl.finetuners import core_tuning
from appssl.finetuners.core_tuning import (
    Config,
    build,
    focal_contrast,
    hard_pairs,
    mix,
    other_samples,
    positive_pairs,
    pure_classes,
)
from appssl.settings import validate
from tests.commands import REPOSITORY, environment
from tests.processes import free_port

META = Meta(source="test", domain="webnoisy", task="classification", classes=("a", "b", "c"))
PROJECTIONS = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]], dtype=torch.float64)
CLASSES = torch.tensor([0, 0, 1, 1])


def learner(**values):
    torch.manual_seed(0)
    encoder = nn.Linear(4, 5)
    encoder.num_features = 5
    return build(Config(**values), Context(META, encoder, (4,), num_samples=8))


def batch(num=8):
    generator = torch.Generator().manual_seed(2)
    return {
        "input": torch.randn(num, 4, generator=generator),
        "target": torch.tensor([0, 1, 1, 2, 2, 2, 2, 0])[:num],
        "weight": torch.rand(num, generator=generator),
    }


class Fixed:
    """In place of the Beta distribution: shares 0.9, 0.3 and so on, the same for a sample wherever it is."""

    def __init__(self, alpha, beta):
        self.shape = alpha.shape

    def sample(self):
        return torch.tensor([[0.9], [0.3]]).expand(self.shape)


def next_one(anchors, size):
    return (anchors + 1) % size


@pytest.fixture
def fixed(monkeypatch):
    monkeypatch.setattr(core_tuning, "Beta", Fixed)
    monkeypatch.setattr(core_tuning, "other_samples", next_one)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.dist(a, [0] * len(a)) / math.dist(b, [0] * len(b))


def literal_contrast(projections, positives, temperature, focal=True):
    """L_con by loops; positives: a set of places for each anchor."""
    total, num_anchors = 0.0, 0
    for i, own in enumerate(positives):
        if not own:
            continue
        num_anchors += 1
        scores = [math.exp(cosine(projections[i], r) / temperature) for r in projections]
        normalizer = sum(score for a, score in enumerate(scores) if a != i)
        for j in own:
            p = scores[j] / normalizer
            total -= (1 - p if focal else 1) * math.log(p) / len(own)
    return total / max(num_anchors, 1)


def literal_step(tuned, data):
    """L_ce, L_con with shares 0.9 and 0.3 and the next sample as partner, by loops over samples in float64."""
    model = tuned.double()
    z = model.backbone(data["input"].double()).tolist()
    y, w, size = data["target"].tolist(), data["weight"].double().tolist(), len(data["target"])
    pool = [(z[i], {y[i]: 1.0}, {y[i]: w[i]}, ("original", i)) for i in range(size)]

    def mixed(a, b, share, name):
        features = [share * p + (1 - share) * q for p, q in zip(z[a], z[b], strict=True)]
        labels, weighted = {}, {}
        for k, part in ((a, share), (b, 1 - share)):
            labels[y[k]] = labels.get(y[k], 0) + part
            weighted[y[k]] = weighted.get(y[k], 0) + part * w[k]
        return features, labels, weighted, name

    pool += [mixed((i + 1) % size, i, 0.9, ("negative", i)) for i in range(size)]
    for i in range(size):
        same = [j for j in range(size) if j != i and y[j] == y[i]] or [i]
        other = [j for j in range(size) if y[j] != y[i]] or [i]
        hp = min(same, key=lambda j: cosine(z[i], z[j]))
        hn = max(other, key=lambda j: cosine(z[i], z[j]))
        pool.append(mixed(hp, hn, 0.3, ("positive", i)))
    rows = torch.tensor([item[0] for item in pool], dtype=torch.float64)
    shares = model.head(rows).log_softmax(1).tolist()
    classification = -sum(part * shares[m][c] for m, item in enumerate(pool) for c, part in item[2].items()) / len(pool)

    def attract(one, two):
        if len(one[1]) == len(two[1]) == 1 and one[1].keys() == two[1].keys():
            return True
        return {one[3], two[3]} == {("original", one[3][1]), ("positive", one[3][1])}

    positives = [{j for j in range(len(pool)) if j != i and attract(pool[i], pool[j])} for i in range(len(pool))]
    contrastive = literal_contrast(model.projector(rows).tolist(), positives, tuned.config.temperature)
    return classification, contrastive


@pytest.mark.parametrize("num", [8, 2, 1])
def test_the_step_equals_the_equations_written_out(num, fixed):
    step = learner(contrast_weight=0.7, temperature=0.3).train()(batch(num))
    classification, contrastive = literal_step(learner(temperature=0.3), batch(num))
    assert float(step.metrics["loss_classification"]) == pytest.approx(classification, rel=1e-5)
    assert float(step.metrics["loss_contrastive"]) == pytest.approx(contrastive, rel=1e-4)
    assert float(step.loss.detach()) == pytest.approx(classification + 0.7 * contrastive, rel=1e-5)


def contrast(projections, classes, temperature, **how):
    own = torch.arange(len(classes))
    positives = positive_pairs(classes, own, None)
    losses = focal_contrast(projections, projections, positives, own, temperature, **how)
    return losses, losses.sum() / positives.any(1).sum()


def test_worked_number():
    losses, mean = contrast(PROJECTIONS, CLASSES, 0.5, focal=True)
    assert losses.tolist() == pytest.approx([0.048529, 0.292160, 0.292160, 0.048529], abs=1e-6)
    assert float(mean) == pytest.approx(0.170345, abs=1e-6)
    assert float(contrast(PROJECTIONS, CLASSES, 0.5, focal=False)[1]) == pytest.approx(0.430190, abs=1e-6)


def test_worked_mining_and_mixes():
    features = torch.tensor([[1, 0.1], [0.9, 0.4], [0.1, 1], [0.3, 0.9]])
    hard_positive, hard_negative = hard_pairs(features, CLASSES, torch.arange(4))
    assert (hard_positive + 1).tolist() == [2, 1, 4, 3]
    assert (hard_negative + 1).tolist() == [4, 4, 2, 2]
    two = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    first, second = torch.tensor([0]), torch.tensor([1])
    torch.testing.assert_close(mix(two, second, first, torch.tensor([0.8])), torch.tensor([[0.2, 1.6]]))
    torch.testing.assert_close(mix(two, first, second, torch.tensor([0.3])), torch.tensor([[0.3, 1.4]]))


def test_supervised_contrast_of_many_equals_the_loops_and_is_larger_than_the_focal_one():
    torch.manual_seed(0)
    projections = functional.normalize(torch.randn(12, 4, dtype=torch.float64), dim=1)
    classes = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 1, 0])  # class 2 has one sample
    positives = [{j for j in range(12) if j != i and classes[i] == classes[j]} for i in range(12)]
    for focal in (True, False):
        losses, mean = contrast(projections, classes, 0.2, focal=focal)
        assert float(mean) == pytest.approx(literal_contrast(projections.tolist(), positives, 0.2, focal), rel=1e-10)
        assert losses[5] == 0
    focal, plain = (contrast(projections, classes, 0.2, focal=f)[0] for f in (True, False))
    assert ((focal >= 0) & (focal <= plain)).all()


def test_a_single_positive_that_takes_all_costs_nothing():
    apart = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]], dtype=torch.float64)
    assert float(contrast(apart, CLASSES, 0.05, focal=True)[1]) < 1e-12


def test_without_contrast_and_mixing_it_is_cross_entropy():
    tuned, data = learner(contrast_weight=0.0, mixing=False), {**batch(), "weight": torch.ones(8)}
    expected = functional.cross_entropy(tuned.head(tuned.backbone(data["input"])), data["target"])
    torch.testing.assert_close(tuned.train()(data).loss, expected)


def test_order_of_samples_does_not_matter_without_mixing():
    tuned, data, order = learner(mixing=False, contrast_weight=1.0), batch(), torch.randperm(8)
    torch.testing.assert_close(tuned(data).loss, tuned({key: value[order] for key, value in data.items()}).loss)


def test_mined_samples_have_the_class_they_should():
    torch.manual_seed(0)
    features, target = torch.rand(50, 6), torch.randint(0, 4, (50,))
    anchors = torch.arange(50)
    hard_positive, hard_negative = hard_pairs(features, target, anchors)
    assert torch.equal(target[hard_positive], target)
    assert (hard_positive != anchors).all()
    assert (target[hard_negative] != target).all()


def test_a_sample_without_its_like_or_without_others_takes_itself():
    features = torch.rand(3, 4)
    assert hard_pairs(features, torch.tensor([0, 0, 1]), torch.arange(3))[0].tolist() == [1, 0, 2]
    assert hard_pairs(features, torch.tensor([1, 1, 1]), torch.arange(3))[1].tolist() == [0, 1, 2]


def test_mixed_labels_sum_to_one_and_negatives_keep_the_share_of_their_partner():
    torch.manual_seed(0)
    tuned, data = learner(mix_alpha=0.5), batch()
    features, labels = tuned.backbone(data["input"]), functional.one_hot(data["target"], 3).float()
    negative, positive = tuned._mixes(features, data["target"], 8)
    for how in (negative, positive):
        torch.testing.assert_close(mix(labels, *how).sum(1), torch.ones(8))
    partner, own, share = negative
    assert own.tolist() == list(range(8))
    assert (partner != own).all()
    assert (mix(labels, *negative)[range(8), data["target"][partner]] >= 0.8 - 1e-6).all()
    assert float(share.max()) <= 1


def test_partners_are_all_the_others_equally_often():
    torch.manual_seed(0)
    found = torch.stack([other_samples(torch.arange(4), 4) for _ in range(3000)])
    for own in range(4):
        counts = torch.bincount(found[:, own], minlength=4)
        assert counts[own] == 0
        assert (counts[[k for k in range(4) if k != own]] - 1000).abs().max() < 130  # five standard deviations
    assert other_samples(torch.tensor([0]), 1).tolist() == [0]


def test_only_items_of_one_class_have_it():
    labels = torch.tensor([[1.0, 0], [0.9, 0.1], [0.7 + 0.3, 0.0], [0, 1]])
    assert pure_classes(labels).tolist() == [0, -1, 0, 1]
    # originals 0, 1 of classes 0, 1; negatives of class 0 and mixed; mixed positives
    found = positive_pairs(torch.tensor([0, 1, 0, -1, -1, -1]), torch.arange(6), 2)
    pairs = {tuple(pair) for pair in found.nonzero().tolist()}
    assert pairs == {(0, 2), (2, 0), (0, 4), (4, 0), (1, 5), (5, 1)}


def test_gradients_reach_everything_and_flow_through_the_weight_the_mixes_and_the_originals(fixed):
    tuned = learner(contrast_weight=1.0)
    tuned.train()(batch()).loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in tuned.parameters())
    projections = PROJECTIONS.clone().requires_grad_(True)
    own, positives = torch.arange(4), positive_pairs(CLASSES, torch.arange(4), None)

    def loss(r):
        return focal_contrast(r, r, positives, own, 0.5, focal=True)

    assert torch.autograd.gradcheck(loss, projections)  # against differences: 1 - p is not held fixed
    plain = learner(contrast_weight=0.0, mixing=False)
    plain.train()(batch()).loss.backward()
    assert plain.backbone.weight.grad.abs().sum() > 0
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in plain.projector.parameters())


def test_one_sample_tiny_temperature_and_half_precision_have_finite_gradients():
    for values, num in (({}, 1), ({"mixing": False}, 1), ({"temperature": 1e-4}, 8), ({"mixing": False}, 8)):
        tuned = learner(contrast_weight=1.0, **values)
        loss = tuned.train()(batch(num)).loss
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in tuned.parameters() if p.grad is not None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = learner(contrast_weight=1.0).train()(batch())
    assert step.loss.dtype == torch.float32
    assert torch.isfinite(step.loss)
    zero = batch()
    tuned = learner()
    with torch.no_grad():
        tuned.backbone.weight.zero_()
        tuned.backbone.bias.zero_()
    loss = tuned.train()(zero).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_the_exported_classifier_is_encoder_and_linear_head():
    tuned, inputs = learner(), batch()["input"]
    model = tuned.export().eval()
    torch.testing.assert_close(model(inputs), tuned.backbone(inputs) @ tuned.head.weight.T)
    assert tuned.head.bias is None


def test_every_parameter_is_in_one_group_and_the_encoder_has_its_own_rate():
    tuned = learner(backbone_lr_scale=0.1)
    groups = tuned.param_groups()
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in tuned.parameters())
    assert [group["lr_scale"] for group in groups] == [0.1, 1.0]


SCRIPT = """
    import sys
    import torch.distributed as dist
    from safetensors.torch import save_file
    from torch.nn.parallel import DistributedDataParallel
    from appssl.finetuners import core_tuning
    from tests.finetuners.test_core_tuning import Fixed, Plain, batch, learner, next_one
    number, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    core_tuning.Beta, core_tuning.other_samples = Fixed, next_one
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2)
    trained = DistributedDataParallel(Plain(learner(contrast_weight=1.0)))
    loss = trained({key: value[4 * number : 4 * number + 4] for key, value in batch().items()})
    loss.backward()
    save_file({"loss": loss.detach(), **{k: p.grad for k, p in trained.module.learner.named_parameters()}},
              f"{folder}/{number}.safetensors")
    dist.destroy_process_group()
"""


class Plain(nn.Module):
    """The loss as a plain tensor, which is what DDP looks for."""

    def __init__(self, learner):
        super().__init__()
        self.learner = learner

    def forward(self, data):
        return self.learner(data).loss


@pytest.mark.slow
def test_two_processes_have_the_loss_and_gradient_of_the_whole_batch(tmp_path, fixed):
    command, port = [sys.executable, "-c", textwrap.dedent(SCRIPT)], str(free_port())
    options = {"cwd": REPOSITORY, "env": environment(OMP_NUM_THREADS="1"), "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(n), port, str(tmp_path)], **options) for n in range(2)]
    for process in processes:
        _, text = process.communicate(timeout=120)
        assert process.returncode == 0, text
    two = [load_file(tmp_path / f"{n}.safetensors") for n in range(2)]
    alone = learner(contrast_weight=1.0)
    loss = alone(batch()).loss
    loss.backward()
    assert float(two[0]["loss"] + two[1]["loss"]) / 2 == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, parameter in alone.named_parameters():
        for found in two:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)  # float32


def test_wrong_settings_are_named():
    with pytest.raises(SettingsError, match="temperature is not valid: Input should be greater than 0"):
        validate(Config, {"temperature": 0}, file="r.yaml", owner="finetuners/core_tuning")
    with pytest.raises(SettingsError, match="Did you mean contrast_weight"):
        validate(Config, {"contrast_wight": 1.0}, file="r.yaml", owner="finetuners/core_tuning")
