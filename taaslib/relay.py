"""A live pair: octets both ways, unchanged, with backpressure, until both sides are done.

Knows neither labels nor how the two met.

        fill ->  pump  -> drain            each end reads through one pump
    responder ==========> initiator        and is written to by the other
    responder <========== initiator

A FIN is passed on when all that came before it has been delivered, and the other direction goes on.  A
reset ends both with a reset.  Nothing is closed while the kernel holds octets that its peer's window keeps
back: an orphaned socket would be given up after some minutes of a paused reader.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable

from taaslib import sockets
from taaslib.loop import Handler, Loop, Timer
from taaslib.outcomes import Outcome
from taaslib.pump import Pools, RingPump

_DELIVERY_CHECK_SECONDS = 1.0
_THEIRS = (Outcome.COMPLETE, Outcome.RESET, Outcome.TIMED_OUT)  # what either end brings about

class State(enum.Enum):
    """live -> delivering (both FINs passed on, a reader still pauses) -> closed; a reset: closed."""

    LIVE = "live"
    DELIVERING = "delivering"
    CLOSED = "closed"

class End(Handler):
    """One of a relay's two sockets, with the pump that reads it and, in `peer`, the one that writes it."""

    __slots__ = ("_loop", "_relay", "fd", "peer", "pump", "shut", "sock", "unanswered_since")

    peer: End
    pump: RingPump

    def __init__(self, loop: Loop, relay: Relay, sock: socket.socket) -> None:
        self._loop, self._relay, self.sock = loop, relay, sock
        self.fd = sock.fileno()
        self.shut = False  # our FIN to this end is sent
        self.unanswered_since: float | None = None  # when `check` first saw octets without an ACK

    def on_readable(self) -> None:
        try:
            settled = self.pump.fill()
        except OSError as error:
            self._relay.fail(error.errno, self)
            return
        if not settled:
            self._relay.update()

    def on_writable(self) -> None:
        pump = self.peer.pump
        try:
            pump.drain()
            if pump.has_room and not pump.pending:
                pump.fill()  # its source has most likely waited: two changes of interest less
        except OSError as error:
            self._relay.fail(error.errno, self)
            return
        self._relay.update()

    def on_failed(self) -> None:
        self._relay.fail(sockets.failure(self.sock), self)

    def abort(self) -> None:
        self._relay.close(Outcome.FAULT)

    def pass_fin_on(self) -> None:
        """Send our FIN once the other end has said its last word and all of it is delivered."""
        incoming = self.peer.pump
        if incoming.at_end and not self._relay.ended_by:
            self._relay.blame(self.peer, "fin")
        if incoming.at_end and not incoming.pending and not self.shut:
            self.shut = True
            self.sock.shutdown(socket.SHUT_WR)

    def update_interest(self) -> None:
        read, write = self.pump.has_room, self.peer.pump.pending > 0
        if self.shut and not read:
            # Nothing more to hear or say: once both FINs are exchanged HUP can't be masked and would spin.
            self._loop.forget(self.fd)
        else:
            # Reading sees the end too; but to change what the leg waited for would be one more system call.
            self._loop.watch(self.fd, self, read=read, write=write, finished=read)

