"""Simulating a design, or the netlist made of it: files and commands as data, a function that runs them, and what comes out.

A test bench knows nothing of the network: it gives each input's beats as they lie in a file, takes each output's beats, and notes
in which cycles they pass. With stalls, both sides pause at random. To compare the outputs is the caller's part.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import MissingTool, ToolError
from edgesdk_converters.integer_program import Integers

from .. import engine_cache
from ..runner import silent
from .bench_text import Side, icarus_bench, verilator_main
from .design import Design
from .stream import Stream
from .tool_process import ROOM, TELL_S, Limit, TookTooLong, writing

Simulator: TypeAlias = Literal["verilator", "iverilog"]
Level: TypeAlias = Literal["core", "serial"]
Words: TypeAlias = NDArray[np.uint32]
PACKAGES = {"verilator": "verilator", "iverilog": "iverilog", "vvp": "iverilog", "yosys": "yosys", "make": "make", "g++": "g++"}
"""Programs that are needed, and the Debian packages that bring them."""
NEEDED: Mapping[str, tuple[str, ...]] = {"verilator": ("verilator",), "iverilog": ("iverilog", "vvp")}
"""Programs that each simulator starts."""
BENCH = "bench"
HANGS_AFTER_CYCLES = 16
"""Times the design's own interval (and its memories' sizes) that may pass without a beat at either side."""
LINT = ("DECLFILENAME", "PINCONNECTEMPTY")
"""Verilator's warnings that are off: several modules a file by construction of kernels, and ports left open on purpose."""


@dataclass(frozen=True)
class Bench:
    """`files` go into the design's folder; `commands` are run there one after another, the last of them simulates."""

    files: Mapping[str, bytes]
    commands: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, eq=False)
class Simulated:
    """`outputs` by name, (n, *shape). `latency_cycles` from the first beat in to the last of the first result, both included;
    `interval_cycles` between results once it runs evenly (a mean over the second half), None for a single inference."""

    outputs: Mapping[str, Integers]
    latency_cycles: int
    interval_cycles: float | None
    seconds: float


def sides(design: Design, level: Level) -> tuple[tuple[Side, ...], tuple[Side, ...]]:
    """The streams of a design's core, or of the ports around it."""
    return (
        tuple(_side(f"s{number}", stream, design, level) for number, stream in enumerate(design.inputs)),
        tuple(_side(f"m{number}", stream, design, level) for number, stream in enumerate(design.outputs)),
    )


def bench(
    design: Design,
    codes: Mapping[str, Integers],
    *,
    simulator: Simulator = "verilator",
    level: Level = "core",
    stalls: bool = False,
    seed: int = 0,
) -> Bench:
    """A test bench with its vectors. `stalls` pauses both sides in about every other cycle."""
    top = design.core if level == "core" else design.serial
    come, go = sides(design, level)
    count = len(next(iter(codes.values())))
    files: dict[str, bytes] = {}
    for side, stream in zip(come, design.inputs, strict=True):
        given = np.asarray(codes[stream.codes.name], np.int64)
        if given.size and (given.min() < stream.codes.low or given.max() > stream.codes.high):
            told = f"{stream.codes.name} has codes from {given.min()} to {given.max()}"
            raise ValueError(f"{told}; allowed: {stream.codes.low} to {stream.codes.high}")
        words = _packed(stream.pack(given), stream, side, design, level)
        files[f"{side.name}.in"] = words.tobytes() if simulator == "verilator" else _hexadecimal(words)
    patience = 1000 + HANGS_AFTER_CYCLES * max(design.serial_interval_cycles, design.interval_cycles)
    patience += 4 * sum(layer.cycles for layer in design.layers)
    if simulator == "verilator":
        files[f"{BENCH}.cc"] = verilator_main(top, come, go, patience).encode()
        commands: tuple[tuple[str, ...], ...] = (
            ("verilator", "--cc", "--exe", "--build", "-O3", "--x-assign", "fast", "--noassert", "-CFLAGS", "-O1",
             "-MAKEFLAGS", "OPT_GLOBAL=-O0", "-Wno-fatal", *(f"-Wno-{name}" for name in LINT), "--Mdir", "obj_dir",
             "--top-module", top, "-o", BENCH, f"{BENCH}.cc", *design.sources),
            (os.path.join("obj_dir", BENCH), str(count), str(int(stalls)), str(seed)),
        )  # fmt: skip
        return Bench(files, commands)
    files[f"{BENCH}.v"] = icarus_bench(BENCH, top, come, go, count, patience, stalls, seed).encode()
    commands = (
        ("iverilog", "-g2005", "-o", f"{BENCH}.vvp", "-s", BENCH, f"{BENCH}.v", *design.sources),
        ("vvp", "-N", f"{BENCH}.vvp"),
    )
    return Bench(files, commands)


