"""Run a bundle on an emulated Arm core and count its instructions: a fact about that core where there is no board.

The real arm64 runtime runs the real bundle with this package's own code under QEMU's user-mode emulation, and a plugin counts.
A count is no time: this module reports none. `main` is the program that runs inside.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgesdk_converters
from edgesdk_converters.errors import ContractBroken, DeviceError, EdgeError, MissingTool, ToolError

from . import engine_cache, golden, runner, sysroot
from .bundle import CPU, Bundle, open_bundle
from .device import DeviceProfile
from .figure import Figure, unavailable
from .report import Report

QEMU = "qemu-aarch64"
TOOLS = {QEMU: "qemu-user", "cc": "gcc"}
"""Programs that are needed, and the Debian packages that bring them."""
KNOWN = "7.2"
"""The QEMU that this was tried with."""
WINDOW = "edgesdk-window "
"""How the plugin's lines begin."""
CLASSES = ("integer", "fp", "neon", "dot_product", "memory", "branch")
"""Kinds of instructions: scalar floating point, vector (NEON) without dot products, loads and stores, branches and system."""
OPEN, CLOSE = 0x45444745, 0x45444746
"""Arguments of getpgid that open and close a window of counting."""
RUNS = 3
LONG_RUN_S = 20.0
"""Of emulator time, beyond which an inference is counted once: repeats differ by less than a part in a thousand."""
_SIMD = "fp asimd evtstrm crc32 cpuid"
CORES: Mapping[str, tuple[str, str, str]] = {
    "Cortex-A53": ("cortex-a53", "0xd03", _SIMD),
    "Cortex-A72": ("cortex-a72", "0xd08", _SIMD),
    "Cortex-A76": ("cortex-a76", "0xd0b", f"{_SIMD} aes pmull sha1 sha2 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"),
}
"""By a profile's `cpu`: QEMU's name, the part number and the features that Linux shows in /proc/cpuinfo on a Raspberry Pi."""
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a020801"
    "42040a00100d"
)
"""An ONNX model of one Identity on a single number: what a call costs before any work is done."""


@dataclass(frozen=True)
class Count:
    """Instructions of one inference on one thread, the cost of an empty call subtracted.

    `runs` are the totals of the counted runs, of which the least is told; `comparison` that of the golden vectors on this core,
    None where the bundle has none.
    """

    total: int
    by_class: Mapping[str, int]
    runs: tuple[int, ...]
    overhead: int
    where: str
    method: str
    comparison: golden.Comparison | None = None


def core(profile: DeviceProfile) -> str:
    """QEMU's name for the cores of a device. Raises DeviceError for those that are not emulated."""
    cpu = profile.get("cpu", str) or "no named core"
    if cpu not in CORES:
        raise DeviceError(f"{profile.name} has {cpu}; emulated are: {', '.join(CORES)}", "measure on the board, or estimate")
    return CORES[cpu][0]


def is_ready(profile: DeviceProfile) -> bool:
    """Whether a count for this device needs nothing to be set up first."""
    return not obstacle(profile)


def obstacle(profile: DeviceProfile) -> str:
    """What must be set up before a count for this device, or why there can be none; empty where nothing stands in the way.

    The arm64 system's files are not checked, as that takes a while.
    """
    try:
        core(profile)
        for tool, package in TOOLS.items():
            if shutil.which(tool) is None:
                return f"the emulator needs {tool} (sudo apt-get install {package})"
        release()
        return "" if sysroot.is_made() else "the emulator's arm64 system is not made yet (--on emulator makes it)"
    except EdgeError as error:
        return error.message
    except OSError as error:
        return f"the emulator's cache cannot be read: {error}"


