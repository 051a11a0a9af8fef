"""Request -> Answer for mobile clients: a 307 to the label's port q while it is served, else a 503.

Knows neither sockets nor the registrar.  It sees the head of the request, cookies included, and keeps,
shows and logs nothing of it: target and Host go back to the one who sent them, in Location alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

from taaslib.http1 import Request, Response, retry_after, text
from taaslib.limits import Limits
from taaslib.names import Peer, host_port
from taaslib.outcomes import Answer, Outcome
from taaslib.store import StoreError

_OFFLINE = "Nothing is connected under this name just now.  Try again in a moment."
_OFFLINE_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Not connected</title>
<style>
body { font: 1.1rem/1.5 system-ui, sans-serif; max-width: 32rem; margin: 20vh auto 0; padding: 0 1.5rem }
h1 { font-size: 1.6rem }
p { opacity: .8 }
</style>
<h1>Not connected</h1>
<p>Nothing is connected under this name just now. If the device was switched on a moment ago, it will be
here shortly: try again.</p>
</html>
"""

@dataclass(eq=False)
class Redirector:
    mode: Callable[[str], str]
    served: Callable[[str], bool]
    port_q: Callable[[str], int | None]  # opened if need be; None where it can't be
    advertise: Callable[[Peer], str]  # the service's address as a peer sees it
    servers: str
    location: str
    limits: Limits

    def answer(self, request: Request, label: str, peer: Peer, own_host: str | None) -> Answer:
        """The visitor asked for LABEL, or for its OWN_HOST, which Location then carries."""
        try:
            if self.mode(label) == "passthrough":
                message = "This name is the device's own on this port: ask for it in the TLS handshake (SNI)."
                return Answer(Outcome.MISDIRECTED, text(421, message), label)
            if not self.served(label):
                return self._offline(request, label, Outcome.NOT_SERVED)
            port = self.port_q(label)
        except StoreError as error:
            return self._offline(request, label, Outcome.STORE_BUSY, str(error))
        if port is None:
            return self._offline(request, label, Outcome.PORT_FAILED)
        location = f"https://{self._host_port(label, peer, port, own_host)}{request.target}"
        fields = (("Location", location), ("Cache-Control", "no-store"))
        message = "Go on at the address in Location; the device answers there."
        return Answer(Outcome.REDIRECTED, text(307, message, *fields), label, port=port)

    def _host_port(self, label: str, peer: Peer, port: int, own_host: str | None) -> str:
        if own_host:
            return f"{own_host}:{port}"
        if self.location == "address":
            return host_port(self.advertise(peer), port)
        return f"{self.servers}:{port}" if self.location == "domain" else f"{label}.{self.servers}:{port}"

    def _offline(self, request: Request, label: str, outcome: Outcome, cause: str | None = None) -> Answer:
        # The client of 2014 reads Location before the status and crashes without one.
        asked_for = f"https://{request.authority}{request.target}"
        fields = (
            retry_after(self.limits.retry_after), ("Location", asked_for), ("Cache-Control", "no-store")
        )
        if "text/html" in request.fields.get("accept", "").lower():
            response = Response(503, _OFFLINE_PAGE.encode(), "text/html; charset=utf-8", fields)
        else:
            response = text(503, _OFFLINE, *fields)
        return Answer(outcome, response, label, cause=cause)
