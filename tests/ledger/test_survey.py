"""What the ledger tells those who watch it: jobs by state, totals, throughput; and what it costs to ask."""

from typing import Any

import pytest
import redis

from core.blocks import ResultBlock
from core.jobs import InputError, JobOptions, Lane
from core.ledger import ClaimedShard, Committed, StoringLedger, connect
from core.ledger.ledger import BUCKET_SECONDS, BUCKETS
from core.result_store import ResultStore
from tests.ledger.scenario import ENGINE, PREFIX, Scenario


def jobs(at: Scenario) -> tuple[int, int]:
    """Queued and running."""
    found = at.ledger.survey(["cpu", "gpu"]).jobs
    assert list(found) == ["queued", "running"]
    return found["queued"], found["running"]


def running(at: Scenario, queue: str = "cpu") -> tuple[int, int]:
    """Interactive and bulk inputs under a lease."""
    (state,) = at.ledger.survey([queue]).queues
    assert state.running == sum(state.running_by_lane.values())
    return state.running_by_lane["interactive"], state.running_by_lane["bulk"]


# Jobs by state ----------------------------------------------------------------------------------------------------------


def test_job_is_queued_until_its_first_claim_and_running_until_its_end(at: Scenario) -> None:
    assert jobs(at) == (0, 0)
    at.submit("job1", (1, 1))
    at.submit("job1", (1, 1))
    at.submit("job2", (1,))
    assert jobs(at) == (2, 0)
    first, second = at.claim_one(), at.claim_one()
    assert first.job_id == second.job_id
    assert jobs(at) == (1, 1)
    at.release(second)
    assert jobs(at) == (1, 1)
    at.commit(first, *at.claim().shards)
    assert jobs(at) == (0, 0)
    assert at.ledger.survey(["cpu"]).kept_jobs == 2


@pytest.mark.parametrize("claimed", [False, True])
@pytest.mark.parametrize("way", ["cancelled", "dropped", "lapsed"])
def test_job_that_does_not_come_to_its_end_is_counted_no_more(at: Scenario, way: str, claimed: bool) -> None:
    at.submit("job", (1, 1), lane=Lane.INTERACTIVE)
    if claimed:
        at.claim_one()
    assert jobs(at) == (not claimed, claimed)
    assert running(at) == (int(claimed), 0)
    if way == "cancelled":
        at.ledger.remove("job", "alice")
    elif way == "dropped":
        at.ledger.drop([("job", "alice")])
    else:
        at.redis.zadd(at.key("deadlines"), {"job": 1})
        at.redis.hset(at.key("batch", "job"), "tenant", "alice")
        at.redis.pexpire(at.key("batch", "job"), 60_000)
        at.ledger.wants_wake("cpu")
    assert jobs(at) == (0, 0)
    assert running(at) == (0, 0)
    assert at.ledger.counters()["ended:cancelled"] == 1


def test_job_of_a_version_that_did_not_count_counts_from_its_next_claim_on(at: Scenario) -> None:
    for job_id, counts in (("started", (1, 1, 1)), ("waits", (1,)), ("cancelled", (1,))):
        at.submit(job_id, counts)
    at.claim_one()
    for job_id in ("started", "waits", "cancelled"):
        at.redis.hdel(at.key("job", job_id), "counted")
    at.redis.hdel(at.key("live"), "queued", "running")
    assert jobs(at) == (0, 0)
    at.ledger.remove("cancelled", "alice")
    at.claim_one()
    assert jobs(at) == (0, 1)
    shards = at.claim().shards
    assert jobs(at) == (0, 2)
    at.expire_leases()
    at.commit(*shards)
    while shards := at.claim().shards:
        at.commit(*shards)
    assert jobs(at) == (0, 0)


# Inputs under a lease ---------------------------------------------------------------------------------------------------


def test_inputs_under_a_lease_are_told_by_lane_whatever_becomes_of_it(at: Scenario) -> None:
    at.submit("fast", (1, 2, 3, 4), lane=Lane.INTERACTIVE)
    at.submit("slow", (5,))
    held = [at.claim_one(lane=Lane.INTERACTIVE) for _ in range(4)]
    assert running(at) == (10, 0)
    slow = at.claim_one(lane=Lane.BULK)
    assert running(at) == (10, 5)
    at.commit(held[0])
    at.release(held[1])
    assert running(at) == (7, 5)
    at.expire_leases()
    while at.claim_one("w2").job_id == "slow":
        pass
    assert running(at)[0] in (3, 4)
    at.commit(slow)
    at.ledger.remove("fast", "alice")
    assert running(at)[0] == 0


