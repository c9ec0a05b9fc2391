"""SimGCL: light graph convolution over users and items, and a contrast of two noisy copies of its vectors.

With A the user-item graph of the training events, D its degrees, E^(0) the embeddings and Z the vectors that are used:

    E^(k) = D^-1/2 A D^-1/2 E^(k-1)                    Z = 1/K sum_{k=1..K} E^(k)
    E'^(k) = D^-1/2 A D^-1/2 E'^(k-1) + Delta^(k)      Delta = eps r / |r|_2 * sign(...),  r uniform in [0, 1]^d
    L = -mean log sigmoid(z_u z_i - z_u z_j) + lambda (L_users + L_items) + lambda_2 |E^(0)|^2
    L_users = -mean_u log( exp(s(z'_u, z''_u) / tau) / sum_v exp(s(z'_u, z''_v) / tau) )

sign(...) is that of the propagated vector which the noise is added to; z' and z'' are the vectors Z' of two draws of
noise, s is the cosine. (u, i) is a pair of the log and j an item that u has no event with, drawn uniformly. L_users and
L_items are over the users and the items i of the batch, each once. The score of an item is z_u z_i. With `weight: 0`
and `input_in_mean: true` it is LightGCN.

Source: Yu et al., Are graph augmentations necessary? Simple graph contrastive learning for recommendation, SIGIR 2022,
arXiv 2112.08679, equations 7 and 8; He et al., LightGCN, SIGIR 2020, arXiv 2002.02126, equations 7, 8 and 15.
Deviations: |E^(0)|^2 is half the sum over the user and the two items of each pair, divided by the batch (LightGCN's
equation, written for batches; SimGCL's text does not say of what the norm is taken). L_users and L_items are means, not
sums, so that lambda does not depend on the batch; no negatives are taken from other processes. Items without training
events have the zero vector, and users without any get the mean user. Item features and the encoder are not used.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from appssl.contracts import Batch, Context, PreparedData, Step, Views
from appssl.errors import DataError
from appssl.ops.contrastive import log_sum_of_others
from appssl.ops.random import rng_for
from appssl.settings import Settings

_DRAWS = 2**62  # streams of what is drawn for a batch; above the numbers of pairs, below those that others use
_EPSILON = 1e-12


class Config(Settings):
    name: Literal["simgcl"] = "simgcl"
    dim: int = Field(64, ge=1, description="width of user and item vectors")
    layers: int = Field(3, ge=1, description="layers of the graph convolution, K in the paper")
    weight: float = Field(0.5, ge=0, description="of the contrast, lambda in the paper; 0: none")
    eps: float = Field(0.1, gt=0, description="norm of the noise on each vector of each layer")
    temperature: float = Field(0.2, gt=0, description="divides cosine similarities in the contrast, tau")
    l2: float = Field(1e-4, ge=0, description="weight of the squared embeddings of a batch; set fit.weight_decay to 0")
    input_in_mean: bool = Field(False, description="the embeddings take part in the mean of layers, as in LightGCN")


class Pairs:
    """Pairs of the training log, each once: {index, input: users (B,), target: items (B,), views: [other items (B,)]}.

    The other items are drawn uniformly from those of training that the user has no event with.
    """

    def __init__(self, data: Any) -> None:
        """
        Raises:
            DataError: if training has fewer than two users or items, or a user has an event with every item.
        """
        users, items, _ = data.interactions("train")
        codes = np.unique(users.astype(np.int64) * data.num_items + items)
        self.users, self.items = np.divmod(codes, data.num_items)
        self.catalogue, place = np.unique(self.items, return_inverse=True)
        counts = np.bincount(self.users, minlength=data.num_users)
        self._check(counts, data)
        self._left = len(self.catalogue) - counts
        self._start = np.cumsum(counts) - counts
        # Of each pair: how many items before it, in the order of the catalogue, its user has no event with.
        others_before = place - (np.arange(len(codes)) - self._start[self.users])
        self._keys = self.users * len(self.catalogue) + others_before
        self.facts: Mapping[str, Any] = {
            "num_users": data.num_users,
            "num_items": data.num_items,
            "pairs": torch.from_numpy(np.stack([self.users, self.items])),
        }

    def _check(self, counts: np.ndarray, data: Any) -> None:
        num_users, num_items = int((counts > 0).sum()), len(self.catalogue)
        if num_users < 2 or num_items < 2:
            raise DataError(
                f"finetuner simgcl compares users and items; training has {num_users} user(s) and {num_items} item(s). "
                "Give more data, or make data.source.train_share larger."
            )
        if (full := np.flatnonzero(counts == num_items)).size:
            name = data.users.filter(data.users["number"] == int(full[0]))["id"].item()
            raise DataError(
                f"finetuner simgcl: user {name} has an event with each of the {num_items} items of training, so none "
                "is left to compare with. Leave such users out of the log (data.source.max_user_events)."
            )

    def __len__(self) -> int:
        return len(self.users)

    def batch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Batch:
        users = self.users[indices]
        rng = rng_for(seed, epoch, _DRAWS + int(indices[0]))
        return {
            "index": torch.from_numpy(indices),
            "input": torch.from_numpy(users),
            "target": torch.from_numpy(self.items[indices]),
            "views": [torch.from_numpy(self.others(users, rng.integers(self._left[users])))],
        }

    def others(self, users: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Items (B,) int64: of those that the user has no event with the one of this rank (B,), from 0."""
        passed = np.searchsorted(self._keys, users * len(self.catalogue) + ranks, side="right") - self._start[users]
        return self.catalogue[ranks + passed]


