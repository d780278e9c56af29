"""What is counted in a design's Verilog: every stage under its own name."""

from __future__ import annotations

from edgesdk_targets.fpga.design import design
from edgesdk_targets.fpga.rtl_counts import total
from edgesdk_targets.fpga.rtl_terms import instances, terms

from .integer_nets import conv_net, dense_net


def test_carry_cells_of_kernels_hold_the_adder_bits_that_the_generator_counts() -> None:
    made = design(dense_net((16, 8, 5), 6, "half_even"), "unrolled")
    found = next(one for one in terms(made.files) if one.stage.startswith("stage"))
    sums = found.lut["carry_bits"] + found.lut.get("narrow_sum_bits", 0)
    assert made.counts.adder_bits <= sums <= made.counts.adder_bits + made.counts.adders  # each rounded up to two bits


def test_every_stage_has_terms_under_its_own_name() -> None:
    made = design(conv_net(), "streaming")
    found = terms(made.files)
    assert {one.stage for one in found} == {"network", "network_serial", *(layer.stage for layer in made.layers)}
    assert all(one.paths for one in found if one.stage.startswith("stage"))
    assert total(found).ff["window_bits"] == sum(one.ff.get("window_bits", 0) for one in found) > 0


def test_parameters_of_instances_are_read_in_both_notations() -> None:
    text = '    edgesdk_x #(.WIDTH(8), .PAD(9\'h1f), .FILE("a.hex"), .LOW(-3)) x (.clk(clk), .rst(rst));\n'
    text += "    k kernel (.clk(clk));\n"
    assert list(instances(text)) == [("edgesdk_x", {"WIDTH": 8, "PAD": 31, "FILE": 0, "LOW": -3}), ("k", {})]


def test_ready_runs_through_the_parts_of_a_stage_up_to_a_queue() -> None:
    def stage(*modules: str) -> dict[str, bytes]:
        parameters = {"edgesdk_pipe": ".LATENCY(1)", "edgesdk_fifo": ".DEPTH(16), .WIDTH(8), .ABITS(4)"}
        lines = (f"  {name} #({parameters[name]}) part{place} (.clk(clk));\n" for place, name in enumerate(modules))
        return {"stage0.v": ("module stage0 (input wire clk);\n" + "".join(lines) + "endmodule\n").encode()}

    def parts(*modules: str) -> float:
        (made,) = terms(stage(*modules))
        (way,) = made.paths
        return way["logic"]

    assert parts("edgesdk_pipe", "edgesdk_pipe", "edgesdk_pipe") == 3
    assert parts("edgesdk_pipe", "edgesdk_fifo", "edgesdk_pipe", "edgesdk_pipe") == 2
