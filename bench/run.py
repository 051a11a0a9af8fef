#!/usr/bin/env python3
"""make bench: our real service and its peers, interleaved, round by round.

What is measured stands in rows.py, through whom in peers.py, with what in gen.c; report.py writes it down.
Everything goes through the real protocol, and nothing here imports taaslib.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import machine
import peers
import report
from machine import GENERATOR_CORE, Child, Trouble
from peers import BUILD, ROOT, Candidate, Shop
from rows import Row, rows

GEN = BUILD / "gen"
Figures = dict[str, float]  # of one candidate in one round

_SLOW = ("socat", "pagekite", "direct")  # left out with --quick
_RESTLESS = ("ping-pong", "visits", "front door")  # a third of difference from second to second is no news
_SLICES = 4  # so a round of theirs is cut into these
_SETTLE_SECONDS = 1.0  # until what is freed or closed late is


class Generator:
    """A running gen on its core: `go` does the timed part."""

    def __init__(self, ends: list[str], words: tuple[str, ...]) -> None:
        self.popen = subprocess.Popen(
            [str(GEN), *ends, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {GENERATOR_CORE}),
        )
        self._expect("ready")

    def go(self) -> Figures:
        assert self.popen.stdin
        self.popen.stdin.write("go\n")
        self.popen.stdin.flush()
        figures: Figures = json.loads(self._expect("{"))
        return figures

    def stop(self) -> None:
        assert self.popen.stdin and self.popen.stdout and self.popen.stderr
        with contextlib.suppress(OSError):
            self.popen.stdin.close()
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.popen.stdout.close()
        self.popen.stderr.close()

    def _expect(self, start: str) -> str:
        assert self.popen.stdout and self.popen.stderr
        line = self.popen.stdout.readline()
        if not line.startswith(start):
            self.popen.kill()
            raise Trouble(f"{self.popen.args!r}: {line}{self.popen.stderr.read()}")
        return line


@contextlib.contextmanager
def generator(ends: list[str], words: tuple[str, ...]) -> Iterator[Generator]:
    made = Generator(ends, words)
    try:
        yield made
    finally:
        made.stop()


def measure(candidate: Candidate, words: tuple[str, ...]) -> Figures:
    """What gen counts, and the CPU seconds that relay and agent take meanwhile."""
    with generator(candidate.ends(), words) as running:
        before = [_cpu(candidate.relay), _cpu(candidate.agent)]
        seen = running.go()
        seen["relay"], seen["agent"] = (
            _cpu(child) - was for child, was in zip((candidate.relay, candidate.agent), before, strict=True)
        )
    return seen


def together(slices: list[Figures]) -> Figures:
    """A round out of its slices: counts and times are added, percentiles averaged."""
    total = {key: sum(each[key] for each in slices) for key in slices[0]}
    return total | {key: total[key] / len(slices) for key in ("p50_us", "p99_us") if key in total}


def derive(seen: Figures, *, streams: bool, trips: bool) -> Figures:
    """What a reader compares, out of what was measured."""
    relay, agent = seen["relay"], seen["agent"]
    seconds, done, octets = seen["seconds"], seen["done"], seen["octets"]
    figures: Figures = {
        "errors": seen["errors"],
        "gen_busy": seen["gen_cpu"] / seconds,
        "relay_busy": relay / seconds,
    }
    if streams:
        figures["gb_per_s"] = octets / seconds / 1e9
        if octets and not trips:
            figures["cpu_s_per_gb"] = relay / octets * 1e9
            figures["agent_s_per_gb"] = agent / octets * 1e9
    if trips and done:
        figures |= {"per_s": done / seconds, "p50_us": seen["p50_us"], "p99_us": seen["p99_us"]}
        if not streams:
            figures |= {"cpu_us": relay / done * 1e6, "agent_us": agent / done * 1e6}
    return figures


def _cpu(child: Child | None) -> float:
    return child.cpu_seconds() if child else 0.0


class Bench:
    def __init__(self, shop: Shop, rounds: int) -> None:
        self.shop, self.rounds = shop, rounds
        self.results: dict[str, dict[str, list[Figures]]] = {}  # row -> candidate -> rounds

    def family(self, name: str, family: list[Row], slices: int) -> None:
        """All rounds of all rows, each in SLICES, candidates in turn."""
        print(f"== {name}", flush=True)
        wanted = dict.fromkeys((row.idle, candidate) for row in family for candidate in row.candidates)
        with self._running(list(wanted)) as candidates, contextlib.ExitStack() as holds:
            for (idle, _), candidate in candidates.items():
                if idle:
                    holds.enter_context(_held(candidate, idle))
            for _ in range(self.rounds):
                for row in family:
                    keys = [(row.idle, candidate_name) for candidate_name in row.candidates]
                    self._round(row, [candidates[key] for key in keys if key in candidates], slices)
        for row in family:
            for candidate_name, figures in self.results.get(row.key, {}).items():
                print(f"   {row.title:64} {candidate_name:22} {report.line(figures)}", flush=True)

    def _round(self, row: Row, candidates: list[Candidate], slices: int) -> None:
        """SLICES of each, in turn and in any order: what disturbs the machine for seconds disturbs all."""
        seen: dict[str, list[Figures]] = {candidate.name: [] for candidate in candidates}
        for _ in range(slices):
            for candidate in random.sample(candidates, len(candidates)):
                try:
                    seen[candidate.name].append(measure(candidate, row.words))
                except Trouble as trouble:
                    print(f"   {row.title}, {candidate.name}: {trouble}", file=sys.stderr, flush=True)
        for name, figures in seen.items():
            if figures:
                derived = derive(together(figures), streams="-P" in row.words, trips="-N" in row.words)
                self.results.setdefault(row.key, {}).setdefault(name, []).append(derived)

    @contextlib.contextmanager
    def _running(self, wanted: list[tuple[int, str]]) -> Iterator[dict[tuple[int, str], Candidate]]:
        candidates = {key: peers.ALL[key[1]](self.shop) for key in wanted if peers.ALL[key[1]].version()}
        try:
            for candidate in candidates.values():
                candidate.start()
            yield candidates
        finally:
            for candidate in candidates.values():
                candidate.stop()

    def idle(self, counts: list[int]) -> None:
        """What connections cost that do nothing: waiting ones, and live pairs after one exchange each."""
        print("== idle", flush=True)
        for what, names in (("waiting", ["ours"]), ("pairs", ["ours", "haproxy", "nginx"])):
            for count in counts:
                row = self.results.setdefault(f"idle-{what}-{count}", {})
                for name in names:
                    with self._running([(0, name)]) as candidates:
                        for candidate in candidates.values():
                            row[name] = [_idle(candidate, what, count)]
                            print(f"   {count:,} {what:8} {name:10} {report.line(row[name])}", flush=True)


@contextlib.contextmanager
def _held(candidate: Candidate, idle: int) -> Iterator[None]:
    """IDLE connections: a third of them wait, the others are pairs."""
    assert isinstance(candidate, peers.Taas)
    words = ("-k", "-N", "64", "-c", str(idle // 3), "-w", str(idle // 3 * 2), "visits")
    # Under labels of their own: nobody answers for them while they are held.
    with generator(candidate.ends("idle"), words) as running:
        running.go()
        yield


def _idle(candidate: Candidate, what: str, count: int) -> Figures:
    assert candidate.relay
    relay = candidate.relay
    pairs = count if what == "pairs" else 0
    words = ("-k", "-N", "64", "-c", str(pairs), "-w", str(count), "visits")
    # What is made once, by the first visits and a port q for each label, is no cost of the idle.
    measure(candidate, ("-N", "16", "-c", str(peers.LABELS), "visits"))
    time.sleep(_SETTLE_SECONDS)
    before = relay.pss(), machine.slab(), relay.descriptors()
    with generator(candidate.ends(), words) as running:
        running.go()
        time.sleep(_SETTLE_SECONDS)
        after = relay.pss(), machine.slab(), relay.descriptors()
    pss, slab, descriptors = ((now - was) / count for now, was in zip(after, before, strict=True))
    return {"pss": pss, "slab": slab, "descriptors": descriptors}


def build() -> None:
    sources = [str(ROOT / "bench" / name) for name in ("gen.c", "tls.c")]
    BUILD.mkdir(parents=True, exist_ok=True)
    libraries = ["-lssl", "-lcrypto", "-lpthread"]
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(GEN), *sources, *libraries], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/run.py", description="Measure the service beside its peers.")
    parser.add_argument("--quick", action="store_true", help="2 short rounds: does it work, roughly")
    parser.add_argument("--rounds", type=int, default=0, help="default: 7, or 2 with --quick")
    parser.add_argument("--only", metavar="FAMILY[,FAMILY]", default="", help="no others, and no results.md")
    parser.add_argument("--candidates", metavar="NAME[;NAME]", default="", help="no others")
    arguments = parser.parse_args()
    quick: bool = arguments.quick
    if not shutil.which("gcc") or not shutil.which("openssl"):
        print("bench: a C compiler, libssl-dev and openssl are needed", file=sys.stderr)
        return 1
    build()
    rounds = arguments.rounds or (2 if quick else 7)
    seconds, visits = (0.25, 400) if quick else (1.0, 4000)
    slices = 1 if quick else _SLICES
    families, sliced = rows(seconds, visits), rows(seconds / slices, visits // slices)
    families |= {name: sliced[name] for name in _RESTLESS}
    if quick:
        del families["crowd"]
    only = [name for name in arguments.only.split(",") if name]
    facts = machine.facts(ROOT)
    facts["Python of ours"] = peers.python_version()
    facts["rounds"] = (
        f"{rounds} of {seconds} s, of {', '.join(_RESTLESS)} in {slices} slices; in any order; "
        f"{visits} visits a round"
    )
    shop = Shop()
    bench = Bench(shop, rounds)
    document = {
        "facts": facts,
        "versions": {name: kind.version() for name, kind in peers.ALL.items()},
        "titles": {row.key: row.title for family in families.values() for row in family},
        "results": bench.results,
    }
    try:
        for name, family in families.items():
            if not only or name in only:
                narrowed = [_narrowed(row, arguments.candidates, quick) for row in family]
                bench.family(name, narrowed, slices if name in _RESTLESS else 1)
                _save(document, final=not quick and not only)
        if not only or "idle" in only:
            bench.idle([100] if quick else [1000, 9000])
    finally:
        shop.close()
    _save(document, final=not quick and not only)
    print(report.musts(bench.results))
    return 0


def _save(document: dict[str, Any], *, final: bool) -> None:
    """Keep what has been measured so far: an hour later something may fail."""
    (BUILD / "results.json").write_text(json.dumps(document, indent=1))
    if final:
        report.write(document, ROOT / "bench")


def _narrowed(row: Row, names: str, quick: bool) -> Row:
    wanted = names.split(";") if names else [c for c in row.candidates if not quick or c not in _SLOW]
    return replace(row, candidates=tuple(c for c in row.candidates if c in wanted))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Trouble, subprocess.CalledProcessError) as trouble:
        sys.exit(f"bench: {trouble}")
