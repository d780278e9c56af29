"""Small models for the converters' tests, and ONNX's own operator tests as a source of valid ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given

from ..fashion import samples

Build = Callable[..., onnx.ModelProto]


def _value(name: str, *rest: Any) -> onnx.ValueInfoProto:
    shape, elem_type = (*rest, TensorProto.FLOAT)[:2]
    return helper.make_tensor_value_info(name, elem_type, shape)


def _build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[Any, ...]],
    outputs: Sequence[tuple[Any, ...]],
    weights: Mapping[str, Any] | None = None,
    opset: int = 17,
    ir: int = 9,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(data), name) for name, data in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "g", [_value(*i) for i in inputs], [_value(*o) for o in outputs], tensors)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir, functions=list(functions))


@pytest.fixture(scope="session")
def build() -> Build:
    """A ModelProto from nodes, (name, shape[, type]) inputs and outputs, and weights by name."""
    return _build


@pytest.fixture(scope="session")
def given() -> Callable[..., Given]:
    """What a pass is given: the model as its own source, and seeded random inputs unless samples are handed in."""

    def make(model: Model, samples: Samples | None = None, count: int = 4) -> Given:
        if samples is None:
            samples = synthetic(model, count)
        return Given(model, samples)

    return make


@pytest.fixture(scope="session")
def conv_net() -> onnx.ModelProto:
    """Conv, batch norm, ReLU, pooling, a dense layer: 3x16x16 to 10 logits."""
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    return _build(
        [
            helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1], name="conv1"),
            helper.make_node("BatchNormalization", ["c1", "scale", "bias", "mean", "var"], ["n1"], name="norm1"),
            helper.make_node("Relu", ["n1"], ["r1"], name="relu1"),
            helper.make_node("Conv", ["r1", "w2"], ["c2"], strides=[2, 2], name="conv2"),
            helper.make_node("Add", ["c2", "b2"], ["a2"], name="add2"),
            helper.make_node("GlobalAveragePool", ["a2"], ["p"], name="pool"),
            helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
            helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], name="dense"),
        ],
        [("x", [1, 3, 16, 16])],
        [("logits", [1, 10])],
        {
            "w1": normal(8, 3, 3, 3), "w2": normal(16, 8, 3, 3), "w3": normal(16, 10), "b3": normal(10),
            "b2": normal(1, 16, 1, 1), "scale": rng.uniform(0.5, 1.5, 8).astype(np.float32), "bias": normal(8),
            "mean": normal(8), "var": rng.uniform(0.5, 1.5, 8).astype(np.float32),
        },
    )  # fmt: skip


@dataclass(frozen=True)
class NodeCase:
    """One operator test of the onnx package whose model edgesdk accepts, with its first data set."""

    model: Model
    feeds: dict[str, Any]

    @property
    def samples(self) -> Samples:
        return Samples({name: np.asarray(array)[np.newaxis] for name, array in self.feeds.items()}, "the test's own inputs")


@pytest.fixture(scope="session")
def node_tests() -> list[Any]:
    """All operator tests of the installed onnx package, of whatever opset."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return list(collect_testcases(None))


@pytest.fixture(scope="session")
def node_cases(node_tests: list[Any]) -> list[NodeCase]:
    """Those of the operator tests that load, as Models."""
    from edgesdk_converters.errors import EdgeError

    cases = []
    for test in node_tests:
        proto = onnx.ModelProto()
        proto.CopyFrom(test.model)
        try:
            model = Model.from_proto(proto, test.name)
        except EdgeError:
            continue  # counted by test_model
        inputs = test.data_sets[0][0]
        # copies: ONNX Runtime's BatchNormalization in training writes new statistics into the arrays that it is fed
        feeds = {spec.name: np.array(value) for spec, value in zip(model.signature.inputs, inputs, strict=True)}
        if feeds:
            cases.append(NodeCase(model, feeds))
    return cases


@pytest.fixture(scope="session")
def fashion() -> Callable[[str, int], tuple[Any, Any]]:
    """Fashion-MNIST's first n images of "train" or "t10k", as the example nets take them (n, 1, 28, 28), and their labels."""

    def read(split: str, count: int) -> tuple[Any, Any]:
        made = samples(split, 0, count)
        return made["image"], made["labels"]

    return read
