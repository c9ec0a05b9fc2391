"""INS: an instance classifier learned from labels of bags, by contrast and pseudo-labels from prototypes.

A tile of a negative bag is negative; one of a positive bag may be either, so its candidate classes are both. With
q, k unit projections of two views (k from a momentum encoder), h the instance classifier, and c the class that h gives
within the candidates:

    L_IWSCL = -1/B sum_i 1/|F(i)| sum_{j in F(i)} log( exp(<q_i, z_j> / tau) / sum_{a != i} exp(<q_i, z_a> / tau) )
    L_cls   = -1/B sum_i sum_c s_ic log softmax(h(q-view of i))_c
    L_bc    = cross-entropy of a linear classifier of the mean over a bag's tiles with the label of the bag
    L       = L_cls + lambda L_IWSCL + w L_bc

over the pool of all q, all k and a queue of earlier k; F(i) are its other members of class c_i. The soft pseudo-labels
s move towards the class of the nearest prototype among the candidates, s <- phi s + (1 - phi) onehot; a prototype is
the normalized running mean of the q of its class. Training begins with the label of the bag as label of its tiles, goes
on with a warm-up on positive bags (MoCo's loss instead of L_IWSCL), then everything.

Source: Qu et al., Rethinking Multiple Instance Learning for Whole Slide Image Classification, TCSVT 2024, arXiv
2307.02249. Official code: miccaiif/INS, no licence; read for constants only.
Deviations from that code: candidates come from the bag's label alone (the code reads tile labels in two data sets); the
bag term is a linear classifier of the mean (the code takes a softmax twice), in every step after the first phase, on
one bag that is drawn in proportion to its tiles, instead of a pass of its own; the dropout of features is left to the
views. Prototypes also move in the warm-up, and that of the positive class is set at its end to the mean of the most
positive tile of each positive bag: without that the published rule leaves it where no tile is near, and all tiles
become negative where the classifier is not yet sure of any (seen on the training part of small data). For such
data there is also another bag term: cross-entropy of the highest tile with the label of the bag, which acts on the
instance classifier itself. Until the end of
the first phase the momentum encoder is a copy; phi falls by step instead of epoch; empty places of the queue take part
in nothing; the log of the mean exponential is taken where the code sums.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Batch, Context, PreparedData, Progress, Step, Views
from appssl.errors import DataError, SettingsError
from appssl.ops.bags import BagIndex, index_bags, some
from appssl.ops.distributed import gather
from appssl.ops.ema import follow
from appssl.ops.pooling import Pooling, pool_probabilities
from appssl.ops.random import rng_for
from appssl.settings import Settings

_EPSILON = 1e-8  # smallest norm of a projection or prototype
_EMPTY = -1  # class of a place in the queue that was never filled


class Config(Settings):
    name: Literal["ins"] = "ins"
    positive: str | None = Field(None, description="class of positive bags; null: the second class")
    temperature: float = Field(0.07, gt=0, description="divides similarities, tau in the paper")
    key_momentum: float = Field(0.999, ge=0, lt=1, description="of the momentum encoder, m")
    queue: int = Field(8192, ge=0, description="earlier keys in the pool")
    projector_hidden: int = Field(512, ge=1, description="width of the projector's hidden layer")
    projector_out: int = Field(128, ge=2, description="width of the projections")
    prototype_momentum: float = Field(0.9, ge=0, lt=1, description="beta")
    label_momentum: tuple[float, float] = Field((0.95, 0.8), description="phi at the beginning and at the end")
    contrastive_weight: float = Field(0.5, ge=0, description="lambda")
    bag_weight: float = Field(1.0, ge=0, description="weight of the bag term; 0: without")
    bag_term: Literal["mean", "max"] = Field(
        "mean", description="mean: a classifier of the bag's mean feature, as published; max: the bag's highest tile"
    )
    tiles_per_bag: int = Field(100, ge=1, description="most tiles of a bag in the bag term")
    bag_label_epochs: int = Field(1, ge=0, description="first phase: the bag's label taken for that of its tiles")
    warmup_epochs: int = Field(15, ge=0, description="second phase: positive bags only, MoCo's loss")
    pooling: Pooling = Field("mean", description="of the probabilities of tiles to that of their bag, in use")


class INSExamples:
    """Tiles of labelled bags: {index, views: q and k, target: label of the bag (B,), bag: its number (B,)}.

    And all tiles of one bag: {input, group}.
    """

    def __init__(self, config: Config, data: PreparedData, views: Views, bags: BagIndex) -> None:
        if views.num_views < 2:
            raise DataError("ins needs two views of a tile; choose views that make them, such as histology.")
        self.config, self.data, self.views, self.bags = config, data, views, bags
        self.bag_of = bags.bag_of_position
        positive = positive_class(config, data.meta.classes)
        self.positive = np.flatnonzero(bags.targets[self.bag_of] == positive)
        if len(self.positive) == 0 or len(self.positive) == len(bags.rows):
            raise DataError("ins needs positive and negative bags in the training part. Change the split.")
        self.facts: Mapping[str, Any] = {
            "num_rows": len(data.samples),
            "bag_targets": torch.from_numpy(bags.targets),
        }

    def __len__(self) -> int:
        return len(self.bags.rows)

    def batch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Batch:
        bag = int(self.bag_of[indices[0]])
        first, last = self.config.bag_label_epochs, self.config.bag_label_epochs + self.config.warmup_epochs
        if first <= epoch < last:
            indices = self.positive[indices % len(self.positive)]
        rows = self.bags.rows[indices]
        made = [self.views.views(self.data.read(int(row)), rng_for(seed, epoch, int(row)))[:2] for row in rows]
        tiles = some(self.bags.of(bag), self.config.tiles_per_bag, rng_for(seed, epoch, len(self.data.samples) + bag))
        inputs = [self.views.augment(self.data.read(int(row)), rng_for(seed, epoch, int(row))) for row in tiles]
        return {
            "index": torch.from_numpy(rows),
            "views": [torch.stack(view) for view in zip(*made, strict=True)],
            "target": torch.from_numpy(self.bags.targets[self.bag_of[indices]]),
            "bag": torch.from_numpy(self.bag_of[indices]),
            "input": torch.stack(inputs),
            "group": torch.full((len(tiles),), bag),
        }


def examples(config: Config, data: PreparedData, views: Views, seed: int) -> INSExamples:
    train = data.samples.filter(pl.col("split") == "train")
    return INSExamples(config, data, views, index_bags(train, data.meta.facts, data.meta.classes))


class INS(nn.Module):
    queue: Tensor
    queue_class: Tensor
    queue_next: Tensor
    prototypes: Tensor
    pseudo_labels: Tensor
    bag_targets: Tensor
    best_score: Tensor
    best_query: Tensor
    epoch: Tensor
    done: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.positive = positive_class(config, context.meta.classes)
        width = int(context.backbone.num_features)  # type: ignore[arg-type]
        self.backbone = context.backbone.requires_grad_(True)
        self.head = nn.Linear(width, 2)  # of tiles: negative, positive
        self.bag_head = nn.Linear(width, 2)
        self.projector = nn.Sequential(
            nn.Linear(width, config.projector_hidden),
            nn.ReLU(),
            nn.Linear(config.projector_hidden, config.projector_out),
        )
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(config.queue, config.projector_out))
        self.register_buffer("queue_class", torch.full((config.queue,), _EMPTY))
        self.register_buffer("queue_next", torch.zeros((), dtype=torch.int64))
        self.register_buffer("prototypes", torch.zeros(2, config.projector_out))
        self.register_buffer("pseudo_labels", torch.full((int(context.facts["num_rows"]), 2), 0.5))
        bag_targets = torch.as_tensor(context.facts["bag_targets"])
        self.register_buffer("bag_targets", (bag_targets == self.positive).long(), persistent=False)
        self.register_buffer("best_score", torch.full((len(bag_targets),), -1.0))  # of a tile of each bag
        self.register_buffer("best_query", torch.zeros(len(bag_targets), config.projector_out))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self.register_buffer("done", torch.zeros(()))  # share of the training that is done
        self._known_epoch: int | None = None

    def forward(self, batch: Batch) -> Step:
        config = self.config
        positive = (batch["target"] == self.positive).long()
        features = self.backbone(batch["views"][0])
        logits = self.head(features).float()
        query = unit(self.projector(features))
        if self._epoch() == self._first_epoch() - 1:
            self._note_best(query.detach(), logits.detach(), batch["bag"])
        if self._epoch() < config.bag_label_epochs:
            loss = functional.cross_entropy(logits, positive)
            return Step(loss, {"loss_bag_label": loss.detach()})
        with torch.no_grad():
            key = unit(self.key_projector(self.key_backbone(batch["views"][1])))
            candidates = torch.stack([torch.ones_like(positive), positive], dim=1)
            classes = nearest_candidate(logits, candidates)
            nearest = nearest_candidate(query @ self.prototypes.T, candidates)  # before the prototypes move
            self._move_prototypes(query, classes)
        filled = self.queue_class != _EMPTY
        if self._epoch() < self._first_epoch():
            contrastive = moco_loss(query, key, self.queue[filled], temperature=config.temperature)
        else:
            self._move_labels(batch["index"], nearest, positive)
            pool = torch.cat([query, key, self.queue[filled]])
            pool_class = torch.cat([classes, classes, self.queue_class[filled]])
            contrastive = family_contrast(query, pool, classes, pool_class, temperature=config.temperature)
        targets = self.pseudo_labels[batch["index"]]
        classification = -(targets * logits.log_softmax(1)).sum(1).mean()
        bag = self._bag_loss(self.backbone(batch["input"]), self.bag_targets[batch["group"][:1]])
        self._enqueue(key, classes)
        metrics = {
            "loss_classification": classification.detach(),
            "loss_contrastive": contrastive.detach(),
            "loss_bag": bag.detach(),
            # of the tiles of positive bags; 0 is the collapse in which every tile becomes negative
            "positive_share": ((targets[:, 1] > 0.5) & (positive == 1)).sum() / positive.sum().clamp(min=1),
        }
        return Step(classification + config.contrastive_weight * contrastive + config.bag_weight * bag, metrics)

    def _bag_loss(self, features: Tensor, target: Tensor) -> Tensor:
        """L_bc of one bag with the features (L, F) of its tiles and its label (1,)."""
        if self.config.bag_term == "mean":
            return functional.cross_entropy(self.bag_head(features.mean(0, keepdim=True)).float(), target)
        negative, positive = self.head(features).float().unbind(1)
        highest = (positive - negative).max().reshape(1)
        return functional.binary_cross_entropy_with_logits(highest, target.to(highest.dtype))

    def _epoch(self) -> int:
        """The epoch of the next batch; read from the device once, after a resume."""
        if self._known_epoch is None:
            self._known_epoch = int(self.epoch)
        return self._known_epoch

    def _first_epoch(self) -> int:
        """The first epoch in which pseudo-labels are used."""
        return self.config.bag_label_epochs + self.config.warmup_epochs

    def _note_best(self, query: Tensor, logits: Tensor, bags: Tensor) -> None:
        """Keeps, of each bag, the projection of the tile that is most positive."""
        scores, queries, owners = gather(logits.softmax(1)[:, 1]), gather(query), gather(bags)
        best = self.best_score.scatter_reduce(0, owners, scores, "amax")
        chosen = (scores == best[owners]) & (scores > self.best_score[owners])
        self.best_query[owners[chosen]] = queries[chosen]
        self.best_score.copy_(best)

    def _start_positive_prototype(self) -> None:
        """From the best tile of every positive bag: one that no tile ever moved would leave all tiles negative."""
        seen = (self.best_score >= 0) & (self.bag_targets == 1)
        if seen.any():
            self.prototypes[1] = unit(self.best_query[seen].sum(0, keepdim=True))[0]

    def _move_prototypes(self, query: Tensor, classes: Tensor) -> None:
        beta = self.config.prototype_momentum
        self.prototypes.copy_(moved_prototypes(self.prototypes, gather(query), gather(classes), beta=beta))

    def _move_labels(self, index: Tensor, nearest: Tensor, positive: Tensor) -> None:
        start, end = self.config.label_momentum
        phi = start + (end - start) * self.done
        rows, towards, is_open = gather(index), gather(nearest), gather(positive)
        moved = phi * self.pseudo_labels[rows] + (1 - phi) * functional.one_hot(towards, 2)
        self.pseudo_labels[rows] = torch.where(is_open[:, None] == 1, moved, moved.new_tensor([1.0, 0.0]))

    def _enqueue(self, key: Tensor, classes: Tensor) -> None:
        size = len(self.queue)
        keys, found = gather(key)[:size], gather(classes)[:size]
        if size:
            places = (self.queue_next + torch.arange(len(keys), device=keys.device)) % size
            self.queue[places] = keys.to(self.queue.dtype)
            self.queue_class[places] = found
            self.queue_next.copy_((self.queue_next + len(keys)) % size)

    @torch.no_grad()
    def after_update(self, progress: Progress) -> None:
        if progress.step == 1:
            self._refuse_short(progress)
        momentum = self.config.key_momentum if progress.epoch >= self.config.bag_label_epochs else 0.0
        for own, follower in ((self.backbone, self.key_backbone), (self.projector, self.key_projector)):
            follow(follower, own, momentum)
            for buffer, copied in zip(own.buffers(), follower.buffers(), strict=True):
                copied.copy_(buffer)
        if progress.epoch < progress.next_epoch == self._first_epoch():
            self._start_positive_prototype()
        self.done.fill_(progress.step / progress.num_steps)
        self._known_epoch = progress.next_epoch
        self.epoch.fill_(progress.next_epoch)

    def _refuse_short(self, progress: Progress) -> None:
        before = self._first_epoch()
        if progress.num_steps <= before * progress.steps_per_epoch:
            raise SettingsError(
                f"finetune.fit.epochs must be more than bag_label_epochs + warmup_epochs = {before}: pseudo-labels are "
                "used only after them."
            )

    def export(self) -> nn.Module:
        return InstanceClassifier(self.backbone, self.head, self.positive, self.config.pooling)


class InstanceClassifier(nn.Module):
    def __init__(self, backbone: nn.Module, head: nn.Module, positive: int, pooling: Pooling) -> None:
        super().__init__()
        self.backbone, self.head, self.positive, self.pooling = backbone, head, positive, pooling

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, 2) of tiles."""
        return self.classify(self.backbone(inputs))

    def classify(self, features: Tensor) -> Tensor:
        """The same, from features (B, F), in the order of the data's classes."""
        logits: Tensor = self.head(features)
        return logits if self.positive == 1 else logits.flip(-1)

    def bag_probabilities(self, features: Tensor) -> Tensor:
        """Probabilities (2,) of one bag from the features (L, F) of its tiles."""
        tiles = self.classify(features).softmax(1)[:, self.positive]
        of_bag = pool_probabilities(tiles, self.pooling)
        both = torch.stack([1 - of_bag, of_bag])
        return both if self.positive == 1 else both.flip(0)


