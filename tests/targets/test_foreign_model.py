"""Models from elsewhere: whatever way a file or an engine is meant, it is found; what only has such names is no reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters.errors import DeviceError, EdgeError, ModelError
from edgesdk_converters.model import Model
from edgesdk_targets import foreign_model
from edgesdk_targets.foreign_model import check

EXAMPLES = Path(__file__).parents[2] / "examples" / "fashion"
ENDS = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]


def tensor(path: str = "../../etc/passwd", located: bool = True) -> TensorProto:
    """A tensor that lies in another file."""
    found = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    if located:
        found.data_location = TensorProto.EXTERNAL
    found.external_data.add(key="location", value=path)
    return found


def model(nodes: list[onnx.NodeProto] | None = None, weights: tuple[TensorProto, ...] = ()) -> onnx.ModelProto:
    graph = helper.make_graph(nodes or [helper.make_node("Neg", ["x"], ["y"])], "g", ENDS[:1], ENDS[1:], weights)
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 20)])


def external(path: str) -> bytes:
    return model([helper.make_node("Add", ["x", "w"], ["y"])], (tensor(path),)).SerializeToString()


def engine(depth: int = 0) -> onnx.ModelProto:
    """An engine at some path, in so many branches of ifs."""
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/etc/passwd", embed_mode=0)
    for _ in range(depth):
        branch = helper.make_graph([node], "b", [], ENDS[1:])
        node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    return model([node])


def constant(value: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=value)


def functional() -> onnx.ModelProto:
    made = model()
    made.functions.append(helper.make_function("d", "F", ["x"], ["y"], [constant(tensor())], [helper.make_opsetid("", 20)]))
    return made


def sparse() -> onnx.ModelProto:
    made = model()
    made.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor(), dims=[1]))
    return made


def training() -> onnx.ModelProto:
    made = model()
    made.training_info.add().algorithm.initializer.append(tensor())
    return made


def listed() -> onnx.ModelProto:
    node = onnx.NodeProto(op_type="X")
    node.attribute.add(name="all", type=onnx.AttributeProto.TENSORS).tensors.append(tensor())
    return model([node])


FOREIGN: dict[str, Callable[[], bytes]] = {
    "an initializer": lambda: external("x"),
    "an absolute path": lambda: external("/etc/passwd"),
    "without its location flag": lambda: model(weights=(tensor(located=False),)).SerializeToString(),
    "with the flag alone": lambda: model(
        weights=(TensorProto(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL),)
    ).SerializeToString(),
    "a constant": lambda: model([constant(tensor())]).SerializeToString(),
    "a list of tensors": lambda: listed().SerializeToString(),
    "a function": lambda: functional().SerializeToString(),
    "a sparse tensor": lambda: sparse().SerializeToString(),
    "training": lambda: training().SerializeToString(),
    "long numbers": lambda: external("x").replace(b"\x0a\x08location", b"\x8a\x00\x08location"),
    "an engine": lambda: engine().SerializeToString(),
    "an engine in branches": lambda: engine(5).SerializeToString(),
    "two models in one": lambda: model().SerializeToString() + engine().SerializeToString(),
    "ONNX Runtime's own format": lambda: b"\x18\x00\x00\x00ORTM" + bytes(100),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_reaches_beyond_the_file_is_refused_wherever_it_stands(case: str) -> None:
    with pytest.raises(EdgeError) as caught:
        check(memoryview(FOREIGN[case]()))
    if case != "long numbers":  # there the lengths around it do not fit any more, which is as good a reason
        assert isinstance(caught.value, DeviceError) and "not taken from elsewhere" in caught.value.message


def test_fields_in_another_order_are_found_too() -> None:
    """protobuf's fields may come in any order: here the graph of the model holds its initializer first, value before key."""
    entry = b"\x12\x01x" + b"\x0a\x08location"
    weight = b"\x6a" + bytes([len(entry)]) + entry
    graph = b"\x2a" + bytes([len(weight)]) + weight
    with pytest.raises(DeviceError, match="other files"):
        check(memoryview(b"\x3a" + bytes([len(graph)]) + graph))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.onnx")), ids=lambda path: path.stem)
def test_real_models_are_taken(path: Path) -> None:
    check(memoryview(path.read_bytes()))


def test_names_are_no_reason(small_convnet: Callable[..., Model]) -> None:
    check(memoryview(small_convnet().to_bytes()))
    weight = numpy_helper.from_array(np.zeros(1, np.float32), "location")
    made = model([helper.make_node("Add", ["x", "location"], ["y"], name="EPContext")], (weight,))
    made.graph.value_info.append(helper.make_tensor_value_info("location", TensorProto.FLOAT, [1]))
    made.doc_string = "EPContext location"
    helper.set_model_props(made, {"location": "EPContext"})
    check(memoryview(made.SerializeToString()))


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a\xff\x01", b"\x3b", b"\x3c", b"\x3a", b"\xff" * 20, b"\x3a\x02\x2a\x7f", b"\x39\x00",
        b"PK\x03\x04 a zip of something",
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="no ONNX file"):
        check(memoryview(data))


def test_graphs_without_bottom_and_fields_without_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EdgeError):
        check(memoryview(engine(12).SerializeToString()))
    monkeypatch.setattr(foreign_model, "_DEEPEST", 10)
    with pytest.raises(ModelError, match="graphs in graphs"):
        check(memoryview(engine(8).SerializeToString()))
    monkeypatch.setattr(foreign_model, "_MOST_FIELDS", 5)
    with pytest.raises(ModelError, match="more than 5 fields"):
        check(memoryview(model().SerializeToString()))
