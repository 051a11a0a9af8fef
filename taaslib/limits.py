"""How much of everything: one frozen dataclass, whose fields are the keys of taas.ini's [limits].

Knows nothing of who obeys.
"""

from __future__ import annotations

from dataclasses import dataclass, field

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Everything countable (int), timed (float, seconds) or sized (int, octets) that the service obeys.

    The numbers are docs/protocol.md's unless a comment says otherwise.
    """

    head: int = field(default=16 * KIB, metadata={"unit": "size", "most": MIB})
    exchanges: int = field(default=1000, metadata={"unit": "count"})
    handshake: float = field(default=10.0, metadata={"unit": "time"})
    request: float = field(default=10.0, metadata={"unit": "time"})
    linger: float = field(default=5.0, metadata={"unit": "time"})
    linger_bytes: int = field(default=MIB, metadata={"unit": "size"})
    reuse: int = field(default=1000, metadata={"unit": "count"})
    unclaimed: float = field(default=30.0, metadata={"unit": "time"})
    unclaimed_per_id: int = field(default=100, metadata={"unit": "count"})
    responders_per_id: int = field(default=20, metadata={"unit": "count"})
    responders_per_label: int = field(default=200, metadata={"unit": "count"})
    early_bytes: int = field(default=16 * KIB, metadata={"unit": "size", "most": MIB})
    first_bytes: float = field(default=1.0, metadata={"unit": "time"})
    parked: float = field(default=10.0, metadata={"unit": "time"})
    parked_per_label: int = field(default=32, metadata={"unit": "count"})
    refill: float = field(default=30.0, metadata={"unit": "time"})
    q_linger: float = field(default=600.0, metadata={"unit": "time"})
    retry_after: float = field(default=5.0, metadata={"unit": "time"})
    keepalive_idle: float = field(
        default=25.0, metadata={"unit": "time", "most": 32767}
    )  # tcp(7), the kernel's
    keepalive_interval: float = field(default=5.0, metadata={"unit": "time", "most": 32767})
    keepalive_probes: int = field(default=3, metadata={"unit": "count", "most": 127})
    user_timeout: float = field(default=40.0, metadata={"unit": "time", "most": 2147483})  # an int of ms
    dead_after: float = field(default=60.0, metadata={"unit": "time"})
    idle: float = field(default=0.0, metadata={"unit": "time", "zero": True})  # 0s: no idle limit
    pairings: int = field(default=100, metadata={"unit": "count"})
