"""The command line as a user meets it, inside this process: what it prints, and its exit code."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from appssl.artifact import Artifact
from appssl.cli.main import main
from appssl.plan import complete, make_plan
from appssl.synthetic import recsys, wearable, webnoisy, wsi


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch, capsys) -> Callable[..., Said]:
    """`cli("check", "x.yaml")`: no traceback may be shown, whatever happens."""

    def call(*words: str | Path) -> Said:
        monkeypatch.setattr("sys.argv", ["appssl", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return Said(int(end.value.code or 0), said.out, said.err)

    return call


@pytest.fixture
def prepare(cli, tmp_path):
    """Checks a recipe with this source, and prepares its data, as `appssl run` would: stops at the first that fails."""

    def call(root: Path, domain: str, *, budget: float = 0.005, shards: int = 1, **source) -> Said:
        data = {"root": str(root), "budget": budget, "shards": shards, "source": {"name": domain, **source}}
        recipe = tmp_path / "own.yaml"
        recipe.write_text(yaml.safe_dump({"description": "own data", "domain": domain, "data": data}))
        said = cli("check", recipe)
        if said.code != 0:
            return said
        plan = complete(make_plan([str(recipe)], seeds=[0], overrides={}, results=tmp_path / "r", quick=False))
        ((_, text),) = [(name, text) for name, text in plan["configs"].items() if name.startswith("data/")]
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(json.loads(text)))
        return cli("prepare", "--config", config, "--out", tmp_path / "data")

    return call


@pytest.fixture
def explained(tmp_path):
    """(item, outcome, reason) of everything in the quarantine of what `prepare` made."""

    def call() -> set[tuple[str, str, str]]:
        table = Artifact.open(tmp_path / "data", "data").table("quarantine.parquet")
        return set(table.select("item", "outcome", "reason").iter_rows())

    return call


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> dict[str, Path]:
    """Tiny synthetic data of all domains; not to be changed."""
    folders = {}
    for module in (wsi, wearable, webnoisy, recsys):
        name = module.__name__.rpartition(".")[2]
        folders[name] = tmp_path_factory.mktemp(name)
        module.make(folders[name], size="tiny", seed=0)
    return folders


@pytest.fixture
def own(made, tmp_path):
    """An own copy of a domain's data, to be broken."""

    def copy(domain: str) -> Path:
        return Path(shutil.copytree(made[domain], tmp_path / domain))

    return copy
