import pytest

from api.dry_run import Duplicates, figures
from core.jobs import Counts, Job, JobOptions, JobStatus, Lane
from core.ledger import QueueState, Worker
from core.sharding import Input


def count(texts: list[str], most: int = 100) -> int | None:
    duplicates = Duplicates(most)
    inputs = [Input(text, str(n)) for n, text in enumerate(texts)]
    assert list(duplicates.counting(inputs)) == inputs
    return duplicates.count()


@pytest.mark.parametrize(
    ("texts", "found"),
    [(["a"], 0), (["a", "b", "a", "a", "ä", "b"], 3), (["a", "a ", "A"], 0), ([f"text {n % 40}" for n in range(100)], 60)],
)
def test_texts_that_were_there_before_are_counted(texts: list[str], found: int) -> None:
    assert count(texts) == found


def test_too_many_texts_are_not_compared() -> None:
    assert count(["a", "a"], most=2) == 1
    assert count(["a", "a", "b"], most=2) is None


def job(lane: Lane = Lane.BULK, **known: object) -> Job:
    options, counts = JobOptions(dry_run=True), Counts(10, 8, 2)
    return Job(
        "job_1", "t", JobStatus.SUCCEEDED, counts, "cpu", lane, "m", options, {}, 60, 0.0, **known  # type: ignore[arg-type]
    )  # fmt: skip


def queue(*speeds: dict[str, float]) -> QueueState:
    workers = tuple(
        Worker(f"w{n}", ("cpu",), "idle", "m", "r", "torch", "cpu", "float32", 8, 256, (), dict(facts))
        for n, facts in enumerate(speeds)
    )
    return QueueState("cpu", {"interactive": 30, "bulk": 600}, {"interactive": 0, "bulk": 10}, {}, 0, workers)


SLOW = {"tokens_per_second": 100, "inputs_per_second": 4}
FAST = {"tokens_per_second": 300, "inputs_per_second": 16}


def test_figures_are_the_jobs_and_the_seconds_its_queues() -> None:
    found = figures(job(tokens=2000, truncated=3, duplicates=4, dimensions=384), queue(SLOW, FAST))
    assert found == {
        "inputs": 10,
        "tokens": 2000,
        "over_long": 3,
        "duplicates": 4,
        "cached": 0,
        "bytes": 8 * 384 * 4,
        "seconds": 5.0,
        "backlog_seconds": 32.0,
    }


def test_interactive_job_waits_for_no_bulk_work() -> None:
    assert figures(job(Lane.INTERACTIVE), queue(SLOW, FAST))["backlog_seconds"] == 2.0


@pytest.mark.parametrize("state", [None, queue(), queue({"tokens_per_second": 0, "inputs_per_second": 0.0}), queue({})])
def test_seconds_are_unknown_while_nobody_has_measured_them(state: QueueState | None) -> None:
    found = figures(job(tokens=2000), state)
    assert (found["seconds"], found["backlog_seconds"], found["bytes"]) == (None, None, None)
