"""What can be read: lists of jobs, workers, the state of queues."""

import json
from dataclasses import replace

import pytest

from core.errors import JobNotFound
from core.jobs import JobStatus
from tests.ledger.scenario import Scenario
from tests.processes import wait_for


def test_outcome_is_the_record_with_its_results_in_order(at: Scenario) -> None:
    at.submit("job", (2, 1, 3))
    shards = at.claim().shards
    assert at.ledger.outcome("job", "alice")[0].status is JobStatus.RUNNING
    at.commit(shards[2], failed=[1])
    job, results = at.ledger.outcome("job", "alice")
    assert [str(span) for span, _ in results] == ["3+3"]
    assert [error.index for error in job.errors] == [4]
    at.commit(*shards[:2])
    job, results = at.ledger.outcome("job", "alice")
    found = list(results)
    assert job == at.job()
    assert [str(span) for span, _ in found] == ["0+2", "2+1", "3+3"]
    assert [block for _, block in found] == [at.ledger.result("job", span) for span, _ in found]
    for job_id, tenant in (("job", "bob"), ("never", "alice")):
        with pytest.raises(JobNotFound):
            at.ledger.outcome(job_id, tenant)


def ids_on_pages(at: Scenario, limit: int, status: JobStatus | None = None) -> list[list[str]]:
    pages: list[list[str]] = []
    more, after = True, ""
    while more:
        jobs, more = at.ledger.jobs("alice", after=after, limit=limit, status=status)
        pages.append([job.id for job in jobs])
        after = pages[-1][-1] if jobs else ""
    return pages


def test_tenant_without_jobs_has_an_empty_list(at: Scenario) -> None:
    assert at.ledger.jobs("alice") == ([], False)


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (100, [7])])
def test_pages_show_every_job_once_newest_first(at: Scenario, limit: int, sizes: list[int]) -> None:
    for n in range(7):
        at.submit(f"job{n}", (1,))
    at.submit("other", (1,), tenant="bob")
    pages = ids_on_pages(at, limit)
    assert [len(page) for page in pages] == sizes
    listed = [job_id for page in pages for job_id in page]
    created = [at.job(job_id).created_at for job_id in listed]
    assert created == sorted(created, reverse=True)
    assert sorted(listed) == [f"job{n}" for n in range(7)]


def test_list_can_be_narrowed_to_a_status(at: Scenario) -> None:
    for n in range(10):
        at.submit(f"job{n}", (1,))
    for n in (1, 4, 8):
        at.ledger.remove(f"job{n}", "alice")
    pages = ids_on_pages(at, 2, JobStatus.CANCELLED)
    assert [len(page) for page in pages] == [2, 1]
    assert {job_id for page in pages for job_id in page} == {"job1", "job4", "job8"}
    assert ids_on_pages(at, 2, JobStatus.FAILED) == [[]]
    assert len(at.ledger.jobs("alice", limit=100, status=JobStatus.QUEUED)[0]) == 7


def test_rare_status_is_found_among_thousands(at: Scenario) -> None:
    with at.redis.pipeline() as pipe:
        for n in range(2500):
            pipe.hset(at.key("job", f"job{n:04}"), mapping={"status": "failed" if n in (3, 1499) else "running"})
            pipe.zadd(at.key("jobs", "alice"), {f"job{n:04}": n})
        pipe.execute()
    at.submit("model", (1,))
    record = at.redis.hgetall(at.key("job", "model"))
    for n in (3, 1499):
        at.redis.hset(at.key("job", f"job{n:04}"), mapping=record | {b"status": b"failed"})
    assert ids_on_pages(at, 1, JobStatus.FAILED) == [["job1499"], ["job0003"]]
    assert ids_on_pages(at, 5, JobStatus.CANCELLED) == [[]]
    at.redis.flushdb()


def test_jobs_that_come_while_paging_do_not_shift_the_pages(at: Scenario) -> None:
    for n in range(4):
        at.submit(f"job{n}", (1,))
    first, _ = at.ledger.jobs("alice", limit=2)
    at.submit("late", (1,))
    second, more = at.ledger.jobs("alice", after=first[-1].id, limit=2)
    assert {job.id for job in first + second} == {f"job{n}" for n in range(4)}
    assert not more


