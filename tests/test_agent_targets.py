"""Where the agent takes visitors: targets of the file and of the options, TLS that it ends itself, the PROXY
header that it hands on, and that no octet is lost or changed on the way."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from registrar import (
    LOCAL,
    MEBIBYTE,
    PATIENCE,
    SIGNATURE,
    SOMEBODY,
    AgentProcess,
    Certificate,
    Registrar,
    Start,
    Write,
    accept,
    close_with_reset,
    facts,
    is_reset,
    place,
    proxy_header,
    read_to_the_end,
    receive,
    run,
    self_signed,
)

Open = Callable[..., Registrar]
HOME = "home.taas.example.com"


@contextlib.contextmanager
def listening(
    where: tuple[str, int] | str = ("127.0.0.1", 0), family: int = socket.AF_INET
) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen()
        listener.settimeout(PATIENCE)
        yield listener


def reaches(registrar: Registrar, target: socket.socket, label: str = "home") -> None:
    with registrar.visitor(label) as visitor:
        visitor.sendall(b"hello " + label.encode())
        with accept(target) as service:
            assert receive(service, 6 + len(label)) == b"hello " + label.encode()
            service.sendall(b"welcome")
            assert receive(visitor, 7) == b"welcome"


# ---- which target -----------------------------------------------------------------------------------------


def test_the_target_may_stand_in_the_file(start: Start, registrar: Registrar, target: socket.socket) -> None:
    start(to="", more=f"\n[target]\nto = {place(target)}\nwaiting = 2\n").said(" ready ", "waiting=2")
    reaches(registrar, target)


def test_two_labels_have_targets_of_their_own(start: Start, registrar: Registrar, tmp_path: Path) -> None:
    path = str(tmp_path / "cam.sock")
    with listening() as home, listening(path, socket.AF_UNIX) as cam:
        more = f"\n[target home]\nto = {place(home)}\n[target cam]\nto = unix:{path}\nwaiting = 1\n"
        agent = start(to="", labels="home, cam", more=more)
        for label, target in (("home", home), ("cam", cam), ("cam", cam), ("home", home)):
            reaches(registrar, target, label)
        assert f"to=unix:{path}" in agent.said(" ready ", "label=cam", "waiting=1")
        agent.said(" ready ", "label=home", "waiting=4")


def test_options_go_over_the_common_target_and_under_a_label_s_own(
    start: Start, registrar: Registrar
) -> None:
    with listening() as common, listening() as own, listening() as option:
        more = f"\n[target]\nto = {place(common)}\nwaiting = 9\n[target cam]\nto = {place(own)}\n"
        agent = start("--waiting", "2", to=place(option), labels="home, cam", more=more)
        reaches(registrar, option)
        reaches(registrar, own, "cam")
        agent.said(" ready ", "label=home", "waiting=2")
        agent.said(" ready ", "label=cam", "waiting=2")


def test_a_target_may_have_an_ipv6_address(start: Start, registrar: Registrar) -> None:
    with listening(("::1", 0), socket.AF_INET6) as target:  # type: ignore[arg-type]
        start(to=place(target)).said(" ready ", f"to={place(target)}")
        reaches(registrar, target)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("[target]\nto = 8123\n", "to: must be HOST:PORT"),
        ("[target]\nto = unix:relative\n", "to: must be HOST:PORT"),
        ("[target]\ntls = yes\n", "] tls: must be passthrough or terminate"),
        ("[target]\nproxy = v1\n", "] proxy: must be off or v2"),
        ("[target]\nwaiting = 21\n", "] waiting: must be"),
        ("[target]\nwaiting = 0\n", "] waiting: must be"),
        ("[target]\nwaiting-max = 21\n", "] waiting-max: must be"),
        ("[target]\nport = 80\n", "[target] port: unknown key"),
        ("[target]\nto = 127.0.0.1:80\n[target attic]\n", "[target attic]"),
        ("[target home cam]\n", "[target home cam]"),
        ("[targets]\n", "[targets]: unknown section"),
        ("", "to: is missing"),
        ("[target]\nto = 127.0.0.1:80\ntls = terminate\nkey = some.key\n", "certificate"),
        (
            "[target]\nto = 127.0.0.1:80\ntls = terminate\nkey = no.key\ncertificate = no/no.crt\n",
            "no/no.crt",
        ),
        ("[registrar two]\nname = localhost\n", "[registrar two] trust: is missing"),
    ],
)
def test_what_is_wrong_with_a_target_is_one_clear_line(
    write: Write, registrar: Registrar, more: str, words: str
) -> None:
    to = () if "to =" in more or not more else ("--to", "127.0.0.1:80")
    ended = run(write(more="\n" + more), *to)
    assert ended.returncode == 2, ended.stderr
    assert words in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    assert registrar.requests.empty()


# ---- a target that comes and goes -------------------------------------------------------------------------


def test_a_target_that_flaps_costs_the_visitors_of_the_moment_only(
    start: Start, registrar: Registrar
) -> None:
    with listening(("127.0.0.77", 0)) as target:  # where no outgoing connection takes the port meanwhile
        where = target.getsockname()
    agent = start(to=f"127.0.0.77:{where[1]}")
    agent.said(" ready ")
    for turn in range(3):
        for _ in range(2):
            with registrar.visitor() as visitor, pytest.raises(ConnectionResetError):
                visitor.sendall(b"anybody?")  # the reset may be faster
                read_to_the_end(visitor)
        line = facts(agent.said(" warning target-refused ", times=2 * turn + 2))
        assert line["target"] == f"127.0.0.77:{where[1]}" and "refused" in line["why"]
        assert line["visitor"] == "{}:{}".format(*SOMEBODY)
        with listening(where) as target:
            reaches(registrar, target)
    assert agent.count(" failed ") == agent.count(" lost ") == 0


def test_a_unix_socket_that_is_not_there_is_a_refusal(
    start: Start, registrar: Registrar, tmp_path: Path
) -> None:
    path = str(tmp_path / "app.sock")
    agent = start(to=f"unix:{path}")
    with registrar.visitor() as visitor, contextlib.suppress(ConnectionResetError):
        visitor.sendall(b"?")  # the reset may be faster
        assert visitor.recv(1) == b""
    assert "No such file" in facts(agent.said(" target-refused "))["why"]
    with listening(path, socket.AF_UNIX) as target:
        reaches(registrar, target)


# ---- the PROXY header for the target ----------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", proxy_header(("192.0.2.66", 666))])
@pytest.mark.parametrize("known", [True, False])
def test_the_target_gets_exactly_one_header_and_never_the_visitor_s_octets_first(
    start: Start, open_registrar: Open, target: socket.socket, first: bytes, known: bool
) -> None:
    registrar = open_registrar(stay=True, proxy=known)
    start("--proxy", "v2", at=registrar)
    with registrar.visitor() as visitor:
        visitor.sendall(first)
        visitor.shutdown(socket.SHUT_WR)
        with accept(target) as service:
            assert read_to_the_end(service) == (proxy_header(SOMEBODY) if known else LOCAL) + first


def test_without_the_wish_the_target_gets_no_header(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    start()
    with registrar.visitor() as visitor:
        visitor.sendall(b"x")
        visitor.shutdown(socket.SHUT_WR)
        with accept(target) as service:
            assert read_to_the_end(service) == b"x"


# ---- TLS that the agent ends ------------------------------------------------------------------------------


class Visitor:
    """A TLS client over a connection that the registrar has paired; half-closes as TLS has it."""

    def __init__(self, sock: socket.socket, trust: Path, most: ssl.TLSVersion, name: str = HOME) -> None:
        self.sock = sock
        context = ssl.create_default_context(cafile=str(trust))
        context.maximum_version = most
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        self._do(self.tls.do_handshake)

    def _flush(self) -> None:
        data = self.outgoing.read()
        if data:
            self.sock.sendall(data)

    def _do(self, call: Callable[[], object]) -> object:
        while True:
            try:
                result = call()
                self._flush()
                return result
            except ssl.SSLWantReadError:
                self._flush()
                data = self.sock.recv(1 << 16)
                self.incoming.write(data) if data else self.incoming.write_eof()
            except ssl.SSLZeroReturnError:  # their close_notify, after ours
                return b""

    def say(self, data: bytes) -> None:
        for start in range(0, len(data), 1 << 16):
            self.tls.write(data[start : start + (1 << 16)])
            self._flush()

    def finish(self) -> None:
        """close_notify and FIN; reading goes on."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self._flush()
        self.sock.shutdown(socket.SHUT_WR)

    def hear(self, count: int = -1) -> bytes:
        """COUNT octets, or all up to close_notify.  A FIN without one raises SSLEOFError."""
        heard = bytearray()
        while count < 0 or len(heard) < count:
            data = self._do(lambda: self.tls.read(1 << 16))
            assert isinstance(data, bytes)
            if not data:
                assert count < 0, bytes(heard)
                break
            heard += data
        return bytes(heard)


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(params=VERSIONS, ids=["tls1.2", "tls1.3"])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    assert isinstance(request.param, ssl.TLSVersion)
    return request.param


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The certificate of a pair that stands beside the agent's file."""
    return self_signed(tmp_path, HOME, f"DNS:{HOME},DNS:cam.taas.example.com").certificate


