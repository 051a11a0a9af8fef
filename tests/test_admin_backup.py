"""taas_admin.py backup and restore, and what an upgrade and the way back do to the database."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hidden import admin
from house import ID, OTHER_ID, SECRETS
from process import ROOT, Process

from taasadmin.book import Book
from taaslib.store import MIGRATIONS, Credential

INI = "[taas]\npublic = 203.0.113.7\nregistrar = registrar.taas.example.com\nservers = taas.example.com\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "taas.ini").write_text(INI)
    with opened(tmp_path) as store:
        store.add(Credential(ID, SECRETS[ID]), ["home"], None, 0)
    return tmp_path


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Book]:
    with contextlib.closing(Book(folder / "taas.db", busy_ms=5000, synchronous="FULL")) as store:
        yield store


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "taas_admin.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def done(folder: Path, *arguments: str) -> Any:
    result = run(folder, "--json", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


def refused(folder: Path, *arguments: str) -> str:
    """The one line that says why, after it is seen that nothing has changed."""
    before = contents(folder)
    result = run(folder, *arguments)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert contents(folder) == before
    return result.stderr


def contents(folder: Path) -> dict[str, bytes]:
    """All files; sqlite may make its empty -wal and its -shm where it likes."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if not f.name.endswith(("-wal", "-shm"))}


def ids(folder: Path) -> list[str]:
    return [entry["id"] for entry in done(folder, "list")]


def sql(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def test_a_backup_is_one_file_for_our_eyes_alone_and_comes_back(folder: Path) -> None:
    before = os.umask(0)
    try:
        said = done(folder, "backup", "copy.db")
    finally:
        os.umask(before)
    assert said == {"file": str(folder / "copy.db"), "credentials": 1, "schema": len(MIGRATIONS)}
    assert (folder / "copy.db").stat().st_mode & 0o777 == 0o600
    assert {"copy.db", "taas.db", "taas.ini"} == set(contents(folder))
    done(folder, "remove", ID)
    assert ids(folder) == []
    assert done(folder, "restore", "copy.db")["credentials"] == 1
    assert ids(folder) == [ID] and done(folder, "show", ID)[0]["secret"] == SECRETS[ID]
    assert (folder / "taas.db").stat().st_mode & 0o777 == 0o600


def test_what_is_not_yet_written_back_is_in_the_backup_too(folder: Path) -> None:
    with opened(folder) as service:  # its connection stays open: the change lies in the -wal
        service.add(Credential(OTHER_ID, SECRETS[OTHER_ID]), ["cam"], None, 1)
        assert (folder / "taas.db-wal").stat().st_size
        assert done(folder, "backup", "copy.db")["credentials"] == 2


def test_a_backup_writes_over_a_file_by_force_alone(folder: Path) -> None:
    (folder / "copy.db").write_text("mine")
    assert "copy.db exists" in refused(folder, "backup", "copy.db")
    done(folder, "backup", "copy.db", "--force")
    assert done(folder, "restore", "copy.db")["credentials"] == 1
    (folder / "taas.db").unlink()
    assert "there is no taas.db" in refused(folder, "backup", "other.db")


def test_a_restore_drops_what_the_old_database_still_had_to_write_back(folder: Path) -> None:
    done(folder, "backup", "copy.db")
    with opened(folder) as service:
        for number in range(50):
            service.add(Credential(f"id-{number}", SECRETS[ID]), [f"label-{number}"], None, number)
        done(folder, "restore", "copy.db")
        assert ids(folder) == [ID]  # while the service still has the old one
        assert service.changed() and [entry.credential.id for entry in service.entries()] == [ID]
        service.set_enabled(ID, False)
    assert [entry["enabled"] for entry in done(folder, "list")] == [False]
    sql(folder / "taas.db", "PRAGMA integrity_check")


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "holes", "foreign"])
def test_what_is_no_sound_backup_is_refused(folder: Path, damage: str) -> None:
    done(folder, "backup", "copy.db")
    copy = folder / "copy.db"
    octets = copy.read_bytes()
    if damage == "foreign":
        copy.unlink()
        sql(copy, "CREATE TABLE t (a)")
    else:
        holes = octets[:8192] + bytes(len(octets) - 8192)
        copy.write_bytes(
            {"text": b"no database " * 999, "empty": b"", "cut": octets[:9000], "holes": holes}[damage]
        )
    assert "copy.db " in refused(folder, "restore", "copy.db")
    assert ids(folder) == [ID]


