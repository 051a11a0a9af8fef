"""The whole service, built from a Config: the only place that knows everything.

Knows no detail: what each part does stands in its own file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import ssl
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Protocol

from taaslib import __version__, sockets, startup
from taaslib.config import Config, ConfigError, load
from taaslib.frontdoor import FrontDoor, Passage
from taaslib.http1 import Request
from taaslib.journal import Journal
from taaslib.leases import Leases
from taaslib.listener import Listener, open_port
from taaslib.lobby import Lobby
from taaslib.loop import Handler, Loop, Timer
from taaslib.names import Peer, host_port
from taaslib.outcomes import Answer, Outcome
from taaslib.pump import Pools
from taaslib.redirector import Redirector
from taaslib.registrar import Registrar
from taaslib.sockets import Socket
from taaslib.startup import CannotStart, certificate_files, tls_contexts
from taaslib.store import StoreError
from taaslib.supervisor import Manager, Signals, StallWatch

_STORE_POLL_SECONDS = 1.0  # a change by taas_admin.py is followed within 2 s
_CERTIFICATE_SECONDS = 60.0  # between two looks at the certificates' files
_DRAIN_CHECK_SECONDS = 0.1
_STALL_SECONDS = 2.0  # a turn that takes longer is noted
_FIXED = ("address", "port", "http_port", "user", "database", "socket", "metrics")  # until a restart

class Operator(Protocol):
    """Who opens what the operator alone may ask, and answers there: the service serves without, too."""
    def open(self, service: Service) -> list[socket.socket]: ...
    def answer(self, request: Request, peer: Peer) -> Answer: ...

class Service:
    """Listens from construction on.  Raises ConfigError, CannotStart."""
    def __init__(
        self, config: Config, clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time, operator: Operator | None = None,
    ) -> None:
        self.config = config
        self._stopping = self.draining = False
        self.store_broken = ""  # what is wrong with it
        self.until_restart: list[str] = []  # options that a reload could not follow
        startup.raise_descriptor_limit()
        self.manager = Manager()
        self.journal = Journal(clock=clock)
        startup.configure_journal(self.journal, config)
        self.loop = Loop(self._on_fault, clock)
        self._files_seen = certificate_files(config)
        contexts = tls_contexts(config)
        self._listeners: list[Listener] = []
        self._listeners_of_operator: list[Listener] = []  # heard as long as anything of us lives

        def answer(sock: Socket, peer: Peer) -> None:
            assert operator
            self.door.welcome(operator.answer, sock, peer)  # there is no door yet

        with self._closing_on_failure():
            for address in config.address:
                self._listen(address)
            for address in config.address if config.http_port else ():
                self._listen(address, config.http_port)
            for sock in operator.open(self) if operator else ():
                self._listeners_of_operator.append(Listener(self.loop, sock, answer, self._on_exhausted))
            startup.drop_privileges(config)
            self.store = startup.open_store(config)
            self._build(config, contexts, wall_clock)

    def _build(self, c: Config, contexts: dict[str, ssl.SSLContext], wall_clock: Callable[[], float]) -> None:
        limits, loop, journal, store, told = c.limits, self.loop, self.journal, self.store, self._advertise
        self.pools = Pools(c.pump)
        lobby = self.lobby = Lobby(
            loop, self.pools, journal, wall_clock, limits, on_served=lambda label: self.leases.serve(label)
        )
        leases = self.leases = Leases(
            loop, store, lobby, journal, wall_clock, self._on_exhausted, limits, c.address, c.ports, c.claim
        )
        self.registrar = Registrar(store, leases, lobby, loop.clock, wall_clock, told, c.claim, limits)
        self.redirector = Redirector(
            store.mode, lobby.served, leases.port_q, told, c.servers, c.location, limits
        )
        self.door = FrontDoor(
            loop, contexts, journal, wall_clock, self.registrar.answer, self.redirector.answer,
            self._label_of_host, self._passage, lobby.welcome_initiator, leases.welcome, leases.release,
            lambda: self.port, (c.registrar, c.servers), limits,
        )  # fmt: skip
        self._note_start()
        loop.call_later(_STORE_POLL_SECONDS, self._follow_store)
        loop.call_later(_CERTIFICATE_SECONDS, self._follow_certificates)

    @property
    def port(self) -> int:
        """The front door's port; with port 0 in the Config, the one that the kernel chose."""
        return self._listeners[0].port

    @property
    def listens(self) -> list[str]:
        """The front door's addresses and ports."""
        ports = [self.port, self.config.http_port] if self.config.http_port else [self.port]
        return [host_port(address, port) for port in ports for address in self.config.address]

    def run(self) -> None:
        """Serve until a signal ends it."""
        calls: dict[int, Callable[[], object]] = {signal.SIGINT: self.stop, signal.SIGTERM: self.drain}
        if hasattr(signal, "SIGHUP"):
            calls[signal.SIGHUP] = self.reload
        with Signals(self.loop, calls), StallWatch(self.loop, self.journal, _STALL_SECONDS):
            self._feed_watchdog()
            self.manager.tell("READY=1")
            while not self._stopping:
                self.loop.turn()
        self.close()

    def stop(self) -> None:
        """End with this turn."""
        self._stopping = True

    def drain(self) -> None:
        """Take nobody new; end with the last live pair, or when `drain` is over, or when told once more."""
        if self.draining:
            self.stop()
            return
        self.draining = True
        self.manager.tell("STOPPING=1")
        self.journal.note(Outcome.DRAINING, pairs=len(self.lobby.relays))
        for listener in self._listeners:
            listener.close()
        self.door.drain()
        self.leases.close()
        self.lobby.drain()
        self.loop.call_later(self.config.limits.drain, self.stop)
        self._stop_when_empty()

    def _stop_when_empty(self) -> None:
        if self.lobby.relays or self.door.count:
            self.loop.call_later(_DRAIN_CHECK_SECONDS, self._stop_when_empty)
        else:
            self.stop()

    def _feed_watchdog(self) -> None:
        if self.manager.watchdog_seconds:
            self.manager.tell("WATCHDOG=1")
            self.loop.call_later(self.manager.watchdog_seconds / 2, self._feed_watchdog)

    def reload(self) -> str:
        """Follow taas.ini and the certificates; where they are no good, stay as we are and return why."""
        if self.draining:
            return "the service is about to end"
        wrong, self.until_restart = "", []
        self.manager.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            new = load(self.config.path)
            for name in _FIXED:
                old = getattr(self.config, name)
                if getattr(new, name) != old:
                    section = "admin" if name in ("socket", "metrics") else "taas"
                    option = f"[{section}] {name.replace('_', '-')}"
                    self.until_restart.append(option)
                    self.journal.note(Outcome.WARNING, cause=f"{option} stays as it was until a restart")
                    new = dataclasses.replace(new, **{name: old})
            files_seen, contexts = certificate_files(new), startup.check(new)
            startup.configure_journal(self.journal, new)
        except ConfigError as error:
            wrong = str(error)
            self.journal.note(Outcome.WARNING, cause=f"nothing is changed: {wrong}")
        else:
            self._files_seen, self.door.contexts = files_seen, contexts
            self._follow_config(new)
            self.journal.note(Outcome.FOLLOWED, what="configuration")
        self.manager.tell("READY=1")
        return wrong

    def _follow_config(self, new: Config) -> None:
        limits = self.config.limits
        limits.become(new.limits)  # everybody looks at this one
        self.config = dataclasses.replace(new, limits=limits)
        self.door.names = new.registrar, new.servers
        self.redirector.servers, self.redirector.location = new.servers, new.location
        self.leases.claim = self.registrar.claim = new.claim
        self.leases.ports = new.ports
        self.pools.follow(new.pump)
        for listener in [*self._listeners, *self.leases.listeners]:
            sockets.tune(listener.sock, limits)

    def _follow_certificates(self) -> None:
        """Take over renewed certificates; keep the old ones while the new can't be used."""
        self.loop.call_later(_CERTIFICATE_SECONDS, self._follow_certificates)
        seen = certificate_files(self.config)
        if seen == self._files_seen:
            return
        self._files_seen = seen
        try:
            self.door.contexts = tls_contexts(self.config)
        except ConfigError as error:
            self.journal.note(Outcome.WARNING, cause=error)
        else:
            self.journal.note(Outcome.FOLLOWED, what="certificate")

    def close(self) -> None:
        """Close every port and connection, in order."""
        for listener in [*self._listeners, *self._listeners_of_operator]:
            listener.close()
        self.door.close()
        self.leases.close()
        self.lobby.close()
        self.pools.close()
        self.store.close()
        self.loop.close()
        self.journal.note(Outcome.STOPPED)
        self.journal.close()

    def _listen(self, address: str, http_port: int | None = None) -> None:
        """Listen for TLS on the service's port, or for plain HTTP on HTTP_PORT."""
        port = http_port or (self._listeners[0].port if self._listeners else self.config.port)
        try:
            sock = open_port(address, port, self.config.limits)
        except OSError as error:
            key, where = "http-port" if http_port else "port", host_port(address, port)
            why = f"can't listen on {where}: {error.strerror}"
            raise CannotStart(self.config.path, f"[taas] address, {key}", why) from None

        def welcome(sock: Socket, peer: Peer) -> None:
            self.door.welcome(self.door.upgrade if http_port else None, sock, peer)  # there is no door yet

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
        sockets.reserve.cache_clear()
        try:
            if self.store.changed() or self.store_broken:
                self.leases.follow_store()
                self.lobby.revoke(self.leases.holds, self.leases.carries)
                labels = {label for label, *_ in self.store.labels()}
                self.lobby.recorder.keep_only(labels, int(self.lobby.wall_clock() * 1000))
                self.journal.note(Outcome.FOLLOWED, what="database", credentials=self.store.count())
                self.store_broken = ""
        except StoreError as error:
            if not self.store_broken:
                self.journal.note(Outcome.STORE_BROKEN, cause=error)
            self.store_broken = str(error)

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
        pump = "splice" if self.pools.splices else "ring"
        facts = {"listens": ",".join(self.listens), "credentials": credentials, "pump": pump}
        self.journal.note(Outcome.STARTED, version=__version__, **facts)
        if not credentials:
            self.journal.note(Outcome.WARNING, cause="no credential yet: python taas_admin.py add LABEL")
        if not self.config.user and hasattr(os, "geteuid") and os.geteuid() == 0:
            cause = "running as root: name a user in [taas] user, and the service drops to it"
            self.journal.note(Outcome.WARNING, cause=cause)

    @contextlib.contextmanager
    def _closing_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            for listener in [*self._listeners, *self._listeners_of_operator]:
                listener.close()
            self.loop.close()
            self.journal.close()
            raise