TERMINATE = f"tls = terminate\ncertificate = {HOME}.crt\nkey = {HOME}.key\n"


def terminating(start: Start, *options: str, **more: object) -> AgentProcess:
    """An agent with the pair MADE."""
    agent = start(*options, more=f"\n[target]\n{TERMINATE}", **more)
    agent.tells("visitors use")
    return agent


def test_a_pair_is_made_on_the_first_start_and_its_pin_is_printed(
    start: Start, registrar: Registrar, target: socket.socket, tmp_path: Path
) -> None:
    pin = re.compile(r"\b[0-9A-Fa-f]{2}(:?[0-9A-Fa-f]{2}){31}\b")

    def started() -> AgentProcess:
        agent = start("--tls", "terminate")
        agent.tells("visitors use")
        return agent

    def pin_of(agent: AgentProcess) -> str:
        found = [match[0] for match in map(pin.search, agent.told) if match]
        assert len(found) == 1, agent.told
        return found[0].replace(":", "").upper()

    agent, made = started(), tmp_path / f"{HOME}.crt"
    der = ssl.PEM_cert_to_DER_cert(made.read_text())
    digest = hashlib.sha256(der).hexdigest().upper()
    assert pin_of(agent) == digest
    assert stat.S_IMODE(made.with_suffix(".key").stat().st_mode) == 0o600
    with registrar.visitor() as sock, accept(target) as service:
        Visitor(sock, made, ssl.TLSVersion.TLSv1_3).say(b"x")
        assert receive(service, 1) == b"x"
    assert agent.stop() == 0
    before = made.read_bytes()
    agent = started()
    assert made.read_bytes() == before and pin_of(agent) == digest  # the next start takes the same


