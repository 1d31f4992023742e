"""Batches beside their jobs: they come with the job, end with it, and leave nothing."""

from typing import Any

import pytest

from core.errors import BatchEnded, BatchNotFound
from core.jobs import JobStatus
from core.ledger import Batch, Batches, Files, LineBlock, NewBatch
from tests.ledger.scenario import PERMANENT, Scenario
from tests.processes import wait_for

BATCH = NewBatch("alice", "file-1", "/v1/embeddings", "24h", 86_400, {"k": "v"})


def submit(at: Scenario, job_id: str = "job_1", counts: tuple[int, ...] = (2, 2), **fields: Any) -> Batch:
    """A batch of one line for each input."""
    batches = Batches(at.ledger)
    ids = tuple(f"n{n}" for n in range(sum(counts)))
    batches.stage_lines(job_id, 0, LineBlock(0, ids, (1,) * len(ids), (False,) * len(ids)))
    batches.stage(job_id, BATCH, lines=len(ids), blocks=1)
    at.submit(job_id, counts, **fields)
    return find(at, job_id)


def find(at: Scenario, job_id: str = "job_1") -> Batch:
    return Batches(at.ledger).get(job_id.replace("job_", "batch_"), "alice")


def pass_window(at: Scenario, job_id: str = "job_1") -> None:
    at.redis.zadd(at.key("deadlines"), {job_id: 1})


def test_batch_is_there_with_its_job(at: Scenario) -> None:
    Batches(at.ledger).stage_lines("job_1", 0, LineBlock(0, ("n0",), (1,), (False,)))
    Batches(at.ledger).stage("job_1", BATCH, lines=4, blocks=1)
    for kind in ("batch", "lines"):  # its API may die here
        assert 0 < at.redis.ttl(at.key(kind, "job_1")) <= 600
    with pytest.raises(BatchNotFound):
        find(at)
    batch = submit(at)
    assert (batch.id, batch.status, batch.lines, batch.counts, batch.metadata) == (
        "batch_1",
        "in_progress",
        4,
        (0, 0),
        {"k": "v"},
    )
    assert batch.deadline == pytest.approx(batch.created_at + 86_400)
    assert [block.ids for block in Batches(at.ledger).lines(batch)] == [("n0", "n1", "n2", "n3")]
    at.commit(at.claim_one())
    assert find(at).counts == (2, 0)
    at.commit(at.claim_one())
    assert find(at).status == "completed"


def test_refused_job_leaves_no_batch(at: Scenario) -> None:
    Batches(at.ledger).stage_lines("job_1", 0, LineBlock(0, ("a",), (4,), (False,)))
    Batches(at.ledger).stage("job_1", BATCH, lines=1, blocks=1)
    with pytest.raises(Exception, match="MAX_WAITING_INPUTS"):
        at.submit("job_1", (4,), limit=3)
    assert at.all_keys() <= PERMANENT


def test_window_that_is_over_ends_the_batch_though_nobody_asks(at: Scenario) -> None:
    submit(at)
    at.commit(at.claim_one())
    (late,) = at.claim().shards
    pass_window(at)
    at.ledger.wants_wake("cpu")  # what every worker's timer does
    assert at.job("job_1").status is JobStatus.CANCELLED
    assert at.commit(late) == [False]
    batch = find(at)
    assert batch.status == "expired"
    assert batch.job is not None
    assert batch.job.counts.done == 2
    assert at.strings("deadlines") == []


def test_window_counts_for_nothing_once_the_batch_has_ended(at: Scenario) -> None:
    submit(at)
    at.commit(*at.claim().shards)
    assert at.strings("deadlines") == []
    assert find(at).status == "completed"


def test_window_that_is_over_is_seen_by_who_asks_while_no_worker_lives(at: Scenario) -> None:
    submit(at)
    pass_window(at)
    assert find(at).status == "expired"


def test_cancelled_batch_stays_cancelled(at: Scenario) -> None:
    submit(at)
    batches = Batches(at.ledger)
    assert batches.cancel("batch_1", "alice").status == "cancelled"
    assert batches.cancel("batch_1", "alice").status == "cancelled"
    pass_window(at)
    at.ledger.wants_wake("cpu")
    assert find(at).status == "cancelled"


def test_ended_batch_cannot_be_cancelled(at: Scenario) -> None:
    submit(at)
    at.commit(*at.claim().shards)
    with pytest.raises(BatchEnded, match="completed already"):
        Batches(at.ledger).cancel("batch_1", "alice")
    assert find(at).status == "completed"


