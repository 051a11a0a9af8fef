"""The operator's page over plain HTTP: who is let in, what is refused, and what the forms do."""

from __future__ import annotations

import configparser
import contextlib
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pyotp
import pytest
from operators import Browser, Standin, Web, text_of
from process import ROOT

from taasadmin.door import MOST_SESSIONS, SESSION_SECONDS, Door
from taasadmin.html import h
from taasadmin.watch import Watch
from taasadmin.wording import ago, duration, octets

INI = """\
[taas]
public = 203.0.113.7
registrar = registrar.taas.example.com
servers = taas.example.com
"""
HOSTILE = """"><script>xss=1</script><img src=x onerror=xss=1>'&lt;"""


@pytest.fixture
def folder(tmp_path: Path, certificate: tuple[Path, Path]) -> Path:
    (tmp_path / "taas.ini").write_text(INI)
    shutil.copy(certificate[0], tmp_path / "registrar.crt")
    return tmp_path


@pytest.fixture
def web(folder: Path) -> Iterator[Web]:
    web = Web(folder)
    yield web
    _, errors = web.stop()
    assert errors == ""  # no traceback, no access log


@pytest.fixture
def browser(web: Web) -> Browser:
    return Browser(web)


@pytest.fixture
def service(folder: Path) -> Iterator[Standin]:
    standin = Standin(folder / "taas.sock")
    yield standin
    standin.close()


def rows(folder: Path, query: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(folder / "taas.db")) as db:
        return db.execute(query).fetchall()


# The door


def test_a_link_lets_one_browser_in_and_the_next_link_is_shown(web: Web) -> None:
    first = web.link().partition(str(web.port))[2]
    answer = web.ask("GET", first)
    assert answer.status == 303
    cookie = answer.fields["Set-Cookie"]
    base = answer.fields["Location"]
    assert cookie.endswith(f"; Path={base}; HttpOnly; SameSite=Strict") and len(cookie.partition(";")[0]) > 50
    assert web.ask("GET", base, fields={"Cookie": cookie.partition(";")[0]}).status == 200
    again = web.ask("GET", first)
    assert again.status == 403 and "used before" in again.body and "Set-Cookie" not in again.fields
    assert web.link().partition(str(web.port))[2] != first
    other = web.ask("GET", web.links[-1].partition(str(web.port))[2])
    assert other.status == 303


def test_a_wrong_token_is_403_and_says_where_the_right_one_is(web: Web) -> None:
    web.link()
    for token in ("x", "ä" * 43, "A" * 43, "%00%ff"):
        answer = web.ask("GET", f"/?token={token}".encode("ascii", "xmlcharrefreplace").decode())
        assert answer.status == 403 and "web shows a link in its terminal" in text_of(answer.body)
        assert "Set-Cookie" not in answer.fields


def test_without_the_cookie_nothing_is_shown_not_even_the_path(web: Web, browser: Browser) -> None:
    for target in ("/", browser.base, browser.base + "add", "/?token=", "/favicon.ico"):
        for cookie in (None, "taas_session=x", "taas_session=", "x", f"other={browser.cookie[13:]}"):
            answer = web.ask("GET", target, fields={"Cookie": cookie})
            assert answer.status == 403 and browser.base not in answer.body
    answer = web.ask(
        "POST", browser.base + "add", urlencode({"csrf": browser.csrf, "labels": "home"}).encode()
    )
    assert answer.status == 403 and browser.base not in answer.body


def test_a_cookie_that_another_port_has_set_does_not_lock_out(web: Web, browser: Browser) -> None:
    for cookie in (f"taas_session=x; {browser.cookie}", f"{browser.cookie};taas_session=x; a=b"):
        assert web.ask("GET", browser.base, fields={"Cookie": cookie}).status == 200


