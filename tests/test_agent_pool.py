"""How many connections the agent keeps waiting, what it does when they are lost, and how it ends."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from registrar import (
    MEBIBYTE,
    PATIENCE,
    PYTHON,
    AgentProcess,
    Registrar,
    Request,
    Responder,
    Start,
    Write,
    accept,
    answer,
    close_with_reset,
    facts,
    has,
    is_reset,
    place,
    read_to_the_end,
    receive,
)

Open = Callable[..., Registrar]


class Gate:
    """While it is shut, registrations are answered late."""

    def __init__(self, registrar: Registrar) -> None:
        self._open = threading.Event()
        registrar.script = [lambda request: self._pass(registrar, request)] * 200

    def _pass(self, registrar: Registrar, request: Request) -> bytes:
        assert self._open.wait(PATIENCE)
        return registrar.grant(request)

    def open(self) -> None:
        self._open.set()


def level(agent: AgentProcess, wanted: Callable[[int, int], bool]) -> tuple[int, int]:
    """What it wants to have waiting, and what it has; asks until the two are as WANTED."""
    deadline = time.monotonic() + 2 * PATIENCE
    while True:
        pool = agent.pool(agent.count(" info pool ") + 1)
        found = int(pool["waiting"]) + int(pool["coming"]), int(pool["waiting"])
        if wanted(*found):
            return found
        assert time.monotonic() < deadline, found


@pytest.mark.parametrize(("most", "grown"), [(15, range(6, 9)), (5, range(5, 6)), (2, range(4, 5))])
def test_a_run_on_the_pool_makes_it_grow(
    start: Start, registrar: Registrar, target: socket.socket, most: int, grown: range
) -> None:
    agent = start(more=f"\n[target]\nwaiting-max = {most}\n")
    agent.said(" ready ", "waiting=4")
    waiting = [registrar.waiting() for _ in range(4)]
    gate = Gate(registrar)
    with contextlib.ExitStack() as stack:
        for one in waiting:
            stack.enter_context(one.visit())
            stack.enter_context(accept(target))
        level(agent, lambda all, still: all in grown and still == 0)
        gate.open()
        reached, _ = level(agent, lambda all, still: all in grown and still == all)
        for _ in range(reached):
            stack.enter_context(registrar.waiting())
        assert registrar.count_waiting() == 0


def test_a_calm_visitor_leaves_the_pool_as_it_is(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    agent = start()
    agent.said(" ready ")
    waiting = [registrar.waiting() for _ in range(4)]
    for _ in range(20):
        with waiting.pop(0).visit(), accept(target):
            waiting.append(registrar.waiting())
    level(agent, lambda all, _: all == 4)
    assert registrar.requests.qsize() == 24
    for one in waiting:
        one.close()


def test_a_pool_that_was_never_full_does_not_grow(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    gate = Gate(registrar)
    registrar.script.insert(0, registrar.grant)
    agent = start()
    with registrar.visitor(), accept(target):
        level(agent, lambda all, still: (all, still) == (4, 0))
        gate.open()
        agent.said(" ready ", "waiting=4")


@pytest.mark.slow  # 30 s of quiet, and then 5 s for each
def test_a_grown_pool_shrinks_when_it_is_quiet(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    agent = start()
    agent.said(" ready ")
    waiting = [registrar.waiting() for _ in range(4)]
    gate = Gate(registrar)
    for one in waiting:
        with one.visit(), accept(target):
            pass
    gate.open()
    grown, _ = level(agent, lambda all, still: all == still > 4)
    many: list[Responder] = [registrar.waiting() for _ in range(grown)]
    deadline = time.monotonic() + 90
    while level(agent, lambda *_: True) != (4, 4):
        assert time.monotonic() < deadline
        time.sleep(1)
    for one in many:
        one.sock.setblocking(False)
    ended = 0
    for one in many:
        with contextlib.suppress(BlockingIOError):
            assert one.sock.recv(1) == b""  # closed in order, and nothing said
            ended += 1
        one.close()
    assert ended == grown - 4
    assert registrar.requests.qsize() == 4 + grown


def test_what_is_missing_is_registered_in_parallel(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    agent = start("--waiting", "5")
    agent.said(" ready ")
    waiting = [registrar.waiting() for _ in range(5)]
    for _ in range(5):
        registrar.request()
    arrived = threading.Barrier(5)

    def together(request: Request) -> bytes:
        arrived.wait(PATIENCE)  # none is answered before all five have come
        return registrar.grant(request)

    registrar.script = [together] * 5
    with contextlib.ExitStack() as stack:
        for one in waiting:
            stack.enter_context(one.visit())
            stack.enter_context(accept(target))
        for _ in range(5):
            stack.enter_context(registrar.waiting())


# ---- losses -----------------------------------------------------------------------------------------------


def test_a_connection_that_is_closed_before_its_first_octet_is_a_failure_and_never_spins(
    start: Start, registrar: Registrar
) -> None:
    agent = start("--waiting", "2")
    began = time.monotonic()
    for count in range(1, 6):
        registrar.waiting().close()
        agent.said(" lost ", times=count)
    pauses = [float(facts(line)["retry_seconds"]) for line in agent.log if " lost " in line]
    assert all(0 < pause <= 30 for pause in pauses)
    assert registrar.requests.qsize() <= 2 + 4 * (time.monotonic() - began)


def test_a_service_that_comes_and_goes(start: Start, open_registrar: Open, target: socket.socket) -> None:
    registrar = open_registrar(stay=True, proxy=True)
    port = registrar.port
    agent = start(at=registrar)
    for turn in range(1, 4):
        agent.said(" ready ", times=turn)
        with registrar.visitor() as visitor, accept(target) as service:
            visitor.sendall(b"x")
            assert receive(service, 1) == b"x"
            registrar.stop_listening()
            registrar.close_waiting(rudely=turn % 2 == 0)
            agent.said(" lost ")
            visitor.sendall(b"y")  # who was there stays
            assert receive(service, 1) == b"y"
        registrar.close()
        registrar = open_registrar(stay=True, proxy=True, port=port)
    agent.said(" ready ", times=4)


def test_retry_after_holds_for_its_label_alone(start: Start, registrar: Registrar) -> None:
    refused = threading.Event()

    def for_home(request: Request) -> bytes:
        if request.label == "home":
            refused.set()
            return answer(429, "full", Retry_After=600)
        return registrar.grant(request)

    registrar.script = [for_home] * 100
    agent = start("--waiting", "2", labels="home, cam")
    agent.said(" ready ", "label=cam", "waiting=2")
    line = facts(agent.said(" refused ", "label=home", "status=429"))
    assert float(line["retry_seconds"]) > 30
    assert refused.is_set() and registrar.count_waiting("home") == 0


def test_the_trouble_is_told_to_who_asks(start: Start, registrar: Registrar) -> None:
    registrar.script = [lambda _: answer(503, "later", Retry_After=100)] * 20
    agent = start()
    agent.said(" refused ", "status=503", "later")
    pool = agent.pool()
    assert pool["waiting"] == "0" and 50 < float(pool["retry_seconds"]) <= 100


@pytest.mark.skipif(not has("prlimit"), reason="needs prlimit (util-linux)")
def test_it_takes_as_many_descriptors_as_it_may(start: Start) -> None:
    """Each visit has two; at the usual soft limit of 1,024 one stranger could use them up."""
    agent = start(prefix=("prlimit", "--nofile=64:512"))
    agent.said(" ready ")
    limits = Path(f"/proc/{agent.process.pid}/limits").read_text()
    assert re.search(r"Max open files +512 +512", limits)


@pytest.mark.skipif(not has("prlimit"), reason="needs prlimit (util-linux)")
def test_running_out_of_descriptors_costs_visitors_and_not_the_agent(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    agent = start(prefix=("prlimit", "--nofile=20"))
    agent.said(" ready ")
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            with contextlib.suppress(Exception):
                stack.enter_context(registrar._responders["home"].get(timeout=1).visit())
        agent.said(" warning ")
    target.settimeout(1)
    for times in itertools.count(1):  # a visit keeps its descriptors until its target, too, has ended it
        if agent.pool(times=times)["live"] == "0":
            break
        with contextlib.suppress(TimeoutError):
            target.accept()[0].close()
    deadline = time.monotonic() + PATIENCE
    while True:  # those that came in the dearth are gone; a later one gets through
        visitor = registrar._responders["home"].get(timeout=60).visit()  # its backoff may have come to 30 s
        with visitor, contextlib.suppress(OSError):
            visitor.sendall(b"now?")
            service, _ = target.accept()
            with service:
                service.settimeout(PATIENCE)
                if service.recv(4) == b"now?":
                    break
        assert time.monotonic() < deadline


def test_who_reads_the_log_may_go(write: Write, registrar: Registrar, target: socket.socket) -> None:
    """journald is restarted, a terminal is closed."""
    from registrar import AGENT

    command = [PYTHON, AGENT, write(), "--to", place(target), "--waiting", "1"]
    read, written = os.pipe()
    os.close(read)
    process = subprocess.Popen(command, stdout=written, stderr=written)
    os.close(written)
    try:
        for _ in range(3):
            with registrar.visitor() as visitor, accept(target) as service:
                visitor.sendall(b"x")
                assert receive(service, 1) == b"x"
    finally:
        process.terminate()
        process.wait(PATIENCE)
    assert process.returncode == 0


# ---- light ------------------------------------------------------------------------------------------------


def test_it_is_light(start: Start, registrar: Registrar) -> None:
    agent = start()
    agent.said(" ready ")
    assert agent.proc("status", "VmRSS") < 27_000  # kB; 25,100 on Debian 12's Python, some more on others
    assert agent.proc("status", "Threads") == 1


@pytest.mark.slow  # counts what happens in 20 s
def test_it_sleeps_while_nothing_happens(start: Start, registrar: Registrar) -> None:
    agent = start()
    agent.said(" ready ")
    switches, ticks = agent.proc("status", "voluntary_ctxt_switches"), cpu(agent)
    time.sleep(20)
    assert agent.proc("status", "voluntary_ctxt_switches") - switches < 20
    assert cpu(agent) - ticks <= 3  # hundredths of a second


def cpu(agent: AgentProcess) -> int:
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


# ---- the end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_those_that_wait_are_closed_and_those_that_live_may_finish(
    start: Start, registrar: Registrar, target: socket.socket, number: int
) -> None:
    agent = start("--waiting", "2")
    agent.said(" ready ")
    with registrar.visitor() as visitor, accept(target) as service, registrar.waiting() as waiting:
        agent.process.send_signal(number)
        assert read_to_the_end(waiting.sock) == b""
        asked = registrar.requests.qsize()
        data = os.urandom(MEBIBYTE)
        speaker = threading.Thread(target=lambda: (visitor.sendall(data), visitor.shutdown(socket.SHUT_WR)))
        speaker.start()
        assert read_to_the_end(service) == data
        speaker.join(PATIENCE)
        service.sendall(b"thank you")
        service.close()
        assert read_to_the_end(visitor) == b"thank you"
    assert agent.ended() == 0
    agent.said(" info complete ")
    agent.said(" info stopped")
    assert registrar.requests.qsize() == asked <= 3


def test_a_second_signal_ends_what_lives(start: Start, registrar: Registrar, target: socket.socket) -> None:
    agent = start("--waiting", "1")
    with registrar.visitor() as visitor, accept(target) as service:
        visitor.sendall(b"x")
        assert receive(service, 1) == b"x"
        with registrar.waiting() as waiting:
            agent.process.send_signal(signal.SIGTERM)
            assert read_to_the_end(waiting.sock) == b""  # it has understood
        agent.process.send_signal(signal.SIGTERM)
        assert is_reset(visitor) and is_reset(service)
    assert agent.ended() == 0
    agent.said(" info shutdown ", "label=home", "received=1")


@pytest.mark.slow  # 30 s
def test_what_still_lives_is_reset_in_the_end(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    agent = start("--waiting", "1")
    with registrar.visitor() as visitor, accept(target) as service:
        visitor.sendall(b"x")
        assert receive(service, 1) == b"x"
        began = time.monotonic()
        agent.process.send_signal(signal.SIGTERM)
        for sock in (visitor, service):
            sock.settimeout(50)
        assert is_reset(visitor) and is_reset(service)
        assert time.monotonic() - began > 25
    assert agent.ended() == 0
    agent.said(" info shutdown ")


def test_an_agent_that_waits_for_nothing_stops_too(start: Start, registrar: Registrar) -> None:
    registrar.stop_listening()
    agent = start()
    agent.said(" failed ")
    agent.process.terminate()
    assert agent.ended() == 0
    silent = socket.create_server(("127.0.0.1", registrar.port))
    with silent:
        agent = start()
        silent.settimeout(PATIENCE)
        with accept(silent):  # in the middle of a handshake
            agent.process.terminate()
            assert agent.ended() == 0


# ---- a machine that slept ---------------------------------------------------------------------------------


@pytest.mark.slow  # 30 s
@pytest.mark.parametrize("staying", [True, False])
def test_a_machine_that_slept_replaces_what_waits_and_keeps_its_visitors(
    start: Start, open_registrar: Open, target: socket.socket, staying: bool
) -> None:
    registrar = open_registrar(stay=staying, proxy=True)
    agent = start("--waiting", "3", at=registrar)
    agent.said(" ready ")
    with registrar.visitor() as visitor, accept(target) as service:
        waiting = [registrar.waiting() for _ in range(3)]
        agent.process.send_signal(signal.SIGSTOP)
        time.sleep(30)
        agent.process.send_signal(signal.SIGCONT)
        agent.said(" info resumed ")
        for one in waiting:
            assert read_to_the_end(one.sock) == b""
            one.close()
        agent.said(" ready ", times=2)
        visitor.sendall(b"still there")
        assert receive(service, 11) == b"still there"
        for _ in range(3):
            registrar.waiting().close()
    assert agent.count(" lost ") <= 3 and agent.count(" failed ") == 0


def test_a_visitor_that_leaves_in_the_moment_that_it_comes(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    agent = start("--waiting", "2")
    for _ in range(20):
        close_with_reset(registrar.visitor())
    with registrar.visitor() as visitor:
        visitor.sendall(b"I stay")
        while True:
            with accept(target) as service, contextlib.suppress(ConnectionResetError):
                if service.recv(6) == b"I stay":
                    break
    times = 1
    while agent.pool(times)["live"] != "0":  # it ends what is left; the test's own time limit is the deadline
        times += 1
