"""The sweep behind the estimate of the flow rtl: networks synthesised, placed and routed, one row of a table each.

python -m tests.sweep_rtl [--listed] [--minutes N] [--keep FOLDER]
python -m tests.sweep_rtl --count FOLDER
python -m tests.sweep_rtl --others FOLDER [--minutes N]

Each design is claimed by a file lock, so that several of these may run at once; a killed one leaves no claim behind, and a later
one goes on with what has no row yet. A design that takes longer than LIMIT_S, or fails, has a row that says so. Rows hold the
terms that the estimate counts, so that the fit needs no Verilog. `--listed` makes those alone that are listed by hand; `--keep`
keeps the Verilog of each design, as a zip file; `--count` counts the terms of all rows again, in what was kept; `--others` has
yosys map what was kept to families of Xilinx.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgesdk_converters.errors import EdgeError, ToolError
from edgesdk_targets.device import profile
from edgesdk_targets.fpga import reports, testbench, toolchain
from edgesdk_targets.fpga.design import SERIAL, Design
from edgesdk_targets.fpga.evidence import vectors
from edgesdk_targets.fpga.rtl_counts import slowest, total
from edgesdk_targets.fpga.rtl_terms import terms
from edgesdk_targets.fpga.stage import Counts

from .sweep_rtl_designs import LISTED, Wanted, wanted

TABLE = Path(__file__).with_name("rtl_results.csv")
LIMIT_S = 240.0
MOST_ROWS = 330
"""As many stay below 300 kB."""
CLOCK_MHZ = 100.0
OTHERS = {"xc7": "pynq-z2", "xcup": "zcu102"}
OTHERS_EVERY = 3
"""Designs of which one is also synthesised for each of the other families."""
SIMULATED_EVERY = 3
"""Designs of which one is also simulated, for its cycles."""
COUNTS = ("adders", "adder_bits", "register_bits", "multipliers", "lookup_bits", "rom_bits", "line_bits", "fifo_bits")
COLUMNS = (
    "name", "family", "device", "digest", "status", "counts", "layers", "lut_terms", "ff_terms", "dsp_terms", "bram_terms",
    "paths",
    "interval_cycles", "latency_cycles", "simulated_cycles", "lut", "ff", "dsp", "bram", "fmax_mhz", "logic_ns", "routing_ns",
    "cells", "synthesis_s", "routing_s", "memory_mb", "tools", "xc7", "xcup",
    "constant_share",
)  # fmt: skip
CELLS = ("LUT4", "CCU2C", "TRELLIS_DPR16X4")
"""Of which a row keeps how many synthesis left; others are counted by nextpnr, or are free."""


def digest(made: Design) -> str:
    """Of all files of a design."""
    whole = hashlib.sha256()
    for name, content in sorted(made.files.items()):
        whole.update(name.encode() + b"\0" + content + b"\0")
    return whole.hexdigest()[:16]


def made_row(one: Wanted, keep: Path | None = None, simulated: bool = False) -> dict[str, str]:
    """A row of the table, tools and all."""
    known = {"name": one.name, "family": one.network, "device": one.device}
    try:
        made = one.design()
    except EdgeError as error:
        return known | {"status": _failed(error)}
    found = known | {
        "digest": digest(made), "status": "done",
        "counts": _counts(made.counts), "layers": _layers(made), **counted(made.files),
        "interval_cycles": str(made.interval_cycles), "latency_cycles": str(made.latency_cycles),
    }  # fmt: skip
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(keep / f"{found['digest']}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in made.files.items():
                archive.writestr(name, content)
    plan = toolchain.plan(
        made.files, made.serial, profile(one.device), clock_mhz=CLOCK_MHZ, until=toolchain.ROUTING,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="edgesdk-sweep-") as folder:
        try:
            run = toolchain.run(plan, folder, timeout_s=LIMIT_S)
        except EdgeError as error:
            return found | {"status": _failed(error)}
        cells = reports.synthesised(run.folder / toolchain.CELLS, plan.family)
        routed = reports.routed(run.folder / toolchain.TIMING)
        figures = {figure.name: figure.value for figure in reports.figures(run)}
        found |= {name: f"{figures[name]:g}" for name in ("lut", "ff", "dsp", "bram", "fmax_mhz") if figures[name] is not None}
        inside = [path for path in routed.paths if "pins" not in (path.start, path.end)]
        if inside:
            worst = max(inside, key=lambda path: path.total_ns)
            found |= {"logic_ns": f"{worst.logic_ns:.2f}", "routing_ns": f"{worst.routing_ns:.2f}"}
        found["cells"] = " ".join(f"{name}={cells.cells[name]}" for name in CELLS if name in cells.cells)
        found |= {"synthesis_s": f"{run.steps[0].seconds:.1f}", "routing_s": f"{run.steps[1].seconds:.1f}"}
        found["memory_mb"] = f"{max(step.peak_memory_bytes for step in run.steps) / 1e6:.0f}"
        found["tools"] = ", ".join(f"{step.tool} {step.version}" for step in run.steps)
        if simulated:
            try:
                done = testbench.simulate(made, vectors(one.program(), 4), "iverilog", Path(folder) / "simulated")
            except ToolError as error:
                print(f"{one.name}: not simulated: {error.message}", flush=True)
            else:
                found["simulated_cycles"] = f"{done.latency_cycles} {done.interval_cycles or 0:g}"
    return found


def _failed(error: EdgeError) -> str:
    return f"failed: {error.message.splitlines()[0][:160]}"


def counted(files: Mapping[str, bytes]) -> dict[str, str]:
    """The terms of a whole design, as a row keeps them."""
    whole = total(terms(files))
    return {
        "lut_terms": _named(whole.lut), "ff_terms": _named(whole.ff), "dsp_terms": str(whole.dsp), "bram_terms": str(whole.bram),
        "paths": "; ".join(map(_named, slowest(whole.paths))), "constant_share": f"{whole.constant_share:.3g}",
    }  # fmt: skip


def _named(counts: Mapping[str, float]) -> str:
    return " ".join(f"{name}={count:.4g}" if count < 1000 else f"{name}={count:.0f}" for name, count in counts.items())


def _counts(counts: Counts) -> str:
    return " ".join(str(getattr(counts, name)) for name in COUNTS)


def _layers(made: Design) -> str:
    """Of each stage its form and counts."""
    return "; ".join(f"{layer.form.replace(' ', '_')} {_counts(layer.counts)}" for layer in made.layers)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Whether the lock of that file is ours, until the end of the block; it goes with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def read(path: Path = TABLE) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(found: Mapping[str, str], path: Path = TABLE) -> None:
    """A row more, written at once and whole."""
    with locked(claims() / "table"):
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        if not path.is_file():
            writer.writeheader()
        writer.writerow(found)
        with path.open("a", encoding="utf-8") as file:
            file.write(text.getvalue())


def change(name: str, found: Mapping[str, str], path: Path = TABLE) -> None:
    """Other values in a design's row."""
    with locked(claims() / "table"):
        rows = [{**row, **found} if row["name"] == name else row for row in read(path)]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(text.getvalue(), encoding="utf-8")


