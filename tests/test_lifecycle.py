"""Drain, reload, renewal, what systemd is told, a loop that stalls, and a wall clock that jumps."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from house import REGISTRAR, SERVERS, House, Reply
from process import ROOT, Process

from taaslib.loop import Loop
from taaslib.outcomes import Outcome
from taaslib.supervisor import Manager, StallWatch

# Drain


def test_a_drain_lets_live_pairs_finish_and_takes_nobody_new(house: House) -> None:
    responder, initiator = house.pair()
    waiting, unclaimed = house.responder(), house.put().port
    q = house.q()
    quiet = house.wire(house.service.port)
    house.settle()
    house.service.drain()
    house.until(lambda: waiting.gone and quiet.gone)
    assert not any(map(house.listening, (house.service.config.port, unclaimed, q)))
    responder.send(b"the rest")
    house.until(lambda: initiator.received == b"the rest")
    house.pass_time(20)
    assert not house.service._stopping
    responder.finish()
    initiator.finish()
    house.until(lambda: not house.service.lobby.relays)
    house.pass_time(1)
    assert house.service._stopping
    (event,) = house.events("draining")
    assert event["pairs"] == 1


def test_a_drain_without_pairs_ends_at_once(house: House) -> None:
    house.service.drain()
    assert house.service._stopping


def test_an_answer_that_is_on_its_way_still_arrives(house: House) -> None:
    wire = house.tls(receive_buffer=4096)
    house.until(lambda: wire.established)
    wire.paused = True
    wire.say(f"GET / HTTP/1.1\r\nHost: home.{SERVERS}\r\nAccept: text/html\r\n\r\n".encode())
    house.until(lambda: house.events("not-served"))
    house.service.drain()
    wire.paused = False
    house.until(lambda: wire.ended)
    assert Reply.parse(wire.plain).status == 503 and wire.closed_in_order
    wire.close()
    house.until(lambda: not house.service.door.count)


def test_a_reload_in_a_drain_does_nothing(house: House) -> None:
    house.pair()
    house.service.drain()
    before = house.log
    house.service.reload()
    assert house.log == before


def test_a_drain_ends_after_its_time(build: Callable[..., House]) -> None:
    house = build(limits={"drain": 7.0})
    pair = house.pair()
    house.service.drain()
    house.pass_time(6.9)
    assert not house.service._stopping
    house.pass_time(0.2)
    assert house.service._stopping
    house.close()
    assert not pair[0].was_reset or house.events("shutdown")


def test_a_second_signal_ends_a_drain(house: House) -> None:
    house.pair()
    house.service.drain()
    assert not house.service._stopping
    house.service.drain()
    assert house.service._stopping


@pytest.fixture
def paired(process: Callable[..., Process]) -> Iterator[tuple[Process, socket.socket, socket.socket]]:
    running = process()
    running.add_credential()
    running.start()
    responder, visitor = running.pair()
    with responder, visitor:
        yield running, responder, visitor


def test_sigterm_drains_and_the_end_is_in_order(paired: tuple[Process, socket.socket, socket.socket]) -> None:
    running, responder, visitor = paired
    assert running.popen
    running.popen.send_signal(signal.SIGTERM)
    running.until(lambda: not running.accepts())
    responder.sendall(b"still here")
    assert visitor.recv(10) == b"still here"
    responder.close()
    visitor.close()
    assert running.wait() == (0, "")
    assert " draining pairs=1" in running.log and " stopped" in running.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_sigterm_or_a_sigint_ends_it_now(
    paired: tuple[Process, socket.socket, socket.socket], number: int
) -> None:
    running, _, visitor = paired
    assert running.popen
    running.popen.send_signal(signal.SIGTERM)
    running.until(lambda: " draining " in running.log)
    assert running.stop(number) == (0, "")
    with pytest.raises(ConnectionResetError):
        visitor.recv(1)


# Reload


def reload(running: Process, event: str) -> str:
    """Send SIGHUP and return the log's new lines once EVENT is in them."""
    before = len(running.log)
    assert running.popen
    running.popen.send_signal(signal.SIGHUP)
    running.until(lambda: event in running.log[before:])
    return running.log[before:]


def edit(running: Process, old: str, new: str) -> None:
    text = running.ini.read_text()
    assert old in text
    running.ini.write_text(text.replace(old, new, 1))


