"""Two-tower retrieval: users and items as vectors, trained with an in-batch softmax corrected for item frequency.

    L = -1/B sum_i log( exp(s(u_i, v_i) - log q_i) / sum_j exp(s(u_i, v_j) - log q_j) ),   s = cosine / temperature

q_j is the probability that item j is drawn into a batch. With it the gradient tends to that of the softmax over all
items as the batch grows; to that end an item that is in the batch twice counts twice, also where it is the positive.
Source: Yi et al., Sampling-bias-corrected neural modeling for large corpus item recommendations, RecSys 2019, equation
5; `frequencies: streaming` estimates the probability that a batch holds j as they do (`ops/gap_frequencies.py`).
Deviations: by default q is the item's share of the training events. Without the correction (logq: false) other examples
of the positive item are no negatives, because nothing else makes up for them.

`negatives: shared` draws negatives for all users of a batch instead (`ops/shared_negatives.py`), among items with
training events: a batch costs what its rows cost, not their square, and cold items are no negatives.

With `user_temperatures` the loss is that of iSogCLR (`ops/individual_temperatures.py`), users being the anchors: each
learns a temperature of its own. Its negatives are the other items of the batch, as if drawn uniformly.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Batch, Context, PreparedData, Step, Views
from appssl.errors import DataError
from appssl.ops.gap_frequencies import GapFrequencies
from appssl.ops.individual_temperatures import IndividualTemperatures, Temperatures
from appssl.ops.interactions.statistics import padded_histories
from appssl.ops.random import rng_for
from appssl.ops.rowwise_adagrad import embedding_tables
from appssl.ops.shared_negatives import Draw, Drawn, SharedNegatives, own_places, shared_softmax
from appssl.settings import Settings

_EPSILON = 1e-8
_SHARE = 2**62 + 1  # the stream that chooses events
_ITEMS_AT_ONCE = 8192


class Config(Settings):
    name: Literal["retrieval"] = "retrieval"
    dim: int = Field(64, ge=1, description="width of user and item vectors")
    temperature: float = Field(0.07, gt=0, description="divides cosine similarities")
    history: int = Field(20, ge=0, description="latest items that describe a user; 0: the user's number only")
    user_ids: bool = Field(True, description="an embedding per user")
    item_ids: bool = Field(True, description="an embedding per item, added to the content; zero for cold items")
    event_share: float = Field(
        1.0, gt=0, le=1, description="share of the training events that is trained on, the same for every seed"
    )
    logq: bool = Field(True, description="correct for the frequency of items in batches")
    frequencies: Literal["exact", "streaming"] = Field(
        "exact", description="of in_batch with logq: shares of the training events, or an estimate while they come"
    )
    frequency_rate: float = Field(0.01, gt=0, le=1, description="alpha of streaming: weight of a new gap")
    frequency_buckets: int = Field(
        2**20, ge=1, description="most buckets of streaming; with more items than that some share one"
    )
    negatives: Literal["in_batch", "shared"] = Field(
        "in_batch", description="the other items of the batch, or items drawn once for all its users"
    )
    num_negatives: int = Field(256, ge=1, description="m of shared: how many are drawn for a batch")
    draw: Draw = Field("log_uniform", description="of shared: by falling training events, or each with the same chance")
    table_lr: float = Field(1.0, gt=0, description="learning rate of embedding tables, as a multiple of fit.lr")
    user_temperatures: Temperatures | None = Field(
        None, description="a learned temperature for each user (iSogCLR) instead of one; needs logq false"
    )

    @model_validator(mode="after")
    def _users_differ(self) -> "Config":
        if not (self.user_ids or self.history):
            raise ValueError("with user_ids false and history 0 all users are the same; use one of them")
        if self.user_temperatures is not None and self.logq:
            raise ValueError("user_temperatures has no correction for frequencies; set logq to false")
        if self.user_temperatures is not None and self.negatives == "shared":
            raise ValueError("user_temperatures compares the items of a batch; set negatives to in_batch")
        if self.frequencies == "streaming" and (not self.logq or self.negatives == "shared"):
            raise ValueError("frequencies streaming needs logq true and negatives in_batch; nothing else uses it")
        return self


class Interactions:
    """Training events as examples: {index, input: users (B,), target: items (B,)}."""

    def __init__(self, config: Config, data: Any) -> None:
        self.users, self.items = self.events(config, data)
        num_users, num_items = data.num_users, data.num_items
        share = np.bincount(self.items, minlength=num_items) / len(self.items)
        self.facts: Mapping[str, Any] = {
            "num_users": num_users,
            "num_items": num_items,
            "tokens": torch.from_numpy(np.array(data.tokens)),
            "log_share": torch.from_numpy(np.log(np.maximum(share, 1e-12)).astype(np.float32)),
            "histories": torch.from_numpy(padded_histories(self.users, self.items, num_users, config.history)),
            "known_users": torch.from_numpy(np.bincount(self.users, minlength=num_users) > 0),
        }
        if config.negatives == "shared":
            falling = np.argsort(-share, kind="stable")
            self.facts = {**self.facts, "ranked": torch.from_numpy(falling[share[falling] > 0])}

    def events(self, config: Config, data: Any) -> tuple[np.ndarray, np.ndarray]:
        """Users and items (N,) int64 that are trained on, in order of time.

        Raises:
            DataError: if none are left of a small share.
        """
        users, items, _ = data.interactions("train")
        if config.event_share == 1:
            return users, items
        chosen = rng_for(0, 0, _SHARE).random(len(users)) < config.event_share
        if not chosen.any():
            raise DataError(
                f"finetune.finetuner.event_share {config.event_share:g} leaves none of {len(users)} training events. "
                "Make it larger."
            )
        return users[chosen], items[chosen]

    def __len__(self) -> int:
        return len(self.users)

    def batch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Batch:
        return {
            "index": torch.from_numpy(indices),
            "input": torch.from_numpy(self.users[indices]),
            "target": torch.from_numpy(self.items[indices]),
        }


def examples(config: Config, data: PreparedData, views: Views, seed: int) -> Interactions:
    return Interactions(config, data)


class Retrieval(nn.Module):
    tokens: Tensor
    log_share: Tensor
    histories: Tensor
    known_users: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        facts = context.facts
        self.temperature, self.use_logq = config.temperature, config.logq
        self.num_items = int(facts["num_items"])
        for name in ("tokens", "log_share", "histories", "known_users"):
            self.register_buffer(name, torch.as_tensor(facts[name]), persistent=False)  # lies in facts.safetensors
        self.backbone = context.backbone.requires_grad_(True)
        width = int(context.backbone.num_features)  # type: ignore[arg-type]
        self.content = nn.Linear(width, config.dim)
        self.history = nn.Linear(config.dim, config.dim) if config.history else None
        self.item_ids = _zeros(self.num_items, config.dim) if config.item_ids else None
        self.user_ids = _zeros(int(facts["num_users"]), config.dim) if config.user_ids else None
        self.bias = nn.Parameter(torch.zeros(config.dim))
        own = config.user_temperatures
        self.user_temperatures = IndividualTemperatures(own, int(facts["num_users"])) if own is not None else None
        self.negatives = self.frequencies = None
        if config.negatives == "shared":
            self.negatives = SharedNegatives(torch.as_tensor(facts["ranked"]), config.num_negatives, config.draw)
        if config.frequencies == "streaming":
            buckets = min(config.frequency_buckets, self.num_items)
            self.frequencies = GapFrequencies(buckets, config.frequency_rate)
        self.table_lr = config.table_lr

    def param_groups(self) -> list[dict[str, Any]]:
        """Embedding tables and all else; `lr_scale` multiplies the learning rate."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if self.table_lr == 1:
            return [{"params": trained}]  # in another order the norm of all gradients would be rounded differently
        tables = {table.weight for table in embedding_tables(self)}
        return [
            {"params": [p for p in trained if p not in tables]},
            {"params": [p for p in trained if p in tables], "lr_scale": self.table_lr},
        ]

    def items(self, numbers: Tensor) -> Tensor:
        """Unit vectors (N, D) of items (N,) int64."""
        return self.item_vectors(self.tokens.index_select(0, numbers), numbers)

    def item_vectors(self, tokens: Tensor, numbers: Tensor, is_known: Tensor | None = None) -> Tensor:
        """Unit vectors (N, D) of items with tokens (N, L) and numbers (N,) int64.

        Args:
            is_known: (N,) bool; where it is False the number is hidden, and the vector is that of the tokens alone.
        """
        vectors = self.content(self.backbone(tokens))
        if self.item_ids is not None:
            of_numbers = self.item_ids(numbers)
            vectors = vectors + (of_numbers if is_known is None else of_numbers * is_known[:, None])
        return functional.normalize(vectors, dim=1, eps=_EPSILON)

    def users(self, numbers: Tensor, targets: Tensor | None = None) -> Tensor:
        """Unit vectors (B, D) of users (B,) int64; `targets` (B,) are left out of their histories while training."""
        vectors = self.bias.expand(len(numbers), -1)
        if self.user_ids is not None:
            vectors = vectors + self.user_ids(numbers)
        if self.history is not None:
            vectors = vectors + self.history(self._history(numbers, targets))
        return functional.normalize(vectors, dim=1, eps=_EPSILON)

    def _history(self, numbers: Tensor, targets: Tensor | None) -> Tensor:
        past = self.histories[numbers]  # (B, H)
        present = past >= 0
        if targets is not None:
            present = present & (past != targets[:, None])
        distinct, where = torch.unique(past.clamp(min=0), return_inverse=True)
        vectors = self.items(distinct)[where]  # (B, H, D)
        weight = present.unsqueeze(-1).to(vectors.dtype)
        return (vectors * weight).sum(1) / weight.sum(1).clamp(min=1)

    def forward(self, batch: Batch) -> Step:
        if self.negatives is None:
            return self.match(batch, self.items(batch["target"]))
        drawn: Drawn = self.negatives()
        distinct, where = torch.unique(torch.cat([batch["target"], drawn.items]), return_inverse=True)
        vectors = functional.embedding(where, self.items(distinct))
        size = len(batch["target"])
        return self._against(batch, vectors[:size], vectors[size:], drawn)

    def match(self, batch: Batch, vectors: Tensor) -> Step:
        """Loss of users `input` (B,) and the unit vectors (B, D) of their items `target` (B,)."""
        users, items = batch["input"], batch["target"]
        if self.user_temperatures is not None:
            similarity = _cosines(self.users(users, items), vectors)
            is_negative = items[:, None] != items[None, :]
            return Step(*self.user_temperatures.of_pairs(similarity, similarity.diagonal(), is_negative, users))
        if self.negatives is not None:
            drawn: Drawn = self.negatives()
            return self._against(batch, vectors, self.items(drawn.items), drawn)
        logits = self.users(users, items) @ vectors.T / self.temperature
        log_share = self._log_share(items) if self.use_logq else None
        return Step(in_batch_softmax(logits, items, log_share))

    def _against(self, batch: Batch, vectors: Tensor, negatives: Tensor, drawn: Drawn) -> Step:
        """Loss of a batch with negatives (M, D) that its users share."""
        users = self.users(batch["input"], batch["target"]) / self.temperature
        own = own_places(batch["target"], drawn.items)
        return Step(shared_softmax(users, vectors, negatives, drawn.log_weight(corrected=self.use_logq), own))

    def _log_share(self, items: Tensor) -> Tensor:
        """Log-probability (B,) of each item to be in a batch, up to a constant."""
        if self.frequencies is None:
            return self.log_share[items]
        if self.training:
            self.frequencies.update(items)
        found: Tensor = self.frequencies(items)
        return found

    def export(self) -> nn.Module:
        return Retriever(self)


