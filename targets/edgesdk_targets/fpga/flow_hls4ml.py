"""The flow through hls4ml: a project that a vendor's tool builds, and whose C++ g++ compiles for a check to the bit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesdk_converters.errors import MissingTool, RecipeError, Unsupported

from ..bundle import Bundle, Provider, Runtime
from ..figure import Figure, Interval, unavailable
from ..target import Compiled, Completed
from . import evidence, interface, resources

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer
    from edgesdk_converters.integer_program import IntegerProgram, Integers

    from .hls4ml_flow import Options, Project
    from .hls4ml_terms import FixedLayer
    from .target import Fpga

BUILD = "build/"
OPTIONS = ("backend", "io_type", "strategy", "reuse_factor")
WIDTHS = ("activation_bits", "accumulator_bits")
"""Options of estimates alone: an export has widths of its own."""
COSTS = ("lut", "ff", "dsp", "bram", "cycles")
VECTORS = 1_000
LARGEST = 10**9
_ENTRY = re.compile(r"(?P<node>.+?)=(?P<factor>[0-9]{1,10})(?:,|$)|(?P<rest>.+)", re.ASCII | re.DOTALL)


def compiled(program: IntegerProgram, dtypes: Mapping[str, str], target: Fpga) -> Compiled:
    """The project under build/ with the commands that build it, and the interface for the host."""
    from .hls4ml_flow import Options, project

    part, told = part_for(target)
    config = {"flow": "hls4ml", "name": program.name, "part": part, "clock_ns": f"{1e3 / target.clock_mhz:g}"}
    config |= {name: str(getattr(target, name)) for name in OPTIONS}
    if target.backend == "vivadoaccelerator":
        config["board"] = target.device.name
    if target.reuse_factors:
        config["reuse_factors"] = ",".join(target.reuse_factors)
    made = project(program, _options(config, Options))
    body = next(name for name in sorted(made.files) if name.endswith(f"firmware/{made.options.name}.cpp"))
    runtime = Runtime("fpga", f"{BUILD}{body}", providers=(Provider("g++"),), config=config)
    files = {f"{BUILD}{name}": data for name, data in made.files.items()}
    files[interface.FILE] = interface.Interface.of(program, dtypes).to_bytes()
    step: dict[str, Any] = {
        "step": "vendor", "folder": BUILD.rstrip("/"), "commands": [list(command) for command in made.build.commands],
        "tool": made.build.tool, "tool_name": made.build.tool_name,
    }  # fmt: skip
    if told:
        step["note"] = told
    return Compiled(files, runtime, (step,), (*made.notes, *([told] if told else [])))


def part_for(target: Fpga) -> tuple[str, str]:
    """The device's part, or hls4ml's own choice with a sentence that says so where the back end takes no part of that vendor."""
    from .hls4ml_backends import BACKENDS, XILINX

    part, backend = target.device.get("part", str) or "", BACKENDS[target.backend]
    if backend.takes(part):
        return part, ""
    told = f"part {backend.part} is hls4ml's default for {backend.name}, whose tools are for {backend.vendor}'s parts; "
    return backend.part, told + f"{target.device.title} has a {XILINX} part, {part}"


def kept_in(bundle: Bundle, program: IntegerProgram) -> Project:
    """The project that lies in a bundle. Raises DeviceError where this edgesdk would write another."""
    from .hls4ml_flow import Options, project

    found = project(program, _options(bundle.manifest.runtime.config, Options))
    files = {name: bundle.read(f"{BUILD}{name}") for name in found.files if f"{BUILD}{name}" in bundle.manifest.files}
    evidence.same_design(bundle, found.files, files)
    return replace(found, files=files)


def simulation(
    bundle: Bundle, program: IntegerProgram, progress: Callable[[str], None]
) -> tuple[Callable[[Mapping[str, Integers]], Mapping[str, Integers]], str, str]:
    """A function that runs a bundle's C++, compiled here, and the compiler's name."""
    from .hls4ml_emulation import emulate

    made = kept_in(bundle, program)

    def simulate(codes: Mapping[str, Integers]) -> Mapping[str, Integers]:
        return emulate(made, codes, progress)

    return simulate, "g++", f"emulation of hls4ml's {made.options.backend} project"


def estimated(layers: Sequence[Layer], target: Fpga) -> tuple[Figure, ...]:
    """What layers will take in hls4ml, from their sizes and the bits that were asked for."""
    from .hls4ml_estimate import layers_from_cost

    return of_fixed(layers_from_cost(layers, target.bits, target.activation_bits, target.accumulator_bits), target)


def assumed(target: Fpga) -> str:
    """The widths that an estimate of a network in float takes, and the options that say others."""
    values, sums = target.activation_bits, target.accumulator_bits
    told = f"assumed: weights of {target.bits} bits (bits), activations of {values or target.bits} (activation_bits), "
    told += f"sums {f'of {sums}' if sums else 'as wide as they get'} (accumulator_bits)"
    if values or sums:
        return f"{told}; edgesdk export refuses the last two: it writes activations as wide as weights, sums as wide as they get"
    default = "--set activation_bits=16 --set accumulator_bits=16"
    return f"{told}, as edgesdk export writes them; hls4ml's default type, fixed<16,6>, is {default}"


def of_program(program: IntegerProgram, target: Fpga) -> tuple[Figure, ...]:
    """The same of a network that is in fixed point already, by its own integers."""
    told = "the model's own integers; "
    return tuple(row if row.value is None else replace(row, method=f"{told}{row.method}") for row in _cost(program, target))


def _cost(program: IntegerProgram, target: Fpga) -> tuple[Figure, ...]:
    return of_fixed(layers_on_device(program, target.backend), target)


def layers_on_device(program: IntegerProgram, backend: str) -> tuple[FixedLayer, ...]:
    """What the project computes; the host's part of a network, at its end, costs no logic."""
    from .hls4ml_backends import BACKENDS
    from .hls4ml_estimate import layers_of
    from .hls4ml_flow import divided

    device, _ = divided(program, BACKENDS[backend])
    return tuple(layers_of(device))


