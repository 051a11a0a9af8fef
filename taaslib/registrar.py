"""Request -> Answer for hidden servers: PUT /register/LABEL opens a port p, GET /pairings/LABEL, its pairs.

Knows neither sockets nor the redirector.  Checked in this order, so that nobody learns more than they
have earned: Authorization present, path, method, parameters, too many wrong codes, code, grant, capacity.
"""

import contextlib
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from taaslib import authorization, names
from taaslib.authorization import NOBODY, Claim, Right, Secret
from taaslib.guesses import PROOF, Guesses
from taaslib.http1 import Request, Response, retry_after, text
from taaslib.leases import Leases, NoPort, TooMany
from taaslib.limits import Limits
from taaslib.lobby import Lobby
from taaslib.names import Peer
from taaslib.outcomes import Answer, Outcome
from taaslib.store import Credential, Spent, Store, StoreError

_CHALLENGE = ("WWW-Authenticate", authorization.CHALLENGE)
_ROUTE = re.compile(r"/(register|pairings)/([^/]+)")
_CLOCK_SECONDS = 5.0  # between two searches for a clock that is off
_METHODS = {"register": "PUT", "pairings": "GET"}
_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")

@dataclass(eq=False)
class Registrar:
    store: Store
    leases: Leases
    lobby: Lobby
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    advertise: Callable[[Peer], str]  # the service's address as a peer sees it
    claim: str
    limits: Limits

    def __post_init__(self) -> None:
        self._guesses, now = Guesses(self.limits), self.wall_clock()
        with contextlib.suppress(StoreError):  # who was proven before a restart still is
            for id, address, at in self.store.spenders(int(now - PROOF)):
                self._guesses.proved(id, address, self.clock() - max(0.0, now - at))
        self._clock_sought = -math.inf  # when a wrong code was last looked for at other times
        self._uses: dict[str, dict[int, int]] = {}  # ID -> step -> how often its code was accepted

    def answer(self, request: Request, peer: Peer) -> Answer:
        try:
            return self._answer(request, peer)
        except StoreError as error:
            message = "The service's database is busy; try again in a moment."
            response = text(503, message, retry_after(self.limits.retry_after))
            return Answer(Outcome.STORE_BUSY, response, cause=str(error))

    def _answer(self, request: Request, peer: Peer) -> Answer:
        value = request.fields.get("authorization")
        if value is None or not authorization.is_totp(value):
            message = 'Authorization: TOTP username="ID", response="CODE" is needed here.'
            return _no(Outcome.NO_CREDENTIALS, 401, message, _CHALLENGE)
        route = _ROUTE.fullmatch(request.path)
        if not route:
            message = "Nothing is here: the path is /register/LABEL or /pairings/LABEL."
            return _no(Outcome.NOT_FOUND, 404, message)
        what = route[1]
        try:
            label = names.label(route[2])
        except ValueError as error:
            return _no(Outcome.BAD_REQUEST, 400, f"The label in the path is none: {error}.")
        if request.method != _METHODS[what]:
            allow = ("Allow", _METHODS[what])
            return _no(Outcome.NOT_FOUND, 405, f"The method here is {_METHODS[what]}.", allow)
        try:
            claim = authorization.parse(value)
        except authorization.Malformed as error:
            return _no(Outcome.BAD_REQUEST, 400, f"{error}.")
        if what == "register" and (wrong := _wrong_wish(request)):
            return _no(Outcome.BAD_REQUEST, 400, wrong)
        claim = Claim(claim.id.lower(), claim.code)  # RFC 9562 4: a UUID may be written in either case
        right = self._right(claim, label, peer)
        if isinstance(right, Answer):
            return right
        if what == "pairings":
            pairings = [record.document() for record in self.lobby.recorder.records(label)]
            body = json.dumps(pairings).encode()
            return Answer(Outcome.LISTED, Response(200, body, "application/json"), label, claim.id)
        self.lobby.recorder.introduced(label, request.fields.get("user-agent"))
        if "taas-proxy" in request.fields:
            right = replace(right, proxy=True)
        return self._register(right, peer, stays="taas-stay" in request.fields)

    def _right(self, claim: Claim, label: str, peer: Peer) -> Right | Answer:
        """What the claim proves and the operator granted, or the refusal."""
        credential = self.store.credential(claim.id)
        secret = _secret(credential) if credential and credential.enabled else NOBODY
        now, network = self.wall_clock(), names.network_of(peer.address)
        who = claim.id if _UUID.fullmatch(claim.id) else ""  # no other ID exists: they share one counter
        if wait := self._guesses.wait(who, network, self.clock()):
            message = "Too many wrong codes came from this address or for this ID; try again later."
            return _no(Outcome.SLOWED, 429, message, retry_after(wait), label=label, id=who or None)
        step = authorization.matching_step(claim.code, secret, now)
        # An unknown ID costs the same as a wrong code; nobody's secret opens nothing even if guessed.
        if credential is None or not credential.enabled or step is None:
            self._guesses.failed(who, network, self.clock())
            cause = self._clock_off(claim, secret, now)
            return _refused_code(Outcome.WRONG_CODE, label, claim.id, cause)
        current = int(now) // secret.period
        address = network if self.claim == "address" else "*"
        spent = self.store.spend_step(claim.id, step, address, current + authorization.DRIFT)
        if spent in (Spent.ELSEWHERE, Spent.STALE):
            return _refused_code(Outcome.CODE_USED, label, claim.id)
        self._guesses.proved(who, network, self.clock())
        if self._count_use(claim.id, step, current, spent) > self.limits.reuse:
            next_step = retry_after(secret.period - int(now) % secret.period)
            message = "This code was used too often; wait for the next one."
            return _no(Outcome.CODE_OVERUSED, 429, message, next_step, label=label, id=claim.id)
        if self.store.rights(claim.id, label) is None:
            message = f"This ID may not serve {label}; ask the operator to grant it."
            return _no(Outcome.NOT_GRANTED, 403, message, label=label, id=claim.id)
        return Right(sys.intern(label), sys.intern(claim.id), credential.generation)  # many wait on the same

    def _clock_off(self, claim: Claim, secret: Secret, now: float) -> str | None:
        """What the log is told when a wrong code would have been right at another time.

        An unknown ID costs the same here too, and a flood of wrong codes does not make it costly.
        """
        if self.clock() < self._clock_sought + _CLOCK_SECONDS:
            return None
        self._clock_sought = self.clock()
        ahead = authorization.clock_off(claim.code, secret, now)
        if ahead is None or secret is NOBODY:
            return None
        with contextlib.suppress(StoreError):  # it is a courtesy
            self.store.note_clock(claim.id, ahead, int(now))
        return f"the device's clock is {abs(ahead)} s {'ahead' if ahead > 0 else 'behind'}"

    def _count_use(self, id: str, step: int, current: int, spent: Spent) -> int:
        uses = self._uses.setdefault(id, {})
        for old in [old for old in uses if old < current - authorization.DRIFT]:
            del uses[old]
        # One that was spent before we were started has been used once at least.
        uses[step] = uses.get(step, int(spent is Spent.AGAIN)) + 1
        return uses[step]

    def _register(self, right: Right, peer: Peer, *, stays: bool) -> Answer:
        later = retry_after(self.limits.retry_after)
        echoes = (("TAAS-Stay", "1"),) * stays + (("TAAS-Proxy", "v2"),) * right.proxy
        try:
            if stays:
                self.leases.admit(right)
                response = Response(200, b"-", "text/plain", echoes, stays=True)
                return Answer(Outcome.REGISTERED, response, right.label, right.id, stays=right)
            port = self.leases.open_p(right, peer)
        except TooMany as refusal:
            return _no(Outcome.FULL, 429, f"{refusal}.", later, label=right.label, id=right.id)
        except NoPort:
            message = "No port is free; try again soon."
            return _no(Outcome.FULL, 503, message, later, label=right.label, id=right.id)
        body = names.host_port(self.advertise(peer), port).encode()  # the 2014 client takes nothing more
        response = Response(200, body, "text/plain", echoes)
        return Answer(Outcome.REGISTERED, response, right.label, right.id, port)

