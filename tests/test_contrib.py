"""contrib/: the unit for systemd and the ACME deploy hook."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CONTRIB = Path(__file__).resolve().parent.parent / "contrib"
UNIT = CONTRIB / "taas.service"
HOOK = CONTRIB / "acme-deploy-hook"
AS_ROOT = os.geteuid() == 0


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze (systemd)")
def test_the_unit_is_as_safe_as_it_says() -> None:
    said = re.search(r"says: ([0-9.]+) OK", UNIT.read_text())
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", UNIT], capture_output=True, text=True
    )
    found = re.search(r"exposure level for taas.service: ([0-9.]+)", done.stdout)
    if done.returncode and not found:
        pytest.skip("systemd-analyze security --offline (systemd 250)")
    assert said and found and float(found[1]) <= float(said[1]) + 0.2  # versions weigh a little differently


def test_the_unit_gives_the_drain_its_time_and_no_more_rights_than_the_port_needs() -> None:
    settings = dict(re.findall(r"^([A-Za-z]+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    assert int(settings["TimeoutStopSec"]) > 30
    assert settings["AmbientCapabilities"] == settings["CapabilityBoundingSet"] == "CAP_NET_BIND_SERVICE"
    assert (settings["User"], settings["Type"], settings["Restart"]) == ("taas", "notify", "on-failure")
    assert "WatchdogSec" in settings and "LimitNOFILE" in settings


def hook(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = {"RENEWED_LINEAGE": str(folder / "new"), "TAAS_FOLDER": str(folder / "state")}
    user = "nobody" if AS_ROOT else pwd.getpwuid(os.geteuid()).pw_name
    return subprocess.run(
        [HOOK], env=os.environ | paths | {"TAAS_USER": user} | environment, capture_output=True, text=True
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("new", "state"):
        (tmp_path / name).mkdir()
    (tmp_path / "new" / "fullchain.pem").write_text("chain")
    (tmp_path / "new" / "privkey.pem").write_text("key")
    (tmp_path / "state" / "registrar.key").write_text("old")
    return tmp_path


def test_the_hook_gives_the_user_the_renewed_files(folder: Path) -> None:
    assert hook(folder).returncode == 0
    key, certificate = folder / "state" / "registrar.key", folder / "state" / "registrar.crt"
    assert (key.read_text(), certificate.read_text()) == ("key", "chain")
    assert key.stat().st_mode & 0o777 == 0o600 and certificate.stat().st_mode & 0o777 == 0o644
    if AS_ROOT:
        assert key.owner() == certificate.owner() == "nobody"


def test_a_hook_that_fails_leaves_the_old_files_and_says_so(folder: Path) -> None:
    (folder / "new" / "fullchain.pem").unlink()
    assert hook(folder).returncode != 0
    assert (folder / "state" / "registrar.key").read_text() == "old"
    assert hook(folder, RENEWED_LINEAGE="").returncode != 0
