"""taas_admin.py init, and the way from there to the first tunnel."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hidden import HOME, PAGE, hidden_server
from house import SERVERS
from process import ROOT, free_port

from taaslib import config

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl(1) is not installed")
INIT = ("init", "--domain", SERVERS, "--public")
MADE = {"taas.ini", "registrar.crt", "registrar.key", "taas.db"}


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "taas_admin.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | environment)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@contextlib.contextmanager
def running(folder: Path, *command: str) -> Iterator[None]:
    """A command of ours runs, and ends in order behind the block."""
    with open(folder / f"{Path(command[0]).stem}.log", "w") as log:
        child = subprocess.Popen(
            [sys.executable, str(ROOT / command[0]), *command[1:]], cwd=folder, stderr=log
        )
    try:
        yield
    finally:
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0


def test_four_commands_lead_to_the_first_tunnel(tmp_path: Path) -> None:
    port = free_port()
    said = run(tmp_path, *INIT, "127.0.0.1", "--port", str(port), "--ports", "20520-20560")
    assert (said.returncode, said.stderr) == (0, "")
    assert "    python taas_admin.py add home\n    python taas.py taas.ini\n" in said.stdout
    assert "    python taas_agent.py home.agent.ini --to 127.0.0.1:443\n" in said.stdout
    assert run(tmp_path, "add", "home").returncode == 0
    with hidden_server(tmp_path) as target, running(tmp_path, "taas.py", "taas.ini"):
        bundle = tmp_path / "bundle.pem"
        bundle.write_bytes(
            b"".join((tmp_path / f"{who}.crt").read_bytes() for who in ("registrar", "hidden"))
        )
        curl = ["curl", "-sS", "--fail", "-L", "--max-time", "20", "--cacert", bundle]
        curl += ["--connect-to", "::127.0.0.1:", f"https://{HOME}:{port}/"]
        with running(tmp_path, "taas_agent.py", "home.agent.ini", "--to", f"127.0.0.1:{target}"):
            deadline = time.monotonic() + 60
            while (done := subprocess.run(curl, capture_output=True)).returncode:
                assert time.monotonic() < deadline, done.stderr
                time.sleep(0.1)  # between two visits; nothing passes because of it
            assert done.stdout == PAGE


def test_init_tells_the_dns_records_and_the_ports(tmp_path: Path) -> None:
    document = json.loads(run(tmp_path, *INIT, "203.0.113.7, 2001:db8::7", "--json").stdout)
    star = f"*.{SERVERS}"  # the registrar is below it
    assert document["dns"] == [[star, "A", "203.0.113.7"], [star, "AAAA", "2001:db8::7"]]
    assert document["ports"] == ["443", "61000-65535"]
    settings = config.load(tmp_path / "taas.ini")
    assert (settings.registrar, settings.servers) == (f"registrar.{SERVERS}", SERVERS)
    other = tmp_path / "other"
    more = ("--registrar", "r.example.org", "--ports", "61000-61999,64000", "-c", "other/taas.ini")
    said = run(tmp_path, *INIT, "203.0.113.7", *more).stdout
    assert f"\n    *.{SERVERS}.  IN A 203.0.113.7\n    r.example.org.  IN A 203.0.113.7\n" in said
    assert "\n    443, 61000-61999, 64000\n" in said
    assert "taas_admin.py -c other/taas.ini add home\n    python taas.py other/taas.ini\n" in said
    assert names(other) == MADE


def test_init_leaves_secrets_to_nobody_else(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert run(tmp_path, *INIT, "203.0.113.7").returncode == 0
    finally:
        os.umask(before)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in MADE}
    assert modes == {"taas.ini": 0o644, "registrar.crt": 0o644, "registrar.key": 0o600, "taas.db": 0o600}


@pytest.mark.parametrize("name", sorted(MADE))
def test_init_writes_over_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    done = run(tmp_path, *INIT, "203.0.113.7")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"{name} exists: init writes over nothing" in done.stderr
    assert names(tmp_path) == {name} and (tmp_path / name).read_text() == "mine"


def test_an_init_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run(tmp_path, *INIT, "203.0.113.7", PATH="/nonexistent")
    assert done.returncode == 1 and "openssl is missing" in done.stderr
    for argument in ("203.0.113", "0.0.0.0"):
        done = run(tmp_path, *INIT, argument)
        assert done.returncode == 2 and "[taas] public" in done.stderr
    assert run(tmp_path, *INIT, "203.0.113.7", "--port", "70000").returncode == 2
    assert run(tmp_path, *INIT, "203.0.113.7", "--user", "no-such-user").returncode == 2
    assert names(tmp_path) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_s_init_leaves_the_state_to_the_service_s_user(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert run(tmp_path, *INIT, "203.0.113.7", "--user", "nobody", "--state", "state").returncode == 0
    nobody = pwd.getpwnam("nobody").pw_uid
    assert names(state) >= MADE - {"taas.ini"} and names(tmp_path) == {"taas.ini", "state"}
    assert {file.stat().st_uid for file in [state, *state.iterdir()]} == {nobody}
    assert (tmp_path / "taas.ini").stat().st_uid == 0
    assert config.load(tmp_path / "taas.ini").database == state / "taas.db"


def test_of_two_inits_at_once_one_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "taas_admin.py"), *INIT, "203.0.113.7"]
    children = [subprocess.Popen(command, cwd=tmp_path, stdout=-3, stderr=-3) for _ in range(4)]
    assert sorted(child.wait(60) for child in children) == [0, 1, 1, 1]
    assert names(tmp_path) == MADE
    with contextlib.closing(sqlite3.connect(tmp_path / "taas.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert run(tmp_path, "add", "home").returncode == 0
