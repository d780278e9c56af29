"""Trial: one export's samples and what the source answers to them; holds converted model and artefact against it."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters import accuracy
from edgesdk_converters.errors import ContractBroken, ModelError, RecipeError, TargetError
from edgesdk_converters.recipe import Recipe
from edgesdk_targets import bundle as bundles
from edgesdk_targets import efficiency, golden, runner
from edgesdk_targets.bundle import Manifest, Optimization, Runtime
from edgesdk_targets.figure import Figure, counted, unavailable
from edgesdk_targets.measure import machine_facts, peak_memory_bytes
from edgesdk_targets.report import Report, Verdict
from edgesdk_targets.target import Compiled, Segment, Target

if TYPE_CHECKING:
    from edgesdk_converters.calibration import Samples
    from edgesdk_converters.model import Model
    from edgesdk_converters.passes import Given, Pass
    from edgesdk_converters.sensitivity import LayerSensitivity
Array = NDArray[Any]
GOLDEN_CASES = 3
INTEGER = frozenset(["int8", "w8", "w4", "fixed"])
"""Precisions that are not the same function up to rounding."""
KEPT_MODELS = 4
"""Of those between the passes that are kept for the next candidate."""
CALIBRATION_CASES = 128
KEPT_ANSWERS_BYTES = 200_000_000
"""Of the source's outputs on the check data: candidates are held against the same ones."""
SENSITIVITY_CASES = 16
BATCH = 500
"""Samples that a simulator is given at once."""
OWN_BOUND = "state your own bound with --max-relative-error"
EXACT = 1e-5
"""Relative error up to which an fp32 artefact counts as the same function: rounding in another order."""


@dataclass(frozen=True)
class Remedies:
    """What to do where a contract is broken: `ways` come first, as what to give; then a higher `precision` where there is one."""

    ways: tuple[str, ...] = ()
    precision: bool = True

    def hint(self, *bounds: str) -> str:
        """In one line; `bounds` are what else may be given, or be loosened."""
        return self.before(_or(*(["take a higher precision"] if self.precision else []), *bounds))

    def before(self, told: str) -> str:
        """The ways, and then what is told."""
        return f"give {', or '.join(self.ways)}; or {told}" if self.ways else told


