"""Nothing waits without a limit: each cap of [limits], who is refused, and that nobody else is."""

from __future__ import annotations

import contextlib
import errno
import json
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from house import ID, OTHER_ID, REGISTRAR, House, Wire
from process import Process

from taasadmin.book import Book
from taaslib.journal import Journal
from taaslib.limits import Limits, Tally, give_back, take
from taaslib.outcomes import Outcome


def full(house: House, cause: str) -> bool:
    return any(event.get("cause") == cause for event in house.events("full"))


def pair_from(house: House, port: int, source: str) -> Wire:
    responder = house.responder()
    wire = house.wire(port, source=source).send(b"x")
    house.until(lambda: responder.received == b"x")
    return wire


def open_q(house: House) -> int:
    """Port q of `home`, with nobody waiting."""
    responder = house.responder()
    port = house.q()
    responder.close()
    house.until(lambda: house.waiting() == 0)
    return port


def test_a_tally_knows_who_has_how_many() -> None:
    tally = Tally(Limits(visits=3, visits_per_address=2))
    mine, yours, all_of_us = *(tally.seat("visits_per_address", who) for who in "ab"), tally.seat("visits")
    take([mine, all_of_us])
    take([tally.seat("visits_per_address", "a"), tally.seat("visits")])
    assert tally.full([all_of_us, mine]) == "visits_per_address"
    assert tally.full([all_of_us, yours]) is None
    take([yours, all_of_us])
    assert tally.full([all_of_us, yours]) == "visits"
    give_back([mine, all_of_us])
    assert tally.full([all_of_us, mine]) is None
    give_back([mine, all_of_us])
    give_back([yours, all_of_us])
    del mine, yours, all_of_us
    assert not tally._seats  # it does not grow with those who were here


# The front door


def test_an_address_displaces_its_own_oldest_exchange_and_nobody_else_s(build: Callable[..., House]) -> None:
    house = build(limits={"exchanges_per_address": 5})
    neighbour = house.wire(house.service.port, source="127.0.0.2").send(b"\x16\x03\x01")
    loris = [house.wire(house.service.port).send(b"\x16\x03\x01") for _ in range(20)]
    house.until(lambda: sum(wire.gone for wire in loris) == 15)
    assert [wire.gone for wire in loris] == [True] * 15 + [False] * 5
    assert not neighbour.gone
    assert house.put(source="127.0.0.2").status == 200


def test_one_exchange_per_address_is_one(build: Callable[..., House]) -> None:
    house = build(limits={"exchanges_per_address": 1})
    first, second = (house.wire(house.service.port).send(b"\x16") for _ in range(2))
    house.until(lambda: first.gone)
    assert not second.gone and len(house.service.door._exchanges) == 1
    second.close()
    house.until(lambda: not house.service.door._exchanges)
    assert not house.service.door._of_address


def test_addresses_in_one_64_count_as_one(build: Callable[..., House]) -> None:
    house = build(address=("::1",), limits={"exchanges_per_address": 3})
    wires = [house.wire(house.service.port, "::1").send(b"\x16") for _ in range(4)]
    house.until(lambda: wires[0].gone)
    assert list(house.service.door._of_address) == ["::/64"]


def test_200_registrations_and_100_visits_at_once_from_one_address(build: Callable[..., House]) -> None:
    house = build(limits={"responders_per_id": 40})  # of two IDs; the last 20 visitors are parked
    responders = [house.responder(id=id) for id in (ID, OTHER_ID) for _ in range(40)]
    port = house.q()
    visits = [house.wire(port).send(b"v") for _ in range(100)]
    registrations = []
    for number in range(200):
        label, id = ("cam", OTHER_ID) if number % 2 else ("home", ID)
        request = f"PUT /register/{label} HTTP/1.1\r\nHost: {REGISTRAR}\r\n{house.authorization(id)}\r\n"
        registrations.append(house.tls().say(request.encode()))
    house.until(lambda: all(wire.gone for wire in registrations))
    assert {wire.plain[:12] for wire in registrations} == {b"HTTP/1.1 200"}
    assert not any(wire.gone for wire in visits)
    assert sum(bool(responder.received) for responder in responders) == 80


# Visits


@pytest.mark.parametrize("silent", [True, False])
def test_visitors_of_one_address_who_are_not_paired_are_bounded(
    build: Callable[..., House], silent: bool
) -> None:
    """Silent ones in their first second too."""
    house = build(limits={"unpaired_per_address": 3, "first_bytes": 5.0})
    port = open_q(house)
    first = b"" if silent else b"x"
    wires = [house.wire(port, source="127.0.0.2").send(first) for _ in range(5)]
    house.until(lambda: sum(wire.gone for wire in wires) == 2)
    assert [wire.gone for wire in wires] == [False, False, False, True, True]
    assert full(house, "unpaired_per_address")
    elsewhere = house.wire(port).send(first)
    house.settle()
    assert not elsewhere.gone
    house.pass_time(6)
    house.pass_time(11)
    assert all(wire.gone for wire in wires)
    again = house.wire(port, source="127.0.0.2").send(first)
    house.settle()
    assert not again.gone


