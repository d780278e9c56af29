"""Facts of the board that a measurement ran on, and its state before and after: clocks, temperatures, throttling, memory.

They are read from files of the kernel and from the makers' own tools (`vcgencmd`, `nvpmodel`); what a board does not tell is left
out, never guessed. Standard library only, and nothing is imported that could need another CPU than the one that is here.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .figure import Provenance

EMULATOR = "EDGESDK_EMULATOR"
"""Whoever starts edgesdk under an emulator may name it in this variable; most are found without."""
PARTS = {
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0d": "Cortex-A77", "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE", "0xd44": "Cortex-X1", "0xd46": "Cortex-A510", "0xd47": "Cortex-A710",
}  # fmt: skip
"""Arm's part numbers (Linux, arch/arm64/include/asm/cputype.h), where the implementer is Arm (0x41)."""
PI_THROTTLED = {
    0: "under-voltage", 1: "Arm clock capped", 2: "throttled", 3: "soft temperature limit",
    16: "under-voltage has occurred", 17: "Arm clock capping has occurred", 18: "throttling has occurred",
    19: "soft temperature limit has occurred",
}  # fmt: skip
"""Bits of `vcgencmd get_throttled` (Raspberry Pi documentation, os.html#get_throttled); from 16 on: since the board started."""
VERSIONS = ("edgesdk", "numpy", "onnxruntime", "onnxruntime-gpu", "ai-edge-litert", "executorch", "ncnn")
OF_THE_MACHINE = ("memory_bytes", "swap_bytes", "kernel", "system", "governor", "cores", "virtual")
"""Facts that a user-mode emulator passes through from the machine it runs on."""
_MACHINES = {"x86_64": 62, "amd64": 62, "aarch64": 183, "arm64": 183, "armv7l": 40, "i686": 3, "riscv64": 243}
_COMPATIBLE = {62: (3,), 183: (40,)}
"""ELF machine numbers (elf.h), and those of 32-bit programs that such a processor runs itself."""
_SLOWED_BY = re.compile(r"(thermal-)?(cpufreq|devfreq)-|Processor$")
"""Cooling devices of Linux that cool by slowing down; fans are others."""


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5, stdin=subprocess.DEVNULL).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""


@dataclass(frozen=True)
class System:
    """Where facts are read: the root of its files, and what runs its commands (the output, "" where there is no such command)."""

    root: Path = Path("/")
    run: Callable[[Sequence[str]], str] = _output

    def text(self, path: str | Path) -> str:
        """A file, without what pads it; "" where it cannot be read."""
        try:
            return (self.root / str(path).lstrip("/")).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:
            return ""

    def number(self, path: str | Path) -> int | None:
        """A file that holds a whole number."""
        text = self.text(path)
        return int(text) if re.fullmatch(r"-?\d+", text) else None

    def glob(self, pattern: str) -> list[str]:
        """Paths below the root, those with numbers in their order."""
        found = (str(path.relative_to(self.root)) for path in self.root.glob(pattern))
        return sorted(found, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)])


HERE = System()


@dataclass(frozen=True)
class Moment:
    """The state of a board at one time. Clocks in MHz by CPUs ("0-3") or unit, temperatures in degrees Celsius by zone.

    `slowed` says what slows the board now; `events` counts what has slowed it since it started.
    """

    clocks_mhz: Mapping[str, float] = field(default_factory=dict)
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    slowed: tuple[str, ...] = ()
    events: Mapping[str, int] = field(default_factory=dict)
    memory_available_bytes: int | None = None
    swap_used_bytes: int | None = None
    load: float | None = None

    @property
    def hottest_c(self) -> float | None:
        return max(self.temperatures_c.values(), default=None)

    def to_json(self) -> dict[str, Any]:
        """What is known; `slowed` stays, empty, where something would tell."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data |= {"slowed": list(self.slowed)}
        return {name: value for name, value in data.items() if value not in (None, {}, []) or (name == "slowed" and self.events)}


def facts(system: System = HERE) -> dict[str, Any]:
    """What stays as it is while something runs: board, clusters of cores, CPU features, power mode, system and versions."""
    found: dict[str, Any] = {
        "board": board(system), "clusters": clusters(system), "cpu_features": sorted(features(system)),
        "memory_bytes": _memory(system).get("MemTotal"), "swap_bytes": _memory(system).get("SwapTotal"),
        "kernel": platform.release(), "libc": " ".join(platform.libc_ver()), "python": platform.python_version(),
        "versions": versions(), "emulator": emulator(system), "virtual": _virtual(system), **_jetson(system),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value not in (None, "", [], {})}


def board(system: System = HERE) -> str:
    """What the board calls itself; "" where it does not."""
    told = system.text("proc/device-tree/model")
    if told:
        return told
    parts = (system.text(f"sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name"))
    return " ".join(part for part in parts if part)


def is_board(title: str, told: str) -> bool:
    """Whether a board that calls itself `told` is of the kind that a profile's title names."""
    name = re.sub(r"\s+\d+GB$", "", title).replace("+", " Plus")
    return bool(told) and re.search(rf"\b{re.escape(name)}\b", told) is not None


