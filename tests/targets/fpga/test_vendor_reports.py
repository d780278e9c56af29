"""Vendor reports in their documented layouts: values, units, the right one of many, and what broken ones say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgesdk_converters.errors import TargetError
from edgesdk_targets.fpga.vendor_reports import cosim, csynth, csynth_figures, project_figures, timing, utilisation

CSYNTH = """<?xml version="1.0"?>
<profile>
 <ReportVersion><Version>2023.2</Version></ReportVersion>
 <UserAssignments>
  <unit>ns</unit><ProductFamily>zynquplus</ProductFamily><Part>xczu9eg-ffvb1156-2-e</Part><TopModelName>myproject</TopModelName>
  <TargetClockPeriod>5.00</TargetClockPeriod><ClockUncertainty>1.35</ClockUncertainty>
 </UserAssignments>
 <PerformanceEstimates>
  <SummaryOfTimingAnalysis><unit>ns</unit><EstimatedClockPeriod>4.000</EstimatedClockPeriod></SummaryOfTimingAnalysis>
  <SummaryOfOverallLatency>
   <unit>clock cycles</unit><Best-caseLatency>11</Best-caseLatency><Average-caseLatency>12</Average-caseLatency>
   <Worst-caseLatency>13</Worst-caseLatency><Interval-min>2</Interval-min><Interval-max>4</Interval-max>
  </SummaryOfOverallLatency>
 </PerformanceEstimates>
 <AreaEstimates>
  <Resources><BRAM_18K>6</BRAM_18K><DSP>171</DSP><FF>9744</FF><LUT>19834</LUT><URAM>0</URAM></Resources>
  <AvailableResources><BRAM_18K>1824</BRAM_18K><DSP>2520</DSP><FF>548160</FF><LUT>274080</LUT><URAM>0</URAM></AvailableResources>
 </AreaEstimates>
</profile>
"""
OLD_CSYNTH = CSYNTH.replace("<DSP>", "<DSP48E>").replace("</DSP>", "</DSP48E>").replace("<URAM>0</URAM>", "")
UTILISATION = """Copyright 1986-2020 Xilinx, Inc. All Rights Reserved.
------------------------------------------------------------------------------------
| Tool Version : Vivado v.2020.1 (lin64) Build 2902540 Wed May 27 19:54:35 MDT 2020
| Command      : report_utilization -file vivado_synth.rpt
| Device       : xczu9egffvb1156-2
| Design State : Synthesized
------------------------------------------------------------------------------------

1. CLB Logic
------------

+----------------------------+-------+-------+-----------+-------+
|          Site Type         |  Used | Fixed | Available | Util% |
+----------------------------+-------+-------+-----------+-------+
| CLB LUTs*                  |  1234 |     0 |    274080 |  0.45 |
|   LUT as Logic             |  1200 |     0 |    274080 |  0.44 |
|   LUT as Memory            |    34 |     0 |    144000 |  0.02 |
| CLB Registers              |  5678 |     0 |    548160 |  1.04 |
|   Register as Flip Flop    |  5678 |     0 |    548160 |  1.04 |
+----------------------------+-------+-------+-----------+-------+
* Warning! The Final LUT count, after physical optimizations and full implementation, is typically lower.

1.1 Summary of Registers by Type
--------------------------------

+-------+--------------+-------------+--------------+
| Total | Clock Enable | Synchronous | Asynchronous |
+-------+--------------+-------------+--------------+
| 5678  |          Yes |       Reset |            - |
+-------+--------------+-------------+--------------+

2. BLOCKRAM
-----------

+-------------------+------+-------+-----------+-------+
|     Site Type     | Used | Fixed | Available | Util% |
+-------------------+------+-------+-----------+-------+
| Block RAM Tile    | 12.5 |     0 |       912 |  1.37 |
|   RAMB36/FIFO*    |   12 |     0 |       912 |  1.32 |
|   RAMB18          |    1 |     0 |      1824 |  0.05 |
| URAM              |    3 |     0 |         0 |  0.00 |
+-------------------+------+-------+-----------+-------+

