"""Jobs that may go to either queue follow the workers; what was in flight follows its job."""

import pytest

from core.jobs import JobStatus, Lane
from core.ledger import ClaimedShard, QueueState
from tests.ledger.scenario import PREFIX, Scenario, bytes_of, names
from tests.processes import wait_for


@pytest.fixture
def both(at: Scenario) -> Scenario:
    """A worker of each queue lives."""
    at.report("c1", ("cpu",))
    at.report("g1", ("gpu",))
    return at


def submit_auto(at: Scenario, job_id: str = "job", counts: tuple[int, ...] = (2, 2), **fields: object) -> None:
    at.submit(job_id, counts, **({"queue": "gpu", "moves": True} | fields))


def gpu_goes(at: Scenario) -> None:
    at.ledger.retire("g1", ["gpu"])


def gpu_comes(at: Scenario) -> None:
    at.report("g1", ("gpu",))


def waits_in(at: Scenario) -> dict[str, int]:
    return {queue: at.waiting(queue) for queue in ("cpu", "gpu")}


def state_of(at: Scenario, queue: str) -> QueueState:
    return at.ledger.queue_states([queue])[0]


# To and fro -----------------------------------------------------------------------------------------------------------


def test_waiting_work_goes_to_cpu_with_the_last_gpu_worker_and_back_with_the_first(both: Scenario) -> None:
    submit_auto(both)
    both.report("g2", ("gpu",))
    gpu_goes(both)
    both.ledger.move("c1")
    assert (both.job().queue, waits_in(both)) == ("gpu", {"cpu": 0, "gpu": 4})
    both.ledger.retire("g2", ["gpu"])
    both.ledger.move("c1")
    assert (both.job().queue, waits_in(both)) == ("cpu", {"cpu": 4, "gpu": 0})
    gpu_comes(both)
    both.ledger.move("c1")
    assert (both.job().queue, waits_in(both)) == ("gpu", {"cpu": 0, "gpu": 4})
    assert both.commit(*both.claim("g1", "gpu").shards, queue="gpu") == [True, True]
    assert (both.job().status, both.vectors()) == (JobStatus.SUCCEEDED, [0, 1, 2, 3])


def test_job_of_another_model_stays_with_its_workers(both: Scenario) -> None:
    both.report("c2", ("cpu.large",))
    both.report("g2", ("gpu.large",))
    submit_auto(both)
    submit_auto(both, "other", queue="gpu.large")
    both.ledger.retire("g2", ["gpu.large"])
    both.ledger.move("c1")
    assert (both.job().queue, both.job("other").queue) == ("gpu", "gpu.large"), "they are no workers of its model"
    both.ledger.move("c2", "cpu.large")
    assert (both.job().queue, both.job("other").queue) == ("gpu", "cpu.large")
    assert (both.waiting("gpu"), both.waiting("gpu.large"), both.waiting("cpu.large")) == (4, 0, 4)
    claimed = both.claim("c2", "cpu.large").shards
    assert {shard.job_id for shard in claimed} == {"other"}
    both.ledger.release("cpu.large", "c2", claimed)
    both.report("g2", ("gpu.large",))
    both.ledger.move("c2", "cpu.large")
    assert both.job("other").queue == "gpu.large"
    gpu_goes(both)
    both.ledger.move("g2", "gpu.large")
    assert (both.job().queue, both.job("other").queue) == ("gpu", "gpu.large")
    both.ledger.remove("other", "alice")
    assert both.waiting("gpu.large") == 0


def test_worker_whose_report_ran_out_is_gone(both: Scenario) -> None:
    submit_auto(both)
    both.report("g1", ("gpu",), lifetime_seconds=0.05)
    wait_for(lambda: both.ledger.move("c1") == 0 and both.job().queue == "cpu", seconds=5)


def test_job_sent_while_no_gpu_worker_lived_goes_to_the_first_that_comes(both: Scenario) -> None:
    submit_auto(both, queue="cpu")
    gpu_goes(both)
    both.ledger.move("c1")
    assert both.job().queue == "cpu"
    gpu_comes(both)
    both.ledger.move("c1")
    assert both.claim("g1", "gpu").shards


