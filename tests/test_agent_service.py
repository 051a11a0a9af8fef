"""The agent with our own service, as processes: staying and port p, PROXY, curl and openssl(1) as visitors,
and restarts of the service under a visitor who never gives up."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import hashlib
import json
import os
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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from house import SERVERS
from process import ROOT, Process
from registrar import (
    MEBIBYTE,
    PATIENCE,
    AgentProcess,
    accept,
    facts,
    has,
    openssl,
    place,
    read_to_the_end,
    receive,
    self_signed,
)
from test_trial import HELLO

HOME = f"home.{SERVERS}"
BLOB = hashlib.sha256(b"blob").digest() * (16 * MEBIBYTE // 32)
ACCEPT = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3


class App(BaseHTTPRequestHandler):
    """A local service on plain HTTP, as people have it: pages, uploads, a WebSocket that echoes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self._websocket()
            return
        self._answer(BLOB if self.path == "/blob" else f"you asked {self.path}".encode())

    def do_PUT(self) -> None:
        digest = hashlib.sha256()
        left = int(self.headers["Content-Length"])
        while left:
            data = self.rfile.read(min(left, MEBIBYTE))
            digest.update(data)
            left -= len(data)
        self._answer(digest.hexdigest().encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _websocket(self) -> None:
        key = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + ACCEPT).encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(key).decode())
        self.end_headers()
        while head := self.rfile.read(6):  # short masked text frames
            size, mask = head[1] & 0x7F, head[2:6]
            text = bytes(octet ^ mask[i % 4] for i, octet in enumerate(self.rfile.read(size)))
            if head[0] & 15 == 8:
                break
            self.wfile.write(bytes([0x81, len(text)]) + text)
        self.close_connection = True

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def app() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), App)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield place(server.socket)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Served:
    """A running service with label `home` in mode both, and agents for it."""

    def __init__(self, process: Process) -> None:
        self.process, self.agents = process, list[AgentProcess]()
        self.file = process.folder / "home.agent.ini"
        command = [sys.executable, ROOT / "taas_admin.py", "-c", process.ini, "add", "home", "--mode", "both"]
        subprocess.run(command, cwd=process.folder, check=True, capture_output=True)
        process.start()

    def agent(self, *options: str) -> AgentProcess:
        self.agents.append(AgentProcess(self.file, *options))
        self.agents[-1].tells("visitors use")
        return self.agents[-1]

    def terminating(self, to: str, *options: str) -> AgentProcess:
        pair = self_signed(self.process.folder, HOME, f"DNS:{HOME}")
        lines = f"\n[target]\ntls = terminate\ncertificate = {pair.certificate.name}\nkey = {pair.key.name}\n"
        self.file.write_text(self.file.read_text() + lines)
        return self.agent("--to", to, *options)

    @property
    def trust(self) -> Path:
        """What a visitor trusts: service and hidden server."""
        folder, bundle = self.process.folder, self.process.folder / "bundle.pem"
        bundle.write_text((folder / "registrar.crt").read_text() + (folder / f"{HOME}.crt").read_text())
        return bundle

    def curl(self, path: str, *options: str) -> bytes:
        url = f"https://{HOME}:{self.process.port}{path}"
        return subprocess.run(
            ["curl", "-sS", "--fail", "-L", "--max-time", "60", "--cacert", self.trust]
            + ["--connect-to", "::127.0.0.1:", *options, url],
            check=True,
            capture_output=True,
        ).stdout

    def connect(self) -> ssl.SSLSocket:
        """A visitor by server name, on the service's own port."""
        context = ssl.create_default_context(cafile=str(self.trust))
        sock = socket.create_connection(("127.0.0.1", self.process.port), PATIENCE)
        return context.wrap_socket(sock, server_hostname=HOME)

    def close(self) -> None:
        for agent in self.agents:
            status, log = agent.stop(), "".join(agent.log)
            assert (status, " fault " in log, "Traceback" in log) == (0, False, False), log


