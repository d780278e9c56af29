"""The emulator: golden vectors and instructions of real bundles on three cores, repeated; flavours of int8; time to a result.

python -m tests.bench_emulator [counts] [flavours] [setup]

Each count is a process of the emulator of its own, which tells the least of three runs. What was counted is kept under
build/bench, by the bundle's digest and all of the emulator that decides it: a bench that was stopped goes on. Only `setup` takes
time: of a cache that is empty, then of the same once more, with the load that it met.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgesdk
from edgesdk.ranking import order_stays
from edgesdk_converters.errors import EdgeError
from edgesdk_targets import emulate, sysroot
from edgesdk_targets.bundle import Bundle
from edgesdk_targets.device import profile

from . import bench_quantised
from .bench_quantised import MODELS, show
from .bench_smaller import HOME, told
from .sdk.test_real_models import CONSTANTS, SHAPES, data_of

BOARDS = ("raspberry-pi-3b-plus", "raspberry-pi-4", "raspberry-pi-5")
"""One with each core: Cortex-A53, A72 and A76."""
EXPORTED_FOR = "raspberry-pi-4"
REPEATS = 3
ALLOWED_SPREAD = 0.01
TEN = (
    ("fashion cnn", "fp32"), ("fashion vit", "fp32"), ("silero-vad", "fp32"), ("fashion mobilenet", "u8s8"),
    ("fashion mobilenet", "s8s8"), ("ds-cnn", "u8s8"), ("ds-cnn", "s8s8"), ("resnet8", "u8s8"), ("mobilenet-vww", "s8s8"),
    ("efficientnet-lite0", "s8s8"),
)  # fmt: skip
FLAVOURS = ("u8s8", "s8s8")
BOTH = ("fashion cnn", "fashion mobilenet", "resnet8", "ds-cnn", "mobilenet-vww", "efficientnet-lite0")
GOLDEN_CASES = {"efficientnet-lite0": 1}
"""Of the networks that take seconds a run; the others have three."""
CALIBRATION = 32
COUNTS = (
    "network", "form", "core", "instructions, M", *(f"{kind} %" for kind in emulate.CLASSES), f"spread of {REPEATS}",
    "spread inside", "golden error", "allowed",
)  # fmt: skip
COMPARED = (
    "network", "core", "u8s8, M", "s8s8, M", "s8s8 / u8s8", "dot products u8s8, M", "s8s8, M", "fewer", "order stays",
    "error u8s8", "s8s8", "allowed",
)  # fmt: skip
Found = dict[str, Any]


@dataclass(frozen=True)
class Counted:
    """What one process of the emulator told; `spread` is that of the runs in it, the errors are relative."""

    total: int
    by_class: Mapping[str, int]
    spread: float
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance


class Bundles:
    """The bundles of the tables, each exported once; networks by the names of `bench_quantised.cases` or of their files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[str, str], Bundle] = {}

    def __call__(self, network: str, form: str) -> Bundle:
        key = network, form
        if key not in self._made:
            path, data, train = _inputs(network)
            flavour = {} if form == "fp32" else {"quantize.flavour": form, "quantize.repair": "false"}
            self._made[key] = edgesdk.export(
                path, device=EXPORTED_FOR, precision="fp32" if form == "fp32" else "int8", settings=flavour,
                shapes=SHAPES.get(network), constants=CONSTANTS.get(network), data=data, train=train,
                max_relative_error=None if form == "fp32" else 2.0,  # of made-up inputs: what is judged here is the emulator
                out=self._folder / f"{network.replace(' ', '-')}-{form}.edge",
            )  # fmt: skip
        return self._made[key]


def _inputs(network: str) -> tuple[Path, Mapping[str, Any], Mapping[str, Any] | None]:
    """The file, inputs for golden vectors and inputs to calibrate on."""
    few = GOLDEN_CASES.get(network, 3)
    if case := _cases().get(network):
        return case.path, _first(case.check, few), _first(case.train, CALIBRATION)
    import real_models  # found beside the examples, once `cases` was asked

    return MODELS / f"{network}.onnx", _first(data_of(real_models, network), few), None


@functools.cache
def _cases() -> Mapping[str, bench_quantised.Case]:
    return {case.name: case for case in bench_quantised.cases()}


def _first(arrays: Mapping[str, Any], count: int) -> dict[str, Any]:
    return {name: np.asarray(rows[:count]) for name, rows in arrays.items()}


def counted(bundle: Bundle, board: str, repeat: int, label: str) -> Counted:
    """What a process of the emulator tells, or told in an earlier run of this bench."""
    plugin = hashlib.sha256(Path(emulate.__file__).with_name("emulate_plugin.c").read_bytes()).hexdigest()
    core = emulate.core(profile(board))
    what = [bundle.digest, core, emulate.release(), plugin, sysroot.place().name, repeat]

    def count() -> Found:
        found = emulate.count(bundle, profile(board), progress=told(f"{label} on {core}, {repeat + 1} of {REPEATS}"))
        compared = found.comparison
        assert compared is not None  # every export has golden vectors
        return {
            "total": found.total, "by_class": dict(found.by_class), "spread": max(found.runs) / min(found.runs) - 1,
            "error": compared.artifact_relative_error, "tolerance": compared.tolerance,
        }  # fmt: skip

    return Counted(**_kept([label, *what], count))