@pytest.mark.parametrize("after", ["never", "bobs", "deleted"])
def test_page_after_a_job_that_is_not_there_is_an_error_that_names_it(at: Scenario, after: str) -> None:
    at.submit("bobs", (1,), tenant="bob")
    at.submit("deleted", (1,))
    for _ in range(2):
        at.ledger.remove("deleted", "alice")
    with pytest.raises(JobNotFound, match=after) as caught:
        at.ledger.jobs("alice", after=after)
    assert caught.value.param == "after"


def test_list_leaves_out_what_has_expired(at: Scenario) -> None:
    at.finish_job("job1", (1,))
    at.finish_job("job2", (1,))
    at.expire_job("job1")
    assert [job.id for job in at.ledger.jobs("alice")[0]] == ["job2"]
    assert at.strings("jobs", "alice") == ["job2"]


def test_status_is_read_without_the_record(at: Scenario) -> None:
    at.submit("job", (1,))
    assert at.ledger.status("job") is JobStatus.QUEUED
    at.commit(at.claim_one())
    assert at.ledger.status("job") is JobStatus.SUCCEEDED


def test_workers_are_those_that_reported_lately(at: Scenario) -> None:
    at.report("w2", ("gpu", "cpu"), memory=7)
    at.report("w1", lifetime_seconds=0.1)
    assert [worker.name for worker in at.ledger.workers()] == ["w1", "w2"]
    wait_for(lambda: [worker.name for worker in at.ledger.workers()] == ["w2"], seconds=5)
    (worker,) = at.ledger.workers()
    assert (worker.queues, worker.facts, worker.prompts) == (("gpu", "cpu"), {"memory": 7}, ())
    assert worker.seen_at > 1e9


def test_later_report_replaces_the_earlier(at: Scenario) -> None:
    at.report("w1")
    (worker,) = at.ledger.workers()
    at.ledger.report(replace(worker, state="busy"), lifetime_seconds=600)
    assert [found.state for found in at.ledger.workers()] == ["busy"]


def test_report_of_a_newer_version_can_be_read(at: Scenario) -> None:
    at.report("w1")
    report = json.loads(at.redis.hget(at.key("worker", "w1"), "report"))
    at.redis.hset(at.key("worker", "w1"), "report", json.dumps(report | {"unheard_of": 1}))
    assert [worker.name for worker in at.ledger.workers()] == ["w1"]


def test_worker_that_was_killed_leaves_the_sets_with_the_next_report(at: Scenario) -> None:
    at.report("w1", lifetime_seconds=0.01)
    wait_for(lambda: at.ledger.workers() == [], seconds=5)

    def w2_alone() -> bool:
        at.report("w2")
        return at.strings("workers") == at.strings("workers", "cpu") == ["w2"]

    wait_for(w2_alone, seconds=5, what="the end of w1's time in the sets")


def test_retired_worker_is_gone_at_once(at: Scenario) -> None:
    at.report("w1", ("gpu", "cpu"))
    at.ledger.retire("w1", ("gpu", "cpu"))
    assert at.ledger.workers() == []
    assert at.all_keys() == set()
    at.ledger.retire("w1", ("gpu", "cpu"))


def test_queue_states_tell_what_waits_runs_and_who_works(at: Scenario) -> None:
    at.report("w1", ("gpu", "cpu"))
    at.report("w2", ("cpu",))
    at.submit("job1", (3, 4))
    at.submit("job2", (2,), tenant="bob")
    at.claim_one("w1")
    cpu, gpu = at.ledger.queue_states(["cpu", "gpu"])
    assert (cpu.name, cpu.waiting, cpu.running, cpu.suspects) == ("cpu", {"interactive": 0, "bulk": 6}, 3, 0)
    assert [worker.name for worker in cpu.workers] == ["w1", "w2"]
    assert cpu.oldest_seconds == pytest.approx(0, abs=5)
    assert (gpu.waiting, gpu.running, gpu.oldest_seconds) == ({"interactive": 0, "bulk": 0}, 0, None)
    assert [worker.name for worker in gpu.workers] == ["w1"]


def test_oldest_job_of_all_tenants_and_lanes_counts(at: Scenario) -> None:
    for n in range(3):
        at.submit(f"job{n}", (1,), tenant=f"tenant{n}")
    at.redis.hincrby(at.key("job", "job1"), "created_at", -100_000)
    assert at.ledger.queue_states(["cpu"])[0].oldest_seconds == pytest.approx(100, abs=5)


def test_counters_are_empty_at_first(at: Scenario) -> None:
    assert at.ledger.counters() == {}


def test_server_answers_a_ping(at: Scenario) -> None:
    at.ledger.ping()
