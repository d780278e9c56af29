"""DeviceProfile: the facts of a board, each with its source, read from devices/*.toml."""

from __future__ import annotations

import functools
import os
import platform
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgesdk_converters import fields
from edgesdk_converters.errors import DeviceError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

THIS_MACHINE = "this-machine"
_FOLDER = Path(__file__).parent / "devices"
T = TypeVar("T")


@dataclass(frozen=True)
class Fact:
    """A value and where it was read."""

    value: Any
    source: str


@dataclass(frozen=True)
class DeviceProfile:
    """A board. `estimate_only` is empty, or the reason why nothing can be exported to it."""

    name: str
    target: str
    title: str
    estimate_only: str = ""
    facts: dict[str, Fact] = field(default_factory=dict)

    def get(self, name: str, kind: type[T]) -> T | None:
        """The value of a fact, None where no source gives it."""
        fact = self.facts.get(name)
        if fact is None:
            return None
        value = float(fact.value) if kind is float and type(fact.value) is int else fact.value
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise DeviceError(f"device {self.name}: fact {name} is {value!r}, expected {kind.__name__}")
        return value

    def need(self, name: str, kind: type[T]) -> T:
        """The value of a fact. Raises DeviceError where no source gives it."""
        value = self.get(name, kind)
        if value is None:
            raise DeviceError(f"device {self.name}: its profile has no {name}, which this needs")
        return value


def profile(name: str) -> DeviceProfile:
    """The profile of that name. Raises DeviceError for a phone, and for an unknown one, listing the known."""
    if name == THIS_MACHINE:
        return this_machine()
    if name not in names():
        from .latency_model import PUBLISHED  # it stands on this module

        if name in PUBLISHED:
            raise DeviceError(
                f"{name!r} is only estimated: there is no target for it",
                f"edgesdk estimate MODEL --device {name} gives an estimate",
            )
        raise DeviceError(f"unknown device {name!r}; known: {', '.join(names())}", "see: edgesdk devices")
    return _known(_FOLDER / f"{name}.toml")


def names() -> tuple[str, ...]:
    """Names of all devices."""
    return (*sorted(path.stem for path in _FOLDER.glob("*.toml")), THIS_MACHINE)


def of_target(target: str) -> tuple[DeviceProfile, ...]:
    """All profiles that imply a target."""
    return tuple(found for found in map(profile, names()) if found.target == target)


def read(path: str | os.PathLike[str]) -> DeviceProfile:
    """A profile from a TOML file of one's own. Raises DeviceError for what is missing or unknown."""
    return _read(Path(path))


@functools.cache
def _known(path: Path) -> DeviceProfile:
    return _read(path)


def _read(path: Path) -> DeviceProfile:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeviceError(f"device file {path.name} cannot be read: {error}") from error
    found = fields.read(DeviceProfile, data, f"device {path.stem}", DeviceError)
    for name, fact in found.facts.items():
        if not fact.source.strip():
            raise DeviceError(f"device {path.stem}: fact {name} has no source")
    return found


@functools.cache
def this_machine() -> DeviceProfile:
    """The machine that edgesdk runs on, as far as the operating system tells."""
    facts = {
        "cores": Fact(usable_cores(), "operating system"),
        "cpu": Fact(cpu_model(), "operating system"),
        "int8_saturates": Fact(_saturates_u8s8(), "operating system: x86 without avx_vnni or avx512_vnni"),
    }
    if "avx512f" in cpu_flags():  # ONNX Runtime, mlas/lib/platform.cpp: blocks of channels (NCHWc) are as wide as vectors
        facts["width_multiple"] = Fact(16, "operating system: x86 with avx512f")
    memory = total_memory_bytes()
    if memory is not None:
        facts["memory_bytes"] = Fact(memory, "operating system")
    facts |= arithmetic(_text("/proc/cpuinfo"), _text("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"))
    if "fp32_flop_per_cycle_per_core" in facts:
        told = "assumption: one channel of DDR4-3200 (JESD79-4), no system tells it; edgesdk fit --on local corrects what it does"
        facts["memory_bandwidth_gb_per_s"] = Fact(25.6, told)
    return DeviceProfile(THIS_MACHINE, "server", "the machine edgesdk runs on", facts=facts)


