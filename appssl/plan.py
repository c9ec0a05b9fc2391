"""From recipes to a plan: every stage of every run with its complete settings, its inputs and what it needs.

The plan is what the workflow reads; it holds JSON types only. Folders are relative to the results folder:
`data/<key>` for prepared data (keyed by its own settings, so recipes over the same data prepare it once) and
`<domain>/<recipe>/s<seed>/<stage>` for everything else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appssl import registry
from appssl.errors import Problem, SettingsError
from appssl.recipe import (
    Evaluate,
    Finetune,
    From,
    Need,
    Prepare,
    Pretrain,
    Pseudolabel,
    Recipe,
    Report,
    read,
)
from appssl.settings import Settings, digest_of, read_yaml, to_json, validate

MODELS: dict[str, type[Settings]] = {
    "prepare": Prepare,
    "pretrain": Pretrain,
    "pseudolabel": Pseudolabel,
    "finetune": Finetune,
    "evaluate": Evaluate,
    "report": Report,
}


@dataclass(frozen=True)
class StageConfig:
    """A stage's `config.yaml`: which stage of which run, and its complete settings."""

    stage: str
    domain: str
    recipe: str
    seed: int
    settings: Any

    @property
    def digest(self) -> str:
        """Of what determines the result: the data root is a place, not a setting, and does not enter."""
        return settings_digest(self.stage, self.seed, self.settings.plain())


def settings_digest(stage: str, seed: int, settings: Mapping[str, Any]) -> str:
    values = {key: value for key, value in settings.items() if not (stage == "prepare" and key in ("root", "shards"))}
    return digest_of({"stage": stage, "seed": seed, "settings": values})


def read_config(path: Path, stage: str) -> StageConfig:
    """Reads and validates a stage's `config.yaml`.

    Raises:
        SettingsError: if it is of another stage, or not valid for this version.
    """
    values = read_yaml(path)
    if values.get("stage") != stage:
        raise SettingsError(
            [Problem(str(path), "stage", f"is {values.get('stage')!r}, but this is the stage {stage}.")]
        )
    settings = validate(MODELS[stage], values.get("settings") or {}, file=str(path), owner=stage, prefix="settings")
    known = {key: values.get(key) for key in ("stage", "domain", "recipe", "seed")}
    return StageConfig(settings=settings, **known)  # type: ignore[arg-type]


