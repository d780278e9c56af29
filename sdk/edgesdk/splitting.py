"""Splitting: an export in two parts. The head goes to the device, the tail to a server; together they hold the contract.

Both are whole bundles that lie inside that of the split model: the same files run both in one place, or each in its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters import accuracy, fields
from edgesdk_converters.errors import ModelError
from edgesdk_converters.recipe import Recipe
from edgesdk_targets import bundle as bundles
from edgesdk_targets import golden, runner
from edgesdk_targets.bundle import CPU, MANIFEST, Bundle, Manifest, Optimization, Runtime
from edgesdk_targets.figure import Figure, counted
from edgesdk_targets.link import Link
from edgesdk_targets.report import Report
from edgesdk_targets.split_runner import HEAD, TAIL, point_name, point_tail
from edgesdk_targets.target import Compiled, Role, Segment, Target

from .candidate import Draft, Section
from .split_figures import bytes_of
from .trial import EXACT, Remedies, Trial, known_of, source_size

if TYPE_CHECKING:
    from edgesdk_converters.calibration import Samples
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
    """The parts of a split model as bundles; `points` are tails for fewer channels of a bottleneck, `coded` is what crosses."""

    head: Bundle
    tail: Bundle
    points: Mapping[int, Bundle]
    coded: Sequence[Mapping[str, Array]] = ()


class Cutting:
    """A network after its passes, and where it is cut: what every precision of head and tail begins with.

    `steps` and `cut` are those of the recipe: with the payload's passes, and the tensors that cross after them.
    """

    def __init__(
        self, devices: tuple[Target, Target], steps: tuple[Pass, ...], cut: tuple[str, ...], how: Splitting, trial: Trial
    ) -> None:
        from edgesdk_converters.payload import ENDING, Payload
        from edgesdk_converters.split import split

        self.devices, self.trial = devices, trial
        self.whole = trial.convert(Recipe(steps), None)
        place = next((index for index, step in enumerate(steps) if step.name == "bottleneck"), 0)
        self.before = trial.convert(Recipe(steps[:place]), None)
        self.learned = next((step.options for step in self.whole.history if step.name == "bottleneck"), None)
        cut = cut or (() if self.learned is None else (self.learned["crosses"],))
        if not cut:
            if how.link is not None and how.at == AUTO:
                from .planning import chosen_by_plan

                found, why = chosen_by_plan(self.whole, *devices, how.link, bits=how.bits, progress=trial.progress)
            else:
                found, why = chosen(self.whole, how)
            trial.notes.append(f"cut at {', '.join(found.tensors)}: {why}")
            cut = found.tensors
            for name, dtype in zip(found.tensors, found.dtypes, strict=True):
                if how.bits < 32 and (dtype == "float32" or len(found.tensors) == 1):
                    trial.progress("pass payload")
                    payload = Payload(at=name, bits=how.bits)
                    self.whole, steps = payload(self.whole, trial.given()), (*steps, payload)
                    cut = tuple(f"{name}{ENDING}" if at == name else at for at in cut)
        self.steps, self.cut, self.notes = steps, cut, (_kind(self.learned),)
        self.plain = split(self.whole, cut)

    @property
    def packed(self) -> bool:
        """Whether what crosses has fewer bits than it was computed with."""
        return any(step.name in ("payload", "bottleneck") and getattr(step, "bits", 32) < 32 for step in self.steps)

    @functools.cached_property
    def crossing(self) -> Samples:
        """What the head gives, before any precision, for the samples to calibrate with: those that a tail is calibrated with."""
        self.trial.progress("running the head on the samples to calibrate with")
        return self._after_head(self.trial.calibrate)

    @functools.cached_property
    def lessons(self) -> Samples:
        """The same for all samples that may be learned from."""
        if len(self.trial.lessons) == len(self.trial.calibrate):
            return self.crossing
        self.trial.progress("running the head on the samples to learn from")
        return self._after_head(self.trial.lessons)

    def _after_head(self, found: Samples) -> Samples:
        from edgesdk_converters.calibration import Samples
        from edgesdk_converters.reference import Reference

        head = Reference(self.plain[0])
        rows = [head.run(sample) for sample in found]
        leading = {name: value.ndim > 0 and len(value) == 1 for name, value in rows[0].items()}
        arrays = {
            name: np.concatenate([row[name] for row in rows]) if leading[name] else np.stack([row[name] for row in rows])
            for name in rows[0]
        }
        return Samples(arrays, f"{found.origin}, after the head", found.labels, found.slices, leading, found.synthetic)

    def given(self, role: Section, steps: Sequence[Pass] = ()) -> Given:
        """What `steps`, passes of a part, are given: its own model as the source, and inputs of its own."""
        given = self.trial.given()
        if role == "head":
            return replace(given, source=self.plain[0])
        lessons = self.lessons if any(map(_learns, steps)) else self.crossing
        return replace(given, source=self.plain[1], train=self.crossing, lessons=lessons)


class Pair:
    """Head and tail in a precision each: `recipe` has the passes of both. Raises what passes and targets raise."""

    def __init__(self, cutting: Cutting, recipe: Recipe, precisions: tuple[str, str], made_by: str) -> None:
        self.cutting, self.recipe, self.precisions, self.made_by = cutting, recipe, precisions, made_by
        self.trial, self.devices = cutting.trial, cutting.devices
        self.parts = (self._converted("head"), self._converted("tail"))
        self.notes = [*cutting.notes, *self._passes_told()]
        self.segments = tuple(Segment(part, role) for part, role in zip(self.parts, ROLES, strict=True))
        for device, segment in zip(self.devices, self.segments, strict=True):
            self.trial.progress(f"checking the {segment.role} against {device.device.name}")
            device.check(segment)
        self.compiled = tuple(device.compile(segment) for device, segment in zip(self.devices, self.segments, strict=True))
        self.points = {} if cutting.learned is None else self._narrow(cutting.learned)
        self.inner = self._exact()

    def _converted(self, role: Literal["head", "tail"]) -> Model:
        steps: tuple[Pass, ...] = getattr(self.recipe, role)
        part = self.cutting.plain[ROLES.index(role)]
        return Recipe(steps).run(part, self.cutting.given(role, steps)) if steps else part

    def _passes_told(self) -> list[str]:
        """What the passes of a part say of it."""
        found = []
        for role, plain, part in zip(ROLES, self.cutting.plain, self.parts, strict=True):
            found += [f"{role}: {step.name}: {step.note}" for step in part.history[len(plain.history) :] if step.note]
        return found

    def _narrow(self, learned: Mapping[str, Any]) -> dict[int, tuple[Model, Model, Compiled]]:
        """Tails for fewer channels than cross at most, by their number: before their passes, after them, and compiled."""
        from edgesdk_converters.bottlenecks.points import narrowed

        made = {}
        for point in learned["channels"][:-1]:
            self.trial.progress(f"compiling the tail for {point} channels")
            plain = narrowed(self.cutting.plain[1], point, learned["coded"], learned["bits"])
            given, width = self.cutting.given("tail", self.recipe.tail), int(plain.signature.inputs[0].shape[1])

            def fewer(samples: Samples, width: int = width) -> Samples:
                arrays = {name: np.ascontiguousarray(rows[:, :width]) for name, rows in samples.arrays.items()}
                return replace(samples, arrays=arrays)

            lessons = fewer(given.lessons or given.train)
            tail = Recipe(self.recipe.tail).run(plain, replace(given, source=plain, train=fewer(given.train), lessons=lessons))
            made[point] = (plain, tail, self.devices[1].compile(Segment(tail, "tail")))
        return made

    def _exact(self) -> Inner:
        """The parts at the highest level of the runtime's own graph rewriting that keeps fp32 exact."""
        levels: tuple[Optimization, ...] = ("all", "extended", "basic")
        tried = []
        for level in levels if set(self.precisions) == {"fp32"} else levels[:1]:
            inner = self._inner(level)
            tried.append((self._error(inner), level, inner))
            if tried[-1][0] <= EXACT:
                break
        _, level, inner = min(tried, key=lambda one: one[0])
        if level != "all":
            self.notes.append(
                f"graph optimisation {level!r}: the runtime's own rewriting beyond it moved outputs by {tried[0][0]:.2g}"
            )
        return inner

    def finished(self, bound: float, begin: float) -> tuple[Manifest, dict[str, bytes], Report]:
        """The bundle of both, held against the contract as a whole. Raises ContractBroken."""
        outer, files = self._outer(self.inner)
        compiled = replace(self.compiled[0], files=files, runtime=outer.runtime, plan=(), notes=())
        known = self._known(self.inner)
        manifest, everything, report = self.trial.finish(compiled, outer, bound, begin, known, self._remedies())
        vectors, tail = manifest.golden, self.inner.tail.manifest.golden
        assert vectors is not None and tail is not None
        loosest = max(vectors.tolerance, tail.tolerance)  # what the tail alone may differ by, both may
        rows = tuple(self._placed(row) if row.value is None and row.segment == "device" else row for row in report.rows)
        return replace(manifest, golden=replace(vectors, tolerance=loosest)), everything, replace(report, rows=rows)

    def _remedies(self) -> Remedies:
        """What to do where both together are too far from the source: first what the cut has to do with it."""
        ways = []
        if self.cutting.learned is not None:
            ways.append("more channels, or epochs (--bottleneck N, --set bottleneck.mimic=N, bottleneck.tune=N)")
        if self.cutting.packed:
            ways.append("more --payload-bits")
        return Remedies(tuple(ways), precision=not ways or set(self.precisions) != {"fp32"})

    def _placed(self, row: Figure) -> Figure:
        """A figure that is missing, as a part does not run on a CPU alone: missing where the first such part is to run."""
        parts = (self.inner.head.manifest, self.inner.tail.manifest)
        return replace(row, where=next((part.device for part in parts if part.runtime.providers[0].name != CPU), row.where))

    def part(self, role: Literal["head", "tail"]) -> Draft:
        """One of the two alone, to be timed with what it is given when both run."""
        from edgesdk_converters.cost import layers

        made = self.inner.head if role == "head" else self.inner.tail
        assert made.files is not None
        try:
            found = layers(self.parts[ROLES.index(role)])
        except ModelError:
            found = ()  # shapes that are not static
        return Draft(made.manifest, made.files, found, None if role == "head" else self.inner.coded[0])

    def _inner(self, level: Optimization) -> Inner:
        """Head and tails as bundles with golden vectors of their own; what the head gives are the inputs of the tails'."""
        plain = self.cutting.plain
        head, coded = self._bundle("head", self.parts[0], self.compiled[0], level, self.trial.cases, plain[0])
        tail, _ = self._bundle("tail", self.parts[1], self.compiled[1], level, coded, plain[1])
        points = {}
        for point, (before, model, compiled) in self.points.items():
            width = int(model.signature.inputs[0].shape[1])
            fewer = [{name: np.ascontiguousarray(value[:, :width]) for name, value in case.items()} for case in coded]
            name = point_name(self.trial.source.name, point)
            points[point], _ = self._bundle("tail", model, compiled, level, fewer, before, name)
        return Inner(head, tail, points, coded)

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

        trial, device = self.trial, self.devices[ROLES.index(role)]
        manifest = Manifest(
            name=name or trial.source.name, target=device.name, device=device.device.name,
            precision=self.precisions[ROLES.index(role)], signature=part.signature,
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
        every = {p.name: p for part in (inner.head, inner.tail) for p in part.manifest.runtime.providers}
        # The first is what is told to be missing, which a CPU never is.
        providers = tuple(sorted(every.values(), key=lambda provider: provider.name == CPU))
        runtime = Runtime(name="split", file=f"{HEAD}/{MANIFEST}", minimum="", providers=providers)
        manifest = Manifest(
            name=trial.source.name, target=device.name, device=device.device.name, precision=self.precisions[0],
            signature=self.cutting.whole.signature, runtime=runtime, role="split",
            model=_model(trial.source, self.cutting.whole) | self._digests(inner),
            recipe=self.recipe.to_plain(), history=tuple(fields.plain(step) for step in self.cutting.whole.history),
            notes=tuple(self.notes), made_by=self.made_by,
        )  # fmt: skip
        return manifest, files

    def _digests(self, inner: Inner) -> dict[str, Any]:
        """Of the parts, and of the tails for fewer channels by their number."""
        found: dict[str, Any] = {"head": inner.head.digest, "tail": inner.tail.digest}
        if self.cutting.learned is not None:
            found["channels"] = self.cutting.learned["channels"][-1]
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
        for place, role in enumerate(ROLES):
            found = known_of(
                self.devices[place],
                self.segments[place],
                self.compiled[place],
                (inner.head, inner.tail)[place].manifest.precision,
            )
            rows += [replace(row, segment=role) for row in found]
        return rows


ROLES: tuple[Role, Role] = ("head", "tail")


def _learns(step: Pass) -> bool:
    """Whether it learns from `Given.lessons`: it trains, or prunes by a criterion that does."""
    trains = any(getattr(step, name, 0) for name in ("qat", "epochs", "finetune"))
    return trains or getattr(step, "criterion", "magnitude") != "magnitude"


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
