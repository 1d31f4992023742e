"""The page when things go wrong: a service that hangs, jobs that are gone, refusals, people who leave; and where the focus is."""

import os
import re
import signal
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from core.ledger import Ledger, connect
from tests.browser.pages import Visit, stored
from tests.browser.seed import SHARD_INPUTS, cancelled_with_gap
from tests.fakes import vector_of
from tests.integration.test_api_access import make_key
from tests.processes import Stack

pytestmark = [pytest.mark.integration, pytest.mark.browser]

GONE = "There is no such job: it was deleted, has expired, or belongs to another key."

Begin = Callable[..., Visit]


@pytest.fixture(scope="module")
def api_environ() -> dict[str, str]:
    return {"SHARD_INPUTS": "8"}


@pytest.fixture(scope="module", autouse=True)
def worker(stack: Stack) -> None:
    stack.worker()


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.base_url, timeout=60) as found:
        yield found


def ended(client: httpx.Client, *texts: str) -> str:
    job = client.post("/v1/jobs", params={"wait": 30}, json={"inputs": texts, "queue": "cpu"}).raise_for_status().json()
    assert job["status"] == "succeeded"
    return str(job["id"])


def waiting(client: httpx.Client) -> str:
    """A job that nobody works on."""
    return str(client.post("/v1/jobs", json={"inputs": ["a"], "queue": "gpu"}).raise_for_status().json()["id"])


def row_of(page: Page, job_id: str) -> Locator:
    return page.get_by_role("row").filter(has=page.get_by_role("progressbar", name=f"Progress of {job_id}"))


def look(page: Page) -> Locator:
    return page.get_by_role("region", name="Look at the vectors")


def refreshed(page: Page, times: int = 2) -> None:
    """Returns when the page has asked for the jobs again, and heard."""
    for _ in range(times):
        with page.expect_response(re.compile("/v1/jobs")):
            pass


def search(page: Page, words: str) -> None:
    page.get_by_role("searchbox", name="Search by meaning").fill(words)
    page.keyboard.press("Enter")


# The service ----------------------------------------------------------------------------------------------------------


def test_service_that_hangs_is_noticed_and_so_is_its_return(visit: Begin, stack: Stack) -> None:
    before = stack.base_url
    api = stack.api()
    address, stack.base_url = stack.base_url, before
    page = visit(base_url=address).open()
    heading = page.get_by_role("heading", level=1)
    expect(heading).not_to_contain_text("Asking")
    os.killpg(api.pid, signal.SIGSTOP)
    try:
        expect(heading).to_have_text(re.compile("The service does not answer"), timeout=60_000)
    finally:
        os.killpg(api.pid, signal.SIGCONT)
    expect(heading).not_to_contain_text("The service does not answer", timeout=60_000)


