"""Live pairs through the whole service, once per pump: octets, ends, stalls and what they cost.

Whether anything spins is asked of the poller itself: it is level-triggered, so an event that nobody acts on
is there each time that we look.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from house import House, Wire

from taaslib import loop as loop_module
from taaslib import sockets
from taaslib.loop import SelectorsPoller
from taaslib.outcomes import Outcome
from taaslib.pump import LARGE, SMALL, can_splice
from taaslib.relay import Relay, State

PIPE = 1024 * 1024
EARLY = 16 * 1024
HOUR = 3600.0
PUMPS = ["splice", "ring"] if can_splice else ["ring"]
ROOT = Path(__file__).parent.parent
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's TCP_INFO, epoll or /proc")

pytestmark = pytest.mark.parametrize("pump", PUMPS)


@pytest.fixture
def house(build: Callable[..., House], pump: str) -> House:
    return build(pump=pump)


@pytest.fixture(scope="module")
def payload() -> bytes:
    return random.Random(64).randbytes(64 << 20)


class Bulk:
    """Takes a wire over: sends a view without copying it and keeps only a hash of what comes."""

    _buffer = memoryview(bytearray(1 << 20))

    def __init__(self, house: House, wire: Wire) -> None:
        house.wires[house.wires.index(wire)] = self  # type: ignore[call-overload]
        self.sock = wire.sock
        self.left = memoryview(b"")
        self.hash = hashlib.sha256()
        self.received = 0
        self.ended = self.was_reset = self.finishing = False
        self.paused = False

    @property
    def gone(self) -> bool:
        return self.ended or self.was_reset

    def send(self, data: bytes | memoryview, *, finish: bool = False) -> None:
        self.left, self.finishing = memoryview(data), finish

    def step(self) -> None:
        try:
            while self.left:
                self.left = self.left[self.sock.send(self.left) :]
        except BlockingIOError:
            pass
        except ConnectionResetError:  # told once, by whatever call comes first
            self.was_reset = True
        except BrokenPipeError:
            self.left = memoryview(b"")
        if self.finishing and not self.left:
            self.finishing = False
            self.sock.shutdown(socket.SHUT_WR)
        while not (self.paused or self.ended or self.was_reset):
            try:
                count = self.sock.recv_into(self._buffer)
            except BlockingIOError:
                return
            except ConnectionResetError:
                self.was_reset = True
                return
            self.hash.update(self._buffer[:count])
            self.received += count
            self.ended = not count

    def close(self) -> None:
        self.sock.close()


def sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def the_relay(house: House) -> Relay:
    (relay,) = house.service.lobby.relays
    return relay


def quiet(house: House) -> bool:
    """Whether the poller has nothing to say, however often it is asked."""
    return not any(house.service.loop._poller.poll(0.0) for _ in range(10))


def falls_quiet(house: House, turns: int = 3000) -> bool:
    """Whether the loop comes to rest within a bounded number of turns, and stays there."""
    for _ in range(turns):
        house.turn()
        if quiet(house):
            house.turn(3)
            return quiet(house)
    return False


def the_end(house: House, event: str) -> dict[str, Any]:
    """The log line of the one pair that ended, and in this way."""
    ends = house.events("complete", "reset", "timed-out", "idle", "fault", "shutdown")
    assert [line["event"] for line in ends] == [event], house.log
    return ends[0]


def stall(house: House, wire: Wire, relay: Relay, end: str = "responder") -> bytes:
    """Send over WIRE until the pump that reads it is full and its sink refuses more.  Returns it all."""
    pump, sink = getattr(relay, end), getattr(relay, end).sink
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # fixed: a stalled sink stays stalled
    sent = []
    for number in range(2000):
        sent.append(b"%08d" % number * (SMALL // 2))
        wire.send(sent[-1])
        house.turn()
        if pump.pending and not pump.has_room and not wire.unsent:
            house.until(lambda: sockets.unanswered(sink) is None, "the ACKs of all that could be sent")
            house.turn(3)
            if pump.pending and not pump.has_room:
                return b"".join(sent)
    raise AssertionError("the reader is not paused")


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


# Octets


@pytest.mark.parametrize(
    "octets",
    [
        1,
        2,
        1000,
        SMALL - 1,
        SMALL,
        SMALL + 1,
        2 * SMALL,
        65536,
        LARGE + 1,
        PIPE,
        PIPE + 1,
        3_000_007,
        64 << 20,
    ],
)
def test_octets_pass_unchanged_in_both_directions_at_once(
    house: House, pump: str, payload: bytes, octets: int
) -> None:
    there = memoryview(payload)[:octets]
    back = memoryview(payload)[::-1][:octets].tobytes() if octets < 64 << 20 else payload[1:] + payload[:1]
    responder, initiator = (Bulk(house, wire) for wire in house.pair())
    relay = the_relay(house)
    initiator.send(there, finish=True)
    responder.send(back, finish=True)
    house.until(lambda: initiator.ended and responder.ended, "both ends")
    assert (responder.received, responder.hash.hexdigest()) == (octets, sha256(there))
    assert (initiator.received, initiator.hash.hexdigest()) == (octets, sha256(back))
    house.until(lambda: not house.service.lobby.relays, "the pair's end")
    line = the_end(house, "complete")
    assert (line["to_initiator"], line["to_responder"]) == (octets, octets + 1)
    for end in (relay.responder, relay.initiator):
        if pump == "ring" or octets <= SMALL:
            assert end.spliced == 0
        elif octets >= 3_000_000:
            assert end.spliced > end.copied


@pytest.mark.parametrize("first", ["initiator", "responder"])
def test_a_half_close_is_passed_on_and_the_other_direction_goes_on(house: House, first: str) -> None:
    responder, initiator = house.pair()
    one, other = (initiator, responder) if first == "initiator" else (responder, initiator)
    one.send(b"my last words").finish()
    house.until(lambda: other.ended, "the FIN")
    assert other.received == b"my last words"
    assert not one.ended
    for number in range(5):
        other.send(b"%d" % number)
        house.until(lambda number=number: one.received == b"01234"[: number + 1], "data after the half-close")
    assert falls_quiet(house)
    assert not one.ended and the_relay(house).state is State.LIVE
    answer = bytes(range(256)) * 4000
    other.send(answer)
    house.until(lambda: not other.unsent, "all sent")
    other.finish()
    house.until(lambda: one.ended, "the other FIN")
    assert one.received == b"01234" + answer
    house.until(lambda: not house.service.lobby.relays, "the pair's end")
    the_end(house, "complete")


@pytest.mark.parametrize("first", ["initiator", "responder"])
def test_a_fin_comes_after_all_that_was_sent_before_it(house: House, pump: str, first: str) -> None:
    responder, initiator = (Bulk(house, wire) for wire in house.pair())
    one, other = (initiator, responder) if first == "initiator" else (responder, initiator)
    data = random.Random(5).randbytes(5_000_000)
    one.send(data, finish=True)
    house.until(lambda: other.ended, "the FIN")
    assert (other.received, other.hash.hexdigest()) == (len(data), sha256(data))
    relay = the_relay(house)
    moved_by = relay.initiator if first == "initiator" else relay.responder
    assert bool(moved_by.spliced) == (pump == "splice")
    assert falls_quiet(house)


def test_fins_without_octets_end_a_pair_in_order(house: House) -> None:
    responder, initiator = house.pair()
    responder.finish()
    house.until(lambda: initiator.ended, "the FIN")
    initiator.finish()
    house.until(lambda: responder.ended, "the other FIN")
    house.until(lambda: not house.service.lobby.relays, "the pair's end")
    assert the_end(house, "complete")["to_initiator"] == 0


def test_octets_are_counted_live_and_logged(house: House) -> None:
    responder, initiator = house.pair(first=b"hello")
    relay = the_relay(house)
    assert (relay.to_initiator, relay.to_responder) == (0, 5)
    responder.send(b"x" * 1000)
    house.until(lambda: len(initiator.received) == 1000, "1000 octets")
    assert (relay.to_initiator, relay.to_responder) == (1000, 5)
    initiator.send(b"y" * 200_000)
    house.until(lambda: len(responder.received) == 200_000, "200000 octets")
    assert (relay.to_initiator, relay.to_responder) == (1000, 200_005)
    assert "live" in repr(relay) and "200005" in repr(relay)
    house.clock.now += 12.5
    initiator.finish()
    responder.finish()
    house.until(lambda: not house.service.lobby.relays, "the pair's end")
    line = the_end(house, "complete")
    assert (line["label"], line["to_initiator"], line["to_responder"]) == ("home", 1000, 200_005)
    assert (line["responder"], line["initiator"]) == (responder.name, initiator.name)
    assert line["seconds"] == 12.5


def test_fifty_pairs_at_once_do_not_mix(build: Callable[..., House], pump: str) -> None:
    house = build(pump=pump, limits={"responders_per_id": 60})
    responders = [house.wire(house.put().port) for _ in range(50)]
    house.until(lambda: house.waiting() == 50, "fifty responders")
    q = house.q()
    source = random.Random(50)
    payloads = [source.randbytes(source.choice([1, 100, SMALL, 70_000, 400_000])) for _ in range(50)]
    initiators = []
    for number, words in enumerate(payloads):
        initiators.append(house.wire(q).send(b"%02d" % number))
        initiators[-1].send(words)
    house.until(lambda: len(house.service.lobby.relays) == 50, "fifty pairs")

    def heard(wire: Wire) -> bytes | None:
        """What this responder's visitor has to say, once it is all there."""
        number = wire.received[:2]
        return wire.received if number and wire.received[2:] == payloads[int(number)] else None

    house.until(lambda: all(map(heard, responders)), "all words")
    assert sorted(wire.received[:2] for wire in responders) == [b"%02d" % number for number in range(50)]
    for wire in responders:
        wire.send(wire.received[::-1])
    house.until(
        lambda: all(
            wire.received == (b"%02d" % number + payloads[number])[::-1]
            for number, wire in enumerate(initiators)
        ),
        "all answers",
    )
    relays = house.service.lobby.relays
    assert sum(relay.to_initiator for relay in relays) == sum(map(len, payloads)) + 100
    assert any(relay.initiator.spliced for relay in relays) == (pump == "splice")
    for wire in [*responders, *initiators]:
        wire.finish()
    house.until(lambda: not house.service.lobby.relays, "the pairs' ends")
    assert len(house.events("complete")) == 50


