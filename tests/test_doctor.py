"""taas_admin.py doctor and verify: one thing is broken at a time, and the line that says so is read."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hidden import certify, hidden_server, serving
from house import ID, OTHER_ID, REGISTRAR, SECRETS, SERVERS
from process import ROOT, Process

import make_cert
from taasadmin.book import Book
from taaslib.store import MIGRATIONS, Credential

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl(1) is not installed")
FEW = "[limits]\nvisits = 100\nresponders = 100\n"
PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def doctor(process: Process, *prefix: str) -> tuple[int, list[tuple[str, str, str]]]:
    command = [
        *prefix,
        sys.executable,
        str(ROOT / "taas_admin.py"),
        "-c",
        str(process.ini),
        "--json",
        "doctor",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, [(f["subject"], f["verdict"], f["words"]) for f in json.loads(done.stdout)]


def words(process: Process, subject: str, verdict: str = "FIX") -> str:
    """What the doctor says of SUBJECT with that VERDICT."""
    code, findings = doctor(process)
    assert code == int(any(found == "FIX" for _, found, _ in findings))
    said = [text for about, found, text in findings if (about, found) == (subject, verdict)]
    assert said, findings
    return "\n".join(said)


def change(process: Process, old: str, new: str) -> None:
    text = process.ini.read_text()
    assert old in text
    process.ini.write_text(text.replace(old, new))


def make(folder: Path, *options: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-subj", "/CN=x", *options, "-keyout", "registrar.key", "-out", "registrar.crt"],
        cwd=folder,
        check=True,
        capture_output=True,
    )


@pytest.fixture
def still(process: Callable[..., Process]) -> Process:
    """A service that could run, and does not."""
    made = process(FEW)
    made.add_credential()
    return made


def test_what_is_sound_is_said_to_be(still: Process) -> None:
    still.start()
    _, findings = doctor(still)
    verdicts = {
        (subject, verdict) for subject, verdict, _ in findings if subject not in ("dns", "clock", "disk")
    }
    sound = ("configuration", "certificate", "address", "port", "ports", "descriptors", "database", "kernel")
    assert verdicts == {(subject, "ok") for subject in sound}
    said = "\n".join(text for _, _, text in findings)
    assert f"registrar.crt for {REGISTRAR}, *.{SERVERS}, 3649 more days" in said
    assert f"127.0.0.1:{still.port} shows our certificate (asked from here, which tries no firewall" in said
    assert "127.0.0.1 can be reached at 20400, 20450, 20481" in said
    assert still.stop()[0] == 0


def test_a_person_reads_a_line_for_each(still: Process) -> None:
    command = [sys.executable, str(ROOT / "taas_admin.py"), "-c", str(still.ini), "doctor"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert f"ok   configuration {still.ini}" in lines
    assert f"FIX  port          127.0.0.1:{still.port} refuses: start the service" in lines


def test_a_service_that_does_not_run_is_to_be_started(still: Process) -> None:
    assert "refuses: start the service" in words(still, "port")


def test_a_service_that_did_not_follow_shows_another_certificate(still: Process) -> None:
    still.start()
    assert make_cert.main([str(still.ini), "--force"]) == 0
    assert "shows another certificate" in words(still, "port")
    assert still.stop()[0] == 0


def test_the_certificate_s_names_expiry_and_key_are_looked_at(still: Process) -> None:
    make(still.folder, "-days", "90", "-addext", f"subjectAltName=DNS:{REGISTRAR}")
    assert f"certificate is not valid for '*.{SERVERS}'" in words(still, "certificate")
    make(still.folder, "-days", "5", "-addext", f"subjectAltName=DNS:{REGISTRAR},DNS:*.{SERVERS}")
    assert ", 4 more days: renew it" in words(still, "certificate")
    key = (still.folder / "registrar.key").read_bytes()
    make(still.folder, "-days", "90", "-addext", f"subjectAltName=DNS:{REGISTRAR},DNS:*.{SERVERS}")
    assert ", 89 more days" in words(still, "certificate", "ok")
    (still.folder / "registrar.key").write_bytes(key)
    assert "the key does not belong to the certificate" in words(still, "certificate")
    (still.folder / "registrar.crt").unlink()
    assert "make_cert.py, or taas.pyz make-cert, makes one" in words(still, "certificate")


def test_an_address_that_is_not_here_is_told_from_nat(still: Process) -> None:
    change(still, "public = 127.0.0.1", "public = 203.0.113.9")
    assert "203.0.113.9 is elsewhere" in words(still, "address", "--")
    change(still, "address = 127.0.0.1", "address = 203.0.113.9")
    assert "203.0.113.9 is not this machine's" in words(still, "address")
    change(still, "public = 203.0.113.9", "public = 127.0.0.1, ::1")
    assert "nothing listens for ::1" in words(still, "address")


def test_ports_that_can_not_be_reached_are_named(still: Process) -> None:
    change(still, "address = 127.0.0.1", "address = 127.0.0.2")  # as behind a firewall that lets nobody in
    assert "127.0.0.1 can't be reached at 20400, 20450, 20481" in words(still, "ports")


def test_ports_that_the_kernel_gives_away_are_named(still: Process) -> None:
    if not PORTS.exists():
        pytest.skip("no /proc of Linux")
    change(still, "ports = 20400-20500", f"ports = {PORTS.read_text().split()[0]}")
    assert "overlaps with `ports`" in words(still, "kernel")


def test_too_few_descriptors_are_told(still: Process) -> None:
    change(still, "visits = 100", "visits = 999999999")
    assert "are fewer than the 2000001098 that [limits] allow" in words(still, "descriptors")


def test_without_pyotp_it_says_so_and_goes_on(still: Process) -> None:
    command = [sys.executable, "-S", "-E", str(ROOT / "taas_admin.py"), "-c", str(still.ini), "doctor"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "FIX  certificate   pyotp is missing: " in done.stdout and "ok   kernel " in done.stdout


def test_devices_that_are_all_off_mean_our_clock(still: Process) -> None:
    with contextlib.closing(Book(still.folder / "taas.db", busy_ms=5000, synchronous="FULL")) as store:
        store.add(Credential(OTHER_ID, SECRETS[OTHER_ID]), ["cam"], None, 0)
        store.note_clock(ID, 300, 0)
        assert not any(
            subject == "clock" and "ours is wrong" in text for subject, _, text in doctor(still)[1]
        )
        store.note_clock(OTHER_ID, 310, 0)
    assert "2 devices, all whose codes fail, are +300 s off or more: ours is wrong" in words(still, "clock")


def test_the_database_is_looked_at(still: Process) -> None:
    file = still.folder / "taas.db"
    file.chmod(0o644)
    assert f"chmod 600 {file}" in words(still, "database")
    file.chmod(0o600)
    with contextlib.closing(Book(file, busy_ms=5000, synchronous="FULL")) as store, store._writing() as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    assert "use a newer TAAS" in words(still, "database")
    octets = file.read_bytes()
    file.write_bytes(octets[:4096] + b"\xff" * (len(octets) - 4096))
    assert "malformed" in words(still, "database") or "damaged" in words(still, "database")
    file.write_bytes(b"no database" * 999)
    assert "file is not a database" in words(still, "database")
    file.unlink()
    assert "add LABEL makes it" in words(still, "database")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_database_of_somebody_else_is_told(still: Process) -> None:
    change(still, "ports = 20400-20500", "ports = 20400-20500\nuser = nobody")
    assert f"is not nobody's: chown nobody {still.folder / 'taas.db'}*" in words(still, "database")


NAMESERVER = """
import socket, sys
registrar, star = sys.argv[1:3]                     # what each of the two leads to
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 53))
print("bound", flush=True)
while True:
    query, client = sock.recvfrom(512)
    question = query[12 : query.index(b"\\0", 12) + 5]
    to = registrar if question.startswith(b"\\x09registrar") else star
    is_a = question[-3] == 1 and to != "-"
    answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\0\\0\\4" + socket.inet_aton(to if is_a else "0.0.0.0")
    flags = b"\\x81\\x83" if to == "-" else b"\\x81\\x80"
    counts = b"\\0\\1\\0" + bytes([is_a]) + b"\\0" * 4
    sock.sendto(query[:2] + flags + counts + question + answer * is_a, client)
