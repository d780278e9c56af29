"""Link: the way between a device and a server, and how long a request and its response take on it over TCP.

    time = RTT + 8 x bytes up / rate up + 8 x bytes down / rate down (+ what losses and a connection that is not warm cost)

Bytes are those on the wire: what is sent, and for each packet its headers. Messages go one after another on one connection.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgesdk_converters import fields
from edgesdk_converters.errors import LinkError

from .figure import Figure, Interval

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Connection = Literal["warm", "idle", "cold"]

PACKET_BYTES = 1448
"""Of a message in one packet: an Ethernet frame's 1500 (RFC 894) less 20 of IPv4 (RFC 791) and 32 of TCP with timestamps
(RFC 9293, RFC 7323)."""
PACKET_OVERHEAD_BYTES = 66
"""Added to a packet: these 52, and 14 of Ethernet's header (IEEE 802.3); preamble, checksum and gap are not counted."""
REQUEST_OVERHEAD_BYTES = 375
"""HTTP/1.1 and the JSON before the tensors of the Open Inference Protocol v2 (binary tensor extension), counted at the socket
between edgesdk's own client and server for one input and one output; names of tensors and hosts make it differ by some tens."""
RESPONSE_OVERHEAD_BYTES = 440
"""As for the request."""
INITIAL_WINDOW_PACKETS = 10
"""What TCP sends before the first acknowledgement, on a new connection (RFC 6928) and after idleness (RFC 5681, 4.1)."""
LEAST_TIMEOUT_MS = 200.0
"""Least retransmission timeout of Linux (TCP_RTO_MIN, include/net/tcp.h); RFC 6298 would have 1 s."""
UNREPORTED_PACKETS = 3
"""The last packets of a message: too few follow for three duplicate acknowledgements (RFC 5681, 3.2), so a timer must end."""
MATHIS = math.sqrt(3 / 2)
"""Mathis, Semke, Mahdavi, Ott: The macroscopic behavior of the TCP congestion avoidance algorithm, CCR 27(3), 1997."""
LEVEL = 0.9
NORMAL_90 = 1.645
"""Standard deviations on either side of the mean that hold 90 % of a normal distribution."""
MODEL_ERROR = 0.05
"""Either side of the time, for scheduling and headers; over a loopback relay tests/bench_link.py finds up to 3.2 %."""

_RATE = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*(bit|kbit|mbit|gbit)(?:/s|ps)?")
_TIME = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*(us|ms|s)")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_KEYS = ("rate", "up", "down", "rtt", "jitter", "loss")
_FORM = "10mbit,20ms or wifi or up=5mbit,down=20mbit,rtt=30ms,jitter=5ms,loss=1%"


