"""Ports p and q: every open port has an owner and a deadline.

A p is opened by a registration, takes one connection from the address that registered, and is closed.  A q
belongs to a label for good (sticky: browsers keep its number), is open while the label is served and some
minutes longer, and takes any number of connections.  Knows nothing of HTTP or of what the connections do.
"""

import contextlib
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from taaslib.authorization import Right
from taaslib.journal import Journal
from taaslib.limits import Limits
from taaslib.listener import EXHAUSTED, Listener, open_port
from taaslib.lobby import Lobby
from taaslib.loop import Loop, Timer
from taaslib.names import Peer, network_of
from taaslib.outcomes import Outcome
from taaslib.sockets import Socket
from taaslib.store import Store, StoreError

_RANDOM_TRIES = 32  # before all ports are tried in a row: at 4,500 ports and half of them taken, 1 in 4e9

class NoPort(Exception):
    """Every port of the range is in use."""

class TooMany(Exception):
    """The ID holds, or the label awaits, as many as it may."""

@dataclass(slots=True, eq=False)
class _P:
    port: int
    right: Right
    claimant: str
    listener: Listener
    timer: Timer

@dataclass(slots=True, eq=False)
class _Q:
    port: int
    fixed: bool
    listeners: list[Listener]
    timer: Timer
    kept: bool  # the store remembers it

