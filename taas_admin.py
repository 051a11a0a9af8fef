#!/usr/bin/env python3
"""The operator's command: who may register which label, and the files that hidden servers are given.

Knows nothing of the running service, which sees each change in the database by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import make_cert
from taasadmin.agentfile import SUFFIX
from taasadmin.book import Book, Refused
from taasadmin.credentials import (
    BUSY_MS,
    MODES,
    SECRET_BYTES,
    AgentFile,
    Credentials,
    agent_command,
    in_words,
)
from taasadmin.doctor import FIX, Doctor, kind, meet, sha256_of
from taasadmin.live import Live
from taasadmin.steer import Rejected, Silent, Steer
from taasadmin.wording import called
from taaslib import config, names
from taaslib.ownership import Owner, make_folder, owner_of_files
from taaslib.store import MIGRATIONS, StoreError, uri_of


def main(argv: list[str] | None = None) -> int:
    """0: done; 1: refused, nothing has changed, or found unsound; 2: the arguments or taas.ini are bad."""
    code = 0
    parser = _parser()
    arguments = parser.parse_args(argv)
    if "host" in arguments and bool(arguments.host) == bool(arguments.labels):
        parser.error("name labels, or a domain with --host; one of the two")
    try:
        if arguments.command is init:
            document, text = init(arguments)
        else:
            settings = config.load(Path(arguments.config))
            document, text = arguments.command(Admin(settings, _owner(settings)), arguments)
    except Unsound as found:
        (document, text), code = found.args, 1
    except config.ConfigError as error:
        return _fail(error, 2)
    except (Refused, Rejected, Silent, make_cert.Refused, StoreError, OSError) as error:
        return _fail(error, 1)
    if document is not None:
        _say(json.dumps(document, indent=2) if arguments.json else text)
    return code


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has seen enough; what was to be done is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor complain when Python flushes


def _owner(settings: config.Config) -> Owner | None:
    try:
        return owner_of_files(settings.user)
    except LookupError as error:
        raise config.ConfigError(settings.path, "[taas] user", error) from None


def _fail(error: Exception, code: int) -> int:
    print(f"{_program()}:", " ".join(str(error).split()), file=sys.stderr)
    return code


def _program() -> str:
    return called("admin").removeprefix("python3 ").removeprefix("python ")


def _parser() -> argparse.ArgumentParser:
    def common(**default: Any) -> argparse.ArgumentParser:
        # Subparsers write their defaults over what stood before the subcommand: so they get none.
        options = argparse.ArgumentParser(add_help=False)
        options.add_argument("-c", "--config", metavar="FILE", help="default: ./taas.ini", **default)
        options.add_argument(
            "--json", action="store_true", help="print one JSON document and nothing else", **default
        )
        return options

    parser = argparse.ArgumentParser(
        prog=_program(), description="Who may register which label at this TAAS.", parents=[common()]
    )
    parser.set_defaults(config="taas.ini", json=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., Answer], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=help, description=help, parents=[common(default=argparse.SUPPRESS)]
        )
        sub.set_defaults(command=run)
        return sub

    first = command(
        "init", init, "the first of all: taas.ini, a certificate and a database, where none is yet"
    )
    first.add_argument(
        "--domain",
        required=True,
        help="the name above all labels: taas.example.com, for home.taas.example.com",
    )
    first.add_argument(
        "--public",
        required=True,
        metavar="ADDRESS",
        help="what clients connect to; one IPv4, one IPv6 or both, with a comma between",
    )
    first.add_argument("--registrar", metavar="NAME", help="default: registrar.DOMAIN")
    first.add_argument("--port", metavar="N", help="default: 443")
    first.add_argument("--ports", metavar="FIRST-LAST", help="for what is relayed (default: 61000-65535)")
    first.add_argument("--user", metavar="NAME", help="whom the service becomes when root starts it")
    first.add_argument(
        "--state", metavar="FOLDER", help="for certificate, key and database (default: taas.ini's)"
    )

    def writes_file(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--force", action="store_true", help="write over a file that is there")
        sub.add_argument(
            "--format", choices=sorted(SUFFIX), default="ini", help="js: for the original client of 2014"
        )

    add = command("add", Admin.add, "make a credential for labels, and LABEL.agent.ini for its hidden server")
    add.add_argument("labels", nargs="+", type=_label, metavar="LABEL")
    add.add_argument("--id", type=_uuid, metavar="UUID", help="default: a fresh one")
    add.add_argument("--port", type=_port, metavar="N", help="the label's public port, for good")
    add.add_argument("--mode", choices=MODES, help="how visitors come; see `set` (default: redirect)")
    add.add_argument("--digits", type=int, choices=(6, 7, 8), default=6)
    add.add_argument("--period", type=_period, metavar="SECONDS", default=30)
    add.add_argument("--algorithm", choices=sorted(SECRET_BYTES), default="SHA1")
    writes_file(add)
    command("list", Admin.entries, "all credentials, without their secrets")
    show = command("show", Admin.show, "a credential, or those of a label, with secret and otpauth:// URI")
    show.add_argument("what", metavar="ID|LABEL", type=str.lower)
    for name, run, help in (
        ("grant", Admin.grant, "let a credential register more labels"),
        ("revoke", Admin.revoke, "take labels away from a credential"),
    ):
        sub = command(name, run, help)
        sub.add_argument("what", metavar="ID|LABEL", type=str.lower)
        sub.add_argument("labels", nargs="*", type=_label, metavar="LABEL")
        sub.add_argument(
            "--host", action="append", default=[], help="a domain of its own, for the label that stands first"
        )
    change = command("set", Admin.set, "change how visitors come to a label")
    change.add_argument("label", type=_label, metavar="LABEL")
    change.add_argument(
        "--mode",
        choices=MODES,
        required=True,
        help="redirect: to a port of its own; passthrough: on the service's port, by server name; both",
    )
    rotate = command("rotate", Admin.rotate, "give a credential a new secret and write its file anew")
    writes_file(rotate)
    rotate.add_argument(
        "--end-live", dest="keep_live", action="store_false", help="end live pairs too; by default they go on"
    )
    for sub in (
        rotate,
        command("remove", Admin.remove, "forget a credential"),
        command("disable", Admin.disable, "refuse a credential until it is enabled again"),
        command("enable", Admin.enable, "accept a disabled credential again"),
    ):
        sub.add_argument("what", metavar="ID|LABEL", type=str.lower)
    copy = command(
        "backup", Admin.backup, "copy the database while the service runs; the copy holds every secret"
    )
    copy.add_argument("file", metavar="FILE", type=Path)
    copy.add_argument("--force", action="store_true", help="write over a file that is there")
    back = command("restore", Admin.restore, "put a backup in the place of the database")
    back.add_argument("file", metavar="FILE", type=Path)
    command("status", Admin.status, "what the running service does: labels, agents, limits")
    command("pairs", Admin.pairs, "the live pairs")
    met = command("pairings", Admin.pairings, "who met whom under a label, and whose doing each end was")
    met.add_argument("label", type=_label, metavar="LABEL")
    kick = command("kick", Admin.kick, "end a live pair, or all of a label")
    whom = kick.add_mutually_exclusive_group(required=True)
    whom.add_argument("label", nargs="?", type=_label, metavar="LABEL")
    whom.add_argument("--pair", type=_count, metavar="NUMBER", help="its number in `pairs`")
    command("drain", Admin.drain, "let the service take nobody new, and end with its last live pair")
    command("reload", Admin.reload, "let the service follow taas.ini and the certificate now")
    command("doctor", Admin.doctor, "look at all that the service needs, and say what to do")
    verify = command(
        "verify", Admin.verify, "whether a label's TLS ends at its hidden server, and nowhere before"
    )
    verify.add_argument("label", type=_label, metavar="LABEL")
    known = verify.add_mutually_exclusive_group(required=True)
    known.add_argument(
        "--pin", type=_digest, metavar="SHA256", help="of the hidden server's certificate, in hex"
    )
    known.add_argument(
        "--certificate", type=Path, metavar="FILE", help="the hidden server's certificate, in PEM"
    )
    web = command("web", Admin.web, "the page for browsers, on this machine alone, until Ctrl-C")
    web.add_argument("--port", type=_port, metavar="N", default=8893, help="default: 8893")
    for name in ("revoke", "remove", "disable"):
        commands.choices[name].add_argument(
            "--keep-live", action="store_true", help="let live pairs go on; by default they are ended"
        )
    return parser


def _label(text: str) -> str:
    try:
        return names.label(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _uuid(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text.lower()):
        raise argparse.ArgumentTypeError(f"{text!r} is no UUID")
    return text.lower()


def _digest(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", plain := text.replace(":", "").lower()):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no SHA-256: 64 hexadecimal digits, with or without colons"
        )
    return plain


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number (1-65535)")
    return int(text)


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def _period(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds (1-99999)")
    return int(text)


Answer = tuple[Any, str]  # the same for programs (--json) and for people


class Unsound(Exception):
    """What was looked at is not as it should be: an Answer all the same, and exit code 1."""


def init(wanted: argparse.Namespace) -> Answer:
    """Make all that the service needs to start, or leave everything as it was."""
    path = Path(wanted.config)
    text = _first_ini(wanted)
    settings = config.parse(text, path)
    owner = _owner(settings)
    state = (settings.certificate, settings.key, settings.database)
    for file in (path, *state):
        if os.path.lexists(file):
            raise Refused(
                f"{file} exists: init writes over nothing; move it away, or go on with what is there"
            )
    make_folder(path.parent, None)
    with _written(path, text, force=False, mode=0o644):  # first, so that of two inits one is refused
        try:
            make_cert.make(make_cert.plan_for(settings), renew=False, force=False)
            make_folder(settings.database.parent, owner)
            Book(settings.database, busy_ms=BUSY_MS, synchronous="FULL", owner=owner).close()
        except BaseException:
            for file in state:
                file.unlink(missing_ok=True)
            raise
    fingerprint = make_cert.fingerprint(settings.certificate.read_text())
    ports = [str(settings.port)]
    ports += [f"{r.start}-{r.stop - 1}" if len(r) > 1 else str(r.start) for r in settings.ports]
    records = _dns_records(settings)
    paths = zip(("config", "certificate", "key", "database"), (path, *state), strict=True)
    document: dict[str, Any] = {name: str(file.absolute()) for name, file in paths}
    document |= {"fingerprint": fingerprint, "dns": records, "ports": ports}
    option = "" if wanted.config == "taas.ini" else f"-c {wanted.config} "
    return document, "\n".join(
        [f"Wrote {path}, {', '.join(map(str, state))}.", f"SHA-256 fingerprint: {fingerprint}"]
        + ["", "DNS records to create:", *(f"    {name}.  IN {kind} {to}" for name, kind, to in records)]
        + ["", "TCP ports to open, here and in the cloud's firewall:", f"    {', '.join(ports)}", "", "Then:"]
        + [f"    {called('admin')} {option}add home", f"    {called('taas')} {path}"]
        + ["and on the hidden server, with home.agent.ini from here:"]
        + [f"    {called('agent')} home.agent.ini --to 127.0.0.1:443"]
    )


def _first_ini(wanted: argparse.Namespace) -> str:
    values = {
        "public": wanted.public,
        "registrar": wanted.registrar or f"registrar.{wanted.domain}",  # the labels' DNS record covers it
        "servers": wanted.domain,
        "port": wanted.port,
        "ports": wanted.ports,
        "user": wanted.user,
    }
    if wanted.state:
        folder = Path(wanted.state).absolute()
        values |= {"certificate": folder / "registrar.crt", "key": folder / "registrar.key"}
        values |= {"database": folder / "taas.db"}
    head = (
        "# Written by taas_admin.py init; taas.ini.example explains these options, and all others.\n[taas]\n"
    )
    return head + "".join(f"{key} = {value}\n" for key, value in values.items() if value)


def _dns_records(settings: config.Config) -> list[tuple[str, str, str]]:
    """The (name, type, address) that clients look for."""
    wanted = [f"*.{settings.servers}"]
    if not settings.reserved_label:
        wanted.append(settings.registrar)
    if settings.location == "domain":
        wanted.append(settings.servers)
    return [(name, kind(address), address) for name in wanted for address in settings.public]


class Admin:
    """The subcommands.  Each raises before it has changed anything, or returns its Answer."""

    def __init__(self, settings: config.Config, owner: Owner | None) -> None:
        self._settings = settings
        self._owner = owner
        self._credentials = Credentials(settings, owner)

    def add(self, wanted: argparse.Namespace) -> Answer:
        def keep(file: AgentFile) -> contextlib.AbstractContextManager[str]:
            name = file.other_name if file.shared and not wanted.force else file.name
            return _kept(Path(name), file.content, wanted.force)

        document = self._credentials.add(
            wanted.labels,
            wanted.format,
            keep,
            id=wanted.id,
            port=wanted.port,
            mode=wanted.mode,
            digits=wanted.digits,
            period=wanted.period,
            algorithm=wanted.algorithm,
        )
        return document, f"Added {in_words(document)}.\n{self._next_steps(document)}"

    def entries(self, wanted: argparse.Namespace) -> Answer:
        documents = self._credentials.all()
        return documents, "\n".join(map(in_words, documents)) or "No credentials yet: add LABEL makes one."

    def show(self, wanted: argparse.Namespace) -> Answer:
        documents = self._credentials.with_secret(wanted.what)
        pages = ("\n".join(f"{key:<10} {_plain(d[key])}" for key in d) for d in documents)
        return documents, "\n\n".join(pages)

    def grant(self, wanted: argparse.Namespace) -> Answer:
        if wanted.host:
            return _hosts(wanted.what, self._credentials.grant_hosts(wanted.what, wanted.host))
        document = self._credentials.grant(wanted.what, wanted.labels)
        text = f"Granted: {in_words(document)}.\nIts agent registers the `labels` of its agent file."
        return document, text

    def revoke(self, wanted: argparse.Namespace) -> Answer:
        if wanted.host:
            return _hosts(wanted.what, self._credentials.revoke_hosts(wanted.what, wanted.host))
        document = self._credentials.revoke(wanted.what, wanted.labels, wanted.keep_live)
        return document, f"Revoked; it keeps: {in_words(document)}."

    def set(self, wanted: argparse.Namespace) -> Answer:
        self._credentials.set_mode(wanted.label, wanted.mode)
        return {"label": wanted.label, "mode": wanted.mode}, f"{wanted.label}: {wanted.mode}."

    def remove(self, wanted: argparse.Namespace) -> Answer:
        id = self._credentials.remove(wanted.what, wanted.keep_live)
        return {"id": id, "removed": True}, f"Removed ID {id}."

    def rotate(self, wanted: argparse.Namespace) -> Answer:
        def keep(file: AgentFile) -> contextlib.AbstractContextManager[str]:
            taken = file.shared or (Path(file.name).exists() and not wanted.force)
            return _kept(Path(file.other_name if taken else file.name), file.content, wanted.force)

        document = self._credentials.rotate(wanted.what, wanted.format, keep, wanted.keep_live)
        return document, f"New secret for {in_words(document)}.\n{self._next_steps(document)}"

    def disable(self, wanted: argparse.Namespace) -> Answer:
        document = self._credentials.set_enabled(wanted.what, False, wanted.keep_live)
        return document, f"Disabled: {in_words(document)}."

    def enable(self, wanted: argparse.Namespace) -> Answer:
        document = self._credentials.set_enabled(wanted.what, True)
        return document, f"Enabled: {in_words(document)}."

    def backup(self, wanted: argparse.Namespace) -> Answer:
        database, file = self._settings.database, wanted.file
        if os.path.lexists(file) and not wanted.force:
            raise Refused(f"{file} exists: move it away, or write over it with --force")
        with _copied(database, file, live=True) as (new, version, count):
            if wanted.force:
                new.replace(file)
            else:
                os.link(new, file)  # unlike a rename it writes over nothing
        document = {"file": str(file.absolute()), "credentials": count, "schema": version}
        return document, f"Wrote {file}: {count} credentials (schema version {version}), with their secrets."

    def restore(self, wanted: argparse.Namespace) -> Answer:
        database, file = self._settings.database, wanted.file
        if file.exists() and database.exists() and file.samefile(database):
            raise Refused(f"{file} is the database itself")
        make_folder(database.parent, self._owner)
        with _copied(file, database, live=False) as (new, version, count):
            if version > len(MIGRATIONS):
                known = f"newer than the {len(MIGRATIONS)} that this version of TAAS knows: use a newer TAAS"
                raise Refused(f"{file} has schema version {version}, {known}")
            Book(new, busy_ms=BUSY_MS, synchronous="FULL").close()  # an older one is brought up to date
            was = database.stat() if database.exists() else None
            if owner := self._owner or (was and os.geteuid() == 0 and (was.st_uid, was.st_gid)) or None:
                os.chown(new, *owner)
            _put_in_place(new, database)
        with self._credentials.book():
            pass  # in a folder that is root's this leaves the files beside it that the service can't make
        document = {"file": str(file.absolute()), "credentials": count, "schema": version}
        said = f"Restored {count} credentials from {file} (schema version {version})."
        return document, f"{said}\nA running service follows within two seconds."

    def status(self, wanted: argparse.Namespace) -> Answer:
        return self._ask(Live.status)

    def pairs(self, wanted: argparse.Namespace) -> Answer:
        return self._ask(Live.pairs)

    def pairings(self, wanted: argparse.Namespace) -> Answer:
        return self._ask(lambda live: live.pairings(wanted.label))

    def kick(self, wanted: argparse.Namespace) -> Answer:
        return self._ask(lambda live: live.kick(wanted.pair, wanted.label))

    def drain(self, wanted: argparse.Namespace) -> Answer:
        return self._ask(Live.drain)

    def reload(self, wanted: argparse.Namespace) -> Answer:
        return self._ask(Live.reload)

    def _ask(self, question: Callable[[Live], Answer]) -> Answer:
        if self._settings.socket is None:
            raise Silent(f"{self._settings.path}: [admin] socket is empty: the service can't be asked")
        try:
            return question(Live(Steer(self._settings.socket)))
        except (KeyError, TypeError, AttributeError):
            raise Silent(f"what answers at {self._settings.socket} is no service of this version") from None

    def doctor(self, wanted: argparse.Namespace) -> Answer:
        findings = list(Doctor(self._settings, self._owner).findings())
        document = [dict(zip(("subject", "verdict", "words"), found, strict=True)) for found in findings]
        text = "\n".join(f"{verdict:5}{subject:14}{words}" for subject, verdict, words in findings)
        if any(verdict == FIX for _, verdict, _ in findings):
            raise Unsound(document, text)
        return document, text

    def verify(self, wanted: argparse.Namespace) -> Answer:
        """Needs no more of taas.ini than public, port and servers, so that it runs anywhere."""
        pin = wanted.pin or sha256_of(wanted.certificate)
        name, address = f"{wanted.label}.{self._settings.servers}", self._settings.public[0]
        port = self._settings.port
        try:
            seen, answer = meet(address, port, name)
            location = answer.headers.get("Location", "") if answer else ""
            if answer and location and answer.status == 503:  # this is how the service says it
                raise Refused(f"nothing is connected under {wanted.label} just now: start its agent")
            if answer and answer.status == 307 and (q := urlsplit(location).port):  # says where the relay is
                port = q
                seen, _ = meet(address, port, name)
        except (OSError, ValueError) as error:
            why = "nothing is connected under it" if "UNRECOGNIZED_NAME" in str(error) else error
            raise Refused(f"{name} at {names.host_port(address, port)}: {why}") from None
        document = {"label": wanted.label, "port": port, "seen": seen, "pin": pin, "verified": seen == pin}
        if seen != pin:
            why = "somebody in between ends TLS, or the hidden server has another certificate by now"
            raise Unsound(document, f"{name}:{port} is NOT verified: {why}.\nseen   {seen}\nwanted {pin}")
        return document, f"{name}:{port} is verified: TLS ends where the key to this certificate is.\n{seen}"

    def web(self, wanted: argparse.Namespace) -> Answer:
        from taasadmin.page import serve  # what no other command needs

        def say(link: str) -> None:
            each = json.dumps({"url": link}) if wanted.json else f"For one browser, once: {link}"
            _say(each)

        serve(self._settings, self._owner, wanted.port, say)
        return None, ""

    def _next_steps(self, document: dict[str, Any]) -> str:
        file = os.path.relpath(document["file"])
        run = f", and run there\n    {agent_command(file)}\n" if file.endswith(".ini") else ""
        return (
            f"Wrote {file}: it holds the secret.  Copy it to the hidden server"
            + (run or ", for the original client.\n")
            + f"Visitors then come to\n    {self._credentials.visitors_come_to(document['labels'][0])}"
        )


def _hosts(label: str, hosts: tuple[str, ...]) -> Answer:
    return {"label": label, "hosts": list(hosts)}, f"Domains of {label}: {', '.join(hosts) or 'none'}."


@contextlib.contextmanager
def _kept(path: Path, content: str, force: bool) -> Iterator[str]:
    with _written(path, content, force):
        yield str(path.absolute())


@contextlib.contextmanager
def _written(path: Path, content: str, force: bool, mode: int = 0o600) -> Iterator[None]:
    """PATH holds CONTENT, as a rule readable for us alone, if the body succeeds; else it is as it was."""
    new = path.with_name(f".{path.name}.{os.getpid()}") if force else path
    try:
        descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        raise Refused(f"{new} exists: move it away, or write over it with --force") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
            os.fchmod(descriptor, mode)
        yield
    except BaseException:
        new.unlink()
        raise
    new.replace(path)


@contextlib.contextmanager
def _copied(source: Path, place: Path, live: bool) -> Iterator[tuple[Path, int, int]]:
    """A sound copy of SOURCE, beside PLACE and ours alone, its schema version and count of credentials.

    Unless the body puts it in place it is gone afterwards.  LIVE: others may be writing to SOURCE.
    """
    new = place.with_name(f".{place.name}.{os.getpid()}")
    if not source.exists():
        raise Refused(f"there is no {source}")
    try:
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            yield new, *_copy(source, new, live)
        except sqlite3.Error as error:
            raise Refused(f"{source} can't be used: {error}") from None
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            _beside(new, suffix).unlink(missing_ok=True)


def _copy(source: Path, target: Path, live: bool) -> tuple[int, int]:
    # A backup that lies in a folder of somebody else's can't be given the -shm that sqlite wants to read it.
    how = "?mode=ro" + ("" if live or _beside(source, "-wal").exists() else "&immutable=1")
    with (
        contextlib.closing(sqlite3.connect(uri_of(source, how), uri=True)) as old,
        contextlib.closing(sqlite3.connect(target, isolation_level=None)) as new,
    ):
        old.backup(new)
        new.execute("PRAGMA journal_mode = DELETE")  # one file
        if (complaint := new.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            raise Refused(f"{source} is damaged: {complaint}")
        version = new.execute("PRAGMA user_version").fetchone()[0]
        if not version or not new.execute("PRAGMA table_info(credentials)").fetchone():
            raise Refused(f"{source} is no database of TAAS")
        return version, new.execute("SELECT count(*) FROM credentials").fetchone()[0]


def _put_in_place(new: Path, database: Path) -> None:
    """Replace DATABASE, so that neither what stands in its -wal nor a reader of the old one meets the new."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(sqlite3.Error):  # missing or broken, which may be why it is replaced
            connected = sqlite3.connect(uri_of(database, "?mode=rw"), uri=True, isolation_level=None)
            old = stack.enter_context(contextlib.closing(connected))
            old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            old.execute("BEGIN IMMEDIATE")  # no command may change what is about to go
        for suffix in ("-wal", "-shm"):
            _beside(database, suffix).unlink(missing_ok=True)
        new.replace(database)


def _beside(database: Path, suffix: str) -> Path:
    return database.with_name(database.name + suffix)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(main())