@dataclass(frozen=True)
class Link:
    """Rates in bits a second, device to server (`up`) and back; `rtt_ms` of an empty message, both ways together.

    `jitter_ms` is the standard deviation of the round trip; `loss` the share of packets lost, either way, 0 to 0.3. `source`
    says where the numbers come from. `planning_only` is empty, or why no session can run over it; `duty_cycle` the share of
    the time that may be sent. Raises LinkError for values that no link has.
    """

    up_bits_per_s: float
    down_bits_per_s: float
    rtt_ms: float
    jitter_ms: float = 0.0
    loss: float = 0.0
    name: str = ""
    source: str = "as given"
    packet_bytes: int = PACKET_BYTES
    packet_overhead_bytes: int = PACKET_OVERHEAD_BYTES
    request_overhead_bytes: int = REQUEST_OVERHEAD_BYTES
    response_overhead_bytes: int = RESPONSE_OVERHEAD_BYTES
    duty_cycle: float = 1.0
    planning_only: str = ""

    def __post_init__(self) -> None:
        for way, rate in (("up", self.up_bits_per_s), ("down", self.down_bits_per_s)):
            if not 1e-3 <= rate <= 1e18:
                raise LinkError(f"a link's rate {way} is {rate:g} bit/s; allowed: 0.001 to 1e18", f"say it as {_FORM}")
        if not 0 <= self.rtt_ms <= 1e7 or not 0 <= self.jitter_ms <= 1e7:
            told = f"a link's round trip is {self.rtt_ms:g} ms, its jitter {self.jitter_ms:g} ms"
            raise LinkError(f"{told}; allowed: 0 to 10,000 s", f"say it as {_FORM}")
        if not 0 <= self.loss <= 0.3:
            raise LinkError(f"a link loses {self.loss:.0%} of the packets; allowed: 0 to 30 %", "beyond that TCP does not work")
        if self.packet_bytes < 1 or self.packet_overhead_bytes < 0 or not 0 < self.duty_cycle <= 1:
            raise ValueError(f"no link: {self}")

    def __str__(self) -> str:
        rates = rate_text(self.up_bits_per_s)
        if self.down_bits_per_s != self.up_bits_per_s:
            rates += f" up, {rate_text(self.down_bits_per_s)} down"
        told = [self.name, rates, f"RTT {self.rtt_ms:g} ms", f"jitter {self.jitter_ms:g} ms" if self.jitter_ms else ""]
        told.append(f"loss {100 * self.loss:g} %" if self.loss else "")
        return ", ".join(part for part in told if part)

    def at(self, up_bits_per_s: float) -> Link:
        """The same link at another rate up; the rate down changes in proportion."""
        down = self.down_bits_per_s * (up_bits_per_s / self.up_bits_per_s)
        return replace(self, up_bits_per_s=up_bits_per_s, down_bits_per_s=down)

    def for_session(self) -> Link:
        """The link itself. Raises LinkError where nothing can be run over it."""
        if self.planning_only:
            raise LinkError(f"{self.name or 'this link'} is for planning only: {self.planning_only}", "see: edgesdk plan")
        return self

    @property
    def ceiling_bits_per_s(self) -> float:
        """What TCP (Reno) reaches at most with this loss and round trip, infinite without: MSS/RTT x sqrt(3/2) / sqrt(loss)."""
        if not self.loss or not self.rtt_ms:
            return math.inf
        return 8e3 * self.packet_bytes / self.rtt_ms * MATHIS / math.sqrt(self.loss)

    @property
    def timeout_ms(self) -> float:
        """Retransmission timeout: RTT + 4 x its variation (RFC 6298, 2.3), at least Linux's 200 ms."""
        return max(LEAST_TIMEOUT_MS, self.rtt_ms + 4 * self.jitter_ms)


@dataclass(frozen=True)
class Cost:
    """What an exchange costs at any rate R up: fixed_ms + 1000 x (up_bits / min(R, C) + down_bits / min(R down, C)), C the
    link's ceiling. `clean_ms` and `unlucky_ms` bound the fixed part: a quick round trip without loss, a slow one with."""

    fixed_ms: float
    up_bits: float
    down_bits: float
    clean_ms: float
    unlucky_ms: float

    def ms(self, link: Link) -> float:
        """Expected milliseconds on a link at its rates."""
        return self.fixed_ms + self.sending_ms(link)

    def sending_ms(self, link: Link) -> float:
        """Milliseconds in which bits go out, both ways together."""
        ceiling = link.ceiling_bits_per_s
        up, down = min(link.up_bits_per_s, ceiling), min(link.down_bits_per_s, ceiling)
        return 1e3 * (self.up_bits / up + self.down_bits / down)

    def interval(self, link: Link) -> Interval:
        """Where the milliseconds lie with LEVEL: jitter and losses, and the error of this model."""
        sending_ms, middle = self.sending_ms(link), self.ms(link)
        low = (self.clean_ms + sending_ms * (1 - link.loss)) * (1 - MODEL_ERROR)
        high = (self.unlucky_ms + sending_ms) * (1 + MODEL_ERROR)
        return Interval(min(low, middle), max(high, middle), LEVEL)