def test_a_state_directory_is_where_it_is_made(start: Start, registrar: Registrar, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    start("--tls", "terminate", env={"STATE_DIRECTORY": str(state)}).tells("visitors use")
    assert sorted(file.name for file in state.iterdir()) == [f"{HOME}.crt", f"{HOME}.key"]
    assert not (tmp_path / f"{HOME}.key").exists()


def test_only_the_labels_that_terminate_get_a_pair(
    start: Start, registrar: Registrar, tmp_path: Path
) -> None:
    more = "\n[target]\ntls = terminate\n[target cam]\ntls = passthrough\n"
    start(labels="home, cam", more=more).tells("home: ")
    assert (tmp_path / f"{HOME}.key").exists() and not (tmp_path / "cam.taas.example.com.key").exists()


def test_without_openssl_one_line_says_so(write: Write, tmp_path: Path, registrar: Registrar) -> None:
    ended = run(write(), "--to", "127.0.0.1:80", "--tls", "terminate", env={"PATH": str(tmp_path)})
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "openssl" in ended.stderr, ended.stderr


def test_a_key_that_asks_for_a_password_is_one_clear_line(
    write: Write, tmp_path: Path, registrar: Registrar
) -> None:
    pair = self_signed(tmp_path, "locked")
    command = ["openssl", "ec", "-aes256", "-passout", "pass:secret", "-in", pair.key, "-out", pair.key]
    subprocess.run(command, check=True, capture_output=True)
    more = "\n[target]\nto = 127.0.0.1:80\ntls = terminate\ncertificate = locked.crt\nkey = locked.key\n"
    ended = run(write(more=more))
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "locked" in ended.stderr, ended.stderr


@pytest.mark.parametrize("proxied", [True, False])
def test_a_visitor_s_tls_ends_at_the_agent_and_each_half_by_itself(
    start: Start,
    open_registrar: Open,
    target: socket.socket,
    made: Path,
    version: ssl.TLSVersion,
    proxied: bool,
) -> None:
    registrar = open_registrar(stay=True, proxy=proxied)
    agent = terminating(start, at=registrar)
    with registrar.visitor() as sock:
        visitor = Visitor(sock, made, version)
        visitor.say(b"GET / HTTP/1.0\r\n\r\n")
        with accept(target) as service:
            assert receive(service, 18) == b"GET / HTTP/1.0\r\n\r\n"
            visitor.finish()
            assert service.recv(1) == b""  # its half has ended
            service.sendall(b"an answer after the question has ended")
            assert visitor.hear(38) == b"an answer after the question has ended"
            service.sendall(b", in two parts")
        assert visitor.hear() == b", in two parts"  # up to a close_notify
    done = facts(agent.said(" info complete "))
    assert (done["received"], done["sent"]) == ("18", "52")


def test_the_target_may_end_its_half_first(
    start: Start, registrar: Registrar, target: socket.socket, made: Path, version: ssl.TLSVersion
) -> None:
    agent = terminating(start)
    with registrar.visitor() as sock, accept(target) as service:
        service.sendall(b"220 ready\r\n")
        service.shutdown(socket.SHUT_WR)
        visitor = Visitor(sock, made, version)
        assert visitor.hear() == b"220 ready\r\n"
        visitor.say(b"one thing more")
        visitor.say(b", and another")
        visitor.finish()
        assert read_to_the_end(service) == b"one thing more, and another"
    agent.said(" info complete ")


def test_a_fin_without_close_notify_ends_the_visitor_s_half(
    start: Start, registrar: Registrar, target: socket.socket, made: Path, version: ssl.TLSVersion
) -> None:
    agent = terminating(start)
    with registrar.visitor() as sock:
        visitor = Visitor(sock, made, version)
        visitor.say(b"all I have to say")
        sock.shutdown(socket.SHUT_WR)
        with accept(target) as service:
            assert read_to_the_end(service) == b"all I have to say"
            service.sendall(b"understood")
        assert visitor.hear() == b"understood"
    agent.said(" info complete ")


def test_a_pile_of_octets_right_in_front_of_the_close_notify_arrives(
    start: Start, registrar: Registrar, target: socket.socket, made: Path, version: ssl.TLSVersion
) -> None:
    """They stand inside OpenSSL when the target ends its half: nothing of them may be dropped for that."""
    terminating(start)
    data = os.urandom(5 * MEBIBYTE)
    with registrar.visitor() as sock, accept(target) as service:
        visitor = Visitor(sock, made, version)
        visitor.say(b"?")
        assert receive(service, 1) == b"?"
        service.shutdown(socket.SHUT_WR)  # while the visitor speaks
        speaker = threading.Thread(target=lambda: (visitor.say(data), visitor.finish()))
        speaker.start()
        assert hashlib.sha256(read_to_the_end(service)).digest() == hashlib.sha256(data).digest()
        speaker.join(PATIENCE)
        assert visitor.hear() == b""


@pytest.mark.parametrize("end", ["visitor", "target"])
def test_a_reset_is_passed_on_through_tls(
    start: Start, registrar: Registrar, target: socket.socket, made: Path, end: str
) -> None:
    agent = terminating(start)
    sock = registrar.visitor()
    visitor = Visitor(sock, made, ssl.TLSVersion.TLSv1_3)
    visitor.say(b"x")
    service = accept(target)
    assert receive(service, 1) == b"x"
    close_with_reset(sock if end == "visitor" else service)
    assert is_reset(service if end == "visitor" else sock)
    agent.said(" reset ")
    sock.close()
    service.close()


def test_octets_in_bulk_are_the_same_at_the_other_end(
    start: Start, registrar: Registrar, target: socket.socket, made: Path, version: ssl.TLSVersion
) -> None:
    agent = terminating(start)
    up, down = os.urandom(16 * MEBIBYTE), os.urandom(16 * MEBIBYTE)
    with registrar.visitor() as sock, accept(target) as service:
        visitor = Visitor(sock, made, version)
        heard: list[bytes] = []

        def serve() -> None:
            heard.append(read_to_the_end(service))
            service.sendall(down)
            service.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve)
        thread.start()
        visitor.say(up)
        visitor.finish()
        assert hashlib.sha256(visitor.hear()).digest() == hashlib.sha256(down).digest()
        thread.join(PATIENCE)
        assert hashlib.sha256(heard[0]).digest() == hashlib.sha256(up).digest()
    agent.said(" info complete ", f"received={len(up)} sent={len(down)}")
    assert agent.proc("status", "VmHWM") < 60_000


