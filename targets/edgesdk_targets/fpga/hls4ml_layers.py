"""A fixed-point network on its way to hls4ml: the layers so far, where each tensor's elements lie, and what is folded into types.

hls4ml holds tensors with channels last; a held tensor remembers which element lies where, so that most rearrangements cost
nothing: the weights behind them are permuted. Roundings and clips behind a layer become rounding and saturation of its result's
type, which is exact because a clip and a monotone rounding commute. The rule of each operation is in hls4ml_rules.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from edgesdk_converters.errors import Unsupported
from edgesdk_converters.integer_program import (
    Clip,
    Conv,
    IntegerProgram,
    Integers,
    Leaky,
    Move,
    Operation,
    Pool,
    Round,
    Scale,
    Shape,
    Sum,
    read,
    rounded,
)

from .hls4ml_backends import Backend
from .hls4ml_types import Cast, Fixed, Held, HlsLayer, Port, channels_last, fixed_for, fixed_of, values_of

WIDEST_IO_BITS = 53
"""Of an input or output: the compiled C++ takes and gives doubles."""
MOST_DIMENSIONS = 3
"""hls4ml's tensors have at most height, width and channels."""

Constants: TypeAlias = tuple[Integers, int]
"""Codes and their exponent."""
Adding: TypeAlias = Callable[[Fixed], str]
"""Adds a layer whose result has a type, and gives its name."""


def is_permutation(index: Integers, size: int) -> bool:
    """Whether a move takes each element of one source of `size` exactly once."""
    return index.size == size and np.array_equal(np.sort(index, axis=None), np.arange(size))


