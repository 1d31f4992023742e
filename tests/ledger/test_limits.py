"""What one tenant, and all of them together, may have waiting and send in a minute."""

import contextlib
import time
from typing import Any

import pytest

from core.blocks import pack_inputs
from core.errors import BacklogFull, RateLimited, RequestTooLarge
from core.ledger import Limits
from tests.ledger.scenario import Scenario, shards_of
from tests.processes import wait_for


def live(at: Scenario) -> dict[str, int]:
    return {name.decode(): int(number) for name, number in at.redis.hgetall(at.key("live")).items()}


def size_of(job_id: str, *counts: int) -> int:
    return sum(len(pack_inputs(shard.inputs)) for shard in shards_of(job_id, counts))


def refused(at: Scenario, job_id: str, counts: tuple[int, ...], **fields: Any) -> BacklogFull:
    before = at.all_keys()
    with pytest.raises(BacklogFull) as caught:
        at.submit(job_id, counts, **fields)
    assert at.all_keys() == before
    return caught.value


# What is counted --------------------------------------------------------------------------------------------------------


def test_jobs_and_inputs_of_each_tenant_and_bytes_of_all_are_counted_until_they_end(at: Scenario) -> None:
    at.submit("job1", (2, 1))
    at.submit("job2", (4,), tenant="bob")
    both = {"jobs:alice": 1, "inputs:alice": 3, "jobs:bob": 1, "inputs:bob": 4}
    assert live(at) == both | {"bytes": size_of("job1", 2, 1) + size_of("job2", 4), "queued": 2}
    shard = at.claim_one()
    running = {"queued": 1, "running": 1}
    assert live(at) == both | running | {"bytes": size_of("job1", 2, 1) + size_of("job2", 4)}, "a claim ends nothing"
    at.commit(shard)
    assert live(at)["inputs:alice"] == 1
    assert live(at)["bytes"] == size_of("job1", 2, 1) - size_of("job1", 2) + size_of("job2", 4)
    at.ledger.remove("job2", "bob")
    assert live(at) == {"jobs:alice": 1, "inputs:alice": 1, "bytes": size_of("job1", 2, 1) - size_of("job1", 2), "running": 1}
    at.commit(*at.claim().shards)
    assert live(at) == {}


def test_repeated_stage_and_submit_are_counted_once(at: Scenario) -> None:
    for _ in range(2):
        at.submit("job1", (2, 2))
    at.submit("job2", (1,), idempotency_key="k", body_digest="d")
    at.submit("job3", (1,), idempotency_key="k", body_digest="d")
    assert live(at) == {"jobs:alice": 2, "inputs:alice": 5, "bytes": size_of("job1", 2, 2) + size_of("job2", 1), "queued": 2}


def test_divided_shard_and_one_that_went_to_another_worker_are_counted_right(at: Scenario) -> None:
    at.submit("job", (3,))
    late = at.claim_one("w1")
    at.expire_leases()
    assert at.ledger.divide("cpu", at.claim_one("w2"))
    assert live(at)["bytes"] == sum(at.redis.hstrlen(at.key("inputs", "job"), shard) for shard in ("0+1", "1+1", "2+1"))
    assert at.commit(late) == [False]
    assert live(at)["inputs:alice"] == 3
    for _ in range(3):
        at.commit(at.claim_one("w2"))
    assert live(at) == {}


def test_job_of_a_version_that_did_not_count_is_drained(at: Scenario) -> None:
    for job_id in ("old1", "old2"):
        at.submit(job_id, (2, 1))
        at.redis.hdel(at.key("job", job_id), "bytes", "counted")
    at.redis.delete(at.key("live"))
    at.submit("new", (1,))
    at.ledger.remove("old1", "alice")
    assert live(at) == {"jobs:alice": 1, "inputs:alice": 1, "bytes": size_of("new", 1), "queued": 1}
    at.commit(*at.claim().shards)
    assert at.job("old2").status.ended
    assert live(at) == {}


# What is refused --------------------------------------------------------------------------------------------------------


