"""Choose: candidates of an export are made and held against the contract; the fastest that holds it is kept.

A candidate that breaks the contract is repaired first, where its quantiser allows: each rung of the ladder is a recipe of
its own, so that what is kept can be repeated to the byte without looking for it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgesdk_converters.errors import ContractBroken, EdgeError, ModelError, PassError, RecipeError, Unsupported
from edgesdk_converters.recipe import Recipe
from edgesdk_targets import bundle as bundles
from edgesdk_targets import runner
from edgesdk_targets.figure import Figure
from edgesdk_targets.measure import machine_facts, side_by_side
from edgesdk_targets.target import Target

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer
    from edgesdk_converters.model import Model
    from edgesdk_targets.bundle import Manifest

    from .exporting import Prepared
    from .trial import Trial

AUTO = "auto"
WORTH = 1.05
"""A precision that loses accuracy must be at least this much faster than a better one to be kept."""
COSTLIEST = 3
DENSE_SHARE = 0.5
"""Of all MACs, in dense layers, from which on dynamic int8 counts as int8."""
LARGEST_FLOAT_SHARE = 0.5
"""Of the weighted layers that may stay in float in a mixed precision: with more, little of int8 is left."""


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
    """What came of a candidate: the finished export, or why there is none, then with the artefact that broke the contract."""

    candidate: Candidate
    prepared: Prepared | None = None
    error: EdgeError | None = None
    broken: Draft | None = None
    speed: Figure | None = None
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


Build = Callable[[Candidate], Attempt]


def candidates(backend: Target, precision: str, recipe: Recipe | None, settings: Mapping[str, str]) -> tuple[Candidate, ...]:
    """The ways to try for a precision: one for a given recipe, some for int8, all that the target has for `auto`.

    Raises RecipeError for settings of passes that none of them has.
    """
    if recipe is not None:
        return (Candidate(precision, precision, recipe.with_settings(settings)),)
    asked = list(backend.precisions) if precision == AUTO else [precision]
    plain: list[Candidate] = []
    for each in asked:
        for name, data in backend.variants(each).items():
            plain.append(Candidate(name, each, Recipe.from_plain(data, f"target {backend.name}")))
    known = {step.name for candidate in plain for step in candidate.recipe.whole}
    for key in settings:
        if key.partition(".")[0] not in known:
            raise RecipeError(f"--set {key}: no recipe of {backend.name} for {precision} has that pass; known: "
                              f"{', '.join(sorted(known))}")  # fmt: skip
    found: list[Candidate] = []
    for candidate in plain:
        names = {step.name for step in candidate.recipe.whole}
        own = {key: value for key, value in settings.items() if key.partition(".")[0] in names}
        set_up = replace(candidate, recipe=candidate.recipe.with_settings(own))
        if set_up.recipe not in [other.recipe for other in found]:  # settings may make two alike
            found.append(set_up)
    return tuple(found)


def fitting(found: Sequence[Candidate], model: Model) -> tuple[Candidate, ...]:
    """Without those that would leave most of the network's work in float: dynamic int8 knows dense layers alone."""
    from edgesdk_converters.cost import layers
    from edgesdk_converters.quantize import Quantize

    try:
        work = [(layer.op, layer.macs) for layer in layers(model)]
    except ModelError:
        return tuple(found)
    dense = sum(macs for op, macs in work if op in ("Gemm", "MatMul"))
    if dense >= DENSE_SHARE * sum(macs for _, macs in work):
        return tuple(found)
    few = [c for c in found if any(isinstance(s, Quantize) and s.flavour == "dynamic" for s in c.recipe.whole)]
    return tuple(candidate for candidate in found if candidate not in few) or tuple(found)


