"""The flow straight to Verilog: a design of our own, simulated, and with free tools synthesised, placed and routed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgesdk_converters.errors import EdgeError, MissingTool, RecipeError, TargetError, Unsupported

from ..bundle import Bundle, Provider, Runtime
from ..figure import Figure, unavailable
from ..target import Compiled, Completed
from . import evidence, interface, reports, testbench, tool_process, toolchain
from .design import Design, Forms, design, forms_of
from .segments import Form, weighted
from .verilog_text import identifier

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer
    from edgesdk_converters.integer_program import IntegerProgram, Integers

    from .hls4ml_terms import FixedLayer
    from .target import Fpga

BUILD = "build/"
IMAGE = "design.bit"
FORMS = "forms"
"""In a bundle's configuration: the form of each node with weights, as JSON."""
OPTIONS = ("form", "max_weights_unrolled", "multipliers", "target_cycles", "port_bits")
MOST_SEARCHED = 10_000
"""Weights of unrolled layers in an estimate: 5,000 take a second, and ten times as many a quarter of an hour."""
NETLIST_VECTORS = 100
NETLIST_LUTS = 8_000
"""Up to which the synthesised netlist is simulated too, if it has no memories and multipliers, of which there are no models."""
PORT_VECTORS = 5
TITLES: Mapping[testbench.Simulator, str] = {"verilator": "Verilator", "iverilog": "Icarus"}
SIMULATING = ("verilator", "iverilog", "vvp", testbench.BENCH)
"""Programs of a simulation, as errors name them: no option leaves it out."""
UNTIL: Mapping[str, toolchain.Stage] = {"auto": "bitstream", "synthesis": "synthesis", "routing": "place-and-route"}


def compiled(program: IntegerProgram, dtypes: Mapping[str, str], target: Fpga) -> Compiled:
    """Verilog, scripts and a Makefile under build/, and the interface for the host."""
    made = made_for(program, {name: str(getattr(target, name)) for name in OPTIONS})
    ends, wired = interface.Interface.of(program, dtypes), interface.wiring(made)
    told = {interface.WIRING_FILE: interface.wiring_text(ends, wired, program.name, target.clock_mhz)}
    beside = told | pins(target, len(made.inputs), len(made.outputs))
    plan = toolchain.plan({**made.files, **beside}, made.serial, target.device, clock_mhz=target.clock_mhz)
    config = {"flow": "rtl", "name": program.name, "top": made.serial, "clock_mhz": f"{target.clock_mhz:.6g}"}
    config |= {name: str(getattr(target, name)) for name in OPTIONS}
    config[FORMS] = json.dumps(_forms(program, target), sort_keys=True)
    runtime = Runtime("fpga", f"{BUILD}{made.core}.v", providers=(Provider("verilator"),), config=config)
    files = {f"{BUILD}{name}": data for name, data in plan.files.items()}
    files[interface.FILE] = ends.to_bytes(wired)
    return Compiled(files, runtime, ({"step": "make", "folder": BUILD.rstrip("/")},), tuple(_told(made)))


def pins(target: Fpga, inputs: int, outputs: int) -> dict[str, bytes]:
    """The board's pins, where the target has a file of them, for a design of so many tensors.

    Raises RecipeError for a file that is not there or does not place just the design's ports.
    """
    if not target.pins:
        return {}
    try:
        data = Path(target.pins).read_bytes()
        toolchain.check_pins(data, interface.port_names(inputs, outputs, target.port_bits), target.clock_mhz)
    except OSError as error:
        raise RecipeError(f"pins: {target.pins} cannot be read: {error.strerror}", "give a board's .lpf") from error
    except TargetError as error:
        raise RecipeError(f"pins: {target.pins}: {error.message}", error.hint) from error
    return {toolchain.PINS: data}


def made_for(program: IntegerProgram, options: Mapping[str, str], forms: Mapping[str, Form] | None = None) -> Design:
    """The design that options as text stand for: those of a target, or those that a bundle keeps; `forms` of nodes go before."""
    return design(
        program, options["form"],  # type: ignore[arg-type]
        max_weights_unrolled=int(options["max_weights_unrolled"]), multipliers=int(options["multipliers"]),
        target_cycles=int(options["target_cycles"]), port_bits=int(options["port_bits"]), forms=forms,
    )  # fmt: skip


def _forms(program: IntegerProgram, target: Fpga) -> dict[str, Form]:
    """The form of each node with weights, which a bundle keeps: the rule that chose it may change."""
    chosen, _ = forms_of(program, target.form, target.max_weights_unrolled, {})
    return {one.node: chosen[one.result] for one in weighted(program)}


def _forms_in(bundle: Bundle, program: IntegerProgram) -> dict[str, Form]:
    """The same of a bundle; of an older one by its files, as folded layers alone have weights in memory."""
    if FORMS in bundle.manifest.runtime.config:
        told: dict[str, Form] = json.loads(bundle.manifest.runtime.config[FORMS])
        return told
    memory = re.compile(rf"{BUILD}stage\d+_(.+)_weights\.hex")
    folded = {found[1] for name in bundle.manifest.files if (found := memory.fullmatch(name))}
    return {one.node: "folded" if identifier(one.node) in folded else "unrolled" for one in weighted(program)}


def kept_in(bundle: Bundle, program: IntegerProgram) -> Design:
    """The design whose files lie in a bundle. Raises DeviceError where this edgesdk would write other ones."""
    found = made_for(program, bundle.manifest.runtime.config, _forms_in(bundle, program))
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


