"""make soak: visitors one after the other, through our real service and agent, and what is left behind.

Each visitor sends octets of its own, ends its half, and must get the same back.  The soak fails on a visit
that failed, on an octet that is another's, and when service or agent hold more than before.
"""

from __future__ import annotations

import argparse
import functools
import random
import re
import socket
import ssl
import sys
import tempfile
import threading
import time
from pathlib import Path

from journey import ADDRESS, LABEL, REGISTRAR, SERVERS, Commands, Journey, Trouble

WARM_UP = 2000  # visits: pools are full and Python has the memory that it needs
MORE_KB = 2000  # that may be held afterwards: caches and the heap's holes, whatever the number of visits
TRIES = 3  # a visitor of ours may come while the pool is being refilled
PATIENCE = 30.0  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description="Visitors one after the other; fails on what is lost.")
    parser.add_argument("--visits", type=int, default=100_000)
    parser.add_argument("--port", type=int, default=9443)
    options = parser.parse_args()
    top = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder, socket.create_server((ADDRESS, 0)) as target:
        threading.Thread(target=_echo, args=(target,), daemon=True).start()
        journey = Journey(
            Path(folder), Commands.of_scripts([sys.executable], top), options.port, "30000-30100"
        )
        journey.make_state()
        with open(Path(folder) / "taas.ini", "a") as ini:
            ini.write("[limits]\nreuse = 1000000\n")  # one credential; its code would be good for 1000 visits
        try:
            journey.start(f"{ADDRESS}:{target.getsockname()[1]}")
            return _soak(journey, options.visits, options.port)
        except Trouble as trouble:
            print(f"soak: {trouble}\n{journey.last_log_lines()}")
            return 1
        finally:
            journey.stop()


def _soak(journey: Journey, visits: int, port: int) -> int:
    q = _port_q(journey.folder / "registrar.crt", port)
    seconds, failures = [], 0
    for number in range(visits + WARM_UP):
        if number == WARM_UP:
            before, began = _held(journey), time.monotonic()
        started = time.monotonic()
        failures += not _visit(q)
        seconds.append(time.monotonic() - started)
        if number % 1000 == 0:
            journey.check_children()
    took = time.monotonic() - began
    after = _held(journey)
    seconds = sorted(seconds[WARM_UP:])
    p50, p99 = (seconds[len(seconds) * per // 100] * 1000 for per in (50, 99))
    print(f"{visits} visits in {took:.0f} s, {failures} failed; p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    leaks = 0
    for name in before:
        (fds, memory), (fds_after, memory_after) = before[name], after[name]
        print(f"{name}: descriptors {fds} -> {fds_after}, resident {memory} -> {memory_after} kB")
        leaks += fds_after > fds + 20 or memory_after > memory + MORE_KB  # the pool may have grown
    print("soak: " + ("no trouble" if not failures and not leaks else "trouble"))
    return 1 if failures or leaks else 0


def _visit(q: int) -> bool:
    said = random.randbytes(random.choice((1, 100, 5000, 70_000)))
    for _ in range(TRIES):
        with socket.create_connection((ADDRESS, q), PATIENCE) as sock:
            try:
                threading.Thread(target=_say, args=(sock, said)).start()
                heard = b"".join(iter(functools.partial(sock.recv, 1 << 16), b""))
            except OSError:
                continue
        if heard != said:
            raise Trouble(f"{len(said)} octets were sent, {len(heard)} came back, and not the same")
        return True
    return False


def _say(sock: socket.socket, said: bytes) -> None:
    sock.sendall(said)
    sock.shutdown(socket.SHUT_WR)


def _echo(target: socket.socket) -> None:
    while True:
        sock, _ = target.accept()
        with sock:
            sock.sendall(b"".join(iter(functools.partial(sock.recv, 1 << 16), b"")))


def _port_q(trust: Path, port: int) -> int:
    """Ask the front door where the label's visitors meet it; waits until somebody is there."""
    context = ssl.create_default_context(cafile=str(trust))
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            with (
                socket.create_connection((ADDRESS, port), PATIENCE) as sock,
                context.wrap_socket(sock, server_hostname=REGISTRAR) as tls,
            ):
                tls.sendall(f"GET / HTTP/1.1\r\nHost: {LABEL}.{SERVERS}\r\n\r\n".encode())
                found = re.search(rb"\r\nLocation: https://[^:/]+:([0-9]+)/", tls.recv(1 << 16))
        except OSError:
            found = None
        if found and int(found[1]) != port:
            return int(found[1])
        time.sleep(0.2)
    raise Trouble("nobody ever waited")


def _held(journey: Journey) -> dict[str, tuple[int, int]]:
    """Descriptors and kB of memory of each process."""
    held = {}
    for name, pid in journey.pids().items():
        status = Path(f"/proc/{pid}/status").read_text()
        found = re.search(r"VmRSS:\s+([0-9]+)", status)
        held[name] = (len(list(Path(f"/proc/{pid}/fd").iterdir())), int(found[1]) if found else 0)
    return held


if __name__ == "__main__":
    sys.exit(main())
