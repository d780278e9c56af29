from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from edgesdk_converters.errors import MissingExtra, RecipeError, TargetError, Unsupported
from edgesdk_converters.integer_program import Conv, Dense, Move, Pool, Product, Table
from edgesdk_converters.integer_tables import drawn
from edgesdk_targets.fpga import hls4ml_flow, hls4ml_rules
from edgesdk_targets.fpga.hls4ml_backends import BACKENDS, BackendName
from edgesdk_targets.fpga.hls4ml_flow import Options
from edgesdk_targets.fpga.hls4ml_types import Cast, Fixed, HlsLayer, Layers, fixed_for

from .integer_nets import Net, clipped_net, conv_net, dense_net, moved_net
from .test_normalised import norm

ALL = get_args(BackendName)
SMALL = dense_net((4, 3, 2), 4, "half_even")


def kinds(layers: Layers) -> list[str]:
    return [layer.kind for layer in layers.layers]


def layers_of(net: Net, *outputs: str, backend: str = "vitis", stream: bool = False) -> Layers:
    return hls4ml_rules.layers(net.program(*outputs), BACKENDS[backend], stream)


def named(layers: Layers, kind: str) -> HlsLayer:
    return next(layer for layer in layers.layers if layer.kind == kind)


def test_types_are_written_as_hls4ml_reads_them() -> None:
    assert str(Fixed(6, 2, True)) == "fixed<6,2>"
    assert str(Fixed(8, -3, False, "half_even", "SAT")) == "ufixed<8,-3,RND_CONV,SAT>"
    assert str(Fixed(8, 3, True, "half_up", "SAT_SYM")) == "fixed<8,3,RND,SAT_SYM>"
    assert str(Fixed(8, 3, True, "truncate", "SAT")) == "fixed<8,3,TRN,SAT>"


@pytest.mark.parametrize(("low", "high", "bits"), [(0, 255, 8), (0, 256, 9), (-128, 127, 8), (-129, 0, 9), (0, 0, 1), (-1, 3, 3)])
def test_the_narrowest_type_holds_both_ends(low: int, high: int, bits: int) -> None:
    fixed = fixed_for(low, high, -3)
    assert (fixed.bits, fixed.integer_bits, fixed.signed) == (bits, bits - 3, low < 0)
    assert fixed.limits[0] <= low
    assert high <= fixed.limits[1]


@pytest.mark.parametrize("backend", ALL)
def test_every_back_end_writes_a_project_twice_with_the_same_bytes_and_no_path_of_this_machine(backend: BackendName) -> None:
    options = Options(backend=backend)
    first, second = hls4ml_flow.project(SMALL, options), hls4ml_flow.project(SMALL, options)
    assert first.digest == second.digest
    assert {name: data for name, data in first.files.items() if second.files[name] != data} == {}
    sources = [name for name in first.files if name.endswith("network.cpp")]
    assert len(sources) == 1
    assert b"nnet::dense" in first.files[sources[0]]
    for name, data in first.files.items():
        assert not name.startswith("/")
        assert all(place not in data for place in (b"/tmp/", b"/home/", b"/root/", b"site-packages", sys.prefix.encode())), name


@pytest.mark.parametrize("backend", ALL)
def test_builds_are_commands_as_data_with_their_files_in_the_project(backend: BackendName) -> None:
    project = hls4ml_flow.project(SMALL, Options(backend=backend))
    named_files = {"build_prj.tcl", "design.tcl"}
    for command in project.build.commands:
        assert all(word in project.files for word in command if word in named_files)
    assert project.build.commands[-1][0] in (BACKENDS[backend].tool, "vivado", "make", "cmake")
    told = project.build.missing()
    assert BACKENDS[backend].tool_name in told
    assert " ".join(project.build.commands[0]) in told


def test_vitis_is_told_to_synthesise_and_not_to_run_the_test_bench() -> None:
    project = hls4ml_flow.project(SMALL, Options(part="xczu9eg-ffvb1156-2-e", clock_ns=3.5))
    assert project.build.commands == (("vitis-run", "--mode", "hls", "--tcl", "build_prj.tcl"),)
    told = project.files["build_opt.tcl"].decode()
    assert "csim 0" in told
    assert "synth 1" in told
    assert "vsynth 1" in told
    settings = project.files["project.tcl"].decode()
    assert 'set part "xczu9eg-ffvb1156-2-e"' in settings
    assert "set clock_period 3.5\n" in settings