def test_a_slow_reader_of_tls_holds_the_target_back(
    start: Start, registrar: Registrar, target: socket.socket, made: Path
) -> None:
    agent = terminating(start)
    with registrar.visitor() as sock, accept(target) as service:
        visitor = Visitor(sock, made, ssl.TLSVersion.TLSv1_3)
        service.settimeout(1.0)
        sent = 0
        with contextlib.suppress(TimeoutError):  # until nothing moves any more
            while sent < 128 * MEBIBYTE:
                sent += service.send(bytes(MEBIBYTE))
        assert sent < 64 * MEBIBYTE
        assert agent.proc("status", "VmHWM") < 60_000
        service.shutdown(socket.SHUT_WR)
        assert len(visitor.hear()) == sent


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: home\r\n\r\n",
        b"SSH-2.0-client\r\n",
        b"\x16\x03\x01\x00\x05rubbi",
        b"\x16\x03\x01\xff\xff" + bytes(70_000),
    ],
    ids=["http", "ssh", "rubbish", "long"],
)
def test_a_visitor_that_speaks_no_tls_is_closed(
    start: Start, registrar: Registrar, target: socket.socket, made: Path, said: bytes
) -> None:
    agent = terminating(start)
    with registrar.visitor() as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(said)
        with accept(target) as service, contextlib.suppress(ConnectionResetError):
            assert read_to_the_end(service) == b""
        with contextlib.suppress(ConnectionResetError):
            read_to_the_end(sock)
    line = facts(agent.said(" tls-failed "))
    assert line["visitor"] == "{}:{}".format(*SOMEBODY)
    with registrar.visitor() as sock, accept(target) as service:  # the next one is served
        Visitor(sock, made, ssl.TLSVersion.TLSv1_3).say(b"x")
        assert receive(service, 1) == b"x"


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("after", [0, 1, 100])
def test_a_visitor_that_vanishes_in_the_handshake_takes_nothing_with_it(
    start: Start, registrar: Registrar, target: socket.socket, made: Path, how: str, after: int
) -> None:
    agent = terminating(start, "--waiting", "1")
    context = ssl.create_default_context()
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=HOME)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    for times in (1, 2, 3):
        sock = registrar.visitor()
        sock.sendall(hello[:after])
        if how == "reset":
            with contextlib.suppress(OSError):
                service = accept(target)
                close_with_reset(sock)
        else:
            sock.shutdown(socket.SHUT_WR)
            service = accept(target)
        with contextlib.suppress(ConnectionResetError):
            assert read_to_the_end(service) == b""
        service.close()
        with contextlib.suppress(ConnectionResetError):
            how == "reset" or read_to_the_end(sock)
        sock.close()
        agent.said("label=home visitor=", "seconds=", times=times)
    assert agent.pool()["live"] == "0"


