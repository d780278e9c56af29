"""Golden vectors: a few inputs, what the artefact makes of them and what the source model made of them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from edgesdk_converters.accuracy import max_abs_error, relative_error
from edgesdk_converters.errors import BundleError
from numpy.typing import NDArray

from .bundle import Bundle, Golden
from .runner import Runner

Array = NDArray[Any]
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2}
"""Relative error allowed between two machines that run the same artefact: other kernels sum in another order."""


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
) -> tuple[Golden, dict[str, bytes]]:
    """The manifest entry and the payload files for matching lists of cases."""
    files: dict[str, bytes] = {}
    tables: dict[str, dict[str, str]] = {}
    for group, cases in (("inputs", inputs), ("outputs", outputs), ("source_outputs", source_outputs)):
        tables[group] = {}
        for index, name in enumerate(cases[0]):
            file = f"golden/{group}/{index}.npy"
            files[file] = _to_npy(np.stack([np.asarray(case[name]) for case in cases]))
            tables[group][name] = file
    error = max(relative_error(a, b) for a, b in zip(outputs, source_outputs, strict=True))
    golden = Golden(
        len(inputs), tables["inputs"], tables["outputs"], tables["source_outputs"], TOLERANCE.get(precision, 1e-2),
        float(f"{error:.3g}"), runtime, origin,
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
        max(relative_error(a, b) for a, b in zip(got, outputs, strict=True)),
        max(relative_error(a, b) for a, b in zip(got, source, strict=True)),
        max(max_abs_error(a, b) for a, b in zip(got, source, strict=True)),
        golden.cases,
        golden.tolerance,
    )


def _to_npy(array: Array) -> bytes:
    sink = io.BytesIO()
    np.lib.format.write_array(sink, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return sink.getvalue()
