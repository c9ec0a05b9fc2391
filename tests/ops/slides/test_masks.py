import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from appssl.ops.slides.masks import BadMask, read_mask, to_geojson

SQUARE = [[[10, 10], [50, 10], [50, 50], [10, 50], [10, 10]]]
BOW_TIE = [[[10, 10], [50, 50], [50, 10], [10, 50], [10, 10]]]


def polygon(rings, kind="Polygon"):
    return {"type": kind, "coordinates": rings}


def write(folder, content):
    path = folder / "mask.geojson"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@settings(max_examples=60)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))), st.integers(1, 5000), st.integers(1, 99))
def test_a_mask_given_back_is_the_same(tmp_path_factory, mask, width, height):
    path = write(tmp_path_factory.mktemp("masks"), to_geojson(mask, (width, height)))
    assert (read_mask(path, (width, height), mask.shape) == mask).all()


def test_areas_are_in_level_0_pixels_and_holes_are_kept():
    mask = np.ones((4, 5), bool)
    mask[1:3, 2] = False
    (feature,) = to_geojson(mask, (500, 400))["features"]
    shape = shapely.from_geojson(json.dumps(feature["geometry"]))
    assert shape.area == 200_000 - 20_000
    assert len(shape.interiors) == 1
    assert feature["properties"]["objectType"] == "annotation"


def test_pixels_inside_are_those_that_the_geometry_library_has_inside(tmp_path):
    rng = np.random.default_rng(0)
    star = [
        (30 + r * np.cos(a), 25 + r * np.sin(a))
        for a, r in zip(np.linspace(0, 6.2, 40), rng.uniform(5, 40, 40), strict=True)
    ]
    path = write(tmp_path, polygon([[*star, star[0]]]))
    found = read_mask(path, (60, 50), (50, 60))
    x, y = np.meshgrid(np.arange(60) + 0.5, np.arange(50) + 0.5)
    assert (found == shapely.contains_xy(shapely.Polygon(star), x, y)).all()
    assert 0 < found.sum() < found.size


@pytest.mark.parametrize(
    "content",
    [
        polygon(SQUARE),
        polygon([SQUARE], "MultiPolygon"),
        {"type": "Feature", "geometry": polygon(SQUARE), "properties": {}},
        [{"type": "Feature", "geometry": polygon(SQUARE)}, {"type": "Feature", "geometry": polygon(SQUARE)}],
        {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": polygon(SQUARE)}]},
    ],
)
def test_all_forms_that_qupath_writes_are_read(tmp_path, content):
    found = read_mask(write(tmp_path, content), (100, 100), (10, 10))
    expected = np.zeros((10, 10), bool)
    expected[1:5, 1:5] = True
    assert (found == expected).all()


def test_what_lies_beside_the_slide_is_cut_off(tmp_path):
    rings = [[[-50, -50], [35, -50], [35, 500], [-50, 500], [-50, -50]]]
    found = read_mask(write(tmp_path, polygon(rings)), (100, 100), (10, 10))
    assert found[:, :3].all()
    assert not found[:, 4:].any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (polygon(BOW_TIE), r"shape 1 is no area: Self-intersection\[30 30\]"),
        ("{", "is no JSON"),
        ({"type": "Point", "coordinates": [1, 2]}, "shape 1 is Point, not Polygon"),
        ({"type": "Feature", "geometry": None}, "shape 1 is nothing, not Polygon"),
        (7, "shape 1 is nothing"),
        (polygon([[[0, 0], [1, "a"], [1, 1], [0, 0]]]), "shape 1 cannot be understood"),
        (polygon([[[0, 0], [9, 0], [1, 1]]]), "shape 1 cannot be understood"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 0], [1, 1], [0, 0]]]}', "shape 1 cannot be understood"),
    ],
)
def test_what_is_no_area_is_refused_with_what_to_do(tmp_path, content, message):
    with pytest.raises(BadMask, match=message) as error:
        read_mask(write(tmp_path, content), (100, 100), (10, 10))
    assert "draw it again" in str(error.value)


def test_a_missing_file_is_named_as_such(tmp_path):
    with pytest.raises(BadMask, match="cannot be read"):
        read_mask(tmp_path / "none.geojson", (9, 9), (9, 9))