@pytest.mark.slow  # the deadline of the handshake
def test_a_silent_visitor_does_not_stay_in_the_handshake(
    start: Start, registrar: Registrar, target: socket.socket, made: Path
) -> None:
    agent = terminating(start)
    with registrar.visitor() as sock, accept(target) as service:
        for end in (service, sock):
            with contextlib.suppress(ConnectionResetError):
                assert read_to_the_end(end) == b""
    assert re.search(" (tls-failed|timed-out) ", agent.said("visitor=", "seconds=1"))


@pytest.mark.slow
def test_a_visitor_that_says_nothing_within_tls_may_stay(
    start: Start, registrar: Registrar, target: socket.socket, made: Path
) -> None:
    terminating(start)
    with registrar.visitor() as sock, accept(target) as service:
        visitor = Visitor(sock, made, ssl.TLSVersion.TLSv1_3)
        service.settimeout(15)
        with pytest.raises(TimeoutError):
            service.recv(1)
        service.settimeout(PATIENCE)
        visitor.say(b"still here")
        assert receive(service, 10) == b"still here"


def test_the_target_of_a_terminated_visitor_gets_the_header_first(
    start: Start, registrar: Registrar, target: socket.socket, made: Path
) -> None:
    terminating(start, "--proxy", "v2")
    with registrar.visitor() as sock, accept(target) as service:
        assert receive(service, len(proxy_header(SOMEBODY))) == proxy_header(SOMEBODY)
        Visitor(sock, made, ssl.TLSVersion.TLSv1_3).say(SIGNATURE + b"forged")
        assert receive(service, 18) == SIGNATURE + b"forged"