# Octets from before the pairing


@pytest.mark.parametrize("octets", [1, 1000, EARLY - 1, EARLY, EARLY + 1, 300_000])
def test_what_a_responder_says_early_is_relayed_first(house: House, octets: int) -> None:
    early = random.Random(octets).randbytes(octets)
    responder = house.responder().send(early)
    assert falls_quiet(house)
    (leg,) = house.service.lobby._rooms.everyone()
    assert len(leg.early) == min(octets, EARLY)
    initiator = house.wire(house.q()).send(b"q")
    house.until(lambda: responder.received == b"q" and initiator.received == early, "the early octets")
    responder.send(b"later")
    house.until(lambda: initiator.received == early + b"later", "the later ones")
    assert the_relay(house).to_initiator == octets + 5


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("octets", [1, EARLY, EARLY + 1, 300_000])
def test_what_a_parked_initiator_says_early_is_relayed_first(
    house: House, octets: int, finished: bool
) -> None:
    q = _q_without_responders(house)
    early = random.Random(octets).randbytes(octets)
    initiator = house.wire(q).send(early)
    house.until(lambda: not initiator.unsent, "sent")
    if finished:
        initiator.finish()
    assert falls_quiet(house)
    responder = house.wire(house.put().port)
    house.until(lambda: len(responder.received) == octets, "the early octets")
    assert responder.received == early
    house.turn(5)
    assert responder.ended == finished
    responder.send(b"answer")
    house.until(lambda: initiator.received == b"answer", "the answer")
    assert the_relay(house).to_responder == octets


