"""Reuse factors drawn: cycles over LUTs, logarithmic, with intervals; marks inside the estimator's data are filled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .cut_chart import in_short
from .page_drawing import plain
from .reuse_table import NAMES, factors

if TYPE_CHECKING:
    from .reuse_search import Choice, ReuseSearch

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1040, 620, 84, 270, 100, 64
"""Pixels of the picture, and of its margins."""
_INK, _GRID, _MUTED, _FRONT, _OTHER, _BEYOND = "#26323c", "#e3e8ec", "#5b6b78", "#0b62a4", "#8fb8d6", "#b9c2ca"
_TAKEN, _SAFE, _LIMIT = "#b5472f", "#2a9d8f", "#b5472f"
FAR = 4
"""A part that has so many times the LUTs of the largest choice is told of, not drawn."""
_LONGEST = 34
"""Characters of a name or of reuse factors beside the picture."""


def svg(found: ReuseSearch) -> str:
    """The picture as one file that needs nothing else; the reuse factors of a mark are said where the pointer rests on it."""
    have = found.capacity["lut"].have
    shown = _shown(found)
    widths, heights = (
        [*(choice.value(name) for choice in found.choices), *(end for choice in shown for end in _reach(choice, name))]
        for name in ("lut", "cycles")
    )
    if have <= FAR * max(widths):
        widths.append(float(have))
    x, wide = _axis(widths, LEFT, WIDTH - RIGHT)
    y, high = _axis(heights, HEIGHT - BOTTOM, TOP)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, Helvetica, Arial, sans-serif" font-size="13" fill="{_INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="26" font-size="17" font-weight="600">'
        f"{plain(found.model)}: reuse factors on {plain(found.device)}</text>",
        f'<text x="{LEFT}" y="46" fill="{_MUTED}">by estimate; hls4ml, strategy {found.strategy}, {plain(found.part)}, clock of '
        f"{found.clock_ns:g} ns</text>",
        f'<text x="{LEFT}" y="64" fill="{_MUTED}">bars: where cycles and LUTs lie in eight of ten cases</text>',
    ]
    for tick in _ticks(high):
        parts.append(f'<path d="M{LEFT} {y(tick)}H{right}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{LEFT - 10}" y="{y(tick) + 4.5:g}" text-anchor="end">{_tick(tick)}</text>')
    for tick in _ticks(wide):
        parts.append(f'<path d="M{x(tick)} {TOP}V{bottom}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{x(tick)}" y="{bottom + 20}" text-anchor="middle">{_tick(tick)}</text>')
    middle = f"{(LEFT + right) / 2:g}", f"{(TOP + bottom) / 2:g}"
    parts.append(f'<text x="{middle[0]}" y="{HEIGHT - 18}" text-anchor="middle">LUTs (logarithmic)</text>')
    told = "cycles from an input to its result (logarithmic)"
    parts.append(f'<text transform="translate(22 {middle[1]}) rotate(-90)" text-anchor="middle">{told}</text>')
    parts += _limits(found, x, y, (wide, high))
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="{_INK}"/>')
    behind = [choice for choice in found.choices if choice not in shown]
    parts += [_mark(choice, x, y, 2.6, _OTHER if choice.within else _BEYOND) for choice in behind]
    parts += [_bars(choice, x, y) for choice in shown]
    steps = [(x(choice.value("lut")), y(choice.value("cycles"))) for choice in found.best]
    parts.append(f'<path d="{_stairs(steps)}" fill="none" stroke="{_FRONT}" stroke-width="1.4"/>')
    parts += [_mark(choice, x, y, 4.6, _FRONT) for choice in shown]
    parts += [_ring(choice, x, y, colour) for choice, colour, _ in _ringed(found)]
    return "\n".join([*parts, *_legend(found, right + 26), "</svg>"]) + "\n"


def _axis(values: Sequence[float], start: int, end: int) -> tuple[Callable[[float], float], tuple[float, float]]:
    """From a value to its pixel, and the ends of the axis: a little beyond all values."""
    low, high = max(1.0, min(values)) / 1.15, max(1.0, *values) * 1.15
    span = math.log(high / low)

    def place(value: float) -> float:
        return round(start + (end - start) * math.log(max(value, low) / low) / span, 1)

    return place, (low, high)


def _ticks(ends: tuple[float, float]) -> list[float]:
    """1, 2 and 5 of each decade, or 1 alone where these were too many."""
    steps = (1, 2, 5) if ends[1] / ends[0] < 10**3.2 else (1,)
    return [step * 10.0**power for power in range(12) for step in steps if ends[0] <= step * 10.0**power <= ends[1]]


def _tick(count: float) -> str:
    return f"{count:,.0f}" if count < 10_000 else in_short(count)


def _shown(found: ReuseSearch) -> tuple[Choice, ...]:
    """The choices with large marks and with intervals."""
    return tuple(choice for choice in found.choices if choice.best or choice is found.safe)


def _reach(choice: Choice, name: str) -> tuple[float, float]:
    """The interval of a figure."""
    ends = choice.find(name).interval
    assert ends is not None
    return ends.low, ends.high


def _limits(
    found: ReuseSearch,
    x: Callable[[float], float],
    y: Callable[[float], float],
    ends: tuple[tuple[float, float], tuple[float, float]],
) -> list[str]:
    """What the part has of LUTs, and what the user allows where that is less."""
    have, bottom, right = found.capacity["lut"].have, HEIGHT - BOTTOM, WIDTH - RIGHT
    lines = [(float(have), f"the part: {have:,} LUTs", "start", -4)]
    if found.limits["lut"] < have:
        lines.append((found.limits["lut"], f"limit: {found.limits['lut']:,.0f} LUTs", "end", 4))
    parts = []
    for bound, told, anchor, beside in lines:
        if bound > ends[0][1]:
            told, at, anchor = f"{told} →", float(right), "end"
        else:
            at = x(bound)
            parts.append(f'<path d="M{at} {TOP}V{bottom}" stroke="{_LIMIT}" stroke-width="1.6" stroke-dasharray="6 4"/>')
            at += beside
        parts.append(f'<text x="{at:g}" y="{TOP - 8}" text-anchor="{anchor}" fill="{_LIMIT}">{told}</text>')
    bound = found.limits.get("cycles", math.inf)
    if ends[1][0] <= bound <= ends[1][1]:
        parts.append(f'<path d="M{LEFT} {y(bound)}H{right}" stroke="{_LIMIT}" stroke-width="1.6" stroke-dasharray="6 4"/>')
        parts.append(
            f'<text x="{right - 6}" y="{y(bound) - 6:g}" text-anchor="end" fill="{_LIMIT}">limit: {bound:,.0f} cycles</text>'
        )
    return parts


def _mark(choice: Choice, x: Callable[[float], float], y: Callable[[float], float], radius: float, colour: str) -> str:
    inside = colour if not choice.extrapolated else "#ffffff"
    width = 1.8 if radius > 4 else 1
    return (
        f'<circle cx="{x(choice.value("lut"))}" cy="{y(choice.value("cycles"))}" r="{radius}" fill="{inside}" stroke="{colour}" '
        f'stroke-width="{width}"><title>{plain(_titled(choice))}</title></circle>'
    )


def _titled(choice: Choice) -> str:
    told = ", ".join(f"{name} {factor}" for name, factor in choice.reuse_factors.items())
    costs = ", ".join(f"{name} {choice.value(name):,.0f}" for name in ("cycles", "lut", "ff", "dsp", "bram"))
    where = f"extrapolated: {', '.join(choice.unlike)}" if choice.extrapolated else "inside the estimator's data"
    return f"reuse {told}; {costs}; {choice.fill:.0%} of the part's {choice.fullest}; {where}"


def _bars(choice: Choice, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    (least, most), (fast, slow) = _reach(choice, "lut"), _reach(choice, "cycles")
    at_x, at_y = x(choice.value("lut")), y(choice.value("cycles"))
    path = f"M{x(least)} {at_y}H{x(most)}M{at_x} {y(fast)}V{y(slow)}"
    return f'<path d="{path}" stroke="{_FRONT}" stroke-opacity=".28" stroke-width="2"/>'


def _stairs(points: Sequence[tuple[float, float]]) -> str:
    """What can be had: from one choice down in cycles only at the LUTs of the next."""
    (px, py), *rest = points
    return f"M{px:g} {py:g}" + "".join(f"V{after_y:g}H{after_x:g}" for after_x, after_y in rest)


def _ringed(found: ReuseSearch) -> list[tuple[Choice, str, str]]:
    """What is taken, and what would be to be safe, where that is another."""
    rings = [(found.taken, _TAKEN, "fewest cycles within the limits")]
    if found.safe is not None and found.safe is not found.taken:
        rings.append((found.safe, _SAFE, "… by the intervals' high ends"))
    return rings


def _ring(choice: Choice, x: Callable[[float], float], y: Callable[[float], float], colour: str) -> str:
    at = f'cx="{x(choice.value("lut"))}" cy="{y(choice.value("cycles"))}"'
    return f'<circle {at} r="9" fill="none" stroke="{colour}" stroke-width="2.2"/>'


def _legend(found: ReuseSearch, left: int) -> list[str]:
    """What the marks are, and the two choices that are ringed."""
    inside = sum(not choice.extrapolated for choice in found.choices)
    beyond = sum(not choice.within for choice in found.choices)
    dot = f'cx="{left + 9}"'
    rows: list[tuple[str, str, str]] = [
        (f'<circle {dot} cy="-4" r="4.6" fill="{_FRONT}"/>', f"inside the estimator's data ({inside})", ""),
        (
            f'<circle {dot} cy="-4" r="4.6" fill="#ffffff" stroke="{_FRONT}" stroke-width="1.8"/>',
            f"extrapolated ({len(found.choices) - inside})", "",
        ),
        (
            f'<path d="M{left} -4h18" stroke="{_FRONT}" stroke-width="1.4"/>', "none has fewer cycles for",
            "as few LUTs, within the limits",
        ),
        (
            f'<circle {dot} cy="-4" r="2.6" fill="#ffffff" stroke="{_OTHER}"/>', "none beats them in DSPs,",
            "flip-flops and block RAM too",
        ),
    ]  # fmt: skip
    if beyond:
        over = [name for name, bound in found.limits.items() if any(choice.value(name) > bound for choice in found.choices)]
        told = f"of {', '.join(NAMES.get(name, name) for name in over)}"
        rows.append((f'<circle {dot} cy="-4" r="2.6" fill="#ffffff" stroke="{_BEYOND}"/>', f"beyond the limits ({beyond})", told))
    for choice, colour, told in _ringed(found):
        rows.append((f'<circle {dot} cy="-4" r="8" fill="none" stroke="{colour}" stroke-width="2.2"/>', told, _named(choice)))
    parts, at = [], TOP + 16
    for drawn, told, more in rows:
        parts.append(f'<g transform="translate(0 {at})">{drawn}<text x="{left + 28}">{plain(told)}</text>')
        if more:
            parts.append(f'<text x="{left + 28}" y="17" font-size="12" fill="{_MUTED}">{plain(more)}</text>')
        parts.append("</g>")
        at += 44 if more else 27
    parts.append(f'<text x="{left}" y="{at + 8}" font-weight="600">reuse factors are of</text>')
    names = [layer.name for layer in found.layers]
    shown = names if len(names) <= 8 else [*names[:6], "…", names[-1]]
    for name in shown:
        at += 18
        parts.append(f'<text x="{left}" y="{at + 10}" font-size="12" fill="{_MUTED}">{plain(_short(name))}</text>')
    return parts


def _named(choice: Choice) -> str:
    return _short(f"{factors(choice)}: {choice.value('cycles'):,.0f} cycles")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:12]}…{text[-(_LONGEST - 13) :]}"
