"""python taas.py taas.ini as a process: start, errors, signals, users, logs, a database that changes."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from house import ID, SECRETS, House
from process import ROOT, Process

from taasadmin.book import Book
from taaslib.store import Credential

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def run(*arguments: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "taas.py"), *map(str, arguments)], capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_in_order(process: Callable[..., Process], number: int) -> None:
    running = process().start()
    assert running.answer() == 503
    assert running.stop(number) == (0, "")
    assert "started" in running.log and "stopped" in running.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_comes_while_it_starts_is_served_when_it_has(
    process: Callable[..., Process], number: int
) -> None:
    running = process().launch()
    running.until(running.accepts)
    assert running.popen
    running.popen.send_signal(number)
    if number == signal.SIGHUP:
        running.until(lambda: "what=configuration" in running.log)
    assert running.stop() == (0, "")


def test_the_start_says_ports_credentials_and_pump(process: Callable[..., Process]) -> None:
    running = process("pump = ring").start()
    running.stop()
    line = next(line for line in running.log.splitlines() if " started " in line)
    assert f"listens=127.0.0.1:{running.port} credentials=0 pump=ring" in line
    assert "no credential yet" in running.log


def test_json_lines_are_json(process: Callable[..., Process]) -> None:
    running = process(log="format = json").start()
    running.answer()
    running.stop()
    events = [json.loads(line)["event"] for line in running.log.splitlines()]
    assert events[0] == "started" and "not-served" in events and events[-1] == "stopped"


def test_the_level_silences_what_is_below_it(process: Callable[..., Process]) -> None:
    running = process(log="level = error").start()
    running.answer()
    running.stop()
    assert running.log == ""


def test_logging_goes_on_after_logrotate_moved_the_file(process: Callable[..., Process]) -> None:
    running = process().start()
    (running.folder / "server.log").rename(running.folder / "server.log.1")
    running.answer()
    running.stop()
    assert "not-served" in running.log and "started" not in running.log


def test_without_a_file_the_log_is_standard_error(process: Callable[..., Process]) -> None:
    running = process()
    running.ini.write_text(running.ini.read_text().replace("file = server.log", ""))
    running.start()
    code, errors = running.stop()
    assert code == 0 and "started" in errors


def test_check_validates_and_opens_nothing(process: Callable[..., Process]) -> None:
    ini = process().ini
    assert run("--check", ini) == (0, f"{ini}: good\n", "")
    assert not (ini.parent / "taas.db").exists()


def test_version(process: Callable[..., Process]) -> None:
    assert run("--version")[1].startswith("taas 0.")


@pytest.mark.parametrize(
    "old, new, where",
    [
        ("port = ", "port = x", "[taas] port"),
        ("registrar = ", "registrar = -", "[taas] registrar"),
        ("[log]", "[lag]", "[lag]"),
        ("file =", "fill =", "[log] fill"),
        ("ports = 20400-20500", "ports = 9-1", "[taas] ports"),
        ("[log]", "certificate = nowhere.crt\n[log]", "[taas] certificate"),
        ("[log]", "key = registrar.crt\n[log]", "[taas] certificate, key"),
        ("[log]", "user = no-such-user\n[log]", "[taas] user"),
        ("[log]", "database = nowhere/taas.db\n[log]", "[taas] database"),
        ("file = server.log", "file = .", "[log] file"),
    ],
)
def test_a_bad_taas_ini_is_one_line_that_names_file_section_and_key(
    process: Callable[..., Process], old: str, new: str, where: str
) -> None:
    ini = process().ini
    ini.write_text(ini.read_text().replace(old, new, 1))
    for arguments in ([ini], ["--check", ini]):
        code, output, errors = run(*arguments)
        assert (code, output) == (2, "")
        assert errors.count("\n") == 1 and f"{ini}: {where}" in errors, errors


def test_a_missing_taas_ini_is_one_line(tmp_path: Path) -> None:
    code, _, errors = run(tmp_path / "taas.ini")
    assert code == 2 and errors.count("\n") == 1 and "No such file" in errors


def test_a_port_in_use_is_one_line(process: Callable[..., Process]) -> None:
    made = process()
    with socket.create_server(("127.0.0.1", made.port)):
        code, _, errors = run(made.ini)
    assert code == 1 and errors.count("\n") == 1 and f"127.0.0.1:{made.port}" in errors


def test_an_encrypted_key_is_refused_and_not_asked_for(process: Callable[..., Process]) -> None:
    made = process()
    key = made.folder / "registrar.key"
    subprocess.run(
        ["openssl", "ec", "-in", key, "-aes128", "-passout", "pass:x", "-out", f"{key}.new"],
        check=True,
        capture_output=True,
    )
    (made.folder / "registrar.key.new").replace(key)
    code, _, errors = run(made.ini)
    assert code == 2 and "password" in errors


def test_the_database_is_created_for_its_owner_alone(process: Callable[..., Process]) -> None:
    running = process().start()
    modes = {file.name: file.stat().st_mode & 0o777 for file in running.folder.glob("taas.db*")}
    running.stop()
    assert modes["taas.db"] == 0o600 and set(modes.values()) == {0o600}


@pytest.mark.skipif(not AS_ROOT, reason="only root can become somebody else")
def test_started_as_root_it_drops_to_the_user_of_taas_ini(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    nobody = pwd.getpwnam("nobody")
    folder = tmp_path / "state"
    folder.mkdir()
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    reachable(tmp_path)
    running = process("user = nobody\ndatabase = state/taas.db")
    give(running.folder / "registrar.key", "nobody")
    running.start()
    assert running.answer() == 503
    assert running.popen
    status = Path(f"/proc/{running.popen.pid}/status").read_text()
    running.stop()
    assert f"Uid:\t{nobody.pw_uid}\t{nobody.pw_uid}\t{nobody.pw_uid}" in status
    assert f"Groups:\t{nobody.pw_gid}" in status
    assert (folder / "taas.db").owner() == "nobody"


@pytest.mark.skipif(not AS_ROOT, reason="only root can become somebody else")
@pytest.mark.parametrize("arguments", [(), ("--check",)])
def test_a_key_that_the_user_can_not_read_is_told_at_the_start_and_not_at_the_renewal(
    process: Callable[..., Process], arguments: tuple[str, ...]
) -> None:
    made = process("user = nobody")
    reachable(made.folder)
    code, _, errors = run(*arguments, made.ini)
    assert code == 2 and f"{made.ini}: [taas] key: " in errors and "for user nobody" in errors, errors


@pytest.mark.skipif(not AS_ROOT, reason="only root can become somebody else")
def test_a_user_who_can_not_reach_the_database_is_told_so(process: Callable[..., Process]) -> None:
    made = process("user = nobody\ndatabase = closed/taas.db")
    give(made.folder / "registrar.key", "nobody")
    reachable(made.folder)
    (made.folder / "closed").mkdir(mode=0o700)
    code, _, errors = run(made.ini)
    last = errors.splitlines()[-1]
    assert code == 1 and f"{made.ini}: [taas] database: nobody can't" in last, errors


@pytest.mark.skipif(not AS_ROOT, reason="only root can become somebody else")
def test_the_user_writes_a_database_in_a_folder_that_is_root_s(process: Callable[..., Process]) -> None:
    """sqlite removes -wal and -shm when it closes, and the user could not make them again."""
    running = process("user = nobody")
    give(running.folder / "registrar.key", "nobody")
    reachable(running.folder)
    for _ in range(2):
        running.start()
        with contextlib.closing(Book(running.folder / "taas.db", busy_ms=50, synchronous="FULL")) as store:
            assert store.count() == 0
        assert running.stop()[0] == 0
        assert (running.folder / "taas.db").owner() == "nobody"
        assert running.folder.owner() == "root"


def give(file: Path, user: str) -> None:
    entry = pwd.getpwnam(user)
    os.chown(file, entry.pw_uid, entry.pw_gid)


def reachable(folder: Path) -> None:
    """pytest's folders are closed to others; nobody must get through to its own."""
    for parent in (folder, *folder.parents):
        if parent.owner() == "root" and parent.stat().st_mode & 0o777 == 0o700:
            parent.chmod(0o711)


