"""What the running service does just now, and how fast octets went since somebody began to look.

Knows nothing of HTML, and the service only through Steer: where that is silent, `silent` says why.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from taasadmin.steer import Rejected, Silent, Steer

SAMPLES = 60
FRESH_SECONDS = 1.0  # an answer this old serves other windows too

Counters = dict[
    str, tuple[int, int]
]  # label -> octets to visitors, and to its hidden server, since the start


@dataclass(frozen=True, slots=True)
class Now:
    """One moment of the service.  All but `silent` is empty where it does not answer."""

    status: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, dict[str, Any]] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    silent: str = ""


class Watch:
    def __init__(self, socket: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._socket = socket
        self._clock = clock
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, Counters]] = deque(maxlen=SAMPLES + 1)
        self._now = Now(silent="not asked yet")
        self._asked = -FRESH_SECONDS

    def look(self) -> Now:
        with self._lock:
            if self._clock() - self._asked >= FRESH_SECONDS:
                self._now = self._ask()
                self._asked = self._clock()
            return self._now

    def _ask(self) -> Now:
        try:
            status, pairs = self._steer().get("/status"), self._steer().get("/pairs")["pairs"]
        except (Silent, Rejected) as error:
            self._samples.clear()
            return Now(silent=str(error))
        labels = {label["label"]: label for label in status["labels"]}
        counters = {name: (each["to_initiator"], each["to_responder"]) for name, each in labels.items()}
        self._samples.append((self._clock(), counters))
        return Now(status, labels, pairs)

    def _steer(self) -> Steer:
        if self._socket is None:
            raise Silent("taas.ini: [admin] socket is empty, so that the service can't be asked")
        return Steer(self._socket)

    def rates(self, label: str) -> list[tuple[float, float]]:
        """Octets per second of LABEL to visitors and to its hidden server, between each two looks."""
        with self._lock:
            samples = list(self._samples)
        rates = []
        for (then, old), (now, new) in itertools.pairwise(samples):
            was, is_ = old.get(label, (0, 0)), new.get(label, (0, 0))
            passed = max(now - then, 0.001)
            # A service that was started anew counts from 0.
            rates.append((max(is_[0] - was[0], 0) / passed, max(is_[1] - was[1], 0) / passed))
        return rates

    def pairings(self, label: str) -> list[dict[str, Any]]:
        """The last pairings of LABEL, newest first; none where the service is silent or knows none."""
        try:
            return list(reversed(self._steer().get(f"/pairings/{quote(label, safe='')}")))
        except (Silent, Rejected):
            return []

    def do(self, target: str) -> Any:
        """POST TARGET.  What is seen afterwards is asked anew.  Raises Silent, Rejected."""
        answer = self._steer().post(target)
        with self._lock:
            self._asked = -FRESH_SECONDS
        return answer
