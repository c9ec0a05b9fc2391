# What rules need to know of the plan. `appssl run` writes the plan and names it in the configuration; started by hand,
# `snakemake --config recipes=wearable/demo` makes it here.
from appssl.workflow import load_plan, manifest_inputs, num_workers, targets

PLAN = load_plan(config)


pathvars:
    results=PLAN["results"],


wildcard_constraints:
    domain="wsi|wearable|webnoisy|recsys",
    recipe=r"[^/]+",
    seed=r"\d+",
    key=r"[^/]+",
    shard=r"\d+",
    stage="pretrain|pseudolabel|finetune|evaluate|report",


def planned(wildcards, stage):
    """What the plan says of a stage of the run that the wildcards name."""
    run = PLAN["runs"][wildcards.domain][wildcards.recipe][f"s{wildcards.seed}"]
    return run["stages"][stage]


def settings_json(wildcards):
    """Complete settings of a stage: a parameter, so that a change re-runs this stage and later ones."""
    return PLAN["configs"][
        f"{wildcards.domain}/{wildcards.recipe}/s{wildcards.seed}/{wildcards.stage}"
    ]


def data_settings_json(wildcards):
    return PLAN["configs"][f"data/{wildcards.key}"]


def recipe_file(wildcards):
    return PLAN["runs"][wildcards.domain][wildcards.recipe][f"s{wildcards.seed}"][
        "file"
    ]


def raw_inputs(wildcards):
    """Input tables, or the manifest of synthetic data."""
    data = PLAN["data"][wildcards.key]
    if data["synthetic"]:
        return [f"{PLAN['results']}/{data['synthetic']}/manifest.json"]
    return data["tables"]


def shard_manifests(wildcards):
    count = PLAN["data"][wildcards.key]["settings"]["shards"]
    return [
        f"{PLAN['results']}/data/{wildcards.key}/shards/{shard}/manifest.json"
        for shard in range(count)
    ]


def upstream(stage):
    """Manifests of everything a stage reads."""

    def manifests(wildcards):
        return manifest_inputs(PLAN, planned(wildcards, stage))

    return manifests


def options(stage):
    """Upstream folders as command line options."""

    def arguments(wildcards):
        inputs = planned(wildcards, stage)["inputs"]
        folders = {name: f"{PLAN['results']}/{path}" for name, path in inputs.items()}
        return " ".join(
            (
                f"--compare {name.partition(':')[2]}={path}"
                if name.startswith("compare:")
                else f"--{name} {path}"
            )
            for name, path in folders.items()
        )

    return arguments


def needs(stage, what):
    """A need of a stage: cpus, gpus, strategy, mem_mb, minutes, or the workers that make batches."""

    def value(wildcards):
        if stage == "prepare":
            need = PLAN["data"][wildcards.key]["needs"]
        else:
            need = planned(wildcards, stage)["needs"]
        if what == "workers":
            return num_workers(planned(wildcards, stage))
        return int(need["mem_gb"] * 1024) if what == "mem_mb" else need[what]

    return value