def test_live_job_is_told_as_it_is_now(visit: Begin, client: httpx.Client, stack: Stack) -> None:
    """Who works on it, since when, and that nobody does, while the page stays open."""
    body = {"inputs": [f"{n} " + "word " * 120 for n in range(1000)], "queue": "gpu"}
    job_id = client.post("/v1/jobs", json=body).raise_for_status().json()["id"]
    page = visit().open(f"jobs/{job_id}")
    record = page.get_by_role("region", name="Record")
    expect(page.get_by_text("Waits for a worker of the queue gpu.")).to_be_visible()
    worker = stack.worker("gpu", name="slow", BATCH_SIZE="1", FAKE_BATCH_SECONDS="0.5", FAKE_DEVICE="cuda:0")
    expect(page.get_by_text("Waits for a worker")).to_be_hidden()
    expect(record).to_contain_text("cuda:0")
    worker.kill_group()
    expect(page.get_by_text("Waits for a worker of the queue gpu.")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()
    ended_at = record.get_by_role("definition").filter(has_text="just now")
    expect(page.get_by_role("button", name="Delete")).to_be_visible()
    expect(ended_at).to_have_count(0)


def test_browser_that_is_too_old_is_told_so(visit: Begin) -> None:
    visitor = visit()
    visitor.context.add_init_script("delete AbortSignal.any")
    page = visitor.open()
    expect(page.get_by_role("main")).to_contain_text("needs a newer browser")


# What is done to jobs -------------------------------------------------------------------------------------------------


def test_refused_deletion_is_told_until_the_next_one(visit: Begin, client: httpx.Client) -> None:
    kept, gone = ended(client, "kept"), ended(client, "gone")
    page = visit(allowed="status of 404").open("jobs")
    row_of(page, gone).get_by_role("button", name=f"Delete {gone}").click()
    client.delete(f"/v1/jobs/{gone}").raise_for_status()
    page.get_by_role("button", name="Delete the job").click()
    alert = page.get_by_role("alert").filter(has_text=GONE)
    expect(alert).to_be_visible()
    expect(row_of(page, gone)).to_be_hidden()
    refreshed(page)
    expect(alert).to_be_visible()
    row_of(page, kept).get_by_role("button", name=f"Delete {kept}").click()
    expect(alert).to_be_hidden()


def test_job_that_ended_meanwhile_is_not_called_cancelled(visit: Begin, client: httpx.Client) -> None:
    job_id = ended(client, "done")
    page = visit().open()

    def as_before(route: Route) -> None:
        found = client.get("/v1/jobs?limit=25").json()
        for job in found["data"]:
            job |= {"status": "running"} if job["id"] == job_id else {}
        route.fulfill(json=found)

    page.route("**/v1/jobs?*", as_before)
    page.get_by_role("link", name="Jobs").click()
    page.get_by_role("button", name=f"Cancel {job_id}").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator("#said")).to_have_text("The job had ended before: succeeded")


def test_tried_texts_that_fail_are_told_and_jobs_that_are_gone(visit: Begin) -> None:
    page = visit(allowed="status of 404").open("try")
    page.get_by_role("textbox", name="Texts").fill("fine\nOOM:0")
    page.get_by_role("button", name="Embed").click()
    expect(page.get_by_role("region", name="Errors")).to_contain_text("out_of_memory", timeout=60_000)
    page.evaluate("location.hash = '#/try/job_gone'")
    expect(page.get_by_role("alert").filter(has_text=GONE)).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    expect(page.get_by_text("queued")).to_be_hidden()


# Search, map and downloads --------------------------------------------------------------------------------------------


def cosine(one: str, other: str) -> str:
    return f"{float(np.dot(vector_of(one), vector_of(other))):.3f}"


def test_cosine_is_that_of_the_latest_question(visit: Begin, client: httpx.Client) -> None:
    page = visit().open(f"jobs/{ended(client, 'the only text')}")
    figure = look(page).get_by_role("listitem").locator(".mono")
    for words in ("one question", "another question"):
        search(page, words)
        expect(figure).to_have_text(cosine(words, "the only text"))


def test_search_that_comes_back_late_changes_nothing(visit: Begin, client: httpx.Client) -> None:
    page = visit().open(f"jobs/{ended(client, 'the only text')}")
    held: list[Route] = []

    def hold(route: Route) -> None:
        if "slow" in (route.request.post_data or ""):
            held.append(route)
        else:
            route.continue_()

    page.route("**/v1/embeddings", hold)
    figure = look(page).get_by_role("listitem").locator(".mono")
    with page.expect_request("**/v1/embeddings"):
        search(page, "slow")
    search(page, "quick")
    expect(figure).to_have_text(cosine("quick", "the only text"))
    for route in held:
        route.continue_()
    refreshed_map = look(page).get_by_role("figure")
    expect(refreshed_map).to_be_visible()
    expect(figure).to_have_text(cosine("quick", "the only text"))


def test_map_is_asked_for_again_and_then_there_is_a_button(visit: Begin, client: httpx.Client) -> None:
    page = visit(allowed="status of 429").open()
    refusals = iter(range(5))

    def refuse(route: Route) -> None:
        if next(refusals, None) is None:
            route.continue_()
        else:
            error = {"message": "all places are taken", "code": "too_many_at_once"}
            route.fulfill(status=429, headers={"Retry-After": "1"}, json={"error": error})

    page.route("**/map?*", refuse)
    page.evaluate("id => { location.hash = `#/jobs/${id}` }", ended(client, "one", "two", "three"))
    again = look(page).get_by_role("button", name="Try again")
    again.click()
    expect(look(page).get_by_role("figure")).to_contain_text("3 texts")
    expect(again).to_be_hidden()


