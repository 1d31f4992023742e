"""The Python client against a real API, with connections that are lost at every bad moment."""

import itertools
import socket
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from core.keys import append, digest_of
from tests.client.conftest import KEY, OtherApi, port_of
from tests.client.relay import Relay
from tests.fakes import DIMENSIONS, vector_of
from tests.processes import Stack, free_port, wait_for
from vector_api_client import (
    BadInput,
    BadSetting,
    Client,
    Conflict,
    Inputs,
    InputsFailed,
    NotFound,
    RequestRefused,
    TimedOut,
    TooLarge,
    TryLater,
    Unauthorized,
    Unavailable,
)
from vector_api_client.inputs import MOST_BYTES_HELD

pytestmark = pytest.mark.integration

TOO_LONG = "word " * 300
BOBS_KEY = "va_another-key"


def texts(count: int, start: int = 0) -> list[str]:
    return [f"text number {n}" for n in range(start, start + count)]


def slow(count: int) -> list[str]:
    """Texts of 100 tokens: 5 ms each."""
    return [f"slow {n} " + "word " * 96 for n in range(count)]


def expected(inputs: list[str]) -> np.ndarray:
    return np.stack([vector_of(text) for text in inputs])


@pytest.fixture(scope="module")
def strict_url(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of an API with low limits, and with two tenants: the limits of one do not disturb the other."""
    keys = tmp_path_factory.mktemp("strict") / "keys"
    for tenant, key in (("alice", KEY), ("bob", BOBS_KEY)):
        append(keys, f"{tenant}:{digest_of(key)}")
    api = OtherApi(stack)
    yield api.start(API_KEYS_FILE=str(keys), MAX_STREAM_BYTES="2000", MAX_TENANT_REQUESTS_PER_MINUTE="60")
    api.stop()


# What comes back ------------------------------------------------------------------------------------------------------


def test_embed_gives_the_vectors_in_order(client: Client) -> None:
    found = client.embed(texts(300))
    assert (found.dtype, found.shape) == (np.float32, (300, DIMENSIONS))
    np.testing.assert_allclose(found, expected(texts(300)), rtol=1e-6)


def test_options_reach_the_job(client: Client) -> None:
    job = client.submit(["a"], dimensions=4, normalize=False, metadata={"ünder": "score"}, prompt_name=None, ttl_seconds=60)
    ended = client.wait(job)
    assert (ended.status, ended.dimensions, ended.metadata) == ("succeeded", 4, {"ünder": "score"})
    assert ended.record["normalize"] is False
    assert client.result(job).vectors.shape == (1, 4)


def test_dry_run_gives_figures_and_no_vectors(client: Client) -> None:
    found = client.dry_run(["one", "one", "two words", "word " * 300], truncate="chunk", timeout_seconds=60)
    assert (found["inputs"], found["tokens"], found["over_long"], found["duplicates"]) == (4, 3 + 3 + 4 + 304, 1, 1)
    (job,) = zip(client.jobs(), range(1), strict=False)
    with pytest.raises(RequestRefused, match="dry run"):
        client.result(job[0])


def test_result_tells_ids_failures_and_cut_texts(client: Client) -> None:
    inputs = [{"id": "a", "text": "one"}, TOO_LONG, {"id": "b", "text": "two"}]
    found = client.result(client.submit(inputs, truncate="error"))
    assert found.ids == ["a", None, "b"]
    assert np.isnan(found.vectors).tolist() == [[False] * DIMENSIONS, [True] * DIMENSIONS, [False] * DIMENSIONS]
    assert [(error.index, error.code) for error in found.errors] == [(1, "text_too_long")]
    assert client.result(client.submit(["a", TOO_LONG])).truncated == [1]


def test_embed_raises_with_what_there_is(client: Client) -> None:
    with pytest.raises(InputsFailed, match=r"1 of 2 inputs have no vector: inputs\[0\]") as caught:
        client.embed([TOO_LONG, "fine"], truncate="error")
    np.testing.assert_allclose(caught.value.result.vectors[1], vector_of("fine"), rtol=1e-6)


def test_job_without_any_vector_has_no_dimensions(client: Client) -> None:
    found = client.result(client.submit([TOO_LONG, TOO_LONG], truncate="error"))
    assert found.vectors.shape[0] == len(found.errors) == 2
    with pytest.raises(InputsFailed, match="2 of 2"):
        client.embed([TOO_LONG, TOO_LONG], truncate="error")


def test_stream_yields_while_the_job_runs_and_from_any_place(client: Client) -> None:
    inputs = slow(200)
    job = client.submit(iter(inputs))
    results = client.stream(job)
    first = next(results)
    assert client.show(job).status == "running"
    assert [first.index, *(found.index for found in results)] == list(range(200))
    later = list(client.stream(job.id, offset=150))
    assert [found.index for found in later] == list(range(150, 200))
    np.testing.assert_allclose(later[0].embedding, vector_of(inputs[150]), rtol=1e-6)


def test_jobs_are_listed_newest_first_over_several_pages(client: Client) -> None:
    made = [client.submit(["x"]).id for _ in range(105)]
    assert [job.id for job in itertools.islice(client.jobs(), 105)] == made[::-1]
    client.wait(made[-1])
    assert all(job.status == "succeeded" for job in itertools.islice(client.jobs(status="succeeded"), 10))


def test_queues_and_health(client: Client) -> None:
    assert [queue["name"] for queue in client.queues()["data"]][:2] == ["cpu", "gpu"]
    assert client.health()["status"] == "ready"


# What is wrong with the request ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        (["a", ""], r"inputs\[1\] text is empty"),
        (["a", "b", 3], r"inputs\[2\] must be a text or a mapping"),
        (["\ud83d"], r"inputs\[0\] text has a lone surrogate"),
        ([{"id": 7, "text": "a"}], r"inputs\[0\] id must be a string of at most 256 characters, got int"),
        ([{"text": "a", "no": 1}], r"inputs\[0\] has the unknown key 'no'"),
    ],
)
def test_bad_input_is_told_before_anything_is_sent(inputs: list[str], problem: str) -> None:
    with Client(f"http://127.0.0.1:{free_port()}", retry_seconds=0) as nowhere, pytest.raises(BadInput, match=problem):
        nowhere.submit(inputs)


def test_one_text_is_not_a_list_of_its_letters(client: Client) -> None:
    with pytest.raises(TypeError, match="not one text"):
        client.submit("one text")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", ""])
def test_bad_url_is_told_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTOR_API_URL", "nonsense")
    with pytest.raises(BadSetting, match="must be like http://"):
        Client(url)


def test_refusals_have_their_classes(client: Client, strict_url: str) -> None:
    for unknown in ("job_unknown", "../queues", "?status=failed"):
        with pytest.raises(NotFound):
            client.show(unknown)
    with pytest.raises(RequestRefused, match="queue must be") as caught:
        client.submit(["a"], queue="tpu")
    assert (caught.value.status, caught.value.param) == (400, "queue")
    client.submit(["a"], idempotency_key="the same")
    with pytest.raises(Conflict):
        client.submit(["b"], idempotency_key="the same")
    for key in (None, "va_wrong"):
        with Client(strict_url, api_key=key) as stranger, pytest.raises(Unauthorized):
            stranger.submit(texts(10_000))
    with Client(strict_url, api_key=KEY) as alice:
        with pytest.raises(TooLarge, match="MAX_STREAM_BYTES"):
            alice.submit(texts(10_000))
        job = alice.submit(["a"])
        with pytest.raises(NotFound):
            client.show(job)


def test_retry_after_is_obeyed_and_given_up_in_time(strict_url: str) -> None:
    """60 requests a minute: after a burst of 60 there is one each second."""
    pauses: list[float] = []
    patient = Client(strict_url, api_key=BOBS_KEY, on_retry=lambda error, pause: pauses.append(pause))
    with patient as client, Client(strict_url, api_key=BOBS_KEY, retry_seconds=0) as hasty:
        deadline = time.monotonic() + 30
        while not pauses:
            client.queues()
            assert time.monotonic() < deadline
        assert all(1 <= pause < 1.2 for pause in pauses)
        with pytest.raises(TryLater) as caught:
            list(map(Client.queues, [hasty] * 60))
        assert caught.value.retry_after_seconds == 1


# Lost connections -----------------------------------------------------------------------------------------------------


def test_lost_answer_makes_no_second_job(client: Client, lossy: Client, relay: Relay) -> None:
    relay.cuts = [0, 20]
    inputs = texts(5000)
    job = lossy.submit(text for text in inputs)
    assert relay.connections == 3
    assert [found.id for found in itertools.islice(client.jobs(), 2) if found.total == 5000] == [job.id]
    client.delete(job)


def test_result_is_whole_after_cuts_in_the_middle_of_pages(lossy: Client, relay: Relay) -> None:
    inputs = texts(3000)
    job = lossy.wait(lossy.submit(inputs))
    relay.drop_all()
    relay.cuts = [100, 20_000, 5000, 70_000]
    found = lossy.result(job)
    assert relay.cuts == []
    np.testing.assert_allclose(found.vectors, expected(inputs), rtol=1e-6)


def test_stream_goes_on_after_the_api_was_killed(url: str, relay: Relay, other_api: OtherApi) -> None:
    """The next one, over the same Redis, is there when the client has asked once more in vain."""
    relay.target = port_of(other_api.start())
    inputs = slow(400)  # more than the first page holds
    rows = []
    with Client(relay.url, on_retry=lambda error, pause: setattr(relay, "target", port_of(url))) as lossy:
        for found in lossy.stream(lossy.submit(inputs)):
            if found.index == 40:
                other_api.kill()
            rows.append(found.embedding)
    assert relay.target == port_of(url)
    np.testing.assert_allclose(np.stack(rows), expected(inputs), rtol=1e-6)


def test_lost_answer_of_a_cancel_deletes_nothing(client: Client, lossy: Client, relay: Relay) -> None:
    job = client.submit(slow(400))
    wait_for(lambda: client.show(job).status == "running", what="the job's start")
    relay.cuts = [20]
    cancelled = lossy.cancel(job)
    assert relay.connections == 2
    assert cancelled.status == client.show(job).status == "cancelled"
    assert cancelled.done < 400


def test_job_that_ends_while_it_is_cancelled_keeps_its_vectors(client: Client, lossy: Client, relay: Relay) -> None:
    job = client.submit(slow(50))

    def let_it_end(piece: bytes) -> bytes:
        if not piece.startswith(b"GET "):
            client.wait(job)
        return piece

    relay.asking = let_it_end
    assert lossy.cancel(job).status == "succeeded"
    assert client.result(job).vectors.shape == (50, DIMENSIONS)


def test_cancel_is_tried_again_with_pauses_and_given_up(client: Client, relay: Relay) -> None:
    job, lost, retries = client.submit(slow(400)), list[bytes](), list[float]()

    def lose(piece: bytes) -> bytes:
        if not piece.startswith(b"GET ") and len(lost) < 200:
            lost.append(piece)
            raise ConnectionError
        return piece

    relay.asking = lose
    with (
        Client(relay.url, retry_seconds=1, on_retry=lambda error, pause: retries.append(pause)) as hasty,
        pytest.raises(Unavailable),
    ):
        hasty.cancel(job)
    assert len(lost) == len(retries) + 1 < 10
    client.delete(job)


def test_lost_answer_of_a_delete_is_no_error(client: Client, lossy: Client, relay: Relay) -> None:
    job = client.wait(client.submit(["a"]))

    def cut(piece: bytes) -> bytes:
        if b'"deleted":true' in piece:
            raise ConnectionError
        return piece

    relay.answering = cut
    lossy.delete(job)
    assert relay.connections == 2
    with pytest.raises(NotFound):
        client.show(job)


def test_cancel_leaves_what_was_over(client: Client) -> None:
    job = client.wait(client.submit(["a"]))
    assert client.cancel(job).status == "succeeded"
    assert client.result(job).ids == [None]


def test_delete_ends_a_running_job_and_removes_it(client: Client) -> None:
    job = client.submit(slow(400))
    client.delete(job)
    with pytest.raises(NotFound):
        client.show(job)
    with pytest.raises(NotFound):
        client.delete(job)


def test_nobody_there_is_told_after_the_time_for_retries() -> None:
    port, retries = free_port(), list[float]()
    with Client(f"http://127.0.0.1:{port}", retry_seconds=1, on_retry=lambda error, pause: retries.append(pause)) as client:
        started = time.monotonic()
        with pytest.raises(Unavailable, match=rf"http://127.0.0.1:{port} does not answer \(Connection refused\)"):
            client.queues()
        assert retries
        assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "wait",
    [lambda client, job: client.wait(job, timeout_seconds=0.3), lambda client, job: client.result(job, timeout_seconds=0.3)],
)
def test_total_timeout_ends_the_call_and_not_the_job(client: Client, wait: object) -> None:
    job = client.submit(slow(400))
    started = time.monotonic()
    with pytest.raises(TimedOut, match=r"0\.3 s; the job goes on"):
        wait(client, job)  # type: ignore[operator]
    assert time.monotonic() - started < 2
    assert not client.show(job).ended
    client.delete(job)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.wait("job_x", timeout_seconds=0.5),
        lambda client: client.result("job_x", timeout_seconds=0.5),
        lambda client: client.submit(["a"], timeout_seconds=0.5),
        lambda client: client.embed(["a"], timeout_seconds=0.5),
    ],
)
@pytest.mark.parametrize("silent", [True, False], ids=["nobody answers", "nobody is there"])
def test_total_timeout_holds_where_the_service_is_away(call: Callable[[Client], object], silent: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1] if silent else free_port()
        with Client(f"http://127.0.0.1:{port}", retry_seconds=5) as client:
            started = time.monotonic()
            with pytest.raises(TimedOut, match="; the job goes on"):
                call(client)
            assert time.monotonic() - started < 2


def test_inputs_are_spooled_and_sent_as_often_as_needed() -> None:
    large = ["x" * MOST_BYTES_HELD, "y", "z"]

    def produce() -> Iterator[str]:
        yield from large

    with Inputs(produce()) as inputs, Inputs(large) as again:
        assert inputs.count == len(large)
        assert inputs.size_bytes > MOST_BYTES_HELD
        assert b"".join(inputs.pieces()) == b"".join(inputs.pieces())
        assert inputs.digest() == again.digest()
