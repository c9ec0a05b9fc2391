"""Imports point one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"addresses", "errors", "settings", "version", "vulnerabilities"},
    {"ops"},
    {"contracts"},
    {
        "artifact",
        "registry",
        "recipe",
        "sweep",
        "plan",
        "tracking",
        "upload",
        "bundle",
        "outcome",
        "progress",
        "workflow",
        "datasets",
        "remote",
        "staging",
    },
    {"backbones", "schedules", "samplers", "views", "sources", "synthetic"},
    {"objectives"},
    {"learners", "labelers", "finetuners", "evaluators"},
    {"engine"},
    {"reports"},
    {
        "stages",
        "slurm",
        "runner",
        "batch_jobs",
        "batch_script",
        "kubernetes_jobs",
        "shared_volume",
        "slurm_job",
        "slurm_workflow",
        "serving",
        "drill",
    },
    {"forecast"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted((ROOT / "appssl").rglob("*.py"))


def imports(path):
    """(module, is it imported while the file itself is imported?)"""
    tree = ast.parse(path.read_text())
    typed = {
        id(n)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for n in ast.walk(node)
    }
    top = {id(n) for n in tree.body}
    for node in ast.walk(tree):
        if id(node) in typed:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((f"{node.module}.{alias.name}", id(node) in top) for alias in node.names)


def part(module):
    return module.split(".")[1] if module.startswith("appssl.") else None


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    relative = path.relative_to(ROOT / "appssl")
    own = RANK[relative.parts[0].removesuffix(".py")] if relative.parts[0] != "__init__.py" else 0
    for module, _ in imports(path):
        if (other := part(module)) is not None:
            assert RANK[other] <= own, f"{relative} imports {module}"


@pytest.mark.parametrize(("library", "allowed"), [("mlflow", {"tracking.py", "serving.py"}), ("typer", {"cli"})])
def test_a_library_is_imported_in_one_place_only(library, allowed):
    users = {
        p.relative_to(ROOT / "appssl").parts[0]
        for p in FILES
        for module, _ in imports(p)
        if module.split(".")[0] == library
    }
    assert users <= allowed


def test_init_files_are_empty():
    assert [p for p in FILES if p.name == "__init__.py" and p.read_text()] == []


def test_nothing_is_pickled():
    words = ("import pickle", "pickle.load", "torch.load(", "torch.save(", "allow_pickle=True", "extractall(")
    found = [(p.name, word) for p in FILES for word in words if word in p.read_text()]
    assert found == []
