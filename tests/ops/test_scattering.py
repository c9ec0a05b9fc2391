"""The scattering transform equals its definition by convolution sums, and has its properties."""

import cmath
import math

import numpy as np
import pytest
import torch

from appssl.errors import DataError
from appssl.ops.scattering import FilterBank, filter_bank, num_maps, scatter


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def literal_filter(value, height, width):
    """A function of (row, column), summed over 13 periods of each side by loops, as {(row, column): value}."""
    return {
        (row, column): sum(value(row + a * height, column + b * width) for a in range(-6, 7) for b in range(-6, 7))
        for row in range(height)
        for column in range(width)
    }


def literal_psi(height, width, scales, angles):
    found = {}
    for j in range(scales):
        sigma, xi, slant = 0.8 * 2**j, 3 * math.pi / 4 / 2**j, 4 / angles
        for l in range(angles):  # noqa: E741
            turn = (angles / 2 - 1 - l) * math.pi / angles

            def envelope(row, column, sigma=sigma, slant=slant, turn=turn):
                along = math.cos(turn) * row + math.sin(turn) * column
                across = -math.sin(turn) * row + math.cos(turn) * column
                size = math.exp(-(along**2) / (2 * sigma**2) - (slant * across) ** 2 / (2 * sigma**2))
                return size / (2 * math.pi * sigma**2 / slant)

            def wave(row, column, xi=xi, turn=turn, envelope=envelope):
                phase = xi * (math.cos(turn) * row + math.sin(turn) * column)
                return envelope(row, column) * cmath.exp(1j * phase)

            g, w = (literal_filter(f, height, width) for f in (envelope, wave))
            beta = sum(w.values()) / sum(g.values())
            found[j, l] = {place: w[place] - beta * g[place] for place in g}
    return found


def literal_phi(height, width, scales):
    sigma = 0.8 * 2 ** (scales - 1)
    phi = literal_filter(lambda a, b: math.exp(-(a**2 + b**2) / (2 * sigma**2)), height, width)
    total = sum(phi.values())
    return {place: value / total for place, value in phi.items()}


def convolved(image, kernel):
    height, width = image.shape
    out = np.zeros(image.shape, complex)
    for row in range(height):
        for column in range(width):
            for (a, b), value in kernel.items():
                out[row, column] += value * image[(row - a) % height, (column - b) % width]
    return out


def literal(image, scales, angles):
    """(maps, H / 2^J, W / 2^J) by sums over pixels."""
    psi, phi = literal_psi(*image.shape, scales, angles), literal_phi(*image.shape, scales)
    first = {key: abs(convolved(image, psi[key])) for key in psi}
    second = {(one, other): abs(convolved(first[one], psi[other])) for one in psi for other in psi if other[0] > one[0]}
    step = 2**scales
    return np.stack([convolved(x, phi).real[::step, ::step] for x in (image, *first.values(), *second.values())])


@pytest.mark.parametrize(
    ("scales", "angles", "height", "width"), [(1, 3, 6, 8), (2, 2, 8, 8), (2, 4, 8, 12), (3, 1, 8, 16)]
)
def test_equals_convolution_sums_in_float64(scales, angles, height, width):
    image = noise(height, width)
    found = scatter(image[None], filter_bank(height, width, scales=scales, angles=angles))[0]
    expected = literal(image.numpy(), scales, angles)
    assert found.shape == expected.shape == (num_maps(scales, angles), height // 2**scales, width // 2**scales)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_worked_numbers():
    counts = {(1, 4): 5, (2, 4): 25, (2, 8): 81, (2, 16): 289, (3, 8): 217}
    assert {key: num_maps(*key) for key in counts} == counts
    image = noise(16, 16)
    moved = image.roll(1, 0)
    one, other = scatter(torch.stack([image, moved]), filter_bank(16, 16, scales=2, angles=4))
    assert float((one - other).norm() / one.norm()) == pytest.approx(0.117, abs=5e-4)
    assert float((image - moved).norm() / image.norm()) == pytest.approx(1.464, abs=5e-4)


def test_wavelets_have_no_mean_and_the_average_keeps_it():
    bank = filter_bank(32, 24, scales=3, angles=6)
    assert bank.psi.shape == (3, 6, 32, 24)
    assert bank.psi[..., 0, 0].abs().max() < 1e-14
    for rows in (bank.rows, bank.columns):
        torch.testing.assert_close(rows.sum(1), torch.ones(len(rows), dtype=torch.float64), rtol=0, atol=1e-14)


def test_a_constant_image_keeps_its_value_and_has_nothing_else():
    found = scatter(torch.full((1, 16, 16), 0.7, dtype=torch.float64), filter_bank(16, 16, scales=2, angles=8))[0]
    assert found[1:].abs().max() < 1e-15
    torch.testing.assert_close(found[0], torch.full_like(found[0], 0.7))


def test_a_wave_is_found_at_its_scale_and_angle():
    """Of frequency 3 pi / 8, which is that of j = 1. Of 8 angles number 3 is 0, along rows, and number 7 is -pi / 2."""
    wave = torch.cos(3 * math.pi / 8 * torch.arange(32, dtype=torch.float64)).expand(32, 32)
    found = scatter(torch.stack([wave.T, wave]), filter_bank(32, 32, scales=2, angles=8))
    strength = found[:, 1:17].mean(dim=(2, 3))
    assert strength.argmax(dim=1).tolist() == [8 + 3, 8 + 7]


def test_shifts_by_the_step_move_the_maps_and_smaller_ones_change_little():
    image, bank = noise(32, 32, seed=1), filter_bank(32, 32, scales=2, angles=4)
    one, moved, near = scatter(torch.stack([image, image.roll((8, -4), (0, 1)), image.roll(1, 1)]), bank)
    torch.testing.assert_close(moved, one.roll((2, -1), (1, 2)), rtol=0, atol=1e-13)
    assert float((near - one).norm() / one.norm()) < 0.2


def test_distances_do_not_grow():
    images = noise(6, 16, 16, seed=2)
    found = 4 * scatter(images, filter_bank(16, 16, scales=2, angles=8))  # a map stands for 4 x 4 pixels
    assert (torch.pdist(found.flatten(1)) <= torch.pdist(images.flatten(1))).all()


def test_images_are_scattered_alone_in_blocks_of_any_size():
    images = noise(50, 64, 64).float()
    bank = FilterBank(*(filters.float() for filters in filter_bank(64, 64, scales=1, angles=2)))
    found = scatter(images, bank)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[37:38], scatter(images[37:38], bank), rtol=1e-5, atol=1e-6)


def test_images_of_another_size_are_refused():
    with pytest.raises(DataError, match=r"images \(8, 8\) do not fit filters \(16, 16\)"):
        scatter(torch.zeros(2, 8, 8), filter_bank(16, 16, scales=1, angles=2))