def test_batch_belongs_to_its_tenant(at: Scenario) -> None:
    submit(at)
    for call in (Batches(at.ledger).get, Batches(at.ledger).cancel):
        with pytest.raises(BatchNotFound):
            call("batch_1", "bob")
    assert Batches(at.ledger).page("bob") == ([], False)
    assert find(at).status == "in_progress"


def test_plain_job_is_no_batch(at: Scenario) -> None:
    at.submit("job_1")
    with pytest.raises(BatchNotFound):
        find(at)


def test_batches_are_listed_newest_first(at: Scenario) -> None:
    for n in range(5):
        submit(at, f"job_{n}", (1,))
        at.redis.zadd(at.key("batches", "alice"), {f"job_{n}": n})
    page, more = Batches(at.ledger).page("alice", limit=2)
    assert ([batch.id for batch in page], more) == (["batch_4", "batch_3"], True)
    page, more = Batches(at.ledger).page("alice", after="batch_2", limit=2)
    assert ([batch.id for batch in page], more) == (["batch_1", "batch_0"], False)
    with pytest.raises(BatchNotFound):
        Batches(at.ledger).page("alice", after="batch_9")


def test_files_of_a_batch_are_named_when_it_ends(at: Scenario) -> None:
    submit(at)
    assert Files(at.ledger).ids("alice") == []
    at.commit(*at.claim().shards)
    assert sorted(Files(at.ledger).ids("alice")) == ["file-error-1", "file-output-1"]


@pytest.mark.parametrize("gone", [False, True])
def test_batch_that_a_worker_without_batches_ended_is_made_whole_at_the_end_of_its_window(at: Scenario, gone: bool) -> None:
    submit(at)
    at.commit(*at.claim().shards)
    for kind in ("batch", "lines"):
        at.redis.persist(at.key(kind, "job_1"))
    at.redis.delete(at.key("files", "alice"))
    if gone:
        at.expire_job("job_1")
    pass_window(at)
    at.ledger.wants_wake("cpu")
    if gone:
        at.release()
        at.forget_message()
        assert at.all_keys() <= PERMANENT
        return
    assert sorted(Files(at.ledger).ids("alice")) == ["file-error-1", "file-output-1"]
    for kind in ("batch", "lines"):
        assert at.redis.pttl(at.key(kind, "job_1")) == pytest.approx(at.redis.pttl(at.key("job", "job_1")), abs=1000)


def test_vectors_go_with_the_last_file_that_is_not_empty(at: Scenario) -> None:
    submit(at)
    at.commit(*at.claim().shards, failed=[1])
    batches = Batches(at.ledger)
    batches.note(find(at), completed=2)
    batch = find(at)
    assert batch.has("output")
    assert batch.has("error")
    assert batches.delete_file(batch, "output")
    assert not batches.delete_file(batch, "output")
    assert at.ledger.finished("job_1")
    assert (find(at).has("output"), find(at).has("error")) == (False, True)
    assert batches.delete_file(batch, "error")
    assert at.ledger.finished("job_1") == []
    assert find(at).status == "completed"


def test_note_about_a_batch_that_is_gone_leaves_nothing(at: Scenario) -> None:
    batch = submit(at)
    at.commit(*at.claim().shards)
    at.ledger.remove("job_1", "alice")
    at.forget_message()
    Batches(at.ledger).note(batch, completed=4)
    assert not Batches(at.ledger).delete_file(batch, "output")
    at.release()
    assert at.all_keys() <= PERMANENT


def test_job_that_is_deleted_takes_its_batch_along(at: Scenario) -> None:
    submit(at)
    at.ledger.remove("job_1", "alice")
    assert find(at).status == "cancelled"
    at.ledger.remove("job_1", "alice")
    with pytest.raises(BatchNotFound):
        find(at)
    at.forget_message()
    assert at.all_keys() <= PERMANENT


def test_nothing_is_left_of_batches_that_expired(at: Scenario) -> None:
    submit(at, "job_1", ttl_seconds=1)
    at.commit(*at.claim().shards)
    submit(at, "job_2", ttl_seconds=1)
    Batches(at.ledger).cancel("batch_2", "alice")
    Batches(at.ledger).reject("job_3", BATCH, [{"code": "empty_file"}], ttl_seconds=1)
    assert find(at, "job_3").status == "failed"
    at.release()

    def swept() -> bool:
        at.ledger.wants_wake("cpu")
        at.forget_message()
        return at.all_keys() <= PERMANENT

    wait_for(swept, seconds=10, what="the end of the batches' keys")
    assert Batches(at.ledger).page("alice") == ([], False)
