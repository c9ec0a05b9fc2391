"""The changes of ops/images/pixels.py for images in batches on any device, each image with parameters of its own.

Images are (N, 3, H, W) float32 RGB with whole levels 0..255, parameters (N,) float32. Results are whole levels again,
rounded where OpenCV rounds, and within one level of those of ops/images/pixels.py. No function waits for the device,
changes its arguments, or goes through the images one by one.
"""

import torch
from torch import Tensor

_GREY = (9798 / 2**15, 19235 / 2**15, 3735 / 2**15)  # Rec. 601 in OpenCV's steps: sums of whole levels are exact
_DIVIDED = 2**12  # OpenCV's quotients of hue and saturation are in 2^-12


def resized_crops(images: Tensor, boxes: Tensor, flip: Tensor, side: int) -> Tensor:
    """Crops of images (N, H, W, 3) uint8, resized to (N, 3, side, side) and mirrored left to right where flip is 1.

    Between pixels, bilinear; by area averaging where both sides of a crop are at least twice `side`.

    Args:
        boxes: (N, 4) top, left, height, width, pixels.
    """
    count, num_rows, num_columns, _ = images.shape
    top, left, height, width = boxes.unbind(1)
    outputs = torch.arange(side, device=images.device, dtype=torch.float32).expand(count, side)
    halved = torch.minimum(height, width) >= 2 * side if min(num_rows, num_columns) >= 2 * side else None
    down = _resizing(outputs, top, height, num_rows, halved)  # (N, side, H)
    across = _resizing(torch.lerp(outputs, side - 1 - outputs, flip[:, None]), left, width, num_columns, halved)
    rows = torch.bmm(down, images.flatten(2).float())  # (N, side, W * 3)
    rows = rows.view(count, side, num_columns, 3).permute(0, 3, 1, 2).reshape(count, 3 * side, num_columns)
    return torch.bmm(rows, across.transpose(1, 2)).view(count, 3, side, side).add_(0.5).floor_()


def _resizing(outputs: Tensor, start: Tensor, length: Tensor, size: int, halved: Tensor | None) -> Tensor:
    """Weights (N, S, size) of the pixels of an image's side, for outputs (N, S) of a crop resized to S pixels."""
    start, length = start[:, None, None], length[:, None, None]
    step = length / outputs.shape[1]
    inputs = torch.arange(size, device=outputs.device, dtype=torch.float32)
    centers = ((outputs[:, :, None] + 0.5) * step - 0.5).clamp_(min=0)
    centers = torch.minimum(centers, length - 1) + start
    bilinear = (1 - (centers - inputs).abs()).clamp_(min=0)
    if halved is None:
        return bilinear
    begin = outputs[:, :, None] * step + start
    overlap = torch.minimum(begin + step, inputs + 1) - torch.maximum(begin, inputs)
    return torch.where(halved[:, None, None], overlap.clamp_(min=0) / step, bilinear)


def grey(images: Tensor) -> Tensor:
    """(N, 1, H, W)."""
    return _grey(images).add_(0.5).floor_()


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])


def recolored(images: Tensor, own: Tensor, grey: Tensor, mean: Tensor) -> Tensor:
    """`own` times the values plus `grey` times the grey of each pixel plus `mean` times the mean grey of each image.

    Brightness is (f, 0, 0), contrast (f, 0, 1 - f), saturation (f, 1 - f, 0), no change (1, 0, 0).
    """
    own, grey, mean = (factor[:, None, None, None] for factor in (own, grey, mean))
    greys = _grey(images)
    mean_grey = (greys + 0.5).floor_().mean((2, 3), keepdim=True)
    added = greys.mul_(grey).add_(mean * mean_grey)
    return torch.addcmul(added, images, own).round_().clamp_(0, 255)


def hue(images: Tensor, steps: Tensor) -> Tensor:
    """The circle of hues turned by whole steps of two degrees, through the levels of hue and saturation that there are.

    OpenCV cuts the values of the way back off, rather than rounding them; so does this.
    """
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    range_ = value - images.amin(1)
    sector = torch.where(
        value == red, green - blue, torch.where(value == green, blue - red + 2 * range_, red - green + 4 * range_)
    )
    angle = _quotient(sector, 30, range_) + steps[:, None, None]
    saturation = _quotient(range_, 255, value)
    colors = 150 - 60 * torch.arange(3, device=images.device).view(3, 1, 1)  # how far from cyan, magenta, yellow
    angle = (angle.unsqueeze(1) + colors).remainder_(180)
    share = torch.minimum(angle, 120 - angle).clamp_(0, 30)
    lost = share.mul_((value * saturation).unsqueeze(1))  # in 1 / (30 * 255) of a level
    return (7650 * value.unsqueeze(1) - lost).div_(7650).floor_()


def _quotient(numerator: Tensor, times: int, denominator: Tensor) -> Tensor:
    """round(times * numerator / denominator), with the rounded reciprocals of OpenCV; 0 for a denominator of 0."""
    reciprocal = (times * _DIVIDED / denominator.clamp(min=1)).round_()
    return (numerator.int() * reciprocal.int()).add_(2**11).bitwise_right_shift_(12).float()


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur with kernels that reach three sigma to each side, borders mirrored; sigma 0 changes nothing.

    Args:
        images: square. sigma: at most `largest`, whose reach must be less than the side.
    """
    matrix = _blurring(sigma, largest, images.shape[2])
    rows = torch.matmul(matrix.unsqueeze(1), images).flatten(1, 2)
    return torch.bmm(rows, matrix.transpose(1, 2)).view_as(images).add_(0.5).floor_().clamp_(0, 255)


def _blurring(sigma: Tensor, largest: float, side: int) -> Tensor:
    """Banded matrices (N, side, side)."""
    farthest = -int(-3 * largest // 1)
    distance = torch.arange(farthest + 2, device=sigma.device, dtype=torch.float32)
    sigma = sigma[:, None]
    taps = torch.exp(-distance.square() / (2 * sigma.square()).clamp(min=1e-6)) * (distance <= (3 * sigma).ceil())
    taps = taps / (2 * taps.sum(1, keepdim=True) - 1)  # the last one is 0
    place = torch.arange(side, device=sigma.device)
    here, there = place[:, None], place[None]
    mirrored_low = torch.where(there > 0, here + there, farthest + 1)
    mirrored_high = torch.where(there < side - 1, 2 * (side - 1) - here - there, farthest + 1)
    weights = [taps[:, d.clamp(max=farthest + 1)] for d in ((here - there).abs(), mirrored_low, mirrored_high)]
    return weights[0] + weights[1] + weights[2]


def solarize(images: Tensor) -> Tensor:
    """Values of 128 and more inverted."""
    return torch.where(images < 128, images, 255 - images)
