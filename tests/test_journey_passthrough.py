"""Whole journeys on port 443 alone: what people run behind a label in mode passthrough, with real programs at
both ends; the service's octets are captured, and its memory is searched."""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import functools
import getpass
import hashlib
import json
import os
import queue
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyotp
import pytest
from hellos import HELLOS
from hidden import (
    BLOB,
    CHROMIUM,
    HOME,
    PAGE,
    Hidden,
    admin,
    certify,
    hidden_server,
    in_background,
    page_of_a_browser,
    serving,
)
from house import REGISTRAR, SERVERS
from process import ROOT, Process, free_port
from test_passthrough import ALERT

CADDY = shutil.which("caddy")
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
needs_caddy = pytest.mark.skipif(not CADDY, reason="Caddy is not installed")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
needs_pebble = pytest.mark.skipif(not shutil.which("pebble"), reason="Pebble is not installed")
needs_lego = pytest.mark.skipif(not shutil.which("lego"), reason="lego is not installed")
needs_sshd = pytest.mark.skipif(not (SSHD and shutil.which("ssh")), reason="OpenSSH is not installed")


def run(*command: str | Path, **options: Any) -> str:
    """What COMMAND prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def passing(process: Process, port: int) -> contextlib.AbstractContextManager[Process]:
    """The service passes the visitors of label `home` to a real agent, which takes them to PORT."""
    return serving(process, port, "--mode", "passthrough")


def s_client(process: Process, *options: str | Path) -> list[str | Path]:
    place = f"127.0.0.1:{process.port}"
    return ["openssl", "s_client", "-connect", place, "-servername", HOME, "-verify_return_error", *options]


# ---- a web server that makes its certificates itself ------------------------------------------------------

SITE = """\
{
	admin off
	https_port %(port)d
	auto_https disable_redirects
	skip_install_trust
	local_certs
	servers {
		protocols h1 h2
	}
}
%(home)s {
	bind 127.0.0.1
	tls internal
	reverse_proxy /echo 127.0.0.1:%(echo)d
	root * %(root)s
	file_server
}
"""


@contextlib.contextmanager
def caddy(folder: Path, caddyfile: str, port: int, root: Path | None = None) -> Iterator[Path]:
    """A real Caddy with all that it keeps below FOLDER, ready at PORT; gives the certificate to trust."""
    folder.mkdir(exist_ok=True)
    (folder / "Caddyfile").write_text(caddyfile)
    root = root or folder / "caddy/pki/authorities/local/root.crt"
    own = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with open(folder / "caddy.log", "w") as log:
        server = subprocess.Popen(
            ["caddy", "run", "--config", folder / "Caddyfile"], env=os.environ | own, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 30
        while not answers(port, root):
            assert server.poll() is None and time.monotonic() < deadline, (folder / "caddy.log").read_text()
            time.sleep(0.02)  # between two questions to another process; nothing passes because of it
        yield root
    finally:
        server.terminate()
        server.wait(20)


def answers(port: int, root: Path) -> bool:
    """A server at PORT ends TLS for HOME with a certificate that ROOT vouches for."""
    try:
        context = ssl.create_default_context(cafile=str(root))
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            context.wrap_socket(sock, server_hostname=HOME).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def echoing() -> Iterator[int]:
    """A plain WebSocket server that says everything back in upper case; gives its port."""
    from websockets.sync.server import ServerConnection, serve

    def upper(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message.upper())

    with serve(upper, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def site(process: Callable[..., Process], tmp_path: Path) -> Iterator[Process]:
    """A Caddy behind pass-through: a page, a large file, a WebSocket at /echo; `root.crt` is to trust."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_bytes(PAGE)
    (tmp_path / "site/blob").write_bytes(BLOB)
    port = free_port()
    with echoing() as echo:
        caddyfile = SITE % {"home": HOME, "port": port, "echo": echo, "root": tmp_path / "site"}
        with caddy(tmp_path / "caddy", caddyfile, port) as root, passing(process(), port) as running:
            shutil.copy(root, tmp_path / "root.crt")
            yield running


