"""The runtime socket: what the service tells its operator, what it is told to do; the flight recorder."""

import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from house import ID, OTHER_ID, REGISTRAR, SERVERS, House, Wire, on_linux
from process import ROOT, Process, free_port
from prometheus_client.parser import text_string_to_metric_families
from test_trial import HELLO, dead, served, visit

from taasadmin.steer import Rejected, Silent, Steer
from taaslib import __version__
from taaslib.config import ConfigError, parse
from taaslib.outcomes import Outcome
from taaslib.startup import CannotStart

Build = Callable[..., House]
FACTS = ("id", "waited_seconds", "responder_waited_seconds", "seconds", "to_initiator", "to_responder",
         "rtt_initiator_ms", "rtt_responder_ms", "retransmitted_initiator", "retransmitted_responder",
         "ended_by", "how", "verdict", "outcome")  # fmt: skip


class Asking:
    """A house whose operator asks it."""

    def __init__(self, house: House) -> None:
        self.house = house
        path = house.config.socket
        assert path
        self._path, self._steer = path, Steer(path)

    def __call__(self, method: str, target: str) -> Any:
        answers: list[Any] = []

        def ask() -> None:
            try:
                answers.append(self._steer.get(target) if method == "GET" else self._steer.post(target))
            except (Rejected, Silent) as error:
                answers.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        self.house.until(lambda: answers, target)
        thread.join()
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    def raw(self, request: bytes, port: int | None = None) -> tuple[int, dict[str, str], str]:
        """Status, fields and body of what is answered to the octets of REQUEST."""
        sock = socket.create_connection(("127.0.0.1", port)) if port else socket.socket(socket.AF_UNIX)
        with sock:
            if not port:
                sock.connect(str(self._path))
            sock.sendall(request)
            sock.setblocking(False)
            said, ended = bytearray(), False

            def whole() -> bool:
                nonlocal ended
                while not ended:
                    try:
                        data = sock.recv(65536)
                    except BlockingIOError:
                        return False
                    said.extend(data)
                    ended = not data
                return True

            self.house.until(whole, "an answer")
        head, _, body = said.decode().partition("\r\n\r\n")
        first, *fields = head.split("\r\n")
        return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in fields), body

    def get(self, target: str, host: str = "localhost", port: int | None = None) -> tuple[int, str]:
        status, _, body = self.raw(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), port)
        return status, body

    def label(self, name: str = "home") -> dict[str, Any]:
        (found,) = [each for each in self("GET", "/status")["labels"] if each["label"] == name]
        return dict(found)


@pytest.fixture
def asking(build: Build, tmp_path: Path) -> Asking:
    return Asking(build(socket=tmp_path / "taas.sock"))


def pair_of_cam(house: House, first: bytes = b"x") -> tuple[Wire, Wire]:
    responder = house.responder("cam", OTHER_ID)
    initiator = house.wire(house.q("cam")).send(first)
    house.until(lambda: responder.received == first)
    responder.received = b""
    return responder, initiator


# ---- Status -----------------------------------------------------------------------------------------------


def test_status_lists_every_label_of_the_store_and_what_is_in_use(asking: Asking) -> None:
    said = asking("GET", "/status")
    assert (
        said["ready"]
        and not said["draining"]
        and said["listens"] == [f"127.0.0.1:{asking.house.service.port}"]
    )
    assert [each["label"] for each in said["labels"]] == ["cam", "home"]
    assert {each["waiting"] for each in said["labels"]} == {0}
    assert said["limits"]["visits"] == {"use": 0, "limit": 20_000}
    assert said["limits"]["exchanges"]["use"] == 1  # this one
    assert said["limits"]["ports"] == {"use": 0, "limit": 400}
    if on_linux():
        assert 0 < said["limits"]["descriptors"]["use"] < said["limits"]["descriptors"]["limit"]


