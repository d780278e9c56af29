"""Which ONNX Runtime loads which opset and IR version: read from onnxruntime_versions.toml."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgesdk_converters.errors import Unsupported

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from edgesdk_converters.model import Model


EXACT_INT8 = {"session.x64quantprecision": "1"}
"""Integer sums on x86 as exact as on Arm and on GPUs, so that a check there is no check of x86's saturating kernels.

kOrtSessionOptionsAvx2PrecisionMode in onnxruntime_session_options_config_keys.h; it has no effect on other CPUs.
"""


EXPAND_STORED = {"session.disable_quant_qdq": "1"}
"""Weights that are stored as integers become floats once, at loading, not at every run.

kOrtSessionOptionsDisableQuantQDQ in onnxruntime_session_options_config_keys.h.
"""


INTEGER_OPERATORS = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger")


def session_config(model: Model, *, exact: bool) -> dict[str, str]:
    """Session options that a graph needs to be run as it is meant; none for a float one.

    `exact`: the integer arithmetic is that of a device whose sums do not saturate.
    """
    operators = {node.op_type for node in model.proto.graph.node}
    if operators.intersection(INTEGER_OPERATORS):
        return dict(EXACT_INT8) if exact else {}
    return dict(EXPAND_STORED) if "DequantizeLinear" in operators else {}


@dataclass(frozen=True)
class Release:
    """What one release of ONNX Runtime loads."""

    version: str
    opset: int
    ml_opset: int
    ir: int


@functools.cache
def releases() -> tuple[Release, ...]:
    """All known releases, oldest first."""
    text = Path(__file__).with_name("onnxruntime_versions.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)["release"]
    found = [Release(row["version"], row["opset"], row["ml_opset"], row["ir"]) for row in rows]
    return tuple(sorted(found, key=lambda release: version_key(release.version)))


def version_key(version: str) -> tuple[int, ...]:
    """A version as numbers that compare; what follows the numbers is ignored."""
    numbers = []
    for part in version.split("."):
        digits = part[: next((i for i, c in enumerate(part) if not c.isdigit()), len(part))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def minimum_release(model: Model, target: str) -> str:
    """The oldest release that loads the model. Raises Unsupported where none is known to."""
    from edgesdk_converters import graph

    opset, ml_opset, ir = model.opset, graph.opset(model.proto, "ai.onnx.ml"), model.proto.ir_version
    for release in releases():
        if release.opset >= opset and release.ir >= ir and release.ml_opset >= ml_opset:
            return release.version
    newest = releases()[-1]
    raise Unsupported(
        target, "(model)", "opset",
        f"opset {opset}, ai.onnx.ml {ml_opset}, IR {ir}; ONNX Runtime {newest.version} ends at {newest.opset}, IR {newest.ir}",
        "export the model with a lower opset_version",
    )  # fmt: skip
