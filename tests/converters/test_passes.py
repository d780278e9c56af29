"""What every pass of the table must be."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx
import pytest

from edgesdk_converters import PASSES, fields, find, known
from edgesdk_converters.calibration import synthetic
from edgesdk_converters.errors import RecipeError
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given, Pass, silent

NEEDED: dict[str, dict[str, Any]] = {"payload": {"at": "r1"}, "bottleneck": {"mimic": 1, "tune": 1, "width": 4}}
"""Options without which a pass has nothing to do, for the network of these tests."""


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_a_frozen_dataclass_with_defaults_and_a_name(name: str) -> None:
    cls = find(name)
    assert isinstance(cls(), Pass)
    assert cls.name == name
    assert all(
        field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        for field in dataclasses.fields(cls)
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls().name = "x"
    assert fields.read(cls, fields.plain(cls()), name, RecipeError) == cls()
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(")


@pytest.mark.parametrize("name", known())
def test_a_pass_is_pure_repeats_to_the_byte_and_keeps_the_face(name: str, conv_net: onnx.ModelProto, given: Any) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    model = Model.from_proto(proto, "m")
    what = given(model, dataclasses.replace(synthetic(model, 4), synthetic=False))
    before = model.to_bytes()
    step = find(name)(**NEEDED.get(name, {}))
    first = step(model, what)
    assert model.to_bytes() == before
    assert step(model, what).to_bytes() == first.to_bytes()
    assert first.signature == model.signature
    assert [step.name for step in first.history] in ([], [name])


def test_progress_that_nobody_watches_says_nothing(conv_net: onnx.ModelProto, given: Any, capsys: Any) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    model = Model.from_proto(proto, "m")
    what = given(model, dataclasses.replace(synthetic(model, 4), synthetic=False))
    assert Given(what.source, what.train).progress is silent
    for name in PASSES:
        find(name)(**NEEDED.get(name, {}))(model, what)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
