"""What is done with one fuzzed input: each target feeds it to a reader of network octets and checks promises.

A target takes octets, yields a word for each thing that happened ("a request", "no name", ...), and raises
where a promise is broken.  `must` names the words that a campaign has to see, so that one that tests nothing
fails.  Somebody else reads the same octets: OpenSSL, h11, or a few lines that share no code with ours.

Knows nothing of fuzzing: tools/fuzz.py brings new inputs, tests/test_corpus.py the known ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import math
import random
import ssl
import string
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import h11

import taas_agent
from taaslib import authorization, clienthello, config, http1, names, proxy2, redirector
from taaslib.limits import Limits

REGISTRAR, SERVERS = "registrar.taas.example.com", "taas.example.com"


@dataclass(frozen=True)
class Target:
    run: Callable[[bytes], Iterator[str]]
    must: tuple[str, ...]


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """DATA octet by octet if it is short, and cut at some places that depend on DATA alone."""
    if len(data) <= 50:
        yield [data[at : at + 1] for at in range(len(data))]
    source = random.Random(data)
    places = sorted(source.randint(0, len(data)) for _ in range(source.choice((1, 2, 20))))
    yield [data[a:b] for a, b in pairwise([0, *places, len(data)])]


# ---- a request's head ------------------------------------------------------------------------------------


def read_http1(data: bytes) -> Iterator[str]:
    for max_head in (16 * 1024, 64):
        whole = _verdict([data], max_head)
        for pieces in cuts(data):
            assert _verdict(pieces, max_head) == whole, "a cut changes what is understood"
        if not isinstance(whole, tuple):
            yield "more is needed" if whole is None else str(whole)
            continue
        request, rest = whole
        assert request.target.startswith("/")
        assert data.endswith(b"\r\n\r\n" + rest)
        yield "a request"
        yield from ["octets behind the head"] * bool(rest)
        yield from _what_h11_says(data, request, rest)


def _verdict(pieces: list[bytes], max_head: int) -> tuple[http1.Request, bytes] | int | None:
    """The request and what follows it, the status of the refusal, or None: it is not whole yet."""
    parser = http1.RequestParser(max_head)
    for number, piece in enumerate(pieces):
        try:
            request = parser.feed(piece)
        except http1.BadRequest as refusal:
            return refusal.status
        if request:
            return request, parser.rest + b"".join(pieces[number + 1 :])
    return None


def _what_h11_says(data: bytes, ours: http1.Request, rest: bytes) -> Iterator[str]:
    """Two readers of one head who differ are how requests are smuggled (RFC 9112 11.2); it may refuse."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    try:
        theirs = connection.next_event()
    except h11.RemoteProtocolError:
        yield "h11 refuses"
        return
    assert isinstance(theirs, h11.Request), f"h11 sees {theirs!r}"
    assert theirs.method.decode() == ours.method
    target = theirs.target.decode("latin-1")
    if not target.startswith("/"):
        yield "an absolute target"
        scheme, _, target = target.partition("://")
        assert scheme.lower() in ("http", "https") and target.startswith(ours.authority)
        target = target[len(ours.authority) :]
        target = target if target.startswith("/") else "/" + target
    assert target == ours.target
    known = [name for name, _ in theirs.headers]
    assert all(known.count(name) <= 1 for name in (b"authorization", b"content-length", b"transfer-encoding"))
    assert known.count(b"host") == 1
    fields: dict[str, str] = {}
    for name, value in ((name.decode(), value.decode("latin-1")) for name, value in theirs.headers):
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    for seen in (fields, mine := dict(ours.fields)):  # h11 gives this one in lower case
        seen["transfer-encoding"] = seen.get("transfer-encoding", "").lower()
    assert fields == mine
    assert connection.trailing_data[0] == rest
    yield "h11 sees the same request"


# ---- an answer, out of a request -------------------------------------------------------------------------


