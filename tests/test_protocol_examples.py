"""Replays the examples of docs/protocol.md against a running service: a process, ports, TLS, a database.

The document says what goes over the wire and what comes back; here stands only what must be the case first.
"""

from __future__ import annotations

import ast
import contextlib
import email.utils
import json
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyotp
import pytest

from taaslib import config

TOP = Path(__file__).resolve().parent.parent
DOCUMENT = (TOP / "docs" / "protocol.md").read_text(encoding="utf-8")
REGISTRAR, SERVERS, PUBLIC = "taas-registrar.example.com", "taas.example.com", "203.0.113.5"
STRANGER = "127.0.0.2"  # loopback's other addresses stand for other machines
PATIENCE = 20.0  # seconds until a test gives up; none passes by waiting
REUSE = 40  # more often than any credential is used here within a step, `overused` apart


# ---- the document ------------------------------------------------------------------------------------------

_FENCE = re.compile(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEAD = re.compile(r'(\d{3}) ("(?:[^"\\]|\\.)*")')
_STEP = re.compile(r"([A-Z]) (.+?)(?:; |\n|\Z)")
_EVERY_ANSWER = {
    "Date": "<DATE>",
    "Connection": "close",
    "Content-Type": "text/plain; charset=utf-8",
    "Content-Length": "<LENGTH>",
    "X-Content-Type-Options": "nosniff",
}
_FORMS = {
    "DATE": "[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT",
    "LENGTH": "[0-9]+",
    "MS": "[0-9]{13}",
    "PAGE": "<!DOCTYPE html>\n(?s:.+)</html>",
    "PORT": "[1-9][0-9]{4}",
    "SECONDS": "[1-9][0-9]?",
}


@dataclass(frozen=True)
class Example:
    """What is sent and what must come back, with <PLACEHOLDERS>."""

    name: str
    request: str
    response: str
    tls: bool = True


def blocks(kind: str) -> Iterator[tuple[list[str], str]]:
    """The info string's other words and the text of each fenced block of this KIND."""
    for fence in _FENCE.finditer(DOCUMENT):
        if fence[1] == kind:
            yield fence[2].split(), fence[3]


def entries(kind: str) -> Iterator[tuple[str, str]]:
    """Title and text of each entry that `==` begins within the blocks of this KIND."""
    for _, text in blocks(kind):
        nothing, *parts = re.split(r"^== ", text, flags=re.MULTILINE)
        assert not nothing, f"before the first ==: {nothing}"
        for part in parts:
            title, _, rest = part.partition("\n")
            yield title, rest


def long_examples() -> Iterator[Example]:
    requests: dict[str, str] = {}
    for (what, name, *more), text in blocks("http"):
        if what == "request":
            requests[name.removeprefix("name=")] = text.replace("\n", "\r\n")
            continue
        head, _, body = text.partition("\n\n")
        response = head.replace("\n", "\r\n") + "\r\n\r\n" + (body[:-1] if "unended" in more else body)
        for of in name.removeprefix("of=").split(","):
            yield Example(of, requests.pop(of), response)
    assert not requests, f"unanswered: {list(requests)}"


def short_examples() -> Iterator[Example]:
    for title, text in entries("cases"):
        name, _, how = title.partition(", ")
        lines = text.splitlines()
        sent = [line[2:] for line in lines if line.startswith("> ")]
        status, *shown, body = [line[2:] for line in lines if line.startswith("< ")]
        assert len(sent) + len(shown) + 2 == len(lines) and how in ("", "without TLS"), title
        fields = _EVERY_ANSWER | dict(line.split(": ", 1) for line in shown)
        answered = [status, *(f"{name}: {value}" for name, value in fields.items())]
        request, response = ("\r\n".join([*head, "", ""]) for head in (sent, answered))
        yield Example(name, request, response + body + "\n", tls=not how)


def heads() -> Iterator[tuple[int, bytes]]:
    for _, text in blocks("heads"):
        for line in text.splitlines():
            match = _HEAD.match(line)
            assert match, line
            yield int(match[1]), literal(match[2])


def literal(quoted: str) -> bytes:
    octets = ast.literal_eval("b" + quoted)
    assert isinstance(octets, bytes)
    return octets


def filled(template: str, facts: dict[str, str]) -> str:
    return re.sub("<([A-Z]+)>", lambda match: facts.get(match[1], match[0]), template)


def pattern(template: str) -> re.Pattern[str]:
    """Matches TEMPLATE, its placeholders being groups."""
    pieces = re.split("<([A-Z]+)>", template)
    pieces[::2] = [re.escape(piece) for piece in pieces[::2]]
    pieces[1::2] = [f"(?P<{name}>{_FORMS[name]})" for name in pieces[1::2]]
    return re.compile("".join(pieces))


EXAMPLES = {example.name: example for example in [*long_examples(), *short_examples()]}
EXCHANGES = dict(entries("exchanges"))


# ---- the service and its clients ---------------------------------------------------------------------------


@dataclass
class Running:
    """The service as a process, and who knows which secret."""

    folder: Path
    port: int
    trust: ssl.SSLContext
    secrets: dict[str, str] = field(default_factory=dict)  # ID -> base32; the first one serves the examples

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    def add(self, *labels: str) -> str:
        """The operator adds a credential; returns its ID."""
        added = json.loads(run(self.folder, "taas_admin.py", "--json", "add", *labels))
        self.secrets[added["id"]] = added["secret"]
        return str(added["id"])

    def code(self, id: str, steps: int = 0) -> str:
        return pyotp.TOTP(self.secrets[id]).generate_otp(int(time.time()) // 30 + steps)

    def facts(self, id: str = "") -> dict[str, str]:
        id = id or next(iter(self.secrets))
        near = {self.code(id, steps) for steps in range(-3, 4)}
        wrong = next(code for code in (f"{number:06}" for number in range(10)) if code not in near)
        return {"ID": id, "CODE": self.code(id), "WRONG": wrong}

    def ask(self, request: bytes, *, tls: bool = True) -> str:
        """One exchange at the front door, which must end in order: close_notify and FIN."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not tls:
                sock.sendall(request)
                return read_all(sock)
            with self.trust.wrap_socket(
                sock, server_hostname=REGISTRAR, suppress_ragged_eofs=False
            ) as encrypted:
                assert encrypted.selected_alpn_protocol() == "http/1.1"
                encrypted.sendall(request)
                return read_all(encrypted)

    def replay(self, example: Example, facts: dict[str, str]) -> re.Match[str]:
        """Send the request; the match of the answer with the document's."""
        answer = self.ask(filled(example.request, facts).encode("latin-1"), tls=example.tls)
        expected = filled(example.response, facts)
        match = pattern(expected).fullmatch(answer)
        if not match:
            pytest.fail(f"{example.name}:\nanswered\n{answer!r}\nthe document says\n{expected!r}")
        return match

    def register(self, label: str) -> int:
        """As the document's first example does, but under LABEL; returns port p."""
        example = EXAMPLES["register"]
        request = example.request.replace("/register/home", f"/register/{label}")
        return int(self.replay(Example(label, request, example.response), self.facts())["PORT"])

    def redirect(self, label: str) -> str:
        return self.ask(f"GET / HTTP/1.1\r\nHost: {label}.{SERVERS}\r\n\r\n".encode())

    def connect(self, port: int, source: str = "") -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), PATIENCE, (source, 0) if source else None)


