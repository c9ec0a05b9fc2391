"""Methods by kind and name. The directory is the registry: a file `objectives/dcl.py` is the objective `dcl`.

A name with a dot (`mylab.losses.mine`) is imported as it is: that is the plug-in system.
"""

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import BeforeValidator, WrapSerializer
from pydantic_core import PydanticCustomError

from appssl.errors import SettingsError
from appssl.settings import Settings, nearest, nested

KINDS = (
    "sources", "views", "samplers", "backbones", "objectives", "learners",
    "labelers", "finetuners", "evaluators", "schedules",
)  # fmt: skip


@cache
def names(kind: str) -> tuple[str, ...]:
    """Names of all methods of a kind, sorted; reads the directory, imports nothing."""
    if kind not in KINDS:
        raise SettingsError(f"{kind} is not a kind of method.{nearest(kind, KINDS)}")
    folder = Path(__file__).parent / kind
    return tuple(sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__"))


def load(kind: str, name: str) -> ModuleType:
    """Imports the file of a method.

    Raises:
        SettingsError: if there is no such method, or a plug-in does not import or lacks `Config` or `build`.
    """
    known = names(kind)
    if "." in name:
        return _plugin(kind, name)
    if name not in known:
        raise SettingsError(
            f"{name!r} is not one of the {kind}.{nearest(name, known)} 'appssl list {kind}' lists them."
        )
    return importlib.import_module(f"appssl.{kind}.{name}")


def _plugin(kind: str, name: str) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise SettingsError(f"the plug-in {name!r} of {kind} does not import: {error}.") from error
    for needed in ("Config", "build"):
        if not hasattr(module, needed):
            raise SettingsError(
                f"the plug-in {name!r} of {kind} has no {needed}; a method file offers Config and build."
            )
    return module


def build(kind: str, config: Any, *args: Any, **kwargs: Any) -> Any:
    """`build` of the method that `config.name` names, called with the config and the rest."""
    return load(kind, config.name).build(config, *args, **kwargs)


def _choose(kind: str) -> Any:
    def validate(value: Any) -> Any:
        if isinstance(value, Settings):
            return value
        values = {"name": value} if isinstance(value, str) else value
        if not isinstance(values, dict) or not isinstance(values.get("name"), str):
            raise PydanticCustomError("method", f"give a name from 'appssl list {kind}', or a mapping with `name`")
        try:
            config = load(kind, values["name"]).Config
        except SettingsError as error:
            raise PydanticCustomError("method", str(error).replace("{", "(").rstrip(".")) from None
        return nested(config, values, owner=f"{kind}/{values['name']}")

    return validate


def _dump(value: Any, handler: Any) -> Any:
    return value.plain() if isinstance(value, Settings) else handler(value)


def Method(kind: str) -> Any:
    """Type of a setting that names a method: `objective: Method("objectives") = "ntxent"`; a bare name or a mapping."""
    return Annotated[Any, BeforeValidator(_choose(kind)), WrapSerializer(_dump)]
