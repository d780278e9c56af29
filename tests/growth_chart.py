"""Growth drawn: LUTs and tool time over the weights of a network, a page of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import edgesdk
from edgesdk.page_drawing import Axis, frame, mark, picture, plain, thousands


class Grown(NamedTuple):
    """What the tools made of one network: cells that were placed, and seconds of yosys and of nextpnr together."""

    weights: int
    luts: float
    seconds: float


def page(found: Mapping[str, Sequence[Grown]], heading: str, ends: Sequence[str]) -> str:
    """HTML with both charts, a series for each form; `ends` say why a form goes no further."""
    style = Path(edgesdk.__file__).with_name("compare_page.css").read_text(encoding="utf-8")
    items = "".join(
        f'<li><svg class="sample" viewBox="0 0 16 16" aria-hidden="true">{mark(series, 8, 8, filled=True, size=4.2)}</svg> '
        f"{plain(form)}</li>"
        for series, form in enumerate(found)
    )
    charts = (panel(found, "luts", "LUTs (COMB)"), panel(found, "seconds", "seconds of yosys and nextpnr"))
    return "\n".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
            f"<title>{plain(heading)}</title><style>{style}</style></head><body><main><h1>{plain(heading)}</h1>",
            f'<ul class="legend">{items}</ul>',
            *(f"<figure>{chart}</figure>" for chart in charts),
            f"<ul>{''.join(f'<li>{plain(end)}</li>' for end in ends)}</ul></main></body></html>",
        )
    )


def panel(found: Mapping[str, Sequence[Grown]], field: str, title: str) -> str:
    """One figure over the weights, both logarithmic; a line joins the networks of a form."""
    every = [one for grown in found.values() for one in grown]
    x = Axis.around([one.weights for one in every], 58, 388)
    y = Axis.around([getattr(one, field) for one in every], 232, 34)
    parts = frame(x, y, ("weights", title), (thousands, thousands))
    for series, (form, grown) in enumerate(found.items()):
        places = [(x.at(one.weights), y.at(getattr(one, field))) for one in grown]
        parts.append(f'<path class="thread s{series}" d="M{"L".join(f"{across} {up}" for across, up in places)}"/>')
        for one, place in zip(grown, places, strict=True):
            told = f"{form}: {one.weights:,} weights, {one.luts:,.0f} LUTs, {one.seconds:,.0f} s"
            parts.append(mark(series, *place, filled=True, size=3.8, title=told))
    return picture(276, f"{title} over weights, {' and '.join(found)}", parts)
