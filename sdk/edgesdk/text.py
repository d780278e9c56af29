"""Reports and tables as text of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from edgesdk_targets.figure import Figure
from edgesdk_targets.report import Report

WIDTH = 100


def report(found: Report) -> str:
    """A report as text; the first line says where its measured rows were measured."""
    lines = textwrap.wrap(_origin(found), WIDTH)
    about = [found.model, found.device or found.target]
    if found.bundle:
        about.append(f"bundle {found.bundle[:12]}")
    lines += [*textwrap.wrap("  ".join(about), WIDTH), ""]
    rows = [row for row in found.rows if row.layer is None]
    if rows:
        shown = [(_name(row), value(row), row.provenance, _how(row)) for row in rows]
        lines += [*table(("figure", "value", "provenance", "how"), shown), ""]
    layered = [row for row in found.rows if row.layer is not None and row.name == "latency_ms" and row.value]
    if layered:
        lines.append("slowest layers")
        layered.sort(key=lambda row: -(row.value or 0))
        lines += table(("layer", "latency_ms", "provenance"), [(r.layer or "", value(r), r.provenance) for r in layered[:8]])
        lines.append("")
    if found.candidates:
        lines += [*_candidates(found.candidates), ""]
    lines += wrap(f"contract: {found.contract.status}. {found.contract.text}")
    for note in found.notes:
        lines += wrap(f"note: {note}")
    return "\n".join(lines)


def _candidates(tried: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a choosing export tried, one line each."""
    rows = []
    for one in tried:
        drop, size, speed = (one.get(key) for key in ("accuracy_drop_points", "artifact_bytes", "speed_ratio"))
        counted = one.get("instruction_ratio")
        shown = "-" if speed is None else f"{speed:.2f}x {one.get('provenance', '')}"
        shown = shown if counted is None else f"{counted:.2f}x by instructions, emulated"
        rows.append(
            (
                str(one["name"]),
                str(one["status"]),
                "-" if drop is None else f"{drop:.2f}",
                "-" if size is None else amount(size, "bytes"),
                shown,
                str(one.get("why", "")),
            )
        )
    return table(("candidate", "status", "drop", "size", "speed to fp32", "why"), rows)


def value(row: Figure) -> str:
    """The value with its unit, and its interval where it has one."""
    if row.value is None:
        return "-"
    shown = amount(row.value, row.unit)
    if row.interval is not None:
        factor = _scale(row.value, row.unit)[0]
        low, high = _digits(row.interval.low / factor), _digits(row.interval.high / factor)
        shown += f" [{low}, {high}] {row.interval.level:.0%}"
    if row.extrapolated:
        shown += " extrapolated"
    return shown


def amount(number: float, unit: str) -> str:
    """A number with three or four significant digits and its unit; bytes and MACs in thousands or millions."""
    factor, name = _scale(number, unit)
    return f"{_digits(number / factor if factor != 1 else number)} {name}".rstrip()


def _scale(number: float, unit: str) -> tuple[float, str]:
    """What a number is divided by to be shown, and the unit it then has."""
    if unit in ("bytes", "MAC"):
        for factor, prefix in ((1e6, "M"), (1e3, "k")):
            if abs(number) >= factor:
                return factor, prefix + ("B" if unit == "bytes" else unit)
    return 1, unit


def _digits(number: float) -> str:
    return f"{number:,.0f}" if isinstance(number, int) or abs(number) >= 1000 else f"{number:.4g}"


def served(found: Mapping[str, Any]) -> str:
    """What a server serves, and where."""
    lines = [f"serving the {found['role']} {found['model']}, bundle {found['digest'][:12]}, on {found['runtime']}"]
    for one in found.get("points", ()):
        lines.append(
            f"and for {one['channels']} channels instead of {found['channels']} the {found['role']} {one['model']}, "
            f"bundle {one['digest'][:12]}"
        )
    lines.append(f"REST  {found['rest']}/v2/models/{quote(found['model'], safe='')}")
    if found["grpc"]:
        lines.append(f"gRPC  {found['grpc']}")
    lines.append(f"metrics  {found['rest']}/metrics")
    return "\n".join(part for line in lines for part in wrap(line))


