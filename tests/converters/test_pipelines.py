"""Any order of passes on any network: each model is valid, and each pass changes what it says and nothing else."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgesdk_converters import PASSES, known
from edgesdk_converters.bottleneck import Bottleneck
from edgesdk_converters.calibration import synthetic
from edgesdk_converters.equalize import Equalize
from edgesdk_converters.errors import ModelError, PassError, Unsupported
from edgesdk_converters.expand import Expand
from edgesdk_converters.fold import Fold
from edgesdk_converters.half import Half
from edgesdk_converters.low_rank import LowRank
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given, Pass
from edgesdk_converters.payload import Payload
from edgesdk_converters.prune import Prune
from edgesdk_converters.quantize import Quantize, named
from edgesdk_converters.rotate import Rotate
from edgesdk_converters.sparsify import Sparsify
from edgesdk_converters.split import cuts

from .oracles import ORACLES, options
from .random_graphs import IMAGE_BLOCKS, SEEDS, SEQUENCE_BLOCKS, VECTOR_BLOCKS, blocks, random_graph
from .softened import answers, error, exactness, fast_answers, run

PIPELINES, BATCH, MOST_PASSES, SAMPLES = 300, 10, 4, 16
SABOTAGED = 44
"""The network that is spoilt on purpose."""
LEAST_RUNS = {"bottleneck": 10}
"""Of a pass that takes seconds and is drawn less often, refusals not counted."""
USUAL_RUNS = 15
"""The same of every other."""
REFUSALS = (PassError, Unsupported, ModelError)
DISGUISED = re.compile(r"Traceback|failed: |not valid|fit together|two initialisers|cannot run the model")
"""In a refusal: the pass made something wrong, and saw it."""
Rng = np.random.Generator


# --- passes with options drawn at random


def pick(rng: Rng, *choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def a_quantize(rng: Rng, model: Model) -> Pass:
    flavour = pick(rng, "u8s8", "s8s8", "tensorrt", "qoperator", "dynamic", "weights", "stored", "fixed", "fixed")
    bits = 8
    if flavour == "weights":
        bits = pick(rng, 4, 8)
    elif flavour == "stored":
        bits = int(rng.integers(2, 9))
    elif flavour == "fixed":
        bits = pick(rng, 8, int(rng.integers(2, 17)))
    names = [node.name for node in model.proto.graph.node if node.name and node.op_type != "Constant"]
    some = tuple(str(name) for name in rng.choice(names, min(len(names), 3), replace=False)) if names else ()
    return Quantize(
        flavour=flavour,
        bits=bits,
        calibration=pick(rng, "minmax", "minmax", "percentile", "entropy", "mse"),
        percentile=pick(rng, 99.0, 99.99, 100.0),
        rounding=pick(rng, "half_even", "half_up", "truncate") if flavour == "fixed" else "half_even",
        per_channel=flavour != "fixed" or rng.random() < 0.5,
        reduce_range=bool(rng.random() < 0.3),
        bias_correction=bool(flavour != "dynamic" and rng.random() < 0.25),
        keep=some if rng.random() < 0.2 else (),
        only=some if rng.random() < 0.1 else (),
    )


DEFINED = ("Gelu", "HardSwish", "LeakyRelu", "PRelu", "Elu", "Softmax", "LayerNormalization", "Clip", "Relu", "HardSigmoid")
"""Operators that ONNX defines by others, if not in all opsets."""


def an_expand(rng: Rng, model: Model) -> Pass:
    some = rng.choice(DEFINED, int(rng.integers(1, 5)), replace=False)
    return Expand(operators=(*(str(name) for name in some), *(("Conv",) if rng.random() < 0.1 else ())))


CUT_BEHIND = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip", "Sigmoid", "Concat", "MaxPool", "Softmax", "Transpose", "Split",
)  # fmt: skip
"""Operators whose outputs may cross a cut: what is rounded to nothing and then divided by may not."""


def a_payload(rng: Rng, model: Model) -> Pass:
    names = [name for node in model.proto.graph.node if node.op_type in CUT_BEHIND for name in node.output] or [""]
    return Payload(at=pick(rng, *names), bits=int(rng.integers(2, 9)), calibration=pick(rng, "minmax", "mse"))


def a_prune(rng: Rng, model: Model) -> Pass:
    return Prune(
        removed=pick(rng, 0.1, 0.3, 0.5),
        budget=pick(rng, "params", "params", "macs", "channels"),
        criterion=pick(rng, "magnitude", "magnitude", "magnitude", "taylor"),
        scope=pick(rng, "global", "layer"),
        multiple=pick(rng, 0, 2),
        heads=bool(rng.random() < 0.5),
        normalised=bool(rng.random() < 0.2),
    )


def a_bottleneck(rng: Rng, model: Model) -> Pass:
    names = [name for node in model.proto.graph.node if node.op_type in CUT_BEHIND for name in node.output]
    return Bottleneck(
        at=pick(rng, "", *names) if rng.random() < 0.2 else pick(rng, "", *(cut.tensors[0] for cut in cuts(model))),
        channels=pick(rng, (1,), (2,), (1, 3)),
        bits=pick(rng, int(rng.integers(2, 9)), 32),
        placement=pick(rng, "input", "input", "cut"),
        width=4,
        decoder_width=8,
        mimic=1,
        tune=pick(rng, 0, 1),
        later=pick(rng, 0, 2),
        freeze_encoder=bool(rng.random() < 0.3),
        batch=8,
    )


MAKERS: dict[str, Callable[[Rng, Model], Pass]] = {
    "bottleneck": a_bottleneck,
    "equalize": lambda rng, model: Equalize(strength=pick(rng, 0.25, 0.5, 1.0)),
    "expand": an_expand,
    "fold": lambda rng, model: Fold(size_limit_bytes=pick(rng, Fold().size_limit_bytes, 1000)),
    "half": lambda rng, model: Half(headroom=pick(rng, 1.0, 4.0, 1000.0)),
    "low_rank": lambda rng, model: LowRank(removed=pick(rng, 0.05, 0.2, 0.4, 0.6)),
    "payload": a_payload,
    "prune": a_prune,
    "quantize": a_quantize,
    "rotate": lambda rng, model: Rotate(threshold=pick(rng, 0.0, 2.0, 8.0), block=pick(rng, 4, 64)),
    "sparsify": lambda rng, model: pick(
        rng, Sparsify(), Sparsify(1), Sparsify(1, 2), Sparsify(removed=0.1), Sparsify(removed=0.5)
    ),
}
"""By the pass's name; every pass has one."""


