"""Figures -> results.md and one SVG per family.

Knows neither processes nor gen: it is given each candidate's rounds, and says what must hold of them.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

Figures = dict[str, float]
Results = dict[str, dict[str, list[Figures]]]  # row -> candidate -> rounds


@dataclass(frozen=True)
class Unit:
    heading: str
    format: str
    scale: float = 1.0


UNITS = {
    "cpu_s_per_gb": Unit("CPU s/GB", "{:.3f}"),
    "gb_per_s": Unit("GB/s", "{:.2f}"),
    "per_s": Unit("per second", "{:,.0f}"),
    "cpu_us": Unit("CPU µs each", "{:.1f}"),
    "p50_us": Unit("p50 µs", "{:,.0f}"),
    "p99_us": Unit("p99 µs", "{:,.0f}"),
    "agent_s_per_gb": Unit("agent CPU s/GB", "{:.3f}"),
    "agent_us": Unit("agent CPU µs", "{:.1f}"),
    "pss": Unit("PSS octets each", "{:,.0f}"),
    "slab": Unit("slab octets each, generator's included", "{:,.0f}"),
    "descriptors": Unit("descriptors each", "{:.2f}"),
    "relay_busy": Unit("relay's core", "{:.0f} %", 100),
    "gen_busy": Unit("generator's core", "{:.0f} %", 100),
    "errors": Unit("errors", "{:.0f}"),
}


@dataclass(frozen=True)
class Must:
    """OURS / PEER of one figure in one row, round by round: at most (or at least) MUST; GOAL is hoped for.

    PEER may stand in another row.  Or it is a NUMBER, and NUMBER / OURS must be at least so much.
    """

    row: str
    figure: str
    peer: str = ""
    must: float = 1.0
    goal: float = 1.0
    at_least: bool = False
    ours: str = "ours"
    peer_row: str = ""
    number: float = 0.0

    @property
    def name(self) -> str:
        against = f"{self.number:g} ({self.peer})" if self.number else self.peer or self.ours
        if self.peer_row:
            against += f" in {self.peer_row}"
        ours = "" if self.ours == "ours" else f" of {self.ours}"
        parts = f"{UNITS[self.figure].heading}{ours}", against
        return f"{self.row}: " + " / ".join(reversed(parts) if self.number else parts)

    def ratios(self, results: Results) -> list[float]:
        ours = [figures.get(self.figure, 0.0) for figures in results.get(self.row, {}).get(self.ours, [])]
        if self.number:
            # How many times better.  Where memory was free already, none is taken.
            least = 1.0 if self.figure == "pss" else 0.0
            return [self.number / max(value, least) for value in ours if value]
        there = results.get(self.peer_row or self.row, {}).get(self.peer or self.ours, [])
        peer = [figures.get(self.figure, 0.0) for figures in there]
        return [a / b for a, b in zip(ours, peer, strict=False) if a and b]


_SPLICE = {1: (0.7, 0.5), 8: (0.5, 0.35), 64: (0.35, 0.25)}
_OLD, _WAITING = "the original of 2014", "1.5 KB, the must"

MUSTS = [
    *(Must(f"bulk-{n}", "cpu_s_per_gb", "haproxy splice 1 MiB", 1.25, 1.0) for n in _SPLICE),
    *(Must(f"bulk-{n}", "cpu_s_per_gb", "haproxy splice", *both) for n, both in _SPLICE.items()),
    *(Must(f"bulk-{n}", "cpu_s_per_gb", "nginx", 0.35, 0.2) for n in _SPLICE),
    Must("trips-64", "per_s", "nginx", 0.80, 0.95, at_least=True),
    Must("trips-64", "per_s", "haproxy", 0.85, 1.0, at_least=True),
    Must("visits", "per_s", "haproxy", 0.6, 0.9, at_least=True),
    Must("redirects", "cpu_us", "nginx", 1.3, 1.05),
    Must("redirects-rsa", "cpu_us", "nginx, RSA", 1.3, 1.05, ours="ours, RSA"),
    *(Must(f"idle-pairs-{n}", "pss", "haproxy", 0.5, 0.35) for n in (1000, 9000)),
    *(Must(f"idle-waiting-{n}", "pss", _WAITING, 1.0, 1.5, number=1500) for n in (1000, 9000)),
    Must("fair-8", "p99_us", "haproxy splice 1 MiB", 2.0, 1.0),
    Must("fair-8", "p99_us", "haproxy", 2.0, 1.0),
    *(Must(f"bulk-{n}", "cpu_s_per_gb", _OLD, 3, 5, number=0.85) for n in _SPLICE),
    Must("trips-64", "cpu_us", _OLD, 3, 5, number=60),
    Must("redirects", "cpu_us", _OLD, 3, 5, number=1800),
    Must("registrations", "cpu_us", _OLD, 3, 5, number=1900),
    *(Must(f"bulk-{n}", "gb_per_s", "ours", 0.75, 0.95, True, ours="ours, as nobody") for n in _SPLICE),
    *(
        Must(f"crowd-{kind}-9000", "cpu_us", "", 1.15, 1.05, peer_row=f"crowd-{kind}-100")
        for kind in ("trips", "visits", "redirects")
    ),
]  # fmt: skip

_EACH = "per_s", "p50_us", "p99_us", "cpu_us", "gen_busy", "errors"
FAMILIES = {  # title, which rows, what the plot shows, what the table shows
    "bulk": ("Bulk", "bulk-", "cpu_s_per_gb",
             ("cpu_s_per_gb", "gb_per_s", "relay_busy", "gen_busy", "errors")),
    "ping-pong": ("Ping-pong", "trips-", "per_s", _EACH),
    "visits": ("Visits", "visits passed sustained first-", "cpu_us", _EACH),
    "front-door": ("Front door", "redirects registrations", "cpu_us", _EACH),
    "idle": ("Idle connections", "idle-", "pss", ("pss", "slab", "descriptors")),
    "crowd": ("Beside idle connections", "crowd-", "cpu_us", _EACH),
    "fairness": ("Fairness", "fair-", "p99_us", ("p50_us", "p99_us", "per_s", "gb_per_s", "errors")),
    "tunnels": ("Tunnels, each with its own agent", "tunnel-", "cpu_s_per_gb cpu_us",
                ("gb_per_s", "cpu_s_per_gb", "agent_s_per_gb", "per_s", "p50_us", "p99_us", "cpu_us",
                 "agent_us", "errors")),
}  # fmt: skip


def value(figures: list[Figures], name: str) -> float | None:
    """The median of NAME over the rounds that have it."""
    seen = [each[name] for each in figures if name in each]
    return median(seen) if seen else None


def line(figures: list[Figures]) -> str:
    """One candidate's medians in one line."""
    parts = []
    for name, unit in UNITS.items():
        seen = value(figures, name)
        if seen is not None and (seen or name in ("pss",)):
            parts.append(f"{unit.format.format(seen * unit.scale)} {unit.heading}")
    return ", ".join(parts)


