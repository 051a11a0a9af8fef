"""The operator's page in a browser: everything by clicking, and what a person notices.

A console that says anything, a violation of the policy among it, fails the test.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hidden import CHROMIUM
from operators import Standin, Web
from test_page import HOSTILE, INI, PAIRING, agent_file

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def folder(tmp_path: Path, certificate: tuple[Path, Path]) -> Path:
    (tmp_path / "taas.ini").write_text(INI)
    shutil.copy(certificate[0], tmp_path / "registrar.crt")
    return tmp_path


@pytest.fixture
def service(folder: Path) -> Iterator[Standin]:
    standin = Standin(folder / "taas.sock")
    yield standin
    standin.close()


@pytest.fixture
def web(folder: Path) -> Iterator[Web]:
    web = Web(folder)
    yield web
    assert web.stop()[1] == ""


@pytest.fixture
def enter(chromium: Any, web: Web) -> Iterator[Callable[..., Any]]:
    """Open the page by its next link, in a browser of its own; OPTIONS are a context's."""
    contexts: list[Any] = []
    heard: list[str] = []

    def enter(**options: Any) -> Any:
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: heard.append(dialog.message))
        page.goto(web.link())
        page.overview = page.url
        return page

    yield enter
    for context in contexts:
        context.close()
    # Chromium calls a form that is refused with 422 a failure to load; nothing else may be said.
    assert [words for words in heard if "status of 422 (Unprocessable" not in words] == []


def entries(web: Web) -> Any:
    return web.admin("list")


def download(page: Any) -> tuple[str, str]:
    """The name and the text of the agent file that the page offers."""
    with page.expect_download() as event:
        page.get_by_role("link", name="Download").click()
    return event.value.suggested_filename, Path(event.value.path()).read_text()


def click(page: Any, words: str, role: str = "button") -> None:
    page.get_by_role(role, name=words).first.click()


def labels(page: Any) -> Any:
    """The form's first field, once it has the focus: to type sooner makes Chromium complain."""
    page.locator("input[autofocus]:focus").wait_for()
    return page.get_by_label("Labels")


def says(page: Any, words: str) -> None:
    page.get_by_text(words).first.wait_for()


@pytest.mark.parametrize("script", [True, False], ids=["with its script", "without"])
def test_an_id_lives_from_its_making_to_its_end(web: Web, enter: Callable[..., Any], script: bool) -> None:
    page = enter(java_script_enabled=script)
    says(page, "No hidden server yet")
    click(page, "Add the first one", "link")
    labels(page).fill("home, Cam")
    page.get_by_label("passed through or redirected").check()
    click(page, "Add")
    says(page, "Added: home, cam.")
    says(page, "python taas_agent.py home.agent.ini --to 127.0.0.1:443")
    name, text = download(page)
    (entry,) = entries(web)
    assert (name, entry["labels"]) == ("home.agent.ini", ["home", "cam"])
    assert entry["modes"] == {"home": "both", "cam": "both"}
    first = agent_file(text)["credential"]["secret"]
    assert first == web.admin("show", entry["id"])[0]["secret"]

    click(page, "← Overview", "link")
    click(page, f"Rotate {entry['id']}", "link")
    click(page, "Make a new secret")
    says(page, "The ID has a new secret.")
    _, text = download(page)
    second = agent_file(text)["credential"]["secret"]
    assert second != first and second == web.admin("show", entry["id"])[0]["secret"]

    click(page, "← Overview", "link")
    click(page, f"Disable {entry['id']}", "link")
    click(page, "Cancel", "link")
    assert entries(web)[0]["enabled"]
    click(page, f"Disable {entry['id']}", "link")
    click(page, "Disable")
    says(page, "Disabled.")
    assert not entries(web)[0]["enabled"]
    click(page, f"Enable {entry['id']}", "link")
    click(page, "Enable")
    says(page, "Enabled.")
    assert entries(web)[0]["enabled"]

    page.get_by_label("Grant labels").fill("registrar")
    click(page, "Grant")
    says(page, "label registrar is taken")
    assert page.get_by_label("Grant labels").input_value() == "registrar"
    page.get_by_label("Grant labels").fill("lab")
    click(page, "Grant")
    says(page, "It may serve home, cam, lab.")
    click(page, "Revoke cam", "link")
    says(page, "The label: cam.")
    click(page, "Revoke the label")
    says(page, "Revoked.")
    assert entries(web)[0]["labels"] == ["home", "lab"]

    click(page, f"Remove {entry['id']}", "link")
    click(page, "Remove for good")
    says(page, "Removed.")
    says(page, "No hidden server yet")
    assert entries(web) == []