def test_every_pass_has_options_to_draw_and_a_promise_to_keep() -> None:
    assert set(PASSES) <= set(MAKERS) and set(PASSES) <= set(ORACLES)


# --- running


@dataclasses.dataclass
class Outcome:
    """What became of some pipelines."""

    ran: Counter[str] = dataclasses.field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    failures: list[str] = dataclasses.field(default_factory=list)


def drawn(seed: int) -> tuple[Model, Given, Rng]:
    """The graph of a pipeline, samples that pass for a user's own, and the source of its passes."""
    model = random_graph(seed % len(SEEDS))
    samples = dataclasses.replace(synthetic(model, SAMPLES, seed), synthetic=False, origin="made for a test")
    return model, Given(model, samples), np.random.default_rng([seed, 7])


def title(step: Pass) -> str:
    changed = [f for f in dataclasses.fields(step) if getattr(step, f.name) != getattr(type(step)(), f.name)]  # type: ignore[arg-type]
    return f"{step.name}({', '.join(f'{f.name}={getattr(step, f.name)!r}' for f in changed)})"


def reason(failure: Exception) -> str:
    """A refusal without names and numbers."""
    text = re.sub(r"'[^']*'|\(node [^)]*\)|\S+/\S+|random\d+", "…", str(failure))
    return re.sub(r"\d+(\.\d+)?", "#", text)[:110]


