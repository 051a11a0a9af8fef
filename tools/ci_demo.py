"""CI: `make run` as a newcomer meets it.

In this checkout, then in a copy whose path holds a space, as a user who is not root: the curl line is
pasted into sh in another folder, and whatever ends it (Ctrl-C, SIGTERM, a part that died) leaves no process
and no port behind.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from journey import ADDRESS, PAGE_MARK, Trouble, port_is_free
from run_demo import PORTS

TOP = Path(__file__).resolve().parent.parent
PORT = 8443
URL = f"https://demo.taas.localhost:{PORT}/"
READY_WITHIN_SECONDS = 300  # the first one makes its environment
GONE_WITHIN_SECONDS = 20
NOT_ROOT = "nobody"


class MakeRun:
    """One `make run`, started as from a terminal: in a process group of its own."""

    def __init__(self, checkout: Path, user: str | None) -> None:
        self._output = ""
        environment = dict(os.environ)
        for inherited in ("MAKEFLAGS", "MAKELEVEL", "VENV", "PYTHON"):
            environment.pop(inherited, None)
        if user:
            environment |= {"HOME": str(checkout), "PATH": "/usr/local/bin:/usr/bin:/bin"}
            environment["PIP_CACHE_DIR"] = str(checkout / ".pip-cache")
        self.process = subprocess.Popen(
            ["make", "run"],
            cwd=checkout,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
            group="nogroup" if user else None,
            extra_groups=[] if user else None,
        )
        self.family: set[int] = set()

    def curl_line(self) -> str:
        """Wait for the line that a newcomer would paste; the URL must have come before it."""
        lines: list[str] = []
        for line in self._lines(READY_WITHIN_SECONDS):
            lines.append(line)
            if line.startswith("curl "):
                assert URL in lines, "the URL does not stand alone on a line"
                self.family = descendants(self.process.pid)
                return line
        raise Trouble("make run printed no curl line")

    def part(self, name: str) -> int:
        """The process id of the part whose command line holds NAME."""
        for pid in self.family:
            with contextlib.suppress(OSError):
                argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if any(word.endswith(name.encode()) for word in argv):
                    return pid
        raise Trouble(f"no process of make run is {name}")

    def end(self) -> int:
        """Wait for the end that was asked for; afterwards nothing of it may be left."""
        for _ in self._lines(GONE_WITHIN_SECONDS):
            pass
        code = self.process.wait(GONE_WITHIN_SECONDS)
        deadline = time.monotonic() + GONE_WITHIN_SECONDS
        while left := {pid for pid in self.family if alive(pid)}:
            # Killed with -9, make does not wait for the others, so they may be a moment behind it.
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.05)
        first, last = map(int, PORTS.split("-"))
        busy = [port for port in (PORT, *range(first, last + 1)) if not port_is_free(port)]
        assert not busy, f"still listened on: {busy}"
        return code

    def output(self) -> str:
        return self._output

    def give_up(self) -> None:
        """Whatever went wrong: leave nothing behind."""
        for pid in {self.process.pid} | self.family | descendants(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def _lines(self, seconds: float) -> Iterator[str]:
        assert self.process.stdout
        deadline = time.monotonic() + seconds
        rest = b""
        while select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                return
            self._output += data.decode(errors="replace")
            *lines, rest = (rest + data).split(b"\n")
            yield from (line.decode() for line in lines)
        raise Trouble(f"make run said nothing more for {seconds} s")


@contextlib.contextmanager
def make_run(checkout: Path, user: str | None = None) -> Iterator[MakeRun]:
    run = MakeRun(checkout, user)
    try:
        yield run
    except BaseException:
        print(run.output(), flush=True)
        raise
    finally:
        if run.process.poll() is None:
            run.give_up()
        assert run.process.stdout
        run.process.stdout.close()


def paste(line: str, folder: Path) -> None:
    """What the newcomer does with the line; the page must come."""
    done = subprocess.run(
        ["sh", "-c", line], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert PAGE_MARK in done.stdout


def descendants(pid: int) -> set[int]:
    """PID's children, theirs, and so on."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    layer = {pid}
    while layer:
        layer = {child for child, parent in parents.items() if parent in layer} - found
        found |= layer
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def try_ctrl_c(checkout: Path, elsewhere: Path, user: str | None) -> None:
    with make_run(checkout, user) as run:
        paste(run.curl_line(), elsewhere)
        os.killpg(run.process.pid, signal.SIGINT)  # as the terminal does
        run.end()


def try_sigterm(checkout: Path, elsewhere: Path, user: str | None) -> None:
    with make_run(checkout, user) as run:
        paste(run.curl_line(), elsewhere)
        run.process.terminate()  # make alone is told
        run.end()


def try_kill_9(checkout: Path, elsewhere: Path, user: str | None) -> None:
    with make_run(checkout, user) as run:
        run.curl_line()
        run.process.kill()  # make is gone without a word; the rest must notice
        run.end()


def try_a_part_that_dies(checkout: Path, elsewhere: Path, user: str | None) -> None:
    with make_run(checkout, user) as run:
        run.curl_line()
        os.kill(run.part("taas_agent.py"), signal.SIGKILL)
        assert run.end() != 0, "make run reports success although its agent was killed"
        assert "the agent has ended by SIGKILL" in run.output()


def try_a_state_that_does_not_fit(checkout: Path, elsewhere: Path, user: str | None) -> None:
    ini = checkout / "run" / "demo.agent.ini"
    ini.write_text(ini.read_text().replace("secret = ", "secret = AAAA"))
    with make_run(checkout, user) as run:
        paste(run.curl_line(), elsewhere)
        assert "making it anew" in run.output()
        os.killpg(run.process.pid, signal.SIGINT)
        run.end()


def try_a_port_in_use(checkout: Path, elsewhere: Path, user: str | None) -> None:
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind((ADDRESS, PORT))
        squatter.listen()
        with make_run(checkout, user) as run:
            assert run.process.wait(60) != 0
            said = os.read(run.process.stdout.fileno(), 65536).decode() if run.process.stdout else ""
            ours = [line for line in said.splitlines() if not line.startswith("make: ")]
            assert len(ours) == 1 and str(PORT) in ours[0], said


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="taas elsewhere ") as temporary:
        elsewhere = Path(temporary)
        try_sigterm(TOP, elsewhere, None)
        print("make run in this checkout, ended by SIGTERM: fine", flush=True)
        user = NOT_ROOT if os.geteuid() == 0 else None
        copy = elsewhere / "a checkout"
        left_out = shutil.ignore_patterns(".git", ".venv*", "run", "dist", "__pycache__", ".*_cache")
        shutil.copytree(TOP, copy, ignore=left_out)
        if user:
            elsewhere.chmod(0o755)
            for path in (copy, *copy.rglob("*")):
                shutil.chown(path, user)
        for attempt in (
            try_ctrl_c,
            try_sigterm,
            try_kill_9,
            try_a_part_that_dies,
            try_a_state_that_does_not_fit,
            try_a_port_in_use,
        ):
            attempt(copy, elsewhere, user)
            name = attempt.__name__.removeprefix("try_").replace("_", " ")
            print(f"make run in a path with a space, as {user or 'this user'}: {name}: fine", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
