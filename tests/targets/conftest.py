"""What the tests of the targets share: small models, bundles made of them, and a manifest to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters.model import Model, Step
from edgesdk_converters.signature import Input, Output, Signature
from edgesdk_targets import bundle as bundles
from edgesdk_targets import golden
from edgesdk_targets.bundle import Bundle, Manifest, Provider, Runtime

Graph = Callable[..., Model]


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[Any]]],
    outputs: Mapping[str, tuple[int, Sequence[Any] | None]],
    weights: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    ir: int = 8,
    name: str = "small",
    history: tuple[Step, ...] = (),
) -> Model:
    """A Model from nodes, {name: (element type, shape)} and {name: array}."""
    graph = helper.make_graph(
        list(nodes),
        name,
        [helper.make_tensor_value_info(key, kind, shape) for key, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(key, kind, shape) for key, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in (weights or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    return Model.from_proto(proto, name, history=history)


def convnet(opset: int = 17, ir: int = 8, name: str = "convnet") -> Model:
    """x (1,3,8,8) -> conv 4 maps -> relu -> mean -> fc 5 -> y (1,5); weights are fixed."""
    rng = np.random.default_rng(7)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(4).astype(np.float32),
        "fc": rng.standard_normal((4, 5)).astype(np.float32),
        "fb": rng.standard_normal(5).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="mean"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "fc", "fb"], ["y"], name="fc"),
    ]
    inputs, outputs = {"x": (TensorProto.FLOAT, [1, 3, 8, 8])}, {"y": (TensorProto.FLOAT, [1, 5])}
    return build(nodes, inputs, outputs, weights, opset=opset, ir=ir, name=name)


def made_of(
    model: Model,
    path: Path,
    *,
    providers: tuple[Provider, ...] = (Provider("CPUExecutionProvider"),),
    cases: int = 2,
    runtime: Runtime | None = None,
    target: str = "server",
    device: str = "this-machine",
) -> Bundle:
    """A bundle of a model as an export would write it, golden vectors from ONNX Runtime included."""
    import onnxruntime as ort

    session = ort.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(3)
    shapes = {i.name: tuple(d if isinstance(d, int) else 2 for d in i.shape) for i in model.signature.inputs}
    inputs = [{i.name: _random(rng, i.dtype, shapes[i.name]) for i in model.signature.inputs} for _ in range(cases)]
    names = [o.name for o in model.signature.outputs]
    outputs = [dict(zip(names, session.run(names, case), strict=True)) for case in inputs]
    entry, files = golden.make(inputs, outputs, outputs, precision="fp32", runtime="onnxruntime test", origin="synthetic")
    manifest = Manifest(
        name=model.name, target=target, device=device, precision="fp32", signature=model.signature,
        runtime=runtime or Runtime("onnxruntime", "model.onnx", providers=providers, threads=1), golden=entry,
    )  # fmt: skip
    return bundles.write(path, manifest, {"model.onnx": model.to_bytes(), **files})


def _random(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if np.dtype(dtype).kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


@pytest.fixture
def model_of() -> Graph:
    return build


@pytest.fixture
def small_convnet() -> Callable[..., Model]:
    return convnet


@pytest.fixture
def bundle_of() -> Callable[..., Bundle]:
    return made_of


@pytest.fixture
def small_bundle(tmp_path: Path) -> Bundle:
    """A directory bundle of the small convolutional network at tmp_path/net.edge."""
    return made_of(convnet(), tmp_path / "net.edge")


@pytest.fixture
def plain_manifest() -> Manifest:
    """A manifest without golden vectors; its payload needs only a file named model.bin."""
    signature = Signature((Input("x", "float32", (1, 4)),), (Output("y", "float32", (1, 2)),))
    return Manifest("plain", "server", "this-machine", "fp32", signature, Runtime("onnxruntime", "model.bin"))


@pytest.fixture
def numbered(plain_manifest: Manifest) -> Callable[[int], tuple[Manifest, dict[str, bytes]]]:
    """Content number N: a manifest and three files, one of them in a folder, that all say N."""

    def content(number: int) -> tuple[Manifest, dict[str, bytes]]:
        files = {
            "model.bin": f"model {number} ".encode() * 50,
            "data/a.bin": f"a {number}".encode(),
            "notes.txt": f"{number}".encode(),
        }
        return replace(plain_manifest, name=f"n{number}"), files

    return content
