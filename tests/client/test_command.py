"""The command `vector-api` as a user runs it: real processes against a real service."""

import csv
import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from core.keys import append, digest_of
from tests.client.conftest import KEY, OtherApi, Run
from tests.client.relay import Relay
from tests.fakes import vector_of
from tests.processes import Stack, free_port, wait_for
from vector_api_client import Client

pytestmark = pytest.mark.integration

COMMAND = str(Path(sys.executable).with_name("vector-api"))
TOO_LONG = "word " * 300
TRACEBACK = "Traceback"


@pytest.fixture
def start(environ: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command and go on."""
    started: list[subprocess.Popen[str]] = []

    def start_command(*arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        started.append(subprocess.Popen([COMMAND, *arguments], cwd=tmp_path, env=environ, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start_command
    for process in started:
        process.kill()
        process.communicate(timeout=30)


def slow(count: int) -> list[str]:
    """Texts that take 5 ms each."""
    return [f"slow {n} " + "word " * 96 for n in range(count)]


def write_jsonl(file: Path, texts: list[str]) -> None:
    file.write_text("".join(json.dumps(text) + "\n" for text in texts))


def expected(texts: list[str]) -> np.ndarray:
    return np.stack([vector_of(text) for text in texts])


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Files in and out -----------------------------------------------------------------------------------------------------


def test_dry_run_says_what_it_would_be_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["one", "two words", "one", TOO_LONG])
    done = run("embed", "a.jsonl", "-o", "a.npy", "--truncate", "chunk", "--chunk-overlap", "10", "--dry-run")
    assert done.code == 0, done.told
    figures = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    time = figures.pop("time")
    assert figures == {"texts": "4", "tokens": "324", "over-long": "1", "duplicates": "1", "vectors": "128 bytes"}
    assert time.startswith(("about ", "unknown: no worker"))
    assert left(tmp_path) == {"a.jsonl"}
    refused = run("embed", "a.jsonl", "-o", "a.npy", "--truncate", "error", "--dry-run")
    assert "would fail  1: the text has more tokens" in refused.out


def test_csv_becomes_parquet(run: Run, tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("key", "body"), *((f"k{n}", f"text\n{n}") for n in range(100))])
    done = run(
        "embed", "a.csv", "-o", "out.parquet", "--column", "body", "--id-column", "key", "--dimensions", "4", "--queue", "cpu"
    )
    assert done.code == 0, done.told
    assert re.search(r"^job job_\w+: 100 texts, queue cpu, model ", done.told)
    assert "100 vectors of 4 dimensions in out.parquet" in done.told
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == [f"k{n}" for n in range(100)]
    cut = expected([f"text\n{n}" for n in range(100)])[:, :4]
    found = np.array(table["embedding"].to_pylist())
    np.testing.assert_allclose(found, cut / np.linalg.norm(cut, axis=1, keepdims=True), rtol=1e-5)
    assert left(tmp_path) == {"a.csv", "out.parquet"}


def test_parquet_and_the_standard_input_become_npy_and_jsonl(run: Run, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    assert run("embed", "a.parquet", "-o", "a.npy").code == 0
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), expected(["a", "b"]), rtol=1e-6)
    assert run("embed", "-", "--format", "text", "-o", "b.jsonl", text="one\n\ntwo").code == 0
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [(row["index"], row["line"]) for row in rows] == [(0, 1), (1, 3)]
    np.testing.assert_allclose([row["embedding"] for row in rows], expected(["one", "two"]), rtol=1e-6)


def test_failed_texts_are_told_with_their_lines(run: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["fine", TOO_LONG, "fine too"])
    done = run("embed", "a.jsonl", "-o", "out.npy", "--truncate", "error")
    assert done.code == 3
    assert "2 vectors of 8 dimensions" in done.told
    assert "1 of 3 have no vector; out.npy.errors.jsonl says why of each. The first:\n  line 2: " in done.told
    (error,) = [json.loads(line) for line in (tmp_path / "out.npy.errors.jsonl").read_text().splitlines()]
    assert (error["index"], error["line"], error["code"]) == (1, 2, "text_too_long")
    assert np.isnan(np.load(tmp_path / "out.npy")).all(axis=1).tolist() == [False, True, False]


def test_bad_line_sends_nothing_unless_it_is_skipped(run: Run, client: Client, tmp_path: Path) -> None:
    lines = [json.dumps(f"text {n}") for n in range(1, 1101)]
    lines[999] = '{"text": oops}'
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    newest = client.submit(["x"]).id
    done = run("embed", "a.jsonl", "-o", "out.npy")
    assert (done.code, next(client.jobs()).id) == (2, newest)
    assert "a.jsonl has 1 bad line; nothing was sent\n  line 1,000 is not valid JSON at column 10" in done.told
    assert "--skip-bad" in done.told
    assert left(tmp_path) == {"a.jsonl"}
    done = run("embed", "a.jsonl", "-o", "out.npy", "--skip-bad")
    assert done.code == 3
    assert "1,099 texts, without 1 bad line" in done.told
    assert "1 of 1,100 have no vector" in done.told
    found = np.load(tmp_path / "out.npy")
    assert np.flatnonzero(np.isnan(found[:, 0])).tolist() == [999]
    np.testing.assert_allclose(found[1000:], expected([f"text {n}" for n in range(1001, 1101)]), rtol=1e-6)


def test_line_that_the_service_refuses_is_named_as_it_is_in_the_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n\n" + "x" * 200_001 + "\n")
    done = run("embed", "a.txt", "-o", "out.npy")
    assert done.code == 2
    assert "a.txt line 4 is refused by the service: has 200001 characters, the limit is 200000" in done.told
    assert left(tmp_path) == {"a.txt"}


def test_no_file_of_the_users_is_lost(run: Run, tmp_path: Path) -> None:
    mine = '"one"\n"two"\n'
    for name in ("app.errors.jsonl", "b.npy.errors.jsonl", "c.npy.part"):
        (tmp_path / name).write_text(mine)
    assert run("embed", "app.errors.jsonl", "-o", "app.npy").code == 0
    for output, existing in (("b.npy", "b.npy.errors.jsonl"), ("c.npy", "c.npy.part")):
        done = run("embed", "app.errors.jsonl", "-o", output)
        assert (done.code, done.told) == (2, f"vector-api: {existing} exists; --overwrite replaces it\n")
    for output, itself in (("b.npy", "b.npy.errors.jsonl"), ("c.npy", "c.npy.part"), ("app.errors.jsonl", "app.errors.jsonl")):
        done = run("embed", itself, "--format", "jsonl", "-o", output, "--overwrite")
        assert (done.code, done.told) == (2, f"vector-api: {itself} is the input, and -o {output} would write to it\n")
    assert {path.read_text() for path in tmp_path.iterdir() if path.name != "app.npy"} == {mine}
    assert run("embed", "app.errors.jsonl", "-o", "b.npy", "--overwrite").code == 0
    assert left(tmp_path) == {"app.errors.jsonl", "app.npy", "b.npy", "c.npy.part"}


# Interruptions --------------------------------------------------------------------------------------------------------


def wait_for_rows(tmp_path: Path, output: str) -> str:
    """Returns the job when some rows, and not all, are written."""
    state = tmp_path / f"{output}.state.json"
    wait_for(lambda: state.exists() and json.loads(state.read_bytes())["rows"], what="the first rows")
    return str(json.loads(state.read_bytes())["job"])


@pytest.mark.parametrize(
    ("output", "number"), [("out.npy", signal.SIGINT), ("out.jsonl", signal.SIGKILL), ("out.parquet", signal.SIGKILL)]
)
def test_interrupted_run_goes_on(
    output: str, number: signal.Signals, run: Run, start: Callable[..., subprocess.Popen[str]], client: Client, tmp_path: Path
) -> None:
    texts = slow(1000)
    write_jsonl(tmp_path / "a.jsonl", texts)
    process = start("embed", "a.jsonl", "-o", output)
    job = wait_for_rows(tmp_path, output)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert not (tmp_path / output).exists()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert f"interrupted; job {job} goes on" in told
        assert f"vector-api cancel {job}" in told
        assert TRACEBACK not in told
    done = run("embed", "a.jsonl", "-o", output)
    assert done.code == 0, done.told
    assert f"going on with job {job}: " in done.told
    assert next(client.jobs()).id == job
    assert left(tmp_path) == {"a.jsonl", output}
    if output.endswith(".npy"):
        found = np.load(tmp_path / output)
    elif output.endswith(".jsonl"):
        found = np.array([json.loads(line)["embedding"] for line in (tmp_path / output).read_text().splitlines()])
    else:
        found = np.array(parquet.read_table(tmp_path / output)["embedding"].to_pylist())
    np.testing.assert_allclose(found, expected(texts), rtol=1e-6)


def test_cancelled_job_leaves_what_it_has(run: Run, start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", slow(2000))
    process = start("embed", "a.jsonl", "-o", "out.npy")
    job = wait_for_rows(tmp_path, "out.npy")
    assert f"{job} is cancelled" in run("cancel", job).out
    _, told = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "the job was cancelled before it came to" in told
    missing = np.isnan(np.load(tmp_path / "out.npy")).all(axis=1)
    assert missing.shape == (2000,)
    assert 0 < missing.sum() < 2000


def test_unfinished_run_is_not_mixed_with_another(run: Run, client: Client, tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    done = run("embed", "a.txt", "-o", "out.npy", "--no-wait")
    job = done.out.strip()
    assert (done.code, next(client.jobs()).id) == (0, job)
    assert left(tmp_path) == {"a.txt", "out.npy.state.json"}
    changed = run("embed", "a.txt", "-o", "out.npy", "--queue", "cpu")
    assert (changed.code, "with other options (queue)" in changed.told) == (2, True)
    (tmp_path / "a.txt").write_text("one\nthree\n")
    changed = run("embed", "a.txt", "-o", "out.npy")
    assert (changed.code, f"(job {job}), and a.txt has changed since" in changed.told) == (2, True)
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert run("embed", "a.txt", "-o", "out.npy").code == 0
    assert np.load(tmp_path / "out.npy").shape == (2, 8)
    again = run("embed", "a.txt", "-o", "out.npy")
    assert (again.code, "out.npy exists; --overwrite replaces it" in again.told) == (2, True)


def test_failure_of_the_service_makes_no_second_job(run: Run, client: Client, relay: Relay, tmp_path: Path) -> None:
    """The job was accepted, and its answer became a 500 on the way."""
    (tmp_path / "a.txt").write_text("one\n")
    before = next(client.jobs(), None)

    def fail(piece: bytes) -> bytes:
        failed = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
        return failed if piece.startswith(b"HTTP/1.1 202") else piece

    relay.answering = fail
    done = run("embed", "a.txt", "-o", "out.npy", "--url", relay.url)
    assert (done.code, "answered 500" in done.told) == (1, True)
    assert left(tmp_path) == {"a.txt", "out.npy.state.json"}
    relay.answering = bytes
    assert run("embed", "a.txt", "-o", "out.npy", "--url", relay.url).code == 0
    made = list(itertools.takewhile(lambda job: before is None or job.id != before.id, client.jobs()))
    assert [(job.total, job.status) for job in made] == [(1, "succeeded")]
    assert left(tmp_path) == {"a.txt", "out.npy"}


def test_job_that_is_gone_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    job = run("embed", "a.txt", "-o", "out.npy", "--no-wait").out.strip()
    assert run("delete", job).out == f"{job} is deleted\n"
    done = run("embed", "a.txt", "-o", "out.npy")
    assert done.code == 2
    assert f"job {job} is gone: it expired or was deleted. --overwrite sends a.txt again" in done.told
    assert run("embed", "a.txt", "-o", "out.npy", "--overwrite").code == 0


def test_job_without_a_worker_says_so(start: Callable[..., subprocess.Popen[str]], run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    process = start("embed", "a.txt", "-o", "out.npy", "--queue", "gpu")
    assert process.stderr is not None
    lines = [process.stderr.readline(), process.stderr.readline()]
    assert lines[1].startswith("the job waits: no worker for gpu is alive")
    job = lines[0].split()[1].rstrip(":")
    assert run("cancel", job).out == f"{job} is cancelled, 0 of 1 have a vector\n"


# What is wrong --------------------------------------------------------------------------------------------------------


def test_wrong_key_and_right_key(run: Run, other_api: OtherApi, tmp_path: Path) -> None:
    append(tmp_path / "keys", f"alice:{digest_of(KEY)}")
    (tmp_path / "a.txt").write_text("one\n")
    url = other_api.start(API_KEYS_FILE=str(tmp_path / "keys"))
    for key, problem in (("", "an API key is needed"), ("va_wrong", "the API key is unknown")):
        done = run("embed", "a.txt", "-o", "out.npy", VECTOR_API_URL=url, VECTOR_API_KEY=key)
        assert done.code == 1
        assert done.told.startswith(f"vector-api: {problem}")
        assert "set VECTOR_API_KEY" in done.told
    doctor = run("doctor", VECTOR_API_URL=url, VECTOR_API_KEY="va_wrong")
    assert (doctor.code, "BAD the API key is unknown" in doctor.out) == (1, True)
    assert left(tmp_path) == {"a.txt", "keys"}
    assert run("embed", "a.txt", "-o", "out.npy", VECTOR_API_URL=url, VECTOR_API_KEY=KEY).code == 0


def test_service_that_is_down_is_told_in_two_lines(run: Run, tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    (tmp_path / "a.txt").write_text("one\n")
    done = run("embed", "a.txt", "-o", "out.npy", "--url", nowhere)
    assert done.code == 4
    assert done.told.startswith(f"vector-api: {nowhere} does not answer (Connection refused)\n")
    assert done.told.count("\n") == 2
    assert left(tmp_path) == {"a.txt"}
    doctor = run("doctor", "--url", nowhere)
    assert (doctor.code, "is the service running" in doctor.out) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["embed", "none.txt", "-o", "out.npy"], "none.txt cannot be read: No such file or directory"),
        (["embed", "empty.txt", "-o", "out.npy"], "empty.txt holds no text"),
        (
            ["embed", "empty.txt", "-o", "out.bin"],
            "the output must end in .npy, .jsonl, .ndjson, .parquet; got 'out.bin'",
        ),
        (["embed", "empty.txt", "-o", "none/out.npy"], "there is no folder none for the output"),
        (
            ["keys", "new", "a b"],
            "a name has 1 to 64 letters, digits, dots, dashes or underscores, got 3 characters",
        ),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(arguments: list[str], problem: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    done = run(*arguments)
    assert (done.code, done.told) == (2, f"vector-api: {problem}\n")
    assert left(tmp_path) == {"empty.txt"}


# The other commands ---------------------------------------------------------------------------------------------------


def test_doctor_sends_a_text_there_and_back(run: Run, client: Client) -> None:
    before = next(client.jobs()).id if any(True for _ in client.jobs()) else None
    done = run("doctor")
    assert done.code == 0, done.out
    assert [line[:3] for line in done.out.splitlines()] == ["ok "] * 3
    assert re.search(r"one text went there and came back in [\d,]+ ms, 8 dimensions", done.out)
    assert (next(client.jobs(), None) and next(client.jobs()).id) == before


def test_jobs_and_queues_are_shown(run: Run, client: Client, stack: Stack) -> None:
    job = client.wait(client.submit(["a", TOO_LONG], truncate="error"))
    shown = run("jobs", "--limit", "1")
    assert re.search(rf"^{job.id}  succeeded  1/2   1       cpu ", shown.out, re.MULTILINE)
    one = run("show", job.id)
    assert "  status     succeeded" in one.out
    assert "input 1: text_too_long" in one.out
    assert json.loads(run("show", job.id, "--json").out)["id"] == job.id
    assert re.search(r"^cpu +0 +0 +w\d+@\S+ \(cpu\)$", run("queues").out, re.MULTILINE)
    unknown = run("show", "job_unknown")
    assert (unknown.code, unknown.told.startswith("vector-api: no job 'job_unknown'")) == (1, True)
