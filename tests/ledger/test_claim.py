"""Claiming: which shards a worker gets, in which order, and how many."""

import time

import pytest

from core.blocks import pack_inputs
from core.jobs import JobOptions, JobStatus, Lane
from core.ledger import Claim
from core.sharding import Input
from tests.ledger.scenario import Scenario, names, shards_of, text_of


def test_claimed_shard_has_what_a_worker_needs(at: Scenario) -> None:
    options = JobOptions(normalize=False, prompt_name="query")
    shards = shards_of("job", (2,))
    at.ledger.stage("job", shards)
    at.ledger.submit(at.new_job("job", (2,), options=options), max_waiting_inputs=100)
    shard = at.claim_one()
    assert (shard.job_id, shard.span, shard.attempt, shard.options) == ("job", shards[0].span, 1, options)
    assert shard.inputs == shards[0].inputs


def test_claimed_shards_have_the_traceparents_of_their_jobs(at: Scenario) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    at.submit("traced", (1, 1), traceparent=traceparent)
    at.submit("job", (1,))
    assert [(shard.job_id, shard.traceparent) for shard in at.claim().shards] == [
        ("traced", traceparent),
        ("traced", traceparent),
        ("job", ""),
    ]


def test_claim_of_an_empty_queue_is_empty(at: Scenario) -> None:
    assert at.claim() == Claim((), lane=None, alone=False, wake=False)


def test_first_claim_starts_the_job(at: Scenario) -> None:
    at.submit("job", (2, 2))
    at.claim_one()
    job = at.job()
    assert job.status is JobStatus.RUNNING
    assert job.started_at is not None
    time.sleep(0.002)
    at.claim_one()
    assert at.job().started_at == job.started_at


def test_shards_come_in_order_of_jobs_and_inputs(at: Scenario) -> None:
    at.submit("job1", (1, 1))
    at.submit("job2", (1,))
    assert names(at.claim().shards) == [("job1", "0+1"), ("job1", "1+1"), ("job2", "0+1")]


def test_queues_do_not_share_work(at: Scenario) -> None:
    at.submit("job1", (1,))
    at.submit("job2", (1,), queue="gpu")
    assert names(at.claim(queue="gpu").shards) == [("job2", "0+1")]


@pytest.mark.parametrize(("budget", "taken"), [(0.5, 1), (1, 1), (1.5, 1), (2, 2), (2.9, 2), (3, 3), (99, 4)])
def test_claim_keeps_to_its_budget_but_takes_one_shard_at_least(at: Scenario, budget: float, taken: int) -> None:
    at.submit("job", (2, 2, 2, 2))
    size = len(pack_inputs(shards_of("job", (2,))[0].inputs))
    assert len(at.claim(max_bytes=int(budget * size)).shards) == taken


def test_shard_over_the_budget_comes_by_itself(at: Scenario) -> None:
    at.ledger.stage("job", [*shards_of("job", (1,))])
    at.ledger.submit(at.new_job("job", (1,)), max_waiting_inputs=100)
    big = shards_of("big", (1,))[0]
    at.ledger.stage("big", [type(big)(big.span, (Input("x" * 10_000),))])
    at.ledger.submit(at.new_job("big", (1,)), max_waiting_inputs=100)
    at.submit("job3", (1,))
    assert [names(at.claim(max_bytes=1000).shards)[0][0] for _ in range(3)] == ["job", "big", "job3"]


def test_claim_takes_a_thousand_shards_at_most(at: Scenario) -> None:
    at.submit("job", (1,) * 1005)
    assert [len(at.claim().shards) for _ in range(3)] == [1000, 5, 0]


def test_interactive_goes_before_bulk_but_for_every_fourth_claim(at: Scenario) -> None:
    at.submit("bulk", (1,) * 8)
    at.submit("fast", (1,) * 8, lane=Lane.INTERACTIVE)
    order = [at.claim_one().job_id for _ in range(16)]
    assert order == (["fast"] * 3 + ["bulk"]) * 2 + ["fast"] * 2 + ["bulk"] * 6


def test_claim_never_mixes_the_lanes(at: Scenario) -> None:
    at.submit("bulk", (1,))
    at.submit("fast", (1,), lane=Lane.INTERACTIVE)
    claims = [at.claim() for _ in range(3)]
    assert [names(claim.shards) for claim in claims] == [[("fast", "0+1")], [("bulk", "0+1")], []]
    assert [claim.lane for claim in claims] == [Lane.INTERACTIVE, Lane.BULK, None]


