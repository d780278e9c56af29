"""One network before every device: the way each is asked, what it answers, and why where it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from dataclasses import fields as fields_of
from typing import TYPE_CHECKING

from edgesdk_converters.errors import BundleError, EdgeError, ModelError, TargetError
from edgesdk_targets.device import THIS_MACHINE, cpu_model
from edgesdk_targets.figure import Figure, unavailable
from edgesdk_targets.target import device_profile, make

from . import comparing_logic, estimating
from .comparing_logic import AREA, LATENCY, LOGIC

if TYPE_CHECKING:
    from edgesdk_targets.bundle import Bundle
    from edgesdk_targets.report import Report

    from .comparing_sources import Progress, Subject

MEMORY, ENERGY, ACCURACY, SIZE = "peak_memory_bytes", "energy_mj", "accuracy", "size"
CELLS = (ACCURACY, LATENCY, MEMORY, ENERGY, SIZE)
"""What is compared. The cell `size` holds artifact_bytes of a bundle, weight_bytes of a model."""
FLOWS = ("rtl", "hls4ml")
SLOW_MACS = 20_000_000
"""From so many on the design of its logic, which an estimate needs, takes seconds."""
FPGA = "fpga"
IN_LOGIC = "weights become logic and block RAM: see LUT and BRAM"


@dataclass(frozen=True)
class Way:
    """A device and how it is asked: an FPGA once for each flow, every other device once."""

    device: str
    target: str
    runtime: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One model on one device. `cells` has a figure for each of CELLS, `rows` all figures behind them, layers included.

    `refused` is empty, or why the network does not run there; `own` says that it is the bundle's own report.
    """

    way: Way
    precision: str
    cells: Mapping[str, Figure]
    rows: tuple[Figure, ...] = ()
    refused: str = ""
    notes: tuple[str, ...] = ()
    own: bool = False

    @property
    def latency(self) -> Figure:
        return self.cells[LATENCY]

    @property
    def logic(self) -> Mapping[str, Figure]:
        """What it takes of an FPGA, empty elsewhere."""
        return {row.name: row for row in self.rows if row.name in LOGIC and row.layer is None and row.segment == "whole"}

    @property
    def takes_logic(self) -> bool:
        """Whether anything is known of what it takes of an FPGA."""
        return any(row.value is not None for row in self.logic.values())

    def heaviest(self, count: int) -> tuple[Figure, ...]:
        """The layers that take most time, the longest first."""
        timed = [row for row in self.rows if row.layer is not None and row.name == LATENCY and row.value]
        return tuple(sorted(timed, key=lambda row: -(row.value or 0))[:count])


