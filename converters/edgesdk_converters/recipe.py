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


SECTIONS = ("whole", "head", "tail")


@dataclass(frozen=True)
class Recipe:
    """Passes in order. As TOML, each is a table: `pass = NAME` and its options.

    [[whole]] tables are for the network as it comes. Where `split` names the tensors of a cut (`[split]`, `at = ["NAME"]`), those
    of [[head]] and [[tail]] follow for its two parts.
    """

    whole: tuple[Pass, ...]
    head: tuple[Pass, ...] = ()
    tail: tuple[Pass, ...] = ()
    split: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.head or self.tail) and not self.split:
            raise RecipeError("a recipe has passes for head or tail, but no cut", 'add a table [split] with at = ["TENSOR"]')

    @property
    def every(self) -> tuple[Pass, ...]:
        """All passes of all sections."""
        return (*self.whole, *self.head, *self.tail)

    def run(self, model: Model, given: Given) -> Model:
        """The model after all passes of `whole`; its history gains what each of them did."""
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
            if section not in (*SECTIONS, "split"):
                raise RecipeError(f"{where}: unknown section {section!r}; known: {', '.join((*SECTIONS, 'split'))}")
        cut = data.get("split", {})
        at = cut.get("at", ()) if isinstance(cut, Mapping) and set(cut) <= {"at"} else None
        if not isinstance(at, (list, tuple)) or not all(isinstance(name, str) for name in at) or ("split" in data and not at):
            raise RecipeError(f"{where}: 'split' names no tensors", '[split] holds at = ["TENSOR"] and nothing else')
        whole, head, tail = (_passes(data, section, where) for section in SECTIONS)
        return cls(whole, head, tail, tuple(at))

    def with_settings(self, settings: Mapping[str, str]) -> Recipe:
        """The recipe with pass options set from `pass.name=value` texts. Raises RecipeError for what is not there."""
        by_pass: dict[str, dict[str, str]] = {}
        for key, value in settings.items():
            name, _, option = key.partition(".")
            by_pass.setdefault(name, {})[option] = value
        names = [step.name for step in self.every]
        for name in by_pass:
            if name not in names:
                raise RecipeError(f"--set {name}.…: the recipe has no pass {name!r}; it has: {', '.join(names) or 'none'}")

        def read(steps: tuple[Pass, ...]) -> tuple[Pass, ...]:
            return tuple(fields.replace(step, by_pass.get(step.name, {}), f"pass {step.name}", RecipeError) for step in steps)

        return Recipe(read(self.whole), read(self.head), read(self.tail), self.split)

    def to_plain(self) -> dict[str, Any]:
        """As data; options at their default, and sections that are empty, are left out."""
        found: dict[str, Any] = {}
        for section in SECTIONS:
            steps: tuple[Pass, ...] = getattr(self, section)
            if steps or section == "whole":
                found[section] = [{"pass": step.name, **fields.plain(step)} for step in steps]
        return found | ({"split": {"at": list(self.split)}} if self.split else {})

    def to_toml(self) -> str:
        """As TOML that `load` reads back to the same recipe."""
        lines = []
        plain = self.to_plain()
        for section in SECTIONS:
            for table in plain.get(section, ()):
                lines.append(f"[[{section}]]")
                lines.extend(f"{key} = {_toml(value)}" for key, value in table.items())
                lines.append("")
        if self.split:
            lines += ["[split]", f"at = {_toml(list(self.split))}", ""]
        return "\n".join(lines)


def _passes(data: Mapping[str, Any], section: str, where: str) -> tuple[Pass, ...]:
    tables = data.get(section, [])
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise RecipeError(
            f"{where}: {section!r} is no list of tables; write each pass as a [[{section}]] table", "begin it with pass = NAME"
        )
    passes = []
    for index, table in enumerate(tables):
        if "pass" not in table:
            raise RecipeError(f"{where}: [[{section}]] table {index + 1} names no pass")
        options = {key: value for key, value in table.items() if key != "pass"}
        passes.append(fields.read(find(str(table["pass"])), options, f"{where}: pass {table['pass']}", RecipeError))
    return tuple(passes)