3. ARITHMETIC
-------------

+-----------+------+-------+-----------+-------+
| Site Type | Used | Fixed | Available | Util% |
+-----------+------+-------+-----------+-------+
| DSPs      |   64 |     0 |      2520 |  2.54 |
+-----------+------+-------+-----------+-------+
"""
SLICES = (
    UTILISATION.replace("CLB LUTs* ", "Slice LUTs*").replace("CLB Registers  ", "Slice Registers").replace("| URAM", "| Other")
)
COSIM = """Report time       : Fri 27 Nov 2020
Solution          : solution1.
Simulation tool   : xsim.

+----------+----------+-----------------------------------------------+-----------------------------------------------+
|          |          |             Latency(Clock Cycles)             |             Interval(Clock Cycles)            |
+   RTL    +  Status  +-----------------------------------------------+-----------------------------------------------+
|          |          |      min      |      avg      |      max      |      min      |      avg      |      max      |
+----------+----------+-----------------------------------------------+-----------------------------------------------+
|      VHDL|        NA|             NA|             NA|             NA|             NA|             NA|             NA|
|   Verilog|      Pass|            248|            251|            278|             20|             21|             22|
+----------+----------+-----------------------------------------------+-----------------------------------------------+
"""
TIMING = """| Tool Version : Vivado v.2019.2 (lin64) Build 2708876
| Device       : 7z020-clg400
| Speed File   : -1  PRODUCTION 1.11 2014-09-11
| Design State : Routed

------------------------------------------------------------------------------------------------
| Design Timing Summary
| ---------------------
------------------------------------------------------------------------------------------------

    WNS(ns)      TNS(ns)  TNS Failing Endpoints  TNS Total Endpoints      WHS(ns)      THS(ns)  THS Failing Endpoints
    -------      -------  ---------------------  -------------------      -------      -------  ---------------------
     -0.250      -13.146                     57                  973        0.082        0.000                      0


Timing constraints are not met.

------------------------------------------------------------------------------------------------
| Clock Summary
| -------------
------------------------------------------------------------------------------------------------

Clock       Waveform(ns)         Period(ns)      Frequency(MHz)
-----       ------------         ----------      --------------
clk_fpga_0  {0.000 5.000}        10.000          100.000

