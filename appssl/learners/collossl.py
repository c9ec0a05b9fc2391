"""ColloSSL: windows of several devices on one body, cut at the same time, are views of each other.

For an anchor device a the other devices are ordered by the discrepancy of their acceleration from the anchor's, mmd2.
A policy takes positive devices P and negative devices N from that order. Positives are the windows of the same time,
negatives those of the same person at other times: the windows j of device d in another order pi_d. Per window b

    L_b = -log( S_P / (S_P + S_N) ),   S_P = sum_{i in P} w_i exp(sim(z_a, z_i) / tau)
                                       S_N = sum_{j in N} w_j exp(sim(z_a, z_j^{pi_j}) / tau)

with sim the cosine, w_i = 1 for positives and w_j = 1 / mmd2(a, j) for negatives. There is no projector.

Source: Jain et al., ColloSSL: Collaborative self-supervised learning for human activity recognition, IMWUT 6(1), 2022,
arXiv 2202.00758. Deviations: the cosine has the sign of the equation (that of the official code is turned around by its
library); static selection takes the mean of the discrepancies over blocks of all persons, and the negatives stay those
of dynamic selection; channels are scaled as the views say, and the discrepancies with them.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Batch, Context, Progress, Step
from appssl.errors import DataError, SettingsError
from appssl.ops.mmd import mmd2
from appssl.ops.signals.channels import vectors
from appssl.settings import Settings, nearest

Policy = Literal[
    "closest_pos_all_neg",
    "closest_pos_rest_neg",
    "closest_only",
    "closest_two",
    "closest_two_reverse",
    "hard_negative",
    "harder_negative",
    "mid_selection",
    "closest_pos_random_neg",
    "random_selection",
]
_NEEDED = {"closest_two": 3, "closest_two_reverse": 3, "hard_negative": 3, "closest_pos_rest_neg": 3}
_NEEDED |= {"mid_selection": 5, "harder_negative": 5}  # devices, the anchor among them; two for the others


class Config(Settings):
    name: Literal["collossl"] = "collossl"
    anchor: str | None = Field(None, description="anchor device; null: another one, at random, in every step")
    policy: Policy = Field("closest_pos_all_neg", description="which devices are positive and which negative")
    selection: Literal["dynamic", "static"] = Field(
        "dynamic", description="discrepancies of each block, or of all training data before training"
    )
    negatives: Literal["asynchronous", "synchronous"] = Field(
        "asynchronous", description="windows of other times, or (for comparison only) of the same time"
    )
    negatives_per_device: int = Field(1, ge=1, le=50, description="orders pi of each negative device")
    weighted: bool = Field(True, description="negatives weigh the inverse of their device's discrepancy; else 1")
    temperature: float = Field(0.05, gt=0, description="tau in the paper")


class ColloSSL(nn.Module):
    def __init__(self, config: Config, context: Context, acceleration: Sequence[int]) -> None:
        """
        Args:
            acceleration: channels x, y, z of the acceleration.
        """
        super().__init__()
        self.config = config
        self.backbone = context.backbone
        self.acceleration = list(acceleration)
        devices = list(context.meta.facts["devices"])
        self.anchor = None if config.anchor is None else devices.index(config.anchor)
        known = context.facts.get("device_distances")
        self.register_buffer("distances", None if known is None else torch.as_tensor(known, dtype=torch.float32))

    def forward(self, batch: Batch) -> Step:
        """Loss of `views`, a list of D devices, each (N, C, T), and `block` (N,), blocks of windows of one person."""
        devices = torch.stack(batch["views"])  # (D, N, C, T)
        anchor = int(torch.randint(len(devices), ())) if self.anchor is None else self.anchor
        embeddings = self.backbone(devices.flatten(0, 1)).unflatten(0, devices.shape[:2])
        block = batch.get("block", torch.zeros(devices.shape[1], dtype=torch.int64))
        found = [self._of_block(devices[:, block == n], embeddings[:, block == n], anchor) for n in block.unique()]
        losses, nearest_distance = zip(*found, strict=True)
        loss = torch.cat(losses).mean()
        return Step(loss, {"mmd_of_positive": torch.stack(nearest_distance).mean()})

    def _of_block(self, devices: Tensor, embeddings: Tensor, anchor: int) -> tuple[Tensor, Tensor]:
        """Loss of every window of a block, (B,), and the discrepancy of its positive devices, ()."""
        c = self.config
        others = [d for d in range(len(devices)) if d != anchor]
        distances = self._distances(devices, anchor, others)
        order = [others[n] for n in distances.argsort().tolist()]
        positive, negative = chosen(order, c.policy)
        by_device = dict(zip(others, distances, strict=True))
        weight = {d: 1 / by_device[d] if c.weighted and c.policy != "random_selection" else 1.0 for d in negative}
        z = functional.normalize(embeddings.float(), dim=-1)
        near = [(z[anchor] * z[d]).sum(-1) for d in positive]
        far, weights = [], []
        for d in negative:
            for _ in range(c.negatives_per_device):
                theirs = z[d][torch.randperm(z.shape[1])] if c.negatives == "asynchronous" else z[d]
                far.append((z[anchor] * theirs).sum(-1))
                weights.append(torch.as_tensor(weight[d], dtype=torch.float32))
        loss = weighted_contrast(
            torch.stack(near), torch.stack(far), torch.stack(weights).to(z.device), temperature=c.temperature
        )
        return loss, torch.stack([by_device[d] for d in positive]).mean()

    def _distances(self, devices: Tensor, anchor: int, others: list[int]) -> Tensor:
        """(D - 1,) on the CPU, in the order of `others`."""
        if self.config.selection == "static":
            assert isinstance(self.distances, Tensor)
            return self.distances[anchor][others].cpu()
        norms = devices[:, :, self.acceleration].float().norm(dim=2)  # (D, B, T)
        return mmd2(norms[anchor], norms[others]).cpu()

    def after_update(self, progress: Progress) -> None:
        pass

    def export(self) -> nn.Module:
        return self.backbone


def weighted_contrast(near: Tensor, far: Tensor, weights: Tensor, *, temperature: float) -> Tensor:
    """-log(S_P / (S_P + S_N)) of every window, (B,).

    Args:
        near: cosines with the positives, (P, B). far: with the negatives, (N, B). weights: of the negatives, (N,).
    """
    positive = (near / temperature).logsumexp(0)
    negative = (far / temperature + weights.log()[:, None]).logsumexp(0)
    return functional.softplus(negative - positive)


def chosen(order: list[int], policy: Policy) -> tuple[list[int], list[int]]:
    """Positive and negative devices from the other devices by increasing discrepancy."""
    if policy == "random_selection":
        return [_any(order)], [_any(order)]
    if policy == "closest_pos_random_neg":
        return order[:1], [_any(order)]
    parts = {
        "closest_pos_all_neg": (order[:1], order),
        "closest_pos_rest_neg": (order[:1], order[1:]),
        "closest_only": (order[:1], order[:1]),
        "closest_two": (order[:1], order[1:2]),
        "closest_two_reverse": (order[1:2], order[:1]),
        "hard_negative": (order[:1], order[1:3]),
        "harder_negative": (order[3:4], order[:2]),
        "mid_selection": (order[1:3], order[3:]),
    }
    return parts[policy]


def _any(order: list[int]) -> int:
    return order[int(torch.randint(len(order), ()))]


def build(config: Config, context: Context) -> ColloSSL:
    """
    Raises:
        DataError: if the data have no devices, too few for the policy, or no acceleration x, y, z. SettingsError: for
            an unknown anchor, views that are no devices, or static selection without discrepancies.
    """
    facts: Any = context.meta.facts
    if "devices" not in facts:
        raise DataError(
            f"learners/collossl needs windows of several devices; the data of source {context.meta.source} have none."
        )
    devices = list(facts["devices"])
    if context.num_views != len(devices):
        raise SettingsError("learners/collossl needs a view of each device: set views: {name: signal, mode: devices}.")
    needed = _NEEDED.get(config.policy, 2)
    if len(devices) < needed:
        raise DataError(f"learners/collossl: policy {config.policy} needs {needed} devices, there are {len(devices)}.")
    if config.anchor is not None and config.anchor not in devices:
        raise SettingsError(f"learner.anchor: there is no device {config.anchor!r}.{nearest(config.anchor, devices)}")
    if config.selection == "static" and "device_distances" not in context.facts:
        raise SettingsError(
            "learner.selection static needs discrepancies of all training data: set "
            "sampler: {name: one_person, device_distances: true}."
        )
    triples = vectors(facts["channels"])
    if not len(triples):
        raise DataError("learners/collossl: the channels have no x, y, z, such as acc_x, acc_y, acc_z.")
    return ColloSSL(config, context, triples[0].tolist())
