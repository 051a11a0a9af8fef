"""Events that the log tells of, each as it is produced; the others are asserted beside their subject."""

from __future__ import annotations

import sqlite3
import ssl
from collections.abc import Callable

import pytest
from house import OTHER_ID, REGISTRAR, SERVERS, House, Reply


def told(house: House, event: str) -> dict[str, object]:
    house.until(lambda: house.events(event), event)
    (line,) = house.events(event)
    return dict(line)


def test_no_credentials_and_a_path_that_is_none(house: House) -> None:
    put = f"PUT /register/home HTTP/1.1\r\nHost: {REGISTRAR}\r\n"
    assert house.ask(f"{put}\r\n".encode()).status == 401
    assert told(house, "no-credentials")["peer"]
    assert (
        house.ask(
            f"GET /nothing HTTP/1.1\r\nHost: {REGISTRAR}\r\n{house.authorization()}\r\n".encode()
        ).status
        == 404
    )
    assert told(house, "not-found")["peer"]


def test_a_label_that_is_not_the_id_s(house: House) -> None:
    assert house.put("cam").status == 403
    assert told(house, "not-granted")["label"] == "cam"


def test_a_code_that_is_used_too_often(build: Callable[..., House]) -> None:
    house = build(limits={"reuse": 1})
    assert [house.put().status for _ in range(2)] == [200, 429]
    assert told(house, "code-overused")["label"] == "home"


def test_a_host_that_is_not_ours(house: House) -> None:
    request = b"GET / HTTP/1.1\r\nHost: www.example.org\r\n\r\n"
    assert house.ask(request).status == 421
    assert told(house, "misdirected")["peer"]


def test_plain_http_on_the_tls_port(house: House) -> None:
    wire = house.wire(house.service.port).send(b"GET / HTTP/1.1\r\n\r\n")
    house.until(lambda: wire.ended)
    assert Reply.parse(wire.received).status == 400
    assert told(house, "plain-http")["peer"] == wire.name


def test_a_server_name_of_nobody_s(house: House) -> None:
    with house.admin() as store:
        store.set_mode("home", "passthrough")
    house.pass_time(1)
    house.tls(f"home.{SERVERS}")
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        house.until(lambda: False)
    assert told(house, "unknown-name")["label"] == "home"


def test_a_database_that_somebody_holds(house: House) -> None:
    holder = sqlite3.connect(house.config.database, isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        assert house.put("cam", OTHER_ID).status == 503
    finally:
        holder.close()
    assert "is busy" in str(told(house, "store-busy")["cause"])


def test_linger_is_how_long_an_answered_client_may_stay(build: Callable[..., House]) -> None:
    house = build(limits={"linger": 60.0})
    head = f"GET /nothing HTTP/1.1\r\nHost: {REGISTRAR}\r\nContent-Length: 9\r\n\r\n"
    wire = house.tls().say(head.encode())
    house.until(lambda: wire.ended)  # it has the answer, and does not close
    house.pass_time(59)
    assert house.service.door._exchanges
    house.pass_time(2)
    assert not house.service.door._exchanges


def test_early_bytes_is_how_much_is_read_before_a_visitor_comes(build: Callable[..., House]) -> None:
    house = build(limits={"early_bytes": 100})
    house.responder().send(b"x" * 1000)
    house.settle()
    (leg,) = house.service.lobby._rooms.everyone()
    assert len(leg.early) == 100
