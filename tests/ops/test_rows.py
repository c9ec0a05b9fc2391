import numpy as np
import polars as pl
import pytest
import torch
from lightning_fabric.utilities.apply_func import move_data_to_device

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.ops.images.drawn_views import DrawnViews
from appssl.ops.random import rng_for
from appssl.ops.rows import batch_of_views, is_rendered_later, raw_samples, rendered, training_rows
from appssl.views import histology, image_two_crop, multi_crop
from tests.bags import BagData, PlainViews


def samples(*splits):
    return pl.DataFrame({"index": range(len(splits)), "split": splits}, schema_overrides={"split": pl.String})


def test_training_rows_are_those_of_the_training_part_labelled_or_not():
    found = training_rows(samples("train", "test", "train", "val"))
    assert found.tolist() == [0, 2]
    assert found.dtype == "int64"


def test_without_training_rows_nothing_can_be_learned():
    with pytest.raises(DataError, match="no training samples"):
        training_rows(samples("test"))


def test_views_depend_on_seed_epoch_and_row_only():
    data, views = BagData(num_bags=2, length=8), PlainViews()
    batch = batch_of_views(data, np.array([9, 4]), views, seed=5, epoch=3)
    assert batch["index"].tolist() == [9, 4]
    expected = views.views(data.read(9), rng_for(5, 3, 9))
    assert all(torch.equal(view[0], alone) for view, alone in zip(batch["views"], expected, strict=True))
    other = batch_of_views(data, np.array([9, 4]), views, seed=5, epoch=4)
    assert not torch.equal(batch["views"][0], other["views"][0])


def test_rows_are_read_in_the_order_of_the_data_and_stay_in_that_of_the_batch():
    data, views, read = BagData(num_bags=2, length=8), PlainViews(), []
    plain = data.read
    data.read = lambda row: read.append(row) or plain(row)
    batch = batch_of_views(data, np.array([9, 4, 12, 4]), views, seed=5, epoch=3)
    assert read == [4, 4, 9, 12]
    for place, row in enumerate((9, 4, 12, 4)):
        assert torch.equal(batch["views"][0][place], views.views(plain(row), rng_for(5, 3, row))[0])


def test_samples_are_read_at_once_where_the_data_can():
    data = BagData(num_bags=2, length=8)
    one_by_one = list(raw_samples(data, np.array([9, 4])))
    assert len(one_by_one) == 2
    asked = []
    data.read_many = lambda rows: asked.append(rows.tolist()) or np.stack([data.read(int(row)) for row in rows])
    for sample, alone in zip(raw_samples(data, np.array([9, 4])), one_by_one, strict=True):
        np.testing.assert_array_equal(sample, alone)
    assert asked == [[9, 4]]


class Images:
    """Images of one colour each."""

    def read(self, row):
        return np.full((16, 16, 3), 20 + 10 * row, np.uint8)


def crops(**values):
    facts = {"size_px": 16, "rgb_mean": [0.5] * 3, "rgb_std": [0.2] * 3}
    meta = Meta("test", "webnoisy", "classification", facts=facts)
    return image_two_crop.build(image_two_crop.Config(jitter=0, grey=0, **values), meta)


def test_views_for_the_device_are_drawn_and_rendered_when_asked_for():
    rows, later = np.array([9, 4, 12, 4]), crops(render="device")
    batch = batch_of_views(Images(), rows, later, seed=5, epoch=3)
    assert isinstance(batch["views"], DrawnViews)
    assert batch["views"].images.dtype == torch.uint8
    assert batch["views"].images[:, 0, 0, 0].tolist() == [110, 60, 140, 60]
    expected = rendered(batch_of_views(Images(), rows, crops(), seed=5, epoch=3))
    made = rendered(batch)
    assert made["index"].tolist() == expected["index"].tolist() == [9, 4, 12, 4]
    for one, two in zip(made["views"], expected["views"], strict=True):
        torch.testing.assert_close(one, two)  # one colour: crops are all the same


class Noise:
    def read(self, row):
        return np.random.default_rng(row).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", [image_two_crop, multi_crop, histology], ids=lambda kind: kind.__name__)
def test_levels_of_views_become_the_same_numbers_later(kind):
    facts = {"size_px": 16, "rgb_mean": [0.5, 0.4, 0.6], "rgb_std": [0.2, 0.3, 0.1]}
    meta = Meta("test", "webnoisy", "classification", facts=facts)
    views = kind.build(kind.Config(), meta)
    batch = batch_of_views(Noise(), np.array([9, 4]), views, seed=5, epoch=3)
    assert {view.dtype for view in batch["views"].levels} == {torch.uint8}
    alone = [views.views(Noise().read(row), rng_for(5, 3, row)) for row in (9, 4)]
    for view, expected in zip(rendered(batch)["views"], zip(*alone, strict=True), strict=True):
        assert torch.equal(view, torch.stack(expected))
        assert view.is_contiguous()


def test_levels_are_moved_and_pinned_with_their_batch():
    batch = batch_of_views(Noise(), np.array([9, 4]), crops(), seed=5, epoch=3)
    moved = move_data_to_device(batch, torch.device("meta"))["views"]
    assert {part.device.type for part in (*moved.levels, moved.scale, moved.shift)} == {"meta"}
    assert [view.shape for view in moved.render()] == [(2, 3, 16, 16)] * 2


def test_what_is_drawn_depends_on_seed_epoch_and_row_only():
    def made(*rows, epoch=0):
        return batch_of_views(Noise(), np.array(rows), crops(render="device"), seed=1, epoch=epoch)["views"]

    assert torch.equal(made(3, 7, 5).drawn[:, 1], made(7).drawn[:, 0])
    assert not torch.equal(made(7).drawn, made(7, epoch=1).drawn)


def test_batches_that_have_their_views_or_none_are_left_as_they_are():
    for batch in ({"index": torch.zeros(2)}, {"views": [torch.zeros(2, 4)]}):
        assert rendered(batch) is batch


@pytest.mark.parametrize(("views", "later"), [(PlainViews(), False), (crops(), False), (crops(render="device"), True)])
def test_views_say_where_they_are_rendered(views, later):
    assert is_rendered_later(views) == later
