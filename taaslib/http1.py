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

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# RFC 9112 3.2 has targets in ASCII, but clients send what people type: other octets pass as they are.
_REQUEST_LINE = re.compile(rb"(%s) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9]\.[0-9])" % _TOKEN)
_FIELD_LINE = re.compile(rb"(%s):([\t\x20-\x7e\x80-\xff]*)" % _TOKEN)
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
        fields = "".join([f"{name}: {value}\r\n" for name, value in self.fields])
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

    def __init__(self, max_head: int = 16 * 1024) -> None:
        self._max_head = max_head  # octets, blank line included
        self._head = b""
        self._begun = False
        self.rest = b""  # what came behind the head

    def feed(self, data: bytes) -> Request | None:
        """Take more bytes; None while the head is incomplete.  Raises BadRequest."""
        known = len(self._head)
        self._head += data
        if not self._begun and len(self._head) >= 2:
            self._begun = True
            if self._head.startswith(b"\r\n"):  # RFC 9112 2.2: one empty line before the request is ignored
                self._head = self._head[2:]
                known = 0
        end = self._head.find(b"\r\n\r\n", max(0, known - 3))
        head = self._head[: end + 2] if end >= 0 else self._head
        # Counting is faster than the search, and nearly always enough.
        whole = head.count(b"\r\n") == head.count(b"\r") == head.count(b"\n") and b"\0" not in head
        bad = None if whole else _LONE_CR_OR_LF.search(head[: self._max_head], max(0, known - 1))
        if bad:
            raise BadRequest(
                400, "a NUL in the head" if bad[0] == b"\0" else "a line ended by a lone CR or LF"
            )
        if (end + 4 if end >= 0 else len(head)) > self._max_head:
            raise BadRequest(431, f"the request's head is longer than {self._max_head} octets")
        self.rest = self._head[end + 4 :] if end >= 0 else b""
        return _parse(head[:-2]) if end >= 0 else None

def _parse(head: bytes) -> Request:
    request_line, *field_lines = head.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(request_line)
    if not match:
        raise BadRequest(400, "malformed request line")
    method, target, version = [part.decode("latin-1") for part in match.groups()]
    if version not in ("1.0", "1.1"):
        raise BadRequest(505, "this service speaks HTTP/1.1")
    fields = _fields(field_lines)
    _check_body(fields)
    if "host" not in fields:
        raise BadRequest(400, "no Host field")
    if target.startswith("/"):
        return Request(method, target, fields["host"], fields)
    if absolute := _ABSOLUTE_FORM.fullmatch(target):  # RFC 9112 3.2.2: its authority replaces Host
        rest = absolute[2]
        return Request(method, rest if rest.startswith("/") else "/" + rest, absolute[1], fields)
    raise BadRequest(400, "the request's target starts with neither / nor http(s)://")

def _fields(lines: list[bytes]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        match = _FIELD_LINE.fullmatch(line)  # refuses a space before the colon and line folding too
        if not match:
            raise BadRequest(400, "malformed header field")
        name, value = match[1].decode("ascii").lower(), match[2].strip(b" \t").decode("latin-1")
        if name in fields and name in _ONE_OPINION:
            raise BadRequest(400, f"header field {name} given twice")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields

def _check_body(fields: dict[str, str]) -> None:
    # RFC 9112 6.3: where a body ends must not be open to two readings.
    length = fields.get("content-length")
    if length is not None and not re.fullmatch(r"[0-9]{1,19}", length):
        raise BadRequest(400, "malformed Content-Length")
    if length is not None and "transfer-encoding" in fields:
        raise BadRequest(400, "Content-Length and Transfer-Encoding together")
