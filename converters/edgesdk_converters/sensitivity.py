"""Sensitivity: what each layer costs when it alone is turned to integers, and where two models first part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import graph as graphs
from .accuracy import top1
from .calibration import Samples
from .errors import EdgeError, ModelError
from .model import Model
from .observe import channel_peaks, extremes, outlier_channels
from .passes import silent
from .reference import Reference

Array = NDArray[Any]
Quantiser = Callable[[tuple[str, ...]], Model]
"""Makes the model in which only the named layers are integers."""


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer alone as integers. SQNR is 10 log10(signal power / noise power), in dB; infinite where nothing changed.

    `sqnr_db` is that of the layer's own output (None where the integer graph has no such tensor), `output_sqnr_db` that of the
    model's outputs, the worst of them; `agreement` the share of samples with the same top-1 answer, `accuracy` that against
    labels (None without). Ranges are (low, high) on the samples.
    """

    layer: str
    op: str
    sqnr_db: float | None
    output_sqnr_db: float
    agreement: float
    accuracy: float | None
    macs: int
    input_range: tuple[float, float]
    output_range: tuple[float, float]
    weight_range: tuple[float, float]
    outlier_channels: tuple[int, ...]


@dataclass(frozen=True)
class Divergence:
    """How far one tensor is apart in two models: max |a - b| / max |b| over the samples."""

    tensor: str
    made_by: str
    relative_error: float


def sensitivity(
    model: Model,
    samples: Samples,
    quantise: Quantiser,
    layers: Sequence[str],
    *,
    progress: Callable[[str], None] = silent,
) -> tuple[LayerSensitivity, ...]:
    """Each of the named layers of a float model by itself, in graph order; a layer that has no integer form is left out.

    Costs one quantised model and one run over the samples a layer. The arithmetic is that of the graph, not of this CPU's
    kernels: ONNX Runtime without graph optimisation.
    """
    nodes = {node.name: node for node in model.proto.graph.node}
    chosen = [name for name in nodes if name in set(layers)]
    ranges = extremes(model, samples, progress)
    peaks = channel_peaks(model, samples, [nodes[name].input[0] for name in chosen if nodes[name].input[0] in ranges])
    known = {info.name for info in model.proto.graph.value_info}
    own = [nodes[name].output[0] for name in chosen if nodes[name].output[0] in known]
    reference = Reference(model, own)
    outputs = [output.name for output in model.proto.graph.output]
    wanted = [reference.run(sample) for sample in samples]
    weights = _weight_ranges(model)
    work = _macs(model)
    found = []
    for index, name in enumerate(chosen):
        progress(f"layer {index + 1} of {len(chosen)}: {name}")
        node = nodes[name]
        try:
            made = quantise((name,))
        except EdgeError:
            continue
        tensor = node.output[0]
        there = tensor in {info.name for info in made.proto.graph.value_info} and tensor in own
        runner = Reference(made, [tensor] if there else [])
        got = [runner.run(sample) for sample in samples]
        right = np.stack([top1(a[outputs[0]][None])[0] for a in got])
        before = np.stack([top1(b[outputs[0]][None])[0] for b in wanted])
        found.append(
            LayerSensitivity(
                layer=name,
                op=node.op_type,
                sqnr_db=sqnr_db([a[tensor] for a in got], [b[tensor] for b in wanted]) if there else None,
                output_sqnr_db=min(sqnr_db([a[key] for a in got], [b[key] for b in wanted]) for key in outputs),
                agreement=float((right == before).mean()),
                accuracy=None if samples.labels is None else float((right == samples.labels).mean()),
                macs=work.get(name, 0),
                input_range=ranges.get(node.input[0], (0.0, 0.0)),
                output_range=ranges.get(tensor, (0.0, 0.0)),
                weight_range=weights.get(node.input[1], (0.0, 0.0)),
                outlier_channels=tuple(outlier_channels(peaks[node.input[0]])) if node.input[0] in peaks else (),
            )
        )
    return tuple(found)


