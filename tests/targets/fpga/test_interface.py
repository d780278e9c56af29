"""Values to codes and back, and the wiring: a host that is made from the JSON file alone gets the network's integers."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesdk_converters.errors import ModelError
from edgesdk_converters.integer_program import Codes, IntegerProgram
from edgesdk_targets.fpga.design import Design, design
from edgesdk_targets.fpga.interface import Interface, Port, port_names, wiring, wiring_text

from .integer_nets import Net
from .test_design import PROGRAMS

Array = NDArray[Any]
BYTES = Interface((Port(Codes("x", (3,), -4, -128, 127), "float32"),), (Port(Codes("y", (3,), -4, -128, 127), "float32"),))


def test_values_are_rounded_and_what_is_out_of_range_saturates_infinity_too() -> None:
    values = np.array([[0.5, -np.inf, np.inf], [1e9, -1e9, 1.03125]], np.float32)
    assert BYTES.encode({"x": values})["x"].tolist() == [[8, -128, 127], [127, -128, 16]]


def test_nan_is_refused_by_the_name_of_its_input() -> None:
    with pytest.raises(ModelError, match="input 'x' holds NaN"):
        BYTES.encode({"x": np.array([[0.0, np.nan, 1.0]], np.float32)})


def test_an_interface_reads_as_it_was_written() -> None:
    assert Interface.from_bytes(BYTES.to_bytes()) == BYTES


def turned() -> IntegerProgram:
    """An image of 12 bits whose result of 11 is turned to pixels before channels, and a vector in an order of its own."""
    net = Net(21)
    made = net.round(net.conv(net.input((2, 4, 5), 12), 3, (3, 3)), 11, signed=True)
    few = net.round(net.dense(net.flatten(made), 6))
    pixels = np.arange(18).reshape(3, 2, 3).transpose(2, 0, 1).copy()
    return net.program(net.move([made], pixels), net.move([few], np.array([3, 0, 5, 1, 4, 2])))


def wide() -> IntegerProgram:
    """One convolution with 11 bits in and 13 out."""
    net = Net(22)
    return net.program(net.round(net.conv(net.input((3, 5, 4), 11), 4, (2, 2)), 13, signed=True))


NETS: Mapping[str, tuple[Callable[[], IntegerProgram], int]] = {
    "two bytes": (wide, 8), "a beat of 16": (wide, 16), "turned": (turned, 8), "two inputs": (PROGRAMS["two inputs"], 8),
    "two outputs": (PROGRAMS["residual"], 8), "straight through": (PROGRAMS["unread"], 8),
}  # fmt: skip


def written(program: IntegerProgram, made: Design) -> bytes:
    return Interface.of(program, dict.fromkeys(program.outputs, "float32")).to_bytes(wiring(made))


class Host:
    """What a firmware engineer makes of interface.json: it knows nothing else of the design, and nothing of edgesdk."""

    def __init__(self, data: bytes) -> None:
        self.told = json.loads(data)

    def codes(self, port: dict[str, Any], values: Array) -> Array:
        scaled = values * 2.0 ** -port["exponent"]
        whole = np.rint(scaled) if port["rounding"] == "half_even" else np.floor(scaled + 0.5 * (port["rounding"] == "half_up"))
        codes: Array = np.clip(whole, port["low"], port["high"]).astype(np.int64)
        return codes

    def order(self, port: dict[str, Any]) -> Array:
        order, every = port["wiring"]["order"], np.arange(int(np.prod(port["shape"])))
        if order == "as flattened":
            return every
        pixels: Array = every.reshape(port["shape"][0], -1).T.reshape(-1)
        return pixels if order == "channel fastest, then pixels in raster order" else np.array(order)

    def beats(self, port: dict[str, Any], codes: Array, rng: np.random.Generator) -> list[int]:
        """Of many inferences, with noise in the bits that the file says are ignored."""
        wired, found = port["wiring"], []
        assert "least significant first" in wired["beats"] and wired["beats"].endswith("ignored")
        whole = wired["port_bits"] * wired["beats_an_element"]
        for code in codes.reshape(len(codes), -1)[:, self.order(port)].reshape(-1).tolist():
            word = code % (1 << port["bits"]) | int(rng.integers(1 << whole - port["bits"])) << port["bits"]
            for part in range(wired["beats_an_element"]):
                found.append(word >> part * wired["port_bits"] & (1 << wired["port_bits"]) - 1)
        return found

    def taken(self, port: dict[str, Any], beats: list[int]) -> Array:
        """The codes of many inferences; bits above a code are those that the file says."""
        wired, size = port["wiring"], int(np.prod(port["shape"]))
        parts, whole = wired["beats_an_element"], wired["port_bits"] * wired["beats_an_element"]
        words = [
            sum(beat << part * wired["port_bits"] for part, beat in enumerate(beats[at : at + parts]))
            for at in range(0, len(beats), parts)
        ]
        sign = wired["beats"].endswith("copies of the sign")
        assert sign == port["signed"] == ("two's complement" in wired["beats"]) and (sign or wired["beats"].endswith("zero"))
        found = np.array([word - (1 << whole) if sign and word >> whole - 1 else word for word in words]).reshape(-1, size)
        codes = np.empty_like(found)
        codes[:, self.order(port)] = found
        return codes.reshape(-1, *port["shape"])

    def bench(self, beats: Mapping[str, list[int]], count: int, patience: int, one_by_one: bool, reset_at: int) -> str:
        """Registers drive every port; all ports at once, or each input and each output behind the one before it."""
        clk, rst = self.told["wiring"]["clock"]["port"], self.told["wiring"]["reset"]["port"]
        ports = [port["wiring"] for port in (*self.told["inputs"], *self.told["outputs"])]
        wires = "".join(f", .{one[kind]}({one[kind]})" for one in ports for kind in ("valid", "ready", "data"))
        text, ends, before = "", [], "1"
        for one in (port["wiring"] for port in self.told["inputs"]):
            n, total, turn = one["port"], len(beats[one["port"]]), before if one_by_one else "1"
            text += f"""
    reg {one["valid"]} = 0; wire {one["ready"]}; reg [{one["port_bits"] - 1}:0] {one["data"]};
    reg [{one["port_bits"] - 1}:0] {n}_memory [0:{total - 1}]; integer {n}_next = 0;
    initial $readmemh("{n}.hex", {n}_memory);
    always @(posedge {clk}) if ({rst}) begin {one["valid"]} <= 0; {n}_next <= 0; end
        else if (!{one["valid"]} || {one["ready"]}) begin
            {one["valid"]} <= {n}_next < {total} && ({turn}); {one["data"]} <= {n}_memory[{n}_next];
            if ({n}_next < {total} && ({turn})) {n}_next <= {n}_next + 1;
        end