class Relay:
    """Owns both sockets until it is closed; ON_CLOSED is told once: the outcome, how either path was."""

    __slots__ = ("_loop", "_moved", "_on_closed", "_timer", "ended_by", "how", "initiator", "responder",
                 "started", "state")  # fmt: skip

    def __init__(
        self, loop: Loop, pools: Pools, responder: socket.socket, initiator: socket.socket,
        on_closed: Callable[[Relay, Outcome, sockets.Path, sockets.Path], None],
    ) -> None:
        self._loop = loop
        self._on_closed = on_closed
        self._timer: Timer | None = None
        self.state = State.LIVE
        self.ended_by = self.how = ""  # as in recorder.py's Record
        self.started = loop.clock()
        self._moved = 0, self.started  # octets, and when it was seen that more had
        self.responder, self.initiator = End(loop, self, responder), End(loop, self, initiator)
        for end, peer in ((self.responder, self.initiator), (self.initiator, self.responder)):
            end.peer, end.pump = peer, pools.pump(end.sock, peer.sock)

    def __repr__(self) -> str:
        return f"<Relay {self.state.value} to-initiator={self.to_initiator} to-responder={self.to_responder}>"

    @property
    def to_initiator(self) -> int:
        """Octets delivered to the mobile client's kernel buffer so far."""
        return self.responder.pump.copied + self.responder.pump.spliced

    @property
    def to_responder(self) -> int:
        """Octets delivered to the hidden server's kernel buffer so far."""
        return self.initiator.pump.copied + self.initiator.pump.spliced

    def start(self, from_responder: bytes, from_initiator: bytes, *, initiator_at_end: bool) -> None:
        """Begin with what either side sent before they met."""
        self.responder.pump.preload(from_responder)
        self.initiator.pump.preload(from_initiator)
        self.initiator.pump.at_end = initiator_at_end
        try:
            sockets.user_timeout(self.responder.sock, 0)
            self.responder.pump.drain()
            self.initiator.pump.drain()
        except OSError as error:
            self.fail(error.errno, self.responder)
            return
        self.update()

    def update(self) -> None:
        """Recompute from the pumps' state what to pass on and what to wait for."""
        try:
            self.responder.pass_fin_on()
            self.initiator.pass_fin_on()
        except OSError as error:  # ENOTCONN: the reset is about to be told
            self.fail(error.errno, self.responder if self.initiator.shut else self.initiator)
            return
        if self.responder.shut and self.initiator.shut:
            self._finish()
            return
        self.responder.update_interest()
        self.initiator.update_interest()

    def check(self, dead_after: float, idle: float) -> None:
        """Close the pair if a path is dead: what was sent stays unacknowledged for DEAD_AFTER seconds.

        IDLE seconds without an octet end it too, unless 0.  A peer that merely pauses acknowledges.
        """
        now, moved = self._loop.clock(), self.to_initiator + self.to_responder
        if moved != self._moved[0]:
            self._moved = moved, now
        for end in (self.responder, self.initiator):
            if code := sockets.failure(end.sock):  # one that the loop has been told to forget
                self.fail(code, end)
                return
            silence = sockets.unanswered(end.sock)
            if silence is None:
                end.unanswered_since = None
            elif end.unanswered_since is None or silence < now - end.unanswered_since:
                end.unanswered_since = now
            elif now - end.unanswered_since >= dead_after:
                self.blame(end, "timeout")
                self.close(Outcome.TIMED_OUT)
                return
        if idle and now - self._moved[1] >= idle:
            self.close(Outcome.IDLE)

    def fail(self, code: int | None, end: End) -> None:
        """END reset or timed out: errno CODE."""
        dead = sockets.timed_out(code)
        self.blame(end, "keep-alive" if dead else "reset")
        self.close(Outcome.TIMED_OUT if dead else Outcome.RESET)

    def blame(self, end: End, how: str) -> None:
        """END ends this pair, HOW."""
        self.ended_by, self.how = "responder" if end is self.responder else "initiator", how

    def close(self, outcome: Outcome) -> None:
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        if self._timer:
            self._timer.cancel()
        if outcome not in _THEIRS:
            self.ended_by, self.how = "service", outcome.value
        ends = self.responder, self.initiator
        paths = sockets.path(self.responder.sock), sockets.path(self.initiator.sock)
        for end in ends:
            self._loop.forget(end.fd, closing=True)
            end.pump.close()
            if outcome is Outcome.COMPLETE:
                end.sock.close()
            else:
                sockets.reset(end.sock)
        self._on_closed(self, outcome, *paths)
        for end in ends:
            del end._relay, end.peer  # no cycle: nothing of a visit waits for the garbage collector

    def _finish(self) -> None:
        """Both FINs are passed on: close as soon as no peer's closed window holds octets back."""
        ends = self.responder, self.initiator
        self.state = State.DELIVERING
        for end in ends:
            if code := sockets.failure(end.sock):
                self.fail(code, end)
                return
        if any(sockets.unsent(end.sock) for end in ends):
            for end in ends:
                self._loop.forget(end.fd)
            self._timer = self._loop.call_later(_DELIVERY_CHECK_SECONDS, self._finish)
        else:
            self.close(Outcome.COMPLETE)
