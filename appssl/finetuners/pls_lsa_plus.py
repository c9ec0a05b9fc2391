"""PLS-LSA+: two networks trained by PLS-LSA that find noise with each other's pseudo-labels, and agree on it.

With p^1, p^2 the predictions of the networks for the second weak view, and N^k what network k takes for noisy by its
own losses and features (finetuners/pls_lsa):

    g_i = ((p_i^1 + p_i^2) / 2)^gamma / sum of it       in the first epochs g_i^k, of p_i^k alone
    e_i^k = -sum_c g_ic log softmax(h^k(x_i))_c         with the g that was remembered for the other network
    w_i^k = the posterior of the smaller e^k among N^k
    noisy = N^1 and N^2,    w_i = (w_i^1 + w_i^2) / 2 of noisy samples, 1 of others

Both networks learn with the same noisy samples, weights and pseudo-labels, each from images that it mixes by itself;
the loss is the sum of both. The exported classifier has the mean of both networks' logits.

Of a training sample is said: `hard_clean` if one network takes it for noisy and the other does not, else as in PLS-LSA.
p_clean and p_ood are means over the networks.

Source: Albert et al., An accurate detection is not all you need to combat label noise in web-noisy datasets, ECCV 2024,
arXiv 2407.05528. Official code: PaulAlbert31/LSA, no licence; none of it is used.
Deviations: those of PLS-LSA; both networks learn in the same steps, from the same views, so after the first epochs they
remember the same pseudo-labels, where that code trains one for an epoch and then the other.
"""

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from appssl.contracts import Batch, Context, Examples, Labelled, Progress, Step
from appssl.finetuners import pls, pls_lsa
from appssl.ops.classify import Classifier
from appssl.ops.noisy_targets import sharpened
from appssl.ops.tracked_labels import Tracked, joined, pseudo_label_weights, small_loss_posterior


class Config(pls_lsa.Config):
    name: Literal["pls_lsa_plus"] = "pls_lsa_plus"  # type: ignore[assignment]


class PLSLSAPlus(nn.Module):
    disputed: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.one = pls_lsa.PLSLSA(config, context)
        self.two = pls_lsa.PLSLSA(config, replace(context, backbone=copy.deepcopy(context.backbone)))
        self.register_buffer("disputed", torch.zeros_like(self.one.memory.noisy))

    @property
    def networks(self) -> tuple[pls_lsa.PLSLSA, pls_lsa.PLSLSA]:
        return self.one, self.two

    def param_groups(self) -> list[dict[str, Any]]:
        return [group for network in self.networks for group in network.param_groups()]

    def forward(self, batch: Batch) -> Step:
        pls.refuse_whole_numbers(batch["input"], self.config.name)
        steps = [
            network.learn(batch, guess) for network, guess in zip(self.networks, self._guesses(batch), strict=True)
        ]
        metrics = {name: torch.stack([step.metrics[name] for step in steps]).mean() for name in steps[0].metrics}
        return Step(torch.stack([step.loss for step in steps]).sum(), metrics)

    @torch.no_grad()
    def _guesses(self, batch: Batch) -> list[Tensor]:
        """Pseudo-labels (B, K) for each network."""
        own = [network._prediction(batch) for network in self.networks]
        mean = torch.stack(own).mean(0)
        seen = [torch.where(self.one.started > 0, mean, prediction) for prediction in own]
        return [sharpened(prediction, self.config.sharpening) for prediction in seen]

    def after_update(self, progress: Progress) -> None:
        self.one.after_update(progress)

    def track(self, batches: Iterable[Batch], epoch: int) -> None:
        if epoch + 1 < self.config.warmup_epochs:
            return
        parts: tuple[list[Tracked], list[Tracked]] = ([], [])
        for batch in batches:
            for network, other, seen in zip(self.networks, reversed(self.networks), parts, strict=True):
                seen.append(other.memory.observe([batch], network._see, exponent=self.config.sharpening))
        tracked = [joined(seen) for seen in parts]
        p_clean = [small_loss_posterior(found.losses) for found in tracked]
        noisy = [
            network._detect(found, 1 - right > self.config.threshold, epoch)
            for network, found, right in zip(self.networks, tracked, p_clean, strict=True)
        ]
        weights = [pseudo_label_weights(t.pseudo_losses, n) for t, n in zip(tracked, noisy, strict=True)]
        both = noisy[0] & noisy[1]
        agreed = np.where(both, np.mean(weights, axis=0), 1.0)
        for network, found in zip(self.networks, tracked, strict=True):
            network.memory.decide(found, np.mean(p_clean, axis=0), both, agreed)
            network.started.fill_(1.0)
        rows = torch.from_numpy(tracked[0].index).to(self.disputed.device)
        self.disputed[rows] = torch.from_numpy(noisy[0] ^ noisy[1]).to(self.disputed.device)

    def findings(self) -> pl.DataFrame | None:
        planes = torch.stack([network.plane for network in self.networks])
        p_ood = planes.sigmoid().mean(0) if torch.isfinite(planes).any() else None
        return self.one.memory.findings(hard=self.disputed, p_ood=p_ood)

    def export(self) -> nn.Module:
        return Classifier(Both(*(network.backbone for network in self.networks)), _mean_head(*self.networks))


class Both(nn.Module):
    """Features of two encoders side by side, (B, 2 F)."""

    def __init__(self, one: nn.Module, two: nn.Module) -> None:
        super().__init__()
        self.one, self.two = one, two
        self.num_features = int(one.num_features) + int(two.num_features)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([self.one(inputs), self.two(inputs)], dim=1)


def _mean_head(one: pls.PLS, two: pls.PLS) -> nn.Linear:
    """From both features to the mean of the logits that each head has of its own."""
    weight = torch.cat([one.head.weight, two.head.weight], dim=1) / 2
    head = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    head.weight.data.copy_(weight)
    head.bias.data.copy_((one.head.bias + two.head.bias) / 2)
    return head


def labelled_examples(config: Config, labelled: Labelled) -> Examples:
    return pls.LabelledViews(labelled)


def build(config: Config, context: Context) -> PLSLSAPlus:
    return PLSLSAPlus(config, context)
