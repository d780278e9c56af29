"""Kernels: what the Verilog computes in a simulator is what the integer program computes, for every operation and code."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesdk_converters.errors import DoesNotFit, Unsupported
from edgesdk_converters.integer_program import (
    ArgMax,
    Clip,
    Codes,
    Conv,
    Dense,
    IntegerProgram,
    Integers,
    Leaky,
    Move,
    Operation,
    Pool,
    Product,
    Round,
    Rounding,
    Scale,
    Softmax,
    Sum,
    Table,
)  # fmt: skip
from edgesdk_converters.integer_tables import drawn
from edgesdk_targets.fpga.kernel import Kernel, KernelOptions, kernel, packed, unpacked

RANDOM = np.random.default_rng(5)
ROUNDINGS: tuple[Rounding, ...] = ("half_even", "half_up", "truncate")
LINT = ("-Wno-UNUSEDSIGNAL",)  # bits that rounding drops, and codes that nothing reads


def codes(name: str, shape: tuple[int, ...], low: int, high: int, exponent: int = 0, divisor: int = 1) -> Codes:
    return Codes(name, shape, exponent, low, high, divisor)


def program(inputs: Sequence[Codes], operations: Sequence[Operation], others: Sequence[Codes]) -> IntegerProgram:
    """All tensors that no operation reads are outputs."""
    read = {
        name
        for operation in operations
        for field in ("source", "left", "right", "sources")
        for name in np.atleast_1d(getattr(operation, field, []))
    }
    tensors = {tensor.name: tensor for tensor in (*inputs, *others)}
    outputs = tuple(tensor.name for tensor in others if tensor.name not in read)
    return IntegerProgram("test", tuple(t.name for t in inputs), outputs, tensors, tuple(operations), {}, {})


def dense(source: Codes, result: str, outs: int, bits: int, seed: int) -> tuple[Dense, Codes]:
    random = np.random.default_rng(seed)
    weight = random.integers(-(1 << (bits - 1)), 1 << (bits - 1), (outs, source.shape[-1]))
    bias = random.integers(-100, 101, outs)
    low = int((np.where(weight > 0, weight * source.low, weight * source.high).sum(axis=1) + bias).min())
    high = int((np.where(weight > 0, weight * source.high, weight * source.low).sum(axis=1) + bias).max())
    return Dense(f"node {result}", source.name, result, weight, bias), codes(result, (outs,), low, high, source.exponent)


def samples(found: IntegerProgram, count: int = 150) -> dict[str, Integers]:
    """Random codes; among the first all least, all greatest, and mixtures of both."""
    given = {}
    for name in found.inputs:
        tensor = found.tensors[name]
        values = RANDOM.integers(tensor.low, tensor.high + 1, (count, *tensor.shape))
        values[:2] = np.array([tensor.low, tensor.high]).reshape(2, *(1,) * len(tensor.shape))
        values[2:30] = RANDOM.choice([tensor.low, tensor.high], values[2:30].shape)
        given[name] = values
    return given


def simulated(made: Kernel, words: Sequence[int], folder: Path, enabled: Sequence[bool] | None = None) -> list[int]:
    """What y is, of the words that x takes one a cycle; where `en` is 0, x shows the next one and nothing may move."""
    ready = list(enabled or [True] * (len(words) + made.latency_cycles))
    shown, at = [], 0
    for is_on in ready:
        shown.append(words[min(at, len(words) - 1)] << 1 | is_on)
        at += is_on
    (folder / "x.hex").write_text("\n".join(f"{word:x}" for word in shown))
    (folder / "kernel.v").write_text(made.verilog)
    (folder / "bench.v").write_text(f"""
module bench;
  reg clk = 0;
  reg [{made.input_bits}:0] given [0:{len(shown) - 1}];
  reg [{made.input_bits}:0] word;
  wire [{made.output_bits - 1}:0] y;
  integer cycle;
  {made.name} dut(.clk(clk), .en(word[0]), .x(word[{made.input_bits}:1]), .y(y));
  initial begin
    $readmemh("x.hex", given);
    for (cycle = 0; cycle < {len(shown)}; cycle = cycle + 1) begin
      word = given[cycle]; #1 clk = 1; #1 clk = 0;
      if (word[0]) $display("%h", y);
    end
  end