def cost(link: Link, up_bytes: int, down_bytes: int) -> Cost:
    """What a request of `up_bytes` and a response of `down_bytes` cost on a warm connection, protocol overhead added.

    A lost packet is sent again (bits / (1 - loss)). One that three others follow is reported and repaired in a round trip
    (RFC 5681, fast retransmit); one of the last three waits for the timeout, which doubles each time (RFC 6298): expected
    timeout x q / (1 - 2 loss), q the probability that any of the three is lost. Linux often repairs those sooner (RFC 8985).
    """
    if up_bytes < 0 or down_bytes < 0:
        raise ValueError(f"no message has {up_bytes} or {down_bytes} bytes")
    sizes = (up_bytes + link.request_overhead_bytes, down_bytes + link.response_overhead_bytes)
    bits, lost_ms, unlucky_ms = [], 0.0, 0.0
    for way, size in enumerate(sizes):
        packets = math.ceil(size / link.packet_bytes)
        sent = 8.0 * (size + packets * link.packet_overhead_bytes)
        if link.duty_cycle < 1:  # silence after each packet but the last, until its share of the time is kept
            last = 8.0 * (size - (packets - 1) * link.packet_bytes + link.packet_overhead_bytes) if packets else 0.0
            sent += (sent - last) * (1 / link.duty_cycle - 1) if way == 0 else 0.0
        bits.append(sent / (1 - link.loss))
        kept = 1 - link.loss
        tail, body = 1 - kept ** min(packets, UNREPORTED_PACKETS), 1 - kept ** max(0, packets - UNREPORTED_PACKETS)
        lost_ms += body * link.rtt_ms + tail / (1 - 2 * link.loss) * link.timeout_ms
        unlucky_ms += (link.rtt_ms if body > (1 - LEVEL) / 2 else 0.0) + _timeouts(tail, link.loss) * link.timeout_ms
    spread = NORMAL_90 * link.jitter_ms
    fixed_ms, slow_ms = link.rtt_ms + lost_ms, link.rtt_ms + spread + unlucky_ms
    return Cost(fixed_ms, bits[0], bits[1], max(0.0, link.rtt_ms - spread), slow_ms)


def _timeouts(first: float, again: float) -> int:
    """Timeouts, in units of the first, that are waited for at most with a probability of 95 %: 1, 1 + 2, 1 + 2 + 4 …"""
    waited, probability = 0, first
    while probability > (1 - LEVEL) / 2:
        waited = 2 * waited + 1
        probability *= again
    return waited


def exchange(link: Link, up_bytes: int, down_bytes: int, connection: Connection = "warm") -> Figure:
    """link_ms of a request and its response, estimated: everything but what the server computes.

    A connection that is `idle` (nothing sent for a retransmission timeout) or `cold` starts with 10 packets and doubles each
    round trip (RFC 5681, RFC 6928), and waits wherever a window is out before its first acknowledgement is back; a cold one
    has a round trip before that for the handshake (RFC 9293; TLS would add one or two). Waits count in both directions.
    """
    found = cost(link, up_bytes, down_bytes)
    added = waits_ms(link, up_bytes, down_bytes, connection)
    interval = found.interval(link)
    told = f"{link}; RTT + {found.up_bits / 8:,.0f} bytes up + {found.down_bits / 8:,.0f} down, TCP {connection}"
    if added:
        told += f", {added:.3g} ms of it until the window has grown"
    if link.loss:
        told += f"; {found.fixed_ms - link.rtt_ms:.3g} ms expected for losses"
    return Figure(
        "link_ms", found.ms(link) + added, "estimated", link.name or "the link", f"{told}; {link.source}", segment="link",
        interval=Interval(interval.low + added * (1 - MODEL_ERROR), interval.high + added * (1 + MODEL_ERROR), LEVEL),
    )  # fmt: skip


def waits_ms(link: Link, up_bytes: int, down_bytes: int, connection: Connection) -> float:
    """Milliseconds that a connection which is not warm adds: the sum over its windows w of RTT + S - w x S where positive, S
    the time of a packet (Cardwell, Savage, Anderson: Modeling TCP latency, INFOCOM 2000, without losses)."""
    if connection == "warm":
        return 0.0
    waited = link.rtt_ms if connection == "cold" else 0.0
    rates = (min(rate, link.ceiling_bits_per_s) for rate in (link.up_bits_per_s, link.down_bits_per_s))
    sizes = (up_bytes + link.request_overhead_bytes, down_bytes + link.response_overhead_bytes)
    for rate, size in zip(rates, sizes, strict=True):
        packet_ms = 8e3 * (link.packet_bytes + link.packet_overhead_bytes) / rate
        left, window = math.ceil(size / link.packet_bytes), INITIAL_WINDOW_PACKETS
        while left > window and (wait := link.rtt_ms + packet_ms - window * packet_ms) > 0:
            waited += wait
            left, window = left - window, 2 * window
    return waited


