#!/usr/bin/env python3
"""Makes the registrar's self-signed certificate with openssl(1), under the names that taas.ini gives.

Knows nothing of the service, and nothing of certificates that somebody else signs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from taaslib import config
from taaslib.ownership import Owner, make_folder, owner_of_files

DAYS = 3650
LONGEST_COMMON_NAME = 64  # RFC 5280, upper bound of X.520's common name

# Not a CA: who imports it into a browser trusts these names and nothing else that its key might sign.
_REQUEST = """\
[req]
prompt = no
distinguished_name = subject
x509_extensions = extensions
[subject]
CN = {common_name}
[extensions]
subjectAltName = {alternates}
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
"""


class Refused(Exception):
    """It can't be done; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """Which files are made for whom."""

    certificate: Path
    key: Path
    addresses: tuple[str, ...]
    names: tuple[str, ...]  # the first one is the subject
    owner: Owner | None


def main(argv: list[str] | None = None) -> int:
    """0: made; 1: refused; 2: the arguments or taas.ini are no good."""
    parser = argparse.ArgumentParser(prog="make_cert.py", description="Make a self-signed certificate.")
    parser.add_argument("ini", nargs="?", type=Path, metavar="taas.ini", help="default: ./taas.ini, if there")
    parser.add_argument("--renew", action="store_true", help="a new certificate for the key that is there")
    parser.add_argument("--force", action="store_true", help="make both anew where they exist")
    arguments = parser.parse_args(argv)
    ini: Path | None = arguments.ini or Path("taas.ini")
    if not arguments.ini and not Path("taas.ini").exists():
        ini = None
        print("There is no taas.ini here: this certificate is good for localhost and 127.0.0.1 only.")
    try:
        plan = _plan(ini)
        make(plan, renew=arguments.renew, force=arguments.force)
    except (Refused, config.ConfigError, OSError) as error:
        print(f"make_cert.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, config.ConfigError) else 1
    print(f"Made {plan.certificate} (for {', '.join(plan.addresses + plan.names)}; {DAYS // 365} years).")
    print(f"{'Kept' if arguments.renew else 'Made'} {plan.key}.")
    print(f"SHA-256 fingerprint: {fingerprint(plan.certificate.read_text())}")
    if arguments.renew:
        print("Agent files hold the old certificate: put the new one into them before the service takes it.")
    return 0


def make(plan: Plan, *, renew: bool, force: bool) -> None:
    """Make the files.  Raises Refused or OSError; then nothing has changed."""
    if renew and not plan.key.is_file():
        raise Refused(f"{plan.key} is missing: there is no key to keep; leave --renew out")
    for path in () if renew or force else (plan.certificate, plan.key):
        if path.exists():
            raise Refused(f"{path} exists: --renew makes a new certificate for the key, --force both")
    for path in (plan.key, plan.certificate):
        make_folder(path.parent, plan.owner)
    with tempfile.TemporaryDirectory(prefix=".make_cert-", dir=plan.key.parent) as folder:  # mode 0700
        key = plan.key if renew else Path(folder, "key")
        certificate = Path(folder, "certificate")
        _openssl(plan, Path(folder, "request"), key, certificate, renew)
        if not renew:
            _put(plan.key, key.read_bytes(), 0o600, plan.owner)
        _put(plan.certificate, certificate.read_bytes(), 0o644, plan.owner)


def fingerprint(pem: str) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest().hex(":").upper()


def _plan(ini: Path | None) -> Plan:
    if ini is None:
        here = Path("registrar.crt"), Path("registrar.key")
        return Plan(*here, ("127.0.0.1",), ("localhost", "*.localhost"), None)
    return plan_for(config.load(ini))


def plan_for(c: config.Config) -> Plan:
    """The certificate that taas.ini asks for.  Raises config.ConfigError."""
    names = tuple(dict.fromkeys((c.registrar, c.servers, f"*.{c.servers}")))
    try:
        owner = owner_of_files(c.user)
    except LookupError as error:
        raise config.ConfigError(c.path, "[taas] user", error) from None
    return Plan(c.certificate, c.key, c.public, names, owner)


def _openssl(plan: Plan, request: Path, key: Path, certificate: Path, renew: bool) -> None:
    if not shutil.which("openssl"):
        raise Refused("openssl is missing: apt install openssl (or your system's equivalent)")
    alternates = [f"IP:{address}" for address in plan.addresses] + [f"DNS:{name}" for name in plan.names]
    common_name = plan.names[0] if len(plan.names[0]) <= LONGEST_COMMON_NAME else "taas-registrar"
    request.write_text(_REQUEST.format(common_name=common_name, alternates=",".join(alternates)))
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key)]
    done = subprocess.run(
        ["openssl", "req", "-x509", "-sha256", "-days", str(DAYS), "-config", str(request)]
        + (["-key", str(key)] if renew else new_key)
        + ["-out", str(certificate)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise Refused(f"openssl req failed ({done.returncode}): {reason}")


def _put(path: Path, content: bytes, mode: int, owner: Owner | None) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, mode)
            if owner:
                os.fchown(descriptor, *owner)
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


if __name__ == "__main__":
    sys.exit(main())
