"""What `celery -A worker inspect` shows of a worker's report."""

import time

from worker.control import BATCH_FACTS, _batches


def test_last_batch_is_shown_with_its_age() -> None:
    last = {"inputs": 3, "tokens": 20, "padding_share": 0.1, "seconds": 0.05, "ended_at": time.time() - 7}
    facts = dict.fromkeys(BATCH_FACTS, 0) | {"last_batch": last, "resident_bytes": 1}
    shown = _batches({"facts": facts})
    assert list(shown) == list(BATCH_FACTS)
    assert 7 <= shown["last_batch"].pop("age_seconds") < 60
    assert shown["last_batch"] == {"inputs": 3, "tokens": 20, "padding_share": 0.1, "seconds": 0.05}
    assert last["ended_at"]
