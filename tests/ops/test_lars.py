"""The update equals the equation written out in float64, matrix by matrix."""

import numpy as np
import pytest
import torch
from torch import nn

from appssl.ops.lars import LARS


def literal(w, gradients, *, lr, momentum, decay, trust):
    """One parameter after these gradients; vectors are neither decayed nor scaled."""
    w, v = np.array(w, np.float64), 0.0
    for g in gradients:
        g = np.array(g, np.float64)
        if w.ndim > 1:
            g = g + decay * w
            g = trust * np.sqrt((w**2).sum()) / np.sqrt((g**2).sum()) * g
        v = momentum * v + g
        w = w - lr * v
    return w


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 3, 3), (5,), ()])
def test_equals_the_equation(shape):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=shape), [rng.normal(size=shape) for _ in range(4)]
    parameter = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = LARS([parameter], lr=0.3, momentum=0.8, weight_decay=0.01, trust=0.02)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    expected = literal(start, gradients, lr=0.3, momentum=0.8, decay=0.01, trust=0.02)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12)


def test_a_matrix_moves_by_a_share_of_its_length_whatever_the_gradient():
    for scale in (1e-6, 1.0, 1e6):
        parameter = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        before = parameter.detach().clone()
        parameter.grad = scale * torch.ones(2, 2)
        LARS([parameter], lr=0.5, trust=0.1).step()
        assert (parameter.detach() - before).norm().item() == pytest.approx(0.5 * 0.1 * 5, rel=1e-5)


def test_nothing_is_divided_by_zero():
    for start, gradient in ((torch.zeros(2, 2), torch.ones(2, 2)), (torch.ones(2, 2), torch.zeros(2, 2))):
        parameter = nn.Parameter(start.clone())
        parameter.grad = gradient
        LARS([parameter], lr=0.1).step()
        torch.testing.assert_close(parameter.detach(), start - 0.1 * gradient)


def test_parameters_without_gradient_stay_and_the_state_goes_round():
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([used, unused], lr=0.1)
    used.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(unused.detach(), torch.ones(2, 2))
    again = LARS([used, unused], lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.state[used]["velocity"], optimizer.state[used]["velocity"])
