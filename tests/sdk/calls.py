"""What users call of OpenAI's Python client, against a running API: run by `test_sdks.py` with several versions of the client.

    BASE_URL=http://…/v1 HASTY_URL=http://…/v1 API_KEY=… WANTED=vectors.json python calls.py

Needs `openai` and nothing else, so that any version can run it in an environment of its own. `WANTED` holds texts and their
vectors. The API at HASTY_URL has little patience and few inputs a minute. Prints the client's version, then each call that
did what it should; the first that does not ends the process with a traceback. `node/calls.mjs` is the same for Node.
"""

import asyncio
import base64
import json
import math
import os
import struct
import time
from collections.abc import Sequence
from typing import Any

import openai
from openai import OpenAI

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
BASE_URL, HASTY_URL, API_KEY = (os.environ[name] for name in ("BASE_URL", "HASTY_URL", "API_KEY"))
with open(os.environ["WANTED"]) as file:
    WANTED: dict[str, list[float]] = json.load(file)
TEXTS = list(WANTED)
DEADLINE_SECONDS = 60

client = OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)
hasty = OpenAI(base_url=HASTY_URL, api_key=API_KEY, max_retries=0)


# What the calls share ---------------------------------------------------------------------------------------------------


def is_near(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return len(found) == len(wanted) and all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(found, wanted, strict=True))


def check_vectors(answer: Any, texts: Sequence[str]) -> None:
    assert [item.index for item in answer.data] == list(range(len(texts)))
    for item, text in zip(answer.data, texts, strict=True):
        assert is_near(item.embedding, WANTED[text]), (text, item.embedding)


def raised(kind: type[Exception], call: Any, *args: Any, **options: Any) -> Any:
    """The error of a call; it is of exactly this class."""
    found = None
    try:
        call(*args, **options)
    except openai.OpenAIError as error:
        found = error
    assert type(found) is kind, repr(found)
    return found


def line(custom_id: str, text: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": {"model": MODEL, "input": text} | body}


def send(lines: Sequence[dict[str, Any]]) -> Any:
    content = "\n".join(json.dumps(item) for item in lines).encode()
    return client.files.create(file=("texts.jsonl", content), purpose="batch")


def start(lines: Sequence[dict[str, Any]], **options: Any) -> Any:
    return client.batches.create(
        input_file_id=send(lines).id, endpoint="/v1/embeddings", completion_window="24h", metadata={"run": "7"}, **options
    )


def ended(batch: Any) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def read(file_id: str | None) -> list[dict[str, Any]]:
    """The lines of an output, or of none."""
    return [json.loads(item) for item in client.files.content(file_id).text.splitlines()] if file_id else []


# The calls --------------------------------------------------------------------------------------------------------------


def embeddings() -> None:
    plain = client.embeddings.create(model=MODEL, input=TEXTS)  # asks for base64 by itself
    check_vectors(plain, TEXTS)
    assert (plain.model, plain.object) == (MODEL, "list")
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > len(TEXTS)
    as_floats = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    check_vectors(as_floats, TEXTS)
    check_vectors(client.embeddings.create(model=MODEL, input=TEXTS[0], user="me"), TEXTS[:1])


def embeddings_in_base64() -> None:
    answer = client.embeddings.create(model=MODEL, input=TEXTS[:2], encoding_format="base64")
    for item, text in zip(answer.data, TEXTS[:2], strict=True):
        content = base64.b64decode(str(item.embedding))
        assert is_near(struct.unpack(f"<{len(content) // 4}f", content), WANTED[text])


def embeddings_in_fewer_dimensions() -> None:
    answer = client.embeddings.create(model=MODEL, input=TEXTS[:1], dimensions=3)
    start_of = WANTED[TEXTS[0]][:3]
    assert is_near(answer.data[0].embedding, [number / math.hypot(*start_of) for number in start_of])


def embeddings_of_the_async_client() -> None:
    async def embed() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY) as found:
            return await asyncio.gather(*[found.embeddings.create(model=MODEL, input=text) for text in TEXTS])

    for text, answer in zip(TEXTS, asyncio.run(embed()), strict=True):
        check_vectors(answer, [text])


def models() -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    assert raised(openai.NotFoundError, client.models.retrieve, "gpt-4").code == "model_not_found"


def files() -> None:
    lines = [line("a", TEXTS[0])]
    file = send(lines)
    assert (file.object, file.purpose, file.filename) == ("file", "batch", "texts.jsonl")
    assert client.files.retrieve(file.id).bytes == file.bytes == len(client.files.content(file.id).content)
    assert read(file.id) == lines
    assert file.id in [found.id for found in client.files.list(purpose="batch")]
    assert client.files.delete(file.id).deleted is True
    raised(openai.NotFoundError, client.files.content, file.id)
    assert file.id not in [found.id for found in client.files.list()]


