"""edgesdk.toml: what a project folder says once, so that `edgesdk export --target jetson` is enough there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgesdk_converters import fields
from edgesdk_converters.errors import RecipeError
from edgesdk_converters.recipe import read_toml
from edgesdk_converters.signature import Processing
from edgesdk_targets import known

NAME = "edgesdk.toml"


@dataclass(frozen=True)
class TargetSection:
    """[target.NAME]: what differs by target. `set` are options as `--set` takes them."""

    device: str = ""
    precision: str = ""
    recipe: str = ""
    out: str = ""
    set: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Project:
    """A project's file; paths are relative to it. Empty or None means not said."""

    model: str = ""
    weights: str = ""
    data: str = ""
    train: str = ""
    recipe: str = ""
    task: Literal["", "auto", "classify", "numeric"] = ""
    metric: str = ""
    max_drop: float | None = None
    max_slice_drop: float | None = None
    max_relative_error: float | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[str, float] = field(default_factory=dict)
    io: Processing = field(default_factory=Processing)
    target: dict[str, TargetSection] = field(default_factory=dict)


def load(folder: Path) -> Project:
    """The project of a folder; an empty one where it has no edgesdk.toml. Raises RecipeError for a malformed one."""
    path = folder / NAME
    if not path.is_file():
        return Project()
    said = fields.read(Project, read_toml(path), NAME, RecipeError)
    for name in said.target:
        if name not in known():
            raise RecipeError(f"{NAME}: [target.{name}]: unknown target {name!r}; known: {', '.join(known())}")
    return said


def read_processing(path: Path) -> Processing:
    """Pre- and post-processing from a TOML file with [inputs.NAME] and [outputs.NAME]."""
    return fields.read(Processing, read_toml(path), str(path), RecipeError)
