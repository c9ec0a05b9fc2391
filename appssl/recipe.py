"""Recipes: what is run. A recipe states only what differs from the defaults; this file knows the shape of all stages.

`load` reads and validates one recipe, reporting every problem at once. What the workflow makes of it is in `plan.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from appssl import bundle
from appssl.errors import Problem, SettingsError
from appssl.registry import Method
from appssl.settings import Settings, nearest, parse_yaml, read_yaml, set_dotted, validate

Domain = Literal["wsi", "wearable", "webnoisy", "recsys"]
STAGES = ("prepare", "pretrain", "pseudolabel", "finetune", "evaluate", "report")


class Make(Settings):
    """Synthetic data that is made first; for demos and tests."""

    size: Literal["tiny", "small", "large"] = Field("small", description="tiny for tests, small for demos")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the synthetic data")


class Prepare(Settings):
    """Block `data`: raw inputs to prepared data."""

    root: str = Field(".", description="folder that all table paths are relative to; given on the command line")
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
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="update rule")
    lr: float = Field(1e-3, gt=0, description="base learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled for adamw, L2 for sgd")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    schedule: Method("schedules") = Field("cosine", description="learning rate over steps")  # type: ignore[valid-type]
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic of the forward pass")
    accumulate: int = Field(1, ge=1, description="micro-batches per optimizer step")
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm")
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


class Pretrain(Settings):
    """Block `pretrain`: an encoder without labels."""

    backbone: Method("backbones") = Field(description="the encoder")  # type: ignore[valid-type]
    views: Method("views") = Field(description="what the encoder sees of a sample")  # type: ignore[valid-type]
    learner: Method("learners") = Field("joint_embedding", description="what a training step is")  # type: ignore[valid-type]
    fit: Fit = Field(Fit(), description="length, optimizer, schedule")


class From(Settings):
    """Re-use the encoder of another recipe of the same domain."""

    from_: str = Field(alias="from", description="name of the recipe whose encoder is used")


class Pseudolabel(Settings):
    """Block `pseudolabel`: labels cleaned or invented from the encoder's features, written to disk."""

    labeler: Method("labelers") = Field(description="what judges or makes labels")  # type: ignore[valid-type]
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


class Evaluate(Settings):
    """Block `evaluate`: metrics on the test part, with intervals."""

    evaluators: tuple[Method("evaluators"), ...] = Field(  # type: ignore[valid-type]
        ("classification",), min_length=1, description="what is measured"
    )
    num_bootstrap: int = Field(1000, ge=100, description="resamples of groups for the intervals")
    compare: tuple[str, ...] = Field((), description="recipes of the domain to compare with, paired, same seed")
    threads: int = Field(2, ge=1, le=256, description="CPU threads of the arithmetic")


class Report(Settings):
    """Block `report`: the page a run ends in."""

    max_quarantine_rows: int = Field(50, ge=0, description="rows of the quarantine table shown")


class Need(Settings):
    """What a stage needs of a machine. Never re-runs anything."""

    cpus: int = Field(2, ge=1, description="CPU cores")
    gpus: int = Field(0, ge=0, description="GPUs")
    mem_gb: float = Field(4, gt=0, description="memory, GiB")
    minutes: int = Field(60, ge=1, description="time limit, minutes")


class Needs(Settings):
    prepare: Need = Need()
    pretrain: Need = Need()
    pseudolabel: Need = Need()
    finetune: Need = Need()
    evaluate: Need = Need()


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
    quick: dict[str, Any] = Field({}, description="dotted overrides for --quick")

    @model_validator(mode="after")
    def _chain_fits(self) -> "Recipe":
        if self.pseudolabel and not self.pretrain:
            raise ValueError("pseudolabel needs a pretrain block: labels are judged on the encoder's features")
        if self.evaluate and not self.finetune and not self.pretrain:
            raise ValueError("evaluate needs a pretrain or finetune block: there is no model to measure")
        if self.finetune:
            given = [name for name in ("backbone", "views") if getattr(self.finetune, name) is not None]
            if self.pretrain and given:
                raise ValueError(f"finetune.{given[0]} is given, but the encoder comes from the pretrain block")
            if not self.pretrain and len(given) < 2:
                raise ValueError("finetune.backbone and finetune.views must be given when there is no pretrain block")
            if self.finetune.labels == "pseudo" and not self.pseudolabel:
                raise ValueError("finetune.labels is pseudo, but there is no pseudolabel block")
        return self

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


