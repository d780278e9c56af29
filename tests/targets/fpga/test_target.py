"""The target fpga: what is not allowed is refused when it is made, and of a model before any pass; quantised models are estimated
by their own integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters import integer_reader
from edgesdk_converters.calibration import synthetic
from edgesdk_converters.cost import layers
from edgesdk_converters.equalize import Equalize
from edgesdk_converters.errors import EdgeError, RecipeError, ToolError, Unsupported
from edgesdk_converters.expand import Expand
from edgesdk_converters.fold import Fold
from edgesdk_converters.low_rank import LowRank
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given, Pass
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.sparsify import Sparsify
from edgesdk_targets.bundle import Runtime
from edgesdk_targets.device import profile
from edgesdk_targets.figure import Figure
from edgesdk_targets.fpga import flow_hls4ml, flow_rtl, hls4ml_constants, rtl_estimate, tool_process
from edgesdk_targets.fpga.design import design
from edgesdk_targets.fpga.hls4ml_estimate import estimate, layers_of
from edgesdk_targets.fpga.target import OPTIONS_OF, Fpga
from edgesdk_targets.target import Segment, make

SHIPPED = Path(hls4ml_constants.__file__).with_name("hls4ml_constants.toml")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"bits": "1"}, "bits is 1; allowed: 2 to 16"),
        ({"clock_ns": "0.1"}, "clock_ns is 0.1; allowed: 0.5 to 1000"),
        ({"clock_ns": "nan"}, "clock_ns is nan"),
        ({"tool_minutes": "0"}, "tool_minutes is 0; allowed: above 0"),
        ({"multipliers": "0"}, "multipliers is 0; allowed: at least 1"),
        ({"target_cycles": "-1"}, "target_cycles is -1; allowed: at least 0"),
        ({"max_weights_unrolled": "-1"}, "max_weights_unrolled is -1; allowed: at least 0"),
        ({"port_bits": "12"}, "port_bits is 12; allowed: 8, 16"),
        ({"flow": "hls4ml", "reuse_factor": "0"}, "reuse_factor is 0; allowed: 1 to"),
        ({"flow": "hls4ml", "reuse_factors": "fc1=0"}, "expected NODE=FACTOR"),
        ({"reuse_factor": "4"}, "reuse_factor is of hls4ml alone, the flow is rtl"),
        ({"reuse_factors": "fc1=4"}, "reuse_factors is of hls4ml alone, the flow is rtl"),
        ({"constants": str(SHIPPED)}, "constants is of hls4ml alone, the flow is rtl"),
        ({"flow": "hls4ml", "constants": "nothere.toml"}, "there is no file nothere.toml"),
        ({"strategy": "resource"}, "strategy is of hls4ml alone, the flow is rtl"),
        ({"backend": "vivado"}, "backend is of hls4ml alone, the flow is rtl"),
        ({"io_type": "io_stream"}, "io_type is of hls4ml alone, the flow is rtl"),
        ({"flow": "hls4ml", "form": "folded"}, "form is of rtl alone, the flow is hls4ml"),
        ({"flow": "hls4ml", "max_weights_unrolled": "9"}, "max_weights_unrolled is of rtl alone, the flow is hls4ml"),
        ({"flow": "hls4ml", "multipliers": "8"}, "multipliers is of rtl alone, the flow is hls4ml"),
        ({"flow": "hls4ml", "target_cycles": "8"}, "target_cycles is of rtl alone, the flow is hls4ml"),
        ({"flow": "hls4ml", "port_bits": "16"}, "port_bits is of rtl alone, the flow is hls4ml"),
        ({"flow": "hls4ml", "pins": "board.lpf"}, "pins is of rtl alone, the flow is hls4ml"),
        ({"pins": str(SHIPPED)}, r"pins: \.lpf files are of ECP5, and pynq-z2 is none"),
        ({"activation_bits": "16"}, "activation_bits is of hls4ml alone, the flow is rtl"),
        ({"accumulator_bits": "16"}, "accumulator_bits is of hls4ml alone, the flow is rtl"),
        ({"flow": "hls4ml", "activation_bits": "65"}, "activation_bits is 65; allowed: 1 to 64, or 0"),
        ({"flow": "hls4ml", "accumulator_bits": "-1"}, "accumulator_bits is -1; allowed: 1 to 128, or 0"),
        ({"flow": "hls4ml", "tools": "none"}, "tools is of rtl alone, the flow is hls4ml"),
        ({"flow": "hls4ml", "tool_minutes": "5"}, "tool_minutes is of rtl alone, the flow is hls4ml"),
    ],
)
def test_a_value_that_is_not_allowed_is_a_recipe_error_when_the_target_is_made(settings: dict[str, str], told: str) -> None:
    with pytest.raises(RecipeError, match=told) as caught:
        make(None, "pynq-z2", settings)
    assert caught.value.exit_code == 2 and "Errno" not in caught.value.line()


def test_the_least_that_is_allowed_is_taken() -> None:
    least = {"bits": "2", "multipliers": "1", "target_cycles": "0", "max_weights_unrolled": "0", "port_bits": "16"}
    made = make(None, "pynq-z2", least)
    assert isinstance(made, Fpga) and (made.multipliers, made.max_weights_unrolled, made.port_bits) == (1, 0, 16)


def test_constants_are_read_when_the_target_is_made(tmp_path: Path) -> None:
    settings = {"flow": "hls4ml", "constants": str(SHIPPED)}
    assert make(None, "pynq-z2", settings)
    (tmp_path / "other.toml").write_text("date = 3\n")
    with pytest.raises(RecipeError, match=r"constants: other\.toml"):
        make(None, "pynq-z2", settings | {"constants": str(tmp_path / "other.toml")})


def test_pins_are_read_when_the_target_is_made_and_held_against_the_source(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"pins: there is no file nothere\.lpf"):
        make(None, "ecp5-25k", {"pins": "nothere.lpf"})
    board = tmp_path / "board.lpf"
    ports = [f"{side}_{one}" for side in ("s0", "m0") for one in ("valid", "ready", *(f"data[{bit}]" for bit in range(8)))]
    lines = [f'LOCATE COMP "{port}" SITE "P{number}";\n' for number, port in enumerate(("clk", "rst", *ports))]
    board.write_text("".join(lines))
    make(None, "ecp5-25k", {"pins": str(board)}).check_source(two_layers(), RECIPE)
    with pytest.raises(RecipeError, match=r"board\.lpf: it has no pin for m0_data\[8\], m0_data\[9\].* and 10 more$"):
        make(None, "ecp5-25k", {"pins": str(board), "port_bits": "16"}).check_source(two_layers(), RECIPE)
    board.write_text("".join(lines) + 'LOCATE COMP "s1_valid" SITE "A1";')
    with pytest.raises(RecipeError, match=r"board\.lpf: it places s1_valid, which the design has not") as caught:
        make(None, "ecp5-25k", {"pins": str(board)}).check_source(two_layers(), RECIPE)
    assert "m0_data[7]" in caught.value.hint and caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["activation_bits", "accumulator_bits"])
def test_an_export_refuses_the_widths_of_an_estimate(name: str) -> None:
    made = make(None, "pynq-z2", {"flow": "hls4ml", name: "16"})
    for refuse in (lambda: made.check_source(two_layers(), RECIPE), lambda: made.compile(Segment(two_layers()))):
        with pytest.raises(RecipeError, match=f"{name} is of estimates of networks in float alone: an export writes"):
            refuse()


def test_a_factor_for_one_node_keeps_that_of_the_others_free() -> None:
    made = make(None, "pynq-z2", {"flow": "hls4ml", "reuse_factor": "4", "reuse_factors": "fc1=16"})
    assert isinstance(made, Fpga) and flow_hls4ml.reuse_factors(",".join(made.reuse_factors)) == {"fc1": 16}


@pytest.mark.parametrize(("device", "less"), [("ecp5-25k", "tools=none (or synthesis)"), ("pynq-z2", "tools=none leaves")])
def test_tools_that_take_too_long_are_told_with_the_options_that_change_it(
    device: str, less: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(*_: Any) -> Any:
        raise tool_process.TookTooLong("synthesis", "stopped after 60 s, in synthesis: ABC")

    monkeypatch.setattr(flow_rtl, "completed", too_long)
    with pytest.raises(ToolError, match="stopped after 60 s") as caught:
        Fpga(profile(device), tool_minutes=1.0).complete(None)  # type: ignore[arg-type]
    assert "--set tool_minutes=N" in caught.value.hint and f"--set {less}" in caught.value.hint


def test_no_option_leaves_out_a_simulation_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_long(*_: Any) -> Any:
        raise tool_process.TookTooLong("bench", "stopped after 60 s")

    monkeypatch.setattr(flow_rtl, "completed", too_long)
    with pytest.raises(ToolError) as caught:
        Fpga(profile("ecp5-25k"), tool_minutes=1.0).complete(None)  # type: ignore[arg-type]
    assert caught.value.hint == "--set tool_minutes=N gives the tools more than 1 minutes"


def test_other_errors_of_tools_keep_their_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise ToolError("yosys", "synthesis failed", hint="all it printed: log")

    monkeypatch.setattr(flow_rtl, "completed", fails)
    with pytest.raises(EdgeError) as caught:
        Fpga(profile("ecp5-25k")).complete(None)  # type: ignore[arg-type]
    assert caught.value.hint == "all it printed: log"


def test_every_option_is_of_one_flow_or_of_both() -> None:
    """An option that is new has to be put where it belongs, else it would be ignored without a word."""
    options = {one.name for one in fields(Fpga)} - {"device"}
    mine = {name for names in OPTIONS_OF.values() for name in names}
    assert mine < options and options - mine == {"flow", "bits", "clock_ns"}
    assert set(OPTIONS_OF) == {"rtl", "hls4ml"} and not set(OPTIONS_OF["rtl"]) & set(OPTIONS_OF["hls4ml"])


def test_the_error_of_an_option_of_the_other_flow_says_what_to_give() -> None:
    with pytest.raises(RecipeError) as caught:
        make(None, "pynq-z2", {"strategy": "resource"})
    assert caught.value.hint == "give --set flow=hls4ml, or leave strategy out"
    with pytest.raises(RecipeError) as caught:
        make(None, "ecp5-25k", {"reuse_factor": "4"})
    assert caught.value.hint == "leave reuse_factor out: hls4ml has no back end for this device"


def net(*nodes: Any, rank: int = 2, batch: int | str = 1, opset: int = 17) -> Model:
    """Nodes behind an input `x` of four values (rank 3: tokens of them), before an output `y`; the weights are `w` and `v`."""
    rng = np.random.default_rng(5)
    names = dict.fromkeys(name for node in nodes for name in node.input)
    stored = [numpy_helper.from_array(rng.standard_normal((4, 4)).astype(np.float32), name) for name in ("w", "v")]
    stored += [numpy_helper.from_array(np.ones(4, np.float32), name) for name in ("mean", "variance")]
    stored += [numpy_helper.from_array(np.float32(value), name) for name, value in (("two", 2), ("tiny", 1e-3))]
    stored.append(numpy_helper.from_array(rng.standard_normal((4, 1, 1, 1)).astype(np.float32), "k"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *[4] * (rank - 1)]) for name in "xy"]
    graph = helper.make_graph(list(nodes), "net", ends[:1], ends[1:], [one for one in stored if one.name in names])
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), "net")


def foreign(model: Model) -> Model:
    """The model with its node `last` as an operator of ONNX Runtime's own."""
    proto = model.copy_proto()
    next(node for node in proto.graph.node if node.name == "last").domain = "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return Model.from_proto(proto, "net")


