"""Layer normalisation as logic: to the bit what the integers are, whoever pauses, in as many cycles as is told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgesdk_converters.integer_curves import LayerNorm
from edgesdk_converters.integer_norm import normalising
from edgesdk_converters.integer_program import IntegerProgram, Integers
from edgesdk_targets.fpga.design import Design, design
from edgesdk_targets.fpga.rtl_terms import terms
from edgesdk_targets.fpga.testbench import simulate

from .integer_nets import Net
from .test_design import WAIVED, cells, check, run, written


def norm(net: Net, source: str, bits: int = 8, alike: bool = False) -> str:
    """A LayerNorm of a named tensor; `alike`: all gains and biases are the same."""
    known = net.tensors[source]
    count = known.shape[-1]
    gain, bias = net.rng.integers(-99, 128, count), net.rng.integers(-300, 300, count)
    if alike:
        gain, bias = np.full(count, 64), np.full(count, 9)
    result = f"n{len(net.tensors)}"
    operation, made, inside = normalising(f"norm_{result}", known, result, (gain, -6), (bias, -8), 1e-5, 3 - bits)
    assert inside <= 62
    net.tensors[result] = made
    net.operations.append(operation)
    return result


def tokens(shape: Sequence[int], bits: int = 6, alike: bool = False) -> IntegerProgram:
    """A layer in front, the norm, its rounding, and a layer behind."""
    net = Net(3, bits)
    first = net.round(net.dense(net.input((*shape[:-1], 4)), shape[-1]), bits, signed=True)
    last = net.round(norm(net, first, bits, alike), bits, signed=True)
    return net.program(net.round(net.dense(last, 3), signed=True), last)


def bare(count: int, bits: int, signed: bool = True) -> IntegerProgram:
    """The norm of an input, as wide as it comes."""
    net = Net(5, bits)
    source = net.input((3, count), bits)
    if not signed:
        net.tensors[source] = replace(net.tensors[source], low=0, high=(1 << bits) - 1)
    return net.program(norm(net, source, bits))


def rows(program: IntegerProgram, count: int, seed: int = 0) -> dict[str, Integers]:
    """Of all sizes: noise, rows that are all alike but for one element, both ends, the middle and its neighbours."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in program.inputs:
        codes = program.tensors[name]
        spread = 2.0 ** rng.uniform(-1, codes.bits, (count, *codes.shape[:-1], 1))
        made = np.rint(rng.standard_normal((count, *codes.shape)) * spread + (codes.low + codes.high) / 2)
        made[1::4] = rng.integers(codes.low, codes.high + 1, (len(made[1::4]), *codes.shape[:-1], 1))
        made[1::4, ..., 0] += rng.integers(-1, 2, made[1::4, ..., 0].shape)
        made[2::4] = rng.choice([codes.low, codes.high], made[2::4].shape)
        found[name] = np.clip(made, codes.low, codes.high).astype(np.int64)
    return found


def differing(
    made: Design, program: IntegerProgram, codes: dict[str, Integers], folder: Path, simulator: str = "iverilog"
) -> int:
    found = simulate(made, codes, simulator, folder, level="core", stalls=False, seed=1)  # type: ignore[arg-type]
    return sum(int((found.outputs[name] != wanted).sum()) for name, wanted in program.run(codes).items())


@pytest.mark.parametrize(
    ("program", "options"),
    [
        (tokens((5, 6)), {"form": "unrolled"}), (tokens((3, 12), 8), {"form": "folded", "multipliers": 7}),
        (tokens((1, 9), 5), {"form": "unrolled", "multipliers": 20}), (tokens((4, 8), alike=True), {"multipliers": 14}),
        (bare(7, 6), {}), (bare(1, 5), {}), (bare(2, 3, False), {}), (bare(6, 14), {"multipliers": 12}), (bare(5, 8, False), {}),
    ],
    ids=["tokens", "folded", "vector", "alike", "bare", "one", "two", "wide", "unsigned"],
)  # fmt: skip
def test_it_is_the_integer_program_whoever_pauses_and_keeps_its_schedule(
    program: IntegerProgram, options: dict[str, object], tmp_path: Path
) -> None:
    made = design(program, **options)  # type: ignore[arg-type]
    check(made, program, tmp_path, "core", stalls=False, count=9)
    check(made, program, tmp_path, "core", stalls=True, count=9)
    assert differing(made, program, rows(program, 80), tmp_path) == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", [tokens((3, 12), 8), bare(6, 14)], ids=["tokens", "wide"])