def examples(config: Config, data: PreparedData, views: Views, seed: int) -> Pairs:
    return Pairs(data)


class SimGCL(nn.Module):
    edges: Tensor
    edge_weights: Tensor
    known_users: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.num_users, self.num_items = int(context.facts["num_users"]), int(context.facts["num_items"])
        pairs = torch.as_tensor(context.facts["pairs"])
        edges, weights = normalized_graph(pairs, self.num_users, self.num_items)
        known = torch.bincount(pairs[0], minlength=self.num_users) > 0
        for name, value in (("edges", edges), ("edge_weights", weights), ("known_users", known)):
            self.register_buffer(name, value, persistent=False)  # made of facts.safetensors
        self.users, self.items = (nn.Parameter(torch.empty(n, config.dim)) for n in (self.num_users, self.num_items))
        for table in (self.users, self.items):
            nn.init.xavier_uniform_(table)

    def vectors(self, *, noisy: bool = False) -> tuple[Tensor, Tensor]:
        """Vectors (U, D) of all users and (I, D) of all items, float32 or better; with new noise if noisy."""
        config, size = self.config, self.num_users + self.num_items
        start = torch.cat([self.users, self.items])
        with torch.autocast(device_type=start.device.type, enabled=False):
            graph = torch.sparse_coo_tensor(
                self.edges, self.edge_weights.to(start.dtype), (size, size), is_coalesced=True, check_invariants=False
            )
            found = propagated(
                graph, start, config.layers, eps=config.eps if noisy else 0.0, input_in_mean=config.input_in_mean
            )
        users, items = found.split([self.num_users, self.num_items])
        return users, items

    def forward(self, batch: Batch) -> Step:
        chosen = batch["input"], batch["target"], batch["views"][0]
        users, items = self.vectors()
        ranking = bpr(users[chosen[0]], items[chosen[1]], items[chosen[2]])
        rows = self.users[chosen[0]], self.items[chosen[1]], self.items[chosen[2]]
        l2 = torch.stack([row.square().sum() for row in rows]).sum() / (2 * len(chosen[0]))
        loss = ranking + self.config.l2 * l2
        metrics = {"loss_bpr": ranking.detach(), "loss_l2": l2.detach()}
        if self.config.weight:
            one, two = self.vectors(noisy=True), self.vectors(noisy=True)
            for place, name in enumerate(("users", "items")):
                once = chosen[place].unique()
                found = contrast(one[place][once], two[place][once], temperature=self.config.temperature)
                loss = loss + self.config.weight * found
                metrics[f"loss_{name}"] = found.detach()
        return Step(loss, metrics)

    def export(self) -> nn.Module:
        return Recommender(self)


