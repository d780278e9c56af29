"""One network before every device: the way each is asked, what it answers, and why where it does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from dataclasses import fields as fields_of
from typing import TYPE_CHECKING

from edgesdk_converters.errors import EdgeError, ModelError, TargetError
from edgesdk_targets.device import THIS_MACHINE
from edgesdk_targets.figure import Figure, unavailable
from edgesdk_targets.target import device_profile, make

from . import comparing_logic, estimating
from .comparing_logic import AREA, LATENCY, LOGIC

if TYPE_CHECKING:
    from edgesdk_targets.report import Report

    from .comparing_sources import Subject

Progress = Callable[[str], None]
MEMORY, ENERGY, ACCURACY, SIZE = "peak_memory_bytes", "energy_mj", "accuracy", "size"
CELLS = (ACCURACY, LATENCY, MEMORY, ENERGY, SIZE)
"""What is compared. The cell `size` holds artifact_bytes of a bundle, weight_bytes of a model."""
FLOWS = ("rtl", "hls4ml")
SLOW_MACS = 20_000_000
"""From so many on the design of its logic, which an estimate needs, takes seconds."""
FPGA = "fpga"


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

    `refused` is empty, or why the network does not run there; `own` says that the bundle's own report is in it.
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
    """One subject before all devices. `strangers` are flows that refused the network itself, which no other part changes."""

    subject: Subject
    accuracy: Figure
    precision: str
    threads: int
    runtime: str
    progress: Progress
    strangers: dict[str, Report] = field(default_factory=dict)

    def entries(self, names: Sequence[str]) -> list[Entry]:
        found = [self._entry(way) for name in names for way in self._ways(name)]
        bundle = self.subject.bundle
        if bundle is None:
            return found
        mine = next((i for i, entry in enumerate(found) if self._is_own(entry.way)), None)
        if mine is None:
            config = bundle.manifest.runtime.config
            way = Way(bundle.manifest.device, bundle.manifest.target, config.get("flow", bundle.manifest.runtime.name))
            found.append(_unasked(way, self.subject))
            mine = len(found) - 1
        found[mine] = self._with_report(found[mine])
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
            if all(totals[name].value is None for name in AREA if name in totals):
                self.strangers[way.runtime] = report
                refused = next(row.method for row in totals.values() if row.value is None)
            else:
                clock_mhz: float = make(None, way.device, way.settings).clock_mhz  # type: ignore[attr-defined]
                totals[LATENCY] = comparing_logic.latency(way.device, clock_mhz, totals)
                told, refused = comparing_logic.fits(device_profile(way.device), totals, way.runtime == "hls4ml")
                notes = (*notes, *told)
        cells = self._cells(way, precision, totals, refused)
        rows = (*(row for row in report.rows if row.layer is None and row.name != LATENCY), cells[LATENCY])
        return Entry(way, precision, cells, (*rows, *(row for row in report.rows if row.layer)), refused, notes)

    def _report(self, way: Way, precision: str) -> Report:
        subject = self.subject
        if way.runtime in self.strangers and way.target == FPGA:
            known = self.strangers[way.runtime]
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
            threads=self.threads if has_threads else 0, runtime=self.runtime,
        )  # fmt: skip

    def _cells(self, way: Way, precision: str, totals: Mapping[str, Figure], refused: str) -> dict[str, Figure]:
        """A figure for each of CELLS; those that the report lacks are unavailable, and say why."""
        cells = {name: totals.get(name) or unavailable(name, way.device, _why_not(name, way)) for name in CELLS}
        cells[SIZE] = self._size(way, precision, totals)
        cells[ACCURACY] = self._accuracy(way)
        if refused:
            cells = {name: replace(_gap(one), where=way.device, method=refused) for name, one in cells.items()}
        return cells

    def _size(self, way: Way, precision: str, totals: Mapping[str, Figure]) -> Figure:
        if way.target == FPGA:
            return unavailable("weight_bytes", way.device, "weights become logic and block RAM: see LUT and BRAM")
        if precision not in ("", "fp32", self.subject.precision):
            told = f"what {precision} makes of the weights is known after an export: edgesdk export --precision {precision}"
            return unavailable("weight_bytes", way.device, told)
        if "weight_bytes" in totals:
            return replace(totals["weight_bytes"], method="weights of the model as it came, before an export")
        return self.subject.weights()

    def _accuracy(self, way: Way) -> Figure:
        """Of the model in ONNX Runtime here: that is this machine's, and no other artefact's."""
        here = self.accuracy
        if here.value is None or (way.device == THIS_MACHINE and self.subject.bundle is None):
            return here
        what = "the model itself, in ONNX Runtime" if self.subject.bundle is None else "the bundle's own artefact"
        told = f"only {what} on this machine was judged; edgesdk export --data and measure --data judge what is made for a device"
        return unavailable(ACCURACY, way.device, told)

    def _with_report(self, entry: Entry) -> Entry:
        """The entry of a bundle's own device: what its report says of it comes first, estimates fill what is left."""
        subject = self.subject
        assert subject.bundle is not None
        known = {} if subject.report is None else _of_its_device(subject.report, entry.way.device)
        cells = {name: known.get(name, one) for name, one in entry.cells.items()}
        size = known.get("artifact_bytes") or known.get("bundle_bytes")
        cells[SIZE] = size or cells[SIZE]
        if self.accuracy.value is not None:
            cells[ACCURACY] = self.accuracy
        latency = cells[LATENCY]
        kept = [row for row in entry.rows if row.layer is not None or (row.name not in known and row.name != LATENCY)]
        rows = (*(row for row in known.values() if row.name != LATENCY), latency, *kept)
        refused = "" if latency.value is not None else entry.refused
        precision, own = subject.bundle.manifest.precision, subject.report is not None
        return replace(entry, cells=cells, rows=rows, refused=refused, own=own, precision=precision)


def _of_its_device(report: Report, device: str) -> dict[str, Figure]:
    """Figures by name that a report has of the device itself, of its file, or from its tools.

    What was measured on another machine than the device says nothing of the device, but for an accuracy that the artefact's own
    runtime reached: which machine it was stands in the figure.
    """
    on_device = bool(report.machine.get("is_device")) or device == THIS_MACHINE
    found: dict[str, Figure] = {}
    for row in report.rows:
        if row.value is None or row.layer is not None or row.segment != "whole":
            continue
        elsewhere = row.provenance == "measured" and row.where != "artifact" and not on_device
        right = row.name in (ACCURACY, "accuracy_drop") and report.contract.status == "passed"
        if not elsewhere or right:
            found.setdefault(row.name, row)
    return found


def _unasked(way: Way, subject: Subject) -> Entry:
    """Of a bundle whose device is not among those asked for: only its own report will speak."""
    cells = {name: unavailable(name, way.device, f"the bundle's report has no {name}") for name in CELLS}
    return Entry(way, subject.precision, cells)


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