def emulate(path: str | os.PathLike[str], *, progress: Callable[[str], None] = runner.silent) -> Report:
    """Golden vectors and instructions of a bundle on the emulated core of its device.

    Raises DeviceError where that core is not emulated, ToolError where the emulator cannot be set up, and ContractBroken where
    the artefact computes something else there than when it was made.
    """
    from .target import device_profile

    bundle = open_bundle(path)
    manifest = bundle.manifest
    found = count(bundle, device_profile(manifest.device), progress=progress)
    rows = figures(found)
    rows.append(unavailable("latency_ms", manifest.device, "the emulator's own time says nothing about the board's"))
    result = found.comparison
    if result is not None:
        if not result.holds:
            raise ContractBroken(
                f"{path}: on {found.where} the outputs are {result.artifact_relative_error:.2g} relative from the golden ones; "
                f"allowed: {result.tolerance:g}",
                "on that core the runtime computes something else than where the bundle was made: export with a higher precision",
            )
        against = f"against the source, {result.cases} golden inputs; {found.method}"
        rows.append(Figure("relative_error", result.source_relative_error, "emulated", found.where, against, n=result.cases))
        rows.append(Figure("max_abs_error", result.source_abs_error, "emulated", found.where, against, n=result.cases))
        own = f"against the artefact's own outputs where it was made; allowed {result.tolerance:g}"
        error = result.artifact_relative_error
        rows.append(Figure("relative_error", error, "emulated", found.where, own, segment="repeat", n=result.cases))
    notes = ("instructions on one thread rank forms of a network on one core; they are no time",)
    return Report(manifest.name, manifest.target, manifest.device, bundle.digest, tuple(rows), notes=notes)


def figures(found: Count) -> list[Figure]:
    """The rows of a count: the total, then each class as a segment."""
    n = len(found.runs)
    spread = max(found.runs) / min(found.runs) - 1
    method = f"{found.method}; least of {n}, spread {spread:.2%}; {found.overhead:,} of an empty call subtracted"
    rows = [Figure("instructions", found.total, "emulated", found.where, method, n=n)]
    for name, number in found.by_class.items():
        rows.append(Figure("instructions", number, "emulated", found.where, f"of these, {name}", segment=name, n=n))
    return rows


def count(
    bundle: Bundle,
    profile: DeviceProfile,
    *,
    feed: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = runner.silent,
) -> Count:
    """Instructions of one inference of a bundle on the core of a device, on `feed` or the first golden input."""
    core(profile)
    if any(provider.name != CPU for provider in bundle.manifest.runtime.providers):
        raise DeviceError(f"{bundle.path} runs on an accelerator; emulated is a CPU alone", "measure it on the board")
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            raise MissingTool(tool, "is missing: the emulator needs it", hint=f"sudo apt-get install {package}")
    version = release()
    system = sysroot.made(progress)
    try:
        told, windows = _run(bundle, profile, version, system, feed, progress)
    except OSError as error:
        hint = "it needs room in the user's cache and for temporary files: XDG_CACHE_HOME and TMPDIR put them elsewhere"
        raise ToolError("the emulator", f"cannot write: {error}", hint=hint) from error
    n = told["counted"]
    if len(windows) != 2 * n:
        raise ToolError(
            QEMU, f"{len(windows)} windows were counted, {2 * n} were run", hint=f"tried was QEMU {KNOWN}; this is {version}"
        )
    empty, whole = min(windows[:n]), min(windows[n:])
    by_class = {kind: max(0, a - b) for kind, a, b in zip(CLASSES, whole[1:], empty[1:], strict=True)}
    comparison = told["comparison"]
    return Count(
        sum(by_class.values()), by_class, tuple(window[0] for window in windows[n:]), empty[0],
        f"emulated {profile.get('cpu', str)} ({QEMU} {version})", f"{told['facts']}, one thread",
        None if comparison is None else golden.Comparison(**comparison),
    )  # fmt: skip


def _run(
    bundle: Bundle,
    profile: DeviceProfile,
    version: str,
    system: Path,
    feed: Mapping[str, Any] | None,
    progress: Callable[[str], None],
) -> tuple[Any, list[tuple[int, ...]]]:
    """What the emulated program told, and the numbers of each window that the plugin counted."""
    command = [*_fixed_addresses(), QEMU, "-cpu", core(profile), "-plugin", str(_plugin(version)), "-d", "plugin"]
    with tempfile.TemporaryDirectory(prefix="edgesdk-emulate-") as scratch:
        prefix, log, given = Path(scratch, "prefix"), Path(scratch, "log"), Path(scratch, "feed.npz")
        _lay_out(prefix, system, profile)
        program = [str(prefix / sysroot.python(system).relative_to(system)), "-m", "edgesdk_targets.emulate"]
        program.append(str(bundle.path.resolve()))
        if feed is not None:
            np.savez(given, **feed)
            program += ["--feed", str(given)]
        environment = _environment(system)
        progress("starting Python on the emulated core")
        try:
            told = _follow(
                [*command, "-D", str(log), "-L", str(prefix), *program], environment, Path(scratch, "errors"), progress,
                f"tried was QEMU {KNOWN}; this is {version}",
            )  # fmt: skip
        except ToolError:
            # What Python has compiled may be what is damaged: it is not checked as the rest is.
            shutil.rmtree(environment.get("PYTHONPYCACHEPREFIX", ""), ignore_errors=True)
            raise
        lines = log.read_text(encoding="ascii", errors="replace").splitlines() if log.is_file() else []
    counts = [re.fullmatch(f"{WINDOW}([0-9 ]+)", line) for line in lines]
    return told, [tuple(map(int, found[1].split())) for found in counts if found is not None]


