"""A thousand jobs of all kinds come, end in every way there is, and expire: Redis holds what it held before, and nothing else."""

import hashlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from launcher.redis_server import RedisServer
from tests.faults.conftest import NO_FSYNC, Fleet, fleet_at
from tests.processes import wait_for

pytestmark = pytest.mark.integration

TENANTS = ("alice", "bob", "carol")
JOBS = 1000
TTL_SECONDS = 1

PERMANENT = {
    "waiting",  # inputs that wait in each lane
    "counters",  # totals since the ledger began
    "version",  # the layout of the keys
    "workers",  # what lives
    "workers:cpu",
    "workers:gpu",
}
"""The keys that outlive every job, but for those of the next two kinds, and for the cache, which is off here as by default."""
ALSO_PERMANENT = ("worker:", "celery:_kombu.binding", "throughput:")
"""The reports of living workers; Celery's list of its queues; the throughput of the last ten minutes, which expires."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """An API that knows three tenants and limits them widely, a worker of each queue."""
    folder = tmp_path_factory.mktemp("fleet")
    keys = folder / "keys"
    keys.write_text("".join(f"{tenant}:{hashlib.sha256(tenant.encode()).hexdigest()}\n" for tenant in TENANTS))
    limits = {f"MAX_TENANT_{name}_PER_MINUTE": "10000000" for name in ("REQUESTS", "INPUTS")}
    limits |= {f"MAX_TENANT_{name}": "1000000" for name in ("JOBS", "INPUTS")} | {"MAX_WAITING_BYTES": "1000000000"}
    with RedisServer(folder / "redis", NO_FSYNC) as server, fleet_at(folder, limits, server=server) as fleet:
        fleet.stack.api(API_KEYS_FILE=str(keys))
        fleet.start_workers(1)
        fleet.start_worker(queues="gpu")
        yield fleet


def names(fleet: Fleet) -> set[str]:
    """All keys, without the prefix, but for those that may stay."""
    found = {key.decode().removeprefix("vector-api:") for key in fleet.redis.scan_iter(count=10_000)}
    return {name for name in found - PERMANENT if not name.startswith(ALSO_PERMANENT)}


class Clients:
    """Send jobs, each of a kind that follows from its number, and end some of them."""

    def __init__(self, url: str) -> None:
        self._clients = {
            tenant: httpx.Client(base_url=url, timeout=60, headers={"Authorization": f"Bearer {tenant}"}) for tenant in TENANTS
        }
        self.kinds: Counter[str] = Counter()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def send(self, number: int) -> None:
        client, kind = self._clients[TENANTS[number % 3]], random.Random(number).choice(KINDS)
        self.kinds[kind] += 1
        body = {
            "inputs": [f"{number} {n}" for n in range(300 if kind == "large" else 2)],
            "queue": ("cpu", "gpu", "auto")[number % 7 % 3],
            "priority": ("bulk", "interactive")[number % 2],
            "ttl_seconds": TTL_SECONDS,
        }
        match kind:
            case "stream":
                lines = f'"{number}"\n' * 600
                answer = client.post(f"/v1/jobs?ttl_seconds={TTL_SECONDS}", content=lines, headers=NDJSON)
            case "broken stream":
                answer = client.post("/v1/jobs", content='"a"\n' * 9_000 + "{", headers=NDJSON)
                assert answer.status_code == 400
                return
            case "refused":
                assert client.post("/v1/jobs", json=body | {"inputs": [""]}).status_code == 400
                return
            case "failing":
                answer = client.post("/v1/jobs", json=body | {"inputs": ["RAISE one", "RAISE another"]})
            case "idempotent":
                headers = {"Idempotency-Key": f"key {number}"}
                answer, again = (client.post("/v1/jobs", json=body, headers=headers) for _ in range(2))
                assert answer.json()["id"] == again.json()["id"]
            case _:
                answer = client.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        if kind in ("cancelled", "deleted"):
            for _ in range(1 if kind == "cancelled" else 2):
                assert client.delete(f"/v1/jobs/{answer.json()['id']}").status_code in (200, 404)


KINDS = ["small"] * 12 + ["large", "stream", "broken stream", "refused", "failing", "idempotent", "cancelled", "deleted"]
NDJSON = {"Content-Type": "application/x-ndjson"}


def test_no_key_is_left_behind_by_a_thousand_jobs(fleet: Fleet) -> None:
    assert names(fleet) == set()
    clients = Clients(fleet.stack.base_url)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(clients.send, range(JOBS)))
    finally:
        clients.close()
    assert set(clients.kinds) == set(KINDS)
    left: set[str] = set()

    def only_permanent() -> bool:
        nonlocal left
        left = names(fleet)
        return not left

    try:
        wait_for(only_permanent, seconds=30, what="the end of all keys")
    except AssertionError:
        raise AssertionError(f"{len(left)} keys are left: {sorted(left)[:20]}") from None
    assert set(map(int, fleet.redis.hvals("vector-api:waiting"))) <= {0}


def test_result_can_be_read_until_it_expires_and_no_longer(fleet: Fleet) -> None:
    headers = {"Authorization": "Bearer alice"}
    with httpx.Client(base_url=fleet.stack.base_url, timeout=60, headers=headers) as client:
        job = client.post("/v1/jobs?wait=30", json={"inputs": ["a"], "ttl_seconds": 2, "queue": "cpu"}).json()
        assert job["expires_at"] == pytest.approx(job["ended_at"] + 2, abs=0.01)

        def gone() -> bool:
            asked = time.time()
            answers = [client.get(f"/v1/jobs/{job['id']}{path}").status_code for path in ("", "/result")]
            if time.time() < job["expires_at"]:
                assert answers == [200, 200]
            if asked > job["expires_at"]:
                assert answers == [404, 404]
            return answers == [404, 404]

        wait_for(gone, seconds=10, what="the end of the result")
