"""Plans drawn: the latency of options over the rate of the link, both logarithmic, and the rates at which the best changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgesdk_targets.link import rate_text
from edgesdk_targets.plan import in_ms

from .page_drawing import plain

if TYPE_CHECKING:
    from edgesdk_targets.breakeven import Line
    from edgesdk_targets.plan import Plan

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 560, 84, 250, 84, 64
"""Pixels of the picture, and of its margins."""
STEPS = 120
"""Straight pieces of a curve."""
SPLITS = 4
"""Splits drawn at most."""
_INK, _GRID, _MUTED, _LOCAL, _OFFLOAD = "#26323c", "#e3e8ec", "#5b6b78", "#b5472f", "#7a5ea8"
_SPLIT = ("#0b62a4", "#2a9d8f", "#c08a1e", "#5aa0d8")
_HALO = 'stroke="#ffffff" stroke-width="3" paint-order="stroke"'


def svg(found: Plan) -> str:
    """The picture as one file that needs nothing else."""
    lines = _drawn(found)
    low, high = _rates(found)
    rates = [low * (high / low) ** (step / STEPS) for step in range(STEPS + 1)]
    times = {line.name: [line.ms(found.link.at(rate)) for rate in rates] for line in lines}
    bottom_ms, top_ms = _span([ms for one in times.values() for ms in one])

    def x(rate: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * math.log(rate / low) / math.log(high / low), 1)

    def y(ms: float) -> float:
        place = TOP + (HEIGHT - TOP - BOTTOM) * math.log(top_ms / max(ms, 1e-9)) / math.log(top_ms / bottom_ms)
        return round(min(max(place, TOP), HEIGHT - BOTTOM), 1)

    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, Helvetica, Arial, sans-serif" font-size="13" fill="{_INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="26" font-size="17" font-weight="600">{plain(found.model)}: where to run it</text>',
        f'<text x="{LEFT}" y="46" fill="{_MUTED}">{plain(f"{found.device}, {found.server} as its server; {found.link}")}</text>',
        f'<text x="{LEFT}" y="64" fill="{_MUTED}">expected latency; shaded: where it may lie, for those that are the fastest '
        "somewhere</text>",
    ]
    for tick in _ticks(bottom_ms, top_ms):
        parts.append(f'<path d="M{LEFT} {y(tick)}H{right}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{LEFT - 10}" y="{y(tick) + 4.5:g}" text-anchor="end">{tick:,g}</text>')
    for power in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1):
        at = x(10.0**power)
        parts.append(f'<path d="M{at} {TOP}V{bottom}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 20}" text-anchor="middle">{rate_text(10.0**power)}</text>')
    middle = f"{(LEFT + right) / 2:g}", f"{(TOP + bottom) / 2:g}"
    told = "rate of the link, up" + ("" if found.link.up_bits_per_s == found.link.down_bits_per_s else "; down in proportion")
    parts.append(f'<text x="{middle[0]}" y="{HEIGHT - 18}" text-anchor="middle">{told} (logarithmic)</text>')
    parts.append(
        f'<text transform="translate(22 {middle[1]}) rotate(-90)" text-anchor="middle">ms for one request (logarithmic)</text>'
    )
    colours = _colours(lines)
    for line in lines:
        if line.name in found.best:
            ends = [[line.corner(*(3 * (end,))).ms(found.link.at(rate)) for rate in rates] for end in (0, 1)]
            edge = [(x(rate), y(ms)) for rate, ms in zip(rates, ends[0], strict=True)]
            edge += reversed([(x(rate), y(ms)) for rate, ms in zip(rates, ends[1], strict=True)])
            parts.append(f'<path d="{_path(edge)}Z" fill="{colours[line.name]}" fill-opacity=".10"/>')
    for line in lines:
        curve = _path([(x(rate), y(ms)) for rate, ms in zip(rates, times[line.name], strict=True)])
        width = 2.6 if line.name in found.best else 1.4
        parts.append(
            f'<path d="{curve}" fill="none" stroke="{colours[line.name]}" stroke-width="{width}" stroke-linejoin="round">'
            f"<title>{plain(line.name)}</title></path>"
        )
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="{_INK}"/>')
    own = x(found.link.up_bits_per_s)
    parts.append(f'<path d="M{own} {TOP}V{bottom}" stroke="{_INK}" stroke-dasharray="4 4"/>')
    parts.append(f'<text x="{own + 6:g}" y="{bottom - 8}" {_HALO}>this link, {rate_text(found.link.up_bits_per_s)}</text>')
    parts += _crossings(found, lines, x, y)
    parts += _legend(found, lines, colours, right + 22)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _drawn(found: Plan) -> list[Line]:
    """All but splits, the fastest at some rate, and for the room left the fastest here of those that none beats, or of all."""
    kept = {option.name for option in found.options if option.way.kind != "split" or option.name in found.best}
    others = sorted((line for line in found.lines if line.name not in kept), key=lambda line: line.ms(found.link))
    rest = [line for line in others if line.name in found.unbeaten] or others[:1]
    splits = sum(option.name in kept and option.way.kind == "split" for option in found.options)
    kept |= {line.name for line in rest[: max(0, SPLITS - splits)]}
    return [line for line in found.lines if line.name in kept]


def _colours(lines: Sequence[Line]) -> dict[str, str]:
    found, left = {}, list(_SPLIT)
    for line in lines:
        if line.name == "local":
            found[line.name] = _LOCAL
        elif line.name == "offload":
            found[line.name] = _OFFLOAD
        else:
            found[line.name] = left.pop(0) if left else _MUTED
    return found


def _rates(found: Plan) -> tuple[float, float]:
    """Whole decades of rates around the link's and those at which the best changes, a decade beyond either side at the most."""
    marks = [found.link.up_bits_per_s, *(one.rate_bits_per_s for one in found.crossovers)]
    low, high = min(marks), max(marks)
    return 10.0 ** math.floor(math.log10(low) - 0.5), 10.0 ** math.ceil(math.log10(high) + 0.5)