def test_jobs_of_a_tenant_are_limited_and_others_are_not(at: Scenario) -> None:
    limits = Limits(max_tenant_jobs=2)
    at.submit("job1", (2,), limits=limits)
    at.submit("job2", (2,), limits=limits)
    error = refused(at, "job3", (1,), limits=limits)
    assert str(error) == "the backlog is full: 2 of your jobs are not over, the limit is 2 (MAX_TENANT_JOBS)"
    assert error.retry_after_seconds == 60
    at.submit("job4", (1,), tenant="bob", limits=limits)
    at.ledger.remove("job1", "alice")
    at.submit("job3", (1,), limits=limits)


def test_inputs_of_a_tenant_are_limited_also_while_they_are_embedded(at: Scenario) -> None:
    limits = Limits(max_tenant_inputs=4)
    at.submit("job1", (2, 1), limits=limits)
    shard = at.claim_one()
    error = refused(at, "job2", (2,), limits=limits)
    assert "3 inputs of yours wait or are being embedded, 2 were sent, the limit is 4 (MAX_TENANT_INPUTS)" in str(error)
    at.submit("job3", (4,), tenant="bob", limits=limits)
    at.commit(shard)
    at.submit("job2", (2,), limits=limits)


def test_bytes_of_all_inputs_are_limited(at: Scenario) -> None:
    limits = Limits(max_waiting_bytes=size_of("job1", 2, 2) + size_of("job2", 1))
    at.submit("job1", (2, 2), limits=limits)
    error = refused(at, "job2", (2,), tenant="bob", limits=limits)
    assert f"{size_of('job1', 2, 2)} bytes of inputs wait, 2 inputs were sent" in str(error)
    assert "(MAX_WAITING_BYTES)" in str(error)
    at.submit("job2", (1,), tenant="bob", limits=limits)


@pytest.mark.parametrize("staged", [0, 1, 2])
def test_bytes_that_come_with_the_job_count_as_those_before(at: Scenario, staged: int) -> None:
    shards, limit = shards_of("job1", (2, 2)), size_of("job1", 2, 2)
    for most, fits in ((limit - 1, False), (limit, True)):
        if shards[:staged]:
            at.ledger.stage("job1", shards[:staged])
        refuses = contextlib.nullcontext() if fits else pytest.raises(RequestTooLarge)
        with refuses:
            limits = Limits(max_waiting_bytes=most)
            at.ledger.submit(at.new_job("job1", (2, 2)), shards[staged:], max_waiting_inputs=100, limits=limits)
        assert bool(at.all_keys()) == fits


@pytest.mark.parametrize(
    ("limits", "limit", "says"),
    [
        (Limits(max_tenant_inputs=3), 100, "the limit is 3 (MAX_TENANT_INPUTS)"),
        (Limits(max_waiting_bytes=20), 100, "the limit is 20 (MAX_WAITING_BYTES)"),
        (Limits(), 3, "the limit is 3 (MAX_WAITING_INPUTS)"),
    ],
)
def test_job_that_never_fits_is_not_asked_to_come_again(at: Scenario, limits: Limits, limit: int, says: str) -> None:
    for waiting in (False, True):
        if waiting:
            at.submit("waits", (1,))
        with pytest.raises(RequestTooLarge) as caught:
            at.submit("job", (2, 2), limits=limits, limit=limit)
        assert str(caught.value) == f"a job of 4 inputs is more than may wait at all: {says}"


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        (Limits(max_tenant_inputs=6), 1),  # 6 wait, 2 come, at 2 a second
        (Limits(max_tenant_jobs=1), 3),  # one of 6 inputs has to end
        (Limits(max_waiting_bytes=size_of("job1", 6) + 1), 2),  # a byte is left, about three inputs have to end
    ],
)
def test_time_to_come_again_follows_from_the_rate(at: Scenario, limits: Limits, seconds: int) -> None:
    at.report("w1", inputs_per_second=2.0)
    at.submit("job1", (6,))
    assert refused(at, "job2", (2,), limits=limits).retry_after_seconds == seconds