def costliest(found: Sequence[LayerSensitivity]) -> tuple[LayerSensitivity, ...]:
    """The layers by what is won for what it costs to leave one in float: noise at the output for each MAC, most first.

    A knapsack filled greedily; layers that add nothing come last.
    """
    average = max(1.0, sum(one.macs for one in found) / max(1, len(found)))

    def worth(one: LayerSensitivity) -> float:
        noise = 0.0 if math.isinf(one.output_sqnr_db) else 10 ** (-one.output_sqnr_db / 10)
        return noise / (1 + one.macs / average)

    return tuple(sorted(found, key=lambda one: (-worth(one), one.layer)))


def sqnr_db(got: Sequence[Array], wanted: Sequence[Array]) -> float:
    """Signal to noise in dB over all samples; infinite where nothing differs, minus infinity where noise is not finite."""
    signal = sum(float(np.square(b.astype(np.float64)).sum()) for b in wanted)
    noise = sum(float(np.square(a.astype(np.float64) - b.astype(np.float64)).sum()) for a, b in zip(got, wanted, strict=True))
    if noise == 0:
        return math.inf
    if not math.isfinite(noise) or signal == 0:
        return -math.inf
    return 10 * math.log10(signal / noise)


def divergence(
    model: Model, other: Model, samples: Samples, *, progress: Callable[[str], None] = silent
) -> tuple[Divergence, ...]:
    """Every float tensor that both models have, in the first one's order, with how far the other is from it.

    Raises ModelError where they share no tensor beside the inputs.
    """
    types, others = (graphs.value_types(m.proto.graph) for m in (model, other))
    stored = {t.name for m in (model, other) for t in m.proto.graph.initializer}
    infos, other_infos = ({i.name for i in m.proto.graph.value_info} for m in (model, other))
    ends, other_ends = ({o.name for o in m.proto.graph.output} for m in (model, other))
    floats = {1, 10, 11, 16}

    def common(name: str) -> bool:
        both = name in types and name in others and types[name].elem_type in floats and others[name].elem_type in floats
        alike = both and types[name].shape == others[name].shape and name not in stored
        return alike and name in infos | ends and name in other_infos | other_ends

    tensors = [(name, node) for node in model.proto.graph.node for name in node.output if common(name)]
    if not tensors:
        raise ModelError(
            f"{model.name} and {other.name} have no tensor of one name and shape", "compare a model with what was made from it"
        )
    names = [name for name, _ in tensors]
    first = Reference(model, [name for name in names if name not in ends])
    second = Reference(other, [name for name in names if name not in other_ends])
    far: dict[str, float] = dict.fromkeys(names, 0.0)
    scale: dict[str, float] = dict.fromkeys(names, 0.0)
    for index, sample in enumerate(samples):
        progress(f"comparing: sample {index + 1} of {len(samples)}")
        a, b = first.run(sample), second.run(sample)
        for name in names:
            difference = float(np.abs(a[name].astype(np.float64) - b[name].astype(np.float64)).max()) if a[name].size else 0.0
            far[name] = max(far[name], difference if math.isfinite(difference) else math.inf)
            scale[name] = max(scale[name], float(np.abs(a[name]).max()) if a[name].size else 0.0)
    return tuple(
        Divergence(name, graphs.node_label(node), far[name] / scale[name] if scale[name] else (math.inf if far[name] else 0.0))
        for name, node in tensors
    )


def _weight_ranges(model: Model) -> dict[str, tuple[float, float]]:
    from onnx import numpy_helper

    found = {}
    for tensor in model.proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.size and values.dtype.kind == "f":
            found[tensor.name] = (float(values.min()), float(values.max()))
    return found


def _macs(model: Model) -> dict[str, int]:
    from .cost import layers

    try:
        return {layer.name: layer.macs for layer in layers(model)}
    except ModelError:
        return {}
