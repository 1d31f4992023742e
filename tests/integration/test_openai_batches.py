"""Files and batches through OpenAI's own client, unmodified, with a real worker."""

import base64
import io
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai.types import Batch

from launcher.redis_server import RedisServer
from tests.conftest import QUICK
from tests.fakes import vector_of
from tests.integration.test_api_end_to_end import Memory
from tests.processes import ROOT, Stack, running_stack, wait_for

pytestmark = pytest.mark.integration

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
MANY = 6_000
MOST_GROWTH_BYTES = 20 * 2**20
FINAL = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("batches")
    with RedisServer(folder / "redis", {"appendfsync": "no"}) as server:
        for found in running_stack(server.url, folder, QUICK | {"SHARD_INPUTS": "16"}):
            found.api()
            found.worker(FAKE_BATCH_SECONDS="0.02", BATCH_SIZE="4")
            yield found


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.base_url}/v1", api_key="none", max_retries=0) as found:
        yield found


def line(custom_id: str, texts: str | list[str], **body: Any) -> dict[str, Any]:
    body = {"model": MODEL, "input": texts} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}


def send(client: openai.OpenAI, lines: list[dict[str, Any]]) -> str:
    content = "\n".join(map(json.dumps, lines)).encode()
    return client.files.create(file=("texts.jsonl", io.BytesIO(content)), purpose="batch").id


def start(client: openai.OpenAI, lines: list[dict[str, Any]], **options: Any) -> Batch:
    return client.batches.create(input_file_id=send(client, lines), endpoint="/v1/embeddings", completion_window="24h", **options)


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    def batch_if_ended() -> Batch | None:
        found = client.batches.retrieve(batch.id)
        return found if found.status in FINAL else None

    return wait_for(batch_if_ended, seconds=60, what="the batch's end")  # type: ignore[return-value]


def content(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()] if file_id else []


def test_batch_from_file_to_file(client: openai.OpenAI) -> None:
    file = client.files.create(
        file=("texts.jsonl", json.dumps(line("only", "x")).encode()),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert (file.object, file.filename, file.purpose, file.status) == ("file", "texts.jsonl", "batch", "processed")
    assert file.expires_at == file.created_at + 7200
    assert file.bytes == len(client.files.content(file.id).content)
    assert client.files.retrieve(file.id) == file
    lines = [line(f"n{n}", [f"text {n}", f"more {n}"] if n % 3 else f"text {n}") for n in range(2500)]
    batch = start(client, lines, metadata={"run": "7"}, output_expires_after={"anchor": "created_at", "seconds": 3600})
    assert (batch.status, batch.request_counts.total, batch.metadata) == ("in_progress", 2500, {"run": "7"})  # type: ignore[union-attr]
    done = ended(client, batch)
    assert done.status == "completed"
    assert done.request_counts.to_dict() == {"total": 2500, "completed": 2500, "failed": 0}  # type: ignore[union-attr]
    assert done.error_file_id is None
    found = content(client, done.output_file_id)
    assert [item["custom_id"] for item in found] == [item["custom_id"] for item in lines]
    assert len({item["id"] for item in found}) == 2500
    tokens = 0
    for item, asked in zip(found, lines, strict=True):
        texts = asked["body"]["input"] if isinstance(asked["body"]["input"], list) else [asked["body"]["input"]]
        body = item["response"]["body"]
        assert (item["error"], item["response"]["status_code"]) == (None, 200)
        assert [entry["index"] for entry in body["data"]] == list(range(len(texts)))
        for entry, text in zip(body["data"], texts, strict=True):
            np.testing.assert_allclose(entry["embedding"], vector_of(text), rtol=1e-6)
        assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] == 4 * len(texts)
        tokens += body["usage"]["total_tokens"]
    assert done.usage is not None
    assert done.usage.total_tokens == tokens
    output = client.files.retrieve(done.output_file_id or "")
    assert output.bytes == len(client.files.content(output.id).content)
    assert (output.purpose, output.filename) == ("batch_output", f"{done.id}_output.jsonl")
    assert output.expires_at is not None
    assert abs(output.expires_at - output.created_at - 3600) <= 1


