"""The PROXY protocol's header, version 2 (haproxy's proxy-protocol.txt, 2.2): who visits, before its octets.

Knows nothing of sockets.
"""

import ipaddress
import struct

from taaslib.names import Peer

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_PROXY = 0x21  # version 2, command PROXY
_STREAM = {4: 0x11, 6: 0x21}  # TCP over IPv4, over IPv6
_LABEL = 0xE0  # the first of the types left to applications (2.2.7)

def header(visitor: Peer, label: str) -> bytes:
    """Says that VISITOR came, to which address and port of ours, and under which LABEL."""
    source, destination = ipaddress.ip_address(visitor.address), ipaddress.ip_address(visitor.local)
    ports = struct.pack(">HH", visitor.port, visitor.local_port)
    tlv = struct.pack(">BH", _LABEL, len(label)) + label.encode("ascii")
    body = source.packed + destination.packed + ports + tlv
    return _SIGNATURE + struct.pack(">BBH", _PROXY, _STREAM[source.version], len(body)) + body
