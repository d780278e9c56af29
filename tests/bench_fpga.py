"""FPGA: whether all levels of a design compute the same integers, what free tools make of it, and how that grows.

python -m tests.bench_fpga [levels] [tools] [alone] [growth] [--nets NAME ...] [--limit-minutes N]

A net's name is that of CHOICES in fpga_nets.py (jet-4, fashion-8). `growth` is drawn too, in build/bench/growth.html. What took
long is kept under build/bench, so that a bench that was stopped goes on. Times and memory are of the run that is kept, with the
load that it met.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from edgesdk_converters.errors import DoesNotFit, ToolError, Unsupported
from edgesdk_converters.integer_program import Clip, Dense, IntegerProgram, Integers, Round
from edgesdk_targets.device import profile
from edgesdk_targets.fpga import reports, rtl_estimate, toolchain
from edgesdk_targets.fpga.design import Design, design
from edgesdk_targets.fpga.hls4ml_estimate import estimate, layers_of
from edgesdk_targets.fpga.kernel import KernelOptions, kernel
from edgesdk_targets.fpga.segments import weighted

from . import bench_adder_graph
from .bench_adder_graph import CUTOFF, DA4ML, Layers
from .bench_peers import installed
from .bench_quantised import show
from .bench_smaller import told
from .fpga_levels import HLS_DEVICE, Found, Row, core, kept, levels, ports
from .fpga_nets import CHOICES, Case, Choice, digest
from .growth_chart import Grown, page
from .targets.fpga.integer_nets import dense_net

DEVICE = "ecp5-85k"
CLOCK_MHZ = 100.0
GROWTH_BITS, GROWTH_MULTIPLIERS = 6, 16
GROWTH = {"folded": (16, 32, 64, 128, 256, 512, 704, 1024), "unrolled": (8, 16, 24, 32, 40, 48, 64)}
GROWTH_PAGE = Path("build", "bench", "growth.html")
ALONE = tuple(Choice(net, bits, rounding="truncate") for net, bits in (("jet-small", 4), ("jet", 4), ("jet", 6), ("jet", 8)))
"""Rounded as da4ml's quantiser does, and compared without ports around it."""
MOST_ROUTED = 1500
"""Adders of our kernel up to which both are placed and routed too: those of 16-32-32-5 do not route in half an hour."""
CELLS = ("net", "form", "COMB", "FF", "DSP", "EBR", "Fmax MHz", "bitstream")
TIMES = ("net", "cycles", "latency ns", "interval", "per second", "yosys s", "nextpnr s", "MB", "load")
LOGIC = ("net", "by", "adders", "stages", "COMB", "FF", "Fmax MHz", "latency ns", "yosys s", "nextpnr s", "MB", "load")
ESTIMATE = ("net", "strategy", "reuse", "LUT", "FF", "DSP", "BRAM (36 kbit)", "cycles", "interval", "Fmax MHz", "latency ns")
BESIDE = ("net", "figure", "found", "estimated", "interval", "off")
GREW = ("net", "weights", "COMB", "FF", "DSP", "EBR", "MHz", "interval", "design s", "yosys s", "nextpnr s", "MB", "load")


def built(
    label: str, files: Mapping[str, bytes], top: str, limit_minutes: float, until: toolchain.Stage = toolchain.BITSTREAM
) -> Found:
    """What the tools make of a design: rows of the report, and each step's time, memory and version; `why` where it fails.

    One that is not to be placed may have more ports than the part has pins.
    """
    device = profile(DEVICE)
    if until == toolchain.SYNTHESIS:
        device = replace(device, facts={name: fact for name, fact in device.facts.items() if name != "io"})
    plan = toolchain.plan(files, top, device, clock_mhz=CLOCK_MHZ, until=until)
    for step in plan.steps:
        toolchain.find(step.argv[0])

    def make() -> Found:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            load = os.getloadavg()[0]
            try:
                run = toolchain.run(plan, folder, progress=told(label), timeout_s=60 * limit_minutes)
            except DoesNotFit as error:
                return {"why": error.message}
            except ToolError as error:
                return {"why": error.message, "minutes": (time.monotonic() - began) / 60}
            steps = {step.name: [step.seconds, step.peak_memory_bytes / 1e6, f"{step.tool} {step.version}"] for step in run.steps}
            values = {row.name: row.value for row in reports.figures(run)}
            image = Path(folder, toolchain.IMAGE)
            size = image.stat().st_size if image.is_file() else 0
            return {"values": values, "steps": steps, "bitstream_bytes": size, "load": [load, os.getloadavg()[0]]}

    def again(found: Found) -> bool:
        """Whether it failed for another reason than the limit, or has more time now."""
        return float(found.get("minutes", limit_minutes)) < limit_minutes

    steps = {step.name: " ".join(step.argv).encode() for step in plan.steps}
    return kept(["tools", label, DEVICE, digest({**plan.files, **steps, "Makefile": b""})], make, again)


