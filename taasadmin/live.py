"""What the running service says, as tables for people: status, pairs, pairings; kick, drain and reload.

Knows nothing of the database.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

from taasadmin.steer import Steer
from taasadmin.wording import ago, duration, octets

Answer = tuple[Any, str]  # the same for programs and for people


class Live:
    """Each method asks once.  Raises Silent, Rejected."""

    def __init__(self, steer: Steer) -> None:
        self._steer = steer

    def status(self) -> Answer:
        said = self._steer.get("/status")
        state = "draining" if said["draining"] else "ready" if said["ready"] else "NOT READY"
        rows = [
            (
                each["label"],
                "online" if each["waiting"] or each["live"] else "offline",
                each["waiting"],
                each["live"],
                each["pairs"],
                octets(each["to_initiator"]),
                octets(each["to_responder"]),
                ago(each["last_seen"], time.time()) if each["last_seen"] else "-",
                plain(each["agent"]),
                plain(each["agent_version"]),
                plain(each["port"]),
                f"{each['clock_ahead_seconds']:+d} s" if each["clock_ahead_seconds"] else "-",
            )
            for each in said["labels"]
        ]
        names = [
            "LABEL",
            "STATE",
            "WAITING",
            "LIVE",
            "PAIRS",
            "TO-VISITORS",
            "TO-SERVER",
            "SEEN",
            "AGENT",
            "VERSION",
            "PORT",
            "CLOCK",
        ]
        use = ", ".join(f"{name} {of['use']} of {of['limit']}" for name, of in said["limits"].items())
        up = duration(said["uptime_seconds"])
        head = f"TAAS {said['version']} is {state}, up {up}, at {', '.join(said['listens'])} ({said['pump']})"
        return said, f"{head}\nIn use: {use}\n\n{table(names, rows) if rows else 'No labels yet.'}"

    def pairs(self) -> Answer:
        said = self._steer.get("/pairs")
        rows = [
            (
                each["pair"],
                each["label"],
                each["initiator"],
                each["responder"],
                duration(each["seconds"]),
                octets(each["to_initiator"]),
                octets(each["to_responder"]),
            )
            for each in said["pairs"]
        ]
        names = ["PAIR", "LABEL", "VISITOR", "HIDDEN-SERVER", "AGE", "TO-VISITOR", "TO-SERVER"]
        return said, table(names, rows) if rows else "No live pairs."

    def pairings(self, label: str) -> Answer:
        said = self._steer.get(f"/pairings/{quote(label)}")
        rows = [
            (
                time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(each["timestamp"] / 1000)),
                each["initiator"],
                each["responder"],
                plain(each["waited_seconds"], " s"),
                plain(each["seconds"], " s"),
                plain(each["to_initiator"]),
                plain(each["to_responder"]),
                f"{plain(each['rtt_initiator_ms'])}/{plain(each['rtt_responder_ms'])} ms",
                f"{plain(each['retransmitted_initiator'])}/{plain(each['retransmitted_responder'])}",
                f"{each['ended_by']}: {each['how']}" if each["how"] else "-",
                plain(each["verdict"]) if each["outcome"] else "live",
            )
            for each in said
        ]
        names = [
            "MET",
            "VISITOR",
            "HIDDEN-SERVER",
            "WAITED",
            "LASTED",
            "TO-VISITOR",
            "TO-SERVER",
            "RTT",
            "RESENT",
            "ENDED-BY",
            "VERDICT",
        ]
        return said, table(names, rows) if rows else f"Nobody met under {label} since the service started."

    def kick(self, pair: int | None, label: str | None) -> Answer:
        said = self._steer.post(f"/kick?pair={pair}" if label is None else f"/kick?label={quote(label)}")
        return said, f"Ended {said['kicked']} live {'pair' if said['kicked'] == 1 else 'pairs'}."

    def drain(self) -> Answer:
        said = self._steer.post("/drain")
        return said, "It takes nobody new, and ends with its last live pair, or when `drain` is over."

    def reload(self) -> Answer:
        said = self._steer.post("/reload")
        stays = ", ".join(said["until_restart"])
        return said, "It follows taas.ini and the certificate" + (
            f"; until a restart not: {stays}." if stays else "."
        )


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as they need to be; numbers to the right."""
    lines = [list(names), *([*map(str, row)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = [all(cell[:1].isdigit() for cell in column[1:]) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def plain(value: object, unit: str = "") -> str:
    """VALUE in one line for a terminal: an agent's version is what the agent says."""
    return "-" if value is None else "".join(c if c.isprintable() else "?" for c in str(value)) + unit