def completed(bundle: Bundle, target: Fpga, progress: Callable[[str], None]) -> Completed:
    """Mismatches of the C++ against the integers, and what the network is estimated to take."""
    from .hls4ml_estimate import in_bram18

    program = evidence.program_of(bundle)
    rows = [evidence.of_onnxruntime(bundle, program, progress), *evidence.distances(program)]
    notes: list[str] = []
    codes = evidence.vectors(program, VECTORS)
    progress(f"running {VECTORS} inferences of hls4ml's C++")
    try:
        simulate, _, _ = simulation(bundle, program, progress)
        rows.append(evidence.mismatches(program, codes, simulate(codes), "hls4ml", "hls4ml's C++, compiled with g++"))
    except (MissingTool, Unsupported) as error:
        rows.append(unavailable("mismatches", "hls4ml's C++", error.message, "hls4ml"))
    found = [row for row in _cost(program, target) if row.layer is None]
    rows += found
    needs = {
        row.name: (in_bram18(row) if row.name == "bram" else row).interval or Interval(row.value, row.value, 0.8)
        for row in found
        if row.name in ("lut", "ff", "dsp", "bram") and row.value is not None
    }
    notes += [f"by estimate, {note}" for note in resources.check(target.device, needs)]
    return Completed({}, tuple(rows), tuple(notes))


def of_fixed(layers: Sequence[FixedLayer], target: Fpga) -> tuple[Figure, ...]:
    """The same of layers in fixed point; unavailable where an operator has no formula."""
    from .hls4ml_constants import read_constants
    from .hls4ml_estimate import estimate

    part, other = part_for(target)
    if other:
        reason = f"the estimate's constants are of Vitis, for Xilinx parts; {other}"
        return tuple(unavailable(name, target.device.name, reason) for name in COSTS)
    try:
        found = estimate(
            layers, reuse_factor=target.reuse_factor, reuse_factors=reuse_factors(",".join(target.reuse_factors)),
            strategy=target.strategy, clock_ns=1e3 / target.clock_mhz, io_type=target.io_type, part=part,
            constants=read_constants(Path(target.constants)) if target.constants else None,
        )  # fmt: skip
    except Unsupported as error:
        return tuple(unavailable(name, target.device.name, error.message) for name in COSTS)
    by = "" if target.backend == "vitis" else f"estimated for vitis, not for {target.backend}: "
    return tuple(
        replace(row, where=target.device.name, method=f"{by}{row.method}", extrapolated=row.extrapolated or bool(by))
        for row in found
    )


def reuse_factors(text: str) -> dict[str, int]:
    """Of single nodes, from `NODE=FACTOR,NODE=FACTOR`; nodes may have commas in them. Raises RecipeError for other text."""
    found: dict[str, int] = {}
    for entry in _ENTRY.finditer(text):
        node, factor = entry["node"], entry["factor"]
        if not node or factor is None or not 1 <= int(factor) <= LARGEST:
            told = f"expected NODE=FACTOR, the factor a whole number from 1 to {LARGEST:,}"
            raise RecipeError(f"reuse_factors: {entry[0].rstrip(',')!r}: {told}", "--set reuse_factors=fc1=16,fc2=32")
        if node in found:
            raise RecipeError(f"reuse_factors has two for {node!r}: {found[node]} and {factor}", "give one")
        found[node] = int(factor)
    return found


def _options(config: Mapping[str, str], cls: type[Options]) -> Options:
    return cls(
        backend=config["backend"], part=config["part"], clock_ns=float(config["clock_ns"]),  # type: ignore[arg-type]
        io_type=config["io_type"], strategy=config["strategy"], reuse_factor=int(config["reuse_factor"]),  # type: ignore[arg-type]
        reuse_factors=reuse_factors(config.get("reuse_factors", "")), board=config.get("board", "pynq-z2"),
    )  # fmt: skip
