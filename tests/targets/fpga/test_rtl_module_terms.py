"""What the firmware's modules are counted as."""

from __future__ import annotations

from edgesdk_targets.fpga.design import design
from edgesdk_targets.fpga.rtl_counts import Terms, total
from edgesdk_targets.fpga.rtl_module_terms import add
from edgesdk_targets.fpga.rtl_terms import terms

from .integer_nets import dense_net


def test_multipliers_are_the_lanes_of_folded_layers() -> None:
    made = design(dense_net((16, 8, 5), 5, "half_even"), "folded", multipliers=12)
    assert made.counts.multipliers > 0
    assert total(terms(made.files)).dsp == made.counts.multipliers


def test_a_queue_is_its_memory_and_three_counters() -> None:
    found = Terms("stage0")
    assert add(found, "edgesdk_fifo", {"DEPTH": 16, "WIDTH": 12, "ABITS": 4})
    assert found.lut["distributed_ram"] == 3 and found.bram == 0
    assert found.ff == {"memory_word_bits": 12.0, "counter_bits": 4.0 + 4.0 + 5.0, "control": 1.0}


def test_a_module_that_is_none_of_the_firmware_is_not_counted() -> None:
    found = Terms("stage0")
    assert not add(found, "stage0_kernel", {"WIDTH": 8})
    assert not found.lut and not found.ff
