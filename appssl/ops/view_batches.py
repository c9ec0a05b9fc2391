"""One network over views of several sizes: all views of one size pass it as one batch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from appssl.errors import SettingsError


def of_each_view(network: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> list[Tensor]:
    """Outputs (B, D) of all views, in their order.

    Args:
        network: (N, ...) -> (N, D), for every size that occurs. views: each (B, ...); row i of all is one sample.
    Raises:
        SettingsError: if the network takes no images of one of the sizes.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, view in enumerate(views):
        by_shape.setdefault(tuple(view.shape), []).append(number)
    outputs: dict[int, Tensor] = {}
    for shape, numbers in by_shape.items():
        outputs |= zip(numbers, _together(network, [views[n] for n in numbers], shape[1:]), strict=True)
    return [outputs[number] for number in range(len(views))]


def _together(network: Callable[[Tensor], Tensor], views: list[Tensor], shape: tuple[int, ...]) -> Sequence[Tensor]:
    try:
        return network(torch.cat(views)).chunk(len(views))
    except AssertionError as error:  # how timm's transformers say that the size is another
        raise SettingsError(
            f"the backbone takes no views of shape {shape}: {error} For views of several sizes, a transformer of timm "
            "needs backbone.options: {dynamic_img_size: true}."
        ) from error
