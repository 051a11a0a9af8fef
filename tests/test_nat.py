"""A NAT that loses its table, before the hidden server: nftables in a namespace (see test_slow.py).

What it forgot it either drops, as routers at home do, or answers with a reset of its own.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import test_slow
from process import Process
from test_slow import HOME, Net, Vps, may_make_namespaces
from test_trial import HELLO, REPLY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

INNER, GATEWAY = "10.78.0.2", "10.78.0.1"
TABLE = """
table ip taas {{
    chain back {{ type nat hook postrouting priority 100; oifname "h0" masquerade; }}
    chain in {{ type filter hook input priority 0; policy {policy}; }}
}}
"""


class NatNet(Net):
    """`vps`, then a router that masquerades as HOME, then `home` behind it."""

    def __init__(self, policy: str) -> None:
        super().__init__()
        self.router, self.home = self.home, f"{self.tag}-inner"
        self.ip("netns", "add", self.home)
        self.ip("link", "add", "r1", "netns", self.router, "type", "veth", "peer", "i0", "netns", self.home)
        for name, link, address in ((self.router, "r1", GATEWAY), (self.home, "i0", INNER)):
            self.ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            self.ip("-n", name, "link", "set", link, "up")
        self.ip("-n", self.home, "route", "add", "default", "via", GATEWAY)
        self.inside(self.router, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
        command = ["ip", "netns", "exec", self.router, "nft", "-f", "-"]
        subprocess.run(command, input=TABLE.format(policy=policy), check=True, text=True, capture_output=True)

    def forget(self) -> None:
        """The outer link goes down: masquerading forgets all that went through it."""
        for state in ("down", "up"):
            self.ip("-n", self.router, "link", "set", "h0", state)

    def close(self) -> None:
        super().close()
        self.ip("netns", "delete", self.router)


@pytest.fixture
def behind_nat(
    process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Vps]]:
    if not (may_make_namespaces() and shutil.which("nft")):
        pytest.skip("a NAT of our own needs root, iproute2 and nftables")
    monkeypatch.setattr(test_slow, "QUICK", "")  # keep-alive would find the dead before the visitor does
    nets: list[NatNet] = []

    def build(policy: str) -> Vps:
        nets.append(NatNet(policy))
        return Vps(process(), nets[-1])

    yield build
    for net in nets:
        net.close()


def receive(sock: socket.socket, count: int) -> bytes:
    sock.settimeout(40)
    data = b""
    while len(data) < count and (more := sock.recv(count - len(data))):
        data += more
    return data


@pytest.mark.parametrize(("policy", "cause"), [("drop", "silent"), ("accept", "reset")])
def test_with_19_of_20_forgotten_by_the_nat_the_visitor_gets_through(
    behind_nat: Callable[[str], Vps], policy: str, cause: str
) -> None:
    vps = behind_nat(policy)
    forgotten = [vps.responder() for _ in range(19)]
    assert isinstance(vps.net, NatNet)
    vps.net.forget()
    responder = vps.responder()
    vps.process.until(lambda: vps.process.log.count(" waits ") == 20)
    assert all(f"peer={HOME}:" in line for line in vps.process.log.splitlines() if " waits " in line)
    with vps.visitor() as visitor:
        visitor.sendall(HELLO + b"0-RTT")
        assert receive(responder, len(HELLO)) == HELLO
        responder.sendall(REPLY)
        assert receive(visitor, len(REPLY)) == REPLY
        assert receive(responder, 5) == b"0-RTT"
        assert vps.process.log.count(f" cause={cause}") == vps.process.log.count(" failed-over ") == 19
    for sock in forgotten:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        sock.close()
    responder.close()