@pytest.mark.parametrize("limit", ["visits", "visits_per_label", "visits_per_address"])
def test_visits_are_bounded_and_a_live_pair_is_never_closed(build: Callable[..., House], limit: str) -> None:
    house = build(limits={limit: 2})
    port = open_q(house)
    pairs = [pair_from(house, port, "127.0.0.2") for _ in range(2)]
    refused = house.wire(port, source="127.0.0.2").send(b"x")
    house.until(lambda: refused.gone)
    assert full(house, limit) and not any(pair.gone for pair in pairs)
    other = house.wire(port, source="127.0.0.3").send(b"x")
    house.settle()
    assert other.gone == (limit != "visits_per_address")
    other.close()
    pairs[0].reset()
    house.until(lambda: len(house.service.lobby.relays) == 1)
    assert not pair_from(house, port, "127.0.0.2").gone


def test_every_seat_is_given_back(house: House) -> None:
    port = open_q(house)
    pair = pair_from(house, port, "127.0.0.2")
    parked = [house.wire(port).send(b"x") for _ in range(3)]
    silent = [house.wire(port) for _ in range(3)]
    house.settle()
    assert house.seats_taken()["visits", ""] == 7
    for wire in (pair, *parked, *silent):
        wire.reset()
    house.until(lambda: not house.seats_taken())


def test_an_id_with_too_many_live_pairs_is_429_at_the_put(build: Callable[..., House]) -> None:
    house = build(limits={"pairs_per_id": 2})
    pairs = [house.pair() for _ in range(2)]
    reply = house.put()
    assert reply.status == 429 and "retry-after" in reply.fields
    assert house.put(id=OTHER_ID).status == 200
    pairs[0][0].reset()
    house.until(lambda: len(house.service.lobby.relays) == 1)
    assert house.put().status == 200


def test_waiting_hidden_servers_are_bounded_in_all_labels_together(build: Callable[..., House]) -> None:
    house = build(limits={"responders": 2})
    first = house.responder()
    waiting = house.responder("cam", OTHER_ID)
    assert house.put().status == house.put("cam", OTHER_ID).status == 429
    waiting.finish()
    house.until(lambda: house.waiting("cam") == 0)
    house.responder("cam", OTHER_ID)
    assert house.put().status == 429
    house.wire(house.q()).send(b"x")
    house.until(lambda: first.received == b"x")  # one who is paired waits no longer
    assert house.put().status == 200


# Log lines


def test_strangers_can_not_fill_the_disk(tmp_path: Path) -> None:
    now = [0.0]
    journal = Journal(lambda: now[0])
    journal.configure(tmp_path / "log", "json", "info", 10)
    with contextlib.closing(journal):
        for _ in range(1000):
            journal.note(Outcome.STRANGER, peer="192.0.2.1:1")
        journal.note(Outcome.PAIRED)
        now[0] = 60.0
        journal.note(Outcome.STRANGER)
        for _ in range(15):
            journal.note(Outcome.WRONG_CODE)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["event"] for line in lines] == (
        ["stranger"] * 10 + ["paired", "suppressed", "stranger"] + ["wrong-code"] * 10 + ["suppressed"]
    )
    told = [line for line in lines if line["event"] == "suppressed"]
    assert [(line["what"], line["lines"]) for line in told] == [("stranger", 990), ("wrong-code", 5)]


# Descriptors


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_where_the_kernel_has_none_left_accepting_pauses_and_resumes(
    house: House, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    tries: list[int] = []

    class Exhausted:
        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

        def _accept(self) -> tuple[int, object]:
            tries.append(1)
            raise OSError(code, "none left")

        def __getattr__(self, name: str) -> object:
            return getattr(self.sock, name)

    (listener,) = house.service._listeners
    real = listener.sock
    with monkeypatch.context() as patch:
        patch.setattr(listener, "sock", Exhausted(real))
        wire = house.wire(house.service.port)
        house.settle()
        house.pass_time(1)
        assert len(tries) == 2  # once a second: no spin
    assert not wire.gone
    house.pass_time(1)
    assert house.get().status == 503
    assert len(house.events("out-of-descriptors")) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="resource")
def test_a_limit_of_descriptors_that_changes_is_noticed_within_a_second(house: House) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert house.get().status == 503
    with house.wire(house.service.port).sock as wire:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wire.fileno() + 64, hard))
        try:
            house.pass_time(1)
            refused = house.wire(house.service.port)
            house.until(lambda: refused.gone)
            assert house.events("out-of-descriptors")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    house.pass_time(1)
    assert house.get().status == 503


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit(1)")
def test_new_ones_are_refused_before_the_last_descriptors_and_live_pairs_go_on(
    process: Callable[..., Process],
) -> None:
    running = process()
    running.prefix = ["prlimit", "--nofile=150"]
    running.add_credential()
    running.start()
    with contextlib.ExitStack() as stack:
        responder, visitor = (stack.enter_context(sock) for sock in running.pair())
        crowd = []
        for _ in range(150):
            crowd.append(stack.enter_context(running.connect()))
        running.until(lambda: " out-of-descriptors " in running.log)
        assert running.popen
        used = len(list(Path(f"/proc/{running.popen.pid}/fd").iterdir()))
        assert used <= 150 - 64 + 1
        visitor.sendall(b"still here")
        assert responder.recv(10) == b"still here"
        with contextlib.closing(Book(running.folder / "taas.db", busy_ms=5000, synchronous="FULL")) as store:
            store.grant(ID, ["more"])  # the reserve is there for the database
        running.until(lambda: "what=database" in running.log)
        for sock in crowd:
            sock.close()
        running.until(lambda: running.tries(503, "more.taas.localhost"))
        responder.sendall(b"and here")
        assert visitor.recv(10) == b"and here"
    assert running.stop()[0] == 0
    assert "fault" not in running.log