def test_a_label_gets_a_port_a_mode_and_domains_and_the_original_client_its_file(
    web: Web, enter: Callable[..., Any]
) -> None:
    page = enter()
    click(page, "Add", "link")
    labels(page).fill("home")
    page.get_by_label("Fixed port (optional)").fill("99999")
    page.get_by_label("the original client of 2014").check()
    click(page, "Add")
    says(page, "99999 is not a port number")
    assert page.get_by_label("Labels").input_value() == "home"
    assert page.get_by_label("the original client of 2014").is_checked()
    page.get_by_label("Fixed port (optional)").fill("20500")
    click(page, "Add")
    name, text = download(page)
    assert name == "home.js" and json.loads(text.partition('"labels": ')[2].partition(",\n")[0]) == ["home"]
    assert entries(web)[0]["ports"] == {"home": 20500}

    click(page, "← Overview", "link")
    page.get_by_role("link", name="home", exact=True).first.click()
    says(page, "port 20500, fixed")
    page.get_by_label("passed through by server name").check()
    click(page, "Save")
    says(page, "label home has the fixed port 20500")
    page.get_by_label("passed through or redirected").check()
    click(page, "Save")
    says(page, "Saved.")
    assert entries(web)[0]["modes"] == {"home": "both"}
    page.get_by_label("Add a domain").fill("nothing")
    click(page, "Add domain")
    says(page, "it is no DNS name")
    page.get_by_label("Add a domain").fill("home.example.org")
    click(page, "Add domain")
    says(page, "Added.")
    assert entries(web)[0]["hosts"] == {"home": ["home.example.org"]}
    click(page, "Revoke home.example.org")
    says(page, "Revoked.")
    assert entries(web)[0]["hosts"] == {}


def test_pairs_are_kicked_and_the_service_is_told(
    web: Web, service: Standin, enter: Callable[..., Any]
) -> None:
    web.admin("add", "home")
    service.label("home", waiting=1, live=3)
    for number in (17, 18, 19):
        service.pair(number)
    page = enter()
    click(page, "Kick 198.51.100.7:18")
    says(page, "Ended: pair 18.")
    page.get_by_text("198.51.100.7:18").wait_for(state="detached")
    page.get_by_role("link", name="home", exact=True).first.click()
    click(page, "Kick 198.51.100.7:17")
    says(page, "Ended: pair 17.")
    assert page.url.endswith("/label/home")
    click(page, "End all of them", "link")
    click(page, "End them")
    says(page, "Ended: 1.")
    assert service.told == ["/kick?pair=18", "/kick?pair=17", "/kick?label=home"] and not service.pairs
    click(page, "← Overview", "link")
    service.refusal = "taas.ini: [taas] port: 'x' is not a port number"
    click(page, "Reload taas.ini")
    says(page, "'x' is not a port number")
    service.refusal = ""
    click(page, "Reload taas.ini")
    says(page, "The service has read taas.ini again.")
    click(page, "Drain", "link")
    click(page, "Drain the service")
    says(page, "The service drains.")
    assert service.told[3:] == ["/reload", "/reload", "/drain"]


def test_it_follows_what_happens_and_leaves_what_one_types_alone(
    web: Web, service: Standin, enter: Callable[..., Any]
) -> None:
    web.admin("add", "home")
    service.label("home", waiting=1)
    page = enter()
    page.goto(page.overview + "label/home")
    page.get_by_label("Add a domain").fill("half a na")
    page.get_by_label("passed through by server name").check()
    page.get_by_label("Add a domain").focus()
    page.evaluate("document.activeElement.setSelectionRange(2, 4)")
    service.label("home", waiting=7, live=1, to_initiator=1000)
    service.pair(17)
    service.pairings.append(PAIRING)
    says(page, "7 waiting, 1 live")
    says(page, "198.51.100.7:17")
    says(page, "ended by the visitor (fin)")
    state = (
        "[document.activeElement.name, document.activeElement.selectionStart, document.activeElement.value]"
    )
    assert page.evaluate(state) == ["host", 2, "half a na"]
    assert page.get_by_label("passed through by server name").is_checked()

    page.goto(page.overview)
    page.get_by_role("button", name="Kick 198.51.100.7:17").focus()
    web.admin("add", "cam")  # rows come before and behind it
    service.pair(18)
    service.label("home", waiting=9)
    page.get_by_role("link", name="cam", exact=True).first.wait_for()
    says(page, "9 waiting")
    assert page.evaluate("document.activeElement.ariaLabel") == "Kick 198.51.100.7:17"
    service.kick("/kick?pair=17")
    page.get_by_text("198.51.100.7:17").wait_for(state="detached")
    assert page.evaluate("document.activeElement.dataset.live") == "pairs"  # stays near


def test_traffic_is_drawn(web: Web, service: Standin, enter: Callable[..., Any]) -> None:
    web.admin("add", "home")
    service.label("home", live=1)
    page = enter()
    assert page.locator("svg").count() == 0
    service.label("home", live=1, to_initiator=10_000_000)
    page.locator("svg polyline").first.wait_for()
    assert page.get_by_role("img", name="Traffic while this page was open").count() == 1
    assert page.get_by_text("/s to visitors").count() == 1


