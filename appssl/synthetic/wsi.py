"""Drawn slides with known regions: pyramidal tiled JPEG TIFFs with tissue, tumour, artefacts, and two faulty ones.

Tissue is an uneven pink ground with fibres and nuclei; tumour has more, larger and darker nuclei, and every slide its
own amounts of stain, so that colour alone does not tell the two apart. One slide is empty, one file is cut short.
"""

import io
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import tifffile
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

MPP = 0.5
_SIDE = {"tiny": 1024, "small": 1536, "large": 24_576}  # pixels
_SLIDES = {"tiny": 3, "small": 8, "large": 2}  # with tissue, one patient each
_POINTS = {"tiny": 8, "small": 40, "large": 200}  # of each label on a slide
_PATCH = 4096  # nuclei are drawn in patches of this side, so that a large slide does not need a large canvas twice
_NUCLEI = {"stroma": 2000.0, "tumour": 5500.0}  # per mm2
_POINT_MARGIN_UM = 30.0  # labelled points are this far from any other region
# Optical density of red, green, blue for haematoxylin and eosin, as scanned slides show them.
_STAINS = np.array([[0.62, 0.70, 0.36], [0.12, 0.95, 0.28]], np.float32)

Polygon = np.ndarray  # (N, 2) float64 x, y in level-0 pixels


def make(folder: Path, *, size: Literal["tiny", "small", "large"], seed: int) -> None:
    """Writes `slides/*.tif`, `slides.csv`, `points.csv` and `truth/<slide>.geojson`.

    `slides.csv`: slide_id, path, patient_id, label (tumour or normal, empty for the faulty slides). `points.csv`:
    slide_id, x, y (level-0 pixels), label (tumour or stroma). Regions of the truth: tissue, tumour, pen, blur.
    """
    side = _SIDE[size]
    (folder / "slides").mkdir(parents=True, exist_ok=True)
    (folder / "truth").mkdir(exist_ok=True)
    slides: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    for number in range(_SLIDES[size]):
        rng = np.random.default_rng([seed, side, number])
        name = f"slide{number:02}"
        has_tumour = number % 4 != 3
        regions = _regions(side, has_tumour, has_pen=number == 0, has_blur=number == 1, rng=rng)
        _write_slide(folder / f"slides/{name}.tif", _draw(side, regions, rng))
        _write_truth(folder / f"truth/{name}.geojson", regions)
        label = "tumour" if has_tumour else "normal"
        slides.append({"slide_id": name, "patient_id": f"P{number + 1}", "label": label})
        points += [{"slide_id": name, **point} for point in _points(side, regions, _POINTS[size], rng)]
    rng = np.random.default_rng([seed, side, 1000])
    _write_slide(folder / "slides/empty.tif", _draw(min(side, 2048), [], rng))
    _write_truth(folder / "truth/empty.geojson", [])
    whole = (folder / "slides/slide00.tif").read_bytes()
    (folder / "slides/truncated.tif").write_bytes(whole[: len(whole) * 2 // 5])
    slides.append({"slide_id": "empty", "patient_id": "P1", "label": None})
    slides.append({"slide_id": "truncated", "patient_id": "P2", "label": None})
    table = pl.DataFrame(slides).with_columns(path="slides/" + pl.col("slide_id") + ".tif")
    table.select("slide_id", "path", "patient_id", "label").write_csv(folder / "slides.csv")
    pl.DataFrame(points).write_csv(folder / "points.csv")


def _regions(
    side: int, has_tumour: bool, *, has_pen: bool, has_blur: bool, rng: np.random.Generator
) -> list[tuple[str, Polygon]]:
    """Named polygons. Tumour lies inside the tissue, in one half of it, so that there is stroma too."""
    center = side * (0.5 + 0.04 * rng.standard_normal(2))
    regions = [("tissue", _blob(center, 0.40 * side, 0.10, rng))]
    if has_tumour:
        angle = rng.uniform(0, 2 * np.pi)
        for turn in (-0.5, 0.5):
            toward = np.array([np.cos(angle + turn), np.sin(angle + turn)])
            regions.append(("tumour", _blob(center + 0.19 * side * toward, 0.13 * side, 0.12, rng)))
    if has_pen:
        x, y = 0.02 * side, rng.uniform(0.05, 0.1) * side
        pen = [(x, y), (x + 0.25 * side, y - 0.02 * side), (x + 0.25 * side, y + 0.02 * side), (x, y + 0.04 * side)]
        regions.append(("pen", np.array(pen)))
    if has_blur:
        regions.append(("blur", _blob(center - 0.2 * side, 0.08 * side, 0.05, rng)))
    return regions


def _blob(center: np.ndarray, radius: float, roughness: float, rng: np.random.Generator) -> Polygon:
    """A closed curve around a centre, its radius a sum of a few waves."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    waves = sum(rng.uniform(-1, 1) * np.cos(k * angle + rng.uniform(0, 6.3)) / k for k in range(2, 6))
    r = radius * (1 + roughness * 2 * waves)
    return np.round(center + np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1), 1)


def mask_of(regions: list[tuple[str, Polygon]], name: str, side: int) -> np.ndarray:
    """Union of the regions of that name, (side, side) bool."""
    canvas = Image.new("1", (side, side))
    for region, polygon in regions:
        if region == name:
            ImageDraw.Draw(canvas).polygon([tuple(p) for p in polygon.tolist()], fill=1)
    return np.array(canvas)


def _draw(side: int, regions: list[tuple[str, Polygon]], rng: np.random.Generator) -> np.ndarray:
    """The slide, (side, side, 3) uint8."""
    tint = rng.uniform(228, 245, 3).astype(np.float32)
    strength = rng.uniform(0.8, 1.25, 2).astype(np.float32)
    tissue, tumour = mask_of(regions, "tissue", side), mask_of(regions, "tumour", side)
    blur, pen = mask_of(regions, "blur", side), mask_of(regions, "pen", side)
    image = np.empty((side, side, 3), np.uint8)
    for top in range(0, side, _PATCH):
        for left in range(0, side, _PATCH):
            box = np.s_[top : min(side, top + _PATCH), left : min(side, left + _PATCH)]
            image[box] = _patch(tissue[box], tumour[box], pen[box], tint, strength, rng)
    if blur.any():
        smooth = ndimage.uniform_filter(image, (15, 15, 1))
        image[blur] = smooth[blur]
    return image


def _patch(
    tissue: np.ndarray,
    tumour: np.ndarray,
    pen: np.ndarray,
    tint: np.ndarray,
    strength: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    shape = tissue.shape
    glass = tint * (1 + np.float32(0.01) * _noise(shape, 400, rng)[..., None])
    eosin = 0.30 + 0.08 * _noise(shape, 60, rng) + 0.07 * _noise(shape, 7, rng)
    haematoxylin = 0.06 + 0.02 * _noise(shape, 30, rng) + np.where(tumour, 0.03, 0).astype(np.float32)
    nuclei = np.maximum(_nuclei(tissue & ~tumour, "stroma", rng), _nuclei(tumour, "tumour", rng))
    haematoxylin = haematoxylin + nuclei
    eosin = eosin * (1 - 0.5 * np.minimum(nuclei, 1))
    inside = _blurred(Image.fromarray(tissue).convert("L"), 1.5)
    amounts = np.stack([haematoxylin * strength[0], eosin * strength[1]], axis=-1) * inside[..., None]
    density = np.maximum(amounts, 0) @ _STAINS
    density[pen] += np.array([0.9, 0.45, 0.1], np.float32)  # blue ink
    values = glass * np.exp(density * np.float32(-np.log(10)))
    values += 1.5 * rng.standard_normal(shape, np.float32)[..., None]
    return np.clip(values, 0, 255).astype(np.uint8)


def _nuclei(region: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Haematoxylin of nuclei whose centres lie in the region, (H, W) float32: round and dark, or slim and paler."""
    height, width = region.shape
    count = rng.poisson(_NUCLEI[kind] * height * width * MPP**2 / 1e6)
    x, y, turn = rng.uniform(0, width, count), rng.uniform(0, height, count), rng.uniform(0, np.pi, count)
    low, high, slim = (3.6, 5.6, 0.8) if kind == "tumour" else (2.6, 4.2, 0.45)
    radius = rng.uniform(low, high, count) / MPP
    dark = rng.uniform(150, 255, count) if kind == "tumour" else rng.uniform(110, 190, count)
    corner = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    for n in np.flatnonzero(region[y.astype(int), x.astype(int)]):
        u, v = radius[n] * np.cos(corner), radius[n] * slim * np.sin(corner)
        xs = x[n] + u * np.cos(turn[n]) - v * np.sin(turn[n])
        ys = y[n] + u * np.sin(turn[n]) + v * np.cos(turn[n])
        draw.polygon(list(zip(xs.tolist(), ys.tolist(), strict=True)), fill=int(dark[n]))
    return _blurred(canvas, 0.8)


def _blurred(canvas: Image.Image, sigma: float) -> np.ndarray:
    """(H, W) float32 in 0..1 of a grey image, its edges softened."""
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(sigma)), np.float32) / np.float32(255)


