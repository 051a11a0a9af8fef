"""One whole journey on this machine: certificates, credential, service, agent and a page behind it.

Knows our commands by their command lines only, so that a checkout and dist/taas.pyz are driven alike.
"""

import contextlib
import ctypes
import fcntl
import functools
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
ADDRESS = "127.0.0.1"
SERVERS = "taas.localhost"
REGISTRAR = "taas-registrar.localhost"
LABEL = "demo"
PAGE_MARK = "You reached a hidden server"
UP_WITHIN_SECONDS = 30
DOWN_WITHIN_SECONDS = 8
LEAST_VALIDITY_SECONDS = 7 * 24 * 3600

TAAS_INI = """\
# Written by `make run` for the journey on this machine; a real one starts from taas.ini.example.
[taas]
address   = {address}
port      = {port}
public    = {address}
registrar = {registrar}
servers   = {servers}
ports     = {ports}
"""

# What the state consists of; all of it is made anew together, for each part vouches for another.
MADE = ["taas.ini", "registrar.crt", "registrar.key", "taas.db", "taas.db-wal", "taas.db-shm",
        f"{LABEL}.agent.ini", f"{LABEL}.crt", f"{LABEL}.key", "bundle.pem"]  # fmt: skip


class Trouble(Exception):
    """The journey can't go on; the message says why, for a person."""


@dataclass(frozen=True)
class Commands:
    """How each of our commands is called."""

    taas: list[str]
    admin: list[str]
    agent: list[str]
    make_cert: list[str]

    @classmethod
    def of_scripts(cls, python: list[str], top: Path) -> "Commands":
        names = ("taas", "taas_admin", "taas_agent", "make_cert")
        return cls(*([*python, str(top / f"{name}.py")] for name in names))

    @classmethod
    def of_pyz(cls, python: list[str], pyz: Path, agent_python: list[str]) -> "Commands":
        taas = [*python, str(pyz)]
        return cls(taas, [*taas, "admin"], [*agent_python, str(pyz), "agent"], [*taas, "make-cert"])


