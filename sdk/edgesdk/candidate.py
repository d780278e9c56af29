"""Candidate: one way to make an artefact; Attempt: what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from numpy.typing import NDArray

from edgesdk_converters.errors import EdgeError
from edgesdk_converters.recipe import Recipe
from edgesdk_targets.figure import Figure

if TYPE_CHECKING:
    from edgesdk_converters.calibration import Samples
    from edgesdk_converters.cost import Layer
    from edgesdk_converters.model import Model
    from edgesdk_converters.passes import Pass
    from edgesdk_converters.sensitivity import LayerSensitivity
    from edgesdk_targets.bundle import Manifest

    from .exporting import Prepared


Section = Literal["whole", "head", "tail"]


@dataclass(frozen=True)
class Candidate:
    """One way to make the artefact. `name` is for people: the precision, and what is special about this way.

    `section` is the part of the recipe that gives the precision: of a split network the head's or the tail's.
    """

    name: str
    precision: str
    recipe: Recipe
    section: Section = "whole"

    @property
    def steps(self) -> tuple[Pass, ...]:
        """The passes of its section."""
        found: tuple[Pass, ...] = getattr(self.recipe, self.section)
        return found

    @property
    def needs_calibration(self) -> bool:
        """Whether one of its passes takes ranges from data."""
        return any(getattr(step, "needs_calibration", False) for step in self.steps)

    @property
    def repairs(self) -> bool:
        """Whether it may be changed when it breaks the contract."""
        return any(getattr(step, "repair", False) for step in self.steps)

    def settled(self) -> Candidate:
        """The same without further repairs: what a bundle records."""
        return self.with_quantize(repair=False)

    def with_quantize(self, name: str = "", **options: Any) -> Candidate:
        """The same with options of its quantise pass changed."""
        steps = tuple(replace(step, **options) if hasattr(step, "repair") else step for step in self.steps)  # type: ignore[type-var]
        return self._with(steps, name or self.name)

    def with_pass_before(self, made: Any, name: str) -> Candidate:
        """The same with a pass more, before its quantise pass."""
        steps = self.steps
        place = next(index for index, step in enumerate(steps) if hasattr(step, "repair"))
        return self._with((*steps[:place], made, *steps[place:]), name)

    def _with(self, steps: tuple[Pass, ...], name: str) -> Candidate:
        parts = {"whole": self.recipe.whole, "head": self.recipe.head, "tail": self.recipe.tail, self.section: steps}
        return replace(self, name=name, recipe=Recipe(**parts, split=self.recipe.split))


@dataclass(frozen=True)
class Draft:
    """A compiled artefact, whether it holds the contract or not: enough to take or estimate its speed.

    `feed` is what it is timed with, None for the first sample of the export.
    """

    manifest: Manifest
    files: Mapping[str, bytes]
    layers: tuple[Layer, ...]
    feed: Mapping[str, NDArray[Any]] | None = None


@dataclass(frozen=True)
class Attempt:
    """What came of a candidate: the finished export, or why there is none, then with the artefact that broke the contract.

    `speed` is relative to fp32's; `rows` are figures that were found with it. `part` is what is timed where that is only a part
    of what was made.
    """

    candidate: Candidate
    prepared: Prepared | None = None
    error: EdgeError | None = None
    broken: Draft | None = None
    speed: Figure | None = None
    rows: tuple[Figure, ...] = ()
    remark: str = ""
    part: Draft | None = None

    @property
    def artefact(self) -> Draft | None:
        """What was compiled, if it came to that."""
        made = self.prepared
        if self.part is not None:
            return self.part
        return Draft(made.manifest, made.files, made.layers) if made is not None else self.broken

    @property
    def gain(self) -> float:
        """Its speed relative to fp32, 0 where that is not known."""
        return 0.0 if self.speed is None or self.speed.value is None else self.speed.value


class Yardstick(Protocol):
    """What choosing asks of the trial of a network, or of a part of one.

    `source` and `calibrate` are the model and its inputs before any precision; `cases` the first samples; `most_sensitive` the
    layers of a recipe's quantise pass, those first whose noise is worth most to be rid of.
    """

    source: Model
    calibrate: Samples
    cases: list[dict[str, NDArray[Any]]]
    progress: Callable[[str], None]

    def most_sensitive(self, recipe: Recipe) -> Sequence[LayerSensitivity]: ...
