"""What the agent meets in its tests: a registrar written here by hand from docs/protocol.md, and its parts.

It does not know our service: what the agent needs from one is all in `Registrar` below.
"""

from __future__ import annotations

import contextlib
import email.utils
import ipaddress
import json
import os
import queue
import re
import shutil
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
from typing import Any

import pyotp
import pytest

AGENT = Path(__file__).resolve().parent.parent / "taas_agent.py"
PYTHON = os.environ.get("TAAS_AGENT_PYTHON", sys.executable)  # an old one, perhaps
PATIENCE = float(os.environ.get("TAAS_PATIENCE", "30"))  # seconds; none passes by waiting
ID = "4e6b1c52-9a3e-4f0b-8f6e-0c7a3f1d2b10"
SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
MEBIBYTE = 1 << 20
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"  # of a PROXY header, version 2
LOCAL = SIGNATURE + b"\x20\0\0\0"  # the one that names nobody
SOMEBODY = ("198.51.100.7", 4711)  # who visits, by default


# ---- certificates -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    certificate: Path
    key: Path

    @property
    def pem(self) -> str:
        return self.certificate.read_text()

    @property
    def indented(self) -> str:
        """As the agent's ini holds it."""
        return "\n" + "".join(f"    {line}\n" for line in self.pem.splitlines())


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


EC_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def self_signed(folder: Path, name: str, alternates: str = "DNS:localhost,IP:127.0.0.1") -> Certificate:
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName={alternates}"]
    openssl("req", "-x509", *EC_KEY, "-days", 3650, *subject, "-keyout", made.key, "-out", made.certificate)
    return made


def issue(ca: Certificate, folder: Path, name: str, first: str = "", last: str = "") -> Certificate:
    """A certificate for localhost by CA, valid from FIRST to LAST (YYYYMMDDHHMMSSZ; for 30 days from now)."""
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    (folder / f"{name}.cnf").write_text(
        "[ca]\ndefault_ca = one\n[one]\ndatabase = index.txt\nserial = serial\nnew_certs_dir = .\n"
        "default_md = sha256\npolicy = any\nunique_subject = no\nx509_extensions = more\n"
        "[any]\ncommonName = supplied\n[more]\nsubjectAltName = DNS:localhost\n"
    )
    (folder / "index.txt").write_text("")
    (folder / "serial").write_text(f"{time.time_ns():020X}\n")
    request = folder / f"{name}.csr"
    openssl("req", *EC_KEY, "-subj", f"/CN={name}", "-keyout", made.key, "-out", request)
    dates = ["-startdate", first, "-enddate", last] if first else ["-days", "30"]
    signer = ["-cert", ca.certificate, "-keyfile", ca.key]
    command = ["openssl", "ca", "-batch", "-config", f"{name}.cnf", *signer, "-in", request]
    subprocess.run([*command, "-out", made.certificate, "-notext", *dates], check=True, cwd=folder)
    return made


@pytest.fixture(scope="session")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("pinned"), "pinned")


# ---- the service, as far as an agent sees it --------------------------------------------------------------


@dataclass
class Request:
    label: str
    headers: dict[str, str]
    code: str
    at: float = field(default_factory=time.monotonic)

    def asks(self, name: str) -> str | None:
        return self.headers.get(name)


