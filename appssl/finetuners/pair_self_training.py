"""Self-training on interaction logs: retrieval, trained again with the pairs that it is most sure of.

The first `teacher_epochs` are `finetuners/retrieval` on the observed pairs. Then in each round, for every known user:

    t    = the `quantile` of the scores s of observed pairs that were held back from training
    P    = the at most `per_user` unobserved items of highest score with s(u, v) > t, over all users
    w_uv = share of the held-back pairs with a score of at most s(u, v)
    L    = L_retrieval(observed) + weight * 1/M sum_(u,v) w_uv l(u, v)

l is the loss of retrieval for `pseudo_batch` = M pairs drawn from P, among their own items and corrected for their own
frequencies in P. P is made anew in every round: what the model no longer believes is dropped. After each round the
recall of new tail items in the validation part is measured. When it falls, the rounds end: the model of the round
before is kept, and the epochs that are left change nothing (their loss is 0). The test part is never looked at.

The ledger is `labels.parquet` beside the model: a row for every acceptance, of rounds that were not kept too. The
measured recall of a round is `train/tail_recall` of the steps after it, and `recall` in the ledger.
Source: the scheme is Xie et al., Self-training with Noisy Student improves ImageNet classification, CVPR 2020, arXiv
1911.04252, algorithm 1, with the threshold of a quantile of our own. Deviations: the student goes on from its teacher's
weights and has no noise of its own but what retrieval has; pairs replace labels; confidence is a score, not a
probability. Items without training events are not accepted, because the catalogue is that of training.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field, model_validator
from scipy import sparse
from torch import Tensor, nn

from appssl.contracts import Batch, Context, PreparedData, Progress, Step, Views
from appssl.errors import DataError, SettingsError
from appssl.finetuners import retrieval
from appssl.ops.interactions.topk import Scores, best_items, seen_matrix
from appssl.ops.random import rng_for

_HELD_BACK = 2**62  # the stream that chooses the pairs that are held back


class Config(retrieval.Config):
    name: Literal["pair_self_training"] = "pair_self_training"  # type: ignore[assignment]
    teacher_epochs: int = Field(8, ge=1, description="epochs on observed pairs alone, before the first round")
    rounds: int = Field(3, ge=1, description="most rounds with accepted pairs")
    round_epochs: int = Field(
        8, ge=1, description="epochs of a round; fit.epochs is teacher_epochs + rounds * round_epochs"
    )
    holdout: float = Field(0.05, gt=0, lt=1, description="share of the training events that are held back")
    quantile: float = Field(0.9, ge=0, lt=1, description="quantile of the scores of held-back pairs: the threshold")
    per_user: int = Field(10, ge=1, le=1000, description="most accepted items of a user in a round")
    weight: float = Field(0.5, ge=0, description="weight of the accepted pairs in the loss; 0: more epochs, no pairs")
    pseudo_batch: int = Field(128, ge=1, description="accepted pairs drawn for a step, on each device")
    k: int = Field(20, ge=1, le=1000, description="length of the list whose tail recall ends the rounds")

    @model_validator(mode="after")
    def _one_temperature(self) -> "Config":
        if self.user_temperatures is not None:
            raise ValueError("user_temperatures cannot be used with accepted pairs; leave it out, or use retrieval")
        return self


class HoldingBack(retrieval.Interactions):
    """Training events but those held back, and the pairs that decide.

    Facts beside those of retrieval: `held_back` (2, H) int64, observed pairs that are not trained on; `wanted` (2, W)
    int64, the new tail items of users in the validation part.
    """

    def __init__(self, config: Config, data: Any, seed: int) -> None:
        """
        Raises:
            DataError: if no pair can be held back, or the validation part has no new tail item.
        """
        self._seed = seed
        super().__init__(config, data)
        self.facts = {**self.facts, "held_back": torch.from_numpy(self._held), "wanted": _wanted(data)}

    def events(self, config: retrieval.Config, data: Any) -> tuple[np.ndarray, np.ndarray]:
        assert isinstance(config, Config)
        users, items = super().events(config, data)
        held = held_back(users, items, config.holdout, rng_for(self._seed, 0, _HELD_BACK))
        if not held.any():
            raise DataError(
                f"finetuner pair_self_training: none of {len(users)} training events can be held back, and the "
                "threshold is made of their scores. Set finetune.finetuner.holdout higher, or give more data."
            )
        self._held = np.unique(np.stack([users[held], items[held]]), axis=1).astype(np.int64)
        return users[~held], items[~held]

    def plain(self, indices: np.ndarray) -> Batch:
        return self.batch(indices, seed=0, epoch=0)


def held_back(users: np.ndarray, items: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """(N,) bool: about a share of the events (N,), of pairs whose user, item, but not the pair, stay in training."""
    drawn = rng.random(len(users)) < share
    codes = users.astype(np.int64) * (int(items.max(initial=0)) + 1) + items
    stays = [np.isin(of, of[~drawn]) for of in (users, items, codes)]
    return drawn & stays[0] & stays[1] & ~stays[2]


def _wanted(data: Any) -> Tensor:
    """Pairs (2, W) int64 of the validation part with a tail item that is new to the user, each once."""
    seen, (users, items, _) = data.interactions("train"), data.interactions("val")
    of_tail = np.asarray(data.slices)[items] == "tail"
    pairs = np.unique(np.stack([users[of_tail], items[of_tail]]), axis=1).astype(np.int64)
    known = np.isin(pairs[0] * data.num_items + pairs[1], seen[0].astype(np.int64) * data.num_items + seen[1])
    if known.all():
        raise DataError(
            f"finetuner pair_self_training: the validation part ({len(users)} events) has no new tail item, and their "
            "recall decides when to stop. Make data.source.val_share larger, or head_share and middle_share smaller."
        )
    return torch.from_numpy(pairs[:, ~known])


def examples(config: Config, data: PreparedData, views: Views, seed: int) -> HoldingBack:
    return HoldingBack(config, data, seed)


@dataclass(frozen=True)
class _Now:
    """What a step needs to know of the round it is in; read from the buffers once in a round."""

    has_ended: bool
    users: Tensor  # (P,) of the accepted pairs
    items: Tensor
    weight: Tensor
    log_share: Tensor  # (num_items,) of the items in P
    metrics: dict[str, Tensor]


class PairSelfTraining(retrieval.Retrieval):
    held_back: Tensor
    wanted: Tensor
    done: Tensor
    has_ended: Tensor
    recalls: Tensor
    thresholds: Tensor
    accepted: Tensor
    scores: Tensor
    confidences: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.config = config
        for name in ("held_back", "wanted"):
            self.register_buffer(name, torch.as_tensor(context.facts[name]), persistent=False)
        size = (config.rounds, len(self.known_users), config.per_user)
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))  # trainings whose recall is known
        self.register_buffer("has_ended", torch.zeros((), dtype=torch.int64))
        self.register_buffer("recalls", torch.full((config.rounds + 1,), torch.nan))  # of the teacher, then of rounds
        self.register_buffer("thresholds", torch.full((config.rounds,), torch.nan))
        self.register_buffer("accepted", torch.full(size, -1, dtype=torch.int64))  # items, -1 for none
        self.register_buffer("scores", torch.zeros(size))
        self.register_buffer("confidences", torch.zeros(size))  # w
        self.kept = nn.ParameterList(nn.Parameter(p.detach().clone(), requires_grad=False) for p in self._trained())
        self._now: _Now | None = None
        self.register_load_state_dict_post_hook(_forget)

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("kept.")]

    def forward(self, batch: Batch) -> Step:
        now = self._now = self._now or self._read()
        if now.has_ended:
            return Step(torch.stack([(0 * p).sum() for p in self._trained()]).sum(), now.metrics)
        observed = super().forward(batch)
        if not len(now.users) or not self.config.weight:
            return Step(observed.loss, {**observed.metrics, **now.metrics})
        loss = self._loss_of_accepted(now)
        parts = {"loss_observed": observed.loss.detach(), "loss_accepted": loss.detach()}
        return Step(observed.loss + self.config.weight * loss, {**observed.metrics, **now.metrics, **parts})

    def _loss_of_accepted(self, now: _Now) -> Tensor:
        drawn = torch.randint(len(now.users), (self.config.pseudo_batch,), device=now.users.device)
        users, items = now.users[drawn], now.items[drawn]
        logits = self.users(users, items) @ self.items(items).T / self.temperature
        log_share = now.log_share[items] if self.use_logq else None
        return retrieval.in_batch_softmax(logits, items, log_share, now.weight[drawn])

    def _read(self) -> _Now:
        """The one place of a round where the host waits for the buffers."""
        done, has_ended = int(self.done), bool(self.has_ended)
        pairs = self.accepted[done - 1] if 0 < done <= self.config.rounds and not has_ended else self.accepted[:0, 0]
        users, places = (pairs >= 0).nonzero(as_tuple=True)
        items = pairs[users, places]
        weight = self.confidences[done - 1][users, places] if len(users) else self.scores.new_empty(0)
        counts = torch.bincount(items, minlength=self.num_items)
        metrics = {"round": self.done.float(), "accepted_pairs": torch.full_like(self.recalls[0], len(users))}
        if done:
            metrics["tail_recall"] = self.recalls[done - 1].clone()
        return _Now(has_ended, users, items, weight, (counts / max(1, len(items))).clamp(min=1e-12).log(), metrics)

    def after_update(self, progress: Progress) -> None:
        config = self.config
        epochs = config.teacher_epochs + config.rounds * config.round_epochs
        if progress.step == 1 and progress.num_steps != epochs * progress.steps_per_epoch:
            raise SettingsError(
                f"finetune.fit.epochs must be {epochs}: teacher_epochs {config.teacher_epochs} + "
                f"rounds {config.rounds} * round_epochs {config.round_epochs}. These are {progress.num_steps} steps of "
                f"{progress.steps_per_epoch} an epoch."
            )
        if self._now is not None and self._now.has_ended:
            self._restore()  # weight decay and momentum have moved what had no gradient

    def track(self, batches: Iterable[Batch], epoch: int) -> None:
        number, rest = divmod(epoch + 1 - self.config.teacher_epochs, self.config.round_epochs)
        if number < 0 or rest or bool(self.has_ended):
            return
        model = self.export()
        seen = self._seen(batches)

        def scores(users: np.ndarray) -> Tensor:
            found: Tensor = model.score_users(torch.as_tensor(users, device=self.accepted.device))  # type: ignore[operator]
            return found

        wanted = seen_matrix(*self.wanted.cpu().numpy(), *seen.shape)
        self.recalls[number] = recall(scores, wanted, seen, self.config.k)
        self.done.fill_(number + 1)
        self._now = None
        if number and self.recalls[number] < self.recalls[number - 1]:
            self.has_ended.fill_(1)
            self._restore()
            return
        for kept, parameter in zip(self.kept, self._trained(), strict=True):
            kept.copy_(parameter)
        if number < self.config.rounds:
            self._accept(model, scores, seen, number)

    def _seen(self, batches: Iterable[Batch]) -> sparse.csr_matrix:
        """All observed pairs of training, those held back too."""
        found = [torch.stack([batch["input"], batch["target"]]) for batch in batches]
        users, items = torch.cat([*found, self.held_back], dim=1).cpu().numpy()
        return seen_matrix(users, items, len(self.known_users), self.num_items)

    def _accept(self, model: Any, scores: Scores, seen: sparse.csr_matrix, number: int) -> None:
        users, items = self.held_back
        held = (model.user_vectors[users] * model.item_vectors[items]).sum(1).cpu().numpy()
        threshold = np.quantile(held, self.config.quantile).astype(np.float32)
        is_cold = torch.from_numpy(np.asarray(seen.getnnz(axis=0) == 0)).to(self.accepted.device)
        known = np.flatnonzero(seen.getnnz(axis=1))
        self.thresholds[number] = float(threshold)
        for block, best, found in best_items(
            lambda users: torch.as_tensor(scores(users)).masked_fill(is_cold, -torch.inf),
            known,
            seen,
            self.config.per_user,
        ):
            chosen = found > threshold
            rows = torch.from_numpy(block).to(self.accepted.device)
            share = np.searchsorted(np.sort(held), found, side="right") / len(held)
            for buffer, values in (
                (self.accepted, np.where(chosen, best, -1)),
                (self.scores, np.where(chosen, found, 0)),
                (self.confidences, np.where(chosen, share, 0)),
            ):
                buffer[number, rows] = torch.from_numpy(values).to(buffer)

    def _restore(self) -> None:
        with torch.no_grad():
            for kept, parameter in zip(self.kept, self._trained(), strict=True):
                parameter.copy_(kept)

    def findings(self) -> pl.DataFrame | None:
        """The ledger: a row for every pair that was accepted in a round; None if there is none.

        Beside the usual columns round (from 1), user, item (numbers), score, threshold, recall_before and recall (of
        tail items in the validation part, before and after the round), and kept: whether the model that is kept was
        trained on it.
        """
        accepted, scores, confidences = (b.cpu().numpy() for b in (self.accepted, self.scores, self.confidences))
        rounds, users, places = np.nonzero(accepted >= 0)
        if not len(rounds):
            return None
        recalls, thresholds = self.recalls.cpu().numpy(), self.thresholds.cpu().numpy()
        last = int(self.done) - 1 - int(self.has_ended)  # the round that is kept
        items, confidence = accepted[rounds, users, places], confidences[rounds, users, places]
        rows = pl.DataFrame(
            {
                "index": items,
                "label": np.full(len(items), -1),
                "confidence": confidence.astype(np.float64),
                "weight": self.config.weight * confidence.astype(np.float64),
                "kind": ["pseudo"] * len(items),
                "reason": np.array([self._reason(n) for n in range(self.config.rounds)])[rounds],
                "round": rounds + 1,
                "user": users,
                "item": items,
                "score": scores[rounds, users, places],
                "threshold": thresholds[rounds],
                "recall_before": recalls[rounds],
                "recall": recalls[rounds + 1],
                "kept": rounds + 1 <= last,
            }
        )
        return rows.sort("index", "round", "user")

    def _reason(self, number: int) -> str:
        """Of round `number`, from 0, as JSON."""
        figures = {
            "threshold": self.thresholds[number],
            "tail_recall_before": self.recalls[number],
            "tail_recall_after": self.recalls[number + 1],
        }
        known = {name: round(float(value), 4) for name, value in figures.items() if not value.isnan()}
        return json.dumps({"why": "score above the threshold", "round": number + 1, **known})


def recall(scores: Scores, wanted: sparse.csr_matrix, seen: sparse.csr_matrix, k: int) -> float:
    """Mean over users with wanted items: their share among the k best unseen items, in [0, 1].

    Args:
        wanted: (num_users, num_items), nothing of it seen. seen: same shape.
    """
    counts = wanted.getnnz(axis=1)
    total = 0.0
    for block, items, _ in best_items(scores, np.flatnonzero(counts), seen, k):
        rows = np.repeat(block, items.shape[1])[items.ravel() >= 0]
        found = np.asarray(wanted[rows, items[items >= 0]]).ravel() > 0
        total += float((np.bincount(rows[found], minlength=len(counts)) / np.maximum(counts, 1)).sum())
    return total / int((counts > 0).sum())


def _forget(learner: nn.Module, keys: Any) -> None:
    """After a state was loaded."""
    assert isinstance(learner, PairSelfTraining)
    learner._now = None


def build(config: Config, context: Context) -> PairSelfTraining:
    return PairSelfTraining(config, context)
