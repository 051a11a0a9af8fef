"""The runtime socket: what the service does, as JSON and for Prometheus; the operator's kick, drain, reload.

Requests -> Answers like the registrar; the service's own loop, parser and exchanges bring and take them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from taaslib import __version__, names, sockets
from taaslib.http1 import Request, Response
from taaslib.listener import OPERATOR, open_port
from taaslib.names import Peer
from taaslib.outcomes import Answer, Outcome
from taaslib.service import Service
from taaslib.startup import CannotStart, owner
from taaslib.store import StoreError

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_PAGE = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 0
_PATH = re.compile("/(status|pairs|pairings|metrics|healthz|ready|kick|drain|reload)(?:/([a-z0-9-]+))?")
Query = list[tuple[str, str]]
_FOR_ALL = ("metrics", "healthz", "ready")  # what the TCP port tells


class Wrong(Exception):
    """The status of the answer, what it says, and further fields."""


class Runtime:
    """An Operator of the Service that it is given to."""

    def open(self, service: Service) -> list[socket.socket]:
        """The socket, for its owner alone, and the TCP port, if there is to be one.  Raises CannotStart."""
        self._service, self._started = service, service.loop.clock()
        self._modes: list[tuple[str, str | None, int | None]] = []  # of all labels, when they were last read
        self._told = -math.inf, ""  # when the metrics were last made, and what they were
        config, socks = service.config, []
        if config.metrics:
            try:
                socks.append(open_port(*config.metrics, config.limits))
            except OSError as error:
                why = f"can't listen on {names.host_port(*config.metrics)}: {error.strerror}"
                raise CannotStart(config.path, "[admin] metrics", why) from None
        if config.socket and hasattr(socket, "AF_UNIX"):
            try:
                socks.append(_open_unix(config.socket, owner(config)))
            except OSError as error:  # no visitor needs it
                cause = f"[admin] socket: {config.socket}: {error.strerror or error}"
                service.journal.note(Outcome.WARNING, cause=cause)
        return list(socks)

    def answer(self, request: Request, peer: Peer) -> Answer:
        outcome = Outcome.STEERED if request.method == "POST" else Outcome.ASKED
        try:
            body = self._answer(request, peer is OPERATOR)
        except Wrong as wrong:
            status, why, *fields = wrong.args
            return Answer(Outcome.ASKED, _json({"error": why}, status, *fields), cause=why)
        if isinstance(body, str):
            return Answer(outcome, Response(200, body.encode(), _PROMETHEUS))
        return Answer(outcome, _json(body), cause=request.target if outcome is Outcome.STEERED else None)

    def _answer(self, request: Request, local: bool) -> Any:
        path = _PATH.fullmatch(request.path)
        if not local and not _is_local(request.authority):  # the name of somebody's page may lead here
            raise Wrong(421, "ask for an IP address or localhost")
        if not path or not (local or path[1] in _FOR_ALL) or (path[1] == "pairings") != bool(path[2]):
            raise Wrong(404, "nothing is here; see docs/operations.md")
        posts = {"kick": self._kick, "drain": self._drain, "reload": self._reload}
        if (request.method == "POST") != (path[1] in posts) or request.method not in ("GET", "HEAD", "POST"):
            known = "POST" if path[1] in posts else "GET"
            raise Wrong(405, f"the method here is {known}", ("Allow", known))
        if post := posts.get(path[1]):
            return post(parse_qsl(request.target.partition("?")[2]))
        if path[2]:
            return self._pairings(path[2])
        if path[1] == "metrics":
            return self._metrics() if local else self._recent_metrics()
        gets = {"status": self._status, "pairs": self._pairs, "ready": self._ready}
        return gets[path[1]]() if path[1] in gets else "ok\n"  # healthz: the loop turns

    def _labels(self) -> list[tuple[str, str | None, int | None]]:
        """Label, mode and clock of all that the store has, or had when it could last be read.

        And of those that it has no more, and whose pairs are still counted: their mode is None.
        """
        with contextlib.suppress(StoreError):
            self._modes = list(self._service.store.labels())
        known = {label for label, *_ in self._modes}
        return self._modes + [(each, None, None) for each in self._service.lobby.recorder.labels - known]

    def _status(self) -> dict[str, Any]:
        live: dict[str, list[int]] = {}
        for record, _age, *octets in self._service.lobby.live():
            sums = live.setdefault(record.right.label, [0, 0])
            for at, more in enumerate(octets):
                sums[at] += more
        labels, now = [], int(self._service.lobby.wall_clock() * 1000)
        for label, mode, ahead in self._labels():
            counts, waiting = self._service.lobby.recorder.counts(label), self._service.lobby.waiting(label)
            to_initiator, to_responder = live.get(label, (0, 0))
            labels.append({
                "label": label, "mode": mode, "port": self._service.leases.q_of(label), "waiting": waiting,
                "live": counts.live, "pairs": counts.pairs,
                "to_initiator": counts.to_initiator + to_initiator,
                "to_responder": counts.to_responder + to_responder,
                "last_seen": now if waiting or counts.live else counts.seen,
                "agent": counts.agent, "agent_version": counts.agent_version,
                "clock_ahead_seconds": ahead,
            })  # fmt: skip
        service = self._service
        about = {
            "version": __version__,
            "uptime_seconds": round(service.loop.clock() - self._started, 1),
            "ready": not self._unready(),
            "draining": service.draining,
            "pump": "splice" if service.pools.splices else "ring",
            "listens": service.listens,
        }
        return about | {"limits": self._limits(), "labels": labels}

    def _unready(self) -> str:
        """Why the service would not serve who comes now ("": it would)."""
        if self._service.draining:
            return "the service is about to end"
        most = sockets.most_descriptors()
        return "no descriptors are left" if 0 < most <= _descriptors() else self._service.store_broken

    def _limits(self) -> dict[str, dict[str, int]]:
        tally, limits, leases = self._service.lobby.tally, self._service.lobby.limits, self._service.leases
        uses = {
            "visits": (tally.seat("visits").taken, limits.visits),
            "responders": (tally.seat("responders").taken, limits.responders),
            "exchanges": (self._service.door.count, limits.exchanges),
            "ports": (leases.count, sum(map(len, leases.ports))),
            "descriptors": (_descriptors(), sockets.most_descriptors()),
        }
        return {name: {"use": use, "limit": limit} for name, (use, limit) in uses.items()}

    def _pairs(self) -> dict[str, Any]:
        pairs = []
        for record, age, to_initiator, to_responder in self._service.lobby.live():
            octets = {"to_initiator": to_initiator, "to_responder": to_responder, "seconds": round(age, 3)}
            pairs.append(record.document() | octets | {"pair": record.number, "label": record.right.label})
        return {"pairs": pairs}

    def _ready(self) -> str:
        if why := self._unready():
            raise Wrong(503, why)
        return "ready\n"

    def _pairings(self, label: str) -> list[dict[str, Any]]:
        if label not in (each for each, *_ in self._labels()):
            raise Wrong(404, f"there is no label {label}")
        return [record.document() for record in self._service.lobby.recorder.records(label)]

    def _kick(self, whom: Query) -> dict[str, int]:
        match whom:
            case [("label", label)]:
                kicked = self._service.lobby.kick(label=label)
            case [("pair", number)] if re.fullmatch("[0-9]{1,18}", number):
                kicked = self._service.lobby.kick(number=int(number))
            case _:
                raise Wrong(400, "kick?pair=NUMBER or kick?label=LABEL")
        if not kicked:
            raise Wrong(404, "no pair of that number or label is live")
        return {"kicked": kicked}

    def _drain(self, _: Query) -> dict[str, bool]:
        if not self._service.draining:  # a second one would end live pairs
            self._service.loop.call_later(0, self._service.drain)  # behind this answer
        return {"draining": True}

    def _reload(self, _: Query) -> dict[str, Any]:
        if wrong := self._service.reload():
            raise Wrong(409, wrong)
        return {"reloaded": True, "until_restart": self._service.until_restart}

    def _recent_metrics(self) -> str:
        """At most one a second is made: everybody on this machine may ask for them."""
        then, text = self._told
        if self._service.loop.clock() - then >= 1:
            text = self._metrics()
            self._told = self._service.loop.clock(), text
        return text

    def _metrics(self) -> str:
        status, events = self._status(), self._service.journal.counts
        limits, labels = status["limits"], status["labels"]
        rows: list[tuple[str, str, float]] = [  # name, labels in Prometheus' text format, value
            ("taas_build_info", f'version="{__version__}"', 1),
            ("taas_uptime_seconds", "", status["uptime_seconds"]),
            ("taas_ready", "", status["ready"]),
            ("taas_draining", "", status["draining"]),
            ("process_cpu_seconds_total", "", sum(os.times()[:2])),
            ("process_resident_memory_bytes", "", _resident()),
            ("process_open_fds", "", limits["descriptors"]["use"]),
        ]
        rows += [("taas_events_total", f'event="{e.value}"', count) for e, count in events.items()]
        for name, key in (("taas_limit_use", "use"), ("taas_limit", "limit")):
            rows += [(name, f'limit="{limit}"', limits[limit][key]) for limit in limits]
        for name, key in (("taas_waiting", "waiting"), ("taas_live", "live"), ("taas_pairs_total", "pairs")):
            rows += [(name, f'label="{of["label"]}"', of[key]) for of in labels]
        for to in ("initiator", "responder"):
            what = f'label="%s",to="{to}"'
            rows += [("taas_octets_total", what % of["label"], of[f"to_{to}"]) for of in labels]
        return "".join(_lines(rows))


def _open_unix(path: Path, owner: tuple[int, int] | None) -> socket.socket:
    """A socket that listens at PATH, for its OWNER (uid, gid) alone, in place of one that was left.

    Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "it is there, and no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.setblocking(False)
            if asking.connect_ex(str(path)) != errno.ECONNREFUSED:
                raise FileExistsError(errno.EEXIST, "another service listens there")
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.setblocking(False)
        sock.bind(str(path))
        if owner:
            os.chown(path, *owner, follow_symlinks=False)
        sock.listen()
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


def _lines(rows: list[tuple[str, str, float]]) -> Iterator[str]:
    family = ""
    for name, labels, value in rows:
        if name != family:
            yield f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}\n"
        family = name
        yield f"{name}{{{labels}}} {value:.15g}\n" if labels else f"{name} {value:.15g}\n"


def _json(document: Any, status: int = 200, *fields: tuple[str, str]) -> Response:
    return Response(status, json.dumps(document).encode() + b"\n", "application/json", fields)


def _is_local(authority: str) -> bool:
    with contextlib.suppress(ValueError):
        host = names.host_of(authority).strip("[]")
        return host == "localhost" or names.is_address(host)
    return False


def _descriptors() -> int:
    with contextlib.suppress(OSError):
        return sum(1 for _ in Path("/proc/self/fd").iterdir())
    return 0


def _resident() -> int:
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    return 0