def test_a_target_that_refuses_ends_a_visitor_before_any_tls(
    start: Start, registrar: Registrar, made: Path
) -> None:
    with listening() as target:
        nobody = place(target)
    agent = terminating(start, to=nobody)
    with registrar.visitor() as sock:
        assert is_reset(sock)
    agent.said(" target-refused ", f"target={nobody}")


@pytest.mark.parametrize("protocols", [["h2"], ["h2", "http/1.1"], ["http/1.1"], None])
def test_alpn_leads_to_http_1_1_or_nowhere(
    start: Start, registrar: Registrar, target: socket.socket, made: Path, protocols: list[str] | None
) -> None:
    terminating(start)
    context = ssl.create_default_context(cafile=str(made))
    if protocols:
        context.set_alpn_protocols(protocols)
    with registrar.visitor() as sock, accept(target), context.wrap_socket(sock, server_hostname=HOME) as tls:
        assert tls.selected_alpn_protocol() in (None, "http/1.1")


# ---- octets, unchanged ------------------------------------------------------------------------------------


def blocks(count: int, seed: int) -> Iterator[bytes]:
    """Pieces of all sizes, so that the way switches between small and bulk again and again."""
    block = hashlib.sha256(bytes([seed])).digest() * 32768
    for size in itertools.islice(itertools.cycle([MEBIBYTE, 1, 300_000, 17, 65536, 5000, MEBIBYTE]), count):
        yield block[:size]


def test_big_bodies_arrive_as_they_were(start: Start, registrar: Registrar, target: socket.socket) -> None:
    agent = start()
    digests: dict[str, str] = {}

    def say(sock: socket.socket, seed: int) -> None:
        digest = hashlib.sha256()
        for piece in blocks(150, seed):
            digest.update(piece)
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        digests[f"said {seed}"] = digest.hexdigest()

    def hear(sock: socket.socket, seed: int) -> None:
        digest = hashlib.sha256()
        while data := sock.recv(1 << 20):
            digest.update(data)
        digests[f"heard {seed}"] = digest.hexdigest()

    with registrar.visitor() as visitor, accept(target) as service:
        threads = [
            threading.Thread(target=call, args=(sock, seed))
            for call, sock, seed in (
                (say, visitor, 1),
                (hear, service, 1),
                (say, service, 2),
                (hear, visitor, 2),
            )
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert digests["heard 1"] == digests["said 1"] and digests["heard 2"] == digests["said 2"]
    total = sum(len(piece) for piece in blocks(150, 1))
    agent.said(" info complete ", f"received={total} sent={total}")


@pytest.mark.parametrize("bulk", [0, 3 * MEBIBYTE])
@pytest.mark.parametrize("who", ["visitor", "target"])
def test_urgent_octets_stay_where_they_stand(
    start: Start, registrar: Registrar, target: socket.socket, bulk: int, who: str
) -> None:
    start()
    pieces = [os.urandom(bulk) if bulk else b"abc", b"!", b"def", b"?", os.urandom(bulk), b"#"]
    with registrar.visitor() as visitor, accept(target) as service:
        speaker, listener = (visitor, service) if who == "visitor" else (service, visitor)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)

        def say() -> None:
            for piece in pieces:
                if len(piece) == 1:
                    speaker.send(piece, socket.MSG_OOB)
                else:
                    speaker.sendall(piece)
            speaker.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=say)
        thread.start()
        heard = read_to_the_end(listener)
        thread.join(PATIENCE)
        assert heard == b"".join(pieces)


