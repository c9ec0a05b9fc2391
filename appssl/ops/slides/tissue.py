"""Where the tissue of a stained section is, from a small image of the whole slide, and how much of it a tile holds.

A pixel is tissue when it absorbs light (optical density) or is coloured (spread of the densities of red, green, blue),
each above Otsu's threshold, and when there are edges around it: a halo of dissolved stain or an uneven background is
coloured but smooth. Otsu's threshold is kept inside bounds, because an image that is all glass or all tissue has no two
classes to part. Densities are measured against the slide's own background, so grey and pink glass are no tissue.

Source of the threshold: Otsu, IEEE Trans. SMC 9(1), 1979, equation 12 (largest between-class variance).
"""

from dataclasses import dataclass

import cv2
import numpy as np

_DARKEST_GLASS = 180  # no background is taken to be darker, of 255
_USUAL_GLASS = 240  # where no glass is seen, as in a slide cut out of tissue
_LEAST_GLASS = 0.005  # share of the pixels
_SMOOTHING_UM = 16.0  # standard deviation; joins nuclei and the pale cytoplasm between them
_DENSITY_BOUNDS = (0.05, 0.10)  # smallest and largest threshold of the mean optical density
_COLOR_BOUNDS = (0.05, 0.09)  # the same for the spread of densities over the channels
_EDGE = 0.015  # gradient of optical density per pixel that counts as an edge
_EDGE_WINDOW_UM = 72.0
_EDGE_SHARE = 0.25  # of the pixels in the window
_INK_DENSITY = 0.15  # below this a colour cannot be told reliably
_INK_RATIO = 0.75  # haematoxylin and eosin absorb green most; ink absorbs green less than this share of red or blue
_STROKE_SHARE = 0.25  # of a part of tissue that is ink, for it to be a stroke of a pen
_BLACK = 40  # of 255, brightest channel: fluorescence background, black scanner border, black ink
_LARGE = 1000  # pixels, smaller side of an image of which a part says the same as all
_DARK_SHARE = 0.5  # a slide with more black than this is no stained section on bright glass


@dataclass(frozen=True)
class Tissue:
    """Result of `find_tissue`.

    Attributes:
        mask: (H, W) bool. is_dark: the background is dark, so the mask is empty.
        measured: what was decided on, for messages: thresholds, background colour, shares of pixels.
    """

    mask: np.ndarray
    is_dark: bool
    measured: dict[str, float]

    @property
    def explained(self) -> str:
        return ", ".join(f"{name} {value:.3g}" for name, value in self.measured.items())


def find_tissue(image: np.ndarray, *, spacing_um: float, min_part_um2: float, min_hole_um2: float) -> Tissue:
    """Tissue mask of a slide.

    Args:
        image: the whole slide, (H, W, 3) uint8, at about 8 um/px. spacing_um: its um per pixel.
        min_part_um2: smaller parts are no tissue. min_hole_um2: smaller holes are filled.
    """
    is_black = cv2.inRange(image, (0, 0, 0), (_BLACK - 1,) * 3) > 0
    black_share = _share(is_black)
    if black_share > _DARK_SHARE:
        return Tissue(np.zeros(image.shape[:2], bool), True, {"black_share": black_share})
    edges = edge_share(image, max(3, round(_EDGE_WINDOW_UM / spacing_um)))
    background = background_color(image, edges < _EDGE_SHARE)
    red, green, blue = optical_densities(image, background)
    largest, smallest = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    mean = cv2.addWeighted(cv2.add(red, green), 1 / 3, blue, 1 / 3, 0)
    smooth_mean = smoothed(mean, _SMOOTHING_UM / spacing_um)
    smooth_color = smoothed(cv2.subtract(largest, smallest), _SMOOTHING_UM / spacing_um)
    density_threshold = float(np.clip(otsu(_some(smooth_mean)), *_DENSITY_BOUNDS))
    color_threshold = float(np.clip(otsu(_some(smooth_color)), *_COLOR_BOUNDS))
    absorbs = (smooth_mean > density_threshold) | (smooth_color > color_threshold)
    ink = is_ink(red, green, blue)
    is_textured = absorbs & (edges > _EDGE_SHARE)
    excluded = ink | is_black
    min_part, min_hole = (round(area / spacing_um**2) for area in (min_part_um2, min_hole_um2))
    if np.count_nonzero(ink) >= _STROKE_SHARE * min_part:  # with less, a stroke is too small a part anyway
        is_textured &= ~beside_ink(is_textured, ink)
    mask = cleaned(is_textured & ~excluded, min_part, min_hole)
    measured = {
        "tissue_share": _share(mask),
        "density_threshold": density_threshold,
        "color_threshold": color_threshold,
        "absorbing_share": _share(absorbs),
        "absorbing_with_edges_share": _share(is_textured),
        "ink_share": _share(ink),
        "black_share": black_share,
        "background_green": float(background[1]),
    }
    return Tissue(mask & ~excluded, False, measured)