def musts(results: Results) -> str:
    """The table of item 2, as far as its rows were measured."""
    out = ["| ratio | median | min | max | must | goal | |", "|---|---|---|---|---|---|---|"]
    for must in MUSTS:
        ratios = must.ratios(results)
        if not ratios:
            continue
        middle, at_least = median(ratios), must.at_least or bool(must.number)
        sign, verdict = ">=" if at_least else "<=", "**missed**"
        if _holds(middle, must.must, at_least):
            verdict = "goal" if _holds(middle, must.goal, at_least) else "must"
        out.append(
            f"| {must.name} | {middle:.2f} | {min(ratios):.2f} | {max(ratios):.2f} "
            f"| {sign} {must.must:g} | {sign} {must.goal:g} | {verdict} |"
        )
    return "\n".join(out)


def _holds(ratio: float, bound: float, at_least: bool) -> bool:
    return ratio >= bound if at_least else ratio <= bound


def write(document: dict[str, Any], folder: Path) -> None:
    """results.md, and a plot of each family beside it."""
    results: Results = document["results"]
    titles: dict[str, str] = document["titles"]
    out = ["# Results", "", "Written by `make bench`; [README.md](README.md) says what each row means.", ""]
    out += ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in document["facts"].items())]
    versions = {text: name for name, text in reversed(document["versions"].items()) if text not in ("", "-")}
    out += [f"| {name.split(',')[0]} | {text} |" for text, name in sorted(versions.items())]
    out += ["", "## Musts and goals", "", _ABOUT_MUSTS, "", musts(results), ""]
    for key, (title, prefixes, plotted, columns) in FAMILIES.items():
        rows = {row: by for row, by in results.items() if row.startswith(tuple(prefixes.split()))}
        if not rows:
            continue
        picture = _plot(title, rows, titles, plotted.split())
        (folder / f"{key}.svg").write_text(picture)
        out += [f"## {title}", "", f"![{title}]({key}.svg)", "", *_table(rows, titles, columns), ""]
    (folder / "results.md").write_text("\n".join(out))


