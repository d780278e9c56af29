"""Server: a bundle for a machine like this one, with nothing guessed about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from edgesdk_converters.cost import layers
from edgesdk_converters.errors import TargetError
from edgesdk_converters.model import Model
from edgesdk_targets.device import Fact, this_machine
from edgesdk_targets.server import Server
from edgesdk_targets.target import Segment, make


def test_threads_are_left_to_the_machine_that_runs_it(small_convnet: Callable[..., Model]) -> None:
    target = make("server", None)
    assert isinstance(target, Server)
    assert target.device.name == "this-machine"
    assert target.compile(Segment(small_convnet())).runtime.threads == 0
    assert make("server", None, {"threads": "3"}).compile(Segment(small_convnet())).runtime.threads == 3


def test_a_negative_number_of_threads_is_refused(small_convnet: Callable[..., Model]) -> None:
    with pytest.raises(TargetError, match="threads is -1; allowed: 0"):
        make("server", None, {"threads": "-1"}).check(Segment(small_convnet()))


def test_latency_is_not_guessed_and_memory_is_estimated(small_convnet: Callable[..., Model]) -> None:
    latency, memory = make("server", None).estimate(layers(small_convnet()), "fp32")
    assert (latency.name, latency.provenance) == ("latency_ms", "unavailable")
    assert "edgesdk measure --on local" in latency.method
    assert (memory.name, memory.provenance, memory.extrapolated) == ("peak_memory_bytes", "estimated", False)


def test_dynamic_shapes_are_taken(model_of: Callable[..., Model]) -> None:
    from onnx import TensorProto, helper

    node = helper.make_node("Relu", ["x"], ["y"])
    model = model_of([node], {"x": (TensorProto.FLOAT, ["n", 2])}, {"y": (TensorProto.FLOAT, ["n", 2])})
    make("server", None).check(Segment(model))


@pytest.mark.parametrize(("saturates", "bits"), [(True, 7), (False, 8)])
def test_weights_have_as_many_bits_as_the_cpu_multiplies_without_saturating(saturates: bool, bits: int) -> None:
    device = this_machine()
    device = replace(device, facts={**device.facts, "int8_saturates": Fact(saturates, "a test")})
    target = Server(device)
    for name, steps in target.variants("int8").items():
        step = next(step for step in steps["whole"] if step["pass"] == "quantize")
        assert step.get("reduce_range", False) is (bits == 7), name
    assert target.recipe("int8") == target.variants("int8")["int8"]


def test_a_transformer_may_also_go_dynamic_and_weights_may_be_stored_only() -> None:
    target = make("server", None)
    assert list(target.variants("int8")) == ["int8", "int8 dynamic"]
    assert list(target.variants("w4")) == ["w4", "w4 stored"]
    assert list(target.variants("fp32")) == ["fp32"]
