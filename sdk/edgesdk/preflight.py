"""Preflight: whether the CPU has what the installed wheels need, before anything is imported that could end with SIGILL.

Standard library only, and nothing of the floors below but what is standard library too. What a wheel needs is what its own
records say (its tags, the machine in its libraries' ELF headers), and for NumPy the baseline that it is built for. Then each is
imported in a process of its own: what ends there by a signal has ended nothing else.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec

from edgesdk_converters.errors import DeviceError
from edgesdk_targets import board_facts
from edgesdk_targets.board_facts import HERE, System

MODULES = {"numpy": "numpy", "onnxruntime": "onnxruntime", "onnxruntime-gpu": "onnxruntime", "ai-edge-litert": "ai_edge_litert"}
"""Distributions with machine code that a device runs, and the module that each brings."""
BASE = {"aarch64": ("fp", "asimd"), "arm64": ("fp", "asimd"), "x86_64": ("sse", "sse2")}
"""What every program for an architecture may use (Arm's procedure call standard for A64, x86-64 psABI), by the kernel's names."""
X86_V2 = ("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3")
"""x86-64-v2 by the kernel's names (x86-64 psABI, micro-architecture levels)."""
NUMPY_X86_V2 = (2, 4)
"""The first NumPy whose x86 wheels are built for x86-64-v2 ("built with baseline optimizations: (X86_V2)")."""
SECONDS = 120.0
QUIET = {"ORT_DISABLE_TELEMETRY": "1"}
"""ONNX Runtime from 1.29 on keeps a database of its uses in the user's cache and sends it to its maker, unless this is set."""


@dataclass(frozen=True)
class Finding:
    """One package: its version, what is against it (empty: nothing), and what to do."""

    package: str
    version: str
    problem: str = ""
    remedy: str = ""


def environment() -> dict[str, str]:
    """What a process that is started to try or to measure something sees: no token, and a runtime that keeps to itself."""
    return {name: value for name, value in (QUIET | os.environ).items() if name != "EDGESDK_TOKEN"}


def needs(package: str, version: str, machine: str) -> tuple[str, ...]:
    """CPU features without which a wheel does not run, by the kernel's names."""
    found: tuple[str, ...] = BASE.get(machine, ())
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if package == "numpy" and machine == "x86_64" and numbers >= NUMPY_X86_V2:
        found += X86_V2
    return found


def examine(system: System = HERE) -> list[Finding]:
    """Every installed package with machine code, judged by its records and the kernel's, and nothing imported."""
    found = []
    features, machine = board_facts.features(system), platform.machine().lower()
    for package in MODULES:
        try:
            installed = distribution(package)
        except PackageNotFoundError:
            continue
        problem = _against(installed, package, features, machine)
        remedy = f"install a build of {package} for this CPU and system" if problem else ""
        found.append(Finding(package, installed.version, problem, remedy))
    return found


def imported(module: str) -> str:
    """What goes wrong when a module is imported in a process of its own; "" for nothing."""
    if find_spec(module) is None:
        return ""
    code = f"import sys; sys.path[:] = {sys.path!r}; import {module}"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
            env=environment(),
        )
    except subprocess.TimeoutExpired:
        return f"importing it takes more than {SECONDS:.0f} s"
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"importing it ends with {name}" + (": it uses instructions that this CPU lacks" if name == "SIGILL" else "")
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"importing it ends with {done.returncode}"])[-1]
    return ""


def check(packages: Sequence[str] = tuple(MODULES)) -> None:
    """Raise DeviceError where one of these cannot run on this CPU; what is not installed is no problem here."""
    for finding in (one for one in examine() if one.package in packages):
        problem = finding.problem or imported(MODULES[finding.package])
        if problem:
            raise DeviceError(
                f"{finding.package} {finding.version} does not run here: {problem}",
                finding.remedy or f"install a build of {finding.package} for this CPU and Python",
            )


def _against(installed: Distribution, package: str, features: frozenset[str], machine: str) -> str:
    """What the records say against a package on this machine."""
    tags = re.findall(r"^Tag: \S+?-\S+?-(\S+)$", installed.read_text("WHEEL") or "", re.MULTILINE)
    native = [tag for tag in tags if tag != "any"]
    if native and not any(tag.endswith(machine) for tag in native):
        return f"its wheel is for {native[0]}, this is {machine}"
    lacking = [name for name in needs(package, installed.version, machine) if features and name not in features]
    if lacking:
        return f"it needs {', '.join(lacking)}, which this CPU lacks"
    glibc = re.fullmatch(r"glibc (\d+)\.(\d+).*", " ".join(platform.libc_ver()))
    wanted = [(int(a), int(b)) for tag in native for a, b in re.findall(r"manylinux_(\d+)_(\d+)_", tag)]
    if glibc and wanted and (int(glibc[1]), int(glibc[2])) < min(wanted):
        return f"its wheel needs glibc {min(wanted)[0]}.{min(wanted)[1]}, this is {glibc[1]}.{glibc[2]}"
    return ""
