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

import contextlib
import enum
import socket
from collections.abc import Callable
from functools import partial

from taaslib import sockets
from taaslib.loop import FINISHED, READ, WRITE, Handler, Loop, Timer
from taaslib.outcomes import Outcome
from taaslib.pump import Pools, Pump
from taaslib.recorder import Ended, Record
from taaslib.sockets import Path, Socket

_DELIVERY_CHECK_SECONDS = 1.0
_NONE = -1  # the loop was told nothing, or to forget
_READING = READ | FINISHED  # READ sees the end too; but to change what the leg waited for is a system call
_THEIRS = (Outcome.COMPLETE, Outcome.RESET, Outcome.TIMED_OUT)  # what either end brings about

class State(enum.Enum):
    """live -> delivering (both FINs passed on, a reader still pauses) -> closed; a reset: closed."""
    LIVE = "live"
    DELIVERING = "delivering"
    CLOSED = "closed"

_LIVE, _DELIVERING, _CLOSED = State  # to look one up in an Enum takes 0.1 us
_COMPLETE = Outcome.COMPLETE

class End(Pump, Handler):
    """One of a relay's two sockets, its source; it is read from here and written to by the other, `peer`."""
    __slots__ = ("_relay", "fd", "interest", "peer", "shut", "unanswered_since")

    peer: End

    def __init__(self, relay: Relay, source: Socket, sink: Socket, pools: Pools) -> None:
        Pump.__init__(self, source, sink, pools)
        self._relay = relay
        self.fd = source.fileno()
        self.interest = _NONE  # what the loop was told
        self.shut = False  # our FIN to this end is sent
        self.unanswered_since: float | None = None  # when `check` first saw octets without an ACK

    def on_readable(self) -> None:
        try:
            settled = self.fill()
        except OSError as error:
            self._relay.fail(error.errno, self)
            return
        if not settled:
            self._relay.update(self)

    def on_writable(self) -> None:
        pump = self.peer
        try:
            pump.drain()
            if pump.has_room and not pump.pending:
                pump.fill()  # its source has most likely waited: two changes of interest less
        except OSError as error:
            self._relay.fail(error.errno, self)
            return
        self._relay.update(pump)

    def begin(self) -> None:
        """Offer what came before the pair."""
        try:
            self.drain()
        except OSError as error:
            self._relay.fail(error.errno, self.peer)
            return
        if self.pending:
            self._relay.update(self)

    def on_failed(self) -> None:
        self._relay.fail(sockets.failure(self.source), self)

    def abort(self) -> None:
        self._relay.close(Outcome.FAULT)

