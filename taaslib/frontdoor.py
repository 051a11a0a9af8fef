"""One HTTPS exchange: bytes in, one answer, close.  Or none: a connection that asks for the name of a
pass-through label is handed on as it came, before any TLS of ours.

Knows who a request is for, and neither TOTP nor ports: registrar and redirector are functions to it.
"""

from __future__ import annotations

import enum
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from taaslib import clienthello, names, sockets
from taaslib.authorization import Right
from taaslib.http1 import BadRequest, Request, RequestParser, text
from taaslib.journal import Journal
from taaslib.limits import Limits
from taaslib.loop import PATIENT, READ, WRITE, Handler, Loop
from taaslib.names import Peer
from taaslib.outcomes import Answer, Outcome
from taaslib.sockets import Socket
from taaslib.stream import PlainStream, TlsFailed, TlsStream

_UNRECOGNIZED_NAME = bytes.fromhex("15 0303 0002 02 70")  # RFC 8446 5.1, 6.2: alert, fatal, 112
_CHUNK = 64 * 1024

class Passage(enum.Enum):
    """What becomes of a connection, by the label in its server name."""
    OURS = "ours"  # our TLS, our answer
    THROUGH = "through"  # to the hidden server, whose TLS it is
    CLOSED = "closed"  # the hidden server's TLS, and it is not here

_OURS = Passage.OURS

Plain = Callable[[Request, Peer], Answer]

@dataclass(eq=False)
class FrontDoor:
    """Everything that the exchanges share.  `contexts`, by server name, may be exchanged at any time."""
    loop: Loop
    contexts: dict[str, ssl.SSLContext]
    journal: Journal
    wall_clock: Callable[[], float]
    registrar: Callable[[Request, Peer], Answer]
    redirector: Callable[[Request, str, Peer, str | None], Answer]
    label_of_host: Callable[[str], str | None]
    passage: Callable[[str | None], Passage]
    pass_through: Callable[[str, Socket, Peer, bytes], None]
    stay: Callable[[Socket, Peer, Right, bytes], None]
    release: Callable[[Right], None]
    https_port: Callable[[], int]
    names: tuple[str, str]  # of the registrar, and above all labels
    limits: Limits
    _exchanges: dict[Exchange, None] = field(default_factory=dict)  # oldest first
    _of_address: dict[str, dict[Exchange, None]] = field(default_factory=dict)

    def welcome(self, plain: Plain | None, sock: Socket, peer: Peer) -> None:
        """Take over a connection that was accepted; PLAIN answers it where no TLS is spoken."""
        network = names.network_of(peer.address)
        exchange = Exchange(self, sock, peer, network, plain)
        neighbours = self._of_address.setdefault(network, {})
        self._exchanges[exchange] = neighbours[exchange] = None
        # Whoever has taken longest is the likeliest to be a slow loris, and costs the most memory.
        if len(neighbours) > self.limits.exchanges_per_address:
            next(iter(neighbours)).give_up()
        elif len(self._exchanges) > self.limits.exchanges:
            next(iter(self._exchanges)).give_up()

    def destination(self, name: str) -> tuple[Passage, str]:
        """What becomes of a connection that asks for the server NAME ("": for none), and its label."""
        registrar, servers = self.names
        if name in ("", registrar, servers):
            return _OURS, ""
        if label := names.label_of(name, servers):
            return self.passage(label), label
        if name.endswith("." + servers) or names.is_address(name):
            return _OURS, ""
        label = self.label_of_host(name)
        return self.passage(label), label or ""

    def welcomes_all(self) -> bool:
        """Whether all names are the same to us: there is one certificate, and nothing is passed through."""
        return len(self.contexts) == 1 and self.passage(None) is _OURS

    def answer(self, request: Request, peer: Peer, certificate: str) -> Answer:
        """The answer to a request, whose peer was shown the CERTIFICATE of that name.  Raises BadRequest."""
        host = _host_of(request)
        if (host if host in self.contexts else "") != certificate:
            return _misdirected()  # RFC 9110 7.4: the host that was asked for is outside that certificate
        registrar, servers = self.names
        if host == registrar:
            return self.registrar(request, peer)
        if label := names.label_of(host, servers):
            return self.redirector(request, label, peer, None)
        if label := self.label_of_host(host):
            return self.redirector(request, label, peer, host)
        return _misdirected()

    def upgrade(self, request: Request, peer: Peer) -> Answer:
        """The answer on the port of plain HTTP: the same address with https, for names below `servers`.

        Raises BadRequest.
        """
        registrar, servers = self.names
        host = _host_of(request)
        ours = host.endswith("." + servers) or self.label_of_host(host)
        if not ours or host == registrar:
            return _misdirected()
        port = "" if self.https_port() == 443 else f":{self.https_port()}"
        location = ("Location", f"https://{host}{port}{request.target}")
        return Answer(Outcome.UPGRADED, text(308, "Go on with https, at the address in Location.", location))

    def left(self, exchange: Exchange) -> None:
        del self._exchanges[exchange]
        neighbours = self._of_address[exchange.network]
        del neighbours[exchange]
        if not neighbours:
            del self._of_address[exchange.network]

    @property
    def count(self) -> int:
        return len(self._exchanges)

    def drain(self) -> None:
        """Let answers that are on their way arrive; close all others."""
        for exchange in list(self._exchanges):
            if exchange.state not in (_ANSWERING, _LINGERING):
                exchange.close()

    def close(self) -> None:
        for exchange in list(self._exchanges):
            exchange.close()

