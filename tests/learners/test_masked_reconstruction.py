import pytest
import torch
from pydantic import ValidationError
from torch import nn

from appssl.contracts import Context, Meta
from appssl.errors import DataError
from appssl.learners.masked_reconstruction import Config, build, masked_error, spans

META = Meta("test", "wearable", "classification")


class WithMap(nn.Module):
    """A map of half as many times, and its mean."""

    num_features = 3

    def __init__(self, channels=2):
        super().__init__()
        self.conv = nn.Conv1d(channels, 3, 4, stride=2, padding=1)

    def feature_map(self, x):
        return self.conv(x)

    def forward(self, x):
        return self.feature_map(x).mean(2)


class Pooled(nn.Module):
    num_features = 3

    def __init__(self, channels=2):
        super().__init__()
        self.conv = nn.Conv1d(channels, 3, 4, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x).mean(2)


def learner(backbone=None, size=12, **values):
    torch.manual_seed(0)
    network = backbone or WithMap()
    return build(Config(hidden=4, **values), Context(META, network, (2, size), num_samples=8))


def windows(num=5, size=12):
    return torch.randn(num, 2, size, generator=torch.Generator().manual_seed(1))


def literal_decoder(decoder, features):
    """(T, C) of a map (F, T'), value by value in float64; the stretching as in image resizing, edges repeated."""
    size, (width, times) = decoder.size, features.shape
    expand = decoder.expand.weight[:, :, 0].double(), decoder.expand.bias.double()
    rows = []
    for t in range(size):
        place = min(max((t + 0.5) * times / size - 0.5, 0), times - 1)
        low = min(int(place), max(times - 2, 0))
        high = min(low + 1, times - 1)
        at = [(1 - (place - low)) * features[f, low] + (place - low) * features[f, high] for f in range(width)]
        rows.append((expand[0] @ torch.stack(at) + expand[1] + decoder.position[:, t].double()).clamp(min=0))
    weight, bias = decoder.shrink.weight.double(), decoder.shrink.bias.double()
    half = weight.shape[2] // 2
    found = []
    for t in range(size):
        value = bias.clone()
        for k in range(weight.shape[2]):
            if 0 <= t + k - half < size:
                value = value + weight[:, :, k] @ rows[t + k - half]
        found.append(value)
    return torch.stack(found)


@pytest.mark.parametrize("backbone", [WithMap, Pooled])
@torch.no_grad()
def test_the_loss_is_the_equation_value_by_value(backbone):
    model, given = learner(backbone(), mask_ratio=0.3, unchanged=0.5), windows()
    torch.manual_seed(7)
    step = model({"views": [given[:2], given[2:]]})
    torch.manual_seed(7)
    hidden = spans(5, 12, 0.3, model.chance)
    whole = torch.rand(5, 1)[:, 0] < 0.5
    assert 0 < whole.sum() < 5
    total = zeros = 0.0
    for b in range(5):
        seen = given[b].double().clone()
        for t in range(12):
            if hidden[b, t] and not whole[b]:
                seen[:, t] = 0
        features = model.backbone.double().conv(seen[None])[0]
        if backbone is Pooled:
            features = features.mean(1, keepdim=True)
        found = literal_decoder(model.decoder, features)
        for t in range(12):
            if hidden[b, t]:
                total += float(((found[t] - given[b, :, t].double()) ** 2).sum()) / (5 * 4 * 2)
                zeros += float((given[b, :, t].double() ** 2).sum()) / (5 * 4 * 2)
    assert step.loss.item() == pytest.approx(total, rel=1e-5)
    assert step.metrics["error_of_zeros"].item() == pytest.approx(zeros, rel=1e-5)


def test_worked_error():
    """Hidden are times 0 and 2 of the first window: ((1-3)^2 + (0-1)^2 + 0 + (2-5)^2) / 4 = 3.5."""
    found = torch.tensor([[[1.0, 9, 4], [0, 9, 2]]])
    target = torch.tensor([[[3.0, 0, 4], [1, 0, 5]]])
    assert masked_error(found, target, torch.tensor([[True, False, True]])).item() == 3.5


def literal_spans(size, count, lengths, starts, rest):
    chosen = []
    for start, length in zip(starts, lengths, strict=True):
        for t in range(start, min(start + length, size)):
            if t not in chosen and len(chosen) < count:
                chosen.append(t)
    left = sorted((t for t in range(size) if t not in chosen), key=lambda t: rest[t])
    return sorted(chosen + left[: count - len(chosen)])


