"""Cells of the comparison's page: a figure with its interval and provenance, which opens to say how it was made."""

from __future__ import annotations

from collections.abc import Callable

from edgesdk_targets.figure import Figure

from .compare_table import MARKS
from .page_drawing import number, plain, thousands

PROVENANCES = {
    "measured": "ran on the named hardware, or counted exactly from the file",
    "emulated": "an instruction-set emulator executed it",
    "simulated": "the logic was simulated",
    "tool-reported": "synthesis, place and route or a linker printed it",
    "estimated": "predicted, with the interval in which it lies nine times of ten (logic: eight)",
    "unavailable": "not to be had: open the cell to read why",
}


def scrolled(label: str, table: str) -> str:
    """A table in a box of its own, which scrolls where the page must not."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{plain(label)}"><table>{table}</table></div>'


def cell(row: Figure, beneath: str = "") -> str:
    """Value in its unit, interval and provenance; opened, how it was made, or why it was not."""
    factor, unit = _unit(row)
    return _opening(row, factor, unit, number, beneath)


def count_cell(row: Figure) -> str:
    """The same of a count, in thousands."""
    return _opening(row, 1.0, "", thousands, "")


def _opening(row: Figure, factor: float, unit: str, tell: Callable[[float], str], beneath: str) -> str:
    if row.value is None:
        why = plain(row.method)
        return f'<details class="cell gap"><summary title="{why}">&mdash; {tag("unavailable")}</summary><p>{why}</p></details>'
    how = [f"{row.provenance}{', extrapolated' if row.extrapolated else ''}: {row.method}", f"where: {row.where}"]
    if row.interval is not None:
        ends = f"{number(row.interval.low / factor)} to {number(row.interval.high / factor)}{unit}"
        how.insert(1, f"{number(row.value / factor)}{unit}; {row.interval.level:.0%} of the cases: {ends}")
    if row.n is not None:
        how.append(f"n = {row.n:,}")
    value = f"{tell(row.value / factor)}{unit}{value_range(row, factor, tell)}"
    head = f"{value} {tag(row.provenance, row.extrapolated)}{beneath}"
    return f'<details class="cell"><summary>{head}</summary><p>{plain(". ".join(how))}</p></details>'


def _unit(row: Figure) -> tuple[float, str]:
    """What a value is divided by, and the unit it then has."""
    if row.name == "accuracy":
        return 0.01, " %"
    if row.unit == "bytes":
        size = abs(row.value or 0)
        return (1e6, " MB") if size >= 1e5 else (1e3, " kB")
    return 1.0, f" {row.unit}"


def value_range(row: Figure, factor: float = 1.0, tell: Callable[[float], str] = number) -> str:
    """Where it lies, empty where that is one value."""
    if row.interval is None or row.interval.low == row.interval.high:
        return ""
    return f' <span class="range">{tell(row.interval.low / factor)}&ndash;{tell(row.interval.high / factor)}</span>'


def tag(provenance: str, extrapolated: bool = False) -> str:
    """A letter in a frame: the frame's kind tells the provenance too, colour does not."""
    letter = MARKS[provenance].upper() if provenance in MARKS else "why"
    told = f"{provenance}, extrapolated" if extrapolated else provenance
    return f'<abbr class="tag {provenance}" title="{told}">{letter}{"*" if extrapolated else ""}</abbr>'
