"""The operator's page: what each address behind the door shows, and what each form does.

Knows nothing of sockets, cookies and who is let in (door.py), nor how anything looks (views.py).
"""

import contextlib
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

from taasadmin.agentfile import SUFFIX
from taasadmin.book import Refused
from taasadmin.credentials import MODES, AgentFile, Credentials, Document, Keep
from taasadmin.door import Door, Fields, Refusal, Response, Server, Session, see_other
from taasadmin.html import Child
from taasadmin.steer import Rejected, Silent
from taasadmin.views import Label, Look, Said, Views
from taasadmin.watch import Watch
from taasadmin.wording import called
from taaslib import names
from taaslib.config import Config
from taaslib.ownership import Owner
from taaslib.store import StoreError

KEPT_SECONDS = 600  # that an agent file can be downloaded
MOST_KEPT = 8
OF_AN_ID = ("rotate", "disable", "enable", "remove", "revoke")
DONE = {
    "disable": "Disabled. The service follows within two seconds.",
    "enable": "Enabled.",
    "remove": "Removed. The service follows within two seconds.",
    "revoke": "Revoked. The service follows within two seconds.",
}


def serve(settings: Config, owner: Owner | None, port: int, say: Callable[[str], None]) -> None:
    """Serve on PORT until Ctrl-C; SAY is told each link.  Raises Refused where the port is not to be had."""
    base = f"/{secrets.token_urlsafe(12)}/"
    door = Door(lambda target: say(f"http://127.0.0.1:{port}{target}"))
    try:
        server = Server(port, door, Page(settings, owner, base), base)
    except OSError as error:
        raise Refused(f"127.0.0.1 port {port}: {error.strerror}: choose another one with --port") from None
    with server, contextlib.suppress(KeyboardInterrupt):
        door.announce()
        server.serve_forever()


@dataclass(frozen=True, slots=True)
class Kept:
    """An agent file, until the monotonic clock says UNTIL."""

    label: str
    name: str
    content: str
    until: float


