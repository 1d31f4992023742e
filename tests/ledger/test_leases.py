"""Leases: renewed, given back, run out; and what happens to the shards that were in flight then."""

import time
from dataclasses import replace

import pytest

from core.jobs import JobStatus, Lane
from core.ledger import ClaimedShard
from core.recovery import Step, next_step
from core.sharding import Span
from tests.ledger.scenario import Scenario, bytes_of, names
from tests.processes import wait_for

# Extend --------------------------------------------------------------------------------------------------------------


def test_extended_lease_outlives_its_first_time(at: Scenario) -> None:
    at.submit("job", (1,))
    shard = at.claim_one(lease_seconds=0.05)
    assert at.extend(shard) == [True]
    time.sleep(0.06)
    assert at.claim("w2").shards == ()
    assert at.commit(shard) == [True]


def test_lease_that_ran_out_but_that_nobody_took_is_renewed(at: Scenario) -> None:
    at.submit("job", (1,))
    shard = at.claim_one()
    at.expire_leases()
    assert at.extend(shard) == [True]
    assert at.claim("w2").shards == ()


def test_extend_tells_for_each_shard_whether_it_is_still_held(at: Scenario) -> None:
    for n in range(4):
        at.submit(f"job{n}", (1,))
    committed, cancelled, stolen, mine = at.claim().shards
    at.commit(committed)
    at.ledger.remove(cancelled.job_id, "alice")
    assert at.extend(committed, cancelled, replace(stolen, attempt=2), mine) == [False, False, False, True]


def test_look_tells_what_is_still_held_and_whether_interactive_work_waits(at: Scenario) -> None:
    at.submit("job1", (1, 1))
    at.submit("job2", (1,))
    shards = at.claim().shards
    assert at.look(*shards) == (False, [True, True, True])
    at.ledger.remove("job2", "alice")
    at.commit(shards[0])
    at.submit("fast", (1,), lane=Lane.INTERACTIVE)
    at.submit("other", (1,), lane=Lane.INTERACTIVE, queue="gpu")
    assert at.look(*shards) == (True, [False, True, False])
    at.claim("w3", lane=Lane.INTERACTIVE)
    assert at.look(*shards) == (False, [False, True, False])


def test_shard_that_was_taken_back_cannot_be_extended(at: Scenario) -> None:
    at.submit("job", (1,))
    late = at.claim_one("w1")
    at.expire_leases()
    at.claim("w2", lane=Lane.INTERACTIVE)  # recovers the shard, takes nothing
    assert at.extend(late) == [False]
    assert at.claim("w2").alone


def test_extend_by_a_worker_that_lost_its_shard_leaves_the_new_lease_alone(at: Scenario) -> None:
    at.submit("job", (1,))
    late = at.claim_one("w1")
    at.expire_leases()
    at.claim_one("w2")
    at.expire_leases()
    before = at.redis.zrange(at.key("leases", "cpu"), 0, -1, withscores=True)
    assert at.extend(late) == [False]
    assert at.redis.zrange(at.key("leases", "cpu"), 0, -1, withscores=True) == before


# Expiry --------------------------------------------------------------------------------------------------------------


def test_lease_runs_out_by_itself(at: Scenario) -> None:
    at.submit("job", (1,))
    first = at.claim_one("w1", lease_seconds=0.05)
    again = wait_for(lambda: at.claim("w2").shards, seconds=5)[0]
    assert (again.span, again.attempt) == (first.span, 2)


def test_shards_in_flight_when_a_worker_died_come_alone(at: Scenario) -> None:
    at.submit("job0", (2, 2, 2))
    assert len(at.claim("w1", max_bytes=2 * bytes_of(2)).shards) == 2
    at.expire_leases()
    claims = [at.claim("w2") for _ in range(4)]
    assert [(names(claim.shards), claim.alone) for claim in claims] == [
        ([("job0", "0+2")], True),
        ([("job0", "2+2")], True),
        ([("job0", "4+2")], False),
        ([], False),
    ]
    assert [shard.attempt for claim in claims for shard in claim.shards] == [2, 2, 1]
    assert at.ledger.counters()["recovered"] == 2


def test_worker_that_holds_shards_gets_no_suspect(at: Scenario) -> None:
    at.submit("job", (2,))
    at.claim_one("w1")
    at.expire_leases()
    assert at.claim("w2", lane=Lane.INTERACTIVE).shards == ()
    assert at.claim("w2").alone