def _q_without_responders(house: House) -> int:
    """Port q of a label whose last responder was just taken, and the pair is gone."""
    responder, initiator = house.pair()
    q = house.q()
    responder.reset()
    initiator.reset()
    house.until(lambda: not house.service.lobby.relays, "the pair's end")
    return q


def test_early_octets_reach_an_initiator_who_reads_late(house: House) -> None:
    early = random.Random(9).randbytes(EARLY)
    responder = house.responder().send(early)
    initiator = house.wire(house.q(), receive_buffer=2048)
    initiator.paused = True
    initiator.send(b"q")
    house.until(lambda: responder.received == b"q", "the pair")
    rest = stall(house, responder, the_relay(house))
    assert falls_quiet(house)
    initiator.paused = False
    house.until(lambda: len(initiator.received) == EARLY + len(rest), "everything")
    assert initiator.received == early + rest


# A reader who pauses


@pytest.mark.parametrize("paused", ["initiator", "responder"])
def test_a_reader_who_pauses_gets_everything_later_and_costs_no_turns_meanwhile(
    house: House, pump: str, paused: str
) -> None:
    responder, initiator = house.pair(receive_buffer=4096)
    reader, writer, end = (
        (initiator, responder, "responder") if paused == "initiator" else (responder, initiator, "initiator")
    )
    reader.paused = True
    relay = the_relay(house)
    sent = stall(house, writer, relay, end)
    assert falls_quiet(house)
    for _ in range(6):
        house.pass_time(HOUR)
    assert falls_quiet(house)
    assert relay.state is State.LIVE
    reader.send(b"the other direction goes on")
    house.until(lambda: writer.received == b"the other direction goes on", "the other direction")
    assert falls_quiet(house)
    reader.paused = False
    house.until(lambda: len(reader.received) == len(sent), "everything")
    assert reader.received == sent
    assert falls_quiet(house)
    moved_by = getattr(relay, end)
    assert moved_by.copied + moved_by.spliced == len(sent) + (end == "initiator")


def test_a_paused_reader_s_octets_are_taken_no_further_than_a_bound(
    house: House, pump: str, payload: bytes
) -> None:
    first, second = house.pair(receive_buffer=65536)
    responder, initiator = Bulk(house, first), Bulk(house, second)
    initiator.paused = True
    relay = the_relay(house)
    responder.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    responder.send(payload)
    house.until(lambda: relay.responder.pending > 0, "a stall")
    assert falls_quiet(house)
    moved = relay.to_initiator
    assert 0 < relay.responder.pending <= (PIPE if pump == "splice" else LARGE)
    assert len(responder.left) > 0
    house.pass_time(HOUR)
    house.turn(200)
    assert relay.to_initiator == moved  # nothing more is taken, however long it lasts
    assert quiet(house)
    # What the service keeps itself is in its pump: the rest stands in the kernel's buffers of two sockets.
    taken = len(payload) - len(responder.left)
    unsent_of_ours = relay.responder.source.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert taken - moved - relay.responder.pending <= unsent_of_ours + 4 * 65536
    initiator.paused = False
    house.until(lambda: initiator.received == len(payload), "everything")
    assert initiator.hash.hexdigest() == sha256(payload)
    assert bool(relay.responder.spliced) == (pump == "splice")


