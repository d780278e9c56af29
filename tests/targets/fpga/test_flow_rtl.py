"""What the flow rtl writes for a host, and what it reports at export where a tool is missing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgesdk_converters.integer_program import Integers
from edgesdk_targets.device import profile
from edgesdk_targets.figure import unavailable
from edgesdk_targets.fpga import design as design_room
from edgesdk_targets.fpga import flow_rtl, testbench
from edgesdk_targets.fpga.design import Design, design
from edgesdk_targets.fpga.interface import Interface, port_names, wiring, wiring_text
from edgesdk_targets.fpga.target import Fpga
from edgesdk_targets.fpga.testbench import Simulated
from edgesdk_targets.fpga.tool_process import Limit

from .integer_nets import dense_net
from .test_design import PROGRAMS

YOSYS = shutil.which("yosys")


@pytest.mark.skipif(YOSYS is None, reason="synthesises with yosys")
def test_a_netlist_that_no_simulator_is_there_for_has_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("yosys", "yosys-abc", "berkeley-abc", "sh"):
        found = shutil.which(name)
        if found is not None:
            (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    program = dense_net((3, 2), 4, "half_up")
    target = Fpga(profile("ecp5-25k"), tools="synthesis")
    made = design(program, "unrolled")
    rows, _, _ = flow_rtl._built(made, program, target, tmp_path, None, lambda _: None)
    (row,) = (row for row in rows if row.name == "mismatches")
    assert (row.provenance, row.segment, row.value) == ("unavailable", "netlist", None) and "iverilog" in row.method


def test_without_a_clock_the_latency_has_the_reason_that_the_clock_has() -> None:
    for told in ("the design was not routed; yosys knows no wire delays", "no free place and route exists for this family"):
        row = flow_rtl._latency(unavailable("fmax_mhz", "here", told), None, "here")
        assert (row.name, row.value, row.method) == ("latency_ms", None, f"no clock is known: {told}")


@pytest.mark.parametrize("there", ["verilator", "iverilog"])
def test_the_export_simulates_in_what_is_there_and_says_in_what(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name == there else None)
    asked: list[tuple[str, int]] = []

    def simulate(made: Design, codes: Mapping[str, Integers], simulator: str, *_: Any, **__: Any) -> Simulated:
        asked.append((simulator, len(codes[program.inputs[0]])))
        return Simulated(program.run(codes), 7, 2.0, 0.1)

    monkeypatch.setattr(testbench, "simulate", simulate)
    program = dense_net((3, 2), 4, "half_up")
    made = replace(design(program, "unrolled"), interval_cycles=10_000)
    rows = list(flow_rtl._simulated(made, program, tmp_path, lambda _: None, Limit.of(60)))
    title = {"verilator": "Verilator", "iverilog": "Icarus"}[there]
    assert asked == [(there, {"verilator": 500, "iverilog": 20}[there]), (there, 5)]
    assert [row.name for row in rows] == ["mismatches", "mismatches", "cycles", "initiation_interval"]
    assert all(row.where.startswith(title) for row in rows)
    assert all(row.method.startswith(f"{title}, ") for row in rows if row.name != "mismatches")


def test_a_design_with_several_ports_has_a_note_that_a_host_serves_them_at_once() -> None:
    one, several = dense_net((3, 2), 4, "half_up"), PROGRAMS["residual"]()
    notes = {program: [note for note in flow_rtl._told(design(program)) if "at once" in note] for program in (one, several)}
    assert notes[one] == []
    assert notes[several] == ["the design has 2 outputs: a host has to serve all ports at once, one after another can hang "
                              "(build/WIRING.md)"]  # fmt: skip


def test_the_files_say_how_to_wire_it_and_where_the_board_has_its_ports(tmp_path: Path) -> None:
    program = dense_net((3, 2), 4, "half_up")
    dtypes = dict.fromkeys(program.outputs, "float32")
    board = tmp_path / "board.lpf"
    board.write_text("".join(f"LOCATE COMP {port} SITE P1;\n" for port in port_names(1, 1, 8)))
    plain, placed = (flow_rtl.compiled(program, dtypes, Fpga(profile("ecp5-25k"), pins=pins)).files for pins in ("", str(board)))
    assert {name for name in placed if placed[name] != plain.get(name)} == {"build/pins.lpf", "build/Makefile"}
    assert placed["build/pins.lpf"] == board.read_bytes() and b"--lpf pins.lpf" in placed["build/Makefile"]
    made = design(program)
    ends = Interface.of(program, dtypes)
    assert plain["interface.json"] == ends.to_bytes(wiring(made))
    assert plain["build/WIRING.md"] == wiring_text(ends, wiring(made), program.name, 100.0)
    assert b"WIRING" not in plain["build/Makefile"] and set(made.files) <= {name.removeprefix("build/") for name in plain}


def test_a_bundle_keeps_its_forms_whatever_rule_chooses_them_now(monkeypatch: pytest.MonkeyPatch) -> None:
    program = dense_net((16, 12, 5), 4, "half_up")
    target = Fpga(profile("ecp5-85k"), multipliers=4, max_weights_unrolled=200)
    made = flow_rtl.compiled(program, dict.fromkeys(program.outputs, "float32"), target)
    monkeypatch.setattr(design_room, "REFERENCE_ADDER_BITS", 1e9)
    assert {layer.form for layer in flow_rtl.made_for(program, made.runtime.config).layers} == {"unrolled"}
    older = {name: value for name, value in made.runtime.config.items() if name != flow_rtl.FORMS}
    for config in (made.runtime.config, older):
        manifest = SimpleNamespace(files=made.files, runtime=SimpleNamespace(config=config))
        bundle: Any = SimpleNamespace(manifest=manifest, read=made.files.__getitem__, path=Path("net.edge"))
        assert [layer.form for layer in flow_rtl.kept_in(bundle, program).layers] == ["folded", "folded"]