def test_status_follows_a_label_from_its_agent_to_its_pairs(asking: Asking) -> None:
    house = asking.house
    waiting = house.responder()
    line = asking.label()
    assert (line["waiting"], line["live"], line["agent"]) == (1, 0, waiting.name)
    assert line["port"] and line["last_seen"] == int(house.wall.now * 1000)
    visitor = house.wire(house.q()).send(b"hello")
    house.until(lambda: waiting.received == b"hello")
    waiting.send(b"welcome, you")
    house.until(lambda: visitor.received)
    line = asking.label()
    assert (line["waiting"], line["live"], line["pairs"]) == (0, 1, 1)
    assert (line["to_responder"], line["to_initiator"]) == (5, 12)
    visitor.close()
    waiting.close()
    house.until(lambda: house.events("complete", "reset"))
    house.pass_time(5)
    line = asking.label()
    assert (line["live"], line["pairs"], line["to_responder"], line["to_initiator"]) == (0, 1, 5, 12)
    assert line["last_seen"] == int((house.wall.now - 5) * 1000)
    assert asking.label("cam")["last_seen"] is None


def test_an_agent_says_what_it_is_and_no_more_than_64_characters_of_it(asking: Asking) -> None:
    house = asking.house
    for said, known in (("taas-agent/0.5.0", "taas-agent/0.5.0"), ("x" * 500, "x" * 64), (None, None)):
        fields = f"User-Agent: {said}\r\n" if said else ""
        request = f"PUT /register/home HTTP/1.1\r\nHost: {REGISTRAR}\r\n{house.authorization()}{fields}\r\n"
        assert house.ask(request.encode()).status == 200
        assert asking.label()["agent_version"] == known


def test_the_clock_of_a_device_that_is_off_is_told(asking: Asking) -> None:
    house = asking.house
    assert asking.label()["clock_ahead_seconds"] is None
    assert house.put(code=house.code(at=house.wall.now + 3600)).status == 401
    assert abs(asking.label()["clock_ahead_seconds"] - 3600) <= 30


def test_a_label_that_the_operator_removes_is_forgotten(asking: Asking) -> None:
    house = asking.house
    house.responder("cam", OTHER_ID)
    with house.admin() as book:
        for entry in book.find("cam"):
            book.revoke(entry.credential.id, ["cam"])
    house.pass_time(1)
    assert asking.label("cam")["mode"] is None and asking("GET", "/pairings/cam") == []
    house.pass_time(25 * 3600)
    with house.admin() as book:
        book.set_mode("home", "both")
    house.pass_time(1)
    assert [each["label"] for each in asking("GET", "/status")["labels"]] == ["home"]
    with pytest.raises(Rejected, match="there is no label cam"):
        asking("GET", "/pairings/cam")


def test_what_a_label_has_done_outlasts_its_last_credential(asking: Asking) -> None:
    house = asking.house
    house.pair(first=b"abc")[1].reset()
    house.until(lambda: house.events("reset"))
    _responder, spared = house.pair(first=b"de")
    with house.admin() as book:
        book.revoke(ID, ["home"], keep_live=True)
        book.revoke(OTHER_ID, ["home"])
    house.pass_time(1)
    line = asking.label()
    assert (line["mode"], line["live"], line["pairs"], line["to_responder"]) == (None, 1, 2, 5)
    spared.reset()
    house.until(lambda: len(house.events("reset")) == 2)
    assert [record["how"] for record in asking("GET", "/pairings/home")] == ["reset", "reset"]
    assert metrics(asking)["taas_pairs_total", "home"] == 2


# ---- Pairs, and kick --------------------------------------------------------------------------------------


def test_live_pairs_are_listed_and_kicked_by_number(asking: Asking) -> None:
    house = asking.house
    first, second = house.pair(first=b"abc"), pair_of_cam(house)
    pairs = asking("GET", "/pairs")["pairs"]
    assert [(each["label"], each["to_responder"], each["verdict"]) for each in pairs] == [
        ("home", 3, None),
        ("cam", 1, None),
    ]
    assert (pairs[0]["responder"], pairs[0]["initiator"]) == (first[0].name, first[1].name)
    assert asking("POST", f"/kick?pair={pairs[0]['pair']}") == {"kicked": 1}
    house.until(lambda: first[0].was_reset and first[1].was_reset)
    (line,) = house.events("kicked")
    assert (line["label"], line["ended_by"], line["how"], line["verdict"]) == (
        "home",
        "service",
        "kicked",
        "operator",
    )
    assert [each["label"] for each in asking("GET", "/pairs")["pairs"]] == ["cam"]
    second[1].send(b"and on")
    house.until(lambda: second[0].received == b"and on")


