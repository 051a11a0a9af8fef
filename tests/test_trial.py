"""Fail-over before the hidden server's first octet: what is sent again, to whom, and what never is."""

from __future__ import annotations

import gc
import socket
import struct
from collections.abc import Callable

import pytest
from hellos import HELLOS
from house import ID, OTHER_ID, House, Wire, on_linux
from hypothesis import given
from hypothesis import strategies as st
from test_clienthello import extension, hello, records, server_name
from test_passthrough import HOST, set_mode

from taaslib import sockets
from taaslib.clienthello import MOST, HelloReader
from taaslib.lobby import Leg
from taaslib.trial import Trial

HELLO = HELLOS["chromium, post-quantum"](HOST)
REPLY = b"ServerHello and so on"
linux = pytest.mark.skipif(not on_linux(), reason="only Linux tells what was acknowledged")

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h


def swallow(wire: Wire) -> Wire:
    """From here on nothing arrives at this wire, and so nothing is acknowledged: its NAT forgot it."""
    import ctypes

    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))  # BPF: return 0, drop
    wire.sock.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program))
    )
    return wire


def dead(house: House, **options: str) -> Wire:
    """A responder that was alive when it came."""
    return swallow(house.responder(**options))


def visit(house: House, first: bytes = HELLO) -> Wire:
    return house.wire(house.q()).send(first)


def served(house: House, responder: Wire, visitor: Wire, first: bytes = HELLO) -> None:
    house.until(lambda: responder.received == first, "the hello")
    responder.send(REPLY)
    house.until(lambda: visitor.received == REPLY, "the answer")


def causes(house: House) -> list[str]:
    return [event["cause"] for event in house.events("failed-over")]


# ---- silence ---------------------------------------------------------------------------------------------


@linux
def test_a_hello_that_nobody_acknowledged_goes_to_the_next_responder_after_a_second(house: House) -> None:
    gone, alive = dead(house), house.responder()
    visitor = visit(house)
    house.until(lambda: house.events("paired"))
    house.pass_time(0.9)
    assert alive.received == b"" and not house.events("failed-over")
    house.pass_time(0.2)
    served(house, alive, visitor)
    assert (causes(house), gone.received) == (["silent"], b"")
    visitor.send(b"more")
    house.until(lambda: alive.received == HELLO + b"more")


@linux
def test_with_19_of_20_dead_the_visitor_gets_through(house: House) -> None:
    for _ in range(19):
        dead(house)
    alive = house.responder()
    visitor = visit(house)
    house.until(lambda: house.events("paired"))
    for number in range(1, 20):
        house.pass_time(1.1)
        assert len(causes(house)) == number
    served(house, alive, visitor)


@linux
def test_the_dead_one_is_closed_with_a_reset(house: House) -> None:
    gone, _ = dead(house), house.responder()
    visit(house)
    house.until(lambda: house.events("paired"))
    house.pass_time(1.1)
    gone.sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    (failed,) = house.events("failed-over")
    assert failed["responder"] == gone.name
    gone.send(b"am I there?")  # nobody has that connection any more
    house.until(lambda: gone.was_reset)


@linux
def test_pairings_and_journal_tell_who_really_served(house: House) -> None:
    gone, alive = dead(house), house.responder()
    visitor = visit(house)
    house.until(lambda: house.events("paired"))
    assert [str(record.responder) for record in house.service.lobby.recorder.records("home")] == [gone.name]
    house.pass_time(1.1)
    served(house, alive, visitor)
    (record,) = house.service.lobby.recorder.records("home")
    assert (str(record.responder), str(record.initiator)) == (alive.name, visitor.name)
    lines = house.events("paired", "failed-over")
    assert [line["event"] for line in lines] == ["paired", "failed-over", "paired"]
    assert [line["responder"] for line in lines] == [gone.name, gone.name, alive.name]
    assert {line["initiator"] for line in lines} == {visitor.name}
    assert HOST not in str(lines)


@linux
def test_with_no_other_responder_the_visitor_is_parked_and_served_by_the_next(house: House) -> None:
    dead(house)
    visitor = visit(house)
    house.until(lambda: house.events("paired"))
    house.pass_time(1.1)
    assert causes(house) == ["silent"] and not visitor.gone
    served(house, house.responder(), visitor)


