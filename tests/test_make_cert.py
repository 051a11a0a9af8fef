"""make_cert.py as the operator runs it, with the real openssl."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

import make_cert

TOP = Path(__file__).parent.parent
INI = """\
[taas]
public = 127.0.0.1, ::1
registrar = taas-registrar.example.com
servers = taas.example.com
"""

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl(1) is not installed")


def run(folder: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path} if path is not None else None
    command = [sys.executable, str(TOP / "make_cert.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def made(folder: Path, *arguments: str) -> str:
    done = run(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def openssl(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "taas.ini").write_text(INI)
    return tmp_path


def test_the_certificate_carries_every_name(folder: Path) -> None:
    made(folder, "taas.ini")
    text = openssl(folder, "x509", "-in", "registrar.crt", "-noout", "-text")
    names = (
        "IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1, DNS:taas-registrar.example.com,"
        " DNS:taas.example.com, DNS:*.taas.example.com"
    )
    for part in (names, "prime256v1", "CA:FALSE", "ecdsa-with-SHA256"):
        assert part in text
    # Ten years, give or take the leap days.
    almost = 3649 * 86400
    check = ["x509", "-in", "registrar.crt", "-noout", "-checkend"]
    openssl(folder, *check, str(almost))
    with pytest.raises(subprocess.CalledProcessError):
        openssl(folder, *check, str(almost + 2 * 86400))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "taas-registrar.example.com", "home.taas.example.com"])
def test_python_trusts_it_under_each_name(folder: Path, host: str) -> None:
    made(folder)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "registrar.crt", folder / "registrar.key")
    client = ssl.create_default_context(cafile=str(folder / "registrar.crt"))
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT  # the default from 3.13 on
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname=host), server.wrap_bio(up, down, server_side=True)]
    for _ in range(4):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    assert ends[0].version() is not None


def test_the_key_is_for_our_eyes_alone_whatever_the_umask(folder: Path) -> None:
    for umask in (0, 0o077):
        before = os.umask(umask)
        try:
            made(folder, "--force")
        finally:
            os.umask(before)
        assert (folder / "registrar.key").stat().st_mode & 0o777 == 0o600
        assert (folder / "registrar.crt").stat().st_mode & 0o777 == 0o644
    assert {file.name for file in folder.iterdir()} == {"taas.ini", "registrar.crt", "registrar.key"}


def test_the_fingerprint_is_openssl_s(folder: Path) -> None:
    said = made(folder, "taas.ini")
    theirs = openssl(folder, "x509", "-in", "registrar.crt", "-noout", "-fingerprint", "-sha256")
    assert f"SHA-256 fingerprint: {theirs.partition('=')[2].strip()}" in said.splitlines()


@pytest.mark.parametrize("there", ["registrar.crt", "registrar.key"])
def test_nothing_is_overwritten_without_force(folder: Path, there: str) -> None:
    (folder / there).write_text("mine")
    done = run(folder, "taas.ini")
    assert done.returncode == 1
    assert f"{there} exists" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (folder / there).read_text() == "mine"
    assert {file.name for file in folder.iterdir()} == {"taas.ini", there}
    made(folder, "taas.ini", "--force")
    assert (folder / there).read_text() != "mine"


def test_renewing_keeps_the_key(folder: Path) -> None:
    made(folder)
    key, certificate = (folder / "registrar.key").read_text(), (folder / "registrar.crt").read_text()
    made(folder, "--renew")
    assert (folder / "registrar.key").read_text() == key
    assert (folder / "registrar.crt").read_text() != certificate
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
        folder / "registrar.crt", folder / "registrar.key"
    )


def test_there_must_be_a_key_to_renew_for(folder: Path) -> None:
    done = run(folder, "--renew")
    assert done.returncode == 1
    assert "registrar.key is missing" in done.stderr


def test_files_go_where_the_ini_says(folder: Path) -> None:
    (folder / "etc").mkdir()
    (folder / "etc" / "my.ini").write_text(INI + "certificate = tls/public.pem\nkey = private/key.pem\n")
    made(folder, "etc/my.ini")
    assert (folder / "etc" / "tls" / "public.pem").exists()
    assert (folder / "etc" / "private" / "key.pem").exists()


def test_without_an_ini_it_is_good_for_localhost_and_says_so(tmp_path: Path) -> None:
    said = made(tmp_path)
    assert "localhost and 127.0.0.1 only" in said
    text = openssl(tmp_path, "x509", "-in", "registrar.crt", "-noout", "-text")
    assert "IP Address:127.0.0.1, DNS:localhost, DNS:*.localhost" in text


def test_a_registrar_s_name_may_be_longer_than_a_common_name(folder: Path) -> None:
    name = ".".join(["a" * 60] * 3) + ".example.com"
    (folder / "taas.ini").write_text(INI.replace("taas-registrar.example.com", name))
    made(folder, "taas.ini")
    assert f"DNS:{name}" in openssl(folder, "x509", "-in", "registrar.crt", "-noout", "-text")


@pytest.mark.parametrize(("ini", "said"), [("absent.ini", "can't be read"), ("bad.ini", "[taas] public")])
def test_an_ini_that_is_no_good_is_one_line_and_2(folder: Path, ini: str, said: str) -> None:
    (folder / "bad.ini").write_text(INI.replace("127.0.0.1", "here"))
    done = run(folder, ini)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr


def test_a_missing_openssl_is_named_with_its_remedy(folder: Path) -> None:
    done = run(folder, "taas.ini", path=str(folder))
    assert done.returncode == 1
    assert "openssl is missing: apt install openssl" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "registrar.key").exists()


def test_an_openssl_that_fails_leaves_nothing_behind(folder: Path) -> None:
    tools = folder / "bin"
    tools.mkdir()
    (tools / "openssl").write_text("#!/bin/sh\necho 'no entropy today' >&2\nexit 3\n")
    (tools / "openssl").chmod(0o755)
    done = run(folder, "taas.ini", path=f"{tools}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "openssl req failed (3): no entropy today" in done.stderr
    assert {file.name for file in folder.iterdir()} == {"taas.ini", "bin"}


def test_main_returns_its_exit_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [make_cert.main([]), make_cert.main([]), make_cert.main(["--force"])] == [0, 1, 0]


def test_an_unknown_user_is_a_line_about_the_ini(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("`user` counts for root alone")
    (folder / "taas.ini").write_text(INI + "user = no-such-user\n")
    done = run(folder, "taas.ini")
    assert done.returncode == 2
    assert "[taas] user" in done.stderr


def test_root_leaves_files_to_the_user_and_only_a_folder_that_it_made(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    nobody = pwd.getpwnam("nobody").pw_uid
    (folder / "taas.ini").write_text(INI + "user = nobody\nkey = private/registrar.key\n")
    made(folder, "taas.ini")
    for name in ("registrar.crt", "private/registrar.key", "private"):
        assert (folder / name).stat().st_uid == nobody
    assert folder.stat().st_uid == 0