def arithmetic(cpuinfo: str, max_khz: str) -> dict[str, Fact]:
    """Clock, fp32 peak and instructions for int8 and fp16 of a CPU, from Linux's /proc/cpuinfo and cpufreq/cpuinfo_max_freq.

    What they do not tell is left out. The peak is that of two pipes for multiply-add, as most cores of the last ten years have.
    """
    lines = (line.partition(":") for line in reversed(cpuinfo.splitlines()))
    told = {key.strip(): value.strip() for key, _, value in lines}  # of the first core
    flags = frozenset((told.get("flags") or told.get("Features") or "").split())
    found = {}
    if (clock := _clock(told, max_khz)) is not None:
        found["clock_ghz"] = clock
    if (peak := _fp32_peak(told, flags)) is not None:
        found["fp32_flop_per_cycle_per_core"] = peak
        for fact, known in (("int8_dot_product", _DOT_PRODUCT), ("fp16_arithmetic", _HALF)):
            found[fact] = Fact(bool(flags & known), f"/proc/cpuinfo: {' or '.join(sorted(known))}")
    return found


_DOT_PRODUCT, _HALF = frozenset(["avx_vnni", "avx512_vnni", "asimddp"]), frozenset(["avx512_fp16", "asimdhp"])


def _clock(told: dict[str, str], max_khz: str) -> Fact | None:
    named = re.search(r"@ ([\d.]+)GHz", told.get("model name", ""))
    if max_khz.strip().isdecimal() and int(max_khz):
        return Fact(int(max_khz) / 1e6, "cpufreq: cpuinfo_max_freq")
    if named:
        return Fact(float(named[1]), "/proc/cpuinfo: model name")
    if "flags" in told and re.fullmatch(r"[\d.]+", told.get("bogomips", "")):  # Linux, x86: twice the time-stamp counter's MHz
        return Fact(round(float(told["bogomips"]) / 2e3, 3), "/proc/cpuinfo: half of bogomips, the time-stamp counter's clock")
    return None


def _fp32_peak(told: dict[str, str], flags: frozenset[str]) -> Fact | None:
    """Per core and cycle: vectors x 2 pipes x 2 for a multiply-add."""
    zen4 = told.get("vendor_id") == "AuthenticAMD" and told.get("cpu family") == "25"
    for needs, flop, how in (
        ({"avx512f"}, 32 if zen4 else 64, "avx512f" + (", in two halves (AMD 57647, Zen 4)" if zen4 else ": 16 values")),
        ({"avx2", "fma"}, 32, "avx2 and fma: 8 values"),
        ({"avx"}, 16, "avx without fma: 8 values, a multiplication and an addition"),
        ({"sse2"}, 8, "sse2: 4 values, a multiplication and an addition"),
        ({"asimd"}, 16, "asimd: 4 values"),
    ):
        if needs <= flags:
            return Fact(float(flop), f"/proc/cpuinfo: {how}; two pipes taken for granted")
    return None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """What the operating system calls the CPU."""
    for key in ("model name", "Model", "Hardware"):
        for line in _text("/proc/cpuinfo").splitlines():
            if line.split(":")[0].strip() == key:
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _saturates_u8s8() -> bool:
    """Whether this CPU adds two products u8 x s8 in 16 bits (VPMADDUBSW), as x86 does where it has no VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return False
    flags = cpu_flags()
    return not flags & {"avx_vnni", "avx512_vnni"}  # unknown: 7 bits are safe everywhere


def cpu_flags() -> frozenset[str]:
    """What the operating system says an x86 CPU can do; empty where it does not tell."""
    lines = _text("/proc/cpuinfo").splitlines()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def total_memory_bytes() -> int | None:
    """Physical memory, None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
