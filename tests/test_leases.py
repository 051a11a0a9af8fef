"""Ports p and q: who may come, how often, how long, and which number."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import pytest
from house import ID, LAB_ID, OTHER_ID, SERVERS, House

from taaslib.limits import Limits
from taaslib.store import Credential

# Port p


def test_p_takes_exactly_one_connection_and_stops_listening(house: House) -> None:
    port = house.put().port
    first = house.wire(port)
    house.until(lambda: house.waiting() == 1)
    assert not house.listening(port)
    assert not first.gone


def test_b2_a_stranger_at_p_is_closed_and_costs_the_owner_nothing(house: House) -> None:
    port = house.put().port
    thieves = [house.wire(port, source="127.0.0.2") for _ in range(3)]
    house.until(lambda: all(thief.gone for thief in thieves))
    assert house.waiting() == 0
    owner = house.wire(port)
    house.until(lambda: house.waiting() == 1)
    initiator = house.wire(house.q()).send(b"for the owner")
    house.until(lambda: owner.received == b"for the owner")
    assert len(house.events("stranger")) == 3 and not initiator.gone


def test_with_claim_any_whoever_comes_first_is_the_responder(build: Callable[..., House]) -> None:
    house = build(claim="any")
    house.wire(house.put().port, source="127.0.0.2")
    house.until(lambda: house.waiting() == 1)


def test_an_unclaimed_p_is_closed_after_30_s(house: House) -> None:
    port = house.put().port
    house.pass_time(29.9)
    assert house.listening(port)
    house.turn(3)  # that very look claimed it
    port = house.put().port
    house.pass_time(30.1)
    assert not house.listening(port)
    assert [event["port"] for event in house.events("unclaimed")] == [port]


def test_a_registrant_that_left_before_it_was_accepted_harms_nobody(house: House) -> None:
    for _ in range(20):
        house.wire(house.put().port).reset()
    house.settle()
    assert not house.events("fault")
    house.responder()


def test_a_revoked_right_closes_p_within_2_s(house: House) -> None:
    port = house.put().port
    with house.admin() as store:
        store.rotate(ID, "MFRGGZDFMZTWQ2LKMFRGGZDFMZTWQ2LK")
    house.pass_time(2)
    assert not house.listening(port)
    assert house.events("revoked")


def test_p_is_advertised_with_the_public_address_and_not_the_one_listened_on(
    build: Callable[..., House],
) -> None:
    """B12: clouds with 1:1 NAT."""
    house = build(public=("203.0.113.7",), address=("127.0.0.1", "::1"))
    assert house.put().body.startswith(b"203.0.113.7:")
    assert house.listening(house.put().port)
    reply = house.put(id=OTHER_ID, address="::1")  # no public one of its family: the one it came to
    assert reply.body.startswith(b"[::1]:")


def test_b12_the_advertised_address_may_differ_from_the_one_listened_on(build: Callable[..., House]) -> None:
    house = build(public=("203.0.113.7",), location="address")
    house.responder()
    assert house.get().fields["location"].startswith("https://203.0.113.7:")


def test_sticky_and_fixed_ports_do_not_become_a_p(build: Callable[..., House]) -> None:
    house = build(ports=(range(20000, 20005),))
    house.add("lab", port=20000)
    house.responder()
    sticky = house.q()
    ports = {house.put(id=OTHER_ID).port for _ in range(3)}
    assert ports == set(range(20001, 20005)) - {sticky}


def test_live_pairs_do_not_use_up_the_range(build: Callable[..., House]) -> None:
    """300 live pairs fit on a range of 100 ports; here 30 on 10."""
    house = build(ports=(range(20000, 20010),))
    pairs = [house.pair(first=b"%d" % number) for number in range(30)]
    assert len(house.service.lobby.relays) == 30
    for number, (responder, _) in enumerate(pairs):
        responder.send(b"back %d" % number)
    house.until(lambda: all(pair[1].received for pair in pairs))
    assert [pair[1].received for pair in pairs] == [b"back %d" % number for number in range(30)]


# Port q


def test_b1_ten_thousand_gets_open_no_more_than_one_port(house: House) -> None:
    house.responder()
    port = house.q()
    for _ in range(50):
        assert house.q() == port
    assert len(house.events("opened")) == 1


def test_q_is_listened_on_from_the_moment_that_the_label_is_served(house: House) -> None:
    house.responder()
    (event,) = house.events("opened")
    assert house.listening(event["port"])


def test_q_is_sticky_over_absence_and_restart(build: Callable[..., House]) -> None:
    house = build(limits={"q_linger": 60.0})
    responder = house.responder()
    port = house.q()
    responder.finish()
    house.until(lambda: house.waiting() == 0)
    house.pass_time(59)
    assert house.listening(port)
    house.pass_time(2)
    assert not house.listening(port)
    house.responder()
    assert house.q() == port
    house.close()
    later = build()
    later.wall.now += 60
    later.responder()
    assert later.q() == port


def test_q_stays_open_10_minutes_after_the_label_was_last_served(house: House) -> None:
    house.pass_time(5)
    responder = house.responder()
    port = house.q()
    house.pass_time(3000)  # served all the time
    assert house.listening(port)
    house.settle()
    responder.finish()
    house.until(lambda: house.waiting() == 0)
    house.pass_time(599)
    assert house.listening(port)
    house.pass_time(2)
    assert not house.listening(port)


def test_a_fixed_port_may_lie_outside_the_range(house: House) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    house.add("lab", port=port)
    house.responder("lab", LAB_ID)
    assert house.q("lab") == port


def test_a_label_that_gets_a_fixed_port_moves_there(house: House) -> None:
    house.responder()
    old = house.q()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    house.add("home", port=port)
    assert house.q() == port
    assert not house.listening(old)


def test_another_label_takes_an_old_q_only_when_no_other_port_is_left(build: Callable[..., House]) -> None:
    house = build(ports=(range(20000, 20003),), limits={"q_linger": 10.0})
    labels = ("a", "b", "c", "d")
    with house.admin() as store:
        store.add(Credential(LAB_ID, "MFRGGZDFMZTWQ2LKMFRGGZDFMZTWQ2LK"), labels, None, 0)
    ports = []
    for label in labels[:2]:
        responder = house.responder(label, LAB_ID)
        ports.append(house.q(label))
        responder.finish()
        house.until(lambda label=label: house.waiting(label) == 0)
        house.pass_time(31)
    third = house.responder("c", LAB_ID)
    assert house.q("c") not in ports
    house.responder("d", LAB_ID)  # its p is the least recently used q, and so is its own q
    assert house.q("d") in ports
    assert not third.gone


def test_q_is_listened_on_everywhere_or_nowhere(build: Callable[..., House]) -> None:
    house = build(address=("127.0.0.1", "::1"), ports=(range(20000, 20002),))
    with socket.create_server(("::1", 20000), family=socket.AF_INET6):
        house.responder()
        assert house.q() == 20001


def test_two_labels_have_two_origins(house: House) -> None:
    house.responder("home", OTHER_ID)
    house.responder("cam", OTHER_ID)
    assert house.q("home") != house.q("cam")
    assert house.get(label="cam").fields["location"].startswith(f"https://cam.{SERVERS}:")


def test_all_ports_are_closed_when_the_service_ends(house: House) -> None:
    house.responder()
    ports = [house.q(), house.put().port, house.service.port]
    house.close()
    assert not any(house.listening(port) for port in ports)


def test_without_descriptors_a_registration_is_503_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one try per port of the range; and with descriptors it works again."""
    tries: list[int] = []

    def none_left(_address: str, port: int, _limits: Limits) -> socket.socket:
        tries.append(port)
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("taaslib.leases.open_port", none_left)
        assert house.put().status == 503
    assert len(tries) == 1
    assert house.put().status == 200
