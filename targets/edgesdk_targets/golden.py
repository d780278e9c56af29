"""Golden vectors: a few inputs, what the artefact makes of them and what the source model made of them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.accuracy import distance, max_abs_error
from edgesdk_converters.errors import BundleError

from .bundle import Bundle, Golden
from .runner import Runner

Array = NDArray[Any]
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 5e-2}
"""Relative error allowed between two machines that run the same artefact: other kernels sum in another order.

An output in 8 bits has steps of about 1 % of its largest value; where a sum lies between two of them, machines may differ by one,
and what follows from that by a few.
"""

CODED = 5e-2
"""The same for what follows from a payload of few bits: of all its values, one between two codes may fall to the other side."""
PACKED = 0.51
"""The same for packed bytes themselves, where the code next to another may have another highest bit."""


@dataclass(frozen=True)
class Comparison:
    """Errors of a run over the golden inputs: against the artefact's own outputs, and against the source's."""

    artifact_relative_error: float
    source_relative_error: float
    source_abs_error: float
    cases: int
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.artifact_relative_error <= self.tolerance


def make(
    inputs: Sequence[Mapping[str, Array]],
    outputs: Sequence[Mapping[str, Array]],
    source_outputs: Sequence[Mapping[str, Array]],
    *,
    precision: str,
    runtime: str,
    origin: str,
    tolerance: float | None = None,
) -> tuple[Golden, dict[str, bytes]]:
    """The manifest entry and the payload files for matching lists of cases.

    `tolerance` is the relative error allowed between two machines; None: that of the precision. Cases whose shapes differ from
    the first one's (dynamic inputs, outputs as long as what was detected) are left out.
    """
    every = list(zip(inputs, outputs, source_outputs, strict=True))
    kept = [case for case in every if [_shapes(group) for group in case] == [_shapes(group) for group in every[0]]]
    inputs, outputs, source_outputs = zip(*kept, strict=True)
    files: dict[str, bytes] = {}
    tables: dict[str, dict[str, str]] = {}
    for group, cases in (("inputs", inputs), ("outputs", outputs), ("source_outputs", source_outputs)):
        tables[group] = {}
        for index, name in enumerate(cases[0]):
            file = f"golden/{group}/{index}.npy"
            files[file] = _to_npy(np.stack([np.asarray(case[name]) for case in cases]))
            tables[group][name] = file
    error = distance(outputs, source_outputs).relative
    golden = Golden(
        len(inputs), tables["inputs"], tables["outputs"], tables["source_outputs"],
        TOLERANCE.get(precision, 1e-2) if tolerance is None else tolerance,
        float(f"{error:.3g}") if math.isfinite(error) else None, runtime, origin,
    )  # fmt: skip
    return golden, files


def load(bundle: Bundle, group: str) -> list[dict[str, Array]]:
    """The cases of one group (`inputs`, `outputs`, `source_outputs`), empty where the bundle has no golden vectors."""
    golden = bundle.manifest.golden
    if golden is None:
        return []
    arrays = {}
    for name, file in getattr(golden, group).items():
        try:
            arrays[name] = np.load(io.BytesIO(bundle.read(file)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise BundleError(f"{bundle.path}: {file} is no array: {error}") from error
        if arrays[name].shape[:1] != (golden.cases,):
            raise BundleError(f"{bundle.path}: {file} has not {golden.cases} cases")
    return [{name: np.asarray(rows[case]) for name, rows in arrays.items()} for case in range(golden.cases)]


def compare(bundle: Bundle, runner: Runner) -> Comparison | None:
    """Run the golden inputs and compare. None where the bundle has none."""
    golden = bundle.manifest.golden
    if golden is None:
        return None
    names = [output.name for output in bundle.manifest.signature.outputs]
    got = [dict(zip(names, runner.run(case), strict=True)) for case in load(bundle, "inputs")]
    outputs, source = load(bundle, "outputs"), load(bundle, "source_outputs")
    return Comparison(
        distance(got, outputs).relative,
        distance(got, source).relative,
        max(max_abs_error(a, b) for a, b in zip(got, source, strict=True)),
        golden.cases,
        golden.tolerance,
    )


def _shapes(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(array) for name, array in arrays.items()}


def _to_npy(array: Array) -> bytes:
    if array.dtype == object:  # how ONNX Runtime gives text
        array = array.astype(np.str_)
    sink = io.BytesIO()
    np.lib.format.write_array(sink, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return sink.getvalue()