@pytest.mark.parametrize("paused", ["initiator", "responder"])
def test_when_both_have_finished_and_one_still_stalls_the_loop_is_idle(
    house: House, pump: str, paused: str
) -> None:
    # Pitfall 5: with both FINs exchanged HUP can't be masked.
    responder, initiator = house.pair(receive_buffer=4096)
    reader, writer, end = (
        (initiator, responder, "responder") if paused == "initiator" else (responder, initiator, "initiator")
    )
    reader.paused = True
    relay = the_relay(house)
    sent = stall(house, writer, relay, end)
    sent += b"in the receive queue" * 5000
    writer.send(b"in the receive queue" * 5000)
    house.until(lambda: not writer.unsent, "all sent")
    writer.finish()
    assert falls_quiet(house)
    reader.send(b"bye").finish()
    house.until(lambda: writer.ended, "the reader's FIN")
    assert writer.received == b"bye"
    assert falls_quiet(house)
    for _ in range(5):
        house.pass_time(HOUR)
    assert quiet(house)
    assert relay.state is State.LIVE and relay in house.service.lobby.relays
    reader.paused = False
    house.until(lambda: reader.ended, "the writer's FIN")
    assert reader.received == sent
    house.pass_time(1.0)
    house.until(lambda: not house.service.lobby.relays, "the pair's end")
    the_end(house, "complete")


@on_linux
@pytest.mark.parametrize("in_one_turn", [False, True])
@pytest.mark.parametrize("paused", ["initiator", "responder"])
def test_a_pair_stays_until_a_paused_reader_s_kernel_has_it_all(
    house: House, pump: str, paused: str, in_one_turn: bool
) -> None:
    if paused == "initiator":
        responder, initiator = house.pair(receive_buffer=4096)
        reader, writer = initiator, responder
    else:
        responder = house.responder(receive_buffer=4096)
        initiator = house.wire(house.q()).send(b"x")
        house.until(lambda: responder.received == b"x", "the first octet")
        responder.received = b""
        reader, writer = responder, initiator
    reader.paused = True
    relay = the_relay(house)
    data = random.Random(11).randbytes(200_000)
    writer.send(data)
    house.until(lambda: not writer.unsent, "all sent")
    if in_one_turn:
        end = relay.responder if paused == "initiator" else relay.initiator
        house.until(lambda: end.copied + end.spliced >= len(data), "all in our kernel")
        while end.in_bulk:  # and served behind the others
            writer.send(b"more")
            data += b"more"
            house.settle()
        assert end.copied + end.spliced >= len(data)
    for wire in (reader, writer) if in_one_turn else (writer, reader):
        wire.finish()
    house.until(lambda: relay.state is State.DELIVERING, "both FINs")
    end = relay.initiator if paused == "initiator" else relay.responder
    assert sockets.path(end.source)[1] > 0
    for _ in range(6):
        house.pass_time(HOUR)
        assert relay.state is State.DELIVERING
    assert quiet(house)
    assert house.service.lobby.served("home")
    assert "delivering" in repr(relay)
    reader.paused = False
    house.until(lambda: reader.ended, "everything")
    assert reader.received == data
    house.pass_time(1.0)
    assert relay.state is State.CLOSED and not house.service.lobby.relays
    line = the_end(house, "complete")
    assert line["to_initiator" if paused == "initiator" else "to_responder"] == len(data) + (
        paused != "initiator"
    )


@on_linux
def test_a_paused_reader_who_resets_instead_ends_the_delivery(house: House) -> None:
    responder, initiator = house.pair(receive_buffer=4096)
    initiator.paused = True
    relay = the_relay(house)
    responder.send(bytes(200_000))
    house.until(lambda: not responder.unsent, "all sent")
    responder.finish()
    initiator.finish()
    house.until(lambda: relay.state is State.DELIVERING, "all in our kernel")
    initiator.reset()
    house.pass_time(1.0)
    assert relay.state is State.CLOSED
    the_end(house, "reset")
    assert quiet(house)


@on_linux
def test_the_end_of_the_service_ends_a_delivery(build: Callable[..., House], pump: str) -> None:
    house = build(pump=pump)
    responder, initiator = house.pair(receive_buffer=4096)
    initiator.paused = True
    responder.send(bytes(200_000))
    house.until(lambda: not responder.unsent, "all sent")
    responder.finish()
    initiator.finish()
    house.until(lambda: the_relay(house).state is State.DELIVERING, "all in our kernel")
    house.service.lobby.close()
    house.pass_time(10.0)
    assert house.events("fault") == []
    the_end(house, "shutdown")


# Resets


@pytest.mark.parametrize("who", ["initiator", "responder"])
@pytest.mark.parametrize("half_closed", ["nobody", "initiator", "responder"])
def test_a_reset_ends_both_with_a_reset(house: House, who: str, half_closed: str) -> None:
    responder, initiator = house.pair()
    wires = {"initiator": initiator, "responder": responder}
    ours = wires.pop(who)
    (other,) = wires.values()
    if half_closed != "nobody":
        finisher, hearer = (ours, other) if who == half_closed else (other, ours)
        finisher.finish()
        house.until(lambda: hearer.ended, "the FIN")
    ours.reset()
    if half_closed == who:
        # It has heard our FIN, or rather its own: only a failed send tells it of the reset.
        house.until(lambda: not house.service.lobby.relays, "the pair's end")
        poller = select.poll()
        poller.register(other.sock, 0)
        ((_, events),) = poller.poll(5000)
        assert events & select.POLLERR
    else:
        house.until(lambda: other.gone, "the reset")
        assert other.was_reset and not other.ended
    house.until(lambda: not house.service.lobby.relays, "the pair's end")
    the_end(house, "reset")
    assert quiet(house)


