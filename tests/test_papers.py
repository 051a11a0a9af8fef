"""docs/security.md names a test for what it says; those tests are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
NAMED = sorted(set(re.findall(r"`([a-z0-9_]+)::(\w+)`", (TOP / "docs" / "security.md").read_text())))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_security_md_names_is_there(file: str, name: str) -> None:
    tree = ast.parse((TOP / "tests" / f"test_{file}.py").read_text())
    assert f"test_{name}" in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_security_md_names_many() -> None:
    assert len(NAMED) > 40
