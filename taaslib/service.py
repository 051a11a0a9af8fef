"""The whole service, built from a Config: the only place that knows everything.

Knows no detail: what each part does stands in its own file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from taaslib import __version__
from taaslib.config import Config, ConfigError
from taaslib.frontdoor import FrontDoor, Passage
from taaslib.journal import Journal
from taaslib.leases import Leases
from taaslib.listener import Listener, open_port
from taaslib.lobby import Lobby
from taaslib.loop import Handler, Loop, Timer
from taaslib.names import Peer, host_port
from taaslib.outcomes import Outcome
from taaslib.ownership import Owner, owner_of_files, uid_gid
from taaslib.pump import Pools, can_splice
from taaslib.redirector import Redirector
from taaslib.registrar import Registrar
from taaslib.store import Store, StoreError

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_STORE_POLL_SECONDS = 1.0  # a change by taas_admin.py is followed within 2 s
_BUSY_MS = 50  # what cannot be had from the database in that time is a 503


class CannotStart(ConfigError):
    """taas.ini is good, and the service can't begin all the same."""


class Service:
    """Listens from construction on.  Raises ConfigError, CannotStart."""

    def __init__(
        self,
        config: Config,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self._stopping = False
        self._store_broken = False
        raise_descriptor_limit()
        self.journal = _open_journal(config, clock)
        self.loop = Loop(self._on_fault, clock)
        contexts = tls_contexts(config)
        self._listeners: list[Listener] = []
        with self._closing_on_failure():
            for address in config.address:
                self._listen(address)
            for address in config.address if config.http_port else ():
                self._listen(address, config.http_port)
            _drop_privileges(config, self.journal)
            self.store = _open_store(config)
            self._build(config, contexts, wall_clock)

    def _build(
        self, config: Config, contexts: dict[str, ssl.SSLContext], wall_clock: Callable[[], float]
    ) -> None:
        limits, loop, journal = config.limits, self.loop, self.journal
        self._pools = Pools(config.pump)
        self.lobby = Lobby(
            loop, self._pools, journal, wall_clock, limits, on_served=lambda label: self.leases.serve(label)
        )
        self.leases = Leases(
            loop,
            self.store,
            self.lobby,
            journal,
            wall_clock,
            self._on_exhausted,
            limits,
            config.address,
            config.ports,
            config.claim,
        )
        self.registrar = Registrar(
            self.store, self.leases, self.lobby, loop.clock, wall_clock, self._advertise, config.claim, limits
        )
        redirector = Redirector(
            self.store.mode,
            self.lobby.served,
            self.leases.port_q,
            self._advertise,
            config.servers,
            config.location,
            limits.retry_after,
        )
        self.door = FrontDoor(
            loop,
            contexts,
            journal,
            wall_clock,
            self.registrar.answer,
            redirector.answer,
            self._label_of_host,
            self._passage,
            self.lobby.welcome_initiator,
            self.leases.welcome,
            self.leases.release,
            lambda: self.port,
            (config.registrar, config.servers),
            limits,
        )
        self._note_start()
        self.loop.call_later(_STORE_POLL_SECONDS, self._follow_store)

    @property
    def port(self) -> int:
        """The front door's port; with port 0 in the Config, the one that the kernel chose."""
        return self._listeners[0].port

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        with self._signals():
            while not self._stopping:
                self.loop.turn()
        self.close()

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        """Close every port and connection, in order."""
        for listener in self._listeners:
            listener.close()
        self.door.close()
        self.leases.close()
        self.lobby.close()
        self._pools.close()
        self.store.close()
        self.loop.close()
        self.journal.note(Outcome.STOPPED)
        self.journal.close()

    def reload_certificate(self) -> None:
        """Take over a renewed certificate; keep the old one if the new can't be used."""
        try:
            self.door.contexts = tls_contexts(self.config)
        except ConfigError as error:
            self.journal.note(Outcome.WARNING, cause=error)
        else:
            self.journal.note(Outcome.FOLLOWED, what="certificate")

    def _listen(self, address: str, http_port: int | None = None) -> None:
        """Listen for TLS on the service's port, or for plain HTTP on HTTP_PORT."""
        port = http_port or (self._listeners[0].port if self._listeners else self.config.port)
        try:
            sock = open_port(address, port)
        except OSError as error:
            key, where = "http-port" if http_port else "port", host_port(address, port)
            why = f"can't listen on {where}: {error.strerror}"
            raise CannotStart(self.config.path, f"[taas] address, {key}", why) from None
        plain = http_port is not None

        def welcome(sock: socket.socket, peer: Peer) -> None:
            self.door.welcome(plain, sock, peer)  # there is no door yet

        self._listeners.append(Listener(self.loop, sock, welcome, self._on_exhausted))

    def _advertise(self, peer: Peer) -> str:
        """The public address of the family that PEER came by, or the very one that it came to."""
        return self.config.public_address(6 if ":" in peer.local else 4) or peer.local

    def _passage(self, label: str | None) -> Passage:
        """Whose TLS a connection is that asks for LABEL's name, or (None) for one that is nobody's here."""
        try:
            if label is None:  # not ours; but where nothing is passed through, old clients notice no change
                return Passage.CLOSED if self.store.passes_through() else Passage.OURS
            mode = self.store.mode(label)
        except StoreError:  # ours, which answers 503
            return Passage.OURS
        if mode != "redirect" and self.lobby.served(label):
            return Passage.THROUGH
        return Passage.CLOSED if mode == "passthrough" else Passage.OURS

    def _label_of_host(self, host: str) -> str | None:
        with contextlib.suppress(StoreError):
            return self.store.label_of_host(host)
        return None

    def _follow_store(self) -> None:
        self.loop.call_later(_STORE_POLL_SECONDS, self._follow_store)
        try:
            if self.store.changed() or self._store_broken:
                self.leases.follow_store()
                self.lobby.revoke(self.leases.holds, self.leases.carries)
                self.journal.note(Outcome.FOLLOWED, what="database", credentials=self.store.count())
                self._store_broken = False
        except StoreError as error:
            if not self._store_broken:
                self.journal.note(Outcome.STORE_BROKEN, cause=error)
            self._store_broken = True

    def _on_fault(self, owner: Handler | Timer) -> None:
        self.journal.note(Outcome.FAULT, owner=repr(owner), traceback=traceback.format_exc())
        if not isinstance(owner, Timer):
            owner.abort()

    def _on_exhausted(self, error: OSError) -> None:
        self.journal.note(Outcome.OUT_OF_DESCRIPTORS, cause=error.strerror)

    def _note_start(self) -> None:
        try:
            credentials = self.store.count()
        except StoreError as error:
            raise CannotStart(self.config.path, "[taas] database", error) from None
        ports = [self.port, self.config.http_port] if self.config.http_port else [self.port]
        listens = ",".join(host_port(address, port) for port in ports for address in self.config.address)
        pump = "splice" if self._pools.splices else "ring"
        self.journal.note(
            Outcome.STARTED, version=__version__, listens=listens, credentials=credentials, pump=pump
        )
        if not credentials:
            self.journal.note(Outcome.WARNING, cause="no credential yet: python taas_admin.py add LABEL")
        if not self.config.user and hasattr(os, "geteuid") and os.geteuid() == 0:
            cause = "running as root: name a user in [taas] user, and the service drops to it"
            self.journal.note(Outcome.WARNING, cause=cause)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop the loop's turns, SIGHUP reloads the certificate."""
        wake = _Wake(self.loop)
        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop}
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = self.reload_certificate
        old = {
            number: signal.signal(number, lambda *_, call=call: call()) for number, call in handlers.items()
        }
        try:
            hold_signals(False)
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            wake.close()

    @contextlib.contextmanager
    def _closing_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            for listener in self._listeners:
                listener.close()
            self.loop.close()
            self.journal.close()
            raise


