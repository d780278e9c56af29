"""Whether all levels of a design compute the same integers: the first table of bench_fpga, and what its others share.

What took long is kept under build/bench by all that decides it: remove `fpga-*.json` there to run it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import ToolError, Unsupported
from edgesdk_converters.integer_program import IntegerProgram, Integers
from edgesdk_converters.model import Model
from edgesdk_converters.reference import Reference
from edgesdk_targets.device import profile
from edgesdk_targets.fpga import testbench
from edgesdk_targets.fpga.segments import weighted

from .bench_quantised import show
from .bench_smaller import HOME, told
from .fpga_nets import SIMULATED_CYCLES, Case

Array = NDArray[Any]
Row = tuple[str, ...]
Found = dict[str, Any]
HLS_DEVICE = "pynq-z2"
NETLIST_WEIGHTS, NETLIST_VECTORS = 1_000, 100
"""Of nets whose netlist is simulated, in Icarus, if nothing of them needs multipliers or memories: their cells have no models."""
TRIED, CONTROL_CYCLES = 24, 8_000_000
"""Weights of which the control flips the one that matters most, and for how long it is simulated at most."""
LEVELS = ("net", "level", "inferences", "output codes", "differ", "remark")
MEASURES = {"autoencoder": "squared error / float's square", "ds-cnn": "top-1 as float's"}
ACCURACY = ("net", "measure", "inputs", "float", "fixed point", "inputs", "float", "fixed point", "RTL")


def kept(what: Sequence[object], make: Callable[[], Found], again: Callable[[Found], bool] = lambda found: False) -> Found:
    """What `make` gives, or gave in an earlier run that need not be made `again`."""
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]
    file = HOME / f"fpga-{key}.json"
    if not file.exists() or again(json.loads(file.read_text(encoding="utf-8"))["found"]):
        HOME.mkdir(parents=True, exist_ok=True)
        print("  ", *(str(part)[:60] for part in what), file=sys.stderr, flush=True)
        begin = time.perf_counter()
        found = make()
        facts = {"what": list(what), "bench_s": round(time.perf_counter() - begin, 1), "load": os.getloadavg()[0]}
        beside = file.with_suffix(".part")
        beside.write_text(json.dumps({**facts, "found": found}, indent=1), encoding="utf-8")
        beside.replace(file)
    loaded: Found = json.loads(file.read_text(encoding="utf-8"))["found"]
    return loaded


def quality(case: Case) -> Found:
    """Accuracy where there are labels, else agreement: of the class with float, or the relative squared error."""

    def make() -> Found:
        source, name = case.net.source, case.program.outputs[0]
        real = answers(source.model, source.check)
        fixed = case.program.decode(case.program.run(case.program.encode(source.check)))[name].reshape(real.shape)
        logic = case.program.decode(core(case)[1])[name].reshape(-1, *real.shape[1:])[: case.count]

        def judge(found: Array) -> float:
            """Of answers to the first inputs."""
            if case.choice.net == "autoencoder":
                same = real[: len(found)]
                return float(((found - same) ** 2).sum() / (same**2).sum())
            right = real.argmax(1) if source.labels is None else source.labels
            return float((found.argmax(1) == right[: len(found)]).mean())

        return {
            "measure": MEASURES.get(case.choice.net, "accuracy"), "of": len(real),
            "whole": [judge(real), judge(fixed)], "n": case.count,
            "first": [judge(real[: case.count]), judge(fixed[: case.count]), judge(logic)],
        }  # fmt: skip

    return kept(["quality", case.choice.name, case.net.source.model.digest, case.key], make)


def answers(model: Model, inputs: Mapping[str, Array]) -> Array:
    """(n, *shape) of a model's first output, one input at a time."""
    reference, count = Reference(model), len(next(iter(inputs.values())))
    rows = ({name: array[row : row + 1] for name, array in inputs.items()} for row in range(count))
    return np.concatenate([next(iter(reference.run(row).values())) for row in rows])


def runtime(case: Case) -> Found:
    """ONNX Runtime on the fixed-point model."""

    def make() -> Found:
        feeds = {name: (array * case.program.tensors[name].step).astype(np.float32) for name, array in case.codes.items()}
        name = case.program.outputs[0]
        found, wanted = answers(case.net.fixed, feeds), case.program.decode(case.wanted)[name]
        inexact = [node for node, exact in case.program.exact.items() if not exact]
        return {"wrong": int((found.reshape(-1) != wanted.reshape(-1)).sum()), "n": len(found), "inexact": inexact}

    return kept(["onnxruntime", case.choice.name, case.key], make)