class Trial:
    """One export's samples, and what the source answers to them: the yardstick for every step."""

    def __init__(
        self,
        source: Model,
        contract: accuracy.Contract,
        data: str | os.PathLike[str] | Mapping[str, Array] | None,
        train: str | os.PathLike[str] | Mapping[str, Array] | None,
        progress: Callable[[str], None],
        *,
        calibrates: bool = False,
    ) -> None:
        from edgesdk_converters import calibration
        from edgesdk_converters.reference import Reference

        self.source, self.contract, self.progress = source, contract, progress
        self.cost: Callable[[Model], float] | None = None
        self.width_multiple = 1
        self.training_device = "cpu"
        self.notes: list[str] = []
        check = _samples(data, source)
        fit = _samples(train, source)
        if contract.max_drop_points is not None and check is None and fit is None:
            raise ModelError("--max-drop promises an accuracy, but there is no --data to check it on", "give --data FILE.npz")
        one, option = (check, "--data") if fit is None else (fit, "--train")
        wanted = calibrates or (fit is not None and contract.max_drop_points is not None)
        if one is not None and (fit is None or check is None) and wanted:
            fit, check = calibration.split(one)
            twice = len(one) - len(fit) - len(check)
            left = f", {twice} left out as they are among those to check" if twice else ""
            self.notes.append(f"{option} split by seed 0: {len(fit)} samples to calibrate, {len(check)} to check{left}")
        if fit is not None and check is not None:
            self.notes += calibration.refuse_overlap(fit, check)
        if fit is not None and calibrates:
            self.notes += calibration.doubts(fit, check)
        if contract.max_slice_drop_points is not None:
            if check is None or check.slices is None:
                raise ModelError(
                    "--max-slice-drop bounds the worst slice, but the check data have no slices",
                    "add an array named slice to --data, one name or number a sample",
                )
            if check.labels is None and contract.task != "classify":
                raise ModelError("--max-slice-drop needs labels in --data, or --task classify", "add an array named labels")
            accuracy.check_slices(check.slices, contract.max_slice_drop_points)
        self.data_digest = check.digest() if check is not None else ""
        self.check = check
        if contract.metric and (check is None or check.labels is None):
            raise ModelError("--metric needs labels in --data", "give --data FILE.npz with an array named labels")
        if check is not None and contract.max_drop_points is not None:
            accuracy.check_sample_count(len(check), contract.max_drop_points)
            if contract.task == "numeric" and not contract.metric:
                raise ModelError(
                    "--max-drop bounds points of accuracy, of which --task numeric has none", "bound --max-relative-error instead"
                )
            if check.labels is None and contract.task != "classify":
                raise ModelError(
                    "--max-drop needs labels in --data, or --task classify to bound disagreement with the source",
                    "add an array named labels, give --task classify, or bound --max-relative-error",
                )
        synthetic = calibration.synthetic(source, 8) if check is None or fit is None else None
        golden_pool = check if check is not None else synthetic
        assert golden_pool is not None
        self.origin = golden_pool.origin
        self.cases = [dict(case) for case in golden_pool.take(np.arange(min(GOLDEN_CASES, len(golden_pool))))]
        calibrate = fit if fit is not None else (synthetic if synthetic is not None else golden_pool)
        self.lessons = calibrate
        self.calibrate = calibrate.take(np.arange(min(CALIBRATION_CASES, len(calibrate))))
        progress("running the source model")
        self.reference = Reference(source)
        self.wanted = [self.reference.run(case) for case in self.cases]
        self.answers: list[dict[str, Array]] = []
        self._made: dict[str, Model] = {}

    def assume(self, max_drop_points: float, precisions: Set[str]) -> None:
        """Bound the loss of integers on labelled data where the user stated no bound at all."""
        stated = self.contract.max_drop_points is not None or self.contract.max_relative_error is not None
        if stated or not precisions & INTEGER or self.check is None or self.check.labels is None:
            return
        if len(self.check) * max_drop_points >= 100 and self.contract.task != "numeric":
            self.contract = replace(self.contract, max_drop_points=max_drop_points)
            self.notes.append(f"no --max-drop was given: {max_drop_points:g} point is assumed, as integers may lose accuracy")

    @property
    def promised(self) -> bool:
        """Whether there is a bound on what integers may lose."""
        return self.contract.max_drop_points is not None or self.contract.max_relative_error is not None

    def convert(self, recipe: Recipe, bound: float | None) -> Model:
        """The model after all passes; after each, its distance to the source is taken on the golden inputs."""
        from edgesdk_converters.reference import Reference

        given = self.given()
        model = self.source
        for index, step in enumerate(recipe.whole):
            model = self._after(recipe.whole[: index + 1], given)
            session = Reference(model)
            off = accuracy.distance(map(session.run, self.cases), self.wanted)
            if bound is not None and not off.relative <= bound:
                raise ContractBroken(
                    f"pass {step.name} moved output {off.worst!r} by {off.relative:.2g} relative; allowed: {bound:g}",
                    _parity_hint(step.name),
                )
        return model

    def given(self) -> Given:
        """What passes are given."""
        from edgesdk_converters import observe
        from edgesdk_converters.passes import Given

        return Given(
            self.source, self.calibrate, self.progress, observe.default_cache(), self.lessons, self.cost, self.width_multiple,
            None if self.contract.metric else self.contract.max_drop_points,  # training can stop by top-1 alone
            self.training_device,
        )  # fmt: skip

    def _after(self, steps: Sequence[Pass], given: Given) -> Model:
        """The source after some passes; what was done already is not done again, as candidates share their first steps."""
        if not steps:
            return self.source
        key = json.dumps(Recipe(tuple(steps)).to_plain(), sort_keys=True)
        if key not in self._made:
            made = Recipe((steps[-1],)).run(self._after(steps[:-1], given), given)
            if len(self._made) >= KEPT_MODELS:
                self._made.pop(next(reversed(self._made)))  # the oldest are the first steps, which are shared most
            self._made[key] = made
        return self._made[key]

    def most_sensitive(self, recipe: Recipe) -> tuple[LayerSensitivity, ...]:
        """The layers that a recipe's quantise pass turns to integers, those first whose noise is worth most to be rid of.

        Judged on calibration inputs, each layer alone, at the model's outputs; empty where the pass cannot do one layer alone.
        """
        from edgesdk_converters import observe
        from edgesdk_converters.passes import Given
        from edgesdk_converters.quantize import Quantize, named
        from edgesdk_converters.sensitivity import costliest, sensitivity

        place = next((index for index, step in enumerate(recipe.whole) if isinstance(step, Quantize)), None)
        if place is None:
            return ()
        step = recipe.whole[place]
        assert isinstance(step, Quantize)
        given = Given(self.source, self.calibrate, self.progress, observe.default_cache())
        model = named(self._after(recipe.whole[:place], given))
        few = self.calibrate.take(np.arange(min(SENSITIVITY_CASES, len(self.calibrate))))

        def alone(names: tuple[str, ...]) -> Model:
            return replace(step, only=names, keep=(), bias_correction=False, qat=0)(model, given)

        return costliest(sensitivity(model, few, alone, step.layers(model), progress=self.progress))

    def finish(
        self,
        compiled: Compiled,
        manifest: Manifest,
        bound: float,
        begin: float,
        known: Sequence[Figure],
        remedies: Remedies = Remedies(),
    ) -> tuple[Manifest, dict[str, bytes], Report]:
        """Run the compiled artefact, hold the contract, and put figures and golden vectors together.

        `known` are figures that need no run: what was counted, and estimates; `remedies` what to do where the contract is broken.
        """
        facts = machine_facts()
        here = f"this machine ({facts['cpu']}, {facts['architecture']})"
        self.progress("running the artefact")
        loaded, manifest, compiled = self._load(manifest, compiled)
        names = [output.name for output in manifest.signature.outputs]

        def artefact(samples: Samples) -> Iterator[dict[str, Array]]:
            for outputs in _given(loaded, samples):
                yield dict(zip(names, outputs, strict=True))

        known_by = loaded.facts.provenance
        try:
            got, error = self._error(loaded, names)
            _refuse_infinite(error, self.origin, remedies)
            rows = [
                Figure("relative_error", error, known_by, here, f"artefact against source, {loaded.facts}", n=len(got)),
                Figure(
                    "max_abs_error", max(accuracy.max_abs_error(a, b) for a, b in zip(got, self.wanted, strict=True)),
                    known_by, here, f"artefact against source, {loaded.facts}", n=len(got),
                ),
            ]  # fmt: skip
            if self.contract.max_drop_points is None and not error <= bound:
                raise ContractBroken(
                    f"the compiled artefact is {error:.2g} relative from its source; allowed: {bound:g}", remedies.hint(OWN_BOUND)
                )
            verdict, promise, accuracy_rows = self._judge(artefact, loaded.facts, here, remedies)
            if verdict.status == "none":
                text = f"outputs are within {bound:g} relative of the source's on {len(got)} inputs ({self.origin})"
                verdict = Verdict("passed", f"{text}; no accuracy was promised (--data, --max-drop)")
                promise = promise | {"parity": bound}
        finally:
            loaded.close()
        if loaded.facts.fallback:
            provider = manifest.runtime.providers[0].name
            reason = f"{provider} is not here: measure on the board with edgesdk measure"
            if loaded.facts.simulated:  # which is never timed
                reason = f"{loaded.facts.because}: edgesdk verify or edgesdk run, where it is"
            else:
                rows.append(unavailable("latency_ms", manifest.device, reason, "device"))
            rows.append(unavailable("relative_error", manifest.device, reason, "device"))
            verdict = Verdict("pending", f"{verdict.text}; that is on {loaded.facts}, not yet on {provider}")
        entry, golden_files = golden.make(
            self.cases, got, self.wanted, precision=manifest.precision, runtime=str(loaded.facts), origin=self.origin,
            tolerance=golden.CODED if any(step.get("name") in ("payload", "bottleneck") for step in manifest.history) else None,
        )  # fmt: skip
        files = dict(compiled.files) | golden_files
        manifest = replace(manifest, golden=entry, contract=promise | {"status": verdict.status, "text": verdict.text})
        rows += accuracy_rows
        rows += known
        rows += efficiency.compression(rows)
        told = "this whole export, its passes, its checks and the target's tools; without writing the bundle"
        rows.append(Figure("export_s", time.perf_counter() - begin, "measured", here, told, n=1))
        rows.append(
            Figure(
                "export_peak_memory_bytes", peak_memory_bytes(), "measured", here,
                "highest resident size of the exporting process, without the tools that it starts", unit="bytes", n=1,
            )
        )  # fmt: skip
        notes = [
            *manifest.notes,
            *self.notes,
            *(f"{s['name']}: {s['note']}" for s in manifest.history if s.get("note")),
        ]
        report = Report(manifest.name, manifest.target, manifest.device, "", tuple(rows), verdict, facts, tuple(notes))
        return manifest, files, report

    def _load(self, manifest: Manifest, compiled: Compiled) -> tuple[runner.Runner, Manifest, Compiled]:
        """The artefact loaded as it will be, at the highest level of the runtime's own graph rewriting that keeps it exact.

        A rewriting that moves fp32 outputs by more than EXACT is left off, and a note says so.
        """
        names = [output.name for output in manifest.signature.outputs]
        levels: tuple[Optimization, ...] = ("all", "extended", "basic") if manifest.role == "whole" else ("all",)
        tried: list[tuple[float, Optimization]] = []
        for level in levels:
            runtime = replace(manifest.runtime, optimization=level)
            candidate = replace(manifest, runtime=runtime)
            draft = bundles.draft(Path(manifest.name), candidate, compiled.files)
            loaded = runner.load(draft, runner.RunOptions(threads=1, allow_fallback=True))
            error = self._error(loaded, names)[1]
            if error <= EXACT or manifest.precision != "fp32":
                break
            tried.append((error, level))
            loaded.close()
        else:
            error, level = min(tried, key=lambda pair: pair[0])
            candidate = replace(manifest, runtime=replace(manifest.runtime, optimization=level))
            draft = bundles.draft(Path(manifest.name), candidate, compiled.files)
            loaded = runner.load(draft, runner.RunOptions(threads=1, allow_fallback=True))
        chosen = candidate.runtime.optimization
        if loaded.facts.fallback:
            candidate = manifest  # what another provider does to the graph on this CPU says nothing about its own
        elif chosen != "all":
            left_off = f"graph optimisation {chosen!r}: the runtime's own rewriting beyond it moved outputs by {tried[0][0]:.2g}"
            candidate = replace(candidate, notes=(*candidate.notes, left_off))
        return loaded, candidate, replace(compiled, runtime=candidate.runtime)

    def _error(self, loaded: runner.Runner, names: Sequence[str]) -> tuple[list[dict[str, Array]], float]:
        """The artefact's outputs on the golden inputs, and their relative error against the source's."""
        got = [dict(zip(names, loaded.run(case), strict=True)) for case in self.cases]
        return got, accuracy.distance(got, self.wanted).relative

    def _judge(
        self, artefact: Callable[[Samples], Iterator[dict[str, Array]]], facts: runner.RunnerFacts, here: str, remedies: Remedies
    ) -> tuple[Verdict, dict[str, Any], list[Figure]]:
        """Hold the contract on the check data: verdict, what the manifest keeps of it, and rows."""
        check, promised = self.check, self.contract.max_drop_points
        if check is None:
            return Verdict(), {}, []
        first = self.source.signature.outputs[0].name
        before, after = [], []
        off = accuracy.Distance()
        answers = self._answers(check)
        for index, (sample, got) in enumerate(zip(check, artefact(check), strict=True)):
            if index % 200 == 0:
                self.progress(f"checking accuracy: {index} of {len(check)} samples")
            wanted = answers[index] if answers else self.reference.run(sample)
            off.add(got, wanted)
            before.append(wanted[first])
            after.append(got[first])
        worst = off.relative
        _refuse_infinite(worst, check.origin, remedies)
        source, converted = np.stack(before), np.stack(after)
        drop = _drop(self.contract, source, converted, check.labels)
        rows = [
            Figure(
                "relative_error",
                worst,
                facts.provenance,
                here,
                f"worst output over {check.origin}, {facts}",
                segment="check",
                n=len(check),
            )
        ]
        if drop is not None:
            self._doubt_labels(drop, source)
            method = f"{drop.what} on {check.origin}"
            rows = [
                Figure("accuracy", drop.converted, facts.provenance, here, f"{method}, artefact, {facts}", n=drop.n),
                Figure("source_accuracy", drop.source, "measured", here, f"{method}, source, ONNX Runtime", n=drop.n),
                Figure(
                    "accuracy_drop", drop.drop_points, facts.provenance, here,
                    f"{method}, paired; 95 % bound {drop.bound_points:.2f} points", n=drop.n,
                ),
                *rows,
            ]  # fmt: skip
        slices = self._slices(source, converted)
        for name, one in slices.items():
            method = f"{one.what} of this slice, artefact over source; drops {one.drop_points:.2f} points"
            rows.append(Figure("retention", one.retention, facts.provenance, here, method, segment=f"slice {name}", n=one.n))
        keep: dict[str, Any] = {"data_sha256": self.data_digest, "n": len(check)}
        if drop is not None:
            keep |= {"what": drop.what, "source_accuracy": round(drop.source, 6), "accuracy": round(drop.converted, 6)}
        limit = self.contract.max_relative_error
        if limit is not None:
            keep["max_relative_error"] = limit
            if not worst <= limit:
                raise ContractBroken(
                    f"relative error {worst:.2g} on {check.origin}; promised: at most {limit:g}", remedies.hint(OWN_BOUND)
                )
        if slices:
            self._hold_slices(slices, keep, rows, here, remedies)
        if promised is None or drop is None:
            if limit is not None:
                told = f"relative error {worst:.2g}, promised at most {limit:g}, n={len(check)}"
                return Verdict("passed", told + self._slices_held(slices)), keep, rows
            if self.contract.max_slice_drop_points is not None:
                return Verdict("passed", self._slices_held(slices).removeprefix("; ")), keep, rows
            return Verdict(), keep, rows
        text = f"{drop.what} drops {drop.drop_points:.2f} points (95 % bound {drop.bound_points:.2f})"
        text += f", promised at most {promised:g}, n={drop.n}"
        if drop.drop_points > promised:
            raise ContractBroken(f"the compiled artefact: {text}", remedies.hint("a larger --max-drop"))
        return Verdict("passed", text + self._slices_held(slices)), keep | {"max_drop_points": promised}, rows

    def _answers(self, check: Samples) -> list[dict[str, Array]]:
        """The source's outputs on the check data, kept for the next candidate; empty where they are too large to keep."""
        one = sum(array.nbytes for array in self.wanted[0].values())
        if one * len(check) > KEPT_ANSWERS_BYTES:
            return []
        if not self.answers:
            for index, sample in enumerate(check):
                if index % 200 == 0:
                    self.progress(f"running the source model: {index} of {len(check)} samples")
                self.answers.append(self.reference.run(sample))
        return self.answers

    def _slices_held(self, slices: Mapping[str, accuracy.Drop]) -> str:
        """What was promised of slices, and held; empty where nothing was."""
        limit = self.contract.max_slice_drop_points
        if limit is None or not slices:
            return ""
        lost = max(slices, key=lambda name: (slices[name].drop_points, name))
        told = f"the worst of {len(slices)} slices, {lost!r}, drops {slices[lost].drop_points:.2f} points"
        return f"; {told}, promised at most {limit:g}"

    def _doubt_labels(self, drop: accuracy.Drop, source: Array) -> None:
        """A source no better than chance means wrong labels or wrong preprocessing: a note says so, once."""
        classes = source[0].size
        if drop.what != "top-1 accuracy" or drop.n < 100 or classes < 2 or drop.source > 1.5 / classes:
            return
        note = f"the source itself reaches {drop.source:.1%} on {classes} classes: are labels and preprocessing right?"
        if note not in self.notes:
            self.notes.append(note)

    def _slices(self, source: Array, converted: Array) -> dict[str, accuracy.Drop]:
        """What each slice of the check data loses; empty without slices, or where there is no accuracy."""
        check = self.check
        if check is None or check.slices is None or _drop(self.contract, source, converted, check.labels) is None:
            return {}

        def drop(indices: Array) -> accuracy.Drop:
            labels = None if check.labels is None else check.labels[indices]
            found = _drop(self.contract, source[indices], converted[indices], labels)
            assert found is not None  # as it was for the whole
            return found

        return accuracy.by_slice(check.slices, drop)

    def _hold_slices(
        self, slices: Mapping[str, accuracy.Drop], keep: dict[str, Any], rows: list[Figure], here: str, remedies: Remedies
    ) -> None:
        """Add the worst slice to the rows, and hold the contract on it."""
        worst = min(slices, key=lambda name: (slices[name].retention, name))
        lost = max(slices, key=lambda name: (slices[name].drop_points, name))
        told = f"{worst!r} of {len(slices)} slices keeps the least"
        rows.append(Figure("worst_slice_retention", slices[worst].retention, "measured", here, told, n=slices[worst].n))
        limit = self.contract.max_slice_drop_points
        if limit is None:
            return
        keep |= {"max_slice_drop_points": limit, "worst_slice": lost}
        if slices[lost].drop_points > limit:
            raise ContractBroken(
                f"slice {lost!r} drops {slices[lost].drop_points:.2f} points of {slices[lost].what} (n={slices[lost].n}); "
                f"promised: at most {limit:g} on every slice",
                remedies.hint("more calibration data of that slice", "a larger --max-slice-drop"),
            )


