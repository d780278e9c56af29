"""Split choice: an export in two parts, whose precisions are chosen by the road of whole models, one part after the other.

First the head's, beside a tail in float: its candidates are timed as heads, on the device. Then the tail's beside that head,
timed as tails, on the server. Each candidate is held against the contract as both parts together, each in its own runtime.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgesdk_converters.errors import ContractBroken, RecipeError
from edgesdk_converters.recipe import Recipe
from edgesdk_targets import bundle as bundles
from edgesdk_targets.split_runner import head_and_tail, point_tails
from edgesdk_targets.target import Target, make

from . import choose
from .candidate import Attempt, Candidate, Draft
from .ranking import Basis, basis
from .split_figures import leaks, point_rows
from .splitting import ROLES, Cutting, Pair
from .trial import INTEGER, SENSITIVITY_CASES

if TYPE_CHECKING:
    from edgesdk_converters.model import Model
    from edgesdk_converters.passes import Pass
    from edgesdk_converters.sensitivity import LayerSensitivity

    from .exporting import Prepared

Part = Literal["head", "tail"]
Finish = Callable[[Pair], "Prepared"]
"""Holds a pair against the contract. Raises ContractBroken."""
FLOAT = "fp32"


@dataclass(frozen=True)
class Asked:
    """The ways to make a part: `candidates`, whose recipes have in `whole` the passes after the cut, for a target.

    `by` is where their speed comes from, `asked` that it was asked for; `before` are the passes that come before the cut,
    of a head.
    """

    backend: Target
    by: Basis
    candidates: tuple[Candidate, ...]
    before: tuple[Pass, ...] = ()
    asked: bool = False

    def in_float(self) -> Asked:
        """Without the integers, of which one was not promised."""
        return replace(self, candidates=tuple(one for one in self.candidates if one.precision not in INTEGER) or self.candidates)

    @property
    def settled(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.candidates) == 1 and not self.candidates[0].repairs

    def float_steps(self, after: int) -> tuple[Pass, ...]:
        """The target's own passes for fp32, without so many at the front."""
        return Recipe.from_plain(self.backend.recipe(FLOAT), f"target {self.backend.name}").whole[after:]


def head_of(candidates: Sequence[Candidate], recipe: Recipe | None, before: int, backend: Target, by: Basis) -> Asked:
    """The ways to make a head, from those to make a whole network: of their passes so many come before the cut.

    A recipe says itself which. Raises RecipeError for quantisation-aware training of a head.
    """
    if recipe is not None:
        (only,) = candidates
        return Asked(backend, by, (replace(only, recipe=Recipe(only.recipe.head)),), only.recipe.whole)
    steps = candidates[0].recipe.whole
    if any(getattr(step, "qat", 0) for candidate in candidates for step in candidate.recipe.whole):
        raise RecipeError(
            "--qat with --split: it learns the answers of a network, and a head has none",
            "leave --qat out (--bottleneck trains what is cut), or put the pass quantize with qat into [[tail]] of a recipe",
        )
    return Asked(backend, by, tuple(replace(one, recipe=Recipe(one.recipe.whole[before:])) for one in candidates), steps[:before])


def tail_of(name: str, server: str | None, precision: str, recipe: Recipe | None, settings: Mapping[str, str]) -> Asked:
    """The ways to make a tail: all of its target's for auto, else in float, or as a recipe says.

    Raises RecipeError where `server`, a device, is none of the target `name`, and for a target that has no float.
    """
    if server is not None and name not in ("server", make(None, server).name):
        raise RecipeError(
            f"--server {server} is no {name}, which --tail-target names", "give one of them: a device implies its target"
        )
    backend = make(name if server is None else None, server)
    if FLOAT not in backend.precisions:
        told = f"target {backend.name} has {', '.join(backend.precisions)} alone, and a tail begins in float whatever is chosen"
        raise RecipeError(told, "give --tail-target server, jetson or raspberry-pi, or a --server of these")
    if recipe is not None:
        told = _precision_of(recipe.tail)
        found: tuple[Candidate, ...] = (Candidate(told, told, Recipe(recipe.with_settings(settings).tail)),)
    elif precision == choose.AUTO:
        ways = [plain for each in backend.precisions for plain in backend.variants(each).values()]
        known = {step["pass"] for plain in ways for step in plain["whole"]}
        own = {key: value for key, value in settings.items() if key.partition(".")[0] in known}
        found = choose.candidates(backend, choose.AUTO, None, own)
    else:
        found = (Candidate(FLOAT, FLOAT, Recipe.from_plain(backend.recipe(FLOAT), f"target {backend.name}")),)
    return Asked(backend, basis(backend, None), found)


