"""Credentials, labels, grants, spent TOTP steps and sticky ports in one sqlite3 file, as the service uses it.

Knows neither HTTP nor what a code is: it keeps facts and answers at once, or raises StoreError.  What the
operator changes is taasadmin/book.py's.

The file is in WAL mode, so that the service reads while taas_admin.py writes; the `-wal` and `-shm` files
beside it belong to it.  A commit of another process shows in PRAGMA data_version, a file put in the place
of ours only in its inode.  What visitors make us ask is kept until `changed` sees either, once a second.
"""

import contextlib
import enum
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

KEPT_STEPS = 10  # spent steps that stay behind an ID's newest: more than any drift, few enough to forget
_RETRY_SECONDS = 0.005
_MOST_KNOWN = 10_000  # answers kept; strangers choose the names that are asked for

# Each tuple takes the schema one version further, in one transaction; PRAGMA user_version counts them.
# Never change one that was released: append.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE credentials (
            id TEXT PRIMARY KEY NOT NULL,
            secret TEXT NOT NULL,
            digits INTEGER NOT NULL CHECK (digits IN (6, 7, 8)),
            period INTEGER NOT NULL CHECK (period > 0),
            algorithm TEXT NOT NULL CHECK (algorithm IN ('SHA1', 'SHA256', 'SHA512')),
            enabled INTEGER NOT NULL CHECK (enabled IN (0, 1)),
            generation INTEGER NOT NULL,
            created INTEGER NOT NULL)""",
        """CREATE TABLE labels (
            label TEXT PRIMARY KEY NOT NULL,
            fixed_port INTEGER UNIQUE CHECK (fixed_port BETWEEN 1 AND 65535),
            mode TEXT NOT NULL DEFAULT 'redirect' CHECK (mode IN ('redirect', 'passthrough', 'both')))""",
        """CREATE TABLE grants (
            id TEXT NOT NULL REFERENCES credentials (id) ON DELETE CASCADE,
            label TEXT NOT NULL REFERENCES labels (label) ON DELETE CASCADE,
            PRIMARY KEY (id, label))""",  # in the order of granting: the first label names the agent file
        "CREATE INDEX grants_by_label ON grants (label)",
        """CREATE TABLE spent_steps (
            id TEXT NOT NULL REFERENCES credentials (id) ON DELETE CASCADE,
            step INTEGER NOT NULL,
            address TEXT NOT NULL,
            PRIMARY KEY (id, step)) WITHOUT ROWID""",
        # No reference to labels: a label that was removed and comes back finds its old port.
        """CREATE TABLE sticky_ports (
            label TEXT PRIMARY KEY NOT NULL,
            port INTEGER NOT NULL UNIQUE CHECK (port BETWEEN 1 AND 65535),
            used INTEGER NOT NULL)""",
        # The primary key gives a host to one label alone.
        """CREATE TABLE hosts (
            host TEXT PRIMARY KEY NOT NULL,
            label TEXT NOT NULL REFERENCES labels (label) ON DELETE CASCADE) WITHOUT ROWID""",
        # Rights whose live pairs go on when they are gone.  No reference: the credential may be gone too.
        """CREATE TABLE spared (
            id TEXT NOT NULL, label TEXT NOT NULL, generation INTEGER NOT NULL,
            PRIMARY KEY (id, label, generation)) WITHOUT ROWID""",
        """CREATE TABLE clocks (
            id TEXT PRIMARY KEY NOT NULL REFERENCES credentials (id) ON DELETE CASCADE,
            ahead INTEGER NOT NULL,
            seen INTEGER NOT NULL) WITHOUT ROWID""",
    ),
)

class StoreError(Exception):
    """The database is busy, broken or missing; the message says which."""

@dataclass(frozen=True, slots=True)
class Credential:
    """What a hidden server's code is checked with.

    `generation` is another number whenever the secret is: what was allowed by an old one ends.
    """
    id: str
    secret: str = field(repr=False)
    digits: int = 6
    period: int = 30
    algorithm: str = "SHA1"
    enabled: bool = True
    generation: int = 0

class Spent(enum.Enum):
    """What became of an attempt to spend a step."""
    FRESH = "fresh"  # nobody had: it is now this address's
    AGAIN = "again"  # this address had
    ELSEWHERE = "elsewhere"  # another address had
    STALE = "stale"  # this address has spent a newer one

class Store:
    """The file at PATH, created and brought to the newest schema where needed.

    Root names an OWNER (uid, gid) to leave the files to: the user that the service runs as.
    """
    def __init__(
        self, path: Path, *, busy_ms: int, synchronous: str, owner: tuple[int, int] | None = None
    ) -> None:
        self._path = path
        self._owner = owner
        self._busy_seconds = busy_ms / 1000
        self._synchronous = synchronous
        self._db: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._version: int | None = None  # PRAGMA data_version when last looked at; None: reopened since
        self._known: dict[tuple[str, str], list[Any]] = {}  # (query, its value) -> rows
        with self._errors():
            _create(path)
            self._version = _number(self._open(new=True), "data_version")
            if owner:
                for file in _files(path):
                    os.chown(file, *owner, follow_symlinks=False)

    def close(self) -> None:
        self._drop()
        if self._owner:
            _keep_beside(self._path, *self._owner)

    # The service's questions.

    def credential(self, id: str) -> Credential | None:
        rows = self._rows(f"SELECT {CREDENTIAL} FROM credentials WHERE id = ?", id)
        return credential_of(rows[0]) if rows else None

    def rights(self, id: str, label: str) -> int | None:
        """The generation of the credential, while it is enabled and LABEL granted to it."""
        query = "SELECT generation FROM credentials JOIN grants USING (id)"
        rows = self._rows(f"{query} WHERE id = ? AND label = ? AND enabled", id, label)
        return int(rows[0][0]) if rows else None

    def spared(self, id: str, label: str, generation: int) -> bool:
        """Whether live pairs that rest on this right go on, even if it is gone."""
        query = "SELECT 1 FROM spared WHERE id = ? AND label = ? AND generation = ?"
        return bool(self._rows(query, id, label, generation))

    def spend_step(self, id: str, step: int, address: str, horizon: int) -> Spent:
        """Spend STEP of ID for ADDRESS (what counts as one peer, or "*" for everybody).

        Steps beyond HORIZON were spent while our clock was wrong: they make nothing stale.
        """
        rows = self._rows("SELECT step, address FROM spent_steps WHERE id = ? AND step >= ?", id, step)
        newer = any(step < each <= horizon and whose == address for each, whose in rows)
        spender = dict(rows).get(step)
        if spender is None and not newer:
            with self._writing() as db:
                spender = _spender(db, id, step)  # again: this time nobody else can write
                if spender is None:
                    db.execute("INSERT INTO spent_steps VALUES (?, ?, ?)", (id, step, address))
                    db.execute("DELETE FROM clocks WHERE id = ?", (id,))
                    db.execute("DELETE FROM spent_steps WHERE id = ? AND step < ?", (id, step - KEPT_STEPS))
                    return Spent.FRESH
        if spender is not None and spender != address:
            return Spent.ELSEWHERE
        return Spent.STALE if newer else Spent.AGAIN

    def spenders(self, since: int) -> list[tuple[str, str, int]]:
        """ID, address and time of each step spent SINCE then, as far as steps are kept, oldest first."""
        query = "SELECT id, address, step * period AS at FROM spent_steps JOIN credentials USING (id)"
        return self._rows(f"{query} WHERE at >= ? ORDER BY at", since)

    def note_clock(self, id: str, ahead: int, now: int) -> None:
        """The clock of ID's device was seen AHEAD seconds off; its next right code takes this back."""
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO clocks VALUES (?, ?, ?)", (id, ahead, now))

    def count(self) -> int:
        """How many credentials are enabled."""
        return int(self._rows("SELECT count(*) FROM credentials WHERE enabled")[0][0])

    def label_port(self, label: str) -> tuple[int | None, int | None]:
        """The port that the operator fixed for LABEL, and the one that it had last."""
        fixed = self._rows("SELECT fixed_port FROM labels WHERE label = ?", label)
        sticky = self._rows("SELECT port FROM sticky_ports WHERE label = ?", label)
        return (fixed[0][0] if fixed else None, sticky[0][0] if sticky else None)

    def mode(self, label: str) -> str:
        """How visitors come to LABEL: "redirect" (also of unknown labels), "passthrough" or "both"."""
        rows = self._known_rows("SELECT mode FROM labels WHERE label = ?", label)
        return rows[0][0] if rows else "redirect"

    def labels(self) -> list[tuple[str, str, int | None]]:
        """All labels with their modes, and by how many seconds a clock of its devices was seen ahead."""
        query = "SELECT label, mode, max(ahead) FROM labels LEFT JOIN grants USING (label)"
        return self._rows(f"{query} LEFT JOIN clocks USING (id) GROUP BY label ORDER BY label")

    def opens_q(self, label: str) -> bool:
        """Whether LABEL may have a port q: it is redirected to, and somebody may serve it."""
        query = "SELECT 1 FROM credentials JOIN grants USING (id) JOIN labels USING (label)"
        return bool(self._rows(f"{query} WHERE label = ? AND enabled AND mode <> 'passthrough'", label))

    def passes_through(self) -> bool:
        """Whether any label is passed through."""
        return bool(self._known_rows("SELECT 1 FROM labels WHERE mode <> ? LIMIT 1", "redirect"))

    def label_of_host(self, host: str) -> str | None:
        """The label that the operator gave the own domain HOST to."""
        rows = self._known_rows("SELECT label FROM hosts WHERE host = ?", host)
        return rows[0][0] if rows else None

    def keep_port(self, label: str, port: int, now: int) -> None:
        """Remember PORT as LABEL's, and as nobody else's, last used at NOW."""
        with self._writing() as db:
            db.execute("DELETE FROM sticky_ports WHERE port = ? AND label <> ?", (port, label))
            db.execute(
                "INSERT INTO sticky_ports VALUES (?, ?, ?)"
                " ON CONFLICT (label) DO UPDATE SET port = excluded.port, used = excluded.used",
                (label, port, now),
            )

    def taken_ports(self) -> tuple[frozenset[int], tuple[int, ...]]:
        """All fixed ports; all sticky ports, least recently used first."""
        fixed = self._rows("SELECT fixed_port FROM labels WHERE fixed_port IS NOT NULL")
        sticky = self._rows("SELECT port FROM sticky_ports ORDER BY used, port")
        return frozenset(port for (port,) in fixed), tuple(port for (port,) in sticky)

    def changed(self) -> bool:
        """Whether others have committed, or the file is another one, since this was last asked."""
        with self._errors():
            self._leave_if_replaced()
            db = self._db or self._open()
            version, self._version = self._version, _number(db, "data_version")
        if version != self._version:
            self._known.clear()
        return version != self._version

    # The connection.

    def _rows(self, query: str, *values: object) -> list[Any]:
        try:  # as `_reading` does, without its cost: one SELECT that is read to its end leaves nothing open
            return (self._db or self._open()).execute(query, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error) from error

    def _known_rows(self, query: str, value: str) -> list[Any]:
        rows = self._known.get((query, value))
        if rows is None:
            rows = self._rows(query, value)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[query, value] = rows
        return rows

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> StoreError:
        """What is raised in place of ERROR; a connection that can't be trusted any more is dropped."""
        busy = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
        if not busy:
            self._drop()
        what = "is busy" if busy else "is missing" if type(error) is FileNotFoundError else "is unusable"
        cause = error.strerror if isinstance(error, OSError) else str(error)
        return StoreError(f"database {self._path} {what}: {cause}")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._errors():
            db = self._db or self._open()
            try:
                yield db
            finally:
                _roll_back(db)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            self._known.clear()
            db.execute("COMMIT")

    def _drop(self) -> None:
        db, self._db = self._db, None
        self._known.clear()
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()

    def _open(self, new: bool = False) -> sqlite3.Connection:
        self._version = None
        self._inode = _inode(self._path)  # before: if it is replaced meanwhile, changed() will see it
        uri = uri_of(self._path, "?mode=rw")  # rw: a missing file is an error
        db = sqlite3.connect(uri, uri=True, timeout=self._busy_seconds, isolation_level=None)
        try:
            if not new and _number(db, "user_version") == 0:  # somebody may be copying one to this place
                raise StoreError(f"database {self._path} is empty")
            _use_wal(db, time.monotonic() + self._busy_seconds)
            db.execute(f"PRAGMA synchronous = {self._synchronous}")
            db.execute("PRAGMA foreign_keys = ON")
            _migrate(db, self._path)
        except BaseException:
            db.close()
            raise
        self._db = db
        return db

    def _leave_if_replaced(self) -> None:
        if self._db is None:
            return
        with contextlib.suppress(FileNotFoundError):  # moved away; another may come in its place
            if self._inode == _inode(self._path):
                return
        # What stands in the -wal goes home with the old file: sqlite would replay it into the new one.
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._drop()

