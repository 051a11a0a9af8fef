"""The flight recorder: each pair is one record, and each label has its counts.

Knows addresses and numbers, never what was said.  A record answers whose fault it was that a visit ended.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from taaslib.limits import Limits
from taaslib.names import Peer
from taaslib.outcomes import Outcome
from taaslib.sockets import Path

_LONGEST = 64  # characters of what an agent calls itself

_OURS = {Outcome.IDLE, Outcome.FAULT}
_OPERATOR_S = {Outcome.KICKED, Outcome.REVOKED, Outcome.SHUTDOWN}

@dataclass(slots=True, eq=False)
class Record:
    """A pair.  Times are seconds; TIMESTAMP, of the pairing, is ms since 1970; None: it is live."""

    number: int
    label: str
    id: str
    responder: Peer
    initiator: Peer
    timestamp: int
    waited: float  # the visitor, for its hidden server
    stood: float  # the hidden server's connection, for its visitor
    seconds: float | None = None
    to_initiator: int = 0  # octets
    to_responder: int = 0
    ended_by: str = ""  # the first to end it: "initiator", "responder" or "service"
    how: str = ""  # fin, reset, timeout (what was sent was not acknowledged), keep-alive; or what we did
    outcome: Outcome | None = None
    initiator_path: Path = (None, None)
    responder_path: Path = (None, None)

    @property
    def verdict(self) -> str:
        """Whose doing the end was, in plain words."""
        if self.outcome in _OPERATOR_S:
            return "operator"
        if self.outcome in _OURS:
            return "our limit"
        unanswered = self.ended_by == "responder" and self.to_responder and not self.to_initiator
        if self.outcome is Outcome.COMPLETE and not unanswered:
            return "fine"
        return f"{'hidden server' if self.ended_by == 'responder' else 'visitor'}'s path"

    def facts(self) -> dict[str, Any]:
        """What is known of it once it has ended, for the log and for `document`."""
        (rtt_i, again_i), (rtt_r, again_r) = self.initiator_path, self.responder_path
        return {
            "id": self.id, "waited_seconds": self.waited, "responder_waited_seconds": self.stood,
            "seconds": self.seconds, "to_initiator": self.to_initiator, "to_responder": self.to_responder,
            "rtt_initiator_ms": rtt_i, "rtt_responder_ms": rtt_r, "retransmitted_initiator": again_i,
            "retransmitted_responder": again_r, "ended_by": self.ended_by, "how": self.how,
            "verdict": self.verdict,
        }  # fmt: skip

    def document(self) -> dict[str, Any]:
        """For GET /pairings/LABEL; the first three are those of the original.  Null: it has not ended."""
        met = {
            "responder": str(self.responder),
            "initiator": str(self.initiator),
            "timestamp": self.timestamp,
        }
        facts = self.facts() if self.outcome else dict.fromkeys(self.facts())
        return met | facts | {"id": self.id, "outcome": self.outcome.value if self.outcome else None}

@dataclass(slots=True, eq=False)
class Counts:
    """Of one label, since the service started; octets of live pairs are added by whoever shows them."""

    records: deque[Record]
    pairs: int = 0
    live: int = 0
    to_initiator: int = 0
    to_responder: int = 0
    seen: int | None = None  # ms since 1970: when a hidden server came or its pair ended
    agent: Peer | None = None
    agent_version: str | None = None

class Recorder:
    """The last `pairings` records of each label, and its counts."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._number = 0
        self._of_label: dict[str, Counts] = {}

    def counts(self, label: str) -> Counts:
        """LABEL's, made where there are none yet: ask only for labels that exist."""
        if label not in self._of_label:
            self._of_label[label] = Counts(deque(maxlen=self._limits.pairings))
        return self._of_label[label]

    def came(self, label: str, agent: Peer, now: int) -> None:
        """A hidden server's connection waits under LABEL at NOW (ms since 1970)."""
        counts = self.counts(label)
        counts.agent, counts.seen = agent, now

    def introduced(self, label: str, name: str | None) -> None:
        """A hidden server of LABEL calls itself NAME."""
        known = "".join(c for c in name or "" if c.isprintable())[:_LONGEST]
        self.counts(label).agent_version = known or None

    def begin(
        self, label: str, id: str, responder: Peer, initiator: Peer, now: int, waited: float, stood: float
    ) -> Record:
        self._number += 1
        counts = self.counts(label)
        record = Record(self._number, label, id, responder, initiator, now, round(waited, 3), round(stood, 3))
        counts.records.append(record)
        counts.pairs += 1
        counts.live += 1
        return record

    def end(self, record: Record, outcome: Outcome, seconds: float, now: int) -> None:
        counts = self.counts(record.label)
        record.outcome, record.seconds = outcome, round(seconds, 3)
        counts.live -= 1
        counts.to_initiator += record.to_initiator
        counts.to_responder += record.to_responder
        counts.seen = now
        if outcome is Outcome.FAILED_OVER:  # nobody was met: the next responder's record is this visit's
            counts.pairs -= 1
            if record in counts.records:
                counts.records.remove(record)

    def records(self, label: str) -> list[Record]:
        """LABEL's last ones, oldest first."""
        return list(self._of_label[label].records) if label in self._of_label else []

    def keep_only(self, labels: set[str]) -> None:
        """The store has no other LABELS: what nobody can ask for any more is forgotten."""
        for label in [each for each, counts in self._of_label.items() if each not in labels]:
            if not self._of_label[label].live:
                del self._of_label[label]
