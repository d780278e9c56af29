"""A Triton model repository: what Triton's own messages read from it, and what it leaves alone."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

import edgesdk
from edgesdk_converters.errors import BundleError, DeviceError
from edgesdk_targets import bundle as bundles
from edgesdk_targets import runner, triton
from edgesdk_targets.bundle import Bundle, nested, open_bundle

from ..fashion import samples

NETS = Path(__file__).parents[2] / "examples" / "fashion"


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    data = {"data": samples("t10k", 0, 200), "train": samples("train", 0, 200)}
    out = tmp_path_factory.mktemp("parts") / "cnn.edge"
    return edgesdk.export(
        NETS / "fashion_cnn.onnx", device="raspberry-pi-4", split="auto", payload_bits=4, max_drop=5, out=out, **data
    )


def read(folder: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def content(folder: Path) -> dict[str, bytes]:
    return {str(place.relative_to(folder)): place.read_bytes() for place in sorted(folder.rglob("*")) if place.is_file()}


def test_the_tail_of_a_split_bundle_is_written_and_computes_what_it_does_in_the_bundle(split: Bundle, tmp_path: Path) -> None:
    written = triton.write_repository(split.path, tmp_path / "repository")
    tail = nested(split, "tail.edge")
    assert written.path == tmp_path / "repository" / "fashion_cnn" and written.name == "fashion_cnn"
    assert sorted(content(tmp_path)) == ["repository/fashion_cnn/1/model.onnx", "repository/fashion_cnn/config.pbtxt"]
    found = read(written.path)
    assert (found.name, found.platform, found.max_batch_size) == ("fashion_cnn", "onnxruntime_onnx", 0)
    (given,), (got,) = found.input, found.output
    (spec,) = tail.manifest.signature.inputs
    assert (given.name, given.data_type, list(given.dims)) == (spec.name, model_config_pb2.TYPE_UINT8, [1, 2352])
    assert (got.name, got.data_type, list(got.dims)) == ("logits", model_config_pb2.TYPE_FP32, [1, 10])
    assert found.parameters["edgesdk_digest"].string_value == tail.digest
    assert found.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    payload = np.random.default_rng(0).integers(0, 256, (1, 2352), np.uint8)
    session = ort.InferenceSession(written.path / "1" / "model.onnx")
    there = session.run(["logits"], {spec.name: payload})[0]
    assert np.allclose(there, runner.load(tail).run({spec.name: payload})[0], rtol=1e-5, atol=1e-5)


def test_names_types_and_shapes_of_every_kind(tmp_path: Path) -> None:
    kinds = {
        "bool": TensorProto.BOOL, "int8": TensorProto.INT8, "uint16": TensorProto.UINT16, "int64": TensorProto.INT64,
        "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE,
    }  # fmt: skip
    shapes = (["batch", 3], [], [2, "w", "h"], [1], [4, 2], [5])
    ends = [
        [
            helper.make_tensor_value_info(f'{end} "{n}"\\ä\n', kind, shape)
            for (n, kind), shape in zip(kinds.items(), shapes, strict=True)
        ]
        for end in "xy"
    ]
    nodes = [helper.make_node("Identity", [a.name], [b.name]) for a, b in zip(*ends, strict=True)]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends), ir_version=9, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, tmp_path / "a model.onnx")
    edgesdk.export(tmp_path / "a model.onnx", target="server", out=tmp_path / "m.edge")
    found = read(triton.write_repository(tmp_path / "m.edge", tmp_path / "r").path)
    assert found.name == "a_model"
    for side, told in zip(ends, (found.input, found.output), strict=True):
        assert [entry.name for entry in told] == [one.name for one in side]
        assert [list(entry.dims) for entry in told] == [[-1, 3], [1], [2, -1, -1], [1], [4, 2], [5]]
        assert [entry.HasField("reshape") for entry in told] == [False, True, False, False, False, False]
        names = [model_config_pb2.DataType.Name(entry.data_type) for entry in told]
        assert names == ["TYPE_BOOL", "TYPE_INT8", "TYPE_UINT16", "TYPE_INT64", "TYPE_FP16", "TYPE_FP64"]


def test_settings_that_triton_knows_are_told_and_the_others_are_notes(split: Bundle) -> None:
    tail = nested(split, "tail.edge")
    runtime = dataclasses.replace(tail.manifest.runtime, optimization="basic", threads=3, arena=False, config={"session.x": "1"})
    changed = Bundle(tail.path, dataclasses.replace(tail.manifest, runtime=runtime), tail.files)
    found = text_format.Parse(triton.config(changed, "m"), model_config_pb2.ModelConfig())
    assert found.optimization.graph.level == -1
    assert found.parameters["intra_op_thread_count"].string_value == "3"
    assert found.parameters["enable_mem_arena"].string_value == "0"
    assert triton._notes(runtime) == ["Triton's ONNX Runtime cannot be told session.x=1, with which the bundle was checked"]
    plain = text_format.Parse(triton.config(tail, "m"), model_config_pb2.ModelConfig())
    assert not plain.HasField("optimization")


def test_an_older_model_is_replaced_and_everything_else_is_left_alone(split: Bundle, tmp_path: Path) -> None:
    (tmp_path / "r" / "another").mkdir(parents=True)
    (tmp_path / "r" / "another" / "config.pbtxt").write_text('name: "another"')
    first = triton.write_repository(split.path, tmp_path / "r")
    before = content(tmp_path / "r")
    (first.path / "1" / "stray").write_text("x")
    assert triton.write_repository(split.path, tmp_path / "r").path == first.path
    assert content(tmp_path / "r") == before
    assert sorted(place.name for place in (tmp_path / "r").iterdir()) == ["another", "fashion_cnn"]
    (first.path / "config.pbtxt").write_text('name: "fashion_cnn"  # by hand')
    with pytest.raises(BundleError, match="no model that edgesdk wrote; it is left alone"):
        triton.write_repository(split.path, tmp_path / "r")
    assert (first.path / "config.pbtxt").read_text().endswith("by hand")


@pytest.mark.parametrize("failing", ["open", "rename"])
def test_what_fails_leaves_the_older_one(split: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    triton.write_repository(split.path, tmp_path / "r")
    before = hashlib.sha256(repr(content(tmp_path / "r")).encode()).digest()
    calls = iter(range(100))

    def refuse(*arguments: object, **_: object) -> object:
        if failing == "rename" and next(calls) in (0, 2):  # the older one away, and back
            return rename(*arguments)  # type: ignore[arg-type]
        raise OSError(28, "No space left on device")

    rename = os.rename
    if failing == "rename":
        monkeypatch.setattr(triton.os, "rename", refuse)
    else:
        monkeypatch.setattr(triton, "open", refuse, raising=False)
    with pytest.raises(BundleError, match="cannot be written: No space left on device"):
        triton.write_repository(split.path, tmp_path / "r")
    monkeypatch.undo()
    assert hashlib.sha256(repr(content(tmp_path / "r")).encode()).digest() == before
    assert [place.name for place in (tmp_path / "r").iterdir()] == ["fashion_cnn"]


def test_what_is_no_model_for_triton(split: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="is the head of a split model"):
        triton.write_repository(split.path / "head.edge", tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="cannot be written: Not a directory"):
        triton.write_repository(split.path, tmp_path / "file" / "r")
    whole = open_bundle(split.path / "tail.edge")
    manifest = dataclasses.replace(whole.manifest, runtime=dataclasses.replace(whole.manifest.runtime, name="litert"))
    files = {name: whole.read(name) for name in whole.manifest.files}
    bundles.write(tmp_path / "other.edge", manifest, files)
    with pytest.raises(BundleError, match="runs on litert; Triton is given ONNX files"):
        triton.write_repository(tmp_path / "other.edge", tmp_path)


def test_files_obey_the_umask(split: Bundle, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        written = triton.write_repository(split.path, tmp_path / "r")
    finally:
        os.umask(before)
    assert stat.S_IMODE((written.path / "config.pbtxt").stat().st_mode) == 0o644
    assert stat.S_IMODE(written.path.stat().st_mode) == 0o755
