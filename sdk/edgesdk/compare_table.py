"""A comparison as people and programs read it: a table for each model, the fastest device first, and JSON of every cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from edgesdk_targets.figure import Figure
from edgesdk_targets.report import Report

from . import cut_table
from .comparing_entries import CELLS
from .page_drawing import number, printable, thousands
from .text import amount, table, wrap

if TYPE_CHECKING:
    from .comparing import Compared, Comparison
    from .comparing_entries import Entry

FORMAT = "edgesdk-compare/1"
HEAVIEST = 10
"""Layers of an entry in JSON and on the page: those that take most time."""
BITS = 4
MARKS = {"measured": "m", "emulated": "x", "simulated": "s", "tool-reported": "t", "estimated": "e"}
SCALES = {"accuracy": 0.01, "peak_memory_bytes": 1e6, "size": 1e6}
"""By what a cell is divided to be shown in the unit of its column."""
HEADS = {
    "accuracy": "acc. %", "latency_ms": "latency ms", "peak_memory_bytes": "memory MB", "energy_mj": "energy mJ",
    "size": "size MB",
}  # fmt: skip
LOGIC_HEADS = {
    "lut": "LUT", "ff": "FF", "dsp": "DSP", "bram": "BRAM", "cycles": "cycles", "initiation_interval": "interval",
    "fmax_mhz": "MHz",
}  # fmt: skip
_IN_TEXT = ("lut", "ff", "dsp", "bram", "cycles", "fmax_mhz")
LEGEND = (
    "m measured, x emulated, s simulated, t reported by a tool, e estimated: beside it where 90 % of the cases lie (of logic "
    "80 %); * outside of what was measured; a number in brackets: not to be had, for that reason"
)
"""What letters and marks of cells mean."""


def shown(found: Comparison) -> str:
    """Tables of at most 100 columns, then the reasons for gaps, each once."""
    gaps: dict[str, int] = {}
    lines: list[str] = []
    for one in found.models:
        lines += [*wrap(headline(one)), ""]
        lines += table(("device", "runtime", *HEADS.values()), [_row(entry, gaps) for entry in one.entries])
        if any(entry.takes_logic for entry in one.entries):
            lines += ["", "what logic takes"]
            lines += table(("flow", *(LOGIC_HEADS[name] for name in _IN_TEXT), "on"), _logic_rows(one, gaps))
        for note in one.notes:
            lines += ["", *wrap(f"note: {printable(note)}")]
        lines.append("")
    lines += wrap(LEGEND)
    for reason, index in gaps.items():
        lines += wrap(f"[{index}] {printable(reason)}")
    return "\n".join(lines)


def headline(one: Compared) -> str:
    """What a model is, in a line."""
    told = f"{printable(one.name)} ({one.kind}): {amount(one.macs, 'MAC')}, {one.params:,} parameters"
    if one.accuracy.value is not None:
        told += f", top-1 {one.accuracy.value:.2%} {MARKS[one.accuracy.provenance]} of {one.accuracy.n:,} samples on this machine"
    return told


def data(found: Comparison) -> dict[str, Any]:
    """One document: every cell is a row as reports have it; `heaviest_layers` are rows of layers, `figures` all totals."""
    return {
        "format": FORMAT,
        "edgesdk": found.version,
        "command": found.command,
        "date": found.date,
        "machine": found.machine,
        "devices": list(found.devices),
        "models": [_model(one) for one in found.models],
    }


def _model(one: Compared) -> dict[str, Any]:
    return {
        "name": one.name,
        "source": one.source,
        "kind": one.kind,
        "digest": one.digest,
        "macs": one.macs,
        "params": one.params,
        "accuracy": _figures([one.accuracy])[0],
        "notes": list(one.notes),
        "cuts": None if one.survey is None else cut_table.data(one.survey, BITS),
        "no_cuts": one.no_cuts,
        "entries": [_entry(entry) for entry in one.entries],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    cells = _figures(entry.cells.values())
    return {
        "device": entry.way.device,
        "target": entry.way.target,
        "runtime": entry.way.runtime,
        "precision": entry.precision,
        "from_report": entry.own,
        "refused": entry.refused,
        "notes": list(entry.notes),
        "cells": dict(zip(entry.cells, cells, strict=True)),
        "figures": _figures(row for row in entry.rows if row.layer is None),
        "heaviest_layers": _figures(entry.heaviest(HEAVIEST)),
    }


def _figures(rows: Iterable[Figure]) -> list[dict[str, Any]]:
    """Rows as a report writes them."""
    found: list[dict[str, Any]] = Report("", "", "", "", tuple(rows)).to_json()["rows"]
    return found


def _row(entry: Entry, gaps: dict[str, int]) -> tuple[str, ...]:
    cells = [_cell(entry.cells[name], SCALES.get(name, 1.0), gaps) for name in CELLS]
    return (entry.way.device, entry.way.runtime, *cells)


def _logic_rows(one: Compared, gaps: dict[str, int]) -> list[tuple[str, ...]]:
    """One row for all devices that take the same."""
    found: dict[tuple[str, ...], list[str]] = {}
    for entry in one.entries:
        if entry.takes_logic:
            cells = [_cell(entry.logic[name], 1.0, gaps, thousands) if name in entry.logic else "" for name in _IN_TEXT]
            found.setdefault((entry.way.runtime, *cells), []).append(entry.way.device)
    return [(*cells, ", ".join(devices)) for cells, devices in found.items()]


def _cell(row: Figure, scale: float, gaps: dict[str, int], tell: Callable[[float], str] = number) -> str:
    """Value, interval in two digits, and the letter of the provenance; of a gap the number of its reason."""
    if row.value is None:
        return f"[{gaps.setdefault(row.method, len(gaps) + 1)}]"
    told = tell(row.value / scale)
    if row.interval is not None and row.interval.low < row.interval.high:
        told += f" {_two(row.interval.low / scale)}-{_two(row.interval.high / scale)}"
    return f"{told} {MARKS[row.provenance]}{'*' if row.extrapolated else ''}"


def _two(value: float) -> str:
    """In two digits, thousands as k: 0.31, 53, 1.3k."""
    return thousands(value, 2)