class Network:
    """Layers so far. A rule asks for its sources, adds layers, and says which tensor of the program the last of them holds."""

    def __init__(self, program: IntegerProgram, backend: Backend, stream: bool) -> None:
        self.program = program
        self.backend = backend
        self.stream = stream
        self.tensors = program.tensors
        self.layers: list[HlsLayer] = []
        self.held: dict[str, Held] = {}
        self.notes: list[str] = []
        self.folded: set[int] = set()
        self._consumers: dict[str, list[Operation]] = {name: [] for name in self.tensors}
        for operation in program.operations:
            for source in read(operation):
                self._consumers[source].append(operation)

    def refusal(self, operation: Operation, reason: str, hint: str = "") -> Unsupported:
        """The error for an operation that this back end cannot compute to the bit."""
        return Unsupported(f"fpga (hls4ml, {self.backend.name})", operation.node, type(operation).__name__, reason, hint)

    def put(
        self, node: str, kind: str, inputs: Sequence[str], attributes: Mapping[str, Any], precision: Mapping[str, Fixed],
        products: tuple[int, int] | None = None,
    ) -> str:  # fmt: skip
        """Adds a layer and gives its name: unique, and a name in C++. Unsupported where the back end has no such layer."""
        if kind not in self.backend.kinds or (self.stream and kind in self.backend.unstreamed):
            told = f"it has no such layer{' in io_stream' if self.stream else ''}, or none that is exact"
            raise Unsupported(f"fpga (hls4ml, {self.backend.name})", node, kind, told)
        told = re.sub(r"[^A-Za-z0-9]+", "_", node)[:40].strip("_")
        name = f"{kind.lower()}{len(self.layers) + 1}_{told}".rstrip("_")
        given = {"name": name, "class_name": kind, "data_format": "channels_last", **attributes}
        if inputs:
            given["inputs"] = list(inputs)
        self.layers.append(HlsLayer(name, node, given, dict(precision), products))
        return name

    # sources

    def exact(self, operation: Operation, name: str) -> Held:
        """A source of which every value is known to the bit; Unsupported for a mean that nothing has rounded yet."""
        if self.tensors[name].divisor != 1:
            told = f"its source {name!r} is in parts of {self.tensors[name].divisor} and not rounded before it"
            raise self.refusal(operation, told, "quantise the mean's result")
        return self.held[name]

    def laid(self, operation: Operation, held: Held, shape: Shape, order: Integers) -> Held:
        """The same elements in another shape and order: as they are, reshaped, or with their axes transposed."""
        if np.array_equal(held.order, order):
            return self.reshaped(operation, held, shape)
        turned = [(shape[-1], *shape[:-1])] if len(shape) > 1 else []
        for candidate in (held.shape, *turned):
            for axes in itertools.permutations(range(len(candidate))):
                if np.array_equal(held.order.reshape(candidate).transpose(axes).reshape(-1), order):
                    whole = self.reshaped(operation, held, candidate)
                    name = self.put(operation.node, "Transpose", [whole.layer], {"perm": list(axes)}, {"result": held.fixed})
                    result = replace(held, layer=name, shape=tuple(candidate[axis] for axis in axes), order=order)
                    return self.reshaped(operation, result, shape)
        raise self.refusal(operation, "no transposition of axes brings its source's elements into the order that it needs")

    def reshaped(self, operation: Operation, held: Held, shape: Shape) -> Held:
        """The same elements in the same order in another shape."""
        if held.shape == shape:
            return held
        name = self.put(operation.node, "Reshape", [held.layer], {"target_shape": list(shape)}, {"result": held.fixed})
        return replace(held, layer=name, shape=shape)

    # results

    def hold(self, operation: Operation, cast: Cast, shape: Shape, order: Integers, add: Adding) -> None:
        """Adds a layer whose result is cast: by its type where the type's limits are the bounds, else by what follows it too."""
        tight = fixed_for(cast.low, cast.high, cast.exponent)
        chosen = replace(tight, rounding=cast.rounding)
        low, high = tight.limits
        high_fits = not cast.clips_high or high == cast.high
        if not cast.clips_low and not cast.clips_high:
            layer = add(chosen)
        elif high_fits and (not cast.clips_low or low == cast.low):
            layer = add(replace(chosen, saturation="SAT"))
        elif high_fits and tight.signed and low + 1 == cast.low:
            layer = add(replace(chosen, saturation="SAT_SYM"))
        else:
            layer = self._clipped(operation, cast, shape, add(replace(chosen, saturation="SAT")))
        self.held[cast.result] = Held(layer, shape, order, cast.low, cast.high, cast.exponent)

    def _clipped(self, operation: Operation, cast: Cast, shape: Shape, layer: str) -> str:
        """Bounds that are no type's limits: the range is shifted until they are, saturated there, and shifted back."""
        tight = fixed_for(cast.low, cast.high, cast.exponent)
        low, high = tight.limits
        up = high - cast.high if cast.clips_high else 0
        if up:
            layer = self.shifted(operation, layer, shape, up, cast.exponent, replace(tight, saturation="SAT"))
        if cast.clips_low and low != cast.low:
            above = replace(fixed_for(0, cast.high - cast.low, cast.exponent), saturation="SAT")
            layer = self.shifted(operation, layer, shape, -up - cast.low, cast.exponent, above)
            return self.shifted(operation, layer, shape, cast.low, cast.exponent, tight)
        return self.shifted(operation, layer, shape, -up, cast.exponent, tight)

    def shifted(self, operation: Operation, source: str, shape: Shape, codes: int, exponent: int, result: Fixed) -> str:
        """The name of a layer that adds codes * 2**exponent to each element."""
        one, step = np.ones(shape[-1], np.int64), np.full(shape[-1], codes, np.int64)
        return self.normalised(operation, source, shape, (one, 0), (step, exponent), result)

    def normalised(
        self, operation: Operation, source: str, shape: Shape, scale: Constants, bias: Constants, result: Fixed
    ) -> str:
        """The name of a layer source * scale + bias, both (codes, exponent): one for each channel, or for each element."""
        attributes = {
            "n_in": math.prod(shape), "n_filt": shape[-1] if len(scale[0]) == shape[-1] else -1, "use_gamma": True,
            "use_beta": True, "scale_data": values_of(*scale), "bias_data": values_of(*bias),
        }  # fmt: skip
        precision = {"scale": fixed_of(*scale), "bias": fixed_of(*bias), "result": result}
        return self.put(operation.node, "BatchNormalization", [source], attributes, precision)

    # roundings and clips

    def cast_of(self, tensor: str) -> Cast:
        """A tensor as it is, nothing rounded or clipped."""
        codes = self.tensors[tensor]
        return Cast(tensor, codes.exponent, "truncate", codes.low, codes.high)

    def cast_behind(self, cast: Cast, rounds: bool = False) -> Cast:
        """With what follows a tensor: as many clips and at most one rounding as nothing else looks in between."""
        while len(self._consumers[cast.result]) == 1 and cast.result not in self.program.outputs:
            follower = self._consumers[cast.result][0]
            if not isinstance(follower, Round | Clip) or (isinstance(follower, Round) and rounds):
                break
            if isinstance(follower, Clip) and self.tensors[cast.result].divisor != 1:
                break
            rounds = rounds or isinstance(follower, Round)
            cast = self.cast_by(cast, follower)
            self.folded.add(id(follower))
        return cast

    def cast_by(self, cast: Cast, follower: Round | Clip) -> Cast:
        """With one more rounding or clip; a clip before the rounding is the same as one behind it."""
        if isinstance(follower, Clip):
            return replace(cast.bounded(follower.low, follower.high), result=follower.result)
        source, result = self.tensors[cast.result], self.tensors[follower.result]
        ends = np.array([cast.low, cast.high], np.int64)
        low, high = (int(end) for end in rounded(ends, result.exponent - cast.exponent, source.divisor, follower.rounding))
        return replace(
            cast, result=follower.result, exponent=result.exponent, rounding=follower.rounding, low=low, high=high
        ).bounded(result.low, result.high)  # fmt: skip

    def finest(self, tensor: str) -> int:
        """The exponent to which a mean is computed so that what is cut off changes no later rounding of it.

        With divisor d a value lies at least 2**e / d away from every place where a rounding decides, or on it; e is the lesser
        of its own exponent and one below the finest rounding's.
        """
        codes = self.tensors[tensor]
        if codes.divisor == 1:
            return codes.exponent
        ends = [self.tensors[op.result].exponent - 1 for op in self.program.operations if isinstance(op, Round)]
        return min([codes.exponent, *ends]) - math.ceil(math.log2(codes.divisor))

    # inputs and outputs

    def input(self, name: str) -> Port:
        """Adds an input, its elements in the order in which the first convolution behind it wants them."""
        tensor = self.tensors[name]
        shape, order = self._wanted(name) or (tensor.shape or (1,), np.arange(tensor.size))
        told = ""
        if len(shape) > MOST_DIMENSIONS:
            told = f"it has {len(shape)} dimensions, hls4ml's tensors have at most {MOST_DIMENSIONS}"
        elif tensor.bits > WIDEST_IO_BITS or tensor.divisor != 1:
            told = f"{tensor.bits} bits in parts of {tensor.divisor} are no exact C++ double"
        if told:
            raise Unsupported(f"fpga (hls4ml, {self.backend.name})", name, "input", told)
        held = Held("", shape, order, tensor.low, tensor.high, tensor.exponent)
        layer = self.put(name, "InputLayer", [], {"input_shape": list(shape)}, {"result": held.fixed})
        self.held[name] = replace(held, layer=layer)
        return Port(tensor, layer, shape, order)

    def _wanted(self, name: str) -> tuple[Shape, Integers] | None:
        tensor = self.tensors[name]
        for follower in self._consumers[name]:
            if isinstance(follower, Conv | Pool):
                return (*tensor.shape[1:], tensor.shape[0]), channels_last(tensor.shape)
            if isinstance(follower, Move):
                moves = len(follower.sources) == 1 and is_permutation(follower.index, tensor.size)
                if moves and (wanted := self._wanted(follower.result)):
                    return wanted[0], follower.index.reshape(-1)[wanted[1]]
                continue
            same = (
                isinstance(follower, Clip | Round | Leaky | Sum | Scale) and self.tensors[follower.result].shape == tensor.shape
            )
            if same and (wanted := self._wanted(follower.result)):
                return wanted
        return None

    def output(self, name: str) -> Port:
        """The port of an output, which some layer must hold."""
        tensor, held = self.tensors[name], self.held[name]
        kind = next(layer.kind for layer in self.layers if layer.name == held.layer)
        told = ""
        if kind == "InputLayer":
            told = "it is an input: nothing is computed"
        elif tensor.divisor != 1:
            told = f"it is in parts of {tensor.divisor}, which no fixed-point number holds exactly"
        elif tensor.bits > WIDEST_IO_BITS:
            told = f"its {tensor.bits} bits do not fit a C++ double"
        if told:
            raise Unsupported(f"fpga (hls4ml, {self.backend.name})", name, "output", told, "quantise the network's output")
        return Port(tensor, held.layer, held.shape, held.order)