def _wrong_wish(request: Request) -> str:
    """What is wrong with a registration's TAAS- fields, or ""."""
    fields = request.fields
    if fields.get("taas-proxy", "v2") != "v2":
        return "TAAS-Proxy is v2 or absent."
    if "taas-stay" not in fields:
        return ""
    if fields["taas-stay"] != "1":
        return "TAAS-Stay is 1 or absent."
    if "transfer-encoding" in fields or int(fields.get("content-length", "0")):
        return "A request with TAAS-Stay has no body."
    return ""

def _secret(credential: Credential) -> Secret:
    return Secret(credential.secret, credential.digits, credential.period, credential.algorithm)

def _refused_code(outcome: Outcome, label: str, id: str, cause: str | None = None) -> Answer:
    # One body for an unknown, a disabled and a known ID.  The log names an ID only if it can be one: people
    # paste secrets into the wrong field.
    message = "The ID is unknown or the code wrong or used; check the device's clock, or ask the operator."
    id_or_none = id if _UUID.fullmatch(id) else None
    return _no(outcome, 401, message, _CHALLENGE, label=label, id=id_or_none, cause=cause)

def _no(outcome: Outcome, status: int, message: str, *fields: tuple[str, str], **facts: str | None) -> Answer:
    return Answer(outcome, text(status, message, *fields), **facts)  # type: ignore[arg-type]
