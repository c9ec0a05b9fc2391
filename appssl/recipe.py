"""Recipes: what is run. A recipe states only what differs from the defaults; this file knows the shape of all stages.

`read` reads and validates one recipe, reporting every problem at once. What the workflow makes of it is in `plan.py`.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from appssl import bundle
from appssl.errors import Problem, SettingsError
from appssl.registry import Method, load
from appssl.settings import Settings, nearest, parse_yaml, read_yaml, set_dotted, shown, validate

Domain = Literal["wsi", "wearable", "webnoisy", "recsys"]
STAGES = ("prepare", "pretrain", "pseudolabel", "finetune", "evaluate", "report")
_NAMED_BY_DATA = ("ranking", "device_subsets")  # evaluators whose settings or data name further metrics


class Make(Settings):
    """Synthetic data that is made first; for demos and tests."""

    size: Literal["tiny", "small", "large"] = Field("small", description="tiny for tests, small for demos")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the synthetic data")


class Prepare(Settings):
    """Block `data`: raw inputs to prepared data."""

    root: str = Field(
        ".",
        description="folder that all table paths are relative to, or the address of a store (s3://...); given on the "
        "command line",
    )
    make: Make | None = Field(None, description="make synthetic data first; root is then that folder")
    source: Method("sources") = Field(description="what reads the inputs")  # type: ignore[valid-type]
    shards: int = Field(1, ge=1, lt=2000, description="number of jobs the preparation is split into")
    budget: float = Field(0.005, ge=0, le=1, description="share of inputs that may fail before the stage fails")


class Fit(Settings):
    """How a learner is trained; the same for pretraining and fine-tuning."""

    epochs: float | None = Field(
        None, gt=0, description="passes over the data; give epochs or steps (default 10 epochs)"
    )
    steps: int | None = Field(None, ge=1, description="optimizer steps")
    batch_size: int = Field(128, ge=1, description="samples per optimizer step, over all devices")
    optimizer: Literal["adamw", "sgd", "lars", "rowwise_adagrad"] = Field(
        "adamw",
        description="update rule; lars is for large batches; rowwise_adagrad for large embedding tables, of which a "
        "step touches the rows of its batch (all else by adamw)",
    )
    lr: float = Field(1e-3, gt=0, description="base learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled for adamw, L2 for sgd and the matrices of lars")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd and lars")
    beta1: float = Field(0.9, ge=0, lt=1, description="of adamw: decay of the mean of gradients")
    beta2: float = Field(0.999, ge=0, lt=1, description="of adamw: decay of the mean of their squares")
    schedule: Method("schedules") = Field("cosine", description="learning rate over steps")  # type: ignore[valid-type]
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic of the forward pass")
    accumulate: int = Field(1, ge=1, description="micro-batches per optimizer step")
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm")
    compile: bool = Field(
        False, description="the backbone through torch.compile; slow first steps, and results differ by rounding"
    )
    backbone_batch: int | None = Field(
        None, ge=1, description="samples that pass the backbone at once; the loss sees all, for a third more time"
    )
    log_every: int = Field(10, ge=1, description="steps between metrics")
    checkpoint_steps: int = Field(200, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept")
    threads: int = Field(
        2, ge=1, le=256, description="CPU threads of the arithmetic; a setting because it changes rounding"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("epochs") is None and values.get("steps") is None:
            return {**values, "epochs": 10}
        return values

    @model_validator(mode="after")
    def _not_both(self) -> "Fit":
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        return self

    @model_validator(mode="after")
    def _whole_or_in_parts(self) -> "Fit":
        if self.compile and self.backbone_batch is not None:
            raise ValueError("compile takes the whole batch; leave out compile or backbone_batch")
        return self


class Probe(Settings):
    """Measuring the encoder while it is pretrained, on training samples: RankMe, and accuracy where labels are."""

    times: int = Field(3, ge=0, description="how often, evenly, the last time at the end; 0: never")
    rows: int = Field(2048, ge=2, description="training samples that are measured; all if there are fewer")
    alarm: float = Field(1.5, ge=1, description="effective rank of the features below which collapse is said")


Where = dict[str, tuple[str, ...]]


class Pretrain(Settings):
    """Block `pretrain`: an encoder without labels, from the beginning or where another training stopped."""

    backbone: Method("backbones") = Field(description="the encoder")  # type: ignore[valid-type]
    views: Method("views") = Field(description="what the encoder sees of a sample")  # type: ignore[valid-type]
    sampler: Method("samplers") = Field("uniform", description="which samples make a batch")  # type: ignore[valid-type]
    learner: Method("learners") = Field("joint_embedding", description="what a training step is")  # type: ignore[valid-type]
    fit: Fit = Field(Fit(), description="length, optimizer, schedule")
    probe: Probe = Field(Probe(), description="measuring the encoder on the way; never changes the training")
    where: Where = Field({}, description="columns of the samples, and which values training rows have; else all rows")
    onward: bool = Field(
        False,
        description="keep what another recipe's training can go on from: weights and moments before the annealing, "
        "where the schedule has one, else at the end",
    )
    after: str | None = Field(
        None, description="recipe with onward whose training this one goes on from, such as on new data"
    )
    moments: bool = Field(True, description="of after: go on with the optimizer's moments too")

    @model_validator(mode="after")
    def _rate_does_not_rise_again(self) -> "Pretrain":
        if self.after is not None and getattr(self.fit.schedule, "first_stage", False):
            raise ValueError("after another training the schedule infinite needs first_stage: false")
        return self


class From(Settings):
    """Re-use the encoder of another recipe of the same domain."""

    from_: str = Field(alias="from", description="name of the recipe whose encoder is used")


class Pseudolabel(Settings):
    """Block `pseudolabel`: labels cleaned or invented from the encoder's features, written to disk."""

    labeler: Method("labelers") = Field(description="what judges or makes labels")  # type: ignore[valid-type]
    label_fraction: float | None = Field(
        None, gt=0, le=1, description="share of the given labels that is seen; null: that of the finetune block"
    )
    threads: int = Field(2, ge=1, le=256, description="CPU threads of the arithmetic")