def simulate(
    design: Design,
    codes: Mapping[str, Integers],
    simulator: Simulator = "verilator",
    folder: str | os.PathLike[str] = ".",
    progress: Callable[[str], None] = silent,
    *,
    level: Level = "core",
    stalls: bool = False,
    seed: int = 0,
    limit: Limit | None = None,
) -> Simulated:
    """Write the design and a test bench into `folder` and run them there on all inferences of `codes`, back to back.

    What Verilator builds is kept in the user's cache and used again. Raises ToolError for a missing program, one that fails or is
    not done at the limit, and a design that hangs; DeviceError, with its name, for a file that cannot be written.
    """
    made = bench(design, codes, simulator=simulator, level=level, stalls=stalls, seed=seed)
    begun = time.monotonic()
    root = Path(folder)
    _write(root, {**design.files, **made.files})
    *building, last = made.commands
    if simulator == "verilator":
        name = Path(last[0]).name
        sources = {file: design.files[file] for file in design.sources}  # memories are read when it runs
        kept = _kept(building[0], {**sources, f"{BENCH}.cc": made.files[f"{BENCH}.cc"]}, progress, design.name, limit)
        last = (str(kept), *last[1:])
    else:
        for command in building:
            progress(f"{Path(command[0]).name}: {design.name}, {level}")
            run(command, root, progress, limit)
        name = Path(last[0]).name
    progress(f"{name}: {design.name}, {level}")
    run(last, root, progress, limit, name)
    return _read(design, level, root, simulator, time.monotonic() - begun)


def _kept(
    command: Sequence[str], files: Mapping[str, bytes], progress: Callable[[str], None], name: str, limit: Limit | None
) -> Path:
    """The program that Verilator builds of these files, from the user's cache, or built into it."""
    told = hashlib.sha256("\0".join((*command, run((command[0], "--version"), Path.cwd()))).encode())
    for file, data in sorted(files.items()):
        told.update(f"{file}\0{len(data)}\0".encode() + data)
    place = engine_cache.root() / "verilator" / told.hexdigest()[:32]
    hint = "set XDG_CACHE_HOME to a folder that can be written"
    if not place.exists():
        with writing(place.parent, hint):
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="building-", dir=place.parent) as scratch:
                _write(Path(scratch), files, hint)
                progress(f"{command[0]}: building a simulator of {name}")
                run(command, Path(scratch), progress, limit)
                Path(scratch, "obj_dir", BENCH).replace(place)
    return place


def simulate_netlist(
    design: Design,
    codes: Mapping[str, Integers],
    folder: str | os.PathLike[str] = ".",
    progress: Callable[[str], None] = silent,
    *,
    level: Level = "core",
    netlist: bytes = b"",
    limit: Limit | None = None,
) -> Simulated:
    """The same of a `netlist` for an ECP5, on yosys' own models of its cells, in Icarus.

    It has no block RAM and no multipliers, whose cells have no model there; where none is given, one is synthesised in which
    memories and products are look-up tables.
    """
    made = bench(design, codes, simulator="iverilog", level=level)
    top = design.core if level == "core" else design.serial
    begun = time.monotonic()
    root = Path(folder)
    _write(root, {**design.files, **made.files})
    if netlist:
        _write(root, {"netlist.v": netlist})
    else:
        _synthesise(design, top, root, progress, limit)
    cells = _cell_models()
    progress(f"iverilog: the netlist of {design.name}")
    run(("iverilog", "-g2012", "-o", f"{BENCH}.vvp", "-s", BENCH, f"{BENCH}.v", "netlist.v", str(cells)), root, progress, limit)
    run(("vvp", "-N", f"{BENCH}.vvp"), root, progress, limit)
    return _read(design, level, root, "iverilog", time.monotonic() - begun)


def _synthesise(design: Design, top: str, root: Path, progress: Callable[[str], None], limit: Limit | None) -> None:
    synthesis = f"synth_ecp5 -top {top} -nobram -nodsp -run begin:check"  # the rest takes minutes to name cells
    script = f"read_verilog {' '.join(design.sources)}; {synthesis}; write_verilog -noattr netlist.v"
    progress(f"yosys: {design.name}, {Path(top).name}")
    run(("yosys", "-q", "-p", script), root, progress, limit)


def check(simulator: str) -> None:
    """Raise MissingTool for the first of a simulator's programs that is not there."""
    for name in NEEDED[simulator]:
        _check(name)


def run(
    command: Sequence[str],
    folder: Path,
    progress: Callable[[str], None] = silent,
    limit: Limit | None = None,
    label: str = "",
) -> str:
    """What a command prints, with a line of progress every second. Raises ToolError, with its last lines, for one that is missing
    or fails, and TookTooLong when it was stopped at the limit. `label` names it in place of its file."""
    name = label or Path(command[0]).name
    program = str(folder / command[0]) if os.sep in command[0] else command[0]
    if os.sep not in command[0]:
        _check(name)
    with subprocess.Popen(
        [program, *command[1:]], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        start_new_session=True,
    ) as child:  # fmt: skip
        try:
            told, errors = _ended(child, name, progress, limit)
        except BaseException:  # Verilator has started make, and that the compiler
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            raise
    if child.returncode:
        last = " | ".join((told + errors).strip().splitlines()[-8:])
        raise ToolError(name, f"ended with {child.returncode} on {' '.join(command[1:4])} …", last)
    return told


