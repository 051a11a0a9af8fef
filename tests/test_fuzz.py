"""The fuzzer's command, as far as it goes without the fuzzer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools.fuzz import never_happened
from tools.fuzz_targets import TARGETS

ROOT = Path(__file__).parent.parent


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/fuzz.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_a_known_input_is_replayed_and_says_what_happened() -> None:
    run = fuzz("--replay", "http1", "tests/corpus/http1/client-of-2014")
    assert (run.returncode, run.stderr) == (0, "")
    assert "a request\n" in run.stdout and "h11 sees the same request\n" in run.stdout


def test_an_unknown_target_is_named() -> None:
    run = fuzz("http2")
    assert run.returncode == 2 and "no such target: http2" in run.stderr


def test_a_target_that_tested_nothing_fails() -> None:
    assert never_happened(3, {"a name": 2, "more": 0}, ("a name", "more", "no name")) == ["more", "no name"]
    assert never_happened(0, {}, ()) == ["an input"]
    assert all(target.must for target in TARGETS.values())
