"""Facts -> the pages that the operator sees.

Knows neither where the facts come from nor what a form does (page.py).  Lists of elements stand as densely as
they are read.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from taasadmin.credentials import MODES, Document, agent_command
from taasadmin.door import Session
from taasadmin.html import Child, Html, facts, h, sparkline, table
from taasadmin.watch import Now
from taasadmin.wording import ago, duration, octets

MOST_ROWS = 50
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16'"
    " height='16' rx='4' fill='%230b57d0'/%3E%3Cpath d='M3 5h10M3 11h10' stroke='white' stroke-width='2'/%3E"
    "%3C/svg%3E"
)
MODE_WORDS = {
    "redirect": "redirected to a port of its own",
    "passthrough": "passed through by server name",
    "both": "passed through or redirected",
}
FORMAT_WORDS = {"ini": "taas_agent.py", "js": "the original client of 2014"}
END_OR_KEEP = {"end": "end at once", "keep": "go on until they end by themselves"}
WHO = {"initiator": "the visitor", "responder": "the hidden server", "service": "the service"}

# What happens only when it is asked for twice: title, button, what it means, and whether live pairs go on
# unless the operator says otherwise (None: that is no question).
CONFIRMED: dict[str, tuple[str, str, str, bool | None]] = {
    "rotate": ("A new secret for", "Make a new secret", "The agent file that is in use stops working at once:"
               " put the new one on the hidden server and start its agent again.", True),
    "disable": ("Disable", "Disable", "Its agent is refused until you enable it again.", False),
    "enable": ("Enable", "Enable", "Its agent may register again, with the file that it has.", None),
    "remove": ("Remove", "Remove for good", "The ID and its secret are forgotten, and so is a label that no"
               " other ID serves. There is no way back.", False),
    "revoke": ("Take a label from", "Revoke the label", "The ID may not serve this label any more.", False),
    "kick": ("End all live pairs of", "End them", "Visitors who are connected lose their connection. They may"
             " come back at once.", None),
    "drain": ("Drain", "Drain the service", "It takes nobody new, lets live pairs finish, and then ends."
              " Somebody has to start it again.", None),
}


Said = list[tuple[bool, str]]  # what was done: whether it is good news, and the news


@dataclass(frozen=True, slots=True)
class Look:
    """What one page is made of.  `typed` and `wrong` (a field -> why) are of a form that was refused."""

    session: Session
    now: Now
    documents: Sequence[Document]
    typed: Mapping[str, str]
    wrong: Mapping[str, str]

    def ids_of(self, label: str) -> list[Document]:
        return [document for document in self.documents if label in document["labels"]]

    @property
    def nothing(self) -> str:
        return "Not known: the service is not running." if self.now.silent else "None."


@dataclass(frozen=True, slots=True)
class Label:
    """What a label's row, or page, is made of besides."""

    name: str
    url: str
    rates: Sequence[tuple[float, float]]


