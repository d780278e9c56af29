"""External and sparse data: read from inside the model's directory only, bounded, and nothing left outside."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters import external, graph
from edgesdk_converters.errors import ModelError
from edgesdk_converters.model import Model
from edgesdk_converters.reference import Reference

DATA = np.arange(12, dtype=np.float32).reshape(3, 4)


def outside(name: str, array: Any, **entries: str) -> onnx.TensorProto:
    """A tensor whose data lies elsewhere."""
    tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.fixture
def write(build: Any, tmp_path: Path) -> Any:
    """Write x @ w with the given tensor as `w`, and `DATA` beside it as data.bin; returns the model's path."""
    (tmp_path / "data.bin").write_bytes(DATA.tobytes())

    def make(tensor: onnx.TensorProto) -> Path:
        proto = build([helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", [1, 3])], [("y", [1, 4])])
        proto.graph.initializer.append(tensor)
        path = tmp_path / "m.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    return make


def weight(model: Model, name: str = "w") -> Any:
    return numpy_helper.to_array(next(t for t in model.proto.graph.initializer if t.name == name))


def nothing_is_outside(model: Model) -> None:
    for _, tensor in graph.tensors(model.proto):
        assert tensor.data_location == TensorProto.DEFAULT
        assert not tensor.external_data


def test_external_data_is_read_inline(write: Any) -> None:
    model = Model.load(write(outside("w", DATA, location="data.bin")))
    assert np.array_equal(weight(model), DATA)
    nothing_is_outside(model)
    assert np.array_equal(Reference(model).run({"x": np.ones((1, 3), np.float32)})["y"], DATA.sum(0, keepdims=True))


def test_external_data_is_read_from_a_nested_directory_at_its_offset(write: Any, tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/w.bin").write_bytes(b"\xff" * 100 + DATA.tobytes() + b"\xff" * 9)
    model = Model.load(write(outside("w", DATA, location="a/./b/w.bin", offset="100", length=str(DATA.nbytes))))
    assert np.array_equal(weight(model), DATA)


def test_a_file_written_by_onnx_itself_loads(build: Any, tmp_path: Path) -> None:
    w = np.random.default_rng(0).standard_normal((3, 400)).astype(np.float32)
    proto = build([helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", [1, 3])], [("y", [1, 400])], {"w": w})
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").exists()
    assert np.array_equal(weight(Model.load(tmp_path / "m.onnx")), w)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"location": "../data.bin"}, "leaves the model's directory"),
        ({"location": "sub/../../data.bin"}, "leaves the model's directory"),
        ({"location": "/etc/passwd"}, "not a plain relative path"),
        ({"location": "..\\data.bin"}, "not a plain relative path"),
        ({"location": "C:data.bin"}, "not a plain relative path"),
        ({"location": "data.bin\0.txt"}, "not a plain relative path"),
        ({"location": ""}, "not a plain relative path"),
        ({"location": "."}, "leaves the model's directory"),
        ({}, "not a plain relative path"),
        ({"location": "absent.bin"}, "No such file"),
        ({"location": "data.bin/x"}, "goes through a link or a file"),
        ({"location": "x" * 300}, "name too long"),
        ({"location": "data.bin", "offset": "1"}, "wants bytes 1..49"),
        ({"location": "data.bin", "offset": "99999999999999999999"}, "wants bytes"),
        ({"location": "data.bin", "offset": "-4"}, "offset -4"),
        ({"location": "data.bin", "offset": "four"}, "is no number"),
        ({"location": "data.bin", "length": "0x30"}, "is no number"),
        ({"location": "data.bin", "offset": "9" * 5000}, "is no number"),
        ({"location": "data.bin", "length": "44"}, "length 44"),
        ({"location": "data.bin", "length": "52"}, "length 52"),
    ],
)
def test_bad_references_are_refused(write: Any, tmp_path: Path, entries: dict[str, str], said: str) -> None:
    (tmp_path.parent / "data.bin").write_bytes(DATA.tobytes())
    with pytest.raises(ModelError, match=said.replace("\\", "\\\\")):
        Model.load(write(outside("w", DATA, **entries)))


def test_a_key_given_twice_is_refused(write: Any) -> None:
    tensor = outside("w", DATA, location="data.bin")
    tensor.external_data.add(key="location", value="../secret")
    with pytest.raises(ModelError, match="twice"):
        Model.load(write(tensor))


@pytest.mark.parametrize("kind", ["link", "link outside", "dangling", "linked directory", "hard link", "directory", "fifo"])
def test_links_and_other_non_files_are_refused(write: Any, tmp_path: Path, kind: str) -> None:
    location = "other.bin"
    target = tmp_path / location
    if kind == "link":
        target.symlink_to("data.bin")
    elif kind == "link outside":
        target.symlink_to("/etc/passwd")
    elif kind == "dangling":
        target.symlink_to("nowhere")
    elif kind == "linked directory":
        (tmp_path / "real").mkdir()
        (tmp_path / "real/w.bin").write_bytes(DATA.tobytes())
        (tmp_path / "sub").symlink_to("real")
        location = "sub/w.bin"
    elif kind == "hard link":
        os.link(tmp_path / "data.bin", target)
    elif kind == "directory":
        target.mkdir()
    else:
        os.mkfifo(target)
    with pytest.raises(ModelError, match=r"link|regular file"):
        Model.load(write(outside("w", DATA, location=location)))


def test_a_model_reached_through_a_link_finds_its_data_beside_the_real_file(write: Any, tmp_path: Path) -> None:
    path = write(outside("w", DATA, location="data.bin"))
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.onnx"
    link.symlink_to(path)
    assert np.array_equal(weight(Model.load(link)), DATA)


def test_a_directory_in_place_of_the_model_directory_that_cannot_be_read_is_an_edge_error(tmp_path: Path) -> None:
    proto = onnx.ModelProto()
    proto.graph.initializer.append(outside("w", DATA, location="data.bin"))
    with pytest.raises(ModelError, match="No such file"):
        external.inline(proto, tmp_path / "gone")


def test_external_data_of_a_proto_in_memory_is_refused(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.bin").write_bytes(DATA.tobytes())
    proto = build([helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", [1, 3])], [("y", [1, 4])])
    proto.graph.initializer.append(outside("w", DATA, location="data.bin"))
    with pytest.raises(ModelError, match="lies outside the model"):
        Model.from_proto(proto, "m")


def _everywhere(build: Any) -> onnx.ModelProto:
    """A model that stores an external tensor in every place that ONNX has for one."""
    flag = numpy_helper.from_array(np.array(True), "flag")

    def place(name: str) -> onnx.TensorProto:
        return outside(name, DATA, location="data.bin")

    def sparse(name: str) -> onnx.SparseTensorProto:
        made = onnx.SparseTensorProto(dims=[3, 4])
        made.values.CopyFrom(outside(name, DATA.reshape(-1), location="data.bin"))
        made.indices.CopyFrom(outside("", np.arange(12), location="indices.bin"))
        return made

    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("Constant", [], [f"{name}_c"])
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(place(""))
        spare = helper.make_node("Constant", [], [f"{name}_s"])
        spare.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(sparse(""))
        total = helper.make_node("Sum", [f"{name}_c", f"{name}_s", f"{name}_i", f"{name}_p"], [f"{name}_y"])
        made = helper.make_graph([node, spare, total], name, [], [helper.make_tensor_value_info(f"{name}_y", 1, [3, 4])])
        made.initializer.append(place(f"{name}_i"))
        made.sparse_initializer.append(sparse(f"{name}_p"))
        return made

    chosen = helper.make_node("If", ["flag"], ["z"], then_branch=branch("t"), else_branch=branch("e"))
    inner = helper.make_node("Constant", [], ["c"])
    inner.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(place(""))
    local_if = helper.make_node("If", ["on"], ["i"], then_branch=branch("ft"), else_branch=branch("fe"))
    function = helper.make_function(
        "local", "Add3", ["a", "on"], ["b"], [inner, local_if, helper.make_node("Sum", ["a", "c", "i"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    proto: onnx.ModelProto = build(
        [chosen, helper.make_node("Sum", ["x", "z", "w", "s"], ["m"]),
         helper.make_node("Add3", ["m", "flag"], ["y"], domain="local")],
        [("x", [3, 4])], [("y", [3, 4])], functions=[function], domains=["local"],
    )  # fmt: skip
    proto.graph.initializer.extend([flag, place("w")])
    proto.graph.sparse_initializer.append(sparse("s"))
    return proto


def test_external_data_is_read_in_every_place_that_can_hold_a_tensor(build: Any, tmp_path: Path) -> None:
    proto = _everywhere(build)
    (tmp_path / "data.bin").write_bytes(DATA.tobytes())
    (tmp_path / "indices.bin").write_bytes(np.arange(12).tobytes())
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    count = proto.SerializeToString().count(b"data.bin")
    model = Model.load(tmp_path / "m.onnx")
    assert count == 4 * 4 + 3
    assert b"data.bin" not in model.to_bytes()
    assert b"indices.bin" not in model.to_bytes()
    nothing_is_outside(model)
    zeros = np.zeros((3, 4), np.float32)
    got = Reference(model).run({"x": zeros})["y"]
    assert np.array_equal(got, DATA * 11)  # If 4, w, s, function's constant, function's If 4


@pytest.mark.parametrize("place", ["data.bin", "indices.bin"])
def test_a_bad_reference_is_refused_in_every_place(build: Any, tmp_path: Path, place: str) -> None:
    """Each place in turn points outside; loading must fail each time."""
    data = _everywhere(build).SerializeToString()
    (tmp_path / "data.bin").write_bytes(DATA.tobytes())
    (tmp_path / "indices.bin").write_bytes(np.arange(12).tobytes())
    name, other = place.encode(), b"../" + place.encode()[3:]
    start, seen = data.find(name), 0
    while start >= 0:
        (tmp_path / "m.onnx").write_bytes(data[:start] + other + data[start + len(name) :])
        with pytest.raises(ModelError, match="leaves the model's directory"):
            Model.load(tmp_path / "m.onnx")
        seen += 1
        start = data.find(name, start + 1)
    assert seen == (19 if place == "data.bin" else 9)


def test_an_attribute_that_lies_about_its_type_hides_no_tensor(build: Any, tmp_path: Path) -> None:
    proto = build([helper.make_node("Relu", ["x"], ["y"])], [("x", [1])], [("y", [1])])
    hidden = proto.graph.node[0].attribute.add(name="hidden", type=onnx.AttributeProto.INT, i=1)
    hidden.g.initializer.append(outside("w", DATA, location="../data.bin"))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="leaves the model's directory"):
        Model.load(tmp_path / "m.onnx")


def test_training_graphs_are_guarded_and_dropped(build: Any, tmp_path: Path) -> None:
    proto = build([helper.make_node("Relu", ["x"], ["y"])], [("x", [1])], [("y", [1])])
    training = proto.training_info.add()
    training.algorithm.initializer.append(outside("w", DATA, location="../data.bin"))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="leaves the model's directory"):
        Model.load(tmp_path / "m.onnx")
    proto.training_info[0].algorithm.initializer[0].CopyFrom(numpy_helper.from_array(DATA, "w"))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    model = Model.load(tmp_path / "m.onnx")
    assert not model.proto.training_info
    assert [step.name for step in model.history] == ["drop training"]


# --- sizes -------------------------------------------------------------------------------------------


def _huge(name: str = "w", dims: tuple[int, ...] = (1 << 30,)) -> onnx.TensorProto:
    return TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, raw_data=b"\0" * 16)


def _four_gigabytes(build: Any, kind: str) -> onnx.ModelProto:
    x, y = [("x", [1])], [("y", [1])]
    if kind == "input":
        return build([helper.make_node("ReduceMax", ["x"], ["y"])], [("x", [1 << 30])], [("y", [1])])
    if kind in ("ConstantOfShape", "Expand", "Tile"):
        shape = {"n": np.array([1 << 30], np.int64), "v": np.zeros(1, np.float32)}
        inputs = {"ConstantOfShape": ["n"], "Expand": ["v", "n"], "Tile": ["v", "n"]}[kind]
        nodes = [helper.make_node(kind, inputs, ["big"]), helper.make_node("ReduceMax", ["big"], ["m"])]
        return build([*nodes, helper.make_node("Add", ["x", "m"], ["y"])], x, y, shape)
    if kind == "in an If":
        then = helper.make_graph(
            [
                helper.make_node("Constant", [], ["n"], value_ints=[1 << 30]),
                helper.make_node("ConstantOfShape", ["n"], ["big"]),
                helper.make_node("ReduceMax", ["big"], ["t"]),
            ],
            "t", [], [helper.make_tensor_value_info("t", 1, [1])],
        )  # fmt: skip
        other = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["e"])], "e", [], [helper.make_tensor_value_info("e", 1, [1])]
        )
        weights = {"flag": np.array(True)}
        return build([helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other)], x, y, weights)
    proto = build([helper.make_node("Add", ["x", "w"], ["y"])], x, y)
    if kind == "initialiser":
        proto.graph.initializer.append(_huge())
    elif kind == "many initialisers":
        proto.graph.initializer.extend(_huge(f"w{i}", (1 << 28,)) for i in range(3))
        for tensor in proto.graph.initializer:
            tensor.raw_data = b""
    elif kind == "overflowing product":
        proto.graph.initializer.append(_huge(dims=(1 << 40, 1 << 40)))
    elif kind == "strings":
        proto.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.STRING, dims=[1 << 30], string_data=[b"a"]))
    elif kind in ("sparse", "sparse strings", "sparse int4"):
        types = {"sparse": TensorProto.FLOAT, "sparse strings": TensorProto.STRING, "sparse int4": TensorProto.INT4}
        sparse = onnx.SparseTensorProto(dims=[1 << 32])
        sparse.values.name, sparse.values.data_type = "w", types[kind]
        sparse.values.dims.append(0)
        sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(0, np.int64)))
        proto.graph.sparse_initializer.append(sparse)
    elif kind == "Constant":
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=_huge("")))
    elif kind == "external length":
        proto.graph.initializer.append(outside("w", np.broadcast_to(np.float32(0), (1 << 30,)), location="data.bin"))
    elif kind == "external short":
        proto.graph.initializer.append(outside("w", np.broadcast_to(np.float32(0), (1 << 28,)), location="data.bin"))
    return proto


