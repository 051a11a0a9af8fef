"""The hidden side of TAAS: keeps connections waiting at a service and joins each visitor to a local target.

It does not know what flows through it: octets are copied as they come, the visitor's TLS included, unless the file says
`tls = terminate`.  It reads like a connection's journey: the file; Agent (asks the registrar); Pool (how many should
wait, one connection's life); the ends of a visit; plumbing.  It is coroutines over its own Loop: asyncio costs 10 MB.
"""

from __future__ import annotations

import argparse
import base64
import configparser
import contextlib
import email.utils
import errno
import functools
import hashlib
import hmac
import http.client
import io
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
import types
from typing import Any, Awaitable, Callable, Coroutine, Generator, NamedTuple, Optional, Tuple

VERSION = "0.5.0"
STEP_SECONDS = 10.0  # for a look-up, a connect, a handshake, an answer: each
BACKOFF_FIRST, BACKOFF_LAST = 0.5, 30.0  # seconds
SLOW_SECONDS = 30.0, 60.0  # between tries at what only a person can mend
HOLD_LAST = 300.0  # a Retry-After beyond this is shortened
STEADY_SECONDS = 10.0  # a connection that was lost after waiting this long had been a success
CLOCK_SLACK = 5.0  # seconds that our clock may differ from the service's
MAX_REDIRECTS, MAX_ANSWER = 5, 64 * 1024  # octets
SMALL, LARGE, PIPE = 64 * 1024, 256 * 1024, 1024 * 1024  # octets at once: while messages are small; in bulk; by splice
KEEP_ALIVE = {"TCP_KEEPIDLE": 25, "TCP_KEEPALIVE": 25, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
UNACKNOWLEDGED_MS = 40_000  # = 25 + 3 * 5 seconds
DEAD_SECONDS = 60.0  # a live visit whose octets stay unacknowledged for so long has lost its path
RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)  # SO_LINGER: close() sends RST
TICK_SECONDS = 5.0  # between looks at what no descriptor announces; if it comes late by
SLEPT_SECONDS = 20.0  # the machine was suspended, and no connection can be trusted
QUIET_SECONDS, DRAIN_SECONDS = 30.0, 30.0  # without a visitor, until a pool shrinks; for live visits after SIGTERM
STAY = "TAAS-Stay: 1\r\nTAAS-Proxy: v2\r\n"
PROXY = b"\r\n\r\n\0\r\nQUIT\n"  # the PROXY protocol's signature, version 2 (haproxy's proxy-protocol.txt 2.2)
PROXY_LOCAL = PROXY + b"\x20\0\0\0"  # nothing is known of the visitor
clock = functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
PEM = "-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----"
Section = types.SimpleNamespace  # what a section of the file says

