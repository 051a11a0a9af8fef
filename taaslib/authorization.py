"""The Authorization header -> a Claim; a claimed code -> the time step that it proves (RFC 6238).

Knows neither who exists nor which codes were used before.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pyotp

SCHEME = "TOTP"
CHALLENGE = 'TOTP realm="taas"'
DRIFT = 1  # steps each way that a device's clock may be off (RFC 6238 5.2)
_MINUTES_OFF = 120  # steps each way that `clock_off` looks at

ALGORITHMS: dict[str, Callable[..., Any]] = {
    "SHA1": hashlib.sha1, "SHA256": hashlib.sha256, "SHA512": hashlib.sha512
}

# RFC 9110 11.2, 5.6.4: auth-param = token BWS "=" BWS ( token / quoted-string )
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_PARAMETER = re.compile(rf"({_TOKEN})[ \t]*=[ \t]*(?:({_TOKEN})|({_QUOTED}))")
_SEPARATOR = re.compile(r"[ \t]*(?:,[ \t]*)+")
_OURS = re.compile(rf"{SCHEME}(?:[ \t]|\Z)", re.IGNORECASE)
_LEADING = re.compile(r"[ \t,]*")

class Malformed(Exception):
    """The scheme is TOTP, but its parameters are not what the protocol asks for."""

@dataclass(frozen=True, slots=True)
class Claim:
    """What the hidden server says of itself: its ID, and the code as proof."""
    id: str
    code: str = field(repr=False)

@dataclass(frozen=True, slots=True)
class Secret:
    """What a code is computed from: base32 text, digits, seconds per step, one of ALGORITHMS."""
    base32: str = field(repr=False)
    digits: int = 6
    period: int = 30
    algorithm: str = "SHA1"

@dataclass(frozen=True, slots=True)
class Right:
    """On what a responder rests: that ID may serve LABEL, with the secret of that GENERATION."""
    label: str
    id: str
    generation: int
    proxy: bool = False  # it wants to be told who visits

# Looked at in place of a credential that does not exist, so that both cost the same.
NOBODY = Secret("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ")

def is_totp(value: str | None) -> bool:
    """Whether an Authorization header is there and of our scheme."""
    return value is not None and _OURS.match(value) is not None

def parse(value: str) -> Claim:
    """Read the parameters of a header for which `is_totp` holds.  Raises Malformed."""
    rest = value[len(SCHEME) :]
    parameters: dict[str, str] = {}
    position = _LEADING.match(rest).end()  # type: ignore[union-attr]  # it matches the empty string too
    while position < len(rest):
        match = _PARAMETER.match(rest, position)
        if not match:
            raise Malformed("The Authorization header's parameters are malformed")
        name = match[1].lower()
        if name in parameters:
            raise Malformed(f"The Authorization header gives {name} twice")
        parameters[name] = match[2] if match[2] is not None else re.sub(r"\\(.)", r"\1", match[3][1:-1])
        position = match.end()
        if separator := _SEPARATOR.match(rest, position):
            position = separator.end()
        elif rest[position:].strip(" \t"):
            raise Malformed("The Authorization header's parameters are malformed")
        else:
            break
    for name in ("username", "response"):
        if not parameters.get(name):
            raise Malformed(f"The Authorization header has no {name}")
    return Claim(parameters["username"], parameters["response"])

def matching_step(code: str, secret: Secret, now: float) -> int | None:
    """The time step whose code this is, of those within DRIFT of NOW (seconds since 1970), or None.

    All candidates are always computed and compared in constant time.  pyotp is asked for a given step
    alone: its `at`, `now` and `verify` go through local time, which is wrong one hour a year.
    """
    current = int(now) // secret.period
    return _find(code, secret, range(max(0, current - DRIFT), current + DRIFT + 1))

def clock_off(code: str, secret: Secret, now: float) -> int | None:
    """By how many seconds the clock is ahead that made this CODE, if it is off by minutes or whole hours.

    Some 300 codes are computed, 6 ms; by chance a guess is taken for one of them once in 3,000 times.
    """
    current = int(now) // secret.period
    off = set(range(-_MINUTES_OFF, _MINUTES_OFF + 1))
    for hours in range(-14, 15):  # a clock that was set to local time, or from it
        off |= {hours * 3600 // secret.period + drift for drift in range(-DRIFT, DRIFT + 1)}
    steps = sorted((current + each for each in off if current + each >= 0), key=lambda s: -abs(s - current))
    found = _find(code, secret, steps)
    return None if found is None else (found - current) * secret.period

def _find(code: str, secret: Secret, steps: Iterable[int]) -> int | None:
    """The last of STEPS whose code this is."""
    totp = pyotp.TOTP(
        secret.base32, digits=secret.digits, digest=ALGORITHMS[secret.algorithm], interval=secret.period
    )
    octets, claimed, found = totp.byte_secret(), code.encode("utf-8", "surrogateescape"), None
    totp.byte_secret = lambda: octets  # type: ignore[method-assign]  # not read from base32 for each step
    for step in steps:
        if hmac.compare_digest(totp.generate_otp(step).encode(), claimed):
            found = step
    return found
