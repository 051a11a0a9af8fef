"""The hidden side of TAAS: keeps connections waiting at a service and joins each visitor to a local target.

It does not know what flows through it: octets are copied as they come, the visitor's TLS included.

It reads like a connection's journey: the file; Agent and Pool (how many should wait, when to try again);
Registration (the PUT that earns a port p), Responder (waits there), Pair (visitor and target); plumbing.
"""

from __future__ import annotations

import argparse
import base64
import configparser
import contextlib
import datetime
import email.utils
import errno
import heapq
import hmac
import ipaddress
import itertools
import json
import os
import random
import re
import selectors
import signal
import socket
import ssl
import struct
import sys
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Callable, TextIO

VERSION = "0.5.0"

STEP_SECONDS = 10.0  # for a look-up, a connect, a handshake, an answer: each
BACKOFF_FIRST, BACKOFF_LAST = 0.5, 30.0  # seconds
SLOW_SECONDS = 30.0, 60.0  # between tries at what only a person can mend
HOLD_LAST = 300.0  # a Retry-After beyond this is shortened
STEADY_SECONDS = 10.0  # a connection that was lost after waiting this long had been a success
CLOCK_SLACK = 5.0  # seconds that our clock may differ from the service's
BUFFER = 64 * 1024  # octets on the way in one direction
MAX_HEAD, MAX_BODY = 16 * 1024, 64 * 1024  # of the registrar's answer
KEEP_ALIVE = {"TCP_KEEPIDLE": 25, "TCP_KEEPALIVE": 25, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
UNACKNOWLEDGED_MS = 40_000  # = 25 + 3 * 5 seconds
RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)  # SO_LINGER: close() sends RST
LOOK_SECONDS = 5.0  # between looks at sockets that the selector can not watch


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C (0); 2 when the arguments or the file are no good."""
    parser = argparse.ArgumentParser(prog="taas_agent.py", description="The hidden side of TAAS.")
    parser.add_argument("file", metavar="LABEL.agent.ini", help="what taas_admin.py add has written")
    parser.add_argument("--to", metavar="HOST:PORT", required=True,
                        help="where visitors are taken; IPv6 as [::1]:443")
    parser.add_argument("--waiting", metavar="N", default=4, type=int, choices=range(1, 21),
                        help="connections kept waiting per label, 1 to 20 (default: %(default)s)")
    parser.add_argument("--version", action="version", version=f"taas-agent {VERSION}")
    arguments = parser.parse_args(argv)
    try:
        target = Endpoint.parse(arguments.to)
    except ValueError as error:
        parser.error(f"--to: {error}")
    try:
        settings = read_agent_file(arguments.file)
    except BadFile as bad:
        print(f"taas_agent.py: {bad}", file=sys.stderr)
        return 2
    Agent(settings, target, arguments.waiting, Log(sys.stderr)).run()
    return 0


# ---- the file ---------------------------------------------------------------------------------------------


class BadFile(Exception):
    """One line for the person at the keyboard.  Never holds a value that might be the secret."""


@dataclass(frozen=True)
class Settings:
    registrar: Endpoint
    addresses: tuple[Endpoint, ...]  # of the registrar, tried in this order; none: DNS knows
    pins: tuple[bytes, ...]  # certificates as DER; none: the system's store decides
    context: ssl.SSLContext = field(repr=False)
    id: str
    secret: bytes = field(repr=False)
    digits: int
    period: int
    algorithm: str
    labels: tuple[str, ...]
    servers: str

    def code(self, now: float) -> str:
        return totp(self.secret, max(0, int(now)) // self.period, self.digits, self.algorithm)


_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_PEM = "-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----"
FORM: dict[str, dict[str, tuple[str, str, str | None]]] = {  # pattern, in words, default (None: required)
    "registrar": {
        "name": ("[a-z0-9._-]+|[0-9a-f:.]+", "a host name", None),
        "port": ("[1-9][0-9]{0,4}", "a port number", "443"),
        "address": ("[0-9a-f:., ]*", "IP addresses with commas between", ""),
        "trust": ("pin|system", "pin or system", None),
        "certificate": (f"|.*{_PEM}.*", "a PEM certificate in indented lines", ""),
    },
    "credential": {
        "id": (r"[\x21\x23-\x5b\x5d-\x7e]+", "printable, without spaces, quotes and backslashes", None),
        "secret": (r"[a-z2-7\s=-]+", "base32", None),
        "digits": ("[678]", "6, 7 or 8", "6"),
        "period": ("[1-9][0-9]{0,4}", "a number of seconds", "30"),
        "algorithm": ("SHA(1|256|512)", "SHA1, SHA256 or SHA512", "SHA1"),
        "labels": (rf"{_LABEL}(\s*,\s*{_LABEL})*", "DNS labels with commas between", None),
        "servers": ("[a-z0-9._-]+", "a host name", None),
    },
}


def read_agent_file(path: str) -> Settings:
    """What the file says, every value checked.  Raises BadFile."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), default_section="")
    try:
        with open(path, encoding="utf-8-sig") as file:
            parser.read_file(file)
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadFile(f"{path}: not UTF-8 text") from None
    except (configparser.DuplicateSectionError, configparser.DuplicateOptionError) as error:
        key = getattr(error, "option", "")
        raise BadFile(f"{path}: [{error.section}] {key}: given twice, line {error.lineno}") from None
    except configparser.Error as error:  # its own text quotes the line, which might be the secret
        lines = [getattr(error, "lineno", 0)] + [line for line, _ in getattr(error, "errors", ())]
        raise BadFile(f"{path}: line {max(lines)}: neither [section] nor key = value"
                      " (the lines of a certificate are indented)") from None

    def bad(key: str, why: str) -> BadFile:
        section = next(section for section in FORM if key in FORM[section])
        return BadFile(f"{path}: [{section}] {key}: {why}")

    for section in {**FORM, **parser}:
        if section and section not in FORM:
            raise BadFile(f"{path}: [{section}]: unknown section")
        if section not in parser:
            raise BadFile(f"{path}: [{section}]: section is missing")
        for key in parser[section]:
            if key not in FORM[section]:
                raise BadFile(f"{path}: [{section}] {key}: unknown key")
    values = {}
    for section, keys in FORM.items():
        for key, (pattern, words, default) in keys.items():
            value = parser[section].get(key, "").strip() or default
            if value is None:
                raise bad(key, "is missing")
            if not re.fullmatch(pattern, value, re.ASCII | re.IGNORECASE | re.DOTALL):
                raise bad(key, f"must be {words}")
            values[key] = value

    if int(values["port"]) > 65535:
        raise bad("port", "must be a port number")
    addresses = []
    for host in values["address"].replace(",", " ").split():
        address = Endpoint(host, int(values["port"])).literal()
        if address is None:
            raise bad("address", f"{host} is no IP address")
        addresses.append(address)
    if (values["trust"].lower() == "pin") != bool(values["certificate"]):
        raise bad("certificate", "must be given with trust = pin, and only then")
    try:
        pems = re.findall(_PEM, values["certificate"], re.DOTALL)
        pins = tuple(ssl.PEM_cert_to_DER_cert(pem) for pem in pems)
        context = _context(pins)
    except (ValueError, ssl.SSLError):
        raise bad("certificate", "is damaged") from None
    secret = re.sub(r"[\s=-]", "", values["secret"])
    try:
        key_octets = base64.b32decode(secret + "=" * (-len(secret) % 8), casefold=True)
    except ValueError:
        raise bad("secret", "must be base32") from None
    labels = tuple(dict.fromkeys(values["labels"].lower().replace(",", " ").split()))
    return Settings(Endpoint(values["name"], int(values["port"])), tuple(addresses), pins, context,
                    values["id"], key_octets, int(values["digits"]), int(values["period"]),
                    values["algorithm"].lower(), labels, values["servers"])