def test_roundings_and_bounds_become_the_type_of_the_layer_before_them() -> None:
    net = Net(0, 6, "half_up")
    last = net.round(net.relu(net.dense(net.input((5,)), 3)))
    found = layers_of(net, net.round(net.dense(last, 2), signed=True, rounding="truncate", low=-31))
    assert kinds(found) == ["InputLayer", "Dense", "Dense"]
    first, second = (layer.precision["result"] for layer in found.layers[1:])
    assert (first.signed, first.rounding, first.saturation) == (False, "half_up", "SAT")
    assert (second.signed, second.rounding, second.saturation) == (True, "truncate", "SAT_SYM")


def test_a_tensor_that_two_read_is_rounded_in_a_layer_of_its_own() -> None:
    net = Net(0)
    wide = net.dense(net.input((5,)), 3)
    found = layers_of(net, net.round(wide, signed=True), net.round(net.relu(wide), 4))
    assert kinds(found) == ["InputLayer", "Dense", "Activation", "Activation"]
    assert found.layers[1].precision["result"].saturation == "WRAP"


def test_accumulators_hold_every_partial_sum() -> None:
    net = Net(0, 3)
    source = net.input((2,))
    result = net.dense(source, 1)
    (op,) = net.operations
    assert isinstance(op, Dense)
    net.operations[0] = replace(op, weight=np.array([[3, -3]]), bias=np.array([2]))
    accum = named(layers_of(net, result), "Dense").precision["accum"]
    assert accum.limits[0] <= 3 * -4 + -3 * 3
    assert accum.limits[1] >= 2 + 3 * 3 + -3 * -4
    assert accum.bits == 6


def test_channels_behind_a_flatten_are_the_dense_weights_columns() -> None:
    net = Net(0)
    flat = net.flatten(net.round(net.conv(net.input((2, 3, 4)), 3, (1, 1)), signed=True))
    found = layers_of(net, net.dense(flat, 2))
    dense, op = named(found, "Dense"), net.operations[-1]
    assert isinstance(op, Dense)
    order = np.moveaxis(np.arange(3 * 3 * 4).reshape(3, 3, 4), 0, -1).reshape(-1)
    step = 2.0 ** (net.tensors[op.result].exponent - net.tensors[op.source].exponent)
    assert (dense.attributes["weight_data"] == op.weight[:, order].T * step).all()
    assert found.inputs[0].shape == (3, 4, 2)
    assert found.inputs[0].order.tolist() == np.moveaxis(np.arange(24).reshape(2, 3, 4), 0, -1).reshape(-1).tolist()


def test_asymmetric_pads_are_a_layer_of_their_own() -> None:
    net = Net(0)
    found = layers_of(net, net.conv(net.input((2, 5, 6)), 3, (3, 3), pads=(0, 2, 1, 0)))
    padding, conv = named(found, "ZeroPadding2D").attributes, named(found, "Conv2D").attributes
    assert [padding[f"pad_{side}"] for side in ("top", "bottom", "left", "right")] == [0, 1, 2, 0]
    assert (padding["out_height"], padding["out_width"]) == (6, 8)
    assert (conv["in_height"], conv["in_width"], conv["pad_top"], conv["pad_left"]) == (6, 8, 0, 0)


def test_a_bound_of_relu6_that_is_no_types_limit_is_kept() -> None:
    net = Net(0, 8)
    wide = net.dense(net.input((5,)), 3)
    six = 6 << -net.tensors[wide].exponent
    found = layers_of(net, net.round(net.relu(wide, six), drop=six.bit_length() - 8))
    up, down = (layer for layer in found.layers if layer.kind == "BatchNormalization")
    held = down.precision["result"]
    assert held.limits[1] * 2.0 ** (held.integer_bits - held.bits) >= 6
    assert up.precision["result"].saturation == "SAT"
    shift = up.attributes["bias_data"][0]
    assert up.precision["result"].limits[1] * 2.0 ** (held.integer_bits - held.bits) - shift == 6
    assert (down.attributes["bias_data"] == -shift).all()


