"""to_torch: ONNX's own operator tests, gradients, fake quantisation, and weights that find their way back by name."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from edgesdk_converters.calibration import Samples
from edgesdk_converters.errors import ModelError, Unsupported
from edgesdk_converters.fold import Fold
from edgesdk_converters.model import Model, Step
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Flavour, Quantize
from edgesdk_converters.reference import Reference
from edgesdk_converters.to_torch import CLAIMED, TorchModel, to_torch, with_weights

NETS = Path(__file__).parents[2] / "examples" / "fashion"
TORCH_TYPES = {1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16}
NEWEST_OPSET = 24
KNOWN_FAILURES = {
    "test_affine_grid_3d_align_corners_expanded": "its If depends on an input",
    "test_mvn": "ONNX's own shape inference refuses it",
}
Fashion = Callable[[str, int], tuple[Any, Any]]


# --- ONNX's operator tests --------------------------------------------------------------------------


def exclusion(case: Any) -> str:
    """Why a test says nothing about the operators claimed; empty for those that count."""
    graph = case.model.graph
    if not {node.op_type for node in graph.node} <= CLAIMED or any(node.domain for node in graph.node):
        return "an operator that is not claimed"
    if not any(info.type.tensor_type.elem_type == TensorProto.FLOAT for info in graph.input):
        return "no float input"
    if next(entry.version for entry in case.model.opset_import if not entry.domain) > NEWEST_OPSET:
        return f"an opset above {NEWEST_OPSET}"
    if any(info.type.tensor_type.elem_type not in TORCH_TYPES for info in (*graph.input, *graph.output)):
        return "types that torch does not have"
    if any(d.HasField("dim_value") and d.dim_value == 0 for info in graph.input for d in info.type.tensor_type.shape.dim):
        return "inputs of size 0, which a Model refuses"
    return "random numbers" if case.name.startswith("test_training_dropout") and "zero" not in case.name else ""


def outcome(case: Any) -> str:
    """Empty where the module gives what the test wants, of the same types and shapes."""
    try:
        made = to_torch(Model.from_proto(case.model, "case"))
    except (ModelError, Unsupported) as error:
        return error.message
    for inputs, outputs in case.data_sets:
        with torch.no_grad():
            got = made(*(torch.as_tensor(np.array(_array(value))) for value in inputs))
        for mine, wanted in zip(got if isinstance(got, tuple) else (got,), map(_array, outputs), strict=True):
            if (str(mine.dtype)[6:], tuple(mine.shape)) != (str(wanted.dtype), wanted.shape):
                return f"{mine.dtype} {tuple(mine.shape)}, wanted {wanted.dtype} {wanted.shape}"
            a, b = mine.to(torch.float64).numpy(), wanted.astype(np.float64)
            if not np.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True):
                return f"off by {np.nanmax(np.abs(a - b)):.3g}"
    return ""


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def test_onnx_operator_tests_pass(capsys: pytest.CaptureFixture[str]) -> None:
    excluded: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    failed: dict[str, str] = {}
    total = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in collect_testcases(None):
            if case.model is None:
                continue
            reason = exclusion(case)
            if reason:
                excluded[reason] += 1
                continue
            total += 1
            problem = outcome(case)
            if problem:
                failed[case.name] = problem
            for kind in {node.op_type for node in case.model.graph.node}:
                passed[kind] += not problem
    with capsys.disabled():
        print(f"\n{total - len(failed)} of {total} ONNX operator tests pass; {len(CLAIMED)} operators claimed")
        print("  excluded:", ", ".join(f"{count} with {reason}" for reason, count in excluded.most_common()))
        print("  by operator:", ", ".join(f"{kind} {count}" for kind, count in sorted(passed.items())))
    assert failed.keys() == KNOWN_FAILURES.keys(), failed
    assert len(CLAIMED) >= 110 and total > 850


# --- small graphs -----------------------------------------------------------------------------------


def both(model: Model, made: TorchModel, *inputs: Any) -> tuple[Any, Any]:
    """The first output by ONNX Runtime and by the module."""
    names = [spec.name for spec in model.signature.inputs]
    wanted = Reference(model).run(dict(zip(names, inputs, strict=True)))[model.signature.outputs[0].name]
    with torch.no_grad():
        got = made(*map(torch.as_tensor, inputs))
    return wanted, (got[0] if isinstance(got, tuple) else got).numpy()


@pytest.fixture
def shared(build: Any) -> Model:
    """Two products with one weight, one of them turned; a Gemm each way round; a bias shared by both."""
    rng = np.random.default_rng(3)
    weights = {
        "w": rng.standard_normal((6, 6)), "b": rng.standard_normal(6), "g": rng.standard_normal((6, 4)),
        "t": rng.standard_normal((5, 4)), "m": rng.standard_normal((5, 3)),
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="straight"),
        helper.make_node("Add", ["a", "b"], ["s"], name="bias"),
        helper.make_node("Transpose", ["w"], ["wt"], name="turn"),
        helper.make_node("MatMul", ["s", "wt"], ["c"], name="turned"),
        helper.make_node("Add", ["c", "b"], ["d"], name="again"),
        helper.make_node("Gemm", ["d", "g"], ["e"], name="plain"),
        helper.make_node("Gemm", ["e", "t"], ["f"], name="stored_turned", transB=1),
        helper.make_node("MatMul", ["f", "m"], ["y"], name="last"),
    ]
    proto = build(nodes, [("x", [2, 6])], [("y", [2, 3])], {name: value.astype(np.float32) for name, value in weights.items()})
    return Model.from_proto(proto, "shared")


def test_every_weight_comes_back_under_its_name(shared: Model) -> None:
    made = to_torch(shared)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in shared.proto.graph.initializer}
    assert made.weights().keys() == stored.keys()
    for name, values in made.weights().items():
        np.testing.assert_array_equal(values, stored[name])
    assert sum(isinstance(part, torch.nn.Linear) for part in made.modules()) == 3  # those that nothing else reads
    assert len(list(made.parameters())) == 5, "a weight that is shared is one parameter"


@pytest.mark.parametrize("name", ["w", "b", "g", "t", "m"])
def test_a_changed_weight_changes_that_tensor_alone_and_both_compute_the_same(shared: Model, name: str) -> None:
    made = to_torch(shared)
    held = made.held[name]
    with torch.no_grad():
        made.get_parameter(held.path).mul_(1.5).add_(0.25)
    changed = with_weights(shared, made.weights(), Step("train"))
    before, after = ({t.name: t.SerializeToString() for t in m.proto.graph.initializer} for m in (shared, changed))
    assert {key for key in before if before[key] != after[key]} == {name}
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    wanted, got = both(changed, made, x)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    assert changed.history[-1].name == "train"


def test_weights_that_were_read_do_not_move_with_the_module(shared: Model) -> None:
    made = to_torch(shared)
    read = made.weights()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert all(values.any() for values in read.values())


def test_unchanged_weights_leave_every_byte_of_the_graph() -> None:
    for net in ("cnn", "mobilenet", "resnet", "vit"):
        source = Model.load(NETS / f"fashion_{net}.onnx")
        back = with_weights(source, to_torch(source).weights(), Step("train"))
        assert back.proto.graph.SerializeToString() == source.proto.graph.SerializeToString()


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"nowhere": np.zeros(1, np.float32)}, "no stored tensor 'nowhere'"),
        ({"w": np.zeros((6, 5), np.float32)}, r"cannot become float32 \[6, 5\], it is float32 \[6, 6\]"),
        ({"w": np.zeros((6, 6))}, "cannot become float64"),
    ],
)
def test_weights_that_do_not_fit_are_refused(shared: Model, weights: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        with_weights(shared, weights, Step("train"))


def test_what_is_not_claimed_is_named_before_any_work(build: Any) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("NonZero", ["a"], ["y"], name="where_not")]
    model = Model.from_proto(build(nodes, [("x", [2, 3])], [("y", [2, None], TensorProto.INT64)]), "m")
    with pytest.raises(Unsupported, match=r"where_not.*NonZero") as caught:
        to_torch(model)
    assert caught.value.hint


def branch(name: str, kind: str) -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node(kind, ["x"], [f"{name}_y"])], name, [], [helper.make_tensor_value_info(f"{name}_y", 1, [2, 3])]
    )


def test_an_if_takes_the_branch_that_is_known_and_no_other(build: Any) -> None:
    nodes = [
        helper.make_node("If", ["c"], ["y"], name="fork", then_branch=branch("yes", "Relu"), else_branch=branch("no", "Neg"))
    ]
    x = np.array([[-1, 2, -3], [4, -5, 6]], np.float32)
    for condition, wanted in ((True, np.maximum(x, 0)), (False, -x)):
        known = Model.from_proto(build(nodes, [("x", [2, 3])], [("y", [2, 3])], {"c": np.array(condition)}), "m")
        np.testing.assert_array_equal(both(known, to_torch(known), x)[1], wanted)
    asked = Model.from_proto(build(nodes, [("x", [2, 3]), ("c", [], TensorProto.BOOL)], [("y", [2, 3])]), "m")
    with pytest.raises(Unsupported, match=r"fork.*its condition is not known"):
        to_torch(asked)


def test_dynamic_shapes_run_at_any_size(build: Any) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    weights = {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1])}
    model = Model.from_proto(build(nodes, [("x", ["batch", 2, 3])], [("y", ["batch", 6])], weights), "m")
    made = to_torch(model)
    for batch in (1, 4):
        x = np.arange(6 * batch, dtype=np.float32).reshape(batch, 2, 3)
        np.testing.assert_array_equal(both(model, made, x)[1], x.reshape(batch, 6))


def test_the_number_of_inputs_is_checked(shared: Model) -> None:
    with pytest.raises(ValueError, match="2 inputs were given; the model has 1: x"):
        to_torch(shared)(torch.zeros(2, 6), torch.zeros(1))


# --- training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["cnn", "mobilenet", "resnet", "vit"])
def test_trained_weights_come_back_and_onnx_runtime_agrees(net: str, fashion: Fashion) -> None:
    source = Model.load(NETS / f"fashion_{net}.onnx")
    made = to_torch(source).train()
    images, labels = (torch.as_tensor(part[:32]) for part in fashion("train", 32))
    optimiser = torch.optim.SGD(made.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        logits = torch.cat([made(image[None]) for image in images])
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = with_weights(source, made.weights(), Step("train"))
    assert trained.digest != source.digest
    wanted, got = both(trained, made.eval(), images[:1].numpy())
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_running_statistics_move_and_come_back(conv_net: onnx.ModelProto) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    source = Model.from_proto(proto, "net")
    made = to_torch(source).train()
    with torch.no_grad():
        made(torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 3 + 1)
    norm = next(node for node in source.proto.graph.node if node.op_type == "BatchNormalization")
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in source.proto.graph.initializer}
    after = made.weights()
    assert not np.array_equal(before[norm.input[3]], after[norm.input[3]])
    assert not np.array_equal(before[norm.input[4]], after[norm.input[4]])
    changed = with_weights(source, after, Step("train"))
    x = np.ones((1, 3, 16, 16), np.float32)
    wanted, got = both(changed, made.eval(), x)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


# --- fake quantisation ------------------------------------------------------------------------------

QDQ: tuple[Flavour, ...] = ("u8s8", "s8s8", "tensorrt", "fixed")


@pytest.fixture(scope="module", params=["cnn", "mobilenet", "vit"])
def folded(request: pytest.FixtureRequest, fashion: Fashion) -> tuple[Model, Given]:
    source = Model.load(NETS / f"fashion_{request.param}.onnx")
    given = Given(source, Samples.from_arrays({"image": fashion("train", 64)[0]}, source.signature, "training images"))
    return Fold()(source, given), given


@pytest.mark.parametrize("flavour", QDQ)
def test_integers_become_fake_quantisation_and_come_back(folded: tuple[Model, Given], flavour: Flavour, fashion: Fashion) -> None:
    model, given = folded
    made = Quantize(flavour=flavour)(model, given)
    module = to_torch(made)
    images = fashion("t10k", 50)[0]
    reference = Reference(made)
    wanted = np.stack([reference.run({"image": image[None]})["logits"][0] for image in images])
    with torch.no_grad():
        got = np.concatenate([module(torch.as_tensor(image[None])).numpy() for image in images])
    step = np.abs(wanted).max() / 127
    assert np.abs(got - wanted).max() < 4 * step and (np.abs(got - wanted) > step / 2).mean() < 0.2
    assert (got.argmax(1) == wanted.argmax(1)).mean() >= 0.98
    back = with_weights(made, module.weights(), Step("qat"))
    assert back.proto.graph.SerializeToString() == made.proto.graph.SerializeToString()
    sum(module(torch.as_tensor(image[None])).square().sum() for image in images[:8]).backward()
    still = [name for name, p in module.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert still == []


def test_gradients_pass_through_rounding_inside_the_range_and_stop_outside(build: Any) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    weights = {"s": np.array(0.5, np.float32), "z": np.array(3, np.int8)}
    model = Model.from_proto(build(nodes, [("x", [6])], [("y", [6])], weights), "m")
    made = to_torch(model)
    x = torch.tensor([0.26, -0.24, 0.25, 62.4, -70.0, 66.0], requires_grad=True)
    made(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    wanted, got = both(model, made, x.detach().numpy())
    np.testing.assert_array_equal(got, wanted)


def test_a_trained_weight_is_rounded_with_the_steps_it_came_with(fashion: Fashion) -> None:
    source = Model.load(NETS / "fashion_cnn.onnx")
    given = Given(source, Samples.from_arrays({"image": fashion("train", 64)[0]}, source.signature, "training images"))
    made = Quantize()(Fold()(source, given), given)
    module = to_torch(made)
    name, held = next((n, h) for n, h in module.held.items() if h.rounding is not None and n.endswith("weight_quantized"))
    before = module.weights()[name]
    with torch.no_grad():
        module.get_parameter(held.path).mul_(0.5)
    after = module.weights()[name]
    assert after.dtype == before.dtype == np.int8
    assert np.abs(after.astype(int) - np.rint(before / 2)).max() <= 1  # ties
    wanted, got = both(with_weights(made, module.weights(), Step("qat")), module, fashion("t10k", 1)[0])
    np.testing.assert_allclose(got, wanted, atol=np.abs(wanted).max() / 60)


def test_a_bias_that_is_also_a_layers_mean_stays_as_it_is_and_gradients_flow_past_it(build: Any) -> None:
    """Networks that were never trained have zeros for both, which tools store once."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("BatchNormalization", ["x", "s", "zeros", "zeros", "ones"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("BatchNormalization", ["r", "t", "zeros", "zeros", "ones"], ["y"]),
    ]
    weights = {name: rng.random(4).astype(np.float32) + 0.5 for name in ("s", "t", "ones")} | {"zeros": np.zeros(4, np.float32)}
    model = Model.from_proto(build(nodes, [("x", [1, 4, 5, 5])], [("y", [1, 4, 5, 5])], weights), "tied")
    module = to_torch(model)
    x = rng.standard_normal((1, 4, 5, 5)).astype(np.float32)
    found = module(torch.as_tensor(x))
    wanted = Reference(model).run({"x": x})["y"]
    assert np.abs(found.detach().numpy() - wanted).max() < 1e-5
    found.square().sum().backward()
    assert set(module.held) == {"s", "t"}
    assert all(value.grad is not None and bool(value.grad.abs().sum() > 0) for value in module.parameters())
