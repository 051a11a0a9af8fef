"""The flight recorder: each pair is one record, and each label has its counts.

Knows addresses and numbers, never what was said.  A record answers whose doing it was that a visit ended.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

from taaslib.limits import Limits
from taaslib.names import Peer
from taaslib.outcomes import Outcome

_LONGEST = 64  # characters of what an agent calls itself
_KEPT_MS = 24 * 3600 * 1000  # of a label that has left the store
_DOING = {Outcome.IDLE: "our limit", Outcome.FAULT: "our limit"} | dict.fromkeys(
    (Outcome.KICKED, Outcome.REVOKED, Outcome.SHUTDOWN), "operator"
)
_FACTS = (  # in the log, when a pair has ended
    "id", "waited_seconds", "responder_waited_seconds", "seconds", "to_initiator", "to_responder",
    "rtt_initiator_ms", "rtt_responder_ms", "retransmitted_initiator", "retransmitted_responder",
    "ended_by", "how", "verdict",
)  # fmt: skip

@dataclass(slots=True, eq=False)
class Record:
    """A pair.  TIMESTAMP, of the pairing, is in ms since 1970; octets are those that were delivered."""
    number: int
    label: str
    id: str
    responder: Peer
    initiator: Peer
    timestamp: int
    waited_seconds: float  # the visitor, for its hidden server
    responder_waited_seconds: float
    seconds: float = 0.0
    to_initiator: int = 0
    to_responder: int = 0
    rtt_initiator_ms: float | None = None  # None: the kernel does not tell
    rtt_responder_ms: float | None = None
    retransmitted_initiator: int | None = None  # segments
    retransmitted_responder: int | None = None
    ended_by: str = ""  # the first to end it: "initiator", "responder" or "service"
    how: str = ""  # fin, reset, timeout (what we sent was not acknowledged), keep-alive; or what we did
    outcome: Outcome | None = None  # it is live

    @property
    def verdict(self) -> str:
        """Whose doing the end was, in plain words."""
        unanswered = self.ended_by == "responder" and self.to_responder and not self.to_initiator
        if self.outcome is Outcome.COMPLETE and not unanswered:
            return "fine"
        side = "hidden server's path" if self.ended_by == "responder" else "visitor's path"
        return _DOING.get(self.outcome, side) if self.outcome else side

    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _FACTS}

    def document(self) -> dict[str, Any]:
        """For GET /pairings/LABEL; the first three are the original's.  Null: it is live."""
        met = {"responder": str(self.responder), "initiator": str(self.initiator)}
        facts = self.facts() if self.outcome else dict.fromkeys(_FACTS)
        outcome = self.outcome.value if self.outcome else None
        return met | {"timestamp": self.timestamp} | facts | {"id": self.id, "outcome": outcome}

@dataclass(slots=True, eq=False)
class Counts:
    """Of one label, since the service started."""
    records: deque[Record]
    pairs: int = 0  # that began, live and failed over ones too
    live: int = 0
    to_initiator: int = 0  # of pairs that have ended
    to_responder: int = 0
    seen: int | None = None  # ms since 1970: when a hidden server came, or a pair of its ended
    agent: str | None = None  # where it came from last, and what it calls itself
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

    def introduced(self, label: str, name: str | None) -> None:
        """A hidden server of LABEL calls itself NAME."""
        self.counts(label).agent_version = name[:_LONGEST] if name else None

    def came(self, label: str, agent: Peer, now: int) -> None:
        counts = self.counts(label)
        counts.agent, counts.seen = str(agent), now

    def begin(
        self, label: str, id: str, responder: Peer, initiator: Peer, now: int, waited: float, stood: float
    ) -> Record:
        self._number += 1
        waits = round(waited, 3), round(stood, 3)
        record = Record(self._number, label, id, responder, initiator, now, *waits)
        counts = self.counts(label)
        counts.records.append(record)
        counts.pairs += 1
        counts.live += 1
        return record

    def end(self, record: Record, outcome: Outcome, seconds: float, now: int) -> None:
        counts, record.outcome, record.seconds = self.counts(record.label), outcome, round(seconds, 3)
        counts.live -= 1
        if outcome is not Outcome.FAILED_OVER:
            counts.to_initiator += record.to_initiator
            counts.to_responder += record.to_responder
        counts.seen = now
        if outcome is Outcome.FAILED_OVER and record in counts.records:
            counts.records.remove(record)  # nobody was met: the next responder's record is this visit's

    def records(self, label: str) -> list[Record]:
        """LABEL's last ones, oldest first."""
        return list(self._of_label[label].records) if label in self._of_label else []

    def keep_only(self, labels: set[str], now: int) -> None:
        """The store has no other LABELS: those that were not seen for a day are forgotten."""
        for label, counts in list(self._of_label.items()):
            if label not in labels and not counts.live and now - (counts.seen or 0) > _KEPT_MS:
                del self._of_label[label]

    @property
    def labels(self) -> set[str]:
        """Those that have counts, and may have left the store since."""
        return set(self._of_label)
