"""Comparing: what models and bundles take on every device, side by side; a gap or a refusal is a cell that says why."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from edgesdk_converters.errors import DeviceError, ModelError
from edgesdk_targets import measure as measuring
from edgesdk_targets import runner
from edgesdk_targets.figure import Figure

from . import __version__
from .comparing_entries import Asking, Entry
from .comparing_sources import Progress, Subject, accuracy_here, open_subjects

if TYPE_CHECKING:
    from .cut_table import Survey

ALL = "all"


@dataclass(frozen=True)
class Compared:
    """One model or bundle on all devices, the fastest first. `survey` are its cuts, None where `no_cuts` says why not."""

    name: str
    source: str
    kind: str
    digest: str
    macs: int
    params: int
    accuracy: Figure
    entries: tuple[Entry, ...]
    survey: Survey | None
    no_cuts: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """All of it, and what a reader needs to judge it: who made it, when, where and with which command."""

    models: tuple[Compared, ...]
    devices: tuple[str, ...]
    version: str
    command: str
    date: str
    machine: str


def compare(
    sources: Sequence[str | os.PathLike[str]],
    *,
    devices: str | Sequence[str] = ALL,
    precision: str = "",
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: str | os.PathLike[str] | None = None,
    threads: int = 0,
    runtime: str = "",
    command: str = "",
    progress: Progress = runner.silent,
) -> Comparison:
    """Models (.onnx, .pt2, package.module:callable), bundles and layer lists on devices; "all" are those of `edgesdk devices`.

    A bundle's own device has the figures of its report alone, all other devices have estimates. `threads` goes to devices whose
    estimate has threads to choose; `data` gives each model's accuracy in ONNX Runtime on this machine, and says nothing of any
    other artefact.
    Raises EdgeError for a source that cannot be opened and for unknown devices; what one device refuses is in its entry.
    """
    names = known_devices() if devices == ALL else _chosen([devices] if isinstance(devices, str) else devices)
    if not sources:
        raise ModelError("nothing to compare", "edgesdk compare MODEL… --devices all")
    subjects = open_subjects(sources, shapes or {}, progress)
    accuracies = accuracy_here(subjects, data, progress)
    found = []
    for subject, accuracy in zip(subjects, accuracies, strict=True):
        progress(f"{subject.name}: estimating on {len(names)} devices")
        asking = Asking(subject, accuracy, precision, threads, runtime, progress)
        entries = sorted(asking.entries(names), key=_by_latency)
        survey, no_cuts = _cuts(subject, progress)
        sums = subject.totals()
        found.append(
            Compared(
                subject.name, subject.source, subject.kind, subject.digest, sums.macs, sums.params, accuracy, tuple(entries),
                survey, no_cuts, subject.notes,
            )
        )  # fmt: skip
    facts = measuring.machine_facts()
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return Comparison(tuple(found), tuple(names), __version__, command, date, f"{facts['cpu']}, {facts['architecture']}")


def known_devices() -> tuple[str, ...]:
    """All devices that estimates are made for: those of targets and plugins, then those that were only measured."""
    from .listing import list_devices

    return tuple(row["name"] for row in list_devices())


def _chosen(asked: Sequence[str]) -> tuple[str, ...]:
    """Names as given, each once. Raises DeviceError for an unknown one."""
    names = dict.fromkeys(name.strip() for part in asked for name in part.split(",") if name.strip())
    known = known_devices()
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        told = f"unknown device {unknown[0]!r}" if unknown else "no device given"
        raise DeviceError(f"{told}; known: {', '.join(known)}", "give --devices all, or names joined by commas")
    return tuple(names)


def _by_latency(entry: Entry) -> tuple[bool, float, bool, str]:
    value = entry.latency.value
    return value is None, value or 0.0, bool(entry.refused), entry.way.device


def _cuts(subject: Subject, progress: Progress) -> tuple[Survey | None, str]:
    if subject.model is None:
        return None, subject.no_layers or "a layer list has no graph that could be cut"
    from .cut_table import survey

    try:
        found = survey(subject.model, progress=runner.silent)
    except ModelError as error:
        return None, error.message
    if not found.cuts:
        return found, "no single tensor has all paths through it; edgesdk cuts MODEL --pairs looks for two"
    return found, ""
