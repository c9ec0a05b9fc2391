"""Typed settings: the base class of every `Config`, how YAML is read, and how problems are reported.

A `Config` is the only place of a method's defaults. Values are validated as strict JSON: a number in quotes is not a
number. All problems of a file are reported together, each with file, dotted field, value, what is allowed and the
nearest name.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from appssl.addresses import with_secrets
from appssl.errors import Problem, SettingsError

NESTED = "nested_settings"  # error type that carries the problems of a method's settings upwards
UNKNOWN_METHOD = "unknown_method"  # error type whose `problem` is a whole sentence
MAX_VALUES = 100_000  # in a YAML file, references counted as often as they are used
MAX_BYTES = 1 << 20  # of a YAML file
_LONGEST_NUMBER = 400  # characters; float64 needs no more, and numbers of base 60 take long
_LONGEST_NAME, _MOST_NAMES = 200, 100  # of which a near one is looked for; that a message lists


@dataclass(frozen=True)
class NamesMethod:
    """Marks a setting that names a method of a kind."""

    kind: str


class Settings(BaseModel):
    """Frozen, complete, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def plain(self) -> dict[str, Any]:
        """Complete settings as JSON types, in declaration order."""
        return json.loads(self.model_dump_json(by_alias=True, serialize_as_any=True))


S = TypeVar("S", bound=Settings)


def validate(model: type[S], values: Mapping[str, Any], *, file: str, owner: str, prefix: str = "") -> S:
    """Builds `model` from plain values.

    Args:
        file: named in messages. owner: what the settings belong to, such as `objectives/ntxent`.
        prefix: dotted path of these values in the file.
    Raises:
        SettingsError: with every problem found.
    """
    try:
        return model.model_validate_json(to_json(_named(model, values)), strict=True)
    except ValidationError as error:
        raise SettingsError(list(_problems(error, model, file=file, owner=owner, prefix=prefix))) from None


def nested(model: type[S], values: Mapping[str, Any], *, owner: str) -> S:
    """As `validate`, for use inside a pydantic validator: problems travel up to the outermost `validate`."""
    try:
        return model.model_validate_json(to_json(_named(model, values)), strict=True)
    except ValidationError as error:
        found = [(p.field, p.message) for p in _problems(error, model, file="", owner=owner, prefix="")]
        raise PydanticCustomError(NESTED, "settings of a method are wrong", {"found": found}) from None


