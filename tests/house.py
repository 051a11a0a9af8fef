"""A service of our own in this process: real sockets on port 0, its loop turned by hand, its clocks moved
by hand.  Clients are non-blocking too and are served between the turns, so that nothing ever sleeps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyotp

from taasadmin.book import Book
from taasadmin.runtime import Runtime
from taaslib.config import Config, Log
from taaslib.limits import Limits
from taaslib.service import Service
from taaslib.store import Credential

REGISTRAR = "registrar.taas.localhost"
SERVERS = "taas.localhost"
ID = "11111111-1111-4111-8111-111111111111"
OTHER_ID = "22222222-2222-4222-8222-222222222222"
LAB_ID = "33333333-3333-4333-8333-333333333333"
SECRETS = {
    ID: "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP",
    OTHER_ID: "KRSXG5CTMVRXEZLUKRSXG5CTMVRXEZLU",
    LAB_ID: "MFRGGZDFMZTWQ2LKMFRGGZDFMZTWQ2LK",
}
PATIENCE_SECONDS = 20  # real ones, until a test gives up on an event


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Wire:
    """A client's plain TCP connection.  `received` grows by itself while the house turns."""

    def __init__(
        self, address: str, port: int, *, source: str | None = None, receive_buffer: int = 0
    ) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.sock.bind((source, 0))
        self.sock.connect((address, port))  # on loopback the kernel completes it without the service
        self.sock.setblocking(False)
        self.received = b""
        self.unsent = b""
        self.ended = False  # the peer's FIN has come
        self.was_reset = False
        self.paused = False

    def send(self, data: bytes) -> Wire:
        self.unsent += data
        self.step()
        return self

    def step(self) -> None:
        """Send and receive what can be without waiting."""
        try:
            while self.unsent:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self.unsent = b""
        while not (self.paused or self.ended or self.was_reset):
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return
            except ConnectionResetError:
                self.was_reset = True
                return
            self.received += data
            self.ended = not data

    @property
    def gone(self) -> bool:
        return self.ended or self.was_reset

    @property
    def name(self) -> str:
        return "{}:{}".format(*self.sock.getsockname()[:2])

    def finish(self) -> Wire:
        """Half-close: our FIN, once all is sent."""
        assert not self.unsent
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        self.ended = True

    def close(self) -> None:
        self.sock.close()
        self.ended = True


class TlsWire(Wire):
    """A client's TLS connection; the handshake goes on by itself while the house turns."""

    def __init__(self, port: int, context: ssl.SSLContext, name: str | None, **options: Any) -> None:
        super().__init__(options.pop("address", "127.0.0.1"), port, **options)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        self.plain = b""
        self.to_encrypt = b""
        self.established = False
        self.closed_in_order = False  # close_notify has come
        self.left_tls = False

    def say(self, data: bytes) -> TlsWire:
        self.to_encrypt += data
        self.step()
        return self

    def step(self) -> None:
        if self.sock.fileno() < 0 or self.ended or self.left_tls:
            super().step()
            return
        seen = len(self.received)
        super().step()
        self.incoming.write(self.received[seen:])
        if self.ended:
            self.incoming.write_eof()
        try:
            if not self.established:
                self.tls.do_handshake()
                self.established = True
            if self.to_encrypt:
                self.tls.write(self.to_encrypt)
                self.to_encrypt = b""
            while chunk := self.tls.read(1 << 20):
                self.plain += chunk
            self.closed_in_order = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            pass
        finally:
            self.unsent += self.outgoing.read()
            super().step()

    def leave_tls(self, then: bytes = b"") -> TlsWire:
        """Answer the service's close_notify with ours and go on in plain, at once with the octets THEN."""
        assert self.closed_in_order
        self.tls.unwrap()
        self.left_tls = True
        self.received = self.incoming.read()
        self.unsent += self.outgoing.read() + then
        Wire.step(self)
        return self


@dataclasses.dataclass
class Reply:
    status: int
    fields: dict[str, str]  # names in lower case
    body: bytes
    raw: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Reply:
        head, _, body = raw.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return cls(int(status.split()[1]), fields, body, raw)

    @property
    def port(self) -> int:
        """Of a registration: the port p."""
        assert self.status == 200, self.raw
        return int(self.body.rpartition(b":")[2])


