"""Rights now, not then: what rests on a right that the operator took away ends within 2 s."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from house import ID, OTHER_ID, SECRETS, House, Wire

from taasadmin.book import Book
from taaslib.store import Credential

NEW_SECRET = "MFRGGZDFMZTWQ2LKMFRGGZDFMZTWQ2LK"
Change = Callable[..., None]

CHANGES: dict[str, Change] = {
    "disable": lambda store, **options: store.set_enabled(ID, False, **options),
    "revoke": lambda store, **options: store.revoke(ID, ["home"], **options),
    "remove": lambda store, **options: store.remove(ID, **options),
    "rotate": lambda store, **options: store.rotate(ID, NEW_SECRET, **options),
}
every_change = pytest.mark.parametrize("change", CHANGES)


def make(house: House, change: str, **options: bool) -> None:
    with house.admin() as store:
        CHANGES[change](store, **options)
    house.pass_time(2)


def alive(house: House, pair: tuple[Wire, Wire]) -> bool:
    responder, initiator = pair
    initiator.received = b""
    responder.send(b"still here")
    house.settle()
    return initiator.received == b"still here"


@every_change
def test_a_waiting_responder_and_an_open_p_are_closed(house: House, change: str) -> None:
    port = house.put().port
    responder = house.responder()
    make(house, change)
    house.until(lambda: responder.gone)
    assert not house.listening(port)
    assert len(house.events("revoked")) == 2


@pytest.mark.parametrize("change", ["disable", "revoke", "remove"])
def test_a_live_pair_is_reset(house: House, change: str) -> None:
    pair = house.pair()
    make(house, change)
    house.until(lambda: all(wire.was_reset for wire in pair))
    (event,) = house.events("revoked")
    assert event["initiator"] and event["to_responder"] == 1


@pytest.mark.parametrize("change", ["disable", "revoke", "remove"])
def test_a_live_pair_goes_on_where_the_operator_says_so(house: House, change: str) -> None:
    pair = house.pair()
    make(house, change, keep_live=True)
    assert alive(house, pair)
    house.pass_time(60)
    assert alive(house, pair)


def test_a_live_pair_outlives_a_new_secret_unless_the_operator_says_otherwise(house: House) -> None:
    pair = house.pair()
    make(house, "rotate")
    assert alive(house, pair)
    make(house, "rotate", keep_live=False)
    house.until(lambda: all(wire.was_reset for wire in pair))


def test_a_pair_that_was_spared_ends_with_the_next_change_that_spares_none(house: House) -> None:
    pair = house.pair()
    make(house, "rotate")
    make(house, "disable", keep_live=True)
    assert alive(house, pair)
    make(house, "remove")
    house.until(lambda: all(wire.was_reset for wire in pair))


def test_enabling_again_ends_nothing(house: House) -> None:
    pair = house.pair()
    make(house, "rotate")
    with house.admin() as store:
        store.set_enabled(ID, True)
    house.pass_time(2)
    assert alive(house, pair)


def test_an_id_that_was_removed_and_added_again_at_once_is_another_credential(house: House) -> None:
    pair = house.pair()
    with house.admin() as store:
        store.remove(ID)
        store.add(Credential(ID, SECRETS[ID], generation=77), ["home"], None, 0)
    house.pass_time(2)
    house.until(lambda: all(wire.was_reset for wire in pair))


@every_change
def test_what_rests_on_another_id_s_right_stays(house: House, change: str) -> None:
    waiting, pair = house.responder(id=OTHER_ID), None
    pair = house.responder(id=OTHER_ID), house.wire(house.q()).send(b"x")
    house.until(lambda: waiting.received == b"x")
    make(house, change)
    assert alive(house, (waiting, pair[1])) and not pair[0].gone


def test_a_port_p_claimed_before_the_change_was_seen_makes_no_responder(house: House) -> None:
    port = house.put().port
    with house.admin() as store:
        store.set_enabled(ID, False)
    wire = house.wire(port)
    house.until(lambda: wire.gone)
    assert house.waiting() == 0 and house.events("revoked")


def test_q_closes_when_nobody_may_serve_the_label_any_more(house: House) -> None:
    house.responder("cam", OTHER_ID)
    port = house.q("cam")
    with house.admin() as store:
        store.revoke(OTHER_ID, ["cam"])
    house.pass_time(2)
    assert not house.listening(port)
    assert house.get(label="cam").status == 503
    with house.admin() as store:
        store.grant(OTHER_ID, ["cam"])
    house.pass_time(2)
    house.responder("cam", OTHER_ID)
    assert house.q("cam") == port


def test_q_stays_closed_while_only_spared_pairs_live_under_the_label(house: House) -> None:
    with house.admin() as store:
        store.revoke(OTHER_ID, ["home"])
    pair = house.pair()
    make(house, "disable", keep_live=True)
    assert house.get().status == 503
    assert alive(house, pair)


def test_the_command_says_what_becomes_of_live_pairs(house: House) -> None:
    import taas_admin

    parse = taas_admin._parser().parse_args
    for command in ("disable", "revoke", "remove"):
        labels = ["home"] * (command == "revoke")
        assert not parse([command, ID, *labels]).keep_live
        assert parse([command, ID, *labels, "--keep-live"]).keep_live
    assert parse(["rotate", ID]).keep_live and not parse(["rotate", ID, "--end-live"]).keep_live


def test_what_is_spared_is_a_right_and_not_an_id(house: House) -> None:
    store: Book
    with house.admin() as store:
        store.revoke(OTHER_ID, ["cam"], keep_live=True)
        assert store.spared(OTHER_ID, "cam", 0) and not store.spared(OTHER_ID, "home", 0)
        assert not store.spared(OTHER_ID, "cam", 1)
        store.remove(OTHER_ID)
        assert not store.spared(OTHER_ID, "cam", 0)
