import pytest
import timm
import torch
from torch import nn

from appssl.contracts import Context, Meta
from appssl.errors import SettingsError
from appssl.learners.mae import Config, build, masked_mean_square, normalized_patches
from appssl.ops.masked_patches import pixels_of_patches, sine_positions

META = Meta("test", "webnoisy", "classification")
SHAPE = (3, 16, 16)
TARGET = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.9, 0.1, 0.5, 0.5], [0, 0, 1, 1]]], dtype=torch.float64)
REC = torch.tensor([[[0, 0, 0, 0], [0.5, -1, 0.2, 0.1], [-1, -0.8, 0.9, 0.7]]], dtype=torch.float64)
MASK = torch.tensor([[False, True, True]])


def vit(**options):
    torch.manual_seed(0)
    tiny = {"patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 0, "img_size": 16}
    return timm.create_model("vit_tiny_patch16_224", **{**tiny, **options})


def learner(backbone=None, **values):
    given = {"decoder_width": 8, "decoder_blocks": 1, "decoder_heads": 2, **values}
    return build(Config(**given), Context(META, backbone or vit(), SHAPE, 8, 1))


def images(size=5, seed=0):
    return torch.randn(size, *SHAPE, generator=torch.Generator().manual_seed(seed))


def literal(prediction, target, mask, normalize):
    """Mean over hidden patches, pixel by pixel."""
    terms = []
    for b in range(len(mask)):
        for i in range(mask.shape[1]):
            if not mask[b, i]:
                continue
            x = [float(v) for v in target[b, i]]
            if normalize:
                mean = sum(x) / len(x)
                var = sum((v - mean) ** 2 for v in x) / (len(x) - 1)
                x = [(v - mean) / (var + 1e-6) ** 0.5 for v in x]
            terms.append(sum((float(r) - v) ** 2 for r, v in zip(prediction[b, i], x, strict=True)) / len(x))
    return sum(terms) / len(terms)


def test_the_worked_numbers():
    assert float(masked_mean_square(REC, normalized_patches(TARGET), MASK)) == pytest.approx(0.084598, abs=1e-6)
    assert float(masked_mean_square(REC, TARGET, MASK)) == pytest.approx(0.42, abs=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_step_equals_the_transcription(normalize):
    model, x = learner(normalize_pixels=normalize).eval(), images()
    torch.manual_seed(7)
    found = model({"views": [x]}).loss
    torch.manual_seed(7)
    order = torch.rand(5, 16).argsort(dim=1)
    mask = torch.zeros(5, 16, dtype=torch.bool)
    for b in range(5):
        mask[b, order[b, :12]] = True  # 0.75 of 16
    target, rec = pixels_of_patches(x, (4, 4)), model.reconstruct(x, mask).detach()
    assert float(found.detach()) == pytest.approx(literal(rec, target, mask, normalize), rel=1e-5)


def a_mask(size=5, hidden=12):
    mask = torch.zeros(size, 16, dtype=torch.bool)
    for b in range(size):
        mask[b, torch.randperm(16, generator=torch.Generator().manual_seed(b))[:hidden]] = True
    return mask


def test_one_image_written_out_token_by_token():
    """The encoder sees shown patches with their positions; the decoder gets every token back in its place."""
    model, x, mask = learner().eval(), images(1), a_mask(1)
    net = model.backbone
    patches = net.patch_embed(x)[0]
    tokens = [net.cls_token[0, 0] + net.pos_embed[0, 0]]
    tokens += [patches[i] + net.pos_embed[0, 1 + i] for i in range(16) if not mask[0, i]]
    encoded = model.embed(net.norm(net.blocks(torch.stack(tokens)[None])))[0]
    left = list(encoded[1:])
    full = [(model.mask_token if mask[0, i] else left.pop(0)) + model.positions[i] for i in range(16)]
    expected = model.predict(model.decoder(torch.stack([encoded[0], *full])[None]))[0, 1:]
    torch.testing.assert_close(model.reconstruct(x, mask)[0], expected)


def test_hidden_pixels_are_not_seen_and_shown_ones_are():
    model, x, mask = learner().eval(), images(), a_mask()
    other = images(seed=1)
    hidden = mask.reshape(5, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(model.reconstruct(torch.where(hidden, other, x), mask), model.reconstruct(x, mask))
    assert not torch.allclose(model.reconstruct(torch.where(hidden, x, other), mask), model.reconstruct(x, mask))


def test_shown_patches_do_not_count_in_the_loss():
    changed = REC.clone()
    changed[0, 0] = 100
    assert masked_mean_square(changed, TARGET, MASK) == masked_mean_square(REC, TARGET, MASK)


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"reg_tokens": 2}, {"dynamic_img_size": True}])
def test_gradients_reach_everything_that_is_trained(options):
    """Also across processes, which must agree on what has a gradient."""
    model = learner(vit(**options))
    model({"views": [images(), images(seed=1)]}).loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert model.backbone.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_positions_are_sines_and_stay_or_are_those_of_the_backbone():
    fixed = learner().backbone
    assert torch.equal(fixed.pos_embed[0, 1:], sine_positions((4, 4), 8))
    assert (fixed.pos_embed[0, 0] == 0).all()
    assert not fixed.pos_embed.requires_grad
    free = learner(fixed_positions=False).backbone
    assert free.pos_embed.requires_grad
    assert torch.equal(free.pos_embed, vit().pos_embed)


def test_flat_patches_half_precision_state_and_export():
    model, x = learner(), torch.ones(2, *SHAPE)
    assert torch.isfinite(model({"views": [x]}).loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model({"views": [images()]}).loss
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    again = learner()
    again.load_state_dict(model.state_dict())
    losses = []
    for each in (again, model):
        torch.manual_seed(3)
        losses.append(each({"views": [images()]}).loss)
    assert torch.equal(*losses)
    assert model.export()(images()).shape == (5, 8)


def test_what_it_cannot_be_is_refused():
    with pytest.raises(SettingsError, match=r"learners/mae needs the patches of a vision transformer; .*Linear"):
        learner(nn.Linear(3, 3))
    with pytest.raises(SettingsError, match=r"decoder_heads 3 does not divide learner\.decoder_width 8"):
        learner(decoder_heads=3)
    with pytest.raises(SettingsError, match=r"mask_ratio 0\.75 hides 1 of 1 patches"):
        learner(vit(patch_size=16))