def tools(cases: Sequence[Case], limit_minutes: float) -> None:
    """Cells, clock, latency and tool time of each net on an ECP5, and what hls4ml is estimated to take."""
    cells, times, beside = list[Row](), list[Row](), list[Row]()
    for case in cases:
        name, made = case.choice.name, case.made
        found = built(name, made.files, made.serial, limit_minutes)
        if "why" in found:
            cells.append((name, "failed", found["why"]))
            continue
        bare, around, clock = core(case)[0], ports(case), found["values"]["fmax_mhz"]
        cells.append((name, form(made), *resources(found), f"{found['bitstream_bytes']:,} bytes"))
        for label, one in ((name, bare), (f"{name}, ports", around)):
            timed = (f"{one['latency']:,}", f"{1e3 * one['latency'] / clock:,.0f}", f"{one['interval']:,.0f}")
            times.append((label, *timed, f"{1e6 * clock / one['interval']:,.0f}", *effort(found)))
        simulated = {"cycles": bare["latency"], "initiation_interval": bare["interval"]}
        beside += estimated(case, {**found["values"], **simulated})
        print(cells[-1], *times[-2:], sep="\n", file=sys.stderr, flush=True)
    print(f"{DEVICE}, {CLOCK_MHZ:g} MHz asked for; what is placed and routed has ports of 8 bits")
    shown(CELLS, cells)
    print("Cycles as Verilator counts them, of the bare core and with its ports, at that clock; none on a board")
    shown(TIMES, times)
    print("Estimated without any tool, intervals of 80 %; * extrapolated")
    shown(BESIDE, beside)
    print(f"The same integers through hls4ml (vitis) on {HLS_DEVICE}, estimated; * extrapolated")
    shown(ESTIMATE, [by_estimate(case) for case in cases])


def shown(heads: Row, rows: Sequence[Row]) -> None:
    """The whole rows as a table, then a line for each that says why there is none."""
    show(heads, [row for row in rows if len(row) == len(heads)])
    for row in rows:
        if len(row) != len(heads):
            print(*row, sep=": ", end="\n\n", flush=True)


def form(made: Design) -> str:
    """How many layers have which form."""
    forms = [layer.form for layer in made.layers if layer.weights]
    return ", ".join(f"{forms.count(one)} {one}" for one in dict.fromkeys(forms))


def resources(found: Found) -> tuple[str, ...]:
    values = found["values"]
    clock = values["fmax_mhz"]
    return (*(f"{values[name]:,}" for name in ("lut", "ff", "dsp", "bram")), "-" if clock is None else f"{clock:.1f}")


def effort(found: Found) -> tuple[str, ...]:
    """Seconds of synthesis, and of place and route, peak MB of both, and the machine's load before and behind them."""
    first, second = (found["steps"].get(name) for name in ("synthesis", "place-and-route"))
    load = " to ".join(f"{load:.1f}" for load in found["load"])
    seconds = f"{first[0]:,.0f}", f"{second[0]:,.0f}" if second else "-"
    return *seconds, ", ".join(f"{step[1]:,.0f}" for step in (first, second) if step), load