@linux
def test_30_s_are_the_most_for_a_visit(house: House) -> None:
    for _ in range(20):
        dead(house)
    others = [dead(house, id=OTHER_ID) for _ in range(20)]
    visitor = visit(house)
    house.until(lambda: house.events("paired"))
    for _ in range(29):
        house.pass_time(1)
        assert not visitor.gone
    house.pass_time(1)
    house.until(lambda: visitor.gone)
    (end,) = house.events("timed-out")
    assert end["initiator"] == visitor.name
    assert house.waiting() == 10 and not others[-1].gone
    assert not house.service.lobby.relays and sum(house.seats_taken().values()) == 10


@linux
def test_30_s_bound_the_parking_too(build: Callable[..., House]) -> None:
    house = build(limits={"parked": 100.0})
    dead(house)
    visitor = visit(house)
    house.until(lambda: house.events("paired"))
    house.pass_time(1.1)
    house.pass_time(28.5)
    assert not visitor.gone
    house.pass_time(0.5)
    house.until(lambda: visitor.gone)
    assert house.events("nobody-came")


@linux
def test_a_visitor_who_leaves_meanwhile_ends_the_visit_and_no_other_responder(house: House) -> None:
    dead(house)
    alive = house.responder()
    visit(house).reset()
    house.until(lambda: house.events("reset") or not house.service.lobby._arriving)
    house.pass_time(40)
    assert not house.service.lobby.relays and not alive.received and house.waiting() >= 1
    assert not causes(house)


@linux
def test_0s_turns_it_off(build: Callable[..., House]) -> None:
    house = build(limits={"fail_over": 0.0})
    dead(house)
    alive = house.responder()
    visit(house)
    house.until(lambda: house.events("paired"))
    house.pass_time(40)
    assert not house.events("failed-over") and alive.received == b""


# ---- resets ----------------------------------------------------------------------------------------------


@linux
def test_a_reset_before_any_acknowledgement_is_answered_at_once(house: House) -> None:
    gone, alive = dead(house), house.responder()
    visitor = visit(house)
    house.until(lambda: house.events("paired"))
    gone.reset()
    served(house, alive, visitor)
    assert causes(house) == ["reset"]


@linux
def test_a_fin_that_left_before_the_hello_came_counts_like_a_reset(house: House) -> None:
    """A hidden side that lets go of what waits must not end a visit that comes at that moment."""
    gone, alive = dead(house), house.responder()
    visitor = visit(house)
    house.until(lambda: house.events("paired"))
    gone.finish()
    served(house, alive, visitor)
    assert causes(house) == ["hung-up"]


def test_a_reset_after_an_acknowledgement_ends_the_visit_and_does_not_drain_the_pool(house: House) -> None:
    """So does every visit to a hidden server whose target is down."""
    pool = [house.responder() for _ in range(4)]
    visitor = visit(house)
    house.until(lambda: pool[0].received == HELLO)
    pool[0].reset()
    house.until(lambda: visitor.gone)
    assert visitor.was_reset
    house.pass_time(40)
    assert house.waiting() == 3 and not house.events("failed-over")
    assert not any(responder.received for responder in pool[1:])


def test_a_reset_long_after_the_acknowledgement_ends_the_visit(house: House) -> None:
    first, other = house.responder(), house.responder()
    visitor = visit(house)
    house.until(lambda: first.received == HELLO)
    house.pass_time(5)  # no answer yet; a live pair since the first second
    assert not visitor.gone
    first.reset()
    house.until(lambda: visitor.was_reset)
    assert house.waiting() == 1 and other.received == b""


def test_a_slow_hidden_server_is_waited_for(house: House) -> None:
    responder, _ = house.responder(), house.responder()
    visitor = visit(house)
    house.until(lambda: responder.received == HELLO)
    house.pass_time(50)
    served(house, responder, visitor)
    assert not house.events("failed-over")


def test_where_the_kernel_can_not_tell_there_is_one_replay_on_reset(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "TCP_INFO", raising=False)
    first, second, third = (house.responder() for _ in range(3))
    visitor = visit(house)
    house.until(lambda: first.received == HELLO)
    first.reset()
    house.until(lambda: second.received == HELLO)
    second.reset()
    house.until(lambda: visitor.was_reset)
    assert causes(house) == ["reset"] and third.received == b"" and house.waiting() == 1


def test_where_the_kernel_can_not_tell_silence_proves_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "TCP_INFO", raising=False)
    first, _ = house.responder(), house.responder()
    visitor = visit(house)
    house.until(lambda: first.received == HELLO)
    house.pass_time(20)
    served(house, first, visitor)
    assert not house.events("failed-over")