def op(kind: str, read: str, result: str, name: str = "", **options: Any) -> Any:
    return helper.make_node(kind, read.split(), [result], name=name, **options)


def two_layers(last: str = "", batch: int | str = 1) -> Model:
    """Dense layers fc1 and fc2 with an activation between them, and perhaps an operator `last` at the end."""
    nodes = [op("Gemm", "x w", "a", "fc1"), op("Relu", "a", "b", "act"), op("Gemm", "b v", "c" if last else "y", "fc2")]
    return net(*nodes, *([op(last, "c", "y", "last")] if last else []), batch=batch)


def made_of(model: Model, passes: Sequence[Pass]) -> Model:
    """The model after passes, random inputs taken for real ones."""
    given = Given(model, replace(synthetic(model, 4), synthetic=False))
    for step in passes:
        model = step(model, given)
    return model


RECIPE: tuple[Pass, ...] = (Fold(), Quantize(flavour="fixed"))


def check_source(model: Model, passes: Sequence[Pass] = RECIPE, **settings: str) -> None:
    make(None, "pynq-z2", settings).check_source(model, passes)


@pytest.mark.parametrize("last", ["LogSoftmax", "Floor", "Not", "PRelu", "Foreign"])
def test_an_operator_without_an_integer_form_is_refused_before_the_passes_in_the_words_of_after(last: str) -> None:
    model = two_layers(last if last in ("LogSoftmax", "Floor") else "")
    if last == "PRelu":
        model = net(op("Gemm", "x w", "a", "fc1"), op("PRelu", "a mean", "y", "last"))
    if last == "Not":  # in the middle, between two that have a form
        cast = [op("Cast", "a", "b", "bool", to=TensorProto.BOOL), op("Not", "b", "c", "not"), op("Cast", "c", "d", "back", to=1)]
        model = net(op("Gemm", "x w", "a", "fc1"), *cast, op("Gemm", "d v", "y", "fc2"))
    if last == "Foreign":
        model = foreign(net(op("Gemm", "x w", "a", "fc1"), op("Gelu", "a", "b", "last"), op("Relu", "b", "y", "act"), opset=20))
    with pytest.raises(Unsupported) as after:
        integer_reader.program(made_of(model, RECIPE))
    with pytest.raises(Unsupported) as before:
        check_source(model)
    assert before.value.line() == after.value.line()
    assert (before.value.node, before.value.operator) == (after.value.node, after.value.operator) != ("", "")


