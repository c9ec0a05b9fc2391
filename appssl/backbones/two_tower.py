"""The item tower of a two-tower model: embeddings of feature tokens, averaged per field, and a small network on top.

Source: Yi et al., Sampling-bias-corrected neural modeling, RecSys 2019, section 4 (towers of embeddings and ReLU
layers). Deviations: one embedding table for all fields; the user tower belongs to `finetuners/retrieval`.
"""

from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from appssl.contracts import Meta
from appssl.errors import DataError
from appssl.settings import Settings


class Config(Settings):
    name: Literal["two_tower"] = "two_tower"
    token_dim: int = Field(32, ge=1, description="width of a token's embedding")
    hidden: tuple[int, ...] = Field((128,), description="widths of hidden layers")
    out: int = Field(64, ge=1, description="width of the item's features")


class ItemTower(nn.Module):
    """(B, L) int64 tokens, 0 for missing -> (B, F) float32. A field without a token contributes zeros."""

    def __init__(self, config: Config, fields: list[dict[str, Any]], vocab_size: int) -> None:
        super().__init__()
        self.num_features = config.out
        self.spans = [(field["start"], field["start"] + field["length"]) for field in fields]
        self.tokens = nn.Embedding(vocab_size + 1, config.token_dim, padding_idx=0)
        nn.init.normal_(self.tokens.weight, std=0.1)
        with torch.no_grad():
            self.tokens.weight[0] = 0
        sizes = (len(fields) * config.token_dim, *config.hidden)
        layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], config.out))

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.tokens(tokens)
        if self.spans == [(n, n + 1) for n in range(tokens.shape[1])]:
            return self.layers(embedded.flatten(1))  # nothing to average; what is missing is zero
        present = (tokens != 0).unsqueeze(-1).to(embedded.dtype)
        means = [embedded[:, a:b].sum(1) / present[:, a:b].sum(1).clamp(min=1) for a, b in self.spans]
        return self.layers(torch.cat(means, dim=1))


def build(config: Config, input_shape: tuple[int, ...], meta: Meta) -> ItemTower:
    """
    Raises:
        DataError: if the data are not items with feature tokens.
    """
    if len(input_shape) != 1 or not meta.facts.get("fields"):
        raise DataError(f"backbones/two_tower needs item tokens (L,); these views have shape {input_shape}.")
    return ItemTower(config, meta.facts["fields"], int(meta.facts["vocab_size"]))