class Finetune(Settings):
    """Block `finetune`: a model for the task, from the encoder and labels."""

    finetuner: Method("finetuners") = Field("linear_probe", description="how the encoder is adapted")  # type: ignore[valid-type]
    label_fraction: float = Field(1.0, gt=0, le=1, description="share of the labelled training samples that is used")
    labels: Literal["given", "pseudo"] | None = Field(
        None, description="which labels are trained on; default pseudo after a pseudolabel block, else given"
    )
    backbone: Method("backbones") | None = Field(  # type: ignore[valid-type]
        None, description="encoder trained from scratch; only without a pretrain block"
    )
    views: Method("views") | None = Field(None, description="only without a pretrain block")  # type: ignore[valid-type]
    fit: Fit = Field(Fit(), description="length, optimizer, schedule")
    where: Where = Field({}, description="columns of the samples, and which values training rows have; else all rows")


class Evaluate(Settings):
    """Block `evaluate`: metrics on the test part, with intervals."""

    evaluators: tuple[Method("evaluators"), ...] = Field(  # type: ignore[valid-type]
        ("classification",), min_length=1, description="what is measured"
    )
    num_bootstrap: int = Field(1000, ge=100, description="resamples of groups for the intervals")
    compare: tuple[str, ...] = Field((), description="recipes of the domain to compare with, paired, same seed")
    adapt: bool = Field(
        False,
        description="first adapt a model that can be (sade) to the test inputs, without labels: it has then seen them",
    )
    threads: int = Field(2, ge=1, le=256, description="CPU threads of the arithmetic")


class Report(Settings):
    """Block `report`: the page a run ends in."""

    max_quarantine_rows: int = Field(50, ge=0, description="rows of the quarantine table shown")


class Need(Settings):
    """What a stage needs of a machine. Never re-runs anything."""

    cpus: int = Field(2, ge=1, description="CPU cores; those beyond threads, or beside a GPU, make batches")
    gpus: int = Field(0, ge=0, description="GPUs; with more than one, a training process for each")
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto", description="how training uses several GPUs: a copy of the model on each, or fsdp: a part of it on each"
    )
    mem_gb: float = Field(4, gt=0, description="memory, GiB")
    minutes: int = Field(60, ge=1, description="time limit, minutes")