def _span(times: Sequence[float]) -> tuple[float, float]:
    """Ends of the axis of time: the decades' halves (1, 3, 10) around all values."""
    low, high = max(min(times), 1e-3), max(*times, 1e-3)
    steps = [step * 10.0**power for power in range(-4, 12) for step in (1, 3)]
    return max(step for step in steps if step <= low * 0.9), min(step for step in steps if step >= high * 1.1)


def _ticks(low: float, high: float) -> list[float]:
    steps = (1,) if high / low > 10**3.5 else (1, 3)
    found = [step * 10.0**power for power in range(-4, 12) for step in steps]
    return [tick for tick in found if low * 0.999 <= tick <= high * 1.001]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{px:g} {py:g}" for px, py in points)


def _crossings(found: Plan, lines: Sequence[Line], x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    """Where neighbours meet: a point, its rate, and a bar for where that may lie."""
    parts = []
    low, high = _rates(found)
    for index, one in enumerate(found.crossovers):
        line = next(line for line in lines if line.name == one.above)
        at, height = x(one.rate_bits_per_s), y(line.ms(found.link.at(one.rate_bits_per_s)))
        ends = [x(min(max(end, low), high)) for end in (one.low_bits_per_s or low, one.high_bits_per_s or high)]
        bar = TOP + 14 + 22 * index
        parts.append(f'<path d="M{at} {bar}V{height}" stroke="{_MUTED}" stroke-dasharray="2 3"/>')
        parts.append(f'<path d="M{ends[0]} {bar}H{ends[1]}M{ends[0]} {bar - 4}v8M{ends[1]} {bar - 4}v8" stroke="{_MUTED}"/>')
        parts.append(f'<circle cx="{at}" cy="{bar}" r="3" fill="{_MUTED}"/>')
        parts.append(
            f'<circle cx="{at}" cy="{height}" r="5" fill="#ffffff" stroke="{_INK}" stroke-width="2">'
            f"<title>{plain(one.below)} below, {plain(one.above)} above</title></circle>"
        )
        parts.append(
            f'<text x="{at}" y="{bar - 6}" text-anchor="middle" font-size="12" {_HALO}>{rate_text(one.rate_bits_per_s)}</text>'
        )
    return parts


def _legend(found: Plan, lines: Sequence[Line], colours: dict[str, str], left: float) -> list[str]:
    """What each line is, the fastest at this link first."""
    parts = []
    for index, line in enumerate(sorted(lines, key=lambda line: line.ms(found.link))):
        at = TOP + 10 + 38 * index
        name = line.name if len(line.name) <= 28 else f"{line.name[:8]}…{line.name[-19:]}"
        weight = ' font-weight="600"' if line.name == found.winner else ""
        parts.append(f'<path d="M{left} {at}h22" stroke="{colours[line.name]}" stroke-width="3"/>')
        parts.append(f'<text x="{left + 30}" y="{at + 4.5:g}"{weight}>{plain(name)}</text>')
        parts.append(
            f'<text x="{left + 30}" y="{at + 20.5:g}" font-size="12" fill="{_MUTED}">{in_ms(line.ms(found.link))} here</text>'
        )
    return parts
