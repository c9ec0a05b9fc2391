"""Small bags of vectors, for tests of multiple-instance learning."""

import numpy as np
import polars as pl
import torch

from appssl.contracts import Meta

CLASSES = ("negative", "positive")


class BagData:
    """Rows of `num_bags` bags; a quarter of the rows of a positive bag are positive, shifted by `shift`."""

    def __init__(self, num_bags, length, *, positive=lambda bag: bag % 2 == 1, split="train", shift=3.0):
        rng = np.random.default_rng(0)
        rows = []
        for bag in range(num_bags):
            for k in range(length):
                own = positive(bag) and k % 4 == 0
                rows.append(
                    {
                        "index": len(rows),
                        "id": f"bag{bag}/{k}",
                        "group": f"patient{bag // 2}",
                        "split": split,
                        "label": CLASSES[positive(bag)],
                        "true_label": CLASSES[own],
                        "bag": f"bag{bag}",
                    }
                )
        self.samples = pl.DataFrame(rows)
        is_positive = (self.samples["true_label"] == "positive").to_numpy()
        self.values = rng.normal(size=(len(rows), 4)).astype(np.float32) + shift * is_positive[:, None]
        self.meta = Meta("test", "wsi", "classification", CLASSES, "patient", {"bag": "bag"})

    def read(self, row):
        return self.values[row].astype(np.float32)


class PlainViews:
    num_views, input_shape = 2, (4,)

    def views(self, sample, rng):
        return [torch.as_tensor(sample + 0.1 * rng.normal(size=4), dtype=torch.float32) for _ in range(2)]

    def augment(self, sample, rng):
        return torch.as_tensor(sample)

    def plain(self, sample):
        return torch.as_tensor(sample)
