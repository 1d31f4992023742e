"""One run against an API that is up."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from core.config import DEFAULT_MODEL
from core.ledger import Ledger, connect
from tests.ledger_driver import Driver
from tests.processes import ROOT, Stack

SMALL = {
    "MAX_INPUTS": "5",
    "MAX_STREAM_INPUTS": "8",
    "MAX_INPUT_CHARACTERS": "50",
    "MAX_BODY_BYTES": "30000",
    "MAX_STREAM_BYTES": "40000",
    "SHARD_INPUTS": "2",
    "EMBEDDINGS_WAIT_SECONDS": "0.1",
}
"""Limits of the API that are reached with small requests."""

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
THINGS_OF_A_KIND = 4


def make_things(stack: Stack, headers: dict[str, str]) -> dict[str, list[str]]:
    """Ids of what the requests ask for, by the names of path parameters: also of jobs that have ended, and of live ones."""
    driver = Driver(Ledger(connect(stack.redis_url, timeout_seconds=5, retries=2), "vector-api:"))
    with httpx.Client(base_url=stack.base_url, headers=headers) as client:

        def submit(count: int) -> list[str]:
            bodies = [{"inputs": ["a", {"id": "b", "text": "b c"}, "d"], "metadata": {"n": n}} for n in range(count)]
            return [client.post("/v1/jobs", json=body).json()["id"] for body in bodies]

        files = [upload_batch_file(client) for _ in range(THINGS_OF_A_KIND)]
        batches = [create_batch(client, file_id) for file_id in files]
        ended = submit(THINGS_OF_A_KIND)
        driver.work_all()
        with_failed = submit(THINGS_OF_A_KIND)
        driver.work_all(failed=(1,))
        cancelled = submit(THINGS_OF_A_KIND)
        for job_id in cancelled:
            client.delete(f"/v1/jobs/{job_id}").raise_for_status()
        half = submit(THINGS_OF_A_KIND)
        driver.work(THINGS_OF_A_KIND)
        over = ended + with_failed + cancelled
        return {
            "job_id": over + half + submit(THINGS_OF_A_KIND),
            "ended_job_id": over,
            "file_id": files + [batch["output_file_id"] for batch in map(read_batch(client), batches) if batch["output_file_id"]],
            "batch_id": batches + [create_batch(client, file_id) for file_id in files],
            "name": [DEFAULT_MODEL],
        }


def upload_batch_file(client: httpx.Client) -> str:
    """A file of one line for a batch; its id."""
    body = {"model": DEFAULT_MODEL, "input": "a text"}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": body}
    answer = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("batch.jsonl", json.dumps(line).encode())})
    return str(answer.raise_for_status().json()["id"])


def create_batch(client: httpx.Client, file_id: str) -> str:
    body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    return str(client.post("/v1/batches", json=body).raise_for_status().json()["id"])


def read_batch(client: httpx.Client) -> Callable[[str], dict[str, Any]]:
    return lambda batch_id: client.get(f"/v1/batches/{batch_id}").raise_for_status().json()


def fuzz(stack: Stack, *options: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
    """The ended command, whose exit code is 0 when every answer was as described."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    command = [str(Path(sys.executable).with_name("st")), "--no-color", "--config-file", str(CONFIGURATION)]
    command += ["run", f"{stack.base_url}/openapi.json", "--continue-on-failure", *options]
    command += [f"--header={name}:{value}" for name, value in headers.items()]
    environ = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")} | {
        "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
        "FUZZ_IDS": json.dumps(make_things(stack, headers)),
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
    }
    return subprocess.run(
        command, cwd=stack.folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