@pytest.mark.parametrize("queue", ["cpu", "gpu"])
def test_named_queue_is_kept_whoever_lives_and_shows_that_it_stalls(at: Scenario, queue: str) -> None:
    other = {"cpu": "gpu", "gpu": "cpu"}[queue]
    at.submit("job", (2,), queue=queue)
    at.report("w1", (other,))
    at.ledger.move("c1")
    assert (at.job().queue, at.waiting(queue)) == (queue, 2)
    assert [state_of(at, name).stalled for name in (queue, other)] == [True, False]
    at.report("w2", (queue,))
    assert not state_of(at, queue).stalled


@pytest.mark.parametrize("queue", ["cpu", "gpu"])
def test_work_stays_where_it_is_while_nobody_lives(at: Scenario, queue: str) -> None:
    """A gpu worker that is alone and starts again must not find its work with workers that do not exist."""
    submit_auto(at, queue=queue)
    at.ledger.move("c1")
    assert at.job().queue == queue
    assert at.claim("w1", queue).shards


def test_move_that_finds_nothing_to_do_changes_nothing(both: Scenario) -> None:
    submit_auto(both)
    gpu_goes(both)
    both.ledger.move("c1")
    before = {name: both.redis.dump(name) for name in both.all_keys()}
    assert both.ledger.move("c1") == 0
    assert {name: both.redis.dump(name) for name in both.all_keys()} == before


# Order and fairness ---------------------------------------------------------------------------------------------------


def test_jobs_keep_their_order_their_lanes_and_the_turns_of_their_tenants(both: Scenario) -> None:
    for n, tenant in enumerate(["alice", "alice", "bob"]):
        submit_auto(both, f"job{n}", (1, 1), tenant=tenant)
    submit_auto(both, "fast", (1,), lane=Lane.INTERACTIVE)
    gpu_goes(both)
    both.ledger.move("c1")
    assert (both.waiting("cpu", Lane.INTERACTIVE), both.waiting("cpu")) == (1, 6)
    assert [shard.job_id for shard in both.claim("c1").shards] == ["fast"]
    order = ["job0", "job2", "job0", "job2", "job1", "job1"]
    assert [shard.job_id for shard in both.claim("c1").shards] == order


def test_moved_jobs_line_up_behind_those_that_wait_there(both: Scenario) -> None:
    submit_auto(both, "auto", (1,))
    both.submit("here", (1,))
    both.submit("bobs", (1,), tenant="bob")
    gpu_goes(both)
    both.ledger.move("c1")
    assert [shard.job_id for shard in both.claim("c1").shards] == ["here", "bobs", "auto"]


def test_jobs_that_stay_keep_their_places(both: Scenario) -> None:
    for n in range(3):
        both.submit(f"named{n}", (1,), queue="gpu")
        submit_auto(both, f"auto{n}", (1,))
    gpu_goes(both)
    both.ledger.move("c1")
    assert both.strings("line", "gpu", "bulk", "alice") == ["named0", "named1", "named2"]
    assert both.strings("line", "cpu", "bulk", "alice") == ["auto0", "auto1", "auto2"]


def test_one_call_moves_a_hundred_jobs_and_tells_how_many_are_left(both: Scenario) -> None:
    for n in range(230):
        submit_auto(both, f"job{n:03}", (1,), tenant=f"tenant{n % 3}")
    gpu_goes(both)
    assert [both.ledger.move("c1") for _ in range(4)] == [130, 30, 0, 0]
    assert waits_in(both) == {"cpu": 230, "gpu": 0}
    assert both.strings("line", "cpu", "bulk", "tenant0") == [f"job{n:03}" for n in range(0, 230, 3)]
    assert both.ledger.counters()["moved:cpu"] == 230


def test_one_worker_moves_at_a_time(both: Scenario) -> None:
    for n in range(110):
        submit_auto(both, f"job{n}", (1,))
    gpu_goes(both)
    assert [both.ledger.move(worker) for worker in ("c1", "c2", "c1", "c2")] == [10, 0, 0, 0]
    assert waits_in(both) == {"cpu": 110, "gpu": 0}