@needs_caddy
@pytest.mark.parametrize(("option", "version"), [("--http2", "2"), ("--http1.1", "1.1")])
def test_caddy_speaks_either_http_as_alpn_agrees(site: Process, option: str, version: str) -> None:
    said = run(
        *("curl", "-sS", "--fail", option, "--cacert", site.folder / "root.crt"),
        *("--connect-to", "::127.0.0.1:", "-w", "%{http_version} %{num_redirects}"),
        *("-o", site.folder / "page", "-o", site.folder / "blob"),
        *(f"https://{HOME}:{site.port}{path}" for path in ("/", "/blob")),
    )
    assert said == 2 * f"{version} 0"
    assert (site.folder / "page").read_bytes() == PAGE
    assert (site.folder / "blob").read_bytes() == BLOB


@needs_caddy
@needs_chromium
def test_a_browser_has_an_http_2_site_and_a_websocket(site: Process) -> None:
    with page_of_a_browser() as page:
        page.goto(f"https://{HOME}:{site.port}/")
        assert page.inner_text("#hello") == "Hello from behind the NAT"
        protocol = "performance.getEntriesByType('navigation')[0].nextHopProtocol"
        assert page.evaluate(protocol) == "h2"
        assert page.evaluate("fetch('/blob').then(r => r.arrayBuffer()).then(b => b.byteLength)") == len(BLOB)
        said = page.evaluate(
            """() => new Promise((resolve, reject) => {
                const socket = new WebSocket(`wss://${location.host}/echo`);
                socket.onopen = () => socket.send("hello");
                socket.onmessage = (message) => resolve(message.data);
                socket.onerror = () => reject("no WebSocket");
            })"""
        )
        assert said == "HELLO"
    assert "redirected" not in site.log and "opened" not in site.log


# ---- TLS-ALPN-01 ------------------------------------------------------------------------------------------


def test_an_acme_challenge_by_alpn_reaches_the_hidden_server(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    """RFC 8737: the authority offers acme-tls/1 alone, and hangs up after the handshake."""
    context, agreed = certify(tmp_path), []
    context.set_alpn_protocols(["acme-tls/1"])

    class Challenged(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with context.wrap_socket(self.request, server_side=True) as tls:
                agreed.append((tls.selected_alpn_protocol(), tls.recv(1)))

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Challenged)
    with in_background(server) as port, passing(process(), port) as running:
        alpn = "-alpn", "acme-tls/1", "-CAfile", tmp_path / "hidden.crt"
        assert "ALPN protocol: acme-tls/1" in run(*s_client(running, *alpn), stdin=subprocess.DEVNULL)
    assert agreed == [("acme-tls/1", b"")]


# ---- a publicly trusted certificate -----------------------------------------------------------------------

PADLOCK = (ROOT / "docs/padlock.md").read_text()


@dataclass
class Authority:
    """A public authority in the small: Pebble, which validates as Let's Encrypt does, and its DNS."""

    directory: str
    trust: Path  # of the directory's own HTTPS
    root: Path  # of the certificates that it gives
    dns: str
    dns_admin: str

    def say(self, what: str, **facts: str) -> None:
        """Change the DNS: set-cname, set-txt, clear-txt."""
        request = urllib.request.Request(f"{self.dns_admin}/{what}", json.dumps(facts).encode())
        urllib.request.urlopen(request, timeout=10).close()


@contextlib.contextmanager
def authority(folder: Path, *, https: int, http: int) -> Iterator[Authority]:
    """It looks for visitors' ports 443 and 80 at HTTPS and HTTP; each name is 127.0.0.1."""
    folder.mkdir()
    certify(folder, "IP:127.0.0.1")
    acme, management, dns, dns_admin = (f"127.0.0.1:{free_port()}" for _ in range(4))
    settings = {
        "listenAddress": acme,
        "managementListenAddress": management,
        "certificate": str(folder / "hidden.crt"),
        "privateKey": str(folder / "hidden.key"),
        "httpPort": http,
        "tlsPort": https,
    }
    (folder / "pebble.json").write_text(json.dumps({"pebble": settings}))
    mock = ["-defaultIPv6", "", "-dns01", dns, "-management", dns_admin]
    for unused in ("-http01", "-https01", "-tlsalpn01"):
        mock += [unused, ""]
    pebble = ["pebble", "-config", folder / "pebble.json", "-dnsserver", dns]
    trust = ssl.create_default_context(cafile=str(folder / "hidden.crt"))
    with open(folder / "log", "w") as log, contextlib.ExitStack() as stack:
        for command in (["pebble-challtestsrv", *mock], pebble):
            quick = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
            started = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | quick)
            stack.callback(started.wait, 20)
            stack.callback(started.terminate)
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f"https://{management}/roots/0", context=trust) as root:
                    (folder / "root.crt").write_bytes(root.read())
                urllib.request.urlopen(f"https://{acme}/dir", context=trust).close()
                break
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.02)  # between two questions to another process; nothing passes because of it
        yield Authority(
            f"https://{acme}/dir", folder / "hidden.crt", folder / "root.crt", dns, f"http://{dns_admin}"
        )