def test_an_input_of_any_length_is_refused_before_the_passes_in_the_words_of_after() -> None:
    model = two_layers(batch="n")
    with pytest.raises(Unsupported, match="'x' has the dynamic shape nx4; logic has a fixed one") as before:
        check_source(model)
    with pytest.raises(Unsupported) as after:
        integer_reader.program(made_of(model, RECIPE))
    assert before.value.line() == after.value.line()
    check_source(model.with_shapes({"x": (1, 4)}))


@pytest.mark.parametrize("kind", ["batch norm", "dead", "folded", "spelt out", "rounded"])
def test_operators_that_folding_and_quantising_take_away_are_not_refused(kind: str) -> None:
    first, last = op("Gemm", "x w", "a", "fc1"), op("Gemm", "b v", "y", "fc2")
    models: dict[str, Callable[[], Model]] = {
        "batch norm": lambda: net(first, op("BatchNormalization", "a mean mean mean variance", "b", "bn"), last),
        "dead": lambda: net(first, op("Relu", "a", "b", "act"), last, op("LogSoftmax", "a", "z", "unread")),
        "folded": lambda: net(first, op("Shape", "a", "s", "shape"), op("Reshape", "a s", "b", "same"), last),
        "spelt out": lambda: net(op("MatMul", "x w", "a", "fc1"), *SPELT_OUT, op("MatMul", "b v", "y", "fc2"), rank=3),
        "rounded": lambda: made_of(two_layers(), (Fold(), Quantize(flavour="fixed", rounding="half_up"))),
    }
    model = models[kind]()
    assert {node.op_type for node in model.proto.graph.node} & {
        "BatchNormalization", "LogSoftmax", "Shape", "Pow", "Floor",
    }  # fmt: skip
    passes = () if kind == "rounded" else RECIPE
    check_source(model, passes)
    assert integer_reader.program(made_of(model, passes)).operations