def find(name: str, *, beside: Path | None = None) -> Path:
    """File of a recipe: a path to a YAML file, or `domain/name` below ./pipelines or in the package.

    Args:
        beside: file of the recipe that names this one; recipes next to it are found too.
    Raises:
        SettingsError: with the nearest name.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise SettingsError([Problem(name, "", "no such recipe file. 'appssl new DOMAIN FILE --table T' makes one.")])
    if beside is not None and (sibling := beside.parent / f"{path.name}.yaml").is_file():
        return sibling
    for folder in (Path("pipelines"), bundle.pipelines()):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise SettingsError(f"{name!r} is not a recipe.{nearest(name, bundle.recipes())} 'appssl list recipes' lists them.")


def read(
    name: str, *, overrides: Mapping[str, Any], quick: bool, beside: Path | None = None
) -> tuple[str, Path, Recipe]:
    """Reads, overrides and validates a recipe.

    Args:
        overrides: dotted key -> value, as given by --set. quick: apply the recipe's `quick` block first.
    Returns:
        Name without domain, file, recipe.
    Raises:
        SettingsError: with all problems of the recipe.
    """
    path = find(name, beside=beside)
    values = read_yaml(path)
    file = str(path) if path.is_relative_to(".") or not path.is_absolute() else f"{path.parent.name}/{path.name}"
    if quick:
        short = values.get("quick") or {}
        if not isinstance(short, dict):
            raise SettingsError(
                [Problem(file, "quick", "must hold dotted overrides such as `pretrain.fit.epochs: 1`.")]
            )
        for key, value in short.items():
            set_dotted(values, key, value)
    for key, value in overrides.items():
        if isinstance(values.get("data"), str) and key.startswith("data."):
            continue  # set in the recipe whose data this is
        set_dotted(values, key, value)
    return path.stem, path, _validate(values, file)


def _validate(values: dict[str, Any], file: str) -> Recipe:
    """Block by block, so that a union never hides which block is meant and all problems are reported."""
    problems: list[Problem] = []
    checked: dict[str, Any] = dict(values)
    for block, model in BLOCKS.items():
        given = values.get(block)
        if block == "data" and isinstance(given, str):
            continue
        if block == "pretrain" and isinstance(given, dict) and "from" in given:
            model = From
        if isinstance(given, dict):
            try:
                checked[block] = validate(
                    model, given, file=file, owner=block if block != "data" else "prepare", prefix=block
                ).plain()
            except SettingsError as error:
                problems += error.problems
                checked.pop(block)
    if problems:
        problems += _other_problems(checked, file)
        raise SettingsError(problems)
    return validate(Recipe, checked, file=file, owner="recipe")


def _other_problems(values: dict[str, Any], file: str) -> list[Problem]:
    """Unknown or wrong top-level keys beside blocks that are wrong themselves."""
    try:
        validate(Recipe, values, file=file, owner="recipe")
    except SettingsError as error:
        return [p for p in error.problems if p.field.split(".")[0] not in BLOCKS and p.field]
    return []


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`--set a.b=1e-3` to {"a.b": 0.001}; values are YAML."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key or any(not part for part in key.split(".")):
            raise SettingsError(f"--set {pair}: write it as key=value, such as --set pretrain.fit.lr=1e-3.")
        overrides[key] = parse_yaml(text, f"--set {key}")
    return overrides
