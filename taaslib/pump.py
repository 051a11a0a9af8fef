"""One direction of a relay: bytes from one socket to another, never more in between than a bound.

Knows nothing of pairs, labels or the loop: its owner calls `fill` when the source is readable, `drain`
when the sink is writable, and reads `pending`, `has_room` and `at_end` to know what to wait for.

Two ways.  To copy through a ring of octets works everywhere.  To splice (Linux) lets the kernel move pages
through a pipe, which halves the CPU time per byte in bulk and costs more for small messages: so that begins
with a read of 32 KiB (bench of 2026: recv/send wins up to 16 KiB a message, splice from 64 KiB on).  Reads
are large from the first octet on: a peer that begins with small pieces may keep its window small for long.

A small message is received into one buffer that all pumps share, and nearly always sent whole.  Rings and
pipes are borrowed from pools for as long as bytes stand in them, so that an idle pair owns neither, and a
busy one finds a buffer that is warm in the cache.

What splice(2) does not say, and each costs something:

- EAGAIN means "socket empty" or "pipe full", and hides the end of the stream too: we splice in only when
  the pipe is empty, so that EAGAIN is about the socket.
- One octet of TCP urgent data makes a socket readable for ever while splice returns EAGAIN: a remote spin.
  recv(2) gets past it, so EAGAIN sends us back to copying.  With a FIN behind that octet splice returns 0
  as if the stream were at its end, with octets still to come: so only recv's 0 is believed.
- After a reset, splice returns what is buffered, ECONNRESET once, then 0, as if the peer had ended in order:
  any OSError is the end of the pair.
- A pipe counts slots, not octets: 600 sends of one octet fill a 64 KiB pipe with 16 of them.  So pipes are
  enlarged to 1 MiB where the kernel allows.
- An unprivileged user gets few large pipes (fs.pipe-user-pages-soft): EPERM is no error, and a pipe that is
  too small is not used at all.
- A pipe that is not empty goes to nobody else: it is closed, or one client's octets reach another.
"""

from __future__ import annotations

import contextlib
import os
import sys

from taaslib.sockets import Socket, reserve

if sys.platform != "win32":
    import fcntl  # now: once privileges are dropped Python's own folder may be out of reach

SMALL = 64 * 1024  # a read while messages are small, octets
_BULK = 32 * 1024  # a read of so much takes the bulk way: more is coming
LARGE = 256 * 1024  # a ring in bulk; 64 KiB costs twice the CPU time per byte
_PIPE = 1024 * 1024  # asked for, /proc/sys/fs/pipe-max-size; 64 KiB is clearly slower, 256 KiB is not
_PIPE_LEAST = 128 * 1024
_LONE, _IN_A_ROW = 64, 8  # after so many turns without another stream one is spliced so often in a turn
_TRICKLE = 8 * 1024  # a splice that moves less than this goes back to copying
_F_SETPIPE_SZ, _F_GETPIPE_SZ = 1031, 1032  # fcntl has the names on Linux only
_SPLICE_FLAGS = getattr(os, "SPLICE_F_MOVE", 1) | getattr(os, "SPLICE_F_NONBLOCK", 2)
can_splice = hasattr(os, "splice")

class Ring:
    """A bounded first-in, first-out store of octets that wraps round at its end."""
    __slots__ = ("_buffer", "_start", "capacity", "pending")

    def __init__(self, capacity: int) -> None:
        self._buffer = memoryview(bytearray(capacity))
        self.capacity = capacity
        self._start = 0
        self.pending = 0

    def receive(self, sock: Socket) -> int:
        """recv(2) into the free space up to the buffer's end; returns octets (0: end of stream)."""
        if not self.pending:
            self._start = 0
        end = self._start + self.pending
        free = self._buffer[end:] if end < self.capacity else self._buffer[end - self.capacity : self._start]
        count = sock.recv_into(free)
        self.pending += count
        return count

    def send(self, sock: Socket) -> int:
        """send(2) the oldest octets up to the buffer's end; returns octets sent."""
        count = sock.send(self._buffer[self._start : min(self._start + self.pending, self.capacity)])
        self.pending -= count
        self._start = (self._start + count) % self.capacity
        return count

    def put(self, data: bytes | memoryview) -> None:
        """Store DATA in an empty ring that has room for it."""
        self._start, self.pending = 0, len(data)
        self._buffer[: len(data)] = data

class Pools:
    """Rings and pipes that nobody uses just now; one instance serves all pumps."""
    def __init__(self, pump: str = "auto", keep: int = 64) -> None:
        self.follow(pump)
        self._keep = keep  # how many of each kind lie idle at most
        self._rings: list[Ring] = []
        self._pipes: list[tuple[int, int]] = []
        self._latest, self._run = -1, 0  # the source that was spliced last, and how often in a row
        self.scratch = memoryview(bytearray(SMALL))  # empty between any two calls

    def follow(self, pump: str) -> None:
        """What is done in bulk from now on: auto, splice or ring."""
        self.splices = can_splice if pump == "auto" else pump == "splice"

    def borrow_ring(self) -> Ring:
        return self._rings.pop() if self._rings else Ring(LARGE)

    def return_ring(self, ring: Ring) -> None:
        if ring.capacity == LARGE and len(self._rings) < self._keep:
            ring.pending = 0
            self._rings.append(ring)

    def borrow_pipe(self) -> tuple[int, int] | None:
        """The two ends of an empty pipe; None where we do not splice or the kernel grants none worth it."""
        if not self.splices:
            return None
        return self._pipes.pop() if self._pipes else _new_pipe()

    def return_pipe(self, pipe: tuple[int, int], *, dirty: bool) -> None:
        if dirty or len(self._pipes) >= self._keep:
            _close_pipe(pipe)
        else:
            self._pipes.append(pipe)

    def share(self, source: int) -> int:
        """How often what descriptor SOURCE has may be spliced in this turn: more where no other stream is."""
        self._run = self._run + 1 if source == self._latest else 0
        self._latest = source
        return _IN_A_ROW if self._run >= _LONE else 1

    def close(self) -> None:
        while self._pipes:
            _close_pipe(self._pipes.pop())