@needs_caddy
@needs_pebble
def test_caddy_gets_a_certificate_for_each_name_through_the_service(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    """docs/padlock.md, first way: TLS-ALPN-01 on the service's port, for LABEL.servers and an own domain."""
    port, running, site = free_port(), process(), ThreadingHTTPServer(("127.0.0.1", 0), Hidden)
    caddyfile = PADLOCK.partition("```caddyfile\n")[2].partition("```")[0]
    with (
        authority(tmp_path / "ca", https=running.port, http=free_port()) as ca,
        in_background(site) as plain,
        passing(running, port),
    ):
        admin(running, "grant", "home", "--host", "home.example.org")
        running.until(lambda: "followed" in running.log)
        for old, new in (
            ("{", f"{{\n\tadmin off\n\tacme_ca {ca.directory}\n\tacme_ca_root {ca.trust}"),
            ("8443", str(port)),
            ("home.taas.example.com", HOME),
            ("127.0.0.1:8080", f"127.0.0.1:{plain}"),
        ):
            assert old in caddyfile
            caddyfile = caddyfile.replace(old, new, 1)
        with caddy(tmp_path / "caddy", caddyfile, port, ca.root):
            assert "passed-through" in running.log  # the authority's, before any visitor
            for name in (HOME, "home.example.org"):
                url = f"https://{name}:{running.port}/"
                curl = "curl", "-sS", "--http2", "--connect-to", "::127.0.0.1:", "--cacert", ca.root, url
                running.until(lambda curl=curl: subprocess.run(curl, capture_output=True).returncode == 0)
                assert run(*curl) == PAGE.decode()


def lego(folder: Path, ca: Authority, *options: str | Path, **environment: str) -> None:
    """Have lego fetch a certificate of HOME, and look at it."""
    run(
        *("lego", "--server", ca.directory, "--path", folder / "lego", "--accept-tos"),
        *("--email", "operator@example.org", *options, "--domains", HOME, "run"),
        env=os.environ | {"LEGO_CA_CERTIFICATES": str(ca.trust)} | environment,
    )
    made = folder / f"lego/certificates/{HOME}.crt"
    run("openssl", "verify", "-CAfile", ca.root, "-untrusted", made, "-verify_hostname", HOME, made)


@needs_pebble
@needs_lego
def test_http_01_follows_the_redirect_of_http_port(process: Callable[..., Process], tmp_path: Path) -> None:
    """To a hidden server that has some certificate already: the authority does not verify that one."""
    http = free_port()
    running = process(f"http-port = {http}")
    (tmp_path / "root").mkdir()
    files = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "root")
    with (
        authority(tmp_path / "ca", https=running.port, http=http) as ca,
        hidden_server(tmp_path, files) as port,
        passing(running, port),
    ):
        lego(tmp_path, ca, "--http", "--http.webroot", tmp_path / "root")
        assert "upgraded" in running.log and "passed-through" in running.log


