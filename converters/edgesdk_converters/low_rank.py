"""Low rank: dense layers and convolutions as products of two thinner ones, the ranks chosen by one threshold for all.

After WeLore (Jaiswal et al. 2024, arXiv 2407.11239): each matrix's singular values, brought to 0..1, are held against the same
threshold, so that matrices whose spectrum falls fast give up more. Needs no data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from . import graph as graphs
from .errors import MissingExtra, ModelError, PassError
from .model import Model, Step
from .passes import Given

try:
    import onnx
    from onnx import helper, numpy_helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

Array = NDArray[Any]
FLAT = 1e-5
"""Share of the largest singular value by which the others must differ: float32 makes them differ by less by itself."""


@dataclass(frozen=True)
class LowRank:
    """Removes a fraction of the weights of Gemm, MatMul and Conv by factorising them: W (m x n) becomes (m x k)(k x n).

    `removed` (0..1) is the share of those layers' weights that goes; a layer is factorised only where k (m + n) < m n. A Conv of
    k filters is followed by one of 1x1. Grouped and depthwise convolutions, weights that several nodes share, and rotations stay
    whole.
    `finetune` is how many epochs of learning the source model's answers follow, at `learning_rate`. Raises PassError where even
    rank 1 everywhere removes less.
    """

    name: ClassVar[str] = "low_rank"
    removed: float = 0.3
    finetune: int = 0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.removed < 1:
            raise PassError(self.name, f"removed is {self.removed}; allowed: above 0, below 1")

    def __call__(self, model: Model, given: Given) -> Model:
        given.progress("factorising weights")
        proto = model.copy_proto()
        spectra = [found for node in proto.graph.node if (found := _spectrum(node, proto)) is not None]
        if not spectra:
            raise PassError(self.name, f"{model.name} has no layer that could be factorised", "take it out of the recipe")
        before = sum(one.weights for one in spectra)
        wanted = (1 - self.removed) * before
        threshold = _threshold(spectra, wanted)
        if threshold is None:
            most = 1 - sum(one.kept(1.0) for one in spectra) / before
            raise PassError(
                self.name, f"{self.removed:.0%} of the weights cannot go; rank 1 everywhere removes {most:.1%}",
                f"give removed={most - 0.005:.2f} or less",
            )  # fmt: skip
        ranks: dict[str, int] = {}
        fresh = graphs.fresh_names(proto)
        for one in spectra:
            if one.kept(threshold) < one.weights:
                ranks[graphs.node_label(one.node)] = one.rank(threshold)
                _replace(proto, one, one.rank(threshold), fresh)
        after = sum(one.kept(threshold) for one in spectra)
        note = f"{len(ranks)} of {len(spectra)} layers factorised at a threshold of {threshold:.4g}, "
        note += f"{1 - after / before:.1%} of {before:,} weights gone"
        if ranks:
            note += f"; ranks {min(ranks.values())} to {max(ranks.values())}"
        _drop_unused(proto)
        try:
            made = model.changed(proto, Step(self.name, {"removed": self.removed}, note))
        except ModelError as error:
            raise PassError(self.name, f"the factorised model is not valid: {error.message}") from error
        return self._learned(made, given) if self.finetune else made

    def _learned(self, made: Model, given: Given) -> Model:
        from .train import Training, learned

        return learned(made, given, Training(epochs=self.finetune, learning_rate=self.learning_rate))


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """A layer's weights as a matrix (inputs x outputs), by its singular values; `scaled` are these brought to 0..1."""

    node: onnx.NodeProto
    u: Array
    singular: Array
    v: Array
    kernel: tuple[int, ...] = ()

    @property
    def weights(self) -> int:
        return int(self.u.shape[0] * self.v.shape[1])

    @property
    def scaled(self) -> Array:
        low, high = float(self.singular.min()), float(self.singular.max())
        return (self.singular - low) / (high - low) if high - low > FLAT * high else np.ones_like(self.singular)

    def rank(self, threshold: float) -> int:
        return max(1, int((self.scaled >= threshold).sum()))

    def kept(self, threshold: float) -> int:
        """Weights that are left; all of them where two factors would have no fewer."""
        factors = self.rank(threshold) * (self.u.shape[0] + self.v.shape[1])
        return int(min(factors, self.weights))


def _spectrum(node: onnx.NodeProto, proto: onnx.ModelProto) -> _Spectrum | None:
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    if node.op_type not in ("Gemm", "MatMul", "Conv") or len(node.input) < 2 or node.input[1] not in stored:
        return None
    if node.name.endswith(graphs.ROTATION):
        return None
    if sum(name == node.input[1] for other in graphs.nodes(proto) for name in other.input) > 1:
        return None
    tensor = stored[node.input[1]]
    options = _options(node)
    if tensor.data_type != onnx.TensorProto.FLOAT or options.get("transA", 0) or options.get("group", 1) != 1:
        return None
    values = numpy_helper.to_array(tensor).astype(np.float64)
    kernel: tuple[int, ...] = ()
    if node.op_type == "Conv":
        kernel = values.shape[2:]
        values = values.reshape(values.shape[0], -1).T
    elif values.ndim != 2:
        return None
    elif options.get("transB", 0):
        values = values.T
    u, singular, v = np.linalg.svd(values, full_matrices=False)
    return _Spectrum(node, u, singular, v, kernel)


def _threshold(spectra: list[_Spectrum], wanted: float) -> float | None:
    """The least threshold with which no more than `wanted` weights are left, by bisection; None where 1 leaves more."""
    steps = np.unique(np.concatenate([one.scaled for one in spectra]))
    steps = np.append(steps, 1.0)

    def left(index: int) -> int:
        return sum(one.kept(float(steps[index])) for one in spectra)

    low, high = 0, len(steps) - 1
    if left(high) > wanted:
        return None
    while low < high:
        middle = (low + high) // 2
        if left(middle) <= wanted:
            high = middle
        else:
            low = middle + 1
    return float(steps[high])


def _replace(proto: onnx.ModelProto, one: _Spectrum, rank: int, fresh: Callable[[str], str]) -> None:
    """Puts two layers in the place of one; the second keeps its name, its output and its bias."""
    node, root = one.node, np.sqrt(one.singular[:rank])
    down, up = one.u[:, :rank] * root, root[:, None] * one.v[:rank]
    middle = fresh(f"{node.output[0]}/down")
    names = fresh(f"{node.input[1]}/down"), fresh(f"{node.input[1]}/up")
    first = helper.make_node("MatMul", [node.input[0], names[0]], [middle], name=fresh(f"{node.name or node.output[0]}/down"))
    if node.op_type == "Conv":
        first.op_type = "Conv"
        first.attribute.extend(node.attribute)
        down = down.T.reshape(rank, -1, *one.kernel)
        up = up.T.reshape(-1, rank, *(1,) * len(one.kernel))
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("kernel_shape", [1] * len(one.kernel)))
    for attribute in node.attribute:
        if attribute.name == "transB":
            attribute.i = 0
    node.input[0], node.input[1] = middle, names[1]
    for name, values in zip(names, (down, up), strict=True):
        proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values.astype(np.float32)), name))
    place = next(index for index, other in enumerate(proto.graph.node) if other is node or other.output[:] == node.output[:])
    proto.graph.node.insert(place, first)


def _options(node: onnx.NodeProto) -> Mapping[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _drop_unused(proto: onnx.ModelProto) -> None:
    used = {name for node in graphs.nodes(proto) for name in node.input} | {output.name for output in proto.graph.output}
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in proto.graph.initializer if t.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