def in_batch_softmax(logits: Tensor, items: Tensor, log_share: Tensor | None, weight: Tensor | None = None) -> Tensor:
    """Mean loss; row i's positive is column i.

    Args:
        logits: (B, B) similarities of users (rows) and items (columns). items: (B,) int64, item of each column.
        log_share: (B,) log of each item's probability of being drawn, or None for no correction; then other columns
            that hold the row's own item are left out.
        weight: (B,) multiplies the loss of each row before the mean; None: all 1.
    """
    positive = torch.arange(len(items), device=items.device)
    if log_share is not None:
        # No column is masked: without its repetitions the positive would vanish from the denominator as B grows.
        logits = logits - log_share[None, :]
    else:
        own = torch.eye(len(items), dtype=torch.bool, device=items.device)
        logits = logits.masked_fill((items[:, None] == items[None, :]) & ~own, -torch.inf)
    if weight is None:
        return functional.cross_entropy(logits, positive)
    return (weight * functional.cross_entropy(logits, positive, reduction="none")).mean()


class Retriever(nn.Module):
    """All vectors, computed once: `score_users` is a matrix product. Users without history get the mean user."""

    user_vectors: Tensor
    item_vectors: Tensor

    def __init__(self, learner: Retrieval) -> None:
        super().__init__()
        was_training = learner.training
        learner.eval()
        with torch.no_grad():
            items = torch.arange(learner.num_items, device=learner.bias.device)
            item_vectors = torch.cat([learner.items(part) for part in items.split(_ITEMS_AT_ONCE)])
            users = torch.arange(len(learner.known_users), device=learner.bias.device)
            user_vectors = torch.cat([learner.users(part) for part in users.split(_ITEMS_AT_ONCE)])
            known = learner.known_users
            if known.any():
                mean = functional.normalize(user_vectors[known].mean(0), dim=0, eps=_EPSILON)
                user_vectors = torch.where(known[:, None], user_vectors, mean)
        learner.train(was_training)
        self.backbone = learner.backbone
        self.register_buffer("item_vectors", item_vectors)
        self.register_buffer("user_vectors", user_vectors)

    def score_users(self, users: Tensor) -> Tensor:
        """Scores (U, num_items) float32 in [-1, 1] of users (U,) int64."""
        return self.user_vectors[users] @ self.item_vectors.T


def build(config: Config, context: Context) -> Retrieval:
    return Retrieval(config, context)


def _cosines(one: Tensor, two: Tensor) -> Tensor:
    """(N, M) of unit vectors (N, D) and (M, D), in float32 or better."""
    dtype = torch.promote_types(one.dtype, torch.float32)
    with torch.autocast(device_type=one.device.type, enabled=False):
        return one.to(dtype) @ two.to(dtype).T


def _zeros(count: int, width: int) -> nn.Embedding:
    """An embedding that starts at zero: what was never trained adds nothing."""
    table = nn.Embedding(count, width)
    nn.init.zeros_(table.weight)
    return table
