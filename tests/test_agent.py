"""The agent as its users run it, a process, against a registrar written here by hand from the protocol.

It does not know our service: what the agent needs from it is all in `Registrar` below.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import queue
import re
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import taas_agent

AGENT = Path(taas_agent.__file__)
PYTHON = os.environ.get("TAAS_AGENT_PYTHON", sys.executable)  # an old one, perhaps
PATIENCE = 30.0  # seconds until a test gives up; none passes by waiting
ID = "4e6b1c52-9a3e-4f0b-8f6e-0c7a3f1d2b10"
SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
KEY = bytes.fromhex("48656c6c6f21deadbeef48656c6c6f21deadbeef")
MEBIBYTE = 1 << 20


# ---- certificates -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    certificate: Path
    key: Path

    @property
    def pem(self) -> str:
        return self.certificate.read_text()


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def self_signed(folder: Path, name: str) -> Certificate:
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    openssl(
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        3650,
        "-subj",
        f"/CN={name}",
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout",
        made.key,
        "-out",
        made.certificate,
    )
    return made


@pytest.fixture(scope="session")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("pinned"), "pinned")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("other"), "other")


@pytest.fixture(scope="session")
def issued(pinned: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A good certificate for the right name, issued by the pinned one: chain and name are in order."""
    folder = tmp_path_factory.mktemp("issued")
    made = Certificate(folder / "issued.crt", folder / "issued.key")
    (folder / "extensions").write_text("subjectAltName=DNS:localhost\n")
    openssl(
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=issued",
        "-keyout",
        made.key,
        "-out",
        folder / "issued.csr",
    )
    openssl(
        "x509",
        "-req",
        "-in",
        folder / "issued.csr",
        "-CA",
        pinned.certificate,
        "-CAkey",
        pinned.key,
        "-CAcreateserial",
        "-days",
        30,
        "-extfile",
        folder / "extensions",
        "-out",
        made.certificate,
    )
    return made


# ---- the service, as far as an agent sees it --------------------------------------------------------------


@dataclass
class Request:
    label: str
    headers: dict[str, str]
    code: str
    at: float = field(default_factory=time.monotonic)


