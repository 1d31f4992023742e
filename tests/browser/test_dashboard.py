"""The page before the running service with the real model: what people do with it, in both themes, at a desk and on a phone."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from examples.client import read_passages
from tests.browser.pages import COLOURS, EVERY_RULE, PHONE, Visit, overflow, stored, violations, watch
from tests.integration.test_api_access import make_key
from tests.processes import ROOT, Stack, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.model, pytest.mark.browser]

PASSAGES = [text for text in read_passages(ROOT / "examples" / "alice.txt") if len(text) < 200][:500]
QUESTION = "a cat that disappears until only its smile is left"
PHONE_WIDTHS = [360, 375]

Begin = Callable[..., Visit]


@pytest.fixture(scope="module")
def api_environ() -> dict[str, str]:
    return {"SHARD_INPUTS": "16", "MAX_STREAM_INPUTS": "100000"}


@pytest.fixture(scope="module", autouse=True)
def worker(stack: Stack) -> None:
    """The real model, by one thread, so that there is something to watch on any machine."""
    stack.worker(app="worker", DEVICE="cpu", ENGINE="torch", PARITY="0", TORCH_THREADS="1")


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.base_url, timeout=60) as found:
        yield found


@pytest.fixture(scope="module")
def locked(stack: Stack) -> tuple[str, str]:
    """The address of an API that asks for keys, beside the other, and a key."""
    keys, before = stack.folder / "keys", stack.base_url
    key = make_key(keys, "alice")
    stack.api(API_KEYS_FILE=str(keys))
    address, stack.base_url = stack.base_url, before
    return address, key


@pytest.fixture(scope="module")
def ended(client: httpx.Client) -> str:
    """A job with errors, metadata and vectors that has ended."""
    body = {"inputs": [*PASSAGES[:20], "word " * 600], "truncate": "error", "metadata": {"from": "<b>a book</b>"}}
    job = client.post("/v1/jobs", params={"wait": 30}, json=body).raise_for_status().json()
    assert job["counts"] == {"total": 21, "done": 20, "failed": 1}
    return str(job["id"])


@pytest.fixture
def large(client: httpx.Client) -> Iterator[str]:
    """A job that runs for longer than any test."""
    lines = "".join(json.dumps(text) + "\n" for text in PASSAGES * 40)
    answer = client.post("/v1/jobs", content=lines.encode(), headers={"Content-Type": "application/x-ndjson"})
    job_id = str(answer.raise_for_status().json()["id"])
    wait_for(lambda: client.get(f"/v1/jobs/{job_id}").json()["status"] == "running", what="the job's start")
    yield job_id
    client.post(f"/v1/jobs/{job_id}/cancel")


# What people do -------------------------------------------------------------------------------------------------------


def submit(page: Page, texts: list[str]) -> str:
    """Put texts into the box and send them; the job's id."""
    page.get_by_role("textbox", name="Texts").fill("\n".join(texts))
    page.get_by_role("button", name="Embed").click()
    bar = page.get_by_role("progressbar", name=re.compile("^Progress of job_"))
    return (bar.get_attribute("aria-label") or "").removeprefix("Progress of ")


def region(page: Page, name: str) -> Locator:
    return page.get_by_role("region", name=name)


def result_of(client: httpx.Client, job_id: str) -> Any:
    return np.array([item["embedding"] for item in client.get(f"/v1/jobs/{job_id}/result").json()["data"]])


def test_newcomer_embeds_500_texts_and_looks_at_them(visit: Begin, client: httpx.Client) -> None:
    page = visit().open()
    page.get_by_role("navigation", name="Views").get_by_role("link", name="Try it").click()
    job_id = submit(page, PASSAGES)
    bar = page.get_by_role("progressbar", name=f"Progress of {job_id}")
    noted = watch(bar)
    expect(bar).to_have_attribute("aria-valuenow", "100", timeout=100_000)
    between = {value for value in noted() if 0 < value < 100}
    assert len(between) >= 2, f"the bar stood still: {noted()}"
    assert noted() == sorted(noted()), "the bar never goes back"
    search(page, client, job_id)
    see_map(page, PASSAGES)