def _given(loaded: runner.Runner, samples: Samples) -> Iterator[Sequence[Array]]:
    """What the artefact gives for each sample; many at once where its runner is made for that."""
    if not isinstance(loaded, runner.Batched):
        yield from map(loaded.run, samples)
        return
    for start in range(0, len(samples), BATCH):
        part = samples.take(np.arange(start, min(start + BATCH, len(samples))))
        yield from loaded.run_many([dict(sample) for sample in part])


def _refuse_infinite(error: float, origin: str, remedies: Remedies) -> None:
    """A promise in points does not cover answers that overflow, or that are not 0 where every answer of the source is."""
    if not math.isfinite(error):
        raise ContractBroken(
            f"the compiled artefact is infinitely far, relative, from its source on {origin}: it overflows, or gives something "
            "where the source gives only zeros; no such error is allowed", remedies.before(_parity_hint("half")),
        )  # fmt: skip


def _drop(contract: accuracy.Contract, source: Array, converted: Array, labels: Array | None) -> accuracy.Drop | None:
    if contract.metric:
        assert labels is not None
        return accuracy.metric_drop(load_metric(contract.metric), source, converted, labels)
    if labels is not None and contract.task != "numeric":
        return accuracy.top1_drop(source, converted, labels)
    if contract.task == "classify":
        return accuracy.disagreement(source, converted)
    return None


