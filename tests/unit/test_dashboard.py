"""The dashboard's files: open, strict about what they may load, kept by browsers only as long as they are the newest."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import fakeredis
import numpy as np
import pytest
from flask.testing import FlaskClient

from api import create_app
from api.answers import SECURITY_HEADERS
from api.views.dashboard import FOLDER, NAMES
from core.config import Settings
from core.keys import digest_of
from core.ledger import Ledger

URLS = ["/", *(f"/dashboard/{name}" for name in NAMES)]
SCRIPTS = [FOLDER / name for name in NAMES if name.endswith(".js")]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> FlaskClient:
    """Of a service that asks for keys."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"alice:{digest_of('va_alice')}\n")
    settings = Settings.from_env({"API_KEYS_FILE": str(keys)})
    return create_app(settings, ledger=Ledger(fakeredis.FakeRedis(), "test:")).test_client()


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page(client: FlaskClient) -> Page:
    return Page(client.get("/").text)


@pytest.mark.parametrize("url", URLS)
def test_files_need_no_key_and_may_load_nothing_from_elsewhere(client: FlaskClient, url: str) -> None:
    answer = client.get(url)
    assert answer.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "font-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert set(SECURITY_HEADERS) <= set(answer.headers.keys())
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert answer.mimetype == kinds.get(url.rpartition(".")[2], "text/html")


@pytest.mark.parametrize("url", URLS)
def test_browser_asks_again_each_time_and_gets_only_what_has_changed(client: FlaskClient, url: str) -> None:
    first = client.get(url)
    assert first.headers["Cache-Control"] == "no-cache"
    again = client.get(url, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    assert client.get(url, headers={"If-None-Match": '"another"'}).data == first.data
    assert client.head(url).headers["ETag"] == first.headers["ETag"]


@pytest.mark.parametrize("name", ["nope.js", "index.html", "", "..", "../app.py", "%2e%2e/app.py", "app.js/", "APP.JS"])
def test_no_other_file_is_given_out(client: FlaskClient, name: str) -> None:
    answer = client.get(f"/dashboard/{name}")
    assert answer.status_code in (401, 404)
    assert "create_app" not in answer.text
    if answer.status_code == 404:
        assert answer.get_json()["error"]["code"] == "not_found"


def test_each_file_of_the_folder_has_its_address() -> None:
    assert {file.name for file in FOLDER.iterdir()} == {"index.html", *NAMES}


def test_page_has_no_script_or_style_of_its_own(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag != "style"
        assert not [name for name in attributes if name == "style" or name.startswith("on")], (tag, attributes)
        if tag == "script":
            assert attributes.get("src")
        for link in (attributes.get("src"), attributes.get("href")):
            assert link is None or link.startswith("#") or link == "docs" or link.removeprefix("dashboard/") in NAMES


def test_page_has_landmarks_and_a_language(page: Page) -> None:
    assert {"header", "nav", "main", "noscript"} <= {tag for tag, _ in page.tags}
    assert dict(page.tags)["html"]["lang"] == "en"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_scripts_never_read_text_as_markup_or_code(script: Path) -> None:
    source = script.read_text(encoding="utf-8")
    banned = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|srcdoc|createContextualFragment"
    )
    assert not re.findall(banned, source)
    assert not re.findall(r"""["'`]https?://(?!www\.w3\.org/2000/svg)""", source)
    assert not re.findall(r"set(?:Timeout|Interval)\(\s*[\"'`]", source)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_scripts_import_only_what_is_served(script: Path) -> None:
    imported = re.findall(r"""(?:from|import)\s+"([^"]+)";""", script.read_text(encoding="utf-8"))
    assert all(name.removeprefix("./") in NAMES for name in imported)


def test_style_sheet_loads_nothing() -> None:
    style = (FOLDER / "dashboard.css").read_text(encoding="utf-8")
    assert not re.findall(r"url\(|@import|@font-face", style)


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


@needs_node
@pytest.mark.parametrize("name", ["app.js", "theme.js"])
def test_scripts_that_start_the_page_have_no_syntax_errors(name: str) -> None:
    source = (FOLDER / name).read_text(encoding="utf-8")
    ended = subprocess.run(
        ["node", "--check", "--input-type=module", "-"], input=source, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr


@needs_node
def test_modules_compute_what_they_show(tmp_path: Path) -> None:
    modules, data = tmp_path / "modules", tmp_path / "data"
    shutil.copytree(FOLDER, modules)
    (modules / "package.json").write_text('{"type": "module"}')  # which a browser is told by the page
    data.mkdir()
    write_vectors(data)
    ended = subprocess.run(
        ["node", "--test", "--test-reporter=tap", Path(__file__).with_name("dashboard.test.mjs")],
        env=os.environ | {"MODULES": str(modules), "DATA": str(data)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"^# pass [1-9]", ended.stdout, re.MULTILINE), ended.stdout


def write_vectors(folder: Path) -> None:
    """A file of vectors as the API sends it, one of them failed, a query, and which rows are nearest to it."""
    chance = np.random.default_rng(7)
    vectors, query = chance.normal(size=(200, 24)).astype("<f4"), chance.normal(size=24).astype("<f4")
    vectors[3] = np.nan
    np.save(folder / "vectors.npy", vectors)
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    best = np.argsort(-np.nan_to_num(cosines, nan=-2))[:5]
    found = {"shape": vectors.shape, "query": query.tolist(), "indexes": best.tolist(), "cosines": cosines[best].tolist()}
    (folder / "nearest.json").write_text(json.dumps(found))
