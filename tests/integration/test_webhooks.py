"""Webhooks of the real API: what receivers get, whatever dies meanwhile."""

import hashlib
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import redis
from openai.types.webhooks import BatchCancelledWebhookEvent, BatchCompletedWebhookEvent, BatchFailedWebhookEvent

from core.ledger import Ledger, connect
from core.webhooks import read
from launcher.redis_server import RedisServer
from tests.conftest import QUICK
from tests.integration.test_api_batches import lines_of
from tests.ledger_driver import Driver
from tests.processes import ROOT, Process, Stack, running_stack, wait_for
from tests.webhook_receiver import PATH, SECRET, Receiver, Tried, receiving, targets_file

pytestmark = pytest.mark.integration

TENANTS = ("alice", "bob")
TEXT = "a very private sentence"


@pytest.fixture(scope="module")
def receivers() -> Iterator[tuple[Receiver, Receiver]]:
    """The one that is told everything of alice and bob, and the one that is told of alice's failed jobs."""
    with receiving() as everything, receiving() as failures:
        yield everything, failures


@pytest.fixture
def receiver(receivers: tuple[Receiver, Receiver]) -> Iterator[Receiver]:
    for found in receivers:
        found.tried.clear()
    yield receivers[0]
    receivers[0].answer = 204


@pytest.fixture(scope="module")
def api_environ(tmp_path_factory: pytest.TempPathFactory, receivers: tuple[Receiver, Receiver]) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("webhooks")
    keys, file = folder / "keys", folder / "webhooks.toml"
    keys.write_text("".join(f"{tenant}:{hashlib.sha256(tenant.encode()).hexdigest()}\n" for tenant in TENANTS))
    everything, failures = receivers
    content = targets_file(*[(tenant, everything.url) for tenant in TENANTS])
    file.write_text(content + targets_file(("alice", failures.url), events=["job.failed"]))
    return environ_of(file) | {"API_KEYS_FILE": str(keys), "EMBEDDINGS_WAIT_SECONDS": "0.1"}


def environ_of(file: Path) -> dict[str, str]:
    return {"WEBHOOKS_FILE": str(file), "WEBHOOK_NETWORKS": "127.0.0.0/8", "LOG_LEVEL": "DEBUG"}