def answer(status: int, body: str, **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", "Content-Type: text/plain"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join([*lines, "Connection: close", "", ""]) + body).encode()


class Registrar:
    """TLS, PUT, port p: one thread per connection.  `script` answers instead, as long as it has answers."""

    def __init__(self, certificate: Certificate, host: str = "127.0.0.1", clock: float = 0.0) -> None:
        self.host, self.clock = host, clock
        self.requests: queue.Queue[Request] = queue.Queue()
        self.script: list[Callable[[Request], bytes]] = []
        self.server_names: set[str | None] = set()
        self._responders: dict[str, queue.Queue[socket.socket]] = {
            label: queue.Queue() for label in ("home", "cam")
        }
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate.certificate, certificate.key)
        self._context.sni_callback = lambda _, name, __: self.server_names.add(name)
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=self._family)
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept)

    def responder(self, label: str = "home") -> socket.socket:
        """The next connection that waits under LABEL."""
        sock = self._responders[label].get(timeout=PATIENCE)
        sock.settimeout(PATIENCE)
        return sock

    def request(self) -> Request:
        return self.requests.get(timeout=PATIENCE)

    def open_p(self, label: str, host: str | None = None) -> str:
        """Listen on a fresh port p for the one connection that may come; its address."""
        listener = socket.create_server((host or self.host, 0), family=self._family)
        self._open.append(listener)
        self._spawn(self._claim, label, listener)
        name = f"[{self.host}]" if ":" in self.host else host or self.host
        return f"{name}:{listener.getsockname()[1]}"

    def close(self) -> None:
        for sock in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts on it
            sock.close()
        for thread in self._threads:  # one of them may be about to hand a connection over
            thread.join(PATIENCE)
        for waiting in self._responders.values():
            while not waiting.empty():
                waiting.get().close()

    def _spawn(self, what: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=what, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._spawn(self._serve, self._listener.accept()[0])

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        with contextlib.suppress(OSError), sock, self._context.wrap_socket(sock, server_side=True) as tls:
            head = b""
            while b"\r\n\r\n" not in head:
                data = tls.recv(4096)
                if not data:
                    return
                head += data
            request_line, *lines = head.decode().split("\r\n")
            found = re.fullmatch("PUT /register/([a-z]+) HTTP/1.1", request_line)
            headers = dict(line.split(": ", 1) for line in lines if line)
            claim = re.fullmatch(f'TOTP username="{ID}", response="([0-9]+)"', headers["Authorization"])
            assert found and claim
            request = Request(found[1], headers, claim[1])
            say = self.script.pop(0) if self.script else self._register
            response = say(request)
            self.requests.put(request)
            tls.sendall(response)

    def _register(self, request: Request) -> bytes:
        now = time.time() + self.clock
        date = email.utils.formatdate(now, usegmt=True)
        good = [taas_agent.totp(KEY, int(now) // 30 + drift, 6, "SHA1") for drift in (-1, 0, 1)]
        if request.code not in good:
            return answer(401, f"the code {request.code} is wrong", Date=date)
        return answer(200, self.open_p(request.label), Date=date)

    def _claim(self, label: str, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock, _ = listener.accept()
            listener.close()
            self._responders[label].put(sock)


class AgentProcess:
    """taas_agent.py, running, with its log."""

    def __init__(self, file: Path, target: str, *more: str) -> None:
        self.log: list[str] = []
        self._grown = threading.Condition()
        self.process = subprocess.Popen(
            [PYTHON, "-W", "error", str(AGENT), str(file), "--to", target, *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._grown:
                self.log.append(line)
                self._grown.notify_all()

    def said(self, *words: str) -> str:
        """The first line of the log that holds all the words; waits for it."""

        def found() -> str | None:
            return next((line for line in self.log if all(word in line for word in words)), None)

        with self._grown:
            assert self._grown.wait_for(found, PATIENCE), f"no {words} in:\n{''.join(self.log)}"
            return found() or ""

    def said_twice(self, word: str) -> None:
        def twice() -> bool:
            return sum(word in line for line in self.log) == 2

        with self._grown:
            assert self._grown.wait_for(twice, PATIENCE), "".join(self.log)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stderr
        self.process.stderr.close()
        return status


# ---- the parts of a journey -------------------------------------------------------------------------------


@pytest.fixture
def registrar(pinned: Certificate) -> Iterator[Registrar]:
    registrar = Registrar(pinned)
    yield registrar
    registrar.close()


@pytest.fixture
def target() -> Iterator[socket.socket]:
    """Where visitors are taken: the test accepts them and speaks for the local service."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        yield listener


def accept(listener: socket.socket) -> socket.socket:
    sock, _ = listener.accept()
    sock.settimeout(PATIENCE)
    return sock


def agent_ini(registrar: Registrar, pin: Certificate, **changes: str | None) -> str:
    values: dict[str, str | None] = {
        "name": "localhost",
        "port": str(registrar.port),
        "address": registrar.host,
        "trust": "pin",
        "certificate": "\n" + "".join(f"    {line}\n" for line in pin.pem.splitlines()),
        "id": ID,
        "secret": SECRET,
        "digits": "6",
        "period": "30",
        "algorithm": "SHA1",
        "labels": "home",
        "servers": "taas.example.com",
        **changes,
    }
    lines = ["[registrar]"]
    for key, value in values.items():
        lines += ["", "[credential]"] if key == "id" else []
        lines += [f"{key} = {value}"] if value is not None else []
    return "\n".join(lines) + "\n"


Start = Callable[..., AgentProcess]


@pytest.fixture
def start(
    registrar: Registrar, pinned: Certificate, target: socket.socket, tmp_path: Path
) -> Iterator[Start]:
    """Starts an agent; afterwards it must end cleanly and have logged neither secret nor code."""
    agents: list[AgentProcess] = []

    def start(
        *more: str, at: Registrar = registrar, to: str | None = None, **changes: str | None
    ) -> AgentProcess:
        file = tmp_path / "home.agent.ini"
        file.write_text(agent_ini(at, pinned, **changes))
        file.chmod(0o600)
        agents.append(AgentProcess(file, to or f"127.0.0.1:{target.getsockname()[1]}", *more))
        return agents[-1]

    yield start
    for agent in agents:
        status, log = agent.stop(), "".join(agent.log)
        assert (status, " fault " in log, "Traceback" in log) == (0, False, False), log
        codes = {
            taas_agent.totp(KEY, int(time.time() + hours * 3600) // 30 + drift, 6, "SHA1")
            for hours in (-1, 0, 1)
            for drift in range(-5, 2)
        }
        assert SECRET not in log
        assert not codes & set(re.findall(r"\b[0-9]{6}\b", log)), log


def read_to_the_end(sock: socket.socket) -> bytes:
    received = bytearray()
    while data := sock.recv(1 << 16):
        received += data
    return bytes(received)


def is_reset(sock: socket.socket) -> bool:
    try:
        read_to_the_end(sock)
    except ConnectionResetError:
        return True
    return False


def close_with_reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# ---- the journey ------------------------------------------------------------------------------------------


def test_a_visitor_reaches_the_target_and_each_half_closes_by_itself(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    agent = start()
    with registrar.responder() as visitor:
        visitor.sendall(b"GET / HTTP/1.0\r\n\r\n")
        visitor.shutdown(socket.SHUT_WR)
        with accept(target) as service:
            assert read_to_the_end(service) == b"GET / HTTP/1.0\r\n\r\n"
            service.sendall(b"an answer after the question has ended")
            assert visitor.recv(100) == b"an answer after the question has ended"
            service.sendall(b", in two parts")
            service.shutdown(socket.SHUT_WR)
            assert read_to_the_end(visitor) == b", in two parts"
    assert " received=18 sent=52 " in agent.said(" info complete label=home")
    line = agent.said(" info ready ")
    assert "label=home waiting=4 at=127.0.0.1 to=127.0.0.1:" in line
    assert line.endswith(f"visitors=https://home.taas.example.com:{registrar.port}/\n")


def test_the_request_is_the_protocols(start: Start, registrar: Registrar) -> None:
    start("--waiting", "1")
    headers = registrar.request().headers
    assert headers["Host"] == f"localhost:{registrar.port}"
    assert headers["Content-Length"] == "0"
    assert headers["User-Agent"] == f"taas-agent/{taas_agent.VERSION}"
    assert registrar.server_names == {"localhost"}


def test_the_target_may_close_its_half_first(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    start()
    with registrar.responder() as visitor:
        visitor.sendall(b"?")
        with accept(target) as service:
            service.sendall(b"bye")
            service.shutdown(socket.SHUT_WR)
            assert read_to_the_end(visitor) == b"bye"
            visitor.sendall(b"one thing more")
            visitor.shutdown(socket.SHUT_WR)
            assert read_to_the_end(service) == b"?one thing more"


def test_a_mebibyte_flows_each_way_at_once(start: Start, registrar: Registrar, target: socket.socket) -> None:
    agent = start()
    up, down = os.urandom(MEBIBYTE), os.urandom(MEBIBYTE)

    def say(sock: socket.socket, data: bytes) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    with registrar.responder() as visitor:
        talking = [threading.Thread(target=say, args=(visitor, up))]
        talking[0].start()
        with accept(target) as service:
            heard: list[bytes] = []
            talking.append(threading.Thread(target=say, args=(service, down)))
            talking.append(threading.Thread(target=lambda: heard.append(read_to_the_end(service))))
            for thread in talking[1:]:
                thread.start()
            assert read_to_the_end(visitor) == down
            for thread in talking:
                thread.join(PATIENCE)
            assert heard == [up]
    assert f" received={MEBIBYTE} sent={MEBIBYTE} " in agent.said(" complete ")


def test_a_slow_reader_holds_the_sender_back_and_loses_nothing(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    agent = start()
    block = os.urandom(MEBIBYTE)
    with registrar.responder() as visitor:
        visitor.setblocking(False)
        sent = 0
        while select.select([], [visitor], [], 1.0)[1]:  # until nothing moves any more
            sent += visitor.send(memoryview(block)[sent % MEBIBYTE :])
            assert sent < 128 * MEBIBYTE
        status = Path(f"/proc/{agent.process.pid}/status")
        if status.exists():
            peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
            assert peak and int(peak[1]) < 50_000
        visitor.shutdown(socket.SHUT_WR)
        with accept(target) as service:
            received = read_to_the_end(service)
    assert len(received) == sent
    assert received == (block * (sent // MEBIBYTE + 1))[:sent]


def test_a_reset_is_passed_on_both_ways(start: Start, registrar: Registrar, target: socket.socket) -> None:
    agent = start()
    visitor = registrar.responder()
    visitor.sendall(b"hello")
    with accept(target) as service:
        assert service.recv(5) == b"hello"
        close_with_reset(visitor)
        assert is_reset(service)
    agent.said(" info reset ")
    with registrar.responder() as visitor:
        visitor.sendall(b"hello")
        service = accept(target)
        assert service.recv(5) == b"hello"
        close_with_reset(service)
        assert is_reset(visitor)
    agent.said(" info reset ")


def test_a_reset_is_noticed_while_both_ends_are_stuck(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    """Nothing is read from a visitor whose target takes nothing; its reset must still end the pair."""
    agent = start()
    visitor = registrar.responder()
    visitor.setblocking(False)
    while select.select([], [visitor], [], 1.0)[1]:
        visitor.send(bytes(MEBIBYTE))
    with accept(target):
        close_with_reset(visitor)
        agent.said(" info reset ")


def test_two_labels_have_a_pool_each(start: Start, registrar: Registrar, target: socket.socket) -> None:
    agent = start("--waiting", "2", labels="home, cam")
    for label in ("cam", "home", "home", "cam"):
        with registrar.responder(label) as visitor:
            visitor.sendall(label.encode())
            with accept(target) as service:
                assert service.recv(100) == label.encode()
    agent.said(" ready label=home waiting=2 ")
    agent.said(" ready label=cam waiting=2 ", "visitors=https://cam.taas.example.com:")


def test_the_pool_is_refilled_when_a_visitor_has_come(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    agent = start(servers="taas.example.com\n[target]\nwaiting = 3\nwaiting-max = 3")
    with contextlib.ExitStack() as opened:
        waiting = [opened.enter_context(registrar.responder()) for _ in range(3)]
        for visitor in waiting[:2]:
            visitor.sendall(b"x")
            opened.enter_context(accept(target))
        waiting += [opened.enter_context(registrar.responder()) for _ in range(2)]
        waiting[4].sendall(b"still there")
        assert opened.enter_context(accept(target)).recv(100) == b"still there"
        opened.enter_context(registrar.responder())
    assert agent.stop() == 0
    assert registrar.requests.qsize() == 6  # no more was registered than was taken


def test_nothing_is_written_to_a_waiting_connection(start: Start, registrar: Registrar) -> None:
    agent = start("--waiting", "1")
    with registrar.responder() as visitor:
        agent.said(" ready ")
        assert agent.stop(signal.SIGINT) == 0
        assert read_to_the_end(visitor) == b""


def test_a_waiting_connection_that_the_service_closes_is_replaced(start: Start, registrar: Registrar) -> None:
    agent = start("--waiting", "1")
    waiting = registrar.responder()
    agent.said(" ready ")
    waiting.close()
    agent.said(" lost label=home", "closed by the service before a visitor came", "retry_seconds=")
    waiting = registrar.responder()
    agent.said_twice(" ready ")
    close_with_reset(waiting)
    agent.said(" lost label=home", "Connection reset by peer")
    registrar.responder().close()


def test_a_target_that_refuses_has_the_visitor_closed_at_once(start: Start, registrar: Registrar) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"127.0.0.1:{listener.getsockname()[1]}"
    agent = start(to=nobody)
    with registrar.responder() as visitor:
        visitor.sendall(b"anybody there?")
        assert is_reset(visitor)
    line = agent.said(" target-refused ")
    assert f"target={nobody}" in line
    assert "Connection refused" in line


def test_a_target_may_have_a_name(start: Start, registrar: Registrar, target: socket.socket) -> None:
    start(to=f"localhost:{target.getsockname()[1]}")
    with registrar.responder() as visitor:
        visitor.sendall(b"hello")
        with accept(target) as service:
            assert service.recv(5) == b"hello"


def test_ready_is_said_again_after_all_were_lost(start: Start, registrar: Registrar) -> None:
    agent = start()
    agent.said(" ready ")
    for sock in [registrar.responder() for _ in range(4)]:
        sock.close()  # the first loss holds the next try back for half a second at least
    agent.said_twice(" ready ")


def test_an_ipv6_answer_is_understood(start: Start, pinned: Certificate, target: socket.socket) -> None:
    registrar = Registrar(pinned, host="::1")
    try:
        agent = start(at=registrar)
        with registrar.responder() as visitor:
            visitor.sendall(b"six")
            with accept(target) as service:
                assert service.recv(3) == b"six"
        agent.said(" ready ", "at=::1")
    finally:
        registrar.close()


def test_without_an_address_in_the_file_dns_is_asked(start: Start, registrar: Registrar) -> None:
    agent = start(address=None)
    registrar.responder().close()
    agent.said(" ready ", "at=127.0.0.1")


def test_an_address_that_is_dead_is_followed_by_the_next(start: Start, registrar: Registrar) -> None:
    agent = start(address="127.0.0.3, 127.0.0.1")
    registrar.responder().close()
    agent.said(" ready ")


# ---- refusals ---------------------------------------------------------------------------------------------


def test_a_503_with_retry_after_is_obeyed(start: Start, registrar: Registrar) -> None:
    registrar.script = [lambda _: answer(503, "no port is free: try later", Retry_After=3)]
    agent = start()
    first = registrar.request()
    registrar.responder().close()
    assert registrar.request().at - first.at >= 3
    agent.said(" refused label=home status=503", "no port is free: try later")


def test_a_429_holds_even_when_visitors_come(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    agent = start("--waiting", "2")
    with registrar.responder() as visitor, registrar.responder():
        first, second = registrar.request(), registrar.request()
        registrar.script = [lambda _: answer(429, "label full", Retry_After=3)]
        visitor.sendall(b"x")
        with accept(target):
            refused = registrar.request()
            registrar.responder().close()
            assert registrar.request().at - refused.at >= 3
    assert first.code and second.code
    agent.said(" refused label=home status=429")


def test_a_clock_one_hour_off_corrects_itself(
    start: Start, pinned: Certificate, target: socket.socket
) -> None:
    registrar = Registrar(pinned, clock=3600.0)
    try:
        agent = start(at=registrar, labels="home, cam")
        for label in ("home", "cam"):
            with registrar.responder(label) as visitor:
                visitor.sendall(b"on time")
                with accept(target) as service:
                    assert service.recv(7) == b"on time"
        line = agent.said(" refused ", "status=401", "check the clock")
        assert re.search(r"it is -(3599|3600|3601) s off", line)
        assert "the code [code] is wrong" in line
    finally:
        registrar.close()


def test_a_code_that_is_refused_with_the_clock_right_waits_for_the_next_one(
    start: Start, registrar: Registrar
) -> None:
    date = email.utils.formatdate(time.time(), usegmt=True)
    registrar.script = [lambda _: answer(401, "no", Date=date)]
    start(period="1", digits="8").said(" refused ", "status=401", "code refused; trying the next one")


def test_a_label_that_is_not_granted_is_said_plainly_and_retried_slowly(
    start: Start, registrar: Registrar
) -> None:
    registrar.script = [lambda _: answer(403, "label not granted")]
    line = start().said(" refused label=home status=403", "ask the operator of localhost")
    retry = re.search(r"retry_seconds=([0-9.]+)", line)
    assert retry and float(retry[1]) >= 30


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"220 smtp.example.com ready\r\n\r\n", "the answer is not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n127.0.0.1:80", "the answer was cut short"),
        (b"", "closed without an answer"),
        (answer(200, "127.0.0.1"), "not an address and a port"),
        (answer(200, "localhost:80"), "not an address and a port"),
    ],
)
def test_a_malformed_answer_is_a_failure_like_any_other(
    start: Start, registrar: Registrar, said: bytes, words: str
) -> None:
    registrar.script = [lambda _: said]
    agent = start()
    registrar.responder().close()
    agent.said(" failed label=home", words)


@pytest.mark.parametrize("which", ["other", "issued"])
def test_a_certificate_that_is_not_the_pin_gets_no_code(
    start: Start, which: str, request: pytest.FixtureRequest
) -> None:
    impostor = Registrar(request.getfixturevalue(which))
    try:
        agent = start(at=impostor)
        line = agent.said(" failed label=home", "certificate")
        assert which == "other" or "it is none of the pins" in line
        assert agent.stop() == 0
        assert impostor.requests.empty()
    finally:
        impostor.close()


@pytest.mark.slow  # ten seconds: the deadline itself
def test_a_silent_registrar_is_given_up_for_the_next_address(start: Start, pinned: Certificate) -> None:
    with contextlib.ExitStack() as stack:
        while True:  # a port that is free at both addresses: old connections of other tests may hold one
            registrar = Registrar(pinned)
            stack.callback(registrar.close)
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.2", registrar.port)))
                break
        agent = start("--waiting", "1", at=registrar, address="127.0.0.2, 127.0.0.1")
        registrar.responder().close()
        agent.said(" ready ", "at=127.0.0.1")


def test_the_pinned_certificate_must_carry_the_name(start: Start, registrar: Registrar) -> None:
    agent = start(name="127.0.0.2", address="127.0.0.1")
    agent.said(" failed label=home", "certificate refused", "127.0.0.2")
    assert registrar.requests.empty()


def test_a_system_that_does_not_know_the_certificate_refuses_it(start: Start, registrar: Registrar) -> None:
    agent = start(trust="system", certificate=None)
    agent.said(" failed label=home", "certificate refused")
    assert registrar.requests.empty()


def test_an_expired_pin_is_still_a_pin(start: Start, tmp_path: Path, target: socket.socket) -> None:
    ended = Certificate(tmp_path / "ended.crt", tmp_path / "ended.key")
    openssl(
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=ended",
        "-keyout",
        ended.key,
        "-out",
        tmp_path / "ended.csr",
    )
    (tmp_path / "extensions").write_text("subjectAltName=DNS:localhost\n")
    openssl(
        "x509",
        "-req",
        "-in",
        tmp_path / "ended.csr",
        "-signkey",
        ended.key,
        "-days",
        "-1",
        "-extfile",
        tmp_path / "extensions",
        "-out",
        ended.certificate,
    )
    registrar = Registrar(ended)
    try:
        pem = "\n" + "".join(f"    {line}\n" for line in ended.pem.splitlines())
        start(at=registrar, certificate=pem)
        registrar.responder().close()
    finally:
        registrar.close()


def test_a_port_at_a_foreign_address_is_refused(start: Start, registrar: Registrar) -> None:
    with socket.create_server(("127.0.0.2", 0)) as foreign:
        foreign.setblocking(False)
        place = f"127.0.0.2:{foreign.getsockname()[1]}"
        registrar.script = [lambda _: answer(200, place)]
        agent = start("--waiting", "1")
        agent.said(" failed label=home", f"not connecting to {place}")
        registrar.responder().close()  # the next answer was a good one
        assert agent.stop() == 0
        with pytest.raises(BlockingIOError):
            foreign.accept()


def test_a_port_at_another_address_of_the_file_is_taken(start: Start, registrar: Registrar) -> None:
    registrar.script = [lambda request: answer(200, registrar.open_p(request.label, "127.0.0.2"))]
    start("--waiting", "1", address="127.0.0.1, 127.0.0.2")
    registrar.responder().close()


# ---- the file and the codes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": None}, "[registrar] name: is missing"),
        ({"name": "no spaces"}, "[registrar] name: must be a host name"),
        ({"port": "70000"}, "[registrar] port: must be a port number"),
        ({"address": "127.0.0.1, 1.2.3"}, "[registrar] address: 1.2.3 is no IP address"),
        ({"trust": "none"}, "[registrar] trust: must be pin or system"),
        ({"trust": None}, "[registrar] trust: is missing"),
        ({"certificate": None}, "[registrar] certificate: must be given with trust = pin"),
        ({"certificate": "abc"}, "[registrar] certificate: must be a PEM certificate"),
        (
            {"certificate": "\n  -----BEGIN CERTIFICATE-----\n  YWJj\n  -----END CERTIFICATE-----"},
            "[registrar] certificate: is damaged",
        ),
        ({"trust": "system"}, "[registrar] certificate: must be given with trust = pin, and only then"),
        ({"id": 'a"b'}, "[credential] id: must be printable"),
        ({"secret": "JBSWY1"}, "[credential] secret: must be base32"),
        ({"secret": "J"}, "[credential] secret: must be base32"),
        ({"secret": None}, "[credential] secret: is missing"),
        ({"digits": "9"}, "[credential] digits: must be 6, 7 or 8"),
        ({"period": "0"}, "[credential] period: must be a number of seconds"),
        ({"algorithm": "MD5"}, "[credential] algorithm: must be SHA1, SHA256 or SHA512"),
        ({"labels": "home, -cam"}, "[credential] labels: must be DNS labels"),
        ({"labels": None}, "[credential] labels: is missing"),
        ({"extra": "1"}, "[credential] extra: unknown key"),
        ({"servers": "a\n[more]\nkey = value"}, "[more]: unknown section"),
        ({"servers": f"a\nsecret = {SECRET}"}, "secret: given twice"),
        ({"servers": f"a\n{SECRET}"}, ": neither [section] nor key = value"),
    ],
)
def test_a_bad_file_is_one_clear_line(
    changes: dict[str, str | None], words: str, registrar: Registrar, pinned: Certificate, tmp_path: Path
) -> None:
    file = tmp_path / "home.agent.ini"
    file.write_text(agent_ini(registrar, pinned, **changes))
    ended = subprocess.run(
        [PYTHON, AGENT, file, "--to", "127.0.0.1:80"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"taas_agent.py: {file}: ")
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert SECRET not in ended.stderr
    assert registrar.requests.empty()


def test_a_file_that_is_not_there_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert taas_agent.main(["/nowhere/home.agent.ini", "--to", "127.0.0.1:80"]) == 2
    assert capsys.readouterr().err == "taas_agent.py: /nowhere/home.agent.ini: No such file or directory\n"


def test_a_file_with_the_secret_on_a_broken_line_does_not_tell_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "home.agent.ini"
    file.write_text(f"secret = {SECRET}\n")
    assert taas_agent.main([str(file), "--to", "127.0.0.1:80"]) == 2
    said = capsys.readouterr().err
    assert "line 1: neither [section] nor key = value" in said
    assert SECRET not in said


@pytest.mark.parametrize(
    "text",
    [
        "8123",
        "127.0.0.1",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "::1:443",
        "[home]:1",
        "http://127.0.0.1:1",
        "a b:1",
        ":1",
    ],
)
def test_a_target_is_host_and_port(
    text: str, registrar: Registrar, pinned: Certificate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "home.agent.ini"
    file.write_text(agent_ini(registrar, pinned))
    assert taas_agent.main([str(file), "--to", text]) == 2
    assert "[target home] to: must be HOST:PORT" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        taas_agent.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"taas-agent {taas_agent.VERSION}\n"


@pytest.mark.parametrize(
    ("seconds", "sha1", "sha256", "sha512"),
    [  # RFC 6238, appendix B
        (59, "94287082", "46119246", "90693936"),
        (1111111109, "07081804", "68084774", "25091201"),
        (1111111111, "14050471", "67062674", "99943326"),
        (1234567890, "89005924", "91819424", "93441116"),
        (2000000000, "69279037", "90698825", "38618901"),
        (20000000000, "65353130", "77737706", "47863826"),
    ],
)
def test_the_vectors_of_rfc_6238(seconds: int, sha1: str, sha256: str, sha512: str) -> None:
    digits = b"1234567890" * 7
    for algorithm, length, code in (("SHA1", 20, sha1), ("SHA256", 32, sha256), ("SHA512", 64, sha512)):
        assert taas_agent.totp(digits[:length], seconds // 30, 8, algorithm) == code
        assert taas_agent.totp(digits[:length], seconds // 30, 6, algorithm) == code[2:]


def test_every_cut_of_an_answer_is_put_together() -> None:
    whole = answer(200, "127.0.0.1:80", Date="Thu, 01 Jan 1970 01:00:00 GMT")
    for cut in range(len(whole)):
        assert taas_agent.parse_answer(whole[:cut], ended=False) is None
        with pytest.raises(taas_agent.BadAnswer):
            taas_agent.parse_answer(whole[:cut], ended=True)
    for tail in (b"", b"more"):
        parsed = taas_agent.parse_answer(whole + tail, ended=False)
        assert parsed and (parsed.status, parsed.body, parsed.when("date")) == (200, "127.0.0.1:80", 3600.0)


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + b"x" * 66_000,
        b"HTTP/2 200\r\n\r\n",
    ],
)
def test_an_answer_without_measure_is_refused(data: bytes) -> None:
    with pytest.raises(taas_agent.BadAnswer):
        taas_agent.parse_answer(data, ended=False)


def test_retry_after_is_seconds_or_a_date() -> None:
    def seconds(text: str) -> float:
        return taas_agent.Answer(503, {"retry-after": text}, "").retry_after(now=1000.0)

    assert seconds("7") == 7
    assert seconds("Thu, 01 Jan 1970 00:20:00 GMT") == 200
    assert seconds("soon") == seconds("") == 0


def test_a_dead_path_is_noticed_while_a_connection_waits(registrar: Registrar) -> None:
    with socket.socket() as sock:
        taas_agent.keep_alive(sock, taas_agent.UNACKNOWLEDGED_MS)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name, value in (
            ("TCP_KEEPIDLE", 25),
            ("TCP_KEEPINTVL", 5),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 40_000),
        ):
            if hasattr(socket, name):
                assert sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value