def search(page: Page, client: httpx.Client, job_id: str) -> None:
    """The page finds the text whose vector is nearest to the question's."""
    page.get_by_role("searchbox", name="Search by meaning").fill(QUESTION)
    page.get_by_role("button", name="Search", exact=True).click()
    found = region(page, "Look at the vectors").get_by_role("listitem")
    expect(found).to_have_count(10)
    question = client.post("/v1/embeddings", json={"input": QUESTION}).raise_for_status().json()["data"][0]["embedding"]
    cosines = result_of(client, job_id) @ np.array(question)
    order = np.argsort(-cosines)
    for place in range(3):
        expect(found.nth(place)).to_contain_text(PASSAGES[order[place]])
        expect(found.nth(place)).to_contain_text(f"{cosines[order[place]]:.3f}")
    assert "grin" in PASSAGES[order[0]]


def see_map(page: Page, texts: list[str]) -> None:
    """It has a point for each text, and tells of the one under the pointer, or where the arrow keys are."""
    drawn = region(page, "Look at the vectors").get_by_role("figure")
    expect(drawn).to_contain_text(f"{len(texts)} texts")
    plane = drawn.get_by_role("application", name=re.compile("^Map of the texts"))
    plane.scroll_into_view_if_needed()
    assert painted_pixels(plane) > 5 * len(texts)
    said = drawn.locator("[aria-live]")
    plane.focus()
    page.keyboard.press("ArrowRight")
    expect(said).to_have_text(re.compile("|".join(map(re.escape, texts))))
    by_key = said.inner_text()
    page.keyboard.press("ArrowLeft")
    expect(said).not_to_have_text(by_key)
    before, box = said.inner_text(), plane.bounding_box()
    assert box
    for n in range(1, 40):  # across the map, until the pointer is near another point
        page.mouse.move(box["x"] + box["width"] * n / 40, box["y"] + box["height"] / 2)
        if said.inner_text() != before:
            break
    assert said.inner_text() in texts


def painted_pixels(canvas: Locator) -> int:
    return int(
        canvas.evaluate(
            """canvas => {
                const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
                return data.filter((value, n) => n % 4 === 3 && value > 0).length;
            }"""
        )
    )


def test_running_job_is_cancelled_from_the_list(visit: Begin, client: httpx.Client, large: str) -> None:
    page = visit().open("jobs")
    row = page.get_by_role("row").filter(has=page.get_by_role("progressbar", name=f"Progress of {large}"))
    expect(row).to_contain_text("running")
    cancel = row.get_by_role("button", name=f"Cancel {large}")
    dialog = page.get_by_role("dialog", name="Cancel this job?")
    cancel.click()
    dialog.get_by_role("button", name="Keep it").click()
    expect(dialog).to_be_hidden()
    assert client.get(f"/v1/jobs/{large}").json()["status"] == "running"
    cancel.click()
    dialog.get_by_role("button", name="Cancel the job").click()
    expect(row).to_contain_text("cancelled")
    expect(row.get_by_role("button", name=f"Delete {large}")).to_be_visible()
    assert client.get(f"/v1/jobs/{large}").json()["status"] == "cancelled"


def test_overview_says_that_work_flows_and_where(visit: Begin, large: str) -> None:
    page = visit().open()
    expect(page.get_by_role("heading", level=1)).to_contain_text(re.compile(r"Work flows: \d+ texts/s on cpu"))
    card = page.get_by_role("article", name=re.compile("^Worker "))
    expect(card).to_have_count(1)
    expect(card).to_contain_text("all-MiniLM-L6-v2")
    expect(page.get_by_role("img", name=re.compile("^Texts per second"))).to_be_visible()
    expect(region(page, "Queues").get_by_role("row").filter(has_text="cpu")).to_contain_text("flowing")