def _context(pins: tuple[bytes, ...]) -> ssl.SSLContext:
    if pins:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies the chain and the name
        context.load_verify_locations(cadata=b"".join(pins))
        # X509_V_FLAG_PARTIAL_CHAIN: a pinned leaf is an anchor.  X509_V_FLAG_NO_CHECK_TIME: a device without
        # a clock boots in 1970, and a pin is as good as the file that it came in, whatever its dates.
        context.verify_flags |= ssl.VerifyFlags(0x80000 | 0x200000)
    else:
        context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def totp(secret: bytes, step: int, digits: int, algorithm: str) -> str:
    """RFC 6238: the code of one time step."""
    mac = hmac.new(secret, struct.pack(">Q", step), algorithm.lower()).digest()
    start = mac[-1] & 15
    number = int.from_bytes(mac[start:start + 4], "big") & 0x7FFFFFFF
    return str(number % 10**digits).zfill(digits)


# ---- the agent --------------------------------------------------------------------------------------------


class Agent:
    """What all labels share."""

    def __init__(self, settings: Settings, target: Endpoint, waiting: int, log: Log) -> None:
        self.settings, self.log = settings, log
        self.loop = Loop(log)
        self.resolver = Resolver(self.loop)
        self.clock_offset = 0.0  # seconds that the service's clock is ahead of ours
        self.last_good: Endpoint | None = None  # where the registrar answered last: tried first
        self.pools = [Pool(self, label, target, waiting) for label in settings.labels]
        self._stopping = False
        log("start", version=VERSION, registrar=settings.registrar, labels=",".join(settings.labels))

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.set_wakeup_fd(self.loop.waker.fileno(), warn_on_full_buffer=False)
        try:
            for pool in self.pools:
                pool.fill()
            while not self._stopping:
                self.loop.turn()
        finally:
            for pool in self.pools:
                pool.close()
            signal.set_wakeup_fd(-1)
            self.loop.close()
        self.log("stop")

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def now(self) -> float:
        """The time at the service, as far as we know."""
        return time.time() + self.clock_offset


