"""A comparison as one HTML file that asks no other host for anything, readable on a phone, in light and in dark.

Everything that came from a file goes through `plain`: names of models and tensors, reasons, the command.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgesdk_targets import calibration_points

from . import calibration_chart, compare_chart
from .compare_cells import PROVENANCES, cell, count_cell, scrolled, tag, value_range
from .compare_table import HEAVIEST, LOGIC_HEADS, MARKS
from .comparing_entries import ACCURACY, ENERGY, MEMORY, SIZE
from .comparing_logic import LATENCY
from .page_drawing import number, plain, printable
from .text import amount

if TYPE_CHECKING:
    from .comparing import Compared, Comparison
    from .comparing_entries import Entry
    from .page_drawing import Axis

TITLES = {LATENCY: "latency", ACCURACY: "accuracy", MEMORY: "peak memory", ENERGY: "energy", SIZE: "size"}
"""Columns in their order: a phone shows the first."""
SHOWN_CUTS = 12
SHOWN_REASON = 150
"""Characters of a refusal before it has to be opened."""
_FOLDER = Path(__file__).parent
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def html(found: Comparison) -> str:
    """The whole page."""
    title = f"{_count(len(found.models), 'model')} on {_count(len(found.devices), 'device')}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>edgesdk compare: {plain(title)}</title>",
        f"<style>\n{(_FOLDER / 'compare_page.css').read_text(encoding='utf-8')}</style></head><body>",
        *_opening(found, title),
        *_glance(found.models),
    ]
    for index, one in enumerate(found.models):
        parts += _section(one, index)
    parts += _calibration()
    parts.append(f"<script>\n{(_FOLDER / 'compare_page.js').read_text(encoding='utf-8')}</script>")
    parts.append("</body></html>")
    return "\n".join(parts) + "\n"


def _opening(found: Comparison, title: str) -> Iterator[str]:
    yield f"<header><h1>{plain(title)}</h1>"
    yield (
        f'<p class="muted">What they take, side by side, each figure with where it comes from. Made on {plain(found.date)} by '
        f"edgesdk {plain(found.version)} on {plain(found.machine)}.</p>"
    )
    if found.command:
        yield f'<p class="command"><code>{plain(found.command)}</code></p>'
    yield '<ul class="cards">'
    for index, one in enumerate(found.models):
        yield f"<li>{_card(one, index)}</li>"
    yield "</ul>"
    yield "<h3>Where a figure comes from</h3>"
    keys = "".join(f"<li>{tag(name)} <strong>{name}</strong>: {told}</li>" for name, told in PROVENANCES.items())
    yield f'<ul class="key">{keys}</ul>'
    yield (
        f'<p class="muted"><span class="tag estimated">{MARKS["estimated"].upper()}*</span> estimated for a network unlike those '
        "that were measured: extrapolated. Every cell opens: how the figure was made, or why there is none.</p></header>"
    )


def _card(one: Compared, index: int) -> str:
    fastest = next((entry for entry in one.entries if entry.latency.value is not None), None)
    told = f'<strong><a href="#model-{index}">{plain(one.name)}</a></strong>'
    if fastest is None:
        told += '<span class="big">no latency</span>'
    else:
        row = fastest.latency
        assert row.value is not None
        told += f'<span class="big">{number(row.value)} ms {tag(row.provenance, row.extrapolated)}</span>'
        told += f"fastest on {plain(fastest.way.device)}{value_range(row)}<br>"
    refused = sum(bool(entry.refused) for entry in one.entries)
    return told + f'<span class="muted">{_facts(one)}; refused {refused} of {len(one.entries)} times</span>'


def _facts(one: Compared) -> str:
    told = f"{plain(one.kind)}, {amount(one.macs, 'MAC')}, {one.params:,} parameters"
    if one.accuracy.value is not None:
        row = one.accuracy
        told += f", top-1 {row.value:.2%} {tag(row.provenance, row.extrapolated)} on this machine (n = {row.n:,})"
    return told


def _glance(models: Sequence[Compared]) -> Iterator[str]:
    found = compare_chart.panels(models)
    if not found:
        return
    by_accuracy = compare_chart.shows_accuracy(models)
    yield f"<h2>{'Accuracy' if by_accuracy else 'Size'} against latency</h2>"
    told = (
        "Accuracy is that of the model itself, in ONNX Runtime on this machine, or a bundle's own; what is made for a device may "
        "differ."
        if by_accuracy
        else "Accuracy was not measured for all of them (--data): height is the size of the weights, or of what was exported."
    )
    yield (
        f'<p class="muted">{told} All panels have the same axes; a line is where the latency lies, a hollow mark an estimate, a '
        "full one is not; marks of one model are moved apart a little so that each can be seen.</p>"
    )
    yield '<div class="charts">'
    for panel in found:
        yield f"<figure><figcaption><strong>{plain(panel.title)}</strong></figcaption>{panel.svg}{panel.legend}</figure>"
    yield "</div>"


def _section(one: Compared, index: int) -> Iterator[str]:
    yield f'<section id="model-{index}"><h2>{plain(one.name)}</h2>'
    digest = f", digest <code>{plain(one.digest[:12])}</code>" if one.digest else ""
    yield f'<p class="facts">{_facts(one)}; from <code>{plain(one.source)}</code>{digest}</p>'
    for note in one.notes:
        yield f"<p>{plain(note)}</p>"
    yield _table(one)
    if any(entry.takes_logic for entry in one.entries):
        yield "<h3>What logic takes</h3>"
        yield _logic_table(one)
    yield from _layer_lists(one, index)
    yield from _cut_curve(one)
    yield "</section>"


def _table(one: Compared) -> str:
    axis = compare_chart.spark_axis(one.entries)
    heads = "".join(f'<th scope="col"><button type="button">{name}</button></th>' for name in ("device", *TITLES.values()))
    taken = [_row(entry, axis) for entry in one.entries if not entry.refused]
    refused = list(_refusals([entry for entry in one.entries if entry.refused]))
    bodies = f"<tbody>{''.join(taken)}</tbody>"
    if refused:
        part = f'<tr class="part"><th colspan="{1 + len(TITLES)}" scope="colgroup">refused</th></tr>'
        bodies += f"<tbody>{part}{''.join(refused)}</tbody>"
    return scrolled(f"{one.name} on all devices", f"<thead><tr>{heads}</tr></thead>{bodies}")


def _row(entry: Entry, axis: Axis | None) -> str:
    cells = []
    for name in TITLES:
        row = entry.cells[name]
        spark = compare_chart.interval_bar(entry, axis) if name == LATENCY and row.value is not None and axis is not None else ""
        value = "" if row.value is None else f"{row.value:.6g}"
        cells.append(f'<td data-v="{value}">{cell(row, spark)}</td>')
    return f"<tr>{_device(entry)}{''.join(cells)}</tr>"


def _refusals(entries: Sequence[Entry]) -> Iterator[str]:
    """A row for each reason, with all devices that gave it."""
    by_reason: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        by_reason.setdefault((entry.way.runtime, entry.precision, entry.refused), []).append(entry)
    for (runtime, precision, refused), group in by_reason.items():
        reason = printable(refused)
        told = f'<div class="cell no">{plain(reason)}</div>'
        if len(reason) > SHOWN_REASON:
            begin = f"{plain(reason[:SHOWN_REASON])}&hellip;"
            told = f'<details class="cell no"><summary>{begin}</summary><p>{plain(reason)}</p></details>'
        devices = ", ".join(plain(entry.way.device) for entry in group)
        about = ", ".join(part for part in (runtime, precision) if part)
        yield f'<tr><th scope="row">{devices}<small>{plain(about)}</small></th><td colspan="{len(TITLES)}">{told}</td></tr>'


def _device(entry: Entry) -> str:
    """The head of a row, with what about the device holds for all its cells."""
    about = ", ".join(part for part in (entry.way.runtime, entry.precision) if part)
    about += ", the bundle's own report" if entry.own else ""
    name = f"{plain(entry.way.device)}<small>{plain(about)}</small>"
    if entry.notes:
        notes = "".join(f"<p>{plain(note)}</p>" for note in entry.notes)
        name = (
            f'{plain(entry.way.device)}<details class="cell"><summary><small>{plain(about)} …</small></summary>{notes}</details>'
        )
    return f'<th scope="row" data-v="{plain(entry.way.device)}">{name}</th>'


def _logic_table(one: Compared) -> str:
    heads = "".join(f'<th scope="col"><button type="button">{name}</button></th>' for name in ("device", *LOGIC_HEADS.values()))
    rows = []
    for entry in one.entries:
        if not entry.takes_logic:
            continue
        cells = []
        for name in LOGIC_HEADS:
            row = entry.logic.get(name)
            value = "" if row is None or row.value is None else f"{row.value:.6g}"
            cells.append(f'<td data-v="{value}">{"" if row is None else count_cell(row)}</td>')
        fits = "<small>does not fit</small>" if entry.refused.startswith("does not fit") else ""
        head = f"{plain(entry.way.device)}<small>{plain(entry.way.runtime)}, {plain(entry.precision)}</small>{fits}"
        rows.append(f'<tr><th scope="row" data-v="{plain(entry.way.device)}">{head}</th>{"".join(cells)}</tr>')
    return scrolled(f"what {one.name} takes of FPGAs", f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>")


def _layer_lists(one: Compared, index: int) -> Iterator[str]:
    listed = [(entry, compare_chart.layers(entry, HEAVIEST)) for entry in one.entries]
    listed = [(entry, bars) for entry, bars in listed if bars]
    if not listed:
        return
    yield "<h3>Time by layer</h3>"
    yield (
        f'<p class="muted">The {HEAVIEST} layers that take most time on each device; a thin line is where each lies. On a GPU '
        "the first layer bears what every run costs once. Layers of logic work at the same time: there is no such list.</p>"
    )
    yield '<div class="folds">'
    for position, (entry, bars) in enumerate(listed):
        row = entry.latency
        told = f"{number(row.value)} ms" if row.value is not None else "no total"
        count = sum(1 for one_row in entry.rows if one_row.layer is not None and one_row.name == LATENCY)
        yield (
            f'<details class="fold" name="layers-{index}"{" open" if position == 0 else ""}><summary>{plain(entry.way.device)} '
            f'<span class="muted">{told}, {_count(count, "layer")}</span></summary>{bars}</details>'
        )
    yield "</div>"


def _cut_curve(one: Compared) -> Iterator[str]:
    yield "<h3>Where it can be cut in two</h3>"
    if one.survey is None or not one.survey.cuts:
        yield f"<p>No cuts: {plain(one.no_cuts)}.</p>"
        return
    found = one.survey
    yield (
        f'<div class="charts"><figure><figcaption>{_count(len(found.cuts), "cut")} at one tensor: the bytes that cross to a '
        "server over the work that stays in the head. Full marks: no other cut has fewer bytes for as little work.</figcaption>"
        f"{compare_chart.cuts(found)}</figure>"
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("tensor", "bytes", "as int8", "head"))
    rows = "".join(
        f'<tr><th scope="row">{plain(tensor)}</th>{"".join(f"<td class=plain>{plain(told)}</td>" for told in cells)}</tr>'
        for tensor, *cells in compare_chart.best_cuts(found, SHOWN_CUTS)
    )
    yield scrolled(f"cuts of {one.name} that no other beats", f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>")
    yield "</div>"


def _calibration() -> Iterator[str]:
    found = calibration_points.read()
    yield '<section id="calibration"><h2>How far the estimates of latency can be trusted</h2>'
    yield f"<p>{plain(calibration_chart.told(found))}</p>"
    yield (
        '<div class="charts"><figure class="dense"><figcaption>Predicted over measured latency; the band is 20 % to either side'
        f"</figcaption>{calibration_chart.svg(found)}{calibration_chart.legend()}</figure>"
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in calibration_chart.HEADS)
    rows = "".join(
        f'<tr><th scope="row">{plain(name)}</th>{"".join(f"<td class=plain>{cell}</td>" for cell in cells)}</tr>'
        for name, *cells in calibration_chart.scores(found)
    )
    yield scrolled("errors of the latency estimator", f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>")
    yield "</div></section>"


def _count(number_of: int, what: str) -> str:
    return f"{number_of:,} {what}{'' if number_of == 1 else 's'}"
