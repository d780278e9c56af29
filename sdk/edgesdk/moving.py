"""Moving between operating points: as many channels as the link carries in time, fewer when it is slow, none when it is too slow.

The time of a request is taken for a + w + b n, n being the bytes that cross: a is what a request without any takes, w the work of
the server, b what the rate makes of a byte. All are followed; w and b are told apart by a request at a higher point now and then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

FOLLOWS = 0.25
"""Weight of the newest measurement."""
DOWN_AT, BACK_AT, UP_AT = 0.9, 0.75, 0.6
"""Of the time allowed: above the first fewer bytes are sent, up to the last more may be; what lies between stays as it is. From
local the least point is taken again up to the middle one."""
UP_AFTER, LONGEST_UP_AFTER = 8, 1024
"""Requests in a row that must have found more to be possible; twice as many each time that a rise did not hold."""
TRY_AFTER, LONGEST_TRY_AFTER = 32, 4096
"""Requests in a row with room, though not enough for what more bytes are expected to take, until one is sent to see; then twice
as many, until the next move."""
HELD = 128
"""Requests that a rise must last to have held."""
RETRY_S, LONGEST_RETRY_S = 1.0, 30.0
"""From local, how long until the least point is tried again; twice as long each time that it fails."""


@dataclass(frozen=True)
class Move:
    """A change of the operating point, 0 being local, and why."""

    before: int
    after: int
    why: str

    def to_json(self) -> dict[str, int | str]:
        return {"before": self.before, "after": self.after, "why": self.why}


class Mover:
    """Which operating point the next request takes. `sizes` are bytes by channels; `allowed_ms` is what a request may take.

    `next_point` says which; after the request `took` or `failed` says what became of it. `lost` and `back` tell of the link as a
    whole. Without `local` there is no tail here, and the least point is the lowest. Any thread may call them.
    """

    def __init__(
        self, sizes: Mapping[int, int], allowed_ms: float, clock: Callable[[], float] = time.monotonic, *, local: bool = True
    ) -> None:
        self._sizes = dict(sorted(sizes.items()))
        self._lowest = [0] if local else []
        self._points = [*self._lowest, *self._sizes]
        self.allowed_ms = allowed_ms
        self.moves: list[Move] = []
        self._clock, self._lock = clock, threading.Lock()
        self._at = len(self._points) - 1
        self._down = False
        self._fixed_ms: float | None = None
        self._work_ms = 0.0
        self._per_byte_ms: float | None = None
        self._mean_ms: float | None = None  # at this point; what was expected of it until it was measured
        self._could_rise, self._rise_after = 0, UP_AFTER
        self._has_room, self._try_after = 0, TRY_AFTER
        self._rose, self._since_move = False, 0
        self._retry_s, self._retry_at, self._retried = RETRY_S, 0.0, False

    @property
    def point(self) -> int:
        """Channels that are sent now; 0: the tail runs here."""
        with self._lock:
            return self._points[self._at]

    @property
    def least(self) -> int:
        """The fewest channels that a request can send."""
        with self._lock:
            return self._points[len(self._lowest)]

    def next_point(self) -> int:
        """Channels of the next request; 0: run the tail here. Now and then one is sent at the next higher point, to see."""
        with self._lock:
            here, now = self._points[self._at], self._clock()
            if here == 0:
                if self._down or now < self._retry_at:
                    return 0
                self._retry_at, self._retried = now + self._retry_s, True
                return self._points[1]
            if self._has_room >= self._try_after and self._at + 1 < len(self._points):
                self._has_room, self._try_after = 0, min(2 * self._try_after, LONGEST_TRY_AFTER)
                return self._points[self._at + 1]
            return here

    def ping(self, took_ms: float) -> None:
        """What a request without payload took."""
        with self._lock:
            before = self._fixed_ms
            self._fixed_ms = took_ms if before is None else min(took_ms, _followed(before, took_ms))
            self._split()

    def took(self, point: int, took_ms: float) -> None:
        """A request at this point was answered."""
        with self._lock:
            here = self._points[self._at]
            self._bound(took_ms)
            if here == 0:
                # What was measured before says nothing of the link now.
                self._work_ms, self._per_byte_ms = 0.0, self._rate_of(point, took_ms)
                if took_ms <= BACK_AT * self.allowed_ms:
                    self._move(1, f"the link is back: {took_ms:.0f} ms")
                else:
                    self._wait_longer()
            elif point == here:
                self._mean_ms = _followed(self._mean_ms, took_ms)
                self._split()
                self._since_move += 1
                if self._rose and self._since_move == HELD:
                    self._rise_after, self._retry_s = UP_AFTER, RETRY_S
                self._decide(self._mean_ms)
            elif point > here and self._mean_ms is not None:
                self._tell_apart(here, self._mean_ms, point, took_ms)

    def failed(self, point: int, after_ms: float | None = None) -> None:
        """A request at this point was not answered; `after_ms` is how long it was waited for, where it was late."""
        with self._lock:
            here = self._points[self._at]
            if here == 0 and self._retried and point == self._points[1]:
                self._wait_longer()
            elif point == here:  # else it was sent before the last move, or to see
                if after_ms is not None:
                    self._per_byte_ms = max(2 * (self._per_byte_ms or 0.0), self._rate_of(point, after_ms))
                self._fall("a request was not answered" if after_ms is None else "a request was late")

    def lost(self, why: str) -> None:
        """There is no link: nothing is sent until it is back."""
        with self._lock:
            self._down = True
            if self._at:
                self._move(0, why)

    def back(self, points: Iterable[int]) -> None:
        """There is a link, and at its end are tails for these points; others are not taken."""
        with self._lock:
            self._down = False
            if self._retry_s == RETRY_S:
                self._retry_at = self._clock()
            there = set(points)
            found = [*self._lowest, *(point for point in self._sizes if point in there)]
            if found == self._points or not there & set(self._sizes):
                return
            here = self._points[self._at]
            self._points = found
            at = max((place for place, point in enumerate(found) if point <= here), default=0)
            self._at = at  # no move of its own where the point stays
            if found[at] != here:
                self._record(here, found[at], "the server does not serve that point")

    def _decide(self, now: float) -> None:
        if now > DOWN_AT * self.allowed_ms:
            self._fall(f"{now:.0f} ms expected of {self.allowed_ms:.0f} allowed")
        elif self._at + 1 < len(self._points):
            more = self._expected_ms(self._at + 1)
            if more <= UP_AT * self.allowed_ms:
                self._could_rise += 1
                if self._could_rise >= self._rise_after:
                    self._move(self._at + 1, f"{more:.0f} ms expected of {self.allowed_ms:.0f} allowed")
            else:
                self._could_rise = 0
                self._has_room = self._has_room + 1 if now <= UP_AT * self.allowed_ms else 0

    def _split(self) -> None:
        """What this point takes, without what the bytes have no part in, is the bytes'."""
        if self._mean_ms is not None and self._points[self._at]:
            self._per_byte_ms = self._rate_of(self._points[self._at], self._mean_ms)

    def _rate_of(self, point: int, took_ms: float) -> float:
        return max(0.0, took_ms - self._base_ms()) / max(1, self._sizes[point])

    def _tell_apart(self, lower: int, lower_ms: float, higher: int, higher_ms: float) -> None:
        """From what two points took shortly after each other: what the bytes do, and what is the same for both."""
        per_byte = max(0.0, higher_ms - lower_ms) / max(1, self._sizes[higher] - self._sizes[lower])
        same = max(0.0, lower_ms - per_byte * self._sizes[lower])
        self._work_ms = max(0.0, same - (self._fixed_ms or 0.0))
        self._split()

    def _bound(self, took_ms: float) -> None:
        """No part of a request takes longer than all of it."""
        if self._fixed_ms is not None:
            self._fixed_ms = min(self._fixed_ms, took_ms)
        self._work_ms = min(self._work_ms, took_ms - (self._fixed_ms or 0.0))

    def _fall(self, why: str) -> None:
        """To the most channels that would be in time, at least one step."""
        if self._at == 0:
            return
        lower = self._at - 1
        while lower > 0 and self._expected_ms(lower) > DOWN_AT * self.allowed_ms:
            lower -= 1
        self._move(lower, why)

    def _move(self, place: int, why: str) -> None:
        before, after = self._points[self._at], self._points[place]
        if after < before and self._rose and self._since_move < HELD:
            self._rise_after = min(2 * self._rise_after, LONGEST_UP_AFTER)
            if after == 0:
                self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)
        if after == 0:
            self._retry_at = self._clock() + self._retry_s
        self._at, self._retried = place, False
        self._record(before, after, why)

    def _record(self, before: int, after: int, why: str) -> None:
        self.moves.append(Move(before, after, why))
        del self.moves[:-1000]
        known = after > 0 and self._per_byte_ms is not None
        self._mean_ms = self._expected_ms(self._at) if known else None
        self._rose, self._since_move = after > before, 0
        self._could_rise, self._has_room, self._try_after = 0, 0, TRY_AFTER

    def _wait_longer(self) -> None:
        self._retry_s = min(LONGEST_RETRY_S, 2 * self._retry_s)
        self._retry_at, self._retried = self._clock() + self._retry_s, False

    def _base_ms(self) -> float:
        return (self._fixed_ms or 0.0) + self._work_ms

    def _expected_ms(self, place: int) -> float:
        return self._base_ms() + (self._per_byte_ms or 0.0) * self._sizes[self._points[place]]


def _followed(before: float | None, now: float) -> float:
    return now if before is None else before + FOLLOWS * (now - before)
