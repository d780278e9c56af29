"""Designs: in every form each output equals the integer program's, to the bit, whoever pauses; and what is refused."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgesdk_converters.errors import RecipeError, ToolError, Unsupported
from edgesdk_converters.integer_program import Conv, Dense, IntegerProgram, Integers, Product
from edgesdk_targets.fpga import network
from edgesdk_targets.fpga.design import Design, Forms, design
from edgesdk_targets.fpga.testbench import Level, simulate

from .integer_nets import Net, clipped_net, conv_net, dense_net, moved_net

WAIVED = ("DECLFILENAME", "UNUSEDSIGNAL")
"""Of Verilator's warnings: some modules' files are named otherwise, and kernels have bits that no later one reads."""


def vectors(program: IntegerProgram, count: int = 6, seed: int = 0) -> dict[str, Integers]:
    """All least, all greatest, either at random, and anything between."""
    rng = np.random.default_rng(seed)
    codes = {}
    for name in program.inputs:
        tensor = program.tensors[name]
        found = rng.integers(tensor.low, tensor.high + 1, (count, *tensor.shape))
        found[0], found[1] = tensor.low, tensor.high
        found[2] = np.where(rng.random(tensor.shape) < 0.5, tensor.low, tensor.high)
        codes[name] = found
    return codes


def line() -> IntegerProgram:
    """One dimension, a stride beyond the kernel, LeakyReLU, a padded maximum."""
    net = Net(4)
    first = net.round(net.leaky(net.conv(net.input((3, 23)), 4, (5,), (2,), (2, 1))), signed=True)
    last = net.conv(net.pool(first, (3,), (2,), (1, 0)), 5, (2,), (3,))
    return net.program(net.round(last, signed=True))


def image() -> IntegerProgram:
    """Strides, asymmetric pads, ReLU6, groups, a maximum over padded signed windows, a global mean over 49."""
    net = Net(5)
    first = net.conv(net.input((2, 14, 13)), 4, (3, 3), (2, 2), (0, 1, 1, 2))
    high = 6 << -net.tensors[first].exponent
    first = net.round(net.relu(first, high), drop=max(0, high.bit_length() - 6))
    second = net.round(net.conv(first, 6, (3, 3), (1, 1), (1, 1, 1, 1), 2), signed=True)
    third = net.pool(second, (3, 3), (1, 1), (1, 1, 1, 1))
    return net.program(net.round(net.mean(third, (7, 7)), 8, drop=0, signed=True))


def residual() -> IntegerProgram:
    """A sum behind two convolutions, ArgMax at the end, and the sum is an output as well."""
    net = Net(6)
    first = net.round(net.conv(net.input((3, 6, 5)), 4, (1, 1)), signed=True)
    second = net.round(net.relu(net.conv(first, 4, (3, 3), pads=(1, 1, 1, 1))))
    third = net.round(net.conv(second, 4, (3, 3), pads=(1, 1, 1, 1)), signed=True)
    total = net.round(net.relu(net.sum([first, third], [1, 1])), drop=1)
    classes = net.round(net.dense(net.flatten(total), 5), signed=True)
    return net.program(net.argmax(classes), total)


def two_inputs() -> IntegerProgram:
    """Two images that meet in a product and a concatenation; the codes of one are wider than a port."""
    net = Net(7)
    one, two = net.input((2, 4, 3)), net.input((2, 4, 3), 11, -4)
    both = net.concat([net.round(net.product(one, two), 7, signed=True), one])
    return net.program(net.round(net.conv(both, 3, (2, 2)), 9, signed=True))


def depthwise() -> IntegerProgram:
    net = Net(8)
    first = net.round(net.relu(net.conv(net.input((4, 6, 7)), 4, (3, 3), (1, 2), (1, 0, 1, 1), 4)))
    return net.program(net.round(net.conv(net.round(net.conv(first, 8, (1, 1))), 8, (2, 2), groups=8), signed=True))


def column() -> IntegerProgram:
    """An image of one column, a flatten, a table, and channels that are scaled each by its own factor."""
    net = Net(9)
    first = net.round(net.scale(net.conv(net.input((2, 9, 1)), 4, (3, 1)), net.constants((4, 1, 1), 3)), 5, signed=True)
    return net.program(net.round(net.dense(net.flatten(net.table(first)), 6), signed=True))


def mirrored() -> IntegerProgram:
    """An image turned over with zeros around it, a convolution, and a dense layer along its rows."""
    net = Net(13)
    every = np.pad(np.arange(180).reshape(3, 6, 10)[:, ::-1], ((0, 0), (1, 0), (0, 2)), constant_values=-1)
    wide = net.move([net.round(net.relu(net.input((3, 6, 10))), drop=0)], every)
    sums = net.round(net.conv(wide, 2, (3, 3), (2, 1)), signed=True)
    return net.program(net.round(net.dense(sums, 3), signed=True))


def by_channel() -> IntegerProgram:
    """Weights that are narrow numbers times a power of two of their output, in a convolution and in a dense layer."""
    net = Net(12, bits=5)
    last = net.round(net.dense(net.flatten(net.round(net.conv(net.input((4, 5, 5)), 24, (3, 3)))), 24), signed=True)
    powers = 1 << np.arange(24) % 4
    wide = [
        replace(op, weight=op.weight * powers.reshape(-1, *(1,) * (op.weight.ndim - 1)), bias=op.bias * powers)
        if isinstance(op, (Conv, Dense)) else op
        for op in net.operations
    ]  # fmt: skip
    tensors = {
        name: replace(codes, low=codes.low * 8, high=codes.high * 8) if name[0] in "cd" else codes
        for name, codes in net.tensors.items()
    }
    return replace(net.program(last), operations=tuple(wide), tensors=tensors)


def unread() -> IntegerProgram:
    """An input and a result that nothing reads, and an input that is an output."""
    net = Net(10)
    one, two, _ = net.input((3,)), net.input((2,)), net.input((2,))
    net.dense(one, 4)
    return net.program(net.round(net.dense(one, 3), signed=True), two)


PROGRAMS: Mapping[str, Callable[[], IntegerProgram]] = {
    "dense": lambda: dense_net((16, 12, 5), 5, "half_even"), "conv": conv_net, "clipped": clipped_net, "moved": moved_net,
    "line": line, "image": image, "residual": residual, "two inputs": two_inputs, "depthwise": depthwise, "column": column,
    "unread": unread, "by channel": by_channel, "mirrored": mirrored,
}  # fmt: skip


LARGE = ("by channel", "unrolled")
"""Takes half a minute, and differs from others in nothing."""


def check(made: Design, program: IntegerProgram, folder: Path, level: Level, stalls: bool, count: int = 6) -> None:
    codes = vectors(program, count)
    found = simulate(made, codes, "iverilog", folder, level=level, stalls=stalls, seed=5)
    want = program.run(codes)
    assert found.outputs.keys() == want.keys()
    for name, outputs in want.items():
        np.testing.assert_array_equal(found.outputs[name], outputs, err_msg=name)
    assert found.interval_cycles is not None
    interval = made.interval_cycles if level == "core" else made.serial_interval_cycles
    if not stalls:
        assert interval <= found.interval_cycles + 1e-9 and found.interval_cycles <= 1.1 * interval + 8
        if level == "core":
            assert found.latency_cycles == pytest.approx(made.latency_cycles, rel=0.1, abs=2)


@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name in PROGRAMS for form in ("unrolled", "folded") if (name, form) != LARGE]
)
def test_every_output_is_the_integer_program_s(name: str, form: Forms, tmp_path: Path) -> None:
    program = PROGRAMS[name]()
    made = design(program, form, multipliers=8)
    found = {layer.form for layer in made.layers if layer.weights}
    assert found <= ({"folded"} if form == "folded" else {"unrolled", "streaming"})
    check(made, program, tmp_path, "core", stalls=False)
    check(made, program, tmp_path, "core", stalls=True)


@pytest.mark.parametrize("name", ["dense", "two inputs", "residual"])
@pytest.mark.parametrize("port_bits", [8, 16])
def test_narrow_ports_give_the_same(name: str, port_bits: int, tmp_path: Path) -> None:
    program = PROGRAMS[name]()
    made = design(program, "auto", port_bits=port_bits)
    check(made, program, tmp_path, "serial", stalls=False)
    check(made, program, tmp_path, "serial", stalls=True)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_flipped_bit_of_a_weight_in_memory_is_seen(layer: int, tmp_path: Path) -> None:
    program = PROGRAMS["dense"]()
    made = design(program, "folded", multipliers=8)
    name = sorted(name for name in made.files if name.endswith("_weights.hex"))[layer]
    lines = made.files[name].decode().split()
    lines[3] = f"{int(lines[3], 16) ^ 4:0{len(lines[3])}x}"
    broken = replace(made, files={**made.files, name: "".join(line + "\n" for line in lines).encode()})
    with pytest.raises(AssertionError, match="Mismatched elements"):
        check(broken, program, tmp_path, "core", stalls=False, count=60)


def test_a_flipped_bit_of_a_weight_in_logic_is_seen(tmp_path: Path) -> None:
    program = PROGRAMS["dense"]()
    first = program.operations[0]
    assert isinstance(first, Dense)
    weight = first.weight.copy()
    weight[3, 5] ^= 4
    broken = design(replace(program, operations=(replace(first, weight=weight), *program.operations[1:])), "unrolled")
    with pytest.raises(AssertionError, match="Mismatched elements"):
        check(broken, program, tmp_path, "core", stalls=False, count=60)


def test_queues_that_are_too_short_hang_and_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "depths", lambda inputs, placed: dict.fromkeys(range(99), (1, 1)))
    monkeypatch.setattr(network, "SPARE_BEATS", 0)
    program = PROGRAMS["residual"]()
    with pytest.raises(ToolError, match="the design hangs"):
        check(design(program, "unrolled"), program, tmp_path, "core", stalls=False)


def test_forms_go_by_size() -> None:
    small = dense_net((16, 12, 5), 4, "half_up")
    assert [layer.form for layer in design(small).layers] == ["unrolled"]
    made = design(small, max_weights_unrolled=200, multipliers=4)
    assert [layer.form for layer in made.layers] == ["folded", "folded"]
    assert made.layers[0].reason == "192 weights of 4 bits, in logic like 196 of 4: more than 40 of these"
    first = next(op for op in small.operations if isinstance(op, Dense))
    mixed = design(small, "folded", forms={first.node: "unrolled"}, multipliers=4)
    assert [layer.form for layer in mixed.layers] == ["unrolled", "folded"]
    assert mixed.counts.multipliers <= 4 and mixed.counts.rom_bits > 0 and made.counts.rom_bits > mixed.counts.rom_bits


def test_a_layer_s_size_is_that_of_its_adders_not_of_its_weights_alone() -> None:
    program = dense_net((16, 12), 8, "half_up")
    (layer,) = (op for op in program.operations if isinstance(op, Dense))
    powers = np.where(layer.weight < 0, -64, 64)
    plain = replace(program, operations=tuple(replace(op, weight=powers) if op is layer else op for op in program.operations))
    most = 300
    assert [one.form for one in design(program, max_weights_unrolled=most, multipliers=4).layers] == ["folded"]
    assert [one.form for one in design(plain, max_weights_unrolled=most, multipliers=4).layers] == ["unrolled"]


def test_what_an_output_s_weights_have_in_common_is_no_part_of_the_memory() -> None:
    program = by_channel()
    made = design(program, "folded", multipliers=2)
    assert sum(name.endswith("_shifts.hex") for name in made.files) == 2
    weights = sum(op.weight.size for op in program.operations if isinstance(op, (Conv, Dense)))
    assert 5 * weights < made.counts.rom_bits < 6 * weights and max(layer.weight_bits for layer in made.layers) == 8


def test_elements_in_another_order_go_through_a_memory() -> None:
    made = design(mirrored(), "folded")
    assert [layer.form for layer in made.layers] == ["pixel by pixel", "reordered", "folded", "reordered", "folded"]
    assert made.layers[1].cycles == 252 and made.layers[1].counts.line_bits == 2 * 256 * 6


def test_the_same_program_gives_the_same_bytes() -> None:
    one, two = (design(PROGRAMS["residual"](), "folded") for _ in range(2))
    assert one.files == two.files and list(one.files) == sorted(one.files)


def test_a_product_of_matrices_is_refused() -> None:
    net = Net()
    one, two = net.input((40, 40)), net.input((40, 40))
    result = net.product(one, two)
    wide = net.program(result)
    matmul = replace(wide, operations=(Product("attention", one, two, result, matmul=True),))
    with pytest.raises(Unsupported, match=r"attention.*Product"):
        design(matmul)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "fast"}, "form 'fast'; known: auto, unrolled"), ({"multipliers": 0}, "0 multipliers"),
        ({"port_bits": 7}, "port_bits 7; allowed: 8, 16"), ({"forms": {"nothing": "folded"}}, "forms names nothing"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        design(dense_net((4, 3), 4, "half_up"), **options)  # type: ignore[arg-type]


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def written(made: Design, folder: Path) -> Path:
    for name, data in made.files.items():
        folder.joinpath(name).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("name", "form"),
    [("conv", "unrolled"), ("residual", "folded"), ("two inputs", "unrolled"), ("by channel", "folded"), ("mirrored", "folded")],
)
def test_verilator_has_no_other_warnings(name: str, form: Forms, tmp_path: Path) -> None:
    made = design(PROGRAMS[name](), form, multipliers=8)
    waivers = [f"-Wno-{one}" for one in WAIVED]
    command = ["verilator", "--lint-only", "-Wall", *waivers, "--top-module", made.serial, *made.sources]
    run(command, written(made, tmp_path))


def cells(made: Design, folder: Path, synthesis: str) -> dict[str, int]:
    """Cells by kind, as yosys counts them."""
    script = f"read_verilog {' '.join(made.sources)}; {synthesis} -top {made.serial}; tee -o cells.txt stat"
    run(["yosys", "-q", "-p", script], written(made, folder))
    text = folder.joinpath("cells.txt").read_text(encoding="utf-8").split("design hierarchy")[-1]
    rows = [line.split() for line in text.splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def test_folded_weights_become_block_ram_and_products_multipliers(tmp_path: Path) -> None:
    made = design(dense_net((64, 64, 4), 8, "half_up"), "folded", multipliers=6)
    found = cells(made, tmp_path, "synth_ecp5")
    assert made.counts.multipliers == found["MULT18X18D"]
    least = -(-made.counts.rom_bits // (18 * 1024))
    assert least <= found["DP16KD"] <= least + 2


@pytest.mark.slow
def test_xilinx_synthesis_takes_it_too(tmp_path: Path) -> None:
    made = design(dense_net((64, 64, 4), 8, "half_up"), "folded", multipliers=6)
    found = cells(made, tmp_path, "synth_xilinx -family xc7")
    assert made.counts.multipliers == found["DSP48E1"]
    assert found.get("RAMB18E1", 0) + 2 * found.get("RAMB36E1", 0) >= 2