def _precision_of(steps: Sequence[Pass]) -> str:
    """What a part's passes make of its numbers, as exports call it."""
    for step in reversed(steps):
        if step.name == "half":
            return "fp16"
        if step.name == "quantize":
            flavour, bits = getattr(step, "flavour", ""), getattr(step, "bits", 8)
            return f"w{bits}" if flavour in ("weights", "stored") else "fixed" if flavour == "fixed" else "int8"
    return FLOAT


def split_export(cutting: Cutting, head: Asked, tail: Asked, finish: Finish, made_by: str) -> Prepared:
    """The bundle of a split model in the precisions that were chosen, its report telling of all that was tried.

    Raises ContractBroken where no head holds the contract beside a tail in float, or no tail beside the head that does.
    """
    choice = _Choice(cutting, finish, made_by)
    if head.settled and tail.settled:
        (one,), (other,) = head.candidates, tail.candidates
        return _told_of_points(cutting, choice.alone("head", one, other))
    beside = tail.candidates[0]
    if not tail.settled and beside.precision != FLOAT:
        beside = Candidate(FLOAT, FLOAT, Recipe(tail.float_steps(0)))
    made = choice.of("head", head, beside)
    if not tail.settled:
        made = choice.then(made, tail)
    return _told_of_points(cutting, made)


class _Choice:
    def __init__(self, cutting: Cutting, finish: Finish, made_by: str) -> None:
        self.cutting, self.finish, self.made_by = cutting, finish, made_by
        self.made: dict[str, Attempt] = {}
        self.drafts: dict[str, dict[str, Draft]] = {}

    def alone(self, part: Part, one: Candidate, other: Candidate) -> Prepared:
        attempt = self._built(self._beside(part, one, other), other.precision)
        if attempt.prepared is None:
            assert attempt.error is not None
            raise attempt.error
        return attempt.prepared

    def of(self, part: Part, asked: Asked, other: Candidate) -> Prepared:
        """The fastest candidate of a part that holds the contract, the other part being as it is."""
        found = choose.fitting(asked.candidates, self.cutting.plain[ROLES.index(part)])
        plain = None
        if FLOAT in asked.backend.precisions:
            steps = asked.float_steps(1 if part == "head" else 0)
            plain = self._beside(part, Candidate(FLOAT, FLOAT, Recipe(steps)), other)

        def build(candidate: Candidate) -> Attempt:
            return self._built(candidate, other.precision)

        return choose.choose(
            [self._beside(part, one, other) for one in found], build, PartTrial(self.cutting, part), asked.backend, asked.by,
            plain, asked=asked.asked,
        )  # fmt: skip

    def then(self, before: Prepared, asked: Asked) -> Prepared:
        """The same with the tail's precision chosen too, and the stories of both choices in the report."""
        raw = next(one.prepared for one in self.made.values() if one.prepared and one.prepared.recipe == before.recipe)
        self.made = {key: one for key, one in self.made.items() if one.prepared is raw}
        head = Candidate(before.manifest.precision, before.manifest.precision, Recipe(before.recipe.head))
        found = self.of("tail", asked, head)
        told, first = found.report, before.report
        rows = (*told.rows, *first.rows[len(raw.report.rows) :])
        notes = (*first.notes[len(raw.report.notes) :], *told.notes)
        return replace(found, report=replace(told, rows=rows, notes=notes, candidates=(*first.candidates, *told.candidates)))

    def _beside(self, part: Part, one: Candidate, other: Candidate) -> Candidate:
        """A candidate for a part as a recipe for both."""
        head, tail = (one, other) if part == "head" else (other, one)
        recipe = Recipe(self.cutting.steps, head.recipe.whole, tail.recipe.whole, self.cutting.cut)
        return Candidate(f"{part} {one.name}", one.precision, recipe, part)

    def _built(self, candidate: Candidate, other: str) -> Attempt:
        """One candidate, held against the contract or broken by it; what was made once is not made again."""
        key = json.dumps(candidate.recipe.to_plain(), sort_keys=True)
        if key not in self.made:
            precisions = (candidate.precision, other) if candidate.section == "head" else (other, candidate.precision)
            pair = Pair(self.cutting, candidate.recipe, precisions, self.made_by)
            made = Attempt(candidate)
            try:
                made = replace(made, prepared=self.finish(pair))
            except ContractBroken as error:
                made = replace(made, error=error)
            self.made[key] = made
            self.drafts[key] = {"head": pair.part("head"), "tail": pair.part("tail")}
        return replace(self.made[key], candidate=candidate, part=self.drafts[key][candidate.section])


