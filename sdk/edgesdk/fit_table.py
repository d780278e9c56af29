"""A fit as text and as JSON."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from . import text
from .fitting import Checked, Fit

SHOWN = 48
"""Rows of single records at most; all are in the JSON."""


def data(found: Fit) -> dict[str, Any]:
    """JSON-ready: one entry for each figure of each record, and the mean errors in percent."""
    figures = dict.fromkeys(one.figure for one in found.checked)
    return {
        "format": "edgesdk-fit-result/1", "kind": found.kind, "about": found.about, "file": str(found.path),
        "records": found.records, "changes": dict(found.changes), "interval": found.interval, "command": found.command,
        "errors": {
            name: {"before_percent": found.mape(name, "before"), "left_out_percent": found.mape(name, "left_out")}
            for name in figures
        },
        "checked": [{name: getattr(one, name) for name in one.__dataclass_fields__} for one in found.checked],
        "notes": list(found.notes),
    }  # fmt: skip


def shown(found: Fit) -> str:
    """As text: what was fitted, what changed, how each record is estimated when it is left out, and what to do with the file."""
    lines = text.wrap(f"fitted to {found.records} record{'s' if found.records > 1 else ''}: {found.about}")
    told = ", ".join(f"{name} x {factor:.3g}" for name, factor in found.changes) or "nothing"
    lines += [*text.wrap(f"changed: {told}"), ""]
    rows = [
        (one.name, one.figure, _number(one.measured), _with_error(one, one.before), _with_error(one, one.left_out))
        for one in found.checked[:SHOWN]
    ]
    lines += text.table(("record", "figure", "measured", "estimated before", "fitted without it"), rows)
    if len(found.checked) > SHOWN:
        lines.append(f"and {len(found.checked) - SHOWN} more (--json)")
    lines.append("")
    for name in dict.fromkeys(one.figure for one in found.checked):
        before, after = found.mape(name, "before"), found.mape(name, "left_out")
        mean = "not known" if after is None else f"{after:.1f} %"
        lines += text.wrap(f"{name}: mean error {before or 0.0:.1f} % before, {mean} with each left out")
    lines += text.wrap(found.interval)
    for note in found.notes:
        lines += text.wrap(f"note: {note}")
    use = textwrap.wrap(found.command, text.WIDTH, subsequent_indent="  ", break_on_hyphens=False)  # options stay whole
    return "\n".join([*lines, "", *text.wrap(f"wrote {found.path}"), *use])


def _with_error(one: Checked, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{_number(value)} ({100 * (value / one.measured - 1):+.0f} %)"


def _number(value: float) -> str:
    return f"{value:,.0f}" if math.isclose(value, round(value)) or abs(value) >= 1000 else f"{value:.4g}"
