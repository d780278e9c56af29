"""Moving between operating points: as many channels as the link carries in time, fewer when it is slow, none when it is too slow.

The time of a request is taken for a + b n, n being the bytes that cross: a is what a request without any takes, b what the rate
makes of a byte. Both are followed by exponential means of what was measured.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

FOLLOWS = 0.25
"""Weight of the newest measurement."""
DOWN_AT, UP_AT = 0.9, 0.6
"""Of the time allowed: above the first fewer bytes are sent, up to the second more may be. What lies between stays as it is."""
UP_AFTER = 8
"""Requests in a row that must have found more to be possible."""
RETRY_S, LONGEST_RETRY_S = 1.0, 30.0
"""From local, how long until the least point is tried again; twice as long each time that it fails."""


@dataclass(frozen=True)
class Move:
    """A change of the operating point, 0 being local, and why."""

    before: int
    after: int
    why: str


class Mover:
    """Which operating point the next request takes. `sizes` are bytes by channels; `allowed_ms` is what a request may take.

    `point` says which; after the request `took` or `failed` says what became of it. Any thread may call them.
    """

    def __init__(self, sizes: Mapping[int, int], allowed_ms: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._sizes = dict(sorted(sizes.items()))
        self._points = [0, *self._sizes]
        self.allowed_ms = allowed_ms
        self.moves: list[Move] = []
        self._clock, self._lock = clock, threading.Lock()
        self._at = len(self._points) - 1
        self._fixed_ms: float | None = None
        self._per_byte_ms: float | None = None
        self._could_rise = 0
        self._retry_s, self._retry_at = RETRY_S, 0.0

    @property
    def point(self) -> int:
        """Channels to send now; 0: run the tail here. One request now and then is sent from there to see how the link is."""
        with self._lock:
            if self._at == 0 and self._clock() >= self._retry_at:
                self._retry_at = self._clock() + self._retry_s
                return self._points[1]
            return self._points[self._at]

    def ping(self, took_ms: float) -> None:
        """What a request without payload took."""
        with self._lock:
            self._fixed_ms = _followed(self._fixed_ms, took_ms)

    def took(self, point: int, took_ms: float) -> None:
        """A request at this point was answered."""
        with self._lock:
            size = self._sizes[point]
            fixed = min(self._fixed_ms if self._fixed_ms is not None else 0.0, took_ms)
            self._per_byte_ms = _followed(self._per_byte_ms, (took_ms - fixed) / max(1, size))
            if self._at == 0:
                if took_ms <= UP_AT * self.allowed_ms:
                    self._move(1, f"the link is back: {took_ms:.0f} ms")
                else:
                    self._wait_longer()
                return
            now = self._expected_ms(self._at)
            if now > DOWN_AT * self.allowed_ms:
                self._fall(f"{now:.0f} ms expected of {self.allowed_ms:.0f} allowed")
            elif self._at + 1 < len(self._points) and self._expected_ms(self._at + 1) <= UP_AT * self.allowed_ms:
                self._could_rise += 1
                if self._could_rise >= UP_AFTER:
                    more = self._expected_ms(self._at + 1)
                    self._move(self._at + 1, f"{more:.0f} ms expected of {self.allowed_ms:.0f} allowed")
            else:
                self._could_rise = 0

    def failed(self, point: int) -> None:
        """A request at this point was late or not answered."""
        with self._lock:
            if self._at == 0:
                self._wait_longer()
            elif point == self._points[self._at]:  # else it was sent before the last move
                self._per_byte_ms = None if self._per_byte_ms is None else 2 * self._per_byte_ms
                self._move(self._at - 1, "a request was late or not answered")

    def _fall(self, why: str) -> None:
        """To the most channels that would be in time, at least one step."""
        lower = self._at - 1
        while lower > 0 and self._expected_ms(lower) > DOWN_AT * self.allowed_ms:
            lower -= 1
        self._move(lower, why)

    def _move(self, place: int, why: str) -> None:
        self.moves.append(Move(self._points[self._at], self._points[place], why))
        del self.moves[:-1000]
        if place == 0:
            self._retry_s, self._retry_at = RETRY_S, self._clock() + RETRY_S
        self._at, self._could_rise = place, 0

    def _wait_longer(self) -> None:
        self._retry_s = min(LONGEST_RETRY_S, 2 * self._retry_s)
        self._retry_at = self._clock() + self._retry_s

    def _expected_ms(self, place: int) -> float:
        return (self._fixed_ms or 0.0) + (self._per_byte_ms or 0.0) * self._sizes[self._points[place]]


def _followed(before: float | None, now: float) -> float:
    return now if before is None else before + FOLLOWS * (now - before)
