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
from appssl.settings import UNKNOWN_METHOD, NamesMethod, Settings, nearest, nested, shown

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
        SettingsError: if there is no such method, or a plug-in does not import or offer `Config` and `build`.
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
    what = f"the plug-in {name!r} of {kind}"
    if not all(part.isidentifier() for part in name.split(".")):
        raise SettingsError(f"{what} is not the name of a module, such as mylab.losses.mine.")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        hint = "Install it, or put the folder it lies in into PYTHONPATH."
        raise SettingsError(f"{what} does not import: {error}. {hint}") from error
    except Exception as error:  # any code of theirs; passed on as what is wrong with the setting
        raise SettingsError(f"{what} does not import: {type(error).__name__}: {error}.") from error
    config = getattr(module, "Config", None)
    if not (isinstance(config, type) and issubclass(config, Settings)):
        raise SettingsError(f"{what} offers no `class Config(appssl.settings.Settings)`.")
    if "name" not in config.model_fields:
        raise SettingsError(f"{what} offers a Config without a field `name: str = {name!r}`.")
    if not callable(getattr(module, "build", None)):
        raise SettingsError(f"{what} offers no function `build`.")
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
            what = (
                f"must be a name that 'appssl list {kind}' lists, or `{{name: ..., its settings}}`; is {shown(value)}."
            )
            raise PydanticCustomError(UNKNOWN_METHOD, "unknown method", {"problem": what})
        try:
            config = load(kind, values["name"]).Config
        except SettingsError as error:
            raise PydanticCustomError(UNKNOWN_METHOD, "unknown method", {"problem": f"is wrong: {error}"}) from None
        return nested(config, values, owner=f"{kind}/{values['name']}")

    return validate


def _dump(value: Any, handler: Any) -> Any:
    return value.plain() if isinstance(value, Settings) else handler(value)


def Method(kind: str) -> Any:
    """Type of a setting that names a method: `objective: Method("objectives") = "ntxent"`; a bare name or a mapping."""
    return Annotated[Any, NamesMethod(kind), BeforeValidator(_choose(kind)), WrapSerializer(_dump)]