"""
RESOLVING = """
ip link set lo up && mount --bind resolv.conf /etc/resolv.conf || exit 77
mount --bind hosts /etc/hosts
"$1" nameserver.py "$2" "$3" >up & while ! [ -s up ]; do sleep 0.01; done
"$1" "$4" -c taas.ini --json doctor
kill $!
"""


@pytest.mark.parametrize(
    ("registrar", "star", "verdicts", "said"),
    [
        ("127.0.0.1", "127.0.0.1", ["ok", "ok"], f"*.{SERVERS} leads to 127.0.0.1"),
        ("127.0.0.1", "-", ["ok", "FIX"], f"create *.{SERVERS}. IN A 127.0.0.1"),
        ("203.0.113.1", "127.0.0.1", ["FIX", "ok"], f"{REGISTRAR} leads to 203.0.113.1, as seen from here"),
    ],
)
def test_dns_of_the_registrar_and_of_any_label_is_asked(
    still: Process, registrar: str, star: str, verdicts: list[str], said: str
) -> None:
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("namespaces need root, unshare and ip")
    change(still, SERVERS, "taas.test")  # *.localhost never reaches a name server
    change(still, "address = 127.0.0.1\n", "")
    texts = {
        "nameserver.py": NAMESERVER,
        "resolv.conf": "nameserver 127.0.0.1\n",
        "hosts": "",
        "go": RESOLVING,
    }
    for name, text in texts.items():
        (still.folder / name).write_text(text)
    command = [
        "unshare",
        "--mount",
        "--net",
        "sh",
        "go",
        sys.executable,
        registrar,
        star,
        ROOT / "taas_admin.py",
    ]
    done = subprocess.run(command, cwd=still.folder, capture_output=True, text=True)
    if not done.stdout:
        pytest.skip(f"no namespaces here: {done.stderr}")
    found = [(f["verdict"], f["words"]) for f in json.loads(done.stdout) if f["subject"] == "dns"]
    assert [verdict for verdict, _ in found] == verdicts
    assert any(said.replace(SERVERS, "taas.test") in text for _, text in found), found


# verify


def verify(process: Process, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(ROOT / "taas_admin.py"),
        "-c",
        str(process.ini),
        "verify",
        "home",
        *arguments,
    ]
    return subprocess.run(command, cwd=process.folder, capture_output=True, text=True)


@pytest.mark.parametrize("mode", ["redirect", "passthrough"])
def test_the_certificate_that_comes_through_the_relay_is_the_hidden_server_s(
    process: Callable[..., Process], mode: str
) -> None:
    service = process()
    with hidden_server(service.folder) as target, serving(service, target, "--mode", mode):
        seen = verify(service, "--certificate", "hidden.crt")
        assert (seen.returncode, seen.stderr) == (0, "") and " is verified: " in seen.stdout
        assert f"home.{SERVERS}:{service.port} is verified" in seen.stdout or mode == "redirect"
        pin = make_cert.fingerprint((service.folder / "hidden.crt").read_text())
        assert verify(service, "--pin", pin).returncode == 0
        wrong = verify(service, "--certificate", "registrar.crt")  # 443 shows it, if that redirects
        assert wrong.returncode == 1 and "NOT verified: somebody in between ends TLS" in wrong.stdout
        assert pin.replace(":", "").lower() in wrong.stdout
        answer = json.loads(verify(service, "--pin", "0" * 64, "--json").stdout)
        assert (answer["verified"], answer["pin"], answer["label"]) == (False, "0" * 64, "home")


@pytest.mark.parametrize("mode", ["redirect", "passthrough"])
def test_a_label_that_is_offline_can_not_be_verified(still: Process, mode: str) -> None:
    with contextlib.closing(Book(still.folder / "taas.db", busy_ms=5000, synchronous="FULL")) as store:
        store.set_mode("home", mode)
    certify(still.folder)
    assert "Connection refused" in verify(still, "--certificate", "hidden.crt").stderr
    still.start()
    done = verify(still, "--certificate", "hidden.crt")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "nothing is connected under" in done.stderr
    assert still.stop()[0] == 0


def test_a_pin_is_64_hexadecimal_digits(still: Process) -> None:
    for arguments in (["--pin", "abc"], ["--pin", "g" * 64], []):
        assert verify(still, *arguments).returncode == 2
    (still.folder / "no.pem").write_text("none")
    assert "no.pem holds no PEM certificate" in verify(still, "--certificate", "no.pem").stderr
