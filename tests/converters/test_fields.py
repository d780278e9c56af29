"""Frozen dataclasses from plain data, with messages that name the field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk_converters import fields
from edgesdk_converters.errors import RecipeError


@dataclass(frozen=True)
class Inner:
    size: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    count: int
    ratio: float = 0.5
    name: str = "a"
    on: bool = False
    mode: Literal["x", "y", "8"] = "x"
    inner: Inner | None = None
    names: tuple[str, ...] = ()
    table: dict[str, float] = field(default_factory=dict)
    anything: Any = None


def read(**data: Any) -> Outer:
    return fields.read(Outer, data, "here", RecipeError)


def test_plain_data_becomes_the_dataclass_and_back() -> None:
    data = {"count": 3, "ratio": 2, "mode": "y", "inner": {"size": [1, 2]}, "names": ["a"], "table": {"k": 1}, "on": True}
    made = read(**data)
    assert made == Outer(3, 2.0, "a", True, "y", Inner((1, 2)), ("a",), {"k": 1.0})
    assert isinstance(made.ratio, float)
    assert fields.plain(made) == {**data, "ratio": 2.0}
    assert read(**fields.plain(made)) == made
    assert fields.plain(Outer(1)) == {"count": 1}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "here: 'count' is missing"),
        ({"count": 1, "size": 2}, "here: unknown name 'size'; known: count, ratio"),
        ({"count": 1.5}, "here.count: got 1.5, expected a whole number"),
        ({"count": True}, "here.count: got True, expected a whole number"),
        ({"count": "3"}, "here.count: got '3', expected a whole number"),
        ({"count": 1, "ratio": "x"}, "here.ratio: got 'x', expected a number"),
        ({"count": 1, "ratio": True}, "here.ratio: got True, expected a number"),
        ({"count": 1, "on": 1}, "here.on: got 1, expected true or false"),
        ({"count": 1, "mode": "z"}, "here.mode: got 'z', allowed: x, y, 8"),
        ({"count": 1, "mode": ["x"]}, "here.mode: got"),
        ({"count": 1, "inner": {"size": [1, "b"]}}, "here.inner.size"),
        ({"count": 1, "names": "abc"}, "here.names: got 'abc', expected a list"),
        ({"count": 1, "names": [1]}, r"here.names\[0\]: got 1, expected text"),
        ({"count": 1, "table": [1]}, "here.table: got"),
        ({"count": 1, "table": {"k": "v"}}, "here.table.k: got 'v', expected a number"),
        ({"count": None}, "here.count: got None"),
    ],
)
def test_what_does_not_fit_names_the_field(data: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read(**data)


def test_only_tables_become_dataclasses() -> None:
    for data in ([], "x", None, 3):
        with pytest.raises(RecipeError, match="here: expected a table"):
            fields.read(Outer, data, "here", RecipeError)


def test_options_are_set_from_text() -> None:
    settings_ = {"count": "7", "ratio": "1e-3", "name": "007", "on": "TRUE", "mode": "8", "names": "a,1,true"}
    made = fields.replace(Outer(1), settings_, "pass p", RecipeError)
    assert made == Outer(7, 0.001, "007", True, "8", None, ("a", "1", "true"))
    assert fields.replace(Outer(1, names=("a",)), {"names": ""}, "pass p", RecipeError).names == ()
    assert fields.replace(Inner(), {"size": "1,2"}, "pass p", RecipeError).size == (1, 2)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("what", "1", "pass p has no option 'what'; known: ratio, name"),
        ("count", "1", "pass p has no option 'count'"),
        ("ratio", "much", "pass p.ratio: got 'much', expected a number"),
        ("on", "1", "pass p.on: got 1, expected true or false"),
        ("mode", "z", "pass p.mode: got 'z', allowed: x, y"),
        ("table", "a=1", "pass p.table: got 'a=1', expected a table"),
    ],
)
def test_text_that_does_not_fit_names_the_option(name: str, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        fields.replace(Outer(1), {name: text}, "pass p", RecipeError, fixed=("count",))


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["count", "ratio", "name", "on", "mode", "inner", "names", "table", "anything", "x"]), ANY)
)
def test_arbitrary_data_either_fits_or_raises_the_given_error(data: dict[str, Any]) -> None:
    try:
        made = read(**data)
    except RecipeError:
        return
    assert isinstance(made, Outer)
