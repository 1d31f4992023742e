"""A job's life over HTTP: created, listed, cancelled, deleted, repeated. No worker: the test says exactly how far a job is."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis

from core.ledger import Ledger
from tests.integration.test_api_requests import error_of
from tests.ledger_driver import NAME, Driver
from tests.processes import Stack, wait_for

pytestmark = pytest.mark.integration

NDJSON = {"Content-Type": "application/x-ndjson"}
MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def api_environ() -> dict[str, str]:
    return {"SHARD_INPUTS": "2", "API_THREADS": "8"}


def new_job(api: httpx.Client, inputs: int = 4, **options: Any) -> str:
    answer = api.post("/v1/jobs", json={"inputs": [f"text {n}" for n in range(inputs)]} | options)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def test_new_job_is_answered_with_its_record_and_where_to_look(api: httpx.Client) -> None:
    before = time.time()
    answer = api.post("/v1/jobs", json={"inputs": ["a", {"id": "x", "text": "b"}], "metadata": {"team": "ü"}, "ttl_seconds": 60})
    assert answer.status_code == 202
    record = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{record['id']}"
    assert answer.headers["retry-after"] == "1"
    assert before - 1 <= record.pop("created_at") <= time.time() + 1
    job_id = record.pop("id")
    assert record == {
        "object": "job",
        "status": "queued",
        "counts": {"total": 2, "done": 0, "failed": 0},
        "progress": 0.0,
        "queue": "cpu",
        "priority": "bulk",
        "model": MODEL,
        "revision": None,
        "device": None,
        "engine": None,
        "dtype": None,
        "parity": None,
        "dimensions": None,
        "normalize": True,
        "prompt_name": None,
        "truncate": "end",
        "tokens": 0,
        "truncated": 0,
        "cached": 0,
        "metadata": {"team": "ü"},
        "ttl_seconds": 60,
        "started_at": None,
        "ended_at": None,
        "expires_at": None,
        "waiting_for": "a worker of the queue cpu",
        "errors": [],
        "links": {"self": f"/v1/jobs/{job_id}", "result": f"/v1/jobs/{job_id}/result"},
    }
    again = api.get(answer.headers["location"])
    assert again.status_code == 200
    assert again.headers["retry-after"] == "1"
    assert again.json() == answer.json()


def test_record_follows_the_job_to_its_end(api: httpx.Client, driver: Driver) -> None:
    job_id = new_job(api, 4, ttl_seconds=100)
    driver.work(1)
    record = api.get(f"/v1/jobs/{job_id}").json()
    assert (record["status"], record["counts"], record["progress"]) == ("running", {"total": 4, "done": 2, "failed": 0}, 0.5)
    worker = {"device": "cpu", "engine": "fake", "dtype": "float32", "revision": "fake", "parity": 0.9999, "dimensions": 8}
    assert {name: record[name] for name in worker} == worker
    assert record["created_at"] <= record["started_at"]
    assert record["ended_at"] is None
    driver.work(1, failed={3})
    answer = api.get(f"/v1/jobs/{job_id}")
    assert "retry-after" not in answer.headers
    record = answer.json()
    assert (record["status"], record["counts"], record["progress"]) == ("succeeded", {"total": 4, "done": 3, "failed": 1}, 1.0)
    assert (record["tokens"], record["truncated"]) == (12, 2)
    assert record["expires_at"] == pytest.approx(record["ended_at"] + 100, abs=0.01)
    assert [error["index"] for error in record["errors"]] == [3]


def test_job_without_any_vector_failed_and_shows_a_hundred_reasons(api: httpx.Client, driver: Driver) -> None:
    job_id = new_job(api, 120)
    driver.work_all(failed=range(120))
    record = api.get(f"/v1/jobs/{job_id}").json()
    assert (record["status"], record["counts"]["failed"], len(record["errors"])) == ("failed", 120, 100)


def test_jobs_are_listed_newest_first_in_pages(api: httpx.Client, driver: Driver) -> None:
    assert api.get("/v1/jobs").json() == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    ids = [new_job(api, 1) for _ in range(5)]
    driver.work(2, failed={0})
    page = api.get("/v1/jobs").json()
    listed = [record["id"] for record in page["data"]]
    assert sorted(listed) == sorted(ids)
    times = [record["created_at"] for record in page["data"]]
    assert times == sorted(times, reverse=True)
    assert (page["first_id"], page["last_id"], page["has_more"]) == (listed[0], listed[-1], False)
    assert "errors" not in page["data"][0], "they are in each job's own record"
    found: list[str] = []
    after = ""
    while True:
        page = api.get("/v1/jobs", params={"limit": 2, "after": after}).json()
        found += [record["id"] for record in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert found == listed
    for status, count in {"queued": 3, "failed": 2, "succeeded": 0, "running": 0, "cancelled": 0}.items():
        page = api.get("/v1/jobs", params={"status": status}).json()
        assert [record["status"] for record in page["data"]] == [status] * count


def test_delete_cancels_a_live_job_and_deletes_an_ended_one(api: httpx.Client, driver: Driver, api_ledger: Ledger) -> None:
    job_id = new_job(api, 6)
    driver.work(1)
    held = driver.claim().shards[0]
    answer = api.delete(f"/v1/jobs/{job_id}")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["counts"]["done"]) == ("cancelled", 2)
    assert answer.json()["expires_at"] > time.time()
    assert api_ledger.extend("cpu", NAME, [held], lease_seconds=5) == [False], "its worker is told to stop"
    assert driver.claim().shards == ()
    assert api_ledger.waiting_inputs() == 0
    assert api.get(f"/v1/jobs/{job_id}/result").json()["count"] == 2
    assert api.delete(f"/v1/jobs/{job_id}").json() == {"id": job_id, "object": "job", "deleted": True}
    error_of(api.get(f"/v1/jobs/{job_id}"), 404, "id", "job_not_found")
    error_of(api.delete(f"/v1/jobs/{job_id}"), 404, "id", "job_not_found")


def test_cancel_ends_a_live_job_and_leaves_an_ended_one(api: httpx.Client, driver: Driver, api_ledger: Ledger) -> None:
    job_id = new_job(api, 6)
    driver.work(1)
    held = driver.claim().shards[0]
    cancelled = api.post(f"/v1/jobs/{job_id}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"], cancelled.json()["counts"]["done"]) == (200, "cancelled", 2)
    assert api_ledger.extend("cpu", NAME, [held], lease_seconds=5) == [False], "its worker is told to stop"
    again = api.post(f"/v1/jobs/{job_id}/cancel")
    assert (again.status_code, again.json()) == (200, cancelled.json())
    succeeded = new_job(api)
    driver.work_all()
    record = api.get(f"/v1/jobs/{succeeded}").json()
    answer = api.post(f"/v1/jobs/{succeeded}/cancel")
    assert (answer.status_code, answer.json(), record["status"]) == (200, record, "succeeded")
    assert api.get(f"/v1/jobs/{succeeded}/result").json()["count"] == 4
    error_of(api.post("/v1/jobs/job_x/cancel"), 404, "id", "job_not_found")
    error_of(api.post(f"/v1/jobs/{succeeded}/cancel?force=1"), 400, "force")


# Idempotency ----------------------------------------------------------------------------------------------------------


def test_repeated_request_returns_the_same_job(api: httpx.Client, driver: Driver) -> None:
    headers = {"Idempotency-Key": "import 2026-11-23 / part 1"}
    body = {"inputs": ["a", "b"], "metadata": {"n": 1}}
    first = api.post("/v1/jobs", json=body, headers=headers)
    assert "idempotent-replayed" not in first.headers
    second = api.post("/v1/jobs", json=body, headers=headers)
    assert second.status_code == 202
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["location"] == first.headers["location"]
    assert second.json() == first.json()
    driver.work_all()
    third = api.post("/v1/jobs?wait=5", json=body, headers=headers)
    assert third.status_code == 200
    assert third.headers["idempotent-replayed"] == "true"
    assert (third.json()["id"], len(third.json()["data"])) == (first.json()["id"], 2)
    assert len(api.get("/v1/jobs").json()["data"]) == 1


OTHERS = [
    ("other text", {"json": {"inputs": ["a", "c"]}}),
    ("other option", {"json": {"inputs": ["a", "b"], "queue": "gpu"}}),
    ("other type", {"content": b'"a"\n"b"', "headers": NDJSON}),
]


@pytest.mark.parametrize("other", [case[1] for case in OTHERS], ids=[case[0] for case in OTHERS])
def test_same_key_with_another_body_is_a_conflict(api: httpx.Client, other: dict[str, Any]) -> None:
    key = {"Idempotency-Key": "k"}
    assert api.post("/v1/jobs", json={"inputs": ["a", "b"]}, headers=key).status_code == 202
    answer = api.post("/v1/jobs", **(other | {"headers": other.get("headers", {}) | key}))
    message = error_of(answer, 409, "Idempotency-Key", "idempotency_conflict")
    assert "used before" in message
    assert answer.headers["x-should-retry"] == "false"
    assert len(api.get("/v1/jobs").json()["data"]) == 1


def test_options_of_a_stream_belong_to_its_body(api: httpx.Client) -> None:
    headers = NDJSON | {"Idempotency-Key": "k"}
    first = api.post("/v1/jobs?queue=gpu&dimensions=4", content=b'"a"\n', headers=headers)
    again = api.post("/v1/jobs?dimensions=4&queue=gpu&wait=0", content=iter([b'"a', b'"\n']), headers=headers)
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    error_of(api.post("/v1/jobs?queue=gpu&dimensions=5", content=b'"a"\n', headers=headers), 409, code="idempotency_conflict")


def test_key_is_free_again_once_its_job_is_deleted(api: httpx.Client, driver: Driver) -> None:
    headers = {"Idempotency-Key": "k"}
    first = api.post("/v1/jobs", json={"inputs": ["a"]}, headers=headers).json()["id"]
    driver.work_all()
    api.delete(f"/v1/jobs/{first}")
    answer = api.post("/v1/jobs", json={"inputs": ["another"]}, headers=headers)
    assert answer.status_code == 202
    assert answer.json()["id"] != first


def test_repeats_at_the_same_time_make_one_job(api: httpx.Client, api_stack: Stack, driver: Driver, api_ledger: Ledger) -> None:
    lines = b"".join(b'"text %d"\n' % n for n in range(500))
    start = threading.Barrier(6)

    def post(_: int) -> httpx.Response:
        start.wait()
        return httpx.post(f"{api_stack.base_url}/v1/jobs", content=lines, headers=NDJSON | {"Idempotency-Key": "k"}, timeout=30)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(post, range(6)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 5
    assert api_ledger.waiting_inputs() == 500
    assert driver.work_all() == 250
    with redis.Redis.from_url(api_stack.redis_url) as server:
        assert list(server.scan_iter("vector-api:inputs:*")) == []


# Waiting --------------------------------------------------------------------------------------------------------------


def test_get_with_wait_returns_when_the_job_ends(api: httpx.Client, api_stack: Stack, driver: Driver) -> None:
    job_id = new_job(api)
    url = f"{api_stack.base_url}/v1/jobs/{job_id}?wait=30"
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(httpx.get, url, timeout=60) for _ in range(2)]
        driver.work(1)
        assert not any(answer.done() for answer in waiting)
        driver.work(1)
        assert [answer.result().json()["status"] for answer in waiting] == ["succeeded"] * 2
    assert api.get(url).json()["status"] == "succeeded", "an ended job is answered at once"


def test_wait_that_is_over_answers_what_is_known(api: httpx.Client) -> None:
    job_id = new_job(api)
    assert api.get(f"/v1/jobs/{job_id}?wait=0.2").json()["status"] == "queued"
    answer = api.post("/v1/jobs?wait=0.2", json={"inputs": ["a"]})
    assert answer.status_code == 202
    assert "data" not in answer.json()
    assert answer.headers["retry-after"] == "1"


def test_wait_ends_when_the_job_is_cancelled(api: httpx.Client, api_stack: Stack, driver: Driver) -> None:
    job_id = new_job(api)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(httpx.get, f"{api_stack.base_url}/v1/jobs/{job_id}?wait=30", timeout=60)
        api.delete(f"/v1/jobs/{job_id}")
        assert waiting.result().json()["status"] == "cancelled"


def test_message_that_is_lost_costs_a_moment_only(api: httpx.Client, api_stack: Stack, driver: Driver) -> None:
    """Redis forgets its listeners (a restart, a failover); a waiter looks for itself."""
    job_id = new_job(api)
    with ThreadPoolExecutor(1) as pool, redis.Redis.from_url(api_stack.redis_url) as server:
        waiting = pool.submit(httpx.get, f"{api_stack.base_url}/v1/jobs/{job_id}?wait=30", timeout=60)
        wait_for(lambda: server.pubsub_numsub("vector-api:ended")[0][1], what="the API's listening")
        server.client_kill_filter(_type="pubsub")
        driver.work_all()
        assert waiting.result().json()["status"] == "succeeded"
        wait_for(lambda: server.pubsub_numsub("vector-api:ended")[0][1], what="the API's listening again")


def test_waiters_leave_threads_for_everybody_else(api: httpx.Client, api_stack: Stack) -> None:
    """With 8 threads at most 4 requests wait; the next is answered at once, as if its time were over."""
    job_id = new_job(api)
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(httpx.get, f"{api_stack.base_url}/v1/jobs/{job_id}?wait=30", timeout=60) for _ in range(12)]
        wait_for(lambda: sum(answer.done() for answer in waiting) == 8, what="eight answers")
        assert api.get("/healthz").status_code == 200
        api.delete(f"/v1/jobs/{job_id}")
        statuses = sorted(answer.result().json()["status"] for answer in waiting)
    assert statuses == ["cancelled"] * 4 + ["queued"] * 8


# Queues and health ----------------------------------------------------------------------------------------------------


def test_queues_show_what_waits_runs_and_who_works(api: httpx.Client, driver: Driver) -> None:
    new_job(api, 6)
    new_job(api, 1, priority="interactive")
    new_job(api, 3, queue="gpu")
    driver.claim()
    driver.report(name="one@a", queues=("cpu",))
    driver.report(name="two@a", queues=("gpu", "cpu"))
    answer = api.get("/v1/queues").json()
    assert answer["object"] == "list"
    cpu, gpu = answer["data"]
    assert (cpu["name"], gpu["name"]) == ("cpu", "gpu")
    assert (cpu["waiting"], cpu["running"], cpu["suspects"]) == ({"interactive": 0, "bulk": 6}, 1, 0)
    assert (gpu["waiting"], gpu["running"]) == ({"interactive": 0, "bulk": 3}, 0)
    assert cpu["oldest_seconds"] >= 0
    assert [worker["name"] for worker in cpu["workers"]] == ["one@a", "two@a"]
    assert [worker["name"] for worker in gpu["workers"]] == ["two@a"]
    assert [(queue["auto_share"], queue["auto_share_reason"]) for queue in (cpu, gpu)] == [(0.0, "setting"), (1.0, "setting")]
    assert (cpu["stalled"], gpu["stalled"]) == (False, False)
    worker = gpu["workers"][0]
    assert {
        "state",
        "device",
        "model",
        "engine",
        "dtype",
        "revision",
        "parity",
        "dimensions",
        "max_tokens",
        "seen_at",
        "facts",
    } <= set(worker)
    assert (worker["inputs_per_second"], worker["power_watts"], worker["device_name"]) == (10.0, None, None)
    assert "histograms" not in worker
    assert answer["totals"]["waiting"] == 9
    assert answer["totals"]["running"] == 1
    assert answer["totals"]["workers"] == 2
    assert answer["totals"]["jobs"] == {"queued": 2, "running": 1}
    assert answer["totals"]["counters"]["submitted:cpu"] == 2
    assert answer["totals"]["throughput"] == {"seconds_each": 10, "inputs": [0] * 60}


def test_queues_show_what_waits_for_workers_that_do_not_live(api: httpx.Client, driver: Driver) -> None:
    new_job(api, 1, queue="gpu")
    driver.report(name="one@a", queues=("cpu",))
    cpu, gpu = api.get("/v1/queues").json()["data"]
    assert (cpu["stalled"], gpu["stalled"]) == (False, True)
    assert [(queue["auto_share"], queue["auto_share_reason"]) for queue in (cpu, gpu)] == [
        (1.0, "no_gpu_worker"),
        (0.0, "no_gpu_worker"),
    ]


def test_health_and_readiness(api: httpx.Client, driver: Driver) -> None:
    assert api.get("/healthz").json() == {"status": "ok"}
    driver.report(name="one@a", queues=("cpu",))
    ready = {"status": "ready", "redis": "ok", "queues": {"cpu": ["one@a"], "gpu": []}, "models": {MODEL: "live"}}
    assert api.get("/readyz").json() == ready
    assert api.get("/v1").json()["links"]["jobs"] == "/v1/jobs"


def test_auto_job_goes_to_a_live_gpu_worker(api: httpx.Client, driver: Driver) -> None:
    driver.report(name="gpu@a", queues=("gpu",))
    wait_for(lambda: api.post("/v1/jobs", json={"inputs": ["a"]}).json()["queue"] == "gpu", what="the gpu queue for auto jobs")
    assert api.post("/v1/jobs", json={"inputs": ["a"], "queue": "cpu"}).json()["queue"] == "cpu"