def emulator(system: System = HERE) -> str:
    """The program that interprets this one, "" where the processor itself runs it.

    A user-mode emulator hides behind /proc/self, but the kernel's own view of the thread shows whose program it is: one for
    another machine than the one that is claimed.
    """
    named = os.environ.get(EMULATOR, "")
    if named:
        return named
    path = system.root / "proc/thread-self/exe"
    try:
        with path.open("rb") as stream:
            head = stream.read(20)
        name = path.readlink().name
    except OSError:
        return ""
    claimed = _MACHINES.get(platform.machine().lower())
    real = int.from_bytes(head[18:20], "little" if head[5:6] == b"\1" else "big")
    if head[:4] != b"\x7fELF" or claimed is None or real == claimed or real in _COMPATIBLE.get(claimed, ()):
        return ""
    return name


def provenance(system: System = HERE) -> Provenance:
    """Of what a program computes here: `measured`, or `emulated`."""
    return "emulated" if emulator(system) else "measured"


def features(system: System = HERE) -> frozenset[str]:
    """What every core can do, by the kernel's names; empty where it does not tell."""
    sets = [frozenset(one) for one in _cpuinfo(system, ("Features", "flags"))]
    return frozenset.intersection(*sets) if sets else frozenset()


def clusters(system: System = HERE) -> list[dict[str, Any]]:
    """Cores that share a clock, the fastest first: `cpus`, and as far as told `part`, `capacity`, clocks in MHz, `governor`."""
    names = [
        PARTS.get(part[0], part[0]) if part and who == ["0x41"] else ""
        for part, who in zip(_cpuinfo(system, ("CPU part",)), _cpuinfo(system, ("CPU implementer",)), strict=False)
    ]
    found = []
    for folder in system.glob("sys/devices/system/cpu/cpufreq/policy*"):
        cpus = [int(cpu) for cpu in system.text(f"{folder}/related_cpus").split()]
        if not cpus:
            continue
        low, high = (system.number(f"{folder}/cpuinfo_{end}_freq") for end in ("min", "max"))
        limit = system.number(f"{folder}/scaling_max_freq")
        one = {
            "cpus": cpus, "part": names[cpus[0]] if cpus[0] < len(names) else "",
            "capacity": system.number(f"sys/devices/system/cpu/cpu{cpus[0]}/cpu_capacity"),
            "min_mhz": None if low is None else low / 1e3, "max_mhz": None if high is None else high / 1e3,
            "allowed_mhz": None if limit is None else limit / 1e3, "governor": system.text(f"{folder}/scaling_governor"),
        }  # fmt: skip
        found.append({name: value for name, value in one.items() if value not in (None, "")})
    if not found and names:
        found = [
            {"cpus": [cpu for cpu, other in enumerate(names) if other == name], "part": name}
            for name in dict.fromkeys(names)
            if name
        ]
    return sorted(found, key=lambda one: (-int(one.get("capacity", 0)), -float(one.get("max_mhz", 0)), one["cpus"]))


