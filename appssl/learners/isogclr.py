"""iSogCLR: a contrastive loss with a temperature of its own for every sample, learned with the network.

A distributionally robust loss weighs the negatives S_i of sample i by their hardness, at most rho away from equal
weights (KL). Its dual has one temperature per sample as multiplier. With s(.,.) the cosine and h_j = s(z_i, z_j) -
s(z_i, z_i'), this is what the reported loss estimates, summed over both views of a sample as anchors:

    F = mean_i min_{tau_i >= tau_min} [ tau_i log mean_{j in S_i} exp(h_j / tau_i) + tau_i rho ]

Small batches see few negatives, so each sample has a running normalizer u_i beside its tau_i and the running gradient
v_i of tau_i. For anchor view k, the negatives being both views of the other samples in the batch:

    g_i^k = mean_j exp(s(z_i^k, z_j) / tau_i)             u_i^k = (1 - gamma) u_i + gamma g_i^k   (first time: g_i^k)
    w_j^k = exp(s(z_i^k, z_j) / tau_i) / u_i^k            without gradient
    L = mean_i sum_k [ mean_j w_j^k s(z_i^k, z_j) - s(z_i^1, z_i^2) ]                  the gradient of the networks
    G_i = clip( mean_k [ log u_i^k + rho - mean_j w_j^k s(z_i^k, z_j) / tau_i ] )
    u_i <- mean_k u_i^k,    v_i <- (1 - beta) v_i + beta G_i,    tau_i <- clip(tau_i - eta v_i)

The value of L says nothing; the loss returned has the value of F and the gradient of L. With eta = 0 all temperatures
stay: that is SogCLR.
Source: Qiu et al., Not All Semantics are Created Equal, ICML 2023, arXiv 2305.11965 (the paper's s is u here, its u is
v); running normalizers: Yuan et al., SogCLR, ICML 2022, arXiv 2202.12387. Deviations: a sample's first step is known by
its empty normalizer and not by the epoch; rows of a batch that hold one sample twice are each other's negatives, and
update its state with their mean. Across processes negatives, and updates of the state, are those of all of them.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from appssl.contracts import Batch, Context, Progress, Step
from appssl.errors import DataError, SettingsError
from appssl.ops.contrastive import gathered, unit_views
from appssl.ops.distributed import gather
from appssl.ops.heads import mlp
from appssl.settings import Settings

_NUM_VIEWS = 2


class Config(Settings):
    name: Literal["isogclr"] = "isogclr"
    radius: float = Field(0.4, ge=0, description="rho: how far (KL) weights of negatives may be from equal ones")
    temperature: float = Field(0.1, gt=0, description="tau_0: what the temperature of every sample starts from")
    # Below 0.02, exp(1 / tau) comes near the range of float32, in which normalizers are kept.
    temperature_min: float = Field(0.05, ge=0.02, description="tau_min: smallest temperature")
    temperature_max: float = Field(1.0, gt=0, description="tau_max: largest temperature")
    temperature_lr: float = Field(0.03, ge=0, description="eta: learning rate of the temperatures; 0: SogCLR")
    gradient_rate: float = Field(0.5, gt=0, le=1, description="beta: weight of a new gradient of a temperature")
    gradient_clip: float = Field(3.0, gt=0, description="largest absolute gradient of a temperature")
    normalizer_rate: float = Field(0.8, gt=0, le=1, description="gamma: weight of a batch in the running normalizer")
    projector_hidden: int = Field(512, ge=1, description="width of the projector's hidden layer")
    projector_out: int = Field(128, ge=1, description="width of the projections that are compared")

    @model_validator(mode="after")
    def _ordered(self) -> "Config":
        if not self.temperature_min <= self.temperature <= self.temperature_max:
            raise ValueError("needs temperature_min <= temperature <= temperature_max")
        return self


class Anchors(NamedTuple):
    """What is known of anchor view k of sample i, each (2, B); only `surrogate` has gradient.

    Attributes:
        surrogate: terms of L. normalizer: u_i^k. temperature_gradient: terms of G, not clipped. objective: terms of F.
    """

    surrogate: Tensor
    normalizer: Tensor
    temperature_gradient: Tensor
    objective: Tensor


class ISogCLR(nn.Module):
    temperature: Tensor
    normalizer: Tensor
    momentum: Tensor
    largest_index: Tensor

    def __init__(self, config: Config, backbone: nn.Module, num_rows: int) -> None:
        """
        Args:
            num_rows: of the prepared table; `index` of a batch is below it.
        """
        super().__init__()
        self.config = config
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.projector = mlp(width, config.projector_hidden, config.projector_out)
        self.register_buffer("temperature", torch.full((num_rows,), config.temperature))
        self.register_buffer("normalizer", torch.zeros(num_rows))  # 0: not seen yet
        self.register_buffer("momentum", torch.zeros(num_rows))
        self.register_buffer("largest_index", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> Step:
        """Loss of two `views`, each (B, *input_shape), of the samples `index` (B,)."""
        projections = self.projector(self.backbone(torch.cat(batch["views"]))).chunk(_NUM_VIEWS)
        views = unit_views("learners/isogclr", projections)
        rows = self._rows(batch["index"])
        temperature = self.temperature[rows]
        found = robust_contrast(
            views, temperature, self.normalizer[rows], gamma=self.config.normalizer_rate, rho=self.config.radius
        )
        if self.training:
            self._remember(rows, found)
        surrogate, objective = found.surrogate.sum(0).mean(), found.objective.sum(0).mean()
        metrics = {"temperature": temperature.mean(), "surrogate": surrogate.detach()}
        return Step(objective + (surrogate - surrogate.detach()), metrics)

    def _rows(self, index: Tensor) -> Tensor:
        """The index, cut to the rows there are: `after_update` reports it, without a host read in every step."""
        self.largest_index = torch.maximum(self.largest_index, gather(index).max())
        return index.clamp(max=len(self.temperature) - 1)

    @torch.no_grad()
    def _remember(self, rows: Tensor, found: Anchors) -> None:
        """State of the samples in the batches of all processes; others keep theirs."""
        c = self.config
        rows = gather(rows)
        normalizer, gradient = of_samples(
            rows, gather(found.normalizer.mean(0)), gather(found.temperature_gradient.mean(0))
        )
        gradient = gradient.clamp(-c.gradient_clip, c.gradient_clip)
        momentum = (1 - c.gradient_rate) * self.momentum[rows] + c.gradient_rate * gradient
        moved = self.temperature[rows] - c.temperature_lr * momentum
        self.normalizer[rows] = normalizer
        self.momentum[rows] = momentum
        self.temperature[rows] = moved.clamp(c.temperature_min, c.temperature_max)

    def after_update(self, progress: Progress) -> None:
        """
        Raises:
            DataError: if a batch had an index that there is no state for; looked for after the first step, at the end
                of each epoch and of training.
        """
        if progress.step in (1, progress.num_steps) or progress.step % progress.steps_per_epoch == 0:
            largest, size = int(self.largest_index), len(self.temperature)
            if largest >= size:
                raise DataError(
                    f"learners/isogclr keeps a temperature for each of {size} rows, but a batch had index {largest}. "
                    'Whoever builds the learner must give the rows of the prepared table as Context.facts["num_rows"].'
                )

    def export(self) -> nn.Module:
        return self.backbone


def robust_contrast(views: Tensor, temperature: Tensor, normalizer: Tensor, *, gamma: float, rho: float) -> Anchors:
    """The equations above for a batch.

    Args:
        views: unit vectors (2, B, D), float32 or float64. temperature: tau_i, (B,). normalizer: u_i before this batch,
            (B,), 0 where there is none.
    """
    keys, own = gathered(views)
    total = keys.shape[1]
    columns = torch.stack([own, own + total], dim=1)  # (B, 2): both views of the sample itself
    with torch.autocast(device_type=views.device.type, enabled=False):
        similarity = views @ keys.flatten(0, 1).T  # (2, B, 2 W B)
    positive = (views[0] * views[1]).sum(-1)
    count = 2 * total - 2
    with torch.no_grad():
        logits = similarity / temperature[:, None]
        logits = logits.scatter(2, columns.expand(2, -1, -1), -torch.inf)
        batch_normalizer = logits.logsumexp(-1).exp() / count
        mixed = (1 - gamma) * normalizer + gamma * batch_normalizer
        new = torch.where(normalizer == 0, batch_normalizer, mixed)
        weights = (logits - new.log()[..., None]).exp() / count
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


def build(config: Config, context: Context) -> ISogCLR:
    """
    Raises:
        SettingsError: if there are not two views.
    """
    if context.num_views != _NUM_VIEWS:
        raise SettingsError(
            f"learners/isogclr compares two views of a sample, the views make {context.num_views}. "
            "Set num_views of the views to 2."
        )
    num_rows = int(context.facts.get("num_rows", context.num_samples))
    return ISogCLR(config, context.backbone, num_rows)
