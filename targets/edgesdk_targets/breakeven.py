"""Break-even rates: options that take a + b / R each, which of them is the fastest at what rate R, and where that changes.

Over x = 1 / R an option is a line, and the fastest of all follow their lower envelope. With loss TCP has a ceiling (see link.py):
faster links than that change nothing, so the lines have a bend there, at the same x for all, and are straight between bends.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .link import MODEL_ERROR, Cost, Link

CORNERS = tuple((device, server, link) for device in (0, 1) for server in (0, 1) for link in (0, 1))
"""Device, server and link, each at the low (0) or at the high end (1) of its interval."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Milliseconds of an option: fixed_ms + 1000 x (up_bits / R up + down_bits / R down).

    `head_ms`, `tail_ms` and `waiting_ms` are the low and high ends of its parts: device, server, and what of the link does not
    depend on the rate.
    """

    name: str
    fixed_ms: float
    up_bits: float = 0.0
    down_bits: float = 0.0
    head_ms: Range = (0.0, 0.0)
    tail_ms: Range = (0.0, 0.0)
    waiting_ms: Range = (0.0, 0.0)

    def corner(self, device: int, server: int, link: int) -> Line:
        """The line where device, server and link err in these directions, the link by its model's error too."""
        error = (1 - MODEL_ERROR, 1 + MODEL_ERROR)[link]
        fixed_ms = self.head_ms[device] + self.tail_ms[server] + self.waiting_ms[link] * error
        return replace(self, fixed_ms=fixed_ms, up_bits=self.up_bits * error, down_bits=self.down_bits * error)

    def ms(self, link: Link) -> float:
        """Milliseconds at the link's rates."""
        return self.fixed_ms + Cost(0.0, self.up_bits, self.down_bits, 0.0, 0.0).sending_ms(link)


@dataclass(frozen=True)
class Crossover:
    """The rate up at which two options take as long: `below` is faster on slower links, `above` on faster ones.

    `low` and `high` are where the rate lies as the figures of device, server and link do; None: there is no such bound.
    """

    rate_bits_per_s: float
    below: str
    above: str
    low_bits_per_s: float | None = None
    high_bits_per_s: float | None = None


@dataclass(frozen=True)
class _Piece:
    """A stretch of x (seconds a bit, up) in which lines are straight."""

    low: float
    high: float
    up: bool
    down: bool

    def straight(self, line: Line, link: Link) -> Range:
        """Intercept (ms) and slope (ms x bit/s) of a line here; above the ceiling the rate is the ceiling's."""
        ceiling, ratio = link.ceiling_bits_per_s, link.down_bits_per_s / link.up_bits_per_s
        intercept, slope = line.fixed_ms, 0.0
        for moves, bits, share in ((self.up, line.up_bits, 1.0), (self.down, line.down_bits, ratio)):
            intercept += 0.0 if moves else 1e3 * bits / ceiling
            slope += 1e3 * bits / share if moves else 0.0
        return intercept, slope


def _pieces(link: Link) -> list[_Piece]:
    up = 1 / link.ceiling_bits_per_s
    down = up * link.down_bits_per_s / link.up_bits_per_s
    bends = sorted({0.0, up, down, math.inf})
    return [_Piece(low, high, low >= up, low >= down) for low, high in itertools.pairwise(bends)]


def envelope(lines: Sequence[Line], link: Link) -> tuple[tuple[str, ...], tuple[Crossover, ...]]:
    """Names of the options that are the fastest somewhere, slowest link first, and the rates between them.

    The link says its round trip, its loss and how its rates up and down relate; of equal options the first counts.
    """
    if not lines:
        return (), ()
    passed: list[tuple[float, Line]] = []
    for piece in _pieces(link):
        straight = {line.name: piece.straight(line, link) for line in lines}
        at = piece.low

        def key(line: Line, at: float = at, straight: dict[str, Range] = straight) -> Range:
            intercept, slope = straight[line.name]
            return intercept + slope * at, slope

        now = min(lines, key=key)
        if passed and key(passed[-1][1])[0] <= key(now)[0] * (1 + 1e-12):
            now = passed[-1][1]
        else:
            passed.append((at, now))
        while True:
            intercept, slope = straight[now.name]
            meeting = [
                (max(at, (other[0] - intercept) / (slope - other[1])), other[1], index)
                for index, other in enumerate(straight[line.name] for line in lines)
                if other[1] < slope
            ]
            if not meeting or min(meeting)[0] >= piece.high:
                break
            at, _, index = min(meeting)
            now = lines[index]
            if at == passed[-1][0]:  # so near to an endless rate that floats do not tell it from one
                passed.pop()
            passed.append((at, now))
    crossings = [
        _bounded(Crossover(1 / at, slow.name, fast.name), slow, fast, link)
        for (_, fast), (at, slow) in itertools.pairwise(passed)
    ]
    return tuple(line.name for _, line in reversed(passed)), tuple(reversed(crossings))


def _bounded(found: Crossover, slow: Line, fast: Line, link: Link) -> Crossover:
    rates = [_meeting(slow.corner(*corner), fast.corner(*corner), link) for corner in CORNERS]
    low, high = min(found.rate_bits_per_s, *rates), max(found.rate_bits_per_s, *rates)
    return replace(found, low_bits_per_s=low or None, high_bits_per_s=high if math.isfinite(high) else None)


def _meeting(slow: Line, fast: Line, link: Link) -> float:
    """The rate up below which `slow` is the faster of two: infinite where it always is, 0 where it never is."""
    for piece in _pieces(link):
        a, b = piece.straight(slow, link), piece.straight(fast, link)
        if b[0] + b[1] * piece.low > a[0] + a[1] * piece.low:
            return 1 / piece.low if piece.low else math.inf
        if b[1] > a[1] and (at := (a[0] - b[0]) / (b[1] - a[1])) < piece.high:
            return 1 / at if at > 0 else math.inf
    return 0.0


def rivals(winner: str, lines: Sequence[Line], link: Link) -> dict[str, tuple[int, int, int]]:
    """Options that are faster than the winner in some corner of the intervals, with the first such corner.

    Device, server and link are taken to err by the same share for all options. Times are linear in each of the three, so an
    option that wins in all corners wins everywhere between them.
    """
    found: dict[str, tuple[int, int, int]] = {}
    own = next(line for line in lines if line.name == winner)
    for corner in CORNERS:
        best = min(lines, key=lambda line: line.corner(*corner).ms(link))
        if best.corner(*corner).ms(link) < own.corner(*corner).ms(link):
            found.setdefault(best.name, corner)
    return found