def load_metric(location: str) -> Callable[[Array, Array], float]:
    """The callable of `package.module:callable`; the working directory is searched too.

    Raises RecipeError where there is none, and when it is called, where it fails or gives no finite number.
    """
    module, _, name = location.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise RecipeError(f"--metric {location!r}: {error}", "give package.module:callable(outputs, labels) -> float") from error
    if not callable(found):
        raise RecipeError(f"--metric {location!r} is no callable", "give package.module:callable(outputs, labels) -> float")

    def metric(outputs: Array, labels: Array) -> float:
        try:
            value = float(found(outputs, labels))
        except Exception as error:  # a user's code, which may raise anything
            raise RecipeError(
                f"--metric {location!r} must give a number; it raised {type(error).__name__}: {error}", "repair the metric"
            ) from error
        if not math.isfinite(value):
            raise RecipeError(f"--metric {location!r} must give a finite number; it gave {value}", "repair the metric")
        return value

    metric.__name__ = name
    return metric


def _samples(data: str | os.PathLike[str] | Mapping[str, Array] | None, source: Model) -> Samples | None:
    from edgesdk_converters.calibration import Samples

    if data is None:
        return None
    if isinstance(data, Mapping):
        return Samples.from_arrays(data, source.signature, "the given arrays")
    return Samples.load(data, source.signature)