@pytest.mark.parametrize(
    "kind",
    [
        "initialiser", "many initialisers", "overflowing product", "strings", "sparse", "sparse strings", "sparse int4",
        "Constant", "external length", "external short", "ConstantOfShape", "Expand", "Tile", "in an If", "input",
    ],
)  # fmt: skip
def test_four_gigabytes_declared_in_a_small_file_are_refused_without_being_allocated(
    build: Any, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "data.bin").write_bytes(b"\0" * 64)
    (tmp_path / "m.onnx").write_bytes(_four_gigabytes(build, kind).SerializeToString())
    assert (tmp_path / "m.onnx").stat().st_size < 1500
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError):
        Model.load(tmp_path / "m.onnx")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_negative_dimensions_are_refused(build: Any) -> None:
    proto = build([helper.make_node("Add", ["x", "w"], ["y"])], [("x", [1])], [("y", [1])])
    proto.graph.initializer.append(TensorProto(name="w", data_type=1, dims=[-1, -4], raw_data=b"\0" * 16))
    with pytest.raises(ModelError, match="negative dimension"):
        Model.from_proto(proto, "m")


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (TensorProto(data_type=1, dims=[4], raw_data=b"\0" * 12), "declares 16 bytes but holds 12"),
        (TensorProto(data_type=1, dims=[4], raw_data=b"\0" * 20), "declares 16 bytes but holds 20"),
        (TensorProto(data_type=1, dims=[4], float_data=[1, 2, 3]), "declares 4 values but holds 3"),
        (TensorProto(data_type=1, dims=[4]), "declares 4 values but holds 0"),
        (TensorProto(data_type=1, dims=[4], int64_data=[1, 2, 3, 4]), "holds data in int64_data; allowed: float_data"),
        (TensorProto(data_type=1, dims=[1], raw_data=b"\0" * 4, float_data=[1]), "one of them"),
        (TensorProto(data_type=10, dims=[2], int32_data=[0]), "declares 2 values but holds 1"),
        (TensorProto(data_type=22, dims=[3], int32_data=[0]), "declares 2 values but holds 1"),
        (TensorProto(data_type=14, dims=[2], float_data=[0, 0]), "declares 4 values but holds 2"),
        (TensorProto(data_type=8, dims=[2], string_data=[b"a"]), "declares 2 values but holds 1"),
        (TensorProto(data_type=8, dims=[1], raw_data=b"a"), "declares 1 values but holds 0"),
        (TensorProto(data_type=0, dims=[1], raw_data=b"a"), "unknown element type 0"),
        (TensorProto(data_type=99, dims=[1], raw_data=b"a"), "unknown element type 99"),
    ],
)
def test_data_that_does_not_match_its_declaration_is_refused(build: Any, tensor: onnx.TensorProto, said: str) -> None:
    proto = build([helper.make_node("Add", ["x", "w"], ["y"])], [("x", [1])], [("y", [1])])
    proto.graph.initializer.add().CopyFrom(tensor)
    proto.graph.initializer[0].name = "w"
    with pytest.raises(ModelError, match=said):
        Model.from_proto(proto, "m")


