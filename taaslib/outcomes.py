"""The ways an exchange, a lease, a leg or a pair can end, and the few other events worth a log line.

One vocabulary for log, metrics, tests and docs/operations.md.  Knows nothing of how they come about.
"""

import enum
from dataclasses import dataclass

from taaslib.authorization import Right
from taaslib.http1 import Response


class Outcome(enum.Enum):
    """What happened.  The value is the word in the log."""
    __hash__ = object.__hash__  # Enum's own is Python code, and every line is counted by its outcome

    # The service
    STARTED = "started"  # it listens
    DRAINING = "draining"  # nobody new is taken, and live pairs may end by themselves
    STOPPED = "stopped"  # it ended in order
    FOLLOWED = "followed"  # a change in the database, in taas.ini or of a certificate was taken over
    STORE_BROKEN = "store-broken"  # the database can't be read; 503 until it can
    OUT_OF_DESCRIPTORS = "out-of-descriptors"  # or memory: new connections are closed, or wait for a second
    PORT_FAILED = "port-failed"  # a port could not be listened on
    FAULT = "fault"  # our own bug: one connection was closed, the others go on
    STALLED = "stalled"  # the loop has been in one turn for so long; `traceback` says where
    WARNING = "warning"  # something the operator should mend
    SUPPRESSED = "suppressed"  # the event `what` had so many more lines in a minute than may be written

    # An exchange on the runtime socket
    ASKED = "asked"  # what the service does, or its metrics
    STEERED = "steered"  # the operator kicked, drained or reloaded (see `cause`)

    # An exchange at the front door
    REGISTERED = "registered"  # a port p was opened for a hidden server
    REDIRECTED = "redirected"  # a mobile client was sent to port q
    UPGRADED = "upgraded"  # plain HTTP on http-port was sent on to https
    PASSED = "passed-through"  # its TLS is the hidden server's: handed on by the server name it asks for
    UNKNOWN_NAME = "unknown-name"  # not ours, or of a pass-through label that is offline
    LISTED = "listed"  # GET /pairings/LABEL
    BAD_REQUEST = "bad-request"  # not our HTTP, or malformed parameters
    WRONG_CODE = "wrong-code"  # no such ID, a wrong code, or a disabled ID: the answer does not tell which
    SLOWED = "slowed"  # too many wrong codes from this address or for this ID: not looked at
    CODE_USED = "code-used"  # spent from another address, or older than the newest one from this address
    CODE_OVERUSED = "code-overused"  # right, but used more often than `reuse` allows
    NO_CREDENTIALS = "no-credentials"  # no Authorization header, or another scheme
    NOT_GRANTED = "not-granted"  # a right code, and a label that is not its ID's
    NOT_FOUND = "not-found"  # a path or method that we do not serve
    MISDIRECTED = "misdirected"  # a Host that is not ours, or not on this TLS
    NOT_SERVED = "not-served"  # nobody waits under the label
    FULL = "full"  # no seat or port left
    STORE_BUSY = "store-busy"  # the database did not answer in time, or can't be written (see `cause`)
    PLAIN_HTTP = "plain-http"  # no TLS spoken to the TLS port
    TLS_FAILED = "tls-failed"  # the handshake came to nothing
    SILENT = "silent"  # a deadline passed before the request was whole
    GONE = "gone"  # the peer left before it was answered

    # A lease on port p or q
    OPENED = "opened"  # q is listened on
    CLAIMED = "claimed"  # p has got its connection
    UNCLAIMED = "unclaimed"  # nobody came to p in time
    STRANGER = "stranger"  # somebody else than the registrant came to p
    QUIET = "quiet"  # q: its label has not been served for long enough
    CHANGED = "changed"  # q: the operator gave the label another port or mode, or took its last credential

    # A leg that waits
    WAITS = "waits"  # a responder waits
    HUNG_UP = "hung-up"  # the peer closed the connection
    RESET = "reset"  # the peer reset the connection
    TIMED_OUT = "timed-out"  # keep-alive or TCP_USER_TIMEOUT: the path is dead
    DISPLACED = "displaced"  # a newer one took its place: of the same ID, or at the front door
    REVOKED = "revoked"  # the operator took the right away
    NOBODY_CAME = "nobody-came"  # a parked client's patience ran out
    SHUTDOWN = "shutdown"  # the service ends

    # A pair (RESET, TIMED_OUT, REVOKED, SHUTDOWN too)
    PAIRED = "paired"  # a mobile client met a hidden server
    FAILED_OVER = "failed-over"  # the responder was dead (see `cause`): the client seeks another
    COMPLETE = "complete"  # both sides finished and all was delivered
    KICKED = "kicked"  # the operator ended it
    IDLE = "idle"  # the option `idle` is set, and nothing moved for so long

@dataclass(slots=True)
class Answer:
    """How an exchange ends: the response for the peer, and what the log is told of it."""
    outcome: Outcome
    response: Response
    label: str | None = None
    id: str | None = None
    port: int | None = None
    cause: str | None = None
    stays: Right | None = None  # the connection becomes a responder on this right, once TLS is left
