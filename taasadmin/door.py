"""The page's HTTP server, on this machine alone: who is let in, and what a request must look like.

Knows nothing of credentials: what is shown and done is page.py's.

Who could do harm is another page in the operator's browser, a name that was made to lead to 127.0.0.1, and
another user of this machine.  So: Host is ours, a one-time token brings a cookie, a POST comes from our
origin and holds the session's second secret, and no markup brings code along.  Cookies know no ports: the
path below which ours is sent can't be guessed, or who serves another port of 127.0.0.1 would be handed it.
"""

import contextlib
import hmac
import http.server
import pkgutil
import secrets
import socket
import socketserver
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote

ADDRESS = "127.0.0.1"
COOKIE = "taas_session"
MOST_BODY = 16 * 1024
MOST_FIELDS = 50
MOST_CONNECTIONS = 64  # one more displaces the oldest
MOST_SESSIONS = 16
SESSION_SECONDS = 12 * 3600  # since it was last used
PATIENCE_SECONDS = 10  # for octets to come or go
DEADLINE_SECONDS = 30  # of a connection
MOST_DRAINED = 1 << 20  # octets that are read and dropped behind a refusal, so that it arrives
ASSETS = {"/page.css": "text/css; charset=utf-8", "/page.js": "text/javascript; charset=utf-8"}
ALWAYS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self';"
    " img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with no-referrer browsers send `Origin: null` with our own forms
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Fields = dict[str, str]  # of a query or a form


@dataclass(frozen=True, slots=True)
class Response:
    body: str
    status: int = 200
    kind: str = "text/html; charset=utf-8"
    fields: tuple[tuple[str, str], ...] = ()


def see_other(where: str, *fields: tuple[str, str]) -> Response:
    return Response("", 303, fields=(("Location", where), *fields))


class Refusal(Exception):
    """The request is not served; the message says why, for people.  AGAIN is a path that may work better.

    STRANGER: it is of a browser that was not let in.
    """

    def __init__(self, status: int, why: str, stranger: bool = False, again: str = "") -> None:
        super().__init__(why)
        self.status, self.stranger, self.again = status, stranger, again


@dataclass(slots=True)
class Session:
    """A browser that was let in.  `said` is what its next page tells; `kept` is what it may download."""

    used: float
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    said: list[str] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)


class Inside(Protocol):
    """What is behind the door.  A path comes in pieces, below the base.  Each raises Refusal."""

    def get(self, path: list[str], session: Session, query: Fields, poll: bool) -> Response: ...

    def post(self, path: list[str], session: Session, form: Fields) -> Response: ...

    def refused(self, refusal: Refusal) -> Response: ...


class Door:
    """Tokens and sessions.  There is always one token that nobody has used yet; SAY is told its target."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._lock = threading.Lock()
        self._sessions: list[Session] = []
        self._token = secrets.token_urlsafe(32)
        self._spent: list[str] = []

    def announce(self) -> None:
        self._say(f"/?token={self._token}")

    def exchange(self, token: str) -> Session | None:
        """A session for TOKEN, once."""
        with self._lock:
            if not _same(token, self._token):
                return None
            self._spent = [*self._spent[1 - MOST_SESSIONS :], token]
            self._token = secrets.token_urlsafe(32)
            session = Session(self._clock())
            self._sessions = [*self._sessions[1 - MOST_SESSIONS :], session]
        self.announce()
        return session

    def spent(self, token: str) -> bool:
        """Whether TOKEN was good before."""
        with self._lock:
            return sum(_same(token, each) for each in self._spent) > 0

    def find(self, secret: str) -> Session | None:
        with self._lock:
            now = self._clock()
            self._sessions = [each for each in self._sessions if now - each.used < SESSION_SECONDS]
            found = [each for each in self._sessions if _same(secret, each.secret)]  # all are compared
            for session in found:
                session.used = now
            return found[0] if found else None


def _same(theirs: str, ours: str) -> bool:
    return hmac.compare_digest(theirs.encode("utf-8", "replace"), ours.encode())


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves INSIDE below BASE, a path that ends with a slash.  Raises OSError if PORT is taken."""

    allow_reuse_address = sys.platform != "win32"  # there it would let another one listen as well
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, door: Door, inside: Inside, base: str) -> None:
        self.door, self.inside, self.base = door, inside, base
        self._since: dict[Any, float] = {}  # connection -> when it came
        super().__init__((ADDRESS, port), _Handler)
        own = self.server_address[1]
        self.hosts = {f"{name}:{own}" for name in (ADDRESS, "localhost")}

    def process_request(self, request: Any, client_address: Any) -> None:
        self._since[request] = time.monotonic()
        if len(self._since) > MOST_CONNECTIONS:
            _end(next(iter(list(self._since))))
        super().process_request(request, client_address)

    def service_actions(self) -> None:  # between two looks at the listener, twice a second
        for request, since in list(self._since.items()):
            if time.monotonic() - since > DEADLINE_SECONDS:
                _end(request)

    def shutdown_request(self, request: Any) -> None:
        self._since.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # that one is the peer's or the path's
            traceback.print_exc()