"""


OF_ZCU102 = TIMING.replace("7z020-clg400", "xczu9eg-ffvb1156")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_c_synthesis_is_read_whole(tmp_path: Path) -> None:
    found = csynth(write(tmp_path / "csynth.xml", CSYNTH))
    assert found.tool == "HLS 2023.2 for zynquplus"
    assert (found.target_clock_ns, found.estimated_clock_ns) == (5.0, 4.0)
    assert (found.cycles_min, found.cycles_max, found.interval_min, found.interval_max) == (11, 13, 2, 4)
    assert found.used == {"bram": 6, "dsp": 171, "ff": 9744, "lut": 19834, "uram": 0}
    assert found.available == {"bram": 1824, "dsp": 2520, "ff": 548160, "lut": 274080, "uram": 0}


def test_vivado_hls_calls_dsp_otherwise_and_has_no_uram(tmp_path: Path) -> None:
    assert csynth(write(tmp_path / "csynth.xml", OLD_CSYNTH)).used == {"bram": 6, "dsp": 171, "ff": 9744, "lut": 19834}


def test_c_synthesis_gives_its_worst_case_and_says_the_best(tmp_path: Path) -> None:
    rows = {row.name: row for row in csynth_figures(write(tmp_path / "csynth.xml", CSYNTH), "zcu102")}
    assert {name: row.value for name, row in rows.items()} == {
        "lut": 19834, "ff": 9744, "dsp": 171, "bram": 6, "uram": 0, "fmax_mhz": 250.0, "cycles": 13, "initiation_interval": 4,
    }  # fmt: skip
    assert {row.provenance for row in rows.values()} == {"tool-reported"}
    assert {row.where for row in rows.values()} == {"zcu102, xczu9eg-ffvb1156-2-e"}
    assert "worst case (best 11)" in rows["cycles"].method


def test_undefined_cycles_are_unavailable_and_never_zero(tmp_path: Path) -> None:
    text = CSYNTH.replace(">13<", ">undef<").replace(">11<", ">undef<").replace(">4</Interval-max", ">undef</Interval-max")
    rows = {row.name: row for row in csynth_figures(write(tmp_path / "csynth.xml", text), "zcu102")}
    assert (rows["cycles"].value, rows["cycles"].provenance) == (None, "unavailable")
    assert rows["initiation_interval"].provenance == "unavailable"
    assert rows["lut"].value == 19834


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        ("<EstimatedClockPeriod>4.000</EstimatedClockPeriod>", "without .*/SummaryOfTimingAnalysis/EstimatedClockPeriod"),
        ("<TargetClockPeriod>5.00</TargetClockPeriod>", "without UserAssignments/TargetClockPeriod"),
        ("<Worst-caseLatency>13</Worst-caseLatency>", "without PerformanceEstimates/SummaryOfOverallLatency/Worst-caseLatency"),
        ("<LUT>19834</LUT>", "AreaEstimates/Resources lacks lut"),
        ("<DSP>2520</DSP>", "AreaEstimates/AvailableResources lacks dsp"),
        ("</profile>", "is no whole XML"),
    ],
)  # fmt: skip
def test_a_partial_csynth_names_what_it_lacks(tmp_path: Path, cut: str, said: str) -> None:
    assert cut in CSYNTH
    with pytest.raises(TargetError, match=said) as caught:
        csynth(write(tmp_path / "csynth.xml", CSYNTH.replace(cut, "")))
    assert "csynth.xml" in caught.value.message


def test_a_word_where_a_number_belongs_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="LUT is 'many', not a whole number"):
        csynth(write(tmp_path / "csynth.xml", CSYNTH.replace("19834", "many")))


@pytest.mark.parametrize("text", ["19.834", "-5", "nan", "inf", "1e9", "13.7", "1,98,34", "19,8345", "١٢"])
def test_what_is_no_count_is_refused_wherever_it_stands(tmp_path: Path, text: str) -> None:
    for file, old, field, read in (
        (CSYNTH, "19834", "LUT", csynth), (CSYNTH, ">13<", "PerformanceEstimates/.*/Worst-caseLatency", csynth),
        (UTILISATION, "  1234 ", r"CLB LUTs\*", utilisation), (UTILISATION, "   64 ", "DSPs", utilisation),
        (COSIM, "278", "latency", cosim), (COSIM, " 22|", "interval", cosim),
    ):  # fmt: skip
        place = old.replace(old.strip(" ><|"), text)
        with pytest.raises(TargetError, match=rf"r\.rpt: {field} is {re.escape(repr(text))}, not a whole number"):
            read(write(tmp_path / "r.rpt", file.replace(old, place)))


def test_commas_group_thousands(tmp_path: Path) -> None:
    assert csynth(write(tmp_path / "a.xml", CSYNTH.replace("19834", "1,019,834"))).used["lut"] == 1_019_834
    assert utilisation(write(tmp_path / "a.rpt", UTILISATION.replace("12.5", "1,012.5"))).used["bram"] == 2025


@pytest.mark.parametrize("text", ["12,5", "12.25", "-1", "nan", "inf"])
def test_tiles_of_block_ram_are_whole_or_half(tmp_path: Path, text: str) -> None:
    with pytest.raises(TargetError, match=rf"r\.rpt: Block RAM Tile is '{text}', not a number of tiles"):
        utilisation(write(tmp_path / "r.rpt", UTILISATION.replace("12.5", text)))


@pytest.mark.parametrize("text", ["4,000", "0", "0.00", "-4.0", "nan", "inf", "1e400", "9" * 400, "4.", "4 ns"])
def test_what_is_no_period_is_refused_wherever_it_stands(tmp_path: Path, text: str) -> None:
    for file, old, field, read in (
        (CSYNTH, ">4.000<", "EstimatedClockPeriod", csynth), (CSYNTH, ">5.00<", "TargetClockPeriod", csynth),
        (TIMING, "10.000          100", "Period", timing),
    ):  # fmt: skip
        if field == "Period" and " " in text:
            continue  # a column ends there
        place = f"{text}          100" if field == "Period" else f">{text}<"
        with pytest.raises(TargetError, match=rf"r\.rpt: (\S+/)?{field} is {re.escape(repr(text))}, not a"):
            read(write(tmp_path / "r.rpt", file.replace(old, place)))


def test_a_period_in_another_unit_is_not_taken_for_ns(tmp_path: Path) -> None:
    text = CSYNTH.replace("<unit>ns</unit><Estimated", "<unit>us</unit><Estimated")
    with pytest.raises(TargetError, match="SummaryOfTimingAnalysis/EstimatedClockPeriod is in 'us'; only ns is known"):
        csynth(write(tmp_path / "r.xml", text))


@pytest.mark.parametrize("text", ["-0,250", "nan", "-1e400", "--0.25", "x"])
def test_slack_that_is_no_time_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(TargetError, match=rf"r\.rpt: WNS is '{text}', not a time in ns"):
        timing(write(tmp_path / "r.rpt", TIMING.replace("-0.250", text)))


@pytest.mark.parametrize("text", ["10.000", "12.5"])
def test_slack_of_a_whole_period_and_more_is_no_clock(tmp_path: Path, text: str) -> None:
    with pytest.raises(TargetError, match=rf"r\.rpt: WNS is '{text}', no less than the period of 10 ns"):
        timing(write(tmp_path / "r.rpt", TIMING.replace("-0.250", text)))


@pytest.mark.parametrize(("text", "uram"), [(UTILISATION, {"uram": 3}), (SLICES, {})])
def test_vivado_counts_tiles_of_block_ram_and_figures_halves(tmp_path: Path, text: str, uram: dict[str, int]) -> None:
    found = utilisation(write(tmp_path / "vivado_synth.rpt", text))
    assert found.used == {"lut": 1234, "ff": 5678, "bram": 25, "dsp": 64, **uram}
    assert (found.tool, found.part, found.state) == ("Vivado v.2020.1", "xczu9egffvb1156-2", "Synthesized")


def test_a_utilisation_cut_off_in_the_middle_names_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"vivado_synth\.rpt: no whole report_utilization, it lacks bram, dsp"):
        utilisation(write(tmp_path / "vivado_synth.rpt", UTILISATION.split("2. BLOCKRAM")[0]))


def test_co_simulation_is_that_of_the_language_that_ran(tmp_path: Path) -> None:
    found = cosim(write(tmp_path / "top_cosim.rpt", COSIM))
    assert (found.language, found.cycles_min, found.cycles_avg, found.cycles_max) == ("Verilog", 248, 251, 278)
    assert (found.interval_min, found.interval_max) == (20, 22)


def test_one_simulated_call_has_no_interval(tmp_path: Path) -> None:
    once = COSIM.replace("|             20|             21|             22|", "|             NA|             NA|             NA|")
    found = cosim(write(tmp_path / "top_cosim.rpt", once))
    assert (found.cycles_max, found.interval_min, found.interval_max) == (278, None, None)


def test_a_failed_or_missing_co_simulation_is_no_latency(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="co-simulation of the Verilog ended with Fail"):
        cosim(write(tmp_path / "top_cosim.rpt", COSIM.replace("Pass", "Fail")))
    with pytest.raises(TargetError, match="no row of Verilog or VHDL with latencies"):
        cosim(write(tmp_path / "top_cosim.rpt", COSIM.replace("      Pass", "        NA")))


def test_timing_is_slack_against_the_period(tmp_path: Path) -> None:
    found = timing(write(tmp_path / "timing_summary.rpt", TIMING))
    assert found.part == "7z020-clg400"
    assert (found.wns, found.tns, found.whs, found.ths, found.period_ns) == (-0.25, -13.146, 0.082, 0.0, 10.0)
    (row,) = project_figures(tmp_path, "pynq-z2")
    assert (row.name, row.value) == ("fmax_mhz", round(1000 / 10.25, 2))
    assert row.where == "pynq-z2, 7z020-clg400"
    assert "period 10 ns - slack -0.25 ns, missed" in row.method


def test_slack_of_one_among_several_clocks_gives_no_frequency(tmp_path: Path) -> None:
    clock = "clk_fpga_0  {0.000 5.000}        10.000          100.000\n"
    write(tmp_path / "timing_summary.rpt", TIMING.replace(clock, clock + "  clk50  {0.000 10.000}     20.000          50.000\n"))
    (row,) = project_figures(tmp_path, "pynq-z2")
    assert row.provenance == "unavailable"
    assert "not one clock is listed" in row.method


def test_timing_without_constraint_or_cut_off_is_refused(tmp_path: Path) -> None:
    for word in ("NA", "inf"):
        with pytest.raises(TargetError, match=f"nothing is constrained: WNS is {word}"):
            timing(write(tmp_path / "t.rpt", TIMING.replace("-0.250      -13.146 ", f"{word}           {word}")))
    with pytest.raises(TargetError, match=r"the row under WNS\(ns\) is missing"):
        timing(write(tmp_path / "t.rpt", TIMING.split("     -0.250")[0]))


@pytest.mark.parametrize("read", [csynth, utilisation, cosim, timing])
def test_an_empty_and_a_missing_file_are_named(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(TargetError, match=r"report is empty"):
        read(write(tmp_path / "report", "  \n"))
    with pytest.raises(TargetError, match=r"none cannot be read"):
        read(tmp_path / "none")


def test_a_project_is_searched_and_the_nearest_to_hardware_comes_first(tmp_path: Path) -> None:
    write(
        tmp_path / "project.tcl", 'variable project_name\nset project_name "myproject"\nvariable backend\nset backend "vitis"\n'
    )
    solution = tmp_path / "myproject_prj" / "solution1"
    write(solution / "syn/report/myproject_csynth.xml", CSYNTH)
    write(solution / "syn/report/csynth.xml", CSYNTH)
    write(solution / "syn/report/dense_latency_0_0_csynth.xml", CSYNTH.replace("19834", "7"))
    write(solution / "sim/report/myproject_cosim.rpt", COSIM)
    write(tmp_path / "vivado_synth.rpt", UTILISATION)
    rows = project_figures(tmp_path, "zcu102", "head")
    luts = [row for row in rows if row.name == "lut"]
    assert [row.value for row in luts] == [1234, 19834]
    assert "Vivado v.2020.1 report_utilization (vivado_synth.rpt), Synthesized" in luts[0].method
    assert "C synthesis' estimate (myproject_csynth.xml), 5 ns asked for" in luts[1].method
    assert [row.value for row in rows if row.name == "cycles"] == [278, 13]
    assert [row.where for row in luts] == ["zcu102, xczu9egffvb1156-2", "zcu102, xczu9eg-ffvb1156-2-e"]
    assert [row.where for row in rows if "co-simulation" in row.method] == ["zcu102"] * 2, "which tells no part"
    assert {row.segment for row in rows} == {"head"}


def test_an_accelerator_project_has_its_reports_under_the_wrapper(tmp_path: Path) -> None:
    write(tmp_path / "project.tcl", 'set project_name "net"\nset backend "vivadoaccelerator"\n')
    write(tmp_path / "net_prj/solution1/syn/report/net_axi_csynth.xml", CSYNTH)
    write(tmp_path / "net_prj/solution1/syn/report/net_csynth.xml", CSYNTH.replace("19834", "7"))
    write(tmp_path / "net_vivado_accelerator/project_1.runs/impl_1/design_1_wrapper_timing_summary_routed.rpt", OF_ZCU102)
    rows = project_figures(tmp_path, "zcu102")
    assert [row.value for row in rows if row.name == "lut"] == [19834]
    assert [row.value for row in rows if row.name == "fmax_mhz"] == [97.56, 250.0]


def test_two_solutions_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "project.tcl", 'set project_name "net"\n')
    for name in ("solution1", "solution2"):
        write(tmp_path / f"net_prj/{name}/syn/report/net_csynth.xml", CSYNTH)
    with pytest.raises(TargetError, match="2 reports of one kind: net_prj/solution1") as caught:
        project_figures(tmp_path, "zcu102")
    assert "give the folder of one solution" in caught.value.hint
    assert project_figures(tmp_path / "net_prj/solution1", "zcu102")


def test_a_project_that_was_not_built_says_what_to_run(tmp_path: Path) -> None:
    write(tmp_path / "project.tcl", 'set project_name "net"\n')
    with pytest.raises(TargetError, match=r"no vendor report: looked for .*net_csynth\.xml") as caught:
        project_figures(tmp_path, "zcu102")
    assert "vitis_hls -f build_prj.tcl" in caught.value.hint


def test_a_solution_alone_is_read_by_its_project_above_or_by_the_whole_report(tmp_path: Path) -> None:
    report = tmp_path / "net_prj/solution1/syn/report"
    write(report / "net_csynth.xml", CSYNTH)
    write(report / "a_csynth.xml", CSYNTH.replace("19834", "7"))
    with pytest.raises(TargetError, match="2 reports of one kind"):
        project_figures(tmp_path / "net_prj/solution1", "zcu102")
    write(tmp_path / "project.tcl", 'set project_name "net"\n')
    assert {row.name: row.value for row in project_figures(tmp_path / "net_prj/solution1", "zcu102")}["lut"] == 19834
    (tmp_path / "project.tcl").unlink()
    write(report / "csynth.xml", CSYNTH.replace("19834", "9"))
    assert {row.name: row.value for row in project_figures(tmp_path / "net_prj/solution1", "zcu102")}["lut"] == 9


@pytest.mark.parametrize(
    ("file", "text", "part"),
    [
        ("net_csynth.xml", CSYNTH, "xczu9eg-ffvb1156-2-e"),
        ("vivado_synth.rpt", UTILISATION, "xczu9egffvb1156-2"),
        ("timing_summary_routed.rpt", OF_ZCU102, "xczu9eg-ffvb1156"),
    ],
)
def test_a_report_of_another_part_is_no_figure_of_the_board(tmp_path: Path, file: str, text: str, part: str) -> None:
    write(tmp_path / file, text)
    with pytest.raises(TargetError, match=f"{file} is a report of {part}; pynq-z2 has xc7z020clg400-1") as caught:
        project_figures(tmp_path, "pynq-z2")
    assert "for that part" in caught.value.hint
    assert {row.where for row in project_figures(tmp_path, "zcu102")} == {f"zcu102, {part}"}


@pytest.mark.parametrize("part", ["7z020clg400-1", "xc7z020clg400-1", "xc7z020-clg400-1", "XC7Z020CLG400-1"])
def test_the_part_of_the_board_is_known_however_it_is_written(tmp_path: Path, part: str) -> None:
    write(tmp_path / "vivado_synth.rpt", UTILISATION.replace("xczu9egffvb1156-2", part))
    assert {row.where for row in project_figures(tmp_path, "pynq-z2")} == {f"pynq-z2, {part}"}
    write(tmp_path / "vivado_synth.rpt", UTILISATION.replace("xczu9egffvb1156-2", part.replace("-1", "-2")))
    with pytest.raises(TargetError, match="pynq-z2 has xc7z020clg400-1"):
        project_figures(tmp_path, "pynq-z2")


def test_a_report_that_tells_no_part_is_of_the_board_that_it_was_built_for(tmp_path: Path) -> None:
    write(tmp_path / "net_csynth.xml", CSYNTH.replace("<Part>xczu9eg-ffvb1156-2-e</Part>", ""))
    assert {row.where for row in project_figures(tmp_path, "pynq-z2")} == {"pynq-z2"}