@dataclass(eq=False)
class Asking:
    """One subject before all devices.

    `strangers` are reports, by settings of logic, that refused the network itself, which no other part changes.
    """

    subject: Subject
    accuracy: Figure
    precision: str
    threads: int
    runtime: str
    progress: Progress
    strangers: dict[frozenset[tuple[str, str]], Report] = field(default_factory=dict)

    def entries(self, names: Sequence[str]) -> list[Entry]:
        bundle, report = self.subject.bundle, self.subject.report
        ways = [way for name in names for way in self._ways(name)]
        if bundle is None:
            return [self._entry(way) for way in ways]
        others = [way for way in ways if not self._is_own(way)]
        found = [self._entry(way) for way in others]
        if report is not None:
            found.append(self._reported(bundle, report))
        elif len(others) < len(ways):
            found.append(self._unreported(bundle))
        return found

    def _ways(self, name: str) -> tuple[Way, ...]:
        if estimating.is_phone(name):
            return (Way(name, "", self.runtime or estimating.PHONES_RUNTIME),)
        profile = device_profile(name)
        if profile.target != FPGA:
            try:
                backend = make(None, name)
            except EdgeError:
                return (Way(name, profile.target, self.runtime),)  # what is wrong is told where it is asked
            return (Way(name, profile.target, self.runtime or estimating.own_runtime(backend)),)
        flows = [flow for flow in FLOWS if flow == "rtl" or profile.get("family", str) != "ecp5"]
        bits = {"bits": str(self.subject.bits)} if self.subject.bits else {}
        return tuple(Way(name, FPGA, flow, {"flow": flow, **bits}) for flow in flows)

    def _is_own(self, way: Way) -> bool:
        assert self.subject.bundle is not None
        manifest = self.subject.bundle.manifest
        return way.device == manifest.device and way.settings.get("flow") == manifest.runtime.config.get("flow")

    def _entry(self, way: Way) -> Entry:
        precision = self.precision or self.subject.precision
        try:
            report = self._report(way, precision)
        except EdgeError as error:
            why = error.message + (f" -> {error.hint}" if error.hint else "")
            return Entry(way, precision, self._cells(way, precision, {}, why), refused=why)
        precision = precision or (make(None, way.device).default_precision if way.target else "fp32")
        totals = {row.name: row for row in report.rows if row.layer is None and row.segment == "whole"}
        notes, refused = report.notes, ""
        if way.target == FPGA:
            area = [totals[name] for name in AREA if name in totals]
            if area and all(row.value is None for row in area):
                refused = area[0].method
                if "cannot run node" in refused:
                    self.strangers[frozenset(way.settings.items())] = report
            else:
                clock_mhz: float = make(None, way.device, way.settings).clock_mhz  # type: ignore[attr-defined]
                totals[LATENCY] = comparing_logic.latency(way.device, clock_mhz, totals)
                told, refused = comparing_logic.fits(device_profile(way.device), totals, way.runtime == "hls4ml")
                notes = tuple(dict.fromkeys((*notes, *told)))
        cells = self._cells(way, precision, totals, refused)
        rows = (*(row for row in report.rows if row.layer is None and row.name != LATENCY), cells[LATENCY])
        return Entry(way, precision, cells, (*rows, *(row for row in report.rows if row.layer)), refused, notes)

    def _report(self, way: Way, precision: str) -> Report:
        subject = self.subject
        known = self.strangers.get(frozenset(way.settings.items()))
        if known is not None:
            return replace(known, device=way.device, rows=tuple(_elsewhere(row, way.device) for row in known.rows))
        if subject.no_layers:
            raise ModelError(subject.no_layers)
        if way.target == FPGA and self.runtime:
            raise TargetError(f"logic has no runtime to choose, {self.runtime} was asked for", "leave --runtime out")
        if way.runtime == "rtl" and subject.totals().macs > SLOW_MACS:
            self.progress(f"{subject.name}: designing logic for {way.device}")
        has_threads = not way.target or "threads" in {one.name for one in fields_of(make(None, way.device))}
        return estimating.of_layers(
            subject.name, subject.layers, device=way.device, precision=precision, settings=way.settings,
            threads=self.threads if has_threads else 0, runtime=self.runtime, model=subject.model,
        )  # fmt: skip

    def _cells(self, way: Way, precision: str, totals: Mapping[str, Figure], refused: str) -> dict[str, Figure]:
        """A figure for each of CELLS; those that the report lacks are unavailable, and say why."""
        cells = {name: totals.get(name) or unavailable(name, way.device, _why_not(name, way)) for name in CELLS}
        cells[SIZE] = self._size(way, precision)
        cells[ACCURACY] = self._accuracy(way)
        if refused:
            cells = {name: replace(_gap(one), where=way.device, method=refused) for name, one in cells.items()}
        return cells

    def _size(self, way: Way, precision: str) -> Figure:
        if way.target == FPGA:
            return unavailable("weight_bytes", way.device, IN_LOGIC)
        if precision not in ("", "fp32", self.subject.precision):
            told = f"what {precision} makes of the weights is known after an export: edgesdk export --precision {precision}"
            return unavailable("weight_bytes", way.device, told)
        return self.subject.weights()

    def _accuracy(self, way: Way) -> Figure:
        """Of the model in ONNX Runtime here: that is this machine's, and no other artefact's."""
        here = self.accuracy
        if here.value is None or (way.device == THIS_MACHINE and self.subject.bundle is None):
            return here
        what = "the model itself, in ONNX Runtime" if self.subject.bundle is None else "the bundle's own artefact"
        told = f"only {what} on this machine was judged; edgesdk export --data and measure --data judge what is made for a device"
        return unavailable(ACCURACY, way.device, told)

    def _unreported(self, bundle: Bundle) -> Entry:
        """Of a bundle that lost its report: its own device is asked for what the bundle is, not for what the command says."""
        asking = replace(self, precision=bundle.manifest.precision, runtime="")
        way = _own_way(bundle)
        entry = asking._entry(replace(way, settings=_settings(bundle, self.subject.bits)) if way.target == FPGA else way)
        return replace(entry, cells={**entry.cells, ACCURACY: self.accuracy})

    def _reported(self, bundle: Bundle, report: Report) -> Entry:
        """Of a bundle's own device, by its report alone: nothing is estimated beside it, and no estimator can refuse it."""
        way = _own_way(bundle)
        kept = [row for row in report.rows if row.segment == "whole" and _is_of_device(row, report, way.device)]
        totals: dict[str, Figure] = {}
        for row in sorted(kept, key=lambda row: row.value is None):
            if row.layer is None:
                totals.setdefault(row.name, row)
        if way.target == FPGA:
            totals[LATENCY] = comparing_logic.latency(way.device, _clock_mhz(bundle), totals)
        cells = {name: totals.get(name) or unavailable(name, way.device, _unsaid(name, report, way.device)) for name in CELLS}
        cells[SIZE] = self._own_size(way, totals)
        if self.accuracy.value is not None:
            cells[ACCURACY] = self.accuracy
        rows = (*totals.values(), *(row for row in kept if row.layer is not None))
        return Entry(way, bundle.manifest.precision, cells, rows, notes=report.notes, own=True)

    def _own_size(self, way: Way, totals: Mapping[str, Figure]) -> Figure:
        if way.target == FPGA:
            return unavailable("weight_bytes", way.device, IN_LOGIC)
        missing = unavailable("artifact_bytes", way.device, "the bundle's report has no artifact_bytes")
        return totals.get("artifact_bytes") or totals.get("bundle_bytes") or missing


