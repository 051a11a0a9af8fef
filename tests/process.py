"""A service of our own as a process of its own: python taas.py taas.ini, in a folder of the test's."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyotp
from house import ID, REGISTRAR, SECRETS, SERVERS

from taasadmin.book import Book
from taaslib.store import Credential

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Process:
    """A running service and the folder it lives in."""

    def __init__(self, folder: Path, certificate: tuple[Path, Path], extra: str = "", log: str = "") -> None:
        self.folder, self.port = folder, free_port()
        for file, name in zip(certificate, ("registrar.crt", "registrar.key"), strict=True):
            shutil.copy(file, folder / name)
        self.ini = folder / "taas.ini"
        self.ini.write_text(
            f"[taas]\npublic = 127.0.0.1\naddress = 127.0.0.1\nport = {self.port}\nregistrar = {REGISTRAR}\n"
            f"servers = {SERVERS}\nports = 20400-20500\n{extra}\n[log]\nfile = server.log\n{log}\n"
        )
        self.popen: subprocess.Popen[str] | None = None
        self.prefix: list[str] = []  # words before the command: ip netns exec NAME
        self.connect = lambda: socket.create_connection(("127.0.0.1", self.port), 10)

    def launch(self) -> Process:
        self.popen = subprocess.Popen(
            [*self.prefix, sys.executable, str(ROOT / "taas.py"), str(self.ini)],
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def accepts(self) -> bool:
        try:
            self.connect().close()
        except OSError:
            return False
        return True

    def start(self) -> Process:
        """Launch it and wait for its first answer."""
        self.launch()
        assert self.popen
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                self.answer(REGISTRAR)
                return self
            assert self.popen.poll() is None and time.monotonic() < deadline, self.popen.stderr

    def ask(self, line: str, host: str, fields: str = "", *, check: bool = True) -> str:
        """One exchange; the certificate is for HOST, unless CHECK is off."""
        context = ssl.create_default_context(cafile=str(self.folder / "registrar.crt"))
        context.check_hostname = check
        with self.connect() as sock, context.wrap_socket(sock, server_hostname=host) as tls:
            tls.sendall(f"{line} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode())
            return b"".join(iter(lambda: tls.recv(4096), b"")).decode()

    def answer(self, host: str = f"home.{SERVERS}", *, check: bool = True) -> int:
        """The status of GET / for HOST."""
        return int(self.ask("GET /", host, check=check).split()[1])

    def add_credential(self) -> None:
        """ID may serve `home`."""
        with contextlib.closing(Book(self.folder / "taas.db", busy_ms=5000, synchronous="FULL")) as store:
            store.add(Credential(ID, SECRETS[ID]), ["home"], None, 0)

    def register(self) -> str:
        """What PUT /register/home answers to a right code."""
        code = pyotp.TOTP(SECRETS[ID]).generate_otp(int(time.time()) // 30)
        authorization = f'Authorization: TOTP username="{ID}", response="{code}"\r\n'
        return self.ask("PUT /register/home", REGISTRAR, authorization)

    def put(self) -> int:
        return int(self.register().split()[1])

    def tries(self, status: int, host: str) -> bool:
        """Whether GET / for HOST has that STATUS; False while it is not answered at all."""
        with contextlib.suppress(OSError):
            return self.answer(host) == status
        return False

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """(responder, visitor) of `home` that have met."""
        responder = socket.create_connection(("127.0.0.1", int(self.register().rpartition(":")[2])), 20)
        self.until(lambda: " waits " in self.log)
        host = f"home.{SERVERS}"
        q = int(self.ask("GET /", host).partition(f"https://{host}:")[2].partition("/")[0])
        visitor = socket.create_connection(("127.0.0.1", q), 20)
        visitor.sendall(b"x")
        assert responder.recv(1) == b"x"
        return responder, visitor

    def until(self, happened: Callable[[], object], seconds: float = 30) -> None:
        """Ask until it has HAPPENED; give up after SECONDS."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, f"never happened\n{self.log}"
            time.sleep(0.02)  # between two questions to another process; nothing passes because of it

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        assert self.popen
        self.popen.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Its exit code and what it said on standard error, once it has ended by itself."""
        assert self.popen
        _, errors = self.popen.communicate(timeout=20)
        return self.popen.returncode, errors

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()