def positive_class(config: Config, classes: tuple[str, ...]) -> int:
    """Number of the positive class.

    Raises:
        DataError: unless there are two classes and `positive` is one of them.
    """
    if len(classes) != 2:
        raise DataError(f"ins needs two classes of bags, negative and positive; the data has {', '.join(classes)}.")
    if config.positive is not None and config.positive not in classes:
        raise SettingsError(f"finetuner ins: positive is {config.positive}, the classes are {', '.join(classes)}.")
    return classes.index(config.positive) if config.positive is not None else 1


def unit(vectors: Tensor) -> Tensor:
    """(B, D) of length 1, float32 or better also under mixed precision."""
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    return functional.normalize(vectors.to(dtype), dim=1, eps=_EPSILON)


def nearest_candidate(scores: Tensor, candidates: Tensor) -> Tensor:
    """Class (B,) int64 of the largest score (B, 2) among the candidates (B, 2) of each row."""
    return scores.masked_fill(candidates == 0, -torch.inf).argmax(1)


def moved_prototypes(prototypes: Tensor, query: Tensor, classes: Tensor, *, beta: float) -> Tensor:
    """Prototypes (K, D) after mu_c <- beta mu_c + (1 - beta) q_i for the rows one after the other, then normalized.

    Args:
        query: (B, D) unit vectors. classes: (B,) int64.
    """
    own = functional.one_hot(classes, len(prototypes)).to(query.dtype)  # (B, K)
    later = own.flip(0).cumsum(0).flip(0) - own  # rows of the same class that come after
    weight = own * beta**later
    moved = beta ** own.sum(0)[:, None] * prototypes + (1 - beta) * weight.T @ query
    return functional.normalize(moved, dim=1, eps=_EPSILON)


