"""What stands behind a label in the journeys: hidden servers, a real agent in front of them, and visitors.

Knows the service by its commands alone; process.py runs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import signal
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from house import SERVERS
from process import ROOT, Process

PAGE = b"<!DOCTYPE html><title>hidden</title><h1 id=hello>Hello from behind the NAT</h1>"
BLOB = hashlib.sha256(b"taas").digest() * 250_000  # 8 MB
HOME = f"home.{SERVERS}"
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


def certify(folder: Path, alternative: str = f"DNS:{HOME}") -> ssl.SSLContext:
    """Make hidden.crt and hidden.key in FOLDER: a certificate of home.SERVERS, and what serves it."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-days", "2", "-subj", "/CN=hidden", "-addext", f"subjectAltName={alternative}"]
        + ["-keyout", folder / "hidden.key", "-out", folder / "hidden.crt"],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "hidden.crt", folder / "hidden.key")
    return context


@contextlib.contextmanager
def in_background(server: socketserver.BaseServer) -> Iterator[int]:
    """The SERVER serves until the block ends; gives its port."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]  # type: ignore[misc]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def hidden_server(folder: Path, handler: Callable[..., BaseHTTPRequestHandler] = Hidden) -> Iterator[int]:
    """A TLS web server of home.SERVERS with a certificate of its own; gives its port."""
    context = certify(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with in_background(server) as port:
        yield port


def admin(process: Process, *arguments: str) -> Any:
    command = [sys.executable, ROOT / "taas_admin.py", "-c", process.ini, "--json", *arguments]
    done = subprocess.run(command, cwd=process.folder, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@contextlib.contextmanager
def serving(process: Process, port: int, *options: str) -> Iterator[Process]:
    """The service runs, and a real agent takes the visitors of label `home` to PORT."""
    admin(process, "add", "home", *options)
    process.start()
    agent = subprocess.Popen(
        [sys.executable, ROOT / "taas_agent.py", process.folder / "home.agent.ini"]
        + ["--to", f"127.0.0.1:{port}"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        process.until(lambda: " waits " in process.log)
        yield process
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.communicate(timeout=20)
        assert agent.returncode == 0


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
