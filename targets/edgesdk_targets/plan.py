"""Plan: local, split or offload over a link, which is the fastest, and at which rates of the link that changes.

local    t = T(whole, device)
split    t = T(head, device) + handling + link + T(tail, server)
offload  t = handling + link + T(whole, server)
energy of the device = P(load) x (T(head) + handling) + P(sending) x T(bytes on the link) + P(idle) x (RTT + T(tail))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgesdk_converters.errors import ModelError

from .breakeven import Crossover, Line, envelope, rivals
from .device import DeviceProfile
from .figure import Figure, Interval, unavailable
from .link import Link, cost, exchange, rate_text, waits_ms

Kind = Literal["local", "offload", "split", "bundle"]
_NOWHERE = Interval(0.0, 0.0, 0.9)


@dataclass(frozen=True)
class Way:
    """One way to run a model: what each side computes and what crosses.

    `head` is latency_ms on the device, `tail` on the server, None where that side computes nothing; local sends nothing.
    `tensors` cross in a split; a `bundle` is a split that is made already. `accuracy_drop` in points, None where it is not
    known. `told` says what the bytes are.
    """

    name: str
    kind: Kind
    up_bytes: int
    down_bytes: int
    head: Figure | None
    tail: Figure | None
    tensors: tuple[str, ...] = ()
    accuracy_drop: float | None = 0.0
    told: str = ""

    def __post_init__(self) -> None:
        if (self.head is None) != (self.kind == "offload") or (self.tail is None) != (self.kind == "local"):
            raise ValueError(f"no way to run a model: {self}")


@dataclass(frozen=True)
class Option:
    """A way with its figures over one link: link_ms and link_bytes (None for local), latency_ms and energy_mj of the device.

    `handling` is what the device computes for a request beside its network, None for local or where it was not given.
    """

    way: Way
    link: Figure | None
    link_bytes: Figure | None
    total: Figure
    energy: Figure
    handling: Figure | None = None

    @property
    def name(self) -> str:
        return self.way.name

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All of them, the total first."""
        found = (self.total, self.way.head, self.handling, self.link, self.way.tail, self.link_bytes, self.energy)
        return tuple(figure for figure in found if figure is not None)


@dataclass(frozen=True)
class Plan:
    """Options in the order given; `winner` is the fastest within the limits, None where there is none, and `why` says so.

    `best` are the options that are the fastest at some rate, slowest link first; `crossovers` lie between them. `overlapping`
    are options whose interval overlaps the winner's; `rivals` those that win somewhere in the intervals of device, server and
    link where each errs by the same share for all options.
    """

    model: str
    device: str
    server: str
    link: Link
    options: tuple[Option, ...]
    winner: str | None
    why: str
    best: tuple[str, ...]
    crossovers: tuple[Crossover, ...]
    lines: tuple[Line, ...]
    overlapping: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def certain(self) -> bool:
        """Whether no other option can be the fastest, with or without errors that are common to all."""
        return self.winner is not None and not self.overlapping

    @property
    def unbeaten(self) -> tuple[str, ...]:
        """Options than which no other has as little to send and as little else to wait for; of equal ones the first."""
        kept: list[Line] = []
        for line in sorted(self.lines, key=lambda line: (line.up_bits, line.fixed_ms)):
            if not kept or line.fixed_ms < min(other.fixed_ms for other in kept):
                kept.append(line)
        return tuple(line.name for line in self.lines if line in kept)

    def find(self, name: str) -> Option:
        return next(option for option in self.options if option.name == name)


