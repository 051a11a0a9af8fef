"""Who meets whom.  Pure bookkeeping: legs are opaque, and the caller acts on the answers.

A responder is a hidden server's connection that waits under a label; an initiator is a mobile client's.
In a waiting room at most one of the two queues is ever non-empty.  Imports nothing of ours, holds no
socket and reads no clock: timers belong to the caller, who calls `leave`.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeAlias, TypeVar

Leg = TypeVar("Leg", bound=Hashable)

@dataclass(slots=True)
class Paired(Generic[Leg]):
    """Relay between these two."""
    responder: Leg
    initiator: Leg

@dataclass(slots=True)
class Waiting(Generic[Leg]):
    """Keep the leg open; close `displaced`, whose seat it took."""
    displaced: Leg | None = None

@dataclass(frozen=True, slots=True)
class Refused:
    """Close the leg: all its label's seats are taken."""

Answer: TypeAlias = Paired[Leg] | Waiting[Leg] | Refused

class Seats(Protocol):
    """How many may wait, each per label: responders of one ID and in all, initiators in all."""
    responders_per_id: int
    responders_per_label: int
    parked_per_label: int
    refill: float  # seconds that a label stays served after a pairing took its last responder

@dataclass(slots=True)
class _Room(Generic[Leg]):
    """Everyone who waits under one label."""
    responders: OrderedDict[Leg, str] = field(default_factory=OrderedDict)  # leg -> its ID, oldest first
    initiators: OrderedDict[Leg, None] = field(default_factory=OrderedDict)
    live: int = 0  # pairs
    served_until: float = -math.inf  # when being served ends, or did, if nobody waits and no pair lives

class Rendezvous(Generic[Leg]):
    """The waiting rooms of all labels.  Every method takes NOW, in seconds of any steady clock."""
    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self._rooms: dict[str, _Room[Leg]] = {}

    def offer(self, label: str, id: str, responder: Leg, now: float) -> Answer[Leg]:
        """A hidden server's connection has come in, on the right of ID."""
        room = self._rooms.get(label) or self._open(label)
        if room.initiators:
            initiator, _ = room.initiators.popitem(last=False)
            return self._pair(room, responder, initiator, now)
        displaced, most = None, self._seats.responders_per_id
        if len(room.responders) >= most and sum(other == id for other in room.responders.values()) >= most:
            # The oldest NAT mapping is the likeliest to be dead; a new registration always wins over it.
            displaced = next(leg for leg, other in room.responders.items() if other == id)
            del room.responders[displaced]
        elif len(room.responders) >= self._seats.responders_per_label:
            return Refused()
        room.responders[responder] = id
        return Waiting(displaced)

    def seek(self, label: str, initiator: Leg, now: float) -> Answer[Leg]:
        """A mobile client's connection has come in and is ready to be paired."""
        room = self._rooms.get(label) or self._open(label)
        if room.responders:
            responder, _ = room.responders.popitem(last=False)
            return self._pair(room, responder, initiator, now)
        if len(room.initiators) >= self._seats.parked_per_label:
            return Refused()
        room.initiators[initiator] = None
        return Waiting()

    def _open(self, label: str) -> _Room[Leg]:
        room = self._rooms[label] = _Room()
        return room

    def _pair(self, room: _Room[Leg], responder: Leg, initiator: Leg, now: float) -> Paired[Leg]:
        room.live += 1
        if not room.responders:  # the hidden side is about to refill
            room.served_until = now + self._seats.refill
        return Paired(responder, initiator)

    def leave(self, label: str, leg: Leg, now: float) -> None:
        """The leg hung up, timed out or was revoked before anyone came."""
        room = self._rooms[label]
        if room.responders.pop(leg, None) is None:
            room.initiators.pop(leg, None)
        elif not room.responders:
            room.served_until = now

    def part(self, label: str, now: float) -> None:
        """A pair under LABEL has ended."""
        room = self._rooms[label]
        room.live -= 1
        if not room.live and not room.responders:
            room.served_until = max(room.served_until, now)

    def served(self, label: str, now: float) -> bool:
        """Whether a visitor who comes now is likely to be answered."""
        room = self._rooms.get(label)
        return room is not None and bool(room.responders or room.live or now < room.served_until)

    def last_served(self, label: str, now: float) -> float:
        """NOW while LABEL is served, else the moment when it last was (-inf: never)."""
        room = self._rooms.get(label)
        if room is None:
            return -math.inf
        return now if room.responders or room.live else min(now, room.served_until)

    def waiting(self, label: str) -> int:
        """How many responders wait under LABEL."""
        room = self._rooms.get(label)
        return len(room.responders) if room else 0

    def everyone(self) -> Iterator[Leg]:
        """All who wait; a snapshot, so that the caller may close them."""
        for room in list(self._rooms.values()):
            yield from [*room.responders, *room.initiators]

    def forget(self, label: str) -> None:
        """Drop LABEL's room if nobody is in it: nothing listens for its visitors any more."""
        room = self._rooms.get(label)
        if room and not (room.responders or room.initiators or room.live):
            del self._rooms[label]
