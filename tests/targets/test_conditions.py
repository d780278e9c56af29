"""Measuring under conditions: which choices are tried, what a run of minutes tells, cold starts, and energy where sensors are."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from edgesdk_converters.errors import DeviceError
from edgesdk_targets import board_facts, conditions, measure, packed, power
from edgesdk_targets.board_facts import Moment
from edgesdk_targets.bundle import Bundle
from edgesdk_targets.conditions import Conditions, Found, Slot, choices, evict, explore, sustained
from edgesdk_targets.measure import Timing

from .boards import orin_nano
from .test_packed import pack


def test_each_number_of_threads_is_tried_free_and_on_as_many_cores() -> None:
    assert choices([], range(4)) == [
        (1, ()), (1, (0,)), (2, ()), (2, (0, 1)), (3, ()), (3, (0, 1, 2)), (4, ()),
    ]  # fmt: skip
    assert choices([], [5]) == [(1, ())]


def test_cores_of_several_kinds_are_tried_each_by_itself() -> None:
    found = choices([{"cpus": [4, 5]}, {"cpus": [0, 1, 2, 3]}], range(6))
    assert [cpus for threads, cpus in found if threads == 2] == [(), (4, 5), (0, 1)]
    assert [cpus for threads, cpus in found if threads == 4] == [(), (0, 1, 2, 3)]
    assert [cpus for threads, cpus in found if threads == 6] == [()]
    assert (1, (3,)) in choices([{"cpus": [4, 5]}, {"cpus": [0, 1, 2, 3]}], [3, 4])


def test_of_very_many_cores_not_every_number_is_tried() -> None:
    counts = {threads for threads, _ in choices([], range(63))}
    assert {1, 8, 10, 62, 63} <= counts and not {9, 11, 61} & counts


@pytest.mark.parametrize("minutes", [-1.0, math.nan, math.inf, 1e9])
def test_minutes_without_end_are_refused(minutes: float) -> None:
    with pytest.raises(DeviceError, match="minutes on end; allowed"):
        Conditions(minutes=minutes)


def test_a_run_on_end_tells_its_slots_clocks_and_what_slowed_it() -> None:
    slots = [Slot(float(i), i + 1.0, 100, 10.0 + i, 9.0 + i, 20.0 + i) for i in range(12)]
    cold = Moment({"cpu 0": 1800.0}, {"cpu": 50.0}, (), {"throttling has occurred": 0})
    hot = Moment({"cpu 0": 1000.0}, {"cpu": 84.5}, (), {"throttling has occurred": 1})
    moments = [(i + 0.5, cold if i < 6 else hot) for i in range(12)]
    found = sustained(slots, moments, cold, "on end", "the board")
    first, last = found.rows
    assert (first.segment, first.value, first.n, first.percentiles) == (
        "sustained, first sixth",
        10.5,
        200,
        {"min": 9.0, "max": 21.0},
    )
    assert (last.segment, last.value, last.percentiles) == ("sustained, last sixth", 20.5, {"min": 19.0, "max": 31.0})
    series = dict(found.machine)["sustained"]
    assert len(series) == 12 and series[0]["at_s"] == 1.0 and series[0]["clocks_mhz"] == {"cpu 0": 1800.0}
    assert series[-1]["temperatures_c"] == {"cpu": 84.5} and series[-1]["p50_ms"] == 21.0
    (note,) = found.notes
    assert "10.5 ms in the first sixth, 20.5 ms in the last" in note
    assert "50.0 °C before, 84.5 °C during" in note and "slowed by throttling has occurred" in note


def test_a_board_without_sensors_tells_a_run_on_end_without_them(small_bundle: Bundle) -> None:
    slots = [Slot(0.0, 1.0, 10, 1.0, 1.0, 1.0)]
    found = sustained(slots, [], Moment(), "on end", "here")
    assert found.notes == ("on end: 1 ms in the first sixth, 1 ms in the last",)
    assert dict(found.machine)["sustained"] == [{"at_s": 1.0, "runs": 10, "p50_ms": 1.0, "max_ms": 1.0}]


def test_the_process_that_runs_on_end_tells_every_slot(small_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert conditions.main([str(small_bundle.path), "--seconds", "0.3", "--slot", "0.1", "--threads", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    slots = [Slot(**slot) for slot in told["slots"]]
    assert len(slots) >= 2 and all(slot.runs > 0 and slot.min_ms <= slot.p50_ms <= slot.max_ms for slot in slots)
    assert all(a.end_s <= b.begin_s for a, b in itertools.pairwise(slots))
    assert "onnxruntime" in told["facts"]
    assert conditions.main([str(small_bundle.path) + "-gone", "--seconds", "1", "--slot", "1"]) == 1
    assert "does not exist" in json.loads(capsys.readouterr().out)["error"]


def test_nothing_asked_for_on_a_machine_without_sensors_adds_nothing(
    small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "rails", lambda: None)
    assert explore(small_bundle.path, Conditions(), threads=1, allow_fallback=False, where="here") == Found()


def test_energy_comes_where_the_board_has_sensors(small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sensors are those of a made-up board: 4.8384 W by VDD_IN, whatever runs."""
    sensors = power.rails(orin_nano(tmp_path / "board").system)
    monkeypatch.setattr(power, "rails", lambda: sensors)
    monkeypatch.setattr(conditions, "ENERGY_SECONDS", 1.2)
    monkeypatch.setattr(conditions, "IDLE_SECONDS", 0.7)
    found = explore(small_bundle.path, Conditions(), threads=1, allow_fallback=False, where="the board")
    rows = {row.segment: row for row in found.rows}
    whole = rows["whole"]
    assert whole.provenance == "measured" and whole.value is not None and whole.n is not None
    told = re.search(r"over ([\d.]+) s of", whole.method)
    assert told is not None and float(told[1]) >= 1.2
    assert whole.value * whole.n / 1e3 == pytest.approx(4.8384 * float(told[1]), rel=0.05)  # joules of all runs
    assert rows["above idle"].value == pytest.approx(0, abs=1e-6)
    assert dict(found.machine)["idle_watts"]["VDD_IN"] == pytest.approx(4.8384)