def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C: 0.  1: --check or --once failed.  2: arguments or file are no good."""
    parser = argparse.ArgumentParser(prog="taas_agent.py", description="The hidden side of TAAS.")
    option = parser.add_argument
    option("file", metavar="LABEL.agent.ini", help="what taas_admin.py add has written")
    option("--to", metavar="HOST:PORT", help="where visitors are taken; also [::1]:443 and unix:/path")
    option("--tls", choices=("passthrough", "terminate"), help="terminate: the target speaks plain")
    option("--proxy", choices=("off", "v2"), help="v2: a PROXY header tells the target who visits")
    option("--waiting", metavar="N", type=int, choices=range(1, 21), help="connections kept waiting, 1 to 20 (4)")
    option("--plain", action="store_true", help="wait at a port p, and ask for no PROXY header")
    option("--check", action="store_true", help="try each step, say what is wrong, and end")
    option("--once", action="store_true", help="end after one visit, or at the first failure (1)")
    option("--json", action="store_true", help="log as JSON")
    option("--version", action="version", version=f"taas-agent {VERSION}")
    options = parser.parse_args(argv)
    with contextlib.suppress(ImportError, ValueError, OSError):  # a visit has two descriptors, the usual limit is 1,024
        import resource  # not on Windows
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    try:
        return Agent(options, AgentFile(options.file, options)).run()
    except BadFile as bad:
        print(f"taas_agent.py: {bad}", file=sys.stderr)
        return 2

class BadFile(Exception):
    """One line for the person at the keyboard.  Never holds a value that might be the secret."""

class Endpoint(NamedTuple):
    """A host as people write it, and a port; or unix:/path, and 0."""
    host: str
    port: int

    @staticmethod
    def parse(text: str) -> Endpoint:
        if text.startswith("unix:/") and hasattr(socket, "AF_UNIX"):
            return Endpoint(text, 0)
        found = re.fullmatch(r"(?:\[([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\]|([^\s:/\[\]]+)):([0-9]{1,5})", text)
        if not found or not 0 < int(found[3]) < 65536:
            raise ValueError("must be HOST:PORT, with an IPv6 address as [::1]:443, or unix:/path")
        return Endpoint(found[1] or found[2], int(found[3]))

    def literal(self) -> Endpoint | None:
        """With its IP address in the one spelling (::ffff:a.b.c.d is a.b.c.d); None when it has a name."""
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError, ValueError):
                host = socket.inet_ntop(family, socket.inet_pton(family, self.host))
                return Endpoint(host[7:] if host.startswith("::ffff:") and "." in host else host, self.port)
        return None if self.port else self

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else self.host

class AgentFile:
    """Registrars, credential, and a target per label; OPTIONS go over [target].  Raises BadFile."""
    def __init__(self, path: str, options: argparse.Namespace) -> None:
        self._path = path
        self._asked: dict[str, set[str]] = {"registrar": set(), "credential": set(), "target": set()}
        self._said = self._read()
        given = {key: str(value) for key, value in vars(options).items() if value}
        self._common = {**self._said.get("target", {}), **given}
        self.registrars = [self._registrar(name) for name in self._said if name.startswith("registrar")]
        self.credential = self._credential()
        self.targets = [self._target(label) for label in self.credential.labels]
        for section, keys in self._said.items():
            kind, *name = section.split()
            if kind == "target" and name and name[0] not in self.credential.labels:
                raise self._bad(section, "", "the label is not one of [credential] labels")
            for key in sorted(set(keys) - self._asked[kind]):
                raise self._bad(section, key, "unknown key")

    def _bad(self, section: str, key: str, why: str) -> BadFile:
        return BadFile(f"{self._path}: [{section}]{key and ' '}{key}: {why}")

    def _read(self) -> dict[str, dict[str, str]]:
        parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), default_section="")
        try:
            with open(self._path, encoding="utf-8-sig") as file:
                parser.read_file(file)
        except (OSError, UnicodeDecodeError) as error:
            raise BadFile(f"{self._path}: {getattr(error, 'strerror', 'not UTF-8 text')}") from None
        except configparser.Error as error:  # its own text quotes the line, which might be the secret
            line = max([getattr(error, "lineno", 0)] + [line for line, _ in getattr(error, "errors", ())])
            twice = getattr(error, "option", getattr(error, "section", ""))  # of a duplicate
            why = f"{twice}: given twice" if twice else "neither [section] nor key = value"
            raise BadFile(f"{self._path}: line {line}: {why} (the lines of a certificate are indented)") from None
        said = {name: {key: value.strip() for key, value in parser[name].items() if value.strip()}
                for name in parser.sections()}
        for section in [*said, "registrar", "credential"]:
            kind, *name = section.split() or [""]
            if section not in said or kind not in self._asked or len(name) > (kind != "credential"):
                raise self._bad(section, "", "unknown section" if section in said else "section is missing")
        return said

    def _get(self, section: str, key: str, allowed: str | range, words: str, default: Any = ...) -> Any:
        """The value of KEY, which must match ALLOWED, in WORDS."""
        kind = section.split()[0]
        self._asked[kind].add(key)
        value = self._said.get(section, {}).get(key) or (self._common.get(key) if kind == "target" else None)
        if value is None and default is ...:
            raise self._bad(section, key, "is missing" + "; or give --to HOST:PORT" * (key == "to"))
        pattern = "[0-9]{1,9}" if isinstance(allowed, range) else allowed
        good = value is None or re.fullmatch(pattern, value, re.ASCII | re.IGNORECASE | re.DOTALL)
        if not good or (value and isinstance(allowed, range) and int(value) not in allowed):
            raise self._bad(section, key, f"must be {words}")
        return default if value is None else int(value) if isinstance(allowed, range) else value

    def _registrar(self, section: str) -> Section:
        """[registrar NAME] is another machine of the same service, tried in turn."""
        get = functools.partial(self._get, section)
        port = get("port", range(1, 65536), "a port number", 443)
        at = Endpoint(get("name", "[a-z0-9._-]+|[0-9a-f:.]+", "a host name"), port)
        hosts = get("address", "[0-9a-f:., ]*", "IP addresses with commas between", "").replace(",", " ").split()
        addresses = [Endpoint(host, at.port).literal() for host in hosts]
        if None in addresses:
            raise self._bad(section, "address", f"{hosts[addresses.index(None)]} is no IP address")
        pinned = get("trust", "pin|system", "pin or system").lower() == "pin"
        pems = re.findall(PEM, get("certificate", f".*{PEM}.*", "a PEM certificate in indented lines", ""), re.DOTALL)
        if pinned != bool(pems):
            raise self._bad(section, "certificate", "must be given with trust = pin, and only then")
        context = limited(ssl.PROTOCOL_TLS_CLIENT)  # verifies the chain and the name
        try:
            pins = [ssl.PEM_cert_to_DER_cert(pem) for pem in pems]
            if pinned:
                context.load_verify_locations(cadata=b"".join(pins))
                # X509_V_FLAG_PARTIAL_CHAIN: a pinned leaf is an anchor.  X509_V_FLAG_NO_CHECK_TIME: a device without a
                # clock boots in 1970, and a pin is as good as the file that it came in, whatever its dates.
                context.verify_flags |= ssl.VerifyFlags(0x80000 | 0x200000)
            else:
                context.load_default_certs()
        except (ValueError, ssl.SSLError):
            raise self._bad(section, "certificate", "is damaged") from None
        return Section(at=at, addresses=addresses, pins=pins, context=context)

    def _credential(self) -> Section:
        get, label = functools.partial(self._get, "credential"), "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
        labels = get("labels", rf"{label}(\s*,\s*{label})*", "DNS labels with commas between").lower()
        secret = re.sub(r"[\s=-]", "", get("secret", r"[a-z2-7\s=-]+", "base32"))
        try:
            octets = base64.b32decode(secret + "=" * (-len(secret) % 8), casefold=True)
        except ValueError:
            raise self._bad("credential", "secret", "must be base32") from None
        return Section(
            id=get("id", r"[!#-\[\]-~]+", "printable, without spaces, quotes and backslashes"), secret=octets,
            digits=get("digits", range(6, 9), "6, 7 or 8", 6), servers=get("servers", "[a-z0-9._-]+", "a host name"),
            period=get("period", range(1, 100000), "a number of seconds", 30),
            algorithm=get("algorithm", "SHA(1|256|512)", "SHA1, SHA256 or SHA512", "SHA1"),
            labels=list(dict.fromkeys(labels.replace(",", " ").split())))

    def _target(self, label: str) -> Section:
        """[target LABEL] goes over the options, and they over [target]."""
        section, host = f"target {label}", f"{label}.{self.credential.servers}"
        get = functools.partial(self._get, section)
        terminate = get("tls", "passthrough|terminate", "passthrough or terminate", "").lower() == "terminate"
        names = [get(key, ".+", "a path", "") for key in ("certificate", "key")]
        waiting, most = get("waiting", range(1, 21), "1 to 20", 4), get("waiting-max", range(1, 21), "1 to 20", 15)
        proxy = get("proxy", "off|v2", "off or v2", "").lower() == "v2"
        if bool(names[0]) != bool(names[1]) or (names[0] and not terminate):
            raise self._bad(section, "certificate", "stands with key, and with tls = terminate")
        folder = os.environ.get("STATE_DIRECTORY") or os.path.dirname(self._path)
        pair = [os.path.join(folder, name or f"{host}.{end}") for name, end in zip(names, ("crt", "key"))]
        try:
            to, context = Endpoint.parse(get("to", ".+", "HOST:PORT")), limited(ssl.PROTOCOL_TLS_SERVER)
            if terminate:
                make_pair(pair[0], pair[1], host)
                context.load_cert_chain(pair[0], pair[1], lambda: "")  # a key that wants a password is an error
        except OSError as error:
            raise self._bad(section, "certificate", f"{pair[0]}: {reason(error)}") from None
        except ValueError as error:
            raise self._bad(section, "to", str(error)) from None
        return Section(label=label, to=to, tls=context if terminate else None, proxy=proxy, waiting=waiting,
                       most=max(waiting, most))

def make_pair(certificate: str, key: str, host: str) -> None:
    """Have openssl(1) make a self-signed pair where there is none, and say how visitors know it."""
    if not os.path.exists(certificate) and not os.path.exists(key):
        command = ("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=hidden"
                   f" -addext subjectAltName=DNS:{host} -keyout").split()  # the key's mode is 0600
        import subprocess  # most devices never need it
        if subprocess.run([*command, key, "-out", certificate], stdin=subprocess.DEVNULL, stderr=-1).returncode:
            raise OSError("openssl could not make it")
    with open(certificate, encoding="ascii", errors="replace") as file:
        octets = ssl.PEM_cert_to_DER_cert(re.findall(PEM, file.read(), re.DOTALL)[0])
    digest = hashlib.sha256(octets).hexdigest().upper()
    print(f"{host}: {certificate}, SHA-256 {':'.join(re.findall('..', digest))}", flush=True)

def limited(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context

def totp(secret: bytes, step: int, digits: int, algorithm: str) -> str:
    """RFC 6238: the code of one time step."""
    mac = hmac.new(secret, struct.pack(">Q", step), algorithm.lower()).digest()
    start = mac[-1] & 15
    number = int.from_bytes(mac[start:start + 4], "big") & 0x7FFFFFFF
    return str(number % 10**digits).zfill(digits)

class Refused(Exception):
    """The registrar, by name, has given an Answer, but no place to wait."""

class Agent:
    """What all labels share."""
    def __init__(self, options: argparse.Namespace, file: AgentFile) -> None:
        self.options, self.registrars, self.credential = options, file.registrars, file.credential
        self.log = functools.partial(write_log, options.json)
        self.loop = Loop(self.log)
        self.clock_offset, self._stops = 0.0, 0  # seconds that the service's clock is ahead of ours; SIGTERMs
        self.status: int | None = None  # to end with, once it is set
        self._last: tuple[Section, Endpoint] | None = None  # who answered last, and where, is tried first
        self.targets = file.targets
        self.pools: list[Pool] = []

    def run(self) -> int:
        for name, call in (("SIGTERM", self._stop), ("SIGINT", self._stop), ("SIGUSR1", self._tell)):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), call)
        signal.set_wakeup_fd(self.loop.waker.fileno(), warn_on_full_buffer=False)
        notify("READY=1")  # not when something waits: the network may be days away
        self.log("started", version=VERSION, registrar=self.registrars[0].at, labels=",".join(self.credential.labels))
        self.say("file", f"{self.options.file}: {', '.join(self.credential.labels)}")
        self.pools += [Pool(self, target) for target in self.targets]
        Task(self.loop, self._tick())
        while self.status is None:
            self.loop.turn()
        notify("STOPPING=1")
        end = time.monotonic() + DRAIN_SECONDS
        for task in [task for pool in self.pools for task in (pool.filler, *pool.coming, *pool.waiting)]:
            task.cancel()
        while self._stops < 2 and time.monotonic() < end and any(pool.live for pool in self.pools):
            self.loop.turn()  # the tick ends it
        for task in [task for pool in self.pools for task in pool.live]:
            task.cancel()
        signal.set_wakeup_fd(-1)
        self.loop.close()
        self.log("stopped")
        return self.status

    def _stop(self, *_: object) -> None:
        self._stops, self.status = self._stops + 1, self.status or 0

    def _tell(self, *_: object) -> None:
        for pool in self.pools:
            self.loop.post(functools.partial(self.log, "pool", label=pool.label, waiting=len(pool.waiting),
                                             coming=len(pool.coming), level=pool.level, live=len(pool.live),
                                             visits=pool.visits, retry_seconds=round(pool.pause(), 1)))

    async def _tick(self) -> None:
        while True:
            before = clock()
            with contextlib.suppress(TimeoutError):
                await self.loop.pause(time.monotonic() + TICK_SECONDS)
            late = clock() - before - TICK_SECONDS
            if late > SLEPT_SECONDS:
                self.log("resumed", asleep_seconds=round(late))
            for pool in self.pools:
                pool.tick(late > SLEPT_SECONDS)
            notify("WATCHDOG=1")

    def say(self, step: str, words: str, verdict: str = "ok") -> None:
        """For --check."""
        if self.options.check:
            print(f"{verdict:5}{step:9}{words}", flush=True)
            self.status = 1 if verdict == "FAIL" else self.status

    async def register(self, label: str) -> tuple[socket.socket, bool]:
        """A connection that waits, and whether a PROXY header comes on it.  Raises Refused, BadAnswer, OSError."""
        for registrar in sorted(self.registrars, key=lambda one: not self._last or one is not self._last[0]):
            try:
                return await self._register_at(registrar, label)
            except (Refused, BadAnswer, OSError) as error:
                failure = error
                if isinstance(error, Refused) and error.args[1].status < 500:
                    break
        raise failure

    async def _register_at(self, registrar: Section, label: str) -> tuple[socket.socket, bool]:
        at, path = registrar.at, f"/register/{label}"
        known = ([self._last[1]] if self._last and self._last[0] is registrar else []) + registrar.addresses
        for _ in range(1 + MAX_REDIRECTS):
            ask = functools.partial(self._ask, registrar=registrar, at=at, path=path)
            answer, address, sock = await self.loop.reach(known, at, ask)
            if answer.status not in (301, 302, 307, 308):
                break
            at, path = answer.redirected(at, path)
            known = known if at == registrar.at else []
        else:
            raise BadAnswer(f"more than {MAX_REDIRECTS} redirects")
        self._last = (registrar, address) if at == registrar.at else self._last
        if answer.status != 200:
            raise Refused(registrar.at.host, answer)
        self.say("code", f"accepted for {label}")
        if sock is None:
            port, ours = answer.port(), [address, *registrar.addresses]
            with contextlib.suppress(OSError):
                ours += [] if port.host in {place.host for place in ours} else await self.loop.resolve(at)
            if port.host not in {place.host for place in ours}:
                raise BadAnswer(f"not connecting to {port}, which the answer names: not an address of the registrar")
            sock = await self.loop.reach([port], None)
        proxied = answer.headers.get("taas-proxy", "").lower() == "v2" and not self.options.plain
        self.say("place", f"waits{', and is told who visits' if proxied else ''}")
        return sock, proxied

    async def _ask(self, sock: socket.socket, registrar: Section, at: Endpoint,
                   path: str) -> tuple[Answer, Endpoint, socket.socket | None]:
        """Handshake, PUT and the whole answer, each within its deadline.  Where SOCK stays, it comes back."""
        credential, address, plain = self.credential, Endpoint(*sock.getpeername()[:2]), self.options.plain
        end = TlsEnd(self.loop, sock, "service", registrar.context, at.host)
        self.say("connect", f"{address}, for {at.host}")
        await end.begin()
        if registrar.pins and end.tls.getpeercert(True) not in registrar.pins:
            raise ConnectionError("certificate refused: it is none of the pins")
        self.say("tls", f"{end.tls.version()}, the certificate is {'pinned' if registrar.pins else 'trusted'}")
        offset, step = self.clock_offset, max(0, int(time.time() + self.clock_offset)) // credential.period
        code = totp(credential.secret, step, credential.digits, credential.algorithm)  # last: never an older one
        end.until = time.monotonic() + STEP_SECONDS
        await end.send((f"PUT {path} HTTP/1.1\r\nHost: {at}\r\nUser-Agent: taas-agent/{VERSION}\r\n"
                        f'Authorization: TOTP username="{credential.id}", response="{code}"\r\n'
                        f"{'' if plain else STAY}Content-Length: 0\r\n\r\n").encode())
        received, answer = b"", None
        while answer is None:
            data = await end.receive(SMALL)
            received += data
            answer = parse_answer(received, ended=not data)
        self.say("clock", f"the service's is {(answer.when('date') or time.time()) - time.time():+.0f} s from ours")
        stays = answer.status == 200 and answer.headers.get("taas-stay") == "1" and not plain
        if stays and await end.receive(1):  # the service says close_notify first
            raise BadAnswer("something follows the answer")
        with contextlib.nullcontext() if stays else contextlib.suppress(OSError):
            await end.part()
        self.loop.close_socket(None if stays else sock)
        body = answer.body.strip().partition("\n")[0][:200].replace(code, "[code]")
        return answer._replace(body=body, clock_offset=offset), address, sock if stays else None

class Pool:
    """One label's connections: how many wait, and when the next try is due."""
    def __init__(self, agent: Agent, target: Section) -> None:
        self.agent, self.loop, self.target, self.label = agent, agent.loop, target, target.label
        self.level: int = target.waiting
        self.coming: set[Task] = set()
        self.waiting: set[Task] = set()
        self.live: dict[Task, list[End]] = {}
        self.visits = self._failures = self._refusals = 0
        self._proven = False  # one came through since the last failure; until then they are tried singly
        self._backoff_until = 0.0  # a visitor ends this
        self._hold_until = 0.0  # nothing ends this early: the service has asked for it, or a person must act
        self._taken_at, self._announced, self._checked = 0.0, False, False
        self.filler = Task(self.loop, self._fill())

    async def _fill(self) -> None:
        """Start what is missing, all at once, as soon as that is allowed."""
        until: float | None = 0.0
        while not self._checked:
            with contextlib.suppress(TimeoutError):
                await self.loop.pause(until)
            while len(self.waiting) + len(self.coming) < self.level and not self.pause():
                if self.coming and not self._proven:
                    break
                Task(self.loop, self._life())
            until = time.monotonic() + self.pause() if self.pause() else None

    async def _life(self) -> None:
        """Of one connection: it registers, waits, and is a visitor's in the end."""
        me, sock, since = self.loop.current, None, None
        self.coming.add(me)
        try:
            sock, proxied = await self.agent.register(self.label)
            if self.agent.options.check:
                return await self._check_target()
            self._arrived(me, sock)
            since = time.monotonic()
            await self.loop.ready(sock, READ)
            if not sock.recv(1, socket.MSG_PEEK):
                raise ConnectionError("closed by the service before a visitor came")
            header = await self._header(sock) if proxied else b""
            self._taken(me, sock)
            visitor, sock = sock, None
            await self._visit(visitor, header)
        except Refused as refused:
            hold, why = self._judge(refused)
            self._lost(me, "refused", why, hold, status=refused.args[1].status, said=refused.args[1].body)
        except (OSError, BadAnswer) as error:
            if since is not None and time.monotonic() - since >= STEADY_SECONDS:
                self._failures = 0
            self._lost(me, "failed" if since is None else "lost", reason(error))
        finally:
            self.coming.discard(me)
            self.waiting.discard(me)
            self.loop.close_socket(sock)

    async def _check_target(self) -> None:
        self._checked = True
        try:
            self.loop.close_socket(await self.loop.reach([], self.target.to))
            self.agent.say("target", f"{self.target.to}, where visitors of {self.label} seem to come from 127.0.0.1")
        except OSError as error:
            self.agent.say("target", f"{self.label}: {reason(error)}: start it, or mend `to`", "FAIL")
        self.agent.status = self.agent.status or (0 if all(pool._checked for pool in self.agent.pools) else None)

    async def _header(self, sock: socket.socket) -> bytes:
        """The PROXY header, and not an octet more.  Raises BadAnswer, OSError."""
        header, whole, until = b"", 16, time.monotonic() + STEP_SECONDS
        while len(header) < whole:
            await self.loop.ready(sock, READ, until)
            data = sock.recv(whole - len(header))
            header += data
            whole = 16 + int.from_bytes(header[14:16], "big") if len(header) >= 16 else 16
            if not data or header[:12] != PROXY[:len(header)] or whole > 4096:
                raise BadAnswer("the service had agreed to a PROXY header, and sent something else")
        return header

    async def _visit(self, sock: socket.socket, header: bytes) -> None:
        """Join the visitor and the target until both have ended, or one is gone."""
        me, target, began = self.loop.current, self.target, time.monotonic()
        front = TlsEnd(self.loop, sock, "visitor", target.tls) if target.tls else End(self.loop, sock, "visitor")
        ends, halves, outcome, facts = [front], [], "shutdown", {}
        self.live[me] = ends
        try:
            ends.append(End(self.loop, await self.loop.reach([], target.to), "target"))
            await ends[1].send((header or PROXY_LOCAL) if target.proxy else b"")
            await front.begin() if isinstance(front, TlsEnd) else None
            halves = [Task(self.loop, copy(*pair), me) for pair in (ends, ends[::-1])]
            while not all(half.ended for half in halves) and not any(half.error for half in halves):
                await self.loop.pause()
            for error in filter(None, [half.error for half in halves]):
                raise error
            outcome = "complete"
        except OSError as error:
            timed_out = isinstance(error, TimeoutError) or error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH)
            outcome = ("target-refused" if len(ends) < 2 else "tls-failed" if isinstance(error, ssl.SSLError)
                       else "timed-out" if timed_out else "reset")
            facts = {"target": target.to, "why": reason(error)}
        finally:
            del self.live[me]
            for half in halves:
                half.cancel()
            for end in ends:
                with contextlib.suppress(OSError, AttributeError):
                    if outcome not in ("complete", "tls-failed"):
                        end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                        end.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # Linux: ACK what came, or
                        end.sock.recv(LARGE)  # the service takes us for dead and tries the next of the pool
                self.loop.close_socket(end.sock)
            self.agent.log(outcome, label=self.label, visitor=visitor_of(header), **facts, received=front.received,
                           sent=front.sent, seconds=round(time.monotonic() - began, 1))
            self.agent.status = 0 if self.agent.options.once else self.agent.status

    def _arrived(self, me: Task, sock: socket.socket) -> None:
        keep_alive(sock, UNACKNOWLEDGED_MS)  # the deadline of its wait
        self.coming.discard(me)
        self.waiting.add(me)
        self._proven, self._refusals = True, 0
        self.loop.post(self.filler.step)
        if not self._announced and len(self.waiting) >= self.level:
            self._announced, port, at = True, self.agent.registrars[0].at.port, sock.getpeername()[0]
            url = f"https://{self.label}.{self.agent.credential.servers}{'' if port == 443 else f':{port}'}/"
            self.agent.log("ready", label=self.label, waiting=self.level, at=at, to=self.target.to, visitors=url)
            words = f"{self.label}: {self.level} waiting at {at}, to {self.target.to}; visitors use {url}"
            notify(f"STATUS={words}")
            with contextlib.suppress(OSError, ValueError):
                print(words, flush=True)

    def _taken(self, me: Task, sock: socket.socket) -> None:
        """A visitor has come: the place is free again at once, and a run on the pool makes it grow."""
        keep_alive(sock)  # a limit on what is unacknowledged would also end a visitor who only pauses
        self.waiting.discard(me)
        self.visits += 1
        self._failures, self._backoff_until, self._taken_at = 0, 0.0, time.monotonic()
        if self._announced and len(self.waiting) < self.level / 2:
            self.level = min(self.level + 2, self.target.most)
        self.loop.post(self.filler.step)

    def tick(self, slept: bool) -> None:
        """Look at what no descriptor announces."""
        for task, ends in list(self.live.items()):
            for error in list(filter(None, map(End.trouble, ends)))[:1]:
                task.step(error)
        if slept:  # what waited can't be trusted, and nothing speaks against a try at once
            for task in [*self.coming, *self.waiting]:
                task.cancel()
            self._failures, self._backoff_until, self._announced = 0, 0.0, False
        if self.level > self.target.waiting and time.monotonic() - self._taken_at > QUIET_SECONDS:
            self.level -= 1
            if len(self.waiting) > self.level:
                self.waiting.pop().cancel()
        self.loop.post(self.filler.step)

    def _judge(self, refused: Refused) -> tuple[float, str]:
        """For how many seconds to try nothing, and why."""
        agent, (name, answer), slow = self.agent, refused.args, random.uniform(*SLOW_SECONDS)
        now = time.time() + agent.clock_offset  # the time at the service, as far as we know
        if answer.status == 429 or answer.status >= 500:
            return min(HOLD_LAST, answer.retry_after(now)), "trying again"
        if answer.status == 403:
            return slow, f"this ID may not use it: ask the operator of {name}"
        if answer.status != 401:
            return slow, f"is {name} a TAAS registrar, this agent up to date?"
        ahead = (answer.when("date") or now) - now
        if answer.clock_offset != agent.clock_offset:
            return 0.0, "code refused; the clock was corrected since"
        if abs(ahead) > CLOCK_SLACK:
            agent.clock_offset += ahead
            return 0.0, f"code refused: check the clock, it is {-agent.clock_offset:+.0f} s off; corrected"
        self._refusals += 1
        if self._refusals == 1:  # used up, perhaps, or our address has changed within the step
            until_next = agent.credential.period - now % agent.credential.period
            return until_next + random.random(), "code refused; trying the next one"
        return slow, (f"code refused, the clock being right (offset {agent.clock_offset:.0f} s): the ID is unknown,"
                      f" disabled or has a new secret: ask the operator of {name}")

    def _lost(self, me: Task, event: str, why: str, hold: float = 0.0, **facts: object) -> None:
        """It ended before it was of use: try again, not before HOLD seconds have gone by."""
        now = time.monotonic()
        self.coming.discard(me)
        self.waiting.discard(me)
        self._proven, self._announced = False, self._announced and bool(self.waiting)
        if now >= self._backoff_until:  # connections that fail together are one failure
            self._backoff_until = now + random.uniform(BACKOFF_FIRST, min(BACKOFF_LAST, 2**self._failures))
            self._failures = min(self._failures + 1, 10)
        self._hold_until = max(self._hold_until, now + hold)
        self.agent.log(event, label=self.label, **facts, why=why, retry_seconds=round(self.pause(), 1))
        self.loop.post(self.filler.step)
        self.agent.status = 1 if self.agent.options.once else self.agent.status
        self.agent.say("service", f"{self.label}: {why}", "--" if why.endswith("corrected") else "FAIL")

    def pause(self) -> float:
        return max(0.0, max(self._backoff_until, self._hold_until) - time.monotonic())