class House:
    """Credentials: ID may serve `home`, OTHER_ID `home` and `cam`."""

    def __init__(self, folder: Path, certificate: tuple[Path, Path], **changes: Any) -> None:
        self.clock = Clock(1000.0)
        self.wall = Clock(1_800_000_015.0)  # the middle of a step
        self.log_file = folder / "server.log"
        limits = Limits(**changes.pop("limits", {}))
        config = Config(
            path=folder / "taas.ini",
            public=("127.0.0.1", "::1"),
            registrar=REGISTRAR,
            servers=SERVERS,
            address=("127.0.0.1",),
            port=0,
            certificate=certificate[0],
            key=certificate[1],
            database=folder / "taas.db",
            ports=(range(20000, 20400),),
            limits=limits,
            log=Log(self.log_file, "json", "debug"),
        )
        self.config = dataclasses.replace(config, **changes)
        with self.admin() as store:
            now = int(self.wall.now)
            if not store.entries():
                store.add(Credential(ID, SECRETS[ID]), ["home"], None, now)
                store.add(Credential(OTHER_ID, SECRETS[OTHER_ID]), ["home", "cam"], None, now)
        self.service = Service(self.config, self.clock, self.wall, Runtime())
        self.wires: list[Wire] = []
        self.closed = False
        self.trust = ssl.create_default_context(cafile=str(certificate[0]))

    @contextlib.contextmanager
    def admin(self) -> Any:
        """The store as taas_admin.py opens it."""
        with contextlib.closing(Book(self.config.database, busy_ms=5000, synchronous="FULL")) as store:
            yield store

    def add(self, label: str, id: str = LAB_ID, port: int | None = None) -> None:
        """What `taas_admin.py add LABEL --port N` does; the service follows."""
        with self.admin() as store:
            store.add(Credential(id, SECRETS[id]), [label], port, int(self.wall.now))
        self.pass_time(1)

    def seats_taken(self) -> dict[tuple[str, str], int]:
        """By limit and holder, where there are any."""
        seats = self.service.lobby.tally._seats
        return {key: seat.taken for key, seat in seats.items() if seat.taken}

    # Turning

    def turn(self, times: int = 1) -> None:
        """Let everything that is ready happen."""
        for _ in range(times):
            self.service.loop.turn(0.002)
            for wire in self.wires:
                if wire.sock.fileno() >= 0:
                    wire.step()

    def until(self, happened: Callable[[], object], what: str = "") -> None:
        """Turn until it has HAPPENED; give up after a while of real time."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happened():
            assert time.monotonic() < deadline, f"never happened: {what}\n{self.log}"
            self.turn()

    def settle(self) -> None:
        """Turn until nothing is ready any more: for asserting that something did NOT happen."""
        self.turn(20)

    def pass_time(self, seconds: float) -> None:
        """Both clocks go on, and what is due happens."""
        self.clock.now += seconds
        self.wall.now += seconds
        self.settle()

    # Clients

    def wire(self, port: int, address: str = "127.0.0.1", **options: Any) -> Wire:
        wire = Wire(address, port, **options)
        self.wires.append(wire)
        return wire

    def tls(self, name: str | None = REGISTRAR, **options: Any) -> TlsWire:
        context = options.pop("context", self.trust)
        if name is None:
            context = ssl.create_default_context(cafile=str(self.config.certificate))
            context.check_hostname = False
        wire = TlsWire(self.service.port, context, name, **options)
        self.wires.append(wire)
        return wire

    def ask(self, request: bytes, name: str | None = REGISTRAR, **options: Any) -> Reply:
        """One exchange at the front door; the connection must end in order."""
        wire = self.tls(name, **options).say(request)
        self.until(lambda: wire.gone, "the answer's end")
        assert wire.ended and wire.closed_in_order, f"not closed in order: {wire.plain!r}"
        wire.close()
        reply = Reply.parse(wire.plain)
        assert reply.fields["connection"] == "close" and "date" in reply.fields
        return reply

    def code(self, id: str = ID, at: float | None = None) -> str:
        return pyotp.TOTP(SECRETS[id]).generate_otp(int(self.wall.now if at is None else at) // 30)

    def authorization(self, id: str = ID, code: str | None = None) -> str:
        return (
            f'Authorization: TOTP username="{id}", response="{self.code(id) if code is None else code}"\r\n'
        )

    def put(self, label: str = "home", id: str = ID, code: str | None = None, **options: Any) -> Reply:
        request = f"PUT /register/{label} HTTP/1.1\r\nHost: {REGISTRAR}\r\n{self.authorization(id, code)}\r\n"
        return self.ask(request.encode(), **options)

    def get(self, target: str = "/", label: str = "home", fields: str = "", **options: Any) -> Reply:
        host = f"{label}.{SERVERS}"
        return self.ask(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode(), host, **options)

    def responder(self, label: str = "home", id: str = ID, **options: Any) -> Wire:
        """A hidden server's connection that waits."""
        wire = self.wire(self.put(label, id).port, **options)

        def known() -> bool:
            return any(wire.name in event.values() for event in self.events("waits", "paired"))

        self.until(known, "the responder's claim")
        return wire

    def q(self, label: str = "home") -> int:
        """The port that a visitor is sent to."""
        reply = self.get(label=label)
        assert reply.status == 307, reply.raw
        return int(reply.fields["location"].split(":")[2].partition("/")[0])

    def pair(self, label: str = "home", first: bytes = b"x", **options: Any) -> tuple[Wire, Wire]:
        """(responder, initiator) that have been relayed FIRST already."""
        responder = self.responder(label)
        initiator = self.wire(self.q(label), **options).send(first)
        self.until(lambda: responder.received == first, "the first octets")
        responder.received = b""
        return responder, initiator

    # Looking

    def waiting(self, label: str = "home") -> int:
        return self.service.lobby.waiting(label)

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def events(self, *names: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.log.splitlines()) if line["event"] in names]

    def listening(self, port: int, address: str = "127.0.0.1") -> bool:
        with contextlib.closing(socket.socket()) as sock:
            sock.settimeout(2)
            return sock.connect_ex((address, port)) == 0

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            for wire in self.wires:
                wire.close()
            self.settle()
            self.service.close()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """(certificate, key) for all names of a House, by the real make_cert.py."""
    import make_cert

    ini = folder / "taas.ini"
    ini.write_text(f"[taas]\npublic = 127.0.0.1, ::1\nregistrar = {REGISTRAR}\nservers = {SERVERS}\n")
    with contextlib.redirect_stdout(io.StringIO()):
        assert make_cert.main([str(ini)]) == 0
    return folder / "registrar.crt", folder / "registrar.key"


def on_linux() -> bool:
    return sys.platform == "linux"