endmodule
""")
    command = ["iverilog", "-g2001", "-Wall", "-Wno-timescale", "-o", "bench.vvp", "bench.v", "kernel.v"]
    compiled = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert compiled.returncode == 0 and not compiled.stderr, compiled.stderr
    shown_words = subprocess.run(["vvp", "-n", "bench.vvp"], cwd=folder, check=True, capture_output=True, text=True).stdout
    lines = shown_words.split()[made.latency_cycles - 1 :]
    return [int(line, 16) for line in lines[: len(words)]]


def lint(made: Kernel, folder: Path) -> str:
    path = folder / f"{made.name}.v"
    path.write_text(made.verilog)
    return subprocess.run(
        ["verilator", "--lint-only", "-Wall", *LINT, path.name], cwd=folder, capture_output=True, text=True
    ).stderr


def mismatches(found: IntegerProgram, made: Kernel, given: dict[str, Integers], folder: Path) -> int:
    got = unpacked(made.outputs, simulated(made, packed(made.inputs, given), folder))
    return sum(int((got[name] != wanted).sum()) for name, wanted in found.run(given).items())


def assert_agrees(
    found: IntegerProgram, folder: Path, given: dict[str, Integers] | None = None, options: KernelOptions | None = None
) -> Kernel:
    made = kernel(found, "dut", options)
    assert mismatches(found, made, given or samples(found), folder) == 0
    assert lint(made, folder) == ""
    return made


S4, U5 = codes("a", (3, 4), -8, 7), codes("b", (4,), 0, 31)


def test_dense_is_exact_whatever_the_signs(tmp_path: Path) -> None:
    signed, unsigned = codes("s", (6,), -8, 7), codes("u", (6,), 0, 15)
    ops = [dense(signed, "y", 5, 6, 1), dense(unsigned, "z", 4, 3, 2)]
    assert_agrees(program([signed, unsigned], [op for op, _ in ops], [result for _, result in ops]), tmp_path)


def test_dense_on_leading_axes(tmp_path: Path) -> None:
    op, result = dense(S4, "y", 3, 5, 3)
    assert_agrees(program([S4], [op], [replace(result, shape=(3, 3))]), tmp_path)


@pytest.mark.parametrize(
    ("shape", "weight", "strides", "pads", "groups", "out"),
    [
        ((3, 6), (4, 3, 3), (1,), (1, 1), 1, (4, 6)),
        ((4, 4, 5), (4, 2, 3, 2), (2, 1), (1, 0, 2, 1), 2, (4, 3, 5)),
        ((3, 3, 3), (3, 1, 2, 2), (1, 1), (0, 0, 0, 0), 3, (3, 2, 2)),
    ],
)
def test_conv_is_exact_at_borders_and_in_groups(
    shape: tuple[int, ...], weight: tuple[int, ...], strides: tuple[int, ...], pads: tuple[int, ...], groups: int,
    out: tuple[int, ...], tmp_path: Path,
) -> None:  # fmt: skip
    source = codes("x", shape, -4, 7)
    op = Conv("conv", "x", "y", RANDOM.integers(-8, 8, weight), RANDOM.integers(-9, 9, weight[0]), strides, pads, groups)
    assert_agrees(program([source], [op], [codes("y", out, -1500, 1500)]), tmp_path)


def test_pools(tmp_path: Path) -> None:
    source = codes("x", (2, 5, 6), -8, 7)
    greatest = Pool("max", "x", "y", "max", (2, 3), (2, 2), (1, 0, 0, 1))
    total = Pool("sum", "x", "z", "sum", (2, 3), (1, 2), (0, 0, 0, 0))
    assert_agrees(program([source], [greatest, total], [codes("y", (2, 3, 3), -8, 7), codes("z", (2, 4, 2), -48, 42)]), tmp_path)


def test_sum_scale_and_move_broadcast_and_order(tmp_path: Path) -> None:
    ops: list[Operation] = [
        Sum("sum", ("a", "b"), (4, -3), "s", np.array([[5], [0], [-7]])),
        Scale("scale", "b", "k", RANDOM.integers(-90, 90, (3, 4))),
        Move("move", ("a", "b"), (1, -2), "m", RANDOM.integers(-1, 16, (5, 3))),
    ]
    others = [codes("s", (3, 4), -132, 33), codes("k", (3, 4), -2790, 2790), codes("m", (5, 3), -62, 7)]
    assert_agrees(program([S4, U5], ops, others), tmp_path)


def test_products_of_computed_tensors(tmp_path: Path) -> None:
    other = codes("c", (4, 2), -16, 15)
    ops = [Product("mul", "a", "b", "p"), Product("matmul", "a", "c", "q", matmul=True)]
    assert_agrees(program([S4, U5, other], ops, [codes("p", (3, 4), -248, 217), codes("q", (3, 2), -480, 512)]), tmp_path)


@pytest.mark.parametrize(("low", "high"), [(0, None), (None, 3), (-4, 3), (-3, 5), (0, 6), (5, 2), (-9, 40)])
def test_clip(low: int | None, high: int | None, tmp_path: Path) -> None:
    ops = [Clip("signed", "a", "y", low, high), Clip("unsigned", "b", "z", low, high)]
    assert_agrees(program([S4, U5], ops, [codes("y", (3, 4), -8, 7), codes("z", (4,), 0, 31)]), tmp_path)


def test_leaky_of_either_sign_of_slope(tmp_path: Path) -> None:
    ops = [Leaky("up", "a", "y", 3, 5), Leaky("down", "a", "w", -3, 2), Leaky("unsigned", "b", "z", 3, 1)]
    others = [codes("y", (3, 4), -24, 224), codes("w", (3, 4), 0, 28), codes("z", (4,), 0, 62)]
    assert_agrees(program([S4, U5], ops, others), tmp_path)


def test_table_and_equal_tables_are_one_function(tmp_path: Path) -> None:
    values = np.arange(-100, 220, 20)
    ops = [Table("one", "a", "y", "tanh", values), Table("two", "a", "z", "sigmoid", np.arange(16) * 3)]
    made = assert_agrees(program([S4], ops, [codes("y", (3, 4), -100, 200), codes("z", (3, 4), 0, 45)]), tmp_path)
    assert made.verilog.count("endfunction") == 2
    assert made.lookup_bits == 12 * 16 * 9 + 12 * 16 * 6


@pytest.mark.parametrize(("axis", "keepdims", "shape"), [(0, False, (4,)), (1, False, (3,)), (-1, True, (3, 1))])
def test_argmax_takes_the_first_of_equal_ones(axis: int, keepdims: bool, shape: tuple[int, ...], tmp_path: Path) -> None:
    source = codes("a", (3, 4), -2, 1)  # few codes: many ties
    assert_agrees(program([source], [ArgMax("argmax", "a", "y", axis, keepdims)], [codes("y", shape, 0, 3)]), tmp_path)


def test_argmax_of_a_vector_is_a_scalar(tmp_path: Path) -> None:
    source = codes("v", (5,), 0, 3)
    assert_agrees(program([source], [ArgMax("argmax", "v", "y", 0, False)], [codes("y", (), 0, 4)]), tmp_path)


@pytest.mark.parametrize(
    ("size", "values", "shift", "high"),
    [
        (5, np.rint(255 * np.exp(-np.arange(20) / 4)), 8, 255),
        (3, np.array([3, 2, 1]), 4, 16),
        (4, np.array([1]), 3, 8),
        (1, np.array([9]), 4, 15),
    ],
)
def test_softmax_divides_exactly(size: int, values: Integers, shift: int, high: int, tmp_path: Path) -> None:
    source = codes("x", (2, size), -16, 15)
    op = Softmax("softmax", "x", "y", values.astype(np.int64), shift)
    assert_agrees(program([source], [op], [codes("y", (2, size), 0, high, -shift)]), tmp_path)


@pytest.mark.parametrize(
    ("function", "bits", "low"), [("Sigmoid", 13, None), ("Gelu", 14, None), ("Gelu", 13, 0), ("Tanh", 13, -9)]
)
def test_curves_of_every_code(function: str, bits: int, low: int | None, tmp_path: Path) -> None:
    """Straight lines, a ramp below and above zero, a sign, and what lies beyond the last line."""
    shapes: dict[str, Any] = {
        "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "Tanh": np.tanh,
        "Gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    }
    half = 1 << bits - 1
    source = codes("x", (2,), -half if low is None else low, half - 1, 5 - bits)
    op, curved = drawn("f", source, "h", function, shapes[function], -9)
    found = program([source], [op, Round("round", "h", "y", "half_even")], [curved, codes("y", (2,), -512, 511, -9)])
    every = np.arange(source.low, source.high + 1)
    assert len(op.base) > 4 and len(op.base) << op.shift < half, "some codes lie beyond the last line"
    made = kernel(found, "dut")
    assert mismatches(found, made, {"x": np.stack([every, every[::-1]], axis=1)}, tmp_path) == 0
    assert made.multipliers == 2 and lint(made, tmp_path) == ""


def test_a_wrong_entry_of_a_curve_is_seen(tmp_path: Path) -> None:
    source = codes("x", (1,), -4096, 4095, -9)
    op, curved = drawn("f", source, "y", "Tanh", np.tanh, -9)
    base = op.base.copy()
    base[3] ^= 1
    found, broken = (program([source], [one], [curved]) for one in (op, replace(op, base=base)))
    every = {"x": np.arange(-4096, 4096, 7)[:, None]}
    assert (
        mismatches(found, kernel(found, "dut"), every, tmp_path) == 0 < mismatches(found, kernel(broken, "dut"), every, tmp_path)
    )


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("divisor", [1, 6, 9, 49])
@pytest.mark.parametrize("shift", [-2, 0, 1, 3])
def test_round_of_every_code(rounding: Rounding, divisor: int, shift: int, tmp_path: Path) -> None:
    """All ties, either side of both limits."""
    source = codes("x", (1,), -700, 900, 0, divisor)
    op = Round("round", "x", "y", rounding)
    found = program([source], [op], [codes("y", (1,), -60, 63, shift)])
    assert mismatches(found, kernel(found, "dut"), {"x": np.arange(-700, 901)[:, None]}, tmp_path) == 0


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("low", "high"), [(0, None), (None, 100), (3, 333), (-77, 77)])
def test_a_limit_before_rounding_and_a_half_in_the_bias_change_nothing(
    rounding: Rounding, low: int | None, high: int | None, tmp_path: Path
) -> None:
    source = codes("x", (2,), -64, 63)
    op = Dense("dense", "x", "h", np.array([[1, 0], [3, -5], [1, 1]]), np.array([0, 9, -8]))
    clip, last = Clip("clip", "h", "c", low, high), Round("round", "c", "y", rounding)
    others = [codes("h", (3,), -600, 600), codes("c", (3,), low or -600, high or 600), codes("y", (3,), -15, 31, 4)]
    found = program([source], [op, clip, last], others)
    assert_agrees(found, tmp_path, {"x": np.stack(np.meshgrid(np.arange(-64, 64), np.arange(-64, 64, 9)), -1).reshape(-1, 2)})


@pytest.mark.parametrize("exponent", [-1, 0, 2])
@pytest.mark.parametrize("divisor", [1, 4, 6])
def test_a_sum_rounded_half_up_to_any_step(exponent: int, divisor: int, tmp_path: Path) -> None:
    source = codes("x", (2,), -64, 63)
    op = Dense("dense", "x", "h", np.array([[1, 0], [3, -5], [1, 1]]), np.array([0, 9, -8]))
    others = [codes("h", (3,), -600, 600, 0, divisor), codes("y", (3,), -90, 127, exponent)]
    assert_agrees(program([source], [op, Round("round", "h", "y", "half_up")], others), tmp_path)


def network(bits: int, sizes: Sequence[int], rounding: Rounding = "half_even") -> IntegerProgram:
    source = first = codes("x", (sizes[0],), -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    ops: list[Operation] = []
    tensors: list[Codes] = []
    for number, size in enumerate(sizes[1:]):
        op, total = dense(source, f"sum{number}", size, bits, number)
        source = codes(f"code{number}", (size,), 0, (1 << bits) - 1, source.exponent + bits)
        relu = replace(total, name=f"relu{number}", low=0)
        ops += [
            op,
            Clip(f"relu {number}", total.name, relu.name, 0, None),
            Round(f"round {number}", relu.name, source.name, rounding),
        ]
        tensors += [total, relu, source]
    return program([first], ops, tensors)


@pytest.mark.parametrize("cutoff", [1.0, 3.0, 100.0])
def test_a_network_agrees_at_any_pipeline_depth(cutoff: float, tmp_path: Path) -> None:
    found = network(4, (6, 8, 5, 3))
    made = assert_agrees(found, tmp_path, options=KernelOptions(latency_cutoff=cutoff))
    assert (made.latency_cycles == 1) == (cutoff == 100.0)
    assert cutoff != 100.0 or made.register_bits == made.output_bits


def test_nothing_moves_while_en_is_0(tmp_path: Path) -> None:
    found = network(4, (6, 8, 5, 3))
    made, given = kernel(found, "dut"), samples(found, 60)
    ready = (RANDOM.random(400) < 0.4).tolist()
    words = packed(made.inputs, given)
    assert made.latency_cycles > 2 and sum(ready) > len(words) + made.latency_cycles
    assert simulated(made, words, tmp_path, ready) == simulated(made, words, tmp_path)
    assert simulated(made, words, tmp_path) == packed(made.outputs, found.run(given))


def test_multipliers_give_the_same_sums(tmp_path: Path) -> None:
    found = network(5, (6, 4))
    made = assert_agrees(found, tmp_path, options=KernelOptions(multipliers=frozenset({"node sum0"})))
    weight = np.abs(found.operations[0].weight)  # type: ignore[union-attr]
    assert made.multipliers == int(((weight & (weight - 1)) != 0).sum()) > 0
    assert kernel(found, "dut").multipliers == 0


@pytest.mark.parametrize(("layer", "place", "bit"), [(0, (0, 0), 2), (0, (7, 5), 1), (1, (1, 3), 0), (1, (2, 7), 3)])
def test_one_flipped_bit_of_one_weight_shows(layer: int, place: tuple[int, int], bit: int, tmp_path: Path) -> None:
    hidden, last = network(4, (6, 8)), dense(codes("code0", (8,), 0, 15, 4), "y", 3, 4, 9)
    tensors = {**hidden.tensors, "y": last[1]}
    found = replace(hidden, outputs=("y",), tensors=tensors, operations=(*hidden.operations, last[0]))
    ops = list(found.operations)
    number = [number for number, op in enumerate(ops) if isinstance(op, Dense)][layer]
    op = ops[number]
    assert isinstance(op, Dense)
    weight = op.weight.copy()
    weight[place] ^= 1 << bit
    ops[number] = replace(op, weight=weight)
    assert mismatches(found, kernel(found, "dut"), samples(found), tmp_path) == 0
    assert mismatches(found, kernel(replace(found, operations=tuple(ops)), "dut"), samples(found), tmp_path) > 0


def test_constants_pass_through(tmp_path: Path) -> None:
    source = codes("x", (2,), -8, 7)
    op = Dense("dense", "x", "y", np.array([[0, 0], [1, 0], [0, 0]]), np.array([-5, 0, 77]))
    assert_agrees(program([source], [op], [codes("y", (3,), -8, 77)]), tmp_path)


def test_the_same_program_gives_the_same_bytes() -> None:
    assert kernel(network(5, (8, 6, 3)), "dut") == kernel(network(5, (8, 6, 3)), "dut")


@pytest.mark.parametrize("name", ["module", "reg", "1st", "a-b", "", "a b", "table"])
def test_names_that_verilog_does_not_allow_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a Verilog module"):
        kernel(network(3, (2, 2)), name)


def test_hostile_names_of_nodes_and_tensors_stay_in_comments(tmp_path: Path) -> None:
    source = codes("x;\nendmodule\\", (2,), -8, 7)
    op = Clip("relu\\\n$finish;\r*/`define y é", source.name, "wire", 0, None)
    found = replace(program([source], [op], [codes("wire", (2,), 0, 7)]), name="net\\\n`include")
    made = assert_agrees(found, tmp_path)
    assert "// Clip relu??$finish;?*/`define y ?: 2 of 0..7, 3 bits, step 2**0" in made.verilog
    assert made.verilog.isascii()


def test_sums_beyond_62_bits_and_a_softmax_of_nothing_are_refused() -> None:
    wide = codes("x", (2,), -(2**40), 2**40)
    with pytest.raises(DoesNotFit, match=r"a sum in a kernel does not fit: need 6\d bits, have 62 bits"):
        kernel(program([wide], [Scale("scale", "x", "y", np.array([2**21, 2**25]))], [codes("y", (2,), 0, 1)]), "dut")
    with pytest.raises(Unsupported, match="its table starts with 0"):
        kernel(program([S4], [Softmax("s", "a", "y", np.array([0, 1]), 4)], [codes("y", (3, 4), 0, 15)]), "dut")


@pytest.mark.slow
def test_verilator_agrees(tmp_path: Path) -> None:
    """A second simulator, with two states and another scheduler."""
    found = network(4, (6, 8, 3))
    made, given = kernel(found, "dut"), samples(found)
    words = packed(made.inputs, given)
    assert made.input_bits <= 32 and made.output_bits <= 32
    (tmp_path / "dut.v").write_text(made.verilog)
    (tmp_path / "main.cc").write_text(f"""
