"""`edgesdk fit`: parse, call the API, print. No logic."""

from __future__ import annotations

from typing import Any

import click

from .terminal import JSON, PATH, progress, show


@click.command()
@click.argument("sources", nargs=-1)
@click.option("--on", default="", metavar="local", help="Time small networks on this machine, and fit to these.")
@click.option("--minutes", type=float, default=2.0, help="With --on local: how long they are timed (default 2).")
@click.option("--threads", type=click.IntRange(1, 1024), help="Of reports that do not say it; with --on local: default 1.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), help="Of reports that do not say it.")
@click.option("--out", type=PATH, help="The fit (.json; for logic .toml); by default named after the device, or hls4ml.fit.toml.")
@JSON
def fit(sources: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Refit an estimator on figures of your own, for edgesdk estimate --fit FILE.

    \b
    SOURCES, all of one kind:
      MODEL=REPORT.json     what edgesdk measure --out wrote on one board; three or more help
      BUNDLE.edge[=FOLDER]  of flow hls4ml, and where the vendor's tool built it (NAME.build)
      RESULTS.json          a list of results of hls4ml projects
    """
    from . import fit_table, fitting

    with progress() as told:
        found = fitting.fit(sources, **given, progress=told)
    show(fit_table.data(found), fit_table.shown(found), as_json)