def source_size(source: Model) -> Figure:
    return counted("source_bytes", source.proto.ByteSize(), "size of the source as ONNX")


def artefact_size(backend: Target, files: Mapping[str, bytes], runtime: Runtime) -> Figure:
    """Of those files that the target says go onto the device."""
    names = backend.artefact(files, runtime)
    if not names or not set(names) <= set(files):
        told = f"target {backend.name} says that {', '.join(names) or 'nothing'} goes onto the device"
        raise TargetError(told, f"its artefact() has to name files of the bundle: {', '.join(sorted(files))}")
    told = f"size of {names[0]}"
    if len(names) > 1:
        told = f"size of {len(names)} files: {', '.join(sorted({f'*{PurePath(name).suffix}' for name in names}))}"
    return counted("artifact_bytes", sum(len(files[name]) for name in names), told)


def known_of(backend: Target, segment: Segment, compiled: Compiled, precision: str) -> list[Figure]:
    """What is counted in a compiled segment, and what the target estimates for it."""
    from edgesdk_converters.cost import layers, total

    size = artefact_size(backend, compiled.files, compiled.runtime)
    try:
        records = layers(segment.model)
    except ModelError as error:
        reason = f"needs static shapes: {error.message}"
        return [size, *(unavailable(name, backend.device.name, reason) for name in ("latency_ms", "macs"))]
    sums = total(records)
    rows = [size]
    rows += [counted("macs", sums.macs, "counted from the graph"), counted("params", sums.params, "counted from the graph")]
    return rows + [row for row in backend.estimate_segment(segment, records, precision) if row.layer is None]


def _parity_hint(step: str) -> str:
    if step == "half":
        return "give real inputs with --data, more --set half.headroom=16, or a bound of your own with --max-relative-error"
    return Remedies().hint(OWN_BOUND)


def _or(*told: str) -> str:
    return ", or ".join(part for part in (", ".join(told[:-1]), told[-1]) if part)
