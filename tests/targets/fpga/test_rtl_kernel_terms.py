"""What is counted in a kernel, net by net."""

from __future__ import annotations

import math

import pytest

from edgesdk_targets.fpga.rtl_counts import Terms
from edgesdk_targets.fpga.rtl_kernel_terms import add

KERNEL = """module k (
  input wire clk,
  output reg [11:0] y
);
  reg [8:0] t0_3_r1;
  function [3:0] table_0(input [5:0] code);
  endfunction
  wire [7:0] x0_0 = x[7:0];
  wire [7:0] x0_1 = x[15:8];
  wire [8:0] t0_0 = {{1{x0_0[7]}}, x0_0} + {{1{x0_1[7]}}, x0_1};
  wire [9:0] t0_1 = {{{1{t0_0[8]}}, t0_0[8:2]} - {2'd0, x0_1[7:2]}, x0_0[1:0]};
  wire [9:0] t0_2 = {{1{t0_0[8]}}, t0_0} - {{2{x0_1[7]}}, x0_1};
  wire [0:0] t0_4 = $signed(t0_2) < $signed({{2{x0_1[7]}}, x0_1});
  wire [8:0] t0_3 = t0_4 ? t0_1[8:0] : t0_2[8:0];
  wire [8:0] t0_5 = t0_3_r1[8] ? 9'd0 : t0_3_r1;
  wire [0:0] t0_6 = t0_5[4] & (t0_5[5] | (|t0_5[3:0]));
  wire [3:0] t0_7 = table_0(t0_5[5:0]);
  always @(posedge clk) if (en) begin
    t0_3_r1 <= t0_3;
    y[0:0] <= t0_6;
    y[11:8] <= t0_7;
  end
endmodule
"""


def counted(text: str) -> Terms:
    found = Terms("stage0")
    add(found, text)
    return found


def test_operations_are_counted_by_kind_and_width() -> None:
    found = counted(KERNEL)
    # Sums of 9, 8 (two low bits only pass) and 10 bits, and a comparison of 10, all rounded up to two bits.
    assert found.lut["carry_bits"] == 10 + 8 + 10 + 10
    assert found.lut["carry_chains"] == 4
    assert found.lut["choice_bits"] == 9
    assert found.lut["limit_bits"] == 9
    assert found.lut["table_luts"] == 4 * 4
    assert found.lut["gate_luts"] == 2
    assert found.ff == {"kernel_bits": 9.0 + 12.0}


def test_longest_way_between_registers_is_found() -> None:
    (way,) = counted(KERNEL).paths
    assert way == {"kernel": 1.0, "sum": 3.0, "carry_bits": 29.0, "choice": 1.0, "fan_out": math.log2(10)}


def test_registers_end_a_way() -> None:
    cut = KERNEL.replace("$signed(t0_2) <", "$signed(t0_2_r1) <").replace("t0_1[8:0] : t0_2[8:0]", "t0_1_r1[8:0] : t0_2_r1[8:0]")
    cut = cut.replace("    y[0:0]", "    t0_2_r1 <= t0_2;\n    y[0:0]").replace("table_0(t0_5[5:0])", "t0_5[3:0]")
    (way,) = counted(cut).paths
    assert way == {"kernel": 1.0, "sum": 2.0, "carry_bits": 19.0}


def test_sum_that_only_another_sum_reads_is_merged() -> None:
    alone = KERNEL.replace("t0_1[8:0]", "t0_2[8:0]").replace("  wire [9:0] t0_1 =", "  // wire [9:0] t0_1 =")
    assert counted(alone).lut["merged_sum_bits"] == 10  # of t0_2, now the only reader of t0_0
    assert "merged_sum_bits" not in counted(KERNEL).lut


@pytest.mark.parametrize(
    ("left", "right", "dsps"),
    [
        ("{{8{x0_0[7]}}, x0_0}", "{{8{x0_1[7]}}, x0_1}", 1), ("{{1{t1_0[17]}}, t1_0}", "t1_1", 1),
        ("{1'd0, t1_0}", "t1_1", 2), ("{{5{t1_2[20]}}, t1_2}", "{2'd0, t1_3}", 4), ("t1_4", "{28'd0, x0_0}", 3),
    ],
)  # fmt: skip
def test_wide_products_take_several_multipliers(left: str, right: str, dsps: int) -> None:
    """18 bits of each factor, its sign included, go into one; factors are extended to the width of their product."""
    nets = "".join(f"  wire [{bits - 1}:0] t1_{place} = x[{bits - 1}:0];\n" for place, bits in enumerate((18, 16, 21, 24, 37)))
    text = KERNEL.replace(
        "  wire [8:0] t0_0", f"{nets}  wire [44:0] t1_9 = $signed({left}) * $signed({right});\n  wire [8:0] t0_0"
    )
    assert counted(text).dsp == dsps


def test_a_large_table_that_registers_alone_read_lies_in_block_ram() -> None:
    table = "  function [19:0] table_1(input [10:0] code);\n  endfunction\n  wire [19:0] t2_0 = table_1(x[10:0]);\n"
    latched = KERNEL.replace("  wire [7:0] x0_0", f"{table}  wire [7:0] x0_0").replace(
        "    y[0:0]", "    t2_0_r1 <= t2_0;\n    y[0:0]"
    )
    latched = latched.replace("  function [3:0]", "  reg [19:0] t2_0_r1;\n  function [3:0]")
    found = counted(latched)
    assert found.bram == 3 and found.lut["table_luts"] == 4 * 4
    read = latched.replace("wire [3:0] t0_7 = ", "wire [3:0] t0_8 = t2_0[3:0];\n  wire [3:0] t0_7 = ")
    assert counted(read).bram == 0 and counted(read).lut["table_luts"] == 4 * 4 + 20 * 128


def test_what_comes_from_block_ram_begins_late() -> None:
    """Its register is the memory's own: the delay of reading it stands before what reads the register."""
    table = "  function [19:0] table_1(input [10:0] code);\n  endfunction\n  wire [19:0] t2_0 = table_1(x[10:0]);\n"
    reading = "  wire [20:0] t2_1 = {1'd0, t2_0_r1} + {20'd0, x0_0[0:0]};\n"
    text = KERNEL.replace("  wire [7:0] x0_0", f"{table}{reading}  wire [7:0] x0_0")
    text = text.replace("    y[0:0]", "    t2_0_r1 <= t2_0;\n    t2_1_r2 <= t2_1;\n    y[0:0]")
    alone, longest = counted(text).paths
    assert alone == {"block_ram": 1.0}
    assert longest == {"kernel": 1.0, "block_ram": 1.0, "sum": 1.0, "carry_bits": 21.0}
