"""A label's own domains: by Host at the redirector, by server name for pass-through."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from house import SERVERS, House
from test_passthrough import ALERT, hello, set_mode

from taasadmin.book import Refused

OWN = "home.example.org"


@pytest.fixture
def owned(house: House) -> House:
    with house.admin() as store:
        store.grant_host("home", OWN)
    house.pass_time(1)
    return house


def test_the_redirector_answers_for_it_and_location_carries_it(owned: House) -> None:
    owned.responder()
    for host in (OWN, OWN.upper() + ".", OWN + ":8443"):
        reply = owned.ask(f"GET /a?b HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), None)
        assert (reply.status, reply.fields["location"]) == (307, f"https://{OWN}:{owned.q()}/a?b")


def test_offline_it_is_a_503_and_unknown_ones_stay_421(owned: House) -> None:
    for host, status in ((OWN, 503), ("other.example.org", 421), ("example.org", 421)):
        assert owned.ask(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), None).status == status


def test_in_redirect_mode_its_name_gets_our_tls(owned: House) -> None:
    visitor = owned.wire(owned.service.port).send(hello(OWN, alpn="http/1.1"))
    owned.until(lambda: visitor.received)
    assert visitor.received[0] == 0x16


def test_it_is_passed_through_like_the_label_s_name(owned: House) -> None:
    set_mode(owned, "passthrough")
    visitor = owned.wire(owned.service.port).send(hello(OWN))
    owned.until(lambda: visitor.gone)
    assert visitor.received == ALERT
    responder = owned.responder()
    first = hello(OWN)
    owned.wire(owned.service.port).send(first)
    owned.until(lambda: responder.received == first)


def test_it_goes_with_its_label_s_last_grant(owned: House) -> None:
    with owned.admin() as store:
        for entry in store.entries():
            store.revoke(entry.credential.id, ["home"])
        assert store.label_of_host(OWN) is None


def test_it_belongs_to_one_label(owned: House) -> None:
    with owned.admin() as store:
        with pytest.raises(Refused, match="belongs to label home"):
            store.grant_host("cam", OWN)
        store.grant_host("home", OWN)  # again does no harm
        store.revoke_host("home", OWN)
        store.grant_host("cam", OWN)
        assert store.hosts("cam") == (OWN,)


@pytest.fixture
def certified(build: Callable[..., House], tmp_path: Path) -> tuple[House, ssl.SSLContext]:
    """A house in which OWN has a certificate of its own, and a client's trust in it."""
    certificate, key = tmp_path / "own.crt", tmp_path / "own.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-days", "2", "-subj", f"/CN={OWN}", "-addext", f"subjectAltName=DNS:{OWN}"]
        + ["-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    house = build(tls={OWN: (certificate, key)})
    with house.admin() as store:
        store.grant_host("home", OWN)
    house.pass_time(1)
    return house, ssl.create_default_context(cafile=str(certificate))


def test_its_own_certificate_is_chosen_by_server_name(certified: tuple[House, ssl.SSLContext]) -> None:
    house, trust = certified
    house.responder()
    reply = house.ask(f"GET /x HTTP/1.1\r\nHost: {OWN}\r\n\r\n".encode(), OWN, context=trust)
    assert reply.fields["location"] == f"https://{OWN}:{house.q()}/x"


def test_a_host_outside_the_certificate_that_was_shown_is_421(
    certified: tuple[House, ssl.SSLContext],
) -> None:
    house, trust = certified
    other = f"GET / HTTP/1.1\r\nHost: home.{SERVERS}\r\n\r\n".encode()
    assert house.ask(other, OWN, context=trust).status == 421
    assert house.ask(f"GET / HTTP/1.1\r\nHost: {OWN}\r\n\r\n".encode()).status == 421
    assert house.ask(other).status == 503
