"""SimSiam: each view predicts the projection of another view, which is held constant; no negatives and no teacher.

With z_v = projector(backbone(x_v)) and p_v = predictor(z_v),

    loss = 1/2 D(p_1, z_2) + 1/2 D(p_2, z_1),      D(p, z) = - mean_i cos(p, z),      no gradient through z in D

in [-1, 1]. `output_std`, the standard deviation of unit projections over the batch times sqrt(d), is about 1 for
projections that spread over the sphere and 0 where they have collapsed to one point.

Source: Chen and He, SimSiam, CVPR 2021, arXiv 2011.10566, equations 1 to 4 and section 4.1. Deviations: with more than
two views the mean over ordered pairs; the projector's last normalization has no learned scale, as in the official code;
the predictor learns at the rate of the schedule, not a constant one. Each view passes the networks alone, so that batch
normalization does not mix views; it is of each process.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Batch, Context, Progress, Step
from appssl.errors import SettingsError
from appssl.ops.heads import mlp
from appssl.ops.predictions import EPSILON, mean_cosine_of_pairs
from appssl.settings import Settings


class Config(Settings):
    name: Literal["simsiam"] = "simsiam"
    projector_out: int = Field(2048, ge=1, description="width of all layers of the projector, d in the paper")
    projector_layers: int = Field(
        3, ge=1, le=5, description="linear layers of the projector (2 for CIFAR in the paper)"
    )
    predictor_hidden: int = Field(512, ge=1, description="width of the hidden layer of the predictor, a bottleneck")


class SimSiam(nn.Module):
    is_mean_over_samples = True

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        width, out = int(backbone.num_features), config.projector_out  # type: ignore[arg-type]
        self.projector = mlp(width, out, out, num_layers=config.projector_layers, last_norm=True)
        self.predictor = mlp(out, config.predictor_hidden, out)

    def forward(self, batch: Batch) -> Step:
        """Loss of `views`, each (B, *input_shape)."""
        projections = [self.projector(self.backbone(view)) for view in batch["views"]]
        predictions = [self.predictor(z) for z in projections]
        loss = -mean_cosine_of_pairs(predictions, projections)
        return Step(loss, {"output_std": output_std(projections[0].detach())})

    def after_update(self, progress: Progress) -> None:
        pass

    def export(self) -> nn.Module:
        return self.backbone


def output_std(projections: Tensor) -> Tensor:
    """Spread of the directions of (B, D), a scalar in [0, about 1]."""
    unit = functional.normalize(projections.float(), dim=1, eps=EPSILON)
    return unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5


def build(config: Config, context: Context) -> SimSiam:
    """
    Raises:
        SettingsError: if there is only one view.
    """
    if context.num_views < 2:
        raise SettingsError("learners/simsiam needs two or more views: set num_views of the views to 2.")
    return SimSiam(config, context.backbone)