def test_job_page_tells_what_failed_and_gives_the_rest(visit: Begin, ended: str) -> None:
    page = visit(accept_downloads=True).open(f"jobs/{ended}")
    errors = region(page, "Errors")
    row = errors.get_by_role("row").filter(has_text="text_too_long")
    expect(row.get_by_role("rowheader")).to_have_text("20")
    expect(row).to_contain_text("will not help")
    assert "word word" not in page.content(), "no text is shown that the service was sent by somebody else"
    expect(region(page, "Metadata")).to_contain_text("<b>a book</b>")
    with page.expect_download() as started:
        page.get_by_role("button", name="Download npy").click()
    array = np.load(started.value.path())
    assert array.shape == (21, 384)
    assert np.isnan(array[20]).all()
    assert started.value.suggested_filename == f"{ended}.npy"


def test_texts_with_markup_are_shown_as_they_are(visit: Begin) -> None:
    page = visit().open("try")
    texts = ["<img src=x onerror=document.title='caught'>", "<script>document.title = 'caught'</script>", "&lt;b&gt; stays"]
    submit(page, texts)
    page.get_by_role("searchbox", name="Search by meaning").fill(texts[0])
    page.keyboard.press("Enter")
    found = region(page, "Look at the vectors").get_by_role("listitem")
    expect(found).to_have_count(3)
    expect(found.first).to_contain_text(texts[0])
    assert page.locator("main img, main script").count() == 0
    assert "caught" not in page.title()


def test_policy_lets_the_page_load_from_its_own_host_alone(client: httpx.Client) -> None:
    policy = client.get("/").headers["content-security-policy"]
    allowed = dict(part.strip().partition(" ")[::2] for part in policy.split(";"))
    assert allowed["default-src"] == "'none'"
    assert {allowed["script-src"], allowed["style-src"], allowed["connect-src"]} == {"'self'"}
    assert {allowed["base-uri"], allowed["form-action"], allowed["frame-ancestors"]} == {"'none'"}
    assert "unsafe" not in policy


# Keys -----------------------------------------------------------------------------------------------------------------


def test_key_stays_in_its_tab(visit: Begin, locked: tuple[str, str]) -> None:
    address, key = locked
    visitor = visit(base_url=address, allowed="status of 401")
    page = visitor.open("jobs")
    field = page.get_by_label("Your key")
    enter = page.get_by_role("button", name="Enter")
    field.fill(f"{key[:-4]}____")
    enter.click()
    expect(page.get_by_role("alert")).to_contain_text("unknown")
    assert stored(page, "sessionStorage") == {}
    field.fill(key)
    enter.click()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    assert key in stored(page, "sessionStorage").values()
    assert key not in json.dumps([stored(page, "localStorage"), visitor.context.cookies(), visitor.urls])
    other = visitor.open("jobs")
    expect(other.get_by_label("Your key")).to_be_visible()
    assert key not in json.dumps(stored(other, "sessionStorage"))
    page.get_by_role("button", name="Forget the key").click()
    expect(field).to_be_visible()
    assert stored(page, "sessionStorage") == {}


# The keyboard, and the way back ---------------------------------------------------------------------------------------


def tab_to(page: Page, wanted: Locator) -> None:
    """By the Tab key alone."""
    wanted.wait_for()
    for _ in range(40):
        if wanted.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError("the Tab key does not lead there")


def test_keyboard_is_enough(visit: Begin) -> None:
    page = visit().open()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    tab_to(page, page.get_by_role("link", name="Try it"))
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("textbox", name="Texts"))
    page.keyboard.type("A cat sat on the mat.\nRain is forecast.\nThe goalkeeper saved the penalty.")
    tab_to(page, page.get_by_role("button", name="Embed"))
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", "the focus is seen"
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("searchbox", name="Search by meaning"))
    page.keyboard.type("football")
    page.keyboard.press("Enter")
    expect(region(page, "Look at the vectors").get_by_role("listitem").first).to_contain_text("goalkeeper")


