"""The front door: TLS, parsing faults, early answers, lingering, deadlines."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import pytest
from house import ID, OTHER_ID, REGISTRAR, SERVERS, House, Reply

from taaslib import frontdoor

GOOD = f"GET / HTTP/1.1\r\nHost: {REGISTRAR}\r\n\r\n".encode()
WITH_BODY = GOOD[:-2] + b"Content-Length: 9000000\r\n\r\n"


def test_every_answer_says_date_close_and_length(house: House) -> None:
    house.wall.now = 784111777.0  # RFC 9110 5.6.7
    reply = house.ask(GOOD)
    assert reply.fields["date"] == "Sun, 06 Nov 1994 08:49:37 GMT"
    assert reply.fields["connection"] == "close"
    assert int(reply.fields["content-length"]) == len(reply.body) > 10


@pytest.mark.parametrize("cut", range(1, len(GOOD), 7))
def test_a_request_may_come_in_pieces(house: House, cut: int) -> None:
    wire = house.tls().say(GOOD[:cut])
    house.until(lambda: wire.established)
    house.settle()
    assert not wire.gone
    wire.say(GOOD[cut:])
    house.until(lambda: wire.ended)
    assert Reply.parse(wire.plain).status == 401


@pytest.mark.parametrize(
    "request_, status",
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\nHost: x\r\n\r\n", 505),
        (b"GET /\r\nHost: x\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 16384 + b"\r\n\r\n", 431),
        (b"a" * 17000, 431),
        (b"\r\n" + GOOD, 401),
    ],
)
def test_what_is_not_our_http_is_refused(house: House, request_: bytes, status: int) -> None:
    assert house.ask(request_).status == status


def test_the_answer_comes_before_an_announced_body(house: House) -> None:
    head = f"POST / HTTP/1.1\r\nHost: {REGISTRAR}\r\nContent-Length: 99999\r\n\r\n".encode()
    assert house.ask(head).status == 401


def test_a_body_on_its_way_does_not_reset_the_answer(house: House) -> None:
    head = f"POST / HTTP/1.1\r\nHost: {REGISTRAR}\r\nContent-Length: 500000\r\n\r\n".encode()
    wire = house.tls().say(head + b"x" * 500_000)
    house.until(lambda: wire.gone)
    assert wire.ended and Reply.parse(wire.plain).status == 401
    wire.send(b"y" * 100_000)
    house.settle()
    assert not wire.was_reset


def test_lingering_ends_after_a_bounded_number_of_octets(build: Callable[..., House]) -> None:
    house = build(limits={"linger_bytes": 200_000})
    wire = house.tls().say(WITH_BODY)
    house.until(lambda: wire.ended)
    wire.send(b"x" * 1_000_000)
    house.until(lambda: not house.service.door._exchanges)


@pytest.mark.parametrize(
    "request_", [GOOD, GOOD.replace(b"GET", b"HEAD"), GOOD[:-2] + b"Content-Length: 0\r\n\r\n"]
)
def test_one_who_has_said_all_is_not_waited_for(house: House, request_: bytes) -> None:
    wire = house.tls().say(request_)
    house.until(lambda: wire.ended)
    assert not house.service.door._exchanges
    assert Reply.parse(wire.plain).status == 401
    assert wire.closed_in_order


@pytest.mark.parametrize(
    "request_",
    [WITH_BODY, GOOD[:-2] + b"Transfer-Encoding: chunked\r\n\r\n", GOOD + GOOD, b"rubbish\r\n\r\n"],
)
def test_lingering_ends_after_its_time(house: House, request_: bytes) -> None:
    wire = house.tls().say(request_)
    house.until(lambda: wire.ended)
    house.pass_time(4.9)
    assert house.service.door._exchanges
    house.pass_time(0.2)
    assert not house.service.door._exchanges


def test_plain_http_on_the_tls_port_is_told_so_in_plain_text(house: House) -> None:
    wire = house.wire(house.service.port).send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    house.until(lambda: wire.gone)
    reply = Reply.parse(wire.received)
    assert wire.ended and reply.status == 400 and b"https://" in reply.body


def test_no_tls_object_exists_before_the_first_octet(house: House) -> None:
    house.wire(house.service.port)
    house.until(lambda: house.service.door._exchanges)
    (exchange,) = house.service.door._exchanges
    assert exchange.state is frontdoor.State.QUIET
    assert not isinstance(exchange._stream, frontdoor.TlsStream)


def test_a_silent_peer_is_closed_after_10_s(house: House) -> None:
    wire = house.wire(house.service.port)
    house.until(lambda: house.service.door._exchanges)
    house.pass_time(9.9)
    assert not wire.gone
    house.pass_time(0.2)
    house.until(lambda: wire.gone)


def test_a_slow_loris_in_the_handshake_is_closed_after_10_s(house: House) -> None:
    wire = house.wire(house.service.port).send(b"\x16")
    house.until(lambda: house.service.door._exchanges)
    for _ in range(9):
        house.pass_time(1)
        wire.send(b"\x03")
        assert not wire.gone
    house.pass_time(1.1)
    house.until(lambda: wire.gone)


def test_a_slow_loris_in_the_request_gets_408_after_10_s(house: House) -> None:
    wire = house.tls()
    house.until(lambda: wire.established)
    house.settle()
    for _ in range(9):
        house.pass_time(1)
        wire.say(b"G")
        assert not wire.gone
    house.pass_time(1.1)
    house.until(lambda: wire.gone)
    assert Reply.parse(wire.plain).status == 408


def test_a_client_that_does_not_read_its_answer_is_closed(house: House) -> None:
    wire = house.tls()
    wire.paused = True
    house.until(lambda: house.service.door._exchanges)
    house.pass_time(30)
    assert not house.service.door._exchanges


def test_tls_1_1_and_garbage_get_an_alert_and_are_closed(house: House) -> None:
    wire = house.wire(house.service.port).send(b"\x16\x03\x01\x00\x05hello")
    house.until(lambda: wire.gone)
    assert wire.ended and wire.received[:1] == b"\x15"  # RFC 8446 6: an alert record


def test_a_client_that_leaves_in_mid_handshake_is_forgotten(house: House) -> None:
    for leave in ("finish", "reset"):
        wire = house.wire(house.service.port).send(b"\x16\x03\x01\x02\x00")
        house.until(lambda: house.service.door._exchanges)
        getattr(wire, leave)()
        house.until(lambda: not house.service.door._exchanges, leave)


def test_alpn_is_http_1_1(house: House) -> None:
    context = ssl.create_default_context(cafile=str(house.config.certificate))
    context.set_alpn_protocols(["h2", "http/1.1"])
    wire = house.tls(context=context)
    house.until(lambda: wire.established)
    assert wire.tls.selected_alpn_protocol() == "http/1.1"
    assert wire.tls.version() == "TLSv1.3"


def test_tls_1_2_is_spoken_too(house: House) -> None:
    context = ssl.create_default_context(cafile=str(house.config.certificate))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert house.ask(GOOD, context=context).status == 401


def test_a_client_that_closes_in_order_right_behind_its_request_is_answered(house: House) -> None:
    wire = house.tls().say(GOOD)
    house.until(lambda: wire.established)
    try:
        wire.tls.unwrap()
    except ssl.SSLWantReadError:
        wire.step()
    wire.sock.shutdown(1)
    house.until(lambda: wire.gone)
    assert wire.ended and not wire.was_reset


def test_200_registrations_at_once_over_several_labels(house: House) -> None:
    wires = []
    for number in range(200):
        label, id = ("cam", OTHER_ID) if number % 2 else ("home", ID)
        request = f"PUT /register/{label} HTTP/1.1\r\nHost: {REGISTRAR}\r\n{house.authorization(id)}\r\n"
        wires.append(house.tls().say(request.encode()))
    house.until(lambda: all(wire.gone for wire in wires))
    ports = {Reply.parse(wire.plain).port for wire in wires}
    assert len(ports) == 200


def test_a_fault_of_ours_closes_one_connection_and_not_the_service(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(house.service.door, "registrar", broken)
    wire = house.tls().say(GOOD)
    house.until(lambda: wire.gone)
    fault = house.events("fault")[0]
    assert "a bug" in fault["traceback"] and not house.service.door._exchanges
    assert house.get().status == 503


def test_a_page_of_another_label_is_not_answered_from_the_registrar(house: House) -> None:
    reply = house.ask(f"PUT /register/home HTTP/1.1\r\nHost: home.{SERVERS}\r\n\r\n".encode())
    assert reply.status == 503


def test_one_connection_too_many_displaces_the_oldest(build: Callable[..., House]) -> None:
    """A flood of half-open handshakes is bounded in memory, and newcomers are served all the same."""
    house = build(limits={"exchanges": 5})
    loris = [house.wire(house.service.port).send(b"\x16\x03\x01") for _ in range(20)]
    house.until(lambda: sum(wire.gone for wire in loris) == 15)
    assert [wire.gone for wire in loris] == [True] * 15 + [False] * 5
    assert house.ask(GOOD).status == 401
    assert len(house.service.door._exchanges) <= 5


def test_the_registrar_comes_first_and_may_bear_the_servers_name_itself(build: Callable[..., House]) -> None:
    house = build(registrar=SERVERS)
    for host, status in ((SERVERS, 401), (f"{SERVERS.upper()}.:8443", 401), (f"home.{SERVERS}", 503)):
        assert house.ask(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), None).status == status