def versions() -> dict[str, str]:
    """Of edgesdk and the runtimes that are installed, by their package records: nothing is imported."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def moment(system: System = HERE) -> Moment:
    """The state now."""
    memory, load = _memory(system), system.text("proc/loadavg").split()
    bits = _throttled(system)
    slowed = [] if bits is None else [told for bit, told in PI_THROTTLED.items() if bit < 16 and bits >> bit & 1]
    slowed += [f"{name} cools at level {level}" for name, level in _cooling(system) if level > 0]
    swap = memory.get("SwapTotal", 0) - memory.get("SwapFree", 0)
    return Moment(
        _clocks(system), _temperatures(system), tuple(slowed), dict(_events(system, bits)), memory.get("MemAvailable"),
        swap if "SwapTotal" in memory else None, float(load[0]) if load else None,
    )  # fmt: skip


def slowed_between(before: Moment, after: Moment) -> tuple[str, ...]:
    """What slowed the board between two moments, or at one of them; empty for nothing that it tells."""
    told = list(dict.fromkeys((*before.slowed, *after.slowed)))
    for name, count in after.events.items():
        if count > before.events.get(name, 0):
            told.append(name)
    return tuple(told)


def _cpuinfo(system: System, keys: Sequence[str]) -> list[list[str]]:
    """The words after a key of /proc/cpuinfo, for each core."""
    lines = (line.partition(":") for line in system.text("proc/cpuinfo").splitlines())
    return [value.split() for key, _, value in lines if key.strip() in keys]


def _memory(system: System) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", system.text("proc/meminfo"), re.MULTILINE)
    return {name: int(value) * 1024 for name, value in found}


def _clocks(system: System) -> dict[str, float]:
    found = {}
    for folder in system.glob("sys/devices/system/cpu/cpufreq/policy*"):
        clock = system.number(f"{folder}/scaling_cur_freq")
        if clock is not None:
            found["cpu " + system.text(f"{folder}/related_cpus").replace(" ", ",")] = clock / 1e3
    for folder in system.glob("sys/class/devfreq/*gpu*"):
        clock = system.number(f"{folder}/cur_freq")
        if clock is not None:
            found["gpu"] = clock / 1e6
    # What the firmware of a Raspberry Pi has set: where it throttles, the kernel's figure is only what was asked for.
    told = re.search(r"frequency\(\d+\)=(\d+)", _pi(system, "measure_clock", "arm"))
    if told:
        found["arm (firmware)"] = int(told[1]) / 1e6
    return found


def _temperatures(system: System) -> dict[str, float]:
    found: dict[str, float] = {}
    for folder in system.glob("sys/class/thermal/thermal_zone*"):
        value, kind = system.number(f"{folder}/temp"), system.text(f"{folder}/type") or Path(folder).name
        if value is not None and -40_000 < value < 200_000:  # a sensor that is switched off gives what no board can have
            found[kind if kind not in found else Path(folder).name] = value / 1e3
    told = re.search(r"temp=(-?[\d.]+)'C", _pi(system, "measure_temp"))
    if told:
        found["firmware"] = float(told[1])
    return found


def _pi(system: System, *words: str) -> str:
    """What the firmware of a Raspberry Pi answers; other boards are not asked."""
    return system.run(["vcgencmd", *words]) if "Raspberry Pi" in board(system) else ""


def _throttled(system: System) -> int | None:
    told = re.search(r"throttled=0x([0-9a-fA-F]+)", _pi(system, "get_throttled"))
    return None if told is None else int(told[1], 16)


def _cooling(system: System) -> Iterator[tuple[str, int]]:
    for folder in system.glob("sys/class/thermal/cooling_device*"):
        kind, level = system.text(f"{folder}/type"), system.number(f"{folder}/cur_state")
        if level is not None and _SLOWED_BY.match(kind):
            yield kind, level


def _events(system: System, bits: int | None) -> Iterator[tuple[str, int]]:
    if bits is not None:
        yield from ((told, bits >> bit & 1) for bit, told in PI_THROTTLED.items() if bit >= 16)
    for path in system.glob("sys/class/hwmon/hwmon*/oc*_event_cnt"):  # Jetson: soctherm's over-current throttling
        count = system.number(path)
        if count is not None:
            yield f"over-current event {Path(path).name.removesuffix('_event_cnt')}", count
    counts = [system.number(path) for path in system.glob("sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")]
    if counts:
        yield "thermal throttling of a core", sum(count or 0 for count in counts)


def _jetson(system: System) -> dict[str, str]:
    """Releases and the power mode, where NVIDIA's files and tools are there."""
    release = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", system.text("etc/nv_tegra_release"))
    if release is None:
        return {}
    mode = re.search(r"NV Power Mode: (\S+)\s+(\d+)", system.run(["nvpmodel", "-q"]))
    cuda = re.search(r'"cuda"\s*:\s*{[^}]*"version"\s*:\s*"([^"]+)"', system.text("usr/local/cuda/version.json"))
    libraries = [Path(path).name for path in system.glob("usr/lib/*/libnvinfer.so.*")]
    tensorrt = max((name.partition(".so.")[2] for name in libraries), key=len, default="")
    return {
        "l4t": f"{release[1]}.{release[2]}",
        "jetpack": system.run(["dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack"]).strip(),
        "tensorrt": tensorrt, "cuda": cuda[1] if cuda else "", "nvpmodel": f"{mode[1]} ({mode[2]})" if mode else "",
    }  # fmt: skip


def _virtual(system: System) -> str:
    """What a virtual machine runs on, as far as it can be told: its times are not those of the bare board."""
    if "dummy-virt" in system.text("proc/device-tree/compatible"):
        return "virtual machine"
    return "virtual machine" if "hypervisor" in features(system) else ""