CREDENTIAL = "id, secret, digits, period, algorithm, enabled, generation"

def credential_of(row: tuple[Any, ...]) -> Credential:
    id, secret, digits, period, algorithm, enabled, generation = row
    return Credential(id, secret, digits, period, algorithm, bool(enabled), generation)

def _spender(db: sqlite3.Connection, id: str, step: int) -> str | None:
    row = db.execute("SELECT address FROM spent_steps WHERE id = ? AND step = ?", (id, step)).fetchone()
    return str(row[0]) if row else None

def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        with contextlib.suppress(sqlite3.Error):  # what went wrong before says more
            db.execute("ROLLBACK")

def _create(path: Path) -> None:
    # Ours alone before sqlite puts a secret into it; its -wal and -shm take mode and owner over.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

def uri_of(path: Path, how: str) -> str:
    """What sqlite3.connect(..., uri=True) takes for the file at PATH, opened as HOW says ("?mode=ro")."""
    return f"file:{quote(os.fsencode(path.absolute()))}{how}"

def _files(path: Path) -> tuple[Path, Path, Path]:
    return path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")

def _keep_beside(path: Path, uid: int, gid: int) -> None:
    """Put empty -wal and -shm files back, which the last one to close the database has removed.

    A folder that is root's, as the one with our code should be, does not let the service make its own.
    """
    with contextlib.suppress(OSError):  # they are there; or we are that service ourselves
        for file in _files(path)[1:]:
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            os.fchown(descriptor, uid, gid)
            os.close(descriptor)

def _use_wal(db: sqlite3.Connection, deadline: float) -> None:
    # The switch asks for an exclusive lock without sqlite's own patience, and two commands may make it.
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(_RETRY_SECONDS)

def _migrate(db: sqlite3.Connection, path: Path) -> None:
    if _number(db, "user_version") == len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        version = _number(db, "user_version")  # again: another process may have been faster
        if version > len(MIGRATIONS):
            raise StoreError(
                f"database {path} has schema version {version}, newer than the {len(MIGRATIONS)}"
                " that this version of TAAS knows: use a newer TAAS"
            )
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            for statement in statements:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")
    finally:
        _roll_back(db)

def _number(db: sqlite3.Connection, pragma: str) -> int:
    return int(db.execute(f"PRAGMA {pragma}").fetchone()[0])

def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
