"""Costing: what a target takes for a model that is still being made, so that passes can spend where it counts.

On the same basis as candidates are ranked by: time where this machine is the device, instructions where its core is emulated,
else the target's estimate. Only ratios of these numbers mean anything.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgesdk_converters.cost import layers
from edgesdk_converters.errors import ModelError
from edgesdk_targets import bundle as bundles
from edgesdk_targets import emulate, runner
from edgesdk_targets.bundle import Manifest
from edgesdk_targets.measure import side_by_side
from edgesdk_targets.target import Segment, Target

from .ranking import Basis

if TYPE_CHECKING:
    from edgesdk_converters.model import Model

SECONDS = 0.5
"""Of timing, for each model."""


@dataclass(frozen=True)
class Costing:
    """Makes the function from a model to its cost that passes are given."""

    backend: Target
    by: Basis
    feed: Mapping[str, Any]
    progress: Callable[[str], None] = runner.silent

    def of(self, source: Model) -> Callable[[Model], float] | None:
        """The cost of models beside that of `source`, which is 1; None where the target has no figure for it."""
        if self.by == "measured":
            return lambda model: self._time(source, model)
        found: dict[str, float] = {}
        absolute = self._instructions if self.by == "emulated" else self._estimate

        def relative(model: Model) -> float:
            for one in (source, model):
                if one.digest not in found:
                    found[one.digest] = absolute(one) or 0.0
            return found[model.digest] / found[source.digest]

        try:
            return relative if (absolute(source) or 0.0) > 0 else None
        except ModelError:
            return None  # shapes that are not static: nothing can be estimated

    def _estimate(self, model: Model) -> float | None:
        rows = self.backend.estimate(layers(model), "fp32")
        return next((row.value for row in rows if row.name == "latency_ms" and row.layer is None), None)

    def _instructions(self, model: Model) -> float:
        manifest, files = self._compiled(model)
        with tempfile.TemporaryDirectory(prefix="edgesdk-draft-") as scratch:
            written = bundles.write(Path(scratch, "draft.edge"), manifest, files)
            return float(emulate.count(written, self.backend.device, feed=self.feed, progress=self.progress).total)

    def _time(self, source: Model, model: Model) -> float:
        """Time over the source's, taken in turn: what disturbs one disturbs both."""
        loaded: list[runner.Runner] = []
        for made in (source, model):
            manifest, files = self._compiled(made)
            loaded.append(runner.load(bundles.draft(Path(made.name), manifest, files), runner.RunOptions(allow_fallback=True)))
        try:
            runs = {str(index): _once(one, self.feed) for index, one in enumerate(loaded)}
            times = side_by_side(runs, seconds=SECONDS)
        finally:
            for one in loaded:
                one.close()
        return float(np.median(times["1"]) / np.median(times["0"]))

    def _compiled(self, model: Model) -> tuple[Manifest, Mapping[str, bytes]]:
        compiled = self.backend.compile(Segment(model))
        manifest = Manifest(
            name=model.name, target=self.backend.name, device=self.backend.device.name, precision="fp32",
            signature=model.signature, runtime=compiled.runtime,
        )  # fmt: skip
        return manifest, compiled.files


def _once(one: runner.Runner, feed: Mapping[str, Any]) -> Callable[[], object]:
    return lambda: one.run(feed)