def _some(values: np.ndarray) -> np.ndarray:
    """Every fourth pixel of every fourth row: thresholds and medians are those of all, of a large image."""
    step = 4 if min(values.shape[:2]) >= _LARGE else 1
    return np.ascontiguousarray(values[::step, ::step])


def _share(mask: np.ndarray) -> float:
    return float(np.count_nonzero(mask) / mask.size)


def background_color(image: np.ndarray, is_smooth: np.ndarray) -> np.ndarray:
    """Colour of the glass, (3,) float64 in 180..255: the median of the bright smooth pixels.

    Args:
        image: (H, W, 3) uint8. is_smooth: (H, W) bool, pixels without edges around them; tissue always has some.
    """
    image, is_smooth = _some(image), _some(is_smooth)
    bright = cv2.inRange(image, (_DARKEST_GLASS,) * 3, (255,) * 3)
    glass = cv2.bitwise_and(bright, is_smooth.astype(np.uint8))
    counts = np.stack([cv2.calcHist([image], [k], glass, [256], [0, 256]).ravel() for k in range(3)])
    if counts[0].sum() < max(1, _LEAST_GLASS * is_smooth.size):
        return np.full(3, float(_USUAL_GLASS))
    return np.array([_median(of_channel) for of_channel in counts.astype(np.int64)])


