"""Everything that can happen to the ledger, in any order, against a small model of who holds what.

The model knows each job's inputs, the holder of each shard, and who is at work. After every step the ledger must agree with it,
and must not contradict itself; in the end a few workers that follow the rules must bring every job to its end, told by
nothing but the messages that the ledger asks for.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import TypeVar

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from core.jobs import JobStatus, Lane
from core.ledger import Claim, ClaimedShard, connect
from core.recovery import Step, next_step
from tests.ledger.scenario import PERMANENT, QUEUES, Keys, Scenario
from tests.processes import wait_for

QUICK = settings(
    max_examples=20,
    stateful_step_count=50,
    deadline=None,  # the machine may be busy
    suppress_health_check=list(HealthCheck),
    phases=[Phase.reuse, Phase.generate, Phase.shrink],
)

WORKERS = ("w1", "w2", "w3")
TENANTS = ("alice", "bob")
MAX_ATTEMPTS = 3
MOST_EXCUSED = 10

queues, workers, picks = st.sampled_from(QUEUES), st.sampled_from(WORKERS), st.integers(0, 99)

Name = tuple[str, str]
"""Job and span of a shard."""
Held = tuple[str, str, ClaimedShard]
"""A worker, a queue, and a shard that the worker took from it."""
T = TypeVar("T")


def chosen(things: Sequence[T], pick: int) -> T:
    return things[pick % len(things)]


def name_of(shard: ClaimedShard) -> Name:
    return shard.job_id, str(shard.span)


class AnyOrder(RuleBasedStateMachine):
    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.client.flushdb()
        self.at = Scenario(self.client)
        self.submitted = 0
        self.tenants: dict[str, str] = {}
        self.totals: dict[str, int] = {}
        self.committed: dict[str, int] = {}
        self.ended: dict[str, dict[str, str]] = {}
        self.beliefs: list[Held] = []
        """What workers believe to hold; one that was stopped for a while is wrong."""
        self.holders: dict[Name, tuple[str, int]] = {}
        """Who holds a shard in truth, and at which attempt."""
        self.attempts: dict[Name, int] = {}
        self.fates: dict[Name, dict[int, str]] = {}
        """How the attempts at each suspect ended."""
        self.expired: dict[str, set[Name]] = {queue: set() for queue in QUEUES}
        self.busy: dict[str, set[str]] = {queue: set() for queue in QUEUES}
        self.bell = self.client.pubsub()
        self.listens = dict.fromkeys(QUEUES, False)
        self.live = dict.fromkeys(QUEUES, True)
        """Whether the workers report themselves; those that do not may work all the same."""
        self.places: dict[str, str] = {}
        """The queue of each job."""
        self.movable: set[str] = set()
        for worker in WORKERS:
            self.at.report(worker, QUEUES)
        self.look()

    # Clients ----------------------------------------------------------------------------------------------------------

    @rule(
        queue=queues,
        lane=st.sampled_from(Lane),
        tenant=st.sampled_from(TENANTS),
        counts=st.lists(st.integers(1, 3), min_size=1, max_size=4),
        repeated=st.booleans(),
        moves=st.booleans(),
    )
    def submit(self, queue: str, lane: Lane, tenant: str, counts: list[int], repeated: bool, moves: bool) -> None:
        job_id = f"job{self.submitted}"
        self.submitted += 1
        fields = {"queue": queue, "lane": lane, "tenant": tenant, "moves": moves}
        fields |= {"idempotency_key": f"k{self.submitted}", "body_digest": "d"}
        for _ in range(1 + repeated):
            accepted, wake = self.at.submit(job_id, counts, **fields)
            assert accepted == job_id
            self.message_if(wake, queue)
        self.tenants[job_id] = tenant
        self.totals[job_id] = sum(counts)
        self.committed[job_id] = 0
        self.places[job_id] = queue
        if moves:
            self.movable.add(job_id)

    @rule(count=st.integers(1, 3))
    def stage_only(self, count: int) -> None:
        self.at.stage("abandoned", [count])

    @precondition(lambda self: self.tenants)
    @rule(pick=picks)
    def cancel_or_delete(self, pick: int) -> None:
        job_id = chosen(list(self.tenants), pick)
        ended = job_id in self.ended
        assert (self.at.ledger.remove(job_id, self.tenants[job_id]) is None) == ended
        for name in [name for name in {*self.holders, *self.fates} if name[0] == job_id]:
            self.end(name)
        if ended:
            self.forget(job_id)

    @precondition(lambda self: self.tenants)
    @rule(pick=picks)
    def drop(self, pick: int) -> None:
        job_id = chosen(list(self.tenants), pick)
        self.at.ledger.drop([(job_id, self.tenants[job_id])])
        for name in [name for name in self.holders if name[0] == job_id]:
            self.let_go(name)
        self.forget(job_id)

    @precondition(lambda self: self.ended)
    @rule(pick=picks)
    def expire_result(self, pick: int) -> None:
        job_id = chosen(list(self.ended), pick)
        self.at.expire_job(job_id)
        self.at.ledger.jobs(self.tenants[job_id])  # it leaves the indexes with the next look at them
        self.forget(job_id)

    def forget(self, job_id: str) -> None:
        assert self.at.ledger.status(job_id) is None
        for known in (self.tenants, self.totals, self.committed, self.places):
            del known[job_id]
        self.ended.pop(job_id, None)
        self.movable.discard(job_id)

    # Workers ----------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.queues_with_work())
    @rule(worker=workers, pick=picks, max_bytes=st.sampled_from([1, 60, 120, 10**9]), lane=st.sampled_from([None, None, *Lane]))
    def claim(self, worker: str, pick: int, max_bytes: int, lane: Lane | None) -> None:
        queue = chosen(self.queues_with_work(), pick)
        self.hand_out(worker, queue, max_bytes, lane=lane)

    @rule(worker=workers, queue=queues)
    def claim_at_random(self, worker: str, queue: str) -> None:
        self.hand_out(worker, queue, 10**9)

    def queues_with_work(self) -> list[str]:
        waiting = dict(self.keys.of("waiting"))
        lanes = {queue: [waiting.get(f"{queue}:{lane}", "0") for lane in Lane] for queue in QUEUES}
        return [queue for queue in QUEUES if self.expired[queue] or any(map(int, lanes[queue]))]

    def hand_out(self, worker: str, queue: str, max_bytes: int, *, lane: Lane | None = None) -> Claim:
        claim = self.at.claim(worker, queue, max_bytes=max_bytes, lane=lane)
        self.lapse(queue)
        for shard in claim.shards:
            name = name_of(shard)
            assert name not in self.holders, "a shard was handed out twice"
            assert shard.attempt > self.attempts.get(name, 0), "a fence came twice"
            assert claim.alone == (name in self.fates), "a suspect is in company, or another alone"
            fates = list(self.fates.get(name, {}).values())
            assert (shard.deaths, shard.hangs) == (fates.count("died") + fates.count("hung"), fates.count("hung"))
            self.holders[name] = (worker, shard.attempt)
            self.attempts[name] = shard.attempt
            self.beliefs.append((worker, queue, shard))
        assert not claim.alone or (len(claim.shards) == 1 and lane is None)
        if claim.shards:
            self.busy[queue].add(worker)
        self.message_if(claim.wake, queue)
        return claim

    @precondition(lambda self: self.beliefs)
    @rule(pick=picks, more=st.integers(0, 5), failed=st.booleans(), repeated=st.booleans())
    def commit(self, pick: int, more: int, failed: bool, repeated: bool) -> None:
        worker, queue, shards = self.take(pick, more)
        stored = [self.holds(worker, shard) for shard in shards]
        assert self.at.commit(*shards, queue=queue, failed=[0] if failed else []) == stored
        if repeated:
            assert self.at.commit(*shards, queue=queue) == [False] * len(shards)
        for shard, mine in zip(shards, stored, strict=True):
            if mine:
                self.end(name_of(shard))
                self.committed[shard.job_id] += shard.span.count
            else:
                self.excuse(shard)

    @precondition(lambda self: self.beliefs)
    @rule(pick=picks)
    def extend(self, pick: int) -> None:
        worker, queue, _ = chosen(self.beliefs, pick)
        shards = [shard for owner, at, shard in self.beliefs if (owner, at) == (worker, queue)]
        held = [self.holds(worker, shard) for shard in shards]
        assert self.at.extend(*shards, worker=worker, queue=queue) == held
        for shard, mine in zip(shards, held, strict=True):
            if mine:
                self.expired[queue].discard(name_of(shard))
            else:
                self.excuse(shard)

    @precondition(lambda self: self.beliefs)
    @rule(pick=picks, more=st.integers(0, 5), repeated=st.booleans())
    def release(self, pick: int, more: int, repeated: bool) -> None:
        worker, queue, shards = self.take(pick, more)
        for _ in range(1 + repeated):
            self.message_if(self.at.release(*shards, worker=worker, queue=queue), queue)
        self.busy[queue].discard(worker)
        for shard in shards:
            if self.holds(worker, shard):
                self.let_go(name_of(shard))
            else:
                self.excuse(shard)

    @rule(worker=workers, queue=queues)
    def end_drain(self, worker: str, queue: str) -> None:
        self.message_if(self.at.release(worker=worker, queue=queue), queue)
        self.busy[queue].discard(worker)

    @precondition(lambda self: self.beliefs)
    @rule(pick=picks)
    def divide(self, pick: int) -> None:
        worker, queue, (shard,) = self.take(pick, 0)
        mine = self.holds(worker, shard)
        assert self.at.ledger.divide(queue, shard) == mine
        assert not self.at.ledger.divide(queue, shard)
        if mine:
            self.end(name_of(shard))
            parts = [(shard.job_id, f"{n}+1") for n in range(shard.span.first, shard.span.end)]
            self.fates |= {part: {} for part in parts}
            self.attempts |= dict.fromkeys(parts, 0)

    @precondition(lambda self: self.beliefs)
    @rule(pick=picks)
    def hang(self, pick: int) -> None:
        worker, queue, (shard,) = self.take(pick, 0)
        name, mine = name_of(shard), self.holds(worker, shard)
        current = self.attempts.get(name) == shard.attempt and name in self.fates
        news = current and (mine or self.fates[name].get(shard.attempt) == "died")
        assert self.at.ledger.hung(queue, shard.job_id, str(shard.span), shard.attempt) == news
        if news:
            self.fates[name][shard.attempt] = "hung"
            self.let_go(name)
        elif mine:
            self.beliefs.append((worker, queue, shard))

    @rule(queue=queues)
    def listen(self, queue: str) -> None:
        """A worker that found nothing listens; one that does already goes away."""
        if self.listens[queue]:
            self.bell.unsubscribe(self.at.key("bell", queue))
        else:
            self.bell.subscribe(self.at.key("bell", queue))
        self.listens[queue] = not self.listens[queue]
        wait_for(lambda: self.client.pubsub_numsub(self.at.key("bell", queue))[0][1] == self.listens[queue])

    @rule(worker=workers)
    def bell_rings(self, worker: str) -> None:
        message = self.bell.get_message(ignore_subscribe_messages=True)
        if message:
            self.hand_out(worker, message["channel"].decode().rsplit(":", 1)[1], 10**9)

    @precondition(lambda self: self.beliefs)
    @rule(pick=picks)
    def look_up(self, pick: int) -> None:
        worker, queue, shard = chosen(self.beliefs, pick)
        interactive = self.at.waiting(queue, Lane.INTERACTIVE) > 0
        assert self.at.look(shard, queue=queue) == (interactive, [self.holds(worker, shard)])

    @rule(worker=workers)
    def die(self, worker: str) -> None:
        """Its leases go on until they run out; what it was doing is forgotten."""
        self.beliefs = [held for held in self.beliefs if held[0] != worker]

    @rule(queue=queues, died=st.booleans())
    def workers_leave(self, queue: str, died: bool) -> None:
        """All of them, for good; if they died, nobody renews their leases."""
        for worker in WORKERS:
            self.at.ledger.retire(worker, [queue])
        self.live[queue] = False
        self.busy[queue].clear()
        if died:
            self.time_passes(queue)

    @rule(queue=queues)
    def workers_come(self, queue: str) -> None:
        for worker in WORKERS:
            self.at.report(worker, (queue,))
        self.live[queue] = True

    @rule()
    def move(self) -> None:
        """Work goes to gpu or to cpu, to where somebody lives; nobody else looks at the leases of a queue that all have left."""
        assert self.at.ledger.move("c1") == 0
        if any(self.live.values()):
            for queue in QUEUES:
                if not self.live[queue]:
                    self.lapse(queue)
            self.places |= dict.fromkeys(self.movable - set(self.ended), "gpu" if self.live["gpu"] else "cpu")

    def take(self, pick: int, more: int) -> tuple[str, str, list[ClaimedShard]]:
        """A shard that some worker believes to hold, and up to `more` others of that worker and queue. It lets go of them."""
        worker, queue, first = chosen(self.beliefs, pick)
        others = [held for held in self.beliefs if held[:2] == (worker, queue) and held[2] is not first]
        taken = [first, *(held[2] for held in others[:more])]
        self.beliefs = [held for held in self.beliefs if not any(held[2] is shard for shard in taken)]
        return worker, queue, taken

    def holds(self, worker: str, shard: ClaimedShard) -> bool:
        return self.holders.get(name_of(shard)) == (worker, shard.attempt)

    def lapse(self, queue: str) -> None:
        """Leases that ran out are noticed."""
        for name in set(self.expired[queue]):
            attempt = self.holders[name][1]
            self.fates[name] = self.fates[name] | {attempt: "died"} if name in self.fates else {}
            self.let_go(name)

    def excuse(self, shard: ClaimedShard) -> None:
        """Its worker lives, which had lost it."""
        fates = self.fates.get(name_of(shard), {})
        if fates.get(shard.attempt) == "died" and list(fates.values()).count("excused") < MOST_EXCUSED:
            fates[shard.attempt] = "excused"

    def end(self, name: Name) -> None:
        self.let_go(name)
        self.fates.pop(name, None)

    def let_go(self, name: Name) -> None:
        self.holders.pop(name, None)
        for queue in QUEUES:
            self.expired[queue].discard(name)

    # Time and messages --------------------------------------------------------------------------------------------------

    @rule(queue=queues)
    def time_passes(self, queue: str) -> None:
        """No worker renewed for a lease's time."""
        self.at.expire_leases(queue)
        self.expired[queue] = {tuple(member.split("/")) for member in self.at.strings("leases", queue)}  # type: ignore[misc]
        self.busy[queue].clear()

    @rule(queue=queues)
    def timer(self, queue: str) -> None:
        """A second after the last message: if work waits, another goes out exactly if a worker is idle and none is on its way."""
        self.at.forget_message(queue)
        work = queue in self.queues_with_work()
        workers = len(WORKERS) if self.live[queue] else 1
        wanted = work and len(self.busy[queue]) < workers and not self.messages(queue)
        assert self.at.ledger.wants_wake(queue) == wanted
        self.message_if(wanted, queue)

    @rule(queue=queues)
    def message_is_lost(self, queue: str) -> None:
        self.client.delete(self.at.key("celery", queue))

    @rule(queue=queues, worker=workers)
    def message_arrives(self, queue: str, worker: str) -> None:
        if self.client.rpop(self.at.key("celery", queue)):
            self.hand_out(worker, queue, 10**9)

    def message_if(self, wanted: bool, queue: str) -> None:
        if wanted:
            self.client.lpush(self.at.key("celery", queue), "embed_pending")

    def messages(self, queue: str) -> int:
        return self.client.llen(self.at.key("celery", queue))  # type: ignore[return-value]

    # What holds at any time ---------------------------------------------------------------------------------------------

    @invariant()
    def look(self) -> None:
        self.keys = Keys(self.client)
        self.keys.assert_consistent()
        assert all(len(self.keys.of("celery", queue)) <= 1 for queue in QUEUES), "messages pile up"
        jobs = self.keys.jobs()
        assert set(jobs) == set(self.tenants)
        for job_id, record in jobs.items():
            assert record["queue"] == self.places[job_id]
            if job_id in self.ended:
                assert record == self.ended[job_id], "an ended job has changed"
                continue
            assert int(record["total"]) == self.totals[job_id]
            assert int(record.get("done", 0)) + int(record.get("failed", 0)) == self.committed[job_id]
            if JobStatus(record["status"]).ended:
                self.ended[job_id] = record

    # And in the end -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        self.beliefs.clear()
        for queue in QUEUES:
            self.message_is_lost(queue)
            self.time_passes(queue)
        live = [queue for queue in QUEUES if self.live[queue]]
        self.work_all(live)
        if live:
            assert self.movable <= set(self.ended), "work waits where nobody lives although it may go elsewhere"
        for queue in QUEUES:
            self.workers_come(queue)
        self.work_all(QUEUES)
        for job_id, tenant in dict(self.tenants).items():
            job = self.at.job(job_id, tenant)
            assert job.status.ended, "work waits and nobody is told of it"
            numbers = self.at.vectors(job_id)
            assert len(numbers) == len(set(numbers)) == job.counts.done + job.counts.failed
            if job.status is not JobStatus.CANCELLED:
                assert numbers == list(range(self.totals[job_id]))
            assert self.at.ledger.remove(job_id, tenant) is None
        self.at.ledger.unstage("abandoned")
        for worker in WORKERS:
            self.at.ledger.retire(worker, QUEUES)
        for queue in QUEUES:
            self.at.forget_message(queue)
        self.bell.close()
        assert self.at.all_keys() <= PERMANENT

    def work_all(self, queues: Sequence[str]) -> None:
        """What workers of these queues do, told by nothing but their timers and the messages that these send."""
        quiet = 0
        for _ in range(1000):
            self.move()
            self.look()
            for queue in queues:
                self.timer(queue)
                while self.messages(queue):
                    self.client.rpop(self.at.key("celery", queue))
                    self.drain(queue, "w1")
                    quiet = 0
                self.look()
            quiet += 1
            if quiet == 2:  # what was held in one queue may have come back in the other
                return

    def drain(self, queue: str, worker: str) -> None:
        """One task of a worker that follows the rules."""
        for _ in range(5):
            claim = self.hand_out(worker, queue, 60)
            if not claim.shards:
                break
            if next_step(claim.shards[0].deaths, claim.shards[0].span.count, MAX_ATTEMPTS) is Step.DIVIDE:
                self.divide(0)
            else:
                self.commit(0, 99, failed=False, repeated=False)
        self.end_drain(worker, queue)


