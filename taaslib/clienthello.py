"""The first octets of a TLS connection -> the server name that its client asks for (RFC 8446, RFC 6066 3).

Knows nothing of sockets, and decides nothing: at worst it says that there is no name.  A ClientHello may come
in any number of segments and records; with post-quantum key shares it is longer than either.
"""

import struct

MOST = 16 * 1024  # octets looked at, records' headers included; a longer hello has no name for us

HANDSHAKE = 0x16  # RFC 8446 5.1: the first octet of a ClientHello's record
_RECORD = struct.Struct(">HxH")  # RFC 8446 5.1: type and version's first octet, its second, length
_HANDSHAKE = HANDSHAKE << 8 | 3
_MESSAGE = struct.Struct(">BBH")  # RFC 8446 4: type, length; its high octet is 0 up to MOST
_CLIENT_HELLO = 1
_EXTENSION = struct.Struct(">HH")  # RFC 8446 4.2: type, length
_NAMES = struct.Struct(">HBH")  # RFC 6066 3: the list's length; the first name's type and length
_SERVER_NAME, _HOST_NAME = 0, 0

class HelloReader:
    """Octets as they come -> the server name, once the hello is whole or past hope; each is looked at once.

    A name is in lower case, without a final dot; "" when the client names nobody.
    """
    __slots__ = ("_data", "_message", "_seen", "beyond", "found", "whole")

    def __init__(self) -> None:
        self.found: str | None = None  # what `feed` said last
        self.whole = False  # the octets up to BEYOND are one ClientHello and nothing else
        self.beyond = 0  # octets that were fed and stand behind it
        self._data = b""  # records that are not whole yet
        self._message = b""  # the handshake message that the records carry
        self._seen = 0

    def feed(self, data: bytes) -> str | None:
        """Take more octets; None while more are needed to tell."""
        self._seen += len(data)
        self._data += data
        try:
            self.found = self._look()
        except (IndexError, struct.error, UnicodeDecodeError):
            self.found = ""
        return self.found

    def _look(self) -> str | None:
        data, at, have = self._data, 0, len(self._data)
        while have >= at + 5:
            kind, length = _RECORD.unpack_from(data, at)
            if kind != _HANDSHAKE or not 0 < length <= 1 << 14:  # no empty fragment, 2^14 octets at most
                return ""
            start, end = at + 5, at + 5 + length
            if end > have:
                break
            self._message = message = self._message + data[start:end]
            at, size = end, len(message) - 4
            if size >= 0:
                kind, high, length = _MESSAGE.unpack_from(message)
                if kind != _CLIENT_HELLO or high or length > MOST:
                    return ""
                if size >= length:
                    self.beyond = have - at
                    self.whole = size == length and self._seen - self.beyond <= MOST
                    return _name(message, 4 + length)
        if not b"\x16\x03".startswith(data[at : at + 2]):
            return ""
        self._data = data[at:]
        return None if self._seen < MOST else ""

def _name(hello: bytes, end: int) -> str:
    """The first name of the first server_name extension of a ClientHello that goes to END there, or "".

    Where a length leads beyond all that came, or the name is not ASCII, raises what `feed` knows.
    """
    at = 4 + 2 + 32  # the message's type and length; legacy_version, random
    at += 1 + hello[at]  # legacy_session_id
    at += 2 + (hello[at] << 8 | hello[at + 1])  # cipher_suites
    at += 1 + hello[at]  # legacy_compression_methods
    last = at + 2 + (hello[at] << 8 | hello[at + 1])  # TLS 1.2 allows a hello without extensions
    at += 2
    while at < last:
        kind, length = _EXTENSION.unpack_from(hello, at)
        if kind == _SERVER_NAME:
            names, kind, name = _NAMES.unpack_from(hello, at + 4)
            # The name, the list, the extension, all extensions, the hello: each ends within the next.
            if at + 9 + name <= at + 6 + names <= at + 4 + length <= last <= end and kind == _HOST_NAME:
                return hello[at + 9 : at + 9 + name].decode("ascii").lower().removesuffix(".")
            break
        at += 4 + length
    return ""