def release() -> str:
    """The version of QEMU. Raises ToolError for one that takes no plugins, as those that are linked statically."""
    told = ""
    for question in ("--version", "--help"):
        try:
            done = subprocess.run([QEMU, question], capture_output=True, check=False, stdin=subprocess.DEVNULL)
        except OSError as error:  # a file of that name that is no program for this machine
            raise ToolError(QEMU, f"cannot be run: {error.strerror}", hint="install Debian's qemu-user") from error
        told += done.stdout.decode("utf-8", "replace")
    found = re.search(r"version (\d+\.\d+)", told)
    if found is None:
        raise ToolError(QEMU, "does not tell its version", told[-200:])
    if "-plugin" not in told:
        raise ToolError(
            QEMU, f"version {found[1]} takes no plugins, as Debian 13 builds it, so nothing can be counted",
            hint="use Debian 12's qemu-user, or build QEMU with --enable-plugins and put it first in PATH",
        )  # fmt: skip
    return found[1]


def _plugin(version: str) -> Path:
    """The counting plugin for this QEMU, compiled on first use; its file name has its digest."""
    source = Path(__file__).with_name("emulate_plugin.c")
    numbers = tuple(map(int, version.split(".")))
    api = 1 if numbers < (9, 0) else 2 if numbers < (9, 1) else 3 if numbers < (9, 2) else 4
    key = _digest(source.read_bytes() + f"API {api}".encode())
    folder = engine_cache.root() / "emulator"
    for built in folder.glob(f"plugin-{key}-*.so"):
        if built.stem.endswith(_digest(built.read_bytes())):
            return built
        built.unlink()  # damaged
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch, "plugin.so")
        command = ["cc", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", f"-DAPI={api}", "-o", str(made), str(source)]
        done = subprocess.run([*command, "-lpthread"], capture_output=True, text=True, check=False)
        if done.returncode != 0 or not made.is_file():
            end = " ".join(done.stderr.splitlines()[-3:])
            raise ToolError(
                "cc", "cannot compile the counting plugin", end, "is it a C compiler with its headers (gcc, libc6-dev)?"
            )
        return made.replace(folder / f"plugin-{key}-{_digest(made.read_bytes())}.so")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _environment(system: Path) -> dict[str, str]:
    """All that the emulated Python finds set: nothing of this machine's, so that counts do not depend on it."""
    cache = engine_cache.root() / "emulator"
    return {
        "PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHOME": "/usr", "PYTHONPATH": f"{_code(cache)}:/wheels", "PYTHONHASHSEED": "0",
        "PYTHONPYCACHEPREFIX": str(cache / "bytecode" / system.name),
    }  # fmt: skip


def _code(cache: Path) -> Path:
    """A folder from which Python imports this package's lower floors and nothing else; always the same, as bytecode is."""
    floors = [Path(__file__).resolve().parent, Path(str(edgesdk_converters.__file__)).resolve().parent]
    folder = cache / f"code-{hashlib.sha256(os.fsencode(os.pathsep.join(map(str, floors)))).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    for floor in floors:
        with contextlib.suppress(FileExistsError):
            folder.joinpath(floor.name).symlink_to(floor)
    return folder


def _lay_out(folder: Path, system: Path, profile: DeviceProfile) -> None:
    """What the emulated program finds before this machine's own files: the sysroot, and the board's processors."""
    folder.mkdir()
    for entry in system.iterdir():
        folder.joinpath(entry.name).symlink_to(entry)
    _, part, features = CORES[profile.need("cpu", str)]
    cores = profile.need("cores", int)
    one = f"BogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    one += f"CPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 3\n"
    files = {
        "proc/cpuinfo": "".join(f"processor\t: {index}\n{one}\n" for index in range(cores)),
        "sys/devices/system/cpu/possible": f"0-{cores - 1}\n",
        "sys/devices/system/cpu/present": f"0-{cores - 1}\n",
    }
    for name, content in files.items():
        folder.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        folder.joinpath(name).write_text(content, encoding="ascii")


def _fixed_addresses() -> list[str]:
    """The command that turns address randomisation off, where that is allowed: counts then repeat to the instruction."""
    command = ["setarch", "-R"]
    if shutil.which(command[0]) is None:
        return []
    done = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if done.returncode == 0 else []


def _follow(
    command: Sequence[str], environment: Mapping[str, str], errors: Path, progress: Callable[[str], None], hint: str
) -> Any:
    """Run a command whose output is JSON lines: progress, and the result or an error as the last."""
    last: Any = {}
    with errors.open("wb") as sink, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=sink, stdin=subprocess.DEVNULL, text=True, env=dict(environment)
    ) as started:  # fmt: skip
        try:
            assert started.stdout is not None
            for line in started.stdout:
                if line.startswith("{") and line.endswith("}\n"):  # else it was stopped in the middle
                    last = json.loads(line)
                    if "progress" in last:
                        progress(last["progress"])
        except BaseException:
            started.kill()
            raise
    if "error" in last:
        raise DeviceError(str(last["error"]), str(last.get("hint", "")))
    if started.returncode != 0 or "counted" not in last:
        ended = signal.Signals(-started.returncode).name if started.returncode < 0 else str(started.returncode)
        end = " ".join(errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])
        raise ToolError(QEMU, f"the emulated program ended with {ended}", end, hint)
    return last


