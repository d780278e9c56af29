"""Cuts as people read them: what a model's cuts are together, a table of those worth a look, and JSON of all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgesdk_targets import runner

from . import cut_chart
from .cut_chart import in_short
from .text import table, wrap

if TYPE_CHECKING:
    from edgesdk_converters.model import Model
    from edgesdk_converters.split import Cut

FORMAT = "edgesdk-cuts/1"


@dataclass(frozen=True)
class Survey:
    """All cuts of a model in graph order, those that no other beats, and the two ends that no cut is."""

    model: str
    cuts: tuple[Cut, ...]
    front: tuple[Cut, ...]
    offload: Cut
    local: Cut
    folded: bool = False

    def head_share(self, cut: Cut) -> float:
        """A head's share of the work, 0 to 1: what both sides compute counts for both, so it is held below 1."""
        return min(1.0, cut.head_macs / max(1, self.local.head_macs))


def survey(
    model: str | os.PathLike[str] | Model,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, float] | None = None,
    pairs: bool = False,
    fold: bool = False,
    progress: Callable[[str], None] = runner.silent,
) -> Survey:
    """The cuts of a model as it is, or folded as an export does first. Raises ModelError where shapes are not static."""
    from edgesdk_converters import split

    source = opened(model, shapes=shapes, constants=constants, fold=fold, progress=progress)
    progress("looking for cuts")
    found = split.cuts(source, pairs=pairs)
    return Survey(source.name, found, split.front(found), *split.extremes(source), folded=fold)


def opened(
    model: str | os.PathLike[str] | Model,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, float] | None = None,
    fold: bool = False,
    progress: Callable[[str], None] = runner.silent,
) -> Model:
    """The model as it is, or folded as an export does first."""
    from .sources import open_model

    progress("loading the model")
    source = open_model(model, shapes=shapes, constants=constants)
    if fold:
        from edgesdk_converters.calibration import Samples
        from edgesdk_converters.fold import Fold
        from edgesdk_converters.passes import Given

        progress("pass fold")
        source = Fold()(source, Given(source, Samples({}, "no samples")))
    return source


def data(found: Survey, bits: int) -> dict[str, Any]:
    """All cuts, JSON-ready; `front` says of each whether no other has fewer bytes for as little work in the head."""
    return {
        "format": FORMAT,
        "model": found.model,
        "folded": found.folded,
        "bits": bits,
        "cuts": [_entry(cut, bits) | {"front": cut in found.front} for cut in found.cuts],
        "offload": _entry(found.offload, bits),
        "local": _entry(found.local, bits),
    }


def shown(found: Survey, bits: int, every: bool) -> str:
    """A table of the cuts that no other beats, or of `every` one, between the two ends; and all of them drawn."""
    listed = found.cuts if every else found.front
    whole = found.local.head_macs
    lines = wrap(
        f"{found.model}{', folded' if found.folded else ''}: {in_short(whole)} MACs, {in_short(found.local.head_params)} "
        f"parameters; {_counted(found)}"
    )
    if found.cuts:
        kind = "every cut, with * those" if every else "the cuts"
        lines += wrap(f"{kind} that no other beats in bytes and in the head's work; MACs and parameters of head/tail")
    rows = [_row(found, found.offload, "offload: the input crosses", bits, every)]
    rows += [_row(found, cut, _titled(cut), bits, every) for cut in listed]
    rows.append(_row(found, found.local, "local: the output crosses", bits, every))
    heads = ("head", "MACs", "parameters", "bytes", "of input", "int8", f"{bits} bits", "what crosses")
    lines += ["", *table(heads, _without_repeats(rows))]
    if not found.cuts:
        lines += ["", *wrap("no tensor has all paths through it: --pairs looks for two")]
    else:
        lines += ["", *cut_chart.text(found)]
    if not found.folded:
        lines += ["", *wrap("an export folds the model first, and some names are gone then: --fold lists what --split can take")]
    return "\n".join(lines)


def _counted(found: Survey) -> str:
    single = sum(len(cut.tensors) == 1 for cut in found.cuts)
    pairs = len(found.cuts) - single
    told = f"{single} cut{'' if single == 1 else 's'} of one tensor"
    return told + (f", {pairs:,} of two" if pairs else "")


def _titled(cut: Cut) -> str:
    crossing = []
    for name, operator, dtype, shape in zip(cut.tensors, cut.operators, cut.dtypes, cut.shapes, strict=True):
        kind = "" if dtype == "float32" else f" {dtype}"
        crossing.append(f"{name} ({operator} {'x'.join(map(str, shape)) or 'scalar'}{kind})")
    return " + ".join(crossing)


def _row(found: Survey, cut: Cut, title: str, bits: int, every: bool) -> tuple[str, ...]:
    share = cut.head_macs / max(1, found.local.head_macs)
    return (
        f"{share:.1%}" + (" *" if every and cut in found.front else ""),
        f"{in_short(cut.head_macs)}/{in_short(cut.tail_macs)}",
        f"{in_short(cut.head_params)}/{in_short(cut.tail_params)}",
        in_short(cut.bytes),
        f"{cut.bytes / max(1, found.offload.bytes):.0%}" if cut.bytes >= 0.1 * found.offload.bytes
        else f"{cut.bytes / max(1, found.offload.bytes):.1%}",
        in_short(cut.bytes_at(8)),
        in_short(cut.bytes_at(bits)),
        title,
    )  # fmt: skip


def _without_repeats(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Where all numbers are those of the row above, the same information crosses in another form: a ditto mark for them."""
    told: list[tuple[str, ...]] = []
    for above, row in zip((None, *rows), rows, strict=False):
        same = above is not None and [cell.rstrip(" *") for cell in row[:-1]] == [cell.rstrip(" *") for cell in above[:-1]]
        marks = ('" *' if row[0].endswith("*") else '"', *[""] * (len(row) - 2))
        told.append((*(marks if same else row[:-1]), row[-1]))
    return told


def _entry(cut: Cut, bits: int) -> dict[str, Any]:
    return {
        "tensors": list(cut.tensors),
        "operators": list(cut.operators),
        "shapes": [list(shape) for shape in cut.shapes],
        "dtypes": list(cut.dtypes),
        "elements": cut.elements,
        "bytes": cut.bytes,
        "bytes_fp32": cut.bytes_at(32),
        "bytes_int8": cut.bytes_at(8),
        "bytes_bits": cut.bytes_at(bits),
        "head_macs": cut.head_macs,
        "tail_macs": cut.tail_macs,
        "head_params": cut.head_params,
        "tail_params": cut.tail_params,
        "head_nodes": cut.head_nodes,
        "tail_nodes": cut.tail_nodes,
    }
