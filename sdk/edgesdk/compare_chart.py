"""Charts of the comparison's page: size or accuracy over latency, the layers that take most time, and the curve of cuts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from .compare_cells import tag
from .comparing_entries import FPGA
from .cut_chart import in_short
from .page_drawing import Axis, frame, mark, number, picture, plain, printable, short, spread_apart

if TYPE_CHECKING:
    from edgesdk_converters.split import Cut

    from .comparing import Compared
    from .comparing_entries import Entry
    from .cut_table import Survey

FAMILIES = {"raspberry-pi": "Raspberry Pi", "jetson": "Jetson", "": "Phones", FPGA: "FPGA", "server": "Servers"}
"""Titles of the panels, by target; a plugin's target is its own title."""
DODGE = 5.0
"""Units by which, at most, the marks of a panel's devices are moved apart, where one model has all of them in one line."""


@dataclass(frozen=True)
class Panel:
    """One family of devices: a picture, and what its marks mean, as HTML."""

    title: str
    svg: str
    legend: str


@dataclass(frozen=True)
class _Series:
    name: str
    points: tuple[tuple[Compared, Entry], ...]


def panels(models: Sequence[Compared]) -> list[Panel]:
    """A panel for each family of devices that has a latency: all with the same two axes, so that they can be compared."""
    by_accuracy = shows_accuracy(models)
    known = [(one, entry) for one in models for entry in one.entries if entry.latency.value and _height(one, entry, by_accuracy)]
    if not known:
        return []
    ends = [end for _, entry in known for end in _reach(entry)]
    heights = [_height(one, entry, by_accuracy) for one, entry in known]
    x = Axis.around(ends, 56, 272)
    y = Axis.around(heights, 290, 34, logarithmic=not by_accuracy, room=0.13)
    families: dict[str, dict[str, list[tuple[Compared, Entry]]]] = {}
    for one, entry in known:
        way = entry.way
        name = f"{way.device} {way.runtime}" if way.target == FPGA else way.device
        families.setdefault(way.target, {}).setdefault(name, []).append((one, entry))
    order = [*FAMILIES, *(target for target in families if target not in FAMILIES)]
    return [
        _panel(FAMILIES.get(target, target), [_Series(name, tuple(points)) for name, points in families[target].items()], x, y,
               by_accuracy)
        for target in order
        if target in families
    ]  # fmt: skip


def shows_accuracy(models: Sequence[Compared]) -> bool:
    """Whether every model's accuracy is known: else size is drawn."""
    return all(one.accuracy.value is not None for one in models)


def _height(one: Compared, entry: Entry, by_accuracy: bool) -> float:
    """What a mark's height stands for: percent of samples, or bytes, those of the model where a device has none of its own."""
    if by_accuracy:
        return 100 * (entry.cells["accuracy"].value or one.accuracy.value or 0.0)
    sizes = (other.cells["size"].value for other in (entry, *one.entries))
    return float(next((size for size in sizes if size), 0.0))


def _reach(entry: Entry) -> tuple[float, ...]:
    row = entry.latency
    assert row.value is not None
    return (row.value,) if row.interval is None else (max(row.interval.low, row.value / 100), row.value, row.interval.high)