class Recommender(nn.Module):
    """All vectors, computed once. Users without training events get the mean user."""

    user_vectors: Tensor
    item_vectors: Tensor

    def __init__(self, learner: SimGCL) -> None:
        super().__init__()
        with torch.no_grad():
            users, items = learner.vectors()
            known = learner.known_users
            users = torch.where(known[:, None], users, users[known].mean(0))
        self.register_buffer("user_vectors", users)
        self.register_buffer("item_vectors", items)

    def score_users(self, users: Tensor) -> Tensor:
        """Scores (U, num_items) float32 of users (U,) int64."""
        return self.user_vectors[users] @ self.item_vectors.T


def normalized_graph(pairs: Tensor, num_users: int, num_items: int) -> tuple[Tensor, Tensor]:
    """D^-1/2 A D^-1/2 of the graph in which users come first, then items.

    Args:
        pairs: (2, N) int64 of users and items, each pair once, in the order of users, then items.
    Returns:
        Places (2, 2N) int64 in the order of rows, then columns, and values (2N,) float32.
    """
    users, items = pairs
    degrees = torch.bincount(users, minlength=num_users)[users] * torch.bincount(items, minlength=num_items)[items]
    weights = degrees.double().rsqrt().float()
    by_item = torch.argsort(items, stable=True)
    rows, columns = torch.stack([users, items + num_users]), torch.stack([items + num_users, users])[:, by_item]
    return torch.cat([rows, columns], dim=1), torch.cat([weights, weights[by_item]])


def propagated(graph: Tensor, start: Tensor, layers: int, *, eps: float = 0.0, input_in_mean: bool = False) -> Tensor:
    """Mean (N, D) of the layers' vectors.

    Args:
        graph: (N, N) sparse and symmetric. start: (N, D), E^(0). eps: norm of the noise in each layer; 0: none.
    """
    total, vectors = start if input_in_mean else torch.zeros_like(start), start
    for _ in range(layers):
        vectors = _Product.apply(graph, vectors)
        if eps:
            vectors = vectors + sign_aligned_noise(vectors, eps)
        total = total + vectors
    return total / (layers + input_in_mean)


class _Product(torch.autograd.Function):
    """Sparse symmetric matrix times dense one. Its gradient is the same product: nothing is transposed."""

    @staticmethod
    def forward(ctx: Any, graph: Tensor, vectors: Tensor) -> Tensor:
        ctx.graph = graph
        return torch.sparse.mm(graph, vectors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, torch.sparse.mm(ctx.graph, gradients[0])


def sign_aligned_noise(vectors: Tensor, eps: float) -> Tensor:
    """Random vectors (N, D) of norm `eps` in the orthant of each row; 0 where the row is 0. Without gradient."""
    with torch.no_grad():
        return eps * functional.normalize(torch.rand_like(vectors), dim=1, eps=_EPSILON) * vectors.sign()


def bpr(users: Tensor, items: Tensor, others: Tensor) -> Tensor:
    """Mean of -log sigmoid(score of the item - score of the other); all (B, D)."""
    return functional.softplus(-(users * (items - others)).sum(1)).mean()


def contrast(one: Tensor, two: Tensor, *, temperature: float) -> Tensor:
    """Mean InfoNCE: row i of `one` (N, D) must find row i of `two` (N, D); N >= 1, any scale. log N if all agree."""
    one, two = (functional.normalize(view, dim=1, eps=_EPSILON) for view in (one, two))
    nothing = torch.empty(len(one), 0, dtype=torch.int64, device=one.device)
    sums = log_sum_of_others(one, two, nothing, temperature=temperature)
    return (sums - (one * two).sum(1) / temperature).mean()


def build(config: Config, context: Context) -> SimGCL:
    return SimGCL(config, context)