@pytest.mark.parametrize("who", ["reader", "writer"])
@pytest.mark.parametrize("writing", ["initiator", "responder"])
def test_a_reset_in_bulk_ends_both_with_a_reset(
    house: House, pump: str, payload: bytes, who: str, writing: str
) -> None:
    pair = dict(zip(("responder", "initiator"), (Bulk(house, wire) for wire in house.pair()), strict=True))
    writer = pair.pop(writing)
    (reader,) = pair.values()
    relay = the_relay(house)
    writer.send(payload)
    house.until(lambda: reader.received > 10 << 20, "bulk")
    one, other = (writer, reader) if who == "writer" else (reader, writer)
    one.paused = True
    reset(one.sock)
    house.until(lambda: not house.service.lobby.relays, "the pair's end")
    house.until(lambda: other.gone, "the reset")
    assert other.was_reset and not other.ended
    line = the_end(house, "reset")
    assert line["to_initiator"] == relay.to_initiator > 0 or writing == "initiator"
    pumps = (relay.initiator, relay.responder)
    assert any(each.spliced for each in pumps) == (pump == "splice")
    assert quiet(house)


@pytest.mark.parametrize("who", ["reader", "writer"])
def test_a_reset_during_a_stall_is_no_clean_end_and_leaks_nothing_to_the_next_pair(
    house: House, pump: str, who: str
) -> None:
    responder, initiator = house.pair(receive_buffer=4096)
    initiator.paused = True
    relay = the_relay(house)
    secret = stall(house, responder, relay)
    assert relay.responder.pending
    (responder if who == "writer" else initiator).reset()
    house.until(lambda: not house.service.lobby.relays, "the pair's end")
    if who == "writer":
        initiator.paused = False
        house.until(lambda: initiator.gone, "the reset")
        assert initiator.was_reset and not initiator.ended
        assert len(initiator.received) < len(secret)
    the_end(house, "reset")
    data = b"innocent" * 400_000
    responder, initiator = house.pair()
    responder.send(data)
    house.until(lambda: len(initiator.received) >= len(data), "the next pair's octets")
    assert initiator.received == data
    assert bool(the_relay(house).responder.spliced) == (pump == "splice")


@pytest.mark.parametrize("who", ["initiator", "responder"])
def test_a_reset_by_one_whom_the_loop_was_told_to_forget_is_found_soon(house: House, who: str) -> None:
    # WHO sends to a paused reader who has finished: there is nothing to hear from it and nothing to say.
    responder, initiator = house.pair(receive_buffer=4096)
    writer, reader = (responder, initiator) if who == "responder" else (initiator, responder)
    reader.paused = True
    relay = the_relay(house)
    stall(house, writer, relay, who)
    reader.finish()
    house.until(lambda: writer.ended, "the reader's FIN")
    assert house.service.loop._handlers[getattr(relay, who).fd] is None
    writer.reset()
    house.pass_time(10.0)
    assert not house.service.lobby.relays
    the_end(house, "reset")


@pytest.mark.parametrize("accepted", [False, True])
def test_an_initiator_who_resets_in_the_moment_of_pairing_uses_nothing_up(
    house: House, accepted: bool
) -> None:
    responder = house.responder()
    q = house.q()
    initiator = house.wire(q)
    if accepted:
        house.until(lambda: house.service.lobby._arriving, "accepted")
    initiator.send(b"x").reset()
    assert falls_quiet(house)
    house.pass_time(10.0)
    assert not house.service.lobby.relays and not house.service.lobby._arriving
    assert house.events("fault", "paired") == []
    assert house.waiting() == 1
    house.wire(q).send(b"another")
    house.until(lambda: responder.received == b"another", "another's octets")


# Urgent data: an octet like the others, which must neither spin nor cut the stream


@pytest.mark.parametrize("finish", [False, True])
@pytest.mark.parametrize("who", ["initiator", "responder"])
def test_an_urgent_octet_in_the_middle_of_bulk_neither_spins_nor_cuts(
    house: House, pump: str, who: str, finish: bool
) -> None:
    responder, initiator = house.pair()
    writer, reader = (responder, initiator) if who == "responder" else (initiator, responder)
    expected = b""
    for letter in b"abcde":
        data = bytes([letter]) * 300_000
        writer.send(data)
        house.until(lambda: not writer.unsent, "sent")
        writer.sock.send(b"!", socket.MSG_OOB)
        expected += data + b"!"
    writer.send(b"z" * 50_000)
    expected += b"z" * 50_000
    house.until(lambda: not writer.unsent, "sent")
    if finish:
        writer.finish()
    house.until(lambda: len(reader.received) >= len(expected) or reader.gone, "everything")
    assert reader.received == expected
    assert falls_quiet(house)
    assert reader.ended == finish
    moved_by = getattr(the_relay(house), who)
    assert bool(moved_by.spliced) == (pump == "splice")


