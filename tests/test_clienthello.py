"""The server name in a ClientHello: real ones, cut anywhere, fragmented, hostile."""

from __future__ import annotations

import ssl
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taaslib.clienthello import MOST, HelloReader


def real_hello(name: str | None, *, most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """What OpenSSL sends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = most
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def vector(size: int, content: bytes) -> bytes:
    return len(content).to_bytes(size, "big") + content


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack(">H", kind) + vector(2, content)


def server_name(*names: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, b"".join(bytes([kind]) + vector(2, name) for name in names)))


def hello(*extensions: bytes, more: bytes = b"") -> bytes:
    """A handshake message: ClientHello with these EXTENSIONS."""
    body = b"\3\3" + b"r" * 32 + vector(1, b"s" * 32) + vector(2, b"\x13\x01") + vector(1, b"\0")
    return b"\1" + vector(3, body + vector(2, b"".join(extensions)) + more)


def records(message: bytes, size: int = 1 << 14) -> bytes:
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\3\1" + vector(2, piece) for piece in pieces)


def read(data: bytes, step: int = 1 << 20) -> str | None:
    """Fed STEP octets at a time, until it knows."""
    reader = HelloReader()
    for at in range(0, len(data), step):
        if (known := reader.feed(data[at : at + step])) is not None:
            return known
    return None


@pytest.mark.parametrize("most", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_real_hello_names_its_server(most: ssl.TLSVersion) -> None:
    assert read(real_hello("Home.Example.org", most=most)) == "home.example.org"
    assert read(real_hello(None, most=most)) == ""
    assert read(real_hello("192.0.2.1", most=most)) == ""  # OpenSSL sends no address as a name


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100, 1 << 14])
def test_any_cut_into_segments_and_records_says_the_same(size: int) -> None:
    data = records(hello(extension(0x0A0A, b""), server_name(b"home.example.org")), size)
    for step in (1, 2, 7, 1 << 20):
        assert read(data, step) == "home.example.org"
    for cut in range(len(data)):
        assert read(data[:cut]) is None


def test_a_post_quantum_hello_of_several_kib_is_read() -> None:
    grease = extension(0xFAFA, b"\0"), extension(51, b"k" * 6000)  # RFC 8701; X25519MLKEM768 and friends
    assert read(records(hello(*grease, server_name(b"home.example.org")))) == "home.example.org"


def test_what_is_longer_than_the_bound_has_no_name() -> None:
    data = records(hello(extension(51, b"k" * MOST), server_name(b"home.example.org")))
    assert read(data) == ""
    assert read(data, 1) == ""
    assert read(b"\x16\3\1\x40\0" + b"\1\0\x3f\xff" + b"x" * MOST, 100) == ""


def test_the_first_name_of_the_first_extension_counts() -> None:
    two = server_name(b"a.example", b"b.example"), server_name(b"c.example")
    assert read(records(hello(*two))) == "a.example"
    assert read(records(hello(server_name(b"a.example.")))) == "a.example"


@pytest.mark.parametrize(
    "message",
    [
        hello(),
        hello(server_name(b"a.example", kind=1)),
        hello(server_name(b"\xff.example")),
        hello(extension(0, b"")),
        hello(extension(0, b"\0\5\0\0\7ab")),
        hello(b"\0"),
        hello(b"\0\0\0\5"),
        b"\2" + hello(server_name(b"a.example"))[1:],
        b"\1" + vector(3, b""),
        b"\1" + vector(3, b"\3\3" + b"r" * 31),
        b"\1" + vector(3, b"\3\3" + b"r" * 32 + b"\0\0\0\0"),  # no extensions at all: TLS 1.2
    ],
)
def test_a_hello_without_a_name_or_malformed_has_no_name(message: bytes) -> None:
    assert read(records(message)) == ""


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1", b"\x16\2", b"\x17\3\1", b"\x16\3\1\0\0", b"\x16\3\1\x40\1", b"\x80\x2e\1\3\1"]
)
def test_what_is_no_tls_handshake_has_no_name(data: bytes) -> None:
    assert read(data) == read(data, 1) == ""


def test_another_record_in_the_middle_ends_hope() -> None:
    message = hello(server_name(b"a.example"))
    assert read(records(message[:40]) + b"\x15\3\1\0\2\1\0" + records(message[40:])) == ""


@given(st.binary(max_size=300), st.integers(1, 50))
def test_anything_is_read_without_a_fault_and_alike_at_any_cut(data: bytes, step: int) -> None:
    for start in (data, b"\x16\3\1" + data, records(b"\1" + vector(3, data)), records(hello(data))):
        assert read(start) == read(start, step)


@given(st.data())
def test_a_changed_octet_never_gives_a_name_that_was_not_sent(data: st.DataObject) -> None:
    sent = bytearray(records(hello(server_name(b"home.example.org"), extension(51, b"k" * 40))))
    at = data.draw(st.integers(0, len(sent) - 1))
    sent[at] = data.draw(st.integers(0, 255))
    known = read(bytes(sent))
    if known:
        assert known.encode() in bytes(sent).lower()
