"""The first octets of a TLS connection -> the server name that its client asks for (RFC 8446, RFC 6066 3).

Knows nothing of sockets, and decides nothing: at worst it says that there is no name.  A ClientHello may come
in any number of segments and records; with post-quantum key shares it is longer than either.
"""

from dataclasses import dataclass

MOST = 16 * 1024  # octets looked at, records' headers included; a longer hello has no name for us

_HANDSHAKE, _CLIENT_HELLO = 0x16, 1  # RFC 8446 5.1, 4
_SERVER_NAME, _HOST_NAME = b"\0\0", 0  # RFC 6066 1.1, 3

@dataclass(slots=True)
class Hello:
    """What the client asks for: lower case, without a final dot; "" when it names nobody."""
    name: str

NO_NAME = Hello("")

class HelloReader:
    """Octets as they come -> the Hello, once it is whole or past hope; each octet is looked at once."""
    __slots__ = ("_data", "_message", "_seen", "beyond", "found", "whole")

    def __init__(self) -> None:
        self.found: Hello | None = None  # what `feed` said last
        self.whole = False  # the octets up to BEYOND are one ClientHello and nothing else
        self.beyond = 0  # octets that were fed and stand behind it
        self._data = b""  # records that are not whole yet
        self._message = b""  # the handshake message that the records carry
        self._seen = 0

    def feed(self, data: bytes) -> Hello | None:
        """Take more octets; None while more are needed to tell."""
        self._seen += len(data)
        self._data += data
        try:
            self.found = self._look()
        except (_Malformed, IndexError):
            self.found = NO_NAME
        return self.found

    def _look(self) -> Hello | None:
        data, at = self._data, 0
        while end := _record_end(data, at):
            self._message += data[at + 5 : end]
            at, message = end, self._message
            if len(message) >= 4:
                length = message[1] << 16 | message[2] << 8 | message[3]
                if message[0] != _CLIENT_HELLO or length > MOST:
                    raise _Malformed
                if len(message) >= 4 + length:
                    self.beyond = len(data) - at
                    self.whole = len(message) == 4 + length and self._seen - self.beyond <= MOST
                    return Hello(_name(message[4 : 4 + length]))
        self._data = data[at:]
        return None if self._seen < MOST else NO_NAME

def _record_end(data: bytes, at: int) -> int:
    """Where the record that begins AT there ends in DATA; 0 while it is not whole."""
    header = data[at : at + 5]
    if header and (header[0] != _HANDSHAKE or header[1:2] not in (b"", b"\x03")):
        raise _Malformed
    if len(header) < 5:
        return 0
    length = header[3] << 8 | header[4]
    if not 0 < length <= 1 << 14:  # RFC 8446 5.1: no empty fragment, 2^14 octets at most
        raise _Malformed
    end = at + 5 + length
    return end if end <= len(data) else 0

class _Malformed(Exception):
    """It is no ClientHello that we understand."""

def _vector(data: bytes, at: int, octets: int) -> tuple[int, int]:
    """Where a variable-length vector (RFC 8446 3.4), whose length has so many OCTETS, begins and ends.

    Like all who look beyond the end, raises IndexError.
    """
    start = at + octets
    end = start + (data[at] if octets == 1 else data[at] << 8 | data[at + 1])
    if end > len(data):
        raise _Malformed
    return start, end

def _name(body: bytes) -> str:
    """The first name of the first server_name extension of a ClientHello's BODY."""
    at = 2 + 32  # legacy_version, random
    for octets in (1, 2, 1):  # legacy_session_id, cipher_suites, legacy_compression_methods
        _, at = _vector(body, at, octets)
    if at == len(body):  # TLS 1.2 allows a hello without extensions
        return ""
    at, last = _vector(body, at, 2)
    body = body[:last]
    while at < last:
        kind = body[at : at + 2]
        start, at = _vector(body, at + 2, 2)
        if kind == _SERVER_NAME:
            return _first_name(body[start:at])
    return ""

def _first_name(extension: bytes) -> str:
    start, end = _vector(extension, 0, 2)
    names = extension[start:end]
    start, end = _vector(names, 1, 2)
    if names[0] != _HOST_NAME:
        return ""
    try:
        return names[start:end].decode("ascii").lower().removesuffix(".")
    except UnicodeDecodeError:
        return ""