def wrap(line: str) -> list[str]:
    """A line as lines of at most WIDTH columns, those after the first indented."""
    return textwrap.wrap(line, WIDTH, subsequent_indent="  ")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as their content; the last one takes what is left of the line; cells that are too long wrap."""
    cells = [list(heads), *([str(cell) for cell in row] for row in rows)]
    natural = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    limit = max(26, (WIDTH - 24 - 2 * len(heads)) // max(1, len(heads) - 1))
    widths = [min(width, limit) for width in natural[:-1]]
    room = WIDTH - 2 * len(widths)
    while sum(widths) + min(24, natural[-1]) > room:
        widths[widths.index(max(widths))] -= 1
    widths.append(room - sum(widths))
    lines = []
    for row in cells:
        columns = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
        for line in range(max(map(len, columns))):
            parts = [column[line] if line < len(column) else "" for column in columns]
            lines.append("  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return lines


def inspected(found: dict[str, Any]) -> str:
    """What `inspect` found, as text."""
    head = [f"{found['kind']} {found['name']}  digest {found['digest'][:12]}"]
    if found["kind"] == "model":
        head.append(f"opset {found['opset']}, IR {found['ir_version']}, {amount(found['bytes'], 'bytes')}")
    else:
        head.append(f"{found['target']} / {found['device']}, {found['precision']}, {amount(found['bytes'], 'bytes')}")
    lines = [line for part in head for line in textwrap.wrap(part, WIDTH)] + [""]
    signature = found["signature"]
    rows = []
    for kind in ("inputs", "outputs"):
        for spec in signature[kind]:
            extra = spec.get("preprocess") or spec.get("postprocess") or {}
            labels = extra.get("labels")
            told = ", ".join(f"{k}={v}" for k, v in extra.items() if k != "labels")
            told += f"{', ' if told else ''}{len(labels)} labels" if labels else ""
            rows.append((kind[:-1], spec["name"], spec["dtype"], "x".join(map(str, spec["shape"])) or "scalar", told or "-"))
    lines += table(("", "name", "dtype", "shape", "processing"), rows)
    costs = found.get("costs")
    if costs and "macs" in costs:
        lines.append("")
        lines.append(
            f"{amount(costs['macs'], 'MAC')}, {costs['params']:,} parameters, weights "
            f"{amount(costs['weight_bytes'], 'bytes')}, live activations {amount(costs['peak_activation_bytes'], 'bytes')}"
        )
        kinds = sorted(costs["macs_by_kind"].items(), key=lambda item: -item[1])
        lines += textwrap.wrap("MACs by kind: " + ", ".join(f"{k} {v / max(1, costs['macs']):.1%}" for k, v in kinds), WIDTH)
    elif costs:
        lines += ["", *textwrap.wrap(f"costs: {costs['unavailable']} ({costs['hint']})", WIDTH)]
    if "operators" in found:
        told = ", ".join(f"{name} {count}" for name, count in found["operators"].items())
        lines += ["", *wrap(f"operators: {told}")]
    if "sensitivity" in found:
        lines += ["", *_sensitivity(found["sensitivity"])]
    if "against" in found:
        lines += ["", *_against(found["against"])]
    if "runtime" in found:
        runtime = found["runtime"]
        least = f" >= {runtime['minimum']}" if runtime["minimum"] else ""
        lines += ["", *textwrap.wrap(f"runs on {runtime['name']}{least}: {', '.join(runtime['providers'])}", WIDTH)]
        for step in found["history"]:
            lines += textwrap.wrap(
                f"{step['name']}: {step.get('note', '')}", WIDTH, initial_indent="  ", subsequent_indent="    "
            )
        contract = found["contract"]
        if contract:
            lines += textwrap.wrap(f"contract: {contract.get('status')}. {contract.get('text')}", WIDTH)
    return "\n".join(lines)


def _sensitivity(found: dict[str, Any]) -> list[str]:
    """Each layer alone as integers, the costliest marked by its rank."""
    told = f"each layer alone as {found['flavour']}, on {found['samples']} of {found['origin']}; rank 1 costs most"
    rows = []
    for one in found["layers"]:
        low, high = one["input_range"]
        score = one["agreement"] if one["accuracy"] is None else one["accuracy"]
        rows.append(
            (
                str(one["rank"]),
                one["layer"],
                one["op"],
                "-" if one["sqnr_db"] is None else f"{one['sqnr_db']:.1f}",
                "-" if one["output_sqnr_db"] is None else f"{one['output_sqnr_db']:.1f}",
                f"{score:.1%}",
                f"{low:.3g} {high:.3g}",
                str(len(one["outlier_channels"])),
            )
        )
    score = "accuracy" if found["layers"] and found["layers"][0]["accuracy"] is not None else "agreement"
    return [*wrap(told), *table(("rank", "layer", "op", "dB", "dB at end", score, "input range", "outliers"), rows)]


def _against(found: dict[str, Any]) -> list[str]:
    """Tensors of two models side by side, up to a screenful around the first that parts."""
    tensors = found["tensors"]
    told = f"on {found['samples']} of {found['origin']}: "
    first = found["first"]
    told += f"first apart by over {found['threshold']:g} at {first}" if first else f"nowhere apart by over {found['threshold']:g}"
    place = next((index for index, row in enumerate(tensors) if row["tensor"] == first), 0)
    shown = tensors[max(0, place - 5) : place + 15]
    rows = [
        (row["tensor"], row["made_by"], "infinite" if row["relative_error"] is None else f"{row['relative_error']:.2g}")
        for row in shown
    ]
    return [*wrap(told), *table(("tensor", "made by", "relative error"), rows)]


def _origin(found: Report) -> str:
    machine = found.machine
    measured = [row for row in found.rows if row.provenance == "measured" and row.where != "artifact"]
    if not measured or not machine:
        return f"nothing here was measured on hardware: counts and estimates for {found.device or found.target}"
    place = f"{machine.get('cpu')}, {machine.get('architecture')}, {machine.get('cores')} cores"
    on = f"at {machine['agent']}" if "agent" in machine else "on this machine"
    if found.device and found.device != "this-machine":
        if machine.get("is_device"):
            return f"measured on {found.device} ({place})"
        return f"measured {on} ({place}), NOT on {found.device}"
    return f"measured {on} ({place})"


def _name(row: Figure) -> str:
    return row.name if row.segment == "whole" else f"{row.name} ({row.segment})"


def _how(row: Figure) -> str:
    told = [row.method]
    tails = {name: row.percentiles[name] for name in ("p90", "p99", "mean") if name in row.percentiles}
    if tails:
        told.append(", ".join(f"{name} {number:.4g}" for name, number in tails.items()))
    if row.n is not None and row.where != "artifact":
        told.append(f"n={row.n}")
    if row.provenance in ("estimated", "unavailable"):
        told.insert(0, row.where)
    return "; ".join(told)
