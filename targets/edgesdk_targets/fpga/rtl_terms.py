"""What a design is made of, counted in its own Verilog: what the constants of the estimate (`rtl_constants.toml`) multiply.

Kernels are read net by net (`rtl_kernel_terms`), modules of the firmware by the parameters of their instances
(`rtl_module_terms`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from . import rtl_kernel_terms, rtl_module_terms
from .rtl_counts import Terms

QUEUE = "edgesdk_fifo"
"""It is ready by what it holds, whatever comes behind it."""
_INSTANCE = re.compile(r"^ *(?P<module>\w+) (?:#\((?P<parameters>.*?)\) )?(?P<name>\w+) \(\.clk", re.MULTILINE)
_PARAMETER = re.compile(r"\.([A-Z_]+)\((?:\d+'h([0-9a-f]+)|(-?\d+)|\"[^\"]*\")\)")


def terms(files: Mapping[str, bytes]) -> tuple[Terms, ...]:
    """The terms of each stage, and of the wiring between them and to the ports (`network`, `network_serial`)."""
    texts = {name[:-2]: data.decode() for name, data in files.items() if name.endswith(".v") and not name.startswith("edgesdk_")}
    found = []
    for name, text in sorted(texts.items()):
        if name.endswith("_kernel"):
            continue
        made, parts, run, longest = Terms(name), 0, 0, 0
        for module, given in instances(text):
            if module.endswith("_kernel"):
                rtl_kernel_terms.add(made, texts[module])
            else:
                known = rtl_module_terms.add(made, module, given)
                parts += known
                run = 0 if module == QUEUE else run + known
                longest = max(longest, run)
        made.luts("modules", parts)
        if parts:  # `ready` runs through all parts of a stage up to a queue, and stops or moves all of its registers
            made.paths.append({"enable": 1, "logic": longest, "fan_out": math.log2(1 + sum(made.ff.values()))})
        found.append(made)
    return tuple(found)


def instances(text: str) -> Iterator[tuple[str, Mapping[str, int]]]:
    """Modules that a module holds, each with its whole-number parameters."""
    for one in _INSTANCE.finditer(text):
        given = _PARAMETER.findall(one["parameters"] or "")
        yield one["module"], {name: int(hexa, 16) if hexa else int(whole or 0) for name, hexa, whole in given}