def estimated(case: Case, found: Mapping[str, float]) -> Iterator[Row]:
    """Each figure that was found beside our estimate from the same Verilog."""
    for row in rtl_estimate.estimate(case.made, profile(DEVICE), CLOCK_MHZ):
        if row.layer is None and row.name in found and row.value is not None and row.interval is not None:
            low, high, real = row.interval.low, row.interval.high, found[row.name]
            told = [f"{number:,.0f}" for number in (real, row.value, low, high)]
            off = f"{row.value / real - 1:+.1%}" if real else "-"
            off += "" if low <= real <= high else ", outside"
            yield (case.choice.name, row.name, told[0], told[1] + "*" * row.extrapolated, f"{told[2]} to {told[3]}", off)


def by_estimate(case: Case) -> Row:
    """At the reuse factor that gives about as many multipliers as our design has lanes."""
    weights = sum(one.weight.size for one in weighted(case.program))
    multipliers = case.made.counts.multipliers
    strategy, reuse = ("resource", max(1, round(weights / multipliers))) if multipliers else ("latency", 1)
    part = profile(HLS_DEVICE).get("part", str) or ""
    try:
        rows = estimate(layers_of(case.program), reuse_factor=reuse, strategy=strategy, part=part)
    except Unsupported as error:
        return (case.choice.name, "refused", error.message)
    totals = {row.name: row for row in rows if row.layer is None}
    names = ("lut", "ff", "dsp", "bram", "cycles", "initiation_interval", "fmax_mhz")
    cells = [whole(totals[name].value) + "*" * totals[name].extrapolated for name in names]
    cycles, clock = totals["cycles"].value, totals["fmax_mhz"].value
    return (case.choice.name, strategy, str(reuse), *cells, whole(1e3 * cycles / clock if cycles is not None and clock else None))


def whole(value: float | None) -> str:
    """Rounded; a dash for what is not known."""
    return "-" if value is None else f"{value:,.0f}"


def alone(limit_minutes: float, names: Sequence[str]) -> None:
    """The jet nets fully unrolled: our kernel and da4ml's on the same integers, each placed and routed by itself."""
    rows = list[Row]()
    for choice in ALONE:
        if choice.name in names:
            rows += beside_da4ml(choice, limit_minutes)
    print(f"Dense nets, truncating, unrolled, latency cut-off {CUTOFF:g}, {DEVICE}, {CLOCK_MHZ:g} MHz asked for")
    shown(LOGIC, rows)


def beside_da4ml(choice: Choice, limit_minutes: float) -> Iterator[Row]:
    """Our kernel of a net, then da4ml's."""
    case = Case(choice)
    net, program = bare(case.program)
    codes = case.codes["x"][:50]
    wanted = program.run({"x": codes})[program.outputs[0]]
    ours = kernel(program, "ours", KernelOptions(latency_cutoff=CUTOFF))
    made = {"edgesdk": ({"ours.v": ours.verilog.encode()}, "ours", ours.adders, ours.latency_cycles)}
    with tempfile.TemporaryDirectory() as folder:
        found = by_da4ml(net, codes, Path(folder))
    same = np.array_equal(found[3], wanted)
    made["da4ml 0.6" if same else "da4ml 0.6 (other integers)"] = (found[0], "peer", found[1], found[2])
    for label, (files, top, adders, stages) in made.items():
        until = toolchain.SYNTHESIS if ours.adders > MOST_ROUTED else toolchain.BITSTREAM
        ran = built(f"{choice.name} {label}", files, top, limit_minutes, until)
        if "why" in ran:
            yield (choice.name, label, "failed", ran["why"])
            continue
        lut, ff, _, _, clock = resources(ran)
        latency = f"{1e3 * stages / float(clock):.0f}" if clock != "-" else "-"
        yield (choice.name, label, f"{adders:,}", str(stages), lut, ff, clock, latency, *effort(ran))


def bare(program: IntegerProgram) -> tuple[Layers, IntegerProgram]:
    """A dense network as bench_adder_graph has it, without the rounding of its output, and the program of the same."""
    weights, biases, shifts = list[Integers](), list[Integers](), list[int]()
    bits = program.tensors[program.inputs[0]].bits
    for operation in program.operations:
        if isinstance(operation, Dense):
            weights.append(operation.weight)
            biases.append(operation.bias)
        elif isinstance(operation, Round):
            before, after = program.tensors[operation.source], program.tensors[operation.result]
            assert operation.rounding == "truncate"
            shifts.append(after.exponent - before.exponent)
        else:
            assert isinstance(operation, Clip)
    made = Layers(program.name, bits, tuple(weights), tuple(biases), tuple(shifts[: len(weights) - 1]))
    return made, made.program()


