"""What a model computes, by ONNX Runtime on this CPU: one thread, graph optimisation off, so that it repeats to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MissingExtra, ModelError
from .model import Model

try:
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
except ImportError as _error:
    raise MissingExtra("cpu", "onnxruntime") from _error

Array = NDArray[Any]
Sample = Mapping[str, Array]

ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)


_RUN_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, ValueError)  # the latter: an input is missing


class Reference:
    """A model ready to be run as the yardstick for everything made from it."""

    def __init__(self, model: Model, extra_outputs: Sequence[str] = ()) -> None:
        proto = model.proto
        if extra_outputs:
            proto = model.copy_proto()
            known = {info.name: info for info in proto.graph.value_info}
            for name in extra_outputs:
                proto.graph.output.append(known[name])
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.x64quantprecision", "1")  # sums of integers as exact on x86 as elsewhere
        self.output_names = [output.name for output in proto.graph.output]
        try:
            data = proto.SerializeToString()
            self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except ORT_ERRORS as error:
            raise ModelError(
                f"ONNX Runtime {ort.__version__} cannot run the model: {ort_message(error)}",
                "every export is held against its source in ONNX Runtime; replace that operator or type",
            ) from error

    def run(self, sample: Sample) -> dict[str, Array]:
        """All outputs for one set of inputs."""
        try:
            outputs = self._session.run(None, dict(sample))
        except _RUN_ERRORS as error:
            raise ModelError(
                f"the model fails on these inputs: {ort_message(error)}",
                "give real inputs with --data FILE.npz, and --shape where dimensions are dynamic",
            ) from error
        return dict(zip(self.output_names, (np.asarray(value) for value in outputs), strict=True))


def run_all(model: Model, samples: Iterable[Sample]) -> Iterator[dict[str, Array]]:
    """The outputs for each sample, one after another."""
    reference = Reference(model)
    for sample in samples:
        yield reference.run(sample)


def ort_message(error: Exception) -> str:
    """The first telling line of what ONNX Runtime said."""
    text = str(error).replace("[ONNXRuntimeError]", "").strip()
    parts = [part.strip() for part in text.split(" : ") if part.strip() and not part.strip().isdigit()]
    return " ".join((": ".join(parts[-2:]) or text).split())[:400]
