"""The map of a job's vectors: of those that are there, while it runs, after it ended, wherever the results lie."""

from typing import Any

import httpx
import numpy as np
import pytest

from api.projection import project
from tests.fakes import vector_of
from tests.integration.test_api_requests import error_of
from tests.integration.test_api_results import TEXTS, new_job
from tests.ledger_driver import Driver

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def api_environ() -> dict[str, str]:
    return {"SHARD_INPUTS": "3"}


def assert_right(found: dict[str, Any], job_id: str, indices: list[int], texts: list[str] = TEXTS) -> None:
    """The map has the points of these inputs, and no other."""
    assert {name: found[name] for name in ("id", "object", "total")} == {"id": job_id, "object": "map", "total": len(texts)}
    expected = project(np.stack([vector_of(texts[index]) for index in indices]))
    assert [point["index"] for point in found["points"]] == indices
    assert np.allclose([(point["x"], point["y"]) for point in found["points"]], expected.points, atol=1e-4)
    assert found["explained"] == pytest.approx(expected.explained, abs=1e-4)


def test_map_has_a_point_for_each_vector(api: httpx.Client, driver: Driver) -> None:
    job_id = new_job(api)
    driver.work_all(failed={2, 3, 9})
    assert_right(api.get(f"/v1/jobs/{job_id}/map").raise_for_status().json(), job_id, [0, 1, 4, 5, 6, 7, 8])
    assert_right(api.get(f"/v1/jobs/{job_id}/map?limit=3").json(), job_id, [0, 1, 4])


def test_running_job_shows_what_is_there(api: httpx.Client, driver: Driver) -> None:
    job_id = new_job(api)
    error_of(api.get(f"/v1/jobs/{job_id}/map"), 409, code="job_not_ready")
    driver.claim()
    driver.work(1)
    found = api.get(f"/v1/jobs/{job_id}/map")
    assert "etag" not in found.headers
    assert_right(found.json(), job_id, [3, 4, 5])
    api.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    assert_right(api.get(f"/v1/jobs/{job_id}/map").json(), job_id, [3, 4, 5])


def test_running_job_whose_inputs_failed_so_far_is_not_ready(api: httpx.Client, driver: Driver) -> None:
    job_id = new_job(api)
    driver.work(1, failed=range(10))
    error_of(api.get(f"/v1/jobs/{job_id}/map"), 409, code="job_not_ready")


def test_job_that_never_has_a_vector_has_an_empty_map(api: httpx.Client, driver: Driver) -> None:
    failed = new_job(api)
    driver.work_all(failed=range(10))
    cancelled = new_job(api)
    api.post(f"/v1/jobs/{cancelled}/cancel").raise_for_status()
    for job_id in (failed, cancelled):
        found = api.get(f"/v1/jobs/{job_id}/map").raise_for_status().json()
        assert (found["points"], found["explained"], found["total"]) == ([], [0, 0], 10)


def test_dry_run_and_unknown_job_have_no_map(api: httpx.Client) -> None:
    dry = api.post("/v1/jobs?dry_run=1", json={"inputs": TEXTS}).json()["id"]
    error_of(api.get(f"/v1/jobs/{dry}/map"), 400, "id", code="dry_run")
    error_of(api.get("/v1/jobs/job_0/map"), 404, "id", code="job_not_found")


@pytest.mark.parametrize("limit", ["1", "5001", "-2", "2.0", "many", ""])
def test_limit_that_cannot_be_is_refused(api: httpx.Client, limit: str) -> None:
    assert "limit must be a whole number from 2 to 5000" in error_of(api.get(f"/v1/jobs/x/map?limit={limit}"), 400, "limit")


def test_map_of_an_ended_job_is_computed_once_for_a_client_that_keeps_it(api: httpx.Client, driver: Driver) -> None:
    job_id = new_job(api)
    driver.work_all()
    url = f"/v1/jobs/{job_id}/map"
    first = api.get(url)
    again = api.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = api.get(f"{url}?limit=2", headers={"If-None-Match": first.headers["etag"]})
    assert (other.status_code, len(other.json()["points"])) == (200, 2)