class End:
    """One socket of a visit.  Its verbs raise OSError."""
    def __init__(self, loop: Loop, sock: socket.socket, name: str) -> None:
        self.loop, self.sock, self.name = loop, sock, name
        self.received = self.sent = 0  # octets that came from here; that went out here
        self.until: float | None = None  # the deadline of what it does
        self._unsent = b""

    async def receive(self, most: int) -> bytes:
        """What has come; b"" is the end."""
        while True:
            with contextlib.suppress(BlockingIOError):
                return self.sock.recv(most)
            await self.loop.ready(self.sock, READ, self.until)

    async def send(self, data: bytes) -> None:
        """Until the kernel has taken all of it."""
        self._unsent += data
        while not self._push():
            await self.loop.ready(self.sock, WRITE)

    def _push(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self._unsent = self._unsent[self.sock.send(self._unsent) if self._unsent else 0:]
        return not self._unsent

    async def finish(self) -> None:
        with contextlib.suppress(OSError):  # not connected: the next receive tells
            self.sock.shutdown(socket.SHUT_WR)

    def trouble(self) -> OSError | None:
        """What nobody who waits is told: a reset while nothing is wanted; octets unacknowledged for too long."""
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        with contextlib.suppress(AttributeError, OSError, struct.error):  # not Linux; not TCP
            info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            segments, milliseconds = struct.unpack_from("=I28xI", info, 24)  # unacknowledged; since the last ACK
            code = code or (errno.ETIMEDOUT if segments and milliseconds > DEAD_SECONDS * 1000 else 0)
        return OSError(code, os.strerror(code)) if code else None

class TlsEnd(End):
    """With TLS of our own: the service, known as HOST; or a visitor, whom we serve."""
    def __init__(self, loop: Loop, sock: socket.socket, name: str, context: ssl.SSLContext, host: str = "") -> None:
        super().__init__(loop, sock, name)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, not host, host or None)
        self._kept: list[bytes] = []  # read ahead of close_notify

    async def begin(self) -> None:
        self.until = time.monotonic() + STEP_SECONDS
        if await self._do(self.tls.do_handshake) is not None:
            raise ConnectionError("closed in the handshake")
        self.until = None

    async def receive(self, most: int) -> bytes:
        return self._kept.pop(0) if self._kept else await self._do(lambda: self.tls.read(most))

    async def _do(self, call: Callable[[], Any]) -> Any:
        """CALL's result, once TLS has what it needs for it; b"" when the other side says no more."""
        while True:
            try:
                with contextlib.suppress(ssl.SSLWantReadError):
                    return call()
            except ssl.SSLZeroReturnError:  # their close_notify, after ours
                return b""
            finally:
                self._push()
            data = await super().receive(LARGE)
            if not data:  # a FIN without close_notify, as many have it; OpenSSL, if told, would stop sending too
                return b""
            self._incoming.write(data)

    async def send(self, data: bytes) -> None:
        self.tls.write(data) if data else None
        await super().send(b"")

    def _push(self) -> bool:
        self._unsent += self._outgoing.read()
        return super()._push()

    async def part(self) -> None:
        """Say close_notify."""
        with contextlib.suppress(ssl.SSLError):  # first read all that stands in OpenSSL, or unwrap fails for it
            while self._kept[-1:] != [b""]:
                self._kept.append(self.tls.read(LARGE))
        with contextlib.suppress(ssl.SSLError):  # SSLWantRead: ours is written; theirs may come later
            self.tls.unwrap()
        await self.send(b"")

    async def finish(self) -> None:
        await self.part()
        await super().finish()

