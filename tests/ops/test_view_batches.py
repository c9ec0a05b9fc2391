import pytest
import timm
import torch
from torch import nn

from appssl.errors import SettingsError
from appssl.ops.view_batches import of_each_view


class Recorder:
    """The sum and the count of every image; remembers the batches it was given."""

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        self.seen.append(tuple(images.shape))
        return torch.stack([images.flatten(1).sum(1), torch.full((len(images),), float(images[0].numel()))], dim=1)


def test_outputs_are_in_the_order_of_the_views_and_each_size_is_one_batch():
    torch.manual_seed(0)
    views = [torch.randn(3, 1, side, side) for side in (8, 4, 8, 6, 4)]
    network = Recorder()
    found = of_each_view(network, views)
    assert sorted(network.seen) == [(3, 1, 6, 6), (6, 1, 4, 4), (6, 1, 8, 8)]
    for view, output in zip(views, found, strict=True):
        torch.testing.assert_close(output[:, 0], view.flatten(1).sum(1))
        assert output[0, 1] == view[0].numel()


def test_batch_normalization_does_not_mix_sizes():
    norm = nn.BatchNorm1d(2, affine=False).train()
    views = [torch.randn(5, 2), torch.randn(5, 2)]
    together = of_each_view(norm, views)
    torch.testing.assert_close(torch.cat(together).mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    apart = of_each_view(lambda x: norm(x.flatten(1)[:, :2]), [views[0], views[1].reshape(5, 2, 1)])
    for output in apart:
        torch.testing.assert_close(output.mean(0), torch.zeros(2), atol=1e-6, rtol=0)


def test_a_transformer_of_one_size_is_refused_with_the_option_it_needs():
    tiny = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1, "num_classes": 0, "img_size": 16}
    views = [torch.randn(2, 3, 16, 16), torch.randn(2, 3, 8, 8)]
    with pytest.raises(SettingsError, match=r"no views of shape \(3, 8, 8\).*dynamic_img_size: true"):
        of_each_view(timm.create_model("vit_tiny_patch16_224", **tiny), views)
    found = of_each_view(timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **tiny), views)
    assert [tuple(z.shape) for z in found] == [(2, 8), (2, 8)]