def _own_way(bundle: Bundle) -> Way:
    manifest = bundle.manifest
    return Way(manifest.device, manifest.target, manifest.runtime.config.get("flow", manifest.runtime.name))


def _settings(bundle: Bundle, bits: int) -> dict[str, str]:
    """Options of the target that a bundle's logic was made with, as its manifest keeps them."""
    options = {one.name for one in fields_of(make(None, bundle.manifest.device))}
    kept = {name: value for name, value in bundle.manifest.runtime.config.items() if name in options and value}
    return {**kept, "clock_ns": f"{1e3 / _clock_mhz(bundle):.6g}", **({"bits": str(bits)} if bits else {})}


def _clock_mhz(bundle: Bundle) -> float:
    """Of the clock that a bundle's logic was made for. Raises BundleError where the manifest does not tell it."""
    config = bundle.manifest.runtime.config
    told = config.get("clock_mhz", config.get("clock_ns", ""))
    try:
        number = float(told)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise BundleError(f"the manifest does not tell the clock of its logic: {told!r}", "it was not written by edgesdk")
    return number if "clock_mhz" in config else 1e3 / number


def _is_of_device(row: Figure, report: Report, device: str) -> bool:
    """Whether a row of a bundle's report says something of its device: of its file, of tools, by estimate, or measured there.

    What was measured on another machine does not, but for an accuracy that the artefact's own runtime reached: which machine it
    was stands in the figure.
    """
    if row.provenance != "measured" or row.where == "artifact" or _ran_on(report, device):
        return True
    return row.name in (ACCURACY, "accuracy_drop") and report.contract.status == "passed"


def _ran_on(report: Report, device: str) -> bool:
    """Whether a report's times were taken on its device. That of an export, which takes none, does not say so of a board."""
    if device == THIS_MACHINE:
        return report.machine.get("cpu") == cpu_model()
    return report.machine.get("is_device") is True


def _unsaid(name: str, report: Report, device: str) -> str:
    """Why a bundle's report says nothing of its device."""
    row = report.find(name)
    if row is None:
        return f"the bundle's report has no {name}"
    return f"the bundle's report has the {name} of another machine: {row.where}"


def _why_not(name: str, way: Way) -> str:
    if name == MEMORY and way.target == FPGA:
        return "logic takes no memory of a processor: see BRAM"
    if name == ENERGY and way.target == FPGA:
        return "nothing here estimates the power of logic"
    return f"nothing estimates {name} of {way.device}"


def _gap(row: Figure) -> Figure:
    return row if row.value is None else unavailable(row.name, row.where, row.method)


def _elsewhere(row: Figure, device: str) -> Figure:
    return row if row.where == "artifact" else replace(row, where=device)
