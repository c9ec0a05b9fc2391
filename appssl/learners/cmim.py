"""cMIM: an autoencoder whose codes say much of the input (mutual information machine), kept apart from each other.

With q(z|x) = N(mu, sigma^2), one code z drawn for each x, the prior P = N(0, I), p(x|z) = N(decoder(z), s^2), all log
densities summed over their dimensions, and D_ij = cos(z_i, z_j), over B samples:

    L_MIM = -1/B sum_i [ log p(x_i|z_i) + 1/2 ( log q(z_i|x_i) + log P(z_i) ) ]
    p_i   = exp(D_ii / tau) / ( exp(D_ii / tau) + mean_{j != i} exp(D_ij / tau) )
    L     = L_MIM - w/B sum_i log p_i

L_MIM rewards codes that are certain, +1/2 log q, where a variational autoencoder has -log q. D_ii = 1: a code is its
own positive, so no augmentation is needed; `positive` takes a second draw or another view instead. Negatives enter as a
mean and not as a sum, so that p_i >= 1/2 however many there are. Other estimators in place of L_MIM:

    decoder_marginal    -1/B sum_i [ log p(x_i|z_i) + log P(z_i) ]                         q(x) = p(x|z) P(z) / q(z|x)
    elbo                -1/B sum_i [ log p(x_i|z_i) + log P(z_i) - log q(z_i|x_i) ]        variational autoencoder

Encoder and decoder are the backbone, `encoder_decoder`, whose features are codes or informative embeddings.

Source: Livne, cMIM, 2025, arXiv 2502.19642, revised as 2509.21511; L_MIM as in Reidenbach et al., MolMIM, 2022, arXiv
2208.09016; decoder_marginal as in the code of MIM, Livne et al., arXiv 1910.03175, seraphlabs-ca/MIM, MIT. Deviations:
the contrastive factor follows descriptions of the paper, and its tau is not known; p(x|z) is normal, as views are
standardized and do not lie in 0..1; with several views, negatives are all views of other samples. Across processes
negatives are those of all of them.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from appssl.backbones.encoder_decoder import EncoderDecoder
from appssl.contracts import Batch, Context, Progress, Step
from appssl.errors import DataError, SettingsError
from appssl.ops.contrastive import EPSILON, log_sum_of_other_samples
from appssl.ops.distributed import world_size
from appssl.settings import Settings

_WEIGHTS = {"asymmetric": (0.5, 0.5), "decoder_marginal": (0.0, 1.0), "elbo": (-1.0, 1.0)}  # of log q(z|x), log P(z)


class Config(Settings):
    name: Literal["cmim"] = "cmim"
    temperature: float = Field(1.0, gt=0, description="tau; not known of the paper, 0.1 to 1 were tried")
    contrast_weight: float = Field(1.0, ge=0, description="w, of the contrastive factor; 1 in the paper, 0: plain MIM")
    positive: Literal["itself", "sample", "view"] = Field(
        "itself", description="positive of a code: itself, a second draw of q(z|x), or the code of the next view"
    )
    estimator: Literal["asymmetric", "decoder_marginal", "elbo"] = Field(
        "asymmetric", description="of the likelihood: L_MIM, or one that it is compared with"
    )
    decoder_std: float = Field(
        1.0, gt=0, description="s, standard deviation of p(x|z); 1 is that of standardized views"
    )


class CMIM(nn.Module):
    def __init__(self, config: Config, backbone: EncoderDecoder) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone

    def forward(self, batch: Batch) -> Step:
        """Loss of `views`, each (B, *input_shape).

        Raises:
            DataError: if there is one sample: there is no other code.
        """
        views = batch["views"]
        if len(views[0]) < 2:
            raise DataError("learners/cmim needs two or more samples in a batch, got 1. Raise fit.batch_size.")
        num_draws = 2 if self.config.positive == "sample" else 1
        shape = (num_draws, len(views) * len(views[0]), self.backbone.width)
        return self.step(views, torch.randn(shape, device=views[0].device))

    def step(self, views: list[Tensor], noise: Tensor) -> Step:
        """
        Args:
            noise: (1 or 2, V B, d), standard normal: what codes are drawn with, the second for their positives.
        """
        c, inputs = self.config, torch.cat(views)
        mean, log_variance = (moment.to(noise.dtype) for moment in self.backbone.encode(inputs))
        codes = mean + (log_variance / 2).exp() * noise  # (1 or 2, V B, d)
        decoded = self.backbone.decode(codes[0]).to(noise.dtype)
        zero, of_decoder = mean.new_zeros(()), mean.new_full((), 2 * math.log(c.decoder_std))
        of_input = log_normal(inputs, decoded, of_decoder)
        of_posterior, of_prior = log_normal(codes[0], mean, log_variance), log_normal(codes[0], zero, zero)
        apart = codes_apart(codes.unflatten(1, (len(views), -1)), c.positive, temperature=c.temperature)
        posterior_weight, prior_weight = _WEIGHTS[c.estimator]
        likelihood = -(of_input + posterior_weight * of_posterior + prior_weight * of_prior).mean()
        parts = {"loss_likelihood": likelihood, "loss_contrast": apart.mean(), "reconstruction": -of_input.mean()}
        loss = likelihood + c.contrast_weight * parts["loss_contrast"]
        return Step(loss, {name: part.detach() for name, part in parts.items()})

    def after_update(self, progress: Progress) -> None:
        pass

    def export(self) -> nn.Module:
        return self.backbone


def log_normal(values: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log density of independent normal values, (N, ...) -> (N,), nats; summed over all dimensions but the first."""
    of_each = (values - mean).square() / log_variance.exp() + log_variance + math.log(2 * math.pi)
    return -of_each.flatten(1).sum(dim=1) / 2


def codes_apart(codes: Tensor, positive: str, *, temperature: float) -> Tensor:
    """-log p_i of every code, (V, B); where a code is its own positive it is above 0 and at most log 2.

    Args:
        codes: (1 or 2, V, B, d) of V views, float32 or better, any scale; the second draw is for `positive: sample`.
            Gradients reach them as anchors, positives and negatives.
    """
    unit = functional.normalize(codes, dim=3, eps=EPSILON)
    num_views, batch = codes.shape[1:3]
    num_negatives = num_views * (world_size() * batch - 1)
    log_mean = log_sum_of_other_samples(unit[0], temperature=temperature) - math.log(num_negatives)
    if positive == "itself":
        return functional.softplus(log_mean - 1 / temperature)
    other = unit[1] if positive == "sample" else unit[0].roll(-1, dims=0)
    return functional.softplus(log_mean - (unit[0] * other).sum(dim=2) / temperature)


def build(config: Config, context: Context) -> CMIM:
    """
    Raises:
        SettingsError: if the backbone has no decoder, or the positive is another view and there is one.
    """
    backbone = context.backbone
    if not isinstance(backbone, EncoderDecoder):
        raise SettingsError(
            f"learners/cmim trains an encoder and a decoder; this backbone ({type(backbone).__name__}) has no decoder. "
            "Set backbone: {name: encoder_decoder, encoder: ...}, with this backbone as encoder."
        )
    if config.positive == "view" and context.num_views < 2:
        raise SettingsError("learner.positive: view needs two or more views: set num_views of the views to 2.")
    return CMIM(config, backbone)
