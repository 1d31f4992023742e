"""Embed a file's passages: submit a job, wait for it, read its vectors.

python examples/client.py examples/alice.txt --output vectors.npy

Where the service asks for a key, it is read from the environment variable API_KEY.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

Job = dict[str, Any]
"""A job's record as the API shows it: `id`, `status`, `counts`, …"""

ENDED = ("succeeded", "failed", "cancelled")


class Client:
    """A vector-api at `url`. `api_key` is needed where the service asks for one."""

    def __init__(self, url: str = "http://127.0.0.1:8000", *, api_key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=60)

    def submit(self, inputs: Sequence[str], *, wait_seconds: float = 0, **options: Any) -> Job:
        """The record of a new job. `options` are those of POST /v1/jobs, such as `priority="interactive"`.

        When the job ends within `wait_seconds`, the record holds its vectors: `record["data"][0]["embedding"]`.
        """
        return self._json("POST", "/v1/jobs", params={"wait": wait_seconds}, json={"inputs": list(inputs), **options})

    def wait(self, job: Job, *, every_seconds: float = 10, show: Callable[[Job], None] = lambda job: None) -> Job:
        """The record of the ended job. `show` is called with the record as it is every `every_seconds`."""
        while job["status"] not in ENDED:
            # The API holds its answer until the job ends or the time is over.
            job = self._json("GET", f"/v1/jobs/{job['id']}", params={"wait": every_seconds})
            show(job)
        return job

    def vectors(self, job: Job) -> np.ndarray[Any, np.dtype[np.float32]]:
        """float32, (number of inputs, dimensions), in the order of the inputs; NaN where an input failed."""
        answer = self._request("GET", f"/v1/jobs/{job['id']}/result", params={"format": "npy"})
        found: np.ndarray[Any, np.dtype[np.float32]] = np.load(io.BytesIO(answer.content))
        return found

    def close(self) -> None:
        self._http.close()

    def _json(self, method: str, path: str, **request: Any) -> Job:
        record: Job = self._request(method, path, **request).json()
        return record

    def _request(self, method: str, path: str, **request: Any) -> httpx.Response:
        answer = self._http.request(method, path, **request)
        if answer.is_error:
            raise RuntimeError(answer.json()["error"]["message"])
        return answer


def read_passages(path: Path) -> list[str]:
    """The paragraphs of a text file, each on one line."""
    paragraphs = path.read_text(encoding="utf-8").split("\n\n")
    return [" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Embed a file's passages, which are divided by blank lines.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the API is (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("vectors.npy"), help="the file to write, for numpy.load (%(default)s)"
    )
    options = parser.parse_args()
    client = Client(options.url, api_key=os.environ.get("API_KEY"))
    try:
        job = client.submit(read_passages(options.file))
        print(f"job {job['id']}: {job['counts']['total']} passages", flush=True)
        job = client.wait(job, every_seconds=1, show=lambda job: print(f"  {job['counts']['done']} done", flush=True))
        vectors = client.vectors(job)
    except (httpx.TransportError, RuntimeError, OSError) as error:
        sys.exit(f"{options.url}: {error}")
    finally:
        client.close()
    np.save(options.output, vectors)
    print(f"{job['status']}: {vectors.shape[0]} vectors of {vectors.shape[1]} dimensions in {options.output}")


if __name__ == "__main__":
    main()
