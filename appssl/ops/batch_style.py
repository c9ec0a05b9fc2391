"""Batch styles standardization: all images of a batch get the low-frequency amplitudes of one of them.

With F_i the two-dimensional discrete Fourier transform of a channel of image i, A_i = |F_i|, s the style image, and M
the mask of the frequencies |u| <= floor(sqrt(r) H / 2) and |v| <= floor(sqrt(r) W / 2), a share of about r of them:

    A_i' = M A_s + (1 - M) A_i,    x_i' = Re F^-1( A_i' exp(j arg F_i) )

Phases, which hold the content, stay. Computed as F_i A_s / max(A_i, 1e-8) under the mask, so that what is 0 stays 0
and does not get a phase of rounding errors.
Source: Scalbert et al., Towards domain-invariant self-supervised learning with batch styles standardization, ICLR
2024, arXiv 2303.06088, appendix. Deviations: the window and its limits are not known from the paper; this one is
symmetric, so that images stay real.
"""

import torch
from torch import Tensor

_EPSILON = 1e-8  # smallest amplitude that is divided by; images are transformed in float64, whose errors are below it


def with_style(images: Tensor, style: Tensor, area: float) -> Tensor:
    """Images with the low-frequency amplitudes of others.

    Args:
        images: (N, C, H, W) float, linear in intensity, 0..1 and not normalized: means are amplitudes too.
        style: row of the image whose amplitudes all get, () int64, or one for each image, (N,) int64.
        area: r in [0, 1]; 0: the means of channels only, 1: all frequencies.
    Returns:
        (N, C, H, W) of the type of the images; may leave 0..1.
    """
    height, width = images.shape[2:]
    spectrum = torch.fft.rfft2(images.double())
    amplitude = spectrum.abs()
    changed = spectrum * (amplitude[style] / amplitude.clamp(min=_EPSILON))
    low = low_frequencies(height, width, area).to(images.device)
    return torch.fft.irfft2(torch.where(low, changed, spectrum), s=(height, width)).to(images.dtype)


def low_frequencies(height: int, width: int, area: float) -> Tensor:
    """M for the frequencies that torch.fft.rfft2 gives, (height, width // 2 + 1) bool; always true at 0."""
    root = area**0.5
    rows = torch.fft.fftfreq(height, 1 / height).round().abs() <= int(root * height / 2)
    columns = torch.arange(width // 2 + 1) <= int(root * width / 2)
    return rows[:, None] & columns
