"""The whole journey with the real commands: make_cert, admin add, service, agent, curl and a browser; the
hidden server ends the visitor's TLS itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from house import SERVERS
from process import ROOT, Process

PAGE = b"<!DOCTYPE html><title>hidden</title><h1 id=hello>Hello from behind the NAT</h1>"
BLOB = hashlib.sha256(b"taas").digest() * 250_000  # 8 MB
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Hidden(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = BLOB if self.path == "/blob" else PAGE
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = hashlib.sha256(body).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def hidden_server(folder: Path) -> Iterator[int]:
    """A TLS web server of home.SERVERS with a certificate of its own; gives its port."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-days", "2", "-subj", f"/CN=home.{SERVERS}", "-addext", f"subjectAltName=DNS:home.{SERVERS}"]
        + ["-keyout", folder / "hidden.key", "-out", folder / "hidden.crt"],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "hidden.crt", folder / "hidden.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hidden)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def admin(process: Process, *arguments: str) -> Any:
    command = [sys.executable, ROOT / "taas_admin.py", "-c", process.ini, "--json", *arguments]
    done = subprocess.run(command, cwd=process.folder, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.fixture
def served(process: Callable[..., Process]) -> Iterator[Process]:
    """A running service whose label `home` is served by a real agent in front of a real TLS server."""
    with serving(process()) as running:
        yield running


@pytest.fixture
def passed(process: Callable[..., Process]) -> Iterator[Process]:
    """The same in mode passthrough: on the service's own port, without a redirect."""
    with serving(process(), "--mode", "passthrough") as running:
        yield running


@contextlib.contextmanager
def serving(running: Process, *options: str) -> Iterator[Process]:
    admin(running, "add", "home", *options)
    running.start()
    with hidden_server(running.folder) as port:
        certificates = [running.folder / name for name in ("registrar.crt", "hidden.crt")]
        (running.folder / "bundle.pem").write_bytes(b"".join(file.read_bytes() for file in certificates))
        agent = subprocess.Popen(
            [sys.executable, ROOT / "taas_agent.py", running.folder / "home.agent.ini"]
            + ["--to", f"127.0.0.1:{port}"],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            running.until(lambda: " waits " in running.log)
            yield running
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.communicate(timeout=20)
            assert agent.returncode == 0


def curl(process: Process, path: str, *options: str | Path) -> bytes:
    bundle = process.folder / "bundle.pem"
    return subprocess.run(
        ["curl", "-sS", "--fail", "-L", "--max-time", "60", "--cacert", bundle]
        + ["--connect-to", "::127.0.0.1:", *options, f"https://home.{SERVERS}:{process.port}{path}"],
        check=True,
        capture_output=True,
    ).stdout


def test_curl_reaches_the_hidden_server_through_the_service(served: Process) -> None:
    assert curl(served, "/") == PAGE


def test_8_mb_come_and_go_unchanged(served: Process, tmp_path: Path) -> None:
    assert curl(served, "/blob") == BLOB
    (tmp_path / "upload").write_bytes(BLOB)
    answer = curl(served, "/", "-H", "Content-Type: x", "--data-binary", f"@{tmp_path / 'upload'}")
    assert answer.decode() == hashlib.sha256(BLOB).hexdigest()


def test_more_visitors_than_waiting_connections_are_all_served(served: Process) -> None:
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(curl(served, "/"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [PAGE] * 16


def test_tls_is_end_to_end(served: Process) -> None:
    """At port q the visitor sees the hidden server's certificate, not the service's."""
    context = ssl.create_default_context(cafile=str(served.folder / "registrar.crt"))
    with (
        socket.create_connection(("127.0.0.1", served.port), 10) as sock,
        context.wrap_socket(sock, server_hostname=f"home.{SERVERS}") as tls,
    ):
        tls.sendall(f"GET / HTTP/1.1\r\nHost: home.{SERVERS}\r\n\r\n".encode())
        answer = tls.recv(4096).decode()
    q = int(answer.partition(f"https://home.{SERVERS}:")[2].partition("/")[0])
    seen = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{q}", "-servername", f"home.{SERVERS}"]
        + ["-CAfile", served.folder / "hidden.crt", "-verify_return_error"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert "Verification: OK" in seen.stdout
    assert (served.folder / "hidden.crt").read_text().strip() in seen.stdout


def test_the_agent_comes_back_after_the_service_was_killed(served: Process) -> None:
    assert served.popen
    served.popen.kill()
    served.popen.communicate()
    served.start()
    served.until(lambda: served.answer() == 307)
    assert curl(served, "/") == PAGE


def test_a_disabled_id_is_offline_and_an_enabled_one_back(served: Process) -> None:
    (entry,) = admin(served, "list")
    admin(served, "disable", entry["id"])
    served.until(lambda: served.answer() == 503)
    admin(served, "enable", entry["id"])
    served.until(lambda: served.answer() == 307)


def test_curl_is_passed_through_without_a_redirect(passed: Process) -> None:
    assert curl(passed, "/", "--max-redirs", "0") == PAGE
    assert curl(passed, "/blob") == BLOB
    assert "redirected" not in passed.log and "opened" not in passed.log


def test_openssl_meets_the_hidden_server_s_certificate_and_alpn(passed: Process) -> None:
    seen = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{passed.port}", "-servername", f"home.{SERVERS}"]
        + ["-CAfile", passed.folder / "hidden.crt", "-verify_return_error"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert "Verification: OK" in seen.stdout
    assert (passed.folder / "hidden.crt").read_text().strip() in seen.stdout


@contextlib.contextmanager
def page_of_a_browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # No public CA stands behind the test's certificates: the browser is told to take them as they are.
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
        )
        yield browser.new_context(ignore_https_errors=True).new_page()
        browser.close()


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_a_browser_shows_the_hidden_page(served: Process) -> None:
    with page_of_a_browser() as page:
        page.goto(f"https://home.{SERVERS}:{served.port}/deep?link=1")
        assert page.inner_text("#hello") == "Hello from behind the NAT"
        assert page.url.endswith("/deep?link=1")
        q = page.url
        page.reload()  # the browser lives on q now
        assert page.url == q and page.inner_text("#hello")


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_a_browser_is_passed_through_post_quantum_hello_and_all(passed: Process) -> None:
    with page_of_a_browser() as page:
        url = f"https://home.{SERVERS}:{passed.port}/deep?link=1"
        page.goto(url)
        assert page.inner_text("#hello") == "Hello from behind the NAT"
        assert page.url == url
        assert page.evaluate("fetch('/blob').then(r => r.arrayBuffer()).then(b => b.byteLength)") == len(BLOB)
