"""Where the workflow and the recipes lie: in the wheel under `appssl/_bundle`, in a checkout beside the package."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def root() -> Path:
    """Folder that holds `Snakefile`, `workflows/` and `pipelines/`."""
    bundled = _PACKAGE / "_bundle"
    return bundled if bundled.is_dir() else _PACKAGE.parent


def snakefile() -> Path:
    return root() / "Snakefile"


def pipelines() -> Path:
    return root() / "pipelines"


def profile(name: str) -> Path:
    return root() / "workflows" / "profiles" / name


def profiles() -> list[str]:
    return sorted(path.name for path in (root() / "workflows" / "profiles").iterdir() if path.is_dir())


def recipes() -> list[str]:
    """Names `domain/recipe` of all recipes that come with the package."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in pipelines().glob("*/*.yaml"))
