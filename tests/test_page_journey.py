"""The operator's page beside a running service: what it shows is so, and what it does happens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyotp
import pytest
from house import ID, REGISTRAR, SECRETS
from operators import Browser, Web, text_of
from process import Process
from test_page import HOSTILE


@pytest.fixture
def service(process: Callable[..., Process]) -> Process:
    running = process().start()
    running.add_credential()
    return running


@pytest.fixture
def browser(service: Process) -> Iterator[Browser]:
    web = Web(service.folder)
    yield Browser(web)
    assert web.stop()[1] == ""


def shows(service: Process, browser: Browser, words: str, path: str = "") -> None:
    service.until(lambda: words in text_of(browser.get(path).body))


def ended(sock: Any) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_visit_is_seen_ended_and_told_of(service: Process, browser: Browser) -> None:
    shows(service, browser, "The service runs. 0 of 1 labels online, 0 live pairs.")
    shows(service, browser, "not seen yet")
    with contextlib.ExitStack() as stack:
        responder, visitor = map(stack.enter_context, service.pair())
        shows(service, browser, "The service runs. 1 of 1 labels online, 1 live pair.")
        here, there = ("{}:{}".format(*sock.getsockname()) for sock in (visitor, responder))
        shows(service, browser, f"{here} home {there}")
        shows(service, browser, "● live", "label/home")
        visitor.sendall(b"x" * 99_999)
        shows(service, browser, "0 B / 100 kB")
        number = browser.get().body.partition("/pair/")[2].partition("/kick")[0]
        assert browser.post(f"pair/{number}/kick", {}).status == 303
        visitor.settimeout(20)
        assert ended(visitor)
    shows(service, browser, "○ operator ended by the service (kicked)", "label/home")
    shows(service, browser, "0 live pairs.")
    assert "no pair of that number or label is live" in text_of(browser.post(f"pair/{number}/kick", {}).body)
    assert "no pair of that number or label is live" in text_of(browser.post("label/home/kick", {}).body)


def test_what_an_agent_calls_itself_stays_text(service: Process, browser: Browser) -> None:
    code = pyotp.TOTP(SECRETS[ID]).generate_otp(int(time.time()) // 30)
    authorization = f'Authorization: TOTP username="{ID}", response="{code}"\r\n'
    service.ask("PUT /register/home", REGISTRAR, f"{authorization}User-Agent: {HOSTILE}\r\n")
    shows(service, browser, HOSTILE[:30])
    assert "<script>xss" not in browser.get().body and "<img" not in browser.get().body


def test_a_credential_made_on_the_page_is_followed(service: Process, browser: Browser) -> None:
    assert browser.post("add", {"labels": "lab"}).status == 303
    shows(service, browser, "The service runs. 0 of 2 labels online")
    id = browser.web.admin("show", "lab")[0]["id"]
    assert browser.post(f"id/{ID}/disable", {}).status == 303
    service.until(lambda: service.put() == 401)
    assert browser.post(f"id/{ID}/enable", {}).status == 303
    assert browser.post(f"id/{id}/remove", {}).status == 303
    service.until(lambda: service.put() in (200, 401) and "0 of 1 labels" in text_of(browser.get().body))


def test_reload_says_what_is_wrong_and_drain_ends_the_service(service: Process, browser: Browser) -> None:
    assert browser.post("service/reload", {}).status == 303
    service.until(lambda: "followed" in service.log)
    text = service.ini.read_text()
    service.ini.write_text(text + "nonsense = 1\n")
    page = browser.post("service/reload", {})
    assert page.status == 422 and "nonsense" in text_of(page.body)
    service.ini.write_text(text)
    assert browser.post("service/drain", {}).status == 303
    assert service.wait() == (0, "")
    shows(service, browser, "The service is not running.")
