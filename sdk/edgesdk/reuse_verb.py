"""`edgesdk reuse`: parse, call the API, print. No logic."""

from __future__ import annotations

from pathlib import Path

import click

from .terminal import JSON, PATH, SHAPE, progress, show

_LIMITS = ("cycles", "lut", "dsp", "bram", "ff")


@click.command()
@click.argument("model")
@click.option("--device", required=True, help="An FPGA that hls4ml has a back end for. See: edgesdk devices.")
@click.option("--max-cycles", type=click.IntRange(1), help="The most cycles from an input to its result.")
@click.option("--max-lut", type=click.IntRange(0), help="The most LUTs; the part's own number holds besides.")
@click.option("--max-dsp", type=click.IntRange(0), help="The most DSPs, likewise.")
@click.option("--max-bram", type=click.IntRange(0), help="The most block RAM, in blocks of 18 kbit, likewise.")
@click.option("--max-ff", type=click.IntRange(0), help="The most flip-flops, likewise.")
@click.option("--all", "every", is_flag=True, help="List also what is beaten in cycles and LUTs, but not in DSPs, FFs and BRAM.")
@click.option("--chart", type=PATH, help="Draw cycles over LUTs, as an SVG file.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="strategy, bits, clock_ns, io_type of the target.")
@SHAPE
@JSON
def reuse(
    model: str, device: str, every: bool, chart: Path | None, settings: tuple[str, ...], shapes: tuple[str, ...], as_json: bool,
    **given: int | None,
) -> None:  # fmt: skip
    """Search the reuse factors of MODEL's layers in hls4ml: what each choice costs, by estimate, and which to take.

    MODEL: .onnx, .pt2, package.module:callable, a layer list .json, or dense:16-64-32-5@8bit.
    """
    from edgesdk_targets.report import write_beside

    from . import reuse_chart, reuse_search, reuse_table
    from .arguments import parse_settings
    from .sources import parse_shapes

    limits = {name: float(bound) for name in _LIMITS if (bound := given[f"max_{name}"]) is not None}
    with progress() as told:
        found = reuse_search.reuse(
            model, device=device, limits=limits, settings=parse_settings(settings), shapes=parse_shapes(shapes), progress=told
        )
    if chart is not None:
        write_beside(chart, reuse_chart.svg(found).encode())
        click.echo(f"wrote {chart}", err=True)
    show(reuse_table.data(found), reuse_table.shown(found, every), as_json)
