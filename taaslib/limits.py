"""How much of everything: one dataclass with the keys of taas.ini's [limits]; and who has how many.

Knows nothing of who obeys.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any
from weakref import WeakValueDictionary

KIB = 1024
MIB = 1024 * KIB

def _limit(unit: str) -> Callable[..., Any]:
    return lambda default, **bounds: field(default=default, metadata={"unit": unit, **bounds})

_time, _size, _count = _limit("time"), _limit("size"), _limit("count")

@dataclass(slots=True)
class Limits:
    """Everything countable (int), timed (float, seconds) or sized (int, octets) that the service obeys.

    The numbers are docs/protocol.md's unless a comment says otherwise.  All who obey share one instance.
    """
    head: int = _size(16 * KIB, most=MIB)
    exchanges: int = _count(1000)
    exchanges_per_address: int = _count(400)
    handshake: float = _time(10.0)
    request: float = _time(10.0)
    linger: float = _time(5.0)
    linger_bytes: int = _size(MIB)
    reuse: int = _count(1000)
    unclaimed: float = _time(30.0)
    unclaimed_per_id: int = _count(100)
    responders_per_id: int = _count(20)
    responders: int = _count(20_000)
    responders_per_label: int = _count(200)
    early_bytes: int = _size(16 * KIB, most=MIB)
    first_bytes: float = _time(1.0)
    parked: float = _time(10.0)
    parked_per_label: int = _count(32)
    fail_over: float = _time(30.0, zero=True)  # 0s: the first responder is the only one
    visits: int = _count(20_000)
    visits_per_label: int = _count(10_000)
    visits_per_address: int = _count(5000)
    unpaired_per_address: int = _count(100)
    pairs_per_id: int = _count(10_000)
    drain: float = _time(30.0, zero=True)
    refill: float = _time(30.0)
    q_linger: float = _time(600.0)
    retry_after: float = _time(5.0)
    keepalive_idle: float = _time(25.0, most=32767)  # tcp(7), the kernel's
    keepalive_interval: float = _time(5.0, most=32767)
    keepalive_probes: int = _count(3, most=127)
    user_timeout: float = _time(40.0, most=2147483)  # an int of ms
    dead_after: float = _time(60.0)
    idle: float = _time(0.0, zero=True)  # 0s: no idle limit
    failures_per_address: int = _count(100)
    failures_per_id: int = _count(10)
    failures_remembered: int = _count(10_000)
    pairings: int = _count(100)

    def become(self, other: "Limits") -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(other, each.name))

class Seat:
    """How many are taken by one holder, an address, a label, an ID or all, under the LIMIT of that name."""
    __slots__ = ("__weakref__", "limit", "taken")

    def __init__(self, limit: str) -> None:
        self.limit, self.taken = limit, 0

class Tally:
    """Who has how many seats of each kind."""
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._seats: WeakValueDictionary[tuple[str, str], Seat] = WeakValueDictionary()

    def seat(self, limit: str, whose: str = "") -> Seat:
        """The one that there is.  Whoever takes it keeps it until it is given back, or it is forgotten."""
        if (seat := self._seats.get((limit, whose))) is None:
            seat = self._seats[limit, whose] = Seat(limit)
        return seat

    def full(self, seats: Iterable[Seat]) -> str | None:
        """The name of the first limit under which one more of these is too many."""
        limits = self._limits
        for seat in seats:
            if seat.taken >= getattr(limits, seat.limit):
                return seat.limit
        return None

def take(seats: Iterable[Seat]) -> None:
    for seat in seats:
        seat.taken += 1

def give_back(seats: Iterable[Seat]) -> None:
    for seat in seats:
        seat.taken -= 1
