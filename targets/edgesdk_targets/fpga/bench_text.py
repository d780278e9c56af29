"""The text of test benches: a C++ main program for Verilator, and Verilog for Icarus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Side:
    """A stream as a test bench sees it: its number of beats an inference, and their width."""

    name: str
    width: int
    beats: int

    @property
    def words(self) -> int:
        """Of 32 bits, in a beat."""
        return -(-self.width // 32)


def verilator_main(top: str, come: Sequence[Side], go: Sequence[Side], patience: int) -> str:
    """The main program for Verilator. Arguments: how many inferences, whether to stall, and the seed."""
    sources = "".join(
        f'    Source {s.name}("{s.name}.in", {s.words}, {s.beats} * count);\n' for s in come
    ) + "".join(f'    Sink {m.name}("{m.name}.out", {m.words}, {m.beats} * count, {m.beats});\n' for m in go)  # fmt: skip
    give = "".join(
        f"        top.{s.name}_valid = {s.name}.offers(stalls);\n        {_set(s)}\n" for s in come
    )  # fmt: skip
    take = "".join(f"        top.{m.name}_ready = {m.name}.takes(stalls);\n" for m in go)
    after = "".join(
        f"        if (top.{s.name}_valid && top.{s.name}_ready) {{\n            {s.name}.next();\n            moved = cycle;\n"
        "            if (first < 0) first = cycle;\n        }\n"
        for s in come
    ) + "".join(
        f"        if (top.{m.name}_valid && top.{m.name}_ready) {{ {_get(m)} {m.name}.put(word, cycle); moved = cycle; }}\n"
        for m in go
    )  # fmt: skip
    finished = " && ".join(f"{m.name}.full()" for m in go)
    ends = ", ".join(f"{m.name}.ends[i]" for m in go)
    quiet = "".join(f"    top.{s.name}_valid = 0;\n" for s in come) + "".join(f"    top.{m.name}_ready = 0;\n" for m in go)
    return f"""// Gives a design its inputs beat by beat, takes its outputs, counts cycles. Arguments: inferences, stalls, seed.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>
#include "V{top}.h"
#include "verilated.h"

double sc_time_stamp() {{ return 0; }}

static uint64_t state = 1;
static bool coin() {{
    state ^= state << 13; state ^= state >> 7; state ^= state << 17;
    return state >> 63;
}}

struct Source {{
    std::vector<uint32_t> words;
    size_t width, beats, at = 0;
    bool held = false;
    Source(const char* name, size_t width, size_t beats) : words(width * beats), width(width), beats(beats) {{
        FILE* file = std::fopen(name, "rb");
        if (!file || std::fread(words.data(), 4, words.size(), file) != words.size()) {{
            std::fprintf(stderr, "%s is missing or too short\\n", name);
            std::exit(2);
        }}
        std::fclose(file);
    }}
    bool offers(bool stalls) {{
        if (at < beats && !held) held = !stalls || coin();
        return held;
    }}
    const uint32_t* word() const {{ return &words[std::min(at, beats - 1) * width]; }}
    void next() {{ ++at; held = false; }}
}};

struct Sink {{
    FILE* file;
    size_t width, beats, each, at = 0;
    std::vector<long> ends;
    Sink(const char* name, size_t width, size_t beats, size_t each)
        : file(std::fopen(name, "wb")), width(width), beats(beats), each(each) {{}}
    bool takes(bool stalls) {{ return at < beats && (!stalls || coin()); }}
    bool full() const {{ return at == beats; }}
    void put(const uint32_t* word, long cycle) {{
        std::fwrite(word, 4, width, file);
        if (++at % each == 0) ends.push_back(cycle);
        if (full()) std::fclose(file);
    }}
}};