def batch_to_the_end() -> None:
    lines = [line(f"n{n}", TEXTS[n % len(TEXTS)], truncate="error") for n in range(300)]
    lines[3]["body"]["input"] = "word " * 300
    batch = start(lines)
    assert batch.request_counts is not None
    assert (batch.status, batch.request_counts.total, batch.metadata) == ("in_progress", 300, {"run": "7"})
    done = ended(batch)
    assert done.request_counts is not None
    counts = done.request_counts
    assert (done.status, counts.completed, counts.failed, counts.total) == ("completed", 299, 1, 300)
    output, errors = read(done.output_file_id), read(done.error_file_id)
    assert [(item["custom_id"], item["response"]["status_code"]) for item in errors] == [("n3", 400)]
    assert [item["custom_id"] for item in output] == [item["custom_id"] for item in lines if item["custom_id"] != "n3"]
    for item in output:
        text = TEXTS[int(item["custom_id"][1:]) % len(TEXTS)]
        assert is_near(item["response"]["body"]["data"][0]["embedding"], WANTED[text])
    with client.files.with_streaming_response.content(done.output_file_id or "") as content:
        assert sum(1 for _ in content.iter_lines()) == 299
    raised(openai.ConflictError, client.batches.cancel, done.id)


def batch_that_is_cancelled() -> None:
    lines = [line(f"n{n}", TEXTS[n % len(TEXTS)]) for n in range(4000)]
    done = ended(client.batches.cancel(start(lines).id))
    assert done.status == "cancelled"
    assert done.cancelled_at is not None
    output, errors = read(done.output_file_id), read(done.error_file_id)
    assert sorted(item["custom_id"] for item in output + errors) == sorted(item["custom_id"] for item in lines)
    assert {item["error"]["code"] for item in errors} == {"batch_cancelled"}


def batch_of_a_wrong_file() -> None:
    batch = start([line("a", TEXTS[0]), line("a", TEXTS[0])])
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(error.code, error.line) for error in batch.errors.data or ()] == [("duplicate_custom_id", 2)]


def lists_in_pages() -> None:
    newest = [start([line("a", TEXTS[0])]) for _ in range(5)][::-1]
    page = client.batches.list(limit=2)
    assert ([batch.id for batch in page.data], page.has_next_page()) == ([batch.id for batch in newest[:2]], True)
    found = [batch.id for batch in client.batches.list(limit=2)]
    assert found[:5] == [batch.id for batch in newest]
    assert len(set(found)) == len(found) > 5
    sent = [file.id for file in client.files.list(purpose="batch", limit=2)]
    assert sent[:5] == [batch.input_file_id for batch in newest]
    assert sent == [file.id for file in client.files.list(purpose="batch", limit=1000)]


def errors() -> None:
    empty = raised(openai.BadRequestError, client.embeddings.create, model=MODEL, input=["a", ""])
    assert (empty.param, empty.code, empty.type) == ("input[1]", "invalid_request", "invalid_request_error")
    assert empty.request_id
    too_long = {"input": "word " * 300, "extra_body": {"truncate": "error"}}
    assert raised(openai.BadRequestError, client.embeddings.create, model=MODEL, **too_long).code == "context_length_exceeded"
    assert raised(openai.NotFoundError, client.embeddings.create, model="ada", input="a").code == "model_not_found"
    broken = raised(openai.InternalServerError, client.embeddings.create, model=MODEL, input="RAISE")
    assert (broken.status_code, broken.code) == (500, "embedding_failed")
    stranger = OpenAI(base_url=BASE_URL, api_key="va_nobody")
    assert raised(openai.AuthenticationError, stranger.embeddings.create, model=MODEL, input="a").code == "invalid_api_key"
    impatient = client.with_options(timeout=0.3)
    raised(openai.APITimeoutError, impatient.embeddings.create, model=MODEL, input=TEXTS[0], extra_body={"queue": "gpu"})
    nowhere = OpenAI(base_url="http://127.0.0.1:1/v1", api_key="none", max_retries=0)
    raised(openai.APIConnectionError, nowhere.models.list)


def retries_after_503() -> None:
    """The vectors take longer than the API waits; with a key the work goes on, and the client's next try finds it."""
    asked: dict[str, Any] = {"model": MODEL, "input": TEXTS[0], "extra_body": {"queue": "gpu"}}
    late = raised(openai.InternalServerError, hasty.embeddings.create, **asked)
    assert (late.status_code, late.code) == (503, "not_in_time")
    patient = hasty.with_options(max_retries=9)
    answer = patient.embeddings.with_raw_response.create(**asked, extra_headers={"Idempotency-Key": os.urandom(8).hex()})
    assert answer.retries_taken >= 1
    assert answer.headers["idempotent-replayed"] == "true"
    check_vectors(answer.parse(), TEXTS[:1])


def retries_after_429() -> None:
    """One more try is enough, as it comes when it was told to; the pause that the client would choose is half a second."""
    first = hasty.embeddings.with_raw_response.create(model=MODEL, input=TEXTS[:1] * 30)
    asked: dict[str, Any] = {"model": MODEL, "input": TEXTS[:1] * (int(first.headers["x-ratelimit-remaining-inputs"]) + 4)}
    refused = raised(openai.RateLimitError, hasty.embeddings.create, **asked)
    assert refused.code == "rate_limit_exceeded"
    assert int(refused.response.headers["retry-after"]) >= 2
    answer = hasty.with_options(max_retries=1).embeddings.with_raw_response.create(**asked)
    assert answer.retries_taken == 1


CALLS = (
    embeddings,
    embeddings_in_base64,
    embeddings_in_fewer_dimensions,
    embeddings_of_the_async_client,
    models,
    files,
    batch_to_the_end,
    batch_that_is_cancelled,
    batch_of_a_wrong_file,
    lists_in_pages,
    errors,
    retries_after_503,
    retries_after_429,
)

if __name__ == "__main__":
    print(f"openai {openai.__version__}", flush=True)
    for call in CALLS:
        call()
        print(call.__name__, flush=True)
