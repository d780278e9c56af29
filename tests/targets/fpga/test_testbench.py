"""Test benches: files and commands as data, what simulators find, and errors that say what to do."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgesdk_converters.errors import DeviceError, MissingTool, ToolError
from edgesdk_targets.fpga.design import design
from edgesdk_targets.fpga.testbench import Simulator, bench, check, run, sides, simulate, simulate_netlist
from edgesdk_targets.fpga.tool_process import Limit, TookTooLong

from .integer_nets import Net, dense_net
from .test_design import PROGRAMS, vectors

SMALL = dense_net((6, 4, 3), 4, "half_even")


def test_commands_and_files_are_data() -> None:
    made = design(SMALL)
    codes = vectors(SMALL, 4)
    cpp = bench(made, codes, stalls=True, seed=9)
    assert [command[0] for command in cpp.commands] == ["verilator", "obj_dir/bench"]
    assert cpp.commands[-1] == ("obj_dir/bench", "4", "1", "9") and set(cpp.files) == {"bench.cc", "s0.in"}
    assert len(cpp.files["s0.in"]) == 4 * 4  # a beat of 24 bits an inference
    verilog = bench(made, codes, simulator="iverilog")
    assert [command[0] for command in verilog.commands] == ["iverilog", "vvp"] and set(verilog.files) == {"bench.v", "s0.in"}
    assert bench(made, codes, stalls=True, seed=9).files == cpp.files
    assert all(not Path(word).is_absolute() for command in (*cpp.commands, *verilog.commands) for word in command)


def test_sides_say_how_many_beats_of_what_width() -> None:
    made = design(SMALL, port_bits=16)
    (come,), (go,) = sides(made, "core")
    assert (come.width, come.beats, go.width, go.beats) == (24, 1, 12, 1)
    (come,), (go,) = sides(made, "serial")
    assert (come.width, come.beats, go.width, go.beats) == (16, 6, 16, 3)


def test_codes_that_no_input_has_are_a_bug() -> None:
    name = SMALL.inputs[0]
    with pytest.raises(ValueError, match="has codes from 8 to 8; allowed: -8 to 7"):
        bench(design(SMALL), {name: np.full((1, 6), 8)})


def test_verilator_and_icarus_agree_with_the_program_and_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports of more than 64 bits, of some 40, and of few: each has another type in C++. Built once, run twice."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    net = Net(11)
    wide, middle = net.input((16,)), net.input((7,))
    both = net.concat([wide, middle])
    program = net.program(net.round(net.dense(both, 20), 5, signed=True), net.argmax(net.dense(middle, 4)))
    made = design(program, forms=None, max_weights_unrolled=1)
    said: list[str] = []
    for stalls in (False, True):
        codes = vectors(program, 40, seed=int(stalls))
        want = program.run(codes)
        one = simulate(made, codes, "verilator", tmp_path / "verilator", said.append, stalls=stalls, seed=3)
        two = simulate(made, codes, "iverilog", tmp_path / "icarus", said.append, stalls=stalls, seed=3)
        for name, outputs in want.items():
            np.testing.assert_array_equal(one.outputs[name], outputs)
            np.testing.assert_array_equal(two.outputs[name], outputs)
        if not stalls:
            assert (one.latency_cycles, one.interval_cycles) == (two.latency_cycles, two.interval_cycles)
    assert said[0] == "verilator: building a simulator of net"
    assert said.count(said[0]) == 1


def test_the_netlist_computes_the_same(tmp_path: Path) -> None:
    codes = vectors(SMALL, 100)
    said: list[str] = []
    found = simulate_netlist(design(SMALL), codes, tmp_path, said.append)
    for name, outputs in SMALL.run(codes).items():
        np.testing.assert_array_equal(found.outputs[name], outputs)
    assert said[0] == "yosys: net, network" and found.interval_cycles == 1


@pytest.mark.slow
def test_the_netlist_of_a_folded_layer_behind_ports_computes_the_same(tmp_path: Path) -> None:
    made = design(SMALL, "folded", multipliers=2)
    codes = vectors(SMALL, 100)
    found = simulate_netlist(made, codes, tmp_path, level="serial")
    for name, outputs in SMALL.run(codes).items():
        np.testing.assert_array_equal(found.outputs[name], outputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_thousand_vectors_in_verilator(name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]()
    made = design(program, "folded", multipliers=16)
    for seed, stalls in enumerate((False, True)):
        codes = vectors(program, 1000, seed)
        found = simulate(made, codes, "verilator", tmp_path, stalls=stalls, seed=seed)
        for output, want in program.run(codes).items():
            np.testing.assert_array_equal(found.outputs[output], want)


def test_a_missing_simulator_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError) as error:
        simulate(design(SMALL), vectors(SMALL), "verilator", tmp_path)
    assert error.value.message == "verilator: is not installed" and "apt" in error.value.hint


def test_a_simulator_is_there_when_all_of_its_programs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for simulator, programs in (("verilator", ["verilator"]), ("iverilog", ["iverilog", "vvp"])):
        for name in programs:
            with pytest.raises(MissingTool, match=f"{name}: is not installed") as caught:
                check(simulator)
            assert simulator in caught.value.hint
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)
        check(simulator)


def test_a_file_for_which_there_is_no_room_is_named(tmp_path: Path) -> None:
    codes = vectors(SMALL, 20_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40 * 1024, limits[1]))
    try:
        with pytest.raises(DeviceError, match=r"design/s0\.in cannot be written: File too large") as caught:
            simulate(design(SMALL), codes, "iverilog", tmp_path / "design")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "TMPDIR" in caught.value.hint


def test_a_tool_that_fails_gives_its_last_lines(tmp_path: Path) -> None:
    made = design(SMALL)
    name = next(name for name in made.files if name.endswith("_kernel.v"))
    with pytest.raises(ToolError, match=r"iverilog: ended with .*syntax error"):
        simulate(replace(made, files={**made.files, name: b"module broken (;\n"}), vectors(SMALL), "iverilog", tmp_path)
    with pytest.raises(ToolError, match="false: ended with 1"):
        run(("false",), tmp_path)


def test_a_command_tells_that_it_runs_and_is_stopped_at_its_limit(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(TookTooLong, match=r"sleep: stopped after 2\.5 s"):
        run(("sleep", "300"), tmp_path, said.append, Limit.of(2.5))
    assert said[0].startswith("sleep: running, ")
    said.clear()
    assert run(("sh", "-c", "echo a; sleep 2; echo b"), tmp_path, said.append, Limit.of(60), "vvp") == "a\nb\n"
    assert said[0].startswith("vvp: running, ")


@pytest.mark.parametrize("simulator", ["verilator", "iverilog"])
def test_no_simulation_goes_on_beyond_its_limit(simulator: Simulator, tmp_path: Path) -> None:
    with pytest.raises(TookTooLong):
        simulate(design(SMALL), vectors(SMALL), simulator, tmp_path, limit=Limit.of(0.0))
    with pytest.raises(TookTooLong):
        simulate_netlist(design(SMALL), vectors(SMALL), tmp_path, netlist=b"module network(); endmodule", limit=Limit.of(0.0))


def test_undefined_bits_are_an_error(tmp_path: Path) -> None:
    made = design(SMALL)
    text = made.files["edgesdk_skid.v"].decode().replace("? spare : s_data", "? spare : {WIDTH{1'bx}}")
    with pytest.raises(ToolError, match="m0 has undefined bits"):
        simulate(replace(made, files={**made.files, "edgesdk_skid.v": text.encode()}), vectors(SMALL), "iverilog", tmp_path)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_what_is_stopped_leaves_no_process_that_its_command_began(by: signal.Signals, tmp_path: Path) -> None:
    """Verilator starts make, and that the compiler."""
    (tmp_path / "tool").write_text("#!/bin/sh\nsleep 300 &\necho $! > part\nmv part pid\nwait\n")
    (tmp_path / "tool").chmod(0o755)
    code = (
        "import signal, sys; from pathlib import Path; from edgesdk_targets.fpga.testbench import run\n"
        "[signal.signal(one, signal.default_int_handler) for one in (signal.SIGINT, signal.SIGTERM)]\n"
        "run(('./tool',), Path(sys.argv[1]), lambda line: print(line, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as sdk:
        assert sdk.stdout is not None and b"running" in sdk.stdout.readline()
        _until((tmp_path / "pid").exists)
        sdk.send_signal(by)
        _, said = sdk.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    _until(lambda: _is_gone(int((tmp_path / "pid").read_text())))


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _until(holds: Callable[[], bool]) -> None:
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it does not come to hold")
