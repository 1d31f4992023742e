"""Pages of a result and the formats they are written in."""

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import results
from api.dtypes import DTYPES, FLOAT32
from api.results import Page, Part
from core.blocks import ResultBlock
from core.errors import InvalidRequest, JobNotFound, JobNotReady
from core.jobs import Counts, InputError, Job, JobOptions, JobStatus, Lane
from core.ledger import Ledger
from core.sharding import Span

DIMENSIONS = 3


def job_of(total: int, status: JobStatus = JobStatus.SUCCEEDED) -> Job:
    return Job(
        id="j",
        tenant="t",
        status=status,
        counts=Counts(total),
        queue="cpu",
        lane=Lane.BULK,
        model="m",
        options=JobOptions(),
        metadata={},
        ttl_seconds=1,
        created_at=1.0,
        dimensions=DIMENSIONS,
    )


def vector(index: int) -> list[float]:
    return [float(np.float32(index + place / 7)) for place in range(DIMENSIONS)]


def block_of(span: Span, failed: frozenset[int] = frozenset()) -> ResultBlock:
    positions = [index - span.first for index in failed if span.first <= index < span.end]
    vectors = np.array([vector(span.first + n) for n in range(span.count)], dtype="<f4")
    vectors[positions] = np.nan
    return ResultBlock(
        dimensions=DIMENSIONS,
        vectors=vectors.tobytes(),
        tokens=tuple(range(span.count)),
        truncated=frozenset({0}),
        errors={n: InputError(span.first + n, "code", "message", True) for n in positions},
    )


class FinishedShards(Ledger):
    """The reading side of a ledger that holds one job's results in memory."""

    def __init__(self, job: Job, spans: list[Span], failed: frozenset[int] = frozenset()) -> None:
        self.job, self.spans, self.failed, self.reads = job, spans, failed, 0

    def get(self, job_id: str, tenant: str) -> Job:
        return self.job

    def finished(self, job_id: str) -> list[Span]:
        return sorted(self.spans)

    def result(self, job_id: str, span: Span) -> ResultBlock:
        self.reads += 1
        return block_of(span, self.failed)

    def page(self, offset: int = 0, limit: int | None = None) -> Page:
        return results.find_page(self, "j", "t", offset=offset, limit=limit)

    def parts(self, page: Page) -> Iterator[Part]:
        return results.read_parts(self, "j", page.spans, page.offset, page.end)


RUNNING, CANCELLED, SUCCEEDED = JobStatus.RUNNING, JobStatus.CANCELLED, JobStatus.SUCCEEDED
ALL = [Span(0, 3), Span(3, 3), Span(6, 1)]
PAGES = [
    # status, spans, offset, limit, then end, ready, next offset, complete
    (SUCCEEDED, ALL, 0, None, 7, 7, None, True),
    (SUCCEEDED, ALL, 0, 3, 3, 7, 3, False),
    (SUCCEEDED, ALL, 2, 2, 4, 7, 4, False),
    (SUCCEEDED, ALL, 4, 100, 7, 7, None, True),
    (SUCCEEDED, ALL, 7, None, 7, 7, None, True),
    (RUNNING, [], 0, None, 0, 0, 0, False),
    (RUNNING, ALL[:1], 0, None, 3, 3, 3, False),
    (RUNNING, ALL[:1], 1, 1, 2, 3, 2, False),
    (RUNNING, ALL[1:], 0, None, 0, 0, 0, False),
    (RUNNING, ALL[1:], 4, None, 7, 7, None, False),
    (RUNNING, [ALL[0], ALL[2]], 0, None, 3, 3, 3, False),
    (CANCELLED, [], 0, None, 0, 0, None, False),
    (CANCELLED, [ALL[0], ALL[2]], 0, None, 3, 3, 6, False),
    (CANCELLED, [ALL[0], ALL[2]], 0, 2, 2, 3, 2, False),
    (CANCELLED, [ALL[0], ALL[2]], 4, None, 4, 4, 6, False),
    (CANCELLED, [ALL[0], ALL[2]], 6, None, 7, 7, None, True),
    (CANCELLED, [ALL[0]], 3, None, 3, 3, None, False),
    (CANCELLED, [ALL[1]], 0, None, 0, 0, 3, False),
]


@pytest.mark.parametrize(("status", "spans", "offset", "limit", "end", "ready", "next_offset", "complete"), PAGES)
def test_page_reaches_as_far_as_inputs_have_ended(
    status: JobStatus,
    spans: list[Span],
    offset: int,
    limit: int | None,
    end: int,
    ready: int,
    next_offset: int | None,
    complete: bool,
) -> None:
    page = FinishedShards(job_of(7, status), spans).page(offset, limit)
    assert (page.end, page.ready, page.next_offset, page.complete) == (end, ready, next_offset, complete)
    assert page.count == end - offset


def test_page_beyond_the_end_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="offset must be at most 7"):
        FinishedShards(job_of(7), ALL).page(8)


def test_job_that_ends_between_two_reads_is_seen_as_ended() -> None:
    class Ending(FinishedShards):
        def finished(self, job_id: str) -> list[Span]:
            self.job = replace(self.job, status=SUCCEEDED)
            return super().finished(job_id)

    page = Ending(job_of(7, RUNNING), ALL).page()
    assert (page.complete, page.next_offset) == (True, None)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.sets(st.integers(0, 7)), st.integers(1, 20), st.booleans())