class Views:
    def __init__(self, base: str, registrar: str) -> None:
        self._base, self._registrar = base, registrar

    def path(self, *pieces: object) -> str:
        return self._base + "/".join(quote(str(piece), safe="") for piece in pieces)

    def document(
        self, title: str, body: Child, now: Now | None, said: Iterable[tuple[bool, str]] = (),
        address: str = "",
    ) -> str:
        """A whole page, which looks for news at ADDRESS; without NOW it is one for strangers."""
        head = [
            h("meta", charset="utf-8"),
            h("meta", name="viewport", content="width=device-width, initial-scale=1"),
            h("title", f"{title} · TAAS"),
            h("link", rel="icon", href=ICON),
            h("link", rel="stylesheet", href="/page.css"),
            h("script", src="/page.js", defer=True),
        ]
        brand = [h("strong", "TAAS"), h("span", self._registrar, class_="quiet")]
        top: Child = h("span", brand, class_="brand")
        bar = back = None
        if now:
            add = _button("Add", self.path("add"), "primary")
            top = [h("a", brand, href=self._base, class_="brand"), add]
            back = h("nav", h("a", "← Overview", href=self._base)) if address != self._base else None
            bar = h("div", _service(now), data_live="service", class_="service")
        notes = [h("p", _mark("good" if good else "bad"), words, class_=f"note {'good' if good else 'bad'}",
                   role="status" if good else "alert") for good, words in said]
        whole = [
            h("a", "Skip to content", href="#main", class_="skip"),
            h("header", top),
            bar,
            h("p", id="notice", role="status", class_="note bad", hidden=True),
            h("main", back, notes, body, id="main", tabindex=-1, data_from=address or None),
        ]
        return "<!doctype html>\n" + h("html", h("head", head), h("body", whole), lang="en")

    def refused(self, title: str, why: str, hint: str, again: str) -> str:
        link = h("p", h("a", "Open the page", href=again)) if again else None
        return self.document(title, [h("h1", title), h("p", why), h("p", hint), link], None)

    # Pages.

    def overview(self, look: Look, labels: Sequence[Label]) -> Child:
        if not look.documents:
            words = "Each hidden server gets an ID, a secret, and one or more labels to serve."
            add = _button("Add the first one", self.path("add"), "primary")
            start = h("section", h("h1", "No hidden server yet"), h("p", words), h("p", add))
            return [start, self._health(look)]
        heads = ("Label", "State", "Traffic", "Hidden server", "Visitors are")
        rows = [(label.name, self._label_row(look, label)) for label in labels]
        ids = [(d["id"], self._id_row(d)) for d in look.documents]
        return [
            h("h1", "Overview", class_="unseen"),
            _section("labels", "Labels", table("Labels", heads, rows), len(labels)),
            self._live_pairs(look, look.now.pairs),
            _section("ids", "IDs", table("IDs", ("ID", "Labels", "State", "Made", "Change"), ids), len(ids)),
            self._health(look),
        ]

    def _label_row(self, look: Look, label: Label) -> list[Child]:
        live, d = look.now.labels.get(label.name, {}), look.ids_of(label.name)[0]
        shown = label.url.removeprefix("https://").rstrip("/")
        return [
            [h("a", label.name, href=self.path("label", label.name), class_="name"),
             h("a", shown, href=label.url, class_="sub", rel="noreferrer")],
            _state(look, label.name),
            _traffic(look, label),
            _seen(live),
            [MODE_WORDS[d["modes"][label.name]], _sub(_port(d, label.name, live)),
             [_sub(host) for host in d["hosts"].get(label.name, ())]],
        ]

    def _id_row(self, d: Document) -> list[Child]:
        return [
            self._id_link(d),
            [[h("a", label, href=self.path("label", label)), " "] for label in d["labels"]] or _quiet("none"),
            [_enabled(d), _clock(d)],
            d["created"][:10],
            self._actions(d, "small"),
        ]

    def _id_link(self, d: Document) -> Html:
        return h("a", h("code", d["id"]), href=self.path("id", d["id"]))

    def _actions(self, d: Document, kind: str = "") -> Html:
        actions = ("rotate", "disable" if d["enabled"] else "enable", "remove")
        return h("div", (_button(action.capitalize(), self.path("id", d["id"], action), kind, about=d["id"])
                         for action in actions), class_="row")

    def _live_pairs(self, look: Look, pairs: Sequence[dict[str, Any]], of: str = "") -> Child:
        if not pairs:
            return _section("pairs", "Live pairs", _quiet(look.nothing), None if look.now.silent else 0)
        rows: list[tuple[str, list[Child]]] = []
        for p in sorted(pairs, key=lambda pair: -pair["pair"])[:MOST_ROWS]:
            kick = h("button", "Kick", class_="small", aria_label=f"Kick {p['initiator']}")
            back = h("input", type="hidden", name="label", value=of) if of else None
            rows.append((str(p["pair"]), [
                p["initiator"],
                h("a", p["label"], href=self.path("label", p["label"])),
                p["responder"],
                duration(p["seconds"]),
                _amounts(p),
                self._form(look, self.path("pair", p["pair"], "kick"), back, kick),
            ]))
        heads = ("Visitor", "Label", "Hidden server", "For", "To visitor / back", "End")
        below = _button("End all of them", self.path("label", of, "kick"), "small") if of else None
        more = _quiet(f"And {len(pairs) - MOST_ROWS:,} older ones.") if len(pairs) > MOST_ROWS else None
        return _section("pairs", "Live pairs", [table("Live pairs", heads, rows), more, below], len(pairs))

    def _health(self, look: Look) -> Child:
        if not (s := look.now.status):
            return None
        use = [h("div", h("span", name.capitalize(), id=f"limit-{name}"),
                 h("progress", value=each["use"], max=max(each["limit"], 1), aria_labelledby=f"limit-{name}"),
                 h("span", f"{each['use']:,} of {each['limit']:,}", class_="quiet"))
               for name, each in s["limits"].items()]
        known = facts(("Version", s["version"]), ("Up for", duration(s["uptime_seconds"])),
                      ("Listens on", ", ".join(s["listens"])), ("Moves octets by", s["pump"]))
        steer = h("div", self._form(look, self.path("service", "reload"), h("button", "Reload taas.ini")),
                  _button("Drain", self.path("service", "drain")), class_="row")
        return _section("health", "Service", [known, h("div", use, class_="limits"), steer])

    def label(self, look: Look, label: Label, pairings: Sequence[dict[str, Any]]) -> Child:
        live, mine = look.now.labels.get(label.name, {}), look.ids_of(label.name)
        d, pairs = mine[0], [pair for pair in look.now.pairs if pair["label"] == label.name]
        served = [h("div", self._id_link(each), " ", _enabled(each)) for each in mine]
        known = facts(
            ("State", _state(look, label.name)),
            ("Traffic", _traffic(look, label)),
            ("To visitors / back, since the start", _amounts(live) if live else None),
            ("Hidden server", _seen(live)),
            ("Visitors come to", h("a", label.url, href=label.url, rel="noreferrer")),
            ("Port", _port(d, label.name, live)),
        )
        hosts = self._hosts(look, label.name, d["hosts"].get(label.name, ()))
        mode = [_modes(d["modes"][label.name]), h("button", "Save")]
        return [
            h("h1", label.name),
            h("section", known, data_live="label", tabindex=-1),
            self._live_pairs(look, pairs, label.name),
            _section("pairings", "Last pairings", _pairings(look, pairings)),
            _section("served", "Served by", served),
            h("section", self._form(look, self.path("label", label.name, "mode"), mode)),
            h("section", h("h2", "Domains of its own"), hosts),
        ]

    def _hosts(self, look: Look, label: str, hosts: Sequence[str]) -> Child:
        action, items = self.path("label", label, "hosts"), []
        for host in hosts:
            fields = [h("input", type="hidden", name="host", value=host),
                      h("button", "Revoke", class_="small", aria_label=f"Revoke {host}")]
            items.append(h("li", h("span", host), self._form(look, f"{action}/revoke", fields)))
        hint = "A CNAME record leads it to the label's name."
        field = _field(look, "host", "Add a domain", hint, placeholder="home.example.org")
        add = self._form(look, action, field, h("button", "Add domain"))
        return [h("ul", items, class_="list") if items else None, add]

    def id(self, look: Look, d: Document) -> Child:
        known = facts(
            ("State", _enabled(d)),
            ("Clock", _clock(d)),
            ("Made", d["created"].replace("T", " ").replace("Z", " UTC")),
            ("Codes", f"{d['digits']} digits every {d['period']} s, {d['algorithm']}"),
        )
        revoke = self.path("id", d["id"], "revoke") + "?label="
        labels = [h("li", h("a", label, href=self.path("label", label)),
                    _button("Revoke", revoke + quote(label, safe=""), "small", about=label))
                  for label in d["labels"]]
        hint = ["Several with commas. Write them into ", h("code", "labels"), " of its agent file too."]
        grant = [_field(look, "labels", "Grant labels", hint), h("button", "Grant")]
        return [
            h("h1", h("code", d["id"])),
            h("section", known, self._actions(d), data_live="id", tabindex=-1),
            h("section", h("h2", "Labels"), h("ul", labels, class_="list") if labels else None,
              self._form(look, self.path("id", d["id"], "grant"), grant)),
        ]

    def add(self, look: Look) -> Child:
        hint = "One, or several with commas. The first one names the file."
        port = "For one label. Without it the service picks a port, and keeps it."
        fields = [
            _field(look, "labels", "Labels", hint, placeholder="home", required=True, autofocus=True),
            _field(look, "port", "Fixed port (optional)", port, inputmode="numeric"),
            _modes(look.typed.get("mode", MODES[0])),
            _choice("The file is for", "format", FORMAT_WORDS, look.typed.get("format", "ini")),
            h("div", h("button", "Add", class_="primary"), _button("Cancel", self._base), class_="row"),
        ]
        return [h("h1", "Add a hidden server"), h("section", self._form(look, self.path("add"), fields))]

    def confirm(self, look: Look, action: str, what: str, back: str, about: str, **hidden: str) -> Child:
        title, button, meaning, keep = CONFIRMED[action]
        fields: list[Child] = [h("input", type="hidden", name=n, value=value) for n, value in hidden.items()]
        if keep is not None:
            live = look.typed.get("live", "keep" if keep else "end")
            fields.append(_choice("Live pairs", "live", END_OR_KEEP, live))
        if action == "rotate":
            format = look.typed.get("format", "ini")
            fields.append(_choice("The file is for", "format", FORMAT_WORDS, format))
        kind = "primary" if action in ("rotate", "enable") else "danger"
        buttons = h("div", h("button", button, class_=kind), _button("Cancel", back), class_="row")
        form = self._form(look, "", fields, buttons)
        return [h("h1", f"{title} ", h("span", what, class_="what"), "?"),
                h("section", h("p", about) if about else None, h("p", meaning), form)]

    def issued(self, key: str, label: str, name: str, url: str) -> Child:
        run: Child = h("p", "It is for the original client of 2014.")
        if name.endswith(".ini"):
            code = h("code", agent_command(name), data_copy=True)
            run = [h("p", "Copy the file there, and run"), h("pre", code)]
        words = ("It holds the secret, which no page shows. It can be downloaded here, by this browser, for"
                 " ten minutes; after that, make a new secret.")
        file = self.path("issued", key, "file")
        return [
            h("h1", "The file for ", label),
            h("section", h("p", words),
              h("a", "Download ", name, href=file, class_="button primary", download=name)),
            h("section", h("h2", "On the hidden server"), run,
              h("p", "Visitors then come to ", h("a", url, href=url, rel="noreferrer"))),
        ]

    def _form(self, look: Look, action: str, *inside: Child) -> Html:
        csrf = h("input", type="hidden", name="csrf", value=look.session.csrf)
        return h("form", csrf, *inside, method="post", action=action)