def test_recovered_shards_wait_again(at: Scenario) -> None:
    at.submit("job", (2, 3))
    at.claim()
    assert at.waiting() == 0
    at.expire_leases()
    at.claim("w2", lane=Lane.INTERACTIVE)
    assert at.waiting() == 5
    state = at.ledger.queue_states(["cpu"])[0]
    assert (state.suspects, state.running) == (2, 0)


def test_more_expired_leases_than_one_claim_looks_at_are_all_recovered(at: Scenario) -> None:
    at.submit("job", (1,) * 120)
    at.claim()
    at.expire_leases()
    taken = [at.claim_one("w2") for _ in range(120)]
    assert {shard.attempt for shard in taken} == {2}
    assert at.commit(*taken) == [True] * 120
    assert at.vectors() == list(range(120))


def test_expired_lease_of_a_deleted_job_is_forgotten(at: Scenario) -> None:
    at.submit("job", (1,))
    at.redis.zadd(at.key("leases", "cpu"), {"gone/0+1": 1})
    at.redis.rpush(at.key("suspects", "cpu"), "gone/1+1")
    assert names(at.claim().shards) == [("job", "0+1")]
    assert at.strings("leases", "cpu") == ["job/0+1"]


# Deaths that are held against a shard ----------------------------------------------------------------------------------


def lapse(at: Scenario, worker: str = "w1") -> ClaimedShard:
    """The next shard, whose lease runs out."""
    shard = at.claim_one(worker)
    at.expire_leases()
    return shard


def deaths_of_next(at: Scenario) -> tuple[int, int]:
    """What is held against the next shard, and how often it was handed out before."""
    shard = at.claim_one("looks")
    at.release(shard, worker="looks")
    return shard.deaths, shard.attempt - 1


def test_death_in_company_is_held_against_nobody(at: Scenario) -> None:
    at.submit("job", (1, 1))
    at.claim()
    at.expire_leases()
    assert [(at.claim_one("w2").deaths, at.claim_one("w2").deaths)] == [(0, 0)]


def test_death_with_a_shard_alone_is_held_against_it(at: Scenario) -> None:
    at.submit("job", (1,))
    assert [lapse(at).deaths for _ in range(4)] == [0, 0, 1, 2]


def test_shard_that_was_given_back_before_is_no_suspect(at: Scenario) -> None:
    at.submit("job", (1,))
    for _ in range(5):
        at.release(at.claim_one())
    lapse(at)
    assert deaths_of_next(at) == (0, 6)


@pytest.mark.parametrize("sign", ["commit", "extend", "release"])
def test_worker_that_turns_out_to_live_takes_its_death_back(at: Scenario, sign: str) -> None:
    at.submit("job", (1,))
    lapse(at)
    late = lapse(at, "stopped")
    assert deaths_of_next(at) == (1, 2)
    for _ in range(2):
        getattr(at, sign)(late)
    assert deaths_of_next(at)[0] == 0
    lapse(at)
    assert deaths_of_next(at)[0] == 1


def test_worker_may_take_back_its_own_death_only(at: Scenario) -> None:
    at.submit("job", (1,))
    first = lapse(at)
    lapse(at)
    lapse(at)
    at.extend(first)  # it was in company
    at.extend(replace(first, attempt=9))
    assert deaths_of_next(at)[0] == 2


def test_text_that_outlasts_every_lease_comes_to_an_end(at: Scenario) -> None:
    at.submit("job", (1,))
    lapse(at)
    for _ in range(13):
        late = lapse(at)
        at.claim("w2", lane=Lane.INTERACTIVE)
        assert at.extend(late) == [False]
    assert deaths_of_next(at)[0] == 3


def test_hang_is_a_death_that_is_told_at_once(at: Scenario) -> None:
    at.submit("job", (1,))
    lapse(at)
    shard = at.claim_one("hangs")
    told = [at.ledger.hung("cpu", shard.job_id, str(shard.span), shard.attempt) for _ in range(2)]
    assert told == [True, False]
    assert (at.waiting(), at.strings("leases", "cpu"), at.ledger.counters()["hung:cpu"]) == (1, [], 1)
    assert at.ledger.counters()["hangs:cpu"] == 2, "each call counts"
    again = at.claim_one("w2")
    assert (again.deaths, again.hangs) == (1, 1)
    assert (at.extend(shard), at.commit(shard), at.commit(again)) == ([False], [False], [True])


