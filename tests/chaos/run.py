"""A run: a fleet under load, faults at random, and the verdict over every job."""

import io
import random
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import redis

from tests.chaos.fleet import WORKERS, Fleet
from tests.chaos.load import Load, Promise
from tests.chaos.models import Fake, Model
from tests.processes import wait_for

SETTLED_SECONDS = 180
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Verdict:
    accepted: int
    inputs: int
    committed: int
    lost: int
    doubled: int
    wrong: int
    wrongly_failed: int
    cancelled: int
    poison: int
    revived: int
    """Cancelled jobs that succeeded all the same."""
    refused: int
    """Requests that had to be repeated."""
    complaints: tuple[str, ...]
    faults: dict[str, int]
    pauses: tuple[float, ...]
    """Seconds from each fault to the next commit."""

    @property
    def good(self) -> bool:
        bad = (self.lost, self.doubled, self.wrong, self.wrongly_failed, self.revived)
        return not any(bad) and not self.complaints and self.accepted > 0

    def __str__(self) -> str:
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        pauses = sorted(self.pauses) or [0.0]
        return "\n".join(
            [
                f"faults: {sum(self.faults.values())} ({faults})",
                f"accepted {self.accepted} jobs with {self.inputs} inputs; "
                f"{self.cancelled} cancelled, {self.poison} with a poison text",
                f"committed {self.committed} inputs; lost {self.lost}, doubled {self.doubled}, wrong {self.wrong}, "
                f"failed without fault {self.wrongly_failed}, cancelled and yet succeeded {self.revived}",
                f"requests repeated by clients: {self.refused}",
                f"from a fault to the next commit: median {statistics.median(pauses):.2f} s, "
                f"99 % {pauses[int(len(pauses) * 0.99) - 1]:.2f} s, most {pauses[-1]:.2f} s",
                *self.complaints,
            ]
        )


class Run:
    def __init__(self, folder: Path, *, seed: int, model: Model | None = None) -> None:
        self._model = model or Fake()
        self._fleet = Fleet(folder, self._model.app)
        self._random = random.Random(seed)
        self._load = Load(self._fleet.url, seed, self._model)
        self._faults: Counter[str] = Counter()
        self._struck: list[float] = []
        self._commits: list[float] = []
        self._done = threading.Event()
        self._threads = [threading.Thread(target=target) for target in (self._watch, self._supervise)]

    def __enter__(self) -> Self:
        self._fleet.__enter__()
        wait_for(self._answers, what="the API's answer")
        self._load.start()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._load.stop()
        for thread in self._threads:
            thread.join()
        self._fleet.__exit__(*error)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self._fleet.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def kill_at_random(self, count: int, pause_seconds: float) -> None:
        """So many faults, one after the other."""
        faults = self._fleet.faults()
        names, weights = list(faults), [weight for weight, _ in faults.values()]
        for _ in range(count):
            time.sleep(self._random.expovariate(1 / pause_seconds))
            name = self._random.choices(names, weights)[0]
            worker = f"w{self._random.randrange(WORKERS)}"
            self._struck.append(time.monotonic())
            try:
                with self._fleet.lock:
                    faults[name][1](worker)
            except redis.RedisError:
                continue  # it is away because of the fault before
            self._faults[name] += 1

    def _supervise(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            with self._fleet.lock:
                self._fleet.keep_running()

    def _watch(self) -> None:
        """Notes when inputs were committed, and how many wait."""
        before = 0
        while not self._done.wait(LOOK_SECONDS):
            try:
                with self._fleet.client as client:
                    now = int(client.hget("vector-api:counters", "finished:cpu") or 0)
                    self._load.waiting = sum(map(int, client.hvals("vector-api:waiting")))
            except (redis.RedisError, OSError):
                continue
            if now > before:
                before = now
                self._commits.append(time.monotonic())

    def verdict(self) -> Verdict:
        """Stop the load, let the fleet finish, and look at every job."""
        self._load.stop()
        counts: Counter[str] = Counter()
        complaints = list(self._load.failures)
        with httpx.Client(base_url=self._fleet.url, timeout=30) as client:
            for promise in self._load.promises:
                try:
                    self._check(client, promise, counts)
                except AssertionError as error:
                    complaints.append(f"{promise.job_id}: {error}")
        with self._fleet.client as redis_client:
            committed = int(redis_client.hget("vector-api:counters", "finished:cpu") or 0)
        counts["doubled"] += max(0, committed - counts["stored"] - counts["unknown"])
        counts["lost"] += max(0, counts["stored"] - committed)
        return Verdict(
            accepted=len(self._load.promises),
            inputs=sum(len(promise.texts) for promise in self._load.promises),
            committed=committed,
            lost=counts["lost"],
            doubled=counts["doubled"],
            wrong=counts["wrong"],
            wrongly_failed=counts["wrongly failed"],
            cancelled=counts["cancelled"],
            poison=counts["poison"],
            revived=counts["revived"],
            refused=self._load.refused,
            complaints=tuple(complaints),
            faults=dict(self._faults),
            pauses=tuple(self._pauses()),
        )

    def _pauses(self) -> list[float]:
        commits = np.array(self._commits)
        found = []
        for struck in self._struck:
            later = commits[commits > struck]
            if later.size:
                found.append(float(later[0] - struck))
        return found

    def _check(self, client: httpx.Client, promise: Promise, counts: Counter[str]) -> None:
        counts["cancelled"] += promise.cancelled
        counts["poison"] += bool(promise.poison)
        if promise.cancelled:
            found = self._load.insist(client, "GET", f"/v1/jobs/{promise.job_id}")
            if found.status_code == 404:  # the answer to the cancellation was lost, and its repeat deleted the job
                counts["unknown"] += len(promise.texts)
                return
            counts["revived"] += found.json()["status"] != "cancelled"
            counts["stored"] += found.json()["counts"]["done"] + found.json()["counts"]["failed"]
            return
        job: dict[str, Any] = {}

        def has_ended() -> bool:
            answer = self._load.insist(client, "GET", f"/v1/jobs/{promise.job_id}", params={"wait": 5})
            job.update(answer.raise_for_status().json())
            return job["status"] in ("succeeded", "failed", "cancelled")

        wait_for(has_ended, seconds=SETTLED_SECONDS, what="the end of the job")
        counts["stored"] += job["counts"]["done"] + job["counts"]["failed"]
        answer = self._load.insist(client, "GET", f"/v1/jobs/{promise.job_id}/result", params={"format": "npy"})
        vectors = np.load(io.BytesIO(answer.raise_for_status().content))
        counts["lost"] += len(promise.texts) - len(vectors)
        agree = self._model.agree(promise.texts[: len(vectors)], vectors)
        for index, vector in enumerate(vectors):
            if np.isnan(vector).any():
                counts["wrongly failed"] += index not in promise.poison
            elif index in promise.poison or not agree[index]:
                counts["wrong"] += 1
