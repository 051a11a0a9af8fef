"""Requests out of bytes, responses into bytes: every cut of the input, and whatever else a peer may send."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from taaslib.http1 import BadRequest, Request, RequestParser, Response, text

KIB = 1024
GET = b"GET /a?b=c HTTP/1.1\r\nHost: home.taas.example.com:8443\r\nAccept: text/html\r\n\r\n"
PUT = (  # what the hidden server's client of 2014 sends
    b"PUT /register/home HTTP/1.1\r\n"
    b'Authorization: TOTP username="ID", response="123456"\r\n'
    b"Host: registrar.taas.example.com:443\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def read(*pieces: bytes, max_head: int = 16 * KIB) -> Request | int | None:
    """The request in PIECES; or the status of the refusal that they earn; or None: it is not whole yet."""
    parser = RequestParser(max_head)
    for piece in pieces:
        try:
            request = parser.feed(piece)
        except BadRequest as refusal:
            return refusal.status
        if request:
            return request
    return None


def request(data: bytes) -> Request:
    got = read(data)
    assert isinstance(got, Request)
    return got


def octets(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """DATA whole, octet by octet, and cut in two at every place."""
    yield [data]
    yield octets(data)
    yield from ([data[:at], data[at:]] for at in range(1, len(data)))


def head(*fields: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    return b"".join(part + b"\r\n" for part in (line, host, *fields) if part) + b"\r\n"


def head_of(size: int) -> bytes:
    return head(b"X: " + b"x" * (size - len(head(b"X: "))))


# ---- whole, cut, and followed by something ---------------------------------------------------------------


def test_a_head_becomes_a_request() -> None:
    fields = {"host": "home.taas.example.com:8443", "accept": "text/html"}
    assert read(GET) == Request("GET", "/a?b=c", "home.taas.example.com:8443", fields)
    assert request(GET).path == "/a"


@pytest.mark.parametrize("data", [GET, PUT, b"\r\n" + GET], ids=["GET", "PUT", "after an empty line"])
def test_every_cut_of_a_request_gives_the_same_request(data: bytes) -> None:
    assert all(read(*pieces) == request(data) for pieces in cuts(data))


@pytest.mark.parametrize("data", [GET, PUT], ids=["GET", "PUT"])
def test_no_part_of_a_head_is_a_request_yet(data: bytes) -> None:
    assert all(read(data[:at]) is None for at in range(len(data)))


@pytest.mark.parametrize("rest", [b"0\r\n\r\n", b"\0", b"\n", b"\r", GET, b"x" * 70_000], ids=repr)
def test_what_follows_the_head_changes_nothing(rest: bytes) -> None:
    assert read(PUT + rest) == read(PUT[:-1], PUT[-1:] + rest) == request(PUT)


def test_a_request_does_not_wait_for_the_body_that_it_announces() -> None:
    assert isinstance(read(head(b"Content-Length: 1000000")), Request)
    assert isinstance(read(head(b"Transfer-Encoding: chunked")), Request)


# ---- limits ----------------------------------------------------------------------------------------------


def test_a_head_of_16_kib_passes_and_one_octet_more_is_too_long() -> None:
    assert len(head_of(16 * KIB)) == 16 * KIB
    assert isinstance(read(head_of(16 * KIB)), Request)
    assert isinstance(read(*octets(head_of(16 * KIB))), Request)
    assert read(head_of(16 * KIB + 1)) == 431
    assert read(*octets(head_of(16 * KIB + 1))) == 431


def test_a_head_without_end_is_refused_at_the_first_octet_too_many() -> None:
    endless = b"GET /" + b"x" * 16 * KIB
    assert read(endless[: 16 * KIB]) is None
    assert read(endless[: 16 * KIB], b"x") == read(endless[: 16 * KIB + 1]) == 431


@pytest.mark.parametrize("bad", [b"\0", b"\nx", b"\rx"], ids=repr)
def test_what_lies_beyond_the_limit_is_not_looked_at(bad: bytes) -> None:
    data = b"GET /" + b"x" * 16 * KIB + bad
    assert read(data) == read(*octets(data)) == 431


@pytest.mark.timeout(20)  # a regex that tries every way to share out the blanks needs hours
def test_a_head_full_of_blanks_is_read_at_once() -> None:
    assert request(head(b"X:" + b" \t" * 8000 + b"y")).fields["x"] == "y"
    assert read(head(b"X:" + b" \t" * 8000 + b"\x01")) == 400


# ---- refusals --------------------------------------------------------------------------------------------

BAD = {
    "a bare LF after the request line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "a bare LF after a field": b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "bare LFs only": b"GET / HTTP/1.1\nHost: a\n\n",
    "a leading bare LF": b"\n" + head(),
    "a bare CR in the request line": b"GET /\rx HTTP/1.1\r\nHost: a\r\n\r\n",
    "a bare CR in a field": head(b"X: y\rZ: z"),
    "two CRs before LF": head(b"X: y\r"),
    "a NUL in the target": head(line=b"GET /\0 HTTP/1.1"),
    "a NUL in a value": head(b"X: y\0z"),
    "a control character in a value": head(b"X: y\x01z"),
    "a DEL in a value": head(b"X: y\x7fz"),
    "obs-fold with a space": head(b"X: y", b" z"),
    "obs-fold with a tab": head(b"X: y", b"\tz"),
    "a space before the first field": head(host=b" Host: a"),
    "a space before the colon": head(b"X : y"),
    "a tab before the colon": head(b"X\t: y"),
    "a field without a colon": head(b"X"),
    "a field without a name": head(b": y"),
    "a field name that is no token": head(b"X(1): y"),
    "a field name outside ASCII": head(b"\xd6: y"),
    "no Host": head(host=b""),
    "no Host in HTTP/1.0": head(host=b"", line=b"GET / HTTP/1.0"),
    "no Host beside an absolute target": head(host=b"", line=b"GET http://a/ HTTP/1.1"),
    "two Hosts": head(b"Host: b"),
    "the same Host twice": head(b"hOST: a"),
    "two Hosts beside an absolute target": head(b"Host: b", line=b"GET http://a/ HTTP/1.1"),
    "two Authorizations": head(b"Authorization: TOTP a=b", b"authorization: TOTP a=b"),
    "the same Content-Length twice": head(b"Content-Length: 5", b"Content-Length: 5"),
    "Content-Length before Transfer-Encoding": head(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "Content-Length after Transfer-Encoding": head(b"Transfer-Encoding: chunked", b"content-length: 0"),
    "no target": head(line=b"GET HTTP/1.1"),
    "an empty target": head(line=b"GET  HTTP/1.1"),
    "a space in the target": head(line=b"GET /a b HTTP/1.1"),
    "a tab in the request line": head(line=b"GET\t/ HTTP/1.1"),
    "a method that is no token": head(line=b"G(T / HTTP/1.1"),
    "a space before the method": head(line=b" GET / HTTP/1.1"),
    "a space after the version": head(line=b"GET / HTTP/1.1 "),
    "nothing at all between two lines": b"X\r\n\r\n",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_what_is_not_our_http_is_refused_at_every_cut(data: bytes) -> None:
    assert {read(*pieces) for pieces in cuts(data)} == {400}


@pytest.mark.parametrize(
    "length", [b"+5", b"-1", b"0x10", b"5, 5", b"5 5", b"", b"1_000", b"1e3", b"\xb2", b"9" * 5000], ids=repr
)
def test_a_malformed_content_length_is_refused(length: bytes) -> None:
    assert read(head(b"Content-Length: " + length)) == 400


@pytest.mark.parametrize("length", [b"0", b"5", b"  5\t", b"005", b"9" * 19], ids=repr)
def test_a_good_content_length_passes(length: bytes) -> None:
    assert isinstance(read(head(b"Content-Length: " + length)), Request)


@pytest.mark.parametrize("version", ["HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "HTTP/3.0", "HTTP/9.9"])
def test_another_version_of_http_is_told_so(version: str) -> None:
    assert read(head(line=f"GET / {version}".encode())) == 505
    assert read(f"PRI * {version}\r\n\r\nSM\r\n\r\n".encode()) == 505  # as HTTP/2 begins, without a field


@pytest.mark.parametrize(
    "version", ["HTTP/1", "HTTP/1.10", "HTTP/11.1", "http/1.1", "HTTP/1,1", "HTTPS/1.1", "HTTP/ 1.1"]
)
def test_what_is_no_version_at_all_is_malformed(version: str) -> None:
    assert read(head(line=f"GET / {version}".encode())) == 400


def test_a_target_outside_ascii_passes_as_it_is() -> None:
    assert request(head(line=b"GET /\xf6 HTTP/1.1")).target == "/\xf6"


def test_http_1_0_passes() -> None:
    assert request(head(line=b"GET / HTTP/1.0")) == Request("GET", "/", "a", {"host": "a"})


# ---- targets and fields ----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/", "/a?b?c&d=%0d%0a", "/?", "//b/c", "/;p='\"<>\\^`{|}~", "/http://b/"])
def test_a_target_is_kept_exactly_as_sent(target: str) -> None:
    got = request(head(line=f"GET {target} HTTP/1.1".encode()))
    assert (got.target, got.authority, got.path) == (target, "a", target.split("?")[0])


@pytest.mark.parametrize(
    ("target", "authority", "rest"),
    [
        ("http://b", "b", "/"),
        ("http://b/", "b", "/"),
        ("https://b:8443/c/d?e=f", "b:8443", "/c/d?e=f"),
        ("http://b?c=d", "b", "/?c=d"),
        ("http://b?http://c/d", "b", "/?http://c/d"),
        ("HTTP://B:80/C", "B:80", "/C"),
        ("hTTpS://b?C", "b", "/?C"),
        ("http://[::1]:80/c", "[::1]:80", "/c"),
        ("http://b/http://c/", "b", "/http://c/"),
        ("http://b//c", "b", "//c"),
    ],
)
def test_an_absolute_target_is_reduced_and_its_authority_replaces_host(
    target: str, authority: str, rest: str
) -> None:
    got = request(head(line=f"GET {target} HTTP/1.1".encode()))
    assert (got.authority, got.target, got.fields["host"]) == (authority, rest, "a")


@pytest.mark.parametrize(
    "target", ["*", "a", "a:443", "a/b", "?a", "#a", "ftp://a/", "http:/a/", "http:a", "httpx://a/"]
)
@pytest.mark.parametrize("method", ["GET", "OPTIONS", "CONNECT"])
def test_any_other_target_is_refused(method: str, target: str) -> None:
    assert read(head(line=f"{method} {target} HTTP/1.1".encode())) == 400


def test_fields_are_trimmed_folded_and_joined() -> None:
    got = request(head(b"aCCept:a", b"ACCEPT: \t b\tc \t", b"X:", b"Y: \xe4:=", b"!#$%&'*+-.^_`|~9: z"))
    assert got.fields == {"host": "a", "accept": "a, b\tc", "x": "", "y": "ä:=", "!#$%&'*+-.^_`|~9": "z"}


def test_methods_are_case_sensitive_tokens() -> None:
    methods = ["GeT", "M-SEARCH"]
    assert [request(head(line=f"{m} / HTTP/1.1".encode())).method for m in methods] == methods


# ---- anything at all -------------------------------------------------------------------------------------

FRAGMENTS = [b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":", b"\r\n\r\n", b"/", b"\xff", b"\x01", b"http://"]
FRAGMENTS += [b"GET / HTTP/1.1\r\nHost: a\r\n", b"GET /a HTTP/1.1\r\n", b"GET http://b HTTP/1.0\r\n", b"GET"]
FRAGMENTS += [b" HTTP/2.0\r\n", b"*", b"Host: a\r\n", b"X: y\r\n", b"Content-Length: 5\r\n"]
SOUP = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=3), max_size=12).map(b"".join)


@settings(deadline=None, max_examples=500)
@given(SOUP, st.lists(st.integers(0, 120), max_size=6), st.sampled_from([20, 40, 16 * KIB]))
@example(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", [2], 16 * KIB)
def test_any_split_of_any_input_says_the_same(data: bytes, places: list[int], max_head: int) -> None:
    whole = read(data, max_head=max_head)
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    assert read(*(data[a:b] for a, b in pairwise(edges)), max_head=max_head) == whole
    assert read(*octets(data), max_head=max_head) == whole
    if isinstance(whole, Request):
        assert whole.target.startswith("/")
        assert all("\x20" < c < "\x7f" for c in whole.method + whole.target)
        assert all(c >= " " or c == "\t" for value in whole.fields.values() for c in value + whole.authority)
    else:
        assert whole in (None, 400, 431, 505)


# ---- responses -------------------------------------------------------------------------------------------


def test_a_response_is_these_octets() -> None:
    fields = (("Location", "https://a:1/"), ("Cache-Control", "no-store"))
    response = Response(307, b"go", "text/plain", fields)
    head = (
        b"HTTP/1.1 307 Temporary Redirect\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nConnection: close\r\n"
        b"Content-Type: text/plain\r\nContent-Length: 2\r\nX-Content-Type-Options: nosniff\r\n"
        b"Location: https://a:1/\r\nCache-Control: no-store\r\n\r\n"
    )
    assert response.to_bytes(784111777.9) == head + b"go"
    assert response.to_bytes(784111777.9, bodiless=True) == head  # RFC 9110 8.6: with GET's length


def test_a_text_counts_octets_and_not_characters() -> None:
    response = text(401, "für ☃", ("WWW-Authenticate", 'TOTP realm="taas"'))
    head, _, body = response.to_bytes(0).partition(b"\r\n\r\n")
    assert body == "für ☃\n".encode() and b"\r\nContent-Length: 9\r\n" in head
    assert head.endswith(b'\r\nWWW-Authenticate: TOTP realm="taas"') and b"charset=utf-8" in head


@pytest.mark.parametrize("status", [200, 307, 400, 401, 403, 404, 405, 408, 421, 429, 431, 503, 505])
def test_every_status_of_ours_has_its_phrase(status: int) -> None:
    line = Response(status, b"").to_bytes(0).split(b"\r\n")[0].decode()
    assert line.startswith(f"HTTP/1.1 {status} ") and line.split(" ", 2)[2][0].isupper()
