"""The lobby: legs come in by port p or q, wait, are paired and relayed; it knows who is served.

Knows neither ports nor HTTP: whoever accepts a connection hands it to `welcome_responder` or
`welcome_initiator`.  What it decides, rendezvous.py decides; here are the descriptors and the deadlines.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

from taaslib import proxy2, sockets
from taaslib.authorization import Right
from taaslib.clienthello import HANDSHAKE, HelloReader
from taaslib.journal import Journal
from taaslib.limits import Limits, Seat, Tally, give_back, take
from taaslib.loop import FINISHED, READ, Handler, Loop, Timer
from taaslib.names import Peer, network_of
from taaslib.outcomes import Outcome
from taaslib.pump import Pools
from taaslib.recorder import Ended, Record, Recorder
from taaslib.relay import Relay
from taaslib.rendezvous import Paired, Refused, Rendezvous, Waiting
from taaslib.sockets import Socket
from taaslib.trial import Trial

_CHECK_SECONDS = 10.0  # between looks at all live pairs, or less where a limit is shorter than four of them

class State(enum.Enum):
    """An initiator: arriving -> waiting <-> paired, or ended.  A responder begins at waiting."""
    ARRIVING = "arriving"  # no octet yet, or not all of a hello, and first-bytes has not passed
    WAITING = "waiting"
    PAIRED = "paired"  # its socket belongs to a relay now
    ENDED = "ended"

_ARRIVING, _WAITING, _PAIRED, _ENDED = State  # to look one up in an Enum takes 0.2 us

class Leg(Handler):
    """One waiting socket and its early octets."""
    __slots__ = ("_lobby", "at_end", "early", "hello", "label", "peer", "right", "seats", "since", "sock",
                 "state", "timer", "until")  # fmt: skip

    def __init__(self, lobby: Lobby, sock: Socket, peer: Peer, label: str, right: Right | None) -> None:
        self._lobby, self.sock, self.peer, self.label, self.right = lobby, sock, peer, label, right
        self.since = lobby.loop.clock()
        self.early = b""
        self.hello: HelloReader | None = None  # of a visitor whose early octets may be one
        self.until = math.inf  # when a hello that was sent once is sent no more
        self.at_end = False  # its FIN has come
        self.timer: Timer | None = None  # a visitor's, when nobody was there
        self.seats: tuple[Seat, ...] = ()
        self.state = _ARRIVING if right is None else _WAITING

    def __repr__(self) -> str:
        return f"<Leg {'initiator' if self.right is None else 'responder'} {self.state.value} {self.peer}>"

    def on_readable(self) -> None:
        room = self._lobby.limits.early_bytes - len(self.early)
        try:
            data = self.sock.recv(room)
        except BlockingIOError:
            self.update_interest()
            return
        except OSError as error:
            self._lobby.leave(self, Outcome.TIMED_OUT if sockets.timed_out(error.errno) else Outcome.RESET)
            return
        if data:
            if self.hear(data) and self.state is _ARRIVING:
                self._lobby.seek(self)
            else:
                self.update_interest()
        elif self.right is None and self.early:
            self.at_end = True  # a visitor who has said all: relayed like any other FIN
            self.update_interest()
        else:
            self._lobby.leave(self, Outcome.HUNG_UP)

    def hear(self, data: bytes) -> bool:
        """Take early octets; False while they may be a part of a hello."""
        if data[0] == HANDSHAKE and self.right is None and not self.early:
            self.hello = HelloReader()
        self.early += data
        hello = self.hello
        return not hello or hello.found is not None or hello.feed(data) is not None

    def on_finished(self) -> None:
        if self.right is not None:  # of a visitor, reading sees it in its place
            self._lobby.leave(self, Outcome.HUNG_UP)

    def on_failed(self) -> None:
        code = sockets.failure(self.sock)
        self._lobby.leave(self, Outcome.TIMED_OUT if sockets.timed_out(code) else Outcome.RESET)

    def abort(self) -> None:
        self._lobby.leave(self, Outcome.FAULT)

    def update_interest(self) -> None:
        done = self.at_end or (self.hello and self.hello.whole)
        room = not done and len(self.early) < self._lobby.limits.early_bytes
        interest = READ | FINISHED if room else 0 if self.right is None else FINISHED
        self._lobby.loop.watch(self.sock.fileno(), self, interest)

@dataclass(eq=False)
class Lobby:
    """ON_SERVED is told a label each time that a responder begins to wait under it."""
    loop: Loop
    pools: Pools
    journal: Journal
    wall_clock: Callable[[], float]
    limits: Limits
    on_served: Callable[[str], None]

    def __post_init__(self) -> None:
        limits = self.limits
        self._rooms: Rendezvous[Leg] = Rendezvous(limits)
        self.tally = Tally(limits)
        self._waiting_seats = (self.tally.seat("responders"),)  # shared by all who wait
        # Kept, because thousands share them, and hold them for as long as they are here.
        self._seats = lru_cache(maxsize=4096)(self._find_seats)
        self._arriving: dict[Leg, float] = {}  # and when first-bytes is over; oldest first
        self._arrivals: Timer | None = None  # for the oldest: one that each leg had would cost more than it
        self._live: dict[Relay, tuple[Seat, ...]] = {}  # in their order; of their legs nothing is kept
        self.recorder = Recorder(limits)
        self._on_closed = self._part  # one for all relays
        self._check_live()

    def _find_seats(self, label: str, address: str, id: str = "") -> tuple[Seat, ...]:
        """What a visitor takes, the last one until it is paired, and then with a hidden server of ID."""
        network = network_of(address)
        last = ("pairs_per_id", id) if id else ("unpaired_per_address", network)
        keys = ("visits", ""), ("visits_per_label", label), ("visits_per_address", network), last
        return tuple(self.tally.seat(*key) for key in keys)

    # Who comes

    def welcome_responder(self, sock: Socket, peer: Peer, right: Right, early: bytes = b"") -> None:
        """A hidden server's connection has claimed its port p, or stays behind its registration."""
        try:
            sockets.user_timeout(sock, self.limits.user_timeout)
        except OSError:
            sock.close()
            return
        leg = Leg(self, sock, peer, right.label, right)
        leg.early, leg.seats = early, self._waiting_seats
        take(leg.seats)
        leg.update_interest()
        answer = self._rooms.offer(right.label, right.id, leg, self.loop.clock())
        if isinstance(answer, Waiting):
            self.journal.note(Outcome.WAITS, label=right.label, id=right.id, peer=peer)
            self.recorder.came(right.label, peer, self._now())
            if answer.displaced:
                self._end(answer.displaced, Outcome.DISPLACED)
            self.on_served(right.label)
        else:
            self._act(leg, answer)

    def welcome_initiator(self, label: str, sock: Socket, peer: Peer, early: bytes = b"") -> None:
        """A mobile client has come to port q, or through the front door with its EARLY octets.

        It is paired once it speaks, or soon without.
        """
        seats = self._seats(label, peer.address)
        if full := self.tally.full(seats):
            sock.close()
            self.journal.note(Outcome.FULL, label=label, initiator=peer, cause=full)
            return
        leg = Leg(self, sock, peer, label, None)
        leg.seats = seats
        take(seats)
        if early:
            leg.hear(early)
            self.seek(leg)
        elif sockets.failure(sock):  # nobody is used up by what was sent before a reset
            self._end(leg, Outcome.RESET)
        else:
            leg.on_readable()  # its first octets have mostly come with it
        if leg.state is _ARRIVING:
            self._arriving[leg] = self.loop.clock() + self.limits.first_bytes
            if self._arrivals is None:
                self._arrivals = self.loop.call_later(self.limits.first_bytes, self._seek_for_silent)

    def _seek_for_silent(self) -> None:
        self._arrivals = None
        for leg, over in self._arriving.items():  # the oldest is looked at, and then its successor
            rest = over - self.loop.clock()
            self._arrivals = self.loop.call_later(max(0.0, rest), self._seek_for_silent)
            if rest <= 0:
                self.seek(leg)
            return

    def seek(self, leg: Leg) -> None:
        """LEG has spoken, or was silent for long enough."""
        self._arriving.pop(leg, None)
        leg.state = _WAITING
        self._act(leg, self._rooms.seek(leg.label, leg, self.loop.clock()))

    def _act(self, leg: Leg, answer: Paired[Leg] | Waiting[Leg] | Refused) -> None:
        if isinstance(answer, Paired):
            self._pair(answer.responder, answer.initiator)
        elif isinstance(answer, Refused):
            self._end(leg, Outcome.FULL)
        else:
            patience = min(self.limits.parked, leg.until - self.loop.clock())
            leg.timer = self.loop.call_later(patience, lambda: self.leave(leg, Outcome.NOBODY_CAME))
            leg.update_interest()

    def _pair(self, responder: Leg, initiator: Leg) -> None:
        responder.state = initiator.state = _PAIRED
        if initiator.timer:
            initiator.timer.cancel()
        right = responder.right
        assert right
        now, label, one, other = self.loop.clock(), responder.label, responder.peer, initiator.peer
        seats = self._seats(label, other.address, right.id)
        responder.seats[0].taken -= 1
        initiator.seats[-1].taken -= 1
        seats[-1].taken += 1
        waited, stood = now - initiator.since, now - responder.since
        record = self.recorder.begin(right, one, other, self._now(), waited, stood)
        self.journal.note(Outcome.PAIRED, label=label, responder=one, initiator=other)
        relay = Relay(self.loop, self.pools, responder.sock, initiator.sock, record, self._on_closed)
        self._live[relay] = seats
        header = proxy2.header(other, label) if right.proxy else b""
        early, hello = initiator.early, initiator.hello
        initiator.early, initiator.hello = b"", None
        if hello and hello.whole and not responder.early and self.limits.fail_over:
            credulous = initiator.until == math.inf
            initiator.until = min(initiator.until, now + self.limits.fail_over)
            on_dead = partial(self._fail_over, relay, initiator, early, hello)
            end, patience = len(early) - hello.beyond, initiator.until - now
            Trial(self.loop, relay, header + early[:end], early[end:], patience, credulous, on_dead)
            return
        relay.start(responder.early, header + early)

    def _fail_over(self, relay: Relay, initiator: Leg, early: bytes, hello: HelloReader, cause: str) -> None:
        """RELAY's responder was dead, and got nothing of EARLY: its INITIATOR seeks another."""
        self._part(relay, Outcome.FAILED_OVER, cause)
        initiator.early, initiator.hello = early, hello
        initiator.seats = self._seats(initiator.label, initiator.peer.address)
        take(initiator.seats)
        if self.loop.clock() < initiator.until:
            self.seek(initiator)
        else:
            self._end(initiator, Outcome.TIMED_OUT)

    # Who goes

    def leave(self, leg: Leg, outcome: Outcome) -> None:
        """LEG goes before it was paired."""
        if leg.state is _WAITING:
            self._rooms.leave(leg.label, leg, self.loop.clock())
        self._arriving.pop(leg, None)
        self._end(leg, outcome)

    def _end(self, leg: Leg, outcome: Outcome) -> None:
        leg.state = _ENDED
        give_back(leg.seats)
        if leg.timer:
            leg.timer.cancel()
        self.loop.forget(leg.sock.fileno(), closing=True)
        leg.sock.close()
        role = "initiator" if leg.right is None else "responder"
        self.journal.note(outcome, label=leg.label, **{role: leg.peer})

    def _part(self, relay: Relay, outcome: Outcome, cause: str | None = None) -> None:
        record, right = relay.record, relay.record.right
        give_back(self._live.pop(relay))
        self._rooms.part(right.label, self.loop.clock())
        end = record.end or Ended(outcome, 0.0, 0, 0, None, None, None, None)
        self.recorder.end(record, end, self._now())
        one, other, more = record.responder, record.initiator, dict if cause else record.facts
        self.journal.note(outcome, more, label=right.label, responder=one, initiator=other, cause=cause)

    def kick(self, number: int | None = None, label: str | None = None) -> int:
        """End the pair of that NUMBER, or all of LABEL; how many there were."""
        chosen = [r for r in self._live if number == r.record.number or label == r.record.right.label]
        for relay in chosen:
            relay.close(Outcome.KICKED)
        return len(chosen)

    def revoke(self, holds: Callable[[Right], bool], carries: Callable[[Right], bool]) -> None:
        """End responders that wait on a right that no longer HOLDS, and pairs on one that CARRIES none."""
        for leg in self._rooms.everyone():
            if leg.right and not holds(leg.right):
                self.leave(leg, Outcome.REVOKED)
        for relay in self.relays:
            if not carries(relay.record.right):
                relay.close(Outcome.REVOKED)

    def drain(self) -> None:
        """The service is about to end: all go who are not paired."""
        for leg in [*self._arriving, *self._rooms.everyone()]:
            self.leave(leg, Outcome.SHUTDOWN)

    def close(self) -> None:
        """The service ends: everyone goes."""
        self.drain()
        for relay in list(self._live):
            relay.close(Outcome.SHUTDOWN)

    # Who is asked about

    def waiting(self, label: str) -> int:
        """How many responders wait under LABEL."""
        return self._rooms.waiting(label)

    def served(self, label: str) -> bool:
        """Whether a visitor who comes now is likely to be answered."""
        return self._rooms.served(label, self.loop.clock())

    def last_served(self, label: str) -> float:
        """When LABEL was last served, on the loop's clock."""
        return self._rooms.last_served(label, self.loop.clock())

    def forget(self, label: str) -> None:
        """Nothing listens for LABEL's visitors any more."""
        self._rooms.forget(label)

    def live(self) -> list[tuple[Record, float, int, int]]:
        """The records of all live pairs, their ages in seconds, octets to the initiator and the responder."""
        now = self.loop.clock()
        return [(r.record, now - r.started, r.to_initiator, r.to_responder) for r in self._live]

    def _now(self) -> int:
        return int(self.wall_clock() * 1000)

    @property
    def relays(self) -> list[Relay]:
        return list(self._live)

    def _check_live(self) -> None:
        limits = self.limits
        shortest = min(limits.dead_after, limits.idle or limits.dead_after)
        self.loop.call_later(max(1.0, min(_CHECK_SECONDS, shortest / 4)), self._check_live)
        for relay in self.relays:
            relay.check(limits.dead_after, limits.idle)