@pytest.mark.parametrize("who", ["visitor", "target"])
@pytest.mark.parametrize("reading", [True, False])
def test_a_reset_in_bulk_is_passed_on(
    start: Start, registrar: Registrar, target: socket.socket, who: str, reading: bool
) -> None:
    agent = start()
    visitor = registrar.visitor()
    service = accept(target)
    speaker, listener = (visitor, service) if who == "visitor" else (service, visitor)
    speaker.settimeout(1.0)
    for _ in range(8 if reading else 0):
        receive(listener, speaker.send(bytes(MEBIBYTE)))
    with contextlib.suppress(TimeoutError):
        while not reading:
            speaker.send(bytes(MEBIBYTE))
    close_with_reset(speaker)
    assert is_reset(listener)
    agent.said(" reset ")
    listener.close()


def test_the_reader_s_reset_in_bulk_reaches_the_speaker(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    agent = start()
    with registrar.visitor() as visitor, accept(target) as service:
        visitor.settimeout(1.0)
        with contextlib.suppress(TimeoutError):
            while True:
                visitor.send(bytes(MEBIBYTE))
        service.recv(1)
        close_with_reset(service)
        assert is_reset(visitor)
    agent.said(" reset ")


def test_what_the_visitor_said_before_its_reset_is_no_matter_but_before_its_fin_is(
    start: Start, registrar: Registrar, target: socket.socket
) -> None:
    start()
    data = os.urandom(MEBIBYTE)
    with registrar.visitor() as visitor:
        speaker = threading.Thread(target=lambda: (visitor.sendall(data), visitor.shutdown(socket.SHUT_WR)))
        speaker.start()
        with accept(target) as service:
            service.shutdown(socket.SHUT_WR)
            assert visitor.recv(1) == b""
            assert read_to_the_end(service) == data
        speaker.join(PATIENCE)


def test_a_hundred_visits_leave_nothing_behind(
    start: Start, registrar: Registrar, target: socket.socket, made: Path
) -> None:
    agent = start(labels="home, cam", more=f"\n[target cam]\n{TERMINATE}")
    agent.said(" ready ", "label=home")
    agent.said(" ready ", "label=cam")

    def visit(label: str) -> None:
        with registrar.visitor(label) as sock, accept(target) as service:
            if label == "cam":
                Visitor(sock, made, ssl.TLSVersion.TLSv1_3, "cam.taas.example.com").say(bytes(MEBIBYTE))
            else:
                sock.sendall(bytes(MEBIBYTE))
            receive(service, MEBIBYTE)

    def descriptors() -> int:
        return len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))

    def quiet(count: int) -> Callable[[], bool]:
        return lambda: agent.count("received=") == count

    for _ in range(40):
        visit("home")
        visit("cam")
    agent.until(quiet(80))
    before, memory = descriptors(), agent.proc("status", "VmRSS")
    for _ in range(60):
        visit("home")
        visit("cam")
    agent.until(quiet(200))
    pools = [facts_of(agent, label) for label in ("home", "cam")]
    assert [pool["live"] for pool in pools] == ["0", "0"]
    assert descriptors() <= before + 4  # connections that are just coming
    assert agent.proc("status", "VmRSS") < memory + 12_000  # kB: a tenth of what went through since


def facts_of(agent: AgentProcess, label: str) -> dict[str, str]:
    agent.process.send_signal(signal.SIGUSR1)
    return facts(agent.said(" pool ", f"label={label}"))


def test_certificates_are_not_needed_without_terminate(
    write: Write, registrar: Registrar, tmp_path: Path
) -> None:
    pair: Certificate = self_signed(tmp_path, "pair")
    more = f"\n[target]\nto = 127.0.0.1:80\ncertificate = {pair.certificate}\nkey = {pair.key}\n"
    ended = run(write(more=more))
    assert ended.returncode == 2 and "terminate" in ended.stderr
