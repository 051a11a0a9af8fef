"""A registration that stays: the same connection, out of TLS, becomes the responder; and the PROXY header."""

from __future__ import annotations

import ssl
import struct
from collections.abc import Callable

import pytest
from house import ID, OTHER_ID, REGISTRAR, House, Reply, TlsWire

STAY, PROXY = "TAAS-Stay: 1\r\n", "TAAS-Proxy: v2\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def request(house: House, fields: str, id: str = ID) -> bytes:
    line = f"PUT /register/home HTTP/1.1\r\nHost: {REGISTRAR}\r\n"
    return f"{line}{house.authorization(id)}{fields}\r\n".encode()


def answered(house: House, fields: str = STAY, **options: object) -> TlsWire:
    """A registration whose 200 and close_notify have come."""
    wire = house.tls(**options).say(request(house, fields))
    house.until(lambda: wire.closed_in_order, "the answer")
    return wire


def staying(house: House, fields: str = STAY, then: bytes = b"") -> TlsWire:
    """A responder that stayed."""
    waiting = house.waiting()
    wire = answered(house, fields).leave_tls(then)
    house.until(lambda: house.waiting() == waiting + 1, "waiting")
    return wire


def context(most: ssl.TLSVersion, house: House) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(house.config.certificate))
    context.maximum_version = most
    return context