class Journey:
    """The state in FOLDER and the processes that run on it."""

    def __init__(self, folder: Path, commands: Commands, port: int, ports: str) -> None:
        self.folder = folder
        self.url = f"https://{LABEL}.{SERVERS}:{port}/"
        self._commands = commands
        self._port = port
        self._ini = TAAS_INI.format(
            address=ADDRESS, port=port, registrar=REGISTRAR, servers=SERVERS, ports=ports
        )
        self._children: dict[str, subprocess.Popen[str]] = {}

    # ---- the state

    def has_state(self) -> bool:
        """Whether an earlier run left what can be tried: complete, for this port, not about to expire."""
        expected = [name for name in MADE if not name.endswith(("-wal", "-shm"))]
        if not all((self.folder / name).is_file() for name in expected):
            return False
        if (self.folder / "taas.ini").read_text() != self._ini:
            return False
        return all(self._stays_valid(name) for name in ("registrar.crt", f"{LABEL}.crt"))

    def make_state(self) -> None:
        """Make all of it anew."""
        for name in MADE:
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / "taas.ini").write_text(self._ini)
        self._run([*self._commands.make_cert, "taas.ini"])
        self._run([*self._commands.admin, "add", LABEL])
        self._make_hidden_certificate()
        bundle = "".join((self.folder / name).read_text() for name in ("registrar.crt", f"{LABEL}.crt"))
        (self.folder / "bundle.pem").write_text(bundle)

    def _make_hidden_certificate(self) -> None:
        name = f"{LABEL}.{SERVERS}"
        self._run(["openssl", "req", "-x509", "-nodes", "-days", "365",
                   "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                   "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
                   "-keyout", f"{LABEL}.key", "-out", f"{LABEL}.crt"])  # fmt: skip
        (self.folder / f"{LABEL}.key").chmod(0o600)

    def _stays_valid(self, certificate: str) -> bool:
        check = ["openssl", "x509", "-noout", "-checkend", str(LEAST_VALIDITY_SECONDS), "-in", certificate]
        return subprocess.run(check, cwd=self.folder, capture_output=True).returncode == 0

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            said = (done.stderr or done.stdout).rstrip()
            raise Trouble(f"{shlex.join(command)} ended with {done.returncode}:\n{said}")

    # ---- the processes

    def start(self, target: str = "") -> None:
        """TARGET is where the agent takes visitors, the sample page if none is given."""
        target = target or f"{ADDRESS}:{self._start_page()}"
        self._start("service", "server.log", [*self._commands.taas, "taas.ini"])
        self._start("agent", "agent.log", [*self._commands.agent, f"{LABEL}.agent.ini", "--to", target])

    def _start_page(self) -> int:
        """Start the sample page and return the port that it chose."""
        script = [sys.executable, str(TOOLS / "sample_page.py")]
        command = [*script, "--certificate", f"{LABEL}.crt", "--key", f"{LABEL}.key"]
        child = self._start("sample page", "page.log", command, stdout=subprocess.PIPE)
        assert child.stdout
        ready = select.select([child.stdout], [], [], UP_WITHIN_SECONDS)[0]
        line = child.stdout.readline().strip() if ready else ""
        if not line.isdecimal():
            raise Trouble("the sample page did not start")
        return int(line)

    def _start(
        self, name: str, log: str, command: list[str], stdout: int | None = None
    ) -> "subprocess.Popen[str]":
        with open(self.folder / log, "w") as file:
            child = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file if stdout is None else stdout,
                stderr=file,
                text=True,
                start_new_session=True,  # Ctrl-C is ours alone to answer: stop() ends them in order
                preexec_fn=functools.partial(end_with_parent, os.getpid()),
            )
        self._children[name] = child
        return child

    def wait_until_up(self, seconds: float = UP_WITHIN_SECONDS) -> None:
        """Return once the page has been fetched through the whole path, with the command that we print."""
        deadline = time.monotonic() + seconds
        seen = ""
        while time.monotonic() < deadline:
            self.check_children()
            fetch = [*self.curl(), "--silent", "--show-error", "--fail", "--max-time", "5"]
            done = subprocess.run(fetch, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode == 0 and PAGE_MARK in done.stdout:
                return
            seen = done.stderr.strip() or "another page than ours"
            time.sleep(0.2)
        raise Trouble(f"no page came through within {seconds} s; curl's last word: {seen}")

    def pids(self) -> dict[str, int]:
        return {name: child.pid for name, child in self._children.items()}

    def check_children(self) -> None:
        """Raise Trouble when one of them has ended by itself."""
        for name, child in self._children.items():
            if (code := child.poll()) is not None:
                raise Trouble(f"the {name} has ended {_how(code)}")

    def stop(self) -> None:
        """End every process that we started, politely first."""
        for child in reversed(self._children.values()):
            child.terminate()  # does nothing to one that has ended and was waited for
        deadline = time.monotonic() + DOWN_WITHIN_SECONDS
        for child in self._children.values():
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            if child.stdout:
                child.stdout.close()
        self._children.clear()

    # ---- what a person sees

    def curl(self) -> list[str]:
        """The command that fetches the page: works in any folder and with any curl since 7.49."""
        # curl before 7.85 does not resolve *.localhost, and each redirect changes the port: so any
        # host and any port is looked for on this machine.
        connect = ["--connect-to", f"::{ADDRESS}:"]
        if urllib.request.getproxies_environment():
            connect += ["--noproxy", "*"]
        return ["curl", "-L", "--cacert", str(self.folder / "bundle.pem"), *connect, self.url]

    def curl_line(self) -> str:
        return shlex.join(self.curl())

    def last_log_lines(self, count: int = 12) -> str:
        """The end of each log, headed by its name."""
        parts = []
        for name in ("server.log", "agent.log", "page.log"):
            with contextlib.suppress(OSError):
                lines = (self.folder / name).read_text(errors="replace").splitlines()[-count:]
                parts += [f"--- {self.folder / name}", *(lines or ["(empty)"])]
        return "\n".join(parts)


@contextlib.contextmanager
def state_folder(folder: Path) -> Iterator[Path]:
    """FOLDER, ours alone while we run."""
    try:
        folder.mkdir(exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Trouble(f"can't write in {folder}: {error.strerror}; remove it, or run as its owner") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Trouble(f"another run is using {folder}: stop that one first") from None
        yield folder
    finally:
        os.close(lock)


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
            probe.listen()
        except OSError:
            return False
        return True


def _how(code: int) -> str:
    return f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"


def end_with_parent(parent: int) -> None:
    """Have this process ended should its PARENT be killed without a chance to do it (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # too late: it is already gone
            os._exit(1)
