"""`edgesdk devices`: every device that a verb takes is listed, with what that verb does with it, and facts that have sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import edgesdk
from edgesdk.listing import ESTIMATE_ONLY, device_facts, list_devices, shown_devices
from edgesdk_converters.errors import DeviceError, EdgeError, TargetError
from edgesdk_targets import device, emulate
from edgesdk_targets.latency_model import PUBLISHED, published_ways
from edgesdk_targets.target import device_profile, make

from .conftest import run_here

LAYERS = Path(edgesdk.__file__).parents[2] / "targets" / "edgesdk_targets" / "published_latency" / "networks" / "mobilenet.json"


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in list_devices()}


def test_every_device_is_there_once_phones_too(rows: dict[str, dict[str, Any]]) -> None:
    assert set(rows) == {*device.names(), *PUBLISHED}
    assert len(rows) == len(list_devices())
    assert rows["phone-snapdragon-835"]["group"] == rows["jetson-nano"]["group"] == ESTIMATE_ONLY
    assert rows["jetson-nano"]["target"] == "jetson" and rows["phone-snapdragon-835"]["target"] == ""


def test_groups_stand_together_and_what_cannot_be_exported_to_stands_last(rows: dict[str, dict[str, Any]]) -> None:
    groups = [row["group"] for row in rows.values()]
    assert list(dict.fromkeys(groups)) == ["raspberry-pi", "jetson", "fpga", "server", ESTIMATE_ONLY]
    assert groups == sorted(groups, key=list(dict.fromkeys(groups)).index)


@pytest.mark.parametrize("name", sorted({*device.names(), *PUBLISHED}))
def test_what_is_listed_is_what_the_verbs_do(rows: dict[str, dict[str, Any]], name: str) -> None:
    can = rows[name]["can"]
    exported = emulated = True
    try:
        assert not make(None, name).device.estimate_only
    except (DeviceError, TargetError, AssertionError):
        exported = False
    try:
        emulate.core(device_profile(name))
    except EdgeError:
        emulated = False
    assert ("export" in can, "emulate" in can) == (exported, exported and emulated)
    assert ("measure" in can) == (exported and rows[name]["target"] != "fpga")
    assert ("simulate" in can) == (rows[name]["target"] == "fpga")
    assert "estimate" in can


@pytest.mark.parametrize("name", sorted({*device.names(), *PUBLISHED}))
def test_every_fact_has_a_source_and_every_device_an_estimate(name: str) -> None:
    found = device_facts(name)
    assert found["facts"] and all(fact["source"].strip() for fact in found["facts"].values())
    if found["target"] != "fpga":
        report = edgesdk.estimate(LAYERS, device=name)
        assert report.device == name and report.find("peak_memory_bytes") is not None


def test_a_phones_facts_are_those_that_its_estimate_reads() -> None:
    found = device_facts("phone-snapdragon-8-gen-2")
    assert found["facts"]["cores"]["value"] == 8 and found["facts"]["clock_ghz"]["value"] == 3.2
    assert found["facts"]["memory_bandwidth_gb_per_s"]["value"] == 67.2
    assert "wccftech.com" in found["facts"]["memory_bandwidth_gb_per_s"]["source"]
    assert found["facts"]["fp16_arithmetic"]["value"] is True and "Cortex-X3=32" in str(found["facts"]["cpu"]) + str(
        found["facts"]["fp32_flop_per_cycle_per_core"]
    )
    assert found["estimate_only"] and "power_idle_w" not in found["facts"]


def test_the_measurements_behind_an_estimate_are_counted() -> None:
    ways = published_ways(PUBLISHED["raspberry-pi-4"])
    assert ways["ncnn", "cpu", "fp32"] == 36 and ways["onnxruntime", "cpu", "fp32"] == 2
    told = device_facts("raspberry-pi-4")["published"]
    assert {"runtime": "ncnn", "backend": "cpu", "precision": "int8", "measurements": 10} in told
    assert device_facts("this-machine")["published"] == []


def test_a_device_that_nothing_knows_is_refused_with_all_that_are_known() -> None:
    with pytest.raises(DeviceError, match=r"unknown device 'phone-of-clay'; known: .*jetson-nano.*phone-dimensity-9300"):
        device_facts("phone-of-clay")


def test_the_verb_tells_the_same_as_text_and_as_json(tmp_path: Path, rows: dict[str, dict[str, Any]]) -> None:
    assert json.loads(run_here("devices --json", tmp_path).out)["devices"] == list(rows.values())
    lines = run_here("devices", tmp_path).out.splitlines()
    assert "\n".join(lines) == shown_devices(list(rows.values()))
    phone = next(line for line in lines if "phone-snapdragon-835" in line)
    assert "estimate only" in phone and "export" not in phone
    one = run_here("devices phone-snapdragon-835", tmp_path).out
    assert "no target): estimate only" in one and "there is no target for it" in one and "ncnn cpu fp32 (28)" in one
    assert json.loads(run_here("devices phone-snapdragon-835 --json", tmp_path).out) == device_facts("phone-snapdragon-835")
    assert "published measurements" not in run_here("devices pynq-z2", tmp_path).out