def test_an_urgent_octet_that_comes_at_once_with_the_rest_and_the_end_cuts_nothing(house: House) -> None:
    responder, initiator = house.pair()
    initiator.send(b"a" * 2 * SMALL)
    house.until(lambda: len(responder.received) == 2 * SMALL, "bulk")
    for data, flags in ((b"b" * 40_000, 0), (b"!", socket.MSG_OOB), (b"c" * 40_000, 0)):
        assert initiator.sock.send(data, flags) == len(data)
    initiator.finish()  # all of it in the service's receive queue before its next turn
    house.until(lambda: responder.gone, "the end")
    assert responder.ended
    assert responder.received == b"a" * 2 * SMALL + b"b" * 40_000 + b"!" + b"c" * 40_000


@pytest.mark.parametrize("sender", ["responder", "initiator"])
def test_an_urgent_octet_stays_where_it_stood_in_the_stream(house: House, sender: str) -> None:
    responder, initiator = house.pair()
    source, sink = (responder, initiator) if sender == "responder" else (initiator, responder)
    source.sock.send(b"before")
    source.sock.send(b"!", socket.MSG_OOB)
    source.sock.send(b"after")
    house.until(lambda: sink.received == b"before!after")


@pytest.mark.parametrize("then", [b"", b"words"])
def test_an_urgent_octet_as_the_first_one_of_an_initiator_costs_nothing(house: House, then: bytes) -> None:
    responder = house.responder()
    initiator = house.wire(house.q())
    initiator.sock.send(b"!", socket.MSG_OOB)
    initiator.send(then)
    house.until(lambda: house.service.lobby.relays, "the pair")
    house.until(lambda: responder.received == b"!" + then, "the words")
    assert falls_quiet(house)
    responder.send(b"answer")
    house.until(lambda: initiator.received == b"answer", "the answer")


@pytest.mark.parametrize("then", [b"", b"banner"])
def test_an_urgent_octet_while_a_responder_waits_costs_nothing(house: House, then: bytes) -> None:
    responder = house.responder()
    responder.sock.send(b"!", socket.MSG_OOB)
    responder.send(then)
    assert falls_quiet(house)
    assert house.waiting() == 1
    initiator = house.wire(house.q()).send(b"q")
    house.until(lambda: responder.received == b"q", "the pair")
    responder.send(b"answer")
    house.until(lambda: initiator.received == b"!" + then + b"answer", "the answer")
    assert falls_quiet(house)


def test_an_urgent_octet_while_an_initiator_is_parked_costs_nothing(house: House) -> None:
    initiator = house.wire(_q_without_responders(house)).send(b"words")
    assert falls_quiet(house)
    initiator.sock.send(b"!", socket.MSG_OOB)
    assert falls_quiet(house)
    initiator.send(b" more")
    assert falls_quiet(house)
    responder = house.wire(house.put().port)
    house.until(lambda: responder.received == b"words! more", "the words")
    assert falls_quiet(house)


def test_an_urgent_octet_during_a_stall_costs_nothing(house: House) -> None:
    responder, initiator = house.pair(receive_buffer=4096)
    initiator.paused = True
    relay = the_relay(house)
    sent = stall(house, responder, relay)
    responder.sock.send(b"!", socket.MSG_OOB)
    assert falls_quiet(house)
    responder.send(b"after")
    assert falls_quiet(house)
    initiator.paused = False
    house.until(lambda: initiator.received == sent + b"!after", "everything")
    assert falls_quiet(house)


# Dead, slow or idle


@contextlib.contextmanager
def black_hole(sock: socket.socket) -> Iterator[None]:
    """The kernel drops all that comes to SOCK, as if its path were dead: a socket filter that says 0."""
    attach, detach = 26, 27  # SO_ATTACH_FILTER, SO_DETACH_FILTER
    program = bytearray(struct.pack("HBBI", 6, 0, 0, 0))  # BPF_RET | BPF_K, 0
    import ctypes

    place = (ctypes.c_char * len(program)).from_buffer(program)
    sock.setsockopt(socket.SOL_SOCKET, attach, struct.pack("HL", 1, ctypes.addressof(place)))
    try:
        yield
    finally:
        if sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, detach, 0)


@on_linux
@pytest.mark.parametrize("who", ["initiator", "responder"])
def test_a_path_that_acknowledges_nothing_is_dead_after_a_while(house: House, who: str) -> None:
    responder, initiator = house.pair()
    lost, other = (initiator, responder) if who == "initiator" else (responder, initiator)
    relay = the_relay(house)
    end = getattr(relay, who)
    with black_hole(lost.sock):
        other.send(b"into the void")
        house.until(lambda: (sockets.unanswered(end.source) or 0) > 0.05, "no acknowledgement")
        relay.check(0.04, 0.0)
        assert relay.state is State.LIVE  # one look alone proves nothing: the last ACK may be an hour old
        house.clock.now += 0.03
        relay.check(0.04, 0.0)
        assert relay.state is State.LIVE
        house.clock.now += 0.011
        relay.check(0.04, 0.0)
        assert relay.state is State.CLOSED
        house.until(lambda: other.gone, "the reset")
        assert other.was_reset
    the_end(house, "timed-out")


