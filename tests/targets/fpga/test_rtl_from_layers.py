"""Programs for networks of which only sizes are known."""

from __future__ import annotations

import numpy as np
import pytest

from edgesdk_converters.cost import Layer, layers
from edgesdk_converters.errors import Unsupported
from edgesdk_converters.integer_program import Conv, Dense, IntegerProgram, Pool, Softmax, Sum
from edgesdk_converters.model import Model
from edgesdk_targets.fpga import dense_spec
from edgesdk_targets.fpga.hls4ml_terms import FixedLayer
from edgesdk_targets.fpga.rtl_from_layers import of_fixed, of_layers


def shapes(program: IntegerProgram) -> list[tuple[int, ...]]:
    return [one.weight.shape for one in program.operations if isinstance(one, Dense | Conv)]


def runs(program: IntegerProgram) -> None:
    codes = {name: np.zeros((2, *program.tensors[name].shape), np.int64) for name in program.inputs}
    for name, found in program.run(codes).items():
        assert found.shape == (2, *program.tensors[name].shape)


def test_line_of_sizes_becomes_dense_layers_of_its_bits() -> None:
    program = of_fixed(dense_spec.parse("dense:16-32-5@7bit"))
    assert shapes(program) == [(32, 16), (5, 32)]
    assert [program.tensors[name].bits for name in (*program.inputs, *program.outputs)] == [7, 7]
    runs(program)


def conv(name: str, source: str, result: str, ins: tuple[int, ...], outs: tuple[int, ...], **more: object) -> Layer:
    return Layer(name, "Conv", "conv", (source,), (result,), ((1, *ins),), ((1, *outs),), (3, 3), **more)  # type: ignore[arg-type]


def test_convolutions_get_the_zeros_around_that_their_results_need() -> None:
    found = [
        conv("a", "x", "y", (3, 8, 8), (4, 8, 8), stride=(1, 1)),
        Layer("r", "Relu", "act", ("y",), ("z",), ((1, 4, 8, 8),), ((1, 4, 8, 8),)),
        conv("b", "z", "d", (4, 8, 8), (4, 4, 4), stride=(2, 2), groups=4),
        Layer("g", "GlobalAveragePool", "pool", ("d",), ("e",), ((1, 4, 4, 4),), ((1, 4, 1, 1),)),
        Layer("f", "Flatten", "reshape", ("e",), ("h",), ((1, 4, 1, 1),), ((1, 4),)),
        Layer("o", "Gemm", "fc", ("h",), ("o",), ((1, 4),), ((1, 10),)),
    ]
    program = of_layers(found, 6)
    assert shapes(program) == [(4, 3, 3, 3), (4, 1, 3, 3), (10, 4)]
    first, second = (one for one in program.operations if isinstance(one, Conv))
    assert (first.pads, second.pads, second.strides, second.groups) == ((1, 1, 1, 1), (0, 0, 1, 1), (2, 2), 4)
    assert [program.tensors[name].shape for name in program.outputs] == [(10,)]
    runs(program)


def test_branches_meet_again() -> None:
    found = [
        conv("a", "x", "y", (4, 6, 6), (4, 6, 6)),
        Layer("s", "Add", "eltwise", ("y", "x"), ("s",), ((1, 4, 6, 6),) * 2, ((1, 4, 6, 6),)),
        Layer("p", "MaxPool", "pool", ("s",), ("p",), ((1, 4, 6, 6),), ((1, 4, 3, 3),), (2, 2), (2, 2)),
    ]
    program = of_layers(found, 5)
    (joined,) = (one for one in program.operations if isinstance(one, Sum))
    assert joined.sources[1] == program.inputs[0]
    assert [one.kind for one in program.operations if isinstance(one, Pool)] == ["max"]
    runs(program)


def added(*inputs: str, second: tuple[int, ...] = (1, 8)) -> list[Layer]:
    return [Layer("h", "Gemm", "fc", ("x",), ("h",), ((1, 5),), ((1, 8),)),
            Layer("a", "Add", "eltwise", inputs, ("a",), ((1, 8), second), ((1, 8),)),
            Layer("o", "Gemm", "fc", ("a",), ("o",), ((1, 8),), ((1, 4),))]  # fmt: skip


def test_later_inputs_of_the_network_are_added_and_constants_are_not() -> None:
    both = of_layers(added("p", "q"), 6)
    (joined,) = (one for one in both.operations if isinstance(one, Sum))
    assert len(both.inputs) == 3 and set(joined.sources) == set(both.inputs[1:])
    assert len(both.outputs) == 2, "what no later layer reads is a result"
    one = of_layers(added("h", "q"), 6)
    (joined,) = (one for one in one.operations if isinstance(one, Sum))
    assert len(one.inputs) == 2 and joined.sources[1] == one.inputs[1]
    stored = Layer("d", "DequantizeLinear", "quant", (), ("bias",), (), ((1, 8),))
    for layers_of in (added("h", "bias", second=(1,)), [stored, *added("h", "bias")]):
        folded = of_layers(layers_of, 6)
        assert len(folded.inputs) == 1 and not any(isinstance(one, Sum) for one in folded.operations)


