"""Downloads: dtypes and tables over HTTP, parts of a file, whether it has changed, and whether it is whole."""

import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from api.dtypes import DTYPES
from tests.fakes import DIMENSIONS, vector_of
from tests.integration.test_api_requests import error_of
from tests.integration.test_api_results import TEXTS, new_job
from tests.ledger_driver import Driver
from tests.processes import ROOT, Stack

pytestmark = pytest.mark.integration

FAILED = {4}
VECTORS = np.stack([vector_of(text) for text in TEXTS])


@pytest.fixture(scope="module")
def api_environ() -> dict[str, str]:
    return {"SHARD_INPUTS": "3"}


@pytest.fixture
def job(api: httpx.Client, driver: Driver) -> str:
    """An ended job of ten inputs in four shards."""
    job_id = new_job(api)
    driver.work_all()
    return job_id


def get(
    api: httpx.Client, job_id: str, chosen: str = "npy", headers: dict[str, str] | None = None, **query: Any
) -> httpx.Response:
    return api.get(f"/v1/jobs/{job_id}/result", params={"format": chosen} | query, headers=headers)


# Dtypes and tables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(DTYPES))
def test_each_dtype_is_the_same_in_every_format(api: httpx.Client, job: str, name: str) -> None:
    pq, ipc = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow.ipc")
    rows, scales = DTYPES[name].of(VECTORS)
    found = np.load(io.BytesIO(get(api, job, dtype=name).content), allow_pickle=False)
    assert (found.dtype, found.tobytes()) == (DTYPES[name].numpy, rows.tobytes())
    items = get(api, job, "json", dtype=name).json()["data"]
    assert np.array([item["embedding"] for item in items], dtype=rows.dtype).tobytes() == rows.tobytes()
    for chosen, read in (
        ("arrow", lambda raw: ipc.open_stream(raw).read_all()),
        ("parquet", lambda raw: pq.read_table(io.BytesIO(raw))),
    ):
        answer = get(api, job, chosen, dtype=name)
        assert answer.headers["content-type"] == f"application/vnd.apache.{'arrow.stream' if chosen == 'arrow' else chosen}"
        table = read(answer.content)
        assert np.array(table["embedding"].to_pylist(), dtype=rows.dtype).tobytes() == rows.tobytes()
        assert table["id"].to_pylist() == [f"id {n}" if n % 2 else None for n in range(10)]
        if scales is not None:
            assert table["scale"].to_pylist() == scales.tolist() == [np.float32(item["scale"]) for item in items]
        assert (
            api.get(f"/v1/jobs/{job}/result", headers={"Accept": answer.headers["content-type"]}).content[:4]
            == answer.content[:4]
        )


def test_table_of_a_page_of_a_running_job_has_its_errors(api: httpx.Client, driver: Driver) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    job_id = new_job(api)
    error_of(get(api, job_id, "parquet"), 409, code="job_not_ready")
    driver.work(2, failed=FAILED)
    answer = get(api, job_id, "parquet", offset=2)
    assert answer.headers["x-next-offset"] == "6"
    assert "etag" not in answer.headers
    table = pq.read_table(io.BytesIO(answer.content))
    assert table["index"].to_pylist() == [2, 3, 4, 5]
    assert [row is None for row in table["embedding"].to_pylist()] == [False, False, True, False]
    assert table["error_code"].to_pylist() == [None, None, "text_too_long", None]


def test_unknown_dtype_and_scales_without_a_place_are_refused(api: httpx.Client, driver: Driver, job: str) -> None:
    assert "float32, float16, int8, binary" in error_of(get(api, job, dtype="int4"), 400, "dtype")
    job_id = new_job(api, normalize=False)
    driver.work_all()
    assert "a scale for each vector" in error_of(get(api, job_id, dtype="int8"), 400, "dtype")


def test_job_cancelled_before_anything_was_finished_is_no_array(api: httpx.Client) -> None:
    job_id = new_job(api)
    api.delete(f"/v1/jobs/{job_id}")
    answer = get(api, job_id)
    error_of(answer, 400, "format")
    assert answer.headers["x-should-retry"] == "false"
    manifest = api.get(f"/v1/jobs/{job_id}/manifest").json()
    assert (manifest["shards"], manifest["npy"], manifest["status"]) == ([], None, "cancelled")


# Ranges ---------------------------------------------------------------------------------------------------------------


