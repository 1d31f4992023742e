"""Clients that send jobs of all kinds, repeat what was not answered, and remember what they were promised."""

import random
import threading
import time
import uuid
from dataclasses import dataclass, field

import httpx

from tests.chaos.models import POISON, Model

PATIENCE_SECONDS = 120
MOST_WAITING = 4_000
"""Inputs in jobs that have not ended; clients hold back beyond it, so that the run ends soon after the last kill."""


@dataclass
class Promise:
    """A job that was answered with 202."""

    job_id: str
    texts: list[str]
    cancelled: bool = False
    """Its cancellation was answered before it ended."""
    poison: frozenset[int] = field(default_factory=frozenset)


class Load:
    def __init__(self, url: str, seed: int, model: Model) -> None:
        self._url = url
        self._model = model
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._keep_sending, args=(seed * 100 + n,)) for n in range(3)]
        self.promises: list[Promise] = []
        self.failures: list[str] = []
        self.refused = 0
        self.waiting = 0

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=2 * PATIENCE_SECONDS)

    def _keep_sending(self, seed: int) -> None:
        chance = random.Random(seed)
        with httpx.Client(base_url=self._url, timeout=10) as client:
            while not self._stop.is_set():
                try:
                    self._send(client, chance)
                except Exception as error:
                    self.failures.append(f"{type(error).__name__}: {error}")
                self._stop.wait(chance.expovariate(8))
                while self.waiting > MOST_WAITING and not self._stop.wait(0.2):
                    pass

    def _send(self, client: httpx.Client, chance: random.Random) -> None:
        kind = chance.choices(list(self._model.kinds), list(self._model.kinds.values()))[0]
        count = {"one": 1, "some": chance.randint(2, 300), "many": 5000, "cancelled": chance.randint(1, 500), "poison": 40}[kind]
        name = uuid.UUID(int=chance.getrandbits(128)).hex
        texts = self._model.texts(count, chance)
        poison = frozenset([chance.randrange(count)]) if kind == "poison" else frozenset[int]()
        for index in poison:
            texts[index] = f"{POISON} {name}"
        body = {"inputs": texts, "priority": "interactive" if kind == "one" else "bulk", "queue": "cpu"}
        answer = self.insist(client, "POST", "/v1/jobs", json=body, headers={"Idempotency-Key": name})
        assert answer.status_code == 202, f"{answer.status_code} {answer.text[:200]}"
        promise = Promise(answer.json()["id"], texts, poison=poison)
        with self._lock:
            self.promises.append(promise)
            self.waiting += count
        if kind == "cancelled":
            answer = self.insist(client, "DELETE", f"/v1/jobs/{promise.job_id}")
            # 404: an answer was lost, and the repeat deleted what had been cancelled or had ended
            promise.cancelled = (
                answer.status_code == 404 or answer.json().get("status") == "cancelled" or "deleted" in answer.json()
            )

    def insist(self, client: httpx.Client, method: str, path: str, **content: object) -> httpx.Response:
        """Repeat until there is an answer that is one."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = client.request(method, path, **content)  # type: ignore[arg-type]
                if answer.status_code not in (429, 503):
                    return answer
                self.refused += 1
            except httpx.TransportError:
                self.refused += 1
            assert time.monotonic() < end, f"no answer to {method} {path} for {PATIENCE_SECONDS} s"
            time.sleep(0.1)
