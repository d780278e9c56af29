"""Reports of Vivado HLS, Vitis HLS and Vivado, as an hls4ml project collects them, read into figures.

Layouts: csynth.xml and the co-simulation table of Vivado HLS and Vitis HLS (AMD UG1399), report_utilization and
report_timing_summary of Vivado (AMD UG906). A report of another part than the board's is refused: its numbers are another
chip's. Vivado counts block RAM in tiles of 36 kbit, HLS in halves of 18; so do figures.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgesdk_converters.errors import TargetError

from ..figure import Figure, unavailable
from ..target import device_profile

RESOURCES = {"LUT": "lut", "FF": "ff", "DSP": "dsp", "DSP48E": "dsp", "BRAM_18K": "bram", "URAM": "uram"}
"""Names in csynth.xml; Vivado HLS says DSP48E."""
_SITES = (
    ("lut", re.compile(r"(?:Slice|CLB) LUTs\*?"), 1), ("ff", re.compile(r"(?:Slice|CLB) Registers"), 1),
    ("bram", re.compile(r"Block RAM Tile"), 2), ("uram", re.compile(r"URAM"), 1), ("dsp", re.compile(r"DSPs"), 1),
)  # fmt: skip
"""Rows of report_utilization: resource, site type, and what one of them counts."""
_TOOL = re.compile(r"Tool Version\s*:\s*(Vivado[^(|]*?)\s*(?:\(|\||$)", re.MULTILINE)
_DEVICE = re.compile(r"^\|\s*Device\s*:\s*(\S+)", re.MULTILINE)
_HLS = "HLS"
_COUNT, _TILES = r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+", r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[05])?"
_NS = r"-?[0-9]+(?:\.[0-9]+)?"
"""How the tools write counts, tiles of block RAM and times. Another locale's commas and points would be other numbers."""


@dataclass(frozen=True)
class CSynthesis:
    """What HLS expects of a kernel. Cycles are None where it says `undef`: a loop's bound depends on data.

    `part` is empty where it says none.
    """

    tool: str
    part: str
    target_clock_ns: float
    estimated_clock_ns: float
    cycles_min: int | None
    cycles_max: int | None
    interval_min: int | None
    interval_max: int | None
    used: Mapping[str, int]
    available: Mapping[str, int]


@dataclass(frozen=True)
class Utilisation:
    """Resources after logic synthesis or placement, as `state` says; BRAM in halves of 18 kbit. `part` as Vivado writes it."""

    tool: str
    part: str
    state: str
    used: Mapping[str, int]


@dataclass(frozen=True)
class CoSimulation:
    """Cycles that the RTL took in simulation; the interval is None where only one call was simulated."""

    language: str
    status: str
    cycles_min: int
    cycles_avg: int
    cycles_max: int
    interval_min: int | None
    interval_max: int | None


@dataclass(frozen=True)
class Timing:
    """Slack in ns, worst and in all: wns, tns of setup, whs, ths of hold. The period is None unless exactly one is listed.

    `part` as Vivado writes it there: without its speed grade.
    """

    part: str
    wns: float
    tns: float
    whs: float
    ths: float
    period_ns: float | None