class State(enum.Enum):
    """quiet -> handshake -> request -> answering (-> lingering) -> closed; any -> closed.

    Plain HTTP begins at request.  A registration that stays: request -> parting -> closed, its socket being
    the lobby's from then on.
    """
    QUIET = "quiet"  # no whole ClientHello has come, so that nothing was spent on it
    HANDSHAKE = "handshake"
    REQUEST = "request"
    ANSWERING = "answering"  # the answer, close_notify and FIN are on their way into the kernel
    LINGERING = "lingering"  # what the peer may still send is dropped, so that the answer is not reset
    PARTING = "parting"  # our close_notify is out, and the peer's must come before anything else
    CLOSED = "closed"

# To look one up in an Enum takes 0.2 us.
_QUIET, _HANDSHAKE, _REQUEST, _ANSWERING, _LINGERING, _PARTING, _CLOSED = State

_READING, _BOTH, _WRITING = PATIENT | READ, PATIENT | READ | WRITE, PATIENT | WRITE

class Exchange(Handler):
    """One connection to the front door."""
    _first = b""  # what came before its TLS was known to be ours
    _hello: clienthello.HelloReader | None = None
    _certificate = ""  # the key in the door's contexts of the one that was shown
    _has_said_all = False  # a whole request without a body: there is nothing that closing could leave unread
    _dropped = 0  # octets
    _stays: Right | None = None  # what it will be a responder on, counted until it is one
    _interest = 0  # what the loop was told

    def __init__(self, door: FrontDoor, sock: Socket, peer: Peer, network: str, plain: Plain | None) -> None:
        self._door, self._sock, self.peer, self.network, self._plain = door, sock, peer, network, plain
        self._stream = PlainStream(sock)
        self._parser = RequestParser(door.limits.head)
        self.state = _REQUEST if plain else _QUIET
        self._update_interest()  # first: where it fails, nothing of us is left
        patience = door.limits.request if plain else door.limits.handshake
        self._deadline = door.loop.call_later(patience, self._on_deadline)

    def __repr__(self) -> str:
        return f"<Exchange {self.state.value} {self.peer}>"

    def on_readable(self) -> None:
        state = self.state
        try:
            if state is _QUIET:
                self._greet()
            elif state is _HANDSHAKE or state is _REQUEST:
                self._receive()
            elif state is _LINGERING:
                self._drop()
            elif state is _PARTING:
                self._part()
        except OSError:
            self.on_failed()
        self._update_interest()

    def on_writable(self) -> None:
        try:
            if self.state is _ANSWERING:
                self._finish()
            else:
                self._stream.flush()
        except OSError:
            self.on_failed()
        self._update_interest()

    def on_failed(self) -> None:
        self._note(Outcome.GONE)
        self.close()

    def abort(self) -> None:
        self.close()

    def give_up(self) -> None:
        """Make place for another."""
        self._note(Outcome.DISPLACED)
        self.close()

    def close(self) -> None:
        if self.state is _CLOSED:
            return
        self._leave(closing=True)
        self._sock.close()

    def _leave(self, *, closing: bool = False) -> None:
        """Be done with the socket, which belongs to somebody else from here on, or is CLOSING."""
        self.state = _CLOSED
        self._deadline.cancel()
        self._door.loop.forget(self._sock.fileno(), closing=closing)
        self._door.left(self)
        if self._stays:
            self._door.release(self._stays)
            self._stays = None

    def _greet(self) -> None:
        """Read until it is known whose TLS this is."""
        try:
            data = self._sock.recv(clienthello.MOST - len(self._first))
        except BlockingIOError:
            return
        self._first += data
        if not data:
            self._note(Outcome.GONE)
            self.close()
        elif self._first[0] != clienthello.HANDSHAKE:
            response = text(400, "This port speaks TLS: use https:// in front of the address.")
            self._answer(Answer(Outcome.PLAIN_HTTP, response))
        elif (name := self._read_name(data)) is not None:
            contexts = self._door.contexts
            passage, label = self._door.destination(name)
            if passage is _OURS:
                self._certificate = certificate = name if name in contexts else ""
                self._stream = TlsStream(self._sock, contexts[certificate])
                self.state = _HANDSHAKE
                self._receive(self._first)
            elif passage is Passage.THROUGH:
                self._note(Outcome.PASSED, label=label)
                self._leave()
                self._door.pass_through(label, self._sock, self.peer, self._first)
            else:
                self._note(Outcome.UNKNOWN_NAME, label=label or None)
                self._stream.send(_UNRECOGNIZED_NAME)
                self._begin_answering()

    def _read_name(self, data: bytes) -> str | None:
        """The name that it asks for; None while that is not known.  Nobody looks where it is all the same."""
        if self._hello is None:
            record_is_whole = len(data) >= 5 + int.from_bytes(data[3:5], "big")  # RFC 8446 5.1
            if record_is_whole and self._door.welcomes_all():
                return ""
            self._hello = clienthello.HelloReader()
        return self._hello.feed(data)

    def _receive(self, first: bytes = b"") -> None:
        agreed = False
        try:
            data = self._stream.receive(first)
        except TlsFailed as failure:
            self._note(Outcome.TLS_FAILED, cause=str(failure))
            self._begin_answering()  # OpenSSL's alert is all that goes out
            return
        if self.state is _HANDSHAKE and self._stream.established:
            self.state, agreed = _REQUEST, True
        if data:
            self._take(data)
        elif data is None:
            self._stream.flush()  # the handshake's next flight
        else:
            self._note(Outcome.GONE)
            self.close()
        if agreed and self.state is _REQUEST:  # it has not come, or not in one piece
            sockets.quick_ack(self._sock)
            self._set_deadline(self._door.limits.request)

    def _take(self, data: bytes) -> None:
        door, bodiless = self._door, False
        try:
            request = self._parser.feed(data)
            if request is None:
                return
            fields, bodiless = request.fields, request.method == "HEAD"
            announced = fields.get("content-length", "0") != "0" or "transfer-encoding" in fields
            self._has_said_all = not (announced or self._parser.rest)
            if self._plain:
                answer = self._plain(request, self.peer)
            else:
                answer = door.answer(request, self.peer, self._certificate)
        except BadRequest as error:
            answer = bad_request(error)
        self._answer(answer, bodiless=bodiless)

    def _answer(self, answer: Answer, *, bodiless: bool = False) -> None:
        door = self._door
        door.journal.note(
            answer.outcome, peer=self.peer,
            label=answer.label, id=answer.id, port=answer.port, cause=answer.cause,
        )  # fmt: skip
        self._stays = answer.stays  # before anything can fail: `_leave` releases it
        self._stream.send(answer.response.to_bytes(door.wall_clock(), bodiless=bodiless))
        if answer.stays:
            self._begin_parting()
        else:
            self._begin_answering()

    def _begin_parting(self) -> None:
        self.state = _PARTING
        self._set_deadline(self._door.limits.request)
        assert isinstance(self._stream, TlsStream)
        if self._parser.rest or self._stream.peer_closed:  # not before our 200, and nothing else before it
            self.on_failed()
            return
        try:
            self._stream.part()
            self._stream.flush()
        except TlsFailed:  # there was rubbish behind the request
            self.on_failed()

    def _part(self) -> None:
        """Take the peer's close_notify; from there on the connection is plain, and a responder."""
        assert isinstance(self._stream, TlsStream)
        try:
            raw = self._sock.recv(_CHUNK)
            early = self._stream.part(raw) if raw else None
        except BlockingIOError:
            return
        except TlsFailed:
            raw, early = b"", None
        if not raw or (early is not None and self._stream.backlog):
            self.on_failed()
        elif early is not None:
            right = self._stays
            assert right
            self._leave()
            self._door.stay(self._sock, self.peer, right, early)

    def _begin_answering(self) -> None:
        self.state = _ANSWERING
        self._finish()
        if self.state is not _CLOSED:
            self._set_deadline(self._door.limits.linger)

    def _finish(self) -> None:
        if self._stream.finish():
            self.state = _LINGERING
            if self._has_said_all:
                self.close()

    def _drop(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        if data:
            self._dropped += len(data)
        if not data or self._dropped > self._door.limits.linger_bytes:
            self.close()

    def _on_deadline(self) -> None:
        if self.state is _REQUEST:
            try:
                self._answer(Answer(Outcome.SILENT, text(408, "The request did not become whole in time.")))
            except OSError:
                self.on_failed()
            self._update_interest()
            return
        if self.state in (_QUIET, _HANDSHAKE, _PARTING):
            self._note(Outcome.SILENT)
        self.close()

    def _set_deadline(self, seconds: float) -> None:
        self._deadline.cancel()
        self._deadline = self._door.loop.call_later(seconds, self._on_deadline)

    def _note(self, outcome: Outcome, **facts: object) -> None:
        self._door.journal.note(outcome, peer=self.peer, **facts)

    def _update_interest(self) -> None:
        if (state := self.state) is not _CLOSED:
            interest = _WRITING if state is _ANSWERING else _BOTH if self._stream.backlog else _READING
            if interest != self._interest:
                self._interest = interest
                self._door.loop.watch(self._sock.fileno(), self, interest)

def _host_of(request: Request) -> str:
    try:
        if request.authority != request.fields["host"]:
            names.host_of(request.fields["host"])  # RFC 9112 3.2: must be one, though the target replaces it
        return names.host_of(request.authority)
    except ValueError as error:
        raise BadRequest(400, f"the request's host is {error}") from None

def _misdirected() -> Answer:
    return Answer(Outcome.MISDIRECTED, text(421, "This service does not serve the host that was asked for."))

def bad_request(error: BadRequest) -> Answer:
    return Answer(Outcome.BAD_REQUEST, text(error.status, f"Not understood: {error}."), cause=str(error))
