"""The database as the operator changes it: credentials come, go and change, each in one transaction.

Knows neither files of hidden servers nor the command line.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from taaslib.store import CREDENTIAL, Credential, Store, credential_of


class Refused(Exception):
    """The operator asked for something that can't be; the message says why.  Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A credential as the operator sees it: with its labels and when it was made (seconds since 1970)."""

    credential: Credential
    labels: tuple[str, ...]
    created: int


class Book(Store):
    """Raises Refused where something can't be, and StoreError."""

    def add(
        self, credential: Credential, labels: Sequence[str], port: int | None, created: int,
        mode: str | None = None,
    ) -> None:  # fmt: skip
        """Keep a new credential with its LABELS; PORT, if any, becomes their fixed port (so: one label).

        MODE, if any, becomes the mode of all.
        """
        c = credential
        with self._writing() as db:
            if _exists(db, c.id):
                raise Refused(f"ID {c.id} exists already")
            values = (c.id, c.secret, c.digits, c.period, c.algorithm, c.enabled, c.generation, created)
            marks = ", ".join("?" * len(values))
            db.execute(f"INSERT INTO credentials ({CREDENTIAL}, created) VALUES ({marks})", values)
            _grant(db, c.id, labels)
            if port is not None:
                for label in labels:
                    _fix_port(db, label, port)
            for label in labels if mode else ():
                _set_mode(db, label, str(mode))

    def grant(self, id: str, labels: Sequence[str]) -> None:
        """Let ID use LABELS as well; those that it has already stay."""
        with self._writing() as db:
            _require(db, id)
            _grant(db, id, labels)

    def revoke(self, id: str, labels: Sequence[str], keep_live: bool = False) -> None:
        with self._writing() as db:
            _require(db, id)
            _spare(db, id, keep_live, labels)
            for label in labels:
                if not db.execute("DELETE FROM grants WHERE id = ? AND label = ?", (id, label)).rowcount:
                    raise Refused(f"label {label} is not granted to ID {id}")
            _forget_ungranted(db)

    def remove(self, id: str, keep_live: bool = False) -> None:
        with self._writing() as db:
            _require(db, id)
            _spare(db, id, keep_live)
            db.execute("DELETE FROM credentials WHERE id = ?", (id,))
            _forget_ungranted(db)

    def set_mode(self, label: str, mode: str) -> None:
        """Let visitors come to LABEL another way; one that is only passed through has no fixed port."""
        with self._writing() as db:
            _set_mode(db, label, mode)

    def grant_host(self, label: str, host: str) -> None:
        """Give LABEL the own domain HOST, unless another label has it."""
        with self._writing() as db:
            if not db.execute("SELECT 1 FROM labels WHERE label = ?", (label,)).fetchone():
                raise Refused(f"there is no label {label}")
            db.execute("INSERT INTO hosts VALUES (?, ?) ON CONFLICT DO NOTHING", (host, label))
            holder = db.execute("SELECT label FROM hosts WHERE host = ?", (host,)).fetchone()[0]
            if holder != label:
                raise Refused(f"host {host} belongs to label {holder}: revoke it there first")

    def revoke_host(self, label: str, host: str) -> None:
        with self._writing() as db:
            if not db.execute("DELETE FROM hosts WHERE host = ? AND label = ?", (host, label)).rowcount:
                raise Refused(f"label {label} has no host {host}")

    def rotate(self, id: str, secret: str, keep_live: bool = True) -> None:
        """Give ID another secret.  The steps that were spent with the old one are free again."""
        with self._writing() as db:
            _require(db, id)
            _spare(db, id, keep_live)
            change = "UPDATE credentials SET secret = ?, generation = generation + 1 WHERE id = ?"
            db.execute(change, (secret, id))
            db.execute("DELETE FROM spent_steps WHERE id = ?", (id,))

    def set_enabled(self, id: str, enabled: bool, keep_live: bool = False) -> None:
        with self._writing() as db:
            _require(db, id)
            if not enabled:
                _spare(db, id, keep_live)
            db.execute("UPDATE credentials SET enabled = ? WHERE id = ?", (enabled, id))

    def clock(self, id: str) -> tuple[int, int] | None:
        """By how many seconds the clock of ID's device was ahead, and when that was seen."""
        rows = self._rows("SELECT ahead, seen FROM clocks WHERE id = ?", id)
        return rows[0] if rows else None

    def hosts(self, label: str) -> tuple[str, ...]:
        """The own domains of LABEL."""
        rows = self._rows("SELECT host FROM hosts WHERE label = ? ORDER BY host", label)
        return tuple(host for (host,) in rows)

    def entries(self) -> list[Entry]:
        """All credentials, oldest first."""
        with self._reading() as db:
            db.execute("BEGIN")  # both SELECTs see the same moment
            query = f"SELECT {CREDENTIAL}, created FROM credentials ORDER BY created, rowid"
            rows = db.execute(query).fetchall()
            grants = db.execute("SELECT id, label FROM grants ORDER BY rowid").fetchall()
            db.execute("COMMIT")
        labels: dict[str, list[str]] = {}
        for id, label in grants:
            labels.setdefault(id, []).append(label)
        return [Entry(credential_of(row[:-1]), tuple(labels.get(row[0], ())), row[-1]) for row in rows]

    def find(self, id_or_label: str) -> list[Entry]:
        """The credential with this ID, or else those that hold this label."""
        entries = self.entries()
        by_id = [entry for entry in entries if entry.credential.id == id_or_label]
        return by_id or [entry for entry in entries if id_or_label in entry.labels]