def test_a_block_of_a_transformer_without_its_attention() -> None:
    rows = ((1, 3, 8),)
    found = [
        Layer("e", "MatMul", "matmul", ("x",), ("h",), ((1, 3, 5),), rows),
        Layer("n", "LayerNormalization", "norm", ("h", "gain", "bias"), ("n",), rows, rows),
        Layer("u", "MatMul", "matmul", ("n",), ("u",), rows, ((1, 3, 12),)),
        Layer("g", "Gelu", "act", ("u",), ("g",), ((1, 3, 12),), ((1, 3, 12),)),
        Layer("d", "MatMul", "matmul", ("g",), ("d",), ((1, 3, 12),), rows),
        Layer("a", "Add", "eltwise", ("h", "d"), ("a",), rows * 2, rows),
        Layer("m", "LayerNormalization", "norm", ("a",), ("m",), rows, rows),
    ]
    for bits, curves in ((8, 0), (14, 1)):
        program = of_layers(found, bits)
        kinds = [type(one).__name__ for one in program.operations]
        assert kinds.count("LayerNorm") == 2 and kinds.count("Curve") == curves and kinds.count("Table") == 1 - curves
        assert program.tensors[program.outputs[0]].shape == (3, 8)
        runs(program)
    head = [Layer("o", "Gemm", "fc", ("x",), ("o",), ((1, 8),), ((1, 4),)),
            Layer("s", "Softmax", "softmax", ("o",), ("s",), ((1, 4),), ((1, 4),))]  # fmt: skip
    (softmax,) = (one for one in of_layers(head, 8).operations if isinstance(one, Softmax))
    assert softmax.shift == 8


def test_a_mean_over_tokens_keeps_their_features() -> None:
    def mean(out: tuple[int, ...]) -> list[Layer]:
        return [Layer("e", "MatMul", "matmul", ("x",), ("h",), ((1, 3, 5),), ((1, 3, 8),)),
                Layer("m", "ReduceMean", "pool", ("h",), ("m",), ((1, 3, 8),), (out,))]  # fmt: skip

    (pool,) = (one for one in of_layers(mean((1, 8)), 8).operations if isinstance(one, Pool))
    assert pool.kernel == (3,)
    (pool,) = (one for one in of_layers(mean((1, 3)), 8).operations if isinstance(one, Pool))
    assert pool.kernel == (8,)
    with pytest.raises(Unsupported, match=r"\(3, 8\) to \(1,\)"):
        of_layers(mean((1, 1)), 8)


def test_attention_is_no_layer_with_weights() -> None:
    rows, square = ((1, 3, 4),), ((1, 3, 3),)
    found = [
        Layer("q", "MatMul", "matmul", ("x",), ("q",), rows, rows), Layer("k", "MatMul", "matmul", ("x",), ("k",), rows, rows),
        Layer("s", "MatMul", "matmul", ("q", "k"), ("s",), rows * 2, square),
    ]  # fmt: skip
    with pytest.raises(Unsupported, match=r"'s' \(MatMul\): both sides are computed"):
        of_layers(found, 8)


@pytest.mark.parametrize("op", ["Elu", "Softmax"])
def test_wide_tables_are_refused(op: str) -> None:
    found = [Layer("o", "Gemm", "fc", ("x",), ("o",), ((1, 8),), ((1, 4),)),
             Layer("t", op, "act", ("o",), ("t",), ((1, 4),), ((1, 4),))]  # fmt: skip
    with pytest.raises(Unsupported, match="a table of 13 bits; allowed: 12"):
        of_layers(found, 13)


def test_layer_list_without_names_is_a_chain() -> None:
    found = [
        Layer("a", "", "conv", in_shapes=((3, 8, 8),), out_shapes=((4, 6, 6),), kernel=(3, 3)),
        Layer("b", "", "act", in_shapes=((4, 6, 6),), out_shapes=((4, 6, 6),)),
        Layer("c", "", "reshape", in_shapes=((4, 6, 6),), out_shapes=((144,),)),
        Layer("d", "", "fc", in_shapes=((144,),), out_shapes=((5,),)),
    ]
    program = of_layers(found, 4)
    assert shapes(program) == [(4, 3, 3, 3), (5, 144)]
    assert len(program.inputs) == 1
    runs(program)


def test_exported_model_keeps_its_sizes() -> None:
    program = of_layers(layers(Model.load("examples/fashion/fashion_cnn.onnx")), 8)
    assert sum(int(np.prod(shape)) for shape in shapes(program)) == 60_696
    assert program.tensors[program.outputs[0]].shape == (10,)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (conv("a", "x", "y", (3, 8, 8), (4, 4, 4), dilation=(2, 2)), "holes"),
        (Layer("g", "GRU", "rnn", ("x",), ("y",), ((1, 5, 8),), ((1, 5, 8),)), "no layout"),
        (Layer("p", "AveragePool", "pool", ("x",), ("y",), ((1, 2, 5, 5),), ((1, 2, 5, 5),), (3, 3), (1, 1)), "zeros around"),
    ],
)
def test_what_has_no_layout_is_refused_by_name(layer: Layer, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason) as caught:
        of_layers([layer], 8)
    assert layer.name in str(caught.value)


def test_layers_over_pixels_without_their_image_are_refused() -> None:
    with pytest.raises(Unsupported, match="vectors only"):
        of_fixed([FixedLayer("c", "conv2d", 27, 8, 8, positions=100, kernel=9)])
