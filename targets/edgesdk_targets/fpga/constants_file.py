"""Fitted constants as TOML files: read into a frozen dataclass, and written so that they read the same; how estimates spread."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgesdk_converters import fields
from edgesdk_converters.errors import TargetError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Where measured / estimated lies in eight of ten cases, as natural logarithms: low <= 0 <= high."""

    low: float
    high: float


def read(cls: type[T], path: Path, hint: str = "") -> T:
    """Constants from a file. Raises TargetError for anything that holds none."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as reason:
        raise TargetError(f"{path.name} holds no constants: {reason}", hint) from reason
    return fields.read(cls, data, path.name, TargetError)


def text(constants: object) -> str:
    """A dataclass as TOML: plain values first, then a table for each mapping and an entry of an array for each of its rows."""
    data: Mapping[str, object] = fields.plain(constants)
    rows = {name: value for name, value in data.items() if isinstance(value, list) and value and isinstance(value[0], Mapping)}
    tables = {name: value for name, value in data.items() if isinstance(value, Mapping)}
    lines = [f"{name} = {_value(value)}" for name, value in data.items() if name not in rows and name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    for name, entries in rows.items():
        for entry in entries:
            lines += ["", f"[[{name}]]", *(f"{key} = {_value(value)}" for key, value in entry.items())]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'
    return f"{value:.5g}" if isinstance(value, float) else str(value)
