"""What needs real seconds of the kernel's timers: dead paths in network namespaces, and paused readers."""

from __future__ import annotations

import concurrent.futures
import ctypes
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyotp
import pytest
from house import ID, REGISTRAR, SECRETS, SERVERS
from process import Process

from taasadmin.book import Book
from taaslib.store import Credential

pytestmark = pytest.mark.slow

VPS, HOME = "10.77.0.1", "10.77.0.2"
CLONE_NEWNET = 0x40000000  # linux/sched.h
QUICK = """
[limits]
keepalive-idle = 5s
keepalive-interval = 1s
keepalive-probes = 3
user-timeout = 8s
dead-after = 10s
"""


class Net:
    """Two hosts, `vps` and `home`, joined by one wire; the home's outgoing packets can be swallowed."""

    def __init__(self) -> None:
        self.tag = f"taas{os.getpid()}"
        self.vps, self.home = f"{self.tag}-vps", f"{self.tag}-home"
        for name in (self.vps, self.home):
            self.ip("netns", "add", name)
            self.ip("-n", name, "link", "set", "lo", "up")
        self.ip("link", "add", "v0", "netns", self.vps, "type", "veth", "peer", "h0", "netns", self.home)
        for name, link, address in ((self.vps, "v0", VPS), (self.home, "h0", HOME)):
            self.ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            self.ip("-n", name, "link", "set", link, "up")

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def swallow(self) -> None:
        self.ip("-n", self.home, "route", "add", "blackhole", f"{VPS}/32")

    def inside(self, name: str, call: Callable[[], Any]) -> Any:
        """CALL in the namespace: a thread of its own goes there and ends."""

        def there() -> Any:
            with open(f"/run/netns/{name}") as namespace:
                assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0
            return call()

        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            return thread.submit(there).result()

    def connect(self, name: str, port: int) -> socket.socket:
        made: socket.socket = self.inside(name, lambda: socket.create_connection((VPS, port), 20))
        return made

    def close(self) -> None:
        for name in (self.vps, self.home):
            self.ip("netns", "delete", name)


def may_make_namespaces() -> bool:
    if os.geteuid() != 0 or not shutil.which("ip"):
        return False
    name = f"taas{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    return made and subprocess.run(["ip", "netns", "delete", name], capture_output=True).returncode == 0


@pytest.fixture
def net() -> Iterator[Net]:
    if not may_make_namespaces():
        pytest.skip("network namespaces need root and iproute2")
    net = Net()
    yield net
    net.close()


class Vps:
    """The service in the namespace `vps`, and what a hidden server or a visitor does by hand."""

    def __init__(self, process: Process, net: Net) -> None:
        self.process, self.net = process, net
        process.ini.write_text(process.ini.read_text().replace("127.0.0.1", VPS) + QUICK)
        store = Book(process.folder / "taas.db", busy_ms=5000, synchronous="FULL")
        store.add(Credential(ID, SECRETS[ID]), ["home"], None, 0)
        store.close()
        process.prefix = ["ip", "netns", "exec", net.vps]
        process.connect = lambda: net.connect(net.vps, process.port)
        process.start()

    def ask(self, name: str, request: str, host: str) -> str:
        context = ssl.create_default_context(cafile=str(self.process.folder / "registrar.crt"))
        with (
            self.net.connect(name, self.process.port) as sock,
            context.wrap_socket(sock, server_hostname=host) as tls,
        ):
            tls.sendall(f"{request} HTTP/1.1\r\nHost: {host}\r\n{self.authorization}\r\n".encode())
            answer = b""
            while data := tls.recv(4096):
                answer += data
            return answer.decode()

    @property
    def authorization(self) -> str:
        code = pyotp.TOTP(SECRETS[ID]).generate_otp(int(time.time()) // 30)
        return f'Authorization: TOTP username="{ID}", response="{code}"\r\n'

    def responder(self) -> socket.socket:
        answer = self.ask(self.net.home, "PUT /register/home", REGISTRAR)
        sock = self.net.connect(self.net.home, int(answer.rpartition(":")[2]))
        self.process.until(lambda: self.process.log.count(" waits ") > 0)
        return sock

    def visitor(self) -> socket.socket:
        answer = self.ask(self.net.vps, "GET /", f"home.{SERVERS}")
        q = int(answer.partition(f"https://home.{SERVERS}:")[2].partition("/")[0])
        return self.net.connect(self.net.vps, q)


@pytest.fixture
def vps(process: Callable[..., Process], net: Net) -> Vps:
    return Vps(process(), net)


def test_a_responder_behind_a_dead_path_is_noticed(vps: Vps) -> None:
    with vps.responder():
        vps.net.swallow()
        vps.process.until(lambda: " timed-out " in vps.process.log, 60)
        assert vps.ask(vps.net.vps, "GET /", f"home.{SERVERS}").startswith("HTTP/1.1 503 ")


def test_a_live_pair_with_a_dead_path_is_ended(vps: Vps) -> None:
    with vps.responder() as responder, vps.visitor() as visitor:
        visitor.sendall(b"hello")
        assert responder.recv(5) == b"hello"
        vps.net.swallow()
        visitor.sendall(b"into the dark")
        visitor.settimeout(90)
        with pytest.raises(ConnectionResetError):
            visitor.recv(1)
        vps.process.until(lambda: " timed-out " in vps.process.log)  # the reset may be here before the line


@pytest.mark.parametrize("pump", ["splice", "ring"])
def test_a_reader_who_pauses_longer_than_every_timeout_still_gets_everything(
    process: Callable[..., Process], pump: str, tmp_path: Path
) -> None:
    """Both while the sender goes on and after it has said all and gone: 40 s against limits of 10 s."""
    running = process(f"pump = {pump}")
    running.ini.write_text(running.ini.read_text() + QUICK)
    with_store = Book(running.folder / "taas.db", busy_ms=5000, synchronous="FULL")
    with_store.add(Credential(ID, SECRETS[ID]), ["home"], None, 0)
    with_store.close()
    running.start()
    local = Net.__new__(Net)
    local.vps = local.home = "here"
    local.connect = lambda _name, port: socket.create_connection(("127.0.0.1", port), 20)  # type: ignore[method-assign]
    here = Vps.__new__(Vps)
    here.process, here.net = running, local
    data = hashlib.sha256(b"pause").digest() * 500_000  # 16 MB: more than the kernel's buffers
    with here.responder() as responder, here.visitor() as visitor:
        visitor.sendall(b"x")
        assert responder.recv(1) == b"x"
        visitor.shutdown(socket.SHUT_WR)

        def say_all() -> None:
            responder.settimeout(None)
            responder.sendall(data)
            responder.close()

        sender = threading.Thread(target=say_all)
        sender.start()
        time.sleep(40)  # the point of this test: real seconds without reading
        got = b"".join(iter(lambda: visitor.recv(1 << 20), b""))
        sender.join()
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    running.until(lambda: " complete " in running.log)