def _ended(child: subprocess.Popen[str], name: str, progress: Callable[[str], None], limit: Limit | None) -> tuple[str, str]:
    """All that it prints, once it has ended."""
    began = time.monotonic()
    while True:
        left = TELL_S if limit is None else min(TELL_S, limit.deadline - time.monotonic())
        if limit is not None and left <= 0:
            raise TookTooLong(name, f"stopped after {limit.timeout_s:,.6g} s", hint="a longer limit, or a smaller design")
        try:
            return child.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            progress(f"{name}: running, {time.monotonic() - began:.0f} s")


def _check(name: str) -> None:
    if shutil.which(name) is None:
        raise MissingTool(name, "is not installed", hint=f"install the package {PACKAGES.get(name, name)}, for instance with apt")


def _cell_models() -> Path:
    """Of the cells of an ECP5, as they come with yosys."""
    program = Path(shutil.which("yosys") or "yosys").resolve()
    found = program.parent.parent / "share" / "yosys" / "ecp5" / "cells_sim.v"
    if not found.is_file():
        raise ToolError("yosys", f"its models of cells are not at {found}", hint="install yosys as a package of the system")
    return found


def _side(name: str, stream: Stream, design: Design, level: Level) -> Side:
    if level == "core":
        return Side(name, stream.width, stream.beats)
    return Side(name, design.port_bits, stream.beats * stream.lanes * -(-stream.codes.bits // design.port_bits))


def _packed(beats: Integers, stream: Stream, side: Side, design: Design, level: Level) -> Words:
    """(n * beats, words) of what passes a side."""
    if level == "serial":
        parts = side.beats // (stream.beats * stream.lanes)
        flat = beats.reshape(-1, 1) >> (design.port_bits * np.arange(parts))
        return (flat.reshape(-1, 1) & ((1 << design.port_bits) - 1)).astype(np.uint32)
    bits = stream.codes.bits
    planes = ((beats.reshape(-1, stream.lanes, 1) >> np.arange(bits)) & 1).astype(np.uint8).reshape(-1, stream.width)
    padded = np.zeros((len(planes), 32 * side.words), np.uint8)
    padded[:, : stream.width] = planes
    return np.packbits(padded, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def _unpacked(words: Words, stream: Stream, side: Side, design: Design, level: Level) -> Integers:
    bits = stream.codes.bits
    if level == "serial":
        parts = side.beats // (stream.beats * stream.lanes)
        values = (words.reshape(-1, parts).astype(np.int64) << (design.port_bits * np.arange(parts))).sum(axis=1)
        bits = parts * design.port_bits
    else:
        planes = np.unpackbits(words.astype("<u4").view(np.uint8).reshape(len(words), -1), axis=1, bitorder="little")
        split = planes[:, : stream.width].reshape(-1, bits).astype(np.int64)
        values = (split << np.arange(bits)).sum(axis=1)
    if stream.codes.signed:
        values = np.where(values >> (bits - 1) & 1, values - (1 << bits), values)
    return stream.unpack(values.reshape(-1, stream.beats, stream.lanes))


def _hexadecimal(words: Words) -> bytes:
    return "".join("".join(f"{word:08x}" for word in reversed(row)) + "\n" for row in words.tolist()).encode()


def _write(folder: Path, files: Mapping[str, bytes], hint: str = ROOM) -> None:
    """Only what differs, so that a simulator that is there is not built again. Raises DeviceError."""
    with writing(folder, hint):
        folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        place = folder / name
        if not place.is_file() or place.read_bytes() != data:
            with writing(place, hint):
                place.write_bytes(data)


def _read(design: Design, level: Level, folder: Path, simulator: Simulator, seconds: float) -> Simulated:
    _, go = sides(design, level)
    outputs: dict[str, Integers] = {}
    for side, stream in zip(go, design.outputs, strict=True):
        data = (folder / f"{side.name}.out").read_bytes()
        if simulator == "verilator":
            words = np.frombuffer(data, "<u4").astype(np.uint32).reshape(-1, side.words)
        else:
            lines = data.decode().split()
            bad = next((line for line in lines if set(line) - set("0123456789abcdef")), None)
            if bad is not None:
                raise ToolError("vvp", f"{side.name} has undefined bits: {bad[:80]}")
            whole = np.array([list(bytes.fromhex(line.rjust(8 * side.words, "0"))[::-1]) for line in lines], np.uint8)
            words = whole.view("<u4").astype(np.uint32)
        outputs[stream.codes.name] = _unpacked(words, stream, side, design, level)
    first, *ends = (int(line) for line in (folder / "cycles.txt").read_text(encoding="utf-8").split())
    half = len(ends) // 2
    interval = (ends[-1] - ends[half - 1]) / (len(ends) - half) if len(ends) > 1 else None
    return Simulated(outputs, ends[0] - first + 1, interval, seconds)
