"""What yosys and nextpnr print about a design, read into counts and figures."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesdk_converters.errors import TargetError

from ..figure import Figure, unavailable

if TYPE_CHECKING:
    from .toolchain import ToolRun

_FF = ("FDRE", "FDSE", "FDCE", "FDPE", "FDRE_1", "FDSE_1", "FDCE_1", "FDPE_1", "LDCE", "LDPE")
_SHIFT = {"SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1}
_LUT_RAM = {
    "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4, "RAM512X1S": 8, "RAM32X1D": 2, "RAM64X1D": 2,
    "RAM128X1D": 4, "RAM256X1D": 8, "RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "RAM32X16DR8": 8, "RAM64X8SW": 8,
}  # fmt: skip
"""LUTs of a distributed RAM: AMD UG474 and UG574, tables of distributed RAM configurations."""
_LOGIC = {"INV": 1, "LUT1": 1, "LUT2": 1, "LUT3": 1, "LUT4": 1, "LUT5": 1, "LUT6": 1, "LUT6_2": 1, "CFGLUT5": 1}
_XILINX: Mapping[str, Mapping[str, int]] = {
    "lut": {**_LOGIC, **_SHIFT, **_LUT_RAM},
    "ff": dict.fromkeys(_FF, 1),
    "dsp": {"DSP48E1": 1, "DSP48E2": 1},
    "bram": {"RAMB18E1": 1, "RAMB18E2": 1, "RAMB36E1": 2, "RAMB36E2": 2},
    "uram": {"URAM288": 1},
}
_ECP5: Mapping[str, Mapping[str, int]] = {
    "lut": {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6},
    "ff": {"TRELLIS_FF": 1},
    "dsp": {"MULT18X18D": 1},
    "bram": {"DP16KD": 1, "PDPW16KD": 1},
    "uram": {},
}
"""A carry cell takes both LUTs of its slice; a distributed RAM of 16 x 4 bits takes four, and two more for its write port."""
_FREE = frozenset(
    {
        "IBUF", "OBUF", "OBUFT", "IOBUF", "BUFG", "BUFGCTRL", "BUFGCE", "BUFHCE", "MUXF7", "MUXF8", "MUXF9", "CARRY4", "CARRY8",
        "GND", "VCC", "PFUMX", "L6MUX21", "TRELLIS_IO", "DCCA", "GSR", "VHI", "VLO", "ALU54B", "$scopeinfo",
    }
)  # fmt: skip
"""Cells that take nothing that is counted: pads, clock buffers, wide multiplexers and carries inside a slice, constants."""
_COUNTS: Mapping[str, Mapping[str, Mapping[str, int]]] = {"xc7": _XILINX, "xcup": _XILINX, "ecp5": _ECP5}
_ROUTED = {"lut": "TRELLIS_COMB", "ff": "TRELLIS_FF", "dsp": "MULT18X18D", "bram": "DP16KD"}
_VERSION = re.compile(r"(?:Yosys|nextpnr-|Version|version) ?v?(\d[\w.+-]*)")
_PORT = re.compile(r"\s*(?:input|output|inout) (?:\[(\d+):(\d+)\] )?\S")


@dataclass(frozen=True)
class Synthesised:
    """Resources that the cells of a mapped netlist take; `remarks` say what a reader must know of the counts."""

    lut: int
    ff: int
    dsp: int
    bram: int
    uram: int
    cells: Mapping[str, int]
    remarks: tuple[str, ...]

    def needs(self) -> dict[str, float]:
        """By resource, as `resources.check` takes them."""
        return {"lut": self.lut, "ff": self.ff, "dsp": self.dsp, "bram": self.bram, "uram": self.uram}


@dataclass(frozen=True)
class CriticalPath:
    """The slowest way between registers of one clock, or from or to `pins`. `start` and `end` are its first and last net, or the
    source line of one that has no name of its own."""

    start: str
    end: str
    logic_ns: float
    routing_ns: float

    @property
    def total_ns(self) -> float:
        """From one clock edge to the setup of the next."""
        return self.logic_ns + self.routing_ns


@dataclass(frozen=True)
class Routed:
    """nextpnr's report: (used, available) by cell type, (achieved, asked for) MHz by clock, and the critical paths."""

    used: Mapping[str, tuple[int, int]]
    clocks_mhz: Mapping[str, tuple[float, float]]
    paths: tuple[CriticalPath, ...]


