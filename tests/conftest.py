"""Fixtures: one certificate for all tests, and a House that is closed behind each."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from house import House, make_certificate
from process import Process
from registrar import open_registrar, pinned, registrar, start, target, write  # noqa: F401  the agent's

# Who was started in the background of a shell ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def build(tmp_path: Path, certificate: tuple[Path, Path]) -> Iterator[Callable[..., House]]:
    """Build a House with another configuration; it is closed when the test ends."""
    houses: list[House] = []

    def build(**changes: Any) -> House:
        houses.append(House(tmp_path, certificate, **changes))
        return houses[-1]

    yield build
    for house in houses:
        house.close()


@pytest.fixture
def house(build: Callable[..., House]) -> House:
    return build()


@pytest.fixture
def process(tmp_path: Path, certificate: tuple[Path, Path]) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def make(extra: str = "", log: str = "") -> Process:
        processes.append(Process(tmp_path, certificate, extra, log))
        return processes[-1]

    yield make
    for process in processes:
        if process.popen and process.popen.poll() is None:
            process.popen.kill()
            process.popen.communicate()