class _Wake(Handler):
    """Ends the loop's sleep when a signal comes: the interpreter writes its number into a socket."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._old = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        loop.watch(self._reader.fileno(), self, read=True, write=False)

    def on_readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(512)

    def close(self) -> None:
        signal.set_wakeup_fd(self._old)
        self._loop.forget(self._reader.fileno())
        self._reader.close()
        self._writer.close()


def hold_signals(held: bool) -> None:
    """Let the signals that steer the service wait (while it starts), or come."""
    if hasattr(signal, "pthread_sigmask"):
        how = signal.SIG_BLOCK if held else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def check(config: Config) -> None:
    """All that can be known before a port opens.  Raises ConfigError, CannotStart."""
    tls_contexts(config)
    if config.user:
        try:
            uid_gid(config.user)
        except LookupError as error:
            raise ConfigError(config.path, "[taas] user", error) from None
    if config.pump == "splice" and not can_splice:
        why = "this system or Python has no splice; use auto or ring"
        raise ConfigError(config.path, "[taas] pump", why)
    if not config.database.parent.is_dir():
        raise ConfigError(config.path, "[taas] database", f"no folder {config.database.parent}")
    if config.database.exists():
        _open_store(config).close()
    log = config.log.file
    if log and (log.is_dir() or not os.access(log if log.exists() else log.parent, os.W_OK)):
        raise ConfigError(config.path, "[log] file", f"can't write {log}")


def tls_contexts(config: Config) -> dict[str, ssl.SSLContext]:
    """The front door's TLS by server name, "" being all but the [tls HOST] ones.  Raises ConfigError."""
    contexts = {"": _tls_context(config, "taas", config.certificate, config.key)}
    for host, files in config.tls.items():
        contexts[host] = _tls_context(config, f"tls {host}", *files)
    return contexts


