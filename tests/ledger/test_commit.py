"""Committing: each result is stored once, by the worker that holds the shard, and the last one ends the job."""

import pytest

from core.errors import JobNotFound
from core.jobs import Counts, JobStatus, Lane
from core.ledger import Committed, connect
from core.sharding import Span
from tests.ledger.scenario import ENGINE, Scenario, result_of


def test_last_commit_ends_the_job(at: Scenario) -> None:
    at.submit("job", (2, 1))
    first, second = at.claim().shards
    assert at.commit(second) == [True]
    job = at.job()
    assert (job.status, job.counts, job.progress, job.ended_at) == (JobStatus.RUNNING, Counts(3, 1), 1 / 3, None)
    assert at.commit(first) == [True]
    job = at.job()
    assert (job.status, job.counts, job.tokens, job.truncated, job.errors) == (JobStatus.SUCCEEDED, Counts(3, 3), 15, 0, ())
    assert (job.device, job.engine, job.dtype, job.revision, job.dimensions) == (*ENGINE.values(), 1)
    assert job.ended_at is not None
    assert job.expires_at == pytest.approx(job.ended_at + 600)
    assert at.vectors() == [0, 1, 2]


def test_result_is_given_back_as_it_was_stored(at: Scenario) -> None:
    at.submit("job", (3, 1))
    shard = at.claim_one()
    at.commit(shard, failed=[1], truncated=[0, 2], dimensions=4)
    assert at.ledger.finished("job") == [Span(0, 3)]
    assert at.ledger.result("job", Span(0, 3)) == result_of(shard, failed=[1], truncated=[0, 2], dimensions=4)


def test_finished_shards_are_listed_in_order_and_only_they_can_be_read(at: Scenario) -> None:
    at.submit("job", (5,) * 12)
    shards = at.claim().shards
    at.commit(shards[11], shards[2], shards[10])
    assert at.ledger.finished("job") == [Span(10, 5), Span(50, 5), Span(55, 5)]
    with pytest.raises(JobNotFound):
        at.ledger.result("job", Span(0, 5))


def test_texts_go_with_their_commit(at: Scenario) -> None:
    at.submit("job", (2, 2))
    at.commit(at.claim_one())
    assert at.strings("inputs", "job") == ["2+2"]


def test_failed_truncated_and_tokens_are_counted(at: Scenario) -> None:
    at.submit("job", (3, 3))
    first, second = at.claim().shards
    at.commit(first, failed=[0, 2], truncated=[1])
    at.commit(second, failed=[], truncated=[0, 1])
    job = at.job()
    assert (job.status, job.counts, job.truncated, job.tokens) == (JobStatus.SUCCEEDED, Counts(6, 4, 2), 3, 30)
    assert [(error.index, error.code, error.message, error.retryable) for error in job.errors] == [
        (0, "bad", "it is bad", False),
        (2, "bad", "it is bad", False),
    ]


def test_job_without_any_vector_is_failed(at: Scenario) -> None:
    at.submit("job", (1, 1))
    first, second = at.claim().shards
    at.commit(first, failed=[0])
    assert at.job().status is JobStatus.RUNNING
    at.commit(second, failed=[0])
    assert (at.job().status, at.job().counts) == (JobStatus.FAILED, Counts(2, 0, 2))


def test_record_shows_the_first_hundred_errors_and_the_result_all(at: Scenario) -> None:
    at.submit("job", (60, 60, 130))
    for shard in at.claim().shards:
        at.commit(shard, failed=range(shard.span.count))
    assert [error.index for error in at.job().errors] == list(range(100))
    assert at.job().counts == Counts(250, 0, 250)
    assert len(at.ledger.result("job", Span(120, 130)).errors) == 130


def test_one_commit_stores_shards_of_many_jobs_with_their_own_dimensions(at: Scenario) -> None:
    for n in range(3):
        at.submit(f"job{n}", (1,))
    finished = [Committed(shard, result_of(shard, dimensions=n + 1)) for n, shard in enumerate(at.claim().shards)]
    assert at.ledger.commit("cpu", finished, **ENGINE) == [True, True, True]
    assert [at.job(f"job{n}").dimensions for n in range(3)] == [1, 2, 3]
    assert [at.job(f"job{n}").status for n in range(3)] == [JobStatus.SUCCEEDED] * 3


def test_record_keeps_the_worst_parity_of_its_workers(at: Scenario) -> None:
    at.submit("job", (1,) * 6)
    shards = at.claim().shards
    found = []
    for shard, parity in zip(shards, (None, 0.9999, 1.0, 0.99, None, 1e-7), strict=True):
        at.ledger.commit("cpu", [Committed(shard, result_of(shard))], **ENGINE, parity=parity)
        found.append(at.job().parity)
    assert found == [None, 0.9999, 0.9999, 0.99, 0.99, 1e-7]


def test_parity_of_a_commit_that_is_dropped_is_not_kept(at: Scenario) -> None:
    at.submit("job", (1, 1))
    shard = at.claim_one()
    assert at.ledger.commit("cpu", [Committed(shard, result_of(shard))] * 2, **ENGINE, parity=1.0) == [True, False]
    at.ledger.commit("cpu", [Committed(shard, result_of(shard))], **ENGINE, parity=0.5)
    assert at.job().parity == 1.0


