"""The event loop: calls a handler when its descriptor is ready, a function when it is due.

Knows nothing of sockets or TAAS.  `select.epoll` where it exists, `selectors` elsewhere.

Readiness is level-triggered.  Of each descriptor we are told at most four things: it can be read, it can
be written, its peer finished sending (RDHUP, only where asked for: it is seen behind unread bytes too),
and it failed (ERR, always).  HUP alone, both directions finished, counts as readable: what still stands in
the receive queue must be read first, and a handler that does not want to read must `forget` the descriptor,
since HUP can't be masked.
"""

import heapq
import select
import selectors
import time
from collections.abc import Callable
from itertools import count
from typing import Protocol

READ, WRITE, FAILED, HUNG_UP, FINISHED = 0x001, 0x004, 0x008, 0x010, 0x2000  # epoll's own numbers
PATIENT = 0x4000  # beside them in our own notes: a stranger's handshake, served after all others
_ASKED, _PROMPT, _NOT_ALONE = READ | WRITE | FINISHED, READ | PATIENT, READ | WRITE | FAILED
_MAX_EVENTS = 1024  # descriptors served in one turn
_PATIENT_PER_TURN = 8  # strangers' handshakes served in one turn: some 4 ms of somebody else's waiting
_BULKY_PER_TURN = 2  # handlers with much to do, or 1 beside others: a stream may move 1 MiB, some 0.3 ms

class Handler:
    """What the loop calls; whoever waits for less leaves the rest as it is here."""
    __slots__ = ()
    in_bulk = False  # it has much to do each time: served after others, a few each turn

    def on_readable(self) -> None: ...
    def on_writable(self) -> None: ...
    def on_finished(self) -> None:
        """The peer will send no more; bytes may still stand before its FIN.  For one who does not read."""

    def on_failed(self) -> None:
        """The connection was reset or timed out."""

    def abort(self) -> None:
        """One of the above let an exception out, which is our own bug: close what is yours."""

class Poller(Protocol):
    sees_closing: bool  # a descriptor that is closed need not be taken out

    def add(self, fd: int, interest: int, /) -> None: ...
    def change(self, fd: int, interest: int, /) -> None: ...
    def remove(self, fd: int, /) -> None: ...
    def poll(self, seconds: float) -> list[tuple[int, int]]: ...
    def close(self) -> None: ...

class Timer:
    """A function that will be called once, unless cancelled before."""
    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def __call__(self) -> None:
        if self.call:
            self.call()

    def cancel(self) -> None:
        self.call = None  # the husk leaves the heap when it surfaces, or in a sweep

