"""The loss is compared with transcriptions in tests/learners/test_dino.py and test_swav.py."""

import pytest
import torch

from appssl.ops.distillation import cross_entropy_of_crops, moved_center, risen


def test_a_crop_never_predicts_itself_and_every_other_pair_counts_once():
    """With one-hot targets each pair costs -log of one probability."""
    first, second = torch.eye(3)[[0]], torch.eye(3)[[1]]
    logits = [torch.log(torch.tensor([row])) for row in ([0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5])]
    found = cross_entropy_of_crops(logits, [first, second], temperature=1.0)
    chosen = torch.tensor([0.1, 0.25, 0.3, 0.25])  # (0, 1), (0, 2), (1, 0), (1, 2)
    assert float(found) == pytest.approx(float(-chosen.log().mean()))


def test_no_gradient_flows_through_targets():
    logits = [torch.randn(4, 3, requires_grad=True) for _ in range(2)]
    targets = [torch.full((4, 3), 1 / 3, requires_grad=True) for _ in range(2)]
    cross_entropy_of_crops(logits, targets, temperature=0.5).backward()
    assert all(z.grad.abs().sum() > 0 for z in logits)
    assert all(t.grad is None for t in targets)


def test_the_center_moves_towards_the_mean_over_everything():
    logits, center = torch.randn(2, 5, 4), torch.randn(4)
    found = moved_center(center, logits, 0.8)
    torch.testing.assert_close(found, 0.8 * center + 0.2 * logits.reshape(10, 4).mean(0))


def test_a_line_up_to_the_end_of_the_warmup():
    assert [risen(1.0, 3.0, step, 4) for step in (0, 1, 4, 9)] == pytest.approx([1, 1.5, 3, 3])
    assert risen(1.0, 3.0, 0, 0) == 3