@needs_pebble
@needs_lego
def test_a_certificate_by_dns_through_a_cname(tmp_path: Path) -> None:
    """docs/padlock.md, second way; the service has no part in it."""
    with authority(tmp_path / "ca", https=free_port(), http=free_port()) as ca:
        ca.say("set-cname", host=f"_acme-challenge.{HOME}.", target="home.acme.example.net.")
        hook = tmp_path / "hook"
        hook.write_text(
            "#!/bin/sh\n# present|cleanup NAME VALUE\n[ $1 = present ] || exit 0\n"
            f'echo "$2" >>{tmp_path}/names\n'
            f"""curl -sS -d "{{\\"host\\":\\"$2\\",\\"value\\":\\"$3\\"}}" {ca.dns_admin}/set-txt\n"""
        )
        hook.chmod(0o700)
        options = "--dns", "exec", "--dns.disable-cp", "--dns.resolvers", ca.dns
        lego(tmp_path, ca, *options, EXEC_PATH=str(hook), LEGO_EXPERIMENTAL_CNAME_SUPPORT="true")
        assert set((tmp_path / "names").read_text().split()) == {"home.acme.example.net."}


# ---- git --------------------------------------------------------------------------------------------------


class Git(BaseHTTPRequestHandler):
    """git's own CGI program, which serves the repositories in `root` (githttp-backend(1))."""

    root: Path

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        environment = {
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REMOTE_USER": "visitor",  # else it takes no push
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": self.headers.get("Content-Length", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        done = subprocess.run(
            ["git", "http-backend"], input=body, stdout=subprocess.PIPE, env=os.environ | environment
        )
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_git_clones_and_pushes(
    process: Callable[..., Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gitconfig").write_text(
        "[user]\nname = Visitor\nemail = visitor@example.org\n"
        f"[http]\nsslCAInfo = {tmp_path / 'hidden.crt'}\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("GIT_SSL_CAINFO", raising=False)  # it would count for more
    monkeypatch.setattr(Git, "root", tmp_path, raising=False)
    run("git", "init", "-q", "--bare", tmp_path / "notes.git")
    with hidden_server(tmp_path, Git) as port, passing(process(), port) as running:
        url = f"https://{HOME}:{running.port}/notes.git"
        first, second = tmp_path / "first", tmp_path / "second"
        run("git", "clone", "-q", url, first)
        (first / "blob").write_bytes(os.urandom(600_000))  # below http.postBuffer: one POST with its length
        run("git", "-C", first, "add", "blob")
        run("git", "-C", first, "commit", "-q", "-m", "Add a large file")
        run("git", "-C", first, "push", "-q", "origin", "HEAD")
        head = run("git", "-C", first, "rev-parse", "HEAD")
        assert run("git", "ls-remote", url, "HEAD").split()[0] == head.strip()
        run("git", "clone", "-q", url, second)
        assert (second / "blob").read_bytes() == (first / "blob").read_bytes()


# ---- SSH --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sshd(folder: Path) -> Iterator[int]:
    """A throw-away OpenSSH server with its own host key, open to FOLDER/key alone; gives its port."""
    assert SSHD
    for name in ("host_key", "key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    port = free_port()
    (folder / "known_hosts").write_text(f"home {(folder / 'host_key.pub').read_text()}")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder / 'host_key'}\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {folder / 'key.pub'}\nPermitRootLogin yes\nPasswordAuthentication no\n"
        "Subsystem sftp internal-sftp\n"
    )
    made = os.geteuid() == 0 and not Path("/run/sshd").exists()
    if made:  # as root it wants the empty folder that the system's own sshd is started with
        Path("/run/sshd").mkdir(mode=0o755)
    command = [SSHD, "-D", "-e", "-f", folder / "sshd_config"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr
        while "listening" not in (line := server.stderr.readline()):
            assert line, "sshd has ended"
        yield port
    finally:
        server.terminate()
        server.communicate(timeout=20)
        if made:
            with contextlib.suppress(OSError):
                Path("/run/sshd").rmdir()


@contextlib.contextmanager
def tls_in_front_of(port: int, context: ssl.SSLContext) -> Iterator[int]:
    """Ends TLS and passes on the octets to PORT in plain; gives its own port."""

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        sink.close()

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, back), copy(there, writer))

    async def serve() -> None:
        stopped = asyncio.Event()
        server = await asyncio.start_server(joined, "127.0.0.1", 0, ssl=context)
        loop = asyncio.get_running_loop()
        started.put((server.sockets[0].getsockname()[1], lambda: loop.call_soon_threadsafe(stopped.set)))
        await stopped.wait()
        server.close()

    started: queue.Queue[tuple[int, Callable[[], object]]] = queue.Queue()
    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    own, stop = started.get(timeout=20)
    try:
        yield own
    finally:
        stop()
        thread.join()


