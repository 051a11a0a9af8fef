"""HTTP/1.1 requests out of bytes, responses into bytes (RFC 9112).  Minimal, strict, sans-IO.

Knows nothing of sockets, labels or TOTP, and imports nothing of ours.  The head ends the request: an
announced body, chunked or counted, is for the caller to drop.
"""

import math
import re
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# RFC 9112 3.2 has targets in ASCII, but clients send what people type: other octets pass as they are.
_REQUEST_LINE = re.compile(r"(%s) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9]\.[0-9])\r\n" % _TOKEN)
_FIELD_LINE = re.compile(r"(?<=\r\n)(%s):([\t\x20-\x7e\x80-\xff]*)\r\n" % _TOKEN)
_ABSOLUTE_FORM = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE)
_LONE_CR_OR_LF = re.compile(rb"\r(?!\n|\Z)|(?<!\r)\n|\0")
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_ONE_OPINION = {"host", "authorization", "content-length", "transfer-encoding"}

class BadRequest(Exception):
    """The peer spoke, but not our HTTP; `status` is the answer it has earned."""
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status

@dataclass(slots=True)  # frozen ones take four times as long to make
class Request:
    """One request's head.  `authority` is whom it is for, `target` starts with `/`."""
    method: str
    target: str
    authority: str
    fields: dict[str, str]  # names in lower case; a repeated field's values joined with commas

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

@dataclass(slots=True)
class Response:
    """One answer; the connection closes after it, unless it STAYS as something else."""
    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    fields: tuple[tuple[str, str], ...] = ()
    stays: bool = False

    def to_bytes(self, now: float, *, bodiless: bool = False) -> bytes:
        """The octets for the wire at NOW (seconds since 1970); BODILESS answers a HEAD (RFC 9110 9.3.2)."""
        close = "" if self.stays else "Connection: close\r\n"
        fields = "".join(map("%s: %s\r\n".__mod__, self.fields))
        head = (
            f"HTTP/1.1 {self.status} {_PHRASES[self.status]}\r\nDate: {_date(int(now))}\r\n{close}"
            f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n"
            f"X-Content-Type-Options: nosniff\r\n{fields}\r\n"
        ).encode("latin-1")
        return head if bodiless else head + self.body

@lru_cache(maxsize=1)
def _date(now: int) -> str:
    return formatdate(now, usegmt=True)

def retry_after(seconds: float) -> tuple[str, str]:
    """The field that tells when to come again (RFC 9110 10.2.3)."""
    return "Retry-After", str(math.ceil(seconds))

def text(status: int, message: str, *fields: tuple[str, str]) -> Response:
    """A short answer for people: what is wrong and what to do next."""
    return Response(status, message.encode() + b"\n", fields=fields)

class RequestParser:
    """Bytes as they come -> one Request, once its head is whole."""
    _head = b""
    _begun = False
    rest = b""  # what came behind the head

    def __init__(self, max_head: int = 16 * 1024) -> None:
        self._max_head = max_head  # octets, blank line included

    def feed(self, data: bytes) -> Request | None:
        """Take more bytes; None while the head is incomplete.  Raises BadRequest."""
        known, come = len(self._head), self._head + data
        if not self._begun and len(come) >= 2:
            self._begun = True
            if come.startswith(b"\r\n"):  # RFC 9112 2.2: one empty line before the request is ignored
                known, come = 0, come[2:]
        self._head = come
        head, blank, self.rest = come.partition(b"\r\n\r\n")
        head += blank[:2]
        refusal = None
        if len(come) - len(self.rest) > self._max_head:
            refusal = BadRequest(431, f"the request's head is longer than {self._max_head} octets")
        elif blank:
            try:
                return _parse(head.decode("latin-1"))
            except BadRequest as error:
                refusal = error
        # What makes no sense may be due to one of these, which must not wait for the end of the head either.
        if bad := _LONE_CR_OR_LF.search(head[: self._max_head], max(0, known - 1)):
            why = "a NUL in the head" if bad[0] == b"\0" else "a line ended by a lone CR or LF"
            refusal = BadRequest(400, why)
        if refusal:
            raise refusal
        return None

def _parse(head: str) -> Request:
    line = _REQUEST_LINE.match(head)
    if not line:
        raise BadRequest(400, "malformed request line")
    method, target, version = line.groups()
    if version not in ("1.0", "1.1"):
        raise BadRequest(505, "this service speaks HTTP/1.1")
    fields = _fields(head, line.end())
    if "content-length" in fields:
        _check_body(fields)
    if "host" not in fields:
        raise BadRequest(400, "no Host field")
    if target.startswith("/"):
        return Request(method, target, fields["host"], fields)
    if absolute := _ABSOLUTE_FORM.fullmatch(target):  # RFC 9112 3.2.2: its authority replaces Host
        rest = absolute[2]
        return Request(method, rest if rest.startswith("/") else "/" + rest, absolute[1], fields)
    raise BadRequest(400, "the request's target starts with neither / nor http(s)://")

def _fields(head: str, at: int) -> dict[str, str]:
    lines = _FIELD_LINE.findall(head, at)
    if len(lines) < head.count("\r\n", at):  # a space before the colon and line folding are refused too
        raise BadRequest(400, "malformed header field")
    fields: dict[str, str] = {}
    for name, value in lines:
        name, value = name.lower(), value.strip(" \t")
        if name in fields:
            if name in _ONE_OPINION:
                raise BadRequest(400, f"header field {name} given twice")
            value = f"{fields[name]}, {value}"
        fields[name] = value
    return fields

def _check_body(fields: dict[str, str]) -> None:
    # RFC 9112 6.3: where a body ends must not be open to two readings.
    if not re.fullmatch(r"[0-9]{1,19}", fields["content-length"]):
        raise BadRequest(400, "malformed Content-Length")
    if "transfer-encoding" in fields:
        raise BadRequest(400, "Content-Length and Transfer-Encoding together")
