"""Cuts drawn: the bytes that cross, on a logarithmic axis, over the head's share of the work; as text or as an SVG picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .page_drawing import plain

if TYPE_CHECKING:
    from edgesdk_converters.split import Cut

    from .cut_table import Survey

COLUMNS, ROWS = 80, 13
"""Characters of the drawing in text, without its labels."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 520, 84, 30, 64, 64
"""Pixels of the picture, and of its margins."""
_FRONT, _OTHER, _INK, _GRID, _END = "#0b62a4", "#a9b7c4", "#26323c", "#e3e8ec", "#b5472f"
_HALO = 'stroke="#ffffff" stroke-width="3" paint-order="stroke"'


def in_short(count: float) -> str:
    """A count in three digits: 803k."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * size:
            number = count / size
            return f"{number:,.0f}{letter}" if number >= 999.5 else f"{number:.3g}{letter}"
    return f"{count:.3g}" if count < 999.5 else f"{count:.0f}"


def text(found: Survey) -> list[str]:
    """A drawing in characters: `o` a cut that no other beats, `.` another, a line where the inputs have as many bytes."""
    low, high = _range(found)
    cells = [[" "] * (COLUMNS + 1) for _ in range(ROWS)]

    def row(size: int) -> int:
        return round((ROWS - 1) * (math.log10(high) - math.log10(max(size, 1))) / (math.log10(high) - math.log10(low)))

    cells[row(found.offload.bytes)] = ["-"] * (COLUMNS + 1)
    for mark, cuts in ((".", found.cuts), ("o", found.front)):
        for cut in cuts:
            cells[row(cut.bytes)][round(COLUMNS * found.head_share(cut))] = mark
    labels = {row(_tick): f"{in_short(_tick)}B" for _tick in _ticks(low, high)}
    lines = [f"bytes that cross (o as in the table's best, . other cuts, - the input, {in_short(found.offload.bytes)}B)"]
    lines += [f"{labels.get(index, ''):>8} |{''.join(line)}".rstrip() for index, line in enumerate(cells)]
    lines.append(f"{'':8} +{''.join('+' if x and x % (COLUMNS // 4) == 0 else '-' for x in range(COLUMNS + 1))}")
    scale = [" "] * (COLUMNS + 5)
    for quarter in range(5):
        at = quarter * COLUMNS // 4
        scale[at : at + 4] = f"{quarter / 4:.0%}".ljust(4)
    lines.append(f"{'':10}{''.join(scale).rstrip()}")
    lines.append(f"{'':10}{'work of the head, in MACs':^{COLUMNS}}".rstrip())
    return lines


def svg(found: Survey, bits: int) -> str:
    """The picture as one file that needs nothing else; what each point is is said where the pointer rests on it."""
    low, high = _range(found)
    span = math.log10(high) - math.log10(low)

    def x(share: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 1)

    def y(size: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (math.log10(high) - math.log10(max(size, 1))) / span, 1)

    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, Helvetica, Arial, sans-serif" font-size="13" fill="{_INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="26" font-size="17" font-weight="600">{plain(found.model)}: where it can be cut</text>',
        f'<text x="{LEFT}" y="46" fill="#5b6b78">{len(found.cuts)} cuts; {in_short(found.local.head_macs)} MACs and '
        f"{in_short(found.local.head_params)} parameters in all</text>",
    ]
    for tick in _ticks(low, high):
        lines.append(f'<path d="M{LEFT} {y(tick)}H{right}" stroke="{_GRID}"/>')
        lines.append(f'<text x="{LEFT - 10}" y="{y(tick) + 4.5}" text-anchor="end">{in_short(tick)}B</text>')
    for step in range(0, 101, 20):
        lines.append(f'<path d="M{x(step / 100)} {TOP}V{bottom}" stroke="{_GRID}"/>')
        lines.append(f'<text x="{x(step / 100)}" y="{bottom + 20}" text-anchor="middle">{step} %</text>')
    middle = f"{(LEFT + right) / 2:g}", f"{(TOP + bottom) / 2:g}"
    lines.append(f'<text x="{middle[0]}" y="{HEIGHT - 18}" text-anchor="middle">work of the head, share of all MACs</text>')
    lines.append(
        f'<text transform="translate(22 {middle[1]}) rotate(-90)" text-anchor="middle">bytes that cross (logarithmic)</text>'
    )
    lines.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="{_INK}"/>')
    ends = [(y(end.bytes), f"{title}, {in_short(end.bytes)}B") for title, end in _ends(found)]
    lines += [f'<path d="M{LEFT} {at}H{right}" stroke="{_END}" stroke-dasharray="5 4"/>' for at, _ in ends]
    if found.front:
        first, *rest = found.front
        path = f"M{x(found.head_share(first))} {y(first.bytes)}"
        path += "".join(f"H{x(found.head_share(cut))}V{y(cut.bytes)}" for cut in rest)
        lines.append(f'<path d="{path}" fill="none" stroke="{_FRONT}" stroke-width="1.5" stroke-opacity=".55"/>')
    for colour, radius, cuts in ((_OTHER, 4, [cut for cut in found.cuts if cut not in found.front]), (_FRONT, 5.5, found.front)):
        for cut in cuts:
            lines.append(
                f'<circle cx="{x(found.head_share(cut))}" cy="{y(cut.bytes)}" r="{radius}" fill="{colour}" stroke="#ffffff">'
                f"<title>{plain(_told(found, cut, bits))}</title></circle>"
            )
    points = [(x(found.head_share(cut)), y(cut.bytes)) for cut in found.cuts]
    lines += _end_labels(ends, points, right)
    lines += _labels([(x(found.head_share(cut)), y(cut.bytes), " + ".join(cut.tensors)) for cut in found.front], right)
    lines.append(f'<circle cx="{right - 292}" cy="22" r="5.5" fill="{_FRONT}"/>')
    lines.append(f'<text x="{right - 280}" y="26.5">no cut beats it in bytes and head work</text>')
    lines.append(f'<circle cx="{right - 292}" cy="42" r="4" fill="{_OTHER}"/><text x="{right - 280}" y="46.5">another cut</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _end_labels(ends: Sequence[tuple[float, str]], points: Sequence[tuple[float, float]], right: int) -> list[str]:
    """What the dashed lines mean, at that end and side of each where the fewest points lie."""
    lines = []
    for at, title in ends:
        length = 7.5 * len(title)
        places = [(anchor, x, line) for line in (at - 7, at + 17) for anchor, x in (("end", right - 4), ("start", LEFT + 8))]
        places = [place for place in places if TOP + 12 < place[2] < HEIGHT - BOTTOM - 3] or places[:1]

        def crowded(place: tuple[str, float, float], length: float = length) -> int:
            anchor, x, line = place
            begin = x - length if anchor == "end" else x
            return sum(begin - 8 < px < begin + length + 8 and line - 18 < py < line + 8 for px, py in points)

        anchor, x, line = min(places, key=crowded)
        lines.append(f'<text x="{x}" y="{line:g}" text-anchor="{anchor}" fill="{_END}" {_HALO}>{title}</text>')
    return lines


def _ends(found: Survey) -> tuple[tuple[str, Cut], tuple[str, Cut]]:
    return ("offload: the input", found.offload), ("local: the output", found.local)


def _labels(points: Sequence[tuple[float, float, str]], right: int) -> list[str]:
    """Names beside points, left out where they would lie over an earlier one."""
    lines: list[str] = []
    taken: list[tuple[float, float, float]] = []
    for x, y, name in points:
        shown = name if len(name) <= 30 else f"…{name[-29:]}"
        length = 6.6 * len(shown)
        begin = x + 9 if x + 9 + length < right else x - 9 - length
        if any(abs(y - 9 - line) < 15 and begin < end and start < begin + length for start, end, line in taken):
            continue
        taken.append((begin, begin + length, y - 9))
        anchor, at = ("start", x + 9) if begin > x else ("end", x - 9)
        lines.append(
            f'<text x="{at:g}" y="{y - 7:g}" text-anchor="{anchor}" font-size="12" fill="{_FRONT}" {_HALO}>{plain(shown)}</text>'
        )
    return lines


def _told(found: Survey, cut: Cut, bits: int) -> str:
    shapes = ", ".join(f"{'x'.join(map(str, shape))} {dtype}" for shape, dtype in zip(cut.shapes, cut.dtypes, strict=True))
    return (
        f"{' + '.join(cut.tensors)}\n{shapes}\n{cut.bytes:,} bytes; {cut.bytes_at(8):,} as int8, {cut.bytes_at(bits):,} with "
        f"{bits} bits\nhead {cut.head_macs:,} MACs ({found.head_share(cut):.1%}), {cut.head_params:,} parameters\n"
        f"tail {cut.tail_macs:,} MACs, {cut.tail_params:,} parameters"
    )


def _range(found: Survey) -> tuple[float, float]:
    """Bytes at the lower and the upper end of the axis: powers of ten, or halves of those."""
    sizes = [max(cut.bytes, 1) for cut in (*found.cuts, found.offload, found.local)]
    low, high = math.floor(2 * math.log10(min(sizes))) / 2, math.ceil(2 * math.log10(max(sizes))) / 2
    return 10**low, 10 ** (high if high > low else low + 0.5)


def _ticks(low: float, high: float) -> list[int]:
    """Round numbers of bytes on the axis: powers of ten, and for short ones what lies between."""
    steps = (1,) if high / low > 10**2.5 else (1, 3) if high / low > 10 else (1, 2, 5)
    found = [step * 10**power for power in range(13) for step in steps]
    return [tick for tick in found if low * 0.999 <= tick <= high * 1.001]
