"""The edge between values and codes: what the host does before and behind the logic, as a JSON file of the bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import BundleError, ModelError
from edgesdk_converters.integer_program import Codes, IntegerProgram, Integers, Rounding

Array = NDArray[Any]
FILE = "interface.json"
FORMAT = 1
_ROUNDINGS = ("half_even", "half_up", "truncate")


@dataclass(frozen=True)
class Port:
    """An input or output: its codes (shape without the batch axis), the type that the host sees, how an input is rounded."""

    codes: Codes
    dtype: str
    rounding: Rounding = "half_even"


@dataclass(frozen=True)
class Interface:
    """Ports in the order of the signature."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @classmethod
    def of(cls, program: IntegerProgram, dtypes: Mapping[str, str]) -> Interface:
        """That of a program; `dtypes` says what type each output has in the model."""
        inputs = (Port(program.tensors[name], "float32", program.roundings[name]) for name in program.inputs)
        return cls(tuple(inputs), tuple(Port(program.tensors[name], dtypes[name]) for name in program.outputs))

    def encode(self, feed: Mapping[str, Array]) -> dict[str, Integers]:
        """Codes of values, both with a batch axis in front; infinity saturates. Raises ModelError for NaN, which has no code."""
        for name in _names(self.inputs):
            if np.isnan(np.asarray(feed[name], np.float32)).any():
                raise ModelError(f"input {name!r} holds NaN", "drop or repair such samples: integers have no code for NaN")
        return self._empty().encode(feed)

    def decode(self, codes: Mapping[str, Integers]) -> list[Array]:
        """Outputs in order, with a batch axis in front, in the types that the model gives."""
        values = self._empty().decode(codes)
        return [
            values[port.codes.name] if port.dtype == "float32" else codes[port.codes.name].astype(port.dtype)
            for port in self.outputs
        ]

    def to_bytes(self) -> bytes:
        data = {"format": FORMAT, "inputs": [_plain(p, True) for p in self.inputs], "outputs": [_plain(p) for p in self.outputs]}
        return (json.dumps(data, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Interface:
        """Raises BundleError for what is no interface of this format."""
        try:
            found = json.loads(data)
            if found["format"] != FORMAT:
                raise BundleError(f"{FILE} has format {found['format']}; this edgesdk reads {FORMAT}", "update edgesdk")
            return cls(tuple(map(_port, found["inputs"])), tuple(map(_port, found["outputs"])))
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{FILE} is damaged: {type(error).__name__}: {error}", "export the model again") from error

    def _empty(self) -> IntegerProgram:
        """A program without operations: it encodes and decodes as the whole one does."""
        tensors = {port.codes.name: port.codes for port in (*self.inputs, *self.outputs)}
        return IntegerProgram(
            "interface", _names(self.inputs), _names(self.outputs), tensors, (),
            {port.codes.name: port.rounding for port in self.inputs}, {},
        )  # fmt: skip


def _names(ports: Sequence[Port]) -> tuple[str, ...]:
    return tuple(port.codes.name for port in ports)


def _plain(port: Port, rounds: bool = False) -> dict[str, Any]:
    codes = port.codes
    plain = {
        "name": codes.name, "shape": list(codes.shape), "bits": codes.bits, "signed": codes.signed, "exponent": codes.exponent,
        "divisor": codes.divisor, "low": codes.low, "high": codes.high, "dtype": port.dtype,
    }  # fmt: skip
    return plain | ({"rounding": port.rounding} if rounds else {})


def _port(data: Mapping[str, Any]) -> Port:
    codes = Codes(
        str(data["name"]), tuple(int(dim) for dim in data["shape"]), int(data["exponent"]), int(data["low"]), int(data["high"]),
        int(data["divisor"]),
    )  # fmt: skip
    rounding = data.get("rounding", "half_even")
    if rounding not in _ROUNDINGS:
        raise ValueError(f"rounding {rounding!r}; known: {', '.join(_ROUNDINGS)}")
    return Port(codes, np.dtype(data["dtype"]).name, cast(Rounding, rounding))