def walk(machine: AnyOrder, random: Random, steps: int) -> None:
    """Random steps in the proportions of a busy day: hypothesis finds short surprises, this goes far."""
    for _ in range(steps):
        worker, queue, pick, coin = random.choice(WORKERS), random.choice(QUEUES), random.randrange(99), random.random() < 0.2
        work, beliefs = machine.queues_with_work(), machine.beliefs
        move = random.choices(range(14), [10, 26, 22, 6, 5, 5, 7, 8, 6, 6, 4, 5, 10, 3])[0]
        if move == 0 and len(machine.tenants) < 12:
            counts = [random.randint(1, 3) for _ in range(random.randint(1, 4))]
            machine.submit(queue, random.choice(list(Lane)), random.choice(TENANTS), counts, coin, random.random() < 0.6)
        elif move == 1 and work:
            machine.claim(worker, pick, random.choice([1, 60, 120, 10**9]), random.choice([None, None, *Lane]))
        elif move == 2 and beliefs:
            machine.commit(pick, random.randrange(6), coin, random.random() < 0.2)
        elif move == 3 and beliefs:
            machine.release(pick, random.randrange(6), coin)
        elif move == 4 and beliefs:
            machine.extend(pick)
        elif move == 5 and beliefs:
            machine.divide(pick)
        elif move == 6:
            machine.timer(queue)
            machine.message_arrives(queue, worker)
        elif move == 7:
            (machine.message_is_lost if coin else machine.time_passes)(queue)
        elif move == 8 and machine.tenants and (coin or machine.ended):
            machine.drop(pick) if pick % 5 == 0 else machine.cancel_or_delete(pick)
        elif move == 9:
            random.choice([machine.end_drain, machine.claim_at_random, lambda who, _: machine.die(who)])(worker, queue)
        elif move == 10:
            machine.listen(queue)
            machine.bell_rings(worker)
            if beliefs:
                machine.look_up(pick)
        elif move == 11:
            if machine.live[queue]:
                machine.workers_leave(queue, random.random() < 0.5)
            else:
                machine.workers_come(queue)
        elif move == 12:
            machine.move()
        elif move == 13 and beliefs:
            machine.hang(pick)
        machine.look()


@pytest.fixture
def machine_type(redis_url: str) -> Iterator[type[AnyOrder]]:
    with connect(redis_url, timeout_seconds=5, retries=0) as client:
        yield type("AnyOrderHere", (AnyOrder,), {"client": client})


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_nothing_is_lost_or_doubled_in_any_order(machine_type: type[AnyOrder]) -> None:
    run_state_machine_as_test(machine_type, settings=QUICK)


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_doubled_on_a_long_walk(machine_type: type[AnyOrder], seed: int) -> None:
    machine = machine_type()
    walk(machine, Random(seed), steps=300)
    if seed:  # the others have to do it all
        machine.workers_come(QUEUES[seed - 1])
        machine.workers_leave(QUEUES[seed - 2], died=True)
    machine.teardown()