async def copy(source: End, sink: End) -> None:
    """What SOURCE says, then its FIN, goes to SINK.  In bulk the kernel moves the octets, at half the CPU time."""
    bulk, pipe = False, None  # the last piece was large
    try:
        while True:
            if bulk and type(source) is type(sink) is End and hasattr(os, "splice"):
                pipe = pipe or new_pipe()
                moved = await splice(source, pipe, sink) if pipe else 0
                bulk = moved >= SMALL // 8
                if moved:
                    continue
            data = await source.receive(LARGE if bulk else SMALL)
            if not data:
                return await sink.finish()
            bulk = len(data) >= SMALL // 2
            source.received += len(data)
            await sink.send(data)
            sink.sent += len(data)
    finally:
        for fd in pipe or ():
            os.close(fd)

def new_pipe() -> Optional[Tuple[int, int]]:
    with contextlib.suppress(OSError):  # no descriptor left: copying needs none
        import fcntl  # not on Windows

        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # more than an unprivileged user may have
            fcntl.fcntl(pipe[1], 1031, PIPE)  # F_SETPIPE_SZ
        return pipe
    return None

async def splice(source: End, pipe: tuple[int, int], sink: End) -> int:
    """Octets moved.  0 says nothing: an urgent octet (RFC 6093) can hide what comes; recv has the last word."""
    await source.loop.ready(source.sock, READ)
    try:
        moved = inside = os.splice(source.sock.fileno(), pipe[1], PIPE, flags=3)  # SPLICE_F_MOVE | NONBLOCK
    except BlockingIOError:
        return 0
    source.received += moved
    while inside:
        try:
            inside -= os.splice(pipe[0], sink.sock.fileno(), inside, flags=3)
        except BlockingIOError:
            await sink.loop.ready(sink.sock, WRITE)
    sink.sent += moved
    return moved

