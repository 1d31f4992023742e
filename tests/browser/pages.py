"""A real Chromium that tells of everything a page does wrong, and what people do with the dashboard in it."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Locator, Page, Response, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"

SECONDS = 20
"""How long the page may take for anything; on machines that have other things to do it does."""

QUIET = (
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
)
"""Chromium asks for nothing by itself."""

EVERY_RULE = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
"""Of axe, by tags: all but its experiments and WCAG's level AAA."""

COLOURS = ["cat.color"]
"""The rules that a theme makes a difference to."""

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 375, "height": 812}


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window, with a data folder of its own."""
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *as_root])
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """Somebody's visit: tabs that share what is stored, and all that went wrong in them."""

    def __init__(self, browser: Browser, base_url: str, **options: Any) -> None:
        self.base_url = base_url
        self.urls: list[str] = []
        self.faults: list[str] = []
        self.context: BrowserContext = browser.new_context(**{"viewport": DESKTOP, "locale": "en-GB"} | options)
        self.context.set_default_timeout(1000 * SECONDS)
        expect.set_options(timeout=1000 * SECONDS)
        self.context.on("request", lambda request: self._note_request(request.url))
        self.context.on("response", self._note_response)
        self.context.on("console", lambda message: self._note_console(message.type, message.text))
        self.context.on("weberror", lambda error: self.faults.append(f"uncaught: {error.error}"))

    def _note_request(self, url: str) -> None:
        self.urls.append(url)
        if urlsplit(url).scheme not in ("data", "blob") and not url.startswith(f"{self.base_url}/"):
            self.faults.append(f"a request to another host: {url}")

    def _note_response(self, response: Response) -> None:
        if response.request.resource_type == "document" and not response.headers.get("content-security-policy"):
            self.faults.append(f"no content security policy: {response.url}")

    def _note_console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.faults.append(f"console: {text}")

    def open(self, view: str = "") -> Page:
        """A new tab with a view, such as `jobs`."""
        page = self.context.new_page()
        page.goto(f"{self.base_url}/#/{view}")
        return page

    def close(self, *, allowed: str = "") -> None:
        """Ends the visit.

        Raises:
            AssertionError: a tab broke a rule. `allowed` is a pattern of what may have.
        """
        self.context.close()
        faults = [fault for fault in self.faults if not (allowed and re.search(allowed, fault))]
        assert not faults, "\n".join(faults)


def violations(page: Page, rules: list[str]) -> list[str]:
    """What axe finds wrong with the page as it is, a line for each element."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    options = {"runOnly": {"type": "tag", "values": rules}, "resultTypes": ["violations"]}
    found = page.evaluate("options => axe.run(document, options)", options)["violations"]
    return [f"{rule['id']} ({rule['help']}): {node['html']}" for rule in found for node in rule["nodes"]]


def overflow(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def heap_bytes(page: Page) -> int:
    """Of the page's objects that something still refers to."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    return int(session.send("Runtime.getHeapUsage")["usedSize"])


def watch(bar: Locator) -> Callable[[], list[int]]:
    """Notes each value that a progress bar has from now on, however short; what it has noted."""
    bar.evaluate(
        """bar => {
            const note = () => window.noted.push(Number(bar.getAttribute('aria-valuenow')));
            window.noted = [];
            note();
            new MutationObserver(note).observe(bar, {attributeFilter: ['aria-valuenow']});
        }"""
    )
    return lambda: bar.page.evaluate("window.noted")


def stored(page: Page, kind: str) -> dict[str, str]:
    """What the tab (`sessionStorage`) or the browser (`localStorage`) keeps of the page."""
    found: dict[str, str] = json.loads(page.evaluate(f"JSON.stringify({{...{kind}}})"))
    return found
