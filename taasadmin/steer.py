"""Asks the running service, over its runtime socket.

Knows neither what the answers mean nor how they are shown.
"""

import http.client
import json
import socket
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 10.0


class Silent(Exception):
    """The service does not answer on its socket; the message says which one, and why."""


class Rejected(Exception):
    """The service answered that it won't; the message is its own."""


class Steer:
    """A question each time; nothing is kept open."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, target: str) -> Any:
        """The JSON that GET TARGET brings.  Raises Silent, Rejected."""
        return self._ask("GET", target)

    def post(self, target: str) -> Any:
        """The JSON that POST TARGET brings.  Raises Silent, Rejected."""
        return self._ask("POST", target)

    def _ask(self, method: str, target: str) -> Any:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(PATIENCE_SECONDS)
                sock.connect(str(self._path))
                web = http.client.HTTPConnection("localhost")
                web.sock = sock
                web.request(method, target)
                answer = web.getresponse()
                document = json.loads(answer.read())
        except (
            OSError,
            AttributeError,
            ValueError,
            http.client.HTTPException,
        ) as error:  # no AF_UNIX on Windows
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise Silent(f"no running service answers at {self._path}: {why}") from None
        if answer.status >= 400:
            raise Rejected(str(document["error"]))
        return document
