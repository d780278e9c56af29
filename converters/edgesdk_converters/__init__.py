"""Converters: models, graphs, cost, accuracy and the passes that change a model. The ground floor of edgesdk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import plugins
from .errors import RecipeError

if TYPE_CHECKING:
    from .passes import Pass

# ONNX Runtime 1.29 and later records what it runs, with a number for the device, under ~/.cache/Microsoft, to send it away. It
# reads this when it is first imported, which is after here; whoever wants it sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

PASSES = {
    "bottleneck": "edgesdk_converters.bottleneck:Bottleneck",
    "equalize": "edgesdk_converters.equalize:Equalize",
    "expand": "edgesdk_converters.expand:Expand",
    "fold": "edgesdk_converters.fold:Fold",
    "half": "edgesdk_converters.half:Half",
    "low_rank": "edgesdk_converters.low_rank:LowRank",
    "payload": "edgesdk_converters.payload:Payload",
    "prune": "edgesdk_converters.prune:Prune",
    "rotate": "edgesdk_converters.rotate:Rotate",
    "quantize": "edgesdk_converters.quantize:Quantize",
    "sparsify": "edgesdk_converters.sparsify:Sparsify",
}
GROUP = "edgesdk.passes"


def find(name: str) -> type[Pass]:
    """The pass class of that name. Raises RecipeError for an unknown or broken one."""
    return plugins.find(PASSES, GROUP, name, RecipeError)


def known() -> tuple[str, ...]:
    """Names of all passes, those of installed plugins included."""
    return plugins.known(PASSES, GROUP)
