"""What a design is made of, counted in its own Verilog: what the constants of the estimate (`rtl_constants.toml`) multiply.

Kernels are read net by net (`rtl_kernel_terms`), modules of the firmware by the parameters of their instances. Rules of yosys'
synth_ecp5 that decide between kinds of cells are followed: sums of more than 4 bits take carry cells, two bits each; memories go
to block RAM, distributed RAM or logic by the costs that memory_libmap has for them (yosys 0.23, share/ecp5).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

NARROW_SUM_BITS = 4
"""Up to which a sum takes look-up tables rather than carry cells (share/ecp5/arith_map.v)."""
SHAPES = ((16384, 1), (8192, 2), (4096, 4), (2048, 9), (1024, 18), (512, 36))
"""Words and bits of an EBR (share/ecp5/brams.txt)."""
BLOCK_COST, DISTRIBUTED_COST = 128, 4
"""Of an EBR, and of a distributed RAM of 16 words of 4 bits (share/ecp5/brams.txt, lutrams.txt)."""
LOGIC_COST_RAM, LOGIC_COST_ROM = 1.0, 1 / 16
"""Of a bit of a memory made of logic (yosys memory_libmap)."""
CHOICE_COST = 0.4
"""Of a bit of the choice among distributed RAMs: with it 45 memories of 32 to 256 words lie where yosys put them."""
CHOICE_LUTS = (0, 1, 4, 8, 34)
"""For each bit of the choice among 1, 2, 4, 8, 16 distributed RAMs, in the same memories; and as much for each 16 of more."""

Way: TypeAlias = Mapping[str, float]
"""What a signal passes between two registers, by the name of the delay that multiplies it."""
_INSTANCE = re.compile(r"^ *(?P<module>\w+) (?:#\((?P<parameters>.*?)\) )?(?P<name>\w+) \(\.clk", re.MULTILINE)
_PARAMETER = re.compile(r"\.([A-Z_]+)\((?:\d+'h([0-9a-f]+)|(-?\d+)|\"[^\"]*\")\)")


@dataclass
class Terms:
    """Counts of one stage, by the name of the constant that multiplies them, and the ways between its registers.

    Of `output_bits` that its kernels give, `constant_bits` never change: synthesis also removes what hangs on them.
    """

    stage: str
    lut: dict[str, float] = field(default_factory=dict)
    ff: dict[str, float] = field(default_factory=dict)
    dsp: int = 0
    bram: int = 0
    paths: list[Way] = field(default_factory=list[Way])
    constant_bits: int = 0
    output_bits: int = 0

    @property
    def constant_share(self) -> float:
        return self.constant_bits / max(1, self.output_bits)

    def luts(self, name: str, count: float) -> None:
        if count:
            self.lut[name] = self.lut.get(name, 0.0) + count

    def ffs(self, name: str, count: float) -> None:
        if count:
            self.ff[name] = self.ff.get(name, 0.0) + count

    def sums(self, bits: int, count: int = 1) -> None:
        """Adders or comparators."""
        if bits > NARROW_SUM_BITS:
            self.luts("carry_bits", count * 2 * math.ceil(bits / 2))
            self.luts("carry_chains", count)
        else:
            self.luts("narrow_sum_bits", count * bits)

    def counters(self, *bits: int) -> None:
        """Each counts up, and from its end to its beginning."""
        for one in bits:
            self.sums(one)
            self.luts("counter_bits", one)
            self.ffs("counter_bits", one)

    def memory(self, words: int, bits: int, kind: Literal["ram", "rom"] = "ram", registered: bool = True) -> str:
        """A memory that is read at one place; `registered`: in a clocked process. Returns where it lies."""
        if words == 1:
            self.ffs("memory_word_bits", bits if kind == "ram" else 0)
            return "logic"
        place, count = placement(words, bits, kind, registered)
        if place == "block":
            self.bram += count
            self.luts("block_choice", bits * (_blocks(words, bits)[0] - 1))
            if kind == "ram":  # what is written in the cycle in which it is read goes around the memory
                self.luts("bypass_bits", bits)
                self.ffs("bypass_bits", 2 * bits + math.ceil(math.log2(words)))
        elif place == "distributed":
            self.luts("distributed_ram", count)
            self.luts("distributed_choice", bits * _choice(math.ceil(words / 16)))
        elif kind == "ram":
            self.luts("logic_ram_bits", words * bits)
            self.ffs("logic_ram_bits", words * bits)
        else:
            self.luts("rom_luts", bits * 2.0 ** max(0, math.ceil(math.log2(words)) - 4))
        if registered and place != "block":
            self.ffs("memory_word_bits", bits)
        return place


def placement(words: int, bits: int, kind: Literal["ram", "rom"] = "ram", registered: bool = True) -> tuple[str, int]:
    """`block`, `distributed` or `logic`, the cheapest as memory_libmap reckons, and how many EBRs or RAMs of 16 x 4 it takes."""
    small, (_, blocks, price) = math.ceil(words / 16) * math.ceil(bits / 4), _blocks(words, bits)
    costs = {"logic": words * bits * (LOGIC_COST_RAM if kind == "ram" else LOGIC_COST_ROM)}
    if kind == "ram":
        costs["distributed"] = small * DISTRIBUTED_COST + CHOICE_COST * bits * (math.ceil(words / 16) - 1)
    if registered:
        costs["block"] = price
    place = min(costs, key=lambda name: costs[name])
    return place, {"block": blocks, "distributed": small, "logic": 0}[place]


def _blocks(words: int, bits: int) -> tuple[int, int, float]:
    """Of the cheapest shape how many EBRs lie behind each other for a bit, how many there are in all, and what they cost."""
    each = [(math.ceil(words / deep), math.ceil(bits / wide)) for deep, wide in SHAPES]
    priced = [(rows, rows * columns, BLOCK_COST * rows * columns + CHOICE_COST * bits * (rows - 1)) for rows, columns in each]
    return min(priced, key=lambda one: one[2])


def _choice(rams: int) -> int:
    """LUTs for each bit of the choice among distributed RAMs."""
    return CHOICE_LUTS[(rams - 1).bit_length()] if rams <= 16 else CHOICE_LUTS[-1] * math.ceil(rams / 16)


def terms(files: Mapping[str, bytes]) -> tuple[Terms, ...]:
    """The terms of each stage, and of the wiring between them and to the ports (`network`, `network_serial`)."""
    from . import rtl_kernel_terms

    texts = {name[:-2]: data.decode() for name, data in files.items() if name.endswith(".v") and not name.startswith("edgesdk_")}
    found = []
    for name, text in sorted(texts.items()):
        if name.endswith("_kernel"):
            continue
        made, parts = Terms(name), 0
        for module, given in instances(text):
            if module.endswith("_kernel"):
                rtl_kernel_terms.add(made, texts[module])
            elif module in _PARTS:
                parts += 1
                _PARTS[module](made, given)
        made.luts("modules", parts)
        if parts:  # `ready` runs through all parts of a stage, and stops or moves all of its registers
            made.paths.append({"enable": 1, "logic": parts, "fan_out": math.log2(1 + sum(made.ff.values()))})
        found.append(made)
    return tuple(found)


def total(found: Iterable[Terms]) -> Terms:
    """Of all stages together."""
    whole = Terms("total")
    for one in found:
        for name, count in one.lut.items():
            whole.luts(name, count)
        for name, count in one.ff.items():
            whole.ffs(name, count)
        whole.dsp += one.dsp
        whole.bram += one.bram
        whole.paths += one.paths
        whole.constant_bits += one.constant_bits
        whole.output_bits += one.output_bits
    return whole


def slowest(paths: Sequence[Way]) -> list[Way]:
    """Without the paths that pass no more of anything than another one does."""
    kept: list[Way] = []
    for path in sorted(paths, key=lambda one: -sum(one.values())):
        if not any(all(other.get(name, 0.0) >= count for name, count in path.items()) for other in kept):
            kept.append({name: count for name, count in path.items() if count})
    return kept


def instances(text: str) -> Iterator[tuple[str, Mapping[str, int]]]:
    """Modules that a module holds, each with its whole-number parameters."""
    for one in _INSTANCE.finditer(text):
        given = _PARAMETER.findall(one["parameters"] or "")
        yield one["module"], {name: int(hexa, 16) if hexa else int(whole or 0) for name, hexa, whole in given}


def _pipe(made: Terms, p: Mapping[str, int]) -> None:
    made.ffs("control", p["LATENCY"])


def _skid(made: Terms, p: Mapping[str, int]) -> None:
    made.luts("skid_bits", p["WIDTH"])
    made.ffs("beat_bits", 2 * p["WIDTH"] + 2)


def _fifo(made: Terms, p: Mapping[str, int]) -> None:
    made.memory(p["DEPTH"], p["WIDTH"])
    made.counters(p["ABITS"], p["ABITS"], p["ABITS"] + 1)
    made.ffs("control", 1)


def _fork(made: Terms, p: Mapping[str, int]) -> None:
    made.luts("control", 2 * p["COUNT"])
    made.ffs("control", p["COUNT"])


def _count(made: Terms, p: Mapping[str, int]) -> None:
    made.counters(p["CBITS"])


def _widen(made: Terms, p: Mapping[str, int]) -> None:
    made.ffs("beat_bits", p["WIDTH"] * p["RATIO"] + 1)
    made.counters(p["CBITS"])


def _narrow(made: Terms, p: Mapping[str, int]) -> None:
    made.luts("narrow_bits", p["WIDTH"] * (p["RATIO"] - 1))
    made.ffs("beat_bits", p["WIDTH"] * p["RATIO"] + 1)
    made.counters(p["CBITS"])


def _tree(made: Terms, count: int, bits: int, greatest: bool, lanes: int) -> None:
    while count > 1:
        half, pairs = (count + 1) // 2, count // 2
        wide = bits if greatest else bits + 1
        made.sums(wide, pairs * lanes)
        made.luts("choice_bits", pairs * lanes * bits if greatest else 0)
        made.ffs("tree_bits", half * lanes * wide)
        made.paths.append({"sum": 1, "carry_bits": wide, "choice": float(greatest)})
        count, bits = half, wide


def _macs(made: Terms, p: Mapping[str, int]) -> None:
    ins, outs, lanes = p["INS"], p["OUTS"], p["INS"] * p["OUTS"]
    product = p["WIDTH"] + (not p["SIGNED"]) + p["WBITS"]
    place = made.memory(p["DEPTH"], lanes * p["WBITS"], "rom")
    made.memory(p["TURNS"], outs * p["BBITS"], "rom")
    made.ffs("operand_bits", lanes * p["WBITS"] + 2 * (outs if p["DEPTHWISE"] else ins) * p["WIDTH"])
    made.ffs("product_bits", lanes * product)
    made.ffs("sum_bits", outs * p["SUM"])
    made.ffs("control", 3 * (3 + p["LEVELS"]) + 1)
    made.counters(p["ABITS"], *([p["TBITS"]] if p["TURNS"] > 1 else []))
    made.dsp += lanes
    _tree(made, ins, product, False, outs)
    made.sums(p["SUM"], outs)
    made.luts("accumulator_bits", outs * p["SUM"])
    made.paths += [
        {"choice": 1, "sum": 1, "carry_bits": p["SUM"]},
        {"multiplier": 1, "fan_out": math.log2(1 + outs), "lanes": math.log2(1 + lanes)},
        {"block_ram" if place == "block" else "rom": 1},
    ]


def _reader(made: Terms, p: Mapping[str, int]) -> None:
    made.memory(1 << p["ABITS"], p["WIDTH"])
    made.counters(p["CBITS"])
    made.ffs("counter_bits", 2 * p["CBITS"])
    made.sums(p["CBITS"], 3)
    loops = [size for size in (p["INNER"], p["COLS"], p["ROWS"], p["OUTER"], p["OUT_COLS"], p["OUT_ROWS"]) if size > 1]
    made.counters(*([p["LBITS"]] * len(loops)))
    made.luts("step_bits", p["CBITS"] * len(loops))
    made.ffs("control", 3 + p["PADDED"])
    if p["PADDED"]:
        made.luts("pad_bits", p["WIDTH"])
        made.counters(p["LBITS"] + 1, p["LBITS"] + 1)
        made.sums(p["LBITS"] + 1, 6)
    made.paths.append({"reader": 1, "logic": len(loops), "sum": 1.0 + p["PADDED"], "carry_bits": p["CBITS"]})


def _window(made: Terms, p: Mapping[str, int]) -> None:
    padded = p["TOP"] + p["LEFT"] + p["BOTTOM"] + p["RIGHT"] > 0
    if p["ROWS"] > 1:
        made.memory(p["LEFT"] + p["COLUMNS"] + p["RIGHT"], (p["ROWS"] - 1) * p["WIDTH"])
        made.ffs("counter_bits", p["XBITS"])
    made.ffs("window_bits", (1 + p["ROWS"] * p["COLS"]) * p["WIDTH"])
    made.ffs("control", 3)
    made.counters(p["XBITS"], p["XBITS"], p["YBITS"], p["YBITS"])
    made.luts("pad_bits", p["WIDTH"] if padded else 0)
    if padded:
        made.sums(p["XBITS"] + 1, 2)
        made.sums(p["YBITS"] + 1, 2)
    made.paths.append({"window": 1, "logic": 2, "sum": 1.0 + padded, "carry_bits": max(p["XBITS"], p["YBITS"])})


def _combine(made: Terms, p: Mapping[str, int], lanes: int) -> None:
    made.sums(p["OUT"], lanes)
    made.luts("choice_bits" if p["MAX"] else "limit_bits", lanes * p["OUT"])
    made.paths.append({"choice": 1, "sum": 1, "carry_bits": p["OUT"]})


def _accumulate(made: Terms, p: Mapping[str, int]) -> None:
    _combine(made, p, p["LANES"])
    made.ffs("sum_bits", p["LANES"] * p["OUT"])
    made.ffs("control", 1)


def _pool_all(made: Terms, p: Mapping[str, int]) -> None:
    _combine(made, p, p["LANES"])
    made.memory(p["FOLDS"], p["LANES"] * p["OUT"], registered=False)
    made.ffs("sum_bits", p["LANES"] * p["OUT"])
    made.ffs("control", 1)
    made.counters(p["PBITS"], *([p["FBITS"]] if p["FOLDS"] > 1 else []))


def _pool_window(made: Terms, p: Mapping[str, int]) -> None:
    made.ffs("control", p["LEVELS"])
    _tree(made, p["TAPS"], p["WIDTH"] + (not p["SIGNED"]), bool(p["MAX"]), p["LANES"])


def _reorder(made: Terms, p: Mapping[str, int]) -> None:
    made.memory(2 << p["ABITS"], p["WIDTH"])
    made.memory(p["COUNT"], p["ABITS"] + 1, "rom")
    made.counters(p["ABITS"], p["ABITS"])
    made.luts("pad_bits", p["WIDTH"])
    made.luts("control", 8)
    made.ffs("control", 9)


def _shift(made: Terms, p: Mapping[str, int]) -> None:
    made.memory(p["TURNS"], p["LANES"] * p["SBITS"], "rom")
    made.luts("shift_bits", p["LANES"] * p["OUT"] * p["SBITS"])
    made.ffs("sum_bits", p["LANES"] * p["OUT"])
    made.ffs("control", 1)
    made.counters(p["TBITS"])
    made.paths.append({"rom": 1, "choice": p["SBITS"]})


_PARTS = {
    "edgesdk_pipe": _pipe, "edgesdk_skid": _skid, "edgesdk_fifo": _fifo, "edgesdk_fork": _fork, "edgesdk_widen": _widen,
    "edgesdk_narrow": _narrow, "edgesdk_macs": _macs, "edgesdk_reader": _reader, "edgesdk_window": _window,
    "edgesdk_accumulate": _accumulate, "edgesdk_pool_all": _pool_all, "edgesdk_pool_window": _pool_window,
    "edgesdk_reorder": _reorder, "edgesdk_shift": _shift, "edgesdk_count": _count,
}  # fmt: skip
