"""make soak: a steady visitor measures while everything goes wrong around our real service and agents.

    python tools/soak.py [--minutes N] [--without FAULT]...   mixed load with faults, kill -9 among them
    python tools/soak.py --visits N                           N visits, one after the other, and no fault

Every octet is compared.  Fails on a visit that failed without a kill -9 to explain it, on octets that are
another's, on what service or agents hold more of than before once all is quiet, on a word of trouble in their
logs, and when a fault never happened.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import heapq
import itertools
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import soak_faults as faults
from journey import ADDRESS, REGISTRAR, SERVERS, TAAS_INI, Commands, Trouble, end_with_parent
from soak_faults import FAULTS, HALVED, HOME, LABELS, PAUSED, TARGETS_RESETS, TORN, Counter, Figures, Scene

SERVICE_KILLS, AGENT_KILLS, STOPS = "kill -9 of the service", "kill -9 of agents", "agents stopped a while"
ALL_FAULTS = [*FAULTS, TARGETS_RESETS, SERVICE_KILLS, AGENT_KILLS, STOPS]
WARM_UP = 50  # visits: Python has the memory that it needs
RESTART = 1.0  # seconds, as in contrib/taas.service
STOPPED = 5.0  # seconds
UP_WITHIN = 30.0  # seconds
SETTLE = 120.0  # seconds: an unclaimed port p lasts 30, and a grown pool shrinks by one in 5 after 30
# Allowances.  Sockets have none.  Pipes and the like: 64 pipes may lie idle in the service (pump.Pools).
MORE_OTHERS = 2 * 64 + 8
# Memory is not given back to the kernel where the heap has holes: of hundreds of TLS objects of 42 kB at
# once, and of 15 visits of an agent with their buffers.  Ten minutes of all this left a third of it.
MORE_KB = {"service": 16_000, "agent": 4_000}
MORE_KB_WITHOUT_FAULTS = 2000  # whatever the number of visits
INI = "[limits]\nreuse = 1000000\n[log]\nfile = server.log\nlines-per-minute = 100000000\n"


@dataclass(frozen=True)
class Held:
    """What a process holds."""

    sockets: int
    listening: int  # of these
    others: int  # pipes, files
    resident_kb: int

    @classmethod
    def by(cls, pid: int, listening: set[str]) -> Held:
        """LISTENING are the inodes of this machine's sockets that do."""
        links = []
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                links.append(str(fd.readlink()))
        sockets = {link[8:-1] for link in links if link.startswith("socket:[")}
        found = re.search(r"VmRSS:\s+([0-9]+)", Path(f"/proc/{pid}/status").read_text())
        resident = int(found[1]) if found else 0
        return cls(len(sockets), len(sockets & listening), len(links) - len(sockets), resident)

    def leak(self, after: Held, more_kb: int) -> str:
        """What there is too much of AFTER, or who is missing, or ""."""
        leaks = []
        if after.sockets > self.sockets:
            leaks.append(f"{after.sockets - self.sockets} sockets")
        if after.sockets < self.sockets:
            leaks.append(f"{self.sockets - after.sockets} sockets less: not all of who waited came back")
        if after.listening > self.listening:
            leaks.append(f"{after.listening - self.listening} open ports")
        if after.others > self.others + MORE_OTHERS:
            leaks.append(f"{after.others - self.others} pipes or files")
        if after.resident_kb > self.resident_kb + more_kb:
            leaks.append(f"{after.resident_kb - self.resident_kb} kB")
        return ", ".join(leaks)


def listening() -> set[str]:
    with open("/proc/net/tcp") as rows:  # long: most of it is TIME_WAIT
        return {row.split()[9] for row in rows if " 0A " in row}  # TCP_LISTEN


