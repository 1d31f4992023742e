"""Staging and submitting: a job is taken whole, once, or not at all."""

import pytest

from core.errors import BacklogFull, IdempotencyConflict, LedgerUnavailable
from core.jobs import Counts, JobOptions, JobStatus, Lane
from tests.ledger.scenario import Scenario, shards_of


def test_submitted_job_is_queued_with_all_it_was_sent_with(at: Scenario) -> None:
    options = JobOptions(normalize=False, dimensions=64, prompt_name="query", truncate="error")
    assert at.submit("job", (3, 2), options=options, lane=Lane.INTERACTIVE, metadata={"ä": [1, None]})[0] == "job"
    job = at.job()
    assert (job.status, job.counts, job.queue, job.lane) == (JobStatus.QUEUED, Counts(5), "cpu", Lane.INTERACTIVE)
    assert (job.model, job.options, job.metadata, job.ttl_seconds) == ("m", options, {"ä": [1, None]}, 600)
    assert (job.started_at, job.ended_at, job.expires_at, job.progress) == (None, None, None, 0.0)
    assert job.created_at == pytest.approx(at.redis.time()[0], abs=5)
    assert at.waiting("cpu", Lane.INTERACTIVE) == 5


def test_first_job_asks_for_a_message_and_the_next_does_not(at: Scenario) -> None:
    assert [at.submit(f"job{n}")[1] for n in range(3)] == [True, False, False]


def test_repeated_submit_changes_nothing(at: Scenario) -> None:
    at.submit("job", (2, 2))
    assert at.ledger.submit(at.new_job("job", (2, 2)), max_waiting_inputs=10**9) == ("job", False)
    shard = at.claim_one()
    at.ledger.submit(at.new_job("job", (2, 2)), max_waiting_inputs=10**9)
    assert (at.waiting(), at.job().status) == (2, JobStatus.RUNNING)
    assert at.commit(shard) == [True]


def test_repeated_stage_changes_nothing(at: Scenario) -> None:
    for _ in range(2):
        at.stage("job", (2, 2))
    assert at.ledger.submit(at.new_job("job", (2, 2)), max_waiting_inputs=10**9)[0] == "job"


def test_shards_may_be_staged_in_portions(at: Scenario) -> None:
    shards = shards_of("job", (2, 2, 1))
    at.ledger.stage("job", shards[:2])
    at.ledger.stage("job", shards[2:])
    at.ledger.submit(at.new_job("job", (2, 2, 1)), max_waiting_inputs=10**9)
    assert [item.text for shard in at.claim().shards for item in shard.inputs] == [i.text for s in shards for i in s.inputs]


@pytest.mark.parametrize("staged", [0, 2])
def test_last_shards_may_come_along(at: Scenario, staged: int) -> None:
    shards = shards_of("job", (2, 2, 1))
    if staged:
        at.ledger.stage("job", shards[:staged])
    job = at.new_job("job", (2, 2, 1))
    assert [at.ledger.submit(job, shards[staged:], max_waiting_inputs=10**9) for _ in range(2)] == [("job", True), ("job", False)]
    assert [item.text for shard in at.claim().shards for item in shard.inputs] == [i.text for s in shards for i in s.inputs]
    assert at.redis.ttl(at.key("inputs", "job")) == -1


@pytest.mark.parametrize("refused", ["full", "exists"])
def test_shards_that_come_along_with_a_refused_job_leave_nothing(at: Scenario, refused: str) -> None:
    at.submit("job1", (2,), idempotency_key="k", body_digest="d")
    key, limit = ("k", 10) if refused == "exists" else ("other", 3)
    job = at.new_job("job2", (2,), idempotency_key=key, body_digest="d")
    try:
        assert at.ledger.submit(job, shards_of("job2", (2,)), max_waiting_inputs=limit) == ("job1", False)
    except BacklogFull:
        assert refused == "full"
    assert not any("job2" in name for name in at.all_keys())


def test_late_repeat_of_stage_leaves_a_live_job_without_expiry(at: Scenario) -> None:
    at.submit("job", (2, 2))
    at.stage("job", (2, 2))
    assert at.redis.ttl(at.key("inputs", "job")) == -1
    assert at.strings("pending", "job") == ["0+2", "2+2"]


def test_staged_job_that_is_never_submitted_vanishes(at: Scenario) -> None:
    at.stage("job", (2, 2))
    assert at.ledger.waiting_inputs() == 0
    assert at.claim().shards == ()
    assert all(0 < at.redis.ttl(name) <= 600 for name in at.all_keys() if "job" in name)


def test_unstaged_job_leaves_nothing(at: Scenario) -> None:
    at.stage("job", (2, 2))
    at.ledger.unstage("job")
    assert at.all_keys() == set()