@pytest.mark.parametrize(
    ("low", "high", "ends"), [(20, None, (20, 20)), (None, -20, (-20, -20)), (20, 9, (9, 9)), (-3, None, (-3, 15))]
)
def test_bounds_hold_where_no_value_reaches_them(low: int | None, high: int | None, ends: tuple[int, int]) -> None:
    found = Cast("x", 0, "truncate", -16, 15).bounded(low, high)
    assert (found.low, found.high) == ends
    assert (found.clips_low, found.clips_high) == (low is not None, high is not None)


def test_a_least_code_of_one_without_a_sign_is_no_symmetric_saturation() -> None:
    net = Net(0)
    found = layers_of(net, net.round(net.dense(net.input((5,)), 3), 4, low=1, high=15))
    assert all(layer.precision["result"].saturation != "SAT_SYM" for layer in found.layers if layer.kind != "InputLayer")
    down, up = (layer for layer in found.layers if layer.kind == "BatchNormalization")
    held, step = up.precision["result"], up.attributes["bias_data"][0]
    assert step == 2.0 ** (held.integer_bits - held.bits)
    assert (down.attributes["bias_data"] == -step).all()
    assert (down.precision["result"].limits[0], down.precision["result"].saturation) == (0, "SAT")


def test_a_layer_that_changes_nothing_may_be_dropped() -> None:
    net = Net(0)
    wide = net.round(net.dense(net.input((5,)), 3), 2, low=0, high=3, rounding="truncate")
    both = net.sum([net.clip(wide, 0, 2), wide], [1, 1])
    made = hls4ml_flow.project(net.program(both), Options())
    (body,) = (text.decode() for name, text in made.files.items() if name.endswith("firmware/network.cpp"))
    (idle,) = (layer.name for layer in made.layers.layers if layer.attributes.get("activation") == "linear")
    assert idle not in body and all(layer.name in body for layer in made.layers.layers if layer.kind == "Dense")


def test_groups_are_depthwise_where_the_back_end_has_that_and_zeros_elsewhere() -> None:
    net = Net(0)
    result = net.conv(net.input((4, 5, 5)), 4, (3, 3), groups=4)
    assert "DepthwiseConv2D" in kinds(layers_of(net, result))
    written_out = layers_of(net, result, backend="quartus")
    weight = named(written_out, "Conv2D").attributes["weight_data"]
    assert weight.shape == (3, 3, 4, 4)
    assert np.count_nonzero(weight) <= 36
    assert "4 groups" in written_out.notes[0]


@pytest.mark.parametrize("make", [conv_net, clipped_net, moved_net])
def test_names_are_unique_and_names_of_cpp(make: Any) -> None:
    names = [layer.name for layer in hls4ml_rules.layers(make(), BACKENDS["vitis"]).layers]
    assert len({name.lower() for name in names}) == len(names)
    assert all(name.isidentifier() and name.isascii() for name in names)


def test_illegal_reuse_factors_become_the_closest_legal_one_and_the_notes_say_so() -> None:
    program = dense_net((16, 12, 5), 6, "half_even")
    first, second = (op.node for op in program.operations if isinstance(op, Dense))
    project = hls4ml_flow.project(program, Options(strategy="resource", reuse_factor=5, reuse_factors={second: 12}))
    assert project.reuse_factors == {first: 4, second: 12}
    assert project.notes == (f"{first}: reuse factor 4, the legal one closest to 5",)
    parameters = project.files["firmware/parameters.h"].decode()
    assert parameters.count("reuse_factor = 4;") == 1
    assert parameters.count("reuse_factor = 12;") == 1
    assert "strategy = nnet::resource" in parameters


