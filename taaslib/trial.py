"""A pair on trial: the visitor's hello is kept until the hidden server's first octet.

A NAT that forgets tells nobody: what waits behind it may be dead.  A hello of which nothing was acknowledged
goes to the next responder; on one that arrived a hidden server may have acted.  Does not know who is next.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass

from taaslib import sockets
from taaslib.loop import READ, Handler, Loop
from taaslib.outcomes import Outcome
from taaslib.relay import Relay, State

_SILENCE_SECONDS, _ROUND_TRIPS = 1.0, 3  # whichever is longer, without an ACK: dead

@dataclass(eq=False)
class Trial(Handler):
    """RELAY's sockets until it starts: when an octet or an ACK of FIRST has come, or a reset after that.

    REST came behind the hello and must not travel twice (0-RTT data, RFC 8446 2.3): it is sent by the relay.
    A reset, a FIN or PATIENCE seconds of silence before it: ON_DEAD is told which.  Where the kernel can't
    tell what was acknowledged, only a reset is believed, and only by the CREDULOUS.
    """
    loop: Loop
    relay: Relay
    first: bytes
    rest: bytes
    patience: float
    credulous: bool
    on_dead: Callable[[str], None]

    def __post_init__(self) -> None:
        self._sock, sent, then = self.relay.responder.source, 0, lambda: self._decide("silent")
        self._before, round_trip = sockets.acknowledged(self._sock)
        wait = min(self.patience, max(_ROUND_TRIPS * round_trip, _SILENCE_SECONDS))
        try:
            sent = self._sock.send(self.first)
        except BlockingIOError:
            pass
        except OSError:  # reset, and not told yet; a turn later, lest a dead pool should recurse
            wait, then = 0.0, self.on_failed
        self.relay.initiator.copied = sent
        self.first = self.first[sent:]
        self._timer = self.loop.call_later(wait, then)
        self.loop.watch(self.relay.responder.fd, self, READ)
        self.loop.watch(self.relay.initiator.fd, self, 0)

    def on_readable(self) -> None:
        try:
            answer = self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            self.on_failed()
            return
        self._decide("hung-up", bool(answer))  # a FIN without an ACK left before the hello came

    def on_failed(self) -> None:
        if code := sockets.failure(self.relay.initiator.source):
            self.relay.fail(code, self.relay.initiator)
        elif self._lost(self.credulous):
            self._give_up("reset")
        else:
            self.relay.fail(sockets.failure(self._sock), self.relay.responder)

    def abort(self) -> None:
        self.relay.close(Outcome.FAULT)

    def _lost(self, unknown: bool = False) -> bool:
        """Whether nothing of the hello was acknowledged; UNKNOWN where the kernel does not tell."""
        now, _ = sockets.acknowledged(self._sock)
        return unknown if now is None else now == self._before

    def _decide(self, cause: str, answered: bool = False) -> None:
        if self.relay.state is State.CLOSED:  # meanwhile, by somebody else
            return
        if not answered and self._lost():
            self._give_up(cause)
        else:
            self._timer.cancel()
            self.relay.start(b"", self.first + self.rest)

    def _give_up(self, cause: str) -> None:
        self._timer.cancel()
        self.loop.forget(self.relay.responder.fd)
        sockets.reset(self._sock)
        self.on_dead(cause)