def plan(
    ways: Sequence[Way],
    link: Link,
    device: DeviceProfile,
    server: DeviceProfile,
    *,
    model: str = "",
    max_latency_ms: float = math.inf,
    max_drop: float = math.inf,
    handling: Figure | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """The plan for these ways over a link. `max_drop` (points of accuracy) excludes ways that are known to lose more.

    `handling` is latency_ms of what the device computes for a request beside its network, of every way that sends something.

    Raises ModelError where the time of no way is known, or a limit is no number above 0.
    """
    if not max_latency_ms > 0:
        raise ModelError(f"the limit of the latency is {max_latency_ms:g} ms; allowed: above 0")
    if not max_drop >= 0:
        raise ModelError(f"the limit of the accuracy drop is {max_drop:g} points; allowed: 0 or more")
    options = tuple(_option(way, link, device, handling) for way in ways)
    known = [option for option in options if option.total.value is not None]
    told = list(notes)
    unknown = dict.fromkeys(option.total.method for option in options if option.total.value is None)
    if not known:
        raise ModelError(f"no option's time is known: {'; '.join(unknown)}", "name another device, or give a measured report")
    told += [f"no time of {', '.join(o.name for o in options if o.total.method == reason)}: {reason}" for reason in unknown]
    kept = [option for option in known if (option.way.accuracy_drop or 0.0) <= max_drop]
    told += [f"{o.name} loses {o.way.accuracy_drop:g} points, over the limit of {max_drop:g}" for o in known if o not in kept]
    lines = tuple(_line(option, link) for option in kept)
    best, crossovers = envelope(lines, link)
    found = Plan(model, device.name, server.name, link, options, None, "", best, crossovers, lines, notes=tuple(told))
    if not kept:
        return replace(found, why=f"no option loses at most {max_drop:g} points")
    fastest = min(kept, key=_ms)
    if _ms(fastest) > max_latency_ms:
        why = f"no option takes at most {max_latency_ms:g} ms: {fastest.name}, the fastest, takes {in_ms(_ms(fastest))}"
        return replace(found, why=why)
    end = bounds(fastest.total).high
    if end > max_latency_ms:
        told.append(f"{fastest.name} may take up to {in_ms(end)}, over the limit of {max_latency_ms:g} ms")
    if fastest.way.accuracy_drop is None:
        told.append(f"what accuracy {fastest.name} loses is not known: edgesdk export --split measures it")
    if link.ceiling_bits_per_s < max(link.up_bits_per_s, link.down_bits_per_s) and link.duty_cycle == 1:
        told.append(f"with its loss and round trip TCP reaches at most {rate_text(link.ceiling_bits_per_s)} on this link")
    if fastest.link is not None:
        waited = waits_ms(link, fastest.way.up_bytes, fastest.way.down_bytes, "idle")
        if waited > 0.01 * _ms(fastest):
            told.append(
                f"{fastest.name} takes {in_ms(waited)} more where the connection rests between requests: TCP starts slowly"
            )
    overlapping = tuple(o.name for o in kept if o is not fastest and bounds(o.total).low <= end)
    others = rivals(fastest.name, lines, link)
    return replace(
        found, winner=fastest.name, why=_why(fastest, kept, overlapping, others), overlapping=overlapping, rivals=tuple(others),
        notes=tuple(told),
    )  # fmt: skip


def bounds(figure: Figure) -> Interval:
    """The interval of a figure; of a measurement from its best run to its p90. Raises ValueError for an unavailable one."""
    if figure.value is None:
        raise ValueError(f"{figure.name} is unavailable")
    if figure.interval is not None:
        return figure.interval
    low, high = figure.percentiles.get("min", figure.value), figure.percentiles.get("p90", figure.value)
    return Interval(min(low, figure.value), max(high, figure.value), 0.9)


def in_ms(value: float) -> str:
    """Milliseconds in three digits, or all of them from 1,000 on."""
    return f"{value:,.0f} ms" if value >= 999.5 else f"{value:.3g} ms"


def _ms(option: Option) -> float:
    assert option.total.value is not None
    return option.total.value


def _option(way: Way, link: Link, device: DeviceProfile, handling: Figure | None) -> Option:
    if way.kind == "local":
        assert way.head is not None
        return Option(way, None, None, replace(way.head, segment="whole"), _energy(way, None, link, device, None))
    crossing = exchange(link, way.up_bytes, way.down_bytes)
    headers = link.request_overhead_bytes + link.response_overhead_bytes
    payload = way.up_bytes + way.down_bytes
    size = Figure(
        "link_bytes", payload + headers, "estimated", "the socket",
        f"{way.up_bytes:,} up and {way.down_bytes:,} down as counted, {headers} for the protocol assumed", segment="link",
        interval=Interval(payload, payload + 2 * headers, 0.9),
    )  # fmt: skip
    parts = [part for part in (way.head, handling, crossing, way.tail) if part is not None]
    missing = next((part for part in parts if part.value is None), None)
    energy = _energy(way, crossing, link, device, handling)
    if missing is not None:
        total = unavailable("latency_ms", missing.where, f"{missing.where}: {missing.method}")
        return Option(way, crossing, size, total, energy, handling)
    ends = [bounds(part) for part in parts]
    total = Figure(
        "latency_ms", sum(part.value or 0.0 for part in parts), "estimated", ", ".join(part.where for part in parts),
        f"{' + '.join(f'{part.segment} ({part.provenance})' for part in parts)}; so is the interval",
        interval=Interval(sum(end.low for end in ends), sum(end.high for end in ends), min(end.level for end in ends)),
        extrapolated=any(part.extrapolated for part in parts),
    )  # fmt: skip
    return Option(way, crossing, size, total, energy, handling)


def _line(option: Option, link: Link) -> Line:
    """An option whose time is known, as a function of the link's rate."""
    way = option.way
    computed = (way.head, option.handling, way.tail)
    head, more, tail = (_NOWHERE if part is None else bounds(part) for part in computed)
    fixed_ms = sum(part.value or 0.0 for part in computed if part is not None)
    if way.kind == "local":
        return Line(way.name, fixed_ms, head_ms=(head.low, head.high))
    found = cost(link, way.up_bytes, way.down_bytes)
    return Line(
        way.name, fixed_ms + found.fixed_ms, found.up_bits, found.down_bits, (head.low + more.low, head.high + more.high),
        (tail.low, tail.high),
        (found.clean_ms, max(found.unlucky_ms, found.fixed_ms)),
    )  # fmt: skip


def _energy(way: Way, crossing: Figure | None, link: Link, device: DeviceProfile, handling: Figure | None) -> Figure:
    """energy_mj of the device for one request, from the powers of the whole board in its profile (W x ms = mJ).

    Where the profile has no power of sending, it lies between idle and load.
    """
    idle, load, sending = (device.get(f"power_{name}_w", float) for name in ("idle", "load", "transmit"))
    if idle is None or load is None:
        missing = " and ".join(n for n, v in (("power_idle_w", idle), ("power_load_w", load)) if v is None)
        return unavailable("energy_mj", device.name, f"the profile of {device.name} has no {missing}", "device")
    parts = [part for part in (way.head, crossing, way.tail) if part is not None]
    missing_part = next((part for part in parts if part.value is None), None)
    if missing_part is not None:
        return unavailable("energy_mj", device.name, f"{missing_part.where}: {missing_part.method}", "device")
    head, wait, tail = (_NOWHERE if part is None else bounds(part) for part in (way.head, crossing, way.tail))
    more = _NOWHERE if handling is None else bounds(handling)
    computing, waiting = ((part.value or 0.0) if part is not None else 0.0 for part in (way.head, way.tail))
    told = f"load {load:g} W, idle {idle:g} W of the board"
    if crossing is None:
        value, low, high = load * computing, load * head.low, load * head.high
    else:
        sent_ms = cost(link, way.up_bytes, way.down_bytes).sending_ms(link)
        still_ms = (crossing.value or 0.0) - sent_ms
        least, most = (idle, load) if sending is None else (sending, sending)
        told += f"; sending {sending:g} W" if sending is not None else "; sending between them, its power is in no profile"
        computing += (handling.value or 0.0) if handling is not None else 0.0
        busy = (head.low + more.low, head.high + more.high)
        value = load * computing + (least + most) / 2 * sent_ms + idle * (still_ms + waiting)
        low = load * busy[0] + least * min(sent_ms, wait.low) + idle * (max(0.0, wait.low - sent_ms) + tail.low)
        high = load * busy[1] + most * min(sent_ms, wait.high) + idle * (max(0.0, wait.high - sent_ms) + tail.high)
    source = device.facts["power_load_w"].source
    return Figure(
        "energy_mj", value, "estimated", device.name, f"{told}; {source}", segment="device",
        interval=Interval(min(low, value), max(high, value), 0.9),
    )  # fmt: skip


def _why(fastest: Option, kept: Sequence[Option], overlapping: Sequence[str], others: dict[str, tuple[int, int, int]]) -> str:
    told = f"{fastest.name} takes {in_ms(_ms(fastest))}"
    rest = sorted((option for option in kept if option is not fastest), key=_ms)
    if not rest:
        return f"{told}; nothing to compare it with"
    told += f", {rest[0].name} as the next {in_ms(_ms(rest[0]))}"
    if not overlapping:
        return f"{told}; no other interval overlaps its own"
    told += (
        f"; the interval of {overlapping[0]} overlaps its own"
        if len(overlapping) == 1
        else (f"; the intervals of {len(overlapping)} others overlap its own")
    )
    if not others:
        return f"{told}, yet it wins wherever they lie if device, server and link each err by the same share for all options"
    name, corner = next(iter(others.items()))
    ends = [f"{what} as {('fast', 'slow')[end]}" for what, end in zip(("device", "server", "link"), corner, strict=True)]
    return f"{told}: not certain, {name} is faster with the {', the '.join(ends)} as its interval allows"