# Pieces.


def _service(now: Now) -> Child:
    if not (s := now.status):
        words = "What you change here is kept, and holds from its start on."
        return _told("off", "The service is not running. ", words, _sub(now.silent))
    if s["draining"]:
        return _told("warn", "The service drains. ", "It takes nobody new.")
    if not s["ready"]:
        return _told("bad", "The service is not ready. ", "Its log says why.")
    online, live = sum(map(_online, s["labels"])), sum(label["live"] for label in s["labels"])
    words = f"{online} of {len(s['labels'])} labels online, {live} live {'pair' if live == 1 else 'pairs'}."
    return _told("good", "The service runs. ", words)


def _told(kind: str, state: str, *more: Child) -> Child:
    # Only the state is read out when it changes: the counts would be all the time.
    return [_mark(kind), h("strong", state, role="status"), more]


def _section(key: str, title: str, inside: Child, count: int | None = None) -> Html:
    counted = h("span", f"{count:,}", class_="count") if count is not None else None
    return h("section", h("h2", title, counted), inside, data_live=key, tabindex=-1)


def _button(words: str, href: str, kind: str = "", about: str = "") -> Html:
    """A link that looks like a button; ABOUT tells alike ones apart for who hears them."""
    heard = f"{words} {about}" if about else None
    return h("a", words, href=href, class_=f"button {kind}".strip(), aria_label=heard)