def test_worker_that_holds_shards_can_ask_for_bulk_alone(at: Scenario) -> None:
    at.submit("bulk", (1,) * 2)
    at.submit("fast", (1,), lane=Lane.INTERACTIVE)
    assert at.claim_one(lane=Lane.BULK).job_id == "bulk"
    at.expire_leases()
    assert (at.claim_one("w2", lane=Lane.BULK).job_id, at.claim("w2", lane=Lane.BULK).shards) == ("bulk", ())
    assert at.claim("w2").alone


def test_interactive_only_leaves_bulk_and_its_quota_alone(at: Scenario) -> None:
    at.submit("bulk", (1,))
    at.submit("fast", (1,) * 5, lane=Lane.INTERACTIVE)
    assert [at.claim_one(lane=Lane.INTERACTIVE).job_id for _ in range(4)] == ["fast"] * 4
    assert at.claim_one().job_id == "fast"
    assert at.claim(lane=Lane.INTERACTIVE).shards == ()
    assert at.claim_one().job_id == "bulk"


def test_tenants_take_turns_shard_by_shard(at: Scenario) -> None:
    at.submit("a1", (1,) * 4)
    at.submit("a2", (1,))
    at.submit("b1", (1,) * 2, tenant="bob")
    at.submit("c1", (1,), tenant="carol")
    assert [shard.job_id for shard in at.claim().shards] == ["a1", "b1", "c1", "a1", "b1", "a1", "a1", "a2"]


def test_turns_go_on_from_claim_to_claim(at: Scenario) -> None:
    at.submit("a1", (1,) * 3)
    at.submit("b1", (1,) * 3, tenant="bob")
    assert [at.claim_one(f"w{n}").job_id for n in range(4)] == ["a1", "b1", "a1", "b1"]


def test_tenant_that_comes_back_waits_for_its_turn(at: Scenario) -> None:
    at.submit("a1", (1,) * 2)
    at.submit("b1", (1,) * 2, tenant="bob")
    at.claim_one()
    at.ledger.remove("a1", "alice")
    at.submit("a2", (1,))
    assert [shard.job_id for shard in at.claim().shards] == ["b1", "a2", "b1"]


def test_cancelled_job_gives_its_place_in_line_to_the_next_of_its_tenant(at: Scenario) -> None:
    for job_id in ("a1", "a2", "a3"):
        at.submit(job_id, (1,))
    at.submit("b1", (1,), tenant="bob")
    at.ledger.remove("a1", "alice")
    at.ledger.remove("a3", "alice")
    assert [shard.job_id for shard in at.claim().shards] == ["a2", "b1"]


def test_tenant_whose_only_job_is_cancelled_leaves_the_turn(at: Scenario) -> None:
    at.submit("a1", (1,))
    at.submit("b1", (1,), tenant="bob")
    at.ledger.remove("a1", "alice")
    assert at.strings("tenants", "cpu", "bulk") == ["bob"]
    assert at.strings("line", "cpu", "bulk", "alice") == []


def test_claim_goes_on_where_the_texts_of_a_job_were_lost(at: Scenario) -> None:
    at.submit("lost", (1,))
    at.submit("next", (1,))
    at.redis.delete(at.key("inputs", "lost"))
    assert names(at.claim().shards) == [("next", "0+1")]
    at.ledger.remove("lost", "alice")
    at.redis.hset(at.key("waiting"), "cpu:bulk", 0)


def test_text_arrives_as_it_was_sent(at: Scenario) -> None:
    text = 'NUL \0, quotes "\\", 𝕏, \u2028, \r\n'
    shard = shards_of("job", (1,))[0]
    at.ledger.stage("job", [type(shard)(shard.span, (Input(text, "id\0"),))])
    at.ledger.submit(at.new_job("job", (1,)), max_waiting_inputs=1)
    assert at.claim_one().inputs == (Input(text, "id\0"),)


def test_every_shard_is_claimed_once_whoever_asks(at: Scenario) -> None:
    at.submit("job", (3,) * 30)
    taken = [at.claim_one(f"w{n % 3}") for n in range(30)]
    assert sorted(item.text for shard in taken for item in shard.inputs) == sorted(text_of("job", n) for n in range(90))
    assert at.claim().shards == ()
    assert at.waiting() == 0
