"""What the parts of appssl promise each other. Read this file first.

A *source* turns raw inputs into prepared data and says, for every input, what became of it. *Views* turn a sample into
tensors. A *learner* owns the networks and computes one training step; an *objective* is a loss. A *labeler* cleans or
invents labels that are written to disk. A *finetuner* is a learner trained with labels. An *evaluator* measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from appssl.addresses import masked
from appssl.errors import DataError

if TYPE_CHECKING:  # heavy imports; the command line reads this file
    import numpy as np
    import polars as pl
    import torch
    from torch import Tensor, nn

    from appssl.artifact import Artifact, ArtifactWriter

# A batch is a dict with some of these keys and no others:
#   index   (B,) int64      row of the sample in the prepared table
#   views   list of tensors, each (B, ...): augmented views of the same samples, row i of all is one sample;
#           until it is on the training's device, it may be `Renderable`
#   input   (B, ...) tensor: one deterministic or lightly augmented view, what a classifier sees
#   target  (B,) int64      class number, or item number in retrieval; -1 where unknown
#   mask    (B, ...) bool   True where present (devices, features)
#   weight  (B,) float32    weight of the sample in the loss
#   domain  (B,) int64      data set or site number
#   group   (B,) int64      patient, subject, user: what must not cross a split
Batch = dict[str, Any]
BATCH_KEYS = ("index", "views", "input", "target", "mask", "weight", "domain", "group")

SPLITS = ("train", "val", "test")  # a sample without split is "train"

# What a labeler may say of a sample.
LABEL_KINDS = ("clean", "id_noise", "ood_noise", "hard_clean", "pseudo", "novel")
LABEL_COLUMNS = ("id", "label", "confidence", "weight", "kind", "reason")


@dataclass(frozen=True)
class Loss:
    """A scalar to minimize, and its named parts, detached."""

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What a learner returns for a batch: the scalar loss with gradient, and detached scalar metrics."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Where training stands after an update. `step` counts optimizer steps from 1 to `num_steps`; epochs from 0."""

    step: int
    num_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        """The epoch that this step was of."""
        return (self.step - 1) // self.steps_per_epoch

    @property
    def next_epoch(self) -> int:
        return self.step // self.steps_per_epoch


@dataclass(frozen=True)
class Meta:
    """What is known of prepared data as a whole; `meta.json` of a data artifact.

    Attributes:
        source: name of the source that prepared it, and opens it.
        domain: wsi, wearable, webnoisy or recsys.
        task: `classification` (a label per sample) or `ranking` (items for users).
        classes: class names in the order of class numbers; empty without labels.
        group: what `group` means here: patient, subject, user, query ...
        facts: domain facts with units in their names (`spacing_um`, `sampling_hz`, `channels`, `devices`,
            `vocab_sizes` ...), JSON types only. What a view or backbone needs to know. `bag`: the column of `samples`
            that names bags, where labels are those of bags; `domain`: the column that names domains (styles, sites), of
            which `unseen_domains` have no training sample.
    """

    source: str
    domain: str
    task: Literal["classification", "ranking"]
    classes: tuple[str, ...] = ()
    group: str = "group"
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Account:
    """What became of every input of one kind (slides, tiles, recordings, windows, images, events).

    total = kept + sum(left_out) + sum(failed). `left_out` are explained decisions (blank tile, duplicate), `failed`
    are inputs that could not be read.
    """

    total: int = 0
    kept: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)

    def keep(self, count: int = 1) -> None:
        self.total += count
        self.kept += count

    def leave_out(self, reason: str, count: int = 1) -> None:
        self.total += count
        self.left_out[reason] = self.left_out.get(reason, 0) + count

    def fail(self, reason: str, count: int = 1) -> None:
        self.total += count
        self.failed[reason] = self.failed.get(reason, 0) + count

    def withdraw(self, reason: str, count: int = 1) -> None:
        """Leaves out what was counted as kept."""
        self.total -= count
        self.kept -= count
        self.leave_out(reason, count)

    @property
    def num_failed(self) -> int:
        return sum(self.failed.values())

    def check(self, what: str) -> None:
        """Raises DataError if the numbers do not sum."""
        found = self.kept + sum(self.left_out.values()) + self.num_failed
        if found != self.total:
            raise DataError(
                f"account of {what} does not sum: {self.total} came in, {found} are explained. Report this."
            )

    def add(self, other: Account) -> None:
        self.total += other.total
        self.kept += other.kept
        for mine, theirs in ((self.left_out, other.left_out), (self.failed, other.failed)):
            for reason, count in theirs.items():
                mine[reason] = mine.get(reason, 0) + count

    def plain(self) -> dict[str, Any]:
        return {
            "total": self.total,
            "kept": self.kept,
            "left_out": dict(sorted(self.left_out.items())),
            "failed": dict(sorted(self.failed.items())),
        }