def _mark(kind: str) -> Html:
    """A sign whose shape says the same as its colour."""
    sign = {"good": "●", "off": "○", "warn": "▲", "bad": "■"}[kind]
    return h("span", sign, class_=f"mark {kind}", aria_hidden="true")


def _sub(text: Child) -> Child:
    return h("span", text, class_="sub") if text else None


def _quiet(words: str) -> Html:
    return h("span", words, class_="quiet")


def _online(live: Mapping[str, Any]) -> bool:
    return bool(live.get("waiting") or live.get("live"))


def _state(look: Look, label: str) -> Child:
    live = look.now.labels.get(label, {})
    if not any(d["enabled"] for d in look.ids_of(label)):
        words: Child = [_mark("bad"), "disabled"]
    elif not live and look.now.silent:
        return [_mark("off"), _quiet("not known")]
    else:
        words = [_mark("good"), "online"] if _online(live) else [_mark("off"), "offline"]
    counts = f"{live['waiting']} waiting, {live['live']} live" if _online(live) else None
    return [words, _sub(counts), _skew(live.get("clock_ahead_seconds"))]


def _enabled(d: Document) -> Child:
    return [_mark("good"), "enabled"] if d["enabled"] else [_mark("bad"), "disabled"]


def _clock(d: Document) -> Child:
    return _skew(d["clock"]["ahead_seconds"]) if "clock" in d else None


