"""`edgesdk compare`: parse, call the API, print. No logic."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from .terminal import JSON, PATH, SHAPE, progress, show


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="MODEL|BUNDLE|LAYERS.json…")
@click.option("--devices", default="all", metavar="all|NAME,NAME…", help="Which (default all). See: edgesdk devices.")
@click.option("--precision", default="", help="fp32, fp16, int8, … for all; default: each target's own, a bundle's own.")
@click.option("--threads", type=click.IntRange(0, 1024), default=0, help="Of devices that compute on a CPU; 0: all cores.")
@click.option("--runtime", default="", help="Another than the targets' own: ncnn, ncnn-vulkan, onnxruntime, tensorrt, …")
@click.option("--data", type=PATH, help="Labelled samples (.npz): accuracy of each model, on this machine.")
@click.option("--page", type=PATH, metavar="OUT.html", help="Write a page with tables and charts that needs nothing else.")
@SHAPE
@JSON
def compare(
    sources: tuple[str, ...], devices: str, page: Path | None, shapes: tuple[str, ...], as_json: bool, **given: Any
) -> None:
    """Lay models side by side on every device: accuracy, latency, memory, energy and size, each with where it comes from.

    \b
    A model (.onnx, .pt2, package.module:callable) or a layer list is estimated for each device.
    A bundle brings the figures of its own report (measured, emulated, reported by tools) for its device.
    An FPGA is asked twice: straight to Verilog (rtl), and through hls4ml.

    What cannot be had is a gap with its reason; a device that refuses a network is one row, not the end.
    """
    from edgesdk_targets.report import check_place, write_beside

    from . import compare_page, compare_table, comparing
    from .sources import parse_shapes

    if page is not None:
        check_place(page)
    command = shlex.join(["edgesdk", *sys.argv[1:]])
    with progress() as told:
        found = comparing.compare(sources, devices=devices, shapes=parse_shapes(shapes), command=command, **given, progress=told)
        if page is not None:
            told(f"writing {page}")
            write_beside(page, compare_page.html(found).encode())
    if page is not None:
        click.echo(f"wrote {page}", err=True)
    show(compare_table.data(found), compare_table.shown(found), as_json)
