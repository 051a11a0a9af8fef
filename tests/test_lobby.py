"""Legs that wait: seats, early octets, first octets, parking, hang-ups, and what is never written."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable

import pytest
from house import ID, OTHER_ID, House, Wire, on_linux

from taaslib.limits import Limits

# Responders


def test_nothing_is_written_to_a_responder_while_it_waits(house: House) -> None:
    """C2: the client takes the first octet for the visitor's."""
    responder = house.responder()
    for _ in range(10):
        house.pass_time(60)
    assert responder.received == b"" and not responder.gone


def test_a_responder_that_ends_or_resets_leaves_at_once(house: House) -> None:
    for leave, event in (("finish", "hung-up"), ("reset", "reset")):
        responder = house.responder()
        getattr(responder, leave)()
        house.until(lambda: house.waiting() == 0, leave)
        assert house.events(event)


def test_b9_a_banner_sent_before_the_pairing_is_kept(house: House) -> None:
    responder = house.responder().send(b"SSH-2.0-hidden\r\n")
    house.settle()
    initiator = house.wire(house.q()).send(b"SSH-2.0-visitor\r\n")
    house.until(lambda: initiator.received == b"SSH-2.0-hidden\r\n")
    house.until(lambda: responder.received == b"SSH-2.0-visitor\r\n")


def test_early_octets_beyond_the_buffer_wait_in_the_kernel(house: House) -> None:
    early = bytes(range(256)) * 400  # 100 KiB
    responder = house.responder().send(early)
    house.until(lambda: not responder.unsent)
    house.settle()
    (leg,) = house.service.lobby._rooms.everyone()
    assert len(leg.early) == 16 * 1024
    initiator = house.wire(house.q()).send(b"x")
    house.until(lambda: len(initiator.received) == len(early))
    assert initiator.received == early


def test_a_responder_that_ends_behind_unread_early_octets_is_noticed(house: House) -> None:
    responder = house.responder().send(b"e" * 50_000)
    house.until(lambda: not responder.unsent)
    house.settle()
    if on_linux():
        responder.finish()
        house.until(lambda: house.waiting() == 0)


def test_a_new_responder_displaces_the_oldest_of_its_own_id(build: Callable[..., House]) -> None:
    house = build(limits={"responders_per_id": 2})
    other = house.responder(id=OTHER_ID)
    first, second, third = (house.responder() for _ in range(3))
    house.until(lambda: first.gone)
    assert not (second.gone or third.gone or other.gone)
    assert house.waiting() == 3
    assert house.events("displaced")


def test_20_seats_per_id_within_a_label(house: House) -> None:
    responders = [house.responder() for _ in range(21)]
    house.until(lambda: responders[0].gone)
    assert house.waiting() == 20 and not any(responder.gone for responder in responders[1:])


def test_responders_are_served_in_the_order_of_their_coming(house: House) -> None:
    first, second = house.responder(), house.responder()
    port = house.q()
    a = house.wire(port).send(b"a")
    house.until(lambda: first.received == b"a")
    b = house.wire(port).send(b"b")
    house.until(lambda: second.received == b"b")
    assert not (a.gone or b.gone)


def test_b11_a_reload_s_keep_alive_is_that_of_who_comes_next(house: House) -> None:
    house.responder()
    service, visitor = house.service, house.q()
    service._follow_config(dataclasses.replace(service.config, limits=Limits(keepalive_idle=7)))
    house.wire(visitor)
    house.until(lambda: service.lobby._arriving)
    (leg,) = service.lobby._arriving
    if on_linux():
        assert leg.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7


def test_b11_keep_alive_is_minutes_and_not_the_kernel_s_two_hours(house: House) -> None:
    house.responder()
    (leg,) = house.service.lobby._rooms.everyone()
    assert leg.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    if on_linux():
        assert leg.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 25
        assert leg.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5
        assert leg.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
        assert leg.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 40_000


@pytest.mark.skipif(not on_linux(), reason="TCP_USER_TIMEOUT is Linux's")
def test_a_live_pair_has_no_user_timeout_that_would_end_a_paused_reader(house: House) -> None:
    house.pair()
    (relay,) = house.service.lobby.relays
    for end in (relay.responder, relay.initiator):
        assert end.source.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


def test_an_urgent_octet_to_a_waiting_responder_does_not_spin(house: House) -> None:
    responder = house.responder()
    responder.sock.send(b"!", socket.MSG_OOB)
    house.settle()
    served: list[int] = []
    serve = house.service.loop._serve
    house.service.loop._serve = lambda fd, events: (served.append(fd), serve(fd, events))[1]  # type: ignore[method-assign,assignment]
    house.settle()
    assert served == []
    assert not responder.gone and house.waiting() == 1


# Initiators