@on_linux
def test_a_path_that_comes_back_is_not_dead(house: House) -> None:
    responder, initiator = house.pair()
    relay = the_relay(house)
    with black_hole(initiator.sock):
        responder.send(b"late")
        house.until(lambda: (sockets.unanswered(relay.initiator.source) or 0) > 0.02, "no acknowledgement")
        relay.check(60.0, 0.0)
        assert relay.initiator.unanswered_since == house.clock.now
    house.until(lambda: initiator.received == b"late", "the retransmission")
    house.until(lambda: sockets.unanswered(relay.initiator.source) is None, "the acknowledgement")
    house.clock.now += 100.0
    relay.check(60.0, 0.0)
    assert relay.initiator.unanswered_since is None
    assert relay.state is State.LIVE


@on_linux
def test_a_reader_whose_window_is_closed_is_not_dead(house: House) -> None:
    responder, initiator = house.pair(receive_buffer=4096)
    initiator.paused = True
    relay = the_relay(house)
    sent = stall(house, responder, relay)
    assert falls_quiet(house)
    assert sockets.path(relay.initiator.source)[1] > 0
    for _ in range(100):
        house.clock.now += 61.0
        relay.check(60.0, 0.0)
        assert relay.state is State.LIVE
    initiator.paused = False
    house.until(lambda: len(initiator.received) == len(sent), "everything")


@on_linux
def test_a_live_pair_has_no_user_timeout_and_a_waiting_responder_has(house: House) -> None:
    house.responder()
    (leg,) = house.service.lobby._rooms.everyone()
    option = socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT
    assert leg.sock.getsockopt(*option) == 40_000
    house.wire(house.q()).send(b"x")
    house.until(lambda: house.service.lobby.relays, "the pair")
    relay = the_relay(house)
    assert relay.responder.source.getsockopt(*option) == relay.initiator.source.getsockopt(*option) == 0
    for end in (relay.responder, relay.initiator):
        assert end.source.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert end.source.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_silent_pair_lives_for_hours_by_default(house: House) -> None:
    responder, initiator = house.pair()
    for _ in range(12):
        house.pass_time(HOUR)
    initiator.send(b"still there?")
    house.until(lambda: responder.received == b"still there?", "the question")
    assert quiet(house)


def test_with_the_option_a_silent_pair_ends_and_a_talking_one_does_not(
    build: Callable[..., House], pump: str
) -> None:
    house = build(pump=pump, limits={"idle": 60.0})
    responder, initiator = house.pair()
    house.pass_time(10.0)  # the next look at it
    for number in range(1, 6):
        house.pass_time(50.0)
        (responder if number % 2 else initiator).send(b"x")
        house.until(
            lambda: house.service.lobby.relays and not responder.unsent + initiator.unsent, "an octet"
        )
        house.pass_time(10.0)
        assert house.service.lobby.relays
    for _ in range(5):
        house.pass_time(10.0)
        assert house.service.lobby.relays
    house.pass_time(10.0)
    assert not house.service.lobby.relays
    house.until(lambda: responder.gone and initiator.gone, "both ends")
    assert responder.was_reset and initiator.was_reset
    the_end(house, "idle")


# Where there is no epoll


@pytest.fixture
def elsewhere(build: Callable[..., House], pump: str, monkeypatch: pytest.MonkeyPatch) -> House:
    """A house whose loop runs on `selectors`."""
    monkeypatch.setattr(loop_module, "EpollPoller", SelectorsPoller)
    house = build(pump=pump)
    assert isinstance(house.service.loop._poller, SelectorsPoller)
    return house


def test_without_epoll_octets_and_fins_pass_too(elsewhere: House, pump: str) -> None:
    house = elsewhere
    responder, initiator = (Bulk(house, wire) for wire in house.pair())
    relay = the_relay(house)
    data = random.Random(12).randbytes(3_000_000)
    initiator.send(data, finish=True)
    house.until(lambda: responder.ended, "the FIN")
    assert responder.hash.hexdigest() == sha256(data)
    assert falls_quiet(house)
    responder.send(data[::-1], finish=True)
    house.until(lambda: initiator.ended, "the other FIN")
    assert initiator.hash.hexdigest() == sha256(data[::-1])
    house.until(lambda: not house.service.lobby.relays, "the pair's end")
    the_end(house, "complete")
    assert bool(relay.initiator.spliced) == bool(relay.responder.spliced) == (pump == "splice")


def test_without_epoll_a_stall_with_both_fins_exchanged_is_idle_too(elsewhere: House) -> None:
    house = elsewhere
    responder, initiator = house.pair(receive_buffer=4096)
    initiator.paused = True
    sent = stall(house, responder, the_relay(house))
    assert falls_quiet(house)
    responder.finish()
    initiator.finish()
    house.until(lambda: responder.ended, "the reader's FIN")
    assert falls_quiet(house)
    initiator.paused = False
    house.until(lambda: initiator.ended, "the writer's FIN")
    assert initiator.received == sent


@pytest.mark.parametrize("who", ["reader", "writer"])
def test_without_epoll_a_reset_during_a_stall_is_found_soon(elsewhere: House, who: str) -> None:
    house = elsewhere
    responder, initiator = house.pair(receive_buffer=4096)
    initiator.paused = True
    stall(house, responder, the_relay(house))
    (responder if who == "writer" else initiator).reset()
    house.pass_time(10.0)
    assert not house.service.lobby.relays
    the_end(house, "reset")
    assert quiet(house)


