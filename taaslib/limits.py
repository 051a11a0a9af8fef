"""How much of everything: one frozen dataclass, whose fields are the keys of taas.ini's [limits].

Knows nothing of who obeys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KIB = 1024
MIB = 1024 * KIB


def _limit(unit: str) -> Callable[..., Any]:
    return lambda default, **bounds: field(default=default, metadata={"unit": unit, **bounds})


_time, _size, _count = _limit("time"), _limit("size"), _limit("count")


@dataclass(frozen=True, slots=True)
class Limits:
    """Everything countable (int), timed (float, seconds) or sized (int, octets) that the service obeys.

    The numbers are docs/protocol.md's unless a comment says otherwise.
    """

    head: int = _size(16 * KIB, most=MIB)
    exchanges: int = _count(1000)
    handshake: float = _time(10.0)
    request: float = _time(10.0)
    linger: float = _time(5.0)
    linger_bytes: int = _size(MIB)
    reuse: int = _count(1000)
    unclaimed: float = _time(30.0)
    unclaimed_per_id: int = _count(100)
    responders_per_id: int = _count(20)
    responders_per_label: int = _count(200)
    early_bytes: int = _size(16 * KIB, most=MIB)
    first_bytes: float = _time(1.0)
    parked: float = _time(10.0)
    parked_per_label: int = _count(32)
    refill: float = _time(30.0)
    q_linger: float = _time(600.0)
    retry_after: float = _time(5.0)
    keepalive_idle: float = _time(25.0, most=32767)  # tcp(7), the kernel's
    keepalive_interval: float = _time(5.0, most=32767)
    keepalive_probes: int = _count(3, most=127)
    user_timeout: float = _time(40.0, most=2147483)  # an int of ms
    dead_after: float = _time(60.0)
    idle: float = _time(0.0, zero=True)  # 0s: no idle limit
    failures_per_address: int = _count(100)
    failures_per_id: int = _count(10)
    failures_remembered: int = _count(10_000)
    pairings: int = _count(100)