class Pool:
    """One label's connections: how many wait, and when the next try is due."""

    def __init__(self, agent: Agent, label: str, target: Endpoint, level: int) -> None:
        self.agent, self.label, self.target, self.level = agent, label, target, level
        self.coming: set[Registration | Responder] = set()
        self.waiting: set[Responder] = set()
        self.pairs: set[Pair] = set()
        self._proven = False  # one came through since the last failure; until then they are tried singly
        self._failures = self._refusals = 0
        self._backoff_until = 0.0  # a visitor ends this
        self._hold_until = 0.0  # nothing ends this early: the service has asked for it, or a person must act
        self._alarm = NEVER
        self._announced = self._closed = False

    def fill(self) -> None:
        """Start what is missing, all at once; or set the alarm for when that is allowed."""
        while not self._closed:
            pause = max(self._backoff_until, self._hold_until) - self.agent.loop.now()
            missing = self.level - len(self.waiting) - len(self.coming)
            if missing <= 0 or (self.coming and not self._proven):
                return
            if pause > 0:
                self._alarm.cancel()
                self._alarm = self.agent.loop.after(pause, self.fill)
                return
            registration = Registration(self)
            self.coming.add(registration)
            registration.dial.start()

    def granted(self, registration: Registration, port: Endpoint) -> None:
        self.coming.discard(registration)
        responder = Responder(self, port)
        self.coming.add(responder)
        responder.dial.start()

    def arrived(self, responder: Responder) -> None:
        self.coming.discard(responder)
        self.waiting.add(responder)
        self._proven, self._refusals = True, 0
        if not self._announced:
            self._announced = True
            port = self.agent.settings.registrar.port  # the redirector's as well
            suffix = "" if port == 443 else f":{port}"
            url = f"https://{self.label}.{self.agent.settings.servers}{suffix}/"
            self.agent.log("ready", label=self.label, waiting=self.level, at=responder.port.host,
                           to=self.target, visitors=url)
        self.fill()

    def taken(self, responder: Responder, sock: socket.socket, early: bytes) -> None:
        """A visitor's first bytes have come; the place is free again at once."""
        self.waiting.discard(responder)
        self._failures, self._backoff_until = 0, 0.0
        pair = Pair(self, sock, early)
        self.pairs.add(pair)
        pair.dial.start()
        self.fill()

    def refused(self, registration: Registration, answer: Answer) -> None:
        """The registrar has answered, but not with a port."""
        name, status, hold, why = self.agent.settings.registrar.host, answer.status, 0.0, "trying again"
        if status == 401:
            hold, why = self._code_refused(registration, answer)
        elif status in (429, 503):
            hold = min(HOLD_LAST, answer.retry_after(self.agent.now()))
        elif status == 403:
            hold, why = random.uniform(*SLOW_SECONDS), f"this ID may not use it: ask the operator of {name}"
        elif status < 500:
            hold, why = random.uniform(*SLOW_SECONDS), f"is {name} a TAAS registrar, this agent up to date?"
        said = answer.body.strip().partition("\n")[0][:200].replace(registration.code, "[code]")
        self.lost(registration, why, hold, status=status, said=said)

    def _code_refused(self, registration: Registration, answer: Answer) -> tuple[float, str]:
        """How long to hold, and why."""
        agent, settings = self.agent, self.agent.settings
        ahead = answer.when("date") - agent.now() if answer.when("date") else 0.0
        if registration.clock_offset != agent.clock_offset:
            return 0.0, "code refused; the clock was corrected since"
        if abs(ahead) > CLOCK_SLACK:
            agent.clock_offset += ahead
            return 0.0, f"code refused: check the clock, it is {-agent.clock_offset:+.0f} s off; corrected"
        self._refusals += 1
        if self._refusals == 1:  # used up, perhaps, or our address has changed within the step
            until_next = settings.period - agent.now() % settings.period
            return until_next + random.random(), "code refused; trying the next one"
        return random.uniform(*SLOW_SECONDS), (
            f"code refused, the clock being right (offset {agent.clock_offset:.0f} s): the ID is unknown,"
            f" disabled or has a new secret: ask the operator of {settings.registrar.host}")

    def lost(self, thing: Registration | Responder, why: str, hold: float = 0.0, **facts: object) -> None:
        """It ended before it was of use: try again, not before HOLD seconds have gone by."""
        now = self.agent.loop.now()
        event = "refused" if facts else "lost" if thing in self.waiting else "failed"
        self.coming.discard(thing)
        if isinstance(thing, Responder):
            self.waiting.discard(thing)
            if thing.since is not None and now - thing.since >= STEADY_SECONDS:
                self._failures = 0
        self._proven, self._announced = False, self._announced and bool(self.waiting)
        if now >= self._backoff_until:  # connections that fail together are one failure
            latest = min(BACKOFF_LAST, 2 * BACKOFF_FIRST * 2**self._failures)
            self._backoff_until = now + random.uniform(BACKOFF_FIRST, latest)
            self._failures = min(self._failures + 1, 10)
        self._hold_until = max(self._hold_until, now + hold)
        pause = max(self._backoff_until, self._hold_until) - now
        self.agent.log(event, label=self.label, **facts, why=why, retry_seconds=round(pause, 1))
        self.fill()

    def close(self) -> None:
        self._closed = True
        for thing in [*self.coming, *self.waiting]:
            thing.close()
        for pair in list(self.pairs):
            pair.end("stopped")


