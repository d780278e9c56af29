"""Layer normalisation and GELU that are spelt out become one node and compute the same; what is not quite one stays."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from edgesdk_converters.model import Model
from edgesdk_converters.reference import Reference
from edgesdk_converters.spelt_out import joined

SIZE = 6


def spelt(build: Any, *, square: str = "Pow", affine: bool = True, axis: int = -1, opset: int = 17, epsilon: float = 1e-3,
          power: float = 2.0, also: str = "", rows: int = 3, shape: tuple[int, ...] = (SIZE,)) -> Model:  # fmt: skip
    """x (1, rows, SIZE) to y, by the nodes of older exporters, gain and bias of a shape; `also` is a second output."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], name="mean", axes=[axis]),
        helper.make_node("Sub", ["x", "mean"], ["far"], name="far"),
        helper.make_node("Pow", ["far", "two"], ["square"], name="square") if square == "Pow"
        else helper.make_node("Mul", ["far", "far"], ["square"], name="square"),
        helper.make_node("ReduceMean", ["square"], ["variance"], name="variance", axes=[axis]),
        helper.make_node("Add", ["variance", "epsilon"], ["more"], name="more"),
        helper.make_node("Sqrt", ["more"], ["root"], name="root"),
        helper.make_node("Div", ["far", "root"], ["normal" if affine else "y"], name="divided"),
    ]  # fmt: skip
    weights: dict[str, Any] = {"two": np.float32(power), "epsilon": np.float32(epsilon)}
    if affine:
        nodes += [helper.make_node("Mul", ["normal", "gain"], ["scaled"], name="scaled"),
                  helper.make_node("Add", ["scaled", "bias"], ["y"], name="shifted")]  # fmt: skip
        rng = np.random.default_rng(0)
        weights |= {name: rng.standard_normal(shape).astype(np.float32) for name in ("gain", "bias")}
    if square != "Pow":
        del weights["two"]
    ends = [1] * (len(shape) - 3) + [1, rows, SIZE] if affine else [1, rows, SIZE]
    outputs: list[tuple[Any, ...]] = [("y", ends)] + ([(also, [1, rows, 1])] if also else [])
    proto = build(nodes, [("x", [1, rows, SIZE])], outputs, weights, opset=opset)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto), "m")


def kinds(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.proto.graph.node)


@pytest.mark.parametrize(("square", "affine", "opset"), [("Pow", True, 17), ("Mul", True, 13), ("Pow", False, 11)])
def test_a_chain_is_one_node_that_computes_the_same(build: Any, square: str, affine: bool, opset: int) -> None:
    model = spelt(build, square=square, affine=affine, opset=opset)
    made = joined(model)
    assert kinds(made) == {"LayerNormalization": 1} and made.opset == 17
    (node,) = made.proto.graph.node
    assert node.name == ("shifted" if affine else "divided")
    assert next(a.f for a in node.attribute if a.name == "epsilon") == np.float32(1e-3)
    x = np.random.default_rng(1).standard_normal((1, 3, SIZE)).astype(np.float32)
    np.testing.assert_allclose(Reference(made).run({"x": x})["y"], Reference(model).run({"x": x})["y"], atol=2e-6)
    assert not {tensor.name for tensor in made.proto.graph.initializer} - set(node.input)


@pytest.mark.parametrize(
    "options", [{"axis": 1}, {"power": 3.0}, {"also": "root"}, {"also": "mean"}], ids=["axis", "cube", "root read", "mean read"]
)
def test_what_is_not_quite_one_stays(build: Any, options: dict[str, Any]) -> None:
    model = spelt(build, **options)
    assert joined(model) is model


@pytest.mark.parametrize("shape", [(SIZE, 1), (1, SIZE, 1), (1, 1, 1, SIZE), (1, 1, 1, 1)])
def test_gains_along_another_axis_or_of_more_axes_stay_behind_the_chain(build: Any, shape: tuple[int, ...]) -> None:
    model = spelt(build, rows=SIZE, shape=shape)
    made = joined(model)
    assert kinds(made) == {"LayerNormalization": 1, "Mul": 1, "Add": 1}
    x = np.random.default_rng(1).standard_normal((1, SIZE, SIZE)).astype(np.float32)
    np.testing.assert_allclose(Reference(made).run({"x": x})["y"], Reference(model).run({"x": x})["y"], atol=2e-6)