# ---- what is kept ----------------------------------------------------------------------------------------


@linux
def test_octets_behind_the_hello_travel_once_and_only_to_who_serves(house: House) -> None:
    """0-RTT data: a request that must not be done twice."""
    dead(house)
    alive = house.responder()
    visitor = visit(house, HELLO + b"0-RTT")
    house.until(lambda: house.events("paired"))
    (relay,) = house.service.lobby.relays
    assert relay.to_responder == len(HELLO)
    house.pass_time(1.1)
    house.until(lambda: alive.received == HELLO)
    house.settle()
    assert alive.received == HELLO  # the data follow when the hidden server has answered
    alive.send(REPLY)
    house.until(lambda: alive.received == HELLO + b"0-RTT" and visitor.received == REPLY)


@linux
def test_the_proxy_header_is_written_anew_and_counts_like_the_hello(house: House) -> None:
    def introduced() -> Wire:
        request = f"PUT /register/home HTTP/1.1\r\nHost: registrar.taas.localhost\r\n{house.authorization()}"
        wire = house.wire(house.ask(f"{request}TAAS-Proxy: v2\r\n\r\n".encode()).port)
        house.until(lambda: any(event["peer"] == wire.name for event in house.events("waits")))
        return wire

    swallow(introduced())
    plain, alive = dead(house), introduced()
    visitor = visit(house)
    house.until(lambda: house.events("paired"))
    house.pass_time(1.1)
    house.pass_time(1.1)
    house.until(lambda: alive.received)
    assert plain.received == b"" and alive.received.startswith(b"\r\n\r\n\0\r\nQUIT\n")
    length = 16 + int.from_bytes(alive.received[14:16], "big")
    assert struct.unpack(">H", alive.received[24:26])[0] == visitor.sock.getsockname()[1]
    served(house, alive, visitor, alive.received[:length] + HELLO)


def test_a_proxy_header_that_was_acknowledged_is_enough_to_end_the_visit(house: House) -> None:
    request = f"PUT /register/home HTTP/1.1\r\nHost: registrar.taas.localhost\r\n{house.authorization()}"
    wires = []
    for _ in range(2):
        wires.append(house.wire(house.ask(f"{request}TAAS-Proxy: v2\r\n\r\n".encode()).port))
    house.until(lambda: house.waiting() == 2)
    visitor = visit(house)
    house.until(lambda: any(wire.received for wire in wires))
    next(wire for wire in wires if wire.received).reset()
    house.until(lambda: visitor.was_reset)
    assert house.waiting() == 1


@linux
def test_a_responder_that_spoke_early_is_never_replayed_from(house: House) -> None:
    gone, other = house.responder().send(b"220 ready\r\n"), house.responder()
    house.settle()
    swallow(gone)
    visitor = visit(house)
    house.until(lambda: visitor.received == b"220 ready\r\n")
    gone.reset()
    house.until(lambda: visitor.gone)
    assert other.received == b"" and not house.events("failed-over")


@linux
@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        HELLO[:-1],
        records(hello(extension(51, b"k" * (MOST + 1)))),
        records(hello(server_name(b"a.example")) + b"\x0b\0\0\0"),
        b"\x16\3\1\0\1\2",
    ],
    ids=["http", "cut off", "more than 16 KiB", "two messages in a record", "another message"],
)
def test_any_other_first_flight_is_relayed_at_once_and_never_sent_again(house: House, first: bytes) -> None:
    gone, other = dead(house), house.responder()
    visitor = visit(house, first)
    house.settle()
    house.pass_time(1.1)  # of a hello that is cut off, the rest is waited for as for a first octet
    house.until(lambda: house.events("paired"))
    house.pass_time(20)
    gone.reset()
    house.until(lambda: visitor.gone)
    assert other.received == b"" and not house.events("failed-over")


def test_a_hello_over_16_kib_arrives_at_once(house: House) -> None:
    responder, first = house.responder(), records(hello(extension(51, b"k" * (MOST + 1))))
    visitor = visit(house, first)
    served(house, responder, visitor, first)


@linux
@pytest.mark.parametrize("size", [1, 100, 1 << 14])
def test_a_hello_over_many_records_is_one_hello(house: House, size: int) -> None:
    first = records(hello(server_name(HOST.encode()), extension(51, b"k" * 1200)), size)
    dead(house)
    alive = house.responder()
    visitor = visit(house, first + b"behind")
    house.until(lambda: house.events("paired"))
    house.pass_time(1.1)
    served(house, alive, visitor, first)
    house.until(lambda: alive.received == first + b"behind")


