"""Counts of a stage by the constant that multiplies them, and where a memory of a given size comes to lie.

Rules of yosys' synth_ecp5 that decide between kinds of cells are followed: sums of more than 4 bits take carry cells, two bits
each; memories go to block RAM, distributed RAM or logic by the costs that memory_libmap has for them (yosys 0.23, share/ecp5).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
