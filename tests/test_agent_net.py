"""The agent behind a network that breaks: it is back within about a minute.  Service and agent are processes
in network namespaces of their own; see test_slow.py."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from house import ID, REGISTRAR, SECRETS, SERVERS
from process import Process
from registrar import AgentProcess, accept, receive
from test_slow import HOME, VPS, Net, Vps, may_make_namespaces

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

MINUTE = 75.0  # about one
ELSEWHERE = {HOME: "10.77.0.22", VPS: "10.77.0.11"}
WAYS = pytest.mark.parametrize("way", [[], ["--plain"]], ids=["staying", "plain"])


class Home:
    """The agent, its target and all that can happen to them."""

    def __init__(self, vps: Vps, net: Net, *options: str) -> None:
        self.vps, self.net = vps, net
        folder = vps.process.folder
        pem = "".join(f"    {line}\n" for line in (folder / "registrar.crt").read_text().splitlines())
        file = folder / "home.agent.ini"
        file.write_text(
            f"[registrar]\nname = {REGISTRAR}\nport = {vps.process.port}\naddress = {VPS}, {ELSEWHERE[VPS]}\n"
            f"trust = pin\ncertificate =\n{pem}\n[credential]\nid = {ID}\nsecret = {SECRETS[ID]}\n"
            f"labels = home\nservers = {SERVERS}\n"
        )
        self.target: socket.socket = net.inside(net.home, lambda: socket.create_server(("127.0.0.1", 0)))
        self.target.settimeout(5)
        to = f"127.0.0.1:{self.target.getsockname()[1]}"
        prefix = ("ip", "netns", "exec", net.home)
        self.agent = AgentProcess(file, "--to", to, *options, prefix=prefix)
        self.agent.said(" ready ")

    def ip(self, name: str, *arguments: str) -> None:
        self.net.ip("-n", name, *arguments)

    def visit(self) -> bool:
        """Whether a visitor gets through."""
        with contextlib.suppress(OSError, AssertionError, IndexError, ValueError):
            answer = self.vps.ask(self.net.vps, "GET /", f"home.{SERVERS}")
            found = re.search(r"^Location: https://[^:]+:(\d+)/", answer, re.M)
            if not found or " 307 " not in answer:
                return False

            def come() -> socket.socket:
                address = self.vps.process.ini.read_text().split("public = ")[1].split()[0]
                return socket.create_connection((address, int(found[1])), 5)

            with self.net.inside(self.net.vps, come) as visitor:
                visitor.sendall(b"hello")
                with accept(self.target) as service:
                    service.settimeout(5)
                    return receive(service, 5) == b"hello"
        return False

    def back(self) -> float:
        """Seconds until a visitor gets through again."""
        began = time.monotonic()
        while not self.visit():
            assert time.monotonic() - began < MINUTE, "".join(self.agent.log)
            time.sleep(0.2)
        return time.monotonic() - began

    def forget_neighbours(self) -> None:
        for name, link in ((self.net.vps, "v0"), (self.net.home, "h0")):
            self.ip(name, "neigh", "flush", "dev", link, "nud", "all")

    def drop(self) -> None:
        """Packets of both sides go to a machine that is not there."""
        for name, address, link in ((self.net.vps, HOME, "v0"), (self.net.home, VPS, "h0")):
            self.ip(name, "neigh", "replace", address, "lladdr", "02:00:00:00:00:99", "dev", link)

    def undrop(self) -> None:
        for name, address, link in ((self.net.vps, HOME, "v0"), (self.net.home, VPS, "h0")):
            self.ip(name, "neigh", "del", address, "dev", link)

    def move(self, name: str, link: str, address: str) -> None:
        self.ip(name, "address", "flush", "dev", link)
        self.ip(name, "address", "add", f"{address}/24", "dev", link)
        self.forget_neighbours()

    def close(self) -> None:
        status, log = self.agent.stop(), "".join(self.agent.log)
        self.target.close()
        assert (status, " fault " in log, "Traceback" in log) == (0, False, False), log


@pytest.fixture
def home(process: Callable[..., Process]) -> Iterator[Callable[..., Home]]:
    if not may_make_namespaces():
        pytest.skip("network namespaces need root and iproute2")
    with contextlib.ExitStack() as stack:

        def make(*options: str) -> Home:
            net = Net()
            stack.callback(net.close)
            made = Home(Vps(process(), net), net, *options)
            stack.callback(made.close)
            assert made.visit()
            return made

        yield make


@WAYS
def test_a_path_that_swallows_everything_for_a_minute(home: Callable[..., Home], way: list[str]) -> None:
    """Noticed within a minute, so that nothing is believed to wait that does not; and mended as fast."""
    here = home(*way)
    here.drop()
    here.agent.said(" lost ", seconds=MINUTE)
    time.sleep(10)
    here.undrop()
    here.back()


@WAYS
def test_a_path_that_swallows_everything_while_a_visitor_is_there(
    home: Callable[..., Home], way: list[str]
) -> None:
    here = home(*way)
    here.drop()
    for _ in range(3):
        assert not here.visit()
    time.sleep(20)
    here.undrop()
    here.back()


def test_a_router_that_rejects(home: Callable[..., Home]) -> None:
    here = home()
    here.ip(here.net.home, "route", "add", "prohibit", f"{VPS}/32")
    here.vps.process.until(lambda: here.agent.count(" lost ") or here.agent.count(" failed "), MINUTE)
    time.sleep(10)
    here.ip(here.net.home, "route", "del", "prohibit", f"{VPS}/32")
    here.back()


@WAYS
def test_another_address_of_the_hidden_side(home: Callable[..., Home], way: list[str]) -> None:
    """A new lease, another Wi-Fi: what waits is dead, and the step's code belongs to the old address."""
    here = home(*way)
    here.move(here.net.home, "h0", ELSEWHERE[HOME])
    here.back()