class Registration:
    """One PUT /register/LABEL:  dialling -> handshake -> asking -> listening -> closed.

    What fails before the answer has the dial go on to the next address.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool, self.agent, self.loop = pool, pool.agent, pool.agent.loop
        settings = self.agent.settings
        known = [self.agent.last_good] if self.agent.last_good else []
        known += settings.addresses
        self.dial = Dial(self.agent, known, settings.registrar, self._connected, self.abort)
        self.state = "dialling"
        self.code = ""
        self.clock_offset = 0.0  # what the code was computed with
        self._tls: ssl.SSLSocket | None = None
        self._unsent = self._received = b""
        self._deadline = NEVER

    def _connected(self, sock: socket.socket) -> None:
        self._unsent = self._received = b""
        try:
            self._tls = self.agent.settings.context.wrap_socket(
                sock, do_handshake_on_connect=False, server_hostname=self.agent.settings.registrar.host)
        except OSError as error:  # it was gone already
            sock.close()
            self.dial.next(reason(error))
            return
        self._enter("handshake")
        self._advance()

    def _advance(self) -> None:
        """Go on through the states until the socket has us wait."""
        tls, pins = self._tls, self.agent.settings.pins
        assert tls is not None
        try:
            if self.state == "handshake":
                tls.do_handshake()
                if pins and tls.getpeercert(binary_form=True) not in pins:
                    raise ConnectionError("certificate refused: it is none of the pins")
                self._unsent = self._request()
                self._enter("asking")
            while self._unsent:
                self._unsent = self._unsent[tls.send(self._unsent):]
            if self.state == "asking":
                self._enter("listening")
            while True:  # until SSLWantRead: the selector never announces what stays inside OpenSSL
                data = tls.recv(16 * 1024)
                self._received += data
                answer = parse_answer(self._received, ended=not data)
                if answer:
                    with contextlib.suppress(OSError):
                        tls.unwrap()  # sends our close_notify; nobody needs to wait for theirs
                    self.close()
                    self._answered(answer)
                    return
        except ssl.SSLWantReadError:
            self.loop.watch(tls, on_readable=self._advance)
        except ssl.SSLWantWriteError:
            self.loop.watch(tls, on_writable=self._advance)
        except (OSError, BadAnswer) as error:  # SSLError is an OSError
            self._give_up(reason(error))

    def _request(self) -> bytes:
        agent, settings = self.agent, self.agent.settings
        self.clock_offset, self.code = agent.clock_offset, settings.code(agent.now())
        return (f"PUT /register/{self.pool.label} HTTP/1.1\r\n"
                f"Host: {settings.registrar}\r\n"
                f'Authorization: TOTP username="{settings.id}", response="{self.code}"\r\n'
                f"User-Agent: taas-agent/{VERSION}\r\n"
                "Content-Length: 0\r\n\r\n").encode("ascii")

    def _answered(self, answer: Answer) -> None:
        assert self.dial.address is not None
        self.agent.last_good = self.dial.address
        if answer.status != 200:
            self.pool.refused(self, answer)
            return
        try:
            port = Endpoint.parse(answer.body.strip()).literal()
        except ValueError:
            port = None
        settings, resolver = self.agent.settings, self.agent.resolver
        ours = [self.dial.address, *settings.addresses, *resolver.last.get(settings.registrar, ())]
        if port is None:
            self.abort("the answer is 200, but not an address and a port")
        elif port.host in {address.host for address in ours}:
            self.pool.granted(self, port)
        else:
            self.abort(f"not connecting to {port}, which the answer names: it is not the registrar's address")

    def _enter(self, state: str) -> None:
        self.state = state
        self._deadline.cancel()
        self._deadline = self.loop.after(STEP_SECONDS, self._give_up)

    def _give_up(self, trouble: str = "timed out") -> None:
        trouble = f"{self.state}: {trouble}"
        self.close()
        self.dial.next(trouble)

    def abort(self, why: str) -> None:
        self.close()
        self.pool.lost(self, why)

    def close(self) -> None:
        self.state = "closed"
        self.dial.close()
        self._deadline.cancel()
        self.loop.close_socket(self._tls)
        self._tls = None


class Responder:
    """One connection to a port p: connects, then waits for a visitor's first byte.

    Nothing is ever written to it here: it would reach the visitor as the beginning of what the target says.
    """

    def __init__(self, pool: Pool, port: Endpoint) -> None:
        self.pool, self.port, self.loop = pool, port, pool.agent.loop
        self.dial = Dial(pool.agent, [port], None, self._connected, self.abort)
        self._sock: socket.socket | None = None
        self.since: float | None = None  # waiting

    def _connected(self, sock: socket.socket) -> None:
        self._sock, self.since = sock, self.loop.now()
        limit_unacknowledged(sock, UNACKNOWLEDGED_MS)  # with the keep-alive, its deadline
        self.loop.watch(sock, on_readable=self.on_readable)
        self.pool.arrived(self)

    def on_readable(self) -> None:
        assert self._sock is not None
        try:
            early = self._sock.recv(BUFFER)
        except BlockingIOError:
            return
        except OSError as error:
            self.abort(f"{self.port}: {reason(error)}")
            return
        if not early:
            self.abort(f"{self.port}: closed by the service before a visitor came")
            return
        sock, self._sock = self._sock, None
        self.loop.watch(sock)
        limit_unacknowledged(sock, 0)  # it would also end a visitor who only pauses
        self.pool.taken(self, sock, early)

    def abort(self, why: str) -> None:
        self.close()
        self.pool.lost(self, why)

    def close(self) -> None:
        self.dial.close()
        self.loop.close_socket(self._sock)
        self._sock = None


class Pair:
    """A visitor's connection and the target's, each an End, and what is on the way between them."""

    def __init__(self, pool: Pool, sock: socket.socket, early: bytes) -> None:
        self.pool, self.loop = pool, pool.agent.loop
        self.visitor, self.target = End(self, "visitor"), End(self, "target")
        self.visitor.peer, self.target.peer = self.target, self.visitor
        self.visitor.sock = sock
        self.target.unsent += early
        self.dial = Dial(pool.agent, [], pool.target, self._connected, self._refused)
        self._began = self.loop.now()
        self._look = NEVER
        self._ended = False
        self.update()

    def _connected(self, sock: socket.socket) -> None:
        self.target.sock = sock
        self.target.flush()
        self.update()

    def _refused(self, why: str) -> None:
        self.end("target refused", target=self.pool.target, why=why)

    def update(self) -> None:
        """Interest is a function of state; so is the end."""
        if self._ended:
            return
        for end in (self.visitor, self.target):
            if end.gone:
                self.end(f"reset by {end.name}")
                return
        if self.visitor.shut and self.target.shut:
            self.end("done")
            return
        for end in (self.visitor, self.target):
            if end.sock is not None:
                read = end.on_readable if not end.ended and len(end.peer.unsent) < BUFFER else None
                write = end.on_writable if end.unsent else None
                self.loop.watch(end.sock, read, write)
                if not read and not write and self._look is NEVER:
                    self._look = self.loop.after(LOOK_SECONDS, self._look_for_resets)

    def _look_for_resets(self) -> None:
        # A selector can not be asked for errors alone, and a descriptor of which both directions are shut
        # would wake it for ever; so an end that waits for nothing is unregistered, and asked now and then.
        self._look = NEVER
        for end in (self.visitor, self.target):
            if end.sock is not None and end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                end.gone = True
        self.update()

    def end(self, outcome: str, **facts: object) -> None:
        if self._ended:
            return
        self._ended = True
        self.dial.close()
        self._look.cancel()
        for end in (self.visitor, self.target):
            if end.sock is not None and outcome != "done":
                with contextlib.suppress(OSError):
                    end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.loop.close_socket(end.sock)
        self.pool.pairs.discard(self)
        seconds = round(self.loop.now() - self._began, 1)
        self.pool.agent.log("visit", label=self.pool.label, outcome=outcome, **facts,
                            received=self.target.sent, sent=self.visitor.sent, seconds=seconds)

    abort = end


class End:
    """One socket of a pair.  `unsent` is what its peer has said and it has not yet taken."""

    peer: End

    def __init__(self, pair: Pair, name: str) -> None:
        self.pair, self.name = pair, name
        self.sock: socket.socket | None = None  # the target's comes later
        self.unsent = bytearray()
        self.sent = 0
        self.ended = False  # its FIN was read
        self.shut = False  # the peer's FIN was passed on to it, after all that came before
        self.gone = False  # reset

    def on_readable(self) -> None:
        assert self.sock is not None
        scratch = self.pair.loop.scratch
        try:
            count = self.sock.recv_into(scratch, BUFFER - len(self.peer.unsent))
        except BlockingIOError:
            return
        except OSError:
            self.gone = True
        else:
            self.ended = not count
            self.peer.flush(scratch[:count])
        self.pair.update()

    def on_writable(self) -> None:
        self.flush()
        self.pair.update()

    def flush(self, fresh: memoryview | bytes = b"") -> None:
        """Send what is kept and what is FRESH, keep what is refused; after the last of it, the peer's FIN."""
        kept = bool(self.unsent)
        if kept:
            self.unsent += fresh
        data = self.unsent if kept else fresh
        sent = 0
        try:
            if self.sock is not None:
                with contextlib.suppress(BlockingIOError):
                    sent = self.sock.send(data) if data else 0
                if sent == len(data) and self.peer.ended and not self.shut:
                    self.sock.shutdown(socket.SHUT_WR)
                    self.shut = True
        except OSError:
            self.gone = True
        self.sent += sent
        if kept:
            del self.unsent[:sent]
        else:
            self.unsent += fresh[sent:]

    def abort(self, why: str) -> None:
        self.pair.end(why)


