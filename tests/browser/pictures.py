"""Takes the pictures of the dashboard that the documents show, of the running service with the real model at work.

    python -m tests.browser.pictures --seconds 600

The longer the service has worked, the more its chart shows. Letters are those that the machine has for `system-ui`.
"""

import argparse
import io
import itertools
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from examples.client import read_passages
from launcher.redis_server import RedisServer
from tests.browser.pages import DESKTOP, PHONE, Visit, chromium
from tests.processes import ROOT, Stack, running_stack

FOLDER = ROOT / "docs" / "pictures"
PASSAGES = [text for text in read_passages(ROOT / "examples" / "alice.txt") if len(text) < 240]
QUESTION = "a cat that disappears until only its smile is left"

QUALITY = 82
MOST_BYTES = 150_000

TRIED = 110
"""Texts that are tried for a picture: few enough for words in the map."""

WAVES = (60, 100, 130, 90, 45, 20, 80, 120, 140, 110)
"""Texts in the jobs that are sent, one each second, for ten seconds each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90, help="of work before the first picture")
    parser.add_argument("--times", type=int, default=1, help="so many times as many texts, for a fast machine (%(default)s)")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with RedisServer(folder / "redis", {"appendfsync": "no"}) as server:
            for stack in running_stack(server.url, folder, {"SHARD_INPUTS": "32"}):
                stack.api()
                stack.worker(name="cpu", app="worker", DEVICE="cpu")
                with working(stack, options.seconds, options.times), chromium() as browser:
                    take_all(browser, stack, options.folder)


@contextmanager
def working(stack: Stack, seconds: float, times: int) -> Iterator[None]:
    """With jobs that come and go, after they have done so for a while."""
    stop, begun = threading.Event(), threading.Event()

    def send() -> None:
        with httpx.Client(base_url=stack.base_url, timeout=30) as client:
            for n in itertools.count():
                count = times * WAVES[n // 10 % len(WAVES)]
                texts = [PASSAGES[(n * count + place) % len(PASSAGES)] for place in range(count)]
                job = client.post("/v1/jobs", json={"inputs": texts, "truncate": "error"}).raise_for_status().json()
                if n % 7 == 3:
                    client.post(f"/v1/jobs/{job['id']}/cancel")
                if n > seconds:
                    begun.set()
                if stop.wait(1):
                    return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        begun.wait()
        yield
    finally:
        stop.set()
        thread.join()


def take_all(browser: Browser, stack: Stack, folder: Path) -> None:
    desktop = {"viewport": DESKTOP | {"height": 960}, "device_scale_factor": 1.25}
    phone = {"viewport": PHONE, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
    take(Visit(browser, stack.base_url, color_scheme="light", **desktop), overview, folder / "overview-light.webp")
    take(Visit(browser, stack.base_url, color_scheme="dark", **desktop), search, folder / "search-dark.webp")
    take(Visit(browser, stack.base_url, color_scheme="light", **phone), search, folder / "search-phone-light.webp")
    take(Visit(browser, stack.base_url, color_scheme="dark", **phone), overview, folder / "overview-phone-dark.webp")


def take(visit: Visit, show: Callable[[Visit], Page], file: Path) -> None:
    """A picture of the window, in as few bytes as letters stay sharp with."""
    picture = Image.open(io.BytesIO(show(visit).screenshot(animations="disabled")))
    visit.close()
    picture.convert("RGB").save(file, quality=QUALITY, method=6)
    size = file.stat().st_size
    assert size < MOST_BYTES, f"{file} has {size} bytes"
    print(f"{file.name}: {picture.width} x {picture.height}, {size} bytes")


def overview(visit: Visit) -> Page:
    page = visit.open()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Work flows")
    expect(page.get_by_role("img", name="Texts per second")).to_be_visible()
    return page


def search(visit: Visit) -> Page:
    """Texts of the book, a question, and what is near it in the list and on the map."""
    page = visit.open("try")
    page.get_by_role("textbox", name="Texts").fill("\n".join([text for text in PASSAGES if len(text) < 120][:TRIED]))
    page.get_by_role("button", name="Embed").click()
    page.get_by_role("searchbox", name="Search by meaning").fill(QUESTION)
    page.keyboard.press("Enter")
    look = page.get_by_role("region", name="Look at the vectors")
    expect(look.get_by_role("listitem")).to_have_count(10)
    page.keyboard.press("Home")
    look.evaluate("part => scrollTo(0, part.getBoundingClientRect().top + scrollY - 80)")
    return page


if __name__ == "__main__":
    main()