@needs_sshd
def test_ssh_goes_through_openssl_s_client(process: Callable[..., Process], tmp_path: Path) -> None:
    with (
        sshd(tmp_path) as plain,
        tls_in_front_of(plain, certify(tmp_path)) as port,
        passing(process(), port) as running,
    ):
        tunnel = s_client(running, "-quiet", "-CAfile", tmp_path / "hidden.crt")
        ssh = (
            *("ssh", "-F", "none", "-o", "ProxyCommand=" + " ".join(map(str, tunnel))),
            *("-o", f"UserKnownHostsFile={tmp_path / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes"),
            *("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-i", tmp_path / "key"),
            f"{getpass.getuser()}@home",
        )
        assert run(*ssh, "echo hello from $SSH_CONNECTION").startswith("hello from 127.0.0.1 ")
        (tmp_path / "blob").write_bytes(BLOB)
        with open(tmp_path / "blob") as blob:
            assert run(*ssh, "sha256sum", stdin=blob).split()[0] == hashlib.sha256(BLOB).hexdigest()


# ---- what browsers say first ------------------------------------------------------------------------------


def test_browsers_hellos_are_routed_octet_by_octet(process: Callable[..., Process]) -> None:
    heard: list[bytes] = []

    class Recorder(socketserver.BaseRequestHandler):
        """Plain TCP, so that it sees what the visitor sent; answers when the last octet has come."""

        def handle(self) -> None:
            octets = b""
            while len(octets) < 5 or len(octets) < 5 + int.from_bytes(octets[3:5], "big"):
                octets += self.request.recv(1 << 16)
            heard.append(octets)
            self.request.sendall(b"heard")

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Recorder)
    with in_background(server) as port, passing(process(), port) as running:
        for browser, hello in HELLOS.items():
            assert said_octet_by_octet(running, hello(HOME)) == b"heard", browser
            assert heard.pop() == hello(HOME), browser
            for name in (REGISTRAR, SERVERS, f"nosuch.{SERVERS}"):
                answer = said_octet_by_octet(running, hello(name))
                assert (answer[0], answer[5]) == (0x16, 2), (browser, name)  # a record with our ServerHello
            assert said_octet_by_octet(running, hello("example.org")) == ALERT, browser
        assert not heard


def said_octet_by_octet(process: Process, octets: bytes) -> bytes:
    """The first of the answer."""
    with socket.create_connection(("127.0.0.1", process.port), 20) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(octets)):
            sock.sendall(octets[at : at + 1])
        return sock.recv(1 << 16)


# ---- nothing of it is ours --------------------------------------------------------------------------------


class Tap:
    """Joins two sockets until both have ended, and keeps what went each way."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.there, self.back = bytearray(), bytearray()
        ways = (near, far, self.there), (far, near, self.back)
        self._threads = [threading.Thread(target=self._copy, args=way) for way in ways]
        self._socks = near, far
        for thread in self._threads:
            thread.start()

    def _copy(self, source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        while data := source.recv(1 << 16):
            kept += data
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    def finish(self) -> None:
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        for sock in self._socks:
            sock.close()


class Hasher(Hidden):
    """Answers a POST with the hash of its body, and keeps the connection."""

    protocol_version = "HTTP/1.1"


def responder(process: Process, stays: bool) -> socket.socket:
    """A hidden server's connection that waits, made by hand: from port p, or the staying one on 443."""
    file = configparser.ConfigParser()
    file.read(process.folder / "home.agent.ini")
    id, code = file["credential"]["id"], pyotp.TOTP(file["credential"]["secret"]).now()
    context = ssl.create_default_context(cafile=str(process.folder / "registrar.crt"))
    tls = context.wrap_socket(process.connect(), server_hostname=REGISTRAR)
    tls.sendall(
        f"PUT /register/home HTTP/1.1\r\nHost: {REGISTRAR}\r\n{'TAAS-Stay: 1' if stays else 'X: -'}\r\n"
        f'Authorization: TOTP username="{id}", response="{code}"\r\n\r\n'.encode()
    )
    answer = b""
    while data := tls.recv(4096):
        answer += data
    assert answer.split()[1] == b"200", answer
    if stays:
        waiting: socket.socket = tls.unwrap()
    else:
        tls.close()
        waiting = socket.create_connection(("127.0.0.1", int(answer.rpartition(b":")[2])), 20)
    process.until(lambda: " waits " in process.log)
    return waiting


