"""ClientHellos shaped like those of browsers: ciphers, extensions and sizes are theirs (RFC 8446, RFC 8701).

The key shares are real public keys, of whose private halves nobody knows anything: a server answers them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from test_clienthello import extension, records, server_name, vector

# The base point of P-256 (SEC 2), uncompressed: as good a public key as any.
P256 = bytes.fromhex(
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)
X25519, P256_GROUP, X25519MLKEM768 = 0x001D, 0x0017, 0x11EC
SIGNATURES = (0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601)


def numbers(values: Iterable[int]) -> bytes:
    return b"".join(value.to_bytes(2, "big") for value in values)


def share(group: int, key: bytes) -> bytes:
    return numbers([group]) + vector(2, key)


class Shaper:
    """One browser's start: random numbers are drawn in its order, alike at each run."""

    def __init__(self) -> None:
        self.random = random.Random(8446)

    def octets(self, count: int) -> bytes:
        return self.random.randbytes(count)

    def grease(self) -> int:
        return self.random.randrange(16) * 0x1010 + 0x0A0A

    def post_quantum(self) -> bytes:
        """1216 octets: a key of ML-KEM-768 (FIPS 203: 768 numbers below 3329, a seed), then one of X25519."""
        packed = bytearray()
        for _ in range(384):
            a, b = self.random.randrange(3329), self.random.randrange(3329)
            packed += (a | b << 12).to_bytes(3, "little")
        return bytes(packed) + self.octets(32) + self.octets(32)

    def encrypted_hello(self, length: int) -> bytes:
        """An encrypted_client_hello that hides nothing (RFC 9849 6.2)."""
        start = b"\0" + numbers([1, 1]) + self.octets(1)  # outer; HKDF-SHA256, AES-128-GCM; config_id
        return extension(0xFE0D, start + vector(2, self.octets(32)) + vector(2, self.octets(length)))

    def hello(self, ciphers: Iterable[int], extensions: Iterable[bytes]) -> bytes:
        body = b"\3\3" + self.octets(32) + vector(1, self.octets(32)) + vector(2, numbers(ciphers)) + b"\1\0"
        return records(b"\1" + vector(3, body + vector(2, b"".join(extensions))))


def chromium(name: str, post_quantum: bool) -> bytes:
    shaper = Shaper()
    first, last, group, version = (shaper.grease() for _ in range(4))
    groups = [group, *([X25519MLKEM768] if post_quantum else []), X25519, P256_GROUP, 0x0018]
    shares = share(group, b"\0")
    if post_quantum:
        shares += share(X25519MLKEM768, shaper.post_quantum())
    shares += share(X25519, shaper.octets(32))
    middle = [
        server_name(name.encode()),
        extension(23, b""),  # extended_master_secret
        extension(0xFF01, b"\0"),  # renegotiation_info
        extension(10, vector(2, numbers(groups))),
        extension(11, b"\1\0"),  # ec_point_formats
        extension(35, b""),  # session_ticket
        extension(16, vector(2, vector(1, b"h2") + vector(1, b"http/1.1"))),
        extension(5, b"\1\0\0\0\0"),  # status_request
        extension(13, vector(2, numbers(SIGNATURES))),
        extension(18, b""),  # signed_certificate_timestamp
        extension(51, vector(2, shares)),
        extension(45, b"\1\1"),  # psk_key_exchange_modes
        extension(43, vector(1, numbers([version, 0x0304, 0x0303]))),
        extension(27, vector(1, numbers([2]))),  # compress_certificate
        extension(17613, vector(2, vector(1, b"h2"))),  # application_settings
        shaper.encrypted_hello(176),
    ]
    shaper.random.shuffle(middle)
    ciphers = [shaper.grease(), 0x1301, 0x1302, 0x1303, 0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8]
    ciphers += [0xC013, 0xC014, 0x009C, 0x009D, 0x002F, 0x0035]
    return shaper.hello(ciphers, [extension(first, b""), *middle, extension(last, b"\0")])


def firefox(name: str, post_quantum: bool) -> bytes:
    shaper = Shaper()
    groups = [*([X25519MLKEM768] if post_quantum else []), X25519, P256_GROUP, 0x0018, 0x0019, 0x0100, 0x0101]
    shares = share(X25519, shaper.octets(32)) + share(P256_GROUP, P256)
    if post_quantum:
        shares = share(X25519MLKEM768, shaper.post_quantum()) + shares
    extensions = [
        server_name(name.encode()),
        extension(23, b""),  # extended_master_secret
        extension(0xFF01, b"\0"),  # renegotiation_info
        extension(10, vector(2, numbers(groups))),
        extension(11, b"\1\0"),  # ec_point_formats
        extension(35, b""),  # session_ticket
        extension(16, vector(2, vector(1, b"h2") + vector(1, b"http/1.1"))),
        extension(5, b"\1\0\0\0\0"),  # status_request
        extension(34, vector(2, numbers([0x0403, 0x0503, 0x0603, 0x0203]))),  # delegated_credential
        extension(18, b""),  # signed_certificate_timestamp
        extension(51, vector(2, shares)),
        extension(43, vector(1, numbers([0x0304, 0x0303]))),
        extension(13, vector(2, numbers([*SIGNATURES, 0x0203, 0x0201]))),
        extension(45, b"\1\1"),  # psk_key_exchange_modes
        extension(28, numbers([0x4001])),  # record_size_limit
        extension(27, vector(1, numbers([1, 2, 3]))),  # compress_certificate
        shaper.encrypted_hello(239),
    ]
    ciphers = [0x1301, 0x1303, 0x1302, 0xC02B, 0xC02F, 0xCCA9, 0xCCA8, 0xC02C, 0xC030, 0xC00A, 0xC009, 0xC013]
    return shaper.hello([*ciphers, 0xC014, 0x009C, 0x009D, 0x002F, 0x0035], extensions)


HELLOS: dict[str, Callable[[str], bytes]] = {
    "chromium": lambda name: chromium(name, post_quantum=False),
    "chromium, post-quantum": lambda name: chromium(name, post_quantum=True),
    "firefox": lambda name: firefox(name, post_quantum=False),
    "firefox, post-quantum": lambda name: firefox(name, post_quantum=True),
}