class Needs(Settings):
    prepare: Need = Need()
    pretrain: Need = Need()
    pseudolabel: Need = Need()
    finetune: Need = Need()
    evaluate: Need = Need()


class Claim(Settings):
    """An entry of `claims`: what the recipe is said to do on the test part that another one does not."""

    says: str = Field(min_length=1, description="one sentence")
    metric: str = Field(min_length=1, description="what is measured of both, by its name in metrics.json")
    against: str = Field(min_length=1, description="the other recipe, one of evaluate.compare")
    by: float = Field(
        0.0,
        description="smallest difference that counts, in the metric's unit; negative: largest loss that does not",
    )
    more: bool = Field(True, description="whether this recipe is said to have the larger value")
    note: str = Field("", description="what was tried, for the table of claims")


class Recipe(Settings):
    """A complete recipe."""

    description: str = Field(min_length=1, description="one sentence")
    domain: Domain = Field(description="wsi, wearable, webnoisy or recsys")
    data: Prepare | str = Field(description="the data, or the name of a recipe of the domain whose data is used")
    pretrain: Pretrain | From | None = Field(None, description="an encoder without labels")
    pseudolabel: Pseudolabel | None = None
    finetune: Finetune | None = None
    evaluate: Evaluate | None = None
    report: Report = Report()
    needs: Needs = Needs()
    claims: tuple[Claim, ...] = Field((), description="what 'appssl bench run' measures; no input of any stage")
    quick: dict[str, Any] = Field({}, description="dotted overrides for --quick")

    def stages(self) -> list[str]:
        """Stages of this recipe in order."""
        trained = isinstance(self.pretrain, Pretrain)
        present = {
            "prepare": True,
            "pretrain": trained,
            "pseudolabel": self.pseudolabel is not None,
            "finetune": self.finetune is not None,
            "evaluate": self.evaluate is not None,
            "report": True,
        }
        return [stage for stage in STAGES if present[stage]]


BLOCKS: dict[str, type[Settings]] = {
    "data": Prepare,
    "pretrain": Pretrain,
    "pseudolabel": Pseudolabel,
    "finetune": Finetune,
    "evaluate": Evaluate,
    "report": Report,
}


def label(path: Path) -> str:
    """A recipe's file as messages name it."""
    return f"{path.parent.name}/{path.name}" if path.is_relative_to(bundle.pipelines()) else str(path)


