"""Power of a board by its own sensors, and what an inference takes of it.

A Jetson has INA3221 sensors that the kernel shows as hwmon; the PMIC of a Raspberry Pi 5 is read by `vcgencmd pmic_read_adc`.
Where a board has neither, there is no energy to measure, and nothing stands in for it.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from .board_facts import HERE, System, board
from .figure import Figure, unavailable

LEAST_READINGS = 5
"""Within the runs, from which on their mean power is told."""
TOTALS = ("VDD_IN",)
"""Rails by which all power of a module comes in: those of Jetson Orin Nano, Orin NX and Xavier NX (NVIDIA Jetson Linux Developer
Guide, Platform Power and Performance). Others are told rail by rail, without a total."""
PMIC_TOTAL = "sum of the PMIC's rails"
_ADC = re.compile(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)[AV]")

Watts = Mapping[str, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Rails:
    """Sensors: what they are, how often they are worth asking (seconds), how to read them (watts by rail), what is the total.

    `total` is the rail that carries everything, "" where none does; `caveat` says what the total leaves out.
    """

    source: str
    period_s: float
    read: Callable[[], Watts]
    total: str
    caveat: str = ""


@dataclass(frozen=True)
class Sample(Generic[T]):
    """What was read at a time of time.monotonic."""

    at_s: float
    value: T


def rails(system: System = HERE) -> Rails | None:
    """The sensors of this board, None where it has none that are known."""
    channels = _ina3221(system)
    if channels:
        total = next((name for name in TOTALS if name in channels), "")
        return Rails("INA3221 by hwmon", 0.1, lambda: _watts(system, channels), total)
    if "Raspberry Pi" in board(system) and pmic(system.run(["vcgencmd", "pmic_read_adc"])):
        caveat = "without what hangs on 5 V, as USB and fan, and without the PMIC's own loss"
        return Rails("PMIC by vcgencmd", 0.25, lambda: _pmic(system), PMIC_TOTAL, caveat)
    return None


def pmic(told: str) -> dict[str, float]:
    """Watts by rail from the output of `vcgencmd pmic_read_adc`: rails with a current and a voltage."""
    values = {(name, kind): float(number) for name, kind, number in _ADC.findall(told)}
    return {name: amps * values[name, "V"] for (name, kind), amps in values.items() if kind == "A" and (name, "V") in values}


def _pmic(system: System) -> dict[str, float]:
    found = pmic(system.run(["vcgencmd", "pmic_read_adc"]))
    return found | {PMIC_TOTAL: sum(found.values())} if found else {}


def _ina3221(system: System) -> dict[str, tuple[str, int]]:
    """hwmon folder and channel by the rail's name (Linux, Documentation/hwmon/ina3221.rst); unconnected ones left out."""
    found = {}
    for folder in system.glob("sys/class/hwmon/hwmon*"):
        if system.text(f"{folder}/name") != "ina3221":
            continue
        for channel in (1, 2, 3):
            label = system.text(f"{folder}/in{channel}_label")
            if label and label != "NC" and system.number(f"{folder}/in{channel}_enable") != 0:
                found[label] = (folder, channel)
    return found


def _watts(system: System, channels: Mapping[str, tuple[str, int]]) -> dict[str, float]:
    found = {}
    for name, (folder, channel) in channels.items():
        millivolts, milliamps = (system.number(Path(folder) / f"{kind}{channel}_input") for kind in ("in", "curr"))
        if millivolts is not None and milliamps is not None:
            found[name] = millivolts * milliamps / 1e6
    return found


class Watch(Generic[T]):
    """Reads something every `period_s` in a thread of its own while it is entered; what came is in `samples`."""

    def __init__(self, read: Callable[[], T], period_s: float) -> None:
        self.samples: list[Sample[T]] = []
        self._take, self._period_s, self._end = read, period_s, threading.Event()
        self._thread = threading.Thread(target=self._read, name="edgesdk-watch", daemon=True)

    def __enter__(self) -> Watch[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._end.is_set():
            begin = time.monotonic()
            value = self._take()
            now = time.monotonic()
            self.samples.append(Sample((begin + now) / 2, value))
            self._end.wait(max(0.01, self._period_s - (now - begin)))


def mean_watts(readings: Sequence[Sample[Watts]], begin_s: float, end_s: float) -> dict[str, float]:
    """Mean power of each rail over a time, by the trapezoid rule between the readings in it; empty for too few of them."""
    inside = [one for one in readings if one.value and begin_s <= one.at_s <= end_s]
    if len(inside) < LEAST_READINGS:
        return {}
    names = set.intersection(*(set(one.value) for one in inside))
    span = inside[-1].at_s - inside[0].at_s
    found = {}
    for name in sorted(names):
        steps = ((b.at_s - a.at_s) * (a.value[name] + b.value[name]) / 2 for a, b in itertools.pairwise(inside))
        found[name] = sum(steps) / span
    return found


def energy(
    of: Rails, readings: Sequence[Sample[Watts]], begin_s: float, end_s: float, runs: int, idle: Watts, where: str
) -> list[Figure]:
    """Energy of an inference: `runs` of them, one after another, filled the time from `begin_s` to `end_s`.

    The total, then what of it is above `idle` (watts by rail while nothing ran), then each rail; unavailable where the sensors
    gave too few readings or no rail carries everything.
    """
    count = sum(bool(one.value) and begin_s <= one.at_s <= end_s for one in readings)
    watts = mean_watts(readings, begin_s, end_s)
    if not watts:
        return [
            unavailable("energy_mj", where, f"{of.source} gave {count} readings within the runs; {LEAST_READINGS} are needed")
        ]
    each_s = (end_s - begin_s) / runs
    method = f"{of.source}, {count} readings over {end_s - begin_s:.1f} s of one inference after another"
    rows = []
    if of.total in watts:
        told = ", ".join(filter(None, (f"{of.total} at {watts[of.total]:.3g} W", method, of.caveat)))
        rows.append(Figure("energy_mj", 1e3 * watts[of.total] * each_s, "measured", where, told, n=runs))
        if of.total in idle:
            above = watts[of.total] - idle[of.total]
            told = f"{of.total} less {idle[of.total]:.3g} W when idle"
            rows.append(Figure("energy_mj", 1e3 * above * each_s, "measured", where, told, segment="above idle", n=runs))
    else:
        rows.append(unavailable("energy_mj", where, f"no rail of {of.source} carries all that this board takes; see its rails"))
    for name, value in watts.items():
        if name != of.total:
            told = f"{value:.3g} W, {method}"
            rows.append(Figure("energy_mj", 1e3 * value * each_s, "measured", where, told, segment=f"rail {name}", n=runs))
    return rows