def rate_text(bits_per_s: float) -> str:
    """A rate in three digits with its unit."""
    for size, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if bits_per_s >= 0.9995 * size:
            return f"{bits_per_s / size:.3g} {unit}"
    return f"{bits_per_s:.3g} bit/s"


@functools.cache
def presets() -> Mapping[str, Link]:
    """Links by name; each says where its numbers come from, and which of them are assumptions."""
    rows = tomllib.loads(Path(__file__).with_name("links.toml").read_text(encoding="utf-8"))["link"]
    return {row["name"]: fields.read(Link, row, f"link {row['name']}", LinkError) for row in rows}


def parse(text: str) -> Link:
    """A link from text: a preset's name, or rate and round trip, then what differs. Raises LinkError for anything else.

    `10mbit,20ms`; `5mbit/20mbit,30ms` (up/down); `250kbit,20ms,loss=1%,jitter=5ms`; `up=…,down=…,rtt=…`; `wifi,loss=2%`.
    Units are bit, kbit, mbit, gbit (a second; powers of 1000), us, ms, s and %.
    """
    first, *rest = [part.strip().lower() for part in text.split(",")]
    known = presets()
    base = known.get(first)
    if base is None and re.fullmatch(r"[a-z][a-z0-9_-]*", first):
        raise LinkError(f"link {text!r}: {first!r} is none of {', '.join(known)}", f"--link {_FORM}")
    given: dict[str, float] = {}
    for part in rest if base is not None else [first, *rest]:
        for name, value in _item(text, part):
            if name in given:
                raise LinkError(f"link {text!r}: {name} is given twice", f"--link {_FORM}")
            given[name] = value
    if base is None:
        missing = [name for name in ("up", "down", "rtt") if name not in given]
        if missing:
            told = {("rtt",): "its round trip", ("up", "down"): "its rate"}.get(tuple(missing), " and ".join(missing))
            raise LinkError(f"link {text!r} does not say {told}", f"--link {_FORM}")
        base = Link(given["up"], given["down"], given["rtt"])
    elif given:
        base = replace(base, source=f"{', '.join(given)} as given, else: {base.source}")
    up, down = given.get("up", base.up_bits_per_s), given.get("down", base.down_bits_per_s)
    rtt_ms, jitter_ms = given.get("rtt", base.rtt_ms), given.get("jitter", base.jitter_ms)
    loss = given.get("loss", base.loss)
    return replace(base, up_bits_per_s=up, down_bits_per_s=down, rtt_ms=rtt_ms, jitter_ms=jitter_ms, loss=loss)


def _item(text: str, part: str) -> list[tuple[str, float]]:
    """Names and values of one part: its key, or what its unit says that it is."""
    key, equals, value = part.partition("=")
    if not equals:
        key, value = "", part
    if equals and key not in _KEYS:
        raise LinkError(f"link {text!r}: {key!r} is none of {', '.join(_KEYS)}", f"--link {_FORM}")
    if key in ("", "rate") and (rates := [_RATE.fullmatch(one.strip()) for one in re.split("/(?!s)", value)]) and len(rates) <= 2:
        values = [float(match[1]) * _BITS[match[2]] for match in rates if match]
        if len(values) == len(rates):
            return [("up", values[0]), ("down", values[-1])]
    if key in ("up", "down") and (match := _RATE.fullmatch(value)):
        return [(key, float(match[1]) * _BITS[match[2]])]
    if key in ("", "rtt", "jitter") and (match := _TIME.fullmatch(value)):
        return [(key or "rtt", float(match[1]) * _MS[match[2]])]
    if key == "loss" and (match := _SHARE.fullmatch(value)):
        return [("loss", float(match[1]) / 100)]
    raise LinkError(
        f"link {text!r}: {part!r} is no {key or 'rate (bit, kbit, mbit, gbit), nor a time (us, ms, s)'}", f"--link {_FORM}"
    )
