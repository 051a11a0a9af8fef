"""Offers and seeks as scripts; then any script at all against a second, simpler book of who waits where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from taaslib.limits import Limits
from taaslib.rendezvous import Answer, Paired, Refused, Rendezvous, Waiting

NEVER = float("-inf")
Book = Rendezvous[str]


def offer(book: Book, *legs: str, id: str = "ID", now: float = 0) -> list[Answer[str]]:
    return [book.offer("home", id, leg, now) for leg in legs]


def seek(book: Book, *legs: str, now: float = 0) -> list[Answer[str]]:
    return [book.seek("home", leg, now) for leg in legs]


def live(book: Rendezvous[Any], label: str) -> int:
    return room.live if (room := book._rooms.get(label)) else 0


@pytest.fixture
def book() -> Book:
    return Rendezvous(Limits())


# ---- who meets whom --------------------------------------------------------------------------------------


def test_a_client_meets_the_responder_that_waits(book: Book) -> None:
    assert offer(book, "r1") == [Waiting()]
    assert (book.waiting("home"), live(book, "home"), [*book.everyone()]) == (1, 0, ["r1"])
    assert seek(book, "i1") == [Paired("r1", "i1")]
    assert (book.waiting("home"), live(book, "home"), [*book.everyone()]) == (0, 1, [])


def test_a_responder_meets_the_client_that_is_parked(book: Book) -> None:
    assert seek(book, "i1") == [Waiting()]
    assert (book.waiting("home"), live(book, "home"), [*book.everyone()]) == (0, 0, ["i1"])
    assert offer(book, "r1") == [Paired("r1", "i1")]
    assert (book.waiting("home"), live(book, "home"), [*book.everyone()]) == (0, 1, [])


def test_responders_are_taken_first_come_first_served_whoever_sent_them(book: Book) -> None:
    for id, leg in (("A", "r1"), ("B", "r2"), ("A", "r3")):
        offer(book, leg, id=id)
    assert seek(book, "i1", "i2", "i3") == [Paired("r1", "i1"), Paired("r2", "i2"), Paired("r3", "i3")]


def test_clients_are_served_first_come_first_served(book: Book) -> None:
    seek(book, "i1", "i2", "i3")
    assert offer(book, "r1", "r2", id="A") == [Paired("r1", "i1"), Paired("r2", "i2")]
    assert offer(book, "r3", id="B") == [Paired("r3", "i3")]


def test_one_who_leaves_uses_nothing_up(book: Book) -> None:
    seek(book, "i1", "i2")
    book.leave("home", "i1", 1)
    assert offer(book, "r1", "r2", "r3") == [Paired("r1", "i2"), Waiting(), Waiting()]
    book.leave("home", "r2", 4)
    assert seek(book, "i3") == [Paired("r3", "i3")]


def test_leaving_twice_or_after_a_pairing_does_nothing(book: Book) -> None:
    offer(book, "r1", "r2")
    book.leave("home", "r1", 1)
    book.leave("home", "r1", 2)
    assert seek(book, "i1", now=3) == [Paired("r2", "i1")]
    book.leave("home", "r2", 4)
    book.leave("home", "i1", 4)
    book.part("home", 5)
    assert live(book, "home") == 0 and book.served("home", 32.9)


def test_labels_do_not_meet_each_other(book: Book) -> None:
    assert offer(book, "r1") == [Waiting()]
    assert book.seek("office", "i1", 0) == Waiting()
    assert (book.served("home", 0), book.served("office", 0)) == (True, False)


@pytest.mark.parametrize("label", ["constructor", "tostring", "valueof", "__proto__", "__class__", "keys"])
def test_no_label_is_known_before_somebody_waits_under_it(book: Book, label: str) -> None:
    assert (book.served(label, 0), book.last_served(label, 0)) == (False, NEVER)
    assert (book.waiting(label), live(book, label), [*book.everyone()]) == (0, 0, [])
    book.forget(label)
    assert book.seek(label, "i1", 0) == Waiting()
    assert book.offer(label, "ID", "r1", 0) == Paired("r1", "i1")


# ---- seats -----------------------------------------------------------------------------------------------


def test_a_new_responder_displaces_the_oldest_of_its_own_id_alone(book: Book) -> None:
    offer(book, "b1", id="B")
    assert offer(book, *(f"a{n}" for n in range(1, 21)), id="A") == [Waiting()] * 20
    assert offer(book, "b2", id="B") == [Waiting()]
    assert offer(book, "a21", "a22", id="A") == [Waiting(displaced="a1"), Waiting(displaced="a2")]
    assert book.offer("office", "A", "c1", 0) == Waiting()  # seats are counted within a label
    assert [*book.everyone()] == ["b1", *(f"a{n}" for n in range(3, 21)), "b2", "a21", "a22", "c1"]
    assert seek(book, "i1", "i2") == [Paired("b1", "i1"), Paired("a3", "i2")]
    assert offer(book, "a23", id="A") == [Waiting()]


def test_a_label_has_200_seats_and_a_full_one_still_displaces(book: Book) -> None:
    for number in range(200):
        assert offer(book, f"r{number}", id=f"ID{number // 20}") == [Waiting()]
    assert offer(book, "x", id="another") == [Refused()]
    assert offer(book, "y", id="ID3") == [Waiting(displaced="r60")]
    assert book.waiting("home") == 200
    book.leave("home", "r0", 0)
    assert offer(book, "x", id="another") == [Waiting()]


def test_32_clients_are_parked_and_the_next_is_refused(book: Book) -> None:
    assert seek(book, *(f"i{n}" for n in range(33))) == [Waiting()] * 32 + [Refused()]
    assert offer(book, "r1") == [Paired("r1", "i0")]
    assert seek(book, "x", "y") == [Waiting(), Refused()]


# ---- served ----------------------------------------------------------------------------------------------


def test_a_label_is_served_while_a_responder_waits_and_no_longer(book: Book) -> None:
    offer(book, "r1")
    assert book.served("home", 9999) and book.last_served("home", 9999) == 9999
    book.leave("home", "r1", 10_000)
    assert not book.served("home", 10_000) and book.last_served("home", 10_007) == 10_000


def test_a_client_that_is_parked_does_not_make_its_label_served(book: Book) -> None:
    seek(book, "i1")
    assert not book.served("home", 1)
    book.leave("home", "i1", 2)
    assert (book.served("home", 3), book.last_served("home", 3)) == (False, NEVER)


@pytest.mark.parametrize("first", ["responder", "client"])
def test_a_pairing_that_took_the_last_responder_keeps_its_label_served_for_30_s(
    book: Book, first: str
) -> None:
    steps: list[Callable[..., object]] = [offer, seek] if first == "responder" else [seek, offer]
    for step, now in zip(steps, (50, 100), strict=True):
        step(book, step.__name__, now=now)
    book.part("home", 101)
    assert book.served("home", 129.9) and book.last_served("home", 129.9) == 129.9
    assert not book.served("home", 130) and book.last_served("home", 200) == 130


def test_a_live_pair_keeps_its_label_served_for_as_long_as_it_lives(book: Book) -> None:
    offer(book, "r1", "r2")
    seek(book, "i1", "i2")
    book.part("home", 1000)
    assert book.served("home", 2000)
    book.part("home", 2000)
    assert not book.served("home", 2000) and book.last_served("home", 2001) == 2000


def test_a_last_responder_that_leaves_by_itself_ends_at_once_what_was_paired_before(book: Book) -> None:
    offer(book, "r1", "r2")
    seek(book, "i1", "i2")
    book.part("home", 1)
    book.part("home", 2)
    offer(book, "r3", now=3)  # the refill that the 30 s waited for
    book.leave("home", "r3", 4)
    assert not book.served("home", 4) and book.last_served("home", 29) == 4


def test_a_last_responder_that_leaves_while_a_pair_lives_leaves_no_30_s_behind(book: Book) -> None:
    offer(book, "r1")
    seek(book, "i1")
    offer(book, "r2", now=1)
    book.leave("home", "r2", 2)
    assert book.served("home", 3)
    book.part("home", 4)
    assert not book.served("home", 4) and book.last_served("home", 5) == 4


def test_one_of_several_responders_may_leave(book: Book) -> None:
    offer(book, "r1", "r2")
    book.leave("home", "r1", 1)
    assert book.served("home", 9999)


def test_all_may_be_closed_while_everyone_is_looked_at(book: Book) -> None:
    for label in ("home", "office"):
        for leg in ("1", "2"):
            book.offer(label, "ID", label + leg, 0)
    for leg in book.everyone():
        book.leave(leg[:-1], leg, 1)
        book.forget(leg[:-1])
    assert [*book.everyone()] == [] and book.last_served("home", 2) == NEVER


def test_a_room_with_somebody_in_it_is_not_forgotten(book: Book) -> None:
    for step in (offer, seek):
        step(book, step.__name__)
        book.forget("home")
    book.part("home", 50)
    assert book.last_served("home", 60) == 50


# ---- any script at all -----------------------------------------------------------------------------------

SEATS = Limits(responders_per_id=2, responders_per_label=3, parked_per_label=2, refill=30)
LABELS = st.sampled_from(["home", "constructor"])


@dataclass
class Ledger:
    """One label, kept simply: lists instead of clever queues, and every rule of being served on its own."""

    responders: list[tuple[str, int]] = field(default_factory=list)  # ID, leg
    initiators: list[int] = field(default_factory=list)
    live: list[tuple[int, int]] = field(default_factory=list)
    refilling_until: float = NEVER
    ended: float = NEVER  # when a last responder left by itself, or a pair ended

    def pair(self, responder: int, initiator: int, now: float) -> None:
        self.live.append((responder, initiator))
        if not self.responders:
            self.refilling_until = now + SEATS.refill

    def served(self, now: float) -> bool:
        return bool(self.responders or self.live or now < self.refilling_until)


class AnyScript(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.rooms: Rendezvous[int] = Rendezvous(SEATS)
        self.books = {"home": Ledger(), "constructor": Ledger()}
        self.legs = count(1)
        self.now = 0.0

    @rule(label=LABELS, id=st.sampled_from("ABC"))
    def offer(self, label: str, id: str) -> None:
        book, leg = self.books[label], next(self.legs)
        answer = self.rooms.offer(label, id, leg, self.now)
        mine = [seat for seat in book.responders if seat[0] == id]
        if book.initiators:
            first = book.initiators.pop(0)
            assert answer == Paired(leg, first)
            book.pair(leg, first, self.now)
        elif len(mine) == SEATS.responders_per_id:
            assert answer == Waiting(displaced=mine[0][1])
            book.responders.remove(mine[0])
            book.responders.append((id, leg))
        elif len(book.responders) == SEATS.responders_per_label:
            assert answer == Refused()
        else:
            assert answer == Waiting()
            book.responders.append((id, leg))

    @rule(label=LABELS)
    def seek(self, label: str) -> None:
        book, leg = self.books[label], next(self.legs)
        answer = self.rooms.seek(label, leg, self.now)
        if book.responders:
            _, first = book.responders.pop(0)
            assert answer == Paired(first, leg)
            book.pair(first, leg, self.now)
        elif len(book.initiators) == SEATS.parked_per_label:
            assert answer == Refused()
        else:
            assert answer == Waiting()
            book.initiators.append(leg)

    @precondition(lambda self: bool(self.everyone()))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        label, leg = data.draw(st.sampled_from(self.everyone()))
        book = self.books[label]
        self.rooms.leave(label, leg, self.now)
        if leg in book.initiators:
            book.initiators.remove(leg)
            return
        book.responders = [seat for seat in book.responders if seat[1] != leg]
        if not book.responders:
            book.ended, book.refilling_until = self.now, NEVER

    @precondition(lambda self: any(book.live for book in self.books.values()))
    @rule(data=st.data())
    def part(self, data: st.DataObject) -> None:
        book, label = data.draw(st.sampled_from([(b, name) for name, b in self.books.items() if b.live]))
        book.live.remove(data.draw(st.sampled_from(book.live)))
        self.rooms.part(label, self.now)
        book.ended = self.now

    @rule(seconds=st.sampled_from([0.5, 10.0, 29.5, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(label=LABELS)
    def forget(self, label: str) -> None:
        book = self.books[label]
        self.rooms.forget(label)
        if not (book.responders or book.initiators or book.live):
            self.books[label] = Ledger()

    def everyone(self) -> list[tuple[str, int]]:
        return [
            (label, leg)
            for label, book in self.books.items()
            for leg in [*(leg for _, leg in book.responders), *book.initiators]
        ]

    @invariant()
    def nobody_is_lost_or_in_two_places(self) -> None:
        there = list(self.rooms.everyone())
        assert sorted(there) == sorted(leg for _, leg in self.everyone())
        paired = [leg for book in self.books.values() for pair in book.live for leg in pair]
        assert len(set(there + paired)) == len(there + paired)

    @invariant()
    def no_queue_is_over_its_cap_and_one_of_the_two_is_empty(self) -> None:
        for label, book in self.books.items():
            assert self.rooms.waiting(label) == len(book.responders) <= SEATS.responders_per_label
            assert live(self.rooms, label) == len(book.live)
            assert len(book.initiators) <= SEATS.parked_per_label
            assert not (book.responders and book.initiators)
            assert all([id for id, _ in book.responders].count(id) <= SEATS.responders_per_id for id in "ABC")

    @invariant()
    def served_means_what_the_protocol_says(self) -> None:
        for label, book in self.books.items():
            served = book.served(self.now)
            assert self.rooms.served(label, self.now) == served
            last = self.now if served else max(book.ended, book.refilling_until)
            assert self.rooms.last_served(label, self.now) == last


TestAnyScript = AnyScript.TestCase
TestAnyScript.settings = settings(deadline=None, max_examples=200, stateful_step_count=40)
