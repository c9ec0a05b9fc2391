"""MSBReg (reconstructed): views are drawn to the centroid of a target network; two forces keep embeddings apart.

With p_i^m the unit embeddings (in R^d) of view m of image i by the online network with predictor, y_i^m those by the
target network without predictor or gradient, for M views of B images,

    L_M = 1/B sum_i | 1/M sum_m p_i^m - 1/M sum_m y_i^m |^2                                   multiview centroid
    L_S = d sum_k (sigma_k^2 - 1/d)^2 = d |C - I/d|_F^2,   C = 1/(MB) sum_im p_i^m p_i^m^T    singular values sigma
    L_B = -1/(MB) sum_im <p_i^m, n_i^m>,   n uniform on the unit sphere, new in every step    Brownian

    L = L_M + lambda_S L_S + lambda_B L_B,     target <- m target + (1 - m) online after each step, m rising to 1

L_S is 0 for a cloud that is equally wide in all directions and d - 1 for a single point; it is computed without
singular values. L_M alone does not draw the online views of an image together: it is the mean squared distance of all
pairs of an online and a target view less the spread of both sides.

Source: Moon et al., An Embedding-Dynamic Approach to Self-supervised Learning, WACV 2023, arXiv 2207.03552: the three
terms, the centroids and the target network. Deviations: the formulas of L_S and L_B, normalization, weights and
networks are reconstructed from the paper's description, not taken from it, so results are not those of the paper; other
readings are under `spread` and `noise`. Each view passes the networks alone. Across processes C is that of all of them.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Batch, Context, Progress, Step
from appssl.errors import DataError, SettingsError
from appssl.ops.contrastive import EPSILON
from appssl.ops.distributed import gather
from appssl.ops.ema import cosine_momentum, follow, teacher_of
from appssl.ops.heads import mlp
from appssl.settings import Settings

Spread = Literal["frobenius", "variance", "logdet", "whiten"]
Noise = Literal["per_view", "per_image"]
_LEAST_VARIANCE = 1e-4  # added to d sigma^2 under the logarithm: a direction that is not used costs 9.2 / d


class Config(Settings):
    name: Literal["msbreg"] = "msbreg"
    singular_weight: float = Field(0.1, ge=0, description="lambda_S; reconstructed, tried from 0.1 to 1")
    brownian_weight: float = Field(0.01, ge=0, description="lambda_B; reconstructed, tried from 0.01 to 0.1")
    spread: Spread = Field(
        "frobenius",
        description="L_S: frobenius, as above; variance of sigma; logdet, -mean log(d sigma^2); whiten, centered C",
    )
    noise: Noise = Field("per_view", description="a Brownian direction for every embedding, or one for all of an image")
    momentum: float = Field(0.99, ge=0, le=1, description="m of the target network at the first step, rising to 1")
    projector_hidden: int = Field(4096, ge=1, description="width of the hidden layer of the projector")
    projector_out: int = Field(256, ge=2, description="width of the embeddings, d")
    predictor_hidden: int = Field(4096, ge=1, description="width of the hidden layer of the predictor")
    head_norm: bool = Field(True, description="batch normalization in projector and predictor")


class MSBReg(nn.Module):
    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        width, out = int(backbone.num_features), config.projector_out  # type: ignore[arg-type]
        self.projector = mlp(width, config.projector_hidden, out, norm=config.head_norm)
        self.predictor = mlp(out, config.predictor_hidden, out, norm=config.head_norm)
        self.target_backbone = teacher_of(backbone)
        self.target_projector = teacher_of(self.projector)

    def forward(self, batch: Batch) -> Step:
        """Loss of `views`, M tensors (B, *input_shape).

        Raises:
            DataError: if there is one sample: it has no cloud to keep apart.
        """
        c, views = self.config, batch["views"]
        if len(views[0]) < 2:
            raise DataError("learners/msbreg needs two or more samples in a batch, got 1. Raise fit.batch_size.")
        online = unit([self.predictor(self.projector(self.backbone(view))) for view in views])
        with torch.no_grad():
            target = unit([self.target_projector(self.target_backbone(view)) for view in views])
        with torch.autocast(device_type=online.device.type, enabled=False):
            centroid = centroid_distance(online, target)
            singular = singular_values(gather(online.transpose(0, 1)).flatten(0, 1), c.spread)
            brownian = brownian_force(online, directions(online, c.noise))
        loss = centroid + c.singular_weight * singular + c.brownian_weight * brownian
        parts = {"centroid": centroid, "singular": singular, "brownian": brownian}
        watched = {"cosine_of_images": cosine_of_images(online.detach())}  # near 1: collapsed
        return Step(loss, {name: value.detach() for name, value in parts.items()} | watched)

    def after_update(self, progress: Progress) -> None:
        momentum = cosine_momentum(self.config.momentum, progress.step - 1, progress.num_steps)
        follow(self.target_backbone, self.backbone, momentum)
        follow(self.target_projector, self.projector, momentum)

    def export(self) -> nn.Module:
        return self.backbone


def unit(embeddings: list[Tensor]) -> Tensor:
    """M views (B, d), any scale, as unit vectors (M, B, d), float32 or better."""
    views = torch.stack(embeddings)
    return functional.normalize(views.to(torch.promote_types(views.dtype, torch.float32)), dim=2, eps=EPSILON)


def centroid_distance(online: Tensor, target: Tensor) -> Tensor:
    """L_M of unit vectors (M, B, d): in [0, 4]."""
    return (online.mean(0) - target.mean(0)).square().sum(1).mean()


def brownian_force(online: Tensor, noise: Tensor) -> Tensor:
    """L_B of unit vectors (M, B, d) and directions (M, B, d) or (1, B, d): in [-1, 1]."""
    return -(online * noise).sum(2).mean()


def directions(online: Tensor, kind: Noise) -> Tensor:
    """Unit vectors, uniform on the sphere: for every embedding (M, B, d), or for all of an image (1, B, d)."""
    like = online if kind == "per_view" else online[:1]
    return functional.normalize(torch.randn_like(like), dim=2)  # a normalized Gaussian is isotropic


def singular_values(embeddings: Tensor, kind: Spread) -> Tensor:
    """L_S of unit vectors (N, d): smallest, 0 but for `logdet`, where all directions are equally used.

    Returns:
        Scalar: frobenius in [0, d - 1]; variance in [0, (d - 1) / d^2]; whiten >= 0; logdet >= -1e-4.
    """
    size, width = embeddings.shape
    if kind == "variance":  # the squares sum to 1, so the mean of all d squares is 1 / d
        sigma = torch.linalg.svdvals(embeddings / size**0.5)
        return 1 / width - (sigma.sum() / width).square()
    if kind == "frobenius" and size < width:  # the same by the smaller matrix
        return width * (embeddings @ embeddings.T / size).square().sum() - 1
    if kind == "whiten":
        embeddings = embeddings - embeddings.mean(0)
    second_moment = embeddings.T @ embeddings / size
    identity = torch.eye(width, dtype=embeddings.dtype, device=embeddings.device)
    if kind == "logdet":
        return -torch.logdet(width * second_moment + _LEAST_VARIANCE * identity) / width
    return width * (second_moment - identity / width).square().sum()


def cosine_of_images(online: Tensor) -> Tensor:
    """Mean cosine of all views of different images, of unit vectors (M, B, d)."""
    count, size, _ = online.shape
    of_image = online.sum(0)
    same = of_image.square().sum()
    return (of_image.sum(0).square().sum() - same) / (count**2 * size * (size - 1))


def build(config: Config, context: Context) -> MSBReg:
    """
    Raises:
        SettingsError: if there is only one view.
    """
    if context.num_views < 2:
        raise SettingsError("learners/msbreg needs two or more views: set num_views of the views to 2.")
    return MSBReg(config, context.backbone)