def _exists(db: sqlite3.Connection, id: str) -> bool:
    return db.execute("SELECT 1 FROM credentials WHERE id = ?", (id,)).fetchone() is not None


def _require(db: sqlite3.Connection, id: str) -> None:
    if not _exists(db, id):
        raise Refused(f"there is no ID {id}")


def _grant(db: sqlite3.Connection, id: str, labels: Sequence[str]) -> None:
    for label in labels:
        db.execute("INSERT INTO labels (label) VALUES (?) ON CONFLICT DO NOTHING", (label,))
        db.execute("INSERT INTO grants VALUES (?, ?) ON CONFLICT DO NOTHING", (id, label))


def _spare(db: sqlite3.Connection, id: str, keep_live: bool, labels: Sequence[str] = ()) -> None:
    """ID loses its rights under LABELS, or all: let its live pairs go on, or end them, older ones too."""
    marks = ", ".join("?" * len(labels))
    which = f"id = ? AND label IN ({marks})" if labels else "id = ?"
    if keep_live:
        rights = f"SELECT id, label, generation FROM credentials JOIN grants USING (id) WHERE {which}"
        db.execute(f"INSERT INTO spared {rights} ON CONFLICT DO NOTHING", (id, *labels))
    else:
        db.execute(f"DELETE FROM spared WHERE {which}", (id, *labels))


def _fix_port(db: sqlite3.Connection, label: str, port: int) -> None:
    owner = db.execute("SELECT label FROM labels WHERE fixed_port = ?", (port,)).fetchone()
    if owner and owner[0] != label:
        raise Refused(f"port {port} is the fixed port of label {owner[0]}")
    db.execute("UPDATE labels SET fixed_port = ? WHERE label = ?", (port, label))
    db.execute("DELETE FROM sticky_ports WHERE port = ? AND label <> ?", (port, label))


def _set_mode(db: sqlite3.Connection, label: str, mode: str) -> None:
    row = db.execute("SELECT fixed_port FROM labels WHERE label = ?", (label,)).fetchone()
    if row is None:
        raise Refused(f"there is no label {label}")
    if row[0] and mode == "passthrough":
        raise Refused(f"label {label} has the fixed port {row[0]}, which passthrough would never open")
    db.execute("UPDATE labels SET mode = ? WHERE label = ?", (mode, label))


def _forget_ungranted(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM labels WHERE label NOT IN (SELECT label FROM grants)")