def test_worker_that_died_while_it_moved_jobs_is_followed_by_another(both: Scenario) -> None:
    for n in range(110):
        submit_auto(both, f"job{n}", (1,))
    gpu_goes(both)
    assert both.ledger.move("c1") == 10
    assert 0 < both.redis.pttl(both.key("moving")) <= 1000
    both.redis.delete(both.key("moving"))
    assert both.ledger.move("c2") == 0
    assert waits_in(both) == {"cpu": 110, "gpu": 0}


def test_one_call_moves_fewer_where_each_is_far_back_in_its_line(both: Scenario) -> None:
    slow = "Fake" in type(both.redis).__name__
    ahead, left = (50, 0) if slow else (400, 39)
    for n in range(ahead):
        both.submit(f"named{n}", (1,), queue="gpu")
    for n in range(90):
        submit_auto(both, f"auto{n:02}", (1,))
    gpu_goes(both)
    assert [both.ledger.move("c1") for _ in range(3)] == [left, 0, 0]
    assert both.strings("line", "cpu", "bulk", "alice") == [f"auto{n:02}" for n in range(90)]
    assert waits_in(both) == {"cpu": 90, "gpu": ahead}


# What is in flight ----------------------------------------------------------------------------------------------------


def moved_under_lease(at: Scenario, counts: tuple[int, ...] = (2, 2)) -> ClaimedShard:
    """A shard that a gpu worker holds while its job has gone to cpu."""
    submit_auto(at, "job0", counts)
    shard = at.claim_one("g1", "gpu")
    gpu_goes(at)
    at.ledger.move("c1")
    assert at.job("job0").queue == "cpu"
    return shard


def test_shard_in_flight_stays_with_its_worker(both: Scenario) -> None:
    shard = moved_under_lease(both)
    assert waits_in(both) == {"cpu": 2, "gpu": 0}
    assert names(both.claim("c1").shards) == [("job0", "2+2")]
    assert both.extend(shard, worker="g1", queue="gpu") == [True]
    assert both.commit(shard, queue="gpu") == [True]


def test_job_that_is_all_in_flight_moves_as_well(both: Scenario) -> None:
    shard = moved_under_lease(both, (2,))
    assert waits_in(both) == {"cpu": 0, "gpu": 0}
    assert both.claim("c1").shards == ()
    both.release(shard, worker="g1", queue="gpu")
    assert names(both.claim("c1").shards) == [("job0", "0+2")]


def test_shard_that_is_given_back_goes_where_its_job_is(both: Scenario) -> None:
    shard = moved_under_lease(both)
    both.release(shard, worker="g1", queue="gpu")
    assert waits_in(both) == {"cpu": 4, "gpu": 0}
    assert names(both.claim("c1").shards) == [("job0", "0+2"), ("job0", "2+2")]


def test_lease_of_a_dead_gpu_worker_follows_its_job(both: Scenario) -> None:
    shard = moved_under_lease(both)
    both.expire_leases("gpu")
    both.ledger.move("c1")
    assert waits_in(both) == {"cpu": 4, "gpu": 0}
    claim = both.claim("c1")
    assert (names(claim.shards), claim.alone, claim.shards[0].attempt) == ([("job0", "0+2")], True, 2)
    assert both.commit(shard, queue="gpu") == [False]
    assert both.commit(*claim.shards) == [True]


def test_lease_of_a_dead_cpu_worker_follows_its_job_back(both: Scenario) -> None:
    submit_auto(both, "job0", (2, 2), queue="cpu")
    both.claim_one("c1")
    both.ledger.move("c1")
    both.ledger.retire("c1", ["cpu"])
    both.expire_leases("cpu")
    both.ledger.move("c1")
    claim = both.claim("g1", "gpu")
    assert (names(claim.shards), claim.alone) == ([("job0", "0+2")], True)


def test_lease_that_ran_out_is_left_to_the_workers_of_its_queue_while_there_are_any(both: Scenario) -> None:
    submit_auto(both, "job0", (2,))
    shard = both.claim_one("g1", "gpu")
    both.expire_leases("gpu")
    both.ledger.move("c1")
    assert both.extend(shard, worker="g1", queue="gpu") == [True]