def _panel(title: str, series: Sequence[_Series], x: Axis, y: Axis, by_accuracy: bool) -> Panel:
    unit = (lambda value: f"{value:g}") if by_accuracy else _bytes
    what = "accuracy here, %" if by_accuracy else "size"
    parts = frame(x, y, ("latency, ms", what), (number, unit))
    middle = (len(series) - 1) / 2
    dodge = _dodge([y.at(_height(point[0], point[1], by_accuracy)) for one in series for point in one.points], len(series))
    drawn: dict[str, tuple[float, Compared]] = {}
    bars, marks = [], []
    for index, one in enumerate(series):
        places = []
        for model, entry in sorted(one.points, key=lambda point: _height(point[0], point[1], by_accuracy)):
            base = y.at(_height(model, entry, by_accuracy))
            at, line = x.at(entry.latency.value or 0), round(base + dodge * (index - middle), 1)
            places.append((at, line))
            drawn.setdefault(model.source, (base, model))
            reach = _reach(entry)
            bars.append(f'<path class="bar s{index % 8}" d="M{x.at(reach[0])} {line}H{x.at(reach[-1])}"/>')
            told = f"{model.name} on {one.name}: {_told(entry)}"
            marks.append(mark(index, at, line, filled=entry.latency.provenance != "estimated", size=3.6, title=told))
        if len(places) > 1 and not by_accuracy:
            bars.append(f'<path class="thread s{index % 8}" d="M{"L".join(f"{at} {line}" for at, line in places)}"/>')
    names = list(drawn.values())
    lines = spread_apart([base for base, _ in names], 14, 30, 296)
    for (base, model), line in zip(names, lines, strict=True):
        parts.append(f'<path class="leader" d="M{x.end + 2:g} {base}L{x.end + 8:g} {line:g}"/>')
        parts.append(
            f'<text class="name" x="{x.end + 11:g}" y="{line + 4:g}">{plain(short(printable(model.name), 18))}'
            f"<title>{plain(model.name)}</title></text>"
        )
    legend = "".join(f"<li>{_sample(index)} {plain(one.name)}</li>" for index, one in enumerate(series))
    told = f"{title}: {what} over latency of {len(names)} models on {len(series)} devices, with intervals"
    return Panel(title, picture(334, told, [*parts, *bars, *marks]), f'<ul class="legend">{legend}</ul>')


def _dodge(lines: Sequence[float], series: int) -> float:
    """How far marks of one model are apart: less where the next model's would be among them."""
    found = sorted(set(lines))
    gap = min((after - before for before, after in pairwise(found)), default=math.inf)
    return min(DODGE, max(1.2, gap / (series + 0.5)))


def _sample(index: int) -> str:
    drawn = mark(index, 8, 8, filled=False, size=4.2)
    return f'<svg class="sample" viewBox="0 0 16 16" aria-hidden="true">{drawn}</svg>'


def _told(entry: Entry) -> str:
    row = entry.latency
    assert row.value is not None
    told = f"{number(row.value)} ms, {row.provenance}"
    if row.interval is not None:
        told += f", {number(row.interval.low)} to {number(row.interval.high)} ({row.interval.level:.0%})"
    return told + (", extrapolated" if row.extrapolated else "")


def _bytes(value: float) -> str:
    told = in_short(value)
    return f"{told[:-1]} {told[-1]}B" if told[-1].isalpha() else f"{told} B"


def interval_bar(entry: Entry, x: Axis) -> str:
    """A latency and its interval on the axis that a table's rows share."""
    reach = _reach(entry)
    dot = mark(0, x.at(entry.latency.value or 0), 6, filled=entry.latency.provenance != "estimated", size=3)
    line = f'<path class="bar s0" d="M{x.at(reach[0])} 6H{x.at(reach[-1])}"/>'
    return f'<svg class="spark" viewBox="0 0 {x.end + 6:g} 12" aria-hidden="true">{line}{dot}</svg>'


def spark_axis(entries: Sequence[Entry]) -> Axis | None:
    """The axis of a table's bars, None where no row has a latency."""
    ends = [end for entry in entries if entry.latency.value for end in _reach(entry)]
    return Axis.around(ends, 4, 144) if ends else None


