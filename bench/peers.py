"""The candidates: our service, and what people would use instead.

Each is a small class: `start` runs it, `ends` says in gen's words how to go through it.  To add one, write
such a class and name it in ALL; bench/README.md has an example.  Nothing here imports taaslib.
"""

from __future__ import annotations

import base64
import configparser
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import GENERATOR_CORE, RELAY_CORE, Child

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
DEBIAN = BUILD / "peers"  # what fetch_peers.sh has unpacked
LIBRARIES = DEBIAN / "usr/lib" / f"{os.uname().machine}-linux-gnu"

REGISTRAR, SERVERS = "taas-registrar.example", "taas.example"
LABELS, IDS = 200, 20  # ten labels an ID
PORTS_EACH = 4500  # of our own, as many as taas.ini has by default
MANY = 1_000_000


class Shop:
    """A temporary folder with keys and credentials, and port numbers that nobody else has."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="taas-bench-"))
        self.folder.chmod(0o755)  # sshd and one of our own run as nobody
        self._ports = itertools.count(5000)
        self._ranges = itertools.cycle(range(10000, 32768 - PORTS_EACH, PORTS_EACH))  # below ephemeral ones
        self._make_certificate("ec", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
        self._make_certificate("rsa", "-newkey", "rsa:2048")
        self._credentials: Path | None = None
        self._passed: Path | None = None

    def _make_certificate(self, kind: str, *key: str) -> None:
        """KIND.crt and KIND.key, and KIND.pem with both, as haproxy wants it."""
        names = f"subjectAltName=DNS:{REGISTRAR},DNS:*.{SERVERS}"
        self.run("openssl", "req", "-x509", "-nodes", "-days", "30", *key, "-subj", f"/CN={REGISTRAR}",
                 "-addext", names, "-keyout", f"{kind}.key", "-out", f"{kind}.crt")  # fmt: skip
        both = (self.folder / f"{kind}.crt").read_text() + (self.folder / f"{kind}.key").read_text()
        (self.folder / f"{kind}.pem").write_text(both)

    def port(self) -> int:
        return next(self._ports)

    def port_range(self) -> str:
        first = next(self._ranges)
        return f"{first}-{first + PORTS_EACH - 1}"

    def place(self, name: str) -> Path:
        folder = Path(tempfile.mkdtemp(prefix=name + "-", dir=self.folder))
        folder.chmod(0o755)
        return folder

    def run(self, *command: str, cwd: Path | None = None) -> str:
        done = subprocess.run(command, cwd=cwd or self.folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def credentials(self) -> Path:
        """A folder with taas.db, made by taas_admin.py: LABELS labels, and 10 more for those that idle.

        `credentials` and `idle` name them for gen, a line each: label, ID, secret in hexadecimal.
        """
        if not self._credentials:
            self._credentials = folder = self.place("credentials")
            ini = f"[taas]\npublic = 127.0.0.1\nregistrar = {REGISTRAR}\nservers = {SERVERS}\n"
            (folder / "taas.ini").write_text(ini + "certificate = ../ec.crt\nkey = ../ec.key\n")
            labels = [f"l{number}" for number in range(LABELS)]
            each = LABELS // IDS
            lines = [self._add(folder, *labels[i : i + each]) for i in range(0, LABELS, each)]
            # Round robin over the IDs too.
            (folder / "credentials").write_text("".join(itertools.chain(*zip(*lines, strict=True))))
            idle = self._add(folder, *(f"i{number}" for number in range(each)))
            (folder / "idle").write_text("".join(idle))
        return self._credentials

    def passed(self) -> Path:
        """The same, and `passed`: 10 labels more that are passed through."""
        if not self._passed:
            self._passed = folder = self.place("passed")
            shutil.copytree(self.credentials(), folder, dirs_exist_ok=True)
            labels = (f"t{number}" for number in range(LABELS // IDS))
            (folder / "passed").write_text("".join(self._add(folder, *labels, "--mode", "both")))
        return self._passed

    def _add(self, folder: Path, *words: str) -> list[str]:
        self.run(sys.executable, str(ROOT / "taas_admin.py"), "add", *words, cwd=folder)
        file = configparser.ConfigParser(interpolation=None)
        file.read(folder / f"{words[0]}.agent.ini")
        credential = file["credential"]
        secret = credential["secret"].replace(" ", "").replace("-", "").rstrip("=").upper()
        octets = base64.b32decode(secret + "=" * (-len(secret) % 8)).hex()
        return [f"{label.strip()} {credential['id']} {octets}\n" for label in credential["labels"].split(",")]

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Candidate:
    """Something that relays.  One instance is started once and serves all rounds of a family."""

    name = ""
    relay: Child | None = None  # what its CPU time is read of
    agent: Child | None = None  # its half beside the hidden server, where it has one

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.port, self.backend, self.door = shop.port(), shop.port(), shop.port()
        self.folder = shop.place("peer")
        self.log = self.folder / "log"

    @classmethod
    def version(cls) -> str:
        """One line, or "" where it is not installed: then its rows are left out."""
        return "-"

    def start(self) -> None:
        raise NotImplementedError

    def ends(self) -> list[str]:
        return ["-p", str(self.port), "-b", str(self.backend)]

    def stop(self) -> None:
        for child in (self.agent, self.relay):
            if child:
                child.stop()


class Direct(Candidate):
    """No relay at all: what the generator and the kernel can do on one core."""

    name = "direct"

    def start(self) -> None:
        self.port = self.backend


# ---- ours


def _python() -> str:
    """What runs our service and agent: the system's Python, as most users have it, where it is new enough.

    Like the peers' binaries it is the distribution's build; one made by hand, as a shared library and without
    the profile-guided optimizer, takes a quarter more.
    """
    system = "/usr/bin/python3"
    asked = "import sys; sys.exit(sys.version_info < (3, 10))"
    good = os.access(system, os.X_OK) and not subprocess.run([system, "-c", asked]).returncode
    return system if good else sys.executable


PYTHON = _python()
_PYOTP = importlib.util.find_spec("pyotp")
_PACKAGES = {"PYTHONPATH": str(Path(_PYOTP.origin).parent.parent)} if _PYOTP and _PYOTP.origin else {}


def python_version() -> str:
    """Of the Python that runs ours, and of its OpenSSL."""
    asked = "import platform, ssl; print(platform.python_version(), ssl.OPENSSL_VERSION, sep=', ')"
    done = subprocess.run([PYTHON, "-c", asked], capture_output=True, text=True)
    return f"{PYTHON}, {done.stdout.strip()}"


class Taas(Candidate):
    """python taas.py: the real service, with limits raised and all else at its defaults, its log included."""

    name = "ours"
    certificate = "ec"
    user = ""
    limits = (
        "responders-per-id",
        "responders-per-label",
        "unclaimed-per-id",
        "parked-per-label",
        "exchanges",
        "reuse",
    )

    @classmethod
    def version(cls) -> str:
        command = [PYTHON, str(ROOT / "taas.py"), "--version"]
        env = {**os.environ, **_PACKAGES}
        return subprocess.run(command, capture_output=True, text=True, env=env).stdout.strip()

    def start(self) -> None:
        shutil.copytree(self.store(), self.folder, dirs_exist_ok=True)
        key = self.shop.folder / self.certificate
        lines = ["[taas]", "public = 127.0.0.1", "address = 127.0.0.1", f"port = {self.door}",
                 f"registrar = {REGISTRAR}", f"servers = {SERVERS}", f"ports = {self.shop.port_range()}",
                 f"certificate = {key}.crt", f"key = {key}.key"]  # fmt: skip
        lines += [f"user = {self.user}"] if self.user else []
        lines += ["[limits]", *(f"{limit} = {MANY}" for limit in self.limits), "[log]", "file = server.log"]
        (self.folder / "taas.ini").write_text("\n".join(lines) + "\n")
        if self.user:
            for path in (Path(f"{key}.key"), self.folder, *self.folder.iterdir()):
                shutil.chown(path, self.user)
        command = [PYTHON, str(ROOT / "taas.py"), "taas.ini"]
        self.relay = Child(command, RELAY_CORE, self.log, env=_PACKAGES)
        self.relay.wait_for_port(self.door)

    def store(self) -> Path:
        return self.shop.credentials()

    def ends(self, file: str = "credentials") -> list[str]:
        return ["-t", str(self.door), "-n", REGISTRAR, "-s", SERVERS, "-f", str(self.folder / file)]


class TaasNobody(Taas):
    """The same without root's privileges: the kernel grants few large pipes."""

    name = "ours, as nobody"
    user = "nobody"

    @classmethod
    def version(cls) -> str:
        return super().version() if os.geteuid() == 0 else ""


