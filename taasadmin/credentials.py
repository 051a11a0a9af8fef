"""What an operator does with credentials and labels, for the commands and the page alike.

Knows neither how it is asked for nor how the outcome is shown: facts come back as documents, which are what
--json prints.
"""

import base64
import contextlib
import hashlib
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from taasadmin.agentfile import agent_file, file_names
from taasadmin.book import Book, Entry, Refused
from taasadmin.wording import NO_PYOTP, called
from taaslib import names
from taaslib.config import Config
from taaslib.ownership import Owner, make_folder
from taaslib.store import Credential

BUSY_MS = 5000
# RFC 4226 section 4 recommends 160 bits for SHA1; RFC 6238's reference takes the hash's own size.
SECRET_BYTES = {"SHA1": 20, "SHA256": 32, "SHA512": 64}
MODES = ("redirect", "passthrough", "both")

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AgentFile:
    """The file for a hidden server, which holds a secret that is about to be the right one."""

    label: str  # the first one
    content: str
    name: str
    other_name: str  # for where another ID's file may have the plain one
    shared: bool  # another ID has the label that names it


# Keeps the file for as long as the change is made, and undoes that if it fails; gives the name that it has.
Keep = Callable[[AgentFile], AbstractContextManager[str]]


class Credentials:
    """Each raises Refused, StoreError or OSError before it has changed anything."""

    def __init__(self, settings: Config, owner: Owner | None) -> None:
        self._settings = settings
        self._owner = owner

    @contextlib.contextmanager
    def book(self) -> Iterator[Book]:
        """The database, for a moment."""
        make_folder(self._settings.database.parent, self._owner)
        book = Book(self._settings.database, busy_ms=BUSY_MS, synchronous="FULL", owner=self._owner)
        with contextlib.closing(book):
            yield book

    def add(
        self, labels: Sequence[str], format: str, keep: Keep, *, id: str | None = None,
        port: int | None = None, mode: str | None = None, digits: int = 6, period: int = 30,
        algorithm: str = "SHA1",
    ) -> Document:  # fmt: skip
        """A new credential for LABELS, and its file; PORT and MODE as in Book.add."""
        labels = list(dict.fromkeys(labels))
        self._refuse_reserved(labels)
        if port is not None and len(labels) > 1:
            raise Refused("a fixed port is one label's: add the others without it, or each by itself")
        if port == self._settings.port:
            raise Refused(f"port {port} is the service's own")
        credential = Credential(
            id=id or str(uuid.uuid4()),
            secret=_secret(algorithm),
            digits=digits,
            period=period,
            algorithm=algorithm,
            generation=secrets.randbits(31),  # an ID that is removed and added again is another credential
        )
        entry = Entry(credential, tuple(labels), int(time.time()))
        content = agent_file(self._settings, entry, format)
        uri = self._uri(entry)
        with self.book() as book:
            file = AgentFile(
                entry.labels[0], content, *file_names(entry, format), shared=bool(book.find(labels[0]))
            )
            with keep(file) as name:
                book.add(credential, labels, port, entry.created, mode)
            return self._document(book, entry, uri) | {"file": name, "uri": uri}

    def rotate(self, what: str, format: str, keep: Keep, keep_live: bool) -> Document:
        """Another secret for WHAT, and its file."""
        with self.book() as book:
            entry = self._entry(book, what)
            if not entry.labels:
                raise Refused(f"ID {what} has no label to name its file after: grant one first")
            new = replace(entry.credential, secret=_secret(entry.credential.algorithm))
            entry = replace(entry, credential=new)
            content = agent_file(self._settings, entry, format)
            uri = self._uri(entry)
            shared = len(book.find(entry.labels[0])) > 1
            with keep(AgentFile(entry.labels[0], content, *file_names(entry, format), shared=shared)) as name:
                book.rotate(new.id, new.secret, keep_live)
            return self._document(book, entry, uri) | {"file": name, "uri": uri}

    def all(self) -> list[Document]:
        with self.book() as book:
            return [self._document(book, entry) for entry in book.entries()]

    def with_secret(self, what: str) -> list[Document]:
        """The credential with the ID WHAT, or those of the label WHAT."""
        with self.book() as book:
            found = book.find(what) or [self._entry(book, what)]
            return [self._document(book, entry, self._uri(entry)) for entry in found]

    def grant(self, what: str, labels: Sequence[str]) -> Document:
        self._refuse_reserved(labels)
        with self.book() as book:
            id = self._entry(book, what).credential.id
            book.grant(id, labels)
            return self._document(book, self._entry(book, id))

    def revoke(self, what: str, labels: Sequence[str], keep_live: bool) -> Document:
        with self.book() as book:
            id = self._entry(book, what).credential.id
            book.revoke(id, labels, keep_live)
            return self._document(book, self._entry(book, id))

    def grant_hosts(self, label: str, hosts: Sequence[str]) -> tuple[str, ...]:
        """Give LABEL domains of its own; all that it has then."""
        hosts = self._own_hosts(hosts)
        with self.book() as book:
            for host in hosts:
                book.grant_host(label, host)
            return book.hosts(label)

    def revoke_hosts(self, label: str, hosts: Sequence[str]) -> tuple[str, ...]:
        hosts = self._own_hosts(hosts)
        with self.book() as book:
            for host in hosts:
                book.revoke_host(label, host)
            return book.hosts(label)

    def _own_hosts(self, texts: Sequence[str]) -> list[str]:
        hosts = []
        for text in texts:
            try:
                hosts.append(names.own_host(text, self._settings.registrar, self._settings.servers))
            except ValueError as error:
                raise Refused(f"host {text}: {error}") from None
        return hosts

    def set_mode(self, label: str, mode: str) -> None:
        with self.book() as book:
            book.set_mode(label, mode)

    def remove(self, what: str, keep_live: bool) -> str:
        """Forget WHAT; its ID."""
        with self.book() as book:
            id = self._entry(book, what).credential.id
            book.remove(id, keep_live)
            return id

    def set_enabled(self, what: str, enabled: bool, keep_live: bool = False) -> Document:
        with self.book() as book:
            id = self._entry(book, what).credential.id
            book.set_enabled(id, enabled, keep_live)
            return self._document(book, self._entry(book, id))

    def visitors_come_to(self, label: str) -> str:
        """The URL of LABEL."""
        port = "" if self._settings.port == 443 else f":{self._settings.port}"
        return f"https://{label}.{self._settings.servers}{port}/"

    def _refuse_reserved(self, labels: Sequence[str]) -> None:
        reserved = self._settings.reserved_label
        if reserved in labels:
            raise Refused(f"label {reserved} is taken: {self._settings.registrar} is the registrar itself")

    @staticmethod
    def _entry(book: Book, what: str) -> Entry:
        """The credential with that ID, or the only one of that label."""
        found = book.find(what)
        for entry in found:
            if entry.credential.id == what:
                return entry
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(entry.credential.id for entry in found)
            raise Refused(f"label {what} has several IDs, say which: {ids}")
        raise Refused(f"there is no ID and no label {what}: see {called('admin')} list")

    @staticmethod
    def _document(book: Book, entry: Entry, uri: str = "") -> Document:
        """ENTRY for --json; its secret only where the URI is given too."""
        c = entry.credential
        ports = {label: book.label_port(label)[0] for label in entry.labels}
        document: Document = {
            "id": c.id,
            "labels": list(entry.labels),
            "ports": {label: port for label, port in ports.items() if port},  # the fixed ones
            "hosts": {label: list(book.hosts(label)) for label in entry.labels if book.hosts(label)},
            "modes": {label: book.mode(label) for label in entry.labels},
            "digits": c.digits,
            "period": c.period,
            "algorithm": c.algorithm,
            "enabled": c.enabled,
            "created": _moment(entry.created),
        }
        if clock := book.clock(c.id):
            ahead, seen = clock
            document["clock"] = {"ahead_seconds": ahead, "seen": _moment(seen)}
        return document | {"secret": c.secret, "uri": uri} if uri else document

    def _uri(self, entry: Entry) -> str:
        try:
            import pyotp
        except ImportError:
            raise Refused(NO_PYOTP) from None
        c = entry.credential
        digest = getattr(hashlib, c.algorithm.lower())
        name = f"{entry.labels[0] if entry.labels else c.id}.{self._settings.servers}"
        totp = pyotp.TOTP(c.secret, digits=c.digits, digest=digest, interval=c.period)
        return totp.provisioning_uri(name=name, issuer_name=self._settings.registrar)


def agent_command(file: object) -> str:
    """How a hidden server's agent is started with the agent FILE."""
    return f"{called('agent')} {file} --to 127.0.0.1:443"


def in_words(document: Document) -> str:
    labels = [
        label
        + (f" (port {document['ports'][label]})" if label in document["ports"] else "")
        + ("" if (mode := document["modes"][label]) == "redirect" else f" ({mode})")
        + "".join(f" + {host}" for host in document["hosts"].get(label, ()))
        for label in document["labels"]
    ]
    state = "" if document["enabled"] else "  DISABLED"
    return f"{document['id']}  {', '.join(labels) or 'no label'}{state}"


def _secret(algorithm: str) -> str:
    return base64.b32encode(secrets.token_bytes(SECRET_BYTES[algorithm])).decode().rstrip("=")


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