class Page:
    def __init__(self, settings: Config, owner: Owner | None, base: str) -> None:
        self._credentials = Credentials(settings, owner)
        self._watch = Watch(settings.socket)
        self._views = Views(base, settings.registrar)

    def get(self, path: list[str], session: Session, query: Fields, poll: bool) -> Response:
        with _troubles():
            if path[0] == "issued" and path[2:] == ["file"]:
                return self._file(session, path[1])
            said: Said = []
            if not poll:  # by the script, which shows none of it
                said, session.said = [(True, words) for words in session.said], []
            return self._show(path, session, query, {}, said)

    def post(self, path: list[str], session: Session, form: Fields) -> Response:
        with _troubles():
            again, field = _form_s_page(path)
            try:
                pieces, words = self._do(path, session, form)
            except _Wrong as error:
                return self._show(again, session, form, {error.field: str(error)}, [])
            except (Refused, Silent, Rejected) as error:
                return self._show(again, session, form, {field: str(error)}, [])
            if words:
                session.said.append(words)
            return see_other(self._views.path(*pieces))

    def refused(self, refusal: Refusal) -> Response:
        hint = f"{called('admin')} web shows a link in its terminal: the last one is good for one browser."
        title = {404: "Not found", 421: "Not under this name"}.get(refusal.status, "Not done")
        title, hint = ("Not let in", hint) if refusal.stranger else (title, "")
        return Response(self._views.refused(title, str(refusal), hint, refusal.again), refusal.status)

    def _show(self, path: list[str], session: Session, typed: Fields, wrong: Fields, said: Said) -> Response:
        look = Look(session, self._watch.look(), self._credentials.all(), typed, wrong)
        title, body = self._page(path, look)
        said = [(False, wrong[""])] if "" in wrong else said
        text = self._views.document(title, body, look.now, said, self._views.path(*path))
        return Response(text, 422 if wrong else 200)

    def _page(self, path: list[str], look: Look) -> tuple[str, Child]:
        views = self._views
        match path:
            case [""]:
                labels = sorted({label for document in look.documents for label in document["labels"]})
                return "Overview", views.overview(look, [self._label(label) for label in labels])
            case ["add"]:
                return "Add a hidden server", views.add(look)
            case ["issued", key]:
                kept = self._kept(look.session, key)
                url = self._credentials.visitors_come_to(kept.label)
                return kept.name, views.issued(key, kept.label, kept.name, url)
            case ["label", label] if look.ids_of(label):
                return label, views.label(look, self._label(label), self._watch.pairings(label))
            case ["label", label, "kick"] if look.ids_of(label):
                return "Kick", views.confirm(look, "kick", label, views.path("label", label), "")
            case ["id", id]:
                return id, views.id(look, _document(look, id))
            case ["id", id, action] if action in OF_AN_ID:
                about = f"It serves {', '.join(_document(look, id)['labels']) or 'no label'}."
                back, hidden = views.path("id", id), {}
                if action == "revoke":
                    hidden = {"label": look.typed.get("label", "")}
                    about = f"The label: {hidden['label']}."
                return action.capitalize(), views.confirm(look, action, id, back, about, **hidden)
            case ["service", "drain"]:
                return "Drain", views.confirm(look, "drain", "the service", self._views.path(""), "")
        raise Refusal(404, "There is no such page, label or ID (any more).")

    def _label(self, name: str) -> Label:
        return Label(name, self._credentials.visitors_come_to(name), self._watch.rates(name))

    def _do(self, path: list[str], session: Session, form: Fields) -> tuple[list[str], str]:
        """Do what the form at PATH asks for; the page to go to, and what it tells."""
        match path:
            case ["add"]:
                return self._add(session, form)
            case ["id", id, "rotate"]:
                return self._rotate(session, id, form)
            case ["id", id, "grant"]:
                document = self._credentials.grant(id, _labels(form.get("labels", "")))
                return ["id", id], f"It may serve {', '.join(document['labels'])}."
            case ["id", id, action] if action in OF_AN_ID:
                self._change(id, action, form.get("label", ""), form.get("live") == "keep")
                return ([""] if action == "remove" else ["id", id]), DONE[action]
            case ["label", label, "mode"]:
                if (mode := form.get("mode", "")) not in MODES:
                    raise Refused("There is no such mode.")
                self._credentials.set_mode(label, mode)
                return ["label", label], "Saved."
            case ["label", label, "hosts"]:
                self._credentials.grant_hosts(label, [form.get("host", "").strip()])
                return ["label", label], "Added."
            case ["label", label, "hosts", "revoke"]:
                self._credentials.revoke_hosts(label, [form.get("host", "")])
                return ["label", label], "Revoked."
            case ["label", label, "kick"]:
                kicked = self._watch.do(f"/kick?label={quote(label, safe='')}")["kicked"]
                return ["label", label], f"Ended: {kicked}."
            case ["pair", pair, "kick"]:
                self._watch.do(f"/kick?pair={quote(pair, safe='')}")
                return (["label", form["label"]] if "label" in form else [""]), f"Ended: pair {pair}."
            case ["service", "drain"]:
                self._watch.do("/drain")
                return [""], "The service drains."
            case ["service", "reload"]:
                self._watch.do("/reload")
                return [""], "The service has read taas.ini again."
        raise Refusal(404, "No such form.")

    def _change(self, id: str, action: str, label: str, keep_live: bool) -> None:
        if action == "remove":
            self._credentials.remove(id, keep_live)
        elif action == "revoke":
            self._credentials.revoke(id, [label], keep_live)
        else:
            self._credentials.set_enabled(id, action == "enable", keep_live)

    # The agent's file: it holds a secret, so it is in no page and no address, and goes after a while.

    def _add(self, session: Session, form: Fields) -> tuple[list[str], str]:
        labels, port = _labels(form.get("labels", "")), form.get("port", "").strip()
        if port and not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
            raise _Wrong("port", f"{port} is not a port number (1-65535).")
        if (mode := form.get("mode", MODES[0])) not in MODES:
            raise Refused("There is no such mode.")
        key, keep = _keeping(session)
        self._credentials.add(labels, _format(form), keep, port=int(port) if port else None, mode=mode)
        return ["issued", key], f"Added: {', '.join(labels)}."

    def _rotate(self, session: Session, id: str, form: Fields) -> tuple[list[str], str]:
        key, keep = _keeping(session)
        self._credentials.rotate(id, _format(form), keep, form.get("live") != "end")
        return ["issued", key], "The ID has a new secret."

    def _kept(self, session: Session, key: str) -> Kept:
        session.kept = {k: kept for k, kept in session.kept.items() if time.monotonic() < kept.until}
        if key not in session.kept:
            raise Refusal(404, "This file is not kept any more. Make a new secret to get another one.")
        kept: Kept = session.kept[key]
        return kept

    def _file(self, session: Session, key: str) -> Response:
        kept = self._kept(session, key)
        name = re.sub("[^A-Za-z0-9.-]", "_", kept.name)
        disposition = ("Content-Disposition", f'attachment; filename="{name}"')
        return Response(kept.content, kind="application/octet-stream", fields=(disposition,))


def _keeping(session: Session) -> tuple[str, Keep]:
    """A key, and how a file is kept under it for SESSION."""
    key = secrets.token_urlsafe(12)

    @contextlib.contextmanager
    def keep(file: AgentFile) -> Iterator[str]:
        name = file.other_name if file.shared else file.name
        yield name
        kept = Kept(file.label, name, file.content, time.monotonic() + KEPT_SECONDS)
        session.kept = dict([*session.kept.items(), (key, kept)][-MOST_KEPT:])

    return key, keep


class _Wrong(Refused):
    """What was typed into FIELD can't be."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(why)
        self.field = field


def _form_s_page(path: list[str]) -> tuple[list[str], str]:
    """The page that a form is on, to be shown again where it is refused, and the field to blame."""
    match path:
        case ["id", id, "grant"]:
            return ["id", id], "labels"
        case ["label", label, "hosts"]:
            return ["label", label], "host"
        case ["label", label, "mode" | "hosts", *_]:
            return ["label", label], ""
        case ["pair", _, "kick"] | ["service", "reload"]:
            return [""], ""
    return path, ""


def _labels(text: str) -> list[str]:
    labels = []
    for part in re.split(r"[\s,]+", text.strip(" ,\t\r\n")):
        try:
            labels.append(names.label(part))
        except ValueError as error:
            raise _Wrong("labels", f"{part or 'Nothing'} can't be a label: {error}.") from None
    return labels


def _format(form: Fields) -> str:
    wanted = form.get("format", "ini")
    return wanted if wanted in SUFFIX else "ini"


def _document(look: Look, id: str) -> Document:
    for document in look.documents:
        if document["id"] == id:
            return document
    raise Refusal(404, "There is no such ID (any more).")


@contextlib.contextmanager
def _troubles() -> Iterator[None]:
    try:
        yield
    except (StoreError, OSError) as error:
        raise Refusal(503, str(error)) from None
