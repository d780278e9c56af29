"""Measuring under conditions: energy, minutes on end with clocks and temperatures, threads by cores, cold against warm.

Each run is in a fresh process, as in `measure`, and what the board tells is read beside it from this one. `main` is the process
that runs a bundle for a time and tells its times slot by slot.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import mmap
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgesdk_converters.errors import DeviceError, EdgeError

from . import board_facts, device, golden, measure, packed, power, runner
from .board_facts import Moment
from .figure import Figure, unavailable
from .power import Watch

ENERGY_SECONDS = 4.0
IDLE_SECONDS = 2.0
SEARCH_SECONDS = 0.7
"""Of timed runs for each choice of threads and cores."""
MOST_THREADS = 8
"""Beyond, only every second number and all cores are tried."""
COLD = 0.05
"""Share of a file that may still be in memory for it to count as cold."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Conditions:
    """What to measure beside the plain run: `search` of threads by cores, `minutes` on end, `cold` start."""

    search: bool = False
    minutes: float = 0.0
    cold: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minutes) and 0 <= self.minutes <= 24 * 60):
            raise DeviceError(f"{self.minutes:g} minutes on end; allowed: 0 (none) to {24 * 60}")

    @property
    def seconds(self) -> float:
        """How long this may take beside the plain run, roughly, on a slow board."""
        return 60 * self.minutes + 240 * self.search + 30 * self.cold


