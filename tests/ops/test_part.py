import pickle

import polars as pl
import pytest

from appssl.errors import DataError, SettingsError
from appssl.ops.part import limited


class Data:
    meta = "meta"

    def __init__(self):
        self.samples = pl.DataFrame(
            {
                "index": [0, 1, 2, 3, 4],
                "split": ["train", "train", "train", "train", "test"],
                "label": ["a", "b", None, "b", "a"],
                "year": [1, 2, 2, 3, 3],
            }
        )

    def read(self, row):
        return row * 10


def kept(where):
    return limited(Data(), where, field="pretrain.where").samples.filter(pl.col("split") == "train")["index"].to_list()


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({"label": ["b"]}, [1, 3]),
        ({"label": ["a", "b"]}, [0, 1, 3]),
        ({"year": ["2", "3"]}, [1, 2, 3]),
        ({"label": ["b"], "year": ["3"]}, [3]),
        ({}, [0, 1, 2, 3]),
    ],
)
def test_training_rows_have_one_of_the_values_in_every_column(where, rows):
    assert kept(where) == rows


def test_only_the_split_of_training_rows_changes_and_all_else_is_that_of_the_data():
    part = limited(Data(), {"label": ["a"]}, field="pretrain.where")
    assert part.samples["split"].to_list() == ["train", "left_out", "left_out", "left_out", "test"]
    assert part.samples.drop("split").equals(Data().samples.drop("split"))
    assert part.meta == "meta"
    assert part.read(2) == 20
    assert not hasattr(part, "read_many")
    assert pickle.loads(pickle.dumps(part)).read(1) == 10  # workers may be started afresh


def test_a_column_that_is_not_there_and_values_that_nothing_has_are_refused():
    with pytest.raises(SettingsError, match=r"pretrain.where: the samples have no column lable. Did you mean label"):
        kept({"lable": ["a"]})
    with pytest.raises(DataError, match=r"pretrain.where .* leaves no training sample"):
        kept({"label": ["c"]})
