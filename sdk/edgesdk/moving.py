"""Moving between the ways of a request: the tail here, or on the server with more or fewer channels of a bottleneck.

The time of a request there is taken for a + w + b n, n being the bytes that cross: a is what a request without any takes, w the
work of the server, b what the rate makes of a byte. All are followed; w and b are told apart by a request at a higher point now
and then. The time here is what the tail took here: timed where nobody waits for it, and each time that it answers. The head runs
here on every way, so that its time decides nothing.

Which way is the best is a policy (`Prefer`):
accuracy  of the ways that are in time the most accurate, of those as accurate the fastest. The tail here takes all channels: it
          is as accurate as the server with all of them, and more than that with fewer.
speed     the fastest; of those about as fast the most accurate.
remote    the server with as many channels as are in time, and here only where none is: that spares the device the tail's work.
Where no way is in time, the first two take the one with the least time. Until the time here is known, here is taken only where no
point is in time. None of them counts energy: a tail that runs here may cost the device more than to wait for the server's, and
only `remote` avoids that.

A way is left when another is clearly better for some requests in a row; where a return did not hold, the next is tried later. The
server is tried by a request now and then, but not where an empty one is already slower than the tail here; the tail here is never
tried by a request that waits for an answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Prefer = Literal["accuracy", "speed", "remote"]

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
FASTER = 0.8
"""Of the time of the way that is taken: another must be below to be faster."""
ALIKE = 1.1
"""Of the time of the least point: up to it more channels are as fast. With 1 / FASTER that leaves a band in which all stays."""
LEAVE_AFTER = 8
"""Requests in a row that must have found another way to be better."""
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
    """Which way the next request takes. `sizes` are bytes by channels; `allowed_ms` is what a request may take to be in time.

    `next_point` says which, 0 being here; after the request `took` or `failed` says what became of it, and `took_here` where it
    was answered here. `lost` and `back` tell of the link as a whole. Without `local` there is no tail here, and the least point
    is the lowest. Any thread may call them.
    """

    def __init__(
        self,
        sizes: Mapping[int, int],
        allowed_ms: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        local: bool = True,
        prefer: Prefer = "accuracy",
    ) -> None:
        self._sizes = dict(sorted(sizes.items()))
        self._lowest = [0] if local else []
        self._points = [*self._lowest, *self._sizes]
        self.allowed_ms, self.prefer = allowed_ms, prefer
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
        self._tried = 1  # the place that is tried from here
        self._here_ms: float | None = None
        self._better = 0

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
                if self._down or now < self._retry_at or self._is_hopeless():
                    return 0
                self._retry_at, self._retried = now + self._retry_s, True
                return self._points[self._tried]
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
                if self._down or not self._retried or point != self._points[self._tried]:
                    return  # not the request that is to see whether the link is back
                # What was measured before says nothing of the link now.
                self._work_ms, self._per_byte_ms = 0.0, self._rate_of(point, took_ms)
                self._return(point, took_ms)
            elif point == here:
                self._mean_ms = _followed(self._mean_ms, took_ms)
                self._split()
                self._since_move += 1
                if self._rose and self._since_move == HELD:
                    self._rise_after, self._retry_s = UP_AFTER, RETRY_S
                self._decide(self._mean_ms)
            elif point > here and self._mean_ms is not None:
                self._tell_apart(here, self._mean_ms, point, took_ms)

    def took_here(self, took_ms: float) -> None:
        """The tail ran here, for a request or to be timed."""
        with self._lock:
            self._here_ms = _followed(self._here_ms, took_ms)

    @property
    def may_time_here(self) -> bool:
        """Whether a request that came while the tail here is timed could still be answered here in time: two runs at once."""
        with self._lock:
            return self._here_ms is not None and 2 * self._here_ms <= self.allowed_ms

    def failed(self, point: int, after_ms: float | None = None) -> None:
        """A request at this point was not answered; `after_ms` is how long it was waited for, where it was late."""
        with self._lock:
            here = self._points[self._at]
            if here == 0 and self._retried and point == self._points[self._tried]:
                self._wait_longer()
            elif point == here:  # else it was sent before the last move, or to see
                if after_ms is not None:
                    self._per_byte_ms = max(2 * (self._per_byte_ms or 0.0), self._rate_of(point, after_ms))
                self._fall("a request was not answered" if after_ms is None else "a request was late", failed=True)

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
            self._points, self._tried = found, 1
            at = max((place for place, point in enumerate(found) if point <= here), default=0)
            self._at = at  # no move of its own where the point stays
            if found[at] != here:
                self._record(here, found[at], "the server does not serve that point")

    def estimates(self) -> dict[str, Any]:
        """What is known of the link and of each way, in ms of a request after its head; None: not known yet."""
        with self._lock:
            rate = 8e3 / self._per_byte_ms if self._per_byte_ms else None
            there = {
                str(point): self._mean_ms if point == self._points[self._at] else self._expected_ms(place)
                for place, point in enumerate(self._points)
                if point and self._per_byte_ms is not None
            }
            return {
                "prefer": self.prefer, "allowed_ms": self.allowed_ms, "here_ms": self._here_ms, "round_trip_ms": self._fixed_ms,
                "server_ms": self._work_ms, "bits_per_s": rate, "there_ms": there,
            }  # fmt: skip

    def _is_hopeless(self) -> bool:
        """Whether nothing that is sent could be answered sooner than here, and nothing better could come of it."""
        if self.prefer == "remote" or self._here_ms is None or self._fixed_ms is None:
            return False
        return (self.prefer == "speed" or self._here_in_time(DOWN_AT)) and self._fixed_ms > FASTER * self._here_ms

    def _here_in_time(self, share: float) -> bool:
        return self._here_ms is not None and self._here_ms <= share * self.allowed_ms

    def _return(self, point: int, took_ms: float) -> None:
        """From here, after a request that was sent to see: to that point, on to a try with all channels, or neither."""
        here_ms, top = self._here_ms, len(self._points) - 1
        in_time = took_ms <= BACK_AT * self.allowed_ms
        # With fewer channels an answer would be less accurate than the tail's here, which is in time.
        all_or_none = self.prefer == "accuracy" and self._here_in_time(DOWN_AT)
        if self.prefer == "remote" or here_ms is None:
            back = in_time
        elif self.prefer == "speed" or all_or_none:
            back = took_ms <= FASTER * here_ms
        else:
            back = in_time or took_ms <= FASTER * here_ms
        if not back:
            self._wait_longer()
        elif all_or_none and point != self._points[top]:
            self._tried, self._retry_at, self._retried = top, self._clock(), False
        else:
            place = top if all_or_none else 1
            compared = "" if here_ms is None or self.prefer == "remote" else f", {here_ms:.0f} ms here"
            self._move(place, f"the link is back: {took_ms:.0f} ms{compared}")

    def _decide(self, now: float) -> None:
        if now > DOWN_AT * self.allowed_ms:
            self._fall(f"{now:.0f} ms expected of {self.allowed_ms:.0f} allowed")
            return
        other = self._other(now)
        self._better = 0 if other is None else self._better + 1
        if other is not None and self._better >= LEAVE_AFTER:
            self._move(*other)
        elif self._at + 1 < len(self._points):
            more = self._expected_ms(self._at + 1)
            if more <= UP_AT * self.allowed_ms and self._as_fast(more):
                self._could_rise += 1
                if self._could_rise >= self._rise_after:
                    self._move(self._at + 1, f"{more:.0f} ms expected of {self.allowed_ms:.0f} allowed")
            else:
                self._could_rise = 0
                self._has_room = self._has_room + 1 if now <= UP_AT * self.allowed_ms else 0

    def _other(self, now: float) -> tuple[int, str] | None:
        """A way that is clearly better than the point that is taken and in time, and why; more channels are `_decide`'s."""
        if self.prefer == "remote":
            return None
        found: list[tuple[float, int, str]] = []
        here_ms = self._here_ms if self._lowest else None
        if here_ms is not None:
            faster, told = here_ms <= FASTER * now, f"{here_ms:.0f} ms here, {now:.0f} ms there"
            if self.prefer == "accuracy":
                fewer = self._at + 1 < len(self._points) and self._expected_ms(self._at + 1) > UP_AT * self.allowed_ms
                if fewer and not faster:
                    faster, told = True, f"{told}: more channels than are in time there"
                faster = faster and self._here_in_time(UP_AT)
            if faster:
                found.append((here_ms, 0, told))
        least = len(self._lowest)
        if self.prefer == "speed" and self._at > least and (less := self._expected_ms(least)) <= FASTER * now:
            found.append((less, least, f"{less:.0f} ms expected with fewer channels, {now:.0f} ms now"))
        return min(found)[1:] if found else None

    def _as_fast(self, more: float) -> bool:
        """Whether a point that takes so long counts as as fast as the least, where speed is what is wanted."""
        return self.prefer != "speed" or more <= ALIKE * self._expected_ms(len(self._lowest))

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

    def _fall(self, why: str, *, failed: bool = False) -> None:
        """To the most channels that would be in time, at least one step; or to here, where that is better."""
        if self._at == 0:
            return
        lower, here_ms = self._at - 1, self._here_ms if self._lowest else None
        while lower > 0 and self._expected_ms(lower) > DOWN_AT * self.allowed_ms:
            lower -= 1
        if self.prefer != "remote" and here_ms is not None:
            if lower and (self._here_in_time(DOWN_AT) if self.prefer == "accuracy" else here_ms < self._expected_ms(lower)):
                lower = 0
            elif not lower and not failed and self._expected_ms(1) <= here_ms and not self._here_in_time(DOWN_AT):
                lower = 1  # nothing is in time, and here it would be later still
            why = f"{why}; {here_ms:.0f} ms here"
        if lower != self._at:
            self._move(lower, why)

    def _move(self, place: int, why: str) -> None:
        before, after = self._points[self._at], self._points[place]
        if after < before and self._rose and self._since_move < HELD:
            self._rise_after = min(2 * self._rise_after, LONGEST_UP_AFTER)
            if after == 0:
                self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)
        if after == 0:
            self._retry_at = self._clock() + self._retry_s
        self._at, self._retried, self._tried = place, False, 1
        self._record(before, after, why)

    def _record(self, before: int, after: int, why: str) -> None:
        self.moves.append(Move(before, after, why))
        del self.moves[:-1000]
        known = after > 0 and self._per_byte_ms is not None
        self._mean_ms = self._expected_ms(self._at) if known else None
        self._rose, self._since_move = after > before, 0
        self._could_rise, self._has_room, self._try_after, self._better = 0, 0, TRY_AFTER, 0

    def _wait_longer(self) -> None:
        self._retry_s = min(LONGEST_RETRY_S, 2 * self._retry_s)
        self._retry_at, self._retried, self._tried = self._clock() + self._retry_s, False, 1

    def _base_ms(self) -> float:
        return (self._fixed_ms or 0.0) + self._work_ms

    def _expected_ms(self, place: int) -> float:
        return self._base_ms() + (self._per_byte_ms or 0.0) * self._sizes[self._points[place]]


def _followed(before: float | None, now: float) -> float:
    return now if before is None else before + FOLLOWS * (now - before)