def _noise(shape: tuple[int, ...], grain: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of about unit size with structures of `grain` pixels, (H, W) float32."""
    coarse = rng.standard_normal((shape[0] // grain + 3, shape[1] // grain + 3)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _points(
    side: int, regions: list[tuple[str, Polygon]], count: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Points well inside tumour and stroma."""
    step = max(1, side // 512)  # distances on a coarser grid are good enough, and a large slide stays cheap
    tumour = mask_of(regions, "tumour", side)[::step, ::step]
    bad = (mask_of(regions, "pen", side) | mask_of(regions, "blur", side))[::step, ::step]
    stroma = mask_of(regions, "tissue", side)[::step, ::step] & ~tumour & ~bad
    found = []
    for label, mask in (("tumour", tumour & ~bad), ("stroma", stroma)):
        inside = np.pad(mask, 1)
        distance = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
        rows, columns = np.nonzero(distance > _POINT_MARGIN_UM / MPP / step)
        chosen = rng.choice(len(rows), min(count, len(rows)), replace=False)
        found += [{"x": int(columns[n]) * step, "y": int(rows[n]) * step, "label": label} for n in chosen]
    return found


def _write_slide(path: Path, image: np.ndarray) -> None:
    """A pyramid by halving, down to 256 pixels, in JPEG tiles of 256 x 256, with its spacing in the resolution tags."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        level, mpp = image, MPP
        while True:
            writer.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 88},
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
                subfiletype=0 if level is image else 1,
                metadata=None,
                software=False,
            )
            if min(level.shape[:2]) <= 256:
                break
            level, mpp = np.asarray(Image.fromarray(level).reduce(2)), mpp * 2
    path.write_bytes(stream.getvalue())


def _write_truth(path: Path, regions: list[tuple[str, Polygon]]) -> None:
    """GeoJSON polygons in level-0 pixels, y down, as QuPath writes them."""
    features = [
        {
            "type": "Feature",
            "properties": {"classification": {"name": name}},
            "geometry": {"type": "Polygon", "coordinates": [[*polygon.tolist(), polygon[0].tolist()]]},
        }
        for name, polygon in regions
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}, indent=1) + "\n", encoding="utf-8")
