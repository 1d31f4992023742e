"""Lifetimes: what ended vanishes when it should, and no key is left behind."""

import pytest

from core.errors import JobNotFound
from core.jobs import Lane
from tests.ledger.scenario import PERMANENT, Scenario
from tests.processes import wait_for


def run_mixed_jobs(at: Scenario, count: int, ttl_seconds: int) -> None:
    """Jobs of both queues, both lanes and three tenants that end in every way there is."""
    for n in range(count):
        queue, tenant = ("cpu", "gpu")[n % 2], f"tenant{n % 3}"
        fields = {"queue": queue, "tenant": tenant, "lane": list(Lane)[n % 4 // 2], "ttl_seconds": ttl_seconds}
        if n % 5 == 0:
            fields |= {"idempotency_key": f"k{n}", "body_digest": "d"}
        at.submit(f"job{n}", (2, 1), **fields)
        match n % 6:
            case 0:
                at.ledger.remove(f"job{n}", tenant)
            case 1:
                at.claim("w1", queue)
                at.expire_leases(queue)
                at.ledger.divide(queue, at.claim_one("w2", queue))
                at.ledger.remove(f"job{n}", tenant)
            case 2:
                at.commit(at.claim_one(queue=queue), queue=queue)
                at.ledger.remove(f"job{n}", tenant)
            case 3:
                at.commit(*at.claim(queue=queue).shards, queue=queue, failed=[0])
            case 4:
                at.release(*at.claim(queue=queue).shards, queue=queue)
                at.commit(*at.claim(queue=queue).shards, queue=queue)
            case _:
                at.stage("never submitted", (1,))
                at.ledger.unstage("never submitted")
                at.commit(*at.claim(queue=queue).shards, queue=queue)


def test_nothing_is_left_of_jobs_that_expired(at: Scenario) -> None:
    run_mixed_jobs(at, 30, ttl_seconds=1)

    def swept() -> bool:
        for queue in ("cpu", "gpu"):
            at.expire_leases(queue)  # the workers are gone as well
            at.ledger.wants_wake(queue)
            at.forget_message(queue)
        return at.all_keys() == PERMANENT

    wait_for(swept, seconds=10, what="the end of the last job's keys")
    assert at.ledger.waiting_inputs() == 0
    assert at.ledger.find_repeated("tenant0", "k0") is None


def test_nothing_is_left_of_jobs_that_were_deleted(at: Scenario) -> None:
    run_mixed_jobs(at, 30, ttl_seconds=600)
    for n in range(30):
        assert at.ledger.remove(f"job{n}", f"tenant{n % 3}") is None
    for queue in ("cpu", "gpu"):
        for worker in ("w1", "w2"):
            at.release(worker=worker, queue=queue)
    assert at.all_keys() == PERMANENT


def test_expired_job_is_unknown(at: Scenario) -> None:
    at.finish_job("job", ttl_seconds=1)
    assert at.job().expires_at == pytest.approx(at.redis.time()[0] + 1, abs=2)
    (span,) = at.ledger.finished("job")
    wait_for(lambda: at.ledger.status("job") is None, seconds=5)
    with pytest.raises(JobNotFound):
        at.job()
    with pytest.raises(JobNotFound):
        at.ledger.result("job", span)
    with pytest.raises(JobNotFound):
        at.ledger.remove("job", "alice")
    assert at.ledger.finished("job") == []
    assert at.ledger.jobs("alice") == ([], False)


def test_lifetime_starts_at_the_end_of_the_job(at: Scenario) -> None:
    at.submit("job", (1, 1), ttl_seconds=1)
    at.commit(at.claim_one())
    assert at.redis.ttl(at.key("job", "job")) == at.redis.ttl(at.key("vectors", "job")) == -1
    at.commit(at.claim_one())
    assert 0 < at.redis.pttl(at.key("job", "job")) <= 1000


def test_expired_idempotency_key_can_be_used_for_another_body(at: Scenario) -> None:
    at.finish_job("job1", idempotency_key="k", body_digest="d")
    at.expire_job("job1")
    at.submit("job2", (1,), idempotency_key="k", body_digest="other")
    at.ledger.wants_wake("cpu")
    assert at.ledger.find_repeated("alice", "k") == ("job2", "other")


def test_indexes_do_not_outgrow_live_jobs_while_jobs_come(at: Scenario) -> None:
    for n in range(60):
        at.finish_job(f"job{n}", (1,))
        at.expire_job(f"job{n}")
    assert len(at.strings("expiring")) <= 10
    assert len(at.strings("jobs", "alice")) <= 10


def test_indexes_are_swept_while_nobody_submits(at: Scenario) -> None:
    for n in range(20):
        at.finish_job(f"job{n}", (1,))
    for n in range(20):
        at.expire_job(f"job{n}")
    at.ledger.wants_wake("gpu")
    assert at.strings("expiring") == at.strings("jobs", "alice") == []