@pytest.fixture
def served(process: Callable[..., Process]) -> Iterator[Served]:
    served = Served(process())
    yield served
    served.close()


WAYS = pytest.mark.parametrize("way", [[], ["--plain"]], ids=["staying", "plain"])


@WAYS
@pytest.mark.skipif(not has("curl"), reason="needs curl")
def test_curl_reaches_an_app_on_plain_http(served: Served, way: list[str], tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(BLOB)
    with app() as to:
        agent = served.terminating(to, *way)
        assert served.curl("/room?x=1") == b"you asked /room?x=1"
        assert served.curl("/blob") == BLOB
        digest = hashlib.sha256(BLOB).hexdigest().encode()
        assert served.curl("/up", "-T", str(body), "-H", "Expect:") == digest
        assert served.curl("/tls12", "--tls-max", "1.2") == b"you asked /tls12"
    known = [facts(line).get("visitor", "") for line in agent.log if " complete " in line]
    assert len(known) >= 3
    assert all(who.startswith("127.0.0.1:") != bool(way) for who in known)


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_reaches_it_and_hears_all_after_its_last_word(served: Served, version: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        target.settimeout(PATIENCE)
        agent = served.terminating(place(target))
        client = subprocess.Popen(
            [
                "openssl",
                "s_client",
                version,
                "-quiet",
                "-no_ign_eof",
                "-verify_return_error",
                "-servername",
                HOME,
            ]
            + ["-CAfile", served.trust, "-connect", f"127.0.0.1:{served.process.port}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with accept(target) as service:
            assert client.stdin and client.stdout
            client.stdin.write(b"a question\n")
            client.stdin.flush()
            assert receive(service, 11) == b"a question\n"
            service.sendall(b"an answer\n" * 100_000)
            assert client.stdout.read(1_000_000) == b"an answer\n" * 100_000
            client.stdin.close()  # s_client says close_notify and goes
            assert read_to_the_end(service) == b""
        client.wait(PATIENCE)
        client.stdout.close()
        agent.said(" label=home visitor=", "received=11", "sent=1000000")


def test_a_target_that_speaks_first_is_heard_by_a_silent_visitor(served: Served) -> None:
    """PROXY tells the agent of the pairing: SSH and SMTP need it."""
    with socket.create_server(("127.0.0.1", 0)) as target:
        target.settimeout(PATIENCE)
        served.terminating(place(target))
        with served.connect() as visitor, accept(target) as service:
            service.sendall(b"SSH-2.0-home\r\n")
            assert receive(visitor, 14) == b"SSH-2.0-home\r\n"


@WAYS
def test_the_service_s_header_reaches_the_target(served: Served, way: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        target.settimeout(PATIENCE)
        served.terminating(place(target), "--proxy", "v2", *way)
        with served.connect() as visitor, accept(target) as service:
            visitor.sendall(b"hello")
            head = receive(service, 16)
            more = receive(service, struct.unpack(">H", head[14:])[0])
            assert head[:12] == b"\r\n\r\n\0\r\nQUIT\n"
            if way:
                assert (head[12], more) == (0x20, b"")
            else:
                port = struct.unpack(">H", more[8:10])[0]
                assert head[12:14] == b"\x21\x11" and more[:4] == bytes([127, 0, 0, 1])
                assert port == visitor.getsockname()[1]
                assert more.endswith(b"\xe0\x00\x04home")
            assert receive(service, 5) == b"hello"


def test_a_websocket_passes(served: Served) -> None:
    with app() as to:
        served.terminating(to)
        with served.connect() as visitor:
            visitor.sendall(
                f"GET /api/websocket HTTP/1.1\r\nHost: {HOME}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += receive(visitor, 1)
            assert b" 101 " in head and b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
            for word in (b"lights", b"on", b"x" * 100):
                visitor.sendall(bytes([0x81, 0x80 | len(word)]) + bytes(4) + word)
                assert receive(visitor, 2 + len(word)) == bytes([0x81, len(word)]) + word


SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")


@pytest.mark.skipif(
    not (SSHD and has("ssh") and has("unshare") and os.geteuid() == 0), reason="needs ssh, and sshd as root"
)
def test_ssh_comes_through_a_proxy_command(served: Served, tmp_path: Path) -> None:
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\n"
        "PermitRootLogin prohibit-password\nUsePAM no\nStrictModes no\nPidFile none\n"
    )
    assert SSHD
    private = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /run && mkdir /run/sshd && exec "$@"', "sh"]
    command = [*private, SSHD, "-D", "-e", "-f", tmp_path / "sshd_config"]
    daemon = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        served.terminating(f"127.0.0.1:{port}")
        tls = f"openssl s_client -quiet -verify_return_error -CAfile {served.trust} -servername %h"
        proxy = f"{tls} -connect 127.0.0.1:{served.process.port}"
        (tmp_path / "known").write_text(f"{HOME} {(tmp_path / 'host.pub').read_text()}")
        options = [
            f"ProxyCommand={proxy} 2>/dev/null",
            f"UserKnownHostsFile={tmp_path}/known",
            "BatchMode=yes",
        ]
        arguments = [word for option in options for word in ("-o", option)]
        ended = subprocess.run(
            [
                "ssh",
                "-F",
                "none",
                "-i",
                tmp_path / "user",
                *arguments,
                f"root@{HOME}",
                "head -c 3000000 /dev/zero",
            ],
            capture_output=True,
            timeout=PATIENCE,
        )
        assert (ended.returncode, len(ended.stdout)) == (0, 3_000_000), ended.stderr
    finally:
        daemon.terminate()
        assert daemon.stderr
        daemon.communicate(timeout=PATIENCE)


@WAYS
def test_a_page_of_sixty_resources_comes_through_a_pool_of_four(served: Served, way: list[str]) -> None:
    with app() as to:
        served.terminating(to, *way)

        def load(number: int) -> bytes:
            with served_connection() as visitor:
                visitor.sendall(
                    f"GET /{number} HTTP/1.1\r\nHost: {HOME}\r\nConnection: close\r\n\r\n".encode()
                )
                return read_to_the_end(visitor)

        trust = served.trust

        def served_connection() -> ssl.SSLSocket:
            context = ssl.create_default_context(cafile=str(trust))
            sock = socket.create_connection(("127.0.0.1", served.process.port), PATIENCE)
            return context.wrap_socket(sock, server_hostname=HOME)

        with concurrent.futures.ThreadPoolExecutor(6) as browser:  # six at a time, as browsers do
            pages = list(browser.map(load, range(60)))
    assert [page.rpartition(b"\r\n\r\n")[2] for page in pages] == [
        f"you asked /{n}".encode() for n in range(60)
    ]


def test_big_bodies_pass_through_untouched(served: Served, tmp_path: Path) -> None:
    """End to end: the agent sees TLS as octets, and splices them where it can."""
    pair = self_signed(served.process.folder, HOME, f"DNS:{HOME}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), App)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    body = tmp_path / "body"
    body.write_bytes(BLOB * 2)
    try:
        served.agent("--to", place(server.socket))
        assert hashlib.sha256(served.curl("/blob")).digest() == hashlib.sha256(BLOB).digest()
        digest = hashlib.sha256(BLOB * 2).hexdigest().encode()
        assert served.curl("/up", "-T", str(body), "-H", "Expect:") == digest
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# Python 3.10 leaves a socket open where the reset comes between connect and wrap_socket.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", [[], ["--plain"]], ids=["staying", "plain"])
@pytest.mark.parametrize(
    "times", [pytest.param(4), pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_restarts_of_the_service_under_a_visitor_who_always_tries(
    served: Served, way: list[str], times: int
) -> None:
    with app() as to:
        agent = served.terminating(to, *way)
        context = ssl.create_default_context(cafile=str(served.trust))
        done = threading.Event()
        served_count = [0]

        def try_always() -> None:
            while not done.is_set():
                with contextlib.suppress(OSError):
                    sock = socket.create_connection(("127.0.0.1", served.process.port), 5)
                    with sock, context.wrap_socket(sock, server_hostname=HOME) as visitor:
                        visitor.sendall(
                            f"GET / HTTP/1.1\r\nHost: {HOME}\r\nConnection: close\r\n\r\n".encode()
                        )
                        served_count[0] += read_to_the_end(visitor).endswith(b"you asked /")
                time.sleep(0.02)  # a visitor's patience; nothing passes because of it

        visitor = threading.Thread(target=try_always)
        visitor.start()
        longest = 0.0
        try:
            for turn in range(times):
                before, began = served_count[0], time.monotonic()
                served.process.until(lambda before=before: served_count[0] > before, 90)  # type: ignore[misc]
                longest = max(longest, time.monotonic() - began)
                served.process.stop(signal.SIGTERM if turn % 2 else signal.SIGKILL)
                served.process.start()
            before = served_count[0]
            served.process.until(lambda: served_count[0] > before, 90)
        finally:
            done.set()
            visitor.join(PATIENCE)
    assert longest < 75
    assert agent.process.poll() is None


@pytest.mark.slow  # what a person must mend is tried again after 30 to 60 s
def test_a_credential_that_is_disabled_and_enabled_again(served: Served) -> None:
    def admin(*words: str) -> None:
        command = [sys.executable, ROOT / "taas_admin.py", "-c", served.process.ini, "--json", *words]
        done = subprocess.run(command, cwd=served.process.folder, capture_output=True, text=True, check=True)
        json.loads(done.stdout)

    with app() as to:
        served.terminating(to)
        admin("disable", "home")
        ended = AgentProcess(served.file, "--to", to, "--once")
        assert ended.ended() == 1
        assert "401" in ended.said(" refused ")
        admin("enable", "home")

        def back() -> bool:
            with contextlib.suppress(subprocess.CalledProcessError):
                return served.curl("/") == b"you asked /"
            return False

        served.process.until(back, 90)


def test_a_check_against_the_service(served: Served) -> None:
    with app() as to:
        for way in ([], ["--plain"]):
            agent = AgentProcess(served.file, "--to", to, "--check", *way)
            assert agent.ended() == 0, agent.told
            assert any(line.startswith("ok") and "target" in line for line in agent.told)


def test_the_agent_s_own_openssl_command_makes_a_pair_that_works(served: Served) -> None:
    """Whatever way the pair has come to be: a self-signed one for LABEL.servers is enough."""
    folder = served.process.folder
    command = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", f"/CN={HOME}"]
    alternates = ["-addext", f"subjectAltName=DNS:{HOME}"]
    openssl(*command, *alternates, "-keyout", folder / "rsa.key", "-out", folder / f"{HOME}.crt")
    more = f"\n[target]\ntls = terminate\ncertificate = {HOME}.crt\nkey = rsa.key\n"
    served.file.write_text(served.file.read_text() + more)
    with app() as to:
        served.agent("--to", to)
        assert served.curl("/rsa") == b"you asked /rsa"


@WAYS
def test_a_target_that_is_down_does_not_drain_the_pool(served: Served, way: list[str]) -> None:
    """The hello was read: the service must see that, or it would try the whole pool."""
    agent = served.agent("--to", "127.0.0.1:1", *way)
    with socket.create_connection(("127.0.0.1", served.process.port)) as visitor:
        visitor.sendall(HELLO)
        visitor.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionResetError):
            assert visitor.recv(1) == b""
    agent.said(" target-refused ")
    assert " failed-over " not in served.process.log
