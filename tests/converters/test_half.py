"""Half: fp16 where it is safe by the activations' ranges, fp32 where it is not, and a model that any runtime accepts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters import half as module
from edgesdk_converters.accuracy import relative_error
from edgesdk_converters.calibration import Samples
from edgesdk_converters.errors import EdgeError, PassError
from edgesdk_converters.half import Half
from edgesdk_converters.model import Model
from edgesdk_converters.reference import Reference

F = np.float32
EYE = np.eye(4, dtype=F)


def ops(model: Model) -> list[str]:
    return [node.op_type for node in model.proto.graph.node]


def dtypes(model: Model) -> dict[str, str]:
    """Element type of every value and weight by name."""
    graph = model.proto.graph
    kinds = {info.name: info.type.tensor_type.elem_type for info in (*graph.input, *graph.output, *graph.value_info)}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: TensorProto.DataType.Name(kind) for name, kind in kinds.items()}


def work_type(model: Model, op: str) -> list[str]:
    """Type of the first input of each node of that operator."""
    known = dtypes(model)
    return [known[node.input[0]] for node in model.proto.graph.node if node.op_type == op]


def casts_are_minimal(model: Model) -> None:
    """No cast feeds a cast, and no value is cast twice to the same type."""
    producer = {name: node for node in model.proto.graph.node for name in node.output}
    seen = set()
    for node in model.proto.graph.node:
        if node.op_type == "Cast":
            source = producer.get(node.input[0])
            assert source is None or source.op_type != "Cast", node.name
            key = (node.input[0], node.attribute[0].i)
            assert key not in seen
            seen.add(key)


@pytest.fixture
def convert(given: Any) -> Any:
    """Half of a proto: validity, names, types, parity with fp32 and repeatable bytes are checked; returns the Model."""

    def run(proto: onnx.ModelProto, limit: float = 2e-3, samples: Any = None, count: int = 4) -> Model:
        before = Model.from_proto(proto, "m")
        what = given(before, samples, count=count)
        data = before.to_bytes()
        after = Half()(before, what)
        assert before.to_bytes() == data
        assert Half()(before, what).to_bytes() == after.to_bytes()
        onnx.checker.check_model(after.proto, full_check=True)
        assert after.signature == before.signature
        old, new = Reference(before), Reference(after)
        for sample in what.train:
            assert relative_error(new.run(sample), old.run(sample)) <= limit
        return after

    return run


def matmuls(
    build: Any, *middle: onnx.NodeProto, weights: dict[str, Any] | None = None, shape: Any = (2, 4), opset: int = 17
) -> Any:
    """x @ w -> a, the nodes in the middle from a to b, b @ w -> y."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"], name="first"), *middle,
             helper.make_node("MatMul", ["b", "w"], ["y"], name="last")]  # fmt: skip
    return build(nodes, [("x", list(shape))], [("y", list(shape))], {"w": EYE, **(weights or {})}, opset=opset)


# --- what goes to fp16 -------------------------------------------------------------------------------


def test_a_convolutional_net_goes_to_fp16_whole(conv_net: onnx.ModelProto, convert: Any) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    model = convert(proto)
    assert ops(model).count("Cast") == 2
    assert set(work_type(model, "Conv") + work_type(model, "Gemm") + work_type(model, "BatchNormalization")) == {"FLOAT16"}
    assert all(tensor.data_type == TensorProto.FLOAT16 for tensor in model.proto.graph.initializer)
    assert "8 nodes in fp16, ranges from 4 of seeded random inputs" in model.history[-1].note
    assert "in fp32" not in model.history[-1].note
    casts_are_minimal(model)


def test_a_transformer_block_goes_to_fp16(convert: Any) -> None:
    import torch

    from edgesdk_converters.from_torch import from_module

    torch.manual_seed(0)
    block = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0, activation="gelu")
    model = convert(from_module(block, (torch.zeros(1, 10, 32),), "block").copy_proto())
    assert "FLOAT16" in work_type(model, "MatMul") + work_type(model, "Gemm")
    casts_are_minimal(model)


