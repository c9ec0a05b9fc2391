"""From recipes to a plan: every stage of every run with its complete settings, its inputs and what it needs.

The plan is what the workflow reads; it holds JSON types only. Folders are relative to the results folder:
`data/<key>` for prepared data (keyed by its own settings, so recipes over the same data prepare it once) and
`<domain>/<recipe>/s<seed>/<stage>` for everything else.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appssl import registry
from appssl.errors import DataError, Problem, SettingsError
from appssl.ops.split import fold_of_seed
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
    find,
    label,
    read,
)
from appssl.remote.copies import copy_folder, mirror_for_run
from appssl.remote.notes import FILES, is_whole
from appssl.remote.store import is_address
from appssl.settings import Settings, digest_of, read_yaml, to_json, validate
from appssl.sweep import Point, Sweep

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
    known = {key: values.get(key) for key in ("stage", "domain", "recipe", "seed")}
    wrong = [Problem(str(path), key, f"must be text, is {known[key]!r}.") for key in ("domain", "recipe")
             if not isinstance(known[key], str)]  # fmt: skip
    if not isinstance(known["seed"], int):
        wrong.append(Problem(str(path), "seed", f"must be a whole number, is {known['seed']!r}."))
    given = values.get("settings") or {}
    if not isinstance(given, dict):
        wrong.append(Problem(str(path), "settings", f"must be a group of settings, is {given!r:.100}."))
    if wrong:
        raise SettingsError(wrong)
    settings = validate(MODELS[stage], given, file=str(path), owner=stage, prefix="settings")
    return StageConfig(settings=settings, **known)  # type: ignore[arg-type]


@dataclass
class Planner:
    """Collects runs, following the names by which recipes refer to each other, and everything wrong with them.

    A recipe at a point of a sweep is a run `<recipe>@<point>`. Points that differ only after pretraining share an
    encoder, with the recipe itself where its settings are theirs. A point is compared with the other recipes that the
    user named, at the same point.

    Attributes:
        asked: files of the recipes that the user named: --set applies to all of them. Recipes that are only referred
            to take part of --set only where it concerns the data they share.
        copies: results folder that holds the copies of remote data. remotes: addresses that were met as data.root.
        problems: of settings. uncopied: remote data without a complete copy. missing: input tables that are not there.
    """

    overrides: Mapping[str, Any]
    quick: bool
    results: Path
    copies: Path
    asked: set[Path] = field(default_factory=set)
    remotes: set[str] = field(default_factory=set)
    data: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict)
    encoders: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    uncopied: list[Problem] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)

    def add(
        self,
        name: str,
        seed: int,
        *,
        beside: Path | None = None,
        domain: str | None = None,
        point: Point | None = None,
    ) -> tuple[str, str] | None:
        """Adds a run and everything it refers to; returns (domain, recipe), None if the recipe itself is wrong."""
        found = self._read(name, beside, domain, point)
        if found is None:
            return None
        recipe_name, path, recipe = found
        if point is not None:
            recipe_name, recipe = f"{recipe_name}@{point.name}", self._at(recipe, path)
        runs = self.runs.setdefault(recipe.domain, {}).setdefault(recipe_name, {})
        if f"s{seed}" in runs:
            self._same_file(runs[f"s{seed}"]["file"], path)
            return recipe.domain, recipe_name
        run: dict[str, Any] = {"name": recipe_name, "description": recipe.description, "file": str(path)}
        run["stages"] = {stage: {} for stage in recipe.stages()[1:]}  # known to the recipes that this one refers to
        runs[f"s{seed}"] = run
        key = self._data_key(recipe, seed, path, point) or "?"
        run["data"] = key
        folder = f"{recipe.domain}/{recipe_name}/s{seed}"
        inputs: dict[str, dict[str, str]] = {"data": {"data": f"data/{key}"}}
        encoder = self._encoder(recipe, folder, seed, path, point)
        start, past = self._start(recipe, seed, path, point)
        if isinstance(recipe.pretrain, Pretrain):
            own = digest_of({"data": key, "seed": seed, "settings": recipe.pretrain.plain(), **start})
            first = self.encoders.setdefault(own, folder)
            if point is not None and first != folder:
                encoder = {"encoder": f"{first}/pretrain"}
                del run["stages"]["pretrain"]
            run |= {"encoder": encoder["encoder"], "onward": recipe.pretrain.onward, "past": past}
        labels = {"labels": f"{folder}/pseudolabel"} if recipe.pseudolabel else {}
        model = {"model": f"{folder}/finetune"} if recipe.finetune else {}
        uses_pseudo = recipe.finetune is not None and recipe.finetune.labels != "given"
        compared = self._compared(recipe, seed, path, point)
        self._refuse_unknown_past(recipe, run, compared, path)
        inputs |= {
            "pretrain": start,
            "pseudolabel": encoder,
            "finetune": {**encoder, **(labels if uses_pseudo else {})},
            "evaluate": {**encoder, **model, **compared},
        }
        for stage in [*run["stages"]][:-1]:
            run["stages"][stage] = {
                "settings": self._settings(recipe, stage, point),
                "inputs": {"data": f"data/{key}", **inputs[stage]},
                "needs": getattr(recipe.needs, stage).plain(),
            }
        finished = {stage: f"{folder}/{stage}" for stage in run["stages"] if stage != "report"}
        run["stages"]["report"] = {
            "settings": recipe.report.plain(),
            "inputs": {"data": f"data/{key}", **finished},
            "needs": Need(cpus=1, mem_gb=2, minutes=30).plain(),
        }
        return recipe.domain, recipe_name

    def _read(
        self, name: str, beside: Path | None, domain: str | None, point: Point | None
    ) -> tuple[str, Path, Recipe] | None:
        given = {**self.overrides, **(point.overrides if point else {})}
        try:
            asked = find(name, beside=beside, domain=domain).resolve() in self.asked
            overrides = given if asked else {k: v for k, v in given.items() if k.startswith("data.")}
            return read(name, overrides=overrides, quick=self.quick, beside=beside, domain=domain)
        except SettingsError as error:
            self.problems += error.problems or [Problem(name, "", str(error))]
            return None

    def _at(self, recipe: Recipe, path: Path) -> Recipe:
        """The recipe as a point of a sweep: compared only with recipes that have this point too."""
        if recipe.evaluate is None:
            return recipe
        known = {name: find(name, beside=path, domain=recipe.domain).resolve() for name in recipe.evaluate.compare}
        kept = tuple(name for name, file in known.items() if file in self.asked)
        return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"compare": kept})})

    def _wrong(self, path: Path, field: str, message: str) -> None:
        self.problems.append(Problem(label(path), field, message))

    def _same_file(self, known: str, path: Path) -> None:
        if Path(known).resolve() != path.resolve():
            message = f"has the name and domain of {label(Path(known))}, so its results would take the same folder."
            self._wrong(path, "", f"{message} Rename one of them.")

    def _settings(self, recipe: Recipe, stage: str, point: Point | None) -> dict[str, Any]:
        block = getattr(recipe, stage)
        if stage == "evaluate" and point is not None:
            block = block.model_copy(update={"compare": tuple(f"{name}@{point.name}" for name in block.compare)})
        if stage == "pseudolabel" and block.label_fraction is None:  # no more labels than the model may use
            fraction = recipe.finetune.label_fraction if recipe.finetune else 1.0
            block = block.model_copy(update={"label_fraction": fraction})
        if stage == "finetune" and block.labels is None:
            block = block.model_copy(update={"labels": "pseudo" if recipe.pseudolabel else "given"})
        return block.plain()

    def _data_key(self, recipe: Recipe, seed: int, path: Path, point: Point | None) -> str | None:
        """Plans the data of a recipe; None if it is wrong."""
        owner, owner_path = recipe, path
        if isinstance(recipe.data, str):
            found = self._read(recipe.data, path, recipe.domain, point)
            if found is None:
                return None
            _, owner_path, owner = found
            if isinstance(owner.data, str):
                of = f"which itself uses the data of {owner.data}"
                self._wrong(path, "data", f"names {recipe.data}, {of}. Name the recipe that describes the data.")
                return None
            if owner.domain != recipe.domain:
                self._wrong(path, "data", f"names {recipe.data}, a recipe of {owner.domain}, not of {recipe.domain}.")
                return None
        assert isinstance(owner.data, Prepare)
        settings = owner.data.plain()
        if isinstance(settings["source"].get("split"), dict):
            settings["source"]["split"] = fold_of_seed(settings["source"]["split"], seed)
        made = None
        if settings["make"] is not None:
            made = f"synthetic/{recipe.domain}-{settings['make']['size']}-{settings['make']['seed']}"
            settings["root"] = str(self.results / made)
        elif is_address(settings["root"]):
            copy = self._copy(settings["root"], owner_path)
            if copy is None:
                return None
            settings["root"] = str(copy)
        elif not Path(settings["root"]).is_dir():
            self._wrong(owner_path, "data.root", f"is {settings['root']!r}, which is no folder. {_ROOT_HINT}")
            return None
        key = f"{recipe.domain}-{digest_of(settings)[:12]}"
        if key not in self.data:
            self.data[key] = {
                "domain": recipe.domain,
                "description": owner.description,
                "settings": settings,
                "tables": [] if made else self._tables(owner.data, Path(settings["root"]), owner_path),
                "synthetic": made,
                "needs": owner.needs.prepare.plain(),
            }
        return key

    def _copy(self, address: str, path: Path) -> Path | None:
        """The copy of remote data; None if there is none or a part of one."""
        self.remotes.add(address)
        copy = copy_folder(self.copies, address)
        if is_whole(copy):
            return copy / FILES
        how = f"'appssl run' makes one, or 'appssl data mirror {address} FOLDER' and what it says."
        message = f"is {address}, of which {copy} holds no complete copy. {how}"
        self.uncopied.append(Problem(label(path), "data.root", message))
        return None

    def _tables(self, data: Prepare, root: Path, path: Path) -> list[str]:
        """Input tables; those that do not exist are noted."""
        try:
            tables = registry.build("sources", data.source).inputs(root)
        except DataError as error:
            self.missing.append(Problem(label(path), "data.source", f"is wrong: {error}"))
            return []
        for table in tables:
            if not table.exists():
                self.missing.append(
                    Problem(label(path), "data.source", f"needs {table}, which does not exist. {_ROOT_HINT}")
                )
        return [str(table) for table in tables]

    def _encoder(self, recipe: Recipe, folder: str, seed: int, path: Path, point: Point | None) -> dict[str, str]:
        if not isinstance(recipe.pretrain, From):
            return {"encoder": f"{folder}/pretrain"} if recipe.pretrain else {}
        name = recipe.pretrain.from_
        if point is not None:
            self.add(name, seed, beside=path, domain=recipe.domain)  # it may serve the point too
        run = self._other(name, recipe, seed, path, point, field="pretrain.from")
        if run is None:
            return {}
        if "encoder" not in run:
            self._wrong(path, "pretrain.from", f"names {name}, which has no pretrain block of its own.")
            return {}
        return {"encoder": run["encoder"]}

    def _start(self, recipe: Recipe, seed: int, path: Path, point: Point | None) -> tuple[dict[str, str], list[str]]:
        """The pretraining that this one goes on from, if any, and the names of the runs before, the first one first."""
        if not isinstance(recipe.pretrain, Pretrain) or recipe.pretrain.after is None:
            return {}, []
        name = recipe.pretrain.after
        run = self._other(name, recipe, seed, path, point, field="pretrain.after")
        if run is None:
            return {}, []
        if "encoder" not in run:
            message = f"names {name}, which has no pretrain block of its own, or goes on from this one in turn."
            self._wrong(path, "pretrain.after", message)
            return {}, []
        if not run["onward"]:
            self._wrong(
                path, "pretrain.after", f"names {name}, which keeps nothing to go on from. Set its onward: true."
            )
        return {"start": run["encoder"]}, [*run["past"], run["name"]]

    def _refuse_unknown_past(
        self, recipe: Recipe, run: dict[str, Any], compared: Mapping[str, str], path: Path
    ) -> None:
        """Notes an evaluation of forgetting that is not compared with every stage before."""
        if recipe.evaluate is None or all(each.name != "forgetting" for each in recipe.evaluate.evaluators):
            return
        lacking = [name for name in run.get("past", []) if f"compare:{name}" not in compared]
        if lacking:
            message = f"lacks {', '.join(lacking)}: forgetting is measured against all earlier stages. Add it."
            self._wrong(path, "evaluate.compare", message)

    def _compared(self, recipe: Recipe, seed: int, path: Path, point: Point | None) -> dict[str, str]:
        inputs: dict[str, str] = {}
        for name in recipe.evaluate.compare if recipe.evaluate else ():
            run = self._other(name, recipe, seed, path, point, field="evaluate.compare")
            if run is not None and "evaluate" not in run["stages"]:
                self._wrong(path, "evaluate.compare", f"names {name}, which has no evaluate block of its own.")
            elif run is not None:
                inputs[f"compare:{run['name']}"] = f"{recipe.domain}/{run['name']}/s{seed}/evaluate"
        return inputs

    def _other(
        self, name: str, recipe: Recipe, seed: int, path: Path, point: Point | None, *, field: str
    ) -> dict[str, Any] | None:
        """The run of another recipe of the domain; None if there is something wrong with it."""
        found = self.add(name, seed, beside=path, domain=recipe.domain, point=point)
        if found is None:
            return None
        domain, other = found
        if domain != recipe.domain:
            self._wrong(path, field, f"names {name}, a recipe of {domain}, not of {recipe.domain}.")
            return None
        run: dict[str, Any] = self.runs[domain][other][f"s{seed}"]
        return run

    def refuse_circles(self) -> None:
        """Notes recipes whose evaluation waits for itself, through `evaluate.compare`."""
        runs = {
            f"{domain}/{recipe}/{seed}/evaluate": run
            for domain, recipes in self.runs.items()
            for recipe, seeds in recipes.items()
            for seed, run in seeds.items()
        }
        for start, run in runs.items():
            waiting, seen = [start], set()
            while waiting:
                for other in _compared_folders(runs[waiting.pop()]):
                    if other not in seen:
                        seen.add(other)
                        waiting.append(other)
            if start in seen:
                message = "compares with a recipe that compares with this one in turn. Name it in one of them only."
                self._wrong(Path(run["file"]), "evaluate.compare", message)


def _compared_folders(run: Mapping[str, Any]) -> list[str]:
    inputs = run["stages"].get("evaluate", {}).get("inputs", {})
    return [folder for name, folder in inputs.items() if name.startswith("compare:")]


_ROOT_HINT = "Give the folder that holds the data: --set data.root=FOLDER."


def make_plan(
    names: Sequence[str],
    *,
    seeds: Sequence[int],
    overrides: Mapping[str, Any],
    results: Path,
    quick: bool,
    sweep: Sweep | None = None,
    mirror: bool = False,
) -> dict[str, Any]:
    """Plan of the named recipes for all seeds, with everything they refer to; at every point of `sweep`, if given.

    Args:
        mirror: bring the copies of remote data up to date first, once the recipes are found right.
    Raises:
        SettingsError: with all problems of all recipes. DataError: if all that is wrong are missing tables.
    """
    root = results / "quick" if quick else results
    planner = Planner(overrides, quick, root, results, asked=_files(names))
    targets = []
    for name in dict.fromkeys(names):
        for seed in dict.fromkeys(seeds):
            if sweep:
                planner.add(name, seed)  # its encoder is that of points which change nothing before
            for point in sweep.points if sweep else (None,):
                found = planner.add(name, seed, point=point)
                if found is not None and [*found, seed] not in targets:
                    targets.append([*found, seed])
    planner.refuse_circles()
    if mirror and planner.remotes and not planner.problems:
        for address in sorted(planner.remotes):
            mirror_for_run(address, results)
        return make_plan(names, seeds=seeds, overrides=overrides, results=results, quick=quick, sweep=sweep)
    missing = dict.fromkeys(planner.missing)
    if planner.problems or planner.uncopied:
        raise SettingsError(list(dict.fromkeys([*planner.problems, *planner.uncopied, *missing])))
    if missing:
        raise DataError("\n".join(map(str, missing)))
    plan = {"results": str(root), "data": planner.data, "runs": planner.runs, "targets": targets}
    return {**plan, "sweep": sweep.plain()} if sweep else plan


def _files(names: Sequence[str]) -> set[Path]:
    """Files of the recipes that exist; the others are reported when they are read."""
    found = set()
    for name in names:
        with suppress(SettingsError):
            found.add(find(name).resolve())
    return found


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
