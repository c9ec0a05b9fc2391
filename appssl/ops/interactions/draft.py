"""What the columns of a log and of its item table are, guessed from their names and values."""

from pathlib import Path
from typing import Any

import polars as pl

from appssl.errors import DataError
from appssl.ops.interactions.event_tables import reading, scan
from appssl.ops.table_limits import checked

_ITEM_TABLES = ("items.csv", "items.parquet", "movies.csv", "products.csv")
_ITEM_IDS = ("item_id", "itemid", "item", "movieid", "product_id", "asin", "id")


def drafted(table: Path) -> dict[str, Any]:
    """Settings of the source for a log; its item table is looked for beside it.

    Raises:
        DataError: if user, item or time columns, or the item table, are not found.
    """
    found = _guess(scan(table).collect_schema().names(), table)
    items = next((path for name in _ITEM_TABLES if (path := table.parent / name).is_file()), None)
    if items is None:
        raise DataError(f"{table}: no item table beside it (items.csv or items.parquet): features of items are needed.")
    names = scan(items).collect_schema().names()
    key = next((name for name in names if name.lower() in _ITEM_IDS), names[0])
    with reading(items):
        sample = scan(checked(items)).head(1000).collect()
    features = [name for name in names if name != key]
    multi = [name for name in features if sample[name].cast(pl.String).str.contains(r"\|").any()]
    few = [name for name in features if name not in multi and sample[name].n_unique() <= max(2, len(sample) // 2)]
    if not multi and not few:
        raise DataError(f"{items}: no column looks like a feature (few distinct values, or values divided by |).")
    source: dict[str, Any] = {"interactions": table.name, "columns": found, "items": items.name, "item_id": key}
    source |= {"categorical": few} if few else {}
    source |= {"multi": [{"column": name} for name in multi]} if multi else {}
    return source


def _guess(names: list[str], table: Path) -> dict[str, str]:
    known = {
        "user": ("user_id", "userid", "user", "customer_id"),
        "item": ("item_id", "itemid", "item", "movieid", "product_id", "asin"),
        "timestamp": ("timestamp", "time", "date", "datetime", "created_at"),
        "rating": ("rating", "score", "stars"),
    }
    found = {what: next((n for n in names if n.lower() in words), None) for what, words in known.items()}
    missing = [what for what in ("user", "item", "timestamp") if found[what] is None]
    if missing:
        raise DataError(f"{table}: no column looks like {', '.join(missing)}; it has {', '.join(names)}.")
    return {what: name for what, name in found.items() if name is not None}