def test_a_name_that_was_made_to_lead_here_is_421(web: Web, browser: Browser) -> None:
    for host in (
        "evil.example",
        f"evil.example:{web.port}",
        "127.0.0.1",
        f"127.0.0.1:{web.port}.evil",
        None,
        "",
    ):
        for target in (browser.base, "/page.js", "/"):
            assert web.ask("GET", target, fields={"Host": host, "Cookie": browser.cookie}).status == 421
        assert browser.post("add", {"labels": "home"}, {"Host": host}).status == 421
    assert browser.get(Host=f"localhost:{web.port}").status == 200
    with socket.create_connection(("127.0.0.1", web.port), 20) as sock:
        host = f"Host: 127.0.0.1:{web.port}\r\n"
        sock.sendall(f"GET {browser.base} HTTP/1.1\r\n{host}{host}Cookie: {browser.cookie}\r\n\r\n".encode())
        assert sock.recv(100).startswith(b"HTTP/1.0 421 ")


@pytest.mark.parametrize(
    "fields",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9"},  # another server of this machine: the same site, and another origin
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://localhost:{port}"},  # where Host says 127.0.0.1
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_a_form_that_another_page_sends_is_refused(browser: Browser, fields: dict[str, str]) -> None:
    given: dict[str, str | None] = {k: v.replace("{port}", str(browser.web.port)) for k, v in fields.items()}
    assert browser.post("add", {"labels": "home"}, given).status == 403
    assert browser.web.admin("list") == []


def test_a_form_of_ours_is_taken_with_and_without_an_origin(browser: Browser) -> None:
    ours: dict[str, str | None] = {
        "Origin": f"http://127.0.0.1:{browser.web.port}",
        "Sec-Fetch-Site": "same-origin",
    }
    assert browser.post("add", {"labels": "home"}, ours).status == 303
    assert browser.post("add", {"labels": "cam"}).status == 303
    assert [entry["labels"] for entry in browser.web.admin("list")] == [["home"], ["cam"]]


def test_a_form_without_the_session_s_second_secret_is_refused(web: Web, browser: Browser) -> None:
    for csrf in ("", "x", Browser(web).csrf):
        assert browser.post("add", {"csrf": csrf, "labels": "home"}).status == 403
    body = urlencode({"labels": "home"}).encode()
    assert web.ask("POST", browser.base + "add", body, {"Cookie": browser.cookie}).status == 403
    assert web.admin("list") == []


def test_bodies_are_bounded_and_the_answer_arrives(web: Web, browser: Browser) -> None:
    cookie: dict[str, str | None] = {"Cookie": browser.cookie}
    ask = web.ask
    assert ask("POST", browser.base + "add", b"x" * 200_000, cookie).status == 413
    assert ask("POST", browser.base + "add", b"", cookie | {"Content-Length": "9" * 5000}).status == 413
    for length in (None, "-1", "x", "1_0", "²"):
        fields = cookie | {"Content-Length": length and length.encode().decode("latin-1")}
        assert ask("POST", browser.base + "add", b"", fields).status == 411
    assert (
        ask("POST", browser.base + "add", b"0\r\n\r\n", cookie | {"Transfer-Encoding": "chunked"}).status
        == 411
    )
    assert (
        ask("POST", browser.base + "add", b"{}", cookie | {"Content-Type": "application/json"}).status == 415
    )
    assert ask("POST", browser.base + "add", b"&".join([b"a=b"] * 51), cookie).status == 400
    assert web.admin("list") == []


def test_nothing_but_two_assets_is_read_from_the_disk(web: Web, browser: Browser) -> None:
    assert web.ask("GET", "/page.css").fields["Content-Type"].startswith("text/css")
    assert web.ask("GET", "/page.js").fields["Content-Type"].startswith("text/javascript")
    names = [
        "page.py",
        "../taas.ini",
        "..%2ftaas.ini",
        "%2e%2e/taas.db",
        "page.css/../page.py",
        "/etc/passwd",
    ]
    for name in (*names, "page.css%00", "..\\taas.ini"):
        for target in ("/" + name, browser.base + name, browser.base + "label/" + name):
            answer = web.ask("GET", target, fields={"Cookie": browser.cookie})
            assert answer.status in (403, 404), target
            assert "203.0.113.7" not in answer.body and "import" not in answer.body


def test_every_answer_forbids_what_no_page_of_ours_needs(web: Web, browser: Browser) -> None:
    answers = [browser.get(), browser.get("nothing"), web.ask("GET", "/"), web.ask("GET", "/page.js")]
    answers += [web.ask("GET", "/", fields={"Host": "x"}), browser.post("add", {"labels": "home"})]
    answers += [web.ask(method, browser.base) for method in ("HEAD", "PUT", "OPTIONS", "TRACE", "DELETE")]
    assert [answer.status for answer in answers] == [200, 404, 403, 200, 421, 303, *[501] * 5]
    for answer in answers:
        policy = dict(
            part.strip().split(" ", 1) for part in answer.fields["Content-Security-Policy"].split(";")
        )
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["form-action"] == "'self'" and policy["img-src"] == "'self' data:"
        assert answer.fields["X-Content-Type-Options"] == "nosniff"
        assert answer.fields["Referrer-Policy"] == "same-origin"
        assert answer.fields["Cache-Control"] == "no-store"
        assert "Server" not in answer.fields and "style=" not in answer.body and "<script>" not in answer.body


def test_who_is_slow_keeps_nobody_waiting(web: Web, browser: Browser) -> None:
    with contextlib.ExitStack() as stack:
        for n in range(100):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", web.port), 20))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: 127"[: n % 25])
        assert browser.get().status == 200


