"""Measure a bundle on this machine, in a fresh process, so that its load time and memory are its own.

`main` is that process: it loads the bundle, times it and prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgesdk_converters.errors import BundleError, DeviceError, EdgeError

from . import board_facts, device, golden, packed, runner
from .bundle import CPU, Bundle, open_bundle
from .figure import Figure, counted, unavailable
from .report import Report

MODELS = (".onnx", ".pt2")
LEAST_RUNS_FOR_P99 = 100
NOISY_BELOW = 0.8
TIMED = ("latency_ms", "throughput_per_s", "first_run_ms", "load_ms", "peak_memory_bytes")
"""What `figures` tells of a timing."""


@dataclass(frozen=True)
class Timing:
    """Wall times of one loaded model in milliseconds, and the process's peak memory. `threads` None: not known.

    `fallback`: another provider ran it than the bundle's first.
    """

    load_ms: float
    first_run_ms: float
    runs_ms: tuple[float, ...]
    warmup_runs: int
    peak_memory_bytes: int
    facts: str
    threads: int | None = None
    fallback: bool = False

    @property
    def noisy(self) -> bool:
        """Best over median below 0.8: something else ran on the machine, or its clock moved."""
        return min(self.runs_ms) / float(np.median(self.runs_ms)) < NOISY_BELOW


def measure(
    path: str | os.PathLike[str],
    *,
    runs: int | None = None,
    threads: int = 0,
    allow_fallback: bool = False,
    progress: Callable[[str], None] = runner.silent,
) -> Report:
    """Time a bundle here, on its first golden input. `runs` None: two seconds' worth, 20 to 1,000.

    The figures' `where` is this machine, whatever device the bundle is for; under an emulator there are none of time. Raises
    EdgeError where it cannot run here.
    """
    bundle = opened(path)
    manifest = bundle.manifest
    if runs is not None and runs < 1:
        raise DeviceError(f"{runs} runs are no measurement; allowed: 1 or more")
    check_timed(bundle)
    emulator = board_facts.emulator()
    cores = device.usable_cores()
    if not 0 <= threads <= cores:
        raise DeviceError(
            f"threads is {threads}; this machine has {cores} cores", f"give 1 to {cores}, or 0: the bundle's choice"
        )
    progress("measuring in a fresh process")
    before = board_facts.moment()
    timing = in_fresh_process(Path(path), 1 if emulator else runs, threads, allow_fallback)
    after = board_facts.moment()
    facts = machine_facts() | board_facts.facts()
    if emulator:  # what is the emulating machine's own would pass for the board's
        facts = {name: value for name, value in facts.items() if name not in board_facts.OF_THE_MACHINE}
    here = place(facts)
    rows = list(figures(timing, here))
    if emulator:
        why = f"an emulator ({emulator}) runs this: its time and memory are not a board's"
        rows = [unavailable(name, here, why) for name in TIMED]
    rows.append(counted("artifact_bytes", manifest.files[manifest.runtime.file].bytes, f"size of {manifest.runtime.file}"))
    rows.append(counted("bundle_bytes", bundle.payload_bytes, "all files of the bundle"))
    notes = []
    here_is_device = is_device(manifest.device, facts)
    if not here_is_device:
        told = f"measured on this machine, not on {manifest.device}: its times say nothing about that board"
        notes.append(f"an emulator ({emulator}) ran this: outputs are an Arm core's, and no time was taken" if emulator else told)
        rows.append(unavailable("latency_ms", manifest.device, "no such board was asked; run edgesdk measure there", "device"))
    if slowed := board_facts.slowed_between(before, after):
        notes.append(f"the board was slowed: {', '.join(slowed)}")
    if timing.noisy and not emulator:
        notes.append(f"noisy: the best run took {min(timing.runs_ms):.3g} ms, the median {np.median(timing.runs_ms):.3g} ms")
    return Report(
        manifest.name,
        manifest.target,
        manifest.device,
        bundle.digest,
        tuple(rows),
        machine=facts
        | {"runtime": timing.facts, "precision": manifest.precision}
        | ({"threads": timing.threads} if timing.threads else {})
        | ({"fallback": True} if timing.fallback else {})
        | {"noisy": timing.noisy and not emulator, "is_device": here_is_device}
        | ({} if emulator else {"before": before.to_json(), "after": after.to_json()}),
        notes=tuple(notes),
    )


def check_timed(bundle: Bundle) -> None:
    """Raise DeviceError for a bundle that no processor runs, or a part of which it does not: a simulator's time is none."""
    for part in packed.parts(bundle):
        if part.manifest.runtime.name in runner.SIMULATORS:
            raise DeviceError(
                f"{part.manifest.name} is logic for {part.manifest.device}: here it is only simulated, and a simulator's time is "
                "no latency",
                "the report of its export has cycles and clock; edgesdk verify compares its answers",
            )


