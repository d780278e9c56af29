"""Candidate: one way to make an artefact; Attempt: what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgesdk_converters.errors import EdgeError
from edgesdk_converters.recipe import Recipe
from edgesdk_targets.figure import Figure

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer
    from edgesdk_targets.bundle import Manifest

    from .exporting import Prepared


@dataclass(frozen=True)
class Candidate:
    """One way to make the artefact. `name` is for people: the precision, and what is special about this way."""

    name: str
    precision: str
    recipe: Recipe

    @property
    def needs_calibration(self) -> bool:
        """Whether one of its passes takes ranges from data."""
        return any(getattr(step, "needs_calibration", False) for step in self.recipe.whole)

    @property
    def repairs(self) -> bool:
        """Whether it may be changed when it breaks the contract."""
        return any(getattr(step, "repair", False) for step in self.recipe.whole)

    def settled(self) -> Candidate:
        """The same without further repairs: what a bundle records."""
        return self.with_quantize(repair=False)

    def with_quantize(self, name: str = "", **options: Any) -> Candidate:
        """The same with options of its quantise pass changed."""
        steps = tuple(replace(step, **options) if hasattr(step, "repair") else step for step in self.recipe.whole)  # type: ignore[type-var]
        return replace(self, name=name or self.name, recipe=Recipe(steps))

    def with_pass_before(self, made: Any, name: str) -> Candidate:
        """The same with a pass more, before its quantise pass."""
        steps = list(self.recipe.whole)
        place = next(index for index, step in enumerate(steps) if hasattr(step, "repair"))
        return replace(self, name=name, recipe=Recipe((*steps[:place], made, *steps[place:])))


@dataclass(frozen=True)
class Draft:
    """A compiled artefact, whether it holds the contract or not: enough to take or estimate its speed."""

    manifest: Manifest
    files: Mapping[str, bytes]
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Attempt:
    """What came of a candidate: the finished export, or why there is none, then with the artefact that broke the contract.

    `speed` is relative to fp32's; `rows` are figures that were found with it.
    """

    candidate: Candidate
    prepared: Prepared | None = None
    error: EdgeError | None = None
    broken: Draft | None = None
    speed: Figure | None = None
    rows: tuple[Figure, ...] = ()
    remark: str = ""

    @property
    def artefact(self) -> Draft | None:
        """What was compiled, if it came to that."""
        made = self.prepared
        return Draft(made.manifest, made.files, made.layers) if made is not None else self.broken

    @property
    def gain(self) -> float:
        """Its speed relative to fp32, 0 where that is not known."""
        return 0.0 if self.speed is None or self.speed.value is None else self.speed.value