def csynth(path: Path) -> CSynthesis:
    """Read csynth.xml. Raises TargetError that names the file and what it lacks."""
    try:
        root = ET.fromstring(_text(path))
    except ET.ParseError as error:
        raise TargetError(f"{path} is no whole XML: {error}", "run C synthesis again") from error

    def at(where: str) -> str:
        text = (root.findtext(where) or "").strip()
        if not text:
            raise TargetError(f"{path}: csynth report without {where}", "run C synthesis again")
        return text

    def cycles(name: str) -> int | None:
        where = f"PerformanceEstimates/SummaryOfOverallLatency/{name}"
        text = at(where)
        return None if text in ("undef", "?") else _count(path, where, text)

    def resources(where: str) -> dict[str, int]:
        found = root.find(f"AreaEstimates/{where}")
        children = {} if found is None else {child.tag: (child.text or "").strip() for child in found}
        counts = {RESOURCES[tag]: _count(path, tag, text) for tag, text in children.items() if tag in RESOURCES}
        absent = sorted({"lut", "ff", "dsp", "bram"} - set(counts))
        if absent:
            raise TargetError(
                f"{path}: csynth report whose AreaEstimates/{where} lacks {', '.join(absent)}", "run C synthesis again"
            )
        return counts

    def period(where: str, name: str) -> float:
        unit = (root.findtext(f"{where}/unit") or "ns").strip()
        if unit != "ns":
            raise TargetError(f"{path}: {where}/{name} is in {unit!r}; only ns is known", "run C synthesis again")
        return _period(path, f"{where}/{name}", at(f"{where}/{name}"))

    version, product = root.findtext("ReportVersion/Version") or "", root.findtext("UserAssignments/ProductFamily") or ""
    return CSynthesis(
        " ".join(part for part in (_HLS, version.strip(), f"for {product.strip()}" if product else "") if part),
        (root.findtext("UserAssignments/Part") or "").strip(), period("UserAssignments", "TargetClockPeriod"),
        period("PerformanceEstimates/SummaryOfTimingAnalysis", "EstimatedClockPeriod"),
        cycles("Best-caseLatency"), cycles("Worst-caseLatency"), cycles("Interval-min"), cycles("Interval-max"),
        resources("Resources"), resources("AvailableResources"),
    )  # fmt: skip


def utilisation(path: Path) -> Utilisation:
    """Read a flat report_utilization (hls4ml: vivado_synth.rpt). Raises TargetError that names the file and what it lacks."""
    text = _text(path)
    used: dict[str, int] = {}
    for cells in _table_rows(text):
        for name, site, each in _SITES:
            if len(cells) > 1 and site.fullmatch(cells[0]) and name not in used:
                used[name] = _tiles(path, cells[0], cells[1]) if each > 1 else _count(path, cells[0], cells[1])
    absent = sorted({"lut", "ff", "dsp", "bram"} - set(used))
    if absent:
        raise TargetError(f"{path}: no whole report_utilization, it lacks {', '.join(absent)}", "run logic synthesis again")
    state = re.search(r"Design State\s*:\s*(\w[\w ]*\w)", text)
    return Utilisation(_vivado(text), _part(text), state[1] if state else "Synthesized", used)


def cosim(path: Path) -> CoSimulation:
    """Read the co-simulation table. Raises TargetError where no language was simulated, or it did not pass."""
    for cells in _table_rows(_text(path)):
        if cells[0] not in ("Verilog", "VHDL") or len(cells) < 8 or cells[1] == "NA":
            continue
        if cells[1].lower() != "pass":
            raise TargetError(f"{path}: co-simulation of the {cells[0]} ended with {cells[1]}", "see its log in the project")
        low, average, high = (_count(path, "latency", cell) for cell in cells[2:5])
        shortest, _, longest = (None if cell in ("NA", "x") else _count(path, "interval", cell) for cell in cells[5:8])
        return CoSimulation(cells[0], cells[1], low, average, high, shortest, longest)
    raise TargetError(f"{path}: no row of Verilog or VHDL with latencies", "run co-simulation again")


def timing(path: Path) -> Timing:
    """Read report_timing_summary. Raises TargetError that names the file and what it lacks."""
    lines = _text(path).splitlines()
    head = next((i for i, line in enumerate(lines) if "WNS(ns)" in line and "WHS(ns)" in line and "TNS(ns)" in line), None)
    values = lines[head + 2].split() if head is not None and head + 2 < len(lines) else []
    if len(values) < 6:
        raise TargetError(f"{path}: no timing summary: the row under WNS(ns) is missing", "run implementation again")
    if values[0] in ("NA", "inf"):
        raise TargetError(f"{path}: nothing is constrained: WNS is {values[0]}", "give the design its clock constraint")
    wns, tns, whs, ths = (_ns(path, name, values[i]) for name, i in (("WNS", 0), ("TNS", 1), ("WHS", 4), ("THS", 5)))
    clock = next((i for i, line in enumerate(lines) if "Period(ns)" in line and "Frequency(MHz)" in line), len(lines))
    periods = set()
    for line in lines[clock + 2 :]:
        row = re.search(r"\{[^}]*\}\s+(\S+)\s", line)
        if row is None:
            break
        periods.add(_period(path, "Period", row[1]))
    period = periods.pop() if len(periods) == 1 else None
    if period is not None and wns >= period:
        raise TargetError(f"{path}: WNS is {values[0]!r}, no less than the period of {period:g} ns", "run implementation again")
    return Timing(_part("\n".join(lines)), wns, tns, whs, ths, period)


