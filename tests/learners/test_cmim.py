"""cMIM equals its equations written out, the worked numbers, its limits, and itself across two processes."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from appssl.backbones import encoder_decoder
from appssl.contracts import Context, Meta
from appssl.errors import DataError, SettingsError
from appssl.learners.cmim import CMIM, Config, build, codes_apart
from tests.processes import on_two

META = Meta("test", "wearable", "classification")
SHAPE = (2, 16)
CODES = torch.tensor([[1, 0], [1, 1], [-1, 0.5]], dtype=torch.float64)


class Toy(nn.Module):
    """Moments that are given, and a decoder that gives the code."""

    width = 2

    def __init__(self, mean, log_variance):
        super().__init__()
        self.mean = nn.Parameter(mean)
        self.log_variance = nn.Parameter(log_variance)

    def encode(self, inputs):
        return self.mean, self.log_variance

    def decode(self, codes):
        return codes


MEAN = torch.tensor([[0.5, 0], [1, 1], [-1, 0.5]], dtype=torch.float64)
NOISE = torch.tensor([[[0.3, -0.2], [0, 0.1], [-0.5, 0.4]]], dtype=torch.float64)
X = torch.tensor([[0.4, 0.1], [0.9, 1.2], [-1.1, 0.3]], dtype=torch.float64)


def toy(log_variance=-1.0, **values):
    model = CMIM(Config(**values), Toy(MEAN.clone(), torch.full_like(MEAN, log_variance)))
    return model, model.step([X], NOISE)


def learner(views=1, shape=SHAPE, **values):
    torch.manual_seed(0)
    settings = encoder_decoder.Config(encoder={"name": "cnn1d", "widths": [4, 6]}, width=3, hidden=8)
    backbone = encoder_decoder.build(settings, shape, META)
    return build(Config(**values), Context(META, backbone, shape, 8, views))


def signals(size=5, count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, *SHAPE, generator=generator) for _ in range(count)]


def density(values, means, deviations):
    """Sum of logs of normal densities, value by value."""
    terms = zip(values.flatten(), means.flatten(), deviations.flatten(), strict=True)
    return sum(
        -(((float(v) - float(m)) / float(s)) ** 2) / 2 - math.log(float(s) * math.sqrt(2 * math.pi))
        for v, m, s in terms
    )


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def literal_apart(codes, positives, tau):
    """-log p_i of codes (V, B, d) with cosines of positives (V, B); negatives are all views of other samples."""
    found = torch.zeros(codes.shape[:2], dtype=torch.float64)
    for v in range(len(codes)):
        for i in range(codes.shape[1]):
            others = [
                math.exp(cosine(codes[v, i], codes[w, j]) / tau)
                for w in range(len(codes))
                for j in range(codes.shape[1])
                if j != i
            ]
            own = math.exp(float(positives[v, i]) / tau)
            found[v, i] = -math.log(own / (own + sum(others) / len(others)))
    return found


@pytest.mark.parametrize("positive", ["itself", "sample", "view"])
@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_the_contrastive_factor_equals_the_transcription(positive, tau):
    torch.manual_seed(1)
    codes = torch.randn(2 if positive == "sample" else 1, 3, 4, 5, dtype=torch.float64)
    positives = torch.ones(3, 4)
    for v in range(3):
        for i in range(4):
            if positive != "itself":
                other = codes[1, v, i] if positive == "sample" else codes[0, (v + 1) % 3, i]
                positives[v, i] = cosine(codes[0, v, i], other)
    found = codes_apart(codes, positive, temperature=tau)
    torch.testing.assert_close(found, literal_apart(codes[0], positives, tau), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("estimator", ["asymmetric", "decoder_marginal", "elbo"])
def test_the_step_equals_the_transcription(estimator):
    model = learner(2, estimator=estimator, contrast_weight=0.7, temperature=0.5, decoder_std=0.8).double().eval()
    views = [view.double() for view in signals(4, 2)]
    noise = torch.randn(1, 8, 3, dtype=torch.float64)
    found = model.step(views, noise)
    total, of_inputs, codes = 0.0, 0.0, []
    with torch.no_grad():
        mean, log_variance = model.backbone.encode(torch.cat(views))
        for n, x in enumerate(torch.cat(views)):
            deviation = (log_variance[n] / 2).exp()
            z = mean[n] + deviation * noise[0, n]
            codes.append(z)
            decoded = model.backbone.decode(z[None])[0]
            of_input = density(x, decoded, torch.full_like(x, 0.8))
            of_posterior = density(z, mean[n], deviation)
            of_prior = density(z, torch.zeros(3), torch.ones(3))
            total -= {
                "asymmetric": of_input + (of_posterior + of_prior) / 2,
                "decoder_marginal": of_input + of_prior,
                "elbo": of_input + of_prior - of_posterior,
            }[estimator]
            of_inputs -= of_input
    apart = float(literal_apart(torch.stack(codes).reshape(2, 4, 3), torch.ones(2, 4), 0.5).mean())
    assert float(found.loss.detach()) == pytest.approx(total / 8 + 0.7 * apart, rel=1e-9)
    assert float(found.metrics["loss_likelihood"]) == pytest.approx(total / 8, rel=1e-9)
    assert float(found.metrics["loss_contrast"]) == pytest.approx(apart, rel=1e-6)
    assert float(found.metrics["reconstruction"]) == pytest.approx(of_inputs / 8, rel=1e-9)


def test_the_worked_numbers():
    found = codes_apart(CODES[None, None], "itself", temperature=1.0)
    assert (-found).exp()[0].tolist() == pytest.approx([0.690487, 0.663516, 0.826942], abs=1e-6)
    assert float(found.mean()) == pytest.approx(0.323527, abs=1e-6)
    sharp = codes_apart(CODES[None, None], "itself", temperature=0.1)
    assert (-sharp).exp()[0].tolist() == pytest.approx([0.973969, 0.973968, 0.999999], abs=1e-6)
    assert float(sharp.mean()) == pytest.approx(0.017585, abs=1e-6)
    _, step = toy()
    assert float(step.metrics["loss_likelihood"]) == pytest.approx(3.692002, abs=1e-6)
    assert float(step.metrics["loss_contrast"]) == pytest.approx(0.302135, abs=1e-6)
    assert float(step.loss.detach()) == pytest.approx(3.994137, abs=1e-6)
    assert float(toy(estimator="elbo")[1].metrics["loss_likelihood"]) == pytest.approx(3.621187, abs=1e-6)


@pytest.mark.parametrize("batch", [2, 3, 50])
def test_collapse_costs_log_2_whatever_the_batch_and_nothing_costs_more(batch):
    equal = torch.ones(1, 1, batch, 4, dtype=torch.float64)
    torch.testing.assert_close(
        codes_apart(equal, "itself", temperature=0.3), torch.full((1, batch), math.log(2)).double()
    )
    torch.manual_seed(batch)
    found = codes_apart(torch.randn(1, 1, batch, 4, dtype=torch.float64), "itself", temperature=0.3)
    assert (found < math.log(2)).all()
    assert (found > math.log1p(math.exp(-2 / 0.3))).all()


def test_opposite_codes_reach_the_other_end():
    found = codes_apart(torch.tensor([[[[2.0, 0.0], [-3.0, 0.0]]]], dtype=torch.float64), "itself", temperature=1.0)
    assert (-found).exp()[0].tolist() == pytest.approx([0.880797] * 2, abs=1e-6)


def test_twice_as_many_negatives_change_nothing_but_would_in_infonce():
    """With a sum in place of the mean, p = 1 / (1 + (B - 1)(1/p - 1)), which is a cross-entropy."""
    torch.manual_seed(2)
    codes = torch.randn(1, 1, 6, 4, dtype=torch.float64)
    doubled = torch.cat([codes, codes[:, :, 1:]], dim=2)  # those of the first sample
    once, twice = (codes_apart(each, "itself", temperature=1.0)[0, 0] for each in (codes, doubled))
    torch.testing.assert_close(once, twice)
    summed = [-(1 / (1 + n * (once.exp() - 1))).log() for n in (5, 10)]
    unit = functional.normalize(codes[0, 0], dim=1)
    infonce = functional.cross_entropy((unit[:1] @ unit.T), torch.tensor([0]))
    torch.testing.assert_close(summed[0], infonce)
    assert 0.4 < float(summed[1] - summed[0]) < math.log(2)


def test_lengths_do_not_matter_to_the_contrast_and_do_to_the_likelihood():
    codes = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(3)).double()
    longer = codes * (1 + 9 * torch.rand(1, 2, 5, 1, dtype=torch.float64))
    for positive in ("itself", "view"):
        found = [codes_apart(each, positive, temperature=0.5) for each in (codes, longer)]
        torch.testing.assert_close(*found)
    order = torch.randperm(5)
    torch.testing.assert_close(
        codes_apart(codes[:, :, order], "itself", temperature=0.5),
        codes_apart(codes, "itself", temperature=0.5)[:, order],
    )
    assert float(toy()[1].metrics["reconstruction"]) != pytest.approx(float(toy(0.0)[1].metrics["reconstruction"]))


def test_a_high_temperature_leaves_plain_mim_and_log_2():
    plain = toy(contrast_weight=0.0)[1]
    assert float(plain.loss.detach()) == float(plain.metrics["loss_likelihood"])
    hot = toy(temperature=1e9)[1]
    assert float(hot.loss.detach()) == pytest.approx(float(plain.loss.detach()) + math.log(2), abs=1e-8)


@pytest.mark.parametrize(("estimator", "slope"), [("asymmetric", 2 / 4), ("decoder_marginal", 0), ("elbo", -2 / 2)])
def test_certain_codes_are_rewarded_where_an_autoencoder_punishes_them(estimator, slope):
    """With codes that do not depend on the variance (noise 0), the loss has the slope d/4 per unit of log sigma^2."""
    model = CMIM(Config(estimator=estimator), Toy(MEAN.clone(), torch.zeros_like(MEAN)))
    model.step([X], torch.zeros_like(NOISE)).loss.backward()
    assert float(model.backbone.log_variance.grad.sum()) == pytest.approx(slope, abs=1e-12)


def test_the_gradient_turns_codes_and_is_right():
    torch.manual_seed(4)
    for positive in ("itself", "sample", "view"):
        codes = torch.randn(2 if positive == "sample" else 1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda z, p=positive: codes_apart(z, p, temperature=0.5).mean(), codes)
        codes_apart(codes, positive, temperature=0.5).mean().backward()
        torch.testing.assert_close((codes.grad * codes).sum(-1), torch.zeros(codes.shape[:-1]).double())
        assert (codes.grad.norm(dim=-1) > 0).all()


def test_codes_are_pushed_as_anchors_and_as_negatives():
    """The first code has a gradient also from the terms of the others."""
    codes = CODES[None, None].clone().requires_grad_(True)
    codes_apart(codes, "itself", temperature=1.0)[0, 1:].sum().backward()
    assert codes.grad[0, 0, 0].abs().sum() > 0


@pytest.mark.parametrize("positive", ["itself", "sample", "view"])
def test_gradients_reach_everything(positive):
    model = learner(2, positive=positive)
    model({"views": signals(count=2)}).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert model.backbone.output.weight.grad.abs().sum() > 0
    assert model.backbone.moments.weight.grad[3:].abs().sum() > 0  # of log variances


def test_noise_is_standard_normal_and_of_every_code():
    model, seen = learner(2, positive="sample"), []
    model.step = lambda views, noise: seen.append(noise)
    torch.manual_seed(0)
    model({"views": signals(2000, 2)})
    assert seen[0].shape == (2, 4000, 3)
    assert float(seen[0].mean()) == pytest.approx(0, abs=0.03)
    assert float(seen[0].std()) == pytest.approx(1, abs=0.03)


def test_state_zero_codes_and_half_precision():
    model, views = learner(), signals()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(3)
        rounded = model({"views": views}).loss
    assert rounded.dtype == torch.float32
    torch.manual_seed(3)
    assert float(rounded.detach()) == pytest.approx(float(model({"views": views}).loss.detach()), rel=0.02)
    again = learner()
    again.load_state_dict(model.state_dict())
    losses = []
    for each in (again, model):
        torch.manual_seed(3)
        losses.append(each.eval()({"views": views}).loss)
    assert torch.equal(*losses)
    assert model.export() is model.backbone
    codes = torch.zeros(1, 1, 3, 2, requires_grad=True)
    found = codes_apart(codes, "itself", temperature=1.0)
    found.sum().backward()
    assert float(found[0, 0].detach()) == pytest.approx(math.log1p(math.exp(-1)))  # cosines of zero are 0
    assert torch.isfinite(codes.grad).all()


def test_what_it_cannot_be_is_refused():
    with pytest.raises(DataError, match=r"needs two or more samples in a batch, got 1\. Raise fit\.batch_size"):
        learner()({"views": signals(1)})
    with pytest.raises(
        SettingsError, match=r"this backbone \(Linear\) has no decoder\. Set backbone: .*encoder_decoder"
    ):
        build(Config(), Context(META, nn.Linear(3, 3), SHAPE, 8, 1))
    with pytest.raises(SettingsError, match=r"learner\.positive: view needs two or more views: set num_views"):
        learner(positive="view")


def one_step(mine):
    """Loss and gradients of these rows of a batch; without batch statistics."""
    model = learner(2, positive="view").double().eval()
    noise = torch.randn(1, 2, 6, 3, generator=torch.Generator().manual_seed(5)).double()
    views = [view[mine].double() for view in signals(6, 2)]
    loss = model.step(views, noise[:, :, mine].flatten(1, 2)).loss
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


def test_two_processes_are_as_one(tmp_path):
    parts = on_two(one_step, tmp_path, each=3)
    for key, value in one_step(slice(0, 6)).items():
        torch.testing.assert_close((parts[0][key] + parts[1][key]) / 2, value, rtol=1e-9, atol=1e-12)