@pytest.mark.parametrize("lost", ["pending", "inputs", "one shard"])
def test_job_whose_staging_is_lost_is_refused_and_leaves_nothing(at: Scenario, lost: str) -> None:
    at.stage("job", (2, 2))
    if lost == "one shard":
        at.redis.hdel(at.key("inputs", "job"), "2+2")
    else:
        at.redis.delete(at.key(lost, "job"))
    with pytest.raises(LedgerUnavailable, match="of the job's 3 shards; send the job again"):
        at.ledger.submit(at.new_job("job", (2, 2, 1)), shards_of("job", (2, 2, 1))[2:], max_waiting_inputs=10**9)
    assert at.all_keys() == set()


def test_same_idempotency_key_and_body_give_the_first_job(at: Scenario) -> None:
    first = at.submit("job1", (2,), idempotency_key="k", body_digest="d")
    assert at.submit("job2", (2,), idempotency_key="k", body_digest="d") == ("job1", False)
    assert first[0] == "job1"
    assert at.ledger.find_repeated("alice", "k") == ("job1", "d")
    assert not any("job2" in name for name in at.all_keys())


def test_same_idempotency_key_and_another_body_conflict(at: Scenario) -> None:
    at.submit("job1", (2,), idempotency_key="k", body_digest="d")
    with pytest.raises(IdempotencyConflict):
        at.submit("job2", (2,), idempotency_key="k", body_digest="other")
    assert not any("job2" in name for name in at.all_keys())
    assert at.waiting() == 2


def test_idempotency_keys_of_two_tenants_do_not_meet(at: Scenario) -> None:
    at.submit("job1", (2,), idempotency_key="k", body_digest="d")
    assert at.submit("job2", (2,), tenant="bob", idempotency_key="k", body_digest="other")[0] == "job2"
    assert at.ledger.find_repeated("carol", "k") is None


def test_idempotency_key_lives_as_long_as_its_job(at: Scenario) -> None:
    at.finish_job("job1", idempotency_key="k", body_digest="d")
    assert 0 < at.redis.ttl(at.key("idempotency", "alice", "k")) <= 600
    at.ledger.remove("job1", "alice")
    assert at.ledger.find_repeated("alice", "k") is None
    assert at.submit("job2", (2,), idempotency_key="k", body_digest="other")[0] == "job2"


def test_full_backlog_refuses_the_whole_job_and_keeps_nothing_of_it(at: Scenario) -> None:
    at.submit("job1", (2, 2), limit=4)
    with pytest.raises(BacklogFull, match="4 inputs wait, 3 were sent, the limit is 6") as caught:
        at.submit("job2", (3,), limit=6)
    assert caught.value.retry_after_seconds == 60
    assert not any("job2" in name for name in at.all_keys())
    assert at.submit("job3", (2,), limit=6)[0] == "job3"


def test_backlog_counts_both_queues_and_lanes_but_not_what_is_being_embedded(at: Scenario) -> None:
    at.submit("job1", (2, 2), queue="gpu")
    at.submit("job2", (2,), lane=Lane.INTERACTIVE)
    assert at.ledger.waiting_inputs() == 6
    at.claim_one(queue="gpu")
    assert at.ledger.waiting_inputs() == 4
    with pytest.raises(BacklogFull):
        at.submit("job3", (2,), limit=5)


@pytest.mark.parametrize(
    ("rates", "retry_after_seconds"), [((), 60), ((1.0,), 8), ((1.0, 3.0), 2), ((1000.0,), 1), ((0.001,), 120)]
)
def test_retry_after_follows_from_the_workers_rate(at: Scenario, rates: tuple[float, ...], retry_after_seconds: int) -> None:
    for n, rate in enumerate(rates):
        at.report(f"w{n}", inputs_per_second=rate)
    at.submit("job", (2, 2, 2, 2, 2))
    with pytest.raises(BacklogFull) as caught:
        at.submit("more", (2, 2, 2, 2), limit=10)
    assert caught.value.retry_after_seconds == retry_after_seconds


@pytest.mark.parametrize("tenant", ["", "a/b", "a:b", "ä b", "%s+1/2"])
def test_any_name_of_a_tenant_will_do(at: Scenario, tenant: str) -> None:
    at.finish_job("job1", tenant=tenant)
    at.submit("job2", tenant=tenant)
    assert at.ledger.remove("job2", tenant) is not None
    assert {job.id for job in at.ledger.jobs(tenant)[0]} == {"job1", "job2"}
    for job_id in ("job1", "job2"):
        at.expire_job(job_id)
    at.ledger.wants_wake("cpu")
    assert not [name for name in at.all_keys() if "job" in name or "expiring" in name]


def test_names_of_queues_may_have_dots(at: Scenario) -> None:
    at.submit("job", (2,), queue="cpu.small-model")
    assert at.claim(queue="cpu").shards == ()
    assert at.commit(at.claim_one(queue="cpu.small-model"), queue="cpu.small-model") == [True]
