"""The ways an exchange, a lease, a leg or a pair can end, and the few other events worth a log line.

One vocabulary for log, metrics, tests and docs/operations.md.  Knows nothing of how they come about.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from taaslib.http1 import Response


class Outcome(enum.Enum):
    """What happened.  The value is the word in the log."""

    # The service
    STARTED = "started"  # it listens
    STOPPED = "stopped"  # it ended in order
    FOLLOWED = "followed"  # a change in the database was taken over
    STORE_BROKEN = "store-broken"  # the database can't be read or written; 503 until it can
    OUT_OF_DESCRIPTORS = "out-of-descriptors"  # accepting pauses
    PORT_FAILED = "port-failed"  # a port could not be listened on
    FAULT = "fault"  # our own bug: one connection was closed, the others go on
    WARNING = "warning"  # something the operator should mend

    # An exchange at the front door
    REGISTERED = "registered"
    REDIRECTED = "redirected"
    LISTED = "listed"  # GET /pairings/LABEL
    BAD_REQUEST = "bad-request"  # not our HTTP, or malformed parameters
    WRONG_CODE = "wrong-code"  # no such ID, a wrong code, or a disabled ID: the answer does not tell which
    CODE_USED = "code-used"  # spent from another address, or older than the newest one from this address
    CODE_OVERUSED = "code-overused"  # right, but used more often than `reuse` allows
    NO_CREDENTIALS = "no-credentials"  # no Authorization header, or another scheme
    NOT_GRANTED = "not-granted"
    NOT_FOUND = "not-found"  # a path or method that we do not serve
    MISDIRECTED = "misdirected"  # a Host that is not ours
    NOT_SERVED = "not-served"  # nobody waits under the label
    FULL = "full"  # no seat or port left
    STORE_BUSY = "store-busy"
    PLAIN_HTTP = "plain-http"  # no TLS spoken to the TLS port
    TLS_FAILED = "tls-failed"
    SILENT = "silent"  # a deadline passed before the request was whole
    GONE = "gone"  # the peer left before it was answered

    # A lease on port p or q
    OPENED = "opened"
    CLAIMED = "claimed"
    UNCLAIMED = "unclaimed"
    STRANGER = "stranger"  # somebody else than the registrant came to p
    QUIET = "quiet"  # q: its label has not been served for long enough
    CHANGED = "changed"  # q: the operator gave the label another port

    # A leg that waits
    WAITS = "waits"
    HUNG_UP = "hung-up"
    RESET = "reset"
    TIMED_OUT = "timed-out"  # keep-alive or TCP_USER_TIMEOUT: the path is dead
    DISPLACED = "displaced"  # a newer responder of the same ID took its seat
    REVOKED = "revoked"
    NOBODY_CAME = "nobody-came"  # a parked client's patience ran out
    SHUTDOWN = "shutdown"  # the service ends

    # A pair (RESET, TIMED_OUT, SHUTDOWN too)
    PAIRED = "paired"
    COMPLETE = "complete"  # both sides finished and all was delivered
    IDLE = "idle"  # the option `idle` is set, and nothing moved for so long


@dataclass(frozen=True, slots=True)
class Answer:
    """How an exchange ends: the response for the peer, and what the log is told of it."""

    outcome: Outcome
    response: Response
    label: str | None = None
    id: str | None = None
    port: int | None = None
    cause: str | None = None