def test_any_part_of_the_file_can_be_had(api: httpx.Client, job: str) -> None:
    whole = get(api, job)
    assert whole.headers["accept-ranges"] == "bytes"
    size = len(whole.content)
    cases = [("0-0", 0, 1), ("0-", 0, size), ("5-200", 5, 201), ("200-", 200, size), ("-40", size - 40, size)]
    cases += [("-99999", 0, size), ("130-99999", 130, size)]
    for asked, start, stop in cases:
        answer = get(api, job, headers={"Range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, whole.content[start:stop]), asked
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
        assert int(answer.headers["content-length"]) == stop - start
        assert answer.headers["etag"] == whole.headers["etag"]
    page = get(api, job, offset=4, limit=5).content
    assert get(api, job, offset=4, limit=5, headers={"Range": "bytes=131-180"}).content == page[131:181]


def test_range_behind_the_end_is_refused_with_the_size(api: httpx.Client, job: str) -> None:
    size = len(get(api, job).content)
    answer = get(api, job, headers={"Range": f"bytes={size}-"})
    error_of(answer, 416, "Range", code="range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{size}"


def test_what_is_no_single_range_of_a_file_that_stays_is_answered_whole(api: httpx.Client, driver: Driver, job: str) -> None:
    whole = get(api, job)
    for asked in ("bytes=0-1,5-6", "rows=0-1", "bytes=nonsense", "bytes=5-2"):
        answer = get(api, job, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (200, whole.content), asked
    for if_range in ('"another"', "W/" + whole.headers["etag"], "Sat, 21 Nov 2026 07:28:00 GMT"):
        answer = get(api, job, headers={"Range": "bytes=5-", "If-Range": if_range})
        assert (answer.status_code, answer.content) == (200, whole.content), if_range
    answer = get(api, job, headers={"Range": "bytes=5-", "If-Range": whole.headers["etag"]})
    assert (answer.status_code, answer.content) == (206, whole.content[5:])
    answer = get(api, job, "ndjson", headers={"Range": "bytes=5-"})
    assert (answer.status_code, "accept-ranges" in answer.headers) == (200, False)
    running = new_job(api)
    driver.work(1)
    answer = get(api, running, headers={"Range": "bytes=5-"})
    assert (answer.status_code, answer.headers["accept-ranges"]) == (200, "none"), "its shape will be another"


def test_download_goes_on_where_the_connection_was_cut(api: httpx.Client, driver: Driver) -> None:
    """As `curl -C -` does it."""
    lines = "".join(f'"{n}"\n' for n in range(9000))
    job_id = api.post("/v1/jobs", content=lines.encode(), headers={"Content-Type": "application/x-ndjson"}).json()["id"]
    driver.work_all()
    url = urlsplit(str(api.base_url))
    request = f"GET /v1/jobs/{job_id}/result?format=npy HTTP/1.1\r\nHost: here\r\n\r\n"
    with socket.create_connection((url.hostname, url.port), timeout=30) as connection:
        connection.sendall(request.encode())
        received = b""
        while len(received) < 100_000:
            received += connection.recv(65_536)
    head, _, begun = received.partition(b"\r\n\r\n")
    etag = re.search(rb"(?im)^etag: (.+)\r$", head)
    assert etag is not None
    rest = get(api, job_id, headers={"Range": f"bytes={len(begun)}-", "If-Range": etag.group(1).decode()})
    assert rest.status_code == 206
    assert np.array_equal(np.load(io.BytesIO(begun + rest.content)), np.stack([vector_of(str(n)) for n in range(9000)]))


@pytest.mark.skipif(shutil.which("curl") is None and "CI" not in os.environ, reason="needs curl")
def test_curl_continues_a_download_and_its_sum_is_in_the_manifest(
    api: httpx.Client, api_stack: Stack, job: str, tmp_path: Path
) -> None:
    """The commands of docs/results.md."""
    begun = get(api, job).content[:200]
    (tmp_path / "vectors.npy").write_bytes(begun)
    documented = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    commands = [line for line in documented.splitlines() if line.startswith("curl ") and "/events" not in line]

    def run(command: str) -> bytes:
        line = ["sh", "-ec", command.replace("http://127.0.0.1:8000", api_stack.base_url)]
        environ = os.environ | {"JOB": job}
        return subprocess.run(line, cwd=tmp_path, env=environ, capture_output=True, timeout=60, check=True).stdout

    _, manifest, plane = map(run, commands)
    file = (tmp_path / "vectors.npy").read_bytes()
    assert np.array_equal(np.load(io.BytesIO(file)), VECTORS)
    assert json.loads(manifest)["npy"]["sha256"] == hashlib.sha256(file).hexdigest()
    shown = re.findall(r"^```json\n(.+?)^```", documented, re.MULTILINE | re.DOTALL)
    assert [list(json.loads(text)) for text in shown] == [list(json.loads(text)) for text in (manifest, plane)]


# ETags ----------------------------------------------------------------------------------------------------------------


def test_etag_is_as_particular_as_the_bytes(api: httpx.Client, driver: Driver, job: str) -> None:
    pages: list[dict[str, Any]] = [{}, {"limit": 3}, {"offset": 1}, {"dtype": "int8"}, {"dtype": "float16"}]
    answers = [
        get(api, found, chosen, **page) for found in (job,) for chosen in ("json", "base64", "ndjson", "npy") for page in pages
    ]
    other = new_job(api)
    driver.work_all()
    answers += [get(api, other), get(api, other, "parquet"), get(api, other, "arrow"), api.get(f"/v1/jobs/{other}/manifest")]
    etags = [answer.headers["etag"] for answer in answers]
    assert len(set(etags)) == len(etags) == 24
    assert all(re.fullmatch(r'"[0-9a-f]{32}"', etag) for etag in etags), "strong ones"
    for answer, etag in zip(answers, etags, strict=True):
        again = api.get(answer.url, headers={"If-None-Match": f'"other", {etag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert api.get(answer.url, headers={"If-None-Match": '"other"'}).content == answer.content
    assert get(api, job, limit=10).headers["etag"] == get(api, job).headers["etag"], "the same bytes"


@pytest.mark.parametrize("chosen", ["json", "ndjson", "npy", "arrow", "parquet"])
def test_head_tells_the_same_without_the_bytes(api: httpx.Client, job: str, chosen: str) -> None:
    url = f"/v1/jobs/{job}/result?format={chosen}"
    head, whole = api.head(url, headers={"Range": "bytes=5-"}), api.get(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("etag", "content-type", "x-vector-count", "accept-ranges", *(["content-length"] if chosen == "npy" else [])):
        assert head.headers.get(name) == whole.headers.get(name)
    assert api.head(url, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304


# Manifest -------------------------------------------------------------------------------------------------------------


def test_manifest_proves_a_download(api: httpx.Client, driver: Driver) -> None:
    job_id = new_job(api)
    driver.work_all(failed=FAILED)
    manifest = api.get(f"/v1/jobs/{job_id}/manifest").json()
    file = get(api, job_id).content
    assert manifest["npy"] == {
        "count": 10,
        "bytes": len(file),
        "head_bytes": len(file) - 10 * DIMENSIONS * 4,
        "sha256": hashlib.sha256(file).hexdigest(),
    }
    assert [(shard["first"], shard["count"]) for shard in manifest["shards"]] == [(0, 3), (3, 3), (6, 3), (9, 1)]
    for shard in manifest["shards"]:
        start = manifest["npy"]["head_bytes"] + shard["first"] * DIMENSIONS * 4
        rows = file[start : start + shard["count"] * DIMENSIONS * 4]
        assert hashlib.sha256(rows).hexdigest() == shard["sha256"]
        page = get(api, job_id, offset=shard["first"], limit=shard["count"]).content
        assert page.endswith(rows)
    record = api.get(f"/v1/jobs/{job_id}").json()
    shared = set(record) & set(manifest) - {"object"}
    assert {name: manifest[name] for name in shared} == {name: record[name] for name in shared}
    assert {"model", "revision", "engine", "dtype", "dimensions", "normalize", "counts", "ended_at"} <= shared
    assert (manifest["object"], manifest["job"]) == ("manifest", job_id)


def test_manifest_of_a_cancelled_job_has_what_was_finished(api: httpx.Client, driver: Driver) -> None:
    job_id = new_job(api)
    shards = [driver.claim().shards[0] for _ in range(3)]
    driver.commit(shards[0], shards[2])
    assert "the job is running" in error_of(api.get(f"/v1/jobs/{job_id}/manifest"), 409, code="job_not_ready")
    api.delete(f"/v1/jobs/{job_id}")
    manifest = api.get(f"/v1/jobs/{job_id}/manifest").json()
    assert [(shard["first"], shard["count"]) for shard in manifest["shards"]] == [(0, 3), (6, 3)]
    assert manifest["npy"]["count"] == 3, "the file ends at the first gap"
    assert manifest["npy"]["sha256"] == hashlib.sha256(get(api, job_id).content).hexdigest()


def test_manifest_of_no_job_is_not_found(api: httpx.Client) -> None:
    error_of(api.get("/v1/jobs/job_0/manifest"), 404, code="job_not_found")