def test_commit_of_nothing_is_nothing(at: Scenario) -> None:
    assert at.commit() == []


def test_repeated_commit_changes_nothing(at: Scenario) -> None:
    at.submit("job", (2, 2))
    shard = at.claim_one()
    assert at.commit(shard, failed=[0]) == [True]
    before = at.job()
    assert at.commit(shard, failed=[0]) == [False]
    assert at.commit(shard, shard) == [False, False]
    assert at.job() == before
    assert at.ledger.counters()["inputs:cpu"] == 1


def test_shard_twice_in_one_commit_is_stored_once(at: Scenario) -> None:
    at.submit("job", (2,))
    shard = at.claim_one()
    assert at.commit(shard, shard) == [True, False]
    assert at.job().counts == Counts(2, 2)


def test_worker_whose_shard_went_to_another_can_write_nothing(at: Scenario) -> None:
    at.submit("job", (2,))
    late = at.claim_one("w1")
    at.expire_leases()
    current = at.claim_one("w2")
    assert (late.attempt, current.attempt) == (1, 2)
    assert at.commit(late) == [False]
    assert at.vectors() == []
    assert at.commit(current) == [True]
    assert at.commit(late) == [False]
    assert at.job().counts == Counts(2, 2)


def test_worker_whose_shard_was_taken_from_it_can_write_nothing(at: Scenario) -> None:
    at.submit("job", (2,))
    late = at.claim_one("w1")
    at.expire_leases()
    assert at.claim("w2", lane=Lane.INTERACTIVE).shards == ()  # recovers the shard, takes nothing
    assert at.strings("suspects", "cpu") == ["job/0+2"]
    assert at.commit(late) == [False]


def test_late_worker_may_write_while_nobody_has_taken_its_shard(at: Scenario) -> None:
    at.submit("job", (2,))
    shard = at.claim_one()
    at.expire_leases()
    assert at.commit(shard) == [True]
    assert at.claim().shards == ()


@pytest.mark.parametrize("twice", [False, True], ids=["cancelled", "deleted"])
def test_result_of_a_job_that_is_gone_is_dropped(at: Scenario, twice: bool) -> None:
    at.submit("job", (2, 2))
    first, second = at.claim().shards
    at.commit(first)
    for _ in range(1 + twice):
        at.ledger.remove("job", "alice")
    keys = at.all_keys()
    assert at.commit(second) == [False]
    assert at.all_keys() == keys


def test_commit_to_another_queue_is_dropped(at: Scenario) -> None:
    at.submit("job", (2,))
    shard = at.claim_one()
    assert at.commit(shard, queue="gpu") == [False]
    assert at.commit(shard) == [True]


def test_only_the_current_holders_part_of_a_commit_is_stored(at: Scenario) -> None:
    at.submit("job1", (1, 1))
    at.submit("job2", (1,))
    first, second, third = at.claim().shards
    at.ledger.remove("job2", "alice")
    assert at.commit(first, third, second) == [True, False, True]
    assert at.job("job1").status is JobStatus.SUCCEEDED


def test_end_of_a_job_is_announced(at: Scenario) -> None:
    announcements = at.ledger.ended_jobs()
    at.submit("job1", (1, 1))
    first, second = at.claim().shards
    at.commit(first)
    at.commit(second)
    at.submit("job2", (1,))
    at.ledger.remove("job2", "alice")
    assert [next(announcements), next(announcements)] == ["job1", "job2"]
    announcements.close()  # type: ignore[attr-defined]


@pytest.mark.integration
def test_listener_hears_from_itself_while_no_job_ends(redis_url: str) -> None:
    with connect(redis_url, timeout_seconds=5, retries=0) as client:
        announcements = Scenario(client).ledger.ended_jobs()
        assert next(announcements) is None
        announcements.close()  # type: ignore[attr-defined]


def test_inputs_from_the_cache_are_counted_for_the_job_and_in_all(at: Scenario) -> None:
    at.submit("job", (2, 3))
    shards = at.claim().shards
    assert [shard.tenant for shard in shards] == ["alice", "alice"]
    finished = [Committed(shard, result_of(shard), cached=n) for n, shard in enumerate(shards)]
    at.ledger.commit("cpu", finished, **ENGINE)
    at.ledger.commit("cpu", finished, **ENGINE)
    assert (at.job().cached, at.ledger.counters()["cached:cpu"]) == (1, 1)


def test_counters_add_up_inputs_and_tokens_per_queue(at: Scenario) -> None:
    at.submit("job1", (2, 1))
    at.submit("job2", (4,), queue="gpu")
    at.commit(*at.claim().shards)
    at.commit(*at.claim(queue="gpu").shards, queue="gpu", failed=[0])
    counters = at.ledger.counters()
    assert {name: counters[name] for name in ("inputs:cpu", "inputs:gpu", "tokens:cpu", "tokens:gpu")} == {
        "inputs:cpu": 3,
        "inputs:gpu": 3,
        "tokens:cpu": 15,
        "tokens:gpu": 20,
    }
