"""A temperature of its own for every sample, learned with the network: the loss of iSogCLR and its state.

A distributionally robust loss weighs the negatives S_i of sample i by their hardness, at most rho away from equal
weights (KL). Its dual has one temperature per sample as multiplier. With s(.,.) the cosine and h_j = s(z_i, z_j) -
s(z_i, z_i'), this is what the reported loss estimates, summed over the K views of a sample that are anchors:

    F = mean_i min_{tau_i >= tau_min} [ tau_i log mean_{j in S_i} exp(h_j / tau_i) + tau_i rho ]

Small batches see few negatives, so each sample has a running normalizer u_i beside its tau_i and the running gradient
v_i of tau_i. For anchor view k of K:

    g_i^k = mean_j exp(s(z_i^k, z_j) / tau_i)             u_i^k = (1 - gamma) u_i + gamma g_i^k   (first time: g_i^k)
    w_j^k = exp(s(z_i^k, z_j) / tau_i) / u_i^k            without gradient
    L = mean_i sum_k [ mean_j w_j^k s(z_i^k, z_j) - s(z_i, z_i') ]                     the gradient of the networks
    G_i = clip( mean_k [ log u_i^k + rho - mean_j w_j^k s(z_i^k, z_j) / tau_i ] )
    u_i <- mean_k u_i^k,    v_i <- (1 - beta) v_i + beta G_i,    tau_i <- clip(tau_i - eta v_i)

The value of L says nothing; the loss returned has the value of F and the gradient of L. With eta = 0 all temperatures
stay: that is SogCLR.
Source: Qiu et al., Not All Semantics are Created Equal, ICML 2023, arXiv 2305.11965 (the paper's s is u here, its u is
v); running normalizers: Yuan et al., SogCLR, ICML 2022, arXiv 2202.12387. Deviations: a sample's first step is known by
its empty normalizer and not by the epoch; rows of a batch that hold one sample twice are each other's negatives in
`of_views`, and update its state with their mean. Across processes updates of the state are those of all of them.
"""

from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from appssl.ops.contrastive import gathered
from appssl.ops.distributed import gather
from appssl.settings import Settings


class Temperatures(Settings):
    """How temperatures are learned."""

    radius: float = Field(0.4, ge=0, description="rho: how far (KL) weights of negatives may be from equal ones")
    temperature: float = Field(0.1, gt=0, description="tau_0: what the temperature of every sample starts from")
    # Below 0.02, exp(1 / tau) comes near the range of float32, in which normalizers are kept.
    temperature_min: float = Field(0.05, ge=0.02, description="tau_min: smallest temperature")
    temperature_max: float = Field(1.0, gt=0, description="tau_max: largest temperature")
    temperature_lr: float = Field(0.03, ge=0, description="eta: learning rate of the temperatures; 0: SogCLR")
    gradient_rate: float = Field(0.5, gt=0, le=1, description="beta: weight of a new gradient of a temperature")
    gradient_clip: float = Field(3.0, gt=0, description="largest absolute gradient of a temperature")
    normalizer_rate: float = Field(0.8, gt=0, le=1, description="gamma: weight of a batch in the running normalizer")

    @model_validator(mode="after")
    def _ordered(self) -> "Temperatures":
        if not self.temperature_min <= self.temperature <= self.temperature_max:
            raise ValueError("needs temperature_min <= temperature <= temperature_max")
        return self


class Anchors(NamedTuple):
    """What is known of anchor view k of sample i, each (K, B); only `surrogate` has gradient.

    Attributes:
        surrogate: terms of L. normalizer: u_i^k. temperature_gradient: terms of G, not clipped. objective: terms of F.
    """

    surrogate: Tensor
    normalizer: Tensor
    temperature_gradient: Tensor
    objective: Tensor


