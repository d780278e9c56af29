"""Windows over images: what a layer sees of its source, and the two ways of reading it: side by side, or beat by beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgesdk_converters.integer_program import Conv, Dense, IntegerProgram, Integers, Pool, Shape

from .segments import refuse
from .stage import Body, Counts
from .stream import Stream, bits_for, channels_first
from .verilog_text import sized


@dataclass(frozen=True)
class Window:
    """A sliding window over (height, width): a dimension more than the tensor has is 1. Counts in pixels."""

    height: int
    width: int
    rows: int
    cols: int
    down: int = 1
    rightward: int = 1
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    @classmethod
    def over(cls, space: Shape, kernel: Shape, strides: Shape, pads: Shape) -> Window:
        """Of one or two dimensions; an image of one column counts as a line, so that its lines need no memory."""
        if len(space) == 2 and space[1] == kernel[1] == 1 and not pads[1] and not pads[3]:
            space, kernel, strides, pads = space[:1], kernel[:1], strides[:1], (pads[0], pads[2])
        if len(space) == 1:
            return cls(1, space[0], 1, kernel[0], 1, strides[0], 0, pads[0], 0, pads[1])
        return cls(*space, *kernel, *strides, *pads)

    @property
    def padded(self) -> bool:
        return any((self.top, self.left, self.bottom, self.right))

    @property
    def out_rows(self) -> int:
        return (self.top + self.height + self.bottom - self.rows) // self.down + 1

    @property
    def out_cols(self) -> int:
        return (self.left + self.width + self.right - self.cols) // self.rightward + 1

    @property
    def outputs(self) -> int:
        return self.out_rows * self.out_cols

    @property
    def taps(self) -> int:
        return self.rows * self.cols

    @property
    def scan(self) -> int:
        """Pixels of the padded image."""
        return (self.top + self.height + self.bottom) * (self.left + self.width + self.right)

    def last_pixels(self) -> Integers:
        """For each output pixel, in raster order, how many input pixels must have come before it can be computed."""
        y = np.arange(self.out_rows) * self.down - self.top + self.rows - 1
        x = np.arange(self.out_cols) * self.rightward - self.left + self.cols - 1
        bottom, right = np.minimum(y, self.height - 1), np.minimum(x, self.width - 1)
        # A row that lies above the image needs nothing; a column left of it needs the row above to its end.
        count = np.maximum(bottom[:, None], -1) * self.width + np.maximum(right[None, :], -1) + 1
        return np.maximum.accumulate(np.maximum(count, 0).reshape(-1)).astype(np.int64)

    def scanned(self) -> tuple[Integers, Integers]:
        """Cycles of the image, a pixel of the padded image each, in which each pixel and the last one of each window pass."""
        line = self.left + self.width + self.right
        y, x = np.arange(self.height) + self.top, np.arange(self.width) + self.left
        bottom = np.arange(self.out_rows) * self.down + self.rows - 1
        right = np.arange(self.out_cols) * self.rightward + self.cols - 1
        pixels, ends = y[:, None] * line + x[None, :], bottom[:, None] * line + right[None, :]
        return pixels.reshape(-1), ends.reshape(-1)


def of(operation: Conv | Pool | Dense, stream: Stream, program: IntegerProgram) -> Window:
    """What an operation with a window sees of its source: a dense layer all of a vector, or one token.

    Raises Unsupported where the source comes in another order.
    """
    shape = program.tensors[operation.source].shape
    if isinstance(operation, Dense):
        if len(shape) == 1:
            return Window(1, stream.positions, 1, stream.positions)
        base = stream.order.min(axis=1, keepdims=True)
        tokens, features = len(stream.order), shape[-1]
        alike = bool((stream.order - base == (stream.order - base)[0]).all())
        if stream.channels != features or not alike or not np.array_equal(base[:, 0], np.arange(tokens) * features):
            raise refuse(operation, "the features of a token do not come together")
        return Window(1, tokens, 1, 1)
    if not np.array_equal(stream.order, channels_first(shape)):
        raise refuse(operation, "its source does not come pixel by pixel", "only channels-first tensors have windows")
    kernel = operation.kernel if isinstance(operation, Pool) else operation.weight.shape[2:]
    return Window.over(shape[1:], kernel, operation.strides, operation.pads)


def side_by_side(body: Body, window: Window, stream: Stream, outside: int) -> None:
    """All taps of a window side by side; nothing where a window is a pixel."""
    if window.taps == 1 and not window.padded and window.outputs == stream.positions:
        return
    width, line = stream.width, window.left + window.width + window.right
    rows = window.top + window.height + window.bottom
    largest = (max(rows, window.rows, window.down), max(line, window.cols, window.rightward))
    given: dict[str, int | str] = {
        "WIDTH": width, "HEIGHT": window.height, "COLUMNS": window.width, "ROWS": window.rows, "COLS": window.cols,
        "DOWN": window.down, "RIGHTWARD": window.rightward, "TOP": window.top, "LEFT": window.left, "BOTTOM": window.bottom,
        "RIGHT": window.right, "YBITS": bits_for(largest[0]), "XBITS": bits_for(largest[1]), "PAD": _pad(stream, outside),
    }  # fmt: skip
    body.part("edgesdk_window", "windows", given, "window", window.taps * width, 2)
    body.counts += Counts(register_bits=(window.taps + 1) * width, line_bits=(window.rows - 1) * line * width)


def one_by_one(body: Body, window: Window, stream: Stream, turns: int, by_channel: bool, outside: int) -> None:
    """A window read beat by beat: `turns` times, or (by_channel) once for each of a pixel's beats."""
    folds, columns = stream.folds, window.width
    inner, step = (1, 1) if by_channel else (folds, 0)
    outer = folds if by_channel else turns
    reach = ((window.rows - 1) * columns + window.cols - 1) * folds  # from a window's first pixel to its last
    back = reach + inner - 1 + (outer - 1) * step
    rows, cols = window.out_rows, window.out_cols
    span = reach + folds
    # While a line of windows is read, what the next one needs comes in: the lines that it lies below, or at the end of an image
    # all that is left of it; for a window on everything, the next image.
    lines = max(window.down if rows > 1 else 0, window.height - (rows - 1) * window.down)
    pixels = max(window.rightward, columns - (cols - 1) * window.rightward) + 1
    ahead = span if window.outputs == 1 else (lines * columns if window.height > 1 else pixels) * folds
    abits = max(1, bits_for(span + ahead))
    padded_rows = window.top + window.height + window.bottom + window.down + window.rows
    padded_cols = window.left + columns + window.right + window.rightward + window.cols
    cbits = bits_for(padded_rows * padded_cols * folds + (1 << abits)) + 2
    moves = {
        "START": -(window.top * columns + window.left) * folds,
        "NEXT_COLUMN": folds - (inner - 1),
        "NEXT_ROW": (columns - (window.cols - 1)) * folds - (inner - 1),
        "NEXT_OUTER": step - reach - (inner - 1),
        "NEXT_WINDOW": window.rightward * folds - back,
        "NEXT_LINE": (window.down * columns - (cols - 1) * window.rightward) * folds - back,
        "NEXT_IMAGE": ((window.height - (rows - 1) * window.down) * columns - (cols - 1) * window.rightward) * folds - back,
    }
    counters = max(inner, window.cols, window.rows, outer, cols, rows, padded_rows, padded_cols)
    given: dict[str, int | str] = {
        "WIDTH": stream.width, "ABITS": abits, "CBITS": cbits, "HEIGHT": window.height, "COLUMNS": columns, "ROWS": window.rows,
        "COLS": window.cols, "DOWN": window.down, "RIGHTWARD": window.rightward, "TOP": window.top, "LEFT": window.left,
        "PADDED": int(window.padded), "OUT_ROWS": rows, "OUT_COLS": cols, "OUTER": outer, "INNER": inner,
        "LBITS": bits_for(counters + 1), **{key: sized(value, cbits) for key, value in moves.items()},
        "PAD": _pad(stream, outside),
    }  # fmt: skip
    body.part("edgesdk_reader", "reader", given, "read", stream.width, 2, flags_out=True)
    body.counts += Counts(register_bits=stream.width, line_bits=stream.width << abits)


def _pad(stream: Stream, outside: int) -> str:
    """A beat of the code `outside`."""
    bits = stream.codes.bits
    return sized(sum((outside % (1 << bits)) << lane * bits for lane in range(stream.lanes)), stream.width)