def project_figures(folder: Path, device: str, segment: str = "whole") -> tuple[Figure, ...]:
    """All reports in an hls4ml project and the folders in it, the nearest to hardware first: timing, utilisation, co-simulation,
    C synthesis. One name can come more than once, each with its own method. `device` is the board, and `where` says the part
    too, as far as the report tells it.

    Raises TargetError for a folder without any, for one that is broken or of another part than the board's, and for two of a
    kind (several solutions).
    """
    top, rows = _top(folder), list[Figure]()
    for patterns, read in _READERS:
        matches = [sorted(folder.rglob(pattern.format(top=top))) for pattern in patterns]
        one = next((match[0] for match in matches if len(match) == 1), None)
        several = next((match for match in matches if len(match) > 1), None)
        if one is not None:
            rows += read(one, device, segment)
        elif several is not None:
            names = ", ".join(str(path.relative_to(folder)) for path in several)
            raise TargetError(f"{folder} has {len(several)} reports of one kind: {names}", "give the folder of one solution")
    if not rows:
        looked = ", ".join(pattern.format(top=top) for patterns, _ in _READERS for pattern in patterns)
        raise TargetError(
            f"{folder} has no vendor report: looked for {looked}",
            "run the project where the vendor's tool is: vitis_hls -f build_prj.tcl, or edgesdk build",
        )
    return tuple(rows)


def csynth_figures(path: Path, device: str, segment: str = "whole") -> Iterator[Figure]:
    """Of csynth.xml: HLS' own estimate, printed before logic synthesis, which often counts more LUTs than there will be."""
    found = csynth(path)
    device = _where(path, found.part, device)
    method = f"{found.tool}, C synthesis' estimate ({path.name}), {found.target_clock_ns:g} ns asked for"
    yield from _counts(found.used, device, method, segment)
    yield Figure("fmax_mhz", round(1000 / found.estimated_clock_ns, 2), "tool-reported", device, method, segment=segment)
    yield from _cycles(found.cycles_min, found.cycles_max, found.interval_min, found.interval_max, device, method, segment)


def _utilisation_figures(path: Path, device: str, segment: str) -> Iterator[Figure]:
    found = utilisation(path)
    device = _where(path, found.part, device)
    yield from _counts(found.used, device, f"{found.tool} report_utilization ({path.name}), {found.state}", segment)


def _cosim_figures(path: Path, device: str, segment: str) -> Iterator[Figure]:
    found = cosim(path)
    method = f"{_HLS} co-simulation of the {found.language} ({path.name})"
    yield from _cycles(found.cycles_min, found.cycles_max, found.interval_min, found.interval_max, device, method, segment)


def _timing_figures(path: Path, device: str, segment: str) -> Iterator[Figure]:
    found, tool = timing(path), _vivado(_text(path))
    device = _where(path, found.part, device)
    if found.period_ns is None:
        yield unavailable(
            "fmax_mhz", device, f"{path.name}: slack {found.wns:g} ns, but of which period: not one clock is listed", segment
        )
        return
    met = "met" if found.wns >= 0 else "missed"
    method = f"{tool} report_timing_summary ({path.name}), period {found.period_ns:g} ns - slack {found.wns:g} ns, {met}"
    yield Figure("fmax_mhz", round(1000 / (found.period_ns - found.wns), 2), "tool-reported", device, method, segment=segment)


