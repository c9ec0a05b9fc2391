"""Changes of an image's colours and sharpness, and its values as a network takes them. Images are (H, W, 3) uint8 RGB.

They equal albumentations' functions of the same names within rounding (one level of 255, two after a blur). A change is
one pass over the pixels, and the blur is separable.
"""

from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

_SMALLEST_STD = 1e-3  # of values in 0..1: keeps views finite when all training images have one colour
_GREY = np.array([0.299, 0.587, 0.114])  # Rec. 601
_LEVELS = np.arange(256)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Values times `factor` >= 0."""
    return cv2.convertScaleAbs(image, alpha=factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Distances to the mean grey of the image times `factor`."""
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    return cv2.addWeighted(image, factor, image, 0, mean * (1 - factor))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Distances to the grey of each pixel times `factor`."""
    return cv2.transform(image, factor * np.eye(3) + (1 - factor) * _GREY)


def hue(image: np.ndarray, turn: float) -> np.ndarray:
    """The circle of hues turned by a share of it; hues in steps of two degrees."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    turned = np.mod(_LEVELS + 180 * turn, 180).astype(np.uint8)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, 0), turned), hsv, 0)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def solarize(image: np.ndarray) -> np.ndarray:
    """Values of 128 and more inverted."""
    return cv2.LUT(image, np.where(_LEVELS < 128, _LEVELS, 255 - _LEVELS).astype(np.uint8))


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur with a kernel that reaches three sigma to each side, borders mirrored."""
    kernel = cv2.getGaussianKernel(2 * int(np.ceil(3 * sigma)) + 1, sigma, cv2.CV_32F)
    return cv2.sepFilter2D(image, -1, kernel, kernel)


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """(side, side, 3): by area averaging from twice that side on, where bilinear weights would leave pixels out."""
    halved = min(image.shape[:2]) >= 2 * side
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if halved else cv2.INTER_LINEAR)


class Standardize:
    """(H, W, 3) uint8 -> (3, H, W) float32 with the training images' statistics.

    Args:
        mean, std: (3,) float of values in 0..1.

    Attributes:
        scale, shift: (3,) float32; a value is level * scale + shift.
    """

    def __init__(self, mean: Any, std: Any) -> None:
        mean, std = np.asarray(mean, np.float64), np.maximum(np.asarray(std, np.float64), _SMALLEST_STD)
        self.scale, self.shift = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def __call__(self, image: np.ndarray) -> Tensor:
        values = np.empty((3, *image.shape[:2]), np.float32)
        planes = cv2.split(np.ascontiguousarray(image))
        for value, plane, scale, shift in zip(values, planes, self.scale, self.shift, strict=True):
            np.multiply(plane, scale, out=value)
            value += shift
        return torch.from_numpy(values)