def find(name: str, *, beside: Path | None = None, domain: str | None = None) -> Path:
    """File of a recipe: a path to a YAML file, or `domain/name` below ./pipelines or in the package.

    Args:
        beside: file of the recipe that names this one; recipes next to it are found too.
        domain: of the recipe that names this one; its recipes need no domain in their name.
    Raises:
        SettingsError: with the nearest name.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        for file in (path, *([beside.parent / path] if beside else [])):
            if file.is_file():
                return file
        raise SettingsError(
            [Problem(name, "", "there is no such recipe file. 'appssl new DOMAIN FILE --table T' makes one.")]
        )
    if beside is not None and (sibling := beside.parent / f"{name}.yaml").is_file():
        return sibling
    full = f"{domain}/{name}" if domain and "/" not in name else name
    for folder in (Path("pipelines"), bundle.pipelines()):
        if (folder / f"{full}.yaml").is_file():
            return folder / f"{full}.yaml"
    known = [*bundle.recipes(), *(f"{p.parent.name}/{p.stem}" for p in sorted(Path("pipelines").glob("*/*.yaml")))]
    hint = nearest(full, dict.fromkeys(known))
    raise SettingsError([Problem(name, "", f"there is no such recipe.{hint} 'appssl list recipes' lists them.")])


def read(
    name: str, *, overrides: Mapping[str, Any], quick: bool, beside: Path | None = None, domain: str | None = None
) -> tuple[str, Path, Recipe]:
    """Reads, overrides and validates a recipe; its `quick` block is checked also where it is not used.

    Args:
        overrides: dotted key -> value, as given by --set. quick: apply the recipe's `quick` block first.
        beside, domain: as for `find`.
    Returns:
        Name without domain, file, recipe.
    Raises:
        SettingsError: with all problems of the recipe.
    """
    path = find(name, beside=beside, domain=domain)
    values = read_yaml(path)
    whole, problems = _checked(values, {}, overrides, path)
    short, more = _checked(values, _quick(values), overrides, path)
    problems += [Problem(p.file, f"quick: {p.field}", p.message) for p in more if p not in problems]
    if problems or whole is None or short is None:
        raise SettingsError(problems)
    return path.stem, path, short if quick else whole


def _quick(values: Mapping[str, Any]) -> dict[str, Any]:
    given = values.get("quick")
    return given if isinstance(given, dict) else {}


def _overridden(
    values: Mapping[str, Any], quick: Mapping[str, Any], overrides: Mapping[str, Any], file: str
) -> tuple[dict[str, Any], list[Problem]]:
    """A copy of the recipe's values with the quick block and --set put in, and what could not be."""
    changed, problems = copy.deepcopy(dict(values)), []
    shared = values.get("data") if isinstance(values.get("data"), str) else None
    for option, pairs in (("", quick), ("--set", overrides)):
        for key, value in pairs.items():
            if shared and key.startswith("data."):
                if not option:
                    message = f"cannot be set: the data is that of {shared}, whose own quick block says how little."
                    problems.append(Problem(file, key, message))
                continue  # --set is applied to the recipe whose data this is
            try:
                set_dotted(changed, key, value)
            except SettingsError as error:
                problems.append(Problem(f"{file}, --set" if option else file, "", str(error)))
    return changed, problems


def _checked(
    given: Mapping[str, Any], quick: Mapping[str, Any], overrides: Mapping[str, Any], path: Path
) -> tuple[Recipe | None, list[Problem]]:
    """Block by block, so that a union never hides which block is meant and all problems are reported."""
    file = label(path)
    values, problems = _overridden(given, quick, overrides, file)
    checked: dict[str, Any] = dict(values)
    for block, model in BLOCKS.items():
        content = values.get(block)
        if content is None or (block == "data" and isinstance(content, str)):
            continue
        try:
            checked[block] = _block(block, model, content, file)
        except SettingsError as error:
            problems += error.problems
            checked[block] = "" if block == "data" else None
    if "claims" in values:
        wrong = _claims(values["claims"], given.get("evaluate"), file)
        checked["claims"] = [] if wrong else values["claims"]
        problems += wrong
    problems += _chain(values, file) + _names(values, path)
    recipe = None
    try:
        rest = {key: value for key, value in checked.items() if value is not None}
        recipe = validate(Recipe, rest, file=file, owner="recipe")
    except SettingsError as error:
        problems += error.problems
    return recipe, [_from_option(problem, overrides) for problem in problems]


def _block(block: str, model: type[Settings], given: Any, file: str) -> dict[str, Any]:
    owner = "prepare" if block == "data" else block
    if block == "pretrain" and isinstance(given, dict) and "from" in given:
        model = From
    if not isinstance(given, dict):
        other = " or name a recipe of the domain" if block == "data" else ""
        message = f"must hold `key: value` pairs{other}, is {shown(given)}. 'appssl show {owner}' lists them."
        raise SettingsError([Problem(file, block, message)])
    return validate(model, given, file=file, owner=owner, prefix=block).plain()