def test_a_recurrent_net_goes_to_fp16(build: Any, convert: Any) -> None:
    rng = np.random.default_rng(3)
    weights = {
        "w": (rng.standard_normal((1, 32, 5)) * 0.3).astype(F),
        "r": (rng.standard_normal((1, 32, 8)) * 0.3).astype(F),
        "b": (rng.standard_normal((1, 64)) * 0.3).astype(F),
    }
    node = helper.make_node("LSTM", ["x", "w", "r", "b"], ["y", "", "c"], hidden_size=8)
    model = convert(build([node], [("x", [12, 1, 5])], [("y", [12, 1, 1, 8]), ("c", [1, 1, 8])], weights))
    assert work_type(model, "LSTM") == ["FLOAT16"]


@pytest.mark.parametrize("opset", range(9, 25))
def test_every_opset_is_handled(build: Any, convert: Any, opset: int) -> None:
    middle = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Softmax", ["r"], ["b"])]
    assert work_type(convert(matmuls(build, *middle, opset=opset)), "MatMul") == ["FLOAT16", "FLOAT16"]


def test_the_standard_domain_may_be_spelled_out(build: Any, convert: Any) -> None:
    proto = matmuls(build, helper.make_node("Relu", ["a"], ["b"]))
    proto.opset_import[0].domain = "ai.onnx"
    assert work_type(convert(proto), "Relu") == ["FLOAT16"]


def test_constants_nodes_go_to_fp16_like_weights(build: Any, convert: Any) -> None:
    middle = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.full(4, 2, F))),
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        helper.make_node("Mul", ["a", "k"], ["m"]),
        helper.make_node("Clip", ["m", "", "one"], ["b"]),
    ]
    model = convert(matmuls(build, *middle))
    assert work_type(model, "Mul") == ["FLOAT16"]
    assert ops(model).count("Cast") == 2


def test_optional_inputs_stay_optional(build: Any, convert: Any) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["c", "", "scales"], ["r"], mode="nearest"),
        helper.make_node("Clip", ["r", "", "top"], ["p"]),
        helper.make_node("LayerNormalization", ["p", "scale"], ["n"]),
        helper.make_node("Resize", ["n", "", "", "sizes"], ["y"], mode="linear"),
    ]
    weights = {
        "k": np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(F) * F(0.2), "scales": np.array([1, 1, 2, 2], F),
        "top": np.array(2, F), "scale": np.ones(16, F), "sizes": np.array([1, 4, 8, 8]),
    }  # fmt: skip
    model = convert(build(nodes, [("x", [1, 3, 8, 8])], [("y", [1, 4, 8, 8])], weights), limit=5e-3)
    assert work_type(model, "Resize") == ["FLOAT16", "FLOAT16"]
    assert dtypes(model)["scales"] == "FLOAT"


def test_an_input_that_must_be_fp32_gets_fp32_from_an_fp16_producer(build: Any, convert: Any) -> None:
    nodes = [
        helper.make_node("MatMul", ["v", "eye"], ["s"]),
        helper.make_node("Relu", ["s"], ["scales"]),
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("Resize", ["c", "", "scales"], ["r"], mode="nearest"),
        helper.make_node("ReduceMax", ["r"], ["y"]),
    ]
    weights = {"k": np.ones((4, 3, 1, 1), F), "eye": EYE}
    proto = build(nodes, [("x", [1, 3, 4, 4]), ("v", [4])], [("y", [1, 1, 1, 1])], weights)
    proto.graph.value_info.append(helper.make_tensor_value_info("r", 1, [1, 4, 8, 8]))
    arrays = {"x": np.ones((2, 3, 4, 4), F), "v": np.array([[1, 1, 2, 2]] * 2, F)}
    model = convert(proto, samples=Samples(arrays, "mine", leading_axis={"x": True}))
    assert work_type(model, "Resize") == ["FLOAT16"]
    resize = next(node for node in model.proto.graph.node if node.op_type == "Resize")
    assert dtypes(model)[resize.input[2]] == "FLOAT"


