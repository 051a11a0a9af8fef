"""From taas.ini to what a service needs before it can serve: certificates, database, log, the user to become.

Knows nothing of connections.
"""

import contextlib
import os
import ssl
from pathlib import Path

from taaslib.config import Config, ConfigError
from taaslib.journal import Journal
from taaslib.ownership import Owner, acting_as, owner_of_files, uid_gid
from taaslib.pump import can_splice
from taaslib.store import Store, StoreError

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_BUSY_MS = 50  # what cannot be had from the database in that time is a 503

class CannotStart(ConfigError):
    """taas.ini is good, and the service can't begin all the same."""

def check(config: Config) -> dict[str, ssl.SSLContext]:
    """All that can be known before a port opens.  Raises ConfigError, CannotStart."""
    contexts = tls_contexts(config)
    if config.pump == "splice" and not can_splice:
        why = "this system or Python has no splice; use auto or ring"
        raise ConfigError(config.path, "[taas] pump", why)
    if not config.database.parent.is_dir():
        raise ConfigError(config.path, "[taas] database", f"no folder {config.database.parent}")
    if config.database.exists():
        open_store(config).close()
    log = config.log.file
    if log and (log.is_dir() or not os.access(log if log.exists() else log.parent, os.W_OK)):
        raise ConfigError(config.path, "[log] file", f"can't write {log}")
    return contexts

def tls_contexts(config: Config) -> dict[str, ssl.SSLContext]:
    """The front door's TLS by server name, "" being all but the [tls HOST] ones.  Raises ConfigError.

    The files are read as `user`, since that is who will read them when they are renewed.
    """
    with acting_as(config.user, owner(config)):
        contexts = {"": _tls_context(config, "taas", config.certificate, config.key)}
        for host, files in config.tls.items():
            contexts[host] = _tls_context(config, f"tls {host}", *files)
    return contexts

def certificate_files(config: Config) -> list[tuple[int, int, int]]:
    """What tells a renewed file from the one before, looked at by path; nothing while one is missing."""
    files = [config.certificate, config.key, *(file for pair in config.tls.values() for file in pair)]
    try:
        return [(s.st_mtime_ns, s.st_ino, s.st_size) for s in map(Path.stat, files)]
    except OSError:
        return []

def _tls_context(config: Config, section: str, certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and up, ALPN http/1.1, with the files that SECTION names."""
    for name, file in (("certificate", certificate), ("key", key)):
        try:
            file.open("rb").close()
        except OSError as error:
            hint = ""
            if isinstance(error, FileNotFoundError):
                hint = "; make_cert.py, or taas.pyz make-cert, makes one"
            if isinstance(error, PermissionError) and config.user:
                hint = f" for user {config.user}, who will read it when it is renewed"
            why = f"{file}: {error.strerror}{hint}"
            raise ConfigError(config.path, f"[{section}] {name}", why) from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.num_tickets = 0  # OP_NO_TICKET is for TLS 1.2; two tickets cost 15% of a handshake
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        why = "the key does not belong to the certificate" if "MISMATCH" in str(error) else str(error)
        where = f"[{section}] certificate, key"
        raise ConfigError(config.path, where, f"{certificate}, {key}: {why}") from None
    return context

def _no_password() -> str:
    raise ValueError("the key is encrypted; the service has nobody to ask for its password")

def raise_descriptor_limit() -> None:
    """As many descriptors as the system lets us have: a live pair needs two, and more while it stalls."""
    if resource:
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

def configure_journal(journal: Journal, config: Config) -> None:
    """Let JOURNAL write as CONFIG says; if it can't, it goes on as before.  Raises CannotStart."""
    log = config.log
    try:
        journal.configure(log.file, log.format, log.level, log.lines_per_minute)
        if log.file and (whose := owner(config)):
            os.chown(log.file, *whose, follow_symlinks=False)
    except OSError as error:
        raise CannotStart(config.path, "[log] file", f"{log.file}: {error.strerror}") from None

def open_store(config: Config) -> Store:
    try:
        return Store(config.database, busy_ms=_BUSY_MS, synchronous="NORMAL", owner=owner(config))
    except StoreError as error:
        raise CannotStart(config.path, "[taas] database", error) from None

def owner(config: Config) -> Owner | None:
    """Whom root leaves the service's files to.  Raises ConfigError."""
    try:
        if config.user:
            uid_gid(config.user)  # also where we can't become that user
        return owner_of_files(config.user)
    except LookupError as error:
        raise ConfigError(config.path, "[taas] user", error) from None

def drop_privileges(config: Config) -> None:
    """Become `user` for good.  Raises ConfigError, CannotStart."""
    whose = owner(config)
    if not whose:
        if config.user and uid_gid(config.user)[0] != os.geteuid():
            raise CannotStart(config.path, "[taas] user", f"only root can become {config.user}")
        return
    open_store(config).close()  # creates it and leaves it to the user
    uid, gid = whose
    os.initgroups(config.user, gid)
    os.setgid(gid)
    os.setuid(uid)
    if not os.access(config.database, os.R_OK | os.W_OK):
        why = f"{config.user} can't reach or write {config.database}; give it a folder of its own, as in:"
        where = "[taas] database"
        raise CannotStart(config.path, where, f"{why} install -d -o {config.user} /var/lib/taas")
