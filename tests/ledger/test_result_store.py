"""Results outside of Redis: in a folder, and in S3."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from core.blocks import unpack_stored
from core.errors import JobNotFound, ResultLost, ResultStoreRefuses, ResultStoreUnavailable
from core.ledger import StoringLedger, connect
from core.ledger.ledger import ClaimedShard, Ledger
from core.result_store import ResultStore
from tests.ledger.scenario import PERMANENT, PREFIX, Scenario
from tests.s3 import BUCKET, s3_server
from worker.result_store import Collector, Outage, WorkerLedger

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with s3_server(tmp_path_factory.mktemp("s3")) as environ, pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A real server only: what these tests ask of Lua the others ask of fakeredis."""
    with connect(redis_url, timeout_seconds=5, retries=0) as found:
        yield found


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ResultStore:
    """An empty place."""
    if request.param == "folder":
        return ResultStore(f"file://{tmp_path}/results", timeout_seconds=5, retries=0)
    request.getfixturevalue("s3")
    return ResultStore(f"s3://{BUCKET}/{tmp_path.name}", timeout_seconds=5, retries=0)


@pytest.fixture
def kept(at: Scenario, store: ResultStore) -> Scenario:
    """A ledger that keeps every result there."""
    at.ledger = StoringLedger(at.redis, PREFIX, store)
    return at


def ledger_of(at: Scenario) -> StoringLedger:
    assert isinstance(at.ledger, StoringLedger)
    return at.ledger


def collect(at: Scenario, *, later: bool = True) -> int:
    """Remove what is due, `later` what will be."""
    if later:
        for member in at.redis.zrange(at.key("garbage"), 0, -1):
            at.redis.zadd(at.key("garbage"), {member: 1})
    return Collector(ledger_of(at), 0).collect()


def object_of(at: Scenario, shard: ClaimedShard) -> bytes:
    """A shard's field in the ledger."""
    return bytes(at.redis.hget(at.key("vectors", shard.job_id), str(shard.span)))


def test_what_is_stored_is_read_and_goes(store: ResultStore) -> None:
    store.put_all({"job/0+1.1.a": b"one", "job/1+1.1.b": b"", "job2/0+1.1.c": b"x" * 10**6})
    assert store.get("job/0+1.1.a") == b"one"
    assert store.get("job2/0+1.1.c") == b"x" * 10**6
    assert sorted(store.keys("job")) == ["job/0+1.1.a", "job/1+1.1.b"]
    store.remove("job/0+1.1.a")
    store.remove("job/0+1.1.a")
    assert (store.remove_job("job"), store.remove_job("job"), store.remove_job("jo")) == (1, 0, 0)
    assert len(store.keys("job2")) == 1
    with pytest.raises(ResultLost, match="has no object job/0"):
        store.get("job/0+1.1.a")
    store.probe()
    assert store.keys("probe") == []


def test_results_lie_in_the_store_and_references_in_redis(kept: Scenario, store: ResultStore) -> None:
    kept.submit("job", (2, 2))
    for _ in range(2):
        shard = kept.claim_one()
        assert kept.commit(shard, dimensions=300) == [True]
        assert len(object_of(kept, shard)) < 100 < 300 * 4
    assert len(store.keys("job")) == 2
    block = kept.ledger.result("job", kept.ledger.finished("job")[1])
    assert len(block.vectors) == 2 * 300 * 4
    assert block.tokens == (5, 5)
    assert [found for _, found in kept.ledger.outcome("job", "alice")[1]] == [
        kept.ledger.result("job", span) for span in kept.ledger.finished("job")
    ]
    kept.ledger.drop([("job", "alice")])
    collect(kept)
    assert store.keys("job") == []


def test_small_results_stay_in_redis(kept: Scenario, store: ResultStore) -> None:
    kept.ledger = StoringLedger(kept.redis, PREFIX, store, min_bytes=1000)
    kept.submit("job", (1, 200))
    assert kept.commit(*kept.claim().shards, dimensions=2) == [True, True]
    (key,) = store.keys("job")
    assert key.startswith("job/1+200.1.")
    kept.ledger.remove("job", "alice")
    collect(kept)
    kept.finish_job("small", (1,))
    kept.ledger.remove("small", "alice")
    kept.release()
    assert kept.all_keys() - {kept.key("garbage")} == PERMANENT


def test_fenced_attempt_overwrites_nothing_and_leaves_nothing(kept: Scenario, store: ResultStore) -> None:
    kept.submit("job", (2, 2))
    late = kept.claim_one("w1")
    kept.expire_leases()
    current = kept.claim_one("w2")
    assert current.span == late.span
    assert kept.commit(current) == [True]
    before = store.keys("job")
    assert kept.commit(late) == [False]
    assert store.keys("job") == before
    assert kept.vectors() == [0, 1]


def test_shard_that_is_lost_while_it_is_written_leaves_nothing(kept: Scenario, store: ResultStore) -> None:
    class Slow(StoringLedger):
        def _announce(self, *args: object) -> list[bool]:
            held = super()._announce(*args)  # type: ignore[arg-type]
            kept.expire_leases()
            other.append(kept.claim_one("w2"))
            return held

    other: list[ClaimedShard] = []
    kept.submit("job", (2, 2))
    late = kept.claim_one("w1")
    quick, kept.ledger = kept.ledger, Slow(kept.redis, PREFIX, store)
    assert kept.commit(late) == [False]
    assert store.keys("job") == []
    kept.ledger = quick
    assert kept.commit(*other) == [True]
    assert kept.vectors() == [0, 1]


