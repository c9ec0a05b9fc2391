"""`appssl list` and `appssl show`: methods and recipes, settings with ranges, defaults and source."""

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from appssl.cli.options import Json


def command(
    kind: Annotated[str | None, typer.Argument(help="A kind of method, or recipes.")] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Print all settings of everything as Markdown.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List methods and recipes. Example: appssl list objectives"""
    import json

    from appssl import bundle
    from appssl.errors import SettingsError
    from appssl.registry import KINDS, names
    from appssl.settings import nearest

    if reference:
        typer.echo(_reference(), nl=False)
        return
    kinds = {**{k: list(names(k)) for k in KINDS}, "recipes": bundle.recipes()}
    if kind is not None and kind not in kinds:
        raise SettingsError(f"{kind} is not a kind.{nearest(kind, kinds)}")
    chosen = kinds if kind is None else {kind: kinds[kind]}
    if as_json:
        typer.echo(json.dumps(chosen, indent=1))
        return
    for name, found in chosen.items():
        typer.echo(f"{name}: {', '.join(found) if found else '-'}")


def show(
    kind: Annotated[str, typer.Argument(help="A kind of method, a stage, or recipes.")],
    name: Annotated[str | None, typer.Argument(help="Name of the method or recipe.")] = None,
    as_json: Json = False,
) -> None:
    """Show a method's settings, or a recipe. Example: appssl show objectives ntxent"""
    import json

    from appssl.errors import SettingsError
    from appssl.plan import MODELS
    from appssl.recipe import Claim, Recipe, find
    from appssl.registry import load

    if kind == "recipes" and name:
        typer.echo(find(name).read_text(encoding="utf-8"))
        return
    stages: dict[str, Any] = {**MODELS, "recipe": Recipe, "claims": Claim}
    if name is None and kind in stages:
        model, about = stages[kind], stages[kind].__doc__ or ""
    elif name is None:
        raise SettingsError(f"name the method: 'appssl list {kind}' lists them.")
    else:
        module = load(kind, name)
        model, about = module.Config, module.__doc__ or ""
    if as_json:
        typer.echo(json.dumps(model.model_json_schema(), indent=1))
        return
    typer.echo(about.strip() + "\n")
    for line in describe(model):
        typer.echo(line)


def _reference() -> str:
    """Every stage and method with its settings, as `docs/reference.md` has it."""
    from appssl.plan import MODELS
    from appssl.recipe import Claim, Fit, Make, Need
    from appssl.registry import KINDS, load, names

    parts = ["# Settings\n\nMade by `appssl list --reference`; do not edit by hand.\n"]
    for name, model in {**MODELS, "fit": Fit, "make": Make, "needs": Need, "claims": Claim}.items():
        parts.append(_section(f"`{name}`", model.__doc__ or "", model))
    for kind in KINDS:
        for name in names(kind):
            module = load(kind, name)
            parts.append(_section(f"`{kind}/{name}`", (module.__doc__ or "").split("\n\n")[0], module.Config))
    return "\n".join(parts)


def _section(title: str, about: str, model: Any) -> str:
    head = f"## {title}\n\n{' '.join(about.split())}\n"
    rows = [(name, info) for name, info in model.model_fields.items() if name != "name"]
    if not rows:
        return head
    table = ["| setting | type | default | range | meaning |", "|---|---|---|---|---|"]
    for name, info in rows:
        default = "required" if info.is_required() else f"`{_short(info.get_default(call_default_factory=True))}`"
        limits = ", ".join(f"{word} {value}" for word, value in _limits(info.metadata))
        cells = (f"`{info.alias or name}`", _kind(info.annotation), default, limits, info.description or "")
        table.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return head + "\n" + "\n".join(table) + "\n"


def describe(model: Any) -> list[str]:
    """One line per setting: name, type, default, range, meaning."""
    lines = []
    for name, info in model.model_fields.items():
        kind = _kind(info.annotation)
        default = "required" if info.is_required() else f"default {_short(info.get_default(call_default_factory=True))}"
        limits = [f"{word} {value}" for word, value in _limits(info.metadata)]
        lines.append(f"  {info.alias or name}  ({', '.join([kind, default, *limits])})  {info.description or ''}")
    return lines


def _kind(annotation: Any) -> str:
    """A type as a user reads it: `int or null`, `list of method`, `'a' or 'b'`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (None, type(None)):
        return "null"
    if annotation is Any:
        return "method"
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (Union, UnionType):
        return " or ".join(_kind(argument) for argument in arguments)
    if origin in (tuple, list):
        kinds = [_kind(argument) for argument in arguments if argument is not ...]
        return f"list of {kinds[0]}" if len(set(kinds)) == 1 and ... in arguments else f"[{', '.join(kinds)}]"
    if origin is dict:
        return f"map of {_kind(arguments[0])} to {_kind(arguments[1])}"
    return str(getattr(annotation, "__name__", annotation))


def _short(value: Any) -> str:
    name = getattr(value, "name", None)
    if hasattr(value, "model_fields_set") and name is None:
        return "its defaults"
    return str(name) if isinstance(name, str) else repr(value)


def _limits(metadata: Any) -> list[tuple[str, Any]]:
    words = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return [
        (words[key], getattr(item, key)) for item in metadata for key in words if getattr(item, key, None) is not None
    ]