def test_verilator_agrees(program: IntegerProgram, tmp_path: Path) -> None:
    assert differing(design(program, multipliers=14), program, rows(program, 400), tmp_path, "verilator") == 0


def test_one_wrong_entry_of_a_table_in_the_logic_is_caught(tmp_path: Path) -> None:
    program = bare(7, 6)
    made, codes = design(program), rows(program, 60)
    (name,) = (name for name in made.files if name.endswith("_row_kernel.v"))
    text = made.files[name].decode()
    op = next(op for op in program.operations if isinstance(op, LayerNorm))
    entries = list(re.finditer(r"(table_0 = \d+'d)(\d+);", text))
    assert len(entries) == len(op.root.base) + 1, "the entries and what stands for all others"
    at = entries[len(entries) // 3]
    broken = f"{text[: at.start(2)]}{int(at[2]) ^ 1 << op.root.bits - 3}{text[at.end(2) :]}"
    assert differing(made, program, codes, tmp_path / "right") == 0
    assert differing(replace(made, files={**made.files, name: broken.encode()}), program, codes, tmp_path / "wrong") > 0


def test_lanes_keep_the_pace_of_the_layer_before_within_half_of_the_multipliers() -> None:
    program = tokens((4, 24), 8)

    def lanes(**options: object) -> tuple[int, int]:
        layer = next(layer for layer in design(program, **options).layers if layer.operator == "LayerNorm")  # type: ignore[arg-type]
        assert layer.form == "normalised" and layer.weights == 0
        return 4 * 24 // layer.cycles, layer.counts.multipliers

    assert lanes(form="unrolled", multipliers=200) == (24, 2 * 24 + 2), "gains are constants where each lane has one"
    assert lanes(form="unrolled", multipliers=48) == (8, 3 * 8 + 2)
    assert lanes(form="folded", multipliers=4) == (1, 5)
    assert lanes(form="unrolled", multipliers=200, target_cycles=32)[0] == 3


def test_elements_that_do_not_come_row_by_row_are_reordered_first(tmp_path: Path) -> None:
    net = Net(8)
    columns = net.round(net.relu(net.conv(net.input((2, 3, 5)), 4, (1, 1))))
    flat = net.move([columns], np.arange(60).reshape(4, 15))
    program = net.program(net.round(norm(net, flat, 6), signed=True))
    made = design(program, "unrolled", multipliers=40)
    assert [layer.form for layer in made.layers] == ["streaming", "reordered", "normalised"]
    check(made, program, tmp_path, "core", stalls=True)


@pytest.mark.parametrize("options", [{"multipliers": 14}, {"multipliers": 200}], ids=["folded", "at once"])
def test_verilator_has_no_other_warnings(options: dict[str, int], tmp_path: Path) -> None:
    made = design(tokens((3, 12), 8), "unrolled", **options)  # type: ignore[arg-type]
    waivers = [f"-Wno-{one}" for one in WAIVED]
    run(["verilator", "--lint-only", "-Wall", *waivers, "--top-module", made.serial, *made.sources], written(made, tmp_path))


@pytest.mark.parametrize(("count", "bits"), [(3, 4), pytest.param(6, 14, marks=pytest.mark.slow)])
def test_synthesis_takes_the_multipliers_and_block_rams_that_are_counted(count: int, bits: int, tmp_path: Path) -> None:
    made = design(bare(count, bits), multipliers=12)
    found = cells(made, tmp_path, "synth_ecp5")
    (stage,) = (one for one in terms(made.files) if one.stage.startswith("stage"))
    assert (found["MULT18X18D"], found.get("DP16KD", 0)) == (stage.dsp, stage.bram)


def test_the_same_program_gives_the_same_bytes() -> None:
    assert design(tokens((3, 6))).files == design(tokens((3, 6))).files
