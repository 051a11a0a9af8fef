"""Log lines: their form, their levels, and that docs/operations.md lists them all."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from taaslib.journal import LEVELS, Journal
from taaslib.outcomes import Outcome

OPERATIONS = Path(__file__).resolve().parent.parent / "docs" / "operations.md"


@contextlib.contextmanager
def journal(file: Path, *options: str) -> Iterator[Journal]:
    with contextlib.closing(Journal()) as journal:
        journal.configure(file, *options)
        yield journal


def test_a_text_line_is_time_level_event_and_facts(tmp_path: Path) -> None:
    with journal(tmp_path / "log") as log:
        log.note(Outcome.PAIRED, label="home", port=3, cause=None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00 info paired label=home port=3\n", text(tmp_path))


@pytest.mark.parametrize("hostile", ["a b", 'a"b', "a\nfake line", "a\x1b[31m", "\u202e", "", "a=b"])
def test_a_value_can_not_forge_a_line_or_move_the_cursor(tmp_path: Path, hostile: str) -> None:
    for form in ("text", "json"):
        with journal(tmp_path / "log", form) as log:
            log.note(Outcome.WARNING, cause=hostile)
    first, second = text(tmp_path).splitlines()
    assert first.endswith(f"cause={json.dumps(hostile)}")
    assert json.loads(second)["cause"] == hostile
    assert text(tmp_path).isascii()


def test_a_value_is_cut_at_a_length(tmp_path: Path) -> None:
    with journal(tmp_path / "log") as log:
        log.note(Outcome.WARNING, cause="x" * 100_000)
    assert len(text(tmp_path)) < 5000


def test_a_file_that_logrotate_has_moved_is_opened_again(tmp_path: Path) -> None:
    with journal(tmp_path / "log") as log:
        log.note(Outcome.STARTED)
        (tmp_path / "log").rename(tmp_path / "log.1")
        log.note(Outcome.DRAINING)
        log.note(Outcome.STOPPED)
    assert (tmp_path / "log.1").read_text().split()[2:] == ["started"]
    assert [line.split()[2] for line in text(tmp_path).splitlines()] == ["draining", "stopped"]


def test_a_file_that_is_out_of_reach_stops_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    with journal(tmp_path / "folder" / "log") as log:
        (tmp_path / "folder").rename(tmp_path / "elsewhere")
        log.note(Outcome.DRAINING)
        log.note(Outcome.PAIRED)
        (tmp_path / "elsewhere").rename(tmp_path / "folder")
        log.note(Outcome.STOPPED)
    assert [line.split()[2] for line in capsys.readouterr().err.splitlines()] == ["draining", "paired"]
    assert text(tmp_path / "folder").split()[2:] == ["stopped"]


def test_operations_md_lists_every_event_with_its_level() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| ([a-z]+) \|", OPERATIONS.read_text(), re.MULTILINE)
    levels = {o.value: logging.getLevelName(LEVELS.get(o, logging.INFO)).lower() for o in Outcome}
    assert dict(rows) == levels


def text(folder: Path) -> str:
    return (folder / "log").read_text()