def by_da4ml(net: Layers, codes: Integers, folder: Path) -> tuple[dict[str, bytes], int, int, Integers]:
    """Its Verilog, adders, stages, and the codes that its own model computes."""
    arrays = {f"weight{number}": weight for number, weight in enumerate(net.weights)}
    arrays |= {f"bias{number}": bias for number, bias in enumerate(net.biases)}
    arrays |= {f"shift{number}": np.array(shift) for number, shift in enumerate(net.shifts)}
    np.savez(folder / "in.npz", allow_pickle=False, bits=np.array(net.bits), codes=codes, **arrays)
    script = Path(bench_adder_graph.__file__).with_name("peers") / DA4ML.script
    command = [str(installed(DA4ML)), str(script), str(folder / "in.npz"), str(folder / "peer"), str(CUTOFF)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    source = folder / "peer" / "src"
    stages = sorted(source.glob("peer_stage*.v"))
    library = [path for path in sorted((source / "static").glob("*.v")) if path.name != "lookup_table.v"]
    files = {path.name: path.read_bytes() for path in (source / "peer.v", *stages, *library)}
    return files, int(said["adders"]), len(stages), np.array(said["codes"]).reshape(len(codes), -1)


def growth(limit_minutes: float) -> None:
    """Dense nets 16-N-N-5 of random weights, wider and wider until the tools take longer than the limit, or the part is full."""
    rows, grown, ends = list[Row](), dict[str, list[Grown]](), list[str]()
    for kind, widths in GROWTH.items():
        grown[kind] = []
        for width in widths:
            sizes = (16, width, width, 5)
            name = f"{'-'.join(map(str, sizes))} {kind}"
            program = dense_net(sizes, GROWTH_BITS, "half_even")
            began = time.process_time()
            made = design(program, "folded" if kind == "folded" else "unrolled", multipliers=GROWTH_MULTIPLIERS)
            seconds = time.process_time() - began
            found = built(name, made.files, made.serial, limit_minutes)
            weights = sum(outs * ins for ins, outs in pairwise(sizes))
            if "why" in found:
                rows.append((name, "failed", found["why"]))
                ends.append(f"{name}, {weights:,} weights: {found['why']}")
                break
            interval = f"{made.interval_cycles:,}"
            rows.append((name, f"{weights:,}", *resources(found), interval, f"{seconds:.1f}", *effort(found)))
            steps = found["steps"]
            spent = steps["synthesis"][0] + steps["place-and-route"][0]
            grown[kind].append(Grown(weights, found["values"]["lut"], spent))
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    print(f"Random nets, {GROWTH_BITS} bits, {DEVICE}; folded: {GROWTH_MULTIPLIERS} multipliers; at most {limit_minutes:g} min")
    shown(GREW, rows)
    heading = f"Dense nets of {GROWTH_BITS} bits on {DEVICE}"
    GROWTH_PAGE.write_text(page({kind: nets for kind, nets in grown.items() if nets}, heading, ends), encoding="utf-8")
    print(f"drawn in {GROWTH_PAGE}")


def main(arguments: Sequence[str]) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a tool which runs is stopped too
    parser = argparse.ArgumentParser(prog="python -m tests.bench_fpga")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="levels, tools, alone, growth; all if none is given")
    parser.add_argument("--nets", nargs="+", choices=[one.name for one in CHOICES], default=[one.name for one in CHOICES])
    parser.add_argument("--limit-minutes", type=float, default=30.0, help="of the tools on one design")
    given = parser.parse_args(arguments)
    cases = [Case(one) for one in CHOICES if one.name in given.nets]
    for table in given.tables or ("levels", "tools", "alone", "growth"):
        match table:
            case "levels":
                levels(cases)
            case "tools":
                tools(cases, given.limit_minutes)
            case "alone":
                alone(given.limit_minutes, given.nets)
            case "growth":
                growth(given.limit_minutes)
            case _:
                parser.error(f"no table {table!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