def test_a_cast_from_another_type_goes_to_fp16_straight_away(build: Any, convert: Any) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=1), helper.make_node("MatMul", ["f", "w"], ["y"])]
    model = convert(build(nodes, [("x", [1, 4], TensorProto.UINT8)], [("y", [1, 4])], {"w": EYE}))
    assert ops(model) == ["Cast", "MatMul", "Cast"]
    assert work_type(model, "MatMul") == ["FLOAT16"]


def test_float64_parts_stay_as_they_are(build: Any, convert: Any) -> None:
    middle = [
        helper.make_node("Cast", ["a"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["d", "k"], ["e"]),
        helper.make_node("Cast", ["e"], ["b"], to=TensorProto.FLOAT),
    ]
    model = convert(matmuls(build, *middle, weights={"k": np.array(3.0)}))
    assert work_type(model, "Mul") == ["DOUBLE"]
    assert work_type(model, "MatMul") == ["FLOAT16", "FLOAT16"]
    casts_are_minimal(model)


# --- where fp16 meets fp32 ---------------------------------------------------------------------------


def test_an_input_of_several_nodes_is_cast_once(build: Any, convert: Any) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], [name]) for name in "ab"]
    nodes.append(helper.make_node("Add", ["a", "b"], ["c"]))
    nodes.append(helper.make_node("Add", ["c", "x"], ["y"]))
    model = convert(build(nodes, [("x", [1, 4])], [("y", [1, 4])], {"w": EYE}))
    assert ops(model).count("Cast") == 2
    casts_are_minimal(model)


def test_a_value_can_be_an_output_and_feed_fp16_and_fp32_nodes(build: Any, convert: Any) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
        helper.make_node("Mul", ["a", "huge"], ["z"]),
    ]
    proto = build(nodes, [("x", [1, 4])], [("a", [1, 4]), ("z", [1, 4]), ("y", [1, 4])], {"w": EYE, "huge": np.array(1e6, F)})
    model = convert(proto)
    assert work_type(model, "Mul") == ["FLOAT"]
    assert work_type(model, "MatMul") == ["FLOAT16", "FLOAT16"]
    casts_are_minimal(model)


def test_a_weight_shared_by_fp16_and_fp32_nodes_exists_in_both(build: Any, convert: Any) -> None:
    middle = [helper.make_node("Mul", ["a", "huge"], ["h"]), helper.make_node("Add", ["h", "w"], ["i"]),
              helper.make_node("Mul", ["i", "tiny"], ["b"])]  # fmt: skip
    model = convert(matmuls(build, *middle, weights={"huge": np.array(1e5, F), "tiny": np.array(1e-5, F)}, shape=(4, 4)))
    kinds = sorted(TensorProto.DataType.Name(t.data_type) for t in model.proto.graph.initializer if list(t.dims) == [4, 4])
    assert kinds == ["FLOAT", "FLOAT16"]


def test_a_weight_that_is_an_output_stays_one(build: Any, convert: Any) -> None:
    proto = build([helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", [1, 4])], [("w", [4, 4]), ("y", [1, 4])], {"w": EYE})
    assert work_type(convert(proto), "MatMul") == ["FLOAT16"]


def test_names_that_are_taken_are_not_used_again(build: Any, convert: Any) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["x/fp16"]),
        helper.make_node("MatMul", ["x/fp16", "w"], ["y/fp16"]),
        helper.make_node("Relu", ["y/fp16"], ["y"]),
    ]
    convert(build(nodes, [("x", [1, 4])], [("y", [1, 4]), ("x/fp16", [1, 4])], {"w": EYE}))


