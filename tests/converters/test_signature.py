"""Signatures: checked when made, and JSON and back."""

from __future__ import annotations

from typing import Any

import pytest

from edgesdk_converters.errors import BundleError, ModelError
from edgesdk_converters.signature import Input, Output, Postprocess, Preprocess, Processing, Resize, Signature

SIGNATURE = Signature(
    (
        Input("x", "float32", ("n", 3, 32, 40), Preprocess("NCHW", "BGR", Resize((32, 40)), 1 / 255, (0.1, 0.2, 0.3), (0.5,))),
        Input("mask", "bool", ()),
    ),
    (Output("y", "float32", ("n", 2), Postprocess(True, ("cat", "dog"))),),
)


def test_a_signature_survives_json() -> None:
    assert Signature.from_json(SIGNATURE.to_json()) == SIGNATURE
    assert SIGNATURE.to_json()["inputs"][1] == {"name": "mask", "dtype": "bool", "shape": []}
    with pytest.raises(BundleError, match="signature: 'inputs' is missing"):
        Signature.from_json({"outputs": []}, BundleError)


def test_static_means_that_no_input_dimension_has_a_name() -> None:
    assert not SIGNATURE.is_static
    assert Signature(SIGNATURE.inputs[1:], SIGNATURE.outputs).is_static


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Resize((3,)), "resize.size must be"),
        (lambda: Resize((0, 3)), "resize.size must be"),
        (lambda: Resize((3, 3), crop_fraction=0), "crop_fraction must be above 0"),
        (lambda: Resize((3, 3), crop_fraction=1.1), "crop_fraction must be above 0 and at most 1"),
        (lambda: Preprocess(std=(1.0, 0.0)), "std contains 0"),
        (lambda: Preprocess("NCHW", mean=(1.0, 2.0)), "mean has 2 values; allowed: 0, 1 or 3 for RGB"),
        (lambda: Preprocess("NHWC", "gray", std=(1.0, 2.0, 3.0)), "std has 3 values; allowed: 0, 1 or 1 for gray"),
        (lambda: Preprocess(resize=Resize((3, 3))), "resize needs layout NCHW or NHWC"),
    ],
)
def test_processing_that_makes_no_sense_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        make()


@pytest.mark.parametrize(
    ("shape", "processing", "said"),
    [
        ((1, 3, 8, 8), Processing({"z": Preprocess()}), "given for input 'z'; the model has: x"),
        ((1, 3, 8, 8), Processing(outputs={"z": Postprocess()}), "given for output 'z'; the model has: y"),
        ((1, 3), Processing({"x": Preprocess("NCHW")}), "4 axes are needed"),
        ((1, 3, 8, 8), Processing({"x": Preprocess("NHWC")}), "8 channels in axis 3"),
        ((1, 1, 8, 8), Processing({"x": Preprocess("NCHW")}), "1 channels in axis 1"),
        ((1, 3, 8, 8), Processing({"x": Preprocess("NCHW", "gray")}), "but gray has 1"),
        ((1, 3, 8, 9), Processing({"x": Preprocess("NCHW", resize=Resize((8, 8)))}), "9 long in axis 3, resize gives 8"),
        ((1, 3, 8, 8), Processing(outputs={"y": Postprocess(labels=("a", "b"))}), "5 classes in its last axis, but 2 labels"),
    ],
)
def test_processing_that_does_not_fit_the_tensors_is_refused(shape: Any, processing: Processing, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Signature((Input("x", "float32", shape),), (Output("y", "float32", (1, 5)),)).with_processing(processing)


def test_processing_is_attached_by_name_and_keeps_what_is_there() -> None:
    first = SIGNATURE.with_processing(Processing(outputs={"y": Postprocess()}))
    assert first.inputs == SIGNATURE.inputs
    assert first.outputs[0].postprocess == Postprocess()
    assert SIGNATURE.outputs[0].postprocess is not None
    assert SIGNATURE.outputs[0].postprocess.softmax


def test_processing_comes_from_metadata() -> None:
    data = SIGNATURE.to_json()
    kept = {
        kind: [{k: v for k, v in entry.items() if k in ("name", "preprocess", "postprocess")} for entry in data[kind]]
        for kind in data
    }
    processing = Processing.from_metadata(kept)
    assert processing == Processing({"x": SIGNATURE.inputs[0].preprocess}, {"y": SIGNATURE.outputs[0].postprocess})
    for broken in ([], {"inputs": 3}, {"inputs": [1]}, {"outputs": None}, {"inputs": [{"name": "x", "preprocess": 3}]}):
        with pytest.raises(ModelError, match=r"metadata edgesdk\.io"):
            Processing.from_metadata(broken)