def _named(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """`schedule: {warmup: 0.1}` without a name are settings of the method that is the default: its name is put in."""
    named = dict(values)
    for key, field in model.model_fields.items():
        given, default = values.get(key), field.default
        if not isinstance(given, dict):
            continue
        if inner := _group(field.annotation):
            named[key] = _named(inner, given)
        elif isinstance(default, str) and any(isinstance(mark, NamesMethod) for mark in field.metadata):
            named[key] = {"name": default, **given}
    return named


def _group(annotation: Any) -> type[BaseModel] | None:
    """The model of a group of settings; None if a setting is no group."""
    kinds = [annotation, *getattr(annotation, "__args__", ())]
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _problems(
    error: ValidationError, model: type[Settings], *, file: str, owner: str, prefix: str
) -> Iterable[Problem]:
    items = error.errors(include_url=False)
    for item in items:
        location = [str(part) for part in item["loc"]]
        if item["type"] == "too_short" and any(_is_below(other["loc"], item["loc"]) for other in items):
            continue  # wrong members are reported themselves, and not counted as members
        field = ".".join([prefix, *location] if prefix else location)
        if item["type"] == NESTED:
            for inner, message in item["ctx"]["found"]:
                yield Problem(file, f"{field}.{inner}" if inner else field, message)
        elif item["type"] == "extra_forbidden":
            yield Problem(file, field, _unknown_key(model, location, owner))
        elif item["type"] == "missing":
            yield Problem(file, field, f"is missing. {_help(owner)}")
        elif item["type"] == UNKNOWN_METHOD:
            yield Problem(file, field, item["ctx"]["problem"])
        elif item["type"] in ("model_type", "model_attributes_type", "dict_type"):
            yield Problem(file, field, f"must hold `key: value` pairs, is {shown(item['input'])}. {_help(owner)}")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            value = "" if isinstance(item["input"], dict) else f" (got {shown(item['input'])})"
            hint = _nearest_literal(item) or _quotes(item)
            yield Problem(file, field, f"is not valid: {reason}{value}.{hint} {_help(owner)}")


def _is_below(inner: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def shown(value: Any) -> str:
    """A value as a message shows it."""
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "a group of settings" if isinstance(value, dict) else f"{value!r:.80}"


def _nearest_literal(item: Any) -> str:
    """` Did you mean X?` for a word that is close to one of the allowed ones, which the message names already."""
    if item["type"] != "literal_error" or not isinstance(item["input"], str):
        return ""
    close = nearest(item["input"], re.findall(r"'([^']+)'", item["ctx"]["expected"]))
    return close if close.startswith(" Did") else ""


def _quotes(item: Any) -> str:
    """A hint for text that YAML took for something else."""
    if item["type"] != "string_type" or not isinstance(item["input"], bool | int | float):
        return ""
    read = "no, yes, on and off as true or false" if isinstance(item["input"], bool) else "digits as a number"
    return f" YAML reads {read}: put the text in quotes."


def _unknown_key(model: type[Settings], location: list[str], owner: str) -> str:
    known = _fields_at(model, location[:-1])
    return f"is not a setting of {owner}.{nearest(location[-1], known)} {_help(owner)}"


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        inner = _group(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean X?` when something known is close, otherwise the list of what is known."""
    names = list(known)
    close = difflib.get_close_matches(name[:_LONGEST_NAME], names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]}?"
    return f" Known: {listed(names)}." if names else ""


def listed(names: Sequence[str]) -> str:
    """Names as a message shows them: a damaged file can have very many, and very long ones."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(name if len(name) <= _LONGEST_NAME else f"{name[:40]}..." for name in names[:_MOST_NAMES]) + more


def _help(owner: str) -> str:
    kind, _, name = owner.partition("/")
    return f"'appssl show {kind} {name}' lists them." if name else f"'appssl show {owner}' lists them."


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number and refuses a key given twice."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # can make a short file endless
            problem = "<< is not read; write the values out"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):  # YAML reads `on`, `no` and `1` as other things than words
            problem = f"the key {key!r} is not text; put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _short_number(loader: _Loader, node: yaml.ScalarNode) -> Any:
    if len(node.value) > _LONGEST_NUMBER:
        raise yaml.constructor.ConstructorError(None, None, "is too long a number", node.start_mark)
    is_float = node.tag.endswith("float")
    return (yaml.SafeLoader.construct_yaml_float if is_float else yaml.SafeLoader.construct_yaml_int)(loader, node)


_Loader.add_constructor("tag:yaml.org,2002:int", _short_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _short_number)


def parse_yaml(text: str, file: str) -> Any:
    """YAML to plain values; only data, never code.

    Raises:
        SettingsError: for bad syntax, a repeated key, a tag such as `!!python/object`, references without end, or a
        password in an address.
    """
    try:
        values = yaml.load(text, Loader=_Loader)
        _refuse_explosion(values, file)
        _refuse_secrets(values, file)
        return values
    except RecursionError:
        raise SettingsError([Problem(file, "", "is nested too deeply for a recipe.")]) from None
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:  # dates, tags, huge integers
        message = f"holds a value that cannot be understood ({str(error)[:200]}). Put text in quotes."
        raise SettingsError([Problem(file, "", message)]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = getattr(error, "problem", None) or str(error)
        raise SettingsError([Problem(file, "", f"{where}{what}. Recipes are plain YAML data.")]) from None


def _refuse_explosion(values: Any, file: str) -> None:
    """References (`&a`, `*a`) can make a short file endless."""
    waiting, count = [values], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MAX_VALUES:
            message = f"holds more than {MAX_VALUES:,} values, or refers to itself. A recipe states only differences."
            raise SettingsError([Problem(file, "", message)])
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value


def _refuse_secrets(values: Any, file: str) -> None:
    """Settings are written into results, logs and the MLflow store, where others read them."""
    message = "holds a password or token ({}). Settings are written down with results: give it in the environment."
    found = [Problem(file, place, message.format(shown)) for place, shown in with_secrets(values)]
    if found:
        raise SettingsError(found)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, {} if empty."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SettingsError([Problem(str(path), "", "is larger than 1 MiB. Is it YAML that holds settings?")])
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError([Problem(str(path), "", f"cannot be read: {error.strerror}.")]) from None
    except UnicodeDecodeError:
        raise SettingsError([Problem(str(path), "", "is not UTF-8 text.")]) from None
    values = parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError([Problem(str(path), "", f"must hold `key: value` pairs, holds a {type(values).__name__}.")])
    return values


def to_json(values: Any) -> str:
    """Canonical JSON: sorted keys, no spaces; the text that digests are taken of."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)


def digest_of(values: Any) -> str:
    """SHA-256 (hex) of the canonical JSON."""
    return hashlib.sha256(to_json(values).encode()).hexdigest()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets `a.b.c` in nested mappings, making the ones that are missing; a mapping given is merged key by key."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            set_dotted(values, f"{key}.{name}", inner)
        return
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        inner = values.setdefault(part, {})
        if isinstance(inner, str):  # a method given by its bare name
            inner = values[part] = {"name": inner}
        if not isinstance(inner, dict):
            raise SettingsError(f"{key} cannot be set: {'.'.join(parents[: depth + 1])} is not a group of settings.")
        values = inner
    values[last] = value
