import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.jobs import Counts, InputError, Job, JobOptions, JobStatus, Lane

QUEUED = {
    "status": "queued",
    "created_at": "1700000000123",
    "tenant": "alice",
    "queue": "cpu",
    "lane": "bulk",
    "total": "4",
    "model": "m",
    "options": JobOptions().to_json(),
    "metadata": '{"a": [1, null]}',
    "ttl_seconds": "600",
}
ENDED = QUEUED | {
    "status": "succeeded",
    "started_at": "1700000000500",
    "ended_at": "1700000001000",
    "expires_at": "1700000601000",
    "done": "3",
    "failed": "1",
    "device": "cuda:0",
    "engine": "torch",
    "dtype": "float16",
    "revision": "abc",
    "parity": "0.99995",
    "dimensions": "384",
    "tokens": "99",
    "truncated": "2",
    "cached": "1",
    "idempotency": "k",
    "cancelled_by": "what later versions may add",
}


def test_record_of_a_new_job_leaves_open_what_only_a_worker_knows() -> None:
    job = Job.from_record("j", QUEUED)
    assert (job.id, job.status, job.counts, job.lane) == ("j", JobStatus.QUEUED, Counts(4), Lane.BULK)
    assert job.metadata == {"a": [1, None]}
    assert job.created_at == 1700000000.123
    assert (job.started_at, job.ended_at, job.expires_at, job.device, job.dimensions, job.parity) == (None,) * 6
    assert job.tokens == 0
    assert job.progress == 0


def test_record_of_an_ended_job_tells_all() -> None:
    errors = (InputError(2, "bad", "it is bad"),)
    job = Job.from_record("j", ENDED, errors)
    assert (job.counts, job.progress, job.errors) == (Counts(4, 3, 1), 1.0, errors)
    assert (job.device, job.engine, job.dtype, job.revision, job.dimensions) == ("cuda:0", "torch", "float16", "abc", 384)
    assert job.parity == 0.99995
    assert (job.tokens, job.truncated, job.cached, job.ttl_seconds) == (99, 2, 1, 600)
    assert (job.started_at, job.ended_at, job.expires_at) == (1700000000.5, 1700000001.0, 1700000601.0)


@pytest.mark.parametrize(("done", "failed", "progress"), [(0, 0, 0.0), (1, 0, 0.25), (1, 1, 0.5), (0, 3, 0.75), (2, 2, 1.0)])
def test_progress_counts_failed_inputs_as_ended(done: int, failed: int, progress: float) -> None:
    assert Job.from_record("j", QUEUED | {"done": str(done), "failed": str(failed)}).progress == progress


@pytest.mark.parametrize(
    ("status", "ended"), [("queued", False), ("running", False), ("succeeded", True), ("failed", True), ("cancelled", True)]
)
def test_ended_states_are_known(status: str, ended: bool) -> None:
    assert JobStatus(status).ended is ended


def test_every_status_is_among_those() -> None:
    assert {status.value for status in JobStatus} == {"queued", "running", "succeeded", "failed", "cancelled"}


@given(
    st.builds(
        JobOptions,
        normalize=st.booleans(),
        dimensions=st.none() | st.integers(1, 4096),
        prompt_name=st.none() | st.text(),
        truncate=st.sampled_from(["end", "start", "error", "chunk"]),
        chunk_overlap=st.integers(0, 2),
    )
)
def test_options_read_back_and_equal_options_are_written_alike(options: JobOptions) -> None:
    text = options.to_json()
    assert JobOptions.from_json(text) == JobOptions.from_json(text.encode()) == options
    assert json.dumps(json.loads(text), sort_keys=True) == text


@pytest.mark.parametrize("truncate", ["end", "error"])
def test_options_that_older_workers_know_are_written_as_ever(truncate: str) -> None:
    told = json.loads(JobOptions(truncate=truncate).to_json())
    assert told == {"normalize": True, "dimensions": None, "prompt_name": None, "truncate": truncate}


@pytest.mark.parametrize("truncate", ["start", "chunk"])
def test_options_that_older_workers_would_misread_are_refused_by_them(truncate: str) -> None:
    told = json.loads(JobOptions(truncate=truncate).to_json())
    assert told.pop("v") == 2, "a key that their JobOptions does not have"
    with pytest.raises(ValueError, match="newer version"):
        JobOptions.from_json(json.dumps(told | {"v": 3}))


@pytest.mark.parametrize("value", [Counts(1), InputError(0, "c", "m"), JobOptions(), Job.from_record("j", QUEUED)])
def test_records_cannot_be_changed(value: Any) -> None:
    with pytest.raises(AttributeError):
        setattr(value, next(iter(vars(value))), 1)
