"""SwAV: the cluster of a crop, assigned under an equal-usage constraint, is predicted from the other crops.

With unit embeddings z, unit prototypes C (K, d), scores S^v = z^v C^T and codes q^a = Sinkhorn(S^a / eps) of the two
large crops a, over the B images of the whole batch and V crops:

    l_a = 1 / (V - 1)  sum_{v != a}  -1/B  sum_i sum_k  q^a_ik log softmax(S^v_i / tau)_k,      loss = (l_1 + l_2) / 2

Sinkhorn, T times: prototypes (over images) to equal sums, then images (over prototypes) to sum 1, in float32 in the
log domain, so that nothing overflows and no prototype has the sum 0. Codes have no gradient. Embeddings of earlier
batches (`queue`) take part in the assignment where a batch has fewer images than there are prototypes.

Source: Caron et al., SwAV, NeurIPS 2020, arXiv 2006.09882, equations 1 to 3 and section 3.3; averaged over crops, with
the settings of SEER, Goyal et al., arXiv 2202.08360, under `epsilon: 0.03`, `num_iterations: 10`. Deviations: no LARS
or LARC optimizer; the first two views are the large crops; no power-law usage and no hard codes. Batch normalization
of the projector is of each process. Across processes the assignment is that of the whole batch and of one queue.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from appssl.contracts import Batch, Context, Progress, Step
from appssl.errors import SettingsError
from appssl.ops.distillation import cross_entropy_of_crops
from appssl.ops.distributed import gather, rank, world_size
from appssl.ops.heads import mlp
from appssl.ops.view_batches import of_each_view
from appssl.settings import Settings


class Config(Settings):
    name: Literal["swav"] = "swav"
    num_prototypes: int = Field(
        3000, ge=2, description="K in the paper; more than images in batch and queue is too many"
    )
    temperature: float = Field(0.1, gt=0, description="of the predicted codes, tau in the paper")
    epsilon: float = Field(0.05, gt=0, description="smoothness of the codes; small ones are nearly one prototype each")
    num_iterations: int = Field(3, ge=1, le=100, description="of Sinkhorn; more give more equal usage")
    queue: int = Field(0, ge=0, description="earlier embeddings of each large crop that take part in the assignment")
    queue_start_epoch: int = Field(15, ge=0, description="epoch from which the queue fills; it is used once it is full")
    frozen_steps: int = Field(313, ge=0, description="first optimizer steps in which prototypes are not trained")
    projector_hidden: int = Field(2048, ge=1, description="width of the projector's hidden layer")
    projector_out: int = Field(128, ge=2, description="width of embeddings and prototypes, d in the paper")


class SwAV(nn.Module):
    num_updates: Tensor
    epoch: Tensor
    num_queued: Tensor
    queue: Tensor | None

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.projector = mlp(width, config.projector_hidden, config.projector_out)
        drawn = torch.randn(config.num_prototypes, config.projector_out)
        self.prototypes = nn.Parameter(functional.normalize(drawn, dim=1))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_queued", torch.zeros((), dtype=torch.int64))
        empty = torch.zeros(2, config.queue, config.projector_out)
        self.register_buffer("queue", empty if config.queue else None)

    def forward(self, batch: Batch) -> Step:
        """Loss of `views`: two large crops (B, ...), then any number of others of any size."""
        projected = of_each_view(lambda images: self.projector(self.backbone(images)), batch["views"])
        with torch.autocast(device_type=projected[0].device.type, enabled=False):
            embeddings = [functional.normalize(z.float(), dim=1) for z in projected]
            # Zero instead of no gradient while frozen: processes must agree on which parameters have one.
            is_frozen = self.num_updates < self.config.frozen_steps
            prototypes = torch.where(is_frozen, self.prototypes.detach(), self.prototypes).float()
            scores = [z @ prototypes.T for z in embeddings]
            codes = [self._codes(a, scores[a].detach(), prototypes.detach()) for a in range(2)]
            loss = cross_entropy_of_crops(scores, codes, temperature=self.config.temperature)
        if self.training and self.queue is not None:
            self._enqueue(torch.stack([z.detach() for z in embeddings[:2]]))
        entropy = torch.special.entr(torch.stack(codes)).sum(-1).mean()
        return Step(loss, {"code_entropy": entropy})

    @torch.no_grad()
    def _codes(self, crop: int, scores: Tensor, prototypes: Tensor) -> Tensor:
        """Codes (B, K) of large crop 0 or 1, assigned together with the queue if it is full."""
        c = self.config
        if self.queue is None:
            return sinkhorn(scores / c.epsilon, c.num_iterations)
        # Each process has the whole queue and assigns a part of it.
        earlier = self.queue[crop, rank() :: world_size()] @ prototypes.T
        is_used = torch.ones(len(scores) + len(earlier), dtype=torch.bool, device=scores.device)
        is_used[len(scores) :] = self.num_queued >= c.queue
        return sinkhorn(torch.cat([scores, earlier]) / c.epsilon, c.num_iterations, is_used)[: len(scores)]

    @torch.no_grad()
    def _enqueue(self, embeddings: Tensor) -> None:
        """Puts embeddings (2, B, d) of all processes over the oldest ones, from the epoch at which the queue starts."""
        assert self.queue is not None
        rows = gather(embeddings.transpose(0, 1)).transpose(0, 1)
        length, count = self.queue.shape[1], rows.shape[1]
        if count > length:
            raise SettingsError(
                f"learner.queue is {length}, but a batch has {count} images; a queue needs room for one batch or more. "
                "Set learner.queue: 0 for none."
            )
        places = (self.num_queued + torch.arange(count, device=rows.device)) % length
        has_started = self.epoch >= self.config.queue_start_epoch
        self.queue.copy_(torch.where(has_started, self.queue.index_copy(1, places, rows), self.queue))
        self.num_queued += count * has_started

    @torch.no_grad()
    def after_update(self, progress: Progress) -> None:
        # Weight decay shrinks rows without turning them, so frozen prototypes stay what they are.
        self.prototypes.copy_(functional.normalize(self.prototypes, dim=1))
        self.num_updates.fill_(progress.step)
        self.epoch.fill_(progress.next_epoch)

    def export(self) -> nn.Module:
        return self.backbone


def sinkhorn(logits: Tensor, num_iterations: int, is_used: Tensor | None = None) -> Tensor:
    """Soft assignment of images to prototypes, each used equally often.

    Args:
        logits: scores / eps, (N, K) float32 or better: images of this process. is_used: (N,) bool, images that take
            part; None: all.
    Returns:
        (N, K): rows sum to 1, those of images that take no part to 0. The sums of columns over the images of all
        processes tend to their number / K with the number of iterations.
    """
    of_images = logits.new_zeros(len(logits))  # log of what each image, and prototype, has been divided by
    of_prototypes = logits.new_zeros(logits.shape[1])
    unused = torch.zeros_like(of_images, dtype=torch.bool) if is_used is None else ~is_used
    for _ in range(num_iterations):
        used = of_images.masked_fill(unused, torch.inf)
        here = (logits - used[:, None]).logsumexp(dim=0)
        of_prototypes = gather(here[None]).logsumexp(dim=0)
        of_images = (logits - of_prototypes).logsumexp(dim=1)
    return (logits - of_prototypes - of_images[:, None]).exp().masked_fill(unused[:, None], 0.0)


def build(config: Config, context: Context) -> SwAV:
    """
    Raises:
        SettingsError: if there is only one view.
    """
    if context.num_views < 2:
        raise SettingsError("learners/swav needs two or more views: set views: multi_crop, or num_views: 2.")
    return SwAV(config, context.backbone)