def answer_redirector(data: bytes) -> Iterator[str]:
    """Of what the visitor sent only host and target come back, in Location alone, and add no line."""
    try:
        request = http1.RequestParser().feed(data)
        label = names.label_of(names.host_of(request.authority), SERVERS) if request else None
    except (http1.BadRequest, ValueError):
        request = label = None
    if request is None or label is None:
        yield "nobody to redirect"
        return
    ours = redirector.Redirector(
        mode=lambda label: "passthrough" if label == "own" else "redirect",
        served=lambda label: label == "home",
        port_q=lambda label: 61001,
        advertise=lambda peer: "203.0.113.5",
        servers=SERVERS,
        location="label",
        limits=Limits(),
    )
    answer = ours.answer(request, label, names.Peer("192.0.2.1", 1, "203.0.113.5"), None)
    response = answer.response.to_bytes(0.0)
    head, _, body = response.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines)
    assert len(fields) == len(lines) and len(body) == int(fields[b"Content-Length"])
    assert b"\r" not in b"".join(lines) and b"\n" not in b"".join(lines)
    location = fields.pop(b"Location", b"").decode("latin-1")
    where = {307: f"home.{SERVERS}:61001", 503: request.authority}.get(answer.response.status)
    assert location == (f"https://{where}{request.target}" if where else "")
    expected = {b"Date", b"Connection", b"Content-Type", b"Content-Length", b"X-Content-Type-Options"}
    expected |= {b"Cache-Control"} if where else set()
    assert set(fields) == expected | ({b"Retry-After"} if answer.response.status == 503 else set())
    yield status.split(b" ")[1].decode()


# ---- the server name in a ClientHello --------------------------------------------------------------------


def read_clienthello(data: bytes) -> Iterator[str]:
    """The input as it is; and as what stands within a hello, where a mutation keeps the lengths around it."""
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\4\x13\1\xc0\x2b" + b"\1\0"
    groups = bytes.fromhex("000a00040002001d 000d00040002 0403")  # X25519; ECDSA with P-256
    yield from _hello(data)
    if len(data) < 16_000:  # it fits into one record
        name = _vector(2, b"\0" + _vector(2, data))
        for extensions in (data, b"\0\0" + _vector(2, data), b"\0\0" + _vector(2, name)):
            yield from _hello(_record(body + _vector(2, groups + extensions)))
        yield from _hello(_record(data))


def _record(body: bytes) -> bytes:
    return b"\x16\3\1" + _vector(2, b"\1" + _vector(3, body))


def _vector(size: int, content: bytes) -> bytes:
    return len(content).to_bytes(size, "big") + content


def _hello(data: bytes) -> Iterator[str]:
    """Whatever name OpenSSL sees, ours is the same or none; if it sees none, there is none for us either."""
    ours = _server_name([data])
    for pieces in cuts(data):
        assert _server_name(pieces) == ours, "a cut changes the name"
    yield "more is needed" if ours is None else "a name" if ours else "no name"
    if ours:
        entries = (b"\0" + _vector(2, name.encode()) for name in (ours, f"{ours}."))  # type host_name
        assert any(entry.lower() in _fragments(data).lower() for entry in entries), "nobody sent this name"
    theirs = _OPENSSL.server_name(data)
    if theirs is None:
        yield "OpenSSL refuses"
    elif ours == theirs.lower().removesuffix("."):
        yield "OpenSSL sees the same name" if ours else "OpenSSL sees no name either"
    else:
        assert ours == "", f"OpenSSL sees {theirs!r}, we {ours!r}"
        yield "OpenSSL alone sees a name"


def _server_name(pieces: list[bytes]) -> str | None:
    reader = clienthello.HelloReader()
    for piece in pieces:
        if (name := reader.feed(piece)) is not None:
            return name
    return None


def _fragments(data: bytes) -> bytes:
    """What DATA's records carry."""
    fragments, at = b"", 0
    while at < len(data):
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        fragments += data[at + 5 : at + 5 + length]
        at += 5 + length
    return fragments