class IndividualTemperatures(nn.Module):
    """The state of `num_rows` samples: buffers (num_rows,) float32 `temperature`, `normalizer` (0: none yet) and
    `momentum`. It changes in training only.
    """

    temperature: Tensor
    normalizer: Tensor
    momentum: Tensor

    def __init__(self, temperatures: Temperatures, num_rows: int) -> None:
        super().__init__()
        self.temperatures = temperatures
        self.register_buffer("temperature", torch.full((num_rows,), temperatures.temperature))
        self.register_buffer("normalizer", torch.zeros(num_rows))
        self.register_buffer("momentum", torch.zeros(num_rows))

    def of_views(self, views: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of two views, each the other's positive, and metrics; negatives are both views of the other samples.

        Args:
            views: unit vectors (2, B, D). rows: numbers (B,) int64 of the samples, below num_rows.
        """
        t = self.temperatures
        found = robust_contrast(
            views, self.temperature[rows], self.normalizer[rows], gamma=t.normalizer_rate, rho=t.radius
        )
        return self._learn(rows, found)

    def of_pairs(
        self, similarity: Tensor, positive: Tensor, is_negative: Tensor, rows: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of anchors (B,) and metrics, where only one side of a pair has temperatures.

        Args:
            similarity: cosines (B, M) float32 of anchors and candidates. positive: (B,), those with the positives.
            is_negative: (B, M) bool. rows: numbers (B,) int64 of the anchors, below num_rows.
        """
        t = self.temperatures
        found = robust_anchors(
            similarity[None],
            positive[None],
            is_negative[None],
            self.temperature[rows],
            self.normalizer[rows],
            gamma=t.normalizer_rate,
            rho=t.radius,
        )
        return self._learn(rows, found)

    def _learn(self, rows: Tensor, found: Anchors) -> tuple[Tensor, dict[str, Tensor]]:
        metrics = {"temperature": self.temperature[rows].mean()}
        if self.training:
            self._remember(rows, found)
        surrogate, objective = found.surrogate.sum(0).mean(), found.objective.sum(0).mean()
        return objective + (surrogate - surrogate.detach()), {**metrics, "surrogate": surrogate.detach()}

    @torch.no_grad()
    def _remember(self, rows: Tensor, found: Anchors) -> None:
        """State of the samples in the batches of all processes; others keep theirs."""
        t = self.temperatures
        rows = gather(rows)
        normalizer, gradient = of_samples(
            rows, gather(found.normalizer.mean(0)), gather(found.temperature_gradient.mean(0))
        )
        gradient = gradient.clamp(-t.gradient_clip, t.gradient_clip)
        momentum = (1 - t.gradient_rate) * self.momentum[rows] + t.gradient_rate * gradient
        moved = self.temperature[rows] - t.temperature_lr * momentum
        self.normalizer[rows] = normalizer
        self.momentum[rows] = momentum
        self.temperature[rows] = moved.clamp(t.temperature_min, t.temperature_max)


def robust_contrast(views: Tensor, temperature: Tensor, normalizer: Tensor, *, gamma: float, rho: float) -> Anchors:
    """The equations above for both views of a batch as anchors (K = 2); negatives are those of all processes.

    Args:
        views: unit vectors (2, B, D), float32 or float64. temperature: tau_i, (B,). normalizer: u_i before this batch,
            (B,), 0 where there is none.
    """
    keys, own = gathered(views)
    total = keys.shape[1]
    with torch.autocast(device_type=views.device.type, enabled=False):
        similarity = views @ keys.flatten(0, 1).T  # (2, B, 2 W B)
    positive = (views[0] * views[1]).sum(-1)
    columns = torch.stack([own, own + total], dim=1)  # (B, 2): both views of the sample itself
    is_negative = torch.ones(similarity.shape[1:], dtype=torch.bool, device=views.device).scatter_(1, columns, False)
    return robust_anchors(similarity, positive, is_negative, temperature, normalizer, gamma=gamma, rho=rho)


def robust_anchors(
    similarity: Tensor,
    positive: Tensor,
    is_negative: Tensor,
    temperature: Tensor,
    normalizer: Tensor,
    *,
    gamma: float,
    rho: float,
) -> Anchors:
    """The equations above for anchors and their candidates.

    Args:
        similarity: cosines (K, B, M), float32 or float64. positive: cosines with the positive, (K, B) or (B,).
        is_negative: (K, B, M) or (B, M) bool. temperature, normalizer: (B,). An anchor without negatives only has its
            positive.
    """
    count = is_negative.sum(-1).clamp(min=1)
    with torch.no_grad():
        logits = (similarity / temperature[:, None]).masked_fill(~is_negative, -torch.inf)
        batch_normalizer = logits.logsumexp(-1).exp() / count
        mixed = (1 - gamma) * normalizer + gamma * batch_normalizer
        new = torch.where(normalizer == 0, batch_normalizer, mixed).clamp(min=torch.finfo(similarity.dtype).tiny)
        weights = (logits - new.log()[..., None]).exp() / count[..., None]
    pushed = (weights * similarity).sum(-1)
    log_new = new.log()
    return Anchors(
        surrogate=pushed - positive,
        normalizer=new,
        temperature_gradient=log_new + rho - pushed.detach() / temperature,
        objective=temperature * (log_new + rho) - positive.detach(),
    )


def of_samples(rows: Tensor, *values: Tensor) -> list[Tensor]:
    """Mean of values (N,) over the entries of the same row, at each of them: rows may come more than once."""
    same = (rows[:, None] == rows).to(values[0].dtype)
    return [same @ value / same.sum(1) for value in values]
