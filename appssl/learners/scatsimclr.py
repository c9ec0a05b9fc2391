"""ScatSimCLR: SimCLR beside a task whose answers are known: how a view was rotated, or in which order its cells come.

    L = NT-Xent(z_1, z_2) + lambda L_t,    z = W2 relu(W1 h + b1) + b2 of two views,    h the features of the backbone

L_t is the mean cross-entropy of a head on h that tells what was done to another view, the last one:

    rotation: by how many quarter turns it was rotated; all four rotations of every image are asked
    jigsaw:   in which of so many orders its nine cells come, from the features of all nine; one order an image

lambda is 0 during the first part of the training, in which the task is not computed; a training with lambda 0 is
SimCLR. With `views: {num_views: 3}` the task has a view of its own, with two it takes the second. The network of the
paper is backbones/scattering; any other will do.

Source: Kinakh et al., ScatSimCLR, ICCV workshops 2021, arXiv 2108.13939, sections 3 to 5. Official code:
vkinakh/scatsimclr, MIT, src/trainer; it has lambda 0.3 throughout. Deviations: a view is rotated after it is augmented,
the four alike, and not before, each by itself: a flip after one quarter turn would make three of it; a jigsaw is cut
from an augmented view; orders are those of `ops/jigsaw.py`; both views pass the network as one batch, what the task
asks about as another.
"""

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Batch, Context, Progress, Step
from appssl.errors import SettingsError
from appssl.objectives.ntxent import nt_xent
from appssl.ops.heads import mlp
from appssl.ops.jigsaw import NUM_CELLS, cells, far_orders, shuffled
from appssl.settings import Settings

_NUM_TURNS = 4


class Config(Settings):
    name: Literal["scatsimclr"] = "scatsimclr"
    temperature: float = Field(0.5, gt=0, description="tau of NT-Xent")
    pretext: Literal["rotation", "jigsaw"] = Field("rotation", description="what is to be told of a view")
    pretext_weight: float = Field(0.3, ge=0, description="lambda, of the task; 0: SimCLR alone")
    pretext_start: float = Field(0.4, ge=0, le=1, description="share of the steps after which lambda is not 0")
    num_orders: int = Field(35, ge=2, le=1000, description="orders of the cells that jigsaws come in")
    projector_hidden: int = Field(2048, ge=1, description="width of the projector's hidden layer")
    projector_out: int = Field(128, ge=1, description="width of the projections that are compared")
    rotation_hidden: tuple[PositiveInt, ...] = Field((512, 128), description="hidden layers of the head of rotations")
    cell_hidden: int = Field(512, ge=1, description="width of the layer that every cell of a jigsaw passes alone")
    jigsaw_hidden: int = Field(4096, ge=1, description="width of the layer that sees all cells of a jigsaw")
    dropout: float = Field(0.5, ge=0, lt=1, description="share dropped after every hidden layer of the heads")


class ScatSimCLR(nn.Module):
    pretext_weight: Tensor

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.projector = mlp(width, config.projector_hidden, config.projector_out, norm=False)
        self.task: Rotation | Jigsaw = (
            Rotation(width, config) if config.pretext == "rotation" else Jigsaw(width, config)
        )
        self.register_buffer("pretext_weight", torch.tensor(pretext_weight(config, 0, 1)))
        self._is_on: bool | None = None

    def forward(self, batch: Batch) -> Step:
        """Loss of `views`, two or three, each (B, *input_shape); the last is the one that is asked about."""
        views = batch["views"]
        projections = self.projector(self.backbone(torch.cat(views[:2]))).chunk(2)
        contrastive = nt_xent(*projections, temperature=self.config.temperature)
        metrics = {"loss_contrastive": contrastive.detach()}
        if self._is_on is None:  # read once, when a checkpoint may have been loaded
            self._is_on = bool(self.pretext_weight > 0)
        if not self._is_on:  # processes must agree on which parameters have a gradient: here all have one
            return Step(contrastive + 0 * sum(p.sum() for p in self.task.parameters()), metrics)
        inputs, labels = self.task.ask(views[-1])
        logits = self.task(self.backbone(inputs)).float()
        pretext = functional.cross_entropy(logits, labels)
        metrics |= {"loss_pretext": pretext.detach(), "pretext_accuracy": (logits.argmax(1) == labels).float().mean()}
        return Step(contrastive + self.pretext_weight * pretext, metrics)

    def after_update(self, progress: Progress) -> None:
        weight = pretext_weight(self.config, progress.step, progress.num_steps)
        self.pretext_weight.fill_(weight)
        self._is_on = weight > 0

    def export(self) -> nn.Module:
        return self.backbone


def pretext_weight(config: Config, step: int, num_steps: int) -> float:
    """lambda of the step after `step` are done."""
    return config.pretext_weight if step >= config.pretext_start * num_steps else 0.0


class Rotation(nn.Module):
    """Features (4 B, F) of what `ask` gives -> logits (4 B, 4) of the number of quarter turns."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.head = _perceptron((width, *config.rotation_hidden, _NUM_TURNS), config.dropout)

    def ask(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """All rotations (4 B, C, H, H) of images (B, C, H, H), and their quarter turns (4 B,) int64, 0, 1, 2, 3."""
        turned = [torch.rot90(images, turns, dims=(2, 3)) for turns in range(_NUM_TURNS)]
        return torch.cat(turned), torch.arange(_NUM_TURNS, device=images.device).repeat_interleave(len(images))

    def forward(self, features: Tensor) -> Tensor:
        return self.head(features)


class Jigsaw(nn.Module):
    """Features (9 B, F) of what `ask` gives -> logits (B, num_orders)."""

    orders: Tensor

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.register_buffer("orders", torch.from_numpy(far_orders(config.num_orders).copy()), persistent=False)
        self.of_cell = nn.Sequential(nn.Linear(width, config.cell_hidden), nn.ReLU(), nn.Dropout(config.dropout))
        widths = (NUM_CELLS * config.cell_hidden, config.jigsaw_hidden, config.num_orders)
        self.head = _perceptron(widths, config.dropout)

    def ask(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Cells (9 B, C, H, W) of images (B, C, H, W), image by image, and the orders (B,) int64 they are in."""
        labels = torch.randint(len(self.orders), (len(images),), device=images.device)
        return shuffled(cells(images), self.orders[labels]).flatten(0, 1), labels

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.of_cell(features).unflatten(0, (-1, NUM_CELLS)).flatten(1))


def _perceptron(widths: tuple[int, ...], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def build(config: Config, context: Context) -> ScatSimCLR:
    """
    Raises:
        SettingsError: if there are not two or three views, or they are no images, or no squares to be rotated.
    """
    shape = context.input_shape
    if context.num_views not in (2, 3):
        raise SettingsError(
            f"learners/scatsimclr compares two views and asks about a third or the second; the views make "
            f"{context.num_views}. Set num_views of the views to 2 or 3."
        )
    if len(shape) != 3 or (config.pretext == "rotation" and shape[1] != shape[2]):
        raise SettingsError(
            f"learner.pretext {config.pretext} needs {'square ' if config.pretext == 'rotation' else ''}images; these "
            f"views have shape {shape}."
        )
    return ScatSimCLR(config, context.backbone)
