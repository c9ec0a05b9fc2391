"""How good the picture in a tile is: sharpness, and shares of glass, black, grey, folds and ink.

Shares are of pixels averaged to about 4 um, so that a nucleus is no fold. A fold is tissue on tissue: more saturated
than bright (saturation minus value, as Kothari et al., IEEE Trans. Biomed. Eng. 60(12), 2013, use it; the threshold
here is fixed). Sharpness is the standard deviation of the Laplacian of the grey image, in grey levels, at the spacing
of the tiles.
"""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from pydantic import Field

from appssl.ops.slides.tissue import is_ink, optical_densities
from appssl.settings import Settings

SCORES = ("sharpness", "white", "black", "grey", "fold", "ink")
_SHARE_UM = 4.0  # um per pixel of the image that shares are taken of
_LEAST_SIDE = 8  # pixels of that image
_GLASS_VALUE, _GLASS_CHROMA = 220, 25  # of 255: at least as bright, at most as coloured
_BLACK_VALUE = 40
_GREY_CHROMA = 12
_FOLD = 0.2  # saturation minus value, each in 0..1
_GLASS = np.full(3, 240.0)  # intensity that optical density is measured against


class Quality(Settings):
    """Limits of scores; a grid tile beyond one is left out. Tiles on labelled points are scored, never left out."""

    min_sharpness: float = Field(2.0, ge=0, description="standard deviation of the Laplacian, grey levels; 0: any")
    max_white: float = Field(0.9, ge=0, le=1, description="largest share of glass")
    max_black: float = Field(0.5, ge=0, le=1, description="largest share of black: borders, shadows, black ink")
    max_grey: float = Field(0.9, ge=0, le=1, description="largest share without colour that is no glass: dust, bubbles")
    max_fold: float = Field(0.8, ge=0, le=1, description="largest share of folded tissue")
    max_ink: float = Field(0.5, ge=0, le=1, description="largest share of blue or green ink")


def scores(tile: np.ndarray, spacing_um: float) -> dict[str, float]:
    """A value for each of `SCORES`, six digits.

    Args:
        tile: (S, S, 3) uint8. spacing_um: um per pixel.
    """
    sharpness = cv2.meanStdDev(cv2.Laplacian(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY), cv2.CV_16S, ksize=1))[1].item()
    side = min(len(tile), max(_LEAST_SIDE, round(len(tile) * spacing_um / _SHARE_UM)))
    small = cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA)
    value = small.max(axis=2).astype(np.int16)
    chroma = value - small.min(axis=2)
    white = (value >= _GLASS_VALUE) & (chroma <= _GLASS_CHROMA)
    black = value < _BLACK_VALUE
    saturation = chroma / np.maximum(value, 1)
    ink = is_ink(*optical_densities(small, _GLASS))
    shares = {
        "white": white,
        "black": black,
        "grey": (chroma <= _GREY_CHROMA) & ~white & ~black,
        "fold": (saturation - value / 255 > _FOLD) & ~black & ~ink,
        "ink": ink,
    }
    return {"sharpness": round(sharpness, 6), **{name: round(float(of.mean()), 6) for name, of in shares.items()}}


def failing(found: Mapping[str, Any], limits: Quality) -> tuple[str, str] | None:
    """Reason and detail if a tile is beyond a limit, with the setting that would have kept it; None if it is not."""
    reasons, details = [], []
    if found["sharpness"] < limits.min_sharpness:
        reasons.append("blurred")
        details.append(f"sharpness {found['sharpness']:g}: kept with quality.min_sharpness {found['sharpness']:g}")
    for name in SCORES[1:]:
        if found[name] > getattr(limits, f"max_{name}"):
            reasons.append(name)
            details.append(f"{name} {found[name]:g}: kept with quality.max_{name} {found[name]:g}")
    return (reasons[0], "; ".join(details)) if reasons else None
