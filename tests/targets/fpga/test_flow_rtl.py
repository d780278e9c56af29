"""What the flow rtl reports at export where a tool is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgesdk_targets.device import profile
from edgesdk_targets.fpga import flow_rtl
from edgesdk_targets.fpga.design import design
from edgesdk_targets.fpga.target import Fpga

from .integer_nets import dense_net

YOSYS = shutil.which("yosys")


@pytest.mark.skipif(YOSYS is None, reason="synthesises with yosys")
def test_a_netlist_that_no_simulator_is_there_for_has_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("yosys", "yosys-abc", "berkeley-abc", "sh"):
        found = shutil.which(name)
        if found is not None:
            (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    program = dense_net((3, 2), 4, "half_up")
    target = Fpga(profile("ecp5-25k"), tools="synthesis")
    made = design(program, "unrolled")
    rows, _, _ = flow_rtl._built(made, program, target, tmp_path, None, lambda _: None)
    (row,) = (row for row in rows if row.name == "mismatches")
    assert (row.provenance, row.segment, row.value) == ("unavailable", "netlist", None) and "iverilog" in row.method