def _claims(claims: Any, evaluated: Any, file: str) -> list[Problem]:
    """What is wrong with claims. `evaluated` is the block of the file: the quick form may compare with less."""
    if not isinstance(claims, list):
        return [Problem(file, "claims", f"must be a list, is {shown(claims)}. 'appssl show claims' says of what.")]
    block = evaluated if isinstance(evaluated, dict) else {}
    compared, metrics = block.get("compare"), _metrics(block)
    compared = [name for name in compared if isinstance(name, str)] if isinstance(compared, list) else []
    problems = []
    for i, given in enumerate(claims):
        field = f"claims.{i}"
        if not isinstance(given, dict):
            message = f"must hold `key: value` pairs, is {shown(given)}. 'appssl show claims' lists them."
            problems.append(Problem(file, field, message))
            continue
        try:
            claim = validate(Claim, given, file=file, owner="claims", prefix=field)
        except SettingsError as error:
            problems += error.problems
            continue
        if claim.against not in compared:
            message = f"is {claim.against!r}, which this recipe is not compared with."
            hint = f"{nearest(claim.against, compared)} Recipes are compared where evaluate.compare names them."
            problems.append(Problem(file, f"{field}.against", f"{message}{hint}"))
        if metrics is not None and claim.metric not in metrics:
            message = (
                f"is {claim.metric!r}, which no evaluator of this recipe measures.{nearest(claim.metric, metrics)}"
            )
            problems.append(Problem(file, f"{field}.metric", message))
    return problems


def _metrics(evaluated: Mapping[str, Any]) -> list[str] | None:
    """Metrics of an evaluate block; None if they are not known before the data are, or the block is wrong."""
    names, given = [], evaluated.get("evaluators", Evaluate.model_fields["evaluators"].default)
    for evaluator in given if isinstance(given, list | tuple) else [None]:
        name = evaluator.get("name") if isinstance(evaluator, dict) else evaluator
        try:
            described = getattr(load("evaluators", name), "DESCRIPTIONS", None) if isinstance(name, str) else None
        except SettingsError:
            described = None
        if described is None or name in _NAMED_BY_DATA:
            return None
        names += described
    return names


def _from_option(problem: Problem, overrides: Mapping[str, Any]) -> Problem:
    """A setting that was given with --set is not to be looked for in the file."""
    given = any(problem.field == key or problem.field.startswith(f"{key}.") for key in overrides)
    return Problem(f"{problem.file}, --set", problem.field, problem.message) if given else problem


def _chain(values: Mapping[str, Any], file: str) -> list[Problem]:
    """Blocks that do not fit together."""
    pretrain, pseudolabel, tuned = (values.get(block) for block in ("pretrain", "pseudolabel", "finetune"))
    found = []
    if pseudolabel is not None and pretrain is None:
        found.append(("pseudolabel", "needs a pretrain block: labels are judged on the encoder's features."))
    if values.get("evaluate") is not None and tuned is None and pretrain is None:
        found.append(("evaluate", "needs a pretrain or finetune block: there is no model to measure."))
    if isinstance(tuned, dict):
        for name in ("backbone", "views"):
            if pretrain is not None and tuned.get(name) is not None:
                found.append((f"finetune.{name}", "must not be given: the encoder comes from the pretrain block."))
            if pretrain is None and tuned.get(name) is None:
                found.append((f"finetune.{name}", "is missing; it is needed where there is no pretrain block."))
        if tuned.get("labels") == "pseudo" and pseudolabel is None:
            found.append(("finetune.labels", "is pseudo, but there is no pseudolabel block."))
    return [Problem(file, field, message) for field, message in found]


def _names(values: Mapping[str, Any], path: Path) -> list[Problem]:
    """Recipes that are named, but do not exist."""
    blocks = {block: values[block] for block in ("pretrain", "evaluate") if isinstance(values.get(block), dict)}
    compared = blocks.get("evaluate", {}).get("compare")
    named = [("data", values.get("data")), ("pretrain.from", blocks.get("pretrain", {}).get("from"))]
    named += [("evaluate.compare", name) for name in (compared if isinstance(compared, list) else [])]
    problems = []
    domain = values.get("domain") if isinstance(values.get("domain"), str) else None
    for field, name in named:
        if isinstance(name, str):
            try:
                find(name, beside=path, domain=domain)
            except SettingsError as error:
                problems.append(Problem(label(path), field, f"names {name}: {error.problems[0].message}"))
    return problems


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`--set a.b=1e-3` to {"a.b": 0.001}; values are YAML."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key or any(not part for part in key.split(".")):
            raise SettingsError(f"--set {pair}: write it as key=value, such as --set pretrain.fit.lr=1e-3.")
        overrides[key] = parse_yaml(text, f"--set {key}")
    return overrides