@dataclass(frozen=True)
class Found:
    """Rows, facts for the report's `machine`, and notes."""

    rows: tuple[Figure, ...] = ()
    machine: tuple[tuple[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: Found) -> Found:
        return Found(self.rows + other.rows, self.machine + other.machine, self.notes + other.notes)


@dataclass(frozen=True)
class Slot:
    """Runs one after another between two times of time.monotonic; milliseconds of the median, fastest and slowest."""

    begin_s: float
    end_s: float
    runs: int
    p50_ms: float
    min_ms: float
    max_ms: float


def explore(
    path: Path, conditions: Conditions, *, threads: int, allow_fallback: bool, where: str, progress: Progress = runner.silent
) -> Found:
    """All that was asked for, and the energy where this board has sensors. Raises EdgeError where the bundle cannot run here."""
    emulator = board_facts.emulator()
    if emulator:
        if conditions != Conditions():
            raise DeviceError(f"an emulator ({emulator}) runs this: nothing timed can be measured", "measure on a board")
        return Found()
    found = Found()
    sensors = power.rails()
    if sensors is not None or conditions.minutes:
        found += _held(path, sensors, conditions.minutes, threads, allow_fallback, where, progress)
    if conditions.cold:
        found += _cold(path, threads, allow_fallback, where, progress)
    if conditions.search:
        found += _search(path, allow_fallback, where, progress)
    return found


def choices(clusters: Sequence[dict[str, Any]], usable: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Threads, and the CPUs they may run on (empty: all), to be tried: each number of threads free, and on as many CPUs.

    Where cores are of several kinds, each kind is tried by itself; `usable` are the CPUs that this process may have.
    """
    counts = [n for n in range(1, len(usable) + 1) if n <= MOST_THREADS or n % 2 == 0 or n == len(usable)]
    kinds = [tuple(cpu for cpu in cluster["cpus"] if cpu in usable) for cluster in clusters]
    kinds = [kind for kind in kinds if kind] or [tuple(usable)]
    found: list[tuple[int, tuple[int, ...]]] = []
    for threads in counts:
        found.append((threads, ()))
        found += [(threads, kind[:threads]) for kind in kinds if threads <= len(kind) and threads < len(usable)]
    return list(dict.fromkeys(found))


def hold(path: Path, seconds: float, slot_s: float, options: runner.RunOptions) -> tuple[list[Slot], str]:
    """Load a bundle in this process and run it on its first golden input for so long."""
    bundle = measure.opened(path)
    loaded = runner.load(bundle, options)
    cases = golden.load(bundle, "inputs")
    if not cases:
        raise EdgeError(f"{path} has no golden inputs to run", "export it again")
    loaded.run(cases[0])
    slots, end = [], time.monotonic() + seconds
    while (begin := time.monotonic()) < end:
        times: list[float] = []
        until, last = min(end, begin + slot_s), begin
        while last < until:
            loaded.run(cases[0])
            now = time.monotonic()
            times.append(1e3 * (now - last))
            last = now
        slots.append(Slot(begin, last, len(times), float(np.median(times)), min(times), max(times)))
    facts = str(loaded.facts)
    loaded.close()
    return slots, facts


def _held(
    path: Path, sensors: power.Rails | None, minutes: float, threads: int, allow_fallback: bool, where: str, progress: Progress
) -> Found:
    """Energy where there are sensors, and with `minutes` how times, clocks and temperatures go."""
    seconds = max(60 * minutes, ENERGY_SECONDS)
    slot_s = max(1.0, seconds / 60)
    idle: power.Watts = {}
    if sensors is not None:
        progress("measuring the power of the idle board")
        with Watch(sensors.read, sensors.period_s) as resting:
            begin = time.monotonic()
            time.sleep(IDLE_SECONDS)
        idle = power.mean_watts(resting.samples, begin, time.monotonic())
    progress(f"running for {seconds:.0f} s on end")
    arguments = [str(path), "--seconds", str(seconds), "--slot", str(slot_s), "--threads", str(threads)]
    arguments += ["--allow-fallback"] if allow_fallback else []
    read, period_s = (sensors.read, sensors.period_s) if sensors is not None else (dict, 60.0)
    before = board_facts.moment()
    with Watch(read, period_s) as watch, Watch(board_facts.moment, slot_s / 2 if minutes else 60.0) as board:
        told = measure.told_by("conditions", arguments)
    slots = [Slot(**slot) for slot in told["slots"]]
    found = Found()
    if sensors is not None:
        runs = sum(slot.runs for slot in slots)
        rows = power.energy(sensors, watch.samples, slots[0].begin_s, slots[-1].end_s, runs, idle, where)
        found += Found(tuple(rows), (("idle_watts", dict(idle)),))
    if minutes:
        moments = [(one.at_s, one.value) for one in board.samples]
        found += sustained(slots, moments, before, f"{told['facts']}; {minutes:g} minutes on end", where)
    return found


def sustained(slots: Sequence[Slot], moments: Sequence[tuple[float, Moment]], before: Moment, method: str, where: str) -> Found:
    """How a run of minutes goes: latency in its first and its last sixth, and slot by slot with clocks and temperatures."""
    part = max(1, len(slots) // 6)
    rows = []
    for name, some in (("sustained, first sixth", slots[:part]), ("sustained, last sixth", slots[-part:])):
        value, runs = float(np.median([slot.p50_ms for slot in some])), sum(slot.runs for slot in some)
        ends = {"min": min(slot.min_ms for slot in some), "max": max(slot.max_ms for slot in some)}
        rows.append(Figure("latency_ms", value, "measured", where, method, segment=name, percentiles=ends, n=runs))
    series = []
    for slot in slots:
        inside = [moment for at_s, moment in moments if slot.begin_s <= at_s < slot.end_s]
        state = (
            {name: value for name, value in inside[-1].to_json().items() if name in ("clocks_mhz", "temperatures_c")}
            if inside
            else {}
        )
        timed = {"at_s": round(slot.end_s - slots[0].begin_s, 3), "runs": slot.runs, "p50_ms": slot.p50_ms, "max_ms": slot.max_ms}
        series.append(timed | state)
    after = moments[-1][1] if moments else before
    slowed = board_facts.slowed_between(before, after)
    first, last = (row.value or 0.0 for row in rows)
    note = f"on end: {first:.4g} ms in the first sixth, {last:.4g} ms in the last"
    hot = [moment.hottest_c for _, moment in moments if moment.hottest_c is not None]
    if before.hottest_c is not None and hot:
        note += f"; hottest {before.hottest_c:.1f} °C before, {max(hot):.1f} °C during it"
    note += f"; slowed by {', '.join(slowed)}" if slowed else ""
    return Found(tuple(rows), (("sustained", series),), (note,))


def _cold(path: Path, threads: int, allow_fallback: bool, where: str, progress: Progress) -> Found:
    """Loading and the first run with none of the bundle's files in memory."""
    progress("measuring a cold start")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if path.name.endswith(packed.PAYLOAD):
        files.append(path.with_suffix(packed.MANIFEST_SUFFIX))
    left = max(map(evict, files), default=1.0)
    if left > COLD:
        why = f"{left:.0%} of a file stays in memory: its file system, or another program, keeps it there"
        return Found(tuple(unavailable(name, where, why, "cold") for name in ("load_ms", "first_run_ms")))
    timing = measure.in_fresh_process(path, 1, threads, allow_fallback)
    method = f"{timing.facts}; no file of the bundle in memory before, the runtime imported"
    rows = [
        Figure(name, value, "measured", where, method, segment="cold", n=1)
        for name, value in (("load_ms", timing.load_ms), ("first_run_ms", timing.first_run_ms))
    ]
    return Found(tuple(rows))


def evict(path: Path) -> float:
    """Ask the kernel to drop a file from its page cache; the share of it that stays (mincore(2))."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size == 0:
            return 0.0
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
            pages = -(-size // mmap.PAGESIZE)
            resident = (ctypes.c_ubyte * pages)()
            first = ctypes.c_ubyte.from_buffer(mapped)
            failed = ctypes.CDLL(None, use_errno=True).mincore(
                ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), resident
            )
            del first  # the map cannot be closed while this looks at it
    return 1.0 if failed else sum(page & 1 for page in resident) / pages


def _search(path: Path, allow_fallback: bool, where: str, progress: Progress) -> Found:
    """Latency for each choice of threads and cores, in fresh processes."""
    tried: list[tuple[float, str]] = []
    rows: list[Figure] = []
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(device.usable_cores()))
    for threads, cpus in choices(board_facts.clusters(), usable):
        name = f"threads={threads} cpus={','.join(map(str, cpus)) or 'all'}"
        progress(f"trying {name}")
        timing = measure.in_fresh_process(path, None, threads, allow_fallback, cpus=cpus, seconds=SEARCH_SECONDS)
        (latency, *_) = measure.figures(timing, where)
        assert latency.value is not None
        told = f"{latency.method}{'; noisy' if timing.noisy else ''}"
        rows.append(
            Figure(
                "latency_ms", latency.value, "measured", where, told, segment=name, percentiles=latency.percentiles, n=latency.n
            )
        )
        tried.append((float(latency.value), name))
    best = min(tried)
    others = [f"{name} {value / best[0] - 1:+.0%}" for value, name in sorted(tried)[1:4]]
    return Found(tuple(rows), (), (f"fastest: {best[1]}, {best[0]:.4g} ms; {', '.join(others) or 'nothing else to try'}",))


def main(arguments: Sequence[str] | None = None) -> int:
    """The process that runs on end."""
    parser = argparse.ArgumentParser(prog="edgesdk_targets.conditions")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--slot", type=float, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--allow-fallback", action="store_true")
    given = parser.parse_args(arguments)
    try:
        slots, facts = hold(given.bundle, given.seconds, given.slot, runner.RunOptions(given.threads, given.allow_fallback))
    except EdgeError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}))
        return 1
    print(json.dumps({"slots": [vars(slot) for slot in slots], "facts": facts}))
    return 0