def _kept(what: Sequence[object], make: Callable[[], Found]) -> Found:
    file = HOME / f"emulator-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]}.json"
    if not file.exists():
        HOME.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        found = make()
        whole = {"what": list(what), "bench_s": round(time.perf_counter() - begin, 1), "found": found}
        beside = file.with_suffix(".part")
        beside.write_text(json.dumps(whole, indent=1), encoding="utf-8")
        beside.replace(file)
        print("  ", what[0], *what[2:3], what[-1], f"{whole['bench_s']} s", file=sys.stderr, flush=True)
    loaded: Found = json.loads(file.read_text(encoding="utf-8"))["found"]
    return loaded


def counts(bundles: Bundles) -> None:
    """Ten bundles on three cores: instructions of one inference by class, each counted three times; golden vectors."""
    rows, spreads, held = [], [], 0
    for network, form in TEN:
        for board in BOARDS:
            found = [counted(bundles(network, form), board, repeat, f"{network} {form}") for repeat in range(REPEATS)]
            least = min(found, key=lambda one: one.total)
            spreads.append(max(one.total for one in found) / least.total - 1)
            worst = max(found, key=lambda one: one.error)
            held += worst.holds
            rows.append(
                (network, form, emulate.core(profile(board)), f"{least.total / 1e6:,.3f}",
                 *(f"{least.by_class[kind] / least.total:.1%}" for kind in emulate.CLASSES), f"{spreads[-1]:.3%}",
                 f"{max(one.spread for one in found):.3%}", f"{worst.error:.1e}", f"{worst.tolerance:g}")
            )  # fmt: skip
    print("the least of three processes, each the least of its runs; golden error: relative to the artefact's own outputs here")
    show(COUNTS, rows)
    within = sum(spread <= ALLOWED_SPREAD for spread in spreads)
    print(f"golden vectors equal within the tolerance: {held} of {len(rows)}")
    print(f"three counts within {ALLOWED_SPREAD:.0%}: {within} of {len(rows)}, the widest {max(spreads):.3%}", end="\n\n")


def flavours(bundles: Bundles) -> None:
    """Unsigned against signed activations of the same network on three cores: instructions, dot products, which has fewer."""
    rows, won = list[tuple[str, ...]](), dict[str, list[str]]()
    for network in BOTH:
        for board in BOARDS:
            unsigned, signed = (counted(bundles(network, form), board, 0, f"{network} {form}") for form in FLAVOURS)
            core, over = emulate.core(profile(board)), signed.total / unsigned.total
            fewer = FLAVOURS[signed.total < unsigned.total]
            less, more = sorted((unsigned, signed), key=lambda one: one.total)
            stays = "yes" if order_stays(less.by_class, more.by_class) else "no"
            won.setdefault(core, []).append(fewer)
            rows.append(
                (network, core, *(f"{one.total / 1e6:,.3f}" for one in (unsigned, signed)), f"{over:.3f}",
                 *(f"{one.by_class['dot_product'] / 1e6:,.3f}" for one in (unsigned, signed)), fewer, stays,
                 *(f"{one.error:.1e}" for one in (unsigned, signed)), f"{signed.tolerance:g}")
            )  # fmt: skip
    print("order stays: whichever kinds of instructions are given twice the weight of others; golden errors are relative")
    show(COMPARED, rows)
    for core, names in won.items():
        print(f"{core}: u8s8 has fewer for {names.count('u8s8')} networks, s8s8 for {names.count('s8s8')}")
    print()


def setup(bundles: Bundles) -> None:
    """From an empty cache to the first result, and what the next ones take: the command line in a process of its own."""
    bundle = bundles("fashion mobilenet", "s8s8")
    rows = list[tuple[str, ...]]()
    with tempfile.TemporaryDirectory(prefix="edgesdk-bench-") as cache:
        for label in ("from nothing", "afterwards", "afterwards", "afterwards"):
            load, begin = os.getloadavg()[0], time.perf_counter()
            steps = list(_measured(bundle, cache))
            whole = time.perf_counter() - begin
            rows.append((label, f"{whole:.1f}", f"{load:.1f}", ", ".join(f"{step} {seconds:.1f}" for step, seconds in steps)))
    show(("fashion mobilenet s8s8 on Cortex-A72", "seconds", "load before", "of which"), rows)


def _measured(bundle: Bundle, cache: str) -> Iterator[tuple[str, float]]:
    """`measure --on emulator`, all of its cache under `cache`: each step that it says it is at, with its seconds."""
    command = [sys.executable, "-m", "edgesdk.cli", "measure", str(bundle.path), "--on", "emulator", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | {"XDG_CACHE_HOME": cache}
    ) as started:  # fmt: skip
        assert started.stderr is not None
        step, begin, lines = "start", time.perf_counter(), list[str]()
        for line in started.stderr:
            lines.append(line.strip())
            yield step, time.perf_counter() - begin
            step, begin = line.strip(), time.perf_counter()
    yield step, time.perf_counter() - begin
    if started.returncode != 0:
        raise EdgeError(f"the emulator cannot be set up: {' '.join(lines[-3:])}")


SECTIONS = {"counts": counts, "flavours": flavours, "setup": setup}


def main() -> None:
    wanted = sys.argv[1:] or list(SECTIONS)
    with tempfile.TemporaryDirectory(prefix="edgesdk-bench-") as folder:
        bundles = Bundles(Path(folder))
        for name in wanted:
            print(f"\n{SECTIONS[name].__doc__}", flush=True)
            SECTIONS[name](bundles)


if __name__ == "__main__":
    main()
