"""Ranking: how fast artefacts are beside their fp32 form.

By time where this machine is the device, else by instructions on an emulated core of it, else by estimate: one basis for all
the candidates of an export, and each figure says which.

Instructions are counted on one thread, each as one, with the kernels that the runtime picks for that core. They judge flavours of
one precision fairly as far as that goes: runtime, shapes and bytes of weights and activations are the same, and what differs is
the mix of instructions. They know nothing of how long each kind takes on a core (one dot product does the work of several
multiplications, and takes no longer for that), of caches, of what waits for what, nor of more threads; and between precisions
they leave out that small numbers move fewer bytes. So the report tells of flavours whether their order would stay if any kinds
of instructions took twice as long as others. No published times of U8S8 beside S8S8 on these cores are known to hold it against.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgesdk_converters.errors import ContractBroken, DeviceError, EdgeError
from edgesdk_targets import bundle as bundles
from edgesdk_targets import device, emulate, runner
from edgesdk_targets.bundle import CPU
from edgesdk_targets.figure import Figure
from edgesdk_targets.measure import machine_facts, side_by_side
from edgesdk_targets.target import Target

from .candidate import Attempt, Draft, Yardstick

Basis = Literal["measured", "emulated", "estimated"]
WORTH = 1.05
"""A precision that loses accuracy must be at least this much faster than a better one to be kept."""
APART = 1.01
"""The same between flavours of one precision that were counted: as far as counts repeat."""
PLACES = ("local", "emulator")
"""Where `on` can say that speed is taken."""


def basis(backend: Target, on: str | None) -> Basis:
    """What ranks candidates. Raises DeviceError where the emulator is asked for a core that it does not have."""
    if on is not None and on not in PLACES:
        raise DeviceError(f"speed cannot be taken on {on!r}; allowed: {', '.join(PLACES)}")
    if on == "local" or backend.device.name == device.THIS_MACHINE:
        return "measured"
    if on == "emulator":
        emulate.core(backend.device)
        return "emulated"
    return "emulated" if emulate.is_ready(backend.device) else "estimated"


class Ranking:
    """Gives attempts their speed relative to fp32's `base`; where that is not known, nothing.

    Where an emulator fails that nobody asked for, speeds are estimated from then on, and `notes` say why; one that was `asked`
    for raises what stands in its way.
    """

    def __init__(self, by: Basis, backend: Target, base: Attempt | None, trial: Yardstick, *, asked: bool = False) -> None:
        self._by, self._backend, self._trial = by, backend, trial
        self._base = base if base is not None and base.artefact is not None else None
        self._counts: dict[str, emulate.Count] = {}
        self._asked = asked
        self._failed = ""

    @property
    def by(self) -> Basis:
        """What it ranks by now."""
        return self._by

    def ranked(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """The attempts in their order, those that have an artefact with its speed and where that comes from.

        One whose golden vectors do not hold on the emulated core becomes broken.
        """
        if self._base is None:
            return list(attempts)
        if self._by == "measured":
            return self._measured(attempts, self._base)
        if self._by == "emulated":
            try:
                return [self._emulated(attempt, self._base) for attempt in attempts]
            except EdgeError as error:
                if self._asked:
                    raise
                self._by, self._failed = "estimated", error.message
        return [self._estimated(attempt) for attempt in attempts]

    def needed(self, one: Attempt, other: Attempt) -> float:
        """How much faster an attempt must be to be kept instead of another that comes before it."""
        same = one.candidate.precision == other.candidate.precision
        return APART if same and self._by == "emulated" else WORTH

    def notes(self, kept: Attempt, finalists: Sequence[Attempt]) -> list[str]:
        """What told the flavours of the kept precision apart, or why nothing could."""
        peers = [one for one in finalists if one is not kept and one.candidate.precision == kept.candidate.precision]
        if self._by == "emulated":
            return [self._beside(kept, one) for one in peers if one.candidate.name in self._counts]
        made = kept.artefact
        if self._by == "measured" or made is None or not _on_a_cpu(made):
            return []
        why = self._failed or emulate.obstacle(self._backend.device)
        if not why:
            return []
        told = f"no instructions were counted: {why}; speeds are estimates"
        if peers and kept.candidate.precision != "fp32":
            names = ", ".join(one.candidate.name for one in peers)
            told += f", which do not tell {kept.candidate.name} from {names}: the target's first that holds is kept"
        return [told]

    def _beside(self, kept: Attempt, other: Attempt) -> str:
        own, its = (self._counts[one.candidate.name] for one in (kept, other))
        told = (
            f"{kept.candidate.name} takes {own.total / its.total:.3f}x the instructions of {other.candidate.name} on {own.where}"
        )
        if order_stays(own.by_class, its.by_class):
            return f"{told}, and less than it whichever kinds of instructions take twice as long as others"
        return f"{told}: a close call, as the order turns where some kinds of instructions take twice as long as others"

    def _estimated(self, attempt: Attempt) -> Attempt:
        made = attempt.artefact
        if made is None:
            return attempt
        return replace(attempt, speed=self._backend.speed_ratio(made.layers, attempt.candidate.precision), rows=())

    def _emulated(self, attempt: Attempt, base: Attempt) -> Attempt:
        made = attempt.artefact
        if made is None:
            return attempt
        assert base.artefact is not None
        reference, own = self._count(base, base.artefact), self._count(attempt, made)
        compared = own.comparison
        if attempt.prepared is not None and compared is not None and not compared.holds:
            told = f"on {own.where} the outputs are {compared.artifact_relative_error:.2g} relative from those here"
            error = ContractBroken(f"{told}; allowed: {compared.tolerance:g}")
            return replace(attempt, prepared=None, error=error, broken=made)
        method = f"fp32 {reference.total:,} instructions over {own.total:,}; {own.method}"
        ratio = Figure("instruction_ratio", reference.total / own.total, "emulated", own.where, method, n=len(own.runs))
        return replace(attempt, speed=ratio, rows=tuple(emulate.figures(own)))

    def _count(self, attempt: Attempt, made: Draft) -> emulate.Count:
        name = attempt.candidate.name
        if name not in self._counts:

            def progress(message: str) -> None:
                self._trial.progress(f"{name}: {message}")

            with tempfile.TemporaryDirectory(prefix="edgesdk-draft-") as scratch:
                bundle = bundles.write(Path(scratch, "draft.edge"), made.manifest, made.files)
                feed = made.feed or self._trial.cases[0]
                self._counts[name] = emulate.count(bundle, self._backend.device, feed=feed, progress=progress)
        return self._counts[name]

    def _measured(self, attempts: Sequence[Attempt], base: Attempt) -> list[Attempt]:
        self._trial.progress("timing the candidates side by side")
        loaded: dict[str, runner.Runner] = {}
        feeds: dict[str, Mapping[str, Any]] = {}
        try:
            for attempt in (base, *attempts):
                made = attempt.artefact
                if made is not None and attempt.candidate.name not in loaded:
                    draft = bundles.draft(Path(made.manifest.name), made.manifest, made.files)
                    loaded[attempt.candidate.name] = runner.load(draft, runner.RunOptions(allow_fallback=True))
                    feeds[attempt.candidate.name] = made.feed or self._trial.cases[0]
            times = side_by_side({name: _once(one, feeds[name]) for name, one in loaded.items()})
        finally:
            for one in loaded.values():
                one.close()
        reference = float(np.median(times[base.candidate.name]))
        facts = machine_facts()
        where = f"this machine ({facts['cpu']}, {facts['architecture']})"
        ranked = []
        for attempt in attempts:
            if attempt.artefact is None:
                ranked.append(attempt)
                continue
            runs = times[attempt.candidate.name]
            own = float(np.median(runs))
            method = f"fp32 {reference:.3g} ms over {own:.3g} ms, medians, run in turn in one process"
            ranked.append(replace(attempt, speed=Figure("speed_ratio", reference / own, "measured", where, method, n=len(runs))))
        return ranked


def order_stays(fewer: Mapping[str, int], more: Mapping[str, int]) -> bool:
    """Whether the first takes less than the second at every weight of each kind of instructions from 1 to 2.

    The difference is linear in the weights, so it is greatest where kinds of which the first has more weigh 2, the others 1.
    """
    differences = (fewer[kind] - more[kind] for kind in fewer)
    return sum(2 * one if one > 0 else one for one in differences) < 0


def _on_a_cpu(made: Draft) -> bool:
    """Whether ONNX Runtime runs it on a CPU: what could be counted."""
    runtime = made.manifest.runtime
    return runtime.name == "onnxruntime" and {provider.name for provider in runtime.providers} == {CPU}


def told(speed: Figure) -> str:
    """The ratio in words that do not make one kind of figure another."""
    if speed.value is None:
        return "speed not known"
    if speed.provenance == "emulated":
        return f"fp32 takes {speed.value:.2f}x its instructions, emulated"
    return f"{speed.value:.2f}x of fp32's speed, {'measured here' if speed.provenance == 'measured' else speed.provenance}"


def _once(one: runner.Runner, feed: Mapping[str, Any]) -> Callable[[], object]:
    return lambda: one.run(feed)
