import pytest
import torch
from torch import nn

from appssl.contracts import Context
from appssl.errors import SettingsError
from appssl.learners.simmim import Config, build, masked_mean_absolute, random_squares
from appssl.ops.masked_patches import pixels_of_patches
from tests.learners.test_mae import MASK, META, REC, SHAPE, TARGET, images, vit


def learner(backbone=None, **values):
    torch.manual_seed(0)
    return build(Config(**values), Context(META, backbone or vit(), SHAPE, 8, 1))


def a_mask(size=5):
    torch.manual_seed(2)
    return random_squares(size, (4, 4), 2, 0.6, torch.device("cpu"))


def test_the_worked_number():
    assert float(masked_mean_absolute(REC, TARGET, MASK, channels=1)) == pytest.approx(0.549999, abs=1e-6)


def test_the_step_equals_the_loss_written_out_over_pixels():
    model, x = learner().eval(), images()
    torch.manual_seed(2)
    found = float(model({"views": [x]}).loss.detach())
    mask = a_mask()
    rec = model.reconstruct(x, mask).detach().double()
    target = pixels_of_patches(x, (4, 4)).double()
    total = sum(float((rec[b, i] - target[b, i]).abs().sum()) for b in range(5) for i in range(16) if mask[b, i])
    expected = total / (int(mask.sum()) * 16 + 1e-5) / 3
    assert found == pytest.approx(expected, rel=1e-5)


def test_squares_are_hidden_as_a_whole_and_their_number_is_rounded_up():
    mask = random_squares(200, (4, 6), 2, 0.6, torch.device("cpu")).reshape(200, 2, 2, 3, 2)
    squares = mask[:, :, 0, :, 0]
    assert (mask == squares[:, :, None, :, None]).all()
    assert (squares.flatten(1).sum(1) == 4).all()  # 0.6 of 6 is 3.6
    assert squares.any(0).all()
    assert not squares.all(0).any()


def test_one_image_written_out_token_by_token():
    model, x, mask = learner().eval(), images(1), a_mask(1)
    net = model.backbone
    patches = net.patch_embed(x)[0]
    seen = torch.stack([model.mask_token if mask[0, i] else patches[i] for i in range(16)])
    tokens = torch.cat([net.cls_token[0], seen]) + net.pos_embed[0]
    expected = model.predict(net.norm(net.blocks(tokens[None])))[0, 1:]
    torch.testing.assert_close(model.reconstruct(x, mask)[0], expected)


def test_hidden_pixels_are_not_seen_and_shown_patches_do_not_count():
    model, x, mask = learner().eval(), images(), a_mask()
    hidden = mask.reshape(5, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = torch.where(hidden, images(seed=1), x)
    assert torch.equal(model.reconstruct(other, mask), model.reconstruct(x, mask))
    changed = REC.clone()
    changed[0, 0] = 100
    same = [masked_mean_absolute(rec, TARGET, MASK, channels=1) for rec in (changed, REC)]
    assert same[0] == same[1]


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"dynamic_img_size": True}])
def test_gradients_reach_everything_that_is_trained(options):
    model = learner(vit(**options))
    model({"views": [images(), images(seed=1)]}).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert model.mask_token.grad.abs().sum() > 0
    assert model.backbone.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_half_precision_and_export():
    model = learner()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model({"views": [images()]}).loss
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert model.export()(images()).shape == (5, 8)


def test_what_it_cannot_be_is_refused():
    with pytest.raises(SettingsError, match=r"learners/simmim needs the patches of a vision transformer; .*Linear"):
        learner(nn.Linear(3, 3))
    with pytest.raises(SettingsError, match=r"mask_unit 3 does not divide the 4 x 4 patches"):
        learner(mask_unit=3)
    with pytest.raises(SettingsError, match=r"mask_ratio 0\.6 hides all 1 squares"):
        learner(mask_unit=4)