@dataclass
class Planner:
    """Collects runs, following the names by which recipes refer to each other."""

    overrides: Mapping[str, Any]
    quick: bool
    results: Path
    data: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, seed: int, *, beside: Path | None = None, named: bool = True) -> tuple[str, str]:
        """Adds a run and everything it refers to; returns (domain, recipe).

        Args:
            named: asked for by the user, so that --set applies to all of it; recipes that are only referred to take
                part of --set only where it concerns the data they share.
        """
        recipe_name, path, recipe = self._read(name, beside, named=named)
        runs = self.runs.setdefault(recipe.domain, {}).setdefault(recipe_name, {})
        if f"s{seed}" in runs:
            return recipe.domain, recipe_name
        run: dict[str, Any] = {"description": recipe.description, "file": str(path), "stages": {}}
        runs[f"s{seed}"] = run
        key = self._data_key(recipe, path)
        run["data"] = key
        folder = f"{recipe.domain}/{recipe_name}/s{seed}"
        inputs: dict[str, dict[str, str]] = {"data": {"data": f"data/{key}"}}
        encoder = self._encoder(recipe, folder, seed, path)
        labels = {"labels": f"{folder}/pseudolabel"} if recipe.pseudolabel else {}
        model = {"model": f"{folder}/finetune"} if recipe.finetune else {}
        uses_pseudo = recipe.finetune is not None and recipe.finetune.labels != "given"
        inputs |= {
            "pretrain": {},
            "pseudolabel": encoder,
            "finetune": {**encoder, **(labels if uses_pseudo else {})},
            "evaluate": {**encoder, **model, **self._compared(recipe, seed, path)},
        }
        for stage in recipe.stages()[1:-1]:
            run["stages"][stage] = {
                "settings": self._settings(recipe, stage),
                "inputs": {"data": f"data/{key}", **inputs[stage]},
                "needs": getattr(recipe.needs, stage).plain(),
            }
        finished = {stage: f"{folder}/{stage}" for stage in run["stages"]}
        run["stages"]["report"] = {
            "settings": recipe.report.plain(),
            "inputs": {"data": f"data/{key}", **finished},
            "needs": Need(cpus=1, mem_gb=2, minutes=30).plain(),
        }
        return recipe.domain, recipe_name

    def _read(self, name: str, beside: Path | None, *, named: bool) -> tuple[str, Path, Recipe]:
        overrides = self.overrides if named else {k: v for k, v in self.overrides.items() if k.startswith("data.")}
        return read(name, overrides=overrides, quick=self.quick, beside=beside)

    def _settings(self, recipe: Recipe, stage: str) -> dict[str, Any]:
        block = getattr(recipe, stage)
        if stage == "finetune" and block.labels is None:
            block = block.model_copy(update={"labels": "pseudo" if recipe.pseudolabel else "given"})
        return block.plain()

    def _data_key(self, recipe: Recipe, path: Path) -> str:
        owner = recipe
        if isinstance(recipe.data, str):
            _, _, owner = self._read(recipe.data, path, named=False)
            if isinstance(owner.data, str):
                raise SettingsError(
                    [
                        Problem(
                            str(path), "data", f"names {recipe.data}, whose data is itself a name; name {owner.data}."
                        )
                    ]
                )
            if owner.domain != recipe.domain:
                raise SettingsError(
                    [Problem(str(path), "data", f"names {recipe.data}, a recipe of domain {owner.domain}.")]
                )
        assert isinstance(owner.data, Prepare)
        settings = owner.data.plain()
        if settings["make"] is not None:
            made = f"synthetic/{recipe.domain}-{settings['make']['size']}-{settings['make']['seed']}"
            settings["root"] = str(self.results / made)
        elif not Path(settings["root"]).is_dir():
            hint = "set it with --set data.root=FOLDER"
            raise SettingsError(
                [Problem(str(path), "data.root", f"is {settings['root']!r}, which is no folder; {hint}.")]
            )
        key = f"{recipe.domain}-{digest_of(settings)[:12]}"
        if key not in self.data:
            source = registry.build("sources", owner.data.source)
            tables = [] if settings["make"] else [str(p) for p in source.inputs(Path(settings["root"]))]
            self._tables_exist(tables, path)
            self.data[key] = {
                "domain": recipe.domain,
                "description": owner.description,
                "settings": settings,
                "tables": tables,
                "synthetic": made if settings["make"] else None,
                "needs": owner.needs.prepare.plain(),
            }
        return key

    def _tables_exist(self, tables: list[str], path: Path) -> None:
        missing = [
            Problem(str(path), "data.source", f"needs {t}, which does not exist. Is data.root right?")
            for t in tables
            if not Path(t).exists()
        ]
        if missing:
            raise SettingsError(missing)

    def _encoder(self, recipe: Recipe, folder: str, seed: int, path: Path) -> dict[str, str]:
        if recipe.pretrain is None:
            return {}
        if isinstance(recipe.pretrain, From):
            domain, other = self.add(recipe.pretrain.from_, seed, beside=path, named=False)
            if "pretrain" not in self.runs[domain][other][f"s{seed}"]["stages"] or domain != recipe.domain:
                raise SettingsError(
                    [
                        Problem(
                            str(path),
                            "pretrain.from",
                            f"names {recipe.pretrain.from_}, which trains no encoder for {recipe.domain}.",
                        )
                    ]
                )
            return {"encoder": f"{domain}/{other}/s{seed}/pretrain"}
        return {"encoder": f"{folder}/pretrain"}

    def _compared(self, recipe: Recipe, seed: int, path: Path) -> dict[str, str]:
        inputs = {}
        for name in recipe.evaluate.compare if recipe.evaluate else ():
            domain, other = self.add(name, seed, beside=path, named=False)
            if domain != recipe.domain or "evaluate" not in self.runs[domain][other][f"s{seed}"]["stages"]:
                raise SettingsError(
                    [
                        Problem(
                            str(path), "evaluate.compare", f"names {name}, which evaluates nothing in {recipe.domain}."
                        )
                    ]
                )
            inputs[f"compare:{other}"] = f"{domain}/{other}/s{seed}/evaluate"
        return inputs


def make_plan(
    names: Sequence[str], *, seeds: Sequence[int], overrides: Mapping[str, Any], results: Path, quick: bool
) -> dict[str, Any]:
    """Plan of the named recipes for all seeds, with everything they refer to.

    Raises:
        SettingsError: with all problems of all recipes.
    """
    root = results / "quick" if quick else results
    planner = Planner(overrides, quick, root)
    problems: list[Problem] = []
    targets = []
    for name in dict.fromkeys(names):
        try:
            for seed in dict.fromkeys(seeds):
                domain, recipe = planner.add(name, seed)
                targets.append([domain, recipe, seed])
        except SettingsError as error:
            problems += error.problems or [Problem(name, "", str(error))]
    if problems:
        raise SettingsError(list(dict.fromkeys(problems)))
    return {"results": str(root), "data": planner.data, "runs": planner.runs, "targets": targets}


def config_of(
    plan: Mapping[str, Any], *, stage: str, key: str | None = None, run: tuple[str, str, int] | None = None
) -> str:
    """The JSON that `appssl resolve` writes as a stage's `config.yaml`."""
    if key is not None:
        data = plan["data"][key]
        values = {"stage": "prepare", "domain": data["domain"], "recipe": key, "seed": 0}
        return to_json({**values, "settings": data["settings"]})
    assert run is not None
    domain, recipe, seed = run
    planned = plan["runs"][domain][recipe][f"s{seed}"]["stages"][stage]
    return to_json({"stage": stage, "domain": domain, "recipe": recipe, "seed": seed, "settings": planned["settings"]})


def complete(plan: dict[str, Any]) -> dict[str, Any]:
    """Adds `configs`: folder -> the JSON text of its stage's `config.yaml`."""
    configs = {f"data/{key}": config_of(plan, stage="prepare", key=key) for key in plan["data"]}
    for domain, recipes in plan["runs"].items():
        for recipe, seeds in recipes.items():
            for seed, run in seeds.items():
                for stage in run["stages"]:
                    text = config_of(plan, stage=stage, run=(domain, recipe, int(seed[1:])))
                    configs[f"{domain}/{recipe}/{seed}/{stage}"] = text
    return {**plan, "configs": configs}
