"""What pytest really did: a plugin that writes it down, and a command that reads all of it and judges.

    python -m pytest -p tools.skips --outcomes FILE        the plugin: one JSON document for each run
    python tools/skips.py FILE...                          the judge: fails on a skip that nobody explained

A skip is explained by a line `NODE-ID  # reason` in .ci/skips.txt.  An expected failure counts as a skip:
both are promises that were not checked.  Knows nothing of TAAS.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

ALLOWED = Path(__file__).resolve().parent.parent / ".ci" / "skips.txt"


class Recorder:
    """Notes the outcome of each test, and of each file that was skipped whole."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._outcomes: dict[str, tuple[str, str]] = {}  # node id -> (outcome, reason)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome != "passed":
            self._note(report.nodeid, report.outcome, _reason(report.longrepr))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":  # a failed set-up has no call
            why = getattr(report, "wasxfail", None)
            outcome = "skipped" if why is not None and report.outcome == "passed" else report.outcome
            self._note(report.nodeid, outcome, _reason(report.longrepr) if why is None else f"xfail: {why}")

    def _note(self, node: str, outcome: str, reason: str) -> None:
        if self._outcomes.get(node, ("",))[0] != "failed":  # a failed teardown outweighs a passed call
            self._outcomes[node] = (outcome, reason)

    def pytest_sessionfinish(self) -> None:
        self._file.write_text(json.dumps(self._outcomes, indent=1))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, metavar="FILE", help="write what each test did to FILE (JSON)")


def pytest_configure(config: pytest.Config) -> None:
    if file := config.getoption("--outcomes"):
        config.pluginmanager.register(Recorder(file))


def _reason(longrepr: Any) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else ""


def main(files: list[str]) -> int:
    allowed = allowed_skips(ALLOWED.read_text(encoding="utf-8") if ALLOWED.exists() else "")
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    complaints = []
    for file in map(Path, files):
        if not file.exists():
            complaints.append(f"{file.stem}: pytest wrote down nothing; did it run?")
            continue
        outcomes: dict[str, tuple[str, str]] = json.loads(file.read_text())
        for node, (outcome, reason) in outcomes.items():
            counts[outcome] += 1
            if outcome == "skipped" and node not in allowed:
                complaints.append(f"{file.stem}: skipped and not in .ci/skips.txt: {node} ({reason})")
    if not counts["passed"]:
        complaints.append("no test passed")
    print("\n".join(complaints))
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return 1 if complaints or counts["failed"] else 0


def allowed_skips(text: str) -> set[str]:
    """The node ids in TEXT; a line without a reason does not count."""
    pairs = (line.partition(" # ") for line in text.splitlines() if not line.startswith("#"))
    return {node.strip() for node, _, reason in pairs if reason.strip()}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
