"""FPGA: adder graphs, Verilog, and the flows that turn a fixed-point network into logic."""