def keep_alive(sock: socket.socket, unacknowledged_ms: int = 0) -> None:
    """Notice a dead path within 40 s, where the platform lets us choose."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {**KEEP_ALIVE, "TCP_USER_TIMEOUT": unacknowledged_ms}.items():
        with contextlib.suppress(AttributeError, OSError):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

def reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = ": set the clock of this machine" if error.verify_code in (9, 10) else ""  # not yet, no longer
        return f"certificate refused: {error.verify_message}{hint}"
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error.args[-1])
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

def visitor_of(header: bytes) -> str | None:
    """Whom a PROXY header names."""
    size = {b"\x21\x11": 4, b"\x21\x21": 16}.get(header[12:14])
    if not size or len(header) < 16 + 2 * size + 4:
        return None
    host = socket.inet_ntop(socket.AF_INET if size == 4 else socket.AF_INET6, header[16:16 + size])
    return str(Endpoint(host, int.from_bytes(header[16 + 2 * size:18 + 2 * size], "big")))

def notify(state: str) -> None:
    """Tell systemd, if it started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)

class BadAnswer(Exception):
    """What came back is not HTTP as a registrar speaks it."""

class Answer(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    body: str
    clock_offset: float = 0.0  # that our code was computed with

    def when(self, header: str) -> float:
        """The date that it names, in seconds since 1970; 0.0 when it names none."""
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            date: Any = email.utils.parsedate_tz(self.headers.get(header, ""))
            return email.utils.mktime_tz(date)
        return 0.0

    def retry_after(self, now: float) -> float:
        text = self.headers.get("retry-after", "")
        return float(text) if re.fullmatch("[0-9]{1,9}", text) else max(0.0, self.when("retry-after") - now)

    def port(self) -> Endpoint:
        """Port p, which a 200 names.  Raises BadAnswer."""
        with contextlib.suppress(ValueError):
            port = Endpoint.parse(self.body).literal()
            if port and port.port:
                return port
        raise BadAnswer("the answer is 200, but not an address and a port")

    def redirected(self, at: Endpoint, path: str) -> tuple[Endpoint, str]:
        """Where Location leads from PATH at AT.  Raises BadAnswer."""
        found = re.fullmatch(r"(?:https://([!-.0-?A-~]+))?(/(?!/)[!-~]*)?", self.headers.get("location", ""))
        with contextlib.suppress(ValueError):
            if found and found[1]:
                at = Endpoint.parse(found[1] if re.search(r":[0-9]+$", found[1]) else f"{found[1]}:443")
            if found and found[0]:
                return at, found[2] or path
        raise BadAnswer(f"{self.status}, but Location is no https address")

def parse_answer(data: bytes, ended: bool) -> Answer | None:
    """The answer once DATA holds the whole of it.  Raises BadAnswer."""
    if len(data) > MAX_ANSWER:
        raise BadAnswer("the answer is too long")
    source: Any = Section(makefile=lambda mode: io.BytesIO(data))
    response = http.client.HTTPResponse(source, method="PUT")
    try:
        if b"\r\n\r\n" not in data:
            raise http.client.IncompleteRead(data)
        response.begin()
        if not ended and response.length is None and not response.chunked:
            return None  # its end is the connection's
        headers = {name.lower(): value for name, value in reversed(response.getheaders())}
        return Answer(response.status, headers, response.read().decode("utf-8", "replace"))
    except http.client.IncompleteRead:
        if ended:
            raise BadAnswer("the answer was cut short" if data else "closed without an answer") from None
        return None
    except (http.client.HTTPException, ValueError, OverflowError):
        raise BadAnswer("the answer is not HTTP/1.1") from None

class Task:
    """A coroutine of ours on its way from one wait to the next."""
    def __init__(self, loop: Loop, coroutine: Coroutine[None, None, None], parent: Task | None = None) -> None:
        self._loop, self._coroutine, self._parent = loop, coroutine, parent
        self.ended = False
        self.error: Exception | None = None  # that ended it; the parent's to deal with
        self.step()

    def step(self, error: Exception | None = None) -> None:
        if self.ended:
            return
        before, self._loop.current = self._loop.current, self
        try:
            self._coroutine.throw(error) if error else self._coroutine.send(None)
        except StopIteration:
            self.ended = True
        except Exception as caught:
            self.ended, self.error = True, caught
            if not self._parent:  # our own bug costs one connection, not the others
                self._loop.log("fault", trace=traceback.format_exc())
        finally:
            self._loop.current = before
        if self.ended and self._parent:
            self._loop.post(self._parent.step)

    def cancel(self) -> None:
        self.ended = True
        self._coroutine.close()

@types.coroutine
def _yield() -> Generator[None, None, None]:
    yield

class Loop:
    """Steps each task when its socket is ready or its deadline has come; calls what other threads post."""
    def __init__(self, log: Callable[..., None]) -> None:
        self.log = log
        self.current: Any = None  # the task that runs
        self._selector = selectors.DefaultSelector()
        self._deadlines: dict[Task, float] = {}
        self._posted: list[Callable[[], object]] = []
        self._wake, self.waker = socket.socketpair()
        self.waker.setblocking(False)
        self._selector.register(self._wake, READ)

    def post(self, call: Callable[[], object]) -> None:
        """From any thread: have the loop call CALL."""
        self._posted.append(call)
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody is left to wake
            self.waker.send(b"\0")

    async def pause(self, until: float | None = None) -> None:
        """Until the task is stepped.  Raises TimeoutError at UNTIL."""
        task = self.current
        if until is not None:
            self._deadlines[task] = until
        try:
            await _yield()
        finally:
            self._deadlines.pop(task, None)

    async def ready(self, sock: socket.socket, event: int, until: float | None = None) -> None:
        """Until SOCK is readable, or writable.  It stays registered until an event finds nobody who waits."""
        key = self._selector.get_map().get(sock.fileno())
        waiters: list[Any] = key.data if key else [None, None]
        if not key:
            self._selector.register(sock.fileno(), event, waiters)
        elif not key.events & event:
            self._selector.modify(sock.fileno(), key.events | event, waiters)
        waiters[event >> 1] = self.current
        try:
            await self.pause(until)
        finally:
            waiters[event >> 1] = None

    def turn(self) -> None:
        """Sleep until something happens, and serve it."""
        due = min(self._deadlines.values(), default=None)
        for key, events in self._selector.select(None if due is None else max(0.0, due - time.monotonic())):
            if key.data is None:
                self._wake.recv(4096)
            for event in (READ, WRITE) if key.data else ():
                # One served earlier in this turn may have closed the socket or changed what it waits for.
                if not events & event or self._selector.get_map().get(key.fd) is not key:
                    continue
                if key.data[event >> 1]:
                    key.data[event >> 1].step()
                elif key.events == event:
                    self._selector.unregister(key.fd)
                else:
                    self._selector.modify(key.fd, key.events & ~event, key.data)
        posted, self._posted, now = self._posted, [], time.monotonic()
        for call in posted:
            call()
        for task in [task for task, until in self._deadlines.items() if until <= now]:
            if self._deadlines.get(task, now + 1) <= now:
                task.step(TimeoutError("timed out"))

    def close_socket(self, sock: socket.socket | None) -> None:
        if sock is not None:
            if self._selector.get_map().get(sock.fileno()):
                self._selector.unregister(sock.fileno())
            sock.close()

    def close(self) -> None:
        for thing in (self._selector, self._wake, self.waker):
            thing.close()

    async def reach(self, places: list[Endpoint], name: Endpoint | None,
                    talk: Callable[[socket.socket], Awaitable[Any]] | None = None) -> Any:
        """A connection to the first of PLACES, then of NAME's addresses, that will do; or what TALK makes of it."""
        troubles: list[str] = []
        for place in dict.fromkeys(places):
            family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
            sock: Any = socket.socket(family if place.port else socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                await self._connect(sock, place)
                result, sock = await talk(sock) if talk else sock, None
                return result
            except (OSError, BadAnswer) as error:
                troubles.append(f"{place}: {reason(error)}")
            finally:
                self.close_socket(sock)
        try:
            found = [place for place in (await self.resolve(name) if name else []) if place not in places]
            if found:
                return await self.reach(found, None, talk)
        except OSError as error:
            troubles.append(reason(error))
        raise ConnectionError("; ".join(filter(None, troubles)))

    async def _connect(self, sock: socket.socket, place: Endpoint) -> None:
        sock.setblocking(False)
        code = sock.connect_ex((place.host, place.port) if place.port else place.host[5:])
        if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            await self.ready(sock, WRITE, time.monotonic() + STEP_SECONDS)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code and place.port and sock.getsockname() == sock.getpeername():
            code = errno.ECONNREFUSED  # nobody listens, but the kernel gave us the port that we dialled
        if code:
            raise OSError(code, os.strerror(code))
        if place.port:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # urgent octets stay where they are
            keep_alive(sock)

    async def resolve(self, name: Endpoint) -> list[Endpoint]:
        """Its addresses, asked for in a thread that touches nothing else.  Raises OSError."""
        literal, task = name.literal(), self.current
        found: list[Any] = []
        def look_up() -> None:
            try:
                found.extend(socket.getaddrinfo(name.host, name.port, type=socket.SOCK_STREAM))
            except (OSError, UnicodeError) as error:
                found.append(error)
            self.post(task.step)
        if literal:
            return [literal]
        threading.Thread(target=look_up, daemon=True).start()
        await self.pause()  # no deadline but the resolver's own: a thread can't be ended
        if isinstance(found[0], Exception):
            raise OSError(reason(found[0]))
        return [place for place in (Endpoint(str(row[4][0]), name.port).literal() for row in found) if place]

def write_log(as_json: bool, event: str, **facts: object) -> None:
    """One line per event, in the form of the service's: time, level, event, key=value; or JSON."""
    now, plain = time.time(), re.compile(r"[!#-\[\]-~]+")  # printable, no space, quote or backslash
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03}+00:00"
    bad = event in ("failed", "lost", "refused", "target-refused")
    level = "warning" if bad else "error" if event == "fault" else "info"
    known = {k: v if isinstance(v, (int, float)) else str(v) for k, v in facts.items() if v is not None}
    line = json.dumps({"time": stamp, "level": level, "event": event, **known})
    if not as_json:
        words = [f"{k}={v if plain.fullmatch(str(v)) else json.dumps(v)}" for k, v in known.items()]
        line = " ".join([stamp, level, event, *words])
    with contextlib.suppress(OSError, ValueError):  # whoever read it has gone
        print(line, file=sys.stderr, flush=True)

if __name__ == "__main__":
    sys.exit(main())
