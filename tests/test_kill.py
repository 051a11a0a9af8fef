"""kill -9 of taas_admin.py, a thousand times, while a service reads and writes the same database."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyotp  # noqa: F401  # now, so that no child spends its time on it
import pytest
from house import REGISTRAR, SERVERS

import taas_admin
from taasadmin.book import Book

pytestmark = pytest.mark.slow

ATTEMPTS = 1000
Facts = dict[str, Any] | None  # what is known of a credential; None: there is none


def facts(document: dict[str, Any]) -> Facts:
    return {key: document[key] for key in ("id", "labels", "enabled")}


def command(folder: Path, arguments: list[str], patience: float | None) -> tuple[str, bool]:
    """What taas_admin.py says, and whether it was killed: after PATIENCE seconds, if it still runs."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        sys.stdout = open(writer, "w")  # noqa: SIM115
        os.chdir(folder)
        code = 9
        try:
            code = taas_admin.main(["--json", *arguments])
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(code)
    os.close(writer)
    if patience is not None:
        time.sleep(patience)  # a moment chosen by dice: that is the test
        os.kill(child, signal.SIGKILL)
    with open(reader) as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), (arguments, status, said)
    return said, status != 0


class Model:
    """The credentials as they must be, by the label that each was made with."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.known: dict[str, dict[str, Any]] = {}
        self.made = 0

    def next(self) -> tuple[list[str], str, Callable[[Facts], Facts]]:
        """A command, whom it is about, and what it makes of its facts."""
        verbs = ["add"] if len(self.known) < 3 else ["add", "rotate", "disable", "enable", "grant", "remove"]
        verb = self.dice.choice(verbs)
        if verb == "add":
            self.made += 1
            label = f"label{self.made}"
            return (["add", label], label, lambda _: {"id": None, "labels": [label], "enabled": True})
        label = self.dice.choice(list(self.known))
        old = self.known[label]
        if verb == "grant":
            more = f"more{self.dice.randrange(10_000)}"
            labels = old["labels"] + [more] * (more not in old["labels"])
            return ["grant", old["id"], more], label, lambda f: {**f, "labels": labels} if f else None
        if verb == "remove":
            return ["remove", old["id"]], label, lambda _: None
        force = ["--force"] * (verb == "rotate")
        enabled = old["enabled"] if verb == "rotate" else verb == "enable"
        return [verb, old["id"], *force], label, lambda f: {**f, "enabled": enabled} if f else None


@pytest.mark.timeout(900)
def test_a_command_that_is_killed_loses_nothing_that_it_said(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "taas.ini").write_text(
        f"[taas]\npublic = 127.0.0.1\nregistrar = {REGISTRAR}\nservers = {SERVERS}\n"
        f"certificate = {certificate[0]}\nkey = {certificate[1]}\n"
    )
    dice = random.Random(9)
    model, kills, said_all = Model(dice), 0, 0
    usual: list[float] = []
    for label in ("one", "two", "three"):
        began = time.perf_counter()
        said, _ = command(tmp_path, ["add", label], None)
        usual.append(time.perf_counter() - began)
        model.known[label] = facts(json.loads(said)) or {}
    most = statistics.median(usual) * 1.5
    with contextlib.closing(Book(tmp_path / "taas.db", busy_ms=5000, synchronous="NORMAL")) as service:
        for attempt in range(ATTEMPTS):
            arguments, label, change = model.next()
            before: Facts = model.known.get(label)
            expected = change(before)
            said, killed = command(tmp_path, arguments, dice.uniform(0, most))
            kills += killed
            found = {entry.labels[0]: entry for entry in service.entries()}.get(label)
            now: Facts = None
            if found:
                id, labels = found.credential.id, list(found.labels)
                now = {"id": id, "labels": labels, "enabled": found.credential.enabled}
                if arguments[0] == "add" and expected:
                    expected["id"] = id
                    assert found.credential.secret in (tmp_path / f"{label}.agent.ini").read_text()
            whole = said.rstrip().endswith("}")
            said_all += whole
            assert now == expected or (not whole and now == before), (attempt, arguments, said, before, now)
            if whole and "secret" in (document := json.loads(said)):
                assert found and document["secret"] == found.credential.secret
            if now:
                model.known[label] = now
            else:
                model.known.pop(label, None)
            if attempt % 3 == 0 and model.known:
                some = model.dice.choice(list(model.known.values()))
                service.spend_step(some["id"], attempt, "a", ATTEMPTS)
        assert len(service.entries()) == len(model.known)
    with contextlib.closing(sqlite3.connect(tmp_path / "taas.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    print(f"{ATTEMPTS} commands: {kills} killed, {said_all} had said all")
    assert kills > ATTEMPTS / 10 and said_all > ATTEMPTS / 10  # else nothing was tried
