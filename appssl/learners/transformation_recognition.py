"""Multi-task transformation recognition: a head for each change says whether a window was changed that way.

With z_0 the features of the window and z_k those after change k, and f_k a head with one hidden layer,

    L = sum_k 1/2 mean [ softplus(f_k(z_0)) + softplus(-f_k(z_k)) ]

the sum over all changes of the binary cross-entropy on equally many changed and unchanged windows.

Source: Saeed et al., Multi-task self-supervised learning for human activity detection, IMWUT 3(2), 2019, arXiv
1907.11879, section 3; heads of 256 units as in ColloSSL, arXiv 2202.00758. Deviations: the unchanged windows are the
same for all heads, so that a step needs nine passes of the encoder and not sixteen.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from appssl.contracts import Batch, Context, Progress, Step
from appssl.errors import SettingsError
from appssl.settings import Settings


class Config(Settings):
    name: Literal["transformation_recognition"] = "transformation_recognition"
    hidden: int = Field(256, ge=1, description="width of the hidden layer of each head")


class TransformationRecognition(nn.Module):
    is_mean_over_samples = True

    def __init__(self, backbone: nn.Module, num_changes: int, hidden: int) -> None:
        super().__init__()
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1)) for _ in range(num_changes)
        )

    def forward(self, batch: Batch) -> Step:
        """Loss of `views`: the windows (B, *input_shape), then the windows after each change."""
        views = batch["views"]
        plain, *changed = self.backbone(torch.cat(views)).chunk(len(views))
        losses, correct = [], []
        for head, features in zip(self.heads, changed, strict=True):
            no, yes = head(plain)[:, 0], head(features)[:, 0]
            losses.append((functional.softplus(no) + functional.softplus(-yes)).mean() / 2)
            correct.append(((no < 0).float().mean() + (yes > 0).float().mean()) / 2)
        return Step(torch.stack(losses).sum(), {"accuracy": torch.stack(correct).mean()})

    def after_update(self, progress: Progress) -> None:
        pass

    def export(self) -> nn.Module:
        return self.backbone


def build(config: Config, context: Context) -> TransformationRecognition:
    """
    Raises:
        SettingsError: if there is no changed view.
    """
    if context.num_views < 2:
        raise SettingsError("learners/transformation_recognition needs views: transformations.")
    return TransformationRecognition(context.backbone, context.num_views - 1, config.hidden)
