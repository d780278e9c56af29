"""A fully connected network as one line of text, for estimates before there is a model: `dense:16-64-32-5@8bit`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from edgesdk_converters.errors import RecipeError

from .hls4ml_terms import WORD_BITS, FixedLayer

FORM = "dense:16-64-32-5@8bit"
LARGEST = 65_536
WIDEST_BITS = 32
_SPEC = re.compile(r"dense:(?P<sizes>[^@]*)@(?P<bits>[^,]*)bits?(?P<rest>,.*)?", re.DOTALL)


def parse(text: str, activation_bits: int = 0, accumulator_bits: int = 0) -> tuple[FixedLayer, ...]:
    """The layers of `dense:SIZES@Nbit`: inputs, hidden layers and outputs joined by hyphens, weights of N bits.

    A ReLU stands behind every layer but the last, with `,relu` behind that one too. Activations and sums whose bits are 0 have
    the 16 of the results that the estimate was fitted on. Raises RecipeError for other text.
    """
    values, sums = activation_bits or WORD_BITS, accumulator_bits or WORD_BITS
    found = _SPEC.fullmatch(text.strip().lower())
    if found is None:
        raise RecipeError(f"{text!r} is no network of the form {FORM}", f"e.g. {FORM} or {FORM},relu")
    rest = found["rest"]
    if rest not in (None, ",relu"):
        raise RecipeError(f"{text!r}: {rest[1:]!r} is not known behind the bits, only relu is", f"e.g. {FORM},relu")
    sizes = [_number(text, size, "size", LARGEST) for size in found["sizes"].split("-")]
    bits = _number(text, found["bits"], "number of bits", WIDEST_BITS)
    if len(sizes) < 2:
        raise RecipeError(f"{text!r} has one size only, which is no layer", f"give inputs and outputs at least, as in {FORM}")
    layers = []
    for index, (n_in, n_out) in enumerate(itertools.pairwise(sizes), 1):
        layers.append(FixedLayer(f"dense_{index}", "dense", n_in, n_out, bits, values, sums))
        if index < len(sizes) - 1 or rest:
            layers.append(FixedLayer(f"relu_{index}", "activation", n_out, n_out, 0, values, values))
    return tuple(layers)


def check_settings(text: str, settings: Mapping[str, str]) -> None:
    """Raise RecipeError for options that say again what the text says."""
    if "bits" in settings:
        raise RecipeError(f"{text} says its bits itself, --set bits={settings['bits']} would say them again", "leave it out")


def _number(text: str, part: str, what: str, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", part, re.ASCII) or not 1 <= int(part) <= most:
        raise RecipeError(f"{text!r}: {part!r} is no {what} from 1 to {most:,}", f"the form is {FORM}")
    return int(part)