def test_spans_are_laid_down_one_after_the_other():
    size, ratio, chance = 20, 0.3, torch.tensor([0.5, 0.3, 0.2])
    torch.manual_seed(3)
    found = spans(200, size, ratio, chance)
    torch.manual_seed(3)
    lengths = 1 + torch.multinomial(chance, 200 * 6, replacement=True).reshape(200, 6)
    starts, rest = torch.randint(size, (200, 6, 1))[:, :, 0], torch.rand(200, size)
    for b in range(200):
        expected = literal_spans(size, 6, lengths[b].tolist(), starts[b].tolist(), rest[b].tolist())
        assert found[b].nonzero()[:, 0].tolist() == expected


@pytest.mark.parametrize(("size", "ratio", "count"), [(100, 0.15, 15), (7, 0.01, 1), (10, 0.25, 2), (3, 0.5, 2)])
def test_every_window_has_as_many_hidden_times(size, ratio, count):
    torch.manual_seed(0)
    chance = torch.tensor([0.1, 0.9])
    assert spans(300, size, ratio, chance).sum(1).tolist() == [count] * 300


def test_lengths_have_a_geometric_chance_up_to_the_longest():
    assert learner(span_stop=0.5, longest_span=3).chance.tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert learner().chance.tolist() == pytest.approx([0.2 * 0.8**k / (1 - 0.8**10) for k in range(10)])
    assert learner(span_stop=1.0).chance.tolist() == [1.0] + [0.0] * 9


def test_longer_spans_make_fewer_pieces():
    torch.manual_seed(0)
    ones, tens = (spans(400, 100, 0.2, torch.eye(10)[k]) for k in (0, 9))
    pieces = [(m[:, 1:] & ~m[:, :-1]).sum() + m[:, 0].sum() for m in (ones, tens)]
    assert 14 < pieces[0] / 400 < 18.5  # 20 single times, some of them neighbors
    assert pieces[1] / 400 < 4


def test_what_is_hidden_is_not_seen_and_what_is_not_hidden_has_no_loss():
    model, given = learner(unchanged=0.0), windows()
    torch.manual_seed(2)
    hidden = spans(5, 12, 0.15, model.chance)
    changed = given + 100 * hidden[:, None]
    outputs = []
    model.decoder.register_forward_hook(lambda _, __, found: outputs.append(found.detach()))
    for values in (given, changed):
        torch.manual_seed(2)
        model({"views": [values]})
    assert torch.equal(*outputs)
    found = torch.randn(5, 2, 12, requires_grad=True)
    masked_error(found, given, hidden).backward()
    assert (found.grad.abs().sum(1) > 0).equal(hidden)


def test_a_perfect_decoder_costs_nothing_and_a_silent_one_the_power():
    given = windows()
    hidden = torch.rand(5, 12) < 0.5
    assert masked_error(given, given, hidden).item() == 0
    model = learner()
    nn.init.zeros_(model.decoder.shrink.weight)
    nn.init.zeros_(model.decoder.shrink.bias)
    step = model({"views": [given]})
    assert step.loss.item() == pytest.approx(step.metrics["error_of_zeros"].item())


@pytest.mark.parametrize("backbone", [WithMap, Pooled])
def test_gradients_reach_the_encoder_and_the_decoder_and_the_encoder_is_kept(backbone):
    model = learner(backbone())
    model({"views": [windows()]}).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert model.export() is model.backbone


def test_a_single_window_and_bfloat16_are_taken():
    model = learner()
    assert torch.isfinite(model({"views": [windows(1)]}).loss)
    hidden = torch.ones(1, 1, dtype=torch.bool)
    large = torch.full((1, 1, 1), 300.0, dtype=torch.float16)  # its square is beyond float16
    assert masked_error(large, torch.zeros_like(large), hidden).item() == 90_000


def test_what_it_cannot_take_is_refused():
    with pytest.raises(DataError, match=r"needs signals \(C, T\).*\(3, 32, 32\)"):
        build(Config(), Context(META, WithMap(), (3, 32, 32), num_samples=8))
    with pytest.raises(DataError, match=r"have 1 samples, and mask_ratio 0.15 leaves none"):
        learner(size=1)
    with pytest.raises(ValidationError, match="must be odd"):
        Config(kernel=4)