def layers(entry: Entry, count: int) -> str:
    """The heaviest layers of an entry as bars with their names, in HTML; empty where no layer has a time.

    A layer's share of the whole is told only where both come from the same: of a measured whole an estimate is no share.
    """
    heaviest = entry.heaviest(count)
    if not heaviest:
        return ""
    longest = max(row.interval.high if row.interval is not None else row.value or 0 for row in heaviest)
    whole = entry.latency
    rows = []
    for row in heaviest:
        assert row.value is not None
        share = 100 * row.value / longest
        reach = ""
        if row.interval is not None:
            low, high = 100 * row.interval.low / longest, 100 * row.interval.high / longest
            reach = f'<path class="whisker" d="M{low:.1f} 5H{high:.1f}"/>'
        bar = (
            f'<svg class="share" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect class="fill s0" width="{share:.1f}" height="10"/>{reach}</svg>'
        )
        name = printable(row.layer)
        of_whole = f", {row.value / whole.value:.0%}" if whole.value and whole.provenance == row.provenance else ""
        rows.append(
            f'<li><span class="layer" title="{plain(name)}">{plain(short(name, 60))}</span>{bar}'
            f"<span class=num>{number(row.value)} ms{of_whole} {tag(row.provenance, row.extrapolated)}</span></li>"
        )
    return f'<ol class="layers">{"".join(rows)}</ol>'


def cuts(found: Survey) -> str:
    """Bytes that cross over the head's share of all MACs: those that no other cut beats in colour, joined by a line."""
    sizes = [float(max(cut.bytes, 1)) for cut in (*found.cuts, found.offload, found.local)]
    x, y = Axis(0.0, 100.0, 64, 384, False), Axis.around(sizes, 250, 34)
    front = set(found.front)

    def place(cut: Cut) -> tuple[float, float]:
        return x.at(100 * found.head_share(cut)), y.at(max(cut.bytes, 1))

    parts = frame(x, y, ("work of the head, % of all MACs", "bytes that cross"), (lambda value: f"{value:g}", _bytes))
    for title, end in (("the input", found.offload), ("the output", found.local)):
        line = y.at(max(end.bytes, 1))
        parts.append(f'<path class="end" d="M64 {line}H384"/>')
        anchor, at, under = _free_place(line, [place(cut) for cut in found.cuts], y)
        parts.append(f'<text class="note" x="{at}" y="{under:g}" text-anchor="{anchor}">{title}, {_bytes(end.bytes)}</text>')
    if found.front:
        steps = [place(cut) for cut in found.front]
        joined = f"M{steps[0][0]} {steps[0][1]}" + "".join(f"H{at}V{line}" for at, line in steps[1:])
        parts.append(f'<path class="thread s0" d="{joined}"/>')
    for cut in sorted(found.cuts, key=lambda cut: cut in front):
        best = cut in front
        told = (
            f"{' + '.join(cut.tensors)}: {cut.bytes:,} bytes, {cut.bytes_at(8):,} as int8; "
            f"head {found.head_share(cut):.1%} of MACs"
        )
        parts.append(mark(0 if best else 7, *place(cut), filled=best, size=3.8 if best else 2.6, title=told))
    told = f"{len(found.cuts)} cuts of {found.model}: bytes that cross over the work of the head"
    return picture(294, told, parts)


def _free_place(line: float, points: Sequence[tuple[float, float]], y: Axis) -> tuple[str, int, float]:
    """Anchor and place of a label above or below a line, left or right, where the fewest points lie."""
    places = [(anchor, at, under) for under in (line - 5, line + 14) for anchor, at in (("end", 378), ("start", 70))]
    places = [one for one in places if y.end + 10 < one[2] < y.begin - 2] or places

    def crowded(one: tuple[str, int, float]) -> int:
        begin = one[1] - 110 if one[0] == "end" else one[1]
        return sum(begin - 6 < across < begin + 116 and one[2] - 16 < down < one[2] + 6 for across, down in points)

    return min(places, key=crowded)


def best_cuts(found: Survey, count: int) -> Iterator[tuple[str, str, str, str]]:
    """Those that no other beats, evenly thinned to `count`: tensor, bytes, bytes as int8, the head's share."""
    step = max(1, math.ceil(len(found.front) / count))
    for cut in found.front[::step]:
        yield " + ".join(cut.tensors), _bytes(cut.bytes), _bytes(cut.bytes_at(8)), f"{found.head_share(cut):.1%}"