def test_it_tells_when_the_service_or_the_page_s_own_process_or_the_session_is_gone(
    folder: Path, web: Web, chromium: Any
) -> None:
    standin = Standin(folder / "taas.sock")
    web.admin("add", "home")
    context = chromium.new_context()
    page = context.new_page()
    page.goto(web.link())
    says(page, "The service runs.")
    standin.close()
    (folder / "taas.sock").unlink()
    says(page, "The service is not running.")
    page.evaluate("window.still = 'here'")
    cookies = context.cookies(page.url)
    context.clear_cookies()
    says(page, "This browser is not let in any more.")
    context.add_cookies(cookies)
    page.reload()
    web.stop()
    says(page, "The page's own process does not answer")
    context.close()


def test_hostile_strings_stay_strings(
    folder: Path, web: Web, service: Standin, enter: Callable[..., Any]
) -> None:
    web.admin("add", "home")
    with contextlib.closing(sqlite3.connect(folder / "taas.db")) as db, db:
        for table in ("labels", "grants"):
            db.execute(f"UPDATE {table} SET label = ?", (HOSTILE,))
    service.label(HOSTILE, waiting=1, agent=HOSTILE, agent_version=HOSTILE)
    service.pair(1, HOSTILE, initiator=HOSTILE)
    page = enter()
    for target in ("", "label"):
        if target:
            page.locator("a.name").click()
            page.wait_for_url("**/label/**")
        service.label(HOSTILE, waiting=len(target) + 2, agent=HOSTILE, agent_version=HOSTILE)
        says(page, f"{len(target) + 2} waiting")  # laid over what was shown, too
        assert page.evaluate("typeof xss") == "undefined"
        assert page.locator("img, main script").count() == 0
        assert page.get_by_text(HOSTILE).count() > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_says_as_much_as_on_a_desk(
    web: Web, service: Standin, enter: Callable[..., Any], scheme: str
) -> None:
    long = "a" * 63
    web.admin("add", "home", long)
    service.label("home", waiting=1, live=1, agent="[2001:db8:1234:5678:9abc:def0:1234:5678]:61234")
    service.label(long, agent_version="x" * 200)
    service.pair(17, responder="[2001:db8:1234:5678:9abc:def0:1234:5678]:61234")
    service.pairings.append(PAIRING)
    page = enter(viewport={"width": 375, "height": 812}, color_scheme=scheme)
    id = entries(web)[0]["id"]
    for path in ("", "add", "label/home", f"label/{long}", f"id/{id}", f"id/{id}/rotate", "service/drain"):
        page.goto(page.overview + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, path
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(16, 19, 24)") == (scheme == "dark")


def test_the_keyboard_reaches_everything_and_shows_where_it_is(
    web: Web, service: Standin, enter: Callable[..., Any]
) -> None:
    web.admin("add", "home")
    service.label("home", live=1)
    service.pair(17)
    page = enter()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "home"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    seen = set()
    for _ in range(30):
        seen.add(page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent"))
        page.keyboard.press("Tab")
    assert {"Kick 198.51.100.7:17", "Reload taas.ini", "Drain", f"Rotate {entries(web)[0]['id']}"} <= seen
    page.goto(page.overview + "add")
    assert page.evaluate("document.activeElement.name") == "labels"
    page.keyboard.type("cam")
    page.keyboard.press("Enter")
    says(page, "Added: cam.")
    names = page.evaluate(
        "[...document.querySelectorAll('input:not([type=hidden])')].every(i => i.labels.length)"
    )
    assert names


def test_a_command_is_copied(web: Web, enter: Callable[..., Any]) -> None:
    page = enter(permissions=["clipboard-read", "clipboard-write"])
    page.goto(page.overview + "add")
    labels(page).fill("home")
    click(page, "Add")
    click(page, "Copy")
    says(page, "Copied")
    command = "python taas_agent.py home.agent.ini --to 127.0.0.1:443"
    assert page.evaluate("navigator.clipboard.readText()") == command


def test_another_page_in_the_same_browser_can_do_nothing(web: Web, enter: Callable[..., Any]) -> None:
    page = enter()
    secret = page.context.cookies(page.overview)[0]["value"]
    evil = page.context.new_page()
    sent: list[str] = []

    def serve(route: Any) -> None:
        sent.append(route.request.all_headers().get("cookie", ""))
        action = page.overview + "add"
        form = f'<form method=post action="{action}"><input name=labels value=evil><button>Go</button></form>'
        route.fulfill(body=form, content_type="text/html")

    for origin in ("http://127.0.0.1:9", "http://evil.example"):  # another port is the same site
        evil.route(f"{origin}/**", serve)
        evil.goto(f"{origin}/")
        with evil.expect_response(page.overview + "add") as response:
            evil.get_by_role("button").click()
        assert response.value.status == 403
    assert entries(web) == []
    assert not any(secret in cookie for cookie in sent)  # cookies know no ports, but paths