def choose(found: Sequence[Candidate], build: Build, trial: Trial, backend: Target, on: str | None) -> Prepared:
    """The fastest of the candidates that holds the contract, its report telling of all of them.

    Speed is measured side by side where the bundle is for this machine (or `on` is "local": this machine is the device),
    and estimated elsewhere. Of those that break the contract the fastest are repaired first, and none that could not be
    faster than what holds already. A single candidate without repairs is made as it is. Raises what the candidate raises,
    or ContractBroken where none holds.
    """
    if len(found) == 1 and not found[0].repairs:
        only = _only(found[0], build)
        if only.prepared is None:
            raise _broken([only], trial) from only.error
        return only.prepared

    def tried(candidate: Candidate) -> Attempt:
        trial.progress(f"trying {candidate.name}")
        try:
            return build(candidate.settled())
        except (ContractBroken, PassError, Unsupported) as error:
            return Attempt(candidate.settled(), error=error)

    plain = [tried(candidate) for candidate in found]
    base = next((one for one in plain if one.prepared is not None and one.candidate.precision == "fp32"), None)
    if base is None and "fp32" in backend.precisions:
        base = tried(Candidate("fp32", "fp32", Recipe.from_plain(backend.recipe("fp32"), f"target {backend.name}")))

    def timed(attempts: Sequence[Attempt]) -> list[Attempt]:
        return _timed(attempts, base, trial, backend, on)

    groups = [[one] for one in timed(plain)]
    _repair(found, groups, tried, timed, trial)
    attempts = [one for group in groups for one in group]
    holding = [one for one in attempts if one.prepared is not None]
    if not holding:
        raise _broken(attempts, trial)
    ranked = timed(holding) if len(holding) > 1 else holding
    best = ranked[0]
    for attempt in ranked[1:]:
        if attempt.gain > WORTH * best.gain:
            best = attempt
    return _told(best, attempts, ranked)


def _only(candidate: Candidate, build: Build) -> Attempt:
    try:
        return build(candidate)
    except ContractBroken as error:
        return Attempt(candidate, error=error)


def _repair(
    found: Sequence[Candidate],
    groups: list[list[Attempt]],
    tried: Callable[[Candidate], Attempt],
    timed: Callable[[Sequence[Attempt]], list[Attempt]],
    trial: Trial,
) -> None:
    """Adds to each group what became of its repairs, the fastest candidate first."""
    holding = [group[0] for group in groups if group[0].prepared is not None]
    best = max(holding, key=lambda one: one.gain, default=None)
    for index in sorted(range(len(found)), key=lambda index: -groups[index][0].gain):
        first, candidate = groups[index][0], found[index]
        if not isinstance(first.error, ContractBroken) or not candidate.repairs:
            continue
        if best is not None and first.gain <= WORTH * best.gain:
            groups[index][0] = replace(first, remark=f"; not repaired: it could be no faster than {best.candidate.name}")
            continue
        attempts = _repaired(candidate, tried, trial)
        groups[index] += attempts
        done = next((one for one in attempts if one.prepared is not None), None)
        if done is not None:
            (done,) = timed([one for one in attempts if one.prepared is not None][-1:])
            if best is None or done.gain > best.gain:
                best = done


def _repaired(candidate: Candidate, tried: Callable[[Candidate], Attempt], trial: Trial) -> list[Attempt]:
    """The repairs of a candidate in their order, until one holds the contract."""
    attempts: list[Attempt] = []

    def kept(one: Candidate) -> Attempt:
        attempts.append(tried(one))
        return attempts[-1]

    for repaired in _ladder(candidate, trial):
        if kept(repaired).prepared is not None:
            return attempts
    _mixed(attempts[-1].candidate if attempts else candidate, kept, trial)
    return attempts


def _ladder(candidate: Candidate, trial: Trial) -> Iterator[Candidate]:
    """Repairs that cost no speed, in order, each with those before it; then rotation, which costs some."""
    from edgesdk_converters import find

    name = candidate.name
    weights_alone = any(getattr(step, "flavour", "") in ("weights", "stored") for step in candidate.recipe.whole)
    if not candidate.needs_calibration and (not weights_alone or trial.calibrate.synthetic):
        return
    now = candidate.with_quantize(f"{name} +bias correction", bias_correction=True)
    yield now
    if weights_alone:
        return
    now = now.with_pass_before(find("equalize")(), f"{name} +equalisation +bias correction")
    yield now
    now = now.with_quantize(f"{name} +equalisation +bias correction +clip search", calibration="mse")
    yield now
    if any(node.op_type in ("LayerNormalization", "Softmax") for node in trial.source.proto.graph.node):
        yield now.with_pass_before(find("rotate")(), f"{name} +equalisation +rotation +bias correction +clip search")


