"""Frozen dataclasses from plain data (JSON, TOML, `name=value`), with errors that name the field."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import EdgeError

T = TypeVar("T")


def read(cls: type[T], data: object, where: str, error: type[EdgeError]) -> T:
    """An instance of the dataclass `cls` from a mapping.

    Fields may be bool, int, float, str, None, Literal, tuple[X, ...], dict[str, X] and other dataclasses. `where` names
    the place in messages; unknown names, missing fields and wrong types raise `error`.
    """
    if not isinstance(data, Mapping):
        raise error(f"{where}: expected a table, got {data!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    unknown = [str(name) for name in data if name not in fields]
    if unknown:
        raise error(f"{where}: unknown name {unknown[0]!r}; known: {', '.join(fields) or 'none'}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}.{name}", error)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise error(f"{where}: {name!r} is missing")
    return cls(**values)


def replace(instance: T, settings: Mapping[str, str], where: str, error: type[EdgeError], fixed: tuple[str, ...] = ()) -> T:
    """The same dataclass with fields set from text, as `--set name=value` gives them; `fixed` fields are no options."""
    hints = typing.get_type_hints(type(instance))
    known = [f.name for f in dataclasses.fields(instance) if f.name not in fixed]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, text in settings.items():
        if name not in known:
            raise error(f"{where} has no option {name!r}; known: {', '.join(known) or 'none'}")
        values[name] = _convert(hints[name], _from_text(text), f"{where}.{name}", error, text)
    return dataclasses.replace(instance, **values)  # type: ignore[type-var]


def plain(instance: object) -> Any:
    """A dataclass as JSON-ready data; fields that equal their default are left out, tuples become lists."""
    if dataclasses.is_dataclass(instance) and not isinstance(instance, type):
        data = {}
        for field in dataclasses.fields(instance):
            value = getattr(instance, field.name)
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if default is dataclasses.MISSING or value != default:
                data[field.name] = plain(value)
        return data
    if isinstance(instance, (list, tuple)):
        return [plain(item) for item in instance]
    if isinstance(instance, Mapping):
        return {str(key): plain(value) for key, value in instance.items()}
    return instance


def _from_text(text: str) -> object:
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _convert(hint: Any, value: object, where: str, error: type[EdgeError], text: str | None = None) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin is typing.Literal:
        allowed = typing.get_args(hint)
        if text is not None and text in allowed:
            return text
        if value not in allowed or isinstance(value, bool) != any(value is a for a in allowed if isinstance(a, bool)):
            raise error(f"{where}: got {value!r}, allowed: {', '.join(map(str, allowed))}")
        return value
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if value is None and len(options) < len(typing.get_args(hint)):
            return None
        if len(options) == 1:
            return _convert(options[0], value, where, error, text)
        for option in options:
            try:
                return _convert(option, value, where, error, text)
            except EdgeError:
                continue
        raise error(f"{where}: got {value!r}, expected {_name(hint)}")
    if origin is tuple:
        item = typing.get_args(hint)[0]
        if text is not None:
            return tuple(_convert(item, _from_text(part), where, error, part) for part in text.split(",") if part)
        if not isinstance(value, (list, tuple)):
            raise error(f"{where}: got {value!r}, expected a list")
        return tuple(_convert(item, part, f"{where}[{i}]", error) for i, part in enumerate(value))
    if origin in (dict, Mapping) or hint is dict:
        if not isinstance(value, Mapping):
            raise error(f"{where}: got {value!r}, expected a table")
        item = typing.get_args(hint)[1] if typing.get_args(hint) else Any
        return {str(key): _convert(item, part, f"{where}.{key}", error) for key, part in value.items()}
    if dataclasses.is_dataclass(hint):
        return read(typing.cast("type[Any]", hint), value, where, error)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and text is not None:
        return text
    if hint is type(None):
        hint = types.NoneType
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise error(f"{where}: got {value!r}, expected {_name(hint)}")
    return value


def _name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, str(hint).replace("typing.", ""))
