"""Searches over reuse factors as people read them: a table of the choices, and what to take; and JSON of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgesdk_targets.figure import Figure
from edgesdk_targets.report import Report

from .cut_chart import in_short
from .reuse_search import PART, STAND_IN, Choice, ReuseSearch
from .text import table, wrap

FORMAT = "edgesdk-reuse/1"
NAMES = {"lut": "LUTs", "ff": "flip-flops", "dsp": "DSPs", "bram": "BRAM18"}


def data(found: ReuseSearch) -> dict[str, Any]:
    """All of a search, JSON-ready; figures are rows as in reports, block RAM in blocks of 18 kbit."""
    return {
        "format": FORMAT,
        "model": found.model,
        "device": found.device,
        "part": found.part,
        "strategy": found.strategy,
        "clock_ns": found.clock_ns,
        "layers": [{"name": layer.name, "n_in": layer.n_in, "n_out": layer.n_out} for layer in found.layers],
        "limits": dict(found.limits),
        "capacity": {name: {"have": one.have, "unit": one.unit} for name, one in found.capacity.items()},
        "complete": found.complete,
        "estimates": found.estimates,
        "extrapolated_all": list(found.common),
        "taken": dict(found.taken.reuse_factors),
        "safe": None if found.safe is None else dict(found.safe.reuse_factors),
        "export": found.export,
        "choices": [_entry(found, choice) for choice in found.choices],
        "notes": list(found.notes),
    }


def _entry(found: ReuseSearch, choice: Choice) -> dict[str, Any]:
    return {
        "reuse_factors": dict(choice.reuse_factors),
        "within": choice.within,
        "surely_within": choice.surely,
        "best": choice.best,
        "extrapolated": choice.extrapolated,
        "unlike": list(choice.unlike),
        "fill": round(choice.fill, 4),
        "fullest": choice.fullest,
        "rows": Report(found.model, "fpga", found.device, "", choice.figures).to_json()["rows"],
    }


def shown(found: ReuseSearch, every: bool) -> str:
    """What was searched, the choices (of those with fewest LUTs, or `every` one within the limits), and what to take."""
    lines = wrap(
        f"{found.model} on {found.device} ({found.part}) by hls4ml, strategy {found.strategy}, clock of {found.clock_ns:g} ns: "
        "all figures are estimates"
    )
    lines += wrap(f"reuse factors: of {', '.join(layer.name for layer in found.layers)}, in this order")
    within = found.within
    listed = within if every else found.best
    if every:
        lines += wrap(f"{_counted(listed)} that no other beats in cycles, LUTs, flip-flops, DSPs and BRAM18 together")
    else:
        more = f"; --all lists the {len(within)} that none beats in DSPs, flip-flops and BRAM18 as well"
        lines += wrap(f"{_counted(listed)} that no other beats in cycles and LUTs{more if len(within) > len(listed) else ''}")
    heads = ("cycles", "II", "LUT", "80 %", "FF", "DSP", "BRAM", "fill", "data", "reuse factors")
    lines += ["", *table(heads, [_row(found, choice) for choice in listed]), ""]
    lines += wrap(
        "* what to take; cycles: from an input to its result; II: cycles between inputs; 80 %: where the LUTs lie in eight of "
        "ten cases; BRAM: blocks of 18 kbit; fill: the greatest share of the part"
    )
    if found.common:
        lines += wrap(f"unlike the estimator's data in all of them: {', '.join(found.common)}")
    lines += wrap(f"limits: {', '.join(f'{NAMES.get(name, name)} {bound:,.0f}' for name, bound in found.limits.items())}")
    lines += ["", *_advice(found)]
    for note in (*found.notes, _effort(found)):
        lines += wrap(f"note: {note}")
    return "\n".join(lines)


def factors(choice: Choice) -> str:
    """16/32/16/8, by layer."""
    return "/".join(str(factor) for factor in choice.reuse_factors.values())


def _counted(choices: Sequence[Choice]) -> str:
    return f"{len(choices)} choice{'' if len(choices) == 1 else 's'}"


def _row(found: ReuseSearch, choice: Choice) -> tuple[str, ...]:
    lut = choice.find("lut")
    return (
        f"{choice.value('cycles'):,.0f}" + (" *" if choice is found.taken else ""),
        f"{choice.value('initiation_interval'):,.0f}",
        f"{choice.value('lut'):,.0f}",
        ends(lut),
        f"{choice.value('ff'):,.0f}",
        f"{choice.value('dsp'):,.0f}",
        f"{choice.value('bram'):,.0f}",
        f"{choice.fill:.0%} {choice.fullest}",
        "extrapolated" if choice.extrapolated else "inside",
        " ".join(str(factor) for factor in choice.reuse_factors.values()),
    )


def ends(figure: Figure) -> str:
    """Of an interval, in short."""
    return "-" if figure.interval is None else f"{in_short(figure.interval.low)}-{in_short(figure.interval.high)}"


def _advice(found: ReuseSearch) -> list[str]:
    """What to take, how sure it is, and the command that makes it."""
    taken, safe = found.taken, found.safe
    lines = wrap(f"take reuse {factors(taken)}: the fewest cycles within the limits, {_told(taken)}")
    own = [told for told in taken.unlike if told not in found.common]
    if own:
        lines += wrap(f"unlike the estimator's data in it: {', '.join(own)}")
    if taken.surely:
        lines += wrap("it is within the limits at the high ends of its intervals too")
    elif safe is None:
        lines += wrap("no choice is within the limits at the high ends of its intervals")
    else:
        lines += wrap(f"at the high ends of their intervals the first within the limits is {factors(safe)}: {_told(safe)}")
    if not found.export:
        told = "an export has weights of 2 to 16 bits, activations of as many, and sums as wide as they get"
        return [*lines, "", *wrap(f"{told}, so that nothing can be made of this")]
    lines += ["", found.export]
    lines += wrap("makes its project, with --train or --data besides: samples by which the ranges of its numbers are chosen")
    if STAND_IN in found.export:
        lines += wrap(f"with a model for {STAND_IN}, and the names of its nodes for those of these layers")
    return lines


def _told(choice: Choice) -> str:
    return f"{choice.value('cycles'):,.0f} cycles, " + ", ".join(f"{choice.value(name):,.0f} {NAMES[name]}" for name in PART)


def _effort(found: ReuseSearch) -> str:
    if found.strategy == "latency":
        return "under the strategy latency each weight is taken to have a multiplier of its own: there is nothing to choose"
    return f"{found.estimates:,} choices were estimated, " + (
        "all there are" if found.complete else "not all there are: what is found is good, not proven best"
    )
