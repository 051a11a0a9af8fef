"""The two streams on real sockets, against Python's own TLS client."""

from __future__ import annotations

import _ssl
import ctypes
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from house import REGISTRAR, SERVERS

from taaslib.config import Config
from taaslib.startup import tls_contexts
from taaslib.stream import PlainStream, TlsFailed, TlsStream

RECORD = 16 * 1024  # octets, RFC 8446 5.1
BOUND = 256 * 1024  # octets that a peer who does not read may make us keep
ALERT, FATAL, HANDSHAKE_FAILURE, PROTOCOL_VERSION = 21, 2, 40, 70  # RFC 8446 6

versions = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@pytest.fixture(scope="module")
def context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    """The service's own."""
    folder = certificate[0].parent
    return tls_contexts(
        Config(
            path=folder / "taas.ini",
            public=("127.0.0.1",),
            registrar=REGISTRAR,
            servers=SERVERS,
            address=("127.0.0.1",),
            port=0,
            certificate=certificate[0],
            key=certificate[1],
            database=folder / "taas.db",
            ports=(range(20000, 20400),),
        )
    )[""]


@pytest.fixture(scope="module")
def trust(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate[0]))


@pytest.fixture
def connect() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Make TCP connections: (ours, the client's), both non-blocking."""
    sockets: list[socket.socket] = []

    def connect() -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            theirs = socket.create_connection(server.getsockname())
            ours, _ = server.accept()
        for sock in (ours, theirs):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sockets.append(sock)
        return ours, theirs

    yield connect
    for sock in sockets:
        sock.close()


class Client:
    """A TLS client whose every octet is carried by hand."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=REGISTRAR)
        self.established = False
        self.plain = b""
        self.closed_in_order = False  # close_notify has come
        self.ended = False  # FIN has come

    def think(self) -> bytes:
        """Work on what has come; return the next flight."""
        try:
            if not self.established:
                self.tls.do_handshake()
                self.established = True
            while chunk := self.tls.read(RECORD):
                self.plain += chunk
            self.closed_in_order = True
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read()

    def hear(self) -> None:
        while not self.ended:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return
            self.ended = not data
            self.incoming.write(data)

    def seal(self, data: bytes) -> bytes:
        """DATA as TLS records."""
        for at in range(0, len(data), RECORD):
            self.tls.write(data[at : at + RECORD])
        return self.outgoing.read()


def receive_all(stream: TlsStream) -> list[bytes]:
    """What `receive` returns until it says that nothing more has come."""
    got = []
    while data := stream.receive():
        got.append(data)
    return got if data is None else [*got, data]


def shake_hands(stream: TlsStream, client: Client, size: int = 1 << 20) -> bytes:
    """Handshake, the client's flights delivered in pieces of SIZE.  Returns data that came meanwhile."""
    plain = b""
    for _ in range(10):
        flight = client.think()
        for at in range(0, len(flight), size):
            client.sock.send(flight[at : at + size])
            plain += b"".join(receive_all(stream))
        stream.flush()
        client.hear()
        if client.established and stream.established and not client.outgoing.pending:
            return plain
    raise AssertionError("no handshake")


@pytest.fixture
def meet(
    connect: Callable[[], tuple[socket.socket, socket.socket]], context: ssl.SSLContext, trust: ssl.SSLContext
) -> Callable[..., tuple[TlsStream, Client]]:
    def meet(handshake: bool = True) -> tuple[TlsStream, Client]:
        ours, theirs = connect()
        stream, client = TlsStream(ours, context), Client(theirs, trust)
        if handshake:
            shake_hands(stream, client)
        return stream, client

    return meet


@pytest.fixture
def speaking(trust: ssl.SSLContext) -> Iterator[Callable[[ssl.TLSVersion], None]]:
    """Make the client speak one version only."""

    def speaking(version: ssl.TLSVersion) -> None:
        trust.minimum_version = ssl.TLSVersion.TLSv1_2
        trust.maximum_version = version
        trust.minimum_version = version

    yield speaking
    trust.minimum_version, trust.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


# In plain


def test_plain_octets_come_and_go(connect: Callable[[], tuple[socket.socket, socket.socket]]) -> None:
    ours, theirs = connect()
    stream = PlainStream(ours)
    assert stream.receive() is None
    theirs.send(b"question")
    assert stream.receive() == b"question"
    stream.send(b"ans")
    stream.send(b"wer")
    assert stream.flush()
    assert stream.finish()
    assert theirs.recv(100) == b"answer"
    assert theirs.recv(100) == b""
    theirs.shutdown(socket.SHUT_WR)
    assert stream.receive() == b""


def test_a_plain_answer_larger_than_the_kernel_s_buffer_goes_out_piece_by_piece(
    connect: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    ours, theirs = connect()
    stream = PlainStream(ours)
    answer = bytes(range(256)) * 64 * 1024
    stream.send(answer)
    assert not stream.flush()
    assert stream.backlog
    assert not stream.finish()
    got = b""
    while not stream.finish():
        got += theirs.recv(1 << 20)
    assert not stream.backlog
    while data := theirs.recv(1 << 20):
        got += data
    assert got == answer


def test_a_plain_reset_is_an_oserror(connect: Callable[[], tuple[socket.socket, socket.socket]]) -> None:
    ours, theirs = connect()
    stream = PlainStream(ours)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    with pytest.raises(ConnectionResetError):
        stream.receive()
    stream.send(b"x")
    with pytest.raises(OSError, match="pipe"):
        stream.flush()


# The handshake


@versions
def test_tls_1_2_and_1_3_are_spoken_and_http_is_agreed_on(
    meet: Callable[..., tuple[TlsStream, Client]],
    speaking: Callable[[ssl.TLSVersion], None],
    trust: ssl.SSLContext,
    version: ssl.TLSVersion,
) -> None:
    speaking(version)
    trust.set_alpn_protocols(["h2", "http/1.1"])
    stream, client = meet()
    assert client.tls.version() == {ssl.TLSVersion.TLSv1_2: "TLSv1.2"}.get(version, "TLSv1.3")
    assert client.tls.selected_alpn_protocol() == "http/1.1"
    client.sock.send(client.seal(b"question"))
    assert stream.receive() == b"question"
    assert stream.receive() is None
    stream.send(b"answer")
    assert stream.flush()
    client.hear()
    client.think()
    assert client.plain == b"answer"


@versions
def test_the_client_s_octets_may_be_cut_anywhere(
    meet: Callable[..., tuple[TlsStream, Client]],
    speaking: Callable[[ssl.TLSVersion], None],
    version: ssl.TLSVersion,
) -> None:
    speaking(version)
    size = longest = 1
    while size <= longest:
        stream, client = meet(handshake=False)
        hello = client.think()
        longest = len(hello)
        for at in range(0, len(hello), size):
            client.sock.send(hello[at : at + size])
            assert receive_all(stream) == []
        stream.flush()
        client.hear()
        shake_hands(stream, client, size)
        sealed = client.seal(b"question")
        got = b""
        for at in range(0, len(sealed), size):
            client.sock.send(sealed[at : at + size])
            got += b"".join(receive_all(stream))
        assert got == b"question", size
        client.sock.close()
        stream._sock.close()
        size += 1 if size < 40 else 7
    assert longest > 100


def test_a_request_that_comes_with_the_handshake_s_end_is_not_left_behind(
    meet: Callable[..., tuple[TlsStream, Client]],
) -> None:
    stream, client = meet(handshake=False)
    client.sock.send(client.think())
    assert stream.receive() is None
    stream.flush()
    client.hear()
    finished = client.think()
    assert client.established
    client.sock.send(finished + client.seal(b"question"))
    assert stream.receive() == b"question"
    assert stream.established


def test_the_end_in_mid_handshake_is_the_end(meet: Callable[..., tuple[TlsStream, Client]]) -> None:
    stream, client = meet(handshake=False)
    for octets in (0, 1, 5, 100, len(client.think())):
        stream, client = meet(handshake=False)
        client.sock.send(client.think()[:octets])
        if octets:
            assert stream.receive() is None
        client.sock.shutdown(socket.SHUT_WR)
        assert stream.receive() == b""
        assert not stream.established


def test_a_reset_in_mid_handshake_is_an_oserror(meet: Callable[..., tuple[TlsStream, Client]]) -> None:
    stream, client = meet(handshake=False)
    client.sock.send(client.think())
    stream.receive()
    stream.flush()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()
    with pytest.raises(ConnectionResetError):
        stream.receive()


def test_what_is_no_tls_fails(meet: Callable[..., tuple[TlsStream, Client]]) -> None:
    for nonsense in (b"\x16" + b"\xff" * 600, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello" * 9):
        stream, client = meet(handshake=False)
        client.sock.send(nonsense)
        with pytest.raises(TlsFailed):
            receive_all(stream)
        assert stream.finish()


def client_hello(version: int) -> bytes:
    """A ClientHello up to VERSION, as clients before TLS 1.3 send it (RFC 5246 7.4.1.2)."""
    suites = struct.pack(">HHHH", 0xC02B, 0xC02F, 0xC009, 0xC013)
    groups = struct.pack(">HHHHH", 10, 6, 4, 23, 29)
    signatures = struct.pack(">HHHHH", 13, 6, 4, 0x0403, 0x0804)
    extensions = groups + signatures
    body = (
        struct.pack(">H", version)
        + bytes(32)
        + b"\0"
        + struct.pack(">H", len(suites))
        + suites
        + b"\1\0"
        + struct.pack(">H", len(extensions))
        + extensions
    )
    message = b"\1" + struct.pack(">I", len(body))[1:] + body
    return b"\x16\x03\x01" + struct.pack(">H", len(message)) + message


@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0302])
def test_older_tls_is_refused_and_told_why(
    meet: Callable[..., tuple[TlsStream, Client]], version: int
) -> None:
    stream, client = meet(handshake=False)
    client.sock.send(client_hello(version))
    with pytest.raises(TlsFailed, match=r"UNSUPPORTED_PROTOCOL|VERSION_TOO_LOW"):
        stream.receive()
    assert stream.finish()
    alert = client.sock.recv(100)
    assert (alert[0], alert[5]) == (ALERT, FATAL)
    assert alert[6] in (PROTOCOL_VERSION, HANDSHAKE_FAILURE)  # the latter to SSL 3
    assert client.sock.recv(100) == b""


def test_the_same_words_in_tls_1_2_are_understood(meet: Callable[..., tuple[TlsStream, Client]]) -> None:
    stream, client = meet(handshake=False)
    client.sock.send(client_hello(0x0303))
    assert stream.receive() is None
    stream.flush()
    assert client.sock.recv(5)[0] == 22  # a handshake record: ServerHello


# Receiving


@versions
def test_all_records_of_one_delivery_are_taken_out_at_once(
    meet: Callable[..., tuple[TlsStream, Client]],
    speaking: Callable[[ssl.TLSVersion], None],
    version: ssl.TLSVersion,
) -> None:
    speaking(version)
    stream, client = meet()
    words = [b"record %d;" % number for number in range(300)]
    sealed = b"".join(client.seal(word) for word in words)
    assert len(sealed) <= RECORD
    client.sock.send(sealed)
    assert stream.receive() == b"".join(words)
    assert stream.receive() is None
    assert stream._tls.pending() == stream._incoming.pending == 0


def test_what_epoll_would_never_announce_is_not_left_inside_openssl(
    meet: Callable[..., tuple[TlsStream, Client]],
) -> None:
    stream, client = meet()
    data = bytes(range(256)) * 2048
    sealed = client.seal(data)
    got = b""
    for at in range(0, len(sealed), 10_007):
        client.sock.send(sealed[at : at + 10_007])
        got += b"".join(receive_all(stream))
        assert stream._tls.pending() == 0
        whole = [records for records in range(0, len(data), RECORD) if records <= len(got)]
        assert len(got) == whole[-1] or len(got) == len(data)  # each whole record that has come is out
    assert got == data


def test_a_cut_without_close_notify_is_the_end_after_what_came(
    meet: Callable[..., tuple[TlsStream, Client]],
) -> None:
    stream, client = meet()
    client.sock.send(client.seal(b"question") + client.seal(b"cut off")[:-1])
    client.sock.shutdown(socket.SHUT_WR)
    assert receive_all(stream) == [b"question", b""]


def test_a_close_notify_is_the_end_after_what_came_before_it(
    meet: Callable[..., tuple[TlsStream, Client]],
) -> None:
    stream, client = meet()
    sealed = client.seal(b"question")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    client.sock.send(sealed + client.outgoing.read())
    assert stream.receive() == b"question"
    client.sock.shutdown(socket.SHUT_WR)
    assert stream.receive() == b""
    stream.send(b"answer")  # a half-close in TLS: our direction is still open
    assert stream.finish()


def test_garbage_after_the_handshake_fails_and_the_client_gets_an_alert(
    meet: Callable[..., tuple[TlsStream, Client]],
) -> None:
    for garbage in (
        b"garbage in plain",
        b"\x17\x03\x03\x00\x20" + bytes(32),
        b"\x17\x03\x03\xff\xff" + bytes(99),
    ):
        stream, client = meet()
        client.sock.send(garbage)
        with pytest.raises(TlsFailed):
            receive_all(stream)
        assert stream.finish()
        client.hear()
        assert client.ended
        with pytest.raises(ssl.SSLError, match="ALERT"):
            client.think()


def test_what_came_before_the_garbage_still_counts(meet: Callable[..., tuple[TlsStream, Client]]) -> None:
    stream, client = meet()
    client.sock.send(client.seal(b"question") + b"garbage in plain")
    assert stream.receive() == b"question"
    client.sock.send(b"more of it")
    with pytest.raises(TlsFailed):
        receive_all(stream)


# Sending and closing


def test_a_large_answer_is_kept_until_the_client_reads(meet: Callable[..., tuple[TlsStream, Client]]) -> None:
    stream, client = meet()
    answer = bytes(range(256)) * 24 * 1024
    stream.send(answer)
    assert not stream.flush()
    assert stream.backlog
    assert not stream.finish()
    while not stream.finish():
        client.hear()
        client.think()
    assert not stream.backlog
    while not client.ended:
        client.hear()
    client.think()
    assert client.plain == answer
    assert client.closed_in_order


@versions
def test_finishing_is_in_order_while_the_client_s_octets_already_wait(
    meet: Callable[..., tuple[TlsStream, Client]],
    speaking: Callable[[ssl.TLSVersion], None],
    version: ssl.TLSVersion,
) -> None:
    speaking(version)
    body = bytes(3 * RECORD)
    # in the socket; half a record inside OpenSSL; a whole record inside OpenSSL and more in the socket
    for first in (0, 100, RECORD - 1, RECORD + 100):
        stream, client = meet()
        client.sock.send(client.seal(b"question"))
        assert stream.receive() == b"question"
        sealed = client.seal(body)
        if first:
            client.sock.send(sealed[:first])
            stream.receive()
        client.sock.send(sealed[first:])
        stream.send(b"answer")
        assert stream.finish()
        client.hear()
        client.think()
        assert client.plain == b"answer"
        assert client.closed_in_order
        assert client.ended


def test_finishing_before_the_handshake_or_after_a_failure_sends_a_fin_and_no_more(
    meet: Callable[..., tuple[TlsStream, Client]],
) -> None:
    stream, client = meet(handshake=False)
    assert stream.finish()
    assert client.sock.recv(100) == b""


def add_key_update(client: Client) -> None:
    """Make CLIENT send a KeyUpdate that demands another (RFC 8446 4.6.3); Python has no call for it."""
    lib = ctypes.CDLL(_ssl.__file__)
    lib.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
    # struct PySSLSocket: the object's head, a reference, SSL *ssl.
    at = id(client.tls._sslobj) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)  # type: ignore[attr-defined]
    assert lib.SSL_key_update(ctypes.c_void_p.from_address(at).value, 1) == 1
    client.tls.do_handshake()


def test_a_client_that_demands_key_updates_is_answered(meet: Callable[..., tuple[TlsStream, Client]]) -> None:
    stream, client = meet()
    for _ in range(50):
        add_key_update(client)
    client.sock.send(client.outgoing.read() + client.seal(b"question"))
    assert stream.receive() == b"question"
    stream.send(b"answer")
    assert stream.flush()
    client.hear()
    client.think()
    assert client.plain == b"answer"


def test_a_client_that_demands_key_updates_and_never_reads_can_not_fill_our_memory(
    meet: Callable[..., tuple[TlsStream, Client]],
) -> None:
    stream, client = meet()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    stream._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    failed = False
    for _ in range(30):
        for _ in range(600):
            add_key_update(client)
        client.sock.send(client.outgoing.read())
        try:
            receive_all(stream)
        except TlsFailed:
            failed = True
            break
        stream.flush()  # as the front door does
        assert len(stream.backlog) + stream._outgoing.pending <= 2 * BOUND
    assert failed, f"{len(stream.backlog)} octets are kept for a peer who does not read"