int main(int argc, char** argv) {{
    const size_t count = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
    const bool stalls = argc > 2 && std::atoi(argv[2]);
    state = 0x9e3779b97f4a7c15ull * (argc > 3 ? std::strtoull(argv[3], nullptr, 10) + 1 : 1);
    V{top} top;
{sources}    long first = -1, moved = 0;
    top.clk = 0;
    top.rst = 1;
{quiet}    for (int i = 0; i < 4; ++i) {{
        top.clk = 0; top.eval();
        top.clk = 1; top.eval();
    }}
    top.rst = 0;
    for (long cycle = 0; !({finished}); ++cycle) {{
        top.clk = 0;
{give}{take}        top.eval();
        uint32_t small[2];
        const uint32_t* word = small;
{after}        top.clk = 1; top.eval();
        if (cycle - moved > {patience}) {{
            std::fprintf(stderr, "the design hangs: no beat in {patience} cycles before cycle %ld\\n", cycle);
            return 1;
        }}
    }}
    FILE* file = std::fopen("cycles.txt", "w");
    std::fprintf(file, "%ld\\n", first);
    for (size_t i = 0; i < count; ++i) {{
        long last = 0;
        for (long end : {{{ends}}}) last = std::max(last, end);
        std::fprintf(file, "%ld\\n", last);
    }}
    std::fclose(file);
    return 0;
}}
"""


def _set(side: Side) -> str:
    name = side.name
    if side.words > 2:
        return f"for (size_t i = 0; i < {side.words}; ++i) top.{name}_data[i] = {name}.word()[i];"
    high = f" | (uint64_t){name}.word()[1] << 32" if side.words == 2 else ""
    return f"top.{name}_data = {name}.word()[0]{high};"


def _get(side: Side) -> str:
    data = f"top.{side.name}_data"
    if side.words > 2:
        return f"word = &{data}[0];"
    high = f" small[1] = {data} >> 32;" if side.words == 2 else ""
    return f"small[0] = (uint32_t){data};{high} word = small;"


def icarus_bench(
    name: str, top: str, come: Sequence[Side], go: Sequence[Side], count: int, patience: int, stalls: bool, seed: int
) -> str:
    """The test bench for Icarus; inputs are set on falling edges, so that nothing depends on an order of events."""
    ports = "".join(
        f", .{one.name}_valid({one.name}_valid), .{one.name}_ready({one.name}_ready), .{one.name}_data({one.name}_data)"
        for one in (*come, *go)
    )
    declared = drive = passed = opened = ""
    coin = "$random(seed) >= 0" if stalls else "1"
    for one in come:
        n, total = one.name, one.beats * count
        declared += f"""    reg {n}_valid = 0, {n}_taken = 0;
    wire {n}_ready;
    reg [{one.width - 1}:0] {n}_data;
    reg [{32 * one.words - 1}:0] {n}_beats [0:{total - 1}];
    integer {n}_at = 0;
"""
        opened += f'        $readmemh("{n}.in", {n}_beats);\n'
        drive += f"""            if (!{n}_valid || {n}_taken) {n}_valid = {n}_at < {total} && ({coin});
            {n}_taken = 0;
            if ({n}_valid) {n}_data = {n}_beats[{n}_at];
"""
        passed += f"""            if ({n}_valid && {n}_ready) begin
                {n}_at = {n}_at + 1;
                {n}_taken = 1;
                moved = cycle;
                if (first < 0) first = cycle;
            end
"""
    for one in go:
        n, total = one.name, one.beats * count
        declared += f"""    wire {n}_valid;
    reg {n}_ready = 0;
    wire [{one.width - 1}:0] {n}_data;
    integer {n}_at = 0, {n}_file;
"""
        opened += f'        {n}_file = $fopen("{n}.out", "w");\n'
        drive += f"            {n}_ready = {n}_at < {total} && ({coin});\n"
        passed += f"""            if ({n}_valid && {n}_ready) begin
                $fdisplay({n}_file, "%h", {n}_data);
                {n}_at = {n}_at + 1;
                moved = cycle;
                if ({n}_at % {one.beats} == 0 && ends[{n}_at / {one.beats} - 1] < cycle) ends[{n}_at / {one.beats} - 1] = cycle;
            end
"""
    finished = " && ".join(f"{one.name}_at == {one.beats * count}" for one in go)
    closed = "".join(f"        $fclose({one.name}_file);\n" for one in go)
    return f"""// Gives a design its inputs beat by beat, takes its outputs, and counts cycles.
`timescale 1ns / 1ps
module {name};
    reg clk = 0, rst = 1;
    integer cycle = 0, first = -1, moved = 0, seed = {seed}, i, file;
    integer ends [0:{count - 1}];
{declared}
    {top} dut (.clk(clk), .rst(rst){ports});

    initial begin
{opened}        for (i = 0; i < {count}; i = i + 1) ends[i] = -1;
        repeat (4) begin #5 clk = 1; #5 clk = 0; end
        rst = 0;
        while (!({finished})) begin
{drive}            #4;
{passed}            #1 clk = 1;
            #5 clk = 0;
            cycle = cycle + 1;
            if (cycle - moved > {patience}) begin
                $display("the design hangs: no beat in {patience} cycles before cycle %0d", cycle);
                $finish_and_return(1);
            end
        end
{closed}        file = $fopen("cycles.txt", "w");
        $fdisplay(file, "%0d", first);
        for (i = 0; i < {count}; i = i + 1) $fdisplay(file, "%0d", ends[i]);
        $fclose(file);
        $finish(0);
    end
endmodule
"""
