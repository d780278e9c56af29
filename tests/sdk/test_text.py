"""Reports and tables as text: 100 columns, units that fit the number, nothing cut off."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk import text
from edgesdk_targets.figure import Figure, Interval, counted, unavailable
from edgesdk_targets.report import Report, Verdict

MACHINE = {"cpu": "Some CPU", "architecture": "x86_64", "cores": 2}
MEASURED = Figure("latency_ms", 1.234, "measured", "here", "a runtime", percentiles={"p50": 1.234, "p90": 2.0, "p99": 3.0}, n=50)


def _report(*rows: Figure, device: str = "raspberry-pi-4", machine: dict[str, Any] | None = None, **more: Any) -> Report:
    return Report("net", "raspberry-pi", device, "", rows, machine=MACHINE if machine is None else machine, **more)


@pytest.mark.parametrize(
    ("number", "unit", "shown"),
    [
        (0, "bytes", "0 bytes"), (309, "bytes", "309 bytes"), (2_500, "bytes", "2.5 kB"), (127_600_000, "bytes", "127.6 MB"),
        (4_321_000_000, "bytes", "4,321 MB"), (32, "MAC", "32 MAC"), (4_100, "MAC", "4.1 kMAC"),
        (569_123_000, "MAC", "569.1 MMAC"), (12_345_600_000, "MAC", "12,346 MMAC"), (1.23456, "ms", "1.235 ms"),
        (0.00012346, "ms", "0.0001235 ms"),
        (1234.5, "ms", "1,234 ms"), (123456.7, "1/s", "123,457 1/s"), (11_689_512, "", "11,689,512"), (7, "", "7"),
        (0.5, "points", "0.5 points"), (0.0, "", "0"), (-0.25, "points", "-0.25 points"),
    ],
)  # fmt: skip
def test_a_number_has_a_unit_that_fits_it(number: float, unit: str, shown: str) -> None:
    assert text.amount(number, unit) == shown


def test_an_interval_is_in_the_unit_of_its_value() -> None:
    row = Figure("peak_memory_bytes", 2e6, "estimated", "board", "rule", interval=Interval(500_000, 3_000_000, 0.9))
    assert text.value(row) == "2 MB [0.5, 3] 90%"
    assert text.value(unavailable("latency_ms", "board", "no board")) == "-"
    far = Figure("latency_ms", 5.0, "estimated", "board", "rule", extrapolated=True)
    assert text.value(far) == "5 ms extrapolated"


def test_the_first_line_says_where() -> None:
    assert text.report(_report(MEASURED)).splitlines()[0] == (
        "measured on this machine (Some CPU, x86_64, 2 cores), NOT on raspberry-pi-4"
    )
    here = text.report(_report(MEASURED, device="this-machine")).splitlines()[0]
    assert here == "measured on this machine (Some CPU, x86_64, 2 cores)"
    for rows in ((), (counted("macs", 5, "counted"),), (unavailable("latency_ms", "board", "none"),)):
        first = text.report(_report(*rows)).splitlines()[0]
        assert first == "nothing here was measured on hardware: counts and estimates for raspberry-pi-4"


def test_percentiles_runs_and_reasons_stand_in_the_last_column() -> None:
    shown = " ".join(text.report(_report(MEASURED, unavailable("energy_mj", "the board", "nobody asked it"))).split())
    assert "a runtime; p90 2, p99 3; n=50" in shown
    assert "energy_mj - unavailable the board; nobody asked it" in shown


def test_segments_are_named_and_layers_come_last() -> None:
    layers = [
        Figure("latency_ms", float(i), "estimated", "board", "rule", layer=f"conv{i}", interval=Interval(i, i, 0.9))
        for i in range(1, 12)
    ]
    shown = text.report(_report(*layers, Figure("relative_error", 0.1, "measured", "here", "how", segment="repeat", n=3)))
    assert "relative_error (repeat)" in shown
    slowest = shown[shown.index("slowest layers") :]
    assert slowest.index("conv11") < slowest.index("conv10") < slowest.index("conv4")
    assert "conv3" not in slowest


def test_a_report_without_rows_has_no_empty_table() -> None:
    shown = text.report(_report(notes=("nothing to build",)))
    assert "figure" not in shown
    assert "note: nothing to build" in shown
    assert "\n\n\n" not in shown


def test_contract_and_notes_wrap_and_are_indented() -> None:
    shown = text.report(_report(contract=Verdict("passed", "word " * 60), notes=("note " * 60,))).splitlines()
    start = next(i for i, line in enumerate(shown) if line.startswith("contract: passed. word"))
    assert shown[start + 1].startswith("  word")


cells = st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=150)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=6)))
def test_a_table_is_never_wider_than_100_columns_and_loses_nothing(rows: list[list[str]]) -> None:
    heads = [f"head{i}" for i in range(len(rows[0]))]
    lines = text.table(heads, rows)
    assert max(map(len, lines)) <= text.WIDTH
    assert set(lines[1]) == {"-"}
    printed = sorted("".join(lines[:1] + lines[2:]).replace(" ", ""))
    assert printed == sorted("".join([*heads, *(cell for row in rows for cell in row)]).replace(" ", ""))


def test_a_table_is_no_wider_than_it_must_be() -> None:
    assert text.table(("a", "b"), [("one", "two")]) == ["a    b", "--------", "one  two"]
    assert text.table(("a", "b"), []) == ["a  b", "----"]


def test_a_bundle_and_a_model_are_told_in_100_columns() -> None:
    long = "name/" * 40
    signature = {
        "inputs": [{"name": long, "dtype": "float32", "shape": [1, "batch", 224], "preprocess": {"layout": "NCHW"}}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [], "postprocess": {"labels": ["cat"] * 1000, "softmax": True}}],
    }
    model = {
        "kind": "model", "name": long, "digest": "0" * 64, "opset": 20, "ir_version": 9, "bytes": 1000, "signature": signature,
        "operators": {f"{long}{i}": i for i in range(9)}, "costs": {"unavailable": long, "hint": "give --shape"},
    }  # fmt: skip
    bundle = {
        "kind": "bundle", "name": long, "digest": "0" * 64, "target": "jetson", "device": long, "precision": "fp16", "bytes": 10,
        "signature": signature, "history": [{"name": "half", "note": long}, {"name": "fold"}],
        "runtime": {"name": "onnxruntime", "minimum": "1.18", "providers": [long, "CPU"]},
        "contract": {"status": "passed", "text": long},
    }  # fmt: skip
    for found in (model, bundle):
        shown = text.inspected(found)
        assert max(map(len, shown.splitlines())) <= text.WIDTH
        assert "1x batchx224".replace(" ", "") in shown
        assert "1000 labels" in shown
        assert "scalar" in shown
    costs = {"macs": 0, "params": 0, "weight_bytes": 0, "peak_activation_bytes": 0, "macs_by_kind": {}}
    assert "0 parameters" in text.inspected(model | {"costs": costs})


def test_wrapping_keeps_every_word() -> None:
    assert " ".join(text.wrap("word " * 80)).split() == ["word"] * 80
    assert text.wrap("short") == ["short"]
