"""The hidden server of `make run`: one HTTPS page that says what just happened.

Knows nothing of TAAS: it listens on 127.0.0.1, as anything behind a NAT would, and the agent connects to it.
"""

import argparse
import html
import itertools
import socket
import ssl
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

PATIENCE_SECONDS = 60  # for a visitor who connects and then says nothing

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>It works: you reached a hidden server</title>
<link rel="icon" href="data:,">
<style>
  :root {{ color-scheme: light dark; --line: #8884; --accent: #0a7d55; }}
  @media (prefers-color-scheme: dark) {{ :root {{ --accent: #4cc38a; }} }}
  * {{ box-sizing: border-box; }}
  body {{ margin: 0 auto; padding: 3rem 1.25rem; max-width: 42rem;
         font: 1.05rem/1.6 system-ui, sans-serif; }}
  h1 {{ margin: 0 0 .5rem; font-size: 2rem; line-height: 1.2; }}
  h1 span {{ color: var(--accent); }}
  .road {{ display: flex; flex-wrap: wrap; gap: .6rem 1.8rem; margin: 2rem 0; padding: 0; }}
  .road li {{ position: relative; list-style: none; padding: .4rem .9rem;
             border: 1px solid var(--line); border-radius: .6rem; }}
  .road li + li::before {{ content: "\\2192"; position: absolute; left: -1.45rem; opacity: .6; }}
  ol.steps {{ padding-left: 1.3rem; }}
  ol.steps li {{ margin: .5rem 0; }}
  code {{ font-size: .92em; overflow-wrap: anywhere; }}
  dl {{ display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1.25rem;
       margin: 2rem 0 0; padding: 1rem 1.25rem;
       border: 1px solid var(--line); border-radius: .6rem; font-size: .95rem; }}
  dt {{ opacity: .7; }}
  dd {{ margin: 0; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>It works. <span>You reached a hidden server.</span></h1>
<p>This page comes from a program that nobody can connect to: it only listens on
<code>{here}</code>, behind what could be any NAT or firewall.</p>
<ul class="road"><li>you</li><li>TAAS</li><li>agent</li><li>this page</li></ul>
<ol class="steps">
<li>The agent beside this page had told the <b>registrar</b> that a connection is waiting under the label
    <code>demo</code>.</li>
<li>You asked the <b>redirector</b>, and it answered <code>307</code>: go to <code>{host}</code>.</li>
<li>There the <b>rendezvous</b> paired your connection with the waiting one, and since then the
    <b>relay</b> copies octets. Your TLS session ends here, in this page's server:
    TAAS saw nothing of it.</li>
</ol>
<dl>
<dt>You asked for</dt><dd><code>{target}</code> at <code>{host}</code></dd>
<dt>Encrypted with</dt><dd>{cipher}</dd>
<dt>Answered at</dt><dd>{now}</dd>
<dt>Visit</dt><dd>number {visit} since this server started</dd>
</dl>
</body>
</html>
"""


class SamplePage(BaseHTTPRequestHandler):
    """Answers every GET and HEAD with the page."""

    protocol_version = "HTTP/1.1"
    timeout = PATIENCE_SECONDS
    visits: ClassVar = itertools.count(1)

    def do_GET(self) -> None:
        connection = self.connection
        assert isinstance(connection, ssl.SSLSocket)
        cipher = connection.cipher()
        address, port = connection.getsockname()[:2]
        facts = {
            "here": f"{address}:{port}",
            "host": self.headers.get("Host", "?"),
            "target": self.path,
            "cipher": f"{connection.version()}, {cipher[0] if cipher else '?'}",
            "now": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "visit": str(next(self.visits)),
        }
        page = PAGE.format(**{name: html.escape(fact) for name, fact in facts.items()}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    do_HEAD = do_GET


class TlsServer(ThreadingHTTPServer):
    """A thread for each visitor; the handshake happens there too, so that a silent one holds up nobody."""

    request_queue_size = 64

    def __init__(self, port: int, certificate: Path, key: Path) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        super().__init__(("127.0.0.1", port), SamplePage)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        plain, address = super().get_request()
        plain.settimeout(PATIENCE_SECONDS)
        return self.context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: object, client_address: object) -> None:
        """A visitor who leaves in the middle, or is no TLS client, is an everyday matter: no traceback."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0, help="the port on 127.0.0.1 (default: any free one)")
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    options = parser.parse_args(argv)
    server = TlsServer(options.port, options.certificate, options.key)
    print(server.server_address[1], flush=True)  # the one line that whoever started us reads: our port
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