class TaasRsa(Taas):
    name = "ours, RSA"
    certificate = "rsa"


class TaasPassed(Taas):
    """Visitors come through port 443 by the server name of their ClientHello."""

    name = "ours, pass-through"

    def store(self) -> Path:
        return self.shop.passed()

    def ends(self, file: str = "passed") -> list[str]:
        return [*super().ends(file), "-x"]


class TaasWithAgent(Taas):
    """The service and taas_agent.py, which dials a local server for each visitor."""

    name = "ours with agent"

    def start(self) -> None:
        super().start()
        command = [PYTHON, str(ROOT / "taas_agent.py"), "l0.agent.ini", "--waiting", "20"]
        text = (self.folder / "l0.agent.ini").read_text()
        file = configparser.ConfigParser(interpolation=None)
        file.read_string(text)
        file["registrar"]["port"] = str(self.door)
        file["credential"]["labels"] = "l0"
        with open(self.folder / "l0.agent.ini", "w") as out:
            file.write(out)
        self.agent = Child(
            [*command, "--to", f"127.0.0.1:{self.backend}"], GENERATOR_CORE, self.folder / "agent.log"
        )

    def ends(self, file: str = "") -> list[str]:
        return ["-b", str(self.backend), "-t", str(self.door), "-s", SERVERS, "-l", "l0"]