@dataclass(frozen=True)
class Quarantined:
    """One input that was left out or could not be read: a row of `quarantine.parquet`.

    Attributes:
        what: kind of thing (`slide`, `tile`, `recording`, `window`, `image`, `event`). item: its id.
        where: file, row or position. outcome: `left_out` or `failed`. reason: short code, as counted in the account.
        detail: the values and the threshold that would have kept it, or the error. version: of the decoder, if any.
    """

    what: str
    item: str
    where: str
    outcome: Literal["left_out", "failed"]
    reason: str
    detail: str = ""
    version: str = ""

    def plain(self) -> dict[str, str]:
        return {name: masked(value) if value else value for name, value in asdict(self).items()}


class PreparedData(Protocol):
    """Prepared data, opened for reading. Reading is thread- and process-safe and does not change with their number.

    Attributes:
        samples: one row per thing that is encoded (tile, window, image, item), sorted, columns at least
            index (int64, 0..N-1), id (str, unique), group (str), split (train/val/test), label (str or null),
            true_label (str or null: known truth, for evaluation only).
    """

    meta: Meta
    samples: pl.DataFrame

    def read(self, row: int) -> Any:
        """Raw sample: (H, W, 3) uint8 image, (devices, channels, time) float32 signal, (tokens,) int64 item."""
        ...

    # Optional: read_many(rows (B,) int64) -> (B, ...), what `read` gives of each row, where that is faster at once.


class Source(Protocol):
    """Built by `sources/<name>.py: build(config)`. Prepares in shards, merges, opens."""

    def inputs(self, root: Path) -> list[Path]:
        """Input tables (not every slide or image), for the workflow to watch. Cheap; missing files are not an error."""
        ...

    def prepare(self, root: Path, shard: int, num_shards: int, out: ArtifactWriter) -> None:
        """Writes shard `shard` of `num_shards` (unit i goes to shard i mod num_shards), its accounts and quarantine.

        Raises:
            DataError: if the tables themselves are wrong; all problems found, in one message.
        """
        ...

    def merge(self, root: Path, shards: Sequence[Artifact], out: ArtifactWriter) -> None:
        """Joins all shards into the data artifact: samples.parquet, meta.json, account.json, quarantine.parquet."""
        ...

    def open(self, artifact: Artifact) -> PreparedData: ...


class Renderable(Protocol):
    """A batch of views that are no numbers yet, a dataclass of tensors: `ops/images/level_views.py`,
    `ops/images/drawn_views.py` and `drawn_signals.py`."""

    def pin_memory(self) -> Renderable: ...

    def render(self) -> list[Tensor]:
        """Views of a batch, each (B, ...), on the device where the tensors are."""
        ...


class Views(Protocol):
    """Built by `views/<name>.py: build(config, meta)`."""

    num_views: int
    input_shape: tuple[int, ...]  # of one view, without the batch dimension

    def views(self, sample: Any, rng: np.random.Generator) -> list[Tensor]:
        """`num_views` augmented views of a raw sample; float32, or int64 for tokens.

        The first is of `input_shape`; others may be of other sizes, such as small crops.
        """
        ...

    def augment(self, sample: Any, rng: np.random.Generator) -> Tensor:
        """One lightly augmented view, for training with labels."""
        ...

    def plain(self, sample: Any) -> Tensor:
        """The deterministic view used for features and evaluation."""
        ...

    # Optional: render, "loader" or "device". With "device", batches of views are `drawn(samples, rngs) -> Renderable`:
    # what `views` gives of each sample with its generator, rendered after the batch has come to the training's device.
    # levels(sample, rng): what `views` gives, as (side, side, 3) uint8 arrays; `standardize` makes numbers of them.