def core(case: Case) -> tuple[Found, dict[str, Integers]]:
    """The core in Verilator: mismatches, cycles, and its output codes."""

    def make() -> Found:
        with tempfile.TemporaryDirectory() as folder:
            done = testbench.simulate(case.made, case.codes, "verilator", folder, told(case.choice.name))
        return {
            "wrong": case.wrong(done.outputs), "n": 2 * case.count, "latency": done.latency_cycles,
            "interval": done.interval_cycles, "outputs": {name: array.tolist() for name, array in done.outputs.items()},
        }  # fmt: skip

    found = kept(["core", case.choice.name, case.key], make)
    return found, {name: np.array(array, np.int64) for name, array in found["outputs"].items()}


def ports(case: Case) -> Found:
    """The design behind its ports: mismatches while both sides stall at random, cycles while none does."""
    count = max(20, min(2 * case.count, SIMULATED_CYCLES // (4 * case.made.serial_interval_cycles) * 2))

    def make() -> Found:
        few = case.few(count)
        with tempfile.TemporaryDirectory() as folder:
            done = testbench.simulate(case.made, few, "verilator", folder, told(case.choice.name), level="serial", stalls=True)
            steady = testbench.simulate(case.made, case.few(20), "verilator", folder, level="serial")
        wrong = case.wrong(done.outputs, case.program.run(few)) + case.wrong(steady.outputs, case.program.run(case.few(20)))
        return {"wrong": wrong, "n": count, "latency": steady.latency_cycles, "interval": steady.interval_cycles}

    return kept(["ports", case.choice.name, count, case.key], make)


def netlist(case: Case) -> Found:
    """The netlist of a small net."""
    counts, weights = case.made.counts, sum(one.weight.size for one in weighted(case.program))
    if counts.multipliers or counts.rom_bits or weights > NETLIST_WEIGHTS:
        return {"why": "not run: multipliers and memories" if counts.multipliers else "not run: too large"}

    def make() -> Found:
        few = case.few(NETLIST_VECTORS)
        with tempfile.TemporaryDirectory() as folder:
            done = testbench.simulate_netlist(case.made, few, folder, told(case.choice.name))
        return {"wrong": case.wrong(done.outputs, case.program.run(few)), "n": NETLIST_VECTORS}

    return kept(["netlist", case.choice.name, NETLIST_VECTORS, case.key], make)


def by_hls4ml(case: Case) -> Found:
    """hls4ml's C++ for Vitis, compiled with g++; of a large image in parallel it is many minutes of that."""
    from edgesdk_targets.fpga.hls4ml_emulation import emulate
    from edgesdk_targets.fpga.hls4ml_flow import Options, project

    def make() -> Found:
        part = profile(HLS_DEVICE).get("part", str) or ""
        try:
            made = project(case.program, Options(part=part, io_type=case.choice.io_type))
        except Unsupported as error:
            return {"why": error.message}
        return {"wrong": case.wrong(emulate(made, case.codes, told(case.choice.name))), "n": 2 * case.count}

    try:
        return kept(["hls4ml", case.choice.name, case.key], make)
    except ToolError as error:
        return {"why": error.message}


def flipped(program: IntegerProgram, which: str, codes: Mapping[str, Integers]) -> IntegerProgram:
    """The same with one bit of one weight of the first layer turned: the `least` or the `greatest` below the sign.

    Weights of a channel have a power of two in common, by which the design divides them: bits count from there. Of some weights
    that stay in their channel's range, and leave their channel that power of two, the one is taken that matters most to these
    inputs: of a unit that is nearly always 0 any weight may be anything.
    """
    first = next(weighted(program))
    rows = first.weight.reshape(len(first.weight), -1)
    held = np.bitwise_or.reduce(np.abs(np.column_stack([rows, first.bias])), axis=1)
    least = held & -held
    reach = np.maximum(-1 - rows.min(axis=1), rows.max(axis=1)) // least
    greatest = least << np.maximum(0, np.floor(np.log2(np.maximum(1, reach))).astype(np.int64))
    turned = rows ^ (least if which == "least" else greatest)[:, None]
    still = (np.column_stack([rows, first.bias]) & least[:, None] != 0).sum(axis=1) > 1
    fit = np.argwhere(
        (rows != 0) & (turned >= rows.min(axis=1)[:, None]) & (turned <= rows.max(axis=1)[:, None]) & still[:, None]
    )
    right = program.run(codes)

    def at(place: Integers) -> IntegerProgram:
        changed = rows.copy()
        changed[tuple(place)] = turned[tuple(place)]
        other = replace(first, weight=changed.reshape(first.weight.shape))
        return replace(program, operations=tuple(other if one is first else one for one in program.operations))

    def effect(made: IntegerProgram) -> int:
        found = made.run(codes)
        return sum(int((found[name] != right[name]).sum()) for name in program.outputs)

    return max(map(at, fit[np.linspace(0, len(fit) - 1, min(TRIED, len(fit))).astype(int)]), key=effect)


def control(case: Case, which: str) -> Found:
    """One flipped bit of a weight in the design: mismatches with the true integers, and with those of the flipped weight."""

    def make() -> Found:
        other = flipped(case.program, which, case.few(16))
        made = case.built(other)
        changed = sorted(name for name in made.files if made.files[name] != case.made.files.get(name))
        codes = case.few(min(2 * case.count, CONTROL_CYCLES // case.made.interval_cycles))
        wanted, count = case.program.run(codes), len(next(iter(codes.values())))
        with tempfile.TemporaryDirectory() as folder:
            done = testbench.simulate(made, codes, "verilator", folder, told(case.choice.name))
        rows = sum((done.outputs[name] != wanted[name]).reshape(count, -1) for name in case.program.outputs)
        hit = int(np.any(rows, axis=1).sum())
        return {
            "wrong": case.wrong(done.outputs, wanted), "inferences": hit, "n": count,
            "own": case.wrong(done.outputs, other.run(codes)), "files": changed,
        }  # fmt: skip

    return kept(["one flipped bit that matters", which, case.choice.name, case.key], make)


def levels(cases: Sequence[Case]) -> None:
    """Accuracy or agreement, and mismatches at every level."""
    judged, rows = list[Row](), list[Row]()
    for case in cases:
        found = quality(case)
        cells = [
            f"{value:.2e}" if case.choice.net == "autoencoder" else f"{value:.2%}" for value in found["whole"] + found["first"]
        ]
        about = (f"{case.choice.name}: {case.net.source.about}", found["measure"], f"{found['of']:,}")
        judged.append((*about, *cells[:2], f"{found['n']:,}", *cells[2:]))
        mine = list(compared(case))
        print(judged[-1], *mine, sep="\n", file=sys.stderr, flush=True)
        rows += mine
    print("Accuracy or agreement: of all inputs, then of those that the RTL computed in Verilator")
    show(ACCURACY, judged)
    print(
        "Output codes that differ from the integer reference: half of the inferences are of those inputs, half of codes at the\n"
        "ends of their range. The control has one bit of a weight of the first layer flipped in the design, and has to differ."
    )
    show(LEVELS, rows)


def compared(case: Case) -> Iterator[Row]:
    """A row for each level of a net, the controls last."""
    size = sum(case.program.tensors[name].size for name in case.program.outputs)

    def row(level: str, found: Found, remark: str = "") -> Row:
        if "why" in found:
            return (case.choice.name, level, "-", "-", "not run", found["why"])
        return (case.choice.name, level, f"{found['n']:,}", f"{found['n'] * size:,}", f"{found['wrong']:,}", remark)

    ran, layers = runtime(case), len(case.program.exact)
    yield row("ONNX Runtime", ran, f"float32 is exact in {layers - len(ran['inexact'])} of {layers} layers")
    yield row("RTL in Verilator", core(case)[0])
    yield row("RTL behind its ports", ports(case), "both sides stall at random")
    yield row("netlist", netlist(case), "in Icarus")
    yield row("hls4ml C++", by_hls4ml(case), "vitis, g++")
    for which in ("least", "greatest"):
        turned = control(case, which)
        own = "as a program with that weight" if not turned["own"] else f"{turned['own']} others than a program with that weight"
        changed = ", ".join(turned["files"])
        yield row(f"control: {which} bit", turned, f"in {turned['inferences']:,} inferences; {own}; {changed}")
