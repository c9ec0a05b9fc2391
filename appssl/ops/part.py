"""Prepared data of which only some training samples are trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from appssl.errors import DataError, SettingsError
from appssl.settings import nearest

LEFT_OUT = "left_out"  # the split of training samples that are not trained on
Where = Mapping[str, Sequence[str]]


class Part:
    """The data with other `samples`; all else is as it was."""

    def __init__(self, data: Any, samples: pl.DataFrame) -> None:
        self._data, self.samples = data, samples

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # not yet there while a worker process unpacks it
            raise AttributeError(name)
        return getattr(self.__dict__["_data"], name)


def limited(data: Any, where: Where, *, field: str) -> Any:
    """The data without those training samples that `where` does not name; their split is `left_out`.

    Args:
        where: columns of `samples`, and the values that training rows have in all of them. field: the setting's name.
    Raises:
        SettingsError: if there is no such column. DataError: if no training sample is left.
    """
    if not where:
        return data
    is_train = pl.col("split") == "train"
    samples = data.samples.with_columns(split=pl.when(is_train & ~matching(data.samples, where, field=field))
                                        .then(pl.lit(LEFT_OUT)).otherwise(pl.col("split")))  # fmt: skip
    if samples.filter(is_train).is_empty():
        raise DataError(f"{field} {dict(where)} leaves no training sample. Correct the values.")
    return Part(data, samples)


def matching(samples: pl.DataFrame, where: Where, *, field: str) -> pl.Expr:
    """Whether a row has, in every column, one of the values; a missing value is none of them."""
    for column in where:
        if column not in samples.columns:
            raise SettingsError(f"{field}: the samples have no column {column}.{nearest(column, samples.columns)}")
    named = [pl.col(column).cast(pl.String).is_in(list(values)).fill_null(False) for column, values in where.items()]
    return pl.all_horizontal(named)