class Examples(Protocol):
    """What is trained on: rows of prepared data as batches. `facts` reach the learner through `Context.facts`.

    Random numbers come from `ops.random.rng_for(seed, epoch, index)`, so a batch is a pure function of its arguments.
    Examples for a learner that tracks also have `plain(indices) -> Batch`: {index, input, target}, deterministic views.
    `is_drawn_by_batch = True` marks those that draw once for all samples of a batch.
    """

    facts: Mapping[str, Any]

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, *, seed: int, epoch: int) -> Batch:
        """Batch of examples (B,) int64 numbered 0..len-1, tensors on the CPU; views may be `Renderable`."""
        ...


class Labelled(Examples, Protocol):
    """Labelled rows of prepared data as examples, with what they are made of.

    Attributes:
        rows: (N,) int64. targets: (N,) int64 class numbers. weights: (N,) float32.
    """

    data: PreparedData
    views: Views
    rows: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    def plain(self, indices: np.ndarray) -> Batch: ...


class Sampler(Protocol):
    """Built by `samplers/<name>.py: build(config, data, views) -> Examples`: what a batch is made of."""


class Backbone(Protocol):
    """Built by `backbones/<name>.py: build(config, input_shape, meta)`; an nn.Module (B, *input_shape) -> (B, F).

    It may offer `stage_features(inputs) -> list of (B, F_l)`: the pooled maps of its stages, the first stage first; the
    last is what the network itself gives.
    """

    num_features: int


@dataclass(frozen=True)
class Context:
    """What a learner may know when it is built: nothing about devices, files or optimizers."""

    meta: Meta
    backbone: nn.Module
    input_shape: tuple[int, ...]
    num_samples: int  # rows that are trained on, for methods with per-sample state
    num_views: int = 1
    # What the examples hand to `build`; in pretraining also `num_rows` of the prepared table, which `index` counts.
    facts: Mapping[str, Any] = field(default_factory=dict)


class Objective(Protocol):
    """Built by `objectives/<name>.py: build(config)`; an nn.Module. State in buffers only."""

    def __call__(self, *embeddings: Tensor) -> Loss: ...


class Learner(Protocol):
    """Built by `learners/<name>.py: build(config, context)`; an nn.Module that owns all networks and the objective.

    A finetuner (`finetuners/<name>.py`) is a learner too: it reads `input` and `target`, exports the classifier, and
    may offer `examples(config, data, views, seed) -> Examples` in its file when it is not trained on labelled samples,
    or `labelled_examples(config, labelled) -> Examples` when it sees more than one view of these.
    Where its config has `features: once`, `backbone` stays as it is and the examples have `rows` (N,) int64, all that
    they read: the features of these are computed before, the examples read them as samples, and the learner is given a
    `backbone` that hands them on.
    The classifier has `backbone`, `classify(features (B, F)) -> (B, K)` and, for data with bags,
    `bag_probabilities(features (L, F)) -> (K,)`.
    """

    # Optional: is_mean_over_samples, true where the loss is a mean over samples that do not see each other. When memory
    # ran out, such a learner goes on with smaller micro-batches by itself.

    def forward(self, batch: Batch) -> Step: ...

    def after_update(self, progress: Progress) -> None:
        """Called once after each optimizer step: EMA, queues, method schedules."""
        ...

    def track(self, batches: Iterable[Batch], epoch: int) -> None:
        """Optional. Called after the last step of each whole epoch, after `after_update` and before its checkpoint.

        In evaluation mode, without gradient, in the learner's precision and on its device: all examples once, in order,
        in plain batches {index, input, target}. Every process sees all of them. What is kept goes into buffers.
        """
        ...

    def findings(self) -> pl.DataFrame | None:
        """Optional, of finetuners. What was decided of the training samples, a row for each; None if nothing was.

        Columns index, label (class number, -1 for none), confidence, weight, kind, reason, as in LABEL_COLUMNS, p_clean
        (score in [0, 1] that the label it was given is right), and p_ood (the same that it shows none of the classes)
        where there is one.
        """
        ...

    def export(self) -> nn.Module:
        """The part to keep: the encoder (B, *input_shape) -> (B, F), or for a finetuner the classifier -> (B, K)."""
        ...


