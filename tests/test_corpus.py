"""The fuzzer's known inputs, read as it reads them: ordinary ones, known attacks, what it ever found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.fuzz_targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
INPUTS = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_known_input_keeps_every_promise(path: Path) -> None:
    assert list(TARGETS[path.parent.name].run(path.read_bytes()))


@pytest.mark.parametrize("name", TARGETS)
def test_the_known_inputs_show_all_that_a_campaign_must_see(name: str) -> None:
    happened: set[str] = set()
    for path in (CORPUS / name).iterdir():
        happened.update(TARGETS[name].run(path.read_bytes()))
    assert happened >= set(TARGETS[name].must)
