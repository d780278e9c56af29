"""Packing: the bytes of the format note, and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgesdk_converters
from edgesdk_converters.errors import ModelError
from edgesdk_converters.packing import pack, packed_bytes, unpack

VECTORS = json.loads(Path(__file__).with_name("packing_vectors.json").read_text())
NOTE = Path(edgesdk_converters.__file__).with_name("packing.md").read_text()


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['bits']} bits")
def test_the_vectors_hold_both_ways(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    assert pack(np.array(vector["values"], np.int64), vector["bits"]) == data
    got = unpack(data, vector["bits"], len(vector["values"]), signed=vector["signed"])
    assert got.tolist() == vector["values"]


def test_the_vectors_of_the_note_are_true() -> None:
    rows = re.findall(r"^\| (\d+) \| (yes|no) \| ([-\d ]+) \| ([0-9a-f ]+) \|$", NOTE, re.M)
    assert len(rows) == 6
    for bits, signed, values, data in rows:
        numbers = [int(value) for value in values.split()]
        assert pack(np.array(numbers), int(bits)) == bytes.fromhex(data)
        assert unpack(bytes.fromhex(data), int(bits), len(numbers), signed=signed == "yes").tolist() == numbers


def as_the_note_says(values: list[int], bits: int) -> bytes:
    """Bit b of value i is bit (i n + b) mod 8 of byte (i n + b) div 8."""
    data = bytearray(-(-len(values) // 8) * bits)
    for i, value in enumerate(values):
        for b in range(bits):
            place = i * bits + b
            data[place // 8] |= (value >> b & 1) << place % 8
    return bytes(data)


def read_a_word(data: bytes, bits: int, index: int, signed: bool) -> int:
    """The note's way to read one value."""
    word = int.from_bytes((data + bytes(4))[index * bits // 8 :][:4], "little")
    value = word >> index * bits % 8 & (1 << bits) - 1
    return value - (1 << bits) if signed and value >> bits - 1 else value


@given(st.data(), st.integers(1, 16), st.booleans(), st.integers(0, 40))
def test_any_values_come_back(data: st.DataObject, bits: int, signed: bool, count: int) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))
    packed = pack(np.array(values, np.int64), bits)
    assert packed == as_the_note_says(values, bits) and len(packed) == packed_bytes(count, bits)
    assert unpack(packed, bits, count, signed=signed).tolist() == values
    assert [read_a_word(packed, bits, i, signed) for i in range(count)] == values


def test_four_eight_and_sixteen_bits_are_what_others_store() -> None:
    from onnx import TensorProto, helper

    values = np.arange(-8, 8)
    assert pack(values, 4) == bytes(helper.make_tensor("t", TensorProto.INT4, [16], values.tolist()).int32_data)
    assert pack(values.astype(np.int8), 8) == values.astype(np.int8).tobytes()
    assert pack(values, 16) == values.astype("<i2").tobytes()


def test_what_does_not_fit_is_refused() -> None:
    for values, bits, says in (
        ([8], 3, "values 8 to 8 do not fit in 3 bits"),
        ([-5], 3, "allowed: -4 to 3"),
        ([-1, 7], 3, "-1 to 7"),
    ):
        with pytest.raises(ModelError, match=says):
            pack(np.array(values), bits)
    with pytest.raises(ModelError, match="allowed: 1 to 16"):
        pack(np.array([0]), 17)
    with pytest.raises(ModelError, match="allowed: integers"):
        pack(np.array([0.5]), 8)
    with pytest.raises(ModelError, match="9 values of 3 bits take 6 bytes; these are 3"):
        unpack(bytes(3), 3, 9, signed=False)
    with pytest.raises(ModelError, match="bits after value 7 are not zero"):
        unpack(b"\xff\xff\xff", 3, 7, signed=False)
    with pytest.raises(ModelError, match="0 or more"):
        unpack(b"", 3, -1, signed=False)
