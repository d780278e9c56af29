"""The fastest clock that a part can be given at all, whatever logic it drives."""

from __future__ import annotations

import re

SERIES_7 = {"1": 464.0, "2": 628.0}
"""F_MAX_BUFG, the global clock tree, by speed grade: AMD DS189 (Spartan-7), the fabric of Artix-7 and the Zynq-7020."""
ULTRASCALE_PLUS = {"1": 667.0, "2": 775.0, "3": 891.0}
"""F_MAX of a global clock tree (BUFG), by speed grade: AMD DS922 (Kintex) and DS925 (Zynq UltraScale+), clock buffers."""
FASTEST = 891.0
"""Of all of these: for parts that are not listed here, whose own limit is lower or not known."""
_FAMILIES = ((re.compile(r"xc7[asz]"), SERIES_7), (re.compile(r"xc(?:zu|u\d|vu\d+p|ku\d+p|au)"), ULTRASCALE_PLUS))
_GRADE = re.compile(r"-(\d)L?(?:V|-|E|I|C|$)", re.IGNORECASE)


def fastest_mhz(part: str) -> float:
    """Of a part by its full name (`xc7z020clg400-1`, `xczu9eg-ffvb1156-2-e`)."""
    name = part.lower()
    for family, by_grade in _FAMILIES:
        if family.match(name):
            grade = _GRADE.search(name)
            return by_grade.get(grade[1] if grade else "", max(by_grade.values()))
    return FASTEST
