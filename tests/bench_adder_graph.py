"""Adder graphs and kernels in figures: adders, depth, time, and lookup tables by yosys, beside da4ml on the same matrices.

python -m tests.bench_adder_graph [graphs|growth|logic [NAME ...]]
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgesdk_converters.integer_program import Clip, Codes, Dense, IntegerProgram, Integers, Operation, Round
from edgesdk_targets.fpga import adder_graph, reports
from edgesdk_targets.fpga.kernel import KernelOptions, kernel
from edgesdk_targets.fpga.subexpressions import signed_digits

from .bench_peers import Peer, installed
from .bench_quantised import show

SIZES = ((64, 16), (32, 64), (32, 32))
"""Outputs and inputs."""
BITS = (4, 6, 8)
GROWTH = ((16, 16), (32, 32), (64, 64), (64, 128), (64, 256), (128, 256), (256, 256))
NETWORK = (16, 64, 32, 32, 5)
CUTOFF = 5.0
FAMILIES = {"xc7": "synth_xilinx -family xc7 -flatten", "ecp5": "synth_ecp5"}
DA4ML = Peer("da4ml 0.6", "da4ml_net.py", ("da4ml==0.6.0",))  # LGPL-3.0
TIMEOUT_S = 1800


@dataclass(frozen=True)
class Layers:
    """A dense network: weights, biases, and the right shifts of the truncations between layers. `bits` of all codes."""

    name: str
    bits: int
    weights: tuple[Integers, ...]
    biases: tuple[Integers, ...]
    shifts: tuple[int, ...]

    def program(self) -> IntegerProgram:
        source = Codes("x", (self.weights[0].shape[1],), 0, -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1)
        tensors, operations = [source], list[Operation]()
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            low = int((np.where(weight > 0, weight * source.low, weight * source.high).sum(axis=1) + bias).min())
            high = int((np.where(weight > 0, weight * source.high, weight * source.low).sum(axis=1) + bias).max())
            total = Codes(f"sum{number}", (len(weight),), source.exponent, low, high)
            operations.append(Dense(f"dense{number}", source.name, total.name, weight, bias))
            tensors.append(total)
            if number < len(self.shifts):
                relu = Codes(f"relu{number}", total.shape, total.exponent, 0, high)
                exponent = total.exponent + self.shifts[number]
                source = Codes(f"code{number}", total.shape, exponent, 0, (1 << self.bits) - 1)
                operations.append(Clip(f"relu{number}", total.name, relu.name, 0, None))
                operations.append(Round(f"round{number}", relu.name, source.name, "truncate"))
                tensors += [relu, source]
        named = {tensor.name: tensor for tensor in tensors}
        return IntegerProgram(self.name, ("x",), (tensors[-1].name,), named, tuple(operations), {}, {})


def random_layers(name: str, sizes: tuple[int, ...], bits: int) -> Layers:
    """Uniform weights of `bits` bits; biases only in networks; shifts that keep most codes within their range."""
    random = np.random.default_rng(0)
    half = 1 << (bits - 1)
    weights = tuple(random.integers(-half, half, (outs, ins)) for ins, outs in itertools.pairwise(sizes))
    biases = tuple(random.integers(-half * half, half * half, len(weight)) * (len(weights) > 1) for weight in weights)
    shifts = tuple(bits - 1 + int(np.log2(ins)) // 2 for ins in sizes[1:-1])
    return Layers(name, bits, weights, biases, shifts)


def graphs() -> None:
    print("Adder graphs of uniformly random matrices, inputs as wide as weights; slack: levels beyond the least depth")
    rows: list[tuple[str, ...]] = []
    for outs, ins in SIZES:
        for bits in BITS:
            (matrix,) = random_layers("", (ins, outs), bits).weights
            half = 1 << (bits - 1)
            digits = int(np.abs(signed_digits(matrix)).sum()) - outs
            for slack in (0, 1, -1):
                began = time.process_time()
                graph = adder_graph.solve(matrix, np.full(ins, -half), np.full(ins, half - 1), slack)
                seconds = time.process_time() - began
                depth = f"{graph.depth} ({adder_graph.minimal_depth(matrix)})"
                told = "any" if slack < 0 else str(slack)
                cells = (f"{outs} x {ins}", str(bits), told, str(digits), str(len(graph.adders)), str(graph.adder_bits))
                rows.append((*cells, depth, f"{seconds:.2f}"))
    show(("matrix", "bits", "slack", "unshared", "adders", "adder bits", "depth (least)", "CPU s"), rows)


def growth() -> None:
    print("How time grows (8 bits, slack 1)")
    rows: list[tuple[str, ...]] = []
    for outs, ins in GROWTH:
        (matrix,) = random_layers("", (ins, outs), 8).weights
        began = time.process_time()
        graph = adder_graph.solve(matrix, np.full(ins, -128), np.full(ins, 127), 1)
        seconds = time.process_time() - began
        digits = int(np.abs(signed_digits(matrix)).sum())
        rows.append(
            (f"{outs} x {ins}", f"{digits:,}", f"{len(graph.adders):,}", f"{seconds:.1f}", f"{1e6 * seconds / digits:.0f}")
        )
    show(("matrix", "digits", "adders", "CPU s", "us a digit"), rows)


def mapped(sources: list[Path], top: str, family: str, folder: Path) -> tuple[str, str, str]:
    """Lookup tables and flip-flops by yosys, and its seconds; the reason where it fails."""
    script = (
        f"read_verilog {' '.join(map(str, sources))}; {FAMILIES[family]} -top {top}; tee -q -o {folder}/{family}.json stat -json"
    )
    began = time.perf_counter()
    try:
        done = subprocess.run(["yosys", "-q", "-p", script], capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"not in {TIMEOUT_S} s", "", ""
    if done.returncode:
        return f"failed ({done.returncode}): {' '.join(done.stderr.split())[-80:]}", "", ""
    found = reports.synthesised(folder / f"{family}.json", family)
    return f"{found.lut:,}", f"{found.ff:,}", f"{time.perf_counter() - began:.0f}"


def logic(names: list[str]) -> None:
    print(f"Kernels after yosys, latency cut-off {CUTOFF:g}, slack 1, beside da4ml 0.6 with its defaults and the same cut-off")
    nets = [random_layers(f"{outs}x{ins}-{bits}", (ins, outs), bits) for outs, ins in SIZES for bits in BITS]
    nets += [random_layers(f"{'-'.join(map(str, NETWORK))}-{bits}", NETWORK, bits) for bits in BITS]
    heads = ("matrix or net, bits", "by", "adders", "CPU s", "stages", "xc7 LUT", "FF", "s", "ECP5 COMB", "FF", "s")
    for net in nets:
        if names and net.name not in names:
            continue
        rows: list[tuple[str, ...]] = []
        codes = np.random.default_rng(1).integers(-(1 << (net.bits - 1)), 1 << (net.bits - 1), (50, net.weights[0].shape[1]))
        program = net.program()
        wanted = program.run({"x": codes})[program.outputs[0]]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            began = time.process_time()
            made = kernel(program, "ours", KernelOptions(latency_cutoff=CUTOFF))
            seconds = time.process_time() - began
            (folder / "ours.v").write_text(made.verilog)
            found = [part for family in FAMILIES for part in mapped([folder / "ours.v"], "ours", family, folder)]
            rows.append((net.name, "edgesdk", str(made.adders), f"{seconds:.1f}", str(made.latency_cycles), *found))
            rows.append((net.name, "da4ml", *by_da4ml(net, codes, wanted, folder)))
        show(heads, rows)


def by_da4ml(net: Layers, codes: Integers, wanted: Integers, folder: Path) -> tuple[str, ...]:
    arrays = {f"weight{number}": weight for number, weight in enumerate(net.weights)}
    arrays |= {f"bias{number}": bias for number, bias in enumerate(net.biases)}
    arrays |= {f"shift{number}": np.array(shift) for number, shift in enumerate(net.shifts)}
    np.savez(folder / "in.npz", allow_pickle=False, bits=np.array(net.bits), codes=codes, **arrays)
    script = Path(__file__).with_name("peers") / DA4ML.script
    command = [str(installed(DA4ML)), str(script), str(folder / "in.npz"), str(folder / "peer"), str(CUTOFF)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        return (done.stderr.splitlines()[-1][:80], *[""] * 8)
    told = json.loads(done.stdout.splitlines()[-1])
    agrees = "" if np.array_equal(np.array(told["codes"]).reshape(wanted.shape), wanted) else " (other results)"
    source = folder / "peer" / "src"
    stages = sorted(source.glob("peer_stage*.v"))
    library = [path for path in sorted((source / "static").glob("*.v")) if path.name != "lookup_table.v"]
    found = [part for family in FAMILIES for part in mapped([source / "peer.v", *stages, *library], "peer", family, folder)]
    return (f"{told['adders']}{agrees}", f"{told['seconds']:.1f}", str(len(stages)), *found)


if __name__ == "__main__":
    wish, *rest = sys.argv[1:] or ["all"]
    if wish in ("all", "graphs"):
        graphs()
    if wish in ("all", "growth"):
        growth()
    if wish in ("all", "logic"):
        logic(rest)