def test_hang_that_is_told_after_the_lease_ran_out_counts_once(at: Scenario) -> None:
    at.submit("job", (1,))
    lapse(at)
    shard = lapse(at, "hangs")
    at.claim("w2", lane=Lane.INTERACTIVE)
    assert at.ledger.hung("cpu", shard.job_id, str(shard.span), shard.attempt)
    again = at.claim_one("w2")
    assert (again.deaths, again.hangs) == (1, 1)


def test_hang_of_a_shard_in_company_is_held_against_nobody(at: Scenario) -> None:
    at.submit("job", (1, 1))
    shard = at.claim().shards[0]
    assert not at.ledger.hung("cpu", shard.job_id, str(shard.span), shard.attempt)
    assert not at.ledger.hung("cpu")
    assert len(at.strings("leases", "cpu")) == 2
    assert at.ledger.counters()["hangs:cpu"] == 2


# Release -------------------------------------------------------------------------------------------------------------


def test_released_shards_go_first_and_in_order_and_in_company(at: Scenario) -> None:
    at.submit("job1", (1, 1, 1))
    at.submit("job2", (1, 1))
    held = at.claim(max_bytes=4 * bytes_of(1)).shards
    assert len(held) == 4
    at.release(*held)
    claim = at.claim()
    assert names(claim.shards)[:4] == names(held)
    assert (claim.alone, {shard.deaths for shard in claim.shards}) == (False, {0})
    assert at.waiting() == 0


def test_released_job_is_lined_up_once(at: Scenario) -> None:
    at.submit("job", (1, 1, 1))
    held = [at.claim_one() for _ in range(3)]
    for shard in held:
        at.release(shard)
    assert at.strings("line", "cpu", "bulk", "alice") == ["job"]
    assert sorted(at.strings("pending", "job")) == ["0+1", "1+1", "2+1"]


def test_released_suspect_stays_a_suspect_and_goes_first(at: Scenario) -> None:
    at.submit("job", (1, 1))
    at.claim()
    at.expire_leases()
    suspect = at.claim_one("w2")
    at.release(suspect, worker="w2")
    claim = at.claim("w3")
    assert claim.alone
    assert (claim.shards[0].span, claim.shards[0].deaths) == (suspect.span, 0)


def test_no_two_claims_of_a_shard_have_the_same_number(at: Scenario) -> None:
    at.submit("job", (1,))
    found = []
    for ending in (at.release, lambda shard: at.expire_leases(), at.release, lambda shard: at.expire_leases(), at.release):
        found.append(at.claim_one())
        ending(found[-1])
    assert [shard.attempt for shard in found] == [1, 2, 3, 4, 5]


def test_part_starts_with_no_attempt(at: Scenario) -> None:
    """Workers of layout 1 take the attempts of an input for its deaths, and would fail it untried."""
    at.submit("job", (2,))
    for _ in range(3):
        lapse(at)
    assert at.ledger.divide("cpu", at.claim_one())
    assert [at.claim_one().attempt for _ in range(2)] == [1, 1]


def test_release_repeated_after_the_next_claim_changes_nothing(at: Scenario) -> None:
    at.submit("job", (1,))
    mine = at.claim_one("w1")
    at.release(mine)
    others = at.claim_one("w2")
    before = at.redis.zrange(at.key("leases", "cpu"), 0, -1, withscores=True)
    at.release(mine)
    assert at.redis.zrange(at.key("leases", "cpu"), 0, -1, withscores=True) == before
    assert (at.waiting(), at.strings("pending", "job"), at.strings("suspects", "cpu")) == (0, [], [])
    assert (at.extend(mine), at.commit(mine), at.commit(others)) == ([False], [False], [True])


def test_repeated_release_changes_nothing(at: Scenario) -> None:
    at.submit("job", (1, 1))
    shard = at.claim_one()
    at.release(shard)
    at.release(shard)
    assert (at.strings("pending", "job"), at.waiting()) == (["0+1", "1+1"], 2)


def test_only_the_holder_can_release(at: Scenario) -> None:
    at.submit("job", (1,))
    late = at.claim_one("w1")
    at.expire_leases()
    current = at.claim_one("w2")
    at.release(late)
    assert at.strings("leases", "cpu") == ["job/0+1"]
    assert at.commit(current) == [True]
    at.release(current)
    assert at.job().status is JobStatus.SUCCEEDED


