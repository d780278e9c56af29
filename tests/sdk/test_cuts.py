"""`edgesdk cuts`: a table for people, JSON for programs, and on real networks every cut is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgesdk
from edgesdk_converters.calibration import synthetic
from edgesdk_converters.fold import Fold
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.reference import Reference
from edgesdk_converters.split import cuts, split

from .conftest import run_here
from .test_real_models import CONSTANTS, SHAPES

ROOT = Path(__file__).parents[2]
NET = ROOT / "examples" / "fashion" / "fashion_mobilenet.onnx"
SMALL = ("resnet8", "ds-cnn", "mobilenet-vww", "autoencoder", "magika", "silero-vad")
LARGE = ("basic-pitch", "squeezenet", "shufflenet", "inception_v1", "densenet121", "efficientnet-lite0", "resnet50")
SOME = 6


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_real_networks_are_the_same_in_two_parts(name: str) -> None:
    """At every cut of the small ones, and at some all along the large ones: equal to the bit."""
    model = Model.load(ROOT / "build" / "models" / f"{name}.onnx", shapes=SHAPES.get(name), constants=CONSTANTS.get(name))
    model = Fold()(model, Given(model, synthetic(model, 1)))
    found = cuts(model)
    assert found or name == "silero-vad"
    step = 1 if name in SMALL else max(1, len(found) // SOME)
    (sample,) = synthetic(model, 1)
    wanted = Reference(model).run(sample)
    for cut in found[::step]:
        head, tail = split(model, cut.tensors)
        got = Reference(tail).run(Reference(head).run(sample))
        assert all(np.array_equal(got[key], wanted[key]) for key in wanted), cut.tensors


def test_json_has_all_cuts_and_the_table_those_worth_a_look(tmp_path: Path) -> None:
    done = run_here(f"cuts {NET} --json --bits 4", tmp_path)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    assert found["format"] == "edgesdk-cuts/1" and found["model"] == "fashion_mobilenet"
    assert len(found["cuts"]) == len(edgesdk.cuts(NET)) > 15
    one = found["cuts"][0]
    assert one["bytes"] == 4 * one["bytes_int8"] == 8 * one["bytes_bits"]
    assert one["head_macs"] + one["tail_macs"] == found["local"]["head_macs"]
    table = run_here(f"cuts {NET}", tmp_path).out
    every = run_here(f"cuts {NET} --all", tmp_path).out
    assert "offload" in table and "local" in table and "#" in table
    assert len(every.splitlines()) > len(table.splitlines())


def test_pairs_and_errors(tmp_path: Path) -> None:
    assert len(edgesdk.cuts(NET, pairs=True)) > len(edgesdk.cuts(NET))
    assert run_here("cuts nothing.onnx", tmp_path).code == 1
    assert run_here(f"cuts {NET} --bits 9", tmp_path).code == 2