def test_a_second_half_changes_nothing_more(conv_net: onnx.ModelProto, given: Any, convert: Any) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    once = convert(proto)
    twice = Half()(once, given(once))
    assert sorted(set(ops(twice))) == sorted(set(ops(once)))
    assert ops(twice).count("Cast") == ops(once).count("Cast")
    Reference(twice)


def test_nodes_in_branches_stay_and_are_counted(build: Any, convert: Any) -> None:
    def branch(name: str, op: str, *inputs: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])
        return helper.make_graph([helper.make_node(op, list(inputs), [name])], name, [], [out])

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "limit"], ["c"]),
        helper.make_node("If", ["c"], ["i"], then_branch=branch("t", "MatMul", "a", "w"), else_branch=branch("e", "Neg", "a")),
        helper.make_node("MatMul", ["i", "w"], ["y"]),
    ]
    model = convert(build(nodes, [("x", [1, 4])], [("y", [1, 4])], {"w": EYE * 2, "limit": np.array(0.5, F)}), count=8)
    assert work_type(model, "MatMul") == ["FLOAT16", "FLOAT16"]
    assert "2 inside If, Loop or Scan" in model.history[-1].note
    assert "1 with a subgraph" in model.history[-1].note


# --- what stays in fp32 ------------------------------------------------------------------------------


def test_large_activations_that_this_cpu_would_pass_stay_in_fp32_and_are_counted(build: Any, convert: Any) -> None:
    middle = [
        helper.make_node("Mul", ["a", "k1"], ["p"]),
        helper.make_node("Mul", ["p", "k2"], ["big"]),
        helper.make_node("Relu", ["big"], ["q"]),
        helper.make_node("Mul", ["q", "down"], ["b"]),
    ]
    weights = {"k1": np.full(4, 300, F), "k2": np.full(4, 400, F), "down": np.full(4, 1e-3, F)}
    model = convert(matmuls(build, *middle, weights=weights))
    assert "3 with activations above 16,376" in model.history[-1].note
    assert dtypes(model)["big"] == dtypes(model)["q"] == "FLOAT"
    assert work_type(model, "MatMul") == ["FLOAT16", "FLOAT16"]


def test_headroom_moves_the_bound(build: Any, given: Any) -> None:
    model = Model.from_proto(matmuls(build, helper.make_node("Mul", ["a", "k"], ["b"]), weights={"k": np.full(4, 1000, F)}), "m")
    what = given(model)
    assert "8 with" not in Half(headroom=1)(model, what).history[-1].note
    assert "with activations above 66" in Half(headroom=1000)(model, what).history[-1].note
    with pytest.raises(PassError, match=r"headroom is 0\.5; allowed: 1 or more"):
        Half(headroom=0.5)


def test_nan_and_infinite_activations_prove_nothing_safe(build: Any, convert: Any) -> None:
    proto = build([helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Log", ["a"], ["y"])],
                  [("x", [1, 4])], [("y", [1, 4])], {"w": -EYE})  # fmt: skip
    arrays = {"x": np.array([[0, 1, 2, 3]], F)}
    assert work_type(convert(proto, samples=Samples(arrays, "mine", leading_axis={"x": True})), "Log") == ["FLOAT"]


@pytest.mark.parametrize(
    ("constant", "reason"),
    [
        (1e5, "with constants above 16,376"),
        (-3.4e38, "with constants above 16,376"),
        (1e-12, "with constants below fp16's normal range"),
    ],
)
def test_constants_that_fp16_cannot_hold_keep_their_node(build: Any, convert: Any, constant: float, reason: str) -> None:
    model = convert(matmuls(build, helper.make_node("Max", ["a", "k"], ["b"]), weights={"k": np.array(constant, F)}))
    assert f"1 {reason}" in model.history[-1].note
    assert work_type(model, "Max") == ["FLOAT"]


def test_infinite_constants_are_kept_in_fp16(build: Any, convert: Any) -> None:
    model = convert(matmuls(build, helper.make_node("Max", ["a", "k"], ["b"]), weights={"k": np.array(-np.inf, F)}))
    assert work_type(model, "Max") == ["FLOAT16"]


def test_weights_too_small_for_fp16_keep_their_node(build: Any, convert: Any) -> None:
    small = (np.random.default_rng(0).standard_normal((4, 8)) * 1e-7).astype(F)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "small"], ["y"])]
    model = convert(build(nodes, [("x", [1, 4])], [("y", [1, 8])], {"w": EYE, "small": small}))
    assert work_type(model, "MatMul") == ["FLOAT16", "FLOAT"]
    assert "weights too small for fp16" in model.history[-1].note


