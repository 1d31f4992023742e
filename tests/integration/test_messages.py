"""Whoever can write to the Celery queues can only wake workers: nothing in a message is run, loaded or believed."""

import os
from pathlib import Path

import httpx
import pytest

from core.config import Settings
from core.queues import EMBED_PENDING, create_celery
from tests.processes import Stack, wait_for

pytestmark = pytest.mark.integration


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[object, ...]:
        return os.mknod, (str(self._file),)


def test_foreign_messages_are_refused_and_the_worker_goes_on(stack: Stack, tmp_path: Path) -> None:
    stack.api()
    worker, file = stack.worker(), tmp_path / "touched"
    celery = create_celery(Settings.from_env(stack.environ))
    celery.conf.accept_content = ["json", "pickle"]  # ours, to send it; the worker has its own
    celery.send_task(EMBED_PENDING, args=[Touch(file)], queue="cpu", serializer="pickle")
    celery.send_task("os.system", args=[f"touch {file}"], queue="cpu")
    for queue in ("no-such-queue", "../cpu", "x" * 10_000):
        celery.send_task(EMBED_PENDING, args=[queue], queue="cpu")
    job = httpx.post(f"{stack.base_url}/v1/jobs?wait=30", json={"inputs": ["a text"]}, timeout=60).json()
    assert job["status"] == "succeeded"
    for told in ("ContentDisallowed", "unregistered task", "the queue 'no-such-queue'", "the queue '../cpu'"):
        wait_for(lambda told=told: told in worker.output(), what=told)  # type: ignore[misc]
    assert "x" * 100 not in worker.output()
    assert not file.exists()
