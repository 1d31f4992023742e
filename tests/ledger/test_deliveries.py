"""An event is recorded with the end of its job, for each target that wants it, and is tried until it is over."""

import json
from typing import Any

import pytest

from core.ledger import DELIVERED, GIVEN_UP, WAITING, Batches, Deliveries, Delivery
from tests.ledger.scenario import PREFIX, Scenario
from tests.ledger.test_batches import BATCH
from tests.ledger.test_batches import submit as submit_batch

ONE, TWO = "one.example#11111111", "two.example:8443#22222222"
WANTED = {"job.succeeded": [ONE, TWO], "job.failed": [ONE]}
WEEK_MS = 7 * 24 * 3600 * 1000


def end(at: Scenario, job_id: str, *, wanted: dict[str, list[str]] = WANTED, **result: Any) -> None:
    at.submit(job_id, (1,), notify=json.dumps(wanted))
    at.commit(at.claim_one(), **result)


def take(at: Scenario, target: str = ONE, lease_seconds: float = 60) -> Delivery | None:
    return Deliveries(at.ledger).take("alice", target, lease_seconds=lease_seconds)


def tried(at: Scenario, delivery: Delivery | None, state: Any, answer: str, **options: float) -> bool:
    assert delivery is not None
    return Deliveries(at.ledger).tried("alice", delivery, state, answer, **options)


def make_due(at: Scenario, job_id: str, target: str = ONE) -> None:
    at.redis.zadd(f"{PREFIX}due:alice:{target}", {f"{job_id}/{target}": 0})


def latest(at: Scenario, tenant: str = "alice") -> list[Delivery]:
    return Deliveries(at.ledger).latest(tenant, 1000)


def test_each_target_gets_the_events_it_wants_and_others_none(at: Scenario) -> None:
    end(at, "job_1")
    end(at, "job_2", failed=[0])
    end(at, "job_3", wanted={"job.cancelled": [ONE]})
    at.submit("job_4", (1,))
    at.ledger.remove("job_4", "alice")
    assert {(found.id, found.event) for found in latest(at)} == {
        (f"job_1/{ONE}", "job.succeeded"),
        (f"job_1/{TWO}", "job.succeeded"),
        (f"job_2/{ONE}", "job.failed"),
    }
    first, other = take(at), take(at, TWO)
    assert first is not None
    assert other is not None
    assert (first.event_id, first.subject, first.tries) == ("evt_1", "job_1", 1)
    assert (other.event_id, other.target) == (first.event_id, TWO)
    assert take(at, TWO) is None


def test_cancelled_job_is_told_and_deleting_it_takes_nothing_back(at: Scenario) -> None:
    at.submit("job_1", (1,), notify=json.dumps({"job.cancelled": [ONE]}))
    at.ledger.remove("job_1", "alice")
    at.ledger.remove("job_1", "alice")
    delivery = take(at)
    assert delivery is not None
    assert delivery.event == "job.cancelled"
    assert tried(at, delivery, DELIVERED, "204")


