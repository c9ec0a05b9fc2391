import cmath
import math

import pytest
import torch

from appssl.ops.batch_style import low_frequencies, with_style

ONE = torch.tensor([[1, 2, 3, 4], [2, 3, 4, 6], [0, 1, 0, 2], [2, 2, 3, 1]], dtype=torch.float64) / 8
TWO = torch.tensor([[8, 0, 7, 1], [0, 6, 1, 8], [4, 5, 4, 3], [1, 3, 5, 7]], dtype=torch.float64) / 8
PAIR = torch.stack([ONE, TWO])[:, None]
FIRST = torch.tensor(0)


def images(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dft(image, sign):
    """By the sum; frequencies from -H/2 to H/2 - 1 as keys, or pixels."""
    height, width = image["sides"]
    places = [(a, b) for a in range(height) for b in range(width)]
    out = {"sides": (height, width)}
    for u, v in places:
        out[u, v] = sum(
            image[a, b] * cmath.exp(sign * 2j * math.pi * (u * a / height + v * b / width)) for a, b in places
        )
    return out


def centered(frequency, size):
    return frequency - size if frequency >= size / 2 else frequency


def literal(image, style, area):
    """One channel, by loops; returns the image and the largest imaginary part that is thrown away."""
    height, width = image.shape
    content, other = (
        dft({"sides": (height, width), **{(a, b): float(x[a, b]) for a in range(height) for b in range(width)}}, -1)
        for x in (image, style)
    )
    b_h, b_w = math.floor(math.sqrt(area) * height / 2), math.floor(math.sqrt(area) * width / 2)
    for u in range(height):
        for v in range(width):
            if abs(centered(u, height)) <= b_h and abs(centered(v, width)) <= b_w:
                content[u, v] = abs(other[u, v]) * cmath.exp(1j * cmath.phase(content[u, v]))
    back = dft(content, +1)
    values = [[back[a, b] / (height * width) for b in range(width)] for a in range(height)]
    largest = max(abs(value.imag) for row in values for value in row)
    return torch.tensor([[value.real for value in row] for row in values], dtype=torch.float64), largest


@pytest.mark.parametrize(("height", "width"), [(4, 4), (6, 5), (5, 8)])
@pytest.mark.parametrize("area", [0.0, 0.1, 0.3, 1.0])
def test_equals_the_equation_by_sums_in_float64_and_is_real(height, width, area):
    given, style = images(3, 2, height, width), torch.tensor([2, 2, 0])
    found = with_style(given, style, area)
    for n in range(3):
        for channel in range(2):
            expected, imaginary = literal(given[n, channel], given[style[n], channel], area)
            assert imaginary < 1e-9
            torch.testing.assert_close(found[n, channel], expected, rtol=0, atol=1e-12)


def test_the_worked_example():
    rows = {
        (0.0, 0): [0.789062, -0.210938, 0.664062, -0.085938],
        (0.25, 0): [0.749025, -0.209190, 0.704100, -0.087685],
        (0.25, 3): [0.056495, 0.271347, 0.549739, 0.834887],
        (1.0, 0): [0.353862, 0.154632, 0.467676, 0.461331],
    }
    for (area, row), expected in rows.items():
        assert with_style(PAIR, FIRST, area)[1, 0, row].tolist() == pytest.approx(expected, abs=1e-6)


def test_area_zero_moves_the_mean_and_area_one_equals_all_amplitudes():
    given = images(4, 3, 8, 6)
    mean = given.mean((2, 3), keepdim=True)
    torch.testing.assert_close(with_style(given, FIRST, 0.0), given - mean + mean[0])
    whole = torch.fft.fft2(with_style(given, FIRST, 1.0))
    torch.testing.assert_close(whole.abs(), whole[0].abs().expand_as(whole.abs()))
    torch.testing.assert_close(whole.angle().cos(), torch.fft.fft2(given).angle().cos(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("area", [0.0, 0.2, 1.0])
def test_the_style_image_stays_means_become_equal_and_twice_is_once(area):
    given, style = images(5, 2, 9, 8), torch.tensor(3)
    once = with_style(given, style, area)
    torch.testing.assert_close(once[3], given[3])
    torch.testing.assert_close(once.mean((2, 3)), given[3].mean((1, 2)).expand(5, 2))
    torch.testing.assert_close(with_style(once, style, area), once)
    torch.testing.assert_close(with_style(given[:1], FIRST, area), given[:1])


def test_the_order_of_images_and_other_images_do_not_matter():
    given, order = images(6, 1, 8, 8), torch.tensor([4, 0, 5, 2, 1, 3])
    found = with_style(given, torch.tensor(5), 0.5)
    torch.testing.assert_close(with_style(given[order], torch.tensor(2), 0.5), found[order])
    alone = with_style(given[[1, 5]], torch.tensor(1), 0.5)
    torch.testing.assert_close(alone, found[[1, 5]])


def test_a_style_for_each_image_is_that_of_its_own():
    given, styles = images(4, 2, 8, 8), torch.tensor([1, 1, 3, 0])
    found = with_style(given, styles, 0.4)
    for n, style in enumerate(styles):
        torch.testing.assert_close(found[n], with_style(given, style, 0.4)[n])


def test_about_a_share_of_the_frequencies_is_low():
    """Of the whole spectrum: columns but the first and, of an even width, the last stand for two."""
    twice = torch.tensor([1.0, *[2.0] * 31, 1.0])
    for area in (0.05, 0.3, 0.9):
        share = float((low_frequencies(64, 64, area) * twice).sum()) / 64**2
        assert share == pytest.approx(area, abs=0.05)
    assert low_frequencies(7, 9, 0.0).nonzero().tolist() == [[0, 0]]
    assert low_frequencies(7, 9, 1.0).all()


def test_a_flat_image_stays_flat_in_float32_and_half_precision():
    """Its amplitudes are 0 but for the mean; those of another have no phase to go with."""
    given = torch.stack([images(1, 16, 16, seed=1), torch.full((1, 16, 16), 0.3)])
    for dtype in (torch.float32, torch.bfloat16):
        found = with_style(given.to(dtype), FIRST, 1.0)
        assert found.dtype == dtype
        assert float(found[1].std()) < 1e-6
        assert float(found[1].mean()) == pytest.approx(float(given[0].mean()), rel=1e-2)
