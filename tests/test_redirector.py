"""The redirector's rows of docs/protocol.md, each through a real TLS connection."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Callable

import pytest
from house import ID, LAB_ID, REGISTRAR, SERVERS, House

HOST = f"home.{SERVERS}"


def test_a_served_label_is_a_307_to_its_port_q(house: House) -> None:
    house.responder()
    reply = house.get("/")
    assert reply.status == 307
    assert reply.fields["cache-control"] == "no-store"
    port = house.q()
    assert reply.fields["location"] == f"https://{HOST}:{port}/"
    assert house.listening(port)


@pytest.mark.parametrize(
    "target",
    ["/", "/a/b?x=1&y=%2f%00", "//evil.example/", "/?", "/a#b", "/%0d%0aSet-Cookie:x", "/" + "a" * 8000],
)
def test_path_and_query_go_into_location_exactly_as_sent(house: House, target: str) -> None:
    """B7: the original dropped the query."""
    house.responder()
    assert house.get(target).fields["location"] == f"https://{HOST}:{house.q()}{target}"


def test_b7_the_query_string_is_kept(house: House) -> None:
    house.responder()
    assert house.get("/path?a=b&c").fields["location"].endswith("/path?a=b&c")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
def test_any_method_is_redirected(house: House, method: str) -> None:
    house.responder()
    reply = house.ask(f"{method} /x HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode(), HOST)
    assert reply.status == 307
    assert bool(reply.body) is (method != "HEAD")
    assert int(reply.fields["content-length"]) > 0


@pytest.mark.parametrize(
    "location, start", [("label", HOST), ("domain", SERVERS), ("address", "127.0.0.1")], ids=lambda v: str(v)
)
def test_the_three_forms_of_location(build: Callable[..., House], location: str, start: str) -> None:
    house = build(location=location)
    house.responder()
    assert house.get("/x").fields["location"] == f"https://{start}:{house.q()}/x"


def test_location_by_address_brackets_ipv6(build: Callable[..., House]) -> None:
    house = build(location="address", address=("127.0.0.1", "::1"))
    house.responder()
    reply = house.get("/x", address="::1")
    assert reply.fields["location"].startswith("https://[::1]:")
    port = int(reply.fields["location"].split("]:")[1].split("/")[0])
    assert house.listening(port)
    with socket.create_connection(("::1", port), 2):
        pass


@pytest.mark.parametrize(
    "host", ["HOME.Taas.Localhost", HOST + ".", HOST + ":8443", HOST + ".:443", HOST + ":"]
)
def test_host_is_case_insensitive_with_optional_port_and_dot(house: House, host: str) -> None:
    house.responder()
    assert house.ask(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), HOST).status == 307


def test_clients_may_come_without_sni(house: House) -> None:
    house.responder()
    assert house.ask(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode(), None).status == 307


def test_an_absolute_target_replaces_host_and_is_reduced_to_path_and_query(house: House) -> None:
    house.responder()
    for target, end in (
        (f"https://{HOST}/a?b", "/a?b"),
        (f"HTTP://{HOST}:443", "/"),
        (f"http://{HOST}?q", "/?q"),
    ):
        reply = house.ask(f"GET {target} HTTP/1.1\r\nHost: {REGISTRAR}\r\n\r\n".encode(), HOST)
        assert reply.status == 307
        assert reply.fields["location"] == f"https://{HOST}:{house.q()}{end}"


@pytest.mark.parametrize("host", ["u@x", "x:65536", "a b", "", "y,z", "/"])
def test_an_absolute_target_excuses_no_host_that_is_none(house: House, host: str) -> None:
    house.responder()
    reply = house.ask(f"GET https://{HOST}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), HOST)
    assert reply.status == 400


def test_an_unserved_label_and_an_unknown_one_look_the_same(house: House) -> None:
    known, unknown = house.get("/a?b"), house.get("/a?b", "nosuch")
    assert known.status == unknown.status == 503
    assert known.raw.replace(b"home", b"nosuch") == unknown.raw
    assert known.fields["location"] == f"https://{HOST}/a?b"  # C4
    assert int(known.fields["retry-after"]) > 0


def test_offline_is_a_page_for_browsers_and_text_for_others(house: House) -> None:
    page = house.get(fields="Accept: text/html,application/xhtml+xml\r\n")
    assert page.fields["content-type"] == "text/html; charset=utf-8"
    assert b"<h1>" in page.body
    assert house.get(fields="Accept: */*\r\n").fields["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", SERVERS, f"a.b.{SERVERS}", "example.com", f"a_b.{SERVERS}", "[::1]"]
)
def test_any_other_host_is_421(house: House, host: str) -> None:
    assert house.ask(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), HOST).status == 421


@pytest.mark.parametrize(
    "fields", ["", f"Host: {HOST}\r\nHost: {HOST}\r\n", "Host:\r\n", "Host: a b\r\n", f"Host: {HOST}:x\r\n"]
)
def test_no_host_two_hosts_or_a_malformed_one_are_400(house: House, fields: str) -> None:
    assert house.ask(f"GET / HTTP/1.1\r\n{fields}\r\n".encode(), HOST).status == 400


@pytest.mark.parametrize("target", ["*", HOST + ":443", "ftp://x/", "x", "?x"])
def test_a_target_of_another_form_is_400(house: House, target: str) -> None:
    assert house.ask(f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode(), HOST).status == 400


def test_b4_a_label_named_constructor_is_a_503(house: House) -> None:
    for label in ("constructor", "toString", "valueOf", "hasOwnProperty"):
        assert house.get(label=label).status == 503
    assert house.put().status == 200


def test_b5_names_that_every_object_has_are_not_granted(house: House) -> None:
    for label in ("toString", "constructor", "valueOf"):
        assert house.put(label).status == 403


# Served, or not


def test_b6_a_label_whose_pool_is_empty_is_not_redirected(house: House) -> None:
    responder = house.responder()
    house.q()
    responder.finish()
    house.until(lambda: house.waiting() == 0)
    assert house.get().status == 503


def test_a_label_stays_served_for_30_s_after_a_pairing_took_its_last_responder(house: House) -> None:
    responder, initiator = house.pair()
    initiator.finish()
    responder.finish()
    house.until(lambda: house.events("complete"))
    house.pass_time(29)
    assert house.get().status == 307
    house.pass_time(1)
    assert house.get().status == 503


def test_a_label_is_served_while_a_pair_lives(house: House) -> None:
    house.pair()
    house.pass_time(3600)
    assert house.get().status == 307


def test_a_last_responder_that_goes_ends_it_at_once_whatever_was_paired_before(house: House) -> None:
    _, initiator = house.pair()
    initiator.reset()
    house.until(lambda: house.events("reset"))
    assert house.get().status == 307
    other = house.responder()
    other.reset()
    house.until(lambda: house.waiting() == 0)
    assert house.get().status == 503


def test_a_revoked_responder_ends_it_too(house: House) -> None:
    responder = house.responder()
    with house.admin() as store:
        store.revoke(ID, ["home"])
    house.pass_time(1)
    house.until(lambda: responder.gone)
    assert house.get().status == 503
    assert house.put().status == 403


def test_a_port_that_can_not_be_opened_is_a_503_and_a_log_line(house: House) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        house.add("lab", port=port)
        responder = house.responder("lab", LAB_ID)
        reply = house.get("/x", "lab")
        assert (reply.status, reply.fields["location"]) == (503, f"https://lab.{SERVERS}/x")
        assert house.events("port-failed")[0]["port"] == port
    assert not responder.gone
    assert house.get(label="lab").fields["location"] == f"https://lab.{SERVERS}:{port}/"


def test_nothing_of_a_redirected_request_reaches_the_log(house: House) -> None:
    house.get("/hush-path?hush-query", fields="Cookie: hush-cookie\r\nX: hush-field\r\n")
    house.responder()
    house.get("/hush-path?hush-query", fields="Cookie: hush-cookie\r\nReferer: https://hush/\r\n")
    house.ask(f"GET hush-target HTTP/1.1\r\nHost: {HOST}\r\nCookie: hush-cookie\r\n\r\n".encode(), HOST)
    house.ask(b"GET /hush-path HTTP/1.1\r\nHost: hush-host\r\nhush field\r\n\r\n", HOST)
    assert house.events("redirected") and house.events("not-served") and house.events("bad-request")
    assert "hush" not in house.log


def test_a_locked_database_is_a_503_that_still_has_a_location(build: Callable[..., House]) -> None:
    """C4: the client of 2014 crashes without one."""
    house = build()
    other = sqlite3.connect(house.config.database, isolation_level=None)
    port = house.put().port
    other.execute("BEGIN IMMEDIATE")
    house.wire(port)
    house.until(lambda: house.waiting() == 1)
    reply = house.get("/x")
    other.close()
    assert (reply.status, reply.fields["location"]) == (503, f"https://{HOST}/x")
    assert house.get("/x").status == 307


def test_octets_outside_ascii_come_back_as_they_went(house: House) -> None:
    house.responder()
    host = HOST.encode()
    reply = house.ask("GET /café HTTP/1.1\r\nHost: ".encode() + host + b"\r\n\r\n", HOST)
    assert f":{house.q()}/café\r\n".encode() in reply.raw
