"""Matrix factorizations of the training log by the package `implicit` (MIT; extra `recsys`): what others use.

ALS minimizes the squared error of all pairs, training events with weight `alpha`, all other pairs with 1; BPR wants an
event's item above an item drawn at random, by stochastic gradient steps. The score is the product of both vectors.
One thread: with more, BPR is another one every time.
Source: Hu et al., Collaborative filtering for implicit feedback datasets, ICDM 2008; Rendle et al., BPR, UAI 2009.
"""

from typing import Any, Literal

import numpy as np
from pydantic import Field
from threadpoolctl import threadpool_limits

from appssl.errors import SettingsError
from appssl.ops.interactions.topk import Scores, seen_matrix
from appssl.settings import Settings


class Factors(Settings):
    """How the models are fitted; what is not here is as the package has it."""

    factors: int = Field(64, ge=1, description="width of user and item vectors")
    als_iterations: int = Field(15, ge=1, description="sweeps of ALS over users and items")
    als_regularization: float = Field(0.01, ge=0, description="weight of the squared norms in ALS")
    als_alpha: float = Field(10.0, gt=0, description="weight of an event in ALS")
    bpr_iterations: int = Field(100, ge=1, description="passes of BPR over the events")
    bpr_lr: float = Field(0.01, gt=0, description="learning rate of BPR")
    bpr_regularization: float = Field(0.01, ge=0, description="weight of the squared norms in BPR")


def factor_scores(model: Literal["als", "bpr"], data: Any, config: Factors, *, seed: int) -> Scores:
    """Scores of the full catalogue; a user without training events gets the training events of each item.

    Args:
        data: recsys PreparedData.
    Raises:
        SettingsError: if the package is not installed.
    """
    users, items, _ = data.interactions("train")
    seen = seen_matrix(users, items, data.num_users, data.num_items)
    seen.data[:] = 1
    with threadpool_limits(1, "blas"):  # as the package asks for
        fitted = _built(model, config, seed)
        fitted.fit(seen, show_progress=False)
    of_users, of_items = (np.asarray(f, dtype=np.float32) for f in (fitted.user_factors, fitted.item_factors))
    popular = data.popularity.astype(np.float32)
    is_known = np.diff(seen.indptr) > 0

    def scores(numbers: np.ndarray) -> np.ndarray:
        return np.where(is_known[numbers][:, None], of_users[numbers] @ of_items.T, popular)

    return scores


def _built(model: Literal["als", "bpr"], config: Factors, seed: int) -> Any:
    try:
        from implicit.cpu.als import AlternatingLeastSquares
        from implicit.cpu.bpr import BayesianPersonalizedRanking
    except ImportError as error:
        raise SettingsError(
            f"baseline {model} needs the package implicit: pip install 'appssl[recsys]', or leave it out of "
            f"evaluate.evaluators: {error}."
        ) from None
    common = {"factors": config.factors, "num_threads": 1, "random_state": seed}
    if model == "als":
        return AlternatingLeastSquares(
            iterations=config.als_iterations,
            regularization=config.als_regularization,
            alpha=config.als_alpha,
            **common,
        )
    return BayesianPersonalizedRanking(
        iterations=config.bpr_iterations,
        learning_rate=config.bpr_lr,
        regularization=config.bpr_regularization,
        **common,
    )
