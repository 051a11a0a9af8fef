"""How the agent comes to wait: staying and port p, PROXY, redirects, several registrars, trust, the clock;
and what it says to people and to systemd about it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from registrar import (
    EC_KEY,
    ID,
    LOCAL,
    PATIENCE,
    SECRET,
    SIGNATURE,
    SOMEBODY,
    AgentProcess,
    Certificate,
    Registrar,
    Start,
    Write,
    accept,
    answer,
    facts,
    issue,
    openssl,
    place,
    proxy_header,
    read_to_the_end,
    receive,
    run,
    self_signed,
)

Open = Callable[..., Registrar]
YEARS_56 = 56 * 365.25 * 86400


def visits(registrar: Registrar, target: socket.socket, label: str = "home") -> None:
    """One visitor gets through, each half closing by itself."""
    with registrar.visitor(label) as visitor:
        visitor.sendall(b"question")
        visitor.shutdown(socket.SHUT_WR)
        with accept(target) as service:
            assert read_to_the_end(service) == b"question"
            service.sendall(b"answer")
        assert read_to_the_end(visitor) == b"answer"


# ---- staying and port p -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stay", [True, False])
@pytest.mark.parametrize("proxy", [True, False])
@pytest.mark.parametrize("plain", [True, False])
def test_a_visitor_gets_through_whatever_the_service_grants(
    start: Start, open_registrar: Open, target: socket.socket, stay: bool, proxy: bool, plain: bool
) -> None:
    registrar = open_registrar(stay=stay, proxy=proxy)
    agent = start(*["--plain"] * plain, at=registrar)
    for _ in range(3):
        visits(registrar, target)
    headers = registrar.request().headers
    assert (headers.get("TAAS-Stay"), headers.get("TAAS-Proxy")) == ((None, None) if plain else ("1", "v2"))
    line = facts(agent.said(" info complete label=home "))
    assert (line["received"], line["sent"]) == ("8", "6")
    assert line.get("visitor") == ("{}:{}".format(*SOMEBODY) if proxy and not plain else None)


def test_the_agent_parts_from_tls_when_the_service_has_and_says_nothing_more(
    start: Start, registrar: Registrar
) -> None:
    agent = start()
    waiting = [registrar.waiting() for _ in range(4)]
    agent.said(" info ready ", "waiting=4", "at=127.0.0.1")
    assert all(responder.stayed and responder.proxied for responder in waiting)
    assert agent.stop() == 0
    assert [read_to_the_end(responder.sock) for responder in waiting] == [b""] * 4
    assert set(registrar.parted) == {b""}
    for responder in waiting:
        responder.close()


def test_answer_and_close_notify_may_come_octet_by_octet(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    registrar.dribbles = True
    start("--waiting", "1")
    visits(registrar, target)
    assert set(registrar.parted) == {b""}


def test_the_visitor_s_octets_may_follow_the_agent_s_close_notify_at_once(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    start("--waiting", "1")
    for count in range(1, 20):
        with registrar.waiting() as responder:  # in the moment that it waits
            said = b"x" * count
            responder.sock.sendall(proxy_header(SOMEBODY) + said)
            with accept(target) as service:
                assert receive(service, count) == said


def test_a_service_that_speaks_on_instead_of_parting_is_a_failure(start: Start, registrar: Registrar) -> None:
    registrar.chatter = b"HTTP/1.1 200 again"
    agent = start("--waiting", "1")
    agent.said(" warning failed ")
    registrar.chatter = b""
    registrar.waiting().close()


def test_a_stay_that_was_not_asked_for_is_not_believed(start: Start, registrar: Registrar) -> None:
    registrar.script = [lambda _: answer(200, "-", TAAS_Stay=1)]
    start("--waiting", "1", "--plain").said(" warning failed ")
    registrar.waiting().close()


# ---- who visits -------------------------------------------------------------------------------------------


def test_with_proxy_the_target_is_dialled_before_the_visitor_s_first_octet(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    agent = start()
    with registrar.visitor(source=("2001:db8::7", 50000)) as visitor, accept(target) as service:
        service.sendall(b"SSH-2.0-home\r\n")
        assert receive(visitor, 14) == b"SSH-2.0-home\r\n"
        service.close()
        assert read_to_the_end(visitor) == b""
    assert facts(agent.said(" complete "))["visitor"] == "[2001:db8::7]:50000"


def test_without_proxy_it_is_dialled_on_the_first_octet(
    start: Start, open_registrar: Open, target: socket.socket
) -> None:
    registrar = open_registrar(stay=True)
    agent = start("--waiting", "1", at=registrar)
    with registrar.visitor() as visitor:
        agent.said(" ready ")
        target.setblocking(False)
        with pytest.raises(BlockingIOError):
            target.accept()
        target.settimeout(PATIENCE)
        visitor.sendall(b"!")
        with accept(target) as service:
            assert receive(service, 1) == b"!"


def test_a_header_may_come_octet_by_octet(start: Start, registrar: Registrar, target: socket.socket) -> None:
    start("--waiting", "1")
    with registrar.waiting() as responder:
        responder.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in proxy_header(SOMEBODY) + b"hello":
            responder.sock.sendall(bytes([octet]))
        with accept(target) as service:
            assert receive(service, 5) == b"hello"


def test_a_header_that_names_nobody_is_a_header(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    agent = start("--waiting", "1")
    with registrar.waiting() as responder:
        responder.sock.sendall(LOCAL + b"hello")
        with accept(target) as service:
            assert receive(service, 5) == b"hello"
    assert "visitor" not in facts(agent.said(" label=home ", "received="))


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\nHost: home\r\n\r\n", b"\r\n\r\n\0\r\nNUTS\n" + bytes(16), b""]
)
def test_what_should_be_a_header_and_is_none_never_reaches_the_target(
    start: Start, registrar: Registrar, target: socket.socket, said: bytes
) -> None:
    agent = start("--waiting", "1")
    with registrar.waiting() as responder:
        responder.sock.sendall(said)
        if not said:
            responder.sock.sendall(SIGNATURE)
            responder.sock.shutdown(socket.SHUT_WR)
        agent.said(" warning ", "label=home")
        with contextlib.suppress(ConnectionResetError):
            assert responder.sock.recv(1) == b""
    registrar.waiting().close()
    assert agent.stop() == 0
    target.setblocking(False)
    with pytest.raises(BlockingIOError):
        target.accept()


# ---- redirects --------------------------------------------------------------------------------------------


def redirect(status: int, location: str) -> Callable[[object], bytes]:
    return lambda _: answer(status, "over there", Location=location)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_leads_to_another_registrar(
    start: Start, registrar: Registrar, open_registrar: Open, target: socket.socket, status: int
) -> None:
    there = open_registrar(stay=True, proxy=True)
    registrar.script = [redirect(status, f"https://LOCALHOST:{there.port}/elsewhere/register/home")] * 9
    agent = start("--waiting", "1")
    visits(there, target)
    assert there.request().headers["Host"].lower() == f"localhost:{there.port}"
    assert agent.count(" failed ") == agent.count(" refused ") == 0
    assert registrar.count_waiting() == 0


def test_a_location_without_host_stays_with_the_registrar(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    registrar.script = [redirect(307, "/elsewhere/register/home")]
    start("--waiting", "1")
    visits(registrar, target)
    assert [registrar.request().headers["Host"] for _ in range(2)] == [f"localhost:{registrar.port}"] * 2


def test_five_redirects_are_followed_and_not_six(start: Start, registrar: Registrar) -> None:
    here = f"https://localhost:{registrar.port}/register/home"
    registrar.script = [redirect(307, here)] * 5
    agent = start("--waiting", "1")
    registrar.waiting().close()
    agent.said(" lost ")
    assert agent.stop() == 0
    registrar.close_waiting()
    while not registrar.requests.empty():
        registrar.requests.get()
    registrar.script = [redirect(307, here)] * 100
    agent = start("--waiting", "1")
    agent.said(" warning failed ", "redirects")
    assert registrar.requests.qsize() == 6


@pytest.mark.parametrize(
    "location",
    ["http://localhost:80/register/home", "ftp://localhost/", "//localhost/register/home", "", "https://"],
)
def test_a_redirect_to_anything_but_https_is_not_followed(
    start: Start, registrar: Registrar, location: str
) -> None:
    registrar.script = [redirect(302, location)]
    agent = start("--waiting", "1")
    assert re.search(" (failed|refused) ", agent.said(" warning ", "label=home"))
    assert registrar.requests.qsize() == 1


def test_a_redirect_leads_to_the_same_trust_only(
    start: Start, registrar: Registrar, open_registrar: Open, tmp_path: Path
) -> None:
    impostor = open_registrar(self_signed(tmp_path, "impostor"))
    registrar.script = [redirect(307, f"https://localhost:{impostor.port}/register/home")]
    agent = start("--waiting", "1")
    agent.said(" warning failed ", "certificate")
    assert impostor.requests.empty()
    registrar.waiting().close()


# ---- several registrars -----------------------------------------------------------------------------------


def another(registrar: Registrar, pin: Certificate, name: str = "two") -> str:
    lines = f"name = localhost\nport = {registrar.port}\naddress = {registrar.host}\ntrust = pin\n"
    return f"\n[registrar {name}]\n{lines}certificate = {pin.indented}\n"


def test_the_second_registrar_serves_when_the_first_is_gone(
    start: Start, registrar: Registrar, open_registrar: Open, pinned: Certificate, target: socket.socket
) -> None:
    second = open_registrar(stay=True)
    registrar.stop_listening()
    start("--waiting", "2", more=another(second, pinned))
    visits(second, target)


def test_the_second_registrar_is_asked_after_a_503_and_then_asked_first(
    start: Start, registrar: Registrar, open_registrar: Open, pinned: Certificate, target: socket.socket
) -> None:
    second = open_registrar(stay=True)
    registrar.script = [lambda _: answer(503, "not here", Retry_After=60)]
    start("--waiting", "1", more=another(second, pinned))
    for _ in range(3):
        visits(second, target)
    assert registrar.requests.qsize() == 1
    second.close()  # and back again, when the one that served is gone
    visits(registrar, target)


def test_a_403_is_the_service_s_word_and_no_other_registrar_is_asked(
    start: Start, registrar: Registrar, open_registrar: Open, pinned: Certificate
) -> None:
    second = open_registrar()
    registrar.script = [lambda _: answer(403, "not granted")]
    start(more=another(second, pinned)).said(" refused ", "status=403")
    assert second.requests.empty()


def test_a_third_is_reached_past_two_that_are_silent_or_strangers(
    start: Start,
    registrar: Registrar,
    open_registrar: Open,
    pinned: Certificate,
    tmp_path: Path,
    target: socket.socket,
) -> None:
    stranger, third = open_registrar(self_signed(tmp_path, "stranger")), open_registrar(stay=True, proxy=True)
    registrar.stop_listening()
    more = another(stranger, pinned) + another(third, pinned, "three")
    start("--waiting", "1", more=more)
    visits(third, target)
    assert stranger.requests.empty()


def test_when_all_are_gone_the_agent_backs_off_and_comes_back(
    start: Start, registrar: Registrar, open_registrar: Open, pinned: Certificate, target: socket.socket
) -> None:
    second = open_registrar(stay=True)
    port = second.port
    registrar.stop_listening()
    second.close()
    agent = start("--waiting", "1", more=another(second, pinned))
    agent.said(" failed ", "retry_seconds=")
    visits(open_registrar(stay=True, port=port), target)


# ---- trust and time ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    folder = tmp_path_factory.mktemp("authority")
    made = Certificate(folder / "ca.crt", folder / "ca.key")
    openssl(
        *["req", "-x509", *EC_KEY, "-days", 30, "-subj", "/CN=authority", "-keyout", made.key],
        *["-addext", "basicConstraints=critical,CA:TRUE", "-out", made.certificate],
    )
    return made


SYSTEM: dict[str, str | None] = {"trust": "system", "certificate": None}


def test_the_system_s_store_is_trusted(
    start: Start, open_registrar: Open, authority: Certificate, tmp_path: Path, target: socket.socket
) -> None:
    registrar = open_registrar(issue(authority, tmp_path, "good"), stay=True)
    start(at=registrar, env={"SSL_CERT_FILE": str(authority.certificate)}, **SYSTEM)
    visits(registrar, target)


@pytest.mark.parametrize(
    ("first", "last"), [("20200101000000Z", "20210101000000Z"), ("20700101000000Z", "20710101000000Z")]
)
def test_a_certificate_out_of_date_in_the_system_s_eyes_says_set_the_clock(
    start: Start, open_registrar: Open, authority: Certificate, tmp_path: Path, first: str, last: str
) -> None:
    registrar = open_registrar(issue(authority, tmp_path, "dated", first, last))
    agent = start(at=registrar, env={"SSL_CERT_FILE": str(authority.certificate)}, **SYSTEM)
    agent.said(" warning failed ", "certificate", "set the clock")
    assert registrar.requests.empty()


def test_the_system_s_store_trusts_a_certificate_for_its_own_name_only(
    start: Start, open_registrar: Open, authority: Certificate, tmp_path: Path
) -> None:
    registrar = open_registrar(issue(authority, tmp_path, "good"))
    agent = start(
        at=registrar,
        env={"SSL_CERT_FILE": str(authority.certificate)},
        name="registrar.example.com",
        **SYSTEM,
    )
    agent.said(" warning failed ", "certificate")
    assert registrar.requests.empty()


@pytest.mark.parametrize("ahead", [YEARS_56, -YEARS_56])
def test_a_clock_that_is_56_years_off_corrects_itself(
    start: Start, open_registrar: Open, target: socket.socket, ahead: float
) -> None:
    """A device without a clock boots in 1970; and the other way round."""
    registrar = open_registrar(stay=True, proxy=True, clock=ahead)
    agent = start(at=registrar)
    visits(registrar, target)
    assert "clock" in agent.said(" refused ", "status=401")
    agent.said(" ready ", "waiting=4")
    assert agent.count(" refused ", "clock") == 1  # it says so once


@pytest.mark.parametrize(
    ("first", "last"), [("19700101000000Z", "19710101000000Z"), ("20700101000000Z", "20710101000000Z")]
)
def test_the_dates_of_a_pin_are_not_looked_at(
    start: Start, open_registrar: Open, tmp_path: Path, target: socket.socket, first: str, last: str
) -> None:
    made = self_signed(tmp_path, "self")
    dated = issue(made, tmp_path, "dated", first, last)
    registrar = open_registrar(dated, stay=True, clock=YEARS_56)
    start(at=registrar, certificate=dated.indented)
    visits(registrar, target)


def test_any_of_several_pins_will_do(
    start: Start, registrar: Registrar, pinned: Certificate, tmp_path: Path, target: socket.socket
) -> None:
    start(certificate=self_signed(tmp_path, "next").indented + pinned.indented)
    visits(registrar, target)


def test_a_code_that_is_refused_with_the_clock_right_is_said_to_be_the_operator_s_matter(
    start: Start, registrar: Registrar
) -> None:
    from email.utils import formatdate

    registrar.script = [lambda _: answer(401, "no", Date=formatdate(time.time(), usegmt=True))] * 9
    agent = start("--waiting", "1", period="2")
    first = facts(agent.said(" refused ", "status=401"))
    assert float(first["retry_seconds"]) <= 4
    second = facts(agent.said(" refused ", "ask the operator"))
    assert re.search("unknown, disabled", second["why"])
    assert 30 <= float(second["retry_seconds"]) <= 60
    assert registrar.requests.qsize() == 2
    assert registrar.request().code != registrar.request().code


# ---- for people -------------------------------------------------------------------------------------------


def test_one_line_tells_that_it_is_ready(start: Start, registrar: Registrar, target: socket.socket) -> None:
    agent = start("--waiting", "2")
    words = f"2 waiting at 127.0.0.1, to {place(target)}; visitors use https://home.taas.example.com"
    assert agent.tells("home: ").startswith(f"home: {words}")
    started = agent.said(" info started ")
    assert re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(\+00:00|Z) info started ", started)
    assert agent.stop() == 0
    assert len(agent.told) == 1
    agent.said(" info stopped")


def test_each_line_may_be_json(start: Start, registrar: Registrar, target: socket.socket) -> None:
    agent = start("--json", "--waiting", "1")
    visits(registrar, target)
    registrar.waiting().close()
    agent.said('"lost"')
    assert agent.stop() == 0
    events = {event["event"]: event for event in map(json.loads, agent.log)}
    assert {"started", "ready", "complete", "lost", "stopped"} <= set(events)
    done = events["complete"]
    assert (done["level"], done["label"], done["received"], done["sent"]) == ("info", "home", 8, 6)
    assert done["visitor"] == "{}:{}".format(*SOMEBODY)
    assert isinstance(done["seconds"], (int, float))
    assert isinstance(events["lost"]["retry_seconds"], (int, float))


def test_a_signal_has_the_pool_printed(start: Start, registrar: Registrar, target: socket.socket) -> None:
    agent = start("--waiting", "3", labels="home, cam")
    agent.said(" ready label=home ")
    agent.said(" ready label=cam ")
    with registrar.visitor(), accept(target):
        agent.process.send_signal(signal.SIGUSR1)
        home, cam = (facts(agent.said(" info pool ", f"label={label}")) for label in ("home", "cam"))
        assert {"waiting", "coming", "level", "live", "visits", "retry_seconds"} <= set(home)
        assert (cam["waiting"], cam["level"], cam["live"], cam["visits"]) == ("3", "3", "0", "0")
        assert (home["level"], home["live"], home["visits"]) == ("3", "1", "1")


def test_once_ends_with_the_first_visit(start: Start, registrar: Registrar, target: socket.socket) -> None:
    agent = start("--once")
    visits(registrar, target)
    assert agent.ended() == 0
    agent.said(" complete ")


def test_once_ends_with_the_first_failure(write: Write, registrar: Registrar, target: socket.socket) -> None:
    file = write()
    for script in (answer(403, "no"), answer(503, "later", Retry_After=1), b"rubbish\r\n\r\n"):
        registrar.script = [lambda _, script=script: script]  # type: ignore[misc]
        assert run(file, "--to", place(target), "--once").returncode == 1
    registrar.stop_listening()
    ended = run(file, "--to", place(target), "--once")
    assert ended.returncode == 1 and " failed " in ended.stderr


def check(file: Path, to: str, code: int) -> tuple[list[str], list[str]]:
    """What --check finds well, and what not."""
    ended = run(file, "--to", to, "--check")
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    assert not re.search(r"\b[0-9]{6}\b", ended.stdout)
    good, bad = (
        [line for line in ended.stdout.splitlines() if line.startswith(how)] for how in ("ok ", "FAIL ")
    )
    assert bool(bad) == bool(code), ended.stdout
    return good, bad


def steps(lines: list[str]) -> set[str]:
    return {line.split()[1] for line in lines}


@pytest.mark.parametrize("stay", [True, False])
def test_a_check_finds_all_well(
    write: Write, open_registrar: Open, target: socket.socket, stay: bool
) -> None:
    registrar = open_registrar(stay=stay, proxy=stay)
    good, _ = check(write(at=registrar, labels="home, cam"), place(target), 0)
    assert {"tls", "code", "place", "target"} <= steps(good), good
    assert "127.0.0.1" in next(line for line in good if " target " in line)


def test_a_check_names_the_step_that_fails(
    write: Write, registrar: Registrar, open_registrar: Open, target: socket.socket, tmp_path: Path
) -> None:
    to = place(target)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = place(listener)
    good, bad = check(write(), nobody, 1)
    assert {"tls", "code", "place"} <= steps(good) and steps(bad) == {"target"}
    assert nobody in bad[0] or "refused" in bad[0]
    impostor = open_registrar(self_signed(tmp_path, "impostor"))
    good, bad = check(write(at=impostor), to, 1)
    assert not {"tls", "code", "place"} & steps(good) and "certificate" in bad[0], bad
    registrar.script = [lambda _: answer(403, "not granted")]
    good, bad = check(write(), to, 1)
    assert "tls" in steps(good) and "code" not in steps(good) and "ask the operator" in bad[0], bad
    registrar.script = [lambda _: answer(200, "127.0.0.2:9")]
    good, bad = check(write(), to, 1)
    assert "tls" in steps(good) and "place" not in steps(good) and "127.0.0.2:9" in bad[0], bad
    registrar.stop_listening()
    good, bad = check(write(), to, 1)
    assert not {"tls", "code", "place"} & steps(good) and "refused" in bad[0], bad


def test_a_check_says_how_far_the_clock_is_off(
    write: Write, open_registrar: Open, target: socket.socket
) -> None:
    registrar = open_registrar(stay=True, clock=3600.0)
    ended = run(write(at=registrar), "--to", place(target), "--check")
    assert re.search(r"clock.* -?3[56]\d\d ?s", ended.stdout), ended.stdout
    assert re.search("(?m)^ok +code ", ended.stdout) and ended.returncode == 0


def test_a_check_of_a_name_that_dns_does_not_know(
    write: Write, open_registrar: Open, target: socket.socket, tmp_path: Path
) -> None:
    made = self_signed(tmp_path, "nowhere", "DNS:registrar.invalid")
    at = open_registrar(made, stay=True)
    there: dict[str, str | None] = {"certificate": made.indented, "name": "registrar.invalid"}
    check(write(at=at, **there), place(target), 0)  # the address of the file will do
    good, bad = check(write(at=at, **there, address=None), place(target), 1)
    assert "tls" not in steps(good)
    assert re.search("(?i)dns|name|resol", bad[0])


def test_a_check_of_a_bad_file_fails(write: Write, registrar: Registrar, target: socket.socket) -> None:
    ended = run(write(secret="?"), "--to", place(target), "--check")
    assert ended.returncode != 0
    assert "[credential] secret: must be base32" in ended.stdout + ended.stderr


def test_a_name_that_dns_does_not_know_at_boot_is_asked_for_again(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    agent = start(name="registrar.invalid", address=None)
    first = facts(agent.said(" warning failed "))
    assert float(first["retry_seconds"]) <= 30
    agent.said(" warning failed ", times=3)


# ---- systemd ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "abstract"])
def test_systemd_is_told(start: Start, registrar: Registrar, tmp_path: Path, kind: str) -> None:
    name = str(tmp_path / "notify") if kind == "file" else f"@taas-{tmp_path.name}-{time.time_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1) if kind == "abstract" else name)
        sock.settimeout(PATIENCE)
        agent = start("--waiting", "1", env={"NOTIFY_SOCKET": name})
        heard: list[str] = []

        def hears(word: str) -> str:
            while not any(word in said for said in heard):
                heard.append(sock.recv(4096).decode())
            return next(said for said in heard if word in said)

        hears("READY=1")
        assert "home: 1 waiting at 127.0.0.1" in hears("STATUS=")
        heard.clear()
        hears("WATCHDOG=1")
        assert agent.stop() == 0
        hears("STOPPING=1")


def test_it_runs_without_a_name_to_notify(start: Start, registrar: Registrar) -> None:
    agent = start("--waiting", "1", env={"NOTIFY_SOCKET": "/nowhere/at/all"})
    agent.said(" ready ")


def test_the_version_is_in_the_user_agent(start: Start, registrar: Registrar, write: Write) -> None:
    version = run(write(), "--version").stdout.split()[-1]
    start("--waiting", "1")
    assert registrar.request().headers["User-Agent"] == f"taas-agent/{version}"
    assert ID  # (its claim was matched by the registrar)


def test_the_codes_of_a_burst_are_of_one_step_and_none_is_older_than_another(
    start: Start, registrar: Registrar
) -> None:
    agent: AgentProcess = start("--waiting", "15", period="1")
    registrar.script = [lambda request: registrar.grant(request)] * 100
    codes = [registrar.request().code for _ in range(15)]
    agent.said(" ready ", "waiting=15")
    assert len(set(codes)) <= 5