def answer(status: int, body: str, **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", "Content-Type: text/plain"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if "TAAS_Stay" not in headers:
        lines.append("Connection: close")
    return ("\r\n".join([*lines, "", ""]) + body).encode()


def proxy_header(source: tuple[str, int], label: str = "home") -> bytes:
    """What a service writes before the octets of the visitor from SOURCE."""
    address = ipaddress.ip_address(source[0])
    local = ipaddress.ip_address("203.0.113.5" if address.version == 4 else "2001:db8::5")
    said = address.packed + local.packed + struct.pack(">HH", source[1], 443)
    said += b"\xe0" + struct.pack(">H", len(label)) + label.encode()
    return (
        SIGNATURE
        + (b"\x21\x11" if address.version == 4 else b"\x21\x21")
        + struct.pack(">H", len(said))
        + said
    )


@dataclass
class Responder(contextlib.AbstractContextManager["Responder"]):
    """A connection that waits."""

    sock: socket.socket
    stayed: bool
    proxied: bool
    label: str

    def visit(self, source: tuple[str, int] = SOMEBODY) -> socket.socket:
        """The visitor's end, once the service has paired it."""
        if self.proxied:
            self.sock.sendall(proxy_header(source, self.label))
        return self.sock

    def close(self) -> None:
        self.sock.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class Registrar:
    """TLS, PUT, port p or staying: one thread per connection.

    `script` answers instead, as long as it has answers.  STAY and PROXY say which wishes it grants.
    """

    def __init__(
        self,
        certificate: Certificate,
        host: str = "127.0.0.1",
        clock: float = 0.0,
        stay: bool = False,
        proxy: bool = False,
        port: int = 0,
    ) -> None:
        self.host, self.clock, self.stay, self.proxy = host, clock, stay, proxy
        self.requests: queue.Queue[Request] = queue.Queue()
        self.script: list[Callable[[Request], bytes]] = []
        self.server_names: set[str | None] = set()
        self.dribbles = False  # says its answer and close_notify octet by octet
        self.chatter = b""  # said behind each answer
        self.parted: list[bytes] = []  # what agents said around their close_notify: nothing
        self._responders: dict[str, queue.Queue[Responder]] = {
            label: queue.Queue() for label in ("home", "cam")
        }
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate.certificate, certificate.key)
        self._context.sni_callback = lambda _, name, __: self.server_names.add(name)
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=self._family)
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept)

    def waiting(self, label: str = "home") -> Responder:
        """The next connection that waits under LABEL."""
        responder = self._responders[label].get(timeout=PATIENCE)
        responder.sock.settimeout(PATIENCE)
        return responder

    def responder(self, label: str = "home") -> socket.socket:
        return self.waiting(label).sock

    def visitor(self, label: str = "home", source: tuple[str, int] = SOMEBODY) -> socket.socket:
        """A visitor's end, paired with the next connection that waits."""
        return self.waiting(label).visit(source)

    def count_waiting(self, label: str = "home") -> int:
        return self._responders[label].qsize()

    def request(self) -> Request:
        return self.requests.get(timeout=PATIENCE)

    def open_p(self, label: str, host: str | None = None, proxied: bool = False) -> str:
        """Listen on a fresh port p for the one connection that may come; its address."""
        listener = socket.create_server((host or self.host, 0), family=self._family)
        self._open.append(listener)
        self._spawn(self._claim, label, listener, proxied)
        name = f"[{self.host}]" if ":" in self.host else host or self.host
        return f"{name}:{listener.getsockname()[1]}"

    def stop_listening(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts on it
        self._listener.close()

    def close(self) -> None:
        self.stop_listening()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:  # one of them may be about to hand a connection over
            thread.join(PATIENCE)
        self.close_waiting()

    def close_waiting(self, rudely: bool = False) -> int:
        count = 0
        for waiting in self._responders.values():
            while not waiting.empty():
                sock = waiting.get().sock
                close_with_reset(sock) if rudely else sock.close()
                count += 1
        return count

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
        responder = None
        try:
            with contextlib.suppress(OSError):
                responder = self._exchange(sock)
        finally:
            if responder is None:
                sock.close()
        if responder:
            self._responders[responder.label].put(responder)

    def _exchange(self, sock: socket.socket) -> Responder | None:
        """One exchange, through an SSLObject: the socket stays ours, for it may go on in plain."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._context.wrap_bio(incoming, outgoing, server_side=True)

        def flush() -> None:
            while data := outgoing.read(1 if self.dribbles else -1):
                sock.sendall(data)

        def do(call: Callable[[], Any]) -> Any:
            while True:
                try:
                    return call()
                except ssl.SSLWantReadError:
                    flush()
                    data = sock.recv(1 << 16)
                    if not data:
                        raise ConnectionError("closed") from None
                    incoming.write(data)

        do(tls.do_handshake)
        flush()
        head = b""
        while b"\r\n\r\n" not in head:
            data = do(lambda: tls.read(4096))
            if not data:
                return None
            head += data
        request_line, *lines = head.decode().split("\r\n")
        found = re.fullmatch("PUT (?:/elsewhere)?/register/([a-z]+) HTTP/1.1", request_line)
        headers = dict(line.split(": ", 1) for line in lines if line)
        claim = re.fullmatch(f'TOTP username="{ID}", response="([0-9]+)"', headers["Authorization"])
        assert claim, head
        if not found:
            tls.write(answer(404, "nothing is here"))
            flush()
            return None
        request = Request(found[1], headers, claim[1])
        say = self.script.pop(0) if self.script else self._register
        response = say(request)
        self.requests.put(request)
        tls.write(response)
        if self.chatter:
            tls.write(self.chatter)
        stays = b"\r\nTAAS-Stay: 1\r\n" in response and response.startswith(b"HTTP/1.1 200 ")
        if not stays:
            flush()
            with contextlib.suppress(ssl.SSLError):
                tls.unwrap()
            flush()
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):  # so that no unread octet turns the answer into a reset
                pass
            return None
        flush()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # no close_notify before ours, and nothing else
            self.parted.append(sock.recv(4096))
        sock.settimeout(PATIENCE)
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()
        flush()
        do(tls.unwrap)
        self.parted.append(incoming.read())  # behind its close_notify stand early octets; an agent has none
        return Responder(sock, True, b"\r\nTAAS-Proxy: v2\r\n" in response, request.label)

    def _register(self, request: Request) -> bytes:
        now = time.time() + self.clock
        date = email.utils.formatdate(now, usegmt=True)
        good = [pyotp.TOTP(SECRET).generate_otp(int(now) // 30 + drift) for drift in (-1, 0, 1)]
        if request.code not in good:
            return answer(401, f"the code {request.code} is wrong", Date=date)
        return self.grant(request, Date=date)

    def grant(self, request: Request, **headers: object) -> bytes:
        """A 200 as the request wishes, and as this service can."""
        if self.proxy and request.asks("TAAS-Proxy") == "v2":
            headers["TAAS_Proxy"] = "v2"
        if self.stay and request.asks("TAAS-Stay") == "1":
            return answer(200, "-", TAAS_Stay=1, **headers)
        return answer(200, self.open_p(request.label, proxied="TAAS_Proxy" in headers), **headers)

    def _claim(self, label: str, listener: socket.socket, proxied: bool) -> None:
        with contextlib.suppress(OSError):
            sock, _ = listener.accept()
            listener.close()
            self._responders[label].put(Responder(sock, False, proxied, label))


class AgentProcess:
    """taas_agent.py, running, with its log and what it said to its starter."""

    def __init__(
        self, file: Path, *options: str, env: dict[str, str] | None = None, prefix: tuple[str, ...] = ()
    ) -> None:
        self.file = file
        self.log: list[str] = []
        self.told: list[str] = []
        self._grown = threading.Condition()
        self.process = subprocess.Popen(
            [*prefix, PYTHON, "-W", "error", str(AGENT), str(file), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self._readers = [
            threading.Thread(target=self._read, args=which, daemon=True)
            for which in ((self.process.stderr, self.log), (self.process.stdout, self.told))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        for line in stream:
            with self._grown:
                lines.append(line)
                self._grown.notify_all()

    def until(self, found: Callable[[], Any], what: str = "", seconds: float = PATIENCE) -> Any:
        """What FOUND finds at last in the log or among the words told."""
        with self._grown:
            result = self._grown.wait_for(found, seconds)
            assert result, f"never: {what} in:\n{''.join(self.log)}{''.join(self.told)}"
            return result

    def said(self, *words: str, times: int = 1, seconds: float = PATIENCE) -> str:
        """The first line of the log (the TIMES-th) that holds all the words; waits for it."""

        def found() -> list[str]:
            return [line for line in self.log if all(word in line for word in words)][times - 1 : times]

        line: str = self.until(found, f"{words} {times} times", seconds)[0]
        return line

    def tells(self, *words: str, times: int = 1) -> str:
        """The same of standard output."""

        def found() -> list[str]:
            return [line for line in self.told if all(word in line for word in words)][times - 1 : times]

        line: str = self.until(found, f"{words} {times} times")[0]
        return line

    def count(self, *words: str) -> int:
        return sum(all(word in line for word in words) for line in self.log)

    def pool(self, times: int = 1) -> dict[str, str]:
        """What it says of its pool when it is asked to for the TIMES-th time."""
        self.process.send_signal(signal.SIGUSR1)
        return facts(self.said(" info pool ", times=times))

    def proc(self, name: str, key: str) -> int:
        """The number behind KEY in /proc/PID/NAME."""
        found = re.search(rf"^{key}:\s+(\d+)", Path(f"/proc/{self.process.pid}/{name}").read_text(), re.M)
        assert found
        return int(found[1])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit status; a second signal, after a while, ends what is live."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
            if self.process.poll() is None:
                self.process.send_signal(number)
        try:
            return self.ended()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.ended()
            raise

    def ended(self, seconds: float = PATIENCE) -> int:
        """Its exit status, when it ends by itself."""
        status = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()
        return status


def facts(line: str) -> dict[str, str]:
    """key=value of a line of the log."""
    return {key: value.strip('"') for key, value in re.findall(r' ([a-z_]+)=("(?:[^"\\]|\\.)*"|\S+)', line)}


def run(file: Path, *options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """An agent that ends by itself."""
    return subprocess.run(
        [PYTHON, "-W", "error", str(AGENT), str(file), *options],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, **(env or {})},
    )


# ---- the parts of a journey -------------------------------------------------------------------------------


@pytest.fixture
def open_registrar(pinned: Certificate) -> Iterator[Callable[..., Registrar]]:
    """Open a Registrar, with the pinned certificate unless another is given; it is closed afterwards."""
    opened: list[Registrar] = []

    def open_registrar(certificate: Certificate = pinned, **options: Any) -> Registrar:
        opened.append(Registrar(certificate, **options))
        return opened[-1]

    yield open_registrar
    for registrar in opened:
        registrar.close()


@pytest.fixture
def registrar(open_registrar: Callable[..., Registrar]) -> Registrar:
    """One that knows staying and PROXY."""
    return open_registrar(stay=True, proxy=True)


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


def place(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def agent_ini(registrar: Registrar, pin: Certificate, **changes: str | None) -> str:
    values: dict[str, str | None] = {
        "name": "localhost",
        "port": str(registrar.port),
        "address": registrar.host,
        "trust": "pin",
        "certificate": pin.indented,
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
Write = Callable[..., Path]


@pytest.fixture
def write(registrar: Registrar, pinned: Certificate, tmp_path: Path) -> Write:
    """Write home.agent.ini: CHANGES of its keys, and MORE sections behind."""

    def write(at: Registrar = registrar, more: str = "", **changes: str | None) -> Path:
        file = tmp_path / "home.agent.ini"
        file.write_text(agent_ini(at, pinned, **changes) + more)
        file.chmod(0o600)
        return file

    return write


def codes_of(secret: str = SECRET) -> set[str]:
    """All that an agent may have sent within this test, whatever the registrar's clock said."""
    years_56 = int(56 * 365.25 * 86400)
    return {
        pyotp.TOTP(secret).generate_otp(int(time.time() + ahead) // 30 + drift)
        for ahead in (-3600, 0, 3600, years_56)
        for drift in range(-5, 2)
    }


@pytest.fixture
def start(write: Write, target: socket.socket) -> Iterator[Start]:
    """Starts an agent; afterwards it must end cleanly and have logged neither secret nor code."""
    agents: list[AgentProcess] = []

    def start(
        *options: str,
        to: str | None = None,
        env: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        **changes: Any,
    ) -> AgentProcess:
        to = place(target) if to is None else to
        target_option = ("--to", to) if to else ()
        agents.append(AgentProcess(write(**changes), *target_option, *options, env=env, prefix=prefix))
        return agents[-1]

    yield start
    for agent in agents:
        status = agent.stop() if not agent.process.stderr or not agent.process.stderr.closed else 0
        log = "".join([*agent.log, *agent.told])
        assert (status, " fault " in log, "Traceback" in log) == (0, False, False), log
        assert SECRET not in log
        assert not codes_of() & set(re.findall(r"\b[0-9]{6}\b", log)), log


def read_to_the_end(sock: socket.socket) -> bytes:
    received = bytearray()
    while data := sock.recv(1 << 16):
        received += data
    return bytes(received)


def receive(sock: socket.socket, count: int) -> bytes:
    """Exactly COUNT octets."""
    received = bytearray()
    while len(received) < count:
        data = sock.recv(count - len(received))
        assert data, f"ended after {bytes(received)!r}"
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


def from_json(line: str) -> dict[str, Any]:
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def has(program: str) -> bool:
    return shutil.which(program) is not None
