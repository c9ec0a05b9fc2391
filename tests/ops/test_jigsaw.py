import numpy as np
import pytest
import torch

from appssl.ops.jigsaw import cells, far_orders, shuffled


def literal_resized(cell, height, width):
    """Bilinear, pixel centres at halves, borders repeated: one value at a time."""
    out = torch.zeros(len(cell), height, width, dtype=cell.dtype)
    for row in range(height):
        for column in range(width):
            y = min(max((row + 0.5) * cell.shape[1] / height - 0.5, 0), cell.shape[1] - 1)
            x = min(max((column + 0.5) * cell.shape[2] / width - 0.5, 0), cell.shape[2] - 1)
            for a in {int(y), min(int(y) + 1, cell.shape[1] - 1)}:
                for b in {int(x), min(int(x) + 1, cell.shape[2] - 1)}:
                    out[:, row, column] += cell[:, a, b] * (1 - abs(y - a)) * (1 - abs(x - b))
    return out


@pytest.mark.parametrize(("height", "width", "top", "left"), [(9, 12, 0, 0), (11, 10, 1, 0)])
def test_cells_are_the_nine_parts_enlarged(height, width, top, left):
    images = torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, (h, w) = cells(images), (height // 3, width // 3)
    assert found.shape == (2, 9, 3, height, width)
    for number in range(9):
        row, column = top + number // 3 * h, left + number % 3 * w
        for image, own in zip(images, found, strict=True):
            expected = literal_resized(image[:, row : row + h, column : column + w], height, width)
            torch.testing.assert_close(own[number], expected)


def test_orders_are_permutations_and_far_apart():
    orders = far_orders(35)
    assert orders.shape == (35, 9)
    assert orders[0].tolist() == list(range(9))
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    distances = (orders[:, None] != orders).sum(2)[~np.eye(35, dtype=bool)]
    assert distances.min() >= 7  # random ones have some of 4 or 5
    assert np.array_equal(far_orders(12), orders[:12])
    with pytest.raises(ValueError, match="read-only"):
        orders[0, 0] = 1


def test_the_next_order_is_the_farthest_of_all():
    """The second differs in all places, and the alphabet's first such order is this one."""
    assert far_orders(2)[1].tolist() == [1, 0, 3, 2, 5, 4, 7, 8, 6]


def test_pieces_are_put_where_the_order_says():
    pieces = torch.arange(18).reshape(2, 9)
    orders = torch.from_numpy(far_orders(4)[[0, 3]].copy())
    found = shuffled(pieces, orders)
    assert found[0].tolist() == list(range(9))
    assert found[1].tolist() == [9 + piece for piece in orders[1].tolist()]
