import h5py
import numpy as np
import polars as pl
import pytest

from appssl.errors import DataError
from appssl.stages.predict import embed_table
from appssl.stages.slide_features import file_names, write_hdf5
from tests.stages.conftest import draw

SAMPLES = pl.DataFrame({"slide_id": ["b", "a/1", "b", "a_1"], "x": [0, 5, 128, 7], "y": [9, 6, 256, 8]})
FEATURES = np.arange(12, dtype=np.float64).reshape(4, 3)
FACTS = {"size_px": 224, "spacing_um": 0.5}


def test_each_slide_has_its_features_and_coordinates_in_the_order_of_the_samples(tmp_path):
    write_hdf5(SAMPLES, FEATURES, FACTS, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_1-2.h5", "a_1.h5", "b.h5"]
    with h5py.File(tmp_path / "out/b.h5") as content:
        assert content["features"].dtype == np.float32
        assert content["features"][:].tolist() == [[0, 1, 2], [6, 7, 8]]
        assert content["coords"].dtype == np.int64
        assert content["coords"][:].tolist() == [[0, 9], [128, 256]]
        assert dict(content["coords"].attrs) == {"name": "b", "spacing_um": 0.5, "tile_px": 224}
    names = file_names(["a/1", "a_1"])
    for slide, row in (("a/1", 1), ("a_1", 3)):
        with h5py.File(tmp_path / f"out/{names[slide]}.h5") as content:
            assert content["features"][:].tolist() == [FEATURES[row].tolist()]
            assert content["coords"].attrs["name"] == slide


def test_images_that_are_no_tiles_are_refused(crawl, tmp_path):
    draw(tmp_path, 3, seed=1)
    with pytest.raises(DataError, match="HDF5 is for tiles of slides"):
        embed_table(crawl.run, tmp_path / "table.csv", tmp_path / "features")