@linux
@pytest.mark.parametrize("step", [1, 7, 1200])
def test_a_hello_in_many_segments_is_one_hello(house: House, step: int) -> None:
    dead(house)
    alive = house.responder()
    visitor = house.wire(house.q())
    for at in range(0, len(HELLO), step):
        assert not house.events("paired")
        visitor.send(HELLO[at : at + step])
        house.turn()
    house.until(lambda: house.events("paired"))
    house.pass_time(1.1)
    served(house, alive, visitor)


@linux
def test_a_hello_that_becomes_whole_while_its_visitor_is_parked_is_kept(house: House) -> None:
    house.pair()
    visitor = visit(house, HELLO[:300])
    house.pass_time(1.1)
    visitor.send(HELLO[300:])
    house.settle()
    dead_one = swallow(house.wire(house.put().port))
    house.until(lambda: any(e["responder"] == dead_one.name for e in house.events("paired")))
    alive = house.responder()
    house.pass_time(1.1)
    served(house, alive, visitor)


def test_octets_behind_a_hello_with_company_are_no_end_of_the_visit(house: House) -> None:
    """Another message shares its record, so that it is nothing to send again."""
    house.pair()
    first = records(hello(server_name(HOST.encode())) + b"\x08\0\0\1x")
    visitor = visit(house, first + b"behind")
    house.settle()
    responder = house.responder()
    house.until(lambda: responder.received == first + b"behind", "all of it")
    house.settle()
    assert not responder.ended and not visitor.gone


@linux
@pytest.mark.parametrize("behind", [b"", b"0-RTT"])
def test_a_visitor_who_is_passed_through_fails_over_too(house: House, behind: bytes) -> None:
    set_mode(house, "passthrough")
    dead(house)
    alive = house.responder()
    visitor = house.wire(house.service.port).send(HELLO + behind)
    house.until(lambda: house.events("paired"))
    house.pass_time(1.1)
    served(house, alive, visitor)
    house.until(lambda: alive.received == HELLO + behind)


def test_the_first_octets_count_as_relayed(house: House) -> None:
    responder = house.responder()
    visitor = visit(house)
    served(house, responder, visitor)
    visitor.finish()
    responder.finish()
    house.until(lambda: house.events("complete"))
    (end,) = house.events("complete")
    assert (end["to_responder"], end["to_initiator"]) == (len(HELLO), len(REPLY))


def kept() -> int:
    """How many things there are that only who waits, or is on trial, needs."""
    gc.collect()
    return sum(type(each) in (Leg, Trial, HelloReader) for each in gc.get_objects())


def test_nothing_of_a_hello_is_kept_once_it_is_answered(house: House) -> None:
    before = kept()
    responder = house.responder()
    visitor = visit(house)
    served(house, responder, visitor)
    assert kept() == before


# ---- rights and ends -------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("end", ["revoke", "close"])
def test_a_pair_on_trial_is_ended_like_a_live_one(house: House, end: str) -> None:
    dead(house)
    visitor = visit(house)
    house.until(lambda: house.events("paired"))
    if end == "revoke":
        with house.admin() as store:
            store.remove(ID)
        house.pass_time(2)
    else:
        house.service.lobby.close()
    house.until(lambda: visitor.gone)
    house.pass_time(40)
    assert not house.service.lobby.relays and not house.events("failed-over", "fault")


# ---- what is known -----------------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.integers(1, 400), st.integers(1, 400), st.booleans())
def test_where_a_hello_ends_is_known_however_it_comes(
    behind: bytes, size: int, step: int, is_hello: bool
) -> None:
    first = records(hello(server_name(b"a.example")), size) if is_hello else b"GET / HTTP/1.1\r\n\r\n"
    data, reader, fed = first + behind, HelloReader(), b""
    while reader.found is None and len(fed) < len(data):
        piece = data[len(fed) : len(fed) + step]
        fed += piece
        reader.feed(piece)
    assert reader.whole == is_hello
    if is_hello:
        assert fed[: len(fed) - reader.beyond] == first


@linux
def test_what_is_acknowledged_is_counted(house: House) -> None:
    house.responder()
    (leg,) = house.service.lobby._rooms.everyone()
    before, round_trip = sockets.acknowledged(leg.sock)
    assert before is not None and 0 < round_trip < 1
    leg.sock.send(b"12345")
    house.settle()
    assert sockets.acknowledged(leg.sock)[0] == before + 5
