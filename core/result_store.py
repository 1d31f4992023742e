"""The door to a folder or an S3 bucket: where the results of shards lie when `RESULT_STORE` names a place outside of Redis.

An object is the result block of one shard as one attempt found it, under `<job>/<shard>.<attempt>.<random>`. No two writes
share a key, so a worker that lost its lease can overwrite nothing; what is read is what the ledger refers to, and only that.
All objects of a job begin with `<job>/`, so what nobody refers to goes with the job.

obstore rather than fsspec with s3fs: one package of 16 MB where the other two bring 50 MB in 18, no event loop to share between
threads, and calls that let other threads run. Its threads do not survive a fork, so a store is opened with its first use.
"""

import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from core.errors import ResultLost, ResultStoreRefuses, ResultStoreUnavailable

WRITES = 8
"""Objects of one worker on their way at the same time."""

MOST_REASON = 300
"""Characters of the library's own message that are kept; the rest are its internals."""


_importing = threading.Lock()


def _obstore() -> Any:
    """The package, imported by one thread: those that begin together, each with another module of it, would see half of it."""
    with _importing:
        import obstore.exceptions
        import obstore.store
    return obstore


class ResultStore:
    """Objects under a URL, `file:///folder` or `s3://bucket/prefix`. Safe to share between threads.

    Credentials, region and endpoint of S3 come from the `AWS_…` variables, or from the machine's or pod's role.

    Raises:
        ResultStoreUnavailable: from every method, when the store fails.
        ResultStoreRefuses: the same, when trying again will not help: no such folder or bucket, or no permission.
    """

    def __init__(self, url: str, *, timeout_seconds: float, retries: int) -> None:
        self.url = url
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        parts = urlsplit(url)
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" else None

    @cached_property
    def _store(self) -> Any:
        store = _obstore().store
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ResultStoreRefuses(self._message(error), store=self.url) from error
            return store.LocalStore(self._folder, automatic_cleanup=True)
        return store.from_url(
            self.url,
            client_options={
                "timeout": timedelta(seconds=self._timeout_seconds),
                "connect_timeout": timedelta(seconds=2),
                "allow_http": True,  # only for an AWS_ENDPOINT_URL that says so
            },
            retry_config={
                "max_retries": self._retries,
                "retry_timeout": timedelta(seconds=self._timeout_seconds * (1 + self._retries)),
            },
        )

    @cached_property
    def _writers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(WRITES, "store")

    @contextmanager
    def _translating(self) -> Iterator[None]:
        errors = _obstore().exceptions
        try:
            yield
        except (PermissionError, FileNotFoundError, errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
            raise ResultStoreRefuses(self._message(error), store=self.url) from error
        except (errors.BaseError, OSError) as error:
            raise ResultStoreUnavailable(self._message(error), store=self.url) from error

    def _message(self, error: Exception) -> str:
        reason = str(error).partition("Debug source")[0]
        return f"the result store {self.url}: {' '.join(reason.split())[:MOST_REASON]}"

    def put(self, key: str, block: bytes) -> None:
        """Write an object. It is whole and on disk when this returns."""
        with self._translating():
            self._store.put(key, block, use_multipart=False)  # parts that were never completed cannot be listed as objects
            if self._folder is not None:
                _sync(self._folder / key)
                _sync((self._folder / key).parent)

    def put_all(self, blocks: Mapping[str, bytes]) -> None:
        """Write objects by their keys, some at a time. When one fails others may be there."""
        list(self._writers.map(self.put, blocks, blocks.values()))

    def get(self, key: str) -> bytes:
        """Read an object.

        Raises:
            ResultLost: there is no such object.
        """
        with self._translating():
            try:
                return bytes(self._store.get(key).bytes())
            except FileNotFoundError as error:
                raise ResultLost(f"the result store {self.url} has no object {key}") from error

    def remove(self, key: str) -> None:
        """Remove an object, if it is there."""
        with self._translating():
            self._remove([key])

    def remove_job(self, job_id: str) -> int:
        """Remove all objects of a job. Returns how many there were."""
        keys = self.keys(job_id)
        if keys:
            with self._translating():
                self._remove(keys)
        return len(keys)

    def keys(self, job_id: str) -> list[str]:
        """The objects of a job."""
        with self._translating():
            return [found["path"] for page in self._store.list(job_id) for found in page]

    def probe(self) -> None:
        """Returns when an object can be written, read and removed."""
        key = f"probe/{uuid.uuid4().hex}"
        self.put(key, b"vector-api")
        self.get(key)
        self.remove(key)

    def _remove(self, keys: list[str]) -> None:
        try:
            self._store.delete(keys)
        except FileNotFoundError:  # a folder says so, S3 does not; the others go all the same
            for key in keys if len(keys) > 1 else ():
                self._remove([key])


def new_key(job_id: str, span: object, attempt: int) -> str:
    """The key of a new object, used by no other write ever: a Redis that lost its last second may hand out an attempt again."""
    return f"{job_id}/{span}.{attempt}.{uuid.uuid4().hex[:12]}"


def _sync(path: Path) -> None:
    """Have a file or folder on disk: the ledger forgets the inputs next."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
