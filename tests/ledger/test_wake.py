"""Messages: asked for when work waits and a worker is idle, and never so many that they pile up."""

import json

import pytest

from core.config import Settings
from core.jobs import Lane
from core.ledger import Ledger, connect
from core.queues import EMBED_PENDING, create_celery, send_embed_pending
from tests.ledger.scenario import Scenario
from tests.processes import wait_for


def test_nothing_is_sent_for_an_empty_queue(at: Scenario) -> None:
    at.report("w1")
    assert not at.ledger.wants_wake("cpu")


def test_burst_of_jobs_sends_one_message(at: Scenario) -> None:
    at.report("w1")
    assert [at.submit(f"job{n}")[1] for n in range(5)] == [True, False, False, False, False]
    assert not at.ledger.wants_wake("cpu")


def test_lost_message_is_sent_again_after_a_second(at: Scenario) -> None:
    at.submit()
    assert 0 < at.redis.pttl(at.key("wake", "cpu")) <= 1000
    at.forget_message()
    assert at.ledger.wants_wake("cpu")


def test_message_that_nobody_has_taken_yet_is_enough(at: Scenario) -> None:
    at.submit("job1")
    at.redis.lpush(at.key("celery", "cpu"), "a message")
    at.forget_message()
    assert not at.ledger.wants_wake("cpu")
    assert not at.submit("job2")[1]
    at.redis.delete(at.key("celery", "cpu"))


def test_message_goes_out_while_no_worker_lives(at: Scenario) -> None:
    assert at.submit()[1]


def test_busy_worker_is_not_woken(at: Scenario) -> None:
    at.report("w1")
    at.submit("job", (1, 1))
    assert not at.claim("w1", max_bytes=1).wake
    at.forget_message()
    assert not at.ledger.wants_wake("cpu")
    assert not at.submit("job2")[1]


def test_each_claim_wakes_the_next_idle_worker(at: Scenario) -> None:
    for n in range(3):
        at.report(f"w{n}")
    at.submit("job", (1,) * 10)
    assert [at.claim(f"w{n}", max_bytes=1).wake for n in range(3)] == [True, True, False]


def test_claim_that_leaves_nothing_wakes_nobody(at: Scenario) -> None:
    at.report("w1")
    at.report("w2")
    at.submit("job", (1,))
    assert not at.claim("w1").wake


def test_worker_that_ended_its_drain_is_woken_by_the_next_job(at: Scenario) -> None:
    at.report("w1")
    at.submit("job1", (1,))
    at.claim("w1")
    assert not at.submit("job2", (1,))[1]
    at.claim("w1")
    assert at.claim("w1").shards == ()
    assert not at.release(worker="w1")
    assert at.submit("job3", (1,))[1]


def test_message_that_found_nothing_does_not_hold_up_the_next(at: Scenario) -> None:
    at.report("w1")
    at.report("w2")
    at.submit("job1", (1,))
    at.claim("w1")
    assert at.submit("job2", (1,))[1]
    at.claim("w1")  # takes what w2 was woken for
    assert at.claim("w2").shards == ()
    assert not at.release(worker="w2")
    assert at.submit("job3", (1,))[1]


def test_claim_that_finds_nothing_writes_nothing(at: Scenario) -> None:
    at.report("w1")
    at.finish_job()
    before = at.snapshot()
    for lane in (None, Lane.BULK, Lane.INTERACTIVE):
        assert at.claim("w1", lane=lane).shards == ()
        assert at.look() == (False, [])
    assert at.snapshot() == before


def test_end_of_a_drain_asks_for_a_message_while_work_waits(at: Scenario) -> None:
    at.report("w1")
    at.submit("job", (1, 1))
    shard = at.claim_one("w1")
    at.commit(shard)
    assert at.release(worker="w1")
    at.commit(at.claim_one("w1"))
    assert not at.release(worker="w1")


def test_end_of_a_drain_asks_for_a_message_however_short_it_was(at: Scenario) -> None:
    at.report("w1")
    at.report("w2")
    at.submit("job", (1, 1))
    assert at.claim("w1", max_bytes=1).wake
    assert at.release(worker="w1")


def test_worker_that_stops_hands_its_work_on(at: Scenario) -> None:
    at.report("w1")
    at.submit("job", (1,))
    assert at.release(at.claim_one("w1"), worker="w1")


def test_preempting_claim_that_finds_nothing_leaves_the_worker_busy(at: Scenario) -> None:
    at.report("w1")
    at.submit("job", (1, 1))
    at.claim_one("w1")
    at.claim("w1", lane=Lane.INTERACTIVE)
    at.forget_message()
    assert not at.submit("fast", (1,), lane=Lane.INTERACTIVE)[1]


def test_expired_lease_is_work_that_waits(at: Scenario) -> None:
    at.report("w1")
    at.submit("job", (1,))
    at.claim("w1")
    at.forget_message()
    assert not at.ledger.wants_wake("cpu")
    at.expire_leases()
    assert at.ledger.wants_wake("cpu")


def test_dead_worker_counts_as_busy_no_longer_than_its_leases(at: Scenario) -> None:
    at.report("w1")
    at.submit("job", (1, 1))
    at.claim("w1", max_bytes=1, lease_seconds=0.1)
    at.forget_message()
    assert not at.ledger.wants_wake("cpu")
    wait_for(lambda: at.ledger.wants_wake("cpu"), seconds=2)
    at.claim("w1")


def test_lease_thread_that_comes_late_does_not_make_an_idle_worker_busy(at: Scenario) -> None:
    at.report("w1")
    at.submit("job1", (1,))
    shard = at.claim_one("w1")
    at.commit(shard)
    at.release(worker="w1")
    at.extend(shard, worker="w1")
    assert at.submit("job2", (1,))[1]


def test_lease_thread_keeps_a_busy_worker_busy(at: Scenario) -> None:
    at.report("w1")
    at.submit("job", (1, 1))
    shard = at.claim_one("w1", lease_seconds=1)
    before = at.redis.zscore(at.key("draining", "cpu"), "w1")
    at.extend(shard, worker="w1", lease_seconds=60)
    assert at.redis.zscore(at.key("draining", "cpu"), "w1") > before + 50_000


@pytest.mark.parametrize("leave", ["retire", "expire"])
def test_worker_that_is_gone_is_not_waited_for(at: Scenario, leave: str) -> None:
    at.report("w1")
    at.submit("job", (1, 1, 1))
    at.claim_one("w1")
    at.forget_message()
    if leave == "retire":
        at.ledger.retire("w1", ["cpu"])
    else:
        at.expire_leases()
    assert at.ledger.wants_wake("cpu")


def test_worker_of_two_queues_is_woken_for_either(at: Scenario) -> None:
    at.report("w1", ("gpu", "cpu"))
    at.submit("job1", (1,), queue="gpu")
    at.claim("w1", "gpu")
    assert at.submit("job2", (1,), queue="cpu")[1]


@pytest.mark.integration
def test_messages_are_counted_where_celery_puts_them(redis_url: str) -> None:
    with connect(redis_url, timeout_seconds=5, retries=0) as client, create_celery(Settings(redis_url=redis_url)) as app:
        at = Scenario(client)
        at.ledger = Ledger(client, "vector-api:")
        assert at.submit()[1]
        client.delete("vector-api:wake:cpu")
        send_embed_pending(app, "cpu")
        (message,) = client.lrange("vector-api:celery:cpu", 0, -1)
        assert json.loads(message)["headers"]["task"] == EMBED_PENDING
        assert not at.ledger.wants_wake("cpu")