def test_back_button_leads_back(visit: Begin, ended: str) -> None:
    page = visit().open()
    heading = page.get_by_role("heading", level=1)
    page.get_by_role("link", name="Jobs").click()
    expect(heading).to_have_text("Jobs")
    page.get_by_role("combobox", name="State").select_option("succeeded")
    expect(page).to_have_url(re.compile("status=succeeded"))
    page.get_by_role("row").filter(has=page.get_by_role("button", name=f"Delete {ended}")).get_by_role("link").click()
    expect(heading).to_have_text(ended)
    page.go_back()
    expect(heading).to_have_text("Jobs")
    expect(page.get_by_role("combobox", name="State")).to_have_value("succeeded")
    page.go_back()
    expect(page.get_by_role("combobox", name="State")).to_have_value("")
    page.go_back()
    expect(page.get_by_role("article", name=re.compile("^Worker "))).to_be_visible()


# How it looks ---------------------------------------------------------------------------------------------------------


def is_dark(page: Page) -> bool:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) < 3 * 128


def test_theme_is_the_systems_until_one_is_chosen(visit: Begin) -> None:
    page = visit(color_scheme="dark").open()
    assert is_dark(page)
    page.emulate_media(color_scheme="light")
    assert not is_dark(page)
    chosen = page.get_by_role("combobox", name="Theme")
    chosen.select_option("Dark")
    assert is_dark(page)
    page.reload()
    assert is_dark(page), "the choice lasts"
    chosen.select_option("Auto")
    assert not is_dark(page)


def views(page: Page, ended: str, large: str) -> Iterator[str]:
    """Shows one view after the other, each when it has something to show."""
    expect(page.get_by_role("article", name=re.compile("^Worker "))).to_be_visible()
    yield "overview"
    go(page, "jobs")
    expect(page.get_by_role("progressbar", name=f"Progress of {large}")).to_be_visible()
    yield "jobs"
    page.get_by_role("button", name=f"Cancel {large}").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    yield "dialog"
    dialog.get_by_role("button", name="Keep it").click()
    go(page, "jobs?status=failed")
    expect(page.get_by_text("No job is failed")).to_be_visible()
    yield "no jobs"
    go(page, f"jobs/{large}")
    expect(page.get_by_role("progressbar", name=f"Progress of {large}")).to_be_visible()
    yield "running job"
    go(page, f"jobs/{ended}")
    expect(region(page, "Errors")).to_be_visible()
    yield "ended job"
    go(page, "try")
    submit(page, PASSAGES[2:12])
    page.get_by_role("searchbox", name="Search by meaning").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(region(page, "Look at the vectors").get_by_role("listitem").first).to_be_visible()
    yield "tried texts"
    go(page, "nowhere")
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    yield "nowhere"


def go(page: Page, view: str) -> None:
    page.evaluate("view => { location.hash = `#/${view}` }", view)


@pytest.mark.parametrize(("theme", "rules"), [("light", EVERY_RULE), ("dark", COLOURS)], ids=["light", "dark"])
def test_everybody_can_use_every_view(
    visit: Begin, theme: str, rules: list[str], ended: str, large: str, locked: tuple[str, str]
) -> None:
    page = visit(color_scheme=theme).open()
    found = [f"{view}: {fault}" for view in views(page, ended, large) for fault in violations(page, rules)]
    login = visit(base_url=locked[0], allowed="status of 401", color_scheme=theme).open()
    expect(login.get_by_label("Your key")).to_be_visible()
    found += [f"login: {fault}" for fault in violations(login, rules)]
    assert not found, "\n".join(found)


def test_phone_shows_every_view_without_scrolling_sideways(visit: Begin, ended: str, large: str, locked: tuple[str, str]) -> None:
    options = {"viewport": PHONE, "is_mobile": True, "has_touch": True}
    page = visit(**options).open()
    found = {view: overflows(page) for view in views(page, ended, large)}
    login = visit(base_url=locked[0], allowed="status of 401", **options).open()
    expect(login.get_by_label("Your key")).to_be_visible()
    found["login"] = overflows(login)
    assert not {view: pixels for view, pixels in found.items() if any(pixels)}


def overflows(page: Page) -> list[int]:
    """Pixels by which the page is wider than a phone, for each width of a phone."""
    found = []
    for width in PHONE_WIDTHS:
        page.set_viewport_size(PHONE | {"width": width})
        found.append(max(0, overflow(page)))
    return found