_READERS: tuple[tuple[tuple[str, ...], Callable[[Path, str, str], Iterator[Figure]]], ...] = (
    (("*timing_summary_routed.rpt", "*timing_summary*.rpt"), _timing_figures),
    (("*utilization_placed.rpt",), _utilisation_figures),
    (("vivado_synth.rpt", "*utilization_synth.rpt"), _utilisation_figures),
    (("{top}_cosim.rpt",), _cosim_figures),
    (("{top}_csynth.xml", "csynth.xml"), csynth_figures),
)
"""By kind: file names, the preferred first, and what reads them. HLS writes a csynth.xml for each inner function, too."""


def _top(folder: Path) -> str:
    """The top function's name as hls4ml's project.tcl has it, in the folder or above it; a wildcard without that file."""
    above = [path for path in (parent / "project.tcl" for parent in folder.absolute().parents[:3]) if path.is_file()]
    found = sorted(folder.rglob("project.tcl")) or above
    text = found[0].read_text(encoding="utf-8", errors="replace") if found else ""
    name = re.search(r'set project_name "(\w+)"', text)
    backend = re.search(r'set backend "(\w+)"', text)
    if not name:
        return "*"
    return name[1] + ("_axi" if backend and "accelerator" in backend[1] else "")


def _counts(used: Mapping[str, int], device: str, method: str, segment: str) -> Iterator[Figure]:
    for name, count in used.items():
        yield Figure(name, count, "tool-reported", device, method, segment=segment)


def _cycles(
    low: int | None, high: int | None, shortest: int | None, longest: int | None, device: str, method: str, segment: str
) -> Iterator[Figure]:
    for name, least, most in (("cycles", low, high), ("initiation_interval", shortest, longest)):
        if most is None:
            yield unavailable(name, device, f"{method}: undefined, it depends on data or was seen only once", segment)
        else:
            told = f"{method}, worst case" + ("" if least in (None, most) else f" (best {least:,})")
            yield Figure(name, most, "tool-reported", device, told, segment=segment)


def _table_rows(text: str) -> Iterator[list[str]]:
    """Cells of each row of a table drawn with | ; lines of dashes are left out."""
    for line in text.splitlines():
        if line.lstrip().startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if cells and cells[0]:
                yield cells


def _where(path: Path, part: str, device: str) -> str:
    """The board and the part that a report is of. Raises TargetError where that is not the board's.

    Vivado writes a part with or without xc, hyphens, and the grades at its end.
    """
    has = device_profile(device).get("part", str) or ""
    of_report, of_board = (re.sub(r"^xc|-", "", text.lower()) for text in (part, has))
    if of_report and of_board and not of_board.startswith(of_report) and not of_report.startswith(of_board):
        told = f"{path} is a report of {part}; {device} has {has}"
        raise TargetError(told, "build the project for that part, or export for a board with this one")
    return f"{device}, {part}" if part else device


def _part(text: str) -> str:
    found = _DEVICE.search(text)
    return found[1] if found else ""


def _vivado(text: str) -> str:
    found = _TOOL.search(text)
    return found[1] if found else "Vivado"


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise TargetError(f"{path} cannot be read: {error}") from error
    if not text.strip():
        raise TargetError(f"{path} is empty", "the tool was stopped before it wrote its report: run it again")
    return text


def _count(path: Path, what: str, text: str) -> int:
    return int(_written(path, what, text, _COUNT, "a whole number, 0 or more").replace(",", ""))


def _tiles(path: Path, what: str, text: str) -> int:
    """Of block RAM, in halves."""
    return round(2 * float(_written(path, what, text, _TILES, "a number of tiles, whole or with .5").replace(",", "")))


def _ns(path: Path, what: str, text: str) -> float:
    found = float(_written(path, what, text, _NS, "a time in ns"))
    if not math.isfinite(found):
        raise TargetError(f"{path}: {what} is {text!r}, not a time in ns")
    return found


def _period(path: Path, what: str, text: str) -> float:
    found = _ns(path, what, text)
    if found <= 0:
        raise TargetError(f"{path}: {what} is {text!r}, not a period: it has to be above 0 ns")
    return found


def _written(path: Path, what: str, text: str, form: str, told: str) -> str:
    if not re.fullmatch(form, text):
        raise TargetError(f"{path}: {what} is {text!r}, not {told}", "run the tool again, with numbers as in English")
    return text
