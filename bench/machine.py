"""Processes pinned to a core, what the kernel says they cost, and what machine this is.

Knows neither TAAS nor its peers.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import time
from pathlib import Path

_CORES = sorted(os.sched_getaffinity(0))
RELAY_CORE, GENERATOR_CORE = _CORES[0], _CORES[-1]  # agents share the generator's
_TICKS = os.sysconf("SC_CLK_TCK")


class Trouble(Exception):
    """The bench can't go on; the message says why, for a person."""


class Child:
    """A process of ours on one core, whatever it forks included, that ends with us."""

    def __init__(
        self, command: list[str], core: int, log: Path, *, user: str = "", env: dict[str, str] | None = None
    ) -> None:
        self._log = log
        with open(log, "w") as file:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                user=user or None,
                cwd=log.parent,
                env={**os.environ, **(env or {})},
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )

    @property
    def pids(self) -> list[int]:
        """It and its descendants."""
        found, new = [], [self.popen.pid]
        while new:
            pid = new.pop()
            found.append(pid)
            with contextlib.suppress(OSError):  # gone meanwhile
                for task in Path(f"/proc/{pid}/task").iterdir():
                    new += map(int, (task / "children").read_text().split())
        return found

    def cpu_seconds(self) -> float:
        """Time on a core so far: the scheduler's nanoseconds, and ticks of forked ones that have ended."""
        total = 0.0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    total += int((task / "schedstat").read_text().split()[0]) / 1e9
                fields = _read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()
                total += (int(fields[13]) + int(fields[14])) / _TICKS  # cutime, cstime
        return total

    def pss(self) -> int:
        """Memory in octets, shared pages counted by their share."""
        total = 0
        for pid in self.pids:
            lines = _read(f"/proc/{pid}/smaps_rollup").splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total

    def descriptors(self) -> int:
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.pids)

    def wait_for_port(self, port: int, seconds: float = 15) -> None:
        """Return once somebody listens on PORT; connects to nobody."""
        until = time.monotonic() + seconds
        while not _listens(port):
            if self.popen.poll() is not None or time.monotonic() > until:
                raise Trouble(
                    f"{self.popen.args!r} does not listen on {port}:\n{self._log.read_text()[-2000:]}"
                )
            time.sleep(0.02)

    def wait_for_word(self, word: str, seconds: float = 15) -> None:
        """Return once its log has WORD in it."""
        until = time.monotonic() + seconds
        while word not in self._log.read_text(errors="replace"):
            if self.popen.poll() is not None or time.monotonic() > until:
                raise Trouble(f"{self.popen.args!r} never said {word}:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(10)
            except subprocess.TimeoutExpired:
                pass
        with contextlib.suppress(ProcessLookupError):  # the session is ours alone
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


def slab() -> int:
    """Octets in the kernel's slabs, of the whole machine."""
    lines = _read("/proc/meminfo").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Slab:"))


def facts(root: Path) -> dict[str, str]:
    """What a reader of the figures wants to know about where they come from."""
    model = next(
        (line.split(":")[1].strip() for line in _read("/proc/cpuinfo").splitlines() if "model name" in line),
        "?",
    )
    memory = int(_read("/proc/meminfo").split()[1]) / 1024 / 1024
    commit = _git(root, "rev-parse", "--short=12", "HEAD") or "unknown"
    changed = _git(
        root,
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ".",
        ":!bench/results.md",
        ":!bench/*.svg",
    )
    return {
        "machine": f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "system": f"{_os_name()}, Linux {platform.release()}",
        "commit": commit + (" with uncommitted changes: these ratios do not count" if changed else ""),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "load before": " ".join(_read("/proc/loadavg").split()[:3]),
        "descriptors": f"at most {os.sysconf('SC_OPEN_MAX')} a process",
        "pinned": f"relays to core {RELAY_CORE}, generator and agents to core {GENERATOR_CORE}",
    }


def _git(root: Path, *words: str) -> str:
    with contextlib.suppress(OSError):
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
        return done.stdout.strip()
    return ""


def _os_name() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return platform.system()


def _listens(port: int) -> bool:
    wanted = f":{port:04X}"
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in _read(file).splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[1].endswith(wanted):
                    return True
    return False


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