def test_sighup_follows_taas_ini_and_loses_no_connection(
    paired: tuple[Process, socket.socket, socket.socket],
) -> None:
    running, responder, visitor = paired
    edit(running, "servers = taas.localhost", "servers = moved.localhost")
    edit(running, "[log]", "[limits]\nretry-after = 77s\n[log]")
    reload(running, "what=configuration")
    assert running.answer("attic.moved.localhost", check=False) == 503
    assert running.answer("home.taas.localhost") == 421
    responder.sendall(b"still here")
    assert visitor.recv(10) == b"still here"


def test_new_limits_are_everybody_s(process: Callable[..., Process]) -> None:
    running = process()
    running.add_credential()
    running.start()
    edit(running, "[log]", "[limits]\nreuse = 1\nfailures-per-id = 1\n[log]")
    reload(running, "what=configuration")
    assert [running.put() for _ in range(2)] == [200, 429]


def test_what_can_not_change_is_named_and_stays(process: Callable[..., Process]) -> None:
    running = process().start()
    old = running.port
    edit(running, f"port = {old}", "port = 1")
    edit(running, "ports = ", "database = other.db\nuser = nobody\nhttp-port = 2\nports = ")
    edit(running, "address = 127.0.0.1", "address = 127.0.0.9")
    lines = reload(running, "what=configuration")
    for key in ("address", "port", "http-port", "user", "database"):
        assert f"[taas] {key} stays as it was" in lines
    assert running.answer() == 503 and not (running.folder / "other.db").exists()


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("ports = ", "ports = x", "[taas] ports"),
        ("[log]", "key = nowhere\n[log]", "[taas] key"),
        ("file = server.log", "file = nowhere/server.log", "[log] file"),
        ("[log]", "[nonsense]", "[nonsense]"),
    ],
)
def test_what_is_no_good_changes_nothing_and_is_told(
    process: Callable[..., Process], old: str, new: str, told: str
) -> None:
    running = process().start()
    edit(running, "registrar = registrar.", "registrar = other.")
    edit(running, old, new)
    lines = reload(running, " warning ")
    assert "nothing is changed" in lines and told in lines
    assert running.answer(REGISTRAR) == 401


def test_the_log_moves_with_its_settings(process: Callable[..., Process]) -> None:
    running = process().start()
    edit(running, "file = server.log", "file = other.log\nformat = json")
    assert running.popen
    running.popen.send_signal(signal.SIGHUP)
    other = running.folder / "other.log"
    running.until(lambda: other.exists() and '"configuration"' in other.read_text())


def renew(running: Process) -> None:
    subprocess.run([sys.executable, ROOT / "make_cert.py", running.ini, "--renew"], check=True)


def shown(running: Process) -> str:
    return ssl.get_server_certificate(("127.0.0.1", running.port))


def test_sighup_takes_a_renewed_certificate_and_keeps_the_old_one_when_it_is_bad(
    process: Callable[..., Process],
) -> None:
    running = process().start()
    before = shown(running)
    certificate = running.folder / "registrar.crt"
    good = certificate.read_text()
    certificate.write_text("rubbish")
    reload(running, " warning ")
    assert shown(running) == before
    certificate.write_text(good)
    renew(running)
    reload(running, "what=configuration")
    assert shown(running) != before