def _median(counts: np.ndarray) -> float:
    """Of values 0, 1, 2, ... with these counts."""
    upto, total = counts.cumsum(), counts.sum()
    low, high = (int(np.searchsorted(upto, place, side="right")) for place in ((total - 1) // 2, total // 2))
    return (low + high) / 2


def optical_densities(image: np.ndarray, background: np.ndarray) -> list[np.ndarray]:
    """log10 of background over intensity for red, green, blue, each (H, W) float32 >= 0; 0 on glass.

    One is added against log of 0.
    """
    intensity = np.arange(256, dtype=np.float64) + 1
    tables = [np.maximum(np.log10((glass + 1) / intensity), 0).astype(np.float32) for glass in background]
    return [cv2.LUT(channel, table) for channel, table in zip(cv2.split(image), tables, strict=True)]


def smoothed(values: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W) float32 with a Gaussian of this standard deviation, in pixels, up to four of them away."""
    side = 2 * max(1, round(4 * sigma)) + 1
    return cv2.GaussianBlur(values, (side, side), sigma, borderType=cv2.BORDER_REFLECT)


def otsu(values: np.ndarray, num_bins: int = 256) -> float:
    """Threshold that parts `values` into two classes with the largest variance between them; their one value if equal.

    Args:
        values: any shape, finite.
    """
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return low
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(1, -1)
    counts = cv2.calcHist([flat], [0], None, [num_bins], [low, np.nextafter(np.float32(high), np.float32(np.inf))])
    counts = counts.ravel().astype(np.float64)
    borders = np.linspace(low, high, num_bins + 1)
    centers = (borders[:-1] + borders[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    moment = np.cumsum(counts * centers)
    mean_below = moment[:-1] / np.maximum(below, 1)
    mean_above = (moment[-1] - moment[:-1]) / np.maximum(above, 1)
    return float(borders[1:-1][np.argmax(below * above * (mean_below - mean_above) ** 2)])


def edge_share(image: np.ndarray, window: int) -> np.ndarray:
    """Share of pixels with an edge in a square of `window` pixels around each one, (H, W) float32 in 0..1.

    An edge is a gradient of log10 of the mean intensity, so it does not depend on the background.
    """
    table = (np.log10(np.arange(256) + 1)).astype(np.float32)
    red, green, blue = cv2.split(image)
    total = cv2.add(cv2.add(red, green, dtype=cv2.CV_16U), blue, dtype=cv2.CV_16U)
    brightness = cv2.LUT(cv2.convertScaleAbs(total, alpha=1 / 3), table)
    steps = [  # 8: the sum of Sobel's weights on one side, twice
        cv2.Sobel(brightness, cv2.CV_32F, *order, scale=1 / 8, borderType=cv2.BORDER_REPLICATE)
        for order in ((1, 0), (0, 1))
    ]
    is_edge = (cv2.magnitude(*steps) > _EDGE).view(np.uint8)
    return cv2.boxFilter(is_edge, cv2.CV_32F, (window, window), borderType=cv2.BORDER_REPLICATE)


def is_ink(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Pixels that absorb green clearly less than red or blue, as blue and green pens do, (H, W) bool.

    Red ink absorbs green as eosin does and is not told apart from it.

    Args:
        red, green, blue: optical densities, (H, W) float32.
    """
    other = cv2.max(red, blue)
    beyond = cv2.addWeighted(other, _INK_RATIO, green, -1, 0)
    return (other > _INK_DENSITY) & (beyond > 0)


def beside_ink(mask: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """Parts of a mask (H, W) bool, 4-connected, of which a quarter or more is ink: strokes with blurred borders."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    area = np.bincount(labels.ravel(), minlength=count)
    inked = np.bincount(labels[ink], minlength=count)
    is_stroke = inked >= _STROKE_SHARE * np.maximum(area, 1)
    is_stroke[0] = False
    found: np.ndarray = is_stroke[labels]
    return found


def cleaned(mask: np.ndarray, min_part: int, min_hole: int) -> np.ndarray:
    """Without parts below `min_part` pixels and holes below `min_hole`; holes are filled first.

    Parts are 8-connected; a hole is what a part encloses, counts to its area and is removed with it.

    Args:
        mask: (H, W) bool.
    """
    pixels = mask.astype(np.uint8)
    lines, hierarchy = cv2.findContours(pixels, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
    parents = hierarchy[0, :, 3].tolist() if lines else []
    around = [_around(n, parents) for n in range(len(lines))]  # parts and holes by turns: a hole has an odd number
    filled = {n for n, line in enumerate(lines) if len(around[n]) % 2 == 1 and _inside(line) < min_hole}
    for n in filled:
        cv2.drawContours(pixels, [lines[n]], -1, 1, cv2.FILLED)
    for n, line in enumerate(lines):
        if len(around[n]) % 2 == 0 and filled.isdisjoint(around[n]) and _upto(line) < min_part:
            cv2.drawContours(pixels, [line], -1, 0, cv2.FILLED)
    return pixels > 0


def _around(n: int, parents: list[int]) -> list[int]:
    """The contours that enclose contour n, from the inside; each line runs through the outermost pixels of a part, or
    through those of a part around a hole."""
    found = []
    while (n := parents[n]) >= 0:
        found.append(n)
    return found


def _upto(line: np.ndarray) -> float:
    """Pixels inside a line and on it, by Pick's theorem: the line passes the centres of its pixels, one by one."""
    return cv2.contourArea(line) + _steps(line) / 2 + 1


def _inside(line: np.ndarray) -> float:
    """Pixels inside a line and not on it."""
    return cv2.contourArea(line) - _steps(line) / 2 + 1


def _steps(line: np.ndarray) -> int:
    return len(line) if len(line) > 1 else 0


def covered_share(mask: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Share of each box that is True, (N,) float64 in 0..1; pixels that a box cuts count by their area inside.

    Args:
        mask: (H, W) bool. boxes: (N, 4) float64 left, top, right, bottom in pixels of the mask, of positive area.
    """
    integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    integral[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)
    left, top, right, bottom = boxes.T.astype(np.float64)
    inside = (
        _at(integral, bottom, right)
        - _at(integral, top, right)
        - _at(integral, bottom, left)
        + _at(integral, top, left)
    )
    return np.clip(inside / ((right - left) * (bottom - top)), 0, 1)


def _at(integral: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The integral image between its grid points; bilinear is exact, for the mask is constant within a pixel."""
    rows, columns = integral.shape
    y, x = np.clip(y, 0, rows - 1), np.clip(x, 0, columns - 1)
    top, left = np.minimum(y.astype(int), rows - 2), np.minimum(x.astype(int), columns - 2)
    v, h = y - top, x - left
    above = integral[top, left] * (1 - h) + integral[top, left + 1] * h
    below = integral[top + 1, left] * (1 - h) + integral[top + 1, left + 1] * h
    return above * (1 - v) + below * v


def grid(size: tuple[float, float], tile: tuple[float, float], step: tuple[float, float]) -> np.ndarray:
    """Top left corners of all tiles that lie inside, row by row, (N, 2) int64 x, y.

    Args:
        size: width, height. tile: width, height of a tile. step: distance of tiles, not rounded, so that it does not
            drift over a large slide. All in level-0 pixels.
    """
    if tile[0] > size[0] or tile[1] > size[1]:
        return np.zeros((0, 2), np.int64)
    counts = [int((size[k] - tile[k]) // step[k]) + 1 for k in (0, 1)]
    x, y = (np.rint(np.arange(counts[k]) * step[k]) for k in (0, 1))
    corners = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.int64)
    return corners[(corners + np.array(tile) <= np.array(size) + 0.5).all(axis=1)]


def evenly(count: int, limit: int | None) -> np.ndarray:
    """`limit` of the positions 0..count-1, the middles of equal stretches, (M,) int64; all without a limit."""
    if limit is None or count <= limit:
        return np.arange(count)
    return ((2 * np.arange(limit) + 1) * count) // (2 * limit)