def read_all(sock: socket.socket) -> str:
    received = b""
    while data := sock.recv(65536):
        received += data
    return received.decode("latin-1")


def read_exactly(sock: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count and (data := sock.recv(count - len(received))):
        received += data
    return received


def name_of(sock: socket.socket) -> str:
    return "{}:{}".format(*sock.getsockname())


def run(folder: Path, command: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, TOP / command, *arguments], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    port = free_port()
    (folder / "taas.ini").write_text(
        f"[taas]\naddress = 127.0.0.1\nport = {port}\npublic = {PUBLIC}\nregistrar = {REGISTRAR}\n"
        f"servers = {SERVERS}\n[limits]\nreuse = {REUSE}\n[log]\nfile = server.log\nlevel = debug\n"
    )
    run(folder, "make_cert.py", "taas.ini")
    trust = ssl.create_default_context(cafile=str(folder / "registrar.crt"))
    trust.set_alpn_protocols(["http/1.1"])
    running = Running(folder, port, trust)
    running.add("home", "cam", "attic", *EXCHANGES)
    with subprocess.Popen([sys.executable, TOP / "taas.py", "taas.ini"], cwd=folder) as process:
        try:
            wait_until_it_listens(process, running)
            yield running
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0, running.log
        finally:
            process.kill()
    assert " fault " not in running.log and " stopped" in running.log, running.log


def wait_until_it_listens(process: subprocess.Popen[bytes], running: Running) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError), running.connect(running.port):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"the service ended with {process.wait(0.02)}")
    pytest.fail("the service never listened")


