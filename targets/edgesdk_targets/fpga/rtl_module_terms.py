"""What the firmware's modules are made of, by the parameters of their instances."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .rtl_counts import Terms


def add(made: Terms, module: str, given: Mapping[str, int]) -> bool:
    """Count an instance into the terms of its stage; False for a module that is none of the firmware's."""
    if module not in _PARTS:
        return False
    _PARTS[module](made, given)
    return True


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
    made.luts("address_bits", p["ABITS"])
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
