"""The operator's page as a process of its own, and a client that asks for exactly what it is told to."""

from __future__ import annotations

import contextlib
import functools
import html
import http.client
import json
import re
import socketserver
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from process import ROOT, free_port


class Web:
    """taas_admin.py web in FOLDER, whose taas.ini and certificate are there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.popen = subprocess.Popen(
            [sys.executable, str(ROOT / "taas_admin.py"), "--json", "web", "--port", str(self.port)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.links: list[str] = []

    def link(self) -> str:
        """The next link that it shows."""
        assert self.popen.stdout and self.popen.stderr
        line = self.popen.stdout.readline()
        assert line, self.popen.stderr.read()
        self.links.append(json.loads(line)["url"])
        return self.links[-1]

    def ask(
        self, method: str, target: str, body: bytes | None = None, fields: dict[str, str | None] | None = None
    ) -> Answer:
        """One exchange with exactly these FIELDS, and a Host unless it is given (None: no such field)."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(client):
            client.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            given: dict[str, str | None] = {"Host": f"127.0.0.1:{self.port}"}
            if body is not None:
                given |= {
                    "Content-Length": str(len(body)),
                    "Content-Type": "application/x-www-form-urlencoded",
                }
            for name, value in (given | (fields or {})).items():
                if value is not None:
                    client.putheader(name, value)
            client.endheaders()
            if body:
                with contextlib.suppress(ConnectionError):  # it may have been refused by its head
                    client.send(body)
            answer = client.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read().decode())

    def admin(self, *arguments: object) -> Any:
        """What another process of the operator's answers."""
        command = [sys.executable, str(ROOT / "taas_admin.py"), "--json", *map(str, arguments)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def stop(self) -> tuple[str, str]:
        """What else it said on standard output, and on standard error."""
        if self.popen.poll() is None:
            self.popen.terminate()
        return self.popen.communicate(timeout=20)


class Answer:
    def __init__(self, status: int, fields: dict[str, str], body: str) -> None:
        self.status, self.fields, self.body = status, fields, body


class Browser:
    """A client that was let in: it has the cookie, and knows the base and the form's secret."""

    def __init__(self, web: Web) -> None:
        self.web = web
        answer = web.ask("GET", web.link().partition(str(web.port))[2])
        assert answer.status == 303
        self.base = answer.fields["Location"]
        self.cookie = answer.fields["Set-Cookie"].partition(";")[0]

    @functools.cached_property
    def csrf(self) -> str:
        found = re.search('name="csrf" value="([^"]+)"', self.get("add").body)
        assert found
        return found[1]

    def get(self, path: str = "", **fields: str | None) -> Answer:
        return self.web.ask("GET", self.base + path, fields={"Cookie": self.cookie} | fields)

    def post(self, path: str, form: dict[str, str], fields: dict[str, str | None] | None = None) -> Answer:
        body = urlencode({"csrf": self.csrf} | form).encode()
        return self.web.ask("POST", self.base + path, body, {"Cookie": self.cookie} | (fields or {}))

    def follow(self, answer: Answer) -> Answer:
        assert answer.status == 303, answer.body
        return self.get(answer.fields["Location"].removeprefix(self.base))


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class Standin:
    """Answers on a runtime socket what a test wants the service to say, and keeps what it was told to do."""

    def __init__(self, path: Path) -> None:
        self.labels: dict[str, dict[str, Any]] = {}
        self.pairs: list[dict[str, Any]] = []
        self.pairings: list[dict[str, Any]] = []
        self.told: list[str] = []
        self.refusal = ""
        self.changes: dict[str, Any] = {}
        standin = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200, standin.answer(self.path))

            def do_POST(self) -> None:
                standin.told.append(self.path)
                standin.kick(self.path)
                self.answer(*((409, {"error": standin.refusal}) if standin.refusal else (200, {"kicked": 1})))

            def answer(self, status: int, document: Any) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.server = UnixServer(str(path), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def answer(self, target: str) -> Any:
        if target == "/pairs":
            return {"pairs": self.pairs}
        if target.startswith("/pairings/"):
            return self.pairings
        limits = {name: {"use": 1, "limit": 100} for name in ("visits", "responders", "descriptors")}
        document: dict[str, Any] = {"version": "0.5.0", "uptime_seconds": 3723.5, "ready": True}
        document |= {"draining": False, "pump": "splice", "listens": ["0.0.0.0:443"], "limits": limits}
        return document | {"labels": list(self.labels.values())} | self.changes

    def label(self, label: str, **changes: Any) -> None:
        known: dict[str, Any] = {"label": label, "mode": "redirect", "port": 61001, "waiting": 0, "live": 0}
        known |= {"pairs": 0, "to_initiator": 0, "to_responder": 0, "last_seen": None, "agent": None}
        known |= {"agent_version": None, "clock_ahead_seconds": None}
        self.labels[label] = known | changes

    def pair(self, number: int, label: str = "home", **changes: Any) -> None:
        known: dict[str, Any] = {"pair": number, "label": label, "id": "1", "responder": "192.0.2.1:4711"}
        known |= {"initiator": f"198.51.100.7:{number}", "timestamp": 1_800_000_000_000, "seconds": 61.5}
        self.pairs.append(known | {"to_initiator": 2500, "to_responder": 90} | changes)

    def kick(self, target: str) -> None:
        which = dict(part.split("=") for part in urlsplit(target).query.split("&") if part)
        self.pairs = [
            pair
            for pair in self.pairs
            if str(pair["pair"]) != which.get("pair") and pair["label"] != which.get("label")
        ]

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def text_of(page: str) -> str:
    """What a reader of the page sees, roughly."""
    return " ".join(html.unescape(re.sub("<[^>]+>", " ", page)).split())
