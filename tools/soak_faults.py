"""What goes on around the service in a soak: the steady visitor, the hidden servers' targets, and the faults.

Each runs in a process of its own, so that the visitor's figures are the service's and not ours.  Knows the
service by its ports alone.  Whatever is sent can be told from whatever else is sent: see `answer_to`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import random
import re
import select
import signal
import socket
import ssl
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from journey import ADDRESS, REGISTRAR, SERVERS, Trouble, end_with_parent

MP = multiprocessing.get_context("fork")
VISITOR = "127.0.0.2"  # where the steady visitor comes from; nobody else does
SIZES = (1, 100, 5000, 70_000, 1 << 20)  # octets that a visitor says, and hears
BULK = 16 << 20  # octets: more than the kernel keeps for a reader who does not read
PATIENCE = 20.0  # seconds for one step of a visit: it may be parked for 10
RECOVERY = 20.0  # seconds after a kill -9 within which a visitor must get through again
SEED = b"seed"  # how visits to the halved label begin
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST
HOME, TORN, PAUSED, HALVED = LABELS = ("home", "torn", "paused", "halved")  # the visitor's; the faults'


class Counter:
    """A number that processes share."""

    def __init__(self) -> None:
        self._value = MP.Value("L", 0)

    def add(self, more: int = 1) -> None:
        with self._value.get_lock():
            self._value.value += more

    @property
    def value(self) -> int:
        return int(self._value.value)


@dataclass(frozen=True)
class Scene:
    """What all of them know."""

    folder: Path
    port: int
    ports: range
    scale: float  # of rates and numbers: 1 is what the soak is for
    ids: tuple[str, ...]  # of the credentials, to guess in the name of
    over: multiprocessing.synchronize.Event = field(default_factory=MP.Event)
    killed_at: multiprocessing.sharedctypes.Synchronized[float] = field(
        default_factory=lambda: MP.Value("d", 0.0)
    )  # when the service or the visitor's agent last was, on the monotonic clock
    wrong: Counter = field(default_factory=Counter)  # octets came that are another's

    @functools.cached_property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / "registrar.crt"))

    def at_rate(self, a_second: float) -> Iterator[None]:
        """Come back so often until it is all over; what was missed is not made up for."""
        due = time.monotonic()
        while not self.over.is_set():
            yield
            due = max(time.monotonic(), due + 1 / a_second)
            while (rest := due - time.monotonic()) > 0 and not self.over.is_set():
                time.sleep(min(rest, 0.5))


# ---- a visit ----------------------------------------------------------------------------------------------


def answer_to(said: bytes, size: int | None = None) -> bytes:
    """What a target answers to what it was SAID: known to the visitor beforehand, and of all that it said."""
    digest = hashlib.sha256(said).digest()
    dice = random.Random(digest)
    return digest + dice.randbytes(size or dice.choice(SIZES))


def ask(scene: Scene, request: str, host: str, source: str, fields: str = "") -> str:
    """The front door's answer.  Raises OSError."""
    with (
        socket.create_connection((ADDRESS, scene.port), PATIENCE, (source, 0)) as sock,
        scene.trust.wrap_socket(sock, server_hostname=host) as tls,
    ):
        tls.sendall(f"{request} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode())
        return b"".join(iter(lambda: tls.recv(1 << 16), b"")).decode("latin-1")


def call(scene: Scene, label: str, source: str) -> socket.socket:
    """A visitor's connection to LABEL, by way of the front door.  Raises OSError, Trouble."""
    answer = ask(scene, "GET /", f"{label}.{SERVERS}", source)
    found = re.search(r"\r\nLocation: https://[^:/]+:([0-9]+)/", answer)
    if not found:
        raise Trouble(f"{label} is not redirected to: {answer.partition(chr(13))[0] or 'no answer'}")
    return socket.create_connection((ADDRESS, int(found[1])), PATIENCE, (source, 0))


def visit(sock: socket.socket, said: bytes, pause: Callable[[], None] = lambda: None) -> bytes:
    """Say all, end our half, hear all.  Raises OSError."""
    sock.sendall(said)
    sock.shutdown(socket.SHUT_WR)
    pause()
    return hear(sock)


def hear(sock: socket.socket) -> bytes:
    """All until the end.  Raises OSError."""
    return b"".join(iter(lambda: sock.recv(1 << 18), b""))


def is_prefix(scene: Scene, heard: bytes, expected: bytes) -> bool:
    """Whether nothing else than EXPECTED was heard; where something was, it is counted."""
    if not expected.startswith(heard):
        scene.wrong.add()
        return False
    return True


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


# ---- the steady visitor -----------------------------------------------------------------------------------


@dataclass
class Figures:
    tried: int = 0
    octets: int = 0  # that were compared
    failed: list[str] = field(default_factory=list)  # why
    explained: int = 0  # failed while the service or the agent had been killed
    slowest_recovery: float = 0.0  # seconds
    milliseconds: list[float] = field(default_factory=list)  # of those that did not fail

    def per(self, cent: int) -> float:
        times = sorted(self.milliseconds)
        return times[min(len(times) - 1, len(times) * cent // 100)] if times else 0.0


def visitor(scene: Scene, visits: int, a_second: float) -> Figures:
    """Visits one after the other: VISITS of them, or until it is over (0)."""
    figures, recovered_from = Figures(), 0.0
    for _ in scene.at_rate(a_second):
        if visits and figures.tried == visits:
            break
        figures.tried += 1
        began = time.monotonic()
        why = _one_visit(scene, figures)
        ended, killed_at = time.monotonic(), scene.killed_at.value
        if not why:
            figures.milliseconds.append((ended - began) * 1000)
            if recovered_from < killed_at < began:
                recovered_from = killed_at
                figures.slowest_recovery = max(figures.slowest_recovery, ended - killed_at)
        elif is_explained(began, ended, killed_at, recovered_from):
            figures.explained += 1
        else:
            figures.failed.append(f"{why}, {ended - killed_at:.1f} s after a kill" if killed_at else why)
    return figures


def is_explained(began: float, ended: float, killed_at: float, recovered_from: float) -> bool:
    """Whether a visit may have failed: it met a kill, or the time after it until one got through again."""
    return killed_at >= began or (recovered_from < killed_at and ended < killed_at + RECOVERY)


def _one_visit(scene: Scene, figures: Figures) -> str:
    """Why it failed, or ""."""
    said = random.randbytes(random.choice(SIZES))
    expected, step = answer_to(said), "the redirect"
    try:
        sock = call(scene, HOME, VISITOR)
        step = "the visit"
        with sock:
            heard = visit(sock, said)
    except (OSError, Trouble) as error:
        return f"{step}: {error}"
    figures.octets += len(said) + len(heard)
    if not is_prefix(scene, heard, expected):
        return "the visit: octets came that are another's"
    return "" if heard == expected else f"the visit: {len(heard)} of {len(expected)} octets came"


def keep_figures(scene: Scene, visits: int, a_second: float) -> None:
    figures = visitor(scene, visits, a_second)
    (scene.folder / "visitor.json").write_text(json.dumps(asdict(figures)))


def figures_of(scene: Scene) -> Figures:
    """Those that the visitor kept; none where it did not come to its end."""
    kept = scene.folder / "visitor.json"
    return Figures(**json.loads(kept.read_text())) if kept.exists() else Figures()


# ---- the targets that the agents take visitors to ---------------------------------------------------------


def target(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    def guarded(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(4 * PATIENCE)
            serve(sock)

    while True:
        sock, _ = listener.accept()
        threading.Thread(target=guarded, args=(sock,), daemon=True).start()


def serve_home(sock: socket.socket) -> None:
    sock.sendall(answer_to(hear(sock)))


def serve_paused(sock: socket.socket) -> None:
    sock.sendall(answer_to(hear(sock), BULK))


def serve_torn(resets: Counter, sock: socket.socket) -> None:
    """Resets the visit in the middle of it."""
    if sock.recv(random.choice(SIZES)):
        sock.sendall(random.randbytes(random.choice(SIZES)))
        reset(sock)
        resets.add()


def serve_halved(scene: Scene, half_closes: Counter, sock: socket.socket) -> None:
    """Says all and ends its half first; the visitor, who has heard the end, goes on."""
    seed = sock.recv(16, socket.MSG_WAITALL)
    if not seed.startswith(SEED):
        return  # a port scanner
    sock.sendall(answer_to(seed))
    sock.shutdown(socket.SHUT_WR)
    heard, expected = hear(sock), answer_to(seed + b"and now you")
    if is_prefix(scene, heard, expected) and heard == expected:
        half_closes.add()


# ---- the faults -------------------------------------------------------------------------------------------


def stranger() -> str:
    """An address of nobody in particular."""
    return f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"


def slow_loris(scene: Scene, happened: Counter) -> None:
    """Connections that say an octet of a ClientHello now and then, or nothing; who is closed comes again."""
    wanted = max(10, round(5000 * scene.scale))
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32)
    said: dict[int, int] = {}
    socks: dict[int, socket.socket] = {}
    poll = select.epoll()
    for _ in scene.at_rate(20):
        for _ in range(min(wanted - len(socks), max(1, round(25 * scene.scale)))):  # 500 a second
            sock = socket.socket()
            try:
                sock.bind((stranger(), 0))
                sock.connect((ADDRESS, scene.port))
            except OSError:  # the service is down
                sock.close()
                break
            sock.setblocking(False)
            socks[sock.fileno()], said[sock.fileno()] = sock, 0
            poll.register(sock.fileno(), select.EPOLLIN)
            happened.add()
        ended = {fd for fd, _ in poll.poll(0)}
        for fd in random.sample(list(socks), len(socks) // 100):
            with contextlib.suppress(OSError):
                socks[fd].send(hello[said[fd] % len(hello) :][: fd % 2])
            said[fd] += 1
        for fd in ended:
            poll.unregister(fd)
            socks.pop(fd).close()


def handshakes(scene: Scene, happened: Counter) -> None:
    """Whole TLS handshakes from everywhere, 500 a second, and nothing after them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    hands = max(1, round(24 * scene.scale))

    def shake() -> None:
        for _ in scene.at_rate(500 * scene.scale / hands):
            with (
                contextlib.suppress(OSError),
                socket.create_connection((ADDRESS, scene.port), PATIENCE, (stranger(), 0)) as sock,
                context.wrap_socket(sock, server_hostname=REGISTRAR),
            ):
                happened.add()

    _at_once(shake, hands)


def _at_once(work: Callable[[], None], hands: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(hands)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def wrong_codes(scene: Scene, happened: Counter) -> None:
    """Codes that are wrong, for the IDs of our labels, the visitor's above all, and for unknown ones."""

    def guess() -> None:
        for _ in scene.at_rate(max(2, 10 * scene.scale)):
            id = random.choice([*scene.ids, *scene.ids[:1] * 4, str(uuid.uuid4())])
            fields = f'Authorization: TOTP username="{id}", response="{random.randrange(10**6):06}"\r\n'
            with contextlib.suppress(OSError):
                answer = ask(scene, f"PUT /register/{HOME}", REGISTRAR, stranger(), fields)
                happened.add(answer.startswith(("HTTP/1.1 401 ", "HTTP/1.1 429 ")))

    _at_once(guess, max(1, round(8 * scene.scale)))


def visitor_resets(scene: Scene, happened: Counter) -> None:
    """Visitors who reset their visit in the middle of it."""
    for _ in scene.at_rate(max(1, 10 * scene.scale)):
        with contextlib.suppress(OSError, Trouble):
            sock = call(scene, TORN, stranger())
            with sock:
                sock.sendall(random.randbytes(random.choice(SIZES)))
                if random.random() < 0.5:
                    sock.recv(1)
                reset(sock)
                happened.add()


def door_resets(scene: Scene, happened: Counter) -> None:
    """Clients who reset their connection to the front door, before, in and after the handshake."""
    for _ in scene.at_rate(max(1, 20 * scene.scale)):
        with contextlib.suppress(OSError):
            sock = socket.create_connection((ADDRESS, scene.port), PATIENCE, (stranger(), 0))
            with sock:
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = scene.trust.wrap_bio(incoming, outgoing, server_hostname=REGISTRAR)
                for _ in range(random.randrange(3)):  # flights
                    with contextlib.suppress(ssl.SSLWantReadError):
                        tls.do_handshake()
                    sock.sendall(outgoing.read())
                    if tls.version() is None:
                        incoming.write(sock.recv(1 << 16))
                reset(sock)
                happened.add()


def stalls(scene: Scene, happened: Counter) -> None:
    """Visitors who do not read what they asked for until long after, and then get all of it."""

    def stall() -> None:
        for _ in scene.at_rate(1):
            said = random.randbytes(100)
            with contextlib.suppress(OSError, Trouble):
                sock = call(scene, PAUSED, stranger())
                with sock:
                    heard = visit(sock, said, lambda: time.sleep(3))
                expected = answer_to(said, BULK)
                happened.add(is_prefix(scene, heard, expected) and heard == expected)

    _at_once(stall, max(1, round(4 * scene.scale)))


def half_closes(scene: Scene, _: Counter) -> None:
    """Visitors who go on after the hidden server has ended its half; `serve_halved` counts them."""
    for _step in scene.at_rate(max(1, 10 * scene.scale)):
        with contextlib.suppress(OSError, Trouble):
            sock = call(scene, HALVED, stranger())
            with sock:
                seed = SEED + random.randbytes(12)
                sock.sendall(seed)
                if is_prefix(scene, hear(sock), answer_to(seed)):
                    sock.sendall(answer_to(seed + b"and now you"))
                    sock.shutdown(socket.SHUT_WR)
                    hear(sock)


def port_scans(scene: Scene, happened: Counter) -> None:
    """Every port that the service may open, one after the other: a look, a reset, or a few octets."""
    ports = [scene.port, *scene.ports]
    for number, _ in enumerate(scene.at_rate(max(20, 100 * scene.scale))):
        with contextlib.suppress(OSError):
            sock = socket.create_connection((ADDRESS, ports[number % len(ports)]), 1, (stranger(), 0))
            with sock:
                happened.add()
                if (what := random.randrange(3)) == 1:
                    reset(sock)
                elif what == 2:
                    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")


Fault = Callable[[Scene, Counter], None]
FAULTS: dict[str, Fault] = {
    "slow-loris connections": slow_loris,
    "strangers' handshakes": handshakes,
    "wrong codes": wrong_codes,
    "visitors' resets": visitor_resets,
    "resets at the front door": door_resets,
    "stalls": stalls,
    "half-closes": half_closes,
    "open ports scanned": port_scans,
}
TARGETS_RESETS = "targets' resets"  # counted by serve_torn


def in_a_process(name: str, work: Callable[[], None]) -> multiprocessing.process.BaseProcess:
    parent = os.getpid()

    def run() -> None:
        end_with_parent(parent)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
        random.seed()
        work()

    process = MP.Process(target=run, name=name, daemon=True)
    process.start()
    return process
