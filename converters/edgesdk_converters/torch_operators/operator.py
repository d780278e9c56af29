"""Operator: one ONNX node as the functions of this folder see it, and the values that they take and give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Known = NDArray[Any]
"""A value that is known while the program is made, or follows from shapes: it never carries a gradient."""
Value = Tensor | Known
Function = Callable[..., Any]
"""Of an Operator and its input values, None for those left out; gives a Tensor, or a tuple of them."""


@dataclass(frozen=True)
class Operator:
    """Type, opset, attributes and number of outputs of a node."""

    kind: str
    opset: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute's value."""
        return self.attributes.get(name, default)


DTYPES: Mapping[int, torch.dtype] = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16, 4: torch.uint16, 12: torch.uint32, 13: torch.uint64,
}  # fmt: skip
"""By ONNX's number of an element type."""


def ints(value: Value | None) -> list[int] | None:
    """The whole numbers in a value that must be known: a shape, axes, a size."""
    if value is None:
        return None
    return [int(number) for number in np.asarray(value.tolist()).reshape(-1)]


def need_ints(value: Value | None) -> list[int]:
    """As `ints`, of a value that is never left out."""
    found = ints(value)
    assert found is not None
    return found


def numbers(value: Value | None) -> list[float] | None:
    """The numbers in a value that must be known."""
    return None if value is None else [float(number) for number in np.asarray(value.tolist()).reshape(-1)]


def positive(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis
