"""Looks at all that the service needs, one thing after the other, and says what to do.

Changes nothing, and needs no running service.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import secrets
import shutil
import socket
import sqlite3
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taasadmin.book import Refused
from taasadmin.wording import NO_PYOTP, called
from taaslib import config, names
from taaslib.limits import Limits
from taaslib.listener import open_port
from taaslib.ownership import Owner
from taaslib.pump import can_splice
from taaslib.store import MIGRATIONS, uri_of

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

PEM = re.compile("-----BEGIN CERTIFICATE-----\r?\n.+?-----END CERTIFICATE-----", re.DOTALL)
OK, FIX, UNKNOWN = "ok", "FIX", "--"
Finding = tuple[str, str]  # one of these, and what there is or what to do
SPARE_DAYS = 14
SPARE_BYTES = 64 << 20
PATIENCE_SECONDS = 5.0
PIPE_PAGES = 16384  # Linux's default of fs.pipe-user-pages-soft: 64 MiB
SAMPLE = 20  # ports that are looked at for a free one, at three places of the range
LOCAL = " (asked from here, which tries no firewall in front of this machine: ask from elsewhere too)"


class Doctor:
    """Looks at one thing after the other, and changes none.  taas.ini is good, or we would not be here."""

    def __init__(self, settings: config.Config, owner: Owner | None) -> None:
        self._settings = settings
        self._owner = owner
        self._star = f"*.{settings.servers}"
        self._stranger = f"{secrets.token_hex(8)}.{settings.servers}"  # of the labels that it stands for

    def findings(self) -> Iterator[tuple[str, str, str]]:
        yield "configuration", OK, str(self._settings.path)
        looks = (self._certificate, self._dns, self._clock, self._address, self._port, self._ports)
        for look in (*looks, self._descriptors, self._database, self._disk, self._kernel):
            subject = look.__name__[1:]
            try:
                for verdict, words in look():
                    yield subject, verdict, words.replace(self._stranger, self._star)
            except (OSError, sqlite3.Error, config.ConfigError, Refused) as error:
                yield subject, FIX, " ".join(str(error).split())

    def _certificate(self) -> Iterator[Finding]:
        try:
            from taaslib import startup
        except ModuleNotFoundError:
            raise Refused(NO_PYOTP) from None
        s = self._settings
        for host, context in startup.tls_contexts(
            s
        ).items():  # they belong to their keys, and `user` reads both
            file = s.tls[host][0] if host else s.certificate
            shown = [host] if host else [s.registrar, self._stranger] + [s.servers] * (s.location == "domain")
            try:
                (facts, *_) = [_facts(context, file, name) for name in shown]
            except ssl.SSLCertVerificationError as error:
                yield FIX, f"{file}: {error.verify_message}: make or order another one"
                continue
            days = int((ssl.cert_time_to_seconds(str(facts["notAfter"])) - time.time()) // 86400)
            good = days >= SPARE_DAYS
            more = "" if good else ": renew it"
            yield OK if good else FIX, f"{file} for {', '.join(shown)}, {days} more days{more}"

    def _dns(self) -> Iterator[Finding]:
        public = self._settings.public
        for name in (self._settings.registrar, self._stranger):
            found: set[str] = set()
            with contextlib.suppress(OSError):
                infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
                found = {names.plain_address(str(info[4][0])) for info in infos}
            if wrong := ", ".join(sorted(found - set(public))):
                yield FIX, f"{name} leads to {wrong}, as seen from here: make it {', '.join(public)} alone"
            elif missing := [f"{name}. IN {kind(a)} {a}" for a in public if a not in found]:
                yield FIX, f"create {', '.join(missing)}"
            else:
                yield OK, f"{name} leads to {', '.join(public)}"

    def _clock(self) -> Iterator[Finding]:
        off = []
        with contextlib.suppress(sqlite3.Error), self._reading() as db:  # a broken one is another line's
            off = [ahead for (ahead,) in db.execute("SELECT ahead FROM clocks")]
        said = ""
        if shutil.which("timedatectl"):  # it asks the kernel, whoever keeps its time
            command = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
            said = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        if len(off) > 1 and (min(off) > 0 or max(off) < 0):
            least = min(off, key=abs)
            yield (
                FIX,
                f"{len(off)} devices, all whose codes fail, are {least:+d} s off or more: ours is wrong",
            )
        elif said == "no":
            yield FIX, "not synchronised: timedatectl set-ntp true, or install chrony"
        elif said == "yes":
            yield OK, "synchronised by NTP"
        else:
            yield UNKNOWN, "who keeps it can't be known here: compare `date -u` with a clock that you trust"

    def _address(self) -> Iterator[Finding]:
        for address in self._settings.address:
            if not _is_here(address):
                yield FIX, f"{address} is not this machine's: leave `address` out; clients are told `public`"
        for public in self._settings.public:
            if not self._listening(public):
                yield FIX, f"nothing listens for {public}: `address` needs one of its kind"
            elif _is_here(public):
                yield OK, f"{public} is this machine's own"
            else:
                yield UNKNOWN, f"{public} is elsewhere: whoever has it must send all ports on to here (NAT)"

    def _listening(self, public: str) -> str | None:
        return next((a for a in self._settings.address if kind(a) == kind(public)), None)

    def _port(self) -> Iterator[Finding]:
        s = self._settings
        own = sha256_of(s.certificate)
        for public in s.public:
            at = names.host_port(public, s.port)
            try:
                seen, _ = meet(public, s.port, s.registrar)
            except OSError as error:
                refused = isinstance(error, ConnectionRefusedError)
                why = "refuses: start the service" if refused else f"{error}: open it in the firewall"
                yield FIX if _is_here(public) else UNKNOWN, f"{at} {why}"  # not every NAT leads back to here
            else:
                other = "another certificate: another program has it, or the service did not follow"
                yield (
                    (OK, f"{at} shows our certificate{LOCAL}")
                    if seen == own
                    else (FIX, f"{at} shows {other}")
                )

    def _ports(self) -> Iterator[Finding]:
        """Listens at free ports as the service would, and comes to them by the public address."""
        ports = [port for ports in self._settings.ports for port in ports]
        places = sorted({0, len(ports) // 2, max(0, len(ports) - SAMPLE)})
        for public in self._settings.public:
            results: dict[bool, list[str]] = {True: [], False: []}
            for place in places:
                for port in ports[place : place + SAMPLE]:
                    if listener := _listener(self._listening(public) or public, port):
                        with listener:
                            results[_reaches(public, port, listener)].append(str(port))
                        break
            if bad := ", ".join(results[False]):
                verdict = FIX if _is_here(public) else UNKNOWN  # not every NAT leads back to where one is
                yield verdict, f"{public} can't be reached at {bad}: open all of `ports` in the firewall"
            elif good := ", ".join(results[True]):
                yield OK, f"{public} can be reached at {good}{LOCAL}"
            else:
                yield UNKNOWN, f"{public}: none was free to be tried"

    def _descriptors(self) -> Iterator[Finding]:
        limits = self._settings.limits
        need = 2 * limits.visits + limits.responders + limits.exchanges
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if resource else need
        if 0 <= hard < need:
            yield (
                FIX,
                f"{hard} are fewer than the {need} that [limits] allow: raise ulimit -Hn, or lower `visits`",
            )
        else:
            yield OK, f"{need} are allowed (here; under systemd the unit's LimitNOFILE counts)"

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        uri = uri_of(self._settings.database, "?mode=ro")
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
            yield db

    def _database(self) -> Iterator[Finding]:
        file, user = self._settings.database, self._settings.user
        if not file.exists():
            yield FIX, f"there is no {file}: {called('admin')} add LABEL makes it"
            return
        with self._reading() as db:
            said = db.execute("PRAGMA integrity_check").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
        if said != "ok":
            yield FIX, f"{file} is damaged: {said}: {called('admin')} restore BACKUP"
        elif version > len(MIGRATIONS):
            yield FIX, f"{file} has schema version {version}, we know {len(MIGRATIONS)}: use a newer TAAS"
        elif self._owner and file.stat().st_uid != self._owner[0]:
            yield FIX, f"{file} is not {user}'s: chown {user} {file}*"
        elif file.stat().st_mode & 0o077:
            yield FIX, f"{file} holds secrets, and others may read it: chmod 600 {file}"
        else:
            yield OK, f"{file} is sound"

    def _disk(self) -> Iterator[Finding]:
        for folder in sorted({f.parent for f in (self._settings.database, self._settings.log.file) if f}):
            free = shutil.disk_usage(folder).free
            good = free >= SPARE_BYTES
            yield OK if good else FIX, f"{folder} has {free >> 20} MiB left" + ("" if good else ": make room")

    def _kernel(self) -> Iterator[Finding]:
        splices = can_splice and self._settings.pump != "ring"
        pages = sum(_numbers("fs/pipe-user-pages-soft"))  # 0: as many as one likes
        if splices and 0 < pages < PIPE_PAGES:
            yield FIX, f"few pipes: sysctl fs.pipe-user-pages-soft={PIPE_PAGES}"
        else:
            yield (
                OK,
                "splices octets" if splices else "has no splice for us: octets are copied through memory",
            )
        first, last = _numbers("net/ipv4/ip_local_port_range")[:2] or (0, -1)
        own = set(range(first, last + 1)) - set(_numbers("net/ipv4/ip_local_reserved_ports"))
        if any(not own.isdisjoint(ports) for ports in self._settings.ports):
            remedy = "choose others, or set net.ipv4.ip_local_reserved_ports"
            yield FIX, f"takes ports from {first}-{last} for itself, which overlaps with `ports`: {remedy}"


def _numbers(name: str) -> list[int]:
    """What /proc/sys/NAME says, with all that a range like 1-3 stands for; nothing where it is not there."""
    text = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/sys", name).read_text()
    pairs = [word.partition("-") for word in text.replace(",", " ").split()]
    return [number for first, _, last in pairs for number in range(int(first), int(last or first) + 1)]


def sha256_of(file: Path) -> str:
    """Of the first certificate in FILE."""
    if not (pem := PEM.search(file.read_text(encoding="utf-8", errors="replace"))):
        raise Refused(f"{file} holds no PEM certificate")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem[0])).hexdigest()


def _facts(server: ssl.SSLContext, file: Path, name: str) -> dict[str, Any]:
    """What a client reads in the certificate in FILE that asks for NAME, and trusts whoever signed it."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(file)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(down, up, server_hostname=name), server.wrap_bio(up, down, server_side=True))
    for end in ends * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return ends[0].getpeercert() or {}


def meet(address: str, port: int, name: str) -> tuple[str, http.client.HTTPResponse | None]:
    """The SHA-256 of the certificate that NAME has there, and what GET / is answered, if that is HTTP."""
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE  # the caller looks at it
    with (
        socket.create_connection((address, port), PATIENCE_SECONDS) as sock,
        anybody.wrap_socket(sock, server_hostname=name) as tls,
    ):
        seen = hashlib.sha256(tls.getpeercert(binary_form=True) or b"").hexdigest()
        web = http.client.HTTPConnection(name, port)
        web.sock = tls
        try:
            web.request("GET", "/")
            return seen, web.getresponse()
        except (OSError, http.client.HTTPException):
            return seen, None


def _listener(address: str, port: int) -> socket.socket | None:
    """A socket that listens there as the service's would, if that is this machine's, free and allowed."""
    with contextlib.suppress(OSError):
        return open_port(address, port, Limits())
    return None


def _is_here(address: str) -> bool:
    listener = _listener(address, 0)
    if listener:
        listener.close()
    return listener is not None


def _reaches(address: str, port: int, listener: socket.socket) -> bool:
    """Whether who connects to ADDRESS and PORT comes to LISTENER, and not to somebody else's."""
    word = secrets.token_bytes(16)
    with contextlib.suppress(OSError), socket.create_connection((address, port), PATIENCE_SECONDS) as sock:
        sock.sendall(word)
        listener.settimeout(PATIENCE_SECONDS)
        arrived, _ = listener.accept()
        with arrived:
            arrived.settimeout(PATIENCE_SECONDS)
            return arrived.recv(len(word), socket.MSG_WAITALL) == word
    return False


def kind(address: str) -> str:
    return "AAAA" if ":" in address else "A"