def test_the_database_itself_and_nothing_are_no_backups(folder: Path) -> None:
    assert "is the database itself" in refused(folder, "restore", "taas.db")
    assert "there is no absent.db" in refused(folder, "restore", "absent.db")


def test_a_broken_database_is_replaced_by_a_restore(folder: Path) -> None:
    done(folder, "backup", "copy.db")
    (folder / "taas.db").write_bytes(b"broken" * 9999)
    (folder / "taas.db-wal").write_bytes(b"broken" * 9999)
    assert "taas.db can't be used: file is not a database" in refused(folder, "backup", "other.db")
    done(folder, "restore", "copy.db")
    assert ids(folder) == [ID]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_what_it_restores_to_the_service_s_user(folder: Path) -> None:
    done(folder, "backup", "copy.db")
    assert (folder / "copy.db").stat().st_uid == 0
    (folder / "taas.ini").write_text(f"{INI}user = nobody\n")
    done(folder, "restore", "copy.db")
    nobody = pwd.getpwnam("nobody").pw_uid
    assert {file.stat().st_uid for file in folder.glob("taas.db*")} == {nobody}
    (folder / "taas.ini").write_text(INI)  # whoever it was left to before
    done(folder, "restore", "copy.db")
    assert (folder / "taas.db").stat().st_uid == nobody


def test_a_running_service_follows_a_restore(process: Callable[..., Process]) -> None:
    service = process()
    service.add_credential()
    service.start()
    admin(service, "backup", "copy.db")
    admin(service, "remove", ID)
    service.until(lambda: service.put() == 401)
    admin(service, "restore", "copy.db")
    service.until(lambda: service.put() == 200)
    admin(service, "disable", ID)  # and it follows the new one from here on
    service.until(lambda: service.put() == 401)
    assert service.stop()[0] == 0


# Upgrade and rollback


def test_an_older_database_is_brought_up_to_date_by_any_command(folder: Path) -> None:
    """As the first release made it: whatever is appended to MIGRATIONS, what is in it stays."""
    (folder / "taas.db").unlink()
    row = f"INSERT INTO credentials VALUES ('{ID}', '{SECRETS[ID]}', 6, 30, 'SHA1', 1, 7, 1700000000)"
    rows = (
        row,
        "INSERT INTO labels VALUES ('home', 62050, 'both')",
        f"INSERT INTO grants VALUES ('{ID}', 'home')",
    )
    sql(folder / "old.db", *MIGRATIONS[0], "PRAGMA user_version = 1", *rows)
    done(folder, "restore", "old.db")
    (entry,) = done(folder, "show", "home")
    assert (entry["id"], entry["secret"]) == (ID, SECRETS[ID])
    assert (entry["ports"], entry["modes"]) == ({"home": 62050}, {"home": "both"})
    with contextlib.closing(sqlite3.connect(folder / "taas.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    with contextlib.closing(sqlite3.connect(folder / "old.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)  # the backup is left as it was


def test_after_an_upgrade_the_way_back_leads_over_the_backup(process: Callable[..., Process]) -> None:
    service = process()
    service.add_credential()
    admin(service, "backup", "before.db")
    sql(service.folder / "taas.db", f"PRAGMA user_version = {len(MIGRATIONS) + 1}")  # what a newer TAAS does
    newer = f"has schema version {len(MIGRATIONS) + 1}, newer than the {len(MIGRATIONS)}"
    code, errors = service.launch().wait()
    assert code == 1 and errors.count("\n") == 1 and newer in errors and "use a newer TAAS" in errors
    for command in (["list"], ["add", "cam"], ["disable", ID]):
        assert newer in refused(service.folder, *command)
    admin(service, "backup", "after.db")
    assert newer in refused(service.folder, "restore", "after.db")
    admin(service, "restore", "before.db")
    assert service.start().put() == 200
    assert service.stop()[0] == 0