@pytest.mark.parametrize("most", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_answer_says_that_it_stays_and_the_connection_becomes_a_responder(
    house: House, most: ssl.TLSVersion
) -> None:
    wire = answered(house, context=context(most, house))
    reply = Reply.parse(wire.plain)
    assert (reply.status, reply.body, reply.fields["taas-stay"]) == (200, b"-", "1")
    assert "connection" not in reply.fields and reply.fields["content-length"] == "1"
    assert not wire.ended and house.waiting() == 0
    wire.leave_tls()
    house.until(lambda: house.waiting() == 1)
    assert not house.service.door._exchanges
    initiator = house.wire(house.q()).send(b"hello")
    house.until(lambda: wire.received == b"hello")
    wire.send(b"and back").finish()
    house.until(lambda: initiator.ended)
    assert initiator.received == b"and back"


def test_octets_behind_the_client_s_close_notify_are_early_octets(house: House) -> None:
    wire = staying(house, then=b"SSH-2.0-banner\r\n")
    initiator = house.wire(house.q()).send(b"x")
    house.until(lambda: initiator.received == b"SSH-2.0-banner\r\n")
    house.until(lambda: wire.received == b"x")


def test_the_exchange_may_be_cut_at_every_octet(house: House) -> None:
    wire = answered(house)
    wire.tls.unwrap()
    parting = wire.outgoing.read() + b"early"
    wire.left_tls, wire.received = True, b""
    for at in range(len(parting)):
        wire.send(parting[at : at + 1])
        house.turn(2)
    house.until(lambda: house.waiting() == 1)
    initiator = house.wire(house.q()).send(b"x")
    house.until(lambda: initiator.received == b"early")


def test_nothing_is_written_to_it_while_it_waits(house: House) -> None:
    wire = staying(house)
    house.pass_time(600)
    assert wire.received == b"" and not wire.gone


def test_it_has_the_seats_and_the_keep_alive_of_any_other(build: Callable[..., House]) -> None:
    house = build(limits={"responders_per_id": 2})
    first = staying(house)
    second = staying(house)
    answered(house).leave_tls()
    house.until(lambda: first.gone)
    assert house.waiting() == 2 and not second.gone
    second.finish()
    house.until(lambda: house.waiting() == 1)


def test_a_full_label_is_429_while_tls_still_stands(build: Callable[..., House]) -> None:
    house = build(limits={"responders_per_label": 2})
    staying(house)
    pending = answered(house)  # counts like an unclaimed p
    assert house.ask(request(house, STAY, OTHER_ID)).status == 429
    pending.close()
    house.until(lambda: not house.service.door._exchanges)
    assert house.put(id=OTHER_ID).status == 200


@pytest.mark.parametrize(
    "fields",
    [
        "TAAS-Stay: 0\r\n",
        "TAAS-Stay: yes\r\n",
        "TAAS-Stay: 1\r\nTAAS-Stay: 1\r\n",
        STAY + "Content-Length: 1\r\n",
        STAY + "Transfer-Encoding: chunked\r\n",
        "TAAS-Proxy: v1\r\n",
        "TAAS-Proxy:\r\n",
    ],
)
def test_other_wishes_are_400(house: House, fields: str) -> None:
    reply = house.ask(request(house, fields))
    assert reply.status == 400 and b"TAAS-" in reply.body


def test_a_content_length_of_0_is_no_body(house: House) -> None:
    assert Reply.parse(answered(house, STAY + "Content-Length: 0\r\n").plain).status == 200


def refused(house: House, wire: TlsWire) -> None:
    house.until(lambda: not house.service.door._exchanges, "the end")
    house.settle()
    assert house.waiting() == 0
    assert house.service.leases._awaited_of_label["home"] == 0


def test_anything_before_the_client_s_close_notify_ends_it(house: House) -> None:
    refused(house, house.tls().say(request(house, STAY) + b"pipelined"))
    wire = answered(house)
    wire.tls.write(b"application data")
    wire.unsent += wire.outgoing.read()
    refused(house, wire)
    refused(house, answered(house).send(b"plain octets"))


def test_rubbish_behind_the_request_ends_it_and_is_no_fault_of_ours(house: House) -> None:
    wire = house.tls()
    house.until(lambda: wire.established)
    wire.tls.write(request(house, STAY))
    wire.unsent += wire.outgoing.read() + b"\x17\x03\x03\x00\x05rubbi"
    wire.left_tls = True
    house.until(lambda: house.events("registered"))
    refused(house, wire)
    assert not house.events("fault")


def test_a_close_notify_before_our_200_ends_it(house: House) -> None:
    wire = house.tls()
    house.until(lambda: wire.established)
    wire.tls.write(request(house, STAY))
    with pytest.raises(ssl.SSLWantReadError):
        wire.tls.unwrap()
    wire.unsent += wire.outgoing.read()
    wire.left_tls = True
    house.until(lambda: house.events("registered"))
    refused(house, wire)


@pytest.mark.parametrize("leave", ["finish", "reset"])
def test_a_client_that_leaves_instead_is_no_responder(house: House, leave: str) -> None:
    wire = answered(house)
    getattr(wire, leave)()
    refused(house, wire)


def test_a_client_that_says_nothing_is_closed_after_10_s(house: House) -> None:
    wire = answered(house)
    house.settle()
    house.pass_time(9.9)
    assert house.service.door._exchanges
    house.pass_time(0.2)
    refused(house, wire)


def test_a_right_that_is_gone_meanwhile_makes_no_responder(house: House) -> None:
    wire = answered(house)
    with house.admin() as store:
        store.revoke(ID, ["home"])
    wire.leave_tls()
    house.until(lambda: wire.gone)
    refused(house, wire)


def test_without_the_fields_nothing_changes(house: House) -> None:
    reply = house.put()
    assert not [name for name in reply.fields if name.startswith("taas-")]


# The visitor's address


def proxy_header(source: str, port: int, to_port: int, label: bytes) -> bytes:
    octets = bytes(map(int, source.split("."))) + bytes([127, 0, 0, 1]) + struct.pack(">HH", port, to_port)
    tlv = b"\xe0" + struct.pack(">H", len(label)) + label
    return SIGNATURE + b"\x21\x11" + struct.pack(">H", len(octets + tlv)) + octets + tlv


@pytest.mark.parametrize("stay", [STAY, ""])
def test_a_responder_that_asked_is_told_who_visits(house: House, stay: str) -> None:
    if stay:
        responder = staying(house, STAY + PROXY)
        assert Reply.parse(responder.plain).fields["taas-proxy"] == "v2"
    else:
        reply = house.ask(request(house, PROXY))
        assert reply.fields["taas-proxy"] == "v2"
        responder = house.wire(reply.port)
        house.until(lambda: house.waiting() == 1)
    house.pass_time(60)
    assert responder.received == b""  # not one octet before the pairing
    q = house.q()
    initiator = house.wire(q, source="127.0.0.5").send(b"GET /")
    expected = proxy_header("127.0.0.5", initiator.sock.getsockname()[1], q, b"home") + b"GET /"
    house.until(lambda: responder.received == expected)


def test_a_silent_visitor_is_announced_at_the_pairing(house: House) -> None:
    responder = staying(house, STAY + PROXY)
    house.wire(house.q())
    house.until(lambda: house.service.lobby._arriving)
    house.pass_time(1.1)
    house.until(lambda: responder.received.startswith(SIGNATURE))


def test_ipv6_visitors_are_announced_as_such(build: Callable[..., House]) -> None:
    house = build(address=("127.0.0.1", "::1"))
    responder = staying(house, STAY + PROXY)
    house.wire(house.q(), "::1").send(b"x")
    house.until(lambda: responder.received.endswith(b"x"))
    header = responder.received
    assert header[12:16] == b"\x21\x21" + struct.pack(">H", 36 + 3 + 4)
    assert header[16:48] == (b"\0" * 15 + b"\1") * 2


def test_without_the_field_not_one_octet_is_written(house: House) -> None:
    responder = staying(house)
    house.wire(house.q()).send(b"x")
    house.until(lambda: responder.received == b"x")