def test_a_division_by_what_fp16_rounds_to_zero_stays_in_fp32(build: Any, convert: Any) -> None:
    divisor = np.ones(32, F)
    divisor[3] = 1e-8
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Div", ["a", "d"], ["b"]),
             helper.make_node("MatMul", ["b", "w"], ["y"])]  # fmt: skip
    w = np.eye(32, dtype=F)
    w[3, 3] = 0
    model = convert(build(nodes, [("x", [1, 32])], [("y", [1, 32])], {"w": w, "d": divisor}))
    assert work_type(model, "Div") == ["FLOAT"]
    middle = [
        helper.make_node("Mul", ["a", "a"], ["s"]),
        helper.make_node("ReduceMean", ["s"], ["v"], keepdims=1),
        helper.make_node("Sqrt", ["v"], ["r"]),
        helper.make_node("Div", ["a", "r"], ["b"]),
    ]
    proto = matmuls(build, *middle)
    next(t for t in proto.graph.initializer if t.name == "w").CopyFrom(numpy_helper.from_array(EYE * F(1e-5), "w"))
    assert work_type(convert(proto), "Div") == ["FLOAT"]


@pytest.mark.parametrize(
    ("node", "value", "size", "kept"),
    [
        (helper.make_node("ReduceMean", ["a"], ["b"], axes=[1], keepdims=1), 100, 1000, True),
        (helper.make_node("ReduceMean", ["a"], ["b"], axes=[1], keepdims=1), 10, 1000, False),
        (helper.make_node("ReduceMean", ["a"], ["b"], axes=[0], keepdims=1), 100, 1000, False),
        (helper.make_node("ReduceL2", ["a"], ["b"], axes=[1], keepdims=1), 10, 1000, True),
        (helper.make_node("ReduceL2", ["a"], ["b"], axes=[1], keepdims=1), 1, 1000, False),
        (helper.make_node("LayerNormalization", ["a", "scale"], ["b"]), 10, 1000, True),
        (helper.make_node("LpNormalization", ["a"], ["b"], axis=1), 10, 1000, True),
        (helper.make_node("LpNormalization", ["a"], ["b"], axis=1), 1, 1000, False),
        (helper.make_node("Pow", ["a", "four"], ["b"]), 20, 10, True),
        (helper.make_node("Pow", ["a", "four"], ["b"]), 5, 10, False),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else str(value),
)
def test_sums_whose_partial_sums_may_overflow_stay_in_fp32(
    build: Any, convert: Any, node: onnx.NodeProto, value: float, size: int, kept: bool
) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), node, helper.make_node("MatMul", ["a", "w"], ["y"])]
    weights = {"w": np.eye(size, dtype=F), "scale": np.ones(size, F), "four": np.array(4, F)}
    proto = build(nodes, [("x", [1, size])], [("y", [1, size])], weights)
    proto.graph.output.append(
        helper.make_tensor_value_info("b", 1, [1, 1 if "Reduce" in node.op_type and node.attribute[0].ints == [1] else size])
    )
    arrays = {"x": np.random.default_rng(0).uniform(-value, value, (2, size)).astype(F)}
    arrays["x"][:, 0] = value
    model = convert(proto, limit=1e-2, samples=Samples(arrays, "mine", leading_axis={"x": True}))
    assert work_type(model, node.op_type) == ["FLOAT" if kept else "FLOAT16"]


