"""A listening socket in the loop: accepts until the queue is empty and hands every connection on.

Does not know what the connections are for.  While no descriptors are left but the reserve, new connections
are closed; where the kernel has none, or no memory, it pauses and tries again.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Callable

from taaslib.limits import Limits
from taaslib.loop import READ, Handler, Loop, Timer
from taaslib.names import Peer, plain_address
from taaslib.sockets import Socket, reserve, tune

_BACKLOG = 1024  # the kernel caps it at net.core.somaxconn
_PAUSE_SECONDS = 1.0
_PER_TURN = 64  # connections accepted in one turn, so that live pairs get theirs
_ANY = ("0.0.0.0", "::")  # each connection to these came to another address
OPERATOR = Peer("operator", 0, "operator")  # whoever comes by the runtime socket
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

def open_port(address: str, port: int, limits: Limits) -> socket.socket:
    """A non-blocking socket that listens on ADDRESS and PORT (0: the kernel chooses).  Raises OSError.

    Its connections inherit the options of `sockets.tune`.

    With SO_REUSEADDR two binds may succeed and the second *listen* fails; without it a port on which one
    connection lives can't be listened on again.  So it is set, and listen is the check.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sock.fileno() >= reserve():
            raise _none_left()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        tune(sock, limits)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock

def _none_left() -> OSError:
    return OSError(errno.EMFILE, os.strerror(errno.EMFILE))

def _place(sock: Socket) -> tuple[str, int]:
    """SOCK's own address, as plain text, and port."""
    address, port = sock.getsockname()[:2]
    return plain_address(address), port

class Listener(Handler):
    """Owns SOCK.  ON_CONNECTION is given each accepted socket, non-blocking, and its peer; it may close us.

    A fault while it does ends that connection alone.
    """
    def __init__(
        self, loop: Loop, sock: socket.socket, on_connection: Callable[[Socket, Peer], None],
        on_exhausted: Callable[[OSError], None],
    ) -> None:  # fmt: skip
        self._loop = loop
        self.sock = sock
        self._family = int(sock.family)
        self._is_operators = self._family == getattr(socket, "AF_UNIX", None)
        place = (OPERATOR.address, 0) if self._is_operators else _place(sock)
        self.port = place[1]
        self._local = place if place[0] not in _ANY else None
        self._on_connection = on_connection
        self._on_exhausted = on_exhausted
        self._pause: Timer | None = None
        self.closed = False
        self._served = -1  # the loop's turn
        self._update_interest()

    def on_readable(self) -> None:
        # Mostly there is one, and a look for a second costs an exception: only where the last turn left some.
        count = _PER_TURN if self._loop.turns == self._served + 1 else 1
        self._served = self._loop.turns
        for _ in range(count):
            if self.closed:
                return
            try:
                fd, address = self.sock._accept()  # type: ignore[attr-defined]  # accept() itself: 5 us more
                sock = Socket(self._family, socket.SOCK_STREAM, 0, fd)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self._on_exhausted(error)
                    self._pause = self._loop.call_later(_PAUSE_SECONDS, self._resume)
                    self._update_interest()
                    return
                continue  # accept(2): an error that waits on the new connection; treat it like EAGAIN
            if fd >= reserve() and not self._is_operators:
                sock.close()
                self._on_exhausted(_none_left())
                continue
            sock.setblocking(False)
            try:
                if self._is_operators:
                    peer = OPERATOR
                else:
                    local, port = self._local or _place(sock)
                    peer = Peer(plain_address(address[0]), address[1], local, port)
                self._on_connection(sock, peer)
            except OSError:  # it came and went
                sock.close()
            except BaseException:
                sock.close()
                raise

    def on_failed(self) -> None:
        self.close()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._pause:
            self._pause.cancel()
        self._loop.forget(self.sock.fileno())
        with contextlib.suppress(OSError):
            self.sock.close()

    def _resume(self) -> None:
        self._pause = None
        self._update_interest()

    def _update_interest(self) -> None:
        self._loop.watch(self.sock.fileno(), self, 0 if self._pause else READ)