@dataclass(eq=False)
class Leases:
    """All open ports but the front door's.

    p listens on those ADDRESSES that its registrant can reach, q on all.  CLAIM "address" lets a p be
    claimed from the address that registered alone, "any" from everywhere.
    """
    loop: Loop
    store: Store
    lobby: Lobby
    journal: Journal
    wall_clock: Callable[[], float]
    on_exhausted: Callable[[OSError], None]
    limits: Limits
    addresses: tuple[str, ...]
    ports: tuple[range, ...]
    claim: str

    def __post_init__(self) -> None:
        self._random = random.SystemRandom()
        self._ps: dict[int, _P] = {}
        self._awaited_of_id: Counter[str] = Counter()
        self._awaited_of_label: Counter[str] = Counter()
        self._qs: dict[str, _Q] = {}
        self._fixed: frozenset[int] = frozenset()
        self._sticky: dict[int, None] = {}  # ports that are or were some label's q, least recently used first
        self._load_taken()

    # Port p

    def admit(self, right: Right) -> None:
        """Count RIGHT's holder as one who is about to come, until `release`.  Raises TooMany."""
        if self._awaited_of_id[right.id] >= self.limits.unclaimed_per_id:
            raise TooMany("Too many ports of this ID wait for their connection; connect to them first")
        tally = self.lobby.tally
        if tally.full([tally.seat("responders")]):
            raise TooMany("As many connections as this service may have wait already; try again later")
        if tally.full([tally.seat("pairs_per_id", right.id)]):
            raise TooMany("As many visits of this ID are live as an ID may have; try again later")
        awaited = self._awaited_of_label[right.label] + self.lobby.waiting(right.label)
        if awaited >= self.limits.responders_per_label:
            raise TooMany("As many connections as a label may have wait already; try again later")
        self._awaited_of_id[right.id] += 1
        self._awaited_of_label[right.label] += 1

    def release(self, right: Right) -> None:
        """RIGHT's holder has come, or will not come any more."""
        self._awaited_of_id[right.id] -= 1
        self._awaited_of_label[right.label] -= 1

    def open_p(self, right: Right, peer: Peer) -> int:
        """Listen for RIGHT's holder, who registered as PEER.  Raises TooMany, NoPort."""
        self.admit(right)
        address = self._listening_address(peer)
        for port in self._candidates():
            try:
                sock = open_port(address, port, self.limits)
            except OSError as error:
                if error.errno in EXHAUSTED:
                    break
                continue  # another program's, or another address family's
            listener = Listener(self.loop, sock, partial(self._claim, port), self.on_exhausted)
            timer = self.loop.call_later(
                self.limits.unclaimed, partial(self._close_p, port, Outcome.UNCLAIMED)
            )
            self._ps[port] = _P(port, right, network_of(peer.address), listener, timer)
            return port
        self.release(right)
        raise NoPort("no port is free")

    def _claim(self, port: int, sock: Socket, peer: Peer) -> None:
        lease = self._ps[port]
        if self.claim == "address" and network_of(peer.address) != lease.claimant:
            sock.close()
            self.journal.note(Outcome.STRANGER, label=lease.right.label, port=port, peer=peer)
            return
        self._close_p(port, Outcome.CLAIMED)
        self.welcome(sock, peer, lease.right)

    def welcome(self, sock: Socket, peer: Peer, right: Right, early: bytes = b"") -> None:
        """RIGHT's holder has come: let it wait, if the right still stands."""
        with contextlib.suppress(StoreError):
            if not self.holds(right):
                sock.close()
                self.journal.note(Outcome.REVOKED, label=right.label, id=right.id, peer=peer)
                return
        self.lobby.welcome_responder(sock, peer, right, early)

    def _close_p(self, port: int, outcome: Outcome) -> None:
        lease = self._ps.pop(port)
        self.release(lease.right)
        lease.timer.cancel()
        lease.listener.close()
        self.journal.note(outcome, label=lease.right.label, id=lease.right.id, port=port)

    # Port q

    def port_q(self, label: str) -> int | None:
        """LABEL's q, opened if need be; None when it can't be.  Raises StoreError."""
        lease = self._qs.get(label)
        if lease is None and self.store.opens_q(label):
            lease = self._open_q(label)
        if lease and not lease.kept:
            self.store.keep_port(label, lease.port, int(self.wall_clock()))
            lease.kept = True
        return lease.port if lease else None

    def _open_q(self, label: str) -> _Q | None:
        fixed, sticky = self.store.label_port(label)
        error: OSError | None = None
        for port in (fixed,) if fixed else self._candidates(first=sticky):
            try:
                socks = self._open_everywhere(port)
            except OSError as refused:
                error = refused
                if error.errno in EXHAUSTED:
                    break
                continue
            visit = partial(self.lobby.welcome_initiator, label)
            listeners = [Listener(self.loop, sock, visit, self.on_exhausted) for sock in socks]
            timer = self.loop.call_later(self.limits.q_linger, partial(self._review_q, label))
            self._qs[label] = lease = _Q(port, bool(fixed), listeners, timer, kept=bool(fixed))
            if not fixed:
                self._sticky.pop(port, None)
                self._sticky[port] = None
            self.journal.note(Outcome.OPENED, label=label, port=port)
            return lease
        self.journal.note(Outcome.PORT_FAILED, label=label, port=fixed, cause=error or "no port is free")
        return None

    def serve(self, label: str) -> None:
        """LABEL is served now: see that its q is open."""
        try:
            self.port_q(label)
        except StoreError as error:  # a redirect tries again
            self.journal.note(Outcome.STORE_BUSY, label=label, cause=error)

    def _open_everywhere(self, port: int) -> list[socket.socket]:
        with contextlib.ExitStack() as opened:
            socks = [opened.enter_context(open_port(each, port, self.limits)) for each in self.addresses]
            opened.pop_all()
        return socks

    def _review_q(self, label: str) -> None:
        """Close q once its label has been quiet for long enough, else come back when it may have been."""
        quiet = self.loop.clock() - self.lobby.last_served(label)
        if quiet >= self.limits.q_linger:
            self._close_q(label, Outcome.QUIET)
        else:
            rest = self.limits.q_linger - max(0.0, quiet)
            self._qs[label].timer = self.loop.call_later(rest, partial(self._review_q, label))

    def _close_q(self, label: str, outcome: Outcome) -> None:
        lease = self._qs.pop(label)
        lease.timer.cancel()
        for listener in lease.listeners:
            listener.close()
        self.lobby.forget(label)
        self.journal.note(outcome, label=label, port=lease.port)

    # Both

    def follow_store(self) -> None:
        """Close what rests on rights that are gone, move labels to their new port.  Raises StoreError."""
        self._load_taken()
        for port, p in list(self._ps.items()):
            if not self.holds(p.right):
                self._close_p(port, Outcome.REVOKED)
        for label, q in list(self._qs.items()):
            fixed, _sticky = self.store.label_port(label)
            moved = fixed != q.port if fixed else q.fixed or q.port in self._fixed
            if moved or not self.store.opens_q(label):
                self._close_q(label, Outcome.CHANGED)
                if self.lobby.served(label):
                    self.serve(label)

    @property
    def listeners(self) -> list[Listener]:
        """Of all open ports."""
        listeners = [lease.listener for lease in self._ps.values()]
        return listeners + [each for lease in self._qs.values() for each in lease.listeners]

    @property
    def count(self) -> int:
        """How many ports are open."""
        return len(self._ps) + len(self._qs)

    def q_of(self, label: str) -> int | None:
        """LABEL's port q while it is open."""
        return self._qs[label].port if label in self._qs else None

    def holds(self, right: Right) -> bool:
        """Whether RIGHT still stands.  Raises StoreError."""
        return self.store.rights(right.id, right.label) == right.generation

    def carries(self, right: Right) -> bool:
        """Whether live pairs that rest on RIGHT may go on.  Raises StoreError."""
        return self.holds(right) or self.store.spared(right.id, right.label, right.generation)

    def close(self) -> None:
        for port in list(self._ps):
            self._close_p(port, Outcome.SHUTDOWN)
        for label in list(self._qs):
            self._close_q(label, Outcome.SHUTDOWN)

    def _listening_address(self, peer: Peer) -> str:
        if peer.local in self.addresses:
            return peer.local
        return "::" if ":" in peer.local else "0.0.0.0"

    def _load_taken(self) -> None:
        self._fixed, sticky = self.store.taken_ports()
        self._sticky = dict.fromkeys(sticky)

    def _candidates(self, first: int | None = None) -> Iterator[int]:
        """Ports to try, best first: FIRST, random ones that nobody had, others' old q's, oldest first.

        Nearly always the first will do, so that nothing is computed for those behind it.
        """
        if first is not None and self._is_free(first):
            yield first
        random, sizes = self._random, list(map(len, self.ports))
        for _ in range(_RANDOM_TRIES):
            port = random.choice(random.choices(self.ports, sizes)[0])
            if port not in self._sticky and self._is_free(port):
                yield port
        every = [port for each in self.ports for port in each]
        start = random.randrange(len(every))
        for port in every[start:] + every[:start]:
            if port not in self._sticky and self._is_free(port):
                yield port
        open_qs = {lease.port for lease in self._qs.values()}
        yield from (port for port in list(self._sticky) if self._is_free(port) and port not in open_qs)

    def _is_free(self, port: int) -> bool:
        """Whether PORT is in our ranges and neither fixed nor a p; open q's are sticky or fixed."""
        return port not in self._ps and port not in self._fixed and any(port in each for each in self.ports)
