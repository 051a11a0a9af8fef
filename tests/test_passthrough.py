"""Pass-through by server name on the front door's own port: not one octet of that TLS is ours."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from house import REGISTRAR, SERVERS, House, TlsWire, Wire

HOST = f"home.{SERVERS}"
ALERT = bytes.fromhex("15030300020270")  # fatal, unrecognized_name


def hello(name: str | None, alpn: str = "acme-tls/1") -> bytes:
    """A ClientHello as OpenSSL sends it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def set_mode(house: House, mode: str, label: str = "home") -> None:
    with house.admin() as store:
        store.set_mode(label, mode)
    house.pass_time(1)


@pytest.fixture
def through(house: House) -> House:
    """A house whose label `home` is passed through."""
    set_mode(house, "passthrough")
    return house


def test_a_hello_reaches_the_hidden_server_as_it_came(through: House) -> None:
    responder = through.responder()
    first = hello(HOST)
    visitor = through.wire(through.service.port).send(first)
    through.until(lambda: responder.received == first)
    responder.send(b"ServerHello and so on")
    through.until(lambda: visitor.received == b"ServerHello and so on")
    assert through.events("passed-through")[0]["label"] == "home"


@pytest.mark.parametrize("step", [1, 5, 300])
def test_a_hello_may_come_in_pieces(through: House, step: int) -> None:
    responder = through.responder()
    first = hello(HOST)
    visitor = through.wire(through.service.port)
    for at in range(0, len(first), step):
        visitor.send(first[at : at + step])
        through.turn()
    through.until(lambda: responder.received == first)


def test_a_whole_tls_session_ends_at_the_hidden_server(
    through: House, certificate: tuple[Path, Path]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.set_alpn_protocols(["h2"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    responder = through.responder()
    client_context = ssl.create_default_context(cafile=str(certificate[0]))
    client_context.set_alpn_protocols(["h2", "http/1.1"])
    visitor = TlsWire(through.service.port, client_context, HOST)
    through.wires.append(visitor)
    visitor.say(b"PRI * HTTP/2.0\r\n\r\n")
    heard = b""

    def served() -> bool:
        nonlocal heard
        data, responder.received = responder.received, b""
        incoming.write(data)
        try:
            server.do_handshake()
            while True:
                heard += server.read(4096)
        except ssl.SSLWantReadError:
            responder.send(outgoing.read())
        return heard == b"PRI * HTTP/2.0\r\n\r\n"

    through.until(served)
    assert visitor.tls.selected_alpn_protocol() == "h2"


def alerted(house: House, name: str | None) -> Wire:
    visitor = house.wire(house.service.port).send(hello(name))
    house.until(lambda: visitor.gone)
    assert visitor.ended and not visitor.was_reset
    return visitor


def test_an_offline_pass_through_label_gets_the_alert_and_a_fin(through: House) -> None:
    assert alerted(through, HOST).received == ALERT


def test_where_nothing_is_passed_through_any_server_name_gets_our_tls(house: House) -> None:
    """Old clients notice nothing: RFC 6066 lets a server ignore the name."""
    visitor = house.wire(house.service.port).send(hello("example.org", alpn="http/1.1"))
    house.until(lambda: visitor.received)
    assert visitor.received[0] == 0x16


def test_only_names_outside_ours_get_the_alert(house: House) -> None:
    set_mode(house, "passthrough", "cam")
    assert alerted(house, "example.org").received == ALERT
    for name in (None, REGISTRAR, SERVERS, f"nosuch.{SERVERS}", f"a.b.{SERVERS}", HOST):
        visitor = house.wire(house.service.port).send(hello(name, alpn="http/1.1"))
        house.until(lambda visitor=visitor: visitor.received)
        assert visitor.received[0] == 0x16, name  # our ServerHello


@pytest.mark.parametrize(("step", "pieces"), [(1, 1), (1, 40), (3, 40), (5, 1), (6, 1), (100, 1), (100, 2)])
def test_the_first_label_that_is_passed_through_counts_for_a_hello_on_its_way(
    house: House, step: int, pieces: int
) -> None:
    """Nobody looks for names before, and half a hello does not decide that nobody will."""
    responder, first = house.responder(), hello(HOST)
    half = step * pieces
    assert half < len(first)
    visitor = house.wire(house.service.port)
    for at in range(0, half, step):
        visitor.send(first[at : at + step])
        house.turn()
    set_mode(house, "passthrough")
    visitor.send(first[half:])
    house.until(lambda: responder.received == first)


def test_an_address_in_place_of_a_name_is_ours(house: House) -> None:
    """No library sends one, but it is not refused (RFC 6066 3 forbids it to the client alone)."""
    first = hello("a" * 9, alpn="http/1.1").replace(b"a" * 9, b"127.0.0.1")
    visitor = house.wire(house.service.port).send(first)
    house.until(lambda: visitor.received)
    assert visitor.received[0] == 0x16


def test_a_pass_through_label_in_host_alone_is_421(through: House) -> None:
    through.responder()
    request = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    assert through.ask(request, None).status == 421
    assert through.ask(request, REGISTRAR).status == 421


def test_no_q_is_opened_for_a_pass_through_label(through: House) -> None:
    through.responder()
    assert not through.events("opened")


def test_both_ways_at_once(house: House) -> None:
    set_mode(house, "both")
    assert house.get().status == 503  # offline: our TLS, our 503
    responder = house.responder()
    reply = house.ask(f"GET /x HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode(), None)
    assert reply.status == 307
    first = hello(HOST)
    house.wire(house.service.port).send(first)
    house.until(lambda: responder.received == first)


def test_a_label_that_becomes_pass_through_loses_its_q_and_gets_it_back(house: House) -> None:
    house.responder()
    port = house.q()
    set_mode(house, "passthrough")
    assert not house.listening(port)
    set_mode(house, "redirect")
    assert house.q() == port


def test_a_passed_visitor_is_parked_like_any_other(through: House) -> None:
    through.responder()
    first = hello(HOST)
    through.wire(through.service.port).send(first)
    through.until(lambda: through.events("paired"))
    parked = through.wire(through.service.port).send(first)
    through.until(lambda: len(through.events("passed-through")) == 2)
    late = through.responder()
    through.until(lambda: late.received == first)
    assert not parked.gone


def test_a_visitor_who_is_passed_takes_no_slot_of_the_front_door(build: Callable[..., House]) -> None:
    house = build(limits={"exchanges": 2})
    set_mode(house, "passthrough")
    visitors = []
    for _ in range(4):
        house.responder()
        visitors.append(house.wire(house.service.port).send(hello(HOST)))
    house.until(lambda: len(house.events("paired")) == 4)
    house.pass_time(60)  # nor any of its deadlines
    assert not any(visitor.gone for visitor in visitors)


def test_a_busy_database_never_hands_a_connection_to_the_wrong_side(through: House) -> None:
    responder = through.responder()
    broken = through.config.database.with_name("broken")
    broken.write_bytes(b"no database" * 1000)
    broken.replace(through.config.database)
    through.pass_time(2)
    visitor = through.wire(through.service.port).send(hello(HOST, alpn="http/1.1"))
    through.until(lambda: visitor.received)
    assert visitor.received[0] == 0x16 and responder.received == b""
