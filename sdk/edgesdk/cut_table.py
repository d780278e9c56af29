"""Cuts as people read them: a table of those worth a look, bytes drawn over the head's work, and JSON of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .text import table, wrap

if TYPE_CHECKING:
    from edgesdk_converters.split import Cut

FORMAT = "edgesdk-cuts/1"
WIDTH, LONGEST = 20, 24
"""Characters of the longest bar, and of a name."""


def data(name: str, found: Sequence[Cut], ends: Sequence[Cut], bits: int) -> dict[str, Any]:
    """All cuts in graph order, JSON-ready; `offload` and `local` are what no cut is."""
    offload, local = ends
    return {
        "format": FORMAT,
        "model": name,
        "bits": bits,
        "cuts": [_entry(cut, bits) for cut in found],
        "offload": _entry(offload, bits),
        "local": _entry(local, bits),
    }


def shown(name: str, found: Sequence[Cut], best: Sequence[Cut], ends: Sequence[Cut], bits: int, every: bool) -> str:
    """The table: those of `best` (no other has fewer bytes for as little work in the head), or all, between the two ends."""
    offload, local = ends
    whole = max(1, local.head_macs)
    listed = [("offload", offload), *(("+".join(cut.tensors), cut) for cut in (found if every else best)), ("local", local)]
    most = max(cut.bytes for _, cut in listed) or 1
    rows = []
    for title, cut in listed:
        bar = "#" * max(1, round(WIDTH * cut.bytes / most)) if cut.bytes else ""
        shape = " ".join("x".join(map(str, one)) or "scalar" for one in cut.shapes)
        rows.append(
            (title if len(title) <= LONGEST else f"…{title[1 - LONGEST:]}", shape, _short(cut.bytes), _short(cut.bytes_at(8)),
             _short(cut.bytes_at(bits)), f"{cut.head_macs / whole:.1%}", _short(cut.head_params), bar)
        )  # fmt: skip
    heads = ("cut", "shape", "bytes", "int8", f"{bits} bits", "MACs", "params", "bytes")
    kind = "all" if every else "those that no other beats in both bytes and head work"
    lines = [f"{name}: {len(found)} cuts, {kind}; {whole:,} MACs and {local.head_params:,} weights in all"]
    lines += [
        "MACs and params are the head's; bytes are what crosses, as it is and with 8 or fewer bits a value",
        *table(heads, rows),
    ]
    if not found:
        lines += wrap("no tensor has all paths through it: --pairs looks for two")
    return "\n".join(lines)


def _short(count: int) -> str:
    """A count in three digits."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def _entry(cut: Cut, bits: int) -> dict[str, Any]:
    return {
        "tensors": list(cut.tensors),
        "shapes": [list(shape) for shape in cut.shapes],
        "dtypes": list(cut.dtypes),
        "bytes": cut.bytes,
        "bytes_int8": cut.bytes_at(8),
        "bytes_bits": cut.bytes_at(bits),
        "head_macs": cut.head_macs,
        "tail_macs": cut.tail_macs,
        "head_params": cut.head_params,
        "tail_params": cut.tail_params,
        "head_nodes": cut.head_nodes,
        "tail_nodes": cut.tail_nodes,
    }
