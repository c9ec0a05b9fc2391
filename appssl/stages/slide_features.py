"""Features of tiles as HDF5, a file per slide with `features` and `coords`, as CLAM and TRIDENT write and read them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl

from appssl.artifact import written_aside
from appssl.errors import DataError


def write_hdf5(samples: pl.DataFrame, features: np.ndarray, facts: dict[str, Any], out: Path) -> None:
    """Writes SLIDE.h5 into a folder: `features` (N, F) float32, `coords` (N, 2) int64 x, y of the corners of tiles.

    Coordinates are level-0 pixels; attributes of `coords` are the side of a tile in pixels and its um per pixel.

    Args:
        samples: slide_id, x, y of each row of features (N, F). facts: of the data's meta, with size_px and spacing_um.
    Raises:
        DataError: if the samples are no tiles of slides.
    """
    if not {"slide_id", "x", "y"} <= set(samples.columns):
        raise DataError(f"--out {out}: HDF5 is for tiles of slides; give a file name that ends in .parquet or .csv.")
    out.mkdir(parents=True, exist_ok=True)
    numbered = samples.with_row_index("row")
    names = file_names(samples["slide_id"].unique().sort().to_list())
    for (slide,), tiles in numbered.group_by("slide_id", maintain_order=True):
        with written_aside(out / f"{names[slide]}.h5") as file, h5py.File(file, "w") as content:
            content["features"] = features[tiles["row"].to_numpy()].astype(np.float32)
            content["coords"] = tiles.select("x", "y").to_numpy().astype(np.int64)
            content["coords"].attrs.update(tile_px=facts["size_px"], spacing_um=facts["spacing_um"], name=slide)


def file_names(slides: Sequence[str]) -> dict[str, str]:
    """A file name, without suffix, for each id; ids that would have the same name get a number."""
    names: dict[str, str] = {}
    for slide in slides:
        plain = re.sub(r"[^\w.\-]", "_", slide)
        same = sum(re.sub(r"[^\w.\-]", "_", other) == plain for other in names)
        names[slide] = f"{plain}-{same + 1}" if same else plain
    return names