class Pump:
    """From SOURCE to SINK; spliced in bulk where POOLS lend a pipe, else through a ring."""
    __slots__ = ("_pipe", "_pools", "_ring", "at_end", "copied", "in_bulk", "pending", "sink", "source",
                 "spliced")  # fmt: skip

    def __init__(self, source: Socket, sink: Socket, pools: Pools) -> None:
        self.source, self.sink, self._pools = source, sink, pools
        self._ring: Ring | None = None
        self._pipe: tuple[int, int] | None = None  # one of the two at most
        self.in_bulk = False  # the last piece was large
        self.pending = 0  # octets taken from the source and not yet taken by the sink
        self.at_end = False  # the source said that no more will come
        self.copied = 0  # octets delivered to the sink's kernel by recv and send
        self.spliced = 0  # ... by splice

    @property
    def has_room(self) -> bool:
        if self.at_end or not self.pending:
            return not self.at_end
        return self._ring is not None and self.pending < self._ring.capacity

    def fill(self) -> bool:
        """Take what the source has, up to a bound, and offer it to the sink at once.  Raises OSError.

        Returns whether the sink took all and more may come: then there is nothing else to do.
        """
        if self.in_bulk or self.pending:
            self._fill_in_bulk()
            return not (self.at_end or self.pending)
        scratch = self._pools.scratch
        try:
            count = self.source.recv_into(scratch)
        except BlockingIOError:  # an urgent octet alone, or another's event
            return True
        if not count:
            self.at_end = True
            return False
        if count >= _BULK:
            self.in_bulk = True
        try:
            sent = self.sink.send(scratch[:count])
        except BlockingIOError:
            sent = 0
        self.copied += sent
        if sent == count:
            return True
        self.preload(scratch[sent:count])
        return False

    def preload(self, data: bytes | memoryview) -> None:
        """Let DATA, which nothing is in front of, come before all that will be read."""
        self._ring = Ring(len(data))  # not of the pool: a crowd's first octets would leave it large
        self._ring.put(data)
        self.pending = len(data)

    def _fill_in_bulk(self) -> None:
        if not self.pending and (pipe := self._pools.borrow_pipe()):
            self._pipe = pipe
            if self._splice(*pipe):
                return
        if self._pipe is None:
            self._fill_ring()
        self.drain()

    def _splice(self, out: int, into: int) -> int:
        """Through our empty pipe, which goes back if it is empty again; returns octets that came."""
        source, sink, total = self.source.fileno(), self.sink.fileno(), 0
        for _ in range(self._pools.share(source)):
            try:
                came = self.pending = os.splice(source, into, _PIPE, flags=_SPLICE_FLAGS)
                total += came
                if came:
                    moved = os.splice(out, sink, came, flags=_SPLICE_FLAGS)
                    self.pending -= moved
                    self.spliced += moved
            except BlockingIOError:
                break
            if came < _BULK or self.pending or total >= _PIPE:
                break
        if not self.pending:
            self.in_bulk = total >= _TRICKLE
            self._pools.return_pipe((out, into), dirty=False)
            self._pipe = None
        return total

    def _fill_ring(self) -> None:
        ring = self._ring
        if ring is None:
            ring = self._ring = self._pools.borrow_ring()
        elif ring.pending == ring.capacity:
            return
        try:
            count = ring.receive(self.source)
        except BlockingIOError:
            count = -1
        self.in_bulk = count >= _BULK
        self.at_end = count == 0
        self.pending = ring.pending

    def drain(self) -> None:
        """Give the sink what it takes.  Raises OSError."""
        pools, ring, pipe = self._pools, self._ring, self._pipe
        try:
            if ring:
                while ring.pending:
                    self.copied += ring.send(self.sink)
                pools.return_ring(ring)
                self._ring = None
            elif pipe:
                while self.pending:
                    moved = os.splice(pipe[0], self.sink.fileno(), self.pending, flags=_SPLICE_FLAGS)
                    self.pending -= moved
                    self.spliced += moved
                pools.return_pipe(pipe, dirty=False)
                self._pipe = None
        except BlockingIOError:
            pass
        if ring:
            self.pending = ring.pending

    def close(self) -> None:
        """Give back what is borrowed; the pump is not used again."""
        self.pending = 0
        if self._ring:
            self._pools.return_ring(self._ring)
            self._ring = None
        if self._pipe:
            self._pools.return_pipe(self._pipe, dirty=True)
            self._pipe = None

def _new_pipe() -> tuple[int, int] | None:
    try:
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # out of descriptors: copying needs none
        return None
    for size in (_PIPE, LARGE):
        with contextlib.suppress(OSError):  # EPERM: over fs.pipe-user-pages-soft or pipe-max-size
            fcntl.fcntl(pipe[1], _F_SETPIPE_SZ, size)
            break
    if fcntl.fcntl(pipe[1], _F_GETPIPE_SZ) >= _PIPE_LEAST and pipe[1] < reserve():
        return pipe
    _close_pipe(pipe)
    return None

def _close_pipe(pipe: tuple[int, int]) -> None:
    for fd in pipe:
        os.close(fd)
