"""A recipe: the passes of an export in order, as TOML or code, so that it can be repeated to the byte."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import fields, find
from .errors import RecipeError

if TYPE_CHECKING:
    from .model import Model
    from .passes import Given, Pass

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A TOML file as a dict. Raises RecipeError when it is missing or malformed."""
    try:
        data: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        return data
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise RecipeError(f"{path} is not valid TOML: it is nested too deeply", "write the file flat") from error


def _toml(value: object) -> str:
    """A value as TOML writes it; JSON differs in non-ASCII text, the delete character and numbers that are not finite."""
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}.get(text, text)


@dataclass(frozen=True)
class Recipe:
    """Passes in order. As TOML, each is a [[whole]] table: `pass = NAME` and its options."""

    whole: tuple[Pass, ...]

    def run(self, model: Model, given: Given) -> Model:
        """The model after all passes; its history gains what each of them did."""
        for step in self.whole:
            given.progress(f"pass {step.name}")
            model = step(model, given)
        return model

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """From a TOML file. Raises RecipeError for unknown sections, passes, options and types."""
        return cls.from_plain(read_toml(path), str(path))

    @classmethod
    def from_plain(cls, data: Mapping[str, Any], where: str) -> Recipe:
        """From the data a TOML file holds."""
        for section in data:
            if section != "whole":
                raise RecipeError(f"{where}: unknown section {section!r}; known: whole")
        tables = data.get("whole", [])
        if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
            raise RecipeError(
                f"{where}: 'whole' is no list of tables; write each pass as a [[whole]] table", "begin it with pass = NAME"
            )
        passes = []
        for index, table in enumerate(tables):
            if "pass" not in table:
                raise RecipeError(f"{where}: [[whole]] table {index + 1} names no pass")
            options = {key: value for key, value in table.items() if key != "pass"}
            passes.append(fields.read(find(str(table["pass"])), options, f"{where}: pass {table['pass']}", RecipeError))
        return cls(tuple(passes))

    def with_settings(self, settings: Mapping[str, str]) -> Recipe:
        """The recipe with pass options set from `pass.name=value` texts. Raises RecipeError for what is not there."""
        by_pass: dict[str, dict[str, str]] = {}
        for key, value in settings.items():
            name, _, option = key.partition(".")
            by_pass.setdefault(name, {})[option] = value
        names = [step.name for step in self.whole]
        for name in by_pass:
            if name not in names:
                raise RecipeError(f"--set {name}.…: the recipe has no pass {name!r}; it has: {', '.join(names) or 'none'}")
        return Recipe(
            tuple(fields.replace(step, by_pass.get(step.name, {}), f"pass {step.name}", RecipeError) for step in self.whole)
        )

    def to_plain(self) -> dict[str, Any]:
        """As data; options at their default are left out."""
        return {"whole": [{"pass": step.name, **fields.plain(step)} for step in self.whole]}

    def to_toml(self) -> str:
        """As TOML that `load` reads back to the same recipe."""
        lines = []
        for table in self.to_plain()["whole"]:
            lines.append("[[whole]]")
            lines.extend(f"{key} = {_toml(value)}" for key, value in table.items())
            lines.append("")
        return "\n".join(lines)
