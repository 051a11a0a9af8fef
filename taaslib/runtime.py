"""The runtime socket: what the service does, as JSON and for Prometheus; the operator's kick, drain, reload.

A function from Request to Answer like the registrar: the front door brings both.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from taaslib import __version__, names, sockets
from taaslib.frontdoor import FrontDoor
from taaslib.http1 import Request, Response
from taaslib.leases import Leases
from taaslib.listener import OPERATOR
from taaslib.lobby import Lobby
from taaslib.names import Peer
from taaslib.outcomes import Answer, Outcome
from taaslib.store import Store, StoreError

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_PAGE = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 0
_PATH = re.compile("/(status|pairs|pairings|metrics|healthz|ready|kick|drain|reload)(?:/([a-z0-9-]+))?")
_FOR_ALL = ("metrics", "healthz", "ready")  # what the TCP port tells

class Wrong(Exception):
    """The status of the answer, and what it says."""

@dataclass(eq=False)
class Runtime:
    """ABOUT tells what the service says of itself, UNREADY why it would not serve ("": it would).

    RELOAD returns what is wrong with taas.ini ("": nothing, and it is followed).
    """

    store: Store
    lobby: Lobby
    leases: Leases
    door: FrontDoor
    about: Callable[[], dict[str, Any]]
    unready: Callable[[], str]
    drain: Callable[[], None]
    reload: Callable[[], str]

    def answer(self, request: Request, peer: Peer) -> Answer:
        outcome = Outcome.STEERED if request.method == "POST" else Outcome.ASKED
        try:
            body = self._answer(request, peer is OPERATOR)
        except StoreError as error:
            return Answer(Outcome.STORE_BUSY, _json({"error": str(error)}, 503), cause=str(error))
        except Wrong as wrong:
            status, why = wrong.args
            return Answer(Outcome.ASKED, _json({"error": why}, status), cause=why)
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
            raise Wrong(405, f"the method here is {'POST' if path[1] in posts else 'GET'}")
        if post := posts.get(path[1]):
            return post(dict(parse_qsl(request.target.partition("?")[2])))
        if path[2]:
            return [record.document() for record in self.lobby.recorder.records(path[2])]
        gets = {"status": self._status, "pairs": self._pairs, "metrics": self._metrics, "ready": self._ready}
        return gets[path[1]]() if path[1] in gets else "ok\n"  # healthz: the loop turns

    def _status(self) -> dict[str, Any]:
        live: dict[str, list[int]] = {}
        for record, _age in self.lobby.live():
            sums = live.setdefault(record.label, [0, 0, 0])
            for at, more in enumerate((1, record.to_initiator, record.to_responder)):
                sums[at] += more
        labels, now = [], int(self.lobby.wall_clock() * 1000)
        for label, mode, ahead in self.store.labels():
            counts, waiting = self.lobby.recorder.counts(label), self.lobby.waiting(label)
            pairs, to_initiator, to_responder = live.get(label, (0, 0, 0))
            labels.append({
                "label": label, "mode": mode, "port": self.leases.q_of(label), "waiting": waiting,
                "live": pairs, "pairs": counts.pairs, "to_initiator": counts.to_initiator + to_initiator,
                "to_responder": counts.to_responder + to_responder,
                "last_seen": now if waiting or pairs else counts.seen,
                "agent": str(counts.agent or "") or None, "agent_version": counts.agent_version,
                "clock_ahead_seconds": ahead,
            })  # fmt: skip
        return self.about() | {"ready": not self.unready(), "limits": self._limits(), "labels": labels}

    def _limits(self) -> dict[str, dict[str, int]]:
        tally, limits, leases = self.lobby.tally, self.lobby.limits, self.leases
        uses = {
            "visits": (tally.count(("visits", "")), limits.visits),
            "responders": (tally.count(("responders", "")), limits.responders),
            "exchanges": (self.door.count, limits.exchanges),
            "ports": (leases.count, sum(map(len, leases.ports))),
            "descriptors": (_descriptors(), sockets.most_descriptors()),
        }
        return {name: {"use": use, "limit": limit} for name, (use, limit) in uses.items()}

    def _pairs(self) -> dict[str, Any]:
        pairs = []
        for r, age in self.lobby.live():
            octets = {"to_initiator": r.to_initiator, "to_responder": r.to_responder}
            pairs.append(
                r.document() | octets | {"pair": r.number, "label": r.label, "seconds": round(age, 3)}
            )
        return {"pairs": pairs}

    def _ready(self) -> str:
        if why := self.unready():
            raise Wrong(503, why)
        return "ready\n"

    def _kick(self, whom: dict[str, str]) -> dict[str, int]:
        number = whom.get("pair", "0")
        if whom.keys() not in ({"pair"}, {"label"}) or not re.fullmatch("[0-9]{1,18}", number):
            raise Wrong(400, "kick?pair=NUMBER or kick?label=LABEL")
        if not (kicked := self.lobby.kick(int(number), whom.get("label"))):
            raise Wrong(404, "there is no such pair")
        return {"kicked": kicked}

    def _drain(self, _: dict[str, str]) -> dict[str, bool]:
        self.lobby.loop.call_later(0, self.drain)  # behind this answer
        return {"draining": True}

    def _reload(self, _: dict[str, str]) -> dict[str, bool]:
        if wrong := self.reload():
            raise Wrong(409, wrong)
        return {"reloaded": True}

    def _metrics(self) -> str:
        status, events = self._status(), self.lobby.journal.counts
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

def _lines(rows: list[tuple[str, str, float]]) -> Iterator[str]:
    family = ""
    for name, labels, value in rows:
        if name != family:
            yield f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}\n"
        family = name
        yield f"{name}{{{labels}}} {value:.15g}\n" if labels else f"{name} {value:.15g}\n"

def _json(document: Any, status: int = 200) -> Response:
    return Response(status, json.dumps(document).encode() + b"\n", "application/json")

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