def _end(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)  # wakes the thread that serves it


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request a connection, as HTTP/1.0 has it."""

    server: Server
    timeout = PATIENCE_SECONDS

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        try:
            response = self._answer()
        except Refusal as refusal:
            response = self.server.inside.refused(refusal)
        except OSError:
            raise  # the connection's
        except Exception:
            traceback.print_exc()
            response = self.server.inside.refused(Refusal(500, "A fault of ours: the terminal shows it."))
        self._send(response)

    def _answer(self) -> Response:
        if (hosts := self.headers.get_all("Host", [])) not in [[host] for host in self.server.hosts]:
            known = " or ".join(sorted(self.server.hosts))
            raise Refusal(421, f"This page answers to {known} alone, not to {', '.join(hosts) or 'no name'}.")
        path, _, query = self.path.partition("?")
        if self.command == "GET" and path in ASSETS:
            text = (pkgutil.get_data("taasadmin", path[1:]) or b"").decode()
            return Response(text, kind=ASSETS[path])
        if self.command == "GET" and path == "/" and (token := _fields(query).get("token")):
            return self._let_in(token)
        if (session := self._session()) is None:
            raise Refusal(403, "This browser was not let in yet, or is not any more.", stranger=True)
        if not path.startswith(self.server.base):
            raise Refusal(404, "There is no such page.")
        pieces = [unquote(piece) for piece in path[len(self.server.base) :].split("/")]
        if self.command == "POST":
            return self.server.inside.post(pieces, session, self._form(session, hosts[0]))
        poll = "X-Poll" in self.headers
        return self.server.inside.get(pieces, session, _fields(query), poll)

    def _let_in(self, token: str) -> Response:
        base = self.server.base
        if (session := self.server.door.exchange(token)) is None:
            if self.server.door.spent(token):
                raise Refusal(403, "This link was used before: each lets one browser in, once.", True, base)
            raise Refusal(403, "This link is none of ours, or of an earlier start.", stranger=True)
        cookie = f"{COOKIE}={session.secret}; Path={base}; HttpOnly; SameSite=Strict"
        return see_other(base, ("Set-Cookie", cookie))

    def _session(self) -> Session | None:
        # Who serves another port of 127.0.0.1 may have set one of the same name: it comes along with ours.
        for part in self.headers.get("Cookie", "").split(";")[:MOST_FIELDS]:
            name, _, value = part.strip().partition("=")
            if name == COOKIE and (session := self.server.door.find(value)):
                return session
        return None

    def _form(self, session: Session, host: str) -> Fields:
        """The fields of the form, once all shows that it is one of ours."""
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "same-origin")
        if origin not in (None, f"http://{host}") or site not in ("same-origin", "none"):
            raise Refusal(403, "Another page sent this form. Nothing was changed.")
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            raise Refusal(411, "The request does not say how long it is.")
        if len(length) > 9 or int(length) > MOST_BODY:
            raise Refusal(413, f"A form has {MOST_BODY} octets at most.")
        if self.headers.get_content_type() != "application/x-www-form-urlencoded":
            raise Refusal(415, "This is no form.")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Refusal(400, "The form ended too early.")
        form = _fields(body.decode("utf-8", "replace"))
        if not _same(form.pop("csrf", ""), session.csrf):
            why = "This form is not of your session, or too old. Nothing was changed: load its page again."
            raise Refusal(403, why)
        return form

    def _send(self, response: Response) -> None:
        body = response.body.encode("utf-8", "replace")
        self.send_response_only(response.status)
        for name, value in (*ALWAYS.items(), *response.fields):
            self.send_header(name, value)
        self.send_header("Content-Type", response.kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self._drain()

    def _drain(self) -> None:
        # Closing with octets unread would reset the connection, and take the answer from who still sends.
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            left = MOST_DRAINED
            while left > 0 and (data := self.connection.recv(65536)):
                left -= len(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library does not understand is refused in our words; nothing of it is said again."""
        self._send(Response(f"{code}: not understood.\n", code, "text/plain; charset=utf-8"))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a target may hold a token."""


def _fields(text: str) -> Fields:
    """The last value of each name; labels in several boxes are typed with commas, so that none is lost."""
    try:
        parsed = parse_qs(text, keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise Refusal(400, f"A form has {MOST_FIELDS} fields at most.") from None
    return {name: values[-1] for name, values in parsed.items()}