def kept_files(kept: Path, row: Mapping[str, str]) -> dict[str, bytes]:
    """The Verilog that was kept of a row; empty where it was not."""
    archive = kept / f"{row['digest']}.zip"
    if not row["digest"] or not archive.is_file():
        return {}
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def synthesise_for_others(kept: Path, until: float) -> None:
    """Counts of yosys for other families, of one row in OTHERS_EVERY."""
    for row in [row for row in read() if row["status"] == "done"][::OTHERS_EVERY]:
        files = kept_files(kept, row)
        for family, device in OTHERS.items():
            if row[family] or not files or time.monotonic() > until:
                continue
            plan = toolchain.plan(files, SERIAL, profile(device), until=toolchain.SYNTHESIS)
            with tempfile.TemporaryDirectory(prefix="edgesdk-sweep-") as folder:
                try:
                    run = toolchain.run(plan, folder, timeout_s=LIMIT_S)
                except EdgeError as error:
                    print(f"{row['name']}: {_failed(error)}", flush=True)
                    continue
                cells = reports.synthesised(run.folder / toolchain.CELLS, family)
            change(row["name"], {family: f"{cells.lut} {cells.ff} {cells.dsp} {cells.bram}"})
            print(f"{family} {row['name']}: {cells.lut} LUT", flush=True)


def claims() -> Path:
    return Path(tempfile.gettempdir()) / "edgesdk-sweep-claims"


def main(arguments: Sequence[str]) -> int:
    def given(option: str) -> str:
        return arguments[arguments.index(option) + 1] if option in arguments else ""

    if folder := given("--count"):
        for row in read():
            files = kept_files(Path(folder), row)
            change(row["name"], counted(files) if files else {})
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a tool which runs is stopped too
    until = time.monotonic() + 60 * float(given("--minutes") or 1e6)
    if folder := given("--others"):
        synthesise_for_others(Path(folder), until)
        return 0
    keep = Path(given("--keep")) if "--keep" in arguments else None
    for number, one in enumerate(LISTED if "--listed" in arguments else wanted()):
        if time.monotonic() > until:
            break
        claim = claims() / hashlib.sha256(one.name.encode()).hexdigest()[:16]
        with locked(claim, wait=False) as ours:
            rows = read()
            if len(rows) >= MOST_ROWS:
                break
            if not ours or one.name in {known["name"] for known in rows}:
                continue
            begun = time.monotonic()
            found = made_row(one, keep, simulated=number % SIMULATED_EVERY == 0)
            append(found)
            told = f"{found.get('lut', '-')} LUT, {found.get('fmax_mhz', '-')} MHz, {found['status']}"
            print(f"{len(rows) + 1:4d} {one.name}: {told}, {time.monotonic() - begun:.0f} s", flush=True)
    print(Counter(known["status"].split(":")[0] for known in read()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
