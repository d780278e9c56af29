"""What the page's charts are drawn with: axes, marks and text as SVG that takes its colours from the page's style sheet.

A chart is 400 units wide, so that its 12-unit letters can be read on a phone; colours are classes s0 to s7, each with a mark of
its own, so that nothing is told by colour alone.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH = 400
SERIES = 8
"""Colours and marks that can be told apart; more series begin anew."""
_NOT_XML = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TURNS = re.compile("[\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
"""Characters that turn or hide the text around them."""


def printable(text: object) -> str:
    """Text without characters that a terminal would obey, or that turn or hide what stands around them."""
    return _TURNS.sub("\ufffd", _NOT_XML.sub("\ufffd", str(text)))


def plain(text: object) -> str:
    """Any text as HTML or XML text, quotes escaped too: names are what a stranger's file says."""
    return html.escape(printable(text))


def short(name: str, most: int) -> str:
    """A name in at most so many characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def number(value: float) -> str:
    """Three digits, thousands apart: 0.122, 79.9, 1,230."""
    if value == 0:
        return "0"
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.2g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def thousands(value: float, digits: int = 3) -> str:
    """In so many digits, thousands as k: 0.31, 53, 439k, 3.49M."""
    rounded = float(f"{value:.{digits}g}")
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if rounded >= size:
            return f"{number(rounded / size)}{letter}"
    return number(rounded)


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` between two places in the picture; `logarithmic` ones must be above 0."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = True

    @classmethod
    def around(cls, values: Sequence[float], begin: float, end: float, logarithmic: bool = True, room: float = 0.06) -> Axis:
        """An axis with room around all values, at either end that share of their span."""
        low, high = min(values), max(values)
        if logarithmic:
            ratio = max((high / low) ** room, 1.25)
            return cls(low / ratio, high * ratio, begin, end)
        room = (high - low) * room or max(abs(high) * 0.1, 1e-9)
        return cls(low - room, high + room, begin, end, False)

    def at(self, value: float) -> float:
        """Where a value lies; those beyond an end lie on it."""
        if self.logarithmic:
            share = math.log(max(value, 1e-30) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.begin + min(max(share, 0.0), 1.0) * (self.end - self.begin), 1)

    def ticks(self, most: int = 7) -> list[float]:
        """Round values on the axis, at most so many."""
        if not self.logarithmic:
            span = self.high - self.low
            power = 10.0 ** math.floor(math.log10(span))
            steps = [power * step for step in (0.1, 0.2, 0.5, 1, 2, 5)]
            step = next(step for step in steps if span / step <= most)
            first = math.ceil(self.low / step - 1e-9)
            return [round(step * index, 12) for index in range(first, math.floor(self.high / step + 1e-9) + 1)]
        powers = range(math.floor(math.log10(self.low)) - 1, math.ceil(math.log10(self.high)) + 2)
        found: list[float] = []
        for steps_of in ((1, 2, 5), (1, 3), (1,)):
            found = [step * 10.0**power for power in powers for step in steps_of]
            found = [tick for tick in found if self.low * 0.999 <= tick <= self.high * 1.001]
            if len(found) <= most:
                return found
        return found[:: math.ceil(len(found) / most)]


def picture(height: float, label: str, parts: Sequence[str], width: float = WIDTH) -> str:
    """A whole SVG; `label` says in words what it shows."""
    body = "\n".join(parts)
    return f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{plain(label)}">\n{body}\n</svg>'


def frame(x: Axis, y: Axis, titles: tuple[str, str], tell: tuple[Callable[[float], str], Callable[[float], str]]) -> list[str]:
    """Grid, ticks and titles of two axes; the y title lies above the axis, where it needs no turning."""
    left, right = sorted((x.begin, x.end))
    top, bottom = sorted((y.begin, y.end))
    parts = []
    for tick in x.ticks():
        at = x.at(tick)
        parts.append(f'<path class="grid" d="M{at} {top}V{bottom}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 16:g}" text-anchor="middle">{plain(tell[0](tick))}</text>')
    for tick in y.ticks():
        at = y.at(tick)
        parts.append(f'<path class="grid" d="M{left} {at}H{right}"/>')
        parts.append(f'<text x="{left - 6:g}" y="{at + 4:g}" text-anchor="end">{plain(tell[1](tick))}</text>')
    parts.append(f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>')
    parts.append(
        f'<text class="title" x="{(left + right) / 2:g}" y="{bottom + 34:g}" text-anchor="middle">{plain(titles[0])}</text>'
    )
    parts.append(f'<text class="title" x="4" y="{top - 9:g}">{plain(titles[1])}</text>')
    return parts


def mark(series: int, x: float, y: float, *, filled: bool, size: float = 5.0, title: str = "") -> str:
    """A series' mark at a place: its shape and colour; hollow for what is estimated."""
    told = f"<title>{plain(title)}</title>" if title else ""
    kind = "full" if filled else "hollow"
    return f'<path class="mark {kind} s{series % SERIES}" d="{_outline(series % SERIES, x, y, size)}">{told}</path>'


def _outline(shape: int, x: float, y: float, size: float) -> str:
    """Circle, square, triangle, diamond, triangle downwards, plus, hexagon, cross: of about equal area."""
    if shape == 0:
        return f"M{x - size:g} {y:g}a{size:g} {size:g} 0 1 0 {2 * size:g} 0a{size:g} {size:g} 0 1 0 {-2 * size:g} 0Z"
    turns = {1: (4, 45.0, 1.25), 2: (3, 90.0, 1.4), 3: (4, 0.0, 1.3), 4: (3, -90.0, 1.4), 6: (6, 0.0, 1.1)}
    if shape in turns:
        corners, first, scale = turns[shape]
        radius = size * scale
        angles = [math.radians(first + 360 * index / corners) for index in range(corners)]
        return "M" + "L".join(f"{x + radius * math.cos(a):.1f} {y - radius * math.sin(a):.1f}" for a in angles) + "Z"
    arm, half = size * 1.25, size * 0.42
    steps = [(-half, -arm), (half, -arm), (half, -half), (arm, -half), (arm, half), (half, half),
             (half, arm), (-half, arm), (-half, half), (-arm, half), (-arm, -half), (-half, -half)]  # fmt: skip
    if shape == 7:
        root = math.sqrt(0.5)
        steps = [(root * (dx - dy), root * (dx + dy)) for dx, dy in steps]
    return "M" + "L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in steps) + "Z"


def spread_apart(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Places for labels near those wanted, at least so far from each other, between two bounds; the order is kept."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    found = [0.0] * len(places)
    before = low - least
    for index in order:
        before = found[index] = max(places[index], before + least)
    after = high + least
    for index in reversed(order):
        after = found[index] = min(found[index], after - least)
    return found
