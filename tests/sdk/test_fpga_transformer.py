"""A block of a transformer as logic, from export to bitstream: layer normalisation, GELU and a softmax head to the bit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgesdk
from edgesdk_converters.calibration import Samples
from edgesdk_converters.errors import ContractBroken, Unsupported
from edgesdk_converters.fold import Fold
from edgesdk_converters.integer_curves import Curve, LayerNorm
from edgesdk_converters.integer_program import IntegerProgram
from edgesdk_converters.integer_reader import program
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_targets.fpga import evidence
from edgesdk_targets.fpga.design import Design, design
from edgesdk_targets.fpga.testbench import simulate

TOKENS, WIDE, DIM, HIDDEN, CLASSES = 3, 5, 6, 8, 4


def block(attention: int = 0, head: bool = True) -> Model:
    """Tokens, each embedded and normalised, an MLP with GELU around which they go too, normalised, their mean, a softmax head.

    `attention`: tokens that first look at each other, so many. Without `head` it ends before the softmax.
    """
    rng = np.random.default_rng(7)
    stored: list[Any] = []
    nodes: list[Any] = []
    tokens = attention or TOKENS

    def held(name: str, *shape: int, mean: float = 0.0) -> str:
        values = mean + rng.standard_normal(shape) / np.sqrt(shape[0] if len(shape) > 1 else 16)
        stored.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(kind: str, read: list[str], result: str, **options: Any) -> str:
        nodes.append(helper.make_node(kind, read, [result], name=result, **options))
        return result

    def dense(source: str, name: str, ins: int, outs: int) -> str:
        product = node("MatMul", [source, held(f"{name}/w", ins, outs)], f"{name}/product")
        return node("Add", [product, held(f"{name}/b", outs)], name)

    def norm(source: str, name: str) -> str:
        return node("LayerNormalization", [source, held(f"{name}/gain", DIM, mean=1.0), held(f"{name}/bias", DIM)], name)

    last = dense("x", "embedded", WIDE, DIM)
    if attention:
        seen = [dense(last, name, DIM, DIM) for name in ("query", "key", "value")]
        turned = node("Transpose", [seen[1]], "turned", perm=[0, 2, 1])
        scores = node("Softmax", [node("MatMul", [seen[0], turned], "alike")], "scores", axis=-1)
        last = node("MatMul", [scores, seen[2]], "looked")
    inner = node("Gelu", [dense(norm(last, "before"), "up", DIM, HIDDEN)], "bent")
    last = norm(node("Add", [last, dense(inner, "down", HIDDEN, DIM)], "around"), "behind")
    stored.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
    mean = node("ReduceMean", [last, "axes"], "mean", keepdims=0)
    last = dense(mean, "logits" if head else "y", DIM, CLASSES)
    if head:
        node("Softmax", [last], "y", axis=-1)
    shapes = {"x": [1, tokens, WIDE], "y": [1, CLASSES]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(nodes, "block", ends[:1], ends[1:], stored)
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), "block")


def inputs(count: int, tokens: int = TOKENS) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, tokens, WIDE)).astype(np.float32)


def integers(model: Model, bits: int, tokens: int = TOKENS) -> IntegerProgram:
    given = Given(model, Samples({"x": inputs(60, tokens)[:, None]}, "drawn"))
    return program(Quantize(flavour="fixed", bits=bits)(Fold()(model, given), given))


def mismatches(found: IntegerProgram, made: Design, folder: Path, count: int) -> float:
    codes = evidence.vectors(found, count)
    outputs = simulate(made, codes, "iverilog", folder, level="core", stalls=False, seed=0).outputs
    return evidence.mismatches(found, codes, outputs, "rtl", "Icarus").value or 0


@pytest.mark.parametrize("form", ["unrolled", "folded"])
def test_its_verilog_is_the_integers_to_the_bit_and_a_wrong_entry_is_caught(form: Any, tmp_path: Path) -> None:
    found = integers(block(), 6)
    made = design(found, form, multipliers=24)
    kinds = {type(op).__name__ for op in found.operations}
    assert {"LayerNorm", "Softmax", "Table", "Dense"} <= kinds
    assert mismatches(found, made, tmp_path / "right", 200) == 0
    name = next(name for name in made.files if name.endswith("_before_row_kernel.v"))
    op = next(op for op in found.operations if isinstance(op, LayerNorm))
    flipped = re.sub(rf"(table_0 = \d+'d){int(op.root.base[5])};", rf"\g<1>{int(op.root.base[5]) ^ 1 << op.root.bits - 2};",
                     made.files[name].decode())  # fmt: skip
    assert flipped != made.files[name].decode()
    with pytest.raises(ContractBroken, match="differ from the integer reference"):
        mismatches(found, replace(made, files={**made.files, name: flipped.encode()}), tmp_path / "wrong", 200)


def test_gelu_of_more_than_twelve_bits_is_a_ramp_and_straight_lines(tmp_path: Path) -> None:
    found = integers(block(head=False), 14)
    (curve,) = (op for op in found.operations if isinstance(op, Curve))
    assert (curve.node, curve.function, curve.odd) == ("bent", "Gelu", False) and curve.ramp > 0
    assert 0 < curve.error <= 1 / 8 and any(f"within {curve.error:.3f} steps" in note for note in found.notes)
    assert mismatches(found, design(found, "folded", multipliers=12), tmp_path, 100) == 0
    with pytest.raises(Unsupported, match="its input is 14 bits wide; a table takes up to 12") as caught:
        integers(block(), 14)
    assert caught.value.operator == "Softmax"


def test_attention_of_few_tokens_is_taken_at_once_and_that_of_many_is_refused(tmp_path: Path) -> None:
    """A product of two computed tensors has no weights to fold: it is laid out whole, up to 8,192 bits."""
    found = integers(block(attention=2), 4, 2)
    assert mismatches(found, design(found, "unrolled", multipliers=24), tmp_path, 60) == 0
    many = integers(block(attention=200), 4, 200)
    with pytest.raises(
        Unsupported,
        match=r"alike.*its operands come in different orders or shapes; and all at once, 9,600 bits are more than 8,192",
    ):
        design(many, "folded")


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "tools"), [("6", "auto"), ("13", "synthesis")])
def test_export_agrees_at_every_level_and_says_by_how_much_it_is_off(bits: str, tools: str, tmp_path: Path) -> None:
    made = edgesdk.export(
        block(head=bits == "6"), device="ecp5-85k", settings={"bits": bits, "tools": tools, "multipliers": "24"},
        data={"x": inputs(300)}, max_relative_error=1.0, out=tmp_path / "block.edge",
    )  # fmt: skip
    report = made.report()
    for level, least in (("rtl", 300), ("ports", 5)):
        row = report.find("mismatches", level)
        assert row is not None and row.value == 0 and (row.n or 0) >= least
    row = report.find("mismatches", "onnxruntime")
    assert row is not None and "before" in row.method and "the greatest difference is" in row.method
    near = {row.layer: row for row in report.rows if row.segment == "integers"}
    assert set(near) == {"before", "behind", "y" if bits == "6" else "bent"}
    assert all(row.value is not None and "bound" in row.method for row in near.values())
    for name in ("lut", "ff", "dsp"):
        row = report.find(name)
        assert row is not None and row.provenance == "tool-reported" and row.value
    if tools == "auto":
        row = report.find("fmax_mhz")
        assert row is not None and row.provenance == "tool-reported" and (row.value or 0) > 10
        assert len(made.read("build/design.bit")) > 1000
