"""Host names -> the label that they mean; what a label, an own domain or a peer may look like.

Knows nothing of requests, sockets or which labels exist.
"""

import ipaddress
import re
import sys
from typing import NamedTuple

LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123 2.1, RFC 1035 2.3.4
HOST_NAME = re.compile(rf"{LABEL.pattern}(?:\.{LABEL.pattern})*")

# RFC 3986 3.2.2 and 3.2.3, without user information and percent-encoding, which no client of ours needs.
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{0,5}))?")

def host_of(authority: str) -> str:
    """The host in AUTHORITY (`host`, `host:port`), lower case, without a final dot.  Raises ValueError."""
    match = _AUTHORITY.fullmatch(authority)
    if not match or int(match["port"] or 0) > 65535:
        raise ValueError("not a host with an optional port")
    return match["host"].lower().removesuffix(".")

def label_of(host: str, servers: str) -> str | None:
    """The label in LABEL.servers, where HOST is such a name."""
    label, dot, rest = host.partition(".")
    return label if dot and rest == servers and LABEL.fullmatch(label) else None

def is_address(host: str) -> bool:
    """Whether HOST is an IP address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

def own_host(text: str, registrar: str, servers: str) -> str:
    """TEXT as an own domain: lower case, as A-labels, without a final dot.  Raises ValueError."""
    try:
        host = text.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError:
        host = ""
    if not HOST_NAME.fullmatch(host) or len(host) > 253 or "." not in host or is_address(host):
        raise ValueError("it is no DNS name")
    if host in (registrar, servers) or host.endswith("." + servers):
        raise ValueError("it is the service's own")
    return host

def label(text: str) -> str:
    """TEXT folded to lower case.  Raises ValueError when it is no DNS label."""
    folded = text.lower()
    if not text.isascii() or not LABEL.fullmatch(folded):
        raise ValueError("a label is 1 to 63 letters, digits and hyphens, with no hyphen at either end")
    return folded

def plain_address(address: str) -> str:
    """ADDRESS as the kernel gives it -> canonical text: no scope, no IPv4 in IPv6's clothes.

    Interned: thousands of connections come to the same address of ours, and wait.
    """
    if ":" not in address:
        return sys.intern(address)  # IPv4 has one spelling; ipaddress takes 7 us to say so
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return sys.intern(str(ip))

def network_of(address: str) -> str:
    """The address that stands for one peer: ADDRESS itself, or the /64 it lies in with IPv6.

    One IPv6 host commonly owns a whole /64 and changes its address within it (RFC 8981).
    """
    if ":" not in address:
        return address
    return str(ipaddress.ip_network(f"{address}/64", strict=False))

def host_port(address: str, port: int) -> str:
    """`a.b.c.d:p`, or `[addr]:p` with IPv6."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

class Peer(NamedTuple):
    """Who is at the other end of a connection, and the address and port of ours that it came to."""
    address: str
    port: int
    local: str
    local_port: int = 0

    def __str__(self) -> str:
        return host_port(self.address, self.port)