def _tls_context(config: Config, section: str, certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and up, ALPN http/1.1, with the files that SECTION names."""
    for name, file in (("certificate", certificate), ("key", key)):
        try:
            file.open("rb").close()
        except OSError as error:
            hint = "; python make_cert.py makes one" if isinstance(error, FileNotFoundError) else ""
            why = f"{file}: {error.strerror}{hint}"
            raise ConfigError(config.path, f"[{section}] {name}", why) from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.num_tickets = 0  # OP_NO_TICKET is for TLS 1.2; two tickets cost 15% of a handshake
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        why = "the key does not belong to the certificate" if "MISMATCH" in str(error) else str(error)
        where = f"[{section}] certificate, key"
        raise ConfigError(config.path, where, f"{certificate}, {key}: {why}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; the service has nobody to ask for its password")


def raise_descriptor_limit() -> None:
    """As many descriptors as the system lets us have: a live pair needs two, and more while it stalls."""
    if resource:
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open_journal(config: Config, clock: Callable[[], float]) -> Journal:
    log = config.log
    try:
        journal = Journal(log.file, log.format, log.level, log.lines_per_minute, clock)
        if log.file and (owner := _owner(config)):
            os.chown(log.file, *owner, follow_symlinks=False)
    except OSError as error:
        raise CannotStart(config.path, "[log] file", f"{log.file}: {error.strerror}") from None
    return journal


def _open_store(config: Config) -> Store:
    try:
        return Store(config.database, busy_ms=_BUSY_MS, synchronous="NORMAL", owner=_owner(config))
    except StoreError as error:
        raise CannotStart(config.path, "[taas] database", error) from None


def _owner(config: Config) -> Owner | None:
    try:
        return owner_of_files(config.user)
    except LookupError as error:
        raise ConfigError(config.path, "[taas] user", error) from None


def _drop_privileges(config: Config, journal: Journal) -> None:
    """Become `user` for good, and say what it will miss.  Raises ConfigError, CannotStart."""
    owner = _owner(config)
    if not owner:
        if config.user and uid_gid(config.user)[0] != os.geteuid():
            raise CannotStart(config.path, "[taas] user", f"only root can become {config.user}")
        return
    _open_store(config).close()  # creates it and leaves it to the user
    uid, gid = owner
    os.initgroups(config.user, gid)
    os.setgid(gid)
    os.setuid(uid)
    if not os.access(config.key, os.R_OK):
        cause = f"{config.user} can't read {config.key}: a renewed certificate will need a restart"
        journal.note(Outcome.WARNING, cause=cause)
    if not os.access(config.database, os.R_OK | os.W_OK):
        why = f"{config.user} can't reach or write {config.database}; give it a folder of its own, as in:"
        where = "[taas] database"
        raise CannotStart(config.path, where, f"{why} install -d -o {config.user} /var/lib/taas")