def post(api: httpx.Client, *texts: str, tenant: str = "alice") -> str:
    answer = api.post("/v1/jobs", json={"inputs": texts or [TEXT]}, headers=key_of(tenant))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def key_of(tenant: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {tenant}"}


def deliveries(api: httpx.Client, tenant: str = "alice") -> list[Any]:
    answer = api.get("/v1/webhooks/deliveries", headers=key_of(tenant))
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


def ended(api: httpx.Client, state: str, count: int = 1, tenant: str = "alice") -> list[Any]:
    """The tenant's deliveries, when so many have come to this end."""

    def found() -> list[Any]:
        return [delivery for delivery in deliveries(api, tenant) if delivery["state"] == state]

    wait_for(lambda: len(found()) >= count, what=f"{count} deliveries {state}")
    return found()


def test_every_end_of_a_job_is_told_with_a_signature_and_without_its_texts(
    api: httpx.Client, driver: Driver, receiver: Receiver, receivers: tuple[Receiver, Receiver]
) -> None:
    succeeded = post(api)
    driver.work_all()
    failed = post(api)
    driver.work_all(failed=[0])
    cancelled = post(api)
    api.delete(f"/v1/jobs/{cancelled}", headers=key_of("alice"))
    body = {"input": TEXT}
    assert api.post("/v1/embeddings", json=body, headers=key_of("alice")).status_code == 503
    of_bob = post(api, tenant="bob")
    driver.work_all()
    expected = {
        succeeded: "job.succeeded",
        failed: "job.failed",
        cancelled: "job.cancelled",
        of_bob: "job.succeeded",
    }
    receiver.wait(4)
    ended(api, "delivered", 4)  # the one for bob is not among them, the second one of the failed job is
    assert {tried.verified()["data"]["id"]: tried.verified()["type"] for tried in receiver.tried} == expected
    client = openai.OpenAI(api_key="none", webhook_secret=SECRET)
    for tried in receiver.tried:
        event = tried.verified()
        assert client.webhooks.unwrap(tried.body, tried.headers).id == event["id"] == tried.id
        assert set(event) == {"id", "object", "type", "created_at", "data"}
        assert event["data"].keys() == {"id"}
        assert event["id"] == "evt_" + event["data"]["id"].removeprefix("job_")
        assert (tried.path, tried.headers["content-type"]) == (PATH, "application/json")
    (only,) = receivers[1].tried
    assert only.verified()["data"]["id"] == failed
    assert [delivery["event"]["data"]["id"] for delivery in deliveries(api, "bob")] == [of_bob]


def test_batches_are_told_as_openai_tells_them(api: httpx.Client, driver: Driver, receiver: Receiver) -> None:
    client = openai.OpenAI(api_key="alice", base_url=f"{api.base_url}/v1", webhook_secret=SECRET, max_retries=0)

    def batch_of(content: bytes) -> str:
        file = client.files.create(file=("a.jsonl", content), purpose="batch")
        return client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h").id

    completed = batch_of(lines_of(2))
    driver.work_all()
    failed = batch_of(b"no JSON")
    cancelled = batch_of(lines_of(2))
    client.batches.cancel(cancelled)
    receiver.wait(3)
    events = [client.webhooks.unwrap(tried.body, tried.headers) for tried in receiver.tried]
    assert {(type(event), event.type, event.data.id) for event in events} == {
        (BatchCompletedWebhookEvent, "batch.completed", completed),
        (BatchFailedWebhookEvent, "batch.failed", failed),
        (BatchCancelledWebhookEvent, "batch.cancelled", cancelled),
    }
    output = client.batches.retrieve(completed).output_file_id
    assert output is not None
    assert len(client.files.content(output).text.splitlines()) == 2


def test_failing_receiver_is_tried_again_with_the_same_id_and_redirects_are_not_followed(
    api: httpx.Client, api_stack: Stack, driver: Driver, receiver: Receiver
) -> None:
    answers = iter([500, 302])

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(next(answers, 200))
        handler.send_header("Location", f"http://127.0.0.1:{receiver.port}/elsewhere")
        handler.end_headers()

    receiver.answer = answer
    post(api)
    driver.work_all()
    tried = receiver.wait(1)
    waiting = wait_for(lambda: [found for found in deliveries(api) if found["status"] == 500], what="the log of the first try")
    assert (waiting[0]["state"], waiting[0]["tries"], waiting[0]["error"]) == ("waiting", 1, None)
    assert waiting[0]["next_try_at"] > waiting[0]["event"]["created_at"]
    (found,) = ended(api, "delivered")
    tried = receiver.wait(3)
    assert len({one.id for one in tried}) == 1
    assert tried[2].at - tried[1].at > tried[1].at - tried[0].at > 0.9, "it waits longer each time"
    assert {one.path for one in receiver.tried} == {PATH}
    assert (found["tries"], found["status"], found["error"], found["next_try_at"]) == (3, 200, None, None)
    assert found["event"]["id"] == tried[0].id
    assert found["target"] == f"127.0.0.1:{receiver.port}"
    assert_no_secret_shows(api, api_stack, tried[0])


def test_gone_ends_a_delivery(api: httpx.Client, driver: Driver, receiver: Receiver) -> None:
    receiver.answer = 410
    post(api)
    driver.work_all()
    (found,) = ended(api, "given_up")
    assert (found["tries"], found["status"], found["next_try_at"]) == (1, 410, None)


def assert_no_secret_shows(api: httpx.Client, api_stack: Stack, tried: Tried) -> None:
    log = api_stack.started[0].output()
    assert tried.id in log
    with redis.Redis.from_url(api_stack.redis_url) as server:
        stored = b"".join(server.dump(name) or b"" for name in server.scan_iter()) + b"".join(server.scan_iter())
    records = [api.get(path, headers=key_of("alice")).text for path in ("/v1/jobs", "/v1/webhooks/deliveries")]
    for shown in (*records, log, stored.decode(errors="replace")):
        for secret in (SECRET.removeprefix("whsec_"), "path-secret", "query-secret"):
            assert secret not in shown


@pytest.mark.parametrize("limit", ["0", "1001", "x"])
def test_limit_of_the_log_is_checked(api: httpx.Client, limit: str) -> None:
    answer = api.get(f"/v1/webhooks/deliveries?limit={limit}", headers=key_of("alice"))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")
    assert api.get("/v1/webhooks/deliveries").status_code == 401


# What dies ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def port() -> Iterator[int]:
    """A port where nobody listens, kept for a receiver that comes later."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as http.server does: so both can have it
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def fragile(tmp_path: Path, port: int) -> Iterator[tuple[Stack, RedisServer]]:
    """Processes and a Redis that may be struck; the webhooks of everybody go to the port."""
    file = tmp_path / "webhooks.toml"
    file.write_text(targets_file(("default", f"http://127.0.0.1:{port}{PATH}")))
    with RedisServer(tmp_path / "redis", {"appendfsync": "no"}) as server:
        for stack in running_stack(server.url, tmp_path, QUICK | environ_of(file)):
            yield stack, server


def work(stack: Stack) -> int:
    return Driver(Ledger(connect(stack.redis_url, timeout_seconds=5, retries=2), "vector-api:")).work_all()


def test_api_killed_before_and_during_a_delivery_delivers_when_it_is_back(fragile: tuple[Stack, RedisServer], port: int) -> None:
    stack, _ = fragile
    first = stack.api()
    with httpx.Client(base_url=stack.base_url, timeout=30) as client:
        job_id = post(client)
    first.kill_group()
    work(stack)
    let_go = threading.Event()
    with receiving(port=port) as receiver:
        receiver.answer = lambda _handler: let_go.wait(20) and None
        second = stack.api()
        (tried,) = receiver.wait(1)
        second.kill_group()
        let_go.set()
        receiver.answer = 204
        with redis.Redis.from_url(stack.redis_url) as server:  # its lease ends, without waiting for it
            (due,) = server.scan_iter("vector-api:due:default:*")
            server.zadd(due, dict.fromkeys(server.zrange(due, 0, -1), 0))
        stack.api()
        again = receiver.wait(2)[1]
        assert again.id == tried.id == job_id.replace("job_", "evt_")
        with httpx.Client(base_url=stack.base_url, timeout=30) as client:
            assert ended(client, "delivered")[0]["tries"] == 2


def test_restart_of_redis_and_a_receiver_that_was_away_lose_nothing(fragile: tuple[Stack, RedisServer], port: int) -> None:
    stack, server = fragile
    stack.api()
    with httpx.Client(base_url=stack.base_url, timeout=30) as client:
        ids = {post(client, str(n)) for n in range(3)}
        work(stack)
        wait_for(lambda: {found["error"] for found in deliveries(client)} == {"connection_failed"}, what="a try of each")
        server.stop()
        server.start()
        with receiving(port=port) as receiver:
            receiver.wait(3)
            assert {tried.verified()["data"]["id"] for tried in receiver.tried} == ids


def slowly(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(0.05)
    handler.send_response(204)
    handler.end_headers()


def test_two_apis_tell_each_event_once(fragile: tuple[Stack, RedisServer], port: int) -> None:
    stack, _ = fragile
    apis = [stack.api(), stack.api()]
    with httpx.Client(base_url=stack.base_url, timeout=30) as client, receiving(port=port) as receiver:
        receiver.answer = slowly
        for n in range(40):
            post(client, str(n))
        work(stack)
        ended(client, "delivered", 40)
        assert set(Counter(tried.id for tried in receiver.tried).values()) == {1}
    told = [sum("delivered at try 1" in line for line in api.output().splitlines()) for api in apis]
    assert sum(told) == 40
    assert min(told) > 0, "both have worked"


def test_receiver_of_the_documentation_is_told(tmp_path: Path, redis_url: str, port: int) -> None:
    text = (ROOT / "docs" / "webhooks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.+?)^```", text, re.MULTILINE | re.DOTALL)
    listed, mine = re.findall(r"^```toml\n(.+?)^```", text, re.MULTILINE | re.DOTALL)
    file, script = tmp_path / "webhooks.toml", tmp_path / "receiver.py"
    file.write_text(listed)
    assert len(read(file)) == 2
    file.write_text(mine.replace("9000", str(port)))
    script.write_text(code.replace("9000", str(port)))
    (secret,) = re.findall('secret = "(.+)"', mine)
    receiver = Process([sys.executable, str(script)], {"WEBHOOK_SECRET": secret}, tmp_path / "receiver.log")
    try:
        for stack in running_stack(redis_url, tmp_path, QUICK | environ_of(file)):
            stack.api()
            with httpx.Client(base_url=stack.base_url, timeout=30) as client:
                job_id = post(client)
                work(stack)
                wait_for(lambda: receiver.output(), what="the receiver's line")
                assert receiver.output().startswith(f"job.succeeded {job_id}\n")
                assert ended(client, "delivered")[0]["tries"] >= 1
    finally:
        receiver.kill_group()