def test_lease_that_an_older_version_gave_does_no_lasting_harm(at: Scenario) -> None:
    at.submit("old", (3,), lane=Lane.INTERACTIVE)
    shard = at.claim_one()
    at.redis.hdel(at.key("live"), "interactive:cpu")
    at.submit("new", (2,), lane=Lane.INTERACTIVE)
    other = at.claim_one()
    at.commit(shard)
    assert running(at) == (0, 2)
    at.commit(other)
    assert at.redis.hgetall(at.key("live")) == {}


# Totals -----------------------------------------------------------------------------------------------------------------


def failing(shard: ClaimedShard, *codes: str) -> Committed:
    errors = {n: InputError(shard.span.first + n, code, "it is bad") for n, code in enumerate(codes)}
    return Committed(shard, ResultBlock(1, bytes(4 * shard.span.count), (5,) * shard.span.count, errors=errors))


def test_failures_are_counted_by_code_however_many_a_shard_has(at: Scenario) -> None:
    at.submit("job", (250, 3))
    large, small = at.claim().shards
    finished = [failing(large, *["out_of_memory"] * 150, *["text_too_long"] * 50), failing(small, "text_too_long")]
    at.ledger.commit("cpu", finished, **ENGINE)
    at.ledger.commit("cpu", finished, **ENGINE)
    found = at.ledger.counters()
    assert (found["failed:cpu:out_of_memory"], found["failed:cpu:text_too_long"]) == (150, 51)
    assert found["inputs:cpu"] == 253 - 201
    assert "refused:cpu" not in found, "a commit that is sent twice"


def test_totals_tell_what_became_of_jobs_and_shards(at: Scenario) -> None:
    at.submit("job", (2, 1))
    at.submit("job", (2, 1))
    late = at.claim_one("w1")
    at.expire_leases()
    again = at.claim_one("w2")
    assert at.commit(late) == [False]
    at.ledger.divide("cpu", again)
    at.ledger.divide("cpu", again)
    for _ in range(3):
        at.commit(at.claim_one("w2"), truncated=[0])
    at.submit("cancelled", (1,))
    lost = at.claim_one()
    at.ledger.remove("cancelled", "alice")
    at.commit(lost)
    at.submit("failed", (1,), queue="gpu")
    at.commit(at.claim_one(queue="gpu"), queue="gpu", failed=[0])
    assert {name: n for name, n in at.ledger.counters().items() if not name.startswith("claims:")} == {
        "submitted:cpu": 2,
        "submitted:gpu": 1,
        "ended:succeeded": 1,
        "ended:cancelled": 1,
        "ended:failed": 1,
        "finished:cpu": 3,
        "finished:gpu": 1,
        "inputs:cpu": 3,
        "tokens:cpu": 15,
        "tokens:gpu": 5,
        "truncated:cpu": 3,
        "failed:gpu:bad": 1,
        "recovered": 1,
        "retried:cpu": 1,
        "divided:cpu": 1,
        "refused:cpu": 2,
    }


def test_dry_run_counts_as_a_job_and_its_inputs_as_finished_alone(at: Scenario) -> None:
    at.submit("job", (2,), options=JobOptions(dry_run=True))
    shard = at.claim_one()
    for _ in range(2):
        at.commit(shard, failed=[0], truncated=[1])
    found = at.ledger.counters()
    assert set(found) == {"submitted:cpu", "finished:cpu", "ended:succeeded", "claims:cpu"}
    assert found["finished:cpu"] == 2
    assert sum(at.ledger.survey(["cpu"]).throughput) == 0
    at.ledger.remove("job", "alice")  # it has no vectors, which `at` would wonder at


@pytest.mark.integration
def test_result_that_is_refused_before_it_goes_to_the_store_is_counted_once(redis_url: str, tmp_path: Any) -> None:
    with connect(redis_url, timeout_seconds=5, retries=0) as client:
        at = Scenario(client)
        at.ledger = StoringLedger(client, PREFIX, ResultStore(f"file://{tmp_path}", timeout_seconds=5, retries=0))
        at.submit("job", (1,))
        shard = at.claim_one()
        at.ledger.remove("job", "alice")
        assert at.commit(shard) == [False]
        assert at.ledger.counters()["refused:cpu"] == 1


def make_older(at: Scenario, job_id: str, seconds: int) -> None:
    created = int(at.redis.hget(at.key("job", job_id), "created_at"))
    at.redis.hset(at.key("job", job_id), "created_at", created - 1000 * seconds)


def test_job_has_waited_when_its_first_shard_is_claimed(at: Scenario) -> None:
    at.submit("job", (1, 1))
    make_older(at, "job", 90)
    first = at.claim_one()
    assert first.waited_seconds is not None
    assert 90 <= first.waited_seconds < 150
    assert at.claim_one().waited_seconds is None, "that it has many shards is no wait"
    at.release(first)
    assert at.claim_one().waited_seconds is None
    at.submit("new", (1,))
    assert at.claim_one().waited_seconds is not None, "however short it was"