def check(step: Pass, before: Model, after: Model, given: Given) -> None:
    """Valid, of the same face, and what the pass promises."""
    samples = given.train
    onnx.checker.check_model(after.proto, full_check=True)
    assert after.signature == before.signature, "other inputs or outputs"
    assert after is before or step.name in [entry.name for entry in after.history[len(before.history) :]], "no history"
    assert after.history[: len(before.history)] == before.history, "history was rewritten"
    plain, fast = answers(after, samples), fast_answers(after, samples)
    for each in (plain, fast):
        assert all(np.isfinite(array).all() for row in each for array in row.values()), "outputs are not finite"
    if not any("Integer" in node.op_type or "QuantizeLinear" in node.op_type for node in after.proto.graph.node):
        assert error(fast, plain) <= exactness(after), "ONNX Runtime's optimisations change what it computes"
    ORACLES[step.name](step, before, after, given)


def steps(seed: int, outcome: Outcome) -> Iterator[str]:
    """Runs a pipeline step by step; what went wrong, if anything did."""
    model, given, rng = drawn(seed)
    usual = [name for name in MAKERS if name in known() and name not in LEAST_RUNS]
    names = [*usual * 2, *LEAST_RUNS, *["quantize"] * 4]
    for _ in range(int(rng.integers(1, MOST_PASSES + 1))):
        step = MAKERS[str(rng.choice(names))](rng, model)
        label = f"seed {seed}: {title(step)} after {[(s.name, s.options) for s in model.history]}"
        original = model.to_bytes()
        try:
            made = step(model, given)
        except REFUSALS as refusal:
            outcome.refused[step.name, reason(refusal)] += 1
            if not str(refusal) or DISGUISED.search(str(refusal)) or model.to_bytes() != original:
                yield f"{label}: refused badly: {refusal}"
            continue
        except Exception as failure:
            yield f"{label}: {type(failure).__name__}: {failure}"
            return
        if model.to_bytes() != original:
            yield f"{label}: changed the model that it was given"
        try:
            check(step, model, made, given)
        except Exception as failure:
            yield f"{label}: {type(failure).__name__}: {failure}"
            return
        if seed % 4 == 0 and step(model, given).to_bytes() != made.to_bytes():
            yield f"{label}: other bytes the second time"
        outcome.ran[step.name] += 1
        model = made


@cache
def outcome(batch: int) -> Outcome:
    """Of ten pipelines."""
    found = Outcome()
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        found.failures += steps(seed, found)
    return found


