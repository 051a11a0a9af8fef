"""taas_admin.py as the operator runs it, and taas.ini.example."""

from __future__ import annotations

import argparse
import base64
import configparser
import json
import os
import pwd
import re
import shutil
import sqlite3
import ssl
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyotp
import pytest

import make_cert
import taas_admin
from taasadmin.book import Book
from taaslib import config

TOP = Path(__file__).parent.parent
INI = """\
[taas]
public = 203.0.113.7, 2001:db8::7
registrar = registrar.taas.example.com
servers = taas.example.com
"""

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl(1) is not installed")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("certificate")
    plan = make_cert.Plan(folder / "c", folder / "k", ("203.0.113.7",), ("registrar.taas.example.com",), None)
    make_cert.make(plan, renew=False, force=False)
    return plan.certificate.read_bytes()


@pytest.fixture
def folder(tmp_path: Path, certificate: bytes) -> Path:
    """What the operator has after make_cert.py."""
    (tmp_path / "taas.ini").write_text(INI)
    (tmp_path / "registrar.crt").write_bytes(certificate)
    return tmp_path


def run(folder: Path, *arguments: object, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, str(TOP / "taas_admin.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def answer(folder: Path, *arguments: object) -> Any:
    """The document that --json prints."""
    done = run(folder, "--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def refused(folder: Path, *arguments: object, code: int = 1) -> str:
    """The one line that says why, after it is seen that nothing has changed."""
    before = state(folder)
    done = run(folder, "--json", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert state(folder) == before
    assert code == 2 or done.stderr.count("\n") == 1
    return done.stderr


def state(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """All files, and what the database holds."""
    files = [file for file in folder.iterdir() if file.is_file() and "taas.db" not in file.name]
    contents = {file.name: file.read_bytes() for file in files}
    if not (folder / "taas.db").exists():
        return contents, []
    db = sqlite3.connect(folder / "taas.db")
    try:
        return contents, [line for line in db.iterdump() if line.startswith("INSERT")]
    finally:
        db.close()


def agent_file(path: Path) -> configparser.ConfigParser:
    ini = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    ini.read_string(path.read_text())
    return ini


# add


def test_add_makes_a_credential_a_grant_and_a_file(folder: Path) -> None:
    added = answer(folder, "add", "home")
    assert added["labels"] == ["home"]
    assert added["file"] == str(folder / "home.agent.ini")
    assert str(uuid.UUID(added["id"])) == added["id"]
    assert len(base64.b32decode(added["secret"])) == 20
    store = Book(folder / "taas.db", busy_ms=5000, synchronous="FULL")
    try:
        credential = store.credential(added["id"])
        assert credential is not None
        assert credential.secret == added["secret"]
        assert (credential.digits, credential.period, credential.algorithm) == (6, 30, "SHA1")
        assert store.rights(added["id"], "home") is not None
    finally:
        store.close()


def test_the_agent_file_is_as_written_down(folder: Path, certificate: bytes) -> None:
    added = answer(folder, "add", "home", "blog")
    pem = certificate.decode().strip().replace("\n", "\n    ")
    assert (folder / "home.agent.ini").read_text() == (
        "[registrar]\n"
        "name = registrar.taas.example.com\n"
        "port = 443\n"
        "address = 203.0.113.7, 2001:db8::7\n"
        "trust = pin\n"
        "certificate =\n"
        f"    {pem}\n"
        "\n"
        "[credential]\n"
        f"id = {added['id']}\n"
        f"secret = {added['secret']}\n"
        "digits = 6\n"
        "period = 30\n"
        "algorithm = SHA1\n"
        "labels = home, blog\n"
        "servers = taas.example.com\n"
    )


def test_the_pin_in_the_agent_file_is_the_certificate(folder: Path, certificate: bytes) -> None:
    answer(folder, "add", "home")
    pin = agent_file(folder / "home.agent.ini")["registrar"]["certificate"].strip()
    assert ssl.PEM_cert_to_DER_cert(pin) == ssl.PEM_cert_to_DER_cert(certificate.decode())


def test_a_certificate_that_another_signed_is_left_to_the_system(folder: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *ec, "-subj", "/CN=Some CA", "-keyout", "ca.key", "-out", "ca.crt")
    openssl("req", *ec, "-subj", "/CN=registrar.taas.example.com", "-keyout", "leaf.key", "-out", "leaf.csr")
    openssl("x509", "-req", "-in", "leaf.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", "leaf.crt")  # fmt: skip
    chain = (folder / "leaf.crt").read_text() + (folder / "ca.crt").read_text()
    (folder / "registrar.crt").write_text(chain)
    answer(folder, "add", "home")
    registrar = agent_file(folder / "home.agent.ini")["registrar"]
    assert registrar["trust"] == "system"
    assert "certificate" not in registrar
    answer(folder, "add", "home", "--format", "js")
    file = next(folder.glob("home-*.js"))
    assert "ca" not in json.loads(file.read_text().removeprefix("exports.params = "))["server"]


def test_b8_files_with_a_secret_are_for_our_eyes_alone(folder: Path) -> None:
    before = os.umask(0)
    try:
        answer(folder, "add", "home")
        answer(folder, "add", "home", "--force")
        answer(folder, "add", "old", "--format", "js")
    finally:
        os.umask(before)
    for name in ("home.agent.ini", "old.js", "taas.db"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("label", ["constructor", "tostring"])
def test_b4_b5_names_of_javascript_s_own_objects_are_ordinary_labels(folder: Path, label: str) -> None:
    mine = answer(folder, "add", "home")["id"]
    theirs = answer(folder, "add", label)["id"]
    assert [entry["id"] for entry in answer(folder, "show", label)] == [theirs]
    assert [entry["labels"] for entry in answer(folder, "show", mine)] == [["home"]]
    assert "is not granted" in refused(folder, "revoke", mine, label)


def test_the_credential_may_be_chosen(folder: Path) -> None:
    id = "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"
    added = answer(folder, "add", "Home", "--id", id, "--digits", 8, "--period", 60, "--algorithm", "SHA256")
    assert added["id"] == id.lower()
    assert added["labels"] == ["home"]
    secret = added["secret"]
    assert len(base64.b32decode(secret + "=" * (-len(secret) % 8))) == 32
    written = agent_file(folder / "home.agent.ini")["credential"]
    assert [written[key] for key in ("digits", "period", "algorithm")] == ["8", "60", "SHA256"]
    uri = pyotp.parse_uri(added["uri"])
    assert isinstance(uri, pyotp.TOTP)
    assert (uri.secret, uri.digits, uri.interval, uri.digest().name) == (secret, 8, 60, "sha256")
    assert parse_qs(urlsplit(added["uri"]).query)["issuer"] == ["registrar.taas.example.com"]


def test_every_algorithm_s_secret_makes_the_codes_of_rfc_6238_for_agent_and_service(folder: Path) -> None:
    import taas_agent

    for algorithm, octets in (("SHA1", 20), ("SHA256", 32), ("SHA512", 64)):
        added = answer(folder, "add", algorithm, "--algorithm", algorithm)
        options = argparse.Namespace(to="127.0.0.1:443")
        said = taas_agent.AgentFile(str(folder / added["file"]), options).credential
        assert len(said.secret) == octets
        totp = pyotp.parse_uri(added["uri"])
        assert isinstance(totp, pyotp.TOTP)
        assert taas_agent.totp(said.secret, 41, said.digits, said.algorithm) == totp.generate_otp(41)


def test_an_id_is_used_once(folder: Path) -> None:
    id = answer(folder, "add", "home")["id"]
    assert "exists already" in refused(folder, "add", "blog", "--id", id)


def test_a_second_id_for_a_label_has_a_file_of_its_own(folder: Path) -> None:
    first = answer(folder, "add", "home")
    second = answer(folder, "add", "home")
    assert second["file"] == str(folder / f"home-{second['id'][:8]}.agent.ini")
    assert agent_file(folder / "home.agent.ini")["credential"]["id"] == first["id"]
    assert agent_file(folder / second["file"])["credential"]["id"] == second["id"]
    assert [entry["id"] for entry in answer(folder, "show", "home")] == [first["id"], second["id"]]


def test_a_file_that_is_there_is_overwritten_by_force_alone(folder: Path) -> None:
    (folder / "home.agent.ini").write_text("mine")
    assert "home.agent.ini exists" in refused(folder, "add", "home")
    added = answer(folder, "add", "home", "--force")
    assert agent_file(folder / "home.agent.ini")["credential"]["id"] == added["id"]


def test_an_add_that_is_refused_leaves_a_file_that_force_would_have_replaced(folder: Path) -> None:
    id = answer(folder, "add", "home")["id"]
    assert "exists already" in refused(folder, "add", "home", "--id", id, "--force")


def test_without_a_certificate_nothing_is_stored_and_make_cert_is_named(folder: Path) -> None:
    (folder / "registrar.crt").unlink()
    assert "make_cert.py" in refused(folder, "add", "home")
    assert not (folder / "taas.db").exists()


@pytest.mark.parametrize("broken", ["", "MIIB", "MIIBMIIBMIIBMIIB", "AAAA", "====", "MA"])
def test_a_broken_certificate_is_one_line(folder: Path, broken: str) -> None:
    pem = f"-----BEGIN CERTIFICATE-----\n{broken}\n-----END CERTIFICATE-----\n"
    (folder / "registrar.crt").write_text(pem if broken else "no PEM")
    assert "certificate" in refused(folder, "add", "home")


def test_the_registrar_s_own_label_is_reserved(folder: Path) -> None:
    assert "label registrar is taken" in refused(folder, "add", "home", "Registrar")
    id = answer(folder, "add", "home")["id"]
    assert "label registrar is taken" in refused(folder, "grant", id, "registrar")


def test_a_port_is_fixed_for_one_label_alone(folder: Path) -> None:
    assert answer(folder, "add", "home", "--port", 62050)["ports"] == {"home": 62050}
    assert "port 62050 is the fixed port of label home" in refused(folder, "add", "blog", "--port", 62050)
    assert "one label" in refused(folder, "add", "blog", "shop", "--port", 62051)
    assert "the service's own" in refused(folder, "add", "blog", "--port", 443)


@pytest.mark.parametrize(
    "arguments",
    [
        ["add"],
        ["add", "home-"],
        ["add", "ho_me"],
        ["add", "x" * 64],
        ["add", "home", "--id", "1234"],
        ["add", "home", "--port", "0"],
        ["add", "home", "--port", "65536"],
        ["add", "home", "--digits", "9"],
        ["add", "home", "--period", "0"],
        ["add", "home", "--algorithm", "MD5"],
        ["grant", "x"],
        ["fly"],
        [],
    ],
)
def test_wrong_usage_is_2(folder: Path, arguments: list[str]) -> None:
    assert "usage:" in refused(folder, *arguments, code=2)


def test_people_are_told_the_next_step(folder: Path) -> None:
    (folder / "taas.ini").write_text(f"{INI}port = 8443\n")
    said = run(folder, "add", "home").stdout
    assert "python taas_agent.py home.agent.ini --to 127.0.0.1:443" in said
    assert "https://home.taas.example.com:8443/" in said


def test_the_original_s_client_can_load_its_file(folder: Path, certificate: bytes) -> None:
    added = answer(folder, "add", "home", "--format", "js", "--digits", 8, "--period", 60)
    assert added["file"] == str(folder / "home.js")
    text = (folder / "home.js").read_text()
    params = json.loads(text.removeprefix("exports.params = "))
    ca = params["server"].pop("ca")
    assert ca["type"] == "Buffer"
    assert bytes(ca["data"]) == certificate
    assert params == {
        "base32": added["secret"],
        "step": 60,
        "length": 8,
        "issuer": "taas.example.com",
        "uuid": [added["id"]],
        "labels": ["home"],
        "server": {"hostname": "registrar.taas.example.com", "port": 443},
    }
    assert "SHA1 only" in refused(folder, "add", "blog", "--format", "js", "--algorithm", "SHA256")


# The others


def test_list_keeps_secrets_and_show_gives_them_with_the_uri(folder: Path) -> None:
    assert answer(folder, "list") == []
    added = answer(folder, "add", "home")
    (listed,) = answer(folder, "list")
    assert listed["id"] == added["id"]
    assert added["secret"] not in run(folder, "list").stdout + json.dumps(listed)
    for what in (added["id"], added["id"].upper(), "home", "HOME"):
        (shown,) = answer(folder, "show", what)
        assert (shown["secret"], shown["uri"]) == (added["secret"], added["uri"])
    assert added["uri"] in run(folder, "show", "home").stdout
    assert "no ID and no label nothing" in refused(folder, "show", "nothing")


def test_granting_and_revoking(folder: Path) -> None:
    id = answer(folder, "add", "home")["id"]
    assert answer(folder, "grant", id, "blog", "Shop")["labels"] == ["home", "blog", "shop"]
    assert answer(folder, "revoke", id, "home", "shop")["labels"] == ["blog"]
    assert answer(folder, "list")[0]["labels"] == ["blog"]
    assert "not granted" in refused(folder, "revoke", id, "home")


def test_disabling_and_enabling(folder: Path) -> None:
    id = answer(folder, "add", "home")["id"]
    assert answer(folder, "disable", id)["enabled"] is False
    assert "DISABLED" in run(folder, "list").stdout
    assert answer(folder, "enable", id)["enabled"] is True


def test_removing(folder: Path) -> None:
    id = answer(folder, "add", "home", "--port", 62050)["id"]
    assert answer(folder, "remove", id) == {"id": id, "removed": True}
    assert answer(folder, "list") == []
    (folder / "home.agent.ini").unlink()
    assert answer(folder, "add", "blog", "--port", 62050)["ports"] == {"blog": 62050}


def test_rotating_writes_the_file_anew_but_not_over_another(folder: Path) -> None:
    added = answer(folder, "add", "home", "blog", "--digits", 7)
    rotated = answer(folder, "rotate", added["id"])
    assert rotated["file"] == str(folder / f"home-{added['id'][:8]}.agent.ini")
    assert rotated["secret"] != added["secret"]
    assert answer(folder, "show", "home")[0]["secret"] == rotated["secret"]
    assert agent_file(folder / "home.agent.ini")["credential"]["secret"] == added["secret"]
    written = agent_file(folder / rotated["file"])["credential"]
    assert [written[key] for key in ("secret", "digits", "labels")] == [rotated["secret"], "7", "home, blog"]
    assert f"{Path(rotated['file']).name} exists" in refused(folder, "rotate", added["id"])
    forced = answer(folder, "rotate", added["id"], "--force")
    assert forced["file"] == str(folder / "home.agent.ini")
    assert agent_file(folder / "home.agent.ini")["credential"]["secret"] == forced["secret"]


def test_rotating_one_of_two_ids_leaves_the_other_s_file(folder: Path) -> None:
    first = answer(folder, "add", "home")
    second = answer(folder, "add", "home")
    rotated = answer(folder, "rotate", second["id"], "--force")
    assert rotated["file"] == second["file"]
    assert agent_file(folder / "home.agent.ini")["credential"]["secret"] == first["secret"]


def test_an_id_that_is_removed_and_added_again_is_another_credential(folder: Path) -> None:
    generations = set()
    for _ in range(2):
        id = answer(folder, "add", "home", "--force", "--id", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")["id"]
        store = Book(folder / "taas.db", busy_ms=5000, synchronous="FULL")
        generations.add(store.rights(id, "home"))
        store.close()
        answer(folder, "remove", id)
    assert len(generations) == 2


@pytest.mark.parametrize("command", ["grant", "revoke", "remove", "rotate", "disable", "enable"])
def test_an_unknown_id_is_refused(folder: Path, command: str) -> None:
    answer(folder, "add", "home")
    labels = ["home"] if command in ("grant", "revoke") else []
    assert "there is no ID and no label nobody" in refused(folder, command, "nobody", *labels)


def test_a_label_stands_for_its_only_id(folder: Path) -> None:
    id = answer(folder, "add", "home")["id"]
    assert answer(folder, "disable", "home")["enabled"] is False
    assert answer(folder, "enable", "home")["enabled"] is True
    assert answer(folder, "grant", "home", "cam")["labels"] == ["home", "cam"]
    assert answer(folder, "rotate", "cam", "--force")["id"] == id
    assert answer(folder, "revoke", "home", "cam")["labels"] == ["home"]
    assert answer(folder, "remove", "home") == {"id": id, "removed": True}


def test_a_label_with_several_ids_asks_which(folder: Path) -> None:
    ids = [answer(folder, "add", "home")["id"] for _ in range(2)]
    complaint = refused(folder, "disable", "home")
    assert all(id in complaint for id in ids)


def test_config_and_json_are_taken_before_and_after_the_subcommand(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ini = folder / "taas.ini"
    id = answer(folder, "add", "home")["id"]
    for arguments in (
        ["-c", ini, "--json", "list"],
        ["list", "-c", ini, "--json"],
        ["--json", "list", "--config", ini],
        ["-c", ini, "list", "--json"],
        ["-c", "absent.ini", "list", "-c", ini, "--json"],
    ):
        done = run(elsewhere, *arguments)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["id"] == id
    assert not run(elsewhere, "-c", ini, "list").stdout.startswith("[")


def test_the_agent_file_goes_where_we_are_and_the_database_where_the_ini_is(folder: Path) -> None:
    here = folder / "here"
    here.mkdir()
    answer(here, "-c", "../taas.ini", "add", "home")
    assert [file.name for file in here.iterdir()] == ["home.agent.ini"]
    assert (folder / "taas.db").exists()


def test_an_ini_that_is_no_good_is_2(folder: Path) -> None:
    assert "absent.ini: can't be read" in refused(folder, "-c", "absent.ini", "list", code=2)
    (folder / "taas.ini").write_text(f"{INI}colour = blue\n")
    assert "[taas] colour: unknown key" in refused(folder, "add", "home", code=2)


def test_a_broken_database_is_one_line(folder: Path) -> None:
    (folder / "taas.db").write_bytes(b"not a database " * 1000)
    for arguments in (["list"], ["add", "home"]):
        done = run(folder, *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert "taas.db is unusable" in done.stderr
    assert not (folder / "home.agent.ini").exists()


def test_a_missing_pyotp_is_named_with_its_remedies(folder: Path) -> None:
    done = run(folder, "add", "home", python=("-S", "-E"))  # no site-packages
    assert done.returncode == 1
    assert "pip install pyotp, or apt install python3-pyotp" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "taas.db").exists()


def test_main_returns_its_exit_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert taas_admin.main(["add", "home"]) == 0
    assert taas_admin.main(["show", "blog"]) == 1
    assert capsys.readouterr().err.startswith("taas_admin.py: there is no ID and no label blog")


def test_root_leaves_the_database_to_the_user_and_keeps_the_agent_file(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    nobody = pwd.getpwnam("nobody").pw_uid
    (folder / "taas.ini").write_text(f"{INI}user = nobody\ndatabase = data/taas.db\n")
    answer(folder, "add", "home")
    assert {file.stat().st_uid for file in (folder / "data").iterdir()} == {nobody}
    assert (folder / "data").stat().st_uid == nobody
    assert (folder / "home.agent.ini").stat().st_uid == 0
    (folder / "taas.ini").write_text(f"{INI}user = nobody\n")
    answer(folder, "add", "blog")
    assert {file.stat().st_uid for file in folder.glob("taas.db*")} == {nobody}
    assert folder.stat().st_uid == 0
    (folder / "taas.ini").write_text(f"{INI}user = no-such-user\n")
    assert "[taas] user: there is no user 'no-such-user'" in refused(folder, "list", code=2)


# taas.ini.example


def test_the_example_holds_every_option_at_its_default() -> None:
    text = (TOP / "taas.ini.example").read_text()
    path = Path("taas.ini")
    as_it_is = config.parse(text, path)
    uncommented = re.sub("(?m)^;", "", text)
    assert config.parse(uncommented, path) == as_it_is
    required = ("public", "registrar", "servers")
    bare = "[taas]\n" + "".join(re.findall(f"(?m)^(?:{'|'.join(required)}) = .*\n", text))
    assert config.parse(bare, path) == as_it_is
    ini = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    ini.read_string(uncommented)
    known = {"taas": config._TAAS, "limits": config._LIMITS, "log": config._LOG, "admin": config._ADMIN}
    assert {section: set(ini[section]) for section in ini.sections()} == {s: set(k) for s, k in known.items()}


def test_a_label_s_mode_is_given_and_changed(folder: Path) -> None:
    assert answer(folder, "add", "home", "--mode", "passthrough")["modes"] == {"home": "passthrough"}
    assert answer(folder, "set", "home", "--mode", "both") == {"label": "home", "mode": "both"}
    assert answer(folder, "list")[0]["modes"] == {"home": "both"}
    assert "there is no label nobody" in refused(folder, "set", "nobody", "--mode", "both")


def test_pass_through_and_a_fixed_port_exclude_each_other(folder: Path) -> None:
    complaint = refused(folder, "add", "home", "--mode", "passthrough", "--port", "62050")
    assert "62050" in complaint and not (folder / "home.agent.ini").exists()
    answer(folder, "add", "home", "--port", "62050")
    assert "62050" in refused(folder, "set", "home", "--mode", "passthrough")


# Own domains

OWN_HOST = "home.example.org"


def test_the_command_grants_lists_and_revokes(folder: Path) -> None:
    answer(folder, "add", "home", "cam")
    granted = answer(folder, "grant", "home", "--host", "Bücher.Example.ORG.", "--host", OWN_HOST)
    assert granted == {"label": "home", "hosts": [OWN_HOST, "xn--bcher-kva.example.org"]}
    assert answer(folder, "list")[0]["hosts"] == {"home": granted["hosts"]}
    assert "belongs to label home" in refused(folder, "grant", "cam", "--host", OWN_HOST)
    assert answer(folder, "revoke", "home", "--host", OWN_HOST)["hosts"] == ["xn--bcher-kva.example.org"]
    assert answer(folder, "grant", "cam", "--host", OWN_HOST)["hosts"] == [OWN_HOST]


@pytest.mark.parametrize(
    "host",
    ["192.0.2.1", "::1", "a b.org", "-a.org", "single", "", "taas.example.com", "x.y.taas.example.com"],
)
def test_what_can_not_be_an_own_domain_is_refused(folder: Path, host: str) -> None:
    answer(folder, "add", "home")
    text = (folder / "taas.ini").read_text()
    if host.endswith("taas.example.com"):
        host = host.replace("taas.example.com", text.partition("servers = ")[2].split()[0])
    assert "host" in refused(folder, "grant", "home", f"--host={host}")
    assert answer(folder, "list")[0]["hosts"] == {}


def test_the_registrar_is_nobody_s_own_domain(folder: Path) -> None:
    answer(folder, "add", "home")
    registrar = (folder / "taas.ini").read_text().partition("registrar = ")[2].split()[0]
    assert "own" in refused(folder, "grant", "home", "--host", registrar)


# How it was called, and who reads


def test_list_tells_people_a_mode_that_is_not_the_default(folder: Path) -> None:
    answer(folder, "add", "home", "--port", 62050)
    answer(folder, "add", "cam", "--mode", "passthrough")
    home, cam = run(folder, "list").stdout.splitlines()
    assert home.endswith("  home (port 62050)") and cam.endswith("  cam (passthrough)")


def test_hints_name_the_command_as_it_was_called(folder: Path) -> None:
    archive = folder / "my-taas.pyz"
    with zipfile.ZipFile(archive, "w") as pyz:
        pyz.write(TOP / "tools" / "dist_main.py", "__main__.py")
        for file in [*TOP.glob("*.py"), *TOP.glob("taas*/*.py")]:
            pyz.write(file, file.relative_to(TOP))
    installed = folder / "taas-admin"  # what pip makes of [project.scripts]
    path = f"import sys\nsys.path.insert(0, {str(TOP)!r})\n"
    installed.write_text(f"{path}import taas_admin\ntaas_admin.main()\n")
    for command, admin, agent in (
        ([TOP / "taas_admin.py"], "python taas_admin.py", "python taas_agent.py"),
        ([archive, "admin"], "python3 my-taas.pyz admin", "python3 my-taas.pyz agent"),
        ([installed], "taas-admin", "taas-agent"),
    ):
        label = agent.translate({ord(c): "x" for c in " ._"})

        def said(*arguments: str, command: list[Any] = command) -> subprocess.CompletedProcess[str]:
            line = [sys.executable, *command, *arguments]
            return subprocess.run(line, cwd=folder, capture_output=True, text=True)

        assert f"\n    {agent} {label}.agent.ini --to " in said("add", label).stdout
        complaint = said("remove", "nobody").stderr
        assert complaint.startswith(admin.rpartition("python")[2].removeprefix("3").lstrip() + ": ")
        assert complaint.endswith(f": see {admin} list\n")


def test_a_reader_that_has_seen_enough_is_no_error(folder: Path) -> None:
    answer(folder, "add", "home")
    for option in ("--json", "-c=taas.ini"):
        reading, writing = os.pipe()
        os.close(reading)  # as `head` does, only sooner
        command = [sys.executable, str(TOP / "taas_admin.py"), *option.split("="), "list"]
        done = subprocess.run(command, cwd=folder, stdout=writing, stderr=subprocess.PIPE, text=True)
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, "")