# ---- peers


class Haproxy(Candidate):
    """One thread, TCP mode; a TLS front door that redirects stands in the same process."""

    name = "haproxy"
    options = ""  # of defaults
    tuning = ""  # of global
    certificate = "ec"
    routing = ""  # of the frontend
    most = 9700  # pairs; it will not start with more than its descriptors allow

    @classmethod
    def version(cls) -> str:
        return _first_line([_tool("haproxy"), "-v"])

    def start(self) -> None:
        config = self.folder / "haproxy.cfg"
        config.write_text(
            f"""global
  nbthread 1
  maxconn {self.most}
  tune.ssl.cachesize 0
  ssl-default-bind-options no-tls-tickets ssl-min-ver TLSv1.2
  {self.tuning}
defaults
  mode tcp
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  {self.options}
frontend relay
  bind 127.0.0.1:{self.port} backlog 4096
  {self.routing}
  default_backend hidden
backend hidden
  server hidden 127.0.0.1:{self.backend}
frontend door
  mode http
  option httpclose
  bind 127.0.0.1:{self.door} ssl crt {self.shop.folder}/{self.certificate}.pem
  http-request redirect location https://%[req.hdr(host)]:{self.port}%[pathq] code 307
"""
        )
        self.relay = Child([_tool("haproxy"), "-db", "-q", "-f", str(config)], RELAY_CORE, self.log, env=_ENV)
        self.relay.wait_for_port(self.port)

    def ends(self) -> list[str]:
        return [*super().ends(), "-t", str(self.door), "-s", SERVERS]


class HaproxySplice(Haproxy):
    name = "haproxy splice"
    options = "option splice-request\n  option splice-response"
    most = 3000


class HaproxySplice1M(HaproxySplice):
    name = "haproxy splice 1 MiB"
    tuning = "tune.pipesize 1048576"


class HaproxyRsa(Haproxy):
    name = "haproxy, RSA"
    certificate = "rsa"