def test_a_convolution_in_parallel_is_folded_within_its_window_only() -> None:
    """Beyond kernel x channels hls4ml's nnet_conv2d_resource.h adds products to the wrong outputs, or stops at an assertion."""
    net = Net(0)
    rows = net.round(net.conv(net.input((2, 4, 4)), 6, (1, 2)), signed=True)
    program = net.program(net.dense(net.flatten(rows), 3))
    conv, dense = (operation.node for operation in program.operations if isinstance(operation, Conv | Dense))
    for io_type, factor in (("io_parallel", 4), ("io_stream", 24)):
        found = hls4ml_flow.project(program, Options(strategy="resource", reuse_factor=1000, io_type=io_type))  # type: ignore[arg-type]
        assert found.reuse_factors[conv] == factor and found.reuse_factors[dense] > 72
        assert any(note.startswith(f"{conv}: reuse factor {factor}, ") for note in found.notes)


def test_argmax_in_the_end_is_left_to_the_host_and_the_notes_say_so() -> None:
    net = Net(0)
    last = net.round(net.dense(net.input((5,)), 3), signed=True)
    project = hls4ml_flow.project(net.program(net.argmax(last), last), Options())
    assert [port.tensor.name for port in project.layers.outputs] == [last]
    assert any("ArgMax" in note and "host" in note for note in project.notes)


def a_table_of_many_bits(net: Net) -> str:
    return net.table(net.dense(net.input((60,)), 3))


def an_argmax_inside(net: Net) -> str:
    return net.dense(net.argmax(net.dense(net.input((5,)), 3)), 2)


def a_product_of_matrices(net: Net) -> str:
    left = net.round(net.dense(net.input((4, 4)), 4), signed=True)
    result = net.product(left, left)
    net.operations[-1] = Product("matmul", left, left, result, matmul=True)
    return result


def elements_twice(net: Net) -> str:
    return net.dense(net.move([net.input((4,))], np.array([0, 1, 1, 2, 3])), 2)


def every_second_element(net: Net) -> str:
    return net.conv(net.move([net.input((2, 8))], np.arange(16).reshape(2, 8)[:, ::2].copy()), 2, (3,))


def three_dimensions_of_space(net: Net) -> str:
    source = net.input((2, 3))
    net.tensors[source] = replace(net.tensors[source], shape=(2, 3, 3, 3))
    return net.conv(source, 2, (2, 2, 2))


def a_mean_that_nothing_rounds(net: Net) -> str:
    return net.mean(net.input((2, 3, 3)), (3, 3))


def a_mean_that_is_weighted_before_it_is_rounded(net: Net) -> str:
    return net.dense(net.flatten(net.mean(net.input((2, 3, 3)), (3, 3))), 2)


def a_sum_wider_than_a_double(net: Net) -> str:
    net.bits = 24
    return net.dense(net.dense(net.input((8,)), 4), 2)


def nothing_at_all(net: Net) -> str:
    return net.input((3,))


def windows_full_of_padding(net: Net) -> str:
    return net.pool(net.input((2, 6)), (2,), pads=(2, 0))