def test_what_a_cancelled_job_lacks_is_told(visit: Begin, stack: Stack) -> None:
    ledger = Ledger(connect(stack.redis_url, timeout_seconds=5, retries=2), "vector-api:")
    page = visit(accept_downloads=True).open(f"jobs/{cancelled_with_gap(ledger)}")
    told = f"Only the first {SHARD_INPUTS:,} of the cancelled job's {3 * SHARD_INPUTS:,} texts are in it."
    search(page, "anything")
    expect(look(page)).to_contain_text(told)
    expect(look(page)).to_contain_text(f"from text {2 * SHARD_INPUTS:,} on")
    with page.expect_download() as started:
        page.get_by_role("button", name="Download npy").click()
    assert np.load(started.value.path()).shape[0] == SHARD_INPUTS
    expect(page.get_by_role("region", name="Download the vectors").get_by_role("alert")).to_contain_text(told)


# Where the focus is ---------------------------------------------------------------------------------------------------


def test_filter_keeps_the_focus_from_key_to_key(visit: Begin) -> None:
    page = visit().open("jobs")
    state = page.get_by_role("combobox", name="State")
    state.focus()
    for status in ("queued", "running", "succeeded"):
        page.keyboard.press("ArrowDown")
        expect(page).to_have_url(re.compile(f"status={status}"))
        expect(state).to_be_focused()
        expect(state).to_have_value(status)


def test_deleted_row_hands_the_focus_to_the_next(visit: Begin, client: httpx.Client) -> None:
    older, newer = ended(client, "older"), ended(client, "newer")
    page = visit().open("jobs")
    page.get_by_role("button", name=f"Delete {newer}").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(row_of(page, newer)).to_be_hidden()
    expect(page.get_by_role("button", name=f"Delete {older}")).to_be_focused()


def test_question_is_withdrawn_when_the_page_goes_elsewhere(visit: Begin, client: httpx.Client) -> None:
    job_id = waiting(client)
    page = visit().open()
    page.get_by_role("link", name="Jobs").click()
    page.get_by_role("button", name=f"Cancel {job_id}").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"


def test_nobody_who_has_left_is_pulled_back(visit: Begin) -> None:
    page = visit().open("try")
    held: list[Route] = []
    page.route("**/v1/jobs", lambda route: held.append(route))
    page.get_by_role("textbox", name="Texts").fill("a text")
    with page.expect_request("**/v1/jobs"):
        page.get_by_role("button", name="Embed").click()
    page.get_by_role("link", name="Overview", exact=True).click()
    with page.expect_response("**/v1/jobs"):
        held[0].continue_()
    with page.expect_response("**/v1/queues"):
        pass
    expect(page).to_have_url(re.compile("#/$"))


# Keys -----------------------------------------------------------------------------------------------------------------


def test_texts_do_not_pass_from_key_to_key(visit: Begin, stack: Stack) -> None:
    keys, before = stack.folder / "keys", stack.base_url
    alice, bob = make_key(keys, "alice"), make_key(keys, "bob")
    stack.api(API_KEYS_FILE=str(keys))
    address, stack.base_url = stack.base_url, before
    page = visit(base_url=address, allowed="status of 40[14]").open("try")
    field = page.get_by_label("Your key")
    assert field.get_attribute("autocomplete") == "off"
    assert field.get_attribute("type") != "password", "browsers offer to keep what is in such a field"
    assert field.evaluate("field => getComputedStyle(field).webkitTextSecurity") == "disc"
    field.fill(alice)
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.get_by_role("textbox", name="Texts").fill("what alice wrote")
    page.get_by_role("button", name="Embed").click()
    expect(look(page)).to_be_visible()
    assert "what alice wrote" in stored(page, "sessionStorage")["texts"]
    page.evaluate("sessionStorage.setItem('api-key', 'va_of_yesterday')")
    page.reload()
    field.fill(bob)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Try it")).to_be_visible()
    assert list(stored(page, "sessionStorage").values()) == [bob]
    expect(page.get_by_role("textbox", name="Texts")).to_have_value("")