def record_types(octets: bytes) -> list[int]:
    """The types of the TLS records that OCTETS are, to the last one."""
    types, at = [], 0
    while at < len(octets):
        assert octets[at + 1] == 3, "no TLS record"
        types.append(octets[at])
        at += 5 + int.from_bytes(octets[at + 3 : at + 5], "big")
    assert at == len(octets), "half a record"
    return types


def holds(process: Process, sought: bytes) -> bool:
    """The memory of the service has SOUGHT somewhere, be it in use or left over."""
    assert process.popen
    folder = Path(f"/proc/{process.popen.pid}")
    with open(folder / "mem", "rb", buffering=0) as memory:
        for line in (folder / "maps").read_text().splitlines():
            area, rights, *_ = line.split()
            if rights.startswith("rw") and not line.endswith(("[vvar]", "[vsyscall]")):
                start, end = (int(number, 16) for number in area.split("-"))
                memory.seek(start)
                octets, piece = b"", b"-"
                while piece and len(octets) < end - start:
                    piece = memory.read(end - start - len(octets))
                    octets += piece
                if sought in octets:
                    return True
    return False


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc to look into a process")
@pytest.mark.parametrize("stays", [False, True])
def test_not_one_decrypted_octet_is_ours(
    process: Callable[..., Process], tmp_path: Path, stays: bool
) -> None:
    asked = f"MARK-{os.urandom(16).hex()}".encode()
    body = asked * 40_000  # 1.4 MB, more than any buffer on the way
    answered = hashlib.sha256(body).hexdigest().encode()
    running = process()
    admin(running, "add", "home", "--mode", "passthrough")
    with hidden_server(tmp_path, Hasher) as port, socket.create_server(("127.0.0.1", 0)) as door:
        running.start()
        hidden_side = Tap(responder(running, stays), socket.create_connection(("127.0.0.1", port), 20))
        visitor = socket.create_connection(door.getsockname(), 20)
        visitor_side = Tap(door.accept()[0], running.connect())
        context = ssl.create_default_context(cafile=str(tmp_path / "hidden.crt"))
        with context.wrap_socket(visitor, server_hostname=HOME) as tls:
            request = f"POST /{asked.decode()} HTTP/1.1\r\nHost: {HOME}\r\nContent-Length: {len(body)}\r\n"
            tls.sendall(request.encode() + b"\r\n" + body)
            assert received_until(tls, answered)

            # Of a connection that is still there the service knows neither question nor answer ...
            assert not holds(running, asked) and not holds(running, answered)
            # ... while it has that of one whose TLS it ends itself: one could see it.
            own = f"/{os.urandom(16).hex()}".encode()
            trust = ssl.create_default_context(cafile=str(running.folder / "registrar.crt"))
            with trust.wrap_socket(running.connect(), server_hostname=REGISTRAR) as ours:
                ours.sendall(b"GET " + own)
                running.until(lambda: holds(running, own))

            tls.sendall(request.encode() + b"Connection: close\r\n\r\n" + body)
            assert received_until(tls, answered)
        for side in (visitor_side, hidden_side):
            side.finish()
    assert visitor_side.there == hidden_side.there
    assert visitor_side.back == hidden_side.back
    for octets in (visitor_side.there, visitor_side.back):
        assert asked not in octets and answered not in octets
        types = record_types(bytes(octets))
        assert types[0] == 0x16 and types.count(0x16) == 1  # one hello, and all else is encrypted:
        assert set(types) == {0x16, 0x14, 0x17}  # TLS 1.3 sends its alerts as application data


def received_until(tls: ssl.SSLSocket, mark: bytes) -> bool:
    heard = b""
    while mark not in heard and (data := tls.recv(1 << 16)):
        heard += data
    return mark in heard