def test_example_of_the_documentation_runs(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.+?)^```", (ROOT / "docs" / "batches.md").read_text(), re.MULTILINE | re.DOTALL)
    exec(example.replace("http://127.0.0.1:8000", stack.base_url), {})
    assert [shown.split()[0] for shown in capsys.readouterr().out.splitlines()] == ["text-0", "text-1"]


def test_base64_and_options_reach_the_vectors(client: openai.OpenAI) -> None:
    lines = [line("a", "text", dimensions=4, encoding_format="base64"), line("b", "text", dimensions=4)]
    first, second = content(client, ended(client, start(client, lines)).output_file_id)
    as_base64 = first["response"]["body"]["data"][0]["embedding"]
    vector = np.frombuffer(base64.b64decode(as_base64), "<f4")
    expected = vector_of("text")[:4] / np.linalg.norm(vector_of("text")[:4])
    np.testing.assert_allclose(vector, expected, rtol=1e-6)
    np.testing.assert_array_equal(np.array(second["response"]["body"]["data"][0]["embedding"], np.float32), vector)


def test_lines_that_fail_are_in_the_error_file(client: openai.OpenAI) -> None:
    lines = [line(f"n{n}", f"text {n}", truncate="error") for n in range(200)]
    lines[3]["body"]["input"] = ["fine", "word " * 300]
    lines[150]["body"]["input"] = "RAISE an error"
    done = ended(client, start(client, lines))
    assert (done.status, done.request_counts.to_dict()) == ("completed", {"total": 200, "completed": 198, "failed": 2})  # type: ignore[union-attr]
    output, errors = content(client, done.output_file_id), content(client, done.error_file_id)
    assert {item["custom_id"] for item in output} == {f"n{n}" for n in range(200)} - {"n3", "n150"}
    assert [(item["custom_id"], item["response"]["status_code"], item["error"]) for item in errors] == [
        ("n3", 400, None),
        ("n150", 500, None),
    ]
    assert errors[0]["response"]["body"]["error"]["code"] == "text_too_long"
    assert errors[0]["response"]["body"]["error"]["param"] == "input[1]"
    assert client.files.retrieve(done.error_file_id or "").bytes == len(client.files.content(done.error_file_id or "").content)


def test_more_failures_than_the_job_tells_are_all_found(client: openai.OpenAI) -> None:
    lines = [line(f"n{n}", "word " * 300 if n % 2 else "fine", truncate="error") for n in range(400)]
    done = ended(client, start(client, lines))
    assert done.request_counts.to_dict() == {"total": 400, "completed": 200, "failed": 200}  # type: ignore[union-attr]
    assert [item["custom_id"] for item in content(client, done.error_file_id)] == [f"n{n}" for n in range(1, 400, 2)]
    assert [item["custom_id"] for item in content(client, done.output_file_id)] == [f"n{n}" for n in range(0, 400, 2)]


def test_batch_without_any_vector_is_completed_with_errors_only(client: openai.OpenAI) -> None:
    done = ended(client, start(client, [line("a", "word " * 300, truncate="error")]))
    assert (done.status, done.output_file_id) == ("completed", None)
    assert [item["custom_id"] for item in content(client, done.error_file_id)] == ["a"]


def test_cancelled_batch_keeps_what_was_done(client: openai.OpenAI) -> None:
    lines = [line(f"n{n}", f"text {n}") for n in range(4000)]
    batch = start(client, lines)
    wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed > 0, what="the first lines")  # type: ignore[union-attr]
    done = client.batches.cancel(batch.id)
    assert done.status == "cancelled"
    assert done.cancelled_at is not None
    counts = done.request_counts
    assert counts is not None
    assert 0 < counts.completed < 4000
    output, errors = content(client, done.output_file_id), content(client, done.error_file_id)
    assert (len(output), len(errors)) == (counts.completed, counts.failed)
    assert sorted(item["custom_id"] for item in output + errors) == sorted(item["custom_id"] for item in lines)
    assert {(item["response"], item["error"]["code"]) for item in errors} == {(None, "batch_cancelled")}
    assert client.batches.cancel(batch.id) == client.batches.retrieve(batch.id) == done


def test_worker_killed_in_the_middle_loses_no_line(client: openai.OpenAI, stack: Stack) -> None:
    lines = [line(f"n{n}", f"text {n}") for n in range(2000)]
    batch = start(client, lines)
    wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed > 0, what="the first lines")  # type: ignore[union-attr]
    worker = stack.started[1]
    for child in worker.children():
        os.kill(child, signal.SIGKILL)
    done = ended(client, batch)
    assert done.request_counts.to_dict() == {"total": 2000, "completed": 2000, "failed": 0}  # type: ignore[union-attr]
    found = content(client, done.output_file_id)
    assert [item["custom_id"] for item in found] == [item["custom_id"] for item in lines]
    for n in range(0, 2000, 97):
        np.testing.assert_allclose(found[n]["response"]["body"]["data"][0]["embedding"], vector_of(f"text {n}"), rtol=1e-6)


def test_many_lines_pass_through_little_memory(client: openai.OpenAI, stack: Stack, tmp_path: Path) -> None:
    """Of a file of 24 MB, and its output, the API holds a few pieces."""
    path = tmp_path / "texts.jsonl"
    with path.open("w") as file:
        for n in range(MANY):
            file.write(json.dumps(line(f"n{n}", f"text {n} " + "word " * 800)) + "\n")
    start(client, [line("warm", "up")])
    with Memory(stack.started[0]) as memory:
        sent = client.files.create(file=path, purpose="batch")
        batch = client.batches.create(input_file_id=sent.id, endpoint="/v1/embeddings", completion_window="24h")
        assert batch.request_counts is not None
        assert batch.request_counts.total == MANY
        done = client.batches.cancel(batch.id)
        counts = done.request_counts
        assert counts is not None
        for file_id, lines in ((done.output_file_id, counts.completed), (done.error_file_id, counts.failed)):
            if file_id:
                with client.files.with_streaming_response.content(file_id) as content_:
                    assert sum(1 for _ in content_.iter_lines()) == lines
    assert memory.growth < MOST_GROWTH_BYTES, memory
    client.files.delete(sent.id)


def test_lists_are_paged(client: openai.OpenAI) -> None:
    started = [start(client, [line("a", f"text {n}")]) for n in range(5)]
    for batch in started:
        ended(client, batch)
    newest = [batch.id for batch in reversed(started)]
    page = client.batches.list(limit=2)
    assert ([batch.id for batch in page.data], page.has_more) == (newest[:2], True)
    found = []
    for batch in client.batches.list(limit=2):
        found.append(batch.id)
        if len(found) == 5:
            break
    assert found == newest
    sent = [batch.input_file_id for batch in reversed(started)]
    assert [file.id for file in client.files.list(purpose="batch", limit=3).data] == sent[:3]
    outputs = [file.id for file in client.files.list(purpose="batch_output", limit=5).data]
    assert sorted(outputs) == sorted(client.batches.retrieve(batch).output_file_id or "" for batch in newest)
    forwards = [file.id for file in client.files.list(order="asc", limit=1000)]
    assert [file.id for file in client.files.list(limit=3)] == forwards[::-1]
    assert len(forwards) == len(set(forwards)) > 10


def test_deleted_files_are_gone_and_free_the_vectors(client: openai.OpenAI) -> None:
    done = ended(client, start(client, [line("a", "text"), line("b", "word " * 300, truncate="end")]))
    output = done.output_file_id or ""
    job = f"/jobs/{done.id.replace('batch_', 'job_')}/result"
    assert client.get(job, cast_to=object)["count"] == 2  # type: ignore[index]
    assert client.files.delete(output).to_dict() == {"id": output, "object": "file", "deleted": True}
    with pytest.raises(openai.NotFoundError, match="deleted with the files of its batch"):
        client.get(job, cast_to=object)
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(output)
    assert output not in [file.id for file in client.files.list()]
    after = client.batches.retrieve(done.id)
    assert (after.status, after.output_file_id, after.request_counts) == ("completed", None, done.request_counts)
    client.files.delete(done.input_file_id)
    with pytest.raises(openai.NotFoundError):
        client.files.content(done.input_file_id)


def test_errors_are_the_clients_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no file"):
        client.batches.create(input_file_id="file-none", endpoint="/v1/embeddings", completion_window="24h")
    with pytest.raises(openai.BadRequestError, match="endpoint"):
        client.batches.create(input_file_id="file-none", endpoint="/v1/responses", completion_window="24h")
    with pytest.raises(openai.BadRequestError, match="purpose must be 'batch'"):
        client.files.create(file=("a", b"x"), purpose="fine-tune")
    done = ended(client, start(client, [line("a", "text")]))
    with pytest.raises(openai.ConflictError, match="completed already"):
        client.batches.cancel(done.id)
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")


def test_bad_file_fails_the_batch_with_line_numbers(client: openai.OpenAI) -> None:
    lines = [line("a", "text"), line("a", "text"), line("b", [1, 2, 3])]  # type: ignore[list-item]
    batch = start(client, lines, metadata={"k": "v"})
    assert (batch.status, batch.request_counts.to_dict()) == ("failed", {"total": 0, "completed": 0, "failed": 0})  # type: ignore[union-attr]
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert [(error.code, error.line, error.param) for error in batch.errors.data or ()] == [
        ("duplicate_custom_id", 2, "custom_id"),
        ("invalid_request", 3, "body.input[0]"),
    ]
    assert client.batches.retrieve(batch.id) == batch
    with pytest.raises(openai.ConflictError, match="failed already"):
        client.batches.cancel(batch.id)