def main(arguments: Sequence[str] | None = None) -> int:
    """The emulated program: golden vectors, then the counted runs of an empty model and of the bundle."""
    parser = argparse.ArgumentParser(prog="edgesdk_targets.emulate")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--feed", type=Path)
    given = parser.parse_args(arguments)
    try:
        told = _inside(given.bundle, given.feed)
    except EdgeError as error:
        told = {"error": error.message, "hint": error.hint}
    print(json.dumps(told), flush=True)
    return int("error" in told)


def _inside(path: Path, feed_path: Path | None) -> dict[str, Any]:
    import onnxruntime as ort

    def say(message: str) -> None:
        print(json.dumps({"progress": message}), flush=True)

    say("loading the bundle on the emulated core")
    bundle = open_bundle(path)
    loaded = runner.load(bundle, runner.RunOptions(threads=1))
    say("running the golden vectors on the emulated core")
    compared = golden.compare(bundle, loaded)
    cases = golden.load(bundle, "inputs")
    if feed_path is not None:
        with np.load(feed_path, allow_pickle=False) as arrays:
            feed = {name: arrays[name] for name in arrays.files}
    elif cases:
        feed = cases[0]
    else:
        raise EdgeError(f"{path} has no golden inputs to run", "export it again")
    say("counting instructions")
    begin = time.perf_counter()
    loaded.run(feed)
    runs = RUNS if time.perf_counter() - begin < LONG_RUN_S else 1
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    empty = ort.InferenceSession(_IDENTITY, options, providers=[CPU])
    number = {"x": np.zeros(1, np.float32)}
    empty.run(["y"], number)
    for _ in range(runs):
        with _window():
            empty.run(["y"], number)
    for _ in range(runs):
        with _window():
            loaded.run(feed)
    facts = str(loaded.facts)
    loaded.close()
    return {"counted": runs, "facts": facts, "comparison": None if compared is None else vars(compared)}


@contextlib.contextmanager
def _window() -> Iterator[None]:
    _mark(OPEN)
    try:
        yield
    finally:
        _mark(CLOSE)


def _mark(number: int) -> None:
    with contextlib.suppress(OSError):  # there is no such process
        os.getpgid(number)


if __name__ == "__main__":
    sys.exit(main())
