"""make dist and pip install: what a release is made of."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pyotp
import pytest

TOP = Path(__file__).resolve().parent.parent
SOURCES = ("taas.py", "taas_admin.py", "taas_agent.py", "make_cert.py", "taaslib", "taasadmin", "contrib",
           "docs", "tools", "taas.ini.example", "README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE",
           "pyproject.toml")  # fmt: skip
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
COMMANDS = ("taas", "taas-admin", "taas-agent", "taas-make-cert")


def copy_of_sources(folder: Path) -> Path:
    for name in SOURCES:
        if (TOP / name).is_dir():
            shutil.copytree(TOP / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(TOP / name, folder / name)  # with today's date
    return folder


def run(*command: object, **options: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What make dist takes from the package index."""
    folder = tmp_path_factory.mktemp("wheels")
    pinned = ["--require-hashes", "--only-binary", ":all:", "-r", str(TOP / "tools" / "requirements.txt")]
    done = subprocess.run([*PIP, "download", *pinned, "-d", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("the package index can't be reached")
    return folder


def test_two_builds_in_different_folders_are_the_same_to_the_octet(tmp_path: Path, wheels: Path) -> None:
    sums = []
    for name, umask in (("a", 0o022), ("a longer name", 0o077)):
        folder = copy_of_sources(tmp_path / name)
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "SOURCE_DATE_EPOCH": "1700000000"}
        offline["PYTHONHASHSEED"] = str(umask)
        before = os.umask(umask)
        try:
            run(sys.executable, "tools/dist.py", cwd=folder, env=os.environ | offline)
        finally:
            os.umask(before)
        sums.append((folder / "dist" / "SHA-256SUMS").read_text())
        for line in sums[-1].splitlines():
            digest, file = line.split("  ")
            assert hashlib.sha256((folder / "dist" / file).read_bytes()).hexdigest() == digest
    assert sums[0] == sums[1] and [line[66:] for line in sums[0].splitlines()] == ["taas.pyz", "taas.tar.gz"]
    with zipfile.ZipFile(tmp_path / "a" / "dist" / "taas.pyz") as archive:
        names = set(archive.namelist())
    assert {"taas.py", "taas_admin.py", "taaslib/store.py", "pyotp/totp.py"} <= names
    assert {"taasadmin/page.py", "taasadmin/page.css", "taasadmin/page.js"} <= names


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment that has `pip install .` behind it."""
    folder = tmp_path_factory.mktemp("pip install")
    build = [*PIP, "wheel", "--no-deps", "-w", str(folder), str(copy_of_sources(folder / "sources"))]
    try:  # with the setuptools that is here, or one that pip fetches
        here = int(metadata.version("setuptools").partition(".")[0]) >= 77
    except metadata.PackageNotFoundError:
        here = False
    done = subprocess.run(build + ["--no-build-isolation"] * here, capture_output=True, text=True)
    if done.returncode and not here:
        pytest.skip("no setuptools 77 here, and the package index can't be reached")
    assert done.returncode == 0, done.stderr
    venv.create(folder / "fresh", with_pip=True)
    python = folder / "fresh" / "bin" / "python"
    (wheel,) = folder.glob("taas-*.whl")
    run(python, *PIP[1:], "install", "--no-index", "--no-deps", wheel)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    shutil.copytree(Path(pyotp.__file__).parent, Path(site) / "pyotp")
    return python.parent


def test_pip_installs_four_commands(installed: Path, tmp_path: Path) -> None:
    assert all("usage: " in run(installed / command, "--help") for command in COMMANDS)
    version = run(installed / "taas", "--version").split()
    assert version == [
        "taas",
        run(installed / "python", "-c", "import taaslib; print(taaslib.__version__)").strip(),
    ]
    init = ("init", "--domain", "taas.example.com", "--public", "203.0.113.7")
    assert "    taas-admin add home\n    taas taas.ini\n" in run(
        installed / "taas-admin", *init, cwd=tmp_path
    )
    assert "    taas-agent home.agent.ini --to " in run(installed / "taas-admin", "add", "home", cwd=tmp_path)
    (entry,) = json.loads(run(installed / "taas-admin", "--json", "list", cwd=tmp_path))
    asset = "import pkgutil; print(pkgutil.get_data('taasadmin', '{}').decode())"
    assert "--accent" in run(installed / "python", "-c", asset.format("page.css"), cwd=tmp_path)
    assert "use strict" in run(installed / "python", "-c", asset.format("page.js"), cwd=tmp_path)
    assert entry["labels"] == ["home"]
    run(installed / "taas-make-cert", "--renew", cwd=tmp_path)
    assert run(installed / "taas", "--check", "taas.ini", cwd=tmp_path) == "taas.ini: good\n"
