"""ONNX Runtime's versions: the table never goes backwards, and a model gets the oldest release that loads it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgesdk_converters.errors import Unsupported
from edgesdk_converters.model import Model
from edgesdk_targets import onnxruntime_support
from edgesdk_targets.onnxruntime_support import minimum_release, releases, version_key


def test_later_releases_never_load_less() -> None:
    table = releases()
    assert len(table) > 10
    for older, newer in itertools.pairwise(table):
        assert version_key(older.version) < version_key(newer.version)
        assert older.opset <= newer.opset
        assert older.ml_opset <= newer.ml_opset
        assert older.ir <= newer.ir


def test_the_release_installed_here_is_in_the_table() -> None:
    here = version_key(onnxruntime.__version__)[:2]
    assert here in [version_key(release.version)[:2] for release in releases()]


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.9", "1.10"),
        ("1.22", "1.22.1"),
        ("1.22.0", "1.22.1"),
        ("1.15.1", "1.16"),
        ("9", "10"),
        ("1.22.0rc1", "1.22.1"),
        ("", "1"),
    ],
)
def test_versions_compare_as_numbers(older: str, newer: str) -> None:
    assert version_key(older) < version_key(newer)


def test_what_follows_the_numbers_is_ignored() -> None:
    assert version_key("1.22.0+cu126") == (1, 22, 0)
    assert version_key("1.22.dev3") == (1, 22)
    assert version_key("abc") == ()


def expected(opset: int, ir: int) -> str:
    return next(r.version for r in releases() if r.opset >= opset and r.ir >= ir)


@pytest.mark.parametrize(("opset", "ir"), [(9, 4), (13, 7), (17, 8), (19, 9), (20, 9), (20, 10), (21, 10), (22, 10), (23, 11)])
def test_the_oldest_release_that_loads_both_opset_and_ir_is_picked(
    small_convnet: Callable[..., Model], opset: int, ir: int
) -> None:
    got = minimum_release(small_convnet(opset, ir), "here")
    assert got == expected(opset, ir)


def test_rising_opsets_never_lower_the_minimum(small_convnet: Callable[..., Model]) -> None:
    keys = [version_key(minimum_release(small_convnet(opset, 10), "here")) for opset in range(9, 25)]
    assert keys == sorted(keys)
    assert keys[-1] > keys[0]


def test_the_domain_of_classical_models_counts_too(small_convnet: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> None:
    proto = small_convnet(17, 8).copy_proto()
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 4))
    assert minimum_release(Model.from_proto(proto, "ml"), "here") == next(r.version for r in releases() if r.ml_opset >= 4)


def test_a_model_beyond_every_release_is_refused_with_what_the_newest_takes(
    small_convnet: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    only = onnxruntime_support.Release("1.15", 19, 3, 9)
    monkeypatch.setattr(onnxruntime_support, "releases", lambda: (only,))
    for opset, ir in ((20, 9), (19, 10)):
        with pytest.raises(Unsupported, match=rf"opset {opset}, .*IR {ir}; ONNX Runtime 1\.15 ends at 19, IR 9") as caught:
            minimum_release(small_convnet(opset, ir), "here")
        assert caught.value.hint == "export the model with a lower opset_version"
    assert minimum_release(small_convnet(19, 9), "here") == "1.15"


def test_what_the_table_says_of_this_release_is_true(small_convnet: Callable[..., Model]) -> None:
    here = next(r for r in releases() if version_key(r.version)[:2] == version_key(onnxruntime.__version__)[:2])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )  # fmt: skip

    def load(opset: int, ir: int) -> None:
        model = onnx.ModelProto(ir_version=ir, graph=graph, opset_import=[helper.make_opsetid("", opset)])
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    load(here.opset, here.ir)
    for opset, ir in ((here.opset + 1, here.ir), (here.opset, here.ir + 1)):
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail):
            load(opset, ir)


def test_integer_graphs_are_summed_exactly_where_the_device_does(model_of: Callable[..., Model]) -> None:
    def options(kind: str, *, exact: bool) -> dict[str, str]:
        one = TensorProto.FLOAT
        scale = {"s": np.float32(0.1), "z": np.uint8(128), "c": np.ones((2, 2), np.uint8)}
        if kind == "pairs":
            nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
                     helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]  # fmt: skip
        elif kind == "stored":
            nodes = [helper.make_node("DequantizeLinear", ["c", "s"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
        else:
            nodes = [helper.make_node("Relu", ["x"], ["y"])]
        model = model_of(nodes, {"x": (one, [2, 2])}, {"y": (one, [2, 2])}, scale)
        return onnxruntime_support.session_config(model, exact=exact)

    assert options("float", exact=True) == options("float", exact=False) == {}
    assert options("pairs", exact=True) == {"session.x64quantprecision": "1"}
    assert options("pairs", exact=False) == {}
    assert options("stored", exact=True) == options("stored", exact=False) == {"session.disable_quant_qdq": "1"}
