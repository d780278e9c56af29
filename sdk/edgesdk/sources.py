"""Where a model comes from: an .onnx file, a .pt2 program, a torch module by name, or a list of layers."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgesdk_converters.errors import ModelError, RecipeError
from edgesdk_converters.signature import Processing

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer
    from edgesdk_converters.model import Model

_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_LARGEST = 2**31 - 1
_ENGINE = ("an engine for one kind of GPU", "give the ONNX model that it was built from")
_KERAS = ("a Keras model", "convert it to ONNX with tf2onnx")
_FOREIGN = {
    ".edge": ("a bundle", "give the model it was made from; edgesdk inspect says which"),
    ".safetensors": ("weights without a graph", "give package.module:callable --weights FILE.safetensors"),
    ".tflite": ("a TensorFlow Lite model", "give the ONNX or torch model that it was made from"),
    ".h5": _KERAS,
    ".keras": _KERAS,
    ".engine": _ENGINE,
    ".plan": _ENGINE,
    ".trt": _ENGINE,
}
"""Names that say what a file is when it is no model for us."""


def open_model(
    source: str | os.PathLike[str] | Model,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, float] | None = None,
    weights: str | os.PathLike[str] | None = None,
    processing: Processing | None = None,
) -> Model:
    """The model behind a path or name. Raises ModelError where it is none, MissingExtra where torch is needed and absent."""
    from edgesdk_converters.model import Model

    if isinstance(source, Model):
        model = source
        if constants:
            model = model.with_constants(constants)
        if shapes:
            model = model.with_shapes(shapes)
        return replace(model, signature=model.signature.with_processing(processing)) if processing else model
    text = os.fspath(source)
    if not _is_text(text):
        raise ModelError(f"the model's path {text!r} is not UTF-8, and the bundle is named after it", "rename the file")
    if weights is not None and not _CALLABLE.fullmatch(text):
        raise ModelError(
            f"--weights goes with package.module:callable; the model is {text!r}", "leave --weights out, or name a callable"
        )
    if text.endswith(".pt2"):
        from edgesdk_converters.from_torch import from_program

        model = from_program(text, processing=processing)
        model = model.with_constants(constants) if constants else model
        return model.with_shapes(shapes) if shapes else model
    if _CALLABLE.fullmatch(text) and not Path(text).exists():
        from edgesdk_converters.from_torch import from_callable

        model = from_callable(text, shapes=shapes, weights=weights, processing=processing)
        return model.with_constants(constants) if constants else model
    if text.endswith((".pt", ".pth", ".ckpt", ".pkl")):
        raise ModelError(
            f"{text} is a pickle, which can run any code when it is opened; edgesdk never does",
            "save weights as .safetensors and give package.module:callable --weights FILE, or torch.export.save a .pt2",
        )
    if (foreign := _FOREIGN.get(Path(text).suffix)) is not None:
        raise ModelError(
            f"{text} is {foreign[0]}; a model is an .onnx file, a .pt2 program or package.module:callable", foreign[1]
        )
    if text.endswith(".json"):
        raise ModelError(
            f"{text} is a layer list, which has no weights: it can be estimated, not exported",
            f"edgesdk estimate {text} --device NAME",
        )
    return Model.load(text, shapes=shapes, constants=constants, processing=processing)


def open_layers(
    source: str | os.PathLike[str] | Model, *, shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[str, tuple[Layer, ...]]:
    """Name and layers of a model or of a layer list in JSON."""
    from edgesdk_converters.cost import layers, load_layers

    if isinstance(source, (str, os.PathLike)) and os.fspath(source).endswith(".json"):
        return Path(source).stem, load_layers(source)
    model = open_model(source, shapes=shapes)
    return model.name, layers(model)


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes from `x=1x3x224x224` texts. Raises RecipeError for anything else."""
    shapes = {}
    for text in texts:
        name, equals, dims = text.rpartition("=")
        parts = dims.lower().split("x")
        if not equals or not name or not all(part.isdecimal() for part in parts):
            raise RecipeError(f"--shape {text!r}: expected INPUT=1x3x224x224")
        if any(int(part) > _LARGEST for part in parts):
            raise RecipeError(f"--shape {text!r}: sizes of at most {_LARGEST} are allowed")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def parse_constants(texts: Sequence[str]) -> dict[str, float]:
    """Values from `sr=16000` texts. Raises RecipeError for anything else."""
    values = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not equals or not name or not math.isfinite(value):
            raise RecipeError(f"--constant {text!r}: expected INPUT=NUMBER, the number finite")
        values[name] = value
    return values


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
