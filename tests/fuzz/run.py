"""One run against an API that is up."""

import os
import subprocess
import sys
from pathlib import Path

import httpx

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
JOBS_OF_A_KIND = 4


def make_jobs(stack: Stack, headers: dict[str, str]) -> tuple[list[str], list[str]]:
    """Ids of jobs that have ended, some with a failed input and some cancelled, and of jobs that are half done or queued."""
    driver = Driver(Ledger(connect(stack.redis_url, timeout_seconds=5, retries=2), "vector-api:"))
    with httpx.Client(base_url=stack.base_url, headers=headers) as client:

        def submit(count: int) -> list[str]:
            bodies = [{"inputs": ["a", {"id": "b", "text": "b c"}, "d"], "metadata": {"n": n}} for n in range(count)]
            return [client.post("/v1/jobs", json=body).json()["id"] for body in bodies]

        ended = submit(JOBS_OF_A_KIND)
        driver.work_all()
        with_failed = submit(JOBS_OF_A_KIND)
        driver.work_all(failed=(1,))
        cancelled = submit(JOBS_OF_A_KIND)
        for job_id in cancelled:
            client.delete(f"/v1/jobs/{job_id}").raise_for_status()
        half = submit(JOBS_OF_A_KIND)
        driver.work(JOBS_OF_A_KIND)
        return ended + with_failed + cancelled, half + submit(JOBS_OF_A_KIND)


def fuzz(stack: Stack, *options: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
    """The ended command, whose exit code is 0 when every answer was as described."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    command = [str(Path(sys.executable).with_name("st")), "--no-color", "--config-file", str(CONFIGURATION)]
    command += ["run", f"{stack.base_url}/openapi.json", "--continue-on-failure", *options]
    command += [f"--header={name}:{value}" for name, value in headers.items()]
    ended, live = make_jobs(stack, headers)
    environ = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")} | {
        "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
        "FUZZ_JOBS": " ".join(ended + live),
        "FUZZ_ENDED_JOBS": " ".join(ended),
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
    }
    return subprocess.run(
        command, cwd=stack.folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
