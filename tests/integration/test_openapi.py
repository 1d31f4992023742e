"""The API answers as it describes itself: to what schemathesis makes up, to the examples, to strangers."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from tests.fuzz.run import SMALL, fuzz, upload_batch_file
from tests.integration.test_api_access import make_key
from tests.ledger_driver import Driver
from tests.processes import Stack, running_stack

pytestmark = pytest.mark.integration

SHORT = ("--generation-deterministic", "--no-shrink")
"""The same requests each time; `make fuzz` makes up others, and sequences of them."""


@pytest.fixture(scope="module")
def api_environ() -> dict[str, str]:
    return SMALL


@pytest.fixture
def description(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


@pytest.mark.timeout(300)
def test_every_answer_is_as_described(api: httpx.Client, api_stack: Stack) -> None:
    ended = fuzz(api_stack, *SHORT, "--phases=examples,coverage,fuzzing", "--max-examples=5")
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"(\d{3,}) generated, \1 passed", ended.stdout), ended.stdout
    assert api.get("/readyz").json()["status"] == "ready"


def test_every_answer_is_as_described_where_keys_are_needed(redis_url: str, tmp_path: Path) -> None:
    key = make_key(tmp_path / "keys", "alice")
    for stack in running_stack(redis_url, tmp_path, SMALL | {"API_KEYS_FILE": str(tmp_path / "keys")}):
        stack.api()
        require_refused_without_key(stack.base_url)
        ended = fuzz(stack, *SHORT, "--phases=examples,fuzzing", "--max-examples=3", key=key)
        assert ended.returncode == 0, ended.stdout


def require_refused_without_key(base_url: str) -> None:
    with httpx.Client(base_url=base_url) as stranger:
        description = stranger.get("/openapi.json").json()
        assert description["security"] == [{"key": []}]
        refused = description["components"]["responses"]["401"]
        schema = refused["content"]["application/json"]["schema"]
        for path, methods in description["paths"].items():
            for method, operation in methods.items():
                answer = stranger.request(method, path.replace("{job_id}", "x").replace("{name}", "app.js"))
                if operation.get("security") == []:
                    assert answer.status_code == 200, path
                else:
                    assert answer.status_code == 401, path
                    assert answer.headers["www-authenticate"] == "Bearer"
                    closed(description, schema).validate(answer.json())


def examples(description: dict[str, Any]) -> list[tuple[str, str, str, Any, dict[str, Any]]]:
    """Path, method, media type and value of each example of a body, and the answers described."""
    schemas = description["components"]["schemas"]
    found = []
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                if media_type == "multipart/form-data":
                    continue  # a file is no example that can be written down
                schema = content["schema"]
                schema = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
                assert schema["examples"], f"{method} {path} has no example in {media_type}"
                found += [(path, method, media_type, value, operation["responses"]) for value in schema["examples"]]
    return found


def test_examples_are_true(api: httpx.Client, description: dict[str, Any], driver: Driver) -> None:
    sent = examples(description)
    assert sent
    with working(driver):
        require_true(api, description, sent)


def require_true(api: httpx.Client, description: dict[str, Any], sent: list[tuple[str, str, str, Any, dict[str, Any]]]) -> None:
    for path, method, media_type, value, answers in sent:
        lines = media_type == "application/x-ndjson"
        if "input_file_id" in value:
            value = value | {"input_file_id": upload_batch_file(api)}
        content = "".join(json.dumps(item) + "\n" for item in value) if lines else json.dumps(value)
        answer = api.request(method, path, content=content, headers={"Content-Type": media_type})
        assert answer.is_success, (value, answer.text)
        schema = answers[str(answer.status_code)]["content"][answer.headers["content-type"]]["schema"]
        closed(description, schema).validate(answer.json())


@contextmanager
def working(driver: Driver) -> Iterator[None]:
    """With a worker that takes what comes."""
    done = threading.Event()

    def keep_working() -> None:
        while not done.wait(0.01):
            driver.work_all()

    thread = threading.Thread(target=keep_working)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_no_answer_has_a_field_that_is_not_described(api: httpx.Client, description: dict[str, Any], driver: Driver) -> None:
    driver.report()
    job_id = api.post("/v1/jobs", json={"inputs": ["a", {"id": "b", "text": "b"}, "c"]}).json()["id"]
    answers = [("/v1/jobs/{job_id}", api.get(f"/v1/jobs/{job_id}"))]
    driver.work_all(failed=(1,))
    answers += [(url, api.get(url)) for url in ("/v1", "/healthz", "/readyz", "/v1/queues", "/v1/jobs", "/v1/models")]
    answers.append(("/v1/jobs/{job_id}", api.get(f"/v1/jobs/{job_id}")))
    answers += [("/v1/jobs/{job_id}/result", api.get(f"/v1/jobs/{job_id}/result?format={name}")) for name in ("json", "base64")]
    for path, answer in answers:
        described = description["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        closed(description, described).validate(answer.json())


def closed(description: dict[str, Any], schema: dict[str, Any]) -> jsonschema_rs.Validator:
    """A validator of the schema that takes no field beside those described."""

    def close(part: Any) -> Any:
        if isinstance(part, list):
            return [close(item) for item in part]
        if not isinstance(part, dict):
            return part
        more = {"additionalProperties": False} if part.get("type") == "object" and "properties" in part else {}
        return more | {name: close(value) for name, value in part.items()}

    return jsonschema_rs.Draft202012Validator(close({**schema, "components": description["components"]}))