def test_a_cable_that_is_pulled_and_put_back(home: Callable[..., Home]) -> None:
    here = home()
    here.ip(here.net.home, "link", "set", "h0", "down")
    here.vps.process.until(lambda: here.agent.count(" lost ") + here.agent.count(" failed "), MINUTE)
    here.ip(here.net.home, "link", "set", "h0", "up")
    here.back()


def test_another_address_of_the_service(home: Callable[..., Home]) -> None:
    here = home()
    process = here.vps.process
    process.stop()
    here.move(here.net.vps, "v0", ELSEWHERE[VPS])
    process.ini.write_text(process.ini.read_text().replace(VPS + "\n", ELSEWHERE[VPS] + "\n"))

    def connect() -> socket.socket:
        made: socket.socket = here.net.inside(
            here.net.vps, lambda: socket.create_connection((ELSEWHERE[VPS], process.port), 20)
        )
        return made

    process.connect = connect
    here.net.connect = lambda name, port: here.net.inside(  # type: ignore[method-assign]
        name, lambda: socket.create_connection((ELSEWHERE[VPS], port), 20)
    )
    process.start()
    here.back()


def test_no_network_at_all_at_boot(home: Callable[..., Home]) -> None:
    here = home()
    here.agent.stop()
    here.ip(here.net.home, "link", "set", "h0", "down")
    to = f"127.0.0.1:{here.target.getsockname()[1]}"
    prefix = ("ip", "netns", "exec", here.net.home)
    here.agent = AgentProcess(here.agent.file, "--to", to, prefix=prefix)
    here.agent.said(" failed ", times=3)
    here.ip(here.net.home, "link", "set", "h0", "up")
    here.back()


def test_a_live_visit_survives_a_short_silence_and_ends_with_a_long_one(home: Callable[..., Home]) -> None:
    here = home()
    visitor = here.vps.visitor()
    with visitor:
        visitor.sendall(b"hello")
        with accept(here.target) as service:
            service.settimeout(100)
            assert receive(service, 5) == b"hello"
            here.drop()
            time.sleep(5)
            here.undrop()
            visitor.sendall(b"again")
            assert receive(service, 5) == b"again"
            here.drop()
            service.sendall(b"into the dark")
            with pytest.raises(ConnectionResetError):
                service.recv(1)
        here.undrop()
    assert re.search(" (timed-out|reset) ", here.agent.said("received=10"))