def _skew(ahead: float | None) -> Child:
    if not ahead:
        return None
    return _sub([_mark("warn"), f"its clock is {duration(abs(ahead))} {'fast' if ahead > 0 else 'slow'}"])


def _seen(live: Mapping[str, Any]) -> Child:
    who = [_sub(live.get("agent")), _sub(live.get("agent_version"))]
    if _online(live):
        return ["connected", who]
    if live.get("last_seen"):
        return ["last seen ", ago(live["last_seen"], time.time()), who]
    return [_quiet("not seen yet"), who] if live else _quiet("–")


def _port(d: Document, label: str, live: Mapping[str, Any]) -> str | None:
    if fixed := d["ports"].get(label):
        return f"port {fixed}, fixed"
    return f"port {live['port']}" if live.get("port") else None


def _amounts(counted: Mapping[str, Any]) -> str:
    return f"{octets(counted['to_initiator'])} / {octets(counted['to_responder'])}"


def _traffic(look: Look, label: Label) -> Child:
    if not look.now.status:
        return _quiet("–")
    if not any(map(sum, label.rates)):
        return _quiet("none")
    down, up = label.rates[-1]
    line = sparkline([sum(rate) for rate in label.rates], "Traffic while this page was open")
    return [line, _sub(f"{octets(down)}/s to visitors"), _sub(f"{octets(up)}/s back")]


def _pairings(look: Look, pairings: Sequence[dict[str, Any]]) -> Child:
    if not pairings:
        return _quiet(look.nothing)
    heads = ("When", "Verdict", "Visitor, hidden server", "Lasted", "To visitor / back", "RTT of both")
    rows: list[tuple[str, list[Child]]] = []
    for p in pairings[:MOST_ROWS]:
        who = [p["initiator"], _sub(p["responder"])]
        cells: list[Child] = [[_mark("good"), "live"], who, *["–"] * 3]
        if p["waited_seconds"] is not None:
            kind = {"fine": "good", "operator": "off"}.get(p["verdict"], "warn")
            by = WHO.get(p["ended_by"])
            cells = [
                [_mark(kind), p["verdict"], _sub(f"ended by {by} ({p['how']})" if by else p["how"])],
                who,
                [duration(p["seconds"]), _sub(f"waited {duration(p['waited_seconds'])}")],
                _amounts(p),
                [_both(p, "rtt_{}_ms", " ms"), _sub(f"{_both(p, 'retransmitted_{}')} sent again")],
            ]
        rows.append((f"{p['initiator']} {p['timestamp']}", [ago(p["timestamp"], time.time()), *cells]))
    return table("Last pairings", heads, rows)


def _both(pairing: Mapping[str, Any], name: str, unit: str = "") -> str:
    values = [pairing[name.format(leg)] for leg in ("initiator", "responder")]
    return " / ".join("?" if value is None else f"{value:,}{unit}" for value in values)


def _field(look: Look, name: str, title: str, hint: Child, **attributes: str | bool) -> Html:
    wrong = look.wrong.get(name)
    field = h("input", id=f"f-{name}", name=name, value=look.typed.get(name, ""), autocomplete="off",
              autocapitalize="none", spellcheck="false", aria_describedby=f"h-{name}",
              aria_invalid="true" if wrong else None, **attributes)
    complaint = h("p", _mark("bad"), wrong, class_="wrong", role="alert") if wrong else None
    described = h("div", complaint, h("p", hint, class_="hint"), id=f"h-{name}")
    return h("div", h("label", title, for_=f"f-{name}"), field, described, class_="field")


def _choice(legend: str, name: str, options: Mapping[str, str], chosen: str) -> Html:
    boxes = [h("label", h("input", type="radio", name=name, value=value, checked=value == chosen), words)
             for value, words in options.items()]
    return h("fieldset", h("legend", legend), boxes)


def _modes(chosen: str) -> Html:
    return _choice("Visitors are", "mode", MODE_WORDS, chosen)