def opened(path: str | os.PathLike[str]) -> Bundle:
    """A bundle as it was written, or as it was sent here. Raises BundleError for anything but an intact one."""
    if os.fspath(path).endswith(MODELS):
        raise BundleError(
            f"{os.fspath(path)} is a model, and bundles are measured", "edgesdk export MODEL --device NAME makes one"
        )
    return packed.open_packed(Path(path)) if os.fspath(path).endswith(packed.PAYLOAD) else open_bundle(path)


def place(facts: Mapping[str, Any]) -> str:
    """Where figures are measured, from the facts of the machine and its board; an emulator is told."""
    named = ", ".join(dict.fromkeys(name for name in (facts.get("board"), facts["cpu"]) if name))
    return f"{named}, emulated by {facts['emulator']}" if "emulator" in facts else f"{named}, {facts['cores']} cores"


def is_device(name: str, facts: Mapping[str, Any]) -> bool:
    """Whether this machine, by what its board tells, is the device of that name, and no emulated one."""
    if "emulator" in facts or name == device.THIS_MACHINE:
        return "emulator" not in facts
    return name in device.names() and board_facts.is_board(device.profile(name).title, str(facts.get("board", "")))


def figures(timing: Timing, where: str) -> tuple[Figure, ...]:
    """The rows that a timing gives."""
    times = np.asarray(timing.runs_ms)
    wanted = (50, 90, 99) if len(times) >= LEAST_RUNS_FOR_P99 else (50, 90)
    percentiles = {f"p{p}": float(np.percentile(times, p)) for p in wanted}
    percentiles |= {"mean": float(times.mean()), "min": float(times.min())}
    threads = f", {timing.threads} thread{'s' if timing.threads > 1 else ''}" if timing.threads else ""
    method = f"{timing.facts}{threads}; after {timing.warmup_runs} warm-up runs"
    return (
        Figure("latency_ms", percentiles["p50"], "measured", where, method, percentiles=percentiles, n=len(times)),
        Figure("throughput_per_s", 1e3 / float(times.mean()), "measured", where, "one request after another", n=len(times)),
        Figure("first_run_ms", timing.first_run_ms, "measured", where, "the first run after loading", n=1),
        Figure("load_ms", timing.load_ms, "measured", where, "open, check and load the bundle; runtime imported", n=1),
        Figure(
            "peak_memory_bytes", timing.peak_memory_bytes, "measured", where,
            "highest resident size of a fresh process, interpreter and runtime included", n=1,
        ),
    )  # fmt: skip


def take(path: Path, runs: int | None, options: runner.RunOptions, seconds: float = 2.0) -> Timing:
    """Load and time a bundle in this process; `runs` None: as many as take `seconds`, 20 to 1,000."""
    import importlib

    bundle = opened(path)
    location = runner.RUNNERS.get(bundle.manifest.runtime.name, "").partition(":")[0]
    if location:
        importlib.import_module(location)
    begin = time.perf_counter()
    bundle = opened(path)
    others = _own_threads()
    loaded = runner.load(bundle, options)
    load_ms = (time.perf_counter() - begin) * 1e3
    threads = _computing(bundle, options, loaded.facts, others)
    cases = golden.load(bundle, "inputs")
    if not cases:
        raise EdgeError(f"{path} has no golden inputs to run", "export it again")
    feed = cases[0]

    def once() -> float:
        start = time.perf_counter()
        loaded.run(feed)
        return (time.perf_counter() - start) * 1e3

    first_run_ms = once()
    warmup_runs = warm_up(once)
    if runs is None:
        estimate_ms = max(once(), 1e-3)
        runs = int(min(1000, max(20, 1e3 * seconds / estimate_ms)))
    times = tuple(once() for _ in range(runs))
    facts = loaded.facts
    loaded.close()
    return Timing(load_ms, first_run_ms, times, warmup_runs, peak_memory_bytes(), str(facts), threads, facts.fallback)


def _computing(bundle: Bundle, options: runner.RunOptions, facts: runner.RunnerFacts, before: int | None) -> int | None:
    """Threads that compute on the CPU: as asked, as the bundle has it, or else as many as loading it has added to this one.

    `before` are those of this process before. None where another processor computes, or where it cannot be told.
    """
    if facts.providers != (CPU,):
        return None
    asked = options.threads or bundle.manifest.runtime.threads
    now = _own_threads()
    if asked or now is None or before is None or bundle.manifest.runtime.name != "onnxruntime":
        return asked or None
    return 1 + now - before