def synthesised(path: Path, family: str) -> Synthesised:
    """What yosys' `stat -json` counted. Raises TargetError for a file of another form and for cells that are not known."""
    data = _json(path)
    cells = data.get("design", {}).get("num_cells_by_type", {}) if isinstance(data.get("design", {}), dict) else None
    if not isinstance(cells, dict) or "modules" not in data:
        raise TargetError(f"{path}: no report of yosys' `stat -json`: 'modules' or 'design' is missing")
    wrong = next((cell for cell, number in cells.items() if not _is_count(number)), None)
    if wrong is not None:
        raise TargetError(f"{path}: {wrong} is {cells[wrong]!r}, not a whole number, 0 or more", "run synthesis again")
    kinds = _COUNTS[family]
    known = _FREE.union(*kinds.values())
    strange = sorted(set(cells) - known)
    if strange:
        raise TargetError(
            f"{path}: synthesis left cells that are not counted for {family}: {', '.join(strange)}",
            "a module without a definition, or logic that the family does not have",
        )
    counts = {name: sum(each * cells.get(cell, 0) for cell, each in of.items()) for name, of in kinds.items()}
    return Synthesised(**counts, cells=dict(cells), remarks=_remarks(cells, family))


def routed(path: Path) -> Routed:
    """nextpnr's `--report`. Raises TargetError for a file that misses what is read from it."""
    data = _json(path)
    try:
        used = {name: (int(entry["used"]), int(entry["available"])) for name, entry in data["utilization"].items()}
        clocks = {name: (float(entry["achieved"]), float(entry["constraint"])) for name, entry in data["fmax"].items()}
        paths = tuple(map(_path, data["critical_paths"]))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TargetError(f"{path}: no report of nextpnr: {type(error).__name__} {error}") from error
    for name, (achieved, asked) in clocks.items():
        if not 0 < achieved < math.inf or not 0 < asked < math.inf:
            told = f"{achieved:g} MHz achieved, {asked:g} MHz asked for"
            raise TargetError(f"{path}: clock {name} has {told}; both have to be above 0", "run place and route again")
    wrong = next((name for name, entry in data["utilization"].items() if not _is_count(entry["used"])), None)
    if wrong is not None:
        told = f"{wrong} is {data['utilization'][wrong]['used']!r}, not a whole number, 0 or more"
        raise TargetError(f"{path}: {told}", "run place and route again")
    absent = sorted(set(_ROUTED.values()) - set(used))
    if absent:
        raise TargetError(f"{path}: nextpnr's utilization lacks {', '.join(absent)}", "nextpnr-ecp5 0.5 or newer is needed")
    return Routed(used, clocks, paths)


def port_bits(path: Path, top: str) -> int:
    """Bits of all ports of the top module in a netlist that yosys wrote: pins that it takes."""
    bits, inside = 0, False
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            inside = line.startswith(f"module {top}(") or (inside and not line.startswith("endmodule"))
            found = _PORT.match(line) if inside else None
            if found:
                bits += abs(int(found[1]) - int(found[2])) + 1 if found[1] else 1
    return bits


def tool_version(text: str) -> str:
    """The version in what a tool prints when asked for it, `unknown` where it is not found."""
    found = _VERSION.search(text)
    return found[1].rstrip(".") if found else "unknown"


def figures(run: ToolRun, segment: str = "whole") -> tuple[Figure, ...]:
    """Resources and clock of a run design: of the routed one where it was routed, else of the cells that synthesis left.

    `fmax_mhz` is the clock with the least of what was asked for, over paths between registers; unavailable where nothing was
    routed or nothing is clocked.
    """
    from . import toolchain

    device, synthesis, routing = run.plan.device.name, run.step("synthesis"), run.step("place-and-route")
    assert synthesis is not None
    mapped = synthesised(run.folder / toolchain.CELLS, run.plan.family)
    by = f"yosys {synthesis.version} {run.plan.synthesis}"
    if routing is None:
        method = f"{by}, mapped cells, not placed"
        counts = {
            name: int(count)
            for name, count in mapped.needs().items()
            if name != "uram" or (run.plan.device.get("uram", int) or 0) > 0
        }
        rows = [Figure(n, v, "tool-reported", device, _with(method, n, mapped), segment=segment) for n, v in counts.items()]
        why = "no free place and route exists for this family" if run.plan.family != "ecp5" else "the design was not routed"
        return (*rows, unavailable("fmax_mhz", device, f"{why}; yosys knows no wire delays", segment))
    found = routed(run.folder / toolchain.TIMING)
    speed = run.plan.device.need("speed_grade", str)
    method = f"{by}; nextpnr-ecp5 {routing.version} place and route, speed grade {speed}, seed {run.plan.seed}"
    rows = [Figure(n, found.used[c][0], "tool-reported", device, f"{method}: {c}", segment=segment) for n, c in _ROUTED.items()]
    if not found.clocks_mhz:
        return (*rows, unavailable("fmax_mhz", device, "no path between registers: nothing is clocked", segment))
    clock = min(found.clocks_mhz, key=lambda name: found.clocks_mhz[name][0] / found.clocks_mhz[name][1])
    achieved, asked = found.clocks_mhz[clock]
    told = f"{method}: {asked:g} MHz asked for, {'met' if achieved >= asked else 'missed'}; between registers only"
    return (*rows, Figure("fmax_mhz", round(achieved, 2), "tool-reported", device, told, segment=segment))