class HaproxySni(Haproxy):
    """Chooses by the server name of the ClientHello."""

    name = "haproxy, by SNI"
    routing = f"""tcp-request inspect-delay 5s
  tcp-request content accept if {{ req.ssl_hello_type 1 }}
  use_backend hidden if {{ req.ssl_sni -m end .{SERVERS} }}"""

    def ends(self) -> list[str]:
        # The door is where gen sends a ClientHello to.
        return ["-b", str(self.backend), "-t", str(self.port), "-s", SERVERS, "-x"]


class Nginx(Candidate):
    """One worker with Debian's stream module; the front door is its `return 307`, tickets off."""

    name = "nginx"
    certificate = "ec"
    stream = ""

    @classmethod
    def version(cls) -> str:
        module = _module()
        return _first_line([_tool("nginx"), "-v"]) if module else ""

    def start(self) -> None:
        config = self.folder / "nginx.conf"
        paths = "\n".join(
            f"{kind}_temp_path {self.folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config.write_text(
            f"""load_module {_module()};
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile {os.sysconf("SC_OPEN_MAX")};
pid {self.folder}/pid; error_log {self.folder}/error.log crit;
events {{ worker_connections {os.sysconf("SC_OPEN_MAX") - 100}; }}
stream {{ server {{
  listen 127.0.0.1:{self.port} backlog=4096; proxy_pass 127.0.0.1:{self.backend};
  tcp_nodelay on; proxy_timeout 600s; {self.stream}
}} }}
http {{ access_log off; {paths}
  server {{
    listen 127.0.0.1:{self.door} ssl backlog=4096; keepalive_timeout 0;
    ssl_certificate {self.shop.folder}/{self.certificate}.crt;
    ssl_certificate_key {self.shop.folder}/{self.certificate}.key;
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets off; ssl_session_cache off;
    location / {{ return 307 https://$host:{self.port}$request_uri; }}
  }}
}}
"""
        )
        self.relay = Child([_tool("nginx"), "-c", str(config)], RELAY_CORE, self.log, env=_ENV)
        self.relay.wait_for_port(self.port)

    def ends(self) -> list[str]:
        return [*super().ends(), "-t", str(self.door), "-s", SERVERS]


class NginxRsa(Nginx):
    name = "nginx, RSA"
    certificate = "rsa"


class NginxSni(Nginx):
    """Reads the server name of the ClientHello before it connects."""

    name = "nginx, by SNI"
    stream = "ssl_preread on;"

    def ends(self) -> list[str]:
        return ["-b", str(self.backend), "-t", str(self.port), "-s", SERVERS, "-x"]


class Socat(Candidate):
    """A process a connection."""

    name = "socat"

    @classmethod
    def version(cls) -> str:
        found = _first_line([_tool("socat"), "-V"], "socat version")
        return found.split(" on ")[0]

    def start(self) -> None:
        listen = f"TCP4-LISTEN:{self.port},bind=127.0.0.1,fork,reuseaddr,backlog=4096,nodelay"
        command = [_tool("socat"), listen, f"TCP4:127.0.0.1:{self.backend},nodelay"]
        self.relay = Child(command, RELAY_CORE, self.log, env=_ENV)
        self.relay.wait_for_port(self.port)


