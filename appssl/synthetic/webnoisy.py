"""A keyword crawl with known faults: drawn shapes under six words, wrong labels, irrelevant finds, copies, damage.

Every class is a shape (disc, square, triangle, star, ring, cross) of any colour, slightly turned and moved, on a
textured background with other small marks, so that neither colour nor brightness tells the class. Irrelevant finds
(stripes, spots, gradients with lines) show no such shape, and are in the training part only.
"""

import io
import math
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from PIL import Image, ImageDraw

from appssl.ops.images.index import OOD

CLASSES = ("cross", "disc", "ring", "square", "star", "triangle")
WRONG, IRRELEVANT, COPIES, TEST = 0.20, 0.15, 0.03, 0.25  # shares; IRRELEVANT and WRONG of the training part
_COUNT = {"tiny": 80, "small": 1500, "large": 20_000}  # drawn images, copies and damaged files come on top
_SIDES = {"tiny": (32, 32), "small": (48, 64), "large": (48, 96)}
_OVERSAMPLING = 3  # shapes are drawn larger and shrunk, for smooth edges


def make(folder: Path, *, size: Literal["tiny", "small", "large"], seed: int) -> None:
    """Writes `table.csv` (id, path, label, split, true_label), `images/<label>/<id>.jpg` and `truth/truth.csv`.

    `truth.csv` has a row per file: id, true_label, kind (clean, id_noise, ood_noise), fault (empty, copy, copy_across,
    truncated, html, empty, bomb, uniform), copy_of.
    """
    rng = np.random.default_rng([seed, _COUNT[size]])
    rows, files = [], {}
    for number in range(_COUNT[size]):
        row, content = _drawn(number, _SIDES[size], rng)
        rows.append(row)
        files[row["id"]] = content
    drawn = list(rows)
    for number in range(max(4, round(COPIES * len(drawn)))):
        across = number % 2 == 0
        choice = [row for row in drawn if row["true_label"] != OOD] if across else drawn
        original = choice[int(rng.integers(len(choice)))]
        copy = _copy(number, original, across, rng)
        rows.append(copy)
        files[copy["id"]] = files[original["id"]]
    for number in range(max(1, len(drawn) // 300)):
        for fault in ("truncated", "html", "empty", "bomb", "uniform"):
            row = _row(f"{fault}{number:03}", rng, split="train")
            rows.append({**row, "fault": fault})
            files[row["id"]] = _damaged(fault, files[drawn[number]["id"]], rng)
    _write(folder, rows, files)


def _row(name: str, rng: np.random.Generator, *, split: str) -> dict[str, Any]:
    """A file with a true class, and a web label that is wrong as often as it should be."""
    truth = CLASSES[rng.integers(len(CLASSES))]
    label, kind = truth, "clean"
    if rng.random() < WRONG / (1 - IRRELEVANT):
        others = [name for name in CLASSES if name != truth]
        label, kind = others[rng.integers(len(others))], "id_noise"
    return {"id": name, "label": label, "split": split, "true_label": truth, "kind": kind, "fault": "", "copy_of": ""}


def _drawn(number: int, sides: tuple[int, int], rng: np.random.Generator) -> tuple[dict[str, Any], bytes]:
    split = "test" if rng.random() < TEST else "train"
    row = _row(f"img{number:05}", rng, split=split)
    side = int(rng.integers(sides[0], sides[1] + 1))
    if split == "train" and rng.random() < IRRELEVANT:
        row |= {"true_label": OOD, "kind": "ood_noise"}
        image = irrelevant(side, rng)
    else:
        image = shape(row["true_label"], side, rng)
    return row, _jpeg(image, quality=int(rng.integers(75, 95)))


def _copy(number: int, original: dict[str, Any], across: bool, rng: np.random.Generator) -> dict[str, Any]:
    """The same bytes under another id, `across` in the other part, as when two searches find one file."""
    split = ("test" if original["split"] == "train" else "train") if across else original["split"]
    label = original["label"] if rng.random() < 0.5 else CLASSES[rng.integers(len(CLASSES))]
    truth = original["true_label"]
    kind = "ood_noise" if truth == OOD else "clean" if label == truth else "id_noise"
    fault = "copy_across" if across else "copy"
    made = {"id": f"{original['id']}_copy{number}", "label": label, "split": split, "kind": kind, "fault": fault}
    return {**original, **made, "copy_of": original["id"]}


def _damaged(fault: str, whole: bytes, rng: np.random.Generator) -> bytes:
    if fault == "truncated":
        return whole[: -len(whole) // 8]
    if fault == "html":
        return b"<!DOCTYPE html><html><body>403 Forbidden</body></html>\n"
    if fault == "empty":
        return b""
    if fault == "bomb":
        return _claiming_png(100_000, 100_000)
    color = tuple(int(value) for value in rng.integers(0, 256, 3))
    return _jpeg(Image.new("RGB", (48, 48), color), quality=90)


def _claiming_png(width: int, height: int) -> bytes:
    """A PNG of one pixel whose header claims `width` x `height`."""
    content = io.BytesIO()
    Image.new("RGB", (1, 1)).save(content, "PNG")
    whole = bytearray(content.getvalue())
    whole[16:24] = struct.pack(">II", width, height)
    whole[29:33] = struct.pack(">I", zlib.crc32(bytes(whole[12:29])))
    return bytes(whole)


def _jpeg(image: Image.Image, *, quality: int) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return content.getvalue()


def shape(name: str, side: int, rng: np.random.Generator) -> Image.Image:
    """A picture of one of `CLASSES`, (side, side) RGB."""
    large = side * _OVERSAMPLING
    image = _background(large, rng)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 3))):  # small marks that belong to no class
        x, y = rng.uniform(0, large, 2)
        draw.line(
            (x, y, *(np.array((x, y)) + rng.normal(0, large / 8, 2))), fill=_color(rng), width=int(large / 30) + 1
        )
    radius = rng.uniform(0.26, 0.4) * large
    center = np.clip(rng.normal(0.5, 0.07, 2) * large, radius, large - radius)
    fill = _contrasting(image, center, radius, rng)
    if name in ("disc", "ring"):
        squeeze = rng.uniform(0.75, 1.0)
        reach = np.array((radius, radius * squeeze))
        box = (*(center - reach), *(center + reach))
        draw.ellipse(box, fill=fill if name == "disc" else None, outline=fill, width=int(radius / 3) + 1)
    else:
        draw.polygon([tuple(point) for point in _outline(name, radius, center, rng)], fill=fill)
    return _grainy(image.resize((side, side), Image.Resampling.BOX), rng)