"""
            before = f"{n}_next == {total} && !{one['valid']}"
        before = "1"
        for one in (port["wiring"] for port in self.told["outputs"]):
            n, total, turn = one["port"], one["beats_an_inference"] * count, before if one_by_one else "$random"
            text += f"""
    wire {one["valid"]}; reg {one["ready"]} = 0; wire [{one["port_bits"] - 1}:0] {one["data"]};
    integer {n}_got = 0, {n}_file; initial {n}_file = $fopen("{n}.hex", "w");
    always @(posedge {clk}) begin
        {one["ready"]} <= !{rst} && ({turn});
        if ({rst}) begin {n}_got = 0; $fclose({n}_file); {n}_file = $fopen("{n}.hex", "w"); end
        else if ({one["valid"]} && {one["ready"]}) begin $fdisplay({n}_file, "%h", {one["data"]}); {n}_got = {n}_got + 1; end
    end
"""
            before = f"{n}_got == {total}"
            ends.append(before)
        return f"""`timescale 1ns / 1ps
module host;
    reg {clk} = 0, {rst} = 1;
    always #5 {clk} = !{clk};
    initial begin
        @(posedge {clk}) {rst} <= 0; repeat ({reset_at}) @(posedge {clk});
        {rst} <= {reset_at} > 0; @(posedge {clk}) {rst} <= 0;
    end
    {self.told["wiring"]["module"]} dut (.{clk}({clk}), .{rst}({rst}){wires});{text}
    always @(negedge {clk}) if (!{rst} && {" && ".join(ends)}) $finish;
    initial begin repeat ({patience}) @(posedge {clk}); $display("waits for ever"); $finish_and_return(1); end
endmodule
"""

    def run(
        self, files: Mapping[str, bytes], feed: Mapping[str, Array], folder: Path, one_by_one: bool = False, reset_at: int = 0
    ) -> dict[str, Array] | None:
        """The outputs' codes of the inputs' codes; None where the design waits for ever."""
        rng = np.random.default_rng(3)
        beats = {port["wiring"]["port"]: self.beats(port, feed[port["name"]], rng) for port in self.told["inputs"]}
        count = len(next(iter(feed.values())))
        patience = 1000 + 8 * (count + 2) * self.told["wiring"]["least_cycles_an_inference"]
        for name, data in files.items():
            (folder / name).write_bytes(data)
        for name, each in beats.items():
            (folder / f"{name}.hex").write_text("".join(f"{beat:x}\n" for beat in each))
        (folder / "host.v").write_text(self.bench(beats, count, patience, one_by_one, reset_at))
        sources = [name for name in files if name.endswith(".v")]
        subprocess.run(["iverilog", "-g2005", "-o", "host", "-s", "host", "host.v", *sources], cwd=folder, check=True)
        if subprocess.run(["vvp", "-n", "host"], cwd=folder, check=False, capture_output=True).returncode:
            return None
        return {
            port["name"]: self.taken(
                port, [int(line, 16) for line in (folder / f"{port['wiring']['port']}.hex").read_text().split()]
            )
            for port in self.told["outputs"]
        }


def samples(host: Host, count: int) -> dict[str, Array]:
    """Values beyond the range of the codes, too."""
    rng = np.random.default_rng(9)
    return {
        port["name"]: rng.uniform(1.2 * port["low"], 1.2 * port["high"], (count, *port["shape"])).astype(np.float32)
        * np.float32(2.0 ** port["exponent"])
        for port in host.told["inputs"]
    }


@pytest.mark.parametrize("form", ["unrolled", "folded"])
@pytest.mark.parametrize("name", NETS)
def test_a_host_made_from_the_file_alone_gets_the_network_s_integers(name: str, form: Any, tmp_path: Path) -> None:
    build, port_bits = NETS[name]
    program = build()
    made = design(program, form, multipliers=8, port_bits=port_bits)
    host = Host(written(program, made))
    values = samples(host, 4)
    feed = {port["name"]: host.codes(port, values[port["name"]]) for port in host.told["inputs"]}
    want = program.run(program.encode(values))
    for reset_at in (0, 40):
        found = host.run(made.files, feed, tmp_path, reset_at=reset_at)
        assert found is not None and found.keys() == want.keys()
        for output, codes in want.items():
            np.testing.assert_array_equal(found[output], codes, err_msg=output)


def test_orders_are_words_or_a_list_and_elements_have_as_many_beats_as_they_need() -> None:
    told = {}
    for name, (build, port_bits) in NETS.items():
        wired = wiring(design(build(), "unrolled", port_bits=port_bits))
        told[name] = [(one["order"], one["beats_an_element"]) for one in (*wired.inputs, *wired.outputs)]
    pixels = "channel fastest, then pixels in raster order"
    assert told["two bytes"] == [(pixels, 2)] * 2 and told["a beat of 16"] == [(pixels, 1)] * 2
    place = np.argsort(np.arange(18).reshape(3, 2, 3).transpose(2, 0, 1).reshape(-1))  # of an image's element in the result
    assert told["turned"][1] == (place[np.arange(18).reshape(3, 6).T.reshape(-1)].tolist(), 2)
    assert told["turned"][2] == ([1, 3, 5, 0, 4, 2], 1)
    assert told["two outputs"][1:] == [("as flattened", 1), (pixels, 1)]


def test_a_host_that_serves_one_output_after_another_waits_for_ever_as_the_file_warns(tmp_path: Path) -> None:
    program = PROGRAMS["residual"]()
    made = design(program, "unrolled")
    host = Host(written(program, made))
    feed = {
        port["name"]: host.codes(port, values)
        for port, values in zip(host.told["inputs"], samples(host, 2).values(), strict=True)
    }
    assert host.run(made.files, feed, tmp_path) is not None
    assert host.run(made.files, feed, tmp_path, one_by_one=True) is None
    assert any(rule.startswith("Serve all ports at once") for rule in host.told["wiring"]["handshake"])


@pytest.mark.parametrize("name", ["two inputs", "two outputs", "a beat of 16"])
def test_ports_are_those_of_the_verilog(name: str) -> None:
    build, port_bits = NETS[name]
    program = build()
    made = design(program, "unrolled", port_bits=port_bits)
    head = made.files[f"{made.serial}.v"].decode().split(");")[0]
    found = []
    for direction, high, port in re.findall(r"(input|output)\s+wire (?:\[(\d+):0\] )?(\w+)", head):
        found += [port] if not high else [f"{port}[{bit}]" for bit in range(int(high) + 1)]
        text = wiring_text(Interface.of(program, dict.fromkeys(program.outputs, "float32")), wiring(made), "net", 50.0).decode()
        assert f"| {port} | {direction.removesuffix('put')} | {int(high or 0) + 1} |" in text
    assert tuple(found) == port_names(len(program.inputs), len(program.outputs), port_bits)


def test_a_file_with_its_wiring_reads_as_one_without() -> None:
    program = turned()
    ends = Interface.of(program, dict.fromkeys(program.outputs, "float32"))
    assert Interface.from_bytes(ends.to_bytes(wiring(design(program)))) == Interface.from_bytes(ends.to_bytes()) == ends
    assert b"wiring" not in ends.to_bytes()


def test_the_text_says_how_values_become_codes_and_how_long_an_inference_takes() -> None:
    program = turned()
    made = design(program, "unrolled")
    text = wiring_text(Interface.of(program, dict.fromkeys(program.outputs, "float32")), wiring(made), "a|net", 50.0).decode()
    (name,) = program.inputs
    assert text.startswith("# How to wire a\\|net\n")
    assert f"- `{name}`: code = rint(value * 2^4), ties to even; then what is below -2048 becomes -2048" in text
    first = program.tensors[program.outputs[0]]
    assert f"value = code * 2^{first.exponent}; codes are from {first.low} to {first.high}" in text
    assert f"| `{name}` | s0 | 2x4x5 | 12 | 2 | 80 | channel fastest, then pixels in raster order |" in text
    assert (
        f"less than {made.serial_interval_cycles} cycles" in text
        and f"({made.serial_interval_cycles / 50:.6g} us at 50 MHz)" in text
    )
    half = Interface((Port(Codes("x", (3,), -4, -128, 127), "float32", "half_up"),), (Port(Codes("i", (1,), 0, 0, 2), "int64"),))
    few = Net(1)
    wired = wiring(design(few.program(few.argmax(few.dense(few.input((3,)), 3)))))
    assert "code = floor(value * 2^4 + 0.5);" in (told := wiring_text(half, wired, "n", 100.0).decode())
    assert "`i`: the code is the int64;" in told
