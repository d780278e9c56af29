"""The fastest clock of a part: as the data sheets have it, by family and speed grade."""

from __future__ import annotations

import pytest

from edgesdk_targets.device import of_target
from edgesdk_targets.fpga.clock_limits import FASTEST, fastest_mhz


@pytest.mark.parametrize(
    ("part", "mhz"),
    [
        ("xc7z020clg400-1", 464), ("XC7A100TCSG324-2", 628), ("xc7s50csga324-1IL", 464), ("xczu9eg-ffvb1156-2-e", 775),
        ("xczu3eg-sbva484-1-i", 667), ("xcu250-figd2104-2L-e", 775), ("xcvu13p-flga2577-3-e", 891), ("xcu200-fsgd2104-2-e", 775),
        ("xc7z020", 628), ("", FASTEST), ("xcku115-flvb2104-2-i", FASTEST), ("Arria10", FASTEST),
    ],
)  # fmt: skip
def test_the_clock_tree_of_a_part_by_its_speed_grade(part: str, mhz: float) -> None:
    assert fastest_mhz(part) == mhz


def test_every_part_of_a_device_is_of_a_family_that_is_known() -> None:
    xilinx = [device for device in of_target("fpga") if device.get("family", str) != "ecp5"]
    assert all(fastest_mhz(device.need("part", str)) < FASTEST for device in xilinx)