# ---- what must be the case before an example ---------------------------------------------------------------


@contextlib.contextmanager
def scene(name: str, service: Running) -> Iterator[dict[str, str]]:
    """Set the scene for the example of that NAME; yields what its placeholders stand for."""
    with contextlib.ExitStack() as stack:
        facts = service.facts()
        if name in ("redirect", "absolute-form"):
            stack.enter_context(service.connect(service.register("home")))
        elif name == "pairings":
            responder = stack.enter_context(service.connect(service.register("cam")))
            q = re.search(r"\r\nLocation: https://[^/]+:([0-9]+)/", service.redirect("cam"))
            assert q
            initiator = stack.enter_context(service.connect(int(q[1])))
            initiator.sendall(b"x")
            assert responder.recv(1) == b"x"
            facts |= {"RESPONDER": name_of(responder), "INITIATOR": name_of(initiator)}
        elif name == "overused":
            facts = service.facts(service.add("shed"))
            request = filled(EXAMPLES["register"].request, facts).replace("/home", "/shed").encode()
            for _ in range(REUSE):
                assert service.ask(request).startswith("HTTP/1.1 200 ")
        yield facts


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_service_answers_as_the_document_says(service: Running, name: str) -> None:
    with scene(name, service) as facts:
        match = service.replay(EXAMPLES[name], facts)
        head, _, body = match[0].partition("\r\n\r\n")
        assert f"\r\nContent-Length: {len(body.encode('latin-1'))}\r\n" in head + "\r\n"
        date = email.utils.parsedate_to_datetime(match["DATE"]).timestamp()
        assert abs(date - time.time()) < PATIENCE
        found = match.groupdict()
        if "SECONDS" in found:
            assert 1 <= int(found["SECONDS"]) <= 30
        if "MS" in found:
            assert abs(int(found["MS"]) / 1000 - time.time()) < PATIENCE
        if "PORT" in found:
            service.connect(int(found["PORT"])).close()


@pytest.mark.parametrize(("status", "head"), heads())
def test_the_parser_is_as_strict_as_the_document_says(service: Running, status: int, head: bytes) -> None:
    assert service.ask(head).startswith(f"HTTP/1.1 {status} ")


def test_a_head_may_have_16_kib_and_not_an_octet_more(service: Running) -> None:
    start, end = b"GET / HTTP/1.1\r\nHost: x\r\nA: ", b"\r\n\r\n"
    room = 16 * 1024 - len(start + end)
    assert service.ask(start + b"a" * room + end).startswith("HTTP/1.1 421 ")
    assert service.ask(start + b"a" * (room + 1) + end).startswith("HTTP/1.1 431 ")


