"""make fuzz: some seconds of coverage-guided fuzzing for each target of tools/fuzz_targets.py.

    python tools/fuzz.py [--seconds N] [TARGET...]    N seconds in all, divided over the targets
    python tools/fuzz.py --replay TARGET FILE         one input again, to see where it fails; needs no atheris

Fails on an input that breaks a promise, which it leaves in .fuzz/ with the command that replays it, and when
something that a target must have seen never happened; the seeds in tests/corpus/ do not count for that.  New
inputs that reach new code are kept in .fuzz/ for the next time.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
SEEDS = ROOT / "tests" / "corpus"
STATE = ROOT / ".fuzz"
LONGEST = 20_000  # octets: more than the 16 KiB at which the readers give up
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "FILE"))
    parser.add_argument("--child", metavar="TARGET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        fuzz(options.child, options.seconds)
    from fuzz_targets import TARGETS

    if options.replay:
        for word in TARGETS[options.replay[0]].run(Path(options.replay[1]).read_bytes()):
            print(word)
        return 0
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if importlib.util.find_spec("atheris") is None:
        print(f"{sys.executable} has no atheris; tools/requirements-fuzz.txt says where there is one.")
        print("Without it the known inputs can be replayed: make test PYTEST=tests/test_corpus.py")
        return 1
    chosen = options.targets or list(TARGETS)
    STATE.mkdir(exist_ok=True)
    inputs, troubles = 0, 0
    for name in chosen:
        tried, wrong = campaign(name, options.seconds / len(chosen), TARGETS[name].must)
        inputs, troubles = inputs + tried, troubles + wrong
    print(f"fuzz: {len(chosen)} targets, {inputs} inputs, {troubles or 'no'} trouble{'s' * (troubles > 1)}")
    return 1 if troubles else 0


def campaign(name: str, seconds: float, must: tuple[str, ...]) -> tuple[int, int]:
    """Fuzz one target in a process of its own; says what happened.  Returns inputs tried and troubles."""
    log = STATE / f"{name}.log"
    command = [sys.executable, __file__, "--child", name, "--seconds", str(seconds)]
    with log.open("wb") as err:
        child = subprocess.run(command, stdout=subprocess.PIPE, stderr=err, cwd=ROOT)
    try:
        report = json.loads(child.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        print(f"{name}: stopped without a report (exit status {child.returncode}); see {log}")
        print("".join(f"    {line}\n" for line in log.read_text(errors="replace").splitlines()[-15:]))
        return 0, 1
    happened = report["happened"]
    print(f"{name}: {report['inputs']} inputs; " + ", ".join(f"{word} {n}" for word, n in happened.items()))
    missing = never_happened(report["inputs"], happened, must)
    if report["trouble"]:
        print(f"{report['trouble']}replay: {sys.executable} tools/fuzz.py --replay {name} {report['file']}")
    elif missing:
        print(f"{name}: it never happened: {', '.join(missing)}")
    return report["inputs"], int(bool(report["trouble"] or missing))


def never_happened(inputs: int, happened: dict[str, int], must: tuple[str, ...]) -> list[str]:
    """What a campaign has to see and did not: an input, and every word that its target must say."""
    return ["an input"] * (not inputs) + [word for word in must if not happened.get(word)]


def fuzz(name: str, seconds: float) -> NoReturn:
    """Let libFuzzer bring inputs until SECONDS are over or one breaks a promise; print one line of JSON."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["taaslib", "taas_agent"]):
        from fuzz_targets import TARGETS

    target, seeds, grown, words = TARGETS[name], SEEDS / name, STATE / name, SEEDS / f"{name}.dict"
    known = {path.read_bytes() for path in seeds.iterdir()}
    happened: Counter[str] = Counter()
    inputs = 0
    end = time.monotonic() + seconds

    def report(trouble: str = "", file: str = "") -> NoReturn:
        facts = {"inputs": inputs, "happened": happened, "trouble": trouble, "file": file}
        print("\n" + json.dumps(facts), flush=True)
        os._exit(0)  # libFuzzer's own way out runs no Python

    def one(data: bytes) -> None:
        nonlocal inputs
        try:
            seen = set(target.run(data))
        except Exception:
            file = STATE / f"trouble-{name}-{hashlib.sha256(data).hexdigest()[:12]}"
            file.write_bytes(data)
            report(traceback.format_exc(), str(file.relative_to(ROOT)))
        inputs += 1
        if data not in known:
            happened.update(seen)
        if time.monotonic() >= end:
            report()

    grown.mkdir(exist_ok=True)
    flags = [f"-max_len={LONGEST}", "-timeout=10", f"-artifact_prefix={STATE}/trouble-{name}-"]
    flags += [f"-dict={words}"] * words.exists()
    atheris.Setup([name, *flags, str(grown), str(seeds)], one)
    atheris.Fuzz()
    raise AssertionError("libFuzzer came back")


if __name__ == "__main__":
    sys.exit(main())
