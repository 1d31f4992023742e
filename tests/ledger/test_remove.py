"""Cancelling and deleting, at any moment of a job's life."""

import pytest

from core.errors import JobNotFound
from core.jobs import Counts, JobStatus, Lane
from tests.ledger.scenario import PERMANENT, PREFIX, Scenario, bytes_of


def test_waiting_job_is_cancelled(at: Scenario) -> None:
    at.submit("job", (2, 3))
    assert at.ledger.remove("job", "alice") is not None
    job = at.job()
    assert (job.status, job.counts, job.started_at) == (JobStatus.CANCELLED, Counts(5), None)
    assert job.expires_at is not None
    assert (at.waiting(), at.claim().shards) == (0, ())


def test_job_is_cancelled_while_all_its_shards_are_being_embedded(at: Scenario) -> None:
    at.submit("job", (2, 2))
    shards = at.claim().shards
    assert at.ledger.remove("job", "alice") is not None
    assert at.extend(*shards) == [False, False]
    assert at.commit(*shards) == [False, False]
    assert at.job().status is JobStatus.CANCELLED
    assert at.ledger.queue_states(["cpu"])[0].running == 0


def test_finished_parts_of_a_cancelled_job_stay_readable(at: Scenario) -> None:
    at.submit("job", (2, 2, 2, 2))
    for _ in range(2):
        at.commit(at.claim_one(), failed=[1])
    at.claim_one()
    at.ledger.remove("job", "alice")
    assert at.job().counts == Counts(8, 2, 2)
    assert len(at.job().errors) == 2
    assert at.vectors() == [0, 1, 2, 3]


def test_job_with_suspects_is_cancelled_and_other_jobs_suspects_stay(at: Scenario) -> None:
    at.submit("job1", (1, 2))
    at.submit("job2", (3,))
    at.claim()
    at.expire_leases()
    suspect = at.claim_one("w2")
    at.ledger.divide("cpu", suspect)
    at.ledger.remove("job1", "alice")
    assert at.strings("suspects", "cpu") == ["job2/0+3"]
    assert at.waiting() == 3


def test_other_tenants_job_is_unknown(at: Scenario) -> None:
    at.submit("job")
    with pytest.raises(JobNotFound):
        at.ledger.remove("job", "bob")
    with pytest.raises(JobNotFound):
        at.ledger.get("job", "bob")
    assert at.job().status is JobStatus.QUEUED


@pytest.mark.parametrize("job_id", ["never", "", "a/b", "a:b", "x" * 1000])
def test_unknown_job_is_unknown(at: Scenario, job_id: str) -> None:
    with pytest.raises(JobNotFound):
        at.ledger.remove(job_id, "alice")
    with pytest.raises(JobNotFound):
        at.ledger.get(job_id, "alice")
    assert at.ledger.status(job_id) is None


def test_cancel_whose_answer_was_lost_is_not_turned_into_a_delete(at: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    run = at.ledger._run

    def run_twice(*args: object) -> object:
        run(*args)  # redis-py sends a command again when the connection broke before its answer came
        return run(*args)

    at.submit("job")
    monkeypatch.setattr(at.ledger, "_run", run_twice)
    assert at.ledger.remove("job", "alice") is not None
    assert at.job().status is JobStatus.CANCELLED
    monkeypatch.setattr(at.ledger, "_run", run)
    assert at.ledger.remove("job", "alice") is None


def test_who_cancels_is_told_of_a_job_that_is_gone_the_next_moment(at: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    run = at.ledger._run

    def run_and_drop(*args: object) -> object:
        found = run(*args)
        run("drop", args[1], "alice")  # as a request does that waited for the job and sees that it was cancelled
        return found

    for n, removed in enumerate((at.ledger.remove, lambda *job: at.ledger.cancel(*job)[0])):
        at.submit(f"job{n}", (2, 2))
        at.commit(at.claim_one(), failed=[1])
        with monkeypatch.context() as patched:
            patched.setattr(at.ledger, "_run", run_and_drop)
            job = removed(f"job{n}", "alice")
        assert job is not None
        assert (job.status, job.counts) == (JobStatus.CANCELLED, Counts(4, 1, 1))
        assert [error.index for error in job.errors] == [1]
        assert at.ledger.status(job.id) is None


def test_cancelled_job_is_returned_as_it_is_read(at: Scenario) -> None:
    at.submit("job", (2, 2))
    at.commit(at.claim_one(), failed=[1])
    assert at.ledger.cancel("job", "alice") == (at.job(), True)
    assert at.ledger.cancel("job", "alice") == (at.job(), False)


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED])
def test_ended_job_is_deleted_without_a_trace(at: Scenario, status: JobStatus) -> None:
    at.submit("job", (2, 2), idempotency_key="k", body_digest="d")
    if status is JobStatus.CANCELLED:
        at.commit(at.claim_one(), failed=[0])
        at.ledger.remove("job", "alice")
    else:
        for shard in at.claim().shards:
            at.commit(shard, failed=[0, 1] if status is JobStatus.FAILED else [0])
    assert at.job().status is status
    assert at.ledger.remove("job", "alice") is None
    at.release()
    assert at.all_keys() == PERMANENT
    with pytest.raises(JobNotFound):
        at.ledger.remove("job", "alice")


@pytest.mark.parametrize("state", ["waits", "is being embedded", "is suspected", "is done"])
def test_dropped_job_leaves_no_trace_and_harms_no_neighbour(at: Scenario, state: str) -> None:
    at.submit("other", (1,))
    other = at.claim_one("w2")
    at.submit("job", (2, 2), idempotency_key="k", body_digest="d", moves=True)
    shards = at.claim().shards if state != "waits" else ()
    if state == "is suspected":
        at.expire_leases()
        at.extend(other, worker="w2")
        at.claim("w2", lane=Lane.BULK)
    if state == "is done":
        at.commit(*shards)
    for _ in range(2):
        at.ledger.drop([("job", "alice"), ("never", "alice")])
        at.assert_consistent()
    assert at.commit(*shards) == [False] * len(shards)
    assert not [name for name in at.all_keys() if name.endswith((":job", ":k"))]
    assert at.strings("jobs", "alice") == ["other"]
    at.commit(other)
    at.ledger.drop([("other", "alice")])
    for worker in ("w1", "w2"):
        at.release(worker=worker)
    at.forget_message()
    assert at.all_keys() == PERMANENT


def test_other_tenants_job_is_not_dropped(at: Scenario) -> None:
    at.submit("job")
    at.ledger.drop([("job", "bob")])
    assert at.job().status is JobStatus.QUEUED


def test_cancelled_job_never_starts_again(at: Scenario) -> None:
    at.submit("job", (1, 1))
    shard = at.claim_one()
    at.ledger.remove("job", "alice")
    at.expire_leases()
    at.release(shard)
    assert at.claim().shards == ()
    assert at.job().status is JobStatus.CANCELLED


def test_cancel_of_many_jobs_leaves_counters_at_zero(at: Scenario) -> None:
    for n in range(20):
        at.submit(f"job{n}", (3, 2), tenant=f"tenant{n % 3}")
    at.claim("w1", max_bytes=10 * bytes_of(3))
    at.expire_leases()
    at.claim("w2")
    for n in range(20):
        assert at.ledger.remove(f"job{n}", f"tenant{n % 3}") is not None
    assert (at.waiting(), at.claim().shards) == (0, ())
    for worker in ("w1", "w2"):
        at.release(worker=worker)
    kinds = {name.removeprefix(PREFIX).split(":")[0] for name in at.all_keys()}
    assert kinds == {"job", "jobs", "expiring", "waiting", "counters"}
