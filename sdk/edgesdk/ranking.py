"""Ranking: how fast artefacts are beside their fp32 form.

By time where this machine is the device, else by instructions on an emulated core of it, else by estimate: one basis for all
the candidates of an export, and each figure says which.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgesdk_converters.errors import ContractBroken, DeviceError
from edgesdk_targets import bundle as bundles
from edgesdk_targets import device, emulate, runner
from edgesdk_targets.figure import Figure
from edgesdk_targets.measure import machine_facts, side_by_side
from edgesdk_targets.target import Target

from .candidate import Attempt, Draft

if TYPE_CHECKING:
    from .trial import Trial

Basis = Literal["measured", "emulated", "estimated"]
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
    """Gives attempts their speed relative to fp32's `base`; where that is not known, nothing."""

    def __init__(self, by: Basis, backend: Target, base: Attempt | None, trial: Trial) -> None:
        self._by, self._backend, self._trial = by, backend, trial
        self._base = base if base is not None and base.artefact is not None else None
        self._counts: dict[str, emulate.Count] = {}

    def ranked(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """The attempts in their order, those that have an artefact with its speed and where that comes from.

        One whose golden vectors do not hold on the emulated core becomes broken.
        """
        if self._base is None:
            return list(attempts)
        if self._by == "measured":
            return self._measured(attempts, self._base)
        if self._by == "emulated":
            return [self._emulated(attempt, self._base) for attempt in attempts]
        return [self._estimated(attempt) for attempt in attempts]

    def _estimated(self, attempt: Attempt) -> Attempt:
        made = attempt.artefact
        if made is None:
            return attempt
        return replace(attempt, speed=self._backend.speed_ratio(made.layers, attempt.candidate.precision))

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
                self._counts[name] = emulate.count(bundle, self._backend.device, feed=self._trial.cases[0], progress=progress)
        return self._counts[name]

    def _measured(self, attempts: Sequence[Attempt], base: Attempt) -> list[Attempt]:
        self._trial.progress("timing the candidates side by side")
        loaded: dict[str, runner.Runner] = {}
        try:
            for attempt in (base, *attempts):
                made = attempt.artefact
                if made is not None and attempt.candidate.name not in loaded:
                    draft = bundles.draft(Path(made.manifest.name), made.manifest, made.files)
                    loaded[attempt.candidate.name] = runner.load(draft, runner.RunOptions(allow_fallback=True))
            times = side_by_side({name: _once(one, self._trial.cases[0]) for name, one in loaded.items()})
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


def told(speed: Figure) -> str:
    """The ratio in words that do not make one kind of figure another."""
    if speed.value is None:
        return "speed not known"
    if speed.provenance == "emulated":
        return f"fp32 takes {speed.value:.2f}x its instructions, emulated"
    return f"{speed.value:.2f}x of fp32's speed, {'measured here' if speed.provenance == 'measured' else speed.provenance}"


def _once(one: runner.Runner, feed: Mapping[str, Any]) -> Callable[[], object]:
    return lambda: one.run(feed)