class PartTrial:
    """What choosing asks of the trial of a part: its model and inputs; what layers cost is judged at the network's outputs."""

    def __init__(self, cutting: Cutting, part: Part) -> None:
        self._cutting, self._part = cutting, part
        given = cutting.given(part)
        self.source: Model = given.source
        self.calibrate = given.train
        self.cases = cutting.trial.cases
        self.progress = given.progress

    def most_sensitive(self, recipe: Recipe) -> Sequence[LayerSensitivity]:
        """The layers of the part that its quantise pass turns to integers, each alone in the whole network, those first whose
        noise is worth most to be rid of; empty where the pass cannot do one layer alone."""
        from edgesdk_converters.quantize import Quantize, named
        from edgesdk_converters.sensitivity import costliest, sensitivity

        steps: tuple[Pass, ...] = getattr(recipe, self._part)
        place = next((index for index, step in enumerate(steps) if isinstance(step, Quantize)), None)
        if place is None:
            return ()
        step, before = steps[place], Recipe(steps[:place])
        assert isinstance(step, Quantize)
        given = self._cutting.trial.given()
        part = named(before.run(self.source, self._cutting.given(self._part)))
        whole = named(before.run(self._cutting.whole, given))
        made_by = {name: node.name for node in whole.proto.graph.node for name in node.output}
        layers = set(step.layers(part))
        found = {
            made_by[node.output[0]]: node.name
            for node in part.proto.graph.node
            if node.name in layers and node.output[0] in made_by
        }
        samples = self._cutting.trial.calibrate
        few = samples.take(np.arange(min(SENSITIVITY_CASES, len(samples))))

        def alone(names: tuple[str, ...]) -> Model:
            return replace(step, only=names, keep=(), bias_correction=False, qat=0)(whole, given)

        costs = sensitivity(whole, few, alone, list(found), progress=self.progress)
        return costliest([replace(one, layer=found[one.layer]) for one in costs])


def _told_of_points(cutting: Cutting, made: Prepared) -> Prepared:
    """With the figures that only what ships needs: of operating points, and of what crosses tells of the input."""
    if cutting.learned is None:
        return made
    bundle = bundles.draft(Path(made.manifest.name), made.manifest, made.files)
    head, _ = head_and_tail(bundle)
    whole = cutting.learned["channels"][-1]
    points = {channels: tail for channels, tail in sorted(point_tails(bundle).items()) if channels != whole}
    rows = [*point_rows(cutting.trial, head, points), *leaks(cutting.trial, cutting.before, cutting.whole, cutting.learned)]
    return replace(made, report=replace(made.report, rows=(*made.report.rows, *rows)))