@dataclass
class Findings:
    """All that a soak is judged by."""

    figures: Figures
    happened: dict[str, int]  # fault -> how often
    wrong: int
    before: dict[str, Held]
    after: dict[str, Held]
    live_pairs: int
    words: list[str]  # of trouble, in the logs
    ended: list[str]  # processes that did not go on to the end

    def complaints(self) -> list[str]:
        found = [f"it never happened: {name}" for name, count in self.happened.items() if not count]
        if not self.figures.milliseconds:
            found.append("no visit came to its end")
        found += [f"a visit failed: {why}" for why in self.figures.failed[:10]]
        if more := self.figures.failed[10:]:
            found.append(f"{len(more)} visits more failed")
        if self.wrong:
            found.append(f"octets came that are another's, {self.wrong} times")
        for name, before in self.before.items():
            more_kb = MORE_KB[name.partition(" ")[0]] if self.happened else MORE_KB_WITHOUT_FAULTS
            if leak := before.leak(self.after[name], more_kb):
                found.append(f"the {name} does not hold what it held before: {leak}")
        if self.live_pairs:
            found.append(f"{self.live_pairs} pairs are live according to the log, and nobody is there")
        return found + self.words[:10] + self.ended

    def table(self, seconds: float) -> str:
        figures = self.figures
        lines = [
            f"steady visitor: {figures.tried} tried in {seconds:.0f} s, {len(figures.failed)} failed; p50"
            f" {figures.per(50):.1f} ms, p99 {figures.per(99):.1f} ms; {figures.octets >> 20} MiB compared",
            f"  {figures.explained} more failed behind a kill -9; a visitor got through again within"
            f" {figures.slowest_recovery:.1f} s",
        ]
        lines += [f"  {n:9}  {name} ({n / seconds:.1f}/s)" for name, n in self.happened.items()]
        lines.append(f"  {'':20} {'sockets':>12} {'listening':>12} {'pipes, files':>14} {'resident kB':>18}")
        for name, one in self.before.items():
            two = self.after[name]
            pairs = ((one.sockets, two.sockets, 12), (one.listening, two.listening, 12),
                     (one.others, two.others, 14), (one.resident_kb, two.resident_kb, 18))  # fmt: skip
            lines.append(f"  {name:20} " + " ".join(f"{f'{a} -> {b}':>{w}}" for a, b, w in pairs))
        return "\n".join(lines)


