"""Open Inference Protocol as bytes: whatever comes in is a tensor or a ModelError, and what goes out comes back the same."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk import inference_protocol as protocol
from edgesdk_converters.errors import ModelError
from edgesdk_converters.signature import Input, Output, Signature

SIGNATURE = Signature(
    (Input("a", "float32", ("n", 2)), Input("b", "bool", (3,))),
    (Output("y", "float32", ("n", 2)), Output("z", "int64", ())),
)
FEED = {"a": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.array([True, False, True])}
WORDS = ["id", "inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "binary_data_size", "a", "b", "FP32"]
OUTPUTS = {"y": FEED["a"] + 1, "z": np.array(7, np.int64)}


def sent(number: str = "r-1") -> tuple[bytes, int]:
    """A request as a device sends it, and the length of its JSON."""
    before, after = protocol.request_around(FEED)
    told = before + number.encode() + after
    return told + b"".join(protocol.to_bytes(array) for array in FEED.values()), len(told)


def answered(number: str = "r-1") -> tuple[bytes, int]:
    """The server's answer to it."""
    body, length = sent(number)
    told, json_bytes = protocol.write_response(protocol.read_request(body, length, SIGNATURE), OUTPUTS, "m")
    assert json_bytes is not None
    return told, json_bytes


def test_what_a_device_sends_is_what_the_server_reads_and_the_other_way_round() -> None:
    body, length = sent()
    request = protocol.read_request(body, length, SIGNATURE)
    assert request.id == "r-1" and request.wanted == (("y", True), ("z", True))
    assert all(np.array_equal(request.feed[name], array) and request.feed[name].flags.aligned for name, array in FEED.items())
    told, json_bytes = answered()
    found = protocol.read_response(memoryview(bytearray(told)), json_bytes, "r-1", SIGNATURE, FEED)
    assert [one.dtype.name for one in found] == ["float32", "int64"] and [one.shape for one in found] == [(3, 2), ()]
    assert all(np.array_equal(one, OUTPUTS[name]) and one.flags.writeable for one, name in zip(found, OUTPUTS, strict=True))


def test_a_named_dimension_is_the_same_in_question_and_answer() -> None:
    told, json_bytes = answered()
    other = {**FEED, "a": FEED["a"][:2]}
    with pytest.raises(ModelError, match=r"output 'y' has shape \[3, 2\]"):
        protocol.read_response(memoryview(told), json_bytes, "r-1", SIGNATURE, other)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_request_is_read_or_refused(data: st.DataObject) -> None:
    body, length = sent()
    changed = damaged(data, body)
    try:
        request = protocol.read_request(changed, data.draw(st.sampled_from([length, None, 0, len(changed), 10**9])), SIGNATURE)
    except ModelError as error:
        assert error.message and len(error.message) < 2000
    else:
        assert set(request.feed) <= set(FEED)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_answer_is_read_or_refused(data: st.DataObject) -> None:
    told, json_bytes = answered()
    try:
        found = protocol.read_response(memoryview(damaged(data, told)), json_bytes, "r-1", SIGNATURE, FEED)
    except ModelError as error:
        assert error.message and len(error.message) < 2000
    else:
        assert [(one.dtype.name, one.shape) for one in found] == [("float32", (3, 2)), ("int64", ())]


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
        max_leaves=15,
    )
)
def test_any_json_is_read_or_refused(value: Any) -> None:
    entry = {"name": "a", "shape": [1, 2], "datatype": "FP32"}
    for asked in (value, {"inputs": value}, {"inputs": [entry | {"data": value}]}, {"inputs": [entry | {"parameters": value}]},
                  {"inputs": [entry | {"shape": value, "data": [1.0, 2.0]}]}, {"inputs": [], "outputs": value}):  # fmt: skip
        for body in (json.dumps(asked).encode(), json.dumps(asked, ensure_ascii=False).encode("utf-8", "surrogatepass")):
            try:
                request = protocol.read_request(body, None, SIGNATURE)
            except ModelError:
                continue
            assert all(array.dtype == np.dtype(dtype) for array, dtype in ((request.feed.get("a", FEED["a"]), "float32"),))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(protocol.DATATYPES)), st.lists(st.integers(0, 4), max_size=4), st.integers(0, 2**32 - 1), st.booleans()
)
def test_every_tensor_comes_back(dtype: str, shape: list[int], seed: int, turned: bool) -> None:
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
    array = (raw[..., 0] % 2 == 1) if dtype == "bool" else raw.view(dtype).reshape(shape)
    array = array.T if turned else array
    data = memoryview(b"x" + bytes(protocol.to_bytes(array)))[1:]  # never aligned
    again = protocol.from_bytes(data, protocol.DATATYPES[dtype], array.shape)
    assert again.dtype == array.dtype and again.shape == array.shape and again.tobytes() == array.tobytes()


def test_truths_are_zero_or_one() -> None:
    with pytest.raises(ModelError, match="neither 0 nor 1"):
        protocol.from_bytes(memoryview(b"\x00\x02"), "BOOL", (2,))


def test_a_checksum_is_over_all_parts() -> None:
    assert protocol.checksum(b"ab", memoryview(b"cd")) == protocol.checksum(b"abcd") == "ed82cd11"


def damaged(data: st.DataObject, body: bytes) -> bytes:
    found = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(found)))
        kind = data.draw(st.sampled_from(["set", "cut", "put"]))
        if kind == "set" and place < len(found):
            found[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del found[place : place + data.draw(st.integers(1, 20))]
        else:
            found[place:place] = data.draw(st.binary(max_size=10) | st.sampled_from([b"null", b"-1", b"[]", b'"', b"1e999"]))
    return bytes(found)