def test_a_cold_start_is_told_only_where_the_file_left_memory(
    small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "rails", lambda: None)
    path = pack(small_bundle, tmp_path)
    asked: list[Path] = []

    def stays(file: Path) -> float:
        asked.append(file)
        return 0.5

    monkeypatch.setattr(conditions, "evict", stays)
    found = explore(path, Conditions(cold=True), threads=1, allow_fallback=False, where="here")
    assert {file.suffix for file in asked} == {packed.PAYLOAD, packed.MANIFEST_SUFFIX}
    assert [(row.name, row.segment, row.provenance) for row in found.rows] == [
        ("load_ms", "cold", "unavailable"), ("first_run_ms", "cold", "unavailable"),
    ]  # fmt: skip
    assert "50% of a file stays in memory" in found.rows[0].method
    monkeypatch.setattr(conditions, "evict", lambda file: 0.0)
    found = explore(path, Conditions(cold=True), threads=1, allow_fallback=False, where="here")
    assert [(row.name, row.segment, row.provenance, row.n) for row in found.rows] == [
        ("load_ms", "cold", "measured", 1), ("first_run_ms", "cold", "measured", 1),
    ]  # fmt: skip


def test_what_stays_of_a_file_in_memory_is_asked_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20))
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: None)
    assert evict(path) == 1.0
    path.write_bytes(b"")
    assert evict(path) == 0.0


def test_the_search_runs_each_choice_and_names_the_fastest(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "rails", lambda: None)
    monkeypatch.setattr(board_facts, "clusters", lambda: [{"cpus": [0, 1]}])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    times = {(1, ()): 4.0, (1, (0,)): 3.0, (2, ()): 2.0}
    seen: list[Any] = []

    def timed(path: Path, runs: int | None, threads: int, allow_fallback: bool, *, cpus: Any, seconds: float) -> Timing:
        seen.append((threads, tuple(cpus)))
        return Timing(1.0, 1.0, (times[threads, tuple(cpus)],) * 20, 10, 1, "onnxruntime")

    monkeypatch.setattr(measure, "in_fresh_process", timed)
    found = explore(small_bundle.path, Conditions(search=True), threads=0, allow_fallback=False, where="here")
    assert seen == list(times)
    assert {row.segment: row.value for row in found.rows} == {
        "threads=1 cpus=all": 4.0, "threads=1 cpus=0": 3.0, "threads=2 cpus=all": 2.0,
    }  # fmt: skip
    assert found.notes == ("fastest: threads=2 cpus=all, 2 ms; threads=1 cpus=0 +50%, threads=1 cpus=all +100%",)


def test_a_timed_process_keeps_to_the_cores_it_is_given(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: given.append(set(cpus)))
    assert measure.main([str(small_bundle.path), "--runs", "1", "--threads", "1", "--cpus", "0"]) == 0
    assert given == [{0}]


def test_under_an_emulator_nothing_timed_is_measured(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(board_facts.EMULATOR, "qemu-aarch64")
    report = measure.measure(small_bundle.path, runs=5, threads=1)
    for name in measure.TIMED:
        row = report.find(name)
        assert row is not None and row.provenance == "unavailable" and "an emulator (qemu-aarch64) runs this" in row.method
        assert "emulated by qemu-aarch64" in row.where
    assert not [row for row in report.rows if row.provenance == "measured" and row.where != "artifact"]
    assert not {"memory_bytes", "kernel", "before", "after"} & set(report.machine) and report.machine["is_device"] is False
    assert any("an emulator (qemu-aarch64) ran this" in note for note in report.notes)
    assert explore(small_bundle.path, Conditions(), threads=1, allow_fallback=False, where="x") == Found()
    with pytest.raises(DeviceError, match="nothing timed can be measured"):
        explore(small_bundle.path, Conditions(cold=True), threads=1, allow_fallback=False, where="x")