#include "Vdut.h"
#include "verilated.h"
#include <cstdio>
static const unsigned words[] = {{{", ".join(str(word) for word in words)}}};
int main() {{
  Vdut dut;
  dut.en = 1;
  for (int cycle = 0; cycle < {len(words) + made.latency_cycles - 1}; ++cycle) {{
    dut.x = words[cycle < {len(words)} ? cycle : {len(words) - 1}];
    dut.clk = 1; dut.eval(); dut.clk = 0; dut.eval();
    if (cycle >= {made.latency_cycles - 1}) std::printf("%u\\n", static_cast<unsigned>(dut.y));
  }}
}}
""")
    for command in (
        ["verilator", "--cc", "--exe", "--build", "-O0", "-CFLAGS", "-O0", "-Wall", *LINT, "dut.v", "main.cc"],
        ["obj_dir/Vdut"],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert [int(line) for line in done.stdout.split()] == packed(made.outputs, found.run(given))


@pytest.mark.parametrize(
    "command", ["synth_ecp5 -noflatten -top dut", pytest.param("synth_xilinx -family xc7 -top dut", marks=pytest.mark.slow)]
)
def test_yosys_maps_it_without_a_warning_a_latch_or_a_dsp(command: str, tmp_path: Path) -> None:
    source = codes("x", (4,), -8, 7)
    op, total = dense(source, "h", 3, 4, 7)
    ops: list[Operation] = [op, Round("round", "h", "r", "half_even"), Table("table", "r", "t", "exp", np.arange(16) ** 2)]
    ops += [Softmax("softmax", "r", "y", np.array([15, 9, 5, 3, 2, 1]), 4)]
    others = [total, codes("r", (3,), -8, 7, 3), codes("t", (3,), 0, 225), codes("y", (3,), 0, 15, -4)]
    (tmp_path / "dut.v").write_text(kernel(program([source], ops, others), "dut").verilog)
    script = f"read_verilog dut.v; {command}; check -assert; select -assert-none t:*LATCH* t:*DLATCH* t:DSP* t:MULT*"
    done = subprocess.run([shutil.which("yosys") or "yosys", "-p", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in (done.stdout + done.stderr).replace("ABC: Warning: The network is combinational", "")
    assert "Found and reported 0 problems" in done.stdout