# Faults and descriptors


def test_an_end_that_is_told_of_a_fault_closes_its_pair_only(house: House) -> None:
    first = house.pair()
    (broken,) = house.service.lobby.relays
    responder, initiator = house.pair()
    broken.responder.abort()
    house.until(lambda: all(wire.gone for wire in first), "both ends")
    assert the_end(house, "fault")["label"] == "home"
    initiator.send(b"alive")
    house.until(lambda: responder.received == b"alive", "the other pair's octets")


def test_closing_twice_tells_the_owner_once(house: House) -> None:
    house.pair()
    relay = the_relay(house)
    relay.close(Outcome.RESET)
    relay.close(Outcome.COMPLETE)
    relay.fail(None, relay.responder)
    the_end(house, "reset")


@on_linux
def test_no_kind_of_end_leaves_a_descriptor_behind(
    tmp_path: Path, certificate: tuple[Path, Path], pump: str
) -> None:
    before = descriptors()
    house = House(tmp_path, certificate, pump=pump)
    with contextlib.closing(house):
        house.pair()
        kept = descriptors()

        def both_finish(responder: Wire, initiator: Wire) -> None:
            responder.send(bytes(500_000))
            house.until(lambda: len(initiator.received) == 500_000, "octets")
            responder.finish()
            initiator.finish()

        def initiator_resets(responder: Wire, initiator: Wire) -> None:
            initiator.reset()

        def responder_resets_in_bulk(responder: Wire, initiator: Wire) -> None:
            responder.send(bytes(3_000_000))
            responder.reset()

        def reader_resets_in_a_stall(responder: Wire, initiator: Wire) -> None:
            initiator.paused = True
            stall(house, responder, house.service.lobby.relays[-1])
            initiator.reset()

        def delivered_late(responder: Wire, initiator: Wire) -> None:
            initiator.paused = True
            responder.send(bytes(150_000))
            house.until(lambda: not responder.unsent, "sent")
            responder.finish()
            initiator.finish()
            house.settle()
            initiator.paused = False
            house.until(lambda: initiator.ended, "everything")
            house.pass_time(1.0)

        ends = [
            both_finish,
            initiator_resets,
            responder_resets_in_bulk,
            reader_resets_in_a_stall,
            delivered_late,
        ]
        for end in ends * 4:
            responder, initiator = house.pair(receive_buffer=65536)
            end(responder, initiator)
            house.until(lambda: len(house.service.lobby.relays) == 1, end.__name__)
            for wire in (responder, initiator):
                wire.close()
                house.wires.remove(wire)
        house.settle()
        for wire in [wire for wire in house.wires if wire.ended]:
            wire.close()
        pipes = len(house.service.pools._pipes)
        assert pipes <= 4
        assert descriptors() - 2 * pipes <= kept
        assert len(house.events("complete", "reset")) == len(ends) * 4
        assert house.events("fault") == []
    assert descriptors() == before


# As an ordinary user


NOBODY = """
import json, os, sys, tempfile, shutil
from pathlib import Path
from house import House, make_certificate

user = int(sys.argv[2])
folder = Path(tempfile.mkdtemp(dir="/tmp"))
os.chown(folder, user, user)
certificate = make_certificate(folder)
for file in certificate:
    os.chown(file, user, user)
"x".encode("idna")  # the client of this script needs it
os.setgroups([]); os.setgid(user); os.setuid(user)
house = House(folder, certificate, pump=sys.argv[1])
seen = []

def move():
    responder, initiator = house.pair()
    relay = house.service.lobby.relays[0]
    there, back = os.urandom(3_000_000), os.urandom(3_000_000)
    initiator.send(there)
    responder.send(back)
    house.until(lambda: len(responder.received) == len(there) and len(initiator.received) == len(back))
    assert (responder.received, initiator.received) == (there, back)
    responder.finish(); initiator.finish()
    house.until(lambda: not house.service.lobby.relays)
    for end in (relay.responder, relay.initiator):
        seen.append([end.copied, end.spliced])

move()
greedy = []
if sys.argv[1] == "splice":
    while (pipe := house.service.pools.borrow_pipe()):
        greedy.append(pipe)
    move()
    for pipe in greedy:
        house.service.pools.return_pipe(pipe, dirty=True)
    move()
assert not house.events("fault"), house.log
house.close()
shutil.rmtree(folder, ignore_errors=True)
print(json.dumps({"user": os.getuid(), "pipes": len(greedy), "seen": seen}))
"""


@on_linux
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another")
def test_as_an_ordinary_user_the_pump_does_what_it_says(pump: str) -> None:
    user = 20_000 + os.getpid() % 40_000  # a nobody of our own: the kernel counts pipes per user
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, pump, str(user)],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    print(said)
    assert said["user"] == user
    if pump == "ring":
        assert [spliced for _, spliced in said["seen"]] == [0, 0]
        return
    first, without_pipes, again = said["seen"][:2], said["seen"][2:4], said["seen"][4:]
    assert all(spliced > copied for copied, spliced in first + again)
    assert [spliced for _, spliced in without_pipes] == [0, 0]
    assert said["pipes"] > 10
