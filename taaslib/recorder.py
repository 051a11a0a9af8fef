"""The flight recorder: each pair is one record, and each label has its counts.

Knows addresses and numbers, never what was said.  A record answers whose doing it was that a visit ended.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

from taaslib.authorization import Right
from taaslib.limits import Limits
from taaslib.names import Peer
from taaslib.outcomes import Outcome

_LONGEST = 64  # characters of what an agent calls itself
_KEPT_MS = 24 * 3600 * 1000  # of a label that has left the store
_DOING = {Outcome.IDLE: "our limit", Outcome.FAULT: "our limit"} | dict.fromkeys(
    (Outcome.KICKED, Outcome.REVOKED, Outcome.SHUTDOWN), "operator"
)
_FACTS = (  # of a document, in their order
    "id", "waited_seconds", "responder_waited_seconds", "seconds", "to_initiator", "to_responder",
    "rtt_initiator_ms", "retransmitted_initiator", "rtt_responder_ms", "retransmitted_responder",
    "ended_by", "how", "verdict", "outcome",
)  # fmt: skip

class Ended(NamedTuple):
    """How a pair was when it ended."""
    outcome: Outcome
    seconds: float
    to_initiator: int  # octets that our kernel took for it
    to_responder: int
    rtt_initiator_ms: float | None  # None: the kernel does not tell
    retransmitted_initiator: int | None  # segments
    rtt_responder_ms: float | None
    retransmitted_responder: int | None

@dataclass(slots=True, eq=False)
class Record:
    """A pair.  While it lives there are thousands of it, so that what only its end brings stands apart."""
    number: int
    right: Right  # of the hidden server
    responder: Peer
    initiator: Peer
    timestamp: int  # of the pairing, ms since 1970
    waited: float  # seconds, the visitor for its hidden server
    responder_waited: float
    ended_by: str = ""  # the first to end it: "initiator", "responder" or "service"
    how: str = ""  # fin, reset, timeout (what we sent was not acknowledged), keep-alive; or what we did
    end: Ended | None = None

    @property
    def verdict(self) -> str | None:
        """Whose doing the end was, in plain words."""
        if self.end is None:
            return None
        unanswered = self.ended_by == "responder" and self.end.to_responder and not self.end.to_initiator
        if self.end.outcome is Outcome.COMPLETE and not unanswered:
            return "fine"
        side = "hidden server's path" if self.ended_by == "responder" else "visitor's path"
        return _DOING.get(self.end.outcome, side)

    def facts(self) -> dict[str, Any]:
        """What the log is told of its end."""
        waits = {"waited_seconds": round(self.waited, 3)}
        waits["responder_waited_seconds"] = round(self.responder_waited, 3)
        end = self.end._asdict() | {"seconds": round(self.end.seconds, 3)} if self.end else {}
        end.pop("outcome", None)
        doing = {"ended_by": self.ended_by, "how": self.how, "verdict": self.verdict}
        return {"id": self.right.id} | waits | end | doing

    def document(self) -> dict[str, Any]:
        """For GET /pairings/LABEL; the first three are the original's.  Null: it is live."""
        met = {"responder": str(self.responder), "initiator": str(self.initiator)}
        nothing = dict.fromkeys(_FACTS)
        facts = self.facts() | {"outcome": self.end.outcome.value} if self.end else {"id": self.right.id}
        return met | {"timestamp": self.timestamp} | nothing | facts

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
        self, right: Right, responder: Peer, initiator: Peer, now: int, waited: float, stood: float
    ) -> Record:
        self._number += 1
        record = Record(self._number, right, responder, initiator, now, waited, stood)
        counts = self.counts(right.label)
        counts.records.append(record)
        counts.pairs += 1
        counts.live += 1
        return record

    def end(self, record: Record, end: Ended, now: int) -> None:
        counts, record.end = self.counts(record.right.label), end
        counts.live -= 1
        counts.seen = now
        if end.outcome is not Outcome.FAILED_OVER:
            counts.to_initiator += end.to_initiator
            counts.to_responder += end.to_responder
        elif record in counts.records:  # nobody was met: the next responder's record is this visit's
            counts.records.remove(record)

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
