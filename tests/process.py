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

    def answer(self, host: str = f"home.{SERVERS}") -> int:
        """The status of GET / for HOST."""
        context = ssl.create_default_context(cafile=str(self.folder / "registrar.crt"))
        with self.connect() as sock, context.wrap_socket(sock, server_hostname=host) as tls:
            tls.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            return int(tls.recv(4096).split()[1])

    def tries(self, status: int, host: str) -> bool:
        """Whether GET / for HOST has that STATUS; False while it is not answered at all."""
        with contextlib.suppress(OSError):
            return self.answer(host) == status
        return False

    def pair(self, id: str = ID, label: str = "home") -> tuple[socket.socket, socket.socket]:
        """(responder, visitor) that have met: the credential is in the database."""
        code = pyotp.TOTP(SECRETS[id]).generate_otp(int(time.time()) // 30)
        context = ssl.create_default_context(cafile=str(self.folder / "registrar.crt"))
        answers = []
        authorization = f'Authorization: TOTP username="{id}", response="{code}"\r\n'
        for line, host in ((f"PUT /register/{label}", REGISTRAR), ("GET /", f"{label}.{SERVERS}")):
            with self.connect() as sock, context.wrap_socket(sock, server_hostname=host) as tls:
                tls.sendall(f"{line} HTTP/1.1\r\nHost: {host}\r\n{authorization}\r\n".encode())
                answers.append(b"".join(iter(lambda: tls.recv(4096), b"")).decode())
            if len(answers) == 1:
                responder = socket.create_connection(("127.0.0.1", int(answers[0].rpartition(":")[2])), 20)
                self.until(lambda: " waits " in self.log)
        q = int(answers[1].partition(f"https://{host}:")[2].partition("/")[0])
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
        _, errors = self.popen.communicate(timeout=20)
        return self.popen.returncode, errors

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()
