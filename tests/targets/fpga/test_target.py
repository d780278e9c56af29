"""Options of the target fpga: what is not allowed is refused when the target is made, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgesdk_converters.errors import EdgeError, RecipeError, ToolError
from edgesdk_targets.device import profile
from edgesdk_targets.fpga import flow_hls4ml, flow_rtl, hls4ml_constants, tool_process
from edgesdk_targets.fpga.target import Fpga
from edgesdk_targets.target import make

SHIPPED = Path(hls4ml_constants.__file__).with_name("hls4ml_constants.toml")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"bits": "1"}, "bits is 1; allowed: 2 to 16"),
        ({"clock_ns": "0.1"}, "clock_ns is 0.1; allowed: 0.5 to 1000"),
        ({"clock_ns": "nan"}, "clock_ns is nan"),
        ({"tool_minutes": "0"}, "tool_minutes is 0; allowed: above 0"),
        ({"multipliers": "0"}, "multipliers is 0; allowed: at least 1"),
        ({"target_cycles": "-1"}, "target_cycles is -1; allowed: at least 0"),
        ({"max_weights_unrolled": "-1"}, "max_weights_unrolled is -1; allowed: at least 0"),
        ({"port_bits": "12"}, "port_bits is 12; allowed: 8, 16"),
        ({"flow": "hls4ml", "reuse_factor": "0"}, "reuse_factor is 0; allowed: 1 to"),
        ({"flow": "hls4ml", "reuse_factors": "fc1=0"}, "expected NODE=FACTOR"),
        ({"reuse_factor": "4"}, "reuse_factor is for hls4ml's layers, the flow is rtl"),
        ({"reuse_factors": "fc1=4"}, "reuse_factors are for hls4ml's layers, the flow is rtl"),
        ({"constants": str(SHIPPED)}, "constants are for hls4ml's estimate, the flow is rtl"),
        ({"flow": "hls4ml", "constants": "nothere.toml"}, "there is no file nothere.toml"),
    ],
)
def test_a_value_that_is_not_allowed_is_a_recipe_error_when_the_target_is_made(settings: dict[str, str], told: str) -> None:
    with pytest.raises(RecipeError, match=told) as caught:
        make(None, "pynq-z2", settings)
    assert caught.value.exit_code == 2 and "Errno" not in caught.value.line()


def test_the_least_that_is_allowed_is_taken() -> None:
    least = {"bits": "2", "multipliers": "1", "target_cycles": "0", "max_weights_unrolled": "0", "port_bits": "16"}
    made = make(None, "pynq-z2", least)
    assert isinstance(made, Fpga) and (made.multipliers, made.max_weights_unrolled, made.port_bits) == (1, 0, 16)


def test_constants_are_read_when_the_target_is_made(tmp_path: Path) -> None:
    settings = {"flow": "hls4ml", "constants": str(SHIPPED)}
    assert make(None, "pynq-z2", settings)
    (tmp_path / "other.toml").write_text("date = 3\n")
    with pytest.raises(RecipeError, match=r"constants: other\.toml"):
        make(None, "pynq-z2", settings | {"constants": str(tmp_path / "other.toml")})


def test_a_factor_for_one_node_keeps_that_of_the_others_free() -> None:
    made = make(None, "pynq-z2", {"flow": "hls4ml", "reuse_factor": "4", "reuse_factors": "fc1=16"})
    assert isinstance(made, Fpga) and flow_hls4ml.reuse_factors(",".join(made.reuse_factors)) == {"fc1": 16}


@pytest.mark.parametrize(("device", "less"), [("ecp5-25k", "tools=none (or synthesis)"), ("pynq-z2", "tools=none leaves")])
def test_tools_that_take_too_long_are_told_with_the_options_that_change_it(
    device: str, less: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(*_: Any) -> Any:
        raise tool_process.TookTooLong("synthesis", "stopped after 60 s, in synthesis: ABC")

    monkeypatch.setattr(flow_rtl, "completed", too_long)
    with pytest.raises(ToolError, match="stopped after 60 s") as caught:
        Fpga(profile(device), tool_minutes=1.0).complete(None)  # type: ignore[arg-type]
    assert "--set tool_minutes=N" in caught.value.hint and f"--set {less}" in caught.value.hint


def test_other_errors_of_tools_keep_their_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise ToolError("yosys", "synthesis failed", hint="all it printed: log")

    monkeypatch.setattr(flow_rtl, "completed", fails)
    with pytest.raises(EdgeError) as caught:
        Fpga(profile("ecp5-25k")).complete(None)  # type: ignore[arg-type]
    assert caught.value.hint == "all it printed: log"
