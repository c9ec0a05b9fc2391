"""A batch that passes the backbone in parts, so that the activations of one part at a time are in memory.

    z = [f(x_1), ..., f(x_P)],    dL/dtheta = sum_p (dL/dz_p) (dz_p/dtheta)

Forward keeps the outputs z only; backward computes each part again. The loss sees the whole batch, so that a
contrastive one has all its negatives, other than with `fit.accumulate`; the gradient is that of the undivided batch.
Batch normalization sees a part at a time, and remembers every part once.

Source: Gao et al., Scaling deep contrastive learning batch size under memory limited setup, RepL4NLP 2021, arXiv
2101.06983 (gradient caching); Chen et al., Training deep nets with sublinear memory cost, 2016, arXiv 1604.06174.
Deviations: parts are computed again within one backward pass, in which the gradients of z are cached by autograd; so it
works with every learner that calls its backbone, and with several processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from appssl.errors import SettingsError


class InParts:
    """In place of a module's `forward`, until `undo`.

    Args:
        size: samples (rows of the first dimension) of a part.
    """

    def __init__(self, module: nn.Module, size: int) -> None:
        self.module, self.size, self.was_used = module, size, False
        self._whole = module.forward
        module.forward = self

    def __call__(self, inputs: Tensor) -> Tensor:
        self.was_used = True
        if not torch.is_grad_enabled() or len(inputs) <= self.size:
            return self._whole(inputs)
        return torch.cat([self._part(part) for part in inputs.split(self.size)])

    def _part(self, inputs: Tensor) -> Tensor:
        made: Any = checkpoint(
            self._whole, inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _remembering_off(self.module))
        )
        return made

    def undo(self) -> None:
        del self.module.forward


@contextmanager
def _remembering_off(module: nn.Module) -> Iterator[None]:
    """Batch normalization by the batch, as in training, without changing the running statistics."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, None if (n := norm.num_batches_tracked) is None else n.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


@contextmanager
def backbone_in_parts(learner: Any, size: int | None) -> Iterator[InParts | None]:
    """The learner's backbone in parts of `size` samples; None: nothing is changed.

    Raises:
        SettingsError: if the learner has no backbone.
    """
    if size is None:
        yield None
        return
    backbone = getattr(learner, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise SettingsError("fit.backbone_batch: this method has no backbone to divide batches for. Leave it out.")
    parts = InParts(backbone, size)
    try:
        yield parts
    finally:
        parts.undo()


def refuse_unused(parts: InParts | None) -> None:
    """
    Raises:
        SettingsError: if the backbone was never called as a whole, as by methods that mask its inputs.
    """
    if parts is not None and not parts.was_used:
        raise SettingsError(
            "fit.backbone_batch: this method does not pass whole inputs through its backbone, so batches cannot be "
            "divided there. Leave it out, and use fit.accumulate, or a smaller fit.batch_size."
        )
