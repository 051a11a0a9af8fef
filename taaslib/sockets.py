"""What is asked of the kernel about one TCP socket: keep-alive, time-outs, delivery, and how it failed.

Knows nothing of TAAS.  Options that a system lacks are left out: each of them only makes us notice sooner.
"""

import contextlib
import errno
import math
import socket
import struct
from functools import lru_cache
from typing import TypeAlias

from taaslib.limits import Limits

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

Socket = socket.SocketType  # what socket.socket adds costs 40 octets and 6 us a connection

_RESERVE = 64  # descriptors; the kernel always gives the lowest that is free

# Of struct tcp_info: segments unacknowledged, ms since the last ACK; state, round trip in us, segments sent
# again, octets in the send queue that were never sent (Linux 4.6); the round trip, octets acknowledged (4.1).
_ACKS, _PATH, _ACKED = map(struct.Struct, ("=24xI28xI", "=B67xI28xI40xI", "=68xI48xQ"))
Path: TypeAlias = tuple[bool, int, float | None, int | None]  # of `path`
_TCP_CLOSE = 7  # netinet/tcp.h

@lru_cache(maxsize=1)
def reserve() -> float:
    """The first of the last descriptors, which are for the database, the log, a certificate.

    Asked for once until `cache_clear`, as prlimit(1) may change it.
    """
    return most_descriptors() or math.inf

def most_descriptors() -> int:
    """How many we use, the reserve left out (0: not known)."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _RESERVE if resource else 0

def tune(sock: Socket, limits: Limits) -> None:
    """Make SOCK, or all that it will accept, fit to wait and to be relayed.

    Small messages go at once.  A silent peer is probed.  Urgent octets (RFC 6093) stay where they stand in
    the stream; by default they would vanish.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle, interval, probes = limits.keepalive_idle, limits.keepalive_interval, limits.keepalive_probes
    for name, value in (("TCP_KEEPIDLE", idle), ("TCP_KEEPINTVL", interval), ("TCP_KEEPCNT", probes)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), max(1, round(value)))

def quick_ack(sock: Socket) -> None:
    """Acknowledge at once what has come.

    A client that leaves Nagle's algorithm on holds its request back until its last flight is acknowledged,
    and we have nothing to send that could carry the ACK: 40 ms an exchange.
    """
    if hasattr(socket, "TCP_QUICKACK"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

def user_timeout(sock: Socket, seconds: float) -> None:
    """End the connection when something stays unacknowledged for SECONDS; 0 leaves it to the kernel.

    Only for one that waits: it also ends a peer whose window is zero, a paused video and not a dead one.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))

def unanswered(sock: Socket) -> float | None:
    """Seconds since the peer's last ACK while something waits for one; None when nothing does.

    A zero window is no reason: its owner acknowledges our probes, and nothing is unacknowledged.  After an
    idle hour the last ACK is an hour old, so that one look alone proves nothing.
    """
    told = _info(sock, _ACKS)
    return told[1] / 1000 if told and told[0] else None

def acknowledged(sock: Socket) -> tuple[int | None, float]:
    """How many octets the peer has acknowledged, SYN included (None: not told); the round trip in seconds."""
    told = _info(sock, _ACKED)
    return (told[1], told[0] / 1e6) if told else (None, 0.0)

def path(sock: Socket) -> Path:
    """Whether the kernel closed it; octets that a closed window holds back; round trip, ms; segments resent.

    True, 0, None, None where the kernel does not tell.
    """
    if told := _info(sock, _PATH):
        state, round_trip, again, held_back = told
        return state == _TCP_CLOSE, held_back, round_trip / 1000, again
    return True, 0, None, None

def _info(sock: Socket, fields: struct.Struct) -> tuple[int, ...] | None:
    try:
        return fields.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, fields.size))
    except (AttributeError, OSError, struct.error):  # this system does not tell
        return None

def failure(sock: Socket) -> int:
    """The errno that waits on SOCK (0: none)."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except OSError as error:
        return error.errno or 0

def timed_out(code: int | None) -> bool:
    """Whether errno CODE says that the path is dead, not that the peer reset the connection."""
    return code in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)

def reset(sock: Socket) -> None:
    """Close with a RST: what is unread or unsent is given up, and the peer learns that it is."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