SPELT_OUT = (
    op("ReduceMean", "a", "m", axes=[-1]), op("Sub", "a m", "d"), op("Pow", "d two", "q"),
    op("ReduceMean", "q", "s", axes=[-1]), op("Add", "s tiny", "t"), op("Sqrt", "t", "r"), op("Div", "d r", "b"),
)  # fmt: skip


def test_a_recipe_that_may_replace_an_operator_is_left_to_the_check_behind_it() -> None:
    model = two_layers("LogSoftmax")
    check_source(model, (Fold(), Expand(), *RECIPE[1:]))
    for known in (LowRank(), Sparsify(), Equalize()):
        with pytest.raises(Unsupported, match="LogSoftmax"):
            check_source(model, (Fold(), known, *RECIPE[1:]))


def test_every_node_that_has_a_name_in_the_end_can_have_a_reuse_factor() -> None:
    named, unnamed = two_layers(), net(op("Gemm", "x w", "a"), op("Relu", "a", "b"), op("Gemm", "b v", "y"))
    for model in (named, unnamed):
        nodes = {operation.node for operation in integer_reader.program(made_of(model, RECIPE)).operations}
        assert len(nodes) > 4
        for node in nodes:
            check_source(model, flow="hls4ml", reuse_factors=f"{node}=2")
    check_source(unnamed, flow="hls4ml", reuse_factors="Gemm_a=2,Gemm_y=4")


