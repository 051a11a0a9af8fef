"""store.py on real sqlite files, with real processes that write, die and disagree."""

from __future__ import annotations

import os
import pwd
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taasadmin.book import Book, Refused
from taaslib import store as module
from taaslib.store import KEPT_STEPS, Credential, Spent, StoreError

TOP = Path(__file__).parent.parent
HOME = Credential("11111111-1111-4111-8111-111111111111", "GEZDGNBVGY3TQOJQ", generation=7)
Opener = Callable[..., Book]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Opens stores and closes them when the test ends."""
    stores: list[Book] = []

    def open_store(path: Path, busy_ms: int = 50, synchronous: str = "NORMAL") -> Book:
        stores.append(Book(path, busy_ms=busy_ms, synchronous=synchronous))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "taas.db"


@pytest.fixture
def store(opened: Opener, path: Path) -> Book:
    """The service's connection, with HOME granted `home`."""
    store = opened(path)
    store.add(HOME, ["home"], None, 1000)
    return store


def sql(path: Path, *statements: str) -> list[tuple[object, ...]]:
    """What another process would see and do."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        return [row for statement in statements for row in db.execute(statement)]
    finally:
        db.close()


# The file


def test_b8_the_files_are_for_our_eyes_alone(opened: Opener, path: Path) -> None:
    before = os.umask(0)
    try:
        opened(path).add(HOME, ["home"], None, 1000)
    finally:
        os.umask(before)
    files = list(path.parent.iterdir())
    assert {file.name for file in files} == {"taas.db", "taas.db-wal", "taas.db-shm"}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_new_file_is_in_wal_mode_and_knows_its_version(store: Book, path: Path) -> None:
    assert sql(path, "PRAGMA journal_mode", "PRAGMA user_version") == [("wal",), (len(module.MIGRATIONS),)]


def test_the_file_keeps_everything(store: Book, opened: Opener, path: Path) -> None:
    store.keep_port("home", 61007, 5)
    store.spend_step(HOME.id, 100, "192.0.2.1", 101)
    store.close()
    again = opened(path)
    assert again.credential(HOME.id) == HOME
    assert again.rights(HOME.id, "home") is not None
    assert again.label_port("home") == (None, 61007)
    assert again.spend_step(HOME.id, 100, "192.0.2.2", 101) is Spent.ELSEWHERE


def test_a_path_with_odd_characters_is_a_path(opened: Opener, tmp_path: Path) -> None:
    path = tmp_path / "a?b#c %41.db"
    opened(path).add(HOME, ["home"], None, 1000)
    assert path.exists()
    assert opened(path).count() == 1


def test_a_newer_schema_is_refused_by_name(store: Book, opened: Opener, path: Path) -> None:
    store.close()
    sql(path, "PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="schema version 99, newer than"):
        opened(path)
    sql(path, f"PRAGMA user_version = {len(module.MIGRATIONS)}")
    assert store.credential(HOME.id) == HOME


def test_an_older_schema_is_taken_further(
    store: Book, opened: Opener, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()
    more = ("ALTER TABLE credentials ADD COLUMN note TEXT", "CREATE TABLE notes (note TEXT)")
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, more))
    assert opened(path).credential(HOME.id) == HOME
    assert sql(path, "PRAGMA user_version", "SELECT note FROM credentials") == [
        (len(module.MIGRATIONS),),
        (None,),
    ]


def test_a_migration_that_fails_leaves_the_old_schema(
    store: Book, opened: Opener, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()
    broken = ("CREATE TABLE notes (note TEXT)", "CREATE TABLE credentials (id TEXT)")
    with monkeypatch.context() as patch:
        patch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, broken))
        with pytest.raises(StoreError, match="already exists"):
            opened(path)
    assert sql(path, "SELECT name FROM sqlite_master WHERE name = 'notes'") == []
    assert opened(path).credential(HOME.id) == HOME


def test_a_missing_folder_is_named(opened: Opener, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere/taas\.db is missing"):
        opened(tmp_path / "nowhere" / "taas.db")


# The service's questions


def test_an_unknown_id_has_nothing(store: Book) -> None:
    assert store.credential("nobody") is None
    assert store.rights("nobody", "home") is None
    assert store.rights("nobody", "home") is None


@pytest.mark.parametrize("lesson", ["b4_constructor", "b5_toString"])
def test_b4_b5_names_of_javascript_s_own_objects_mean_nothing(store: Book, lesson: str) -> None:
    label = lesson.split("_")[1].lower()
    for name in (label, "tostring", "toString", "__proto__", "' OR 1=1 --", "home\0", "HOME", "hom_", "%"):
        assert store.rights(HOME.id, name) is None
        assert store.rights(HOME.id, name) is None
        assert store.credential(name) is None
        assert store.label_port(name) == (None, None)
    store.grant(HOME.id, [label])
    assert store.rights(HOME.id, label) == 7


def test_a_secret_is_not_shown_by_repr(store: Book) -> None:
    assert HOME.secret not in repr(store.credential(HOME.id))
    assert HOME.secret not in repr(store.entries())


def test_rights_end_with_the_grant_and_while_disabled(store: Book) -> None:
    assert store.rights(HOME.id, "home") == 7
    assert store.rights(HOME.id, "blog") is None
    store.set_enabled(HOME.id, False)
    assert (store.rights(HOME.id, "home"), store.count()) == (None, 0)
    store.set_enabled(HOME.id, True)
    assert (store.rights(HOME.id, "home"), store.count()) == (7, 1)
    store.revoke(HOME.id, ["home"])
    assert store.rights(HOME.id, "home") is None


def test_rotating_makes_another_generation_with_no_step_spent(store: Book) -> None:
    store.spend_step(HOME.id, 100, "192.0.2.1", 101)
    store.rotate(HOME.id, "NEWSECRET")
    assert store.rights(HOME.id, "home") == 8
    credential = store.credential(HOME.id)
    assert credential is not None
    assert credential.secret == "NEWSECRET"
    assert store.spend_step(HOME.id, 100, "192.0.2.2", 101) is Spent.FRESH


def test_a_step_is_spent_once_and_for_one_address(store: Book) -> None:
    spend = store.spend_step
    assert spend(HOME.id, 100, "a", 101) is Spent.FRESH
    assert spend(HOME.id, 100, "a", 101) is Spent.AGAIN
    assert spend(HOME.id, 100, "b", 101) is Spent.ELSEWHERE
    assert spend(HOME.id, 101, "a", 102) is Spent.FRESH
    assert spend(HOME.id, 100, "a", 102) is Spent.STALE
    assert spend(HOME.id, 99, "a", 102) is Spent.STALE
    assert spend(HOME.id, 99, "b", 102) is Spent.FRESH


def test_steps_are_each_id_s_own(store: Book) -> None:
    store.add(Credential("other", "S"), ["home"], None, 1001)
    assert store.spend_step(HOME.id, 100, "a", 101) is Spent.FRESH
    assert store.spend_step("other", 100, "b", 101) is Spent.FRESH


def test_steps_from_a_clock_that_ran_ahead_lock_nobody_out(store: Book) -> None:
    assert store.spend_step(HOME.id, 9000, "a", 9001) is Spent.FRESH
    assert store.spend_step(HOME.id, 100, "a", 101) is Spent.FRESH
    assert store.spend_step(HOME.id, 100, "a", 101) is Spent.AGAIN


def test_spending_again_writes_nothing(store: Book, path: Path) -> None:
    watcher = sqlite3.connect(path)
    store.spend_step(HOME.id, 100, "a", 101)
    before = watcher.execute("PRAGMA data_version").fetchone()
    for address in "abab":
        store.spend_step(HOME.id, 100, address, 101)
    assert watcher.execute("PRAGMA data_version").fetchone() == before
    store.spend_step(HOME.id, 101, "a", 102)
    assert watcher.execute("PRAGMA data_version").fetchone() != before
    watcher.close()


def test_old_steps_are_forgotten(store: Book, path: Path) -> None:
    for step in range(100, 140):
        store.spend_step(HOME.id, step, "a", step + 1)
    assert sql(path, "SELECT min(step), max(step) FROM spent_steps") == [(139 - KEPT_STEPS, 139)]


def test_a_step_of_an_id_that_is_gone_is_an_error_and_no_more(store: Book) -> None:
    with pytest.raises(StoreError):
        store.spend_step("gone", 100, "a", 101)
    assert store.spend_step(HOME.id, 100, "a", 101) is Spent.FRESH


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from("abc"), st.integers(0, 9)), max_size=25))
def test_spending_agrees_with_the_rule(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[int, str, int]]
) -> None:
    spent: dict[int, str] = {}
    store = Book(tmp_path_factory.mktemp("rule") / "taas.db", busy_ms=50, synchronous="NORMAL")
    try:
        store.add(HOME, ["home"], None, 1000)
        for step, address, horizon in attempts:
            newer = any(step < s <= horizon and spent[s] == address for s in spent)
            if step in spent and spent[step] != address:
                expected = Spent.ELSEWHERE
            elif newer:
                expected = Spent.STALE
            else:
                expected = Spent.AGAIN if step in spent else Spent.FRESH
                spent.setdefault(step, address)
            assert store.spend_step(HOME.id, step, address, horizon) is expected
    finally:
        store.close()


def test_a_label_keeps_its_port_after_it_has_gone(store: Book) -> None:
    store.keep_port("home", 61007, 5)
    store.remove(HOME.id)
    assert store.label_port("home") == (None, 61007)


def test_a_port_is_one_label_s_and_a_label_has_one_port(store: Book) -> None:
    store.keep_port("home", 61001, 1)
    store.keep_port("blog", 61002, 2)
    store.keep_port("blog", 61001, 3)
    assert store.label_port("home") == (None, None)
    assert store.label_port("blog") == (None, 61001)
    assert store.taken_ports() == (frozenset(), (61001,))


def test_taken_ports_come_least_recently_used_first(store: Book) -> None:
    for label, port, now in (("a", 61003, 1), ("b", 61001, 2), ("c", 61002, 3), ("a", 61003, 4)):
        store.keep_port(label, port, now)
    store.add(Credential("x", "S"), ["fixed"], 443, 1)
    assert store.taken_ports() == (frozenset({443}), (61001, 61002, 61003))


# The operator's changes


def test_an_id_is_added_once(store: Book) -> None:
    with pytest.raises(Refused, match="exists already"):
        store.add(Credential(HOME.id, "OTHER"), ["blog"], None, 2000)
    assert store.credential(HOME.id) == HOME
    assert store.rights(HOME.id, "blog") is None


def test_a_fixed_port_is_one_label_s_and_nothing_is_half_added(store: Book) -> None:
    store.add(Credential("a", "S"), ["blog"], 62050, 1)
    store.keep_port("home", 62051, 1)
    with pytest.raises(Refused, match="port 62050 is the fixed port of label blog"):
        store.add(Credential("b", "S"), ["shop"], 62050, 1)
    assert store.credential("b") is None
    assert store.label_port("blog") == (62050, None)
    store.add(Credential("b", "S"), ["shop"], 62051, 1)
    assert store.label_port("home") == (None, None)  # what an operator fixes is nobody's by habit


def test_a_label_goes_with_its_last_grant_and_its_fixed_port_too(store: Book, path: Path) -> None:
    store.add(Credential("a", "S"), ["blog"], 62050, 1)
    store.grant(HOME.id, ["blog", "blog"])
    store.remove("a")
    assert store.label_port("blog") == (62050, None)
    store.revoke(HOME.id, ["blog"])
    assert sql(path, "SELECT label FROM labels") == [("home",)]
    store.remove(HOME.id)
    assert sql(path, "SELECT label FROM labels", "SELECT * FROM grants", "SELECT * FROM spent_steps") == []


def test_a_change_to_an_unknown_id_is_refused(store: Book) -> None:
    changes: list[Callable[[], None]] = [
        lambda: store.grant("x", ["home"]),
        lambda: store.revoke("x", ["home"]),
        lambda: store.remove("x"),
        lambda: store.rotate("x", "S"),
        lambda: store.set_enabled("x", True),
    ]
    for change in changes:
        with pytest.raises(Refused, match="there is no ID x"):
            change()


def test_revoking_what_was_not_granted_revokes_nothing(store: Book) -> None:
    with pytest.raises(Refused, match="label blog is not granted"):
        store.revoke(HOME.id, ["home", "blog"])
    assert store.rights(HOME.id, "home") is not None


def test_entries_are_found_by_id_or_by_label_in_the_order_of_making(store: Book) -> None:
    store.add(Credential("b", "S"), ["zoo", "home"], None, 2000)
    store.add(Credential("a", "S"), ["blog"], None, 2000)
    assert [(e.credential.id, e.labels, e.created) for e in store.entries()] == [
        (HOME.id, ("home",), 1000),
        ("b", ("zoo", "home"), 2000),
        ("a", ("blog",), 2000),
    ]
    assert [e.credential.id for e in store.find("home")] == [HOME.id, "b"]
    assert [e.credential.id for e in store.find("b")] == ["b"]
    assert store.find("nothing") == []


# Other processes


def test_only_the_commits_of_others_are_a_change(store: Book, opened: Opener, path: Path) -> None:
    admin = opened(path, 5000, "FULL")
    assert not store.changed()
    store.keep_port("home", 61001, 1)
    assert not store.changed()
    admin.set_enabled(HOME.id, False)
    assert store.changed()
    assert not store.changed()
    assert store.count() == 0


def test_a_busy_database_is_an_error_until_it_is_free(store: Book, path: Path) -> None:
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="busy"):
        store.spend_step(HOME.id, 100, "a", 101)
    assert store.credential(HOME.id) == HOME
    writer.execute("ROLLBACK")
    writer.close()
    assert store.spend_step(HOME.id, 100, "a", 101) is Spent.FRESH


def test_what_visitors_ask_is_known_until_others_are_seen_to_have_committed(
    store: Book, opened: Opener, path: Path
) -> None:
    admin = opened(path, 5000, "FULL")
    assert (store.mode("home"), store.label_of_host("example.net"), store.passes_through()) == (
        "redirect",
        None,
        False,
    )
    admin.set_mode("home", "both")
    admin.grant_host("home", "example.net")
    assert store.mode("home") == "redirect"
    assert store.changed()
    assert (store.mode("home"), store.label_of_host("example.net"), store.passes_through()) == (
        "both",
        "home",
        True,
    )


def test_our_own_commits_are_known_at_once(store: Book) -> None:
    assert (store.mode("home"), store.label_of_host("example.net")) == ("redirect", None)
    store.set_mode("home", "both")
    store.grant_host("home", "example.net")
    assert (store.mode("home"), store.label_of_host("example.net")) == ("both", "home")


def test_strangers_can_not_fill_the_memory_with_names(store: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_KNOWN", 3)
    for number in range(9):
        store.label_of_host(f"h{number}.example.net")
        assert len(store._known) <= 3


def test_a_replaced_file_is_noticed_and_read(store: Book, opened: Opener, path: Path) -> None:
    other = opened(path.with_name("other.db"))
    other.add(Credential("new", "S"), ["home"], None, 1)
    other.close()
    path.with_name("other.db").replace(path)
    assert store.changed()
    assert not store.changed()
    assert store.credential("new") is not None
    assert store.credential(HOME.id) is None


def test_what_the_old_file_left_in_its_wal_stays_out_of_the_new_one(
    store: Book, opened: Opener, path: Path
) -> None:
    for number in range(300):
        store.add(Credential(f"old{number}", "S"), ["home"], None, 1)
    assert path.with_name("taas.db-wal").stat().st_size > 100_000
    other = opened(path.with_name("other.db"))
    other.add(Credential("new", "S"), ["home"], None, 1)
    other.close()
    path.with_name("other.db").replace(path)
    assert store.changed()
    assert [entry.credential.id for entry in store.entries()] == ["new"]
    assert [e.credential.id for e in opened(path).entries()] == ["new"]
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_file_that_was_away_is_missed_and_found_again(store: Book, path: Path) -> None:
    away = path.with_name("away.db")
    path.rename(away)
    for _ in range(2):
        with pytest.raises(StoreError, match="missing"):
            store.changed()
        with pytest.raises(StoreError, match="missing"):
            store.credential(HOME.id)
        assert not path.exists()
    away.rename(path)
    assert store.credential(HOME.id) == HOME
    assert store.changed()
    assert not store.changed()


@pytest.mark.parametrize("garbage", [b"not a database, " * 4096, b"SQLite format 3\0" + bytes(100), b"x"])
def test_garbage_in_place_of_the_file_is_an_error_until_it_is_whole(
    store: Book, path: Path, garbage: bytes
) -> None:
    store.close()
    good = path.read_bytes()
    path.with_name("garbage").write_bytes(garbage)
    path.with_name("garbage").replace(path)
    for _ in range(2):
        with pytest.raises(StoreError):
            store.changed()
        with pytest.raises(StoreError):
            store.spend_step(HOME.id, 100, "a", 101)
    path.write_bytes(good)
    assert store.changed()
    assert store.spend_step(HOME.id, 100, "a", 101) is Spent.FRESH


def test_garbage_written_over_an_open_file_heals_with_the_file(store: Book, path: Path) -> None:
    sql(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    good = path.read_bytes()
    path.write_bytes(b"garbage " * (len(good) // 8))
    with pytest.raises(StoreError):
        for step in range(100, 200):
            store.spend_step(HOME.id, step, "a", step)
    for beside in ("-wal", "-shm"):
        path.with_name(path.name + beside).unlink(missing_ok=True)
    path.write_bytes(good)
    assert store.changed()
    assert store.credential(HOME.id) == HOME
    assert store.spend_step(HOME.id, 300, "a", 300) is Spent.FRESH


def test_a_closed_store_opens_again_when_asked(store: Book) -> None:
    store.close()
    store.close()
    assert store.credential(HOME.id) == HOME


PRELUDE = "import sys\nfrom pathlib import Path\nfrom taaslib.store import *\nfrom taasadmin.book import *\n"


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    program = PRELUDE + code
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, text=True)


def test_many_processes_may_make_the_file_at_once(opened: Opener, tmp_path: Path) -> None:
    code = (
        "sys.stdin.read()\n"
        "s = Book(Path(sys.argv[1]), busy_ms=20000, synchronous='FULL')\n"
        "s.add(Credential(sys.argv[2], 'S'), ['home'], None, 1); s.close()"
    )
    for attempt in range(4):
        path = tmp_path / f"{attempt}.db"
        start, go = os.pipe()
        program = PRELUDE + code
        makers = [
            subprocess.Popen([sys.executable, "-c", program, str(path), str(number)], cwd=TOP, stdin=start)
            for number in range(6)
        ]
        os.close(start)
        os.close(go)  # the end of their standard input lets all of them go at the same moment
        assert [maker.wait() for maker in makers] == [0] * 6
        assert opened(path).count() == 6


def test_kill_9_at_any_moment_leaves_a_whole_database(opened: Opener, path: Path) -> None:
    code = (
        "s = Book(Path(sys.argv[1]), busy_ms=5000, synchronous='NORMAL')\n"
        "for n in range(1000000):\n"
        "    id = f'{sys.argv[2]}-{n}'\n"
        "    s.add(Credential(id, 'S'), ['home', id], None, n)\n"
        "    for step in range(3): s.spend_step(id, step, 'a', 9)\n"
        "    s.keep_port(id, 1024 + n, n)\n"
        "    if n % 3 == 0: s.remove(id)\n"
        "    print(id, flush=True)\n"
    )
    dice = random.Random(2)
    for attempt in range(30):
        writer = child(code, path, attempt)
        assert writer.stdout is not None
        said = [writer.stdout.readline().strip() for _ in range(dice.randrange(12))]
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.read().split("\n")[:-1]
        writer.stdout.close()
        assert writer.wait() == -signal.SIGKILL
        store = opened(path, 5000)
        entries = {entry.credential.id: entry for entry in store.entries()}
        for id in said:
            assert (id in entries) == (int(id.split("-")[1]) % 3 != 0)
        for id, entry in entries.items():
            assert entry.labels == ("home", id)
        store.close()
        assert sql(path, "PRAGMA integrity_check", "PRAGMA foreign_key_check") == [("ok",)]


def test_kill_9_while_the_file_is_made_leaves_one_that_can_be_made(opened: Opener, tmp_path: Path) -> None:
    code = (
        "print('up', flush=True)\n"
        "for n in range(1000000): Book(Path(f'{sys.argv[1]}/{n}.db'), busy_ms=5000, synchronous='FULL')\n"
    )
    for attempt in range(8):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        maker = child(code, folder)
        assert maker.stdout is not None
        maker.stdout.readline()
        while len(list(folder.glob("*.db"))) <= attempt:
            pass
        maker.kill()
        maker.wait()
        maker.stdout.close()
        for path in folder.glob("*.db"):
            store = opened(path, 5000)
            assert store.count() == 0
            store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_service_in_a_folder_of_root_s_can_use_what_root_left_to_it(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):  # pytest's own are closed to others
        folder.chmod(0o755)
    path = tmp_path / "taas.db"
    root = Book(path, busy_ms=5000, synchronous="FULL", owner=(nobody.pw_uid, nobody.pw_gid))
    root.add(HOME, ["home"], None, 1000)
    root.close()
    assert {file.stat().st_uid for file in tmp_path.iterdir()} == {nobody.pw_uid}
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    code = (
        "import os\n"
        "os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[2]))\n"
        "for step in range(2):\n"
        "    s = Book(Path(sys.argv[1]), busy_ms=50, synchronous='NORMAL')\n"
        f"    print(s.spend_step({HOME.id!r}, step, 'a', 9).name)\n"
        "    s.close()\n"
    )
    service = child(code, path, nobody.pw_uid, nobody.pw_gid)
    assert service.communicate()[0].split() == ["FRESH", "FRESH"]
