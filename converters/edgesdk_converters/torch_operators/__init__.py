"""ONNX operators as torch computes them: one function each, from an Operator and its inputs to its outputs."""

from __future__ import annotations

from collections.abc import Mapping

from . import elementwise, layers, quantised, recurrent, reductions, shapes
from .operator import DTYPES, Function, Known, Operator, Value

OPERATORS: Mapping[str, Function] = {
    **elementwise.OPERATORS,
    **shapes.OPERATORS,
    **reductions.OPERATORS,
    **layers.OPERATORS,
    **recurrent.OPERATORS,
    **quantised.OPERATORS,
}
KNOWN_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Reshape": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "Expand": (1,), "Tile": (1,), "Split": (1,), "Slice": (1, 2, 3, 4),
    "Pad": (1, 2, 3), "ConstantOfShape": (0,), "OneHot": (1,), "Trilu": (1,), "CenterCropPad": (1,), "Compress": (1,),
    "TopK": (1,), "CumSum": (1,), "CumProd": (1,), "Resize": (1, 2, 3), "Upsample": (1,), "AffineGrid": (1,), "Col2Im": (1, 2),
    "Dropout": (1, 2), "Clip": (1, 2),
    **{kind: (1,) for kind in OPERATORS if kind.startswith("Reduce")},
}  # fmt: skip
"""By operator, the inputs that must be known before the others have values: shapes, axes, counts."""

__all__ = ["DTYPES", "KNOWN_INPUTS", "OPERATORS", "Function", "Known", "Operator", "Value"]