def test_lease_of_a_job_that_stays_waits_in_its_queue(both: Scenario) -> None:
    both.submit("job", (2,), queue="gpu")
    both.claim("g1", "gpu")
    gpu_goes(both)
    both.expire_leases("gpu")
    both.ledger.move("c1")
    assert (both.strings("suspects", "gpu"), state_of(both, "gpu").stalled) == (["job/0+2"], True)


def test_lease_that_the_other_queue_recovers_goes_where_its_job_is(both: Scenario) -> None:
    moved_under_lease(both)
    both.expire_leases("gpu")
    gpu_comes(both)
    assert both.claim("g1", "gpu").shards == ()
    assert both.strings("suspects", "cpu") == ["job0/0+2"]
    both.ledger.move("c1")
    assert both.claim("g1", "gpu").alone


def test_suspects_move_and_those_of_jobs_that_stay_do_not(both: Scenario) -> None:
    both.submit("job0", (1, 1), queue="gpu")
    submit_auto(both, "job1", (1, 1, 2), tenant="bob")
    assert len(both.claim("g1", "gpu", max_bytes=4 * bytes_of(1)).shards) == 4
    gpu_goes(both)
    both.expire_leases("gpu")
    both.ledger.move("c1")
    assert both.strings("suspects", "gpu") == ["job0/0+1", "job0/1+1"]
    assert both.strings("suspects", "cpu") == ["job1/0+1", "job1/1+1"]
    assert waits_in(both) == {"cpu": 4, "gpu": 2}


def test_suspect_that_is_divided_after_its_job_moved_goes_there(both: Scenario) -> None:
    moved_under_lease(both, (2,))
    both.expire_leases("gpu")
    both.ledger.move("c1")
    suspect = both.claim_one("c1")
    gpu_comes(both)
    both.ledger.move("c1")
    assert both.ledger.divide("cpu", suspect)
    assert (both.strings("suspects", "gpu"), waits_in(both)) == (["job0/0+1", "job0/1+1"], {"cpu": 0, "gpu": 2})


def test_cancel_drops_leases_in_both_queues(both: Scenario) -> None:
    shards = [moved_under_lease(both, (1, 1, 1)), both.claim_one("c1")]
    gpu_comes(both)
    both.ledger.move("c1")
    assert both.ledger.remove("job0", "alice") is not None
    assert both.strings("leases", "cpu") == both.strings("leases", "gpu") == []
    assert [both.commit(shard, queue=queue) for shard, queue in zip(shards, ["gpu", "cpu"], strict=True)] == [[False], [False]]


@pytest.mark.parametrize("end", ["commit", "cancel"])
def test_ended_job_moves_no_more(both: Scenario, end: str) -> None:
    submit_auto(both, counts=(2,))
    if end == "commit":
        both.commit(*both.claim("g1", "gpu").shards, queue="gpu")
    else:
        both.ledger.remove("job", "alice")
    gpu_goes(both)
    assert both.ledger.move("c1") == 0
    assert both.job().queue == "gpu"
    assert f"{PREFIX}auto:gpu" not in both.all_keys()


def test_counts_hold_where_some_inputs_have_ended(both: Scenario) -> None:
    submit_auto(both, counts=(2, 3, 4))
    both.commit(both.claim_one("g1", "gpu"), queue="gpu", failed=[1])
    both.claim_one("g1", "gpu")
    gpu_goes(both)
    both.ledger.move("c1")
    assert waits_in(both) == {"cpu": 4, "gpu": 0}


# Messages -------------------------------------------------------------------------------------------------------------


def test_message_is_wanted_where_the_work_went_and_not_where_it_was(both: Scenario) -> None:
    submit_auto(both)
    for queue in ("cpu", "gpu"):
        both.forget_message(queue)
    gpu_goes(both)
    both.ledger.move("c1")
    assert both.ledger.wants_wake("cpu")
    assert not both.ledger.wants_wake("gpu")