@pytest.mark.parametrize("shape", [(1,), (1, SIZE), (1, 1, SIZE)])
def test_gains_of_a_row_with_axes_of_one_before_it_are_part_of_the_node(build: Any, shape: tuple[int, ...]) -> None:
    model = spelt(build, rows=SIZE, shape=shape)
    made = joined(model)
    assert kinds(made) == {"LayerNormalization": 1}
    x = np.random.default_rng(1).standard_normal((1, SIZE, SIZE)).astype(np.float32)
    np.testing.assert_allclose(Reference(made).run({"x": x})["y"], Reference(model).run({"x": x})["y"], atol=2e-6)


def test_a_chain_over_a_tensor_of_unknown_shape_stays(build: Any) -> None:
    proto = spelt(build).copy_proto()
    for info in proto.graph.value_info:
        info.type.tensor_type.ClearField("shape")
    model = replace(spelt(build), proto=proto)
    assert joined(model) is model


def test_a_chain_with_a_node_that_is_kept_stays(build: Any) -> None:
    model = spelt(build)
    assert joined(model, ("square",)) is model and joined(model, ("elsewhere",)) is not model


def gelu(build: Any, *, root: float = 2**0.5, half: float = 0.5, one: float = 1.0, late: bool = True, inverse: bool = False,
         also: str = "", front: bool = False) -> Model:  # fmt: skip
    """`late`: the half is multiplied last, `inverse`: by the inverse of the root, which `front` has first, `also` is a second
    output."""
    factors = ("x", "half") if late else ("half", "x")
    nodes = [
        helper.make_node("Mul" if inverse else "Div", ["root", "x"] if front else ["x", "root"], ["scaled"], name="scaled"),
        helper.make_node("Erf", ["scaled"], ["bent"], name="bent"),
        helper.make_node("Add", ["one", "bent"], ["more"], name="more"),
        helper.make_node("Mul", [factors[0], "more"], ["first"], name="first"),
        helper.make_node("Mul", ["first", factors[1]], ["y"], name="second"),
    ]  # fmt: skip
    weights = {"root": np.float32(1 / root if inverse else root), "half": np.float32(half), "one": np.float32(one)}
    outputs: list[tuple[Any, ...]] = [("y", [1, SIZE])] + ([(also, [1, SIZE])] if also else [])
    return Model.from_proto(build(nodes, [("x", [1, SIZE])], outputs, weights, opset=13), "m")


@pytest.mark.parametrize(("late", "inverse", "front"), [(True, False, False), (False, True, False), (True, True, True)])
def test_gelu_is_one_node_that_computes_the_same(build: Any, late: bool, inverse: bool, front: bool) -> None:
    model = gelu(build, late=late, inverse=inverse, front=front)
    made = joined(model)
    assert kinds(made) == {"Gelu": 1} and made.opset == 20 and made.proto.graph.node[0].name == "second"
    x = np.random.default_rng(1).standard_normal((1, SIZE)).astype(np.float32) * 3
    np.testing.assert_allclose(Reference(made).run({"x": x})["y"], Reference(model).run({"x": x})["y"], atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"root": 2.0}, {"half": 0.25}, {"one": 2.0}, {"also": "bent"}, {"also": "first"}, {"front": True}]
)
def test_what_is_not_quite_gelu_stays(build: Any, options: dict[str, Any]) -> None:
    model = gelu(build, **options)
    assert joined(model) is model and joined(gelu(build), ("more",)).opset == 13


def test_what_torch_writes_for_opset_13_is_recognised() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, SIZE), torch.nn.LayerNorm(SIZE), torch.nn.GELU(), torch.nn.LayerNorm(SIZE))
    torch.nn.init.normal_(net[1].weight)  # type: ignore[arg-type]
    written: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.zeros(1, 3, 4),), written, opset_version=13, dynamo=False, input_names=["x"])
    model = Model.from_proto(onnx.load_from_string(written.getvalue()), "m")
    made = joined(model)
    assert kinds(model)["Sqrt"] == 2 and kinds(made)["LayerNormalization"] == 2 and "Sqrt" not in kinds(made)
    assert kinds(model)["Erf"] == 1 == kinds(made)["Gelu"] and "Erf" not in kinds(made)
    x = np.random.default_rng(2).standard_normal((1, 3, 4)).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(next(iter(Reference(made).run({"x": x}).values())), net(torch.from_numpy(x)), atol=1e-5)