def _mixed(candidate: Candidate, tried: Callable[[Candidate], Attempt], trial: Trial) -> None:
    """Mixed precision: the fewest of the most sensitive layers in float with which the contract holds, by bisection.

    Layers are ordered by noise per MAC: what is won for what it costs (a knapsack, filled greedily).
    """
    order = [one.layer for one in trial.most_sensitive(candidate.recipe)]
    if not order:
        return
    limit = max(1, int(LARGEST_FLOAT_SHARE * len(order)))
    low, high = 0, 1
    name = candidate.name

    def holds(count: int) -> bool:
        kept = tuple(sorted(order[:count]))
        return tried(candidate.with_quantize(f"{name} +{count} layers in float", keep=kept)).prepared is not None

    while not holds(high):
        low = high
        if high == limit:
            return
        high = min(2 * high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle


def _timed(
    attempts: Sequence[Attempt], base: Attempt | None, trial: Trial, backend: Target, on: str | None
) -> list[Attempt]:  # fmt: skip
    """The attempts, those with an artefact with its speed relative to fp32 and where that comes from."""
    if base is None or base.artefact is None:
        return list(attempts)
    if on == "local" or backend.device.name == "this-machine":
        return _measured(attempts, base, trial)
    ranked = []
    for attempt in attempts:
        made = attempt.artefact
        speed = None if made is None else backend.speed_ratio(made.layers, attempt.candidate.precision)
        ranked.append(replace(attempt, speed=speed))
    return ranked


def _measured(attempts: Sequence[Attempt], base: Attempt, trial: Trial) -> list[Attempt]:
    trial.progress("timing the candidates side by side")
    loaded: dict[str, runner.Runner] = {}
    try:
        for attempt in (base, *attempts):
            made = attempt.artefact
            if made is not None and attempt.candidate.name not in loaded:
                draft = bundles.draft(Path(made.manifest.name), made.manifest, made.files)
                loaded[attempt.candidate.name] = runner.load(draft, runner.RunOptions(allow_fallback=True))
        times = side_by_side({name: _once(one, trial.cases[0]) for name, one in loaded.items()})
    finally:
        for one in loaded.values():
            one.close()
    reference = np.asarray(times[base.candidate.name])
    facts = machine_facts()
    where = f"this machine ({facts['cpu']}, {facts['architecture']})"
    ranked = []
    for attempt in attempts:
        if attempt.artefact is None:
            ranked.append(attempt)
            continue
        own = np.asarray(times[attempt.candidate.name])
        ratio = float(np.median(reference) / np.median(own))
        method = f"fp32 {np.median(reference):.3g} ms over {np.median(own):.3g} ms, medians, run in turn in one process"
        ranked.append(replace(attempt, speed=Figure("speed_ratio", ratio, "measured", where, method, n=len(own))))
    return ranked


def _once(one: runner.Runner, feed: Mapping[str, Any]) -> Callable[[], object]:
    return lambda: one.run(feed)


def _told(best: Attempt, attempts: Sequence[Attempt], ranked: Sequence[Attempt]) -> Prepared:
    """The winner, with the story of the choice in its report."""
    speeds = {attempt.candidate.name: attempt.speed for attempt in ranked}
    rows, notes = [], []
    for attempt in attempts:
        speed = speeds.get(attempt.candidate.name)
        kept = attempt.candidate is best.candidate
        rows.append(_row(attempt, speed, "kept" if kept else "", best))
    prepared = best.prepared
    assert prepared is not None
    report = prepared.report
    if best.speed is not None and best.candidate.precision != "fp32":
        report = replace(report, rows=(*report.rows, best.speed))
    notes.append(_reason(best, ranked))
    judged = sum(1 for attempt in attempts if attempt.prepared is not None or isinstance(attempt.error, ContractBroken))
    if judged > 1:
        notes.append(f"{judged} candidates were judged on the same check data: the chosen one's accuracy is a little flattered")
    return replace(prepared, report=replace(report, candidates=tuple(rows), notes=(*report.notes, *notes)))


def _row(attempt: Attempt, speed: Figure | None, kept: str, best: Attempt) -> dict[str, Any]:
    row: dict[str, Any] = {"name": attempt.candidate.name, "precision": attempt.candidate.precision}
    if attempt.prepared is None:
        broken = isinstance(attempt.error, ContractBroken)
        assert attempt.error is not None
        row |= {"status": "broken" if broken else "not made", "why": attempt.error.message + attempt.remark}
        return row
    report = attempt.prepared.report
    drop, size = report.find("accuracy_drop"), report.find("artifact_bytes")
    row |= {
        "status": kept or "holds",
        "why": "" if kept else _slower(attempt, speed, best),
        "accuracy_drop_points": None if drop is None else drop.value,
        "artifact_bytes": None if size is None else size.value,
        "recipe": attempt.prepared.recipe.to_plain(),
    }
    if speed is not None:
        row["speed_ratio"], row["provenance"], row["where"] = speed.value, speed.provenance, speed.where
    return row


def _slower(attempt: Attempt, speed: Figure | None, best: Attempt) -> str:
    if speed is None or speed.value is None or best.speed is None or best.speed.value is None:
        return "its speed is not known"
    if attempt.candidate.precision != "fp32" and speed.value < 1:
        return "slower than fp32"
    if speed.value > best.speed.value:
        return f"not {WORTH:g} times as fast as {best.candidate.name}, which comes first"
    return f"no faster than {best.candidate.name}"


def _reason(best: Attempt, ranked: Sequence[Attempt]) -> str:
    """Why this one, in a line."""
    told = []
    for attempt in ranked:
        if attempt is not best and attempt.speed is not None and attempt.speed.value is not None:
            told.append(f"{attempt.candidate.name} {attempt.speed.value:.2f}x")
    if best.speed is None or best.speed.value is None:
        return f"{best.candidate.name} kept: speeds are not known"
    basis = {"measured": "measured here", "estimated": "estimated"}.get(best.speed.provenance, best.speed.provenance)
    others = f"; {', '.join(told)}" if told else ""
    if best.candidate.precision != "fp32" and best.speed.value < 1:
        return f"{best.candidate.name} {best.speed.value:.2f}x of fp32's speed, {basis}: SLOWER than fp32 here{others}"
    return f"{best.candidate.name} kept: {best.speed.value:.2f}x of fp32's speed, {basis}{others}"


def _broken(attempts: Sequence[Attempt], trial: Trial) -> EdgeError:
    """One error for the whole: what broke first, which layers cost most, what would hold."""
    broken = [attempt for attempt in attempts if isinstance(attempt.error, ContractBroken)]
    if not broken:
        assert attempts[0].error is not None
        return attempts[0].error
    first, last = broken[0], broken[-1]
    assert isinstance(first.error, ContractBroken)
    costly = trial.most_sensitive(first.candidate.recipe)[:COSTLIEST]
    if not costly:
        return first.error
    told = ", ".join(f"{one.layer} ({one.output_sqnr_db:.0f} dB alone)" for one in costly)
    message = f"{first.candidate.name}: {first.error.message}; the layers that cost most: {told}"
    if len(broken) > 1:
        assert last.error is not None
        message += f"; {len(broken) - 1} repairs did not do either, the last ({last.candidate.name}): {last.error.message}"
        return ContractBroken(message, "--precision auto keeps what holds; or --precision fp16, or a larger --max-drop")
    repaired = "--set quantize.repair=true tries repairs" if not first.candidate.repairs else "--precision auto keeps what holds"
    return ContractBroken(message, f"{repaired}; or --precision fp16, or a larger --max-drop")