def notes(run: ToolRun) -> tuple[str, ...]:
    """Each tool's version, time and memory; what to know of the counts; critical paths; what fills the part."""
    from . import toolchain

    told = [
        f"{step.name}: {step.tool} {step.version}, {step.seconds:.1f} s, {step.peak_memory_bytes / 1e6:.0f} MB"
        for step in run.steps
    ]
    told += synthesised(run.folder / toolchain.CELLS, run.plan.family).remarks
    if run.step("place-and-route") is not None:
        found = routed(run.folder / toolchain.TIMING)
        told += [
            f"critical path from {p.start} to {p.end}: {p.total_ns:.2f} ns ({p.logic_ns:.2f} logic, {p.routing_ns:.2f} routing)"
            for p in found.paths
        ]
        told += [
            f"the design keeps {achieved:.4g} MHz, not the {asked:g} MHz asked for: what runs it faster may get wrong results; "
            f"--set clock_ns={math.ceil(1e4 / achieved) / 10:g} asks for what it keeps"
            for achieved, asked in found.clocks_mhz.values()
            if achieved < asked
        ]
    return (*told, *run.notes)


def _remarks(cells: Mapping[str, int], family: str) -> tuple[str, ...]:
    def luts(kinds: Mapping[str, int]) -> int:
        return sum(each * cells.get(cell, 0) for cell, each in kinds.items())

    if family == "ecp5":
        carry, memory = luts({"CCU2C": 2}), luts({"TRELLIS_DPR16X4": 6})
        told = [f"{carry} of the LUTs carry (CCU2C)"] if carry else []
        told += [f"{memory} of the LUTs are distributed RAM"] if memory else []
        told += [f"{cells['ALU54B']} ALU54B are not counted"] if cells.get("ALU54B") else []
        return tuple(told)
    shift, memory, small = luts(_SHIFT), luts(_LUT_RAM), sum(cells.get(f"LUT{n}", 0) for n in range(1, 6))
    told = [f"{shift} of the LUTs are shift registers"] if shift else []
    told += [f"{memory} of the LUTs are distributed RAM"] if memory else []
    told += (
        [f"{small} LUTs have at most 5 inputs: two of them can share a LUT6, so that Vivado may report fewer"] if small else []
    )
    return tuple(told)


def _with(method: str, name: str, mapped: Synthesised) -> str:
    return f"{method}; {'; '.join(mapped.remarks)}" if name == "lut" and mapped.remarks else method


def _path(entry: Mapping[str, Any]) -> CriticalPath:
    parts = entry["path"]
    wires = sum(float(part["delay"]) for part in parts if part["type"] == "routing")
    total = sum(float(part["delay"]) for part in parts)

    def place(side: str, part: Mapping[str, Any]) -> str:
        if side == "<async>":
            return "pins"
        net, sources = part.get("net", part["from"]["cell"]), part.get("sources") or ()
        return str(sources[0] if net.startswith("$") and sources else net)  # yosys' own names tell nobody anything

    routing = [part for part in parts if part["type"] == "routing"] or parts
    return CriticalPath(place(entry["from"], routing[0]), place(entry["to"], routing[-1]), total - wires, wires)


def _is_count(number: object) -> bool:
    return isinstance(number, int) and number >= 0


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TargetError(f"{path} cannot be read as a report: {error}") from error
    if not isinstance(data, dict):
        raise TargetError(f"{path} cannot be read as a report: it holds {type(data).__name__}, not an object")
    return data