@pytest.mark.parametrize("event", ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"])
def test_batch_tells_of_its_end_once_and_as_a_batch(at: Scenario, event: str) -> None:
    told = json.dumps({event: [ONE]})
    if event == "batch.failed":
        for _ in range(2):  # its answer may be lost
            Batches(at.ledger).reject("job_1", BATCH, [{"code": "x"}], ttl_seconds=60, notify=told)
    else:
        submit_batch(at, notify=told)
    match event:
        case "batch.completed":
            for _ in range(2):
                at.commit(at.claim_one(), failed=[0, 1])
        case "batch.expired":
            at.redis.zadd(at.key("deadlines"), {"job_1": 1})
            at.ledger.wants_wake("cpu")
        case "batch.cancelled":
            Batches(at.ledger).cancel("batch_1", "alice")
    assert [(found.event, found.subject, found.event_id) for found in latest(at)] == [(event, "batch_1", "evt_1")]
    delivery = take(at)
    assert delivery is not None
    assert delivery.subject == "batch_1"


def test_delivery_is_one_senders_until_its_lease_ends(at: Scenario) -> None:
    end(at, "job_1")
    first = take(at)
    assert take(at) is None
    make_due(at, "job_1")
    second = take(at)
    assert second is not None
    assert second.tries == 2
    assert not tried(at, first, WAITING, "500", retry_seconds=3600), "a later try has begun"
    assert tried(at, first, DELIVERED, "200"), "it has arrived all the same"
    assert not tried(at, second, GIVEN_UP, "410")
    (found,) = [delivery for delivery in latest(at) if delivery.target == ONE]
    assert (found.state, found.answer, found.tries, found.next_try_at) == (DELIVERED, "200", 2, None)
    assert found.ended_at is not None
    assert take(at) is None


def test_failed_try_comes_again_when_its_time_has_come(at: Scenario) -> None:
    end(at, "job_1")
    assert tried(at, take(at), WAITING, "timeout", retry_seconds=3600)
    (found,) = [delivery for delivery in latest(at) if delivery.target == ONE]
    assert (found.state, found.answer, found.tries) == (WAITING, "timeout", 1)
    assert found.next_try_at == pytest.approx(found.created_at + 3600, abs=30)
    assert take(at) is None
    make_due(at, "job_1")
    assert tried(at, take(at), GIVEN_UP, "410")
    assert not tried(at, found, WAITING, "500"), "what was given up stays so"
    make_due(at, "job_1")
    assert take(at) is None


def test_answer_that_was_lost_does_no_harm(at: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    run = at.ledger._run

    def run_twice(*args: object) -> object:
        run(*args)
        return run(*args)

    end(at, "job_1")
    delivery = take(at)
    monkeypatch.setattr(at.ledger, "_run", run_twice)
    tried(at, delivery, WAITING, "500", retry_seconds=0)
    assert [found.tries for found in latest(at) if found.target == ONE] == [1]
    monkeypatch.undo()
    assert tried(at, take(at), DELIVERED, "200")


def test_every_key_goes_by_itself_and_tenants_see_their_own(at: Scenario) -> None:
    end(at, "job_1")
    tried(at, take(at), DELIVERED, "200")
    assert latest(at, "bob") == []
    names = [name for kind in ("delivery", "due", "deliveries") for name in at.redis.keys(f"{PREFIX}{kind}:*")]
    assert len(names) == 4, "two records, one that waits, the log"
    assert all(0 < at.redis.pttl(name) <= WEEK_MS for name in names)
    at.redis.unlink(f"{PREFIX}delivery:job_1/{TWO}")
    assert take(at, TWO) is None, "a record that has expired"
    assert not at.redis.exists(f"{PREFIX}due:alice:{TWO}")


def test_log_keeps_the_last_and_loses_none_that_waits(at: Scenario) -> None:
    wanted = {"job.succeeded": [ONE]}
    end(at, "job_old", wanted=wanted)
    end(at, "job_done", wanted=wanted)
    old = take(at)
    tried(at, take(at), DELIVERED, "200")
    at.redis.zadd(f"{PREFIX}deliveries:alice", {f"x/{n}": 9e12 + n for n in range(998)})
    end(at, "job_new", wanted=wanted)
    assert at.redis.zcard(f"{PREFIX}deliveries:alice") == 1000
    at.redis.zadd(f"{PREFIX}deliveries:alice", {f"x/{n}": 9e12 + n for n in range(998, 999)})
    end(at, "job_newer", wanted=wanted)
    kept = {name.decode() for name in at.redis.zrange(f"{PREFIX}deliveries:alice", 0, -1)}
    assert not kept & {f"job_old/{ONE}", f"job_done/{ONE}"}
    assert not at.redis.exists(f"{PREFIX}delivery:job_done/{ONE}")
    assert tried(at, old, WAITING, "500"), "it is not shown, and still tried"
    make_due(at, "job_old")
    assert tried(at, take(at), DELIVERED, "200")
    assert not at.redis.exists(f"{PREFIX}delivery:job_old/{ONE}"), "and then nothing is left of it"
