"""The page stays what it is with 10,000 jobs in the ledger, and with a job of 1,000,000 texts."""

import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import Page, expect

from core.ledger import Ledger, connect
from tests.browser.pages import Visit, heap_bytes
from tests.browser.seed import embed, seed_jobs, submit
from tests.processes import Stack, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.browser]

JOBS = 10_000
TEXTS = 1_000_000
LOOKED_AT = 5_000
"""Most vectors that the page reads."""

MOST_ELEMENTS = 1_500
MOST_HEAP_BYTES = 32 * 2**20
MOST_ANSWER_BYTES = 64 * 2**10

Begin = Callable[..., Visit]


@pytest.fixture(scope="module", autouse=True)
def counts(stack: Stack) -> dict[str, int]:
    """The ledger filled: how many jobs of each status, beside the large one. A worker takes what comes later."""
    ledger = Ledger(connect(stack.redis_url, timeout_seconds=30, retries=2), "vector-api:")
    found = seed_jobs(ledger, JOBS)
    stack.worker()
    return found


@pytest.fixture(scope="module")
def million(stack: Stack, counts: dict[str, int]) -> str:
    ledger = Ledger(connect(stack.redis_url, timeout_seconds=30, retries=2), "vector-api:")
    job_id = submit(ledger, TEXTS)
    embed(ledger)
    wait_for(lambda: ledger.get(job_id, "default").status.ended, what="the end of the large job")
    return job_id


def asked(visitor: Visit, begin: int = 0) -> list[str]:
    """What of the API the page has asked for, as path and query."""
    found = [urlsplit(url) for url in visitor.urls[begin:]]
    return [f"{url.path}?{url.query}" for url in found if url.path.startswith("/v1")]


def assert_small(page: Page) -> None:
    assert page.evaluate("document.querySelectorAll('*').length") < MOST_ELEMENTS
    assert heap_bytes(page) < MOST_HEAP_BYTES


def refreshes(page: Page, visitor: Visit, count: int) -> list[str]:
    """What the page asks for until it has refreshed itself so many times."""
    begin = len(visitor.urls)
    for _ in range(count):
        with page.expect_response(re.compile("/v1/")) as found:
            pass
        assert len(found.value.body()) < MOST_ANSWER_BYTES
    return asked(visitor, begin)


def test_list_shows_a_page_of_the_jobs_and_asks_once_for_it(visit: Begin) -> None:
    visitor = visit()
    page = visitor.open("jobs")
    rows = page.get_by_role("row").filter(has=page.get_by_role("progressbar"))
    expect(rows).to_have_count(25)
    found = refreshes(page, visitor, 2)
    assert found == ["/v1/jobs?limit=25"] * len(found)
    first = rows.first.get_by_role("link").get_attribute("href")
    page.get_by_role("link", name="Older").click()
    expect(rows.first.get_by_role("link")).not_to_have_attribute("href", first or "")
    expect(rows).to_have_count(25)
    expect(page.get_by_role("main")).to_be_focused()
    assert_small(page)


@pytest.mark.parametrize("status", ["queued", "cancelled", "succeeded", "failed"])
def test_filter_finds_jobs_however_old(visit: Begin, status: str, counts: dict[str, int]) -> None:
    page = visit().open("jobs")
    page.get_by_role("combobox", name="State").select_option(status)
    rows = page.get_by_role("row").filter(has=page.get_by_role("progressbar"))
    for _ in range(JOBS // 1000 + 1):  # so many of others may lie before them
        expect(rows.filter(has_text=status).first.or_(page.get_by_role("link", name="Older")).first).to_be_visible()
        if rows.count():
            break
        page.get_by_role("link", name="Older").click()
    expect(rows.filter(has_text=status)).to_have_count(25)
    expect(rows).to_have_count(25)


def test_overview_asks_once_and_tells_what_waits(visit: Begin, counts: dict[str, int]) -> None:
    visitor = visit()
    page = visitor.open()
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"{counts['queued']:,} texts wait, no gpu worker lives")
    found = refreshes(page, visitor, 2)
    assert found == ["/v1/queues?"] * len(found)
    assert_small(page)


def test_million_texts_are_looked_at_as_far_as_a_page_can(visit: Begin, million: str, stack: Stack) -> None:
    visitor = visit()
    page = visitor.open(f"jobs/{million}")
    look = page.get_by_role("region", name="Look at the vectors")
    expect(look.get_by_role("figure")).to_contain_text("The first 2,000 of 1,000,000 texts")
    expect(look).to_contain_text("Search looks at the first 5,000")
    page.get_by_role("searchbox", name="Search by meaning").fill("anything")
    page.keyboard.press("Enter")
    expect(look.get_by_role("listitem")).to_have_count(10)
    limits = [int(found[0]) for url in asked(visitor) if (found := parse_qs(urlsplit(url).query).get("limit"))]
    assert limits
    assert max(limits) <= LOOKED_AT
    assert_small(page)
    assert httpx.get(f"{stack.base_url}/v1/jobs/{million}").json()["counts"]["done"] == TEXTS