def test_attempt_whose_number_comes_again_has_another_key(kept: Scenario, store: ResultStore) -> None:
    """A Redis that lost its last second gives numbers again."""
    kept.submit("job", (2, 2))
    store.put("job/0+2.1.died", b"what another has left")
    again = kept.claim_one()
    assert again.attempt == 1
    assert kept.commit(again) == [True]
    assert len(store.keys("job")) == 2
    assert kept.vectors() == [0, 1]


def test_commit_repeated_after_a_lost_answer_keeps_its_object(kept: Scenario) -> None:
    class Repeated(StoringLedger):
        def _commit(self, *args: object) -> list[bool]:
            assert super()._commit(*args) == [True]  # type: ignore[arg-type]
            return super()._commit(*args)  # type: ignore[arg-type]

    kept.submit("job", (2, 2))
    kept.ledger = Repeated(kept.redis, PREFIX, ledger_of(kept).store)
    assert kept.commit(kept.claim_one()) == [False]
    assert kept.vectors() == [0, 1]


@pytest.mark.parametrize("how", ["deleted", "expired", "cancelled and deleted"])
def test_objects_go_with_their_job(kept: Scenario, store: ResultStore, how: str) -> None:
    kept.submit("job", (2, 2))
    kept.commit(kept.claim_one())
    store.put("job/2+2.1.died", b"of a worker that died between write and commit")
    if how == "cancelled and deleted":
        kept.ledger.remove("job", "alice")
    else:
        kept.commit(kept.claim_one())
    if how == "expired":
        kept.expire_job("job")
        kept.ledger.wants_wake("cpu")
    else:
        kept.ledger.remove("job", "alice")
    assert len(store.keys("job")) >= 2
    assert collect(kept, later=False) == 1
    assert store.keys("job") == []
    store.put("job/2+2.1.late", b"of a worker that was stopped for a minute")
    assert collect(kept, later=False) == 0
    assert collect(kept) == 1
    assert store.keys("job") == []
    kept.release()
    assert kept.all_keys() == PERMANENT


def test_failing_store_keeps_garbage_until_it_answers(kept: Scenario, store: ResultStore) -> None:
    kept.finish_job("job")
    kept.ledger.remove("job", "alice")
    good, ledger_of(kept).store = store, ResultStore("file:///proc/nowhere", timeout_seconds=1, retries=0)
    with pytest.raises(ResultStoreUnavailable):
        collect(kept)
    assert len(good.keys("job")) == 1
    ledger_of(kept).store = good
    assert collect(kept, later=False) == 0, "others wait before they try the same"
    assert collect(kept) == 2
    assert good.keys("job") == []


def test_worker_gives_shards_back_uncounted_when_the_store_fails(kept: Scenario) -> None:
    kept.ledger = WorkerLedger(kept.redis, PREFIX, ResultStore("file:///proc/nowhere", timeout_seconds=1, retries=0), min_bytes=0)
    kept.submit("job", (2, 2))
    for _ in range(5):
        kept.ledger.outage.began = False
        assert kept.commit(*kept.claim().shards) == [False, False]
        assert kept.ledger.outage.began
    assert (kept.waiting(), kept.strings("suspects", "cpu")) == (4, [])
    claim = kept.claim()
    assert (len(claim.shards), claim.alone) == (2, False)


def test_outage_ends_when_the_store_can_be_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.result_store.FIRST_PAUSE_SECONDS", 0.2)
    place = tmp_path / "place"
    place.write_text("a file, where the folder should be")
    outage = Outage(ResultStore(f"file://{place}", timeout_seconds=1, retries=0))
    assert outage.sit_out(lambda: False)
    outage.begin(ResultStoreUnavailable("it failed", store="file:///place"))
    assert not outage.sit_out(lambda: True)
    assert not outage.sit_out(lambda: False)
    place.unlink()
    assert outage.sit_out(lambda: False)
    assert not outage.began


def test_lost_and_damaged_objects_are_told_apart_from_deleted_jobs(kept: Scenario, store: ResultStore) -> None:
    kept.finish_job("job")
    (span,) = kept.ledger.finished("job")
    (key,) = store.keys("job")
    whole = store.get(key)
    store.put(key, bytes(len(whole)))
    with pytest.raises(ResultLost, match="damaged"):
        kept.ledger.result("job", span)
    store.remove(key)
    with pytest.raises(ResultLost, match="no object"):
        kept.ledger.result("job", span)
    reference = unpack_stored(object_of(kept, ClaimedShard("job", span, 1, "m", "alice", None, ())))  # type: ignore[arg-type]
    kept.ledger.remove("job", "alice")
    with pytest.raises(JobNotFound):
        ledger_of(kept)._fetch("job", reference)  # type: ignore[arg-type]


def test_ledger_without_a_store_says_what_is_missing(kept: Scenario) -> None:
    kept.finish_job("job")
    with pytest.raises(ResultLost, match="RESULT_STORE is redis here"):
        Ledger(kept.redis, PREFIX).result("job", kept.ledger.finished("job")[0])


def test_store_that_will_never_work_says_so(s3: None, tmp_path: Path) -> None:
    with pytest.raises(ResultStoreRefuses, match="no-such-bucket"):
        ResultStore("s3://no-such-bucket/x", timeout_seconds=5, retries=0).probe()
    with pytest.raises(ResultStoreRefuses, match="proc"):
        ResultStore("file:///proc/nowhere", timeout_seconds=5, retries=0).probe()