@pytest.mark.parametrize("batch", range(PIPELINES // BATCH))
def test_any_order_of_passes_keeps_the_model_valid_and_every_promise(batch: int) -> None:
    failures = outcome(batch).failures
    assert not failures, "\n".join(failures)


def test_every_pass_has_really_run() -> None:
    batches = [outcome(batch) for batch in range(PIPELINES // BATCH)]
    ran, refused = (sum((getattr(each, part) for each in batches), Counter()) for part in ("ran", "refused"))
    for name in MAKERS:
        print(f"{name:10} {ran[name]:4} runs, {sum(n for (other, _), n in refused.items() if other == name):3} refusals")
        for (other, why), count in sorted(refused.items()):
            if other == name:
                print(f"{'':10} {count:4} {why}")
    assert all(ran[name] >= LEAST_RUNS.get(name, USUAL_RUNS) for name in MAKERS if name in known()), ran


# --- the graphs


def has(operator: str, **wanted: Any) -> Callable[[onnx.GraphProto], bool]:
    """Whether a graph has an operator with attributes of those values; a function is asked about the value, or about None."""

    def fits(found: Any, value: Any) -> bool:
        return bool(value(found)) if callable(value) else found == value

    def inside(graph: onnx.GraphProto) -> bool:
        nodes = [node for node in graph.node if node.op_type == operator]
        return any(all(fits(options(node).get(name), value) for name, value in wanted.items()) for node in nodes)

    return inside


def shares(graph: onnx.GraphProto) -> bool:
    stored = {tensor.name for tensor in graph.initializer if np.prod(tensor.dims) > 10}
    return max(Counter(name for node in graph.node for name in node.input if name in stored).values(), default=0) > 1


def without_bias(graph: onnx.GraphProto) -> bool:
    return any(node.op_type == "Conv" and len(node.input) == 2 for node in graph.node)


def depthwise(graph: onnx.GraphProto) -> bool:
    rows = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    return any(node.op_type == "Conv" and 1 < options(node).get("group", 1) == rows.get(node.input[1]) for node in graph.node)


OPERATORS = (
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Constant", "Conv", "ConvTranspose", "Div", "Elu", "Erf",
    "Flatten", "Gather", "Gemm", "GlobalAveragePool", "HardSigmoid", "HardSwish", "InstanceNormalization", "LayerNormalization",
    "LeakyRelu", "MatMul", "MaxPool", "Mul", "PRelu", "Pad", "Pow", "ReduceMean", "Relu", "Reshape", "Resize", "Sigmoid", "Slice",
    "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
)  # fmt: skip
TRAITS: dict[str, Callable[[onnx.GraphProto], bool]] = {
    "strides": has("Conv", strides=[2, 2]),
    "dilations": has("Conv", dilations=[2, 2]),
    "lopsided pads": has("Conv", pads=lambda pads: pads is not None and pads[: len(pads) // 2] != pads[len(pads) // 2 :]),
    "padding by name": has("Conv", auto_pad=lambda way: way is not None),
    "grouped": has("Conv", group=lambda groups: groups in (2, 4)),
    "1x1": has("Conv", kernel_shape=[1, 1]),
    "alpha": has("Gemm", alpha=lambda factor: factor not in (None, 1.0)),
    "beta": has("Gemm", beta=lambda factor: factor not in (None, 1.0)),
    "turned": has("Gemm", transB=1),
    "no bias": without_bias,
    "depthwise": depthwise,
    "shared weights": shares,
    "several outputs": lambda graph: len(graph.output) > 1,
    "several inputs": lambda graph: len(graph.input) > 1,
    "nodes without names": lambda graph: not any(node.name for node in graph.node),
}


def test_random_graphs_have_every_kind_of_operator_block_and_trait() -> None:
    graphs = [random_graph(seed).proto.graph for seed in SEEDS]
    found = Counter(kind for graph in graphs for kind in {node.op_type for node in graph.node})
    found += Counter(kind for seed in SEEDS for kind in blocks(random_graph(seed)))
    found += Counter(trait for graph in graphs for trait, holds in TRAITS.items() if holds(graph))
    found += Counter(f"opset {random_graph(seed).opset}" for seed in SEEDS)
    wanted = {*OPERATORS, *IMAGE_BLOCKS, *SEQUENCE_BLOCKS, *VECTOR_BLOCKS, *TRAITS, *(f"opset {n}" for n in range(13, 21))}
    assert {kind: found[kind] for kind in wanted if found[kind] < 2} == {}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_graph_answers_each_input_in_its_own_way_and_to_scale(seed: int) -> None:
    model = random_graph(seed)
    rows = run(model.proto, synthetic(model, 8))
    for name in rows[0]:
        values = np.stack([row[name] for row in rows])
        assert np.isfinite(values).all() and 0.02 < values.std() < 20, name
        assert (values - values.mean(axis=0)).std() > 0.02 * values.std(), name


# --- whether a promise that is not kept is seen


def weight(proto: onnx.ModelProto, kinds: tuple[int, ...] = (onnx.TensorProto.FLOAT,)) -> onnx.TensorProto:
    """The weight of the last layer, as it is stored."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    made = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    names = [made.get(node.input[1], node.input[1]) for node in reversed(layers)]
    return next(stored[name] for name in names if name in stored and stored[name].data_type in kinds)


def put(tensor: onnx.TensorProto, place: int, change: Callable[[Any], Any]) -> None:
    """Changes one value of a stored tensor: of those that are not zero, in order of size, the one at that place."""
    values = numpy_helper.to_array(tensor).copy()
    order = np.argsort(np.abs(values.astype(np.float64)), axis=None)
    where = order[order.size - np.count_nonzero(values) :][place]
    values.reshape(-1)[where] = change(values.reshape(-1)[where])
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def a_weight_is_off(proto: onnx.ModelProto) -> None:
    put(weight(proto), -1, lambda value: value + np.float32(0.01))


def a_weight_is_lost(proto: onnx.ModelProto) -> None:
    put(weight(proto, (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)), -1, lambda value: 0 * value)


def a_bit_is_lost(proto: onnx.ModelProto) -> None:
    put(weight(proto), -1, lambda value: np.nextafter(value, np.float32(0)))


def a_bit_of_a_bias_is_lost(proto: onnx.ModelProto) -> None:
    names = [node.input[2] for node in proto.graph.node if node.op_type in ("Conv", "Gemm") and len(node.input) == 3]
    put(next(tensor for tensor in proto.graph.initializer if tensor.name in names), -1, lambda value: np.nextafter(value, 0))


def a_code_is_off(proto: onnx.ModelProto) -> None:
    put(weight(proto, (onnx.TensorProto.INT8,)), 0, lambda value: value - np.sign(value))


def a_bias_is_gone(proto: onnx.ModelProto) -> None:
    node = next(node for node in proto.graph.node if node.op_type in ("Conv", "Gemm") and len(node.input) == 3)
    del node.input[2]


def an_image_is_moved(proto: onnx.ModelProto) -> None:
    node = next(node for node in proto.graph.node if options(node).get("pads") == [1, 1, 1, 1])
    kept = [attribute for attribute in node.attribute if attribute.name != "pads"]
    attributes = [onnx.AttributeProto.FromString(attribute.SerializeToString()) for attribute in kept]
    del node.attribute[:]
    node.attribute.extend([*attributes, helper.make_attribute("pads", [0, 1, 2, 1])])


def an_activation_is_gone(proto: onnx.ModelProto) -> None:
    node = next(node for node in proto.graph.node if node.op_type == "Relu")
    node.op_type = "Identity"


def an_output_has_another_name(proto: onnx.ModelProto) -> None:
    output = proto.graph.output[0]
    proto.graph.node.append(helper.make_node("Identity", [output.name], ["other"]))
    output.name = "other"


GRAPH = (a_bias_is_gone, an_image_is_moved, an_output_has_another_name)
FLOAT = (Fold(), Equalize(), Rotate(0.0), LowRank(), Prune(criterion="magnitude"))
PAIRS = tuple(Quantize(flavour=flavour) for flavour in ("u8s8", "s8s8", "tensorrt", "fixed"))
WEIGHTS = tuple(Quantize(flavour=flavour) for flavour in ("weights", "stored", "dynamic"))
SABOTAGES: list[tuple[Pass, Callable[[onnx.ModelProto], None]]] = [
    *((step, way) for step in FLOAT for way in (a_weight_is_off, an_activation_is_gone, *GRAPH)),
    *((Expand(("Relu",)), way) for way in (a_weight_is_off, *GRAPH)),
    *((Half(), way) for way in (a_weight_is_lost, an_activation_is_gone, *GRAPH)),
    *((Sparsify(), way) for way in (a_weight_is_lost, a_bit_is_lost, an_activation_is_gone, *GRAPH)),
    (LowRank(), a_bit_of_a_bias_is_lost),
    *((step, way) for step in PAIRS for way in (a_code_is_off, *GRAPH)),  # integers that end at zero stand for a Relu
    *((step, way) for step in WEIGHTS for way in (an_activation_is_gone, *GRAPH)),
    *((step, an_activation_is_gone) for step in PAIRS if step.flavour == "tensorrt"),
    (Quantize(flavour="stored"), a_code_is_off),
]


@pytest.mark.parametrize(("step", "way"), SABOTAGES, ids=lambda value: getattr(value, "__name__", None) or title(value))
def test_what_a_pass_must_not_do_is_seen(step: Pass, way: Callable[[onnx.ModelProto], None]) -> None:
    model, given, _ = drawn(SABOTAGED)
    made = step(model, given)
    check(step, model, made, given)
    proto = made.copy_proto()
    way(proto)
    with pytest.raises(AssertionError):
        check(step, model, made.changed(proto), given)


def test_a_layer_that_was_to_stay_in_float_and_one_that_was_not_are_seen() -> None:
    model, given, _ = drawn(SABOTAGED)
    model = named(model)
    last = next(node.name for node in reversed(model.proto.graph.node) if node.op_type == "Gemm")
    whole, part = Quantize(), Quantize(keep=(last,))
    for asked, done in ((whole, part), (part, whole)):
        with pytest.raises(AssertionError, match="was to"):
            check(asked, model, done(model, given), given)