class Relay:
    """Owns both sockets until it is closed; ON_CLOSED is told once, when the RECORD is complete."""
    __slots__ = ("_loop", "_moved", "_moved_at", "_on_closed", "_timer", "initiator", "record", "responder",
                 "started", "state")  # fmt: skip

    def __init__(
        self, loop: Loop, pools: Pools, responder: Socket, initiator: Socket,
        record: Record, on_closed: Callable[[Relay, Outcome], object],
    ) -> None:
        self._loop = loop
        self._on_closed = on_closed
        self._timer: Timer | None = None
        self.state = _LIVE
        self.record = record
        self.started = loop.clock()
        self._moved = 0  # octets, and when it was seen that more had
        self._moved_at = self.started
        self.responder = End(self, responder, initiator, pools)
        self.initiator = End(self, initiator, responder, pools)
        self.responder.peer, self.initiator.peer = self.initiator, self.responder

    def __repr__(self) -> str:
        return f"<Relay {self.state.value} to-initiator={self.to_initiator} to-responder={self.to_responder}>"

    @property
    def to_initiator(self) -> int:
        """Octets delivered to the mobile client's kernel buffer so far."""
        return self.responder.copied + self.responder.spliced

    @property
    def to_responder(self) -> int:
        """Octets delivered to the hidden server's kernel buffer so far."""
        return self.initiator.copied + self.initiator.spliced

    def start(self, from_responder: bytes, from_initiator: bytes) -> None:
        """Begin with what either side sent before they met."""
        try:
            sockets.user_timeout(self.responder.source, 0)
        except OSError as error:
            self.fail(error.errno, self.responder)
            return
        self.update(self.initiator)
        for end, early in ((self.responder, from_responder), (self.initiator, from_initiator)):
            if early:
                end.preload(early)
                self._loop.call_soon(end.begin)

    def update(self, pump: End) -> None:
        """PUMP has taken or delivered something: pass its FIN on, and recompute what both ends wait for."""
        sink = pump.peer
        if pump.at_end:
            if not self.record.how:
                self._blame(pump, "fin")
            if not (pump.pending or sink.shut):  # all that came before the FIN is delivered
                sink.shut = True
                if pump.shut:
                    self._finish()
                    return
                self._loop.call_soon(partial(self._pass_fin, sink))
        for end in (pump, sink):
            interest = WRITE if end.peer.pending else 0
            if not end.at_end and (not end.pending or end.has_room):
                interest |= _READING
            elif end.shut:
                # Nothing more to hear or say: once both FINs are exchanged HUP, not to be masked, would spin.
                self._loop.forget(end.fd)
                end.interest = _NONE
                continue
            if interest != end.interest:
                end.interest = interest
                self._loop.watch(end.fd, end, interest)

    def _pass_fin(self, sink: End) -> None:
        if self.state is _LIVE:  # else `_finish` was in time
            try:
                sink.source.shutdown(socket.SHUT_WR)
            except OSError as error:  # ENOTCONN: the reset is about to be told
                self.fail(error.errno, sink)

    def check(self, dead_after: float, idle: float) -> None:
        """Close the pair if a path is dead: what was sent stays unacknowledged for DEAD_AFTER seconds.

        IDLE seconds without an octet end it too, unless 0.  A peer that merely pauses acknowledges.
        """
        now, moved = self._loop.clock(), self.to_initiator + self.to_responder
        if moved != self._moved:
            self._moved, self._moved_at = moved, now
        for end in (self.responder, self.initiator):
            if code := sockets.failure(end.source):  # one that the loop has been told to forget
                self.fail(code, end)
                return
            silence = sockets.unanswered(end.source)
            if silence is None:
                end.unanswered_since = None
            elif end.unanswered_since is None or silence < now - end.unanswered_since:
                end.unanswered_since = now
            elif now - end.unanswered_since >= dead_after:
                self._blame(end, "timeout")
                self.close(Outcome.TIMED_OUT)
                return
        if idle and now - self._moved_at >= idle:
            self.close(Outcome.IDLE)

    def fail(self, code: int | None, end: End) -> None:
        """END, or if the kernel knows better the other, reset or timed out: errno CODE."""
        if self.state is _CLOSED:
            return
        if sockets.path(end.peer.source)[0] and not sockets.path(end.source)[0]:
            end = end.peer
        dead = sockets.timed_out(code)
        if self.record.ended_by != "responder" or self.to_initiator:  # who left without a word stays to blame
            self._blame(end, "keep-alive" if dead else "reset")
        self.close(Outcome.TIMED_OUT if dead else Outcome.RESET)

    def _blame(self, end: End, how: str) -> None:
        self.record.ended_by, self.record.how = "responder" if end is self.responder else "initiator", how

    def close(self, outcome: Outcome, paths: tuple[Path, Path] | None = None) -> None:
        if self.state is _CLOSED:
            return
        self.state = _CLOSED
        if self._timer:
            self._timer.cancel()
        if outcome not in _THEIRS:
            self.record.ended_by, self.record.how = "service", outcome.value
        one, other = paths or self._paths()
        seconds = self._loop.clock() - self.started
        self.record.end = Ended(outcome, seconds, self.to_initiator, self.to_responder, *one[2:], *other[2:])
        for end in (self.responder, self.initiator):
            self._loop.forget(end.fd, closing=True)
            if outcome is _COMPLETE:
                self._loop.call_soon(end.source.close)
            else:
                end.close()
                sockets.reset(end.source)
            del end._relay, end.peer  # no cycle: nothing of a visit waits for the garbage collector
        self._on_closed(self, outcome)

    def _paths(self) -> tuple[Path, Path]:
        return sockets.path(self.initiator.source), sockets.path(self.responder.source)

    def _finish(self) -> None:
        """Both FINs have come: close, which sends the last, once no closed window holds octets back."""
        paths = self._paths()
        for end, path in ((self.responder, paths[1]), (self.initiator, paths[0])):
            if path[0] and (code := sockets.failure(end.source)):
                self.fail(code, end)
                return
        if paths[0][1] or paths[1][1]:
            self.state = _DELIVERING
            for end in (self.responder, self.initiator):
                self._loop.forget(end.fd)
                with contextlib.suppress(OSError):  # the reset is found in a second
                    end.source.shutdown(socket.SHUT_WR)
            self._timer = self._loop.call_later(_DELIVERY_CHECK_SECONDS, self._finish)
        else:
            self.close(_COMPLETE, paths)