def test_it_raises_its_descriptor_limit(process: Callable[..., Process]) -> None:
    running = process().start()
    assert running.popen
    limits = Path(f"/proc/{running.popen.pid}/limits").read_text()
    running.stop()
    line = next(line.split() for line in limits.splitlines() if line.startswith("Max open files"))
    assert line[3] == line[4]


def test_a_service_killed_in_mid_flight_starts_again(process: Callable[..., Process]) -> None:
    running = process().start()
    assert running.popen
    running.popen.kill()
    running.popen.communicate()
    assert running.start().answer() == 503


# What taas_admin.py changes is followed without a restart: clocks moved by hand.


def test_a_new_credential_works_at_once(house: House) -> None:
    with house.admin() as store:
        store.add(Credential("55555555-5555-4555-8555-555555555555", SECRETS[ID]), ["new"], None, 0)
    SECRETS["55555555-5555-4555-8555-555555555555"] = SECRETS[ID]
    assert house.put("new", "55555555-5555-4555-8555-555555555555").status == 200


def test_a_database_that_was_replaced_is_noticed(house: House) -> None:
    copy = house.config.database.with_name("other.db")
    with contextlib.closing(Book(copy, busy_ms=50, synchronous="FULL")) as store:
        store.add(Credential(ID, SECRETS[ID]), ["moved"], None, 0)
    copy.replace(house.config.database)
    house.pass_time(2)
    assert house.put("moved").status == 200


def test_a_broken_database_is_503_and_heals(house: House) -> None:
    good = house.config.database.read_bytes()
    for file in house.config.database.parent.glob("taas.db*"):
        if file.suffix == ".db":
            broken = file.with_name("broken")
            broken.write_bytes(b"this is no database" * 1000)
            broken.replace(file)
    house.pass_time(2)
    assert house.events("store-broken")
    assert house.put().status == 503
    healed = house.config.database.with_name("healed")
    healed.write_bytes(good)
    healed.replace(house.config.database)
    house.pass_time(2)
    house.pass_time(2)
    assert house.put().status in (200, 401)