class House:
    """Our service and an agent for each label, started, killed, and started again."""

    def __init__(self, folder: Path, port: int, ports: str) -> None:
        self.folder = folder
        self._commands = Commands.of_scripts([sys.executable], Path(__file__).resolve().parent.parent)
        ini = TAAS_INI.format(address=ADDRESS, port=port, registrar=REGISTRAR, servers=SERVERS, ports=ports)
        (folder / "taas.ini").write_text(ini + INI)
        self._run([*self._commands.make_cert, "taas.ini"])
        for label in LABELS:
            self._run([*self._commands.admin, "add", label])
        self._calls: dict[str, list[str]] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._killed: set[str] = set()

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise Trouble(
                f"{shlex.join(command)} ended with {done.returncode}:\n{done.stderr or done.stdout}"
            )

    def ids(self) -> tuple[str, ...]:
        inis = [(self.folder / f"{label}.agent.ini").read_text() for label in LABELS]
        return tuple(line.split()[-1] for ini in inis for line in ini.splitlines() if line.startswith("id "))

    def start(self, targets: dict[str, int]) -> None:
        self._calls["service"] = [*self._commands.taas, "taas.ini"]
        for label, port in targets.items():
            call = [*self._commands.agent, f"{label}.agent.ini", "--to", f"{ADDRESS}:{port}"]
            self._calls[f"agent {label}"] = [*call, "--plain"] if label == TORN else call  # by a port p
        for name in self._calls:
            self._start(name)

    def _start(self, name: str) -> None:
        self._killed.discard(name)
        with open(self._log(name), "ab") as log:
            self._children[name] = subprocess.Popen(
                self._calls[name], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=functools.partial(end_with_parent, os.getpid()),
            )  # fmt: skip

    def _log(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.log"

    def send(self, name: str, number: int) -> None:
        self._children[name].send_signal(number)

    def kill(self, name: str) -> Callable[[], None]:
        """kill -9; returns what starts it again."""
        self._killed.add(name)
        self._children[name].kill()
        self._children[name].wait()
        return lambda: self._start(name)

    def check(self) -> None:
        """Raises Trouble when one has ended that we did not kill."""
        for name, child in self._children.items():
            if name not in self._killed and child.poll() is not None:
                last = self._log(name).read_text(errors="replace").splitlines()[-12:]
                raise Trouble("\n".join([f"the {name} has ended by itself ({child.returncode}):", *last]))

    def held(self) -> dict[str, Held]:
        ports = listening()
        return {name: Held.by(child.pid, ports) for name, child in self._children.items()}

    def words_of_trouble(self) -> list[str]:
        """Lines in the logs that should not be there."""
        logs = [self.folder / "server.log", *(self._log(name) for name in self._calls)]
        found = [f"{log.name}: {line}" for log in logs for line in troubled(log)]
        said = self._log("service").read_text()  # it logs elsewhere; tracebacks would be here
        return found + ([f"the service said: {said}"] if said else [])

    def live_pairs(self) -> int:
        return live_pairs(self.folder / "server.log")

    def stop(self) -> None:
        for child in self._children.values():
            child.kill()
            child.wait()


def troubled(log: Path) -> list[str]:
    """LOG's lines that say that something is wrong with us or the machine."""
    bad = re.compile(r" (fault|stalled|store-busy|store-broken|port-failed|out-of-descriptors) |^Traceback")
    with open(log, errors="replace") as lines:
        return [line.rstrip() for line in lines if bad.search(line)]


def live_pairs(log: Path) -> int:
    """By the service's LOG since it was started last."""
    live = 0
    with open(log) as lines:
        for line in lines:
            if " info started " in line:
                live = 0
            live += (" info paired " in line) - (" to_initiator=" in line)
    return live


class Soak:
    """One run: who is there, and what is brought upon them when."""

    def __init__(self, house: House, scene: Scene, named: list[str], without: list[str]) -> None:
        self.house, self.scene = house, scene
        self.counters = {name: Counter() for name in named}  # all of which must happen
        self._spare = Counter()  # for what is not named
        self._chosen = [name for name in named if name not in without]
        self._plan: list[tuple[float, int, Callable[[], None]]] = []  # when, a tie-breaker, what
        self._number = itertools.count()
        self.ended: list[str] = []

    def _counter(self, name: str) -> Counter:
        return self.counters.get(name, self._spare)

    def start(self) -> dict[str, int]:
        """The targets that the agents take visitors to; returns their ports."""
        torn = functools.partial(faults.serve_torn, self._counter(TARGETS_RESETS))
        serves: dict[str, Callable[[socket.socket], None]] = {
            HOME: faults.serve_home,
            TORN: torn if TARGETS_RESETS in self._chosen else faults.serve_home,
            PAUSED: faults.serve_paused,
            HALVED: functools.partial(faults.serve_halved, self.scene, self._counter("half-closes")),
        }
        ports = {}
        for label, serve in serves.items():
            with socket.create_server((ADDRESS, 0), backlog=128) as listener:
                ports[label] = listener.getsockname()[1]
                faults.in_a_process(f"target {label}", functools.partial(faults.target, listener, serve))
        return ports

    def warm_up(self, visits: int) -> dict[str, Held]:
        """Wait until all labels are served, make VISITS, and return what is held in the quiet after them."""
        deadline = time.monotonic() + UP_WITHIN
        for label in LABELS:
            while not self._is_served(label):
                self.house.check()
                if time.monotonic() > deadline:
                    raise Trouble(f"nobody ever waited under {label}")
                time.sleep(0.2)
        figures = faults.visitor(self.scene, visits, 1000)
        if figures.failed:
            raise Trouble(f"a visit failed before anything was done: {figures.failed[0]}")
        held, since = self.house.held(), time.monotonic()
        while time.monotonic() < since + 2:  # the pools are full again
            time.sleep(0.25)
            now = self.house.held()
            if any(now[name].sockets != held[name].sockets for name in now):
                since = time.monotonic()
            held = now
        return held

    def _is_served(self, label: str) -> bool:
        with contextlib.suppress(OSError, Trouble):
            faults.call(self.scene, label, faults.VISITOR).close()
            return True
        return False

    def load(self, seconds: float, visits: int) -> float:
        """Let it all go on for SECONDS, or until the visitor has made VISITS; returns how long it took."""
        began = time.monotonic()
        steady = faults.in_a_process("steady visitor", self._visitor(visits))
        processes = [steady]
        for name in self._chosen:
            if name in FAULTS:
                work = functools.partial(FAULTS[name], self.scene, self.counters[name])
                processes.append(faults.in_a_process(name, work))
        self._plan_strikes(began, seconds)
        while steady.is_alive() and (visits or time.monotonic() < began + seconds):
            self._tick()
        took = time.monotonic() - began
        self.scene.over.set()
        for process in processes:
            process.join(4 * faults.PATIENCE)
            if process.exitcode != 0:
                process.kill()
                how = "hung" if process.exitcode is None else f"ended with {process.exitcode}"
                self.ended.append(f"{process.name} {how}")
        while self._plan:
            self._tick()
        return took

    def _visitor(self, visits: int) -> Callable[[], None]:
        return functools.partial(faults.keep_figures, self.scene, visits, 1000 if visits else 20)

    def _tick(self) -> None:
        time.sleep(0.05)
        while self._plan and self._plan[0][0] <= time.monotonic():
            heapq.heappop(self._plan)[2]()
        self.house.check()

    def _later(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._plan, (when, next(self._number), what))

    def _plan_strikes(self, began: float, seconds: float) -> None:
        """In turn, once a minute each and once at least; the last quarter of the time is without."""
        turn = [
            (SERVICE_KILLS, functools.partial(self._kill, SERVICE_KILLS, "service")),
            (AGENT_KILLS, functools.partial(self._kill, AGENT_KILLS, f"agent {HOME}")),
            (STOPS, functools.partial(self._stop, f"agent {PAUSED}")),
            (AGENT_KILLS, functools.partial(self._kill, AGENT_KILLS, f"agent {TORN}")),
        ]
        strikes = [strike for name, strike in turn if name in self._chosen] * max(1, round(seconds / 60))
        for number, strike in enumerate(strikes, 1):
            self._later(began + 0.75 * seconds * number / len(strikes), strike)

    def _kill(self, fault: str, name: str) -> None:
        if name in ("service", f"agent {HOME}"):
            self.scene.killed_at.value = time.monotonic()
        self._later(time.monotonic() + RESTART, self.house.kill(name))
        self.counters[fault].add()

    def _stop(self, name: str) -> None:
        self.house.send(name, signal.SIGSTOP)
        self._later(time.monotonic() + STOPPED, functools.partial(self.house.send, name, signal.SIGCONT))
        self.counters[STOPS].add()

    def settle(self, before: dict[str, Held]) -> dict[str, Held]:
        """What is held once all is as before, or after a while in any case."""
        deadline = time.monotonic() + SETTLE
        while True:
            after = self.house.held()
            more = [held.leak(after[name], 1 << 30) for name, held in before.items()]
            if not (any(more) or self.house.live_pairs()) or time.monotonic() > deadline:
                return after
            time.sleep(1)
            self.house.check()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--visits", type=int, default=0)
    parser.add_argument(
        "--without", action="append", default=[], metavar="FAULT", choices=ALL_FAULTS,
        help="leave this one out, and be told that it never happened",
    )  # fmt: skip
    parser.add_argument("--scale", type=float, default=1.0, help="of the faults' rates and numbers")
    parser.add_argument("--port", type=int, default=9443)
    options = parser.parse_args()
    named = [] if options.visits else ALL_FAULTS
    ports = range(options.port + 1, options.port + 101)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        try:
            _raise_descriptor_limit(6000)
            house = House(Path(folder), options.port, f"{ports[0]}-{ports[-1]}")
            stack.callback(house.stop)
            scene = Scene(Path(folder), options.port, ports, options.scale, house.ids())
            soak = Soak(house, scene, named, options.without)
            findings, seconds = _run(soak, options.minutes * 60, options.visits)
        except Trouble as trouble:
            print(f"soak: {trouble}")
            return 1
    print(findings.table(seconds))
    complaints = findings.complaints()
    print("\n".join(f"soak: {words}" for words in complaints or ["no trouble"]))
    return 1 if complaints else 0


def _run(soak: Soak, seconds: float, visits: int) -> tuple[Findings, float]:
    house, scene = soak.house, soak.scene
    house.start(soak.start())
    before = soak.warm_up(WARM_UP)
    took = soak.load(seconds, visits)
    after = soak.settle(before)
    happened = {name: counter.value for name, counter in soak.counters.items()}
    findings = Findings(
        faults.figures_of(scene), happened, scene.wrong.value, before, after, house.live_pairs(),
        house.words_of_trouble(), soak.ended,
    )  # fmt: skip
    return findings, took


def _raise_descriptor_limit(least: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < least:
        raise Trouble(f"{least} descriptors are needed, and this user may have {hard}: ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