class Loop:
    """One thread's turns.  ON_FAULT is told of an exception that a handler let out, and goes on."""
    def __init__(
        self, on_fault: Callable[[Handler | Timer], None], clock: Callable[[], float] = time.monotonic,
        poller: Poller | None = None,
    ) -> None:
        self.clock = clock  # seconds; tests bring their own
        self._on_fault = on_fault
        self._poller = poller or (EpollPoller() if hasattr(select, "epoll") else SelectorsPoller())
        self._handlers: list[Handler | None] = []  # by descriptor: a tenth of a dict's memory
        self._room = -1  # the last one stays free: -1 is the number of a closed socket
        self._interest: list[int] = []
        self._ready_patient: dict[int, int] = {}  # fd -> events, in the order of their coming
        self._ready_bulky: dict[int, int] = {}
        self._fresh: set[int] = set()  # watched since this turn's poll: what it said is about a predecessor
        self._timers: list[tuple[float, int, Timer]] = []  # a heap: when due; set first, called first
        self._order = count()
        self._soon: list[Callable[[], None]] = []
        self.call_soon = self._soon.append  # in this turn, when all that is ready was read: what wakes peers
        self.turns = 0  # so far
        self.busy_since: float | None = None  # when this turn's sleep ended

    def watch(self, fd: int, handler: Handler, interest: int) -> None:
        """Say what HANDLER waits for on FD from now on: of READ, WRITE, FINISHED, PATIENT any or none.

        Waiting for nothing still tells of failure.
        """
        if fd >= self._room:
            self._handlers += [None] * (fd + 2)
            self._interest += [0] * (fd + 2)
            self._room = len(self._handlers) - 1
        if self._handlers[fd] is None:
            self._poller.add(fd, interest & _ASKED)
            self._fresh.add(fd)
        elif interest != self._interest[fd]:
            self._poller.change(fd, interest & _ASKED)
        self._interest[fd] = interest
        self._handlers[fd] = handler

    def forget(self, fd: int, *, closing: bool = False) -> None:
        """Stop watching FD; do so before it is closed.  Forgetting twice does nothing.

        CLOSING: it is closed next, which epoll notices by itself.
        """
        if fd < self._room and self._handlers[fd] is not None:
            if not (closing and self._poller.sees_closing):
                self._poller.remove(fd)
            self._handlers[fd] = None
            if self._ready_patient or self._ready_bulky:
                self._ready_patient.pop(fd, None)
                self._ready_bulky.pop(fd, None)

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self._timers, (self.clock() + seconds, next(self._order), timer))
        return timer

    def turn(self, patience: float = 60.0) -> None:
        """Sleep until something happens, PATIENCE seconds at most; serve ready descriptors, then timers."""
        if self._ready_patient or self._ready_bulky or self._soon:
            patience = 0.0
        elif self._timers:
            patience = min(patience, max(0.0, self._timers[0][0] - self.clock()))
        self._fresh.clear()
        ready = self._poller.poll(patience)
        self.busy_since = self.clock()
        handlers, interest, fresh = self._handlers, self._interest, self._fresh
        for fd, events in ready:
            # Looked up anew each time: a handler served earlier may have closed FD or changed its mind.
            handler = handlers[fd]
            if handler is None or (fresh and fd in fresh):
                continue
            asked = interest[fd]
            if handler.in_bulk:
                self._ready_bulky[fd] = events
            elif asked & _PROMPT == READ and events & _NOT_ALONE == READ:  # nearly always
                try:
                    handler.on_readable()
                except Exception:
                    self._on_fault(handler)
            elif asked & PATIENT:
                self._ready_patient[fd] = events
            else:
                self._serve(fd, events)
        if self._soon:
            self._call_soon()
        bulky = _BULKY_PER_TURN
        if self._ready_bulky and any(events & READ and fd not in self._ready_bulky for fd, events in ready):
            bulky = 1
        for queue, most in ((self._ready_bulky, bulky), (self._ready_patient, _PATIENT_PER_TURN)):
            for fd in list(queue)[:most] if queue else ():
                waiting = queue.pop(fd, None)  # a handler served before it may have closed it
                if waiting is not None:
                    self._serve(fd, waiting)
        now = self.clock()
        while self._timers and self._timers[0][0] <= now:
            self.call_soon(heapq.heappop(self._timers)[2])
        if self._soon:
            self._call_soon()
        self.turns += 1
        if self.turns % 1024 == 0:
            self._sweep()
        self.busy_since = None

    def close(self) -> None:
        self._poller.close()

    def _serve(self, fd: int, events: int) -> None:
        handler = self._handlers[fd]
        if handler is None:
            return
        interest = self._interest[fd]
        try:
            if interest & READ and events & _NOT_ALONE == READ:
                handler.on_readable()  # which sees the end, too
                return
            if events & FAILED:
                handler.on_failed()
                return
            if events & WRITE and interest & WRITE:
                handler.on_writable()
            if events & (READ | HUNG_UP) and self._still(fd, handler, READ):
                handler.on_readable()
            if events & (FINISHED | HUNG_UP) and self._still(fd, handler, FINISHED):
                handler.on_finished()
        except Exception:
            self._on_fault(handler)

    def _still(self, fd: int, handler: Handler, event: int) -> bool:
        return self._handlers[fd] is handler and bool(self._interest[fd] & event)

    def _call_soon(self) -> None:
        for call in self._soon:  # which may add others
            try:
                call()
            except Exception:
                owner = getattr(call, "__self__", call)
                self._on_fault(owner if isinstance(owner, (Handler, Timer)) else Timer(call))
        self._soon.clear()

    def _sweep(self) -> None:
        # Long timeouts are mostly cancelled: when half of the heap is husks, drop them.
        alive = [entry for entry in self._timers if entry[2].call]
        if len(alive) < len(self._timers) // 2:
            heapq.heapify(alive)
            self._timers = alive

class EpollPoller:
    """Linux: interest may be empty, and RDHUP can be asked for."""
    sees_closing = True  # epoll(7), Q6: no descriptor of ours has a duplicate

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.add, self.change, self.remove = self._epoll.register, self._epoll.modify, self._epoll.unregister
        self.close = self._epoll.close

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        return self._epoll.poll(seconds, _MAX_EVENTS)

class SelectorsPoller:
    """Everywhere: an empty interest hears nothing, and the end of sending is only seen by reading."""
    sees_closing = False

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.close = self._selector.close

    def add(self, fd: int, interest: int) -> None:
        events = selectors.EVENT_READ * bool(interest & READ) | selectors.EVENT_WRITE * bool(interest & WRITE)
        if events:
            self._selector.register(fd, events)

    def change(self, fd: int, interest: int) -> None:
        self.remove(fd)
        self.add(fd, interest)

    def remove(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        return [
            (key.fd, READ * bool(ready & selectors.EVENT_READ) | WRITE * bool(ready & selectors.EVENT_WRITE))
            for key, ready in self._selector.select(seconds)
        ]