def test_nobody_can_tell_an_offline_label_from_one_that_does_not_exist(service: Running) -> None:
    for name in ("offline", "offline-page"):
        known = EXAMPLES[name]
        request, response = (text.replace("attic", "nobody") for text in (known.request, known.response))
        service.replay(Example(name, request, response), {})


def test_head_gets_the_same_head_and_no_body(service: Running) -> None:
    example = EXAMPLES["offline"]
    head, _, body = example.response.partition("\r\n\r\n")
    match = service.replay(Example("HEAD", example.request.replace("GET", "HEAD", 1), head + "\r\n\r\n"), {})
    assert int(match["LENGTH"]) == len(body)


def test_an_unknown_and_a_disabled_id_are_answered_like_a_wrong_code(service: Running) -> None:
    disabled = service.add("shelf")
    run(service.folder, "taas_admin.py", "disable", disabled)
    for id in (disabled, "00000000-0000-4000-8000-000000000000"):
        service.replay(EXAMPLES["wrong-code"], {"ID": id, "WRONG": service.code(disabled)})


# ---- relayed exchanges -------------------------------------------------------------------------------------


class Stage:
    """Plays the steps of one exchange, under a label of its own."""

    def __init__(self, service: Running, label: str, stack: contextlib.ExitStack) -> None:
        self._service, self._label, self._stack = service, label, stack
        self._socks: dict[str, socket.socket] = {}
        self._ports: dict[str, int] = {}

    def play(self, who: str, what: str) -> None:
        if what == "registers: 200":
            self._ports["p"] = self._service.register(self._label)
        elif what.startswith("asks the redirector: "):
            answer = self._service.redirect(self._label)
            assert answer.split()[1] == what[-3:], answer
            if q := re.search(r"\r\nLocation: https://[^/]+:([0-9]+)/", answer):
                self._ports["q"] = int(q[1])
        elif what in ("connects to p", "connects to q"):
            sock = self._service.connect(self._ports[what[-1]], STRANGER if who == "X" else "")
            self._socks[who] = self._stack.enter_context(sock)
        else:
            verb, _, object = what.partition(" ")
            assert verb in ("sends", "receives"), what
            (self._send if verb == "sends" else self._receive)(self._socks[who], object)

    @staticmethod
    def _send(sock: socket.socket, object: str) -> None:
        if object == "FIN":
            sock.shutdown(socket.SHUT_WR)
        elif object == "RST":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        else:
            sock.sendall(literal(object))

    @staticmethod
    def _receive(sock: socket.socket, object: str) -> None:
        if object == "FIN":
            assert sock.recv(1) == b""
        elif object == "RST":
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        else:
            assert read_exactly(sock, len(literal(object))) == literal(object)


@pytest.mark.parametrize("name", EXCHANGES)
def test_an_exchange_goes_as_the_document_says(service: Running, name: str) -> None:
    steps = _STEP.findall(EXCHANGES[name])
    assert len(steps) == EXCHANGES[name].replace(";", "\n").strip().count("\n") + 1
    with contextlib.ExitStack() as stack:
        stage = Stage(service, name, stack)
        for who, what in steps:
            stage.play(who, what)


# ---- tables ------------------------------------------------------------------------------------------------


def test_the_table_of_limits_is_the_service_s_default() -> None:
    table = DOCUMENT.partition("\n## Limits\n")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `([a-z-]+)` \| (\w+) \|", table, re.MULTILINE))
    limits = config.Limits()
    assert {key.replace("-", "_") for key in told} == set(limits.__dataclass_fields__)
    lines = "\n".join(f"{key} = {value}" for key, value in told.items())
    required = f"[taas]\npublic = {PUBLIC}\nregistrar = {REGISTRAR}\nservers = {SERVERS}\n"
    assert config.parse(f"{required}[limits]\n{lines}\n", Path("taas.ini")).limits == limits