def _outline(name: str, radius: float, center: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Corners (P, 2) of a turned and slightly sheared polygon."""
    if name == "cross":
        arm = 0.3
        points = np.array([(1, arm), (arm, arm), (arm, 1)])
        quarters = [points @ np.array([[math.cos(t), math.sin(t)], [-math.sin(t), math.cos(t)]]) for t in _turns(4)]
        corners = np.concatenate(quarters)
    elif name == "star":
        angles = _turns(10)
        lengths = np.where(np.arange(10) % 2 == 0, 1.1, 0.45)
        corners = lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    else:
        angles = _turns(4 if name == "square" else 3)
        corners = 1.1 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    turn, shear = rng.normal(0, 0.3), rng.uniform(-0.2, 0.2)
    matrix = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) @ [[1, shear], [0, 1]]
    return corners @ matrix * radius + center


def _turns(count: int) -> np.ndarray:
    return np.arange(count) * (2 * math.pi / count)


def irrelevant(side: int, rng: np.random.Generator) -> Image.Image:
    """Stripes, spots or bare background with long lines; (side, side) RGB."""
    large = side * _OVERSAMPLING
    image = _background(large, rng)
    draw = ImageDraw.Draw(image)
    kind = rng.integers(3)
    if kind == 0:
        step, color, slope = rng.uniform(0.08, 0.25) * large, _color(rng), rng.uniform(-1, 1)
        for x in np.arange(-large, 2 * large, step):
            draw.line((x, 0, x + slope * large, large), fill=color, width=int(step / 3) + 1)
    elif kind == 1:
        color = _color(rng)
        for x, y in rng.uniform(0, large, (int(rng.integers(15, 40)), 2)):
            radius = rng.uniform(0.01, 0.05) * large
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    else:
        for _ in range(int(rng.integers(4, 10))):
            draw.line(tuple(rng.uniform(-0.2 * large, 1.2 * large, 4)), fill=_color(rng), width=int(large / 25) + 1)
    return _grainy(image.resize((side, side), Image.Resampling.BOX), rng)


def _background(side: int, rng: np.random.Generator) -> Image.Image:
    """Cloudy texture in a random tint: a few coarse random values, enlarged."""
    coarse = rng.normal(0, 12, (5, 5, 3)) + rng.uniform(40, 215) + rng.normal(0, 20, 3)
    return Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


def _color(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
    return red, green, blue


def _contrasting(
    image: Image.Image, center: np.ndarray, radius: float, rng: np.random.Generator
) -> tuple[int, int, int]:
    """A random colour that differs visibly from what lies around the centre."""
    left, top, right, bottom = (int(value) for value in (*np.maximum(center - radius, 0), *(center + radius)))
    around = np.asarray(image.crop((left, top, right, bottom))).reshape(-1, 3).mean(axis=0)
    for _ in range(50):
        color = _color(rng)
        if np.abs(np.array(color) - around).sum() > 150:
            return color
    return (255, 255, 255) if around.mean() < 128 else (0, 0, 0)


def _grainy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    noisy = np.asarray(image, np.float64) + rng.normal(0, rng.uniform(2, 12), (*image.size[::-1], 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _write(folder: Path, rows: list[dict[str, Any]], files: dict[str, bytes]) -> None:
    frame = pl.DataFrame(rows).with_columns(path=pl.format("images/{}/{}.jpg", "label", "id")).sort("id")
    for name, path in frame.select("id", "path").iter_rows():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files[name])
    (folder / "truth").mkdir(exist_ok=True)
    frame.select("id", "path", "label", "split", "true_label").write_csv(folder / "table.csv")
    frame.select("id", "true_label", "kind", "fault", "copy_of").write_csv(folder / "truth" / "truth.csv")
