"""A recipe for a user's slides, guessed from their table or folder, and a table of the slides of a folder."""

from pathlib import Path
from typing import Any

import polars as pl

from appssl.ops.slides.table import guessed_columns, list_folder, read_table


def draft(table: Path) -> dict[str, Any]:
    """A recipe for a table or folder of slides, filled in from what is there.

    Raises:
        DataError: if the table cannot be read.
    """
    source: dict[str, Any] = {"name": "wsi", "spacing_um": 0.5, "tile_px": 224}
    labelled = False
    if table.is_dir():
        source |= {"folder": table.name, "group_by": "slide", "split": {"test": 0}}
    else:
        frame = read_table(table.parent, table.name, "slides")
        names = [name for name in frame.columns if frame[name].null_count() < len(frame)]
        columns = guessed_columns(names)
        labelled = "label" in (*names, *columns)
        source |= {"table": table.name, "slide_labels": labelled}
        source |= {"columns": columns} if columns else {}
        if "patient_id" not in names and "patient" not in columns:
            source["group_by"] = "slide"
        if not labelled:
            source["split"] = {"test": 0}
    what = f"An encoder pretrained on the tiles of {table.name}"
    recipe: dict[str, Any] = {
        "description": f"{what}, and a classifier of slides by attention over their tiles." if labelled else f"{what}.",
        "domain": "wsi",
        "data": {"source": source, "budget": 0.005},
        "pretrain": {
            "backbone": {"name": "timm", "model": "resnet18"},
            "views": {"name": "histology", "size": 128},
            "learner": "joint_embedding",
            "fit": {"epochs": 20, "batch_size": 128},
        },
        "quick": {"data.source.limit_slides": 8, "data.source.limit_tiles": 40, "pretrain.fit.epochs": 1},
    }
    if labelled:
        recipe["finetune"] = {
            "finetuner": {"name": "abmil", "freeze": True, "features": "once"},
            "fit": {"epochs": 20, "batch_size": 4},
        }
        recipe["evaluate"] = {"evaluators": ["mil"]}
        recipe["quick"]["finetune.fit.epochs"] = 1
    return recipe


def listed(folder: Path) -> pl.DataFrame:
    """A table of the slides below a folder, with empty columns to be filled in; paths are relative to the folder.

    Raises:
        DataError: if there is no slide.
    """
    slides, _ = list_folder(folder.parent, folder.name)
    empty = {name: pl.lit(None, pl.String) for name in ("patient_id", "label", "split", "mpp", "mask_path")}
    return slides.select("slide_id", "path").with_columns(**empty)