def arrived(house: House) -> Wire:
    """A visitor who has connected to q and said nothing."""
    wire = house.wire(house.q())
    house.until(lambda: house.service.lobby._arriving)
    return wire


def test_a_client_is_paired_when_its_first_octets_arrive(house: House) -> None:
    responder = house.responder()
    initiator = arrived(house)
    assert house.waiting() == 1
    initiator.send(b"hello")
    house.until(lambda: responder.received == b"hello")


def test_a_silent_client_is_paired_after_1_s(house: House) -> None:
    """A server that speaks first still works."""
    responder = house.responder()
    initiator = arrived(house)
    house.pass_time(0.9)
    assert house.waiting() == 1
    house.pass_time(0.2)
    assert house.waiting() == 0
    responder.send(b"220 ready\r\n")
    house.until(lambda: initiator.received == b"220 ready\r\n")


def test_a_port_scanner_uses_nothing_up(house: House) -> None:
    """FIN or RST before any octet."""
    responder = house.responder()
    for leave in ("finish", "reset"):
        getattr(arrived(house), leave)()
        house.until(lambda: not house.service.lobby._arriving)
    house.pass_time(5)
    assert house.waiting() == 1 and not responder.gone


def test_a_client_s_fin_behind_its_first_octets_is_relayed(house: House) -> None:
    responder = house.responder()
    initiator = house.wire(house.q()).send(b"all I say").finish()
    house.until(lambda: responder.ended)
    assert responder.received == b"all I say"
    responder.send(b"and the answer").finish()
    house.until(lambda: initiator.ended)
    assert initiator.received == b"and the answer"


def drained(house: House) -> int:
    """The q of a label that is served and has nobody waiting."""
    house.pair()
    return house.q()


def test_with_no_responder_free_a_client_is_parked_and_served_in_order(house: House) -> None:
    port = drained(house)
    first = house.wire(port).send(b"first")
    second = house.wire(port).send(b"second")
    house.settle()
    one, two = house.responder(), house.responder()
    house.until(lambda: one.received == b"first" and two.received == b"second")
    assert not (first.gone or second.gone)


def test_a_parked_client_is_closed_after_10_s(house: House) -> None:
    initiator = house.wire(drained(house)).send(b"x")
    house.settle()
    house.pass_time(9.9)
    assert not initiator.gone
    house.pass_time(0.2)
    house.until(lambda: initiator.gone)
    assert house.events("nobody-came")


def test_a_parked_client_that_leaves_uses_nothing_up(house: House) -> None:
    port = drained(house)
    house.wire(port).send(b"x")
    house.settle()
    house.wires[-1].reset()
    house.settle()
    responder = house.responder()
    house.settle()
    assert house.waiting() == 1 and responder.received == b""


def test_a_parked_client_that_half_closed_is_still_served(house: House) -> None:
    initiator = house.wire(drained(house)).send(b"request").finish()
    house.settle()
    responder = house.responder()
    house.until(lambda: responder.ended)
    responder.send(b"answer").finish()
    house.until(lambda: initiator.ended)
    assert (responder.received, initiator.received) == (b"request", b"answer")


def test_32_clients_are_parked_and_no_more(house: House) -> None:
    port = drained(house)
    parked = [house.wire(port, source=f"127.0.0.{n % 2 + 1}").send(b"x") for n in range(32)]
    house.settle()
    one_too_many = house.wire(port, source="127.0.0.3").send(b"x")
    house.until(lambda: one_too_many.gone)
    assert not any(wire.gone for wire in parked)
    assert house.events("full")


def test_never_two_clients_on_one_responder(house: House) -> None:
    responders = [house.responder() for _ in range(5)]
    port = house.q()
    clients = [house.wire(port).send(b"%02d" % number) for number in range(5)]
    house.until(lambda: all(responder.received for responder in responders))
    house.settle()
    assert sorted(responder.received for responder in responders) == [b"%02d" % n for n in range(5)]
    for responder in responders:
        responder.send(responder.received)
    house.until(lambda: all(client.received for client in clients))
    assert [client.received for client in clients] == [b"%02d" % number for number in range(5)]


def test_b3_a_visitor_s_reset_ends_its_pair_and_nothing_else(house: House) -> None:
    responder, initiator = house.pair()
    other_responder, other_initiator = house.pair()
    initiator.reset()
    house.until(lambda: responder.gone)
    assert responder.was_reset
    other_initiator.send(b"still here")
    house.until(lambda: other_responder.received == b"still here")


def test_a_pool_of_one_id_does_not_count_for_another(build: Callable[..., House]) -> None:
    house = build(limits={"responders_per_id": 1})
    mine, theirs = house.responder(id=ID), house.responder(id=OTHER_ID)
    house.settle()
    assert house.waiting() == 2 and not (mine.gone or theirs.gone)
