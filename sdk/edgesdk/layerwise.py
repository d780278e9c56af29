"""Layer by layer: what each layer of a model costs as integers, and where two models first part, for `edgesdk inspect`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import RecipeError
from edgesdk_converters.recipe import Recipe
from edgesdk_targets.bundle import open_bundle
from edgesdk_targets.target import make

if TYPE_CHECKING:
    from edgesdk_converters.calibration import Samples
    from edgesdk_converters.model import Model

Array = NDArray[Any]
CASES = 64
"""Samples that every layer is tried on; more sharpen agreement and accuracy, and take longer."""
FIRST = 1e-2
"""Relative error from which on two models count as parted."""


def sensitivity(
    model: Model,
    *,
    target: str | None = None,
    device: str | None = None,
    data: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    cases: int = CASES,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Every layer alone as the target's int8 (default: server): SQNR, agreement, accuracy, ranges, outliers. JSON-ready.

    Without data the ranges and the inputs are seeded random ones, which `origin` says: SQNR then still ranks layers.
    """
    from edgesdk_converters import observe
    from edgesdk_converters.passes import Given
    from edgesdk_converters.quantize import Quantize, named
    from edgesdk_converters.sensitivity import costliest
    from edgesdk_converters.sensitivity import sensitivity as measure

    samples = _samples(model, data, cases)
    backend = make(target or (None if device else "server"), device)
    recipe = Recipe.from_plain(backend.recipe("int8"), f"target {backend.name}")
    place = next((index for index, step in enumerate(recipe.whole) if isinstance(step, Quantize)), None)
    if place is None:
        raise RecipeError(f"the recipe of {backend.name} for int8 has no pass quantize", "take another --target")
    step = recipe.whole[place]
    assert isinstance(step, Quantize)
    given = Given(model, replace(samples, synthetic=False), progress, observe.default_cache())
    folded = named(Recipe(recipe.whole[:place]).run(model, given))

    def alone(names: tuple[str, ...]) -> Model:
        return replace(step, only=names)(folded, given)

    found = measure(folded, samples, alone, step.layers(folded), progress=progress)
    order = [one.layer for one in costliest(found)]
    rows = [
        {
            "layer": one.layer,
            "op": one.op,
            "sqnr_db": _finite(one.sqnr_db),
            "output_sqnr_db": _finite(one.output_sqnr_db),
            "agreement": one.agreement,
            "accuracy": one.accuracy,
            "macs": one.macs,
            "input_range": list(one.input_range),
            "output_range": list(one.output_range),
            "weight_range": list(one.weight_range),
            "outlier_channels": list(one.outlier_channels),
            "rank": order.index(one.layer) + 1,
        }
        for one in found
    ]
    about = {"flavour": step.flavour, "origin": samples.origin, "samples": len(samples), "synthetic": samples.synthetic}
    return about | {"layers": rows}


def against(
    model: Model,
    other: str | os.PathLike[str] | Model,
    *,
    data: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    cases: int = 8,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """How far each tensor that both have is apart, and the first that is apart by more than FIRST. JSON-ready.

    `other` is a model or a bundle, whose model is taken; both run in ONNX Runtime without graph optimisation.
    """
    from edgesdk_converters.sensitivity import divergence

    samples = _samples(model, data, cases)
    rows = divergence(model, _opened(other), samples, progress=progress)
    first = next((row.tensor for row in rows if not row.relative_error <= FIRST), None)
    told = [{"tensor": row.tensor, "made_by": row.made_by, "relative_error": _finite(row.relative_error)} for row in rows]
    return {"origin": samples.origin, "samples": len(samples), "threshold": FIRST, "first": first, "tensors": told}


def _opened(other: str | os.PathLike[str] | Model) -> Model:
    from .sources import open_model

    if isinstance(other, (str, os.PathLike)) and (Path(other).suffix in (".edge", ".zip") or Path(other).is_dir()):
        import onnx

        from edgesdk_converters.model import Model as Loaded

        bundle = open_bundle(other)
        return Loaded.from_proto(onnx.load_from_string(bundle.read(bundle.manifest.runtime.file)), Path(other).name)
    return open_model(other)


def _samples(model: Model, data: str | os.PathLike[str] | Mapping[str, Array] | None, cases: int) -> Samples:
    from edgesdk_converters import calibration

    if data is None:
        return calibration.synthetic(model, min(cases, 16))
    if isinstance(data, Mapping):
        loaded = calibration.Samples.from_arrays(data, model.signature, "the given arrays")
    else:
        loaded = calibration.Samples.load(data, model.signature)
    return loaded.take(np.arange(min(cases, len(loaded))))


def _finite(value: float | None) -> float | None:
    """JSON has no infinity: None says that there is no noise at all, or that it is not finite."""
    return value if value is not None and math.isfinite(value) else None
