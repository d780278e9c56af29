"""What all verbs of the command line share: options, progress on stderr, and the answer on stdout."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

Progress = Callable[[str], None]
PATH = click.Path(path_type=Path, readable=False)  # whether it can be read is said by what reads it
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; all else goes to stderr.")
SHAPE = click.option("--shape", "shapes", multiple=True, metavar="INPUT=1x3x224x224", help="Make dynamic dimensions static.")

PLAIN_S = 30.0
"""Between two lines of one phase where nobody watches them."""
_NUMBER = re.compile(r"\b\d[\d.,]*\b")

STOPS: list[int] = []
"""Signals that came to end this run. Where the interrupt that they raise is lost (libraries drop what is raised in their
callbacks, and so do some imports), the next line of progress raises it again."""


def show(data: Any, shown: str, as_json: bool) -> None:
    """Print one or the other."""
    click.echo(json.dumps(data, indent=1) if as_json else shown)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Progress on stderr: a spinner with the time spent on a terminal; elsewhere plain lines, one for each phase and one every
    PLAIN_S while it lasts."""
    if not sys.stderr.isatty():
        yield _until_stopped(_seldom(lambda message: click.echo(message, err=True)))
        return
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield _until_stopped(lambda message: bar.update(task, description=message))


def _seldom(tell: Progress) -> Progress:
    last, since = "", 0.0

    def told(message: str) -> None:
        nonlocal last, since
        phase, now = _phase(message), time.monotonic()
        if phase != last or now - since >= PLAIN_S:
            last, since = phase, now
            tell(message)

    return told


def _phase(message: str) -> str:
    """What a message says is being done, without how far it is: its numbers, and what stands beside them behind a colon."""
    if _NUMBER.search(message) is None:
        return message
    return _NUMBER.sub("", message.partition(": ")[0])


def _until_stopped(tell: Progress) -> Progress:
    def told(message: str) -> None:
        if STOPS:
            raise KeyboardInterrupt
        tell(message)

    return told
