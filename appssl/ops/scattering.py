"""The scattering transform of images: fixed wavelets, moduli and averages; nothing is trained.

With wavelets psi_{j,l} of scale j = 0..J-1 and angle l = 0..L-1, and the average phi, all convolutions periodic:

    S0 = x * phi,    S1[j, l] = |x * psi_{j,l}| * phi,    S2[j, l, j', l'] = ||x * psi_{j,l}| * psi_{j',l'}| * phi

for j' > j, every map taken at every 2^J-th pixel of both sides. With u = (row, column) in pixels, angle
t = pi (L/2 - 1 - l) / L, sigma = 0.8 2^j, xi = (3 pi / 4) / 2^j, slant s = 4 / L, and u_t, u_n the parts of u along and
across (cos t, sin t):

    psi(u) = g(u) (e^{i xi u_t} - beta),    g(u) = s / (2 pi sigma^2) exp(-(u_t^2 + s^2 u_n^2) / (2 sigma^2))

summed over the periods, with beta such that psi sums to 0; phi is an isotropic Gaussian of sigma 0.8 2^(J-1) that sums
to 1.

Source: Bruna and Mallat, Invariant scattering convolution networks, PAMI 35(8), 2013, arXiv 1203.1513; constants of the
filters as in the library kymatio, BSD-3. Deviations from it: moduli keep the resolution of the image, where it takes
every 2^j-th pixel of them before they are filtered again (maps differ by 0.5 to 1 %); pi is not rounded to 3.1415; with
an odd L angles are half a step away from its.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from appssl.errors import DataError

_BLOCK_PIXELS = 1 << 16  # transformed at once on a CPU: what its cache holds is twice as fast
_PERIODS = 4  # copies of an image to each side that the tails of filters are summed over


class FilterBank(NamedTuple):
    """Filters for images (H, W), float64.

    Attributes:
        psi: (J, L, H, W) transfer functions, which are real, of the wavelets; order of frequencies as in torch.fft.
        rows, columns: (H / 2^J, H) and (W / 2^J, W); rows @ x @ columns.T is x * phi at every 2^J-th pixel.
    """

    psi: Tensor
    rows: Tensor
    columns: Tensor


def num_maps(scales: int, angles: int) -> int:
    """Maps of one channel: 1 + L J + L^2 J (J - 1) / 2."""
    return 1 + angles * scales + angles**2 * scales * (scales - 1) // 2


def filter_bank(height: int, width: int, *, scales: int, angles: int) -> FilterBank:
    """All filters.

    Args:
        height, width: pixels, multiples of 2^J. scales: J >= 1. angles: L >= 1, over half a turn.
    """
    psi = [[_morlet(height, width, j, number, angles) for number in range(angles)] for j in range(scales)]
    step, sigma = 2**scales, 0.8 * 2 ** (scales - 1)
    return FilterBank(
        torch.stack([torch.stack(of_scale) for of_scale in psi]),
        _average(height, step, sigma),
        _average(width, step, sigma),
    )


def scatter(images: Tensor, bank: FilterBank) -> Tensor:
    """S0, then S1 in order of (j, l), then S2 in order of (j, l, j', l').

    Args:
        images: (N, H, W), of the type of the filters, float32 or float64; channels are images of their own.
    Returns:
        (N, num_maps, H / 2^J, W / 2^J). Meant for no gradient: there is none where a modulus is 0.
    Raises:
        DataError: if the filters are of another size.
    """
    if images.shape[1:] != bank.psi.shape[2:]:
        raise DataError(f"scattering: images {tuple(images.shape[1:])} do not fit filters {tuple(bank.psi.shape[2:])}.")
    if images.device.type != "cpu":
        return _scatter(images, bank)
    size = max(1, _BLOCK_PIXELS // images[0].numel())
    return torch.cat([_scatter(block, bank) for block in images.split(size)])


def _scatter(images: Tensor, bank: FilterBank) -> Tensor:
    spectrum = torch.fft.fft2(images)
    first, second = [], []
    for j, of_scale in enumerate(bank.psi):
        coarser = bank.psi[j + 1 :].flatten(0, 1)
        for psi in of_scale:
            modulus = _modulus(spectrum * psi)
            first.append(modulus)
            if len(coarser):
                inner = torch.fft.fft2(modulus)
                second += [_averaged(_modulus(inner * other), bank) for other in coarser]
    maps = [_averaged(x, bank) for x in (images, *first)]
    return torch.stack([*maps, *second], dim=1)


def _modulus(spectrum: Tensor) -> Tensor:
    """In a quarter of the time of abs(), which guards against overflow; squares side by side, as they lie in memory."""
    squares = torch.view_as_real(torch.fft.ifft2(spectrum)).square()
    return (squares[..., 0] + squares[..., 1]).sqrt()


def _averaged(maps: Tensor, bank: FilterBank) -> Tensor:
    return bank.rows @ maps @ bank.columns.T


def _morlet(height: int, width: int, j: int, number: int, angles: int) -> Tensor:
    """Transfer function (height, width) float64 of psi_{j,l}, l the number of the angle."""
    sigma, xi, slant = 0.8 * 2**j, 0.75 * math.pi / 2**j, 4 / angles
    turn = math.pi * (angles / 2 - 1 - number) / angles
    row, column = _places(height)[:, None], _places(width)
    along = row * math.cos(turn) + column * math.sin(turn)
    across = column * math.cos(turn) - row * math.sin(turn)
    envelope = torch.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2)) * slant / (2 * math.pi * sigma**2)
    wave = _folded(torch.polar(envelope, xi * along), height, width)
    envelope = _folded(envelope, height, width)
    return torch.fft.fft2(wave - wave.sum() / envelope.sum() * envelope).real


def _places(size: int) -> Tensor:
    """Pixels of all periods, the image's own in their middle."""
    return torch.arange(-_PERIODS * size, (_PERIODS + 1) * size, dtype=torch.float64)


def _folded(values: Tensor, height: int, width: int) -> Tensor:
    """Sum over all periods, (height, width)."""
    return values.unflatten(1, (-1, width)).unflatten(0, (-1, height)).sum(dim=(0, 2))


def _average(size: int, step: int, sigma: float) -> Tensor:
    """(size / step, size): rows of phi along one side, moved by `step` each; phi is the product of both sides'."""
    phi = torch.exp(-(_places(size) ** 2) / (2 * sigma**2)).unflatten(0, (-1, size)).sum(0)
    phi = phi / phi.sum()
    offsets = torch.arange(0, size, step)[:, None] - torch.arange(size)
    return phi[offsets % size]