def _own_threads() -> int | None:
    """Threads of this process, None where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return None


def warm_up(once: Callable[[], float], limit_s: float = 3.0) -> int:
    """Run until the median of five runs is within 5 % of the five before, for at most `limit_s`; the number of runs."""
    times: list[float] = []
    begin = time.perf_counter()
    while True:
        times.append(once())
        if len(times) >= 10:
            before, now = float(np.median(times[-10:-5])), float(np.median(times[-5:]))
            if abs(now - before) <= 0.05 * before:
                return len(times)
        if len(times) >= 3 and time.perf_counter() - begin > limit_s:
            return len(times)


def side_by_side(runs: Mapping[str, Callable[[], object]], seconds: float = 1.5, rounds: int = 200) -> dict[str, list[float]]:
    """Milliseconds of each of several things, taken in turn in one process, so that what disturbs one disturbs all.

    Up to `rounds` rounds, and at least 11, within about `seconds` for each. Each turn is two runs of which the second counts:
    the first pays for what the others left in the caches. Each round has an order of its own, drawn by seed.
    """
    shuffle = random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)

    def once(name: str) -> float:
        begin = time.perf_counter()
        runs[name]()
        return (time.perf_counter() - begin) * 1e3

    for name in names:
        warm_up(lambda name=name: once(name), limit_s=0.5)  # type: ignore[misc]
    begin = time.perf_counter()
    for index in range(rounds):
        shuffle(names)
        for name in names:
            runs[name]()
            times[name].append(once(name))
        if index >= 10 and time.perf_counter() - begin > seconds * len(names):
            break
    return times


def peak_memory_bytes() -> int:
    """Highest resident size of this process so far."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine_facts() -> dict[str, Any]:
    """What a reader needs to judge times measured here."""
    governor = ""
    try:
        governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text(encoding="ascii").strip()
    except OSError:
        governor = "unknown"
    return {
        "cpu": device.cpu_model(),
        "architecture": platform.machine(),
        "cores": device.usable_cores(),
        "governor": governor,
        "memory_bytes": device.total_memory_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def in_fresh_process(
    path: Path, runs: int | None, threads: int, allow_fallback: bool, *, cpus: Sequence[int] = (), seconds: float = 2.0
) -> Timing:
    """Time a bundle in a process of its own, on these CPUs (empty: all). `runs` None: as many as take `seconds`, 20 to 1,000."""
    arguments = [str(path), "--threads", str(threads), "--seconds", str(seconds)]
    arguments += ["--runs", str(runs)] if runs is not None else []
    arguments += ["--allow-fallback"] if allow_fallback else []
    arguments += ["--cpus", ",".join(map(str, cpus))] if cpus else []
    data = told_by("measure", arguments)
    return Timing(**{**data, "runs_ms": tuple(data["runs_ms"])})


def told_by(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What `main` of a module of this package prints, as JSON, in a process of its own. Raises DeviceError where it fails."""
    # -I: nothing in the working directory may pass for a module; the packages in use here are passed on instead
    start = f"import sys; sys.path[:] = {sys.path!r}; from edgesdk_targets.{module} import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-I", "-c", start, *arguments], capture_output=True, text=True, check=False)
    try:
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        data: dict[str, Any] = json.loads(lines[-1])
    except (ValueError, IndexError) as error:
        last = " ".join(done.stderr.strip().splitlines()[-3:])
        ended = f"{done.returncode} ({signal.Signals(-done.returncode).name})" if done.returncode < 0 else f"{done.returncode}"
        hint = (
            "edgesdk doctor says what this CPU lacks"
            if done.returncode == -signal.SIGILL
            else "was it killed for want of memory?"
        )
        raise DeviceError(f"the measuring process ended with {ended}: {last}", hint) from error
    if "error" in data:
        raise DeviceError(str(data["error"]), str(data.get("hint", "")))
    return data


def main(arguments: Sequence[str] | None = None) -> int:
    """The measuring process."""
    parser = argparse.ArgumentParser(prog="edgesdk_targets.measure")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--allow-fallback", action="store_true")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--cpus", default="")
    given = parser.parse_args(arguments)
    try:
        if given.cpus:
            os.sched_setaffinity(0, {int(cpu) for cpu in given.cpus.split(",")})
        timing = take(given.bundle, given.runs, runner.RunOptions(given.threads, given.allow_fallback), given.seconds)
    except EdgeError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}))
        return 1
    print(json.dumps({name: getattr(timing, name) for name in timing.__dataclass_fields__}))
    return 0