def moco_loss(query: Tensor, key: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """Scalar mean of -log of the own key's share among it and the queue; query, key (B, D), queue (M, D), unit rows."""
    own = (query * key).sum(1, keepdim=True)
    logits = torch.cat([own, query @ queue.T], dim=1) / temperature
    return -logits.log_softmax(1)[:, 0].mean()


def family_contrast(query: Tensor, pool: Tensor, classes: Tensor, pool_class: Tensor, *, temperature: float) -> Tensor:
    """L_IWSCL, scalar.

    Args:
        query: (B, D) unit rows. pool: (M, D), M > B, whose first B rows are the queries themselves. classes: (B,)
            int64. pool_class: (M,) int64. A query without another member of its class in the pool counts 0.
    """
    return family_losses(query, pool, classes, pool_class, temperature=temperature).mean()


def family_losses(query: Tensor, pool: Tensor, classes: Tensor, pool_class: Tensor, *, temperature: float) -> Tensor:
    """Losses (B,) of the single queries; see `family_contrast`."""
    logits = query @ pool.T / temperature  # (B, M)
    itself = torch.eye(len(query), len(pool), dtype=torch.bool, device=query.device)
    share = logits.masked_fill(itself, -torch.inf).log_softmax(1)
    family = (classes[:, None] == pool_class[None, :]) & ~itself
    return -share.masked_fill(~family, 0.0).sum(1) / family.sum(1).clamp(min=1)


def build(config: Config, context: Context) -> INS:
    return INS(config, context)