def sums_that_broadcast(net: Net) -> str:
    wide, narrow = net.input((3, 4)), net.input((4,))
    return net.sum([wide, narrow], [1, 1])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (a_table_of_many_bits, r"table of 1\d bits"), (an_argmax_inside, "weights follow"),
        (a_product_of_matrices, "element by element"), (elements_twice, "takes elements"),
        (every_second_element, "takes elements"), (three_dimensions_of_space, "dimensions"),
        (a_mean_that_nothing_rounds, "parts of 9"), (a_mean_that_is_weighted_before_it_is_rounded, "parts of 9"),
        (a_sum_wider_than_a_double, "double"), (nothing_at_all, "nothing is computed"),
        (windows_full_of_padding, "whole window"), (sums_that_broadcast, "other shapes"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_what_cannot_be_exact_is_refused_with_node_operator_and_reason(make: Any, reason: str) -> None:
    net = Net(0)
    with pytest.raises(Unsupported, match=reason) as caught:
        hls4ml_flow.project(net.program(make(net)), Options())
    assert caught.value.node
    assert caught.value.operator


@pytest.mark.parametrize(("kernel", "groups"), [((1, 2), 1), ((1, 2), 2), ((1, 1), 2)])
def test_a_stream_strides_downwards_only_with_windows_of_two_rows_and_more(kernel: tuple[int, int], groups: int) -> None:
    """hls4ml's nnet_conv2d_stream.h takes a window of one row for one of one dimension, and gives every row."""
    net = Net(0)
    result = net.conv(net.input((2, 5, 6)), 2, kernel, (2, 1), groups=groups)
    with pytest.raises(Unsupported, match=rf"node 'conv_{result}' \(Conv\): io_stream .* stride of 2 downwards"):
        layers_of(net, result, stream=True)
    assert kinds(layers_of(net, result))
    for other, strides in (((2, 2), (2, 1)), ((1, 2), (1, 2))):
        net = Net(0)
        assert kinds(layers_of(net, net.conv(net.input((2, 5, 6)), 2, other, strides, groups=groups), stream=True))


def test_a_stream_of_points_strides_in_both_directions() -> None:
    net = Net(0)
    assert kinds(layers_of(net, net.conv(net.input((2, 5, 6)), 3, (1, 1), (2, 2)), stream=True))


def test_a_stream_pools_only_with_strides_as_its_window() -> None:
    net = Net(0)
    result = net.pool(net.input((2, 7)), (3,), (2,))
    assert "MaxPooling1D" in kinds(layers_of(net, result))
    with pytest.raises(Unsupported, match="io_stream"):
        layers_of(net, result, stream=True)


@pytest.mark.parametrize("backend", ["quartus", "catapult", "oneapi"])
def test_back_ends_that_divide_inexactly_sum_and_shift_or_refuse(backend: str) -> None:
    net = Net(0)
    found = layers_of(net, net.round(net.mean(net.input((2, 4, 3)), (4, 1)), drop=1, signed=True), backend=backend)
    assert named(found, "Conv2D").attributes["weight_data"].max() == 0.25
    net = Net(0)
    by_twelve = net.round(net.mean(net.input((2, 4, 3)), (4, 3)), signed=True)
    with pytest.raises(Unsupported, match="divides inexactly"):
        layers_of(net, by_twelve, backend=backend)


def test_the_bits_of_a_code_address_its_entry_in_a_table() -> None:
    net = Net(0)
    result = net.table(net.round(net.dense(net.input((5,)), 3), 3, low=-4, high=2, signed=True))
    entries = named(layers_of(net, result), "UnaryLUT").attributes["table_data"]
    (op,) = (op for op in net.operations if isinstance(op, Table))
    assert (entries[[4, 5, 6, 7, 0, 1, 2]] == op.values * 0.25).all()  # codes -4 to -1 in two's complement, then 0 to 2
    assert len(entries) == 8


def test_tables_are_left_to_the_host_where_a_back_end_has_none() -> None:
    net = Net(0)
    last = net.round(net.dense(net.input((5,)), 3), 4)
    project = hls4ml_flow.project(net.program(net.table(last)), Options(backend="quartus"))
    assert project.host is not None
    assert project.host.inputs == (last,)
    with pytest.raises(Unsupported, match="UnaryLUT"):
        hls4ml_flow.project(net.program(net.dense(net.operations[-1].result, 2)), Options(backend="quartus"))


@pytest.mark.parametrize("backend", ["quartus", "catapult", "oneapi"])
def test_transpositions_of_streams_that_do_not_compile_are_refused(backend: str) -> None:
    net = Net(0)
    result = net.dense(net.round(net.conv(net.input((3, 6)), 4, (1,)), signed=True), 5)
    assert "Transpose" in kinds(layers_of(net, result, backend=backend))
    assert "Transpose" in kinds(layers_of(net, result, stream=True))
    with pytest.raises(Unsupported, match="Transpose"):
        layers_of(net, result, backend=backend, stream=True)


def test_ports_say_which_element_lies_where() -> None:
    net = Net(0)
    source = net.input((2, 2, 3))
    project = hls4ml_flow.project(net.program(net.round(net.conv(source, 3, (1, 1)), signed=True)), Options())
    told = json.loads(project.files[hls4ml_flow.PORTS])
    (given,), (taken,) = told["inputs"], told["outputs"]
    assert (given["tensor"], given["shape"], given["layer_shape"], given["exponent"]) == (source, [2, 2, 3], [2, 3, 2], -4)
    assert given["order"] == [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]
    assert given["type"] == "fixed<6,2>"
    assert taken["type"].endswith(",RND_CONV,SAT>")


def test_libero_has_dense_layers_only() -> None:
    net = Net(0)
    with pytest.raises(Unsupported, match="Conv2D"):
        layers_of(net, net.conv(net.input((1, 4, 4)), 2, (2, 2)), backend="libero")


@pytest.mark.parametrize(
    "options",
    [
        Options(backend="symbolicexpression"),  # type: ignore[arg-type]
        Options(backend="libero", io_type="io_stream"),
        Options(backend="vivadoaccelerator", board="ulx3s"),
        Options(name="Network; rm"), Options(name="class"), Options(part='x"; exec'), Options(clock_ns=0),
        Options(reuse_factor=0),
        Options(reuse_factors={"nowhere": 2}),
    ],
    ids=lambda options: "",
)  # fmt: skip
def test_options_that_do_not_exist_are_errors(options: Options) -> None:
    with pytest.raises(RecipeError):
        hls4ml_flow.project(SMALL, options)


def test_the_accelerators_wrapper_carries_doubles_where_a_float_is_too_short() -> None:
    def carried(bits: int) -> str:
        net = Net(0, bits)
        program = net.program(net.dense(net.input((4,)), 2))
        files = hls4ml_flow.project(program, Options(backend="vivadoaccelerator")).files
        return "double" if b"typedef double T_out" in files["firmware/network_axi.h"] else "float"

    assert (carried(6), carried(16)) == ("float", "double")


def test_a_type_that_hls4ml_changes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    given = hls4ml_flow._settings

    def changed(layer: HlsLayer, *others: Any) -> dict[str, Any]:
        settings = given(layer, *others)
        if layer.kind == "Dense":
            settings["Precision"]["accum"] = "fixed<4,2>"
        return settings

    monkeypatch.setattr(hls4ml_flow, "_settings", changed)
    with pytest.raises(TargetError, match="accum"):
        hls4ml_flow.project(SMALL, Options())


def test_without_hls4ml_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hls4ml.model.graph", None)
    with pytest.raises(MissingExtra, match="hls4ml"):
        hls4ml_flow.project(SMALL, Options())


def test_importing_the_flow_imports_neither_hls4ml_nor_quantizers() -> None:
    code = (
        "import sys, json, edgesdk_targets.fpga.hls4ml_flow, edgesdk_targets.fpga.hls4ml_emulation;"
        "print(json.dumps([name for name in ('hls4ml', 'quantizers', 'onnx', 'torch') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_integer_programs_have_no_dilation_that_could_be_misread() -> None:
    assert not any("dilat" in name for kind in (Conv, Pool, Move) for name in kind.__dataclass_fields__)


@pytest.mark.parametrize("backend", ["vitis", "libero"])
def test_layer_normalisation_is_the_host_s_at_the_end_and_refused_in_front_of_weights(backend: BackendName) -> None:
    """hls4ml 1.3 has a layer of that name, whose root comes from a table of its own."""
    net = Net(2, 6)
    last = net.round(norm(net, net.round(net.dense(net.input((5,)), 6), signed=True)), signed=True)
    made = hls4ml_flow.project(net.program(last), Options(backend=backend))
    assert made.host is not None and [type(op).__name__ for op in made.host.operations] == ["LayerNorm", "Round"]
    assert any("(LayerNorm): done by the host, on integers" in note for note in made.notes)
    further = net.program(net.dense(last, 3))
    with pytest.raises(
        Unsupported, match=r"norm_n\d.*LayerNorm.*only the host does it to the bit, and weights follow it"
    ) as caught:
        hls4ml_flow.project(further, Options(backend=backend))
    assert caught.value.hint == "--set flow=rtl"


def test_curves_of_wide_codes_are_refused_in_front_of_weights() -> None:
    net = Net(2, 6)
    wide = net.input((5,), 14, -10)
    curve, codes = drawn("squash", net.tensors[wide], "curved", "Tanh", np.tanh, -8)
    net.operations.append(curve)
    net.tensors["curved"] = codes
    last = net.dense(net.round("curved", signed=True), 3)
    with pytest.raises(Unsupported, match=r"squash.*Curve.*only the host does it to the bit"):
        hls4ml_flow.project(net.program(last), Options())
