"""Bytes to and from a non-blocking socket, in plain or through TLS, behind the same verbs.

Knows nothing of the loop or of HTTP.  A want of OpenSSL or of the kernel never leaves this file: "not now"
is None (to receive) or a count (to send); "no more" is b"".

TLS runs over two memory BIOs, so that the socket stays ours: everything that has arrived is fed to
OpenSSL, and everything decrypted is taken out, because bytes left inside OpenSSL are never announced by
epoll.  Closing is `finish` (close_notify and FIN), then `drop` until the peer is done: raw bytes, never
through TLS.  A client that goes on sending would make OpenSSL fail for good, and closing a socket with unread
bytes turns the answer on its way into a reset (RFC 9112 9.6).
"""

import socket
import ssl

from taaslib.sockets import Socket

_CHUNK = 16 * 1024  # one TLS record's worth (RFC 8446 5.1)
_MAX_UNREAD = 256 * 1024  # octets; a handshake with a long certificate chain is a tenth of it

class TlsFailed(Exception):
    """The peer's TLS can't be gone on with; what OpenSSL wants to say of it stands to be flushed."""

class PlainStream:
    established = True  # its TLS, if it has any

    def __init__(self, sock: Socket) -> None:
        self._sock = sock
        self.backlog = b""  # what `flush` left

    def receive(self, first: bytes = b"") -> bytes | None:
        """FIRST, or what has come; None when nothing has, b"" at the end.  Raises OSError."""
        try:
            return first or self._sock.recv(_CHUNK)
        except BlockingIOError:
            return None

    def send(self, data: bytes) -> None:
        """Queue DATA; `flush` carries it to the kernel."""
        self.backlog += data

    def flush(self) -> bool:
        """Hand the kernel what it takes; True when nothing is left.  Raises OSError."""
        if self.backlog:
            try:
                self.backlog = self.backlog[self._sock.send(self.backlog) :]
            except BlockingIOError:
                pass
        return not self.backlog

    def finish(self) -> bool:
        """Say that no more will come, once all is sent; False while it is not.  Raises OSError."""
        if not self.flush():
            return False
        self._sock.shutdown(socket.SHUT_WR)
        return True

class TlsStream(PlainStream):
    established = False
    peer_closed = False  # its close_notify has come
    _closing = False  # ours is written
    _fault = ""

    def __init__(self, sock: Socket, context: ssl.SSLContext) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def receive(self, first: bytes = b"") -> bytes | None:
        """Go on with the handshake, then decrypt; None for nothing yet, b"" at the end.

        FIRST is what was read before it was known that this TLS is ours.  Raises TlsFailed when the peer's is
        at fault, OSError from the socket.
        """
        try:
            raw = first or self._sock.recv(_CHUNK)
        except BlockingIOError:
            return None
        if self._fault:
            raise TlsFailed(self._fault)
        if raw:
            self._incoming.write(raw)
        else:
            self._incoming.write_eof()
        data = b""
        try:
            if not self.established:
                self._tls.do_handshake()
                self.established = True
            while chunk := self._tls.read(_CHUNK):
                data += chunk
                if len(chunk) < _CHUNK and not (self._incoming.pending or self._outgoing.pending):
                    return data  # the record is used up, and to ask once more would raise
            self.peer_closed = True
        except ssl.SSLWantReadError:
            # A peer may make OpenSSL answer without end (KeyUpdate) and never read the answers.
            if len(self.backlog) + self._outgoing.pending > _MAX_UNREAD:
                raise TlsFailed("the peer does not read") from None
            return data or None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return data
        except ssl.SSLError as error:
            self._fault = error.reason or "malformed TLS"
            if not data:
                raise TlsFailed(self._fault) from None
        return data  # close_notify; what came before it still counts

    def part(self, raw: bytes = b"") -> bytes | None:
        """Leave TLS and go on in plain: our close_notify, then, in RAW, the peer's and nothing before it.

        Returns what came behind the peer's, which is plain; None while it has not come.  Raises TlsFailed.
        """
        self._incoming.write(raw)
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLError as error:
            raise TlsFailed(error.reason or "no close_notify") from None
        return self._incoming.read()

    def send(self, data: bytes) -> None:
        """Encrypt and queue DATA; `flush` carries it to the kernel."""
        self._tls.write(data)

    def flush(self) -> bool:
        """Hand the kernel what it takes; True when nothing is left.  Raises OSError."""
        self.backlog += self._outgoing.read()
        return super().flush()

    def finish(self) -> bool:
        """close_notify and FIN, once all is sent; False while it is not.  Raises OSError."""
        if not self._closing:
            self._closing = True
            try:
                self._tls.unwrap()
            except ssl.SSLError:  # SSLWantRead: ours is written, theirs not yet there
                pass
        return super().finish()
