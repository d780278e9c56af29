"""Plans as people read them: a table of the options worth a look and what decides between them; and JSON of all."""

from __future__ import annotations

from typing import Any

from edgesdk_targets.figure import Figure
from edgesdk_targets.link import rate_text
from edgesdk_targets.plan import Option, Plan, bounds, in_ms
from edgesdk_targets.report import Report

from .cut_chart import in_short
from .text import table, wrap

FORMAT = "edgesdk-plan/1"
LEAST, MOST = 5, 10
"""Options in the table, unless all are asked for."""


def data(found: Plan) -> dict[str, Any]:
    """All of a plan, JSON-ready; figures are rows as in reports."""
    link = found.link
    return {
        "format": FORMAT,
        "model": found.model,
        "device": found.device,
        "server": found.server,
        "link": {
            "name": link.name,
            "up_bits_per_s": link.up_bits_per_s,
            "down_bits_per_s": link.down_bits_per_s,
            "rtt_ms": link.rtt_ms,
            "jitter_ms": link.jitter_ms,
            "loss": link.loss,
            "source": link.source,
            "planning_only": link.planning_only,
        },
        "winner": found.winner,
        "why": found.why,
        "certain": found.certain,
        "overlapping": list(found.overlapping),
        "rivals": list(found.rivals),
        "best": list(found.best),
        "crossovers": [
            {
                "rate_bits_per_s": one.rate_bits_per_s,
                "below": one.below,
                "above": one.above,
                "low_bits_per_s": one.low_bits_per_s,
                "high_bits_per_s": one.high_bits_per_s,
            }
            for one in found.crossovers
        ],
        "options": [_entry(found, option) for option in found.options],
        "notes": list(found.notes),
    }


def _entry(found: Plan, option: Option) -> dict[str, Any]:
    way = option.way
    rows = Report(found.model, "", found.device, "", option.figures).to_json()["rows"]
    return {
        "name": way.name,
        "kind": way.kind,
        "tensors": list(way.tensors),
        "up_bytes": way.up_bytes,
        "down_bytes": way.down_bytes,
        "what": way.told,
        "accuracy_drop_points": way.accuracy_drop,
        "rows": rows,
    }


def shown(found: Plan, every: bool) -> str:
    """The decision first, then a table, the rates at which it changes, and what to know of the figures."""
    lines = wrap(f"{found.model}: {found.device}, {found.server} as its server, {found.link}")
    lines += wrap(f"{found.winner or 'none'}: {found.why}" if found.winner is None else found.why)
    listed = found.options if every else _worth_a_look(found)
    rows = [_row(found, option) for option in listed]
    heads = ("ms", "interval", "head", "link", "tail", "up", "mJ", "option")
    lines += ["", *table(heads, rows), ""]
    lines += wrap(
        "* the fastest; latency in ms: e estimated, m measured; interval: sum of those of head, link and tail; mJ: energy of the "
        "device"
    )
    if len(listed) < len(found.options):
        lines += wrap(
            f"{len(found.options) - len(listed)} splits are left out, which are slower or beaten in all: --all lists them"
        )
    lines += ["", *_rates(found)]
    for note in (*found.notes, f"link: {found.link.source}; times are those of a warm connection", *_energy(found)):
        lines += wrap(f"note: {note}")
    return "\n".join(lines)


def _worth_a_look(found: Plan) -> list[Option]:
    """All but splits, the fastest at some rate, then splits that no other option beats in all, and others for want of them."""
    kept = {o.name for o in found.options if o.way.kind != "split" or o.name in found.best or o.name == found.winner}
    rest = [line for line in found.lines if line.name in found.unbeaten and line.name not in kept]
    rest.sort(key=lambda line: line.ms(found.link))
    kept |= {line.name for line in rest[: max(0, MOST - len(kept))]}
    others = sorted((line for line in found.lines if line.name not in kept), key=lambda line: line.ms(found.link))
    kept |= {line.name for line in others[: max(0, LEAST - len(kept))]}
    return [option for option in found.options if option.name in kept]


def _row(found: Plan, option: Option) -> tuple[str, ...]:
    total, way = option.total, option.way
    ends = "-" if total.value is None else f"{_ms(bounds(total).low)}-{_ms(bounds(total).high)}"
    energy = option.energy.value
    return (
        _cell(total) + (" *" if option.name == found.winner else ""),
        ends,
        _cell(way.head),
        _cell(option.link),
        _cell(way.tail),
        in_short(way.up_bytes) if way.kind != "local" else "-",
        "-" if energy is None else _ms(energy),
        f"{way.name} ({way.told})" if way.told else way.name,
    )


def _cell(figure: Figure | None) -> str:
    if figure is None or figure.value is None:
        return "-"
    return f"{_ms(figure.value)}{figure.provenance[0]}"


def _ms(value: float) -> str:
    return in_ms(value).removesuffix(" ms")


def _rates(found: Plan) -> list[str]:
    """At which rates the answer changes."""
    if not found.crossovers:
        return wrap(f"{found.best[0]} is the fastest at every rate of this link") if found.best else []
    rows = []
    for one in found.crossovers:
        low, high = ("-" if end is None else rate_text(end) for end in (one.low_bits_per_s, one.high_bits_per_s))
        rows.append((rate_text(one.rate_bits_per_s), f"{low} to {high}", f"{one.below} below, {one.above} above"))
    told = "rates up at which the answer changes, and where they lie as the figures do (-: no bound)"
    if found.link.down_bits_per_s != found.link.up_bits_per_s:
        told += "; the rate down in proportion"
    return [*wrap(told), *table(("break-even", "interval", "the fastest"), rows)]


def _energy(found: Plan) -> list[str]:
    """Where the energy comes from, or why there is none; once, since it is the same for all."""
    known = next((option.energy for option in found.options if option.energy.value is not None), None)
    if known is not None:
        return [f"energy: {known.method}"]
    return [f"energy: {found.options[0].energy.method}"] if found.options else []