class Labeler(Protocol):
    """Built by `labelers/<name>.py: build(config, seed=seed)`.

    The table has columns id, group, label (str or null), split and `embedding` (fixed-size list of float32); only
    training rows are in it.
    """

    def fit(self, table: pl.DataFrame) -> None: ...

    def label(self, table: pl.DataFrame) -> pl.DataFrame:
        """Rows (id, label, confidence in [0, 1], weight >= 0, kind, reason), one per input row, in the same order."""
        ...

    def ledger(self) -> list[dict[str, Any]]:
        """One entry per round: round, threshold, number taken, model digest, what was measured; may be []."""
        ...


@dataclass(frozen=True)
class Metric:
    """A measured value with its 95 % bootstrap interval over groups; low and high are None where undefined."""

    value: float
    low: float | None = None
    high: float | None = None
    num_groups: int | None = None


class Evaluator(Protocol):
    """Built by `evaluators/<name>.py: build(config)`. DESCRIPTIONS: {metric: (low, high, +1 if larger is better)}.

    A module may have `paired(first, second, *, num_bootstrap, seed)`, which compares two `Scored` of the same samples.
    If that needs more than probabilities, PER_SAMPLE names it, also by patterns such as `class_after_*`, and what is
    built has `per_sample(scored)`, which gives it: it is kept in `predictions.parquet`, and comes back in
    `Scored.per_sample`.
    """

    def evaluate(self, result: Any, *, num_bootstrap: int, seed: int) -> dict[str, Metric]: ...


@dataclass(frozen=True)
class Scored:
    """What evaluators of classification see. Row i of all is one sample of the split under test.

    Attributes:
        ids: (N,) str. groups: (N,) str, what is resampled in the bootstrap. target: (N,) int64 true classes.
        probabilities: (N, K) float64 rows that sum to 1, or None without a classifier.
        features: (N, F) float32 encoder features, or None. train_features, train_target: those of labelled training
        rows, or None. classes: names. columns: other columns of `samples` for slices. facts: `Meta.facts` of the data.
        rescored: gives the classifier's probabilities for the same rows after a function changed their raw samples, or
        None without a classifier. stages: of continual pretraining in order, this one last; () otherwise. per_sample:
        what evaluators found of each row, by their PER_SAMPLE, (N,) each: int64 class numbers, or float64.
    """

    ids: np.ndarray
    groups: np.ndarray
    target: np.ndarray
    classes: tuple[str, ...]
    probabilities: np.ndarray | None = None
    features: np.ndarray | None = None
    train_features: np.ndarray | None = None
    train_target: np.ndarray | None = None
    columns: pl.DataFrame | None = None
    bags: BagScores | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    rescored: Callable[[Callable[[Any], Any]], np.ndarray] | None = None
    stages: tuple[TrainedStage, ...] = ()
    per_sample: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainedStage:
    """A stage of continual pretraining. `own`: (N,) bool, which test rows are of its part of the data.

    `probabilities`: (N, K) of the model that stood on the encoder after it. `losses`: of that encoder's training, for
    training samples of each stage up to this one; None where unknown.
    """

    recipe: str
    own: np.ndarray
    probabilities: np.ndarray
    losses: tuple[float | None, ...]


@dataclass(frozen=True)
class BagScores:
    """Scores of the bags under test: names and groups (G,) str, target (G,) int64, probabilities (G, K) float64."""

    names: np.ndarray
    groups: np.ndarray
    target: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Ranked:
    """What evaluators of ranking see; `data` is the recsys PreparedData, `scores(users)` gives (U, items) float32.

    `scores` takes user numbers (U,) int64 and returns scores of the full catalogue on CPU, without masking.
    """

    data: Any
    scores: Any
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
