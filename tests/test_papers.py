"""The documents name tests, error texts, options and events; those are there, and all of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from taaslib import config
from taaslib.outcomes import Outcome

TOP = Path(__file__).resolve().parent.parent
NAMED = sorted(set(re.findall(r"`([a-z0-9_]+)::(\w+)`", (TOP / "docs" / "security.md").read_text())))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_security_md_names_is_there(file: str, name: str) -> None:
    tree = ast.parse((TOP / "tests" / f"test_{file}.py").read_text())
    assert f"test_{name}" in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_security_md_names_many() -> None:
    assert len(NAMED) > 40


TROUBLES = re.findall(r"(?m)^### `(.+)`$", (TOP / "docs" / "troubleshooting.md").read_text())
SOURCES = [*TOP.glob("*.py"), *TOP.glob("taas*/*.py")]


def texts(source: Path) -> set[str]:
    return {
        node.value
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


ALL_TEXTS = set().union(*map(texts, SOURCES))


@pytest.mark.parametrize("trouble", TROUBLES)
def test_an_error_that_troubleshooting_md_quotes_is_in_the_sources(trouble: str) -> None:
    for part in filter(None, trouble.split("...")):
        assert any(part in text for text in ALL_TEXTS), part


def test_troubleshooting_md_quotes_each_error_once() -> None:
    assert len(TROUBLES) == len(set(TROUBLES)) > 30


def test_operations_md_lists_every_option_in_its_section() -> None:
    rows = re.findall(r"(?m)^\| `\[(\w+)[^|]*\| (.*) \|$", (TOP / "docs" / "operations.md").read_text())
    listed = [(section, option) for section, options in rows for option in re.findall("`([^`]+)`", options)]
    known = {
        "taas": config._TAAS,
        "tls": config._TLS,
        "log": config._LOG,
        "admin": config._ADMIN,
        "limits": config._LIMITS,
    }
    assert sorted(listed) == sorted((section, option) for section, them in known.items() for option in them)


def test_every_event_has_a_test_that_produces_it() -> None:
    tests = [file for file in (TOP / "tests").glob("test_*.py") if file.stem != "test_journal"]
    said = "\n".join(file.read_text() for file in tests)
    words = {
        outcome.value: (f'"{outcome.value}"', f" {outcome.value} ", f"Outcome.{outcome.name}")
        for outcome in Outcome
    }
    assert [event for event, forms in words.items() if not any(form in said for form in forms)] == []


def test_links_between_the_documents_lead_somewhere() -> None:
    for paper in [*TOP.glob("*.md"), *(TOP / "docs").glob("*.md")]:
        for target in re.findall(
            r"\]\(([^)\s]+)\)", re.sub("(?s)```.*?```|`[^`\n]*`", "", paper.read_text())
        ):
            file, _, anchor = target.partition("#")
            if not target.startswith("http"):
                place = paper.parent / file if file else paper
                assert place.exists(), f"{paper.name}: {target}"
                heads = re.findall("(?m)^#+ (.+)$", place.read_text()) if anchor else []
                anchors = [re.sub("[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads]
                assert not anchor or anchor in anchors, f"{paper.name}: {target}"


def test_operations_md_has_a_row_for_each_line_of_the_doctor() -> None:
    text = (TOP / "docs" / "operations.md").read_text()
    rows = re.findall("(?m)^\\| `(\\w+)` \\|", text.partition("## Is all well?")[2].partition("\n## ")[0])
    source = (TOP / "taasadmin/doctor.py").read_text()
    looks = re.findall("(?m)^    def _(\\w+)\\(self\\) -> Iterator\\[Finding\\]", source)
    assert rows == ["configuration", *looks]
