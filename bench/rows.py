"""What is measured: families of rows, each with what gen does and through whom.

The words are gen's options (gen.c lists them), the candidates the names in peers.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One comparison."""

    key: str
    title: str
    words: tuple[str, ...]
    candidates: tuple[str, ...]
    idle: int = 0  # connections that another gen holds meanwhile


def rows(seconds: float, visits: int) -> dict[str, list[Row]]:
    """By family, in the order of measuring."""
    span = f"-S {seconds}"
    first = visits // 8
    return {
        "bulk": [
            _row(f"bulk-{n}", f"{n} stream{'s' * (n > 1)}", f"-P {n} {span} traffic", _BULK)
            for n in (1, 8, 64)
        ],
        "ping-pong": [
            _row(f"trips-{n}", f"echo of 64 octets, {n} at once", f"-N {n} {span} traffic", _SHORT)
            for n in (1, 64)
        ],
        "visits": [
            _row("visits", "connect, pair, echo of 64 octets, close", f"-N 16 -c {visits} visits", _VISITS),
            _row("passed", "the same through 443, by server name", f"-N 16 -c {visits} visits", _PASSED),
            _row("sustained", "the same, a registration for each", f"-r -N 16 {span} visits", "ours"),
            _row("sustained-stay", "the same, registrations that stay", f"-r -y -N 16 {span} visits", "ours"),
            _row("first-octet", "at rest, from the redirect to the first octets back",
                 f"-d -w {first} -c {first} -N 1 visits", "ours; haproxy; nginx"),
        ],
        "front door": [
            _row("redirects", "redirect, EC P-256", f"-N 8 -m redirect {span} doors", "ours; haproxy; nginx"),
            _row("redirects-rsa", "redirect, RSA 2048", f"-N 8 -m redirect {span} doors",
                 "ours, RSA; haproxy, RSA; nginx, RSA"),
            _row("registrations", "registration, connect to p", f"-N 8 -m register {span} doors", "ours"),
            _row("registrations-stay", "registration that stays", f"-N 8 -m stay {span} doors", "ours"),
        ],
        "fairness": [
            _row("fair-0", "8 ping-pongs alone", f"-N 8 {span} traffic", _FAIR),
            _row("fair-1", "8 ping-pongs beside 1 stream", f"-N 8 -P 1 {span} traffic", _FAIR),
            _row("fair-8", "8 ping-pongs beside 8 streams", f"-N 8 -P 8 {span} traffic", _FAIR),
            _row("fair-tls", "8 ping-pongs beside 500 handshakes/s", f"-N 8 -H 500 {span} traffic", _FAIR),
        ],
        "tunnels": [
            _row("tunnel-bulk-1", "1 stream", f"-P 1 {span} traffic", _STREAMING),
            _row("tunnel-bulk-8", "8 streams", f"-P 8 {span} traffic", _STREAMING),
            _row("tunnel-trips-1", "echo of 64 octets, 1 at once", f"-N 1 {span} traffic", _TUNNELS),
            _row("tunnel-trips-16", "echo of 64 octets, 16 at once", f"-N 16 {span} traffic", _TUNNELS),
            _row("tunnel-visits", "visits, 4 at once", f"-N 4 -c {visits // 20} visits", _TUNNELS),
        ],
        "crowd": [
            _row(f"crowd-{key}-{idle}", f"{title} beside {idle:,} idle connections", words, "ours", idle)
            for key, title, words in (
                ("trips", "64 ping-pongs", f"-N 64 {span} traffic"),
                ("visits", "visits", f"-N 16 -c {visits // 4} visits"),
                ("redirects", "redirects", f"-N 8 -m redirect {span} doors"),
            )
            for idle in (100, 9000)
        ],
    }  # fmt: skip


_BULK = "ours; ours, as nobody; haproxy; haproxy splice; haproxy splice 1 MiB; nginx; socat; direct"
_SHORT = "ours; haproxy; haproxy splice; nginx; socat; direct"
_VISITS = "ours; haproxy; nginx; socat"
_PASSED = "ours, pass-through; haproxy, by SNI; nginx, by SNI"
_FAIR = "ours; haproxy; haproxy splice 1 MiB; nginx"
_STREAMING = "ours with agent; ssh -R"  # pagekite delivers nothing of a stream that does not pause
_TUNNELS = _STREAMING + "; pagekite"


def _row(key: str, title: str, words: str, candidates: str, idle: int = 0) -> Row:
    return Row(key, title, tuple(words.split()), tuple(candidates.split("; ")), idle)
