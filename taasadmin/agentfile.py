"""A credential -> the text of the file that its hidden server is given.

Knows neither the database nor where the file is put.
"""

import json
import ssl
from collections.abc import Iterator
from typing import Any

from taasadmin.book import Entry, Refused
from taasadmin.doctor import PEM
from taasadmin.wording import called
from taaslib.config import Config

SUFFIX = {"ini": ".agent.ini", "js": ".js"}  # js: for the original client of 2014


def agent_file(settings: Config, entry: Entry, format: str) -> str:
    """What FORMAT ("ini" or "js") says of ENTRY, its secret included.  Raises Refused, OSError."""
    pem = _certificate(settings)
    pin = pem if _is_self_signed(pem) else None
    return (_agent_js if format == "js" else _agent_ini)(settings, entry, pin)


def file_names(entry: Entry, format: str) -> tuple[str, str]:
    """The plain name of ENTRY's file, and the one for where another ID has the same label."""
    label, suffix = entry.labels[0], SUFFIX[format]
    return f"{label}{suffix}", f"{label}-{entry.credential.id[:8]}{suffix}"


def _certificate(settings: Config) -> str:
    path = settings.certificate
    try:
        pem = PEM.search(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        remedy = f"run {called('make-cert')}, or put yours there"
        raise Refused(f"certificate {path} is missing: {remedy}") from None
    if not pem:
        raise Refused(f"certificate {path} holds no PEM certificate")
    return pem[0].replace("\r", "")


def _agent_ini(s: Config, entry: Entry, pin: str | None) -> str:
    c = entry.credential
    lines = [
        "[registrar]",
        f"name = {s.registrar}",
        f"port = {s.port}",
        f"address = {', '.join(s.public)}",
        f"trust = {'pin' if pin else 'system'}",
    ]
    if pin:
        lines += ["certificate =", *(f"    {line}" for line in pin.splitlines())]
    lines += [
        "",
        "[credential]",
        f"id = {c.id}",
        f"secret = {c.secret}",
        f"digits = {c.digits}",
        f"period = {c.period}",
        f"algorithm = {c.algorithm}",
        f"labels = {', '.join(entry.labels)}",
        f"servers = {s.servers}",
    ]
    return "\n".join(lines) + "\n"


def _agent_js(s: Config, entry: Entry, pin: str | None) -> str:
    c = entry.credential
    if c.algorithm != "SHA1":
        raise Refused(f"the original client knows SHA1 only, not {c.algorithm}")
    server: dict[str, Any] = {"hostname": s.registrar, "port": s.port}
    if pin:  # else the client's own list of authorities is the right one
        server["ca"] = {"type": "Buffer", "data": list(f"{pin}\n".encode())}
    params = {
        "base32": c.secret,
        "step": c.period,
        "length": c.digits,
        "issuer": s.servers,
        "uuid": [c.id],
        "labels": list(entry.labels),
        "server": server,
    }
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in params.items())
    return f"exports.params = {{\n{lines}\n}}\n"


def _is_self_signed(pem: str) -> bool:
    """Whether issuer and subject are the same (RFC 5280 4.1; the ssl module does not tell)."""
    try:
        (_, certificate), *_ = _elements(ssl.PEM_cert_to_DER_cert(pem))
        (_, to_be_signed), *_ = _elements(certificate)
        fields = list(_elements(to_be_signed))
        has_version = fields[0][0] == 0xA0  # only version 1 does not say so
        _serial, _algorithm, issuer, _validity, subject = fields[has_version : has_version + 5]
    except (IndexError, ValueError):
        raise Refused("the certificate is damaged") from None
    return issuer == subject


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """The tag and the content of each element in DER."""
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:
            octets = length & 0x7F
            length = int.from_bytes(der[at : at + octets], "big")
            at += octets
        yield tag, der[at : at + length]
        at += length
