"""The soak's own judgement: a run of it passes, and whatever it is there for makes it fail."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from process import free_port

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from soak import ALL_FAULTS, MORE_OTHERS, Findings, Held, listening, live_pairs, troubled  # noqa: E402
from soak_faults import RECOVERY, Figures, Scene, answer_to, is_explained, is_prefix  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and all of 127.0.0.0/8")
SCALED_DOWN = ("--minutes", "0.4", "--scale", "0.05")


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/soak.py", "--port", str(port_below_free_ones()), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


def port_below_free_ones() -> int:
    """A port for the service; the hundred behind it are for its ports p and q."""
    while (port := free_port()) > 65000:
        pass
    return port


def findings(**changes: Any) -> Findings:
    """Those of a run without trouble, but for the CHANGES."""
    held = Held(sockets=23, listening=5, others=10, resident_kb=28_000)
    facts: dict[str, Any] = {
        "figures": Figures(tried=1, milliseconds=[1.0]),
        "happened": dict.fromkeys(ALL_FAULTS, 1),
        "wrong": 0,
        "before": {"service": held, "agent home": held},
        "after": {"service": held, "agent home": held},
        "live_pairs": 0,
        "words": [],
        "ended": [],
    }
    return Findings(**{**facts, **changes})


def test_visits_one_after_the_other_leave_nothing_behind() -> None:
    run = soak("--visits", "20")
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    assert "20 tried" in run.stdout and " 0 failed; " in run.stdout
    assert run.stdout.endswith("soak: no trouble\n")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_mixed_soak_survives_every_fault() -> None:
    run = soak(*SCALED_DOWN)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    for name in ALL_FAULTS:
        assert f"  {name} (" in run.stdout
    assert run.stdout.endswith("soak: no trouble\n")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fault_that_never_happened_fails_the_soak() -> None:
    run = soak(*SCALED_DOWN, "--without", "half-closes", "--without", "kill -9 of the service")
    assert run.returncode == 1
    assert [line for line in run.stdout.splitlines() if line.startswith("soak: ")] == [
        "soak: it never happened: half-closes",
        "soak: it never happened: kill -9 of the service",
    ]


def test_findings_without_trouble_pass() -> None:
    assert findings().complaints() == []
    assert "1 tried" in findings().table(60)


@pytest.mark.parametrize("name", ALL_FAULTS)
def test_each_fault_has_to_happen(name: str) -> None:
    assert findings(happened={**dict.fromkeys(ALL_FAULTS, 1), name: 0}).complaints() == [
        f"it never happened: {name}"
    ]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"wrong": 2}, "octets came that are another's, 2 times"),
        ({"live_pairs": 1}, "1 pairs are live according to the log, and nobody is there"),
        ({"words": ["server.log: a fault"]}, "server.log: a fault"),
        ({"ended": ["stalls ended with 1"]}, "stalls ended with 1"),
        ({"figures": Figures(failed=["why"], milliseconds=[1.0])}, "a visit failed: why"),
        ({"figures": Figures()}, "no visit came to its end"),
    ],
)
def test_whatever_is_wrong_is_said(changes: dict[str, Any], complaint: str) -> None:
    assert findings(**changes).complaints() == [complaint]


def test_a_descriptor_that_nobody_closed_is_a_leak() -> None:
    before = Held.by(os.getpid(), listening())
    with socket.create_server(("127.0.0.1", 0)):
        after = Held.by(os.getpid(), listening())
    assert before.leak(after, 1 << 20) == "1 sockets, 1 open ports"
    assert before.leak(Held.by(os.getpid(), listening()), 1 << 20) == ""
    complaints = findings(before={"service": before}, after={"service": after}).complaints()
    assert (
        len(complaints) == 1 and "the service does not hold what it held before: 1 sockets" in complaints[0]
    )


def test_a_hidden_server_that_does_not_come_back_is_missed() -> None:
    before, after = Held(23, 5, 10, 28_000), Held(19, 5, 10, 28_000)
    assert before.leak(after, 0) == "4 sockets less: not all of who waited came back"


def test_pipes_and_memory_may_grow_a_little_and_no_more() -> None:
    held = Held(sockets=23, listening=5, others=10, resident_kb=28_000)
    assert held.leak(Held(23, 5, 10 + MORE_OTHERS, 29_000), 1000) == ""
    assert (
        held.leak(Held(23, 5, 11 + MORE_OTHERS, 29_001), 1000) == f"{MORE_OTHERS + 1} pipes or files, 1001 kB"
    )


def test_without_faults_less_memory_may_be_kept() -> None:
    after = {"service": Held(23, 5, 10, 28_000), "agent home": Held(23, 5, 10, 30_001)}
    assert findings(after=after).complaints() == []
    words = "the agent home does not hold what it held before: 2001 kB"
    assert findings(after=after, happened={}).complaints() == [words]


def test_an_octet_of_another_is_seen_and_a_visit_cut_short_is_not_taken_for_one() -> None:
    scene = Scene(Path(), 0, range(0), 1.0, ())
    expected = answer_to(b"said")
    assert is_prefix(scene, expected, expected) and is_prefix(scene, expected[:-1], expected)
    assert scene.wrong.value == 0
    assert not is_prefix(scene, expected[:-1] + bytes([expected[-1] ^ 1]), expected)
    assert not is_prefix(scene, answer_to(b"sai"), expected)
    assert scene.wrong.value == 2


def test_a_kill_explains_what_it_met_and_what_comes_until_somebody_gets_through_and_no_more() -> None:
    killed_at = 100.0
    assert is_explained(99, 101, killed_at, recovered_from=0)
    assert is_explained(101, 102, killed_at, recovered_from=0)
    assert not is_explained(101, 102, killed_at, recovered_from=killed_at)
    assert not is_explained(101, killed_at + RECOVERY, killed_at, recovered_from=0)
    assert not is_explained(5, 6, 0.0, 0.0)  # nobody was killed


def test_a_word_of_trouble_in_a_log_is_found(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(
        "T warning wrong-code id=1\nT error fault owner=x\nT error stalled traceback=y\nTraceback (m\n"
    )
    assert troubled(log) == ["T error fault owner=x", "T error stalled traceback=y", "Traceback (m"]


def test_pairs_that_no_line_ends_are_live_until_a_new_start(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("T info paired label=a\nT info paired label=a\nT info reset label=a to_initiator=1\n")
    assert live_pairs(log) == 1
    log.write_text(log.read_text() + "T info started version=1\n")
    assert live_pairs(log) == 0