# What is wrong ----------------------------------------------------------------------------------------------------------


def test_oldest_job_may_be_one_whose_worker_died(at: Scenario) -> None:
    at.submit("lost", (1,), lane=Lane.INTERACTIVE)
    make_older(at, "lost", 90)
    at.submit("waits", (1,))
    make_older(at, "waits", 30)
    at.claim_one()
    at.expire_leases()
    at.claim_one("w2", lane=Lane.BULK)
    (state,) = at.ledger.survey(["cpu"]).queues
    assert (state.suspects, set(state.oldest_by_lane)) == (1, {"interactive"})
    assert 90 <= state.oldest_by_lane["interactive"] < 150


def test_queue_is_stalled_while_only_a_dead_worker_holds_its_work(at: Scenario) -> None:
    def stalled() -> bool:
        (state,) = at.ledger.survey(["cpu"]).queues
        assert state.backlog == sum(state.waiting.values()) + state.running
        return state.stalled

    assert not stalled()
    at.submit("job", (3,))
    assert stalled()
    at.report("w1")
    shard = at.claim_one("w1")
    assert not stalled()
    at.ledger.retire("w1", ["cpu"])
    assert stalled()
    at.report("w2")
    assert not stalled()
    at.commit(shard)


def test_worker_that_has_missed_two_reports_is_silent(at: Scenario) -> None:
    at.report("w1", lifetime_seconds=90)
    at.report("w2", lifetime_seconds=90)
    at.redis.hincrby(at.key("worker", "w2"), "seen_at", -61_000)
    at.report("old", lifetime_seconds=90)
    at.redis.hdel(at.key("worker", "old"), "seen_at", "lifetime")  # as a version before had it
    for found in (at.ledger.workers(), at.ledger.survey([]).workers):
        assert {worker.name: worker.silent for worker in found} == {"w1": False, "w2": True, "old": False}


def test_jobs_that_an_older_version_ended_are_counted_until_nothing_is_to_be_done(at: Scenario) -> None:
    at.submit("job", (1, 1))
    first, second = at.claim_one(), at.claim_one()
    at.redis.hincrby(at.key("live"), "queued", 2)
    at.redis.hincrby(at.key("live"), "running", 1)
    at.commit(first)
    at.ledger.wants_wake("gpu")
    assert jobs(at) == (2, 2)
    at.commit(second)
    assert jobs(at) == (2, 1)
    at.ledger.wants_wake("gpu")
    assert jobs(at) == (0, 0)


# Throughput -------------------------------------------------------------------------------------------------------------


def test_throughput_has_a_number_for_each_ten_seconds_of_the_last_ten_minutes(at: Scenario) -> None:
    at.submit("job", (3, 2))
    at.commit(*at.claim().shards, failed=[1])
    (bucket,) = [name.decode() for name in at.redis.scan_iter(at.key("throughput", "*"))]
    assert 600 < at.redis.ttl(bucket) <= 620
    number = int(bucket.rsplit(":", 1)[1])
    assert abs(at.redis.time()[0] // BUCKET_SECONDS - number) <= 1
    for back, inputs in ((1, 40), (BUCKETS - 3, 7), (BUCKETS + 1, 9)):
        at.redis.set(at.key("throughput", str(number - back)), inputs, ex=60)
    found = at.ledger.survey(["cpu"]).throughput
    assert len(found) == BUCKETS
    assert sum(found) == 3 + 40 + 7, "what is older is over"
    position = found.index(3)
    assert position >= BUCKETS - 2
    assert found[position - 1] == 40


# What it costs ----------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_number_of_commands_does_not_depend_on_the_number_of_jobs(redis_url: str) -> None:
    with connect(redis_url, timeout_seconds=5, retries=0) as client:
        at = Scenario(client)
        at.report("w1")

        def commands() -> int:
            """That a survey sends, and one more."""
            before = calls(client)
            at.ledger.survey(["cpu", "gpu"])
            return calls(client) - before

        for n in range(2):
            at.submit(f"first{n}", (1,))
            at.claim_one()
        at.submit("waits", (1,))
        few = commands()
        for n in range(100):
            at.finish_job(f"ended{n}")
            at.submit(f"waits{n}", (1, 1), tenant="alice")
            at.claim_one()
        assert commands() == few


def calls(client: redis.Redis) -> int:
    return sum(found["calls"] for found in client.info("commandstats").values())  # type: ignore[union-attr]


@pytest.mark.integration
def test_memory_is_what_the_server_says(redis_url: str) -> None:
    with connect(redis_url, timeout_seconds=5, retries=0) as client:
        used, most = Scenario(client).ledger.memory()
        assert used > 100_000
        assert most is None
        client.config_set("maxmemory", "1gb")
        try:
            assert Scenario(client).ledger.memory()[1] == 2**30
        finally:
            client.config_set("maxmemory", 0)
