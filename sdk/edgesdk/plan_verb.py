"""`edgesdk plan`: parse, call the API, print. No logic."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from .terminal import JSON, PATH, SHAPE, progress, show

_REPORT = "[TENSOR=]FILE: latency measured there, of the whole or of the part made at a cut."


@click.command()
@click.argument("model")
@click.option("--device", required=True, help="The board that has the input. See: edgesdk devices.")
@click.option("--server", default="this-machine", help="Where tails run: a device, or a target's name (default this-machine).")
@click.option("--link", required=True, help="10mbit,20ms; 5mbit/20mbit,30ms,jitter=5ms,loss=1%; or ethernet, wifi, lte, nb-iot.")
@click.option("--bits", type=int, default=32, help="Bits a value of what crosses a cut, 2 to 8; default as it is.")
@click.option("--max-latency-ms", type=float, default=math.inf, metavar="MS", help="The most that a request may take.")
@click.option("--max-drop", type=float, default=math.inf, metavar="POINTS", help="The most accuracy that --drop may say.")
@click.option("--drop", "drops", multiple=True, metavar="TENSOR=POINTS", help="Accuracy that a cut is known to lose.")
@click.option("--input-bytes", type=int, help="Bytes of the input where it is captured, say of a JPEG; default by its type.")
@click.option("--data", type=PATH, help="Samples (.npz): offload as PNG and as WebP too, measured on them.")
@click.option("--device-report", "device_reports", multiple=True, metavar="[TENSOR=]FILE", help=_REPORT)
@click.option("--server-report", "server_reports", multiple=True, metavar="[TENSOR=]FILE", help=_REPORT)
@click.option("--bundle", "bundles", multiple=True, type=PATH, help="A split bundle of MODEL: its operating points are options.")
@click.option("--handling-ms", type=float, metavar="MS", help="The device's own work for a request beside the network.")
@click.option("--fold", is_flag=True, help="Fold the model first, as an export does: the names that its --split takes.")
@click.option("--all", "every", is_flag=True, help="List every option, and time every cut where times are taken here.")
@click.option("--chart", type=PATH, help="Draw latency over the link's rate, as an SVG file.")
@click.option("--constant", "constants", multiple=True, metavar="INPUT=NUMBER", help="Make an input a constant.")
@SHAPE
@JSON
def plan(
    model: str,
    chart: Path | None,
    drops: tuple[str, ...],
    device_reports: tuple[str, ...],
    server_reports: tuple[str, ...],
    constants: tuple[str, ...],
    shapes: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Say where MODEL runs fastest over a link: on the device, on a server, or cut in two, and at which rates that changes."""
    from edgesdk_targets.report import write_beside

    from . import plan_chart, plan_table, planning
    from .arguments import parse_drops, parse_reports
    from .sources import parse_constants, parse_shapes

    with progress() as told:
        found = planning.plan(
            model, shapes=parse_shapes(shapes), constants=parse_constants(constants), drops=parse_drops(drops),
            device_reports=parse_reports(device_reports), server_reports=parse_reports(server_reports), **given, progress=told,
        )  # fmt: skip
    if chart is not None:
        write_beside(chart, plan_chart.svg(found).encode())
        click.echo(f"wrote {chart}", err=True)
    show(plan_table.data(found), plan_table.shown(found, given["every"]), as_json)
