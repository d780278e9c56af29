"""Splitting: an export in two parts. The head goes to the device, the tail to a server; together they hold the contract.

Both are whole bundles that lie inside that of the split model: the same files run both in one place, or each in its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters import accuracy, fields
from edgesdk_converters.errors import ModelError
from edgesdk_converters.recipe import Recipe
from edgesdk_targets import bundle as bundles
from edgesdk_targets import golden, runner
from edgesdk_targets.bundle import MANIFEST, Bundle, Manifest, Optimization, Runtime
from edgesdk_targets.figure import Figure, counted
from edgesdk_targets.link import Link
from edgesdk_targets.report import Report
from edgesdk_targets.split_runner import HEAD, TAIL, point_name, point_tail
from edgesdk_targets.target import Compiled, Role, Segment, Target

from .split_figures import bytes_of, leaks, point_rows
from .trial import EXACT, Trial, known_of, source_size

if TYPE_CHECKING:
    from edgesdk_converters.model import Model
    from edgesdk_converters.passes import Given, Pass
    from edgesdk_converters.split import Cut

Array = NDArray[Any]
AUTO = "auto"


@dataclass(frozen=True)
class Splitting:
    """Where to cut and what crosses.

    `at` is a tensor, two with a comma between them, or auto: the cut with the fewest bytes of those whose head has at most
    `head_share` of the MACs. `bits` below 32 quantise and pack what crosses; 32 sends the tensor as it is. With `link` auto takes
    the cut with the least time over it.
    """

    at: str = AUTO
    bits: int = 32
    head_share: float = 0.25
    link: Link | None = None

    def __post_init__(self) -> None:
        if self.bits != 32 and not 2 <= self.bits <= 8:
            raise ModelError(f"the payload has {self.bits} bits a value; allowed: 2 to 8, or 32 for the tensor as it is")
        if not 0 < self.head_share <= 1:
            raise ModelError(f"the head may have {self.head_share} of the MACs; allowed: above 0, up to 1")


def chosen(model: Model, how: Splitting) -> tuple[Cut, str]:
    """The cut to make in a model, and why. Raises ModelError where there is none."""
    from edgesdk_converters.split import cuts

    found = cuts(model)
    if how.at != AUTO:
        names = (how.at,) if "," not in how.at or any(cut.tensors == (how.at,) for cut in found) else tuple(how.at.split(","))
        for cut in found if len(names) == 1 else cuts(model, pairs=True):
            if set(cut.tensors) == set(names):
                return cut, "as asked"
        from edgesdk_converters.split import split

        split(model, names)  # says why it is none
        raise ModelError(f"{how.at!r} is no cut of {model.name}", "edgesdk cuts MODEL lists them")
    if not found:
        raise ModelError(
            f"{model.name} has no tensor through which all paths go",
            "edgesdk cuts MODEL --fold --pairs lists pairs of tensors, of which --split A,B takes one",
        )
    whole = found[0].head_macs + found[0].tail_macs
    cheap = [cut for cut in found if cut.head_macs <= how.head_share * whole]
    if not cheap:
        raise ModelError(
            f"no cut of {model.name} has a head of at most {how.head_share:.0%} of the MACs; the cheapest has "
            f"{min(cut.head_macs for cut in found) / max(whole, 1):.1%}", "give --head-share, or --split TENSOR",
        )  # fmt: skip
    best = min(cheap, key=lambda cut: (cut.bytes, cut.head_macs))
    return best, f"the fewest bytes of {len(cheap)} cuts whose head has at most {how.head_share:.0%} of the MACs"


@dataclass(frozen=True)
class Inner:
    """The parts of a split model as bundles; `points` are tails for fewer channels of a bottleneck."""

    head: Bundle
    tail: Bundle
    points: Mapping[int, Bundle]


@dataclass(frozen=True)
class Sections:
    """The passes of a recipe for which the cut may not be known yet."""

    whole: tuple[Pass, ...]
    head: tuple[Pass, ...]
    tail: tuple[Pass, ...]
    split: tuple[str, ...] = ()


def split_export(
    devices: tuple[Target, Target],
    precision: str,
    sections: Sections,
    how: Splitting,
    trial: Trial,
    bound: float,
    begin: float,
    made_by: str,
) -> tuple[Manifest, dict[str, bytes], Report, Recipe]:
    """The bundle of a split model, checked as a whole, its report, and the recipe with the cut that was chosen.

    `devices` are the targets of head and tail. Raises ContractBroken where both together lose more than was promised.
    """
    run = _Run(devices, precision, sections, how, trial, made_by)
    return run.finished(bound, begin)


class _Run:
    def __init__(
        self, devices: tuple[Target, Target], precision: str, sections: Sections, how: Splitting, trial: Trial, made_by: str
    ) -> None:
        from edgesdk_converters.payload import ENDING, Payload
        from edgesdk_converters.split import split

        self.devices, self.precision, self.trial, self.made_by = devices, precision, trial, made_by
        steps = sections.whole
        self.whole = trial.convert(Recipe(steps), None)
        self.notes: list[str] = []
        place = next((index for index, step in enumerate(steps) if step.name == "bottleneck"), 0)
        self.before = trial.convert(Recipe(steps[:place]), None)
        self.learned = next((step.options for step in self.whole.history if step.name == "bottleneck"), None)
        self.cut = sections.split or (() if self.learned is None else (self.learned["crosses"],))
        if not self.cut:
            if how.link is not None and how.at == AUTO:
                from .planning import chosen_by_plan

                cut, why = chosen_by_plan(self.whole, *devices, how.link, bits=how.bits, progress=trial.progress)
            else:
                cut, why = chosen(self.whole, how)
            trial.notes.append(f"cut at {', '.join(cut.tensors)}: {why}")
            self.cut = cut.tensors
            for name, dtype in zip(cut.tensors, cut.dtypes, strict=True):
                if how.bits < 32 and (dtype == "float32" or len(cut.tensors) == 1):
                    trial.progress("pass payload")
                    payload = Payload(at=name, bits=how.bits)
                    self.whole, steps = payload(self.whole, trial.given()), (*steps, payload)
                    self.cut = tuple(f"{name}{ENDING}" if at == name else at for at in self.cut)
        self.recipe = Recipe(steps, sections.head, sections.tail, self.cut)
        self.notes.append(_kind(self.learned))
        head, tail = split(self.whole, self.cut)
        self.plain = (head, tail)
        given = trial.given()
        self.parts = (self._converted(head, self.recipe.head, given), self._converted(tail, self.recipe.tail, given))
        self.segments = tuple(Segment(part, role) for part, role in zip(self.parts, _ROLES, strict=True))
        for device, segment in zip(devices, self.segments, strict=True):
            trial.progress(f"checking the {segment.role} against {device.device.name}")
            device.check(segment)
        self.compiled = tuple(device.compile(segment) for device, segment in zip(devices, self.segments, strict=True))
        self.points = {} if self.learned is None else self._narrow(self.learned)

    def _converted(self, part: Model, steps: Sequence[Pass], given: Given) -> Model:
        return Recipe(tuple(steps)).run(part, replace(given, source=part))

    def _narrow(self, learned: Mapping[str, Any]) -> dict[int, tuple[Model, Compiled]]:
        """Tails for fewer channels than cross at most, by their number."""
        from edgesdk_converters.bottlenecks.points import narrowed

        made = {}
        for point in learned["channels"][:-1]:
            self.trial.progress(f"compiling the tail for {point} channels")
            tail = narrowed(self.parts[1], point, learned["coded"], learned["bits"])
            made[point] = (tail, self.devices[1].compile(Segment(tail, "tail")))
        return made

    def finished(self, bound: float, begin: float) -> tuple[Manifest, dict[str, bytes], Report, Recipe]:
        levels: tuple[Optimization, ...] = ("all", "extended", "basic")
        tried = []
        for level in levels if self.precision == "fp32" else levels[:1]:
            inner = self._inner(level)
            tried.append((self._error(inner), level, inner))
            if tried[-1][0] <= EXACT:
                break
        _, level, inner = min(tried, key=lambda one: one[0])
        if level != "all":
            self.notes.append(
                f"graph optimisation {level!r}: the runtime's own rewriting beyond it moved outputs by {tried[0][0]:.2g}"
            )
        outer, files = self._outer(inner)
        compiled = replace(self.compiled[0], files=files, runtime=outer.runtime, plan=(), notes=())
        manifest, everything, report = self.trial.finish(compiled, outer, bound, begin, self._known(inner))
        if self.points:
            report = replace(report, rows=(*report.rows, *point_rows(self.trial, inner.head, inner.points)))
        if self.learned is not None:
            report = replace(report, rows=(*report.rows, *leaks(self.trial, self.before, self.whole, self.learned)))
        return manifest, everything, report, self.recipe

    def _inner(self, level: Optimization) -> Inner:
        """Head and tails as bundles with golden vectors of their own; what the head gives are the inputs of the tails'."""
        head, coded = self._bundle("head", self.parts[0], self.compiled[0], level, self.trial.cases, self.plain[0])
        tail, _ = self._bundle("tail", self.parts[1], self.compiled[1], level, coded, self.plain[1])
        points = {}
        for point, (model, compiled) in self.points.items():
            width = int(model.signature.inputs[0].shape[1])
            fewer = [{name: np.ascontiguousarray(value[:, :width]) for name, value in case.items()} for case in coded]
            name = point_name(self.trial.source.name, point)
            points[point], _ = self._bundle("tail", model, compiled, level, fewer, model, name)
        return Inner(head, tail, points)

    def _bundle(
        self,
        role: Role,
        part: Model,
        compiled: Compiled,
        level: Optimization,
        cases: Sequence[Mapping[str, Array]],
        plain: Model,
        name: str = "",
    ) -> tuple[Bundle, list[dict[str, Array]]]:
        """One part as a bundle, and what it makes of these cases; `plain` is the part as it was before it was converted."""
        from edgesdk_converters.reference import Reference

        trial, device = self.trial, self.devices[_ROLES.index(role)]
        manifest = Manifest(
            name=name or trial.source.name, target=device.name, device=device.device.name,
            precision=self.precision if role == "head" else "fp32", signature=part.signature,
            runtime=replace(compiled.runtime, optimization=level),
            role=role, model=_model(trial.source, part), recipe=self.recipe.to_plain(),
            history=tuple(fields.plain(step) for step in part.history), plan=compiled.plan, notes=compiled.notes,
            made_by=self.made_by,
        )  # fmt: skip
        wanted = [Reference(plain).run(case) for case in cases]
        loaded = runner.load(bundles.draft(Path(role), manifest, compiled.files), runner.RunOptions(1, allow_fallback=True))
        try:
            names = [output.name for output in part.signature.outputs]
            got = [dict(zip(names, loaded.run(case), strict=True)) for case in cases]
        finally:
            loaded.close()
        packed = role == "head" and all(spec.dtype == "uint8" for spec in part.signature.outputs)
        entry, vectors = golden.make(
            cases, got, wanted, precision=manifest.precision, runtime=str(loaded.facts), origin=trial.origin,
            tolerance=golden.PACKED if packed else None,
        )  # fmt: skip
        return bundles.draft(Path(f"{role}.edge"), replace(manifest, golden=entry), {**compiled.files, **vectors}), got

    def _outer(self, inner: Inner) -> tuple[Manifest, dict[str, bytes]]:
        trial, device = self.trial, self.devices[0]
        files = bundles.inside(inner.head, HEAD) | bundles.inside(inner.tail, TAIL)
        for point, tail in inner.points.items():
            files |= bundles.inside(tail, point_tail(point))
        runtime = Runtime(
            name="split", file=f"{HEAD}/{MANIFEST}", minimum="",
            providers=tuple({p.name: p for part in (inner.head, inner.tail) for p in part.manifest.runtime.providers}.values()),
        )  # fmt: skip
        manifest = Manifest(
            name=trial.source.name, target=device.name, device=device.device.name, precision=self.precision,
            signature=self.whole.signature, runtime=runtime, role="split",
            model=_model(trial.source, self.whole) | self._digests(inner),
            recipe=self.recipe.to_plain(), history=tuple(fields.plain(step) for step in self.whole.history),
            notes=tuple(self.notes), made_by=self.made_by,
        )  # fmt: skip
        return manifest, files

    def _digests(self, inner: Inner) -> dict[str, Any]:
        """Of the parts, and of the tails for fewer channels by their number."""
        found: dict[str, Any] = {"head": inner.head.digest, "tail": inner.tail.digest}
        if self.learned is not None:
            found["channels"] = self.learned["channels"][-1]
            found["points"] = {str(point): tail.digest for point, tail in inner.points.items()}
        return found

    def _error(self, inner: Inner) -> float:
        manifest, files = self._outer(inner)
        loaded = runner.load(bundles.draft(Path("split"), manifest, files), runner.RunOptions(1, allow_fallback=True))
        try:
            names = [output.name for output in manifest.signature.outputs]
            got = [dict(zip(names, loaded.run(case), strict=True)) for case in self.trial.cases]
        finally:
            loaded.close()
        return accuracy.distance(got, self.trial.wanted).relative

    def _known(self, inner: Inner) -> list[Figure]:
        """Totals first: what crosses; then each part's own figures."""
        crossing = sum(bytes_of(spec) for spec in inner.head.manifest.signature.outputs)
        inputs = sum(bytes_of(spec) for spec in inner.head.manifest.signature.inputs)
        rows = [
            counted(
                "link_bytes", crossing, f"the tensors that cross, without what a protocol adds; the input has {inputs:,}", "link"
            ),
            source_size(self.trial.source),
        ]
        for place, role in enumerate(_ROLES):
            found = known_of(
                self.devices[place],
                self.segments[place],
                self.compiled[place],
                (inner.head, inner.tail)[place].manifest.precision,
            )
            rows += [replace(row, segment=role) for row in found]
        return rows


_ROLES: tuple[Role, Role] = ("head", "tail")


def _kind(learned: Mapping[str, Any] | None) -> str:
    if learned is None:
        return "a plain cut: the network's own tensor crosses, not that of a learned bottleneck"
    if learned["placement"] == "cut":
        return (
            "an autoencoder at the cut: the network as it was up to there, and what a learned encoder makes of its tensor crosses"
        )
    return "a distilled bottleneck: a learned encoder runs on the device, not the network's own first layers"


def _model(source: Model, part: Model) -> dict[str, Any]:
    return {"source": source.digest, "sha256": part.digest, "opset": part.opset, "ir": part.proto.ir_version}