def test_a_segment_of_a_tensor_is_refused(build: Any) -> None:
    proto = build([helper.make_node("Add", ["x", "w"], ["y"])], [("x", [1])], [("y", [1])], {"w": np.zeros(1, np.float32)})
    proto.graph.initializer[0].segment.begin = 0
    with pytest.raises(ModelError, match="segment"):
        Model.from_proto(proto, "m")


# --- sparse tensors ----------------------------------------------------------------------------------


def _sparse(values: Any, indices: Any, dims: list[int]) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(
        numpy_helper.from_array(np.asarray(values), "w"), numpy_helper.from_array(np.asarray(indices), "i"), dims
    )


DENSE = np.array([[0, 5, 0, 0], [0, 0, 0, 6], [7, 0, 0, 0]], np.float32)


@pytest.mark.parametrize("indices", [[1, 7, 8], [[0, 1], [1, 3], [2, 0]]], ids=["linear", "2-D"])
@pytest.mark.parametrize("where", ["initialiser", "Constant"])
def test_sparse_tensors_become_dense(build: Any, indices: Any, where: str) -> None:
    sparse = _sparse(np.array([5, 6, 7], np.float32), np.array(indices, np.int64), [3, 4])
    proto = build([helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", [3, 3])], [("y", [3, 4])])
    if where == "initialiser":
        proto.graph.sparse_initializer.append(sparse)
    else:
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    model = Model.from_proto(proto, "m")
    assert not model.proto.graph.sparse_initializer
    assert np.array_equal(Reference(model).run({"x": np.eye(3, dtype=np.float32)})["y"], DENSE)


def test_a_sparse_tensor_of_one_axis_takes_indices_of_either_form(build: Any) -> None:
    for indices in ([0, 2], [[0], [2]]):
        proto = build([helper.make_node("Add", ["x", "w"], ["y"])], [("x", [3])], [("y", [3])])
        proto.graph.sparse_initializer.append(_sparse(np.array([1, 2], np.float32), np.array(indices, np.int64), [3]))
        assert weight(Model.from_proto(proto, "m")).tolist() == [1, 0, 2]


def test_an_empty_sparse_tensor_is_all_zeros(build: Any) -> None:
    proto = build([helper.make_node("Add", ["x", "w"], ["y"])], [("x", [3])], [("y", [3])])
    proto.graph.sparse_initializer.append(_sparse(np.zeros(0, np.float32), np.zeros(0, np.int64), [3]))
    assert weight(Model.from_proto(proto, "m")).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("values", "indices", "dims"),
    [
        ([1.0], [12], [3, 4]),
        ([1.0], [-1], [3, 4]),
        ([1.0], [[0, 4]], [3, 4]),
        ([1.0], [[3, 0]], [3, 4]),
        ([1.0], [[0, -1]], [3, 4]),
        ([1.0], [[0, 0, 0]], [3, 4]),
        ([1.0, 2.0], [1], [3, 4]),
        ([1.0, 2.0], [1, 2, 3], [3, 4]),
        ([[1.0]], [[0]], [3, 4]),
        ([1.0], [0.0], [3, 4]),
    ],
)
def test_sparse_indices_that_do_not_fit_are_refused(build: Any, values: Any, indices: Any, dims: list[int]) -> None:
    proto = build([helper.make_node("Add", ["x", "w"], ["y"])], [("x", [3, 4])], [("y", [3, 4])])
    proto.graph.sparse_initializer.add().CopyFrom(
        _sparse_raw(np.array(values, np.float32), np.array(indices, None if indices == [0.0] else np.int64), dims)
    )
    with pytest.raises(ModelError, match="sparse tensor"):
        Model.from_proto(proto, "m")


def _sparse_raw(values: Any, indices: Any, dims: list[int]) -> onnx.SparseTensorProto:
    made = onnx.SparseTensorProto(dims=dims)
    made.values.CopyFrom(numpy_helper.from_array(values, "w"))
    made.indices.CopyFrom(numpy_helper.from_array(indices, "i"))
    return made


def test_a_sparse_attribute_of_another_node_is_refused(build: Any) -> None:
    proto = build([helper.make_node("Relu", ["x"], ["y"])], [("x", [1])], [("y", [1])])
    attribute = proto.graph.node[0].attribute.add(name="s", type=onnx.AttributeProto.SPARSE_TENSORS)
    attribute.sparse_tensors.add().CopyFrom(_sparse_raw(np.zeros(1, np.float32), np.zeros(1, np.int64), [1]))
    with pytest.raises(ModelError, match="sparse attribute"):
        Model.from_proto(proto, "m")
