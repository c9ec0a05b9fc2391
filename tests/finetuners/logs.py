"""A small log of interactions, as arrays and as a prepared data artifact with a model trained on it by the stage."""

import numpy as np
import polars as pl

from appssl.artifact import ArtifactWriter
from appssl.contracts import Meta
from appssl.ops.interactions.statistics import popularity_slices
from appssl.plan import MODELS, StageConfig
from appssl.settings import validate
from appssl.sources import recsys
from appssl.stages.finetune import finetune
from appssl.synthetic.recsys import make

FIELDS = [{"name": "a", "start": 0, "length": 2}]
META = Meta(source="recsys", domain="recsys", task="ranking", facts={"fields": FIELDS, "vocab_size": 40})
USERS, ITEMS, COLD = 8, 24, 4


class Log:
    """Groups of users prefer groups of items; the last user and the last items never occur in training.

    An event is in the log once. The validation part has two events of every user but the last, who has one.
    """

    meta, num_users, num_items = META, USERS, ITEMS

    def __init__(self):
        rng = np.random.default_rng(0)
        likes = rng.random((USERS - 1, ITEMS - COLD)) < np.where(
            np.arange(USERS - 1)[:, None] % 2 == np.arange(ITEMS - COLD) % 2, 0.6, 0.15
        )
        likes[:, 0] = True
        likes[np.arange(ITEMS - COLD) % (USERS - 1), np.arange(ITEMS - COLD)] = True
        order = rng.permutation(np.argwhere(likes))
        rest = [rng.permutation(np.flatnonzero(~own))[:2] for own in likes]
        later = [(user, item) for user, items in enumerate(rest) for item in items] + [(USERS - 1, 3)]
        self.parts = {"train": order, "val": np.array(later)}
        self.popularity = np.bincount(order[:, 1], minlength=ITEMS)
        self.slices = popularity_slices(self.popularity, 0.3, 0.3)
        self.tokens = np.column_stack([1 + np.arange(ITEMS) % 2, rng.integers(3, 40, ITEMS)])
        self.users = pl.DataFrame({"number": range(USERS), "id": [f"u{n}" for n in range(USERS)]})

    def interactions(self, split):
        pairs = self.parts[split]
        return pairs[:, 0], pairs[:, 1], np.arange(len(pairs))


def prepared(folder):
    """The data artifact of a tiny synthetic log, without figures."""
    make(folder, size="tiny", seed=0)
    features = {"categorical": ["category"], "multi": [{"column": "tags"}], "numeric": ["price"], "title": "title"}
    config = validate(recsys.Config, features, file="r.yaml", owner="sources/recsys")
    source = recsys.build(config)
    shard = ArtifactWriter(folder / "shard", "shard", settings_digest="", inputs={})
    source.prepare(folder, 0, 1, shard)
    writer = ArtifactWriter(folder / "data", "data", settings_digest="", inputs={})
    source.merge(folder, [shard.finish()], writer)
    writer.json("source.json", config.plain())
    return writer.finish()


def staged(data, out, **values):
    """The model artifact of stage finetune; values: of the block `finetune`."""
    block = {"backbone": "two_tower", "views": "item_features", "labels": "given", **values}
    settings = validate(MODELS["finetune"], block, file="r.yaml", owner="finetune")
    return finetune(StageConfig("finetune", "recsys", "tiny", 0, settings), data.folder, out, accelerator="cpu")