def test_a_reuse_factor_of_no_node_is_refused_before_the_passes_with_the_layers_that_there_are() -> None:
    with pytest.raises(RecipeError, match=r"a reuse factor for 'fc9', which is no node of the network; its layers are fc1, fc2$"):
        check_source(two_layers(), flow="hls4ml", reuse_factors="fc1=2,fc9=4")
    norm = net(op("Conv", "x k", "a", "conv", group=4), op("BatchNormalization", "a mean mean mean variance", "y", "bn"), rank=4)
    for gone in ("conv", "bn"):  # onnxslim makes one node of both, with a name of its own
        with pytest.raises(RecipeError, match=rf"'{gone}', which is no node of the network any more once it is folded") as caught:
            check_source(norm, flow="hls4ml", reuse_factors=f"{gone}=4")
        (layer,) = (node.name for node in made_of(norm, (Fold(),)).proto.graph.node)
        assert caught.value.message.endswith(f"; its layers are {layer}")
        check_source(norm, flow="hls4ml", reuse_factors=f"{layer}=4")
    check_source(two_layers(), (Fold(), LowRank(), *RECIPE[1:]), flow="hls4ml", reuse_factors="fc1/down=4")


def rows_of(model: Model, device: str = "pynq-z2", **settings: str) -> tuple[Figure, ...]:
    return make(None, device, settings).estimate_model(model, layers(model), "fixed")


def test_a_model_in_fixed_point_is_estimated_for_hls4ml_by_its_own_integers() -> None:
    model = made_of(two_layers("Softmax"), (Fold(), Quantize(flavour="fixed", bits=5)))
    program = integer_reader.program(model)
    of_device = [layer for layer in layers_of(program) if layer.kind != "softmax"]
    part = profile("pynq-z2").get("part", str) or ""
    wanted = estimate(of_device, reuse_factor=4, strategy="resource", part=part)
    found = rows_of(model, flow="hls4ml", reuse_factor="4", strategy="resource", bits="16")
    assert [(row.name, row.layer, row.value, row.interval) for row in found] == [
        (row.name, row.layer, row.value, row.interval) for row in wanted
    ]
    assert all(row.method.startswith("the model's own integers; ") for row in found)
    assert {row.layer for row in found} >= {"fc1", "fc2"} and len(of_device) < len(layers_of(program))


def test_a_model_in_fixed_point_is_estimated_for_rtl_by_its_own_design() -> None:
    model = made_of(two_layers("Softmax"), RECIPE)
    wanted = rtl_estimate.estimate(design(integer_reader.program(model), "folded"), profile("ecp5-25k"))
    found = rows_of(model, "ecp5-25k", form="folded", bits="3")
    assert [(row.name, row.value, row.interval) for row in found] == [(row.name, row.value, row.interval) for row in wanted]
    assert all(row.provenance == "estimated" and row.method.startswith("the model's own integers; ") for row in found)


@pytest.mark.parametrize("flavour", ["u8s8", "qoperator", "dynamic"])
@pytest.mark.parametrize(("flow", "names"), [("rtl", {"lut", "latency_ms"}), ("hls4ml", {"lut", "cycles"})])
def test_integers_that_are_no_fixed_point_are_not_estimated_and_it_is_said_what_to_do(
    flavour: Any, flow: str, names: set[str]
) -> None:
    model = made_of(two_layers(), (Fold(), Quantize(flavour=flavour)))
    rows = rows_of(model, flow=flow)
    assert names <= {row.name for row in rows}
    for row in rows:
        assert (row.provenance, row.value, row.where) == ("unavailable", None, "pynq-z2")
        assert "cannot run node" in row.method
        assert row.method.endswith("; estimate the float model that it was made from, or export the float model with "
                                   "--precision fixed, or with --set quantize.flavour=fixed")  # fmt: skip


@pytest.mark.parametrize("flow", ["rtl", "hls4ml"])
def test_a_float_model_is_estimated_by_its_layers_and_the_bits_asked_for(flow: str) -> None:
    model, target = two_layers(), make(None, "pynq-z2", {"flow": flow, "bits": "6"})
    assert target.estimate_model(model, layers(model), "fixed") == target.estimate(layers(model), "fixed")


def test_the_artefact_is_the_bitstream_or_else_the_networks_own_sources() -> None:
    logic, hls = Runtime("fpga", "build/network.v"), Runtime("fpga", "build/firmware/network.cpp")
    written = ("build/network.v", "build/s0.hex", "build/Makefile", "model.onnx", "manifest.json")
    assert Fpga(profile("ecp5-85k")).artefact(written, logic) == ("build/network.v", "build/s0.hex")
    assert Fpga(profile("ecp5-85k")).artefact((*written, "build/design.bit"), logic) == ("build/design.bit",)
    own = ("build/firmware/network.cpp", "build/firmware/weights/w2.h")
    others = ("build/firmware/ap_types/ap_int.h", "build/network_test.cpp", "build/build_prj.tcl")
    assert Fpga(profile("ecp5-85k")).artefact((*own, *others), hls) == own
