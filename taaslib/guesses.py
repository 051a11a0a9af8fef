"""Wrong codes are counted per address and per ID; whoever sends too many waits before the next is looked at.

Knows neither codes nor clocks: NOW is an argument, in seconds of any steady clock.  See docs/security.md.

Strangers can not lock a hidden server out: an (ID, address) pair that showed a right code within a day is
judged by a counter of its own, and by nothing else.  Memory is bounded: when a table is full, newcomers
share one counter, and what is counted is dropped only when there is nothing left to forgive.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass

from taaslib.limits import Limits

MINUTE = 60.0
LONGEST = 300.0  # seconds of delay; and of quiet after one, until the next begins at a second again
PROOF = 86400.0  # seconds for which a right code vouches for its ID and address

@dataclass(slots=True)
class _Count:
    begun: float = -math.inf  # when its minute began
    failures: int = 0  # in that minute
    delays: int = 0  # in a row
    until: float = -math.inf  # no code is looked at before

    def fail(self, free: int, now: float) -> None:
        if now >= self.begun + MINUTE:
            self.begun, self.failures = now, 0
        if self.delays and now >= self.until + LONGEST:
            self.delays = 0
        self.failures += 1
        if self.failures > free or self.delays:
            self.until = now + min(LONGEST, 2.0**self.delays)
            self.delays = min(self.delays + 1, 9)  # 2^9 is beyond the longest

    def spent(self, now: float) -> bool:
        """Whether it says no more than a new one would."""
        return now >= self.begun + MINUTE and now >= self.until + LONGEST

class _Table:
    def __init__(self, limits: Limits, free: str) -> None:
        self._limits, self._free = limits, free
        self._counts: dict[Hashable, _Count] = {}
        self._shared = _Count()
        self._swept = -math.inf

    def __len__(self) -> int:
        return len(self._counts)

    def wait(self, key: Hashable, now: float) -> float:
        count = self._counts.get(key) or (self._shared if self._is_full(now) else None)
        return max(0.0, count.until - now) if count else 0.0

    def fail(self, key: Hashable, now: float) -> None:
        count = self._counts.get(key)
        if count is None:
            count = self._shared if self._is_full(now) else self._counts.setdefault(key, _Count())
        count.fail(getattr(self._limits, self._free), now)

    def _is_full(self, now: float) -> bool:
        """Whether newcomers share one counter; they go on while it delays them, or waiting would forgive."""
        if len(self._counts) >= self._limits.failures_remembered and now >= self._swept + MINUTE:
            self._swept = now
            self._counts = {key: count for key, count in self._counts.items() if not count.spent(now)}
        return len(self._counts) >= self._limits.failures_remembered or now < self._shared.until

class Guesses:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._addresses = _Table(limits, "failures_per_address")
        self._ids = _Table(limits, "failures_per_id")
        self._pairs = _Table(limits, "failures_per_address")  # those who are proven
        self._proven: dict[tuple[str, str], float] = {}  # (ID, address) -> its last right code, oldest first

    def wait(self, id: str, address: str, now: float) -> float:
        """For how many seconds no code of ID from ADDRESS is looked at; 0.0: it is."""
        if self._is_proven(id, address, now):
            return self._pairs.wait((id, address), now)
        return max(self._addresses.wait(address, now), self._ids.wait(id, now))

    def failed(self, id: str, address: str, now: float) -> None:
        if self._is_proven(id, address, now):
            self._pairs.fail((id, address), now)
        else:
            self._addresses.fail(address, now)
            self._ids.fail(id, now)

    def proved(self, id: str, address: str, now: float) -> None:
        """A right code came.  When too many are proven already, this one is judged like a stranger."""
        self._proven.pop((id, address), None)
        if len(self._proven) >= self._limits.failures_remembered:
            oldest = next(iter(self._proven))
            if not self._is_proven(*oldest, now):
                del self._proven[oldest]
        if len(self._proven) < self._limits.failures_remembered:
            self._proven[id, address] = now

    def _is_proven(self, id: str, address: str, now: float) -> bool:
        return now < self._proven.get((id, address), -math.inf) + PROOF