def test_a_sum_over_a_dynamic_axis_stays_in_fp32(build: Any, convert: Any) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("ReduceMean", ["a"], ["y"], axes=[0], keepdims=1)]
    model = convert(build(nodes, [("x", ["n", 4])], [("y", [1, 4])], {"w": EYE}))
    assert work_type(model, "ReduceMean") == ["FLOAT"]


def test_group_normalization_counts_what_it_sums(build: Any, convert: Any) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"]),
        helper.make_node("GroupNormalization", ["a", "s", "z"], ["y"], num_groups=2),
    ]
    weights = {"k": np.eye(4, dtype=F).reshape(4, 4, 1, 1) * 50, "s": np.ones(4, F), "z": np.zeros(4, F)}
    model = convert(build(nodes, [("x", [1, 4, 16, 16])], [("y", [1, 4, 16, 16])], weights, opset=21))
    assert work_type(model, "GroupNormalization") == ["FLOAT"]
    assert "partial sums may overflow" in model.history[-1].note


def test_what_feeds_a_logarithm_before_the_matrix_work_stays_in_fp32(build: Any, convert: Any) -> None:
    middle = [
        helper.make_node("Abs", ["a"], ["p"]),
        helper.make_node("Add", ["p", "one"], ["q"]),
        helper.make_node("Log", ["q"], ["b"]),
    ]
    model = convert(matmuls(build, *middle, weights={"one": np.array(1, F)}))
    assert work_type(model, "MatMul") == ["FLOAT", "FLOAT16"]
    assert "4 feeding a logarithm" in model.history[-1].note


def test_stretches_without_matrix_work_stay_in_fp32(build: Any, convert: Any) -> None:
    proto = build(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Exp", ["a"], ["y"])], [("x", [1, 4])], [("y", [1, 4])]
    )
    model = convert(proto)
    assert ops(model) == ["Relu", "Exp"]
    assert model.history[-1].note.startswith("no node of 2 could go to fp16")


def test_a_model_without_inputs_is_left_alone(build: Any, given: Any) -> None:
    model = Model.from_proto(build([helper.make_node("MatMul", ["w", "w"], ["y"])], [], [("y", [4, 4])], {"w": EYE}), "m")
    assert ops(Half()(model, given(model, Samples({}, "nothing")))) == ["MatMul"]


# --- every operator ----------------------------------------------------------------------------------


def test_onnx_operator_tests_hold_in_fp16_within_a_hundredth(
    node_cases: list[Any], given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stretches without matrix work count too here, so that every operator that can go to fp16 does."""
    monkeypatch.setattr(module, "_islands", lambda half: set())
    compared = converted = 0
    worst = (0.0, "")
    for index, case in enumerate(node_cases):
        try:
            reference = Reference(case.model).run(case.feeds)
        except EdgeError:
            continue  # ONNX Runtime has no kernel: nothing to compare with
        before = case.model.to_bytes()
        what = given(case.model, case.samples)
        half = Half()(case.model, what)
        assert case.model.to_bytes() == before, case.model.name
        onnx.checker.check_model(half.proto, full_check=True)
        got = Reference(half).run(case.feeds)
        assert {name: value.dtype for name, value in got.items()} == {n: v.dtype for n, v in reference.items()}
        worst = max(worst, (relative_error(got, reference), case.model.name))
        assert worst[0] <= 1e-2, worst
        if index % 4 == 0:
            assert Half()(case.model, what).to_bytes() == half.to_bytes(), case.model.name
        compared += 1
        converted += "nodes in fp16" in half.history[-1].note
    assert compared >= 1150
    assert converted >= 850
