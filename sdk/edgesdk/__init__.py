"""edgesdk: from a trained model to something that runs on a device, with figures that say where they come from.

    bundle = edgesdk.export("model.onnx", target="jetson")
    outputs = edgesdk.load("model.edge").run({"x": x})

Names are imported on first use: `import edgesdk` and running a bundle need the standard library, numpy and one runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "edgesdk_targets.bundle",
    "Doors": "edgesdk.server",
    "EdgeError": "edgesdk_converters.errors",
    "Figure": "edgesdk_targets.figure",
    "Model": "edgesdk_converters.model",
    "Postprocess": "edgesdk_converters.signature",
    "Preprocess": "edgesdk_converters.signature",
    "Processing": "edgesdk_converters.signature",
    "Recipe": "edgesdk_converters.recipe",
    "Report": "edgesdk_targets.report",
    "Resize": "edgesdk_converters.signature",
    "Session": "edgesdk.session",
    "build": "edgesdk.api",
    "compare": "edgesdk.comparing",
    "cuts": "edgesdk.api",
    "estimate": "edgesdk.estimating",
    "export": "edgesdk.exporting",
    "fit": "edgesdk.fitting",
    "inspect": "edgesdk.api",
    "load": "edgesdk.session",
    "measure": "edgesdk.api",
    "plan": "edgesdk.planning",
    "reuse": "edgesdk.reuse_search",
    "serve": "edgesdk.server",
    "verify": "edgesdk.api",
}

__all__ = [
    "Bundle",
    "Doors",
    "EdgeError",
    "Figure",
    "Model",
    "Postprocess",
    "Preprocess",
    "Processing",
    "Recipe",
    "Report",
    "Resize",
    "Session",
    "build",
    "compare",
    "cuts",
    "estimate",
    "export",
    "fit",
    "inspect",
    "load",
    "measure",
    "plan",
    "reuse",
    "serve",
    "verify",
]

if TYPE_CHECKING:
    from edgesdk_converters.errors import EdgeError
    from edgesdk_converters.model import Model
    from edgesdk_converters.recipe import Recipe
    from edgesdk_converters.signature import Postprocess, Preprocess, Processing, Resize
    from edgesdk_targets.bundle import Bundle
    from edgesdk_targets.figure import Figure
    from edgesdk_targets.report import Report

    from .api import build, cuts, inspect, measure, verify
    from .comparing import compare
    from .estimating import estimate
    from .exporting import export
    from .fitting import fit
    from .planning import plan
    from .reuse_search import reuse
    from .server import Doors, serve
    from .session import Session, load


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'edgesdk' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))