def of_program(program: IntegerProgram, target: Fpga) -> tuple[Figure, ...]:
    """The same of a network that is in fixed point already, by the very design that an export would write of it."""
    from .rtl_estimate import NAMES, estimate

    options = {name: str(getattr(target, name)) for name in OPTIONS}
    try:
        found = estimate(_sketched(program, options), target.device, target.clock_mhz)
    except EdgeError as error:
        return tuple(unavailable(name, target.device.name, error.message) for name in NAMES)
    told = "the model's own integers; "
    return tuple(row if row.value is None else replace(row, method=f"{told}{row.method}") for row in found)


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
            rows += _simulated(made, program, folder, progress, tool_process.Limit.of(60 * target.tool_minutes))
            cycles = next(row for row in rows if row.name == "cycles")
        except MissingTool as error:
            rows.append(unavailable("cycles", error.tool, error.message))
        if target.tools == "none":
            rows += _expected(made, target)
        else:
            found, more, files = _built(made, program, target, folder, cycles, progress)
            rows += found
            notes += more
    return Completed(files, tuple(rows), tuple(notes))


def _simulated(
    made: Design, program: IntegerProgram, folder: Path, progress: Callable[[str], None], limit: tool_process.Limit
) -> Iterator[Figure]:
    simulator = _simulator()
    title = TITLES[simulator]
    count = evidence.vector_count(made.interval_cycles, evidence.SIMULATED_CYCLES[simulator])
    codes = evidence.vectors(program, count)
    progress(f"simulating {count} inferences of the Verilog")
    done = testbench.simulate(made, codes, simulator, folder / "core", progress, limit=limit)
    yield evidence.mismatches(program, codes, done.outputs, "rtl", f"{title}, the bare core")
    few = {name: array[:PORT_VECTORS] for name, array in codes.items()}
    progress("simulating the design behind its ports")
    shell = testbench.simulate(made, few, simulator, folder / "ports", progress, level="serial", stalls=True, limit=limit)
    told = f"{title}, {made.port_bits}-bit ports that stall at random"
    yield evidence.mismatches(program, few, shell.outputs, "ports", told)
    told = f"{title}, first beat in to last beat out, the bare core"
    yield Figure("cycles", done.latency_cycles, "simulated", title, told, n=1)
    if done.interval_cycles is not None:
        told = f"{title}, between results of {count} inferences back to back; with the ports {made.serial_interval_cycles:,}"
        yield Figure("initiation_interval", round(done.interval_cycles, 2), "simulated", title, told, n=count)


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
    files = {**made.files, **pins(target, len(made.inputs), len(made.outputs))}
    plan = toolchain.plan(files, made.serial, device, clock_mhz=target.clock_mhz, until=UNTIL[target.tools])
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
        limit = tool_process.Limit.of(60 * target.tool_minutes)
        try:
            done = testbench.simulate_netlist(
                made, few, folder / "netlist", progress, level="serial", netlist=netlist, limit=limit
            )
            rows.append(evidence.mismatches(program, few, done.outputs, "netlist", told))
        except (MissingTool, tool_process.TookTooLong) as error:
            rows.append(unavailable("mismatches", told, error.message, "netlist"))
    fmax = next((row for row in rows if row.name == "fmax_mhz"), None)
    rows.append(_latency(fmax, cycles, device.name))
    image = folder / "build" / toolchain.IMAGE
    return rows, notes, {f"{BUILD}{IMAGE}": image.read_bytes()} if image.is_file() else {}


def _latency(fmax: Figure | None, cycles: Figure | None, device: str) -> Figure:
    """Simulated cycles at the clock that place and route reached."""
    if fmax is None or fmax.value is None or cycles is None or cycles.value is None:
        no_clock = "no clock is known" + ("" if fmax is None else f": {fmax.method}")
        return unavailable("latency_ms", device, no_clock if fmax is None or fmax.value is None else "no simulated cycles")
    told = f"{cycles.value:,} cycles (simulated) at {fmax.value:.4g} MHz ({fmax.provenance}: {fmax.method}); none on a board"
    return Figure("latency_ms", cycles.value / fmax.value / 1e3, "simulated", device, told, n=1)


def _told(made: Design) -> Iterator[str]:
    """How each layer is built, and what a host has to keep in mind."""
    for layer in made.layers:
        if layer.weights:
            yield f"{layer.node}: {layer.form}, {layer.cycles:,} cycles an inference ({layer.reason})"
    several = [
        f"{len(streams)} {what}" for streams, what in ((made.inputs, "inputs"), (made.outputs, "outputs")) if len(streams) > 1
    ]
    if several:
        told = f"the design has {' and '.join(several)}: a host has to serve all ports at once, one after another can hang"
        yield f"{told} ({BUILD}{interface.WIRING_FILE})"


def simulation(
    bundle: Bundle, program: IntegerProgram, folder: Path, progress: Callable[[str], None]
) -> tuple[Callable[[Mapping[str, Integers]], Mapping[str, Integers]], str, str]:
    """A function that simulates a bundle's Verilog, and the simulator's name and version."""
    made = kept_in(bundle, program)
    simulator = _simulator()

    def simulate(codes: Mapping[str, Integers]) -> Mapping[str, Integers]:
        return testbench.simulate(made, codes, simulator, folder, progress).outputs

    return simulate, simulator, _version(simulator)


def _simulator() -> testbench.Simulator:
    """Verilator, or Icarus where that alone is here."""
    return "verilator" if shutil.which("verilator") or not shutil.which("iverilog") else "iverilog"


def _version(simulator: str) -> str:
    """As the program prints it; empty where it is not there."""
    if shutil.which(simulator) is None:
        return ""
    asked = [simulator, "--version" if simulator == "verilator" else "-V"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return next(iter(re.findall(r"\d+\.\d+", told)), "")
