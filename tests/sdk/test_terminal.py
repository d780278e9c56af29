"""Progress on stderr where that is no terminal: a line for each phase, and one every half a minute while it lasts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgesdk import terminal


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time by which lines are told apart; `now` is set by hand."""
    found = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def told(lines: list[tuple[float, str]], clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is printed of lines that come so many seconds after the beginning."""
    begun = clock.now
    with terminal.progress() as tell:
        for seconds, line in lines:
            clock.now = begun + seconds
            tell(line)
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_ten_minutes_of_one_tool_are_a_line_each_half_minute(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    steps = ("OPT_MERGE", "ABC", "placing, iteration 3, wire length 5,476", "running")
    lines = [(float(second), f"synthesis: {steps[second % 4]}, {second} s") for second in range(601)]
    assert told(lines, clock, capsys) == [line for second, line in lines if second % 30 == 0]


def test_each_phase_is_told_at_once_and_its_counting_is_not(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    told_once = [
        "loading the model", "pass fold", "pass quantize", "reading activation ranges: sample 1 of 60",
        "checking against ecp5-25k", "running the source model: 0 of 900 samples", "trying int8", "trying int4",
        "verilator: building a simulator of resnet8", "verilator: resnet8, network", "verilator: resnet8, serial",
        "synthesis: yosys 0.33", "place-and-route: nextpnr-ecp5 0.7", "timing 3 networks, turn 1 of 5", "writing the bundle",
    ]  # fmt: skip
    behind = {
        "reading activation ranges: sample 1 of 60": ["reading activation ranges: sample 2 of 60"],
        "running the source model: 0 of 900 samples": ["running the source model: 200 of 900 samples"],
        "synthesis: yosys 0.33": ["synthesis: ABC, 1 s", "synthesis: OPT_EXPR, 2 s"],
        "place-and-route: nextpnr-ecp5 0.7": ["place-and-route: Packing carries, 3 s"],
        "timing 3 networks, turn 1 of 5": ["timing 3 networks, turn 2 of 5"],
    }
    lines = [line for first in told_once for line in (first, first, *behind.get(first, ()))]
    assert told([(number / 10, line) for number, line in enumerate(lines)], clock, capsys) == told_once


def test_a_phase_that_comes_again_is_told_again(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["pass fold", "trying int8", "pass fold", "pass fold"]
    assert told([(number, line) for number, line in enumerate(lines)], clock, capsys) == lines[:3]


def test_a_line_that_is_not_printed_stops_a_stopped_run_all_the_same(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "STOPS", [])
    with terminal.progress() as tell:
        tell("synthesis: ABC, 1 s")
        terminal.STOPS.append(2)
        with pytest.raises(KeyboardInterrupt):
            tell("synthesis: ABC, 2 s")
    assert capsys.readouterr().err == "synthesis: ABC, 1 s\n"