# ---- addresses and sockets --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Endpoint:
    """A host as people write it, and a port."""

    host: str
    port: int

    @staticmethod
    def parse(text: str) -> Endpoint:
        found = re.fullmatch(r"(?:\[([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\]|([^\s:/\[\]]+)):([0-9]{1,5})", text)
        if not found or not 0 < int(found[3]) < 65536:
            raise ValueError("must be HOST:PORT, with an IPv6 address as [::1]:443")
        return Endpoint(found[1] or found[2], int(found[3]))

    def literal(self) -> Endpoint | None:
        """With its IP address in the one spelling (::ffff:a.b.c.d is a.b.c.d); None when it has a name."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return None
        return Endpoint(str(getattr(address, "ipv4_mapped", None) or address), self.port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Dial:
    """Connects to the first address that will do; asks for the name's when it has run out of others."""

    def __init__(self, agent: Agent, addresses: list[Endpoint], name: Endpoint | None,
                 then: Callable[[socket.socket], None], fail: Callable[[str], None]) -> None:
        self.address: Endpoint | None = None  # what is being tried, or is connected to
        self._loop, self._resolver = agent.loop, agent.resolver
        self._untried, self._tried, self._name = deque(dict.fromkeys(addresses)), set(addresses), name
        self._then, self._fail = then, fail
        self._troubles: list[str] = []
        self._sock: socket.socket | None = None
        self._deadline = NEVER

    def start(self) -> None:
        self.next("")

    def next(self, trouble: str = "timed out") -> None:
        """Try the next address; TROUBLE is what was wrong with the last."""
        self.close()
        if trouble:
            self._troubles.append(f"{self.address}: {trouble}")
        while self._untried:
            self.address = self._untried.popleft()
            try:
                self._sock = connect(self.address)
            except OSError as error:
                self._troubles.append(f"{self.address}: {reason(error)}")
                continue
            self._deadline = self._loop.after(STEP_SECONDS, self.next)
            self._loop.watch(self._sock, on_writable=self.on_writable)
            return
        if self._name is None:
            self._fail("; ".join(self._troubles))
            return
        self.address, self._name = self._name, None
        deadline = self._deadline = self._loop.after(STEP_SECONDS, self.next)

        def resolved(addresses: list[Endpoint], trouble: str) -> None:
            if deadline.call:  # else closed meanwhile
                self._untried.extend(address for address in addresses if address not in self._tried)
                self.next(trouble)

        self._resolver.resolve(self.address, resolved)

    def on_writable(self) -> None:
        sock, self._sock = self._sock, None
        assert sock is not None
        self.close()
        self._loop.watch(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        with contextlib.suppress(OSError):
            if sock.getsockname() == sock.getpeername():
                error = errno.ECONNREFUSED  # nobody listens, but the kernel gave us the port that we dialled
        if error:
            sock.close()
            self.next(os.strerror(error))
        else:
            keep_alive(sock)
            self._then(sock)

    def abort(self, why: str) -> None:
        self.close()
        self._fail(why)

    def close(self) -> None:
        self._deadline.cancel()
        self._loop.close_socket(self._sock)
        self._sock = None


def connect(literal: Endpoint) -> socket.socket:
    """A socket on its way there; it becomes writable when it is there or has failed."""
    (family, _, _, _, place), *_ = socket.getaddrinfo(literal.host, literal.port, type=socket.SOCK_STREAM,
                                                      flags=socket.AI_NUMERICHOST)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        error = sock.connect_ex(place)
        if error not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
            raise OSError(error, os.strerror(error))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        sock.close()
        raise
    return sock


def keep_alive(sock: socket.socket) -> None:
    """Notice a dead path within 40 s, where the platform lets us choose."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def limit_unacknowledged(sock: socket.socket, milliseconds: int) -> None:
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = ": set the clock of this machine" if error.verify_code in (9, 10) else ""  # not yet, no longer
        return f"certificate refused: {error.verify_message}{hint}"
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error.args[-1])
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class Resolver:
    """Names to addresses, in threads that touch nothing else: getaddrinfo can only be had blocking."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._asking: dict[Endpoint, list[Callable[[list[Endpoint], str], None]]] = {}
        self.last: dict[Endpoint, list[Endpoint]] = {}  # what a name meant when it was known last

    def resolve(self, endpoint: Endpoint, then: Callable[[list[Endpoint], str], None]) -> None:
        """Call THEN with the addresses, at once for a literal and later for a name, or with [] and why."""
        literal = endpoint.literal()
        if literal:
            then([literal], "")
        elif endpoint in self._asking:  # one thread per name, however long DNS is away
            self._asking[endpoint].append(then)
        else:
            threading.Thread(target=self._look_up, args=(endpoint,), daemon=True).start()
            self._asking[endpoint] = [then]

    def _look_up(self, endpoint: Endpoint) -> None:
        addresses: list[Endpoint] = []
        trouble = ""
        try:
            for *_, place in socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM):
                addresses += filter(None, [Endpoint(str(place[0]), endpoint.port).literal()])
        except (OSError, UnicodeError) as error:
            trouble = reason(error)
        self._loop.post(lambda: self._found(endpoint, addresses, trouble))

    def _found(self, endpoint: Endpoint, addresses: list[Endpoint], trouble: str) -> None:
        if addresses:
            self.last[endpoint] = addresses
        for then in self._asking.pop(endpoint):
            then(addresses, trouble)


