"""The API's description: whole, valid, and readable as a page that loads nothing from elsewhere."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
import schemathesis
from flask import Flask

from api import create_app
from api.access import OPEN
from api.answers import SECURITY_HEADERS
from api.openapi import AUTOMATIC_METHODS, LIMITED, document, path_of
from core.config import Settings

SETTINGS = Settings(max_ttl_seconds=777, max_inputs=33, max_input_characters=444)


@pytest.fixture(scope="module")
def app() -> Flask:
    return create_app(SETTINGS)


@pytest.fixture(scope="module")
def description(app: Flask) -> dict[str, Any]:
    return document(app, SETTINGS)


def operations(description: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(path, method): found for path, methods in description["paths"].items() for method, found in methods.items()}


def routes(app: Flask) -> set[tuple[str, str]]:
    rules = app.url_map.iter_rules()
    return {(path_of(rule), method.lower()) for rule in rules for method in (rule.methods or set()) - AUTOMATIC_METHODS}


def test_every_route_is_described_and_no_other(app: Flask, description: dict[str, Any]) -> None:
    assert set(operations(description)) == routes(app)


def test_description_is_valid(description: dict[str, Any]) -> None:
    schemathesis.openapi.from_dict(description).validate()
    references = set(re.findall(r"'\$ref': '#/([^']+)'", str(description)))
    assert references
    for reference in references:
        part: Any = description
        for name in reference.split("/"):
            part = part[name]


def test_every_operation_says_what_it_does_and_what_may_go_wrong(description: dict[str, Any]) -> None:
    names = [found["operationId"] for found in operations(description).values()]
    assert len(names) == len(set(names))
    for (path, _), found in operations(description).items():
        assert found["summary"]
        assert " " in found["summary"], f"{path} needs a docstring"
        assert {"400", "414", "431", "500"} <= set(found["responses"])
        assert all(part["description"] for part in found["responses"].values() if "$ref" not in part)


def test_description_says_what_needs_no_key(description: dict[str, Any]) -> None:
    without = {found["operationId"] for found in operations(description).values() if found.get("security") == []}
    assert without == {endpoint.replace(".", "_") for endpoint in OPEN}
    for found in operations(description).values():
        assert ("401" in found["responses"]) == (found["operationId"] not in without)
    assert description["security"] == [{}, {"key": []}]


def test_limits_are_those_of_the_settings(description: dict[str, Any]) -> None:
    assert LIMITED not in str(description)
    body = description["components"]["schemas"]["JobBody"]["properties"]
    assert body["ttl_seconds"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 777}
    assert body["inputs"]["maxItems"] == 33
    assert body["inputs"]["items"]["anyOf"][0]["maxLength"] == 444
    query = {found["name"]: found for found in operations(description)["/v1/jobs", "post"]["parameters"]}
    assert query["ttl_seconds"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 777}, "a query cannot say null"


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.links: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.names |= {value or "" for name, value in attrs if name == "id"}
        self.links |= {value or "" for name, value in attrs if name in ("href", "src")}


def test_page_shows_everything_and_loads_nothing_from_elsewhere(app: Flask, description: dict[str, Any]) -> None:
    answer = app.test_client().get("/docs")
    page = Page(answer.text)
    assert answer.mimetype == "text/html"
    assert {found["operationId"] for found in operations(description).values()} <= page.names
    assert set(description["components"]["schemas"]) <= page.names
    anchors = {link.removeprefix("#") for link in page.links if link.startswith("#")}
    assert anchors <= page.names
    assert page.links - {f"#{anchor}" for anchor in anchors} == {"docs.css", "openapi.json"}
    assert not {"script", "style", "img", "iframe"} & page.tags
    assert not {name for name in page.attributes if name == "style" or name.startswith("on")}
    assert "style-src 'self';" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert set(SECURITY_HEADERS) <= set(answer.headers.keys())
    style = app.test_client().get("/docs.css")
    assert style.mimetype == "text/css"
    assert "url(" not in style.text
    assert "prefers-color-scheme: dark" in style.text