def test_following_the_pages_reads_every_finished_input_once(
    counts: list[int], missing: set[int], limit: int, ended: bool
) -> None:
    """Also when shards are missing: all of them in a cancelled job, those before the first gap in a running one."""
    starts = [sum(counts[:n]) for n in range(len(counts))]
    spans = [Span(first, count) for n, (first, count) in enumerate(zip(starts, counts, strict=True)) if n not in missing]
    total = sum(counts)
    whole = len(spans) == len(counts)
    status = SUCCEEDED if whole else CANCELLED if ended else RUNNING
    shards = FinishedShards(job_of(total, status), spans)
    found: list[int] = []
    offset: int | None = 0
    while offset is not None:
        page = shards.page(offset, limit)
        assert page.count <= limit
        found += [index for part in shards.parts(page) for index in range(part.first + part.start, part.first + part.stop)]
        if page.next_offset == offset:
            assert status is RUNNING
            break
        offset = page.next_offset
    expected = [index for span in spans for index in range(span.first, span.end)]
    if status is RUNNING:
        first_gap = next(index for index in range(total + 1) if index not in expected)
        expected = [index for index in expected if index < first_gap]
    assert found == expected


FAILED = frozenset({4, 6})


def read_items(chosen: str, offset: int, limit: int | None) -> tuple[Page, list[dict[str, Any]]]:
    shards = FinishedShards(job_of(7), ALL, FAILED)
    page = shards.page(offset, limit)
    if chosen == "ndjson":
        return page, [json.loads(line) for line in b"".join(results.write_ndjson(shards.parts(page), FLOAT32)).splitlines()]
    embedding = results.as_base64 if chosen == "base64" else results.as_numbers
    body = json.loads(b"".join(results.write_json(page, shards.parts(page), FLOAT32, embedding)))
    if chosen == "base64":
        for item in body["data"]:
            if "embedding" in item:
                item["embedding"] = np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4").tolist()
    assert (body["offset"], body["count"], body["total"]) == (offset, len(body["data"]), 7)
    return page, body["data"]


@pytest.mark.parametrize("pieces", [1, 6, 65_536])
@pytest.mark.parametrize("chosen", ["json", "base64", "ndjson"])
@pytest.mark.parametrize(("offset", "limit"), [(0, None), (0, 1), (2, 3), (4, 1), (7, None)])
def test_items_are_the_same_in_every_format(
    monkeypatch: pytest.MonkeyPatch, chosen: str, offset: int, limit: int | None, pieces: int
) -> None:
    monkeypatch.setattr(results, "PIECE_FLOATS", pieces)
    page, items = read_items(chosen, offset, limit)
    assert [item["index"] for item in items] == list(range(offset, page.end))
    for item in items:
        index = item["index"]
        assert item["id"] is None
        if index in FAILED:
            assert item == {"index": index, "id": None, "error": {"code": "code", "message": "message", "retryable": True}}
        else:
            assert [np.float32(number) for number in item["embedding"]] == [np.float32(number) for number in vector(index)]
            assert (item["tokens"], item["truncated"]) == (index % 3, index % 3 == 0)


@pytest.mark.parametrize("chosen", ["json", "base64", "ndjson"])
@pytest.mark.parametrize("name", list(DTYPES))
def test_items_hold_the_numbers_of_the_dtype(chosen: str, name: str) -> None:
    shards, dtype = FinishedShards(job_of(7), ALL, FAILED), DTYPES[name]
    page = shards.page()
    if chosen == "ndjson":
        items = [json.loads(line) for line in b"".join(results.write_ndjson(shards.parts(page), dtype)).splitlines()]
    else:
        embedding = results.as_base64 if chosen == "base64" else results.as_numbers
        items = json.loads(b"".join(results.write_json(page, shards.parts(page), dtype, embedding)))["data"]
    for item in items:
        if item["index"] in FAILED:
            assert set(item) == {"index", "id", "error"}
            continue
        rows, scales = dtype.of(np.array([vector(item["index"])], dtype="<f4"))
        found = item["embedding"]
        if chosen == "base64":
            assert base64.b64decode(found) == rows.tobytes()
        else:
            assert np.array(found, dtype=dtype.numpy).tobytes() == rows.tobytes()
        assert ("scale" in item) == dtype.scaled
        if scales is not None:
            assert np.float32(item["scale"]) == scales[0]


def test_length_of_vectors_that_nobody_knows_yet_is_not_ready_and_that_of_none_at_all_is_refused() -> None:
    with pytest.raises(JobNotReady):
        results.dimensions_of(replace(job_of(7, RUNNING), dimensions=None))
    with pytest.raises(InvalidRequest, match="ended before anything of it was finished"):
        results.dimensions_of(replace(job_of(7, CANCELLED), dimensions=None))


def test_one_shard_is_read_at_a_time() -> None:
    shards = FinishedShards(job_of(7), ALL)
    pieces = results.write_ndjson(results.started(shards.parts(shards.page())), FLOAT32)
    assert shards.reads == 1
    next(pieces)
    assert shards.reads == 1
    next(pieces)
    assert shards.reads == 2


def test_error_at_the_first_shard_comes_before_the_answer_begins() -> None:
    class Gone(FinishedShards):
        def result(self, job_id: str, span: Span) -> ResultBlock:
            raise JobNotFound("gone")

    shards = Gone(job_of(7), ALL)
    with pytest.raises(JobNotFound):
        results.started(shards.parts(shards.page()))
    assert list(results.started(iter(()))) == []