def test_all_pairs_of_a_label_are_kicked_at_once_and_nobody_who_waits(asking: Asking) -> None:
    house = asking.house
    pairs = [house.pair(), house.pair()]
    other, waiting = pair_of_cam(house), house.responder()
    assert asking("POST", "/kick?label=home") == {"kicked": 2}
    house.until(lambda: all(wire.was_reset for pair in pairs for wire in pair))
    assert house.waiting() == 1 and not other[0].was_reset and not waiting.gone


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/kick", 400),
        ("/kick?pair=", 400),
        ("/kick?pair=x", 400),
        ("/kick?pair=-1", 400),
        ("/kick?pair=1&label=home", 400),
        ("/kick?who=1", 400),
        ("/kick?label=nobody&label=home", 400),
        (f"/kick?pair={'9' * 4000}", 400),
        ("/kick?pair=%D9%A1", 400),  # a digit that is none of ours
        ("/kick?pair=77", 404),
        ("/kick?label=nobody", 404),
        ("/reload?x", 200),
    ],
)
def test_what_can_t_be_kicked_is_said(asking: Asking, target: str, status: int) -> None:
    house = asking.house
    house.config.path.write_text(ini(house))
    house.pair()
    answer = asking.raw(f"POST {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer[0] == status and len(asking("GET", "/pairs")["pairs"]) == 1
    assert status == 200 or json.loads(answer[2])["error"]


# ---- The flight recorder ----------------------------------------------------------------------------------


def ended(asking: Asking, how: str, verdict: str) -> dict[str, Any]:
    """The only pairing of `home`, ended, told alike by the ring and by the log."""
    (record,) = asking("GET", "/pairings/home")
    assert (record["how"], record["verdict"]) == (how, verdict)
    (line,) = asking.house.events(record["outcome"])
    for name in FACTS[:-1]:
        assert line.get(name) == record[name]
    return dict(record)


def test_a_live_pair_is_a_record_whose_end_is_not_known(asking: Asking) -> None:
    responder, initiator = asking.house.pair()
    (record,) = asking("GET", "/pairings/home")
    assert (record["responder"], record["initiator"]) == (responder.name, initiator.name)
    assert record["timestamp"] == int(asking.house.wall.now * 1000) and record["id"] == ID
    assert {record[name] for name in FACTS if name != "id"} == {None}


@pytest.mark.parametrize("first", ["initiator", "responder"])
def test_a_pair_that_ends_in_order_is_fine(asking: Asking, first: str) -> None:
    house = asking.house
    responder, initiator = house.pair(first=b"12345")
    responder.send(b"six 67")
    house.until(lambda: initiator.received)
    house.pass_time(2)
    ends = {"initiator": initiator, "responder": responder}
    ends.pop(first).finish()
    house.settle()
    (other,) = ends.values()
    other.finish()
    house.until(lambda: house.events("complete"))
    record = ended(asking, "fin", "fine")
    assert (record["ended_by"], record["outcome"]) == (first, "complete")
    assert (record["to_responder"], record["to_initiator"], record["seconds"]) == (5, 6, 2.0)
    if on_linux():
        assert record["rtt_initiator_ms"] > 0 and record["rtt_responder_ms"] > 0
        assert record["retransmitted_initiator"] == record["retransmitted_responder"] == 0


@pytest.mark.parametrize(
    ("who", "verdict"), [("initiator", "visitor's path"), ("responder", "hidden server's path")]
)
def test_whoever_resets_is_named(asking: Asking, who: str, verdict: str) -> None:
    house = asking.house
    responder, initiator = house.pair()
    (initiator if who == "initiator" else responder).reset()
    house.until(lambda: house.events("reset"))
    assert ended(asking, "reset", verdict)["ended_by"] == who


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("who", ["initiator", "responder"])
def test_whoever_resets_is_named_while_the_other_sends(asking: Asking, who: str, order: int) -> None:
    house = asking.house
    responder, initiator = house.pair()
    one, other = (initiator, responder) if who == "initiator" else (responder, initiator)
    deeds = [one.reset, lambda: other.sock.send(b"going on")]
    for deed in deeds if order else reversed(deeds):  # before the service sees any of it
        deed()
    house.until(lambda: house.events("reset"))
    verdict = "visitor's path" if who == "initiator" else "hidden server's path"
    assert ended(asking, "reset", verdict)["ended_by"] == who


def test_a_reset_behind_the_other_side_s_fin_is_its_own_doing(asking: Asking) -> None:
    house = asking.house
    responder, initiator = house.pair()
    initiator.finish()
    house.until(lambda: responder.ended)
    responder.reset()
    house.until(lambda: house.events("reset"))
    assert ended(asking, "reset", "hidden server's path")["ended_by"] == "responder"


def test_a_hidden_server_that_left_without_a_word_is_not_excused_by_a_reset(asking: Asking) -> None:
    house = asking.house
    responder, initiator = house.pair()
    responder.finish()
    house.until(lambda: initiator.ended)
    initiator.reset()
    house.until(lambda: house.events("reset"))
    assert ended(asking, "fin", "hidden server's path")["ended_by"] == "responder"


def test_a_reset_behind_an_answer_and_its_fin_is_the_visitor_s(asking: Asking) -> None:
    house = asking.house
    responder, initiator = house.pair()
    responder.send(b"answer").finish()
    house.until(lambda: initiator.ended)
    initiator.reset()
    house.until(lambda: house.events("reset"))
    assert ended(asking, "reset", "visitor's path")["ended_by"] == "initiator"


def test_a_hidden_server_that_ends_without_a_word_is_not_fine(asking: Asking) -> None:
    house = asking.house
    responder, initiator = house.pair()
    responder.finish()
    house.until(lambda: initiator.ended)
    initiator.finish()
    house.until(lambda: house.events("complete"))
    assert ended(asking, "fin", "hidden server's path")["ended_by"] == "responder"


def test_a_pair_that_was_idle_for_too_long_met_our_limit(build: Build, tmp_path: Path) -> None:
    asking = Asking(build(socket=tmp_path / "taas.sock", limits={"idle": 30.0}))
    asking.house.pair()
    for _ in range(5):
        asking.house.pass_time(10)
    assert ended(asking, "idle", "our limit")["ended_by"] == "service"


def test_the_end_of_a_right_is_the_operator_s_doing(asking: Asking) -> None:
    house = asking.house
    house.pair()
    with house.admin() as book:
        book.set_enabled(ID, False)
    house.pass_time(1)
    assert ended(asking, "revoked", "operator")["ended_by"] == "service"


def test_both_waits_are_told(asking: Asking) -> None:
    house = asking.house
    responder = house.responder()
    house.pass_time(20)
    first = house.wire(house.q()).send(b"x")
    house.until(lambda: responder.received)
    second = house.wire(house.q()).send(b"y")
    house.settle()
    house.pass_time(3)
    late = house.responder()
    house.until(lambda: late.received)
    for wire in (first, second):
        wire.reset()
    house.until(lambda: len(house.events("reset")) == 2)
    records = asking("GET", "/pairings/home")
    waits = [(record["waited_seconds"], record["responder_waited_seconds"]) for record in records]
    assert waits == [(0.0, 20.0), (3.0, 0.0)]


def test_the_registrar_tells_the_same_to_the_hidden_server(asking: Asking) -> None:
    house = asking.house
    house.pair()[1].reset()
    house.until(lambda: house.events("reset"))
    request = f"GET /pairings/home HTTP/1.1\r\nHost: {REGISTRAR}\r\n{house.authorization()}\r\n"
    (told,) = json.loads(house.ask(request.encode()).body)
    assert told == asking("GET", "/pairings/home")[0]
    assert list(told)[:3] == ["responder", "initiator", "timestamp"]


# ---- Metrics and health -----------------------------------------------------------------------------------


def metrics(asking: Asking) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of their names) -> value."""
    status, fields, body = asking.raw(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert status == 200 and fields["content-type"].startswith("text/plain; version=0.0.4")
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(body):
        assert family.type == ("counter" if f"{family.name}_total" in body else "gauge"), family.name
        for sample in family.samples:
            key = (sample.name, *(sample.labels[name] for name in sorted(sample.labels)))
            assert key not in found, "a sample told twice"
            found[key] = sample.value
    return found


def test_metrics_count_what_happened(asking: Asking) -> None:
    house = asking.house
    before = metrics(asking)
    assert before["taas_ready",] == 1 and before["taas_events_total", "registered"] == 0
    for _ in range(3):
        _responder, initiator = house.pair(first=b"0123456789")
        initiator.reset()
    house.until(lambda: len(house.events("reset")) == 3)
    house.responder()
    pair_of_cam(house, b"yz")
    after = metrics(asking)
    expected = {
        ("taas_events_total", "registered"): 5,
        ("taas_events_total", "paired"): 4,
        ("taas_events_total", "reset"): 3,
        ("taas_pairs_total", "home"): 3,
        ("taas_pairs_total", "cam"): 1,
        ("taas_live", "home"): 0,
        ("taas_live", "cam"): 1,
        ("taas_waiting", "home"): 1,
        ("taas_octets_total", "home", "responder"): 30,
        ("taas_octets_total", "cam", "responder"): 2,
        ("taas_limit", "visits"): 20_000,
        ("taas_limit_use", "visits"): 1,
        ("taas_limit_use", "responders"): 1,
    }
    assert {key: after[key] for key in expected} == expected
    assert {key[1] for key in after if key[0] == "taas_events_total"} == {each.value for each in Outcome}
    assert after["taas_build_info", __version__] == 1 and after["process_cpu_seconds_total",] > 0
    house.pass_time(90)
    assert metrics(asking)["taas_uptime_seconds",] >= 90
    if on_linux():
        assert after["process_open_fds",] > 0 and after["process_resident_memory_bytes",] > 1e6


def test_what_a_log_level_leaves_out_is_counted_all_the_same(asking: Asking) -> None:
    asking.house.service.journal.configure(asking.house.log_file, level="error")
    asking.house.put()
    assert metrics(asking)["taas_events_total", "registered"] == 1


def test_operations_md_lists_every_metric(asking: Asking) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    asking.house.pair()
    for name in {key[0] for key in metrics(asking)}:
        assert f"| `{name}" in text, name


def test_it_is_healthy_and_ready_while_it_serves(asking: Asking) -> None:
    assert asking.get("/healthz") == (200, "ok\n") and asking.get("/ready") == (200, "ready\n")
    assert asking.raw(b"HEAD /ready HTTP/1.1\r\nHost: x\r\n\r\n")[2] == ""


def test_it_is_not_ready_while_its_database_can_t_be_read(asking: Asking) -> None:
    house = asking.house
    database = house.config.database
    assert asking.label()["mode"] == "redirect"
    database.rename(database.with_suffix(".away"))
    database.write_bytes(b"no database")
    house.pass_time(1)
    status, body = asking.get("/ready")
    assert status == 503 and "database" in json.loads(body)["error"]
    assert asking.get("/healthz")[0] == 200 and metrics(asking)["taas_ready",] == 0
    assert (
        not asking("GET", "/status")["ready"] and asking.label()["mode"] == "redirect"
    )  # as it was last read
    database.with_suffix(".away").rename(database)
    house.pass_time(1)
    assert asking.get("/ready")[0] == asking.get("/metrics")[0] == 200


# ---- Its HTTP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /", 404),
        ("GET /status/", 404),
        ("GET /status/home", 404),
        ("GET /pairings", 404),
        ("GET /pairings/", 404),
        ("GET /pairings/../status", 404),
        ("GET /_kick", 404),
        ("GET /kick?label=home", 405),
        ("POST /status", 405),
        ("DELETE /status", 405),
        ("PUT /kick?label=home", 405),
        ("GET /status HTTP/2", 400),
        ("GET  /status", 400),
    ],
)
def test_what_it_does_not_serve_is_refused(asking: Asking, line: str, status: int) -> None:
    version = "" if line.endswith("HTTP/2") else " HTTP/1.1"
    answer = asking.raw(f"{line}{version}\r\nHost: localhost\r\n\r\n".encode())
    assert answer[0] == status and ("allow" in answer[1]) == (status == 405)


def test_a_silent_operator_is_answered_408_and_holds_nobody_up(asking: Asking) -> None:
    house = asking.house
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(house.config.socket))
        house.until(lambda: house.service.door.count)
        assert asking.get("/healthz")[0] == 200
        house.pass_time(11)
        assert silent.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_steering_is_in_the_log_and_asking_is_not(asking: Asking) -> None:
    house = asking.house
    house.service.journal.configure(house.log_file, "json", "info")
    house.config.path.write_text(ini(house, f"[log]\nfile = {house.log_file}\nformat = json\n"))
    asking("GET", "/status")
    asking("POST", "/reload")
    assert [line["cause"] for line in house.events("asked", "steered")] == ["/reload"]


# ---- Reload and drain -------------------------------------------------------------------------------------


def ini(house: House, more: str = "") -> str:
    return (
        f"[taas]\npublic = 127.0.0.1, ::1\naddress = 127.0.0.1\nport = 443\nregistrar = {REGISTRAR}\n"
        f"servers = {SERVERS}\nports = 20000-20399\ncertificate = {house.config.certificate}\n"
        f"key = {house.config.key}\ndatabase = {house.config.database}\n{more}"
    )


def test_a_reload_says_what_is_wrong(asking: Asking) -> None:
    house = asking.house
    house.config.path.write_text(ini(house, "[limits]\nparked = 3 weeks\n"))
    with pytest.raises(Rejected, match=r"\[limits\] parked: '3 weeks' is not a time"):
        asking("POST", "/reload")
    house.config.path.write_text(ini(house, "[limits]\nparked = 3s\n"))
    assert asking("POST", "/reload")["reloaded"]
    assert house.service.config.limits.parked == 3.0


def test_where_it_is_asked_stays_until_a_restart(asking: Asking) -> None:
    house = asking.house
    house.config.path.write_text(ini(house, "[admin]\nsocket = other.sock\nmetrics = 127.0.0.1:9\n"))
    assert asking("POST", "/reload")["until_restart"] == [
        "[taas] port",
        "[admin] socket",
        "[admin] metrics",
    ]  # fmt: skip
    causes = [line["cause"] for line in house.events("warning")]
    assert "[admin] socket stays as it was until a restart" in causes
    assert "[admin] metrics stays as it was until a restart" in causes
    assert asking.get("/healthz")[0] == 200


def test_a_drain_lets_live_pairs_end_and_can_be_watched(asking: Asking) -> None:
    house = asking.house
    responder, initiator = house.pair()
    assert asking("POST", "/drain") == {"draining": True}
    house.until(lambda: house.events("draining"))
    measured = metrics(asking)
    assert (measured["taas_draining",], measured["taas_ready",]) == (1, 0)
    said = asking("GET", "/status")
    assert said["draining"] and not said["ready"] and asking.get("/ready")[0] == 503
    assert len(asking("GET", "/pairs")["pairs"]) == 1
    assert asking("POST", "/drain") == {"draining": True}  # once more is not "at once"
    house.settle()
    initiator.send(b"last words")
    house.until(lambda: responder.received == b"last words")
    with pytest.raises(Rejected, match="about to end"):
        asking("POST", "/reload")


# ---- The socket and the port ------------------------------------------------------------------------------


def test_the_socket_is_for_its_owner_alone(asking: Asking) -> None:
    mode = asking.house.config.socket.lstat().st_mode  # type: ignore[union-attr]
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600


def test_what_a_dead_service_left_is_replaced_and_a_file_is_not(build: Build, tmp_path: Path) -> None:
    path = tmp_path / "taas.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert Asking(build(socket=path)).get("/healthz")[0] == 200
    other = tmp_path / "precious"
    other.write_text("mine")
    house = build(socket=other)
    (line,) = [line for line in house.events("warning") if "[admin] socket" in line["cause"]]
    assert "no socket" in line["cause"] and other.read_text() == "mine"
    assert house.put().status == 200  # it serves all the same


def test_a_service_that_lives_keeps_its_socket(build: Build, tmp_path: Path) -> None:
    path = tmp_path / "taas.sock"
    first = Asking(build(socket=path))
    second = build(socket=path)
    (line,) = [line for line in second.events("warning") if "[admin] socket" in line["cause"]]
    assert "another service listens there" in line["cause"]
    said = first("GET", "/status")["listens"]
    assert said == [f"127.0.0.1:{first.house.service.port}"]


@pytest.fixture
def scraped(build: Build) -> Iterator[tuple[Asking, int]]:
    port = free_port()
    house = build(socket=Path(f"/tmp/taas-{os.getpid()}.sock"), metrics=("127.0.0.1", port))
    yield Asking(house), port
    house.config.socket.unlink()  # type: ignore[union-attr]


def test_the_port_tells_metrics_and_health_and_nothing_else(scraped: tuple[Asking, int]) -> None:
    asking, port = scraped
    for target, status in {"/metrics": 200, "/healthz": 200, "/ready": 200, "/status": 404, "/pairs": 404,
                           "/pairings/home": 404, "/kick": 404, "/drain": 404}.items():  # fmt: skip
        assert asking.get(target, "127.0.0.1", port)[0] == status
    post = asking.raw(b"POST /drain HTTP/1.1\r\nHost: localhost\r\n\r\n", port)
    assert post[0] == 404 and not asking.house.service.draining


def test_the_port_makes_its_metrics_once_a_second_at_most(scraped: tuple[Asking, int]) -> None:
    asking, port = scraped
    first = asking.get("/metrics", "localhost", port)
    asking.house.put()
    assert asking.get("/metrics", "localhost", port) == first != asking.get("/metrics")
    asking.house.pass_time(1)
    assert asking.get("/metrics", "localhost", port) != first


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9", 200),
        ("127.0.0.1", 200),
        ("[::1]:1", 200),
        ("evil.example", 421),
        ("127.0.0.1.nip.io", 421),
    ],
)
def test_a_page_whose_name_leads_to_the_port_is_refused(
    scraped: tuple[Asking, int], host: str, status: int
) -> None:
    asking, port = scraped
    assert asking.get("/metrics", host, port)[0] == status


def test_a_metrics_port_that_is_taken_is_an_error_that_names_it(build: Build) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(CannotStart, match=r"\[admin\] metrics"),
    ):
        build(metrics=taken.getsockname()[:2])


@pytest.mark.parametrize(
    ("value", "why"),
    [("0.0.0.0:9100", "no loopback"), ("192.0.2.1:9100", "no loopback"), ("localhost:9100", "like 127"),
     ("127.0.0.1", "like 127.0.0.1:9100"), ("127.0.0.1:0", "port number"), ("127.0.0.1:x", "port number")],
)  # fmt: skip
def test_metrics_are_for_a_loopback_address(value: str, why: str) -> None:
    text = f"[taas]\npublic = 192.0.2.1\nregistrar = a.b\nservers = c.d\n[admin]\nmetrics = {value}\n"
    with pytest.raises(ConfigError, match=rf"\[admin\] metrics: .*{why}"):
        parse(text, Path("taas.ini"))


def test_the_socket_stands_beside_the_database_unless_named_or_off() -> None:
    text = "[taas]\npublic = 192.0.2.1\nregistrar = a.b\nservers = c.d\ndatabase = state/taas.db\n"
    assert parse(text, Path("/etc/taas.ini")).socket == Path("/etc/state/taas.sock")
    assert parse(text + "[admin]\nsocket = /run/x\n", Path("/etc/taas.ini")).socket == Path("/run/x")
    assert parse(text + "[admin]\nsocket =\nmetrics =\n", Path("/etc/taas.ini")).socket is None
    assert parse(text + "[admin]\nmetrics = [::1]:9100\n", Path("t")).metrics == ("::1", 9100)


# ---- The commands, on a service of their own --------------------------------------------------------------


@pytest.fixture
def process(tmp_path: Path, certificate: tuple[Path, Path]) -> Iterator[Process]:
    process = Process(tmp_path, certificate)
    process.add_credential()
    yield process.start()
    process.stop()


def admin(process: Process, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "taas_admin.py"), "-c", str(process.ini), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_commands_show_and_steer(process: Process) -> None:
    said = admin(process, "status").stdout
    assert " is ready, up " in said and "home   offline" in said and "visits 0 of 20000" in said
    assert admin(process, "pairs").stdout == "No live pairs.\n"
    responder, visitor = process.pair()
    with responder, visitor:
        (pair,) = json.loads(admin(process, "pairs", "--json").stdout)["pairs"]
        assert f"\n{pair['pair']:>4}  home" in admin(process, "pairs").stdout
        assert "  live\n" in admin(process, "pairings", "home").stdout
        assert admin(process, "kick", "--pair", str(pair["pair"])).stdout == "Ended 1 live pair.\n"
        with pytest.raises(ConnectionResetError):
            visitor.recv(1)
    assert "service: kicked  operator\n" in admin(process, "pairings", "home").stdout
    assert admin(process, "kick", "home").returncode == 1
    assert admin(process, "reload").returncode == 0
    process.ini.write_text(process.ini.read_text() + "nonsense = 1\n")
    assert admin(process, "kick", "home").returncode == 2  # the command reads taas.ini too


def test_it_is_not_ready_while_no_descriptors_are_left(process: Process) -> None:
    resource = pytest.importorskip("resource")
    assert process.popen and admin(process, "status").stdout.startswith("TAAS ")
    use = json.loads(admin(process, "status", "--json").stdout)["limits"]["descriptors"]["use"]
    hard = resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE, (use + 60, hard))
    assert " is NOT READY, up " in admin(process, "status").stdout  # answered out of the reserve
    resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE, (hard, hard))
    assert " is ready, up " in admin(process, "status").stdout


def test_the_log_is_for_our_own_eyes(process: Process) -> None:
    assert stat.S_IMODE((process.folder / "server.log").stat().st_mode) == 0o600


@pytest.mark.parametrize("said", [b"{}", b"[]", b"null", b'{"error": 1}'])
def test_what_is_no_service_of_ours_is_told_and_no_traceback(
    said: bytes, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    process = Process(tmp_path, certificate)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "taas.sock"))
        listener.listen()

        def answer() -> None:
            with listener.accept()[0] as sock:
                sock.recv(4096)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))

        thread = threading.Thread(target=answer)
        thread.start()
        told = admin(process, "status")
        thread.join()
    assert told.returncode == 1 and "is no service of this version" in told.stderr


def test_a_drain_by_command_ends_an_idle_service_in_order(process: Process) -> None:
    assert admin(process, "drain").returncode == 0
    assert process.popen and process.popen.wait(20) == 0
    silent = admin(process, "status")
    assert silent.returncode == 1 and "no running service answers at " in silent.stderr


def test_a_service_that_is_told_to_be_silent_can_t_be_asked(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    process = Process(tmp_path, certificate, log="[admin]\nsocket =\n")
    said = admin(process, "status")
    assert said.returncode == 1 and "[admin] socket is empty" in said.stderr


def test_a_service_killed_by_9_leaves_no_socket_that_stands_in_the_way(process: Process) -> None:
    assert process.popen
    process.popen.send_signal(signal.SIGKILL)
    process.popen.communicate()
    process.start()
    assert admin(process, "status").returncode == 0


@pytest.mark.skipif(
    os.geteuid() != 0 if hasattr(os, "geteuid") else True, reason="only root can become another"
)
def test_root_leaves_the_socket_to_the_user_that_serves(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    nobody = pwd.getpwnam("nobody")
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(0o755)
    process = Process(tmp_path, certificate, "user = nobody\n")
    os.chown(tmp_path / "registrar.key", nobody.pw_uid, nobody.pw_gid)
    process.add_credential()
    process.start()
    try:
        status = (tmp_path / "taas.sock").lstat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (nobody.pw_uid, 0o600)
        assert admin(process, "status").returncode == 0
    finally:
        process.stop()


# ---- A responder that is dead -----------------------------------------------------------------------------


@pytest.mark.skipif(not on_linux(), reason="needs TCP_INFO and a socket filter")
def test_a_fail_over_counts_each_octet_once_and_no_counter_goes_back(asking: Asking) -> None:
    house = asking.house
    dead(house)
    alive = house.responder()
    visitor = visit(house)
    house.until(lambda: house.events("paired"))
    before = metrics(asking)
    house.pass_time(1.1)
    served(house, alive, visitor)
    after = metrics(asking)
    for name in ("taas_pairs_total", "taas_octets_total"):
        assert all(after[key] >= value for key, value in before.items() if key[0] == name)
    assert after["taas_octets_total", "home", "responder"] == len(HELLO)
    assert after["taas_live", "home"] == 1