_ABOUT_MUSTS = """\
Each ratio is ours / peer of the same round: median, least and most over the rounds. `ours` logs every event,
as by default, the peers log nothing. The original of 2014 is not run here. Its figures, of such a machine,
are those that the project was given (CPU: bulk 0.85-1.05 s/GB, 64-octet trip 60-75 µs, redirect 1.8-2.2 ms,
registration 1.9-2.7 ms); the least of each is taken, and the ratio says how many times better ours is.
Likewise for the 1.5 KB that a waiting connection may cost."""


def _table(rows: Results, titles: dict[str, str], columns: tuple[str, ...]) -> list[str]:
    used = [c for c in columns if any(value(f, c) for by in rows.values() for f in by.values())]
    out = [
        "| row | candidate | " + " | ".join(UNITS[c].heading for c in used) + " |",
        "|---" * (len(used) + 2) + "|",
    ]
    for row, by_candidate in rows.items():
        for candidate, figures in by_candidate.items():
            cells = [_cell(figures, column) for column in used]
            out.append(f"| {_title(row, titles)} | {candidate} | " + " | ".join(cells) + " |")
    return out


def _cell(figures: list[Figures], name: str) -> str:
    seen = sorted(each[name] for each in figures if name in each)
    if not seen:
        return ""
    unit = UNITS[name]
    text = [unit.format.format(each * unit.scale) for each in (median(seen), seen[0], seen[-1])]
    return text[0] if len(set(text)) == 1 else f"{text[0]} ({text[1]}-{text[2]})"


def _title(row: str, titles: dict[str, str]) -> str:
    if row in titles:
        return titles[row]
    _idle, what, count = row.split("-")
    return f"{int(count):,} {'waiting connections' if what == 'waiting' else 'live pairs'}"


_WIDTH, _LEFT, _BAR, _STEP = 760, 190, 14, 20


def _plot(title: str, rows: Results, titles: dict[str, str], plotted: list[str]) -> str:
    """Horizontal bars, a group per row with a scale of its own; the whisker spans all rounds."""
    parts: list[str] = []
    y = 34
    for row, by_candidate in rows.items():
        name = next((p for p in plotted if any(value(f, p) for f in by_candidate.values())), "")
        if not name:
            continue
        unit = UNITS[name]
        parts.append(_text(8, y + 14, f"{_title(row, titles)}: {unit.heading}", "font-weight='bold'"))
        y += 24
        most = max(
            max((each.get(name, 0.0) for each in figures), default=0) for figures in by_candidate.values()
        )
        scale = (_WIDTH - _LEFT - 90) / most
        for candidate, figures in by_candidate.items():
            middle = value(figures, name)
            if middle is None:
                continue
            seen = [each[name] for each in figures if name in each]
            width, low, high = (_LEFT + v * scale for v in (middle, min(seen), max(seen)))
            colour = "#1f6f8b" if candidate.startswith("ours") else "#b9c4c9"
            parts.append(_text(_LEFT - 6, y + 11, candidate, "text-anchor='end'"))
            parts.append(
                f"<rect x='{_LEFT}' y='{y}' width='{width - _LEFT:.1f}' height='{_BAR}' fill='{colour}'/>"
                f"<path d='M{low:.1f} {y + _BAR / 2}H{high:.1f}' stroke='#333'/>"
            )
            parts.append(_text(max(width, high) + 5, y + 11, unit.format.format(middle * unit.scale)))
            y += _STEP
        y += 8
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{y + 6}' font-family='sans-serif' "
        f"font-size='12'>\n<rect width='100%' height='100%' fill='white'/>\n"
        + _text(8, 20, title, "font-size='16'")
        + "\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y}' {more}>{html.escape(text)}</text>"
