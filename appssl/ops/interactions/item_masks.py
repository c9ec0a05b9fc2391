"""Which features of items are hidden in two views of them, and the tokens that are left.

Two stages: masking hides whole features, then dropout drops single tokens of features with several values. What is
hidden becomes 0, missing. Masks of the first view, the second hides the features that the first shows:

    correlated: a feature at random, and the n others that share most information with it, n = floor(k / 2)
    random:     a share of the features
    none:       nothing, in both views

Source: Yao et al., Self-supervised learning for large-scale item recommendations, CIKM 2021, arXiv 2007.12865, section
3.2. Deviations: n is at most k - 2, so that each view shows a feature; equally informative features go by their number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Masking = Literal["correlated", "random", "none"]
_EQUAL = 9  # decimals (nats) to which information must agree to be equal, so that rounding decides nothing


def nearest_features(information: np.ndarray) -> np.ndarray:
    """For each feature the others in falling order of mutual information (k, k), as (k, k - 1) int64."""
    rounded = np.round(information, _EQUAL)
    np.fill_diagonal(rounded, np.inf)
    return np.argsort(-rounded, axis=1, kind="stable")[:, 1:]


@dataclass(frozen=True)
class ItemMasks:
    """
    Attributes:
        fields: the k features, with `start` and `length` in columns of the tokens. width: columns, L; one that belongs
            to no field is never hidden.
        share: of the features that `random` hides. complementary: its second view hides the others; False: a draw of
            its own. dropout: probability of a token of a field of several columns. nearest: as `nearest_features`,
            needed by `correlated`.
    """

    fields: Sequence[Mapping[str, Any]]
    width: int
    masking: Masking = "random"
    share: float = 0.5
    complementary: bool = True
    dropout: float = 0.0
    nearest: np.ndarray | None = None

    def views(self, tokens: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Two views of the shape of tokens (..., L) int64; the same features are hidden in all rows."""
        return [self.hide(tokens, hidden, rng) for hidden in self.draw(rng)]

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Which features the first and the second view hide, (k,) bool each."""
        if self.masking == "none":
            return self.nothing, self.nothing
        if self.masking == "correlated":
            first = self._correlated(rng)
            return first, ~first
        first = self._random(rng)
        return first, ~first if self.complementary else self._random(rng)

    def hide(self, tokens: np.ndarray, hidden: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Tokens (..., L) int64 without those of hidden features (k,) bool and without those that dropout takes."""
        several = np.array([field["length"] > 1 for field in self.fields])
        dropped = self.columns(several) & (rng.random(tokens.shape) < self.dropout)
        return np.where(self.columns(hidden) | dropped, 0, tokens)

    def columns(self, of_fields: np.ndarray) -> np.ndarray:
        """Values (..., k) bool of features for the columns of their tokens, (..., L); False for other columns."""
        spread = np.zeros((*of_fields.shape[:-1], self.width), dtype=bool)
        for number, field in enumerate(self.fields):
            spread[..., field["start"] : field["start"] + field["length"]] = of_fields[..., number, None]
        return spread

    @property
    def nothing(self) -> np.ndarray:
        return np.zeros(len(self.fields), dtype=bool)

    def _correlated(self, rng: np.random.Generator) -> np.ndarray:
        assert self.nearest is not None
        number = len(self.fields)
        seed = int(rng.integers(number))
        hidden = self.nothing
        hidden[seed] = True
        hidden[self.nearest[seed, : max(0, min(number // 2, number - 2))]] = True
        return hidden

    def _random(self, rng: np.random.Generator) -> np.ndarray:
        """A fixed share of the features, at least one and not all where there are two or more."""
        number = len(self.fields)
        count = round(self.share * number)
        count = min(max(count, 1), number - 1) if number > 1 and 0 < self.share < 1 else count
        hidden = self.nothing
        hidden[rng.permutation(number)[:count]] = True
        return hidden