def test_room_is_asked_for_without_writing(at: Scenario) -> None:
    limits = Limits(max_tenant_jobs=1, max_tenant_inputs=4)
    at.ledger.require_room("alice", max_waiting_inputs=10, limits=limits)
    assert at.all_keys() == set()
    at.submit("job1", (2,), limits=limits)
    before = at.snapshot()
    at.ledger.require_room("bob", max_waiting_inputs=10, limits=limits)
    with pytest.raises(BacklogFull, match="1 of your jobs are not over, the limit is 1"):
        at.ledger.require_room("alice", max_waiting_inputs=10, limits=limits)
    with pytest.raises(BacklogFull, match="2 inputs wait, the limit is 2"):
        at.ledger.require_room("bob", max_waiting_inputs=2, limits=limits)
    assert at.snapshot() == before


# What a minute allows ---------------------------------------------------------------------------------------------------


def test_requests_are_granted_up_to_the_limit_and_come_back_evenly(at: Scenario) -> None:
    started = time.monotonic()
    allowed = [at.ledger.spend("requests", "alice", 3, 1) for _ in range(4)]
    assert [allowance.wait_seconds > 0 for allowance in allowed] == [False, False, False, True]
    assert [allowance.remaining for allowance in allowed] == [2, 1, 0, 0]
    assert allowed[0].limit == 3
    passed = time.monotonic() - started
    assert allowed[0].reset_seconds == pytest.approx(20, abs=passed + 0.1)
    assert allowed[3].reset_seconds == pytest.approx(60, abs=passed + 0.1)
    assert allowed[3].wait_seconds == pytest.approx(20, abs=passed + 0.1)
    assert at.ledger.spend("requests", "bob", 3, 1).remaining == 2
    assert at.ledger.spend("inputs", "alice", 3, 1).remaining == 2
    assert 0 < at.redis.pttl(at.key("rate", "requests", "alice")) <= 60_000


def test_what_is_back_is_granted_and_nothing_stays_in_redis(at: Scenario) -> None:
    most = 6000  # one in 10 ms
    for _ in range(5):
        at.ledger.spend("requests", "alice", most, 1)
    wait_for(lambda: at.all_keys() == set(), seconds=5, what="the end of the key")
    assert at.ledger.spend("requests", "alice", most, 0).remaining == most


def test_looking_costs_nothing_and_writes_nothing(at: Scenario) -> None:
    assert at.ledger.spend("requests", "alice", 5, 0).remaining == 5
    assert at.all_keys() == set()


def test_high_rates_are_exact(at: Scenario) -> None:
    allowance = at.ledger.spend("inputs", "alice", 10**8, 12_345_678)
    assert allowance.remaining == 10**8 - 12_345_678


def test_inputs_of_a_minute_are_limited_and_a_refused_job_costs_nothing(at: Scenario) -> None:
    limits = Limits(max_tenant_inputs_per_minute=5)
    at.submit("job1", (3,), limits=limits)
    with pytest.raises(RateLimited) as caught:
        at.submit("job2", (4,), limits=limits)
    assert "5 inputs a minute (MAX_TENANT_INPUTS_PER_MINUTE), 4 were sent; try again in" in str(caught.value)
    assert caught.value.retry_after_seconds == pytest.approx(24, abs=2)
    assert not [name for name in at.all_keys() if "job2" in name]
    at.submit("job3", (2,), limits=limits)
    at.submit("job4", (5,), tenant="bob", limits=limits)


def test_repeated_submit_costs_once(at: Scenario) -> None:
    limits = Limits(max_tenant_inputs_per_minute=5)
    for _ in range(3):
        at.submit("job1", (3,), limits=limits, idempotency_key="k", body_digest="d")
    assert at.submit("job2", (3,), limits=limits, idempotency_key="k", body_digest="d") == ("job1", False)


def test_job_of_more_than_a_minute_is_taken_when_nothing_was_sent_and_paid_off(at: Scenario) -> None:
    limits = Limits(max_tenant_inputs_per_minute=5)
    at.submit("job1", (20,), limits=limits)
    with pytest.raises(RateLimited) as caught:
        at.submit("job2", (1,), limits=limits)
    assert caught.value.retry_after_seconds == 120, "never longer, though it takes 192 s"
    assert at.ledger.spend("inputs", "alice", 5, 0).remaining == 0


def test_without_limits_nothing_is_kept_of_rates(at: Scenario) -> None:
    at.submit("job1", (2,))
    assert not [name for name in at.all_keys() if ":rate:" in name]
