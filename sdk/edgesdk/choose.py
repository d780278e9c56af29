"""Choose: candidates of an export are made and held against the contract; the fastest that holds it is kept.

A candidate that breaks the contract is repaired first, where its quantiser allows: each rung of the ladder is a recipe of
its own, so that what is kept can be repeated to the byte without looking for it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgesdk_converters.errors import ContractBroken, EdgeError, ModelError, PassError, RecipeError, Unsupported
from edgesdk_converters.recipe import Recipe
from edgesdk_targets.figure import Figure
from edgesdk_targets.target import Target

from .candidate import Attempt, Candidate, Yardstick
from .ranking import WORTH, Basis, Ranking, told
from .repairs import repaired

if TYPE_CHECKING:
    from edgesdk_converters.model import Model
    from edgesdk_converters.passes import Pass

    from .exporting import Prepared

AUTO = "auto"
COSTLIEST = 3
DENSE_SHARE = 0.5
"""Of all MACs, in dense layers, from which on dynamic int8 counts as int8."""

LOWER = "or --precision fp16, or a larger --max-drop"
MORE_BITS = (
    "give more bits: --set bits=N, or --set quantize.widths=NODE=BITS for single nodes; or train them, --qat EPOCHS; "
    "or a larger --max-drop or --max-relative-error"
)

Build = Callable[[Candidate], Attempt]


def candidates(
    backend: Target, precision: str, recipe: Recipe | None, settings: Mapping[str, str], shrinking: Sequence[Pass] = ()
) -> tuple[Candidate, ...]:
    """The ways to try for a precision: one for a given recipe, some for int8, all that the target has for `auto`.

    The passes of `shrinking` come after the first of the target's own.

    Raises RecipeError for settings of passes that none of them has.
    """
    if recipe is not None:
        return (Candidate(precision, precision, recipe.with_settings(settings)),)
    asked = list(backend.precisions) if precision == AUTO else [precision]
    plain: list[Candidate] = []
    for each in asked:
        for name, data in backend.variants(each).items():
            steps = Recipe.from_plain(data, f"target {backend.name}").whole
            plain.append(Candidate(name, each, Recipe((*steps[:1], *shrinking, *steps[1:]))))
    known = {step.name for candidate in plain for step in candidate.recipe.whole}
    for key in settings:
        if key.partition(".")[0] not in known:
            raise RecipeError(f"--set {key}: no recipe of {backend.name} for {precision} has that pass; known: "
                              f"{', '.join(sorted(known))}")  # fmt: skip
    found: list[Candidate] = []
    refused: list[PassError] = []
    for candidate in plain:
        names = {step.name for step in candidate.recipe.whole}
        own = {key: value for key, value in settings.items() if key.partition(".")[0] in names}
        try:
            set_up = replace(candidate, recipe=candidate.recipe.with_settings(own))
        except PassError as error:  # a width or a training that this way does not have, and another may
            refused.append(error)
            continue
        if set_up.recipe not in [other.recipe for other in found]:  # settings may make two alike
            found.append(set_up)
    if not found:
        raise refused[0]
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
    few = [c for c in found if any(isinstance(s, Quantize) and s.flavour == "dynamic" for s in c.steps)]
    return tuple(candidate for candidate in found if candidate not in few) or tuple(found)


def choose(
    found: Sequence[Candidate],
    build: Build,
    trial: Yardstick,
    backend: Target,
    by: Basis,
    plain: Candidate | None = None,
    *,
    asked: bool = False,
) -> Prepared:
    """The fastest of the candidates that holds the contract, its report telling of all of them.

    `by` says where speed comes from, `asked` that it was asked for; `plain` is the fp32 that speed is relative to, by default the
    target's own. Of those that break the contract the fastest are repaired first, and none that could not be faster than what
    holds already. A single candidate without repairs is made as it is. Raises what the candidate raises, or ContractBroken where
    none holds.
    """
    if len(found) == 1 and not found[0].repairs:
        only = _only(found[0], build)
        if only.prepared is None:
            raise _broken([only], trial, backend) from only.error
        return only.prepared

    def tried(candidate: Candidate) -> Attempt:
        trial.progress(f"trying {candidate.name}")
        try:
            return build(candidate.settled())
        except (ContractBroken, PassError, Unsupported) as error:
            return Attempt(candidate.settled(), error=error)

    first = [tried(candidate) for candidate in found]
    base = next((one for one in first if one.prepared is not None and one.candidate.precision == "fp32"), None)
    if base is None and "fp32" in backend.precisions:
        base = tried(plain or Candidate("fp32", "fp32", Recipe.from_plain(backend.recipe("fp32"), f"target {backend.name}")))
    ranking = Ranking(by, backend, base, trial, asked=asked)
    groups = [[one] for one in ranking.ranked(first)]
    _repair(found, groups, tried, ranking, trial)
    finalists = [one for one in map(_held, groups) if one is not None]
    if len(finalists) > 1:
        finalists = [one for one in ranking.ranked(finalists) if one.prepared is not None]
    attempts = [one for group in groups for one in group]
    if not finalists:
        raise _broken(attempts, trial, backend)
    best = finalists[0]
    for attempt in finalists[1:]:
        if attempt.gain > ranking.needed(attempt, best) * best.gain:
            best = attempt
    return _told(best, attempts, finalists, ranking, backend)


def _held(group: Sequence[Attempt]) -> Attempt | None:
    """Of a candidate and its repairs the last that holds the contract: that with the fewest layers in float."""
    return next((one for one in reversed(group) if one.prepared is not None), None)


def _only(candidate: Candidate, build: Build) -> Attempt:
    try:
        return build(candidate)
    except ContractBroken as error:
        return Attempt(candidate, error=error)


def _repair(
    found: Sequence[Candidate],
    groups: list[list[Attempt]],
    tried: Callable[[Candidate], Attempt],
    ranking: Ranking,
    trial: Yardstick,
) -> None:
    """Adds to each group what became of its repairs, the fastest candidate first."""

    def fastest() -> Attempt | None:
        held = (one for one in map(_held, groups) if one is not None)
        return max(held, key=lambda one: one.gain, default=None)

    best = fastest()
    for index in sorted(range(len(found)), key=lambda index: -groups[index][0].gain):
        first, candidate = groups[index][0], found[index]
        if not isinstance(first.error, ContractBroken) or not candidate.repairs:
            continue
        if best is not None and first.gain <= WORTH * best.gain:
            groups[index][0] = replace(first, remark=f"; not repaired: no faster than {best.candidate.name}")
            continue
        groups[index] += repaired(candidate, tried, trial)
        done = _held(groups[index])
        if done is not None:
            by = ranking.by
            (timed,) = ranking.ranked([done])
            groups[index][groups[index].index(done)] = timed
            if ranking.by != by:  # the emulator failed: what it had counted is nothing to compare an estimate with
                for group in groups:
                    group[:] = [one if one.speed is None else ranking.ranked([one])[0] for one in group]
            best = fastest()


def _told(best: Attempt, attempts: Sequence[Attempt], ranked: Sequence[Attempt], ranking: Ranking, backend: Target) -> Prepared:
    """The winner, with the story of the choice in its report."""
    speeds = {attempt.candidate.name: attempt.speed for attempt in ranked}
    rows, notes = [], []
    for attempt in attempts:
        speed = speeds.get(attempt.candidate.name, attempt.speed)
        kept = attempt.candidate is best.candidate
        rows.append(_row(attempt, speed, "kept" if kept else "", best))
    prepared = best.prepared
    assert prepared is not None
    report, part = prepared.report, best.candidate.section
    found = [best.speed] if best.speed is not None and best.candidate.precision != "fp32" else []
    found = [replace(row, segment=part) if row.segment == "whole" else row for row in (*found, *best.rows)]
    report = replace(report, rows=(*report.rows, *found))
    is_choice = len(backend.precisions) > 1 or len(attempts) > 1
    notes += [*([_reason(best, ranked)] if is_choice else []), *ranking.notes(best, ranked)]
    judged = sum(1 for attempt in attempts if attempt.prepared is not None or isinstance(attempt.error, ContractBroken))
    if judged > 1:
        of = "" if part == "whole" else f" for the {part}"
        notes.append(
            f"{judged} candidates{of} were judged on the same check data: the chosen one's accuracy is a little flattered"
        )
    return replace(prepared, report=replace(report, candidates=tuple(rows), notes=(*report.notes, *notes)))


def _row(attempt: Attempt, speed: Figure | None, kept: str, best: Attempt) -> dict[str, Any]:
    row: dict[str, Any] = {"name": attempt.candidate.name, "precision": attempt.candidate.precision}
    if attempt.prepared is None:
        broken = isinstance(attempt.error, ContractBroken)
        assert attempt.error is not None
        row |= {"status": "broken" if broken else "not made", "why": attempt.error.message + attempt.remark}
        return row if speed is None else row | _speed(speed)
    report = attempt.prepared.report
    drop, size = report.find("accuracy_drop"), report.find("artifact_bytes", attempt.candidate.section)
    row |= {
        "status": kept or "holds",
        "why": "" if kept else _slower(attempt, speed, best),
        "accuracy_drop_points": None if drop is None else drop.value,
        "artifact_bytes": None if size is None else size.value,
        "recipe": attempt.prepared.recipe.to_plain(),
    }
    return row if speed is None else row | _speed(speed)


def _speed(speed: Figure) -> dict[str, Any]:
    return {speed.name: speed.value, "provenance": speed.provenance, "where": speed.where}


def _slower(attempt: Attempt, speed: Figure | None, best: Attempt) -> str:
    if speed is None or speed.value is None or best.speed is None or best.speed.value is None:
        return "its speed is not known"
    counted = speed.provenance == "emulated"
    if attempt.candidate.precision != "fp32" and speed.value < 1:
        return "more instructions than fp32" if counted else "slower than fp32"
    if attempt.candidate.name.split(" +")[0] == best.candidate.name.split(" +")[0]:
        return f"{best.candidate.name} leaves less in float"
    if counted:
        beside = f"{best.speed.value / speed.value:.3f}x the instructions of {best.candidate.name}"
        return f"{beside}, which comes first" if speed.value > best.speed.value else beside
    if speed.value > best.speed.value:
        return f"not {WORTH:g} times as fast as {best.candidate.name}, which comes first"
    if speed.provenance == "estimated" and attempt.candidate.precision == best.candidate.precision != "fp32":
        return f"the estimate does not tell it from {best.candidate.name}, which comes first"
    return f"no faster than {best.candidate.name}"


def _reason(best: Attempt, ranked: Sequence[Attempt]) -> str:
    """Why this one, in a line."""
    told_of = []
    for attempt in ranked:
        if attempt is not best and attempt.speed is not None and attempt.speed.value is not None:
            told_of.append(f"{attempt.candidate.name} {attempt.speed.value:.2f}x")
    if best.speed is None or best.speed.value is None:
        return f"{best.candidate.name} kept: speeds are not known"
    others = f"; {', '.join(told_of)}" if told_of else ""
    if best.candidate.precision != "fp32" and best.speed.value < 1:
        return f"{best.candidate.name}: {told(best.speed)}: SLOWER than fp32{others}"
    return f"{best.candidate.name} kept: {told(best.speed)}{others}"


def _broken(attempts: Sequence[Attempt], trial: Yardstick, backend: Target) -> EdgeError:
    """One error for the whole: what broke first, which layers cost most, what would hold."""
    broken = [attempt for attempt in attempts if isinstance(attempt.error, ContractBroken)]
    if not broken:
        assert attempts[0].error is not None
        return attempts[0].error
    first, last = broken[0], broken[-1]
    assert isinstance(first.error, ContractBroken)
    costly = trial.most_sensitive(first.candidate.recipe)[:COSTLIEST]
    more_bits = MORE_BITS if set(backend.precisions) == {"fixed"} else ""  # there is no other precision to go to
    if not costly:
        return ContractBroken(first.error.message, more_bits) if more_bits else first.error
    told = ", ".join(f"{one.layer} ({one.output_sqnr_db:.0f} dB alone)" for one in costly)
    message = f"{first.candidate.name}: {first.error.message}; the layers that cost most: {told}"
    if len(broken) > 1:
        assert last.error is not None
        message += f"; {len(broken) - 1} repairs did not do either, the last ({last.candidate.name}): {last.error.message}"
        return ContractBroken(message, more_bits or f"--precision auto keeps what holds; {LOWER}")
    repaired = "--set quantize.repair=true tries repairs" if not first.candidate.repairs else "--precision auto keeps what holds"
    return ContractBroken(message, more_bits or f"{repaired}; {LOWER}")
