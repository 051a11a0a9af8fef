"""The whole journey with the real commands: make_cert, admin add, service, agent, curl and a browser; the
hidden server ends the visitor's TLS itself."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hidden import BLOB, CHROMIUM, PAGE, admin, hidden_server, page_of_a_browser, serving
from house import SERVERS
from process import Process


@pytest.fixture
def served(process: Callable[..., Process]) -> Iterator[Process]:
    """A running service whose label `home` is served by a real agent in front of a real TLS server."""
    with web(process()) as running:
        yield running


@pytest.fixture
def passed(process: Callable[..., Process]) -> Iterator[Process]:
    """The same in mode passthrough: on the service's own port, without a redirect."""
    with web(process(), "--mode", "passthrough") as running:
        yield running


@contextlib.contextmanager
def web(process: Process, *options: str) -> Iterator[Process]:
    with hidden_server(process.folder) as port, serving(process, port, *options):
        certificates = [process.folder / name for name in ("registrar.crt", "hidden.crt")]
        (process.folder / "bundle.pem").write_bytes(b"".join(file.read_bytes() for file in certificates))
        yield process


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