# ---- the registrar's answer -------------------------------------------------------------------------------


class BadAnswer(Exception):
    """What came back is not HTTP as a registrar speaks it."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: str

    def when(self, header: str) -> float:
        """The date that it names, in seconds since 1970; 0.0 when it names none."""
        try:
            date = email.utils.parsedate_to_datetime(self.headers.get(header, ""))
            return date.replace(tzinfo=date.tzinfo or datetime.timezone.utc).timestamp()
        except (TypeError, ValueError, IndexError, OverflowError):
            return 0.0

    def retry_after(self, now: float) -> float:
        text = self.headers.get("retry-after", "")
        return float(text) if re.fullmatch("[0-9]{1,9}", text) else max(0.0, self.when("retry-after") - now)


def parse_answer(data: bytes, ended: bool) -> Answer | None:
    """The answer once DATA holds the whole of it.  Raises BadAnswer."""
    head, blank_line, body = data.partition(b"\r\n\r\n")
    if len(head) > MAX_HEAD or len(body) > MAX_BODY:
        raise BadAnswer("the answer is too long")
    if not blank_line:
        if ended:
            raise BadAnswer("closed without an answer")
        return None
    status_line, *header_lines = head.decode("latin-1").split("\r\n")
    status = re.fullmatch(r"HTTP/1\.[01] ([1-5][0-9][0-9])(?: .*)?", status_line)
    if not status:
        raise BadAnswer("the answer is not HTTP/1.1")
    fields = (line.partition(":") for line in header_lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    length = headers.get("content-length", "")
    if length and (not re.fullmatch("[0-9]{1,9}", length) or int(length) > MAX_BODY):
        raise BadAnswer("the answer's Content-Length makes no sense")
    if length and len(body) < int(length) and ended:
        raise BadAnswer("the answer was cut short")
    if not ended and (not length or len(body) < int(length)):
        return None
    return Answer(int(status[1]), headers, body[:int(length or MAX_BODY)].decode("utf-8", "replace"))


# ---- loop and log -----------------------------------------------------------------------------------------


@dataclass(order=True)
class Timer:
    due: float
    order: int  # set first, called first
    call: Callable[[], None] | None = field(compare=False)

    def cancel(self) -> None:
        self.call = None  # the husk leaves the heap when it surfaces


NEVER = Timer(0.0, 0, None)  # stands where no timer has been set


class Loop:
    """Calls handlers when their socket is ready, timers when they are due, and what other threads post."""

    def __init__(self, log: Log) -> None:
        self.scratch = memoryview(bytearray(BUFFER))  # for whoever reads right now
        self._log = log
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._order = itertools.count()
        self._posted: deque[Callable[[], None]] = deque()
        self._wake, self.waker = socket.socketpair()
        self.waker.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ)

    def now(self) -> float:
        return time.monotonic()

    def watch(self, sock: socket.socket, on_readable: Callable[[], None] | None = None,
              on_writable: Callable[[], None] | None = None) -> None:
        """Say what SOCK waits for from now on; nothing forgets it."""
        wanted = selectors.EVENT_READ * bool(on_readable) | selectors.EVENT_WRITE * bool(on_writable)
        key = self._selector.get_map().get(sock.fileno())
        if not wanted:
            if key is not None:
                self._selector.unregister(sock.fileno())
        elif key is None:
            self._selector.register(sock.fileno(), wanted, (on_readable, on_writable))
        elif key.data != (on_readable, on_writable):
            self._selector.modify(sock.fileno(), wanted, (on_readable, on_writable))

    def close_socket(self, sock: socket.socket | None) -> None:
        if sock is not None:
            self.watch(sock)
            sock.close()

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timer(self.now() + seconds, next(self._order), call)
        heapq.heappush(self._timers, timer)
        return timer

    def post(self, call: Callable[[], None]) -> None:
        """From any thread: have the loop call CALL."""
        self._posted.append(call)
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody is left to wake
            self.waker.send(b"\0")

    def turn(self) -> None:
        """Sleep until something happens; serve the ready sockets, what was posted, the due timers."""
        while self._timers and self._timers[0].call is None:
            heapq.heappop(self._timers)
        patience = max(0.0, self._timers[0].due - self.now()) if self._timers else None
        for key, ready in self._selector.select(patience):
            if key.data is None:
                self._wake.recv(4096)
                continue
            for event, call in zip((selectors.EVENT_READ, selectors.EVENT_WRITE), key.data):
                # One served earlier in this turn may have closed the socket or changed its mind.
                if ready & event and self._selector.get_map().get(key.fd) is key:
                    self._guarded(call)
        while self._posted:
            self._guarded(self._posted.popleft())
        due, now = [], self.now()
        while self._timers and self._timers[0].due <= now:
            due.append(heapq.heappop(self._timers))
        for timer in due:  # one set by these waits for the next turn
            if timer.call:
                self._guarded(timer.call)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # our own bug costs one connection, not the others
            self._log("bug", trace=traceback.format_exc())
            owner: Any = getattr(call, "__self__", None)
            if hasattr(owner, "abort"):
                owner.abort("internal error")

    def close(self) -> None:
        for thing in (self._selector, self._wake, self.waker):
            thing.close()


class Log:
    """One line per event: time, event, key=value."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: str, **facts: object) -> None:
        words = [datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), event]
        for key, value in facts.items():
            plain = re.fullmatch(r"[!#-\[\]-~]+", str(value))  # printable, no space, quote or backslash
            words.append(f"{key}={value if plain else json.dumps(str(value))}")
        with contextlib.suppress(OSError, ValueError):  # whoever read it has gone
            print(" ".join(words), file=self._stream, flush=True)


if __name__ == "__main__":
    sys.exit(main())
