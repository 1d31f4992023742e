"""An S3 server for tests: moto's, a process of its own that answers S3's HTTP and keeps objects in memory."""

import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import Process, free_port, wait_for

BUCKET = "vectors"


@contextmanager
def s3_server(folder: Path, port: int | None = None) -> Iterator[dict[str, str]]:
    """A running server with one bucket; the variables that lead a client to it."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = Process(command, {}, folder / f"s3-{port}.log")

    def has_bucket() -> bool:
        assert process.popen.poll() is None, process.output()
        try:
            made = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
            with urllib.request.urlopen(made, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        wait_for(has_bucket, what="the S3 server's answer")
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
    finally:
        process.kill_group()