def test_sessions_end_when_nobody_uses_them_and_are_few() -> None:
    now = [0.0]
    links: list[str] = []
    door = Door(links.append, lambda: now[0])
    door.announce()

    def enter() -> str:
        session = door.exchange(links[-1].partition("=")[2])
        assert session
        return session.secret

    first = enter()
    now[0] += SESSION_SECONDS - 1
    assert door.find(first)
    now[0] += SESSION_SECONDS - 1
    assert door.find(first)
    now[0] += SESSION_SECONDS
    assert not door.find(first)
    many = [enter() for _ in range(MOST_SESSIONS + 1)]
    assert [bool(door.find(secret)) for secret in many] == [False] + [True] * MOST_SESSIONS
    assert len(set(links)) == len(links)


# The command


def test_a_port_that_is_taken_is_one_line_and_exit_code_1(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, str(ROOT / "taas_admin.py"), "web", "--port", str(port)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert f"127.0.0.1 port {port}: Address already in use" in done.stderr and done.stderr.count("\n") == 1


def test_ctrl_c_ends_it_quietly(folder: Path) -> None:
    web = Web(folder)
    web.link()
    web.popen.send_signal(signal.SIGINT)
    assert web.popen.wait(20) == 0
    assert web.stop() == ("", "")


def test_it_runs_out_of_one_file(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "taas.pyz"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (*ROOT.glob("taaslib/*.*"), *ROOT.glob("taasadmin/*.*"), *ROOT.glob("*.py")):
            file.write(path, path.relative_to(ROOT))
        file.write(ROOT / "tools" / "dist_main.py", "__main__.py")
    web = Web.__new__(Web)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        web.port = free.getsockname()[1]
    command = [sys.executable, str(archive), "admin", "--json", "web", "--port", str(web.port)]
    web.folder, web.links = folder, []
    web.popen = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    browser = Browser(web)
    assert "prefers-color-scheme" in web.ask("GET", "/page.css").body
    answer = browser.follow(browser.post("add", {"labels": "home"}))
    assert "python3 taas.pyz agent home.agent.ini --to 127.0.0.1:443" in text_of(answer.body)
    assert web.stop()[1] == ""


# What is shown


def test_no_string_of_the_database_or_the_service_becomes_markup(
    folder: Path, browser: Browser, service: Standin
) -> None:
    browser.web.admin("add", "home")
    with contextlib.closing(sqlite3.connect(folder / "taas.db")) as db, db:
        for table in ("labels", "grants"):
            db.execute(f"UPDATE {table} SET label = ?", (HOSTILE,))
        db.execute("INSERT INTO hosts VALUES (?, ?)", (HOSTILE, HOSTILE))
    service.label(HOSTILE, waiting=1, agent=HOSTILE, agent_version=HOSTILE)
    service.pair(1, HOSTILE, initiator=HOSTILE, responder=HOSTILE)
    service.pairings.append(
        PAIRING | {"initiator": HOSTILE, "verdict": HOSTILE, "how": HOSTILE, "ended_by": HOSTILE}
    )
    service.changes = {"version": HOSTILE, "pump": HOSTILE, "listens": [HOSTILE]}
    label = re.search('href="[^"]*/(label/[^"]+)"', browser.get().body)
    id = browser.web.admin("list")[0]["id"]
    assert label
    for path in (
        "",
        label[1],
        f"id/{id}",
        f"id/{id}/remove",
        f"id/{id}/revoke?label={HOSTILE[:2]}",
        label[1] + "/kick",
    ):
        page = browser.get(path.replace(">", "%3E").replace('"', "%22"))
        assert page.status == 200
        for hostile in ("<script>xss", "<img", "onerror=xss=1>'", "'&lt;"):
            assert hostile not in page.body
    typed = browser.post("add", {"labels": HOSTILE, "port": HOSTILE})
    assert typed.status == 422 and "<script>xss" not in typed.body and "&lt;script&gt;" in typed.body
    assert "<script>xss" not in browser.web.ask("GET", "/", fields={"Host": HOSTILE}).body


def test_what_the_service_does_is_shown(service: Standin, browser: Browser) -> None:
    for label in ("home", "cam", "lab"):
        browser.web.admin("add", label)
    service.label("home", waiting=2, live=1, agent="192.0.2.1:4711", agent_version="taas-agent/0.5.0")
    service.label("cam", last_seen=1_000_000_000_000, port=None, clock_ahead_seconds=-40)
    service.label("lab")
    service.pair(17, to_initiator=2_500_000)
    page = text_of(browser.get().body)
    for words in (
        "The service runs. 1 of 3 labels online, 1 live pair.",
        "home home.taas.example.com ● online 2 waiting, 1 live",
        "connected 192.0.2.1:4711 taas-agent/0.5.0",
        "○ offline ▲ its clock is 40 s slow",
        "not seen yet",
        "198.51.100.7:17 home 192.0.2.1:4711 1 min 1 s 2.5 MB / 90 B Kick",
        "Visits 1 of 100",
        "Up for 1 h 2 min",
    ):
        assert words in page
    service.changes = {"draining": True}
    wait_until(lambda: "The service drains. It takes nobody new." in text_of(browser.get().body))
    service.changes = {"ready": False}
    wait_until(lambda: "The service is not ready. Its log says why." in text_of(browser.get().body))


def test_the_last_pairings_are_shown_with_their_verdicts_newest_first(
    service: Standin, browser: Browser
) -> None:
    browser.web.admin("add", "home")
    service.label("home", live=1)
    service.pairings = [PAIRING, PAIRING | LATER, PAIRING | LIVE]
    page = text_of(browser.get("label/home").body)
    older = "● fine ended by the visitor (fin) 198.51.100.7:9 192.0.2.1:4711 44 s waited 12 s 123 kB / 4.0 kB"
    assert f"{older} 48.0 ms / 12.4 ms 3 / 0 sent again" in page
    newer = "▲ hidden server's path timeout 198.51.100.7:9"
    assert "48.0 ms / ? 3 / 0 sent again" in page
    assert page.index("● live 198.51.100.7:9") < page.index(newer) < page.index(older)


PAIRING = {
    "responder": "192.0.2.1:4711", "initiator": "198.51.100.7:9", "timestamp": 1_700_000_000_000,
    "waited_seconds": 12.3, "seconds": 44.1, "to_initiator": 123_456, "to_responder": 4000,
    "rtt_responder_ms": 12.4, "rtt_initiator_ms": 48.0, "retransmitted_responder": 0,
    "retransmitted_initiator": 3, "ended_by": "initiator", "how": "fin", "outcome": "complete",
    "verdict": "fine",
}  # fmt: skip
LATER = {"timestamp": 1_700_000_001_000, "ended_by": None, "how": "timeout", "rtt_responder_ms": None}
LATER |= {"verdict": "hidden server's path"}
LIVE = dict.fromkeys(list(PAIRING)[3:]) | {"timestamp": 1_700_000_002_000}


def test_without_the_service_the_page_says_so_and_changes_are_made(browser: Browser) -> None:
    assert browser.post("add", {"labels": "home, cam"}).status == 303
    page = text_of(browser.get().body)
    assert "The service is not running." in page and "taas.sock" in page and "not known" in page
    assert [entry["labels"] for entry in browser.web.admin("list")] == [["home", "cam"]]
    assert "no running service answers" in text_of(browser.post("service/reload", {}).body)
    assert browser.get("label/home").status == 200


def test_a_service_that_comes_is_seen_and_that_went_too(folder: Path, browser: Browser) -> None:
    assert "is not running" in browser.get().body
    service = Standin(folder / "taas.sock")
    try:
        wait_until(lambda: "The service runs." in browser.get().body)
    finally:
        service.close()
    wait_until(lambda: "is not running" in browser.get().body)


def wait_until(happened: Callable[[], object]) -> None:
    for _ in range(10_000):
        if happened():
            return
    raise AssertionError("never happened")


# What is done


def agent_file(text: str) -> configparser.ConfigParser:
    ini = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    ini.read_string(text)
    return ini


def test_the_secret_is_in_the_file_alone_and_the_file_is_this_session_s(web: Web, browser: Browser) -> None:
    page = browser.follow(browser.post("add", {"labels": "home cam"}))
    link = re.search('href="([^"]+/file)"', page.body)
    assert link and "python taas_agent.py home.agent.ini --to 127.0.0.1:443" in text_of(page.body)
    file = browser.get(link[1].removeprefix(browser.base))
    assert file.fields["Content-Disposition"] == 'attachment; filename="home.agent.ini"'
    assert file.fields["Cache-Control"] == "no-store"
    credential = agent_file(file.body)["credential"]
    (entry,) = web.admin("show", "home")
    assert (credential["id"], credential["secret"]) == (entry["id"], entry["secret"])
    assert credential["labels"] == "home, cam"
    assert pyotp.TOTP(credential["secret"]).now()
    for path in (
        "",
        page.body and link[1].removeprefix(browser.base).removesuffix("/file"),
        f"id/{entry['id']}",
    ):
        assert entry["secret"] not in browser.get(path).body
    other = Browser(web)
    assert other.get(link[1].removeprefix(browser.base)).status == 404
    assert not list(web.folder.glob("*.agent.ini"))


def test_what_can_not_be_is_said_beside_what_was_typed(browser: Browser) -> None:
    browser.web.admin("add", "home", "--port", "20500")
    for form, words in (
        ({"labels": ""}, "Nothing can't be a label: a label is 1 to 63 letters"),
        ({"labels": "cam, -x"}, "-x can't be a label"),
        ({"labels": "cam", "port": "0"}, "0 is not a port number (1-65535)."),
        ({"labels": "cam", "port": "²"}, "² is not a port number"),
        ({"labels": "cam", "port": "20500"}, "port 20500 is the fixed port of label home"),
        ({"labels": "cam lab", "port": "20501"}, "a fixed port is one label's"),
        ({"labels": "registrar"}, "label registrar is taken"),
        ({"labels": "cam", "port": "20501", "mode": "passthrough"}, "passthrough would never open"),
        ({"labels": "cam", "mode": "x"}, "There is no such mode."),
    ):
        answer = browser.post("add", form)
        assert answer.status == 422 and words in text_of(answer.body), words
        for name, value in form.items():
            assert name == "mode" or f'name="{name}" value="{value}"' in answer.body
    assert len(browser.web.admin("list")) == 1
    id = browser.web.admin("list")[0]["id"]
    assert browser.post(f"id/{id}/grant", {"labels": "registrar"}).status == 422
    assert browser.post("label/home/hosts", {"host": "x.taas.example.com"}).status == 422
    assert browser.post("label/home/mode", {"mode": "passthrough"}).status == 422
    assert browser.post(f"id/{id}/revoke", {"label": "lab"}).status == 422
    for path in (
        "id/x/remove",
        "id/x",
        "label/x",
        "label/x/mode",
        "pair/1",
        "x",
        "add/x",
        "issued/x",
        "issued/x/file",
    ):
        assert browser.get(path).status == 404
    for path in ("x", "label/home", "id/x", f"id/{id}/x", "service/x", "pair/1/x"):
        assert browser.post(path, {}).status == 404


def test_live_pairs_end_or_stay_as_the_commands_have_it(folder: Path, browser: Browser) -> None:
    for action, live, spared in (
        ("disable", "", 0), ("disable", "keep", 1), ("rotate", "", 1), ("rotate", "end", 0),
        ("remove", "", 0), ("remove", "keep", 1),
    ):  # fmt: skip
        id = browser.web.admin("add", "home", "--force")["id"]
        assert browser.post(f"id/{id}/{action}", {"live": live} if live else {}).status == 303
        assert len(rows(folder, f"SELECT 1 FROM spared WHERE id = '{id}'")) == spared, (action, live)
        if action != "remove":
            browser.web.admin("remove", id)


# Pieces


def test_whatever_is_not_markup_is_escaped() -> None:
    assert h("p", "<&\"'>", h("br"), None, [1, 2.5], class_="<\"'>", hidden=True, id=None, x=False) == (
        '<p class="&lt;&quot;&#x27;&gt;" hidden>&lt;&amp;&quot;&#x27;&gt;<br>12.5</p>'
    )


def test_numbers_are_written_for_people() -> None:
    assert [octets(n) for n in (0, 999, 1000, 9999, 123_456, 5e12)] == [
        "0 B", "999 B", "1.0 kB", "10.0 kB", "123 kB", "5.0 TB",
    ]  # fmt: skip
    assert [duration(s) for s in (0.0123, 1, 59.9, 60, 3725, 90_000, 86_400)] == [
        "12 ms", "1 s", "59 s", "1 min", "1 h 2 min", "1 d 1 h", "1 d",
    ]  # fmt: skip
    assert [ago(1_000_000, now) for now in (999, 1004, 1061)] == ["just now", "just now", "1 min 1 s ago"]


def test_rates_are_differences_and_a_new_start_is_none(folder: Path, service: Standin) -> None:
    now = [100.0]
    live = Watch(folder / "taas.sock", lambda: now[0])
    for down, up in ((1000, 10), (5000, 30), (5000, 30), (200, 0)):
        service.label("home", to_initiator=down, to_responder=up)
        live.look()
        live.look()  # at once: the same answer
        now[0] += 2
    assert live.rates("home") == [(2000.0, 10.0), (0.0, 0.0), (0.0, 0.0)]
    assert live.rates("unknown") == [(0.0, 0.0)] * 3


def test_text_and_ground_have_the_contrast_that_wcag_aa_asks_for() -> None:
    css = (ROOT / "taasadmin" / "page.css").read_text()
    schemes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", block))
        for block in re.findall(r":root \{(.+?)\}", css, re.S)
    ]
    assert len(schemes) == 2

    def light(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    def contrast(a: str, b: str) -> float:
        high, low = sorted((light(a), light(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for scheme in schemes:
        for text in ("text", "quiet", "accent", "good", "warn", "bad"):
            for ground in ("ground", "sheet"):
                assert contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground)
        pairs = (("on-accent", "accent"), ("text", "good-ground"), ("text", "bad-ground"), ("text", "hover"),
                 ("bad", "bad-ground"), ("good", "good-ground"))  # fmt: skip
        for text, ground in pairs:
            assert contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground)
        assert contrast(scheme["edge"], scheme["sheet"]) >= 3  # the edge of a field: WCAG 1.4.11
