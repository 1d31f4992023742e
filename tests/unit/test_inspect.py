"""What `celery -A worker inspect` shows of a worker's report."""

import time

from core.jobs import Lane
from worker.control import BATCH_FACTS, _batches
from worker.histograms import STAGES, Histograms


def test_last_batch_is_shown_with_its_age() -> None:
    last = {"inputs": 3, "tokens": 20, "padding_share": 0.1, "seconds": 0.05, "ended_at": time.time() - 7}
    facts = dict.fromkeys(BATCH_FACTS, 0) | {"last_batch": last, "resident_bytes": 1}
    shown = _batches({"facts": facts, "histograms": {}})
    assert list(shown) == [*BATCH_FACTS, "wait_seconds", "stage_seconds"]
    assert 7 <= shown["last_batch"].pop("age_seconds") < 60
    assert shown["last_batch"] == {"inputs": 3, "tokens": 20, "padding_share": 0.1, "seconds": 0.05}
    assert last["ended_at"]


def test_stages_and_batches_are_shown_as_their_number_and_mean() -> None:
    found = Histograms()
    found.waits[Lane.BULK].count(3)
    found.stages["forward"].count(0.2)
    found.stages["forward"].count(0.4)
    found.batch_inputs.count(32)
    shown = _batches({"facts": dict.fromkeys(BATCH_FACTS, 0) | {"last_batch": None}, "histograms": found.report()})
    assert shown["wait_seconds"] == {"interactive": {"count": 0, "mean": 0.0}, "bulk": {"count": 1, "mean": 3.0}}
    assert shown["stage_seconds"] == {stage: {"count": 0, "mean": 0.0} for stage in STAGES} | {
        "forward": {"count": 2, "mean": 0.3}
    }
    assert shown["batch_inputs"] == {"count": 1, "mean": 32.0}
    assert shown["batch_tokens"] == {"count": 0, "mean": 0.0}