class Ssh(Candidate):
    """ssh -R to a throw-away sshd: one TCP connection for all, encrypted on the way."""

    name = "ssh -R"

    @classmethod
    def version(cls) -> str:
        return _first_line(["ssh", "-V"]) if _tool("sshd") and shutil.which("ssh") else ""

    def start(self) -> None:
        user = "nobody" if os.geteuid() == 0 else ""  # sshd of root wants a user and a folder of its own
        here, control = self.folder, self.shop.port()
        for key in ("host", "client"):
            self.shop.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(here / key))
        program = shutil.copy(_tool("sshd"), here / "sshd")  # where nobody can reach it
        (here / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{control}\nHostKey {here}/host\nAuthorizedKeysFile {here}/client.pub\n"
            "StrictModes no\nUsePAM yes\nPasswordAuthentication no\nPidFile none\nMaxStartups 100\n"
        )
        if user:
            shutil.chown(here / "host", user)
        self.relay = Child(
            [str(program), "-D", "-e", "-f", str(here / "sshd_config")],
            RELAY_CORE,
            self.log,
            user=user,
            env=_ENV,
        )
        self.relay.wait_for_port(control)
        login = f"{user or os.environ['USER']}@127.0.0.1"
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ExitOnForwardFailure=yes"]
        self.agent = Child(
            ["ssh", "-F", "none", "-N", "-p", str(control), "-i", str(here / "client"),
             *(word for option in options for word in ("-o", option)),
             "-R", f"127.0.0.1:{self.port}:127.0.0.1:{self.backend}", login],
            GENERATOR_CORE, here / "agent.log",
        )  # fmt: skip
        self.agent.wait_for_port(self.port)


class Pagekite(Candidate):
    """A front end of one's own and its agent, HTTP: the nearest relative, in Python too."""

    name = "pagekite"
    host = f"home.{SERVERS}"

    @classmethod
    def version(cls) -> str:
        file = Path(_tool("pagekite") or "/nonexistent")
        if not file.is_file():
            return ""
        return "pagekite " + (_deb_version("pagekite") or "(version unknown)")

    def start(self) -> None:
        env = {**_ENV, "PYTHONPATH": str(DEBIAN / "usr/lib/python3/dist-packages")}
        command = ["/usr/bin/python3", _tool("pagekite"), "--clean", "--nullui"]
        front = ["--isfrontend", "--host=127.0.0.1", f"--ports={self.port}", "--protos=http",
                 f"--domain=http:{self.host}:secret"]  # fmt: skip
        self.relay = Child([*command, *front], RELAY_CORE, self.log, env=env)
        self.relay.wait_for_port(self.port)
        back = [
            f"--frontend=127.0.0.1:{self.port}",
            f"--service_on=http:{self.host}:127.0.0.1:{self.backend}:secret",
        ]
        self.agent = Child([*command, *back], GENERATOR_CORE, self.folder / "agent.log", env=env)
        (self.folder / "greeting").write_text(f"GET / HTTP/1.1\r\nHost: {self.host}\r\n\r\n")
        self.agent.wait_for_word(f"domain={self.host}")

    def ends(self) -> list[str]:
        return [*super().ends(), "-g", str(self.folder / "greeting")]


ALL: dict[str, type[Candidate]] = {
    kind.name: kind
    for kind in (
        Taas, TaasNobody, TaasRsa, TaasPassed, TaasWithAgent,
        Haproxy, HaproxySplice, HaproxySplice1M, HaproxyRsa, HaproxySni,
        Nginx, NginxRsa, NginxSni, Socat, Ssh, Pagekite, Direct,
    )
}  # fmt: skip

_ENV = {"LD_LIBRARY_PATH": str(LIBRARIES)}


def _tool(name: str) -> str:
    """Where a peer's program is: unpacked for us, or installed; "" where it is not."""
    for folder in (DEBIAN / "usr/sbin", DEBIAN / "usr/bin", Path("/usr/sbin"), Path("/usr/bin")):
        if (folder / name).is_file():
            return str(folder / name)
    return ""


def _module() -> str:
    for folder in (DEBIAN / "usr/lib/nginx/modules", Path("/usr/lib/nginx/modules")):
        if (file := folder / "ngx_stream_module.so").is_file():
            return str(file)
    return ""


def _deb_version(package: str) -> str:
    known = DEBIAN / "versions"
    lines = known.read_text().splitlines() if known.is_file() else []
    return next((line.split("_")[1] for line in lines if line.startswith(package + "_")), "")


def _first_line(command: list[str], wanted: str = "") -> str:
    """The first line with WANTED of what COMMAND says, or "" where there is no such program."""
    if not command[0]:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_ENV})
    return next((line for line in (done.stdout + done.stderr).splitlines() if wanted in line), "").strip()