class OpenSsl:
    """A server that looks at the name it is asked for, and hangs up."""

    def __init__(self) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.sni_callback = self._seen
        self._name: str | None = None

    def server_name(self, data: bytes) -> str | None:
        """The name in the hello that DATA begins with, "" when it has none; None: no hello, or not whole."""
        self._name = None
        incoming = ssl.MemoryBIO()
        incoming.write(data)
        # A name outside ASCII never reaches the callback: ssl reports it where nobody can catch it.
        before, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            with contextlib.suppress(ssl.SSLError):
                self._context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
        finally:
            sys.unraisablehook = before
        return self._name

    def _seen(self, tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int:
        self._name = name or ""
        return ssl.AlertDescription.ALERT_DESCRIPTION_ACCESS_DENIED


_OPENSSL = OpenSsl()


# ---- the TOTP header -------------------------------------------------------------------------------------


def read_authorization(data: bytes) -> Iterator[str]:
    value = data.decode("latin-1")
    ours = authorization.is_totp(value)
    assert ours == (value[:4].upper() == "TOTP" and value[4:5] in ("", " ", "\t"))
    if not ours:
        yield "another scheme"
        return
    parameters = _parameters(value[4:])
    try:
        claim = authorization.parse(value)
    except authorization.Malformed:
        assert not (parameters and parameters.get("username") and parameters.get("response"))
        yield "malformed"
        return
    assert parameters and (claim.id, claim.code) == (parameters["username"], parameters["response"])
    yield "a claim"
    step = authorization.matching_step(claim.code, authorization.NOBODY, 59.0)
    assert step == next((n for n in (2, 1, 0) if claim.code == _code(b"12345678901234567890", n)), None)
    yield "a wrong code" if step is None else "a right code"


def _parameters(text: str) -> dict[str, str] | None:
    """RFC 9110 11.2 and 5.6, one character at a time; None where it does not hold."""
    parameters: dict[str, str] = {}
    token = set(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~")
    at, comma = 0, True
    text += "\n"  # an end that is in no set

    def skip(among: str | set[str]) -> str:
        nonlocal at
        start = at
        while text[at] in among:
            at += 1
        return text[start:at]

    while True:
        comma = "," in skip(" \t,") or comma
        if at == len(text) - 1:
            return parameters
        name = skip(token).lower()
        skip(" \t")
        if not comma or not name or name in parameters or text[at] != "=":
            return None
        at += 1
        skip(" \t")
        value = skip(token)
        if not value:
            if text[at] != '"':
                return None
            at += 1
            while text[at] != '"':
                at += text[at] == "\\"
                if text[at] != "\t" and not ("\x20" <= text[at] <= "\xff" and text[at] != "\x7f"):
                    return None
                value += text[at]
                at += 1
            at += 1
        parameters[name] = value
        comma = False


def _code(secret: bytes, step: int) -> str:
    """RFC 6238 with SHA-1 and 6 digits."""
    digest = hmac.digest(secret, struct.pack(">Q", step), hashlib.sha1)
    (number,) = struct.unpack_from(">I", digest, digest[-1] & 15)
    return f"{(number & 0x7FFFFFFF) % 10**6:06}"


# ---- Host ------------------------------------------------------------------------------------------------


def read_names(data: bytes) -> Iterator[str]:
    text = data.decode("latin-1")
    host = _host(text)
    try:
        assert names.host_of(text) == host
    except ValueError:
        assert host is None, "a host was refused"
    if host is None:
        yield "no host"
    else:
        label = names.label_of(host, SERVERS)
        yield "a label's host" if label else "another host"
        below = host.removesuffix("." + SERVERS) if host.endswith("." + SERVERS) else ""
        assert (label or "") == below * _is_label(below)
        yield from ["an address"] * names.is_address(host)
    try:
        assert names.label(text) == text.lower() and _is_label(text.lower())
        yield "a label's text"
    except ValueError:
        assert not _is_label(text.lower()) or not text.isascii()
    with contextlib.suppress(UnicodeDecodeError):
        text = data.decode()
    try:
        own = names.own_host(text, REGISTRAR, SERVERS)
        assert own == names.own_host(own, REGISTRAR, SERVERS) == _host(own) and len(own) <= 253
        assert not f".{own}".endswith("." + SERVERS)
        yield "an own domain"
    except ValueError:
        yield "no own domain"


def _host(authority: str) -> str | None:
    """The host in AUTHORITY, by splitting and counting."""
    if authority.startswith("["):
        host, bracket, port = authority.partition("]")
        host, known = host[1:] + bracket, set(string.hexdigits + ":.")
    else:
        host, colon, port = authority.partition(":")
        host, port, known = host + "]", colon + port, set(string.ascii_letters + string.digits + "._-")
    number = port[1:] if port[:1] == ":" else ""
    if host == "]" or not host.endswith("]") or not set(host[:-1]) <= known:
        return None
    if port[:1] not in ("", ":") or len(number) > 5 or not set(number) <= set(string.digits):
        return None
    if int(number or "0") > 65535:
        return None
    name = f"[{host}" if authority.startswith("[") else host[:-1]
    return (name[:-1] if name.endswith(".") else name).lower()


def _is_label(text: str) -> bool:
    known = set(string.ascii_lowercase + string.digits + "-")
    return 0 < len(text) <= 63 and set(text) <= known and "-" not in (text[0], text[-1])


# ---- taas.ini --------------------------------------------------------------------------------------------

_ENOUGH = "[taas]\npublic = 192.0.2.1\nregistrar = registrar.taas.example.com\nservers = taas.example.com\n"


def read_config(data: bytes) -> Iterator[str]:
    """The text as it is, and behind what every taas.ini needs."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")  # as Path.read_text does
    for ini in (text, _ENOUGH + text):
        try:
            got = config.parse(ini, Path("/etc/taas/taas.ini"))
        except config.ConfigError as error:
            message = str(error)
            assert message.startswith("/etc/taas/taas.ini: ") and "\n" not in message
            yield "a complaint"
            yield from (word for word in ("unknown key", "unknown section", "missing") if word in message)
            continue
        yield "a config"
        yield from ["own domains"] * bool(got.tls)
        ports = [got.port, *([got.http_port] if got.http_port else [])]
        assert len(set(ports)) == len(ports)
        everything = [port for ports in got.ports for port in (ports[0], ports[-1])] + ports
        assert everything and all(1 <= port <= 65535 for port in everything)
        assert sum(map(len, got.ports)) == len(set().union(*got.ports)), "ranges overlap"
        for address in (*got.public, *got.address):
            assert str(ipaddress.ip_address(address)) == address
        assert 1 <= len(got.public) <= 2 and got.public_address(4) != got.public_address(6)
        for host in (got.registrar, got.servers, *got.tls):
            assert all(_is_label(part) for part in host.split(".")) and len(host) <= 253
        for file in (got.certificate, got.key, got.database, *(f for pair in got.tls.values() for f in pair)):
            assert "\n" not in str(file) and "\0" not in str(file)
        for name in got.limits.__slots__:
            value = getattr(got.limits, name)
            assert math.isfinite(value) and (value > 0 or (value == 0 and name == "idle")), name


# ---- the PROXY header ------------------------------------------------------------------------------------


def write_proxy2(data: bytes) -> Iterator[str]:
    """The input chooses who visits whom; what is written about it is read as the specification says."""
    parts = struct.unpack("!B16s16sHH63s", data[:100].ljust(100, b"\0"))
    family, source, local, port, local_port, letters = parts
    size = 16 if family & 1 else 4
    addresses = [str(ipaddress.ip_address(address[:size])) for address in (source, local)]
    alphabet = string.ascii_lowercase + string.digits + "-"
    label = "".join(alphabet[letter % len(alphabet)] for letter in letters.rstrip(b"\0")) or "a"
    header = proxy2.header(names.Peer(addresses[0], port, addresses[1], local_port), label)
    signature, version, kind, length = struct.unpack_from("!12sBBH", header)
    assert (signature.hex(), version) == ("0d0a0d0a000d0a515549540a", 0x21)
    assert kind == (0x21 if size == 16 else 0x11) and length == len(header) - 16
    *seen, seen_port, seen_local_port, tlv, tlv_length, seen_label = struct.unpack(
        f"!{size}s{size}sHHBH{len(label)}s", header[16:]
    )
    assert [str(ipaddress.ip_address(address)) for address in seen] == addresses
    assert (seen_port, seen_local_port) == (port, local_port)
    assert (tlv, tlv_length, seen_label.decode()) == (0xE0, len(label), label)
    yield "IPv6" if size == 16 else "IPv4"
    yield "a long label" if len(label) > 40 else "a short label"


# ---- what the agent hears from a registrar ---------------------------------------------------------------


def read_answer(data: bytes) -> Iterator[str]:
    whole, ended = _answer(data, False), _answer(data, True)
    yield whole if isinstance(whole, str) else "an answer"
    if isinstance(whole, taas_agent.Answer):
        assert 100 <= whole.status <= 999  # RFC 9110, 15: beyond 599 it is taken as a 5xx
        assert whole == ended, "its end changes an answer that was whole before"
        for seconds in (whole.when("date"), whole.when("retry-after"), whole.retry_after(1e9)):
            assert math.isfinite(seconds)
        assert whole.retry_after(1e9) >= 0
    elif isinstance(ended, taas_agent.Answer):
        assert whole == "more is needed"
        yield "an answer, at its end"
    if isinstance(ended, taas_agent.Answer):
        head, _, body = data.partition(b"\r\n\r\n")
        length = ended.headers.get("content-length", "")
        if "transfer-encoding" in ended.headers:
            yield "in chunks"
        elif set(head.replace(b"\r\n", b"")) & set(b"\r\n"):
            yield "lone ends"  # where http.client ends a head that we would not end there
        elif length.isascii() and length.isdigit() and ended.status >= 200 and ended.status not in (204, 304):
            assert len(body) >= int(length) and ended.body == body[: int(length)].decode("utf-8", "replace")
    place = random.Random(data).randint(0, len(data))
    part = _answer(data[:place], False)
    if isinstance(part, taas_agent.Answer) and whole != "refused":  # it may have grown too long
        assert whole == part, "what follows changes an answer that was whole before"


def _answer(data: bytes, ended: bool) -> taas_agent.Answer | str:
    try:
        return taas_agent.parse_answer(data, ended) or "more is needed"
    except taas_agent.BadAnswer:
        return "refused"


TARGETS = {
    "http1": Target(
        read_http1,
        ("a request", "400", "431", "505", "more is needed", "octets behind the head", "an absolute target")
        + ("h11 sees the same request", "h11 refuses"),
    ),
    "redirector": Target(answer_redirector, ("307", "503", "421", "nobody to redirect")),
    "clienthello": Target(
        read_clienthello,
        ("a name", "no name", "more is needed", "OpenSSL sees the same name", "OpenSSL sees no name either")
        + ("OpenSSL refuses",),
    ),
    "authorization": Target(
        read_authorization, ("a claim", "malformed", "another scheme", "a right code", "a wrong code")
    ),
    "names": Target(
        read_names,
        ("a label's host", "another host", "no host", "an address", "a label's text", "an own domain")
        + ("no own domain",),
    ),
    "config": Target(
        read_config, ("a config", "a complaint", "own domains", "unknown key", "unknown section", "missing")
    ),
    "proxy2": Target(write_proxy2, ("IPv4", "IPv6", "a long label", "a short label")),
    "answer": Target(
        read_answer, ("an answer", "an answer, at its end", "lone ends", "more is needed", "refused")
    ),
}