def test_shard_that_was_taken_back_cannot_be_released(at: Scenario) -> None:
    at.submit("job", (1, 1))
    late = at.claim_one("w1")
    at.expire_leases()
    at.claim("w2", lane=Lane.INTERACTIVE)
    at.release(late)
    assert at.strings("suspects", "cpu") == ["job/0+1"]
    assert at.claim("w2").shards[0].attempt == 2


def test_release_of_a_cancelled_jobs_shard_is_forgotten(at: Scenario) -> None:
    at.submit("job", (1, 1))
    shard = at.claim_one()
    at.ledger.remove("job", "alice")
    at.release(shard)
    assert at.waiting() == 0


def test_released_shard_can_no_longer_be_committed(at: Scenario) -> None:
    at.submit("job", (1,))
    shard = at.claim_one()
    at.release(shard)
    assert at.commit(shard) == [False]
    assert at.extend(shard) == [False]


# Divide --------------------------------------------------------------------------------------------------------------


def died_once(at: Scenario, counts: tuple[int, ...] = (3,)) -> None:
    at.submit("job", counts)
    at.claim("w1")
    at.expire_leases()


def test_divided_shard_comes_back_input_by_input_without_its_deaths(at: Scenario) -> None:
    died_once(at)
    at.claim_one("w2")
    at.expire_leases()
    shard = at.claim_one("w2")
    assert shard.deaths == 1
    assert at.ledger.divide("cpu", shard)
    assert at.waiting() == 3
    claims = [at.claim("w2") for _ in range(3)]
    assert all(claim.alone for claim in claims)
    parts = [claim.shards[0] for claim in claims]
    assert [(part.span, part.inputs, part.deaths) for part in parts] == [(Span(n, 1), (shard.inputs[n],), 0) for n in range(3)]
    assert at.commit(*parts) == [True] * 3
    assert at.job().status is JobStatus.SUCCEEDED
    assert at.vectors() == [0, 1, 2]


def test_divided_shard_itself_can_no_longer_be_committed(at: Scenario) -> None:
    died_once(at)
    shard = at.claim_one("w2")
    at.ledger.divide("cpu", shard)
    assert at.commit(shard) == [False]
    assert at.extend(shard) == [False]
    at.release(shard)
    assert at.waiting() == 3


def test_repeated_divide_changes_nothing(at: Scenario) -> None:
    died_once(at)
    shard = at.claim_one("w2")
    assert [at.ledger.divide("cpu", shard) for _ in range(2)] == [True, False]
    assert at.strings("suspects", "cpu") == ["job/0+1", "job/1+1", "job/2+1"]


@pytest.mark.parametrize("event", ["expired", "cancelled"])
def test_divide_by_a_worker_that_lost_the_shard_does_nothing(at: Scenario, event: str) -> None:
    died_once(at)
    shard = at.claim_one("w2")
    if event == "expired":
        at.expire_leases()
        at.claim_one("w3")
    else:
        at.ledger.remove("job", "alice")
    assert not at.ledger.divide("cpu", shard)
    assert at.strings("suspects", "cpu") == []


def test_text_that_kills_its_workers_fails_alone_after_few_deaths(at: Scenario) -> None:
    most = 3
    at.submit("job", (3, 2))
    committed: list[bool] = []
    deaths = 0
    while shards := at.claim("w2").shards:
        shard = shards[0]
        match next_step(shard.deaths, shard.span.count, most):
            case Step.DIVIDE:
                at.ledger.divide("cpu", shard)
            case Step.FAIL:
                at.commit(shard, failed=[0])
            case Step.RUN if any(item.text.endswith(" 1") for item in shard.inputs):
                deaths += 1
                at.expire_leases()
            case Step.RUN:
                committed += at.commit(*shards)
    job = at.job()
    assert (job.status, job.counts.done, job.counts.failed) == (JobStatus.SUCCEEDED, 4, 1)
    assert [error.index for error in job.errors] == [1]
    assert deaths == most + 2
    assert all(committed)


def test_shard_of_thousands_can_be_divided(at: Scenario) -> None:
    count = 1_000 if "Fake" in type(at.redis).__name__ else 8_192
    died_once(at, (count,))
    assert at.ledger.divide("cpu", at.claim_one("w2"))
    assert at.redis.llen(at.key("suspects", "cpu")) == at.waiting() == count
    assert at.ledger.remove("job", "alice") is not None