def test_a_renewed_certificate_is_found_by_its_path_within_a_minute(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    for file in certificate:
        shutil.copy(file, tmp_path / file.name)
    ini, ours = tmp_path / "taas.ini", tmp_path / "registrar.crt"
    ini.write_text(f"[taas]\npublic = 127.0.0.1\nregistrar = {REGISTRAR}\nservers = {SERVERS}\n")
    with contextlib.closing(House(tmp_path, (ours, tmp_path / "registrar.key"))) as house:
        responder, initiator = house.pair()
        house.pass_time(61)
        assert not house.events("followed")
        ours.write_text("half a certifica")
        house.pass_time(61)
        warned = [event["cause"] for event in house.events("warning")]
        assert warned[-1].startswith(f"{ini}: [taas] certificate")
        house.pass_time(61)
        assert len(house.events("warning")) == len(warned)  # told once
        shutil.copy(certificate[0], ours)
        subprocess.run([sys.executable, ROOT / "make_cert.py", ini, "--renew"], check=True)
        house.pass_time(61)
        assert [event["what"] for event in house.events("followed")] == ["certificate"]
        assert house.get(context=ssl.create_default_context(cafile=str(ours))).status == 307
        responder.send(b"still here")
        house.until(lambda: initiator.received == b"still here")


# What systemd is told


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(20)
        yield sock


def test_systemd_is_told_ready_reloading_watchdog_and_stopping(
    process: Callable[..., Process], systemd: socket.socket, tmp_path: Path
) -> None:
    running = process()
    notify, watchdog = f"NOTIFY_SOCKET={tmp_path / 'notify'}", "WATCHDOG_USEC=400000"
    running.prefix = ["env", notify, watchdog]
    running.launch()
    told = [systemd.recv(100) for _ in range(4)]
    assert told[:2] == [b"WATCHDOG=1", b"READY=1"] and told[2:] == [b"WATCHDOG=1"] * 2
    assert running.popen
    running.popen.send_signal(signal.SIGHUP)
    while (said := systemd.recv(100)) == b"WATCHDOG=1":
        pass
    assert said.startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert abs(int(said.rpartition(b"=")[2]) - time.monotonic_ns() // 1000) < 20_000_000
    while (said := systemd.recv(100)) == b"WATCHDOG=1":
        pass
    assert said == b"READY=1"
    running.popen.send_signal(signal.SIGTERM)
    while (said := systemd.recv(100)) == b"WATCHDOG=1":
        pass
    assert said == b"STOPPING=1"
    assert running.wait() == (0, "")


def test_without_systemd_nothing_is_told_and_a_watchdog_of_somebody_else_s_is_not_ours() -> None:
    Manager({}).tell("READY=1")
    Manager({"NOTIFY_SOCKET": "/nowhere"}).tell("READY=1")
    assert Manager({}).watchdog_seconds == 0
    assert Manager({"WATCHDOG_USEC": "5000000"}).watchdog_seconds == 5
    assert Manager({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}).watchdog_seconds == 0


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets")
def test_an_abstract_socket_is_told_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0taas-test-{id(sock)}")
        sock.settimeout(20)
        Manager({"NOTIFY_SOCKET": f"@taas-test-{id(sock)}"}).tell("READY=1", "STATUS=x")
        assert sock.recv(100) == b"READY=1\nSTATUS=x"


# A stalled loop


def a_turn_that_waits_for_an_event(reached: threading.Event, go_on: threading.Event) -> None:
    reached.set()
    assert go_on.wait(20)


def test_a_stalled_loop_tells_where_it_stands_once() -> None:
    class Log:
        def note(self, outcome: Outcome, **facts: object) -> None:
            noted.append((outcome, facts))
            go_on.set()

    noted: list[tuple[Outcome, dict[str, object]]] = []
    reached, go_on = threading.Event(), threading.Event()
    loop = Loop(lambda owner: None)
    loop.call_later(0, lambda: a_turn_that_waits_for_an_event(reached, go_on))
    with contextlib.closing(loop), StallWatch(loop, Log(), 0.1):  # type: ignore[arg-type]
        loop.turn()
    assert reached.is_set() and loop.busy_since is None
    ((outcome, facts),) = noted
    assert outcome is Outcome.STALLED and "a_turn_that_waits_for_an_event" in str(facts["traceback"])


def test_a_loop_that_sleeps_is_not_stalled() -> None:
    loop = Loop(lambda owner: None)
    with contextlib.closing(loop), StallWatch(loop, None, 0.02):  # type: ignore[arg-type]
        loop.turn(0.2)


# The wall clock


@pytest.mark.parametrize("hours", [-7, 7])
def test_a_jump_of_the_wall_clock_breaks_nothing_but_codes(house: House, hours: int) -> None:
    responder, initiator = house.pair()
    waiting, q, p = house.responder(), house.q(), house.put().port
    silent, parked_q = house.wire(house.service.port), q
    house.settle()
    house.wall.now += hours * 3600
    house.settle()
    house.pass_time(5)
    assert not (waiting.gone or silent.gone) and house.listening(p)
    assert house.q() == q == parked_q
    responder.send(b"still here")
    house.until(lambda: initiator.received == b"still here")
    assert house.put().status == 200  # a code of the new time
    house.wall.now -= hours * 3600
    assert house.put(code=house.code(at=house.wall.now + 30)).status == 200  # and back
    house.pass_time(31)
    assert not house.listening(p)
    assert not house.events("fault")
