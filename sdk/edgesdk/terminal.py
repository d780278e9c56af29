"""What all verbs of the command line share: options, progress on stderr, and the answer on stdout."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

Progress = Callable[[str], None]
PATH = click.Path(path_type=Path, readable=False)  # whether it can be read is said by what reads it
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; all else goes to stderr.")
SHAPE = click.option("--shape", "shapes", multiple=True, metavar="INPUT=1x3x224x224", help="Make dynamic dimensions static.")

STOPS: list[int] = []
"""Signals that came to end this run. Where the interrupt that they raise is lost (libraries drop what is raised in their
callbacks, and so do some imports), the next line of progress raises it again."""


def show(data: Any, shown: str, as_json: bool) -> None:
    """Print one or the other."""
    click.echo(json.dumps(data, indent=1) if as_json else shown)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Progress on stderr: a spinner with the time spent on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield _until_stopped(lambda message: click.echo(message, err=True))
        return
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield _until_stopped(lambda message: bar.update(task, description=message))


def _until_stopped(tell: Progress) -> Progress:
    def told(message: str) -> None:
        if STOPS:
            raise KeyboardInterrupt
        tell(message)

    return told
