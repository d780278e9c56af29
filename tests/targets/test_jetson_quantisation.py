"""TensorRT's rules for Q/DQ graphs: each has a model that it refuses and a twin that it accepts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.errors import Unsupported
from edgesdk_converters.expand import Expand
from edgesdk_converters.fold import Fold
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_targets.jetson_quantisation import RULES, audit, violations
from edgesdk_targets.target import Segment, make

NETS = Path(__file__).parents[2] / "examples" / "fashion"
F = np.float32


@dataclass
class Layer:
    """A quantised Conv or Gemm with everything about it that a rule looks at."""

    op: str = "Conv"
    data_type: Any = np.int8
    data_zero: Any = 0
    data_scale: Any = 0.1
    data_pair: bool = True
    computed_scale: bool = False
    weight_axis: int = 0
    weight_scales: int = 4
    weight_type: Any = np.int8
    bias: str = "float"
    integers_out: bool = False
    block: int = 0

    def model(self) -> Model:
        rng = np.random.default_rng(0)
        nodes: list[onnx.NodeProto] = []
        stored: dict[str, Any] = {}
        data = "x"
        if self.data_pair:
            scale = np.asarray(self.data_scale, F)
            stored |= {"xz": np.full(scale.shape, self.data_zero, self.data_type)}
            if self.computed_scale:
                nodes.append(helper.make_node("Abs", ["s"], ["xs"], name="abs"))
                stored["s"] = scale
            else:
                stored["xs"] = scale
            axis = {"axis": 1} if scale.ndim else {}
            nodes.append(helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], name="q", **axis))
            nodes.append(helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], name="dq", **axis))
            data = "xd"
        shape = (4, 3, 1, 1) if self.op == "Conv" else (3, 4)
        stored["w"] = rng.integers(-100, 100, shape).astype(self.weight_type)
        stored["ws"] = np.full(self.weight_scales, 0.01, F) if self.weight_scales > 1 else np.asarray(0.01, F)
        more = {"axis": self.weight_axis} if self.weight_scales > 1 else {}
        if self.block:
            more = {"axis": 0, "block_size": self.block}
            stored["ws"] = np.full((-(-shape[0] // self.block), *shape[1:]), 0.01, F)
        nodes.append(helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], name="dqw", **more))
        inputs = [data, "wd"]
        if self.bias == "float":
            stored["b"] = np.zeros(4, F)
            inputs.append("b")
        elif self.bias == "int32":
            stored |= {"bi": np.zeros(4, np.int32), "bs": np.full(4, 0.001, F)}
            nodes.append(helper.make_node("DequantizeLinear", ["bi", "bs"], ["bd"], name="dqb", axis=0))
            inputs.append("bd")
        out = [1, 4, 5, 5] if self.op == "Conv" else [2, 4]
        nodes.append(helper.make_node(self.op, inputs, ["y"], name="layer"))
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)]
        if self.integers_out:
            nodes.append(helper.make_node("QuantizeLinear", ["y", "xs", "xz"], ["yq"], name="last"))
            nodes.append(helper.make_node("Cast", ["yq"], ["yf"], name="cast", to=TensorProto.FLOAT))
            outputs.append(helper.make_tensor_value_info("yf", TensorProto.FLOAT, out))
        tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
        size = [1, 3, 5, 5] if self.op == "Conv" else [2, 3]
        graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)], outputs, tensors)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return Model.from_proto(proto, "m")


GOOD = (Layer(), Layer(op="Gemm", weight_axis=1), Layer(weight_scales=1), Layer(bias="none"))
BAD: dict[str, Layer] = {
    "int8": Layer(data_type=np.uint8),
    "symmetric": Layer(data_zero=3),
    "constant-scale": Layer(computed_scale=True),
    "positive-scale": Layer(data_scale=-0.1),
    "activations-per-tensor": Layer(data_scale=[0.1, 0.2, 0.3]),
    "output-channels": Layer(weight_axis=1, weight_scales=3),
    "scale-count": Layer(weight_scales=3),
    "blocks": Layer(op="Gemm", block=3),
    "float-bias": Layer(bias="int32"),
    "pairs": Layer(integers_out=True),
    "both-sides": Layer(data_pair=False),
}


@pytest.mark.parametrize("layer", GOOD)
def test_what_tensorrt_takes_has_no_violation(layer: Layer) -> None:
    assert violations(layer.model()) == []
    assert audit(layer.model()) == {"int8": 1, "float": 0}


@pytest.mark.parametrize("name", sorted(BAD))
def test_each_rule_refuses_its_model_and_names_the_node(name: str) -> None:
    found = violations(BAD[name].model())
    assert any(f"({name})" in problem.reason for problem in found), found
    assert all(problem.node for problem in found)


def test_integer_operators_are_refused() -> None:
    model = Model.load(NETS / "fashion_cnn.onnx")
    given = Given(model, Samples(synthetic(model, 4).arrays, "a test", leading_axis={"image": True}))
    found = violations(Quantize(flavour="qoperator")(Fold()(model, given), given))
    assert {problem.operator for problem in found} >= {"QLinearConv"}
    assert any("(no-integer-operators)" in problem.reason for problem in found)


def test_every_rule_has_a_model_that_it_refuses() -> None:
    assert {rule.name for rule in RULES} == {*BAD, "no-integer-operators"}
    assert all(rule.source and rule.demands for rule in RULES)


@pytest.mark.parametrize("net", ["cnn", "mobilenet", "resnet", "vit"])
def test_what_we_export_for_tensorrt_breaks_no_rule(net: str) -> None:
    model = Model.load(NETS / f"fashion_{net}.onnx")
    given = Given(model, Samples(synthetic(model, 4).arrays, "a test", leading_axis={"image": True}))
    float_model = Expand(operators=("Gelu", "Mish"))(Fold()(model, given), given)
    made = Quantize(flavour="tensorrt")(float_model, given)
    assert violations(made) == []
    counts = audit(made)
    assert counts["int8"] >= 4 and counts["int8"] > counts["float"]
    make("jetson", None).check(Segment(made))


def test_a_cpus_integers_are_refused_on_a_jetson() -> None:
    model = Model.load(NETS / "fashion_cnn.onnx")
    given = Given(model, Samples(synthetic(model, 4).arrays, "a test", leading_axis={"image": True}))
    made = Quantize(flavour="u8s8")(Fold()(model, given), given)
    assert {"int8", "symmetric", "float-bias"} <= {p.reason.rsplit("(", 1)[1].rstrip(")") for p in violations(made)}
    with pytest.raises(Unsupported):
        make("jetson", None).check(Segment(made))


def test_a_float_model_has_nothing_to_refuse() -> None:
    assert violations(Model.load(NETS / "fashion_cnn.onnx")) == []
