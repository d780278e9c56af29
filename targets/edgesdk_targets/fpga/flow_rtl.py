"""The flow straight to Verilog: a design of our own, simulated, and with free tools synthesised, placed and routed."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgesdk_converters.errors import MissingTool, Unsupported

from ..bundle import Bundle, Provider, Runtime
from ..figure import Figure, unavailable
from ..target import Compiled, Completed
from . import evidence, interface, reports, testbench, toolchain
from .design import Design, Forms, design, forms_of
from .segments import weighted

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer
    from edgesdk_converters.integer_program import IntegerProgram, Integers

    from .hls4ml_terms import FixedLayer
    from .target import Fpga

BUILD = "build/"
IMAGE = "design.bit"
OPTIONS = ("form", "max_weights_unrolled", "multipliers", "target_cycles", "port_bits")
MOST_SEARCHED = 10_000
"""Weights of unrolled layers in an estimate: 5,000 take a second, and ten times as many a quarter of an hour."""
NETLIST_VECTORS = 100
NETLIST_LUTS = 8_000
"""Up to which the synthesised netlist is simulated too, if it has no memories and multipliers, of which there are no models."""
PORT_VECTORS = 5
UNTIL: Mapping[str, toolchain.Stage] = {"auto": "bitstream", "synthesis": "synthesis", "routing": "place-and-route"}


def compiled(program: IntegerProgram, dtypes: Mapping[str, str], target: Fpga) -> Compiled:
    """Verilog, scripts and a Makefile under build/, and the interface for the host."""
    made = made_for(program, {name: str(getattr(target, name)) for name in OPTIONS})
    plan = toolchain.plan(made.files, made.serial, target.device, clock_mhz=target.clock_mhz)
    config = {"flow": "rtl", "name": program.name, "top": made.serial, "clock_mhz": f"{target.clock_mhz:.6g}"}
    config |= {name: str(getattr(target, name)) for name in OPTIONS}
    runtime = Runtime("fpga", f"{BUILD}{made.core}.v", providers=(Provider("verilator"),), config=config)
    files = {f"{BUILD}{name}": data for name, data in plan.files.items()}
    files[interface.FILE] = interface.Interface.of(program, dtypes).to_bytes()
    return Compiled(files, runtime, ({"step": "make", "folder": BUILD.rstrip("/")},), tuple(_told(made)))


def made_for(program: IntegerProgram, options: Mapping[str, str]) -> Design:
    """The design that options as text stand for: those of a target, or those that a bundle keeps."""
    return design(
        program, options["form"],  # type: ignore[arg-type]
        max_weights_unrolled=int(options["max_weights_unrolled"]), multipliers=int(options["multipliers"]),
        target_cycles=int(options["target_cycles"]), port_bits=int(options["port_bits"]),
    )  # fmt: skip


def kept_in(bundle: Bundle, program: IntegerProgram) -> Design:
    """The design whose files lie in a bundle. Raises DeviceError where this edgesdk would write other ones."""
    found = made_for(program, bundle.manifest.runtime.config)
    files = {name: bundle.read(f"{BUILD}{name}") for name in found.files if f"{BUILD}{name}" in bundle.manifest.files}
    evidence.same_design(bundle, found.files, files)
    return replace(found, files=files)


def estimated(layers: Sequence[Layer], target: Fpga) -> tuple[Figure, ...]:
    """What layers will take as logic, by the design that their sizes and the bits asked for give with random weights."""
    from .rtl_estimate import of_sketch
    from .rtl_from_layers import of_layers

    options = {name: str(getattr(target, name)) for name in OPTIONS}
    return of_sketch(lambda: _sketched(of_layers(layers, target.bits), options), target.device, target.clock_mhz)


def of_fixed(layers: Sequence[FixedLayer], target: Fpga) -> tuple[Figure, ...]:
    """The same of layers in fixed point."""
    from .rtl_estimate import of_sketch
    from .rtl_from_layers import of_fixed as program_of

    options = {name: str(getattr(target, name)) for name in OPTIONS}
    return of_sketch(lambda: _sketched(program_of(layers), options), target.device, target.clock_mhz)


def _sketched(program: IntegerProgram, options: Mapping[str, str]) -> Design:
    """`made_for`, unless the search of what constant weights share would take longer than an estimate may. Raises Unsupported."""
    form = cast(Forms, options["form"])
    forms, _ = forms_of(program, form, int(options["max_weights_unrolled"]), {})
    sizes = {one: one.weight.size for one in weighted(program) if forms[one.result] == "unrolled"}
    if sum(sizes.values()) > MOST_SEARCHED:
        largest = max(sizes, key=lambda one: sizes[one])
        told = (
            f"{sum(sizes.values()):,} weights to be unrolled, {sizes[largest]:,} of them here; an estimate does {MOST_SEARCHED:,}"
        )
        raise Unsupported(
            "the rtl estimate",
            largest.node,
            type(largest).__name__,
            told,
            "estimate form=auto or form=folded; edgesdk export builds it",
        )
    return made_for(program, options)


def completed(bundle: Bundle, target: Fpga, progress: Callable[[str], None]) -> Completed:
    """Mismatches at every level that can be run here, cycles, what the tools report, and the bitstream where there is one."""
    program = evidence.program_of(bundle)
    made = kept_in(bundle, program)
    rows: list[Figure] = [evidence.of_onnxruntime(bundle, program, progress), *evidence.distances(program)]
    notes: list[str] = []
    files: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="edgesdk-fpga-") as scratch:
        folder = Path(scratch)
        cycles = None
        try:
            rows += _simulated(made, program, folder, progress)
            cycles = next(row for row in rows if row.name == "cycles")
        except MissingTool as error:
            rows.append(unavailable("cycles", "verilator", error.message))
        if target.tools == "none":
            rows += _expected(made, target)
        else:
            found, more, files = _built(made, program, target, folder, cycles, progress)
            rows += found
            notes += more
    return Completed(files, tuple(rows), tuple(notes))


def _simulated(made: Design, program: IntegerProgram, folder: Path, progress: Callable[[str], None]) -> Iterator[Figure]:
    count = evidence.vector_count(made.interval_cycles)
    codes = evidence.vectors(program, count)
    progress(f"simulating {count} inferences of the Verilog")
    done = testbench.simulate(made, codes, "verilator", folder / "core", progress)
    yield evidence.mismatches(program, codes, done.outputs, "rtl", "Verilator, the bare core")
    few = {name: array[:PORT_VECTORS] for name, array in codes.items()}
    progress("simulating the design behind its ports")
    shell = testbench.simulate(made, few, "verilator", folder / "ports", progress, level="serial", stalls=True)
    yield evidence.mismatches(program, few, shell.outputs, "ports", f"Verilator, {made.port_bits}-bit ports that stall at random")
    told = "Verilator, first beat in to last beat out, the bare core"
    yield Figure("cycles", done.latency_cycles, "simulated", "Verilator", told, n=1)
    if done.interval_cycles is not None:
        told = f"Verilator, between results of {count} inferences back to back; with the ports {made.serial_interval_cycles:,}"
        yield Figure("initiation_interval", round(done.interval_cycles, 2), "simulated", "Verilator", told, n=count)


def _expected(made: Design, target: Fpga) -> list[Figure]:
    """What synthesis and routing would give, by estimate; cycles are left to the simulation."""
    from .rtl_estimate import estimate

    found = estimate(made, target.device, target.clock_mhz)
    return [row for row in found if row.layer is None and row.name in ("lut", "ff", "dsp", "bram", "fmax_mhz", "latency_ms")]


def _built(
    made: Design, program: IntegerProgram, target: Fpga, folder: Path, cycles: Figure | None, progress: Callable[[str], None]
) -> tuple[list[Figure], list[str], dict[str, bytes]]:
    """What synthesis, place and route say."""
    device = target.device
    plan = toolchain.plan(made.files, made.serial, device, clock_mhz=target.clock_mhz, until=UNTIL[target.tools])
    for step in plan.steps:
        try:
            toolchain.find(step.argv[0])
        except MissingTool as error:
            told = f"{error.message}; {error.hint}"
            return _expected(made, target), [f"not synthesised, so that its figures are estimates: {told}"], {}
    run = toolchain.run(plan, folder / "build", progress=progress, timeout_s=60 * target.tool_minutes)
    rows = list(reports.figures(run))
    notes = list(reports.notes(run))
    luts = next((row.value for row in rows if row.name == "lut" and row.value is not None), None)
    hard = sum(row.value or 0 for row in rows if row.name in ("dsp", "bram"))
    small = luts is not None and luts <= NETLIST_LUTS
    if target.is_lattice and not hard and small:
        few = evidence.vectors(program, NETLIST_VECTORS)
        progress("simulating the netlist")
        netlist = (folder / "build" / toolchain.NETLIST).read_bytes()
        told = "the synthesised netlist, in Icarus"
        try:
            done = testbench.simulate_netlist(made, few, folder / "netlist", progress, level="serial", netlist=netlist)
            rows.append(evidence.mismatches(program, few, done.outputs, "netlist", told))
        except MissingTool as error:
            rows.append(unavailable("mismatches", told, error.message, "netlist"))
    fmax = next((row for row in rows if row.name == "fmax_mhz"), None)
    rows.append(_latency(fmax, cycles, device.name))
    image = folder / "build" / toolchain.IMAGE
    return rows, notes, {f"{BUILD}{IMAGE}": image.read_bytes()} if image.is_file() else {}


def _latency(fmax: Figure | None, cycles: Figure | None, device: str) -> Figure:
    """Simulated cycles at the clock that place and route reached."""
    if fmax is None or fmax.value is None or cycles is None or cycles.value is None:
        why = "no clock is known without place and route, which is not free for this family"
        return unavailable("latency_ms", device, why if fmax is None or fmax.value is None else "no simulated cycles")
    told = f"{cycles.value:,} cycles (simulated) at {fmax.value:.4g} MHz ({fmax.provenance}: {fmax.method}); none on a board"
    return Figure("latency_ms", cycles.value / fmax.value / 1e3, "simulated", device, told, n=1)


def _told(made: Design) -> Iterator[str]:
    """How each layer is built."""
    for layer in made.layers:
        if layer.weights:
            yield f"{layer.node}: {layer.form}, {layer.cycles:,} cycles an inference ({layer.reason})"


def simulation(
    bundle: Bundle, program: IntegerProgram, folder: Path, progress: Callable[[str], None]
) -> tuple[Callable[[Mapping[str, Integers]], Mapping[str, Integers]], str, str]:
    """A function that simulates a bundle's Verilog, and the simulator's name and version."""
    made = kept_in(bundle, program)
    simulator: testbench.Simulator = "verilator" if shutil.which("verilator") or not shutil.which("iverilog") else "iverilog"

    def simulate(codes: Mapping[str, Integers]) -> Mapping[str, Integers]:
        return testbench.simulate(made, codes, simulator, folder, progress).outputs

    return simulate, simulator, _version(simulator)


def _version(simulator: str) -> str:
    """As the program prints it; empty where it is not there."""
    if shutil.which(simulator) is None:
        return ""
    asked = [simulator, "--version" if simulator == "verilator" else "-V"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return next(iter(re.findall(r"\d+\.\d+", told)), "")
