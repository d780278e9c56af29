"""A tail here as on a slower device: something waits before each of its runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from edgesdk_targets import runner as runners
from edgesdk_targets.bundle import Bundle


class SlowTail:
    """Calls `wait` before it computes."""

    def __init__(self, one: runners.Runner, wait: Callable[[], object]) -> None:
        self.one, self.wait, self.facts = one, wait, one.facts

    def run(self, feed: Any) -> Any:
        self.wait()
        return self.one.run(feed)

    def close(self) -> None:
        self.one.close()


@contextmanager
def slowed(wait: Callable[[], object]) -> Iterator[None]:
    """Sessions that are loaded meanwhile have such a tail."""
    load = runners.load

    def loaded(bundle: Bundle, options: runners.RunOptions = runners.DEFAULTS) -> Any:
        one = load(bundle, options)
        return SlowTail(one, wait) if bundle.manifest.role == "tail" else one

    with patch("edgesdk.remote_runner.runners.load", loaded):
        yield
