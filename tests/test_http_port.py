"""Plain HTTP on http-port: the same address with https, and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from house import REGISTRAR, SERVERS, House, Reply


@pytest.fixture
def house(build: Callable[..., House]) -> House:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return build(http_port=port)


def ask(house: House, target: str, host: str) -> Reply:
    assert house.config.http_port
    request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nCookie: hush\r\n\r\n".encode()
    wire = house.wire(house.config.http_port).send(request)
    house.until(lambda: wire.gone)
    assert wire.ended
    return Reply.parse(wire.received)


@pytest.mark.parametrize("host", [f"home.{SERVERS}", f"NoSuch.{SERVERS}:80", f"a.b.{SERVERS}."])
def test_a_name_below_servers_is_sent_on_to_https(house: House, host: str) -> None:
    reply = ask(house, "/a?b", host)
    name = host.lower().partition(":")[0].rstrip(".")
    assert (reply.status, reply.fields["location"]) == (308, f"https://{name}:{house.service.port}/a?b")
    assert reply.fields["connection"] == "close" and reply.body


@pytest.mark.parametrize("host", [REGISTRAR, SERVERS, "example.org", "127.0.0.1"])
def test_any_other_host_is_421(house: House, host: str) -> None:
    assert ask(house, "/", host).status == 421


def test_nothing_of_the_request_is_logged(house: House) -> None:
    ask(house, "/hush", f"home.{SERVERS}")
    assert house.events("upgraded") and "hush" not in house.log


def test_the_parser_and_the_deadlines_are_the_front_door_s(house: House) -> None:
    assert ask(house, "nonsense", f"home.{SERVERS}").status == 400
    assert house.config.http_port
    wire = house.wire(house.config.http_port).send(b"GET / HT")
    house.until(lambda: house.service.door._exchanges)
    house.settle()
    house.pass_time(10.1)
    house.until(lambda: wire.gone)
    assert Reply.parse(wire.received).status == 408


def test_a_registration_is_not_taken_in_plain(house: House) -> None:
    assert house.config.http_port
    request = f"PUT /register/home HTTP/1.1\r\nHost: {REGISTRAR}\r\n{house.authorization()}\r\n".encode()
    wire = house.wire(house.config.http_port).send(request)
    house.until(lambda: wire.gone)
    assert Reply.parse(wire.received).status == 421
